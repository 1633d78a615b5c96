/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NBD server in a thread, that says what it is told to: what no decent server would say as well.
 * It serves clients one after another on a Unix socket. The content says where it is from: each eight
 * bytes are their own offset, big-endian.
 */
#ifndef WHERRY_TESTS_FAKE_NBD_SERVER_H
#define WHERRY_TESTS_FAKE_NBD_SERVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FAKE_NBD_CONTEXTS = 4, FAKE_NBD_MOST_WORDS = 4096 };

struct fake_nbd_server {
	/* Set before the start. */
	uint64_t size_bytes;
	uint32_t block_bytes[3]; /* minimum, preferred, maximum; all 0: not told */
	bool has_no_structured_replies;
	const char *export_name; /* NULL: whatever is asked for; else others are unknown, and it is listed */
	const char *contexts[FAKE_NBD_CONTEXTS]; /* offered, by number; NULL: none */
	unsigned most_reads;			 /* hangs up instead of answering the next one; 0: no limit */
	unsigned most_statuses;			 /* the same for block status */

	/* The NBD error (5: EIO) for a read, or 0. NULL: none fails. Called in the server's thread. */
	unsigned (*fail_read)(uint64_t off_bytes, uint32_t len_bytes);
	/* The words of a block status reply: length, flags, … ; returns how many. NULL: one entry of data. */
	size_t (*tell_status)(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words);

	/* For the test to look at after the client has gone. */
	unsigned reads;
	unsigned statuses;
	uint32_t largest_read_bytes;
	uint32_t largest_status_bytes;
	bool saw_unaligned_read;

	/* Its own. */
	char uri[320]; /* of the export "disk" */
	char socket_path[256];
	int listen_fd;
	int client_fd;
	bool is_structured;
	bool has_context[FAKE_NBD_CONTEXTS];
	pthread_t thread;
};

/* `directory` holds the socket. Ends the program when it can't. */
void fake_nbd_server_start(struct fake_nbd_server *server, const char *directory);
void fake_nbd_server_stop(struct fake_nbd_server *server);

/* The content at an offset. */
uint8_t fake_nbd_server_byte(uint64_t off_bytes);

#endif
