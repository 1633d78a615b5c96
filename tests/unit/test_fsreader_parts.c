/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of fsreader/ that no file system is needed for: what a mount writes, laid over the source; numbers for files that have none.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "fsreader/fuse_nodes.h"
#include "fsreader/kernel/overlay.h"

/* ---- overlay ---- */

enum { SOURCE_BYTES = 300 * 1024 + 512, MOVES = 3000 }; /* the last block is a part of one */

struct memory {
	uint8_t data[SOURCE_BYTES];
	unsigned reads;
};

static int read_memory(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct memory *memory = opaque;

	(void)failure;
	assert_true(off_bytes + len_bytes <= SOURCE_BYTES);
	memcpy(buffer, memory->data + off_bytes, len_bytes);
	memory->reads++;
	return 0;
}

static void fill(struct memory *memory)
{
	for (size_t i = 0; i < SOURCE_BYTES; i++)
		memory->data[i] = (uint8_t)(i * 31 >> 3);
	memory->reads = 0;
}

static struct overlay *make_overlay(struct memory *memory)
{
	const struct fsreader_source source = {read_memory, memory, SOURCE_BYTES, 512};
	struct failure failure = {.code = 0};
	struct overlay *overlay = NULL;

	fill(memory);
	if (overlay_make(&source, NULL, &overlay, &failure) < 0)
		fail_msg("%s", failure.message);
	return overlay;
}

static void reads_show_what_was_written_and_the_source_stays(void **state)
{
	static struct memory memory, untouched;
	static uint8_t model[SOURCE_BYTES], got[SOURCE_BYTES];
	struct overlay *overlay = make_overlay(&memory);
	struct fsreader_source source = overlay_source(overlay);
	struct failure failure = {.code = 0};

	(void)state;
	fill(&untouched);
	memcpy(model, memory.data, SOURCE_BYTES);
	srand(5);
	for (int move = 0; move < MOVES; move++) {
		size_t off_bytes = (size_t)rand() % SOURCE_BYTES, len_bytes = (size_t)rand() % 20000;

		if (len_bytes > SOURCE_BYTES - off_bytes)
			len_bytes = SOURCE_BYTES - off_bytes;
		if (move % 3 == 0) {
			memset(model + off_bytes, move, len_bytes);
			assert_int_equal(overlay_write(overlay, model + off_bytes, len_bytes, off_bytes, &failure), 0);
		} else {
			assert_int_equal(source.read(source.opaque, got, len_bytes, off_bytes, &failure), 0);
			assert_memory_equal(got, model + off_bytes, len_bytes);
		}
	}
	assert_memory_equal(memory.data, untouched.data, SOURCE_BYTES);
	overlay_drop(overlay);
	assert_int_equal(source.read(source.opaque, got, SOURCE_BYTES, 0, &failure), 0);
	assert_memory_equal(got, untouched.data, SOURCE_BYTES);
	overlay_free(overlay);
}

static void without_writes_a_read_is_one_read_of_the_source(void **state)
{
	static struct memory memory;
	static uint8_t got[SOURCE_BYTES];
	struct overlay *overlay = make_overlay(&memory);
	struct fsreader_source source = overlay_source(overlay);
	struct failure failure = {.code = 0};

	(void)state;
	assert_int_equal(source.read(source.opaque, got, SOURCE_BYTES, 0, &failure), 0);
	assert_int_equal(memory.reads, 1);
	overlay_free(overlay);
}

static void a_place_for_what_is_written_that_is_none_is_said(void **state)
{
	static struct memory memory;
	const struct fsreader_source source = {read_memory, &memory, SOURCE_BYTES, 512};
	struct failure failure = {.code = 0};
	struct overlay *overlay;

	(void)state;
	assert_int_equal(overlay_make(&source, "/nonexistent", &overlay, &failure), 0);
	assert_int_equal(overlay_write(overlay, "x", 1, 0, &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "/nonexistent"));
	overlay_free(overlay);
}

/* ---- numbers ---- */

static uint64_t add(struct fuse_nodes *nodes, uint64_t parent, const char *name, struct fuse_node *ret_dropped)
{
	const struct fsreader_attr attr = {.mode = 0100444};
	struct fuse_node *node;

	assert_null(fuse_nodes_find_name(nodes, parent, name));
	assert_int_equal(fuse_nodes_add(nodes, &attr, parent, name, &node, ret_dropped), 0);
	assert_ptr_equal(fuse_nodes_find(nodes, node->attr.ino), node);
	assert_ptr_equal(fuse_nodes_find_name(nodes, parent, name), node);
	return node->attr.ino;
}

static void numbers_are_the_same_in_any_order(void **state)
{
	struct fuse_nodes *one = fuse_nodes_make(), *other = fuse_nodes_make();
	struct fuse_node dropped;
	uint64_t etc = add(one, FSREADER_ROOT, "etc", &dropped), passwd = add(one, etc, "passwd", &dropped);

	(void)state;
	assert_true(etc > FSREADER_ROOT && passwd > FSREADER_ROOT && etc != passwd);
	(void)add(other, FSREADER_ROOT, "usr", &dropped);
	assert_true(add(other, etc, "passwd", &dropped) == passwd);
	assert_true(add(other, FSREADER_ROOT, "etc", &dropped) == etc);
	assert_true(add(other, passwd, "etc", &dropped) != etc);
	fuse_nodes_free(one);
	fuse_nodes_free(other);
}

static void when_there_is_no_room_the_oldest_goes_and_the_root_stays(void **state)
{
	struct fuse_nodes *nodes = fuse_nodes_make();
	struct fuse_node dropped;
	uint64_t first = 0;
	char name[16];

	(void)state;
	for (unsigned i = 0; i < FUSE_NODES_MOST - 1; i++) {
		(void)snprintf(name, sizeof(name), "%u", i);
		first = i == 0 ? add(nodes, FSREADER_ROOT, name, &dropped)
			       : (add(nodes, FSREADER_ROOT, name, &dropped), first);
		assert_int_equal(dropped.generation, 0);
	}
	fuse_nodes_find(nodes, first)->generation = 7;
	fuse_nodes_find(nodes, first)->node = 99;
	(void)add(nodes, FSREADER_ROOT, "one more", &dropped);
	assert_int_equal(dropped.generation, 7);
	assert_int_equal(dropped.node, 99);
	assert_null(fuse_nodes_find(nodes, first));
	assert_non_null(fuse_nodes_find(nodes, FSREADER_ROOT));
	for (unsigned i = 0; i < 2 * FUSE_NODES_MOST; i++) {
		(void)snprintf(name, sizeof(name), "again %u", i);
		(void)add(nodes, FSREADER_ROOT, name, &dropped);
	}
	assert_non_null(fuse_nodes_find(nodes, FSREADER_ROOT));
	assert_true(add(nodes, FSREADER_ROOT, "0", &dropped) == first);
	fuse_nodes_free(nodes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_show_what_was_written_and_the_source_stays),
		cmocka_unit_test(without_writes_a_read_is_one_read_of_the_source),
		cmocka_unit_test(a_place_for_what_is_written_that_is_none_is_said),
		cmocka_unit_test(numbers_are_the_same_in_any_order),
		cmocka_unit_test(when_there_is_no_room_the_oldest_goes_and_the_root_stays),
	};

	return cmocka_run_group_tests_name("fsreader's parts", tests, NULL, NULL);
}
