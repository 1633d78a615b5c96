/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The partitions of what is in a store already, by number.
 */
#ifndef WHERRY_SYNCER_SOURCE_PARTITION_H
#define WHERRY_SYNCER_SOURCE_PARTITION_H

#include <stdint.h>

#include "common/failure.h"
#include "syncer/source.h"

/*
 * The range of partition `number`. -ENOENT says which partitions there are. To who looks for a partition table a
 * damaged chunk is a bad sector, and a disk with bad sectors where its table should be is one without a table:
 * `damage`, which the source sets while it is looked at, is what is said then instead.
 */
int source_partition_find(struct source *source, uint32_t number, const struct failure *damage, uint64_t *ret_off_bytes,
			  uint64_t *ret_len_bytes, struct failure *failure);

#endif
