/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/usage.c, and what a disk alone holds: walks meet all there is once, and sums are what counting by hand gives.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

struct one {
	struct catalog_fixture fixture; /* the first member */
};

static int make_one(void **state)
{
	return catalog_fixture_setup(state, sizeof(struct one), 815);
}

static uint64_t record_of(struct one *one, uint64_t chunk)
{
	struct catalog_location location;
	struct failure failure = {.code = 0};

	assert_done(catalog_chunk_get(one->fixture.catalog, chunk, &location, &failure), &failure);
	return catalog_record_bytes(location.stored_bytes);
}

static uint64_t unique_of(struct one *one, const struct catalog_disk *disk)
{
	struct failure failure = {.code = 0};
	uint64_t bytes = UINT64_MAX;

	assert_done(catalog_disk_unique(one->fixture.catalog, disk->id, &bytes, &failure), &failure);
	return bytes;
}

/* ---- walking ---- */

static void segments_are_listed_in_pieces(void **state)
{
	struct one *one = *state;
	struct failure failure = {.code = 0};
	uint32_t number, after = 0, seen = 0;

	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned i = 0; i < 10; i++)
		assert_done(catalog_segment_insert(one->fixture.catalog, &number, &failure), &failure);
	assert_done(catalog_segment_update(one->fixture.catalog, 4, 8192, true, &failure), &failure);
	catalog_fixture_commit(one->fixture.catalog);
	for (;;) {
		AUTO_FREE struct catalog_segment *list = NULL;
		size_t count;

		assert_done(catalog_segment_list(one->fixture.catalog, after, 3, &list, &count, &failure), &failure);
		if (count == 0)
			break;
		assert_true(count <= 3);
		for (size_t i = 0; i < count; i++) {
			assert_int_equal(list[i].number, ++seen);
			assert_int_equal(list[i].length_bytes, seen == 4 ? 8192 : 0);
			assert_int_equal(list[i].sealed, seen == 4);
		}
		after = list[count - 1].number;
	}
	assert_int_equal(seen, 10);
}

struct walk {
	uint64_t next, end_at, bad_rows;
};

static int expect_next(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct walk *walk = opaque;

	if (location == NULL) {
		walk->bad_rows++;
		walk->next += 64;
		return 0;
	}
	assert_int_equal(chunk, walk->next);
	assert_true(location->stored_bytes > 0);
	walk->next++;
	return chunk == walk->end_at ? 77 : 0;
}

static void walk_meets_each_chunk_of_a_range_once(void **state)
{
	static const uint64_t ranges[][2] = {{0, 1000}, {1, 201},   {1, 2},	{63, 65},
					     {64, 128}, {100, 100}, {150, 151}, {200, 300}};
	struct one *one = *state;
	struct failure failure = {.code = 0};

	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned i = 0; i < 200; i++)
		(void)catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	catalog_fixture_commit(one->fixture.catalog);
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		struct walk walk = {.next = ranges[i][0] == 0 ? 1 : ranges[i][0]};
		uint64_t end = ranges[i][1] > 201 ? 201 : ranges[i][1];

		assert_done(catalog_chunk_walk(one->fixture.catalog, ranges[i][0], ranges[i][1], expect_next, &walk,
					       &failure),
			    &failure);
		assert_int_equal(walk.next, end);
	}
	struct walk walk = {.next = 1, .end_at = 90};
	assert_int_equal(catalog_chunk_walk(one->fixture.catalog, 0, 1000, expect_next, &walk, &failure), 77);
	assert_int_equal(walk.next, 91);
}

static void walk_goes_on_behind_a_damaged_row(void **state)
{
	struct one *one = *state;
	struct failure failure = {.code = 0};
	struct walk walk = {.next = 1};
	struct catalog_usage usage;

	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned i = 0; i < 200; i++)
		(void)catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	catalog_fixture_commit(one->fixture.catalog);
	catalog_fixture_execute(one->fixture.catalog, "UPDATE chunk SET entries=substr(entries,1,50) WHERE page=1");
	assert_done(catalog_chunk_walk(one->fixture.catalog, 0, 1000, expect_next, &walk, &failure), &failure);
	assert_int_equal(walk.next, 201);
	assert_int_equal(walk.bad_rows, 1);
	assert_int_equal(catalog_usage(one->fixture.catalog, &usage, &failure), -EBADMSG);
	assert_non_null(strstr(failure.message, "chunk"));
}

/* ---- sums ---- */

static void usage_is_what_segments_and_chunks_say(void **state)
{
	struct one *one = *state;
	struct failure failure = {.code = 0};
	struct catalog_usage usage;
	struct catalog_disk disk;
	uint64_t live = 0;

	assert_done(catalog_usage(one->fixture.catalog, &usage, &failure), &failure);
	assert_int_equal(usage.segments + usage.live_bytes + usage.live_chunks + usage.committed_bytes, 0);
	catalog_fixture_disk(one->fixture.catalog, "web01", &disk);
	catalog_fixture_begin(one->fixture.catalog);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t chunk = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);

		if (i % 3 == 0)
			continue; /* nobody refers to it */
		catalog_fixture_put(one->fixture.catalog, &disk, i, chunk);
		catalog_fixture_put(one->fixture.catalog, &disk, i + 1000, chunk);
		live += record_of(one, chunk);
	}
	catalog_fixture_commit(one->fixture.catalog);
	assert_done(catalog_usage(one->fixture.catalog, &usage, &failure), &failure);
	assert_int_equal(usage.live_chunks, 200);
	assert_int_equal(usage.live_bytes, live);
	assert_int_equal(usage.segments, catalog_fixture_value(one->fixture.catalog, "SELECT count(*) FROM segment"));
	assert_int_equal(usage.committed_bytes,
			 catalog_fixture_value(one->fixture.catalog, "SELECT sum(length_bytes) FROM segment"));
}

static void disk_holds_what_no_other_does(void **state)
{
	struct one *one = *state;
	struct catalog_disk a, b;
	struct catalog_image image;
	uint64_t own, twice, shared, former, log_bytes;
	struct catalog_log_entry entry = {.sequence = 1, .stored_bytes = 100, .segment = 1};
	struct failure failure = {.code = 0};

	catalog_fixture_disk(one->fixture.catalog, "a", &a);
	catalog_fixture_disk(one->fixture.catalog, "b", &b);
	assert_int_equal(unique_of(one, &a), 0);
	catalog_fixture_begin(one->fixture.catalog);
	own = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	twice = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	shared = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	former = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	catalog_fixture_put(one->fixture.catalog, &a, 0, own);
	catalog_fixture_put(one->fixture.catalog, &a, 1, twice);
	catalog_fixture_put(one->fixture.catalog, &a, 300, twice);
	catalog_fixture_put(one->fixture.catalog, &a, 301, shared);
	catalog_fixture_put(one->fixture.catalog, &b, 5, shared);
	catalog_fixture_put(one->fixture.catalog, &a, 2, former);
	catalog_fixture_image(one->fixture.catalog, &a, &image);
	catalog_fixture_put(one->fixture.catalog, &a, 2, own); /* the image keeps what was there */
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(unique_of(one, &a), record_of(one, own) + record_of(one, twice) + record_of(one, former));
	assert_int_equal(unique_of(one, &b), 0);
	catalog_fixture_begin(one->fixture.catalog);
	entry.disk = b.id;
	assert_done(catalog_log_insert(one->fixture.catalog, &entry, &failure), &failure);
	catalog_fixture_put(one->fixture.catalog, &a, 301, own);
	catalog_fixture_commit(one->fixture.catalog);
	log_bytes = catalog_record_bytes(entry.stored_bytes);
	assert_int_equal(unique_of(one, &b), log_bytes); /* a's image still sees the shared one */
	assert_int_equal(unique_of(one, &a), record_of(one, own) + record_of(one, twice) + record_of(one, former));
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_one, catalog_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(segments_are_listed_in_pieces),	 test(walk_meets_each_chunk_of_a_range_once),
		test(walk_goes_on_behind_a_damaged_row), test(usage_is_what_segments_and_chunks_say),
		test(disk_holds_what_no_other_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
