/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks shared by key, over a fake store that takes its time to open one.
 */
#include "unit_test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "scratch_folder.h"
#include "store/disk_pool.h"
#include "store/store_fake.h"

enum { SLOW_MS = 300, THREADS = 6 };
#define SIZE ((uint64_t)1 << 20)

static struct scratch_folder scratch;
static struct store *store;
static struct chunk_cache *cache;
static struct disk_pool *pool;
static char notices_heard[1024];

static void hear(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	(void)level;
	(void)snprintf(notices_heard, sizeof(notices_heard), "%s", text);
}
static const struct notices notices = {.say = hear};

static void create(const char *name, const char *mirror_of)
{
	const struct store_disk_params params = {
		.name = name, .size_bytes = SIZE, .sector_bytes = 512, .mirror_of = mirror_of};

	assert_int_equal(store_create_disk(store, &params, NULL), 0);
}

static void make_image(const char *name)
{
	uint32_t number;

	assert_int_equal(store_request_image(store, name, &(struct store_image_params){.consistency = STORE_CLEAN},
					     "test", &number, NULL),
			 0);
}

static int set_up(void **state)
{
	struct disk_pool_options options = {.doing = "test", .notices = &notices};

	(void)state;
	scratch_folder_make(&scratch);
	notices_heard[0] = '\0';
	if (store_fake_new(&(struct store_fake_options){.chunk_bytes = 0}, &store) != 0 ||
	    store_fake_set_files(store, scratch.path) != 0 ||
	    chunk_cache_new(CHUNK_CACHE_LEAST_BYTES, &cache, NULL) != 0)
		return -1;
	options.store = store;
	options.cache = cache;
	create("one", NULL);
	create("two", NULL);
	create("mirror", "/dev/sda");
	make_image("one");
	return disk_pool_new(&options, &pool, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	disk_pool_free(pool);
	chunk_cache_free(cache);
	store_close(store);
	scratch_folder_remove(&scratch);
	return 0;
}

static int acquire(const char *key, const char *text, enum pool_mode mode, struct pooled_disk **ret_pooled,
		   struct failure *failure)
{
	struct store_reference reference;

	assert_int_equal(store_parse_reference(text, &reference, NULL), 0);
	return disk_pool_acquire(pool, key, &reference, mode, ret_pooled, failure);
}

static struct pooled_disk *get(const char *text, enum pool_mode mode)
{
	struct failure failure = {.code = 0};
	struct pooled_disk *pooled = NULL;

	if (acquire(text, text, mode, &pooled, &failure) != 0)
		fail_msg("%s", failure.message);
	return pooled;
}

static void give(struct pooled_disk *pooled)
{
	assert_int_equal(disk_pool_release(pool, pooled, NULL), 0);
}

static void last_one_closes_what_the_first_one_opened(void **state)
{
	struct pooled_disk *first = get("one", POOL_WRITE), *second = get("one", POOL_READ);
	struct disk_options options = {.doing = "another", .cache = cache};
	struct store_reference reference;
	struct disk *disk;

	(void)state;
	assert_ptr_equal(first, second);
	assert_true(disk_is_writable(second->disk));
	give(first);
	assert_int_equal(store_parse_reference("one", &reference, NULL), 0);
	assert_int_equal(disk_open(store, &reference, &options, &disk, NULL), -EBUSY);
	give(second);
	assert_int_equal(disk_open(store, &reference, &options, &disk, NULL), 0);
	assert_int_equal(disk_close(disk, NULL), 0);
}

static void what_cannot_be_written_to_is_read(void **state)
{
	struct failure failure = {.code = 0};
	struct pooled_disk *pooled = NULL;

	(void)state;
	assert_int_equal(acquire("mirror", "mirror", POOL_WRITE, &pooled, &failure), -EPERM);
	assert_non_null(strstr(failure.message, "it mirrors /dev/sda"));
	assert_string_equal(notices_heard, "");
	pooled = get("mirror", POOL_WRITE_OR_READ);
	assert_false(disk_is_writable(pooled->disk));
	assert_non_null(strstr(notices_heard, "read-only: disk mirror: it mirrors /dev/sda"));
	give(pooled);
}

static void overlay_belongs_to_its_key(void **state)
{
	struct pooled_disk *plain = get("one@1", POOL_READ), *first = NULL, *again = NULL, *other = NULL;
	uint8_t byte = 7, found = 1;

	(void)state;
	assert_null(plain->scratch);
	assert_int_equal(acquire("a", "one@1", POOL_OVERLAY, &first, NULL), 0);
	assert_int_equal(acquire("a", "one@1", POOL_OVERLAY, &again, NULL), 0);
	assert_int_equal(acquire("b", "one@1", POOL_OVERLAY, &other, NULL), 0);
	assert_ptr_equal(first, again);
	assert_int_equal(scratch_write(first->scratch, &byte, 1, 5, NULL), 0);
	assert_int_equal(scratch_read(again->scratch, &found, 1, 5, NULL), 0);
	assert_int_equal(found, 7);
	assert_int_equal(scratch_read(other->scratch, &found, 1, 5, NULL), 0);
	assert_int_equal(found, 0);
	assert_int_equal(disk_read(plain->disk, &found, 1, 5, NULL), 0);
	assert_int_equal(found, 0);
	give(first);
	give(again);
	give(other);
	give(plain);
}

static void a_failure_leaves_nothing_behind(void **state)
{
	struct pooled_disk *pooled = NULL;
	char key[POOL_KEY_BYTES + 1];

	(void)state;
	store_fake_fail(store, STORE_FAKE_VIEW_OPEN, 1, -EIO, STORE_FAKE_BEFORE);
	assert_int_equal(acquire("two", "two", POOL_READ, &pooled, NULL), -EIO);
	assert_int_equal(acquire("none", "none", POOL_READ, &pooled, NULL), -ENOENT);
	memset(key, 'k', sizeof(key) - 1);
	key[sizeof(key) - 1] = '\0';
	assert_int_equal(acquire(key, "two", POOL_READ, &pooled, NULL), -ENAMETOOLONG);
	give(get("two", POOL_READ));
}

/* ---- several at once ---- */

static void *open_and_close(void *opaque)
{
	struct store_reference reference;
	struct pooled_disk *pooled;
	uint8_t byte;

	if (store_parse_reference(opaque, &reference, NULL) != 0 ||
	    disk_pool_acquire(pool, opaque, &reference, POOL_WRITE, &pooled, NULL) != 0)
		return opaque;
	if (disk_read(pooled->disk, &byte, 1, 0, NULL) != 0 || disk_pool_release(pool, pooled, NULL) != 0)
		return opaque;
	return NULL;
}

static pthread_barrier_t all_have_it;

static void *open_and_wait(void *opaque)
{
	struct pooled_disk *pooled = get(opaque, POOL_READ);

	(void)pthread_barrier_wait(&all_have_it);
	return disk_pool_release(pool, pooled, NULL) == 0 ? NULL : opaque;
}

static void who_comes_while_it_opens_waits_and_shares(void **state)
{
	char name[] = "one@1";
	pthread_t threads[THREADS];
	uint64_t opened = store_fake_calls(store, STORE_FAKE_VIEW_OPEN);
	void *result;

	(void)state;
	store_fake_delay(store, STORE_FAKE_VIEW_OPEN, SLOW_MS);
	assert_int_equal(pthread_barrier_init(&all_have_it, NULL, THREADS), 0);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, open_and_wait, name), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	assert_int_equal(pthread_barrier_destroy(&all_have_it), 0);
	assert_int_equal(store_fake_calls(store, STORE_FAKE_VIEW_OPEN) - opened, 1);
}

/* While "one" is being opened, which takes long, "two" comes and goes. */
static void who_wants_another_one_does_not_wait(void **state)
{
	char name[] = "one";
	pthread_t thread;
	double began;
	void *result;

	(void)state;
	store_fake_delay(store, STORE_FAKE_VIEW_OPEN, SLOW_MS * 10);
	assert_int_equal(pthread_create(&thread, NULL, open_and_close, name), 0);
	while (store_fake_calls(store, STORE_FAKE_VIEW_OPEN) < 2) /* the image was one */
		(void)sched_yield();
	store_fake_delay(store, STORE_FAKE_VIEW_OPEN, 0);
	began = units_monotonic_seconds();
	give(get("two", POOL_WRITE));
	assert_true(units_monotonic_seconds() - began < SLOW_MS * 5 / 1000.0);
	assert_int_equal(pthread_join(thread, &result), 0);
	assert_null(result);
}

static void *is_refused(void *opaque)
{
	struct store_reference reference;
	struct pooled_disk *pooled;

	if (store_parse_reference(opaque, &reference, NULL) != 0)
		return opaque;
	return disk_pool_acquire(pool, opaque, &reference, POOL_READ, &pooled, NULL) == -EBUSY ? NULL : opaque;
}

static void who_wants_a_busy_one_waits_no_longer_because_others_do(void **state)
{
	char name[] = "one";
	struct disk_options options = {.doing = "another", .cache = cache};
	struct store_reference reference;
	pthread_t threads[THREADS];
	struct disk *disk;
	double began = units_monotonic_seconds();
	void *result;

	(void)state;
	assert_int_equal(store_parse_reference(name, &reference, NULL), 0);
	assert_int_equal(disk_open(store, &reference, &options, &disk, NULL), 0);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, is_refused, name), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	assert_true(units_monotonic_seconds() - began < 5); /* 2 for one; 12 for one after the other */
	assert_int_equal(disk_close(disk, NULL), 0);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(last_one_closes_what_the_first_one_opened),
		TEST(what_cannot_be_written_to_is_read),
		TEST(overlay_belongs_to_its_key),
		TEST(a_failure_leaves_nothing_behind),
		TEST(who_comes_while_it_opens_waits_and_shares),
		TEST(who_wants_another_one_does_not_wait),
		TEST(who_wants_a_busy_one_waits_no_longer_because_others_do),
	};
#undef TEST
	return cmocka_run_group_tests(tests, NULL, NULL);
}
