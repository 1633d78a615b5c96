/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk engine: a disk or an image as a block device sees it, at byte granularity, from many threads at once.
 *
 * Everything that gives disks to others (NBD, files) opens them here. Reads, extents and prefetching work on images and
 * on live disks alike; the rest is for live disks. disk.c explains how small writes, the journal and folding work
 * together.
 *
 *     struct chunk_cache *cache;                  struct disk *disk;
 *     chunk_cache_new(128 << 20, &cache, …);      disk_open(store, &reference, &(struct disk_options){.cache = cache,
 * …}, &disk, …); …                                           disk_write(disk, buffer, len_bytes, off_bytes, DISK_FUA,
 * …); chunk_cache_free(cache);                    disk_close(disk, …);
 *
 * What is durable (R1): what was written before disk_flush() was called, when it returns 0; what a call with DISK_FUA
 * wrote, when that returns 0. After a crash or a power cut every sector of 512 bytes that was being written has its old
 * or its new content.
 *
 * A flush that fails is final: the kernel may have dropped what it could not write. From then on every write and flush
 * of this disk fails with -EIO until it is opened anew; what was flushed before is there.
 *
 * Common to all: 0 or a negative errno, with a message. Ranges must lie in the disk: else -EINVAL (-ENOSPC for what
 * writes beyond the end), also when offset and length overflow. A length of 0 does nothing. -EBADMSG: damage, of just
 * the range asked for; -ENOSPC: no room; nothing was changed, and later writes work when there is some again. -EROFS:
 * writing to what is open for reading.
 */
#ifndef WHERRY_STORE_DISK_H
#define WHERRY_STORE_DISK_H

#include "store/store.h"

/* ---- the cache of plain chunks ---- */

/*
 * Decompressed chunks, for all disks of a process that are opened with it. Bounded; sharded; any thread. A chunk that
 * several want at once is decoded by one of them, outside of any lock.
 */
struct chunk_cache;
enum { CHUNK_CACHE_DEFAULT_BYTES = 128 << 20, CHUNK_CACHE_LEAST_BYTES = 4 << 20 };
int chunk_cache_new(uint64_t most_bytes, struct chunk_cache **ret_cache, struct failure *failure);
void chunk_cache_free(struct chunk_cache *cache); /* after all disks that use it; NULL is fine */

/* ---- opening ---- */

struct disk;

struct disk_options {
	const char *doing;	   /* who we are, for whoever finds it locked: "nbdkit (pid 4711)" */
	struct chunk_cache *cache; /* borrowed; must outlive the disk */
	bool write;		   /* live content only: -EROFS for an image */
	bool write_mirror; /* else a disk that rounds write to can't be opened for writing: -EPERM, says what to do */
	uint64_t journal_soft_bytes; /* folding begins; 0: 256 MiB; UINT64_MAX: only at images, at closing, and when the
					other is reached */
	uint64_t journal_hard_bytes; /* writers wait for it; 0: 1 GiB */
};

/*
 * -ENOENT; -EBUSY (open elsewhere, by whom: live content has one opener, images any number). What a crash left in the
 * journal is replayed. A partition in the reference is not looked at. A disk opened for writing answers requests for
 * images of other processes (store_request_image()) until it is closed.
 */
int disk_open(struct store *store, const struct store_reference *reference, const struct disk_options *options,
	      struct disk **ret_disk, struct failure *failure);

/* Waits for what is under way; folds the journal, and removes it. On failure the disk is closed all the same, and what
 * was flushed is in the journal. NULL is fine. */
int disk_close(struct disk *disk, struct failure *failure);

const char *disk_name(const struct disk *disk); /* "web01", "web01@3" */
uint64_t disk_size(const struct disk *disk);	/* bytes; doesn't change while it is open */
uint32_t disk_sector_bytes(const struct disk *disk);
uint32_t disk_chunk_bytes(const struct disk *disk);
bool disk_is_writable(const struct disk *disk);

/* ---- reading ---- */

int disk_read(struct disk *disk, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);

/*
 * Calls `found` for pieces that cover [off_bytes, off_bytes + len_bytes) one after the other, none of them reaching
 * beyond it. is_hole: nothing is stored there; is_zero: reads as zeros. It may end early by returning != 0, which is
 * returned. Pieces that follow each other may be alike. Costs what is mapped, not what the range's length is.
 */
int disk_extents(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes,
		 int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero),
		 void *opaque, struct failure *failure);

/* Has the range in the cache soon. A hint; returns at once. */
void disk_prefetch(struct disk *disk, uint64_t off_bytes, uint64_t len_bytes);

/* ---- writing ---- */

enum disk_flags {
	DISK_FUA = 1,  /* durable on return */
	DISK_TRIM = 2, /* zero: may become a hole. (It always does where a whole chunk is concerned.) */
	DISK_FAST = 4, /* zero: -ENOTSUP unless it takes no longer than the same without data: here it never does */
};
int disk_write(struct disk *disk, const void *buffer, size_t len_bytes, uint64_t off_bytes, unsigned flags,
	       struct failure *failure);
int disk_zero(struct disk *disk, uint64_t len_bytes, uint64_t off_bytes, unsigned flags, struct failure *failure);
int disk_flush(struct disk *disk, struct failure *failure);

/*
 * An image of everything that was acknowledged before the call; writers wait for a moment at its end. Durable on
 * return. Any thread. params->consistency is what is known of the content otherwise: STORE_CLEAN becomes STORE_FROZEN, for it is
 * what a power cut at that moment would have left. params->round must be 0. -EBADMSG: small writes lie over what is damaged, so nobody
 * can say what the image would hold; the message names a range that, written or discarded as a whole, is mended by that.
 */
int disk_create_image(struct disk *disk, const struct store_image_params *params, uint32_t *ret_number,
		      struct failure *failure);

/* ---- from outside ---- */

/*
 * An image of a disk's live content as disk_create_image() makes it, whoever has it open: nobody (it is opened for that), or another process with
 * disk_open(), which is asked through its control socket. -EBUSY: somebody who doesn't answer such requests, a round
 * for instance.
 */
int store_request_image(struct store *store, const char *disk, const struct store_image_params *params,
			const char *doing, uint32_t *ret_number, struct failure *failure);

#endif
