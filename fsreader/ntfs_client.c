/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for NTFS: lowntfs-3g (package ntfs-3g) over fuse_peer.h. It speaks of files by their numbers in the master file table, so that nothing
 * has to be remembered here but the folder that is being listed, and nothing is lost when it is started anew.
 *
 * What it shows: names, sizes, content (compressed and sparse, too), hard links, symbolic links and junctions, times to
 * 100 nanoseconds, named streams as extended attributes. Owners and modes of NTFS are lists that don't fit into those
 * of Unix: all files are root's, and may be read by everybody.
 *
 * Lock: `lock` for all of an engine, for the program does one thing at a time anyway. It isn't held while the caller's `found` runs.
 */
#include "fsreader/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/fuse_calls.h"
#include "fsreader/image_link.h"

#define PROGRAM "lowntfs-3g"

enum {
	LIST_BYTES = 64 << 10,
	SECTOR_BYTES = 512,
	ROOT_RECORD = 5, /* of the master file table; FUSE calls it 1, and so do we */
	XATTR_MOST_BYTES = 64 << 10,
	TARGET_MOST_BYTES = 4095,
	NANOSECONDS = 1000000000,
};

/* Of a folder's list, from `off_bytes` on. */
struct piece {
	uint64_t off_bytes;
	size_t len_bytes;
	uint8_t data[LIST_BYTES];
};

struct engine {
	pthread_mutex_t lock;
	char *what;
	struct fuse_peer *peer;
	struct fuse_handle folder;	     /* the one that was listed last */
	uint64_t folder_ino, next_off_bytes; /* where the program goes on */
	struct piece piece;		     /* that it gave last */
};

struct open_file {
	uint64_t ino, size_bytes;
	struct fuse_handle handle;
};

/* ---- starting ---- */

static bool ntfs_knows_type(const char *type)
{
	return strcmp(type, "ntfs") == 0;
}

static bool find_program(char ret_path[PATH_MAX])
{
	static const char *const folders[] = {"/usr/bin", "/bin", "/usr/sbin", "/sbin"};

	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		(void)snprintf(ret_path, PATH_MAX, "%s/%s", folders[i], PROGRAM); /* fits */
		if (access(ret_path, X_OK) == 0)
			return true;
	}
	return false;
}

static int ntfs_check(const char *type, struct failure *failure)
{
	char path[PATH_MAX];

	if (!find_program(path))
		return fail(failure, -ENOTSUP, "file system %s: " PROGRAM " is not installed; apt-get install ntfs-3g",
			    type);
	return 0;
}

static void ntfs_stop(void *opaque)
{
	struct engine *engine = opaque;

	fuse_peer_free(engine->peer);
	(void)pthread_mutex_destroy(&engine->lock);
	free(engine->what);
	free(engine);
}

static void engine_release(struct engine **engine)
{
	if (*engine != NULL)
		ntfs_stop(*engine);
}

static int make_peer(struct engine *engine, const struct fsreader_source *source,
		     const struct fsreader_options *options, struct failure *failure)
{
	char program[PATH_MAX] = PROGRAM;
	/* "/" is where it believes it mounts. "showmeta" would show the file system's own files. */
	const char *const argv[] = {
		program, IMAGE_LINK_PATH, "/", "-o", "ro,no_detach,streams_interface=xattr,uid=0,gid=0,umask=0222",
		NULL};
	struct fuse_peer_params params = {.what = engine->what,
					  .source = source,
					  .timeout_seconds = options->timeout_seconds,
					  .name = PROGRAM,
					  .argv = (char *const *)argv};

	if (!find_program(program))
		return ntfs_check("ntfs", failure);
	return fuse_peer_make(&params, &engine->peer, failure);
}

/* The program alone knows whether it can read this: it ends at once when it can't. */
static int ntfs_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		      void **ret_engine, struct failure *failure)
{
	AUTO(engine_release) struct engine *engine = calloc(1, sizeof(*engine));
	struct failure why = {.code = 0};
	int error;

	(void)type;
	if (engine == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", options->what);
	(void)pthread_mutex_init(&engine->lock, NULL); /* can't fail with default attributes */
	engine->what = strdup(options->what);
	if (engine->what == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", options->what);
	error = make_peer(engine, source, options, &why);
	if (error == 0)
		error = fuse_peer_ensure(engine->peer, &why);
	if (error == -EIO && !fuse_peer_is_alive(engine->peer))
		return fail(failure, -EIO, "%s: " PROGRAM " can't read this file system (%s)", options->what,
			    why.message);
	if (error < 0)
		return fail_from(failure, &why);
	*ret_engine = take_ptr(engine);
	return 0;
}

/* ---- files ---- */

/* A number as the program has it: the root is 1 for both of us. */
static int read_attr(struct engine *engine, uint64_t ino, const struct fuse_attr *from, struct fsreader_attr *ret_attr,
		     struct failure *failure)
{
	mode_t type = from->mode & S_IFMT;

	if ((type != S_IFREG && type != S_IFDIR && type != S_IFLNK && type != S_IFCHR && type != S_IFBLK &&
	     type != S_IFIFO && type != S_IFSOCK) ||
	    from->size > INT64_MAX || from->atimensec >= NANOSECONDS || from->mtimensec >= NANOSECONDS ||
	    from->ctimensec >= NANOSECONDS)
		return fail(failure, -EIO, "%s: a file of mode %o, size %llu; the file system may be damaged",
			    engine->what, from->mode, (unsigned long long)from->size);
	*ret_attr = (struct fsreader_attr){
		.ino = ino,
		.mode = from->mode,
		.nlink = from->nlink,
		.uid = from->uid,
		.gid = from->gid,
		.size_bytes = from->size,
		.allocated_bytes = from->blocks > INT64_MAX / SECTOR_BYTES ? from->size : from->blocks * SECTOR_BYTES,
		.atime = {(time_t)from->atime, from->atimensec},
		.mtime = {(time_t)from->mtime, from->mtimensec},
		.ctime = {(time_t)from->ctime, from->ctimensec}};
	return 0;
}

static uint64_t number_of(uint64_t record)
{
	return record == ROOT_RECORD ? FSREADER_ROOT : record;
}

static int getattr_locked(struct engine *engine, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	struct fuse_attr attr;
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error == 0)
		error = fuse_call_getattr(engine->peer, ino, &attr, failure);
	return error < 0 ? error : read_attr(engine, ino, &attr, ret_attr, failure);
}

static int ntfs_getattr(void *opaque, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	struct engine *engine = opaque;
	WITH_LOCK(&engine->lock);

	return getattr_locked(engine, ino, ret_attr, failure);
}

static int ntfs_lookup(void *opaque, uint64_t folder, const char *name, struct fsreader_attr *ret_attr,
		       struct failure *failure)
{
	struct engine *engine = opaque;
	WITH_LOCK(&engine->lock);
	struct fuse_entry_out entry;
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error == 0)
		error = fuse_call_lookup(engine->peer, folder, name, &entry, failure);
	return error < 0 ? error : read_attr(engine, number_of(entry.nodeid), &entry.attr, ret_attr, failure);
}

/* ---- texts ---- */

/* An answer of up to `most_bytes`, with a NUL behind it; caller frees. */
static int ask_bytes(struct engine *engine, const struct fuse_question *question, size_t most_bytes, char **ret_bytes,
		     size_t *ret_len_bytes, struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	const void *data;
	char *bytes;
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error == 0)
		error = fuse_peer_ask(engine->peer, question, 0, most_bytes, &data, ret_len_bytes, failure);
	if (error < 0)
		return error == -ENOSYS ? -ENOTSUP : error;
	bytes = malloc(*ret_len_bytes + 1);
	if (bytes == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", engine->what);
	memcpy(bytes, data, *ret_len_bytes);
	bytes[*ret_len_bytes] = '\0';
	*ret_bytes = bytes;
	return 0;
}

static int ntfs_readlink(void *opaque, uint64_t ino, char **ret_target, struct failure *failure)
{
	struct engine *engine = opaque;
	const struct fuse_question question = {.opcode = FUSE_READLINK, .node = ino};
	AUTO_FREE char *target = NULL;
	size_t len_bytes;
	int error = ask_bytes(engine, &question, TARGET_MOST_BYTES, &target, &len_bytes, failure);

	if (error < 0)
		return error;
	if (len_bytes == 0 || strlen(target) != len_bytes)
		return fail(failure, -EIO, "%s: a symbolic link that is none; the file system may be damaged",
			    engine->what);
	*ret_target = take_ptr(target);
	return 0;
}

static int ntfs_listxattr(void *opaque, uint64_t ino, char **ret_names, size_t *ret_len_bytes, struct failure *failure)
{
	const struct fuse_getxattr_in in = {.size = XATTR_MOST_BYTES};
	const struct fuse_question question = {
		.opcode = FUSE_LISTXATTR, .node = ino, .head = &in, .head_bytes = sizeof(in)};

	return ask_bytes(opaque, &question, XATTR_MOST_BYTES, ret_names, ret_len_bytes, failure);
}

static int ntfs_getxattr(void *opaque, uint64_t ino, const char *name, void **ret_value, size_t *ret_len_bytes,
			 struct failure *failure)
{
	const struct fuse_getxattr_in in = {.size = XATTR_MOST_BYTES};
	const struct fuse_question question = {.opcode = FUSE_GETXATTR,
					       .node = ino,
					       .head = &in,
					       .head_bytes = sizeof(in),
					       .tail = name,
					       .tail_bytes = strlen(name) + 1};
	char *value;
	int error = ask_bytes(opaque, &question, XATTR_MOST_BYTES, &value, ret_len_bytes, failure);

	if (error == 0)
		*ret_value = value;
	return error;
}

static int ntfs_statfs(void *opaque, struct fsreader_statfs *ret_statfs, struct failure *failure)
{
	const struct fuse_question question = {.opcode = FUSE_STATFS, .node = FUSE_ROOT_ID};
	AUTO_FREE char *bytes = NULL;
	struct fuse_kstatfs statfs = {.blocks = 0};
	size_t len_bytes;
	int error = ask_bytes(opaque, &question, sizeof(statfs), &bytes, &len_bytes, failure);

	if (error < 0)
		return error;
	memcpy(&statfs, bytes, len_bytes);
	*ret_statfs = (struct fsreader_statfs){.block_bytes = statfs.frsize != 0 ? statfs.frsize : statfs.bsize,
					       .blocks = statfs.blocks,
					       .free_blocks = statfs.bfree,
					       .available_blocks = statfs.bavail,
					       .files = statfs.files,
					       .free_files = statfs.ffree};
	return 0;
}

/* ---- folders ---- */

/*
 * The program makes a list when it is asked for its beginning, cuts it into pieces, and gives the one that begins at the offset it is asked for: any
 * other offset gets the next piece. So a cookie is where an entry ends in the list, and the last piece is kept for who has taken a part of it.
 */
static int open_folder(struct engine *engine, uint64_t ino, struct failure *failure)
{
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error < 0)
		return error;
	fuse_call_release(engine->peer, true, &engine->folder);
	engine->folder_ino = ino;
	engine->next_off_bytes = 0;
	engine->piece.off_bytes = engine->piece.len_bytes = 0;
	return fuse_call_open(engine->peer, true, ino, &engine->folder, failure);
}

static int next_piece(struct engine *engine, struct failure *failure)
{
	struct piece *piece = &engine->piece;

	piece->off_bytes = engine->next_off_bytes;
	piece->len_bytes = 0;
	if (!fuse_handle_is_open(engine->peer, &engine->folder))
		return fail(failure, -EIO, "%s: a folder can't be read to its end; the file system may be damaged",
			    engine->what);
	if (piece->off_bytes > (uint64_t)INT64_MAX / 2)
		return fail(failure, -EIO, "%s: a folder whose list doesn't end", engine->what);
	return fuse_call_read(engine->peer, true, &engine->folder, piece->data, sizeof(piece->data), piece->off_bytes,
			      &piece->len_bytes, failure);
}

/* The piece that goes on behind `cookie`, copied; an empty one at the end. */
static int read_folder(struct engine *engine, uint64_t ino, uint64_t cookie, struct piece *ret_piece,
		       struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	struct piece *piece = &engine->piece;
	bool is_at_hand = engine->folder_ino == ino && piece->off_bytes <= cookie;
	int error = is_at_hand && (cookie < piece->off_bytes + piece->len_bytes ||
				   fuse_handle_is_open(engine->peer, &engine->folder))
			    ? 0
			    : open_folder(engine, ino, failure);

	while (error == 0 && cookie >= piece->off_bytes + piece->len_bytes) {
		error = next_piece(engine, failure);
		engine->next_off_bytes += piece->len_bytes;
		if (piece->len_bytes == 0)
			break;
	}
	if (error < 0) {
		engine->folder_ino = 0; /* from the beginning, next time */
		return error;
	}
	ret_piece->off_bytes = piece->off_bytes;
	ret_piece->len_bytes = piece->len_bytes;
	memcpy(ret_piece->data, piece->data, piece->len_bytes);
	return 0;
}

/* None (mode 0) of one that can't be read. Fails when the program did. */
static int look_at(struct engine *engine, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	WITH_LOCK(&engine->lock);
	struct failure why = {.code = 0};
	int error = getattr_locked(engine, ino, ret_attr, &why);

	if (error < 0 && !fuse_peer_is_alive(engine->peer))
		return why.code == 0 ? error : fail_from(failure, &why);
	if (error < 0)
		*ret_attr = (struct fsreader_attr){.mode = 0};
	return 0;
}

/* Entries behind `*cookie`, which moves on. */
static int tell_piece(struct engine *engine, const struct piece *piece, uint64_t *cookie, fsreader_found *found,
		      void *opaque, struct failure *failure)
{
	const uint8_t *at = piece->data;
	size_t left_bytes = piece->len_bytes;
	struct fuse_listed listed;
	int error = 0;

	while (error == 0 && fuse_listed_next(&at, &left_bytes, &listed)) {
		uint64_t end_bytes = piece->off_bytes + (uint64_t)(at - piece->data);
		struct fsreader_attr attr;

		if (end_bytes <= *cookie)
			continue;
		*cookie = end_bytes;
		if (listed.name[0] == '\0')
			continue;
		error = look_at(engine, number_of(listed.ino), &attr, failure);
		if (error == 0)
			error = found(opaque, listed.name, &attr, end_bytes);
	}
	return error;
}

static int ntfs_list(void *opaque, uint64_t folder, uint64_t cookie, fsreader_found *found, void *found_opaque,
		     struct failure *failure)
{
	struct engine *engine = opaque;
	AUTO_FREE struct piece *piece = malloc(sizeof(*piece));
	struct fsreader_attr attr;
	int error = piece == NULL ? fail(failure, -ENOMEM, "%s: out of memory", engine->what)
				  : ntfs_getattr(engine, folder, &attr, failure);

	if (error == 0 && !S_ISDIR(attr.mode))
		error = -ENOTDIR;
	while (error == 0) {
		uint64_t before = cookie;

		error = read_folder(engine, folder, cookie, piece, failure);
		if (error < 0 || piece->len_bytes == 0)
			return error;
		error = tell_piece(engine, piece, &cookie, found, found_opaque, failure);
		if (error == 0 && cookie == before)
			return fail(failure, -EIO, "%s: a folder whose list doesn't go on", engine->what);
	}
	return error;
}

/* ---- content ---- */

static int ntfs_open(void *opaque, uint64_t ino, void **ret_file, struct failure *failure)
{
	struct engine *engine = opaque;
	AUTO_FREE struct open_file *file = calloc(1, sizeof(*file));
	struct fsreader_attr attr;
	int error = file == NULL ? fail(failure, -ENOMEM, "%s: out of memory", engine->what)
				 : ntfs_getattr(engine, ino, &attr, failure);

	if (error < 0)
		return error;
	if (!S_ISREG(attr.mode))
		return S_ISDIR(attr.mode) ? -EISDIR : -EINVAL;
	file->ino = ino;
	file->size_bytes = attr.size_bytes;
	*ret_file = take_ptr(file); /* the program opens it when something is read */
	return 0;
}

static void ntfs_close(void *opaque, void *opaque_file)
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
	int error = fuse_peer_ensure(engine->peer, failure);

	if (error == 0 && !fuse_handle_is_open(engine->peer, &file->handle))
		error = fuse_call_open(engine->peer, false, file->ino, &file->handle, failure);
	return error < 0 ? error
			 : fuse_call_read(engine->peer, false, &file->handle, buffer, len_bytes, off_bytes,
					  ret_len_bytes, failure);
}

/* What the program leaves out before the end of the file is damage: it knew the size. */
static int ntfs_read(void *opaque, void *opaque_file, void *buffer, size_t len_bytes, uint64_t off_bytes,
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

const struct engine_ops ntfs_engine = {
	.name = "ntfs",
	.knows_type = ntfs_knows_type,
	.check = ntfs_check,
	.start = ntfs_start,
	.stop = ntfs_stop,
	.getattr = ntfs_getattr,
	.lookup = ntfs_lookup,
	.list = ntfs_list,
	.readlink = ntfs_readlink,
	.listxattr = ntfs_listxattr,
	.getxattr = ntfs_getxattr,
	.statfs = ntfs_statfs,
	.open = ntfs_open,
	.close = ntfs_close,
	.read = ntfs_read,
};
