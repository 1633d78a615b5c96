/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walking over content page by page: what chunks were, then what they are.
 *
 * Two tables in the same order are merged: `past` by (disk, page, until) and `map` by (disk, page). So whoever walks
 * has the whole history of a page in hand, one row after the other, and needs to remember no other page.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { PAGE_BITS = 40, DISK_BITS = 22 };
#define PAGES_END ((uint64_t)1 << PAGE_BITS)

/* A row of either table, decoded; the walk has one of each in hand. */
struct past_cursor {
	sqlite3_stmt *query;
	bool is_there;
	struct catalog_states states;
	struct past_page past;
};
struct map_cursor {
	sqlite3_stmt *query;
	bool is_there;
	struct catalog_states states;
	struct catalog_page page;
};

static int next_past(struct catalog *catalog, struct past_cursor *cursor, struct failure *failure)
{
	int result = catalog_step(catalog, cursor->query, failure);
	struct catalog_states *states = &cursor->states;
	const void *blob = NULL;
	size_t len_bytes = 0;
	bool bad = false;

	cursor->is_there = result == 1;
	if (result <= 0)
		return result;
	*states = (struct catalog_states){
		.disk = column_i64(cursor->query, 0, 1, ((int64_t)1 << DISK_BITS) - 1, &bad),
		.page = column_u64(cursor->query, 1, PAGES_END - 1, &bad),
		.until = (uint32_t)column_u64(cursor->query, 2, UINT32_MAX, &bad),
		.present = cursor->past.present,
		.entries = cursor->past.entries,
	};
	if (bad || states->until == 0)
		return catalog_bad_row(catalog, "past", failure);
	if (page_unseal(cursor->query, 3, PAST_PAGE_KEY(states->disk, states->page, states->until), &blob, &len_bytes) < 0 ||
	    past_page_decode(blob, len_bytes, &cursor->past) < 0) {
		states->is_bad = true;
		states->present = NULL;
		states->entries = NULL;
	}
	return 0;
}

static int next_live(struct catalog *catalog, struct map_cursor *cursor, struct failure *failure)
{
	int result = catalog_step(catalog, cursor->query, failure);
	struct catalog_states *states = &cursor->states;
	const void *blob = NULL;
	size_t len_bytes = 0;
	bool bad = false;
	int64_t key;

	cursor->is_there = result == 1;
	if (result <= 0)
		return result;
	key = column_i64(cursor->query, 0, (int64_t)1 << PAGE_BITS, INT64_MAX, &bad);
	*states = (struct catalog_states){
		.disk = key >> PAGE_BITS,
		.page = (uint64_t)key & (PAGES_END - 1),
		.entries = cursor->page.entries,
	};
	if (bad)
		return catalog_bad_row(catalog, "map", failure);
	if (page_unseal(cursor->query, 1, MAP_PAGE_KEY(key), &blob, &len_bytes) < 0 ||
	    map_page_decode(blob, len_bytes, &cursor->page) < 0) {
		states->is_bad = true;
		states->entries = NULL;
	}
	return 0;
}

/* A former state comes before the live one of the same page. */
static bool past_is_first(const struct past_cursor *past, const struct map_cursor *live)
{
	if (!past->is_there || !live->is_there)
		return past->is_there;
	if (past->states.disk != live->states.disk)
		return past->states.disk < live->states.disk;
	return past->states.page <= live->states.page;
}

static int merge(struct catalog *catalog, struct past_cursor *past, struct map_cursor *live,
		 catalog_states_visit_fn visit, void *opaque, struct failure *failure)
{
	int result = next_past(catalog, past, failure);

	if (result == 0)
		result = next_live(catalog, live, failure);
	while (result == 0 && (past->is_there || live->is_there)) {
		bool is_past = past_is_first(past, live);

		result = visit(opaque, is_past ? &past->states : &live->states);
		if (result == 0)
			result = is_past ? next_past(catalog, past, failure) : next_live(catalog, live, failure);
	}
	return result;
}

int states_walk_between(struct catalog *catalog, int64_t first_disk, uint64_t first_page, int64_t end_disk,
			uint64_t end_page, catalog_states_visit_fn visit, void *opaque, struct failure *failure)
{
	AUTO_FREE struct past_cursor *past = calloc(1, sizeof(*past));
	AUTO_FREE struct map_cursor *live = calloc(1, sizeof(*live));
	STATEMENT *past_query = catalog_statement(catalog, ST_PAST_WALK, failure);
	STATEMENT *map_query = past_query == NULL ? NULL : catalog_statement(catalog, ST_MAP_WALK, failure);
	bool ours;
	int result;

	assert(!catalog->in_transaction);
	if (map_query == NULL)
		return catalog->statement_error;
	if (past == NULL || live == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	past->query = past_query;
	live->query = map_query;
	(void)sqlite3_bind_int64(past_query, 1, first_disk);
	bind_u64(past_query, 2, first_page);
	(void)sqlite3_bind_int64(past_query, 3, end_disk);
	bind_u64(past_query, 4, end_page);
	(void)sqlite3_bind_int64(map_query, 1, first_disk << PAGE_BITS | (int64_t)first_page);
	(void)sqlite3_bind_int64(map_query, 2, (end_disk << PAGE_BITS) + (int64_t)end_page);
	result = catalog_snapshot_begin(catalog, &ours, failure);
	if (result < 0)
		return result;
	result = merge(catalog, past, live, visit, opaque, failure);
	(void)sqlite3_reset(past_query); /* a read that is not at its end would keep the snapshot open */
	(void)sqlite3_reset(map_query);
	catalog_snapshot_end(catalog, ours);
	return result;
}

int catalog_states_walk(struct catalog *catalog, int64_t disk, uint64_t first_page, uint64_t end_page,
			catalog_states_visit_fn visit, void *opaque, struct failure *failure)
{
	assert(disk > 0 && disk < (int64_t)1 << DISK_BITS);
	if (end_page > PAGES_END)
		end_page = PAGES_END;
	if (first_page >= end_page)
		return 0;
	return states_walk_between(catalog, disk, first_page, disk, end_page, visit, opaque, failure);
}
