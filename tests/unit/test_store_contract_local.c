/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of store.h, kept by the store in a folder.
 */
#include "unit_test.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store_contract.h"

static void say(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	(void)level;
	print_message("notice: %s\n", text);
}

static const struct notices notices = {.say = say};
static const struct store_options options = {.notices = &notices};

static int open_in(const struct scratch_folder *folder, struct store **ret_store)
{
	struct failure failure = {.code = 0};
	AUTO_FREE char *path = NULL;
	int error;

	if (asprintf(&path, "%s/store", folder->path) < 0)
		return -ENOMEM;
	error = store_open_local(path, &options, ret_store, &failure);
	if (error != 0)
		print_error("%s\n", failure.message);
	return error;
}

static int make(uint32_t chunk_bytes, void **ret_place, struct store **ret_store)
{
	struct failure failure = {.code = 0};
	struct scratch_folder *folder = calloc(1, sizeof(*folder));
	AUTO_FREE char *path = NULL;
	int error;

	if (folder == NULL)
		return -ENOMEM;
	scratch_folder_make(folder);
	*ret_place = folder; /* from here on destroy() cleans up */
	if (asprintf(&path, "%s/store", folder->path) < 0)
		return -ENOMEM;
	error = store_create_local(path, chunk_bytes, &failure);
	if (error != 0) {
		print_error("%s\n", failure.message);
		return error;
	}
	return open_in(folder, ret_store);
}

static int reopen(void *place, struct store **store)
{
	store_close(*store);
	*store = NULL;
	return open_in(place, store);
}

static void destroy(void *place, struct store *store)
{
	store_close(store);
	if (place != NULL)
		scratch_folder_remove(place);
	free(place);
}

/* Who keeps what was put to put it again, keeps the handle of the last time too; a file that can't grow makes it fail.
 */
static void a_put_that_fails_leaves_the_handle_alone(void **state)
{
	const struct store_reference reference = {.disk = "web01", .which = STORE_LIVE};
	const struct store_disk_params params = {.name = "web01", .size_bytes = 64 << 20, .sector_bytes = 512};
	struct rlimit before, small;
	struct failure failure = {.code = 0};
	struct store_scratch *scratch = NULL;
	struct store_encoded encoded;
	uint8_t digest[DIGEST_BYTES] = {0}, plain[64 << 10];
	store_chunk chunk = 4711;
	uint64_t new_bytes = 42;
	struct store_view *view;
	struct store *store = NULL;
	void *place = NULL;
	int result = make(64 << 10, &place, &store);

	(void)state;
	assert_int_equal(result, 0);
	assert_int_equal(store_create_disk(store, &params, &failure), 0);
	assert_int_equal(store_view_open(store, &reference, VIEW_WRITE, "test", &view, &failure), 0);
	assert_int_equal(store_scratch_new(&scratch, &failure), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 64 << 10;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	for (unsigned i = 0; result == 0 && i < 64; i++) { /* they are buffered at first */
		digest[0] = (uint8_t)i;
		for (size_t at = 0; at < sizeof(plain); at++)
			plain[at] = (uint8_t)rand();
		assert_int_equal(store_encode_chunk(scratch, 3, digest, plain, sizeof(plain), &encoded, &failure), 0);
		chunk = 4711;
		new_bytes = 42;
		result = store_put_chunk(view, &encoded, &chunk, &new_bytes, &failure);
	}
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(result, -EFBIG);
	assert_int_equal(chunk, 4711);
	assert_int_equal(new_bytes, 42);
	store_scratch_free(scratch);
	store_view_close(view);
	destroy(place, store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_put_that_fails_leaves_the_handle_alone)};
	const struct store_contract_factory factory = {
		.name = "store contract, local",
		.make = make,
		.reopen = reopen,
		.destroy = destroy,
	};

	return cmocka_run_group_tests_name("store, local", tests, NULL, NULL) + store_contract_run(&factory);
}
