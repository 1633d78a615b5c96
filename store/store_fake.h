/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store in memory, for tests of everything that stands on a store.
 *
 * It keeps every promise of store.h, and it does on demand what real ones do at
 * the worst moment: it is slow, fails the n-th call of a function before or after
 * it took effect, returns damage where a chunk was, and loses its power.
 *
 *     store_fake_new(&(struct store_fake_options){0}, &store);
 *     store_fake_cut_power_at(store, STORE_FAKE_COMMIT, 3, STORE_FAKE_BEFORE);
 *     …run something on it; its third commit fails, and so does all that it tries afterwards…
 *     store_view_close(view);
 *     …run it again on the same store, and look whether everything promised is still there…
 *
 * A power cut takes what was not promised to be durable: chunks that no commit has named. Views die with their leases,
 * as if their process had: every call on one but store_view_close() is answered with -EIO from then on. The store
 * itself can be used again at once.
 *
 * A test of crashes proves nothing unless it fails on a store that breaks its promises: `forgets_commits` is that
 * store.
 *
 * Chunks to which nothing refers any more stay until store_fake_clean(). Holders of leases are known by name, those of
 * images too.
 *
 * Threads: like any store; all functions here may be called by any thread at any time. Delays are slept outside of the
 * lock, so other threads go on meanwhile.
 */
#ifndef WHERRY_STORE_STORE_FAKE_H
#define WHERRY_STORE_STORE_FAKE_H

#include "store/store.h"

/* The functions of store.h that reach a store, but store_close(). */
enum store_fake_op {
	STORE_FAKE_CONTAINS_PATH,
	STORE_FAKE_LIST_DISKS,
	STORE_FAKE_LIST_IMAGES,
	STORE_FAKE_DESCRIBE_IMAGE,
	STORE_FAKE_BRIEF_IMAGES,
	STORE_FAKE_BRIEF_IMAGE,
	STORE_FAKE_LIST_ROUNDS,
	STORE_FAKE_USAGE,
	STORE_FAKE_ROOM,
	STORE_FAKE_CHECK,
	STORE_FAKE_CLEAN,
	STORE_FAKE_CREATE_DISK,
	STORE_FAKE_CLONE_DISK,
	STORE_FAKE_REMOVE_DISK,
	STORE_FAKE_SET_POLICY,
	STORE_FAKE_DELETE_IMAGE,
	STORE_FAKE_PIN_IMAGE,
	STORE_FAKE_RETAIN,
	STORE_FAKE_VIEW_OPEN,
	STORE_FAKE_VIEW_CLOSE, /* can't fail: counted and delayed only */
	STORE_FAKE_VIEW_MAP,
	STORE_FAKE_VIEW_NEXT_PAGE,
	STORE_FAKE_READ_CHUNK,
	STORE_FAKE_VIEW_PREFETCH, /* can't fail either */
	STORE_FAKE_FIND_CHUNKS,
	STORE_FAKE_PUT_CHUNK,
	STORE_FAKE_COMMIT,
	STORE_FAKE_RESIZE_DISK,
	STORE_FAKE_CREATE_IMAGE,
	STORE_FAKE_BEGIN_ROUND,
	STORE_FAKE_NOTE_ROUND,
	STORE_FAKE_FINISH_ROUND,
	STORE_FAKE_ROUND_THROTTLE,
	STORE_FAKE_OPS,
};

struct store_fake_options {
	uint32_t chunk_bytes; /* a power of two within the limits; 0: STORE_CHUNK_DEFAULT_BYTES */
	bool read_only;	      /* every change is refused with -EROFS */
	/* Broken on purpose: what a commit says is durable only when the next call that promises durability has come.
	 */
	bool forgets_commits;
};

/* -EINVAL (chunk_bytes), -ENOMEM. store_close() releases it. */
int store_fake_new(const struct store_fake_options *options, struct store **ret_store);

/* From now on each call of `op` takes so much longer; 0 for none. */
void store_fake_delay(struct store *store, enum store_fake_op op, unsigned int delay_ms);

enum store_fake_when {
	STORE_FAKE_BEFORE, /* nothing was done */
	STORE_FAKE_AFTER,  /* all was done, and yet the caller is told that it failed (what it would have been given is
			      released) */
};
/*
 * The n-th call of `op` from now (1: the next) fails with the negative errno `code`. One such plan an op: a new one
 * replaces it, n = 0 drops it.
 */
void store_fake_fail(struct store *store, enum store_fake_op op, uint64_t n, int code, enum store_fake_when when);

/* The same with -EIO, and the power goes at that moment: see store_fake_power_cut(). */
void store_fake_cut_power_at(struct store *store, enum store_fake_op op, uint64_t n, enum store_fake_when when);

void store_fake_power_cut(struct store *store);

/* Until it is switched off again, reading the chunk with this digest gives -EBADMSG. -ENOENT: there is none. */
int store_fake_damage(struct store *store, const uint8_t digest[DIGEST_BYTES], bool is_damaged);

/* Removes chunks to which nothing refers, also such as were found but not committed yet: that commit gets -ESTALE.
 * Returns how many. store_clean() leaves alone what was put and not committed. */
size_t store_fake_clean(struct store *store);

/* How often `op` was called, failed calls and those refused by the store included. */
uint64_t store_fake_calls(struct store *store, enum store_fake_op op);

/* A folder, there and empty, where the disk engine may keep journals and sockets of this store's disks; without, none can be opened for writing. -ENOMEM. */
int store_fake_set_files(struct store *store, const char *folder);

/* Plain bytes given out by store_view_read_chunk(). */
uint64_t store_fake_bytes_read(struct store *store);

#endif
