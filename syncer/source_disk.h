/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk of the engine (store/disk.h) as a source, so that front ends, who have it open already, find its partitions by
 * the rules that rounds and exports go by.
 */
#ifndef WHERRY_SYNCER_SOURCE_DISK_H
#define WHERRY_SYNCER_SOURCE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/disk.h"

/*
 * The range that a reference names: partition `number`, or the whole disk for 0. -ENOENT says which partitions there
 * are. -EBADMSG: the partition table can't be read because the store is damaged there.
 */
int source_disk_find_partition(struct disk *disk, uint32_t number, uint64_t *ret_off_bytes, uint64_t *ret_len_bytes,
			       struct failure *failure);

/*
 * Whether there is what a reference names, as far as that can be said for good: the disk, or the image and, as it never changes, its
 * partition; partitions of live content come and go, and are not looked for. -ENOENT says what there is instead. `doing` is who we are,
 * for who wants to delete the image at that moment.
 */
int source_disk_check_reference(struct store *store, const struct store_reference *reference, const char *doing,
				struct failure *failure);

struct disk_partition {
	uint32_t number; /* from 1; 0: the whole disk */
	uint64_t off_bytes, len_bytes;
	char type[32]; /* "ext4", "" if unknown */
	char label[64], uuid[40]; /* as the file system has them: any bytes; "" if it has none, or a longer one */
	bool holds_files;	  /* a file system, rather than swap, a volume of LVM, … */
};
/* In the table's order; none where there is no table that is understood. Caller frees with free(). */
int source_disk_list_partitions(struct disk *disk, struct disk_partition **ret_list, size_t *ret_count,
				struct failure *failure);

/*
 * What a disk holds, all in one look.
 */
struct disk_contents {
	struct disk_partition *partitions; /* as above; where there are none, perhaps one with number 0: a file system or the like on all of it */
	size_t partition_count;
	char *layout; /* the table as "sfdisk --dump" prints it of a device "disk.raw"; "" where there is none */
};
/* -EBADMSG: nothing is found, and where a table could be the store is damaged. */
int source_disk_look(struct disk *disk, struct disk_contents *ret_contents, struct failure *failure);
void disk_contents_free(struct disk_contents *contents); /* leaves it empty */

#endif
