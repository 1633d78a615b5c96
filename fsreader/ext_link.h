/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that reads an ext2/3/4, and questions to it. For ext_client.c and its kin.
 *
 * It is started when the first question comes after it has ended, a few times a minute at most. One question at a time;
 * others wait for their turn.
 */
#ifndef WHERRY_FSREADER_EXT_LINK_H
#define WHERRY_FSREADER_EXT_LINK_H

#include "fsreader/ext_protocol.h"
#include "fsreader/kernel/initrd.h"

struct ext_link;

/*
 * Starts the process, and has it open the file system: wherry-fsreader, for an ext2/3/4; or, with `kernel`, a user-mode Linux with another program of
 * ours in it, which speaks the same. `source` is borrowed until ext_link_close(), the rest copied.
 */
int ext_link_open(const struct fsreader_source *source, const struct kernel_type *kernel,
		  const struct fsreader_options *options, struct ext_link **ret_link, struct failure *failure);
void ext_link_close(struct ext_link *link); /* the process is gone on return; NULL is fine */

struct ext_reply {
	uint32_t count;
	uint64_t position;
	size_t payload_bytes; /* EXT_PAYLOAD_MOST_BYTES at most */
	uint8_t *payload;     /* a zero behind it; ext_reply_free() */
};

void ext_reply_free(struct ext_reply *reply);

/* What comes back is not checked yet, but for its length. */
int ext_link_ask(struct ext_link *link, const struct ext_question *question, struct ext_reply *ret_reply,
		 struct failure *failure);

/* For who found that an answer can't be: ends the process, and returns -EIO with the reason. */
__attribute__((format(printf, 3, 4))) int ext_link_distrust(struct ext_link *link, struct failure *failure,
							    const char *format, ...);

const struct fsreader_source *ext_link_source(const struct ext_link *link); /* with what a kernel has written over it */
const char *ext_link_what(const struct ext_link *link);

/* The program's path; -ENOENT says where it was looked for. Caller frees. */
int ext_link_find_program(char **ret_path, struct failure *failure);

#endif
