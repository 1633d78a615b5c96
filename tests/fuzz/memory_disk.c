/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See memory_disk.h. A read goes through all pieces, which are few. Nobody but a plan reads from such a disk, so there
 * are no requests in flight.
 */
#include "memory_disk.h"

#include <errno.h>

#include "common/bytes.h"
#include "common/cleanup.h"

enum { BAD_BYTES = 4096, ODD_BYTES = 100, SIZE_SHIFTS = 39 };
#define SIZE_MOST_BYTES ((uint64_t)1 << 48)

static uint64_t smaller(uint64_t one, uint64_t other)
{
	return one < other ? one : other;
}

void memory_disk_get(const struct memory_disk *disk, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	memset(buffer, 0, len_bytes);
	for (unsigned i = 0; i < disk->piece_count; i++) {
		const struct memory_piece *piece = &disk->pieces[i];
		uint64_t first = piece->off_bytes > off_bytes ? piece->off_bytes : off_bytes;
		uint64_t end = smaller(piece->off_bytes + piece->len_bytes, off_bytes + len_bytes);

		if (first < end)
			memcpy((uint8_t *)buffer + (first - off_bytes), piece->bytes + (first - piece->off_bytes),
			       (size_t)(end - first));
	}
}

bool memory_disk_has(const struct memory_disk *disk, uint64_t off_bytes, uint64_t most_bytes, uint64_t *ret_len_bytes)
{
	uint64_t len_bytes = most_bytes;

	for (unsigned i = 0; i < disk->piece_count; i++) {
		const struct memory_piece *piece = &disk->pieces[i];

		if (off_bytes < piece->off_bytes)
			len_bytes = smaller(len_bytes, piece->off_bytes - off_bytes);
		else if (off_bytes - piece->off_bytes < piece->len_bytes) {
			*ret_len_bytes = smaller(most_bytes, piece->len_bytes - (off_bytes - piece->off_bytes));
			return true;
		}
	}
	*ret_len_bytes = len_bytes;
	return false;
}

/* ---- as a source ---- */

static const struct memory_disk *disk_of(const struct source *source)
{
	return (const struct memory_disk *)source;
}

static int disk_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	const struct memory_disk *disk = disk_of(source);

	require(len_bytes > 0 && off_bytes < source->info.size_bytes &&
		len_bytes <= source->info.size_bytes - off_bytes);
	if ((disk->flags & MEMORY_DISK_HAS_BAD) != 0 && off_bytes < disk->bad_off_bytes + BAD_BYTES &&
	    disk->bad_off_bytes < off_bytes + len_bytes)
		return fail_errno(failure, -EIO, "disk at %llu", (unsigned long long)off_bytes);
	memory_disk_get(disk, buffer, len_bytes, off_bytes);
	return 0;
}

static int disk_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
			  uint64_t *ret_len_bytes, struct failure *failure)
{
	const struct memory_disk *disk = disk_of(source);

	(void)failure;
	*ret_extent = SOURCE_DATA;
	*ret_len_bytes = len_bytes;
	if ((disk->flags & MEMORY_DISK_KNOWS_HOLES) != 0)
		*ret_extent = memory_disk_has(disk, off_bytes, len_bytes, ret_len_bytes) ? SOURCE_DATA : SOURCE_HOLE;
	return 0;
}

static int disk_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
			 uint64_t *ret_len_bytes, struct failure *failure)
{
	(void)failure;
	*ret_is_dirty = memory_disk_has(disk_of(source), off_bytes, len_bytes, ret_len_bytes);
	return 0;
}

static int disk_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	(void)source;
	(void)failure;
	*ret_in_use = false;
	*ret_why = NULL;
	return 0;
}

static int disk_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			      struct failure *failure)
{
	(void)failure;
	require(off_bytes <= source->info.size_bytes && len_bytes <= source->info.size_bytes - off_bytes);
	*ret_mounted = (disk_of(source)->flags & MEMORY_DISK_IS_MOUNTED) != 0;
	return 0;
}

static int disk_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	(void)source;
	(void)failure;
	*ret_stamp = strdup("");
	require(*ret_stamp != NULL);
	return 0;
}

static int disk_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	(void)failure;
	*ret_size_bytes = source->info.size_bytes;
	return 0;
}

static const struct source_ops disk_ops = {
	.read = disk_read,
	.extent_at = disk_extent_at,
	.dirty_at = disk_dirty_at,
	.in_use = disk_in_use,
	.range_mounted = disk_range_mounted,
	.change_stamp = disk_change_stamp,
	.current_size = disk_current_size,
};

/* ---- of bytes ---- */

static void add_piece(struct memory_disk *disk, uint64_t off_bytes, const uint8_t *bytes, size_t len_bytes)
{
	if (disk->piece_count == MEMORY_DISK_PIECES_MOST || off_bytes >= disk->source.info.size_bytes || len_bytes == 0)
		return;
	len_bytes = (size_t)smaller(len_bytes, disk->source.info.size_bytes - off_bytes);
	disk->pieces[disk->piece_count++] =
		(struct memory_piece){.off_bytes = off_bytes, .len_bytes = (uint32_t)len_bytes, .bytes = bytes};
}

static void put_le32(struct memory_disk *disk, uint64_t off_bytes, uint32_t value)
{
	require(disk->mended_count < sizeof(disk->mended) / sizeof(disk->mended[0]));
	bytes_put_le32(disk->mended[disk->mended_count], value);
	add_piece(disk, off_bytes, disk->mended[disk->mended_count++], sizeof(value));
}

static uint32_t crc32_of(const uint8_t *bytes, size_t len_bytes)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < len_bytes; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
	}
	return ~crc;
}

/* UEFI specification, 5.3.2: the header's checksum is over itself, with zeros in its place. */
static void mend_gpt(struct memory_disk *disk, uint64_t off_bytes, uint32_t sector_bytes)
{
	enum {
		AT_LENGTH = 12,
		AT_CHECKSUM = 16,
		AT_ENTRIES = 72,
		AT_COUNT = 80,
		AT_ENTRY_BYTES = 84,
		AT_ENTRIES_SUM = 88
	};
	enum { HEAD_BYTES = 92, ENTRIES_MOST_BYTES = 16 << 10 };
	uint8_t head[512];
	uint64_t entries_off_bytes, entries_bytes;
	uint32_t length;

	memory_disk_get(disk, head, sizeof(head), off_bytes);
	length = bytes_get_le32(head + AT_LENGTH);
	if (memcmp(head, "EFI PART", 8) != 0 || length < HEAD_BYTES || length > sizeof(head))
		return;
	entries_bytes = (uint64_t)bytes_get_le32(head + AT_COUNT) * bytes_get_le32(head + AT_ENTRY_BYTES);
	entries_off_bytes = bytes_get_le64(head + AT_ENTRIES);
	if (entries_bytes <= ENTRIES_MOST_BYTES && entries_off_bytes < SIZE_MOST_BYTES / sector_bytes) {
		AUTO_FREE uint8_t *entries = malloc((size_t)entries_bytes + 1);

		require(entries != NULL);
		memory_disk_get(disk, entries, (size_t)entries_bytes, entries_off_bytes * sector_bytes);
		bytes_put_le32(head + AT_ENTRIES_SUM, crc32_of(entries, (size_t)entries_bytes));
		put_le32(disk, off_bytes + AT_ENTRIES_SUM, bytes_get_le32(head + AT_ENTRIES_SUM));
	}
	bytes_put_le32(head + AT_CHECKSUM, 0);
	put_le32(disk, off_bytes + AT_CHECKSUM, crc32_of(head, length));
}

void memory_disk_make(struct memory_disk *disk, struct fuzz_input *input)
{
	static char name[] = "disk";
	uint8_t flags = input_u8(input);
	unsigned shift = input_u8(input) % SIZE_SHIFTS;
	uint64_t size_bytes = smaller((uint64_t)(input_le(input, 2) + 1) << shift, SIZE_MOST_BYTES / 512) * 512;

	*disk = (struct memory_disk){.flags = flags};
	disk->source.ops = &disk_ops;
	disk->source.grain_bytes = 512;
	disk->source.info = (struct source_info){
		.kind = (flags & MEMORY_DISK_IS_DEVICE) != 0 ? SOURCE_BLOCK_DEVICE : SOURCE_FILE,
		.size_bytes = size_bytes + ((flags & MEMORY_DISK_IS_ODD) != 0 ? ODD_BYTES : 0),
		.sector_bytes = (flags & MEMORY_DISK_HAS_4K_SECTORS) != 0 ? 4096 : 512,
		.align_bytes = 1,
		.most_in_flight = 1,
		.name = name,
		.identity = name,
	};
	if ((flags & MEMORY_DISK_HAS_BAD) != 0)
		disk->bad_off_bytes = (uint64_t)input_le(input, 4) * MEMORY_DISK_SECTOR_BYTES;
	while (input->left_bytes > 0) {
		uint32_t where = input_le(input, 4);
		uint64_t off_bytes = (uint64_t)(where & ~MEMORY_DISK_FROM_END) * MEMORY_DISK_SECTOR_BYTES;
		size_t len_bytes = input_le(input, 2);
		const uint8_t *bytes = input_bytes(input, len_bytes, &len_bytes);

		if ((where & MEMORY_DISK_FROM_END) != 0)
			off_bytes = size_bytes - smaller(off_bytes, size_bytes);
		add_piece(disk, off_bytes, bytes, len_bytes);
	}
	if ((flags & MEMORY_DISK_MEND) == 0)
		return;
	for (uint32_t sector_bytes = 512; sector_bytes <= 4096; sector_bytes *= 8)
		if (size_bytes > 2 * sector_bytes) {
			mend_gpt(disk, sector_bytes, sector_bytes);
			mend_gpt(disk, size_bytes - sector_bytes, sector_bytes);
		}
}

/* ---- mutation ---- */

/*
 * Most bytes of a disk mean nothing. Those that do are not zero, mostly, and numbers of a few bytes: so a small window
 * that starts at such a byte of some piece is given to libFuzzer.
 */
size_t memory_disk_mutate(uint8_t *data, size_t len_bytes, unsigned random)
{
	struct fuzz_input input = {data, len_bytes};
	struct memory_disk disk;
	const struct memory_piece *piece;
	size_t at_byte, window_bytes = (size_t)1 << random % 5;

	memory_disk_make(&disk, &input);
	random /= 5;
	disk.piece_count -= disk.mended_count; /* those came last, and are no part of the input */
	if (disk.piece_count == 0)
		return len_bytes;
	piece = &disk.pieces[random % disk.piece_count];
	random /= disk.piece_count;
	at_byte = random % piece->len_bytes;
	for (unsigned tries = 0; tries < piece->len_bytes && piece->bytes[at_byte] == 0; tries++)
		at_byte = (at_byte + 1) % piece->len_bytes;
	window_bytes = (size_t)smaller(window_bytes, piece->len_bytes - at_byte);
	(void)LLVMFuzzerMutate(data + (piece->bytes - data) + at_byte, window_bytes, window_bytes);
	return len_bytes;
}
