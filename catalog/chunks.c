/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks: where each is and how many entries of maps refer to it; segments and how much of them is alive; logs.
 *
 * Chunk ids ascend in the order of commits, so a first round fills chunk pages one after the other. Changes to pages are made in a cache of a
 * transaction and written at its end: a commit of 4,096 new chunks writes 65 rows. References reach 0 when the last entry goes; the chunk stays
 * findable until clean-up takes it, so that content that comes back is not stored twice.
 *
 * The index by digest has 48 bits of it only: with 160 million chunks one look-up in two million meets a stranger, which the digest in
 * the record tells apart, and the index takes 18 bytes a chunk instead of 47. Its rows fall anywhere in a tree that is larger than any cache. Those of
 * a transaction are put in together, in the tree's order: then no page of it is read or written twice (a third less work and a third less
 * log, measured at 128 GiB of content).
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

uint64_t catalog_tag(const uint8_t digest[CATALOG_DIGEST_BYTES])
{
	uint64_t tag = 0;

	for (int i = 0; i < 6; i++)
		tag = tag << 8 | digest[i];
	return tag;
}

/* ---- segments ---- */

int catalog_segment_insert(struct catalog *catalog, uint32_t *ret_number, struct failure *failure)
{
	STATEMENT *insert = catalog_statement(catalog, ST_SEGMENT_INSERT, failure);
	int64_t number;
	int result;

	assert(catalog->in_transaction);
	result = insert == NULL ? catalog->statement_error : catalog_run(catalog, insert, failure);
	if (result < 0)
		return result;
	number = sqlite3_last_insert_rowid(catalog->db);
	if (number > UINT32_MAX)
		return fail(failure, -ENOSPC, "catalog %s: out of segment numbers", catalog->path);
	*ret_number = (uint32_t)number;
	return 0;
}

int catalog_segment_update(struct catalog *catalog, uint32_t number, uint64_t length_bytes, bool sealed,
			   struct failure *failure)
{
	STATEMENT *update = catalog_statement(catalog, ST_SEGMENT_UPDATE, failure);

	assert(catalog->in_transaction);
	if (update == NULL)
		return catalog->statement_error;
	bind_u64(update, 1, number);
	bind_u64(update, 2, length_bytes);
	bind_u64(update, 3, sealed);
	return catalog_run_one(catalog, update, "segment", failure);
}

int read_segment(struct catalog *catalog, sqlite3_stmt *row, struct catalog_segment *ret_segment,
		 struct failure *failure)
{
	bool bad = false;
	struct catalog_segment segment = {
		.number = (uint32_t)column_u64(row, 0, UINT32_MAX, &bad),
		.sealed = column_u64(row, 1, 1, &bad) != 0,
		.length_bytes = column_u64(row, 2, UINT32_MAX, &bad),
		.live_bytes = column_u64(row, 3, UINT32_MAX, &bad),
	};

	if (bad || segment.number == 0)
		return catalog_bad_row(catalog, "segment", failure);
	*ret_segment = segment;
	return 0;
}

int catalog_segment_get(struct catalog *catalog, uint32_t number, struct catalog_segment *ret_segment,
			struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_SEGMENT_GET, failure);
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	if (catalog->in_transaction)
		result = segment_live_flush(catalog, failure);
	if (result < 0)
		return result;
	bind_u64(query, 1, number);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? fail(failure, -EBADMSG, "catalog %s: segment %u is missing from it", catalog->path, number) :
				     result;
	return read_segment(catalog, query, ret_segment, failure);
}

int catalog_segment_list_open(struct catalog *catalog, struct catalog_segment **ret_list, size_t *ret_count,
			      struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_SEGMENT_OPEN, failure);
	AUTO_FREE struct catalog_segment *list = NULL;
	size_t count = 0;
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	if (catalog->in_transaction)
		result = segment_live_flush(catalog, failure);
	if (result < 0)
		return result;
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		struct catalog_segment *grown = reallocarray(list, count + 1, sizeof(*list));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "catalog");
		list = grown;
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

int segment_live_add(struct catalog *catalog, uint32_t segment, int64_t bytes, struct failure *failure)
{
	assert(catalog->in_transaction);
	if (segment == CATALOG_NO_SEGMENT)
		return 0; /* what is lost takes no room */
	for (size_t i = 0; i < catalog->live_count; i++)
		if (catalog->live_changes[i].segment == segment) {
			catalog->live_changes[i].bytes += bytes;
			return 0;
		}
	if (catalog->live_count == 256) {
		int result = segment_live_flush(catalog, failure);

		if (result < 0)
			return result;
	}
	if (catalog->live_count == catalog->live_capacity) {
		size_t capacity = catalog->live_capacity + 64;
		struct live_change *grown = reallocarray(catalog->live_changes, capacity, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "catalog");
		catalog->live_changes = grown;
		catalog->live_capacity = capacity;
	}
	catalog->live_changes[catalog->live_count++] = (struct live_change){ .segment = segment, .bytes = bytes };
	return 0;
}

int segment_live_flush(struct catalog *catalog, struct failure *failure)
{
	for (size_t i = 0; i < catalog->live_count; i++) {
		STATEMENT *update = catalog_statement(catalog, ST_SEGMENT_LIVE, failure);
		int result;

		if (update == NULL)
			return catalog->statement_error;
		bind_u64(update, 1, catalog->live_changes[i].segment);
		(void)sqlite3_bind_int64(update, 2, catalog->live_changes[i].bytes);
		result = catalog_run_one(catalog, update, "segment", failure);
		if (result < 0)
			return result;
	}
	catalog->live_count = 0;
	return 0;
}

/* ---- chunk pages ---- */

static bool chunk_page_is_empty(const struct chunk_page *page)
{
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++)
		if (page->chunks[i].stored_bytes != 0)
			return false;
	return true;
}

static int chunk_page_remove(struct catalog *catalog, struct chunk_page *page, struct failure *failure)
{
	STATEMENT *delete = catalog_statement(catalog, ST_CHUNK_DELETE, failure);
	int result;

	if (delete == NULL)
		return catalog->statement_error;
	bind_u64(delete, 1, page->number);
	result = catalog_run(catalog, delete, failure);
	if (result == 0)
		page->is_dirty = false;
	return result;
}

static int chunk_page_store(struct catalog *catalog, struct chunk_page *page, struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_CHUNK_PUT, failure);
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	int result;

	if (put == NULL)
		return catalog->statement_error;
	if (chunk_page_is_empty(page))
		return chunk_page_remove(catalog, page, failure);
	chunk_page_encode(page, &writer);
	page_seal(CHUNK_PAGE_KEY(page->number), &writer);
	if (writer.failed)
		return fail_errno(failure, -ENOMEM, "catalog");
	bind_u64(put, 1, page->number);
	(void)sqlite3_bind_blob64(put, 2, writer.data, writer.len_bytes, SQLITE_STATIC);
	result = catalog_run(catalog, put, failure);
	if (result == 0)
		page->is_dirty = false;
	return result;
}

static int chunk_page_load(struct catalog *catalog, uint64_t number, struct chunk_page *page, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_CHUNK_GET, failure);
	const void *blob = NULL;
	size_t len_bytes = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_u64(query, 1, number);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 0)
		memset(page->chunks, 0, sizeof(page->chunks));
	else if (page_unseal(query, 0, CHUNK_PAGE_KEY(number), &blob, &len_bytes) < 0 ||
		 chunk_page_decode(blob, len_bytes, page) < 0)
		return catalog_bad_row(catalog, "chunk", failure);
	page->number = number;
	page->is_loaded = true;
	page->is_dirty = false;
	return 0;
}

/* Clean pages are as good as what data_version says: another connection's commit makes them stale. */
int chunk_cache_refresh(struct catalog *catalog, struct failure *failure)
{
	int64_t version;
	int result = catalog_data_version(catalog, &version, failure);

	if (result < 0 || version == catalog->cache_version)
		return result;
	for (size_t i = 0; i < CHUNK_CACHE_SLOTS; i++) {
		assert(!catalog->chunk_cache[i].is_loaded || !catalog->chunk_cache[i].is_dirty);
		catalog->chunk_cache[i].is_loaded = false;
	}
	catalog->cache_version = version;
	catalog->knows_lost = false;
	return 0;
}

int chunk_cache_prepare(struct catalog *catalog, struct failure *failure)
{
	int result = 0;

	/* within a transaction nobody else can change anything: begin has looked; within a snapshot nothing changes for us */
	if (!catalog->in_transaction && !(catalog->in_snapshot && catalog->snapshot_has_cache))
		result = chunk_cache_refresh(catalog, failure);
	if (result == 0)
		catalog->snapshot_has_cache = catalog->in_snapshot;
	return result;
}

static int chunk_page_get(struct catalog *catalog, uint64_t number, struct chunk_page **ret_page, struct failure *failure)
{
	struct chunk_page *page = &catalog->chunk_cache[number % CHUNK_CACHE_SLOTS];
	int result = chunk_cache_prepare(catalog, failure);

	if (result < 0)
		return result;
	if (!page->is_loaded || page->number != number) {
		if (page->is_loaded && page->is_dirty)
			result = chunk_page_store(catalog, page, failure);
		if (result < 0)
			return result;
		page->is_loaded = false;
		result = chunk_page_load(catalog, number, page, failure);
		if (result < 0)
			return result;
	}
	*ret_page = page;
	return 0;
}

int chunk_cache_flush(struct catalog *catalog, struct failure *failure)
{
	for (size_t i = 0; i < CHUNK_CACHE_SLOTS; i++) {
		struct chunk_page *page = &catalog->chunk_cache[i];

		if (page->is_loaded && page->is_dirty) {
			int result = chunk_page_store(catalog, page, failure);

			if (result < 0)
				return result;
		}
	}
	return 0;
}

void chunk_cache_drop(struct catalog *catalog)
{
	for (size_t i = 0; i < CHUNK_CACHE_SLOTS; i++) {
		/* clean ones too: they may have been changed, displaced, written and read again within the transaction */
		catalog->chunk_cache[i].is_loaded = false;
		catalog->chunk_cache[i].is_dirty = false;
	}
	catalog->knows_lost = false;
}

int chunk_at(struct catalog *catalog, uint64_t chunk, struct chunk_page **ret_page,
	     struct catalog_location **ret_location, struct failure *failure)
{
	int result = chunk_page_get(catalog, chunk / CATALOG_CHUNK_PAGE_ENTRIES, ret_page, failure);

	if (result == 0)
		*ret_location = &(*ret_page)->chunks[chunk % CATALOG_CHUNK_PAGE_ENTRIES];
	return result;
}

/* Ids are never used twice: a round may hold on to one that clean-up has taken away meanwhile, and must notice. */
int chunk_next_id(struct catalog *catalog, uint64_t *ret_next, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_NEXT_CHUNK_GET, failure);
	bool bad = false;
	uint64_t next = 0;
	int result = query == NULL ? catalog->statement_error : catalog_step(catalog, query, failure);

	if (result < 0)
		return result;
	if (result == 1)
		next = column_u64(query, 0, ((uint64_t)1 << 62) - 1, &bad);
	if (bad || next == 0)
		return catalog_bad_row(catalog, "counter", failure);
	*ret_next = next;
	return 0;
}

int chunk_next_store(struct catalog *catalog, struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_NEXT_CHUNK_PUT, failure);

	if (put == NULL)
		return catalog->statement_error;
	if (catalog->next_chunk == 0)
		return 0;
	bind_u64(put, 1, catalog->next_chunk);
	return catalog_run(catalog, put, failure);
}

static int compare_new_digests(const void *a, const void *b)
{
	const struct new_digest *first = a, *second = b;

	if (first->tag != second->tag)
		return first->tag < second->tag ? -1 : 1;
	return first->chunk < second->chunk ? -1 : first->chunk > second->chunk;
}

/* In the order of the tree: each of its pages is then visited once, however many there are and however few fit into the cache. */
int new_digests_flush(struct catalog *catalog, struct failure *failure)
{
	if (catalog->new_digest_count == 0)
		return 0;
	qsort(catalog->new_digests, catalog->new_digest_count, sizeof(*catalog->new_digests), compare_new_digests);
	for (size_t i = 0; i < catalog->new_digest_count; i++) {
		STATEMENT *put = catalog_statement(catalog, ST_DIGEST_PUT, failure);
		int result;

		if (put == NULL)
			return catalog->statement_error;
		bind_u64(put, 1, catalog->new_digests[i].tag);
		bind_u64(put, 2, catalog->new_digests[i].chunk);
		result = catalog_run(catalog, put, failure);
		if (result < 0)
			return result;
	}
	catalog->new_digest_count = 0;
	return 0;
}

int digest_remember(struct catalog *catalog, uint64_t tag, uint64_t chunk, struct failure *failure)
{
	if (catalog->new_digests == NULL)
		catalog->new_digests = calloc(NEW_DIGESTS_MOST, sizeof(*catalog->new_digests));
	if (catalog->new_digests == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	if (catalog->new_digest_count == NEW_DIGESTS_MOST) {
		int result = new_digests_flush(catalog, failure);

		if (result < 0)
			return result;
	}
	catalog->new_digests[catalog->new_digest_count++] = (struct new_digest){.tag = tag, .chunk = chunk};
	return 0;
}

int catalog_chunk_add(struct catalog *catalog, const struct catalog_location *location, uint64_t *ret_chunk,
		      struct failure *failure)
{
	struct chunk_page *page;
	struct catalog_location *slot = NULL;
	int result;

	assert(catalog->in_transaction && location->stored_bytes > 0 && location->stored_bytes <= STORED_MOST_BYTES &&
	       location->off_bytes % 8 == 0 && location->tag >> 48 == 0);
	if (catalog->next_chunk == 0) {
		result = chunk_next_id(catalog, &catalog->next_chunk, failure);
		if (result < 0)
			return result;
	}
	result = chunk_at(catalog, catalog->next_chunk, &page, &slot, failure);
	if (result < 0)
		return result;
	if (slot->stored_bytes != 0)
		return fail(failure, -EBADMSG, "catalog %s: chunk %llu is there before it is made; the catalog is damaged",
			    catalog->path, (unsigned long long)catalog->next_chunk);
	*slot = *location;
	slot->references = 0;
	page->is_dirty = true;
	result = digest_remember(catalog, location->tag, catalog->next_chunk, failure);
	if (result < 0)
		return result;
	*ret_chunk = catalog->next_chunk++;
	return 0;
}

int catalog_chunk_get(struct catalog *catalog, uint64_t chunk, struct catalog_location *ret_location,
		      struct failure *failure)
{
	struct chunk_page *page;
	struct catalog_location *location = NULL;
	int result = chunk_at(catalog, chunk, &page, &location, failure);

	if (result < 0)
		return result;
	if (location->stored_bytes == 0)
		return -ENOENT;
	*ret_location = *location;
	return 0;
}

int catalog_chunk_get_page(struct catalog *catalog, uint64_t chunk,
			   struct catalog_location ret_locations[CATALOG_CHUNK_PAGE_ENTRIES], struct failure *failure)
{
	struct chunk_page *page;
	int result = chunk_page_get(catalog, chunk / CATALOG_CHUNK_PAGE_ENTRIES, &page, failure);

	if (result == 0)
		memcpy(ret_locations, page->chunks, sizeof(page->chunks));
	return result;
}

int catalog_chunk_find(struct catalog *catalog, uint64_t tag, uint64_t *ret_chunks, size_t most, size_t *ret_count,
		       struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_DIGEST_FIND, failure);
	size_t count = 0;
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	if (catalog->in_transaction)
		result = new_digests_flush(catalog, failure);
	if (result < 0)
		return result;
	bind_u64(query, 1, tag);
	bind_u64(query, 2, most);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		bool bad = false;

		ret_chunks[count++] = column_u64(query, 0, ((uint64_t)1 << 62) - 1, &bad);
		if (bad)
			return catalog_bad_row(catalog, "digest", failure);
	}
	if (result < 0)
		return result;
	*ret_count = count;
	return 0;
}

int catalog_chunk_count(struct catalog *catalog, uint64_t *ret_count, struct failure *failure)
{
	uint64_t next;
	int result = chunk_next_id(catalog, &next, failure);

	if (result < 0)
		return result;
	*ret_count = next - 1;
	return 0;
}

/* What nothing refers to is kept to be found again, but for what can't be read. */
static int drop_if_lost(struct catalog *catalog, uint64_t chunk, struct failure *failure)
{
	bool is_lost = false;
	int result = catalog_lost_has(catalog, chunk, &is_lost, failure);

	return result == 0 && is_lost ? catalog_chunk_drop(catalog, chunk, failure) : result;
}

int chunk_refer(struct catalog *catalog, uint64_t chunk, int delta, uint64_t *freed_bytes, struct failure *failure)
{
	struct chunk_page *page;
	struct catalog_location *location = NULL;
	uint64_t bytes;
	int result = chunk_at(catalog, chunk, &page, &location, failure);

	if (result < 0)
		return result;
	if (location->stored_bytes == 0 || (delta < 0 && location->references == 0) ||
	    (delta > 0 && location->references == UINT32_MAX))
		return fail(failure, -EBADMSG, "catalog %s: references to chunk %llu don't add up; the catalog is damaged",
			    catalog->path, (unsigned long long)chunk);
	bytes = chunk_record_bytes(location);
	if (delta > 0 && location->references == 0)
		result = segment_live_add(catalog, location->segment, (int64_t)bytes, failure);
	location->references += (uint32_t)delta;
	if (delta < 0 && location->references == 0) {
		result = segment_live_add(catalog, location->segment, -(int64_t)bytes, failure);
		if (freed_bytes != NULL)
			*freed_bytes += bytes;
	}
	page->is_dirty = true;
	if (result == 0 && delta < 0 && location->references == 0)
		result = drop_if_lost(catalog, chunk, failure);
	return result;
}

/* ---- logs ---- */

int catalog_log_next_disk(struct catalog *catalog, int64_t after, int64_t *ret_disk, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOG_NEXT_DISK, failure);
	bool bad = false;
	int64_t disk = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, after);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 1)
		disk = column_i64(query, 0, 1, INT64_MAX, &bad);
	if (bad)
		return catalog_bad_row(catalog, "log", failure);
	*ret_disk = disk;
	return 0;
}

int catalog_log_insert(struct catalog *catalog, const struct catalog_log_entry *entry, struct failure *failure)
{
	STATEMENT *insert = catalog_statement(catalog, ST_LOG_INSERT, failure);
	int result;

	assert(catalog->in_transaction);
	if (insert == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(insert, 1, entry->disk);
	bind_u64(insert, 2, entry->sequence);
	bind_u64(insert, 3, entry->segment);
	bind_u64(insert, 4, entry->off_bytes);
	bind_u64(insert, 5, entry->stored_bytes);
	(void)sqlite3_bind_blob(insert, 6, entry->digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	result = catalog_run(catalog, insert, failure);
	if (result < 0)
		return result;
	return segment_live_add(catalog, entry->segment, (int64_t)catalog_record_bytes(entry->stored_bytes), failure);
}

int read_log_entry(struct catalog *catalog, sqlite3_stmt *row, struct catalog_log_entry *ret_entry,
		   struct failure *failure)
{
	bool bad = false;
	struct catalog_log_entry entry = {
		.disk = column_i64(row, 0, 1, INT64_MAX, &bad),
		.sequence = column_u64(row, 1, INT64_MAX, &bad),
		.segment = (uint32_t)column_u64(row, 2, UINT32_MAX, &bad),
		.off_bytes = (uint32_t)column_u64(row, 3, UINT32_MAX, &bad),
		.stored_bytes = (uint32_t)column_u64(row, 4, UINT32_MAX / 2, &bad),
	};

	column_bytes(row, 5, entry.digest, sizeof(entry.digest), &bad);
	if (bad)
		return catalog_bad_row(catalog, "log", failure);
	*ret_entry = entry;
	return 0;
}

int catalog_log_list(struct catalog *catalog, int64_t disk, uint64_t from_sequence, size_t most,
		     struct catalog_log_entry **ret_list, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOG_LIST, failure);
	AUTO_FREE struct catalog_log_entry *list = NULL;
	size_t count = 0, capacity = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, from_sequence);
	bind_u64(query, 3, most);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		if (count == capacity) {
			size_t larger = capacity == 0 ? 64 : capacity * 2;
			struct catalog_log_entry *grown = reallocarray(list, larger, sizeof(*list));

			if (grown == NULL)
				return fail_errno(failure, -ENOMEM, "catalog");
			list = grown;
			capacity = larger;
		}
		result = read_log_entry(catalog, query, &list[count], failure);
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
