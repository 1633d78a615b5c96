/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node of the tree is named to the kernel by its address, which is good as long as the kernel knows it; the tree's
 * root by 1.
 *
 * What the kernel keeps: of what can't change everything, for ever. Of a live disk the pages as long as a file of it is
 * open; they are dropped when one is opened, for somebody else may have had the disk in between. (disk.raw and
 * part/1.raw have pages of their own of the same bytes, as /dev/sda and /dev/sda1 do: who uses both at once has to know
 * that.) It isn't asked to drop pages when the time of a file's last change is another one (AUTO_INVAL_DATA): that
 * changes whenever one writes, and would cost him his own pages.
 *
 * Writes come as they are made, not later (no writeback cache): what fits is known only here, and what is at a file's
 * end has to be an error then, as with a device. fsync() is a flush; O_SYNC and O_DSYNC make each write durable.
 *
 * Nothing here is locked: the tree does what has to be. Errors are one line in the log, but for those that come when
 * somebody just tries a name.
 */
#include "fusefs/fuse_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fusefs/log.h"

enum {
	REQUEST_MOST_BYTES = 1 << 20,
	GIVEN_BYTES = 64 << 10,
	BACKGROUND_MOST = 64, /* reads ahead and the like that the kernel has under way */
	DOTS = 2,	      /* "." and "..", in front of what a listing has */
};

static struct fuse_mount *mount_of(fuse_req_t request)
{
	return fuse_req_userdata(request);
}

static struct node *node_of(const struct fuse_mount *mount, fuse_ino_t ino)
{
	return ino == FUSE_ROOT_ID ? tree_root(mount->tree) : (struct node *)(uintptr_t)ino;
}

static fuse_ino_t ino_of(const struct fuse_mount *mount, const struct node *node)
{
	return node == tree_root(mount->tree) ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)node;
}

/* ---- errors ---- */

/* What a program may be told that uses files; the rest would make no sense to it. */
static int errno_for_programs(int code)
{
	switch (-code) {
	case EPERM:
	case ENOENT:
	case EIO:
	case ENXIO:
	case ENOMEM:
	case EACCES:
	case EBUSY:
	case ENOTDIR:
	case EISDIR:
	case EINVAL:
	case ENOSPC:
	case EROFS:
	case ERANGE:
	case ENODATA:
	case ENOTSUP:
	case ENAMETOOLONG:
	case ESTALE:
	case EDQUOT:
	case EMFILE:
	case ENOKEY: /* the content of a file that is encrypted */
		return -code;
	default:
		return EIO;
	}
}

static bool is_of_interest(int code)
{
	switch (-code) {
	case ENOENT:
	case ENOTDIR:
	case EISDIR:
	case ENODATA:
	case ENOTSUP:
	case ENXIO:
	case ERANGE:
	case ENAMETOOLONG:
		return false;
	default:
		return true;
	}
}

static void note_failure(int code, const struct failure *failure)
{
	if (code < 0 && failure->message[0] != '\0' && is_of_interest(code))
		log_line(failure->message);
}

static void reply_status(fuse_req_t request, int code, const struct failure *failure)
{
	note_failure(code, failure);
	(void)fuse_reply_err(request, code < 0 ? errno_for_programs(code) : 0); /* who asked may have gone */
}

/* ---- a buffer for each thread that serves ---- */

static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;

struct buffer {
	size_t room;
	char bytes[];
};

static void make_buffer_key(void)
{
	(void)pthread_key_create(&buffer_key, free); /* the first key of the process */
}

/* Of this thread, until it asks again. NULL: no memory. Its pages stay, which a buffer for each request would have to
 * touch anew. */
static char *thread_buffer(size_t room)
{
	struct buffer *buffer;

	(void)pthread_once(&buffer_once, make_buffer_key);
	buffer = pthread_getspecific(buffer_key);
	if (buffer != NULL && buffer->room >= room)
		return buffer->bytes;
	free(buffer);
	buffer = malloc(sizeof(*buffer) + room);
	if (buffer != NULL)
		buffer->room = room;
	(void)pthread_setspecific(buffer_key, buffer);
	return buffer == NULL ? NULL : buffer->bytes;
}

/* ---- names and attributes ---- */

static struct fuse_entry_param entry_of(const struct fuse_mount *mount, const struct found *found)
{
	return (struct fuse_entry_param){.ino = ino_of(mount, found->node),
					 .generation = node_generation(found->node),
					 .attr = found->stat,
					 .attr_timeout = found->attr_seconds,
					 .entry_timeout = found->entry_seconds};
}

static void op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	struct fuse_entry_param entry = {.entry_timeout = TREE_FOREVER};
	struct found found;
	bool is_forever;
	int error = tree_lookup(mount->tree, node_of(mount, parent), name, &found, &is_forever, &failure);

	if (error == -ENOENT && is_forever) {
		(void)fuse_reply_entry(request, &entry); /* nothing is there, and never will be */
		return;
	}
	if (error < 0) {
		reply_status(request, error, &failure);
		return;
	}
	entry = entry_of(mount, &found);
	if (fuse_reply_entry(request, &entry) < 0) /* who asked has gone, and the kernel knows nothing of it */
		tree_forget(mount->tree, found.node, 1);
}

static void forget(struct fuse_mount *mount, fuse_ino_t ino, uint64_t count)
{
	if (ino != FUSE_ROOT_ID)
		tree_forget(mount->tree, node_of(mount, ino), count);
}

static void op_forget(fuse_req_t request, fuse_ino_t ino, uint64_t count)
{
	forget(mount_of(request), ino, count);
	fuse_reply_none(request);
}

static void op_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		forget(mount_of(request), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(request);
}

static void reply_attr(fuse_req_t request, fuse_ino_t ino)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	struct found found;
	int error = tree_getattr(mount->tree, node_of(mount, ino), &found, &failure);

	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_attr(request, &found.stat, found.attr_seconds); /* who asked may have gone */
}

static void op_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	(void)info;
	reply_attr(request, ino);
}

/* Nothing can be set; but setting a size to what it is is what some programs do. */
static void op_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *wanted, int to_set, struct fuse_file_info *info)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	int error = -EPERM;

	(void)info;
	if (to_set == FUSE_SET_ATTR_SIZE)
		error = tree_check_size(mount->tree, node_of(mount, ino), (uint64_t)wanted->st_size, &failure);
	if (error < 0)
		reply_status(request, error, &failure);
	else
		reply_attr(request, ino);
}

/* Nothing can be made, removed or given another name. */

static void refuse_change(fuse_req_t request, fuse_ino_t parent)
{
	struct fuse_mount *mount = mount_of(request);

	(void)fuse_reply_err(request, tree_is_of_image(node_of(mount, parent)) ? EROFS : EPERM);
}

static void op_mknod(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
	(void)name;
	(void)mode;
	(void)device;
	refuse_change(request, parent);
}

static void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)name;
	(void)mode;
	refuse_change(request, parent);
}

static void op_remove(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	(void)name;
	refuse_change(request, parent);
}

static void op_symlink(fuse_req_t request, const char *target, fuse_ino_t parent, const char *name)
{
	(void)target;
	(void)name;
	refuse_change(request, parent);
}

static void op_rename(fuse_req_t request, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
		      const char *new_name, unsigned flags)
{
	(void)name;
	(void)new_parent;
	(void)new_name;
	(void)flags;
	refuse_change(request, parent);
}

static void op_link(fuse_req_t request, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
	(void)ino;
	(void)new_name;
	refuse_change(request, new_parent);
}

static void op_access(fuse_req_t request, fuse_ino_t ino, int mask)
{
	struct fuse_mount *mount = mount_of(request);

	(void)fuse_reply_err(request,
			     (mask & W_OK) != 0 && !tree_is_writable(mount->tree, node_of(mount, ino)) ? EROFS : 0);
}

static void op_readlink(fuse_req_t request, fuse_ino_t ino)
{
	struct fuse_mount *mount = mount_of(request);
	AUTO_FREE char *target = NULL;
	struct failure failure = {.code = 0};
	int error = tree_readlink(mount->tree, node_of(mount, ino), &target, &failure);

	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_readlink(request, target);
}

/* As getxattr(2): for no room how much it takes, for too little an error. */
static void reply_xattr(fuse_req_t request, const void *value, size_t len_bytes, size_t room)
{
	if (room == 0)
		(void)fuse_reply_xattr(request, len_bytes);
	else if (len_bytes > room)
		(void)fuse_reply_err(request, ERANGE);
	else
		(void)fuse_reply_buf(request, value, len_bytes);
}

static void op_getxattr(fuse_req_t request, fuse_ino_t ino, const char *name, size_t room)
{
	struct fuse_mount *mount = mount_of(request);
	AUTO_FREE void *value = NULL;
	struct failure failure = {.code = 0};
	size_t len_bytes = 0;
	int error = tree_getxattr(mount->tree, node_of(mount, ino), name, &value, &len_bytes, &failure);

	if (error == -ENOTSUP)
		error = -ENODATA; /* the kernel, when it looks for an ACL, takes the other for a failure */
	if (error < 0)
		reply_status(request, error, &failure);
	else
		reply_xattr(request, value, len_bytes, room);
}

static void op_listxattr(fuse_req_t request, fuse_ino_t ino, size_t room)
{
	struct fuse_mount *mount = mount_of(request);
	AUTO_FREE char *names = NULL;
	struct failure failure = {.code = 0};
	size_t len_bytes = 0;
	int error = tree_listxattr(mount->tree, node_of(mount, ino), &names, &len_bytes, &failure);

	if (error == -ENOTSUP)
		error = 0; /* a list of none */
	if (error < 0)
		reply_status(request, error, &failure);
	else
		reply_xattr(request, names, len_bytes, room);
}

static void op_statfs(fuse_req_t request, fuse_ino_t ino)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	struct statvfs status;
	int error = tree_statfs(mount->tree, node_of(mount, ino), &status, &failure);

	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_statfs(request, &status);
}

/* ---- folders ---- */

static void op_opendir(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	struct listing *listing;
	int error = listing_open(mount->tree, node_of(mount, ino), &listing, &failure);

	if (error < 0) {
		reply_status(request, error, &failure);
		return;
	}
	info->fh = (uintptr_t)listing;
	info->cache_readdir = info->keep_cache = listing_is_forever(listing);
	if (fuse_reply_open(request, info) < 0)
		listing_close(listing);
}

static void op_releasedir(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	(void)ino;
	listing_close((struct listing *)(uintptr_t)info->fh);
	(void)fuse_reply_err(request, 0);
}

/* An answer to who lists a folder, as it is put together. */
struct answer {
	fuse_req_t request;
	char *buffer;
	size_t room, used;
	bool is_plus;	     /* with attributes, which make nodes known to the kernel */
	struct node **given; /* owned: those; forgotten if the answer doesn't arrive */
	size_t given_count;
};

static void free_answer(struct answer *answer)
{
	free(answer->given);
}

/* False: no room. */
static bool add_entry(struct answer *answer, const char *name, const struct fuse_entry_param *entry, uint64_t next_off)
{
	size_t left = answer->room - answer->used;
	char *at = answer->buffer + answer->used;
	size_t bytes = answer->is_plus
			       ? fuse_add_direntry_plus(answer->request, at, left, name, entry, (off_t)next_off)
			       : fuse_add_direntry(answer->request, at, left, name, &entry->attr, (off_t)next_off);

	if (bytes > left)
		return false;
	answer->used += bytes;
	return true;
}

/* "." and "..": the kernel looks at neither. */
static bool add_dots(struct answer *answer, uint64_t *off)
{
	static const char *const names[DOTS] = {".", ".."};
	const struct fuse_entry_param entry = {.attr = {.st_ino = FUSE_ROOT_ID, .st_mode = S_IFDIR}};

	for (; *off < DOTS; ++*off)
		if (!add_entry(answer, names[*off], &entry, *off + 1))
			return false;
	return true;
}

static bool add_listed(struct answer *answer, struct listing *listing, const struct listed *listed)
{
	struct fuse_mount *mount = mount_of(answer->request);
	struct fuse_entry_param entry = {.attr = {.st_ino = listed->ino, .st_mode = listed->type}};
	struct found found;

	if (!answer->is_plus || listing_take(listing, &found) < 0)
		return add_entry(answer, listed->name, &entry, listed->cookie + DOTS);
	entry = entry_of(mount, &found);
	if (!add_entry(answer, listed->name, &entry, listed->cookie + DOTS)) {
		tree_forget(mount->tree, found.node, 1);
		return false;
	}
	answer->given[answer->given_count++] = found.node;
	return true;
}

/* What there is room for. An error behind something is met again by who asks for what comes next. */
static int fill_answer(struct answer *answer, struct listing *listing, uint64_t off, struct failure *failure)
{
	const struct listed *listed;

	if (!add_dots(answer, &off))
		return 0;
	for (;;) {
		int error = listing_next(listing, off - DOTS, &listed, failure);

		if (error < 0)
			return answer->used > 0 ? 0 : error;
		if (listed == NULL || !add_listed(answer, listing, listed))
			return 0;
		off = listed->cookie + DOTS;
	}
}

static void list_folder(fuse_req_t request, size_t room, off_t off, struct fuse_file_info *info, bool is_plus)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	/* an entry with attributes has 128 bytes of them, and 24 besides its name */
	AUTO(free_answer)
	struct answer answer = {.request = request,
				.buffer = thread_buffer(room),
				.room = room,
				.is_plus = is_plus,
				.given = is_plus ? calloc(room / 128 + 1, sizeof(struct node *)) : NULL};
	int error = answer.buffer == NULL || (is_plus && answer.given == NULL) || off < 0 ? -ENOMEM : 0;

	if (error == 0)
		error = fill_answer(&answer, (struct listing *)(uintptr_t)info->fh, (uint64_t)off, &failure);
	if (error < 0) {
		reply_status(request, error, &failure);
		return;
	}
	if (fuse_reply_buf(request, answer.buffer, answer.used) < 0)
		for (size_t i = 0; i < answer.given_count; i++)
			forget(mount, ino_of(mount, answer.given[i]), 1);
}

static void op_readdir(fuse_req_t request, fuse_ino_t ino, size_t room, off_t off, struct fuse_file_info *info)
{
	(void)ino;
	list_folder(request, room, off, info, false);
}

static void op_readdirplus(fuse_req_t request, fuse_ino_t ino, size_t room, off_t off, struct fuse_file_info *info)
{
	(void)ino;
	list_folder(request, room, off, info, true);
}

/* ---- files ---- */

static struct file *file_of(const struct fuse_file_info *info)
{
	return (struct file *)(uintptr_t)info->fh;
}

static int open_file(struct fuse_mount *mount, struct node *node, int flags, struct file **ret_file,
		     struct failure *failure)
{
	bool write = (flags & O_ACCMODE) != O_RDONLY;
	int error = file_open(mount->tree, node, write, ret_file, failure);

	/* after it is known that it may be written to: who tries that on an image is to hear of that */
	if (error == 0 && (flags & O_TRUNC) != 0) {
		error = tree_check_size(mount->tree, node, 0, failure);
		if (error < 0)
			(void)file_close(*ret_file, NULL); /* nothing was written */
	}
	return error;
}

/*
 * What was not given, for whatever reason, is asked for later. So a file that is read is two requests, of which nobody waits for the second (its end);
 * otherwise it would be the read, and its attributes once more, for reading has changed the time of its last access as far as the kernel knows.
 */
static void give_beginning(const struct fuse_mount *mount, fuse_ino_t ino, struct file *file)
{
	struct fuse_bufvec vector = FUSE_BUFVEC_INIT(0);
	char *buffer;

	if (!file_begin_giving(file))
		return;
	buffer = thread_buffer(GIVEN_BYTES);
	if (buffer != NULL && file_read(file, buffer, GIVEN_BYTES, 0, &vector.buf[0].size, NULL) == 0 && vector.buf[0].size > 0) {
		vector.buf[0].mem = buffer;
		(void)fuse_lowlevel_notify_store(mount->session, ino, 0, &vector, (enum fuse_buf_copy_flags)0);
	}
	file_end_giving(file);
}

static void op_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	struct fuse_mount *mount = mount_of(request);
	struct failure failure = {.code = 0};
	struct file *file;
	int error = open_file(mount, node_of(mount, ino), info->flags, &file, &failure);

	if (error < 0) {
		reply_status(request, error, &failure);
		return;
	}
	if (!atomic_flag_test_and_set(&mount->is_used))
		mount->used(mount);
	info->fh = (uintptr_t)file;
	info->keep_cache = file_caching(file) == FILE_CACHE_FOREVER;
	info->direct_io = file_caching(file) == FILE_CACHE_NEVER;
	if (info->keep_cache)
		give_beginning(mount, ino, file);
	if (fuse_reply_open(request, info) < 0)
		(void)file_close(file, NULL); /* nothing was written */
}

/* The caller of close(2) doesn't wait for this: a live disk may be open a moment longer. */
static void op_release(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};

	(void)ino;
	note_failure(file_close(file_of(info), &failure), &failure);
	(void)fuse_reply_err(request, 0);
}

static void op_read(fuse_req_t request, fuse_ino_t ino, size_t len_bytes, off_t off, struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};
	char *buffer = thread_buffer(len_bytes);
	size_t got = 0;
	int error = buffer == NULL || off < 0
			    ? -ENOMEM
			    : file_read(file_of(info), buffer, len_bytes, (uint64_t)off, &got, &failure);

	(void)ino;
	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_buf(request, buffer, got);
}

static void op_write(fuse_req_t request, fuse_ino_t ino, const char *buffer, size_t len_bytes, off_t off,
		     struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};
	bool durable = (info->flags & (O_SYNC | O_DSYNC)) != 0;
	size_t written = 0;
	int error = off < 0 ? -EINVAL
			    : file_write(file_of(info), buffer, len_bytes, (uint64_t)off, durable, &written, &failure);

	(void)ino;
	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_write(request, written);
}

static void op_fsync(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};
	int error = file_flush(file_of(info), &failure);

	(void)ino;
	(void)datasync;
	reply_status(request, error, &failure);
}

static void op_fallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};
	bool punch = (mode & FALLOC_FL_PUNCH_HOLE) != 0;
	int error = -ENOTSUP;

	if (off < 0 || len <= 0)
		error = -EINVAL;
	else if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) ||
		 mode == (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
		error = file_zero(file_of(info), (uint64_t)off, (uint64_t)len, punch, &failure);
	else if (mode == FALLOC_FL_ZERO_RANGE) { /* makes a file longer, if need be */
		error = file_check_end(file_of(info), (uint64_t)off + (uint64_t)len, &failure);
		if (error == 0)
			error = file_zero(file_of(info), (uint64_t)off, (uint64_t)len, false, &failure);
	}
	(void)ino;
	reply_status(request, error, &failure);
}

static void op_lseek(fuse_req_t request, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *info)
{
	struct failure failure = {.code = 0};
	uint64_t found = 0;
	int error = -EINVAL;

	(void)ino;
	if (off >= 0 && (whence == SEEK_DATA || whence == SEEK_HOLE))
		error = file_seek(file_of(info), (uint64_t)off, whence == SEEK_HOLE, &found, &failure);
	if (error < 0)
		reply_status(request, error, &failure);
	else
		(void)fuse_reply_lseek(request, (off_t)found);
}

/* ---- the connection ---- */

static void want(struct fuse_conn_info *connection, unsigned capability)
{
	connection->want |= connection->capable & capability;
}

static void op_init(void *opaque, struct fuse_conn_info *connection)
{
	struct fuse_mount *mount = opaque;

	connection->max_write = REQUEST_MOST_BYTES;
	connection->max_background = BACKGROUND_MOST;
	connection->congestion_threshold = BACKGROUND_MOST * 3 / 4;
	/* listings with attributes only: of what the kernel lists without, it would ask for each name by itself a moment later, and a listing has them at hand */
	connection->want &= ~(unsigned)(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_READDIRPLUS_AUTO);
	want(connection, FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS |
				 FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_CACHE_SYMLINKS);
	if (mount->kernel_checks_acls)
		want(connection, FUSE_CAP_POSIX_ACL);
	mount->ready(mount);
}

const struct fuse_lowlevel_ops fuse_mount_ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.mknod = op_mknod,
	.mkdir = op_mkdir,
	.unlink = op_remove,
	.rmdir = op_remove,
	.symlink = op_symlink,
	.rename = op_rename,
	.link = op_link,
	.access = op_access,
	.readlink = op_readlink,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.statfs = op_statfs,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.open = op_open,
	.release = op_release,
	.read = op_read,
	.write = op_write,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.lseek = op_lseek,
};
