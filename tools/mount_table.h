/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is mounted, as the kernel says it (/proc/self/mountinfo), and names of directories that one can rely on.
 */
#ifndef WHERRY_TOOLS_MOUNT_TABLE_H
#define WHERRY_TOOLS_MOUNT_TABLE_H

#include <stdbool.h>
#include <stdio.h>

#include "common/failure.h"

struct mounted {
	char *directory;
	char *type;	       /* "ext4", "fuse.wherryfs" */
	char *source;	       /* "/dev/loop0"; of FUSE, what it calls itself */
	unsigned major, minor; /* as st_dev of the files has it; some types, btrfs among them, have numbers of their own here */
};
void mounted_free(struct mounted *mounted); /* leaves it empty */

/* What is mounted on exactly this directory, the topmost if there are several. -ENOENT: nothing; without a message. */
int mount_table_find(const char *directory, struct mounted *ret_mounted, struct failure *failure);
/* The same, of a file like mountinfo. */
int mount_table_find_in(FILE *file, const char *directory, struct mounted *ret_mounted, struct failure *failure);

/*
 * The path from the root, without links; as the mount table has it. *ret_is_dead: something is mounted there whose server has died, so that
 * nothing can be known of it. -ENOENT, -ENOTDIR and others say what is wrong with it. Caller frees.
 */
int mount_table_resolve(const char *directory, char **ret_path, bool *ret_is_dead, struct failure *failure);

/* Whether this kernel has code for a file system of this type; its module is loaded if there is one. */
bool mount_table_kernel_knows(const char *type);

#endif
