/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that lies: the last write to a segment (*.seg) before each fdatasync is said to have been made, and never is.
 * With it a test of durability must fail; if it doesn't, it tests nothing.
 *
 * The newest write is held back until it's known what comes after it: another write, then it's made; an fdatasync, then
 * it's forgotten. One file at a time is enough, for one process appends to one segment at a time.
 */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	int fd; /* 0: nothing is held back */
	void *data;
	size_t length;
	off_t offset;
} held;

static bool is_segment(int fd)
{
	char link[64], path[PATH_MAX];
	ssize_t length;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path));
	return length > 4 && memcmp(path + length - 4, ".seg", 4) == 0;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
	void *copy;

	if (!is_segment(fd))
		return REAL(pwrite)(fd, data, length, offset);
	copy = malloc(length == 0 ? 1 : length);
	if (copy == NULL)
		return REAL(pwrite)(fd, data, length, offset);
	memcpy(copy, data, length);
	(void)pthread_mutex_lock(&lock);
	if (held.fd != 0)
		(void)!REAL(pwrite)(held.fd, held.data, held.length, held.offset);
	free(held.data);
	held.fd = fd;
	held.data = copy;
	held.length = length;
	held.offset = offset;
	(void)pthread_mutex_unlock(&lock);
	return (ssize_t)length;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
	return pwrite(fd, data, length, offset);
}

int fdatasync(int fd)
{
	if (is_segment(fd)) {
		(void)pthread_mutex_lock(&lock);
		free(held.data);
		held.data = NULL;
		held.fd = 0;
		(void)pthread_mutex_unlock(&lock);
	}
	return REAL(fdatasync)(fd);
}
