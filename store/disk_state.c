/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stripes: which chunks of a live disk have something that the catalog doesn't know of.
 *
 * A chunk belongs to the stripe of its index modulo DISK_STRIPES; neighbours are in different ones, so a large request
 * and its followers seldom meet. The stripe's lock is that of the content of all its chunks: writers hold it while they
 * append to the journal or put a chunk, so that the journal's order is the order of what overlaps; readers while they
 * copy.
 *
 * A state's extents are sorted and don't overlap: a new one cuts those that it covers.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/disk_internal.h"

/* ---- buffers ---- */

static _Atomic uint64_t spare_of_all; /* bytes, of all disks of this process */

uint8_t *disk_spare_take(struct disk *disk)
{
	{
		WITH_LOCK(&disk->spare_lock);
		if (disk->spare_count > 0) {
			spare_of_all -= disk->chunk_bytes;
			return disk->spare_buffers[--disk->spare_count];
		}
	}
	return malloc(disk->chunk_bytes);
}

void disk_spare_give(struct disk *disk, uint8_t *buffer)
{
	{
		WITH_LOCK(&disk->spare_lock);
		if (disk->spare_count < disk->spare_most && spare_of_all < DISK_KEPT_BY_ALL_MOST_BYTES) {
			spare_of_all += disk->chunk_bytes;
			disk->spare_buffers[disk->spare_count++] = buffer;
			return;
		}
	}
	free(buffer);
}

/* ---- stripes ---- */

int disk_stripes_new(struct disk *disk, struct failure *failure)
{
	pthread_rwlockattr_t attributes;

	disk->reserved_bytes = chunk_cache_reserve(disk->cache, DISK_KEPT_MOST_BYTES);
	disk->kept_most_bytes =
		disk->reserved_bytes > DISK_KEPT_LEAST_BYTES ? disk->reserved_bytes : DISK_KEPT_LEAST_BYTES;
	disk->spare_most = disk->kept_most_bytes / disk->chunk_bytes;
	disk->spare_buffers = calloc(disk->spare_most, sizeof(*disk->spare_buffers));
	if (disk->spare_buffers != NULL)
		disk->stripes = calloc(DISK_STRIPES, sizeof(*disk->stripes));
	if (disk->stripes == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	(void)pthread_rwlockattr_init(&attributes); /* these don't fail on Linux */
	/* else readers that follow each other keep an image from ever being made */
	(void)pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	for (unsigned i = 0; i < DISK_STRIPES; i++)
		(void)pthread_rwlock_init(&disk->stripes[i].lock, &attributes);
	(void)pthread_rwlockattr_destroy(&attributes);
	return 0;
}

static _Atomic uint64_t kept_by_all;

uint64_t disk_kept_by_all(void)
{
	return kept_by_all;
}

static void pending_free(struct pending_content *content)
{
	if (content == NULL)
		return;
	if (content->plain != NULL)
		kept_by_all -= content->plain_bytes;
	free(content->plain);
	free(content);
}

static void state_free(struct chunk_state *state)
{
	pending_free(state->pending);
	free(state->extents);
	free(state);
}

void disk_stripes_free(struct disk *disk)
{
	for (unsigned i = 0; disk->stripes != NULL && i < DISK_STRIPES; i++) {
		struct stripe *stripe = &disk->stripes[i];

		for (size_t bucket = 0; bucket < stripe->bucket_count; bucket++)
			while (stripe->buckets[bucket] != NULL) {
				struct chunk_state *state = stripe->buckets[bucket];

				stripe->buckets[bucket] = state->next;
				state_free(state);
			}
		free(stripe->buckets);
		(void)pthread_rwlock_destroy(&stripe->lock);
	}
	free(disk->stripes);
	disk->stripes = NULL;
	spare_of_all -= disk->spare_count * (uint64_t)disk->chunk_bytes;
	while (disk->spare_count > 0)
		free(disk->spare_buffers[--disk->spare_count]);
	free(disk->spare_buffers);
	chunk_cache_release(disk->cache, disk->reserved_bytes);
}

struct stripe *disk_stripe(struct disk *disk, uint64_t index)
{
	return &disk->stripes[index % DISK_STRIPES];
}

void disk_lock_all(struct disk *disk)
{
	for (unsigned i = 0; i < DISK_STRIPES; i++)
		(void)pthread_rwlock_wrlock(&disk->stripes[i].lock);
}

void disk_unlock_all(struct disk *disk)
{
	for (unsigned i = 0; i < DISK_STRIPES; i++)
		(void)pthread_rwlock_unlock(&disk->stripes[i].lock);
}

/* ---- states ---- */

static size_t bucket_of(const struct stripe *stripe, uint64_t index)
{
	return (size_t)((index / DISK_STRIPES) * 0x9e3779b97f4a7c15u >> 32) & (stripe->bucket_count - 1);
}

struct chunk_state *disk_state_find(const struct stripe *stripe, uint64_t index)
{
	struct chunk_state *state = stripe->count == 0 ? NULL : stripe->buckets[bucket_of(stripe, index)];

	while (state != NULL && state->index != index)
		state = state->next;
	return state;
}

static int grow(struct stripe *stripe)
{
	struct stripe larger = {.bucket_count = stripe->bucket_count == 0 ? 8 : stripe->bucket_count * 2};

	larger.buckets = calloc(larger.bucket_count, sizeof(*larger.buckets));
	if (larger.buckets == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < stripe->bucket_count; i++)
		while (stripe->buckets[i] != NULL) {
			struct chunk_state *state = stripe->buckets[i];
			size_t bucket = bucket_of(&larger, state->index);

			stripe->buckets[i] = state->next;
			state->next = larger.buckets[bucket];
			larger.buckets[bucket] = state;
		}
	free(stripe->buckets);
	stripe->buckets = larger.buckets;
	stripe->bucket_count = larger.bucket_count;
	return 0;
}

struct chunk_state *disk_state_make(struct disk *disk, struct stripe *stripe, uint64_t index)
{
	struct chunk_state *state = disk_state_find(stripe, index);
	size_t bucket;

	if (state != NULL)
		return state;
	if (stripe->count >= stripe->bucket_count && grow(stripe) < 0 && stripe->bucket_count == 0)
		return NULL;
	state = calloc(1, sizeof(*state));
	if (state == NULL)
		return NULL;
	bucket = bucket_of(stripe, index);
	state->index = index;
	state->next = stripe->buckets[bucket];
	stripe->buckets[bucket] = state;
	stripe->count++;
	disk->entries++;
	return state;
}

void disk_state_tidy(struct disk *disk, struct stripe *stripe, struct chunk_state *state)
{
	struct chunk_state **at = &stripe->buckets[bucket_of(stripe, state->index)];

	if (state->pending != NULL || state->is_journaled)
		return;
	assert(state->extent_count == 0);
	while (*at != state)
		at = &(*at)->next;
	*at = state->next;
	stripe->count--;
	disk->entries--;
	state_free(state);
}

void disk_state_forget_pending(struct disk *disk, struct chunk_state *state)
{
	if (state->pending == NULL)
		return;
	if (state->pending->plain != NULL) {
		disk->kept_bytes -= state->pending->plain_bytes;
		kept_by_all -= state->pending->plain_bytes;
		disk_spare_give(disk, state->pending->plain);
	}
	free(state->pending);
	state->pending = NULL;
	disk->pending_count--;
}

void disk_state_set_pending(struct disk *disk, struct chunk_state *state, struct pending_content *content)
{
	disk_state_forget_pending(disk, state);
	state->pending = content;
	disk->pending_count++;
	if (content->plain != NULL) {
		disk->kept_bytes += content->plain_bytes;
		kept_by_all += content->plain_bytes;
	}
}

int disk_each_state(struct disk *disk, bool is_locked, int (*visit)(void *opaque, struct chunk_state *state),
		    void *opaque)
{
	int result = 0;

	for (unsigned i = 0; result == 0 && i < DISK_STRIPES; i++) {
		struct stripe *stripe = &disk->stripes[i];

		if (!is_locked)
			(void)pthread_rwlock_rdlock(&stripe->lock);
		for (size_t bucket = 0; result == 0 && bucket < stripe->bucket_count; bucket++)
			for (struct chunk_state *state = stripe->buckets[bucket]; result == 0 && state != NULL;
			     state = state->next)
				result = visit(opaque, state);
		if (!is_locked)
			(void)pthread_rwlock_unlock(&stripe->lock);
	}
	return result;
}

/* ---- extents ---- */

int disk_state_reserve(struct chunk_state *state)
{
	/* a new one, and the second half of one that it splits */
	if (state->extent_count + 2 > state->extent_capacity) {
		uint32_t capacity = state->extent_capacity == 0 ? 2 : state->extent_capacity * 2;
		struct extent *grown = reallocarray(state->extents, capacity, sizeof(*grown));

		if (grown == NULL)
			return -ENOMEM;
		state->extents = grown;
		state->extent_capacity = capacity;
	}
	return 0;
}

static uint32_t end_of(const struct extent *extent)
{
	return extent->off_bytes + extent->len_bytes;
}

static void cut_front(struct extent *extent, uint32_t bytes)
{
	extent->off_bytes += bytes;
	extent->len_bytes -= bytes;
	if (!extent->is_zero)
		extent->into_bytes += bytes;
}

static void insert_at(struct chunk_state *state, uint32_t at, const struct extent *extent)
{
	assert(state->extent_count < state->extent_capacity);
	memmove(&state->extents[at + 1], &state->extents[at], (state->extent_count - at) * sizeof(*extent));
	state->extents[at] = *extent;
	state->extent_count++;
}

void disk_state_cover(struct disk *disk, struct chunk_state *state, const struct extent *extent)
{
	uint32_t first = 0, count_before = state->extent_count, last, end = end_of(extent);

	while (first < state->extent_count && end_of(&state->extents[first]) <= extent->off_bytes)
		first++;
	if (first < state->extent_count && state->extents[first].off_bytes < extent->off_bytes) {
		struct extent rest = state->extents[first];

		state->extents[first].len_bytes = extent->off_bytes - rest.off_bytes;
		cut_front(&rest, extent->off_bytes - rest.off_bytes);
		first++;
		if (end_of(&rest) > end) { /* it lies within an old one, of which two pieces are left */
			cut_front(&rest, end - rest.off_bytes);
			insert_at(state, first, &rest);
		}
	}
	for (last = first; last < state->extent_count && end_of(&state->extents[last]) <= end;)
		last++;
	if (last < state->extent_count && state->extents[last].off_bytes < end)
		cut_front(&state->extents[last], end - state->extents[last].off_bytes);
	memmove(&state->extents[first], &state->extents[last], (state->extent_count - last) * sizeof(*extent));
	state->extent_count -= last - first;
	insert_at(state, first, extent);
	disk->entries += state->extent_count;
	disk->entries -= count_before;
}

void disk_state_uncover(struct disk *disk, struct chunk_state *state, uint64_t file, uint32_t place_bytes)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < state->extent_count; i++) {
		const struct extent *extent = &state->extents[i];

		if (extent->file > file || (extent->file == file && extent->place_bytes > place_bytes))
			state->extents[kept++] = *extent;
	}
	disk->entries -= state->extent_count - kept;
	state->extent_count = kept;
	if (kept == 0) {
		free(state->extents);
		state->extents = NULL;
		state->extent_capacity = 0;
	}
}
