/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages as they stand in blobs.
 *
 * What is mapped in order is stored in order, so nearly everything about an entry follows from its neighbour: a page is a list
 * of runs, and a run says how many chunks have consecutive ids and the same generation. Left over are the fingerprints, 16 bytes a chunk that nothing
 * predicts. A page of 256 chunks after a first round takes 4.1 KiB, 16.2 bytes a chunk.
 *
 *   map:   runs, each: varint (count << 3 | has_fingerprint << 2 | kind), varint since, for CHUNK: zigzag (first id - (last id + 1))
 *          until CATALOG_PAGE_ENTRIES chunks are covered; then the fingerprints of those that have one, in order
 *   past:  runs, each: varint skip (chunks not mentioned before it), varint (count << 2 | kind), varint since, for CHUNK as above; then
 *          varint skip (chunks not mentioned behind the last), which is there even if 0: CATALOG_PAGE_ENTRIES chunks are covered, and
 *          a blob that was cut short isn't taken for whole. At least one run
 *   chunk: CATALOG_CHUNK_PAGE_ENTRIES times: varint stored_bytes (0: no such chunk, nothing follows), varint references, zigzag (segment - the one before),
 *          zigzag (off_bytes / 8 - where the one before ended), 6 bytes tag
 *
 * Each blob ends with 8 bytes of checksum over it and its row's key (page_seal()).
 *
 * Decoding believes nothing: every count is checked against what is left of the page, and the blob must end exactly where the
 * content does.
 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "catalog/internal.h"

enum { KIND_MASK = 3, FINGERPRINT_FLAG = 4, TAG_BYTES = 6 };

static uint64_t zigzag(int64_t value)
{
	return ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
}

static int64_t unzigzag(uint64_t value)
{
	return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static uint64_t seal_of(const struct page_key *key, const void *blob, size_t len_bytes)
{
	uint8_t bytes[4 * 8];

	bytes_put_le64(bytes, key->table);
	for (int i = 0; i < 3; i++)
		bytes_put_le64(bytes + 8 + i * 8, key->words[i]);
	return XXH3_64bits_withSeed(blob, len_bytes, XXH3_64bits(bytes, sizeof(bytes)));
}

void page_seal(const struct page_key *key, struct byte_writer *writer)
{
	if (!writer->failed)
		byte_writer_le64(writer, seal_of(key, writer->data, writer->len_bytes));
}

int page_unseal(sqlite3_stmt *row, int column, const struct page_key *key, const void **ret_blob, size_t *ret_len_bytes)
{
	const uint8_t *blob = sqlite3_column_blob(row, column); /* first: it may change the type that the length is of */
	int len_bytes = sqlite3_column_bytes(row, column);

	if (blob == NULL || len_bytes < PAGE_SEAL_BYTES)
		return -EBADMSG;
	len_bytes -= PAGE_SEAL_BYTES;
	if (bytes_get_le64(blob + len_bytes) != seal_of(key, blob, (size_t)len_bytes))
		return -EBADMSG;
	*ret_blob = blob;
	*ret_len_bytes = (size_t)len_bytes;
	return 0;
}

bool map_page_is_empty(const struct catalog_page *page)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (page->entries[i].kind != CATALOG_NOTHING)
			return false;
	return true;
}

static bool continues_run(const struct catalog_entry *before, const struct catalog_entry *entry)
{
	return entry->kind == before->kind && entry->since == before->since &&
	       entry->has_fingerprint == before->has_fingerprint &&
	       (entry->kind != CATALOG_CHUNK || entry->chunk == before->chunk + 1);
}

void map_page_encode(const struct catalog_page *page, struct byte_writer *writer)
{
	const struct catalog_entry *entries = page->entries;
	uint64_t expected_chunk = 0;

	for (unsigned i = 0, count; i < CATALOG_PAGE_ENTRIES; i += count) {
		for (count = 1; i + count < CATALOG_PAGE_ENTRIES; count++)
			if (!continues_run(&entries[i + count - 1], &entries[i + count]))
				break;
		byte_writer_varint(writer, (uint64_t)count << 3 | (entries[i].has_fingerprint ? FINGERPRINT_FLAG : 0u) |
						   entries[i].kind);
		byte_writer_varint(writer, entries[i].since);
		if (entries[i].kind == CATALOG_CHUNK) {
			byte_writer_varint(writer, zigzag((int64_t)(entries[i].chunk - expected_chunk)));
			expected_chunk = entries[i].chunk + count;
		}
	}
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (entries[i].has_fingerprint)
			byte_writer_bytes(writer, entries[i].fingerprint, CATALOG_FINGERPRINT_BYTES);
}

/* Chunk ids stay below 2^62, so that the sums here can't overflow. */
static bool decode_chunk(struct byte_reader *reader, uint64_t expected_chunk, uint64_t *ret_chunk)
{
	uint64_t chunk = expected_chunk + (uint64_t)unzigzag(byte_reader_varint(reader));

	if (chunk == 0 || chunk >= (uint64_t)1 << 62)
		return false;
	*ret_chunk = chunk;
	return true;
}

static int decode_fingerprints(struct byte_reader *reader, struct catalog_page *page)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		const uint8_t *fingerprint;

		if (!page->entries[i].has_fingerprint)
			continue;
		fingerprint = byte_reader_bytes(reader, CATALOG_FINGERPRINT_BYTES);
		if (fingerprint == NULL)
			return -EBADMSG;
		memcpy(page->entries[i].fingerprint, fingerprint, CATALOG_FINGERPRINT_BYTES);
	}
	return byte_reader_left(reader) == 0 && !reader->bad ? 0 : -EBADMSG;
}

int map_page_decode(const void *blob, size_t len_bytes, struct catalog_page *ret_page)
{
	struct byte_reader reader = byte_reader_over(blob, len_bytes);
	uint64_t expected_chunk = 0;

	memset(ret_page, 0, sizeof(*ret_page));
	for (uint64_t i = 0, count; i < CATALOG_PAGE_ENTRIES; i += count) {
		uint64_t head = byte_reader_varint(&reader);
		uint64_t since = byte_reader_varint(&reader);
		uint64_t chunk = 0;

		count = head >> 3;
		if (reader.bad || count == 0 || count > CATALOG_PAGE_ENTRIES - i || since > UINT32_MAX ||
		    (head & KIND_MASK) > CATALOG_CHUNK)
			return -EBADMSG;
		if ((head & KIND_MASK) == CATALOG_CHUNK) {
			if (!decode_chunk(&reader, expected_chunk, &chunk))
				return -EBADMSG;
			expected_chunk = chunk + count;
		} else if ((head & FINGERPRINT_FLAG) != 0) {
			return -EBADMSG;
		}
		for (uint64_t n = 0; n < count; n++)
			ret_page->entries[i + n] = (struct catalog_entry){
				.chunk = chunk == 0 ? 0 : chunk + n,
				.since = (uint32_t)since,
				.kind = (uint8_t)(head & KIND_MASK),
				.has_fingerprint = (head & FINGERPRINT_FLAG) != 0,
			};
	}
	return decode_fingerprints(&reader, ret_page);
}

bool past_page_is_empty(const struct past_page *past)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (past->present[i])
			return false;
	return true;
}

void past_page_encode(const struct past_page *past, struct byte_writer *writer)
{
	uint64_t expected_chunk = 0;
	unsigned end = 0; /* of the run before */

	for (unsigned i = 0, count; i < CATALOG_PAGE_ENTRIES; i += count) {
		count = 1;
		if (!past->present[i])
			continue;
		while (i + count < CATALOG_PAGE_ENTRIES && past->present[i + count] &&
		       continues_run(&past->entries[i + count - 1], &past->entries[i + count]))
			count++;
		byte_writer_varint(writer, i - end);
		byte_writer_varint(writer, (uint64_t)count << 2 | past->entries[i].kind);
		byte_writer_varint(writer, past->entries[i].since);
		if (past->entries[i].kind == CATALOG_CHUNK) {
			byte_writer_varint(writer, zigzag((int64_t)(past->entries[i].chunk - expected_chunk)));
			expected_chunk = past->entries[i].chunk + count;
		}
		end = i + count;
	}
	byte_writer_varint(writer, CATALOG_PAGE_ENTRIES - end);
}

/* One run of `past`, from *at on, which moves behind it. */
static int decode_past_run(struct byte_reader *reader, uint64_t *at, uint64_t *expected_chunk, struct past_page *past)
{
	uint64_t head = byte_reader_varint(reader);
	uint64_t since = byte_reader_varint(reader);
	uint64_t count = head >> 2;
	uint64_t chunk = 0;

	if (reader->bad || count == 0 || count > CATALOG_PAGE_ENTRIES - *at || since > UINT32_MAX ||
	    (head & KIND_MASK) > CATALOG_CHUNK)
		return -EBADMSG;
	if ((head & KIND_MASK) == CATALOG_CHUNK) {
		if (!decode_chunk(reader, *expected_chunk, &chunk))
			return -EBADMSG;
		*expected_chunk = chunk + count;
	}
	for (uint64_t n = 0; n < count; n++, ++*at) {
		past->present[*at] = true;
		past->entries[*at] = (struct catalog_entry){
			.chunk = chunk == 0 ? 0 : chunk + n,
			.since = (uint32_t)since,
			.kind = (uint8_t)(head & KIND_MASK),
		};
	}
	return 0;
}

int past_page_decode(const void *blob, size_t len_bytes, struct past_page *ret_past)
{
	struct byte_reader reader = byte_reader_over(blob, len_bytes);
	uint64_t expected_chunk = 0;
	uint64_t at = 0;

	memset(ret_past, 0, sizeof(*ret_past));
	for (bool has_run = false;; has_run = true) {
		uint64_t skip = byte_reader_varint(&reader);

		if (reader.bad || skip > CATALOG_PAGE_ENTRIES - at)
			return -EBADMSG;
		at += skip;
		if (byte_reader_left(&reader) == 0)
			return at == CATALOG_PAGE_ENTRIES && has_run ? 0 : -EBADMSG;
		if (decode_past_run(&reader, &at, &expected_chunk, ret_past) < 0)
			return -EBADMSG;
	}
}

void chunk_page_encode(const struct chunk_page *page, struct byte_writer *writer)
{
	int64_t segment = 0, end_units = 0;

	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		const struct catalog_location *at = &page->chunks[i];
		uint8_t tag[8];

		byte_writer_varint(writer, at->stored_bytes);
		if (at->stored_bytes == 0)
			continue;
		byte_writer_varint(writer, at->references);
		byte_writer_varint(writer, zigzag((int64_t)at->segment - segment));
		byte_writer_varint(writer, zigzag((int64_t)(at->off_bytes / 8) - end_units));
		bytes_put_le64(tag, at->tag);
		byte_writer_bytes(writer, tag, TAG_BYTES);
		segment = at->segment;
		end_units = (int64_t)((at->off_bytes + catalog_record_bytes(at->stored_bytes)) / 8);
	}
}

static bool decode_location(struct byte_reader *reader, uint64_t stored_bytes, int64_t *segment, int64_t *end_units,
			    struct catalog_location *ret_location)
{
	uint64_t references = byte_reader_varint(reader);
	int64_t segment_step = unzigzag(byte_reader_varint(reader));
	int64_t units_step = unzigzag(byte_reader_varint(reader));
	const uint8_t *tag = byte_reader_bytes(reader, TAG_BYTES);
	uint8_t tag_bytes[8] = { 0 };

	if (tag == NULL || stored_bytes > STORED_MOST_BYTES || references > UINT32_MAX ||
	    segment_step > UINT32_MAX || segment_step < -(int64_t)UINT32_MAX || units_step > UINT32_MAX ||
	    units_step < -(int64_t)UINT32_MAX)
		return false;
	*segment += segment_step;
	*end_units += units_step;
	if (*segment < 0 || *segment > UINT32_MAX || *end_units < 0 || *end_units > UINT32_MAX / 8)
		return false;
	if (*segment == CATALOG_NO_SEGMENT && (*end_units != 0 || stored_bytes != 1))
		return false;
	memcpy(tag_bytes, tag, TAG_BYTES);
	*ret_location = (struct catalog_location){
		.tag = bytes_get_le64(tag_bytes),
		.segment = (uint32_t)*segment,
		.off_bytes = (uint32_t)(*end_units * 8),
		.stored_bytes = (uint32_t)stored_bytes,
		.references = (uint32_t)references,
	};
	*end_units = (int64_t)((ret_location->off_bytes + catalog_record_bytes(ret_location->stored_bytes)) / 8);
	return true;
}

int chunk_page_decode(const void *blob, size_t len_bytes, struct chunk_page *ret_page)
{
	struct byte_reader reader = byte_reader_over(blob, len_bytes);
	int64_t segment = 0, end_units = 0;

	memset(ret_page->chunks, 0, sizeof(ret_page->chunks));
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		uint64_t stored_bytes = byte_reader_varint(&reader);

		if (stored_bytes != 0 &&
		    !decode_location(&reader, stored_bytes, &segment, &end_units, &ret_page->chunks[i]))
			return -EBADMSG;
	}
	return byte_reader_left(&reader) == 0 && !reader.bad ? 0 : -EBADMSG;
}
