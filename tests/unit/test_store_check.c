/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A check of a store in a folder, where records are damaged one by one in every way that a record can be: what is
 * found, by which kind of check, and where it is said to be. (tests/integration/test-check.sh: the command on real
 * damage.)
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/internal.h"
#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store/check_report.h"
#include "store/local.h"

#define CHUNK ((size_t)STORE_CHUNK_LEAST_BYTES)
enum { CHUNKS = 12 };

struct one {
	struct scratch_folder folder;
	char *path; /* of the store */
	struct store *store;
	struct store_scratch *scratch;
	struct store_check_report report;
};

static struct failure failure;

static struct failure *why(void)
{
	failure_clear(&failure);
	return &failure;
}

static void assert_done(int result, const char *what, int line)
{
	if (result != 0)
		fail_msg("line %d: %s: %d: %s", line, what, result, failure.message);
}
#define must(call) assert_done((call), #call, __LINE__)

/* A disk "web01" with as many chunks of text; an image; then the first chunk changes. */
static void fill_store(struct one *one)
{
	const struct store_disk_params disk = {.name = "web01", .size_bytes = CHUNKS * CHUNK, .sector_bytes = 512};
	const struct store_image_params image = {.label = NULL};
	const struct store_reference live = {.disk = "web01", .which = STORE_LIVE};
	struct store_view *view;
	uint32_t number;

	must(store_create_disk(one->store, &disk, why()));
	must(store_view_open(one->store, &live, VIEW_WRITE, "test", &view, why()));
	for (uint64_t i = 0; i <= CHUNKS; i++) {
		struct store_change change = {.first_chunk = i % CHUNKS, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
		struct store_encoded encoded;
		uint8_t plain[CHUNK];
		uint64_t new_bytes;

		if (i == CHUNKS)
			must(store_create_image(view, &image, &number, why()));
		for (size_t k = 0; k < CHUNK; k++)
			plain[k] = (uint8_t) "a line of text\n"[(k + i) % 15] ^ (k % 511 == 0 ? (uint8_t)i : 0);
		must(hasher_digest(one->scratch->hasher, plain, CHUNK, change.digest, why()));
		must(store_encode_chunk(one->scratch, 3, change.digest, plain, CHUNK, &encoded, why()));
		must(store_put_chunk(view, &encoded, &change.chunk, &new_bytes, why()));
		must(store_commit(view, &change, 1, NULL, why()));
	}
	store_view_close(view);
}

static void open_store(struct one *one)
{
	must(store_open_local(one->path, &(struct store_options){.read_only = false}, &one->store, why()));
}

static int make_one(void **state)
{
	struct one *one = calloc(1, sizeof(*one));

	assert_non_null(one);
	scratch_folder_make(&one->folder);
	assert_true(asprintf(&one->path, "%s/store", one->folder.path) > 0);
	must(store_create_local(one->path, CHUNK, why()));
	open_store(one);
	must(store_scratch_new(&one->scratch, why()));
	fill_store(one);
	*state = one;
	return 0;
}

static int remove_one(void **state)
{
	struct one *one = *state;

	store_check_report_free(&one->report);
	store_scratch_free(one->scratch);
	store_close(one->store);
	scratch_folder_remove(&one->folder);
	free(one->path);
	free(one);
	return 0;
}

static const struct store_check_report *check(struct one *one, bool deep)
{
	store_check_report_free(&one->report);
	must(store_check(one->store, &(struct store_check_params){.deep = deep}, &one->report, why()));
	return &one->report;
}

/* Where chunk `id` is; ids are in the order of commits, from 1. */
static struct catalog_location locate(struct one *one, uint64_t id)
{
	struct local_store *local = local_of(one->store);
	struct catalog_location location;
	POOLED_READER(reader, local);

	must(pooled_reader_open(&reader, why()));
	must(catalog_chunk_get(reader.catalog, id, &location, why()));
	return location;
}

static int open_segment(struct one *one)
{
	AUTO_FREE char *path = NULL;
	int fd;

	assert_true(asprintf(&path, "%s/segments/01/00000001.seg", one->path) > 0);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void flip(struct one *one, uint64_t off_bytes)
{
	AUTO_CLOSE int fd = open_segment(one);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, (off_t)off_bytes), 1);
	byte ^= 0x40;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)off_bytes), 1);
}

/* Changes a record and makes both of its checksums right again: somebody wrote it so. */
static void forge(struct one *one, uint64_t id, void (*change)(struct record_header *header, uint8_t *payload))
{
	struct catalog_location at = locate(one, id);
	AUTO_CLOSE int fd = open_segment(one);
	AUTO_FREE uint8_t *payload = malloc(at.stored_bytes);
	uint8_t bytes[RECORD_HEADER_BYTES];
	struct record_header header;

	assert_non_null(payload);
	assert_int_equal(pread(fd, bytes, sizeof(bytes), at.off_bytes), sizeof(bytes));
	assert_int_equal(pread(fd, payload, at.stored_bytes, at.off_bytes + sizeof(bytes)), at.stored_bytes);
	must(record_header_decode(bytes, &header, why()));
	assert_int_equal(header.codec, CODEC_ZSTD);
	change(&header, payload);
	header.payload_checksum = record_payload_checksum(payload, at.stored_bytes);
	record_header_encode(&header, bytes);
	assert_int_equal(pwrite(fd, bytes, sizeof(bytes), at.off_bytes), sizeof(bytes));
	assert_int_equal(pwrite(fd, payload, at.stored_bytes, at.off_bytes + sizeof(bytes)), at.stored_bytes);
}

static void assert_damage(struct one *one, size_t index, uint32_t image, uint64_t first, uint64_t count,
			  const char *part)
{
	const struct store_damage *damage = &one->report.damages[index];

	assert_true(index < one->report.damage_count);
	assert_string_equal(damage->disk, "web01");
	assert_int_equal(damage->image, image);
	assert_int_equal(damage->off_bytes, first * CHUNK);
	assert_int_equal(damage->len_bytes, count * CHUNK);
	if (strstr(damage->why, part) == NULL)
		fail_msg("\"%s\" lacks \"%s\"", damage->why, part);
}

static void assert_clean(struct one *one, bool deep)
{
	const struct store_check_report *report = check(one, deep);

	if (!report->is_clean)
		fail_msg("%s: %s", report->flaw_count > 0 ? report->flaws[0].what : "damage",
			 report->flaw_count > 0 ? report->flaws[0].why : report->damages[0].why);
}

/* Of chunk 6, which live content and image have in place 5. */
static void assert_found(struct one *one, bool by_quick, const char *part)
{
	if (by_quick) {
		assert_false(check(one, false)->is_clean);
		assert_damage(one, 0, 0, 5, 1, part);
	} else {
		assert_clean(one, false);
	}
	assert_false(check(one, true)->is_clean);
	assert_int_equal(one->report.damage_count, 2);
	assert_int_equal(one->report.flaw_count, 0);
	assert_damage(one, 0, 0, 5, 1, part);
	assert_damage(one, 1, 1, 5, 1, part);
}

/* ---- records ---- */

static void undamaged_is_clean(void **state)
{
	struct one *one = *state;

	assert_clean(one, false);
	assert_clean(one, true);
	assert_int_equal(one->report.chunks, CHUNKS + 1);
	assert_int_equal(one->report.segments, 1);
}

static void every_byte_of_a_header_counts(void **state)
{
	struct one *one = *state;
	struct catalog_location at = locate(one, 6);

	for (unsigned i = 0; i < RECORD_HEADER_BYTES; i += 3) {
		flip(one, at.off_bytes + i);
		assert_found(one, true, "segment 00000001: damaged record: header");
		flip(one, at.off_bytes + i);
	}
	assert_clean(one, true);
}

static void payload_is_read_by_deep_checks(void **state)
{
	struct one *one = *state;
	struct catalog_location at = locate(one, 6);
	uint64_t places[] = {0, 3, at.stored_bytes / 2, at.stored_bytes - 1};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		flip(one, at.off_bytes + RECORD_HEADER_BYTES + places[i]);
		assert_found(one, false, "damaged record: payload");
		flip(one, at.off_bytes + RECORD_HEADER_BYTES + places[i]);
	}
	if (record_total_bytes(at.stored_bytes) > RECORD_HEADER_BYTES + (uint64_t)at.stored_bytes) {
		flip(one, at.off_bytes + record_total_bytes(at.stored_bytes) - 1); /* padding: harms nobody */
		assert_clean(one, true);
	}
}

static void break_frame(struct record_header *header, uint8_t *payload)
{
	payload[header->stored_bytes - 1] ^= 0xff;
	payload[header->stored_bytes / 2] ^= 0xff;
	payload[4] |= 3; /* a dictionary is wanted */
}

static void change_tail_of_digest(struct record_header *header, uint8_t *payload)
{
	(void)payload;
	header->digest[31] ^= 1;
}

static void change_head_of_digest(struct record_header *header, uint8_t *payload)
{
	(void)payload;
	header->digest[0] ^= 1;
}

static void make_log_record(struct record_header *header, uint8_t *payload)
{
	(void)payload;
	header->type = RECORD_LOG;
}

static void frame_that_was_made_wrong_is_found(void **state)
{
	struct one *one = *state;

	forge(one, 6, break_frame);
	assert_found(one, false, "it does not decompress");
}

static void content_of_another_digest_is_found(void **state)
{
	struct one *one = *state;

	forge(one, 6, change_tail_of_digest);
	assert_found(one, false, "content and SHA-256 differ");
}

static void record_of_another_digest_is_found(void **state)
{
	struct one *one = *state;

	forge(one, 6, change_head_of_digest);
	assert_found(one, true, "another record");
}

static void record_of_another_type_is_found(void **state)
{
	struct one *one = *state;

	forge(one, 6, make_log_record);
	assert_found(one, true, "another record");
}

static void damage_is_told_of_who_sees_it(void **state)
{
	struct one *one = *state;

	flip(one, locate(one, 1).off_bytes);	      /* the first place as the image sees it */
	flip(one, locate(one, CHUNKS + 1).off_bytes); /* as it is now */
	flip(one, locate(one, 2).off_bytes);
	flip(one, locate(one, 3).off_bytes);
	flip(one, locate(one, CHUNKS).off_bytes);
	assert_int_equal(check(one, false)->damage_count, 4);
	assert_damage(one, 0, 0, 0, 3, "header");
	assert_damage(one, 1, 0, CHUNKS - 1, 1, "header");
	assert_damage(one, 2, 1, 0, 3, "header");
	assert_damage(one, 3, 1, CHUNKS - 1, 1, "header");
}

/* ---- what is moved or goes away meanwhile ---- */

struct mover {
	struct one *one;
	atomic_bool stop;
	atomic_uint moved;
	const char *error;
};

/* As clean-up does: a copy elsewhere, the catalog is told, and what was there before is gone. */
static const char *move_chunk(struct one *one, uint64_t id)
{
	struct local_store *local = local_of(one->store);
	struct chunk_page *page = &local->writer->chunk_cache[id / CATALOG_CHUNK_PAGE_ENTRIES % CHUNK_CACHE_SLOTS];
	const uint8_t zeros[RECORD_HEADER_BYTES] = {0};
	struct catalog_location at;
	struct record_header header;
	uint8_t stored[2 * CHUNK];
	uint64_t off_bytes;
	AUTO_CLOSE int fd = open_segment(one);
	WITH_LOCK(&local->write_lock);

	if (local_begin_locked(local, NULL) < 0 || catalog_chunk_get(local->writer, id, &at, NULL) < 0 ||
	    segment_reader_read(local->reader, at.segment, at.off_bytes, at.stored_bytes, &header, stored, NULL) < 0 ||
	    segment_writer_append(local->segment, &header, stored, &off_bytes, NULL) < 0)
		return "moving a chunk";
	local->segment_is_dirty = true;
	page->chunks[id % CATALOG_CHUNK_PAGE_ENTRIES].off_bytes = (uint32_t)off_bytes;
	page->is_dirty = true;
	if (local_end_locked(local, NULL) < 0)
		return "committing the move of a chunk";
	return pwrite(fd, zeros, sizeof(zeros), at.off_bytes) == sizeof(zeros) ? NULL : "removing a chunk";
}

/* An image that is there for a moment, of content that only it has then. */
static const char *make_and_delete_image(struct one *one)
{
	const struct store_reference live = {.disk = "web01", .which = STORE_LIVE};
	const struct store_change change = {.first_chunk = 3, .chunk_count = 1, .kind = STORE_MAP_NOTHING};
	const struct store_image_params image = {.label = NULL};
	struct store_view *view;
	uint32_t number;
	uint64_t freed;
	int result;

	if (store_view_open(one->store, &live, VIEW_WRITE, "mover", &view, NULL) < 0)
		return "opening the disk";
	result = store_create_image(view, &image, &number, NULL);
	if (result == 0)
		result = store_commit(view, &change, 1, NULL, NULL);
	store_view_close(view);
	if (result == 0)
		result = store_delete_image(one->store, "web01", number, false, &freed, NULL);
	return result == 0 ? NULL : "making and deleting an image";
}

static void *move_things(void *opaque)
{
	struct mover *mover = opaque;

	while (!atomic_load(&mover->stop) && mover->error == NULL) {
		mover->error = move_chunk(mover->one, 2 + mover->moved++ % 8);
		if (mover->error == NULL && mover->moved % 4 == 0)
			mover->error = make_and_delete_image(mover->one);
	}
	return NULL;
}

static void what_others_do_is_no_damage(void **state)
{
	struct one *one = *state;
	struct mover mover = {.one = one};
	char message[2 * FAILURE_MESSAGE_BYTES] = "";
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, move_things, &mover), 0);
	/* on a busy machine checks are quick, and moves, which are synced, are not */
	for (unsigned n = 0; (n < 100 || (mover.moved <= 10 && n < 100000)) && message[0] == '\0'; n++) {
		struct store_check_report report = {.is_clean = false};
		const struct store_check_params params = {.deep = n % 2 == 0};

		if (store_check(one->store, &params, &report, why()) < 0 || !report.is_clean)
			(void)snprintf(message, sizeof(message), "%s %s %s", failure.message,
				       report.damage_count > 0 ? report.damages[0].why : "",
				       report.flaw_count > 0 ? report.flaws[0].why : "no flaw");
		store_check_report_free(&report);
	}
	atomic_store(&mover.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_string_equal(message, "");
	assert_null(mover.error);
	assert_true(mover.moved > 10);
	assert_clean(one, true);
}

/* ---- logs ---- */

static uint64_t log_place(struct one *one, uint64_t sequence)
{
	struct local_store *local = local_of(one->store);
	AUTO_FREE struct catalog_log_entry *entry = NULL;
	size_t count;
	POOLED_READER(reader, local);

	must(pooled_reader_open(&reader, why()));
	must(catalog_log_list(reader.catalog, 1, sequence, 1, &entry, &count, why()));
	assert_int_equal(count, 1);
	return entry->off_bytes;
}

static void assert_one_flaw(struct one *one, const char *what, const char *part)
{
	const struct store_check_report *report = check(one, false);

	assert_int_equal(report->damage_count, 0);
	assert_int_equal(report->flaw_count, 1);
	if (strcmp(report->flaws[0].what, what) != 0 || strstr(report->flaws[0].why, part) == NULL)
		fail_msg("\"%s: %s\" instead of \"%s: …%s\"", report->flaws[0].what, report->flaws[0].why, what,
			 part);
}

static void damaged_entries_of_logs_are_found(void **state)
{
	struct one *one = *state;
	uint64_t place = log_place(one, 4);

	for (unsigned i = 0; i < 90; i += 5) {
		flip(one, place + i);
		assert_one_flaw(one, "log of disk web01, entry 4", "segment 00000001 at");
		flip(one, place + i);
	}
	assert_clean(one, false);
}

static void execute(struct one *one, const char *sql)
{
	AUTO_FREE char *path = NULL;
	sqlite3 *db = NULL;
	char *message = NULL;

	store_close(one->store);
	one->store = NULL;
	assert_true(asprintf(&path, "%s/catalog.db", one->path) > 0);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK)
		fail_msg("%s: %s", sql, message);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	open_store(one);
}

static bool has_flaw(struct one *one, const char *what, const char *part)
{
	for (size_t i = 0; i < one->report.flaw_count; i++)
		if (strstr(one->report.flaws[i].what, what) != NULL && strstr(one->report.flaws[i].why, part) != NULL)
			return true;
	return false;
}

static void broken_chains_are_found(void **state)
{
	struct one *one = *state;

	execute(one, "UPDATE disk SET log_head=zeroblob(32)");
	assert_one_flaw(one, "log of disk web01, entry 15", "not the one that the disk knows");
	execute(one, "UPDATE disk SET log_head=(SELECT digest FROM log WHERE sequence=15)");
	assert_clean(one, false);
	execute(one, "UPDATE disk SET log_sequence=17");
	assert_one_flaw(one, "log of disk web01, entry 16", "missing, and the next 1 are");
	execute(one, "UPDATE disk SET log_sequence=15; DELETE FROM log WHERE sequence=7");
	assert_false(check(one, false)->is_clean);
	assert_true(has_flaw(one, "entry 7", "it is missing"));
}

static void swapped_entries_are_found(void **state)
{
	struct one *one = *state;

	execute(one, "UPDATE log SET sequence=100 WHERE sequence=5; UPDATE log SET sequence=5 WHERE sequence=6;"
		     "UPDATE log SET sequence=6 WHERE sequence=100");
	assert_false(check(one, false)->is_clean);
	assert_true(has_flaw(one, "entry 5", "it says that it is entry 6"));
	assert_true(has_flaw(one, "entry 6", "it says that it is entry 5"));
	assert_true(has_flaw(one, "entry 7", "follows on another"));
}

/* ---- the catalog ---- */

static void rows_that_cannot_be_read_are_damage(void **state)
{
	struct one *one = *state;

	execute(one, "UPDATE past SET entries=x'00'");
	assert_int_equal(check(one, false)->damage_count, 1);
	assert_damage(one, 0, 1, 0, CHUNKS, "catalog: it doesn't know what");
	execute(one, "UPDATE map SET entries=x'00'");
	assert_int_equal(check(one, false)->damage_count, 2);
	assert_damage(one, 0, 0, 0, CHUNKS, "catalog: it doesn't know what");
	assert_damage(one, 1, 1, 0, CHUNKS, "catalog: it doesn't know what");
}

static void chunks_without_a_place_are_damage(void **state)
{
	struct one *one = *state;

	execute(one, "UPDATE chunk SET entries=x'00'");
	assert_int_equal(check(one, false)->damage_count, 2);
	assert_damage(one, 0, 0, 0, CHUNKS, "catalog: it doesn't know where");
	execute(one, "DELETE FROM chunk");
	assert_int_equal(check(one, true)->damage_count, 2);
	assert_damage(one, 1, 1, 0, CHUNKS, "catalog: it doesn't know where");
}

static void wrong_counts_are_flaws(void **state)
{
	struct one *one = *state;

	execute(one, "UPDATE segment SET live_bytes=live_bytes-64");
	assert_one_flaw(one, "segment 1", "live bytes");
}

/* ---- the report ---- */

static void report_is_bounded_and_in_order(void **state)
{
	struct store_check_report report = {.is_clean = true};
	size_t last[2] = {0, 0};

	(void)state;
	for (uint64_t i = 0; i < STORE_DAMAGES_MOST; i++)
		for (size_t who = 0; who < 2; who++)
			must(check_report_damage(&report, &last[who], "web01", (uint32_t)who, i * 20, 10, "why",
						 why()));
	assert_int_equal(report.damage_count, STORE_DAMAGES_MOST);
	assert_int_equal(report.more_damages, STORE_DAMAGES_MOST);
	for (unsigned i = 0; i < STORE_FLAWS_MOST + 5; i++)
		must(check_report_flaw(&report, why(), "what", "flaw %u", i));
	assert_int_equal(report.flaw_count, STORE_FLAWS_MOST);
	assert_int_equal(report.more_flaws, 5);
	check_report_finish(&report);
	assert_false(report.is_clean);
	for (size_t i = 1; i < report.damage_count; i++)
		assert_true(report.damages[i - 1].image < report.damages[i].image ||
			    report.damages[i - 1].off_bytes < report.damages[i].off_bytes);
	store_check_report_free(&report);
}

static void ranges_that_touch_are_one(void **state)
{
	struct store_check_report report = {.is_clean = true};
	size_t last = 0;

	(void)state;
	must(check_report_damage(&report, &last, "web01", 1, 10, 10, "why", why()));
	must(check_report_damage(&report, &last, "web01", 1, 20, 10, "why", why()));
	must(check_report_damage(&report, &last, "web01", 1, 25, 10, "another", why())); /* told already */
	must(check_report_damage(&report, &last, "web01", 1, 30, 10, "another", why()));
	must(check_report_damage(&report, &last, "web01", 1, 50, 10, "another", why()));
	assert_int_equal(report.damage_count, 3);
	assert_int_equal(report.damages[0].len_bytes, 20);
	store_check_report_free(&report);
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_one, remove_one)

static const struct store_repair *repair(struct one *one)
{
	const struct store_check_params params = {.deep = true, .repair = true};

	store_check_report_free(&one->report);
	must(store_check(one->store, &params, &one->report, why()));
	return &one->report.repair;
}

static void commit_again(struct one *one, uint64_t place)
{
	const struct store_reference live = {.disk = "web01", .which = STORE_LIVE};
	struct store_change change = {.first_chunk = place, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
	struct store_encoded encoded;
	struct store_view *view;
	uint8_t plain[CHUNK];
	uint64_t new_bytes;

	must(store_view_open(one->store, &live, VIEW_WRITE, "test", &view, why()));
	for (size_t k = 0; k < CHUNK; k++)
		plain[k] = (uint8_t) "a line of text\n"[(k + place) % 15] ^ (k % 511 == 0 ? (uint8_t)place : 0);
	must(hasher_digest(one->scratch->hasher, plain, CHUNK, change.digest, why()));
	must(store_find_chunks(one->store, &change.digest, 1, &change.chunk, why()));
	assert_int_equal(change.chunk, 0);
	must(store_encode_chunk(one->scratch, 3, change.digest, plain, CHUNK, &encoded, why()));
	must(store_put_chunk(view, &encoded, &change.chunk, &new_bytes, why()));
	must(store_commit(view, &change, 1, NULL, why()));
	store_view_close(view);
}

/* Header and payload alike: the digest is in the header, or in the log. */
static void what_was_marked_is_healed_by_the_commit_that_brings_it(void **state)
{
	struct one *one = *state;
	struct catalog_location second = locate(one, 2), third = locate(one, 3), now;
	struct store_image *images;
	size_t count;

	flip(one, second.off_bytes + 20);
	flip(one, third.off_bytes + 64);
	assert_int_equal(repair(one)->waiting_chunks, 2);
	assert_int_equal(one->report.repair.unknown_chunks, 0);
	assert_false(one->report.is_clean);
	assert_false(check(one, false)->is_clean);
	must(store_list_images(one->store, NULL, &images, &count, why()));
	assert_true(images[0].damaged);
	store_images_free(images, count);
	now = locate(one, 3);
	assert_int_equal(now.off_bytes, third.off_bytes); /* it may come back */

	commit_again(one, 1);
	assert_int_equal(repair(one)->waiting_chunks, 1);
	commit_again(one, 2);
	assert_int_equal(repair(one)->waiting_chunks, 0);
	assert_true(check(one, true)->is_clean);
	must(store_list_images(one->store, NULL, &images, &count, why()));
	assert_false(images[0].damaged);
	store_images_free(images, count);
	now = locate(one, 3);
	assert_true(now.segment != third.segment || now.off_bytes != third.off_bytes);
}

static void what_is_sound_again_is_unmarked(void **state)
{
	struct one *one = *state;
	struct catalog_location second = locate(one, 2);

	flip(one, second.off_bytes + 64);
	assert_int_equal(repair(one)->waiting_chunks, 1);
	flip(one, second.off_bytes + 64);
	assert_false(check(one, true)->is_clean); /* nobody reads what is marked */
	assert_int_equal(repair(one)->sound_chunks, 1);
	assert_true(one->report.is_clean);
	assert_true(check(one, true)->is_clean);
}

static void a_repair_needs_a_deep_check_and_a_store_to_write_to(void **state)
{
	struct one *one = *state;
	const struct store_check_params shallow = {.repair = true}, params = {.deep = true, .repair = true};

	assert_int_equal(store_check(one->store, &shallow, &one->report, why()), -EINVAL);
	store_close(one->store);
	must(store_open_local(one->path, &(struct store_options){.read_only = true}, &one->store, why()));
	assert_int_equal(store_check(one->store, &params, &one->report, why()), -EROFS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(undamaged_is_clean),
		test(every_byte_of_a_header_counts),
		test(payload_is_read_by_deep_checks),
		test(frame_that_was_made_wrong_is_found),
		test(content_of_another_digest_is_found),
		test(record_of_another_digest_is_found),
		test(record_of_another_type_is_found),
		test(damage_is_told_of_who_sees_it),
		test(what_others_do_is_no_damage),
		test(damaged_entries_of_logs_are_found),
		test(broken_chains_are_found),
		test(swapped_entries_are_found),
		test(rows_that_cannot_be_read_are_damage),
		test(chunks_without_a_place_are_damage),
		test(wrong_counts_are_flaws),
		test(what_was_marked_is_healed_by_the_commit_that_brings_it),
		test(what_is_sound_again_is_unmarked),
		test(a_repair_needs_a_deep_check_and_a_store_to_write_to),
		cmocka_unit_test(report_is_bounded_and_in_order),
		cmocka_unit_test(ranges_that_touch_are_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
