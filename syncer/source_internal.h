/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of a source share: the table of functions behind every kind of
 * source, and a ring of requests.
 *
 * source.c checks arguments and counts requests in flight, so that the kinds
 * (source_file.c, source_nbd.c) see only what the contract in source.h allows.
 */
#ifndef WHERRY_SYNCER_SOURCE_INTERNAL_H
#define WHERRY_SYNCER_SOURCE_INTERNAL_H

#include <assert.h>

#include "syncer/source.h"

enum {
	SOURCE_MOST_IN_FLIGHT = 64,	     /* of info->most_in_flight */
	SOURCE_MOST_REQUEST_BYTES = 32 << 20 /* of one request */
};

struct source_ops {
	void (*close)(struct source *source); /* frees `source` itself; everything in `base` is freed by source.c */

	/* As in source.h. At most 2 * most_in_flight requests are given at once. */
	int (*submit)(struct source *source, struct source_request *request, struct failure *failure);
	struct source_request *(*reap)(struct source *source, bool wait);
	void (*drop)(struct source *source); /* all in flight finish at once, with an error; NULL: can't be */

	/* 1 .. SOURCE_MOST_REQUEST_BYTES bytes inside the source; next to requests in flight. */
	int (*read)(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);

	/* As in source.h; NULL, both: never at hand. */
	bool (*is_at_hand)(struct source *source, size_t len_bytes, uint64_t off_bytes);
	bool (*read_at_hand)(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes);

	/* As in source.h; the range is not empty and inside the source. */
	int (*extent_at)(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
			 uint64_t *ret_len_bytes, struct failure *failure);
	void (*forget_maps)(struct source *source); /* NULL: keeps none */
	int (*dirty_at)(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
			uint64_t *ret_len_bytes, struct failure *failure);

	int (*in_use)(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure);
	int (*range_mounted)(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			     struct failure *failure);
	int (*change_stamp)(struct source *source, char **ret_stamp, struct failure *failure);
	int (*current_size)(struct source *source, uint64_t *ret_size_bytes, struct failure *failure);
};

/* Every kind of source begins with this. */
struct source {
	const struct source_ops *ops;
	struct source_info info;
	const struct notices *notices; /* borrowed, may be NULL */
	char *dirty_bitmaps;	       /* owned; NULL stands for "" */
	uint32_t grain_bytes; /* nothing smaller can be read by itself; salvaging stops there (power of two, >= 512) */
	unsigned in_flight;   /* submitted and not reaped */
};

/* Opens one kind. On failure nothing is left behind. */
int source_file_open(const char *path, const struct source_options *options, struct source **ret_source,
		     struct failure *failure);
int source_nbd_open(const char *uri, const struct source_options *options, struct source **ret_source,
		    struct failure *failure);

/* True for errors that a bad spot on a medium gives, as opposed to those of a source that is gone. */
bool source_error_is_bad_sector(int code);

/* A first-in first-out queue of all requests that a source can have in flight: it can't overflow. */
struct request_ring {
	struct source_request *slots[2 * SOURCE_MOST_IN_FLIGHT];
	unsigned first;
	unsigned count;
};

static inline void request_ring_put(struct request_ring *ring, struct source_request *request)
{
	const unsigned capacity = 2 * SOURCE_MOST_IN_FLIGHT;

	assert(ring->count < capacity);
	ring->slots[(ring->first + ring->count) % capacity] = request;
	ring->count++;
}

static inline struct source_request *request_ring_take(struct request_ring *ring)
{
	struct source_request *request;

	if (ring->count == 0)
		return NULL;
	request = ring->slots[ring->first];
	ring->first = (ring->first + 1) % (2 * SOURCE_MOST_IN_FLIGHT);
	ring->count--;
	return request;
}

#endif
