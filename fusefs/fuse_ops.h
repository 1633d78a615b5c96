/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libfuse calls, for a tree. The only files that know FUSE are these and session.c.
 */
#ifndef WHERRY_FUSEFS_FUSE_OPS_H
#define WHERRY_FUSEFS_FUSE_OPS_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <stdatomic.h>

#include "fusefs/tree.h"

/* The session's user data. */
struct fuse_mount {
	struct tree *tree;
	struct fuse_session *session;
	bool kernel_checks_modes;		 /* default_permissions */
	bool kernel_checks_acls;		 /* and those of files in images as well */
	void (*ready)(struct fuse_mount *mount); /* the kernel has said hello: it is mounted */
	void (*used)(struct fuse_mount *mount);	 /* called once, when somebody opens a file for the first time */
	void *opaque;
	atomic_flag is_used;
};

extern const struct fuse_lowlevel_ops fuse_mount_ops;

#endif
