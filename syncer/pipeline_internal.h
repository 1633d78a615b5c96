/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the three stages of the pipeline share. pipeline.c explains.
 */
#ifndef WHERRY_SYNCER_PIPELINE_INTERNAL_H
#define WHERRY_SYNCER_PIPELINE_INTERNAL_H

#include "syncer/pipeline.h"

enum {
	UNIT_BYTES = 1 << 20, /* a multiple of every chunk size, a divisor of what a page of the map covers */
	UNIT_COUNT = 48,
	UNIT_MOST_CHUNKS = UNIT_BYTES / STORE_CHUNK_LEAST_BYTES,
	UNIT_MOST_REQUESTS = 8,
	WORKERS_MOST = 64,
};
_Static_assert((int)STORE_CHUNK_MOST_BYTES <= (int)UNIT_BYTES, "a unit holds whole chunks");
_Static_assert((uint64_t)STORE_CHUNK_LEAST_BYTES * STORE_MAP_PAGE_ENTRIES % UNIT_BYTES == 0, "a unit is in one page");

enum outcome {
	OUTCOME_SAME = 0,
	OUTCOME_NOTHING, /* zero now, was not */
	OUTCOME_REFRESH, /* same content, new fingerprint */
	OUTCOME_KNOWN,	 /* changed, to a chunk that the store has */
	OUTCOME_NEW,	 /* changed; `encoded` is to be put */
};

struct chunk_slot {
	enum outcome outcome;
	bool is_skipped; /* the dirty bitmap calls it clean: not read */
	bool is_sample;	 /* the same, read all the same to see whether that is true */
	bool is_zero;
	uint32_t planned_bytes; /* of it, that the plan says to read: progress */
	store_chunk chunk;
	uint8_t digest[DIGEST_BYTES];
	uint8_t fingerprint[FINGERPRINT_BYTES];
	struct store_encoded encoded; /* its payload stands where the plain bytes of the chunk were */
};

/* A page of the map, read once for all units in it. */
struct shared_page {
	_Atomic unsigned references;
	uint64_t number;
	struct store_map_page map;
};
void shared_page_release(struct shared_page *page); /* NULL is fine */

struct unit_read {
	uint64_t off_bytes; /* what was asked for, may be more than wanted */
	uint32_t len_bytes;
	struct source_request request;
};

/*
 * A piece of the disk on its way. Owned by one stage at a time: free list → reader → (source) → work queue → worker → order ring → committer
 * → free list. One that is unread has no buffer yet: a worker reads it, or hands it back to the reader.
 */
struct unit {
	uint64_t sequence;
	uint64_t off_bytes; /* of the disk; starts on a chunk */
	uint64_t len_bytes; /* with a buffer at most UNIT_BYTES; without any length */
	bool has_content;   /* otherwise it reads as zeros */
	bool is_unread;	    /* has content, which is still to be read */
	bool says_something; /* for the committer, beyond how far the work is */
	uint64_t read_bytes;
	uint64_t hole_bytes; /* without content: known to be zero, not left out */
	uint8_t *buffer; /* UNIT_BYTES, aligned; NULL before it is read, and when nobody needs it any more */
	struct shared_page *page; /* NULL: nothing is mapped in this range */
	struct chunk_slot chunks[UNIT_MOST_CHUNKS];
	/* while being read */
	struct unit_read reads[UNIT_MOST_REQUESTS];
	unsigned read_count, reads_left;
	struct {
		uint32_t off, len;
	} wanted[UNIT_MOST_CHUNKS * 2 + 2]; /* pieces of the buffer that the plan wants; the rest becomes zeros */
	unsigned wanted_count;
	struct unit *next;
};

struct unit_queue {
	struct unit *first, **last;
};

struct pipeline {
	const struct pipeline_params *params;
	struct store *store;
	uint32_t chunk_bytes;
	uint64_t size_bytes;

	pthread_mutex_t lock; /* guards what follows; who is woken by what stands at pipeline_wake_… */
	pthread_cond_t reader_wakes, workers_wake, committer_wakes;
	struct unit_queue free_units;
	unsigned free_count;
	uint8_t *free_buffers[UNIT_COUNT]; /* as many as units, so that a unit never waits for one. The last one given back is the next: it is in the caches */
	unsigned free_buffer_count;
	struct unit_queue work; /* to be looked at */
	struct unit_queue returned; /* unread: they need the reader after all */
	unsigned unread_count; /* handed to workers unread, and not read yet */
	struct unit *order[UNIT_COUNT]; /* looked at: slot sequence % UNIT_COUNT */
	unsigned ordered_count;
	unsigned saying_count; /* of them, that say something */
	uint64_t next_sequence;	 /* of the next unit to be made */
	uint64_t commit_sequence; /* of the next unit to be committed */
	bool reader_is_done;
	bool is_ending; /* something failed, or a stop: everybody leaves */
	struct failure failure; /* the first; code 0: none */
	bool errors_are_noted;
	uint64_t doubt_off_bytes; /* as in the result */
	uint32_t doubt_len_bytes;

	_Atomic int level;
	_Atomic uint64_t limit; /* bytes a second, 0: none: workers don't run far ahead of it */
	struct unit *units;
	uint8_t *memory;
	unsigned worker_count;
};

/* The first failure wins; everybody is woken and leaves. */
void pipeline_fail(struct pipeline *pipeline, const struct failure *failure);
bool pipeline_must_end(struct pipeline *pipeline);

void unit_take_buffer(struct pipeline *pipeline, struct unit *unit);
void unit_drop_buffer_locked(struct pipeline *pipeline, struct unit *unit); /* without one is fine */
void unit_clear_unwanted(struct unit *unit, uint32_t first, uint32_t end); /* of its buffer, what the plan does not want */

/* A unit whose turn at the committer may have come. */
void pipeline_hand_to_committer_locked(struct pipeline *pipeline, struct unit *unit);
void pipeline_wake_all_locked(struct pipeline *pipeline);

void unit_queue_put(struct unit_queue *queue, struct unit *unit);
void unit_queue_put_first(struct unit_queue *queue, struct unit *unit);
struct unit *unit_queue_take(struct unit_queue *queue);

void pipeline_read(struct pipeline *pipeline);	    /* pipeline_reader.c: on the caller's thread */
void *pipeline_work(void *pipeline);		    /* pipeline_worker.c: a thread */
void pipeline_commit(struct pipeline *pipeline, struct pipeline_result *ret_result); /* pipeline_committer.c */

#endif
