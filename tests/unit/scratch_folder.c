/* SPDX-License-Identifier: Apache-2.0 */
/* A folder of its own for a test; see scratch_folder.h. */
#include "scratch_folder.h"

#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void scratch_folder_make(struct scratch_folder *ret_folder)
{
	const char *parent = getenv("TMPDIR");

	(void)snprintf(ret_folder->path, sizeof(ret_folder->path), "%s/wherry-unit-XXXXXX",
		       parent == NULL || parent[0] == '\0' ? "/tmp" : parent);
	if (mkdtemp(ret_folder->path) == NULL)
		error(EXIT_FAILURE, errno, "%s", ret_folder->path);
	ret_folder->fd = open(ret_folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ret_folder->fd < 0)
		error(EXIT_FAILURE, errno, "%s", ret_folder->path);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *place)
{
	(void)status;
	(void)type;
	(void)place;
	return remove(path);
}

void scratch_folder_remove(struct scratch_folder *folder)
{
	enum { MOST_OPEN = 16 };

	(void)close(folder->fd);
	if (nftw(folder->path, remove_one, MOST_OPEN, FTW_DEPTH | FTW_PHYS) != 0)
		error(0, errno, "%s stays", folder->path);
}
