/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was learnt about files of an ext2/3/4, so that nobody asks twice in a row. For ext_client.c and its kin.
 *
 * Bounded: the last nodes in a table by inode number (4 MiB when full), and some parts of listings (1 MiB): the kernel
 * reads a folder in pieces of some twenty entries, an answer has hundreds.
 */
#ifndef WHERRY_FSREADER_EXT_CACHE_H
#define WHERRY_FSREADER_EXT_CACHE_H

#include <stdatomic.h>

#include "fsreader/ext_link.h"

struct ext_cache;

int ext_cache_make(struct ext_cache **ret_cache, struct failure *failure);
void ext_cache_free(struct ext_cache *cache); /* NULL is fine */

bool ext_cache_get_node(struct ext_cache *cache, uint64_t ino, struct ext_node *ret_node);
void ext_cache_put_node(struct ext_cache *cache, const struct ext_node *node);

/*
 * Values of extended attributes, for whoever asks for the length first and then for the value; by the name "" the names
 * of all. A copy, which the caller frees, with a zero behind it. False: not known (or no memory for the copy, which
 * comes to the same).
 */
bool ext_cache_get_value(struct ext_cache *cache, uint64_t ino, const char *name, uint8_t **ret_value,
			 size_t *ret_len_bytes);
void ext_cache_put_value(struct ext_cache *cache, uint64_t ino, const char *name, const uint8_t *value,
			 size_t len_bytes);

/* A part of a listing, checked: ext_batch_next() takes it apart. Shared; whoever has one gives it back. */
struct ext_batch {
	atomic_uint users;
	uint64_t dir;
	uint64_t first_cookie; /* its entries come behind this */
	uint64_t last_cookie;  /* of its last entry; first_cookie when it has none */
	struct ext_reply reply;
};

void ext_batch_put(struct ext_batch *batch); /* gives it back; NULL is fine */

/* One that goes on behind `cookie`, or ends there; or NULL. */
struct ext_batch *ext_cache_get_batch(struct ext_cache *cache, uint64_t dir, uint64_t cookie);
/* The cache takes a share of its own. */
void ext_cache_put_batch(struct ext_cache *cache, struct ext_batch *batch);

struct ext_batch_entry {
	uint64_t cookie;
	char name[FSREADER_NAME_MOST_BYTES + 1];
	bool has_node;
	struct ext_node node;
};

enum ext_batch_step { EXT_BATCH_ENTRY, EXT_BATCH_END, EXT_BATCH_BAD };

/* The entry at *off_bytes (0 for the first), which moves on. */
enum ext_batch_step ext_batch_next(const struct ext_reply *reply, size_t *off_bytes, struct ext_batch_entry *ret_entry);

/* NULL, or why these can't be: in order, whole, within the source. */
const char *ext_pieces_find_flaw(const struct ext_piece *pieces, size_t count, uint64_t source_bytes);
const char *ext_node_find_flaw(const struct ext_node *node, uint64_t source_bytes);

#endif
