/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shards, each with a lock, a table and a list in the order of use. An entry is
 *
 *     loading   in the table, pinned by whoever decodes it; others wait for the shard's condition
 *     ready     in the table; in the list as well while nobody has it pinned
 *     failed    out of the table; freed by the last who waited for it
 *
 * Only what is in the list can be thrown out, so pinned entries may take a shard over its share for as long as they
 * are: by a chunk for each thread that is reading. The length is part of the key, for the last chunk of a disk may be
 * another's whole one. A buffer that is thrown out is used again for what comes in: the same pages, warm and mapped.
 *
 * Lock order: nothing else is locked while a shard is.
 */
#include "store/chunk_cache.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/store_ops.h"

enum { SHARDS_MOST = 16, SHARD_LEAST_BYTES = 8 << 20, BYTES_A_BUCKET = 32 << 10 };

enum entry_state { ENTRY_LOADING, ENTRY_READY, ENTRY_FAILED };

struct cached_chunk {
	uint64_t store; /* its serial number */
	store_chunk chunk;
	uint32_t plain_bytes;
	enum entry_state state;
	unsigned pins;
	uint8_t *plain; /* owned */
	struct cached_chunk *next_in_bucket;
	struct cached_chunk *older, *newer; /* in the list; NULL at its ends */
	bool is_listed;
};

struct shard {
	pthread_mutex_t lock;
	pthread_cond_t loaded;
	struct cached_chunk **buckets;
	size_t bucket_count; /* a power of two */
	struct cached_chunk *oldest, *newest;
	uint64_t bytes; /* of all entries in the table */
};

struct chunk_cache {
	uint64_t most_bytes;
	_Atomic uint64_t reserved_bytes; /* of those: taken by others */
	unsigned shard_count;		 /* a power of two */
	struct shard shards[SHARDS_MOST];
};

static uint64_t mix(uint64_t store, store_chunk chunk, uint32_t plain_bytes)
{
	uint64_t value = chunk * 0x9e3779b97f4a7c15u ^ store << 20 ^ (uint64_t)plain_bytes << 40;

	value ^= value >> 32;
	value *= 0xd6e8feb86659fd93u;
	return value ^ value >> 32;
}

int chunk_cache_new(uint64_t most_bytes, struct chunk_cache **ret_cache, struct failure *failure)
{
	struct chunk_cache *cache;
	size_t buckets = 1;

	if (most_bytes < CHUNK_CACHE_LEAST_BYTES)
		return fail(failure, -EINVAL, "cache: %llu bytes; %d MiB is the least", (unsigned long long)most_bytes,
			    CHUNK_CACHE_LEAST_BYTES >> 20);
	cache = calloc(1, sizeof(*cache));
	if (cache == NULL)
		return fail(failure, -ENOMEM, "cache: no memory");
	cache->most_bytes = most_bytes;
	cache->shard_count = 1;
	while (cache->shard_count < SHARDS_MOST && most_bytes / (cache->shard_count * 2) >= SHARD_LEAST_BYTES)
		cache->shard_count *= 2;
	while (buckets < most_bytes / cache->shard_count / BYTES_A_BUCKET && buckets < (size_t)1 << 20)
		buckets *= 2;
	for (unsigned i = 0; i < cache->shard_count; i++) {
		struct shard *shard = &cache->shards[i];

		(void)pthread_mutex_init(&shard->lock, NULL); /* these don't fail on Linux with default attributes */
		(void)pthread_cond_init(&shard->loaded, NULL);
		shard->bucket_count = buckets;
		shard->buckets = calloc(buckets, sizeof(*shard->buckets));
		if (shard->buckets == NULL) {
			chunk_cache_free(cache);
			return fail(failure, -ENOMEM, "cache: no memory");
		}
	}
	*ret_cache = cache;
	return 0;
}

static void entry_free(struct cached_chunk *entry)
{
	free(entry->plain);
	free(entry);
}

void chunk_cache_free(struct chunk_cache *cache)
{
	if (cache == NULL)
		return;
	for (unsigned i = 0; i < cache->shard_count; i++) {
		struct shard *shard = &cache->shards[i];

		if (shard->buckets == NULL)
			continue;
		for (size_t bucket = 0; bucket < shard->bucket_count; bucket++) {
			struct cached_chunk *entry = shard->buckets[bucket];

			while (entry != NULL) {
				struct cached_chunk *next = entry->next_in_bucket;

				assert(entry->pins == 0);
				entry_free(entry);
				entry = next;
			}
		}
		free(shard->buckets);
		(void)pthread_cond_destroy(&shard->loaded);
		(void)pthread_mutex_destroy(&shard->lock);
	}
	free(cache);
}

uint64_t chunk_cache_bytes(const struct chunk_cache *cache)
{
	return cache->most_bytes;
}

/* ---- within a shard, locked ---- */

static struct cached_chunk **place_of(struct shard *shard, uint64_t hash, uint64_t store, store_chunk chunk,
				      uint32_t plain_bytes)
{
	struct cached_chunk **at = &shard->buckets[hash / SHARDS_MOST & (shard->bucket_count - 1)];

	while (*at != NULL && ((*at)->chunk != chunk || (*at)->store != store || (*at)->plain_bytes != plain_bytes))
		at = &(*at)->next_in_bucket;
	return at;
}

static void unlist(struct shard *shard, struct cached_chunk *entry)
{
	*(entry->older != NULL ? &entry->older->newer : &shard->oldest) = entry->newer;
	*(entry->newer != NULL ? &entry->newer->older : &shard->newest) = entry->older;
	entry->is_listed = false;
}

static void list_as_newest(struct shard *shard, struct cached_chunk *entry)
{
	entry->older = shard->newest;
	entry->newer = NULL;
	*(shard->newest != NULL ? &shard->newest->newer : &shard->oldest) = entry;
	shard->newest = entry;
	entry->is_listed = true;
}

static void remove_from_table(struct shard *shard, struct cached_chunk *entry)
{
	uint64_t hash = mix(entry->store, entry->chunk, entry->plain_bytes);
	struct cached_chunk **at = place_of(shard, hash, entry->store, entry->chunk, entry->plain_bytes);

	assert(*at == entry);
	*at = entry->next_in_bucket;
	shard->bytes -= entry->plain_bytes;
}

/* Room for one more of this length. Returns a buffer of that length if one was thrown out for it. */
static uint8_t *make_room(const struct chunk_cache *cache, struct shard *shard, uint32_t plain_bytes)
{
	uint64_t most_bytes = (cache->most_bytes - cache->reserved_bytes) / cache->shard_count;
	uint8_t *buffer = NULL;

	while (shard->bytes + plain_bytes > most_bytes && shard->oldest != NULL) {
		struct cached_chunk *entry = shard->oldest;

		unlist(shard, entry);
		remove_from_table(shard, entry);
		if (buffer == NULL && entry->plain_bytes == plain_bytes) {
			buffer = entry->plain;
			entry->plain = NULL;
		}
		entry_free(entry);
	}
	return buffer;
}

/* A new entry in the table, pinned once, that is being loaded. NULL: no memory. */
static struct cached_chunk *insert(const struct chunk_cache *cache, struct shard *shard, uint64_t hash, uint64_t store,
				   store_chunk chunk, uint32_t plain_bytes)
{
	struct cached_chunk *entry = calloc(1, sizeof(*entry));
	struct cached_chunk **bucket = &shard->buckets[hash / SHARDS_MOST & (shard->bucket_count - 1)];

	if (entry == NULL)
		return NULL;
	entry->plain = make_room(cache, shard, plain_bytes);
	if (entry->plain == NULL)
		entry->plain = malloc(plain_bytes);
	if (entry->plain == NULL) {
		free(entry);
		return NULL;
	}
	entry->store = store;
	entry->chunk = chunk;
	entry->plain_bytes = plain_bytes;
	entry->state = ENTRY_LOADING;
	entry->pins = 1;
	entry->next_in_bucket = *bucket;
	*bucket = entry;
	shard->bytes += plain_bytes;
	return entry;
}

static void pin(struct shard *shard, struct cached_chunk *entry)
{
	if (entry->is_listed)
		unlist(shard, entry);
	entry->pins++;
}

static void unpin(struct shard *shard, struct cached_chunk *entry)
{
	assert(entry->pins > 0);
	if (--entry->pins > 0)
		return;
	if (entry->state == ENTRY_FAILED)
		entry_free(entry);
	else
		list_as_newest(shard, entry);
}

static void finish_loading(struct shard *shard, struct cached_chunk *entry, bool is_ready)
{
	WITH_LOCK(&shard->lock);

	entry->state = is_ready ? ENTRY_READY : ENTRY_FAILED;
	if (!is_ready) {
		remove_from_table(shard, entry);
		unpin(shard, entry);
	}
	(void)pthread_cond_broadcast(&shard->loaded);
}

/* ---- for the engine ---- */

static struct shard *shard_of(struct chunk_cache *cache, uint64_t hash)
{
	return &cache->shards[hash & (cache->shard_count - 1)];
}

/* Pinned: ready, or (*ret_is_ours) for the caller to load. NULL: no memory. */
static struct cached_chunk *find_or_insert(struct chunk_cache *cache, uint64_t store, store_chunk chunk,
					   uint32_t plain_bytes, bool *ret_is_ours)
{
	uint64_t hash = mix(store, chunk, plain_bytes);
	struct shard *shard = shard_of(cache, hash);
	WITH_LOCK(&shard->lock);

	for (;;) {
		struct cached_chunk *entry = *place_of(shard, hash, store, chunk, plain_bytes);

		*ret_is_ours = entry == NULL;
		if (entry == NULL)
			return insert(cache, shard, hash, store, chunk, plain_bytes);
		pin(shard, entry);
		while (entry->state == ENTRY_LOADING)
			(void)pthread_cond_wait(&shard->loaded, &shard->lock);
		if (entry->state == ENTRY_READY)
			return entry;
		unpin(shard, entry); /* the other one failed: its message is not for us, we try ourselves */
	}
}

int chunk_cache_get(struct chunk_cache *cache, const struct store *store, store_chunk chunk, uint32_t plain_bytes,
		    chunk_load *load, void *opaque, struct cached_chunk **ret_chunk, struct failure *failure)
{
	bool is_ours = false;
	struct cached_chunk *entry = find_or_insert(cache, store->serial, chunk, plain_bytes, &is_ours);
	int result = 0;

	if (entry == NULL)
		return fail(failure, -ENOMEM, "cache: no memory");
	if (is_ours) {
		result = load(opaque, chunk, entry->plain, plain_bytes, failure);
		finish_loading(shard_of(cache, mix(store->serial, chunk, plain_bytes)), entry, result == 0);
	}
	if (result < 0)
		return result;
	*ret_chunk = entry;
	return 0;
}

const uint8_t *cached_chunk_plain(const struct cached_chunk *chunk)
{
	return chunk->plain;
}

void chunk_cache_put(struct chunk_cache *cache, struct cached_chunk *chunk)
{
	struct shard *shard;

	if (chunk == NULL)
		return;
	shard = shard_of(cache, mix(chunk->store, chunk->chunk, chunk->plain_bytes));
	WITH_LOCK(&shard->lock);
	unpin(shard, chunk);
}

bool chunk_cache_has(struct chunk_cache *cache, const struct store *store, store_chunk chunk, uint32_t plain_bytes)
{
	uint64_t hash = mix(store->serial, chunk, plain_bytes);
	struct shard *shard = shard_of(cache, hash);
	WITH_LOCK(&shard->lock);

	return *place_of(shard, hash, store->serial, chunk, plain_bytes) != NULL;
}

uint64_t chunk_cache_reserve(struct chunk_cache *cache, uint64_t most_bytes)
{
	uint64_t before = cache->reserved_bytes, bytes;

	do {
		bytes = cache->most_bytes / 2 > before ? cache->most_bytes / 2 - before : 0;
		if (bytes > most_bytes)
			bytes = most_bytes;
	} while (!atomic_compare_exchange_weak(&cache->reserved_bytes, &before, before + bytes));
	for (unsigned i = 0; bytes > 0 && i < cache->shard_count; i++) {
		WITH_LOCK(&cache->shards[i].lock);
		free(make_room(cache, &cache->shards[i], 0));
	}
	return bytes;
}

void chunk_cache_release(struct chunk_cache *cache, uint64_t bytes)
{
	cache->reserved_bytes -= bytes;
}
