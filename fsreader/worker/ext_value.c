/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Targets of symbolic links, data inside of inodes, extended attributes, and how much room there is: what the kernel
 * would tell.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum {
	FAST_LINK_BYTES = 60, /* i_block */
	INLINE_BYTES = 60,
	SECRET_HEAD_BYTES = 2, /* of an encrypted target: its length */
	XATTR_NAME_MOST_BYTES = 255,
	ACL_VERSION_ON_DISK = 1,
	ACL_VERSION_TOLD = 2,
	ACL_TAG_USER = 2,
	ACL_TAG_GROUP = 8,
	RESERVE_SHARE = 50,
	RESERVE_MOST_CLUSTERS = 4096,
};

static const uint32_t ACL_NO_NUMBER = UINT32_MAX;

#define INLINE_ATTRIBUTE "system.data"

/* ------------------------------------------------------- extended attributes */

static void close_xattrs(struct ext2_xattr_handle **handle)
{
	if (*handle != NULL)
		(void)ext2fs_xattrs_close(handle);
}

static int open_xattrs(struct ext_worker *worker, const struct ext_inode *inode, struct ext2_xattr_handle **ret_handle,
		       struct failure *failure)
{
	errcode_t problem = ext2fs_xattrs_open(worker->fs, inode->ino, ret_handle);

	if (problem == 0)
		problem = ext2fs_xattrs_read_inode(*ret_handle, inode->raw);
	return problem == 0 ? 0 : ext_fail(failure, problem, "extended attributes of inode %u", inode->ino);
}

/* What the kernel lists; others are its own business: data of files, keys. */
static bool is_shown(const char *name)
{
	static const char *const namespaces[] = {"user.", "trusted.", "security."};

	if (strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0)
		return true;
	for (size_t i = 0; i < sizeof(namespaces) / sizeof(namespaces[0]); i++) {
		size_t len_bytes = strlen(namespaces[i]);

		if (strncmp(name, namespaces[i], len_bytes) == 0)
			return name[len_bytes] != '\0' && strlen(name) <= XATTR_NAME_MOST_BYTES;
	}
	return false;
}

struct names {
	struct ext_out *out;
	bool is_too_long;
};

static int add_name(char *name, char *value, size_t value_bytes, void *opaque)
{
	struct names *names = opaque;
	size_t len_bytes = strlen(name) + 1;

	(void)value;
	(void)value_bytes;
	if (!is_shown(name))
		return 0;
	if (names->out->len_bytes + len_bytes > EXT_XATTR_MOST_BYTES) {
		names->is_too_long = true;
		return XATTR_ABORT;
	}
	ext_out_bytes(names->out, name, len_bytes);
	return 0;
}

int ext_value_list_xattrs(struct ext_worker *worker, const struct ext_inode *inode, struct ext_out *out,
			  struct failure *failure)
{
	AUTO(close_xattrs) struct ext2_xattr_handle *handle = NULL;
	struct names names = {.out = out};
	int error = open_xattrs(worker, inode, &handle, failure);

	if (error < 0)
		return error;
	(void)ext2fs_xattrs_iterate(handle, add_name, &names); /* only writing back could fail */
	return names.is_too_long
		       ? fail(failure, -EIO, "inode %u has more extended attributes than there can be", inode->ino)
		       : 0;
}

static bool is_acl(const char *name)
{
	return strncmp(name, "system.posix_acl_", strlen("system.posix_acl_")) == 0;
}

/*
 * From the format on disk to that of getxattr(2). (libext2fs does it too, with other numbers for entries that have none
 * than the kernel.)
 *
 *     on disk   version 1: 4;  tag 2, permissions 2, number 4 in those for one user or group
 *     told      version 2: 4;  tag 2, permissions 2, number 4
 *
 * False: it makes no sense.
 */
static bool convert_acl(const uint8_t *acl, size_t len_bytes, struct ext_out *out)
{
	size_t off_bytes = sizeof(uint32_t);
	uint8_t told[8];

	if (len_bytes < sizeof(uint32_t) || bytes_get_le32(acl) != ACL_VERSION_ON_DISK)
		return false;
	bytes_put_le32(told, ACL_VERSION_TOLD);
	ext_out_bytes(out, told, sizeof(uint32_t));
	while (off_bytes + sizeof(uint32_t) <= len_bytes) {
		unsigned tag = bytes_get_le16(acl + off_bytes);
		bool has_number = tag == ACL_TAG_USER || tag == ACL_TAG_GROUP;
		size_t entry_bytes = has_number ? sizeof(told) : sizeof(uint32_t);

		if (off_bytes + entry_bytes > len_bytes || out->len_bytes + sizeof(told) > EXT_XATTR_MOST_BYTES)
			return false;
		memcpy(told, acl + off_bytes, sizeof(uint32_t));
		bytes_put_le32(told + 4, has_number ? bytes_get_le32(acl + off_bytes + 4) : ACL_NO_NUMBER);
		ext_out_bytes(out, told, sizeof(told));
		off_bytes += entry_bytes;
	}
	return off_bytes == len_bytes;
}

/* 0, or what the library says. */
static errcode_t find_xattr(struct ext2_xattr_handle *handle, const char *name, void **ret_value, size_t *ret_len_bytes)
{
	unsigned flags = XATTR_HANDLE_FLAG_RAW;
	errcode_t problem = ext2fs_xattrs_flags(handle, &flags, NULL);

	return problem != 0 ? problem : ext2fs_xattr_get(handle, name, ret_value, ret_len_bytes);
}

int ext_value_get_xattr(struct ext_worker *worker, const struct ext_inode *inode, const char *name, struct ext_out *out,
			struct failure *failure)
{
	AUTO(close_xattrs) struct ext2_xattr_handle *handle = NULL;
	AUTO_FREE void *value = NULL;
	size_t len_bytes = 0;
	errcode_t problem;
	int error = open_xattrs(worker, inode, &handle, failure);

	if (error < 0)
		return error;
	problem = is_shown(name) ? find_xattr(handle, name, &value, &len_bytes) : EXT2_ET_EA_KEY_NOT_FOUND;
	if (problem == EXT2_ET_EA_KEY_NOT_FOUND)
		return fail(failure, -ENODATA, "inode %u has no attribute %s", inode->ino, name);
	if (problem != 0)
		return ext_fail(failure, problem, "attribute %s of inode %u", name, inode->ino);
	if (len_bytes > EXT_XATTR_MOST_BYTES)
		return fail(failure, -EIO, "attribute %s of inode %u is longer than one can be", name, inode->ino);
	if (!is_acl(name))
		ext_out_bytes(out, value, len_bytes);
	else if (!convert_acl(value, len_bytes, out))
		return fail(failure, -EIO, "attribute %s of inode %u is no list of rights", name, inode->ino);
	return 0;
}

/* ------------------------------------------------------------- inline data */

int ext_value_inline(struct ext_worker *worker, const struct ext_inode *inode, uint8_t **ret_data,
		     size_t *ret_len_bytes, struct failure *failure)
{
	AUTO(close_xattrs) struct ext2_xattr_handle *handle = NULL;
	AUTO_FREE void *rest = NULL;
	uint8_t *data;
	size_t rest_bytes = 0;
	errcode_t problem;
	int error = open_xattrs(worker, inode, &handle, failure);

	if (error < 0)
		return error;
	problem = ext2fs_xattr_get(handle, INLINE_ATTRIBUTE, &rest, &rest_bytes);
	if (problem != 0 && problem != EXT2_ET_EA_KEY_NOT_FOUND)
		return ext_fail(failure, problem, "data in inode %u", inode->ino);
	if (rest_bytes > EXT_XATTR_MOST_BYTES)
		return fail(failure, -EIO, "inode %u is damaged: it has more data than an inode can hold", inode->ino);
	data = malloc(INLINE_BYTES + rest_bytes);
	if (data == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	memcpy(data, inode->raw->i_block, INLINE_BYTES);
	if (rest_bytes > 0)
		memcpy(data + INLINE_BYTES, rest, rest_bytes);
	*ret_data = data;
	*ret_len_bytes = INLINE_BYTES + rest_bytes;
	return 0;
}

/* ---------------------------------------------------------- symbolic links */

/* Whether the target stands where others have the places of their content. */
static bool is_fast_link(const struct ext_worker *worker, const struct ext_inode *inode)
{
	const struct ext2_inode_large *raw = inode->raw;
	uint64_t value_sectors = 0;

	if (ext2fs_has_feature_ea_inode(worker->fs->super))
		return raw->i_size < FAST_LINK_BYTES;
	if (ext2fs_file_acl_block(worker->fs, (const struct ext2_inode *)raw) != 0)
		value_sectors = (worker->fs->blocksize / 512U) << worker->fs->cluster_ratio_bits;
	return raw->i_size <= FAST_LINK_BYTES && raw->i_blocks == value_sectors;
}

/* A target on disk, in the file's first block. */
static int read_slow_link(struct ext_worker *worker, const struct ext_inode *inode, uint8_t *target, size_t len_bytes,
			  struct failure *failure)
{
	struct ext_piece piece;
	uint64_t end_block;
	size_t count = 0;
	errcode_t problem;
	int error = ext_map_read(worker, inode, 0, EXT_MAP_FOR_LIBRARY, &piece, 1, &count, &end_block, failure);

	if (error < 0)
		return error;
	if (count == 0 || piece.off_bytes != 0 || piece.kind != EXT_PIECE_DATA || piece.len_bytes < len_bytes)
		return fail(failure, -EIO, "inode %u is damaged: a symbolic link without a target", inode->ino);
	problem = ext_io_read(worker->io, target, len_bytes, piece.place_bytes);
	return problem == 0 ? 0 : ext_fail(failure, problem, "symbolic link, inode %u", inode->ino);
}

static int read_inline_link(struct ext_worker *worker, const struct ext_inode *inode, uint8_t *target, size_t len_bytes,
			    struct failure *failure)
{
	AUTO_FREE uint8_t *data = NULL;
	size_t there_bytes;
	int error = ext_value_inline(worker, inode, &data, &there_bytes, failure);

	if (error < 0)
		return error;
	if (there_bytes < len_bytes)
		return fail(failure, -EIO, "inode %u is damaged: a symbolic link without a target", inode->ino);
	memcpy(target, data, len_bytes);
	return 0;
}

static int read_raw_link(struct ext_worker *worker, const struct ext_inode *inode, uint8_t *target, size_t len_bytes,
			 struct failure *failure)
{
	if ((inode->raw->i_flags & EXT4_INLINE_DATA_FL) != 0)
		return read_inline_link(worker, inode, target, len_bytes, failure);
	if (!is_fast_link(worker, inode))
		return read_slow_link(worker, inode, target, len_bytes, failure);
	if (len_bytes > FAST_LINK_BYTES)
		return fail(failure, -EIO, "inode %u is damaged: a symbolic link longer than its target", inode->ino);
	memcpy(target, inode->raw->i_block, len_bytes);
	return 0;
}

/* An encrypted one is shown in the way of encrypted names. */
static int show_secret_link(const struct ext_inode *inode, const uint8_t *raw, size_t raw_bytes, char *target,
			    size_t *ret_len_bytes, struct failure *failure)
{
	size_t secret_bytes = raw_bytes < SECRET_HEAD_BYTES ? 0 : bytes_get_le16(raw);

	if (secret_bytes == 0 || secret_bytes > raw_bytes - SECRET_HEAD_BYTES)
		return fail(failure, -EIO, "inode %u is damaged: an encrypted symbolic link without a target",
			    inode->ino);
	*ret_len_bytes = ext_name_encode(0, 0, raw + SECRET_HEAD_BYTES, secret_bytes, target);
	return 0;
}

int ext_value_read_link(struct ext_worker *worker, const struct ext_inode *inode,
			char ret_target[EXT_TARGET_MOST_BYTES + 1], size_t *ret_len_bytes, struct failure *failure)
{
	uint8_t raw[EXT_TARGET_MOST_BYTES + 1];
	size_t len_bytes = inode->raw->i_size;
	int error;

	if (len_bytes == 0 || len_bytes > EXT_TARGET_MOST_BYTES || len_bytes > worker->fs->blocksize)
		return fail(failure, -EIO, "inode %u is damaged: a symbolic link of %zu bytes", inode->ino, len_bytes);
	error = read_raw_link(worker, inode, raw, len_bytes, failure);
	if (error < 0)
		return error;
	if ((inode->raw->i_flags & EXT4_ENCRYPT_FL) != 0)
		return show_secret_link(inode, raw, len_bytes, ret_target, ret_len_bytes, failure);
	*ret_len_bytes = strnlen((const char *)raw, len_bytes); /* the kernel takes it as a string */
	if (*ret_len_bytes == 0)
		return fail(failure, -EIO, "inode %u is damaged: a symbolic link to nothing", inode->ino);
	memcpy(ret_target, raw, *ret_len_bytes);
	return 0;
}

/* ------------------------------------------------------------------- space */

/* Clusters that hold no content and never will: superblocks, descriptors, bitmaps, tables of inodes, the journal. */
static uint64_t count_overhead(struct ext_worker *worker)
{
	ext2_filsys fs = worker->fs;
	uint64_t blocks = fs->super->s_first_data_block;

	if (fs->super->s_overhead_clusters != 0)
		return fs->super->s_overhead_clusters;
	for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
		blk64_t super_block, old_descriptors, new_descriptors;
		blk_t used_blocks;

		(void)ext2fs_super_and_bgd_loc2(fs, group, &super_block, &old_descriptors, &new_descriptors,
						&used_blocks);
		blocks += used_blocks + 2U + fs->inode_blocks_per_group;
	}
	if (ext2fs_has_feature_journal(fs->super) && fs->super->s_journal_inum != 0) {
		struct ext2_inode journal;

		if (ext2fs_read_inode(fs, fs->super->s_journal_inum, &journal) == 0)
			blocks += EXT2_I_SIZE(&journal) / fs->blocksize;
	}
	return blocks >> fs->cluster_ratio_bits;
}

static void count_free(struct ext_worker *worker, struct fsreader_statfs *statfs)
{
	ext2_filsys fs = worker->fs;

	for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
		statfs->free_blocks += ext2fs_bg_free_blocks_count(fs, group); /* clusters, so far */
		statfs->free_files += ext2fs_bg_free_inodes_count(fs, group);
	}
	statfs->free_blocks <<= fs->cluster_ratio_bits;
}

/* Some room is kept for what is promised and not there yet, in addition to what is kept for root. */
static uint64_t count_kept(const struct ext_worker *worker)
{
	ext2_filsys fs = worker->fs;
	uint64_t clusters = ext2fs_blocks_count(fs->super) >> fs->cluster_ratio_bits;
	uint64_t reserve = clusters / RESERVE_SHARE;

	if (!ext2fs_has_feature_extents(fs->super))
		reserve = 0;
	if (reserve > RESERVE_MOST_CLUSTERS)
		reserve = RESERVE_MOST_CLUSTERS;
	return ext2fs_r_blocks_count(fs->super) + (reserve << fs->cluster_ratio_bits);
}

int ext_value_statfs(struct ext_worker *worker, struct fsreader_statfs *ret_statfs, struct failure *failure)
{
	ext2_filsys fs = worker->fs;

	(void)failure;
	if (!worker->has_statfs) {
		struct fsreader_statfs statfs = {.block_bytes = fs->blocksize, .files = fs->super->s_inodes_count};
		uint64_t all = ext2fs_blocks_count(fs->super), overhead = count_overhead(worker)
									  << fs->cluster_ratio_bits;
		uint64_t kept = count_kept(worker);

		statfs.blocks = overhead < all ? all - overhead : 0;
		count_free(worker, &statfs);
		if (statfs.free_blocks > all) /* counts of damaged descriptors */
			statfs.free_blocks = all;
		statfs.available_blocks = statfs.free_blocks > kept ? statfs.free_blocks - kept : 0;
		worker->statfs = statfs;
		worker->has_statfs = true;
	}
	*ret_statfs = worker->statfs;
	return 0;
}
