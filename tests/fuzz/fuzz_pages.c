/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blobs of the catalog: pages of `map`, `past` and `chunk`.
 *
 * Input: a byte that says which of the three, the blob. Pages are written by one encoder and read by nobody but
 * wherry, and more than one blob may stand for a page (runs that could be one). So what is asked for is that a page
 * that is taken is inside its limits, and encodes to a blob that means the same.
 */
#include "fuzz.h"

#include <errno.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

static bool is_same_entry(const struct catalog_entry *one, const struct catalog_entry *other)
{
	return one->chunk == other->chunk && one->since == other->since && one->kind == other->kind &&
	       one->has_fingerprint == other->has_fingerprint &&
	       (!one->has_fingerprint || memcmp(one->fingerprint, other->fingerprint, CATALOG_FINGERPRINT_BYTES) == 0);
}

static void check_catalog_entry(const struct catalog_entry *entry)
{
	require(entry->kind <= CATALOG_CHUNK);
	require(entry->kind == CATALOG_CHUNK ? entry->chunk > 0 && entry->chunk >> 63 == 0 : entry->chunk == 0);
	require(!entry->has_fingerprint || entry->kind == CATALOG_CHUNK);
}

static void check_map(const uint8_t *blob, size_t len_bytes)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct catalog_page page, again;

	if (map_page_decode(blob, len_bytes, &page) < 0)
		return;
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		check_catalog_entry(&page.entries[i]);
	map_page_encode(&page, &writer);
	require(!writer.failed && writer.len_bytes <= len_bytes);
	require(map_page_decode(writer.data, writer.len_bytes, &again) == 0);
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		require(is_same_entry(&page.entries[i], &again.entries[i]));
	require(map_page_is_empty(&page) == map_page_is_empty(&again));
}

static void check_past(const uint8_t *blob, size_t len_bytes)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct past_page past, again;

	if (past_page_decode(blob, len_bytes, &past) < 0)
		return;
	require(!past_page_is_empty(&past));
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		check_catalog_entry(&past.entries[i]);
	past_page_encode(&past, &writer);
	require(!writer.failed && writer.len_bytes <= len_bytes);
	require(past_page_decode(writer.data, writer.len_bytes, &again) == 0);
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		require(past.present[i] == again.present[i] && is_same_entry(&past.entries[i], &again.entries[i]));
}

static void check_chunks(const uint8_t *blob, size_t len_bytes)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct chunk_page page = {.number = 0}, again = {.number = 0};

	if (chunk_page_decode(blob, len_bytes, &page) < 0)
		return;
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		const struct catalog_location *at = &page.chunks[i];

		require(at->stored_bytes <= STORED_MOST_BYTES && at->off_bytes % 8 == 0 && at->tag >> 48 == 0);
		require(at->segment != CATALOG_NO_SEGMENT || (at->off_bytes == 0 && at->stored_bytes <= 1));
	}
	chunk_page_encode(&page, &writer);
	require(!writer.failed && writer.len_bytes <= len_bytes);
	require(chunk_page_decode(writer.data, writer.len_bytes, &again) == 0);
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		const struct catalog_location *one = &page.chunks[i], *other = &again.chunks[i];

		require(one->tag == other->tag && one->segment == other->segment &&
			one->off_bytes == other->off_bytes && one->stored_bytes == other->stored_bytes &&
			one->references == other->references);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	uint8_t which = input_u8(&input);
	AUTO_FREE uint8_t *blob = heap_copy(input.at, input.left_bytes);

	switch (which % 3) {
	case 0:
		check_map(blob, input.left_bytes);
		break;
	case 1:
		check_past(blob, input.left_bytes);
		break;
	case 2:
		check_chunks(blob, input.left_bytes);
		break;
	}
	return 0;
}
