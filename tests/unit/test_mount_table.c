/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tools/: the kernel's table of mounts, as it may look; directories that lead there in other ways; and notes of mounts.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "scratch_folder.h"
#include "tools/mount_record.h"
#include "tools/mount_table.h"

/* ---- the table ---- */

static const char table[] = "21 26 0:20 / /proc rw,nosuid shared:12 - proc proc rw\n"
			    "26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
			    "30 26 7:0 / /mnt ro,nosuid - ext4 /dev/loop0 ro\n"
			    "31 26 0:45 / /mnt/two\\040words\\134 rw shared:5 master:6 propagate_from:1 - fuse.wherryfs web01@3/2 rw,user_id=0\n"
			    "32 30 0:46 /below /mnt rw - btrfs /dev/loop1 rw,subvol=/below\n"
			    "not a line of it\n"
			    "33 26 nonsense / /other rw - ext4 /dev/sdb rw\n"
			    "34 26 8:2 / /short rw\n";

static int find(const char *directory, struct mounted *ret_mounted)
{
	AUTO_FREE char *copy = strdup(table);
	AUTO_FCLOSE FILE *file = fmemopen(copy, strlen(copy), "r");

	assert_non_null(file);
	return mount_table_find_in(file, directory, ret_mounted, NULL);
}

static void topmost_mount_of_a_directory_is_found(void **state)
{
	AUTO(mounted_free) struct mounted mounted = {.directory = NULL};

	(void)state;
	assert_int_equal(find("/mnt", &mounted), 0);
	assert_string_equal(mounted.source, "/dev/loop1");
	assert_string_equal(mounted.type, "btrfs");
	assert_int_equal(mounted.minor, 46);
	mounted_free(&mounted);
	assert_int_equal(find("/mnt/two words\\", &mounted), 0);
	assert_string_equal(mounted.type, "fuse.wherryfs");
	assert_string_equal(mounted.source, "web01@3/2");
}

static void what_is_no_mount_is_not_found(void **state)
{
	static const char *const directories[] = {"/mnt/two", "/mn", "/other", "/short", "", "rw"};
	struct mounted mounted = {.directory = NULL};

	(void)state;
	for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]); i++)
		assert_int_equal(find(directories[i], &mounted), -ENOENT);
	assert_null(mounted.directory);
}

static struct scratch_folder make_scratch(void)
{
	struct scratch_folder folder;

	scratch_folder_make(&folder);
	return folder;
}

static void directories_are_named_from_the_root(void **state)
{
	AUTO(scratch_folder_remove) struct scratch_folder scratch = make_scratch();
	const char *folder = scratch.path;
	AUTO_FREE char *real = realpath(folder, NULL);
	char *none = NULL;
	static const char *const endings[] = {"", "/", "//.", "/../%s", "/link"};
	struct failure failure = {.code = 0};
	char path[4096];
	bool is_dead;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/link", folder);
	assert_int_equal(symlink(".", path), 0);
	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		AUTO_FREE char *found = NULL;
		int length = snprintf(path, sizeof(path), "%s", folder);

		if (strcmp(endings[i], "/../%s") == 0)
			(void)snprintf(path + length, sizeof(path) - (size_t)length, "/../%s", strrchr(real, '/') + 1);
		else
			(void)snprintf(path + length, sizeof(path) - (size_t)length, "%s", endings[i]);
		assert_int_equal(mount_table_resolve(path, &found, &is_dead, &failure), 0);
		assert_string_equal(found, real);
		assert_false(is_dead);
	}
	(void)snprintf(path, sizeof(path), "%s/file", folder);
	(void)fclose(fopen(path, "we"));
	assert_int_equal(mount_table_resolve(path, &none, &is_dead, &failure), -ENOTDIR);
	(void)snprintf(path, sizeof(path), "%s/nosuch", folder);
	failure_clear(&failure);
	assert_int_equal(mount_table_resolve(path, &none, &is_dead, &failure), -ENOENT);
}

/* ---- records ---- */

static const struct mount_record example = {.reference = (char[]){"web01@3/2"},
					    .store = (char[]){"/srv/ferry"},
					    .directory = (char[]){"/mnt/a \"quoted\" \xc3\xbc"},
					    .via = VIA_LOOP,
					    .read_only = true,
					    .since = 1234567890};

static void records_come_back_as_they_were(void **state)
{
	AUTO(scratch_folder_remove) struct scratch_folder scratch = make_scratch();
	const char *folder = scratch.path;
	struct failure failure = {.code = 0};
	struct mount_record record, *list;
	size_t count;

	(void)state;
	assert_int_equal(mount_records_list(folder, &list, &count, &failure), 0); /* there are none */
	assert_int_equal(count, 0);
	mount_records_free(list, count);
	assert_int_equal(mount_record_create(folder, &example, &record, &failure), 0);
	record.device = strdup("/dev/loop7");
	assert_int_equal(mount_record_write(&record, &failure), 0);
	assert_int_equal(mount_records_list(folder, &list, &count, &failure), 0);
	assert_int_equal(count, 1);
	assert_string_equal(list[0].reference, example.reference);
	assert_string_equal(list[0].store, example.store);
	assert_string_equal(list[0].directory, example.directory);
	assert_string_equal(list[0].device, "/dev/loop7");
	assert_string_equal(list[0].folder, record.folder);
	assert_int_equal(list[0].via, VIA_LOOP);
	assert_true(list[0].read_only && !list[0].scratch && list[0].since == example.since);
	assert_true(mount_record_is_alive(&list[0])); /* by our own hold */
	assert_int_equal(mount_record_claim(&list[0], 0, &failure), -EBUSY);
	mount_records_free(list, count);
	mount_record_remove(folder, &record);
	mount_record_free(&record);
	assert_int_equal(mount_records_list(folder, &list, &count, NULL), 0);
	assert_int_equal(count, 0);
	mount_records_free(list, count);
}

static void one_record_for_a_directory(void **state)
{
	AUTO(scratch_folder_remove) struct scratch_folder scratch = make_scratch();
	const char *folder = scratch.path;
	struct failure failure = {.code = 0};
	struct mount_record record, second, other = example;
	struct mount_record *list;
	size_t count;

	(void)state;
	assert_int_equal(mount_record_create(folder, &example, &record, &failure), 0);
	assert_int_equal(mount_record_create(folder, &example, &second, &failure), -EBUSY);
	other.directory = (char[]){"/elsewhere"};
	failure_clear(&failure);
	assert_int_equal(mount_record_create(folder, &other, &second, &failure), 0);
	assert_string_not_equal(record.folder, second.folder);
	/* whoever made it is gone, and left it */
	mount_record_free(&record);
	assert_int_equal(mount_records_list(folder, &list, &count, &failure), 0);
	assert_int_equal(count, 2);
	for (size_t i = 0; i < count; i++) {
		if (strcmp(list[i].directory, example.directory) != 0)
			continue;
		assert_false(mount_record_is_alive(&list[i]));
		assert_int_equal(mount_record_claim(&list[i], 0, &failure), 0);
		mount_record_remove(folder, &list[i]);
	}
	mount_records_free(list, count);
	assert_int_equal(mount_record_create(folder, &example, &record, &failure), 0);
	mount_record_remove(folder, &record);
	mount_record_free(&record);
	mount_record_remove(folder, &second);
	mount_record_free(&second);
}

static void what_is_no_record_is_passed_over(void **state)
{
	static const char *const contents[] = {"", "{", "[]", "{\"reference\": 1}", "{\"reference\": \"web01\"}"};
	AUTO(scratch_folder_remove) struct scratch_folder scratch = make_scratch();
	const char *folder = scratch.path;
	struct failure failure = {.code = 0};
	struct mount_record record, *list;
	char path[4096];
	size_t count;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/mounts", folder);
	assert_int_equal(mkdir(path, 0700), 0);
	for (size_t i = 0; i < sizeof(contents) / sizeof(contents[0]); i++) {
		FILE *file;

		(void)snprintf(path, sizeof(path), "%s/mounts/%zu", folder, i + 1);
		assert_int_equal(mkdir(path, 0700), 0);
		(void)snprintf(path, sizeof(path), "%s/mounts/%zu/record", folder, i + 1);
		file = fopen(path, "we");
		assert_non_null(file);
		(void)fputs(contents[i], file);
		assert_int_equal(fclose(file), 0);
	}
	assert_int_equal(mount_records_list(folder, &list, &count, &failure), 0);
	assert_int_equal(count, 0);
	mount_records_free(list, count);
	/* a folder that never got one is used again */
	(void)snprintf(path, sizeof(path), "%s/mounts/1/record", folder);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mount_record_create(folder, &example, &record, &failure), 0);
	assert_string_equal(strrchr(record.folder, '/'), "/1");
	mount_record_remove(folder, &record);
	mount_record_free(&record);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(topmost_mount_of_a_directory_is_found),
		cmocka_unit_test(what_is_no_mount_is_not_found),
		cmocka_unit_test(directories_are_named_from_the_root),
		cmocka_unit_test(records_come_back_as_they_were),
		cmocka_unit_test(one_record_for_a_directory),
		cmocka_unit_test(what_is_no_record_is_passed_over),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
