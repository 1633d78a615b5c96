/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into a program, records what it does to files below RECORD_FOLDER (a real path without links) in RECORD_LOG.
 * power_log.h says what a record looks like, power_cut.c what it's good for.
 *
 * One lock is held over each call and its record, so the order of the log is the order in which the kernel saw the
 * calls. A write's data is recorded as far as the kernel took it. A call that failed has left nothing and is not
 * recorded.
 *
 * Descriptors are asked for their path each time (/proc/self/fd) in place of being followed through dup, close and
 * inheritance: slower, and right.
 *
 * What changes files and has no record ends the program with status 98, so that no replay lacks it: links,
 * copy_file_range, holes, stdio for writing, shared writable mappings of anything but SQLite's -shm files (which no
 * crash keeps), and the others below. The dynamic linker hands over only what is called by name from outside of libc,
 * and a system call made in another way is not seen here at all; `power_cut whole` makes what the log amounts to, for
 * comparing it with what is there.
 *
 * preload_record_note() puts a text of the program's own among the records, where it finds that by dlsym().
 *
 * That standard output is closed, which ends every JSON document, is recorded.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "power_log.h"

#define REAL(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void give_up(const char *why)
{
	char line[128];
	int length = snprintf(line, sizeof(line), "preload_record: %s\n", why);

	(void)!REAL(write)(2, line, (size_t)length);
	REAL(_exit)(98);
	__builtin_unreachable();
}

/* ---- the log ---- */

static int log_file(void)
{
	static int fd = -1;

	if (fd < 0) {
		const char *path = getenv("RECORD_LOG");

		if (path == NULL)
			give_up("RECORD_LOG is not set");
		fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (fd < 0)
			give_up("RECORD_LOG can't be opened");
	}
	return fd;
}

static void record(struct power_log_head head, const char *name, const void *data)
{
	struct iovec parts[3] = {{&head, sizeof(head)},
				 {(void *)(uintptr_t)name, head.name_bytes = name == NULL ? 0 : (uint32_t)strlen(name)},
				 {(void *)(uintptr_t)data, head.data_bytes}};
	size_t length = sizeof(head) + head.name_bytes + head.data_bytes;

	if (REAL(writev)(log_file(), parts, 3) != (ssize_t)length)
		give_up("RECORD_LOG can't be written");
}

/* ---- which file is it ---- */

static bool is_recorded_path(const char *path)
{
	const char *folder = getenv("RECORD_FOLDER");
	size_t length = folder == NULL ? 0 : strlen(folder);

	return length > 0 && strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* The inode of an open file below the folder; 0: elsewhere. */
static uint64_t inode_of(int fd)
{
	char link[64], path[PATH_MAX];
	struct stat status;
	ssize_t length;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	if (length <= 0)
		return 0;
	path[length] = '\0';
	if (!is_recorded_path(path) || fstat(fd, &status) < 0)
		return 0;
	return status.st_ino;
}

struct place {
	int folder_fd; /* -1: not below the folder */
	uint64_t folder;
	char name[NAME_MAX + 1];
};

/* Where a name stands. The folder is opened, whatever the path looked like. */
static struct place place_of(int at_fd, const char *path)
{
	struct place place = {.folder_fd = -1};
	const char *slash = strrchr(path, '/');
	char folder[PATH_MAX];

	(void)snprintf(folder, sizeof(folder), "%.*s", slash == NULL ? 1 : (int)(slash - path + 1),
		       slash == NULL ? "." : path);
	(void)snprintf(place.name, sizeof(place.name), "%s", slash == NULL ? path : slash + 1);
	place.folder_fd = REAL(openat)(at_fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place.folder_fd < 0)
		return place;
	place.folder = inode_of(place.folder_fd);
	if (place.folder == 0) {
		(void)close(place.folder_fd);
		place.folder_fd = -1;
	}
	return place;
}

static void place_done(struct place *place)
{
	int code = errno;

	if (place->folder_fd >= 0)
		(void)close(place->folder_fd);
	errno = code;
}

static void record_root(void)
{
	static bool done;
	struct stat status;

	if (done)
		return;
	done = true;
	if (stat(getenv("RECORD_FOLDER"), &status) < 0)
		give_up("RECORD_FOLDER is not there");
	record((struct power_log_head){.kind = POWER_ROOT, .inode = status.st_ino}, NULL, NULL);
}

/* ---- names ---- */

static int open_recorded(int at_fd, const char *path, int flags, mode_t mode)
{
	struct place place = {.folder_fd = -1};
	struct stat status;
	bool was_there;
	int fd;

	if ((flags & (O_CREAT | O_TRUNC)) == 0)
		return REAL(openat)(at_fd, path, flags, mode);
	(void)pthread_mutex_lock(&order);
	place = place_of(at_fd, path);
	if (place.folder_fd >= 0 && (flags & O_TMPFILE) == O_TMPFILE)
		give_up("open with O_TMPFILE");
	was_there = place.folder_fd >= 0 && fstatat(place.folder_fd, place.name, &status, AT_SYMLINK_NOFOLLOW) == 0;
	fd = REAL(openat)(at_fd, path, flags, mode);
	if (fd >= 0 && place.folder_fd >= 0) {
		record_root();
		if (fstat(fd, &status) < 0)
			give_up("fstat");
		if (!was_there)
			record((struct power_log_head){.kind = POWER_CREATE,
						       .inode = status.st_ino,
						       .folder = place.folder},
			       place.name, NULL);
		else if ((flags & O_TRUNC) != 0)
			record((struct power_log_head){.kind = POWER_TRUNCATE, .inode = status.st_ino}, NULL, NULL);
	}
	place_done(&place);
	(void)pthread_mutex_unlock(&order);
	return fd;
}

#define MODE_OF(flags, mode)                                                                   \
	do {                                                                                   \
		va_list arguments;                                                             \
		va_start(arguments, flags);                                                    \
		mode = ((flags) & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0; \
		va_end(arguments);                                                             \
	} while (0)

int open(const char *path, int flags, ...)
{
	mode_t mode;

	MODE_OF(flags, mode);
	return open_recorded(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	mode_t mode;

	MODE_OF(flags, mode);
	return open_recorded(AT_FDCWD, path, flags, mode);
}

int openat(int at_fd, const char *path, int flags, ...)
{
	mode_t mode;

	MODE_OF(flags, mode);
	return open_recorded(at_fd, path, flags, mode);
}

int openat64(int at_fd, const char *path, int flags, ...)
{
	mode_t mode;

	MODE_OF(flags, mode);
	return open_recorded(at_fd, path, flags, mode);
}

int mkdirat(int at_fd, const char *path, mode_t mode)
{
	struct place place;
	struct stat status;
	int result;

	(void)pthread_mutex_lock(&order);
	place = place_of(at_fd, path);
	result = REAL(mkdirat)(at_fd, path, mode);
	if (result == 0 && place.folder_fd >= 0) {
		record_root();
		if (fstatat(place.folder_fd, place.name, &status, 0) < 0)
			give_up("fstatat");
		record(
			(struct power_log_head){
				.kind = POWER_CREATE, .inode = status.st_ino, .folder = place.folder, .offset = 1},
			place.name, NULL);
	}
	place_done(&place);
	(void)pthread_mutex_unlock(&order);
	return result;
}

int mkdir(const char *path, mode_t mode)
{
	return mkdirat(AT_FDCWD, path, mode);
}

int unlinkat(int at_fd, const char *path, int flags)
{
	struct place place;
	struct stat status;
	bool is_socket;
	int result;

	(void)pthread_mutex_lock(&order);
	place = place_of(at_fd, path);
	/* a socket's name has no record: no crash keeps what it leads to */
	is_socket = place.folder_fd >= 0 && fstatat(place.folder_fd, place.name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISSOCK(status.st_mode);
	result = REAL(unlinkat)(at_fd, path, flags);
	if (result == 0 && place.folder_fd >= 0 && !is_socket)
		record((struct power_log_head){.kind = POWER_UNLINK, .folder = place.folder}, place.name, NULL);
	place_done(&place);
	(void)pthread_mutex_unlock(&order);
	return result;
}

int unlink(const char *path)
{
	return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
	return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	struct place old_place, new_place;
	int result;

	(void)pthread_mutex_lock(&order);
	old_place = place_of(from_fd, from);
	new_place = place_of(to_fd, to);
	result = REAL(renameat)(from_fd, from, to_fd, to);
	if (result == 0 && old_place.folder_fd >= 0 && new_place.folder_fd >= 0)
		record((struct power_log_head){.kind = POWER_RENAME,
					       .folder = old_place.folder,
					       .inode = new_place.folder,
					       .data_bytes = strlen(new_place.name)},
		       old_place.name, new_place.name);
	place_done(&old_place);
	place_done(&new_place);
	(void)pthread_mutex_unlock(&order);
	return result;
}

int rename(const char *from, const char *to)
{
	return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* ---- content ---- */

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
	uint64_t inode;
	ssize_t put;
	int code;

	(void)pthread_mutex_lock(&order);
	inode = inode_of(fd);
	put = REAL(pwrite)(fd, data, length, offset);
	code = errno;
	if (put > 0 && inode != 0)
		record((struct power_log_head){.kind = POWER_WRITE,
					       .inode = inode,
					       .offset = (uint64_t)offset,
					       .data_bytes = (uint64_t)put},
		       NULL, data);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return put;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
	return pwrite(fd, data, length, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	size_t length = 0, filled = 0;
	char *data;
	ssize_t put;
	int code;

	if (inode_of(fd) == 0)
		return REAL(pwritev)(fd, parts, count, offset);
	for (int i = 0; i < count; i++)
		length += parts[i].iov_len;
	data = malloc(length + 1);
	if (data == NULL)
		give_up("memory");
	for (int i = 0; i < count; filled += parts[i++].iov_len)
		if (parts[i].iov_len > 0)
			memcpy(data + filled, parts[i].iov_base, parts[i].iov_len);
	put = pwrite(fd, data, length, offset);
	code = errno;
	free(data);
	errno = code;
	return put;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
	return pwritev(fd, parts, count, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
	struct stat status;
	off_t offset = 0;
	uint64_t inode;
	ssize_t put;
	int code;

	(void)pthread_mutex_lock(&order);
	inode = inode_of(fd);
	if (inode != 0 && (fcntl(fd, F_GETFL) & O_APPEND) == 0)
		offset = lseek(fd, 0, SEEK_CUR);
	else if (inode != 0 && fstat(fd, &status) == 0)
		offset = status.st_size;
	put = REAL(write)(fd, data, length);
	code = errno;
	if (put > 0 && inode != 0)
		record((struct power_log_head){.kind = POWER_WRITE,
					       .inode = inode,
					       .offset = (uint64_t)offset,
					       .data_bytes = (uint64_t)put},
		       NULL, data);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return put;
}

int ftruncate(int fd, off_t size)
{
	uint64_t inode;
	int result, code;

	(void)pthread_mutex_lock(&order);
	inode = inode_of(fd);
	result = REAL(ftruncate)(fd, size);
	code = errno;
	if (result == 0 && inode != 0)
		record((struct power_log_head){.kind = POWER_TRUNCATE, .inode = inode, .offset = (uint64_t)size}, NULL,
		       NULL);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return result;
}

int ftruncate64(int fd, off64_t size)
{
	return ftruncate(fd, size);
}

/* Without flags it makes a file longer, or leaves it as it is; what it is asked for besides has no record. */
int fallocate(int fd, int flags, off_t offset, off_t length)
{
	struct stat status;
	uint64_t inode;
	int result, code;

	(void)pthread_mutex_lock(&order);
	inode = inode_of(fd);
	if (inode != 0 && flags != 0)
		give_up("fallocate with flags");
	if (inode != 0 && fstat(fd, &status) < 0)
		give_up("fstat");
	result = REAL(fallocate)(fd, flags, offset, length);
	code = errno;
	if (result == 0 && inode != 0 && offset + length > status.st_size)
		record((struct power_log_head){.kind = POWER_TRUNCATE,
					       .inode = inode,
					       .offset = (uint64_t)(offset + length)},
		       NULL, NULL);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return result;
}

int fallocate64(int fd, int flags, off64_t offset, off64_t length)
{
	return fallocate(fd, flags, offset, length);
}

/* The record stands behind the call: a crash in the middle of a sync is a crash before it. */
static int record_sync(int fd, int (*sync_call)(int))
{
	uint64_t inode;
	int result, code;

	(void)pthread_mutex_lock(&order);
	inode = inode_of(fd);
	result = sync_call(fd);
	code = errno;
	if (result == 0 && inode != 0)
		record((struct power_log_head){.kind = POWER_SYNC, .inode = inode}, NULL, NULL);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return result;
}

int fdatasync(int fd)
{
	return record_sync(fd, REAL(fdatasync));
}

int fsync(int fd)
{
	return record_sync(fd, REAL(fsync));
}

/* ---- what has no record ---- */

static void refuse_fd(int fd, const char *call)
{
	if (inode_of(fd) != 0)
		give_up(call);
}

static void refuse_path(int at_fd, const char *path, const char *call)
{
	struct place place = place_of(at_fd, path);

	if (place.folder_fd >= 0)
		give_up(call);
}

/* CALL(result, name, parameters, arguments, whether it is refused): a call that is passed on where it concerns nobody.
 */
#define CALL(type, name, parameters, arguments, refusal) \
	type name parameters                             \
	{                                                \
		refusal;                                 \
		return REAL(name) arguments;             \
	}

CALL(int, link, (const char *from, const char *to), (from, to), refuse_path(AT_FDCWD, to, "link"))
CALL(int, linkat, (int from_fd, const char *from, int to_fd, const char *to, int flags),
     (from_fd, from, to_fd, to, flags), refuse_path(to_fd, to, "linkat"))
CALL(int, symlink, (const char *text, const char *to), (text, to), refuse_path(AT_FDCWD, to, "symlink"))
CALL(int, symlinkat, (const char *text, int to_fd, const char *to), (text, to_fd, to),
     refuse_path(to_fd, to, "symlinkat"))
CALL(int, mknod, (const char *path, mode_t mode, dev_t device), (path, mode, device),
     refuse_path(AT_FDCWD, path, "mknod"))
CALL(int, mknodat, (int at_fd, const char *path, mode_t mode, dev_t device), (at_fd, path, mode, device),
     refuse_path(at_fd, path, "mknodat"))
CALL(int, renameat2, (int from_fd, const char *from, int to_fd, const char *to, unsigned flags),
     (from_fd, from, to_fd, to, flags), (refuse_path(from_fd, from, "renameat2"), refuse_path(to_fd, to, "renameat2")))
CALL(int, creat, (const char *path, mode_t mode), (path, mode), refuse_path(AT_FDCWD, path, "creat"))
CALL(int, creat64, (const char *path, mode_t mode), (path, mode), refuse_path(AT_FDCWD, path, "creat64"))
CALL(int, truncate, (const char *path, off_t size), (path, size), refuse_path(AT_FDCWD, path, "truncate"))
CALL(int, truncate64, (const char *path, off64_t size), (path, size), refuse_path(AT_FDCWD, path, "truncate64"))
CALL(int, posix_fallocate, (int fd, off_t offset, off_t length), (fd, offset, length), refuse_fd(fd, "posix_fallocate"))
CALL(int, posix_fallocate64, (int fd, off64_t offset, off64_t length), (fd, offset, length),
     refuse_fd(fd, "posix_fallocate64"))
CALL(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), refuse_fd(fd, "writev"))
CALL(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t offset, int flags),
     (fd, parts, count, offset, flags), refuse_fd(fd, "pwritev2"))
CALL(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t offset, int flags),
     (fd, parts, count, offset, flags), refuse_fd(fd, "pwritev64v2"))
CALL(ssize_t, copy_file_range, (int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags),
     (from, from_at, to, to_at, length, flags), refuse_fd(to, "copy_file_range"))
CALL(ssize_t, splice, (int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags),
     (from, from_at, to, to_at, length, flags), refuse_fd(to, "splice"))
CALL(ssize_t, sendfile, (int to, int from, off_t *at, size_t length), (to, from, at, length), refuse_fd(to, "sendfile"))
CALL(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t length), (to, from, at, length),
     refuse_fd(to, "sendfile64"))
CALL(int, syncfs, (int fd), (fd), refuse_fd(fd, "syncfs")) /* stricter than what is recorded: not to be relied on */
CALL(int, mkstemp, (char *path), (path), refuse_path(AT_FDCWD, path, "mkstemp"))
CALL(int, mkostemp, (char *path, int flags), (path, flags), refuse_path(AT_FDCWD, path, "mkostemp"))
CALL(char *, mkdtemp, (char *path), (path), refuse_path(AT_FDCWD, path, "mkdtemp"))

static void refuse_stdio(const char *path, const char *mode)
{
	if (strpbrk(mode, "wa+") != NULL)
		refuse_path(AT_FDCWD, path, "fopen for writing");
}

CALL(FILE *, fopen, (const char *path, const char *mode), (path, mode), refuse_stdio(path, mode))
CALL(FILE *, fopen64, (const char *path, const char *mode), (path, mode), refuse_stdio(path, mode))
CALL(FILE *, fdopen, (int fd, const char *mode), (fd, mode),
     strpbrk(mode, "wa+") == NULL ? (void)0 : refuse_fd(fd, "fdopen for writing"))

/* What open() becomes where its flags are not known to the compiler, and mode is not given: so it can't create. */
static void refuse_truncation(int at_fd, const char *path, int flags)
{
	if ((flags & O_TRUNC) != 0)
		refuse_path(at_fd, path, "open with O_TRUNC and without O_CREAT");
}

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int at_fd, const char *path, int flags);
int __openat64_2(int at_fd, const char *path, int flags);
CALL(int, __open_2, (const char *path, int flags), (path, flags), refuse_truncation(AT_FDCWD, path, flags))
CALL(int, __open64_2, (const char *path, int flags), (path, flags), refuse_truncation(AT_FDCWD, path, flags))
CALL(int, __openat_2, (int at_fd, const char *path, int flags), (at_fd, path, flags),
     refuse_truncation(at_fd, path, flags))
CALL(int, __openat64_2, (int at_fd, const char *path, int flags), (at_fd, path, flags),
     refuse_truncation(at_fd, path, flags))

static bool is_shared_memory_of_sqlite(int fd)
{
	char link[64], path[PATH_MAX];
	ssize_t length;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path));
	return length > 4 && memcmp(path + length - 4, "-shm", 4) == 0;
}

static void refuse_mapping(int protection, int flags, int fd)
{
	if ((protection & PROT_WRITE) != 0 && (flags & MAP_SHARED) != 0 && fd >= 0 && !is_shared_memory_of_sqlite(fd))
		refuse_fd(fd, "a shared writable mapping");
}

CALL(void *, mmap, (void *at, size_t length, int protection, int flags, int fd, off_t offset),
     (at, length, protection, flags, fd, offset), refuse_mapping(protection, flags, fd))
CALL(void *, mmap64, (void *at, size_t length, int protection, int flags, int fd, off64_t offset),
     (at, length, protection, flags, fd, offset), refuse_mapping(protection, flags, fd))

/* ---- ends ---- */

/* Not between a call of another thread and its record. */
void _exit(int status)
{
	(void)pthread_mutex_lock(&order);
	REAL(_exit)(status);
	__builtin_unreachable();
}

/* ---- what was said ---- */

void preload_record_note(const char *text);
void preload_record_note(const char *text)
{
	(void)pthread_mutex_lock(&order);
	record((struct power_log_head){.kind = POWER_NOTE, .data_bytes = strlen(text)}, NULL, text);
	(void)pthread_mutex_unlock(&order);
}

int fclose(FILE *file)
{
	bool is_said = file == stdout && getenv("RECORD_FOLDER") != NULL;
	int result, code;

	(void)pthread_mutex_lock(&order);
	result = REAL(fclose)(file);
	code = errno;
	if (result == 0 && is_said)
		record((struct power_log_head){.kind = POWER_SAID}, NULL, NULL);
	(void)pthread_mutex_unlock(&order);
	errno = code;
	return result;
}
