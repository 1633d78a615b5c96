/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partition tables.
 *
 * libfdisk reads them, from a sketch of the disk: its head and tail, and whatever else a table points at. What it
 * points at is found out here, by reading only the fields that say where more of the table is: PartitionEntryLBA
 * and AlternateLBA of a GPT header (UEFI 2.10, 5.3.2), and the links from one EBR to the next. Everything that
 * follows from a pointer is bounded before it is followed: an array of entries of more than 4 MiB, a chain of more
 * than 128 EBRs, one that comes back to where it has been or leaves its container.
 *
 * libfdisk is not the last word on what lies where, though. It stops at 60 partitions of an MBR, passes over
 * entries of type 0 (which the kernel makes devices of), knows one extended partition, and in a hybrid MBR
 * looks at the GPT only. A partition that nobody told us about would be a gap, and a gap is left out. So each
 * MBR entry seen on the way is noted, and those that did not come out of libfdisk as partitions are "mentioned":
 * they are read, and they are no gap. The same goes for a container whose chain of EBRs is broken.
 *
 * Not understood, so that nothing may be left out: other kinds of labels, a protective MBR
 * without a GPT that holds up, more partitions than anybody makes, tables on bad sectors.
 */
#include "syncer/plan_internal.h"

#include <errno.h>
#include <libfdisk/libfdisk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"

enum {
	MBR_BYTES = 512,
	MBR_FIRST_ENTRY = 446,
	MBR_ENTRY_BYTES = 16,
	MBR_ENTRIES = 4,
	MBR_TYPE_PROTECTIVE = 0xee,
	MAX_EBRS = 128,
	MAX_NOTED = MBR_ENTRIES * (MAX_EBRS + 1),
	GPT_HEADER_BYTES = 92,
	GPT_MIN_ENTRY_BYTES = 128,
	GPT_MAX_ENTRIES_BYTES = 4 * 1024 * 1024, /* 128 entries of 128 bytes are the rule, 16 KiB */
};

struct mbr_entry {
	uint8_t type;
	uint64_t first_sector; /* absolute or relative, as the place of the entry has it */
	uint64_t sector_count;
};

struct table_reader {
	struct plan_sketch sketch;
	uint32_t sector_bytes;
	bool has_protective_entry;
	struct plan_span noted[MAX_NOTED]; /* bytes */
	unsigned noted_count;
	struct plan_table table;
};

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool read_mbr_entry(const uint8_t mbr[MBR_BYTES], unsigned index, struct mbr_entry *ret_entry)
{
	const uint8_t *at = mbr + MBR_FIRST_ENTRY + (size_t)index * MBR_ENTRY_BYTES;

	*ret_entry = (struct mbr_entry){
		.type = at[4],
		.first_sector = bytes_get_le32(at + 8),
		.sector_count = bytes_get_le32(at + 12),
	};
	return ret_entry->sector_count > 0;
}

static bool has_mbr_magic(const uint8_t mbr[MBR_BYTES])
{
	return mbr[510] == 0x55 && mbr[511] == 0xaa;
}

/* Sectors as bytes, cut off at the end of the disk; empty where they lie behind it. */
static struct plan_span span_of_sectors(const struct table_reader *reader, uint64_t first_sector, uint64_t sector_count)
{
	uint64_t disk_bytes = reader->sketch.len_bytes;
	struct plan_span span;
	uint64_t len_bytes;

	if (__builtin_mul_overflow(first_sector, (uint64_t)reader->sector_bytes, &span.first) ||
	    span.first > disk_bytes)
		span.first = disk_bytes;
	if (__builtin_mul_overflow(sector_count, (uint64_t)reader->sector_bytes, &len_bytes) ||
	    __builtin_add_overflow(span.first, len_bytes, &span.end) || span.end > disk_bytes)
		span.end = disk_bytes;
	return span;
}

/* Brings a piece of the table into the sketch, and has it read in every round. */
static int take_in(struct table_reader *reader, struct plan_span span, struct failure *failure)
{
	uint64_t first = span.first / PLAN_PIECE_BYTES * PLAN_PIECE_BYTES;
	uint64_t end = span.end;
	int error = 0;

	if (span.first >= span.end)
		return 0;
	if (__builtin_add_overflow(end, (uint64_t)PLAN_PIECE_BYTES - 1, &end) ||
	    end / PLAN_PIECE_BYTES * PLAN_PIECE_BYTES > reader->sketch.len_bytes)
		end = reader->sketch.len_bytes;
	else
		end = end / PLAN_PIECE_BYTES * PLAN_PIECE_BYTES;
	error = plan_sketch_copy(&reader->sketch, span.first, span.end - span.first, failure);
	if (error < 0)
		return error;
	return plan_spans_add(&reader->table.pinned, first, end, failure);
}

/* ------------------------------------------------------------------------ GPT */

/*
 * Takes in a GPT header and the entries that it points to. A header whose entries can't be taken in is blanked in
 * the sketch: libfdisk would allocate and read whatever it says (2^32 entries), and so sees a damaged one.
 */
static int follow_gpt_header(struct table_reader *reader, uint64_t sector, uint64_t *ret_alternate_sector,
			     struct failure *failure)
{
	static const uint8_t blank[8] = {0};
	struct plan_span place = span_of_sectors(reader, sector, 1);
	uint8_t header[GPT_HEADER_BYTES];
	uint64_t entries_bytes;
	struct plan_span entries;
	int error;

	if (place.first >= place.end)
		return 0;
	error = take_in(reader, place, failure);
	if (error == 0)
		error = plan_sketch_get(&reader->sketch, header, sizeof(header), place.first, failure);
	if (error < 0)
		return error;
	if (memcmp(header, "EFI PART", 8) != 0)
		return 0;

	entries_bytes = (uint64_t)bytes_get_le32(header + 80) * bytes_get_le32(header + 84);
	entries = span_of_sectors(reader, bytes_get_le64(header + 72), entries_bytes / reader->sector_bytes + 1);
	if (bytes_get_le32(header + 84) < GPT_MIN_ENTRY_BYTES || entries_bytes == 0 ||
	    entries_bytes > GPT_MAX_ENTRIES_BYTES || entries.end - entries.first < entries_bytes)
		return plan_sketch_put(&reader->sketch, blank, sizeof(blank), place.first, failure);
	*ret_alternate_sector = bytes_get_le64(header + 32);
	return take_in(reader, entries, failure);
}

static int follow_gpt(struct table_reader *reader, struct failure *failure)
{
	uint64_t sector_count = reader->sketch.len_bytes / reader->sector_bytes;
	uint64_t alternate_sector = 0;
	uint64_t ignored_sector;
	int error;

	if (sector_count < 3)
		return 0;
	error = follow_gpt_header(reader, 1, &alternate_sector, failure);
	if (error == 0)
		error = follow_gpt_header(reader, sector_count - 1, &ignored_sector, failure);
	/* A disk that grew has its backup header somewhere in the middle. */
	if (error == 0 && alternate_sector > 1 && alternate_sector < sector_count - 1)
		error = follow_gpt_header(reader, alternate_sector, &ignored_sector, failure);
	return error;
}

/* ------------------------------------------------------------------------ MBR */

static void note(struct table_reader *reader, uint64_t first_sector, uint64_t sector_count)
{
	struct plan_span span = span_of_sectors(reader, first_sector, sector_count);

	/* MAX_NOTED is as many as there can be: four of the MBR and of each EBR. */
	if (span.first < span.end && reader->noted_count < MAX_NOTED)
		reader->noted[reader->noted_count++] = span;
}

static bool is_known(const uint64_t *sectors, unsigned count, uint64_t sector)
{
	for (unsigned i = 0; i < count; i++)
		if (sectors[i] == sector)
			return true;
	return false;
}

/*
 * Notes what one EBR says. Positions of partitions are relative to the EBR, the link's to the container.
 * *ret_next is 0 at the end of the chain.
 */
static int follow_ebr(struct table_reader *reader, uint64_t container_sector, uint64_t ebr_sector,
		      uint64_t *ret_next_sector, bool *ret_is_broken, struct failure *failure)
{
	struct plan_span place = span_of_sectors(reader, ebr_sector, 1);
	uint8_t ebr[MBR_BYTES] = {0};
	struct mbr_entry entry;
	int error = take_in(reader, place, failure);

	if (error == 0)
		error = plan_sketch_get(&reader->sketch, ebr, sizeof(ebr), place.first, failure);
	if (error < 0)
		return error;
	*ret_next_sector = 0;
	*ret_is_broken = !has_mbr_magic(ebr);
	if (*ret_is_broken)
		return 0;
	for (unsigned i = 0; i < MBR_ENTRIES; i++) {
		if (!read_mbr_entry(ebr, i, &entry))
			continue;
		if (!is_extended(entry.type))
			note(reader, ebr_sector + entry.first_sector, entry.sector_count);
		else if (*ret_next_sector == 0 && entry.first_sector > 0)
			*ret_next_sector = container_sector + entry.first_sector;
		else
			*ret_is_broken = true; /* two ways on */
	}
	return 0;
}

static int follow_extended(struct table_reader *reader, const struct mbr_entry *container, struct failure *failure)
{
	struct plan_span whole = span_of_sectors(reader, container->first_sector, container->sector_count);
	uint64_t seen[MAX_EBRS];
	unsigned seen_count = 0;
	uint64_t sector = container->first_sector;
	bool is_broken = whole.first >= whole.end;

	while (sector != 0 && !is_broken) {
		struct plan_span place = span_of_sectors(reader, sector, 1);
		if (seen_count == MAX_EBRS || is_known(seen, seen_count, sector) || place.first < whole.first ||
		    place.end > whole.end || place.first >= place.end) {
			is_broken = true;
			break;
		}
		seen[seen_count++] = sector;
		int error = follow_ebr(reader, container->first_sector, sector, &sector, &is_broken, failure);
		if (error < 0)
			return error;
	}
	return is_broken ? plan_spans_add(&reader->table.mentioned, whole.first, whole.end, failure) : 0;
}

static int follow_mbr(struct table_reader *reader, struct failure *failure)
{
	unsigned container_count = 0;
	struct mbr_entry entry;
	uint8_t mbr[MBR_BYTES] = {0};
	int error = plan_sketch_get(&reader->sketch, mbr, sizeof(mbr), 0, failure);

	if (error < 0 || !has_mbr_magic(mbr))
		return error;
	for (unsigned i = 0; i < MBR_ENTRIES; i++)
		if (read_mbr_entry(mbr, i, &entry) && entry.type == MBR_TYPE_PROTECTIVE)
			reader->has_protective_entry = true;

	for (unsigned i = 0; i < MBR_ENTRIES && error == 0; i++) {
		if (!read_mbr_entry(mbr, i, &entry) || entry.type == MBR_TYPE_PROTECTIVE)
			continue;
		if (!is_extended(entry.type) || reader->has_protective_entry || container_count > 0)
			note(reader, entry.first_sector, entry.sector_count);
		else
			error = follow_extended(reader, &entry, failure);
		if (is_extended(entry.type))
			container_count++;
	}
	return error;
}

/* -------------------------------------------------------------------- libfdisk */

/* Warnings are of no interest here, and a question gets no answer: libfdisk then takes its error path. */
static int decline(struct fdisk_context *context, struct fdisk_ask *ask, void *opaque)
{
	(void)context;
	(void)opaque;
	switch (fdisk_ask_get_type(ask)) {
	case FDISK_ASKTYPE_INFO:
	case FDISK_ASKTYPE_WARN:
	case FDISK_ASKTYPE_WARNX:
		return 0;
	default:
		return -EINVAL;
	}
}

static void unref_context(struct fdisk_context **context)
{
	fdisk_unref_context(*context);
}

static void unref_partitions(struct fdisk_table **partitions)
{
	fdisk_unref_table(*partitions);
}

static void add_slot(struct table_reader *reader, struct fdisk_partition *partition)
{
	struct plan_table *table = &reader->table;
	uint64_t first_sector, sector_count;
	struct plan_span span;

	if (fdisk_partition_is_container(partition) || !fdisk_partition_has_start(partition) ||
	    !fdisk_partition_has_size(partition) || !fdisk_partition_has_partno(partition))
		return;
	first_sector = fdisk_partition_get_start(partition);
	sector_count = fdisk_partition_get_size(partition);
	span = span_of_sectors(reader, first_sector, sector_count);
	if (span.first >= span.end)
		return;
	table->slots[table->slot_count++] = (struct plan_slot){
		.number = (unsigned)fdisk_partition_get_partno(partition) + 1,
		.off_bytes = span.first,
		.len_bytes = span.end - span.first,
		.is_clipped = (span.end - span.first) / reader->sector_bytes < sector_count,
	};
}

static int list_partitions(struct table_reader *reader, struct fdisk_context *context, struct failure *failure)
{
	__attribute__((cleanup(unref_partitions))) struct fdisk_table *partitions = NULL;
	struct plan_table *table = &reader->table;
	size_t count;

	if (fdisk_get_partitions(context, &partitions) != 0) {
		table->why_distrust = "a partition table that can't be listed";
		return 0;
	}
	count = fdisk_table_get_nents(partitions);
	if (count > PLAN_MAX_PARTITIONS) {
		table->why_distrust = "an unlikely number of partitions";
		return 0;
	}
	table->slots = calloc(count + 1, sizeof(*table->slots)); /* count may be 0 */
	if (table->slots == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	for (size_t i = 0; i < count; i++)
		add_slot(reader, fdisk_table_get_partition(partitions, i));
	return 0;
}

/* *ret_has_label false: nothing that libfdisk knows. */
static int open_context(struct table_reader *reader, const char *name, struct fdisk_context **ret_context, bool *ret_has_label,
			struct failure *failure)
{
	struct fdisk_context *context = fdisk_new_context();

	if (context == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	(void)fdisk_disable_dialogs(context, 1); /* these four cannot fail on a fresh context */
	(void)fdisk_set_ask(context, decline, NULL);
	(void)fdisk_enable_listonly(context, 1);
	(void)fdisk_save_user_sector_size(context, reader->sector_bytes, reader->sector_bytes);
	*ret_has_label = fdisk_assign_device_by_fd(context, reader->sketch.fd, name, 1) == 0 && fdisk_has_label(context);
	*ret_context = context;
	return 0;
}

static int ask_fdisk(struct table_reader *reader, struct failure *failure)
{
	__attribute__((cleanup(unref_context))) struct fdisk_context *context = NULL;
	struct plan_table *table = &reader->table;
	bool has_label;
	int error = open_context(reader, "disk", &context, &has_label, failure);

	if (error < 0)
		return error;
	if (!has_label) {
		if (reader->has_protective_entry)
			table->why_distrust = "a protective MBR without a usable GPT";
		return 0;
	}
	if (fdisk_is_label(context, GPT)) {
		table->type = "gpt";
		return list_partitions(reader, context, failure);
	}
	if (reader->has_protective_entry) {
		table->why_distrust = "a protective MBR without a usable GPT";
		return 0;
	}
	if (!fdisk_is_label(context, DOS)) {
		table->why_distrust = "a partition table of a kind that isn't understood";
		return 0;
	}
	table->type = "dos";
	return list_partitions(reader, context, failure);
}

static bool is_slot(const struct plan_table *table, const struct plan_span *span)
{
	for (unsigned i = 0; i < table->slot_count; i++)
		if (table->slots[i].off_bytes == span->first &&
		    table->slots[i].off_bytes + table->slots[i].len_bytes == span->end)
			return true;
	return false;
}

static int keep_what_is_no_slot(struct table_reader *reader, struct failure *failure)
{
	int error = 0;

	for (unsigned i = 0; i < reader->noted_count && error == 0; i++)
		if (!is_slot(&reader->table, &reader->noted[i]))
			error = plan_spans_add(&reader->table.mentioned, reader->noted[i].first, reader->noted[i].end,
					       failure);
	plan_spans_normalise(&reader->table.mentioned);
	plan_spans_normalise(&reader->table.pinned);
	return error;
}

static int read_table(struct table_reader *reader, struct failure *failure)
{
	int error = plan_sketch_copy_edges(&reader->sketch, failure);

	if (error == 0)
		error = take_in(reader, span_of_sectors(reader, 0, 1), failure);
	if (error == 0)
		error = follow_gpt(reader, failure);
	if (error == 0)
		error = follow_mbr(reader, failure);
	if (error == 0)
		error = ask_fdisk(reader, failure);
	if (error == 0)
		error = keep_what_is_no_slot(reader, failure);
	if (error == 0 && reader->sketch.is_incomplete)
		reader->table.why_distrust = "bad sectors where a partition table may be";
	return error;
}

int plan_table_read(struct source *source, uint32_t sector_bytes, struct plan_table *ret_table, struct failure *failure)
{
	struct table_reader *reader = calloc(1, sizeof(*reader));
	int error;

	if (reader == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	reader->sector_bytes = reader->table.sector_bytes = sector_bytes;
	reader->table.type = "none";
	error = plan_sketch_open(source, 0, source_get_info(source)->size_bytes, &reader->sketch, failure);
	if (error == 0) {
		error = read_table(reader, failure);
		plan_sketch_close(&reader->sketch);
	}
	if (error == 0)
		*ret_table = reader->table;
	else
		plan_table_free(&reader->table);
	free(reader);
	return error;
}

void plan_table_free(struct plan_table *table)
{
	free(table->slots);
	plan_spans_free(&table->pinned);
	plan_spans_free(&table->mentioned);
	*table = (struct plan_table){.type = "none"};
}

/* ------------------------------------------------------------------- as a text */

static void unref_script(struct fdisk_script **script)
{
	fdisk_unref_script(*script);
}

static int write_script(struct fdisk_context *context, char **ret_text, struct failure *failure)
{
	__attribute__((cleanup(unref_script))) struct fdisk_script *script = fdisk_new_script(context);
	AUTO_FREE char *text = NULL;
	size_t len_bytes = 0;
	FILE *stream = open_memstream(&text, &len_bytes);
	int error;

	if (script == NULL || stream == NULL) {
		if (stream != NULL)
			(void)fclose(stream); /* memory */
		return fail(failure, -ENOMEM, "partition table: out of memory");
	}
	error = fdisk_script_read_context(script, NULL);
	if (error == 0)
		error = fdisk_script_write_file(script, stream);
	if (fclose(stream) != 0 || error != 0)
		return fail(failure, error < 0 ? error : -EIO, "partition table: it can't be written as a text");
	*ret_text = take_ptr(text);
	return 0;
}

static int dump_table(struct table_reader *reader, const char *name, char **ret_text, struct failure *failure)
{
	__attribute__((cleanup(unref_context))) struct fdisk_context *context = NULL;
	char *nothing;
	bool has_label;
	int error = read_table(reader, failure); /* the sketch has what libfdisk looks at, then */

	if (error == 0)
		error = open_context(reader, name, &context, &has_label, failure);
	if (error < 0)
		return error;
	if (has_label)
		return write_script(context, ret_text, failure);
	nothing = strdup("");
	if (nothing == NULL)
		return fail(failure, -ENOMEM, "partition table: out of memory");
	*ret_text = nothing;
	return 0;
}

int plan_table_dump(struct source *source, uint32_t sector_bytes, const char *name, char **ret_text, struct failure *failure)
{
	struct table_reader *reader = calloc(1, sizeof(*reader));
	int error;

	if (reader == NULL)
		return fail(failure, -ENOMEM, "partition table: out of memory");
	reader->sector_bytes = sector_bytes;
	reader->table.type = "none";
	error = plan_sketch_open(source, 0, source_get_info(source)->size_bytes, &reader->sketch, failure);
	if (error == 0) {
		error = dump_table(reader, name, ret_text, failure);
		plan_sketch_close(&reader->sketch);
	}
	plan_table_free(&reader->table);
	free(reader);
	return error;
}
