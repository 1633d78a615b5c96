/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gives the kernel, for its page cache, what surrounds a small piece that was asked for. An image is decompressed by chunks, so the rest of the chunk is at
 * hand, and the next question for a part of it never comes.
 *
 * A thread of its own tells the kernel. Whoever tells it waits for pages that others are reading at that moment, and those are waiting for an answer of ours:
 * a thread that answers must not wait for them. What doesn't fit into the short queue isn't given; a hint is all that this is.
 */
#ifndef WHERRY_FUSEFS_GIVER_H
#define WHERRY_FUSEFS_GIVER_H

#include "fusefs/fuse_ops.h"

enum { GIVER_PIECE_BYTES = 64 << 10 };

struct giver;

/* -ENOMEM. Threads are started at the first giver_give(), and so after a daemon has forked. */
int giver_new(struct fuse_mount *mount, struct giver **ret_giver);
/*
 * Before the session is unmounted, when nobody gives any more. A thread that the kernel keeps waiting, for a page of which the reading will never be
 * answered, is left behind, to end with the process. NULL is fine.
 */
void giver_stop(struct giver *giver);

/* Memory for a piece, GIVER_PIECE_BYTES; NULL when there are enough in the queue. It is given, or free()d by the caller. */
char *giver_room(struct giver *giver);
/* `bytes` is taken. The node is one that the kernel knows; it stays one until this is done. */
void giver_give(struct giver *giver, struct node *node, fuse_ino_t ino, uint64_t off_bytes, char *bytes, size_t len_bytes);

#endif
