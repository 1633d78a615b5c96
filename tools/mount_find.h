/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which file system of a disk is meant by who asks for its files.
 */
#ifndef WHERRY_TOOLS_MOUNT_FIND_H
#define WHERRY_TOOLS_MOUNT_FIND_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "fsreader/lvm.h"
#include "store/store.h"

enum { MOUNT_VOLUME_BYTES = 2 * LVM_NAME_BYTES }; /* "VG/LV" */

struct mount_choice {
	uint32_t partition;		 /* 0: all of the disk, or a logical volume */
	char volume[MOUNT_VOLUME_BYTES]; /* "" for what is none */
	char type[32];			 /* "ext4" */
	char label[64], uuid[40];
	/* Where it is in the disk. A volume of several pieces is not in one place, and has 0, 0 here. */
	uint64_t off_bytes, len_bytes;
};

/* What is looked for. */
struct mount_wanted {
	const char *text; /* as it was typed */
	struct store_reference reference;
	const char *volume; /* "VG/LV"; NULL: none is named */
	bool writes;	    /* live content is going to be written to */
	const char *doing;
};

/*
 * What is named; else the only file system that there is, or the only one that the root of an operating system is in, for which all are
 * looked into. -ENOTUNIQ: neither, with a list of what there is. -ENODATA: what is named, or all there is, holds no files, and what it is instead. -ENOENT.
 * -EPERM: a mirror that is going to be written to. Nothing is left open.
 */
int mount_find(struct store *store, const struct mount_wanted *wanted, struct mount_choice *ret_choice, struct failure *failure);

#endif
