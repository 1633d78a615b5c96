/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Root's is /run/wherry, which a reboot empties. Others have one in $XDG_RUNTIME_DIR, or in /tmp, where somebody else may have been there
 * first: what can be written to by others is refused, since what is noted here says what is to be unmounted, and which process to end.
 */
#include "tools/runtime_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"

int runtime_folder(char **ret_path, struct failure *failure)
{
	const char *session = getenv("XDG_RUNTIME_DIR");
	AUTO_FREE char *path = NULL;
	struct stat status;
	int length;

	if (geteuid() == 0)
		length = asprintf(&path, "/run/wherry");
	else if (session != NULL && *session == '/')
		length = asprintf(&path, "%s/wherry", session);
	else
		length = asprintf(&path, "/tmp/wherry-%u", (unsigned)geteuid());
	if (length < 0) {
		path = NULL;
		return fail(failure, -ENOMEM, "out of memory");
	}
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "%s: the folder for sockets", path);
	if (lstat(path, &status) < 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 022) != 0)
		return fail(failure, -EACCES, "%s: not a folder of ours alone, so no place for sockets; remove it", path);
	*ret_path = take_ptr(path);
	return 0;
}

int runtime_lock(const char *folder, const char *name, int *ret_fd, struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	AUTO_CLOSE int fd = -1;

	if (asprintf(&path, "%s/%s", folder, name) < 0) {
		path = NULL;
		return fail(failure, -ENOMEM, "out of memory");
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_errno(failure, -errno, "%s", path);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return fail_errno(failure, -errno, "%s: lock", path);
	*ret_fd = take_fd(&fd);
	return 0;
}
