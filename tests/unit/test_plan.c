/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syncer/plan: what of a disk is read. Disks are made with sfdisk, mke2fs and mkswap, and judged by dumpe2fs,
 * e2fsck and debugfs. The promise that matters: nothing that those call "in use" is ever left out, whatever
 * was done to the metadata.
 *
 * WHERRY_TEST_SEED repeats a run of the fuzzer, WHERRY_TEST_ROUNDS makes it longer.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/plan.h"
#include "syncer/source.h"

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)

static char directory[256];

/* -------------------------------------------------------------------- tools */

/* A shell command in the test's directory. */
__attribute__((format(printf, 1, 2))) static int try_run(const char *format, ...)
{
	char command[4096];
	va_list arguments;
	int len;

	va_start(arguments, format);
	len = vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	assert_true(len > 0 && (size_t)len < sizeof(command));
	return system(command);
}

#define run(...)                                                    \
	do {                                                        \
		if (try_run(__VA_ARGS__) != 0)                      \
			fail_msg("a command failed: " __VA_ARGS__); \
	} while (0)

static void put_bytes(const char *path, uint64_t off_bytes, const void *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, len_bytes, (off_t)off_bytes), (ssize_t)len_bytes);
}

static void get_bytes(const char *path, uint64_t off_bytes, void *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, bytes, len_bytes, (off_t)off_bytes), (ssize_t)len_bytes);
}

static void flip_bits(const char *path, uint64_t off_bytes, uint8_t bits)
{
	uint8_t byte;

	get_bytes(path, off_bytes, &byte, 1);
	byte ^= bits;
	put_bytes(path, off_bytes, &byte, 1);
}

static uint32_t crc32_of(const uint8_t *bytes, size_t len_bytes)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < len_bytes; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
	}
	return ~crc;
}

/* --------------------------------------------------------------------- plans */

struct told {
	unsigned count;
	char last[512];
};

static void remember(void *opaque, enum notice_level level, const char *text)
{
	struct told *told = opaque;

	(void)level;
	told->count++;
	(void)snprintf(told->last, sizeof(told->last), "%s", text);
}

struct opened {
	struct source *source;
	struct plan *plan;
	struct told told;
	struct notices notices;
};

static void open_plan(struct opened *opened, const char *path, bool read_all)
{
	struct failure failure = {.code = 0};
	struct plan_options options = {.read_all = read_all, .notices = &opened->notices};

	*opened = (struct opened){.notices = {.say = remember, .opaque = &opened->told}};
	if (source_open(path, NULL, &opened->source, &failure) != 0 ||
	    plan_make(opened->source, &options, &opened->plan, &failure) != 0)
		fail_msg("%s: %s", path, failure.message);
}

static void close_plan(struct opened *opened)
{
	plan_free(opened->plan);
	source_close(opened->source);
}

struct walked {
	struct plan_range *ranges;
	size_t count;
	uint64_t size_bytes;
	uint64_t bytes[3]; /* by kind */
};

static void free_walked(struct walked *walked)
{
	free(walked->ranges);
}

#define AUTO_WALKED AUTO(free_walked)

/* Walks a plan, and sees that it covers the source, in order. */
static struct walked walk(struct opened *opened)
{
	struct walked walked = {.size_bytes = source_get_info(opened->source)->size_bytes};
	struct failure failure = {.code = 0};
	size_t capacity = 0;

	for (uint64_t off_bytes = 0; off_bytes < walked.size_bytes;) {
		struct plan_range range;
		if (plan_next(opened->plan, off_bytes, &range, &failure) != 0)
			fail_msg("plan_next at %" PRIu64 ": %s", off_bytes, failure.message);
		assert_int_equal(range.off_bytes, off_bytes);
		assert_true(range.len_bytes > 0 && range.len_bytes <= walked.size_bytes - off_bytes);
		assert_true(range.kind == PLAN_LEFT_OUT ? range.why != NULL : range.why == NULL);
		if (walked.count == capacity) {
			capacity = capacity == 0 ? 256 : capacity * 2;
			walked.ranges = reallocarray(walked.ranges, capacity, sizeof(range));
			assert_non_null(walked.ranges);
		}
		walked.ranges[walked.count++] = range;
		walked.bytes[range.kind] += range.len_bytes;
		off_bytes += range.len_bytes;
	}
	return walked;
}

static struct walked walk_file(const char *path)
{
	struct opened opened;
	struct walked walked;

	open_plan(&opened, path, false);
	walked = walk(&opened);
	close_plan(&opened);
	return walked;
}

/* How many bytes of the range are left out. */
static uint64_t left_out_in(const struct walked *walked, uint64_t first, uint64_t end)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < walked->count; i++) {
		const struct plan_range *range = &walked->ranges[i];
		uint64_t from = range->off_bytes > first ? range->off_bytes : first;
		uint64_t to = range->off_bytes + range->len_bytes < end ? range->off_bytes + range->len_bytes : end;
		if (range->kind == PLAN_LEFT_OUT && from < to)
			sum += to - from;
	}
	return sum;
}

/* A new sparse file with what the plan says is to be read, as a mirror would hold it. */
static void copy_by_walk(const struct walked *walked, const char *from, const char *to)
{
	AUTO_CLOSE int in = open(from, O_RDONLY | O_CLOEXEC);
	AUTO_CLOSE int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	AUTO_FREE uint8_t *buffer = malloc(MIB);

	assert_true(in >= 0 && out >= 0 && buffer != NULL);
	assert_int_equal(ftruncate(out, (off_t)walked->size_bytes), 0);
	for (size_t i = 0; i < walked->count; i++) {
		uint64_t off_bytes = walked->ranges[i].off_bytes;
		uint64_t end_bytes = off_bytes + walked->ranges[i].len_bytes;
		while (walked->ranges[i].kind == PLAN_READ && off_bytes < end_bytes) {
			size_t step_bytes = end_bytes - off_bytes < MIB ? (size_t)(end_bytes - off_bytes) : MIB;
			assert_int_equal(pread(in, buffer, step_bytes, (off_t)off_bytes), (ssize_t)step_bytes);
			assert_int_equal(pwrite(out, buffer, step_bytes, (off_t)off_bytes), (ssize_t)step_bytes);
			off_bytes += step_bytes;
		}
	}
}

static const struct plan_partition *partition_of(const struct opened *opened, unsigned number)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(opened->plan, &count);

	for (unsigned i = 0; i < count; i++)
		if (partitions[i].number == number)
			return &partitions[i];
	fail_msg("no partition %u", number);
	return NULL;
}

static unsigned partition_count(const struct opened *opened)
{
	unsigned count;

	(void)plan_partitions(opened->plan, &count);
	return count;
}

/* ------------------------------------------------------- what dumpe2fs says */

struct free_list {
	struct {
		uint64_t first, end; /* bytes of the file system */
	} * runs;
	size_t count;
	uint64_t block_bytes, block_count;
};

static void free_free_list(struct free_list *list)
{
	free(list->runs);
}

#define AUTO_FREE_LIST AUTO(free_free_list)

static void add_free_run(struct free_list *list, uint64_t first, uint64_t end)
{
	list->runs = reallocarray(list->runs, list->count + 1, sizeof(*list->runs));
	assert_non_null(list->runs);
	list->runs[list->count].first = first * list->block_bytes;
	list->runs[list->count].end = end * list->block_bytes;
	list->count++;
}

/* "  Free blocks: 5-9, 12": with clusters, it is their first blocks that are named. */
static void parse_free_blocks(struct free_list *list, char *text, uint64_t blocks_per_cluster)
{
	char *position = NULL;

	for (char *word = strtok_r(text, ", \n", &position); word != NULL; word = strtok_r(NULL, ", \n", &position)) {
		uint64_t first = 0, last = 0;
		int fields = sscanf(word, "%" SCNu64 "-%" SCNu64, &first, &last);
		assert_true(fields > 0);
		if (fields == 1)
			last = first;
		last = last / blocks_per_cluster * blocks_per_cluster + blocks_per_cluster;
		add_free_run(list, first, last < list->block_count ? last : list->block_count);
	}
}

static struct free_list ask_dumpe2fs(const char *path)
{
	static const char key[] = "  Free blocks: ";
	struct free_list list = {.runs = NULL};
	uint64_t cluster_bytes = 0;
	AUTO_FREE char *line = NULL;
	size_t capacity = 0;
	char command[256];
	FILE *pipe;

	(void)snprintf(command, sizeof(command), "dumpe2fs %s 2>/dev/null", path);
	pipe = popen(command, "re");
	assert_non_null(pipe);
	while (getline(&line, &capacity, pipe) > 0) {
		(void)sscanf(line, "Block size: %" SCNu64, &list.block_bytes);
		(void)sscanf(line, "Block count: %" SCNu64, &list.block_count);
		(void)sscanf(line, "Cluster size: %" SCNu64, &cluster_bytes);
		if (strncmp(line, key, strlen(key)) == 0)
			parse_free_blocks(&list, line + strlen(key),
					  cluster_bytes == 0 ? 1 : cluster_bytes / list.block_bytes);
	}
	assert_int_equal(pclose(pipe), 0);
	assert_true(list.block_count > 0 && list.count > 0);
	return list;
}

/* Nothing in use is left out; nothing long that is free is read. `off_bytes` is where the file system starts. */
static void assert_nothing_lost(const struct walked *walked, const struct free_list *list, uint64_t off_bytes)
{
	uint64_t used_first = 0;

	for (size_t i = 0; i <= list->count; i++) {
		uint64_t used_end = i < list->count ? list->runs[i].first : list->block_count * list->block_bytes;
		uint64_t lost =
			used_first < used_end ? left_out_in(walked, off_bytes + used_first, off_bytes + used_end) : 0;
		if (lost != 0)
			fail_msg("%" PRIu64 " bytes in use are left out in %" PRIu64 "-%" PRIu64, lost, used_first,
				 used_end);
		if (i < list->count)
			used_first = list->runs[i].end;
	}
}

static void assert_free_is_left_out(const struct walked *walked, const struct free_list *list, uint64_t off_bytes)
{
	for (size_t i = 0; i < list->count; i++) {
		uint64_t first = list->runs[i].first;
		uint64_t end = list->runs[i].end;
		if (end - first > MIB &&
		    left_out_in(walked, off_bytes + first, off_bytes + end) + 128 * KIB < end - first)
			fail_msg("free bytes %" PRIu64 "-%" PRIu64 " are read", first, end);
	}
}

/* ------------------------------------------------------------- making disks */

/* A file system with files, some of which were deleted again, so that free blocks hold garbage. */
static void make_ext(const char *path, const char *options, const char *size)
{
	run("rm -f %s && mke2fs -q -F %s -d content %s %s >/dev/null 2>&1", path, options, path, size);
	run("cd content && find . -type f -name '*[aeiou].h' -printf 'rm %%p\\n' | sed 's,rm ./,rm /,' >../deleted && "
	    "cd .. && debugfs -w -f deleted %s >/dev/null 2>&1",
	    path);
	/* Neither mke2fs nor debugfs keeps quotas up to date; that alone is to be corrected, which is status 1. */
	run("e2fsck -fy %s >/dev/null 2>&1; test $? -le 1 && e2fsck -fn %s >/dev/null 2>&1", path, path);
}

static void put_into(const char *part, const char *disk, unsigned first_mib)
{
	run("dd if=%s of=%s bs=1M seek=%u conv=notrunc,sparse status=none", part, disk, first_mib);
}

/* sfdisk, one partition a line. */
static void make_disk(const char *path, const char *size, const char *options, const char *table)
{
	run("rm -f %s && truncate -s %s %s && printf '%s' | sfdisk -q %s %s >/dev/null", path, size, path, table,
	    options, path);
}

static void fill(const char *path, unsigned first_mib, unsigned count_mib)
{
	AUTO_FREE uint8_t *buffer = malloc(MIB);

	assert_non_null(buffer);
	memset(buffer, 0x6b, MIB);
	for (unsigned i = 0; i < count_mib; i++)
		put_bytes(path, (uint64_t)(first_mib + i) * MIB, buffer, MIB);
}

static void assert_read_whole(const char *path, const char *why)
{
	struct opened opened;

	open_plan(&opened, path, false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], 0);
	if (why != NULL) {
		unsigned count;
		const struct plan_partition *partitions = plan_partitions(opened.plan, &count);
		assert_int_equal(count, 1);
		assert_false(partitions[0].by_allocation_map);
		assert_string_equal(partitions[0].why_whole, why);
	}
	close_plan(&opened);
}

/* ------------------------------------------------------------------- tables */

static const char three_partitions[] = "size=64M\\nstart=100M,size=64M\\nstart=300M,size=100M\\n";

static void expect_three_partitions(const char *path, const char *type)
{
	struct opened opened;

	open_plan(&opened, path, false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_string_equal(plan_table_type(opened.plan), type);
	assert_int_equal(partition_count(&opened), 3);
	assert_int_equal(partition_of(&opened, 1)->off_bytes, 1 * MIB);
	assert_int_equal(partition_of(&opened, 1)->len_bytes, 64 * MIB);
	assert_int_equal(partition_of(&opened, 3)->off_bytes, 300 * MIB);
	assert_string_equal(partition_of(&opened, 2)->type, "ext4");
	assert_true(partition_of(&opened, 2)->by_allocation_map);
	assert_string_equal(partition_of(&opened, 3)->type, "swap");
	assert_false(partition_of(&opened, 3)->by_allocation_map);

	assert_int_equal(left_out_in(&walked, 0, 66 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 66 * MIB, 99 * MIB), 33 * MIB);
	assert_int_equal(left_out_in(&walked, 99 * MIB, 100 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 164 * MIB, 165 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 165 * MIB, 299 * MIB), 134 * MIB);
	assert_int_equal(left_out_in(&walked, 299 * MIB, 300 * MIB + 64 * KIB), 0);
	assert_int_equal(left_out_in(&walked, 300 * MIB + 64 * KIB, 400 * MIB - 64 * KIB), 100 * MIB - 128 * KIB);
	assert_int_equal(left_out_in(&walked, 400 * MIB - 64 * KIB, 401 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 401 * MIB, 511 * MIB), 110 * MIB);
	assert_int_equal(left_out_in(&walked, 511 * MIB, 512 * MIB), 0);
	AUTO_FREE_LIST struct free_list list = ask_dumpe2fs("part");
	assert_nothing_lost(&walked, &list, 100 * MIB);
	assert_free_is_left_out(&walked, &list, 100 * MIB);
	close_plan(&opened);
}

static void fill_three_partitions(const char *path)
{
	make_ext("part", "-t ext4", "64M");
	put_into("part", path, 100);
	run("rm -f swap && truncate -s 100M swap && mkswap -q swap 2>/dev/null");
	put_into("swap", path, 300);
}

static void gpt_is_understood(void **state)
{
	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	expect_three_partitions("disk", "gpt");
}

static void mbr_is_understood(void **state)
{
	(void)state;
	make_disk("disk", "512M", "-X dos", three_partitions);
	fill_three_partitions("disk");
	expect_three_partitions("disk", "dos");
}

/* The same for sectors of 4096 bytes, which this sfdisk can't do and fdisk can. */
static void make_disk_of_large_sectors(const char *path, const char *label, const char *kind)
{
	run("rm -f %s && truncate -s 512M %s && "
	    "printf '%s\\nn\\n%s1\\n256\\n+64M\\nn\\n%s2\\n25600\\n+64M\\nn\\n%s3\\n76800\\n+100M\\nw\\n' | "
	    "fdisk -w never -W never -b 4096 %s >/dev/null 2>&1",
	    path, path, label, kind, kind, kind, path);
}

static void gpt_of_large_sectors_is_found_in_a_file(void **state)
{
	(void)state;
	make_disk_of_large_sectors("disk", "g", "");
	fill_three_partitions("disk");
	expect_three_partitions("disk", "gpt");
}

static void mbr_of_large_sectors_is_found_by_what_is_in_its_partitions(void **state)
{
	(void)state;
	make_disk_of_large_sectors("disk", "o", "p\\n");
	fill_three_partitions("disk");
	expect_three_partitions("disk", "dos");
}

static void mbr_of_sectors_of_unknown_size_is_read_whole(void **state)
{
	(void)state;
	make_disk_of_large_sectors("disk", "o", "p\\n");
	assert_read_whole("disk", NULL);
	/* The same table on a disk on which it fits one way only. */
	make_disk("disk", "512M", "-X dos", three_partitions);
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], (33 + 134 + 110) * MIB);
}

static void gpt_with_one_damaged_header_is_understood(void **state)
{
	const uint8_t nothing[512] = {0};

	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	put_bytes("disk", 512 * MIB - 512, nothing, 512);
	expect_three_partitions("disk", "gpt");

	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	flip_bits("disk", 512 + 80, 4); /* the number of entries */
	expect_three_partitions("disk", "gpt");

	flip_bits("disk", 512 * MIB - 512 + 16, 1);
	assert_read_whole("disk", NULL);
}

static void backup_gpt_of_a_disk_that_grew_is_read(void **state)
{
	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	run("truncate -s 1G disk");
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(left_out_in(&walked, 401 * MIB, 1023 * MIB), 622 * MIB - 64 * KIB);
	assert_int_equal(left_out_in(&walked, 512 * MIB - 33 * KIB / 2, 512 * MIB), 0);
}

/* A header with a right checksum that speaks of 2^32 entries, or of entries far outside. */
static void gpt_that_lies_about_its_entries_does_no_harm(void **state)
{
	static const struct {
		unsigned off;
		uint32_t value;
	} lies[] = {{80, UINT32_MAX}, {84, UINT32_MAX}, {80, 0},  {84, 0},
		    {72, UINT32_MAX}, {76, UINT32_MAX}, {32, 77}, {36, UINT32_MAX}};
	uint8_t header[92];

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		make_disk("disk", "512M", "-X gpt", three_partitions);
		fill("disk", 200, 1);
		get_bytes("disk", 512, header, sizeof(header));
		bytes_put_le32(header + lies[i].off, lies[i].value);
		memset(header + 16, 0, 4);
		bytes_put_le32(header + 16, crc32_of(header, sizeof(header)));
		put_bytes("disk", 512, header, sizeof(header));
		AUTO_WALKED struct walked walked = walk_file("disk");
		assert_int_equal(left_out_in(&walked, 0, 66 * MIB), 0);
	}
}

static void logical_partitions_and_their_ebrs_are_found(void **state)
{
	struct opened opened;

	(void)state;
	make_disk("disk", "1G", "-X dos",
		  "size=64M\\nstart=100M,size=900M,type=5\\nstart=120M,size=50M\\nstart=300M,size=64M\\n"
		  "start=800M,size=100M\\n");
	make_ext("part", "-t ext4", "64M");
	put_into("part", "disk", 300);
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(partition_count(&opened), 4);
	assert_int_equal(partition_of(&opened, 5)->off_bytes, 120 * MIB);
	assert_int_equal(partition_of(&opened, 6)->off_bytes, 300 * MIB);
	assert_true(partition_of(&opened, 6)->by_allocation_map);
	assert_int_equal(partition_of(&opened, 7)->len_bytes, 100 * MIB);
	/* Whatever sfdisk put the EBRs at is there again. */
	copy_by_walk(&walked, "disk", "copy");
	run("sfdisk -d disk >a 2>/dev/null && sfdisk -d copy >b && sed -i /^device/d a b && sed 's/copy/disk/' b | cmp "
	    "a -");
	assert_int_equal(left_out_in(&walked, 171 * MIB, 299 * MIB), 128 * MIB - 0);
	close_plan(&opened);
}

/* An EBR at a sector, with a partition 1 sector behind it, and a link to another EBR. */
static void put_ebr(const char *path, uint32_t container, uint32_t at, uint32_t next, uint32_t sectors)
{
	uint8_t ebr[512] = {0};

	ebr[446 + 4] = 0x83;
	bytes_put_le32(ebr + 446 + 8, 1);
	bytes_put_le32(ebr + 446 + 12, sectors);
	if (next != 0) {
		ebr[462 + 4] = 5;
		bytes_put_le32(ebr + 462 + 8, next - container);
		bytes_put_le32(ebr + 462 + 12, sectors + 1);
	}
	ebr[510] = 0x55;
	ebr[511] = 0xaa;
	put_bytes(path, (uint64_t)at * 512, ebr, sizeof(ebr));
}

static void broken_chain_of_ebrs_has_its_container_read(void **state)
{
	const uint32_t start = 100 * 2048;

	(void)state;
	make_disk("disk", "1G", "-X dos", "size=64M\\nstart=100M,size=800M,type=5\\n");
	put_ebr("disk", start, start, start + 204800, 100);
	put_ebr("disk", start, start + 204800, start + 102400, 100);
	put_ebr("disk", start, start + 102400, start + 204800, 100); /* back again */
	AUTO_WALKED struct walked cycle = walk_file("disk");
	assert_int_equal(left_out_in(&cycle, 100 * MIB, 900 * MIB), 0);
	assert_int_equal(left_out_in(&cycle, 900 * MIB, 1024 * MIB), 122 * MIB);

	put_ebr("disk", start, start + 102400, start + 4000000, 100); /* out of the disk */
	AUTO_WALKED struct walked outside = walk_file("disk");
	assert_int_equal(left_out_in(&outside, 100 * MIB, 900 * MIB), 0);

	for (uint32_t i = 0; i < 200; i++) /* without an end */
		put_ebr("disk", start, start + i * 4096, start + (i + 1) * 4096, 1000);
	AUTO_WALKED struct walked endless = walk_file("disk");
	assert_int_equal(left_out_in(&endless, 100 * MIB, 900 * MIB), 0);
}

/* libfdisk reads 60 partitions at most. */
static void more_logical_partitions_than_libfdisk_reads_are_read(void **state)
{
	const uint32_t start = 100 * 2048;

	(void)state;
	make_disk("disk", "1G", "-X dos", "size=64M\\nstart=100M,size=800M,type=5\\n");
	for (uint32_t i = 0; i < 100; i++)
		put_ebr("disk", start, start + i * 16384, i == 99 ? 0 : start + (i + 1) * 16384, 10000);
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(left_out_in(&walked, 100 * MIB, 897 * MIB), 0);
}

static void entries_that_libfdisk_passes_over_are_read(void **state)
{
	uint8_t entry[16] = {0};

	(void)state;
	make_disk("disk", "512M", "-X dos", three_partitions);
	bytes_put_le32(entry + 8, 420 * 2048);
	bytes_put_le32(entry + 12, 50 * 2048); /* its type is 0: the kernel makes a partition of it */
	put_bytes("disk", 446 + 48, entry, sizeof(entry));
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(left_out_in(&walked, 400 * MIB, 471 * MIB), 18 * MIB);
	assert_int_equal(left_out_in(&walked, 420 * MIB, 470 * MIB), 0);
}

static void hybrid_mbr_adds_what_is_read(void **state)
{
	uint8_t entry[16] = {0};
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	entry[4] = 0x83;
	bytes_put_le32(entry + 8, 420 * 2048);
	bytes_put_le32(entry + 12, 50 * 2048);
	put_bytes("disk", 446 + 16, entry, sizeof(entry));
	bytes_put_le32(entry + 8, 100 * 2048); /* the same as partition 2 of the GPT: nothing new */
	bytes_put_le32(entry + 12, 64 * 2048);
	put_bytes("disk", 446 + 32, entry, sizeof(entry));
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_string_equal(plan_table_type(opened.plan), "gpt");
	assert_int_equal(left_out_in(&walked, 420 * MIB, 470 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 402 * MIB, 419 * MIB), 17 * MIB);
	assert_true(left_out_in(&walked, 100 * MIB, 164 * MIB) > 10 * MIB);
	close_plan(&opened);
}

static void gpt_without_partitions_and_hybrid_mbr_is_read_whole(void **state)
{
	uint8_t entry[16] = {[4] = 0x0c};

	(void)state;
	make_disk("disk", "512M", "", "label: gpt\\n");
	bytes_put_le32(entry + 8, 200 * 2048);
	bytes_put_le32(entry + 12, 50 * 2048);
	put_bytes("disk", 446 + 16, entry, sizeof(entry));
	assert_read_whole("disk", NULL);
}

static void protective_mbr_without_gpt_is_read_whole(void **state)
{
	const uint8_t nothing[512] = {0};
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	put_bytes("disk", 512, nothing, sizeof(nothing));
	put_bytes("disk", 512 * MIB - 512, nothing, sizeof(nothing));
	/* A small protective partition must not make a gap of the rest. */
	put_bytes("disk", 446 + 12, "\x00\x08\x00\x00", 4);
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], 0);
	assert_string_equal(plan_table_type(opened.plan), "none");
	assert_int_equal(opened.told.count, 1);
	close_plan(&opened);
}

static void head_of_the_disk_is_no_gap(void **state)
{
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X dos", "start=1M,size=1M\\nstart=100M,size=64M\\n");
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(left_out_in(&walked, 0, 16 * MIB), 0); /* also behind a small first partition */
	assert_int_equal(left_out_in(&walked, 16 * MIB, 100 * MIB), 83 * MIB);
	close_plan(&opened);
}

static void other_kinds_of_tables_are_read_whole(void **state)
{
	(void)state;
	make_disk("disk", "512M", "", "label: sun\\n");
	assert_read_whole("disk", NULL);
	make_disk("disk", "512M", "", "label: sgi\\n");
	assert_read_whole("disk", NULL);
	make_disk("disk", "512M", "", "label: gpt\\n"); /* without a partition */
	assert_read_whole("disk", NULL);
	make_disk("disk", "512M", "", "label: dos\\n");
	assert_read_whole("disk", NULL);
}

static void overlapping_partitions_are_read(void **state)
{
	uint8_t entry[16];
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X dos", three_partitions);
	fill_three_partitions("disk");
	get_bytes("disk", 446 + 16, entry, sizeof(entry));
	bytes_put_le32(entry + 8, bytes_get_le32(entry + 8) + 40 * 2048);
	put_bytes("disk", 446 + 48, entry, sizeof(entry));
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_false(partition_of(&opened, 2)->by_allocation_map);
	assert_string_equal(partition_of(&opened, 2)->why_whole, "overlaps another partition");
	assert_int_equal(left_out_in(&walked, 100 * MIB, 204 * MIB), 0);
	assert_int_equal(left_out_in(&walked, 204 * MIB, 300 * MIB), 94 * MIB);
	close_plan(&opened);
}

static void partition_beyond_the_end_is_cut_off(void **state)
{
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X dos", three_partitions);
	fill_three_partitions("disk");
	run("truncate -s 350M disk");
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(partition_of(&opened, 3)->len_bytes, 50 * MIB);
	assert_int_equal(left_out_in(&walked, 300 * MIB, 350 * MIB), 0); /* a swap that says it is larger */
	close_plan(&opened);

	run("truncate -s 130M disk");
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked shorter = walk(&opened);
	assert_int_equal(partition_count(&opened), 2);
	assert_string_equal(partition_of(&opened, 2)->why_whole, "larger than its partition");
	assert_int_equal(left_out_in(&shorter, 100 * MIB, 130 * MIB), 0);
	close_plan(&opened);
}

static void table_and_file_system_in_one_place_are_read_whole(void **state)
{
	(void)state;
	make_ext("disk", "-t ext4", "256M");
	run("echo 'start=100M,size=50M' | sfdisk -q -X dos --wipe never disk >/dev/null 2>&1");
	assert_read_whole("disk", "the disk's layout isn't clear");
}

static void boot_sector_of_a_file_system_is_no_table(void **state)
{
	(void)state;
	make_ext("disk", "-t ext4", "256M");
	put_bytes("disk", 510, "\x55\xaa", 2);
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_true(walked.bytes[PLAN_LEFT_OUT] > 100 * (uint64_t)MIB);
}

static void tiny_sources_are_read(void **state)
{
	static const unsigned sizes[] = {1, 511, 512, 513, 1023, 1536, 2048, 4095, 4096, 65537, 1048575};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		run("rm -f disk && head -c %u /dev/urandom >disk", sizes[i]);
		AUTO_WALKED struct walked walked = walk_file("disk");
		assert_int_equal(walked.bytes[PLAN_READ], sizes[i]);
	}
}

/* --------------------------------------------------------------------- swap */

static void hibernated_system_is_read_whole(void **state)
{
	struct opened opened;

	(void)state;
	run("rm -f disk && truncate -s 100M disk && mkswap -q disk 2>/dev/null");
	AUTO_WALKED struct walked before = walk_file("disk");
	assert_int_equal(before.bytes[PLAN_LEFT_OUT], 100 * MIB - 128 * KIB);
	put_bytes("disk", 4096 - 10, "S1SUSPEND\0", 10);
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], 0);
	assert_string_equal(partition_of(&opened, 0)->type, "swsuspend");
	close_plan(&opened);
}

static void what_lies_behind_a_swap_area_is_read(void **state)
{
	(void)state;
	run("rm -f disk && truncate -s 50M disk && mkswap -q disk 2>/dev/null && truncate -s 100M disk");
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(left_out_in(&walked, 0, 50 * MIB), 50 * MIB - 128 * KIB);
	assert_int_equal(left_out_in(&walked, 50 * MIB, 100 * MIB), 0);
	flip_bits("disk", 1024, 3); /* a version that isn't known */
	assert_read_whole("disk", NULL);
}

/* ---------------------------------------------------------------------- ext */

static void assert_files_survive(const char *path, const struct walked *walked)
{
	copy_by_walk(walked, path, "copy");
	run("e2fsck -fn copy >/dev/null 2>&1");
	run("rm -rf a b && mkdir a b && debugfs -R 'rdump / a' %s >/dev/null 2>&1 && "
	    "debugfs -R 'rdump / b' copy >/dev/null 2>&1 && diff -r a b && test -n \"$(ls a)\"",
	    path);
}

static void used_blocks_are_read_and_free_ones_are_not(void **state)
{
	static const char *const options[] = {
		"-t ext4",
		"-t ext4 -O ^metadata_csum",
		"-t ext4 -O ^metadata_csum,^uninit_bg",
		"-t ext4 -O ^64bit",
		"-t ext4 -O bigalloc",
		"-t ext4 -b 1024 -O bigalloc -C 16384",
		"-t ext4 -O bigalloc,^metadata_csum,^flex_bg -C 65536",
		"-t ext4 -b 1024",
		"-t ext4 -b 2048 -G 4",
		"-t ext4 -b 65536",
		"-t ext4 -O ^has_journal",
		"-t ext4 -O ^flex_bg",
		"-t ext4 -O ^flex_bg,^resize_inode -g 1024",
		"-t ext4 -O meta_bg,^resize_inode",
		"-t ext4 -b 1024 -O meta_bg,^resize_inode -g 512",
		"-t ext4 -O sparse_super2",
		"-t ext4 -O ^sparse_super,^resize_inode -g 8192",
		"-t ext4 -E lazy_itable_init=1",
		"-t ext4 -O quota,project,verity,encrypt,casefold,inline_data,ea_inode,large_dir,metadata_csum_seed",
		"-t ext4 -O mmp",
		"-t ext4 -O orphan_file,fast_commit",
		"-t ext4 -O huge_file -N 50000 -I 512",
		"-t ext3",
		"-t ext3 -b 1024",
		"-t ext2",
		"-t ext2 -b 1024 -O none",
		"-t ext2 -r 0",
	};

	/* one in two by chance, with sanitizers in four: making and checking file systems is what takes the time */
	const size_t step = getenv("WHERRY_TEST_THOROUGH") != NULL ? 1 : HAS_SANITIZER ? 8 : 10;

	(void)state;
	print_message("every %zu. kind of file system\n", step);
	for (size_t i = (size_t)time(NULL) % step; i < sizeof(options) / sizeof(options[0]); i += step) {
		struct opened opened;
		make_ext("disk", options[i], i % 2 == 0 ? "300001K" : "256M");
		open_plan(&opened, "disk", false);
		AUTO_WALKED struct walked walked = walk(&opened);
		AUTO_FREE_LIST struct free_list list = ask_dumpe2fs("disk");
		if (!partition_of(&opened, 0)->by_allocation_map)
			fail_msg("%s: read whole: %s", options[i], partition_of(&opened, 0)->why_whole);
		if (opened.told.count != 0)
			fail_msg("%s: %s", options[i], opened.told.last);
		assert_nothing_lost(&walked, &list, 0);
		assert_free_is_left_out(&walked, &list, 0);
		assert_files_survive("disk", &walked);
		close_plan(&opened);
	}
}

static void any_offset_gets_the_same_answer(void **state)
{
	struct failure failure = {.code = 0};
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	for (size_t i = walked.count; i-- > 0;) {
		const struct plan_range *range = &walked.ranges[i];
		struct plan_range again;
		uint64_t skip_bytes = range->len_bytes / 3;
		assert_int_equal(plan_next(opened.plan, range->off_bytes + skip_bytes, &again, &failure), 0);
		assert_int_equal(again.kind, range->kind);
		assert_ptr_equal(again.why, range->why);
		assert_int_equal(again.len_bytes, range->len_bytes - skip_bytes);
	}
	assert_int_equal(plan_next(opened.plan, walked.size_bytes, &(struct plan_range){.off_bytes = 0}, &failure),
			 -EINVAL);
	close_plan(&opened);
}

static void file_system_may_start_at_any_sector(void **state)
{
	static const char *const options[] = {"-t ext4", "-t ext2 -b 1024"};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		make_ext("part", options[i], "128M");
		make_disk("disk", "200M", "-X dos", "start=63,size=300000\\n");
		run("dd if=part of=disk bs=512 seek=63 conv=notrunc,sparse status=none");
		AUTO_WALKED struct walked walked = walk_file("disk");
		AUTO_FREE_LIST struct free_list list = ask_dumpe2fs("part");
		assert_nothing_lost(&walked, &list, (uint64_t)63 * 512);
		assert_free_is_left_out(&walked, &list, (uint64_t)63 * 512);
		/* The end of the partition, behind the file system. */
		assert_int_equal(left_out_in(&walked, 128 * MIB + 63 * KIB / 2, 300063 * KIB / 2), 0);
	}
}

static void file_systems_that_are_not_clean_are_read_whole(void **state)
{
	static const struct {
		const char *command;
		const char *why;
	} cases[] = {
		{"set_super_value state 0", "not cleanly unmounted"},
		{"feature +needs_recovery", "not cleanly unmounted"},
		{"set_super_value state 3", "it has errors"},
		{"feature +orphan_present", "it has orphaned files to clean up"},
		{"set_super_value last_orphan 12", "it has orphaned files to clean up"},
		{"feature +FEATURE_C31", "unknown feature"},
		{"feature +FEATURE_R31", "unknown feature"},
		{"feature +shared_blocks", "unknown feature"},
		{"feature -metadata_csum", "its superblock makes no sense"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct opened opened;
		make_ext("disk", "-t ext4", "64M");
		run("debugfs -w -R '%s' disk >/dev/null 2>&1", cases[i].command);
		assert_read_whole("disk", cases[i].why);
		open_plan(&opened, "disk", false);
		assert_int_equal(partition_of(&opened, 0)->looks_in_use,
				 strcmp(cases[i].why, "not cleanly unmounted") == 0);
		close_plan(&opened);
	}
}

static void protected_against_multiple_mounts_and_in_use_is_read_whole(void **state)
{
	uint8_t block_number[4];

	(void)state;
	make_ext("disk", "-t ext4 -O mmp,^metadata_csum -b 1024", "64M");
	get_bytes("disk", 1024 + 360, block_number, sizeof(block_number));
	put_bytes("disk", (uint64_t)bytes_get_le32(block_number) * 1024 + 4, "\x11\x22\x33\x44", 4);
	assert_read_whole("disk", "in use, by its multiple mount protection");
}

static void file_system_larger_than_its_partition_is_read_whole(void **state)
{
	(void)state;
	make_ext("disk", "-t ext4", "64M");
	run("truncate -s 63M disk");
	assert_read_whole("disk", "larger than its partition");
}

static void damaged_bitmap_has_its_group_read(void **state)
{
	/* A group with a bitmap on disk and a lot of free blocks in it. */
	static const char find_group[] =
		"dumpe2fs disk 2>/dev/null | awk '/^Group/ { group = $2 + 0; uninit = /BLOCK_UNINIT/ } "
		"/Block bitmap at/ { bitmap = $4 + 0 } "
		"/free blocks, / && !uninit && $1 > 2000 { print group, bitmap; exit }'";
	char told[64];
	struct opened opened;
	uint64_t group = 0, bitmap_block = 0;
	FILE *pipe;

	(void)state;
	make_ext("disk", "-t ext4 -b 1024 -O ^flex_bg", "64M");
	pipe = popen(find_group, "re");
	assert_non_null(pipe);
	assert_int_equal(fscanf(pipe, "%" SCNu64 " %" SCNu64, &group, &bitmap_block), 2);
	assert_int_equal(pclose(pipe), 0);
	AUTO_WALKED struct walked before = walk_file("disk");
	flip_bits("disk", bitmap_block * 1024 + 1000, 1);
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked after = walk(&opened);
	/* Groups of 8192 blocks of 1 KiB; block 0 is in none. */
	uint64_t first = (group * 8192 + 1) * 1024, end = first + 8 * MIB;
	assert_true(left_out_in(&before, first, end) > MIB);
	assert_int_equal(left_out_in(&after, first, end), 0);
	assert_int_equal(left_out_in(&after, end, 64 * MIB), left_out_in(&before, end, 64 * MIB));
	assert_int_equal(opened.told.count, 1);
	(void)snprintf(told, sizeof(told), "block group %" PRIu64 " is read whole", group);
	assert_non_null(strstr(opened.told.last, told));
	close_plan(&opened);
}

/* ext2 has no checksums: there the number of free blocks tells. */
static void bitmap_that_calls_used_blocks_free_is_not_believed(void **state)
{
	struct opened opened;
	AUTO_FREE uint8_t *zeros = calloc(1, 1024);

	(void)state;
	make_ext("disk", "-t ext2 -b 1024", "64M");
	AUTO_FREE_LIST struct free_list list = ask_dumpe2fs("disk");
	for (unsigned group = 0; group < 8; group++) {
		uint8_t descriptor[32];
		get_bytes("disk", 2048 + group * 32, descriptor, sizeof(descriptor));
		put_bytes("disk", (uint64_t)bytes_get_le32(descriptor) * 1024, zeros, 1024);
	}
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_nothing_lost(&walked, &list, 0);
	assert_int_equal(opened.told.count, 1);
	close_plan(&opened);
}

static void mounted_file_system_is_read_whole(void **state)
{
	(void)state;
	make_ext("disk", "-t ext4", "64M");
	run("mkdir -p mnt");
	if (geteuid() != 0 || try_run("mount -o loop,ro disk mnt 2>/dev/null") != 0) {
		print_message("skipped: mounting needs root and a loop device\n");
		skip();
	}
	struct opened opened;
	open_plan(&opened, "disk", false);
	int unmounted = try_run("umount mnt");
	assert_int_equal(unmounted, 0);
	assert_string_equal(partition_of(&opened, 0)->why_whole, "mounted");
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], 0);
	close_plan(&opened);
}

static void file_system_that_changes_meanwhile_is_read_from_there_on(void **state)
{
	struct failure failure = {.code = 0};
	struct opened opened;
	struct plan_range range;

	(void)state;
	make_ext("disk", "-t ext4", "256M");
	open_plan(&opened, "disk", false);
	AUTO_WALKED struct walked before = walk(&opened);
	assert_true(left_out_in(&before, 128 * MIB, 256 * MIB) > 64 * MIB);
	assert_int_equal(plan_next(opened.plan, 0, &range, &failure), 0);
	run("debugfs -w -R 'set_super_value mtime now' disk >/dev/null 2>&1");
	(void)nanosleep(&(struct timespec){.tv_sec = 5, .tv_nsec = 100000000}, NULL);
	AUTO_WALKED struct walked after = walk(&opened);
	assert_int_equal(after.bytes[PLAN_LEFT_OUT], 0);
	assert_int_equal(opened.told.count, 1);
	assert_false(partition_of(&opened, 0)->by_allocation_map);
	close_plan(&opened);
}

static void everything_is_read_when_asked_for(void **state)
{
	struct opened opened;

	(void)state;
	make_disk("disk", "512M", "-X gpt", three_partitions);
	fill_three_partitions("disk");
	open_plan(&opened, "disk", true);
	AUTO_WALKED struct walked walked = walk(&opened);
	assert_int_equal(walked.bytes[PLAN_LEFT_OUT], 0);
	assert_int_equal(walked.bytes[PLAN_READ] + walked.bytes[PLAN_HOLE], 512 * MIB);
	assert_string_equal(partition_of(&opened, 2)->type, "ext4");
	assert_false(partition_of(&opened, 2)->by_allocation_map);
	close_plan(&opened);
}

static void holes_are_told_apart(void **state)
{
	(void)state;
	run("rm -f disk && truncate -s 64M disk");
	fill("disk", 10, 2);
	AUTO_WALKED struct walked walked = walk_file("disk");
	assert_int_equal(walked.bytes[PLAN_READ], 2 * MIB);
	assert_int_equal(walked.bytes[PLAN_HOLE], 62 * MIB);
}

static void large_file_system_is_walked_in_seconds(void **state)
{
	double started_seconds;

	(void)state;
	run("rm -f disk && truncate -s 8T disk && "
	    "mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 disk >/dev/null 2>&1");
	started_seconds = units_monotonic_seconds();
	AUTO_WALKED struct walked walked = walk_file("disk");
	print_message("8 TiB in %.2f s, %zu ranges\n", units_monotonic_seconds() - started_seconds, walked.count);
	assert_true(walked.bytes[PLAN_LEFT_OUT] > (uint64_t)7 << 40);
	assert_true(units_monotonic_seconds() - started_seconds < 60); /* with a sanitizer, on a busy machine */
	run("rm disk");
}

static void what_other_file_systems_say_of_themselves_is_told(void **state)
{
	struct opened opened;

	(void)state;
	if (try_run("rm -f disk && truncate -s 64M disk && mkfs.vfat -F 32 disk >/dev/null 2>&1") != 0)
		skip();
	open_plan(&opened, "disk", false);
	assert_string_equal(partition_of(&opened, 0)->type, "vfat");
	assert_false(partition_of(&opened, 0)->looks_in_use);
	close_plan(&opened);
	flip_bits("disk", 65, 1);
	open_plan(&opened, "disk", false);
	assert_true(partition_of(&opened, 0)->looks_in_use);
	close_plan(&opened);
}

/* ------------------------------------------------------------------ hostility */

static uint64_t random_state;

static uint64_t random_number(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text == NULL ? otherwise : strtoull(text, NULL, 0);
}

struct target {
	const char *path;
	bool has_checksums; /* so that no change goes unnoticed, and what is in use stays known */
	uint64_t ext_off_bytes;
	struct {
		uint64_t off_bytes, len_bytes;
	} places[4]; /* where to hit */
};

/* One byte at random, or a run of zeros, which in a bitmap means "free". */
struct hit {
	uint64_t off_bytes;
	size_t len_bytes;
	uint8_t before[64];
};

static void make_hit(const struct target *target, struct hit *hit)
{
	unsigned place = (unsigned)random_number(4);
	uint64_t last = target->places[place].len_bytes - sizeof(hit->before);
	uint8_t after[64] = {0};

	hit->off_bytes = target->places[place].off_bytes + random_number(last + 1);
	hit->len_bytes = random_number(3) == 0 ? 1 + random_number(sizeof(hit->before)) : 1;
	get_bytes(target->path, hit->off_bytes, hit->before, hit->len_bytes);
	if (hit->len_bytes == 1)
		after[0] = hit->before[0] ^ (uint8_t)(1 + random_number(255));
	put_bytes(target->path, hit->off_bytes, after, hit->len_bytes);
}

static void mutate_and_walk(const struct target *target, const struct free_list *list)
{
	struct hit hits[16];
	unsigned count = 1 + (unsigned)random_number(random_number(2) == 0 ? 1 : 16);
	uint8_t superblock[2][1024];
	struct opened opened;
	unsigned partitions_count;

	get_bytes(target->path, target->ext_off_bytes + 1024, superblock[0], 1024);
	for (unsigned i = 0; i < count; i++)
		make_hit(target, &hits[i]);
	get_bytes(target->path, target->ext_off_bytes + 1024, superblock[1], 1024);
	bool is_superblock_hit = memcmp(superblock[0], superblock[1], 1024) != 0;
	/* Both the feature's flag and the checksum's type may be hit at once; then it is one that has no checksums. */
	bool has_checksums = target->has_checksums && ((superblock[1][101] & 4) != 0 || superblock[1][373] != 0);

	open_plan(&opened, target->path, false);
	AUTO_WALKED struct walked walked = walk(&opened);
	const struct plan_partition *partitions = plan_partitions(opened.plan, &partitions_count);
	for (unsigned i = 0; i < partitions_count && has_checksums; i++)
		if (is_superblock_hit && partitions[i].off_bytes == target->ext_off_bytes)
			assert_false(partitions[i].by_allocation_map);
	if (has_checksums)
		assert_nothing_lost(&walked, list, target->ext_off_bytes);
	close_plan(&opened);
	while (count-- > 0)
		put_bytes(target->path, hits[count].off_bytes, hits[count].before, hits[count].len_bytes);
}

static void damage_of_any_kind_loses_nothing(void **state)
{
	static const struct target targets[] = {
		{"gpt",
		 true,
		 20 * MIB,
		 {{0, 17 * KIB}, {20 * MIB, 8 * KIB}, {20 * MIB, 64 * KIB}, {64 * MIB - 17 * KIB, 17 * KIB}}},
		{"gpt",
		 true,
		 20 * MIB,
		 {{512, 92}, {20 * MIB + 1024, 1024}, {20 * MIB + 4096, 512}, {64 * MIB - 512, 92}}},
		/* Bitmaps of four groups, in blocks 2 to 5: there is one block of descriptors. */
		{"gpt",
		 true,
		 20 * MIB,
		 {{20 * MIB + 8 * KIB, 128},
		  {20 * MIB + 12 * KIB, 128},
		  {20 * MIB + 16 * KIB, 128},
		  {20 * MIB + 20 * KIB, 128}}},
		{"mbr", false, 20 * MIB, {{446, 66}, {60 * MIB, 512}, {90 * MIB, 512}, {20 * MIB + 1024, 3072}}},
		{"gdt", false, 0, {{1024, 1024}, {4096, 2048}, {1024, 128}, {0, 256 * KIB}}},
	};
	uint64_t seed = environment_number("WHERRY_TEST_SEED", (uint64_t)time(NULL));
	uint64_t rounds = environment_number("WHERRY_TEST_ROUNDS", 400);

	(void)state;
	print_message("WHERRY_TEST_SEED=%" PRIu64 " WHERRY_TEST_ROUNDS=%" PRIu64 "\n", seed, rounds);
	random_state = seed * 0x9e3779b97f4a7c15u | 1;
	make_ext("part", "-t ext4 -b 4096 -g 1024 -O ^resize_inode", "40M");
	make_disk("gpt", "64M", "-X gpt", "size=10M\\nstart=20M,size=40M\\n");
	put_into("part", "gpt", 20);
	make_disk("mbr", "128M", "-X dos",
		  "size=10M\\nstart=20M,size=40M\\nstart=60M,size=60M,type=5\\n"
		  "start=61M,size=20M\\nstart=91M,size=20M\\n");
	put_into("part", "mbr", 20);
	AUTO_FREE_LIST struct free_list list = ask_dumpe2fs("part");
	make_ext("gdt", "-t ext4 -O ^metadata_csum -g 1024", "40M");
	for (uint64_t i = 0; i < rounds; i++)
		mutate_and_walk(&targets[i % (sizeof(targets) / sizeof(targets[0]))], &list);
}

/* -------------------------------------------------------------------------- */

/* In memory where there is room: the tools sync after each step, and all of it together is some 200 MiB. */
static const char *choose_base(void)
{
	const char *base = getenv("TMPDIR");
	struct statvfs room;

	if (base != NULL && base[0] != '\0')
		return base;
	if (statvfs("/dev/shm", &room) == 0 && (uint64_t)room.f_bavail * room.f_frsize >= 1024 * MIB &&
	    access("/dev/shm", W_OK) == 0)
		return "/dev/shm";
	return "/tmp";
}

static int make_directory(void **state)
{
	(void)state;
	(void)snprintf(directory, sizeof(directory), "%s/wherry-test-plan-XXXXXX", choose_base());
	if (mkdtemp(directory) == NULL || chdir(directory) != 0)
		return -1;
	return try_run("mkdir content content/headers && cp -a /usr/include/linux/[a-m]*.h content/headers/ && "
		       "head -c 9000000 /dev/urandom >content/random && ln -s random content/link");
}

static int remove_directory(void **state)
{
	(void)state;
	return chdir("/") != 0 ? -1 : try_run("rm -rf '%s'", directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gpt_is_understood),
		cmocka_unit_test(mbr_is_understood),
		cmocka_unit_test(gpt_of_large_sectors_is_found_in_a_file),
		cmocka_unit_test(mbr_of_large_sectors_is_found_by_what_is_in_its_partitions),
		cmocka_unit_test(mbr_of_sectors_of_unknown_size_is_read_whole),
		cmocka_unit_test(gpt_with_one_damaged_header_is_understood),
		cmocka_unit_test(backup_gpt_of_a_disk_that_grew_is_read),
		cmocka_unit_test(gpt_that_lies_about_its_entries_does_no_harm),
		cmocka_unit_test(logical_partitions_and_their_ebrs_are_found),
		cmocka_unit_test(broken_chain_of_ebrs_has_its_container_read),
		cmocka_unit_test(more_logical_partitions_than_libfdisk_reads_are_read),
		cmocka_unit_test(entries_that_libfdisk_passes_over_are_read),
		cmocka_unit_test(hybrid_mbr_adds_what_is_read),
		cmocka_unit_test(gpt_without_partitions_and_hybrid_mbr_is_read_whole),
		cmocka_unit_test(protective_mbr_without_gpt_is_read_whole),
		cmocka_unit_test(head_of_the_disk_is_no_gap),
		cmocka_unit_test(other_kinds_of_tables_are_read_whole),
		cmocka_unit_test(overlapping_partitions_are_read),
		cmocka_unit_test(partition_beyond_the_end_is_cut_off),
		cmocka_unit_test(table_and_file_system_in_one_place_are_read_whole),
		cmocka_unit_test(boot_sector_of_a_file_system_is_no_table),
		cmocka_unit_test(tiny_sources_are_read),
		cmocka_unit_test(hibernated_system_is_read_whole),
		cmocka_unit_test(what_lies_behind_a_swap_area_is_read),
		cmocka_unit_test(used_blocks_are_read_and_free_ones_are_not),
		cmocka_unit_test(any_offset_gets_the_same_answer),
		cmocka_unit_test(file_system_may_start_at_any_sector),
		cmocka_unit_test(file_systems_that_are_not_clean_are_read_whole),
		cmocka_unit_test(protected_against_multiple_mounts_and_in_use_is_read_whole),
		cmocka_unit_test(file_system_larger_than_its_partition_is_read_whole),
		cmocka_unit_test(damaged_bitmap_has_its_group_read),
		cmocka_unit_test(bitmap_that_calls_used_blocks_free_is_not_believed),
		cmocka_unit_test(mounted_file_system_is_read_whole),
		cmocka_unit_test(file_system_that_changes_meanwhile_is_read_from_there_on),
		cmocka_unit_test(everything_is_read_when_asked_for),
		cmocka_unit_test(holes_are_told_apart),
		cmocka_unit_test(large_file_system_is_walked_in_seconds),
		cmocka_unit_test(what_other_file_systems_say_of_themselves_is_told),
		cmocka_unit_test(damage_of_any_kind_loses_nothing),
	};

	return cmocka_run_group_tests_name("plan", tests, make_directory, remove_directory);
}
