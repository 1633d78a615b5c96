/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake store's check: what store_fake_damage() has damaged, and whose content that is. Everything else about it is
 * in memory, and right.
 *
 * A deep check decompresses and digests the rest as well. It all happens under the lock: nobody works meanwhile.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/check_report.h"
#include "store/store_fake_internal.h"

static bool is_stopped(const struct store_check_params *params)
{
	return params->stop != NULL && atomic_load(params->stop);
}

/* False: its content is not what its digest says. */
static int check_content(struct fake *fake, const struct fake_chunk *chunk, bool *ret_is_good, struct failure *failure)
{
	const struct record_header header = {
		.type = RECORD_CHUNK,
		.codec = chunk->codec,
		.cipher = chunk->cipher,
		.stored_bytes = chunk->stored_bytes,
		.plain_bytes = chunk->plain_bytes,
		.payload_checksum = record_payload_checksum(chunk->stored, chunk->stored_bytes),
	};
	uint8_t digest[DIGEST_BYTES];
	int error = codec_decode(fake->scratch->codec, &header, chunk->stored, fake->plain, NULL);

	if (error == 0)
		error = hasher_digest(fake->scratch->hasher, fake->plain, chunk->plain_bytes, digest, failure);
	*ret_is_good = error == 0 && memcmp(digest, chunk->digest, DIGEST_BYTES) == 0;
	return error == -EBADMSG ? 0 : error;
}

static void mark_chunk(struct fake_chunk *chunk, bool is_damaged, struct store_repair *repair)
{
	repair->sound_chunks += chunk->is_lost && !is_damaged;
	chunk->is_lost = is_damaged;
	repair->waiting_chunks += is_damaged;
}

/* Marks what is damaged of all that a map refers to. */
static int check_chunks(struct fake *fake, const struct store_check_params *params, bool *ret_damaged,
			struct store_check_report *report, struct failure *failure)
{
	AUTO_FREE uint32_t *sharers = NULL;
	int error = fake_count_sharers(fake, &sharers, failure);

	for (size_t i = 0; error == 0 && i < fake->chunks.count; i++) {
		const struct fake_chunk *chunk = fake->chunks.by_id[i];
		bool is_good = true;

		if (chunk == NULL || sharers[i] == 0)
			continue;
		if (is_stopped(params))
			return -EINTR;
		if (params->deep)
			error = check_content(fake, chunk, &is_good, failure);
		ret_damaged[i] = chunk->is_damaged || !is_good;
		if (params->repair)
			mark_chunk(fake->chunks.by_id[i], ret_damaged[i], &report->repair);
		ret_damaged[i] |= chunk->is_lost;
		report->chunks++;
		if (params->done_bytes != NULL)
			atomic_fetch_add(params->done_bytes, record_total_bytes(chunk->stored_bytes));
	}
	return error;
}

static int name_in_map(const struct fake *fake, const struct fake_map *map, const char *disk, uint32_t image,
		       uint64_t size_bytes, const bool *damaged, struct store_check_report *report,
		       struct failure *failure)
{
	uint32_t chunk_bytes = fake->store.chunk_bytes;
	size_t last = 0;

	for (size_t i = 0; i < map->count; i++)
		for (size_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			store_chunk id = map->pages[i]->entries[j].chunk;
			uint64_t index = map->pages[i]->number * STORE_MAP_PAGE_ENTRIES + j;
			uint32_t len_bytes = store_chunk_length(chunk_bytes, size_bytes, index);
			int error;

			if (id == 0 || !damaged[id - 1] || len_bytes == 0)
				continue;
			error = check_report_damage(report, &last, disk, image, index * chunk_bytes, len_bytes,
						    "fake store: damaged, as told", failure);
			if (error != 0)
				return error;
		}
	return 0;
}

static int check_locked(struct fake *fake, const struct store_check_params *params, struct store_check_report *report,
			struct failure *failure)
{
	AUTO_FREE bool *damaged = calloc(fake->chunks.count + 1, sizeof(*damaged));
	int error = damaged == NULL ? fake_no_memory(failure) : 0;

	if (error == 0)
		error = check_chunks(fake, params, damaged, report, failure);
	for (size_t i = 0; error == 0 && i < fake->disk_count; i++) {
		const struct fake_disk *disk = fake->disks[i];

		error = name_in_map(fake, &disk->live, disk->name, 0, disk->size_bytes, damaged, report, failure);
		for (size_t j = 0; error == 0 && j < disk->image_count; j++)
			error = name_in_map(fake, &disk->images[j]->map, disk->name, disk->images[j]->number,
					    disk->images[j]->size_bytes, damaged, report, failure);
	}
	check_report_finish(report);
	return error;
}

int fake_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
	       struct failure *failure)
{
	struct store_check_report report = {.is_clean = false};
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_CHECK, NULL, failure);

	if (error == 0 && params->repair && fake_of(store)->read_only)
		error = fail(failure, -EROFS, "%s: opened for reading only, it can't be repaired", store->location);
	if (error == 0)
		error = check_locked(fake_of(store), params, &report, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_check_report_free(&report);
		return error;
	}
	*ret_report = report;
	return 0;
}
