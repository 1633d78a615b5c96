/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of plain chunks, for the disk engine. disk.h has its making and its end.
 *
 * Keys are a store and a chunk of it: what a chunk is called never comes to mean other bytes while the store is open,
 * so nothing in here can be out of date.
 */
#ifndef WHERRY_STORE_CHUNK_CACHE_H
#define WHERRY_STORE_CHUNK_CACHE_H

#include "store/disk.h"

struct cached_chunk; /* pinned: stays in memory until chunk_cache_put() */

/* Fills `plain` with the plain_bytes of the chunk. Called outside of any lock of the cache. */
typedef int chunk_load(void *opaque, store_chunk chunk, void *plain, uint32_t plain_bytes, struct failure *failure);

/*
 * The chunk, from memory or by `load`, which one of several callers at once does for all of them. Any thread. -ENOMEM,
 * or what `load` says; a failure is not kept: the next one tries again.
 */
int chunk_cache_get(struct chunk_cache *cache, const struct store *store, store_chunk chunk, uint32_t plain_bytes,
		    chunk_load *load, void *opaque, struct cached_chunk **ret_chunk, struct failure *failure);
const uint8_t *cached_chunk_plain(const struct cached_chunk *chunk);
void chunk_cache_put(struct chunk_cache *cache, struct cached_chunk *chunk); /* NULL is fine */

/* Is it there, or on its way? Just a look. */
bool chunk_cache_has(struct chunk_cache *cache, const struct store *store, store_chunk chunk, uint32_t plain_bytes);

uint64_t chunk_cache_bytes(const struct chunk_cache *cache); /* how much it may hold */

/*
 * Memory that the cache shall do without from now on, so that others have it and all of them together stay within its
 * bounds. Never more than half of the cache in all. Returns how much of `most_bytes` was granted; chunk_cache_release()
 * gives it back.
 */
uint64_t chunk_cache_reserve(struct chunk_cache *cache, uint64_t most_bytes);
void chunk_cache_release(struct chunk_cache *cache, uint64_t bytes);

#endif
