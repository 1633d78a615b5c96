/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See segment_maker.h. Lengths that an item can't have (an empty record) are left as they are: who reads the segment
 * has to cope.
 */
#include "segment_maker.h"

#include <zstd.h>

#include "common/cleanup.h"
#include "store/disk_log.h"
#include "store/record.h"
#include "store/segment.h"
#include "store/segment_file.h"

enum { DISKS = 2, CHUNKS_MOST = 64, ENTRY_HEAD_BYTES = 66, PACK_LEVEL = 3 };

struct chain {
	uint64_t sequence;
	uint8_t head[DIGEST_BYTES];
	uint8_t old_head[DIGEST_BYTES];
};

struct maker {
	struct byte_writer *segment;
	struct chain chains[DISKS];
	uint8_t chunks[CHUNKS_MOST][DIGEST_BYTES];
	unsigned chunk_count;
};

static struct hasher *hasher;
static struct codec *codec;

static void pad(struct byte_writer *segment, size_t multiple_bytes)
{
	while (segment->len_bytes % multiple_bytes != 0)
		byte_writer_u8(segment, 0);
}

/* A record of this content, its header's lengths and checksums as `what` wants them. */
static void put_record(struct maker *maker, uint8_t what, uint32_t lie_bytes, struct record_header *header,
		       const uint8_t *stored)
{
	uint8_t header_bytes[RECORD_HEADER_BYTES];
	uint32_t stored_bytes = header->stored_bytes;

	header->payload_checksum = record_payload_checksum(stored, stored_bytes);
	if ((what & ITEM_BAD_PAYLOAD) != 0)
		header->payload_checksum ^= 1;
	if ((what & ITEM_LIES) != 0) {
		header->stored_bytes = lie_bytes;
		if (header->codec == CODEC_PLAIN)
			header->plain_bytes = lie_bytes; /* or the header alone would give it away */
	}
	if ((what & ITEM_BAD_DIGEST) != 0)
		header->digest[0] ^= 1;
	record_header_encode(header, header_bytes);
	if ((what & ITEM_BAD_HEADER) != 0)
		header_bytes[RECORD_HEADER_BYTES - 1] ^= 1;
	byte_writer_bytes(maker->segment, header_bytes, sizeof(header_bytes));
	byte_writer_bytes(maker->segment, stored, stored_bytes);
	pad(maker->segment, RECORD_ALIGN_BYTES);
}

static void put_content(struct maker *maker, uint8_t type, uint8_t what, uint32_t lie_bytes, const uint8_t *plain,
			uint32_t plain_bytes, uint8_t ret_digest[DIGEST_BYTES])
{
	static uint8_t stored[RECORD_STORED_MOST_BYTES];
	struct record_header header = {.type = type, .stored_bytes = plain_bytes, .plain_bytes = plain_bytes};

	require(hasher_digest(hasher, plain, plain_bytes, ret_digest, NULL) == 0);
	if ((what & ITEM_PACKED) != 0 && plain_bytes > 0) {
		require(codec_encode(codec, PACK_LEVEL, plain, plain_bytes, stored, &header, NULL) == 0);
		plain = stored;
	}
	memcpy(header.digest, ret_digest, DIGEST_BYTES);
	put_record(maker, what, lie_bytes, &header, plain);
}

static void put_frame(struct maker *maker, uint8_t what, uint32_t lie_bytes, const uint8_t *frame, size_t frame_bytes)
{
	struct record_header header = {.type = RECORD_CHUNK,
				       .codec = CODEC_ZSTD,
				       .stored_bytes = (uint32_t)frame_bytes,
				       .plain_bytes = (uint32_t)ZSTD_getFrameContentSize(frame, frame_bytes)};

	put_record(maker, what, lie_bytes, &header, frame);
}

/* Puts the digests of chunks in place of what stands for them. */
static void name_chunks(struct maker *maker, uint8_t *plain, size_t plain_bytes)
{
	static const uint8_t zeros[DIGEST_BYTES];
	AUTO(log_entry_free) struct log_entry entry = {.level = -1};

	if (maker->chunk_count == 0 ||
	    log_entry_decode(plain, plain_bytes, SEGMENT_MAKER_CHUNK_BYTES, &entry, NULL) < 0)
		return;
	for (size_t i = 0; i < entry.run_count; i++) {
		for (uint64_t n = 0; entry.runs[i].kind == LOG_RUN_CHUNKS && n < entry.runs[i].chunk_count; n++) {
			uint8_t *digest = plain + (entry.runs[i].digests[n] - plain); /* borrowed from `plain` */

			if (memcmp(digest + 1, zeros, DIGEST_BYTES - 1) == 0)
				memcpy(digest, maker->chunks[digest[0] % maker->chunk_count], DIGEST_BYTES);
		}
	}
}

static void put_entry(struct maker *maker, uint8_t what, uint8_t how, uint32_t lie_bytes, const uint8_t *fields,
		      size_t fields_bytes)
{
	unsigned disk = (how & ENTRY_OTHER_DISK) != 0;
	struct chain *chain = &maker->chains[disk];
	uint8_t operation = (uint8_t)((how & ENTRY_OPERATION_MASK) % LOG_REMOVE + 1);
	uint64_t sequence = chain->sequence + 1 + ((how & ENTRY_LEAVES_GAP) != 0);
	uint8_t uuid[DISK_UUID_BYTES] = {[0] = (uint8_t)(disk + 1)};
	uint8_t digest[DIGEST_BYTES];
	AUTO(byte_writer_free) struct byte_writer entry = BYTE_WRITER_EMPTY;

	byte_writer_u8(&entry, 1);
	byte_writer_u8(&entry, operation);
	byte_writer_le64(&entry, sequence);
	byte_writer_bytes(&entry, uuid, sizeof(uuid));
	byte_writer_bytes(&entry, (how & ENTRY_OLD_PARENT) != 0 ? chain->old_head : chain->head, DIGEST_BYTES);
	byte_writer_le64(&entry, 1700000000 + maker->segment->len_bytes);
	require(entry.len_bytes == ENTRY_HEAD_BYTES);
	byte_writer_bytes(&entry, fields, fields_bytes);
	name_chunks(maker, entry.data, entry.len_bytes);
	put_content(maker, RECORD_LOG, what, lie_bytes, entry.data, (uint32_t)entry.len_bytes, digest);
	if ((how & ENTRY_NEVER_WAS) != 0)
		return;
	chain->sequence = sequence;
	memcpy(chain->old_head, chain->head, DIGEST_BYTES);
	memcpy(chain->head, digest, DIGEST_BYTES);
}

static void put_item(struct maker *maker, struct fuzz_input *input)
{
	uint8_t what = input_u8(input);
	uint8_t how = (what & ITEM_KIND_MASK) == ITEM_LOG ? input_u8(input) : 0;
	uint32_t lie_bytes = (what & ITEM_LIES) != 0 ? input_le(input, 4) : 0;
	size_t len_bytes = input_le(input, 2);
	const uint8_t *bytes = input_bytes(input, len_bytes, &len_bytes);
	uint8_t unused[DIGEST_BYTES];
	uint8_t *digest = maker->chunk_count < CHUNKS_MOST ? maker->chunks[maker->chunk_count] : unused;

	switch ((enum item_kind)(what & ITEM_KIND_MASK)) {
	case ITEM_CHUNK:
		put_content(maker, RECORD_CHUNK, what, lie_bytes, bytes, (uint32_t)len_bytes, digest);
		maker->chunk_count += digest != unused;
		break;
	case ITEM_LOG:
		put_entry(maker, what, how, lie_bytes, bytes, len_bytes);
		break;
	case ITEM_RAW:
		byte_writer_bytes(maker->segment, bytes, len_bytes);
		break;
	case ITEM_ZSTD:
		put_frame(maker, what, lie_bytes, bytes, len_bytes);
		break;
	}
	if ((what & ITEM_ENDS_SYNC) != 0)
		pad(maker->segment, SEGMENT_BLOCK_BYTES);
}

void segment_make(const uint8_t store_id[STORE_ID_BYTES], uint32_t number, struct fuzz_input *input,
		  struct byte_writer *ret_segment)
{
	struct maker maker = {.segment = ret_segment};
	uint8_t block[SEGMENT_BLOCK_BYTES];

	if (hasher == NULL)
		require(hasher_new(&hasher, NULL) == 0 && codec_new(&codec, NULL) == 0);
	segment_block_encode(store_id, number, 0, block);
	byte_writer_bytes(ret_segment, block, sizeof(block));
	while (input->left_bytes > 0 && ret_segment->len_bytes < SEGMENT_MAKER_MOST_BYTES)
		put_item(&maker, input);
	require(!ret_segment->failed);
}

/* ---- mutation ---- */

struct item {
	size_t at_byte, fields_bytes, len_bytes; /* in the input: where, what stands before its bytes, those */
};

static unsigned find_items(const uint8_t *data, size_t len_bytes, struct item *ret_items, unsigned most)
{
	struct fuzz_input input = {data, len_bytes};
	unsigned count = 0;

	while (input.left_bytes > 0 && count < most) {
		size_t at_byte = len_bytes - input.left_bytes, item_bytes;
		uint8_t what = input_u8(&input);

		if ((what & ITEM_KIND_MASK) == ITEM_LOG)
			(void)input_u8(&input);
		if ((what & ITEM_LIES) != 0)
			(void)input_le(&input, 4);
		item_bytes = input_le(&input, 2);
		ret_items[count] =
			(struct item){.at_byte = at_byte, .fields_bytes = len_bytes - input.left_bytes - at_byte};
		(void)input_bytes(&input, item_bytes, &ret_items[count++].len_bytes);
	}
	return count;
}

/* Other bytes for an item, and the length that says so. */
static size_t mutate_bytes(uint8_t *data, size_t len_bytes, size_t most_bytes, const struct item *item)
{
	uint8_t *bytes = data + item->at_byte + item->fields_bytes;
	size_t behind_bytes = len_bytes - item->at_byte - item->fields_bytes - item->len_bytes;
	size_t room_bytes = item->len_bytes + (most_bytes - len_bytes), changed_bytes;
	AUTO_FREE uint8_t *behind = heap_copy(bytes + item->len_bytes, behind_bytes);

	if (item->fields_bytes < 3 || room_bytes == 0)
		return len_bytes;
	if (room_bytes > item->len_bytes + 64)
		room_bytes = item->len_bytes + 64;
	changed_bytes = LLVMFuzzerMutate(bytes, item->len_bytes, room_bytes);
	bytes_put_le16(bytes - 2, (uint16_t)changed_bytes);
	memcpy(bytes + changed_bytes, behind, behind_bytes);
	return len_bytes - item->len_bytes + changed_bytes;
}

/* Puts a copy of one item in front of another one. */
static size_t copy_item(uint8_t *data, size_t len_bytes, size_t most_bytes, const struct item *item, size_t to_byte)
{
	size_t item_bytes = item->fields_bytes + item->len_bytes;
	AUTO_FREE uint8_t *copy = heap_copy(data + item->at_byte, item_bytes);

	if (item_bytes > most_bytes - len_bytes)
		return len_bytes;
	memmove(data + to_byte + item_bytes, data + to_byte, len_bytes - to_byte);
	memcpy(data + to_byte, copy, item_bytes);
	return len_bytes + item_bytes;
}

size_t segment_mutate(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned random)
{
	enum { ITEMS_MOST = 128 };
	struct item items[ITEMS_MOST];
	unsigned count = find_items(data, len_bytes, items, ITEMS_MOST);
	const struct item *item, *other;
	size_t behind_byte;

	if (count == 0)
		return LLVMFuzzerMutate(data, len_bytes, most_bytes);
	item = &items[random / 8 % count];
	other = &items[random / 8 / count % count];
	switch (random % 8) {
	case 0:
		return copy_item(data, len_bytes, most_bytes, item, other->at_byte);
	case 1: /* drop */
		behind_byte = item->at_byte + item->fields_bytes + item->len_bytes;
		memmove(data + item->at_byte, data + behind_byte, len_bytes - behind_byte);
		return len_bytes - item->fields_bytes - item->len_bytes;
	case 2: /* what it is, or how */
		(void)LLVMFuzzerMutate(data + item->at_byte, item->fields_bytes < 2 ? 1 : 2,
				       item->fields_bytes < 2 ? 1 : 2);
		return len_bytes;
	default:
		return mutate_bytes(data, len_bytes, most_bytes, item);
	}
}
