/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front of all engines: what comes in is checked before an engine sees it, and what comes out before the caller
 * does, for an engine passes on what a process said that may have been taken over by the file system that it reads.
 *
 *   in    names are names (no slash, not "." or ".."), and not too long
 *   in    an engine reads the source within its bounds, whatever it was told
 *   out   attributes have a type that exists, sizes that fit an off_t, nanoseconds below a second
 *   out   names in listings are names; cookies grow, so that no listing goes on for ever, and fit an off_t
 *   out   lengths are within what was asked for, and what the kernel allows
 */
#include "fsreader/fsreader.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "fsreader/engine.h"

enum {
	DEFAULT_TIMEOUT_SECONDS = 60,
	NANOSECONDS = 1000000000,
	XATTR_MOST_BYTES = 64 * 1024, /* XATTR_LIST_MAX and XATTR_SIZE_MAX of Linux */
	XATTR_NAME_MOST_BYTES = 255,
};

struct fsreader {
	const struct engine_ops *ops;
	void *engine;
	char *what;
	struct fsreader_source inner;
	struct fsreader_source checked; /* what the engine sees */
};

struct fsreader_file {
	struct fsreader *reader;
	void *file;
	uint64_t size_bytes;
};

static const struct engine_ops *const engines[] = {&ext_engine, &kernel_engine, &ntfs_engine,
						   &grub_engine}; /* the better one first */

/* ------------------------------------------------------------------- start */

/* From number `*number` on, the first that knows the type and has all it needs. What the first that knows it lacks is said when there is none. */
static int find_engine(const char *type, size_t *number, struct failure *failure)
{
	struct failure why = {.code = 0};

	for (; *number < sizeof(engines) / sizeof(engines[0]); ++*number)
		if (engines[*number]->knows_type(type) && engines[*number]->check(type, &why) == 0)
			return 0;
	if (why.code < 0)
		return fail_from(failure, &why);
	return fail(failure, -ENOTSUP, "%s: files of this type of file system can't be read here; mount the partition",
		    type);
}

int fsreader_check_type(const char *type, struct failure *failure)
{
	size_t number = 0;

	return find_engine(type, &number, failure);
}

static int read_checked(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	const struct fsreader *reader = opaque;
	uint64_t end_bytes;

	if (__builtin_add_overflow(off_bytes, (uint64_t)len_bytes, &end_bytes) || end_bytes > reader->inner.size_bytes)
		return fail(failure, -EIO, "%s: damaged: it has something behind its end, at %" PRIu64, reader->what,
			    off_bytes);
	return reader->inner.read(reader->inner.opaque, buffer, len_bytes, off_bytes, failure);
}

static void free_reader(struct fsreader *reader)
{
	free(reader->what);
	free(reader);
}

/* Where a sandbox can't be had, as a kernel needs one, the next engine may do with less. */
static int start_engine(struct fsreader *reader, const char *type, const struct fsreader_options *options,
			struct failure *failure)
{
	struct failure why = {.code = 0};
	size_t number = 0;
	int error = find_engine(type, &number, &why);

	while (error == 0) {
		reader->ops = engines[number];
		error = reader->ops->start(&reader->checked, type, options, &reader->engine, &why);
		if (error != -EPERM)
			break;
		number++;
		error = find_engine(type, &number, NULL);
	}
	return error < 0 ? fail_from(failure, &why) : 0;
}

int fsreader_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		   struct fsreader **ret_reader, struct failure *failure)
{
	struct fsreader_options filled = *options;
	struct fsreader *reader;
	int error = fsreader_check_type(type, failure);

	if (error < 0)
		return error;
	reader = calloc(1, sizeof(*reader));
	if (reader == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	reader->what = strdup(options->what == NULL ? type : options->what);
	if (reader->what == NULL) {
		free_reader(reader);
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	}
	reader->inner = *source;
	reader->checked = *source;
	reader->checked.read = read_checked;
	reader->checked.opaque = reader;
	filled.what = reader->what;
	if (filled.timeout_seconds == 0)
		filled.timeout_seconds = DEFAULT_TIMEOUT_SECONDS;
	error = start_engine(reader, type, &filled, failure);
	if (error < 0) {
		free_reader(reader);
		return error;
	}
	*ret_reader = reader;
	return 0;
}

void fsreader_stop(struct fsreader *reader)
{
	if (reader == NULL)
		return;
	reader->ops->stop(reader->engine);
	free_reader(reader);
}

/* ------------------------------------------------------------------ checks */

static bool is_name(const char *name, size_t len_bytes)
{
	return len_bytes > 0 && len_bytes <= FSREADER_NAME_MOST_BYTES && memchr(name, '/', len_bytes) == NULL &&
	       strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static bool is_type(uint32_t mode)
{
	return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode) || S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) ||
	       S_ISSOCK(mode);
}

static bool is_time(const struct timespec *time)
{
	return time->tv_nsec >= 0 && time->tv_nsec < NANOSECONDS;
}

static const char *find_flaw_of_attr(const struct fsreader_attr *attr)
{
	if (attr->ino == 0)
		return "no inode number";
	if (!is_type(attr->mode) || (attr->mode & ~(uint32_t)(S_IFMT | 07777)) != 0)
		return "a mode that doesn't exist";
	if (attr->size_bytes > INT64_MAX || attr->allocated_bytes > INT64_MAX)
		return "a size that doesn't exist";
	if (!is_time(&attr->atime) || !is_time(&attr->mtime) || !is_time(&attr->ctime))
		return "a time that doesn't exist";
	return NULL;
}

static int check_attr(const struct fsreader *reader, const struct fsreader_attr *attr, struct failure *failure)
{
	const char *flaw = find_flaw_of_attr(attr);

	return flaw == NULL ? 0 : fail(failure, -EIO, "%s: its reader told of a file with %s", reader->what, flaw);
}

/* ----------------------------------------------------------------- looking */

int fsreader_getattr(struct fsreader *reader, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	struct fsreader_attr attr;
	int error = reader->ops->getattr(reader->engine, ino, &attr, failure);

	if (error == 0)
		error = check_attr(reader, &attr, failure);
	if (error == 0)
		*ret_attr = attr;
	return error;
}

int fsreader_lookup(struct fsreader *reader, uint64_t dir, const char *name, struct fsreader_attr *ret_attr,
		    struct failure *failure)
{
	struct fsreader_attr attr;
	size_t len_bytes = strlen(name);
	int error;

	if (len_bytes > FSREADER_NAME_MOST_BYTES)
		return fail(failure, -ENAMETOOLONG, "%s: a name of %zu bytes", reader->what, len_bytes);
	if (!is_name(name, len_bytes))
		return fail(failure, -EINVAL, "%s: '%s' is no name of a file", reader->what, name);
	error = reader->ops->lookup(reader->engine, dir, name, &attr, failure);
	if (error == 0)
		error = check_attr(reader, &attr, failure);
	if (error == 0)
		*ret_attr = attr;
	return error;
}

struct listing {
	struct fsreader *reader;
	fsreader_found *found;
	void *opaque;
	uint64_t cookie;
	bool is_lie;
};

static int check_found(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie)
{
	struct listing *listing = opaque;
	struct fsreader_attr unknown = {.ino = 0};

	if (!is_name(name, strnlen(name, FSREADER_NAME_MOST_BYTES + 1)) || cookie <= listing->cookie ||
	    cookie > INT64_MAX) {
		listing->is_lie = true;
		return -EIO;
	}
	listing->cookie = cookie;
	if (find_flaw_of_attr(attr) != NULL)
		attr = &unknown;
	return listing->found(listing->opaque, name, attr, cookie);
}

int fsreader_list(struct fsreader *reader, uint64_t dir, uint64_t cookie, fsreader_found *found, void *opaque,
		  struct failure *failure)
{
	struct listing listing = {.reader = reader, .found = found, .opaque = opaque, .cookie = cookie};
	int result = reader->ops->list(reader->engine, dir, cookie, check_found, &listing, failure);

	if (listing.is_lie)
		return fail(failure, -EIO, "%s: its reader listed a folder in a way that can't be", reader->what);
	return result;
}

int fsreader_readlink(struct fsreader *reader, uint64_t ino, char **ret_target, struct failure *failure)
{
	AUTO_FREE char *target = NULL;
	int error = reader->ops->readlink(reader->engine, ino, &target, failure);

	if (error < 0)
		return error;
	if (*target == '\0' || strnlen(target, PATH_MAX) >= PATH_MAX)
		return fail(failure, -EIO, "%s: its reader told of a symbolic link to nowhere", reader->what);
	*ret_target = take_ptr(target);
	return 0;
}

/* -------------------------------------------------------------- attributes */

/* Every name ends within, and is one. */
static bool are_xattr_names(const char *names, size_t len_bytes)
{
	while (len_bytes > 0) {
		size_t name_bytes = strnlen(names, len_bytes);

		if (name_bytes == 0 || name_bytes == len_bytes || name_bytes > XATTR_NAME_MOST_BYTES)
			return false;
		names += name_bytes + 1;
		len_bytes -= name_bytes + 1;
	}
	return true;
}

int fsreader_listxattr(struct fsreader *reader, uint64_t ino, char **ret_names, size_t *ret_len_bytes,
		       struct failure *failure)
{
	AUTO_FREE char *names = NULL;
	size_t len_bytes = 0;
	int error = 0;

	if (reader->ops->listxattr != NULL)
		error = reader->ops->listxattr(reader->engine, ino, &names, &len_bytes, failure);
	if (error < 0)
		return error;
	if (len_bytes > XATTR_MOST_BYTES || !are_xattr_names(names, len_bytes))
		return fail(failure, -EIO, "%s: its reader told of extended attributes that can't be", reader->what);
	if (names == NULL)
		names = calloc(1, 1);
	if (names == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	*ret_names = take_ptr(names);
	*ret_len_bytes = len_bytes;
	return 0;
}

int fsreader_getxattr(struct fsreader *reader, uint64_t ino, const char *name, void **ret_value, size_t *ret_len_bytes,
		      struct failure *failure)
{
	AUTO_FREE void *value = NULL;
	size_t len_bytes = 0;
	int error;

	if (*name == '\0' || strlen(name) > XATTR_NAME_MOST_BYTES)
		return fail(failure, -ERANGE, "%s: '%s' is no name of an extended attribute", reader->what, name);
	if (reader->ops->getxattr == NULL)
		return fail(failure, -ENODATA, "%s: no extended attribute %s", reader->what, name);
	error = reader->ops->getxattr(reader->engine, ino, name, &value, &len_bytes, failure);
	if (error < 0)
		return error;
	if (len_bytes > XATTR_MOST_BYTES)
		return fail(failure, -EIO, "%s: its reader told of an extended attribute that can't be", reader->what);
	if (value == NULL)
		value = calloc(1, 1);
	if (value == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	*ret_value = take_ptr(value);
	*ret_len_bytes = len_bytes;
	return 0;
}

int fsreader_statfs(struct fsreader *reader, struct fsreader_statfs *ret_statfs, struct failure *failure)
{
	return reader->ops->statfs(reader->engine, ret_statfs, failure);
}

/* ----------------------------------------------------------------- content */

int fsreader_open(struct fsreader *reader, uint64_t ino, struct fsreader_file **ret_file, struct failure *failure)
{
	AUTO_FREE struct fsreader_file *file = calloc(1, sizeof(*file));
	struct fsreader_attr attr;
	int error;

	if (file == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	error = fsreader_getattr(reader, ino, &attr, failure);
	if (error < 0)
		return error;
	if (!S_ISREG(attr.mode))
		return fail(failure, S_ISDIR(attr.mode) ? -EISDIR : -EINVAL, "%s: inode %" PRIu64 " is no regular file",
			    reader->what, ino);
	error = reader->ops->open(reader->engine, ino, &file->file, failure);
	if (error < 0)
		return error;
	file->reader = reader;
	file->size_bytes = attr.size_bytes;
	*ret_file = take_ptr(file);
	return 0;
}

void fsreader_close(struct fsreader_file *file)
{
	if (file == NULL)
		return;
	file->reader->ops->close(file->reader->engine, file->file);
	free(file);
}

int fsreader_read(struct fsreader_file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		  struct failure *failure)
{
	const struct fsreader *reader = file->reader;
	size_t read_bytes = 0;
	int error;

	if (off_bytes >= file->size_bytes)
		len_bytes = 0;
	else if (len_bytes > file->size_bytes - off_bytes)
		len_bytes = (size_t)(file->size_bytes - off_bytes);
	if (len_bytes > 0) {
		error = reader->ops->read(reader->engine, file->file, buffer, len_bytes, off_bytes, &read_bytes,
					  failure);
		if (error < 0)
			return error;
	}
	if (read_bytes > len_bytes)
		return fail(failure, -EIO, "%s: its reader gave more than it was asked for", reader->what);
	*ret_len_bytes = read_bytes;
	return 0;
}

int fsreader_seek(struct fsreader_file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		  struct failure *failure)
{
	const struct fsreader *reader = file->reader;
	uint64_t found_bytes = wants_hole ? file->size_bytes : off_bytes;
	int error = 0;

	if (off_bytes >= file->size_bytes)
		return fail(failure, -ENXIO, "%s: nothing is behind the end of a file", reader->what);
	if (reader->ops->seek != NULL)
		error = reader->ops->seek(reader->engine, file->file, off_bytes, wants_hole, &found_bytes, failure);
	if (error < 0)
		return error;
	if (found_bytes < off_bytes || found_bytes > file->size_bytes)
		return fail(failure, -EIO, "%s: its reader told of a hole that can't be", reader->what);
	*ret_off_bytes = found_bytes;
	return 0;
}
