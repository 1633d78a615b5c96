/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Views of the fake store: leases and reading.
 *
 * A view in the list is the lease: exclusive for live content, shared for an
 * image. Chunks are copied out under the lock and decoded outside of it, so
 * readers on many threads meet as they would in a real store.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/store_fake_internal.h"

/* ------------------------------------------------------ opening and closing */

static void view_free(struct fake_view *view)
{
	free(view->view.name);
	free(view->doing);
	free(view);
}

static int check_lease(const struct fake *fake, const struct fake_disk *disk, struct failure *failure)
{
	AUTO_FREE char *holder = NULL;
	int error = fake_find_holder(fake, disk, NULL, &holder, failure);

	if (error == 0 && holder != NULL)
		error = fail(failure, -EBUSY, "disk %s: locked by %s; wait for it or stop it", disk->name, holder);
	return error;
}

static int name_view(struct fake_view *view, const char *doing, struct failure *failure)
{
	int error = fake_copy_text(doing, &view->doing, failure);

	if (error != 0)
		return error;
	if (view->image == NULL)
		return fake_copy_text(view->disk->name, &view->view.name, failure);
	if (asprintf(&view->view.name, "%s@%u", view->disk->name, view->image->number) < 0) {
		view->view.name = NULL;
		return fake_no_memory(failure);
	}
	return 0;
}

static int view_open_locked(struct fake *fake, const struct store_reference *reference, enum store_view_mode mode,
			    const char *doing, struct fake_view **ret_view, struct failure *failure)
{
	struct fake_view *view;
	struct fake_disk *disk = NULL;
	size_t index = 0;
	int error = mode == VIEW_WRITE ? fake_check_writable(fake, failure) : 0;

	if (error == 0)
		error = fake_find_disk(fake, reference->disk, &disk, failure);
	if (error == 0 && reference->which != STORE_LIVE)
		error = fake_find_image_index(disk, reference, &index, failure);
	if (error == 0 && reference->which == STORE_LIVE)
		error = check_lease(fake, disk, failure);
	if (error != 0)
		return error;
	view = calloc(1, sizeof(*view));
	if (view == NULL)
		return fake_no_memory(failure);
	view->fake = fake;
	view->disk = disk;
	view->image = reference->which == STORE_LIVE ? NULL : disk->images[index];
	view->view.store = &fake->store;
	view->view.mode = mode;
	view->view.size_bytes = view->image == NULL ? disk->size_bytes : view->image->size_bytes;
	view->view.sector_bytes = disk->sector_bytes;
	memcpy(view->view.fingerprint_key, disk->fingerprint_key, FINGERPRINT_KEY_BYTES);
	error = name_view(view, doing, failure);
	if (error != 0) {
		view_free(view);
		return error;
	}
	view->next = fake->views;
	fake->views = view;
	*ret_view = view;
	return 0;
}

static void view_forget(struct fake_view *view)
{
	struct fake_view **link = &view->fake->views;

	while (*link != view)
		link = &(*link)->next;
	*link = view->next;
}

int fake_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		   const char *doing, struct store_view **ret_view, struct failure *failure)
{
	struct fake *fake = fake_of(store);
	struct fake_call call;
	struct fake_view *view = NULL;
	int error = fake_call_enter(&call, fake, STORE_FAKE_VIEW_OPEN, NULL, failure);

	if (error == 0)
		error = view_open_locked(fake, reference, mode, doing, &view, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0) {
		*ret_view = &view->view;
		return 0;
	}
	if (view != NULL) {
		WITH_LOCK(&fake->mutex);
		view_forget(view);
		view_free(view);
	}
	return error;
}

void fake_view_close(struct store_view *store_view)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;

	(void)fake_call_enter(&call, view->fake, STORE_FAKE_VIEW_CLOSE, NULL, NULL); /* closing works, come what may */
	view_forget(view);
	(void)fake_call_leave(&call, 0, NULL);
	view_free(view);
}

/* ------------------------------------------------------------------ reading */

static const struct fake_map *map_of(const struct fake_view *view)
{
	return view->image != NULL ? &view->image->map : &view->disk->live;
}

int fake_view_map(struct store_view *store_view, uint64_t page, struct store_map_page *ret_map, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_VIEW_MAP, view, failure);

	if (error == 0 && !(call.plan.at_call != 0 && call.plan.when == STORE_FAKE_AFTER)) {
		const struct fake_page *found = fake_map_page(map_of(view), page);

		memset(ret_map, 0, sizeof(*ret_map));
		if (found != NULL)
			memcpy(ret_map->entries, found->entries, sizeof(ret_map->entries));
		for (size_t i = 0; i < STORE_MAP_PAGE_ENTRIES; i++) {
			store_chunk id = ret_map->entries[i].chunk;

			/* what is lost is to be read */
			if (view->image == NULL && (id == 0 || !fake_chunk_get(&view->fake->chunks, id)->is_lost))
				continue;
			ret_map->entries[i].has_fingerprint = false;
			memset(ret_map->entries[i].fingerprint, 0, FINGERPRINT_BYTES);
		}
	}
	return fake_call_leave(&call, error, failure);
}

int fake_view_next_page(struct store_view *store_view, uint64_t from_page, uint64_t *ret_page, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	uint64_t page = UINT64_MAX;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_VIEW_NEXT_PAGE, view, failure);

	if (error == 0)
		page = fake_map_next(map_of(view), from_page);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_page = page;
	return error;
}

static void hex_name(const uint8_t digest[DIGEST_BYTES], char ret_text[17])
{
	bytes_to_hex(digest, 8, ret_text);
}

/* Copies what is stored of a chunk into the scratch, and its header. */
int fake_fetch_chunk(const struct fake_view *view, store_chunk id, uint32_t plain_bytes, struct store_scratch *scratch,
		     struct record_header *ret_header, struct failure *failure)
{
	const struct fake_chunk *chunk = fake_chunk_get(&view->fake->chunks, id);
	char name[17];

	if (chunk == NULL)
		return fail(failure, -EBADMSG, "%s: chunk %llu is not there", view->view.name, (unsigned long long)id);
	hex_name(chunk->digest, name);
	if (chunk->is_damaged || chunk->is_lost)
		return fail(failure, -EBADMSG, "%s: chunk %s...: wrong checksum", view->view.name, name);
	if (chunk->plain_bytes != plain_bytes)
		return fail(failure, -EBADMSG, "%s: chunk %s...: has %u bytes instead of %u", view->view.name, name,
			    chunk->plain_bytes, plain_bytes);
	*ret_header = (struct record_header){
		.type = RECORD_CHUNK,
		.codec = chunk->codec,
		.cipher = chunk->cipher,
		.stored_bytes = chunk->stored_bytes,
		.plain_bytes = chunk->plain_bytes,
		.payload_checksum = record_payload_checksum(chunk->stored, chunk->stored_bytes),
	};
	memcpy(ret_header->digest, chunk->digest, DIGEST_BYTES);
	memcpy(scratch->stored, chunk->stored, chunk->stored_bytes);
	return 0;
}

int fake_check_digest(struct hasher *hasher, const uint8_t digest[DIGEST_BYTES], const void *plain,
		      uint32_t plain_bytes, const char *view_name, struct failure *failure)
{
	uint8_t found[DIGEST_BYTES];
	char name[17];
	int error = hasher_digest(hasher, plain, plain_bytes, found, failure);

	if (error != 0 || memcmp(found, digest, DIGEST_BYTES) == 0)
		return error;
	hex_name(digest, name);
	return fail(failure, -EBADMSG, "%s: chunk %s...: its bytes have another digest", view_name, name);
}

int fake_view_read_chunk(struct store_view *store_view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			 uint32_t plain_bytes, bool deep, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct record_header header;
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_READ_CHUNK, view, failure);

	if (error == 0)
		error = fake_fetch_chunk(view, chunk, plain_bytes, scratch, &header, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		error = codec_decode(scratch->codec, &header, scratch->stored, plain, failure);
	if (error == 0 && deep)
		error = fake_check_digest(scratch->hasher, header.digest, plain, plain_bytes, view->view.name, failure);
	if (error == 0) {
		WITH_LOCK(&view->fake->mutex);
		view->fake->bytes_read += plain_bytes;
	}
	return error;
}

void fake_view_prefetch(struct store_view *store_view, const store_chunk *chunks, size_t count)
{
	struct fake_call call;

	(void)chunks; /* they are in memory already */
	(void)count;
	(void)fake_call_enter(&call, fake_view_of(store_view)->fake, STORE_FAKE_VIEW_PREFETCH, NULL,
			      NULL); /* only a hint */
	(void)fake_call_leave(&call, 0, NULL);
}
