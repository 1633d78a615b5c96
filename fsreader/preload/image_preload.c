/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry-image.so: loaded into a program that reads file systems (LD_PRELOAD), so that what it opens as a file is an image that we read for it
 * (image_link.h). So it needs no mount, no device, no root; and nothing of it shows on the host.
 *
 *     open(IMAGE_LINK_PATH)     a descriptor of the empty file: size and position are the kernel's business
 *     read, pread from it       asked for over the socket, through a cache of LINE_BYTES lines: such programs read the same metadata again and again
 *     pwrite to it              told over the socket, and to the cache
 *     open("/dev/fuse")         the socket; mount, umount succeed and do nothing
 *
 * For a user-mode Linux besides:
 *
 *     open(IMAGE_LINK_TALK_PATH)  pread waits for a question from the socket; pwrites make up an answer, which is sent when it is whole
 *     mkstemp, open(O_TMPFILE)    IMAGE_LINK_MEMORY, which is large enough already
 *     stat, open of the initrd    IMAGE_LINK_INITRD
 *
 * All else goes to the kernel, and the sandbox. It trusts nobody and is trusted by nobody: it lives with the program that it serves.
 * Built without sanitizers, and needs nothing but the C library: it goes into programs of any kind.
 *
 * A user-mode Linux does its input and output on a process that shares its memory but isn't a thread, so nothing here
 * is thread-local but errno, which that process shares with all others; they know.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fsreader/image_link.h"

#define EXPORT __attribute__((visibility("default")))

enum { LINE_BYTES = 64 << 10, LINES = 512, MOST_FDS = 1024, PAGE_BYTES = 4096 };

enum kind { PLAIN, IMAGE, TALK, MEMORY };

static int lock;		/* of the socket and the cache: 0, or 1 when held; seldom anybody waits */
static uint64_t line_of[LINES]; /* number of the line that is there, plus 1; 0: none */
static unsigned char (*lines)[LINE_BYTES];
static unsigned char kinds[MOST_FDS]; /* of descriptors */
static uint64_t image_bytes;

static void take_lock(void)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE) != 0)
		(void)syscall(SYS_sched_yield);
}

static void drop_lock(void)
{
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

/* ---- asking ---- */

static bool receive_locked(void *buffer, size_t len_bytes, struct image_answer *ret_answer)
{
	struct iovec parts[2] = {{ret_answer, sizeof(*ret_answer)}, {buffer, len_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t received;

	do
		received = recvmsg(IMAGE_LINK_SOCKET, &message, 0);
	while (received < 0 && errno == EINTR);
	return received >= (ssize_t)sizeof(*ret_answer) &&
	       (ret_answer->error != 0 || received == (ssize_t)(sizeof(*ret_answer) + len_bytes));
}

/* IMAGE_LINK_MOST_BYTES at most, within the image. Returns an errno. */
static int ask_locked(enum image_operation operation, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	struct image_question question = {
		.off_bytes = off_bytes, .len_bytes = (uint32_t)len_bytes, .operation = operation};
	struct iovec parts[2] = {{&question, sizeof(question)}, {buffer, operation == IMAGE_WRITE ? len_bytes : 0}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	struct image_answer answer;
	ssize_t sent;

	do
		sent = sendmsg(IMAGE_LINK_SOCKET, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0 || !receive_locked(buffer, operation == IMAGE_READ ? len_bytes : 0, &answer))
		return EIO;
	return -answer.error;
}

/* ---- the image ---- */

static size_t slot_of(uint64_t number)
{
	return (size_t)(number * 0x9e3779b97f4a7c15ULL >> 32) % LINES;
}

static int read_line_locked(uint64_t number, unsigned char **ret_line)
{
	size_t slot = slot_of(number);
	uint64_t off_bytes = number * LINE_BYTES;
	size_t len_bytes = image_bytes - off_bytes < LINE_BYTES ? (size_t)(image_bytes - off_bytes) : LINE_BYTES;
	int error = 0;

	if (lines == NULL) {
		void *memory = mmap(NULL, (size_t)LINES * LINE_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			return ENOMEM;
		lines = memory;
	}
	if (line_of[slot] != number + 1) {
		line_of[slot] = 0;
		error = ask_locked(IMAGE_READ, lines[slot], len_bytes, off_bytes);
		if (error == 0)
			line_of[slot] = number + 1;
	}
	*ret_line = lines[slot];
	return error;
}

static int read_piece_locked(unsigned char *buffer, size_t len_bytes, uint64_t off_bytes)
{
	unsigned char *line;
	int error;

	if (len_bytes >= LINE_BYTES) /* content, most likely: not worth a place in the cache */
		return ask_locked(IMAGE_READ, buffer, len_bytes, off_bytes);
	error = read_line_locked(off_bytes / LINE_BYTES, &line);
	if (error == 0)
		memcpy(buffer, line + off_bytes % LINE_BYTES, len_bytes);
	return error;
}

static int write_piece_locked(unsigned char *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint64_t number = off_bytes / LINE_BYTES;
	size_t slot = slot_of(number);
	int error = ask_locked(IMAGE_WRITE, buffer, len_bytes, off_bytes);

	if (line_of[slot] == number + 1 && error == 0)
		memcpy(lines[slot] + off_bytes % LINE_BYTES, buffer, len_bytes);
	return error;
}

/* In pieces that end where lines do; of those that are whole lines, two at a time are read. */
static int move_locked(bool is_write, unsigned char *buffer, size_t len_bytes, uint64_t off_bytes,
		       size_t *ret_done_bytes)
{
	size_t done_bytes = 0;
	int error = 0;

	while (done_bytes < len_bytes && error == 0) {
		uint64_t at_bytes = off_bytes + done_bytes;
		size_t piece_bytes = LINE_BYTES - (size_t)(at_bytes % LINE_BYTES);

		if (!is_write && piece_bytes == LINE_BYTES && len_bytes - done_bytes >= IMAGE_LINK_MOST_BYTES)
			piece_bytes = IMAGE_LINK_MOST_BYTES;
		if (piece_bytes > len_bytes - done_bytes)
			piece_bytes = len_bytes - done_bytes;
		error = (is_write ? write_piece_locked : read_piece_locked)(buffer + done_bytes, piece_bytes, at_bytes);
		done_bytes += error == 0 ? piece_bytes : 0;
	}
	*ret_done_bytes = done_bytes;
	return error;
}

/* As pread(2) and pwrite(2), the end of the image included. */
static ssize_t move_image(bool is_write, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	size_t done_bytes;
	int error;

	if (off_bytes >= image_bytes)
		len_bytes = 0;
	else if (len_bytes > image_bytes - off_bytes)
		len_bytes = (size_t)(image_bytes - off_bytes);
	take_lock();
	error = move_locked(is_write, buffer, len_bytes, off_bytes, &done_bytes);
	drop_lock();
	if (error != 0 && done_bytes == 0) {
		errno = error;
		return -1;
	}
	return (ssize_t)done_bytes;
}

/* ---- talking, as a disk ---- */

/* A question is shorter than what is read; the rest is zeros. */
static ssize_t read_talk(void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	ssize_t received;

	memset(buffer, 0, len_bytes);
	if (off_bytes != IMAGE_LINK_TALK_QUESTION_BYTES) /* the kernel looks for partitions */
		return (ssize_t)len_bytes;
	do
		received = recv(IMAGE_LINK_TALK, buffer, len_bytes, 0);
	while (received < 0 && errno == EINTR);
	return received <= 0 ? -1 : (ssize_t)len_bytes;
}

static ssize_t write_talk(const void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	static unsigned char answer[IMAGE_LINK_TALK_MOST_BYTES];
	static size_t done_bytes;
	struct talk_answer head;
	size_t whole_bytes;

	if (off_bytes > sizeof(answer) || len_bytes > sizeof(answer) - off_bytes) {
		errno = EINVAL;
		return -1;
	}
	if (off_bytes == 0)
		done_bytes = 0;
	memcpy(answer + off_bytes, buffer, len_bytes);
	done_bytes += len_bytes;
	memcpy(&head, answer, sizeof(head));
	whole_bytes = sizeof(head) + (size_t)head.payload_bytes;
	if (whole_bytes <= done_bytes && whole_bytes > done_bytes - len_bytes) /* now, and not before */
		(void)send(IMAGE_LINK_TALK, answer, whole_bytes,
			   MSG_NOSIGNAL); /* who doesn't get it asks nothing more */
	return (ssize_t)len_bytes;
}

/* ---- descriptors ---- */

static enum kind kind_of(int fd)
{
	return fd < 0 || fd >= MOST_FDS ? PLAIN : (enum kind)__atomic_load_n(&kinds[fd], __ATOMIC_RELAXED);
}

static int mark(int fd, enum kind kind)
{
	if (fd >= 0 && fd < MOST_FDS)
		__atomic_store_n(&kinds[fd], (unsigned char)kind, __ATOMIC_RELAXED);
	return fd;
}

static int open_copy(int fd, enum kind kind)
{
	return mark(fcntl(fd, F_DUPFD_CLOEXEC, 0), kind);
}

static int open_image(void)
{
	struct stat status;

	if (fstat(IMAGE_LINK_FILE, &status) < 0)
		return -1;
	image_bytes = (uint64_t)status.st_size;
	return open_copy(IMAGE_LINK_FILE, IMAGE);
}

static int open_path(int folder_fd, const char *path, int flags, mode_t mode)
{
	if (strcmp(path, IMAGE_LINK_PATH) == 0)
		return open_image();
	if (strcmp(path, "/dev/fuse") == 0)
		return open_copy(IMAGE_LINK_TALK, PLAIN);
	if (strcmp(path, IMAGE_LINK_TALK_PATH) == 0)
		return open_copy(IMAGE_LINK_TALK_FILE, TALK);
	if (strcmp(path, IMAGE_LINK_INITRD_PATH) == 0)
		return open_copy(IMAGE_LINK_INITRD, PLAIN);
	if ((flags & O_TMPFILE) == O_TMPFILE)
		return open_copy(IMAGE_LINK_MEMORY, MEMORY);
	return mark((int)syscall(SYS_openat, folder_fd, path, flags, mode), PLAIN);
}

#define MODE_OF(flags, mode)                                \
	do {                                                \
		va_list arguments;                          \
		va_start(arguments, flags);                 \
		if (((flags) & (O_CREAT | O_TMPFILE)) != 0) \
			(mode) = va_arg(arguments, mode_t); \
		va_end(arguments);                          \
	} while (0)

EXPORT int open(const char *path, int flags, ...)
{
	mode_t mode = 0;

	MODE_OF(flags, mode);
	return open_path(AT_FDCWD, path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;

	MODE_OF(flags, mode);
	return open_path(AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int folder_fd, const char *path, int flags, ...)
{
	mode_t mode = 0;

	MODE_OF(flags, mode);
	return open_path(folder_fd, path, flags, mode);
}

/* What _FORTIFY_SOURCE makes of them. */
int __open_2(const char *path, int flags);
EXPORT int __open_2(const char *path, int flags)
{
	return open_path(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags);
EXPORT int __open64_2(const char *path, int flags)
{
	return open_path(AT_FDCWD, path, flags, 0);
}

EXPORT int mkstemp(char *name)
{
	(void)name;
	return open_copy(IMAGE_LINK_MEMORY, MEMORY);
}

EXPORT int mkstemp64(char *name)
{
	return mkstemp(name);
}

EXPORT int unlink(const char *path)
{
	(void)path; /* of what mkstemp() made, which has no name */
	return 0;
}

/* A user-mode Linux doesn't start without a folder for its sockets, and gets along without sockets. */
EXPORT int mkdir(const char *path, mode_t mode)
{
	(void)path, (void)mode;
	return 0;
}

EXPORT int fchmod(int fd, mode_t mode)
{
	if (kind_of(fd) == MEMORY)
		return 0;
	return (int)syscall(SYS_fchmod, fd, mode);
}

/* Locks on the image are had for the asking: nobody else has it. */
EXPORT int fcntl(int fd, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (kind_of(fd) == IMAGE && (command == F_SETLK || command == F_SETLKW))
		return 0;
	return (int)syscall(SYS_fcntl, fd, command, argument);
}

EXPORT int fcntl64(int fd, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	return fcntl(fd, command, argument);
}

EXPORT int close(int fd)
{
	(void)mark(fd, PLAIN);
	return (int)syscall(SYS_close, fd);
}

/* The files that aren't there have the sizes of those that stand for them. */
static int stat_path(const char *path, struct stat *ret_status)
{
	if (strcmp(path, IMAGE_LINK_PATH) == 0)
		return fstat(IMAGE_LINK_FILE, ret_status);
	if (strcmp(path, IMAGE_LINK_TALK_PATH) == 0)
		return fstat(IMAGE_LINK_TALK_FILE, ret_status);
	if (strcmp(path, IMAGE_LINK_INITRD_PATH) == 0)
		return fstat(IMAGE_LINK_INITRD, ret_status);
	return fstatat(AT_FDCWD, path, ret_status, 0);
}

EXPORT int stat(const char *path, struct stat *ret_status)
{
	return stat_path(path, ret_status);
}

EXPORT int stat64(const char *path, struct stat64 *ret_status)
{
	_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "the same on machines of 64 bits");
	return stat_path(path, (struct stat *)ret_status);
}

/* ---- reading and writing ---- */

static ssize_t read_fd(int fd, void *buffer, size_t len_bytes)
{
	off_t off_bytes;
	ssize_t done;

	if (kind_of(fd) != IMAGE)
		return syscall(SYS_read, fd, buffer, len_bytes);
	off_bytes = lseek(fd, 0, SEEK_CUR);
	done = off_bytes < 0 ? -1 : move_image(false, buffer, len_bytes, (uint64_t)off_bytes);
	if (done > 0)
		(void)lseek(fd, done, SEEK_CUR); /* as far as the kernel's own size of it allows: always */
	return done;
}

static ssize_t pread_fd(int fd, void *buffer, size_t len_bytes, off_t off_bytes)
{
	enum kind kind = kind_of(fd);

	if (kind == PLAIN || kind == MEMORY)
		return syscall(SYS_pread64, fd, buffer, len_bytes, off_bytes);
	if (off_bytes < 0) {
		errno = EINVAL;
		return -1;
	}
	return kind == TALK ? read_talk(buffer, len_bytes, (uint64_t)off_bytes)
			    : move_image(false, buffer, len_bytes, (uint64_t)off_bytes);
}

static ssize_t pwrite_fd(int fd, const void *buffer, size_t len_bytes, off_t off_bytes)
{
	enum kind kind = kind_of(fd);

	if (kind == PLAIN || kind == MEMORY)
		return syscall(SYS_pwrite64, fd, buffer, len_bytes, off_bytes);
	if (off_bytes < 0) {
		errno = EINVAL;
		return -1;
	}
	if (kind == TALK)
		return write_talk(buffer, len_bytes, (uint64_t)off_bytes);
	return move_image(true, (void *)buffer, len_bytes, (uint64_t)off_bytes);
}

EXPORT ssize_t read(int fd, void *buffer, size_t len_bytes)
{
	return read_fd(fd, buffer, len_bytes);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t len_bytes, off_t off_bytes)
{
	return pread_fd(fd, buffer, len_bytes, off_bytes);
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t len_bytes, off64_t off_bytes)
{
	return pread_fd(fd, buffer, len_bytes, off_bytes);
}

/*
 * The room behind `buffer` is what the compiler knows of it, and no less than `len_bytes` in a program that isn't broken;
 * a broken one is in a sandbox.
 */
ssize_t __read_chk(int fd, void *buffer, size_t len_bytes, size_t room_bytes);
EXPORT ssize_t __read_chk(int fd, void *buffer, size_t len_bytes, size_t room_bytes)
{
	return read_fd(fd, buffer, len_bytes < room_bytes ? len_bytes : room_bytes);
}

ssize_t __pread_chk(int fd, void *buffer, size_t len_bytes, off_t off_bytes, size_t room_bytes);
EXPORT ssize_t __pread_chk(int fd, void *buffer, size_t len_bytes, off_t off_bytes, size_t room_bytes)
{
	return pread_fd(fd, buffer, len_bytes < room_bytes ? len_bytes : room_bytes, off_bytes);
}

ssize_t __pread64_chk(int fd, void *buffer, size_t len_bytes, off64_t off_bytes, size_t room_bytes);
EXPORT ssize_t __pread64_chk(int fd, void *buffer, size_t len_bytes, off64_t off_bytes, size_t room_bytes)
{
	return pread_fd(fd, buffer, len_bytes < room_bytes ? len_bytes : room_bytes, off_bytes);
}

/* Through a mapping: no file may be written to in here, and memory may. */
static ssize_t write_memory(int fd, const void *buffer, size_t len_bytes)
{
	off_t off_bytes = lseek(fd, 0, SEEK_CUR), first_bytes = off_bytes / PAGE_BYTES * PAGE_BYTES;
	size_t skip_bytes = (size_t)(off_bytes - first_bytes);
	unsigned char *memory;

	if (off_bytes < 0)
		return -1;
	memory = mmap(NULL, skip_bytes + len_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, first_bytes);
	if (memory == MAP_FAILED)
		return -1;
	memcpy(memory + skip_bytes, buffer, len_bytes);
	(void)munmap(memory, skip_bytes + len_bytes);
	(void)lseek(fd, (off_t)len_bytes, SEEK_CUR); /* where it was with a write, which can't fail either */
	return (ssize_t)len_bytes;
}

EXPORT ssize_t write(int fd, const void *buffer, size_t len_bytes)
{
	if (kind_of(fd) == MEMORY)
		return write_memory(fd, buffer, len_bytes);
	return syscall(SYS_write, fd, buffer, len_bytes);
}

EXPORT ssize_t pwrite(int fd, const void *buffer, size_t len_bytes, off_t off_bytes)
{
	return pwrite_fd(fd, buffer, len_bytes, off_bytes);
}

EXPORT ssize_t pwrite64(int fd, const void *buffer, size_t len_bytes, off64_t off_bytes)
{
	return pwrite_fd(fd, buffer, len_bytes, off_bytes);
}

EXPORT int fsync(int fd)
{
	(void)fd; /* nothing that is written here outlives the program */
	return 0;
}

EXPORT int fdatasync(int fd)
{
	(void)fd;
	return 0;
}

/* Discarding is advice; who gives it is told that it isn't taken. */
EXPORT int fallocate(int fd, int mode, off_t off_bytes, off_t len_bytes)
{
	(void)fd, (void)mode, (void)off_bytes, (void)len_bytes;
	errno = EOPNOTSUPP;
	return -1;
}

EXPORT int fallocate64(int fd, int mode, off64_t off_bytes, off64_t len_bytes)
{
	return fallocate(fd, mode, off_bytes, len_bytes);
}

/* ---- privileges ---- */

/* Of programs that may be setuid: they drop what they don't have, and take it back. */
EXPORT int setresuid(uid_t real, uid_t effective, uid_t saved)
{
	(void)real, (void)effective, (void)saved;
	return 0;
}

EXPORT int setresgid(gid_t real, gid_t effective, gid_t saved)
{
	(void)real, (void)effective, (void)saved;
	return 0;
}

EXPORT int setuid(uid_t uid)
{
	(void)uid;
	return 0;
}

/* ---- mounting ---- */

/* To the mount point, which is said to be where they are: "/". */
EXPORT int chdir(const char *path)
{
	(void)path;
	return 0;
}

EXPORT int fchdir(int fd)
{
	(void)fd;
	return 0;
}

/* The mount point is to be writable, though nothing is written to it. */
EXPORT int access(const char *path, int mode)
{
	if ((mode & W_OK) != 0)
		return 0;
	return (int)syscall(SYS_faccessat, AT_FDCWD, path, mode);
}

EXPORT int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
	(void)source, (void)target, (void)type, (void)flags, (void)data;
	return 0;
}

EXPORT int umount(const char *target)
{
	(void)target;
	return 0;
}

EXPORT int umount2(const char *target, int flags)
{
	(void)target, (void)flags;
	return 0;
}
