/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing to the fake store: chunks, commits, the size of a disk.
 *
 * A commit works on a copy of the live map, which costs no more than the pages
 * that it changes, and puts it in place at its end: it happens whole or not at
 * all. What is put is decoded and its digest computed again, which a real store
 * has no time for: a pipeline that mixes up its buffers is found out here.
 */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/store_fake_internal.h"

int fake_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count, store_chunk *ret_chunks,
		     struct failure *failure)
{
	struct fake *fake = fake_of(store);
	struct fake_call call;
	int error = fake_call_enter(&call, fake, STORE_FAKE_FIND_CHUNKS, NULL, failure);
	bool is_told = !(call.plan.at_call != 0 && call.plan.when == STORE_FAKE_AFTER);

	for (size_t i = 0; error == 0 && is_told && i < count; i++) {
		const struct fake_chunk *chunk = fake_chunk_find(&fake->chunks, digests[i]);

		ret_chunks[i] = chunk == NULL || (chunk->is_lost && !chunk->is_brought) ? 0 : chunk->id;
	}
	return fake_call_leave(&call, error, failure);
}

/* A fake has the time to look: what is put must be what its digest says. */
static int check_put(struct fake *fake, const char *view_name, const struct store_encoded *encoded,
		     struct failure *failure)
{
	struct record_header header = {
		.type = RECORD_CHUNK,
		.codec = encoded->codec,
		.cipher = encoded->cipher,
		.stored_bytes = encoded->stored_bytes,
		.plain_bytes = encoded->plain_bytes,
		.payload_checksum = record_payload_checksum(encoded->stored, encoded->stored_bytes),
	};
	int error;

	memcpy(header.digest, encoded->digest, DIGEST_BYTES);
	error = codec_decode(fake->scratch->codec, &header, encoded->stored, fake->plain, failure);
	if (error == 0)
		error = fake_check_digest(fake->scratch->hasher, header.digest, fake->plain, header.plain_bytes,
					  view_name, failure);
	return error;
}

static int put_chunk_locked(struct fake_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
			    uint64_t *ret_new_bytes, struct failure *failure)
{
	struct fake *fake = view->fake;
	struct fake_chunk *chunk;
	int error = check_put(fake, view->view.name, encoded, failure);

	if (error != 0)
		return error;
	chunk = fake_chunk_find(&fake->chunks, encoded->digest);
	*ret_new_bytes = 0;
	if (chunk == NULL) {
		error = fake_chunk_add(&fake->chunks, encoded, &chunk, failure);
		if (error != 0)
			return error;
		*ret_new_bytes = record_total_bytes(encoded->stored_bytes);
	} else if (chunk->is_lost && !chunk->is_brought) {
		chunk->is_brought = true;
		*ret_new_bytes = record_total_bytes(encoded->stored_bytes);
	}
	*ret_chunk = chunk->id;
	return 0;
}

int fake_put_chunk(struct store_view *store_view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		   uint64_t *ret_new_bytes, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	store_chunk chunk = 0;
	uint64_t new_bytes = 0;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_PUT_CHUNK, view, failure);

	if (error == 0)
		error = put_chunk_locked(view, encoded, &chunk, &new_bytes, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0) {
		*ret_chunk = chunk;
		*ret_new_bytes = new_bytes;
	}
	return error;
}

/* Is this a chunk that there is, with the length that its place has? */
static int check_change(const struct fake_view *view, const struct store_change *change, struct failure *failure)
{
	const struct fake_chunk *chunk = fake_chunk_get(&view->fake->chunks, change->chunk);
	uint32_t place_bytes =
		store_chunk_length(view->fake->store.chunk_bytes, view->disk->size_bytes, change->first_chunk);

	if (change->kind != STORE_MAP_CHUNK)
		return 0;
	if (chunk == NULL || memcmp(chunk->digest, change->digest, DIGEST_BYTES) != 0 ||
	    (chunk->is_lost && !chunk->is_brought))
		return fail(failure, -ESTALE,
			    "%s: the chunk meant for place %llu was cleaned away; go on from the last commit",
			    view->view.name, (unsigned long long)change->first_chunk);
	if (chunk->plain_bytes != place_bytes)
		return fail(failure, -EINVAL, "%s: a chunk of %u bytes doesn't fit place %llu of %u", view->view.name,
			    chunk->plain_bytes, (unsigned long long)change->first_chunk, place_bytes);
	if (change->refresh && fake_map_entry(&view->disk->live, change->first_chunk)->chunk != change->chunk)
		return fail(failure, -EINVAL, "%s: a refresh of place %llu, which holds another chunk", view->view.name,
			    (unsigned long long)change->first_chunk);
	return 0;
}

/* Adds to *changed how many places have other content now. */
static int apply_change(const struct fake_disk *disk, struct fake_map *map, const struct store_change *change,
			uint64_t *changed, struct failure *failure)
{
	struct store_map_entry entry = {.kind = STORE_MAP_CHUNK, .chunk = change->chunk};
	struct store_map_entry old;
	uint64_t cleared;
	int error;

	/* A clone has a map of its own: there is nothing beneath that zeros would have to hide. */
	if (change->kind != STORE_MAP_CHUNK) {
		error = fake_map_clear(map, change->first_chunk, change->first_chunk + change->chunk_count, &cleared,
				       failure);
		if (error == 0)
			*changed += cleared;
		return error;
	}
	old = *fake_map_entry(map, change->first_chunk);
	entry.since_generation = old.chunk == change->chunk ? old.since_generation : disk->generation;
	entry.has_fingerprint = !bytes_are_zero(change->fingerprint, FINGERPRINT_BYTES);
	memcpy(entry.fingerprint, change->fingerprint, FINGERPRINT_BYTES);
	error = fake_map_set(map, change->first_chunk, &entry, &old, failure);
	if (error == 0)
		*changed += old.chunk != change->chunk;
	return error;
}

static int make_durable(struct fake *fake, const struct store_change *changes, size_t count, struct failure *failure)
{
	struct fake_undo *undo = &fake->undo;

	for (size_t i = 0; i < count; i++) {
		struct fake_chunk *chunk = fake_chunk_get(&fake->chunks, changes[i].chunk);

		if (changes[i].kind == STORE_MAP_CHUNK && chunk->is_brought)
			chunk->is_brought = chunk->is_lost = chunk->is_damaged = false;
		if (changes[i].kind != STORE_MAP_CHUNK || chunk->is_durable)
			continue;
		if (fake->forgets_commits) {
			int error = fake_reserve(&undo->chunks, &undo->chunk_capacity, undo->chunk_count,
						 sizeof(*undo->chunks), failure);

			if (error != 0)
				return error;
			undo->chunks[undo->chunk_count++] = chunk->id;
		}
		chunk->is_durable = true;
	}
	return 0;
}

/* From here on nothing can fail. */
static void install_commit(struct fake_disk *disk, struct fake_map *map, uint64_t changed, struct fake_round *round,
			   const struct store_round_position *position)
{
	fake_map_free(&disk->live);
	disk->live = *map;
	*map = (struct fake_map){.pages = NULL};
	if (changed > 0)
		disk->content_round = 0; /* until a round is done */
	if (round == NULL)
		return;
	round->cursor_bytes = position->cursor_bytes;
	round->counts = position->counts;
}

static int commit_locked(struct fake_view *view, const struct store_change *changes, size_t count,
			 const struct store_round_position *position, struct failure *failure)
{
	AUTO(fake_map_free) struct fake_map map = {.pages = NULL};
	struct fake_round *round = NULL;
	struct fake *fake = view->fake;
	uint64_t changed = 0;
	int error = position == NULL ? 0 : fake_check_round(view, position->number, &round, failure);

	for (size_t i = 0; i < count && error == 0; i++)
		error = check_change(view, &changes[i], failure);
	if (error == 0)
		error = fake_map_share(&view->disk->live, &map, failure);
	for (size_t i = 0; i < count && error == 0; i++)
		error = apply_change(view->disk, &map, &changes[i], &changed, failure);
	if (error == 0 && fake->forgets_commits)
		error = fake_undo_prepare(&fake->undo, view->disk, failure);
	if (error == 0)
		error = make_durable(fake, changes, count, failure);
	if (error != 0) {
		fake_undo_drop(&fake->undo);
		return error;
	}
	install_commit(view->disk, &map, changed, round, position);
	view->disk->changes++;
	return 0;
}

int fake_commit(struct store_view *store_view, const struct store_change *changes, size_t count,
		const struct store_round_position *round, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_COMMIT, view, failure);

	if (error == 0)
		error = commit_locked(view, changes, count, round, failure);
	return fake_call_leave(&call, error, failure);
}

/* The chunk at the disk's old or new end gets the length that its place has from now on. */
static int recut_chunk(struct fake_view *view, struct fake_map *map, uint64_t index, uint32_t new_bytes,
		       struct failure *failure)
{
	struct fake *fake = view->fake;
	struct store_change change = {.first_chunk = index, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
	const struct store_map_entry *entry = fake_map_entry(map, index);
	struct store_encoded encoded;
	struct record_header header;
	struct fake_chunk *chunk;
	uint64_t changed = 0;
	uint32_t old_bytes;
	int error;

	if (entry->kind != STORE_MAP_CHUNK)
		return 0;
	old_bytes = fake_chunk_get(&fake->chunks, entry->chunk)->plain_bytes;
	error = fake_fetch_chunk(view, entry->chunk, old_bytes, fake->scratch, &header, failure);
	if (error == 0)
		error = codec_decode(fake->scratch->codec, &header, fake->scratch->stored, fake->plain, failure);
	if (error != 0)
		return error;
	if (new_bytes > old_bytes)
		memset(fake->plain + old_bytes, 0, new_bytes - old_bytes);
	if (bytes_are_zero(fake->plain, new_bytes)) {
		change.kind = STORE_MAP_NOTHING;
		return apply_change(view->disk, map, &change, &changed, failure);
	}
	error = hasher_digest(fake->scratch->hasher, fake->plain, new_bytes, change.digest, failure);
	if (error == 0)
		error = store_encode_chunk(fake->scratch, CODEC_LEVEL_DEFAULT, change.digest, fake->plain, new_bytes,
					   &encoded, failure);
	if (error != 0)
		return error;
	chunk = fake_chunk_find(&fake->chunks, change.digest);
	if (chunk == NULL)
		error = fake_chunk_add(&fake->chunks, &encoded, &chunk, failure);
	if (error != 0)
		return error;
	chunk->is_durable = true;
	change.chunk = chunk->id;
	return apply_change(view->disk, map, &change, &changed, failure);
}

static int resize_locked(struct fake_view *view, uint64_t size_bytes, struct failure *failure)
{
	AUTO(fake_map_free) struct fake_map map = {.pages = NULL};
	struct fake_disk *disk = view->disk;
	uint32_t chunk_bytes = view->fake->store.chunk_bytes;
	uint64_t smaller_bytes = size_bytes < disk->size_bytes ? size_bytes : disk->size_bytes;
	uint64_t boundary = smaller_bytes / chunk_bytes;
	uint64_t cleared;
	int error;

	if (size_bytes == disk->size_bytes)
		return 0;
	error = fake_map_share(&disk->live, &map, failure);
	if (error == 0 && size_bytes < disk->size_bytes)
		error = fake_map_clear(&map, boundary + (smaller_bytes % chunk_bytes != 0),
				       disk->size_bytes / chunk_bytes + 1, &cleared, failure);
	if (error == 0 && smaller_bytes % chunk_bytes != 0)
		error = recut_chunk(view, &map, boundary, store_chunk_length(chunk_bytes, size_bytes, boundary),
				    failure);
	if (error != 0)
		return error;
	fake_map_free(&disk->live);
	disk->live = map;
	map = (struct fake_map){.pages = NULL};
	disk->content_round = 0;
	disk->changes++;
	disk->size_bytes = size_bytes;
	__atomic_store_n(&view->view.size_bytes, size_bytes, __ATOMIC_RELAXED);
	return 0;
}

int fake_resize_disk(struct store_view *store_view, uint64_t size_bytes, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_RESIZE_DISK, view, failure);

	if (error == 0)
		error = resize_locked(view, size_bytes, failure);
	return fake_call_leave(&call, error, failure);
}
