/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an engine of fsreader.h is: one table of functions for each. fsreader.c checks what comes in (names, inode 1),
 * calls the engine, and checks what comes out, once for all of them: names, lengths, types.
 *
 *   ext_client.c    questions to wherry-fsreader (worker/, libext2fs), over a socket
 *                   and kernel_engine: the same to a user-mode Linux with another worker in it (kernel/): what Linux knows
 *   ntfs_client.c   FUSE's own protocol to lowntfs-3g, over a socket: no mount, no /dev/fuse in the middle
 *   grub_client.c   the same to grub-mount: for where that Linux isn't installed, and for what it doesn't know
 *
 * Functions as their namesakes in fsreader.h; any thread. NULL where optional.
 */
#ifndef WHERRY_FSREADER_ENGINE_H
#define WHERRY_FSREADER_ENGINE_H

#include "fsreader/fsreader.h"

struct engine_ops {
	const char *name; /* "ext", "grub" */
	bool (*knows_type)(const char *type);
	int (*check)(const char *type, struct failure *failure); /* are its programs here? */
	int (*start)(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		     void **ret_engine, struct failure *failure);
	void (*stop)(void *engine);
	int (*getattr)(void *engine, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure);
	int (*lookup)(void *engine, uint64_t dir, const char *name, struct fsreader_attr *ret_attr,
		      struct failure *failure);
	int (*list)(void *engine, uint64_t dir, uint64_t cookie, fsreader_found *found, void *opaque,
		    struct failure *failure);
	int (*readlink)(void *engine, uint64_t ino, char **ret_target, struct failure *failure);
	int (*listxattr)(void *engine, uint64_t ino, char **ret_names, size_t *ret_len_bytes,
			 struct failure *failure); /* optional */
	int (*getxattr)(void *engine, uint64_t ino, const char *name, void **ret_value, size_t *ret_len_bytes,
			struct failure *failure); /* optional */
	int (*statfs)(void *engine, struct fsreader_statfs *ret_statfs, struct failure *failure);
	int (*open)(void *engine, uint64_t ino, void **ret_file, struct failure *failure);
	void (*close)(void *engine, void *file);
	int (*read)(void *engine, void *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		    struct failure *failure);
	int (*seek)(void *engine, void *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		    struct failure *failure); /* optional */
};

extern const struct engine_ops ext_engine, kernel_engine, ntfs_engine, grub_engine;

#endif
