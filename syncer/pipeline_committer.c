/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The committing stage: units in the order of the disk become changes, and changes become checkpoints.
 *
 * A checkpoint is made when 256 MiB were stored, 5 seconds have passed, or many changes have gathered, whichever is first; and at the end. It is the only
 * moment at which anything becomes durable, and its cursor may stand inside a unit: with a low limit one unit can take minutes.
 *
 * The limit is one bucket for the whole round, filled at the rate and emptied by bytes stored. It never holds more than a quarter of a second's worth, so that
 * a source that was quiet for a while doesn't make a burst of what it saved. Rate and level are asked for twice a second; a new rate is obeyed in
 * the middle of a wait.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/pipeline_internal.h"

#define CHECKPOINT_STORED_BYTES ((uint64_t)256 << 20)
#define CHECKPOINT_SECONDS 5.0
#define THROTTLE_ASK_SECONDS 0.5
#define BUCKET_SECONDS 0.25
enum { CHECKPOINT_CHANGES = STORE_COMMIT_MOST_CHANGES / 2, IDLE_NANOSECONDS = 250000000, FREE_UNITS_WORTH_WAKING = UNIT_COUNT / 4 };

struct committer {
	struct pipeline *pipeline;
	struct pipeline_result *result; /* as of the last checkpoint */
	struct store_round_counts counts;
	struct store_change *changes; /* STORE_COMMIT_MOST_CHANGES */
	size_t change_count;
	uint64_t cursor_bytes;
	uint64_t stored_since;
	double committed_at;
	bool store_failed;
	/* limit */
	uint64_t limit;
	double tokens, tokens_at, asked_at;
	struct failure failure;
};

/* ---- the limit ---- */

static int ask_throttle(struct committer *committer, double now)
{
	const struct pipeline_params *params = committer->pipeline->params;
	struct store_throttle throttle;
	int result;

	if (now - committer->asked_at < THROTTLE_ASK_SECONDS)
		return 0;
	committer->asked_at = now;
	result = store_round_throttle(params->view, params->round, &throttle, &committer->failure);
	if (result < 0)
		return result;
	if (throttle.limit_bytes_per_second != committer->limit) {
		committer->limit = throttle.limit_bytes_per_second;
		if (committer->tokens > 0)
			committer->tokens = 0;
	}
	atomic_store(&committer->pipeline->level, throttle.level);
	atomic_store(&committer->pipeline->limit, throttle.limit_bytes_per_second);
	WITH_LOCK(&committer->pipeline->lock);
	(void)pthread_cond_broadcast(&committer->pipeline->workers_wake); /* how far they may run ahead may be another now */
	return 0;
}

static int checkpoint(struct committer *committer);

/* Takes bytes out of the bucket, and waits until it isn't overdrawn. */
static int keep_limit(struct committer *committer, uint64_t bytes)
{
	committer->tokens -= (double)bytes;
	for (;;) {
		double now = units_monotonic_seconds();
		double most = (double)committer->limit * BUCKET_SECONDS;
		double debt_seconds;
		int result = ask_throttle(committer, now);

		if (result < 0)
			return result;
		committer->tokens += (now - committer->tokens_at) * (double)committer->limit;
		committer->tokens_at = now;
		if (committer->limit == 0 || committer->tokens > most)
			committer->tokens = committer->limit == 0 ? 0 : most;
		if (committer->tokens >= 0)
			return 0;
		if (pipeline_must_end(committer->pipeline))
			return -ECANCELED;
		if (now - committer->committed_at >= CHECKPOINT_SECONDS && committer->change_count > 0) {
			result = checkpoint(committer);
			if (result < 0)
				return result;
		}
		debt_seconds = -committer->tokens / (double)committer->limit;
		if (debt_seconds > 0.1)
			debt_seconds = 0.1;
		(void)nanosleep(&(struct timespec){ .tv_nsec = (long)(debt_seconds * 1e9) }, NULL); /* woken early: asks again */
	}
}

/* ---- checkpoints ---- */

static int note_read_errors(struct committer *committer)
{
	struct pipeline *pipeline = committer->pipeline;
	const struct pipeline_params *params = pipeline->params;
	AUTO(range_list_free) struct range_list copy = RANGE_LIST_EMPTY;
	{
		WITH_LOCK(&pipeline->lock);
		if (pipeline->errors_are_noted)
			return 0;
		pipeline->errors_are_noted = true;
		for (size_t i = 0; i < params->read_errors->count; i++) {
			const struct range *range = &params->read_errors->ranges[i];
			int result = range_list_add(&copy, range->off_bytes, range->len_bytes, &committer->failure);

			if (result < 0)
				return result;
		}
	}
	return params->note(params->note_opaque, &copy, &committer->failure);
}

static int checkpoint(struct committer *committer)
{
	const struct pipeline_params *params = committer->pipeline->params;
	struct store_round_position position = { .number = params->round,
						 .cursor_bytes = committer->cursor_bytes,
						 .counts = committer->counts };
	int result = note_read_errors(committer);

	if (result == 0)
		result = store_commit(params->view, committer->changes, committer->change_count, &position, &committer->failure);
	if (result == -ESTALE)
		committer->failure.code = result = -EAGAIN; /* apart from a source that is gone: this one goes on from the cursor */
	if (result < 0) {
		committer->store_failed = true;
		return result;
	}
	committer->change_count = 0;
	committer->stored_since = 0;
	committer->committed_at = units_monotonic_seconds();
	committer->result->cursor_bytes = committer->cursor_bytes;
	committer->result->counts = committer->counts;
	return 0;
}

static int checkpoint_if_due(struct committer *committer)
{
	if (committer->stored_since >= CHECKPOINT_STORED_BYTES || committer->change_count >= CHECKPOINT_CHANGES ||
	    units_monotonic_seconds() - committer->committed_at >= CHECKPOINT_SECONDS)
		return checkpoint(committer);
	return 0;
}

/* ---- units ---- */

static struct store_change *add_change(struct committer *committer, uint64_t chunk, uint8_t kind)
{
	struct store_change *change = &committer->changes[committer->change_count++];

	*change = (struct store_change){ .first_chunk = chunk, .chunk_count = 1, .kind = kind };
	return change;
}

static int commit_chunk(struct committer *committer, struct unit *unit, unsigned index, uint32_t len_bytes)
{
	struct pipeline *pipeline = committer->pipeline;
	struct chunk_slot *slot = &unit->chunks[index];
	uint64_t chunk = unit->off_bytes / pipeline->chunk_bytes + index;
	struct store_change *change;
	uint64_t new_bytes = 0;
	int result = 0;

	committer->counts.done += slot->planned_bytes;
	atomic_store(&pipeline->params->meter->done_bytes, committer->counts.done);
	if (slot->is_zero)
		committer->counts.zero += len_bytes;
	if (slot->outcome == OUTCOME_SAME)
		return 0;
	if (slot->outcome == OUTCOME_NEW)
		result = store_put_chunk(pipeline->params->view, &slot->encoded, &slot->chunk, &new_bytes, &committer->failure);
	if (result < 0) {
		committer->store_failed = true;
		return result;
	}
	change = add_change(committer, chunk, slot->outcome == OUTCOME_NOTHING ? STORE_MAP_NOTHING : STORE_MAP_CHUNK);
	change->refresh = slot->outcome == OUTCOME_REFRESH;
	change->chunk = slot->outcome == OUTCOME_NOTHING ? 0 : slot->chunk;
	memcpy(change->digest, slot->digest, DIGEST_BYTES);
	memcpy(change->fingerprint, slot->fingerprint, FINGERPRINT_BYTES);
	committer->stored_since += new_bytes;
	committer->counts.stored += new_bytes;
	committer->counts.sent += new_bytes;
	if (slot->outcome != OUTCOME_REFRESH)
		committer->counts.changed += len_bytes;
	atomic_store(&pipeline->params->meter->sent_bytes, committer->counts.stored);
	atomic_store(&pipeline->params->meter->changed_bytes, committer->counts.changed);
	committer->cursor_bytes = chunk * pipeline->chunk_bytes + len_bytes;
	result = keep_limit(committer, new_bytes);
	return result == 0 ? checkpoint_if_due(committer) : result;
}

static int commit_content(struct committer *committer, struct unit *unit)
{
	uint32_t chunk_bytes = committer->pipeline->chunk_bytes;
	int result = 0;

	for (uint64_t at = 0, i = 0; result == 0 && at < unit->len_bytes; at += chunk_bytes, i++) {
		uint64_t left = unit->len_bytes - at;

		result = commit_chunk(committer, unit, (unsigned)i, left < chunk_bytes ? (uint32_t)left : chunk_bytes);
	}
	return result;
}

/* A range that reads as zeros: what is mapped in its page becomes nothing. */
static int commit_zeros(struct committer *committer, const struct unit *unit)
{
	uint32_t chunk_bytes = committer->pipeline->chunk_bytes;
	uint64_t first = unit->off_bytes / chunk_bytes;
	uint64_t end = (unit->off_bytes + unit->len_bytes + chunk_bytes - 1) / chunk_bytes;

	if (unit->page == NULL)
		return 0;
	for (uint64_t chunk = first; chunk < end; chunk++) {
		uint64_t left = committer->pipeline->size_bytes - chunk * chunk_bytes;
		int result;

		if (unit->page->map.entries[chunk % STORE_MAP_PAGE_ENTRIES].kind != STORE_MAP_CHUNK)
			continue;
		(void)add_change(committer, chunk, STORE_MAP_NOTHING);
		committer->counts.changed += left < chunk_bytes ? left : chunk_bytes;
		committer->cursor_bytes = chunk * chunk_bytes + (left < chunk_bytes ? left : chunk_bytes);
		atomic_store(&committer->pipeline->params->meter->changed_bytes, committer->counts.changed);
		result = checkpoint_if_due(committer);
		if (result < 0)
			return result;
	}
	return 0;
}

static int commit_unit(struct committer *committer, struct unit *unit)
{
	int result = 0;

	/* at once for the whole unit: if a checkpoint in the middle of it is where the round goes on, the rest is read again */
	committer->counts.read += unit->read_bytes;
	if (unit->has_content)
		result = commit_content(committer, unit);
	else
		result = commit_zeros(committer, unit);
	if (result < 0)
		return result;
	committer->cursor_bytes = unit->off_bytes + unit->len_bytes;
	committer->counts.zero += unit->hole_bytes;
	return checkpoint_if_due(committer);
}

/*
 * The next unit in order; NULL: the end, or (*ret_idle) none came for a while: a source that is slow, or hangs, must hold up neither checkpoints
 * nor a stop.
 */
static struct unit *take_unit(struct pipeline *pipeline, bool *ret_idle)
{
	struct timespec until = units_time_from_now(CLOCK_REALTIME, IDLE_NANOSECONDS); /* its exact length doesn't matter */
	WITH_LOCK(&pipeline->lock);
	struct unit **slot = &pipeline->order[pipeline->commit_sequence % UNIT_COUNT];

	*ret_idle = false;
	for (;;) {
		struct unit *unit = *slot;

		if (pipeline->is_ending)
			return NULL;
		if (unit != NULL && unit->sequence == pipeline->commit_sequence) {
			*slot = NULL;
			pipeline->ordered_count--;
			pipeline->saying_count -= unit->says_something;
			pipeline->commit_sequence++;
			if (atomic_load(&pipeline->limit) != 0) /* workers may be waiting to run ahead of it */
				(void)pthread_cond_broadcast(&pipeline->workers_wake);
			return unit;
		}
		if (pipeline->reader_is_done && pipeline->commit_sequence == pipeline->next_sequence)
			return NULL;
		if (pthread_cond_timedwait(&pipeline->committer_wakes, &pipeline->lock, &until) == ETIMEDOUT) {
			*ret_idle = true;
			return NULL;
		}
	}
}

static void give_back(struct pipeline *pipeline, struct unit *unit)
{
	shared_page_release(unit->page);
	unit->page = NULL;
	WITH_LOCK(&pipeline->lock);
	unit_drop_buffer_locked(pipeline, unit);
	unit_queue_put_first(&pipeline->free_units, unit); /* its memory is in the caches, and there at all */
	pipeline->free_count++;
	if (pipeline->free_count >= FREE_UNITS_WORTH_WAKING)
		(void)pthread_cond_signal(&pipeline->reader_wakes);
}

void pipeline_commit(struct pipeline *pipeline, struct pipeline_result *result)
{
	struct committer committer = { .pipeline = pipeline,
				       .result = result,
				       .counts = result->counts,
				       .cursor_bytes = result->cursor_bytes,
				       .committed_at = units_monotonic_seconds(),
				       .tokens_at = units_monotonic_seconds(),
				       .asked_at = -1 };
	struct unit *unit;
	int code = 0;

	committer.changes = calloc(STORE_COMMIT_MOST_CHANGES, sizeof(*committer.changes));
	if (committer.changes == NULL)
		code = fail_errno(&committer.failure, -ENOMEM, "round");
	while (code == 0 && !pipeline_must_end(pipeline)) {
		bool is_idle;

		unit = take_unit(pipeline, &is_idle);
		if (unit != NULL) {
			code = commit_unit(&committer, unit);
			give_back(pipeline, unit);
		} else if (!is_idle) {
			break;
		} else if (committer.cursor_bytes != result->cursor_bytes) {
			code = checkpoint_if_due(&committer);
		}
	}
	/* what was handed over before the end, whatever made it end */
	if ((code == 0 || code == -ECANCELED) && !committer.store_failed)
		code = checkpoint(&committer);
	if (code < 0)
		pipeline_fail(pipeline, &committer.failure);
	free(committer.changes);
}
