/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal of a live disk: its small writes, in the order they were made, until they are in chunks. journal.c has
 * the format.
 *
 * It knows offsets and bytes, nothing of chunks. Whoever appends must keep others from what overlaps meanwhile: of two
 * records, the later one in the journal wins when it is replayed.
 *
 * Common to all: 0 or a negative errno with a message. Any thread, but for opening, closing and journal_drop().
 */
#ifndef WHERRY_STORE_JOURNAL_H
#define WHERRY_STORE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"

enum { JOURNAL_OWNER_BYTES = 16, JOURNAL_PAYLOAD_MOST_BYTES = 1 << 20 };

enum journal_kind { JOURNAL_WRITE = 1, JOURNAL_ZERO = 2 };

/* Where the payload of a record stands. Later records have greater ones. */
struct journal_place {
	uint64_t file;
	uint32_t off_bytes;
};

struct journal;

/*
 * What a valid record says, in order; the payload of a WRITE is in `payload` now, and at `place` for as long as its
 * file isn't dropped. Non-zero ends the replay with that value.
 */
typedef int journal_replay(void *opaque, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes,
			   struct journal_place place, const void *payload, struct failure *failure);

/*
 * Opens the journal in the folder, which may be empty, and hands its records to `replay`. What was being written when a
 * crash came is cut off, durably. -EBADMSG: something that had been flushed can't be read, or it belongs to another
 * disk (`owner`). `name` is the disk's, for messages. `folder_fd` stays the caller's and must stay open.
 */
int journal_open(int folder_fd, const char *name, const uint8_t owner[JOURNAL_OWNER_BYTES], journal_replay *replay,
		 void *opaque, struct journal **ret_journal, struct failure *failure);
void journal_close(struct journal *journal); /* leaves files as they are; NULL is fine */

/*
 * What journal_open() would say to it, without changing anything: also while somebody else has it open, appends, and drops files. (Then a
 * record that was not there yet when it was looked at is no damage: what is missing is looked at once more.) -ENOENT: the folder has gone.
 */
int journal_examine(int folder_fd, const char *name, const uint8_t owner[JOURNAL_OWNER_BYTES], struct failure *failure);

/* Are there any files? For who only wants to know whether a disk has something unfolded. */
int journal_is_empty(int folder_fd, bool *ret_is_empty, struct failure *failure);

/*
 * Appends a record. It is not durable. For JOURNAL_ZERO payload is NULL; for JOURNAL_WRITE len_bytes is at most
 * JOURNAL_PAYLOAD_MOST_BYTES. -ENOSPC: nothing was written, try again when there is room. -EIO after anything else went
 * wrong: then every later call fails too.
 */
int journal_append(struct journal *journal, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		   const void *payload, struct journal_place *ret_place, struct failure *failure);

/* Everything whose append has returned is durable. Calls at the same time share their work. */
int journal_sync(struct journal *journal, struct failure *failure);

/*
 * Payload bytes back, from `into_bytes` behind the place on. The whole record is read and checked each time. -EBADMSG: it is
 * damaged, and not what was appended.
 */
int journal_read(struct journal *journal, struct journal_place place, uint32_t into_bytes, void *buffer,
		 size_t len_bytes, struct failure *failure);

/* The next record goes to a new file. Returns the newest there is until then, to which nothing is appended any more; 0:
 * none. */
uint64_t journal_roll(struct journal *journal);

/* Removes files up to and including this one, oldest first, durably. Nobody reads from them any more. */
int journal_drop(struct journal *journal, uint64_t file, struct failure *failure);

/* 0, or the failure of all calls to come. */
int journal_check(struct journal *journal, struct failure *failure);

uint64_t journal_bytes(struct journal *journal);       /* in files */
uint64_t journal_oldest_file(struct journal *journal); /* 0: none */
uint64_t journal_newest_file(struct journal *journal);

static inline bool journal_place_is_before(struct journal_place a, struct journal_place b)
{
	return a.file != b.file ? a.file < b.file : a.off_bytes < b.off_bytes;
}

#endif
