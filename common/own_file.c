/* SPDX-License-Identifier: Apache-2.0 */
/*
 * O_NOFOLLOW refuses a symbolic link as the last part of a path, which is why only single names are taken here.
 * O_NONBLOCK keeps an open of a pipe from waiting for its other end; for plain files it means nothing. What was opened
 * is then looked at by its descriptor, so that nothing can be put in its place in between.
 */
#include "common/own_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"

int own_file_open(int folder_fd, const char *name, int flags, mode_t mode)
{
	AUTO_CLOSE int fd = -1;
	struct stat status;

	assert(strchr(name, '/') == NULL && (flags & O_TRUNC) == 0);
	do
		fd = openat(folder_fd, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, mode);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		/* ELOOP: a link. ENXIO: a pipe that nobody reads, a socket, a device that isn't there. */
		return errno == ELOOP || errno == ENXIO ? -EBADMSG : -errno;
	if (fstat(fd, &status) != 0)
		return -errno;
	return S_ISREG(status.st_mode) ? take_fd(&fd) : -EBADMSG;
}

int own_folder_open(int folder_fd, const char *name)
{
	int fd = openat(folder_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	assert(strchr(name, '/') == NULL);
	if (fd < 0)
		return errno == ELOOP || errno == ENOTDIR ? -EBADMSG : -errno;
	return fd;
}
