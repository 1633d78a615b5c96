/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content: what each chunk of a disk is now, and was.
 *
 * The states of one chunk over time are intervals of generations that follow each other without gaps:
 *
 *     state A        state B            state C
 *     [1, 3)         [3, 7)             [7, now
 *     in past,       in past,           in map
 *     until 3        until 7
 *
 * An image notes the generation g that was current when it was made, and the disk goes on in g + 1. It sees the interval that contains g: the one with
 * the least `until` above g, or else the live one. Invariants:
 *
 *   1. An interval that contains the generation of an alive image is never dropped.
 *   2. An interval that contains none is dropped as soon as it ends (here), or when the last such image goes (sweep.c). Its
 *      chunk loses a reference. Dropping it disturbs no other image: for those, another `until` is the least.
 *   3. A chunk's references are the entries of kind CHUNK in map and past that name it.
 *
 * So overwriting a chunk twice between two images keeps one former state, not two, whatever the number of commits.
 *
 * Pages of `map` that hold nothing are removed. The generation since which a chunk holds nothing is forgotten with them and reads as 0: that may keep an
 * entry of kind NOTHING longer than needed, and refers to no chunk.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { PAGE_BITS = 40 };

static int64_t map_key(int64_t disk, uint64_t page)
{
	assert(disk > 0 && disk < 1 << 22 && page < (uint64_t)1 << PAGE_BITS);
	return disk << PAGE_BITS | (int64_t)page;
}

int catalog_map_read(struct catalog *catalog, int64_t disk, uint64_t page, struct catalog_page *ret_page,
		     struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_MAP_GET, failure);
	const void *blob = NULL;
	size_t len_bytes = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, map_key(disk, page));
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 0)
		memset(ret_page, 0, sizeof(*ret_page));
	else if (page_unseal(query, 0, MAP_PAGE_KEY(map_key(disk, page)), &blob, &len_bytes) < 0 ||
		 map_page_decode(blob, len_bytes, ret_page) < 0)
		return catalog_bad_row(catalog, "map", failure);
	return 0;
}

/* Lays former states over a live page: rows come with ascending `until`, so the first that mentions a chunk wins. */
static int overlay_past(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t page,
			struct catalog_page *live, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_PAST_SINCE, failure);
	bool settled[CATALOG_PAGE_ENTRIES] = { false };
	struct past_page past;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, page);
	bind_u64(query, 3, generation);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		const void *blob = NULL;
		size_t len_bytes = 0;
		bool bad = false;
		uint64_t until = column_u64(query, 1, UINT32_MAX, &bad);

		if (bad || page_unseal(query, 0, PAST_PAGE_KEY(disk, page, until), &blob, &len_bytes) < 0 ||
		    past_page_decode(blob, len_bytes, &past) < 0)
			return catalog_bad_row(catalog, "past", failure);
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
			if (!past.present[i] || settled[i])
				continue;
			live->entries[i] = past.entries[i];
			settled[i] = true;
		}
	}
	return result;
}

int catalog_map_read_at(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t page,
			struct catalog_page *ret_page, struct failure *failure)
{
	struct catalog_page live;
	bool ours;
	int result = catalog_snapshot_begin(catalog, &ours, failure);

	if (result < 0)
		return result;
	result = catalog_map_read(catalog, disk, page, &live, failure);
	if (result == 0)
		result = overlay_past(catalog, disk, generation, page, &live, failure);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_page = live;
	return result;
}

static int map_next_live(struct catalog *catalog, int64_t disk, uint64_t from_page, uint64_t *ret_page,
			 struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_MAP_NEXT, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, map_key(disk, from_page));
	(void)sqlite3_bind_int64(query, 2, map_key(disk, ((uint64_t)1 << PAGE_BITS) - 1));
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	*ret_page = result == 0 ? UINT64_MAX :
				  (uint64_t)sqlite3_column_int64(query, 0) & (((uint64_t)1 << PAGE_BITS) - 1);
	return 0;
}

/* Looks below `end_page` only, so that rows of older generations between pages of `map` are passed once in a walk, not in every step. */
static int map_next_past(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t from_page, uint64_t end_page,
			 uint64_t *ret_page, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_PAST_NEXT, failure);
	bool bad = false;
	uint64_t page = UINT64_MAX;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, from_page);
	bind_u64(query, 3, generation);
	bind_u64(query, 4, end_page < (uint64_t)1 << PAGE_BITS ? end_page : (uint64_t)1 << PAGE_BITS);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 1)
		page = column_u64(query, 0, ((uint64_t)1 << PAGE_BITS) - 1, &bad);
	if (bad)
		return catalog_bad_row(catalog, "past", failure);
	*ret_page = page;
	return 0;
}

int catalog_map_next(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t from_page,
		     uint64_t *ret_page, struct failure *failure)
{
	uint64_t live, past = UINT64_MAX;
	bool ours = false;
	int result = 0;

	if (from_page >= (uint64_t)1 << PAGE_BITS) {
		*ret_page = UINT64_MAX;
		return 0;
	}
	result = catalog_snapshot_begin(catalog, &ours, failure);
	if (result < 0)
		return result;
	result = map_next_live(catalog, disk, from_page, &live, failure);
	if (result == 0 && generation != 0)
		result = map_next_past(catalog, disk, generation, from_page, live, &past, failure);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_page = live < past ? live : past;
	return result;
}

/* ---- changing ---- */

/* One page being changed: its live entries, and the row of `past` for the current generation. */
struct page_update {
	uint64_t changed_chunks;
	uint64_t newly_changed_chunks;
	struct catalog *catalog;
	const struct catalog_disk *disk;
	uint32_t newest_image; /* its generation; 0: none */
	bool has_base;	       /* what is nothing may be what an image shows there */
	uint64_t page;
	bool is_loaded, live_is_dirty;
	bool past_is_loaded, past_is_dirty;
	struct catalog_page live;
	struct past_page past;
};

static int load_past(struct page_update *update, struct failure *failure)
{
	STATEMENT *query = catalog_statement(update->catalog, ST_PAST_GET, failure);
	const void *blob = NULL;
	size_t len_bytes = 0;
	int result;

	if (update->past_is_loaded)
		return 0;
	if (query == NULL)
		return update->catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, update->disk->id);
	bind_u64(query, 2, update->page);
	bind_u64(query, 3, update->disk->generation);
	result = catalog_step(update->catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 0)
		memset(&update->past, 0, sizeof(update->past));
	else if (page_unseal(query, 0, PAST_PAGE_KEY(update->disk->id, update->page, update->disk->generation), &blob,
			     &len_bytes) < 0 ||
		 past_page_decode(blob, len_bytes, &update->past) < 0)
		return catalog_bad_row(update->catalog, "past", failure);
	update->past_is_loaded = true;
	update->past_is_dirty = false;
	return 0;
}

static int store_past(struct page_update *update, struct failure *failure)
{
	STATEMENT *put = catalog_statement(update->catalog, ST_PAST_PUT, failure);
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	if (put == NULL)
		return update->catalog->statement_error;
	past_page_encode(&update->past, &writer);
	page_seal(PAST_PAGE_KEY(update->disk->id, update->page, update->disk->generation), &writer);
	if (writer.failed)
		return fail_errno(failure, -ENOMEM, "catalog");
	(void)sqlite3_bind_int64(put, 1, update->disk->id);
	bind_u64(put, 2, update->page);
	bind_u64(put, 3, update->disk->generation);
	(void)sqlite3_bind_blob64(put, 4, writer.data, writer.len_bytes, SQLITE_STATIC);
	return catalog_run(update->catalog, put, failure);
}

static int store_live(struct page_update *update, struct failure *failure)
{
	bool is_empty = map_page_is_empty(&update->live);
	STATEMENT *put = catalog_statement(update->catalog, is_empty ? ST_MAP_DELETE : ST_MAP_PUT, failure);
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	if (put == NULL)
		return update->catalog->statement_error;
	(void)sqlite3_bind_int64(put, 1, map_key(update->disk->id, update->page));
	if (!is_empty) {
		map_page_encode(&update->live, &writer);
		page_seal(MAP_PAGE_KEY(map_key(update->disk->id, update->page)), &writer);
		if (writer.failed)
			return fail_errno(failure, -ENOMEM, "catalog");
		(void)sqlite3_bind_blob64(put, 2, writer.data, writer.len_bytes, SQLITE_STATIC);
	}
	return catalog_run(update->catalog, put, failure);
}

static int finish_page(struct page_update *update, struct failure *failure)
{
	int result;

	if (!update->is_loaded)
		return 0;
	result = update->live_is_dirty ? store_live(update, failure) : 0;
	if (result == 0 && update->past_is_loaded && update->past_is_dirty)
		result = store_past(update, failure);
	update->is_loaded = update->past_is_loaded = false;
	return result;
}

static int begin_page(struct page_update *update, uint64_t page, struct failure *failure)
{
	int result;

	if (update->is_loaded && update->page == page)
		return 0;
	result = finish_page(update, failure);
	if (result < 0)
		return result;
	result = catalog_map_read(update->catalog, update->disk->id, page, &update->live, failure);
	if (result < 0)
		return result;
	update->page = page;
	update->is_loaded = true;
	update->live_is_dirty = false;
	return 0;
}

/* The live state of a chunk ends: it moves to past if an image sees it, else its chunk loses a reference. */
static int retire(struct page_update *update, unsigned index, struct failure *failure)
{
	struct catalog_entry *former = &update->live.entries[index];

	if (update->newest_image != 0 && former->since <= update->newest_image) {
		int result = load_past(update, failure);

		if (result < 0)
			return result;
		if (!update->past.present[index]) {
			update->past.present[index] = true;
			update->past.entries[index] = *former;
			update->past.entries[index].has_fingerprint = false;
			update->past_is_dirty = true;
			return 0;
		}
		/* a state of before is noted there already, so this one began after the newest image (NOTHING, its age forgotten) */
	}
	if (former->kind == CATALOG_CHUNK)
		return chunk_refer(update->catalog, former->chunk, -1, NULL, failure);
	return 0;
}

static bool is_same_state(const struct catalog_entry *entry, const struct catalog_change *change)
{
	return entry->kind == change->kind && (change->kind != CATALOG_CHUNK || entry->chunk == change->chunk);
}

static void set_fingerprint(struct page_update *update, struct catalog_entry *entry, const struct catalog_change *change)
{
	bool has_fingerprint = change->kind == CATALOG_CHUNK && change->has_fingerprint;

	if (entry->has_fingerprint == has_fingerprint &&
	    (!has_fingerprint || memcmp(entry->fingerprint, change->fingerprint, sizeof(entry->fingerprint)) == 0))
		return;
	memset(entry->fingerprint, 0, sizeof(entry->fingerprint));
	if (has_fingerprint)
		memcpy(entry->fingerprint, change->fingerprint, sizeof(entry->fingerprint));
	entry->has_fingerprint = has_fingerprint;
	update->live_is_dirty = true;
}

/*
 * A refresh of what shows through from an image makes it the disk's own, with a fingerprint of the disk's key: not a change either. Whoever asks for it has
 * looked at what shows, and nobody else can have changed it since.
 */
static int change_entry(struct page_update *update, unsigned index, const struct catalog_change *change,
			struct failure *failure)
{
	struct catalog_entry *entry = &update->live.entries[index];
	bool is_adopted = change->refresh && update->has_base && entry->kind == CATALOG_NOTHING;
	int result = 0;

	if (!is_same_state(entry, change)) {
		if (change->refresh && !is_adopted)
			return fail(failure, -EBADMSG, "catalog %s: chunk %llu of disk %s isn't what it was", update->catalog->path,
				    (unsigned long long)change->first, update->disk->name);
		/* the new reference first: when a chunk only moves, it never looks dead in between */
		if (change->kind == CATALOG_CHUNK)
			result = chunk_refer(update->catalog, change->chunk, 1, NULL, failure);
		if (result == 0)
			result = retire(update, index, failure);
		if (result < 0)
			return result;
		update->changed_chunks += !is_adopted;
		update->newly_changed_chunks += !is_adopted && entry->since != update->disk->generation;
		*entry = (struct catalog_entry){ .kind = change->kind,
						 .since = update->disk->generation,
						 .chunk = change->kind == CATALOG_CHUNK ? change->chunk : 0 };
		update->live_is_dirty = true;
	}
	set_fingerprint(update, entry, change);
	return 0;
}

/* A long run of nothing: only pages that hold something are visited. */
static int change_run(struct page_update *update, const struct catalog_change *change, struct failure *failure)
{
	uint64_t at = change->first, end = change->first + change->count;

	while (at < end) {
		uint64_t page = at / CATALOG_PAGE_ENTRIES;
		uint64_t page_end = (page + 1) * CATALOG_PAGE_ENTRIES;
		int result;

		if (change->kind == CATALOG_NOTHING && !(update->is_loaded && update->page == page)) {
			result = map_next_live(update->catalog, update->disk->id, page, &page, failure);
			if (result < 0)
				return result;
			if (page == UINT64_MAX || page * CATALOG_PAGE_ENTRIES >= end)
				return 0;
			if (page * CATALOG_PAGE_ENTRIES > at)
				at = page * CATALOG_PAGE_ENTRIES;
			page_end = (page + 1) * CATALOG_PAGE_ENTRIES;
		}
		result = begin_page(update, page, failure);
		for (; result == 0 && at < end && at < page_end; at++)
			result = change_entry(update, (unsigned)(at % CATALOG_PAGE_ENTRIES), change, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

static void page_update_free(struct page_update **update)
{
	free(*update);
}

int catalog_map_update(struct catalog *catalog, const struct catalog_disk *disk, const struct catalog_change *changes,
		       size_t count, uint64_t *changed_chunks, uint64_t *newly_changed_chunks,
		       struct failure *failure)
{
	AUTO(page_update_free) struct page_update *update = calloc(1, sizeof(*update));
	int result;

	assert(catalog->in_transaction);
	if (update == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	update->catalog = catalog;
	update->disk = disk;
	result = image_newest_generation(catalog, disk->id, &update->newest_image, failure);
	if (result == 0)
		result = catalog_base_any(catalog, disk->id, 0, &update->has_base, failure);
	if (result == 0 && update->newest_image >= disk->generation)
		return fail(failure, -EBADMSG, "catalog %s: disk %s has an image of a generation to come; the catalog is damaged",
			    catalog->path, disk->name);
	for (size_t i = 0; result == 0 && i < count; i++) {
		assert(changes[i].kind != CATALOG_CHUNK || changes[i].count == 1);
		result = change_run(update, &changes[i], failure);
	}
	if (result == 0)
		result = finish_page(update, failure);
	if (result < 0)
		return result;
	*changed_chunks += update->changed_chunks;
	*newly_changed_chunks += update->newly_changed_chunks;
	return 0;
}
