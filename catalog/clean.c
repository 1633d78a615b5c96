/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What clean-up needs to know and to change: which segments are mostly dead, chunks that nothing refers to, and where
 * records have gone.
 *
 * Segments with little alive are found by an index of just those, so that a clean-up of a large store in which nothing died costs
 * one look (R9). A chunk is dropped, or its record moved, in a transaction that has looked at its references: whoever refers to it again does that
 * in a transaction too, so that one of the two sees the other.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

/* ---- segments ---- */

int catalog_segment_list_sparse(struct catalog *catalog, uint64_t least_dead_bytes,
				const struct catalog_sparse_position *after, size_t most,
				struct catalog_segment **ret_list, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_SEGMENT_SPARSE, failure);
	AUTO_FREE struct catalog_segment *list = calloc(most, sizeof(*list));
	size_t count = 0;
	int result;

	assert(!catalog->in_transaction && most > 0);
	if (query == NULL)
		return catalog->statement_error;
	if (list == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	bind_u64(query, 1, least_dead_bytes);
	bind_u64(query, 2, after->live_bytes);
	bind_u64(query, 3, after->number);
	bind_u64(query, 4, most);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
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

int catalog_segment_remove(struct catalog *catalog, uint32_t number, struct failure *failure)
{
	STATEMENT *delete = catalog_statement(catalog, ST_SEGMENT_DELETE, failure);
	int result;

	assert(catalog->in_transaction);
	if (delete == NULL)
		return catalog->statement_error;
	result = segment_live_flush(catalog, failure);
	if (result < 0)
		return result;
	bind_u64(delete, 1, number);
	return catalog_run_one(catalog, delete, "segment", failure);
}

/* ---- chunks ---- */

int digest_forget(struct catalog *catalog, uint64_t tag, uint64_t chunk, struct failure *failure)
{
	STATEMENT *delete = catalog_statement(catalog, ST_DIGEST_DELETE, failure);
	int result;

	if (delete == NULL)
		return catalog->statement_error;
	result = new_digests_flush(catalog, failure);
	if (result < 0)
		return result;
	bind_u64(delete, 1, tag);
	bind_u64(delete, 2, chunk);
	return catalog_run(catalog, delete, failure);
}

int catalog_chunk_drop(struct catalog *catalog, uint64_t chunk, struct failure *failure)
{
	struct chunk_page *page;
	struct catalog_location *location = NULL;
	bool was_lost;
	int result = chunk_at(catalog, chunk, &page, &location, failure);

	assert(catalog->in_transaction);
	if (result < 0)
		return result;
	if (location->stored_bytes == 0 || location->references > 0)
		return fail(failure, -EBADMSG, "catalog %s: chunk %llu is not one to drop; the catalog is damaged",
			    catalog->path, (unsigned long long)chunk);
	result = lost_forget(catalog, chunk, &was_lost, failure);
	if (result == 0 && !was_lost)
		result = digest_forget(catalog, location->tag, chunk, failure);
	if (result < 0)
		return result;
	*location = (struct catalog_location){.tag = 0};
	page->is_dirty = true;
	return 0;
}

/* ---- logs ---- */

int catalog_log_at(struct catalog *catalog, uint32_t segment, uint32_t off_bytes, struct catalog_log_entry *ret_entry,
		   struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOG_AT, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_u64(query, 1, segment);
	bind_u64(query, 2, off_bytes);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_log_entry(catalog, query, ret_entry, failure);
}

static int log_get(struct catalog *catalog, int64_t disk, uint64_t sequence, struct catalog_log_entry *ret_entry,
		   struct failure *failure)
{
	AUTO_FREE struct catalog_log_entry *list = NULL;
	size_t count = 0;
	int result = catalog_log_list(catalog, disk, sequence, 1, &list, &count, failure);

	if (result < 0)
		return result;
	if (count == 0 || list[0].sequence != sequence)
		return fail(failure, -EBADMSG, "catalog %s: log entry %llu of disk %lld is missing; the catalog is damaged",
			    catalog->path, (unsigned long long)sequence, (long long)disk);
	*ret_entry = list[0];
	return 0;
}

int catalog_log_relocate(struct catalog *catalog, const struct catalog_log_entry *entry, struct failure *failure)
{
	STATEMENT *update = catalog_statement(catalog, ST_LOG_RELOCATE, failure);
	struct catalog_log_entry before = {.segment = 0};
	int64_t bytes;
	int result;

	assert(catalog->in_transaction);
	if (update == NULL)
		return catalog->statement_error;
	result = log_get(catalog, entry->disk, entry->sequence, &before, failure);
	if (result < 0)
		return result;
	(void)sqlite3_bind_int64(update, 1, entry->disk);
	bind_u64(update, 2, entry->sequence);
	bind_u64(update, 3, entry->segment);
	bind_u64(update, 4, entry->off_bytes);
	result = catalog_run_one(catalog, update, "log", failure);
	bytes = (int64_t)catalog_record_bytes(before.stored_bytes);
	if (result == 0)
		result = segment_live_add(catalog, before.segment, -bytes, failure);
	if (result == 0)
		result = segment_live_add(catalog, entry->segment, bytes, failure);
	return result;
}

/* ---- where chunks are ---- */

int catalog_chunk_relocate(struct catalog *catalog, uint64_t chunk, const struct catalog_location *to, struct failure *failure)
{
	struct chunk_page *page;
	struct catalog_location *location = NULL;
	int result = chunk_at(catalog, chunk, &page, &location, failure);

	assert(catalog->in_transaction && to->stored_bytes > 0 && to->stored_bytes <= STORED_MOST_BYTES &&
	       to->off_bytes % 8 == 0);
	if (result < 0)
		return result;
	if (location->stored_bytes == 0)
		return fail(failure, -EBADMSG, "catalog %s: chunk %llu is not there to be moved; the catalog is damaged",
			    catalog->path, (unsigned long long)chunk);
	if (location->references > 0) {
		result = segment_live_add(catalog, location->segment, -(int64_t)catalog_record_bytes(location->stored_bytes),
					  failure);
		if (result == 0)
			result = segment_live_add(catalog, to->segment, (int64_t)catalog_record_bytes(to->stored_bytes), failure);
	}
	if (result < 0)
		return result;
	location->segment = to->segment;
	location->off_bytes = to->off_bytes;
	location->stored_bytes = to->stored_bytes;
	page->is_dirty = true;
	return 0;
}
