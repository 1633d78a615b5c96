/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries of a disk's log: to bytes and back.
 *
 * disk_log.h has the layout and the rules. Here is how they are kept: find_flaw() is the one place that knows the rules
 * about an entry as a whole, and both directions ask it. An encoder that would write something that no decoder
 * accepts stops the program (the history of a disk would end there); a decoder that meets such a thing says what is
 * wrong with it and gives nothing out.
 *
 * One encoding for each entry. A chain is tied by digests of encoded entries; if two encodings meant the same, a
 * rebuild that writes an entry again would break the chain that it means to keep. So numbers must be in their
 * shortest form, flags are 0 or 1, an absent text is an empty one, and no byte may follow. What is left has one form
 * only.
 *
 * Every count is held against its cap, and against the bytes that are there, before memory is asked for.
 */
#include "store/disk_log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/record.h"

enum {
	ENTRY_FORMAT = 1,
	SECTOR_LEAST_BYTES = 512,
	SECTOR_MOST_BYTES = 65536,
	RUN_LEAST_BYTES = 3, /* encoded: two numbers and the kind */
	PIECE_LEAST_BYTES = 4 + DISK_UUID_BYTES, /* encoded: four numbers and the uuid */
};

#define NUMBER_MOST ((uint64_t)INT64_MAX)

/* ---- the rules ---- */

static bool is_power_of_two(uint64_t value)
{
	return value != 0 && (value & (value - 1)) == 0;
}

static bool is_disk_name(const char *name)
{
	static const char first[] = "abcdefghijklmnopqrstuvwxyz0123456789";
	static const char others[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t len_bytes = name == NULL ? 0 : strlen(name);

	return len_bytes > 0 && len_bytes <= LOG_NAME_MOST_BYTES && strchr(first, name[0]) != NULL &&
	       strspn(name, others) == len_bytes;
}

static bool fits(const char *text, size_t most_bytes)
{
	return text == NULL || strlen(text) <= most_bytes;
}

static const char *find_flaw_in_runs(const struct log_entry *entry, uint32_t chunk_bytes)
{
	const uint64_t most_chunks = ((uint64_t)1 << 63) / chunk_bytes;
	uint64_t end_chunk = 0;

	for (size_t i = 0; i < entry->run_count; i++) {
		const struct log_run *run = &entry->runs[i];
		uint64_t run_end_chunk;

		if (run->chunk_count == 0)
			return "an empty run";
		if (run->kind > LOG_RUN_CHUNKS || (run->kind == LOG_RUN_CHUNKS && run->digests == NULL))
			return "a run of unknown content";
		if (run->first_chunk < end_chunk)
			return "runs that overlap or don't ascend";
		if (__builtin_add_overflow(run->first_chunk, run->chunk_count, &run_end_chunk) ||
		    run_end_chunk > most_chunks)
			return "a run beyond the end of any disk";
		end_chunk = run_end_chunk;
	}
	return NULL;
}

static const char *find_flaw_in_pieces(const struct log_entry *entry)
{
	uint64_t end_bytes = 0;

	for (size_t i = 0; i < entry->piece_count; i++) {
		const struct log_piece *piece = &entry->pieces[i];
		uint64_t image_end_bytes;

		if (piece->len_bytes == 0)
			return "an empty piece";
		if (piece->off_bytes < end_bytes)
			return "pieces that overlap or don't ascend";
		if (__builtin_add_overflow(piece->off_bytes, piece->len_bytes, &end_bytes) || end_bytes > NUMBER_MOST ||
		    __builtin_add_overflow(piece->image_off_bytes, piece->len_bytes, &image_end_bytes) ||
		    image_end_bytes > NUMBER_MOST)
			return "a piece beyond the end of any disk";
		if (piece->image_number == 0)
			return "image number is 0";
	}
	return NULL;
}

static const char *find_flaw_by_op(const struct log_entry *entry, uint32_t chunk_bytes)
{
	switch (entry->op) {
	case LOG_CREATE:
		if (!is_disk_name(entry->name))
			return "no name for a disk";
		if (entry->size_bytes > NUMBER_MOST)
			return "size is too large";
		if (!is_power_of_two(entry->sector_bytes) || entry->sector_bytes < SECTOR_LEAST_BYTES ||
		    entry->sector_bytes > SECTOR_MOST_BYTES)
			return "no sector size";
		return entry->chunk_bytes == chunk_bytes ? NULL : "not the chunk size of this store";
	case LOG_EXTENTS:
		return find_flaw_in_runs(entry, chunk_bytes);
	case LOG_RESIZE:
		return entry->size_bytes <= NUMBER_MOST ? NULL : "size is too large";
	case LOG_IMAGE:
		if (entry->image_number == 0)
			return "image number is 0";
		if (entry->size_bytes > NUMBER_MOST || entry->changed_bytes > NUMBER_MOST)
			return "size is too large";
		if (!fits(entry->label, LOG_LABEL_MOST_BYTES))
			return "label is too long";
		return entry->consistency <= LOG_CONSISTENCY_MOST ? NULL : "unknown consistency";
	case LOG_IMAGE_DELETE:
	case LOG_IMAGE_PIN:
		return entry->image_number != 0 ? NULL : "image number is 0";
	case LOG_IMAGE_LABEL:
		if (entry->image_number == 0)
			return "image number is 0";
		return fits(entry->label, LOG_LABEL_MOST_BYTES) ? NULL : "label is too long";
	case LOG_POLICY:
		if (entry->keep > NUMBER_MOST || entry->limit_bytes_per_second > NUMBER_MOST)
			return "policy's number is too large";
		if (entry->level < -1 || entry->level > CODEC_LEVEL_MOST)
			return "no compression level";
		return fits(entry->mirror_of, LOG_MIRROR_MOST_BYTES) ? NULL : "name of the source is too long";
	case LOG_REMOVE:
		return NULL;
	case LOG_BASE:
		return find_flaw_in_pieces(entry);
	}
	return "unknown operation";
}

/* NULL when the entry keeps all rules but those on how many runs, digests and details there may be. */
static const char *find_flaw(const struct log_entry *entry, uint32_t chunk_bytes)
{
	bool is_first = entry->sequence == 1;

	if (entry->sequence == 0 || entry->sequence > NUMBER_MOST)
		return "sequence number out of range";
	if (is_first != bytes_are_zero(entry->predecessor, DIGEST_BYTES))
		return is_first ? "the first entry has a predecessor" : "no predecessor";
	if (is_first != (entry->op == LOG_CREATE))
		return is_first ? "the first entry creates nothing" : "creation of a disk that is there already";
	if (entry->time_seconds < 0)
		return "time before 1970";
	return find_flaw_by_op(entry, chunk_bytes);
}

/* ---- encoding ---- */

static int check_amounts(const struct log_entry *entry, struct failure *failure)
{
	uint64_t digest_count = 0;

	if (entry->op == LOG_IMAGE && !fits(entry->details, LOG_DETAILS_MOST_BYTES))
		return fail(failure, -E2BIG, "entry of a disk's log: details of more than %d bytes",
			    LOG_DETAILS_MOST_BYTES);
	if (entry->op == LOG_BASE && entry->piece_count > LOG_ENTRY_MOST_PIECES)
		return fail(failure, -E2BIG, "entry of a disk's log: more than %d pieces", LOG_ENTRY_MOST_PIECES);
	if (entry->op != LOG_EXTENTS)
		return 0;
	if (entry->run_count > LOG_ENTRY_MOST_RUNS)
		return fail(failure, -E2BIG, "entry of a disk's log: more than %d runs", LOG_ENTRY_MOST_RUNS);
	for (size_t i = 0; i < entry->run_count; i++)
		if (entry->runs[i].kind == LOG_RUN_CHUNKS &&
		    (__builtin_add_overflow(digest_count, entry->runs[i].chunk_count, &digest_count) ||
		     digest_count > LOG_ENTRY_MOST_CHUNKS))
			return fail(failure, -E2BIG, "entry of a disk's log: more than %d chunks",
				    LOG_ENTRY_MOST_CHUNKS);
	return 0;
}

static void encode_runs(const struct log_entry *entry, struct byte_writer *writer)
{
	uint64_t end_chunk = 0;

	byte_writer_varint(writer, entry->run_count);
	for (size_t i = 0; i < entry->run_count; i++) {
		const struct log_run *run = &entry->runs[i];

		byte_writer_varint(writer, run->first_chunk - end_chunk);
		byte_writer_varint(writer, run->chunk_count);
		byte_writer_u8(writer, (uint8_t)run->kind);
		if (run->kind == LOG_RUN_CHUNKS)
			byte_writer_bytes(writer, run->digests, (size_t)run->chunk_count * DIGEST_BYTES);
		end_chunk = run->first_chunk + run->chunk_count;
	}
}

static void encode_pieces(const struct log_entry *entry, struct byte_writer *writer)
{
	uint64_t end_bytes = 0;

	byte_writer_varint(writer, entry->piece_count);
	for (size_t i = 0; i < entry->piece_count; i++) {
		const struct log_piece *piece = &entry->pieces[i];

		byte_writer_varint(writer, piece->off_bytes - end_bytes);
		byte_writer_varint(writer, piece->len_bytes);
		byte_writer_bytes(writer, piece->image_uuid, DISK_UUID_BYTES);
		byte_writer_varint(writer, piece->image_number);
		byte_writer_varint(writer, piece->image_off_bytes);
		end_bytes = piece->off_bytes + piece->len_bytes;
	}
}

static void encode_by_op(const struct log_entry *entry, struct byte_writer *writer)
{
	switch (entry->op) {
	case LOG_CREATE:
		byte_writer_string(writer, entry->name);
		byte_writer_varint(writer, entry->size_bytes);
		byte_writer_varint(writer, entry->sector_bytes);
		byte_writer_varint(writer, entry->chunk_bytes);
		break;
	case LOG_EXTENTS:
		byte_writer_varint(writer, entry->generation);
		encode_runs(entry, writer);
		break;
	case LOG_RESIZE:
		byte_writer_varint(writer, entry->size_bytes);
		break;
	case LOG_IMAGE:
		byte_writer_varint(writer, entry->image_number);
		byte_writer_varint(writer, entry->generation);
		byte_writer_varint(writer, entry->size_bytes);
		byte_writer_varint(writer, entry->changed_bytes);
		byte_writer_string(writer, entry->label);
		byte_writer_u8(writer, entry->consistency);
		byte_writer_varint(writer, entry->round_number);
		byte_writer_string(writer, entry->details);
		break;
	case LOG_IMAGE_DELETE:
		byte_writer_varint(writer, entry->image_number);
		break;
	case LOG_IMAGE_PIN:
		byte_writer_varint(writer, entry->image_number);
		byte_writer_u8(writer, entry->pinned ? 1 : 0);
		break;
	case LOG_IMAGE_LABEL:
		byte_writer_varint(writer, entry->image_number);
		byte_writer_string(writer, entry->label);
		break;
	case LOG_POLICY:
		byte_writer_varint(writer, entry->keep);
		byte_writer_varint(writer, (uint64_t)(entry->level + 1));
		byte_writer_varint(writer, entry->limit_bytes_per_second);
		byte_writer_string(writer, entry->mirror_of);
		break;
	case LOG_REMOVE:
		break;
	case LOG_BASE:
		byte_writer_varint(writer, entry->generation);
		encode_pieces(entry, writer);
		break;
	}
}

int log_entry_encode(const struct log_entry *entry, struct byte_writer *writer, struct failure *failure)
{
	/* Where the entry doesn't name the store's chunk size, the smallest there could be refuses the fewest runs. */
	uint32_t chunk_bytes = entry->op == LOG_CREATE ? entry->chunk_bytes : 1;
	size_t before_bytes = writer->len_bytes;
	int result = check_amounts(entry, failure);

	if (result < 0)
		return result;
	assert(entry->op != LOG_CREATE || is_power_of_two(entry->chunk_bytes));
	assert(find_flaw(entry, chunk_bytes) == NULL);
	byte_writer_u8(writer, ENTRY_FORMAT);
	byte_writer_u8(writer, (uint8_t)entry->op);
	byte_writer_le64(writer, entry->sequence);
	byte_writer_bytes(writer, entry->disk_uuid, DISK_UUID_BYTES);
	byte_writer_bytes(writer, entry->predecessor, DIGEST_BYTES);
	byte_writer_le64(writer, (uint64_t)entry->time_seconds);
	encode_by_op(entry, writer);
	if (writer->failed)
		return fail_errno(failure, -ENOMEM, "entry of a disk's log");
	/* The caps on its parts add up to less. */
	assert(writer->len_bytes - before_bytes <= RECORD_PLAIN_MOST_BYTES);
	return 0;
}

/* ---- decoding ---- */

/* The first thing found wrong stays; from then on every value is 0 or NULL. */
struct parser {
	struct byte_reader reader;
	const char *flaw;
	bool is_out_of_memory;
};

static void parser_object(struct parser *parser, const char *flaw)
{
	if (parser->flaw == NULL)
		parser->flaw = flaw;
}

static uint8_t parse_u8(struct parser *parser, uint8_t most)
{
	uint8_t value = byte_reader_u8(&parser->reader);

	if (parser->reader.bad)
		parser_object(parser, "cut short");
	else if (value > most)
		parser_object(parser, "a value out of range");
	return parser->flaw == NULL ? value : 0;
}

static uint64_t parse_varint(struct parser *parser, uint64_t most)
{
	const uint8_t *start = parser->reader.at;
	uint64_t value = byte_reader_varint(&parser->reader);

	if (parser->reader.bad)
		parser_object(parser, "cut short, or no number");
	else if (parser->reader.at - start > 1 && parser->reader.at[-1] == 0)
		parser_object(parser, "a number that is not in its shortest form");
	else if (value > most)
		parser_object(parser, "a number out of range");
	return parser->flaw == NULL ? value : 0;
}

static const uint8_t *parse_bytes(struct parser *parser, size_t len_bytes)
{
	const uint8_t *bytes = byte_reader_bytes(&parser->reader, len_bytes);

	if (bytes == NULL)
		parser_object(parser, "cut short");
	return parser->flaw == NULL ? bytes : NULL;
}

/* NULL for an empty one. */
static char *parse_string(struct parser *parser, size_t most_bytes)
{
	size_t len_bytes = (size_t)parse_varint(parser, most_bytes);
	const uint8_t *bytes;
	char *text;

	if (len_bytes == 0)
		return NULL;
	bytes = parse_bytes(parser, len_bytes);
	if (bytes == NULL)
		return NULL;
	if (memchr(bytes, '\0', len_bytes) != NULL) {
		parser_object(parser, "a text with a NUL in it");
		return NULL;
	}
	text = malloc(len_bytes + 1);
	if (text == NULL) {
		parser->is_out_of_memory = true;
		return NULL;
	}
	*(char *)mempcpy(text, bytes, len_bytes) = '\0';
	return text;
}

static void parse_run(struct parser *parser, uint64_t end_chunk, uint64_t *digest_count, struct log_run *ret_run)
{
	struct log_run run = {.first_chunk = 0};
	uint64_t gap_chunks = parse_varint(parser, NUMBER_MOST);

	if (__builtin_add_overflow(end_chunk, gap_chunks, &run.first_chunk))
		parser_object(parser, "a run beyond the end of any disk");
	run.chunk_count = parse_varint(parser, NUMBER_MOST);
	run.kind = (enum log_run_kind)parse_u8(parser, LOG_RUN_CHUNKS);
	if (run.kind == LOG_RUN_CHUNKS) {
		if (run.chunk_count > LOG_ENTRY_MOST_CHUNKS - *digest_count) {
			parser_object(parser, "too many chunks");
			return;
		}
		*digest_count += run.chunk_count;
		run.digests =
			(const uint8_t(*)[DIGEST_BYTES])parse_bytes(parser, (size_t)run.chunk_count * DIGEST_BYTES);
	}
	*ret_run = run;
}

static void parse_runs(struct parser *parser, struct log_entry *entry)
{
	size_t run_count = (size_t)parse_varint(parser, LOG_ENTRY_MOST_RUNS);
	uint64_t digest_count = 0;
	uint64_t end_chunk = 0;

	if (run_count > byte_reader_left(&parser->reader) / RUN_LEAST_BYTES)
		parser_object(parser, "cut short");
	if (run_count == 0 || parser->flaw != NULL)
		return;
	entry->runs = calloc(run_count, sizeof(*entry->runs));
	if (entry->runs == NULL) {
		parser->is_out_of_memory = true;
		return;
	}
	entry->run_count = run_count;
	for (size_t i = 0; i < run_count && parser->flaw == NULL; i++) {
		parse_run(parser, end_chunk, &digest_count, &entry->runs[i]);
		/* Both are at most INT64_MAX and at most the sum of such: what would overflow was refused. */
		if (__builtin_add_overflow(entry->runs[i].first_chunk, entry->runs[i].chunk_count, &end_chunk))
			parser_object(parser, "a run beyond the end of any disk");
	}
}

static void parse_pieces(struct parser *parser, struct log_entry *entry)
{
	size_t piece_count = (size_t)parse_varint(parser, LOG_ENTRY_MOST_PIECES);
	uint64_t end_bytes = 0;

	if (piece_count > byte_reader_left(&parser->reader) / PIECE_LEAST_BYTES)
		parser_object(parser, "cut short");
	if (piece_count == 0 || parser->flaw != NULL)
		return;
	entry->pieces = calloc(piece_count, sizeof(*entry->pieces));
	if (entry->pieces == NULL) {
		parser->is_out_of_memory = true;
		return;
	}
	entry->piece_count = piece_count;
	for (size_t i = 0; i < piece_count && parser->flaw == NULL; i++) {
		struct log_piece *piece = &entry->pieces[i];
		uint64_t gap_bytes = parse_varint(parser, NUMBER_MOST);
		const uint8_t *uuid;

		piece->len_bytes = parse_varint(parser, NUMBER_MOST);
		uuid = parse_bytes(parser, DISK_UUID_BYTES);
		if (uuid != NULL)
			memcpy(piece->image_uuid, uuid, DISK_UUID_BYTES);
		piece->image_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		piece->image_off_bytes = parse_varint(parser, NUMBER_MOST);
		if (__builtin_add_overflow(end_bytes, gap_bytes, &piece->off_bytes) ||
		    __builtin_add_overflow(piece->off_bytes, piece->len_bytes, &end_bytes))
			parser_object(parser, "a piece beyond the end of any disk");
	}
}

static void parse_by_op(struct parser *parser, struct log_entry *entry)
{
	switch (entry->op) {
	case LOG_CREATE:
		entry->name = parse_string(parser, LOG_NAME_MOST_BYTES);
		entry->size_bytes = parse_varint(parser, NUMBER_MOST);
		entry->sector_bytes = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->chunk_bytes = (uint32_t)parse_varint(parser, UINT32_MAX);
		break;
	case LOG_EXTENTS:
		entry->generation = (uint32_t)parse_varint(parser, UINT32_MAX);
		parse_runs(parser, entry);
		break;
	case LOG_RESIZE:
		entry->size_bytes = parse_varint(parser, NUMBER_MOST);
		break;
	case LOG_IMAGE:
		entry->image_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->generation = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->size_bytes = parse_varint(parser, NUMBER_MOST);
		entry->changed_bytes = parse_varint(parser, NUMBER_MOST);
		entry->label = parse_string(parser, LOG_LABEL_MOST_BYTES);
		entry->consistency = parse_u8(parser, LOG_CONSISTENCY_MOST);
		entry->round_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->details = parse_string(parser, LOG_DETAILS_MOST_BYTES);
		break;
	case LOG_IMAGE_DELETE:
		entry->image_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		break;
	case LOG_IMAGE_PIN:
		entry->image_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->pinned = parse_u8(parser, 1) != 0;
		break;
	case LOG_IMAGE_LABEL:
		entry->image_number = (uint32_t)parse_varint(parser, UINT32_MAX);
		entry->label = parse_string(parser, LOG_LABEL_MOST_BYTES);
		break;
	case LOG_POLICY:
		entry->keep = parse_varint(parser, NUMBER_MOST);
		entry->level = (int)parse_varint(parser, CODEC_LEVEL_MOST + 1) - 1;
		entry->limit_bytes_per_second = parse_varint(parser, NUMBER_MOST);
		entry->mirror_of = parse_string(parser, LOG_MIRROR_MOST_BYTES);
		break;
	case LOG_REMOVE:
		break;
	case LOG_BASE:
		entry->generation = (uint32_t)parse_varint(parser, UINT32_MAX);
		parse_pieces(parser, entry);
		break;
	}
}

static void parse_entry(struct parser *parser, struct log_entry *entry)
{
	const uint8_t *uuid;
	const uint8_t *predecessor;
	uint64_t time_seconds;

	if (parse_u8(parser, UINT8_MAX) != ENTRY_FORMAT)
		parser_object(parser, "unknown format");
	entry->op = (enum log_op)parse_u8(parser, LOG_BASE);
	if (entry->op == 0)
		parser_object(parser, "unknown operation");
	entry->sequence = byte_reader_le64(&parser->reader);
	uuid = parse_bytes(parser, DISK_UUID_BYTES);
	predecessor = parse_bytes(parser, DIGEST_BYTES);
	time_seconds = byte_reader_le64(&parser->reader);
	if (parser->reader.bad)
		parser_object(parser, "cut short");
	else if (time_seconds > NUMBER_MOST)
		parser_object(parser, "time out of range");
	if (parser->flaw != NULL || uuid == NULL || predecessor == NULL)
		return;
	memcpy(entry->disk_uuid, uuid, DISK_UUID_BYTES);
	memcpy(entry->predecessor, predecessor, DIGEST_BYTES);
	entry->time_seconds = (int64_t)time_seconds;
	parse_by_op(parser, entry);
	if (byte_reader_left(&parser->reader) > 0)
		parser_object(parser, "bytes behind the end");
}

int log_entry_decode(const void *plain, size_t plain_bytes, uint32_t chunk_bytes, struct log_entry *ret_entry,
		     struct failure *failure)
{
	AUTO(log_entry_free) struct log_entry entry = {.level = -1};
	struct parser parser = {.reader = byte_reader_over(plain, plain_bytes)};

	assert(is_power_of_two(chunk_bytes));
	if (plain_bytes > RECORD_PLAIN_MOST_BYTES)
		parser_object(&parser, "too long");
	else
		parse_entry(&parser, &entry);
	if (parser.is_out_of_memory)
		return fail_errno(failure, -ENOMEM, "entry of a disk's log");
	if (parser.flaw == NULL)
		parser.flaw = find_flaw(&entry, chunk_bytes);
	if (parser.flaw != NULL)
		return fail(failure, -EBADMSG, "entry of a disk's log: %s", parser.flaw);
	*ret_entry = entry;
	entry = (struct log_entry){.level = -1};
	return 0;
}

void log_entry_free(struct log_entry *entry)
{
	free(entry->name);
	free(entry->runs);
	free(entry->pieces);
	free(entry->label);
	free(entry->details);
	free(entry->mirror_of);
	*entry = (struct log_entry){.level = -1};
}
