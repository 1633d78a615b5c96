/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/lost.c: what is lost is found by no digest, keeps its references, is sound again at another place or
 * where it was, and goes with its last reference.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

enum { CHUNK_BYTES = 65536 };

struct one {
	struct catalog_fixture fixture; /* the first member */
	struct catalog_disk disk;
	struct failure failure;
	unsigned flaws;
};

static int make_one(void **state)
{
	struct one *one;

	(void)catalog_fixture_setup(state, sizeof(*one), 77);
	one = *state;
	catalog_fixture_disk(one->fixture.catalog, "web01", &one->disk);
	return 0;
}

#define DO(call) assert_done((call), &one->failure)

/* A digest that begins with the tag of a chunk. */
static void digest_for(struct one *one, uint64_t chunk, uint8_t ret_digest[CATALOG_DIGEST_BYTES])
{
	struct catalog_location location;

	DO(catalog_chunk_get(one->fixture.catalog, chunk, &location, &one->failure));
	memset(ret_digest, 0xab, CATALOG_DIGEST_BYTES);
	for (int i = 0; i < 6; i++)
		ret_digest[i] = (uint8_t)(location.tag >> (40 - 8 * i));
}

/* A chunk at place `index` of the disk, which its digest leads to. */
static uint64_t make_used(struct one *one, uint64_t index, uint8_t ret_digest[CATALOG_DIGEST_BYTES])
{
	uint64_t chunk;

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	chunk = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	catalog_fixture_put(one->fixture.catalog, &one->disk, index, chunk);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	digest_for(one, chunk, ret_digest);
	return chunk;
}

static void mark(struct one *one, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES])
{
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_lost_mark(one->fixture.catalog, chunk, digest, &one->failure));
	DO(catalog_commit(one->fixture.catalog, &one->failure));
}

static size_t count_found(struct one *one, const uint8_t digest[CATALOG_DIGEST_BYTES])
{
	uint64_t found[8];
	size_t count = 0;

	DO(catalog_chunk_find(one->fixture.catalog, catalog_tag(digest), found, 8, &count, &one->failure));
	return count;
}

static uint64_t count_damaged(struct one *one)
{
	struct catalog_lost list[16], after = {.chunk = 0};
	bool any = false;
	size_t count = 99;

	DO(catalog_lost_list(one->fixture.catalog, after.digest, list, 16, &count, &one->failure));
	DO(catalog_lost_any(one->fixture.catalog, &any, &one->failure));
	assert_int_equal(any, count > 0);
	return count;
}

static void count_flaw(void *opaque, const char *what, const char *why)
{
	struct one *one = opaque;

	one->flaws++;
	print_message("%s: %s\n", what, why);
}

static unsigned count_flaws(struct one *one)
{
	const struct catalog_check check = {.flaw = count_flaw, .opaque = one};

	one->flaws = 0;
	DO(catalog_check_rows(one->fixture.catalog, CHUNK_BYTES, &check, &one->failure));
	return one->flaws;
}

static void assert_consistent(struct one *one)
{
	catalog_assert_consistent(one->fixture.catalog);
	assert_int_equal(count_flaws(one), 0);
}

static void no_digest_leads_to_what_is_damaged(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES], other[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 3, digest), healthy = make_used(one, 4, other), found = 0;
	bool has = false;

	assert_int_equal(count_damaged(one), 0);
	DO(catalog_lost_find(one->fixture.catalog, digest, &found, &one->failure));
	assert_int_equal(found, 0);
	mark(one, chunk, digest);
	mark(one, chunk, digest); /* again: nothing new */
	assert_int_equal(count_damaged(one), 1);
	assert_int_equal(count_found(one, digest), 0);
	assert_int_equal(count_found(one, other), 1);
	DO(catalog_lost_find(one->fixture.catalog, digest, &found, &one->failure));
	assert_int_equal(found, chunk);
	DO(catalog_lost_has(one->fixture.catalog, chunk, &has, &one->failure));
	assert_true(has);
	DO(catalog_lost_has(one->fixture.catalog, healthy, &has, &one->failure));
	assert_false(has);
	digest[31] ^= 1; /* the same tag, another digest */
	DO(catalog_lost_find(one->fixture.catalog, digest, &found, &one->failure));
	assert_int_equal(found, 0);
	assert_consistent(one);
}

static void another_digest_marks_nothing(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest);

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	digest[0] ^= 1;
	assert_int_equal(catalog_lost_mark(one->fixture.catalog, chunk, digest, &one->failure), -EINVAL);
	assert_int_equal(catalog_lost_mark(one->fixture.catalog, chunk + 1000, digest, NULL), -ENOENT);
	catalog_rollback(one->fixture.catalog);
	assert_int_equal(count_damaged(one), 0);
	assert_consistent(one);
}

static void what_is_rolled_back_was_never_damaged(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest);
	bool has = true;

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_lost_mark(one->fixture.catalog, chunk, digest, &one->failure));
	DO(catalog_lost_has(one->fixture.catalog, chunk, &has, &one->failure));
	assert_true(has);
	catalog_rollback(one->fixture.catalog);
	DO(catalog_lost_has(one->fixture.catalog, chunk, &has, &one->failure));
	assert_false(has);
	assert_int_equal(count_found(one, digest), 1);
	assert_consistent(one);
}

static void others_see_it_at_once(void **state)
{
	struct one *one = *state;
	struct catalog *reader = catalog_fixture_open(&one->fixture, true, true);
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest);
	bool has = true;

	DO(catalog_lost_has(reader, chunk, &has, &one->failure));
	assert_false(has);
	mark(one, chunk, digest);
	DO(catalog_lost_has(reader, chunk, &has, &one->failure));
	assert_true(has);
	catalog_close(reader);
}

static void a_new_record_makes_it_sound(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES], other[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest), donor;
	struct catalog_location at;

	mark(one, chunk, digest);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	donor = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	digest_for(one, donor, other);
	DO(catalog_chunk_get(one->fixture.catalog, donor, &at, &one->failure));
	DO(catalog_chunk_drop(one->fixture.catalog, donor, &one->failure));
	DO(catalog_lost_heal(one->fixture.catalog, chunk, digest, &at, &one->failure));
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_damaged(one), 0);
	assert_int_equal(count_found(one, digest), 1);
	assert_consistent(one);
}

static void its_own_record_may_be_sound_again(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest);

	mark(one, chunk, digest);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_lost_unmark(one->fixture.catalog, chunk, &one->failure));
	DO(catalog_lost_unmark(one->fixture.catalog, chunk, &one->failure)); /* it isn't damaged: nothing to do */
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_damaged(one), 0);
	assert_int_equal(count_found(one, digest), 1);
	assert_consistent(one);
}

static void it_goes_with_its_last_reference(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES], other[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest), dead = make_used(one, 1, other);
	struct catalog_location location;

	mark(one, chunk, digest);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 5, 0);
	catalog_fixture_put(one->fixture.catalog, &one->disk, 0, 0);
	catalog_fixture_put(one->fixture.catalog, &one->disk, 1, 0);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_damaged(one), 0);
	assert_int_equal(catalog_chunk_get(one->fixture.catalog, chunk, &location, &one->failure), -ENOENT);
	assert_int_equal(count_found(one, digest), 0);
	/* a dead chunk can be found again, until it turns out to be damaged */
	assert_int_equal(count_found(one, other), 1);
	mark(one, dead, other);
	assert_int_equal(count_found(one, other), 0);
	assert_int_equal(count_damaged(one), 0);
	assert_consistent(one);
}

static void an_image_keeps_it(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest), freed = 0;
	struct catalog_position position = {.page = 0};
	struct catalog_image image;
	bool done = false;

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	catalog_fixture_image(one->fixture.catalog, &one->disk, &image);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	mark(one, chunk, digest);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 0, 0);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_damaged(one), 1);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	image.state = CATALOG_GOING;
	DO(catalog_image_update(one->fixture.catalog, &image, &one->failure));
	while (!done)
		DO(catalog_image_sweep(one->fixture.catalog, &image, &position, 100, &freed, &done, &one->failure));
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_damaged(one), 0);
	assert_consistent(one);
}

static void what_is_lost_has_references_and_no_room(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk, found = 0;
	struct catalog_location location, at;

	memset(digest, 0x5a, sizeof(digest));
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_lost_add(one->fixture.catalog, digest, &chunk, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 7, chunk);
	catalog_fixture_put(one->fixture.catalog, &one->disk, 8, chunk);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	DO(catalog_chunk_get(one->fixture.catalog, chunk, &location, &one->failure));
	assert_int_equal(location.segment, 0);
	assert_int_equal(location.references, 2);
	assert_int_equal(count_found(one, digest), 0);
	DO(catalog_lost_find(one->fixture.catalog, digest, &found, &one->failure));
	assert_int_equal(found, chunk);
	assert_consistent(one);

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	assert_int_equal(catalog_lost_unmark(one->fixture.catalog, chunk, &one->failure), -EINVAL);
	found = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
	DO(catalog_chunk_get(one->fixture.catalog, found, &at, &one->failure));
	DO(catalog_chunk_drop(one->fixture.catalog, found, &one->failure));
	DO(catalog_lost_heal(one->fixture.catalog, chunk, digest, &at, &one->failure));
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(count_found(one, digest), 1);
	assert_int_equal(count_damaged(one), 0);
	assert_consistent(one);
}

static void what_is_lost_goes_with_its_last_reference(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES] = {1};
	uint64_t chunk;
	struct catalog_location location;

	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_lost_add(one->fixture.catalog, digest, &chunk, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 7, chunk);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 7, 0);
	DO(catalog_commit(one->fixture.catalog, &one->failure));
	assert_int_equal(catalog_chunk_get(one->fixture.catalog, chunk, &location, &one->failure), -ENOENT);
	assert_int_equal(count_damaged(one), 0);
	assert_consistent(one);
}

static void lists_are_in_order_and_in_pieces(void **state)
{
	struct one *one = *state;
	struct catalog_lost list[2], after = {.chunk = 0};
	uint8_t digest[CATALOG_DIGEST_BYTES];
	unsigned seen = 0;
	size_t count;

	for (unsigned i = 0; i < 5; i++)
		mark(one, make_used(one, i, digest), digest);
	do {
		DO(catalog_lost_list(one->fixture.catalog, after.digest, list, 2, &count, &one->failure));
		for (size_t n = 0; n < count; n++, seen++) {
			assert_true(memcmp(list[n].digest, after.digest, sizeof(after.digest)) > 0);
			digest_for(one, list[n].chunk, digest);
			assert_memory_equal(list[n].digest, digest, sizeof(digest));
			after = list[n];
		}
	} while (count > 0);
	assert_int_equal(seen, 5);
}

static void one_digest_is_lost_once(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk = make_used(one, 0, digest), twin;
	struct catalog_location at;

	mark(one, chunk, digest);
	DO(catalog_begin(one->fixture.catalog, &one->failure));
	DO(catalog_chunk_get(one->fixture.catalog, chunk, &at, &one->failure));
	DO(catalog_chunk_add(one->fixture.catalog, &at, &twin, &one->failure));
	catalog_fixture_put(one->fixture.catalog, &one->disk, 1, twin);
	assert_int_equal(catalog_lost_mark(one->fixture.catalog, twin, digest, &one->failure), -EEXIST);
	catalog_rollback(one->fixture.catalog);
	assert_consistent(one);
}

static void a_check_finds_rows_that_do_not_agree(void **state)
{
	struct one *one = *state;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	struct catalog_lost none = {.chunk = 0};
	uint64_t chunk = make_used(one, 0, digest);

	mark(one, chunk, digest);
	assert_int_equal(count_flaws(one), 0);
	catalog_fixture_execute(one->fixture.catalog, "UPDATE lost SET digest=randomblob(32)");
	assert_int_equal(count_flaws(one), 1);
	catalog_fixture_execute(one->fixture.catalog, "DELETE FROM lost");
	assert_int_equal(count_flaws(one), 1);
	catalog_fixture_execute(one->fixture.catalog, "INSERT INTO lost VALUES(x'01',1)");
	one->failure = (struct failure){.code = 0};
	assert_int_equal(catalog_lost_list(one->fixture.catalog, none.digest, &none, 1, &(size_t){0}, &one->failure),
			 -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(no_digest_leads_to_what_is_damaged, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(another_digest_marks_nothing, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(what_is_rolled_back_was_never_damaged, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(others_see_it_at_once, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(a_new_record_makes_it_sound, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(its_own_record_may_be_sound_again, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(it_goes_with_its_last_reference, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(an_image_keeps_it, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(what_is_lost_has_references_and_no_room, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(what_is_lost_goes_with_its_last_reference, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(lists_are_in_order_and_in_pieces, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(one_digest_is_lost_once, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(a_check_finds_rows_that_do_not_agree, make_one,
						catalog_fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
