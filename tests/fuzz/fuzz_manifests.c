/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One entry of a disk's log, as rebuild and check meet it: the plain content of a record.
 *
 * Input: a byte of flags, the entry. A flag mends what ties an entry to its place (format, sequence and predecessor as
 * the operation wants them), so that what the operations have of their own is reached at once.
 *
 * There is one encoding for each entry, so an entry that is taken must encode to the same bytes again, and neither
 * more nor fewer of them may be an entry.
 */
#include "fuzz.h"

#include <errno.h>

#include "common/cleanup.h"
#include "store/disk_log.h"
#include "store/record.h"

enum { MEND = 1, CHUNK_SIZE_SHIFT = 1, CHUNK_SIZE_MASK = 3 };
enum { AT_OPERATION = 1, AT_SEQUENCE = 2, AT_PREDECESSOR = 26, AT_TIME = 58, HEAD_BYTES = 66 };

static void mend(uint8_t *entry, size_t len_bytes)
{
	bool is_first;

	if (len_bytes < HEAD_BYTES)
		return;
	entry[0] = 1;
	entry[AT_OPERATION] = (uint8_t)(entry[AT_OPERATION] % LOG_REMOVE + 1);
	is_first = entry[AT_OPERATION] == LOG_CREATE;
	bytes_put_le64(entry + AT_SEQUENCE, is_first ? 1 : 2);
	memset(entry + AT_PREDECESSOR, is_first ? 0 : 1, DIGEST_BYTES);
	entry[AT_TIME + 7] &= 0x7f;
}

static int decode(const uint8_t *bytes, size_t len_bytes, uint32_t chunk_bytes, struct log_entry *ret_entry)
{
	struct failure failure = {.code = 0};
	int result = log_entry_decode(bytes, len_bytes, chunk_bytes, ret_entry, &failure);

	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	return result;
}

static void check_runs(const struct log_entry *entry, uint32_t chunk_bytes)
{
	uint64_t end_chunk = 0, digest_count = 0;
	uint8_t sum = 0;

	require(entry->run_count <= LOG_ENTRY_MOST_RUNS);
	for (size_t i = 0; i < entry->run_count; i++) {
		const struct log_run *run = &entry->runs[i];

		require(run->chunk_count > 0 && run->first_chunk >= end_chunk);
		end_chunk = run->first_chunk + run->chunk_count;
		require(end_chunk > run->first_chunk && end_chunk <= ((uint64_t)1 << 63) / chunk_bytes);
		if (run->kind != LOG_RUN_CHUNKS)
			continue;
		digest_count += run->chunk_count;
		require(digest_count <= LOG_ENTRY_MOST_CHUNKS);
		for (uint64_t n = 0; n < run->chunk_count; n++) /* all of them are there */
			for (size_t k = 0; k < DIGEST_BYTES; k++)
				sum = (uint8_t)(sum + run->digests[n][k]);
	}
	*(volatile uint8_t *)&sum = sum;
}

static void check_text(const char *text, size_t most_bytes)
{
	require(text == NULL || (text[0] != '\0' && strlen(text) <= most_bytes));
}

static void check_entry(const struct log_entry *entry, uint32_t chunk_bytes)
{
	require(entry->sequence > 0 && entry->time_seconds >= 0);
	require((entry->op == LOG_CREATE) == (entry->name != NULL));
	check_text(entry->name, LOG_NAME_MOST_BYTES);
	check_text(entry->label, LOG_LABEL_MOST_BYTES);
	check_text(entry->details, LOG_DETAILS_MOST_BYTES);
	check_text(entry->mirror_of, LOG_MIRROR_MOST_BYTES);
	require(entry->name == NULL || strpbrk(entry->name, "/\\ \n") == NULL);
	require(entry->size_bytes >> 63 == 0 && entry->changed_bytes >> 63 == 0 && entry->keep >> 63 == 0);
	require(entry->level >= -1 && entry->level <= CODEC_LEVEL_MOST);
	check_runs(entry, chunk_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	uint8_t flags = input_u8(&input);
	uint32_t chunk_bytes = (uint32_t)(16 << 10) << 2 * (flags >> CHUNK_SIZE_SHIFT & CHUNK_SIZE_MASK);
	AUTO_FREE uint8_t *bytes = heap_copy(input.at, input.left_bytes);
	AUTO_FREE uint8_t *other = malloc(input.left_bytes + 1);
	AUTO(log_entry_free) struct log_entry entry = {.level = -1};
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	if ((flags & MEND) != 0)
		mend(bytes, input.left_bytes);
	if (decode(bytes, input.left_bytes, chunk_bytes, &entry) < 0)
		return 0;
	check_entry(&entry, chunk_bytes);
	require(log_entry_encode(&entry, &writer, NULL) == 0);
	require(writer.len_bytes == input.left_bytes && memcmp(writer.data, bytes, input.left_bytes) == 0);

	struct log_entry none;
	require(other != NULL);
	memcpy(other, bytes, input.left_bytes);
	other[input.left_bytes] = 0;
	require(decode(other, input.left_bytes + 1, chunk_bytes, &none) < 0);
	free(other);
	other = heap_copy(bytes, input.left_bytes - 1);
	require(decode(other, input.left_bytes - 1, chunk_bytes, &none) < 0);
	return 0;
}
