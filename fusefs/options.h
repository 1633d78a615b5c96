/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of wherryfs, as mount(8) and people give it.
 */
#ifndef WHERRY_FUSEFS_OPTIONS_H
#define WHERRY_FUSEFS_OPTIONS_H

#include <stdbool.h>

#include "fusefs/tree.h"

struct fs_options {
	struct tree_options tree; /* but for notices */
	char *store_path;	  /* owned, like the other texts here; absolute */
	char *mount_point;	  /* as given */
	char *only, *root;
	char *passed; /* options for libfuse and the kernel, separated by commas, "" if none */
	bool allow_other;
	bool foreground;
	bool wants_help, wants_version;
};

/* -EINVAL says what is wrong with it. With wants_help or wants_version the rest isn't looked at. Caller frees with
 * fs_options_free(). */
int fs_options_parse(int argc, char **argv, struct fs_options *ret_options, struct failure *failure);
void fs_options_free(struct fs_options *options);

void fs_options_print_help(void);

#endif
