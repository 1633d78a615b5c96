/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk engine: folding the journal into chunks, and images.
 *
 * Files of the journal are folded oldest first: every chunk that has an extent in one is put whole, with all its
 * extents, newer ones too. The order that keeps it safe:
 *
 *     1. the content is put together under the stripe's lock, and stored
 *     2. the journal is synced: nothing is folded that a crash could take out of it again, or replay would give older
 * content than the catalog has
 *     3. one commit for a batch of chunks
 *     4. extents that were there in 1 are dropped, by their places; what was written meanwhile stays, over the new
 * content
 *     5. when no extent is left in a file, it is removed, durably; only then may its chunks be written past the journal
 * (disk.c)
 *
 * What can't be read can't be folded: small writes over a damaged chunk stay in the journal, and so do those whose own
 * record is damaged. The others go on. So that one such chunk doesn't keep all files from then on, its writes are
 * appended once more when there is much else in the files, and only then the files go. Who writes or zeroes the whole
 * range leaves nothing to be read: it is folded like any other. Until then no image can be made: none could say what
 * the range holds.
 *
 * An image holds up writers only for what was written during the last pass.
 *
 * The thread begins when the journal is longer than soft_bytes or has many entries, and when nobody has written for a
 * while. Writers wait when it is longer than hard_bytes, and get the thread's failure if it can't go on: then they try
 * it themselves again and again, and go on as soon as it works.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk_internal.h"

enum {
	BATCH_CHUNKS = 256,
	IMAGE_PASSES = 3,
	IMAGE_REST_ENTRIES = 512,
	IDLE_SECONDS = 3,
	FOLD_TRIES = 3,
	CARRY_SLACK_BYTES = 1 << 20,
};

struct folded {
	uint64_t index;
	uint64_t last_file; /* the latest place that went into it */
	uint32_t last_place_bytes;
	struct pending_content content;
};

struct batch {
	struct disk *disk;
	uint64_t through_file;
	bool is_locked; /* all stripes, by us */
	struct folded chunks[BATCH_CHUNKS];
	size_t count;
	bool is_more;
	uint8_t *plain; /* of one chunk */
	struct store_scratch *scratch;
	uint64_t indexes[BATCH_CHUNKS];
	/* These can't be read: they stay in the journal, and the others go on. */
	uint64_t *damaged; /* owned; ascending */
	size_t damaged_count, damaged_capacity;
	uint64_t damaged_index; /* of the first that was met, and why */
	struct failure damage;
};

static void batch_free(struct batch *batch)
{
	if (batch == NULL)
		return;
	free(batch->damaged);
	free(batch->plain);
	disk_scratch_give(batch->disk, batch->scratch);
	free(batch);
}

static void cleanup_batch(struct batch **batch)
{
	batch_free(*batch);
}

static bool has_extent_in(const struct chunk_state *state, uint64_t through_file)
{
	for (uint32_t i = 0; i < state->extent_count; i++)
		if (state->extents[i].file <= through_file)
			return true;
	return false;
}

/* Where it is among the damaged ones, or would be. */
static size_t locate_damaged(const struct batch *batch, uint64_t index)
{
	size_t first = 0, end = batch->damaged_count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (batch->damaged[middle] < index)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

static bool is_damaged(const struct batch *batch, uint64_t index)
{
	size_t at = locate_damaged(batch, index);

	return at < batch->damaged_count && batch->damaged[at] == index;
}

static int note_damaged(struct batch *batch, uint64_t index, const struct failure *cause, struct failure *failure)
{
	size_t at = locate_damaged(batch, index);

	if (batch->damaged_count == batch->damaged_capacity) {
		size_t capacity = batch->damaged_capacity == 0 ? 64 : batch->damaged_capacity * 2;
		uint64_t *grown = reallocarray(batch->damaged, capacity, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "%s", batch->disk->name);
		batch->damaged = grown;
		batch->damaged_capacity = capacity;
	}
	memmove(&batch->damaged[at + 1], &batch->damaged[at], (batch->damaged_count - at) * sizeof(index));
	batch->damaged[at] = index;
	if (batch->damaged_count++ == 0) {
		batch->damaged_index = index;
		(void)fail_from(&batch->damage, cause);
	}
	return 0;
}

static int choose(void *opaque, struct chunk_state *state)
{
	struct batch *batch = opaque;

	if (!has_extent_in(state, batch->through_file) || is_damaged(batch, state->index))
		return 0;
	if (batch->count == BATCH_CHUNKS) {
		batch->is_more = true;
		return 1;
	}
	batch->chunks[batch->count++] = (struct folded){.index = state->index};
	return 0;
}

static int compare_folded(const void *a, const void *b)
{
	const struct folded *first = a, *second = b;

	return first->index < second->index ? -1 : first->index > second->index;
}

/* The chunk's content, and how far in the journal it goes. A state that has gone meanwhile can't be: only folding
 * removes any that has extents. */
static int read_content(struct batch *batch, struct folded *chunk, struct failure *failure)
{
	struct disk *disk = batch->disk;
	struct stripe *stripe = disk_stripe(disk, chunk->index);
	struct chunk_state *state;
	int result;

	if (!batch->is_locked)
		(void)pthread_rwlock_rdlock(&stripe->lock);
	state = disk_state_find(stripe, chunk->index);
	assert(state != NULL);
	for (uint32_t i = 0; i < state->extent_count; i++) {
		const struct extent *extent = &state->extents[i];

		if (extent->file > chunk->last_file ||
		    (extent->file == chunk->last_file && extent->place_bytes > chunk->last_place_bytes)) {
			chunk->last_file = extent->file;
			chunk->last_place_bytes = extent->place_bytes;
		}
	}
	result = disk_read_piece_locked(disk, state, chunk->index, 0, disk_chunk_length(disk, chunk->index),
					batch->plain, failure);
	if (!batch->is_locked)
		(void)pthread_rwlock_unlock(&stripe->lock);
	return result;
}

static int store_content(struct batch *batch, struct folded *chunk, struct failure *failure)
{
	struct disk *disk = batch->disk;
	uint32_t plain_bytes = disk_chunk_length(disk, chunk->index);
	bool was_there;
	int result = read_content(batch, chunk, failure);

	if (result < 0)
		return result;
	if (bytes_are_zero(batch->plain, plain_bytes)) {
		chunk->content = (struct pending_content){.kind = STORE_MAP_NOTHING};
		return 0;
	}
	return disk_put_content(disk, batch->scratch, batch->plain, plain_bytes, &chunk->content, &was_there, failure);
}

static int commit_batch(struct batch *batch, struct failure *failure)
{
	struct disk *disk = batch->disk;
	AUTO_FREE struct store_change *changes = calloc(batch->count, sizeof(*changes));

	if (changes == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	for (size_t i = 0; i < batch->count; i++) {
		const struct pending_content *content = &batch->chunks[i].content;

		changes[i] = (struct store_change){.first_chunk = batch->chunks[i].index,
						   .chunk_count = 1,
						   .kind = content->kind,
						   .chunk = content->chunk};
		memcpy(changes[i].digest, content->digest, DIGEST_BYTES);
		memcpy(changes[i].fingerprint, content->fingerprint, FINGERPRINT_BYTES);
		batch->indexes[i] = batch->chunks[i].index;
	}
	WITH_LOCK(&disk->view_lock);
	return store_commit(disk->view, changes, batch->count, NULL, failure);
}

static void drop_extents(struct batch *batch)
{
	struct disk *disk = batch->disk;

	disk_map_forget(disk, batch->indexes, batch->count);
	for (size_t i = 0; i < batch->count; i++) {
		const struct folded *chunk = &batch->chunks[i];
		struct stripe *stripe = disk_stripe(disk, chunk->index);
		struct chunk_state *state;

		if (!batch->is_locked)
			(void)pthread_rwlock_wrlock(&stripe->lock);
		state = disk_state_find(stripe, chunk->index);
		assert(state != NULL);
		disk_state_uncover(disk, state, chunk->last_file, chunk->last_place_bytes);
		if (!batch->is_locked)
			(void)pthread_rwlock_unlock(&stripe->lock);
	}
}

/* -ESTALE without a message: a chunk that was found has been cleaned away; to be done again. */
static int fold_batch(struct batch *batch, struct failure *failure)
{
	struct failure why = {.code = 0};
	int result = 0;

	for (size_t i = 0; result == 0 && i < batch->count;) {
		struct failure cause = {.code = 0};

		result = store_content(batch, &batch->chunks[i], &cause);
		if (result == -EBADMSG) {
			result = note_damaged(batch, batch->chunks[i].index, &cause, failure);
			memmove(&batch->chunks[i], &batch->chunks[i + 1], (--batch->count - i) * sizeof(batch->chunks[0]));
		} else if (result < 0) {
			(void)fail_from(failure, &cause);
		} else {
			i++;
		}
	}
	if (result == 0 && batch->count == 0)
		return 0;
	if (result == 0)
		result = journal_sync(batch->disk->journal, failure);
	if (result < 0)
		return result;
	result = commit_batch(batch, &why);
	if (result == 0)
		drop_extents(batch);
	else if (result != -ESTALE)
		(void)fail_from(failure, &why);
	return result;
}

static int choose_batch(struct batch *batch)
{
	batch->count = 0;
	batch->is_more = false;
	(void)disk_each_state(batch->disk, batch->is_locked, choose, batch);
	if (batch->count > 1)
		qsort(batch->chunks, batch->count, sizeof(batch->chunks[0]), compare_folded);
	return batch->count > 0;
}

static int fold_batches(struct batch *batch, struct failure *failure)
{
	int tries = 0;

	while (choose_batch(batch)) {
		int result = fold_batch(batch, failure);

		if (result == -ESTALE && ++tries < FOLD_TRIES)
			continue;
		if (result == -ESTALE)
			return fail(failure, -EIO, "%s: content that the store had was cleaned away again and again",
				    batch->disk->name);
		if (result < 0)
			return result;
		tries = 0;
	}
	return 0;
}

struct forgetting {
	uint64_t *indexes; /* owned */
	size_t count, capacity;
	uint64_t through_file;
	bool is_used; /* an extent is in one of the files */
};

static int note_forgettable(void *opaque, struct chunk_state *state)
{
	struct forgetting *forgetting = opaque;

	if (has_extent_in(state, forgetting->through_file))
		forgetting->is_used = true;
	if (!state->is_journaled || state->extent_count > 0 || state->last_file > forgetting->through_file)
		return 0;
	if (forgetting->count == forgetting->capacity) {
		size_t capacity = forgetting->capacity == 0 ? 256 : forgetting->capacity * 2;
		uint64_t *grown = reallocarray(forgetting->indexes, capacity, sizeof(*grown));

		if (grown == NULL)
			return -ENOMEM;
		forgetting->indexes = grown;
		forgetting->capacity = capacity;
	}
	forgetting->indexes[forgetting->count++] = state->index;
	return 0;
}

/* Of chunks that have no record left in any file: they may be written past the journal again. */
static void forget_states(struct disk *disk, const struct forgetting *forgetting, bool is_locked)
{
	for (size_t i = 0; i < forgetting->count; i++) {
		struct stripe *stripe = disk_stripe(disk, forgetting->indexes[i]);
		struct chunk_state *state;

		if (!is_locked)
			(void)pthread_rwlock_wrlock(&stripe->lock);
		state = disk_state_find(stripe, forgetting->indexes[i]);
		if (state != NULL && state->extent_count == 0 && state->last_file <= forgetting->through_file) {
			state->is_journaled = false;
			disk_state_tidy(disk, stripe, state);
		}
		if (!is_locked)
			(void)pthread_rwlock_unlock(&stripe->lock);
	}
}

static int drop_files(struct disk *disk, uint64_t through_file, bool is_locked, struct failure *failure)
{
	struct forgetting forgetting = {.through_file = through_file};
	int result = disk_each_state(disk, is_locked, note_forgettable, &forgetting);

	if (result < 0)
		result = fail_errno(failure, result, "%s", disk->name);
	else if (!forgetting.is_used)
		result = journal_sync(disk->journal, failure); /* no sync to come may look for what is in them */
	if (result == 0 && !forgetting.is_used)
		result = journal_drop(disk->journal, through_file, failure);
	if (result == 0 && !forgetting.is_used) {
		forget_states(disk, &forgetting, is_locked);
		disk->journaled_bytes = journal_bytes(disk->journal);
	}
	free(forgetting.indexes);
	return result;
}

/* ---- damaged chunks ---- */

/* What they have in the files, which can be dropped no other way. */
static uint64_t bytes_to_carry(struct batch *batch)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < batch->damaged_count; i++) {
		struct stripe *stripe = disk_stripe(batch->disk, batch->damaged[i]);
		const struct chunk_state *state;

		(void)pthread_rwlock_rdlock(&stripe->lock);
		state = disk_state_find(stripe, batch->damaged[i]);
		for (uint32_t at = 0; state != NULL && at < state->extent_count; at++)
			if (state->extents[at].file <= batch->through_file)
				bytes += state->extents[at].len_bytes;
		(void)pthread_rwlock_unlock(&stripe->lock);
	}
	return bytes;
}

/* The same bytes in a new record: extents of a chunk don't overlap, so their order among each other doesn't matter. */
static int carry_extent_locked(struct batch *batch, struct chunk_state *state, struct extent *extent,
			       struct failure *failure)
{
	struct journal *journal = batch->disk->journal;
	struct journal_place place = {.file = extent->file, .off_bytes = extent->place_bytes};
	int result = extent->is_zero ? 0
				     : journal_read(journal, place, extent->into_bytes, batch->plain, extent->len_bytes,
						    failure);

	if (result == 0)
		result = journal_append(journal, extent->is_zero ? JOURNAL_ZERO : JOURNAL_WRITE,
					state->index * batch->disk->chunk_bytes + extent->off_bytes, extent->len_bytes,
					extent->is_zero ? NULL : batch->plain, &place, failure);
	if (result < 0)
		return result;
	extent->file = state->last_file = place.file;
	extent->place_bytes = place.off_bytes;
	extent->into_bytes = 0;
	return 0;
}

static int carry_over(struct batch *batch, struct failure *failure)
{
	int result = 0;

	for (size_t i = 0; result == 0 && i < batch->damaged_count; i++) {
		struct stripe *stripe = disk_stripe(batch->disk, batch->damaged[i]);
		struct chunk_state *state;

		(void)pthread_rwlock_wrlock(&stripe->lock);
		state = disk_state_find(stripe, batch->damaged[i]);
		for (uint32_t at = 0; result == 0 && state != NULL && at < state->extent_count; at++)
			if (state->extents[at].file <= batch->through_file)
				result = carry_extent_locked(batch, state, &state->extents[at], failure);
		(void)pthread_rwlock_unlock(&stripe->lock);
	}
	return result;
}

/* All but the damaged ones is folded: that they are is what is said, and what to do about it. */
static int end_with_damage(struct batch *batch, struct failure *failure)
{
	struct disk *disk = batch->disk;
	struct failure unimportant = {.code = 0}; /* the files stay for now: the damage is what is to be told */

	if (!batch->is_locked && journal_bytes(disk->journal) > 2 * bytes_to_carry(batch) + CARRY_SLACK_BYTES)
		(void)carry_over(batch, &unimportant);
	(void)drop_files(disk, batch->through_file, batch->is_locked, &unimportant);
	return fail(failure, -EBADMSG,
		    "%s; there are small writes to %zu such chunks, which must stay in its journal: write all of the %u bytes "
		    "at %llu, or discard them, and they can be folded",
		    batch->damage.message, batch->damaged_count, disk_chunk_length(disk, batch->damaged_index),
		    (unsigned long long)(batch->damaged_index * disk->chunk_bytes));
}

/* Everything in files up to this one, to which nobody appends any more. fold_lock is held. */
static int fold_through(struct disk *disk, uint64_t through_file, bool is_locked, struct failure *failure)
{
	AUTO(cleanup_batch) struct batch *batch = calloc(1, sizeof(*batch));
	int result;

	if (batch == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	batch->disk = disk;
	batch->through_file = through_file;
	batch->is_locked = is_locked;
	batch->plain = malloc(disk->chunk_bytes);
	if (batch->plain == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	result = is_locked ? disk_commit_pending_locked(disk, failure) : disk_commit_pending(disk, failure);
	if (result == 0)
		result = disk_scratch_take(disk, &batch->scratch, failure);
	if (result == 0)
		result = fold_batches(batch, failure);
	if (result == 0 && batch->damaged_count > 0)
		return end_with_damage(batch, failure);
	return result == 0 ? drop_files(disk, through_file, is_locked, failure) : result;
}

static int fold_now(struct disk *disk, bool is_locked, struct failure *failure)
{
	return fold_through(disk, journal_roll(disk->journal), is_locked, failure);
}

int disk_fold_all(struct disk *disk, struct failure *failure)
{
	WITH_LOCK(&disk->fold_lock);

	return fold_now(disk, false, failure);
}

/* ------------------------------------------------------------------ the thread */

static bool is_over(const struct disk *disk, uint64_t bytes, uint64_t entries)
{
	return disk->journaled_bytes > bytes || disk->entries > entries;
}

static bool is_idle(const struct disk *disk)
{
	return disk->soft_bytes != UINT64_MAX && disk->journaled_bytes > 0 &&
	       units_monotonic_seconds() - disk->appended_at > IDLE_SECONDS;
}

/* What is left there because it is damaged is no reason to try again; something new is. */
static bool is_worth_folding(const struct disk *disk)
{
	return disk->has_news &&
	       (is_over(disk, disk->soft_bytes < disk->hard_bytes ? disk->soft_bytes : disk->hard_bytes,
			DISK_ENTRIES_SOFT) ||
		is_idle(disk));
}

static void wait_for_work_locked(struct disk *disk)
{
	struct timespec until;

	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 1;
	(void)pthread_cond_timedwait(&disk->fold_wanted, &disk->fold_wait_lock, &until);
}

/* What is pending here may be what keeps other disks from having anything pending. */
static void commit_for_others_locked(struct disk *disk)
{
	if (disk->fold_is_ending || disk->kept_bytes == 0 || disk_kept_by_all() < DISK_KEPT_BY_ALL_MOST_BYTES / 2)
		return;
	(void)pthread_mutex_unlock(&disk->fold_wait_lock);
	(void)disk_commit_pending(disk, NULL); /* who flushes is told why it can't be */
	(void)pthread_mutex_lock(&disk->fold_wait_lock);
}

static void *fold_in_background(void *opaque)
{
	struct disk *disk = opaque;

	(void)pthread_mutex_lock(&disk->fold_wait_lock);
	while (!disk->fold_is_ending) {
		struct failure failure = {.code = 0};

		if (!is_worth_folding(disk)) {
			wait_for_work_locked(disk);
			commit_for_others_locked(disk);
			continue;
		}
		disk->is_folding = true;
		(void)pthread_mutex_unlock(&disk->fold_wait_lock);
		disk->has_news = false; /* before: what comes meanwhile is news */
		(void)disk_fold_all(disk, &failure);
		if (failure.code != 0 && failure.code != -EBADMSG)
			disk->has_news = true;
		(void)pthread_mutex_lock(&disk->fold_wait_lock);
		disk->is_folding = false;
		disk->fold_failure = failure;
		disk->folds++;
		(void)pthread_cond_broadcast(&disk->fold_done);
		if (failure.code != 0 && !disk->fold_is_ending)
			wait_for_work_locked(disk); /* a full store, for instance: not without a pause */
	}
	(void)pthread_mutex_unlock(&disk->fold_wait_lock);
	return NULL;
}

int disk_fold_start(struct disk *disk, struct failure *failure)
{
	int error = pthread_create(&disk->fold_thread, NULL, fold_in_background, disk);

	if (error != 0)
		return fail_errno(failure, -error, "%s: a thread for its journal", disk->name);
	disk->has_fold_thread = true;
	return 0;
}

void disk_fold_stop(struct disk *disk)
{
	if (!disk->has_fold_thread)
		return;
	{
		WITH_LOCK(&disk->fold_wait_lock);
		disk->fold_is_ending = true;
		(void)pthread_cond_broadcast(&disk->fold_wanted);
	}
	(void)pthread_join(disk->fold_thread, NULL);
	disk->has_fold_thread = false;
}

/* Damage keeps back what is damaged, so another round helps as long as there is anything else. */
static bool has_failed_locked(const struct disk *disk, uint64_t folds_before)
{
	if (disk->fold_failure.code == -EBADMSG)
		return !disk->is_folding && !disk->has_news;
	return disk->fold_failure.code != 0 && disk->folds != folds_before;
}

int disk_fold_throttle(struct disk *disk, struct failure *failure)
{
	uint64_t folds;

	if (!is_over(disk, disk->soft_bytes < disk->hard_bytes ? disk->soft_bytes : disk->hard_bytes,
		     DISK_ENTRIES_SOFT))
		return 0;
	WITH_LOCK(&disk->fold_wait_lock);
	(void)pthread_cond_signal(&disk->fold_wanted);
	folds = disk->folds;
	while (is_over(disk, disk->hard_bytes, DISK_ENTRIES_HARD) && disk->has_fold_thread) {
		struct timespec until;

		(void)pthread_cond_signal(&disk->fold_wanted);
		(void)clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 1;
		(void)pthread_cond_timedwait(&disk->fold_done, &disk->fold_wait_lock, &until);
		if (!is_over(disk, disk->hard_bytes, DISK_ENTRIES_HARD))
			break;
		if (has_failed_locked(disk, folds))
			return fail(failure, disk->fold_failure.code,
				    "%s: its journal is full, and can't be emptied: %s", disk->name,
				    disk->fold_failure.message);
	}
	return 0;
}

/* ------------------------------------------------------------------ images */

static int make_image_locked(struct disk *disk, const struct store_image_params *wanted, uint32_t *ret_number,
			     struct failure *failure)
{
	struct store_image_params params = *wanted;
	int result = fold_now(disk, true, failure);

	if (result < 0)
		return result;
	/* what a power cut at this moment would have left: writers go on all the time */
	if (disk->has_fold_thread && params.consistency == STORE_CLEAN)
		params.consistency = STORE_FROZEN;
	WITH_LOCK(&disk->view_lock);
	return store_create_image(disk->view, &params, ret_number, failure);
}

int disk_create_image(struct disk *disk, const struct store_image_params *params, uint32_t *ret_number,
		      struct failure *failure)
{
	int result = 0;
	WITH_LOCK(&disk->fold_lock);

	if (!disk->is_writable)
		return fail(failure, -EROFS, "%s: opened for reading only", disk->name);
	for (int i = 0; result == 0 && i < IMAGE_PASSES && disk->entries > IMAGE_REST_ENTRIES; i++)
		result = fold_now(disk, false, failure);
	if (result < 0)
		return result;
	WITH_LOCK(&disk->commit_lock);
	disk_lock_all(disk);
	result = make_image_locked(disk, params, ret_number, failure);
	disk_unlock_all(disk);
	return result;
}
