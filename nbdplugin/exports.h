/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What export names stand for, and who shares what.
 *
 *     web01             live content                    all connections share one disk, for it can be open once only
 *     web01@3           image 3, or @latest             all connections share one, too
 *     web01@3/2         partition 2 of any of these     a range of the same
 *     web01@3:NAME      scratch only: an overlay of its own, one for each NAME
 *
 * With scratch, an image is opened with an overlay, which belongs to the export name: connections to the same name see
 * the same disk, others don't, and when the last one has gone so has the overlay. (A "latest" stays, for that long, the
 * image that it was when the first one came.)
 *
 * Any thread. Common to all: 0 or a negative errno, with a message.
 */
#ifndef WHERRY_NBDPLUGIN_EXPORTS_H
#define WHERRY_NBDPLUGIN_EXPORTS_H

#include <stdatomic.h>

#include "store/disk_pool.h"

struct exports_options {
	const char *store_path; /* borrowed, like the others here, for as long as the exports are */
	const char *only;	/* a reference: nothing else is offered; NULL: all that there is */
	bool scratch;		/* images can be written to */
	bool write_mirror;	/* live disks that rounds write to, too */
	uint64_t cache_bytes;
	const struct notices *notices; /* may be NULL */
};

/* Whether these can be served, as far as can be told before that. Leaves nothing open: nbdkit forks afterwards. */
int exports_check(const struct exports_options *options, struct failure *failure);

struct exports;
int exports_start(const struct exports_options *options, struct exports **ret_exports, struct failure *failure);
/*
 * No other thread may use it any more. Closes what is still open: nbdkit, told to quit, doesn't close the connections that it has (free_connection() in its
 * server/connections.c), and a disk's own threads go on until it is closed. What could not be put in place is a notice. NULL is fine.
 */
void exports_stop(struct exports *exports);

/* What a connection has. Read-only for everybody but exports.c, where nothing else is said. */
struct open_export {
	struct open_export *next; /* exports.c's list of all */
	struct pooled_disk *pooled;
	struct disk *disk;	 /* borrowed from that, as is: */
	struct scratch *scratch; /* over the disk; NULL: none */
	uint64_t off_bytes;	 /* of the disk or overlay */
	uint64_t len_bytes;
	bool is_writable;
	char *description;    /* owned */
	atomic_bool was_read; /* plugin.c's */
};

/*
 * -ENOENT: no such export; -EBUSY: open elsewhere, by whom, and for two seconds since. A live disk that can't be had for writing, because rounds
 * write to it or the store is read-only, is opened for reading, and a notice says why.
 */
int exports_open(struct exports *exports, const char *name, bool read_only, struct open_export **ret_export,
		 struct failure *failure);
/* The last one waits until all is in place: see disk_close(). */
int exports_close(struct exports *exports, struct open_export *export, struct failure *failure);

/* What a client gets that names none: `ret_name` has room for EXPORT_NAME_BYTES. -ENOENT: there is no such thing. */
enum { EXPORT_NAME_BYTES = POOL_KEY_BYTES }; /* "DISK@4294967295/4294967295:OVERLAY", two names of 63 bytes */
int exports_default(struct exports *exports, char *ret_name, struct failure *failure);

/*
 * Disks, images, and of each disk the partitions of its newest image. Ends early when `found` returns != 0, with that.
 */
int exports_list(struct exports *exports, int (*found)(void *opaque, const char *name, const char *description),
		 void *opaque, struct failure *failure);

#endif
