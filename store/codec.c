/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payloads: zstd where it pays, plain where it doesn't, and the checks of what comes back.
 *
 * A payload is one zstd frame with its content size in it and without zstd's own checksum (the record has one over the
 * stored bytes, which finds damage before any decompressor looks at them) and without a dictionary.
 *
 * Levels. Ten of ours are spread over those of zstd where ratio is bought with time: at 64 KiB, its 9 to 13 give
 * nothing over 8, and 2 and 4 hardly anything over 1 and 3. docs/decisions.md has the table.
 *
 * Incompressible chunks. Up to level 3, zstd itself gives up on random bytes at 2 to 6 GiB/s, whatever the chunk's
 * size: no look beforehand can be cheaper by enough to be worth its mistakes. From level 5 on (at some sizes from 4) it
 * searches them as hard as anything else, at 20 to 500 MiB/s, and a look pays. It has two steps. Four samples at
 * zstd's level 1, until one of them shrinks: for what compresses, the first one nearly always does, which costs a
 * sixteenth of the chunk at a fast level. If none shrinks, the whole chunk at level 1: if that saves nothing to speak
 * of, the strong level hardly will. Both steps must agree before a chunk is stored plain, so each alone may be wrong.
 * What they miss together is a few KiB that would shrink among many that don't.
 *
 * Decoding. The bytes may be anything that has the right checksum. Memory is bounded because `plain` is the one
 * buffer that zstd writes into: decompressed in one go, a frame needs no window besides it, and the content size
 * must be the one of the header, which the caller has capped. The window is checked all the same: whoever reads
 * the format with a streaming decoder must never need more than a chunk of memory.
 */
#include "store/record.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zstd.h>

#include "common/bytes.h"
#include "common/cleanup.h"

/* zstd's level for each of ours, from 1. */
static const int zstd_levels[CODEC_LEVEL_MOST + 1] = {0, -5, -1, 1, 3, 5, 6, 8, 14, 16, 19};

enum {
	ZSTD_LOOK_LEVEL = 1,	     /* for the look before a strong level */
	ZSTD_FIRST_SLOW_LEVEL = 5,   /* from here on, incompressible bytes take as long as others */
	LOOK_LEAST_BYTES = 16 << 10, /* what is smaller is over soon at any level */
	LOOK_SAMPLES = 4,
	LOOK_SAMPLE_PART = 16, /* each sample is this part of the chunk */
	LOOK_SAVING_PART = 64, /* "shrinks": by more than this part */
	WORTH_PART = 32,       /* what zstd must save */
};

struct codec {
	ZSTD_CCtx *compressor;
	ZSTD_CCtx *looker; /* of its own, or switching levels would set up the tables of the other anew each time */
	ZSTD_DCtx *decompressor;
};

static void codec_release(struct codec **codec)
{
	codec_free(*codec);
}

int codec_new(struct codec **ret_codec, struct failure *failure)
{
	AUTO(codec_release) struct codec *codec = calloc(1, sizeof(*codec));

	if (codec == NULL)
		return fail_errno(failure, -ENOMEM, "compression");
	codec->compressor = ZSTD_createCCtx();
	codec->looker = ZSTD_createCCtx();
	codec->decompressor = ZSTD_createDCtx();
	if (codec->compressor == NULL || codec->looker == NULL || codec->decompressor == NULL)
		return fail_errno(failure, -ENOMEM, "compression");
	*ret_codec = take_ptr(codec);
	return 0;
}

void codec_free(struct codec *codec)
{
	if (codec == NULL)
		return;
	(void)ZSTD_freeCCtx(codec->compressor); /* these only ever free */
	(void)ZSTD_freeCCtx(codec->looker);
	(void)ZSTD_freeDCtx(codec->decompressor);
	free(codec);
}

int codec_zstd_level(int level)
{
	assert(level > CODEC_LEVEL_LEAST && level <= CODEC_LEVEL_MOST);
	return zstd_levels[level];
}

/* ---- compressing ---- */

/* Does it get smaller than that at a fast level? `scratch` has RECORD_STORED_MOST_BYTES. An error is no. */
static bool shrinks_at_fast_level(struct codec *codec, const uint8_t *plain, size_t plain_bytes, void *scratch)
{
	size_t stored_bytes = ZSTD_compressCCtx(codec->looker, scratch, RECORD_STORED_MOST_BYTES, plain, plain_bytes,
						ZSTD_LOOK_LEVEL);

	return ZSTD_isError(stored_bytes) == 0 && stored_bytes < plain_bytes - plain_bytes / LOOK_SAVING_PART;
}

static bool looks_compressible(struct codec *codec, const uint8_t *plain, size_t plain_bytes, void *scratch)
{
	size_t sample_bytes = plain_bytes / LOOK_SAMPLE_PART;
	size_t step_bytes = (plain_bytes - sample_bytes) / (LOOK_SAMPLES - 1);

	for (size_t i = 0; i < LOOK_SAMPLES; i++)
		if (shrinks_at_fast_level(codec, plain + i * step_bytes, sample_bytes, scratch))
			return true;
	return shrinks_at_fast_level(codec, plain, plain_bytes, scratch);
}

/* *ret_stored_bytes = 0 when it does not pay. */
static int compress_if_worth(struct codec *codec, int zstd_level, const void *plain, uint32_t plain_bytes, void *stored,
			     uint32_t *ret_stored_bytes, struct failure *failure)
{
	size_t stored_bytes;

	if (zstd_level >= ZSTD_FIRST_SLOW_LEVEL && plain_bytes >= LOOK_LEAST_BYTES &&
	    !looks_compressible(codec, plain, plain_bytes, stored)) {
		*ret_stored_bytes = 0;
		return 0;
	}
	stored_bytes =
		ZSTD_compressCCtx(codec->compressor, stored, RECORD_STORED_MOST_BYTES, plain, plain_bytes, zstd_level);
	/* There is room for the worst case and the level is a good one: what is left is memory. */
	if (ZSTD_isError(stored_bytes) != 0)
		return fail(failure, -ENOMEM, "compression: zstd says \"%s\"", ZSTD_getErrorName(stored_bytes));
	*ret_stored_bytes = stored_bytes <= plain_bytes - plain_bytes / WORTH_PART ? (uint32_t)stored_bytes : 0;
	if (*ret_stored_bytes == plain_bytes)
		*ret_stored_bytes = 0; /* some bytes only, of which a part is nothing */
	return 0;
}

int codec_encode(struct codec *codec, int level, const void *plain, uint32_t plain_bytes, void *stored,
		 struct record_header *ret_header, struct failure *failure)
{
	uint32_t stored_bytes = 0;

	_Static_assert(ZSTD_COMPRESSBOUND(RECORD_PLAIN_MOST_BYTES) <= RECORD_STORED_MOST_BYTES,
		       "room for what zstd makes of incompressible bytes");
	assert(level >= CODEC_LEVEL_LEAST && level <= CODEC_LEVEL_MOST);
	assert(plain_bytes > 0 && plain_bytes <= RECORD_PLAIN_MOST_BYTES);
	if (level > CODEC_LEVEL_LEAST) {
		int result = compress_if_worth(codec, codec_zstd_level(level), plain, plain_bytes, stored,
					       &stored_bytes, failure);
		if (result < 0)
			return result;
	}
	ret_header->codec = CODEC_ZSTD;
	if (stored_bytes == 0) {
		ret_header->codec = CODEC_PLAIN;
		stored_bytes = plain_bytes;
		memcpy(stored, plain, plain_bytes);
	}
	ret_header->cipher = CIPHER_NONE;
	ret_header->stored_bytes = stored_bytes;
	ret_header->plain_bytes = plain_bytes;
	ret_header->payload_checksum = record_payload_checksum(stored, stored_bytes);
	return 0;
}

/* ---- decompressing ---- */

/*
 * The head of a frame, RFC 8878 section 3.1.1.1: magic, descriptor, and a window descriptor unless the frame is a
 * single segment, whose window is its content.
 */
static int check_frame_head(const uint8_t *stored, uint32_t stored_bytes, struct failure *failure)
{
	enum { AT_DESCRIPTOR = 4, AT_WINDOW = 5, HEAD_BYTES = 6 };
	enum { DICTIONARY_BITS = 0x03, SINGLE_SEGMENT_BIT = 0x20, LEAST_WINDOW_LOG = 10 };
	unsigned int window_log;
	uint64_t window_bytes;

	if (stored_bytes < HEAD_BYTES || bytes_get_le32(stored) != ZSTD_MAGICNUMBER)
		return fail(failure, -EBADMSG, "payload is no zstd frame");
	if ((stored[AT_DESCRIPTOR] & DICTIONARY_BITS) != 0)
		return fail(failure, -EBADMSG, "zstd frame wants a dictionary");
	if ((stored[AT_DESCRIPTOR] & SINGLE_SEGMENT_BIT) != 0)
		return 0;
	window_log = LEAST_WINDOW_LOG + (stored[AT_WINDOW] >> 3);
	window_bytes = ((uint64_t)1 << window_log) + ((uint64_t)1 << window_log) / 8 * (stored[AT_WINDOW] & 7);
	if (window_bytes > RECORD_PLAIN_MOST_BYTES)
		return fail(failure, -EBADMSG, "zstd frame wants a window of more than %u bytes",
			    (unsigned int)RECORD_PLAIN_MOST_BYTES);
	return 0;
}

static int decompress_frame(struct codec *codec, const struct record_header *header, const void *stored, void *plain,
			    struct failure *failure)
{
	int result = check_frame_head(stored, header->stored_bytes, failure);
	unsigned long long content_bytes;
	size_t frame_bytes;
	size_t plain_bytes;

	if (result < 0)
		return result;
	content_bytes = ZSTD_getFrameContentSize(stored, header->stored_bytes);
	if (content_bytes == ZSTD_CONTENTSIZE_UNKNOWN || content_bytes == ZSTD_CONTENTSIZE_ERROR)
		return fail(failure, -EBADMSG, "zstd frame doesn't say how long its content is");
	if (content_bytes != header->plain_bytes)
		return fail(failure, -EBADMSG, "zstd frame has a content of %llu bytes, the record one of %u",
			    content_bytes, (unsigned int)header->plain_bytes);
	frame_bytes = ZSTD_findFrameCompressedSize(stored, header->stored_bytes);
	if (ZSTD_isError(frame_bytes) != 0)
		return fail(failure, -EBADMSG, "zstd frame is broken: %s", ZSTD_getErrorName(frame_bytes));
	if (frame_bytes != header->stored_bytes)
		return fail(failure, -EBADMSG, "%zu bytes behind the zstd frame", header->stored_bytes - frame_bytes);
	plain_bytes = ZSTD_decompressDCtx(codec->decompressor, plain, header->plain_bytes, stored, frame_bytes);
	if (ZSTD_isError(plain_bytes) != 0)
		return fail(failure, -EBADMSG, "zstd frame is broken: %s", ZSTD_getErrorName(plain_bytes));
	if (plain_bytes != header->plain_bytes)
		return fail(failure, -EBADMSG, "zstd frame gave %zu bytes instead of %u", plain_bytes,
			    (unsigned int)header->plain_bytes);
	return 0;
}

int codec_decode(struct codec *codec, const struct record_header *header, const void *stored, void *plain,
		 struct failure *failure)
{
	int result = record_header_validate(header, failure);

	if (result < 0)
		return result;
	if (record_payload_checksum(stored, header->stored_bytes) != header->payload_checksum)
		return fail(failure, -EBADMSG, "payload checksum");
	return codec_decode_checked(codec, header, stored, plain, failure);
}

int codec_decode_checked(struct codec *codec, const struct record_header *header, const void *stored, void *plain,
			 struct failure *failure)
{
	int result = record_header_validate(header, failure);

	if (result < 0)
		return result;
	if (header->codec == CODEC_ZSTD)
		return decompress_frame(codec, header, stored, plain, failure);
	memcpy(plain, stored, header->plain_bytes);
	return 0;
}
