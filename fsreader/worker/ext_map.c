/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a file's content lies: a tree of extents, or blocks named one by one, directly and over up to three levels of
 * blocks of names.
 *
 * Both are walked from any block on, and the walk ends when there is no more room for what it finds: whoever asks, asks
 * again from there. So no answer is larger, and no file costs more for an answer, than was agreed on.
 *
 * Pieces next to each other in the file and on disk become one. For the client, blocks that a journal has in another
 * place are told by that place; those are pieces of their own if the journal had to escape them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <ext2fs/ext2fs.h>
#include <ext2fs/ext3_extents.h>

#include "common/bytes.h"
#include "fsreader/worker/ext_worker.h"

enum { UNWRITTEN_FROM_LEN = 32768, DIRECT_BLOCKS = 12 };

enum step { STEP_ON, STEP_FULL, STEP_BAD };

struct walk {
	struct ext_worker *worker;
	const struct ext_inode *inode;
	enum ext_map_places places;
	uint64_t first_block; /* what ends before isn't wanted */
	uint64_t next_block;  /* nothing may begin before */
	uint64_t stop_block;  /* where the walk ended for want of room */
	struct ext_piece *pieces;
	size_t most, count;
};

/* ------------------------------------------------------------------ pieces */

static bool is_in_file_system(const struct ext_worker *worker, uint64_t block, uint64_t count)
{
	uint64_t first = worker->fs->super->s_first_data_block, end = ext2fs_blocks_count(worker->fs->super);

	return block >= first && block < end && count <= end - block;
}

static enum step add_piece(struct walk *walk, uint64_t block, uint64_t count, uint64_t place, enum ext_piece_kind kind)
{
	uint64_t block_bytes = walk->worker->fs->blocksize;
	struct ext_piece *last = walk->count == 0 ? NULL : &walk->pieces[walk->count - 1];
	const struct ext_piece piece = {.off_bytes = block * block_bytes,
					.len_bytes = count * block_bytes,
					.place_bytes = kind == EXT_PIECE_ZEROS ? 0 : place * block_bytes,
					.kind = kind};

	if (last != NULL && last->kind == piece.kind && kind != EXT_PIECE_ESCAPED &&
	    last->off_bytes + last->len_bytes == piece.off_bytes &&
	    (kind == EXT_PIECE_ZEROS || last->place_bytes + last->len_bytes == piece.place_bytes)) {
		last->len_bytes += piece.len_bytes;
		return STEP_ON;
	}
	if (walk->count == walk->most) {
		walk->stop_block = block;
		return STEP_FULL;
	}
	walk->pieces[walk->count++] = piece;
	return STEP_ON;
}

/* Blocks that the journal has elsewhere are told by that place. */
static enum step add_for_client(struct walk *walk, uint64_t block, uint64_t count, uint64_t place)
{
	enum step step = STEP_ON;

	while (count > 0 && step == STEP_ON) {
		const struct ext_replaced *next = ext_overlay_find(&walk->worker->overlay, place);
		uint64_t run = next == NULL || next->block - place > count ? count : next->block - place;

		if (run == 0) {
			run = 1;
			step = add_piece(walk, block, 1, next->place,
					 next->is_escaped ? EXT_PIECE_ESCAPED : EXT_PIECE_DATA);
		} else {
			step = add_piece(walk, block, run, place, EXT_PIECE_DATA);
		}
		block += run;
		place += run;
		count -= run;
	}
	return step;
}

/* `count` blocks of the file, which are said to lie at `place`. */
static enum step add_run(struct walk *walk, uint64_t block, uint64_t count, uint64_t place, bool is_unwritten)
{
	if (block < walk->next_block || count == 0 || count > UINT32_MAX || block > UINT32_MAX ||
	    !is_in_file_system(walk->worker, place, count))
		return STEP_BAD;
	walk->next_block = block + count;
	if (block + count <= walk->first_block)
		return STEP_ON;
	if (block < walk->first_block) { /* what comes before could take all the room */
		uint64_t skip = walk->first_block - block;

		block += skip;
		place += skip;
		count -= skip;
	}
	if (is_unwritten)
		return add_piece(walk, block, count, 0, EXT_PIECE_ZEROS);
	if (walk->places == EXT_MAP_FOR_LIBRARY)
		return add_piece(walk, block, count, place, EXT_PIECE_DATA);
	return add_for_client(walk, block, count, place);
}

/* One for each height, so that the way down stays in memory. */
static errcode_t have_buffer(struct ext_worker *worker, unsigned height)
{
	if (worker->buffers[height] == NULL)
		worker->buffers[height] = malloc(worker->fs->blocksize);
	return worker->buffers[height] == NULL ? EXT2_ET_NO_MEMORY : 0;
}

static int fail_of_step(const struct walk *walk, enum step step, struct failure *failure)
{
	if (step != STEP_BAD)
		return 0;
	return fail(failure, -EIO, "inode %u is damaged: its content lies where there is none, or in no order",
		    walk->inode->ino);
}

/* ----------------------------------------------------------------- extents */

/* A block of the tree, or what of it is in the inode. */
struct node {
	const uint8_t *data;
	struct ext3_extent_header header;
};

/* False: it is none, or not of this height above the leaves. */
static bool open_node(struct node *node, const uint8_t *data, size_t len_bytes, unsigned height)
{
	node->data = data;
	memcpy(&node->header, data, sizeof(node->header));
	return node->header.eh_magic == EXT3_EXT_MAGIC && node->header.eh_depth == height &&
	       node->header.eh_entries <= node->header.eh_max &&
	       node->header.eh_max <= (len_bytes - sizeof(node->header)) / sizeof(struct ext3_extent);
}

static enum step walk_leaf(struct walk *walk, const struct node *node)
{
	enum step step = STEP_ON;

	for (unsigned i = 0; i < node->header.eh_entries && step == STEP_ON; i++) {
		struct ext3_extent extent;
		bool is_unwritten;

		memcpy(&extent, node->data + sizeof(node->header) + i * sizeof(extent), sizeof(extent));
		is_unwritten = extent.ee_len > UNWRITTEN_FROM_LEN;
		step = add_run(walk, extent.ee_block, is_unwritten ? extent.ee_len - UNWRITTEN_FROM_LEN : extent.ee_len,
			       extent.ee_start | (uint64_t)extent.ee_start_hi << 32, is_unwritten);
	}
	return step;
}

static struct ext3_extent_idx get_index(const struct node *node, unsigned i)
{
	struct ext3_extent_idx index;

	memcpy(&index, node->data + sizeof(node->header) + i * sizeof(index), sizeof(index));
	return index;
}

static int read_node(struct walk *walk, const struct ext3_extent_idx *index, unsigned height, struct node *node,
		     struct failure *failure)
{
	struct ext_worker *worker = walk->worker;
	uint32_t block_bytes = worker->fs->blocksize;
	uint64_t place = index->ei_leaf | (uint64_t)index->ei_leaf_hi << 32;
	errcode_t problem = is_in_file_system(worker, place, 1) ? have_buffer(worker, height) : EXT2_ET_EXTENT_LEAF_BAD;
	uint8_t *data = worker->buffers[height];

	if (problem == 0)
		problem = ext_io_read(worker->io, data, block_bytes, place * block_bytes);
	if (problem == 0 && !open_node(node, data, block_bytes, height))
		problem = EXT2_ET_EXTENT_HEADER_BAD;
	if (problem == 0 &&
	    !ext2fs_extent_block_csum_verify(worker->fs, walk->inode->ino, (struct ext3_extent_header *)(void *)data))
		problem = EXT2_ET_EXTENT_CSUM_INVALID;
	return problem == 0 ? 0 : ext_fail(failure, problem, "inode %u", walk->inode->ino);
}

static int walk_node(struct walk *walk, const struct node *node, enum step *step, struct failure *failure)
{
	unsigned height = node->header.eh_depth;
	int error = 0;

	if (height == 0) {
		*step = walk_leaf(walk, node);
		return fail_of_step(walk, *step, failure);
	}
	for (unsigned i = 0; i < node->header.eh_entries && *step == STEP_ON && error == 0; i++) {
		struct ext3_extent_idx index = get_index(node, i);
		struct node below;

		if (i + 1 < node->header.eh_entries && get_index(node, i + 1).ei_block <= walk->first_block)
			continue; /* all of it comes before */
		error = read_node(walk, &index, height - 1, &below, failure);
		if (error == 0)
			error = walk_node(walk, &below, step, failure);
	}
	return error;
}

static int walk_extents(struct walk *walk, enum step *ret_step, struct failure *failure)
{
	const uint8_t *root = (const uint8_t *)walk->inode->raw->i_block;
	struct ext3_extent_header header;
	struct node node;

	memcpy(&header, root, sizeof(header));
	if (header.eh_depth >= EXT_HEIGHTS ||
	    !open_node(&node, root, sizeof(walk->inode->raw->i_block), header.eh_depth))
		return ext_fail(failure, EXT2_ET_EXTENT_HEADER_BAD, "inode %u", walk->inode->ino);
	*ret_step = STEP_ON;
	return walk_node(walk, &node, ret_step, failure);
}

/* ------------------------------------------------------------------ blocks */

static errcode_t read_names(struct ext_worker *worker, unsigned height, uint64_t block, const uint32_t **ret_names)
{
	uint32_t block_bytes = worker->fs->blocksize;
	errcode_t problem = is_in_file_system(worker, block, 1) ? have_buffer(worker, height) : EXT2_ET_BAD_IND_BLOCK;

	if (problem != 0)
		return problem;
	*ret_names = (const uint32_t *)(const void *)worker->buffers[height];
	return ext_io_read(worker->io, worker->buffers[height], block_bytes, block * block_bytes);
}

/* What is below one name: the block itself (height 0), or a block of names. `block` is the first of the file below it.
 */
static int walk_name(struct walk *walk, unsigned height, uint64_t place, uint64_t block, uint64_t end_block,
		     enum step *step, struct failure *failure)
{
	uint64_t names_in_block = walk->worker->fs->blocksize / sizeof(uint32_t), below = 1;
	const uint32_t *names;
	errcode_t problem;
	int error = 0;

	for (unsigned i = 0; i < height; i++)
		below *= names_in_block;
	if (place == 0 || block >= end_block || block + below <= walk->first_block)
		return 0;
	if (height == 0) {
		*step = add_run(walk, block, 1, place, false);
		return fail_of_step(walk, *step, failure);
	}
	problem = read_names(walk->worker, height - 1, place, &names);
	if (problem != 0)
		return ext_fail(failure, problem, "inode %u", walk->inode->ino);
	below /= names_in_block;
	for (uint64_t i = 0; i < names_in_block && *step == STEP_ON && error == 0; i++)
		error = walk_name(walk, height - 1, names[i], block + i * below, end_block, step, failure);
	return error;
}

static int walk_blocks(struct walk *walk, enum step *ret_step, struct failure *failure)
{
	uint64_t block_bytes = walk->worker->fs->blocksize, block = 0, below = 1;
	uint64_t size_bytes = ext_inode_size_bytes(walk->worker, walk->inode);
	uint64_t end_block = size_bytes / block_bytes + (size_bytes % block_bytes != 0);
	int error = 0;

	*ret_step = STEP_ON;
	for (unsigned i = 0; i < EXT2_N_BLOCKS && *ret_step == STEP_ON && error == 0; i++) {
		unsigned height = i < DIRECT_BLOCKS ? 0 : i - DIRECT_BLOCKS + 1;

		if (height > 0)
			below *= block_bytes / sizeof(uint32_t);
		error = walk_name(walk, height, walk->inode->raw->i_block[i], block, end_block, ret_step, failure);
		block += below;
	}
	return error;
}

/* --------------------------------------------------------------------- all */

int ext_map_read(struct ext_worker *worker, const struct ext_inode *inode, uint64_t first_block,
		 enum ext_map_places places, struct ext_piece *pieces, size_t most, size_t *ret_count,
		 uint64_t *ret_end_block, struct failure *failure)
{
	struct walk walk = {.worker = worker,
			    .inode = inode,
			    .places = places,
			    .first_block = first_block,
			    .pieces = pieces,
			    .most = most};
	enum step step = STEP_ON;
	int error = (inode->raw->i_flags & EXT4_EXTENTS_FL) != 0 ? walk_extents(&walk, &step, failure)
								 : walk_blocks(&walk, &step, failure);

	if (error < 0)
		return error;
	*ret_count = walk.count;
	*ret_end_block = step == STEP_FULL ? walk.stop_block : UINT64_MAX;
	return 0;
}

static bool add_extents_of_inode(struct walk *walk)
{
	struct node node;

	return open_node(&node, (const uint8_t *)walk->inode->raw->i_block, sizeof(walk->inode->raw->i_block), 0) &&
	       walk_leaf(walk, &node) == STEP_ON;
}

static bool add_blocks_of_inode(struct walk *walk)
{
	const uint32_t *blocks = walk->inode->raw->i_block;
	enum step step = STEP_ON;

	if (blocks[EXT2_IND_BLOCK] != 0 || blocks[EXT2_DIND_BLOCK] != 0 || blocks[EXT2_TIND_BLOCK] != 0)
		return false;
	for (unsigned i = 0; i < DIRECT_BLOCKS && step == STEP_ON; i++) {
		if (blocks[i] != 0)
			step = add_run(walk, i, 1, blocks[i], false);
	}
	return step == STEP_ON;
}

bool ext_map_read_inode(struct ext_worker *worker, const struct ext_inode *inode, struct ext_piece *pieces, size_t most,
			uint32_t *ret_count)
{
	struct walk walk = {
		.worker = worker, .inode = inode, .places = EXT_MAP_FOR_CLIENT, .pieces = pieces, .most = most};
	bool is_all =
		(inode->raw->i_flags & EXT4_EXTENTS_FL) != 0 ? add_extents_of_inode(&walk) : add_blocks_of_inode(&walk);

	*ret_count = is_all ? (uint32_t)walk.count : 0;
	return is_all;
}
