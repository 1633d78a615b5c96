/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of store.h, kept by the store in a folder.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

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

int main(void)
{
	const struct store_contract_factory factory = {
		.name = "store contract, local",
		.make = make,
		.reopen = reopen,
		.destroy = destroy,
	};

	return store_contract_run(&factory);
}
