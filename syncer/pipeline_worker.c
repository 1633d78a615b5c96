/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The working stage: what became of each chunk of a unit.
 *
 * The cheap questions first. Most chunks of most rounds end at the fingerprint (12 GiB/s a core), and only what changed is digested, looked up,
 * and compressed. What a chunk is compressed to replaces its plain bytes in the unit's buffer: it is never longer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "syncer/pipeline_internal.h"

/* Read and looked at in one go: it stays in a core's own cache (1 MiB on the machines this was measured on; 512 KiB read no faster, 64 KiB slower). */
enum { PIECE_BYTES = 256 << 10 };

struct worker {
	struct pipeline *pipeline;
	struct store_scratch *scratch;
	const uint8_t *key;
	struct failure failure;
};

static const struct store_map_entry *entry_of(const struct pipeline *pipeline, const struct unit *unit, unsigned index)
{
	static const struct store_map_entry nothing = { .kind = STORE_MAP_NOTHING };
	uint64_t chunk = unit->off_bytes / pipeline->chunk_bytes + index;

	return unit->page == NULL ? &nothing : &unit->page->map.entries[chunk % STORE_MAP_PAGE_ENTRIES];
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint32_t chunk_length(const struct pipeline *pipeline, const struct unit *unit, unsigned index)
{
	uint64_t left = unit->len_bytes - (uint64_t)index * pipeline->chunk_bytes;

	return left < pipeline->chunk_bytes ? (uint32_t)left : pipeline->chunk_bytes;
}

static unsigned chunk_count(const struct pipeline *pipeline, const struct unit *unit)
{
	return (unsigned)((unit->len_bytes + pipeline->chunk_bytes - 1) / pipeline->chunk_bytes);
}

/* Zero, or the same fingerprint? If neither, the digest is computed and *ret_open set. */
static int look_at_chunk(struct worker *worker, struct unit *unit, unsigned index, bool *ret_open)
{
	const struct store_map_entry *entry = entry_of(worker->pipeline, unit, index);
	struct chunk_slot *slot = &unit->chunks[index];
	const uint8_t *plain = unit->buffer + (size_t)index * worker->pipeline->chunk_bytes;
	uint32_t len_bytes = chunk_length(worker->pipeline, unit, index);
	struct hasher *hasher = store_scratch_hasher(worker->scratch);
	int result;

	*ret_open = false;
	slot->is_zero = bytes_are_zero(plain, len_bytes);
	if (slot->is_zero) {
		slot->outcome = entry->kind == STORE_MAP_CHUNK ? OUTCOME_NOTHING : OUTCOME_SAME;
		return 0;
	}
	result = hasher_fingerprint(hasher, worker->key, plain, len_bytes, slot->fingerprint, &worker->failure);
	if (result < 0)
		return result;
	if (entry->kind == STORE_MAP_CHUNK && entry->has_fingerprint &&
	    memcmp(entry->fingerprint, slot->fingerprint, FINGERPRINT_BYTES) == 0) {
		slot->outcome = OUTCOME_SAME;
		return 0;
	}
	*ret_open = true;
	return hasher_digest(hasher, plain, len_bytes, slot->digest, &worker->failure);
}

static int encode_chunk(struct worker *worker, struct unit *unit, unsigned index)
{
	struct chunk_slot *slot = &unit->chunks[index];
	uint8_t *place = unit->buffer + (size_t)index * worker->pipeline->chunk_bytes;
	uint32_t len_bytes = chunk_length(worker->pipeline, unit, index);
	int result = store_encode_chunk(worker->scratch, atomic_load(&worker->pipeline->level), slot->digest, place, len_bytes,
					&slot->encoded, &worker->failure);

	if (result < 0)
		return result;
	if (slot->encoded.stored_bytes > len_bytes)
		return fail(&worker->failure, -EOVERFLOW, "chunk: compressed to more than it was");
	memcpy(place, slot->encoded.stored, slot->encoded.stored_bytes);
	slot->encoded.stored = place;
	slot->outcome = OUTCOME_NEW;
	return 0;
}

/* Chunks that are not what they were: are they known, and if not, compress them. */
static int settle_open_chunks(struct worker *worker, struct unit *unit, const unsigned *open, unsigned open_count)
{
	uint8_t digests[UNIT_MOST_CHUNKS][DIGEST_BYTES];
	store_chunk found[UNIT_MOST_CHUNKS];
	int result;

	for (unsigned i = 0; i < open_count; i++)
		memcpy(digests[i], unit->chunks[open[i]].digest, DIGEST_BYTES);
	result = store_find_chunks(worker->pipeline->store, (const uint8_t(*)[DIGEST_BYTES])digests, open_count, found,
				   &worker->failure);
	for (unsigned i = 0; result == 0 && i < open_count; i++) {
		const struct store_map_entry *entry = entry_of(worker->pipeline, unit, open[i]);
		struct chunk_slot *slot = &unit->chunks[open[i]];

		slot->chunk = found[i];
		if (found[i] == 0)
			result = encode_chunk(worker, unit, open[i]);
		else if (entry->kind == STORE_MAP_CHUNK && entry->chunk == found[i])
			slot->outcome = OUTCOME_REFRESH;
		else
			slot->outcome = OUTCOME_KNOWN;
	}
	return result;
}

static int doubt_bitmap(struct worker *worker, uint64_t off_bytes, uint32_t len_bytes)
{
	struct pipeline *pipeline = worker->pipeline;

	{
		WITH_LOCK(&pipeline->lock);
		if (pipeline->failure.code == 0) {
			pipeline->doubt_off_bytes = off_bytes;
			pipeline->doubt_len_bytes = len_bytes;
			(void)fail(&pipeline->failure, -EUCLEAN,
				   "the dirty bitmap calls the %u bytes at offset %llu clean, and they have changed", len_bytes,
				   (unsigned long long)off_bytes);
		}
	}
	return fail(&worker->failure, -EUCLEAN, "the dirty bitmap is in doubt");
}

static int check_samples(struct worker *worker, const struct unit *unit)
{
	uint32_t chunk_bytes = worker->pipeline->chunk_bytes;

	for (unsigned i = 0; i < chunk_count(worker->pipeline, unit); i++) {
		uint64_t at = (uint64_t)i * chunk_bytes, left = unit->len_bytes - at;

		if (unit->chunks[i].is_sample && unit->chunks[i].outcome != OUTCOME_SAME &&
		    unit->chunks[i].outcome != OUTCOME_REFRESH)
			return doubt_bitmap(worker, unit->off_bytes + at, left < chunk_bytes ? (uint32_t)left : chunk_bytes);
	}
	return 0;
}

/* What of the reads of a unit lies in [first, end) of it, and zeros for the rest of that. False: not at hand any more, or unreadable. */
static bool read_piece(const struct worker *worker, struct unit *unit, uint32_t first, uint32_t end)
{
	for (unsigned i = 0; i < unit->read_count; i++) {
		uint64_t from = unit->reads[i].off_bytes - unit->off_bytes;
		uint64_t to = from + unit->reads[i].len_bytes;

		from = from > first ? from : first;
		to = to < end ? to : end;
		if (from < to && !source_read_at_hand(worker->pipeline->params->source, unit->buffer + from, to - from,
						      unit->off_bytes + from))
			return false;
	}
	unit_clear_unwanted(unit, first, end);
	return true;
}

static void note_what_is_said(const struct worker *worker, struct unit *unit)
{
	for (unsigned i = 0; i < chunk_count(worker->pipeline, unit); i++)
		unit->says_something |= unit->chunks[i].outcome != OUTCOME_SAME;
}

/* 1: it has to go back to the reader. */
static int work_on(struct worker *worker, struct unit *unit)
{
	unsigned open[UNIT_MOST_CHUNKS], open_count = 0;
	uint32_t chunk_bytes = worker->pipeline->chunk_bytes;
	uint32_t piece_bytes = chunk_bytes > PIECE_BYTES ? chunk_bytes : PIECE_BYTES;
	int result = 0;

	for (unsigned i = 0; result == 0 && i < chunk_count(worker->pipeline, unit); i++) {
		uint32_t at = i * chunk_bytes;
		bool is_open;

		if (unit->is_unread && at % piece_bytes == 0 &&
		    !read_piece(worker, unit, at, (uint32_t)smaller(unit->len_bytes, at + piece_bytes)))
			return 1;
		if (unit->chunks[i].is_skipped)
			continue;
		result = look_at_chunk(worker, unit, i, &is_open);
		if (result == 0 && is_open)
			open[open_count++] = i;
	}
	if (result == 0 && open_count > 0)
		result = settle_open_chunks(worker, unit, open, open_count);
	if (result == 0)
		result = check_samples(worker, unit);
	note_what_is_said(worker, unit);
	return result;
}

static bool has_content_to_store(const struct pipeline *pipeline, const struct unit *unit)
{
	for (unsigned i = 0; i < chunk_count(pipeline, unit); i++)
		if (unit->chunks[i].outcome == OUTCOME_NEW)
			return true;
	return false;
}

static void hand_on(struct pipeline *pipeline, struct unit *unit, bool is_returned)
{
	bool needs_buffer = !is_returned && has_content_to_store(pipeline, unit);
	WITH_LOCK(&pipeline->lock);

	pipeline->unread_count -= unit->is_unread;
	if (!needs_buffer)
		unit_drop_buffer_locked(pipeline, unit);
	if (is_returned) {
		unit_queue_put(&pipeline->returned, unit);
	} else {
		unit->is_unread = false;
		pipeline_hand_to_committer_locked(pipeline, unit);
	}
	if (is_returned || (pipeline->unread_count == 0 && pipeline->work.first == NULL))
		(void)pthread_cond_signal(&pipeline->reader_wakes);
}

/*
 * With a limit, what is compressed long before its turn keeps a level that has been changed meanwhile. So workers run ahead of the committer
 * by what the limit lets through in a second, and by one unit each at the least.
 */
static uint64_t work_horizon_locked(const struct pipeline *pipeline)
{
	uint64_t limit = atomic_load(&pipeline->limit);
	uint64_t ahead = limit / UNIT_BYTES;

	if (limit == 0 || ahead > UNIT_COUNT)
		return UINT64_MAX;
	return pipeline->commit_sequence + (ahead < pipeline->worker_count ? pipeline->worker_count : ahead);
}

/* The first in the queue that is before the horizon: the one that the committer waits for always is. */
static struct unit *take_before_locked(struct unit_queue *queue, uint64_t horizon)
{
	struct unit **at = &queue->first;
	struct unit *unit;

	while (*at != NULL && (*at)->sequence >= horizon)
		at = &(*at)->next;
	unit = *at;
	if (unit == NULL)
		return NULL;
	*at = unit->next;
	if (unit->next == NULL)
		queue->last = at;
	return unit;
}

/* The next unit to work on; NULL: the end. */
static struct unit *take_work(struct pipeline *pipeline)
{
	WITH_LOCK(&pipeline->lock);

	for (;;) {
		struct unit *unit = pipeline->is_ending ?
					    NULL :
					    take_before_locked(&pipeline->work, work_horizon_locked(pipeline));

		if (unit != NULL || pipeline->is_ending || (pipeline->reader_is_done && pipeline->work.first == NULL))
			return unit;
		(void)pthread_cond_wait(&pipeline->workers_wake, &pipeline->lock);
	}
}

void *pipeline_work(void *opaque)
{
	struct worker worker = { .pipeline = opaque, .key = NULL };
	struct pipeline *pipeline = opaque;
	struct unit *unit;
	int result;

	worker.key = store_view_fingerprint_key(pipeline->params->view);
	result = store_scratch_new(&worker.scratch, &worker.failure);
	while (result == 0 && (unit = take_work(pipeline)) != NULL) {
		if (unit->is_unread)
			unit_take_buffer(pipeline, unit);
		result = work_on(&worker, unit);
		if (result < 0)
			break;
		hand_on(pipeline, unit, result == 1);
		result = 0;
	}
	if (result < 0)
		pipeline_fail(pipeline, &worker.failure);
	store_scratch_free(worker.scratch);
	return NULL;
}
