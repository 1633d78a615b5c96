/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content of a store as a source, so that what is known about sources (where the partitions are) can be asked about an
 * image, too.
 */
#ifndef WHERRY_SYNCER_SOURCE_VIEW_H
#define WHERRY_SYNCER_SOURCE_VIEW_H

#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/source.h"

/*
 * A source over a view, which is borrowed and must outlive it. Reads are done when they are submitted. Nobody else
 * changes what it reads: it is never in use, never mounted, has no change stamp. Released by source_close(). -ENOMEM.
 */
int source_view_open(struct store_view *view, struct source **ret_source, struct failure *failure);

/*
 * The range that a reference names: partition `number` of the disk in the view, or all of it for 0. -ENOENT says which
 * partitions there are. -EBADMSG: the partition table can't be read because the store is damaged there.
 */
int source_view_find_partition(struct store_view *view, uint32_t number, uint64_t *ret_off_bytes,
			       uint64_t *ret_len_bytes, struct failure *failure);

#endif
