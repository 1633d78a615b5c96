/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/check.c and states_walk.c: a catalog that was only ever changed by its own functions is clean; each kind of
 * change made behind its back is found, and named.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

enum { CHUNK_BYTES = 65536, PLACES = 600, STEPS = 60 };

struct one {
	struct catalog_fixture fixture; /* the first member */
	struct catalog_disk disks[2];
	char flaws[16384]; /* "what: why\n" for each */
};

static int make_one(void **state)
{
	struct one *one;

	(void)catalog_fixture_setup(state, sizeof(*one), 4242);
	one = *state;
	catalog_fixture_disk(one->fixture.catalog, "web01", &one->disks[0]);
	catalog_fixture_disk(one->fixture.catalog, "web02", &one->disks[1]);
	return 0;
}

static void add_log_entry(struct one *one, struct catalog_disk *disk)
{
	struct catalog_log_entry entry = {.disk = disk->id, .sequence = ++disk->log_sequence, .stored_bytes = 64};
	struct failure failure = {.code = 0};
	struct catalog_segment segment;

	entry.segment = (uint32_t)catalog_fixture_value(one->fixture.catalog, "SELECT max(number) FROM segment");
	assert_done(catalog_segment_get(one->fixture.catalog, entry.segment, &segment, &failure), &failure);
	entry.off_bytes = (uint32_t)segment.length_bytes;
	assert_done(catalog_segment_update(one->fixture.catalog, entry.segment,
					   segment.length_bytes + catalog_record_bytes(64), false, &failure),
		    &failure);
	assert_done(catalog_log_insert(one->fixture.catalog, &entry, &failure), &failure);
	assert_done(catalog_disk_update(one->fixture.catalog, disk, &failure), &failure);
}

/* Content, images, deletions of some, at random. */
static void live_a_while(struct one *one)
{
	struct failure failure = {.code = 0};
	struct catalog_image images[STEPS];
	size_t image_count = 0;

	for (unsigned step = 0; step < STEPS; step++) {
		struct catalog_disk *disk = &one->disks[step % 2];
		uint64_t chunk = 0;

		catalog_fixture_begin(one->fixture.catalog);
		for (unsigned i = 0; i < 20; i++) {
			if (i % 3 == 0 || chunk == 0)
				chunk = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
			catalog_fixture_put(one->fixture.catalog, disk, catalog_fixture_below(&one->fixture, PLACES),
					    i % 7 == 6 ? 0 : chunk);
		}
		add_log_entry(one, disk);
		if (step % 5 > 1)
			catalog_fixture_image(one->fixture.catalog, disk, &images[image_count++]);
		catalog_fixture_commit(one->fixture.catalog);
	}
	for (size_t i = 0; i < image_count; i += 3) {
		struct catalog_position position = {.until = 0};
		uint64_t freed = 0;
		bool is_done = false;

		images[i].state = CATALOG_GOING;
		catalog_fixture_begin(one->fixture.catalog);
		assert_done(catalog_image_update(one->fixture.catalog, &images[i], &failure), &failure);
		for (unsigned n = 0; n < 2 && !is_done; n++) /* some stay half swept */
			assert_done(catalog_image_sweep(one->fixture.catalog, &images[i], &position, 1, &freed,
							&is_done, &failure),
				    &failure);
		catalog_fixture_commit(one->fixture.catalog);
	}
}

static void take_flaw(void *opaque, const char *what, const char *why)
{
	struct one *one = opaque;
	size_t used = strlen(one->flaws);

	(void)snprintf(one->flaws + used, sizeof(one->flaws) - used, "%s: %s\n", what, why);
}

static void check_all(struct one *one)
{
	const struct catalog_check check = {.flaw = take_flaw, .opaque = one};
	struct failure failure = {.code = 0};

	one->flaws[0] = '\0';
	assert_done(catalog_check_database(one->fixture.catalog, &check, &failure), &failure);
	assert_done(catalog_check_rows(one->fixture.catalog, CHUNK_BYTES, &check, &failure), &failure);
}

static void assert_clean(struct one *one)
{
	check_all(one);
	assert_string_equal(one->flaws, "");
}

static void assert_flaw(struct one *one, const char *part)
{
	check_all(one);
	if (strstr(one->flaws, part) == NULL)
		fail_msg("\"%s\" lacks \"%s\"", one->flaws, part);
}

/* ---- what is clean ---- */

static void new_catalog_is_clean(void **state)
{
	assert_clean(*state);
}

static void catalog_that_was_used_is_clean(void **state)
{
	struct one *one = *state;

	live_a_while(one);
	assert_clean(one);
	one->disks[0].state = CATALOG_GOING;
	catalog_fixture_begin(one->fixture.catalog);
	struct failure failure = {.code = 0};
	assert_done(catalog_disk_update(one->fixture.catalog, &one->disks[0], &failure), &failure);
	catalog_fixture_commit(one->fixture.catalog);
	for (bool is_done = false; !is_done;) {
		uint64_t freed = 0;

		catalog_fixture_begin(one->fixture.catalog);
		assert_done(catalog_disk_sweep(one->fixture.catalog, &one->disks[0], 2, &freed, &is_done, &failure),
			    &failure);
		catalog_fixture_commit(one->fixture.catalog);
		assert_clean(one);
	}
}

static void check_sees_one_moment(void **state)
{
	struct one *one = *state;
	struct catalog *reader = catalog_fixture_open(&one->fixture, true, false);
	const struct catalog_check check = {.flaw = take_flaw, .opaque = one};
	struct failure failure = {.code = 0};
	bool ours;

	live_a_while(one);
	assert_done(catalog_snapshot_begin(reader, &ours, &failure), &failure);
	assert_int_not_equal(catalog_fixture_value(reader, "SELECT count(*) FROM map"), 0);
	live_a_while(one); /* behind its back */
	assert_done(catalog_check_rows(reader, CHUNK_BYTES, &check, &failure), &failure);
	assert_string_equal(one->flaws, "");
	catalog_snapshot_end(reader, ours);
	catalog_close(reader);
}

static void check_stops(void **state)
{
	struct one *one = *state;
	const atomic_bool stop = true;
	const struct catalog_check check = {.flaw = take_flaw, .opaque = one, .stop = &stop};
	struct failure failure = {.code = 0};

	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned i = 0; i < 3000; i++)
		(void)catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(catalog_check_rows(one->fixture.catalog, CHUNK_BYTES, &check, &failure), -EINTR);
	assert_string_equal(failure.message, "");
	assert_clean(one);
}

/* ---- what is not ---- */

static void changed_rows_are_found(void **state)
{
	static const struct {
		const char *sql, *flaw;
	} cases[] = {
		{"UPDATE segment SET live_bytes=live_bytes+8 WHERE number=2", "segment 2: live bytes don't add up"},
		{"UPDATE segment SET length_bytes=length_bytes-8 WHERE number=1", "beyond the end of segment 00000001"},
		{"DELETE FROM segment WHERE number=1", "beyond the end of segment 00000001"},
		{"DELETE FROM digest WHERE chunk=5", "chunk 5: the index by digest doesn't agree"},
		{"UPDATE digest SET tag=tag+1 WHERE chunk=7", "chunk 7: the index by digest doesn't agree"},
		{"INSERT INTO digest VALUES(12345,6)", "chunk 6: the index by digest doesn't agree"},
		{"DELETE FROM map WHERE key=(SELECT min(key) FROM map)", "references don't add up"},
		{"DELETE FROM past WHERE disk=1", "references don't add up"},
		{"DELETE FROM chunk WHERE page=1", "references don't add up"},
		{"UPDATE chunk SET entries=substr(entries,1,20) WHERE page=0",
		 "the row of chunks 0 to 63 can't be read"},
		{"UPDATE map SET entries=x'00' WHERE key=(SELECT min(key) FROM map)", "in table map can't be read"},
		{"UPDATE past SET until=until+100 WHERE disk=1",
		 "in table past can't be read"}, /* its key is under seal */
		{"UPDATE map SET key=key+100000 WHERE key=(SELECT min(key) FROM map)", "in table map can't be read"},
		{"UPDATE disk SET generation=1 WHERE id=1", "disk 1, image "},
		{"UPDATE disk SET size_bytes=65536 WHERE id=2", "beyond the end of the disk"},
		{"UPDATE disk SET next_image=1 WHERE id=2", "its disk doesn't know of it"},
		{"UPDATE image SET generation=1 WHERE disk=1 AND number=(SELECT max(number) FROM image WHERE disk=1)",
		 "an older image is of a later generation"},
		{"DELETE FROM disk WHERE id=2", "there is content of it, but no such disk"},
		{"UPDATE image SET pinned=7 WHERE disk=1", "a row of its images holds impossible values"},
		{"INSERT INTO "
		 "round(disk,number,state,source,identity,how,start_stamp,dirty_bitmaps,dirty_bytes,started_at,"
		 "finished_at,cursor_bytes,total,done,read,left_out,zero,changed,stored,sent) "
		 "VALUES(1,9,0,'','','','','',0,0,0,0,0,0,0,0,0,0,0,0)",
		 "disk 1, round 9: its disk doesn't know of it"},
		{"UPDATE counter SET value=10", "its number was never given out"},
		{"UPDATE log SET off_bytes=4000000 WHERE disk=1 AND sequence=1",
		 "disk 1, log entry 1: its record is beyond"},
		{"DELETE FROM log WHERE disk=2 AND sequence=2", "live bytes don't add up"},
	};
	struct one *one = *state;

	live_a_while(one);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		catalog_fixture_execute(one->fixture.catalog, "SAVEPOINT as_it_was");
		catalog_fixture_execute(one->fixture.catalog, cases[i].sql);
		if (sqlite3_changes(one->fixture.catalog->db) == 0)
			fail_msg("%s: changes nothing", cases[i].sql);
		one->fixture.catalog->in_snapshot = true; /* the savepoint is one */
		check_all(one);
		one->fixture.catalog->in_snapshot = false;
		if (strstr(one->flaws, cases[i].flaw) == NULL)
			fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].sql, one->flaws, cases[i].flaw);
		catalog_fixture_execute(one->fixture.catalog, "ROLLBACK TO as_it_was; RELEASE as_it_was");
	}
	assert_clean(one);
}

/* Whatever single reference is changed, the sums tell. */
static void each_lost_reference_is_found(void **state)
{
	struct one *one = *state;
	AUTO_FREE struct chunk_page *page = calloc(1, sizeof(*page));

	assert_non_null(page);
	live_a_while(one);
	for (unsigned n = 0; n < 40; n++) {
		AUTO(byte_writer_free) struct byte_writer before = BYTE_WRITER_EMPTY;
		AUTO(byte_writer_free) struct byte_writer after = BYTE_WRITER_EMPTY;
		unsigned index = 1 + (unsigned)catalog_fixture_below(&one->fixture, 60);
		struct failure failure = {.code = 0};
		sqlite3_stmt *put_row = NULL;
		char what[32];

		for (unsigned i = 1; i < CATALOG_CHUNK_PAGE_ENTRIES; i++)
			assert_done(catalog_chunk_get(one->fixture.catalog, i, &page->chunks[i], &failure), &failure);
		chunk_page_encode(page, &before);
		page_seal(CHUNK_PAGE_KEY(0), &before);
		page->chunks[index].references += 1 + n % 3;
		chunk_page_encode(page, &after);
		page_seal(CHUNK_PAGE_KEY(0), &after);
		for (int undo = 0; undo < 2; undo++) {
			const struct byte_writer *blob = undo ? &before : &after;

			assert_int_equal(sqlite3_prepare_v2(one->fixture.catalog->db,
							    "UPDATE chunk SET entries=?1 WHERE page=0", -1, &put_row,
							    NULL),
					 SQLITE_OK);
			(void)sqlite3_bind_blob64(put_row, 1, blob->data, blob->len_bytes, SQLITE_STATIC);
			assert_int_equal(sqlite3_step(put_row), SQLITE_DONE);
			(void)sqlite3_finalize(put_row);
			if (undo)
				break;
			(void)snprintf(what, sizeof(what), "chunk %u: references don't", index);
			assert_flaw(one, what);
		}
	}
	assert_clean(one);
}

static void pieces_that_do_not_fit_are_found(void **state)
{
	static const struct {
		const char *sql, *flaw;
	} cases[] = {
		{"UPDATE base SET disk=77", "disk 77, base at 0: there is no such disk"},
		{"UPDATE base SET image_disk=77", "base at 0: the image that it comes from is gone"},
		{"UPDATE base SET image_number=2", "the image that it comes from is gone"},
		{"UPDATE base SET image_generation=0", "the image that it comes from is gone"},
		{"UPDATE base SET image_generation=7", "another one than meant"},
		{"UPDATE base SET image_uuid=randomblob(16)", "another one than meant"},
		{"UPDATE base SET image_off_bytes=1125899906842624", "beyond the end of the image"},
		{"UPDATE base SET len_bytes=1125899906842624 WHERE off_bytes>0", "beyond the end of the disk"},
		{"UPDATE base SET len_bytes=len_bytes+1 WHERE off_bytes=0",
		 "base at 131072: it overlaps the one before"},
		{"UPDATE base SET since=9", "of a generation to come"},
		{"UPDATE base SET until=9", "of a generation to come"},
		{"UPDATE base SET off_bytes=off_bytes+512", "not at a multiple of the chunk size"},
		{"UPDATE base SET len_bytes=0", "a row of table base holds impossible values"},
		{"UPDATE base SET image_uuid=x'00'", "a row of table base holds impossible values"},
	};
	struct one *one = *state;
	struct failure failure = {.code = 0};
	struct catalog_image image;
	struct catalog_piece pieces[2];

	catalog_fixture_begin(one->fixture.catalog);
	catalog_fixture_image(one->fixture.catalog, &one->disks[0], &image);
	for (unsigned i = 0; i < 2; i++)
		pieces[i] = (struct catalog_piece){.off_bytes = i * 2 * (uint64_t)CHUNK_BYTES,
						   .len_bytes = 2 * (uint64_t)CHUNK_BYTES,
						   .image_disk = one->disks[0].id,
						   .image_number = image.number,
						   .image_generation = image.generation};
	assert_done(catalog_base_set(one->fixture.catalog, &one->disks[1], pieces, 2, &failure), &failure);
	catalog_fixture_commit(one->fixture.catalog);
	assert_clean(one);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		catalog_fixture_execute(one->fixture.catalog, "CREATE TABLE saved AS SELECT * FROM base");
		catalog_fixture_execute(one->fixture.catalog, cases[i].sql);
		assert_flaw(one, cases[i].flaw);
		catalog_fixture_execute(one->fixture.catalog,
					"DELETE FROM base; INSERT INTO base SELECT * FROM saved; DROP TABLE saved");
	}
	assert_clean(one);
}

static void damaged_file_is_a_flaw(void **state)
{
	struct one *one = *state;
	const struct catalog_check check = {.flaw = take_flaw, .opaque = one};
	struct failure failure = {.code = 0};
	uint8_t zeros[4096] = {0};
	char path[300];
	int64_t root;
	FILE *file;

	live_a_while(one);
	root = catalog_fixture_value(one->fixture.catalog, "SELECT rootpage FROM sqlite_master WHERE name='digest'");
	catalog_close(one->fixture.catalog);
	(void)snprintf(path, sizeof(path), "%s/catalog.db", one->fixture.folder);
	file = fopen(path, "r+e");
	assert_non_null(file);
	assert_int_equal(fseek(file, (root - 1) * 4096, SEEK_SET), 0);
	assert_int_equal(fwrite(zeros, 1, sizeof(zeros), file), sizeof(zeros));
	assert_int_equal(fclose(file), 0);
	one->fixture.catalog = catalog_fixture_open(&one->fixture, true, false);
	assert_done(catalog_check_database(one->fixture.catalog, &check, &failure), &failure);
	assert_string_not_equal(one->flaws, "");
}

/* ---- states ---- */

struct told {
	char text[512];
};

static int tell(void *opaque, const struct catalog_states *states)
{
	struct told *told = opaque;
	size_t used = strlen(told->text);

	(void)snprintf(told->text + used, sizeof(told->text) - used, "%llu/%u%s ", (unsigned long long)states->page,
		       states->until, states->is_bad ? "!" : "");
	return states->page == 99 ? 5 : 0;
}

static void states_come_page_by_page_the_live_one_last(void **state)
{
	struct one *one = *state;
	struct catalog_disk *disk = &one->disks[0];
	struct failure failure = {.code = 0};
	struct catalog_image image;
	struct told told = {.text = ""};

	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned n = 0; n < 3; n++) {
		uint64_t chunk = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);

		catalog_fixture_put(one->fixture.catalog, disk, 0, chunk);
		catalog_fixture_put(one->fixture.catalog, disk, 256 * 7, n == 2 ? 0 : chunk);
		catalog_fixture_image(one->fixture.catalog, disk, &image);
	}
	catalog_fixture_put(one->fixture.catalog, disk, 256 * 9,
			    catalog_fixture_chunk(&one->fixture, one->fixture.catalog));
	catalog_fixture_put(one->fixture.catalog, disk, 256 * 99,
			    catalog_fixture_chunk(&one->fixture, one->fixture.catalog));
	catalog_fixture_put(one->fixture.catalog, &one->disks[1], 256 * 7,
			    catalog_fixture_chunk(&one->fixture, one->fixture.catalog));
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(catalog_states_walk(one->fixture.catalog, disk->id, 0, UINT64_MAX, tell, &told, &failure), 5);
	assert_string_equal(told.text, "0/2 0/3 0/0 7/2 7/3 9/4 9/0 99/4 ");
	told.text[0] = '\0';
	assert_done(catalog_states_walk(one->fixture.catalog, disk->id, 1, 9, tell, &told, &failure), &failure);
	assert_string_equal(told.text, "7/2 7/3 ");
	catalog_fixture_execute(one->fixture.catalog, "UPDATE past SET entries=x'00' WHERE page=7 AND until=2");
	catalog_fixture_execute(one->fixture.catalog, "UPDATE map SET entries=x'00' WHERE key=1<<40");
	told.text[0] = '\0';
	assert_done(catalog_states_walk(one->fixture.catalog, disk->id, 0, 10, tell, &told, &failure), &failure);
	assert_string_equal(told.text, "0/2 0/3 0/0! 7/2! 7/3 9/4 9/0 ");
}

static void logs_are_found_by_disk(void **state)
{
	struct one *one = *state;
	struct failure failure = {.code = 0};
	int64_t disk = -1;

	assert_done(catalog_log_next_disk(one->fixture.catalog, 0, &disk, &failure), &failure);
	assert_int_equal(disk, 0);
	live_a_while(one);
	for (int64_t expected = 0; expected < 3; expected++) {
		assert_done(catalog_log_next_disk(one->fixture.catalog, expected, &disk, &failure), &failure);
		assert_int_equal(disk, expected == 2 ? 0 : expected + 1);
	}
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_one, catalog_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(new_catalog_is_clean),
		test(catalog_that_was_used_is_clean),
		test(check_sees_one_moment),
		test(check_stops),
		test(changed_rows_are_found),
		test(each_lost_reference_is_found),
		test(pieces_that_do_not_fit_are_found),
		test(damaged_file_is_a_flaw),
		test(states_come_page_by_page_the_live_one_last),
		test(logs_are_found_by_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
