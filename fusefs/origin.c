/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk's live content, or an image of it: whether it is there, what it holds, who has it open.
 *
 * An image never changes: what was found in it once stays. Live content is another matter. While we have it open nobody
 * else can write to it, so a partition table is true until something was written through us; else it is looked at again
 * after a second. And when did it change? Nobody keeps that for us, so it is the latest of: when it was first seen;
 * when the store was found to have something new of it; when it was opened or written to here. That is never too early,
 * so that who goes by it (rsync) never leaves out what changed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "fusefs/tree_internal.h"

enum { NS_PER_SECOND = 1000000000, RECENTLY_SECONDS = 1 };

void origin_release(struct origin *origin)
{
	lvm_scan_free(origin->scan);
	free(origin->sources);
	free(origin->scan_sources);
	disk_contents_free(&origin->contents);
}

struct store_reference origin_reference(const struct origin *origin)
{
	struct store_reference reference = {.which = origin->image == 0 ? STORE_LIVE : STORE_NUMBER,
					    .number = origin->image};

	memcpy(reference.disk, origin->disk, sizeof(reference.disk));
	return reference;
}

void origin_name(const struct origin *origin, char ret_name[POOL_KEY_BYTES])
{
	if (origin->image == 0)
		(void)snprintf(ret_name, POOL_KEY_BYTES, "%s", origin->disk);
	else
		(void)snprintf(ret_name, POOL_KEY_BYTES, "%s@%" PRIu32, origin->disk, origin->image);
}

/* ---- is it there, and when did it change ---- */

static int64_t now_ns(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

void origin_note_change(struct origin *origin)
{
	origin->changed_at_ns = now_ns();
}

void origin_note_disk(struct origin *origin, const struct store_disk *disk)
{
	WITH_LOCK(&origin->facts_lock);

	origin->size_bytes = disk->size_bytes;
	origin->is_mirror = disk->mirror_of != NULL;
	/* what becomes durable while we have it open is what was written through us, and noted then */
	if (!origin->is_seen || (origin->changes != disk->changes && origin->open_count == 0) ||
	    (disk->open_by != NULL && origin->open_count == 0))
		origin_note_change(origin);
	origin->is_seen = true;
	origin->changes = disk->changes;
}

static int fail_replaced(const struct origin *origin, struct failure *failure)
{
	return fail(failure, -ENOENT, "disk %s: it was removed, and another one has its name", origin->disk);
}

int origin_refresh(struct tree *tree, struct origin *origin, struct failure *failure)
{
	struct store_disk *disk;
	size_t count;
	int error = store_list_disks(tree->store, origin->disk, &disk, &count, failure);

	if (error < 0)
		return error;
	if (memcmp(disk->id, origin->disk_id, sizeof(disk->id)) == 0)
		origin_note_disk(origin, disk);
	else
		error = fail_replaced(origin, failure);
	store_disks_free(disk, count);
	return error;
}

/* ---- who has it open ---- */

bool origin_may_be_written(struct tree *tree, const struct origin *origin)
{
	if (tree->options.read_only)
		return false;
	if (origin->image != 0)
		return tree->options.scratch;
	return !tree->store_is_read_only && (!origin->is_mirror || tree->options.write_mirror);
}

/* With it open: a disk that was removed, and made again with its name, is opened by that name as well. */
static int check_identity(struct tree *tree, struct origin *origin, const struct store_reference *reference,
			  struct failure *failure)
{
	struct store_image_brief brief;
	int error;

	if (origin->image == 0)
		return origin_refresh(tree, origin, failure);
	error = store_brief_image(tree->store, reference, &brief, failure);
	if (error == 0 && memcmp(brief.disk_id, origin->disk_id, sizeof(brief.disk_id)) != 0)
		error = fail_replaced(origin, failure);
	return error;
}

static int open_pooled(struct tree *tree, struct origin *origin, const struct store_reference *reference,
		       struct pooled_disk **ret_pooled, struct failure *failure)
{
	enum pool_mode mode = origin->image == 0 && origin_may_be_written(tree, origin) ? POOL_WRITE : POOL_READ;
	struct failure cause = {.code = 0};
	char key[POOL_KEY_BYTES];
	int error;

	origin_name(origin, key);
	error = disk_pool_acquire(tree->pool, key, reference, mode, ret_pooled, &cause);
	if (error == -EPERM && mode == POOL_WRITE) { /* rounds write to it since it was looked at */
		origin->is_mirror = true;
		failure_clear(&cause);
		error = disk_pool_acquire(tree->pool, key, reference, POOL_READ, ret_pooled, &cause);
	}
	return error < 0 ? fail_from(failure, &cause) : 0;
}

int origin_open(struct tree *tree, struct origin *origin, struct pooled_disk **ret_pooled, struct failure *failure)
{
	struct store_reference reference = origin_reference(origin);
	struct pooled_disk *pooled = NULL;
	int error;

	origin->open_count++;
	error = open_pooled(tree, origin, &reference, &pooled, failure);
	if (error < 0) {
		origin->open_count--;
		return error;
	}
	error = check_identity(tree, origin, &reference, failure);
	if (error < 0)
		(void)origin_close(tree, origin, pooled, NULL); /* nothing was written here */
	else
		*ret_pooled = pooled;
	return error;
}

int origin_close(struct tree *tree, struct origin *origin, struct pooled_disk *pooled, struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error = disk_pool_release(tree->pool, pooled, &cause);

	origin->open_count--;
	if (error == 0)
		return 0;
	if (failure == NULL) /* who has just looked may be the last one to close what somebody else has written to */
		notice(tree->options.notices, NOTICE_WARNING, "%s", cause.message);
	(void)fail_from(failure, &cause);
	return error;
}

/* ---- partitions ---- */

static bool contents_are_current_locked(const struct origin *origin)
{
	if (!origin->has_contents || origin->image != 0)
		return origin->has_contents;
	return origin->contents_writes == origin->writes &&
	       (origin->open_count > 0 || units_monotonic_seconds() - origin->contents_at < RECENTLY_SECONDS);
}

static int read_contents_locked(struct tree *tree, struct origin *origin, struct failure *failure)
{
	struct disk_contents contents;
	struct pooled_disk *pooled;
	uint64_t writes = origin->writes;
	int error = origin_open(tree, origin, &pooled, failure);

	if (error < 0)
		return error;
	error = source_disk_look(pooled->disk, &contents, failure);
	(void)origin_close(tree, origin, pooled, NULL); /* nothing was written here */
	if (error < 0)
		return error;
	disk_contents_free(&origin->contents);
	origin->contents = contents;
	origin->contents_writes = writes;
	origin->contents_at = units_monotonic_seconds();
	origin->has_contents = true;
	return 0;
}

static int load_contents_locked(struct tree *tree, struct origin *origin, struct failure *failure)
{
	return contents_are_current_locked(origin) ? 0 : read_contents_locked(tree, origin, failure);
}

int origin_list_partitions(struct tree *tree, struct origin *origin, struct disk_partition **ret_list,
			   size_t *ret_count, struct failure *failure)
{
	struct disk_partition *list;
	int error;
	WITH_LOCK(&origin->lock);

	error = load_contents_locked(tree, origin, failure);
	if (error < 0)
		return error;
	list = calloc(origin->contents.partition_count + 1, sizeof(*list));
	if (list == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", origin->disk);
	memcpy(list, origin->contents.partitions, origin->contents.partition_count * sizeof(*list));
	*ret_list = list;
	*ret_count = origin->contents.partition_count;
	return 0;
}

int origin_find_partition(struct tree *tree, struct origin *origin, uint32_t number,
			  struct disk_partition *ret_partition, struct failure *failure)
{
	int error;
	WITH_LOCK(&origin->lock);

	error = load_contents_locked(tree, origin, failure);
	if (error < 0)
		return error;
	for (size_t i = 0; i < origin->contents.partition_count; i++)
		if (origin->contents.partitions[i].number == number) {
			*ret_partition = origin->contents.partitions[i];
			return 0;
		}
	return -ENOENT;
}

int origin_layout(struct tree *tree, struct origin *origin, char **ret_text, struct failure *failure)
{
	char *text;
	int error;
	WITH_LOCK(&origin->lock);

	error = load_contents_locked(tree, origin, failure);
	if (error < 0)
		return error;
	text = strdup(origin->contents.layout);
	if (text == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", origin->disk);
	*ret_text = text;
	return 0;
}

uint64_t origin_known_layout_bytes(struct origin *origin)
{
	WITH_LOCK(&origin->lock);
	return origin->has_contents ? strlen(origin->contents.layout) : 0;
}

/* ---- logical volumes ---- */

int image_source_read(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	const struct image_source *source = opaque;
	const struct pooled_disk *pooled = source->pooled;

	return disk_read(pooled->disk, buffer, len_bytes, source->off_bytes + off_bytes, failure);
}

static bool has_physical_volumes_locked(const struct origin *origin)
{
	for (size_t i = 0; i < origin->contents.partition_count; i++)
		if (strcmp(origin->contents.partitions[i].type, "LVM2_member") == 0)
			return true;
	return false;
}

void origin_lend(struct origin *origin, struct pooled_disk *pooled)
{
	for (size_t i = 0; origin->sources != NULL && i < origin->contents.partition_count; i++)
		origin->sources[i].pooled = pooled;
}

static int make_sources_locked(struct tree *tree, struct origin *origin, size_t *ret_count, struct failure *failure)
{
	const struct disk_contents *contents = &origin->contents;
	size_t count = 0;

	origin->sources = calloc(contents->partition_count + 1, sizeof(*origin->sources));
	origin->scan_sources = calloc(contents->partition_count + 1, sizeof(*origin->scan_sources));
	if (origin->sources == NULL || origin->scan_sources == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", origin->disk);
	for (size_t i = 0; i < contents->partition_count; i++) {
		origin->sources[i] = (struct image_source){
			.tree = tree, .origin = origin, .off_bytes = contents->partitions[i].off_bytes};
		if (strcmp(contents->partitions[i].type, "LVM2_member") == 0)
			origin->scan_sources[count++] =
				(struct fsreader_source){.read = image_source_read,
							 .opaque = &origin->sources[i],
							 .size_bytes = contents->partitions[i].len_bytes};
	}
	*ret_count = count;
	return 0;
}

static int scan_locked(struct tree *tree, struct origin *origin, struct failure *failure)
{
	char what[POOL_KEY_BYTES];
	const struct lvm_options options = {.what = what, .notices = tree->options.notices};
	struct pooled_disk *pooled = NULL;
	size_t count = 0;
	int error;

	origin_name(origin, what);
	free(take_ptr(origin->sources)); /* of a scan that failed */
	free(take_ptr(origin->scan_sources));
	error = make_sources_locked(tree, origin, &count, failure);
	if (error == 0)
		error = origin_open(tree, origin, &pooled, failure);
	if (error < 0)
		return error;
	for (size_t i = 0; i < count; i++)
		origin->scan_sources[i].sector_bytes = disk_sector_bytes(pooled->disk);
	origin_lend(origin, pooled);
	error = lvm_scan(origin->scan_sources, count, &options, &origin->scan, failure);
	(void)origin_close(tree, origin, pooled, NULL); /* an image */
	return error;
}

int origin_scan(struct tree *tree, struct origin *origin, const struct lvm_scan **ret_scan, struct failure *failure)
{
	int error;
	WITH_LOCK(&origin->lock);

	error = load_contents_locked(tree, origin, failure);
	if (error < 0)
		return error;
	if (!origin->has_scan && has_physical_volumes_locked(origin))
		error = scan_locked(tree, origin, failure);
	if (error < 0)
		return error;
	origin->has_scan = true;
	*ret_scan = origin->scan;
	return 0;
}

const struct lvm_group *origin_find_group(const struct lvm_scan *scan, const char *name)
{
	for (size_t i = 0; scan != NULL && i < scan->group_count; i++)
		if (strcmp(scan->groups[i].name, name) == 0)
			return &scan->groups[i];
	return NULL;
}

const struct lvm_volume *origin_find_volume(const struct lvm_scan *scan, const char *name)
{
	const char *slash = strchr(name, '/');
	char group_name[LVM_NAME_BYTES];
	const struct lvm_group *group;

	if (slash == NULL || (size_t)(slash - name) >= sizeof(group_name))
		return NULL;
	memcpy(group_name, name, (size_t)(slash - name));
	group_name[slash - name] = '\0';
	group = origin_find_group(scan, group_name);
	for (size_t i = 0; group != NULL && i < group->volume_count; i++)
		if (strcmp(group->volumes[i].name, slash + 1) == 0)
			return &group->volumes[i];
	return NULL;
}
