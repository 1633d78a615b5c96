/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a disk is read, when the disk is anything at all: partition tables (libfdisk), signatures (libblkid), maps
 * of ext2/3/4 (libext2fs). Those three are not built for the fuzzer, which sees the planner alone; but what they do to
 * memory that was allocated is seen.
 *
 * Input: a disk (memory_disk.h).
 *
 * Whatever the disk says, the plan covers it from 0 to its end, leaves out only what it may, and says for each what
 * that is: the inside of a gap never touches a partition, the disk's first 16 MiB, or its tail; what is left out of
 * a partition lies in it, and nothing else claims it; with read_all it is nothing.
 */
#include "fuzz.h"

#include <stdio.h>

#include "memory_disk.h"
#include "syncer/plan_internal.h"

enum { HEAD_BYTES = 16 << 20, STEPS_MOST = 2000 };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned int seed);

static bool overlaps(const struct plan_partition *partition, uint64_t first, uint64_t end)
{
	return partition->off_bytes < end && first < partition->off_bytes + partition->len_bytes;
}

static void check_partitions(const struct plan *plan, uint64_t size_bytes)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	const char *type = plan_table_type(plan);

	require(strcmp(type, "gpt") == 0 || strcmp(type, "dos") == 0 || strcmp(type, "none") == 0);
	for (unsigned i = 0; i < count; i++) {
		require(partitions[i].len_bytes > 0 && partitions[i].off_bytes < size_bytes &&
			partitions[i].len_bytes <= size_bytes - partitions[i].off_bytes);
		require(memchr(partitions[i].type, '\0', sizeof(partitions[i].type)) != NULL);
		require(memchr(partitions[i].why_whole, '\0', sizeof(partitions[i].why_whole)) != NULL);
		require(partitions[i].number != 0 || count == 1);
	}
}

static void check_left_out(const struct plan *plan, const struct plan_range *range, uint64_t size_bytes)
{
	uint64_t first = range->off_bytes, end = range->off_bytes + range->len_bytes;
	unsigned count, number = 0, owners = 0, touching = 0;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	bool is_gap = strncmp(range->why, "gap ", 4) == 0;

	(void)sscanf(range->why, "partition %u:", &number);
	for (unsigned i = 0; i < count; i++) {
		if (!overlaps(&partitions[i], first, end))
			continue;
		touching++;
		owners += partitions[i].number == number && first >= partitions[i].off_bytes &&
			  end <= partitions[i].off_bytes + partitions[i].len_bytes;
	}
	if (is_gap)
		require(touching == 0 && count > 0 && first >= HEAD_BYTES && end <= size_bytes - PLAN_EDGE_BYTES);
	else
		require(touching == 1 && owners == 1);
	require(first > 0);
}

/* Asked from somewhere inside, the answer is never a bolder one. */
static void check_inside(struct plan *plan, const struct plan_range *whole)
{
	struct plan_range part;
	uint64_t off_bytes = whole->off_bytes + whole->len_bytes / 2;

	require(plan_next(plan, off_bytes, &part, NULL) == 0);
	require(part.off_bytes == off_bytes && part.len_bytes > 0);
	require(part.kind != PLAN_LEFT_OUT || (whole->kind == PLAN_LEFT_OUT && part.why == whole->why));
}

static void walk(struct plan *plan, const struct memory_disk *disk)
{
	uint64_t size_bytes = disk->source.info.size_bytes, off_bytes = 0;

	for (unsigned step = 0; off_bytes < size_bytes && step < STEPS_MOST; step++) {
		struct failure failure = {.code = 0};
		struct plan_range range;
		uint64_t len_bytes;

		require(plan_next(plan, off_bytes, &range, &failure) == 0);
		require(range.off_bytes == off_bytes && range.len_bytes > 0 &&
			range.len_bytes <= size_bytes - off_bytes);
		require((range.kind == PLAN_LEFT_OUT) == (range.why != NULL));
		if (range.kind == PLAN_LEFT_OUT) {
			require((disk->flags & MEMORY_DISK_READ_ALL) == 0);
			check_left_out(plan, &range, size_bytes);
		}
		if (range.kind == PLAN_HOLE)
			require(!memory_disk_has(disk, off_bytes, range.len_bytes, &len_bytes) &&
				len_bytes == range.len_bytes);
		if (step % 8 == 0)
			check_inside(plan, &range);
		off_bytes += range.len_bytes;
	}
}

/* One in four is left to libFuzzer's own ways, which also make pieces and take them away. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned int seed)
{
	if (seed % 4 == 0 || len_bytes == 0)
		return LLVMFuzzerMutate(data, len_bytes, most_bytes);
	return memory_disk_mutate(data, len_bytes, seed / 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	struct memory_disk disk;
	struct plan *plan = NULL;
	struct plan_options options;
	struct failure failure = {.code = 0};

	memory_disk_make(&disk, &input);
	options = (struct plan_options){.read_all = (disk.flags & MEMORY_DISK_READ_ALL) != 0};
	require(plan_make(&disk.source, &options, &plan, &failure) == 0);
	check_partitions(plan, disk.source.info.size_bytes);
	walk(plan, &disk);
	plan_free(plan);
	return 0;
}
