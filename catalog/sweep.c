/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving back what a deleted image or disk held.
 *
 * Deleting is done in two steps, so that it is instant, and bounded in memory and in the time the catalog is locked, whatever the image held: one
 * transaction marks the row as GOING, from when on nobody sees it; sweeps follow, some rows of `past` at a time (looked at or changed), each in a transaction
 * of its own. A sweep
 * that was interrupted starts over, and finds less to do: dropping what no alive image sees is the same whether done once or twice. When a neighbour
 * is deleted while a sweep is under way, what the sweep has passed already is the neighbour's business: its window reaches over this image, which is not alive.
 *
 * What only image N saw are intervals that contain its generation and neither its predecessor's nor its successor's: they end in (N, successor]. So the index
 * on (disk, until) leads straight to the rows to look at: those written by the rounds between N and its successor. Rows of a GOING image that
 * lie between two GOING images are looked at with the union of the gaps: neighbours are alive images only.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

/*
 * `before` is -1, not 0, when there is no older image: what was never written has `since` 0, and somebody must be there to see it.
 */
struct window {
	int64_t before; /* generation of the nearest older alive image; -1: none */
	uint32_t after; /* of the nearest newer one; UINT32_MAX: none, up to live */
};

/* A row that needs no change is quicker to pass than to write: so many are passed for one that may be changed. */
enum { LOOKED_AT_PER_CHANGE = 8 };

static int find_window(struct catalog *catalog, int64_t disk, uint32_t generation, struct window *ret_window,
		       struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_IMAGE_NEIGHBOURS, failure);
	struct window window = { .before = -1, .after = UINT32_MAX };
	bool bad = false;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, generation);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (sqlite3_column_type(query, 0) != SQLITE_NULL)
		window.before = column_i64(query, 0, 1, UINT32_MAX, &bad);
	if (sqlite3_column_type(query, 1) != SQLITE_NULL)
		window.after = (uint32_t)column_u64(query, 1, UINT32_MAX, &bad);
	if (bad)
		return catalog_bad_row(catalog, "image", failure);
	*ret_window = window;
	return 0;
}

/* Rows of `past` in the order of (until, page), behind a position. */
struct past_row {
	uint32_t until;
	uint64_t page;
	struct past_page past;
};

static int read_past_row(struct catalog *catalog, sqlite3_stmt *query, int64_t disk, struct past_row *ret_row,
			 struct failure *failure)
{
	const void *blob = NULL;
	size_t len_bytes = 0;
	bool bad = false;

	ret_row->until = (uint32_t)column_u64(query, 0, UINT32_MAX, &bad);
	ret_row->page = column_u64(query, 1, ((uint64_t)1 << 40) - 1, &bad);
	if (bad ||
	    page_unseal(query, 2, PAST_PAGE_KEY(disk, ret_row->page, ret_row->until), &blob, &len_bytes) < 0 ||
	    past_page_decode(blob, len_bytes, &ret_row->past) < 0)
		return catalog_bad_row(catalog, "past", failure);
	return 0;
}

static int next_past_row(struct catalog *catalog, int64_t disk, uint32_t last_until, struct past_row *row,
			 struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_PAST_RANGE, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, row->until);
	bind_u64(query, 3, row->page);
	bind_u64(query, 4, last_until);
	bind_u64(query, 5, 1);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result;
	result = read_past_row(catalog, query, disk, row, failure);
	return result < 0 ? result : 1;
}

static int put_past_row(struct catalog *catalog, int64_t disk, const struct past_row *row, struct failure *failure)
{
	bool is_empty = past_page_is_empty(&row->past);
	STATEMENT *put = catalog_statement(catalog, is_empty ? ST_PAST_DELETE : ST_PAST_PUT, failure);
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	if (put == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(put, 1, disk);
	bind_u64(put, 2, row->page);
	bind_u64(put, 3, row->until);
	if (!is_empty) {
		past_page_encode(&row->past, &writer);
		page_seal(PAST_PAGE_KEY(disk, row->page, row->until), &writer);
		if (writer.failed)
			return fail_errno(failure, -ENOMEM, "catalog");
		(void)sqlite3_bind_blob64(put, 4, writer.data, writer.len_bytes, SQLITE_STATIC);
	}
	return catalog_run(catalog, put, failure);
}

/* Drops the entries of a row that no alive image sees: those that began after `before`. 1: the row was changed. */
static int sweep_row(struct catalog *catalog, int64_t disk, int64_t before, struct past_row *row, uint64_t *freed_bytes,
		     struct failure *failure)
{
	bool is_changed = false;

	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		const struct catalog_entry *entry = &row->past.entries[i];
		int result = 0;

		if (!row->past.present[i] || entry->since <= before)
			continue;
		if (entry->kind == CATALOG_CHUNK)
			result = chunk_refer(catalog, entry->chunk, -1, freed_bytes, failure);
		if (result < 0)
			return result;
		row->past.present[i] = false;
		is_changed = true;
	}
	if (is_changed) {
		int result = put_past_row(catalog, disk, row, failure);

		return result < 0 ? result : 1;
	}
	return 0;
}

static int delete_rows(struct catalog *catalog, enum statement which, int64_t disk, int64_t second, bool has_second,
		       struct failure *failure)
{
	STATEMENT *statement = catalog_statement(catalog, which, failure);

	if (statement == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(statement, 1, disk);
	if (has_second)
		(void)sqlite3_bind_int64(statement, 2, second);
	return catalog_run(catalog, statement, failure);
}

int catalog_image_sweep(struct catalog *catalog, const struct catalog_image *image, struct catalog_position *position,
			unsigned most_rows, uint64_t *freed_bytes, bool *ret_done, struct failure *failure)
{
	AUTO_FREE struct past_row *row = calloc(1, sizeof(*row));
	struct window window;
	uint64_t changed = 0, looked_at = 0;
	bool is_done = false;
	int result;

	assert(catalog->in_transaction && image->state == CATALOG_GOING && most_rows > 0);
	if (row == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	result = find_window(catalog, image->disk, image->generation, &window, failure);
	row->until = position->until == 0 ? image->generation : position->until;
	row->page = position->until == 0 ? INT64_MAX : position->page;
	while (result >= 0 && changed < most_rows && looked_at < (uint64_t)most_rows * LOOKED_AT_PER_CHANGE) {
		result = next_past_row(catalog, image->disk, window.after, row, failure);
		is_done = result == 0;
		if (result <= 0)
			break;
		result = sweep_row(catalog, image->disk, window.before, row, freed_bytes, failure);
		changed += result == 1;
		looked_at++;
	}
	if (result >= 0 && is_done)
		result = delete_rows(catalog, ST_IMAGE_DELETE, image->disk, image->number, true, failure);
	if (result < 0)
		return result;
	*position = (struct catalog_position){ .until = row->until, .page = row->page };
	*ret_done = is_done;
	return 0;
}

/* ---- how much would go ---- */

/* Chunks with more than one reference, and how many of those only this image holds. */
struct tally {
	struct tally_slot {
		uint64_t chunk; /* 0: free */
		uint32_t held;
	} *slots;
	size_t capacity, count; /* capacity: a power of two */
};
enum { TALLY_MOST = 1 << 20 }; /* 16 MiB; what is beyond is not counted: the sum is a lower bound then */

static void tally_free(struct tally *tally)
{
	free(tally->slots);
}

static struct tally_slot *tally_slot(struct tally *tally, uint64_t chunk)
{
	size_t at = (size_t)(chunk * 0x9e3779b97f4a7c15u >> 20) & (tally->capacity - 1);

	while (tally->slots[at].chunk != 0 && tally->slots[at].chunk != chunk)
		at = (at + 1) & (tally->capacity - 1);
	return &tally->slots[at];
}

static int tally_grow(struct tally *tally)
{
	struct tally larger = { .capacity = tally->capacity == 0 ? 1024 : tally->capacity * 2, .count = tally->count };

	larger.slots = calloc(larger.capacity, sizeof(*larger.slots));
	if (larger.slots == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < tally->capacity; i++)
		if (tally->slots[i].chunk != 0)
			*tally_slot(&larger, tally->slots[i].chunk) = tally->slots[i];
	free(tally->slots);
	*tally = larger;
	return 0;
}

/* Returns how often the chunk was met, this time included; 0 when the tally is full. Negative: no memory. */
static int64_t tally_add(struct tally *tally, uint64_t chunk)
{
	struct tally_slot *slot;

	if (tally->count * 2 >= tally->capacity && tally->capacity < TALLY_MOST && tally_grow(tally) < 0)
		return -ENOMEM;
	slot = tally_slot(tally, chunk);
	if (slot->chunk == 0) {
		if (tally->count * 4 >= tally->capacity * 3)
			return 0;
		slot->chunk = chunk;
		tally->count++;
	}
	return ++slot->held;
}

/* A chunk that is named once more by what would go; its record goes with the last of its references. */
static int count_held(struct catalog *catalog, uint64_t chunk, struct tally *tally, const char *table, uint64_t *bytes,
		      struct failure *failure)
{
	struct catalog_location location;
	int64_t held = 1;
	int result = catalog_chunk_get(catalog, chunk, &location, failure);

	if (result < 0)
		return result == -ENOENT ? catalog_bad_row(catalog, table, failure) : result;
	if (location.references > 1)
		held = tally_add(tally, chunk);
	if (held < 0)
		return fail_errno(failure, (int)held, "catalog");
	if ((uint64_t)held == location.references)
		*bytes += chunk_record_bytes(&location);
	return 0;
}

static int count_row(struct catalog *catalog, int64_t before, const struct past_row *row, struct tally *tally,
		     uint64_t *bytes, struct failure *failure)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		const struct catalog_entry *entry = &row->past.entries[i];
		int result;

		if (!row->past.present[i] || entry->since <= before || entry->kind != CATALOG_CHUNK)
			continue;
		result = count_held(catalog, entry->chunk, tally, "past", bytes, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

int catalog_image_unique(struct catalog *catalog, const struct catalog_image *image, uint64_t *ret_bytes,
			 struct failure *failure)
{
	AUTO_FREE struct past_row *row = calloc(1, sizeof(*row));
	AUTO(tally_free) struct tally tally = { .slots = NULL };
	struct window window;
	uint64_t bytes = 0;
	bool ours;
	int result;

	if (row == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	result = catalog_snapshot_begin(catalog, &ours, failure);
	if (result < 0)
		return result;
	result = find_window(catalog, image->disk, image->generation, &window, failure);
	row->until = image->generation;
	row->page = INT64_MAX;
	while (result == 0 && (result = next_past_row(catalog, image->disk, window.after, row, failure)) == 1)
		result = count_row(catalog, window.before, row, &tally, &bytes, failure);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_bytes = bytes;
	return result;
}

static int count_disk_map(struct catalog *catalog, int64_t disk, struct tally *tally, uint64_t *bytes,
			  struct failure *failure)
{
	AUTO_FREE struct catalog_page *page = malloc(sizeof(*page));
	uint64_t number = 0;
	int result = page == NULL ? fail_errno(failure, -ENOMEM, "catalog") : 0;

	for (; result == 0; number++) {
		result = catalog_map_next(catalog, disk, 0, number, &number, failure);
		if (result < 0 || number == UINT64_MAX)
			return result;
		result = catalog_map_read(catalog, disk, number, page, failure);
		for (unsigned i = 0; result == 0 && i < CATALOG_PAGE_ENTRIES; i++)
			if (page->entries[i].kind == CATALOG_CHUNK)
				result = count_held(catalog, page->entries[i].chunk, tally, "map", bytes, failure);
	}
	return result;
}

static int count_disk_past(struct catalog *catalog, int64_t disk, struct tally *tally, uint64_t *bytes,
			   struct failure *failure)
{
	AUTO_FREE struct past_row *row = calloc(1, sizeof(*row));
	int result;

	if (row == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	while ((result = next_past_row(catalog, disk, UINT32_MAX, row, failure)) == 1)
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
			const struct catalog_entry *entry = &row->past.entries[i];

			if (!row->past.present[i] || entry->kind != CATALOG_CHUNK)
				continue;
			result = count_held(catalog, entry->chunk, tally, "past", bytes, failure);
			if (result < 0)
				return result;
		}
	return result;
}

static int count_disk_log(struct catalog *catalog, int64_t disk, uint64_t *bytes, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOG_SIZES, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		bool bad = false;
		uint32_t stored_bytes = (uint32_t)column_u64(query, 0, STORED_MOST_BYTES, &bad);

		if (bad)
			return catalog_bad_row(catalog, "log", failure);
		*bytes += catalog_record_bytes(stored_bytes);
	}
	return result;
}

int catalog_disk_unique(struct catalog *catalog, int64_t disk, uint64_t *ret_bytes, struct failure *failure)
{
	AUTO(tally_free) struct tally tally = { .slots = NULL };
	uint64_t bytes = 0;
	bool ours;
	int result = catalog_snapshot_begin(catalog, &ours, failure);

	if (result < 0)
		return result;
	result = count_disk_map(catalog, disk, &tally, &bytes, failure);
	if (result == 0)
		result = count_disk_past(catalog, disk, &tally, &bytes, failure);
	if (result == 0)
		result = count_disk_log(catalog, disk, &bytes, failure);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_bytes = bytes;
	return result;
}

/* ---- disks ---- */

static int sweep_disk_map(struct catalog *catalog, int64_t disk, unsigned most_rows, unsigned *touched,
			  uint64_t *freed_bytes, struct failure *failure)
{
	AUTO_FREE struct catalog_page *page = malloc(sizeof(*page));

	if (page == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	for (; *touched < most_rows; ++*touched) {
		uint64_t number;
		int result = catalog_map_next(catalog, disk, 0, 0, &number, failure);

		if (result < 0 || number == UINT64_MAX)
			return result;
		result = catalog_map_read(catalog, disk, number, page, failure);
		for (unsigned i = 0; result == 0 && i < CATALOG_PAGE_ENTRIES; i++)
			if (page->entries[i].kind == CATALOG_CHUNK)
				result = chunk_refer(catalog, page->entries[i].chunk, -1, freed_bytes, failure);
		if (result == 0)
			result = delete_rows(catalog, ST_MAP_DELETE, disk << 40 | (int64_t)number, 0, false, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

static int sweep_disk_past(struct catalog *catalog, int64_t disk, unsigned most_rows, unsigned *touched,
			   uint64_t *freed_bytes, struct failure *failure)
{
	AUTO_FREE struct past_row *row = calloc(1, sizeof(*row));

	if (row == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	for (; *touched < most_rows; ++*touched) {
		int result = next_past_row(catalog, disk, UINT32_MAX, row, failure);

		if (result <= 0)
			return result;
		for (unsigned i = 0; result >= 0 && i < CATALOG_PAGE_ENTRIES; i++) {
			if (row->past.present[i] && row->past.entries[i].kind == CATALOG_CHUNK)
				result = chunk_refer(catalog, row->past.entries[i].chunk, -1, freed_bytes, failure);
			row->past.present[i] = false;
		}
		if (result >= 0)
			result = put_past_row(catalog, disk, row, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

/* The newest entry says that the disk is gone. It stays, so that a rebuild doesn't bring back what older entries tell of. */
static int sweep_disk_log(struct catalog *catalog, const struct catalog_disk *disk, unsigned most_rows, unsigned *touched,
			  uint64_t *freed_bytes, struct failure *failure)
{
	for (; *touched < most_rows; ++*touched) {
		AUTO_FREE struct catalog_log_entry *entry = NULL;
		size_t count;
		int result = catalog_log_list(catalog, disk->id, 0, 1, &entry, &count, failure);

		if (result < 0 || count == 0 || entry->sequence >= disk->log_sequence)
			return result;
		uint64_t bytes = catalog_record_bytes(entry->stored_bytes);
		*freed_bytes += bytes;
		result = segment_live_add(catalog, entry->segment, -(int64_t)bytes, failure);
		if (result == 0)
			result = delete_rows(catalog, ST_LOG_DELETE, disk->id, (int64_t)entry->sequence, true, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

int catalog_disk_sweep(struct catalog *catalog, const struct catalog_disk *disk, unsigned most_rows,
		       uint64_t *freed_bytes, bool *ret_done, struct failure *failure)
{
	unsigned touched = 0;
	int result;

	assert(catalog->in_transaction && disk->state == CATALOG_GOING);
	result = sweep_disk_map(catalog, disk->id, most_rows, &touched, freed_bytes, failure);
	if (result == 0)
		result = sweep_disk_past(catalog, disk->id, most_rows, &touched, freed_bytes, failure);
	if (result == 0)
		result = sweep_disk_log(catalog, disk, most_rows, &touched, freed_bytes, failure);
	if (result == 0 && touched < most_rows) {
		result = delete_rows(catalog, ST_IMAGE_DELETE_ALL, disk->id, 0, false, failure);
		if (result == 0)
			result = catalog_base_drop(catalog, disk->id, failure);
		if (result == 0)
			result = delete_rows(catalog, ST_ROUND_DELETE_ALL, disk->id, 0, false, failure);
		if (result == 0)
			result = delete_rows(catalog, ST_DISK_DELETE, disk->id, 0, false, failure);
	}
	if (result == 0)
		*ret_done = touched < most_rows;
	return result;
}
