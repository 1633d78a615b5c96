/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking at every record that holds a chunk in use, in the order in which they lie in the segments, each once.
 *
 * The catalog knows chunks by id, not by place. Ids ascend as chunks are committed, so their order is nearly that of
 * places, but for writers that worked side by side and for what clean-up has moved. A table of all places would be the
 * simplest way to sort them, and has no bound. So it is done in batches:
 *
 *     gather    walk over chunks, and keep those behind the last batch. When KEYS_MOST are there, the half that lies
 * furthest back is dropped again, and with it all that comes later and lies behind what was kept: the batch has an end
 * now. look      sort; workers take some records at a time, always the next ones, so that a disk reads forward
 *
 * until a batch has no end. Every chunk is met by each walk; so that a walk doesn't have to decode all of them each
 * time, the first one notes for each of some thousand ranges of ids the segments that it lies in, and later ones pass
 * over ranges that lie elsewhere. In a store of one writer, that is all but one or two.
 *
 * A walk is done in pieces, which are of different moments. A chunk that was moved between two batches from where no
 * batch was yet to where one has been is not looked at: who moved it has read it and compared its checksum.
 *
 * What is found bad is looked up again before it is called so; local_check.c says why that is enough.
 */
#include "store/local_check.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"

enum {
	KEYS_MOST = 1 << 18, /* 8 MiB, and as much again while they're sorted */
	RANGES_MOST = 1 << 14,
	RANGE_LEAST_IDS = 1 << 12,
	TAKE_RECORDS = 64,
	TAKE_BYTES = 4 << 20,
	WORKERS_MOST = 16,
	LOOK_UPS_MOST = 8, /* of a chunk that keeps being moved */
};

struct record_key {
	uint64_t chunk;
	uint64_t tag;
	uint32_t segment;
	uint32_t off_bytes;
	uint32_t stored_bytes;
};

static uint64_t position_of(const struct record_key *key)
{
	return (uint64_t)key->segment << 32 | key->off_bytes;
}

static int compare_keys(const void *a, const void *b)
{
	uint64_t first = position_of(a), second = position_of(b);

	return first < second ? -1 : first > second;
}

/* ---- gathering ---- */

struct id_range {
	uint32_t first_segment, last_segment; /* 0: nothing in use */
};

struct gathering {
	struct checking *checking;
	struct record_key *keys; /* KEYS_MOST */
	size_t count;
	uint64_t after; /* positions up to here were looked at */
	uint64_t end;	/* of this batch; UINT64_MAX: none */
	struct id_range *ranges;
	size_t range_count;
	uint64_t ids_a_range;
	bool knows_ranges;
	struct id_range *range; /* that is walked over, in the first walk */
};

static void gathering_free(struct gathering *gathering)
{
	free(gathering->keys);
	free(gathering->ranges);
}

static void note_range(struct id_range *range, uint32_t segment)
{
	if (range->first_segment == 0 || segment < range->first_segment)
		range->first_segment = segment;
	if (segment > range->last_segment)
		range->last_segment = segment;
}

static int gather_chunk(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct gathering *gathering = opaque;
	struct record_key key = {.chunk = chunk};

	if (location == NULL) {
		gathering->checking->has_damage = true;
		return 0;
	}
	if (location->references == 0 || location->segment == CATALOG_NO_SEGMENT)
		return 0;
	if (location->segment == CATALOG_NO_SEGMENT) {
		gathering->checking->has_damage = true; /* lost: there is nothing to look at */
		return 0;
	}
	if (!gathering->knows_ranges)
		note_range(gathering->range, location->segment);
	key.tag = location->tag;
	key.segment = location->segment;
	key.off_bytes = location->off_bytes;
	key.stored_bytes = location->stored_bytes;
	if (position_of(&key) <= gathering->after || position_of(&key) > gathering->end)
		return 0;
	if (gathering->count == KEYS_MOST) {
		qsort(gathering->keys, gathering->count, sizeof(key), compare_keys);
		gathering->count /= 2;
		gathering->end = position_of(&gathering->keys[gathering->count - 1]);
		if (position_of(&key) > gathering->end)
			return 0;
	}
	gathering->keys[gathering->count++] = key;
	return 0;
}

static int prepare_gathering(struct gathering *gathering, struct catalog *catalog, struct failure *failure)
{
	uint64_t count;
	int result = catalog_chunk_count(catalog, &count, failure);

	if (result < 0)
		return result;
	gathering->ids_a_range = count / RANGES_MOST + 1;
	if (gathering->ids_a_range < RANGE_LEAST_IDS)
		gathering->ids_a_range = RANGE_LEAST_IDS;
	gathering->range_count = (size_t)(count / gathering->ids_a_range) + 1;
	gathering->keys = calloc(KEYS_MOST, sizeof(*gathering->keys));
	gathering->ranges = calloc(gathering->range_count, sizeof(*gathering->ranges));
	if (gathering->keys == NULL || gathering->ranges == NULL)
		return fail_errno(failure, -ENOMEM, "check");
	return 0;
}

static int gather_batch(struct gathering *gathering, struct catalog *catalog, struct failure *failure)
{
	gathering->count = 0;
	gathering->end = UINT64_MAX;
	for (size_t i = 0; i < gathering->range_count; i++) {
		int result;

		gathering->range = &gathering->ranges[i];
		if (gathering->knows_ranges && (gathering->range->first_segment > gathering->end >> 32 ||
						gathering->range->last_segment < gathering->after >> 32))
			continue;
		if (checking_is_stopped(gathering->checking))
			return -EINTR;
		result = catalog_chunk_walk(catalog, i * gathering->ids_a_range, (i + 1) * gathering->ids_a_range,
					    gather_chunk, gathering, failure);
		if (result < 0)
			return result;
	}
	gathering->knows_ranges = true;
	if (gathering->count > 0)
		qsort(gathering->keys, gathering->count, sizeof(*gathering->keys), compare_keys);
	return 0;
}

/* ---- looking at one ---- */

struct worker {
	struct batch *batch;
	struct store_scratch *scratch;
	uint8_t *plain; /* a chunk; NULL unless deep */
};

struct batch {
	struct checking *checking;
	const struct record_key *keys;
	size_t count;
	pthread_mutex_t lock; /* of what follows */
	size_t next;
	int result;
	struct failure failure;
};

/* What about this record is wrong, after it could not be read? */
static enum damage_kind find_cause(struct checking *checking, const struct record_key *key, int code)
{
	struct local_store *local = checking->local;
	struct record_header header;
	uint64_t file_bytes;
	int result;

	if (code == -EIO)
		return DAMAGE_READ;
	result = segment_examine(local->segments_fd, local->id, key->segment, &file_bytes, NULL);
	if (result < 0)
		return result == -EIO ? DAMAGE_READ : DAMAGE_SEGMENT;
	if (key->off_bytes + record_total_bytes(key->stored_bytes) > file_bytes)
		return DAMAGE_SHORT;
	result = segment_reader_header(local->reader, key->segment, key->off_bytes, &header, NULL);
	if (result < 0)
		return result == -EIO ? DAMAGE_READ : DAMAGE_HEADER;
	return header.stored_bytes != key->stored_bytes ? DAMAGE_OTHER : DAMAGE_PAYLOAD;
}

static int check_content(struct worker *worker, const struct record_header *header, enum damage_kind *ret_kind,
			 struct failure *failure)
{
	struct store_scratch *scratch = worker->scratch;
	uint8_t digest[DIGEST_BYTES];
	struct failure cause = {.code = 0};
	int result = codec_decode(scratch->codec, header, scratch->stored, worker->plain, &cause);

	if (result == -EBADMSG) {
		*ret_kind = DAMAGE_FRAME;
		return 0;
	}
	if (result < 0)
		return fail_from(failure, &cause);
	result = hasher_digest(scratch->hasher, worker->plain, header->plain_bytes, digest, failure);
	if (result == 0 && memcmp(digest, header->digest, DIGEST_BYTES) != 0)
		*ret_kind = DAMAGE_CONTENT;
	return result;
}

static int read_record(struct worker *worker, const struct record_key *key, struct record_header *ret_header,
		       struct failure *failure)
{
	struct segment_reader *reader = worker->batch->checking->local->reader;

	if (worker->plain == NULL)
		return segment_reader_header(reader, key->segment, key->off_bytes, ret_header, failure);
	return segment_reader_read(reader, key->segment, key->off_bytes, key->stored_bytes, ret_header,
				   worker->scratch->stored, failure);
}

/* *ret_kind: what is wrong with it, DAMAGE_NONE if nothing is. A failure: it could not be told. */
static int look_at_record(struct worker *worker, const struct record_key *key, enum damage_kind *ret_kind,
			  struct failure *failure)
{
	struct checking *checking = worker->batch->checking;
	struct failure cause = {.code = 0};
	struct record_header header;
	int result;

	*ret_kind = DAMAGE_NONE;
	result = read_record(worker, key, &header, &cause);
	if (result < 0 && !is_damage_code(result))
		return fail_from(failure, &cause);
	if (result < 0)
		*ret_kind = find_cause(checking, key, result);
	else if (header.type != RECORD_CHUNK || header.stored_bytes != key->stored_bytes ||
		 catalog_tag(header.digest) != key->tag || header.plain_bytes > checking->local->base.chunk_bytes)
		*ret_kind = DAMAGE_OTHER;
	else if (worker->plain != NULL)
		return check_content(worker, &header, ret_kind, failure);
	return 0;
}

/* ---- what was found ---- */

int checking_add_bad_chunk(struct checking *checking, const struct bad_chunk *bad, struct failure *failure)
{
	size_t count = checking->bad_chunk_count;

	checking->has_damage = true;
	if (count == BAD_CHUNKS_MOST) {
		checking->more_bad_chunks++;
		return 0;
	}
	/* it may have become shorter since it had this length, so that it need not be full */
	if ((count & (count - 1)) == 0) {
		struct bad_chunk *grown =
			reallocarray(checking->bad_chunks, count == 0 ? 1 : count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "check");
		checking->bad_chunks = grown;
	}
	checking->bad_chunks[checking->bad_chunk_count++] = *bad;
	return 0;
}

static int add_bad_chunk_locked(struct checking *checking, const struct record_key *key, enum damage_kind kind,
				struct failure *failure)
{
	const struct bad_chunk bad = {.chunk = key->chunk, .segment = key->segment, .kind = (uint8_t)kind};

	return checking_add_bad_chunk(checking, &bad, failure);
}

/*
 * Where is the chunk now? 1: in another place, which *key is set to; 0: there is nothing more to do, since it is gone,
 * or is where it was found bad, and is noted.
 */
static int look_up_again(struct checking *checking, struct record_key *key, enum damage_kind kind, bool is_last,
			 struct failure *failure)
{
	struct failure cause = {.code = 0};
	struct catalog_location now;
	int result;
	WITH_LOCK(&checking->lock);

	result = catalog_chunk_get(checking->lookup, key->chunk, &now, &cause);
	if (result == -EBADMSG)
		return add_bad_chunk_locked(checking, key, DAMAGE_PLACE, failure);
	if (result == -ENOENT || (result == 0 && now.references == 0))
		return 0;
	if (result < 0)
		return fail_from(failure, &cause);
	if ((now.segment == key->segment && now.off_bytes == key->off_bytes) || is_last)
		return add_bad_chunk_locked(checking, key, kind, failure);
	key->tag = now.tag;
	key->segment = now.segment;
	key->off_bytes = now.off_bytes;
	key->stored_bytes = now.stored_bytes;
	return 1;
}

static int check_record(struct worker *worker, const struct record_key *found, struct failure *failure)
{
	struct checking *checking = worker->batch->checking;
	struct record_key key = *found;
	enum damage_kind kind = DAMAGE_NONE;
	int result = 0;

	/* What is in the bad part of a segment was gathered after that was found bad, so it need not be looked up
	 * again; and it is known by the segment, for there may be very much of it. */
	if (checking_bad_place(checking, key.segment, key.off_bytes, key.stored_bytes) == NULL)
		result = look_at_record(worker, &key, &kind, failure);
	for (unsigned i = 1; result == 0 && kind != DAMAGE_NONE; i++) {
		result = look_up_again(checking, &key, kind, i == LOOK_UPS_MOST, failure);
		if (result == 0)
			break;
		if (result == 1)
			result = look_at_record(worker, &key, &kind, failure);
	}
	atomic_fetch_add_explicit(&checking->chunks, 1, memory_order_relaxed);
	checking_add_done(checking, record_total_bytes(found->stored_bytes));
	return result;
}

/* ---- workers ---- */

/* The next records of one segment. 0: there are none, or there is no point in going on. */
static size_t take_records(struct batch *batch, const struct record_key **ret_first)
{
	const struct record_key *first;
	uint64_t bytes = 0;
	size_t count = 0;
	WITH_LOCK(&batch->lock);

	first = batch->keys + batch->next;
	if (batch->result < 0)
		return 0;
	while (batch->next < batch->count && count < TAKE_RECORDS && bytes < TAKE_BYTES &&
	       first[count].segment == first->segment) {
		bytes += record_total_bytes(first[count].stored_bytes);
		count++;
		batch->next++;
	}
	*ret_first = first;
	return count;
}

static void end_batch(struct batch *batch, int result, const struct failure *cause)
{
	WITH_LOCK(&batch->lock);

	if (batch->result < 0)
		return;
	batch->result = result;
	batch->failure = *cause;
}

static int check_some(struct worker *worker, const struct record_key *first, size_t count, struct failure *failure)
{
	struct checking *checking = worker->batch->checking;
	const struct record_key *last = &first[count - 1];

	if (worker->plain != NULL)
		segment_reader_prefetch(checking->local->reader, first->segment, first->off_bytes,
					last->off_bytes - first->off_bytes + record_total_bytes(last->stored_bytes));
	for (size_t i = 0; i < count; i++) {
		int result = checking_is_stopped(checking) ? -EINTR : check_record(worker, &first[i], failure);

		if (result < 0)
			return result;
	}
	return 0;
}

static void *run_worker(void *opaque)
{
	struct batch *batch = opaque;
	struct checking *checking = batch->checking;
	struct worker worker = {.batch = batch};
	struct failure cause = {.code = 0};
	const struct record_key *first;
	size_t count;
	int result = store_scratch_new(&worker.scratch, &cause);

	if (result == 0 && checking->params->deep) {
		worker.plain = malloc(RECORD_PLAIN_MOST_BYTES); /* what isn't used of it takes no memory */
		if (worker.plain == NULL)
			result = fail_errno(&cause, -ENOMEM, "check");
	}
	while (result == 0 && (count = take_records(batch, &first)) > 0)
		result = check_some(&worker, first, count, &cause);
	if (result < 0)
		end_batch(batch, result, &cause);
	free(worker.plain);
	store_scratch_free(worker.scratch);
	return NULL;
}

static unsigned count_workers(size_t records)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t most = records / TAKE_RECORDS + 1;

	if (cores < 1)
		cores = 1;
	if (cores > WORKERS_MOST)
		cores = WORKERS_MOST;
	return most < (size_t)cores ? (unsigned)most : (unsigned)cores;
}

/* Signals are for the program's own thread: so threads are started with all of them blocked. */
static int start_worker(pthread_t *thread, struct batch *batch)
{
	sigset_t all, before;
	int error;

	(void)sigfillset(&all); /* none of these can fail with such arguments */
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, NULL, run_worker, batch);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

static int look_at_batch(struct checking *checking, const struct gathering *gathering, struct failure *failure)
{
	struct batch batch = {.checking = checking, .keys = gathering->keys, .count = gathering->count};
	unsigned wanted = count_workers(gathering->count), started = 0;
	pthread_t threads[WORKERS_MOST];

	(void)pthread_mutex_init(&batch.lock, NULL); /* never fails on Linux with default attributes */
	while (started + 1 < wanted && start_worker(&threads[started], &batch) == 0)
		started++;
	(void)run_worker(&batch); /* this thread is one, too, and does it alone where no other is to be had */
	while (started > 0)
		(void)pthread_join(threads[--started], NULL); /* ours, joined once: can't fail */
	(void)pthread_mutex_destroy(&batch.lock);
	if (batch.result < 0 && batch.failure.code != 0)
		return fail_from(failure, &batch.failure);
	return batch.result;
}

static int compare_bad_chunks(const void *a, const void *b)
{
	const struct bad_chunk *first = a, *second = b;

	return first->chunk < second->chunk ? -1 : first->chunk > second->chunk;
}

void checking_sort_bad_chunks(struct checking *checking)
{
	if (checking->bad_chunk_count > 0)
		qsort(checking->bad_chunks, checking->bad_chunk_count, sizeof(*checking->bad_chunks),
		      compare_bad_chunks);
}

int checking_records(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	AUTO(gathering_free) struct gathering gathering = {.checking = checking};
	int result = prepare_gathering(&gathering, catalog, failure);

	for (bool is_last = false; result == 0 && !is_last;) {
		result = gather_batch(&gathering, catalog, failure);
		is_last = gathering.end == UINT64_MAX;
		if (result == 0 && gathering.count > 0)
			result = look_at_batch(checking, &gathering, failure);
		gathering.after = gathering.end;
	}
	checking_sort_bad_chunks(checking);
	return result;
}
