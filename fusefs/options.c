/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What -o may hold: ours; what is known to be the kernel's or libfuse's, which is passed on; what is for mount(8) and
 * those around it, which it leaves in fstab's lines for us to pass over. Anything else is refused by libfuse, which
 * says so.
 *
 * Two are not passed on: `suid` and `dev`, which mount(8)'s helper for FUSE adds for root. What a stranger's disk holds
 * as a program with the rights of root, or as a device, must not become one here.
 */
#include "fusefs/options.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk.h"
#include "store/store.h"

enum { UMASK_DEFAULT = 0077, UMASK_WITH_GROUP = 0027, IDS_MOST_DIGITS = 10 };

struct parsing {
	struct fs_options *options;
	bool has_umask;
	struct failure *failure;
};

/* ---- values ---- */

static int no_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "options: out of memory");
}

static int set_text(struct parsing *parsing, char **text, const char *name, const char *value)
{
	char *copy;

	if (value == NULL || *value == '\0')
		return fail(parsing->failure, -EINVAL, "%s: takes a value, %s=…", name, name);
	copy = strdup(value);
	if (copy == NULL)
		return no_memory(parsing->failure);
	free(*text);
	*text = copy;
	return 0;
}

/* Digits, at most so large that 2^32 - 1, which means no one, isn't reached. */
static bool parse_id(const char *text, uint32_t *ret_id)
{
	size_t digits = strspn(text, "0123456789");
	unsigned long long number;

	if (digits == 0 || digits > IDS_MOST_DIGITS || text[digits] != '\0')
		return false;
	number = strtoull(text, NULL, 10);
	if (number >= UINT32_MAX)
		return false;
	*ret_id = (uint32_t)number;
	return true;
}

static int set_uid(struct parsing *parsing, const char *value)
{
	const struct passwd *user;
	uint32_t id;

	if (value != NULL && parse_id(value, &id)) {
		parsing->options->tree.uid = id;
	} else {
		user = value == NULL ? NULL : getpwnam(value);
		if (user == NULL)
			return fail(parsing->failure, -EINVAL, "uid=%s: neither a number nor a user's name",
				    value != NULL ? value : "");
		parsing->options->tree.uid = user->pw_uid;
	}
	parsing->options->tree.has_uid = true;
	return 0;
}

static int set_gid(struct parsing *parsing, const char *value)
{
	const struct group *group;
	uint32_t id;

	if (value != NULL && parse_id(value, &id)) {
		parsing->options->tree.gid = id;
	} else {
		group = value == NULL ? NULL : getgrnam(value);
		if (group == NULL)
			return fail(parsing->failure, -EINVAL, "gid=%s: neither a number nor a group's name",
				    value != NULL ? value : "");
		parsing->options->tree.gid = group->gr_gid;
	}
	parsing->options->tree.has_gid = true;
	return 0;
}

static int set_umask(struct parsing *parsing, const char *value)
{
	size_t digits = value == NULL ? 0 : strspn(value, "01234567");

	if (digits == 0 || digits > 4 || value[digits] != '\0')
		return fail(parsing->failure, -EINVAL, "umask=%s: not an octal number such as 077",
			    value != NULL ? value : "");
	parsing->options->tree.umask = (mode_t)strtoul(value, NULL, 8) & 0777;
	parsing->has_umask = true;
	return 0;
}

static int set_cache(struct parsing *parsing, const char *value)
{
	if (value != NULL && units_parse_size(value, &parsing->options->tree.cache_bytes) == 0 &&
	    parsing->options->tree.cache_bytes >= CHUNK_CACHE_LEAST_BYTES)
		return 0;
	return fail(parsing->failure, -EINVAL, "cache=%s: not a size of %d MiB or more, such as 256M",
		    value != NULL ? value : "", CHUNK_CACHE_LEAST_BYTES >> 20);
}

static int set_only(struct parsing *parsing, const char *value)
{
	int error = set_text(parsing, &parsing->options->only, "disk", value);

	return error < 0 ? error : store_check_name(value, parsing->failure);
}

/* ---- -o ---- */

static int pass_on(struct parsing *parsing, const char *option)
{
	char *joined;

	if (asprintf(&joined, "%s%s%s", parsing->options->passed, *parsing->options->passed != '\0' ? "," : "",
		     option) < 0)
		return no_memory(parsing->failure);
	free(parsing->options->passed);
	parsing->options->passed = joined;
	return 0;
}

/* In fstab, and not for us. */
static bool is_for_others(const char *option)
{
	static const char *const names[] = {"defaults", "auto",	   "noauto", "user", "nouser", "users", "owner",
					    "group",	"_netdev", "nofail", "suid", "dev",    "rw"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(option, names[i]) == 0)
			return true;
	return strncmp(option, "x-", 2) == 0 || strncmp(option, "X-", 2) == 0 || strncmp(option, "comment=", 8) == 0;
}

static int take_option(struct parsing *parsing, char *option)
{
	struct tree_options *tree = &parsing->options->tree;
	char *value = strchr(option, '=');
	AUTO_FREE char *whole = strdup(option);
	size_t name_bytes = value != NULL ? (size_t)(value - option) : strlen(option);

#define IS(name) (name_bytes == strlen(name) && strncmp(option, (name), name_bytes) == 0)
	if (whole == NULL)
		return no_memory(parsing->failure);
	if (value != NULL)
		value++;
	if (IS("uid"))
		return set_uid(parsing, value);
	if (IS("gid"))
		return set_gid(parsing, value);
	if (IS("umask"))
		return set_umask(parsing, value);
	if (IS("cache"))
		return set_cache(parsing, value);
	if (IS("disk"))
		return set_only(parsing, value);
	if (IS("root"))
		return set_text(parsing, &parsing->options->root, "root", value);
	if (strcmp(option, "rw=mirror") == 0 || strcmp(option, "rw_mirror") == 0)
		tree->write_mirror = true;
	else if (strcmp(option, "scratch") == 0)
		tree->scratch = true;
	else if (strcmp(option, "allow_other") == 0)
		parsing->options->allow_other = true;
	else if (!is_for_others(option)) {
		tree->read_only = tree->read_only || strcmp(option, "ro") == 0;
		return pass_on(parsing, whole);
	}
	return 0;
#undef IS
}

static int take_options(struct parsing *parsing, const char *list)
{
	AUTO_FREE char *copy = strdup(list);
	char *rest = copy;
	int error = copy == NULL ? no_memory(parsing->failure) : 0;

	for (char *option; error == 0 && (option = strsep(&rest, ",")) != NULL;)
		if (*option != '\0')
			error = take_option(parsing, option);
	return error;
}

/* ---- all of it ---- */

void fs_options_print_help(void)
{
	(void)fputs("usage: wherryfs STORE FOLDER [-f] [-o OPTION,...]\n"
		    "\n"
		    "Shows a store's disks, images and their files in FOLDER; wherryfs(1) says how.\n"
		    "Taken away by 'umount FOLDER', or 'fusermount3 -u FOLDER' who isn't root.\n"
		    "\n"
		    "  -f               stays in the foreground (for systemd: Type=notify)\n"
		    "  -o disk=NAME     just this disk\n"
		    "  -o root=PATH     this part of the tree, such as web01/images/latest/files/2\n"
		    "  -o ro            nothing can be written to\n"
		    "  -o rw=mirror     disks that rounds write to can be written to by others, too\n"
		    "  -o scratch       images can be written to, until it is unmounted\n"
		    "  -o cache=SIZE    memory for decompressed content (128M)\n"
		    "  -o allow_other   for others too, as owners and modes have it\n"
		    "  -o uid=, gid=    whose all of it is, files in images too\n"
		    "  -o umask=        taken from the modes of disks and folders (077)\n"
		    "  -h, -V           this help; the version\n"
		    "\n"
		    "Others go to FUSE and the kernel: noexec, fsname=, auto_unmount, ...\n",
		    stdout);
}

static int check_paths(struct fs_options *options, int count, char **paths, struct failure *failure)
{
	if (count != 2)
		return fail(failure, -EINVAL, "%s; 'wherryfs -h' says more",
			    count < 2 ? "takes a store and a folder to mount it on"
				      : "takes a store and a folder, and nothing else");
	options->store_path = realpath(paths[0], NULL);
	if (options->store_path == NULL)
		return fail_errno(failure, -errno, "store %s", paths[0]);
	options->mount_point = strdup(paths[1]);
	return options->mount_point == NULL ? no_memory(failure) : 0;
}

static int check_together(struct parsing *parsing)
{
	struct tree_options *tree = &parsing->options->tree;

	if (tree->scratch && tree->read_only)
		return fail(parsing->failure, -EINVAL, "scratch, and ro: which of them?");
	if (tree->write_mirror && tree->read_only)
		return fail(parsing->failure, -EINVAL, "rw=mirror, and ro: which of them?");
	if (!parsing->has_umask && tree->has_gid)
		tree->umask = UMASK_WITH_GROUP;
	tree->guards_root = parsing->options->allow_other;
	tree->store_path = parsing->options->store_path;
	tree->only = parsing->options->only;
	tree->root = parsing->options->root;
	return 0;
}

static int parse(struct parsing *parsing, int argc, char **argv)
{
	int error = 0, option;

	opterr = 0;
	while (error == 0 && (option = getopt(argc, argv, "fhVo:s")) != -1)
		switch (option) {
		case 'f':
			parsing->options->foreground = true;
			break;
		case 'h':
			parsing->options->wants_help = true;
			return 0;
		case 'V':
			parsing->options->wants_version = true;
			return 0;
		case 'o':
			error = take_options(parsing, optarg);
			break;
		case 's': /* mount(8): pass over options that aren't known; libfuse decides that */
			break;
		default:
			error = fail(parsing->failure, -EINVAL, "-%c: %s; 'wherryfs -h' lists the options", optopt,
				     optopt == 'o' ? "takes options" : "no such option");
		}
	if (error == 0)
		error = check_paths(parsing->options, argc - optind, argv + optind, parsing->failure);
	return error < 0 ? error : check_together(parsing);
}

int fs_options_parse(int argc, char **argv, struct fs_options *ret_options, struct failure *failure)
{
	struct fs_options options = {.tree = {.cache_bytes = CHUNK_CACHE_DEFAULT_BYTES,
					      .uid = geteuid(),
					      .gid = getegid(),
					      .umask = UMASK_DEFAULT},
				     .passed = strdup("")};
	struct parsing parsing = {.options = &options, .failure = failure};
	int error = options.passed == NULL ? no_memory(failure) : parse(&parsing, argc, argv);

	if (error < 0)
		fs_options_free(&options);
	else
		*ret_options = options;
	return error;
}

void fs_options_free(struct fs_options *options)
{
	free(options->store_path);
	free(options->mount_point);
	free(options->only);
	free(options->root);
	free(options->passed);
	*options = (struct fs_options){.store_path = NULL};
}
