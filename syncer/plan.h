/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a source has to be read.
 *
 * A disk of 8 TiB with 300 GiB of files is read in minutes instead of hours if one knows which blocks hold something.
 * The plan finds out from the partition table (libfdisk), the types of the file systems (libblkid) and the
 * allocation maps of ext2/3/4 (libext2fs), all through reads of the source, so that it works the same for a device,
 * a file and an NBD export.
 *
 * The rule behind all of it: reading too much is slow, reading too little loses data. So anything not understood,
 * inconsistent, dirty, mounted, or with a flag we don't know, is read.
 *
 * Left out are:
 *     the inside of gaps of more than 16 MiB between partitions, but for one MiB at each end and the disk's first 16
 *     the pages of swap, unless a hibernated system is in it
 *     blocks that a clean, unmounted ext2/3/4 doesn't use, in runs of 32 KiB or more; shorter ones are read along
 *
 * Memory stays bounded: allocation maps are read group by group as the plan is walked, never as a whole.
 */
#ifndef WHERRY_SYNCER_PLAN_H
#define WHERRY_SYNCER_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/source.h"

enum plan_kind {
	PLAN_READ,     /* read it */
	PLAN_HOLE,     /* the source says it reads as zeros */
	PLAN_LEFT_OUT, /* not read on purpose; reads as zeros in the target; `why` says why */
};

struct plan_range {
	uint64_t off_bytes;
	uint64_t len_bytes; /* > 0 */
	enum plan_kind kind;
	const char
		*why; /* PLAN_LEFT_OUT: e.g. "partition 2: blocks not in use by ext4", "partition 3: content of swap",
		       * "gap between partitions"; else NULL. Owned by the plan, the same pointer for the same reason */
};

struct plan_options {
	bool read_all;		       /* everything is PLAN_READ but for holes */
	const struct notices *notices; /* may be NULL; must outlive the plan */
};

struct plan;

/*
 * Looks at the source. Never fails because of what is in it (a broken table, bad sectors where tables are: everything
 * is read, and a notice says so), only when it is out of memory or the source is gone (connection lost).
 *
 * The source is used by plan_next() later and must outlive the plan. Caller frees with plan_free().
 */
int plan_make(struct source *source, const struct plan_options *options, struct plan **ret_plan,
	      struct failure *failure);
void plan_free(struct plan *plan); /* NULL is fine */

/*
 * The range that starts at off_bytes (0 <= off < size, else -EINVAL), as long as one can say cheaply, never longer
 * than to the end of the source. Ranges follow from each other: asking again at off + len walks the disk. Any
 * off_bytes may be asked, walking forward is fast. One thread at a time, the one that submits reads to the source.
 *
 * The answers stay the same over a walk, with one exception: when a file system is found to have been mounted or
 * changed since plan_make() (looked at every few seconds), the rest of it is PLAN_READ, and a notice says so.
 */
int plan_next(struct plan *plan, uint64_t off_bytes, struct plan_range *ret_range, struct failure *failure);

/* What was recognised, for people and for the report. */
struct plan_partition {
	unsigned number; /* as in /dev/sda2; 0 for a file system on the whole disk */
	uint64_t off_bytes;
	uint64_t len_bytes;
	char type[32];		/* libblkid's name: ext4, vfat, swap, LVM2_member, xfs …; "" if unknown */
	char label[64], uuid[40]; /* the file system's, as it has them: any bytes; "" if it has none, or a longer one */
	bool holds_files;	/* a file system, by its type; not swap, a volume of LVM, … */
	bool by_allocation_map; /* only blocks in use are read; becomes false when the trust ends during the walk */
	char why_whole[96];	/* ext only: why its map isn't trusted: "mounted", "not cleanly unmounted", "unknown
				   feature", … */
	bool looks_in_use; /* its own flags say it is in use or was not cleanly unmounted (ext, FAT, exFAT, Btrfs) */
};

/* "gpt", "dos" or "none", which is also the answer for a table that isn't understood. */
const char *plan_table_type(const struct plan *plan);

/* The partition table as "sfdisk --dump" prints it of a device `name`; "" where plan_table_type() is "none". Caller frees. */
int plan_dump_table(const struct plan *plan, const char *name, char **ret_text, struct failure *failure);

/*
 * The partitions that hold something, in the table's order; not the extended partition that contains logical ones.
 * Owned by the plan.
 */
const struct plan_partition *plan_partitions(const struct plan *plan, unsigned *ret_count);

#endif
