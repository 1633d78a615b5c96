/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: append-only files of records, segments/ab/000001ab.seg (number in hex, its last byte names the folder).
 *
 *     0  magic "wherrySG"   8  format version (u32) = 1   12  segment number (u32)   16  store id (16 bytes)
 *    32  created, unix seconds (u64)   40  zeros   56  XXH3-64 of bytes 0..55      64  zeros
 *  4096  the first record
 *
 * Records follow each other. A sync fills up with zeros to a multiple of SEGMENT_BLOCK_BYTES, where the next record
 * starts: a block that was made durable once is never written again, so that no torn write can take away what was
 * acknowledged.
 *
 * One process appends to a segment at a time (exclusive flock on the file); anybody reads what the catalog says is
 * there. A segment grows to about SEGMENT_ROLL_BYTES and is sealed then: never written again.
 *
 * What was appended after the length that the catalog has for a segment was never acknowledged: whoever opens it for
 * appending next cuts it off. Reading from one goes no further than that either.
 */
#ifndef WHERRY_STORE_SEGMENT_H
#define WHERRY_STORE_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/record.h"

enum { SEGMENT_HEADER_BYTES = 64, SEGMENT_BLOCK_BYTES = 4096, SEGMENT_ROLL_BYTES = 64 << 20 };
enum { STORE_ID_BYTES = 16 };

/* ---- appending: one thread at a time ---- */

struct segment_writer;

/*
 * Creates segment `number` and makes its name durable: file and folders are fsynced. `segments_fd` is STORE/segments.
 * -EEXIST when the file is there and holds more than a header (a leftover without records is taken over),
 * -EWOULDBLOCK (no message) when another process appends to it.
 */
int segment_writer_create(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			  struct segment_writer **ret_writer, struct failure *failure);

/*
 * Opens an existing unsealed one, cutting off what lies behind committed_bytes (anything up to SEGMENT_BLOCK_BYTES
 * means no record at all). -EWOULDBLOCK when another process appends to it (no message then), -EBADMSG when the header
 * is damaged or the file is shorter than committed_bytes, -ENOENT.
 */
int segment_writer_open(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			uint64_t committed_bytes, struct segment_writer **ret_writer, struct failure *failure);

uint32_t segment_writer_number(const struct segment_writer *writer);
/*
 * Length with everything appended, written or buffered. What the catalog is told is the length right after a sync:
 * the zeros that a sync may add belong to it.
 */
uint64_t segment_writer_bytes(const struct segment_writer *writer);

/*
 * Appends a record; `ret_off_bytes` is where its header stands. The payload's checksum is computed here, whatever
 * header->payload_checksum says. Buffered (1 MiB), nothing is durable yet; starts write-back early so that the sync to
 * come is short, and drops written pages from the page cache behind itself where they're clean. ENOSPC and EIO leave
 * the writer failed: every later call fails with the same code and message.
 */
int segment_writer_append(struct segment_writer *writer, const struct record_header *header, const void *stored,
			  uint64_t *ret_off_bytes, struct failure *failure);

/*
 * Everything appended before is durable on return (fdatasync). A failed fdatasync is never tried again: the
 * kernel may have dropped the pages and would report success; the writer is failed from then on.
 */
int segment_writer_sync(struct segment_writer *writer, struct failure *failure);

/*
 * Takes back what was appended from off_bytes on, which nobody was promised, synced or not; durable on return. What was
 * appended before is as it was. A failure leaves the writer failed.
 */
int segment_writer_rewind(struct segment_writer *writer, uint64_t off_bytes, struct failure *failure);

/*
 * The same as segment_writer_sync() in three steps, of which the second one, the long one, may go on next to appending in another thread; next to
 * another sync or the end of the writer it may not. What was appended before the first one is durable when the third one
 * returns 0; the bytes up to there are segment_writer_synced_bytes() then. `waited` is what the second one returned.
 */
int segment_writer_sync_begin(struct segment_writer *writer, uint64_t *ret_target_bytes, struct failure *failure);
int segment_writer_sync_wait(const struct segment_writer *writer); /* 0 or a negative errno */
int segment_writer_sync_end(struct segment_writer *writer, uint64_t target_bytes, int waited, struct failure *failure);
uint64_t segment_writer_synced_bytes(const struct segment_writer *writer); /* durable up to here; a whole block */

/* Does not sync: what was not synced is nobody's. Releases the flock. NULL is fine. */
void segment_writer_close(struct segment_writer *writer);
/* What made it refuse everything, a negative errno; 0: nothing has. */
int segment_writer_error(const struct segment_writer *writer);

/*
 * Cuts off what somebody has left behind committed_bytes who was killed, as segment_writer_open() does; durable on
 * return. 0 also if there is nothing, if somebody appends to it, or if it is damaged or missing, which a check tells.
 */
int segment_cut_leftovers(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			  uint64_t committed_bytes, struct failure *failure);

/*
 * Removes the file of a segment; durable on return (its folder is fsynced). 0 also if there is none. Who has it open
 * reads on.
 */
int segment_remove(int segments_fd, uint32_t number, struct failure *failure);

/* ---- reading: any number of threads ---- */

struct segment_reader; /* a bounded cache of open descriptors */

int segment_reader_new(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], unsigned most_open,
		       struct segment_reader **ret_reader, struct failure *failure);
void segment_reader_free(struct segment_reader *reader);
/* Keeps no descriptor of this segment, so that the room of a file that was removed is given back. Whoever reads from it just now, reads on. */
void segment_reader_forget(struct segment_reader *reader, uint32_t number);

/*
 * Reads the record at (number, off_bytes), whose payload must be stored_bytes long, checks header and payload
 * checksums, and hands out header and stored bytes. `stored` has room for stored_bytes, of which there are at most
 * RECORD_STORED_MOST_BYTES; its content is undefined after a failure. One system call reads header and payload.
 * -EBADMSG: damaged, cut short, or another record than expected; -ENOENT: the segment is missing; -EIO.
 * Messages name segment, offset and reason. The segment's own header (magic, number, store id) is checked once per
 * open.
 */
int segment_reader_read(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint32_t stored_bytes,
			struct record_header *ret_header, void *stored, struct failure *failure);

/* The header alone (64 bytes), for a look at the digest. */
int segment_reader_header(struct segment_reader *reader, uint32_t number, uint64_t off_bytes,
			  struct record_header *ret_header, struct failure *failure);

/*
 * Is the file of a segment there, the one that its name says, and how long is it? -ENOENT, -EBADMSG (its head is
 * damaged, or it is another segment); the message begins with "segment 000001ab: ". Opens the file anew each time.
 */
int segment_examine(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, uint64_t *ret_file_bytes,
		    struct failure *failure);

/* Hints that this range will be read soon (readahead); never fails. */
void segment_reader_prefetch(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint64_t len_bytes);

/*
 * Walks a segment file from its start without a catalog, calling `visit` for each record whose header is valid and
 * which lies wholly inside the file, with its offset; payloads are not read. Stops at the first thing that is neither
 * such a record nor the zeros before the next block; *ret_valid_bytes says where. For check, rebuild and tests.
 * visit != 0 ends the walk with that value, ret_valid_bytes untouched.
 */
typedef int (*segment_visit_fn)(void *opaque, uint64_t off_bytes, const struct record_header *header);
int segment_walk(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, segment_visit_fn visit,
		 void *opaque, uint64_t *ret_valid_bytes, struct failure *failure);

/*
 * Is there something behind the place where a walk stopped, that is neither zeros nor a record that was being written when its writer ended?
 * Damage there hides all that follows; or a power cut has left some of what nobody was promised: it can't be told apart.
 */
int segment_rest_is_damaged(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			    uint64_t valid_bytes, bool *ret_is_damaged, struct failure *failure);

#endif
