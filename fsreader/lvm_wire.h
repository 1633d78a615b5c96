/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said between lvm.c and its worker, over a socket, once each way:
 *
 *     question   le32 count, count uuids of 32 bytes each (present), le32 length, the text
 *     answer     le32 length of the rest, varint code, then
 *                code 0: a group; else a message (varint length, bytes), and the code is the negative of an errno
 *
 *     group      name, uuid (strings: varint length, bytes), varint seqno, varint count of pvs, of each: uuid, varint size_bytes, u8 is_missing;
 *                varint count of volumes, of each: name, varint size_bytes, problem ("": none), varint counts of areas and segments,
 *                areas (varint pv, off_bytes), segments (u8 kind, varint lv_off_bytes, len_bytes, stripe_bytes, skip_bytes, first_area, area_count)
 *
 * The worker may be in the hands of whoever made the text: lvm_wire_get_group() believes nothing.
 */
#ifndef WHERRY_FSREADER_LVM_WIRE_H
#define WHERRY_FSREADER_LVM_WIRE_H

#include "common/bytes.h"
#include "fsreader/lvm.h"

enum { LVM_WIRE_MOST_BYTES = 128 << 20 }; /* of an answer */

void lvm_wire_put_group(struct byte_writer *writer, const struct lvm_group *group);

/* Checks all that lvm.h promises of a group, but for `source` of its pvs, which stays NULL; and that each area's end is a size. -EINVAL: a lie. */
int lvm_wire_get_group(struct byte_reader *reader, struct lvm_group **ret_group, struct failure *failure);

/* Bytes that a segment takes from each of its areas, counted from the area's off_bytes; UINT64_MAX: more than there can be. */
uint64_t lvm_segment_area_bytes(const struct lvm_segment *segment);

#endif
