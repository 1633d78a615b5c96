/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a round reads from: a block device, a regular file, or an NBD export.
 *
 * All three look the same from outside: a size, a sector size, reads with many
 * requests in flight, a map of holes, and what can be known about whether
 * somebody else is changing the content at this moment.
 *
 * A source is only ever read. It is opened read-only, never locked, and nothing
 * of it is kept in the host's page cache that was not there before: the host is
 * somebody's production server.
 */
#ifndef WHERRY_SYNCER_SOURCE_H
#define WHERRY_SYNCER_SOURCE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"

enum source_kind { SOURCE_FILE, SOURCE_BLOCK_DEVICE, SOURCE_NBD };

struct source_info {
	enum source_kind kind;
	uint64_t size_bytes;   /* > 0; need not be a multiple of sector_bytes for a file */
	uint32_t sector_bytes; /* logical sector size: 512 or 4096 (power of two, 512..65536); 512 for a file */
	uint32_t align_bytes;  /* buffers, offsets and lengths of requests should be multiples of this (a power of two,
				* at most 4096) where they can: unaligned ones work and are slower */
	bool is_read_only;	/* NBD: the server takes no writes on this export, from anybody on this connection */
	uint32_t most_in_flight; /* how many requests are worth having in flight at once, 1..64 */
	char *name;		 /* what people call it: the path or the URI without secrets */
	char *identity;		 /* stable between rounds and hosts' reboots where possible, e.g. "file:INODE:/srv/a.img",
				  * "block:/dev/sda:<serial or wwid if any>", "nbd:…": tells whether a round that
				  * resumes still reads from the same place */
};

struct source_options {
	const char *dirty_bitmap;      /* NBD: name of a QEMU dirty bitmap to ask for, or NULL */
	const struct notices *notices; /* may be NULL */
};

struct source;

/*
 * Opens `spec`: "nbd://", "nbds://", "nbd+unix://", "nbds+unix://" is an NBD URI (any other scheme with "://"
 * is refused by name), everything else a path. nbds+unix is refused, and so is nbds without a host name, because the
 * libnbd of Debian 12 doesn't verify the certificate there. A path that is neither a regular file nor a block device, a
 * size of 0, a file that can't be read: each is refused with one clear message (no such file; permission denied, run as
 * root or …; is a directory). A raw file is raw, whatever its first bytes look like.
 *
 * Caller closes with source_close(). -ENOENT, -EACCES, -EINVAL, -ECONNREFUSED, …
 */
int source_open(const char *spec, const struct source_options *options, struct source **ret_source,
		struct failure *failure);
void source_close(struct source *source); /* NULL is fine; requests in flight are waited for or cancelled */

const struct source_info *source_get_info(const struct source *source);

/*
 * A read in flight. The caller owns it and the buffer; both stay untouched by the caller between submit and reap.
 */
struct source_request {
	uint64_t off_bytes;
	uint32_t len_bytes; /* 1 .. 32 MiB, inside the source; caller's business, asserted */
	uint8_t *buffer;
	int result;   /* after reap: 0 = all of it is there, else a negative errno; never a short read.
		       * -ESTALE: the source became shorter than when it was opened */
	void *opaque; /* the caller's */
};

/*
 * submit and reap belong to one thread. At most info->most_in_flight * 2 may be in flight (asserted).
 * source_submit() fails only when the source is gone for good (connection lost), the request isn't in flight then.
 * source_reap() gives back one finished request, in any order; waits when `wait`, but not much longer than a quarter of
 * a second, so that its caller notices when it is to stop though the source hangs; NULL when none
 * is finished (or none in flight). After a lost connection all requests in flight come back with an error.
 */
int source_submit(struct source *source, struct source_request *request, struct failure *failure);
struct source_request *source_reap(struct source *source, bool wait);

/*
 * For who wants nothing of what is in flight any more, and has the buffers: returns when nothing is in flight, and
 * nobody writes to them. If is_urgent, an NBD server that doesn't answer within 2 seconds is given up for good; else it has
 * the time that it always has. A file or device is waited for.
 */
void source_abandon(struct source *source, bool is_urgent);

/* What the server said of holes and dirty blocks so far is asked for anew. */
void source_forget_maps(struct source *source);

/*
 * A plain blocking read of exactly len_bytes. May be called from the thread that submits, also while requests are in
 * flight.
 */
int source_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);

/*
 * Is the content in memory, so that reading it is no more than a copy (a file in the host's page cache)? Then source_read_at_hand()
 * on the thread that wants it is better than a request. At most 1 MiB, within one aligned MiB.
 *
 * source_read_at_hand() may be called from any number of threads, next to everything else. It doesn't wait for a device where it can help it: false when the
 * content isn't at hand (any more), or can't be read; the buffer holds anything then, and a request will tell.
 */
bool source_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes);
bool source_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes);

/*
 * Reads a range that could not be read in one piece: tries again after a short wait, then halves until single sectors
 * are left, the smallest things the source can read by themselves. What can't be had reads as zeros and is reported
 * through `bad`, once for each run of bad sectors, in ascending order. Returns 0 also when there were bad sectors, a
 * negative errno only when going on makes no sense (connection lost, source gone, *stop became true: -ECANCELED).
 * `stop` and `bad` may be NULL. An error that is not EIO-like (ENOLINK, ENOTCONN, ESHUTDOWN, ESTALE …) isn't a bad
 * sector.
 */
typedef void (*source_bad_range_fn)(void *opaque, uint64_t off_bytes, uint64_t len_bytes);
int source_read_salvaging(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes,
			  const atomic_bool *stop, source_bad_range_fn bad, void *opaque, struct failure *failure);

/*
 * What the source says about a range without reading it. SOURCE_HOLE reads as zeros for certain (SEEK_HOLE;
 * base:allocation with the zero flag). Unknown is data.
 * `ret_len_bytes` is how far the same answer holds, > 0 and never beyond off + len. One thread at a time, the
 * submitting one.
 */
enum source_extent { SOURCE_DATA, SOURCE_HOLE };
int source_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
		     uint64_t *ret_len_bytes, struct failure *failure);

/*
 * The dirty bitmap asked for in the options: is this range dirty? Same contract as source_extent_at().
 * -ENODATA with a message that lists the bitmaps there are when the server doesn't offer it (already at source_open()).
 */
int source_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
		    uint64_t *ret_len_bytes, struct failure *failure);

/*
 * Names of all QEMU dirty bitmaps the NBD server offered at connect, sorted, separated by '\n'; "" when there are none
 * or it is no NBD source. Owned by the source.
 */
const char *source_dirty_bitmaps(const struct source *source);

/*
 * Is somebody else using the source so that its content may change while it is read?
 *   - block device: it, one of its partitions or anything stacked on it (device mapper, md, loop; any depth, by
 *     /sys/block/…/holders) is mounted read-write or is active swap, by major:minor in /proc/self/mountinfo and
 * /proc/swaps
 *   - file: a loop device backed by it is in use in that way, or somebody holds a write lock on it (QEMU locks its
 * images: F_OFD_GETLK)
 *   - NBD: unknown, *ret_in_use = false
 * `ret_why` says it in words ("/dev/sda2 is mounted on /"), caller frees, NULL when not in use. A read-only mount isn't
 * use.
 */
int source_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure);

/* The same for a byte range of the source, a partition of it: is that range mounted (read-write or read-only)? For the
 * planner, which trusts allocation maps of file systems only when they're not mounted. When it can't be told, true.
 * NBD: false. */
int source_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			 struct failure *failure);

/*
 * A stamp that is the same at two moments only if nothing was written to the source in between: size, mtime and ctime
 * of a file; boot id and the count of completed writes (sectors written) of a block device. "" when it can't be told
 * (NBD). Caller frees.
 */
int source_change_stamp(struct source *source, char **ret_stamp, struct failure *failure);

/* The size now. Differs from info->size_bytes if the source was resized meanwhile. NBD: the size at connect. */
int source_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure);

/*
 * Is `path` (a device or regular file) in use such that overwriting it would destroy something: mounted (also
 * read-only), swap, held by a stacked device, a partition of it in use? For `export` to a device. `ret_why` as above.
 */
int source_path_busy(const char *path, bool *ret_busy, char **ret_why, struct failure *failure);

#endif
