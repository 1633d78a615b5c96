/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory runs out: the allocation with the number $NO_MEMORY_AT (from 1) gives NULL, and, if NO_MEMORY_FROM_THEN is set,
 * every one after it. With NO_MEMORY_COUNT=FILE the number of allocations is written there at the end.
 *
 * Only what the program itself asks for counts, and what SQLite, zstd and jansson do for it. Other libraries can't be
 * helped: libfdisk 2.38 ends the process by an assertion.
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
#include <string.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);

static atomic_ulong allocations;
static unsigned long fail_at = 0;
static bool fail_from_then;
static struct {
	uintptr_t first, end;
} counted[32];
static unsigned counted_count;

static bool is_counted(uintptr_t caller)
{
	for (unsigned i = 0; i < counted_count; i++)
		if (caller >= counted[i].first && caller < counted[i].end)
			return true;
	return false;
}

/* Where the code is that counts. */
static void find_code(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	while (maps != NULL && fgets(line, sizeof(line), maps) != NULL && counted_count < 32) {
		unsigned long first, end;
		char access[8];

		if (sscanf(line, "%lx-%lx %7s", &first, &end, access) != 3 || strchr(access, 'x') == NULL ||
		    (strstr(line, "/wherry\n") == NULL && strstr(line, "/libsqlite3") == NULL &&
		     strstr(line, "/libzstd") == NULL && strstr(line, "/libjansson") == NULL))
			continue;
		counted[counted_count].first = first;
		counted[counted_count++].end = end;
	}
	if (maps != NULL)
		(void)fclose(maps);
}

__attribute__((constructor)) static void begin(void)
{
	const char *at = getenv("NO_MEMORY_AT");

	fail_from_then = getenv("NO_MEMORY_FROM_THEN") != NULL;
	find_code();
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

static bool is_to_fail(void *caller)
{
	unsigned long number;

	if (!is_counted((uintptr_t)caller))
		return false;
	number = atomic_fetch_add(&allocations, 1) + 1;

	if (fail_at == 0 || number < fail_at || (number > fail_at && !fail_from_then))
		return false;
	errno = ENOMEM;
	return true;
}

__attribute__((visibility("default"))) void *malloc(size_t bytes)
{
	return is_to_fail(__builtin_return_address(0)) ? NULL : __libc_malloc(bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t count, size_t bytes)
{
	return is_to_fail(__builtin_return_address(0)) ? NULL : __libc_calloc(count, bytes);
}

__attribute__((visibility("default"))) void *realloc(void *block, size_t bytes)
{
	return is_to_fail(__builtin_return_address(0)) ? NULL : __libc_realloc(block, bytes);
}
