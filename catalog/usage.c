/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks over segments and chunks, and what they add up to.
 *
 * Nothing here keeps a count that a commit would have to keep up to date: who wants a sum pays for it. A walk decodes
 * 64 chunks a row, in the order of the table, which is the order in which chunks were made.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { SEGMENTS_A_PIECE = 1024 };

int catalog_segment_list(struct catalog *catalog, uint32_t after, size_t most, struct catalog_segment **ret_list,
			 size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_SEGMENT_LIST, failure);
	AUTO_FREE struct catalog_segment *list = calloc(most, sizeof(*list));
	size_t count = 0;
	int result;

	assert(!catalog->in_transaction && most > 0); /* changes to live_bytes wait for the commit */
	if (query == NULL)
		return catalog->statement_error;
	if (list == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	bind_u64(query, 1, after);
	bind_u64(query, 2, most);
	while ((result = catalog_step(catalog, query, failure)) == 1 && count < most) {
		result = read_segment(catalog, query, &list[count], failure);
		if (result < 0)
			return result;
		count++;
	}
	if (result < 0)
		return result;
	*ret_list = take_ptr(list);
	*ret_count = count;
	return 0;
}

/* Those of a row that are in [first, end). */
static int visit_page(const struct chunk_page *page, uint64_t first, uint64_t end, catalog_chunk_visit_fn visit,
		      void *opaque)
{
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		uint64_t chunk = page->number * CATALOG_CHUNK_PAGE_ENTRIES + i;
		int result;

		if (page->chunks[i].stored_bytes == 0 || chunk < first || chunk >= end)
			continue;
		result = visit(opaque, chunk, &page->chunks[i]);
		if (result != 0)
			return result;
	}
	return 0;
}

int catalog_chunk_walk(struct catalog *catalog, uint64_t first, uint64_t end, catalog_chunk_visit_fn visit,
		       void *opaque, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_CHUNK_WALK, failure);
	AUTO_FREE struct chunk_page *page = calloc(1, sizeof(*page));
	int result;

	assert(!catalog->in_transaction); /* pages that were changed wait for the commit */
	if (query == NULL)
		return catalog->statement_error;
	if (page == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	if (first >= end)
		return 0;
	bind_u64(query, 1, first / CATALOG_CHUNK_PAGE_ENTRIES);
	bind_u64(query, 2, (end - 1) / CATALOG_CHUNK_PAGE_ENTRIES);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		const void *blob = NULL;
		size_t len_bytes = 0;
		bool bad = false;

		page->number = column_u64(query, 0, ((uint64_t)1 << 62) / CATALOG_CHUNK_PAGE_ENTRIES, &bad);
		if (bad || page_unseal(query, 1, CHUNK_PAGE_KEY(page->number), &blob, &len_bytes) < 0 ||
		    chunk_page_decode(blob, len_bytes, page) < 0)
			result = visit(opaque, page->number * CATALOG_CHUNK_PAGE_ENTRIES, NULL);
		else
			result = visit_page(page, first, end, visit, opaque);
		if (result != 0)
			return result;
	}
	return result;
}

static int add_segments(struct catalog *catalog, struct catalog_usage *usage, struct failure *failure)
{
	uint32_t after = 0;

	for (;;) {
		AUTO_FREE struct catalog_segment *list = NULL;
		size_t count;
		int result = catalog_segment_list(catalog, after, SEGMENTS_A_PIECE, &list, &count, failure);

		if (result < 0 || count == 0)
			return result;
		for (size_t i = 0; i < count; i++) {
			usage->committed_bytes += list[i].length_bytes;
			usage->live_bytes += list[i].live_bytes;
		}
		usage->segments += count;
		after = list[count - 1].number;
	}
}

static int count_if_live(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct catalog_usage *usage = opaque;

	(void)chunk;
	if (location == NULL)
		return -EBADMSG;
	usage->live_chunks += location->references > 0;
	return 0;
}

int catalog_usage(struct catalog *catalog, struct catalog_usage *ret_usage, struct failure *failure)
{
	struct catalog_usage usage = {.segments = 0};
	bool ours;
	int result = catalog_snapshot_begin(catalog, &ours, failure);

	if (result < 0)
		return result;
	result = add_segments(catalog, &usage, failure);
	if (result == 0)
		result = catalog_chunk_walk(catalog, 0, (uint64_t)1 << 62, count_if_live, &usage, failure);
	if (result == -EBADMSG)
		result = catalog_bad_row(catalog, "chunk", failure);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_usage = usage;
	return result;
}
