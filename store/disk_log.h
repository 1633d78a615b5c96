/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk's log: its manifests, from which the catalog can be made again (R5).
 *
 * Everything that happens to a disk is an entry of its log: created, extents committed, an image made, an image
 * deleted, a pin, a policy. An entry is the plain payload of a RECORD_LOG in some segment, durable before the catalog
 * transaction that it describes.
 *
 * Entries form a chain: each holds the digest of the one before it. An entry whose transaction never committed (a crash
 * between the two) is therefore recognised: the next one doesn't point at it, it points at the last one that the
 * catalog knew. Replaying the chain that ends at the newest entry gives the disk with all its images. The digest of an
 * `image` entry vouches for the whole content of the image.
 *
 * Image N's manifest is the entries since image N-1; making an image writes one small entry whatever the image holds,
 * because its extents were logged as they were committed.
 *
 * Plain layout, little-endian, varint = LEB128 in its shortest form, string = varint length and bytes without a NUL:
 *     u8 entry format = 1   u8 op   u64 sequence (from 1, per disk, one more than its predecessor)   16 bytes disk uuid
 *     32 bytes digest of the predecessor (zeros: first)   u64 unix time in seconds   then by op:
 *
 *   LOG_CREATE        string name, varint size_bytes, varint sector_bytes, varint chunk_bytes
 *   LOG_EXTENTS       varint generation, varint run count, runs: varint first chunk - end of the run before,
 *                     varint chunk count, u8 kind (0 nothing, 1 zero, 2 chunks), kind 2: 32-byte digest for each chunk
 *   LOG_RESIZE        varint size_bytes
 *   LOG_IMAGE         varint number, varint generation, varint size_bytes, varint changed_bytes, string label,
 *                     u8 consistency, varint round, string details (JSON)
 *   LOG_IMAGE_DELETE  varint number
 *   LOG_IMAGE_PIN     varint number, u8 pinned
 *   LOG_IMAGE_LABEL   varint number, string label
 *   LOG_POLICY        varint keep, varint level + 1, varint limit, string mirror_of
 *   LOG_REMOVE        (nothing)
 *   LOG_BASE          varint generation, varint piece count, pieces: varint offset - end of the piece before, varint length,
 *                     16 bytes uuid of the image's disk, varint image number, varint offset in the image; all in bytes.
 *                     From now on live content has these pieces, and no others
 * Unknown ops and formats are refused, bytes behind the end are refused. One entry has one encoding: what decodes
 * encodes to the same bytes again.
 *
 * Rules of validity: an entry is the first (sequence 1, no predecessor) if and only if it is LOG_CREATE; names by the
 * naming rule; sizes, times and counts < 2^63; the chunk size is the store's; sector size a power of two, 512..65536;
 * runs ascending, none empty, none beyond 2^63 bytes; at most LOG_ENTRY_MOST_CHUNKS digests and LOG_ENTRY_MOST_RUNS
 * runs an entry; pieces ascending, none empty, none beyond 2^63 bytes in the disk or in the image, at most LOG_ENTRY_MOST_PIECES; image numbers from 1; consistency at most LOG_CONSISTENCY_MOST; label, details and mirror_of within
 * their caps; the plain payload within RECORD_PLAIN_MOST_BYTES.
 */
#ifndef WHERRY_STORE_DISK_LOG_H
#define WHERRY_STORE_DISK_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/failure.h"
#include "store/hash.h"

enum {
	LOG_ENTRY_MOST_CHUNKS = 4096,
	LOG_ENTRY_MOST_RUNS = 4096,
	LOG_ENTRY_MOST_PIECES = 4096,
	LOG_NAME_MOST_BYTES = 63,
	LOG_LABEL_MOST_BYTES = 255,
	LOG_DETAILS_MOST_BYTES = 65536,
	LOG_MIRROR_MOST_BYTES = 4096,
	LOG_CONSISTENCY_MOST = 2, /* enum store_consistency */
	DISK_UUID_BYTES = 16,
};

enum log_op {
	LOG_CREATE = 1,
	LOG_EXTENTS,
	LOG_RESIZE,
	LOG_IMAGE,
	LOG_IMAGE_DELETE,
	LOG_IMAGE_PIN,
	LOG_IMAGE_LABEL,
	LOG_POLICY,
	LOG_REMOVE,
	LOG_BASE,
};

enum log_run_kind { LOG_RUN_NOTHING = 0, LOG_RUN_ZERO = 1, LOG_RUN_CHUNKS = 2 };

struct log_run {
	uint64_t first_chunk;
	uint64_t chunk_count;
	enum log_run_kind kind;
	const uint8_t (*digests)[DIGEST_BYTES]; /* LOG_RUN_CHUNKS: chunk_count of them, borrowed */
};

/* Bytes of the disk that are those of an image where the disk has none of its own. */
struct log_piece {
	uint64_t off_bytes;
	uint64_t len_bytes;
	uint8_t image_uuid[DISK_UUID_BYTES]; /* of the image's disk */
	uint32_t image_number;
	uint64_t image_off_bytes;
};

struct log_entry {
	enum log_op op;
	uint64_t sequence;
	uint8_t disk_uuid[DISK_UUID_BYTES];
	uint8_t predecessor[DIGEST_BYTES];
	int64_t time_seconds;
	/* by op; strings, runs and pieces are borrowed when encoding, owned by the entry when decoded; "" decodes as NULL */
	char *name;
	uint64_t size_bytes;
	uint32_t sector_bytes;
	uint32_t chunk_bytes;
	uint32_t generation;
	struct log_run *runs;
	size_t run_count;
	struct log_piece *pieces;
	size_t piece_count;
	uint32_t image_number;
	uint64_t changed_bytes;
	char *label;	     /* NULL and "" are the same */
	uint8_t consistency; /* enum store_consistency */
	uint32_t round_number;
	char *details; /* JSON text, may be NULL: read errors, what was left out, … */
	bool pinned;
	uint64_t keep;
	int level; /* -1: default */
	uint64_t limit_bytes_per_second;
	char *mirror_of;
};

/*
 * Appends the plain payload to `writer`. The entry must be valid (asserted), except that too many runs, digests, pieces or
 * bytes of details are the caller's data and not its mistake: -E2BIG. -ENOMEM.
 */
int log_entry_encode(const struct log_entry *entry, struct byte_writer *writer, struct failure *failure);

/*
 * Parses untrusted bytes: everything is checked against the rules above. The runs' digests are borrowed from `plain`.
 * chunk_bytes is the store's. -EBADMSG, -ENOMEM. On success log_entry_free() releases.
 */
int log_entry_decode(const void *plain, size_t plain_bytes, uint32_t chunk_bytes, struct log_entry *ret_entry,
		     struct failure *failure);
void log_entry_free(struct log_entry *entry);

#endif
