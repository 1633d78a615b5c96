/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who else uses a block device or a file at this moment, as far as the kernel
 * tells, and whether it changed between two moments.
 *
 * Every call looks anew: mounts come and go. An object is named by an open
 * descriptor, so that the answer is about what is read, whatever its path means
 * by now.
 */
#ifndef WHERRY_SYNCER_DEVICE_USE_H
#define WHERRY_SYNCER_DEVICE_USE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"

/* What counts as use. */
enum device_use_kind {
	DEVICE_USE_CHANGES, /* something may write: mounted read-write, swap, open for writing in QEMU */
	DEVICE_USE_MOUNTED, /* a file system is mounted, read-only too; swap doesn't count */
	DEVICE_USE_BUSY	    /* overwriting would destroy something: any mount, swap, device on top of it, lock */
};

/*
 * `fd` is open for reading on a block device or a regular file called `name` in messages. The range
 * [off, off + len) is what is asked about; 0 and UINT64_MAX stand for all of it. What can't be told counts as use.
 * `ret_why` says it in words and is the caller's to free; NULL when there is no use. It may be NULL itself.
 * -ENOMEM is all that can fail.
 */
int device_use_find(int fd, const char *name, enum device_use_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		    bool *ret_found, char **ret_why, struct failure *failure);

/* See source_change_stamp(). `size_bytes` is the size now. */
int device_use_change_stamp(int fd, const char *name, uint64_t size_bytes, char **ret_stamp, struct failure *failure);

/*
 * What tells this device or file from others, and does so again after a reboot where the hardware allows it: see
 * source_info.identity. Caller frees; NULL when there is no memory.
 */
char *device_use_identity(int fd, const char *path);

#endif
