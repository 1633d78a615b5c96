/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a mount would do first with a file system that wasn't cleanly unmounted: put in place what its journal has.
 * Nothing is put anywhere here. A block of the file system that the journal has a newer content of is read from the
 * journal from then on (the overlay), so that it costs no room, and only the reading of what is in the journal. The
 * format is Linux's JBD2 (Documentation/filesystems/ext4/journal.rst); all numbers are big-endian.
 *
 *   superblock     where the log begins (s_start, 0: it is empty), with which sequence number, which features
 *   descriptor     tags: block of the file system, flags; the contents follow, one block for each tag
 *   revoke         blocks whose older contents must not be put in place: they are something else by now
 *   commit         the transaction is whole
 *
 * A transaction counts if its commit block is there; a log ends at the first block that isn't the next one of it. Then,
 * as the kernel does it:
 *
 *   scan           finds the last transaction that counts; descriptors and commits with wrong checksums end the log, if
 * they are left from an older use of the journal, by their time; if they aren't, the file system can't be mounted
 *   revoke         gathers revoked blocks, with the last sequence number that revoked them
 *   replay         for each tag not revoked by this transaction or a later one: the block of the log is the content
 *
 * Contents have checksums, too, in tags of newer versions. A wrong one means that a mount would fail, so this does.
 * Content that begins with the journal's own magic number has that number zeroed, and a flag in its tag.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum {
	BLOCK_DESCRIPTOR = 1,
	BLOCK_COMMIT = 2,
	BLOCK_SUPER_1 = 3,
	BLOCK_SUPER_2 = 4,
	BLOCK_REVOKE = 5,

	COMPAT_CHECKSUM = 1,
	INCOMPAT_REVOKE = 1,
	INCOMPAT_64BIT = 2,
	INCOMPAT_ASYNC_COMMIT = 4,
	INCOMPAT_CSUM_V2 = 8,
	INCOMPAT_CSUM_V3 = 16,
	INCOMPAT_FAST_COMMIT = 32,
	INCOMPAT_KNOWN = 63,

	TAG_ESCAPED = 1,
	TAG_SAME_UUID = 2,
	TAG_LAST = 8,

	HEAD_BYTES = 12,
	UUID_BYTES = 16,
	TAIL_BYTES = 4, /* checksum of descriptor and revoke blocks */
	SUPER_BYTES = 1024,
	REVOKE_HEAD_BYTES = 16,
	COMMIT_CHECKSUM_OFF = 16,
	COMMIT_SECONDS_OFF = 48,
	CRC32_TYPE = 1,
	PIECES_AT_ONCE = 512,
	PIECES_MOST = 256 * 1024,
	BLOCKS_LEAST = 4,
};

static const uint32_t MAGIC = 0xc03b3998;

/* ----------------------------------------------------------------- numbers */

static uint16_t get_be16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get_be32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t get_be64(const uint8_t *at)
{
	return (uint64_t)get_be32(at) << 32 | get_be32(at + 4);
}

/* Sequence numbers go round. */
static bool is_sequence_after(uint32_t one, uint32_t other)
{
	return (int32_t)(one - other) > 0;
}

/* ----------------------------------------------------------------- journal */

struct revocation {
	uint64_t block;
	uint32_t sequence;
};

struct replacement {
	struct ext_replaced replaced;
	size_t order; /* the last one counts */
};

struct journal {
	struct ext_worker *worker;
	uint32_t block_bytes;
	struct ext_piece *pieces; /* of the journal's file */
	size_t piece_count;

	/* from its superblock */
	uint32_t compat, incompat;
	uint32_t first, end;  /* blocks of the log, a ring */
	uint32_t block_count; /* fast commits are behind the end */
	uint32_t start;
	uint32_t sequence;
	uint32_t seed; /* of checksums */

	/* where a pass is */
	uint32_t block, next_sequence;
	uint64_t stepped; /* blocks: more than the ring has means that it goes round for ever */

	uint32_t end_sequence;	 /* of the first transaction that doesn't count */
	uint8_t *head, *content; /* a block each */

	struct revocation *revocations;
	size_t revocation_count, revocation_room;
	struct replacement *replacements;
	size_t replacement_count, replacement_room;
};

static void free_journal(struct journal *journal)
{
	free(journal->pieces);
	free(journal->head);
	free(journal->content);
	free(journal->revocations);
	free(journal->replacements);
}

static bool has_checksums(const struct journal *journal)
{
	return (journal->incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3)) != 0;
}

/* ------------------------------------------------------------ its own file */

static int load_pieces(struct journal *journal, const struct ext_inode *inode, uint64_t block_count,
		       struct failure *failure)
{
	uint64_t block = 0;

	while (block < block_count) {
		struct ext_piece *grown =
			realloc(journal->pieces, (journal->piece_count + PIECES_AT_ONCE) * sizeof(*grown));
		size_t count;
		int error;

		if (grown == NULL)
			return fail(failure, -ENOMEM, "out of memory");
		journal->pieces = grown;
		if (journal->piece_count > PIECES_MOST)
			return fail(failure, -EIO, "its journal is damaged: it has more pieces than it can have");
		error = ext_map_read(journal->worker, inode, block, EXT_MAP_FOR_LIBRARY, grown + journal->piece_count,
				     PIECES_AT_ONCE, &count, &block, failure);
		if (error < 0)
			return error;
		journal->piece_count += count;
	}
	return 0;
}

/* The block of the file system that is this one of the journal; 0: none. */
static uint64_t find_place(const struct journal *journal, uint32_t block)
{
	uint64_t off_bytes = (uint64_t)block * journal->block_bytes;
	size_t low = 0, high = journal->piece_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (journal->pieces[middle].off_bytes + journal->pieces[middle].len_bytes <= off_bytes)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == journal->piece_count || journal->pieces[low].off_bytes > off_bytes ||
	    journal->pieces[low].kind != EXT_PIECE_DATA)
		return 0;
	return (journal->pieces[low].place_bytes + off_bytes - journal->pieces[low].off_bytes) / journal->block_bytes;
}

static int read_block(struct journal *journal, uint32_t block, uint8_t *buffer, struct failure *failure)
{
	uint64_t place = find_place(journal, block);
	errcode_t problem;

	if (place == 0)
		return fail(failure, -EIO, "its journal is damaged: block %" PRIu32 " of it is a hole", block);
	problem = ext_io_read_raw(journal->worker->io, buffer, journal->block_bytes, place * journal->block_bytes);
	return problem == 0 ? 0 : ext_fail(failure, problem, "block %" PRIu32 " of its journal", block);
}

static int load_file(struct journal *journal, struct failure *failure)
{
	struct ext_worker *worker = journal->worker;
	const struct ext2_super_block *super = worker->fs->super;
	struct ext_inode *inode = &worker->inode;
	uint64_t size_bytes;
	errcode_t problem;

	if (super->s_journal_inum == 0)
		return fail(failure, -ENOTSUP,
			    "it was not cleanly unmounted, and its journal, which has the rest, is on another device; "
			    "mount it together with that");
	problem = ext2fs_read_inode_full(worker->fs, super->s_journal_inum, EXT2_INODE(inode->raw),
					 EXT2_INODE_SIZE(super));
	if (problem != 0)
		return ext_fail(failure, problem, "the inode of its journal");
	inode->ino = super->s_journal_inum;
	size_bytes = EXT2_I_SIZE(inode->raw);
	if (!LINUX_S_ISREG(inode->raw->i_mode) || inode->raw->i_links_count == 0 ||
	    size_bytes / journal->block_bytes < BLOCKS_LEAST || size_bytes / journal->block_bytes > UINT32_MAX)
		return fail(failure, -EIO, "the inode of its journal is damaged");
	return load_pieces(journal, inode, size_bytes / journal->block_bytes, failure);
}

/* -------------------------------------------------------------- superblock */

static bool is_super_sum_right(const struct journal *journal)
{
	uint8_t copy[SUPER_BYTES];

	if (!has_checksums(journal))
		return true;
	memcpy(copy, journal->head, sizeof(copy));
	memset(copy + 252, 0, sizeof(uint32_t));
	return ext2fs_crc32c_le(~0U, copy, sizeof(copy)) == get_be32(journal->head + 252);
}

static const char *find_flaw_of_super(struct journal *journal)
{
	const uint8_t *super = journal->head;
	uint32_t type = get_be32(super + 4), block_count = get_be32(super + 16), fast_blocks;

	if (get_be32(super) != MAGIC || (type != BLOCK_SUPER_1 && type != BLOCK_SUPER_2))
		return "it has no superblock";
	if (type == BLOCK_SUPER_2) {
		journal->compat = get_be32(super + 36);
		journal->incompat = get_be32(super + 40);
	}
	if ((journal->incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3)) == (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) ||
	    (has_checksums(journal) && (journal->compat & COMPAT_CHECKSUM) != 0))
		return "it has two kinds of checksums";
	if (!is_super_sum_right(journal))
		return "the checksum of its superblock is wrong";
	journal->seed = ext2fs_crc32c_le(~0U, super + 48, UUID_BYTES);
	journal->first = get_be32(super + 20);
	journal->sequence = get_be32(super + 24);
	journal->start = get_be32(super + 28);
	journal->end = block_count;
	journal->block_count = block_count;
	if ((journal->incompat & INCOMPAT_FAST_COMMIT) != 0) {
		fast_blocks = get_be32(super + 84) == 0 ? 256 : get_be32(super + 84);
		if (fast_blocks >= block_count || block_count - fast_blocks < BLOCKS_LEAST)
			return "it has no room but for fast commits";
		journal->end = block_count - fast_blocks;
	}
	if (get_be32(super + 12) != journal->block_bytes || journal->first == 0 || journal->first >= journal->end ||
	    find_place(journal, block_count - 1) == 0)
		return "sizes in its superblock can't be";
	if (journal->start != 0 && (journal->start < journal->first || journal->start >= journal->end))
		return "it begins outside of itself";
	return NULL;
}

static int load_super(struct journal *journal, struct failure *failure)
{
	const char *flaw;
	int error = read_block(journal, 0, journal->head, failure);

	if (error < 0)
		return error;
	flaw = find_flaw_of_super(journal);
	if (flaw != NULL)
		return fail(failure, -EIO,
			    "it was not cleanly unmounted, and its journal is damaged: %s; e2fsck can repair a copy",
			    flaw);
	if ((journal->incompat & ~(uint32_t)INCOMPAT_KNOWN) != 0)
		return fail(failure, -ENOTSUP, "its journal has features that are unknown here (0x%x)",
			    journal->incompat & ~(uint32_t)INCOMPAT_KNOWN);
	return 0;
}

/* -------------------------------------------------------------------- tags */

struct tag {
	uint64_t block;
	uint16_t flags;
	uint32_t checksum; /* of version 2, its lower half */
};

static size_t tag_bytes(const struct journal *journal)
{
	if ((journal->incompat & INCOMPAT_CSUM_V3) != 0)
		return 16;
	return 8U + ((journal->incompat & INCOMPAT_CSUM_V2) != 0 ? 2 : 0) +
	       ((journal->incompat & INCOMPAT_64BIT) != 0 ? 4 : 0);
}

/*
 *     version 3:  block, flags, block's high half, checksum: 4 bytes each
 *     others:     block 4, checksum 2, flags 2, [block's high half 4], [2 of nothing]
 *
 * False: there is none at *off_bytes.
 */
static bool next_tag(const struct journal *journal, const uint8_t *block, size_t *off_bytes, struct tag *ret_tag)
{
	size_t len_bytes = tag_bytes(journal),
	       end_bytes = journal->block_bytes - (has_checksums(journal) ? TAIL_BYTES : 0);
	const uint8_t *at = block + *off_bytes;

	if (*off_bytes + len_bytes > end_bytes)
		return false;
	ret_tag->block = get_be32(at);
	if ((journal->incompat & INCOMPAT_64BIT) != 0)
		ret_tag->block |= (uint64_t)get_be32(at + 8) << 32;
	ret_tag->flags = get_be16(at + 6);
	ret_tag->checksum = (journal->incompat & INCOMPAT_CSUM_V3) != 0 ? get_be32(at + 12) : get_be16(at + 4);
	*off_bytes += len_bytes + ((ret_tag->flags & TAG_SAME_UUID) != 0 ? 0 : UUID_BYTES);
	if ((ret_tag->flags & TAG_LAST) != 0)
		*off_bytes = end_bytes;
	return true;
}

/* ------------------------------------------------------------------ blocks */

static uint32_t step(struct journal *journal)
{
	uint32_t block = journal->block++;

	if (journal->block >= journal->end)
		journal->block = journal->first;
	journal->stepped++;
	return block;
}

static bool is_round(const struct journal *journal)
{
	return journal->stepped > (uint64_t)(journal->end - journal->first) + 1;
}

/* The last four bytes of a descriptor or revoke block. */
static bool is_tail_right(const struct journal *journal, const uint8_t *block)
{
	static const uint8_t none[TAIL_BYTES] = {0};
	size_t body_bytes = journal->block_bytes - TAIL_BYTES;
	uint32_t sum;

	if (!has_checksums(journal))
		return true;
	sum = ext2fs_crc32c_le(journal->seed, block, body_bytes);
	return ext2fs_crc32c_le(sum, none, sizeof(none)) == get_be32(block + body_bytes);
}

static bool is_commit_right(const struct journal *journal, const uint8_t *block)
{
	static const uint8_t none[sizeof(uint32_t)] = {0};
	size_t rest_off = COMMIT_CHECKSUM_OFF + sizeof(none);
	uint32_t sum;

	if (!has_checksums(journal))
		return true;
	sum = ext2fs_crc32c_le(journal->seed, block, COMMIT_CHECKSUM_OFF);
	sum = ext2fs_crc32c_le(sum, none, sizeof(none));
	return ext2fs_crc32c_le(sum, block + rest_off, journal->block_bytes - rest_off) ==
	       get_be32(block + COMMIT_CHECKSUM_OFF);
}

static bool is_content_right(const struct journal *journal, const struct tag *tag, const uint8_t *content)
{
	uint8_t sequence[4] = {(uint8_t)(journal->next_sequence >> 24), (uint8_t)(journal->next_sequence >> 16),
			       (uint8_t)(journal->next_sequence >> 8), (uint8_t)journal->next_sequence};
	uint32_t sum;

	if (!has_checksums(journal))
		return true;
	sum = ext2fs_crc32c_le(ext2fs_crc32c_le(journal->seed, sequence, sizeof(sequence)), content,
			       journal->block_bytes);
	return (journal->incompat & INCOMPAT_CSUM_V3) != 0 ? sum == tag->checksum : (sum & 0xffff) == tag->checksum;
}

/* -------------------------------------------------------------------- scan */

struct scan {
	bool is_over;
	bool is_doubtful;      /* a checksum was wrong; the next commit's time tells what to think of it */
	uint64_t last_seconds; /* of the last commit that counts */
	uint32_t sum;	       /* of the whole transaction, in the oldest kind of checksums */
};

/* The contents aren't looked at, unless the oldest kind of checksum goes over all of a transaction. */
static int scan_descriptor(struct journal *journal, struct scan *scan, struct failure *failure)
{
	bool is_summed = (journal->compat & COMPAT_CHECKSUM) != 0;
	size_t off_bytes = HEAD_BYTES;
	struct tag tag;

	if (!is_tail_right(journal, journal->head))
		scan->is_doubtful = true;
	if (is_summed)
		scan->sum = ext2fs_crc32_be(scan->sum, journal->head, journal->block_bytes);
	while (next_tag(journal, journal->head, &off_bytes, &tag)) {
		uint32_t block = step(journal);
		int error = is_summed ? read_block(journal, block, journal->content, failure) : 0;

		if (error < 0)
			return error;
		if (is_summed)
			scan->sum = ext2fs_crc32_be(scan->sum, journal->content, journal->block_bytes);
	}
	return 0;
}

/* The oldest kind: the commit has the sum of all blocks before it, or none at all. */
static bool is_transaction_right(const struct journal *journal, struct scan *scan)
{
	const uint8_t *commit = journal->head;
	uint32_t found = get_be32(commit + COMMIT_CHECKSUM_OFF);
	bool is_right;

	if ((journal->compat & COMPAT_CHECKSUM) == 0)
		return true;
	is_right = (scan->sum == found && commit[12] == CRC32_TYPE && commit[13] == sizeof(uint32_t)) ||
		   (commit[12] == 0 && commit[13] == 0 && found == 0);
	scan->sum = ~0U;
	return is_right;
}

static int scan_commit(struct journal *journal, struct scan *scan, struct failure *failure)
{
	uint64_t seconds = get_be64(journal->head + COMMIT_SECONDS_OFF);
	bool is_old = seconds < scan->last_seconds;
	bool is_right = is_transaction_right(journal, scan) && is_commit_right(journal, journal->head);

	if ((scan->is_doubtful || !is_right) && is_old) { /* left from an older use: the log ends here */
		scan->is_over = true;
		return 0;
	}
	if (scan->is_doubtful || (!is_right && (journal->incompat & INCOMPAT_ASYNC_COMMIT) == 0))
		return fail(failure, -EIO,
			    "it was not cleanly unmounted, and its journal is damaged: transaction %" PRIu32
			    " has a wrong checksum; e2fsck can repair a copy",
			    journal->next_sequence);
	if (!is_right) { /* the commit was written before what it commits was */
		scan->is_over = true;
		return 0;
	}
	scan->last_seconds = seconds;
	journal->next_sequence++;
	return 0;
}

static void begin_pass(struct journal *journal)
{
	journal->block = journal->start;
	journal->next_sequence = journal->sequence;
	journal->stepped = 0;
}

/* The type of the next block of the log, in journal->head; 0: it has ended. */
static int read_next(struct journal *journal, uint32_t *ret_type, struct failure *failure)
{
	int error = read_block(journal, step(journal), journal->head, failure);

	if (error < 0)
		return error;
	if (is_round(journal))
		return fail(failure, -EIO, "its journal is damaged: it has no end");
	*ret_type = get_be32(journal->head) == MAGIC && get_be32(journal->head + 8) == journal->next_sequence
			    ? get_be32(journal->head + 4)
			    : 0;
	return 0;
}

static int pass_scan(struct journal *journal, struct failure *failure)
{
	struct scan scan = {.sum = ~0U};
	uint32_t type = BLOCK_COMMIT;
	int error = 0;

	begin_pass(journal);
	while (error == 0 && !scan.is_over) {
		error = read_next(journal, &type, failure);
		if (error < 0)
			break;
		if (type == BLOCK_DESCRIPTOR)
			error = scan_descriptor(journal, &scan, failure);
		else if (type == BLOCK_COMMIT)
			error = scan_commit(journal, &scan, failure);
		else if (type == BLOCK_REVOKE)
			scan.is_doubtful |= !is_tail_right(journal, journal->head);
		else
			break;
	}
	journal->end_sequence = journal->next_sequence;
	return error;
}

/* ------------------------------------------------------------------ revoke */

static int make_room(void *array, size_t count, size_t *room, size_t item_bytes, struct failure *failure)
{
	void **at = array;
	void *grown;

	if (count < *room)
		return 0;
	grown = realloc(*at, (*room * 2 + 64) * item_bytes);
	if (grown == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	*at = grown;
	*room = *room * 2 + 64;
	return 0;
}

static int gather_revoked(struct journal *journal, struct failure *failure)
{
	size_t record_bytes = (journal->incompat & INCOMPAT_64BIT) != 0 ? 8 : 4;
	size_t most_bytes = journal->block_bytes - (has_checksums(journal) ? TAIL_BYTES : 0);
	uint32_t used_bytes = get_be32(journal->head + HEAD_BYTES);
	int error = 0;

	if (used_bytes > most_bytes)
		return fail(failure, -EIO, "its journal is damaged: more blocks are revoked than a block can name");
	for (size_t off_bytes = REVOKE_HEAD_BYTES; off_bytes + record_bytes <= used_bytes && error == 0;
	     off_bytes += record_bytes) {
		const uint8_t *at = journal->head + off_bytes;

		error = make_room(&journal->revocations, journal->revocation_count, &journal->revocation_room,
				  sizeof(*journal->revocations), failure);
		if (error == 0)
			journal->revocations[journal->revocation_count++] =
				(struct revocation){.block = record_bytes == 8 ? get_be64(at) : get_be32(at),
						    .sequence = journal->next_sequence};
	}
	return error;
}

static int compare_revocations(const void *left, const void *right)
{
	const struct revocation *one = left, *other = right;

	if (one->block != other->block)
		return one->block < other->block ? -1 : 1;
	return is_sequence_after(one->sequence, other->sequence) ? -1
								 : is_sequence_after(other->sequence, one->sequence);
}

/* Each block once, with the last transaction that revoked it. */
static void sort_revoked(struct journal *journal)
{
	size_t kept = 0;

	if (journal->revocation_count == 0)
		return;
	qsort(journal->revocations, journal->revocation_count, sizeof(*journal->revocations), compare_revocations);
	for (size_t i = 1; i < journal->revocation_count; i++) {
		if (journal->revocations[i].block != journal->revocations[kept].block)
			journal->revocations[++kept] = journal->revocations[i];
	}
	journal->revocation_count = kept + 1;
}

static bool is_revoked(const struct journal *journal, uint64_t block)
{
	size_t low = 0, high = journal->revocation_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (journal->revocations[middle].block < block)
			low = middle + 1;
		else
			high = middle;
	}
	return low < journal->revocation_count && journal->revocations[low].block == block &&
	       !is_sequence_after(journal->next_sequence, journal->revocations[low].sequence);
}

static void skip_contents(struct journal *journal)
{
	size_t off_bytes = HEAD_BYTES;
	struct tag tag;

	while (next_tag(journal, journal->head, &off_bytes, &tag))
		(void)step(journal);
}

static int pass_revoke(struct journal *journal, struct failure *failure)
{
	uint32_t type;
	int error = 0;

	begin_pass(journal);
	while (error == 0 && journal->next_sequence != journal->end_sequence) {
		error = read_next(journal, &type, failure);
		if (error < 0)
			break;
		if (type == BLOCK_DESCRIPTOR)
			skip_contents(journal);
		else if (type == BLOCK_COMMIT)
			journal->next_sequence++;
		else if (type == BLOCK_REVOKE)
			error = gather_revoked(journal, failure);
	}
	sort_revoked(journal);
	return error;
}

/* ------------------------------------------------------------------ replay */

static int replay_tag(struct journal *journal, const struct tag *tag, struct failure *failure)
{
	uint32_t block = step(journal);
	struct replacement *replacement;
	int error;

	if (is_revoked(journal, tag->block))
		return 0;
	error = read_block(journal, block, journal->content, failure);
	if (error < 0)
		return error;
	if (!is_content_right(journal, tag, journal->content))
		return fail(failure, -EIO,
			    "it was not cleanly unmounted, and its journal is damaged: block %" PRIu32
			    " of it has a wrong checksum; e2fsck can repair a copy",
			    block);
	if (tag->block >=
	    ext_io_size_bytes(journal->worker->io) / journal->block_bytes) /* the file system may have grown just now */
		return fail(failure, -EIO,
			    "its journal is damaged: it has a block from behind the end of the partition");
	error = make_room(&journal->replacements, journal->replacement_count, &journal->replacement_room,
			  sizeof(*journal->replacements), failure);
	if (error < 0)
		return error;
	replacement = &journal->replacements[journal->replacement_count];
	*replacement = (struct replacement){.order = journal->replacement_count,
					    .replaced = {.block = tag->block,
							 .place = find_place(journal, block),
							 .is_escaped = (tag->flags & TAG_ESCAPED) != 0}};
	journal->replacement_count++;
	return 0;
}

static int replay_descriptor(struct journal *journal, struct failure *failure)
{
	size_t off_bytes = HEAD_BYTES;
	struct tag tag;
	int error = 0;

	while (error == 0 && next_tag(journal, journal->head, &off_bytes, &tag))
		error = replay_tag(journal, &tag, failure);
	return error;
}

static int pass_replay(struct journal *journal, struct failure *failure)
{
	uint32_t type;
	int error = 0;

	begin_pass(journal);
	while (error == 0 && journal->next_sequence != journal->end_sequence) {
		error = read_next(journal, &type, failure);
		if (error < 0)
			break;
		if (type == BLOCK_DESCRIPTOR)
			error = replay_descriptor(journal, failure);
		else if (type == BLOCK_COMMIT)
			journal->next_sequence++;
	}
	return error;
}

static int compare_replacements(const void *left, const void *right)
{
	const struct replacement *one = left, *other = right;

	if (one->replaced.block != other->replaced.block)
		return one->replaced.block < other->replaced.block ? -1 : 1;
	return one->order < other->order ? -1 : one->order > other->order;
}

/* Each block once, with its last content. */
static int make_overlay(struct journal *journal, struct failure *failure)
{
	struct ext_overlay *overlay = &journal->worker->overlay;

	overlay->block_bytes = journal->block_bytes;
	if (journal->replacement_count == 0)
		return 0;
	qsort(journal->replacements, journal->replacement_count, sizeof(*journal->replacements), compare_replacements);
	overlay->blocks = calloc(journal->replacement_count, sizeof(*overlay->blocks));
	if (overlay->blocks == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	for (size_t i = 0; i < journal->replacement_count; i++) {
		bool is_last = i + 1 == journal->replacement_count ||
			       journal->replacements[i + 1].replaced.block != journal->replacements[i].replaced.block;

		if (is_last)
			overlay->blocks[overlay->count++] = journal->replacements[i].replaced;
	}
	journal->worker->replayed_blocks = (uint32_t)overlay->count;
	return 0;
}

/* The first block behind the log's end stays empty. */
static int gather_fast_commits(struct journal *journal, struct ext_fast *fast, struct failure *failure)
{
	enum ext_fast_step step = EXT_FAST_ON;

	if ((journal->incompat & INCOMPAT_FAST_COMMIT) == 0)
		return 0;
	fast->sequence = journal->end_sequence;
	for (uint32_t block = journal->end + 1; block < journal->block_count && step == EXT_FAST_ON; block++) {
		int error = read_block(journal, block, journal->content, failure);
		if (error < 0)
			return error;
		step = ext_fast_take_block(fast, journal->content, journal->block_bytes);
	}
	return step == EXT_FAST_NO_MEMORY ? fail(failure, -ENOMEM, "out of memory") : 0;
}

int ext_journal_replay(struct ext_worker *worker, struct ext_fast *fast, struct failure *failure)
{
	AUTO(free_journal) struct journal journal = {.worker = worker, .block_bytes = worker->fs->blocksize};
	int error;

	if (!ext2fs_has_feature_journal(worker->fs->super)) /* then the kernel doesn't mind the flag */
		return 0;
	journal.head = malloc(journal.block_bytes);
	journal.content = malloc(journal.block_bytes);
	if (journal.head == NULL || journal.content == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	error = load_file(&journal, failure);
	if (error == 0)
		error = load_super(&journal, failure);
	if (error < 0 || journal.start == 0)
		return error;
	error = pass_scan(&journal, failure);
	if (error == 0)
		error = pass_revoke(&journal, failure);
	if (error == 0)
		error = pass_replay(&journal, failure);
	if (error == 0)
		error = make_overlay(&journal, failure);
	if (error == 0)
		error = gather_fast_commits(&journal, fast, failure);
	return error;
}
