/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a mount writes although it is read-only: the journal that it replays, the superblock that it marks. Laid over the source, in a file without a
 * name, so that all who read see what the mount sees, and the source stays as it is.
 */
#ifndef WHERRY_FSREADER_KERNEL_OVERLAY_H
#define WHERRY_FSREADER_KERNEL_OVERLAY_H

#include "fsreader/fsreader.h"

enum { OVERLAY_BLOCK_BYTES = 4096, OVERLAY_MOST_BLOCKS = 1 << 19 }; /* 2 GiB: as much as the largest journal of XFS */

struct overlay;

/* `source` is borrowed. No file is made before something is written. `scratch_dir` as in fsreader_options, copied. */
int overlay_make(const struct fsreader_source *source, const char *scratch_dir, struct overlay **ret_overlay,
		 struct failure *failure);
void overlay_free(struct overlay *overlay); /* NULL is fine */

/* Within the source. -ENOSPC: more than OVERLAY_MOST_BLOCKS. Any thread. */
int overlay_write(struct overlay *overlay, const void *data, size_t len_bytes, uint64_t off_bytes,
		  struct failure *failure);
void overlay_drop(struct overlay *overlay); /* all that was written */

/* The source with what was written over it; borrows the overlay. */
struct fsreader_source overlay_source(struct overlay *overlay);

#endif
