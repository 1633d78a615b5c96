/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of catalog/ share. The judge reads tables by SQL of its own; all it takes from the catalog's code is
 * decoding of pages, which test_catalog_pages.c checks byte by byte.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

void assert_done_at(int result, const struct failure *failure, const char *file, int line)
{
	if (result == 0)
		return;
	print_error("%d: %s\n", result, failure->message);
	_fail(file, line);
}

void catalog_fixture_make(struct catalog_fixture *fixture, uint64_t seed)
{
	const char *parent = getenv("TMPDIR");
	struct failure failure = {.code = 0};
	char locks[300];

	fixture->random = seed * 0x9e3779b97f4a7c15 + 1;
	(void)snprintf(fixture->folder, sizeof(fixture->folder), "%s/wherry-test-catalog-XXXXXX",
		       parent == NULL ? "/tmp" : parent);
	assert_non_null(mkdtemp(fixture->folder));
	(void)snprintf(locks, sizeof(locks), "%s/locks", fixture->folder);
	assert_int_equal(mkdir(locks, 0755), 0);
	fixture->locks_fd = open(locks, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fixture->locks_fd >= 0);
	assert_done(catalog_create(fixture->folder, 65536, &failure), &failure);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void)status;
	(void)type;
	(void)walk;
	return remove(path);
}

void catalog_fixture_remove(struct catalog_fixture *fixture)
{
	(void)close(fixture->locks_fd);
	assert_int_equal(nftw(fixture->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

struct catalog *catalog_fixture_open(struct catalog_fixture *fixture, bool read_only, bool careless)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;

	assert_done(catalog_open(fixture->folder, fixture->locks_fd, read_only, &catalog, &failure), &failure);
	if (careless)
		catalog_fixture_execute(catalog, "PRAGMA synchronous=OFF");
	return catalog;
}

int catalog_fixture_setup(void **ret_state, size_t bytes, uint64_t seed)
{
	struct catalog_fixture *fixture = calloc(1, bytes);

	assert_non_null(fixture);
	catalog_fixture_make(fixture, seed);
	fixture->catalog = catalog_fixture_open(fixture, false, true);
	*ret_state = fixture;
	return 0;
}

int catalog_fixture_teardown(void **state)
{
	struct catalog_fixture *fixture = *state;

	catalog_close(fixture->catalog);
	catalog_fixture_remove(fixture);
	free(fixture);
	return 0;
}

void catalog_fixture_begin(struct catalog *catalog)
{
	struct failure failure = {.code = 0};

	assert_done(catalog_begin(catalog, &failure), &failure);
}

void catalog_fixture_commit(struct catalog *catalog)
{
	struct failure failure = {.code = 0};

	assert_done(catalog_commit(catalog, &failure), &failure);
}

void catalog_fixture_put(struct catalog *catalog, const struct catalog_disk *disk, uint64_t index, uint64_t chunk)
{
	struct catalog_change change = {
		.first = index, .count = 1, .kind = chunk == 0 ? CATALOG_NOTHING : CATALOG_CHUNK, .chunk = chunk};
	struct failure failure = {.code = 0};
	uint64_t changed = 0, newly = 0;

	assert_done(catalog_map_update(catalog, disk, &change, 1, &changed, &newly, &failure), &failure);
}

uint64_t catalog_fixture_below(struct catalog_fixture *fixture, uint64_t end)
{
	fixture->random ^= fixture->random << 13;
	fixture->random ^= fixture->random >> 7;
	fixture->random ^= fixture->random << 17;
	return (fixture->random * 0x2545f4914f6cdd1d >> 11) % end;
}

void catalog_fixture_disk(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk)
{
	struct failure failure = {.code = 0};

	*ret_disk = (struct catalog_disk){.size_bytes = (uint64_t)1 << 50,
					  .sector_bytes = 512,
					  .generation = 1,
					  .level = -1,
					  .next_image = 1,
					  .next_round = 1};
	(void)snprintf(ret_disk->name, sizeof(ret_disk->name), "%s", name);
	assert_done(catalog_begin(catalog, &failure), &failure);
	assert_done(catalog_disk_insert(catalog, ret_disk, &failure), &failure);
	assert_done(catalog_commit(catalog, &failure), &failure);
}

void catalog_fixture_image(struct catalog *catalog, struct catalog_disk *disk, struct catalog_image *ret_image)
{
	struct failure failure = {.code = 0};

	*ret_image = (struct catalog_image){.disk = disk->id,
					    .number = disk->next_image++,
					    .generation = disk->generation++,
					    .size_bytes = disk->size_bytes};
	assert_done(catalog_image_insert(catalog, ret_image, &failure), &failure);
	assert_done(catalog_disk_update(catalog, disk, &failure), &failure);
}

uint64_t catalog_fixture_chunk(struct catalog_fixture *fixture, struct catalog *catalog)
{
	struct failure failure = {.code = 0};
	struct catalog_location location = {.tag = catalog_fixture_below(fixture, (uint64_t)1 << 48),
					    .stored_bytes = 1 + (uint32_t)catalog_fixture_below(fixture, 65536)};
	struct catalog_segment segment;
	int64_t number = catalog_fixture_value(catalog, "SELECT max(number) FROM segment");
	uint64_t chunk;

	if (number <= 0 || catalog_fixture_below(fixture, 16) == 0)
		assert_done(catalog_segment_insert(catalog, &location.segment, &failure), &failure);
	else
		location.segment = (uint32_t)number;
	assert_done(catalog_segment_get(catalog, location.segment, &segment, &failure), &failure);
	location.off_bytes = (uint32_t)segment.length_bytes;
	assert_done(catalog_segment_update(catalog, location.segment,
					   segment.length_bytes + catalog_record_bytes(location.stored_bytes), false,
					   &failure),
		    &failure);
	assert_done(catalog_chunk_add(catalog, &location, &chunk, &failure), &failure);
	return chunk;
}

int64_t catalog_fixture_value(struct catalog *catalog, const char *sql)
{
	sqlite3_stmt *query = NULL;
	int64_t value = -1;

	assert_int_equal(sqlite3_prepare_v2(catalog->db, sql, -1, &query, NULL), SQLITE_OK);
	if (sqlite3_step(query) == SQLITE_ROW && sqlite3_column_type(query, 0) != SQLITE_NULL)
		value = sqlite3_column_int64(query, 0);
	(void)sqlite3_finalize(query);
	return value;
}

void catalog_fixture_execute(struct catalog *catalog, const char *sql)
{
	if (sqlite3_exec(catalog->db, sql, NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", sql, sqlite3_errmsg(catalog->db));
}

/* ---- the judge ---- */

struct count {
	uint64_t chunks;
	uint32_t *references; /* by id */
	uint64_t segments;
	uint64_t *live_bytes; /* by number */
};

static void count_entry(struct count *count, const struct catalog_entry *entry)
{
	if (entry->kind != CATALOG_CHUNK)
		return;
	assert_true(entry->chunk >= 1 && entry->chunk <= count->chunks);
	count->references[entry->chunk]++;
}

static void count_map(struct catalog *catalog, struct count *count)
{
	AUTO_FREE struct catalog_page *page = malloc(sizeof(*page));
	sqlite3_stmt *rows = NULL;

	assert_int_equal(sqlite3_prepare_v2(catalog->db, "SELECT entries,key FROM map", -1, &rows, NULL), SQLITE_OK);
	while (sqlite3_step(rows) == SQLITE_ROW) {
		const void *blob = NULL;
		size_t len_bytes = 0;

		assert_int_equal(page_unseal(rows, 0, MAP_PAGE_KEY(sqlite3_column_int64(rows, 1)), &blob, &len_bytes),
				 0);
		assert_int_equal(map_page_decode(blob, len_bytes, page), 0);
		assert_false(map_page_is_empty(page));
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
			count_entry(count, &page->entries[i]);
	}
	(void)sqlite3_finalize(rows);
}

static void count_past(struct catalog *catalog, struct count *count)
{
	AUTO_FREE struct past_page *past = malloc(sizeof(*past));
	sqlite3_stmt *rows = NULL;

	assert_int_equal(sqlite3_prepare_v2(catalog->db, "SELECT until,entries,disk,page FROM past", -1, &rows, NULL),
			 SQLITE_OK);
	while (sqlite3_step(rows) == SQLITE_ROW) {
		const void *blob = NULL;
		size_t len_bytes = 0;

		assert_int_equal(page_unseal(rows, 1,
					     PAST_PAGE_KEY(sqlite3_column_int64(rows, 2),
							   (uint64_t)sqlite3_column_int64(rows, 3),
							   (uint64_t)sqlite3_column_int64(rows, 0)),
					     &blob, &len_bytes),
				 0);
		assert_int_equal(past_page_decode(blob, len_bytes, past), 0);
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
			if (!past->present[i])
				continue;
			assert_true(past->entries[i].since < sqlite3_column_int64(rows, 0));
			count_entry(count, &past->entries[i]);
		}
	}
	(void)sqlite3_finalize(rows);
}

static void count_log(struct catalog *catalog, struct count *count)
{
	sqlite3_stmt *rows = NULL;

	assert_int_equal(sqlite3_prepare_v2(catalog->db, "SELECT segment,stored_bytes FROM log", -1, &rows, NULL),
			 SQLITE_OK);
	while (sqlite3_step(rows) == SQLITE_ROW) {
		assert_in_range(sqlite3_column_int64(rows, 0), 1, count->segments);
		count->live_bytes[sqlite3_column_int64(rows, 0)] +=
			catalog_record_bytes((uint32_t)sqlite3_column_int64(rows, 1));
	}
	(void)sqlite3_finalize(rows);
}

static void check_chunks(struct catalog *catalog, struct count *count)
{
	struct failure failure = {.code = 0};
	bool ours;

	assert_done(catalog_snapshot_begin(catalog, &ours, &failure),
		    &failure); /* for speed: many small reads follow */
	for (uint64_t chunk = 1; chunk <= count->chunks; chunk++) {
		struct catalog_location location;
		uint64_t found[8];
		size_t found_count, i;

		bool is_lost = false;

		assert_done(catalog_lost_has(catalog, chunk, &is_lost, &failure), &failure);
		if (catalog_chunk_get(catalog, chunk, &location, &failure) == -ENOENT) {
			assert_false(is_lost);
			assert_int_equal(count->references[chunk], 0);
			continue;
		}
		if (location.references != count->references[chunk])
			fail_msg("chunk %llu: %u references, %u entries name it", (unsigned long long)chunk,
				 location.references, count->references[chunk]);
		assert_in_range(location.segment, is_lost ? 0 : 1, count->segments);
		if (location.references > 0 && location.segment > 0)
			count->live_bytes[location.segment] += catalog_record_bytes(location.stored_bytes);
		assert_done(catalog_chunk_find(catalog, location.tag, found, 8, &found_count, &failure), &failure);
		for (i = 0; i < found_count && found[i] != chunk; i++)
			;
		assert_int_equal(i < found_count, !is_lost);
	}
	catalog_snapshot_end(catalog, ours);
}

static void check_segments(struct catalog *catalog, struct count *count)
{
	struct failure failure = {.code = 0};

	for (uint32_t number = 1; number <= count->segments; number++) {
		struct catalog_segment segment;

		assert_done(catalog_segment_get(catalog, number, &segment, &failure), &failure);
		if (segment.live_bytes != count->live_bytes[number])
			fail_msg("segment %u: %llu live bytes, its records say %llu", number,
				 (unsigned long long)segment.live_bytes, (unsigned long long)count->live_bytes[number]);
	}
}

void catalog_assert_consistent(struct catalog *catalog)
{
	struct failure failure = {.code = 0};
	struct count count = {.segments = (uint64_t)catalog_fixture_value(catalog, "SELECT count(*) FROM segment")};

	assert_done(catalog_chunk_count(catalog, &count.chunks, &failure), &failure);
	count.references = calloc(count.chunks + 1, sizeof(*count.references));
	count.live_bytes = calloc(count.segments + 1, sizeof(*count.live_bytes));
	assert_true(count.references != NULL && count.live_bytes != NULL);
	count_map(catalog, &count);
	count_past(catalog, &count);
	count_log(catalog, &count);
	check_chunks(catalog, &count);
	check_segments(catalog, &count);
	free(count.references);
	free(count.live_bytes);
}
