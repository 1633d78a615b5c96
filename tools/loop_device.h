/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loop devices: a file as a block device.
 *
 * One that is made here is freed by the kernel when its last user has gone: the descriptor that is returned, or what is mounted from it. So
 * nobody has to take it away, whoever is killed when.
 */
#ifndef WHERRY_TOOLS_LOOP_DEVICE_H
#define WHERRY_TOOLS_LOOP_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"

enum { LOOP_NODE_BYTES = 32 };

/* -ENODEV: this kernel has none, or its module can't be loaded. -EACCES: only root has them. */
int loop_device_check(struct failure *failure);

struct loop_file {
	int fd;			       /* open for what the device is to be open for; borrowed for the call */
	const char *name;	       /* for people */
	uint64_t off_bytes, len_bytes; /* the part of it that the device has; 0, 0: all of it */
};
/* Root. */
int loop_device_attach(const struct loop_file *file, int *ret_fd, char ret_node[LOOP_NODE_BYTES], struct failure *failure);

/* Whether it has a file of another name by now: what was free may be somebody else's. False where that can't be told, as when its file's server is dead. */
bool loop_device_is_of_another(const char *node, const char *name);

#endif
