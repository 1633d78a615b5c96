/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A line of mountinfo, proc(5):
 *
 *     36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw,errors=continue
 *     id parent dev root directory options fields… - type source super-options
 *
 * with blanks, tabs, newlines and backslashes in names as \ooo. Of several mounts on one directory the last one in the file is on top.
 */
#include "tools/mount_table.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "tools/programs.h"

void mounted_free(struct mounted *mounted)
{
	free(mounted->directory);
	free(mounted->type);
	free(mounted->source);
	*mounted = (struct mounted){.directory = NULL};
}

static bool is_octal(char digit)
{
	return digit >= '0' && digit <= '7';
}

/* In place. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from != '\0';) {
		if (from[0] == '\\' && is_octal(from[1]) && is_octal(from[2]) && is_octal(from[3])) {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

/* The parts of a line that matter, pointing into it; false for a line of another form. */
static bool take_apart(char *line, struct mounted *ret_parts)
{
	char *device = NULL, *rest = line, *field;

	for (unsigned i = 0; (field = strsep(&rest, " \n")) != NULL && strcmp(field, "-") != 0; i++) {
		if (i == 2)
			device = field;
		else if (i == 4)
			ret_parts->directory = field;
	}
	ret_parts->type = strsep(&rest, " \n");
	ret_parts->source = strsep(&rest, " \n");
	if (device == NULL || ret_parts->source == NULL || sscanf(device, "%u:%u", &ret_parts->major, &ret_parts->minor) != 2)
		return false;
	unescape(ret_parts->directory);
	unescape(ret_parts->type);
	unescape(ret_parts->source);
	return true;
}

static int copy_mounted(const struct mounted *parts, struct mounted *ret_mounted, struct failure *failure)
{
	struct mounted copy = {.directory = strdup(parts->directory),
			       .type = strdup(parts->type),
			       .source = strdup(parts->source),
			       .major = parts->major,
			       .minor = parts->minor};

	mounted_free(ret_mounted);
	*ret_mounted = copy;
	if (copy.directory != NULL && copy.type != NULL && copy.source != NULL)
		return 0;
	mounted_free(ret_mounted);
	return fail(failure, -ENOMEM, "mount table: out of memory");
}

int mount_table_find_in(FILE *file, const char *directory, struct mounted *ret_mounted, struct failure *failure)
{
	AUTO(mounted_free) struct mounted found = {.directory = NULL};
	AUTO_FREE char *line = NULL;
	size_t line_bytes = 0;
	int error = -ENOENT;

	while (getline(&line, &line_bytes, file) >= 0) {
		struct mounted parts = {.directory = NULL};

		if (!take_apart(line, &parts) || strcmp(parts.directory, directory) != 0)
			continue;
		error = copy_mounted(&parts, &found, failure);
		if (error < 0)
			return error;
	}
	if (error == 0) {
		*ret_mounted = found;
		found = (struct mounted){.directory = NULL};
	}
	return error;
}

int mount_table_find(const char *directory, struct mounted *ret_mounted, struct failure *failure)
{
	AUTO_FCLOSE FILE *file = fopen("/proc/self/mountinfo", "re");

	if (file == NULL)
		return fail_errno(failure, -errno, "/proc/self/mountinfo");
	return mount_table_find_in(file, directory, ret_mounted, failure);
}

/* The real path of the folder that it is in, and its name: nothing of the directory itself is asked for. */
static char *resolve_by_parent(const char *directory)
{
	AUTO_FREE char *copy = strdup(directory);
	AUTO_FREE char *parent = NULL;
	char *path = NULL, *slash, *end;

	if (copy == NULL)
		return NULL;
	for (end = copy + strlen(copy); end > copy + 1 && end[-1] == '/';)
		*--end = '\0';
	slash = strrchr(copy, '/');
	if (slash == NULL) {
		parent = realpath(".", NULL);
	} else {
		*slash = '\0';
		parent = realpath(slash == copy ? "/" : copy, NULL);
	}
	if (parent == NULL || asprintf(&path, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, slash == NULL ? copy : slash + 1) < 0)
		return NULL;
	return path;
}

int mount_table_resolve(const char *directory, char **ret_path, bool *ret_is_dead, struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	struct stat status;
	bool is_there = stat(directory, &status) == 0;
	int cause = errno;

	*ret_is_dead = !is_there && cause == ENOTCONN;
	/* -EACCES: root is no exception to who may look into a FUSE mount of somebody's */
	if (!is_there && (cause == ENOTCONN || cause == EACCES || cause == EIO)) {
		path = resolve_by_parent(directory);
	} else {
		path = realpath(directory, NULL);
		if (path != NULL && is_there && !S_ISDIR(status.st_mode))
			return fail(failure, -ENOTDIR, "%s: not a directory", directory);
	}
	if (path == NULL)
		return fail_errno(failure, -errno, "%s", directory);
	*ret_path = take_ptr(path);
	return 0;
}

static bool is_listed(const char *type)
{
	AUTO_FCLOSE FILE *file = fopen("/proc/filesystems", "re");
	AUTO_FREE char *line = NULL;
	size_t line_bytes = 0;

	while (file != NULL && getline(&line, &line_bytes, file) >= 0) {
		const char *tab = strchr(line, '\t');

		line[strcspn(line, "\n")] = '\0';
		if (tab != NULL && tab == line && strcmp(tab + 1, type) == 0) /* "nodev" stands before those without a device */
			return true;
	}
	return false;
}

bool mount_table_kernel_knows(const char *type)
{
	char module[64];

	if (is_listed(type))
		return true;
	(void)snprintf(module, sizeof(module), "fs-%s", type);
	(void)programs_run_quietly((const char *const[]){"modprobe", "-q", module, NULL}); /* the next look says whether it helped */
	return is_listed(type);
}
