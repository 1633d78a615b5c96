/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scratch overlays over a disk that is made up: its content is a function of the offset, so that it may be as large as
 * one likes, and its bytes are known without being kept.
 */
#include "unit_test.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "store/scratch.h"

#define MIB ((uint64_t)1 << 20)
#define PIB ((uint64_t)1 << 50)

/* ---- the disk below: every second MiB is a hole ---- */

struct disk {
	uint64_t size_bytes;
	_Atomic uint64_t reads;
};

static bool is_hole_at(uint64_t off_bytes)
{
	return off_bytes / MIB % 2 == 1;
}

static uint8_t base_byte(uint64_t off_bytes)
{
	return is_hole_at(off_bytes) ? 0 : (uint8_t)(1 + off_bytes % 251);
}

const char *disk_name(const struct disk *disk)
{
	(void)disk;
	return "made-up@1";
}

uint64_t disk_size(const struct disk *disk)
{
	return disk->size_bytes;
}

int disk_read(struct disk *disk, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	(void)failure;
	assert_true(off_bytes + len_bytes <= disk->size_bytes);
	disk->reads++;
	for (size_t i = 0; i < len_bytes; i++)
		((uint8_t *)buffer)[i] = base_byte(off_bytes + i);
	return 0;
}

int disk_extents(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes,
		 int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero),
		 void *opaque, struct failure *failure)
{
	uint64_t end_bytes = off_bytes + len_bytes;
	int result = 0;

	(void)failure;
	assert_true(end_bytes <= disk->size_bytes);
	while (off_bytes < end_bytes && result == 0) {
		uint64_t until_bytes = (off_bytes / MIB + 1) * MIB;
		bool is_hole = is_hole_at(off_bytes);

		/* a disk of 1 PiB is data in its first GiB only */
		if (off_bytes >= 1024 * MIB)
			until_bytes = end_bytes;
		until_bytes = until_bytes < end_bytes ? until_bytes : end_bytes;
		is_hole = is_hole || off_bytes >= 1024 * MIB;
		result = found(opaque, off_bytes, until_bytes - off_bytes, is_hole, is_hole);
		off_bytes = until_bytes;
	}
	return result;
}

static struct scratch *open_scratch(struct disk *disk)
{
	struct failure failure = {.code = 0};
	struct scratch *scratch = NULL;

	if (scratch_new(disk, NULL, &scratch, &failure) < 0)
		fail_msg("%s", failure.message);
	return scratch;
}

/* ---- against a model ---- */

enum { MODEL_BYTES = 4 << 20, ODD_TAIL_BYTES = 1000, THREADS = 4, OPERATIONS = 4000 };

struct actor {
	struct scratch *scratch;
	uint8_t *model;
	uint64_t first_bytes, len_bytes; /* its own range: neighbours share blocks at its ends, not bytes */
	unsigned seed;
};

static uint64_t draw(struct actor *actor, uint64_t below)
{
	return (((uint64_t)rand_r(&actor->seed) << 16) ^ (uint64_t)rand_r(&actor->seed)) % below;
}

/* Half of the ranges lie on blocks. */
static void draw_range(struct actor *actor, uint64_t *ret_off_bytes, size_t *ret_len_bytes)
{
	static const uint64_t most[] = {512, 4096, 20000, 300000};
	uint64_t off_bytes = actor->first_bytes + draw(actor, actor->len_bytes);
	uint64_t len_bytes = 1 + draw(actor, most[draw(actor, 4)]);
	uint64_t end_bytes = actor->first_bytes + actor->len_bytes;

	if (draw(actor, 2) == 0 && off_bytes / 4096 * 4096 >= actor->first_bytes) {
		off_bytes = off_bytes / 4096 * 4096;
		len_bytes = (len_bytes + 4095) / 4096 * 4096;
	}
	*ret_off_bytes = off_bytes;
	*ret_len_bytes = (size_t)(len_bytes < end_bytes - off_bytes ? len_bytes : end_bytes - off_bytes);
}

static int check_extent(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct actor *actor = opaque;

	assert_true(len_bytes > 0);
	assert_true(is_zero || !is_hole);
	for (uint64_t i = 0; is_zero && i < len_bytes; i++)
		assert_int_equal(actor->model[off_bytes + i], 0);
	return 0;
}

static void act(struct actor *actor, uint8_t *buffer)
{
	uint64_t off_bytes;
	size_t len_bytes;

	draw_range(actor, &off_bytes, &len_bytes);
	switch (draw(actor, 5)) {
	case 0:
	case 1:
		for (size_t i = 0; i < len_bytes; i++)
			buffer[i] = (uint8_t)rand_r(&actor->seed);
		memcpy(actor->model + off_bytes, buffer, len_bytes);
		assert_int_equal(scratch_write(actor->scratch, buffer, len_bytes, off_bytes, NULL), 0);
		break;
	case 2:
		memset(actor->model + off_bytes, 0, len_bytes);
		assert_int_equal(scratch_zero(actor->scratch, len_bytes, off_bytes, NULL), 0);
		break;
	case 3:
		assert_int_equal(scratch_extents(actor->scratch, off_bytes, len_bytes, check_extent, actor, NULL), 0);
		break;
	default:
		assert_int_equal(scratch_read(actor->scratch, buffer, len_bytes, off_bytes, NULL), 0);
		assert_memory_equal(buffer, actor->model + off_bytes, len_bytes);
	}
}

static void *run_actor(void *opaque)
{
	struct actor *actor = opaque;
	uint8_t *buffer = malloc(MODEL_BYTES);

	assert_non_null(buffer);
	for (int i = 0; i < OPERATIONS; i++)
		act(actor, buffer);
	free(buffer);
	return NULL;
}

/* Ranges of the threads meet in the middle of blocks: a lost update of one would be a difference to the other's model.
 */
static void random_requests_of_many_threads_agree_with_a_model(void **state)
{
	struct disk disk = {.size_bytes = MODEL_BYTES + ODD_TAIL_BYTES};
	struct scratch *scratch = open_scratch(&disk);
	uint8_t *model = malloc(disk.size_bytes), *content = malloc(disk.size_bytes);
	struct actor actors[THREADS];
	pthread_t threads[THREADS];
	unsigned seed = (unsigned)getpid();

	(void)state;
	print_message("seed %u\n", seed);
	assert_non_null(model);
	assert_non_null(content);
	assert_int_equal(disk_read(&disk, model, disk.size_bytes, 0, NULL), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		uint64_t share_bytes = disk.size_bytes / THREADS;

		actors[i] =
			(struct actor){.scratch = scratch,
				       .model = model,
				       .first_bytes = i * share_bytes,
				       .len_bytes = i + 1 < THREADS ? share_bytes : disk.size_bytes - i * share_bytes,
				       .seed = seed + i};
		assert_int_equal(pthread_create(&threads[i], NULL, run_actor, &actors[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(scratch_read(scratch, content, disk.size_bytes, 0, NULL), 0);
	assert_memory_equal(content, model, disk.size_bytes);
	free(model);
	free(content);
	scratch_free(scratch);
}

/* ---- sectors of one block from several threads ---- */

enum { SECTOR_BYTES = 512, SECTOR_BLOCKS = 16384 };

struct sector_writer {
	struct scratch *scratch;
	pthread_barrier_t *barrier;
	unsigned number;
};

static void *write_sectors(void *opaque)
{
	const struct sector_writer *writer = opaque;
	uint8_t sector[SECTOR_BYTES];

	memset(sector, 0xf0 + (int)writer->number, sizeof(sector));
	for (uint64_t block = 0; block < SECTOR_BLOCKS; block++) {
		if (block % 64 == 0)
			(void)pthread_barrier_wait(writer->barrier);
		assert_int_equal(scratch_write(writer->scratch, sector, sizeof(sector),
					       block * 4096 + writer->number * SECTOR_BYTES, NULL),
				 0);
	}
	return NULL;
}

/* The first write to a block copies it from below; nobody's sector may get lost in that. */
static void threads_that_share_blocks_lose_nothing(void **state)
{
	struct disk disk = {.size_bytes = (uint64_t)SECTOR_BLOCKS * 4096};
	struct scratch *scratch = open_scratch(&disk);
	struct sector_writer writers[THREADS];
	pthread_t threads[THREADS];
	pthread_barrier_t barrier;

	(void)state;
	assert_int_equal(pthread_barrier_init(&barrier, NULL, THREADS), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		writers[i] = (struct sector_writer){.scratch = scratch, .barrier = &barrier, .number = i};
		assert_int_equal(pthread_create(&threads[i], NULL, write_sectors, &writers[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	for (uint64_t block = 0; block < SECTOR_BLOCKS; block++) {
		uint8_t content[4096];

		assert_int_equal(scratch_read(scratch, content, sizeof(content), block * 4096, NULL), 0);
		for (unsigned i = 0; i < THREADS; i++)
			assert_int_equal(content[i * SECTOR_BYTES], 0xf0 + i);
		assert_int_equal(content[4095], base_byte(block * 4096 + 4095));
	}
	(void)pthread_barrier_destroy(&barrier);
	scratch_free(scratch);
}

/* ---- one by one ---- */

static void overlays_do_not_see_each_other(void **state)
{
	struct disk disk = {.size_bytes = MIB};
	struct scratch *one = open_scratch(&disk), *other = open_scratch(&disk);
	uint8_t written[512], read[512];

	(void)state;
	memset(written, 0xee, sizeof(written));
	assert_int_equal(scratch_write(one, written, sizeof(written), 4096, NULL), 0);
	assert_int_equal(scratch_read(other, read, sizeof(read), 4096, NULL), 0);
	for (size_t i = 0; i < sizeof(read); i++)
		assert_int_equal(read[i], base_byte(4096 + i));
	assert_int_equal(scratch_read(one, read, sizeof(read), 4096, NULL), 0);
	assert_memory_equal(read, written, sizeof(read));
	scratch_free(one);
	scratch_free(other);
}

static void ranges_beyond_the_end_are_refused(void **state)
{
	struct disk disk = {.size_bytes = MIB};
	struct scratch *scratch = open_scratch(&disk);
	uint8_t byte = 1;

	(void)state;
	assert_int_equal(scratch_read(scratch, &byte, 1, MIB, NULL), -EINVAL);
	assert_int_equal(scratch_write(scratch, &byte, 1, MIB, NULL), -ENOSPC);
	assert_int_equal(scratch_zero(scratch, UINT64_MAX, 1, NULL), -ENOSPC);
	assert_int_equal(scratch_extents(scratch, UINT64_MAX, 2, check_extent, NULL, NULL), -EINVAL);
	assert_int_equal(scratch_write(scratch, &byte, 0, MIB, NULL), 0);
	scratch_free(scratch);
}

static void a_folder_that_is_not_there_is_refused(void **state)
{
	struct disk disk = {.size_bytes = MIB};
	struct scratch *scratch;
	struct failure failure = {.code = 0};

	(void)state;
	assert_int_equal(scratch_new(&disk, "/nonexistent", &scratch, &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "/nonexistent"));
}

static uint64_t resident_bytes(void)
{
	struct rusage usage;

	assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
	return (uint64_t)usage.ru_maxrss * 1024;
}

/* Discarding all of it, as mkfs does, and a few writes all over: what it costs follows what is there and what is
 * written. */
static void a_disk_of_a_pebibyte_is_cheap(void **state)
{
	struct disk disk = {.size_bytes = PIB};
	struct scratch *scratch = open_scratch(&disk);
	uint64_t before_bytes = resident_bytes();
	uint8_t block[4096], read[4096];

	(void)state;
	assert_int_equal(scratch_zero(scratch, PIB, 0, NULL), 0);
	for (uint64_t off_bytes = 0; off_bytes < PIB; off_bytes += PIB / 64) {
		memset(block, (int)(off_bytes / (PIB / 64)) + 1, sizeof(block));
		assert_int_equal(scratch_write(scratch, block, sizeof(block), off_bytes + 8192, NULL), 0);
		assert_int_equal(scratch_read(scratch, read, sizeof(read), off_bytes + 8192, NULL), 0);
		assert_memory_equal(read, block, sizeof(read));
		assert_int_equal(scratch_read(scratch, read, sizeof(read), off_bytes, NULL), 0);
		if (off_bytes == 0)
			assert_int_equal(read[0], 0); /* was data below */
	}
	if (!HAS_SANITIZER)
		assert_true(resident_bytes() - before_bytes < 16 * MIB);
	scratch_free(scratch);
}

static int count_extents(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	(void)off_bytes;
	(void)len_bytes;
	(void)is_hole;
	(void)is_zero;
	++*(unsigned *)opaque;
	return 0;
}

static void what_is_zero_already_is_left_alone(void **state)
{
	struct disk disk = {.size_bytes = 4 * MIB};
	struct scratch *scratch = open_scratch(&disk);
	uint8_t zeros[512] = {0}, read[512];
	unsigned count = 0;

	(void)state;
	assert_int_equal(scratch_zero(scratch, 1000, MIB + 100, NULL), 0); /* a part of a block in a hole */
	assert_int_equal(scratch_extents(scratch, MIB, MIB, count_extents, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_int_equal(disk.reads, 0);
	assert_int_equal(scratch_zero(scratch, MIB, 512, NULL), 0); /* data, and the beginning of a hole */
	assert_int_equal(scratch_read(scratch, read, sizeof(read), 512, NULL), 0);
	assert_memory_equal(read, zeros, sizeof(read));
	assert_int_equal(scratch_read(scratch, read, sizeof(read), 0, NULL), 0);
	for (size_t i = 0; i < sizeof(read); i++)
		assert_int_equal(read[i], base_byte(i));
	scratch_free(scratch);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_requests_of_many_threads_agree_with_a_model),
		cmocka_unit_test(threads_that_share_blocks_lose_nothing),
		cmocka_unit_test(overlays_do_not_see_each_other),
		cmocka_unit_test(ranges_beyond_the_end_are_refused),
		cmocka_unit_test(a_folder_that_is_not_there_is_refused),
		cmocka_unit_test(a_disk_of_a_pebibyte_is_cheap),
		cmocka_unit_test(what_is_zero_already_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
