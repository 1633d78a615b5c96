/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that serves a file system by FUSE, in a sandbox, with us where it takes the kernel to be.
 *
 * The program's /dev/fuse is a socket (image_link.h), and what it reads the image from is one, too. Who asks it something waits for the answer, and
 * meanwhile reads for it what it wants of the image; so all happens on the caller's thread, and no thread waits for another.
 *
 * One question at a time: the caller has a lock. A program that crashes, takes too long, or answers what can't be, is
 * dead from then on (-EIO), until it is started again.
 */
#ifndef WHERRY_FSREADER_FUSE_PEER_H
#define WHERRY_FSREADER_FUSE_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/fuse.h>

#include "common/failure.h"
#include "fsreader/fsreader.h"

enum {
	FUSE_PEER_MOST_READ_BYTES = 128 << 10, /* of one READ or READDIR */
	FUSE_PEER_TIMEOUT_SECONDS = 60,
};

struct fuse_peer_params {
	const char *what;		      /* for messages; copied */
	const struct fsreader_source *source; /* borrowed */
	unsigned timeout_seconds; /* of one question, without reading `source`; 0: FUSE_PEER_TIMEOUT_SECONDS */
	const char *name;	  /* of the program, for messages */
	char *const *
		argv; /* of the program, argv[0] being its path; it opens IMAGE_LINK_PATH, and mounts on any path; copied */
};

struct fuse_peer;

/* Nothing runs yet. */
int fuse_peer_make(const struct fuse_peer_params *params, struct fuse_peer **ret_peer, struct failure *failure);
void fuse_peer_free(struct fuse_peer *peer); /* the program is gone on return; NULL is fine */

/* Starts the program if none runs, and agrees on the protocol with it. It is given up (-EIO) when it has crashed too often lately. */
int fuse_peer_ensure(struct fuse_peer *peer, struct failure *failure);
bool fuse_peer_is_alive(const struct fuse_peer *peer);
void fuse_peer_end(
	struct fuse_peer *peer); /* kills the program: for one that is to start anew, which isn't held against it */
uint64_t fuse_peer_generation(
	const struct fuse_peer *peer); /* another with each start: nodes and handles of an earlier one mean nothing */

struct fuse_question {
	uint32_t opcode;
	uint64_t node;
	const void *head, *tail; /* what stands behind the header, in two pieces; lengths may be 0 */
	size_t head_bytes, tail_bytes;
};

/*
 * 0: `*ret_data` is what came behind the header, valid until the next question, of `least_bytes` to `most_bytes`. A
 * negative errno that the program answered, of a kind that a reader may answer; all others are -EIO, with a message.
 */
int fuse_peer_ask(struct fuse_peer *peer, const struct fuse_question *question, size_t least_bytes, size_t most_bytes,
		  const void **ret_data, size_t *ret_len_bytes, struct failure *failure);
/* Without an answer: FORGET. What fails is found out by the next question. */
void fuse_peer_tell(struct fuse_peer *peer, const struct fuse_question *question);

#endif
