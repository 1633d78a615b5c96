/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inode numbers for programs that have none, or forget theirs when they end: a file is its name in its folder, and its
 * number a hash of that, the same whenever and wherever it is computed. What has been seen of it is kept, up to a
 * number of files; who asks for one that has been dropped is told -ESTALE, looks its name up again, and finds it under
 * the same number.
 *
 * No locks: the caller has one.
 */
#ifndef WHERRY_FSREADER_FUSE_NODES_H
#define WHERRY_FSREADER_FUSE_NODES_H

#include "fsreader/fsreader.h"

enum { FUSE_NODES_MOST = 1 << 18 };

struct fuse_node {
	struct fsreader_attr attr; /* attr.ino is its number; the image doesn't change, so neither does this */
	uint64_t parent;
	char *name;
	uint64_t node,
		generation; /* what the program of that generation (fuse_peer.h) calls it; generation 0: nothing */
};

struct fuse_nodes;

struct fuse_nodes *fuse_nodes_make(void);	/* with the root in it; NULL: no memory */
void fuse_nodes_free(struct fuse_nodes *nodes); /* NULL is fine */

struct fuse_node *fuse_nodes_find(struct fuse_nodes *nodes, uint64_t ino); /* NULL: not there (any more) */
struct fuse_node *fuse_nodes_find_name(struct fuse_nodes *nodes, uint64_t parent, const char *name);

/*
 * Puts in what isn't there (find_name() said so). Pointers to other nodes are void afterwards. *ret_dropped is what had
 * to go for it, for the program to be told: its generation is 0 when nothing had to. -ENOMEM.
 */
int fuse_nodes_add(struct fuse_nodes *nodes, const struct fsreader_attr *attr, uint64_t parent, const char *name,
		   struct fuse_node **ret_node, struct fuse_node *ret_dropped);

#endif
