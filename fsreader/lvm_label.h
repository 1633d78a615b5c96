/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where on a physical volume of LVM2 its metadata lie. Small binary structures of fixed size, so they are read here, without a worker:
 *
 *     label         in one of the first four sectors of 512 bytes: "LABELONE", le64 its sector, le32 crc of all behind that,
 *                   le32 offset of the pv header in it, "LVM2 001"
 *     pv header     uuid[32], le64 size of the device, list of data areas, list of metadata areas: le64 offset, le64 size each,
 *                   both lists ended by an offset of 0
 *     metadata area 512 bytes of header: le32 crc of the rest, magic[16], le32 version 1, le64 its own offset, le64 size of the area, then
 *                   where the text is: le64 offset from the header, le64 size, le32 crc, le32 flags (1: ignored). The area behind the
 *                   header is a ring: text that reaches its end goes on behind the header.
 *
 * The crc is CRC-32 (polynomial 0xedb88320) begun with 0xf597a6cf and not inverted at the end.
 */
#ifndef WHERRY_FSREADER_LVM_LABEL_H
#define WHERRY_FSREADER_LVM_LABEL_H

#include <stdbool.h>

#include "fsreader/lvm.h"

enum { LVM_LABEL_MOST_AREAS = 4 }; /* LVM makes two at most */

struct lvm_label {
	char uuid[LVM_UUID_BYTES];
	unsigned area_count;
	struct {
		uint64_t off_bytes, size_bytes;
	} areas[LVM_LABEL_MOST_AREAS];
};

/* 1: *ret_label; 0: no label, or a damaged one; else an error of the source. */
int lvm_label_read(const struct fsreader_source *source, struct lvm_label *ret_label, struct failure *failure);

/*
 * The text of one metadata area; caller frees, *ret_text is NULL when the area has none (never written, or ignored). -EBADMSG: the area is damaged;
 * -E2BIG; -ENOMEM; or an error of the source.
 */
int lvm_label_read_text(const struct fsreader_source *source, const struct lvm_label *label, unsigned area,
			char **ret_text, size_t *ret_len_bytes, struct failure *failure);

uint32_t lvm_crc(uint32_t crc, const void *data, size_t len_bytes); /* begin with LVM_CRC_BEGIN */
#define LVM_CRC_BEGIN ((uint32_t)0xf597a6cf)

#endif
