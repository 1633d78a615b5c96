/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A partition of a source, as libext2fs reads it. For plan_ext.c only.
 */
#ifndef WHERRY_SYNCER_PLAN_EXT_IO_H
#define WHERRY_SYNCER_PLAN_EXT_IO_H

#include <ext2fs/ext2fs.h>

#include "syncer/plan_internal.h"

enum {
	PLAN_EXT_SUPERBLOCK_OFF = 1024,
	PLAN_EXT_SUPERBLOCK_BYTES = 1024,
	PLAN_EXT_CACHE_LINES = 16,
};

struct plan_ext_cache_line {
	uint64_t off_bytes; /* in the partition, a multiple of PLAN_PIECE_BYTES */
	uint32_t len_bytes; /* 0: empty */
	uint8_t *data;
};

struct plan_ext_io {
	struct source *source;
	uint64_t off_bytes; /* of the partition */
	uint64_t len_bytes;
	uint8_t superblock[PLAN_EXT_SUPERBLOCK_BYTES]; /* the caller's to fill in before it opens */
	struct plan_ext_cache_line cache[PLAN_EXT_CACHE_LINES];
	int lost_code; /* 0, or a negative errno: a read failed, and going on makes no sense */
	struct failure lost;
};

/* Opens the file system read-only. `io` must stay where it is until ext2fs_free(*ret_fs). */
errcode_t plan_ext_io_open(struct plan_ext_io *io, ext2_filsys *ret_fs);

/* What `io` owns, not the file system. */
void plan_ext_io_free(struct plan_ext_io *io);

#endif
