/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What store.h promises, as tests that any kind of store has to pass.
 *
 * A kind of store brings a factory; store_contract_run() runs the whole suite on
 * stores that it makes, one for each test.
 */
#ifndef WHERRY_TESTS_UNIT_STORE_CONTRACT_H
#define WHERRY_TESTS_UNIT_STORE_CONTRACT_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/*
 * The functions return 0 or a negative errno. `place` is where the store is: a folder, or whatever the factory wants.
 */
struct store_contract_factory {
	const char *name;
	int (*make)(uint32_t chunk_bytes, void **ret_place, struct store **ret_store);
	/* As if another process went on: whatever only this handle knew is gone. All views are closed. */
	int (*reopen)(void *place, struct store **store);
	void (*destroy)(void *place, struct store *store); /* store may be NULL */
	/* Does a refusal say by name who has an image open? Its lease is shared, and not every kind of store knows all
	 * holders. */
	bool names_holders_of_images;
};

/* Returns what cmocka does: the number of failed tests. */
int store_contract_run(const struct store_contract_factory *factory);

/*
 * A seed for random content and changes: $WHERRY_TEST_SEED or another one each time; printed, so that a failed run can
 * be repeated.
 */
unsigned int store_contract_seed(void);

#endif
