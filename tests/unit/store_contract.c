/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The suite of store_contract.h.
 *
 * The oracle is plain memory: a test keeps the bytes that a disk or an image
 * ought to have, and compares them with what the store gives through its map,
 * every other time with the deep check. Nothing is assumed that store.h does not
 * promise: a chunk may have another name after the commit than it had when it
 * was put, and zeros may be kept as nothing or as zeros.
 *
 * Threads that a test starts don't use cmocka's assertions, which leave by
 * longjmp(); they return what went wrong, and the test asserts.
 */
#include "unit_test.h"

#include <stdatomic.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/record.h"
#include "store/store.h"
#include "store_contract.h"

#define CHUNK ((size_t)STORE_CHUNK_LEAST_BYTES)
enum { PAGE = STORE_MAP_PAGE_ENTRIES, MOST_CHUNKS = 64 };

struct fixture {
	const struct store_contract_factory *factory;
	void *place;
	struct store *store;
	struct store_scratch *scratch;
};

static const struct store_contract_factory *the_factory;

/* Views that a failed test left open; a store is closed after its views. */
enum { MOST_VIEWS = 64 };
static struct store_view *open_views[MOST_VIEWS];

static void note_view(struct store_view *view)
{
	for (size_t i = 0; i < MOST_VIEWS; i++)
		if (open_views[i] == NULL) {
			open_views[i] = view;
			return;
		}
}

static void close_view(struct store_view *view)
{
	for (size_t i = 0; i < MOST_VIEWS; i++)
		if (open_views[i] == view)
			open_views[i] = NULL;
	store_view_close(view);
}

static int set_up(void **state)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));

	if (fixture == NULL)
		return -1;
	fixture->factory = the_factory;
	*state = fixture;
	if (store_scratch_new(&fixture->scratch, NULL) != 0)
		return -1;
	return the_factory->make(CHUNK, &fixture->place, &fixture->store);
}

static int tear_down(void **state)
{
	struct fixture *fixture = *state;

	for (size_t i = 0; i < MOST_VIEWS; i++)
		if (open_views[i] != NULL)
			close_view(open_views[i]);
	the_factory->destroy(fixture->place, fixture->store);
	store_scratch_free(fixture->scratch);
	free(fixture);
	return 0;
}

unsigned int store_contract_seed(void)
{
	const char *given = getenv("WHERRY_TEST_SEED"); /* before any thread is started */
	unsigned int seed = given != NULL ? (unsigned int)strtoul(given, NULL, 10)
					  : (unsigned int)time(NULL) * 2654435761U ^ (unsigned int)getpid();

	print_message("WHERRY_TEST_SEED=%u\n", seed);
	return seed;
}

/* -------------------------------------------------- asserting with a message */

static struct failure failure; /* of the last call; the tests' own thread only */

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

static void assert_refused(int result, int code, const char *part, const char *what, int line)
{
	if (result != code || failure.code != code)
		fail_msg("line %d: %s: %d instead of %d: %s", line, what, result, code, failure.message);
	if (strstr(failure.message, part) == NULL)
		fail_msg("line %d: %s: \"%s\" lacks \"%s\"", line, what, failure.message, part);
}

static void assert_holds(bool holds, const char *what, int line)
{
	if (!holds)
		fail_msg("line %d: %s", line, what);
}

/* must(store_...(..., why())); */
#define must(call) assert_done((call), #call, __LINE__)
/* Fails with this errno, and with a message that holds `part`. */
#define must_refuse(call, code, part) assert_refused((call), (code), (part), #call, __LINE__)
#define must_hold(condition) assert_holds((condition), #condition, __LINE__)

/* -------------------------------------------------------- content and disks */

/* Bytes that differ with the seed; every second seed's compress well. */
static void fill(uint8_t *bytes, size_t len_bytes, uint64_t seed)
{
	uint64_t mixed = seed * 0x9e3779b97f4a7c15 + 1;

	for (size_t i = 0; i < len_bytes; i++) {
		mixed ^= mixed << 13;
		mixed ^= mixed >> 7;
		mixed ^= mixed << 17;
		bytes[i] = seed % 2 == 0 || i % 512 == 0 ? (uint8_t)mixed : (uint8_t) "wherry  "[i % 8];
	}
	if (len_bytes >= sizeof(seed))
		memcpy(bytes, &seed, sizeof(seed));
}

static void create_disk(struct fixture *fixture, const char *name, uint64_t size_bytes)
{
	const struct store_disk_params params = {.name = name, .size_bytes = size_bytes, .sector_bytes = 512};

	must(store_create_disk(fixture->store, &params, why()));
}

static struct store_reference reference_to(const char *text)
{
	struct store_reference reference;

	must(store_parse_reference(text, &reference, why()));
	return reference;
}

static int try_open(struct fixture *fixture, const char *text, enum store_view_mode mode, struct store_view **ret_view)
{
	struct store_reference reference = reference_to(text);
	int error = store_view_open(fixture->store, &reference, mode, "contract test", ret_view, why());

	if (error == 0)
		note_view(*ret_view);
	return error;
}

static struct store_view *open_view(struct fixture *fixture, const char *text, enum store_view_mode mode)
{
	struct store_view *view;

	must(try_open(fixture, text, mode, &view));
	return view;
}

static uint64_t count_chunks(uint64_t size_bytes)
{
	return (size_bytes + CHUNK - 1) / CHUNK;
}

static size_t length_at(uint64_t size_bytes, uint64_t index)
{
	uint64_t left = size_bytes - index * CHUNK;

	return left < CHUNK ? (size_t)left : CHUNK;
}

/*
 * Describes a change of place `index` to these bytes: zeros as nothing, a chunk that is there as it is found, else it
 * is put. For any thread.
 */
static int make_change(struct store_view *view, struct store_scratch *scratch, uint64_t index, const uint8_t *plain,
		       size_t plain_bytes, struct store_change *ret_change, struct failure *failure_at)
{
	struct store_change change = {.first_chunk = index, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
	struct hasher *hasher = store_scratch_hasher(scratch);
	struct store_encoded encoded;
	uint64_t new_bytes;
	int error;

	if (bytes_are_zero(plain, plain_bytes)) {
		change.kind = STORE_MAP_NOTHING;
		*ret_change = change;
		return 0;
	}
	error = hasher_digest(hasher, plain, plain_bytes, change.digest, failure_at);
	if (error == 0)
		error = hasher_fingerprint(hasher, store_view_fingerprint_key(view), plain, plain_bytes,
					   change.fingerprint, failure_at);
	if (error == 0)
		error = store_find_chunks(store_view_store(view), (const uint8_t(*)[DIGEST_BYTES])change.digest, 1,
					  &change.chunk, failure_at);
	if (error == 0 && change.chunk == 0) {
		error = store_encode_chunk(scratch, 3, change.digest, plain, (uint32_t)plain_bytes, &encoded,
					   failure_at);
		if (error == 0)
			error = store_put_chunk(view, &encoded, &change.chunk, &new_bytes, failure_at);
	}
	if (error == 0)
		*ret_change = change;
	return error;
}

/* Commits the places whose bit is set in `places`, as `bytes` has them. For any thread. */
static int commit_places(struct store_view *view, struct store_scratch *scratch, const uint8_t *bytes, uint64_t places,
			 const struct store_round_position *round, struct failure *failure_at)
{
	struct store_change changes[MOST_CHUNKS];
	uint64_t size_bytes = store_view_size(view);
	size_t count = 0;
	int error = 0;

	for (uint64_t i = 0; i < count_chunks(size_bytes) && error == 0; i++)
		if ((places >> i & 1) != 0)
			error = make_change(view, scratch, i, bytes + i * CHUNK, length_at(size_bytes, i),
					    &changes[count++], failure_at);
	return error != 0 ? error : store_commit(view, changes, count, round, failure_at);
}

static const uint64_t all_places = UINT64_MAX;

static void write_places(struct fixture *fixture, struct store_view *view, const uint8_t *bytes, uint64_t places)
{
	must(commit_places(view, fixture->scratch, bytes, places, NULL, why()));
}

/* The first place where the view differs from `bytes`, or UINT64_MAX. For any thread; an error is in *ret_error. */
static uint64_t find_difference(struct store_view *view, struct store_scratch *scratch, const uint8_t *bytes,
				int *ret_error, struct failure *failure_at)
{
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	uint64_t size_bytes = store_view_size(view);
	uint8_t plain[CHUNK];

	*ret_error = map == NULL ? -ENOMEM : 0;
	for (uint64_t i = 0; i < count_chunks(size_bytes) && *ret_error == 0; i++) {
		uint32_t plain_bytes = (uint32_t)length_at(size_bytes, i);
		const struct store_map_entry *entry = &map->entries[i % PAGE];

		if (i % PAGE == 0)
			*ret_error = store_view_map(view, i / PAGE, map, failure_at);
		if (*ret_error != 0)
			break;
		memset(plain, 0, sizeof(plain));
		if (entry->kind == STORE_MAP_CHUNK)
			*ret_error = store_view_read_chunk(view, scratch, entry->chunk, plain, plain_bytes, i % 2 == 0,
							   failure_at);
		if (*ret_error != 0 || memcmp(plain, bytes + i * CHUNK, plain_bytes) != 0)
			return i;
	}
	return UINT64_MAX;
}

static void assert_content(struct fixture *fixture, struct store_view *view, const uint8_t *bytes, const char *where)
{
	int error;
	uint64_t place = find_difference(view, fixture->scratch, bytes, &error, why());

	if (error != 0)
		fail_msg("%s: %s: place %llu: %d: %s", where, store_view_name(view), (unsigned long long)place, error,
			 failure.message);
	if (place != UINT64_MAX)
		fail_msg("%s: %s: place %llu differs", where, store_view_name(view), (unsigned long long)place);
}

static void assert_reference_content(struct fixture *fixture, const char *text, const uint8_t *bytes, const char *where)
{
	struct store_view *view = open_view(fixture, text, VIEW_READ);

	assert_content(fixture, view, bytes, where);
	close_view(view);
}

static uint32_t take_image(struct store_view *view)
{
	const struct store_image_params params = {.label = NULL};
	uint32_t number;

	must(store_create_image(view, &params, &number, why()));
	return number;
}

static void reopen(struct fixture *fixture)
{
	int error = fixture->factory->reopen(fixture->place, &fixture->store);

	if (error != 0)
		fail_msg("the store can't be opened again: %d", error);
}

/* A disk of `chunks` whole chunks, all different from each other and zero nowhere, committed; its bytes are the
 * caller's to free. */
static struct store_view *make_filled_disk(struct fixture *fixture, const char *name, uint64_t chunks, uint64_t seed,
					   uint8_t **ret_bytes)
{
	uint8_t *bytes = malloc(chunks * CHUNK);
	struct store_view *view;

	must_hold(bytes != NULL);
	for (uint64_t i = 0; i < chunks; i++)
		fill(bytes + i * CHUNK, CHUNK, seed + i);
	create_disk(fixture, name, chunks * CHUNK);
	view = open_view(fixture, name, VIEW_WRITE);
	write_places(fixture, view, bytes, all_places);
	*ret_bytes = bytes;
	return view;
}

/* One image out of a listing; strings go with it. Caller releases with store_images_free(image, 1). */
static struct store_image *describe_image(struct fixture *fixture, const char *disk, uint32_t number)
{
	struct store_image *list;
	struct store_image *found = calloc(1, sizeof(*found));
	size_t count;

	must_hold(found != NULL);
	must(store_list_images(fixture->store, disk, &list, &count, why()));
	for (size_t i = 0; i < count; i++)
		if (list[i].number == number) {
			*found = list[i];
			list[i] = (struct store_image){.label = NULL};
		}
	store_images_free(list, count);
	must_hold(found->number == number);
	return found;
}

static size_t count_images(struct fixture *fixture, const char *disk)
{
	struct store_image *list;
	size_t count;

	must(store_list_images(fixture->store, disk, &list, &count, why()));
	store_images_free(list, count);
	return count;
}

/* -------------------------------------------------------------------- disks */

static void fresh_store_is_empty(void **state)
{
	struct fixture *fixture = *state;
	struct store_disk *disks;
	struct store_image *images;
	struct store_round *rounds;
	size_t count;

	assert_int_equal(store_chunk_bytes(fixture->store), CHUNK);
	must(store_list_disks(fixture->store, NULL, &disks, &count, why()));
	assert_int_equal(count, 0);
	store_disks_free(disks, count);
	must(store_list_images(fixture->store, NULL, &images, &count, why()));
	assert_int_equal(count, 0);
	store_images_free(images, count);
	must(store_list_rounds(fixture->store, NULL, &rounds, &count, why()));
	assert_int_equal(count, 0);
	store_rounds_free(rounds, count);
}

static void disks_are_listed_by_name(void **state)
{
	struct fixture *fixture = *state;
	const struct store_disk_params params = {
		.name = "mail", .size_bytes = 12345, .sector_bytes = 4096, .mirror_of = "/dev/sdx"};
	int64_t before = time(NULL);
	struct store_disk *list;
	size_t count;

	create_disk(fixture, "web01", 512);
	must(store_create_disk(fixture->store, &params, why()));
	create_disk(fixture, "db", STORE_DISK_MOST_BYTES);
	reopen(fixture);
	must(store_list_disks(fixture->store, NULL, &list, &count, why()));
	assert_int_equal(count, 3);
	assert_string_equal(list[0].name, "db");
	assert_int_equal(list[0].size_bytes, STORE_DISK_MOST_BYTES);
	assert_null(list[0].mirror_of);
	assert_string_equal(list[1].name, "mail");
	assert_int_equal(list[1].size_bytes, 12345);
	assert_int_equal(list[1].sector_bytes, 4096);
	assert_string_equal(list[1].mirror_of, "/dev/sdx");
	assert_int_equal(list[1].images, 0);
	assert_int_equal(list[1].changed_bytes, 0);
	assert_int_equal(list[1].keep, 0);
	assert_int_equal(list[1].level, -1);
	assert_int_equal(list[1].limit_bytes_per_second, 0);
	assert_null(list[1].open_by);
	assert_null(list[1].parent);
	must_hold(list[1].created_at >= before && list[1].created_at <= time(NULL));
	assert_string_equal(list[2].name, "web01");
	store_disks_free(list, count);
	must(store_list_disks(fixture->store, "mail", &list, &count, why()));
	assert_int_equal(count, 1);
	assert_string_equal(list[0].name, "mail");
	store_disks_free(list, count);
}

static void name_of_a_disk_is_its_own(void **state)
{
	struct fixture *fixture = *state;
	const struct store_disk_params params = {.name = "web01", .size_bytes = 4096, .sector_bytes = 512};
	struct store_disk *list;
	size_t count;

	create_disk(fixture, "web01", 512);
	must_refuse(store_create_disk(fixture->store, &params, why()), -EEXIST, "web01");
	must(store_list_disks(fixture->store, NULL, &list, &count, why()));
	assert_int_equal(count, 1);
	assert_int_equal(list[0].size_bytes, 512);
	store_disks_free(list, count);
}

static void removed_disk_is_gone_with_its_images(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 3, 100, &bytes);
	struct store_disk *list;
	size_t count;

	assert_int_equal(take_image(view), 1);
	close_view(view);
	must(store_remove_disk(fixture->store, "web01", true, why()));
	assert_int_equal(count_images(fixture, "web01"), 1);
	must(store_remove_disk(fixture->store, "web01", false, why()));
	reopen(fixture);
	must(store_list_disks(fixture->store, NULL, &list, &count, why()));
	assert_int_equal(count, 0);
	store_disks_free(list, count);
	assert_int_equal(count_images(fixture, NULL), 0);
	must_refuse(try_open(fixture, "web01", VIEW_READ, &view), -ENOENT, "web01");
	create_disk(fixture, "web01", 2 * CHUNK); /* of the same name, and nothing of the old one in it */
	memset(bytes, 0, 2 * CHUNK);
	assert_reference_content(fixture, "web01", bytes, "a new disk");
	assert_int_equal(count_images(fixture, "web01"), 0);
}

static void disk_with_pinned_image_stays(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 1, 7, &bytes);

	take_image(view);
	take_image(view);
	must_refuse(store_remove_disk(fixture->store, "web01", false, why()), -EBUSY, "contract test");
	close_view(view);
	must(store_pin_image(fixture->store, "web01", 2, true, why()));
	must_refuse(store_remove_disk(fixture->store, "web01", true, why()), -EBUSY, "2");
	must_refuse(store_remove_disk(fixture->store, "web01", false, why()), -EBUSY, "pinned");
	must(store_pin_image(fixture->store, "web01", 2, false, why()));
	view = open_view(fixture, "web01@1", VIEW_READ);
	must_refuse(store_remove_disk(fixture->store, "web01", false, why()), -EBUSY, "in use");
	close_view(view);
	assert_int_equal(count_images(fixture, "web01"), 2);
	must(store_remove_disk(fixture->store, "web01", false, why()));
}

static void unknown_names_are_answered_with_near_ones(void **state)
{
	struct fixture *fixture = *state;
	const struct store_policy policy = {.set_keep = true, .keep = 3};
	struct store_retention retention;
	struct store_disk *disks;
	struct store_image *images;
	struct store_round *rounds;
	uint64_t freed;
	size_t count;

	create_disk(fixture, "web01", 512);
	create_disk(fixture, "database", 512);
	must_refuse(store_list_disks(fixture->store, "web0l", &disks, &count, why()), -ENOENT, "web01");
	must_refuse(store_list_images(fixture->store, "databaes", &images, &count, why()), -ENOENT, "database");
	must_refuse(store_list_rounds(fixture->store, "wbe01", &rounds, &count, why()), -ENOENT, "web01");
	must_refuse(store_remove_disk(fixture->store, "web", true, why()), -ENOENT, "web01");
	must_refuse(store_set_policy(fixture->store, "web02", &policy, why()), -ENOENT, "web01");
	must_refuse(store_delete_image(fixture->store, "web02", 1, true, &freed, why()), -ENOENT, "web01");
	must_refuse(store_pin_image(fixture->store, "web02", 1, true, why()), -ENOENT, "web01");
	must_refuse(store_retain(fixture->store, "web02", 1, true, &retention, why()), -ENOENT, "web01");
}

static void policy_is_kept_field_by_field(void **state)
{
	struct fixture *fixture = *state;
	struct store_policy policy = {.set_keep = true, .keep = 5, .level = 9, .limit_bytes_per_second = 4};
	struct store_disk *list;
	size_t count;

	create_disk(fixture, "web01", 512);
	must(store_set_policy(fixture->store, "web01", &policy, why()));
	policy = (struct store_policy){.set_level = true, .level = 0, .keep = 77};
	must(store_set_policy(fixture->store, "web01", &policy, why()));
	policy = (struct store_policy){.set_limit = true, .limit_bytes_per_second = 1 << 20};
	must(store_set_policy(fixture->store, "web01", &policy, why()));
	reopen(fixture);
	must(store_list_disks(fixture->store, "web01", &list, &count, why()));
	assert_int_equal(list[0].keep, 5);
	assert_int_equal(list[0].level, 0);
	assert_int_equal(list[0].limit_bytes_per_second, 1 << 20);
	store_disks_free(list, count);
}

/* ------------------------------------------------------------------ content */

static void what_was_committed_is_read(void **state)
{
	struct fixture *fixture = *state;
	enum { SIZE = 5 * CHUNK + 777 };
	static uint8_t bytes[SIZE];
	struct store_view *view;

	for (size_t i = 0; i < count_chunks(SIZE); i++)
		fill(bytes + i * CHUNK, length_at(SIZE, i), 40 + i);
	memset(bytes + CHUNK, 0, CHUNK); /* a hole */
	create_disk(fixture, "web01", SIZE);
	view = open_view(fixture, "web01", VIEW_WRITE);
	assert_string_equal(store_view_name(view), "web01");
	assert_int_equal(store_view_size(view), SIZE);
	assert_int_equal(store_view_sector_bytes(view), 512);
	assert_ptr_equal(store_view_store(view), fixture->store);
	write_places(fixture, view, bytes, all_places);
	assert_content(fixture, view, bytes, "at once");
	close_view(view);
	assert_reference_content(fixture, "web01", bytes, "by another view");
	reopen(fixture);
	assert_reference_content(fixture, "web01", bytes, "by another process");
}

static void disk_smaller_than_a_chunk_works(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[1] = {0x5a};
	struct store_view *view;

	create_disk(fixture, "tiny", 1);
	view = open_view(fixture, "tiny", VIEW_WRITE);
	write_places(fixture, view, bytes, 1);
	assert_int_equal(take_image(view), 1);
	bytes[0] = 0xa5;
	write_places(fixture, view, bytes, 1);
	close_view(view);
	assert_reference_content(fixture, "tiny", bytes, "live");
	bytes[0] = 0x5a;
	assert_reference_content(fixture, "tiny@1", bytes, "image");
}

static void never_written_disk_is_zeros(void **state)
{
	struct fixture *fixture = *state;
	static const uint8_t zeros[3 * CHUNK + 1];
	struct store_view *view;
	uint64_t page;

	create_disk(fixture, "web01", sizeof(zeros));
	view = open_view(fixture, "web01", VIEW_WRITE);
	must(store_view_next_page(view, 0, &page, why()));
	must_hold(page == UINT64_MAX);
	assert_content(fixture, view, zeros, "fresh");
	take_image(view);
	close_view(view);
	assert_reference_content(fixture, "web01@1", zeros, "its image");
}

static void map_is_empty_beyond_the_end(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 3, 11, &bytes);
	uint64_t page;

	must(store_view_map(view, 0, map, why()));
	for (size_t i = 0; i < PAGE; i++)
		assert_int_equal(map->entries[i].kind, i < 3 ? STORE_MAP_CHUNK : STORE_MAP_NOTHING);
	memset(map, 0xff, sizeof(*map));
	must(store_view_map(view, 1, map, why()));
	assert_int_equal(map->entries[0].kind, STORE_MAP_NOTHING);
	must(store_view_map(view, UINT64_MAX, map, why()));
	assert_int_equal(map->entries[PAGE - 1].kind, STORE_MAP_NOTHING);
	must(store_view_next_page(view, 0, &page, why()));
	assert_int_equal(page, 0);
	must(store_view_next_page(view, 1, &page, why()));
	must_hold(page == UINT64_MAX);
	must(store_view_next_page(view, UINT64_MAX, &page, why()));
	must_hold(page == UINT64_MAX);
	close_view(view);
}

static void huge_disk_costs_what_is_in_it(void **state)
{
	struct fixture *fixture = *state;
	const uint64_t size_bytes = (uint64_t)1 << 50;
	const uint64_t last_place = size_bytes / CHUNK - 1;
	struct store_change changes[2];
	struct store_view *view;
	uint8_t first[CHUNK];
	uint8_t last[CHUNK];
	uint64_t page;

	fill(first, CHUNK, 1);
	fill(last, CHUNK, 2);
	create_disk(fixture, "huge", size_bytes);
	view = open_view(fixture, "huge", VIEW_WRITE);
	must(make_change(view, fixture->scratch, 0, first, CHUNK, &changes[0], why()));
	must(make_change(view, fixture->scratch, last_place, last, CHUNK, &changes[1], why()));
	must(store_commit(view, changes, 2, NULL, why()));
	take_image(view);
	must(store_view_next_page(view, 0, &page, why()));
	assert_int_equal(page, 0);
	must(store_view_next_page(view, 1, &page, why()));
	must_hold(page == last_place / PAGE);
	changes[0] = (struct store_change){.chunk_count = last_place + 1, .kind = STORE_MAP_NOTHING};
	must(store_commit(view, changes, 1, NULL, why()));
	for (page = 0; page != UINT64_MAX; page = page == UINT64_MAX ? page : page + 1) {
		struct store_map_page map;

		must(store_view_next_page(view, page, &page, why()));
		if (page == UINT64_MAX)
			break;
		must(store_view_map(view, page, &map, why()));
		for (size_t i = 0; i < PAGE; i++)
			must_hold(map.entries[i].kind != STORE_MAP_CHUNK);
	}
	close_view(view);
	view = open_view(fixture, "huge@1", VIEW_READ);
	must(store_view_next_page(view, 1, &page, why()));
	must_hold(page == last_place / PAGE);
	close_view(view);
}

static void zeros_replace_content(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE uint8_t *before = malloc(8 * CHUNK);
	struct store_view *view = make_filled_disk(fixture, "web01", 8, 21, &bytes);
	const struct store_change changes[] = {
		{.first_chunk = 0, .chunk_count = 2, .kind = STORE_MAP_NOTHING},
		{.first_chunk = 2, .chunk_count = 1, .kind = STORE_MAP_ZERO},
		{.first_chunk = 5, .chunk_count = 3, .kind = STORE_MAP_ZERO},
	};
	struct store_image *image;

	memcpy(before, bytes, 8 * CHUNK);
	take_image(view);
	must(store_commit(view, changes, 3, NULL, why()));
	memset(bytes, 0, 3 * CHUNK);
	memset(bytes + 5 * CHUNK, 0, 3 * CHUNK);
	assert_content(fixture, view, bytes, "zeroed");
	take_image(view);
	close_view(view);
	assert_reference_content(fixture, "web01@1", before, "the image before");
	assert_reference_content(fixture, "web01@2", bytes, "the image after");
	image = describe_image(fixture, "web01", 2);
	assert_int_equal(image->changed_bytes, 6 * CHUNK);
	store_images_free(image, 1);
}

static void fingerprints_are_kept_with_live_content(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 31, &bytes);
	struct store_map_page map;
	uint8_t expected[FINGERPRINT_BYTES];

	take_image(view);
	fill(bytes + CHUNK, CHUNK, 99);
	write_places(fixture, view, bytes, 2);
	close_view(view);
	reopen(fixture);
	view = open_view(fixture, "web01", VIEW_READ);
	must(store_view_map(view, 0, &map, why()));
	for (size_t i = 0; i < 4; i++) {
		must(hasher_fingerprint(store_scratch_hasher(fixture->scratch), store_view_fingerprint_key(view),
					bytes + i * CHUNK, CHUNK, expected, why()));
		must_hold(map.entries[i].has_fingerprint);
		assert_memory_equal(map.entries[i].fingerprint, expected, FINGERPRINT_BYTES);
	}
	must_hold(map.entries[1].since_generation > map.entries[0].since_generation);
	close_view(view);
}

static void keys_of_disks_differ(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *first;
	struct store_view *second;

	create_disk(fixture, "one", CHUNK);
	create_disk(fixture, "two", CHUNK);
	first = open_view(fixture, "one", VIEW_READ);
	second = open_view(fixture, "two", VIEW_READ);
	assert_memory_not_equal(store_view_fingerprint_key(first), store_view_fingerprint_key(second),
				FINGERPRINT_KEY_BYTES);
	close_view(second);
	close_view(first);
}

/* Another disk's key means another fingerprint for the same bytes: a refresh tells the disk, and is no change of
 * content. */
static void refresh_is_no_change(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 2, 41, &bytes);
	struct store_change change;
	struct store_map_page before;
	struct store_map_page after;
	struct store_image *image;

	take_image(view);
	must(store_view_map(view, 0, &before, why()));
	must(make_change(view, fixture->scratch, 1, bytes + CHUNK, CHUNK, &change, why()));
	change.refresh = true;
	change.chunk = before.entries[1].chunk;
	memset(change.fingerprint, 0x77, FINGERPRINT_BYTES);
	must(store_commit(view, &change, 1, NULL, why()));
	must(store_view_map(view, 0, &after, why()));
	must_hold(after.entries[1].has_fingerprint);
	assert_memory_equal(after.entries[1].fingerprint, change.fingerprint, FINGERPRINT_BYTES);
	assert_int_equal(after.entries[1].since_generation, before.entries[1].since_generation);
	assert_memory_equal(after.entries[0].fingerprint, before.entries[0].fingerprint, FINGERPRINT_BYTES);
	assert_content(fixture, view, bytes, "refreshed");
	assert_int_equal(take_image(view), 2);
	close_view(view);
	image = describe_image(fixture, "web01", 2);
	assert_int_equal(image->changed_bytes, 0);
	assert_int_equal(image->unique_bytes, 0);
	store_images_free(image, 1);
	assert_reference_content(fixture, "web01@1", bytes, "image before the refresh");
}

/* --------------------------------------------------------- chunks, put once */

static void put_chunk_is_found_before_the_commit(void **state)
{
	struct fixture *fixture = *state;
	struct store_change change = {.chunk_count = 1, .kind = STORE_MAP_CHUNK};
	uint8_t digests[2][DIGEST_BYTES];
	uint8_t bytes[CHUNK];
	struct store_encoded encoded;
	struct store_map_page map;
	struct store_view *view;
	store_chunk found[2];
	store_chunk again;
	uint64_t new_bytes;

	fill(bytes, CHUNK, 50);
	create_disk(fixture, "web01", 2 * CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	memset(digests[0], 0xee, DIGEST_BYTES);
	must(hasher_digest(store_scratch_hasher(fixture->scratch), bytes, CHUNK, digests[1], why()));
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])digests, 2, found, why()));
	must_hold(found[0] == 0 && found[1] == 0);
	must(store_encode_chunk(fixture->scratch, 3, digests[1], bytes, CHUNK, &encoded, why()));
	must(store_put_chunk(view, &encoded, &change.chunk, &new_bytes, why()));
	must_hold(change.chunk != 0);
	must_hold(new_bytes >= encoded.stored_bytes);
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])digests, 2, found, why()));
	must_hold(found[0] == 0 && found[1] == change.chunk);
	must(store_put_chunk(view, &encoded, &again, &new_bytes, why()));
	must_hold(again == change.chunk);
	assert_int_equal(new_bytes, 0);
	must(store_view_map(view, 0, &map, why()));
	assert_int_equal(map.entries[0].kind, STORE_MAP_NOTHING); /* put is not committed */
	memcpy(change.digest, digests[1], DIGEST_BYTES);
	must(store_commit(view, &change, 1, NULL, why()));
	/* what was given out before a commit is good after it: a pipeline looks chunks up far ahead of its commits */
	change.first_chunk = 1;
	must(store_commit(view, &change, 1, NULL, why()));
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])digests, 2, found, why()));
	must_hold(found[0] == 0 && found[1] != 0);
	change.chunk = found[1];
	must(store_commit(view, &change, 1, NULL, why()));
	must(store_view_map(view, 0, &map, why()));
	must_hold(map.entries[0].chunk == map.entries[1].chunk);
	close_view(view);
}

static void content_is_stored_once_for_all_disks(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *first = make_filled_disk(fixture, "one", 6, 60, &bytes);
	struct store_view *second;
	struct store_image *image;
	uint8_t digest[DIGEST_BYTES];
	store_chunk found;
	uint64_t freed;

	take_image(first);
	create_disk(fixture, "two", 6 * CHUNK);
	second = open_view(fixture, "two", VIEW_WRITE);
	for (size_t i = 0; i < 6; i++) {
		must(hasher_digest(store_scratch_hasher(fixture->scratch), bytes + i * CHUNK, CHUNK, digest, why()));
		must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])digest, 1, &found, why()));
		must_hold(found != 0);
	}
	write_places(fixture, second, bytes, all_places);
	take_image(second);
	close_view(first);
	close_view(second);
	image = describe_image(fixture, "two", 1);
	assert_int_equal(image->unique_bytes, 0);
	store_images_free(image, 1);
	must(store_remove_disk(fixture->store, "one", false, why()));
	reopen(fixture);
	assert_reference_content(fixture, "two", bytes, "after the other disk is gone");
	assert_reference_content(fixture, "two@1", bytes, "its image");
	must(store_delete_image(fixture->store, "two", 1, false, &freed, why()));
	assert_int_equal(freed, 0); /* live content has it all */
	assert_reference_content(fixture, "two", bytes, "after its image is gone");
}

static void uncommitted_chunks_are_nobodys(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 2, 70, &bytes);
	uint8_t other[CHUNK];
	struct store_change change;
	store_chunk found;

	fill(other, CHUNK, 71717);
	must(make_change(view, fixture->scratch, 0, other, CHUNK, &change, why()));
	close_view(view);
	reopen(fixture);
	assert_reference_content(fixture, "web01", bytes, "after reopening");
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])change.digest, 1, &found, why()));
	assert_int_equal(found, 0);
	view = open_view(fixture, "web01", VIEW_WRITE);
	memcpy(bytes, other, CHUNK);
	write_places(fixture, view, bytes, 1);
	close_view(view);
	reopen(fixture);
	assert_reference_content(fixture, "web01", bytes, "after it was committed");
}

static void commit_happens_whole_or_not_at_all(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 80, &bytes);
	uint8_t other[CHUNK];
	struct store_change changes[2];

	fill(other, CHUNK, 81);
	must(make_change(view, fixture->scratch, 0, other, CHUNK, &changes[0], why()));
	changes[1] = changes[0];
	changes[1].first_chunk = 3;
	changes[1].digest[0] ^= 1; /* no chunk has this digest */
	must_hold(store_commit(view, changes, 2, NULL, why()) != 0);
	assert_content(fixture, view, bytes, "after a refused commit");
	must(store_commit(view, changes, 1, NULL, why()));
	memcpy(bytes, other, CHUNK);
	assert_content(fixture, view, bytes, "after a good one");
	close_view(view);
}

/* ------------------------------------------------------------------- images */

static void image_says_what_it_is(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 3, 90, &bytes);
	const struct store_image_params params = {
		.label = "before the upgrade \xc3\xbc",
		.consistency = STORE_FUZZY,
		.details = "{\"fuzzy_because\":\"/dev/sda2 is mounted on /\"}",
	};
	const struct store_image_params bare = {.label = "", .consistency = STORE_FROZEN};
	int64_t before = time(NULL);
	struct store_image *image;
	uint32_t number;

	must(store_create_image(view, &params, &number, why()));
	assert_int_equal(number, 1);
	must(store_create_image(view, &bare, &number, why()));
	assert_int_equal(number, 2);
	close_view(view);
	must(store_pin_image(fixture->store, "web01", 1, true, why()));
	reopen(fixture);
	image = describe_image(fixture, "web01", 1);
	assert_string_equal(image->disk, "web01");
	must_hold(image->created_at >= before && image->created_at <= time(NULL));
	assert_int_equal(image->size_bytes, 3 * CHUNK);
	assert_int_equal(image->changed_bytes, 3 * CHUNK);
	assert_string_equal(image->label, params.label);
	assert_int_equal(image->consistency, STORE_FUZZY);
	assert_string_equal(image->details, params.details);
	assert_int_equal(image->round, 0);
	must_hold(image->pinned && !image->in_use && image->in_use_by == NULL);
	store_images_free(image, 1);
	image = describe_image(fixture, "web01", 2);
	assert_int_equal(image->consistency, STORE_FROZEN);
	must_hold(image->label == NULL || *image->label == '\0');
	assert_null(image->details);
	assert_int_equal(image->changed_bytes, 0);
	must_hold(!image->pinned);
	store_images_free(image, 1);
}

/* Changes some places of the model, in all the ways there are; returns which. */
static uint64_t change_at_random(uint8_t *bytes, uint64_t chunks, unsigned int *seed)
{
	uint64_t places = 0;

	for (unsigned int i = (unsigned int)rand_r(seed) % 6; i > 0; i--) {
		uint64_t first = (uint64_t)rand_r(seed) % chunks;
		uint64_t count = 1 + (uint64_t)rand_r(seed) % (rand_r(seed) % 4 == 0 ? chunks - first : 2);
		int kind = rand_r(seed) % 5;

		for (uint64_t j = first; j < first + count && j < chunks; j++) {
			uint8_t *place = bytes + j * CHUNK;

			places |= (uint64_t)1 << j;
			if (kind == 0)
				memset(place, 0, CHUNK);
			else if (kind == 1)
				fill(place, CHUNK, (uint64_t)rand_r(seed) % 8); /* what is there already, often */
			else if (kind == 2)
				place[(size_t)rand_r(seed) % CHUNK] ^= 1; /* one bit */
			else
				fill(place, CHUNK, (uint64_t)rand_r(seed) << 8);
		}
	}
	return places;
}

struct kept_image {
	uint32_t number;
	uint8_t *bytes;
};

static void assert_survivors(struct fixture *fixture, const struct kept_image *kept, size_t count)
{
	assert_int_equal(count_images(fixture, "web01"), count);
	for (size_t i = 0; i < count; i++) {
		char text[32];

		(void)snprintf(text, sizeof(text), "web01@%u", kept[i].number);
		assert_reference_content(fixture, text, kept[i].bytes, "survivor");
	}
}

static void images_survive_changes_and_each_other(void **state)
{
	struct fixture *fixture = *state;
	enum { IMAGES = 30, CHUNKS = 20, SIZE = (CHUNKS - 1) * CHUNK + 1234 };
	struct kept_image kept[IMAGES];
	unsigned int seed = store_contract_seed();
	uint8_t *bytes = calloc(CHUNKS, CHUNK);
	struct store_view *view;
	uint64_t freed;

	create_disk(fixture, "web01", SIZE);
	view = open_view(fixture, "web01", VIEW_WRITE);
	for (size_t i = 0; i < IMAGES; i++) {
		write_places(fixture, view, bytes, change_at_random(bytes, CHUNKS, &seed));
		write_places(fixture, view, bytes, change_at_random(bytes, CHUNKS, &seed));
		kept[i].number = take_image(view);
		kept[i].bytes = malloc((size_t)CHUNKS * CHUNK);
		memcpy(kept[i].bytes, bytes, (size_t)CHUNKS * CHUNK);
	}
	assert_survivors(fixture, kept, IMAGES);
	for (size_t left = IMAGES; left > 0;) {
		size_t victim = (size_t)rand_r(&seed) % left;

		must(store_delete_image(fixture->store, "web01", kept[victim].number, false, &freed, why()));
		free(kept[victim].bytes);
		kept[victim] = kept[--left];
		/* live content goes on, and so do its neighbours */
		write_places(fixture, view, bytes, change_at_random(bytes, CHUNKS, &seed));
		assert_survivors(fixture, kept, left);
		assert_content(fixture, view, bytes, "live");
	}
	close_view(view);
	reopen(fixture);
	assert_reference_content(fixture, "web01", bytes, "live, reopened");
	free(bytes);
}

static void latest_is_the_newest_there_is(void **state)
{
	struct fixture *fixture = *state;
	struct store_reference latest = reference_to("db@latest");
	struct store_reference live = reference_to("db");
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "db", 1, 110, &bytes);
	struct store_view *reader;
	uint32_t number;
	uint64_t freed;

	must_refuse(store_resolve_image(fixture->store, &latest, &number, why()), -ENOENT, "db");
	must_refuse(try_open(fixture, "db@latest", VIEW_READ, &reader), -ENOENT, "db");
	for (uint32_t i = 1; i <= 3; i++)
		assert_int_equal(take_image(view), i);
	must(store_resolve_image(fixture->store, &latest, &number, why()));
	assert_int_equal(number, 3);
	reader = open_view(fixture, "db@latest", VIEW_READ);
	assert_string_equal(store_view_name(reader), "db@3");
	close_view(reader);
	must(store_delete_image(fixture->store, "db", 3, false, &freed, why()));
	must(store_resolve_image(fixture->store, &latest, &number, why()));
	assert_int_equal(number, 2);
	must_refuse(store_resolve_image(fixture->store, &live, &number, why()), -EINVAL, "db");
	assert_int_equal(take_image(view), 4); /* a number is never used again */
	close_view(view);
}

/* Briefly, one by one, and all at once: the same. */
static void images_are_told_briefly_and_in_full(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "db", 2, 130, &bytes);
	AUTO_FREE struct store_image_brief *briefs = NULL;
	struct store_image *images;
	struct store_disk *disk;
	size_t count, brief_count, disk_count;

	for (uint32_t i = 1; i <= 4; i++)
		take_image(view);
	close_view(view);
	must(store_list_disks(fixture->store, "db", &disk, &disk_count, why()));
	assert_int_equal(disk->images, 4);
	must(store_list_images(fixture->store, "db", &images, &count, why()));
	must(store_brief_images(fixture->store, "db", &briefs, &brief_count, why()));
	assert_int_equal(brief_count, count);
	for (size_t i = 0; i < count; i++) {
		struct store_reference reference = {.disk = "db", .which = STORE_NUMBER, .number = images[i].number};
		struct store_image_brief brief;
		struct store_image *image;

		must(store_brief_image(fixture->store, &reference, &brief, why()));
		assert_memory_equal(brief.disk_id, disk->id, sizeof(disk->id));
		assert_memory_equal(briefs[i].disk_id, disk->id, sizeof(disk->id));
		must_hold(brief.number == images[i].number && briefs[i].number == images[i].number);
		must_hold(brief.created_at == images[i].created_at && briefs[i].created_at == images[i].created_at);
		must_hold(brief.size_bytes == images[i].size_bytes && briefs[i].size_bytes == images[i].size_bytes);
		must(store_describe_image(fixture->store, "db", images[i].number, &image, why()));
		assert_string_equal(image->disk, "db");
		must_hold(image->number == images[i].number && image->unique_bytes == images[i].unique_bytes &&
			  image->changed_bytes == images[i].changed_bytes && image->in_use == images[i].in_use);
		store_images_free(image, 1);
	}
	store_images_free(images, count);
	store_disks_free(disk, disk_count);
	must_refuse(store_describe_image(fixture->store, "db", 9, &images, why()), -ENOENT, "1-4");
	must_refuse(store_brief_images(fixture->store, "web", &briefs, &count, why()), -ENOENT, "web");
}

static uint64_t changes_of(struct fixture *fixture, const char *name, uint8_t ret_id[STORE_ID_OF_DISK_BYTES])
{
	struct store_disk *disk;
	uint64_t changes;
	size_t count;

	must(store_list_disks(fixture->store, name, &disk, &count, why()));
	changes = disk->changes;
	memcpy(ret_id, disk->id, sizeof(disk->id));
	store_disks_free(disk, count);
	return changes;
}

static void changes_of_a_disk_are_noticed_and_another_disk_of_its_name_too(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "db", 1, 131, &bytes);
	uint8_t first[STORE_ID_OF_DISK_BYTES], second[STORE_ID_OF_DISK_BYTES];
	uint64_t before = changes_of(fixture, "db", first);

	must_hold(before == changes_of(fixture, "db", second));
	fill(bytes, CHUNK, 132);
	write_places(fixture, view, bytes, 1);
	must_hold(before < changes_of(fixture, "db", second));
	assert_memory_equal(first, second, sizeof(first));
	close_view(view);
	must(store_remove_disk(fixture->store, "db", false, why()));
	free(bytes);
	close_view(make_filled_disk(fixture, "db", 1, 131, &bytes));
	(void)changes_of(fixture, "db", second);
	assert_memory_not_equal(first, second, sizeof(first));
}

static void room_is_told(void **state)
{
	struct fixture *fixture = *state;
	struct store_room room;

	must(store_room(fixture->store, &room, why()));
	must_hold(room.total_bytes > 0 && room.free_bytes <= room.total_bytes && room.available_bytes <= room.free_bytes);
}

static void missing_image_is_answered_with_those_there_are(void **state)
{
	struct fixture *fixture = *state;
	struct store_reference reference = reference_to("db@9");
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "db", 1, 120, &bytes);
	struct store_view *reader;
	uint32_t number;
	uint64_t freed;

	for (uint32_t i = 1; i <= 5; i++)
		take_image(view);
	close_view(view);
	must(store_delete_image(fixture->store, "db", 2, false, &freed, why()));
	must(store_delete_image(fixture->store, "db", 4, false, &freed, why()));
	must_refuse(store_resolve_image(fixture->store, &reference, &number, why()), -ENOENT, "1, 3, 5");
	must_refuse(try_open(fixture, "db@2", VIEW_READ, &reader), -ENOENT, "1, 3, 5");
	must_refuse(store_delete_image(fixture->store, "db", 4, false, &freed, why()), -ENOENT, "1, 3, 5");
	must_refuse(store_pin_image(fixture->store, "db", 4, true, why()), -ENOENT, "1, 3, 5");
}

static uint64_t changed_of_live(struct fixture *fixture, const char *name)
{
	struct store_disk *list;
	uint64_t changed_bytes;
	size_t count;

	must(store_list_disks(fixture->store, name, &list, &count, why()));
	changed_bytes = list[0].changed_bytes;
	store_disks_free(list, count);
	return changed_bytes;
}

static void changed_bytes_are_those_that_differ(void **state)
{
	struct fixture *fixture = *state;
	enum { SIZE = 3 * CHUNK + 100 };
	static uint8_t bytes[4 * CHUNK];
	static const uint64_t expected[] = {SIZE, CHUNK, 100, 0, CHUNK + 100};
	struct store_view *view;

	for (size_t i = 0; i < 4; i++)
		fill(bytes + i * CHUNK, CHUNK, 130 + i);
	create_disk(fixture, "web01", SIZE);
	view = open_view(fixture, "web01", VIEW_WRITE);
	write_places(fixture, view, bytes, all_places);
	take_image(view);
	for (uint64_t i = 0; i < 3; i++) { /* changed three times, and different from before once */
		fill(bytes + CHUNK, CHUNK, 140 + i);
		write_places(fixture, view, bytes, 2);
	}
	take_image(view);
	fill(bytes + (size_t)3 * CHUNK, CHUNK, 150);
	write_places(fixture, view, bytes, 8);
	take_image(view);
	write_places(fixture, view, bytes, all_places); /* nothing new */
	take_image(view);
	fill(bytes, CHUNK, 160);
	memset(bytes + (size_t)3 * CHUNK, 0, CHUNK);
	write_places(fixture, view, bytes, all_places);
	assert_int_equal(changed_of_live(fixture, "web01"), CHUNK + 100);
	take_image(view);
	assert_int_equal(changed_of_live(fixture, "web01"), 0);
	close_view(view);
	for (uint32_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		struct store_image *image = describe_image(fixture, "web01", i + 1);

		if (image->changed_bytes != expected[i])
			fail_msg("web01@%u: %llu bytes changed instead of %llu", i + 1,
				 (unsigned long long)image->changed_bytes, (unsigned long long)expected[i]);
		store_images_free(image, 1);
	}
}

enum { KINDS = 24, KIND_PLACES = 10, KIND_IMAGES = 12, KIND_MAPS = 2 * (KIND_IMAGES + 1) };

/* What two disks and their images hold, as sets of kinds of chunks: bit k for kind k, which is fill() with seed k. */
struct kinds {
	uint32_t maps[KIND_MAPS]; /* 0: no such image (any more) */
	uint64_t record_bytes[KINDS];
};

static uint64_t measure_record(struct fixture *fixture, uint64_t kind)
{
	uint8_t bytes[CHUNK];
	uint8_t digest[DIGEST_BYTES] = {0};
	struct store_encoded encoded;

	fill(bytes, CHUNK, kind);
	must(store_encode_chunk(fixture->scratch, 3, digest, bytes, CHUNK, &encoded, why()));
	return record_total_bytes(encoded.stored_bytes);
}

/* Records that only this map has, counted once however often it has them. */
static uint64_t count_unique_bytes(const struct kinds *kinds, size_t map)
{
	uint32_t others = 0;
	uint64_t bytes = 0;

	for (size_t i = 0; i < KIND_MAPS; i++)
		others |= i == map ? 0 : kinds->maps[i];
	for (size_t kind = 0; kind < KINDS; kind++)
		if ((kinds->maps[map] & ~others) >> kind & 1)
			bytes += kinds->record_bytes[kind];
	return bytes;
}

static const char *const kind_disks[] = {"one", "two"};

/* Image i of disk d is map d * (KIND_IMAGES + 1) + i, from 1; what is live is map 0 of the disk. */
static void make_kind_disk(struct fixture *fixture, size_t d, unsigned int *seed, struct kinds *kinds)
{
	uint64_t places[KIND_PLACES];
	AUTO_FREE uint8_t *bytes = calloc(KIND_PLACES, CHUNK);
	uint32_t *maps = kinds->maps + d * (KIND_IMAGES + 1);
	struct store_view *view;

	for (size_t i = 0; i < KIND_PLACES; i++)
		places[i] = i / 2; /* each of them twice */
	create_disk(fixture, kind_disks[d], KIND_PLACES * CHUNK);
	view = open_view(fixture, kind_disks[d], VIEW_WRITE);
	for (size_t i = 1; i <= KIND_IMAGES; i++) {
		for (unsigned int n = 0; n < 4; n++)
			places[(size_t)rand_r(seed) % KIND_PLACES] = (uint64_t)rand_r(seed) % KINDS;
		maps[0] = 0;
		for (size_t place = 0; place < KIND_PLACES; place++) {
			fill(bytes + place * CHUNK, CHUNK, places[place]);
			maps[0] |= (uint32_t)1 << places[place];
		}
		write_places(fixture, view, bytes, all_places);
		assert_int_equal(take_image(view), i);
		maps[i] = maps[0];
	}
	close_view(view);
}

/* Two disks whose chunks are drawn from few, so that everything is shared with something most of the time. */
static void unique_bytes_are_what_deletion_frees(void **state)
{
	struct fixture *fixture = *state;
	unsigned int seed = store_contract_seed();
	struct kinds kinds = {.maps = {0}};
	uint64_t freed_in_all = 0;

	for (uint64_t kind = 0; kind < KINDS; kind++)
		kinds.record_bytes[kind] = measure_record(fixture, kind);
	for (size_t d = 0; d < 2; d++)
		make_kind_disk(fixture, d, &seed, &kinds);
	for (size_t left = (size_t)2 * KIND_IMAGES; left > 0; left--) {
		struct store_image *list;
		uint64_t would_free;
		uint64_t freed;
		uint64_t expected;
		size_t count;
		size_t map;
		size_t victim = (size_t)rand_r(&seed) % left;

		must(store_list_images(fixture->store, NULL, &list, &count, why()));
		assert_int_equal(count, left);
		map = (strcmp(list[victim].disk, "two") == 0 ? KIND_IMAGES + 1 : 0) + list[victim].number;
		expected = count_unique_bytes(&kinds, map);
		must(store_delete_image(fixture->store, list[victim].disk, list[victim].number, true, &would_free,
					why()));
		must(store_delete_image(fixture->store, list[victim].disk, list[victim].number, false, &freed, why()));
		kinds.maps[map] = 0;
		if (list[victim].unique_bytes != expected || would_free != expected || freed != expected)
			fail_msg("%s@%u: unique %llu, would free %llu, freed %llu instead of %llu", list[victim].disk,
				 list[victim].number, (unsigned long long)list[victim].unique_bytes,
				 (unsigned long long)would_free, (unsigned long long)freed,
				 (unsigned long long)expected);
		freed_in_all += freed;
		store_images_free(list, count);
	}
	must_hold(freed_in_all > 0);
}

static void dry_run_deletes_nothing(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 2, 170, &bytes);
	struct store_retention retention;
	uint64_t freed;

	take_image(view);
	take_image(view);
	close_view(view);
	must(store_delete_image(fixture->store, "web01", 1, true, &freed, why()));
	must(store_retain(fixture->store, "web01", 1, true, &retention, why()));
	assert_int_equal(retention.deleted_count, 1);
	assert_int_equal(retention.deleted[0], 1);
	store_retention_free(&retention);
	assert_int_equal(count_images(fixture, "web01"), 2);
	assert_reference_content(fixture, "web01@1", bytes, "still there");
}

/* -------------------------------------------------------------------- usage */

static struct store_usage measure(struct fixture *fixture)
{
	struct store_usage usage = {.disks = NULL};

	must(store_usage(fixture->store, &usage, why()));
	must_hold(usage.segment_bytes >= usage.live_bytes + usage.dead_bytes);
	return usage;
}

static void empty_store_holds_nothing(void **state)
{
	struct fixture *fixture = *state;
	struct store_usage usage = measure(fixture);

	assert_int_equal(usage.live_bytes + usage.dead_bytes + usage.plain_bytes + usage.disk_count, 0);
	store_usage_free(&usage);
}

/* A chunk counts once; the last one of a disk, and of a disk when an image was made, with its own length. */
static void content_is_measured_once(void **state)
{
	struct fixture *fixture = *state;
	uint64_t short_bytes = CHUNK / 2 + 7;
	AUTO_FREE uint8_t *bytes = calloc(1, 4 * CHUNK);
	struct store_usage usage;
	struct store_view *view;

	must_hold(bytes != NULL);
	fill(bytes, CHUNK, 900);
	memcpy(bytes + CHUNK, bytes, CHUNK);
	fill(bytes + 3 * CHUNK, CHUNK, 901);
	create_disk(fixture, "one", 3 * CHUNK + short_bytes);
	create_disk(fixture, "two", 4 * CHUNK);
	view = open_view(fixture, "one", VIEW_WRITE);
	write_places(fixture, view, bytes, all_places);
	take_image(view);
	usage = measure(fixture);
	assert_int_equal(usage.plain_bytes, CHUNK + short_bytes);
	store_usage_free(&usage);
	must(store_resize_disk(view, 4 * CHUNK, why()));
	close_view(view);
	view = open_view(fixture, "two", VIEW_WRITE);
	write_places(fixture, view, bytes, 1);
	close_view(view);
	usage = measure(fixture);
	/* growing may store what was the last chunk anew, as a whole one, and the image needs the short one */
	must_hold(usage.plain_bytes == CHUNK + short_bytes || usage.plain_bytes == 2 * CHUNK + short_bytes);
	assert_int_equal(usage.disk_count, 2);
	assert_string_equal(usage.disks[0].name, "one");
	assert_int_equal(usage.disks[0].size_bytes, 4 * CHUNK);
	assert_int_equal(usage.disks[0].images, 1);
	assert_string_equal(usage.disks[1].name, "two");
	assert_int_equal(usage.disks[1].images, 0);
	store_usage_free(&usage);
}

/* What the log of a disk takes, if a store has one. */
enum { LOG_ENTRY_BYTES = 512 };

static void what_is_deleted_is_dead(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 6, 910, &bytes);
	struct store_usage before, after;
	uint64_t freed;

	take_image(view);
	for (uint64_t i = 0; i < 3; i++)
		fill(bytes + i * CHUNK, CHUNK, 950 + i);
	write_places(fixture, view, bytes, 7);
	close_view(view);
	before = measure(fixture);
	assert_int_equal(before.plain_bytes, 9 * CHUNK);
	must(store_delete_image(fixture->store, "web01", 1, false, &freed, why()));
	after = measure(fixture);
	must_hold(freed > 0);
	assert_int_equal(after.plain_bytes, 6 * CHUNK);
	assert_in_range(after.live_bytes, before.live_bytes - freed, before.live_bytes - freed + LOG_ENTRY_BYTES);
	must_hold(after.dead_bytes >= before.dead_bytes + freed);
	store_usage_free(&before);
	store_usage_free(&after);
}

static void disk_takes_what_its_removal_frees(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE uint8_t *same = NULL;
	struct store_view *view = make_filled_disk(fixture, "one", 5, 970, &bytes);
	struct store_usage before, after;

	take_image(view);
	memcpy(bytes, bytes + CHUNK, CHUNK);
	write_places(fixture, view, bytes, 1);
	close_view(view);
	close_view(make_filled_disk(fixture, "two", 3, 973, &same)); /* two of its chunks are the other's, too */
	before = measure(fixture);
	assert_int_equal(before.disk_count, 2);
	must(store_remove_disk(fixture->store, "one", false, why()));
	after = measure(fixture);
	assert_int_equal(after.disk_count, 1);
	assert_int_equal(after.plain_bytes, 3 * CHUNK);
	must_hold(before.disks[0].unique_bytes > 0);
	assert_in_range(after.live_bytes, before.live_bytes - before.disks[0].unique_bytes,
			before.live_bytes - before.disks[0].unique_bytes + LOG_ENTRY_BYTES);
	must_hold(after.disks[0].unique_bytes > before.disks[1].unique_bytes);
	store_usage_free(&before);
	store_usage_free(&after);
}

/* -------------------------------------------------------------------- check */

static void assert_no_damage(struct fixture *fixture, uint64_t chunks)
{
	for (int deep = 0; deep < 2; deep++) {
		_Atomic uint64_t total_bytes = 0, done_bytes = 0;
		const struct store_check_params params = {
			.deep = deep != 0, .total_bytes = &total_bytes, .done_bytes = &done_bytes};
		struct store_check_report report;

		must(store_check(fixture->store, &params, &report, why()));
		if (!report.is_clean)
			fail_msg("damage: %s: %s", report.damage_count > 0 ? report.damages[0].disk : "flaw",
				 report.damage_count > 0 ? report.damages[0].why
				 : report.flaw_count > 0 ? report.flaws[0].why
							 : "?");
		assert_int_equal(report.chunks, chunks);
		assert_int_equal(report.damage_count + report.flaw_count, 0);
		assert_int_equal(report.more_damages + report.more_flaws, 0);
		must_hold(chunks == 0 || done_bytes > 0);
		store_check_report_free(&report);
	}
}

static void undamaged_store_is_clean(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE uint8_t *same = NULL;
	struct store_view *view;
	uint64_t freed;

	assert_no_damage(fixture, 0);
	view = make_filled_disk(fixture, "one", 20, 1000, &bytes);
	assert_no_damage(fixture, 20);
	take_image(view);
	for (uint64_t i = 0; i < 5; i++)
		fill(bytes + i * CHUNK, CHUNK, 2000 + i);
	write_places(fixture, view, bytes, 31);
	assert_no_damage(fixture, 25); /* also while somebody has the disk open */
	close_view(view);
	close_view(make_filled_disk(fixture, "two", 20, 1000, &same));
	assert_no_damage(fixture, 25);
	must(store_delete_image(fixture->store, "one", 1, false, &freed, why()));
	assert_no_damage(fixture, 25); /* the other disk has them, too */
	must(store_remove_disk(fixture->store, "two", false, why()));
	assert_no_damage(fixture, 20);
	reopen(fixture);
	assert_no_damage(fixture, 20);
}

static void check_stops_when_told(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	const atomic_bool stop = true;
	const struct store_check_params params = {.deep = true, .stop = &stop};
	struct store_check_report report;

	close_view(make_filled_disk(fixture, "one", 3, 1100, &bytes));
	assert_int_equal(store_check(fixture->store, &params, &report, why()), -EINTR);
	assert_string_equal(failure.message, "");
}

/* ----------------------------------------------------------------- clean-up */

static struct store_clean_report clean(struct fixture *fixture, bool dry_run)
{
	const struct store_clean_params params = {.doing = "a test", .dry_run = dry_run};
	struct store_clean_report report;

	must(store_clean(fixture->store, &params, &report, why()));
	return report;
}

static void clean_up_frees_what_is_dead(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *gone = NULL;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_usage before, after;
	struct store_clean_report promised, report;

	close_view(make_filled_disk(fixture, "gone", 60, 2000, &gone));
	close_view(make_filled_disk(fixture, "stays", 7, 2100, &bytes));
	assert_int_equal(clean(fixture, false).freed_bytes, 0);
	must(store_remove_disk(fixture->store, "gone", false, why()));
	before = measure(fixture);
	promised = clean(fixture, true);
	after = measure(fixture);
	assert_int_equal(after.segment_bytes, before.segment_bytes);
	store_usage_free(&after);
	report = clean(fixture, false);
	after = measure(fixture);
	must_hold(report.freed_bytes >= 29 * CHUNK);
	must_hold(promised.freed_bytes >= 29 * CHUNK);
	must_hold(after.segment_bytes + 29 * CHUNK <= before.segment_bytes);
	assert_in_range(after.live_bytes, before.live_bytes, before.live_bytes);
	assert_reference_content(fixture, "stays", bytes, "after a clean-up");
	reopen(fixture);
	assert_reference_content(fixture, "stays", bytes, "after a clean-up, opened anew");
	assert_int_equal(clean(fixture, false).freed_bytes, 0);
	store_usage_free(&before);
	store_usage_free(&after);
}

static void clean_up_stops_when_told(void **state)
{
	struct fixture *fixture = *state;
	const atomic_bool stop = true;
	const struct store_clean_params params = {.doing = "a test", .stop = &stop};
	struct store_clean_report report;
	struct failure cause = {.code = 0};
	AUTO_FREE uint8_t *bytes = NULL;

	close_view(make_filled_disk(fixture, "gone", 60, 2200, &bytes));
	must(store_remove_disk(fixture->store, "gone", false, why()));
	assert_int_equal(store_clean(fixture->store, &params, &report, &cause), -EINTR);
	assert_string_equal(cause.message, "");
	assert_int_equal(report.freed_bytes, 0);
	must_hold(clean(fixture, false).freed_bytes >= 29 * CHUNK);
}

struct checks {
	struct fixture *fixture;
	atomic_bool stop;
	unsigned clean, others;
	char message[2 * FAILURE_MESSAGE_BYTES];
};

static void *check_again_and_again(void *opaque)
{
	struct checks *checks = opaque;

	do { /* once at the least, on however busy a machine */
		const struct store_check_params params = {.deep = checks->clean % 2 == 0};
		struct store_check_report report = {.is_clean = false};
		struct failure cause = {.code = 0};
		int result = store_check(checks->fixture->store, &params, &report, &cause);

		if (result == 0 && report.is_clean) {
			checks->clean++;
		} else {
			checks->others++;
			(void)snprintf(checks->message, sizeof(checks->message), "%s %s %s", cause.message,
				       report.damage_count > 0 ? report.damages[0].why : "",
				       report.flaw_count > 0 ? report.flaws[0].why : "");
		}
		if (result == 0)
			store_check_report_free(&report);
	} while (!atomic_load(&checks->stop));
	return NULL;
}

static void work_meanwhile_is_no_damage(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 30, 1200, &bytes);
	struct checks checks = {.fixture = fixture};
	unsigned int seed = store_contract_seed();
	pthread_t thread;
	uint64_t freed;

	assert_int_equal(pthread_create(&thread, NULL, check_again_and_again, &checks), 0);
	for (unsigned n = 0; n < 25; n++) {
		uint64_t places = 0;

		for (unsigned i = 0; i < 8; i++) {
			uint64_t place = (uint64_t)rand_r(&seed) % 30;

			fill(bytes + place * CHUNK, CHUNK, 5000 + (uint64_t)rand_r(&seed) % 50);
			places |= (uint64_t)1 << place;
		}
		write_places(fixture, view, bytes, places);
		take_image(view);
		if (n % 3 == 2)
			must(store_delete_image(fixture->store, "web01", n, false, &freed, why()));
		if (n % 5 == 4) {
			(void)clean(fixture, false);
			assert_content(fixture, view, bytes, "after a clean-up");
		}
	}
	atomic_store(&checks.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	close_view(view);
	if (checks.others > 0)
		fail_msg("%u of %u checks: %s", checks.others, checks.others + checks.clean, checks.message);
	must_hold(checks.clean > 0);
}

/* ---------------------------------------------------------------- retention */

static void assert_retention(struct fixture *fixture, uint32_t keep, const uint32_t *deleted, size_t deleted_count,
			     const uint32_t *kept, size_t kept_count)
{
	struct store_retention retention;

	for (int dry_run = 1; dry_run >= 0; dry_run--) {
		must(store_retain(fixture->store, "web01", keep, dry_run != 0, &retention, why()));
		assert_int_equal(retention.deleted_count, deleted_count);
		for (size_t i = 0; i < deleted_count; i++)
			assert_int_equal(retention.deleted[i], deleted[i]);
		assert_int_equal(retention.kept_count, kept_count);
		for (size_t i = 0; i < kept_count; i++) {
			assert_int_equal(retention.kept[i].number, kept[i]);
			must_hold(retention.kept[i].why != NULL && *retention.kept[i].why != '\0');
		}
		store_retention_free(&retention);
	}
}

static void make_images(struct fixture *fixture, uint32_t count)
{
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 2, 180, &bytes);

	for (uint32_t i = 1; i <= count; i++) {
		fill(bytes, CHUNK, 200 + i);
		write_places(fixture, view, bytes, 1);
		assert_int_equal(take_image(view), i);
	}
	close_view(view);
}

static void oldest_images_go_first(void **state)
{
	struct fixture *fixture = *state;

	make_images(fixture, 6);
	assert_retention(fixture, 10, NULL, 0, NULL, 0);
	assert_retention(fixture, 6, NULL, 0, NULL, 0);
	assert_retention(fixture, 4, (const uint32_t[]){1, 2}, 2, NULL, 0);
	assert_int_equal(count_images(fixture, "web01"), 4);
	reopen(fixture);
	assert_retention(fixture, 1, (const uint32_t[]){3, 4, 5}, 3, NULL, 0);
	assert_int_equal(count_images(fixture, "web01"), 1);
	assert_retention(fixture, 1, NULL, 0, NULL, 0);
}

static void pinned_and_open_images_stay(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *reader;
	struct store_retention retention;

	make_images(fixture, 6);
	must(store_pin_image(fixture->store, "web01", 1, true, why()));
	reader = open_view(fixture, "web01@3", VIEW_READ);
	must(store_retain(fixture->store, "web01", 3, true, &retention, why()));
	assert_int_equal(retention.kept_count, 2);
	assert_string_equal(retention.kept[0].why, "pinned");
	assert_non_null(strstr(retention.kept[1].why, "in use"));
	store_retention_free(&retention);
	/* those that stay count: three are left, and two of them could not go */
	assert_retention(fixture, 3, (const uint32_t[]){2, 4, 5}, 3, (const uint32_t[]){1, 3}, 2);
	close_view(reader);
	assert_retention(fixture, 2, (const uint32_t[]){3}, 1, (const uint32_t[]){1}, 1);
	/* the newest never goes, and a pinned one may be all that could */
	assert_retention(fixture, 1, NULL, 0, (const uint32_t[]){1}, 1);
	must(store_pin_image(fixture->store, "web01", 1, false, why()));
	assert_retention(fixture, 1, (const uint32_t[]){1}, 1, NULL, 0);
	assert_int_equal(count_images(fixture, "web01"), 1);
}

/* ------------------------------------------------------------------- leases */

static void live_disk_has_one_opener(void **state)
{
	struct fixture *fixture = *state;
	struct store_reference reference = reference_to("web01");
	struct store_view *view;
	struct store_view *other;
	struct store_disk *list;
	size_t count;

	create_disk(fixture, "web01", CHUNK);
	must(store_view_open(fixture->store, &reference, VIEW_WRITE, "wherry sync /dev/sda web01", &view, why()));
	note_view(view);
	must_refuse(try_open(fixture, "web01", VIEW_WRITE, &other), -EBUSY, "wherry sync /dev/sda web01");
	must_refuse(try_open(fixture, "web01", VIEW_READ, &other), -EBUSY, "wherry sync /dev/sda web01");
	must(store_list_disks(fixture->store, "web01", &list, &count, why()));
	assert_non_null(list[0].open_by);
	assert_non_null(strstr(list[0].open_by, "wherry sync /dev/sda web01"));
	store_disks_free(list, count);
	close_view(view);
	view = open_view(fixture, "web01", VIEW_READ); /* reading live content is exclusive, too */
	must_refuse(try_open(fixture, "web01", VIEW_WRITE, &other), -EBUSY, "contract test");
	close_view(view);
	view = open_view(fixture, "web01", VIEW_WRITE);
	close_view(view);
	must(store_list_disks(fixture->store, "web01", &list, &count, why()));
	assert_null(list[0].open_by);
	store_disks_free(list, count);
}

static void image_has_many_readers_and_no_writer(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *live = make_filled_disk(fixture, "web01", 2, 210, &bytes);
	struct store_view *first;
	struct store_view *second;
	struct store_view *writer;

	take_image(live);
	first = open_view(fixture, "web01@1", VIEW_READ);
	second = open_view(fixture, "web01@latest", VIEW_READ);
	must_hold(try_open(fixture, "web01@1", VIEW_WRITE, &writer) < 0);
	assert_content(fixture, first, bytes, "one reader");
	assert_content(fixture, second, bytes, "another");
	close_view(live); /* and images don't mind */
	assert_content(fixture, second, bytes, "afterwards");
	close_view(second);
	close_view(first);
}

static void image_in_use_is_not_deleted(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_reference reference = reference_to("web01@1");
	struct store_view *live = make_filled_disk(fixture, "web01", 2, 220, &bytes);
	struct store_view *reader;
	struct store_image *image;
	uint64_t freed;

	take_image(live);
	close_view(live);
	must(store_view_open(fixture->store, &reference, VIEW_READ, "wherry export web01@1", &reader, why()));
	note_view(reader);
	image = describe_image(fixture, "web01", 1);
	must_hold(image->in_use);
	if (fixture->factory->names_holders_of_images)
		assert_non_null(strstr(image->in_use_by, "wherry export web01@1"));
	store_images_free(image, 1);
	must_refuse(store_delete_image(fixture->store, "web01", 1, true, &freed, why()), -EBUSY, "in use");
	must_refuse(store_delete_image(fixture->store, "web01", 1, false, &freed, why()), -EBUSY, "web01@1");
	if (fixture->factory->names_holders_of_images)
		assert_non_null(strstr(failure.message, "wherry export web01@1"));
	assert_content(fixture, reader, bytes, "after a refused deletion");
	close_view(reader);
	image = describe_image(fixture, "web01", 1);
	must_hold(!image->in_use);
	store_images_free(image, 1);
	must(store_delete_image(fixture->store, "web01", 1, false, &freed, why()));
	must_refuse(try_open(fixture, "web01@1", VIEW_READ, &reader), -ENOENT, "web01");
}

static void pinned_image_is_not_deleted(void **state)
{
	struct fixture *fixture = *state;
	uint64_t freed;

	make_images(fixture, 1);
	must(store_pin_image(fixture->store, "web01", 1, true, why()));
	must_refuse(store_delete_image(fixture->store, "web01", 1, false, &freed, why()), -EBUSY, "pinned");
	must(store_pin_image(fixture->store, "web01", 1, true, why())); /* twice is as good as once */
	must(store_pin_image(fixture->store, "web01", 1, false, why()));
	must(store_delete_image(fixture->store, "web01", 1, false, &freed, why()));
}

static void reading_view_writes_nothing(void **state)
{
	struct fixture *fixture = *state;
	const struct store_image_params image_params = {.label = NULL};
	const struct store_round_params round_params = {.source = "s", .source_identity = "i", .how = ""};
	const struct store_round_counts counts = {.done = 1};
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 1, 230, &bytes);
	struct store_encoded encoded;
	struct store_round_begun begun;
	uint8_t digest[DIGEST_BYTES];
	store_chunk chunk;
	uint64_t new_bytes;
	uint32_t number;

	must(hasher_digest(store_scratch_hasher(fixture->scratch), bytes, CHUNK, digest, why()));
	must(store_encode_chunk(fixture->scratch, 0, digest, bytes, CHUNK, &encoded, why()));
	close_view(view);
	view = open_view(fixture, "web01", VIEW_READ);
	must_refuse(store_put_chunk(view, &encoded, &chunk, &new_bytes, why()), -EBADF, "web01");
	must_refuse(store_commit(view, NULL, 0, NULL, why()), -EBADF, "web01");
	must_refuse(store_resize_disk(view, 512, why()), -EBADF, "web01");
	must_refuse(store_create_image(view, &image_params, &number, why()), -EBADF, "web01");
	must_refuse(store_begin_round(view, &round_params, &begun, why()), -EBADF, "web01");
	must_refuse(store_note_round(view, 1, "{}", why()), -EBADF, "web01");
	must_refuse(store_finish_round(view, 1, ROUND_DONE, NULL, &counts, why()), -EBADF, "web01");
	close_view(view);
}

/* ------------------------------------------------------------------- resize */

static void images_keep_their_size(void **state)
{
	struct fixture *fixture = *state;
	static uint8_t at_first[6 * CHUNK];
	static uint8_t shrunk[6 * CHUNK];
	static uint8_t grown[12 * CHUNK];
	struct store_view *view;
	AUTO_FREE uint8_t *bytes = NULL;

	view = make_filled_disk(fixture, "web01", 6, 240, &bytes);
	memcpy(at_first, bytes, sizeof(at_first));
	take_image(view);
	/* to the middle of a chunk */
	must(store_resize_disk(view, 2 * CHUNK + 5000, why()));
	assert_int_equal(store_view_size(view), 2 * CHUNK + 5000);
	memcpy(shrunk, at_first, 2 * CHUNK + 5000);
	assert_content(fixture, view, shrunk, "shrunk");
	take_image(view);
	/* what was cut off does not come back */
	memcpy(grown, shrunk, 2 * CHUNK + 5000);
	must(store_resize_disk(view, 11 * CHUNK + 3, why()));
	assert_content(fixture, view, grown, "grown");
	take_image(view);
	fill(grown + (size_t)11 * CHUNK, 3, 250);
	write_places(fixture, view, grown, (uint64_t)1 << 11);
	assert_content(fixture, view, grown, "written to its new end");
	must(store_resize_disk(view, 11 * CHUNK + 3, why())); /* to the size that it has */
	close_view(view);
	reopen(fixture);
	assert_reference_content(fixture, "web01", grown, "reopened");
	assert_reference_content(fixture, "web01@1", at_first, "before shrinking");
	assert_reference_content(fixture, "web01@2", shrunk, "shrunk image");
	memset(grown + (size_t)11 * CHUNK, 0, 3);
	assert_reference_content(fixture, "web01@3", grown, "grown image");
	view = open_view(fixture, "web01@2", VIEW_READ);
	assert_int_equal(store_view_size(view), 2 * CHUNK + 5000);
	close_view(view);
}

static void short_last_chunk_grows_with_zeros(void **state)
{
	struct fixture *fixture = *state;
	static uint8_t bytes[2 * CHUNK];
	struct store_view *view;

	fill(bytes, 100, 260);
	create_disk(fixture, "web01", 100);
	view = open_view(fixture, "web01", VIEW_WRITE);
	write_places(fixture, view, bytes, 1);
	must(store_resize_disk(view, 1000, why()));
	assert_content(fixture, view, bytes, "a short chunk, longer");
	must(store_resize_disk(view, 2 * CHUNK, why()));
	assert_content(fixture, view, bytes, "a whole chunk");
	must(store_resize_disk(view, 50, why()));
	memset(bytes + 50, 0, 50);
	must(store_resize_disk(view, CHUNK, why()));
	assert_content(fixture, view, bytes, "cut and grown again");
	take_image(view);
	close_view(view);
	assert_reference_content(fixture, "web01@1", bytes, "its image");
}

static void resized_at_random(void **state)
{
	struct fixture *fixture = *state;
	enum { CHUNKS = 12, STEPS = 40 };
	unsigned int seed = store_contract_seed();
	struct kept_image kept[STEPS];
	uint8_t *bytes = calloc(CHUNKS, CHUNK);
	struct store_view *view;
	uint64_t size_bytes = 3 * CHUNK;

	create_disk(fixture, "web01", size_bytes);
	view = open_view(fixture, "web01", VIEW_WRITE);
	for (size_t i = 0; i < STEPS; i++) {
		uint64_t new_bytes = 1 + (uint64_t)rand_r(&seed) % (CHUNKS * CHUNK);

		if (rand_r(&seed) % 2 == 0)
			new_bytes = (new_bytes + CHUNK - 1) / CHUNK * CHUNK;
		must(store_resize_disk(view, new_bytes, why()));
		size_bytes = new_bytes;
		memset(bytes + size_bytes, 0, (size_t)CHUNKS * CHUNK - size_bytes);
		assert_content(fixture, view, bytes, "resized");
		write_places(fixture, view, bytes, change_at_random(bytes, count_chunks(size_bytes), &seed));
		memset(bytes + size_bytes, 0, (size_t)CHUNKS * CHUNK - size_bytes);
		assert_content(fixture, view, bytes, "changed");
		kept[i] = (struct kept_image){.number = take_image(view), .bytes = malloc((size_t)CHUNKS * CHUNK)};
		memcpy(kept[i].bytes, bytes, (size_t)CHUNKS * CHUNK);
	}
	close_view(view);
	assert_survivors(fixture, kept, STEPS);
	for (size_t i = 0; i < STEPS; i++)
		free(kept[i].bytes);
	free(bytes);
}

/* ------------------------------------------------------------------- rounds */

static const struct store_round_params plain_round = {
	.source = "/dev/sda",
	.source_identity = "block:/dev/sda:1234",
	.how = "read-all=no size=4",
	.start_stamp = "stamp 1",
	.dirty_bitmaps = "",
};

static struct store_round_begun begin_round(struct store_view *view, const struct store_round_params *params)
{
	struct store_round_begun begun;

	must(store_begin_round(view, params, &begun, why()));
	return begun;
}

/* The last of the rounds of web01. */
static struct store_round newest_round(struct fixture *fixture, struct store_round **ret_list, size_t *ret_count)
{
	must(store_list_rounds(fixture->store, "web01", ret_list, ret_count, why()));
	must_hold(*ret_count > 0);
	return (*ret_list)[*ret_count - 1];
}

static void round_is_begun_committed_and_done(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 270, &bytes);
	struct store_round_begun begun = begin_round(view, &plain_round);
	struct store_round_position position = {.number = begun.number, .cursor_bytes = 2 * CHUNK};
	struct store_image_params params = {.round = begun.number};
	struct store_round *list;
	struct store_round round;
	struct store_image *image;
	uint32_t number;
	size_t count;
	int64_t before = time(NULL) - 1;

	assert_int_equal(begun.number, 1);
	must_hold(!begun.resumed && begun.cursor_bytes == 0 && begun.counts.done == 0);
	must_hold(begun.previous_identity == NULL && begun.previous_dirty_bitmaps == NULL);
	assert_string_equal(begun.start_stamp, "stamp 1");
	must_hold(begun.details == NULL);
	store_round_begun_free(&begun);
	round = newest_round(fixture, &list, &count);
	assert_int_equal(round.state, ROUND_RUNNING);
	assert_int_equal(round.finished_at, 0);
	store_rounds_free(list, count);
	position.counts = (struct store_round_counts){4 * CHUNK, 2 * CHUNK, 3, 4, 5, 6, 7, 8};
	fill(bytes, CHUNK, 280);
	must(commit_places(view, fixture->scratch, bytes, 1, &position, why()));
	position.counts.done = 4 * CHUNK;
	must(store_create_image(view, &params, &number, why()));
	must(store_finish_round(view, 1, ROUND_DONE, NULL, &position.counts, why()));
	close_view(view);
	reopen(fixture);
	round = newest_round(fixture, &list, &count);
	assert_int_equal(count, 1);
	assert_string_equal(round.disk, "web01");
	assert_int_equal(round.number, 1);
	assert_int_equal(round.state, ROUND_DONE);
	assert_string_equal(round.source, "/dev/sda");
	must_hold(round.started_at >= before && round.finished_at >= round.started_at);
	assert_memory_equal(&round.counts, &position.counts, sizeof(round.counts));
	assert_null(round.error);
	store_rounds_free(list, count);
	image = describe_image(fixture, "web01", number);
	assert_int_equal(image->round, 1);
	store_images_free(image, 1);
	assert_reference_content(fixture, "web01", bytes, "after the round");
}

static void round_makes_its_disk_a_mirror(void **state)
{
	struct fixture *fixture = *state;
	struct store_round_begun begun;
	struct store_view *view;
	struct store_disk *list;
	size_t count;

	create_disk(fixture, "web01", CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	store_round_begun_free(&begun);
	close_view(view);
	must(store_list_disks(fixture->store, "web01", &list, &count, why()));
	assert_string_equal(list[0].mirror_of, "/dev/sda");
	store_disks_free(list, count);
}

/* How a round can end before it is done; all of them go on where the last commit was. */
enum unfinished { KILLED, STOPPED, FAILED };

static void assert_round_resumes(struct fixture *fixture, struct store_view *view, enum unfinished how)
{
	static uint8_t bytes[4 * CHUNK];
	struct store_round_params params = plain_round;
	struct store_round_begun begun = begin_round(view, &plain_round);
	struct store_round_position position = {.number = begun.number, .cursor_bytes = 3 * CHUNK};
	struct store_round *list;
	size_t count;

	must_hold(!begun.resumed);
	store_round_begun_free(&begun);
	fill(bytes, CHUNK, 290 + (uint64_t)how);
	position.counts.read = 77;
	must(commit_places(view, fixture->scratch, bytes, 1, &position, why()));
	if (how == STOPPED)
		must(store_finish_round(view, position.number, ROUND_STOPPED, NULL, &position.counts, why()));
	if (how == FAILED)
		must(store_finish_round(view, position.number, ROUND_FAILED, "the source: gone", &position.counts,
					why()));
	close_view(view);
	reopen(fixture);
	/* a round that nobody runs any more is not running */
	must_hold(newest_round(fixture, &list, &count).state == (how == FAILED ? ROUND_FAILED : ROUND_STOPPED));
	if (how == FAILED)
		assert_string_equal(list[count - 1].error, "the source: gone");
	store_rounds_free(list, count);
	view = open_view(fixture, "web01", VIEW_WRITE);
	params.start_stamp = "stamp 2";
	begun = begin_round(view, &params);
	must_hold(begun.resumed);
	assert_int_equal(begun.number, position.number);
	assert_int_equal(begun.cursor_bytes, 3 * CHUNK);
	assert_int_equal(begun.counts.read, 77);
	assert_string_equal(begun.start_stamp, "stamp 1"); /* of its first start */
	store_round_begun_free(&begun);
	must_hold(newest_round(fixture, &list, &count).state == ROUND_RUNNING);
	assert_int_equal(list[count - 1].finished_at, 0);
	store_rounds_free(list, count);
	must(store_finish_round(view, position.number, ROUND_DONE, NULL, &position.counts, why()));
	assert_content(fixture, view, bytes, "resumed");
	close_view(view);
}

static void unfinished_round_goes_on(void **state)
{
	struct fixture *fixture = *state;

	create_disk(fixture, "web01", 4 * CHUNK);
	for (enum unfinished how = KILLED; how <= FAILED; how++)
		assert_round_resumes(fixture, open_view(fixture, "web01", VIEW_WRITE), how);
}

static void commit_of_a_position_alone_counts(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 2, 300, &bytes);
	struct store_round_begun begun = begin_round(view, &plain_round);
	struct store_round_position position = {.number = begun.number, .cursor_bytes = CHUNK};

	store_round_begun_free(&begun);
	must(store_commit(view, NULL, 0, &position, why()));
	close_view(view);
	reopen(fixture);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	must_hold(begun.resumed);
	assert_int_equal(begun.cursor_bytes, CHUNK);
	store_round_begun_free(&begun);
	close_view(view);
}

static void round_of_another_source_supersedes(void **state)
{
	struct fixture *fixture = *state;
	struct store_round_params other_source = plain_round;
	struct store_round_params other_way = plain_round;
	struct store_round_begun begun;
	struct store_round_position position = {.number = 1, .cursor_bytes = CHUNK};
	struct store_view *view;
	struct store_round *list;
	size_t count;

	create_disk(fixture, "web01", 4 * CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	store_round_begun_free(&begun);
	must(store_commit(view, NULL, 0, &position, why()));
	other_way.how = "read-all=yes size=4";
	begun = begin_round(view, &other_way);
	must_hold(!begun.resumed && begun.number == 2 && begun.cursor_bytes == 0);
	store_round_begun_free(&begun);
	other_source.source = "/dev/sdb";
	other_source.source_identity = "block:/dev/sdb:99";
	begun = begin_round(view, &other_source);
	must_hold(!begun.resumed && begun.number == 3 && begun.cursor_bytes == 0);
	store_round_begun_free(&begun);
	(void)newest_round(fixture, &list, &count);
	assert_int_equal(count, 3);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(list[i].number, i + 1);
		assert_int_equal(list[i].state, ROUND_FAILED);
		assert_non_null(strstr(list[i].error, "superseded"));
		must_hold(list[i].finished_at != 0);
	}
	assert_int_equal(list[2].state, ROUND_RUNNING);
	assert_string_equal(list[2].source, "/dev/sdb");
	store_rounds_free(list, count);
	close_view(view);
}

static void finish(struct store_view *view, uint32_t number, enum store_round_state state)
{
	const struct store_round_counts counts = {.done = 1};

	must(store_finish_round(view, number, state, state == ROUND_FAILED ? "failed" : NULL, &counts, why()));
}

static void previous_round_is_known_to_the_next(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_round_params params = plain_round;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 310, &bytes);
	struct store_round_begun begun;
	struct store_round_position position;

	params.dirty_bitmaps = "a\nb";
	params.dirty_bytes = 4711;
	begun = begin_round(view, &params);
	position = (struct store_round_position){.number = begun.number, .cursor_bytes = 4 * CHUNK};
	store_round_begun_free(&begun);
	fill(bytes, CHUNK, 320);
	must(commit_places(view, fixture->scratch, bytes, 1, &position, why()));
	must(store_note_round(view, 1, "{\"noted\":1}", why()));
	finish(view, 1, ROUND_DONE);
	take_image(view);
	close_view(view);
	reopen(fixture);
	view = open_view(fixture, "web01", VIEW_WRITE);
	params.dirty_bitmaps = "c";
	begun = begin_round(view, &params);
	must_hold(!begun.resumed && begun.number == 2);
	must_hold(begun.previous_identity != NULL && begun.previous_dirty_bitmaps != NULL);
	assert_string_equal(begun.previous_identity, plain_round.source_identity);
	assert_string_equal(begun.previous_dirty_bitmaps, "a\nb");
	assert_int_equal(begun.previous_dirty_bytes, 4711);
	must_hold(begun.previous_details != NULL && begun.details == NULL);
	assert_string_equal(begun.previous_details, "{\"noted\":1}");
	store_round_begun_free(&begun);
	close_view(view);
}

static void previous_round_is_unknown_after_others_wrote(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_round_params other = plain_round;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 330, &bytes);
	struct store_round_begun begun = begin_round(view, &plain_round);
	struct store_round_position position = {.number = 2, .cursor_bytes = CHUNK};

	store_round_begun_free(&begun);
	finish(view, 1, ROUND_DONE);
	/* a round of another source that came as far as one commit */
	other.source_identity = "block:/dev/sdb:99";
	begun = begin_round(view, &other);
	must_hold(begun.previous_identity != NULL); /* it says whose; the caller sees that it is another */
	store_round_begun_free(&begun);
	fill(bytes, CHUNK, 340);
	must(commit_places(view, fixture->scratch, bytes, 1, &position, why()));
	finish(view, 2, ROUND_STOPPED);
	begun = begin_round(view, &plain_round);
	must_hold(begun.number == 3 && begun.previous_identity == NULL && begun.previous_dirty_bitmaps == NULL);
	store_round_begun_free(&begun);
	finish(view, 3, ROUND_DONE);
	/* no round at all */
	fill(bytes, CHUNK, 350);
	write_places(fixture, view, bytes, 1);
	begun = begin_round(view, &plain_round);
	must_hold(begun.number == 4 && begun.previous_identity == NULL);
	store_round_begun_free(&begun);
	close_view(view);
}

static void notes_are_durable_with_the_commit(void **state)
{
	struct fixture *fixture = *state;
	struct store_round_begun begun;
	struct store_round_position position = {.number = 1, .cursor_bytes = 0};
	struct store_view *view;

	create_disk(fixture, "web01", 4 * CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	store_round_begun_free(&begun);
	must(store_note_round(view, 1, "{\"read_errors\":[]}", why()));
	must(store_note_round(view, 1, "{\"read_errors\":[{\"offset\":512,\"length\":512}]}", why()));
	must(store_commit(view, NULL, 0, &position, why()));
	close_view(view);
	reopen(fixture);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	must_hold(begun.resumed && begun.details != NULL);
	assert_string_equal(begun.details, "{\"read_errors\":[{\"offset\":512,\"length\":512}]}");
	store_round_begun_free(&begun);
	must(store_note_round(view, 1, "{\"last\":1}", why()));
	finish(view, 1, ROUND_STOPPED);
	begun = begin_round(view, &plain_round);
	assert_string_equal(begun.details, "{\"last\":1}");
	store_round_begun_free(&begun);
	must_hold(store_note_round(view, 2, "{}", why()) != 0); /* there is none */
	close_view(view);
}

static void assert_throttle(struct store_view *view, uint32_t number, uint64_t limit, int level)
{
	struct store_throttle throttle;

	must(store_round_throttle(view, number, &throttle, why()));
	assert_int_equal(throttle.limit_bytes_per_second, limit);
	assert_int_equal(throttle.level, level);
}

static void round_obeys_policy_and_its_own_options(void **state)
{
	struct fixture *fixture = *state;
	struct store_round_params own = plain_round;
	struct store_round_begun begun;
	struct store_view *view;

	create_disk(fixture, "web01", 4 * CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	begun = begin_round(view, &plain_round);
	store_round_begun_free(&begun);
	assert_throttle(view, 1, 0, CODEC_LEVEL_DEFAULT);
	must(store_set_policy(fixture->store, "web01",
			      &(struct store_policy){.set_limit = true, .limit_bytes_per_second = 1000}, why()));
	assert_throttle(view, 1, 1000, CODEC_LEVEL_DEFAULT);
	must(store_set_policy(fixture->store, "web01", &(struct store_policy){.set_level = true, .level = 7}, why()));
	assert_throttle(view, 1, 1000, 7);
	finish(view, 1, ROUND_DONE);
	own.has_limit = own.has_level = true;
	own.limit_bytes_per_second = 0; /* none at all: also an order */
	own.level = 0;
	begun = begin_round(view, &own);
	store_round_begun_free(&begun);
	assert_throttle(view, 2, 0, 0);
	/* the later word counts */
	must(store_set_policy(fixture->store, "web01",
			      &(struct store_policy){.set_limit = true, .limit_bytes_per_second = 2000}, why()));
	assert_throttle(view, 2, 2000, 0);
	must(store_set_policy(fixture->store, "web01", &(struct store_policy){.set_level = true, .level = -1}, why()));
	assert_throttle(view, 2, 2000, CODEC_LEVEL_DEFAULT);
	finish(view, 2, ROUND_DONE);
	begun = begin_round(view, &plain_round); /* a round's own options end with it */
	store_round_begun_free(&begun);
	assert_throttle(view, 3, 2000, CODEC_LEVEL_DEFAULT);
	must_hold(store_round_throttle(view, 9, &(struct store_throttle){.level = 0}, why()) != 0);
	close_view(view);
}

static void round_that_is_over_is_over(void **state)
{
	struct fixture *fixture = *state;
	const struct store_round_counts counts = {.done = 1};
	struct store_round_begun begun;
	struct store_view *view;

	create_disk(fixture, "web01", CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	must_hold(store_finish_round(view, 1, ROUND_DONE, NULL, &counts, why()) != 0);
	begun = begin_round(view, &plain_round);
	store_round_begun_free(&begun);
	must_refuse(store_finish_round(view, 1, ROUND_RUNNING, NULL, &counts, why()), -EINVAL, "running");
	finish(view, 1, ROUND_DONE);
	begun = begin_round(view, &plain_round);
	must_hold(!begun.resumed && begun.number == 2);
	store_round_begun_free(&begun);
	close_view(view);
}

/* ------------------------------------------------------------------ threads */

struct reading {
	struct store_view *view;
	const uint8_t *bytes;
	atomic_bool *stop;
	unsigned int times;
	uint64_t place; /* that differed; UINT64_MAX: none */
	int error;
	struct failure failure;
};

static void *read_again_and_again(void *opaque)
{
	struct reading *reading = opaque;
	struct store_scratch *scratch = NULL;

	reading->place = UINT64_MAX;
	reading->error = store_scratch_new(&scratch, &reading->failure);
	while (reading->error == 0 && reading->place == UINT64_MAX &&
	       (reading->times == 0 || !atomic_load(reading->stop))) { /* once at the least */
		reading->place =
			find_difference(reading->view, scratch, reading->bytes, &reading->error, &reading->failure);
		reading->times++;
	}
	store_scratch_free(scratch);
	return NULL;
}

static void image_is_read_while_the_disk_changes(void **state)
{
	struct fixture *fixture = *state;
	enum { READERS = 2, COMMITS = 40, CHUNKS = 12 };
	unsigned int seed = store_contract_seed();
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE uint8_t *kept = malloc((size_t)CHUNKS * CHUNK);
	struct store_view *view = make_filled_disk(fixture, "web01", CHUNKS, 400, &bytes);
	struct reading readings[READERS] = {{.times = 0}};
	pthread_t threads[READERS];
	atomic_bool stop = false;
	uint64_t freed;

	memcpy(kept, bytes, (size_t)CHUNKS * CHUNK);
	take_image(view);
	for (size_t i = 0; i < READERS; i++) {
		readings[i].view = open_view(fixture, "web01@1", VIEW_READ);
		readings[i].bytes = kept;
		readings[i].stop = &stop;
		assert_int_equal(pthread_create(&threads[i], NULL, read_again_and_again, &readings[i]), 0);
	}
	for (unsigned int i = 0; i < COMMITS; i++) {
		write_places(fixture, view, bytes, change_at_random(bytes, CHUNKS, &seed));
		if (i % 4 == 3)
			must(store_delete_image(fixture->store, "web01", take_image(view), false, &freed, why()));
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < READERS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	for (size_t i = 0; i < READERS; i++) {
		if (readings[i].error != 0 || readings[i].place != UINT64_MAX)
			fail_msg("reader %zu, pass %u: place %llu: %d: %s", i, readings[i].times,
				 (unsigned long long)readings[i].place, readings[i].error, readings[i].failure.message);
		must_hold(readings[i].times > 0);
		close_view(readings[i].view);
	}
	assert_content(fixture, view, bytes, "live");
	close_view(view);
}

struct writing {
	struct store_view *view;
	uint8_t *bytes;
	unsigned int seed;
	int error;
	struct failure failure;
};

enum { WRITERS = 3, WRITER_CHUNKS = 10, WRITER_COMMITS = 25 };

/* All of them draw from the same few chunks, so that they find, put and commit each other's all the time. */
static void *write_again_and_again(void *opaque)
{
	struct writing *writing = opaque;
	struct store_scratch *scratch = NULL;

	writing->error = store_scratch_new(&scratch, &writing->failure);
	for (unsigned int i = 0; i < WRITER_COMMITS && writing->error == 0; i++) {
		uint64_t places = 0;

		for (unsigned int n = 0; n < 5; n++) {
			uint64_t place = (uint64_t)rand_r(&writing->seed) % WRITER_CHUNKS;

			places |= (uint64_t)1 << place;
			fill(writing->bytes + place * CHUNK, CHUNK, 500 + (uint64_t)rand_r(&writing->seed) % 60);
		}
		writing->error = commit_places(writing->view, scratch, writing->bytes, places, NULL, &writing->failure);
	}
	store_scratch_free(scratch);
	return NULL;
}

static void disks_are_written_at_once(void **state)
{
	struct fixture *fixture = *state;
	unsigned int seed = store_contract_seed();
	struct writing writings[WRITERS] = {{.error = 0}};
	pthread_t threads[WRITERS];
	char name[16];

	for (unsigned int i = 0; i < WRITERS; i++) {
		(void)snprintf(name, sizeof(name), "disk%u", i);
		create_disk(fixture, name, (uint64_t)WRITER_CHUNKS * CHUNK);
		writings[i].view = open_view(fixture, name, VIEW_WRITE);
		writings[i].bytes = calloc(WRITER_CHUNKS, CHUNK);
		writings[i].seed = seed + i;
	}
	for (unsigned int i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, write_again_and_again, &writings[i]), 0);
	for (unsigned int i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	for (unsigned int i = 0; i < WRITERS; i++) {
		if (writings[i].error != 0)
			fail_msg("writer %u: %d: %s", i, writings[i].error, writings[i].failure.message);
		assert_content(fixture, writings[i].view, writings[i].bytes, "what it wrote");
		close_view(writings[i].view);
	}
	reopen(fixture);
	for (unsigned int i = 0; i < WRITERS; i++) {
		(void)snprintf(name, sizeof(name), "disk%u", i);
		assert_reference_content(fixture, name, writings[i].bytes, "reopened");
		free(writings[i].bytes);
	}
}

/* --------------------------------------------------------- refused at the edge */

static void wrong_disks_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct store_disk_params params = {.name = "web01", .size_bytes = 512, .sector_bytes = 512};
	struct store_disk *list;
	size_t count;

	params.name = "Web 01";
	must_refuse(store_create_disk(fixture->store, &params, why()), -EINVAL, "web-01");
	params.name = "web01";
	params.size_bytes = 0;
	must_refuse(store_create_disk(fixture->store, &params, why()), -EINVAL, "0 bytes");
	params.size_bytes = STORE_DISK_MOST_BYTES + 1;
	must_refuse(store_create_disk(fixture->store, &params, why()), -EFBIG, "1 EiB");
	params.size_bytes = 512;
	params.sector_bytes = 513;
	must_refuse(store_create_disk(fixture->store, &params, why()), -EINVAL, "513");
	params.sector_bytes = 256;
	must_refuse(store_create_disk(fixture->store, &params, why()), -EINVAL, "256");
	params.sector_bytes = 131072;
	must_refuse(store_create_disk(fixture->store, &params, why()), -EINVAL, "131072");
	must(store_list_disks(fixture->store, NULL, &list, &count, why()));
	assert_int_equal(count, 0);
	store_disks_free(list, count);
}

static void wrong_policies_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct store_retention retention;

	create_disk(fixture, "web01", 512);
	must_refuse(store_set_policy(fixture->store, "web01",
				     &(struct store_policy){.set_keep = true, .keep = STORE_KEEP_MOST + 1}, why()),
		    -EINVAL, "1000000");
	must_refuse(store_set_policy(fixture->store, "web01", &(struct store_policy){.set_level = true, .level = 11},
				     why()),
		    -EINVAL, "11");
	must_refuse(store_set_policy(fixture->store, "web01", &(struct store_policy){.set_level = true, .level = -2},
				     why()),
		    -EINVAL, "-2");
	must_refuse(store_retain(fixture->store, "web01", 0, false, &retention, why()), -EINVAL, "at least 1");
	must_refuse(store_delete_image(fixture->store, "web01", 0, false, &(uint64_t){0}, why()), -EINVAL, "web01@0");
}

static void wrong_commits_are_refused(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 600, &bytes);
	struct store_change changes[2] = {{.chunk_count = 1}, {.chunk_count = 1}};
	struct store_round_position position = {.number = 1, .cursor_bytes = CHUNK};

	changes[0].first_chunk = 1;
	must_refuse(store_commit(view, changes, 2, NULL, why()), -EINVAL, "ascend");
	changes[1].first_chunk = 1;
	must_refuse(store_commit(view, changes, 2, NULL, why()), -EINVAL, "overlap");
	changes[0] = (struct store_change){.chunk_count = 5};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "beyond");
	changes[0] = (struct store_change){.first_chunk = 2, .chunk_count = UINT64_MAX};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "beyond");
	changes[0] = (struct store_change){.first_chunk = 4, .chunk_count = 1};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "beyond");
	changes[0] = (struct store_change){.chunk_count = 0};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "no chunk");
	changes[0] = (struct store_change){.chunk_count = 1, .kind = STORE_MAP_CHUNK};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "put or found");
	changes[0] = (struct store_change){.chunk_count = 2, .kind = STORE_MAP_CHUNK, .chunk = 1};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "put or found");
	changes[0] = (struct store_change){.chunk_count = 1, .kind = 3};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "unknown kind");
	changes[0] = (struct store_change){.chunk_count = 1, .kind = STORE_MAP_ZERO, .refresh = true};
	must_refuse(store_commit(view, changes, 1, NULL, why()), -EINVAL, "fingerprint");
	must_refuse(store_commit(view, changes, STORE_COMMIT_MOST_CHANGES + 1, NULL, why()), -EINVAL, "at most");
	must_hold(store_commit(view, NULL, 0, &position, why()) != 0); /* no round is running */
	position.cursor_bytes = CHUNK + 1;
	must_refuse(store_commit(view, NULL, 0, &position, why()), -EINVAL, "inside of a chunk");
	position.cursor_bytes = 5 * CHUNK;
	must_refuse(store_commit(view, NULL, 0, &position, why()), -EINVAL, "beyond");
	assert_content(fixture, view, bytes, "untouched");
	close_view(view);
}

static void wrong_chunks_are_refused(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 1, 610, &bytes);
	struct store_encoded good = {.plain_bytes = CHUNK, .stored_bytes = CHUNK, .stored = bytes};
	struct store_encoded bad;
	store_chunk chunk;
	uint64_t new_bytes;

	bad = good;
	bad.plain_bytes = bad.stored_bytes = CHUNK + 1;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "16385");
	bad = good;
	bad.plain_bytes = 0;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "0 bytes");
	bad = good;
	bad.stored_bytes = UINT32_MAX;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "4294967295");
	bad = good;
	bad.codec = 9;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "codec 9");
	bad = good;
	bad.cipher = 1;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "cipher 1");
	bad = good;
	bad.stored_bytes = CHUNK - 1;
	must_refuse(store_put_chunk(view, &bad, &chunk, &new_bytes, why()), -EINVAL, "plain chunk");
	must_refuse(store_view_read_chunk(view, fixture->scratch, 0, bytes, CHUNK, false, why()), -EINVAL, "none");
	must_refuse(store_view_read_chunk(view, fixture->scratch, 1, bytes, CHUNK + 1, false, why()), -EINVAL, "16385");
	must_refuse(store_encode_chunk(fixture->scratch, 11, good.digest, bytes, CHUNK, &bad, why()), -EINVAL, "11");
	must_refuse(store_encode_chunk(fixture->scratch, -1, good.digest, bytes, CHUNK, &bad, why()), -EINVAL, "-1");
	must_refuse(store_encode_chunk(fixture->scratch, 3, good.digest, bytes, 0, &bad, why()), -EINVAL, "0 bytes");
	close_view(view);
}

static void wrong_texts_are_refused(void **state)
{
	struct fixture *fixture = *state;
	static char long_text[65536 + 100];
	struct store_round_params round = plain_round;
	struct store_round_begun begun;
	struct store_view *view;
	uint32_t number;

	memset(long_text, 'x', sizeof(long_text) - 1);
	create_disk(fixture, "web01", CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
#define REFUSE_IMAGE(part, ...) \
	must_refuse(store_create_image(view, &(struct store_image_params){__VA_ARGS__}, &number, why()), -EINVAL, part)
	REFUSE_IMAGE("255", .label = long_text);
	REFUSE_IMAGE("control character at byte 4", .label = "two\nlines");
	REFUSE_IMAGE("control character at byte 1", .label = "\xc2\x9b");
	REFUSE_IMAGE("not UTF-8 at byte 3", .label = "ab\xff");
	REFUSE_IMAGE("not UTF-8 at byte 1", .label = "\xc0\xaf");     /* an overlong '/' */
	REFUSE_IMAGE("not UTF-8 at byte 1", .label = "\xed\xa0\x80"); /* a surrogate */
	REFUSE_IMAGE("not UTF-8 at byte 2", .label = "a\xe2\x82");    /* cut short */
	REFUSE_IMAGE("65536", .details = long_text);
	REFUSE_IMAGE("JSON", .details = "[1]");
	REFUSE_IMAGE("JSON", .details = "{");
	REFUSE_IMAGE("JSON", .details = "  ");
	REFUSE_IMAGE("consistency", .consistency = (enum store_consistency)7);
#undef REFUSE_IMAGE
	round.source = "";
	must_refuse(store_begin_round(view, &round, &begun, why()), -EINVAL, "missing");
	round.source = long_text;
	must_refuse(store_begin_round(view, &round, &begun, why()), -EINVAL, "4096");
	round.source = "s";
	round.has_level = true;
	round.level = -1;
	must_refuse(store_begin_round(view, &round, &begun, why()), -EINVAL, "-1");
	must_refuse(store_note_round(view, 1, "no json", why()), -EINVAL, "JSON");
	must_refuse(store_note_round(view, 0, "{}", why()), -EINVAL, "0");
	assert_int_equal(count_images(fixture, "web01"), 0);
	close_view(view);
}

static void wrong_sizes_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;

	create_disk(fixture, "web01", CHUNK);
	view = open_view(fixture, "web01", VIEW_WRITE);
	must_refuse(store_resize_disk(view, 0, why()), -EINVAL, "web01");
	must_refuse(store_resize_disk(view, STORE_DISK_MOST_BYTES + 1, why()), -EFBIG, "web01");
	assert_int_equal(store_view_size(view), CHUNK);
	close_view(view);
}

static void wrong_views_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct store_reference reference = {.disk = "web01", .which = STORE_NUMBER};
	struct store_view *view;

	create_disk(fixture, "web01", CHUNK);
	must_refuse(store_view_open(fixture->store, &reference, VIEW_READ, "x", &view, why()), -EINVAL, "web01@0");
	reference.which = (enum store_which)9;
	must_refuse(store_view_open(fixture->store, &reference, VIEW_READ, "x", &view, why()), -EINVAL, "web01");
	reference.which = STORE_LIVE;
	must_refuse(store_view_open(fixture->store, &reference, (enum store_view_mode)9, "x", &view, why()), -EINVAL,
		    "web01");
	must_refuse(store_view_open(fixture->store, &reference, VIEW_READ, "", &view, why()), -EINVAL, "by whom");
	memset(reference.disk, 'w', sizeof(reference.disk));
	must_refuse(store_view_open(fixture->store, &reference, VIEW_READ, "x", &view, why()), -EINVAL, "63");
}

/* ------------------------------------------------------------------- clones */

static void clone_disk(struct fixture *fixture, const char *image, const char *name)
{
	struct store_reference reference = reference_to(image);

	must(store_clone_disk(fixture->store, &reference, name, why()));
}

static void assert_parent(struct fixture *fixture, const char *disk, const char *parent)
{
	struct store_disk *list;
	size_t count;

	must(store_list_disks(fixture->store, disk, &list, &count, why()));
	assert_int_equal(count, 1);
	if (parent == NULL)
		assert_null(list[0].parent);
	else
		assert_string_equal(list[0].parent, parent);
	store_disks_free(list, count);
}

static void clone_begins_as_its_image_and_goes_its_own_way(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL, *copy = malloc(8 * CHUNK);
	struct store_view *view = make_filled_disk(fixture, "web01", 8, 1, &bytes), *clone;

	must_hold(copy != NULL);
	memcpy(copy, bytes, 8 * CHUNK);
	(void)take_image(view);
	fill(bytes, CHUNK, 100);
	write_places(fixture, view, bytes, 1);
	clone_disk(fixture, "web01@latest", "test");
	assert_parent(fixture, "test", "web01@1");
	assert_parent(fixture, "web01", NULL);
	assert_reference_content(fixture, "test", copy, "at first");
	clone = open_view(fixture, "test", VIEW_WRITE);
	fill(copy + CHUNK, CHUNK, 200);
	memset(copy + 3 * CHUNK, 0, 2 * CHUNK);
	write_places(fixture, clone, copy, 2 | 8 | 16);
	assert_content(fixture, clone, copy, "written");
	assert_int_equal(take_image(clone), 1);
	close_view(clone);
	assert_content(fixture, view, bytes, "its origin");
	close_view(view);
	reopen(fixture);
	assert_reference_content(fixture, "test", copy, "opened again");
	assert_reference_content(fixture, "test@1", copy, "its image");
	assert_reference_content(fixture, "web01", bytes, "its origin");
}

/* Another key: what shows through must not pass for what a fingerprint of the clone's says. And what a round finds there becomes its own. */
static void clone_has_fingerprints_of_its_own(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	struct store_view *view = make_filled_disk(fixture, "web01", 3, 1, &bytes);
	struct store_change change;

	must_hold(map != NULL);
	(void)take_image(view);
	close_view(view);
	clone_disk(fixture, "web01@1", "test");
	view = open_view(fixture, "test", VIEW_WRITE);
	must(store_view_map(view, 0, map, why()));
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(map->entries[i].kind, STORE_MAP_CHUNK);
		must_hold(!map->entries[i].has_fingerprint);
	}
	must(make_change(view, fixture->scratch, 1, bytes + CHUNK, CHUNK, &change, why()));
	assert_int_equal(change.chunk, map->entries[1].chunk);
	change.refresh = true;
	must(store_commit(view, &change, 1, NULL, why()));
	must(store_view_map(view, 0, map, why()));
	must_hold(map->entries[1].has_fingerprint && !map->entries[0].has_fingerprint);
	assert_memory_equal(map->entries[1].fingerprint, change.fingerprint, FINGERPRINT_BYTES);
	assert_content(fixture, view, bytes, "refreshed");
	(void)take_image(view);
	close_view(view);
	struct store_image *image = describe_image(fixture, "test", 1);
	assert_int_equal(image->changed_bytes, 0);
	store_images_free(image, 1);
}

static void image_with_clones_is_in_use(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 1, &bytes);
	struct store_retention retention;
	struct store_image *image;
	uint64_t freed_bytes;

	for (unsigned i = 0; i < 3; i++) {
		fill(bytes, CHUNK, 50 + i);
		write_places(fixture, view, bytes, 1);
		(void)take_image(view);
	}
	close_view(view);
	clone_disk(fixture, "web01@2", "test");
	clone_disk(fixture, "web01@2", "proof");
	image = describe_image(fixture, "web01", 2);
	must_hold(image->in_use);
	assert_string_equal(image->in_use_by, "clones proof, test");
	store_images_free(image, 1);
	must_refuse(store_delete_image(fixture->store, "web01", 2, false, &freed_bytes, why()), -EBUSY,
		    "in use by clones proof, test");
	must_refuse(store_delete_image(fixture->store, "web01", 2, true, &freed_bytes, why()), -EBUSY, "proof");
	must_refuse(store_remove_disk(fixture->store, "web01", false, why()), -EBUSY, "image 2 is in use by clones proof");
	must_refuse(store_remove_disk(fixture->store, "web01", true, why()), -EBUSY, "test");
	must(store_remove_disk(fixture->store, "proof", false, why()));
	must(store_retain(fixture->store, "web01", 1, false, &retention, why()));
	assert_int_equal(retention.deleted_count, 1);
	assert_int_equal(retention.deleted[0], 1);
	assert_int_equal(retention.kept_count, 1);
	assert_string_equal(retention.kept[0].why, "in use by clone test");
	store_retention_free(&retention);
	must(store_remove_disk(fixture->store, "test", false, why()));
	must(store_delete_image(fixture->store, "web01", 2, false, &freed_bytes, why()));
	must_hold(freed_bytes > 0);
	must(store_remove_disk(fixture->store, "web01", false, why()));
}

/* An image of a clone reads through as its live content did: the clone's removal, not a deletion in it, frees what is below. */
static void clone_of_an_unwritten_clone_is_one_of_what_is_below(void **state)
{
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "web01", 4, 1, &bytes);
	uint64_t freed_bytes;

	(void)take_image(view);
	close_view(view);
	clone_disk(fixture, "web01@1", "first");
	view = open_view(fixture, "first", VIEW_WRITE);
	(void)take_image(view);
	fill(bytes, CHUNK, 70);
	write_places(fixture, view, bytes, 1);
	(void)take_image(view);
	close_view(view);
	clone_disk(fixture, "first@1", "unwritten");
	clone_disk(fixture, "first@2", "written");
	assert_parent(fixture, "unwritten", "web01@1");
	assert_parent(fixture, "written", "first@2");
	assert_reference_content(fixture, "written", bytes, "of a written clone");
	must(store_delete_image(fixture->store, "first", 1, false, &freed_bytes, why()));
	must_refuse(store_delete_image(fixture->store, "first", 2, false, &freed_bytes, why()), -EBUSY, "clone written");
	must_refuse(store_remove_disk(fixture->store, "first", false, why()), -EBUSY, "clone written");
	must(store_remove_disk(fixture->store, "written", false, why()));
	must(store_remove_disk(fixture->store, "first", false, why()));
	must_refuse(store_remove_disk(fixture->store, "web01", false, why()), -EBUSY, "clone unwritten");
	fill(bytes, CHUNK, 1);
	assert_reference_content(fixture, "unwritten", bytes, "all above it is gone");
}

static void clones_are_refused_where_there_is_nothing_to_clone(void **state)
{
	struct fixture *fixture = *state;
	struct store_reference live = reference_to("web01"), partition = reference_to("web01@1/1"),
			       latest = reference_to("web01@latest"), other = reference_to("mail@1");
	struct store_view *view;

	create_disk(fixture, "web01", 5 * CHUNK);
	must_refuse(store_clone_disk(fixture->store, &latest, "test", why()), -ENOENT, "web01");
	view = open_view(fixture, "web01", VIEW_WRITE);
	(void)take_image(view);
	close_view(view);
	must_refuse(store_clone_disk(fixture->store, &live, "test", why()), -EINVAL, "web01@N");
	must_refuse(store_clone_disk(fixture->store, &partition, "test", why()), -EINVAL, "partition");
	must_refuse(store_clone_disk(fixture->store, &other, "test", why()), -ENOENT, "mail");
	must_refuse(store_clone_disk(fixture->store, &latest, "Test", why()), -EINVAL, "Test");
	must_refuse(store_clone_disk(fixture->store, &latest, "web01", why()), -EEXIST, "web01");
	must(store_clone_disk(fixture->store, &latest, "test", why()));
	must_refuse(store_clone_disk(fixture->store, &latest, "test", why()), -EEXIST, "test");
	assert_int_equal(count_images(fixture, "test"), 0);
}

static void deep_clones_read_all_levels(void **state)
{
	enum { LEVELS = 12, CHUNKS = 16 };
	struct fixture *fixture = *state;
	AUTO_FREE uint8_t *bytes = NULL;
	struct store_view *view = make_filled_disk(fixture, "level0", CHUNKS, 1, &bytes);
	char name[32], image[32];

	for (unsigned level = 0; level < LEVELS; level++) {
		if (level % 3 == 2)
			memset(bytes + level * CHUNK, 0, CHUNK);
		else
			fill(bytes + level * CHUNK, CHUNK, 1000 + level);
		write_places(fixture, view, bytes, (uint64_t)1 << level);
		(void)take_image(view);
		close_view(view);
		(void)snprintf(image, sizeof(image), "level%u@1", level);
		(void)snprintf(name, sizeof(name), "level%u", level + 1);
		clone_disk(fixture, image, name);
		assert_parent(fixture, name, image);
		assert_reference_content(fixture, name, bytes, "deep");
		view = open_view(fixture, name, VIEW_WRITE);
	}
	close_view(view);
}

/* What was cut off must not come back by growing, neither the clone's own nor what its image shows. */
static void clone_is_resized_at_random(void **state)
{
	struct fixture *fixture = *state;
	static const size_t most_bytes = MOST_CHUNKS * CHUNK;
	AUTO_FREE uint8_t *bytes = calloc(1, most_bytes), *first = malloc(most_bytes);
	unsigned int seed = store_contract_seed();
	uint64_t size_bytes = 20 * CHUNK + 777;
	struct store_view *view;

	must_hold(bytes != NULL && first != NULL);
	for (uint64_t i = 0; i * CHUNK < size_bytes; i++)
		if (i % 4 != 3)
			fill(bytes + i * CHUNK, length_at(size_bytes, i), i + 1);
	memcpy(first, bytes, most_bytes);
	create_disk(fixture, "web01", size_bytes);
	view = open_view(fixture, "web01", VIEW_WRITE);
	write_places(fixture, view, bytes, all_places);
	(void)take_image(view);
	close_view(view);
	for (unsigned round = 0; round < 8; round++) {
		memcpy(bytes, first, most_bytes);
		clone_disk(fixture, "web01@1", "test");
		view = open_view(fixture, "test", VIEW_WRITE);
		for (unsigned step = 0; step < 6; step++) {
			uint64_t old_bytes = store_view_size(view), place;

			size_bytes = 1 + (uint64_t)rand_r(&seed) % (rand_r(&seed) % 3 == 0 ? most_bytes : 24 * CHUNK);
			must(store_resize_disk(view, size_bytes, why()));
			if (size_bytes < old_bytes)
				memset(bytes + size_bytes, 0, old_bytes - size_bytes);
			assert_content(fixture, view, bytes, "resized");
			place = (uint64_t)rand_r(&seed) % count_chunks(size_bytes);
			if (rand_r(&seed) % 2 == 0)
				fill(bytes + place * CHUNK, length_at(size_bytes, place), (uint64_t)rand_r(&seed));
			else
				memset(bytes + place * CHUNK, 0, length_at(size_bytes, place));
			write_places(fixture, view, bytes, (uint64_t)1 << place);
			if (rand_r(&seed) % 3 == 0)
				(void)take_image(view);
			assert_content(fixture, view, bytes, "written");
		}
		close_view(view);
		must(store_remove_disk(fixture->store, "test", false, why()));
	}
	assert_reference_content(fixture, "web01@1", first, "the image");
}

/* ---- a family of disks, as numbers: each chunk holds one, or zeros ---- */

enum { FAMILY_MOST = 7, FAMILY_IMAGES_MOST = 5, FAMILY_CHUNKS = 3 * PAGE + 100 };

struct family_image {
	uint32_t number;
	uint32_t parts[FAMILY_CHUNKS];
};
struct family_disk {
	bool exists;
	uint32_t parts[FAMILY_CHUNKS];
	struct family_image images[FAMILY_IMAGES_MOST];
	size_t image_count;
};
struct family {
	struct fixture *fixture;
	unsigned int seed, made;
	struct family_disk disks[FAMILY_MOST];
};

static unsigned below(struct family *family, unsigned end)
{
	return (unsigned)rand_r(&family->seed) % end;
}

static void family_name(size_t index, char ret_name[16])
{
	(void)snprintf(ret_name, 16, "disk%zu", index);
}

/* All of it, by way of the pages that the view says there may be something in. */
static void assert_family_content(struct family *family, const char *reference, const uint32_t *parts)
{
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	AUTO_FREE uint64_t *plain = malloc(CHUNK);
	struct store_view *view = open_view(family->fixture, reference, VIEW_READ);
	uint64_t next = 0;

	must_hold(map != NULL && plain != NULL);
	for (uint64_t i = 0; i < FAMILY_CHUNKS; i++) {
		const struct store_map_entry *entry = &map->entries[i % PAGE];
		uint64_t found = 0;

		if (i % PAGE == 0 && next <= i / PAGE)
			must(store_view_next_page(view, i / PAGE, &next, why()));
		if (i % PAGE == 0)
			must(store_view_map(view, i / PAGE, map, why()));
		if (next <= i / PAGE && entry->kind == STORE_MAP_CHUNK) {
			must(store_view_read_chunk(view, family->fixture->scratch, entry->chunk, plain, CHUNK, false, why()));
			found = plain[0];
		}
		if (found != parts[i])
			fail_msg("%s: chunk %llu is %llu instead of %u", reference, (unsigned long long)i,
				 (unsigned long long)found, parts[i]);
	}
	close_view(view);
}

static void assert_family(struct family *family)
{
	char name[16], reference[48];

	for (size_t i = 0; i < FAMILY_MOST; i++) {
		family_name(i, name);
		if (!family->disks[i].exists)
			continue;
		assert_family_content(family, name, family->disks[i].parts);
		for (size_t j = 0; j < family->disks[i].image_count; j++) {
			(void)snprintf(reference, sizeof(reference), "%s@%u", name, family->disks[i].images[j].number);
			assert_family_content(family, reference, family->disks[i].images[j].parts);
		}
	}
}

static void family_write(struct family *family, struct family_disk *disk, struct store_view *view)
{
	uint64_t first = below(family, FAMILY_CHUNKS), end = first + 1 + below(family, 12);
	struct store_change changes[16];
	uint64_t plain[CHUNK / sizeof(uint64_t)] = {0};
	size_t count = 0;

	for (uint64_t i = first; i < end && i < FAMILY_CHUNKS; i++) {
		plain[0] = disk->parts[i] = 1 + below(family, 60);
		must(make_change(view, family->fixture->scratch, i, (const uint8_t *)plain, CHUNK, &changes[count++], why()));
	}
	must(store_commit(view, changes, count, NULL, why()));
}

static void family_zero(struct family *family, struct family_disk *disk, struct store_view *view)
{
	struct store_change change = {.kind = below(family, 2) == 0 ? STORE_MAP_NOTHING : STORE_MAP_ZERO};
	uint64_t most = below(family, 3) == 0 ? 20 : FAMILY_CHUNKS;

	change.first_chunk = below(family, 4) == 0 ? 0 : below(family, FAMILY_CHUNKS);
	change.chunk_count = 1 + below(family, (unsigned)most);
	if (change.chunk_count > FAMILY_CHUNKS - change.first_chunk)
		change.chunk_count = FAMILY_CHUNKS - change.first_chunk;
	must(store_commit(view, &change, 1, NULL, why()));
	memset(disk->parts + change.first_chunk, 0, (size_t)change.chunk_count * sizeof(*disk->parts));
}

static void family_resize(struct family *family, struct family_disk *disk, struct store_view *view)
{
	uint64_t chunks = 1 + below(family, FAMILY_CHUNKS);

	must(store_resize_disk(view, chunks * CHUNK, why()));
	must(store_resize_disk(view, FAMILY_CHUNKS * CHUNK, why()));
	memset(disk->parts + chunks, 0, (size_t)(FAMILY_CHUNKS - chunks) * sizeof(*disk->parts));
}

static void family_image(struct family_disk *disk, struct store_view *view)
{
	struct family_image *image = &disk->images[disk->image_count];

	if (disk->image_count == FAMILY_IMAGES_MOST)
		return;
	image->number = take_image(view);
	memcpy(image->parts, disk->parts, sizeof(image->parts));
	disk->image_count++;
}

static void family_delete(struct family *family, size_t index)
{
	struct family_disk *disk = &family->disks[index];
	uint64_t freed_bytes;
	size_t at;
	char name[16];
	int result;

	if (disk->image_count == 0)
		return;
	at = below(family, (unsigned)disk->image_count);
	family_name(index, name);
	result = store_delete_image(family->fixture->store, name, disk->images[at].number, false, &freed_bytes, why());
	if (result == -EBUSY)
		return;
	must(result);
	memmove(&disk->images[at], &disk->images[at + 1], (--disk->image_count - at) * sizeof(disk->images[0]));
}

static void family_clone(struct family *family, const char *name, struct family_disk *disk)
{
	size_t from = below(family, FAMILY_MOST), at;
	char source[16], reference[48];

	for (at = 0; at < FAMILY_MOST && family->disks[from].image_count == 0; at++)
		from = (from + 1) % FAMILY_MOST;
	if (family->disks[from].image_count == 0 || family->made < 2) {
		create_disk(family->fixture, name, FAMILY_CHUNKS * CHUNK);
		memset(disk, 0, sizeof(*disk));
	} else {
		at = below(family, (unsigned)family->disks[from].image_count);
		family_name(from, source);
		(void)snprintf(reference, sizeof(reference), "%s@%u", source, family->disks[from].images[at].number);
		clone_disk(family->fixture, reference, name);
		memcpy(disk->parts, family->disks[from].images[at].parts, sizeof(disk->parts));
		disk->image_count = 0;
	}
	disk->exists = true;
	family->made++;
}

static void family_step(struct family *family)
{
	size_t index = below(family, FAMILY_MOST);
	struct family_disk *disk = &family->disks[index];
	unsigned what = below(family, 100);
	struct store_view *view;
	char name[16];

	family_name(index, name);
	if (!disk->exists) {
		family_clone(family, name, disk);
		return;
	}
	if (what < 6) {
		int result = store_remove_disk(family->fixture->store, name, false, why());

		must_hold(result == 0 || result == -EBUSY);
		disk->exists = result != 0;
		if (result == 0)
			disk->image_count = 0;
		return;
	}
	if (what < 16) {
		family_delete(family, index);
		return;
	}
	view = open_view(family->fixture, name, VIEW_WRITE);
	if (what < 55)
		family_write(family, disk, view);
	else if (what < 75)
		family_zero(family, disk, view);
	else if (what < 82)
		family_resize(family, disk, view);
	else
		family_image(disk, view);
	close_view(view);
}

static void clones_of_clones_at_random(void **state)
{
	AUTO_FREE struct family *family = calloc(1, sizeof(*family));
	const struct store_check_params deep = {.deep = true};
	struct store_check_report report;

	must_hold(family != NULL);
	family->fixture = *state;
	family->seed = store_contract_seed();
	for (unsigned step = 0; step < 400; step++) {
		family_step(family);
		if (step % 40 == 39)
			assert_family(family);
	}
	reopen(family->fixture);
	assert_family(family);
	must(store_check(family->fixture->store, &deep, &report, why()));
	if (!report.is_clean)
		fail_msg("%s: %s", report.flaw_count > 0 ? report.flaws[0].what : "damage",
			 report.flaw_count > 0 ? report.flaws[0].why : report.damages[0].why);
	store_check_report_free(&report);
}

/* ---------------------------------------------------------------------- all */

int store_contract_run(const struct store_contract_factory *factory)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(fresh_store_is_empty),
		TEST(disks_are_listed_by_name),
		TEST(name_of_a_disk_is_its_own),
		TEST(removed_disk_is_gone_with_its_images),
		TEST(disk_with_pinned_image_stays),
		TEST(unknown_names_are_answered_with_near_ones),
		TEST(policy_is_kept_field_by_field),
		TEST(what_was_committed_is_read),
		TEST(disk_smaller_than_a_chunk_works),
		TEST(never_written_disk_is_zeros),
		TEST(map_is_empty_beyond_the_end),
		TEST(huge_disk_costs_what_is_in_it),
		TEST(zeros_replace_content),
		TEST(fingerprints_are_kept_with_live_content),
		TEST(keys_of_disks_differ),
		TEST(refresh_is_no_change),
		TEST(put_chunk_is_found_before_the_commit),
		TEST(content_is_stored_once_for_all_disks),
		TEST(uncommitted_chunks_are_nobodys),
		TEST(commit_happens_whole_or_not_at_all),
		TEST(image_says_what_it_is),
		TEST(images_survive_changes_and_each_other),
		TEST(latest_is_the_newest_there_is),
		TEST(images_are_told_briefly_and_in_full),
		TEST(changes_of_a_disk_are_noticed_and_another_disk_of_its_name_too),
		TEST(room_is_told),
		TEST(missing_image_is_answered_with_those_there_are),
		TEST(changed_bytes_are_those_that_differ),
		TEST(unique_bytes_are_what_deletion_frees),
		TEST(dry_run_deletes_nothing),
		TEST(empty_store_holds_nothing),
		TEST(content_is_measured_once),
		TEST(what_is_deleted_is_dead),
		TEST(disk_takes_what_its_removal_frees),
		TEST(clean_up_frees_what_is_dead),
		TEST(clean_up_stops_when_told),
		TEST(undamaged_store_is_clean),
		TEST(check_stops_when_told),
		TEST(work_meanwhile_is_no_damage),
		TEST(oldest_images_go_first),
		TEST(pinned_and_open_images_stay),
		TEST(live_disk_has_one_opener),
		TEST(image_has_many_readers_and_no_writer),
		TEST(image_in_use_is_not_deleted),
		TEST(pinned_image_is_not_deleted),
		TEST(reading_view_writes_nothing),
		TEST(images_keep_their_size),
		TEST(short_last_chunk_grows_with_zeros),
		TEST(resized_at_random),
		TEST(round_is_begun_committed_and_done),
		TEST(round_makes_its_disk_a_mirror),
		TEST(unfinished_round_goes_on),
		TEST(commit_of_a_position_alone_counts),
		TEST(round_of_another_source_supersedes),
		TEST(previous_round_is_known_to_the_next),
		TEST(previous_round_is_unknown_after_others_wrote),
		TEST(notes_are_durable_with_the_commit),
		TEST(round_obeys_policy_and_its_own_options),
		TEST(round_that_is_over_is_over),
		TEST(image_is_read_while_the_disk_changes),
		TEST(disks_are_written_at_once),
		TEST(clone_begins_as_its_image_and_goes_its_own_way),
		TEST(clone_has_fingerprints_of_its_own),
		TEST(image_with_clones_is_in_use),
		TEST(clone_of_an_unwritten_clone_is_one_of_what_is_below),
		TEST(clones_are_refused_where_there_is_nothing_to_clone),
		TEST(deep_clones_read_all_levels),
		TEST(clone_is_resized_at_random),
		TEST(clones_of_clones_at_random),
		TEST(wrong_disks_are_refused),
		TEST(wrong_policies_are_refused),
		TEST(wrong_commits_are_refused),
		TEST(wrong_chunks_are_refused),
		TEST(wrong_texts_are_refused),
		TEST(wrong_sizes_are_refused),
		TEST(wrong_views_are_refused),
	};
#undef TEST
	the_factory = factory;
	return cmocka_run_group_tests_name(factory->name, tests, NULL, NULL);
}
