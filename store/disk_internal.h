/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the disk engine share. disk.c explains.
 */
#ifndef WHERRY_STORE_DISK_INTERNAL_H
#define WHERRY_STORE_DISK_INTERNAL_H

#include <pthread.h>

#include "store/chunk_cache.h"
#include "store/disk.h"
#include "store/journal.h"
#include "store/store_ops.h"

/* ThreadSanitizer follows 64 locks of a thread at most, and who makes an image holds all stripes. */
#ifdef __SANITIZE_THREAD__
enum { DISK_STRIPES = 32 };
#else
enum { DISK_STRIPES = 1024 };
#endif

enum {
	DISK_MAP_SLOTS = 1024,
	DISK_STREAMS = 8,
	DISK_PREFETCH_THREADS_MOST = 4,
	DISK_PREFETCH_QUEUE = 256,
	DISK_ENTRIES_SOFT = 128 << 10, /* of journaled extents and chunks together: 56 bytes each, on the average */
	DISK_ENTRIES_HARD = 256 << 10,
	DISK_PENDING_MOST = 1024, /* chunks put and not committed; at half of it a writer commits, beyond all wait */
	DISK_KEPT_MOST_BYTES = 32 << 20, /* plain content kept with them: of the cache, as long as that has it */
	DISK_KEPT_LEAST_BYTES = 8 << 20,
	DISK_KEPT_BY_ALL_MOST_BYTES = 64 << 20, /* the same, by all disks of this process: beyond, what is written is committed at once */
	DISK_SCRATCHES = 64, /* for decoding, that wait for the next one: of a disk, and of all of this process */
};

/* A piece of a chunk that is in the journal and nowhere else. */
struct extent {
	uint32_t off_bytes; /* in the chunk */
	uint32_t len_bytes;
	uint64_t file;	      /* of the journal */
	uint32_t place_bytes; /* in the file: of the record it is from */
	uint32_t into_bytes;  /* of the record's payload, where the extent begins; zeros have none */
	bool is_zero;
};

/* The content of a whole chunk, put and not committed. */
struct pending_content {
	uint8_t kind;	  /* enum store_map_kind */
	uint64_t version; /* of all that were ever pending in this disk: tells this one from a later one of the same
			     place */
	store_chunk chunk;
	uint8_t digest[DIGEST_BYTES];
	uint8_t fingerprint[FINGERPRINT_BYTES];
	uint8_t *plain; /* owned; NULL: zeros. Readers take it from here: the chunk may be cleaned away */
	uint32_t plain_bytes;
};

/* A chunk of which the catalog doesn't say everything. */
struct chunk_state {
	struct chunk_state *next;
	uint64_t index;
	struct pending_content *pending; /* or NULL */
	bool is_journaled;		 /* there may be records of it in the journal's files */
	uint64_t last_file;		 /* the newest with one */
	struct extent *extents;		 /* ascending, not overlapping; over what `pending` or the map says */
	uint32_t extent_count, extent_capacity;
};

struct stripe {
	pthread_rwlock_t lock;
	struct chunk_state **buckets;
	size_t bucket_count; /* a power of two, 0: none yet */
	size_t count;
};

struct map_slot {
	pthread_mutex_t lock;
	uint64_t page_plus_one; /* 0: empty */
	store_chunk *chunks;	/* STORE_MAP_PAGE_ENTRIES; 0 reads as zeros */
};

struct stream {
	uint64_t next_bytes; /* where a reader that goes on would read */
	uint64_t prefetched_bytes;
	unsigned hits;
	uint64_t used;
};

struct disk {
	struct store *store;
	struct store_view *view;
	struct chunk_cache *cache;
	char *name;
	bool is_writable;
	uint32_t chunk_bytes;
	uint64_t size_bytes;
	int level;

	/* the map, as read */
	struct map_slot *slots;
	_Atomic uint64_t map_version; /* a page read before this changed may be out of date */

	/* decoding */
	pthread_mutex_t scratch_lock;
	struct store_scratch *scratches[DISK_SCRATCHES];
	unsigned scratch_count;

	/* reading ahead */
	pthread_mutex_t ahead_lock;
	pthread_cond_t ahead_came;
	struct stream streams[DISK_STREAMS];
	uint64_t stream_clock;
	uint64_t ahead[DISK_PREFETCH_QUEUE];
	unsigned ahead_first, ahead_count;
	pthread_t ahead_threads[DISK_PREFETCH_THREADS_MOST];
	unsigned ahead_thread_count;
	bool ahead_is_ending;

	/* writing; NULL and 0 when not writable */
	struct stripe *stripes;
	struct journal *journal;
	int journal_fd;
	_Atomic uint64_t entries; /* extents and states */
	_Atomic uint64_t pending_count;
	_Atomic uint64_t kept_bytes;
	pthread_mutex_t spare_lock;		  /* buffers of chunk_bytes for what is kept: their pages stay mapped */
	uint8_t **spare_buffers;		  /* owned; room for spare_most */
	uint64_t kept_most_bytes, reserved_bytes; /* the latter of the cache */
	size_t spare_count, spare_most;
	_Atomic uint64_t next_version;
	_Atomic uint64_t journaled_bytes; /* in the journal */
	_Atomic double appended_at;	  /* seconds, when the last record was appended */
	_Atomic bool has_news; /* something may be folded: since the last time that all was that can be, there was a record */
	uint64_t soft_bytes, hard_bytes;
	pthread_mutex_t view_lock;   /* around commits of the view: they are for one thread at a time */
	pthread_mutex_t commit_lock; /* one commit at a time, from gathering to clearing */

	/* folding */
	pthread_mutex_t fold_lock; /* one fold at a time */
	pthread_mutex_t fold_wait_lock;
	pthread_cond_t fold_wanted, fold_done;
	pthread_t fold_thread;
	bool has_fold_thread;
	bool fold_is_ending;
	bool is_folding;	     /* the thread is: fold_failure is of the time before */
	uint64_t folds;		     /* rounds of folding that have ended */
	struct failure fold_failure; /* of the last one; code 0: it went well */

	struct disk_control *control;
};

/* ---- disk.c ---- */

uint32_t disk_chunk_length(const struct disk *disk, uint64_t index);
int disk_map_chunk(struct disk *disk, uint64_t index, store_chunk *ret_chunk, struct failure *failure);
/* Pages that hold these chunks are read anew from now on. Before that is relied on, whoever changed the map calls it.
 */
void disk_map_forget(struct disk *disk, const uint64_t *indexes, size_t count);
void disk_map_forget_all(struct disk *disk);
int disk_scratch_take(struct disk *disk, struct store_scratch **ret_scratch, struct failure *failure);
void disk_scratch_give(struct disk *disk, struct store_scratch *scratch); /* NULL is fine */
/* The content of a chunk as of now, or a piece of it. The stripe is locked. */
int disk_read_piece_locked(struct disk *disk, const struct chunk_state *state, uint64_t index, uint32_t off_bytes,
			   uint32_t len_bytes, void *buffer, struct failure *failure);

/* ---- disk_state.c: stripes and what is in them; the stripe is locked as needed ---- */

int disk_stripes_new(struct disk *disk, struct failure *failure);
void disk_stripes_free(struct disk *disk);
struct stripe *disk_stripe(struct disk *disk, uint64_t index);
void disk_lock_all(struct disk *disk);
void disk_unlock_all(struct disk *disk);
struct chunk_state *disk_state_find(const struct stripe *stripe, uint64_t index);	       /* or NULL */
struct chunk_state *disk_state_make(struct disk *disk, struct stripe *stripe, uint64_t index); /* NULL: no memory */
/* Removes it if nothing is left that the catalog doesn't say. */
void disk_state_tidy(struct disk *disk, struct stripe *stripe, struct chunk_state *state);
void disk_state_forget_pending(struct disk *disk, struct chunk_state *state);
void disk_state_set_pending(struct disk *disk, struct chunk_state *state, struct pending_content *content); /* takes it */
uint64_t disk_kept_by_all(void); /* plain bytes of what is pending in all disks of this process */
int disk_state_reserve(struct chunk_state *state); /* room for what one disk_state_cover() adds */
void disk_state_cover(struct disk *disk, struct chunk_state *state, const struct extent *extent);
uint8_t *disk_spare_take(struct disk *disk); /* chunk_bytes of memory, or NULL */
void disk_spare_give(struct disk *disk, uint8_t *buffer);
/* Drops extents whose place is not behind (file, place_bytes). */
void disk_state_uncover(struct disk *disk, struct chunk_state *state, uint64_t file, uint32_t place_bytes);
/* Calls `visit` for every state, each stripe locked for reading, or not at all. Non-zero ends it. */
int disk_each_state(struct disk *disk, bool is_locked, int (*visit)(void *opaque, struct chunk_state *state),
		    void *opaque);

/* ---- disk_write.c ---- */

int disk_commit_pending(struct disk *disk, struct failure *failure);
int disk_commit_pending_locked(struct disk *disk, struct failure *failure); /* commit_lock and all stripes are held */
/* Stores a whole chunk: what is to be committed of it. `plain` isn't zeros only. */
int disk_put_content(struct disk *disk, struct store_scratch *scratch, const void *plain, uint32_t plain_bytes,
		     struct pending_content *ret_content, bool *ret_was_there, struct failure *failure);
int disk_replay_record(void *disk, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		       struct journal_place place, const void *payload, struct failure *failure);

/* ---- disk_fold.c ---- */

int disk_fold_start(struct disk *disk, struct failure *failure); /* the thread */
void disk_fold_stop(struct disk *disk);
int disk_fold_all(struct disk *disk, struct failure *failure);
/* Returns when there is room for more in the journal. No lock is held. */
int disk_fold_throttle(struct disk *disk, struct failure *failure);

/* ---- disk_control.c ---- */

int disk_control_start(struct disk *disk, const char *socket_path, struct disk_control **ret_control,
		       struct failure *failure);
void disk_control_stop(struct disk_control *control); /* NULL is fine */

#endif
