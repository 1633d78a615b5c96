/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A catalog in a folder of its own, and a judge of it: catalog_assert_consistent() counts again, from the rows as they
 * stand, what the catalog keeps count of.
 */
#ifndef WHERRY_TESTS_CATALOG_FIXTURE_H
#define WHERRY_TESTS_CATALOG_FIXTURE_H

#include "catalog/internal.h"

struct catalog_fixture {
	char folder[256];
	int locks_fd;
	uint64_t random;
	struct catalog *catalog; /* of catalog_fixture_setup() */
};

/* A new folder with a new catalog in it; nothing is open. */
void catalog_fixture_make(struct catalog_fixture *fixture, uint64_t seed);
void catalog_fixture_remove(struct catalog_fixture *fixture);

/* Fails the test when it can't. `careless`: commits aren't made durable, for tests of something else. */
struct catalog *catalog_fixture_open(struct catalog_fixture *fixture, bool read_only, bool careless);

/*
 * For cmocka: makes a struct of `bytes` bytes, zeros, whose first member is a fixture, with its catalog open
 * (careless); and the end of it.
 */
int catalog_fixture_setup(void **ret_state, size_t bytes, uint64_t seed);
int catalog_fixture_teardown(void **state);

uint64_t catalog_fixture_below(struct catalog_fixture *fixture, uint64_t end);

/* Fails the test with the message unless result is 0. */
#define assert_done(result, failure) assert_done_at(result, failure, __FILE__, __LINE__)
void assert_done_at(int result, const struct failure *failure, const char *file, int line);

void catalog_fixture_begin(struct catalog *catalog);
void catalog_fixture_commit(struct catalog *catalog);
/* What is at one place of a disk; chunk 0: nothing. In a transaction. */
void catalog_fixture_put(struct catalog *catalog, const struct catalog_disk *disk, uint64_t index, uint64_t chunk);

/* A disk of that name and generation 1, in a transaction of its own. */
void catalog_fixture_disk(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk);
/* An image of the disk as it is, whose row is brought up to date. In a transaction. */
void catalog_fixture_image(struct catalog *catalog, struct catalog_disk *disk, struct catalog_image *ret_image);
/* A chunk at the end of a segment, which is begun when there is none. In a transaction. */
uint64_t catalog_fixture_chunk(struct catalog_fixture *fixture, struct catalog *catalog);

/* The first value of the first row; -1: NULL or no row. */
int64_t catalog_fixture_value(struct catalog *catalog, const char *sql);
void catalog_fixture_execute(struct catalog *catalog, const char *sql);

/* References are the entries that name a chunk, live_bytes their records, every chunk is found by its tag. */
void catalog_assert_consistent(struct catalog *catalog);

#endif
