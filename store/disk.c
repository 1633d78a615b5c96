/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk engine: opening, reading, reading ahead.
 *
 * What a byte of a live disk reads as is decided by the first of these that knows it:
 *
 *     extents of the chunk's state     small writes: in the journal, nowhere else
 *     the state's pending content      whole chunks that were written: in a segment, not committed
 *     the map, by way of the cache     what the catalog says; for an image there is nothing else
 *
 * Writing (disk_write.c) adds to the first two, a flush makes both durable, folding (disk_fold.c) turns the first into
 * the third. One rule keeps the journal and the catalog from contradicting each other after a crash:
 *
 *     a chunk of which there is a record in any file of the journal is written by way of the journal only, whole or
 * not, until those files are gone.
 *
 * For replay puts records over what the catalog says. Were a whole chunk committed past the journal, an older record
 * would come back over it. Replaying records that were folded is harmless: all of them, in order, give what was folded,
 * since only what is durable in the journal is folded.
 *
 * Locks, in the order of being taken: fold_lock, commit_lock, stripes (several in ascending order only), view_lock;
 * then those of cache, map slots, scratches and journal, under which nothing else is taken.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk_internal.h"
#include "store/record.h"

enum { STREAM_HITS = 2, STREAM_SLACK_BYTES = 1 << 20, AHEAD_BYTES = 8 << 20 };

uint32_t disk_chunk_length(const struct disk *disk, uint64_t index)
{
	return store_chunk_length(disk->chunk_bytes, disk->size_bytes, index);
}

/* ------------------------------------------------------------------ the map */

static int read_map_page(struct disk *disk, uint64_t page, store_chunk *ret_chunks, struct failure *failure)
{
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	int result = map == NULL ? fail_errno(failure, -ENOMEM, "%s", disk->name)
				 : store_view_map(disk->view, page, map, failure);

	if (result < 0)
		return result;
	for (unsigned i = 0; i < STORE_MAP_PAGE_ENTRIES; i++) {
		const struct store_map_entry *entry = &map->entries[i];

		if (entry->kind > STORE_MAP_CHUNK || (entry->kind == STORE_MAP_CHUNK) != (entry->chunk != 0))
			return fail(failure, -EBADMSG, "%s: chunk %llu: the map says what can't be", disk->name,
				    (unsigned long long)(page * STORE_MAP_PAGE_ENTRIES + i));
		ret_chunks[i] = entry->chunk;
	}
	return 0;
}

static bool take_from_slot(struct map_slot *slot, uint64_t page, unsigned entry, store_chunk *ret_chunk)
{
	WITH_LOCK(&slot->lock);

	if (slot->page_plus_one != page + 1)
		return false;
	*ret_chunk = slot->chunks[entry];
	return true;
}

int disk_map_chunk(struct disk *disk, uint64_t index, store_chunk *ret_chunk, struct failure *failure)
{
	uint64_t page = index / STORE_MAP_PAGE_ENTRIES, version;
	unsigned entry = (unsigned)(index % STORE_MAP_PAGE_ENTRIES);
	struct map_slot *slot = &disk->slots[page % DISK_MAP_SLOTS];
	AUTO_FREE store_chunk *chunks = NULL;
	int result;

	if (take_from_slot(slot, page, entry, ret_chunk))
		return 0;
	version = disk->map_version;
	chunks = malloc(STORE_MAP_PAGE_ENTRIES * sizeof(*chunks));
	if (chunks == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	result = read_map_page(disk, page, chunks, failure);
	if (result < 0)
		return result;
	*ret_chunk = chunks[entry];
	WITH_LOCK(&slot->lock);
	if (disk->map_version != version)
		return 0; /* true when it was read; not to be kept */
	if (slot->chunks == NULL)
		slot->chunks = take_ptr(chunks);
	else
		memcpy(slot->chunks, chunks, STORE_MAP_PAGE_ENTRIES * sizeof(*chunks));
	slot->page_plus_one = page + 1;
	return 0;
}

void disk_map_forget(struct disk *disk, const uint64_t *indexes, size_t count)
{
	uint64_t last_page = UINT64_MAX;

	disk->map_version++; /* before: whoever reads a page from here on has the new one, or finds this changed */
	for (size_t i = 0; i < count; i++) {
		uint64_t page = indexes[i] / STORE_MAP_PAGE_ENTRIES;
		struct map_slot *slot = &disk->slots[page % DISK_MAP_SLOTS];

		if (page == last_page)
			continue;
		last_page = page;
		WITH_LOCK(&slot->lock);
		if (slot->page_plus_one == page + 1)
			slot->page_plus_one = 0;
	}
}

void disk_map_forget_all(struct disk *disk)
{
	disk->map_version++;
	for (unsigned i = 0; i < DISK_MAP_SLOTS; i++) {
		WITH_LOCK(&disk->slots[i].lock);
		disk->slots[i].page_plus_one = 0;
	}
}

/* ------------------------------------------------------------------ content */

static _Atomic unsigned idle_scratches; /* of all disks: each may hold on to some MiB */

int disk_scratch_take(struct disk *disk, struct store_scratch **ret_scratch, struct failure *failure)
{
	{
		WITH_LOCK(&disk->scratch_lock);
		if (disk->scratch_count > 0) {
			*ret_scratch = disk->scratches[--disk->scratch_count];
			idle_scratches--;
			return 0;
		}
	}
	return store_scratch_new(ret_scratch, failure);
}

void disk_scratch_give(struct disk *disk, struct store_scratch *scratch)
{
	if (scratch != NULL) {
		WITH_LOCK(&disk->scratch_lock);
		if (disk->scratch_count < DISK_SCRATCHES && idle_scratches < DISK_SCRATCHES) {
			disk->scratches[disk->scratch_count++] = scratch;
			idle_scratches++;
			return;
		}
	}
	store_scratch_free(scratch);
}

static int load_chunk(void *opaque, store_chunk chunk, void *plain, uint32_t plain_bytes, struct failure *failure)
{
	struct disk *disk = opaque;
	struct store_scratch *scratch = NULL;
	int result = disk_scratch_take(disk, &scratch, failure);

	if (result == 0)
		result = store_view_read_chunk(disk->view, scratch, chunk, plain, plain_bytes, false, failure);
	disk_scratch_give(disk, scratch);
	return result;
}

static int copy_chunk(struct disk *disk, uint64_t index, store_chunk chunk, uint32_t off_bytes, uint32_t len_bytes,
		      void *buffer, struct failure *failure)
{
	uint32_t plain_bytes = disk_chunk_length(disk, index);
	struct cached_chunk *cached = NULL;
	struct failure cause = {.code = 0};
	int result = chunk_cache_get(disk->cache, disk->store, chunk, plain_bytes, load_chunk, disk, &cached, &cause);

	if (result == -EBADMSG)
		return fail(failure, result, "%s: %u bytes at %llu are damaged: %s", disk->name, plain_bytes,
			    (unsigned long long)(index * disk->chunk_bytes), cause.message);
	if (result < 0)
		return fail_from(failure, &cause);
	memcpy(buffer, cached_chunk_plain(cached) + off_bytes, len_bytes);
	chunk_cache_put(disk->cache, cached);
	return 0;
}

static bool extents_cover(const struct chunk_state *state, uint32_t off_bytes, uint32_t len_bytes)
{
	uint32_t at = off_bytes, end = off_bytes + len_bytes;

	for (uint32_t i = 0; i < state->extent_count && at < end; i++) {
		const struct extent *extent = &state->extents[i];

		if (extent->off_bytes > at)
			return false;
		if (extent->off_bytes + extent->len_bytes > at)
			at = extent->off_bytes + extent->len_bytes;
	}
	return at >= end;
}

static int read_extents(struct disk *disk, const struct chunk_state *state, uint32_t off_bytes, uint32_t len_bytes,
			uint8_t *buffer, struct failure *failure)
{
	uint32_t end = off_bytes + len_bytes;
	int result = 0;

	for (uint32_t i = 0; result == 0 && i < state->extent_count; i++) {
		const struct extent *extent = &state->extents[i];
		uint32_t first = extent->off_bytes > off_bytes ? extent->off_bytes : off_bytes;
		uint32_t extent_end = extent->off_bytes + extent->len_bytes;
		uint32_t last = extent_end < end ? extent_end : end;

		if (first >= last)
			continue;
		if (extent->is_zero)
			memset(buffer + (first - off_bytes), 0, last - first);
		else
			result = journal_read(
				disk->journal,
				(struct journal_place){.file = extent->file, .off_bytes = extent->place_bytes},
				extent->into_bytes + (first - extent->off_bytes), buffer + (first - off_bytes),
				last - first, failure);
	}
	return result;
}

/* What is pending, or else what the map says. */
static int read_below_extents(struct disk *disk, const struct chunk_state *state, uint64_t index, uint32_t off_bytes,
			      uint32_t len_bytes, void *buffer, struct failure *failure)
{
	const struct pending_content *pending = state == NULL ? NULL : state->pending;
	store_chunk chunk = 0;
	int result = 0;

	if (pending != NULL && pending->kind == STORE_MAP_CHUNK) {
		memcpy(buffer, pending->plain + off_bytes, len_bytes);
		return 0;
	}
	if (pending == NULL)
		result = disk_map_chunk(disk, index, &chunk, failure);
	if (result < 0)
		return result;
	if (chunk != 0)
		return copy_chunk(disk, index, chunk, off_bytes, len_bytes, buffer, failure);
	memset(buffer, 0, len_bytes);
	return 0;
}

int disk_read_piece_locked(struct disk *disk, const struct chunk_state *state, uint64_t index, uint32_t off_bytes,
			   uint32_t len_bytes, void *buffer, struct failure *failure)
{
	int result = 0;

	if (state == NULL || state->extent_count == 0 || !extents_cover(state, off_bytes, len_bytes))
		result = read_below_extents(disk, state, index, off_bytes, len_bytes, buffer, failure);
	if (result == 0 && state != NULL)
		result = read_extents(disk, state, off_bytes, len_bytes, buffer, failure);
	return result;
}

static int read_piece(struct disk *disk, uint64_t index, uint32_t off_bytes, uint32_t len_bytes, void *buffer,
		      struct failure *failure)
{
	struct stripe *stripe;
	int result;

	if (!disk->is_writable)
		return disk_read_piece_locked(disk, NULL, index, off_bytes, len_bytes, buffer, failure);
	stripe = disk_stripe(disk, index);
	(void)pthread_rwlock_rdlock(&stripe->lock);
	result = disk_read_piece_locked(disk, disk_state_find(stripe, index), index, off_bytes, len_bytes, buffer,
					failure);
	(void)pthread_rwlock_unlock(&stripe->lock);
	return result;
}

/* ------------------------------------------------------------------ reading ahead */

static void read_chunk_ahead(struct disk *disk, uint64_t index)
{
	uint32_t plain_bytes = disk_chunk_length(disk, index);
	struct cached_chunk *cached = NULL;
	store_chunk chunk = 0;

	/* What is pending or in the journal is in memory or will be read from there. A chunk of the map that isn't the
	 * live content any more does no harm. */
	if (disk_map_chunk(disk, index, &chunk, NULL) < 0 || chunk == 0 ||
	    chunk_cache_has(disk->cache, disk->store, chunk, plain_bytes))
		return;
	if (chunk_cache_get(disk->cache, disk->store, chunk, plain_bytes, load_chunk, disk, &cached, NULL) == 0)
		chunk_cache_put(disk->cache, cached); /* whoever wants it meets the failure himself */
}

static void *read_ahead(void *opaque)
{
	struct disk *disk = opaque;

	(void)pthread_mutex_lock(&disk->ahead_lock);
	while (!disk->ahead_is_ending) {
		uint64_t index;

		if (disk->ahead_count == 0) {
			(void)pthread_cond_wait(&disk->ahead_came, &disk->ahead_lock);
			continue;
		}
		index = disk->ahead[disk->ahead_first];
		disk->ahead_first = (disk->ahead_first + 1) % DISK_PREFETCH_QUEUE;
		disk->ahead_count--;
		(void)pthread_mutex_unlock(&disk->ahead_lock);
		read_chunk_ahead(disk, index);
		(void)pthread_mutex_lock(&disk->ahead_lock);
	}
	(void)pthread_mutex_unlock(&disk->ahead_lock);
	return NULL;
}

static void start_reading_ahead_locked(struct disk *disk)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	while (disk->ahead_thread_count < DISK_PREFETCH_THREADS_MOST && (long)disk->ahead_thread_count < cores &&
	       pthread_create(&disk->ahead_threads[disk->ahead_thread_count], NULL, read_ahead, disk) == 0)
		disk->ahead_thread_count++;
}

static void queue_ahead_locked(struct disk *disk, uint64_t off_bytes, uint64_t end_bytes)
{
	if (end_bytes > disk->size_bytes)
		end_bytes = disk->size_bytes;
	if (off_bytes >= end_bytes)
		return;
	if (disk->ahead_thread_count == 0)
		start_reading_ahead_locked(disk);
	for (uint64_t index = off_bytes / disk->chunk_bytes;
	     index <= (end_bytes - 1) / disk->chunk_bytes && disk->ahead_count < DISK_PREFETCH_QUEUE; index++) {
		disk->ahead[(disk->ahead_first + disk->ahead_count) % DISK_PREFETCH_QUEUE] = index;
		disk->ahead_count++;
	}
	(void)pthread_cond_broadcast(&disk->ahead_came);
}

static uint64_t ahead_bytes(const struct disk *disk)
{
	uint64_t share = chunk_cache_bytes(disk->cache) / 8;

	return share < AHEAD_BYTES ? share : AHEAD_BYTES;
}

/* Requests of one reader may overtake each other on their way here. */
static struct stream *stream_of(struct disk *disk, uint64_t off_bytes)
{
	struct stream *oldest = &disk->streams[0];

	for (unsigned i = 0; i < DISK_STREAMS; i++) {
		struct stream *stream = &disk->streams[i];

		if (stream->used != 0 && off_bytes + STREAM_SLACK_BYTES >= stream->next_bytes &&
		    off_bytes <= stream->next_bytes + STREAM_SLACK_BYTES)
			return stream;
		if (stream->used < oldest->used)
			oldest = stream;
	}
	*oldest = (struct stream){.next_bytes = off_bytes};
	return oldest;
}

static void note_read(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes)
{
	uint64_t end_bytes = off_bytes + len_bytes, until;
	struct stream *stream;

	if (pthread_mutex_trylock(&disk->ahead_lock) != 0)
		return; /* many read at once: they keep all cores busy by themselves */
	stream = stream_of(disk, off_bytes);
	stream->used = ++disk->stream_clock;
	if (off_bytes == stream->next_bytes)
		stream->hits++;
	else if (off_bytes > stream->next_bytes && stream->hits > 0)
		stream->hits--;
	if (end_bytes > stream->next_bytes)
		stream->next_bytes = end_bytes;
	until = stream->next_bytes + ahead_bytes(disk);
	if (stream->prefetched_bytes < stream->next_bytes)
		stream->prefetched_bytes = stream->next_bytes;
	/* in helpings of a quarter, so that not every request wakes somebody */
	if (stream->hits >= STREAM_HITS && until - stream->prefetched_bytes >= ahead_bytes(disk) / 4) {
		queue_ahead_locked(disk, stream->prefetched_bytes, until);
		stream->prefetched_bytes = until;
	}
	(void)pthread_mutex_unlock(&disk->ahead_lock);
}

void disk_prefetch(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes)
{
	WITH_LOCK(&disk->ahead_lock);

	if (off_bytes < disk->size_bytes)
		queue_ahead_locked(disk, off_bytes,
				   len_bytes < disk->size_bytes - off_bytes ? off_bytes + len_bytes : disk->size_bytes);
}

static void stop_reading_ahead(struct disk *disk)
{
	{
		WITH_LOCK(&disk->ahead_lock);
		disk->ahead_is_ending = true;
		(void)pthread_cond_broadcast(&disk->ahead_came);
	}
	for (unsigned i = 0; i < disk->ahead_thread_count; i++)
		(void)pthread_join(disk->ahead_threads[i], NULL);
}

/* ------------------------------------------------------------------ for others: reading */

int disk_read(struct disk *disk, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	uint8_t *at = buffer;
	uint64_t end_bytes;

	if (__builtin_add_overflow(off_bytes, len_bytes, &end_bytes) || end_bytes > disk->size_bytes)
		return fail(failure, -EINVAL, "%s: %zu bytes at %llu are beyond its end, %llu", disk->name, len_bytes,
			    (unsigned long long)off_bytes, (unsigned long long)disk->size_bytes);
	if (len_bytes == 0)
		return 0;
	note_read(disk, off_bytes, len_bytes);
	while (off_bytes < end_bytes) {
		uint32_t into = (uint32_t)(off_bytes % disk->chunk_bytes);
		uint64_t left = end_bytes - off_bytes;
		uint32_t piece = left < disk->chunk_bytes - into ? (uint32_t)left : disk->chunk_bytes - into;
		int result = read_piece(disk, off_bytes / disk->chunk_bytes, into, piece, at, failure);

		if (result < 0)
			return result;
		at += piece;
		off_bytes += piece;
	}
	return 0;
}

struct found_states {
	uint64_t first, last;
	struct found_state {
		uint64_t index;
		bool is_zero;
	} * states; /* owned */
	size_t count, capacity;
};

static bool state_is_zero(const struct disk *disk, const struct chunk_state *state)
{
	if (state->extent_count == 1 && state->extents[0].is_zero &&
	    state->extents[0].len_bytes == disk_chunk_length(disk, state->index))
		return true;
	return state->extent_count == 0 && state->pending != NULL && state->pending->kind != STORE_MAP_CHUNK;
}

struct finding {
	struct found_states *found;
	const struct disk *disk;
};

static int find_state(void *opaque, struct chunk_state *state)
{
	struct finding *finding = opaque;
	struct found_states *found = finding->found;

	if (state->index < found->first || state->index > found->last ||
	    (state->extent_count == 0 && state->pending == NULL))
		return 0;
	if (found->count == found->capacity) {
		size_t capacity = found->capacity == 0 ? 64 : found->capacity * 2;
		struct found_state *grown = reallocarray(found->states, capacity, sizeof(*grown));

		if (grown == NULL)
			return -ENOMEM;
		found->states = grown;
		found->capacity = capacity;
	}
	found->states[found->count++] =
		(struct found_state){.index = state->index, .is_zero = state_is_zero(finding->disk, state)};
	return 0;
}

static int compare_states(const void *a, const void *b)
{
	const struct found_state *first = a, *second = b;

	return first->index < second->index ? -1 : first->index > second->index;
}

enum { FEW_CHUNKS = 1024 };

/* Sorted. Of a short range each chunk is looked for; of a long one all states are gone through. */
static int collect_states(struct disk *disk, struct found_states *found, struct failure *failure)
{
	struct finding finding = {.found = found, .disk = disk};
	int result = 0;

	if (!disk->is_writable || disk->entries == 0)
		return 0;
	if (found->last - found->first < FEW_CHUNKS) {
		for (uint64_t index = found->first; result == 0 && index <= found->last; index++) {
			struct stripe *stripe = disk_stripe(disk, index);
			struct chunk_state *state;

			(void)pthread_rwlock_rdlock(&stripe->lock);
			state = disk_state_find(stripe, index);
			if (state != NULL)
				result = find_state(&finding, state);
			(void)pthread_rwlock_unlock(&stripe->lock);
		}
	} else {
		result = disk_each_state(disk, false, find_state, &finding);
		if (result == 0 && found->count > 1)
			qsort(found->states, found->count, sizeof(*found->states), compare_states);
	}
	return result < 0 ? fail_errno(failure, result, "%s", disk->name) : 0;
}

struct extent_walk {
	struct disk *disk;
	uint64_t off_bytes, end_bytes;
	int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero);
	void *opaque;
	uint64_t run_off_bytes; /* not handed on yet: [run_off_bytes, at_bytes) */
	uint64_t at_bytes;
	bool run_is_zero;
	uint64_t next_mapped_page; /* nothing is mapped from the walk's place up to it */
};

static int end_run(struct extent_walk *walk)
{
	uint64_t len_bytes = walk->at_bytes - walk->run_off_bytes;
	int result = len_bytes == 0 ? 0
				    : walk->found(walk->opaque, walk->run_off_bytes, len_bytes, walk->run_is_zero,
						  walk->run_is_zero);

	walk->run_off_bytes = walk->at_bytes;
	return result;
}

/* Chunks first … end - 1 are alike. */
static int extend_run(struct extent_walk *walk, uint64_t end_chunk, bool is_zero)
{
	uint64_t end_bytes = end_chunk * walk->disk->chunk_bytes;
	int result = 0;

	if (end_bytes > walk->end_bytes)
		end_bytes = walk->end_bytes;
	if (walk->run_is_zero != is_zero)
		result = end_run(walk);
	walk->run_is_zero = is_zero;
	walk->at_bytes = end_bytes;
	return result;
}

/* What the map says of chunks index … *end - 1, one or more, at most up to `end`. */
static int map_run(struct extent_walk *walk, uint64_t index, uint64_t *end, bool *ret_is_zero, struct failure *failure)
{
	uint64_t page = index / STORE_MAP_PAGE_ENTRIES;
	store_chunk chunk = 0;
	int result = 0;

	if (walk->next_mapped_page < page || walk->next_mapped_page == 0)
		result = store_view_next_page(walk->disk->view, page, &walk->next_mapped_page, failure);
	if (result < 0)
		return result;
	if (walk->next_mapped_page > page) {
		*ret_is_zero = true;
		if (walk->next_mapped_page != UINT64_MAX && walk->next_mapped_page * STORE_MAP_PAGE_ENTRIES < *end)
			*end = walk->next_mapped_page * STORE_MAP_PAGE_ENTRIES;
		return 0;
	}
	result = disk_map_chunk(walk->disk, index, &chunk, failure);
	*ret_is_zero = chunk == 0;
	*end = index + 1;
	return result;
}

static int walk_extents(struct extent_walk *walk, const struct found_states *states, struct failure *failure)
{
	uint64_t end_chunk = (walk->end_bytes - 1) / walk->disk->chunk_bytes + 1;
	size_t next = 0;
	int result = 0;

	for (uint64_t index = walk->off_bytes / walk->disk->chunk_bytes; result == 0 && index < end_chunk;) {
		uint64_t end = next < states->count ? states->states[next].index : end_chunk;
		bool is_zero = true;

		if (end == index) {
			is_zero = states->states[next++].is_zero;
			end = index + 1;
		} else {
			result = map_run(walk, index, &end, &is_zero, failure);
		}
		if (result == 0)
			result = extend_run(walk, end, is_zero);
		index = end;
	}
	return result == 0 ? end_run(walk) : result;
}

int disk_extents(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes,
		 int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero),
		 void *opaque, struct failure *failure)
{
	struct extent_walk walk = {.disk = disk,
				   .off_bytes = off_bytes,
				   .found = found,
				   .opaque = opaque,
				   .run_off_bytes = off_bytes,
				   .at_bytes = off_bytes};
	struct found_states states = {.count = 0};
	int result;

	if (__builtin_add_overflow(off_bytes, len_bytes, &walk.end_bytes) || walk.end_bytes > disk->size_bytes)
		return fail(failure, -EINVAL, "%s: %llu bytes at %llu are beyond its end, %llu", disk->name,
			    (unsigned long long)len_bytes, (unsigned long long)off_bytes,
			    (unsigned long long)disk->size_bytes);
	if (len_bytes == 0)
		return 0;
	states.first = off_bytes / disk->chunk_bytes;
	states.last = (walk.end_bytes - 1) / disk->chunk_bytes;
	result = collect_states(disk, &states, failure);
	if (result == 0)
		result = walk_extents(&walk, &states, failure);
	free(states.states);
	return result;
}

/* ------------------------------------------------------------------ opening and closing */

const char *disk_name(const struct disk *disk)
{
	return disk->name;
}

uint64_t disk_size(const struct disk *disk)
{
	return disk->size_bytes;
}

uint32_t disk_sector_bytes(const struct disk *disk)
{
	return store_view_sector_bytes(disk->view);
}

uint32_t disk_chunk_bytes(const struct disk *disk)
{
	return disk->chunk_bytes;
}

bool disk_is_writable(const struct disk *disk)
{
	return disk->is_writable;
}

static struct disk *allocate(struct store *store, struct chunk_cache *cache)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	if (disk == NULL)
		return NULL;
	disk->store = store;
	disk->cache = cache;
	disk->journal_fd = -1;
	disk->level = CODEC_LEVEL_DEFAULT;
	disk->chunk_bytes = store_chunk_bytes(store);
	/* none of these fails on Linux with default attributes */
	(void)pthread_mutex_init(&disk->scratch_lock, NULL);
	(void)pthread_mutex_init(&disk->ahead_lock, NULL);
	(void)pthread_cond_init(&disk->ahead_came, NULL);
	(void)pthread_mutex_init(&disk->view_lock, NULL);
	(void)pthread_mutex_init(&disk->spare_lock, NULL);
	(void)pthread_mutex_init(&disk->commit_lock, NULL);
	(void)pthread_mutex_init(&disk->fold_lock, NULL);
	(void)pthread_mutex_init(&disk->fold_wait_lock, NULL);
	(void)pthread_cond_init(&disk->fold_wanted, NULL);
	(void)pthread_cond_init(&disk->fold_done, NULL);
	disk->slots = calloc(DISK_MAP_SLOTS, sizeof(*disk->slots));
	for (unsigned i = 0; disk->slots != NULL && i < DISK_MAP_SLOTS; i++)
		(void)pthread_mutex_init(&disk->slots[i].lock, NULL);
	return disk;
}

static void release(struct disk *disk)
{
	stop_reading_ahead(disk);
	journal_close(disk->journal);
	if (disk->journal_fd >= 0)
		(void)close(disk->journal_fd); /* a folder */
	disk_stripes_free(disk);
	idle_scratches -= disk->scratch_count;
	while (disk->scratch_count > 0)
		store_scratch_free(disk->scratches[--disk->scratch_count]);
	for (unsigned i = 0; disk->slots != NULL && i < DISK_MAP_SLOTS; i++) {
		(void)pthread_mutex_destroy(&disk->slots[i].lock);
		free(disk->slots[i].chunks);
	}
	free(disk->slots);
	store_view_close(disk->view);
	free(disk->name);
	free(disk);
}

static int check_may_write(struct store *store, const struct store_reference *reference,
			   const struct disk_options *options, int *ret_level, struct failure *failure)
{
	struct store_disk *list = NULL;
	size_t count = 0;
	int result;

	if (reference->which != STORE_LIVE)
		return fail(failure, -EROFS, "disk %s: an image can't be written to, it never changes",
			    reference->disk);
	result = store_list_disks(store, reference->disk, &list, &count, failure);
	if (result < 0)
		return result;
	if (list[0].mirror_of != NULL && !options->write_mirror)
		result = fail(failure, -EPERM,
			      "disk %s: it mirrors %s; what is written to it, the next round overwrites: say rw=mirror "
			      "(--rw mirror) if that is meant, or clone an image of it",
			      reference->disk, list[0].mirror_of);
	else if (list[0].level >= 0)
		*ret_level = list[0].level;
	store_disks_free(list, count);
	return result;
}

/* A journal, and what a crash left in it. */
static int open_journal(struct disk *disk, const struct store_disk_files *files, const struct disk_options *options,
			struct failure *failure)
{
	int result = disk_stripes_new(disk, failure);

	disk->soft_bytes = options->journal_soft_bytes != 0 ? options->journal_soft_bytes : (uint64_t)256 << 20;
	disk->hard_bytes = options->journal_hard_bytes != 0 ? options->journal_hard_bytes : (uint64_t)1 << 30;
	if (result == 0)
		result = journal_open(disk->journal_fd, disk->name, files->owner, disk_replay_record, disk,
				      &disk->journal, failure);
	if (result == 0)
		disk->journaled_bytes = journal_bytes(disk->journal);
	disk->has_news = true;
	return result;
}

static int open_for_writing(struct disk *disk, const struct store_reference *reference,
			    const struct disk_options *options, bool is_served, struct failure *failure)
{
	struct store_disk_files files = {.journal_fd = -1};
	int result = store_disk_files(disk->store, reference->disk, true, &files, failure);

	if (result < 0)
		return result;
	disk->journal_fd = files.journal_fd;
	disk->is_writable = true;
	result = open_journal(disk, &files, options, failure);
	if (result == 0 && is_served)
		result = disk_fold_start(disk, failure);
	if (result == 0 && is_served)
		result = disk_control_start(disk, files.socket_path, &disk->control, failure);
	free(files.socket_path);
	return result;
}

static int open_disk(struct store *store, const struct store_reference *reference, const struct disk_options *options,
		     bool is_served, struct disk **ret_disk, struct failure *failure)
{
	struct disk *disk = allocate(store, options->cache);
	int result;

	if (disk == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", reference->disk);
	result = disk->slots == NULL ? fail_errno(failure, -ENOMEM, "disk %s", reference->disk) : 0;
	if (result == 0 && options->write)
		result = check_may_write(store, reference, options, &disk->level, failure);
	if (result == 0 && options->write)
		result = store_view_open_unfolded(store, reference, VIEW_WRITE, options->doing, &disk->view, failure);
	else if (result == 0)
		result = store_view_open(store, reference, VIEW_READ, options->doing, &disk->view, failure);
	if (result == 0) {
		disk->name = strdup(store_view_name(disk->view));
		disk->size_bytes = store_view_size(disk->view);
		result = disk->name == NULL ? fail_errno(failure, -ENOMEM, "disk %s", reference->disk) : 0;
	}
	if (result == 0 && options->write)
		result = open_for_writing(disk, reference, options, is_served, failure);
	if (result < 0) {
		disk_fold_stop(disk);
		release(disk);
		return result;
	}
	*ret_disk = disk;
	return 0;
}

int disk_open(struct store *store, const struct store_reference *reference, const struct disk_options *options,
	      struct disk **ret_disk, struct failure *failure)
{
	assert(options->cache != NULL);
	return open_disk(store, reference, options, true, ret_disk, failure);
}

int disk_close(struct disk *disk, struct failure *failure)
{
	int result = 0;

	if (disk == NULL)
		return 0;
	disk_control_stop(disk->control);
	disk_fold_stop(disk);
	if (disk->is_writable)
		result = disk_fold_all(disk, failure);
	release(disk);
	return result;
}

/* Opened, changed by `change` and closed: for who opens live content in another way. */
static int with_disk(struct store *store, const struct store_reference *reference, const char *doing,
		     int (*change)(struct disk *disk, void *opaque, struct failure *failure), void *opaque,
		     struct failure *failure)
{
	struct disk_options options = {.doing = doing, .write = true, .write_mirror = true};
	struct chunk_cache *cache = NULL;
	struct disk *disk = NULL;
	int result = chunk_cache_new((uint64_t)CHUNK_CACHE_LEAST_BYTES * 2, &cache, failure);

	options.cache = cache;
	if (result == 0)
		result = open_disk(store, reference, &options, false, &disk, failure);
	if (result == 0 && change != NULL)
		result = change(disk, opaque, failure);
	if (disk != NULL) {
		int closed = disk_close(disk, result == 0 ? failure : NULL);

		result = result == 0 ? closed : result;
	}
	chunk_cache_free(cache);
	return result;
}

int disk_recover(struct store *store, const struct store_reference *reference, const char *doing,
		 struct failure *failure)
{
	return with_disk(store, reference, doing, NULL, NULL, failure); /* closing it folds */
}

struct image_request {
	const struct store_image_params *params;
	uint32_t number;
};

static int make_image(struct disk *disk, void *opaque, struct failure *failure)
{
	struct image_request *request = opaque;

	return disk_create_image(disk, request->params, &request->number, failure);
}

int disk_image_unattached(struct store *store, const struct store_reference *reference,
			  const struct store_image_params *params, const char *doing, uint32_t *ret_number, struct failure *failure)
{
	struct image_request request = {.params = params};
	int result = with_disk(store, reference, doing, make_image, &request, failure);

	if (result == 0)
		*ret_number = request.number;
	return result;
}
