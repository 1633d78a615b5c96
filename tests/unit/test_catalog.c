/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/: rows, transactions, handles side by side, durability, and what happens when the file isn't what it should
 * be. Content has tests of its own in test_catalog_model.c, the bytes of pages in test_catalog_pages.c.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

enum { KILLS = 12, CONCURRENT_COMMITS = 60, DAMAGED_FILES = 250 };

struct two {
	struct catalog_fixture fixture;
	struct catalog *a, *b;
};

static int make_two(void **state)
{
	struct two *two = calloc(1, sizeof(*two));

	assert_non_null(two);
	catalog_fixture_make(&two->fixture, 4711);
	two->a = catalog_fixture_open(&two->fixture, false, true);
	two->b = catalog_fixture_open(&two->fixture, false, true);
	*state = two;
	return 0;
}

static int remove_two(void **state)
{
	struct two *two = *state;

	catalog_close(two->a);
	catalog_close(two->b);
	catalog_fixture_remove(&two->fixture);
	free(two);
	return 0;
}

static void begin(struct catalog *catalog)
{
	struct failure failure = {.code = 0};

	assert_done(catalog_begin(catalog, &failure), &failure);
}

static void commit(struct catalog *catalog)
{
	struct failure failure = {.code = 0};

	assert_done(catalog_commit(catalog, &failure), &failure);
}

/* ------------------------------------------------------------- creating */

static void creating_where_one_is_changes_nothing(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;

	catalog_fixture_disk(two->a, "web01", &disk);
	assert_int_equal(catalog_create(two->fixture.folder, 65536, &failure), -EEXIST);
	assert_non_null(strstr(failure.message, "exists"));
	assert_int_equal(catalog_fixture_value(two->b, "SELECT count(*) FROM disk"), 1);
}

static void creating_in_no_folder_says_so(void **state)
{
	struct failure failure = {.code = 0};

	(void)state;
	assert_int_equal(catalog_create("/nonexistent/folder", 65536, &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "/nonexistent/folder"));
}

static void opening_none_says_so(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;

	assert_int_equal(catalog_open("/nonexistent/folder", two->fixture.locks_fd, false, &catalog, &failure),
			 -ENOENT);
	assert_null(catalog);
}

static void commits_are_synchronous_and_checkpoints_ours(void **state)
{
	struct two *two = *state;
	struct catalog *catalog = catalog_fixture_open(&two->fixture, false, false);

	assert_int_equal(catalog_fixture_value(catalog, "PRAGMA synchronous"), 2 /* FULL */);
	assert_int_equal(catalog_fixture_value(catalog, "PRAGMA wal_autocheckpoint"), 0);
	catalog_close(catalog);
}

static void closing_leaves_an_empty_log(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;
	char path[300];
	struct stat status;

	catalog_fixture_disk(two->a, "web01", &disk);
	catalog_close(two->b);
	catalog_close(two->a);
	(void)snprintf(path, sizeof(path), "%s/catalog.db-wal", two->fixture.folder);
	assert_true(stat(path, &status) < 0 || status.st_size == 0);
	two->a = catalog_fixture_open(&two->fixture, false, true);
	two->b = catalog_fixture_open(&two->fixture, false, true);
	assert_int_equal(catalog_fixture_value(two->b, "SELECT count(*) FROM disk"), 1);
}

static void log_stays_short(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_change change = {.count = 1, .kind = CATALOG_ZERO};
	uint64_t bytes, changed = 0, newly_changed = 0;

	catalog_fixture_disk(two->a, "web01", &disk);
	for (unsigned n = 0; n < 60; n++) { /* 512 pages each: some 4 MiB of log a commit without checkpoints */
		begin(two->a);
		for (unsigned i = 0; i < 512; i++) {
			change.first = (uint64_t)i * CATALOG_PAGE_ENTRIES * 7;
			change.kind = n % 2 == 0 ? CATALOG_ZERO : CATALOG_NOTHING;
			assert_done(catalog_map_update(two->a, &disk, &change, 1, &changed, &newly_changed, &failure),
				    &failure);
		}
		for (unsigned i = 0; i < 1000; i++)
			(void)catalog_fixture_chunk(&two->fixture, two->a);
		commit(two->a);
	}
	assert_done(catalog_size(two->a, &bytes, &failure), &failure);
	assert_true(bytes > 1 << 20 && bytes < 64 << 20);
}

/* ---------------------------------------------------- formats and files */

static void assert_refused(struct two *two, int expected)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;

	assert_int_equal(catalog_open(two->fixture.folder, two->fixture.locks_fd, false, &catalog, &failure), expected);
	assert_null(catalog);
	assert_string_not_equal(failure.message, "");
	failure_clear(&failure);
	assert_int_equal(catalog_open(two->fixture.folder, two->fixture.locks_fd, true, &catalog, &failure), expected);
}

static void newer_format_is_refused(void **state)
{
	struct two *two = *state;

	catalog_fixture_execute(two->a, "PRAGMA user_version=4");
	assert_refused(two, -EPROTONOSUPPORT);
	catalog_fixture_execute(two->a, "PRAGMA user_version=0");
	assert_refused(two, -EBADMSG);
}

static void database_of_something_else_is_refused(void **state)
{
	struct two *two = *state;

	catalog_fixture_execute(two->a, "PRAGMA application_id=1");
	assert_refused(two, -EBADMSG);
}

static void overwrite(struct two *two, const void *bytes, size_t len_bytes)
{
	char path[300];
	FILE *file;

	catalog_close(two->a);
	catalog_close(two->b);
	two->a = two->b = NULL;
	(void)snprintf(path, sizeof(path), "%s/catalog.db", two->fixture.folder);
	file = fopen(path, "we");
	assert_non_null(file);
	assert_int_equal(fwrite(bytes, 1, len_bytes, file), len_bytes);
	assert_int_equal(fclose(file), 0);
}

static void text_file_is_refused(void **state)
{
	static char text[8192];

	memset(text, 'x', sizeof(text));
	overwrite(*state, text, sizeof(text));
	assert_refused(*state, -EBADMSG);
}

static void empty_file_is_refused(void **state)
{
	overwrite(*state, "", 0);
	assert_refused(*state, -EBADMSG);
}

/* ----------------------------------------------------------------- rows */

static void fill_disk(struct catalog_disk *disk, const char *name)
{
	*disk = (struct catalog_disk){.size_bytes = (uint64_t)1 << 60,
				      .sector_bytes = 65536,
				      .generation = UINT32_MAX,
				      .keep = 1000000,
				      .level = 10,
				      .limit_bytes_per_second = INT64_MAX,
				      .mirror_of = strdup("nbd://host/d\xc3\xa4sk"),
				      .log_sequence = (uint64_t)1 << 62,
				      .created_at = INT64_MIN,
				      .next_image = UINT32_MAX,
				      .next_round = UINT32_MAX,
				      .changed_bytes = (uint64_t)1 << 62,
				      .content_round = UINT32_MAX};
	(void)snprintf(disk->name, sizeof(disk->name), "%s", name);
	memset(disk->uuid, 0x11, sizeof(disk->uuid));
	memset(disk->fingerprint_key, 0x22, sizeof(disk->fingerprint_key));
	memset(disk->log_head, 0x33, sizeof(disk->log_head));
}

static void assert_same_text(const char *a, const char *b)
{
	assert_int_equal(a == NULL, b == NULL);
	if (a != NULL)
		assert_string_equal(a, b);
}

static void assert_same_disk(const struct catalog_disk *a, const struct catalog_disk *b)
{
	assert_true(a->id == b->id && a->size_bytes == b->size_bytes && a->sector_bytes == b->sector_bytes &&
		    a->generation == b->generation && a->state == b->state && a->keep == b->keep &&
		    a->level == b->level && a->limit_bytes_per_second == b->limit_bytes_per_second &&
		    a->log_sequence == b->log_sequence && a->created_at == b->created_at &&
		    a->next_image == b->next_image && a->next_round == b->next_round &&
		    a->changed_bytes == b->changed_bytes && a->content_round == b->content_round);
	assert_string_equal(a->name, b->name);
	assert_same_text(a->mirror_of, b->mirror_of);
	assert_memory_equal(a->uuid, b->uuid, sizeof(a->uuid));
	assert_memory_equal(a->fingerprint_key, b->fingerprint_key, sizeof(a->fingerprint_key));
	assert_memory_equal(a->log_head, b->log_head, sizeof(a->log_head));
}

static void disks_survive_a_round_trip(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk, found;

	fill_disk(&disk, "0123456789-0123456789-0123456789-0123456789-0123456789-01234567");
	begin(two->a);
	assert_done(catalog_disk_insert(two->a, &disk, &failure), &failure);
	commit(two->a);
	assert_int_equal(disk.id, 1);
	assert_done(catalog_disk_find(two->b, disk.name, &found, &failure), &failure);
	assert_same_disk(&disk, &found);
	catalog_disk_release(&found);

	catalog_disk_release(&disk); /* mirror_of: none */
	disk.level = -1;
	disk.size_bytes = 1;
	begin(two->b);
	assert_done(catalog_disk_update(two->b, &disk, &failure), &failure);
	commit(two->b);
	assert_done(catalog_disk_get(two->a, disk.id, &found, &failure), &failure);
	assert_same_disk(&disk, &found);
}

static void name_is_taken_until_its_disk_goes(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk first, second, *list;
	size_t count;

	catalog_fixture_disk(two->a, "web01", &first);
	begin(two->a);
	second = first;
	assert_int_equal(catalog_disk_insert(two->a, &second, &failure), -EEXIST);
	assert_non_null(strstr(failure.message, "web01"));
	failure_clear(&failure);
	first.state = CATALOG_GOING;
	assert_done(catalog_disk_update(two->a, &first, &failure), &failure);
	assert_int_equal(catalog_disk_find(two->a, "web01", &second, NULL), -ENOENT);
	assert_done(catalog_disk_insert(two->a, &second, &failure), &failure);
	commit(two->a);
	assert_int_equal(second.id, 2);
	assert_done(catalog_disk_list(two->b, CATALOG_GOING, &list, &count, &failure), &failure);
	assert_int_equal(count, 1);
	assert_int_equal(list[0].id, 1);
	free(list);
}

static void id_of_a_disk_is_never_used_again(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	uint64_t freed_bytes = 0;
	bool is_done = false;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	disk.state = CATALOG_GOING;
	assert_done(catalog_disk_update(two->a, &disk, &failure), &failure);
	assert_done(catalog_disk_sweep(two->a, &disk, 100, &freed_bytes, &is_done, &failure), &failure);
	commit(two->a);
	assert_true(is_done);
	assert_int_equal(catalog_disk_get(two->b, disk.id, &disk, NULL), -ENOENT);
	catalog_fixture_disk(two->b, "web01", &disk);
	assert_int_equal(disk.id, 2);
}

static void disks_are_listed_by_name(void **state)
{
	static const char *const names[] = {"web10", "a", "web01"};
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk, *list;
	size_t count;

	for (unsigned i = 0; i < 3; i++)
		catalog_fixture_disk(two->a, names[i], &disk);
	assert_done(catalog_disk_list(two->b, CATALOG_ALIVE, &list, &count, &failure), &failure);
	assert_int_equal(count, 3);
	assert_string_equal(list[0].name, "a");
	assert_string_equal(list[1].name, "web01");
	assert_string_equal(list[2].name, "web10");
	free(list);
}

static void row_that_is_not_there_cannot_be_updated(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_image image = {.disk = 1, .number = 9, .generation = 1, .size_bytes = 1};

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	disk.id = 77;
	assert_int_equal(catalog_disk_update(two->a, &disk, &failure), -EBADMSG);
	assert_int_equal(catalog_image_update(two->a, &image, NULL), -EBADMSG);
	assert_int_equal(catalog_segment_update(two->a, 5, 0, false, NULL), -EBADMSG);
	catalog_rollback(two->a);
}

static void assert_same_image(const struct catalog_image *a, const struct catalog_image *b)
{
	assert_true(a->disk == b->disk && a->number == b->number && a->generation == b->generation &&
		    a->state == b->state && a->created_at == b->created_at && a->size_bytes == b->size_bytes &&
		    a->changed_bytes == b->changed_bytes && a->pinned == b->pinned &&
		    a->consistency == b->consistency && a->round == b->round);
	assert_same_text(a->label, b->label);
	assert_same_text(a->details, b->details);
}

static void images_survive_a_round_trip(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_image image, found, *list;
	size_t count;

	catalog_fixture_disk(two->a, "web01", &disk);
	image = (struct catalog_image){.disk = disk.id,
				       .number = UINT32_MAX,
				       .generation = UINT32_MAX,
				       .created_at = -1,
				       .size_bytes = (uint64_t)1 << 60,
				       .changed_bytes = (uint64_t)1 << 62,
				       .label = (char[]){"before the 'upgrade'"},
				       .pinned = true,
				       .consistency = 2,
				       .round = UINT32_MAX,
				       .details = (char[]){"{}"}};
	begin(two->a);
	assert_done(catalog_image_insert(two->a, &image, &failure), &failure);
	assert_int_equal(catalog_image_insert(two->a, &image, &failure), -EEXIST);
	failure_clear(&failure);
	commit(two->a);
	assert_done(catalog_image_get(two->b, disk.id, image.number, &found, &failure), &failure);
	assert_same_image(&image, &found);
	catalog_image_release(&found);

	image.label = image.details = NULL;
	image.state = CATALOG_GOING;
	begin(two->a);
	assert_done(catalog_image_update(two->a, &image, &failure), &failure);
	commit(two->a);
	assert_int_equal(catalog_image_get(two->b, disk.id, image.number, &found, NULL), -ENOENT);
	assert_done(catalog_image_list(two->b, disk.id, CATALOG_ALIVE, &list, &count, &failure), &failure);
	assert_int_equal(count, 0);
	free(list);
	assert_done(catalog_image_list(two->b, 0, CATALOG_GOING, &list, &count, &failure), &failure);
	assert_int_equal(count, 1);
	assert_same_image(&image, &list[0]);
	free(list);
}

static void all_images_are_listed_by_disk_and_number(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disks[3];
	struct catalog_image image, *list;
	size_t count;

	for (unsigned d = 0; d < 3; d++)
		catalog_fixture_disk(two->a, (const char *[]){"b", "a", "gone"}[d], &disks[d]);
	begin(two->a);
	for (unsigned i = 0; i < 9; i++)
		catalog_fixture_image(two->a, &disks[i % 3], &image);
	disks[2].state = CATALOG_GOING;
	assert_done(catalog_disk_update(two->a, &disks[2], &failure), &failure);
	commit(two->a);
	assert_done(catalog_image_list(two->b, 0, CATALOG_ALIVE, &list, &count, &failure), &failure);
	assert_int_equal(count, 6);
	for (unsigned i = 0; i < 6; i++) {
		assert_int_equal(list[i].disk, i < 3 ? disks[1].id : disks[0].id);
		assert_int_equal(list[i].number, i % 3 + 1);
	}
	free(list);
}

static void assert_same_round(const struct catalog_round *a, const struct catalog_round *b)
{
	assert_true(a->disk == b->disk && a->number == b->number && a->state == b->state &&
		    a->dirty_bytes == b->dirty_bytes && a->started_at == b->started_at &&
		    a->finished_at == b->finished_at && a->cursor_bytes == b->cursor_bytes &&
		    a->has_limit == b->has_limit && a->has_level == b->has_level &&
		    a->limit_bytes_per_second == b->limit_bytes_per_second && a->level == b->level);
	assert_memory_equal(a->counts, b->counts, sizeof(a->counts));
	assert_same_text(a->source, b->source);
	assert_same_text(a->identity, b->identity);
	assert_same_text(a->how, b->how);
	assert_same_text(a->start_stamp, b->start_stamp);
	assert_same_text(a->dirty_bitmaps, b->dirty_bitmaps);
	assert_same_text(a->details, b->details);
	assert_same_text(a->error, b->error);
}

static void rounds_survive_a_round_trip(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_round found, *list;
	size_t count;

	catalog_fixture_disk(two->a, "web01", &disk);
	struct catalog_round round = {.disk = disk.id,
				      .number = 1,
				      .state = 3,
				      .source = (char[]){"/dev/sda"},
				      .identity = (char[]){"wwn-1"},
				      .how = (char[]){""},
				      .start_stamp = (char[]){"stamp"},
				      .dirty_bitmaps = (char[]){"b0 b1"},
				      .dirty_bytes = INT64_MAX,
				      .details = (char[]){"{}"},
				      .started_at = 1,
				      .finished_at = INT64_MAX,
				      .cursor_bytes = (uint64_t)1 << 60,
				      .counts = {1, 2, 3, 4, 5, 6, 7, INT64_MAX},
				      .has_limit = true,
				      .has_level = true,
				      .limit_bytes_per_second = 0,
				      .level = 0,
				      .error = (char[]){"no"}};
	begin(two->a);
	assert_done(catalog_round_insert(two->a, &round, &failure), &failure);
	commit(two->a);
	assert_done(catalog_round_get(two->b, disk.id, 1, &found, &failure), &failure);
	assert_same_round(&round, &found);
	catalog_round_release(&found);
	assert_int_equal(catalog_round_get(two->b, disk.id, 2, &found, NULL), -ENOENT);

	round.details = round.error = NULL;
	round.has_limit = round.has_level = false;
	begin(two->b);
	assert_done(catalog_round_update(two->b, &round, &failure), &failure);
	round.number = 2;
	assert_int_equal(catalog_round_update(two->b, &round, NULL), -EBADMSG);
	assert_done(catalog_round_insert(two->b, &round, &failure), &failure);
	commit(two->b);
	for (int64_t which = 0; which <= disk.id; which++) {
		assert_done(catalog_round_list(two->a, which, &list, &count, &failure), &failure);
		assert_int_equal(count, 2);
		for (unsigned i = 0; i < 2; i++) {
			round.number = i + 1;
			assert_same_round(&round, &list[i]);
			catalog_round_release(&list[i]);
		}
		free(list);
	}
}

static void text_that_could_not_be_read_again_is_not_written(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	AUTO_FREE char *text = malloc((2 << 20) + 1);
	struct catalog_image image = {.disk = 1, .number = 1, .generation = 1, .size_bytes = 1, .details = text};

	assert_non_null(text);
	memset(text, 'x', 2 << 20);
	text[2 << 20] = '\0';
	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_int_equal(catalog_image_insert(two->a, &image, &failure), -E2BIG);
	catalog_rollback(two->a);
}

static void logs_survive_a_round_trip(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_segment segment;
	struct catalog_log_entry entry = {.stored_bytes = 1000}, *list;
	size_t count;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &entry.segment, &failure), &failure);
	entry.disk = disk.id;
	for (unsigned i = 0; i < 200; i++) {
		entry.sequence = i + 1;
		entry.off_bytes = i * 2000;
		memset(entry.digest, (int)i, sizeof(entry.digest));
		assert_done(catalog_log_insert(two->a, &entry, &failure), &failure);
	}
	commit(two->a);
	assert_done(catalog_log_list(two->b, disk.id, 50, 100, &list, &count, &failure), &failure);
	assert_int_equal(count, 100);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(list[i].sequence, 50 + i);
		assert_int_equal(list[i].off_bytes, (49 + i) * 2000);
		assert_int_equal(list[i].stored_bytes, 1000);
		assert_int_equal(list[i].segment, entry.segment);
		assert_int_equal(list[i].digest[31], 49 + i);
	}
	free(list);
	assert_done(catalog_segment_get(two->b, entry.segment, &segment, &failure), &failure);
	assert_int_equal(segment.live_bytes, 200 * catalog_record_bytes(1000));
}

static void removed_disk_leaves_the_last_word_of_its_log(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_log_entry entry = {.stored_bytes = 100}, *list;
	uint64_t freed_bytes = 0;
	size_t count;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &entry.segment, &failure), &failure);
	entry.disk = disk.id;
	for (entry.sequence = 1; entry.sequence <= 10; entry.sequence++)
		assert_done(catalog_log_insert(two->a, &entry, &failure), &failure);
	disk.log_sequence = 10;
	disk.state = CATALOG_GOING;
	assert_done(catalog_disk_update(two->a, &disk, &failure), &failure);
	for (bool is_done = false; !is_done;)
		assert_done(catalog_disk_sweep(two->a, &disk, 2, &freed_bytes, &is_done, &failure), &failure);
	commit(two->a);
	assert_int_equal(freed_bytes, 9 * catalog_record_bytes(100));
	assert_done(catalog_log_list(two->b, disk.id, 0, 100, &list, &count, &failure), &failure);
	assert_int_equal(count, 1);
	assert_int_equal(list[0].sequence, 10);
	free(list);
	catalog_assert_consistent(two->b);
}

static void segments_are_numbered_and_listed(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_segment segment, *list;
	uint32_t number;
	size_t count;

	begin(two->a);
	for (uint32_t i = 1; i <= 3; i++) {
		assert_done(catalog_segment_insert(two->a, &number, &failure), &failure);
		assert_int_equal(number, i);
	}
	assert_done(catalog_segment_update(two->a, 2, 64 << 20, true, &failure), &failure);
	commit(two->a);
	assert_done(catalog_segment_get(two->b, 2, &segment, &failure), &failure);
	assert_true(segment.sealed && segment.length_bytes == 64 << 20 && segment.live_bytes == 0);
	assert_done(catalog_segment_list_open(two->b, &list, &count, &failure), &failure);
	assert_int_equal(count, 2);
	assert_int_equal(list[0].number, 1);
	assert_int_equal(list[1].number, 3);
	free(list);
	assert_int_equal(catalog_segment_get(two->b, 4, &segment, &failure), -EBADMSG);
}

/* --------------------------------------------------------------- chunks */

static uint64_t add_chunk(struct catalog *catalog, uint64_t tag, uint32_t segment)
{
	struct failure failure = {.code = 0};
	struct catalog_location location = {.tag = tag, .segment = segment, .stored_bytes = 1000};
	uint64_t chunk;

	assert_done(catalog_chunk_add(catalog, &location, &chunk, &failure), &failure);
	return chunk;
}

static void set_chunks(struct catalog *catalog, const struct catalog_disk *disk, uint64_t first, uint64_t chunk,
		       size_t count)
{
	struct failure failure = {.code = 0};
	AUTO_FREE struct catalog_change *changes = calloc(count, sizeof(*changes));
	uint64_t changed = 0, newly_changed = 0;

	assert_non_null(changes);
	for (size_t i = 0; i < count; i++)
		changes[i] = (struct catalog_change){
			.first = first + i, .count = 1, .kind = CATALOG_CHUNK, .chunk = chunk + i};
	assert_done(catalog_map_update(catalog, disk, changes, count, &changed, &newly_changed, &failure), &failure);
}

static void chunks_of_one_tag_are_all_found(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	uint64_t chunks[4];
	uint32_t segment;
	size_t count;

	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(add_chunk(two->a, ((uint64_t)1 << 48) - 1, segment), i + 1);
	(void)add_chunk(two->a, 0, segment);
	commit(two->a);
	assert_done(catalog_chunk_find(two->b, ((uint64_t)1 << 48) - 1, chunks, 4, &count, &failure), &failure);
	assert_int_equal(count, 3);
	assert_int_equal(chunks[2], 3);
	assert_done(catalog_chunk_find(two->b, ((uint64_t)1 << 48) - 1, chunks, 2, &count, &failure), &failure);
	assert_int_equal(count, 2);
	assert_done(catalog_chunk_find(two->b, 5, chunks, 4, &count, &failure), &failure);
	assert_int_equal(count, 0);
	assert_done(catalog_chunk_count(two->b, &chunks[0], &failure), &failure);
	assert_int_equal(chunks[0], 4);
}

static void tag_is_the_head_of_a_digest(void **state)
{
	const uint8_t digest[CATALOG_DIGEST_BYTES] = {0x01, 0x02, 0x03, 0x04, 0x05, 0xff, 0xee};

	(void)state;
	assert_true(catalog_tag(digest) == 0x0102030405ff);
}

static void chunk_is_found_before_it_is_committed(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	uint64_t found[2], chunk;
	uint32_t segment;
	size_t count;

	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	chunk = add_chunk(two->a, 5, segment);
	assert_done(catalog_chunk_find(two->a, 5, found, 2, &count, &failure), &failure);
	assert_int_equal(count, 1);
	assert_true(found[0] == chunk);
	(void)add_chunk(two->a, 6, segment);
	catalog_rollback(two->a);
	begin(two->a);
	commit(two->a); /* nothing of what was rolled back */
	for (uint64_t tag = 5; tag <= 6; tag++) {
		assert_done(catalog_chunk_find(two->a, tag, found, 2, &count, &failure), &failure);
		assert_int_equal(count, 0);
	}
}

static void counter_that_lags_behind_is_damage(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_location location = {.tag = 1, .stored_bytes = 1};
	uint64_t chunk;

	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &location.segment, &failure), &failure);
	(void)add_chunk(two->a, 5, location.segment);
	commit(two->a);
	catalog_fixture_execute(two->b, "UPDATE counter SET value=1 WHERE name='next_chunk'");
	begin(two->b);
	assert_int_equal(catalog_chunk_add(two->b, &location, &chunk, &failure), -EBADMSG);
	catalog_rollback(two->b);
}

static void chunk_that_is_not_there_is_not_found(void **state)
{
	struct two *two = *state;
	struct catalog_location location;
	struct failure failure = {.code = 0};

	assert_int_equal(catalog_chunk_get(two->a, 1, &location, &failure), -ENOENT);
	assert_int_equal(catalog_chunk_get(two->a, ((uint64_t)1 << 62) - 1, &location, &failure), -ENOENT);
	assert_int_equal(failure.code, 0);
}

static void reference_to_no_chunk_is_damage(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_change change = {.count = 1, .kind = CATALOG_CHUNK, .chunk = 5};
	uint64_t changed = 0, newly_changed = 0;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_int_equal(catalog_map_update(two->a, &disk, &change, 1, &changed, &newly_changed, &failure), -EBADMSG);
	catalog_rollback(two->a);
}

static void refreshing_another_chunk_is_refused(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_change change = {.count = 1, .kind = CATALOG_CHUNK, .refresh = true};
	uint64_t changed = 0, newly_changed = 0;
	uint32_t segment;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	change.chunk = add_chunk(two->a, 1, segment);
	assert_int_equal(catalog_map_update(two->a, &disk, &change, 1, &changed, &newly_changed, &failure), -EBADMSG);
	catalog_rollback(two->a);
}

/* More pages of chunks than there is room to remember, each touched twice: displaced in between. */
static void transaction_larger_than_the_cache_adds_up(void **state)
{
	enum { MANY = (CHUNK_CACHE_SLOTS + 40) * CATALOG_CHUNK_PAGE_ENTRIES };
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	uint64_t first = 0;
	uint32_t segment = 0;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	for (unsigned i = 0; i < MANY; i++) {
		if (i % 128 == 0) /* more segments than are summed up at a time */
			assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
		uint64_t chunk = add_chunk(two->a, catalog_fixture_below(&two->fixture, (uint64_t)1 << 48), segment);
		if (i == 0)
			first = chunk;
	}
	set_chunks(two->a, &disk, 0, first, MANY);
	set_chunks(two->a, &disk, MANY, first, MANY);
	set_chunks(two->a, &disk, 1, first, MANY - 1);
	commit(two->a);
	catalog_assert_consistent(two->a);
	catalog_assert_consistent(two->b);
}

/* --------------------------------------------------------- transactions */

static void rollback_leaves_no_trace(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_location location;
	uint32_t segment;
	uint64_t chunk, again, count;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	chunk = add_chunk(two->a, 1, segment);
	set_chunks(two->a, &disk, 0, chunk, 1);
	commit(two->a);

	begin(two->a);
	again = add_chunk(two->a, 2, segment);
	set_chunks(two->a, &disk, 0, again, 1);
	set_chunks(two->a, &disk, 9, chunk, 1);
	set_chunks(two->a, &disk, 10, again, 1);
	catalog_rollback(two->a);
	assert_done(catalog_chunk_get(two->a, chunk, &location, &failure), &failure);
	assert_int_equal(location.references, 1);
	assert_int_equal(catalog_chunk_get(two->a, again, &location, NULL), -ENOENT);
	assert_done(catalog_chunk_count(two->a, &count, &failure), &failure);
	assert_int_equal(count, 1);
	catalog_rollback(two->a); /* of nothing */

	begin(two->a);
	assert_int_equal(add_chunk(two->a, 3, segment), again);
	commit(two->a);
	catalog_assert_consistent(two->a);
}

static void other_handle_sees_what_was_committed(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_location location;
	uint32_t segment;
	uint64_t chunk;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	chunk = add_chunk(two->a, 1, segment);
	assert_int_equal(catalog_chunk_get(two->b, chunk, &location, NULL), -ENOENT);
	commit(two->a);
	for (unsigned i = 0; i < 10; i++) { /* each remembers the page that the other changes next */
		struct catalog *writer = i % 2 == 0 ? two->a : two->b;
		struct catalog *other = i % 2 == 0 ? two->b : two->a;

		begin(writer);
		set_chunks(writer, &disk, i, chunk, 1);
		commit(writer);
		assert_done(catalog_chunk_get(other, chunk, &location, &failure), &failure);
		assert_int_equal(location.references, i + 1);
	}
	catalog_assert_consistent(two->a);
}

static void data_version_tells_of_others_only(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	int64_t before, after;

	assert_done(catalog_data_version(two->a, &before, &failure), &failure);
	catalog_fixture_disk(two->a, "web01", &disk);
	assert_done(catalog_data_version(two->a, &after, &failure), &failure);
	assert_true(before == after);
	catalog_fixture_disk(two->b, "web02", &disk);
	assert_done(catalog_data_version(two->a, &after, &failure), &failure);
	assert_true(before != after);
}

static void closing_rolls_back(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	uint32_t segment;

	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	catalog_close(two->a);
	two->a = NULL;
	assert_int_equal(catalog_fixture_value(two->b, "SELECT count(*) FROM segment"), 0);
	begin(two->b); /* the lock is free */
	catalog_rollback(two->b);
}

static void read_only_handle_reads(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog *reader = catalog_fixture_open(&two->fixture, true, false);
	struct catalog_disk disk, found;

	assert_int_equal(catalog_begin(reader, &failure), -EROFS);
	catalog_fixture_disk(two->a, "web01", &disk);
	assert_done(catalog_disk_find(reader, "web01", &found, NULL), &failure);
	catalog_close(reader);
}

/* ----------------------------------------------------- writers together */

/* Adds a chunk that a page of the disk refers to, over and over; every writer touches the same pages of chunks. Returns
 * 0 or an error. */
static int write_many(struct catalog_fixture *fixture, const char *name)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;
	int result = catalog_open(fixture->folder, fixture->locks_fd, false, &catalog, &failure);

	if (result == 0)
		result = catalog_disk_find(catalog, name, &disk, &failure);
	for (unsigned i = 0; result == 0 && i < CONCURRENT_COMMITS; i++) {
		struct catalog_location location = {.tag = i, .segment = 1, .stored_bytes = 100};
		struct catalog_change change = {.first = i % 7, .count = 1, .kind = CATALOG_CHUNK};
		uint64_t changed = 0, newly_changed = 0;

		result = catalog_begin(catalog, &failure);
		if (result == 0)
			result = catalog_chunk_add(catalog, &location, &change.chunk, &failure);
		if (result == 0)
			result = catalog_map_update(catalog, &disk, &change, 1, &changed, &newly_changed, &failure);
		if (result == 0)
			result = catalog_commit(catalog, &failure);
	}
	if (result < 0)
		print_error("%s\n", failure.message);
	catalog_close(catalog);
	return result;
}

struct writer {
	struct catalog_fixture *fixture;
	const char *name;
	int result;
};

static void *writer_thread(void *opaque)
{
	struct writer *writer = opaque;

	writer->result = write_many(writer->fixture, writer->name);
	return NULL;
}

static void prepare_writers(struct two *two)
{
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	uint32_t segment;

	catalog_fixture_disk(two->a, "web01", &disk);
	catalog_fixture_disk(two->a, "web02", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	commit(two->a);
}

static void assert_all_written(struct two *two)
{
	catalog_assert_consistent(two->a);
	assert_int_equal(catalog_fixture_value(two->a, "SELECT value FROM counter WHERE name='next_chunk'"),
			 1 + 2 * CONCURRENT_COMMITS);
}

static void threads_write_side_by_side(void **state)
{
	struct two *two = *state;
	struct writer writers[2] = {{&two->fixture, "web01", 1}, {&two->fixture, "web02", 1}};
	pthread_t threads[2];

	prepare_writers(two);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, writer_thread, &writers[i]), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(writers[0].result, 0);
	assert_int_equal(writers[1].result, 0);
	assert_all_written(two);
}

static void processes_write_side_by_side(void **state)
{
	struct two *two = *state;
	pid_t pids[2];

	prepare_writers(two);
	for (unsigned i = 0; i < 2; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0)
			_exit(write_many(&two->fixture, i == 0 ? "web01" : "web02") == 0 ? 0 : 1);
	}
	for (unsigned i = 0; i < 2; i++) {
		int status;

		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	assert_all_written(two);
}

/* --------------------------------------------------------------- kill -9 */

/* A bit of everything: changes, images, deletions begun, sweeps. */
static void write_something(struct catalog_fixture *fixture, struct catalog *catalog, struct catalog_disk *disk)
{
	struct failure failure = {.code = 0};
	struct catalog_image image, *list;
	uint64_t freed_bytes = 0;
	size_t count;

	for (unsigned i = 0; i < 20; i++)
		set_chunks(catalog, disk, catalog_fixture_below(fixture, 2000), catalog_fixture_chunk(fixture, catalog),
			   1);
	if (catalog_fixture_below(fixture, 3) == 0)
		catalog_fixture_image(catalog, disk, &image);
	assert_done(catalog_image_list(catalog, disk->id, CATALOG_ALIVE, &list, &count, &failure), &failure);
	if (count > 3) {
		list[1].state = CATALOG_GOING;
		assert_done(catalog_image_update(catalog, &list[1], &failure), &failure);
	}
	free(list);
	assert_done(catalog_image_list(catalog, disk->id, CATALOG_GOING, &list, &count, &failure), &failure);
	if (count > 0) {
		struct catalog_position position = {.until = 0};
		bool is_done;

		assert_done(catalog_image_sweep(catalog, &list[0], &position, 2, &freed_bytes, &is_done, &failure),
			    &failure);
	}
	free(list);
}

/*
 * Commits until it is killed, and says through the pipe which number was committed last: it stands in the disk's row.
 * With `lies` it says so before it is true, and takes its time: that is the control.
 */
static __attribute__((noreturn)) void commit_and_tell(struct catalog_fixture *fixture, int pipe_fd, bool lies)
{
	struct catalog *catalog = catalog_fixture_open(fixture, false, false);
	struct failure failure = {.code = 0};
	struct catalog_disk disk;

	fixture->random += (uint64_t)getpid();
	for (;;) {
		assert_done(catalog_begin(catalog, &failure), &failure);
		assert_done(catalog_disk_find(catalog, "web01", &disk, &failure), &failure);
		write_something(fixture, catalog, &disk);
		disk.changed_bytes++;
		assert_done(catalog_disk_update(catalog, &disk, &failure), &failure);
		if (lies && (write(pipe_fd, &disk.changed_bytes, 8) != 8 || usleep(200000) < 0))
			_exit(1);
		assert_done(catalog_commit(catalog, &failure), &failure);
		if (!lies && write(pipe_fd, &disk.changed_bytes, 8) != 8)
			_exit(1);
	}
}

/* What was committed, by the last word that came through before and after the kill. */
static uint64_t run_and_kill(struct catalog_fixture *fixture, uint64_t acknowledgements, bool lies)
{
	uint64_t last = 0, word;
	int fds[2], status;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		commit_and_tell(fixture, fds[1], lies);
	(void)close(fds[1]);
	for (uint64_t n = 0; n < acknowledgements && read(fds[0], &word, 8) == 8; n++)
		last = word;
	(void)usleep((useconds_t)catalog_fixture_below(fixture, lies ? 1 : 3000));
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	while (read(fds[0], &word, 8) == 8)
		last = word;
	(void)close(fds[0]);
	return last;
}

static uint64_t committed_number(struct catalog_fixture *fixture)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = catalog_fixture_open(fixture, true, false);
	struct catalog_disk disk;

	assert_done(catalog_disk_find(catalog, "web01", &disk, &failure), &failure);
	catalog_assert_consistent(catalog);
	catalog_close(catalog);
	return disk.changed_bytes;
}

static void what_was_acknowledged_survives_kill(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;

	catalog_fixture_disk(two->a, "web01", &disk);
	catalog_close(two->a); /* nobody is there to help with recovery */
	catalog_close(two->b);
	two->a = two->b = NULL;
	for (unsigned n = 0; n < KILLS; n++) {
		uint64_t told = run_and_kill(&two->fixture, 1 + catalog_fixture_below(&two->fixture, 20), false);

		assert_in_range(committed_number(&two->fixture), told, told + 1);
	}
	/* the control: a writer that tells before it commits is found out */
	assert_true(committed_number(&two->fixture) < run_and_kill(&two->fixture, 1, true) ||
		    committed_number(&two->fixture) == 0);
	uint64_t told = run_and_kill(&two->fixture, 1, true);
	assert_true(committed_number(&two->fixture) < told);
}

/* -------------------------------------------------------- where it lies */

/* In a child with a mount table of its own, so that nothing stays mounted whatever happens. */
static int in_child(int (*run)(struct catalog_fixture *fixture), struct catalog_fixture *fixture)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(run(fixture));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int mount_read_only(struct catalog_fixture *fixture)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount(fixture->folder, fixture->folder, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, fixture->folder, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		return 77;
	return 0;
}

static int open_and_find(struct catalog_fixture *fixture)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;
	struct catalog_disk disk;
	int result = catalog_open(fixture->folder, fixture->locks_fd, true, &catalog, &failure);

	if (result == 0)
		result = catalog_disk_find(catalog, "web01", &disk, &failure);
	if (result < 0)
		print_message("%s\n", failure.message);
	catalog_close(catalog);
	return -result;
}

static int read_on_read_only_mount(struct catalog_fixture *fixture)
{
	int result = mount_read_only(fixture);

	return result != 0 ? result : open_and_find(fixture);
}

static int write_on_read_only_mount(struct catalog_fixture *fixture)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;
	int result = mount_read_only(fixture);

	return result != 0 ? result : -catalog_open(fixture->folder, fixture->locks_fd, false, &catalog, &failure);
}

static void close_two(struct two *two)
{
	catalog_close(two->a);
	catalog_close(two->b);
	two->a = two->b = NULL;
}

static void read_only_file_system_is_read(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;
	int result;

	catalog_fixture_disk(two->a, "web01", &disk);
	close_two(two);
	result = in_child(read_on_read_only_mount, &two->fixture);
	if (result == 77) {
		print_message("needs root for a read-only mount\n");
		skip();
	}
	assert_int_equal(result, 0);
	assert_int_equal(in_child(write_on_read_only_mount, &two->fixture), EROFS);
}

static void log_on_read_only_file_system_is_not_ignored(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;
	int result;

	catalog_fixture_disk(two->a, "web01", &disk); /* and not closed: it stands in the log alone */
	result = in_child(read_on_read_only_mount, &two->fixture);
	if (result == 77) {
		print_message("needs root for a read-only mount\n");
		skip();
	}
	assert_int_equal(result, EROFS);
}

static int read_as_nobody(struct catalog_fixture *fixture)
{
	if (setgid(65534) < 0 || setuid(65534) < 0)
		return 77;
	return open_and_find(fixture);
}

static void another_user_may_read(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;
	int result;

	catalog_fixture_disk(two->a, "web01", &disk);
	assert_int_equal(chmod(two->fixture.folder, 0755), 0);
	result = in_child(read_as_nobody, &two->fixture); /* next to the writer */
	if (result == 77) {
		print_message("needs root to become somebody else\n");
		skip();
	}
	assert_int_equal(result, 0);
	close_two(two);
	assert_int_equal(in_child(read_as_nobody, &two->fixture), 0);
}

static int read_by_odd_path(struct catalog_fixture *fixture)
{
	struct catalog_fixture odd = *fixture;

	if (mount_read_only(fixture) != 0)
		return 77;
	(void)snprintf(odd.folder, sizeof(odd.folder), "/%.200s/100%%3f?immutable=0#x", fixture->folder);
	return open_and_find(&odd);
}

static void path_is_taken_by_the_letter(void **state)
{
	struct two *two = *state;
	struct catalog_fixture odd = two->fixture;
	struct catalog_disk disk;
	struct catalog *catalog;
	struct failure failure = {.code = 0};
	int result;

	(void)snprintf(odd.folder, sizeof(odd.folder), "%.200s/100%%3f?immutable=0#x", two->fixture.folder);
	assert_int_equal(mkdir(odd.folder, 0755), 0);
	assert_done(catalog_create(odd.folder, 65536, &failure), &failure);
	catalog = catalog_fixture_open(&odd, false, true);
	catalog_fixture_disk(catalog, "web01", &disk);
	catalog_close(catalog);
	result = in_child(read_by_odd_path, &two->fixture);
	if (result == 77) {
		print_message("needs root for a read-only mount\n");
		skip();
	}
	assert_int_equal(result, 0);
}

/* ----------------------------------------------------------- damaged rows */

/* What all the calls together came to. */
struct probe {
	struct catalog *catalog;
	unsigned bad; /* -EBADMSG */
};

static void note(struct probe *probe, int result)
{
	if (result != 0 && result != -ENOENT && result != -EBADMSG && result != -EEXIST)
		fail_msg("unexpected: %s", strerror(-result));
	probe->bad += result == -EBADMSG;
}

static void probe_lists(struct probe *probe)
{
	struct catalog *catalog = probe->catalog;
	struct catalog_disk *disks;
	struct catalog_image *images;
	struct catalog_round *rounds;
	struct catalog_segment *segments;
	struct catalog_log_entry *entries;
	size_t count;
	int result;

#define PROBE_LIST(list, release, call)                   \
	list = NULL;                                      \
	count = 0;                                        \
	result = call;                                    \
	note(probe, result);                              \
	for (size_t i = 0; result == 0 && i < count; i++) \
		release(&(list)[i]);                      \
	if (result == 0)                                  \
	free(list)
#define NO_RELEASE(element) (void)(element)
	for (unsigned state = 0; state < 2; state++) {
		PROBE_LIST(disks, catalog_disk_release, catalog_disk_list(catalog, state, &disks, &count, NULL));
		PROBE_LIST(images, catalog_image_release, catalog_image_list(catalog, 1, state, &images, &count, NULL));
		PROBE_LIST(images, catalog_image_release, catalog_image_list(catalog, 0, state, &images, &count, NULL));
		PROBE_LIST(rounds, catalog_round_release, catalog_round_list(catalog, state, &rounds, &count, NULL));
	}
	PROBE_LIST(segments, NO_RELEASE, catalog_segment_list_open(catalog, &segments, &count, NULL));
	PROBE_LIST(entries, NO_RELEASE, catalog_log_list(catalog, 1, 0, 100, &entries, &count, NULL));
#undef PROBE_LIST
#undef NO_RELEASE
}

static void probe_rows(struct probe *probe)
{
	struct catalog *catalog = probe->catalog;
	struct catalog_disk disk = {.id = 0};
	struct catalog_image image = {.number = 0};
	struct catalog_round round = {.number = 0};
	struct catalog_segment segment;
	struct catalog_location location;
	uint64_t chunks[4], number;
	size_t count;
	int result;

	result = catalog_disk_get(catalog, 1, &disk, NULL);
	note(probe, result);
	if (result == 0)
		catalog_disk_release(&disk);
	result = catalog_disk_find(catalog, "web01", &disk, NULL);
	note(probe, result);
	if (result == 0)
		catalog_disk_release(&disk);
	result = catalog_image_get(catalog, 1, 1, &image, NULL);
	note(probe, result);
	if (result == 0)
		catalog_image_release(&image);
	result = catalog_round_get(catalog, 1, 1, &round, NULL);
	note(probe, result);
	if (result == 0)
		catalog_round_release(&round);
	note(probe, catalog_segment_get(catalog, 1, &segment, NULL));
	note(probe, catalog_chunk_count(catalog, &number, NULL));
	for (uint64_t chunk = 1; chunk < 600; chunk += 100)
		note(probe, catalog_chunk_get(catalog, chunk, &location, NULL));
	note(probe, catalog_chunk_find(catalog, 7, chunks, 4, &count, NULL));
}

static void probe_content(struct probe *probe)
{
	struct catalog *catalog = probe->catalog;
	struct catalog_image image = {.disk = 1, .number = 1, .generation = 1, .size_bytes = 1};
	AUTO_FREE struct catalog_page *page = malloc(sizeof(*page));
	uint64_t number;

	for (uint32_t generation = 1; generation < 4; generation++) {
		note(probe, catalog_map_next(catalog, 1, generation - 1, 0, &number, NULL));
		note(probe, catalog_map_read(catalog, 1, generation - 1, page, NULL));
		note(probe, catalog_map_read_at(catalog, 1, generation, 0, page, NULL));
		image.generation = generation;
		note(probe, catalog_image_unique(catalog, &image, &number, NULL));
	}
}

/* Changes, each in a transaction that is rolled back, the last kept open for nothing. */
static void probe_changes(struct probe *probe)
{
	struct catalog *catalog = probe->catalog;
	struct catalog_disk disk = {
		.id = 1, .name = "web01", .generation = 4, .state = CATALOG_GOING, .log_sequence = 2};
	struct catalog_image image = {.disk = 1, .number = 1, .generation = 1, .state = CATALOG_GOING, .size_bytes = 1};
	struct catalog_change change = {.count = 300, .kind = CATALOG_NOTHING};
	struct catalog_location location = {.tag = 7, .segment = 1, .stored_bytes = 10};
	struct catalog_position position = {.until = 0};
	uint64_t number = 0, newly_changed = 0;
	bool is_done = false;

	for (unsigned which = 0; which < 4; which++) {
		int result = catalog_begin(catalog, NULL);

		note(probe, result);
		if (result < 0)
			continue;
		if (which == 0)
			result = catalog_map_update(catalog, &disk, &change, 1, &number, &newly_changed, NULL);
		else if (which == 1)
			result = catalog_chunk_add(catalog, &location, &number, NULL);
		else if (which == 2)
			result = catalog_image_sweep(catalog, &image, &position, 100, &number, &is_done, NULL);
		else
			result = catalog_disk_sweep(catalog, &disk, 1000, &number, &is_done, NULL);
		note(probe, result);
		/* what is summed up until the end is written, and undone */
		if (result == 0)
			note(probe, segment_live_flush(catalog, NULL));
		if (result == 0)
			note(probe, new_digests_flush(catalog, NULL));
		catalog_rollback(catalog);
	}
}

static unsigned probe_all(struct catalog *catalog)
{
	struct probe probe = {.catalog = catalog};

	probe_lists(&probe);
	probe_rows(&probe);
	probe_content(&probe);
	probe_changes(&probe);
	return probe.bad;
}

/* One of everything, two images, changes behind each. */
static void fill_catalog(struct two *two)
{
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_image image;
	struct catalog_log_entry entry = {.segment = 1, .stored_bytes = 10};
	struct catalog_round round = {.number = 1,
				      .source = (char[]){"s"},
				      .identity = (char[]){"i"},
				      .how = (char[]){"h"},
				      .start_stamp = (char[]){"t"},
				      .dirty_bitmaps = (char[]){"d"},
				      .details = (char[]){"{}"},
				      .error = (char[]){"e"}};
	uint32_t segment;

	catalog_fixture_disk(two->a, "web01", &disk);
	begin(two->a);
	assert_done(catalog_segment_insert(two->a, &segment, &failure), &failure);
	for (unsigned i = 0; i < 600; i++)
		(void)add_chunk(two->a, 7, segment);
	for (unsigned i = 0; i < 3; i++) {
		set_chunks(two->a, &disk, 0, 1 + i * 200, 200);
		set_chunks(two->a, &disk, CATALOG_PAGE_ENTRIES, 1 + i * 200, 150);
		if (i < 2)
			catalog_fixture_image(two->a, &disk, &image);
	}
	entry.disk = round.disk = disk.id;
	for (entry.sequence = 1; entry.sequence <= 2; entry.sequence++)
		assert_done(catalog_log_insert(two->a, &entry, &failure), &failure);
	disk.log_sequence = 2;
	disk.generation = 4;
	assert_done(catalog_disk_update(two->a, &disk, &failure), &failure);
	assert_done(catalog_round_insert(two->a, &round, &failure), &failure);
	commit(two->a);
	assert_int_equal(probe_all(two->a), 0);
}

enum {
	KEY = 1, /* a row with another key is simply not there */
	MAY_BE_NULL = 2,
	ANY_NUMBER = 4, /* times; and texts, which numbers read as */
};
static const struct {
	const char *table, *column;
	int flags;
} columns[] = {
	{"counter", "value", 0},
	{"disk", "id", 0},
	{"disk", "uuid", 0},
	{"disk", "name", ANY_NUMBER},
	{"disk", "size_bytes", 0},
	{"disk", "sector_bytes", 0},
	{"disk", "generation", 0},
	{"disk", "state", 0},
	{"disk", "keep", 0},
	{"disk", "level", 0},
	{"disk", "limit_rate", 0},
	{"disk", "mirror_of", MAY_BE_NULL | ANY_NUMBER},
	{"disk", "fingerprint_key", 0},
	{"disk", "log_sequence", 0},
	{"disk", "log_head", 0},
	{"disk", "created_at", ANY_NUMBER},
	{"disk", "next_image", 0},
	{"disk", "next_round", 0},
	{"disk", "changed_bytes", 0},
	{"disk", "content_round", 0},
	{"image", "disk", KEY},
	{"image", "number", 0},
	{"image", "generation", 0},
	{"image", "state", KEY},
	{"image", "created_at", ANY_NUMBER},
	{"image", "size_bytes", 0},
	{"image", "changed_bytes", 0},
	{"image", "label", MAY_BE_NULL | ANY_NUMBER},
	{"image", "pinned", 0},
	{"image", "consistency", 0},
	{"image", "round", 0},
	{"image", "details", MAY_BE_NULL | ANY_NUMBER},
	{"map", "key", KEY},
	{"map", "entries", 0},
	{"past", "disk", KEY},
	{"past", "page", KEY},
	{"past", "until", KEY},
	{"past", "entries", 0},
	{"chunk", "page", KEY},
	{"chunk", "entries", 0},
	{"digest", "tag", KEY},
	{"digest", "chunk", 0},
	{"segment", "number", KEY},
	{"segment", "sealed", 0},
	{"segment", "length_bytes", 0},
	{"segment", "live_bytes", 0},
	{"log", "disk", KEY},
	{"log", "sequence", KEY},
	{"log", "segment", 0},
	{"log", "off_bytes", 0},
	{"log", "stored_bytes", 0},
	{"log", "digest", 0},
	{"round", "disk", KEY},
	{"round", "number", 0},
	{"round", "state", 0},
	{"round", "source", ANY_NUMBER},
	{"round", "identity", ANY_NUMBER},
	{"round", "how", ANY_NUMBER},
	{"round", "start_stamp", ANY_NUMBER},
	{"round", "dirty_bitmaps", ANY_NUMBER},
	{"round", "dirty_bytes", 0},
	{"round", "details", MAY_BE_NULL | ANY_NUMBER},
	{"round", "started_at", ANY_NUMBER},
	{"round", "finished_at", ANY_NUMBER},
	{"round", "cursor_bytes", 0},
	{"round", "total", 0},
	{"round", "done", 0},
	{"round", "read", 0},
	{"round", "left_out", 0},
	{"round", "zero", 0},
	{"round", "changed", 0},
	{"round", "stored", 0},
	{"round", "sent", 0},
	{"round", "own_limit", MAY_BE_NULL},
	{"round", "own_level", MAY_BE_NULL},
	{"round", "error", MAY_BE_NULL | ANY_NUMBER},
};

/* The same tables without keys and types, so that anything can be put into them. */
static void loosen(struct catalog *catalog)
{
	static const char *const tables[] = {"counter", "disk",	  "image",   "map", "past",
					     "chunk",	"digest", "segment", "log", "round"};

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		char sql[300];

		(void)snprintf(sql, sizeof(sql),
			       "CREATE TABLE loose AS SELECT * FROM \"%1$s\"; DROP TABLE \"%1$s\"; "
			       "ALTER TABLE loose RENAME TO \"%1$s\"",
			       tables[i]);
		catalog_fixture_execute(catalog, sql);
	}
}

static void forget_chunk_pages(struct catalog *catalog)
{
	for (size_t i = 0; i < CHUNK_CACHE_SLOTS; i++)
		catalog->chunk_cache[i].is_loaded = false;
}

/* Whether a column that holds something else in its first rows is noticed by anybody. Everything is as before
 * afterwards. */
static bool is_noticed(struct catalog *catalog, const char *table, const char *column, const char *value)
{
	char sql[300];
	bool is_bad;

	(void)snprintf(sql, sizeof(sql),
		       "CREATE TABLE kept AS SELECT * FROM \"%1$s\"; UPDATE \"%1$s\" SET \"%2$s\"=%3$s "
		       "WHERE rowid IN (SELECT rowid FROM \"%1$s\" LIMIT 3)",
		       table, column, value);
	catalog_fixture_execute(catalog, sql);
	forget_chunk_pages(catalog); /* a commit of another handle would have done that */
	is_bad = probe_all(catalog) > 0;
	(void)snprintf(sql, sizeof(sql),
		       "DELETE FROM \"%1$s\"; INSERT INTO \"%1$s\" SELECT * FROM kept; DROP TABLE kept", table);
	catalog_fixture_execute(catalog, sql);
	forget_chunk_pages(catalog);
	return is_bad;
}

static void bad_values_are_noticed(void **state)
{
	static const struct {
		const char *value;
		int excuses; /* flags with which it may go unnoticed */
	} values[] = {
		{"NULL", KEY | MAY_BE_NULL},
		{"-7", KEY | ANY_NUMBER},
		{"9223372036854775807", -1},
		{"1e300", -1},
		{"'text'", -1},
		{"''", -1},
		{"x'00'", -1},
		{"CAST(x'610062' AS TEXT)", -1},
		{"zeroblob(100000)", -1},
		{"CAST(zeroblob(2000000) AS TEXT)", -1},
	};
	struct two *two = *state;

	fill_catalog(two);
	catalog_close(two->b);
	two->b = NULL;
	loosen(two->a);
	assert_int_equal(probe_all(two->a), 0);
	for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++) {
		for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
			bool may_pass = values[v].excuses == -1 || (columns[c].flags & values[v].excuses) != 0;

			if (!is_noticed(two->a, columns[c].table, columns[c].column, values[v].value) && !may_pass)
				fail_msg("%s.%s = %s went unnoticed", columns[c].table, columns[c].column,
					 values[v].value);
		}
	}
	assert_int_equal(probe_all(two->a), 0);
}

static void missing_table_is_damage(void **state)
{
	struct two *two = *state;
	struct catalog_disk disk;

	fill_catalog(two);
	catalog_fixture_execute(two->a, "DROP TABLE disk");
	assert_int_equal(catalog_disk_find(two->b, "web01", &disk, NULL), -EBADMSG);
}

static void image_of_a_generation_to_come_is_damage(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	struct catalog_disk disk;
	struct catalog_change change = {.count = 1, .kind = CATALOG_ZERO};
	uint64_t changed = 0, newly_changed = 0;

	fill_catalog(two);
	catalog_fixture_execute(two->a, "UPDATE image SET generation=1000 WHERE number=2");
	assert_done(catalog_disk_find(two->b, "web01", &disk, &failure), &failure);
	begin(two->b);
	assert_int_equal(catalog_map_update(two->b, &disk, &change, 1, &changed, &newly_changed, &failure), -EBADMSG);
	catalog_rollback(two->b);
}

/* Bytes of the file itself turned over: SQLite's own checks and ours together never crash. */
static void damaged_files_end_in_errors(void **state)
{
	struct two *two = *state;
	struct failure failure = {.code = 0};
	unsigned refused = 0, bad = 0;
	static uint8_t whole[4 << 20];
	AUTO_FREE uint8_t *copy = malloc(sizeof(whole));
	size_t len_bytes;
	char path[300];
	FILE *file;

	fill_catalog(two);
	close_two(two);
	(void)snprintf(path, sizeof(path), "%s/catalog.db", two->fixture.folder);
	file = fopen(path, "re");
	assert_non_null(file);
	len_bytes = fread(whole, 1, sizeof(whole), file);
	assert_int_equal(fclose(file), 0);
	assert_true(len_bytes > 4096 && len_bytes < sizeof(whole));
	for (unsigned n = 0; n < DAMAGED_FILES; n++) {
		struct catalog *catalog = NULL;
		int result;

		memcpy(copy, whole, len_bytes);
		for (uint64_t i = 1 + catalog_fixture_below(&two->fixture, 40); i > 0; i--)
			copy[catalog_fixture_below(&two->fixture, n % 2 == 0 ? len_bytes : 1 + len_bytes / 8)] =
				(uint8_t)catalog_fixture_below(&two->fixture, 256);
		overwrite(two, copy, len_bytes);
		failure_clear(&failure);
		result = catalog_open(two->fixture.folder, two->fixture.locks_fd, false, &catalog, &failure);
		refused += result < 0;
		if (result == 0)
			bad += probe_all(catalog) > 0;
		catalog_close(catalog);
	}
	print_message("of %u damaged files %u were refused, %u found bad when read\n", DAMAGED_FILES, refused, bad);
	assert_true(refused + bad > DAMAGED_FILES / 10);
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_two, remove_two)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(creating_where_one_is_changes_nothing),
		test(creating_in_no_folder_says_so),
		test(opening_none_says_so),
		test(commits_are_synchronous_and_checkpoints_ours),
		test(closing_leaves_an_empty_log),
		test(log_stays_short),
		test(newer_format_is_refused),
		test(database_of_something_else_is_refused),
		test(text_file_is_refused),
		test(empty_file_is_refused),
		test(disks_survive_a_round_trip),
		test(name_is_taken_until_its_disk_goes),
		test(id_of_a_disk_is_never_used_again),
		test(disks_are_listed_by_name),
		test(row_that_is_not_there_cannot_be_updated),
		test(images_survive_a_round_trip),
		test(all_images_are_listed_by_disk_and_number),
		test(rounds_survive_a_round_trip),
		test(text_that_could_not_be_read_again_is_not_written),
		test(logs_survive_a_round_trip),
		test(removed_disk_leaves_the_last_word_of_its_log),
		test(segments_are_numbered_and_listed),
		test(chunks_of_one_tag_are_all_found),
		test(tag_is_the_head_of_a_digest),
		test(chunk_is_found_before_it_is_committed),
		test(counter_that_lags_behind_is_damage),
		test(chunk_that_is_not_there_is_not_found),
		test(reference_to_no_chunk_is_damage),
		test(refreshing_another_chunk_is_refused),
		test(transaction_larger_than_the_cache_adds_up),
		test(rollback_leaves_no_trace),
		test(other_handle_sees_what_was_committed),
		test(data_version_tells_of_others_only),
		test(closing_rolls_back),
		test(read_only_handle_reads),
		test(threads_write_side_by_side),
		test(processes_write_side_by_side),
		test(what_was_acknowledged_survives_kill),
		test(read_only_file_system_is_read),
		test(log_on_read_only_file_system_is_not_ignored),
		test(another_user_may_read),
		test(path_is_taken_by_the_letter),
		test(bad_values_are_noticed),
		test(missing_table_is_damage),
		test(image_of_a_generation_to_come_is_damage),
		test(damaged_files_end_in_errors),
	};

	print_message("seed 4711\n");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
