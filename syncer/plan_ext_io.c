/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libext2fs reads through an io_manager on source_read(), with a small cache in 64 KiB lines: descriptors and, with
 * flex_bg, bitmaps lie next to each other, and over a network a read costs a round trip.
 *
 * The superblock is kept as it was when it was checked, and libext2fs gets to see that copy, so that what was checked
 * is what is used, even if the source changes in between. Writing is refused.
 *
 * libext2fs has error codes of its own, in which a bad sector and a lost connection would look the same; which of the
 * two it was is remembered here.
 */
#include "syncer/plan_ext_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * open() of an io_manager gets a name and nothing else. The plan_ext_io that is being opened is handed over here;
 * ext2fs_open2() calls open() before it returns, on the same thread.
 */
static _Thread_local struct plan_ext_io *opening;

static errcode_t channel_fill(struct plan_ext_io *io, struct plan_ext_cache_line *line, uint64_t off_bytes)
{
	uint64_t len_bytes = io->len_bytes - off_bytes;
	bool is_bad = false;
	int error;

	if (len_bytes > PLAN_PIECE_BYTES)
		len_bytes = PLAN_PIECE_BYTES;
	if (line->data == NULL)
		line->data = malloc(PLAN_PIECE_BYTES);
	if (line->data == NULL) {
		io->lost_code = fail(&io->lost, -ENOMEM, "plan: out of memory");
		return EXT2_ET_NO_MEMORY;
	}
	line->len_bytes = 0;
	error = plan_read(io->source, line->data, (size_t)len_bytes, io->off_bytes + off_bytes, &is_bad, &io->lost);
	if (error < 0) {
		io->lost_code = error;
		return EIO;
	}
	if (is_bad)
		return EIO;
	line->off_bytes = off_bytes;
	line->len_bytes = (uint32_t)len_bytes;
	return 0;
}

/* Lays the superblock that was checked over what was read now. */
static void show_superblock(const struct plan_ext_io *io, uint8_t *data, size_t len_bytes, uint64_t off_bytes)
{
	uint64_t first = off_bytes > PLAN_EXT_SUPERBLOCK_OFF ? off_bytes : PLAN_EXT_SUPERBLOCK_OFF;
	uint64_t end = off_bytes + len_bytes;

	if (end > PLAN_EXT_SUPERBLOCK_OFF + PLAN_EXT_SUPERBLOCK_BYTES)
		end = PLAN_EXT_SUPERBLOCK_OFF + PLAN_EXT_SUPERBLOCK_BYTES;
	if (first < end)
		memcpy(data + (first - off_bytes), io->superblock + (first - PLAN_EXT_SUPERBLOCK_OFF),
		       (size_t)(end - first));
}

static errcode_t channel_read_bytes(struct plan_ext_io *io, uint8_t *data, size_t len_bytes, uint64_t off_bytes)
{
	uint64_t end_bytes;

	if (__builtin_add_overflow(off_bytes, (uint64_t)len_bytes, &end_bytes) || end_bytes > io->len_bytes)
		return EXT2_ET_SHORT_READ;
	while (len_bytes > 0) {
		uint64_t line_off_bytes = off_bytes / PLAN_PIECE_BYTES * PLAN_PIECE_BYTES;
		struct plan_ext_cache_line *line = &io->cache[line_off_bytes / PLAN_PIECE_BYTES % PLAN_EXT_CACHE_LINES];
		size_t skip_bytes = (size_t)(off_bytes - line_off_bytes);
		size_t step_bytes;
		errcode_t error = 0;

		if (line->len_bytes == 0 || line->off_bytes != line_off_bytes)
			error = channel_fill(io, line, line_off_bytes);
		if (error != 0)
			return error;
		step_bytes = line->len_bytes - skip_bytes < len_bytes ? line->len_bytes - skip_bytes : len_bytes;
		memcpy(data, line->data + skip_bytes, step_bytes);
		show_superblock(io, data, step_bytes, off_bytes);
		data += step_bytes;
		len_bytes -= step_bytes;
		off_bytes += step_bytes;
	}
	return 0;
}

static errcode_t channel_read_blk64(io_channel channel, unsigned long long block, int count, void *data)
{
	struct plan_ext_io *io = channel->private_data;
	uint64_t block_bytes = (uint64_t)channel->block_size;
	uint64_t off_bytes;
	/* A negative count is a number of bytes. */
	uint64_t len_bytes = count < 0 ? (uint64_t)(-(int64_t)count) : (uint64_t)count * block_bytes;

	if (__builtin_mul_overflow((uint64_t)block, block_bytes, &off_bytes))
		return EXT2_ET_SHORT_READ;
	return channel_read_bytes(io, data, (size_t)len_bytes, off_bytes);
}

static errcode_t channel_read_blk(io_channel channel, unsigned long block, int count, void *data)
{
	return channel_read_blk64(channel, block, count, data);
}

static errcode_t channel_write_blk64(io_channel channel, unsigned long long block, int count, const void *data)
{
	(void)channel;
	(void)block;
	(void)count;
	(void)data;
	return EXT2_ET_RO_FILSYS;
}

static errcode_t channel_write_blk(io_channel channel, unsigned long block, int count, const void *data)
{
	return channel_write_blk64(channel, block, count, data);
}

static errcode_t channel_set_blksize(io_channel channel, int block_bytes)
{
	channel->block_size = block_bytes;
	return 0;
}

static errcode_t channel_flush(io_channel channel)
{
	(void)channel;
	return 0;
}

static errcode_t channel_close(io_channel channel)
{
	if (--channel->refcount > 0)
		return 0;
	free(channel->name);
	free(channel);
	return 0;
}

static errcode_t channel_open(const char *name, int flags, io_channel *ret_channel);

static struct struct_io_manager source_io_manager = {
	.magic = EXT2_ET_MAGIC_IO_MANAGER,
	.name = "wherry source",
	.open = channel_open,
	.close = channel_close,
	.set_blksize = channel_set_blksize,
	.read_blk = channel_read_blk,
	.write_blk = channel_write_blk,
	.flush = channel_flush,
	.read_blk64 = channel_read_blk64,
	.write_blk64 = channel_write_blk64,
};

static errcode_t channel_open(const char *name, int flags, io_channel *ret_channel)
{
	io_channel channel = calloc(1, sizeof(*channel));

	(void)flags;
	if (channel == NULL)
		return EXT2_ET_NO_MEMORY;
	channel->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	channel->manager = &source_io_manager;
	channel->name = strdup(name);
	channel->block_size = PLAN_EXT_SUPERBLOCK_BYTES;
	channel->refcount = 1;
	channel->private_data = opening;
	if (channel->name == NULL) {
		free(channel);
		return EXT2_ET_NO_MEMORY;
	}
	*ret_channel = channel;
	return 0;
}

errcode_t plan_ext_io_open(struct plan_ext_io *io, ext2_filsys *ret_fs)
{
	ext2_filsys fs = NULL;
	errcode_t problem;

	opening = io;
	problem = ext2fs_open2("source", NULL, EXT2_FLAG_64BITS | EXT2_FLAG_SKIP_MMP, 0, 0, &source_io_manager, &fs);
	opening = NULL;
	if (problem == 0)
		*ret_fs = fs;
	return problem;
}

void plan_ext_io_free(struct plan_ext_io *io)
{
	for (unsigned i = 0; i < PLAN_EXT_CACHE_LINES; i++)
		free(io->cache[i].data);
}
