/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree that wherryfs shows, without FUSE, over a local store: nodes and their numbers, listings, files, and what
 * many threads do to it at once.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fusefs/tree.h"
#include "scratch_folder.h"
#include "store/disk.h"

enum { MIB = 1 << 20, IMAGES = 40, THREADS = 6 };

static struct scratch_folder scratch;
static char store_path[300];
static struct store *store;
static struct tree *tree;

/* ---- the store ---- */

static void create(const char *name, uint64_t size_bytes)
{
	const struct store_disk_params params = {.name = name, .size_bytes = size_bytes, .sector_bytes = 512};

	assert_int_equal(store_create_disk(store, &params, NULL), 0);
}

static void make_image(const char *name)
{
	uint32_t number;

	assert_int_equal(store_request_image(store, name, &(struct store_image_params){.consistency = STORE_CLEAN},
					     "test", &number, NULL),
			 0);
}

static void open_tree(const struct tree_options *given)
{
	struct tree_options options = *given;
	struct failure failure = {.code = 0};

	options.store_path = store_path;
	options.cache_bytes = CHUNK_CACHE_LEAST_BYTES;
	options.umask = 077;
	if (tree_open(&options, &tree, &failure) != 0)
		fail_msg("%s", failure.message);
}

static int set_up(void **state)
{
	(void)state;
	scratch_folder_make(&scratch);
	(void)snprintf(store_path, sizeof(store_path), "%s/store", scratch.path);
	if (store_create_local(store_path, STORE_CHUNK_LEAST_BYTES, NULL) != 0 ||
	    store_open_local(store_path, &(struct store_options){.read_only = false}, &store, NULL) != 0)
		return -1;
	create("web01", 3 * MIB);
	make_image("web01");
	make_image("web01");
	open_tree(&(struct tree_options){.uid = 7});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	tree_close(take_ptr(tree));
	store_close(take_ptr(store));
	scratch_folder_remove(&scratch);
	return 0;
}

/* ---- the tree ---- */

static int find(const char *path, struct found *ret_found)
{
	AUTO_FREE char *copy = strdup(path);
	char *rest = copy;
	struct node *folder = tree_root(tree);
	int error = 0;

	*ret_found = (struct found){.node = folder};
	for (char *name; (name = strsep(&rest, "/")) != NULL;) {
		bool is_forever;

		error = tree_lookup(tree, folder, name, ret_found, &is_forever, NULL);
		if (folder != tree_root(tree))
			tree_forget(tree, folder, 1);
		if (error < 0)
			return error;
		folder = ret_found->node;
	}
	return 0;
}

static struct node *node_at(const char *path, struct found *ret_found)
{
	if (find(path, ret_found) < 0)
		fail_msg("there is no %s", path);
	return ret_found->node;
}

static void forget(struct node *node)
{
	tree_forget(tree, node, 1);
}

static ino_t ino_at(const char *path)
{
	struct found found;

	forget(node_at(path, &found));
	return found.stat.st_ino;
}

static struct file *open_at(const char *path, bool write, struct node **ret_node)
{
	struct failure failure = {.code = 0};
	struct found found;
	struct file *file;

	*ret_node = node_at(path, &found);
	if (file_open(tree, *ret_node, write, &file, &failure) != 0)
		fail_msg("%s: %s", path, failure.message);
	return file;
}

static void close_it(struct file *file, struct node *node)
{
	assert_int_equal(file_close(file, NULL), 0);
	forget(node);
}

/* ---- nodes ---- */

static void a_thing_is_one_node_however_often_it_is_found(void **state)
{
	struct found first, second;

	(void)state;
	assert_ptr_equal(node_at("web01/images/1/disk.raw", &first), node_at("web01/images/1/disk.raw", &second));
	assert_int_equal(first.stat.st_size, 3 * MIB);
	assert_int_equal(first.stat.st_mode, S_IFREG | 0400);
	assert_int_equal(first.stat.st_uid, 7);
	assert_true(first.attr_seconds == TREE_FOREVER && first.entry_seconds == TREE_FOREVER);
	tree_forget(tree, first.node, 2);
	forget(node_at("web01/disk.raw", &first));
	assert_int_equal(first.stat.st_mode, S_IFREG | 0600);
	assert_true(first.attr_seconds < 2);
	forget(node_at("web01/images/latest", &first));
	assert_int_equal(first.stat.st_mode & S_IFMT, S_IFLNK);
	assert_true(first.entry_seconds < 2);
}

static void what_is_not_there_is_not_found(void **state)
{
	static const char *const paths[] = {"web",
					    "web01@1",
					    "..",
					    "",
					    "web01/raw",
					    "web01/images/0",
					    "web01/images/3",
					    "web01/images/01",
					    "web01/images/18446744073709551617",
					    "web01/part/1.raw",
					    "web01/part/1.ra",
					    "web01/files",
					    "web01/images/1/files/disk",
					    "web01/images/1/lv",
					    "web01/images/1/images"};
	struct found found;

	(void)state;
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (find(paths[i], &found) != -ENOENT)
			fail_msg("there is %s", paths[i]);
	assert_int_equal(find("web01/disk.raw/x", &found), -ENOTDIR);
}

static void numbers_are_those_of_another_mount_and_of_nothing_else(void **state)
{
	static const char *const paths[] = {"web01",
					    "web01/disk.raw",
					    "web01/layout",
					    "web01/part",
					    "web01/images",
					    "web01/images/1",
					    "web01/images/2",
					    "web01/images/latest",
					    "web01/images/1/disk.raw",
					    "web01/images/2/disk.raw",
					    "web01/images/1/part",
					    "web01/images/1/files",
					    "web01/images/1/info.json"};
	enum { COUNT = sizeof(paths) / sizeof(paths[0]) };
	ino_t numbers[COUNT];

	(void)state;
	for (size_t i = 0; i < COUNT; i++) {
		numbers[i] = ino_at(paths[i]);
		assert_true(numbers[i] > 1);
		for (size_t k = 0; k < i; k++)
			assert_true(numbers[k] != numbers[i]);
	}
	tree_close(tree);
	open_tree(&(struct tree_options){.uid = 8});
	for (size_t i = 0; i < COUNT; i++)
		assert_true(numbers[i] == ino_at(paths[i]));
}

static void a_disk_that_comes_again_is_another_one(void **state)
{
	struct found old, other;
	struct file *file;

	(void)state;
	create("new", MIB);
	(void)node_at("new/disk.raw", &old);
	assert_int_equal(store_remove_disk(store, "new", false, NULL), 0);
	assert_int_equal(tree_getattr(tree, old.node, &other, NULL), -ENOENT);
	create("new", 2 * MIB);
	assert_int_equal(tree_getattr(tree, old.node, &other, NULL), -ENOENT);
	(void)node_at("new/disk.raw", &other);
	assert_ptr_not_equal(old.node, other.node);
	assert_true(old.stat.st_ino != other.stat.st_ino);
	assert_int_equal(other.stat.st_size, 2 * MIB);
	assert_int_equal(file_open(tree, old.node, false, &file, NULL), -ENOENT);
	assert_int_equal(file_open(tree, other.node, false, &file, NULL), 0);
	assert_int_equal(file_close(file, NULL), 0);
	forget(old.node);
	forget(other.node);
}

static void latest_is_another_link_when_it_points_elsewhere(void **state)
{
	AUTO_FREE char *target = NULL;
	struct found old, other;

	(void)state;
	(void)node_at("web01/images/latest", &old);
	make_image("web01");
	(void)node_at("web01/images/latest", &other);
	assert_true(old.stat.st_ino != other.stat.st_ino);
	assert_int_equal(tree_readlink(tree, other.node, &target, NULL), 0);
	assert_string_equal(target, "3");
	forget(old.node);
	forget(other.node);
}

/* ---- listings ---- */

static void listing_goes_on_behind_any_entry(void **state)
{
	char names[IMAGES + 2][16];
	uint64_t cookies[IMAGES + 2], cookie = 0;
	const struct listed *listed;
	struct listing *listing;
	struct found found;
	size_t count = 0;

	(void)state;
	for (unsigned i = 2; i < IMAGES; i++)
		make_image("web01");
	assert_int_equal(listing_open(tree, node_at("web01/images", &found), &listing, NULL), 0);
	while (listing_next(listing, cookie, &listed, NULL) == 0 && listed != NULL) {
		struct found entry;
		char path[64];

		assert_true(count < IMAGES + 1 && listed->cookie > 0);
		(void)snprintf(names[count], sizeof(names[count]), "%s", listed->name);
		cookies[count++] = cookie = listed->cookie;
		(void)snprintf(path, sizeof(path), "web01/images/%s", listed->name);
		assert_true(listed->ino == ino_at(path));
		assert_int_equal(listing_take(listing, &entry), 0);
		assert_true(entry.stat.st_ino == listed->ino && (entry.stat.st_mode & S_IFMT) == listed->type);
		forget(entry.node);
	}
	assert_int_equal(count, IMAGES + 1);
	for (size_t i = count - 1; i > 0; i--) {
		assert_int_equal(listing_next(listing, cookies[i - 1], &listed, NULL), 0);
		assert_string_equal(listed->name, names[i]);
	}
	listing_close(listing);
	forget(found.node);
}

static void listings_name_what_can_be_found(void **state)
{
	static const char *const folders[] = {"web01",	    "web01/images",	    "web01/images/1",
					      "web01/part", "web01/images/1/files", "web01/images/2/part"};

	(void)state;
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		const struct listed *listed;
		struct listing *listing;
		struct found found;

		assert_int_equal(listing_open(tree, node_at(folders[i], &found), &listing, NULL), 0);
		for (uint64_t cookie = 0; listing_next(listing, cookie, &listed, NULL) == 0 && listed != NULL;
		     cookie = listed->cookie) {
			struct found entry;
			bool is_forever;

			assert_int_equal(tree_lookup(tree, found.node, listed->name, &entry, &is_forever, NULL), 0);
			assert_true(entry.stat.st_ino == listed->ino);
			forget(entry.node);
		}
		listing_close(listing);
		forget(found.node);
	}
}

/* ---- files ---- */

static void live_content_is_written_and_read_up_to_its_end(void **state)
{
	struct failure failure = {.code = 0};
	struct node *node;
	struct file *file = open_at("web01/disk.raw", true, &node);
	char text[16] = "";
	size_t done;
	uint64_t at;

	(void)state;
	assert_int_equal(file_caching(file), FILE_CACHE_WHILE_OPEN);
	assert_int_equal(file_write(file, "abcdef", 6, 3 * MIB - 4, false, &done, NULL), 0);
	assert_int_equal(done, 4);
	assert_int_equal(file_write(file, "x", 1, 3 * MIB, false, &done, &failure), -ENOSPC);
	assert_int_equal(file_write(file, "x", 1, INT64_MAX, false, &done, NULL), -ENOSPC);
	assert_int_equal(file_read(file, text, 10, 3 * MIB - 5, &done, NULL), 0);
	assert_int_equal(done, 5);
	assert_memory_equal(text, "\0abcd", 5);
	assert_int_equal(file_read(file, text, 10, 3 * MIB, &done, NULL), 0);
	assert_int_equal(done, 0);
	assert_int_equal(file_seek(file, 0, false, &at, NULL), 0);
	assert_int_equal(at, 3 * MIB - STORE_CHUNK_LEAST_BYTES);
	assert_int_equal(file_seek(file, at, true, &at, NULL), 0);
	assert_int_equal(at, 3 * MIB);
	assert_int_equal(file_seek(file, 3 * MIB, true, &at, NULL), -ENXIO);
	assert_int_equal(file_zero(file, 3 * MIB - 10, 100, true, NULL), 0);
	assert_int_equal(file_zero(file, 4 * MIB, 100, true, NULL), 0);
	assert_int_equal(file_read(file, text, 4, 3 * MIB - 4, &done, NULL), 0);
	assert_memory_equal(text, "\0\0\0\0", 4);
	assert_int_equal(file_flush(file, NULL), 0);
	close_it(file, node);
}

static void image_is_read_only_without_scratch(void **state)
{
	struct failure failure = {.code = 0};
	struct found found;
	struct file *file;
	struct node *node;
	char byte = 1;
	size_t done;

	(void)state;
	assert_int_equal(file_open(tree, node_at("web01/images/1/disk.raw", &found), true, &file, &failure), -EROFS);
	assert_non_null(strstr(failure.message, "web01@1: an image can't be written to"));
	assert_int_equal(file_open(tree, found.node, false, &file, NULL), 0);
	assert_int_equal(file_caching(file), FILE_CACHE_FOREVER);
	assert_int_equal(file_write(file, "x", 1, 0, false, &done, NULL), -EROFS);
	close_it(file, found.node);
	tree_close(tree);
	open_tree(&(struct tree_options){.scratch = true});
	file = open_at("web01/images/1/disk.raw", true, &node);
	assert_int_equal(file_write(file, "x", 1, 0, false, &done, NULL), 0);
	close_it(file, node);
	file = open_at("web01/images/1/disk.raw", false, &node); /* what was written is there as long as the tree is */
	assert_int_equal(file_read(file, &byte, 1, 0, &done, NULL), 0);
	assert_int_equal(byte, 'x');
	close_it(file, node);
	file = open_at("web01/images/2/disk.raw", false, &node);
	assert_int_equal(file_read(file, &byte, 1, 0, &done, NULL), 0);
	assert_int_equal(byte, 0);
	close_it(file, node);
}

static void sizes_cannot_be_changed(void **state)
{
	struct failure failure = {.code = 0};
	struct found found;

	(void)state;
	(void)node_at("web01/disk.raw", &found);
	assert_int_equal(tree_check_size(tree, found.node, 3 * MIB, NULL), 0);
	assert_int_equal(tree_check_size(tree, found.node, 0, &failure), -EPERM);
	assert_non_null(strstr(failure.message, "web01: a disk can't be resized here"));
	forget(found.node);
	(void)node_at("web01/images/1/disk.raw", &found);
	assert_int_equal(tree_check_size(tree, found.node, 0, NULL), -EROFS);
	forget(found.node);
}

static void times_of_live_content_are_never_too_early(void **state)
{
	struct found before, after;
	struct node *node;
	struct file *file;
	size_t done;

	(void)state;
	(void)node_at("web01/disk.raw", &before);
	assert_int_equal(tree_getattr(tree, before.node, &after, NULL), 0);
	assert_memory_equal(&before.stat.st_mtim, &after.stat.st_mtim, sizeof(before.stat.st_mtim));
	file = open_at("web01/disk.raw", true, &node);
	assert_int_equal(file_write(file, "x", 1, 0, true, &done, NULL), 0);
	assert_int_equal(tree_getattr(tree, node, &after, NULL), 0);
	assert_memory_not_equal(&before.stat.st_mtim, &after.stat.st_mtim, sizeof(before.stat.st_mtim));
	close_it(file, node);
	assert_int_equal(tree_getattr(tree, node, &before, NULL), 0);
	/* another process, as it were */
	make_image("web01");
	assert_int_equal(tree_getattr(tree, node, &after, NULL), 0);
	assert_memory_not_equal(&before.stat.st_mtim, &after.stat.st_mtim, sizeof(before.stat.st_mtim));
	forget(node);
}

static void what_is_left_open_is_closed_at_the_end(void **state)
{
	const struct listed *listed;
	struct listing *listing;
	struct found found;
	struct node *node;
	struct file *file = open_at("web01/disk.raw", true, &node);
	char text[4];
	size_t done;

	(void)state;
	assert_int_equal(file_write(file, "left", 4, 0, false, &done, NULL), 0);
	assert_int_equal(listing_open(tree, node_at("web01/images", &found), &listing, NULL), 0);
	assert_int_equal(listing_next(listing, 0, &listed, NULL), 0);
	tree_close(tree);
	open_tree(&(struct tree_options){.only = "web01"});
	file = open_at("web01/disk.raw", false, &node);
	assert_int_equal(file_read(file, text, 4, 0, &done, NULL), 0);
	assert_memory_equal(text, "left", 4);
	close_it(file, node);
}

static void a_part_of_the_tree_can_be_its_root(void **state)
{
	const struct tree_options wrong = {
		.store_path = store_path, .root = "web01/images/7", .cache_bytes = CHUNK_CACHE_LEAST_BYTES};
	struct failure failure = {.code = 0};
	struct tree *none;
	struct found found;
	uint64_t freed_bytes;

	(void)state;
	tree_close(tree);
	open_tree(&(struct tree_options){.root = "web01/images/latest"});
	make_image("web01");
	assert_int_equal(store_delete_image(store, "web01", 2, false, &freed_bytes, NULL), -EBUSY);
	assert_int_equal(store_delete_image(store, "web01", 1, false, &freed_bytes, NULL), 0);
	forget(node_at("disk.raw", &found));
	assert_int_equal(tree_getattr(tree, tree_root(tree), &found, NULL), 0);
	assert_int_equal(find("web01", &found), -ENOENT);
	assert_int_equal(tree_open(&wrong, &none, &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "root=web01/images/7: there is no 7 in it"));
}

/* ---- many at once ---- */

static atomic_uint mistakes;

static void use_randomly(unsigned *random)
{
	static const char *const paths[] = {"web01/disk.raw",	       "web01/images/1/disk.raw",
					    "web01/images/2/part",     "web01/images/latest",
					    "web01/images/2/disk.raw", "web01/images/1/info.json"};
	struct found found, again;
	struct listing *listing;
	const struct listed *listed;
	struct file *file;
	char bytes[100];
	size_t done;

	if (find(paths[rand_r(random) % 6], &found) < 0) {
		mistakes++;
		return;
	}
	mistakes += tree_getattr(tree, found.node, &again, NULL) != 0;
	if (S_ISREG(found.stat.st_mode) && file_open(tree, found.node, false, &file, NULL) == 0) {
		mistakes += file_read(file, bytes, sizeof(bytes), 0, &done, NULL) != 0;
		mistakes += file_close(file, NULL) != 0;
	} else if (S_ISREG(found.stat.st_mode)) {
		mistakes++;
	}
	if (S_ISDIR(found.stat.st_mode) && listing_open(tree, found.node, &listing, NULL) == 0) {
		mistakes += listing_next(listing, 0, &listed, NULL) != 0;
		listing_close(listing);
	}
	tree_forget(tree, found.node, 1);
}

static void *use(void *opaque)
{
	unsigned random = *(unsigned *)opaque;

	for (int i = 0; i < 150; i++)
		use_randomly(&random);
	return NULL;
}

static void many_threads_find_the_same(void **state)
{
	pthread_t threads[THREADS];
	unsigned seeds[THREADS];

	(void)state;
	mistakes = 0;
	for (unsigned i = 0; i < THREADS; i++) {
		seeds[i] = i * 7919 + 1;
		assert_int_equal(pthread_create(&threads[i], NULL, use, &seeds[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(mistakes, 0);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(a_thing_is_one_node_however_often_it_is_found),
		TEST(what_is_not_there_is_not_found),
		TEST(numbers_are_those_of_another_mount_and_of_nothing_else),
		TEST(a_disk_that_comes_again_is_another_one),
		TEST(latest_is_another_link_when_it_points_elsewhere),
		TEST(listing_goes_on_behind_any_entry),
		TEST(listings_name_what_can_be_found),
		TEST(live_content_is_written_and_read_up_to_its_end),
		TEST(image_is_read_only_without_scratch),
		TEST(sizes_cannot_be_changed),
		TEST(times_of_live_content_are_never_too_early),
		TEST(what_is_left_open_is_closed_at_the_end),
		TEST(a_part_of_the_tree_can_be_its_root),
		TEST(many_threads_find_the_same),
	};
#undef TEST
	return cmocka_run_group_tests(tests, NULL, NULL);
}
