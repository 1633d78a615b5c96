/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the map page by page. A page comes from the catalog, which may have been damaged as any file may, so entries of
 * a kind that can't be, and chunks without a name, are errors here and not zeros.
 */
#include "syncer/map_cursor.h"

#include <errno.h>
#include <inttypes.h>

#include "common/units.h"

/* Slower than any processor decompresses, faster than a disk that seeks. */
#define SLOW_BYTES_PER_SECOND (64.0 * 1024 * 1024)

enum { ANNOUNCE_FOR = 32 };

void map_cursor_init(struct map_cursor *cursor, struct store_view *view)
{
	cursor->view = view;
	cursor->size_bytes = store_view_size(view);
	cursor->chunk_bytes = store_chunk_bytes(store_view_store(view));
	cursor->page = UINT64_MAX;
}

static int load_page(struct map_cursor *cursor, uint64_t page, struct failure *failure)
{
	int error;

	if (cursor->page == page)
		return 0;
	cursor->page = UINT64_MAX;
	error = store_view_map(cursor->view, page, &cursor->map, failure);
	if (error == 0)
		cursor->page = page;
	return error;
}

static int check_entry(const struct map_cursor *cursor, const struct store_map_entry *entry, uint64_t index,
		       struct failure *failure)
{
	if (entry->kind == STORE_MAP_NOTHING || entry->kind == STORE_MAP_ZERO)
		return 0;
	if (entry->kind == STORE_MAP_CHUNK && entry->chunk != 0)
		return 0;
	return fail(failure, -EBADMSG, "%s: chunk %" PRIu64 ": the map says what can't be (kind %u)",
		    store_view_name(cursor->view), index, entry->kind);
}

int map_cursor_get(struct map_cursor *cursor, uint64_t index, store_chunk *ret_chunk, struct failure *failure)
{
	const struct store_map_entry *entry = &cursor->map.entries[index % STORE_MAP_PAGE_ENTRIES];
	int error = load_page(cursor, index / STORE_MAP_PAGE_ENTRIES, failure);

	if (error == 0)
		error = check_entry(cursor, entry, index, failure);
	if (error < 0)
		return error;
	*ret_chunk = entry->kind == STORE_MAP_CHUNK ? entry->chunk : 0;
	return 0;
}

/* Within the page of `from`. *ret_index is the end of that page when nothing was found. */
static int search_page(struct map_cursor *cursor, uint64_t from, uint64_t *ret_index, struct failure *failure)
{
	uint64_t page_end = (from / STORE_MAP_PAGE_ENTRIES + 1) * STORE_MAP_PAGE_ENTRIES;
	store_chunk chunk = 0;

	for (; from < page_end; from++) {
		int error = map_cursor_get(cursor, from, &chunk, failure);

		if (error < 0)
			return error;
		if (chunk != 0)
			break;
	}
	*ret_index = from;
	return 0;
}

int map_cursor_next(struct map_cursor *cursor, uint64_t from, uint64_t end, uint64_t *ret_index,
		    struct failure *failure)
{
	while (from < end) {
		uint64_t page = from / STORE_MAP_PAGE_ENTRIES;
		int error = 0;

		if (page != cursor->page)
			error = store_view_next_page(cursor->view, page, &page, failure);
		if (error < 0)
			return error;
		if (page >= UINT64_MAX / STORE_MAP_PAGE_ENTRIES)
			break;
		if (from < page * STORE_MAP_PAGE_ENTRIES)
			from = page * STORE_MAP_PAGE_ENTRIES;
		if (from >= end)
			break;
		error = search_page(cursor, from, &from, failure);
		if (error < 0)
			return error;
		if (from / STORE_MAP_PAGE_ENTRIES == page)
			break;
	}
	*ret_index = from < end ? from : end;
	return 0;
}

uint32_t map_cursor_length(const struct map_cursor *cursor, uint64_t index)
{
	uint64_t left_bytes = cursor->size_bytes - index * cursor->chunk_bytes;

	return left_bytes < cursor->chunk_bytes ? (uint32_t)left_bytes : cursor->chunk_bytes;
}

int map_cursor_read(const struct map_cursor *cursor, struct store_scratch *scratch, store_chunk chunk, uint64_t index,
		    bool deep, void *plain, struct failure *failure)
{
	struct failure cause = {.code = 0};
	uint32_t len_bytes = map_cursor_length(cursor, index);
	int error = store_view_read_chunk(cursor->view, scratch, chunk, plain, len_bytes, deep, &cause);

	if (error == -EBADMSG)
		return fail(failure, error, "%s: %" PRIu32 " bytes at %" PRIu64 " are damaged: %s",
			    store_view_name(cursor->view), len_bytes, index * cursor->chunk_bytes, cause.message);
	if (error < 0)
		(void)fail_from(failure, &cause);
	return error;
}

void read_pace_begin(struct read_pace *pace, struct store_view *view, const store_chunk *chunks, size_t count)
{
	if (pace->announce_for > 0) {
		pace->announce_for--;
		store_view_prefetch(view, chunks, count);
	}
	pace->began_at_seconds = units_monotonic_seconds();
}

void read_pace_end(struct read_pace *pace, uint64_t len_bytes)
{
	double took_seconds = units_monotonic_seconds() - pace->began_at_seconds;

	if (took_seconds * SLOW_BYTES_PER_SECOND > (double)len_bytes)
		pace->announce_for = ANNOUNCE_FOR;
}
