/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All offsets and sizes are checked against the source before anything is read there. A damaged label is no label: any old data can look like one.
 */
#include "fsreader/lvm_label.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/lvm_group.h"
#include "fsreader/lvm_text.h"

enum {
	SECTOR_BYTES = 512,
	LABEL_SECTORS = 4,
	LABEL_CRC_FROM = 20,
	LABEL_HEAD_BYTES = 32,
	AREA_HEAD_BYTES = 512,
	LOCATION_IGNORED = 1
};

static const uint8_t area_magic[16] = {' ', 'L', 'V', 'M', '2', ' ', 'x', '[', '5', 'A', '%', 'r', '0', 'N', '*', '>'};

uint32_t lvm_crc(uint32_t crc, const void *data, size_t len_bytes)
{
	const uint8_t *at = data;

	/* Four bits at a time: texts are some KiB long. */
	static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
					   0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
					   0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};

	for (; len_bytes > 0; len_bytes--, at++) {
		crc ^= *at;
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return crc;
}

/* ---- the label ---- */

static bool label_is_valid(const uint8_t *sector, unsigned number)
{
	return memcmp(sector, "LABELONE", 8) == 0 && memcmp(sector + 24, "LVM2 001", 8) == 0 &&
	       bytes_get_le64(sector + 8) == number &&
	       bytes_get_le32(sector + 16) ==
		       lvm_crc(LVM_CRC_BEGIN, sector + LABEL_CRC_FROM, SECTOR_BYTES - LABEL_CRC_FROM);
}

static void skip_data_areas(struct byte_reader *reader)
{
	bool is_last;

	do {
		is_last = byte_reader_le64(reader) == 0; /* as what is bad reads, too */
		(void)byte_reader_le64(reader);		 /* its size */
	} while (!is_last);
}

static bool read_pv_header(const uint8_t *sector, struct lvm_label *ret_label)
{
	uint32_t off_bytes = bytes_get_le32(sector + 20);
	struct byte_reader reader;
	const uint8_t *uuid;

	if (off_bytes < LABEL_HEAD_BYTES || off_bytes >= SECTOR_BYTES)
		return false;
	reader = byte_reader_over(sector + off_bytes, SECTOR_BYTES - off_bytes);
	uuid = byte_reader_bytes(&reader, LVM_UUID_BYTES - 1);
	if (uuid == NULL)
		return false;
	memcpy(ret_label->uuid, uuid, LVM_UUID_BYTES - 1);
	ret_label->uuid[LVM_UUID_BYTES - 1] = '\0';
	(void)byte_reader_le64(&reader); /* the device's size, which the metadata have too */
	skip_data_areas(&reader);
	for (ret_label->area_count = 0; ret_label->area_count < LVM_LABEL_MOST_AREAS; ret_label->area_count++) {
		uint64_t area_off_bytes = byte_reader_le64(&reader);

		if (area_off_bytes == 0)
			break;
		ret_label->areas[ret_label->area_count].off_bytes = area_off_bytes;
		ret_label->areas[ret_label->area_count].size_bytes = byte_reader_le64(&reader);
	}
	return !reader.bad && lvm_uuid_is_valid(ret_label->uuid);
}

int lvm_label_read(const struct fsreader_source *source, struct lvm_label *ret_label, struct failure *failure)
{
	uint8_t sectors[LABEL_SECTORS * SECTOR_BYTES];
	struct lvm_label label = {.area_count = 0};
	int error;

	if (source->size_bytes < sizeof(sectors))
		return 0;
	error = source->read(source->opaque, sectors, sizeof(sectors), 0, failure);
	if (error < 0)
		return error;
	for (unsigned i = 0; i < LABEL_SECTORS; i++) {
		if (label_is_valid(sectors + (size_t)i * SECTOR_BYTES, i) &&
		    read_pv_header(sectors + (size_t)i * SECTOR_BYTES, &label)) {
			*ret_label = label;
			return 1;
		}
	}
	return 0;
}

/* ---- the text ---- */

struct location {
	uint64_t off_bytes, len_bytes; /* from the start of the area */
	uint32_t crc;
};

static int fail_area(const struct lvm_label *label, unsigned area, struct failure *failure, const char *why)
{
	return fail(failure, -EBADMSG, "physical volume %s: metadata area %u: %s", label->uuid, area, why);
}

/* 0: a location; 1: the area has no text. */
static int read_area_head(const struct fsreader_source *source, const struct lvm_label *label, unsigned area,
			  struct location *ret_location, struct failure *failure)
{
	uint64_t off_bytes = label->areas[area].off_bytes, size_bytes = label->areas[area].size_bytes;
	uint8_t head[AREA_HEAD_BYTES];
	int error;

	if (off_bytes > source->size_bytes || size_bytes > source->size_bytes - off_bytes ||
	    size_bytes < 2 * AREA_HEAD_BYTES)
		return fail_area(label, area, failure, "lies behind the end");
	error = source->read(source->opaque, head, sizeof(head), off_bytes, failure);
	if (error < 0)
		return error;
	if (bytes_get_le32(head) != lvm_crc(LVM_CRC_BEGIN, head + 4, sizeof(head) - 4) ||
	    memcmp(head + 4, area_magic, 16) != 0)
		return fail_area(label, area, failure, "its header is damaged");
	if (bytes_get_le32(head + 20) != 1 || bytes_get_le64(head + 24) != off_bytes ||
	    bytes_get_le64(head + 32) != size_bytes)
		return fail_area(label, area, failure, "its header is of another version, or of another place");
	ret_location->off_bytes = bytes_get_le64(head + 40);
	ret_location->len_bytes = bytes_get_le64(head + 48);
	ret_location->crc = bytes_get_le32(head + 56);
	if (ret_location->off_bytes == 0 || (bytes_get_le32(head + 60) & LOCATION_IGNORED) != 0)
		return 1;
	if (ret_location->off_bytes < AREA_HEAD_BYTES || ret_location->off_bytes >= size_bytes ||
	    ret_location->len_bytes == 0 || ret_location->len_bytes > size_bytes - AREA_HEAD_BYTES)
		return fail_area(label, area, failure, "its text lies outside of it");
	if (ret_location->len_bytes > LVM_TEXT_MOST_BYTES)
		return fail(failure, -E2BIG,
			    "physical volume %s: metadata of %llu bytes; more than %d are not believed", label->uuid,
			    (unsigned long long)ret_location->len_bytes, LVM_TEXT_MOST_BYTES);
	return 0;
}

int lvm_label_read_text(const struct fsreader_source *source, const struct lvm_label *label, unsigned area,
			char **ret_text, size_t *ret_len_bytes, struct failure *failure)
{
	uint64_t area_off_bytes = label->areas[area].off_bytes;
	AUTO_FREE char *text = NULL;
	struct location location;
	uint64_t first_bytes; /* up to the end of the ring */
	int error = read_area_head(source, label, area, &location, failure);

	if (error != 0) {
		if (error == 1)
			*ret_text = NULL;
		return error < 0 ? error : 0;
	}
	text = malloc(location.len_bytes);
	if (text == NULL)
		return fail(failure, -ENOMEM, "LVM metadata: out of memory");
	first_bytes = label->areas[area].size_bytes - location.off_bytes;
	if (first_bytes > location.len_bytes)
		first_bytes = location.len_bytes;
	error = source->read(source->opaque, text, first_bytes, area_off_bytes + location.off_bytes, failure);
	if (error == 0 && first_bytes < location.len_bytes)
		error = source->read(source->opaque, text + first_bytes, location.len_bytes - first_bytes,
				     area_off_bytes + AREA_HEAD_BYTES, failure);
	if (error < 0)
		return error;
	if (lvm_crc(LVM_CRC_BEGIN, text, location.len_bytes) != location.crc)
		return fail_area(label, area, failure, "its text is damaged");
	*ret_len_bytes = location.len_bytes;
	*ret_text = take_ptr(text);
	return 0;
}
