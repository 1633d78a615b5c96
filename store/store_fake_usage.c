/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fake store would take if it were on a disk: the records of its chunks. What says where they are takes
 * nothing.
 *
 * Which chunks a disk alone refers to is found out by looking at all maps once more without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

/* Marks what a map refers to. */
static void mark_map(const struct fake_map *map, uint8_t *marks, uint8_t mark)
{
	for (size_t i = 0; i < map->count; i++)
		for (size_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			store_chunk id = map->pages[i]->entries[j].chunk;

			if (id != 0)
				marks[id - 1] |= mark;
		}
}

static void mark_disk(const struct fake_disk *disk, uint8_t *marks, uint8_t mark)
{
	mark_map(&disk->live, marks, mark);
	for (size_t i = 0; i < disk->image_count; i++)
		mark_map(&disk->images[i]->map, marks, mark);
}

static uint64_t record_bytes(const struct fake_chunk *chunk)
{
	return record_total_bytes(chunk->stored_bytes);
}

static int disk_unique_bytes(const struct fake *fake, const struct fake_disk *disk, uint64_t *ret_bytes,
			     struct failure *failure)
{
	enum { BY_IT = 1, BY_OTHERS = 2 };
	AUTO_FREE uint8_t *marks = calloc(fake->chunks.count + 1, 1);
	uint64_t bytes = 0;

	if (marks == NULL)
		return fake_no_memory(failure);
	for (size_t i = 0; i < fake->disk_count; i++)
		mark_disk(fake->disks[i], marks, fake->disks[i] == disk ? BY_IT : BY_OTHERS);
	for (size_t i = 0; i < fake->chunks.count; i++)
		if (marks[i] == BY_IT)
			bytes += record_bytes(fake->chunks.by_id[i]);
	*ret_bytes = bytes;
	return 0;
}

static int add_chunks(const struct fake *fake, struct store_usage *usage, struct failure *failure)
{
	AUTO_FREE uint32_t *sharers = NULL;
	int error = fake_count_sharers(fake, &sharers, failure);

	for (size_t i = 0; error == 0 && i < fake->chunks.count; i++) {
		const struct fake_chunk *chunk = fake->chunks.by_id[i];

		if (chunk == NULL)
			continue;
		usage->segment_bytes += record_bytes(chunk);
		if (sharers[i] > 0) {
			usage->live_bytes += record_bytes(chunk);
			usage->plain_bytes += chunk->plain_bytes;
		} else if (chunk->is_durable) {
			usage->dead_bytes += record_bytes(chunk);
		}
	}
	return error;
}

static int usage_locked(const struct fake *fake, struct store_usage *usage, struct failure *failure)
{
	int error = add_chunks(fake, usage, failure);

	usage->disks = calloc(fake->disk_count + 1, sizeof(*usage->disks));
	if (usage->disks == NULL)
		return fake_no_memory(failure);
	for (size_t i = 0; error == 0 && i < fake->disk_count; i++) {
		const struct fake_disk *disk = fake->disks[i];
		struct store_disk_usage *item = &usage->disks[usage->disk_count++];

		memcpy(item->name, disk->name, sizeof(disk->name));
		item->size_bytes = disk->size_bytes;
		item->images = (uint32_t)disk->image_count;
		error = disk_unique_bytes(fake, disk, &item->unique_bytes, failure);
	}
	return error;
}

int fake_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure)
{
	struct store_usage usage = {.disks = NULL};
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_USAGE, NULL, failure);

	if (error == 0)
		error = usage_locked(fake_of(store), &usage, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_usage_free(&usage);
		return error;
	}
	*ret_usage = usage;
	return 0;
}

/* A memory without an end would be no use to who asks. */
int fake_room(struct store *store, struct store_room *ret_room, struct failure *failure)
{
	const struct store_room room = {
		.total_bytes = (uint64_t)1 << 40, .free_bytes = (uint64_t)1 << 39, .available_bytes = (uint64_t)1 << 38};
	struct fake_call call;
	int error = fake_call_leave(&call, fake_call_enter(&call, fake_of(store), STORE_FAKE_ROOM, NULL, failure), failure);

	if (error == 0)
		*ret_room = room;
	return error;
}
