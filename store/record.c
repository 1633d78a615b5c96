/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The 64 bytes in front of every payload: to bytes and back.
 *
 * Order of the checks when one is parsed: magic, then the header's own checksum, and only then what the fields say. So
 * a message about a field means that somebody wrote that field, and damage is called damage.
 *
 * The checksum is no proof against a forger (XXH3 has no secret). It need not be one: whoever can write into the
 * store's files can write anything, and names of chunks are SHA-256. What it must not do is to let damage through:
 * one in 2^64 does.
 *
 * A header takes part in nothing but its own validity: no field says anything about other records, so a damaged one
 * costs one record.
 */
#include "store/record.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <xxhash.h>

#include "common/bytes.h"

enum {
	AT_MAGIC = 0,
	AT_TYPE = 4,
	AT_CODEC = 5,
	AT_CIPHER = 6,
	AT_RESERVED = 7,
	AT_STORED_BYTES = 8,
	AT_PLAIN_BYTES = 12,
	AT_DIGEST = 16,
	AT_PAYLOAD_CHECKSUM = 48,
	AT_HEADER_CHECKSUM = 56,
};

_Static_assert(AT_DIGEST + DIGEST_BYTES == AT_PAYLOAD_CHECKSUM, "the digest fills its place");
_Static_assert(AT_HEADER_CHECKSUM + sizeof(uint64_t) == RECORD_HEADER_BYTES, "the header ends with its checksum");

static const uint8_t record_magic[4] = {'w', 'R', 'C', '1'};

uint64_t record_total_bytes(uint32_t stored_bytes)
{
	uint64_t unpadded_bytes = (uint64_t)RECORD_HEADER_BYTES + stored_bytes;

	return (unpadded_bytes + RECORD_ALIGN_BYTES - 1) / RECORD_ALIGN_BYTES * RECORD_ALIGN_BYTES;
}

uint64_t record_payload_checksum(const void *stored, uint32_t stored_bytes)
{
	return XXH3_64bits(stored, stored_bytes);
}

void record_header_encode(const struct record_header *header, uint8_t ret_bytes[RECORD_HEADER_BYTES])
{
	memcpy(ret_bytes + AT_MAGIC, record_magic, sizeof(record_magic));
	ret_bytes[AT_TYPE] = header->type;
	ret_bytes[AT_CODEC] = header->codec;
	ret_bytes[AT_CIPHER] = header->cipher;
	ret_bytes[AT_RESERVED] = 0;
	bytes_put_le32(ret_bytes + AT_STORED_BYTES, header->stored_bytes);
	bytes_put_le32(ret_bytes + AT_PLAIN_BYTES, header->plain_bytes);
	memcpy(ret_bytes + AT_DIGEST, header->digest, DIGEST_BYTES);
	bytes_put_le64(ret_bytes + AT_PAYLOAD_CHECKSUM, header->payload_checksum);
	bytes_put_le64(ret_bytes + AT_HEADER_CHECKSUM, XXH3_64bits(ret_bytes, AT_HEADER_CHECKSUM));
}

int record_header_validate(const struct record_header *header, struct failure *failure)
{
	if (header->codec != CODEC_PLAIN && header->codec != CODEC_ZSTD)
		return fail(failure, -EBADMSG, "unknown codec %u", header->codec);
	if (header->cipher != CIPHER_NONE)
		return fail(failure, -EBADMSG, "unknown cipher %u", header->cipher);
	if (header->stored_bytes == 0 || header->plain_bytes == 0)
		return fail(failure, -EBADMSG, "a record of no bytes");
	if (header->stored_bytes > RECORD_STORED_MOST_BYTES)
		return fail(failure, -EBADMSG, "stored length %" PRIu32 " is over the limit of %u",
			    header->stored_bytes, (unsigned int)RECORD_STORED_MOST_BYTES);
	if (header->plain_bytes > RECORD_PLAIN_MOST_BYTES)
		return fail(failure, -EBADMSG, "plain length %" PRIu32 " is over the limit of %u", header->plain_bytes,
			    (unsigned int)RECORD_PLAIN_MOST_BYTES);
	if (header->codec == CODEC_PLAIN && header->stored_bytes != header->plain_bytes)
		return fail(failure, -EBADMSG, "stored length %" PRIu32 " of a plain record of %" PRIu32 " bytes",
			    header->stored_bytes, header->plain_bytes);
	return 0;
}

int record_header_decode(const uint8_t bytes[RECORD_HEADER_BYTES], struct record_header *ret_header,
			 struct failure *failure)
{
	struct record_header header = {
		.type = bytes[AT_TYPE],
		.codec = bytes[AT_CODEC],
		.cipher = bytes[AT_CIPHER],
		.stored_bytes = bytes_get_le32(bytes + AT_STORED_BYTES),
		.plain_bytes = bytes_get_le32(bytes + AT_PLAIN_BYTES),
		.payload_checksum = bytes_get_le64(bytes + AT_PAYLOAD_CHECKSUM),
	};
	int result;

	if (memcmp(bytes + AT_MAGIC, record_magic, sizeof(record_magic)) != 0)
		return fail(failure, -EBADMSG, "bad magic");
	if (bytes_get_le64(bytes + AT_HEADER_CHECKSUM) != XXH3_64bits(bytes, AT_HEADER_CHECKSUM))
		return fail(failure, -EBADMSG, "header checksum");
	if (bytes[AT_RESERVED] != 0)
		return fail(failure, -EBADMSG, "reserved byte is %u", bytes[AT_RESERVED]);
	if (header.type != RECORD_CHUNK && header.type != RECORD_LOG)
		return fail(failure, -EBADMSG, "unknown record type %u", header.type);
	result = record_header_validate(&header, failure);
	if (result < 0)
		return result;
	memcpy(header.digest, bytes + AT_DIGEST, DIGEST_BYTES);
	*ret_header = header;
	return 0;
}
