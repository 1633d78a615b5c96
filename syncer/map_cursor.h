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
#include <stddef.h>
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

/*
 * Tells the store ahead what is going to be read, where that pays. One for each thread; zeroed at first.
 *
 * Announcing chunks costs a look-up for each, a third of the time that reading takes when all of it is in the page
 * cache. Where reading waits for a disk it is what keeps the disk busy. So it is done for a while after reading was
 * slow.
 */
struct read_pace {
	double began_at_seconds;
	unsigned announce_for; /* so many more batches */
};

/* Around each batch of reads: entries of 0 are none, len_bytes is what was read. */
void read_pace_begin(struct read_pace *pace, struct store_view *view, const store_chunk *chunks, size_t count);
void read_pace_end(struct read_pace *pace, uint64_t len_bytes);

#endif
