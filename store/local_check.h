/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the local store's check share: what was found damaged so far, before it is known who holds it.
 */
#ifndef WHERRY_STORE_LOCAL_CHECK_H
#define WHERRY_STORE_LOCAL_CHECK_H

#include <errno.h>

#include "store/check_report.h"
#include "store/local.h"

enum damage_kind {
	DAMAGE_NONE,
	DAMAGE_SEGMENT, /* its file is missing, another one, or damaged at its head */
	DAMAGE_SHORT,	/* the file ends before the record does */
	DAMAGE_READ,	/* the device gives an error */
	DAMAGE_HEADER,
	DAMAGE_OTHER, /* a whole record, and not the one that the catalog means */
	DAMAGE_PAYLOAD,
	DAMAGE_FRAME, /* the payload is as it was written, and does not decompress */
	DAMAGE_CONTENT,
	DAMAGE_PLACE, /* the catalog doesn't know where the record is */
	DAMAGE_LOST,  /* marked by an earlier check, or found gone by a rebuild */
	DAMAGE_MAP,   /* the catalog doesn't know which chunks are there */
};

struct bad_segment {
	uint32_t number;
	bool is_short;	     /* else none of it can be used */
	uint64_t file_bytes; /* if short: what lies below can */
};
struct bad_chunk {
	uint64_t chunk;
	uint32_t segment;
	uint8_t kind; /* enum damage_kind */
};
enum { BAD_CHUNKS_MOST = 1 << 17, BAD_SEGMENTS_MOST = 1 << 18 };

struct checking {
	struct local_store *local;
	const struct store_check_params *params;
	struct store_check_report *report;
	bool has_damage; /* somebody's content may be concerned: to be looked for */

	/* ascending; complete before there are workers */
	struct bad_segment *bad_segments;
	size_t bad_segment_count;
	uint64_t more_bad_segments; /* beyond the limit */

	pthread_mutex_t lock; /* of what follows, while there are workers */
	struct bad_chunk *bad_chunks;
	size_t bad_chunk_count;
	uint64_t more_bad_chunks; /* beyond the limit: they are known, and won't be found in any disk */
	struct catalog *lookup;	  /* for looking things up again */
	_Atomic uint64_t chunks;
};

static inline bool checking_is_stopped(const struct checking *checking)
{
	return checking->params->stop != NULL && atomic_load(checking->params->stop);
}
static inline void checking_add_done(const struct checking *checking, uint64_t bytes)
{
	if (checking->params->done_bytes != NULL)
		atomic_fetch_add_explicit(checking->params->done_bytes, bytes, memory_order_relaxed);
}

/* Only bad ones are in the list. Any thread. */
const struct bad_segment *checking_bad_segment(const struct checking *checking, uint32_t number);
/* NULL when all of this record is in a part that can be used. */
const struct bad_segment *checking_bad_place(const struct checking *checking, uint32_t segment, uint32_t off_bytes,
					     uint32_t stored_bytes);

/* -ENOENT, -EIO and -EBADMSG say that something is not as it was written. All others: it could not be told. */
static inline bool is_damage_code(int code)
{
	return code == -EBADMSG || code == -ENOENT || code == -EIO;
}

/* One more chunk whose content can't be had. Behind the others: not in their order. Under the lock, while there are workers. */
int checking_add_bad_chunk(struct checking *checking, const struct bad_chunk *bad, struct failure *failure);
void checking_sort_bad_chunks(struct checking *checking);

/* Every record that a chunk in use is in. local_check_records.c */
int checking_records(struct checking *checking, struct catalog *catalog, struct failure *failure);
/* Every entry of logs. local_check_logs.c */
int checking_logs(struct checking *checking, struct catalog *catalog, struct failure *failure);
/* Mends, or marks, if that is wanted. local_repair.c */
int checking_repair(struct checking *checking, struct catalog *catalog, struct failure *failure);
/* What is marked as lost. local_check_names.c */
int checking_lost(struct checking *checking, struct catalog *catalog, struct failure *failure);
/* Whose content is damaged, and where. local_check_names.c */
int checking_names(struct checking *checking, struct catalog *catalog, struct failure *failure);

#endif
