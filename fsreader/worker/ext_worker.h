/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the worker for ext2/3/4. It has one thread, and does one thing at a time.
 *
 *     main.c          confines itself, and does the job that its argument names
 *     ext_main.c      questions and answers
 *     ext_io.c        the source: over the socket, cached, under the overlay
 *     ext_open.c      superblock and descriptors; is it what we can read at all?
 *     ext_journal.c   what a journal has that isn't in place yet: the overlay
 *     ext_fast.c      the same for fast commits
 *     ext_inode.c     inodes, and what is told of them
 *     ext_map.c       where content lies
 *     ext_dir.c       folders
 *     ext_name.c      names in folders that are encrypted or don't mind case
 *     ext_value.c     symbolic links, inline data, extended attributes, space
 *
 * Functions return 0 or a negative errno with a message without a subject ("inode 12: …"): the client knows the file
 * system's name.
 */
#ifndef WHERRY_FSREADER_WORKER_EXT_WORKER_H
#define WHERRY_FSREADER_WORKER_EXT_WORKER_H

#include "fsreader/worker/ext_io.h"

/* An inode as it is on disk, all of it; owned by whoever made it. */
struct ext_inode {
	ext2_ino_t ino;		      /* 0: none read */
	struct ext2_inode_large *raw; /* at least sizeof(*raw), zeros behind what the file system has */
};

enum { EXT_DIRS = 8, EXT_HEIGHTS = 6 /* of a tree of extents: five levels of indexes above the leaves */ };

/* A folder whose blocks are known. */
struct ext_dir {
	ext2_ino_t ino; /* 0: none */
	uint64_t used_at;
	uint32_t flags; /* i_flags */
	uint64_t block_count;
	bool is_damaged;      /* something of it is missing */
	uint8_t *inline_data; /* then it has no blocks */
	size_t inline_bytes;
	struct ext_piece
		*pieces; /* places are blocks of the file system, not of the source: a journal's are under them */
	size_t piece_count;
};

struct ext_worker {
	struct ext_io *io;
	ext2_filsys fs; /* NULL: not open */
	struct ext_overlay overlay;
	uint32_t replayed_blocks;
	uint8_t *group_states;	/* enum group_state, one each */
	struct ext_inode inode; /* that a question is about */
	struct ext_inode found; /* that a folder's entry is about */
	struct ext_dir dirs[EXT_DIRS];
	uint64_t clock;
	uint8_t *block;			 /* of a folder */
	const struct ext_dir *block_dir; /* whose it is, or NULL */
	uint64_t block_number;		 /* in the folder */
	uint8_t *buffers[EXT_HEIGHTS];	 /* of ext_map.c; a block each, made when needed */
	bool has_statfs;
	struct fsreader_statfs statfs;
};

/* What an answer has room for. */
struct ext_out {
	uint8_t *data; /* EXT_PAYLOAD_MOST_BYTES */
	size_t len_bytes;
};

void ext_out_bytes(struct ext_out *out, const void *at, size_t len_bytes); /* there must be room */

/* "FORMAT: what libext2fs has to say"; -EIO, or -ENOMEM. */
__attribute__((format(printf, 3, 4))) int ext_fail(struct failure *failure, errcode_t problem, const char *format, ...);

/* ext_main.c */
int ext_main(int socket); /* until the client is gone; returns an exit status */

/* ext_open.c */
int ext_worker_open(struct ext_worker *worker, struct failure *failure);

/* ext_fast.c */

/* Fast commits of a journal: tags one behind the other. */
struct ext_fast {
	uint32_t sequence; /* that they must have */
	bool has_begun;
	uint32_t sum;
	uint8_t *tags;
	size_t len_bytes, room_bytes;
	size_t valid_bytes; /* up to the last tail that was right */
};

enum ext_fast_step { EXT_FAST_ON, EXT_FAST_END, EXT_FAST_NO_MEMORY };

enum ext_fast_step ext_fast_take_block(struct ext_fast *fast, const uint8_t *block, size_t block_bytes);
/* worker->fs is open for writing, into the overlay. */
int ext_fast_apply(struct ext_worker *worker, const struct ext_fast *fast, struct failure *failure);
void ext_fast_free(struct ext_fast *fast);

/* ext_journal.c: fills the overlay, and gathers fast commits. Nothing to do: 0, and both stay empty. */
int ext_journal_replay(struct ext_worker *worker, struct ext_fast *fast, struct failure *failure);

/* ext_inode.c */
errcode_t ext_inode_make(struct ext_worker *worker, struct ext_inode *inode);
uint64_t ext_inode_tell_number(ext2_ino_t ino); /* as the client has it */
int ext_inode_from_number(struct ext_worker *worker, uint64_t number, ext2_ino_t *ret_ino, struct failure *failure);
int ext_inode_read(struct ext_worker *worker, ext2_ino_t ino, struct ext_inode *inode, struct failure *failure);
/* One that a question names: into worker->inode. */
int ext_inode_read_number(struct ext_worker *worker, uint64_t number, struct failure *failure);
uint64_t ext_inode_size_bytes(const struct ext_worker *worker, const struct ext_inode *inode);
int ext_inode_fill_node(struct ext_worker *worker, const struct ext_inode *inode, struct ext_node *ret_node,
			struct failure *failure);

/* ext_map.c */
enum ext_map_places {
	EXT_MAP_FOR_CLIENT,  /* of the source, under a journal */
	EXT_MAP_FOR_LIBRARY, /* of the file system: whoever reads there, reads through the overlay */
};

/*
 * Pieces from block `first_block` of a file on, `most` at most. Up to *ret_end_block (UINT64_MAX: the end) there are no
 * others; it is above first_block.
 */
int ext_map_read(struct ext_worker *worker, const struct ext_inode *inode, uint64_t first_block,
		 enum ext_map_places places, struct ext_piece *pieces, size_t most, size_t *ret_count,
		 uint64_t *ret_end_block, struct failure *failure);
/* Those that need nothing to be read but the inode itself: false if there may be others, or it makes no sense. */
bool ext_map_read_inode(struct ext_worker *worker, const struct ext_inode *inode, struct ext_piece *pieces, size_t most,
			uint32_t *ret_count);

/* ext_dir.c */
int ext_dir_list(struct ext_worker *worker, uint64_t number, uint64_t cookie, struct ext_out *out,
		 struct ext_answer *answer, struct failure *failure);
int ext_dir_lookup(struct ext_worker *worker, uint64_t number, const char *name, size_t len_bytes, ext2_ino_t *ret_ino,
		   struct failure *failure);
void ext_dir_free(struct ext_dir *dir);

/* ext_name.c */

/*
 * A name of an encrypted folder, or the target of such a link, as the kernel shows it to who hasn't the key: letters,
 * digits, '-' and '_'. Returns the length, FSREADER_NAME_MOST_BYTES at most.
 */
size_t ext_name_encode(uint32_t hash, uint32_t minor_hash, const uint8_t *name, size_t len_bytes,
		       char ret_text[FSREADER_NAME_MOST_BYTES + 1]);
/* Of a name in this folder, as its index has it. False: of an unknown kind. */
bool ext_name_hash(struct ext_worker *worker, uint32_t dir_flags, int version, const char *name, size_t len_bytes,
		   uint32_t *ret_hash, uint32_t *ret_minor_hash);
bool ext_name_is_equal(struct ext_worker *worker, uint32_t dir_flags, const char *one, size_t one_bytes,
		       const char *other, size_t other_bytes);

/* ext_value.c */
int ext_value_inline(struct ext_worker *worker, const struct ext_inode *inode, uint8_t **ret_data,
		     size_t *ret_len_bytes,
		     struct failure *failure); /* all of it, whatever the size says; caller frees */
int ext_value_read_link(struct ext_worker *worker, const struct ext_inode *inode,
			char ret_target[EXT_TARGET_MOST_BYTES + 1], size_t *ret_len_bytes, struct failure *failure);
int ext_value_list_xattrs(struct ext_worker *worker, const struct ext_inode *inode, struct ext_out *out,
			  struct failure *failure);
int ext_value_get_xattr(struct ext_worker *worker, const struct ext_inode *inode, const char *name, struct ext_out *out,
			struct failure *failure);
int ext_value_statfs(struct ext_worker *worker, struct fsreader_statfs *ret_statfs, struct failure *failure);

#endif
