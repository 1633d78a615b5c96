/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that are open, shared by key: for front ends that give the same disk to many at once, each of whom comes and
 * goes when he likes.
 *
 * Live content can be open once only, and an image that is opened anew for each reader would look for the same things
 * again. So who asks for a key that is open shares what is there; the first one opens it, the last one closes it. The
 * pool doesn't care what a key is made of, as long as it means the same disk each time: "web01", "web01@3".
 *
 *     struct disk_pool *pool;                      struct pooled_disk *pooled;
 *     disk_pool_new(&options, &pool, …);           disk_pool_acquire(pool, "web01@3", &reference, POOL_READ, &pooled,
 * …); …                                            disk_read(pooled->disk, …); disk_pool_free(pool);
 * disk_pool_release(pool, pooled, …);
 *
 * Any thread. Opening replays a journal and closing folds one: who comes meanwhile for that key waits, who comes for
 * another one doesn't. Common to all: 0 or a negative errno, with a message.
 */
#ifndef WHERRY_STORE_DISK_POOL_H
#define WHERRY_STORE_DISK_POOL_H

#include "store/disk.h"
#include "store/scratch.h"

struct disk_pool_options {
	struct store *store;	       /* borrowed, like the others here: must outlive the pool */
	struct chunk_cache *cache;     /* of all its disks */
	const char *doing;	       /* "nbdkit wherry": with the disk's name behind it, who we are */
	bool store_is_read_only;       /* nothing is opened for writing */
	bool write_mirror;	       /* as in disk.h */
	const struct notices *notices; /* may be NULL */
};

struct disk_pool;
int disk_pool_new(const struct disk_pool_options *options, struct disk_pool **ret_pool, struct failure *failure);
void disk_pool_free(struct disk_pool *pool); /* everything is released; NULL is fine */

/* Of live content; an image is opened for reading whatever is said, and POOL_OVERLAY is for images only. */
enum pool_mode {
	POOL_READ,
	POOL_WRITE,	    /* as disk_open() refuses it, -EPERM for a mirror */
	POOL_WRITE_OR_READ, /* for reading where that is so, and a notice says why, or where the store is read-only */
	POOL_OVERLAY,	    /* an image with an overlay, which is gone with the last one who shares it */
};
enum { POOL_KEY_BYTES = 192 };

/* What several share. Read-only for everybody but disk_pool.c, where nothing else is said. */
struct pooled_disk {
	struct pooled_disk *next;
	char key[POOL_KEY_BYTES];
	int state;
	unsigned users;
	struct disk *disk;
	struct scratch *scratch; /* over it: what is read and written instead; NULL: none */
};

/*
 * As disk_open(), and patient: -EBUSY only if it has been for two seconds, for an image that is made or what a crash
 * left has a disk for a moment only. Shares what is open under this key, whatever `mode` is then: disk_is_writable()
 * tells what one has got. -ENAMETOOLONG: the key.
 */
int disk_pool_acquire(struct disk_pool *pool, const char *key, const struct store_reference *reference,
		      enum pool_mode mode, struct pooled_disk **ret_pooled, struct failure *failure);
/* The last one waits until all is in place, and gets what disk_close() says. */
int disk_pool_release(struct disk_pool *pool, struct pooled_disk *pooled, struct failure *failure);

#endif
