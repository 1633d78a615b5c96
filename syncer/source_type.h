/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a place that somebody else knows how to read: a logical volume, for instance.
 */
#ifndef WHERRY_SYNCER_SOURCE_TYPE_H
#define WHERRY_SYNCER_SOURCE_TYPE_H

#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/source_disk.h"

enum { SOURCE_TYPE_BYTES = 32 };

/*
 * libblkid's name of it ("ext4", "swap"), by the rules that partitions' types are found by; "" if unknown. `read` is
 * called in this thread, for ranges inside of size_bytes. -ENOMEM, or what `read` fails with, unless that is a bad
 * place (-EIO, -EBADMSG), where nothing is known then.
 */
int source_type_of(int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes,
			       struct failure *failure),
		   void *opaque, uint64_t size_bytes, uint32_t sector_bytes, char ret_type[SOURCE_TYPE_BYTES],
		   struct failure *failure);

/* The same, with all that is known of a partition besides: `number` is 0, and it begins at 0. */
int source_describe(int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure), void *opaque,
		    uint64_t size_bytes, uint32_t sector_bytes, struct disk_partition *ret_partition, struct failure *failure);

#endif
