/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records: what segments are made of. Each describes itself, so that a catalog can be made from segments alone.
 * docs/store-format.md has every byte; in short, a header of 64 bytes, little-endian, at an offset that is a multiple
 * of 8:
 *
 *     0  magic "wRC1"        4  type        5  codec       6  cipher       7  0
 *     8  stored_bytes (u32)  12  plain_bytes (u32)
 *    16  digest: SHA-256 of the plain bytes
 *    48  payload checksum: XXH3-64 of the stored bytes
 *    56  header checksum: XXH3-64 of bytes 0..55
 *    64  payload, stored_bytes long, then zeros up to a multiple of 8
 *
 * Valid: the magic; both checksums; a known type, codec, cipher; stored_bytes and plain_bytes within
 * their caps; the frame of a compressed payload says the same plain length and decodes to just that; the digest.
 */
#ifndef WHERRY_STORE_RECORD_H
#define WHERRY_STORE_RECORD_H

#include <stdint.h>

#include "common/failure.h"
#include "store/hash.h"

enum { RECORD_HEADER_BYTES = 64, RECORD_ALIGN_BYTES = 8 };
/* No record is larger than this, plain or stored: the largest chunk size plus what an incompressible payload adds. */
enum { RECORD_PLAIN_MOST_BYTES = 1 << 20, RECORD_STORED_MOST_BYTES = (1 << 20) + 4096 };

enum record_type { RECORD_CHUNK = 1, RECORD_LOG = 2 }; /* a chunk; an entry of a disk's log (disk_log.h) */
enum record_codec { CODEC_PLAIN = 0, CODEC_ZSTD = 1 };
enum record_cipher { CIPHER_NONE = 0 }; /* 1 is reserved for AES-256-GCM: nonce, ciphertext, tag as the payload */

struct record_header {
	uint8_t type;
	uint8_t codec;
	uint8_t cipher;
	uint32_t stored_bytes;
	uint32_t plain_bytes;
	uint8_t digest[DIGEST_BYTES];
	uint64_t payload_checksum; /* XXH3-64 of the stored bytes */
};

/* Bytes that a record with this payload takes in a segment: header, payload, padding. */
uint64_t record_total_bytes(uint32_t stored_bytes);

/* The 64 bytes, with the header's own checksum; header->payload_checksum must be right already. */
void record_header_encode(const struct record_header *header, uint8_t ret_bytes[RECORD_HEADER_BYTES]);
uint64_t record_payload_checksum(const void *stored, uint32_t stored_bytes);

/*
 * What says how to read the payload: codec, cipher and lengths, by the rules above. -EBADMSG with a failure that says
 * what is wrong ("stored length 4294967295 is over the limit of 1052672").
 */
int record_header_validate(const struct record_header *header, struct failure *failure);

/* Parses the 64 bytes and checks all that can be checked without the payload. -EBADMSG ("bad magic", …). */
int record_header_decode(const uint8_t bytes[RECORD_HEADER_BYTES], struct record_header *ret_header,
			 struct failure *failure);

/* Compression contexts and scratch memory of one thread. */
struct codec;
int codec_new(struct codec **ret_codec, struct failure *failure);
void codec_free(struct codec *codec);

/*
 * Levels as users give them: 0 = plain, 1..10 mapped onto zstd (codec_zstd_level).
 * The map and CODEC_LEVEL_DEFAULT, which is zstd's level 1, were chosen by measuring (docs/decisions.md).
 */
enum { CODEC_LEVEL_LEAST = 0, CODEC_LEVEL_MOST = 10, CODEC_LEVEL_DEFAULT = 3 };
int codec_zstd_level(int level); /* the zstd level (negative ones are zstd's fast ones) that 1..10 stands for */

/*
 * Compresses plain_bytes (1 .. RECORD_PLAIN_MOST_BYTES) into `stored`, which has room for RECORD_STORED_MOST_BYTES.
 * Chooses CODEC_PLAIN (and copies) at level 0, when a cheap look says that it won't pay, or when zstd saves less than
 * 1/32. Sets all of ret_header but type and digest.
 */
int codec_encode(struct codec *codec, int level, const void *plain, uint32_t plain_bytes, void *stored,
		 struct record_header *ret_header, struct failure *failure);

/*
 * The reverse, and the check: lengths, payload checksum, frame content size == plain_bytes before anything is
 * decompressed, window limit, no dictionary, exactly one frame and nothing behind it. `stored` has
 * header->stored_bytes, `plain` has room for header->plain_bytes (its content is undefined after a failure). Does not
 * recompute the digest: callers that want the deep check use hasher_digest(). -EBADMSG.
 */
int codec_decode(struct codec *codec, const struct record_header *header, const void *stored, void *plain,
		 struct failure *failure);
/* The same for who has compared the payload's checksum already. */
int codec_decode_checked(struct codec *codec, const struct record_header *header, const void *stored, void *plain,
			 struct failure *failure);

#endif
