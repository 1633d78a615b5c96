/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/base.c: pieces of images under a disk. Which are in force when, who uses an image, and what is read through
 * them, against what is
 * written out here by hand. What stores do with them is tested by store_contract.c, at random.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

enum { CHUNK_BYTES = 65536 };
#define PAGE_BYTES ((uint64_t)CHUNK_BYTES * CATALOG_PAGE_ENTRIES)

struct one {
	struct catalog_fixture fixture; /* the first member */
	struct catalog_disk web01, test;
	struct catalog_image image; /* of web01, with chunks at 0 to 9, and in page 2 */
	uint64_t chunks[16];
	struct failure failure;
};

static void change(struct one *one, const struct catalog_disk *disk, uint64_t index, enum catalog_kind kind,
		   uint64_t chunk)
{
	const struct catalog_change change = {.first = index, .count = 1, .kind = (uint8_t)kind, .chunk = chunk};
	uint64_t changed = 0, newly = 0;

	assert_done(catalog_map_update(one->fixture.catalog, disk, &change, 1, &changed, &newly, &one->failure),
		    &one->failure);
}

static int make_one(void **state)
{
	struct one *one;

	(void)catalog_fixture_setup(state, sizeof(*one), 77);
	one = *state;
	catalog_fixture_disk(one->fixture.catalog, "web01", &one->web01);
	catalog_fixture_disk(one->fixture.catalog, "test", &one->test);
	catalog_fixture_begin(one->fixture.catalog);
	memset(one->web01.uuid, 1, sizeof(one->web01.uuid));
	memset(one->test.uuid, 2, sizeof(one->test.uuid));
	for (unsigned i = 0; i < 16; i++) {
		one->chunks[i] = catalog_fixture_chunk(&one->fixture, one->fixture.catalog);
		change(one, &one->web01, i < 10 ? i : 2 * CATALOG_PAGE_ENTRIES + i, CATALOG_CHUNK, one->chunks[i]);
	}
	catalog_fixture_image(one->fixture.catalog, &one->web01, &one->image);
	change(one, &one->web01, 0, CATALOG_NOTHING, 0); /* what is read must be the image's */
	assert_done(catalog_disk_update(one->fixture.catalog, &one->test, &one->failure), &one->failure);
	catalog_fixture_commit(one->fixture.catalog);
	return 0;
}

static struct catalog_piece piece_of(const struct one *one, uint64_t off_bytes, uint64_t len_bytes,
				     uint64_t image_off_bytes)
{
	struct catalog_piece piece = {.off_bytes = off_bytes,
				      .len_bytes = len_bytes,
				      .image_disk = one->web01.id,
				      .image_number = one->image.number,
				      .image_generation = one->image.generation,
				      .image_off_bytes = image_off_bytes};

	memcpy(piece.image_uuid, one->web01.uuid, sizeof(piece.image_uuid));
	return piece;
}

static void set(struct one *one, const struct catalog_piece *pieces, size_t count)
{
	catalog_fixture_begin(one->fixture.catalog);
	assert_done(catalog_base_set(one->fixture.catalog, &one->test, pieces, count, &one->failure), &one->failure);
	catalog_fixture_commit(one->fixture.catalog);
}

/* The pieces of `test` in that generation, as text: "0+100<-0 …" in chunks. */
static void assert_pieces(struct one *one, uint32_t generation, const char *expected)
{
	AUTO_FREE struct catalog_piece *list = NULL;
	char text[256] = "";
	size_t count = 0;

	assert_done(catalog_base_list(one->fixture.catalog, one->test.id, generation, &list, &count, &one->failure),
		    &one->failure);
	for (size_t i = 0; i < count; i++)
		(void)snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%llu+%llu<-%llu", i == 0 ? "" : " ",
			       (unsigned long long)(list[i].off_bytes / CHUNK_BYTES),
			       (unsigned long long)(list[i].len_bytes / CHUNK_BYTES),
			       (unsigned long long)(list[i].image_off_bytes / CHUNK_BYTES));
	assert_string_equal(text, expected);
}

static struct catalog_entry read_entry(struct one *one, uint32_t generation, uint64_t index)
{
	static struct catalog_page page;

	assert_done(catalog_content_read(one->fixture.catalog, one->test.id, generation, CHUNK_BYTES,
					 index / CATALOG_PAGE_ENTRIES, &page, &one->failure),
		    &one->failure);
	return page.entries[index % CATALOG_PAGE_ENTRIES];
}

static uint64_t next_page(struct one *one, uint64_t from_page)
{
	uint64_t page = 0;

	assert_done(catalog_content_next(one->fixture.catalog, one->test.id, 0, CHUNK_BYTES, from_page, &page,
					 &one->failure),
		    &one->failure);
	return page;
}

static void image_shows_where_the_disk_has_nothing(void **state)
{
	struct one *one = *state;
	const struct catalog_piece piece = piece_of(one, 0, 100 * CHUNK_BYTES, 0);

	set(one, &piece, 1);
	catalog_fixture_begin(one->fixture.catalog);
	change(one, &one->test, 1, CATALOG_ZERO, 0);
	change(one, &one->test, 2, CATALOG_CHUNK, one->chunks[9]);
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(read_entry(one, 0, 0).chunk, one->chunks[0]);
	assert_int_equal(read_entry(one, 0, 1).kind, CATALOG_ZERO);
	assert_int_equal(read_entry(one, 0, 2).chunk, one->chunks[9]);
	assert_int_equal(read_entry(one, 0, 3).chunk, one->chunks[3]);
	assert_int_equal(read_entry(one, 0, 10).kind, CATALOG_NOTHING);
	assert_int_equal(read_entry(one, 0, 2 * CATALOG_PAGE_ENTRIES + 10).kind,
			 CATALOG_NOTHING); /* behind the piece */
	assert_int_equal(next_page(one, 0), 0);
	assert_int_equal(next_page(one, 1), UINT64_MAX);
}

/* As a partition that was moved: shifted against pages, so one page of the disk is made of two of the image. */
static void pieces_may_be_shifted(void **state)
{
	struct one *one = *state;
	const struct catalog_piece pieces[] = {
		piece_of(one, 5 * PAGE_BYTES + 3 * CHUNK_BYTES, 2 * PAGE_BYTES, 2 * PAGE_BYTES + 9 * CHUNK_BYTES),
		piece_of(one, 9 * PAGE_BYTES - 4 * CHUNK_BYTES, 8 * CHUNK_BYTES, 2 * CHUNK_BYTES)};

	set(one, pieces, 2);
	for (uint64_t i = 10; i < 16; i++)
		assert_int_equal(read_entry(one, 0, 5 * CATALOG_PAGE_ENTRIES + 3 + i - 9).chunk, one->chunks[i]);
	assert_int_equal(read_entry(one, 0, 5 * CATALOG_PAGE_ENTRIES + 3).kind, CATALOG_NOTHING);
	for (uint64_t i = 0; i < 8; i++)
		assert_int_equal(read_entry(one, 0, 9 * CATALOG_PAGE_ENTRIES - 4 + i).chunk, one->chunks[2 + i]);
	assert_int_equal(read_entry(one, 0, 9 * CATALOG_PAGE_ENTRIES + 4).kind, CATALOG_NOTHING);
	assert_int_equal(next_page(one, 0), 5);
	assert_int_equal(next_page(one, 6), 8);
	assert_int_equal(next_page(one, 9), 9);
	assert_int_equal(next_page(one, 10), UINT64_MAX);
}

static void images_keep_the_pieces_that_they_saw(void **state)
{
	struct one *one = *state;
	const struct catalog_piece whole = piece_of(one, 0, 100 * CHUNK_BYTES, 0),
				   rest[] = {piece_of(one, 0, 5 * CHUNK_BYTES, 0),
					     piece_of(one, 8 * CHUNK_BYTES, 92 * CHUNK_BYTES, 8 * CHUNK_BYTES)};
	struct catalog_image images[2];

	set(one, &whole, 1);
	catalog_fixture_begin(one->fixture.catalog);
	catalog_fixture_image(one->fixture.catalog, &one->test, &images[0]);
	catalog_fixture_commit(one->fixture.catalog);
	set(one, rest, 2);
	catalog_fixture_begin(one->fixture.catalog);
	catalog_fixture_image(one->fixture.catalog, &one->test, &images[1]);
	catalog_fixture_commit(one->fixture.catalog);
	set(one, rest, 1);
	set(one, NULL, 0); /* never seen by an image: nothing is left of it */
	assert_pieces(one, images[0].generation, "0+100<-0");
	assert_pieces(one, images[1].generation, "0+5<-0 8+92<-8");
	assert_pieces(one, 0, "");
	assert_int_equal(read_entry(one, images[0].generation, 6).chunk, one->chunks[6]);
	assert_int_equal(read_entry(one, images[1].generation, 6).kind, CATALOG_NOTHING);
	assert_int_equal(read_entry(one, images[1].generation, 8).chunk, one->chunks[8]);
	assert_int_equal(read_entry(one, 0, 8).kind, CATALOG_NOTHING);
	for (unsigned i = 0; i < 2; i++) {
		catalog_fixture_begin(one->fixture.catalog);
		images[i].state = CATALOG_GOING;
		assert_done(catalog_image_update(one->fixture.catalog, &images[i], &one->failure), &one->failure);
		assert_done(catalog_base_forget_unseen(one->fixture.catalog, one->test.id, &one->failure),
			    &one->failure);
		catalog_fixture_commit(one->fixture.catalog);
		assert_int_equal(catalog_fixture_value(one->fixture.catalog, "SELECT count(*) FROM base"),
				 i == 0 ? 2 : 0);
	}
}

static void users_of_an_image_are_known(void **state)
{
	struct one *one = *state;
	const struct catalog_piece piece = piece_of(one, 0, 100 * CHUNK_BYTES, 0);
	AUTO_FREE struct catalog_base_user *users = NULL;
	char name[CATALOG_NAME_BYTES] = "";
	uint32_t number = 0;
	unsigned levels = 0;
	bool any = true;
	size_t count = 0;

	assert_done(catalog_base_any(one->fixture.catalog, one->test.id, 0, &any, &one->failure), &one->failure);
	assert_false(any);
	set(one, &piece, 1);
	assert_done(catalog_base_any(one->fixture.catalog, one->test.id, 0, &any, &one->failure), &one->failure);
	assert_true(any);
	assert_done(catalog_base_users(one->fixture.catalog, one->web01.id, 1, &users, &count, &one->failure),
		    &one->failure);
	assert_int_equal(count, 1);
	assert_string_equal(users[0].name, "test");
	assert_int_equal(users[0].image_number, 1);
	free(take_ptr(users));
	assert_done(catalog_base_users(one->fixture.catalog, one->web01.id, 2, &users, &count, &one->failure),
		    &one->failure);
	assert_int_equal(count, 0);
	assert_done(catalog_base_parent(one->fixture.catalog, one->test.id, name, &number, &one->failure),
		    &one->failure);
	assert_string_equal(name, "web01");
	assert_int_equal(number, 1);
	assert_done(catalog_base_levels(one->fixture.catalog, one->test.id, 1, &levels, &one->failure), &one->failure);
	assert_int_equal(levels, 2);
	catalog_fixture_begin(one->fixture.catalog);
	one->test.state = CATALOG_GOING; /* one that goes uses nothing any more */
	assert_done(catalog_disk_update(one->fixture.catalog, &one->test, &one->failure), &one->failure);
	catalog_fixture_commit(one->fixture.catalog);
	assert_done(catalog_base_users(one->fixture.catalog, one->web01.id, 1, &users, &count, &one->failure),
		    &one->failure);
	assert_int_equal(count, 0);
	catalog_fixture_begin(one->fixture.catalog);
	assert_done(catalog_base_drop(one->fixture.catalog, one->test.id, &one->failure), &one->failure);
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(catalog_fixture_value(one->fixture.catalog, "SELECT count(*) FROM base"), 0);
}

static void assert_unreadable(struct one *one, const char *why)
{
	static struct catalog_page page;

	failure_clear(&one->failure);
	if (catalog_content_read(one->fixture.catalog, one->test.id, 0, CHUNK_BYTES, 0, &page, &one->failure) !=
		    -EBADMSG ||
	    strstr(one->failure.message, why) == NULL)
		fail_msg("\"%s\" doesn't say \"%s\"", one->failure.message, why);
}

static void what_cannot_be_followed_is_an_error(void **state)
{
	struct one *one = *state;
	const struct catalog_piece piece = piece_of(one, 0, 100 * CHUNK_BYTES, 0),
				   odd = piece_of(one, 512, 100 * CHUNK_BYTES, 0);

	set(one, &piece, 1);
	catalog_fixture_execute(one->fixture.catalog, "UPDATE base SET image_generation=0, image_disk=0");
	assert_unreadable(one, "gone");
	catalog_fixture_execute(one->fixture.catalog,
				"UPDATE base SET image_generation=1, image_disk=disk"); /* in a circle */
	assert_unreadable(one, "levels");
	catalog_fixture_execute(one->fixture.catalog, "UPDATE base SET image_number=0");
	assert_unreadable(one, "base");
	catalog_fixture_execute(one->fixture.catalog, "UPDATE base SET image_number=1, image_uuid=x'00'");
	assert_unreadable(one, "base");
	catalog_fixture_execute(one->fixture.catalog, "DELETE FROM base");
	set(one, &odd, 1);
	assert_unreadable(one, "multiple of the chunk size");
	set(one, NULL, 0);
}

static int count_missing(void *opaque, const char *disk, const struct catalog_piece *piece)
{
	assert_string_equal(disk, "test");
	assert_int_equal(piece->image_number, 9);
	++*(unsigned *)opaque;
	return 0;
}

static void pieces_find_their_images_after_a_rebuild(void **state)
{
	struct one *one = *state;
	struct catalog_piece pieces[] = {piece_of(one, 0, 4 * CHUNK_BYTES, 0),
					 piece_of(one, 4 * CHUNK_BYTES, CHUNK_BYTES, 0)};
	unsigned missing = 0;

	for (unsigned i = 0; i < 2; i++) {
		pieces[i].image_disk = 0;
		pieces[i].image_generation = 0;
	}
	pieces[1].image_number = 9;
	catalog_fixture_begin(one->fixture.catalog);
	assert_done(catalog_disk_update(one->fixture.catalog, &one->web01, &one->failure), &one->failure);
	assert_done(catalog_base_set(one->fixture.catalog, &one->test, pieces, 2, &one->failure), &one->failure);
	assert_done(catalog_base_resolve(one->fixture.catalog, count_missing, &missing, &one->failure), &one->failure);
	catalog_fixture_commit(one->fixture.catalog);
	assert_int_equal(missing, 1);
	assert_unreadable(one, "gone");
	set(one, pieces, 1);
	assert_int_equal(read_entry(one, 0, 3).chunk, one->chunks[3]);
}

/* Of the formats before, which nobody has released: made anew by a rebuild. */
static void older_formats_are_refused(void **state)
{
	struct one *one = *state;
	struct failure failure = {.code = 0};
	struct catalog *catalog = NULL;

	catalog_fixture_execute(one->fixture.catalog, "PRAGMA user_version=2");
	assert_int_equal(catalog_open(one->fixture.folder, one->fixture.locks_fd, true, &catalog, &failure),
			 -EPROTONOSUPPORT);
	assert_non_null(strstr(failure.message, "wherry rebuild"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(image_shows_where_the_disk_has_nothing, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(pieces_may_be_shifted, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(images_keep_the_pieces_that_they_saw, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(users_of_an_image_are_known, make_one, catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(what_cannot_be_followed_is_an_error, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(pieces_find_their_images_after_a_rebuild, make_one,
						catalog_fixture_teardown),
		cmocka_unit_test_setup_teardown(older_formats_are_refused, make_one, catalog_fixture_teardown),
	};

	return cmocka_run_group_tests_name("catalog, base", tests, NULL, NULL);
}
