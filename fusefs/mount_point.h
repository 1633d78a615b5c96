/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder, or file, that a tree is mounted on.
 */
#ifndef WHERRY_FUSEFS_MOUNT_POINT_H
#define WHERRY_FUSEFS_MOUNT_POINT_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/failure.h"

/*
 * Its absolute path; caller frees. A mount of ours whose server was killed is taken away first. -ENOENT: there is
 * nothing; -EBUSY: a tree is mounted there already; -ENOTCONN: something dead that isn't ours. *ret_is_folder: it is
 * one.
 */
int mount_point_prepare(const char *path, char **ret_path, bool *ret_is_folder, struct failure *failure);

/* What is mounted there, on top, is told from other mounts by the number of its device: 0 if nothing is, or not one of ours. */
dev_t mount_point_device(const char *path);

/* Takes away what is mounted there; `lazily`: from names only, while it is in use. False: it is in use, or can't be. */
bool mount_point_unmount(const char *path, bool lazily);

/* How far the kernel reads ahead there: to be called when the mount is served. Best effort, as root. */
void mount_point_set_read_ahead(const char *path, unsigned kib);

#endif
