/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syncer/meter: what is reported, when, and how fast it is said to be; and syncer/report: lists of ranges, against a
 * bitmap that says the same.
 *
 * WHERRY_TEST_SEED repeats a run.
 */
#include "unit_test.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/meter.h"
#include "syncer/report.h"

/* --------------------------------------------------------------------- tools */

struct told {
	pthread_mutex_t lock;
	unsigned count;
	struct progress last;
	pthread_t last_thread;
};

static void remember(void *opaque, const struct progress *progress)
{
	struct told *told = opaque;

	WITH_LOCK(&told->lock);
	told->count++;
	told->last = *progress;
	told->last_thread = pthread_self();
}

static unsigned told_so_far(struct told *told)
{
	WITH_LOCK(&told->lock);
	return told->count;
}

static struct progress told_last(struct told *told)
{
	WITH_LOCK(&told->lock);
	return told->last;
}

static void sleep_ms(long wait_ms)
{
	struct timespec wait = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000};

	while (nanosleep(&wait, &wait) < 0)
		;
}

static struct operation operation_telling(struct told *told)
{
	return (struct operation){.doing = "test", .progress = remember, .progress_opaque = told};
}

/* --------------------------------------------------------------------- meter */

static void reports_four_times_a_second_and_once_at_the_end(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;
	unsigned before;

	(void)state;
	assert_int_equal(meter_start(&meter, "export", &operation, NULL), 0);
	sleep_ms(1100);
	before = told_so_far(&told);
	assert_in_range(before, 2, 5); /* a slow machine may miss some, never add any */
	meter_add(&meter.total_bytes, 12345);
	meter_add(&meter.done_bytes, 12345);
	meter_stop(&meter);
	assert_in_range(told_so_far(&told), before + 1, before + 2);
	assert_string_equal(told.last.phase, "export");
	assert_int_equal(told.last.total_bytes, 12345);
	assert_int_equal(told.last.done_bytes, 12345);
	assert_true(told.last.remaining_seconds == 0);
	assert_true(pthread_equal(told.last_thread, pthread_self()));
	before = told_so_far(&told);
	meter_stop(&meter);
	sleep_ms(300);
	assert_int_equal(told_so_far(&told), before);
}

static void speed_and_rest_follow_from_what_was_done(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;
	struct progress last;

	(void)state;
	assert_int_equal(meter_start_at(&meter, "sync", &operation, 1000000, 500000, 7, 3, NULL), 0);
	for (int i = 0; i < 10; i++) {
		sleep_ms(100);
		meter_add(&meter.done_bytes, 10000);
	}
	meter_stop(&meter);
	last = told_last(&told);
	/* 100000 bytes in a second or a little more, and not the 500000 from before */
	assert_true(last.bytes_per_second > 30000 && last.bytes_per_second <= 100001);
	assert_true(last.remaining_seconds >= 3.9 && last.remaining_seconds < 14);
	assert_int_equal(last.changed_bytes, 7);
	assert_int_equal(last.sent_bytes, 3);
	assert_true(meter_average_speed(&meter) > 30000 && meter_average_speed(&meter) <= 100001);
	assert_true(meter_elapsed_seconds(&meter) >= 0.99);
}

static void standing_still_is_no_speed_and_unknown_rest(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;

	(void)state;
	assert_int_equal(meter_start_at(&meter, "sync", &operation, 1000, 10, 0, 0, NULL), 0);
	sleep_ms(300);
	meter_stop(&meter);
	assert_true(told.last.bytes_per_second == 0);
	assert_true(told.last.remaining_seconds < 0);
}

static void going_back_is_no_speed(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;

	(void)state;
	assert_int_equal(meter_start_at(&meter, "sync", &operation, 1000, 900, 0, 0, NULL), 0);
	atomic_store(&meter.done_bytes, 100);
	sleep_ms(300);
	meter_stop(&meter);
	assert_true(told.last.bytes_per_second == 0);
	assert_true(meter_average_speed(&meter) == 0);
}

static void old_speed_is_forgotten(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;

	(void)state;
	assert_int_equal(meter_start(&meter, "sync", &operation, NULL), 0);
	meter_add(&meter.total_bytes, 2000);
	meter_add(&meter.done_bytes, 1000);
	sleep_ms(400);
	assert_true(told_last(&told).bytes_per_second > 0);
	sleep_ms(5600);
	assert_true(told_last(&told).bytes_per_second == 0);
	meter_stop(&meter);
}

static void works_without_anybody_to_tell(void **state)
{
	struct operation operation = {.doing = "test"};
	struct meter meter;
	struct meter zeroed;

	(void)state;
	assert_int_equal(meter_start(&meter, "verify", &operation, NULL), 0);
	meter_add(&meter.done_bytes, 5);
	meter_stop(&meter);
	assert_int_equal(meter.done_bytes, 5);
	memset(&zeroed, 0, sizeof(zeroed));
	meter_stop(&zeroed);
}

static void *add_many(void *opaque)
{
	struct meter *meter = opaque;

	for (int i = 0; i < 100000; i++) {
		meter_add(&meter->done_bytes, 3);
		meter_add(&meter->total_bytes, 4);
	}
	return NULL;
}

static void counts_from_many_threads(void **state)
{
	struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct operation operation = operation_telling(&told);
	struct meter meter;
	pthread_t threads[4];

	(void)state;
	assert_int_equal(meter_start(&meter, "sync", &operation, NULL), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, add_many, &meter), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	meter_stop(&meter);
	assert_int_equal(told.last.done_bytes, 1200000);
	assert_int_equal(told.last.total_bytes, 1600000);
}

/* -------------------------------------------------------------------- ranges */

enum { MAP_BYTES = 4096 };

static void check_against_map(const struct range_list *list, const bool map[MAP_BYTES])
{
	uint64_t position = 0;

	for (size_t i = 0; i < list->count; i++) {
		const struct range *range = &list->ranges[i];

		assert_true(range->len_bytes > 0);
		assert_true(i == 0 || range->off_bytes > position); /* not even adjacent */
		for (; position < range->off_bytes; position++)
			assert_false(map[position]);
		for (; position < range->off_bytes + range->len_bytes; position++)
			assert_true(map[position]);
	}
	for (; position < MAP_BYTES; position++)
		assert_false(map[position]);
}

static unsigned test_seed(void)
{
	const char *text = getenv("WHERRY_TEST_SEED");
	unsigned seed = text != NULL ? (unsigned)strtoul(text, NULL, 10) : (unsigned)time(NULL);

	print_message("WHERRY_TEST_SEED=%u\n", seed);
	return seed;
}

static void ranges_in_any_order_are_what_a_bitmap_says(void **state)
{
	unsigned seed = test_seed();

	(void)state;
	for (int round = 0; round < 200; round++) {
		struct range_list list = RANGE_LIST_EMPTY;
		bool map[MAP_BYTES] = {false};
		uint64_t sum_bytes = 0;

		for (int i = 0; i < 60; i++) {
			uint64_t off_bytes = (uint64_t)rand_r(&seed) % (MAP_BYTES - 64);
			uint64_t len_bytes = 1 + (uint64_t)rand_r(&seed) % 63;

			assert_int_equal(range_list_add(&list, off_bytes, len_bytes, NULL), 0);
			memset(map + off_bytes, true, len_bytes);
			check_against_map(&list, map);
		}
		for (int i = 0; i < MAP_BYTES; i++)
			sum_bytes += map[i];
		assert_int_equal(range_list_bytes(&list), sum_bytes);
		range_list_free(&list);
		assert_null(list.ranges);
	}
}

static void a_range_may_end_at_the_end_of_numbers(void **state)
{
	struct range_list list = RANGE_LIST_EMPTY;

	(void)state;
	assert_int_equal(range_list_add(&list, UINT64_MAX - 10, 10, NULL), 0);
	assert_int_equal(range_list_add(&list, 0, 1, NULL), 0);
	assert_int_equal(range_list_add(&list, UINT64_MAX - 20, 10, NULL), 0);
	assert_int_equal(list.count, 2);
	assert_int_equal(list.ranges[1].off_bytes, UINT64_MAX - 20);
	assert_int_equal(list.ranges[1].len_bytes, 20);
	range_list_free(&list);
}

static bool covers(const struct range_list *list, uint64_t off_bytes, uint64_t len_bytes)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->ranges[i].off_bytes <= off_bytes &&
		    off_bytes + len_bytes <= list->ranges[i].off_bytes + list->ranges[i].len_bytes)
			return true;
	return false;
}

static void a_full_list_becomes_coarser_and_loses_nothing(void **state)
{
	const uint64_t step_bytes = 8192;
	struct range_list list = RANGE_LIST_EMPTY;
	size_t count;
	struct range *ranges;

	(void)state;
	for (uint64_t i = 0; i < 3 * (uint64_t)RANGE_LIST_MOST; i++) {
		/* far away ranges among the near ones: those stay apart */
		uint64_t off_bytes = i * step_bytes + (i / 1000 << 40);

		assert_int_equal(range_list_add(&list, off_bytes, 512, NULL), 0);
		assert_true(list.count <= RANGE_LIST_MOST);
	}
	for (uint64_t i = 0; i < 3 * (uint64_t)RANGE_LIST_MOST; i += 997)
		assert_true(covers(&list, i * step_bytes + (i / 1000 << 40), 512));
	assert_true(list.count >= 300);
	assert_true(list.gap_bytes < (uint64_t)1 << 30);
	ranges = range_list_take(&list, &count);
	assert_true(count >= 300);
	assert_int_equal(list.count, 0);
	free(ranges);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reports_four_times_a_second_and_once_at_the_end),
		cmocka_unit_test(speed_and_rest_follow_from_what_was_done),
		cmocka_unit_test(standing_still_is_no_speed_and_unknown_rest),
		cmocka_unit_test(going_back_is_no_speed),
		cmocka_unit_test(old_speed_is_forgotten),
		cmocka_unit_test(works_without_anybody_to_tell),
		cmocka_unit_test(counts_from_many_threads),
		cmocka_unit_test(ranges_in_any_order_are_what_a_bitmap_says),
		cmocka_unit_test(a_range_may_end_at_the_end_of_numbers),
		cmocka_unit_test(a_full_list_becomes_coarser_and_loses_nothing),
	};

	return cmocka_run_group_tests_name("meter", tests, NULL, NULL);
}
