/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A folder to work in. A process that ends by a find leaves it behind: tests/fuzz/run gives each a TMPDIR that it
 * takes away itself.
 */
#include "fuzz.h"

#include <ftw.h>
#include <unistd.h>

static char folder[256];

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *position)
{
	(void)status;
	(void)position;
	return kind == FTW_DP ? rmdir(path) : unlink(path);
}

static void remove_folder(void)
{
	(void)nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); /* at exit: nobody is left to be told */
}

const char *fuzz_scratch_folder(void)
{
	const char *parent = getenv("TMPDIR");

	if (folder[0] != '\0')
		return folder;
	(void)snprintf(folder, sizeof(folder), "%s/wherry-fuzz-XXXXXX", parent == NULL ? "/tmp" : parent);
	require(mkdtemp(folder) != NULL);
	require(atexit(remove_folder) == 0);
	return folder;
}
