/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment of what somebody hostile would put into one: records that are right, or wrong in one way.
 *
 * As bytes, little-endian: any number of items. Each is
 *
 *     u8  what, enum item_kind and flags
 *     u8  ITEM_LOG only: operation - 1 (modulo 9), flags enum entry_flags
 *     u32 ITEM_LIES only: what the header says is the stored length
 *     u16 length, then as many bytes
 *
 * An entry of a log is its own fields alone: format, sequence, disk, predecessor and time are added so that it goes on
 * the chain of its disk. In an entry of extents, a digest of zeros but for its first byte n stands for that of the
 * n-th chunk of the segment (modulo the number of chunks).
 */
#ifndef WHERRY_TESTS_FUZZ_SEGMENT_MAKER_H
#define WHERRY_TESTS_FUZZ_SEGMENT_MAKER_H

#include "common/bytes.h"
#include "fuzz.h"
#include "store/segment.h"

enum item_kind { ITEM_CHUNK, ITEM_LOG, ITEM_RAW, ITEM_ZSTD }; /* RAW: no record, bytes. ZSTD: a chunk, its frame */
enum item_flags {
	ITEM_KIND_MASK = 0x03,
	ITEM_BAD_PAYLOAD = 0x04, /* its checksum is wrong */
	ITEM_BAD_DIGEST = 0x08,
	ITEM_LIES = 0x10,
	ITEM_ENDS_SYNC = 0x20, /* zeros up to the next block behind it */
	ITEM_PACKED = 0x40,    /* compressed, if that pays */
	ITEM_BAD_HEADER = 0x80,
};
enum entry_flags {
	ENTRY_OPERATION_MASK = 0x0f,
	ENTRY_OTHER_DISK = 0x10,
	ENTRY_LEAVES_GAP = 0x20, /* the entry before it is missing */
	ENTRY_NEVER_WAS = 0x40,	 /* its transaction did not commit: the next one has its sequence */
	ENTRY_OLD_PARENT = 0x80, /* its predecessor is another one */
};

enum { SEGMENT_MAKER_CHUNK_BYTES = 16 << 10, SEGMENT_MAKER_MOST_BYTES = 256 << 10 };

/* A segment with its head, and the records of all items that fit. The caller frees it. */
void segment_make(const uint8_t store_id[STORE_ID_BYTES], uint32_t number, struct fuzz_input *input,
		  struct byte_writer *ret_segment);

/* Changes, doubles, drops or moves one item; of such a segment as bytes. Returns how many there are. */
size_t segment_mutate(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned random);

#endif
