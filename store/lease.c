/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases on flock().
 *
 * Why flock() and not fcntl(): the lock belongs to the open file description, so that two views in one process
 * are kept apart like two processes are, and closing some other descriptor of the file lets go of nothing.
 *
 * Three races, and how each ends:
 *
 *   removed under us   A opens the file, B (its holder) removes and releases it, A locks a file that has no name any
 *                      more; C makes a new one and locks that. Both would hold "the" lease. So whoever has the lock
 *                      compares its file with the one that has the name now, and starts over when they differ. A holder
 *                      removes the name before it lets go, so a name seen under the lock is the one that counts.
 *   looked at          lease_is_held() can only find out by trying, and holds the lock for an instant where it is free.
 *                      Whoever wants it in this instant tries again a moment later before it gives up.
 *   not written yet    The line that names the holder is written after the lock is taken. Whoever finds the lease taken
 *                      before that reads an empty file, and knows no name. A holder that is killed leaves its line; it
 *                      is read only while an exclusive lock is held, so it can name the dead one only until the next
 *                      holder has written its own. What shared holders stand on is never read.
 *
 * A file is left in place when it is released: removing and making files that somebody may be about to lock is what the
 * first race is about, and only what is gone for good (an image) is worth it.
 */
#include "store/lease.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/own_file.h"

enum {
	HOLDER_MOST_BYTES = 1024,
	TAKE_TRIES = 6, /* 31 ms: a look that lost its processor in the wrong moment is over by then */
	LOOK_TRIES = 3, /* 3 ms: two looks that meet all the same are wrong for a moment, and harm nothing */
	HOST_NAME_BYTES = 256,
};

/* ---- the lock ---- */

static int try_lock(int fd, int operation)
{
	while (flock(fd, operation | LOCK_NB) != 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* Tries again after 1, 2, 4 ... milliseconds, up to `tries` times in all. */
static int try_lock_patiently(int fd, int operation, unsigned int tries)
{
	struct timespec pause = {.tv_nsec = 1000000};
	int result = try_lock(fd, operation);

	while (result == -EWOULDBLOCK && --tries > 0) {
		(void)nanosleep(&pause, NULL); /* interrupted: tried a little earlier */
		pause.tv_nsec *= 2;
		result = try_lock(fd, operation);
	}
	return result;
}

static void unlock(int fd)
{
	(void)flock(fd, LOCK_UN); /* not left to close(): a child that hasn't exec'ed yet may share the description */
}

/* 1 if the file that has the name now is the one we have open, 0 if not, or a negative errno. */
static int has_name(int locks_fd, const char *name, int fd)
{
	struct stat named;
	struct stat ours;

	if (fstat(fd, &ours) != 0)
		return -errno;
	if (fstatat(locks_fd, name, &named, AT_SYMLINK_NOFOLLOW) != 0)
		return errno == ENOENT ? 0 : -errno;
	return named.st_dev == ours.st_dev && named.st_ino == ours.st_ino ? 1 : 0;
}

/* ---- who has it ---- */

static void write_holder(int fd, const char *holder)
{
	char line[HOLDER_MOST_BYTES];
	int len_bytes = snprintf(line, sizeof(line) - 1, "%s", holder);

	if (len_bytes < 0)
		return;
	if ((size_t)len_bytes > sizeof(line) - 2)
		len_bytes = (int)sizeof(line) - 2;
	line[len_bytes++] = '\n';
	/* A courtesy: if the disk is full, the lease is as good without it, or with the beginning of it, which isn't
	 * read. */
	if (ftruncate(fd, 0) != 0 || pwrite(fd, line, (size_t)len_bytes, 0) != len_bytes)
		return;
}

static void erase_holder(int fd)
{
	struct stat status;

	if (fstat(fd, &status) != 0 || status.st_size == 0)
		return;
	if (ftruncate(fd, 0) != 0)
		return; /* a shared lease: open for reading only, and no line of its own in there */
}

/* The line, if it is whole; anybody may have written it, so it becomes one printable line. */
static char *read_holder(int fd)
{
	char line[HOLDER_MOST_BYTES];
	ssize_t len_bytes = pread(fd, line, sizeof(line), 0);
	char *end;

	if (len_bytes <= 0)
		return NULL;
	end = memchr(line, '\n', (size_t)len_bytes);
	if (end == NULL || end == line)
		return NULL;
	*end = '\0';
	for (char *at = line; *at != '\0'; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?';
	return strdup(line); /* NULL: unknown */
}

/* "COMMAND LINE (pid N)" of a process of this host. */
static char *describe_process(long pid)
{
	char path[64];
	char line[HOLDER_MOST_BYTES];
	char *text = NULL;
	ssize_t len_bytes;

	(void)snprintf(path, sizeof(path), "/proc/%ld/cmdline", pid);
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	len_bytes = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
	if (len_bytes <= 0)
		return asprintf(&text, "the process with pid %ld", pid) < 0 ? NULL : text;
	while (len_bytes > 0 && line[len_bytes - 1] == '\0')
		len_bytes--;
	line[len_bytes] = '\0';
	for (ssize_t i = 0; i < len_bytes; i++)
		if (line[i] == '\0') /* between arguments */
			line[i] = ' ';
		else if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	return asprintf(&text, "%s (pid %ld)", line, pid) < 0 ? NULL : text;
}

/*
 * Holders of a shared lock write no line, since they would write over each other's. The kernel knows them: /proc/locks (proc(5)) has
 * device and inode of the file that each lock is on. NULL: none of this host.
 */
static char *find_shared_holder(int fd)
{
	AUTO_FCLOSE FILE *locks = fopen("/proc/locks", "re");
	struct stat status;
	char line[256];

	if (locks == NULL || fstat(fd, &status) != 0)
		return NULL;
	while (fgets(line, sizeof(line), locks) != NULL) {
		unsigned int device_major;
		unsigned int device_minor;
		unsigned long inode;
		long pid;

		if (sscanf(line, "%*d: FLOCK %*s %*s %ld %x:%x:%lu", &pid, &device_major, &device_minor, &inode) == 4 &&
		    inode == status.st_ino && device_major == major(status.st_dev) &&
		    device_minor == minor(status.st_dev) && pid > 0)
			return describe_process(pid);
	}
	return NULL;
}

/* For a file whose lock could not be had. Where it can be shared, the holders share it, and the line isn't theirs. */
static char *find_holder(int fd)
{
	if (try_lock(fd, LOCK_SH) == 0) {
		unlock(fd);
		return find_shared_holder(fd);
	}
	return read_holder(fd);
}

char *lease_holder_text(const char *doing)
{
	char host[HOST_NAME_BYTES] = "";
	char *text = NULL;

	if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0')
		(void)snprintf(host, sizeof(host), "unknown");
	return asprintf(&text, "%s (pid %ld on host %s)", doing, (long)getpid(), host) < 0 ? NULL : text;
}

/* ---- taking and releasing ---- */

static int open_lease_file(int locks_fd, const char *name, int flags)
{
	assert(strchr(name, '/') == NULL && name[0] != '\0' && name[0] != '.');
	return own_file_open(locks_fd, name, flags, 0644);
}

static int fail_open(struct failure *failure, int code, const char *name)
{
	return code == -EBADMSG ? fail(failure, code, "lease locks/%s: " OWN_FILE_FLAW, name) :
				  fail_errno(failure, code, "lease locks/%s: open", name);
}

int lease_take(int locks_fd, const char *name, enum lease_mode mode, const char *holder, struct lease *ret_lease,
	       char **ret_holder, struct failure *failure)
{
	bool is_exclusive = mode == LEASE_EXCLUSIVE;

	for (;;) {
		AUTO_CLOSE int fd = open_lease_file(locks_fd, name, O_CREAT | (is_exclusive ? O_RDWR : O_RDONLY));
		int result;
		int named;

		if (fd == -EROFS) { /* nobody can change anything there, with a lease or without */
			*ret_lease = LEASE_NONE;
			return 0;
		}
		if (fd < 0)
			return fail_open(failure, fd, name);
		result = try_lock_patiently(fd, is_exclusive ? LOCK_EX : LOCK_SH, TAKE_TRIES);
		if (result < 0 && result != -EWOULDBLOCK)
			return fail_errno(failure, result, "lease locks/%s: lock", name);
		named = has_name(locks_fd, name, fd);
		if (named < 0)
			return fail_errno(failure, named, "lease locks/%s: stat", name);
		if (named == 0)
			continue; /* removed since we opened it */
		if (result == -EWOULDBLOCK) {
			if (ret_holder != NULL)
				*ret_holder = find_holder(fd);
			return -EWOULDBLOCK;
		}
		if (is_exclusive && holder != NULL)
			write_holder(fd, holder);
		ret_lease->fd = take_fd(&fd);
		return 0;
	}
}

void lease_release(struct lease *lease)
{
	if (lease->fd < 0)
		return;
	erase_holder(lease->fd);
	unlock(lease->fd);
	(void)close(lease->fd); /* nothing in it that matters */
	*lease = LEASE_NONE;
}

void lease_release_and_remove(int locks_fd, const char *name, struct lease *lease)
{
	if (lease->fd < 0)
		return;
	(void)unlinkat(locks_fd, name, 0); /* if it stays, it is an empty file that nobody asks for again */
	lease_release(lease);
}

int lease_is_held(int locks_fd, const char *name, bool *ret_held, char **ret_holder, struct failure *failure)
{
	AUTO_CLOSE int fd = open_lease_file(locks_fd, name, O_RDWR); /* NFS wants that for exclusive locks */
	int result;

	if (fd == -EACCES || fd == -EROFS)
		fd = open_lease_file(locks_fd, name, O_RDONLY);
	if (fd == -ENOENT) {
		*ret_held = false;
		return 0;
	}
	if (fd < 0)
		return fail_open(failure, fd, name);
	result = try_lock_patiently(fd, LOCK_EX, LOOK_TRIES);
	if (result < 0 && result != -EWOULDBLOCK)
		return fail_errno(failure, result, "lease locks/%s: lock", name);
	if (result == 0)
		unlock(fd);
	else if (ret_holder != NULL)
		*ret_holder = find_holder(fd);
	*ret_held = result == -EWOULDBLOCK;
	return 0;
}
