/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logical volumes of LVM2, without LVM: nothing is activated, no device mapper, no root.
 *
 * Some places (the partitions of a disk, or the disk itself) are looked at for physical volumes. What they say of
 * volume groups is text, and a stranger's: a process with nothing to lose (sandbox.h, worker/lvm_main.c) parses it and
 * answers with numbers, which are checked here. A logical volume is then a list of segments, each of which lies in one
 * piece, or striped, on physical volumes; its content is read straight from them, by the caller's thread.
 *
 *     struct lvm_scan *scan;
 *     lvm_scan(sources, count, &options, &scan, &failure);
 *     for each group of scan->groups, each volume of it, with volume->problem == NULL:
 *             struct fsreader_source source = lvm_source(volume);      -- an LV as a place to read from: a file, a file system's source
 *     lvm_scan_free(scan);
 *
 * Read are: linear and striped volumes, raid0; of mirrors and raid1 the first leg that is whole and in step. Thin,
 * cached and VDO volumes, raid4/5/6/10 and snapshots are put together by device mapper alone: `problem` says which it
 * is. Of the origin of a snapshot the current content is read.
 *
 * Read-only. 0 or a negative errno with a message; outputs untouched on failure. A scan doesn't change: any thread, several at once.
 */
#ifndef WHERRY_FSREADER_LVM_H
#define WHERRY_FSREADER_LVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "fsreader/fsreader.h"

enum {
	LVM_NAME_BYTES = 128,	 /* with its NUL: of [a-zA-Z0-9+_.-], not "." nor "..", no '-' in front */
	LVM_UUID_BYTES = 33,	 /* with its NUL: 32 letters and digits; LVM shows them with '-' in between */
	LVM_MOST_AREAS = 128,	 /* stripes of a segment */
	LVM_MOST_SOURCES = 1024, /* more than that are refused */
};

enum lvm_kind {
	LVM_MAPPED, /* on physical volumes */
	LVM_ZERO,   /* reads as zeros */
	LVM_ERROR,  /* reads as an error */
};

struct lvm_area {
	uint32_t pv;	    /* of the group's */
	uint64_t off_bytes; /* from the start of that physical volume */
};

/*
 * `len_bytes` of a volume from `lv_off_bytes` on. Byte x of it (0 <= x < len_bytes) lies, with y = x + skip_bytes and z
 * = y / stripe_bytes, in area z % area_count, at the area's off_bytes + z / area_count * stripe_bytes + y %
 * stripe_bytes. With one area stripe_bytes and skip_bytes are 0: off_bytes + x.
 */
struct lvm_segment {
	enum lvm_kind kind;
	uint64_t lv_off_bytes, len_bytes;
	uint64_t stripe_bytes, skip_bytes;
	uint32_t first_area, area_count; /* of the volume's; 0, 0 unless LVM_MAPPED */
};

struct lvm_group;

struct lvm_volume {
	char name[LVM_NAME_BYTES];
	uint64_t size_bytes;
	char *problem; /* why it can't be read, as one line ("a thin volume: …"), and there are no segments then; NULL: it can be */
	size_t segment_count, area_count;
	struct lvm_segment *segments; /* in order, without gaps, from 0 to size_bytes */
	struct lvm_area *areas;
	const struct lvm_group *group;
};

struct lvm_pv {
	char uuid[LVM_UUID_BYTES];
	uint64_t size_bytes;		      /* as the metadata have it; 0: they don't */
	bool is_missing;		      /* LVM had given it up when it last wrote: what it has is old */
	const struct fsreader_source *source; /* NULL: not among the sources, or `is_missing` */
};

struct lvm_group {
	char name[LVM_NAME_BYTES]; /* of two groups with the same name the second is "NAME-UUID" */
	char uuid[LVM_UUID_BYTES];
	uint64_t seqno; /* of the metadata: the highest that was found */
	size_t pv_count, missing_count, volume_count;
	struct lvm_pv *pvs;
	struct lvm_volume *volumes; /* those that LVM shows to users, in its order */
};

struct lvm_scan {
	size_t group_count;
	struct lvm_group *groups;
};

struct lvm_options {
	const char *what;	  /* for messages: "web01@3"; not kept */
	unsigned timeout_seconds; /* for parsing; 0: 10 */
	const struct notices *
		notices; /* damaged copies, physical volumes that are there twice, groups that can't be read; may be NULL */
};

/* Is there a label of LVM2 here? Cheap: reads 2 KiB. 0 or 1, or an error of the source. */
int lvm_is_physical_volume(const struct fsreader_source *source, struct failure *failure);

/*
 * Finds what there is on `sources`, which are borrowed, with the array, until lvm_scan_free(). No group at all is no error. What can't be
 * read is left out with a notice. Errors: no memory; no worker.
 */
int lvm_scan(const struct fsreader_source *sources, size_t count, const struct lvm_options *options,
	     struct lvm_scan **ret_scan, struct failure *failure);
void lvm_scan_free(struct lvm_scan *scan); /* NULL is fine */

/* Of a volume without a problem. Borrows it, and what it lies on. Reads as -EIO where the volume has LVM_ERROR. */
struct fsreader_source lvm_source(const struct lvm_volume *volume);

#endif
