/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory runs out: the allocation with the number $NO_MEMORY_AT (from 1) gives NULL, and, if NO_MEMORY_FROM_THEN is set,
 * every one after it. With NO_MEMORY_COUNT=FILE the number of allocations is written there at the end.
 *
 * Built on the allocator's own entry points, so that nothing has to be looked up while there is no memory.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);

static atomic_ulong allocations;
static unsigned long fail_at = 0;
static bool fail_from_then;

__attribute__((constructor)) static void begin(void)
{
	const char *at = getenv("NO_MEMORY_AT");

	fail_from_then = getenv("NO_MEMORY_FROM_THEN") != NULL;
	atomic_store(&allocations, 0);
	fail_at = at == NULL ? 0 : strtoul(at, NULL, 10);
}

__attribute__((destructor)) static void end(void)
{
	const char *path = getenv("NO_MEMORY_COUNT");
	FILE *file;

	fail_at = 0;
	file = path == NULL ? NULL : fopen(path, "w");
	if (file == NULL)
		return;
	(void)fprintf(file, "%lu\n", atomic_load(&allocations));
	(void)fclose(file);
}

static bool is_to_fail(void)
{
	unsigned long number = atomic_fetch_add(&allocations, 1) + 1;

	if (fail_at == 0 || number < fail_at || (number > fail_at && !fail_from_then))
		return false;
	errno = ENOMEM;
	return true;
}

__attribute__((visibility("default"))) void *malloc(size_t bytes)
{
	return is_to_fail() ? NULL : __libc_malloc(bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t count, size_t bytes)
{
	return is_to_fail() ? NULL : __libc_calloc(count, bytes);
}

__attribute__((visibility("default"))) void *realloc(void *block, size_t bytes)
{
	return is_to_fail() ? NULL : __libc_realloc(block, bytes);
}
