/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What LVM's text means: the volumes of a group, down to the bytes of physical volumes they lie on. Runs in the worker (worker/lvm_main.c).
 */
#ifndef WHERRY_FSREADER_LVM_GROUP_H
#define WHERRY_FSREADER_LVM_GROUP_H

#include <stdbool.h>

#include "fsreader/lvm.h"
#include "fsreader/lvm_text.h"

enum { LVM_MOST_SEGMENTS = 1 << 20, LVM_MOST_VOLUMES = 1 << 16, LVM_MOST_DEPTH = 8 };

/* Physical volumes that are there: which leg of a mirror is read depends on it. */
struct lvm_present {
	size_t count;
	const char (*uuids)[LVM_UUID_BYTES];
};

/*
 * Reads the group that a text describes. `source` of its pvs stays NULL, and their missing_count counts those that are not present. Caller frees with
 * lvm_group_free(). -EINVAL: not such a text; -E2BIG: a limit; -ENOMEM. What is wrong with a single volume is its `problem`.
 */
int lvm_group_read(const struct lvm_text *text, const struct lvm_present *present, struct lvm_group **ret_group,
		   struct failure *failure);
void lvm_group_empty(struct lvm_group *group); /* frees what it holds */
void lvm_group_free(struct lvm_group *group);  /* and itself; NULL is fine */

bool lvm_name_is_valid(const char *name);
bool lvm_uuid_is_valid(const char *uuid);

#endif
