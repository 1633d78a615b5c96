/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One record: its header, and what the codec makes of its payload.
 *
 * Input: a byte of flags, 64 bytes of header, a payload. The flags say how much a forger has mended: nothing; magic and
 * header checksum; the payload's checksum and length too; and the plain length as the zstd frame has it. A record
 * whose payload is shorter than its header says is for the segment reader to refuse (fuzz_segment.c); here it is left
 * at the header.
 *
 * With one more flag the input is content instead, and has to survive being encoded and decoded.
 */
#include "fuzz.h"

#include <errno.h>

#include <zstd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/record.h"

enum { MEND_MASK = 3, MEND_HEADER = 1, MEND_PAYLOAD = 2, MEND_LENGTHS = 3, IS_CONTENT = 0x80, LEVEL_MASK = 0x0f };
enum { AT_CODEC = 5, AT_STORED_BYTES = 8, AT_PLAIN_BYTES = 12, AT_PAYLOAD_CHECKSUM = 48 };

static struct codec *codec;

static void mend(uint8_t header_bytes[RECORD_HEADER_BYTES], const uint8_t *payload, size_t payload_bytes,
		 unsigned how_much)
{
	struct record_header header;
	unsigned long long content_bytes;

	if (how_much >= MEND_PAYLOAD) {
		bytes_put_le32(header_bytes + AT_STORED_BYTES, (uint32_t)payload_bytes);
		bytes_put_le64(header_bytes + AT_PAYLOAD_CHECKSUM,
			       record_payload_checksum(payload, (uint32_t)payload_bytes));
	}
	if (how_much == MEND_LENGTHS) {
		content_bytes = header_bytes[AT_CODEC] == CODEC_ZSTD ? ZSTD_getFrameContentSize(payload, payload_bytes)
								     : payload_bytes;
		bytes_put_le32(header_bytes + AT_PLAIN_BYTES, (uint32_t)content_bytes);
	}
	if (how_much >= MEND_HEADER) {
		/* by way of the encoder, for its checksum */
		header = (struct record_header){.type = header_bytes[4],
						.codec = header_bytes[AT_CODEC],
						.cipher = header_bytes[6],
						.stored_bytes = bytes_get_le32(header_bytes + AT_STORED_BYTES),
						.plain_bytes = bytes_get_le32(header_bytes + AT_PLAIN_BYTES),
						.payload_checksum = bytes_get_le64(header_bytes + AT_PAYLOAD_CHECKSUM)};
		memcpy(header.digest, header_bytes + 16, DIGEST_BYTES);
		record_header_encode(&header, header_bytes);
	}
}

/* Into memory that held `before` everywhere. */
static uint8_t *decode(const struct record_header *header, const uint8_t *stored, uint8_t before, int *ret_result)
{
	struct failure failure = {.code = 0};
	uint8_t *plain = malloc(header->plain_bytes);

	require(plain != NULL);
	memset(plain, before, header->plain_bytes);
	*ret_result = codec_decode(codec, header, stored, plain, &failure);
	require(*ret_result == 0 || (*ret_result == -EBADMSG && failure.message[0] != '\0'));
	return plain;
}

static void check_decode(const struct record_header *header, const uint8_t *payload)
{
	AUTO_FREE uint8_t *stored = heap_copy(payload, header->stored_bytes);
	int first_result, second_result;
	AUTO_FREE uint8_t *first = decode(header, stored, 0xa5, &first_result);
	AUTO_FREE uint8_t *second = decode(header, stored, 0x5a, &second_result);

	require(first_result == second_result);
	require(first_result < 0 || memcmp(first, second, header->plain_bytes) == 0);
}

static void check_content(const uint8_t *content, size_t len_bytes, int level)
{
	struct record_header header = {.type = RECORD_CHUNK};
	AUTO_FREE uint8_t *plain = heap_copy(content, len_bytes);
	static uint8_t stored[RECORD_STORED_MOST_BYTES]; /* to ask for a MiB each time costs more than all the rest */
	AUTO_FREE uint8_t *exact = NULL;
	AUTO_FREE uint8_t *again = NULL;
	int result;

	require(codec_encode(codec, level, plain, (uint32_t)len_bytes, stored, &header, NULL) == 0);
	require(header.stored_bytes <= header.plain_bytes);
	exact = heap_copy(stored, header.stored_bytes);
	again = decode(&header, exact, 0xa5, &result);
	require(result == 0 && memcmp(plain, again, len_bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	uint8_t flags = input_u8(&input);
	uint8_t header_bytes[RECORD_HEADER_BYTES], encoded[RECORD_HEADER_BYTES];
	struct failure failure = {.code = 0};
	struct record_header header;
	int result;

	if (codec == NULL)
		require(codec_new(&codec, NULL) == 0);
	if ((flags & IS_CONTENT) != 0 && input.left_bytes > 0)
		check_content(input.at, input.left_bytes, (flags & LEVEL_MASK) % (CODEC_LEVEL_MOST + 1));
	if ((flags & IS_CONTENT) != 0 || input.left_bytes < RECORD_HEADER_BYTES)
		return 0;
	memcpy(header_bytes, input.at, RECORD_HEADER_BYTES);
	input.at += RECORD_HEADER_BYTES;
	input.left_bytes -= RECORD_HEADER_BYTES;
	mend(header_bytes, input.at, input.left_bytes, flags & MEND_MASK);
	result = record_header_decode(header_bytes, &header, &failure);
	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	if (result < 0)
		return 0;
	record_header_encode(&header, encoded);
	require(memcmp(encoded, header_bytes, RECORD_HEADER_BYTES) == 0);
	require(header.plain_bytes <= RECORD_PLAIN_MOST_BYTES && header.stored_bytes <= RECORD_STORED_MOST_BYTES);
	if (header.stored_bytes <= input.left_bytes)
		check_decode(&header, input.at);
	return 0;
}
