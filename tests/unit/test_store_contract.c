/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of store.h, kept by the fake store; and what a fake is for:
 * delays, failures, damage and power cuts, each at the place where it was
 * ordered.
 *
 * The power cut tests have a control: the same test on a store that forgets
 * commits has to fail.
 */
#include "unit_test.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/store_fake.h"
#include "store_contract.h"

#define CHUNK ((size_t)STORE_CHUNK_LEAST_BYTES)

/* ------------------------------------------------------------- the contract */

static int make(uint32_t chunk_bytes, void **ret_place, struct store **ret_store)
{
	*ret_place = NULL;
	return store_fake_new(&(struct store_fake_options){.chunk_bytes = chunk_bytes}, ret_store);
}

/* What another process would see is what a power cut leaves. */
static int reopen(void *place, struct store **store)
{
	(void)place;
	store_fake_power_cut(*store);
	return 0;
}

static void destroy(void *place, struct store *store)
{
	(void)place;
	store_close(store);
}

/* ---------------------------------------------------------------- the fixture */

static struct failure failure; /* of the last call */

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

/* A store with a disk "web01" of four chunks. */
struct fixture {
	struct store *store;
	struct store_scratch *scratch;
};

static struct fixture *make_fixture(const struct store_fake_options *options)
{
	const struct store_disk_params params = {.name = "web01", .size_bytes = 4 * CHUNK, .sector_bytes = 512};
	struct fixture *fixture = calloc(1, sizeof(*fixture));

	assert_non_null(fixture);
	assert_int_equal(store_fake_new(options, &fixture->store), 0);
	must(store_scratch_new(&fixture->scratch, why()));
	must(store_create_disk(fixture->store, &params, why()));
	return fixture;
}

static int set_up(void **state)
{
	*state = make_fixture(&(struct store_fake_options){.chunk_bytes = CHUNK});
	return 0;
}

static int set_up_forgetful(void **state)
{
	*state = make_fixture(&(struct store_fake_options){.chunk_bytes = CHUNK, .forgets_commits = true});
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *fixture = *state;

	store_close(fixture->store);
	store_scratch_free(fixture->scratch);
	free(fixture);
	return 0;
}

static int open_web01(struct fixture *fixture, enum store_view_mode mode, struct store_view **ret_view)
{
	const struct store_reference reference = {.disk = "web01", .which = STORE_LIVE};

	return store_view_open(fixture->store, &reference, mode, "fake test", ret_view, why());
}

/* Puts a chunk full of one byte. */
static int put(struct fixture *fixture, struct store_view *view, uint8_t byte, struct store_change *ret_change)
{
	struct store_change change = {.chunk_count = 1, .kind = STORE_MAP_CHUNK};
	struct store_encoded encoded;
	uint8_t bytes[CHUNK];
	uint64_t new_bytes;
	int error;

	memset(bytes, byte, CHUNK);
	must(hasher_digest(store_scratch_hasher(fixture->scratch), bytes, CHUNK, change.digest, why()));
	must(store_encode_chunk(fixture->scratch, 1, change.digest, bytes, CHUNK, &encoded, why()));
	error = store_put_chunk(view, &encoded, &change.chunk, &new_bytes, why());
	if (error == 0)
		*ret_change = change;
	return error;
}

static int commit_byte(struct fixture *fixture, struct store_view *view, uint64_t place, uint8_t byte)
{
	struct store_change change = {.chunk = 0};
	int error = put(fixture, view, byte, &change);

	if (error != 0)
		return error;
	change.first_chunk = place;
	return store_commit(view, &change, 1, NULL, why());
}

/* The byte that a place is full of; 0 also where there is nothing. */
static int read_byte(struct fixture *fixture, struct store_view *view, uint64_t place, uint8_t *ret_byte)
{
	struct store_map_page map;
	uint8_t bytes[CHUNK] = {0};
	int error = store_view_map(view, 0, &map, why());

	if (error == 0 && map.entries[place].kind == STORE_MAP_CHUNK)
		error = store_view_read_chunk(view, fixture->scratch, map.entries[place].chunk, bytes, CHUNK, true,
					      why());
	if (error == 0)
		*ret_byte = bytes[CHUNK - 1];
	return error;
}

static uint8_t byte_after_reopening(struct fixture *fixture, uint64_t place)
{
	struct store_view *view;
	uint8_t byte = 0;

	must(open_web01(fixture, VIEW_READ, &view));
	must(read_byte(fixture, view, place, &byte));
	store_view_close(view);
	return byte;
}

/* ------------------------------------------------------------- misbehaviour */

static void calls_and_bytes_are_counted(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;
	uint8_t byte = 0;

	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_CREATE_DISK), 1);
	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_COMMIT), 0);
	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 1));
	must(commit_byte(fixture, view, 1, 2));
	must(read_byte(fixture, view, 0, &byte));
	store_view_close(view);
	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_PUT_CHUNK), 2);
	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_COMMIT), 2);
	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_READ_CHUNK), 1);
	assert_int_equal(store_fake_calls(fixture->store, STORE_FAKE_VIEW_CLOSE), 1);
	assert_int_equal(store_fake_bytes_read(fixture->store), CHUNK);
}

static void nth_call_fails_and_no_other(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 1));
	store_fake_fail(fixture->store, STORE_FAKE_COMMIT, 2, -ENOSPC, STORE_FAKE_BEFORE);
	must(commit_byte(fixture, view, 1, 1));
	assert_int_equal(commit_byte(fixture, view, 2, 1), -ENOSPC);
	assert_non_null(strstr(failure.message, "No space left on device"));
	must(commit_byte(fixture, view, 3, 1));
	store_view_close(view);
	assert_int_equal(byte_after_reopening(fixture, 1), 1);
	assert_int_equal(byte_after_reopening(fixture, 2), 0);
	assert_int_equal(byte_after_reopening(fixture, 3), 1);
}

static void failed_afterwards_took_effect(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;

	must(open_web01(fixture, VIEW_WRITE, &view));
	store_fake_fail(fixture->store, STORE_FAKE_COMMIT, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(commit_byte(fixture, view, 2, 9), -EIO);
	store_view_close(view);
	assert_int_equal(byte_after_reopening(fixture, 2), 9);
	/* what would have been handed out is released: nothing is locked, nothing leaks */
	store_fake_fail(fixture->store, STORE_FAKE_VIEW_OPEN, 1, -ENOMEM, STORE_FAKE_AFTER);
	assert_int_equal(open_web01(fixture, VIEW_WRITE, &view), -ENOMEM);
	must(open_web01(fixture, VIEW_WRITE, &view));
	store_view_close(view);
}

static void plan_can_be_dropped(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;

	store_fake_fail(fixture->store, STORE_FAKE_VIEW_OPEN, 1, -EIO, STORE_FAKE_BEFORE);
	store_fake_fail(fixture->store, STORE_FAKE_VIEW_OPEN, 0, -EIO, STORE_FAKE_BEFORE);
	must(open_web01(fixture, VIEW_WRITE, &view));
	store_view_close(view);
}

/* Every function that hands something out, failing after it took effect: under the address sanitizer, nothing is left.
 */
static void lost_answers_leak_nothing(void **state)
{
	struct fixture *fixture = *state;
	const struct store_round_params params = {.source = "s", .source_identity = "i", .how = ""};
	struct store_round_begun begun;
	struct store_retention retention;
	struct store_disk *disks;
	struct store_image *images;
	struct store_round *rounds;
	struct store_view *view;
	uint32_t number;
	size_t count;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_create_image(view, &(struct store_image_params){.label = "l", .details = "{}"}, &number, why()));
	must(store_create_image(view, &(struct store_image_params){.label = "m"}, &number, why()));
	must(store_pin_image(fixture->store, "web01", 1, true, why()));
	store_fake_fail(fixture->store, STORE_FAKE_BEGIN_ROUND, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(store_begin_round(view, &params, &begun, why()), -EIO);
	store_fake_fail(fixture->store, STORE_FAKE_LIST_DISKS, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(store_list_disks(fixture->store, NULL, &disks, &count, why()), -EIO);
	store_fake_fail(fixture->store, STORE_FAKE_LIST_IMAGES, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(store_list_images(fixture->store, NULL, &images, &count, why()), -EIO);
	store_fake_fail(fixture->store, STORE_FAKE_LIST_ROUNDS, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(store_list_rounds(fixture->store, NULL, &rounds, &count, why()), -EIO);
	store_fake_fail(fixture->store, STORE_FAKE_RETAIN, 1, -EIO, STORE_FAKE_AFTER);
	assert_int_equal(store_retain(fixture->store, "web01", 1, false, &retention, why()), -EIO);
	store_view_close(view);
}

static void delayed_call_takes_its_time(void **state)
{
	struct fixture *fixture = *state;
	struct store_disk *list;
	double start = units_monotonic_seconds();
	size_t count;

	store_fake_delay(fixture->store, STORE_FAKE_LIST_DISKS, 60);
	must(store_list_disks(fixture->store, NULL, &list, &count, why()));
	store_disks_free(list, count);
	assert_true(units_monotonic_seconds() - start >= 0.059);
	store_fake_delay(fixture->store, STORE_FAKE_LIST_DISKS, 0);
	start = units_monotonic_seconds();
	for (unsigned int i = 0; i < 10; i++) {
		must(store_list_disks(fixture->store, NULL, &list, &count, why()));
		store_disks_free(list, count);
	}
	assert_true(units_monotonic_seconds() - start < 0.5);
}

static void *list_slowly(void *store)
{
	struct store_disk *list = NULL;
	size_t count = 0;

	if (store_list_disks(store, NULL, &list, &count, NULL) == 0)
		store_disks_free(list, count);
	return NULL;
}

static void delay_keeps_nobody_else_waiting(void **state)
{
	struct fixture *fixture = *state;
	double start = units_monotonic_seconds();
	struct store_image *images;
	pthread_t thread;
	size_t count;

	store_fake_delay(fixture->store, STORE_FAKE_LIST_DISKS, 1000);
	assert_int_equal(pthread_create(&thread, NULL, list_slowly, fixture->store), 0);
	while (store_fake_calls(fixture->store, STORE_FAKE_LIST_DISKS) == 0)
		;
	must(store_list_images(fixture->store, NULL, &images, &count, why()));
	store_images_free(images, count);
	assert_true(units_monotonic_seconds() - start < 0.9);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static void damaged_chunk_is_refused_until_mended(void **state)
{
	struct fixture *fixture = *state;
	struct store_change change = {.chunk = 0};
	struct store_view *view;
	uint8_t byte = 0;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 5));
	must(commit_byte(fixture, view, 1, 6));
	must(put(fixture, view, 5, &change));
	assert_int_equal(store_fake_damage(fixture->store, change.digest, true), 0);
	assert_int_equal(read_byte(fixture, view, 0, &byte), -EBADMSG);
	assert_non_null(strstr(failure.message, "checksum"));
	must(read_byte(fixture, view, 1, &byte));
	assert_int_equal(byte, 6);
	assert_int_equal(store_fake_damage(fixture->store, change.digest, false), 0);
	must(read_byte(fixture, view, 0, &byte));
	assert_int_equal(byte, 5);
	change.digest[0] ^= 1;
	assert_int_equal(store_fake_damage(fixture->store, change.digest, true), -ENOENT);
	store_view_close(view);
}

/* Live content and the image that has it, neighbours as one range; not the image that hasn't. */
static void check_names_who_has_damaged_chunks(void **state)
{
	const struct store_check_params params = {.deep = true};
	const struct store_image_params image_params = {.label = NULL};
	struct fixture *fixture = *state;
	struct store_check_report report;
	struct store_change change = {.chunk = 0};
	struct store_view *view;
	uint32_t number;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 4));
	must(store_create_image(view, &image_params, &number, why()));
	must(commit_byte(fixture, view, 1, 5));
	must(commit_byte(fixture, view, 2, 5));
	must(store_create_image(view, &image_params, &number, why()));
	must(commit_byte(fixture, view, 1, 6));
	must(put(fixture, view, 5, &change));
	store_view_close(view);
	assert_int_equal(store_fake_damage(fixture->store, change.digest, true), 0);
	must(store_check(fixture->store, &params, &report, why()));
	assert_false(report.is_clean);
	assert_int_equal(report.chunks, 3);
	assert_int_equal(report.damage_count, 2);
	assert_string_equal(report.damages[0].disk, "web01");
	assert_int_equal(report.damages[0].image, 0);
	assert_int_equal(report.damages[0].off_bytes, 2 * CHUNK);
	assert_int_equal(report.damages[0].len_bytes, CHUNK);
	assert_int_equal(report.damages[1].image, 2);
	assert_int_equal(report.damages[1].off_bytes, CHUNK);
	assert_int_equal(report.damages[1].len_bytes, 2 * CHUNK);
	store_check_report_free(&report);
	assert_int_equal(store_fake_damage(fixture->store, change.digest, false), 0);
	must(store_check(fixture->store, &params, &report, why()));
	assert_true(report.is_clean);
	store_check_report_free(&report);
}

/* As in a local store (test_store_check.c). */
static void what_a_repair_marked_is_healed_by_a_commit(void **state)
{
	const struct store_check_params quick = {.deep = false}, repair = {.deep = true, .repair = true};
	const struct store_image_params image_params = {.label = NULL};
	struct fixture *fixture = *state;
	struct store_check_report report;
	struct store_change change = {.chunk = 0};
	struct store_image *images;
	struct store_view *view;
	store_chunk found = 0;
	uint32_t number;
	uint8_t byte;
	size_t count;

	assert_int_equal(store_check(fixture->store, &(struct store_check_params){.repair = true}, &report, why()), -EINVAL);
	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 5));
	must(put(fixture, view, 5, &change));
	must(store_create_image(view, &image_params, &number, why()));
	must(store_find_chunks(fixture->store, &change.digest, 1, &found, why()));
	assert_int_not_equal(found, 0);
	assert_int_equal(store_fake_damage(fixture->store, change.digest, true), 0);
	must(store_check(fixture->store, &repair, &report, why()));
	assert_int_equal(report.repair.waiting_chunks, 1);
	assert_int_equal(report.damage_count, 2);
	store_check_report_free(&report);
	must(store_list_images(fixture->store, NULL, &images, &count, why()));
	assert_true(count == 1 && images[0].damaged);
	store_images_free(images, count);
	must(store_find_chunks(fixture->store, &change.digest, 1, &found, why()));
	assert_int_equal(found, 0);
	assert_int_equal(store_commit(view, &change, 1, NULL, why()), -ESTALE); /* found before, marked since */
	assert_int_equal(read_byte(fixture, view, 0, &byte), -EBADMSG);

	must(commit_byte(fixture, view, 0, 5));
	must(read_byte(fixture, view, 0, &byte));
	assert_int_equal(byte, 5);
	store_view_close(view);
	must(store_check(fixture->store, &quick, &report, why()));
	assert_true(report.is_clean);
	store_check_report_free(&report);
	must(store_list_images(fixture->store, NULL, &images, &count, why()));
	assert_true(count == 1 && !images[0].damaged);
	store_images_free(images, count);
}

static void wrong_digest_is_found_out(void **state)
{
	struct fixture *fixture = *state;
	struct store_encoded encoded;
	struct store_view *view;
	uint8_t bytes[CHUNK] = {1};
	uint8_t digest[DIGEST_BYTES] = {2};
	store_chunk chunk;
	uint64_t new_bytes;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_encode_chunk(fixture->scratch, 1, digest, bytes, CHUNK, &encoded, why()));
	assert_int_equal(store_put_chunk(view, &encoded, &chunk, &new_bytes, why()), -EBADMSG);
	store_view_close(view);
}

static void cleaned_away_chunk_makes_its_commit_stale(void **state)
{
	struct fixture *fixture = *state;
	struct store_change change = {.chunk = 0};
	struct store_view *view;
	store_chunk found;
	uint64_t freed;
	uint32_t number;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 1));
	must(store_create_image(view, &(struct store_image_params){.label = NULL}, &number, why()));
	must(put(fixture, view, 1, &change)); /* only to have its digest */
	must(commit_byte(fixture, view, 0, 2));
	must(store_delete_image(fixture->store, "web01", 1, false, &freed, why()));
	assert_true(freed > 0);
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])change.digest, 1, &found, why()));
	assert_int_not_equal(found, 0); /* dead, and there as long as nobody cleans up */
	assert_int_equal(store_fake_clean(fixture->store), 1);
	change.chunk = found;
	change.first_chunk = 3;
	assert_int_equal(store_commit(view, &change, 1, NULL, why()), -ESTALE);
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])change.digest, 1, &found, why()));
	assert_int_equal(found, 0);
	must(commit_byte(fixture, view, 3, 1));
	store_view_close(view);
	assert_int_equal(byte_after_reopening(fixture, 0), 2);
	assert_int_equal(byte_after_reopening(fixture, 3), 1);
}

static void read_only_store_refuses_changes(void **state)
{
	const struct store_fake_options options = {.read_only = true};
	const struct store_disk_params params = {.name = "web01", .size_bytes = 1, .sector_bytes = 512};
	struct store *store;

	(void)state;
	assert_int_equal(store_fake_new(&options, &store), 0);
	assert_int_equal(store_chunk_bytes(store), STORE_CHUNK_DEFAULT_BYTES);
	assert_int_equal(store_create_disk(store, &params, why()), -EROFS);
	store_close(store);
	assert_int_equal(store_fake_new(&(struct store_fake_options){.chunk_bytes = 65537}, &store), -EINVAL);
	assert_int_equal(store_fake_new(&(struct store_fake_options){.chunk_bytes = 8192}, &store), -EINVAL);
}

static const struct store_round_params round_params = {.source = "s", .source_identity = "i", .how = ""};

static void commit_of_a_round_that_is_over_is_found_out(void **state)
{
	struct fixture *fixture = *state;
	const struct store_round_position position = {.number = 1, .cursor_bytes = CHUNK};
	struct store_round_begun begun;
	struct store_view *view;

	must(open_web01(fixture, VIEW_WRITE, &view));
	assert_int_equal(store_commit(view, NULL, 0, &position, why()), -EINVAL);
	must(store_begin_round(view, &round_params, &begun, why()));
	store_round_begun_free(&begun);
	must(store_commit(view, NULL, 0, &position, why()));
	must(store_finish_round(view, 1, ROUND_DONE, NULL, &position.counts, why()));
	assert_int_equal(store_commit(view, NULL, 0, &position, why()), -EINVAL);
	assert_non_null(strstr(failure.message, "round 1"));
	store_view_close(view);
}

/* --------------------------------------------------------------- power cuts */

static void power_cut_takes_what_was_not_committed(void **state)
{
	struct fixture *fixture = *state;
	struct store_change change = {.chunk = 0};
	struct store_view *view;
	store_chunk found;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 1));
	must(put(fixture, view, 2, &change));
	store_fake_power_cut(fixture->store);
	must(store_find_chunks(fixture->store, (const uint8_t(*)[DIGEST_BYTES])change.digest, 1, &found, why()));
	assert_int_equal(found, 0);
	/* the view is dead, and its lease with it */
	assert_int_equal(commit_byte(fixture, view, 1, 3), -EIO);
	assert_non_null(strstr(failure.message, "web01"));
	assert_int_equal(byte_after_reopening(fixture, 0), 1);
	must(store_remove_disk(fixture->store, "web01", false, why()));
	store_view_close(view);
}

static void power_cut_leaves_notes(void **state)
{
	struct fixture *fixture = *state;
	const struct store_round_position position = {.number = 1, .cursor_bytes = CHUNK};
	struct store_round_begun begun;
	struct store_view *view;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_begin_round(view, &round_params, &begun, why()));
	store_round_begun_free(&begun);
	must(store_note_round(view, 1, "{\"a\":1}", why()));
	must(store_commit(view, NULL, 0, &position, why()));
	must(store_note_round(view, 1, "{\"a\":2}", why()));
	store_fake_power_cut(fixture->store);
	store_view_close(view);
	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_begin_round(view, &round_params, &begun, why()));
	assert_true(begun.resumed);
	assert_int_equal(begun.cursor_bytes, CHUNK);
	assert_string_equal(begun.details, "{\"a\":2}");
	store_round_begun_free(&begun);
	store_view_close(view);
}

static void power_goes_at_the_call_that_was_named(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;

	for (int after = 0; after <= 1; after++) {
		must(open_web01(fixture, VIEW_WRITE, &view));
		store_fake_cut_power_at(fixture->store, STORE_FAKE_COMMIT, 2,
					after ? STORE_FAKE_AFTER : STORE_FAKE_BEFORE);
		must(commit_byte(fixture, view, 0, (uint8_t)(10 + after)));
		assert_int_equal(commit_byte(fixture, view, 1, (uint8_t)(20 + after)), -EIO);
		assert_int_equal(commit_byte(fixture, view, 2, 30), -EIO);
		store_view_close(view);
		assert_int_equal(byte_after_reopening(fixture, 0), 10 + after);
		assert_int_equal(byte_after_reopening(fixture, 1), after ? 21 : 0);
		assert_int_equal(byte_after_reopening(fixture, 2), 0);
	}
}

/*
 * Commits one byte after the other, cuts the power after the n-th, and counts the commits that were acknowledged and
 * are gone. This is what every crash test does in the end.
 */
static unsigned int count_lost_commits(struct fixture *fixture)
{
	unsigned int lost = 0;

	for (unsigned int n = 1; n <= 4; n++) {
		struct store_view *view;

		must(open_web01(fixture, VIEW_WRITE, &view));
		for (unsigned int i = 0; i < n; i++)
			must(commit_byte(fixture, view, i, (uint8_t)(16 * n + i)));
		store_fake_power_cut(fixture->store);
		store_view_close(view);
		for (unsigned int i = 0; i < n; i++)
			lost += byte_after_reopening(fixture, i) != 16 * n + i;
	}
	return lost;
}

static void acknowledged_commits_survive(void **state)
{
	assert_int_equal(count_lost_commits(*state), 0);
}

/* The control: each of the four power cuts takes the last commit with it. */
static void forgotten_commits_are_noticed(void **state)
{
	assert_int_equal(count_lost_commits(*state), 4);
}

static void only_the_last_commit_is_forgotten(void **state)
{
	struct fixture *fixture = *state;
	const struct store_round_position first = {.number = 1, .cursor_bytes = CHUNK, .counts = {.done = 1}};
	const struct store_round_position second = {.number = 1, .cursor_bytes = 2 * CHUNK, .counts = {.done = 2}};
	struct store_round_begun begun;
	struct store_view *view;
	uint32_t number;

	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_begin_round(view, &round_params, &begun, why()));
	store_round_begun_free(&begun);
	must(commit_byte(fixture, view, 0, 1));
	must(store_note_round(view, 1, "{\"a\":1}", why()));
	must(store_commit(view, NULL, 0, &first, why()));
	must(store_note_round(view, 1, "{\"a\":2}", why()));
	must(store_commit(view, NULL, 0, &second, why()));
	store_fake_power_cut(fixture->store);
	store_view_close(view);
	must(open_web01(fixture, VIEW_WRITE, &view));
	must(store_begin_round(view, &round_params, &begun, why()));
	assert_int_equal(begun.cursor_bytes, CHUNK);
	assert_int_equal(begun.counts.done, 1);
	assert_string_equal(begun.details, "{\"a\":2}");
	store_round_begun_free(&begun);
	/* the next promise makes what was before it durable */
	must(commit_byte(fixture, view, 1, 7));
	must(store_create_image(view, &(struct store_image_params){.label = NULL}, &number, why()));
	store_fake_power_cut(fixture->store);
	store_view_close(view);
	assert_int_equal(byte_after_reopening(fixture, 0), 1);
	assert_int_equal(byte_after_reopening(fixture, 1), 7);
}

/* The power goes while threads are at it: they get errors, and the store is whole afterwards. */
static void *commit_until_dead(void *opaque)
{
	struct store_view *view = opaque;
	const struct store_change change = {.chunk_count = 4, .kind = STORE_MAP_NOTHING};

	while (store_commit(view, &change, 1, NULL, NULL) == 0)
		;
	return NULL;
}

static void power_goes_under_running_threads(void **state)
{
	struct fixture *fixture = *state;
	struct store_view *view;
	pthread_t thread;

	for (unsigned int i = 0; i < 20; i++) {
		must(open_web01(fixture, VIEW_WRITE, &view));
		assert_int_equal(pthread_create(&thread, NULL, commit_until_dead, view), 0);
		while (store_fake_calls(fixture->store, STORE_FAKE_COMMIT) < (uint64_t)10 * (i + 1))
			;
		store_fake_power_cut(fixture->store);
		assert_int_equal(pthread_join(thread, NULL), 0);
		store_view_close(view);
	}
	must(open_web01(fixture, VIEW_WRITE, &view));
	must(commit_byte(fixture, view, 0, 1));
	store_view_close(view);
	assert_int_equal(byte_after_reopening(fixture, 0), 1);
}

int main(void)
{
	const struct store_contract_factory factory = {
		.name = "store contract, fake",
		.make = make,
		.reopen = reopen,
		.destroy = destroy,
		.names_holders_of_images = true,
	};
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(calls_and_bytes_are_counted),
		TEST(nth_call_fails_and_no_other),
		TEST(failed_afterwards_took_effect),
		TEST(plan_can_be_dropped),
		TEST(lost_answers_leak_nothing),
		TEST(delayed_call_takes_its_time),
		TEST(delay_keeps_nobody_else_waiting),
		TEST(damaged_chunk_is_refused_until_mended),
		TEST(check_names_who_has_damaged_chunks),
		TEST(what_a_repair_marked_is_healed_by_a_commit),
		TEST(wrong_digest_is_found_out),
		TEST(commit_of_a_round_that_is_over_is_found_out),
		TEST(cleaned_away_chunk_makes_its_commit_stale),
		cmocka_unit_test(read_only_store_refuses_changes),
		TEST(power_cut_takes_what_was_not_committed),
		TEST(power_cut_leaves_notes),
		TEST(power_goes_at_the_call_that_was_named),
		TEST(acknowledged_commits_survive),
		cmocka_unit_test_setup_teardown(forgotten_commits_are_noticed, set_up_forgetful, tear_down),
		cmocka_unit_test_setup_teardown(only_the_last_commit_is_forgotten, set_up_forgetful, tear_down),
		TEST(power_goes_under_running_threads),
	};
#undef TEST

	return store_contract_run(&factory) + cmocka_run_group_tests_name("store fake", tests, NULL, NULL);
}
