/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inodes. Fields are read as the kernel reads them (fs/ext4/inode.c, Documentation/filesystems/ext4/inodes.rst): which
 * of them there are goes by the file system's features, the size of the inode and what the inode says it uses of that.
 *
 * Numbers that a folder may name are those of the root and from the first that isn't reserved on: who follows an entry
 * to the journal or to the bad blocks has been led there on purpose.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "fsreader/worker/ext_worker.h"

enum group_state { GROUP_UNKNOWN, GROUP_GOOD, GROUP_BAD };

enum {
	NANOSECONDS = 1000000000,
	SECTOR_BYTES = 512,
	EPOCH_BITS = 2,
};

errcode_t ext_inode_make(struct ext_worker *worker, struct ext_inode *inode)
{
	size_t size_bytes = EXT2_INODE_SIZE(worker->fs->super);

	inode->ino = 0;
	inode->raw = calloc(1, size_bytes > sizeof(*inode->raw) ? size_bytes : sizeof(*inode->raw));
	return inode->raw == NULL ? EXT2_ET_NO_MEMORY : 0;
}

/* ----------------------------------------------------------------- numbers */

uint64_t ext_inode_tell_number(ext2_ino_t ino)
{
	return ino == EXT2_ROOT_INO ? FSREADER_ROOT : ino;
}

static bool is_for_files(const struct ext_worker *worker, uint64_t ino)
{
	const struct ext2_super_block *super = worker->fs->super;

	return ino == EXT2_ROOT_INO || (ino >= EXT2_FIRST_INODE(super) && ino <= super->s_inodes_count);
}

int ext_inode_from_number(struct ext_worker *worker, uint64_t number, ext2_ino_t *ret_ino, struct failure *failure)
{
	uint64_t ino = number == FSREADER_ROOT ? EXT2_ROOT_INO : number;

	if (number == EXT2_ROOT_INO || !is_for_files(worker, ino))
		return fail(failure, -ESTALE, "there is no inode %" PRIu64, number);
	*ret_ino = (ext2_ino_t)ino;
	return 0;
}

/* -------------------------------------------------------------------- read */

/* Whether the descriptor of a group can be believed; where its inodes are is said there. */
static bool is_group_good(struct ext_worker *worker, dgrp_t group)
{
	ext2_filsys fs = worker->fs;

	if (worker->group_states[group] == GROUP_UNKNOWN) {
		uint64_t table = ext2fs_inode_table_loc(fs, group);
		bool is_good = ext2fs_group_desc_csum_verify(fs, group) != 0 &&
			       table >= fs->super->s_first_data_block && table < ext2fs_blocks_count(fs->super) &&
			       fs->inode_blocks_per_group <= ext2fs_blocks_count(fs->super) - table;

		worker->group_states[group] = is_good ? GROUP_GOOD : GROUP_BAD;
	}
	return worker->group_states[group] == GROUP_GOOD;
}

static bool is_known_type(uint32_t mode)
{
	return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode) || S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) ||
	       S_ISSOCK(mode);
}

int ext_inode_read(struct ext_worker *worker, ext2_ino_t ino, struct ext_inode *inode, struct failure *failure)
{
	ext2_filsys fs = worker->fs;
	errcode_t problem;

	inode->ino = 0;
	if (!is_for_files(worker, ino))
		return fail(failure, -EIO, "an entry of a folder names inode %u, which is no file's", ino);
	if (!is_group_good(worker, ext2fs_group_of_ino(fs, ino)))
		return fail(failure, -EIO, "inode %u: the descriptor of its group is damaged", ino);
	problem = ext2fs_read_inode_full(fs, ino, EXT2_INODE(inode->raw), EXT2_INODE_SIZE(fs->super));
	if (problem != 0)
		return ext_fail(failure, problem, "inode %u", ino);
	if (inode->raw->i_links_count == 0)
		return fail(failure, -ESTALE, "inode %u is deleted", ino);
	if (!is_known_type(inode->raw->i_mode))
		return fail(failure, -EIO, "inode %u is damaged: it has no type", ino);
	inode->ino = ino;
	return 0;
}

int ext_inode_read_number(struct ext_worker *worker, uint64_t number, struct failure *failure)
{
	ext2_ino_t ino = 0;
	int error = ext_inode_from_number(worker, number, &ino, failure);

	return error < 0 ? error : ext_inode_read(worker, ino, &worker->inode, failure);
}

/* -------------------------------------------------------------------- tell */

uint64_t ext_inode_size_bytes(const struct ext_worker *worker, const struct ext_inode *inode)
{
	uint64_t size_bytes = inode->raw->i_size;

	/* In other inodes this field meant something else, once. */
	if (S_ISREG(inode->raw->i_mode) || ext2fs_has_feature_largedir(worker->fs->super))
		size_bytes |= (uint64_t)inode->raw->i_size_high << 32;
	return size_bytes;
}

static uint64_t allocated_bytes(const struct ext_worker *worker, const struct ext_inode *inode)
{
	const struct ext2_inode_large *raw = inode->raw;
	uint64_t sectors = raw->i_blocks;

	if (ext2fs_has_feature_huge_file(worker->fs->super)) {
		sectors |= (uint64_t)raw->osd2.linux2.l_i_blocks_hi << 32;
		if ((raw->i_flags & EXT4_HUGE_FILE_FL) != 0)
			return sectors * worker->fs->blocksize;
	}
	/* The kernel does so too: a file without blocks looks as if it were all hole. */
	if ((raw->i_flags & EXT4_INLINE_DATA_FL) != 0 && S_ISREG(raw->i_mode))
		sectors += (ext_inode_size_bytes(worker, inode) + SECTOR_BYTES - 1) / SECTOR_BYTES;
	return sectors * SECTOR_BYTES;
}

static bool has_field(const struct ext_worker *worker, const struct ext_inode *inode, size_t end_of_field)
{
	size_t used_bytes = (size_t)EXT2_GOOD_OLD_INODE_SIZE + inode->raw->i_extra_isize;

	return EXT2_INODE_SIZE(worker->fs->super) > EXT2_GOOD_OLD_INODE_SIZE && end_of_field <= used_bytes &&
	       end_of_field <= EXT2_INODE_SIZE(worker->fs->super);
}

/* 32 bits with a sign, two bits of more epochs, 30 bits of nanoseconds: years 1901 to 2446. */
static struct timespec make_time(uint32_t seconds, uint32_t extra, bool has_extra)
{
	struct timespec time = {.tv_sec = (int32_t)seconds};

	if (has_extra) {
		time.tv_sec += (time_t)(extra & EXT4_EPOCH_MASK) << 32;
		time.tv_nsec = extra >> EPOCH_BITS;
	}
	if (time.tv_nsec >= NANOSECONDS)
		time.tv_nsec = 0; /* no kernel has written that */
	return time;
}

#define END_OF_FIELD(field) \
	(offsetof(struct ext2_inode_large, field) + sizeof(((struct ext2_inode_large *)NULL)->field))

static void fill_times(const struct ext_worker *worker, const struct ext_inode *inode, struct fsreader_attr *attr)
{
	const struct ext2_inode_large *raw = inode->raw;

	attr->atime =
		make_time(raw->i_atime, raw->i_atime_extra, has_field(worker, inode, END_OF_FIELD(i_atime_extra)));
	attr->mtime =
		make_time(raw->i_mtime, raw->i_mtime_extra, has_field(worker, inode, END_OF_FIELD(i_mtime_extra)));
	attr->ctime =
		make_time(raw->i_ctime, raw->i_ctime_extra, has_field(worker, inode, END_OF_FIELD(i_ctime_extra)));
}

/* Two formats: 8 and 8 bits in the first word, or 12 and 20 bits in the second. */
static void fill_device(const struct ext_inode *inode, struct fsreader_attr *attr)
{
	uint32_t old = inode->raw->i_block[0], new = inode->raw->i_block[1];

	if (!S_ISCHR(inode->raw->i_mode) && !S_ISBLK(inode->raw->i_mode))
		return;
	attr->rdev_major = old != 0 ? old >> 8 & 0xff : new >> 8 & 0xfff;
	attr->rdev_minor = old != 0 ? old & 0xff : (new & 0xff) | (new >> 12 & 0xfff00);
}

static bool may_have_xattrs(const struct ext_worker *worker, const struct ext_inode *inode)
{
	size_t begin_bytes = (size_t)EXT2_GOOD_OLD_INODE_SIZE + inode->raw->i_extra_isize;

	if (ext2fs_file_acl_block(worker->fs, EXT2_INODE(inode->raw)) != 0)
		return true;
	return has_field(worker, inode, EXT2_GOOD_OLD_INODE_SIZE + sizeof(inode->raw->i_extra_isize)) &&
	       begin_bytes + sizeof(uint32_t) <= EXT2_INODE_SIZE(worker->fs->super) &&
	       bytes_get_le32((const uint8_t *)inode->raw + begin_bytes) == EXT2_EXT_ATTR_MAGIC;
}

/* The kernel shows the length of what readlink() gives, not that of what is stored. */
static int fill_size_of_secret_link(struct ext_worker *worker, const struct ext_inode *inode, struct ext_node *node,
				    struct failure *failure)
{
	char target[EXT_TARGET_MOST_BYTES + 1];
	size_t len_bytes;
	int error = ext_value_read_link(worker, inode, target, &len_bytes, failure);

	if (error == 0)
		node->attr.size_bytes = len_bytes;
	return error;
}

static void fill_content(struct ext_worker *worker, const struct ext_inode *inode, struct ext_node *node)
{
	uint32_t flags = inode->raw->i_flags;

	if (!S_ISREG(inode->raw->i_mode))
		return;
	if ((flags & EXT4_ENCRYPT_FL) != 0)
		node->flags |= EXT_NODE_ENCRYPTED;
	else if ((flags & EXT4_INLINE_DATA_FL) != 0)
		node->flags |= EXT_NODE_INLINE;
	else if (ext_map_read_inode(worker, inode, node->pieces, EXT_NODE_PIECES, &node->piece_count))
		node->flags |= EXT_NODE_MAPPED;
}

int ext_inode_fill_node(struct ext_worker *worker, const struct ext_inode *inode, struct ext_node *ret_node,
			struct failure *failure)
{
	const struct ext2_inode_large *raw = inode->raw;

	memset(ret_node, 0, sizeof(*ret_node));
	ret_node->attr = (struct fsreader_attr){
		.ino = ext_inode_tell_number(inode->ino),
		.mode = raw->i_mode,
		.nlink = raw->i_links_count,
		.uid = inode_uid(*raw),
		.gid = inode_gid(*raw),
		.size_bytes = ext_inode_size_bytes(worker, inode),
		.allocated_bytes = allocated_bytes(worker, inode),
	};
	fill_times(worker, inode, &ret_node->attr);
	fill_device(inode, &ret_node->attr);
	fill_content(worker, inode, ret_node);
	if (may_have_xattrs(worker, inode))
		ret_node->flags |= EXT_NODE_HAS_XATTRS;
	if (S_ISLNK(raw->i_mode) && (raw->i_flags & EXT4_ENCRYPT_FL) != 0)
		return fill_size_of_secret_link(worker, inode, ret_node, failure);
	return 0;
}
