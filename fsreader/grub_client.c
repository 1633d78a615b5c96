/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for file systems that GRUB can read: grub-mount (package grub-common) over fuse_peer.h.
 *
 * What GRUB shows is what a boot loader needs, and no more: names, sizes, content, the time of the last change. No owners, no modes (0555, 0444), no
 * link counts, no inode numbers; a symbolic link is shown as what it points to, and one that points nowhere, or out of the file system, can't
 * be looked up. It looks names up by going through their folder from its beginning.
 *
 * grub-mount has a table of 65,536 open files, takes two places of it for each it opens, never uses one again, and
 * doesn't look whether there is one left. So it is started anew before that, which nobody notices: what is open is
 * opened again when somebody reads from it.
 *
 * Lock: `lock` for all of an engine, for the program does one thing at a time anyway. It isn't held while the caller's `found` runs.
 */
#include "fsreader/engine.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/fuse_calls.h"
#include "fsreader/fuse_nodes.h"
#include "fsreader/image_link.h"

#define PROGRAM "grub-mount"

enum {
	MOST_OPENS = 32000, /* of the 32,767 that there is room for */
	MOST_DEPTH = 1024,  /* of folders in folders: no path that the kernel takes has more than 2,048 */
	LIST_BYTES = 64 << 10,
	SECTOR_BYTES = 512,
};

struct engine {
	pthread_mutex_t lock;
	char *what;
	uint64_t size_bytes;
	struct fuse_peer *peer;
	struct fuse_nodes *nodes;
	unsigned open_count;	   /* of the program that runs now */
	struct fuse_handle folder; /* the last one that was listed, which most likely is listed on */
	uint64_t folder_ino;
};

struct open_file {
	uint64_t ino, size_bytes;
	struct fuse_handle handle;
};

/* ---- types ---- */

static const struct {
	const char *blkid, *module; /* what libblkid calls it; what GRUB does, for those who read its documentation */
} types[] = {
	{"xfs", "xfs"},		 {"btrfs", "btrfs"},	 {"vfat", "fat"},    {"exfat", "exfat"},
	{"ntfs", "ntfs"},	 {"iso9660", "iso9660"}, {"udf", "udf"},     {"f2fs", "f2fs"},
	{"hfs", "hfs"},		 {"hfsplus", "hfsplus"}, {"jfs", "jfs"},     {"reiserfs", "reiserfs"},
	{"squashfs", "squash4"}, {"nilfs2", "nilfs2"},	 {"romfs", "romfs"}, {"minix", "minix"},
	{"ufs", "ufs2"},	 {"befs", "bfs"},	 {"msdos", "fat"},   {"cpio", "cpiofs"},
};

static bool grub_knows_type(const char *type)
{
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(types[i].blkid, type) == 0)
			return true;
	return false;
}

static bool find_program(char ret_path[PATH_MAX])
{
	static const char *const folders[] = {"/usr/bin", "/bin", "/usr/local/bin"};

	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		(void)snprintf(ret_path, PATH_MAX, "%s/%s", folders[i], PROGRAM); /* fits */
		if (access(ret_path, X_OK) == 0)
			return true;
	}
	return false;
}

static int grub_check(const char *type, struct failure *failure)
{
	char path[PATH_MAX];

	if (!find_program(path))
		return fail(failure, -ENOTSUP,
			    "file system %s: " PROGRAM " is not installed; apt-get install grub-common", type);
	return 0;
}

/* ---- starting ---- */

static void engine_stop(void *opaque)
{
	struct engine *engine = opaque;

	fuse_peer_free(engine->peer);
	fuse_nodes_free(engine->nodes);
	(void)pthread_mutex_destroy(&engine->lock);
	free(engine->what);
	free(engine);
}

static void engine_release(struct engine **engine)
{
	if (*engine != NULL)
		engine_stop(*engine);
}

static int make_peer(struct engine *engine, const struct fsreader_source *source,
		     const struct fsreader_options *options, const char *program, struct failure *failure)
{
	/* Options behind "--", or grub-mount takes them for its own. "/" is where it believes it mounts. */
	const char *const argv[] = {program, "--", IMAGE_LINK_PATH, "/", "-f", "-ononempty", NULL};
	struct fuse_peer_params params = {.what = engine->what,
					  .source = source,
					  .timeout_seconds = options->timeout_seconds,
					  .name = PROGRAM,
					  .argv = (char *const *)argv};

	return fuse_peer_make(&params, &engine->peer, failure);
}

/* The program alone knows whether it can read this: it ends at once when it can't. */
static int grub_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		      void **ret_engine, struct failure *failure)
{
	AUTO(engine_release) struct engine *engine = calloc(1, sizeof(*engine));
	struct failure why = {.code = 0};
	char program[PATH_MAX];
	int error;

	if (engine == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", options->what);
	(void)pthread_mutex_init(&engine->lock, NULL); /* can't fail with default attributes */
	engine->size_bytes = source->size_bytes;
	engine->what = strdup(options->what);
	engine->nodes = fuse_nodes_make();
	if (engine->what == NULL || engine->nodes == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", options->what);
	if (!find_program(program))
		return grub_check(type, failure);
	error = make_peer(engine, source, options, program, failure);
	if (error == 0)
		error = fuse_peer_ensure(engine->peer, &why);
	if (error == -EIO && !fuse_peer_is_alive(engine->peer))
		return fail(failure, -EIO, "%s: GRUB's %s can't read this file system (%s)", options->what, type,
			    why.message);
	if (error < 0)
		return why.code == 0 ? error : fail_from(failure, &why);
	*ret_engine = take_ptr(engine);
	return 0;
}

/* ---- nodes ---- */

static int64_t time_from(uint64_t seconds)
{
	return (int64_t)seconds; /* libfuse makes it of a time_t, which may be negative */
}

/* Checks what the program says of a file. Its numbers for inodes, owners, links mean nothing. */
static int read_attr(struct engine *engine, const struct fuse_attr *from, struct fsreader_attr *ret_attr,
		     struct failure *failure)
{
	mode_t type = from->mode & S_IFMT;
	struct fsreader_attr attr = {.mode = from->mode & (S_IFMT | 0777), .nlink = 1, .size_bytes = from->size};

	if ((type != S_IFREG && type != S_IFDIR) || from->size > INT64_MAX)
		return fail(failure, -EIO, "%s: a file of mode %o, size %llu; the file system may be damaged",
			    engine->what, from->mode, (unsigned long long)from->size);
	attr.allocated_bytes = from->blocks > INT64_MAX / SECTOR_BYTES ? attr.size_bytes : from->blocks * SECTOR_BYTES;
	attr.mtime.tv_sec = attr.ctime.tv_sec = attr.atime.tv_sec = time_from(from->mtime);
	*ret_attr = attr;
	return 0;
}

static void tell_forget(struct engine *engine, uint64_t node)
{
	const struct fuse_forget_in in = {.nlookup = 1};
	const struct fuse_question question = {
		.opcode = FUSE_FORGET, .node = node, .head = &in, .head_bytes = sizeof(in)};

	fuse_peer_tell(engine->peer, &question);
}

static bool is_current(const struct engine *engine, uint64_t generation)
{
	return fuse_peer_is_alive(engine->peer) && generation == fuse_peer_generation(engine->peer);
}

/*
 * Makes sure that the program knows the file: from the nearest folder above that it knows, names are looked up downwards. The pointer to the
 * node stays valid, for nothing is added.
 */
static int know_node(struct engine *engine, struct fuse_node *node, unsigned depth, struct failure *failure)
{
	struct fuse_entry_out entry;
	struct fuse_node *parent;
	int error;

	if (is_current(engine, node->generation))
		return 0;
	if (node->attr.ino == FSREADER_ROOT) {
		node->node = FUSE_ROOT_ID;
		node->generation = fuse_peer_generation(engine->peer);
		return 0;
	}
	parent = fuse_nodes_find(engine->nodes, node->parent);
	if (parent == NULL)
		return -ESTALE;
	if (depth == MOST_DEPTH)
		return fail(failure, -ELOOP, "%s: folders in folders more than %d deep", engine->what, MOST_DEPTH);
	error = know_node(engine, parent, depth + 1, failure);
	if (error == 0)
		error = fuse_call_lookup(engine->peer, parent->node, node->name, &entry, failure);
	if (error < 0)
		return error;
	node->node = entry.nodeid;
	node->generation = fuse_peer_generation(engine->peer);
	return 0;
}

static int find_node(struct engine *engine, uint64_t ino, struct fuse_node **ret_node, struct failure *failure)
{
	struct fuse_node *node = fuse_nodes_find(engine->nodes, ino);
	int error = node == NULL ? -ESTALE : fuse_peer_ensure(engine->peer, failure);

	if (error == 0)
		error = know_node(engine, node, 0, failure);
	if (error == 0)
		*ret_node = node;
	return error;
}

static int add_node(struct engine *engine, uint64_t folder, const char *name, const struct fuse_entry_out *entry,
		    struct fuse_node **ret_node, struct failure *failure)
{
	struct fuse_node *node, dropped;
	struct fsreader_attr attr;
	int error = read_attr(engine, &entry->attr, &attr, failure);

	if (error < 0)
		return error;
	if (fuse_nodes_add(engine->nodes, &attr, folder, name, &node, &dropped) < 0)
		return fail(failure, -ENOMEM, "%s: out of memory", engine->what);
	if (is_current(engine, dropped.generation))
		tell_forget(engine, dropped.node);
	node->node = entry->nodeid;
	node->generation = fuse_peer_generation(engine->peer);
	*ret_node = node;
	return 0;
}

static int lookup_locked(struct engine *engine, uint64_t folder_ino, const char *name, struct fsreader_attr *ret_attr,
			 struct failure *failure)
{
	struct fuse_node *folder = fuse_nodes_find(engine->nodes, folder_ino), *node;
	struct fuse_entry_out entry;
	int error;

	if (folder == NULL)
		return -ESTALE;
	if (folder->attr.mode != 0 && !S_ISDIR(folder->attr.mode))
		return -ENOTDIR;
	node = fuse_nodes_find_name(engine->nodes, folder_ino, name);
	if (node == NULL) {
		error = find_node(engine, folder_ino, &folder, failure);
		if (error == 0)
			error = fuse_call_lookup(engine->peer, folder->node, name, &entry, failure);
		if (error == 0)
			error = add_node(engine, folder_ino, name, &entry, &node, failure);
		if (error < 0)
			return error;
	}
	*ret_attr = node->attr;
	return 0;
}

static int grub_lookup(void *opaque, uint64_t folder, const char *name, struct fsreader_attr *ret_attr,
		       struct failure *failure)
{
	struct engine *engine = opaque;
	WITH_LOCK(&engine->lock);

	return lookup_locked(engine, folder, name, ret_attr, failure);
}

/* Only the root is ever asked for: all others came with their attributes. */
static int ask_root(struct engine *engine, struct fuse_node *root, struct failure *failure)
{
	struct fuse_attr attr;
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error == 0)
		error = fuse_call_getattr(engine->peer, FUSE_ROOT_ID, &attr, failure);
	if (error == 0)
		error = read_attr(engine, &attr, &root->attr, failure);
	root->attr.ino = FSREADER_ROOT;
	return error;
}

static int grub_getattr(void *opaque, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	struct engine *engine = opaque;
	WITH_LOCK(&engine->lock);
	struct fuse_node *node = fuse_nodes_find(engine->nodes, ino);
	int error = node == NULL ? -ESTALE : 0;

	if (error == 0 && node->attr.mode == 0)
		error = ask_root(engine, node, failure);
	if (error == 0)
		*ret_attr = node->attr;
	return error;
}

/* No links are shown: fsreader.c asks only for what is one. */
static int grub_readlink(void *opaque, uint64_t ino, char **ret_target, struct failure *failure)
{
	struct engine *engine = opaque;

	(void)ino, (void)ret_target;
	return fail(failure, -EINVAL, "%s: not a symbolic link", engine->what);
}

/* GRUB doesn't count. */
static int grub_statfs(void *opaque, struct fsreader_statfs *ret_statfs, struct failure *failure)
{
	struct engine *engine = opaque;

	(void)failure;
	*ret_statfs =
		(struct fsreader_statfs){.block_bytes = SECTOR_BYTES, .blocks = engine->size_bytes / SECTOR_BYTES};
	return 0;
}

/* ---- folders ---- */

/* The program reads all of a folder when it is first asked, so a folder stays open until another one is listed. */
static int open_folder(struct engine *engine, uint64_t ino, struct failure *failure)
{
	struct fuse_node *node;
	int error = find_node(engine, ino, &node, failure);

	if (error < 0 || (engine->folder_ino == ino && fuse_handle_is_open(engine->peer, &engine->folder)))
		return error;
	fuse_call_release(engine->peer, true, &engine->folder);
	error = fuse_call_open(engine->peer, true, node->node, &engine->folder, failure);
	engine->folder_ino = ino;
	return error;
}

/* One piece of a folder, from `cookie` on. */
static int read_folder(struct engine *engine, uint64_t ino, uint64_t cookie, uint8_t buffer[LIST_BYTES],
		       size_t *ret_len_bytes, struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	const struct fuse_node *node = fuse_nodes_find(engine->nodes, ino);
	int error;

	if (node != NULL && node->attr.mode != 0 && !S_ISDIR(node->attr.mode))
		return -ENOTDIR;
	error = open_folder(engine, ino, failure);
	return error < 0 ? error
			 : fuse_call_read(engine->peer, true, &engine->folder, buffer, LIST_BYTES, cookie,
					  ret_len_bytes, failure);
}

/* Attributes of an entry; none (mode 0) of one that can't be looked up. Fails when the program did. */
static int look_at_entry(struct engine *engine, uint64_t folder, const char *name, struct fsreader_attr *ret_attr,
			 struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	struct failure why = {.code = 0};
	int error = lookup_locked(engine, folder, name, ret_attr, &why);

	if (error == -ENOMEM || (error < 0 && !fuse_peer_is_alive(engine->peer)))
		return why.code == 0 ? error : fail_from(failure, &why);
	if (error < 0)
		*ret_attr = (struct fsreader_attr){.mode = 0};
	return 0;
}

static int grub_list(void *opaque, uint64_t folder, uint64_t cookie, fsreader_found *found, void *found_opaque,
		     struct failure *failure)
{
	struct engine *engine = opaque;
	AUTO_FREE uint8_t *piece = malloc(LIST_BYTES);
	struct fuse_listed listed;

	if (piece == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", engine->what);
	for (;;) {
		const uint8_t *at = piece;
		size_t left_bytes;
		uint64_t before = cookie;
		int error = read_folder(engine, folder, cookie, piece, &left_bytes, failure);

		if (error < 0 || left_bytes == 0)
			return error;
		while (fuse_listed_next(&at, &left_bytes, &listed)) {
			struct fsreader_attr attr;

			if (listed.cookie <= cookie)
				return fail(failure, -EIO, "%s: a folder whose list doesn't end", engine->what);
			cookie = listed.cookie;
			if (listed.name[0] == '\0')
				continue;
			error = look_at_entry(engine, folder, listed.name, &attr, failure);
			if (error == 0)
				error = found(found_opaque, listed.name, &attr, cookie);
			if (error != 0)
				return error;
		}
		if (cookie == before)
			return fail(failure, -EIO, "%s: a folder whose list doesn't go on", engine->what);
	}
}

/* ---- content ---- */

/* Opens the file in the program that runs now. A full table (see above) is emptied by starting it anew. */
static int open_in_program(struct engine *engine, struct open_file *file, struct failure *failure)
{
	struct fuse_node *node;
	int error;

	if (fuse_handle_is_open(engine->peer, &file->handle))
		return 0;
	if (engine->open_count >= MOST_OPENS)
		fuse_peer_end(engine->peer);
	if (!fuse_peer_is_alive(engine->peer))
		engine->open_count = 0;
	error = find_node(engine, file->ino, &node, failure);
	if (error < 0)
		return error;
	engine->open_count++;
	return fuse_call_open(engine->peer, false, node->node, &file->handle, failure);
}

static int grub_open(void *opaque, uint64_t ino, void **ret_file, struct failure *failure)
{
	struct engine *engine = opaque;
	AUTO_FREE struct open_file *file = calloc(1, sizeof(*file));
	WITH_LOCK(&engine->lock);
	const struct fuse_node *node = fuse_nodes_find(engine->nodes, ino);

	if (file == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", engine->what);
	if (node == NULL)
		return -ESTALE;
	if (!S_ISREG(node->attr.mode))
		return S_ISDIR(node->attr.mode) || node->attr.mode == 0 ? -EISDIR : -EINVAL;
	file->ino = ino;
	file->size_bytes = node->attr.size_bytes;
	*ret_file = take_ptr(file); /* the program opens it when something is read */
	return 0;
}

static void grub_close(void *opaque, void *opaque_file)
{
	struct engine *engine = opaque;
	struct open_file *file = opaque_file;
	WITH_LOCK(&engine->lock);

	fuse_call_release(engine->peer, false, &file->handle);
	free(file);
}

static int read_piece(struct engine *engine, struct open_file *file, void *buffer, size_t len_bytes, uint64_t off_bytes,
		      size_t *ret_len_bytes, struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	int error = open_in_program(engine, file, failure);

	return error < 0 ? error
			 : fuse_call_read(engine->peer, false, &file->handle, buffer, len_bytes, off_bytes,
					  ret_len_bytes, failure);
}

/* What the program leaves out before the end of the file is damage: it knew the size. */
static int grub_read(void *opaque, void *opaque_file, void *buffer, size_t len_bytes, uint64_t off_bytes,
		     size_t *ret_len_bytes, struct failure *failure)
{
	struct engine *engine = opaque;
	struct open_file *file = opaque_file;
	size_t done_bytes = 0;

	if (off_bytes >= file->size_bytes)
		len_bytes = 0;
	else if (len_bytes > file->size_bytes - off_bytes)
		len_bytes = (size_t)(file->size_bytes - off_bytes);
	while (done_bytes < len_bytes) {
		size_t step_bytes = len_bytes - done_bytes < FUSE_PEER_MOST_READ_BYTES ? len_bytes - done_bytes
										       : FUSE_PEER_MOST_READ_BYTES;
		size_t got_bytes;
		int error = read_piece(engine, file, (uint8_t *)buffer + done_bytes, step_bytes, off_bytes + done_bytes,
				       &got_bytes, failure);

		if (error < 0)
			return error;
		if (got_bytes == 0)
			return fail(failure, -EIO,
				    "%s: a file ends at byte %llu of %llu; the file system may be damaged",
				    engine->what, (unsigned long long)(off_bytes + done_bytes),
				    (unsigned long long)file->size_bytes);
		done_bytes += got_bytes;
	}
	*ret_len_bytes = done_bytes;
	return 0;
}

const struct engine_ops grub_engine = {
	.name = "grub",
	.knows_type = grub_knows_type,
	.check = grub_check,
	.start = grub_start,
	.stop = engine_stop,
	.getattr = grub_getattr,
	.lookup = grub_lookup,
	.list = grub_list,
	.readlink = grub_readlink,
	.statfs = grub_statfs,
	.open = grub_open,
	.close = grub_close,
	.read = grub_read,
};
