/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power_live STORE DISK SEED WRITES FIRST-NUMBER close|kill: what a server of a live disk does, for being recorded by
 * preload_record.so: three threads write to parts of the disk of their own, small pieces and whole chunks, zeros,
 * discards, some of it durable at once (FUA); they flush; images are made, by the one who has the disk and by asking
 * him; it is folded and cleaned up all the while. At the end the disk is closed, or everything ends in the middle of
 * what it is doing, as by a kill.
 *
 * What is done is noted as live_model.h says, with numbers from FIRST-NUMBER on: larger than any before.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <unistd.h>

#include "common/failure.h"
#include "live_model.h"
#include "store/disk.h"
#include "store/store.h"

enum {
	KIB = 1024,
	MIB = 1024 * 1024,
	CHUNK_BYTES = 16 * KIB,
	WRITERS = 3,
	PART_SECTORS = 256 * KIB / LIVE_SECTOR, /* what each writes to, mostly */
	WRITE_MOST_BYTES = 5 * CHUNK_BYTES,
	IMAGES = 3,
};

static void (*note_text)(const char *text);
static struct store *store, *other_store; /* who asks for images has his own */
static struct chunk_cache *cache;
static struct disk *disk;
static const char *disk_text;
static uint64_t sectors;
static atomic_uint next_number, written, next_id;
static uint32_t first_number, writes_wanted;
static bool ends_by_kill;

static void check(int result, const struct failure *failure)
{
	if (result < 0)
		errx(1, "%s", failure->message);
}

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
	char text[128];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	note_text(text);
}

static uint64_t random_number(uint64_t *state, uint64_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % below;
}

/* ------------------------------------------------------------------ writers */

struct writer {
	uint64_t first, end; /* sectors that are its own */
	uint64_t random;
	pthread_t thread;
};

struct range {
	uint64_t first, end; /* sectors */
};

/* Most of it near the part's beginning, some at its end, which the last one has far away. */
static struct range choose_range(struct writer *writer)
{
	const uint64_t chunk = CHUNK_BYTES / LIVE_SECTOR;
	uint64_t near_end = writer->first + PART_SECTORS < writer->end ? writer->first + PART_SECTORS : writer->end;
	bool at_end = random_number(&writer->random, 8) == 0 && writer->end - near_end > PART_SECTORS / 4;
	uint64_t from = at_end ? writer->end - PART_SECTORS / 4 : writer->first;
	uint64_t to = at_end ? writer->end : near_end;
	struct range range = {.first = from + random_number(&writer->random, to - from)};

	switch (random_number(&writer->random, 6)) {
	case 0: /* whole chunks */
		range.first = range.first / chunk * chunk;
		range.first = range.first < writer->first ? range.first + chunk : range.first;
		range.end = range.first + chunk * (1 + random_number(&writer->random, 3));
		break;
	case 1:
		range.end = range.first + 1 + random_number(&writer->random, WRITE_MOST_BYTES / LIVE_SECTOR);
		break;
	default:
		range.end = range.first + 1 + random_number(&writer->random, 8);
	}
	range.end = range.end < writer->end ? range.end : writer->end;
	return range;
}

static void change_something(struct writer *writer, uint8_t *data)
{
	struct range range = choose_range(writer);
	uint64_t kind = random_number(&writer->random, 40);
	bool is_zero = kind < 8, is_durable = random_number(&writer->random, 10) == 0;
	unsigned flags = is_durable ? DISK_FUA : 0;
	uint32_t number = next_number++;
	struct failure failure = {.code = 0};
	uint64_t len_bytes;

	if (kind == 0) /* all to the end: in one go, where that is far */
		range.end = writer->end;
	if (range.first >= range.end)
		return;
	len_bytes = (range.end - range.first) * LIVE_SECTOR;
	note("w %" PRIu32 " %" PRIu64 " %" PRIu64 " %d", number, range.first, range.end, is_zero);
	if (is_zero) {
		check(disk_zero(disk, len_bytes, range.first * LIVE_SECTOR, flags | (kind % 2 == 0 ? DISK_TRIM : 0),
				&failure),
		      &failure);
	} else {
		for (uint64_t i = range.first; i < range.end; i++)
			live_stamp_sector(data + (i - range.first) * LIVE_SECTOR, number, i);
		check(disk_write(disk, data, len_bytes, range.first * LIVE_SECTOR, flags, &failure), &failure);
	}
	note("a %" PRIu32 " %d", number, is_durable);
	written++;
}

static void *write_things(void *opaque)
{
	struct writer *writer = opaque;
	uint8_t *data = malloc(WRITE_MOST_BYTES + CHUNK_BYTES);

	if (data == NULL)
		err(1, "memory");
	while (ends_by_kill || written < writes_wanted) {
		struct failure failure = {.code = 0};

		change_something(writer, data);
		if (random_number(&writer->random, 12) == 0) {
			uint32_t id = next_id++;

			note("f %" PRIu32, id);
			check(disk_flush(disk, &failure), &failure);
			note("F %" PRIu32, id);
		}
	}
	free(data);
	return NULL;
}

/* ------------------------------------------------------------------ the rest */

static void make_image(bool asked_for)
{
	uint32_t id = next_id++, number = 0;
	struct failure failure = {.code = 0};
	const struct store_image_params params = {.label = asked_for ? "asked for" : NULL};
	int result;

	note("i %" PRIu32, id);
	result = asked_for ? store_request_image(other_store, disk_text, &params, "power_live", &number, &failure)
			   : disk_create_image(disk, &params, &number, &failure);
	check(result, &failure);
	note("I %" PRIu32 " %" PRIu32, id, number);
}

static void clean_up(void)
{
	struct store_clean_report report;
	struct failure failure = {.code = 0};

	check(store_clean(other_store, &(struct store_clean_params){.doing = "power_live"}, &report, &failure),
	      &failure);
}

static void open_all(const char *path)
{
	const struct store_options options = {.read_only = false};
	struct disk_options disk_options = {
		.doing = "power_live", .write = true, .journal_soft_bytes = 96 * KIB, .journal_hard_bytes = 512 * KIB};
	struct store_reference reference;
	struct failure failure = {.code = 0};

	check(store_open_local(path, &options, &store, &failure), &failure);
	check(store_open_local(path, &options, &other_store, &failure), &failure);
	check(chunk_cache_new(CHUNK_CACHE_LEAST_BYTES, &cache, &failure), &failure);
	disk_options.cache = cache;
	check(store_parse_reference(disk_text, &reference, &failure), &failure);
	check(disk_open(store, &reference, &disk_options, &disk, &failure), &failure);
	sectors = disk_size(disk) / LIVE_SECTOR;
}

/* Notes what was found: each run of sectors that one write left. */
static void note_opened(void)
{
	uint8_t *content = malloc(MIB);
	char *text = NULL;
	size_t text_bytes = 0;
	FILE *stream = open_memstream(&text, &text_bytes);
	struct failure failure = {.code = 0};
	uint64_t from = 0;
	uint32_t number = 0;

	if (content == NULL || stream == NULL)
		err(1, "memory");
	(void)fprintf(stream, "o %" PRIu32, first_number);
	for (uint64_t i = 0; i <= sectors; i++) {
		const uint64_t block = i % (MIB / LIVE_SECTOR), left = sectors - i;
		uint32_t found;

		if (block == 0 && left > 0)
			check(disk_read(disk, content, left * LIVE_SECTOR < MIB ? left * LIVE_SECTOR : MIB,
					i * LIVE_SECTOR, &failure),
			      &failure);
		found = left == 0 ? UINT32_MAX : live_read_stamp(content + block * LIVE_SECTOR, i);
		if (left > 0 && found == UINT32_MAX)
			errx(1, "sector %" PRIu64 " holds what nobody has written", i);
		if (found == number)
			continue;
		if (number > 0)
			(void)fprintf(stream, " %" PRIu64 ":%" PRIu64 ":%" PRIu32, from, i, number);
		number = found;
		from = i;
	}
	if (fclose(stream) != 0)
		err(1, "memory");
	note_text(text);
	free(text);
	free(content);
}

int main(int argument_count, char **arguments)
{
	struct writer writers[WRITERS];
	struct failure failure = {.code = 0};
	uint64_t seed;

	if (argument_count != 7)
		errx(2, "see the head of power_live.c");
	disk_text = arguments[2];
	seed = strtoull(arguments[3], NULL, 10);
	writes_wanted = (uint32_t)strtoul(arguments[4], NULL, 10);
	first_number = (uint32_t)strtoul(arguments[5], NULL, 10);
	ends_by_kill = strcmp(arguments[6], "kill") == 0;
	next_number = first_number + 1;
	*(void **)&note_text = dlsym(RTLD_DEFAULT, "preload_record_note");
	if (note_text == NULL)
		errx(2, "it is not recorded");
	open_all(arguments[1]);
	note_opened();
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){.first = (uint64_t)i * PART_SECTORS,
					     .end = i + 1 < WRITERS ? (uint64_t)(i + 1) * PART_SECTORS : sectors,
					     .random = seed * 31 + i};
		if (pthread_create(&writers[i].thread, NULL, write_things, &writers[i]) != 0)
			errx(1, "a thread");
	}
	for (unsigned i = 0; i < IMAGES; i++) {
		while (written < writes_wanted * (i + 1) / (IMAGES + 1))
			(void)usleep(500);
		make_image(i % 2 == 1);
		clean_up();
	}
	while (written < writes_wanted)
		(void)usleep(500);
	if (ends_by_kill)
		_exit(0);
	for (unsigned i = 0; i < WRITERS; i++)
		(void)pthread_join(writers[i].thread, NULL);
	check(disk_close(disk, &failure), &failure);
	chunk_cache_free(cache);
	store_close(other_store);
	store_close(store);
	return 0;
}
