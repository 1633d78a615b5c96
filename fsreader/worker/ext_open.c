/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening: what the superblock says is looked at before libext2fs believes it, so that it neither divides by zero nor
 * takes memory by numbers that make no sense. What a mount would refuse is refused here, with the reason.
 *
 * A file system that wasn't cleanly unmounted is opened twice: once to find its journal, and then as the journal says
 * it is, superblock and descriptors included.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum {
	SUPERBLOCK_OFF_BYTES = 1024,
	SUPERBLOCK_BYTES = 1024,
	LOG_BLOCK_MOST = 6, /* 64 KiB */
	LOG_CLUSTER_MOST = 19,
	INODE_BYTES_LEAST = 128,
	DESCRIPTOR_BYTES_64BIT = 64,
	OVERLAY_MOST_BYTES = 128 * 1024 * 1024, /* of what fast commits change */
};

/* The library says nothing of MMP in its header, which doesn't matter to who only reads. */
static const uint32_t known_features = EXT2_LIB_FEATURE_INCOMPAT_SUPP | EXT4_FEATURE_INCOMPAT_MMP;

/* NULL, or why nobody should go on. */
static const char *find_flaw_of_sizes(struct ext2_super_block *super)
{
	uint64_t block_bytes = (uint64_t)EXT2_MIN_BLOCK_SIZE << super->s_log_block_size;
	uint32_t inode_bytes = super->s_rev_level == EXT2_GOOD_OLD_REV ? INODE_BYTES_LEAST : super->s_inode_size;
	bool has_bigalloc = ext2fs_has_feature_bigalloc(super);

	if (super->s_log_block_size > LOG_BLOCK_MOST)
		return "a block size that doesn't exist";
	if (inode_bytes < INODE_BYTES_LEAST || inode_bytes > block_bytes || (inode_bytes & (inode_bytes - 1)) != 0)
		return "a size of inodes that doesn't exist";
	if (has_bigalloc ? super->s_log_cluster_size < super->s_log_block_size ||
				   super->s_log_cluster_size > LOG_CLUSTER_MOST
			 : super->s_log_cluster_size != super->s_log_block_size)
		return "a size of clusters that doesn't exist";
	if (super->s_inodes_per_group == 0 || super->s_inodes_per_group > 8 * block_bytes ||
	    super->s_inodes_per_group < block_bytes / inode_bytes)
		return "a number of inodes in a group that can't be";
	if (super->s_clusters_per_group == 0 || super->s_clusters_per_group > 8 * block_bytes ||
	    super->s_blocks_per_group != (uint64_t)super->s_clusters_per_group
						 << (super->s_log_cluster_size - super->s_log_block_size))
		return "a number of blocks in a group that can't be";
	if (ext2fs_has_feature_64bit(super) &&
	    (super->s_desc_size < DESCRIPTOR_BYTES_64BIT || super->s_desc_size > 1024 ||
	     (super->s_desc_size & (super->s_desc_size - 1)) != 0))
		return "a size of descriptors that doesn't exist";
	return NULL;
}

static const char *find_flaw_of_counts(struct ext2_super_block *super, uint64_t source_bytes)
{
	uint64_t block_bytes = (uint64_t)EXT2_MIN_BLOCK_SIZE << super->s_log_block_size;
	uint64_t block_count = ext2fs_blocks_count(super);
	uint64_t group_count;

	/* With blocks of 1 KiB the first one is for the boot loader. Clusters begin at block 0 all the same. */
	if (super->s_first_data_block > 1 || (super->s_first_data_block == 1 && block_bytes > EXT2_MIN_BLOCK_SIZE) ||
	    (super->s_first_data_block == 0 && block_bytes == EXT2_MIN_BLOCK_SIZE &&
	     !ext2fs_has_feature_bigalloc(super)) ||
	    block_count <= (uint64_t)super->s_first_data_block + 1)
		return "a number of blocks that can't be";
	if (block_count > source_bytes / block_bytes)
		return "more blocks than its partition has; it was cut off, or shrunk in the wrong order";
	group_count =
		(block_count - super->s_first_data_block + super->s_blocks_per_group - 1) / super->s_blocks_per_group;
	if (group_count > UINT32_MAX || super->s_inodes_count != group_count * super->s_inodes_per_group)
		return "a number of inodes that can't be";
	if (super->s_reserved_gdt_blocks > block_bytes / sizeof(uint32_t))
		return "more room for descriptors than there can be";
	return NULL;
}

static int judge_superblock(struct ext2_super_block *super, uint64_t source_bytes, struct failure *failure)
{
	const char *flaw;

	if (super->s_magic != EXT2_SUPER_MAGIC)
		return fail(failure, -EINVAL, "there is no ext2, ext3 or ext4");
	if (super->s_rev_level > EXT2_DYNAMIC_REV)
		return fail(failure, -ENOTSUP, "revision %u of its format is unknown", super->s_rev_level);
	if (ext2fs_has_feature_journal_dev(super))
		return fail(failure, -ENOTSUP, "this is the journal of another file system");
	if ((super->s_feature_incompat & ~known_features) != 0)
		return fail(failure, -ENOTSUP, "it has features that are unknown here (0x%x)",
			    super->s_feature_incompat & ~known_features);
	flaw = find_flaw_of_sizes(super);
	if (flaw == NULL)
		flaw = find_flaw_of_counts(super, source_bytes);
	return flaw == NULL ? 0 : fail(failure, -EIO, "its superblock is damaged: it tells of %s", flaw);
}

static int judge_source(struct ext_worker *worker, struct failure *failure)
{
	struct ext2_super_block super;
	errcode_t problem;

	_Static_assert(sizeof(super) == SUPERBLOCK_BYTES, "as on disk");
	problem = ext_io_read(worker->io, &super, sizeof(super), SUPERBLOCK_OFF_BYTES);
	if (problem == EXT2_ET_SHORT_READ)
		return fail(failure, -EINVAL, "there is no ext2, ext3 or ext4: it is too small");
	if (problem != 0)
		return ext_fail(failure, problem, "its superblock");
	return judge_superblock(&super, ext_io_size_bytes(worker->io), failure);
}

/* ------------------------------------------------------------------ opening */

static void close_file_system(struct ext_worker *worker)
{
	if (worker->fs != NULL)
		ext2fs_free(worker->fs);
	worker->fs = NULL;
}

static int open_file_system(struct ext_worker *worker, int flags, struct failure *failure)
{
	errcode_t problem;
	int error = judge_source(worker, failure);

	if (error < 0)
		return error;
	problem = ext_io_open_fs(worker->io, flags, &worker->fs);
	return problem == 0 ? 0 : ext_fail(failure, problem, "it can't be opened");
}

static int make_room(struct ext_worker *worker, struct failure *failure)
{
	worker->group_states = calloc(worker->fs->group_desc_count, 1);
	worker->block = malloc(worker->fs->blocksize);
	if (worker->group_states == NULL || worker->block == NULL || ext_inode_make(worker, &worker->inode) != 0 ||
	    ext_inode_make(worker, &worker->found) != 0)
		return fail(failure, -ENOMEM, "out of memory");
	return 0;
}

static void free_room(struct ext_worker *worker)
{
	free(worker->group_states);
	free(worker->block);
	free(worker->inode.raw);
	free(worker->found.raw);
	worker->group_states = NULL;
	worker->block = NULL;
	worker->inode.raw = NULL;
	worker->found.raw = NULL;
	for (unsigned i = 0; i < EXT_HEIGHTS; i++) { /* their size goes by the block's */
		free(worker->buffers[i]);
		worker->buffers[i] = NULL;
	}
}

/* The same file system once more, as seen through the overlay. */
static int open_again(struct ext_worker *worker, int flags, struct failure *failure)
{
	int error;

	close_file_system(worker);
	free_room(worker);
	error = open_file_system(worker, flags, failure);
	return error == 0 ? make_room(worker, failure) : error;
}

static int apply_fast_commits(struct ext_worker *worker, const struct ext_fast *fast, struct failure *failure)
{
	int error;

	ext_io_allow_writes(worker->io, OVERLAY_MOST_BYTES / worker->fs->blocksize);
	error = open_again(worker, EXT2_FLAG_RW, failure);
	if (error == 0)
		error = ext_fast_apply(worker, fast, failure);
	ext_io_allow_writes(worker->io, 0);
	worker->replayed_blocks = (uint32_t)worker->overlay.count;
	return error == 0 ? open_again(worker, 0, failure) : error;
}

static int recover(struct ext_worker *worker, struct failure *failure)
{
	AUTO(ext_fast_free) struct ext_fast fast = {.tags = NULL};
	int error = ext_journal_replay(worker, &fast, failure);

	if (error < 0 || (worker->overlay.count == 0 && fast.valid_bytes == 0))
		return error;
	ext_io_lay_over(worker->io, &worker->overlay);
	return fast.valid_bytes > 0 ? apply_fast_commits(worker, &fast, failure) : open_again(worker, 0, failure);
}

int ext_worker_open(struct ext_worker *worker, struct failure *failure)
{
	int error = open_file_system(worker, 0, failure);

	if (error == 0)
		error = make_room(worker, failure);
	if (error == 0 && ext2fs_has_feature_journal_needs_recovery(worker->fs->super))
		error = recover(worker, failure);
	if (error < 0)
		close_file_system(worker);
	return error;
}
