/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that are open: disks and their partitions, logical volumes, files inside of images, texts.
 *
 * A disk or partition is a range of a disk of the engine, as large as it was when it was opened. Live content is opened
 * for writing whoever comes first, for who comes later may want to write; that is one opening of the disk, and its
 * lease goes with the last file.
 *
 * With `scratch` an image that was once opened for writing keeps its overlay until the tree is closed: what was written
 * there is there when it is opened again.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fusefs/tree_internal.h"

enum { SEEK_WINDOW_BYTES = 64 << 20 };

/* An image that was written to. */
struct overlay {
	struct overlay *next;
	struct origin *origin; /* counted */
	struct pooled_disk *pooled;
};

enum file_kind { FILE_RAW, FILE_LOGICAL, FILE_TEXT, FILE_INNER };

struct file {
	struct file *next; /* of all; files_lock */
	struct tree *tree;
	struct node *node;
	enum file_kind kind;
	uint64_t off_bytes, len_bytes; /* FILE_RAW: in the disk */
	bool is_writable;

	struct pooled_disk *pooled;    /* FILE_RAW, FILE_LOGICAL */
	struct fsreader_source source; /* FILE_LOGICAL */
	char *text;		       /* FILE_TEXT */
	struct fsreader_file *inner;   /* FILE_INNER */
};

/* ---- opening ---- */

static bool has_overlay(const struct file *file)
{
	return file->pooled != NULL && file->pooled->scratch != NULL;
}

static int refuse_writing(struct tree *tree, const struct node *node, struct failure *failure)
{
	char name[POOL_KEY_BYTES] = "";

	if (node->origin == NULL || (node->kind != NODE_RAW && node->kind != NODE_PART))
		return fail(failure, node->kind == NODE_LAYOUT ? -EPERM : -EROFS, "%s",
			    node->kind == NODE_LAYOUT ? "layout: it can't be changed yet"
						      : "files of an image, and about it, can't be changed");
	origin_name(node->origin, name);
	if (node->origin->image != 0)
		return fail(failure, -EROFS,
			    "%s: an image can't be written to, it never changes; clone it, or mount with -o scratch",
			    name);
	if (tree->store_is_read_only)
		return fail(failure, -EROFS, "%s: the store can't be written to", name);
	return fail(failure, -EROFS,
		    "disk %s: it is a mirror; what is written to it, the next round overwrites: mount with -o "
		    "rw=mirror if that is meant, or "
		    "clone an image of it",
		    name);
}

static int find_range(struct tree *tree, struct file *file, struct failure *failure)
{
	struct disk_partition partition;
	int error;

	file->len_bytes = disk_size(file->pooled->disk);
	if (file->node->kind == NODE_RAW)
		return 0;
	error = origin_find_partition(tree, file->node->origin, file->node->number, &partition, failure);
	if (error == 0) {
		file->off_bytes = partition.off_bytes;
		file->len_bytes = partition.len_bytes;
	}
	return error;
}

static int open_live_or_image(struct tree *tree, struct file *file, struct failure *failure)
{
	struct origin *origin = file->node->origin;
	bool is_first = origin->image == 0 && origin->open_count == 0;
	int error = origin_open(tree, origin, &file->pooled, failure);

	if (error == 0 && is_first)
		origin_note_change(origin); /* a crash may have left something */
	return error;
}

/* What is written to an image stays as long as the tree does. */
static int keep_overlay(struct tree *tree, struct origin *origin, struct pooled_disk *pooled, const char *key,
			const struct store_reference *reference, struct failure *failure)
{
	struct overlay *overlay;
	WITH_LOCK(&tree->files_lock);

	for (overlay = tree->overlays; overlay != NULL; overlay = overlay->next)
		if (overlay->pooled == pooled)
			return 0;
	overlay = calloc(1, sizeof(*overlay));
	if (overlay == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", key);
	/* it is open, so this only counts */
	if (disk_pool_acquire(tree->pool, key, reference, POOL_OVERLAY, &overlay->pooled, failure) < 0) {
		free(overlay);
		return -ENOMEM;
	}
	overlay->origin =
		origin_get(tree, origin->disk, origin->disk_id, origin->image, origin->created_at, origin->size_bytes);
	overlay->next = tree->overlays;
	tree->overlays = overlay;
	return 0;
}

static int open_overlay(struct tree *tree, struct file *file, bool write, struct failure *failure)
{
	struct store_reference reference = origin_reference(file->node->origin);
	char name[POOL_KEY_BYTES], key[POOL_KEY_BYTES + sizeof("scratch ")];
	int error;

	origin_name(file->node->origin, name);
	(void)snprintf(key, sizeof(key), "scratch %s", name);
	error = disk_pool_acquire(tree->pool, key, &reference, POOL_OVERLAY, &file->pooled, failure);
	if (error == 0 && write)
		error = keep_overlay(tree, file->node->origin, file->pooled, key, &reference, failure);
	return error;
}

static int open_raw(struct tree *tree, struct file *file, bool write, struct failure *failure)
{
	struct origin *origin = file->node->origin;
	bool is_overlay = origin->image != 0 && tree->options.scratch && !tree->options.read_only;
	int error;

	file->kind = FILE_RAW;
	if (write && !origin_may_be_written(tree, origin))
		return refuse_writing(tree, file->node, failure);
	error = is_overlay ? open_overlay(tree, file, write, failure) : open_live_or_image(tree, file, failure);
	if (error < 0)
		return error;
	file->is_writable = has_overlay(file) || disk_is_writable(file->pooled->disk);
	if (write && !file->is_writable)
		return refuse_writing(tree, file->node, failure);
	return find_range(tree, file, failure);
}

static int open_logical(struct tree *tree, struct file *file, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	const struct lvm_volume *volume;
	int error = origin_scan(tree, file->node->origin, &scan, failure);

	file->kind = FILE_LOGICAL;
	if (error < 0)
		return error;
	volume = origin_find_volume(scan, file->node->name);
	if (volume == NULL || volume->problem != NULL)
		return -ENOENT;
	error = origin_open(tree, file->node->origin, &file->pooled, failure);
	if (error < 0)
		return error;
	origin_lend(file->node->origin, file->pooled);
	file->source = lvm_source(volume);
	file->len_bytes = volume->size_bytes;
	return 0;
}

static int open_text(struct tree *tree, struct file *file, struct failure *failure)
{
	int error = text_make(tree, file->node, &file->text, failure);

	file->kind = FILE_TEXT;
	if (error == 0)
		file->len_bytes = strlen(file->text);
	return error;
}

static int open_inner(struct tree *tree, struct file *file, struct failure *failure)
{
	struct fsreader *reader;
	int error = volume_use(tree, file->node->volume, &reader, failure);

	if (error < 0)
		return error;
	error = fsreader_open(reader, file->node->inner, &file->inner, failure);
	if (error < 0)
		volume_done(tree, file->node->volume);
	else
		file->kind = FILE_INNER; /* from here on it is closed as one */
	return error;
}

static int open_it(struct tree *tree, struct file *file, bool write, struct failure *failure)
{
	switch (file->node->kind) {
	case NODE_RAW:
	case NODE_PART:
		return open_raw(tree, file, write, failure);
	default:
		break;
	}
	if (write)
		return refuse_writing(tree, file->node, failure);
	switch (file->node->kind) {
	case NODE_LVM_RAW:
		return open_logical(tree, file, failure);
	case NODE_INFO:
	case NODE_LAYOUT:
	case NODE_WHY_NOT:
	case NODE_LVM_WHY_NOT:
		return open_text(tree, file, failure);
	case NODE_INNER:
		return open_inner(tree, file, failure);
	default:
		return -EISDIR;
	}
}

/* What it has open. */
static int release(struct file *file, struct failure *failure)
{
	int error = 0;

	free(file->text);
	if (file->inner != NULL) {
		fsreader_close(file->inner);
		volume_done(file->tree, file->node->volume);
	}
	if (has_overlay(file))
		error = disk_pool_release(file->tree->pool, file->pooled, failure);
	else if (file->pooled != NULL)
		error = origin_close(file->tree, file->node->origin, file->pooled, failure);
	free(file);
	return error;
}

int file_open(struct tree *tree, struct node *node, bool write, struct file **ret_file, struct failure *failure)
{
	struct file *file = calloc(1, sizeof(*file));
	int error;

	if (file == NULL)
		return fail(failure, -ENOMEM, "a file: out of memory");
	file->tree = tree;
	file->node = node;
	file->kind = FILE_TEXT;
	error = open_it(tree, file, write, failure);
	if (error < 0) {
		(void)release(file, NULL); /* nothing was written through it */
		return error;
	}
	*ret_file = file;
	WITH_LOCK(&tree->files_lock);
	file->next = tree->files;
	tree->files = file;
	return 0;
}

int file_close(struct file *file, struct failure *failure)
{
	if (file == NULL)
		return 0;
	{
		WITH_LOCK(&file->tree->files_lock);
		for (struct file **at = &file->tree->files; *at != NULL; at = &(*at)->next)
			if (*at == file) {
				*at = file->next;
				break;
			}
	}
	return release(file, failure);
}

void files_close(struct tree *tree)
{
	while (tree->files != NULL) {
		struct failure failure = {.code = 0};

		if (file_close(tree->files, &failure) < 0)
			notice(tree->options.notices, NOTICE_WARNING, "%s", failure.message);
	}
	while (tree->overlays != NULL) {
		struct overlay *overlay = tree->overlays;

		tree->overlays = overlay->next;
		(void)disk_pool_release(tree->pool, overlay->pooled, NULL); /* meant to be gone */
		origin_put(tree, overlay->origin);
		free(overlay);
	}
}

enum file_caching file_caching(const struct file *file)
{
	if (file->kind == FILE_TEXT)
		return FILE_CACHE_NEVER;
	if (file->kind == FILE_RAW && (file->node->origin->image == 0 || has_overlay(file)))
		return FILE_CACHE_WHILE_OPEN;
	return FILE_CACHE_FOREVER;
}

bool file_begin_giving(struct file *file)
{
	struct node *node = file->node;

	if (file->kind != FILE_INNER)
		return false;
	WITH_LOCK(&file->tree->giving_lock);
	while (node->giving == NODE_BEING_GIVEN)
		(void)pthread_cond_wait(&file->tree->given, &file->tree->giving_lock);
	if (node->giving == NODE_GIVEN)
		return false;
	node->giving = NODE_BEING_GIVEN;
	return true;
}

void file_end_giving(struct file *file)
{
	WITH_LOCK(&file->tree->giving_lock);

	file->node->giving = NODE_GIVEN;
	(void)pthread_cond_broadcast(&file->tree->given);
}

/* ---- content ---- */

int file_read(struct file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
	      struct failure *failure)
{
	uint64_t left;
	int error = 0;

	if (file->kind == FILE_INNER)
		return fsreader_read(file->inner, buffer, len_bytes, off_bytes, ret_len_bytes, failure);
	left = off_bytes < file->len_bytes ? file->len_bytes - off_bytes : 0;
	if (len_bytes > left)
		len_bytes = (size_t)left;
	if (len_bytes == 0)
		error = 0;
	else if (file->kind == FILE_TEXT)
		memcpy(buffer, file->text + off_bytes, len_bytes);
	else if (file->kind == FILE_LOGICAL)
		error = file->source.read(file->source.opaque, buffer, len_bytes, off_bytes, failure);
	else if (has_overlay(file))
		error = scratch_read(file->pooled->scratch, buffer, len_bytes, file->off_bytes + off_bytes, failure);
	else
		error = disk_read(file->pooled->disk, buffer, len_bytes, file->off_bytes + off_bytes, failure);
	if (error == 0)
		*ret_len_bytes = len_bytes;
	return error;
}

/* After what is written can be read: who looks at `writes` before he reads, and finds it unchanged later, has read all
 * of it. */
static void note_written(struct file *file)
{
	file->node->origin->writes++;
	origin_note_change(file->node->origin);
}

int file_write(struct file *file, const void *buffer, size_t len_bytes, uint64_t off_bytes, bool durable,
	       size_t *ret_len_bytes, struct failure *failure)
{
	int error;

	if (!file->is_writable)
		return refuse_writing(file->tree, file->node, failure);
	if (off_bytes >= file->len_bytes && len_bytes > 0)
		return fail(failure, -ENOSPC, "%s: nothing can be written beyond its end",
			    disk_name(file->pooled->disk));
	if (len_bytes > file->len_bytes - off_bytes)
		len_bytes = (size_t)(file->len_bytes - off_bytes);
	if (has_overlay(file))
		error = scratch_write(file->pooled->scratch, buffer, len_bytes, file->off_bytes + off_bytes, failure);
	else
		error = disk_write(file->pooled->disk, buffer, len_bytes, file->off_bytes + off_bytes,
				   durable ? DISK_FUA : 0, failure);
	note_written(file);
	if (error == 0)
		*ret_len_bytes = len_bytes;
	return error;
}

int file_zero(struct file *file, uint64_t off_bytes, uint64_t len_bytes, bool punch, struct failure *failure)
{
	int error;

	if (!file->is_writable)
		return refuse_writing(file->tree, file->node, failure);
	if (off_bytes >= file->len_bytes)
		return 0;
	if (len_bytes > file->len_bytes - off_bytes)
		len_bytes = file->len_bytes - off_bytes;
	if (has_overlay(file))
		error = scratch_zero(file->pooled->scratch, len_bytes, file->off_bytes + off_bytes, failure);
	else
		error = disk_zero(file->pooled->disk, len_bytes, file->off_bytes + off_bytes, punch ? DISK_TRIM : 0,
				  failure);
	note_written(file);
	return error;
}

int file_check_end(const struct file *file, uint64_t end_bytes, struct failure *failure)
{
	return end_bytes <= file->len_bytes ? 0 : tree_check_size(file->tree, file->node, end_bytes, failure);
}

int file_flush(struct file *file, struct failure *failure)
{
	if (file->kind != FILE_RAW || has_overlay(file) || !disk_is_writable(file->pooled->disk))
		return 0;
	return disk_flush(file->pooled->disk, failure);
}

/* ---- data and holes ---- */

struct seeking {
	bool wants_hole;
	uint64_t found_bytes; /* in the disk; UINT64_MAX: nothing yet */
};

static int look_for(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct seeking *seeking = opaque;

	(void)len_bytes;
	if ((is_hole && is_zero) != seeking->wants_hole)
		return 0;
	seeking->found_bytes = off_bytes;
	return 1;
}

/* In windows that grow: a look at all of a disk that is being written to costs what is written, and mostly the answer
 * is near. */
static int seek_raw(struct file *file, uint64_t off_bytes, struct seeking *seeking, struct failure *failure)
{
	uint64_t at = file->off_bytes + off_bytes, end = file->off_bytes + file->len_bytes;
	int result = 0;

	for (uint64_t window = SEEK_WINDOW_BYTES; at < end && result == 0; window *= 2) {
		uint64_t len_bytes = end - at < window ? end - at : window;

		result = has_overlay(file)
				 ? scratch_extents(file->pooled->scratch, at, len_bytes, look_for, seeking, failure)
				 : disk_extents(file->pooled->disk, at, len_bytes, look_for, seeking, failure);
		at += len_bytes;
	}
	return result < 0 ? result : 0;
}

int file_seek(struct file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes, struct failure *failure)
{
	struct seeking seeking = {.wants_hole = wants_hole, .found_bytes = UINT64_MAX};
	int error;

	if (file->kind == FILE_INNER)
		return fsreader_seek(file->inner, off_bytes, wants_hole, ret_off_bytes, failure);
	if (off_bytes >= file->len_bytes)
		return -ENXIO;
	if (file->kind != FILE_RAW) { /* all of it is data */
		*ret_off_bytes = wants_hole ? file->len_bytes : off_bytes;
		return 0;
	}
	error = seek_raw(file, off_bytes, &seeking, failure);
	if (error < 0)
		return error;
	if (seeking.found_bytes == UINT64_MAX && !wants_hole)
		return -ENXIO;
	*ret_off_bytes = seeking.found_bytes == UINT64_MAX ? file->len_bytes : seeking.found_bytes - file->off_bytes;
	return 0;
}
