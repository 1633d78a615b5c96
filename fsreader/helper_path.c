/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Never by $PATH: what is started there parses what strangers made, and is to be ours. WHERRY_LIBEXEC_DIR is set by CMake.
 */
#include "fsreader/helper_path.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_there(const char *folder, const char *name, char ret_path[PATH_MAX])
{
	int len_bytes = snprintf(ret_path, PATH_MAX, "%s/%s", folder, name);

	return len_bytes > 0 && len_bytes < PATH_MAX && access(ret_path, R_OK) == 0;
}

/* The folder that the running program is in; false: not known. */
static bool find_own_folder(char ret_folder[PATH_MAX])
{
	ssize_t len_bytes = readlink("/proc/self/exe", ret_folder, PATH_MAX - 1);
	char *slash;

	if (len_bytes <= 0)
		return false;
	ret_folder[len_bytes] = '\0';
	slash = strrchr(ret_folder, '/');
	if (slash == NULL)
		return false;
	*slash = '\0';
	return true;
}

int helper_path_find(const char *name, char ret_path[PATH_MAX], struct failure *failure)
{
	static const char *const places[] = {"", "/../fsreader", "/../libexec/wherry"};
	char own[PATH_MAX], folder[PATH_MAX], path[PATH_MAX];
	bool is_found = false;

	for (size_t i = 0; find_own_folder(own) && i < sizeof(places) / sizeof(places[0]) && !is_found; i++) {
		int len_bytes = snprintf(folder, sizeof(folder), "%s%s", own, places[i]);

		is_found = len_bytes > 0 && len_bytes < PATH_MAX && is_there(folder, name, path);
	}
	if (!is_found && !is_there(WHERRY_LIBEXEC_DIR, name, path))
		return fail(failure, -ENOENT,
			    "%s: not found beside this program nor in " WHERRY_LIBEXEC_DIR
			    "; install wherry as a whole",
			    name);
	memcpy(ret_path, path, strlen(path) + 1);
	return 0;
}
