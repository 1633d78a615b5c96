/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache has lines of 64 KiB: what an answer of the client holds, and mostly a chunk of the store. Inodes of a
 * folder, descriptors, and, with flex_bg, the tables of many groups lie next to each other, so that most of a walk
 * finds what it wants in a line that is there.
 *
 * A line that can't be read is not the end: part of it may be whole, so just what is wanted is tried, past the cache.
 *
 * When the client is gone there is nothing left to do.
 */
#include "fsreader/worker/ext_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"

enum {
	LINE_BYTES = EXT_READ_MOST_BYTES,
	LINES = 256, /* 16 MiB */
	BUCKETS = 512,
	NONE = -1,
	CHANNEL_BLOCK_BYTES = 1024,
};

struct line {
	uint64_t number;    /* its bytes begin at number * LINE_BYTES */
	uint32_t len_bytes; /* 0: empty */
	int next;	    /* in its bucket */
	uint64_t used_at;
	uint8_t *data;
};

struct ext_io {
	int socket;
	uint64_t size_bytes;
	struct ext_overlay *overlay;
	size_t written_most_blocks;
	uint64_t clock;
	int last; /* line */
	int buckets[BUCKETS];
	struct line lines[LINES];
};

/* ----------------------------------------------------------------- overlay */

const struct ext_replaced *ext_overlay_find(const struct ext_overlay *overlay, uint64_t block)
{
	size_t low = 0, high = overlay->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (overlay->blocks[middle].block < block)
			low = middle + 1;
		else
			high = middle;
	}
	return low < overlay->count ? &overlay->blocks[low] : NULL;
}

void ext_overlay_free(struct ext_overlay *overlay)
{
	for (size_t i = 0; i < overlay->count; i++)
		free(overlay->blocks[i].content);
	free(overlay->blocks);
	*overlay = (struct ext_overlay){.count = 0};
}

/* ------------------------------------------------------------------ client */

static void __attribute__((noreturn)) end_without_client(void)
{
	_exit(0);
}

static errcode_t ask_client(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	const struct ext_answer want = {.kind = EXT_WANTS, .count = (uint32_t)len_bytes, .position = off_bytes};
	struct ext_data head;
	struct iovec parts[2] = {{.iov_base = &head, .iov_len = sizeof(head)},
				 {.iov_base = buffer, .iov_len = len_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t got_bytes;

	if (send(io->socket, &want, sizeof(want), MSG_NOSIGNAL) != (ssize_t)sizeof(want))
		end_without_client();
	got_bytes = recvmsg(io->socket, &message, 0);
	if (got_bytes < (ssize_t)sizeof(head))
		end_without_client();
	if (head.error < 0)
		return EIO;
	if ((size_t)got_bytes != sizeof(head) + len_bytes)
		end_without_client();
	return 0;
}

/* ------------------------------------------------------------------- cache */

struct ext_io *ext_io_make(int socket, uint64_t size_bytes)
{
	struct ext_io *io = calloc(1, sizeof(*io));

	if (io == NULL)
		return NULL;
	io->socket = socket;
	io->size_bytes = size_bytes;
	for (int i = 0; i < BUCKETS; i++)
		io->buckets[i] = NONE;
	return io;
}

uint64_t ext_io_size_bytes(const struct ext_io *io)
{
	return io->size_bytes;
}

static int find_line(struct ext_io *io, uint64_t number)
{
	const struct line *last = &io->lines[io->last];
	int i;

	if (last->len_bytes > 0 && last->number == number)
		return io->last;
	for (i = io->buckets[number % BUCKETS]; i != NONE && io->lines[i].number != number; i = io->lines[i].next)
		;
	return i;
}

static void unlink_line(struct ext_io *io, int i)
{
	int *at = &io->buckets[io->lines[i].number % BUCKETS];

	while (*at != i)
		at = &io->lines[*at].next;
	*at = io->lines[i].next;
	io->lines[i].len_bytes = 0;
}

/* An empty one: never used, or the one not used for longest. */
static int take_line(struct ext_io *io)
{
	int oldest = 0;

	for (int i = 1; i < LINES && io->lines[oldest].len_bytes > 0; i++) {
		if (io->lines[i].len_bytes == 0 || io->lines[i].used_at < io->lines[oldest].used_at)
			oldest = i;
	}
	if (io->lines[oldest].len_bytes > 0)
		unlink_line(io, oldest);
	return oldest;
}

static errcode_t fill_line(struct ext_io *io, uint64_t number, int *ret_line)
{
	int i = take_line(io);
	struct line *line = &io->lines[i];
	uint64_t off_bytes = number * LINE_BYTES;
	size_t len_bytes = io->size_bytes - off_bytes < LINE_BYTES ? (size_t)(io->size_bytes - off_bytes) : LINE_BYTES;
	errcode_t problem;

	if (line->data == NULL)
		line->data = malloc(LINE_BYTES);
	if (line->data == NULL)
		return EXT2_ET_NO_MEMORY;
	problem = ask_client(io, line->data, len_bytes, off_bytes);
	if (problem != 0)
		return problem;
	line->number = number;
	line->len_bytes = (uint32_t)len_bytes;
	line->next = io->buckets[number % BUCKETS];
	io->buckets[number % BUCKETS] = i;
	*ret_line = i;
	return 0;
}

/* Within one line. */
static errcode_t read_in_line(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint64_t number = off_bytes / LINE_BYTES;
	int i = find_line(io, number);

	if (i == NONE) {
		errcode_t problem = fill_line(io, number, &i);
		if (problem == EIO)
			return ask_client(io, buffer, len_bytes, off_bytes);
		if (problem != 0)
			return problem;
	}
	io->last = i;
	io->lines[i].used_at = ++io->clock;
	memcpy(buffer, io->lines[i].data + off_bytes % LINE_BYTES, len_bytes);
	return 0;
}

errcode_t ext_io_read_raw(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint8_t *at = buffer;
	errcode_t problem = 0;

	if (off_bytes > io->size_bytes || len_bytes > io->size_bytes - off_bytes)
		return EXT2_ET_SHORT_READ;
	while (len_bytes > 0 && problem == 0) {
		size_t step_bytes = LINE_BYTES - (size_t)(off_bytes % LINE_BYTES);

		if (step_bytes > len_bytes)
			step_bytes = len_bytes;
		problem = read_in_line(io, at, step_bytes, off_bytes);
		at += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return problem;
}

/* ---------------------------------------------------------- through overlay */

/* Within one block that is replaced. */
static errcode_t read_replaced(struct ext_io *io, const struct ext_replaced *replaced, uint8_t *buffer,
			       size_t len_bytes, size_t skip_bytes)
{
	errcode_t problem;

	if (replaced->content != NULL) {
		memcpy(buffer, replaced->content + skip_bytes, len_bytes);
		return 0;
	}
	problem = ext_io_read_raw(io, buffer, len_bytes, replaced->place * io->overlay->block_bytes + skip_bytes);
	if (problem == 0 && replaced->is_escaped && skip_bytes < sizeof(ext_journal_magic)) {
		size_t magic_bytes = sizeof(ext_journal_magic) - skip_bytes;

		memcpy(buffer, ext_journal_magic + skip_bytes, magic_bytes < len_bytes ? magic_bytes : len_bytes);
	}
	return problem;
}

errcode_t ext_io_read(struct ext_io *io, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint8_t *at = buffer;
	errcode_t problem = 0;

	if (io->overlay == NULL || io->overlay->count == 0)
		return ext_io_read_raw(io, buffer, len_bytes, off_bytes);
	if (off_bytes > io->size_bytes || len_bytes > io->size_bytes - off_bytes)
		return EXT2_ET_SHORT_READ;
	while (len_bytes > 0 && problem == 0) {
		uint32_t block_bytes = io->overlay->block_bytes;
		uint64_t block = off_bytes / block_bytes;
		const struct ext_replaced *next = ext_overlay_find(io->overlay, block);
		size_t step_bytes = len_bytes;

		if (next != NULL && next->block == block) {
			size_t skip_bytes = (size_t)(off_bytes % block_bytes);

			if (block_bytes - skip_bytes < step_bytes)
				step_bytes = block_bytes - skip_bytes;
			problem = read_replaced(io, next, at, step_bytes, skip_bytes);
		} else {
			if (next != NULL && (next->block - block) * block_bytes - off_bytes % block_bytes < step_bytes)
				step_bytes = (size_t)((next->block - block) * block_bytes - off_bytes % block_bytes);
			problem = ext_io_read_raw(io, at, step_bytes, off_bytes);
		}
		at += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return problem;
}

void ext_io_lay_over(struct ext_io *io, struct ext_overlay *overlay)
{
	io->overlay = overlay;
	io->written_most_blocks = 0;
}

void ext_io_allow_writes(struct ext_io *io, size_t most_blocks)
{
	io->written_most_blocks = most_blocks;
}

/* The place of a block in the overlay, made if need be with the content that it has. */
static errcode_t have_content(struct ext_io *io, uint64_t block, struct ext_replaced **ret_replaced)
{
	struct ext_overlay *overlay = io->overlay;
	const struct ext_replaced *found = ext_overlay_find(overlay, block);
	size_t i = found == NULL ? overlay->count : (size_t)(found - overlay->blocks);
	AUTO_FREE uint8_t *content = malloc(overlay->block_bytes);
	struct ext_replaced *grown;
	errcode_t problem;

	if (found != NULL && found->block == block && found->content != NULL) {
		*ret_replaced = &overlay->blocks[i];
		return 0;
	}
	if (content == NULL || io->written_most_blocks == 0)
		return content == NULL ? EXT2_ET_NO_MEMORY : EXT2_ET_RO_FILSYS;
	problem = ext_io_read(io, content, overlay->block_bytes, block * overlay->block_bytes);
	if (problem != 0)
		return problem;
	if (found == NULL || found->block != block) {
		grown = realloc(overlay->blocks, (overlay->count + 1) * sizeof(*grown));
		if (grown == NULL)
			return EXT2_ET_NO_MEMORY;
		overlay->blocks = grown;
		memmove(&grown[i + 1], &grown[i], (overlay->count - i) * sizeof(*grown));
		overlay->count++;
	}
	overlay->blocks[i] = (struct ext_replaced){.block = block, .place = block, .content = take_ptr(content)};
	io->written_most_blocks--;
	*ret_replaced = &overlay->blocks[i];
	return 0;
}

static errcode_t write_bytes(struct ext_io *io, const uint8_t *data, size_t len_bytes, uint64_t off_bytes)
{
	while (len_bytes > 0) {
		uint32_t block_bytes = io->overlay == NULL ? 0 : io->overlay->block_bytes;
		struct ext_replaced *replaced;
		size_t skip_bytes, step_bytes;
		errcode_t problem;

		if (block_bytes == 0)
			return EXT2_ET_RO_FILSYS;
		problem = have_content(io, off_bytes / block_bytes, &replaced);
		if (problem != 0)
			return problem;
		skip_bytes = (size_t)(off_bytes % block_bytes);
		step_bytes = block_bytes - skip_bytes < len_bytes ? block_bytes - skip_bytes : len_bytes;
		memcpy(replaced->content + skip_bytes, data, step_bytes);
		data += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return 0;
}

/* -------------------------------------------------------------- io_manager */

/*
 * open() of an io_manager gets a name and nothing else. What is being opened is handed over here; ext2fs_open2() calls
 * it before it returns.
 */
static struct ext_io *opening;

/* A negative count is a number of bytes. */
static errcode_t find_range(io_channel channel, unsigned long long block, int count, uint64_t *ret_off_bytes,
			    size_t *ret_len_bytes)
{
	uint64_t block_bytes = (uint64_t)channel->block_size;

	if (__builtin_mul_overflow((uint64_t)block, block_bytes, ret_off_bytes))
		return EXT2_ET_SHORT_READ;
	*ret_len_bytes = count < 0 ? (size_t)(-(int64_t)count) : (size_t)count * (size_t)block_bytes;
	return 0;
}

static errcode_t channel_read_blk64(io_channel channel, unsigned long long block, int count, void *data)
{
	uint64_t off_bytes;
	size_t len_bytes;
	errcode_t problem = find_range(channel, block, count, &off_bytes, &len_bytes);

	return problem != 0 ? problem : ext_io_read(channel->private_data, data, len_bytes, off_bytes);
}

static errcode_t channel_read_blk(io_channel channel, unsigned long block, int count, void *data)
{
	return channel_read_blk64(channel, block, count, data);
}

static errcode_t channel_write_blk64(io_channel channel, unsigned long long block, int count, const void *data)
{
	uint64_t off_bytes;
	size_t len_bytes;
	errcode_t problem = find_range(channel, block, count, &off_bytes, &len_bytes);

	return problem != 0 ? problem : write_bytes(channel->private_data, data, len_bytes, off_bytes);
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

static struct struct_io_manager client_io_manager = {
	.magic = EXT2_ET_MAGIC_IO_MANAGER,
	.name = "wherry-fsreader",
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
	channel->manager = &client_io_manager;
	channel->name = strdup(name);
	channel->block_size = CHANNEL_BLOCK_BYTES;
	channel->refcount = 1;
	channel->private_data = opening;
	if (channel->name == NULL) {
		free(channel);
		return EXT2_ET_NO_MEMORY;
	}
	*ret_channel = channel;
	return 0;
}

errcode_t ext_io_open_fs(struct ext_io *io, int flags, ext2_filsys *ret_fs)
{
	ext2_filsys fs = NULL;
	errcode_t problem;

	opening = io;
	problem = ext2fs_open2("source", NULL, EXT2_FLAG_64BITS | EXT2_FLAG_SKIP_MMP | flags, 0, 0, &client_io_manager,
			       &fs);
	opening = NULL;
	if (problem == 0)
		*ret_fs = fs;
	return problem;
}
