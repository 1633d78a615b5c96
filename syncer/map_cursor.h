/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks the map of a view: which chunk is at which place of the disk, and where the next one is. Keeps one page, so
 * walking forward asks the store once a page, and skips what was never written at no cost.
 *
 * One thread at a time.
 */
#ifndef WHERRY_SYNCER_MAP_CURSOR_H
#define WHERRY_SYNCER_MAP_CURSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"

struct map_cursor {
	struct store_view *view; /* borrowed */
	uint64_t size_bytes;
	uint32_t chunk_bytes;
	uint64_t page; /* the one in `map`; UINT64_MAX: none */
	struct store_map_page map;
};

void map_cursor_init(struct map_cursor *cursor, struct store_view *view);

/* The chunk at index `index` of the disk; 0 where it reads as zeros. -EBADMSG: the map is damaged. */
int map_cursor_get(struct map_cursor *cursor, uint64_t index, store_chunk *ret_chunk, struct failure *failure);

/* The first index >= from at which there is a chunk; `end` when there is none below it. */
int map_cursor_next(struct map_cursor *cursor, uint64_t from, uint64_t end, uint64_t *ret_index,
		    struct failure *failure);

/* How long the chunk at `index` is on this disk: chunk_bytes, less for the last one. */
uint32_t map_cursor_length(const struct map_cursor *cursor, uint64_t index);

/*
 * Reads that chunk, and says whose it is and where when it is damaged: -EBADMSG. Needs nothing of the cursor that
 * walking changes: any thread, each with a scratch of its own.
 */
int map_cursor_read(const struct map_cursor *cursor, struct store_scratch *scratch, store_chunk chunk, uint64_t index,
		    bool deep, void *plain, struct failure *failure);

#endif
