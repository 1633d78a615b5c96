/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every count from the wire is held against the bytes that are left, each item taking some, before memory is taken for it.
 */
#include "fsreader/lvm_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "fsreader/lvm_group.h"

/* ---- the worker's side ---- */

static void put_volume(struct byte_writer *writer, const struct lvm_volume *volume)
{
	byte_writer_string(writer, volume->name);
	byte_writer_varint(writer, volume->size_bytes);
	byte_writer_string(writer, volume->problem);
	byte_writer_varint(writer, volume->area_count);
	byte_writer_varint(writer, volume->segment_count);
	for (size_t i = 0; i < volume->area_count; i++) {
		byte_writer_varint(writer, volume->areas[i].pv);
		byte_writer_varint(writer, volume->areas[i].off_bytes);
	}
	for (size_t i = 0; i < volume->segment_count; i++) {
		const struct lvm_segment *segment = &volume->segments[i];

		byte_writer_u8(writer, (uint8_t)segment->kind);
		byte_writer_varint(writer, segment->lv_off_bytes);
		byte_writer_varint(writer, segment->len_bytes);
		byte_writer_varint(writer, segment->stripe_bytes);
		byte_writer_varint(writer, segment->skip_bytes);
		byte_writer_varint(writer, segment->first_area);
		byte_writer_varint(writer, segment->area_count);
	}
}

void lvm_wire_put_group(struct byte_writer *writer, const struct lvm_group *group)
{
	byte_writer_string(writer, group->name);
	byte_writer_string(writer, group->uuid);
	byte_writer_varint(writer, group->seqno);
	byte_writer_varint(writer, group->pv_count);
	for (size_t i = 0; i < group->pv_count; i++) {
		byte_writer_string(writer, group->pvs[i].uuid);
		byte_writer_varint(writer, group->pvs[i].size_bytes);
		byte_writer_u8(writer, group->pvs[i].is_missing);
	}
	byte_writer_varint(writer, group->volume_count);
	for (size_t i = 0; i < group->volume_count; i++)
		put_volume(writer, &group->volumes[i]);
}

/* ---- the other side ---- */

/* A count of items that take `item_bytes` on the wire at least. */
static size_t get_count(struct byte_reader *reader, size_t item_bytes)
{
	uint64_t count = byte_reader_varint(reader);

	if (count > byte_reader_left(reader) / item_bytes)
		reader->bad = true;
	return reader->bad ? 0 : (size_t)count;
}

static bool get_text(struct byte_reader *reader, char *ret_text, size_t capacity_bytes)
{
	AUTO_FREE char *text = byte_reader_string(reader, capacity_bytes - 1);

	if (text == NULL)
		return false;
	memcpy(ret_text, text, strlen(text) + 1);
	return true;
}

uint64_t lvm_segment_area_bytes(const struct lvm_segment *segment)
{
	uint64_t span_bytes, row_bytes, rows, area_bytes;

	if (segment->area_count <= 1)
		return segment->len_bytes;
	if (__builtin_add_overflow(segment->len_bytes, segment->skip_bytes, &span_bytes) ||
	    __builtin_mul_overflow(segment->stripe_bytes, (uint64_t)segment->area_count, &row_bytes))
		return UINT64_MAX;
	rows = span_bytes / row_bytes + (span_bytes % row_bytes != 0);
	return __builtin_mul_overflow(rows, segment->stripe_bytes, &area_bytes) ? UINT64_MAX : area_bytes;
}

static bool segment_is_valid(const struct lvm_segment *segment, const struct lvm_volume *volume,
			     const struct lvm_group *group, uint64_t expected_off_bytes)
{
	uint64_t area_bytes, end_bytes;

	if (segment->kind > LVM_ERROR || segment->lv_off_bytes != expected_off_bytes || segment->len_bytes == 0 ||
	    segment->len_bytes > (uint64_t)INT64_MAX - expected_off_bytes)
		return false;
	if (segment->kind != LVM_MAPPED)
		return segment->area_count == 0 && segment->first_area == 0;
	if (segment->area_count == 0 || segment->area_count > LVM_MOST_AREAS ||
	    segment->first_area > volume->area_count || segment->area_count > volume->area_count - segment->first_area)
		return false;
	if (segment->area_count == 1 ? segment->stripe_bytes != 0 || segment->skip_bytes != 0
				     : segment->stripe_bytes == 0 || segment->stripe_bytes % 512 != 0)
		return false;
	area_bytes = lvm_segment_area_bytes(segment);
	for (uint32_t i = 0; i < segment->area_count; i++) {
		const struct lvm_area *area = &volume->areas[segment->first_area + i];

		if (area->pv >= group->pv_count || __builtin_add_overflow(area->off_bytes, area_bytes, &end_bytes) ||
		    end_bytes > INT64_MAX)
			return false;
	}
	return true;
}

static void get_segment(struct byte_reader *reader, struct lvm_segment *ret_segment)
{
	uint8_t kind = byte_reader_u8(reader);
	uint64_t first_area, area_count;

	ret_segment->kind = (enum lvm_kind)kind;
	ret_segment->lv_off_bytes = byte_reader_varint(reader);
	ret_segment->len_bytes = byte_reader_varint(reader);
	ret_segment->stripe_bytes = byte_reader_varint(reader);
	ret_segment->skip_bytes = byte_reader_varint(reader);
	first_area = byte_reader_varint(reader);
	area_count = byte_reader_varint(reader);
	if (first_area > UINT32_MAX || area_count > LVM_MOST_AREAS)
		reader->bad = true;
	ret_segment->first_area = (uint32_t)first_area;
	ret_segment->area_count = (uint32_t)area_count;
}

/* The map of a volume; false: it is none, or there is no memory for it (which looks the same: a volume that large is a lie). */
static bool get_map(struct byte_reader *reader, struct lvm_volume *volume, const struct lvm_group *group)
{
	uint64_t expected_off_bytes = 0;

	volume->area_count = get_count(reader, 2);
	volume->segment_count = get_count(reader, 7);
	volume->areas = calloc(volume->area_count + 1, sizeof(*volume->areas));
	volume->segments = calloc(volume->segment_count + 1, sizeof(*volume->segments));
	if (volume->areas == NULL || volume->segments == NULL)
		return false;
	for (size_t i = 0; i < volume->area_count; i++) {
		uint64_t pv = byte_reader_varint(reader);

		volume->areas[i].pv = pv > UINT32_MAX ? UINT32_MAX : (uint32_t)pv; /* no group has that many */
		volume->areas[i].off_bytes = byte_reader_varint(reader);
	}
	for (size_t i = 0; i < volume->segment_count; i++) {
		get_segment(reader, &volume->segments[i]);
		if (reader->bad || !segment_is_valid(&volume->segments[i], volume, group, expected_off_bytes))
			return false;
		expected_off_bytes += volume->segments[i].len_bytes;
	}
	return volume->problem != NULL ? volume->segment_count == 0 && volume->area_count == 0
				       : expected_off_bytes == volume->size_bytes;
}

static void make_printable(char *text)
{
	for (; *text != '\0'; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}

static bool get_volume(struct byte_reader *reader, struct lvm_volume *volume, const struct lvm_group *group)
{
	if (!get_text(reader, volume->name, sizeof(volume->name)) || !lvm_name_is_valid(volume->name))
		return false;
	volume->group = group;
	volume->size_bytes = byte_reader_varint(reader);
	volume->problem = byte_reader_string(reader, 300);
	if (volume->problem == NULL || volume->size_bytes > INT64_MAX)
		return false;
	make_printable(volume->problem);
	if (volume->problem[0] == '\0')
		free(take_ptr(volume->problem));
	return get_map(reader, volume, group);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool names_differ(const struct lvm_group *group)
{
	AUTO_FREE const char **names = calloc(group->volume_count + 1, sizeof(*names));

	if (names == NULL)
		return false;
	for (size_t i = 0; i < group->volume_count; i++)
		names[i] = group->volumes[i].name;
	qsort(names, group->volume_count, sizeof(*names), compare_names);
	for (size_t i = 1; i < group->volume_count; i++)
		if (strcmp(names[i - 1], names[i]) == 0)
			return false;
	return true;
}

static bool get_pvs(struct byte_reader *reader, struct lvm_group *group)
{
	size_t count = get_count(reader, LVM_UUID_BYTES + 2);

	group->pvs = calloc(count + 1, sizeof(*group->pvs));
	if (group->pvs == NULL || count > UINT16_MAX)
		return false;
	group->pv_count = count;
	for (size_t i = 0; i < count; i++) {
		if (!get_text(reader, group->pvs[i].uuid, sizeof(group->pvs[i].uuid)) ||
		    !lvm_uuid_is_valid(group->pvs[i].uuid))
			return false;
		group->pvs[i].size_bytes = byte_reader_varint(reader);
		group->pvs[i].is_missing = byte_reader_u8(reader) != 0;
	}
	return !reader->bad;
}

static bool get_group(struct byte_reader *reader, struct lvm_group *group)
{
	size_t count;

	if (!get_text(reader, group->name, sizeof(group->name)) || !lvm_name_is_valid(group->name) ||
	    !get_text(reader, group->uuid, sizeof(group->uuid)) || !lvm_uuid_is_valid(group->uuid))
		return false;
	group->seqno = byte_reader_varint(reader);
	if (!get_pvs(reader, group))
		return false;
	count = get_count(reader, 6);
	group->volumes = calloc(count + 1, sizeof(*group->volumes));
	if (group->volumes == NULL || count > LVM_MOST_VOLUMES)
		return false;
	group->volume_count = count;
	for (size_t i = 0; i < count; i++)
		if (!get_volume(reader, &group->volumes[i], group))
			return false;
	return !reader->bad && byte_reader_left(reader) == 0 && names_differ(group);
}

int lvm_wire_get_group(struct byte_reader *reader, struct lvm_group **ret_group, struct failure *failure)
{
	struct lvm_group *group = calloc(1, sizeof(*group));

	if (group == NULL)
		return fail(failure, -ENOMEM, "LVM metadata: out of memory");
	if (!get_group(reader, group)) {
		lvm_group_free(group);
		return fail(failure, -EINVAL, "LVM metadata: what was made of them is not possible");
	}
	*ret_group = group;
	return 0;
}
