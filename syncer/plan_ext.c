/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which blocks an ext2, ext3 or ext4 uses.
 *
 * A block that its bitmap calls free and that something needs is lost data, so the maps are believed only when
 * everything that could make them stale or wrong is ruled out:
 *
 *   not mounted              the kernel's newer state is in memory
 *   VALID, no errors, no     the journal or the orphan list holds changes that the maps don't show yet; an
 *   RECOVER, no orphans      error means that fsck has something to repair first
 *   only features that are   an unknown feature may put things where the bitmaps don't say
 *   in the lists below
 *   MMP says "clean"         another host may have it mounted
 *   superblock, descriptors, damaged metadata
 *   bitmaps: checksums right
 *   geometry makes sense     sizes are capped before anything is allocated by them
 *   each group: as many free blocks as its descriptor says, after all metadata has been marked as in use
 *
 * What superblock and descriptors tell decides over the whole file system when it is opened; the bitmaps are looked at
 * when the walk comes to them, and a doubtful one makes its group be read whole. The count of free blocks is the
 * check that ext2 and ext3 have, which know no checksums of bitmaps, and the one that catches a bitmap that calls
 * metadata free.
 *
 * The same file system is looked at again while the walk goes on, every few seconds: a superblock that
 * changed, or a mount, ends the trust in what was not walked yet. (A mount changes the superblock at once.)
 *
 * Metadata is in use whatever a bitmap says: superblocks, descriptors with the blocks reserved for their growth, and
 * the bitmaps and inode tables of *all* groups, which with flex_bg lie in other groups than their own. A group flagged
 * BLOCK_UNINIT has no bitmap on disk, and that is all that is in use there.
 *
 * Memory: descriptors (64 bytes a group, so 4 MiB for 8 TiB), the ranges of the metadata, one bitmap, one MiB of
 * cache. File systems above the caps are read whole.
 */
#include "syncer/plan_ext_io.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"

enum {
	MAX_LOG_BLOCK_BYTES = 6,    /* 64 KiB */
	MAX_LOG_CLUSTER_BYTES = 19, /* 512 MiB, as mke2fs has it; both above 1 KiB */
	MAX_GROUPS = 1024 * 1024,
	MAX_LOADS_PER_STEP = 256, /* bitmaps that one step of the walk reads at most */
	MAX_GROUPS_PER_STEP = 8192,
	/*
	 * A free run shorter than this is read along: the read that it would split costs more than its bytes, and
	 * half a chunk of the store is not saved by it. What it holds then is what the source has there.
	 */
	MIN_LEFT_OUT_BYTES = 32 * 1024,
};

static const uint64_t MAX_FILE_SYSTEM_BYTES = (uint64_t)64 << 40;
static const double LOOK_AGAIN_SECONDS = 5.0;

static const uint32_t KNOWN_COMPAT =
	EXT2_FEATURE_COMPAT_DIR_PREALLOC | EXT3_FEATURE_COMPAT_HAS_JOURNAL | EXT2_FEATURE_COMPAT_EXT_ATTR |
	EXT2_FEATURE_COMPAT_RESIZE_INODE | EXT2_FEATURE_COMPAT_DIR_INDEX | EXT4_FEATURE_COMPAT_SPARSE_SUPER2 |
	EXT4_FEATURE_COMPAT_FAST_COMMIT | EXT4_FEATURE_COMPAT_STABLE_INODES | EXT4_FEATURE_COMPAT_ORPHAN_FILE;
static const uint32_t KNOWN_RO_COMPAT =
	EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE | EXT4_FEATURE_RO_COMPAT_HUGE_FILE |
	EXT4_FEATURE_RO_COMPAT_GDT_CSUM | EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE |
	EXT4_FEATURE_RO_COMPAT_QUOTA | EXT4_FEATURE_RO_COMPAT_BIGALLOC | EXT4_FEATURE_RO_COMPAT_METADATA_CSUM |
	EXT4_FEATURE_RO_COMPAT_READONLY | EXT4_FEATURE_RO_COMPAT_PROJECT | EXT4_FEATURE_RO_COMPAT_VERITY;
static const uint32_t KNOWN_INCOMPAT =
	EXT2_FEATURE_INCOMPAT_FILETYPE | EXT2_FEATURE_INCOMPAT_META_BG | EXT3_FEATURE_INCOMPAT_EXTENTS |
	EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_MMP | EXT4_FEATURE_INCOMPAT_FLEX_BG |
	EXT4_FEATURE_INCOMPAT_EA_INODE | EXT4_FEATURE_INCOMPAT_CSUM_SEED | EXT4_FEATURE_INCOMPAT_LARGEDIR |
	EXT4_FEATURE_INCOMPAT_INLINE_DATA | EXT4_FEATURE_INCOMPAT_ENCRYPT | EXT4_FEATURE_INCOMPAT_CASEFOLD;

/* The superblock's numbers, after they were found to make sense. */
struct geometry {
	uint32_t block_bytes;
	uint32_t blocks_per_cluster;
	uint32_t blocks_per_group;
	uint32_t first_block; /* of group 0 */
	uint64_t block_count;
	uint32_t group_count;
};

struct plan_ext {
	struct plan_ext_io io; /* the partition; the file system may be smaller */
	char name[64];
	const struct notices *notices;
	bool *is_told;
	struct geometry geometry;
	ext2_filsys fs;
	struct plan_spans metadata; /* blocks: all groups' bitmaps and inode tables */

	/* One group at a time. Bit i is cluster i of the group, set when it is to be read. */
	uint8_t *bitmap;
	size_t bitmap_bytes; /* a multiple of 8 */
	bool has_group;
	uint32_t group;
	uint32_t group_clusters;

	double looked_at_seconds;
};

/* ---------------------------------------------------------------- superblock */

/* NULL when the state and the features allow for trust. */
static const char *judge_state(const uint8_t *super)
{
	uint16_t state = bytes_get_le16(super + 58);
	uint32_t compat = bytes_get_le32(super + 92);
	uint32_t incompat = bytes_get_le32(super + 96);
	uint32_t ro_compat = bytes_get_le32(super + 100);

	if ((incompat & EXT3_FEATURE_INCOMPAT_JOURNAL_DEV) != 0)
		return "an external journal";
	if ((incompat & EXT3_FEATURE_INCOMPAT_RECOVER) != 0 || (state & EXT2_VALID_FS) == 0)
		return "not cleanly unmounted";
	if ((state & EXT2_ERROR_FS) != 0)
		return "it has errors";
	if ((state & EXT3_ORPHAN_FS) != 0 || (ro_compat & EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT) != 0 ||
	    bytes_get_le32(super + 232) != 0)
		return "it has orphaned files to clean up";
	if ((compat & ~KNOWN_COMPAT) != 0 || (incompat & ~KNOWN_INCOMPAT) != 0 || (ro_compat & ~KNOWN_RO_COMPAT) != 0)
		return "unknown feature";
	if (bytes_get_le32(super + 76) > EXT2_DYNAMIC_REV)
		return "unknown revision";
	/* The type goes with the feature. Without this, damage to the feature flags would switch checksums off unseen.
	 */
	if ((ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) == 0 && super[373] != 0)
		return "its superblock makes no sense";
	return NULL;
}

/* NULL when the numbers fit each other and the partition. Nothing is allocated by them before. */
static const char *judge_geometry(const uint8_t *super, uint64_t partition_bytes, struct geometry *ret_geometry)
{
	static const char *const nonsense = "its superblock makes no sense";
	uint32_t log_block_bytes = bytes_get_le32(super + 24);
	uint32_t log_cluster_bytes = bytes_get_le32(super + 28);
	bool has_64bit = (bytes_get_le32(super + 96) & EXT4_FEATURE_INCOMPAT_64BIT) != 0;
	bool has_bigalloc = (bytes_get_le32(super + 100) & EXT4_FEATURE_RO_COMPAT_BIGALLOC) != 0;
	uint64_t blocks_in_group = bytes_get_le32(super + 32);
	uint64_t clusters_in_group = bytes_get_le32(super + 36);
	uint64_t bits_in_block, group_count;
	struct geometry geometry;

	if (log_block_bytes > MAX_LOG_BLOCK_BYTES || log_cluster_bytes < log_block_bytes ||
	    log_cluster_bytes > MAX_LOG_CLUSTER_BYTES || (!has_bigalloc && log_cluster_bytes != log_block_bytes))
		return nonsense;
	geometry.block_bytes = (uint32_t)1024 << log_block_bytes;
	geometry.blocks_per_cluster = (uint32_t)1 << (log_cluster_bytes - log_block_bytes);
	geometry.first_block = geometry.block_bytes == 1024 && !has_bigalloc ? 1 : 0;
	bits_in_block = 8 * (uint64_t)geometry.block_bytes;
	if (blocks_in_group == 0 || clusters_in_group % 8 != 0 || clusters_in_group > bits_in_block ||
	    blocks_in_group != clusters_in_group * geometry.blocks_per_cluster ||
	    bytes_get_le32(super + 20) != geometry.first_block)
		return nonsense;
	geometry.blocks_per_group = (uint32_t)blocks_in_group;

	geometry.block_count = bytes_get_le32(super + 4);
	if (has_64bit)
		geometry.block_count |= (uint64_t)bytes_get_le32(super + 336) << 32;
	if (geometry.block_count <= (uint64_t)geometry.first_block + 1)
		return nonsense;
	if (geometry.block_count > partition_bytes / geometry.block_bytes)
		return "larger than its partition";
	group_count = (geometry.block_count - geometry.first_block + blocks_in_group - 1) / blocks_in_group;
	if (geometry.block_count > MAX_FILE_SYSTEM_BYTES / geometry.block_bytes || group_count > MAX_GROUPS)
		return "too large for its maps to be held in memory";
	geometry.group_count = (uint32_t)group_count;
	if (has_64bit && bytes_get_le16(super + 254) != EXT2_MIN_DESC_SIZE_64BIT)
		return nonsense;
	if (bytes_get_le16(super + 206) > geometry.block_bytes / 4) /* blocks reserved for descriptors */
		return nonsense;
	*ret_geometry = geometry;
	return NULL;
}

/* --------------------------------------------------------------- descriptors */

static bool is_in_file_system(const struct geometry *geometry, uint64_t block, uint64_t count)
{
	return block >= geometry->first_block && block < geometry->block_count &&
	       count <= geometry->block_count - block;
}

/*
 * Checks every group's descriptor and collects where all groups' bitmaps and inode tables are. One wrong descriptor is
 * enough to distrust the whole: where its group's metadata lies is unknown then, and it could lie anywhere.
 */
static int look_at_descriptors(struct plan_ext *ext, const char **ret_why, struct failure *failure)
{
	uint64_t table_blocks = ext->fs->inode_blocks_per_group;
	int error = 0;

	for (dgrp_t group = 0; group < ext->fs->group_desc_count && error == 0; group++) {
		uint64_t places[3] = {
			ext2fs_block_bitmap_loc(ext->fs, group),
			ext2fs_inode_bitmap_loc(ext->fs, group),
			ext2fs_inode_table_loc(ext->fs, group),
		};
		if (!ext2fs_group_desc_csum_verify(ext->fs, group)) {
			*ret_why = "a group descriptor's checksum is wrong";
			return 0;
		}
		for (unsigned i = 0; i < 3 && error == 0; i++) {
			uint64_t count = i == 2 ? table_blocks : 1;
			if (!is_in_file_system(&ext->geometry, places[i], count)) {
				*ret_why = "a group descriptor points outside of it";
				return 0;
			}
			error = plan_spans_add(&ext->metadata, places[i], places[i] + count, failure);
		}
	}
	plan_spans_normalise(&ext->metadata);
	return error;
}

/* Multiple mount protection: a block in which a host that has the file system mounted keeps counting. */
static const char *judge_mmp(struct plan_ext *ext)
{
	AUTO_FREE uint8_t *block = NULL;
	uint64_t place = ext->fs->super->s_mmp_block;
	struct mmp_struct *mmp;

	if (!ext2fs_has_feature_mmp(ext->fs->super))
		return NULL;
	block = malloc(ext->geometry.block_bytes);
	if (block == NULL || !is_in_file_system(&ext->geometry, place, 1) ||
	    io_channel_read_blk64(ext->fs->io, place, 1, block) != 0)
		return "its multiple mount protection can't be read";
	mmp = (struct mmp_struct *)(void *)block;
	if (bytes_get_le32(block) != EXT4_MMP_MAGIC || !ext2fs_mmp_csum_verify(ext->fs, mmp) ||
	    bytes_get_le32(block + 4) != EXT4_MMP_SEQ_CLEAN)
		return "in use, by its multiple mount protection";
	return NULL;
}

/* ------------------------------------------------------------------- opening */

/* The part of opening that needs no libext2fs: nothing that the superblock says has been believed before. */
static int judge_superblock(struct plan_ext *ext, const char **ret_why, struct failure *failure)
{
	bool is_mounted = true;
	bool is_bad = false;
	int error;

	if (ext->io.len_bytes < PLAN_EXT_SUPERBLOCK_OFF + PLAN_EXT_SUPERBLOCK_BYTES) {
		*ret_why = "no superblock";
		return 0;
	}
	error = source_range_mounted(ext->io.source, ext->io.off_bytes, ext->io.len_bytes, &is_mounted, failure);
	if (error < 0)
		return error;
	if (is_mounted) {
		*ret_why = "mounted";
		return 0;
	}
	error = plan_read(ext->io.source, ext->io.superblock, PLAN_EXT_SUPERBLOCK_BYTES,
			  ext->io.off_bytes + PLAN_EXT_SUPERBLOCK_OFF, &is_bad, failure);
	if (error < 0)
		return error;
	if (is_bad)
		*ret_why = "its superblock can't be read";
	else if (bytes_get_le16(ext->io.superblock + 56) != EXT2_SUPER_MAGIC)
		*ret_why = "no superblock";
	else
		*ret_why = judge_state(ext->io.superblock);
	if (*ret_why == NULL)
		*ret_why = judge_geometry(ext->io.superblock, ext->io.len_bytes, &ext->geometry);
	return 0;
}

static int open_file_system(struct plan_ext *ext, const char **ret_why, struct failure *failure)
{
	const struct geometry *geometry = &ext->geometry;
	errcode_t problem;

	problem = plan_ext_io_open(&ext->io, &ext->fs);
	if (problem != 0) {
		if (ext->io.lost_code < 0)
			return fail_from(failure, &ext->io.lost);
		if (problem == EXT2_ET_NO_MEMORY)
			return fail(failure, -ENOMEM, "plan: out of memory");
		*ret_why = problem == EXT2_ET_SB_CSUM_INVALID ? "its superblock's checksum is wrong"
							      : "libext2fs can't open it";
		return 0;
	}
	if (ext->fs->blocksize != geometry->block_bytes || ext->fs->group_desc_count != geometry->group_count ||
	    ext2fs_blocks_count(ext->fs->super) != geometry->block_count || ext->fs->inode_blocks_per_group == 0 ||
	    !ext2fs_superblock_csum_verify(ext->fs, (struct ext2_super_block *)(void *)ext->io.superblock)) {
		*ret_why = "its superblock makes no sense";
		return 0;
	}
	*ret_why = judge_mmp(ext);
	if (*ret_why == NULL) {
		int error = look_at_descriptors(ext, ret_why, failure);
		if (error < 0)
			return error;
	}
	return ext->io.lost_code < 0 ? fail_from(failure, &ext->io.lost) : 0;
}

static int make_room(struct plan_ext *ext, struct failure *failure)
{
	uint32_t clusters = ext->geometry.blocks_per_group / ext->geometry.blocks_per_cluster;

	ext->bitmap_bytes = ((size_t)clusters + 63) / 64 * 8;
	/* A bitmap is read as the whole block that it is in. */
	if (ext->bitmap_bytes < ext->geometry.block_bytes)
		ext->bitmap_bytes = ext->geometry.block_bytes;
	ext->bitmap = malloc(ext->bitmap_bytes);
	return ext->bitmap == NULL ? fail(failure, -ENOMEM, "plan: out of memory") : 0;
}

int plan_ext_open(struct source *source, uint64_t off_bytes, uint64_t len_bytes, const char *name,
		  const struct notices *notices, bool *is_told, struct plan_ext **ret_ext, char ret_why[PLAN_WHY_BYTES],
		  struct failure *failure)
{
	struct plan_ext *ext = calloc(1, sizeof(*ext));
	const char *why = NULL;
	int error;

	if (ext == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	ext->io.source = source;
	ext->io.off_bytes = off_bytes;
	ext->io.len_bytes = len_bytes;
	ext->notices = notices;
	ext->is_told = is_told;
	ext->looked_at_seconds = units_monotonic_seconds();
	(void)snprintf(ext->name, sizeof(ext->name), "%s", name); /* cut off when too long */

	error = judge_superblock(ext, &why, failure);
	if (error == 0 && why == NULL)
		error = open_file_system(ext, &why, failure);
	if (error == 0 && why == NULL)
		error = make_room(ext, failure);
	if (error < 0 || why != NULL) {
		plan_ext_close(ext);
		ext = NULL;
	}
	if (error < 0)
		return error;
	(void)snprintf(ret_why, PLAN_WHY_BYTES, "%s", why == NULL ? "" : why); /* all are shorter */
	*ret_ext = ext;
	return 0;
}

void plan_ext_close(struct plan_ext *ext)
{
	if (ext == NULL)
		return;
	if (ext->fs != NULL)
		ext2fs_free(ext->fs);
	plan_ext_io_free(&ext->io);
	plan_spans_free(&ext->metadata);
	free(ext->bitmap);
	free(ext);
}

uint64_t plan_ext_size_bytes(const struct plan_ext *ext)
{
	return ext->geometry.block_count * ext->geometry.block_bytes;
}

/* -------------------------------------------------------------------- bitmap */

static uint64_t bitmap_word(const uint8_t *bitmap, size_t word)
{
	uint64_t value;

	memcpy(&value, bitmap + word * 8, sizeof(value));
	return le64toh(value);
}

static bool is_marked(const uint8_t *bitmap, uint32_t bit)
{
	return (bitmap[bit / 8] >> (bit % 8) & 1) != 0;
}

static void mark_bits(uint8_t *bitmap, uint32_t first, uint32_t end)
{
	while (first < end && first % 8 != 0) {
		bitmap[first / 8] |= (uint8_t)(1u << first % 8);
		first++;
	}
	if (first < end) {
		memset(bitmap + first / 8, 0xff, (end - first) / 8);
		first += (end - first) / 8 * 8;
	}
	for (; first < end; first++)
		bitmap[first / 8] |= (uint8_t)(1u << first % 8);
}

/* The first bit from `from` on that isn't as bit `from` is; `end` when there is none. */
static uint32_t run_end(const uint8_t *bitmap, uint32_t from, uint32_t end)
{
	uint64_t flip = is_marked(bitmap, from) ? UINT64_MAX : 0;
	uint32_t word_first = from / 64 * 64;
	uint64_t others = (bitmap_word(bitmap, from / 64) ^ flip) & (UINT64_MAX << from % 64);

	while (others == 0) {
		word_first += 64;
		if (word_first >= end)
			return end;
		others = bitmap_word(bitmap, word_first / 64) ^ flip;
	}
	word_first += (uint32_t)__builtin_ctzll(others);
	return word_first < end ? word_first : end;
}

static uint32_t count_free(const uint8_t *bitmap, uint32_t end)
{
	uint32_t marked = 0;

	for (uint32_t bit = 0; bit < end; bit += 64) {
		uint64_t word = bitmap_word(bitmap, bit / 64);
		if (end - bit < 64)
			word &= ((uint64_t)1 << (end - bit)) - 1;
		marked += (uint32_t)__builtin_popcountll(word);
	}
	return end - marked;
}

/* -------------------------------------------------------------------- groups */

static uint64_t group_first_block(const struct geometry *geometry, uint32_t group)
{
	return geometry->first_block + (uint64_t)group * geometry->blocks_per_group;
}

static uint64_t group_end_block(const struct geometry *geometry, uint32_t group)
{
	uint64_t end = group_first_block(geometry, group) + geometry->blocks_per_group;

	return end < geometry->block_count ? end : geometry->block_count;
}

/* Marks blocks, as far as they lie in the group, with the clusters that they are in. */
static void mark_blocks(struct plan_ext *ext, uint64_t first, uint64_t end)
{
	const struct geometry *geometry = &ext->geometry;
	uint64_t group_first = group_first_block(geometry, ext->group);
	uint64_t group_end = group_end_block(geometry, ext->group);

	if (first < group_first)
		first = group_first;
	if (end > group_end)
		end = group_end;
	if (first < end)
		mark_bits(ext->bitmap, (uint32_t)((first - group_first) / geometry->blocks_per_cluster),
			  (uint32_t)((end - 1 - group_first) / geometry->blocks_per_cluster) + 1);
}

static void mark_metadata(struct plan_ext *ext)
{
	const struct geometry *geometry = &ext->geometry;
	uint64_t group_end = group_end_block(geometry, ext->group);
	blk64_t super_block = 0, old_descriptors = 0, new_descriptors = 0;
	uint64_t old_count = ext->fs->desc_blocks + (uint64_t)ext->fs->super->s_reserved_gdt_blocks;
	blk_t ignored;

	if (ext2fs_has_feature_meta_bg(ext->fs->super))
		old_count = ext->fs->super->s_first_meta_bg;
	/* Can't fail, it computes. 0 is "none here", but for the superblock of group 0. */
	(void)ext2fs_super_and_bgd_loc2(ext->fs, ext->group, &super_block, &old_descriptors, &new_descriptors,
					&ignored);
	if (super_block != 0 || ext->group == 0)
		mark_blocks(ext, super_block, super_block + 1);
	if (old_descriptors != 0)
		mark_blocks(ext, old_descriptors, old_descriptors + old_count);
	if (new_descriptors != 0)
		mark_blocks(ext, new_descriptors, new_descriptors + 1);

	for (size_t i = plan_spans_find(&ext->metadata, group_first_block(geometry, ext->group));
	     i < ext->metadata.count && ext->metadata.spans[i].first < group_end; i++)
		mark_blocks(ext, ext->metadata.spans[i].first, ext->metadata.spans[i].end);
}

/* Reads the group's own bitmap. NULL, or what is wrong with it. */
static const char *read_bitmap(struct plan_ext *ext)
{
	if (io_channel_read_blk64(ext->fs->io, ext2fs_block_bitmap_loc(ext->fs, ext->group), 1, ext->bitmap) != 0)
		return "its block bitmap can't be read";
	if (!ext2fs_block_bitmap_csum_verify(ext->fs, ext->group, (char *)ext->bitmap,
					     (int)(EXT2_CLUSTERS_PER_GROUP(ext->fs->super) / 8)))
		return "the checksum of its block bitmap is wrong";
	return NULL;
}

/* Free runs that aren't worth leaving out are marked, and the others shrunk to where reads like to start and end. */
static void mark_short_runs(struct plan_ext *ext)
{
	uint64_t cluster_bytes = (uint64_t)ext->geometry.block_bytes * ext->geometry.blocks_per_cluster;
	uint64_t group_bytes =
		ext->io.off_bytes + group_first_block(&ext->geometry, ext->group) * ext->geometry.block_bytes;
	bool can_align = cluster_bytes < PLAN_REQUEST_ALIGNMENT_BYTES && group_bytes % cluster_bytes == 0;
	uint32_t end;

	for (uint32_t first = 0; first < ext->group_clusters; first = end) {
		end = run_end(ext->bitmap, first, ext->group_clusters);
		if (is_marked(ext->bitmap, first))
			continue;
		uint32_t kept_first = first, kept_end = end;
		while (can_align && kept_first < end &&
		       (group_bytes + kept_first * cluster_bytes) % PLAN_REQUEST_ALIGNMENT_BYTES != 0)
			kept_first++;
		while (can_align && kept_end > kept_first &&
		       (group_bytes + kept_end * cluster_bytes) % PLAN_REQUEST_ALIGNMENT_BYTES != 0)
			kept_end--;
		if ((kept_end - kept_first) * cluster_bytes < MIN_LEFT_OUT_BYTES)
			kept_first = kept_end = end;
		mark_bits(ext->bitmap, first, kept_first);
		mark_bits(ext->bitmap, kept_end, end);
	}
}

static int load_group(struct plan_ext *ext, uint32_t group, struct failure *failure)
{
	const struct geometry *geometry = &ext->geometry;
	uint64_t blocks = group_end_block(geometry, group) - group_first_block(geometry, group);
	const char *why = NULL;

	ext->has_group = false;
	ext->group = group;
	ext->group_clusters = (uint32_t)((blocks + geometry->blocks_per_cluster - 1) / geometry->blocks_per_cluster);
	memset(ext->bitmap, 0, ext->bitmap_bytes);
	if (!ext2fs_has_group_desc_csum(ext->fs) || !ext2fs_bg_flags_test(ext->fs, group, EXT2_BG_BLOCK_UNINIT))
		why = read_bitmap(ext);
	if (ext->io.lost_code < 0)
		return fail_from(failure, &ext->io.lost);
	mark_metadata(ext);
	if (why == NULL && count_free(ext->bitmap, ext->group_clusters) != ext2fs_bg_free_blocks_count(ext->fs, group))
		why = "its block bitmap and its count of free blocks differ";
	if (why != NULL) {
		mark_bits(ext->bitmap, 0, ext->group_clusters);
		if (!*ext->is_told)
			notice(ext->notices, NOTICE_WARNING,
			       "%s: block group %" PRIu32 " is read whole: %s; there may be more, run e2fsck",
			       ext->name, group, why);
		*ext->is_told = true;
	}
	mark_short_runs(ext);
	ext->has_group = true;
	return 0;
}

/* ------------------------------------------------------------------ the walk */

/* Has somebody changed or mounted it? */
static int look_again(struct plan_ext *ext, bool *ret_is_lost, struct failure *failure)
{
	double now_seconds = units_monotonic_seconds();
	uint8_t superblock[PLAN_EXT_SUPERBLOCK_BYTES];
	bool is_mounted = true;
	bool is_bad = false;
	int error;

	if (now_seconds - ext->looked_at_seconds < LOOK_AGAIN_SECONDS)
		return 0;
	error = source_range_mounted(ext->io.source, ext->io.off_bytes, ext->io.len_bytes, &is_mounted, failure);
	if (error == 0)
		error = plan_read(ext->io.source, superblock, PLAN_EXT_SUPERBLOCK_BYTES,
				  ext->io.off_bytes + PLAN_EXT_SUPERBLOCK_OFF, &is_bad, failure);
	if (error < 0)
		return error;
	ext->looked_at_seconds = units_monotonic_seconds();
	*ret_is_lost = is_mounted || is_bad || memcmp(superblock, ext->io.superblock, PLAN_EXT_SUPERBLOCK_BYTES) != 0;
	return 0;
}

/* The end of the run that `block` is in, within its group, which is loaded when it isn't yet. */
static int run_in_group(struct plan_ext *ext, uint64_t block, bool *ret_in_use, uint64_t *ret_end_block,
			bool *ret_is_loaded_now, struct failure *failure)
{
	const struct geometry *geometry = &ext->geometry;
	uint32_t group = (uint32_t)((block - geometry->first_block) / geometry->blocks_per_group);
	uint64_t group_first = group_first_block(geometry, group);
	uint64_t group_end = group_end_block(geometry, group);
	uint32_t cluster = (uint32_t)((block - group_first) / geometry->blocks_per_cluster);
	uint64_t end_block;

	*ret_is_loaded_now = !ext->has_group || ext->group != group;
	if (*ret_is_loaded_now) {
		int error = load_group(ext, group, failure);
		if (error < 0)
			return error;
	}
	end_block = group_first +
		    (uint64_t)run_end(ext->bitmap, cluster, ext->group_clusters) * geometry->blocks_per_cluster;
	*ret_in_use = is_marked(ext->bitmap, cluster);
	*ret_end_block = end_block < group_end ? end_block : group_end;
	return 0;
}

/* Goes on into the next groups while they start as this one ended; an empty disk is a few steps. */
static int run_over_groups(struct plan_ext *ext, bool in_use, uint64_t *end_block, struct failure *failure)
{
	const struct geometry *geometry = &ext->geometry;
	unsigned loads = 0;

	for (unsigned groups = 0; groups < MAX_GROUPS_PER_STEP && loads < MAX_LOADS_PER_STEP; groups++) {
		bool next_in_use, is_loaded_now;
		uint64_t next_end;
		int error;

		if (*end_block >= geometry->block_count ||
		    (*end_block - geometry->first_block) % geometry->blocks_per_group != 0)
			return 0;
		error = run_in_group(ext, *end_block, &next_in_use, &next_end, &is_loaded_now, failure);
		if (error < 0)
			return error;
		if (next_in_use != in_use)
			return 0;
		*end_block = next_end;
		loads += is_loaded_now && !ext2fs_bg_flags_test(ext->fs, ext->group, EXT2_BG_BLOCK_UNINIT);
	}
	return 0;
}

int plan_ext_next(struct plan_ext *ext, uint64_t off_bytes, bool *ret_in_use, uint64_t *ret_len_bytes,
		  bool *ret_is_lost, struct failure *failure)
{
	const struct geometry *geometry = &ext->geometry;
	uint64_t block = off_bytes / geometry->block_bytes;
	uint64_t end_block = geometry->first_block;
	bool in_use = true; /* the boot block, before the first group */
	bool is_lost = false;
	bool is_loaded_now;
	int error = look_again(ext, &is_lost, failure);

	if (error == 0 && !is_lost && block >= geometry->first_block) {
		error = run_in_group(ext, block, &in_use, &end_block, &is_loaded_now, failure);
		if (error == 0)
			error = run_over_groups(ext, in_use, &end_block, failure);
	}
	if (error < 0)
		return error;
	*ret_is_lost = is_lost;
	*ret_in_use = in_use;
	*ret_len_bytes = is_lost ? plan_ext_size_bytes(ext) - off_bytes : end_block * geometry->block_bytes - off_bytes;
	return 0;
}
