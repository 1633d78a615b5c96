/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of wherryfs.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fusefs/options.h"
#include "store/disk.h"

enum { MOST_ARGUMENTS = 8, MIB = 1 << 20 };

/* Words of `line`, between blanks. */
static int parse(const char *line, struct fs_options *options, struct failure *failure)
{
	char copy[512], program[] = "wherryfs", *arguments[MOST_ARGUMENTS + 1] = {program}, *rest = copy;
	int count = 1;

	assert_true(strlen(line) < sizeof(copy));
	memcpy(copy, line, strlen(line) + 1);
	for (char *word; (word = strsep(&rest, " ")) != NULL && count < MOST_ARGUMENTS;)
		arguments[count++] = word;
	optind = 0; /* getopt(3) of glibc begins anew */
	return fs_options_parse(count, arguments, options, failure);
}

static struct fs_options must_parse(const char *line)
{
	struct fs_options options;
	struct failure failure = {.code = 0};

	if (parse(line, &options, &failure) != 0)
		fail_msg("%s: %s", line, failure.message);
	return options;
}

static void must_refuse(const char *line, const char *part)
{
	struct fs_options options;
	struct failure failure = {.code = 0};

	if (parse(line, &options, &failure) >= 0)
		fail_msg("%s is taken", line);
	if (strstr(failure.message, part) == NULL)
		fail_msg("%s: \"%s\" lacks \"%s\"", line, failure.message, part);
}

static void little_is_enough(void **state)
{
	struct fs_options options = must_parse("/usr/../ mnt");

	(void)state;
	assert_string_equal(options.store_path, "/");
	assert_string_equal(options.mount_point, "mnt");
	assert_string_equal(options.passed, "");
	assert_ptr_equal(options.tree.store_path, options.store_path);
	assert_true(options.tree.cache_bytes == CHUNK_CACHE_DEFAULT_BYTES && options.tree.umask == 077 &&
		    options.tree.uid == geteuid());
	assert_false(options.allow_other || options.foreground || options.tree.read_only || options.tree.scratch ||
		     options.tree.write_mirror || options.tree.has_uid || options.tree.guards_root);
	fs_options_free(&options);
}

static void ours_are_taken_and_others_passed_on(void **state)
{
	struct fs_options options =
		must_parse("/ mnt -f -o cache=8M,disk=web01,noexec,uid=1234 -o gid=77,allow_other,,fsname=a");

	(void)state;
	assert_true(options.foreground && options.allow_other && options.tree.guards_root);
	assert_true(options.tree.cache_bytes == 8 * MIB && options.tree.uid == 1234 && options.tree.gid == 77);
	assert_true(options.tree.has_uid && options.tree.has_gid && options.tree.umask == 027);
	assert_string_equal(options.tree.only, "web01");
	assert_string_equal(options.passed, "noexec,fsname=a");
	fs_options_free(&options);
	options = must_parse("-o ro,umask=7,root=web01/images/3 / mnt");
	assert_true(options.tree.read_only && options.tree.umask == 07);
	assert_string_equal(options.tree.root, "web01/images/3");
	assert_string_equal(options.passed, "ro");
	fs_options_free(&options);
	options = must_parse("/ mnt -o rw=mirror,scratch");
	assert_true(options.tree.write_mirror && options.tree.scratch);
	fs_options_free(&options);
	options = must_parse("/ mnt -o rw_mirror");
	assert_true(options.tree.write_mirror);
	fs_options_free(&options);
}

/* mount(8) and fstab. `suid` and `dev` come from mount.fuse3, which adds them for root, and must not get through. */
static void what_is_for_others_is_passed_over(void **state)
{
	struct fs_options options = must_parse(
		"/ mnt -s -o "
		"rw,defaults,auto,noauto,user,nofail,_netdev,suid,dev,x-systemd.requires=a,comment=b,nosuid");

	(void)state;
	assert_string_equal(options.passed, "nosuid");
	assert_false(options.tree.read_only);
	fs_options_free(&options);
}

static void help_and_version_take_nothing_else(void **state)
{
	struct fs_options options = must_parse("-h");

	(void)state;
	assert_true(options.wants_help);
	fs_options_free(&options);
	options = must_parse("-V");
	assert_true(options.wants_version);
	fs_options_free(&options);
}

static void mistakes_are_refused(void **state)
{
	(void)state;
	must_refuse("/", "takes a store and a folder");
	must_refuse("/ mnt more", "nothing else");
	must_refuse("/nowhere/at/all mnt", "store /nowhere/at/all: No such file");
	must_refuse("/ mnt -z", "-z: no such option");
	must_refuse("/ mnt -o", "-o: takes options");
	must_refuse("/ mnt -o cache=1M", "not a size of 4 MiB or more");
	must_refuse("/ mnt -o cache", "not a size");
	must_refuse("/ mnt -o uid=no-such-user-here", "neither a number nor a user's name");
	must_refuse("/ mnt -o uid=4294967295", "neither a number");
	must_refuse("/ mnt -o gid=-1", "neither a number");
	must_refuse("/ mnt -o umask=8", "not an octal number");
	must_refuse("/ mnt -o umask=", "not an octal number");
	must_refuse("/ mnt -o disk=Web01", "upper-case");
	must_refuse("/ mnt -o disk=", "takes a value");
	must_refuse("/ mnt -o root", "takes a value");
	must_refuse("/ mnt -o ro,scratch", "which of them");
	must_refuse("/ mnt -o rw=mirror,ro", "which of them");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(little_is_enough),
		cmocka_unit_test(ours_are_taken_and_others_passed_on),
		cmocka_unit_test(what_is_for_others_is_passed_over),
		cmocka_unit_test(help_and_version_take_nothing_else),
		cmocka_unit_test(mistakes_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
