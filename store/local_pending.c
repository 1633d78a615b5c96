/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks that are in a segment and not in the catalog yet: between store_put_chunk() and store_commit().
 *
 * Whoever asks for such a digest meanwhile gets a provisional handle: a serial number. A commit gives all of them ids, whoever put them. Handles given out
 * before, that are committed after (a pipeline looks far ahead of its commits), are then resolved by their digest, which every change carries.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/local.h"

int pending_init(struct pending *pending)
{
	*pending = (struct pending){ .first_serial = 1 };
	return -pthread_mutex_init(&pending->lock, NULL);
}

void pending_destroy(struct pending *pending)
{
	free(pending->chunks);
	free(pending->index);
	(void)pthread_mutex_destroy(&pending->lock); /* nobody is left to hold it */
}

static size_t index_start(const struct pending *pending, const uint8_t digest[DIGEST_BYTES])
{
	uint64_t hash;

	memcpy(&hash, digest, sizeof(hash)); /* a digest is as good as random */
	return (size_t)hash & (pending->index_size - 1);
}

/* Where the digest is, or where it would go. */
static size_t index_locate(const struct pending *pending, const uint8_t digest[DIGEST_BYTES])
{
	size_t at = index_start(pending, digest);

	while (pending->index[at] != 0 &&
	       memcmp(pending->chunks[pending->index[at] - 1].digest, digest, DIGEST_BYTES) != 0)
		at = (at + 1) & (pending->index_size - 1);
	return at;
}

store_chunk pending_find(struct pending *pending, const uint8_t digest[DIGEST_BYTES])
{
	WITH_LOCK(&pending->lock);
	size_t at;

	if (pending->count == 0)
		return 0;
	at = index_locate(pending, digest);
	return pending->index[at] == 0 ? 0 : PROVISIONAL_CHUNK | pending->chunks[pending->index[at] - 1].serial;
}

static int pending_grow(struct pending *pending)
{
	size_t capacity = pending->capacity == 0 ? 1024 : pending->capacity * 2;
	struct pending_chunk *chunks = reallocarray(pending->chunks, capacity, sizeof(*chunks));
	uint32_t *index;

	if (chunks == NULL)
		return -ENOMEM;
	pending->chunks = chunks;
	index = calloc(capacity * 2, sizeof(*index));
	if (index == NULL)
		return -ENOMEM;
	free(pending->index);
	pending->index = index;
	pending->index_size = capacity * 2;
	pending->capacity = capacity;
	for (size_t i = 0; i < pending->count; i++)
		index[index_locate(pending, chunks[i].digest)] = (uint32_t)i + 1;
	return 0;
}

int pending_add(struct pending *pending, const struct pending_chunk *chunk, store_chunk *ret_chunk)
{
	WITH_LOCK(&pending->lock);
	struct pending_chunk *slot;

	if (pending->count == pending->capacity && pending_grow(pending) < 0)
		return -ENOMEM;
	slot = &pending->chunks[pending->count];
	*slot = *chunk;
	slot->serial = pending->first_serial + pending->count;
	pending->index[index_locate(pending, chunk->digest)] = (uint32_t)pending->count + 1;
	pending->count++;
	*ret_chunk = PROVISIONAL_CHUNK | slot->serial;
	return 0;
}

struct pending_chunk *pending_copy(struct pending *pending, uint64_t *ret_first_serial, size_t *ret_count)
{
	WITH_LOCK(&pending->lock);
	struct pending_chunk *copy = calloc(pending->count + 1, sizeof(*copy));

	if (copy == NULL)
		return NULL;
	if (pending->count > 0)
		memcpy(copy, pending->chunks, pending->count * sizeof(*copy));
	*ret_first_serial = pending->first_serial;
	*ret_count = pending->count;
	return copy;
}

static void remove_locked(struct pending *pending, size_t count)
{
	if (pending->index == NULL)
		return;
	pending->first_serial += count;
	pending->count -= count;
	memmove(pending->chunks, pending->chunks + count, pending->count * sizeof(*pending->chunks));
	memset(pending->index, 0, pending->index_size * sizeof(*pending->index));
	for (size_t i = 0; i < pending->count; i++)
		pending->index[index_locate(pending, pending->chunks[i].digest)] = (uint32_t)i + 1;
}

void pending_remove(struct pending *pending, size_t count)
{
	WITH_LOCK(&pending->lock);

	remove_locked(pending, count);
}

void pending_clear(struct pending *pending)
{
	WITH_LOCK(&pending->lock);

	remove_locked(pending, pending->count);
}
