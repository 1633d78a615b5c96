/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk engine: writing, zeroing, flushing.
 *
 *     part of a chunk, or a chunk that has records in the journal     a record in the journal
 *     a whole chunk otherwise                                         into a segment at once: pending until a commit
 *
 * So a large write costs one pass (digest, compression, segment) and no journal, and a small one an append. A flush
 * commits what is pending, and syncs the journal; neither needs the other's order: until it returns, either content of
 * what was written is right.
 *
 * Pending content is put, not referenced. Whether the store had it, or another commit of the same store has entered it into the catalog
 * meanwhile: clean-up may take it away until ours refers to it. So its plain bytes are kept until then, at most
 * kept_most_bytes, and DISK_KEPT_BY_ALL_MOST_BYTES in all disks of a process, and are put again when a commit says that something is
 * gone (-ESTALE).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk_internal.h"
#include "store/record.h"

enum { COMMIT_TRIES = 3, RANGE_CHUNKS = 4096 };

/* ------------------------------------------------------------------ whole chunks */

/* Takes what the store has, or puts it. */
static int find_or_put(struct disk *disk, struct store_scratch *scratch, const void *plain, uint32_t plain_bytes,
		       struct pending_content *content, bool *ret_was_there, struct failure *failure)
{
	struct store_encoded encoded;
	uint64_t new_bytes;
	int result = store_find_chunks(disk->store, (const uint8_t(*)[DIGEST_BYTES])content->digest, 1, &content->chunk,
				       failure);

	*ret_was_there = result == 0 && content->chunk != 0;
	if (result < 0 || content->chunk != 0)
		return result;
	result = store_encode_chunk(scratch, disk->level, content->digest, plain, plain_bytes, &encoded, failure);
	return result < 0 ? result : store_put_chunk(disk->view, &encoded, &content->chunk, &new_bytes, failure);
}

int disk_put_content(struct disk *disk, struct store_scratch *scratch, const void *plain, uint32_t plain_bytes,
		     struct pending_content *ret_content, bool *ret_was_there, struct failure *failure)
{
	struct pending_content content = {.kind = STORE_MAP_CHUNK, .plain_bytes = plain_bytes};
	struct hasher *hasher = store_scratch_hasher(scratch);
	int result = hasher_digest(hasher, plain, plain_bytes, content.digest, failure);

	if (result == 0)
		result = hasher_fingerprint(hasher, store_view_fingerprint_key(disk->view), plain, plain_bytes,
					    content.fingerprint, failure);
	if (result == 0)
		result = find_or_put(disk, scratch, plain, plain_bytes, &content, ret_was_there, failure);
	if (result == 0)
		*ret_content = content;
	return result;
}

static int set_pending_locked(struct disk *disk, struct stripe *stripe, uint64_t index,
			      const struct pending_content *content, struct failure *failure)
{
	struct chunk_state *state = disk_state_make(disk, stripe, index);
	struct pending_content *copy = state == NULL ? NULL : malloc(sizeof(*copy));

	if (copy == NULL) {
		if (state != NULL)
			disk_state_tidy(disk, stripe, state);
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	}
	assert(!state->is_journaled);
	*copy = *content;
	copy->version = ++disk->next_version;
	disk_state_set_pending(disk, state, copy);
	return 0;
}

static int zero_chunk_locked(struct disk *disk, struct stripe *stripe, uint64_t index, struct failure *failure)
{
	const struct pending_content zero = {.kind = STORE_MAP_NOTHING};
	struct chunk_state *state = disk_state_find(stripe, index);
	store_chunk chunk = 0;
	int result = 0;

	if (state == NULL || state->pending == NULL)
		result = disk_map_chunk(disk, index, &chunk, failure);
	if (result < 0 || ((state == NULL || state->pending == NULL) && chunk == 0))
		return result; /* it reads as zeros already */
	return set_pending_locked(disk, stripe, index, &zero, failure);
}

static int write_chunk_locked(struct disk *disk, struct stripe *stripe, uint64_t index, const void *plain,
			      struct failure *failure)
{
	uint32_t plain_bytes = disk_chunk_length(disk, index);
	struct pending_content content = {.kind = STORE_MAP_CHUNK};
	struct store_scratch *scratch = NULL;
	bool was_there = false;
	int result;

	if (bytes_are_zero(plain, plain_bytes))
		return zero_chunk_locked(disk, stripe, index, failure);
	result = disk_scratch_take(disk, &scratch, failure);
	if (result == 0)
		result = disk_put_content(disk, scratch, plain, plain_bytes, &content, &was_there, failure);
	disk_scratch_give(disk, scratch);
	if (result < 0)
		return result;
	content.plain = disk_spare_take(disk);
	if (content.plain == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	memcpy(content.plain, plain, plain_bytes);
	result = set_pending_locked(disk, stripe, index, &content, failure);
	if (result < 0)
		disk_spare_give(disk, content.plain);
	return result;
}

/* ------------------------------------------------------------------ the journal */

/* data NULL: zeros. */
static int journal_piece_locked(struct disk *disk, struct stripe *stripe, uint64_t index, uint32_t off_bytes,
				uint32_t len_bytes, const void *data, struct failure *failure)
{
	struct chunk_state *state = disk_state_make(disk, stripe, index);
	struct journal_place place;
	int result;

	if (state == NULL || disk_state_reserve(state) < 0) {
		if (state != NULL)
			disk_state_tidy(disk, stripe, state);
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	}
	result = journal_append(disk->journal, data != NULL ? JOURNAL_WRITE : JOURNAL_ZERO,
				index * disk->chunk_bytes + off_bytes, len_bytes, data, &place, failure);
	if (result < 0) {
		disk_state_tidy(disk, stripe, state);
		return result;
	}
	state->is_journaled = true;
	state->last_file = place.file;
	disk_state_cover(disk, state,
			 &(struct extent){.off_bytes = off_bytes,
					  .len_bytes = len_bytes,
					  .file = place.file,
					  .place_bytes = place.off_bytes,
					  .is_zero = data == NULL});
	disk->journaled_bytes = journal_bytes(disk->journal);
	disk->appended_at = units_monotonic_seconds();
	disk->has_news = true;
	return 0;
}

int disk_replay_record(void *opaque, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		       struct journal_place place, const void *payload, struct failure *failure)
{
	struct disk *disk = opaque;
	uint64_t index = off_bytes / disk->chunk_bytes;
	uint32_t into = (uint32_t)(off_bytes % disk->chunk_bytes);
	struct stripe *stripe = disk_stripe(disk, index);
	struct chunk_state *state;

	(void)payload; /* it is read from its place when it is wanted */
	if (off_bytes >= disk->size_bytes || len_bytes > disk_chunk_length(disk, index) ||
	    into > disk_chunk_length(disk, index) - len_bytes)
		return fail(failure, -EBADMSG,
			    "disk %s: its journal has %llu bytes at %llu, which is in no chunk of it", disk->name,
			    (unsigned long long)len_bytes, (unsigned long long)off_bytes);
	state = disk_state_make(disk, stripe, index);
	if (state == NULL || disk_state_reserve(state) < 0)
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	state->is_journaled = true;
	state->last_file = place.file;
	disk_state_cover(disk, state,
			 &(struct extent){.off_bytes = into,
					  .len_bytes = (uint32_t)len_bytes,
					  .file = place.file,
					  .place_bytes = place.off_bytes,
					  .is_zero = kind == JOURNAL_ZERO});
	return 0;
}

/* ------------------------------------------------------------------ commits */

struct gathered {
	struct disk *disk;
	struct store_change *changes; /* owned; index is first_chunk */
	uint64_t *versions;	      /* owned; parallel to changes, by way of `order` */
	size_t count, capacity;
};

static void gathered_free(struct gathered *gathered)
{
	free(gathered->changes);
	free(gathered->versions);
}

static int gather(void *opaque, struct chunk_state *state)
{
	struct gathered *gathered = opaque;
	struct store_change *change;

	if (state->pending == NULL || gathered->count == STORE_COMMIT_MOST_CHANGES)
		return 0;
	if (gathered->count == gathered->capacity) {
		size_t capacity = gathered->capacity == 0 ? 256 : gathered->capacity * 2;
		void *changes = reallocarray(gathered->changes, capacity, sizeof(*gathered->changes));
		void *versions;

		if (changes == NULL)
			return -ENOMEM;
		gathered->changes = changes;
		versions = reallocarray(gathered->versions, capacity, sizeof(*gathered->versions));
		if (versions == NULL)
			return -ENOMEM;
		gathered->versions = versions;
		gathered->capacity = capacity;
	}
	change = &gathered->changes[gathered->count];
	*change = (struct store_change){.first_chunk = state->index,
					.chunk_count = 1,
					.kind = state->pending->kind,
					.chunk = state->pending->chunk};
	memcpy(change->digest, state->pending->digest, DIGEST_BYTES);
	memcpy(change->fingerprint, state->pending->fingerprint, FINGERPRINT_BYTES);
	gathered->versions[gathered->count++] = state->pending->version;
	return 0;
}

static int compare_changes(const void *a, const void *b)
{
	const struct store_change *first = a, *second = b;

	return first->first_chunk < second->first_chunk ? -1 : first->first_chunk > second->first_chunk;
}

/* Something that was found has been cleaned away: all whose plain bytes were kept are put. */
static int put_kept_locked(struct disk *disk, struct chunk_state *state, struct store_scratch *scratch,
			   struct failure *failure)
{
	struct pending_content *pending = state->pending;
	struct store_encoded encoded;
	store_chunk chunk = 0;
	uint64_t new_bytes;
	int result;

	if (pending == NULL || pending->plain == NULL)
		return 0;
	result = store_encode_chunk(scratch, disk->level, pending->digest, pending->plain, pending->plain_bytes,
				    &encoded, failure);
	if (result == 0)
		result = store_put_chunk(disk->view, &encoded, &chunk, &new_bytes, failure);
	if (result == 0)
		pending->chunk = chunk;
	return result;
}

static int put_all_kept(struct disk *disk, const struct gathered *gathered, bool is_locked, struct failure *failure)
{
	struct store_scratch *scratch = NULL;
	int result = disk_scratch_take(disk, &scratch, failure);

	for (size_t i = 0; result == 0 && i < gathered->count; i++) {
		struct stripe *stripe = disk_stripe(disk, gathered->changes[i].first_chunk);
		struct chunk_state *state;

		if (!is_locked)
			(void)pthread_rwlock_wrlock(&stripe->lock);
		state = disk_state_find(stripe, gathered->changes[i].first_chunk);
		if (state != NULL)
			result = put_kept_locked(disk, state, scratch, failure);
		if (!is_locked)
			(void)pthread_rwlock_unlock(&stripe->lock);
	}
	disk_scratch_give(disk, scratch);
	return result;
}

static int commit_gathered(struct disk *disk, const struct gathered *gathered, struct failure *failure)
{
	WITH_LOCK(&disk->view_lock);

	return store_commit(disk->view, gathered->changes, gathered->count, NULL, failure);
}

/* What was committed is not pending any more, unless something else came in its place meanwhile. */
static int clear_pending(struct disk *disk, const struct gathered *gathered, bool is_locked, struct failure *failure)
{
	AUTO_FREE uint64_t *indexes = malloc((gathered->count + 1) * sizeof(*indexes));

	if (indexes == NULL)
		return fail_errno(failure, -ENOMEM, "%s", disk->name);
	for (size_t i = 0; i < gathered->count; i++)
		indexes[i] = gathered->changes[i].first_chunk;
	disk_map_forget(disk, indexes, gathered->count);
	for (size_t i = 0; i < gathered->count; i++) {
		struct stripe *stripe = disk_stripe(disk, indexes[i]);
		struct chunk_state *state;

		if (!is_locked)
			(void)pthread_rwlock_wrlock(&stripe->lock);
		state = disk_state_find(stripe, indexes[i]);
		if (state != NULL && state->pending != NULL && state->pending->version == gathered->versions[i]) {
			disk_state_forget_pending(disk, state);
			disk_state_tidy(disk, stripe, state);
		}
		if (!is_locked)
			(void)pthread_rwlock_unlock(&stripe->lock);
	}
	return 0;
}

/* versions follow their changes into the order of chunks: they ride in a field that a change of one chunk doesn't need.
 */
static void sort_gathered(struct gathered *gathered)
{
	for (size_t i = 0; i < gathered->count; i++)
		gathered->changes[i].chunk_count = gathered->versions[i];
	if (gathered->count > 1)
		qsort(gathered->changes, gathered->count, sizeof(*gathered->changes), compare_changes);
	for (size_t i = 0; i < gathered->count; i++) {
		gathered->versions[i] = gathered->changes[i].chunk_count;
		gathered->changes[i].chunk_count = 1;
	}
}

static int commit_once(struct disk *disk, bool is_locked, struct failure *failure)
{
	AUTO(gathered_free) struct gathered gathered = {.disk = disk};
	struct failure why = {.code = 0};
	int result = disk_each_state(disk, is_locked, gather, &gathered);

	if (result < 0)
		return fail_errno(failure, result, "%s", disk->name);
	if (gathered.count == 0)
		return 0;
	sort_gathered(&gathered);
	result = commit_gathered(disk, &gathered, &why);
	if (result == -ESTALE) {
		result = put_all_kept(disk, &gathered, is_locked, failure);
		return result < 0 ? result : -ESTALE;
	}
	if (result < 0)
		return fail_from(failure, &why);
	return clear_pending(disk, &gathered, is_locked, failure);
}

static int commit_pending(struct disk *disk, bool is_locked, struct failure *failure)
{
	int result = 0;

	if (disk->pending_count == 0)
		return 0;
	for (int i = 0; i < COMMIT_TRIES; i++) {
		struct failure why = {.code = 0};

		result = commit_once(disk, is_locked, &why);
		if (result != -ESTALE)
			return result < 0 ? fail_from(failure, &why) : 0;
	}
	return fail(failure, -EIO,
		    "%s: content that the store had was cleaned away again and again while it was written", disk->name);
}

int disk_commit_pending(struct disk *disk, struct failure *failure)
{
	WITH_LOCK(&disk->commit_lock);

	return commit_pending(disk, false, failure);
}

int disk_commit_pending_locked(struct disk *disk, struct failure *failure)
{
	return commit_pending(disk, true, failure);
}

/* As other disks have much pending: ours must not add to it. What they have goes as they are flushed, or folded (disk_fold.c). */
static int commit_if_all_have_much(struct disk *disk, struct failure *failure)
{
	return disk_kept_by_all() < DISK_KEPT_BY_ALL_MOST_BYTES ? 0 : disk_commit_pending(disk, failure);
}

/* One of the writers commits, while the others go on until there is as much again. */
static int commit_if_much(struct disk *disk, struct failure *failure)
{
	int result;

	if (disk->pending_count >= DISK_PENDING_MOST || disk->kept_bytes >= disk->kept_most_bytes)
		return disk_commit_pending(disk, failure);
	if (disk->pending_count < DISK_PENDING_MOST / 2 && disk->kept_bytes < disk->kept_most_bytes / 2)
		return 0;
	if (pthread_mutex_trylock(&disk->commit_lock) != 0)
		return 0; /* it is being done */
	result = commit_pending(disk, false, failure);
	(void)pthread_mutex_unlock(&disk->commit_lock);
	return result;
}

/* ------------------------------------------------------------------ for others */

static int check_range(const struct disk *disk, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	uint64_t end_bytes;

	if (!disk->is_writable)
		return fail(failure, -EROFS, "%s: opened for reading only", disk->name);
	if (__builtin_add_overflow(off_bytes, len_bytes, &end_bytes) || end_bytes > disk->size_bytes)
		return fail(failure, -ENOSPC, "%s: %llu bytes at %llu are beyond its end, %llu", disk->name,
			    (unsigned long long)len_bytes, (unsigned long long)off_bytes,
			    (unsigned long long)disk->size_bytes);
	return 0;
}

/* A piece of one chunk; data NULL: zeros. */
static int change_piece(struct disk *disk, uint64_t index, uint32_t off_bytes, uint32_t len_bytes, const void *data,
			struct failure *failure)
{
	bool is_whole = len_bytes == disk_chunk_length(disk, index);
	struct stripe *stripe = disk_stripe(disk, index);
	const struct chunk_state *state;
	int result;

	(void)pthread_rwlock_wrlock(&stripe->lock);
	state = disk_state_find(stripe, index);
	if (!is_whole || (state != NULL && state->is_journaled))
		result = journal_piece_locked(disk, stripe, index, off_bytes, len_bytes, data, failure);
	else if (data != NULL)
		result = write_chunk_locked(disk, stripe, index, data, failure);
	else
		result = zero_chunk_locked(disk, stripe, index, failure);
	(void)pthread_rwlock_unlock(&stripe->lock);
	return result;
}

static int change(struct disk *disk, const uint8_t *data, uint64_t len_bytes, uint64_t off_bytes,
		  struct failure *failure)
{
	while (len_bytes > 0) {
		uint32_t into = (uint32_t)(off_bytes % disk->chunk_bytes);
		uint32_t piece = len_bytes < disk->chunk_bytes - into ? (uint32_t)len_bytes : disk->chunk_bytes - into;
		int result = disk_fold_throttle(disk, failure);

		if (result == 0)
			result = journal_check(disk->journal, failure);
		if (result == 0)
			result = commit_if_much(disk, failure);
		if (result == 0)
			result = change_piece(disk, off_bytes / disk->chunk_bytes, into, piece, data, failure);
		if (result == 0)
			result = commit_if_all_have_much(disk, failure);
		if (result < 0)
			return result;
		data = data == NULL ? NULL : data + piece;
		off_bytes += piece;
		len_bytes -= piece;
	}
	return 0;
}

int disk_write(struct disk *disk, const void *buffer, size_t len_bytes, uint64_t off_bytes, unsigned flags,
	       struct failure *failure)
{
	int result = check_range(disk, len_bytes, off_bytes, failure);

	if (result == 0)
		result = change(disk, buffer, len_bytes, off_bytes, failure);
	return result == 0 && (flags & DISK_FUA) != 0 ? disk_flush(disk, failure) : result;
}

/* ---- many chunks become zeros at once ---- */

struct zeroing {
	struct disk *disk;
	uint64_t first, end; /* chunks */
	uint64_t *journaled; /* owned; chunks of the range that have records */
	size_t count, capacity;
};

static int note_journaled(void *opaque, struct chunk_state *state)
{
	struct zeroing *zeroing = opaque;

	if (!state->is_journaled || state->index < zeroing->first || state->index >= zeroing->end)
		return 0;
	if (zeroing->count == zeroing->capacity) {
		size_t capacity = zeroing->capacity == 0 ? 64 : zeroing->capacity * 2;
		uint64_t *grown = reallocarray(zeroing->journaled, capacity, sizeof(*grown));

		if (grown == NULL)
			return -ENOMEM;
		zeroing->journaled = grown;
		zeroing->capacity = capacity;
	}
	zeroing->journaled[zeroing->count++] = state->index;
	return 0;
}

static int compare_indexes(const void *a, const void *b)
{
	const uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

	return first < second ? -1 : first > second;
}

static int commit_zeros(struct zeroing *zeroing, const struct store_change *changes, size_t count, struct failure *failure)
{
	WITH_LOCK(&zeroing->disk->view_lock);

	return count == 0 ? 0 : store_commit(zeroing->disk->view, changes, count, NULL, failure);
}

/* All stripes are locked, and nothing is pending: what lies between chunks with records by commits, those by way of the journal. */
static int zero_range_locked(struct zeroing *zeroing, struct failure *failure)
{
	struct disk *disk = zeroing->disk;
	AUTO_FREE struct store_change *changes = NULL;
	uint64_t first = zeroing->first;
	size_t count = 0;
	int result = disk_each_state(disk, true, note_journaled, zeroing);

	if (result == 0)
		changes = calloc(zeroing->count + 1, sizeof(*changes));
	if (result < 0 || changes == NULL)
		return fail_errno(failure, result < 0 ? result : -ENOMEM, "%s", disk->name);
	if (zeroing->count > 1)
		qsort(zeroing->journaled, zeroing->count, sizeof(*zeroing->journaled), compare_indexes);
	for (size_t i = 0; i <= zeroing->count; i++) {
		uint64_t end = i < zeroing->count ? zeroing->journaled[i] : zeroing->end;

		if (end > first)
			changes[count++] = (struct store_change){
				.first_chunk = first, .chunk_count = end - first, .kind = STORE_MAP_NOTHING};
		first = end + 1;
	}
	for (size_t i = 0; result == 0 && i < count; i += STORE_COMMIT_MOST_CHANGES)
		result = commit_zeros(zeroing, changes + i,
				      count - i < STORE_COMMIT_MOST_CHANGES ? count - i : STORE_COMMIT_MOST_CHANGES, failure);
	for (size_t i = 0; result == 0 && i < zeroing->count; i++)
		result = journal_piece_locked(disk, disk_stripe(disk, zeroing->journaled[i]), zeroing->journaled[i], 0,
					      disk_chunk_length(disk, zeroing->journaled[i]), NULL, failure);
	return result;
}

static int zero_range(struct disk *disk, uint64_t first, uint64_t end, struct failure *failure)
{
	struct zeroing zeroing = {.disk = disk, .first = first, .end = end};
	int result = disk_fold_throttle(disk, failure);

	if (result < 0)
		return result;
	WITH_LOCK(&disk->commit_lock);
	disk_lock_all(disk);
	result = disk_commit_pending_locked(disk, failure);
	if (result == 0)
		result = zero_range_locked(&zeroing, failure);
	disk_map_forget_all(disk);
	disk_unlock_all(disk);
	free(zeroing.journaled);
	return result;
}

int disk_zero(struct disk *disk, uint64_t len_bytes, uint64_t off_bytes, unsigned flags, struct failure *failure)
{
	uint64_t first = (off_bytes + disk->chunk_bytes - 1) / disk->chunk_bytes, end, end_bytes;
	int result = check_range(disk, len_bytes, off_bytes, failure);

	if (result < 0)
		return result;
	end_bytes = off_bytes + len_bytes;
	end = end_bytes == disk->size_bytes ? (end_bytes + disk->chunk_bytes - 1) / disk->chunk_bytes
					    : end_bytes / disk->chunk_bytes;
	if (end <= first || end - first < RANGE_CHUNKS) {
		result = change(disk, NULL, len_bytes, off_bytes, failure);
	} else {
		result = change(disk, NULL, first * disk->chunk_bytes - off_bytes, off_bytes, failure);
		if (result == 0)
			result = zero_range(disk, first, end, failure);
		if (result == 0 && end_bytes > end * disk->chunk_bytes)
			result = change(disk, NULL, end_bytes - end * disk->chunk_bytes, end * disk->chunk_bytes,
					failure);
	}
	return result == 0 && (flags & DISK_FUA) != 0 ? disk_flush(disk, failure) : result;
}

int disk_flush(struct disk *disk, struct failure *failure)
{
	int result;

	if (!disk->is_writable)
		return 0;
	result = disk_commit_pending(disk, failure);
	return result == 0 ? journal_sync(disk->journal, failure) : result;
}
