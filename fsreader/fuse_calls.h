/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions of FUSE's that every client has, over fuse_peer.h; the caller has its lock. Errors as fuse_peer_ask() has them.
 */
#ifndef WHERRY_FSREADER_FUSE_CALLS_H
#define WHERRY_FSREADER_FUSE_CALLS_H

#include "fsreader/fuse_peer.h"

/* What is open in a program: means something while that start of it runs. */
struct fuse_handle {
	uint64_t node, handle, generation; /* generation 0: not open */
};

bool fuse_handle_is_open(const struct fuse_peer *peer, const struct fuse_handle *handle);

int fuse_call_lookup(struct fuse_peer *peer, uint64_t folder, const char *name, struct fuse_entry_out *ret_entry,
		     struct failure *failure);
int fuse_call_getattr(struct fuse_peer *peer, uint64_t node, struct fuse_attr *ret_attr, struct failure *failure);

int fuse_call_open(struct fuse_peer *peer, bool is_folder, uint64_t node, struct fuse_handle *ret_handle,
		   struct failure *failure);
/* Nothing when it isn't open (any more); what the program can't close it forgets when it ends. */
void fuse_call_release(struct fuse_peer *peer, bool is_folder, struct fuse_handle *handle);

/* FUSE_PEER_MOST_READ_BYTES at most, into `buffer`. */
int fuse_call_read(struct fuse_peer *peer, bool is_folder, const struct fuse_handle *handle, void *buffer,
		   size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes, struct failure *failure);

struct fuse_listed {
	uint64_t ino, cookie;
	char name[FSREADER_NAME_MOST_BYTES + 1]; /* "": what is no name, "." and ".." */
};

/* The next entry of what was read of a folder; false at the end, and at an entry that is cut off. */
bool fuse_listed_next(const uint8_t **at, size_t *left_bytes, struct fuse_listed *ret_listed);

#endif
