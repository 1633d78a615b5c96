/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherryfs, as the verbs `fs` and `mount` start it.
 */
#ifndef WHERRY_TOOLS_FS_SERVER_H
#define WHERRY_TOOLS_FS_SERVER_H

#include <stdbool.h>

#include "common/failure.h"

struct fs_server {
	const char *store;
	const char *directory;
	const char *options; /* as -o takes them; NULL: none */
	int alive_fd;	     /* a descriptor that it keeps open as long as it lives; -1: none */
};

/* Whether it can be started: -ENOENT: the program is missing; -ENODEV: this kernel has no FUSE, or its module can't be loaded. */
int fs_server_check(struct failure *failure);

/* Starts it in the background; when this returns 0, it is mounted. What it says otherwise is the failure's message. */
int fs_server_start(const struct fs_server *server, struct failure *failure);

/*
 * Its command line: the program, its arguments, NULL; for who becomes it. Caller frees with fs_server_free_words(). NULL: out of memory.
 */
char **fs_server_words(const struct fs_server *server, bool is_foreground);
void fs_server_free_words(char ***words);

#endif
