/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fast commits (fs/ext4/fast_commit.c): what changed since the last transaction of a journal, told in a few words
 * instead of whole blocks. They stand behind the log, from the beginning on, and count if the tail behind them has the
 * sequence number that the next transaction would have, and the right checksum.
 *
 *     tag 2, length 2, then for
 *     ADD_RANGE   inode 4, an extent 12           these blocks of the file lie there
 *     DEL_RANGE   inode 4, block 4, blocks 4      these are a hole
 *     CREAT       folder 4, inode 4, name         a new file; its inode came before
 *     LINK        folder 4, inode 4, name
 *     UNLINK      folder 4, inode 4, name
 *     INODE       inode 4, the inode              all but where its content is, unless that is in itself
 *     PAD         anything
 *     TAIL        sequence 4, checksum 4          of all since the tail before
 *     HEAD        features 4, sequence 4
 *
 * Whoever mounts does all of this. So does this, by libext2fs, on a file system that is open for writing: what is
 * written goes into the overlay, in memory. Blocks that folders and trees of extents need are taken from those that are
 * free; nothing else is ever in them.
 *
 * What is done twice makes no difference, and what names a file that is gone is passed over, as by the kernel. Numbers
 * of links are those of the inodes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <ext2fs/ext2fs.h>
#include <ext2fs/ext3_extents.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum {
	TAG_ADD_RANGE = 1,
	TAG_DEL_RANGE = 2,
	TAG_CREAT = 3,
	TAG_LINK = 4,
	TAG_UNLINK = 5,
	TAG_INODE = 6,
	TAG_PAD = 7,
	TAG_TAIL = 8,
	TAG_HEAD = 9,

	HEAD_BYTES = 4, /* of a tag */
	TAGS_MOST_BYTES = 64 * 1024 * 1024,
	I_BLOCK_OFF = 40,
	I_GENERATION_OFF = 100,
	EXTENT_BYTES = 12,
	UNWRITTEN_FROM_LEN = 32768,
};

/* ------------------------------------------------------------------ gather */

void ext_fast_free(struct ext_fast *fast)
{
	free(fast->tags);
	*fast = (struct ext_fast){.tags = NULL};
}

static bool is_length_right(unsigned tag, size_t len_bytes)
{
	switch (tag) {
	case TAG_ADD_RANGE:
		return len_bytes == 4 + EXTENT_BYTES;
	case TAG_DEL_RANGE:
		return len_bytes == 12;
	case TAG_CREAT:
	case TAG_LINK:
	case TAG_UNLINK:
		return len_bytes > 8 && len_bytes <= 8 + FSREADER_NAME_MOST_BYTES;
	case TAG_INODE:
		return len_bytes >= 4 + EXT2_GOOD_OLD_INODE_SIZE;
	case TAG_PAD:
		return true;
	case TAG_TAIL: /* padded up to the end of its block */
	case TAG_HEAD:
		return len_bytes >= 8;
	default:
		return false;
	}
}

static int keep_tag(struct ext_fast *fast, const uint8_t *at, size_t len_bytes)
{
	if (fast->len_bytes + len_bytes > fast->room_bytes) {
		size_t room_bytes = 2 * fast->room_bytes + len_bytes + 4096;
		uint8_t *grown = room_bytes > TAGS_MOST_BYTES ? NULL : realloc(fast->tags, room_bytes);

		if (grown == NULL)
			return -ENOMEM;
		fast->tags = grown;
		fast->room_bytes = room_bytes;
	}
	memcpy(fast->tags + fast->len_bytes, at, len_bytes);
	fast->len_bytes += len_bytes;
	return 0;
}

static enum ext_fast_step take_tail(struct ext_fast *fast, const uint8_t *at)
{
	uint32_t sum = ext2fs_crc32c_le(fast->sum, at, HEAD_BYTES + 4); /* up to the sum itself */

	if (bytes_get_le32(at + HEAD_BYTES) != fast->sequence || bytes_get_le32(at + HEAD_BYTES + 4) != sum)
		return EXT_FAST_END;
	fast->sum = 0;
	fast->valid_bytes = fast->len_bytes;
	return EXT_FAST_ON;
}

static enum ext_fast_step take_tag(struct ext_fast *fast, unsigned tag, const uint8_t *at, size_t len_bytes)
{
	if (tag == TAG_TAIL)
		return take_tail(fast, at);
	if (tag == TAG_HEAD &&
	    (bytes_get_le32(at + HEAD_BYTES + 4) != fast->sequence || bytes_get_le32(at + HEAD_BYTES) != 0))
		return EXT_FAST_END; /* of another time, or with features that nobody has invented yet */
	fast->sum = ext2fs_crc32c_le(fast->sum, at, HEAD_BYTES + len_bytes);
	if (tag != TAG_PAD && tag != TAG_HEAD && keep_tag(fast, at, HEAD_BYTES + len_bytes) < 0)
		return EXT_FAST_NO_MEMORY;
	return EXT_FAST_ON;
}

enum ext_fast_step ext_fast_take_block(struct ext_fast *fast, const uint8_t *block, size_t block_bytes)
{
	enum ext_fast_step step = EXT_FAST_ON;
	size_t off_bytes = 0;

	if (!fast->has_begun && bytes_get_le16(block) != TAG_HEAD)
		return EXT_FAST_END;
	fast->has_begun = true;
	while (step == EXT_FAST_ON && off_bytes + HEAD_BYTES <= block_bytes) {
		const uint8_t *at = block + off_bytes;
		unsigned tag = bytes_get_le16(at);
		size_t len_bytes = bytes_get_le16(at + 2);

		if (len_bytes > block_bytes - off_bytes - HEAD_BYTES || !is_length_right(tag, len_bytes))
			return EXT_FAST_END;
		step = take_tag(fast, tag, at, len_bytes);
		off_bytes += HEAD_BYTES + len_bytes;
	}
	return step;
}

/* ------------------------------------------------------------------- apply */

struct replay {
	ext2_filsys fs;
	struct ext2_inode_large *raw; /* all of an inode */
	size_t raw_bytes;
};

static bool is_for_files(const struct replay *replay, uint32_t ino)
{
	const struct ext2_super_block *super = replay->fs->super;

	return ino == EXT2_ROOT_INO || (ino >= EXT2_FIRST_INODE(super) && ino <= super->s_inodes_count);
}

/* False: there is no such file, and what was to be done with it isn't. */
static bool read_inode(struct replay *replay, uint32_t ino)
{
	return is_for_files(replay, ino) &&
	       ext2fs_read_inode_full(replay->fs, ino, EXT2_INODE(replay->raw), (int)replay->raw_bytes) == 0 &&
	       replay->raw->i_links_count > 0;
}

static errcode_t apply_inode(struct replay *replay, const uint8_t *value, size_t len_bytes)
{
	uint32_t ino = bytes_get_le32(value);
	uint8_t *raw = (uint8_t *)replay->raw;
	const uint8_t *new = value + 4;
	struct ext3_extent_header header;
	errcode_t problem;

	len_bytes -= 4;
	if (!is_for_files(replay, ino) || len_bytes > replay->raw_bytes)
		return 0;
	problem =
		ext2fs_read_inode2(replay->fs, ino, EXT2_INODE(replay->raw), (int)replay->raw_bytes, READ_INODE_NOCSUM);
	if (problem != 0)
		return problem;
	memcpy(raw, new, I_BLOCK_OFF);
	memcpy(raw + I_GENERATION_OFF, new + I_GENERATION_OFF, len_bytes - I_GENERATION_OFF);
	memcpy(&header, replay->raw->i_block, sizeof(header));
	if ((replay->raw->i_flags & EXT4_EXTENTS_FL) == 0) {
		memcpy(raw + I_BLOCK_OFF, new + I_BLOCK_OFF, I_GENERATION_OFF - I_BLOCK_OFF);
	} else if (header.eh_magic != EXT3_EXT_MAGIC) {
		memset(replay->raw->i_block, 0, sizeof(replay->raw->i_block));
		header = (struct ext3_extent_header){.eh_magic = EXT3_EXT_MAGIC,
						     .eh_max = (sizeof(replay->raw->i_block) - sizeof(header)) /
							       EXTENT_BYTES};
		memcpy(replay->raw->i_block, &header, sizeof(header));
	}
	return ext2fs_write_inode_full(replay->fs, ino, EXT2_INODE(replay->raw), (int)replay->raw_bytes);
}

struct range {
	uint32_t ino;
	uint32_t block, count;
	uint64_t place;
	bool is_unwritten;
};

static struct range get_added_range(const uint8_t *value)
{
	struct range range = {
		.ino = bytes_get_le32(value), .block = bytes_get_le32(value + 4), .count = bytes_get_le16(value + 8)};

	range.place = bytes_get_le32(value + 12) | (uint64_t)bytes_get_le16(value + 10) << 32;
	range.is_unwritten = range.count > UNWRITTEN_FROM_LEN;
	if (range.is_unwritten)
		range.count -= UNWRITTEN_FROM_LEN;
	return range;
}

static bool is_in_file_system(const struct replay *replay, const struct range *range)
{
	uint64_t end = ext2fs_blocks_count(replay->fs->super);

	return range->place >= replay->fs->super->s_first_data_block && range->place < end &&
	       range->count <= end - range->place;
}

static errcode_t apply_added_range(struct replay *replay, const uint8_t *value)
{
	struct range range = get_added_range(value);
	ext2_extent_handle_t handle;
	errcode_t problem;

	if (!read_inode(replay, range.ino))
		return 0;
	if (!is_in_file_system(replay, &range))
		return EXT2_ET_BAD_BLOCK_NUM;
	problem = ext2fs_extent_open2(replay->fs, range.ino, EXT2_INODE(replay->raw), &handle);
	if (problem != 0)
		return problem;
	for (uint32_t i = 0; i < range.count && problem == 0; i++)
		problem = ext2fs_extent_set_bmap(handle, (blk64_t)range.block + i, range.place + i,
						 range.is_unwritten ? EXT2_EXTENT_SET_BMAP_UNINIT : 0);
	ext2fs_extent_free(handle);
	return problem;
}

static errcode_t apply_deleted_range(struct replay *replay, const uint8_t *value)
{
	uint32_t ino = bytes_get_le32(value), block = bytes_get_le32(value + 4), count = bytes_get_le32(value + 8);

	if (!read_inode(replay, ino) || count == 0)
		return 0;
	return ext2fs_punch(replay->fs, ino, EXT2_INODE(replay->raw), NULL, block, (blk64_t)block + count - 1);
}

static void get_name(const uint8_t *value, size_t len_bytes, char name[FSREADER_NAME_MOST_BYTES + 1])
{
	memcpy(name, value + 8, len_bytes - 8);
	name[len_bytes - 8] = '\0';
}

static int file_type_of(uint32_t mode)
{
	return LINUX_S_ISREG(mode)    ? EXT2_FT_REG_FILE
	       : LINUX_S_ISDIR(mode)  ? EXT2_FT_DIR
	       : LINUX_S_ISLNK(mode)  ? EXT2_FT_SYMLINK
	       : LINUX_S_ISCHR(mode)  ? EXT2_FT_CHRDEV
	       : LINUX_S_ISBLK(mode)  ? EXT2_FT_BLKDEV
	       : LINUX_S_ISFIFO(mode) ? EXT2_FT_FIFO
				      : EXT2_FT_SOCK;
}

static errcode_t add_name(struct replay *replay, uint32_t dir, uint32_t ino, const char *name, int file_type)
{
	ext2_ino_t found;
	errcode_t problem = ext2fs_lookup(replay->fs, dir, name, (int)strlen(name), NULL, &found);

	if (problem == 0) /* it was there already */
		return 0;
	if (problem != EXT2_ET_FILE_NOT_FOUND)
		return problem;
	problem = ext2fs_link(replay->fs, dir, name, ino, file_type);
	if (problem != EXT2_ET_DIR_NO_SPACE)
		return problem;
	problem = ext2fs_expand_dir(replay->fs, dir);
	return problem != 0 ? problem : ext2fs_link(replay->fs, dir, name, ino, file_type);
}

static errcode_t apply_link(struct replay *replay, const uint8_t *value, size_t len_bytes)
{
	uint32_t dir = bytes_get_le32(value), ino = bytes_get_le32(value + 4);
	char name[FSREADER_NAME_MOST_BYTES + 1];
	int file_type;

	get_name(value, len_bytes, name);
	if (!read_inode(replay, ino))
		return 0;
	file_type = file_type_of(replay->raw->i_mode);
	if (!read_inode(replay, dir) || !LINUX_S_ISDIR(replay->raw->i_mode))
		return 0;
	return add_name(replay, dir, ino, name, file_type);
}

static errcode_t apply_unlink(struct replay *replay, const uint8_t *value, size_t len_bytes)
{
	uint32_t dir = bytes_get_le32(value), ino = bytes_get_le32(value + 4);
	char name[FSREADER_NAME_MOST_BYTES + 1];
	errcode_t problem;

	get_name(value, len_bytes, name);
	if (!read_inode(replay, dir) || !LINUX_S_ISDIR(replay->raw->i_mode))
		return 0;
	problem = ext2fs_unlink(replay->fs, dir, name, ino, 0);
	return problem == EXT2_ET_DIR_NO_SPACE ? 0 : problem; /* no such name */
}

/* A new folder's only block is not in a fast commit: it can be told by heart. */
static errcode_t make_folder(struct replay *replay, uint32_t parent, uint32_t ino)
{
	AUTO_FREE char *block = NULL;
	blk64_t place = 0;
	errcode_t problem;

	if ((replay->raw->i_flags & EXT4_INLINE_DATA_FL) != 0)
		return 0; /* it came with the inode */
	problem = ext2fs_new_dir_block(replay->fs, ino, parent, &block);
	if (problem == 0)
		problem = ext2fs_bmap2(replay->fs, ino, EXT2_INODE(replay->raw), NULL, 0, 0, NULL, &place);
	if (problem == 0 && place == 0)
		problem = ext2fs_bmap2(replay->fs, ino, EXT2_INODE(replay->raw), NULL, BMAP_ALLOC, 0, NULL, &place);
	if (problem == 0)
		problem = ext2fs_write_dir_block4(replay->fs, place, block, 0, ino);
	if (problem != 0)
		return problem;
	replay->raw->i_size = replay->fs->blocksize;
	replay->raw->i_flags &= ~(uint32_t)EXT2_INDEX_FL;
	return ext2fs_write_inode_full(replay->fs, ino, EXT2_INODE(replay->raw), (int)replay->raw_bytes);
}

static errcode_t apply_create(struct replay *replay, const uint8_t *value, size_t len_bytes)
{
	uint32_t dir = bytes_get_le32(value), ino = bytes_get_le32(value + 4);

	if (!read_inode(replay, ino))
		return 0;
	if (LINUX_S_ISDIR(replay->raw->i_mode)) {
		errcode_t problem = make_folder(replay, dir, ino);
		if (problem != 0)
			return problem;
	}
	return apply_link(replay, value, len_bytes);
}

static errcode_t apply_tag(struct replay *replay, unsigned tag, const uint8_t *value, size_t len_bytes)
{
	switch (tag) {
	case TAG_ADD_RANGE:
		return apply_added_range(replay, value);
	case TAG_DEL_RANGE:
		return apply_deleted_range(replay, value);
	case TAG_CREAT:
		return apply_create(replay, value, len_bytes);
	case TAG_LINK:
		return apply_link(replay, value, len_bytes);
	case TAG_UNLINK:
		return apply_unlink(replay, value, len_bytes);
	default:
		return apply_inode(replay, value, len_bytes);
	}
}

/* What the commits say is in use must not be taken for something else. */
static void mark_ranges(struct replay *replay, const struct ext_fast *fast)
{
	for (size_t off_bytes = 0; off_bytes < fast->valid_bytes;
	     off_bytes += HEAD_BYTES + bytes_get_le16(fast->tags + off_bytes + 2)) {
		const uint8_t *at = fast->tags + off_bytes;
		struct range range;

		if (bytes_get_le16(at) != TAG_ADD_RANGE)
			continue;
		range = get_added_range(at + HEAD_BYTES);
		if (range.count > 0 && is_in_file_system(replay, &range))
			ext2fs_mark_block_bitmap_range2(replay->fs->block_map, range.place, range.count);
	}
}

int ext_fast_apply(struct ext_worker *worker, const struct ext_fast *fast, struct failure *failure)
{
	struct replay replay = {
		.fs = worker->fs, .raw = worker->inode.raw, .raw_bytes = EXT2_INODE_SIZE(worker->fs->super)};
	errcode_t problem = ext2fs_read_block_bitmap(worker->fs);

	if (problem == 0)
		mark_ranges(&replay, fast);
	for (size_t off_bytes = 0; problem == 0 && off_bytes < fast->valid_bytes;) {
		const uint8_t *at = fast->tags + off_bytes;
		size_t len_bytes = bytes_get_le16(at + 2);

		problem = apply_tag(&replay, bytes_get_le16(at), at + HEAD_BYTES, len_bytes);
		off_bytes += HEAD_BYTES + len_bytes;
	}
	return problem == 0 ? 0
			    : ext_fail(failure, problem,
				       "it was not cleanly unmounted, and the fast commits of its journal can't be "
				       "read; e2fsck can repair a copy");
}
