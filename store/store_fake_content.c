/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content of the fake store: chunks in a hash table, maps as sorted arrays of
 * pages that are copied when written to.
 *
 * A map is shared whole when an image is made, and page by page from then on:
 * an image costs a list of pointers. A commit works on a shared copy of the live
 * map and puts it in place at its end, so it happens whole or not at all, out of
 * memory included.
 *
 * Nothing counts references as it goes: what refers to what is found out by
 * walking all maps whenever it is asked for. That is slow, and it can't be wrong
 * in the way that a count can; the tests compare real stores with this one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

int fake_reserve(void *array_address, size_t *capacity, size_t count, size_t element_bytes, struct failure *failure)
{
	void **array = array_address;
	size_t wanted = *capacity == 0 ? 16 : *capacity * 2;
	void *grown;

	if (count < *capacity)
		return 0;
	grown = reallocarray(*array, wanted, element_bytes);
	if (grown == NULL)
		return fail(failure, -ENOMEM, "fake store: out of memory");
	*array = grown;
	*capacity = wanted;
	return 0;
}

/* ------------------------------------------------------------------ chunks */

static size_t bucket_of(const uint8_t digest[DIGEST_BYTES])
{
	return ((size_t)digest[0] << 8 | digest[1]) % FAKE_BUCKETS;
}

struct fake_chunk *fake_chunk_get(const struct fake_chunks *chunks, store_chunk id)
{
	return id == 0 || id > chunks->count ? NULL : chunks->by_id[id - 1];
}

struct fake_chunk *fake_chunk_find(const struct fake_chunks *chunks, const uint8_t digest[DIGEST_BYTES])
{
	struct fake_chunk *chunk = chunks->buckets[bucket_of(digest)];

	while (chunk != NULL && memcmp(chunk->digest, digest, DIGEST_BYTES) != 0)
		chunk = chunk->next;
	return chunk;
}

int fake_chunk_add(struct fake_chunks *chunks, const struct store_encoded *encoded, struct fake_chunk **ret_chunk,
		   struct failure *failure)
{
	struct fake_chunk **bucket = &chunks->buckets[bucket_of(encoded->digest)];
	struct fake_chunk *chunk;
	int error = fake_reserve(&chunks->by_id, &chunks->capacity, chunks->count, sizeof(*chunks->by_id), failure);

	if (error != 0)
		return error;
	chunk = calloc(1, sizeof(*chunk));
	if (chunk != NULL)
		chunk->stored = malloc(encoded->stored_bytes);
	if (chunk == NULL || chunk->stored == NULL) {
		free(chunk);
		return fail(failure, -ENOMEM, "fake store: out of memory");
	}
	memcpy(chunk->digest, encoded->digest, DIGEST_BYTES);
	memcpy(chunk->stored, encoded->stored, encoded->stored_bytes);
	chunk->codec = encoded->codec;
	chunk->cipher = encoded->cipher;
	chunk->plain_bytes = encoded->plain_bytes;
	chunk->stored_bytes = encoded->stored_bytes;
	chunk->next = *bucket;
	*bucket = chunk;
	chunks->by_id[chunks->count++] = chunk;
	chunk->id = chunks->count;
	*ret_chunk = chunk;
	return 0;
}

void fake_chunk_drop(struct fake_chunks *chunks, store_chunk id)
{
	struct fake_chunk *chunk = fake_chunk_get(chunks, id);
	struct fake_chunk **link;

	if (chunk == NULL)
		return;
	for (link = &chunks->buckets[bucket_of(chunk->digest)]; *link != chunk; link = &(*link)->next)
		;
	*link = chunk->next;
	chunks->by_id[id - 1] = NULL;
	free(chunk->stored);
	free(chunk);
}

void fake_chunks_free(struct fake_chunks *chunks)
{
	for (size_t i = 0; i < chunks->count; i++)
		fake_chunk_drop(chunks, i + 1);
	free(chunks->by_id);
}

/* -------------------------------------------------------------------- maps */

static void page_release(struct fake_page *page)
{
	if (--page->sharers == 0)
		free(page);
}

void fake_map_free(struct fake_map *map)
{
	for (size_t i = 0; i < map->count; i++)
		page_release(map->pages[i]);
	free(map->pages);
	*map = (struct fake_map){.pages = NULL};
}

int fake_map_share(const struct fake_map *map, struct fake_map *ret_map, struct failure *failure)
{
	struct fake_map copy = {.count = map->count, .capacity = map->count};

	if (map->count > 0) {
		copy.pages = calloc(map->count, sizeof(struct fake_page *));
		if (copy.pages == NULL)
			return fail(failure, -ENOMEM, "fake store: out of memory");
	}
	for (size_t i = 0; i < map->count; i++) {
		copy.pages[i] = map->pages[i];
		copy.pages[i]->sharers++;
	}
	*ret_map = copy;
	return 0;
}

/* Index of the first page >= number. */
static size_t map_search(const struct fake_map *map, uint64_t number)
{
	size_t first = 0;
	size_t end = map->count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (map->pages[middle]->number < number)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

uint64_t fake_map_next(const struct fake_map *map, uint64_t number)
{
	size_t at = map_search(map, number);

	return at == map->count ? UINT64_MAX : map->pages[at]->number;
}

const struct fake_page *fake_map_page(const struct fake_map *map, uint64_t number)
{
	size_t at = map_search(map, number);

	return at == map->count || map->pages[at]->number != number ? NULL : map->pages[at];
}

const struct store_map_entry *fake_map_entry(const struct fake_map *map, uint64_t index)
{
	static const struct store_map_entry nothing = {.kind = STORE_MAP_NOTHING};
	const struct fake_page *page = fake_map_page(map, index / STORE_MAP_PAGE_ENTRIES);

	return page == NULL ? &nothing : &page->entries[index % STORE_MAP_PAGE_ENTRIES];
}

static int map_insert_page(struct fake_map *map, size_t at, uint64_t number, struct failure *failure)
{
	struct fake_page *page;
	int error = fake_reserve(&map->pages, &map->capacity, map->count, sizeof(struct fake_page *), failure);

	if (error != 0)
		return error;
	page = calloc(1, sizeof(*page));
	if (page == NULL)
		return fail(failure, -ENOMEM, "fake store: out of memory");
	page->number = number;
	page->sharers = 1;
	memmove(map->pages + at + 1, map->pages + at, (map->count - at) * sizeof(struct fake_page *));
	map->pages[at] = page;
	map->count++;
	return 0;
}

static void map_remove_page(struct fake_map *map, size_t at)
{
	page_release(map->pages[at]);
	map->count--;
	memmove(map->pages + at, map->pages + at + 1, (map->count - at) * sizeof(struct fake_page *));
}

/* The page at this place becomes one that no other map shares. */
static int map_own_page(struct fake_map *map, size_t at, struct failure *failure)
{
	struct fake_page *copy;

	if (map->pages[at]->sharers == 1)
		return 0;
	copy = malloc(sizeof(*copy));
	if (copy == NULL)
		return fail(failure, -ENOMEM, "fake store: out of memory");
	*copy = *map->pages[at];
	copy->sharers = 1;
	page_release(map->pages[at]);
	map->pages[at] = copy;
	return 0;
}

int fake_map_set(struct fake_map *map, uint64_t index, const struct store_map_entry *entry,
		 struct store_map_entry *ret_old, struct failure *failure)
{
	uint64_t number = index / STORE_MAP_PAGE_ENTRIES;
	size_t at = map_search(map, number);
	bool is_there = at < map->count && map->pages[at]->number == number;
	struct store_map_entry *place;
	int error = is_there ? map_own_page(map, at, failure) : map_insert_page(map, at, number, failure);

	if (error != 0)
		return error;
	place = &map->pages[at]->entries[index % STORE_MAP_PAGE_ENTRIES];
	*ret_old = *place;
	*place = *entry;
	return 0;
}

static bool page_is_empty(const struct fake_page *page)
{
	for (size_t i = 0; i < STORE_MAP_PAGE_ENTRIES; i++)
		if (page->entries[i].kind != STORE_MAP_NOTHING)
			return false;
	return true;
}

int fake_map_clear(struct fake_map *map, uint64_t first, uint64_t end, uint64_t *ret_cleared, struct failure *failure)
{
	size_t at = map_search(map, first / STORE_MAP_PAGE_ENTRIES);
	uint64_t cleared = 0;

	while (at < map->count) {
		uint64_t page_first = map->pages[at]->number * STORE_MAP_PAGE_ENTRIES;
		size_t from = first > page_first ? (size_t)(first - page_first) : 0;
		size_t to =
			end - page_first < STORE_MAP_PAGE_ENTRIES ? (size_t)(end - page_first) : STORE_MAP_PAGE_ENTRIES;
		int error;

		if (page_first >= end)
			break;
		error = map_own_page(map, at, failure);
		if (error != 0)
			return error;
		for (size_t i = from; i < to; i++) {
			cleared += map->pages[at]->entries[i].kind != STORE_MAP_NOTHING;
			map->pages[at]->entries[i] = (struct store_map_entry){.kind = STORE_MAP_NOTHING};
		}
		if (page_is_empty(map->pages[at]))
			map_remove_page(map, at);
		else
			at++;
	}
	*ret_cleared = cleared;
	return 0;
}

/* ------------------------------------------------------- what refers to what */

/* Counts each chunk once, however often the map has it: `last_map` knows which map counted it last. */
static void count_map(const struct fake_map *map, uint32_t map_number, uint32_t *last_map, uint32_t *counts)
{
	for (size_t i = 0; i < map->count; i++)
		for (size_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			store_chunk id = map->pages[i]->entries[j].chunk;

			if (id == 0 || last_map[id - 1] == map_number)
				continue;
			last_map[id - 1] = map_number;
			counts[id - 1]++;
		}
}

int fake_count_sharers(const struct fake *fake, uint32_t **ret_counts, struct failure *failure)
{
	size_t room = fake->chunks.count + 1; /* never 0 */
	AUTO_FREE uint32_t *counts = calloc(room, sizeof(*counts));
	AUTO_FREE uint32_t *last_map = calloc(room, sizeof(*last_map));
	uint32_t map_number = 0;

	if (counts == NULL || last_map == NULL)
		return fail(failure, -ENOMEM, "fake store: out of memory");
	for (size_t i = 0; i < fake->disk_count; i++) {
		const struct fake_disk *disk = fake->disks[i];

		count_map(&disk->live, ++map_number, last_map, counts);
		for (size_t j = 0; j < disk->image_count; j++)
			count_map(&disk->images[j]->map, ++map_number, last_map, counts);
	}
	*ret_counts = take_ptr(counts);
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	store_chunk first = *(const store_chunk *)a;
	store_chunk second = *(const store_chunk *)b;

	return first < second ? -1 : first > second;
}

int fake_unique_bytes(const struct fake *fake, const struct fake_map *map, const uint32_t *counts, uint64_t *ret_bytes,
		      struct failure *failure)
{
	AUTO_FREE store_chunk *ids = calloc(map->count * STORE_MAP_PAGE_ENTRIES + 1, sizeof(*ids));
	uint64_t bytes = 0;
	size_t count = 0;

	if (ids == NULL)
		return fail(failure, -ENOMEM, "fake store: out of memory");
	for (size_t i = 0; i < map->count; i++)
		for (size_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			store_chunk id = map->pages[i]->entries[j].chunk;

			if (id != 0 && counts[id - 1] == 1)
				ids[count++] = id;
		}
	qsort(ids, count, sizeof(*ids), compare_ids);
	for (size_t i = 0; i < count; i++)
		if (i == 0 || ids[i] != ids[i - 1])
			bytes += record_total_bytes(fake_chunk_get(&fake->chunks, ids[i])->stored_bytes);
	*ret_bytes = bytes;
	return 0;
}
