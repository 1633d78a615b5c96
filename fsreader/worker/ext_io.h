/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source as the worker sees it: bytes that the client reads for it, a cache of them, and what a journal lays over
 * them.
 */
#ifndef WHERRY_FSREADER_WORKER_EXT_IO_H
#define WHERRY_FSREADER_WORKER_EXT_IO_H

#include <ext2fs/ext2fs.h>

#include "fsreader/ext_protocol.h"

/* A block that is to be read elsewhere. */
struct ext_replaced {
	uint64_t block;
	uint64_t place;	  /* the block that has its content; the block itself if `content` has it */
	bool is_escaped;  /* EXT_PIECE_ESCAPED */
	uint8_t *content; /* owned; NULL: in the source */
};

/* What a journal replayed would have changed. Blocks in ascending order, each once. */
struct ext_overlay {
	uint32_t block_bytes;
	size_t count;
	struct ext_replaced *blocks;
};

/* The first one at `block` or behind it; NULL: none. */
const struct ext_replaced *ext_overlay_find(const struct ext_overlay *overlay, uint64_t block);
void ext_overlay_free(struct ext_overlay *overlay);

struct ext_io;

struct ext_io *ext_io_make(int socket, uint64_t size_bytes); /* NULL: no memory */

uint64_t ext_io_size_bytes(const struct ext_io *io);

/* 0, EIO when the source can't be read, EXT2_ET_SHORT_READ behind its end, EXT2_ET_NO_MEMORY. */
errcode_t ext_io_read_raw(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes);
/* The same through the overlay. */
errcode_t ext_io_read(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes);

/* Borrowed until the next call; NULL: none. */
void ext_io_lay_over(struct ext_io *io, struct ext_overlay *overlay);
/* From now on what libext2fs writes is kept in memory, in the overlay, `most_blocks` at most; 0: nothing may be
 * written. */
void ext_io_allow_writes(struct ext_io *io, size_t most_blocks);

/* For libext2fs, read-only unless writes are allowed. `io` outlives it. */
errcode_t ext_io_open_fs(struct ext_io *io, int flags, ext2_filsys *ret_fs);

#endif
