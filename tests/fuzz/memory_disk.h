/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk of any size in no memory: pieces somewhere on it, zeros elsewhere. As a source it does what a file or a device
 * does, and is the same each time.
 *
 * As bytes (what a harness is given, and make_seeds.c writes), little-endian:
 *
 *     u8   flags, enum memory_disk_flags
 *     u8   size: a shift                     \  (count + 1) << shift % 39, in sectors of 512 bytes up to 2^48 bytes,
 *     u16  size: a count                     /  and 100 bytes more if MEMORY_DISK_IS_ODD
 *     u32  where 4096 bytes can't be read, in sectors, if MEMORY_DISK_HAS_BAD
 *     pieces, until the end:
 *          u32  where, in sectors; top bit: so many before the disk's end
 *          u16  length, then as many bytes as there are
 */
#ifndef WHERRY_TESTS_FUZZ_MEMORY_DISK_H
#define WHERRY_TESTS_FUZZ_MEMORY_DISK_H

#include "fuzz.h"
#include "syncer/source_internal.h"

enum memory_disk_flags {
	MEMORY_DISK_KNOWS_HOLES = 0x01, /* says that what is in no piece is a hole */
	MEMORY_DISK_IS_DEVICE = 0x02,
	MEMORY_DISK_HAS_4K_SECTORS = 0x04,
	MEMORY_DISK_HAS_BAD = 0x08,
	MEMORY_DISK_IS_ODD = 0x10,
	MEMORY_DISK_MEND = 0x20,     /* checksums of a GPT */
	MEMORY_DISK_READ_ALL = 0x40, /* for the harness */
	MEMORY_DISK_IS_MOUNTED = 0x80,
};

enum { MEMORY_DISK_PIECES_MOST = 96, MEMORY_DISK_FROM_END = 1u << 31, MEMORY_DISK_SECTOR_BYTES = 512 };

struct memory_piece {
	uint64_t off_bytes;
	uint32_t len_bytes;
	const uint8_t *bytes; /* of the input, or of `mended` */
};

struct memory_disk {
	struct source source; /* first */
	uint8_t flags;
	uint64_t bad_off_bytes;
	struct memory_piece pieces[MEMORY_DISK_PIECES_MOST]; /* of two in one place the later one counts */
	unsigned piece_count;
	uint8_t mended[8][4];
	unsigned mended_count;
};

/* `input` must stay. The disk is nothing that source_close() may be called for. */
void memory_disk_make(struct memory_disk *disk, struct fuzz_input *input);
void memory_disk_get(const struct memory_disk *disk, void *buffer, size_t len_bytes, uint64_t off_bytes);

/* Changes a few bytes of one piece; of such a disk as bytes. Returns how many there are. */
size_t memory_disk_mutate(uint8_t *data, size_t len_bytes, unsigned random);

/* Is the first byte in a piece, and how far does that hold? */
bool memory_disk_has(const struct memory_disk *disk, uint64_t off_bytes, uint64_t most_bytes, uint64_t *ret_len_bytes);

#endif
