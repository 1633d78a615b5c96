/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Do the rows fit together?
 *
 * What the catalog counts, it counts as it goes; here all of it is counted again. A store of 10 TiB has 160 million
 * chunks, and a table of what was counted for each would take more memory than a check may have. So sets are compared,
 * not members. Every chunk id gets a random-looking number of 64 bits, made from the id and a key that is new for every
 * check. What the rows of `chunk` say and what the entries of `map` and `past` say are two sums of such numbers, and
 * they are the same, but for one chance in 2^64, only if each chunk is named as often as it says. Ids are divided into
 * SLOTS ranges, each with sums of its own, so that a difference is found to within one of them. The same is done for
 * the index by digest, and for live bytes of segments. A lost chunk has its row in `lost`
 * instead of the index: the two of them together are what chunks must agree with.
 *
 *     sum                 what is added                                          what is taken away
 *     references[slot]    number(id) for each entry that names chunk id          references * number(id) for each chunk
 *     digests[slot]       number(tag, id) for each row of both                   number(tag, id) for each chunk
 *     live[slot]          number(segment) * bytes for each live record           number(segment) * live_bytes of each
 * segment
 *
 * All of it belongs to one moment: between two reads a commit could move a reference from what was counted to what is
 * to be counted. So it is one snapshot, as long as that takes: the log grows meanwhile by what others commit, and is
 * started over later.
 *
 * Damage must not end a check: a row that can't be read is a flaw, and the walk goes on behind it where rows still
 * follow.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum {
	SLOTS = 65536,
	SEGMENT_CACHE = 256,
	LOOK_FOR_STOP_ROWS = 1024,
	PROGRESS_STEPS = 100000, /* of SQLite's machine: some ms */
	SAME_FLAWS_MOST = 20,	 /* of one kind: more of them say nothing new */
};

enum flaw_kind {
	FLAW_RECORD,
	FLAW_STATES,
	FLAW_BEYOND,
	FLAW_ORPHAN,
	FLAW_ROW,
	FLAW_REFERENCES,
	FLAW_DIGESTS,
	FLAW_LIVE,
	FLAW_NUMBERS,
	FLAW_PIECE,
	FLAW_KINDS,
};

struct known_segment {
	uint32_t number;       /* 0: none */
	uint64_t length_bytes; /* 0: it isn't in the catalog */
};

struct row_check {
	struct catalog *catalog;
	const struct catalog_check *check;
	uint32_t chunk_bytes;
	struct failure *failure;
	uint64_t key;
	uint64_t *references, *digests, *live; /* SLOTS of each */
	uint64_t ids_a_slot, segments_a_slot;
	uint64_t next_chunk;
	uint64_t rows;
	unsigned flaws[FLAW_KINDS];
	struct known_segment segments[SEGMENT_CACHE];
	/* of the page that is walked over */
	int64_t disk;
	uint64_t page;
	bool disk_is_known;
	uint32_t generation;
	uint64_t chunk_count; /* of the disk */
	uint32_t ended_at[CATALOG_PAGE_ENTRIES];
};

static void row_check_free(struct row_check **check)
{
	if (*check == NULL)
		return;
	free((*check)->references);
	free((*check)->digests);
	free((*check)->live);
	free(*check);
}

__attribute__((format(printf, 4, 5))) static void say(struct row_check *check, enum flaw_kind kind, const char *what,
						      const char *format, ...)
{
	char why[256];
	va_list arguments;

	if (check->flaws[kind]++ > SAME_FLAWS_MOST)
		return;
	if (check->flaws[kind] > SAME_FLAWS_MOST) {
		check->check->flaw(check->check->opaque, "catalog", "more of the same kind");
		return;
	}
	va_start(arguments, format);
	(void)vsnprintf(why, sizeof(why), format, arguments);
	va_end(arguments);
	check->check->flaw(check->check->opaque, what, why);
}

static bool is_stopped(const struct catalog_check *check)
{
	return check->stop != NULL && atomic_load(check->stop);
}

/* -EINTR, once in a while, when it is to stop. */
static int count_row(struct row_check *check)
{
	return ++check->rows % LOOK_FOR_STOP_ROWS == 0 && is_stopped(check->check) ? -EINTR : 0;
}

/* ---- the database ---- */

static int look_for_stop(void *opaque)
{
	return is_stopped(opaque);
}

static int read_quick_check(struct catalog *catalog, const struct catalog_check *check, sqlite3_stmt *query,
			    struct failure *failure)
{
	int code;

	while ((code = sqlite3_step(query)) == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(query, 0);

		if (text == NULL)
			return fail_errno(failure, -ENOMEM, "catalog");
		if (strcmp(text, "ok") != 0)
			check->flaw(check->opaque, "catalog", text);
	}
	if (code == SQLITE_DONE)
		return 0;
	if (code == SQLITE_INTERRUPT)
		return -EINTR;
	if ((code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB) {
		check->flaw(check->opaque, "catalog", sqlite3_errmsg(catalog->db));
		return 0;
	}
	return catalog_sqlite_error(catalog, "checking", failure);
}

int catalog_check_database(struct catalog *catalog, const struct catalog_check *check, struct failure *failure)
{
	sqlite3_stmt *query = NULL;
	int result;

	if (sqlite3_prepare_v2(catalog->db, "PRAGMA quick_check(20)", -1, &query, NULL) != SQLITE_OK)
		return catalog_sqlite_error(catalog, "checking", failure);
	sqlite3_progress_handler(catalog->db, PROGRESS_STEPS, look_for_stop, (void *)(uintptr_t)check);
	result = read_quick_check(catalog, check, query, failure);
	sqlite3_progress_handler(catalog->db, 0, NULL, NULL);
	(void)sqlite3_finalize(query); /* repeats the error that step gave */
	return result;
}

/* ---- numbers ---- */

/* Two rounds of multiplication and shifts: each bit of what comes out depends on each of what goes in. */
static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
	value = (value ^ value >> 27) * 0x94d049bb133111eb;
	return value ^ value >> 31;
}

static uint64_t number_of(const struct row_check *check, uint64_t value)
{
	return mix(mix(value + 0x9e3779b97f4a7c15) ^ check->key);
}

static uint64_t *id_slot(const struct row_check *check, uint64_t *sums, uint64_t id)
{
	uint64_t slot = id / check->ids_a_slot;

	return &sums[slot < SLOTS ? slot : SLOTS - 1];
}

static void add_live(struct row_check *check, uint32_t segment, uint64_t bytes)
{
	uint64_t slot = segment / check->segments_a_slot;

	/* odd, so that no difference of bytes is lost by it */
	check->live[slot < SLOTS ? slot : SLOTS - 1] += (number_of(check, segment) | 1) * bytes;
}

/* ---- segments, chunks, logs, the index ---- */

static int segment_length(struct row_check *check, uint32_t number, uint64_t *ret_length_bytes)
{
	struct known_segment *known = &check->segments[number % SEGMENT_CACHE];
	STATEMENT *query = NULL;
	int result;

	if (known->number == number) {
		*ret_length_bytes = known->length_bytes;
		return 0;
	}
	query = catalog_statement(check->catalog, ST_SEGMENT_GET, check->failure);
	if (query == NULL)
		return check->catalog->statement_error;
	bind_u64(query, 1, number);
	result = catalog_step(check->catalog, query, check->failure);
	if (result < 0)
		return result;
	*known = (struct known_segment){.number = number};
	if (result == 1)
		known->length_bytes = (uint64_t)sqlite3_column_int64(query, 2);
	*ret_length_bytes = known->length_bytes;
	return 0;
}

static int check_place(struct row_check *check, const char *what, uint32_t segment, uint32_t off_bytes,
		       uint32_t stored_bytes)
{
	uint64_t length_bytes = 0;
	int result = segment_length(check, segment, &length_bytes);

	if (result == 0 && off_bytes + catalog_record_bytes(stored_bytes) > length_bytes)
		say(check, FLAW_RECORD, what, "its record is beyond the end of segment %08" PRIx32, segment);
	return result;
}

/* A chunk without a record must be known as lost. */
static int check_lost_chunk(struct row_check *check, const char *what, uint64_t chunk)
{
	bool is_lost = false;
	int result = catalog_lost_has(check->catalog, chunk, &is_lost, check->failure);

	if (result == 0 && !is_lost)
		say(check, FLAW_RECORD, what, "it has no record, and is not known to be lost");
	return result;
}

static int check_chunk(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct row_check *check = opaque;
	char what[48];
	int result = count_row(check);

	if (result < 0)
		return result;
	if (location == NULL) {
		say(check, FLAW_ROW, "catalog", "the row of chunks %" PRIu64 " to %" PRIu64 " can't be read", chunk,
		    chunk + CATALOG_CHUNK_PAGE_ENTRIES - 1);
		return 0;
	}
	*id_slot(check, check->references, chunk) -= location->references * number_of(check, chunk);
	*id_slot(check, check->digests, chunk) -= number_of(check, location->tag ^ number_of(check, chunk));
	if (location->references > 0 && location->segment != CATALOG_NO_SEGMENT)
		add_live(check, location->segment, catalog_record_bytes(location->stored_bytes));
	(void)snprintf(what, sizeof(what), "chunk %" PRIu64, chunk);
	if (chunk == 0 || chunk >= check->next_chunk)
		say(check, FLAW_NUMBERS, what, "its number was never given out");
	if (location->segment == CATALOG_NO_SEGMENT)
		return check_lost_chunk(check, what, chunk);
	return check_place(check, what, location->segment, location->off_bytes, location->stored_bytes);
}

static int check_segments(struct row_check *check)
{
	uint32_t after = 0;

	for (;;) {
		AUTO_FREE struct catalog_segment *list = NULL;
		size_t count;
		int result = catalog_segment_list(check->catalog, after, 1024, &list, &count, check->failure);

		if (result < 0 || count == 0)
			return result;
		for (size_t i = 0; i < count; i++)
			add_live(check, list[i].number, -list[i].live_bytes);
		after = list[count - 1].number;
	}
}

static int check_logs(struct row_check *check)
{
	STATEMENT *query = catalog_statement(check->catalog, ST_LOG_WALK, check->failure);
	int result;

	if (query == NULL)
		return check->catalog->statement_error;
	while ((result = catalog_step(check->catalog, query, check->failure)) == 1) {
		struct catalog_log_entry entry;
		char what[80];

		result = count_row(check);
		if (result == 0)
			result = read_log_entry(check->catalog, query, &entry, check->failure);
		if (result < 0)
			return result;
		add_live(check, entry.segment, catalog_record_bytes(entry.stored_bytes));
		(void)snprintf(what, sizeof(what), "disk %" PRId64 ", log entry %" PRIu64, entry.disk, entry.sequence);
		result = check_place(check, what, entry.segment, entry.off_bytes, entry.stored_bytes);
		if (result < 0)
			return result;
	}
	return result;
}

static int check_index(struct row_check *check)
{
	STATEMENT *query = catalog_statement(check->catalog, ST_DIGEST_WALK, check->failure);
	int result;

	if (query == NULL)
		return check->catalog->statement_error;
	while ((result = catalog_step(check->catalog, query, check->failure)) == 1) {
		uint64_t tag = (uint64_t)sqlite3_column_int64(query, 0);
		uint64_t chunk = (uint64_t)sqlite3_column_int64(query, 1);

		*id_slot(check, check->digests, chunk) += number_of(check, tag ^ number_of(check, chunk));
		result = count_row(check);
		if (result < 0)
			return result;
	}
	return result;
}

static int check_lost(struct row_check *check)
{
	struct catalog_lost list[64], after = {.chunk = 0};
	size_t count = 0;
	int result;

	do {
		result = catalog_lost_list(check->catalog, after.digest, list, sizeof(list) / sizeof(list[0]), &count,
					   check->failure);
		for (size_t i = 0; result == 0 && i < count; i++) {
			*id_slot(check, check->digests, list[i].chunk) +=
				number_of(check, catalog_tag(list[i].digest) ^ number_of(check, list[i].chunk));
			after = list[i];
			result = count_row(check);
		}
	} while (result == 0 && count > 0);
	return result;
}

/* ---- content ---- */

/* What is known of the disk that the walk has come to. One that isn't there is a flaw, once. */
static int enter_disk(struct row_check *check, int64_t id)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};
	char what[48];
	int result = catalog_disk_get(check->catalog, id, &disk, check->failure);

	check->disk = id;
	check->page = UINT64_MAX; /* whatever page comes next, nothing is known of it */
	check->disk_is_known = result == 0;
	check->generation = disk.generation;
	check->chunk_count = disk.size_bytes / check->chunk_bytes + (disk.size_bytes % check->chunk_bytes != 0);
	if (result != -ENOENT)
		return result;
	(void)snprintf(what, sizeof(what), "disk %" PRId64, id);
	say(check, FLAW_ORPHAN, what, "there is content of it, but no such disk");
	return 0;
}

static void check_entry(struct row_check *check, const char *what, const struct catalog_states *states, unsigned index)
{
	const struct catalog_entry *entry = &states->entries[index];
	uint64_t chunk_index = states->page * CATALOG_PAGE_ENTRIES + index;
	/* when it began to hold nothing may have been forgotten, and is 0 then */
	bool since_is_known = entry->kind != CATALOG_NOTHING || entry->since != 0;

	if (entry->kind == CATALOG_CHUNK)
		*id_slot(check, check->references, entry->chunk) += number_of(check, entry->chunk);
	if (since_is_known && entry->since < check->ended_at[index])
		say(check, FLAW_STATES, what, "states of chunk %" PRIu64 " overlap", chunk_index);
	if (states->until != 0)
		check->ended_at[index] = states->until;
	if ((states->until != 0 && entry->since >= states->until) ||
	    (check->disk_is_known && (states->until > check->generation || entry->since > check->generation)))
		say(check, FLAW_STATES, what, "a state of chunk %" PRIu64 " is of a generation to come", chunk_index);
	if (check->disk_is_known && states->until == 0 && entry->kind != CATALOG_NOTHING &&
	    chunk_index >= check->chunk_count)
		say(check, FLAW_BEYOND, what, "chunk %" PRIu64 " is beyond the end of the disk", chunk_index);
}

static int check_states(void *opaque, const struct catalog_states *states)
{
	struct row_check *check = opaque;
	char what[48];
	int result = count_row(check);

	if (result == 0 && states->disk != check->disk)
		result = enter_disk(check, states->disk);
	if (result < 0)
		return result;
	if (check->page != states->page)
		memset(check->ended_at, 0, sizeof(check->ended_at));
	check->page = states->page;
	(void)snprintf(what, sizeof(what), "disk %" PRId64 ", page %" PRIu64, states->disk, states->page);
	if (states->is_bad) {
		say(check, FLAW_ROW, what, "its row in table %s can't be read", states->until == 0 ? "map" : "past");
		return 0;
	}
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (states->present == NULL || states->present[i])
			check_entry(check, what, states, i);
	return 0;
}

/* ---- disks, images, rounds ---- */

/* Rows of (disk, number) that a query finds wrong. */
static int check_numbers(struct row_check *check, enum statement which, const char *noun, const char *why)
{
	STATEMENT *query = catalog_statement(check->catalog, which, check->failure);
	int result;

	if (query == NULL)
		return check->catalog->statement_error;
	while ((result = catalog_step(check->catalog, query, check->failure)) == 1) {
		char what[80];

		(void)snprintf(what, sizeof(what), "disk %lld, %s %lld", (long long)sqlite3_column_int64(query, 0),
			       noun, (long long)sqlite3_column_int64(query, 1));
		say(check, FLAW_NUMBERS, what, "%s", why);
	}
	return result;
}

static int check_all_numbers(struct row_check *check)
{
	int result = check_numbers(check, ST_CHECK_IMAGES, "image", "its disk doesn't know of it");

	if (result == 0)
		result = check_numbers(check, ST_CHECK_IMAGE_ORDER, "image", "an older image is of a later generation");
	if (result == 0)
		result = check_numbers(check, ST_CHECK_ROUNDS, "round", "its disk doesn't know of it");
	return result;
}

/* The number of the next round behind `after`, 0 if there is none. */
static int next_round_of(struct row_check *check, int64_t disk, int64_t after, int64_t *ret_number)
{
	STATEMENT *query = catalog_statement(check->catalog, ST_ROUND_NEXT, check->failure);
	int result;

	if (query == NULL)
		return check->catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	(void)sqlite3_bind_int64(query, 2, after);
	result = catalog_step(check->catalog, query, check->failure);
	*ret_number = result == 1 ? sqlite3_column_int64(query, 0) : 0;
	return result < 0 ? result : 0;
}

/* From row to row, for numbers may have gaps of any size. */
static int read_rounds_of(struct row_check *check, const struct catalog_disk *disk)
{
	int64_t number = 0;

	for (;;) {
		AUTO(catalog_round_release) struct catalog_round round = {.number = 0};
		struct failure cause = {.code = 0};
		int result = next_round_of(check, disk->id, number, &number);

		if (result < 0 || number == 0)
			return result;
		if (number > UINT32_MAX)
			result = -EBADMSG;
		else
			result = catalog_round_get(check->catalog, disk->id, (uint32_t)number, &round, &cause);
		if (result == -EBADMSG)
			say(check, FLAW_ROW, disk->name, "the row of its round %" PRId64 " holds impossible values",
			    number);
		else if (result < 0 && result != -ENOENT)
			return fail_from(check->failure, &cause);
		result = count_row(check);
		if (result < 0)
			return result;
	}
}

/* What a row of `base` says of an image must be so. */
static int check_piece_image(struct row_check *check, const char *what, const struct catalog_piece *piece)
{
	AUTO(catalog_image_release) struct catalog_image image = {.number = 0};
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};
	int result = catalog_disk_get(check->catalog, piece->image_disk, &disk, check->failure);

	if (result == 0)
		result = catalog_image_get(check->catalog, piece->image_disk, piece->image_number, &image, check->failure);
	if (result == -ENOENT || (result == 0 && (disk.state != CATALOG_ALIVE || piece->image_generation == 0))) {
		say(check, FLAW_PIECE, what, "the image that it comes from is gone");
		return 0;
	}
	if (result < 0)
		return result;
	if (image.generation != piece->image_generation ||
	    memcmp(disk.uuid, piece->image_uuid, CATALOG_UUID_BYTES) != 0)
		say(check, FLAW_PIECE, what, "the image that it comes from is another one than meant");
	if (piece->image_off_bytes > image.size_bytes || piece->len_bytes > image.size_bytes - piece->image_off_bytes)
		say(check, FLAW_PIECE, what, "it reaches beyond the end of the image that it comes from");
	return 0;
}

/* Where the pieces of a disk that are in force now have come to. */
struct piece_walk {
	int64_t disk;
	uint64_t live_end_bytes;
};

static int check_piece(struct row_check *check, sqlite3_stmt *row, struct piece_walk *walk)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};
	struct catalog_piece piece;
	bool bad = false;
	int64_t id = column_i64(row, 0, 1, CATALOG_DISKS_END - 1, &bad);
	uint32_t until = (uint32_t)column_u64(row, 1, UINT32_MAX, &bad);
	char what[64];
	int result;

	if (bad || !base_read_piece(row, 2, &piece)) {
		say(check, FLAW_ROW, "catalog", "a row of table base holds impossible values");
		return 0;
	}
	(void)snprintf(what, sizeof(what), "disk %" PRId64 ", base at %" PRIu64, id, piece.off_bytes);
	result = catalog_disk_get(check->catalog, id, &disk, check->failure);
	if (result == -ENOENT || (result == 0 && disk.state != CATALOG_ALIVE)) {
		say(check, FLAW_PIECE, what, "there is no such disk");
		return 0;
	}
	if (result < 0)
		return result;
	if (walk->disk != id)
		*walk = (struct piece_walk){.disk = id};
	if (until == 0 && piece.off_bytes < walk->live_end_bytes)
		say(check, FLAW_PIECE, what, "it overlaps the one before");
	if (until == 0)
		walk->live_end_bytes = piece.off_bytes + piece.len_bytes;
	if (until == 0 && piece.off_bytes + piece.len_bytes > disk.size_bytes)
		say(check, FLAW_PIECE, what, "it reaches beyond the end of the disk");
	if (piece.since > disk.generation || until > disk.generation || (until != 0 && piece.since >= until))
		say(check, FLAW_PIECE, what, "it is of a generation to come");
	if (piece.off_bytes % check->chunk_bytes != 0 || piece.image_off_bytes % check->chunk_bytes != 0)
		say(check, FLAW_PIECE, what, "it is not at a multiple of the chunk size");
	return check_piece_image(check, what, &piece);
}

static int check_base(struct row_check *check)
{
	struct piece_walk walk = {.disk = 0};
	STATEMENT *query = NULL;
	int result;

	query = catalog_statement(check->catalog, ST_BASE_WALK, check->failure);
	if (query == NULL)
		return check->catalog->statement_error;
	while ((result = catalog_step(check->catalog, query, check->failure)) == 1) {
		result = check_piece(check, query, &walk);
		if (result == 0)
			result = count_row(check);
		if (result < 0)
			return result;
	}
	return result;
}

/* Each row, read as others would read it: values out of their ranges are found so. */
static int read_rows_of(struct row_check *check, const struct catalog_disk *disk)
{
	for (int state = CATALOG_ALIVE; state <= CATALOG_GOING; state++) {
		AUTO_FREE struct catalog_image *images = NULL;
		struct failure cause = {.code = 0};
		size_t count = 0;
		int result = catalog_image_list(check->catalog, disk->id, (enum catalog_state)state, &images, &count,
						&cause);

		for (size_t i = 0; i < count; i++)
			catalog_image_release(&images[i]);
		if (result == -EBADMSG)
			say(check, FLAW_ROW, disk->name, "a row of its images holds impossible values");
		else if (result < 0)
			return fail_from(check->failure, &cause);
	}
	return read_rounds_of(check, disk);
}

static int check_disks(struct row_check *check)
{
	int result;

	for (int state = CATALOG_ALIVE; state <= CATALOG_GOING; state++) {
		AUTO_FREE struct catalog_disk *disks = NULL;
		size_t count = 0;

		result = catalog_disk_list(check->catalog, (enum catalog_state)state, &disks, &count, check->failure);

		for (size_t i = 0; i < count; i++) {
			if (result == 0)
				result = read_rows_of(check, &disks[i]);
			catalog_disk_release(&disks[i]);
		}
		if (result < 0)
			return result;
	}
	result = check_all_numbers(check);
	return result == 0 ? check_base(check) : result;
}

/* ---- the sums ---- */

/* Neighbouring slots that differ are one flaw. */
static void compare_slots(struct row_check *check, enum flaw_kind kind, const uint64_t *sums, uint64_t a_slot,
			  const char *noun, const char *why)
{
	for (uint64_t slot = 0, end; slot < SLOTS; slot = end) {
		uint64_t first, last;
		char what[80];

		end = slot + 1;
		if (sums[slot] == 0)
			continue;
		while (end < SLOTS && sums[end] != 0)
			end++;
		first = slot * a_slot;
		last = end * a_slot - 1;
		if (first == last)
			(void)snprintf(what, sizeof(what), "%s %" PRIu64, noun, first);
		else
			(void)snprintf(what, sizeof(what), "%ss %" PRIu64 " to %" PRIu64, noun, first, last);
		say(check, kind, what, "%s", why);
	}
}

static void compare_sums(struct row_check *check)
{
	compare_slots(check, FLAW_REFERENCES, check->references, check->ids_a_slot, "chunk",
		      "references don't add up with the maps of disks and images");
	compare_slots(check, FLAW_DIGESTS, check->digests, check->ids_a_slot, "chunk",
		      "the index by digest doesn't agree with what is there");
	compare_slots(check, FLAW_LIVE, check->live, check->segments_a_slot, "segment",
		      "live bytes don't add up with the records that are referred to");
}

static int prepare(struct row_check *check)
{
	int64_t last_segment;
	int result = chunk_next_id(check->catalog, &check->next_chunk, check->failure);

	if (result < 0)
		return result;
	check->ids_a_slot = check->next_chunk / SLOTS + 1;
	STATEMENT *query = catalog_statement(check->catalog, ST_SEGMENT_LAST, check->failure);
	result = query == NULL ? check->catalog->statement_error : catalog_step(check->catalog, query, check->failure);
	if (result < 0)
		return result;
	last_segment = result == 1 ? sqlite3_column_int64(query, 0) : 0;
	check->segments_a_slot = (uint64_t)(last_segment > 0 ? last_segment : 0) / SLOTS + 1;
	return 0;
}

static int check_all(struct row_check *check)
{
	int result = prepare(check);

	if (result == 0)
		result = check_disks(check);
	if (result == 0)
		result = check_segments(check);
	if (result == 0)
		result = catalog_chunk_walk(check->catalog, 0, (uint64_t)1 << 62, check_chunk, check, check->failure);
	if (result == 0)
		result = states_walk_between(check->catalog, 1, 0, CATALOG_DISKS_END, 0, check_states, check,
					     check->failure);
	if (result == 0)
		result = check_index(check);
	if (result == 0)
		result = check_lost(check);
	if (result == 0)
		result = check_logs(check);
	if (result == 0)
		compare_sums(check);
	return result;
}

int catalog_check_rows(struct catalog *catalog, uint32_t chunk_bytes, const struct catalog_check *wanted,
		       struct failure *failure)
{
	AUTO(row_check_free) struct row_check *check = calloc(1, sizeof(*check));
	struct failure cause = {.code = 0};
	bool ours;
	int result;

	assert(!catalog->in_transaction && chunk_bytes > 0);
	if (check == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	check->catalog = catalog;
	check->check = wanted;
	check->chunk_bytes = chunk_bytes;
	check->failure = &cause;
	check->references = calloc(SLOTS, sizeof(uint64_t));
	check->digests = calloc(SLOTS, sizeof(uint64_t));
	check->live = calloc(SLOTS, sizeof(uint64_t));
	if (check->references == NULL || check->digests == NULL || check->live == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	sqlite3_randomness(sizeof(check->key), &check->key);
	result = catalog_snapshot_begin(catalog, &ours, failure);
	if (result < 0)
		return result;
	result = check_all(check);
	catalog_snapshot_end(catalog, ours);
	return result < 0 && cause.code != 0 ? fail_from(failure, &cause) : result;
}
