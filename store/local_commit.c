/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: chunks into segments, and the transactions that make them part of a disk.
 *
 * The order of a commit, and why it is safe to lose power at every point of it:
 *
 *   1. chunks were appended to segments by put_chunk, unsynced. Lost: nobody refers to them.
 *   2. fdatasync of the segment, before the catalog is locked: the long part, and nobody else waits for it.
 *   3. the catalog is locked, a transaction begins. Chunks get ids; the map is changed; a log entry with the changes is appended to the segment.
 *   4. fdatasync of the segment: the log entry and everything before it is durable (R2), segments that filled up meanwhile were synced when they were closed.
 *      Power lost after it: the catalog doesn't know of the entry. The bytes behind the committed length are cut off by whoever
 *      writes an entry next, of whatever disk and into whatever segment, before his own is durable. So no entry that never happened
 *      ever stands next to one that did and has the same predecessor. (The chain alone wouldn't tell: a transaction may have several
 *      entries, and the longer chain counts.)
 *   5. the transaction commits, durably (R1).
 *
 * A step that fails rolls the transaction back. Chunks stay pending and are committed by the next try; log entries are taken
 * back, as above. Only after a failed commit of the catalog's (5), of which it isn't certain that nothing happened, the segment is left
 * as it is, and what was pending with it. After a failed fdatasync the segment's writer refuses everything: the store can't
 * commit any more through this handle, which is what must happen, because what was appended may be gone.
 *
 * A chunk is stored once: between being looked for and being committed, another process or another view may have committed the same digest. So each
 * pending digest is looked up once more inside the transaction, where nobody else can add any; ours is then dead bytes in the segment.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { TAG_CANDIDATES = 8 };

/* ---- segments ---- */

/* From here on it is appended to, or to none. */
static void change_segment_locked(struct local_store *local, struct segment_writer *segment)
{
	WITH_LOCK(&local->append_lock);

	local->segment = segment;
	local->segment_is_dirty = false;
}

static bool is_full(const struct segment_writer *segment)
{
	return segment_writer_bytes(segment) >= SEGMENT_ROLL_BYTES;
}

static bool segment_is_full_locked(struct local_store *local)
{
	WITH_LOCK(&local->append_lock);

	return is_full(local->segment);
}

/* What was appended before is durable on return, and chunks are put meanwhile. Nobody syncs or closes it next to us: that takes write_lock. */
int local_sync_locked(struct local_store *local, struct failure *failure)
{
	uint64_t target_bytes;
	int result, waited;

	{
		WITH_LOCK(&local->append_lock);
		if (local->segment == NULL || !local->segment_is_dirty)
			return 0;
		result = segment_writer_sync_begin(local->segment, &target_bytes, failure);
		if (result < 0)
			return result;
		local->segment_is_dirty = false;
	}
	waited = segment_writer_sync_wait(local->segment);
	WITH_LOCK(&local->append_lock);
	result = segment_writer_sync_end(local->segment, target_bytes, waited, failure);
	if (result < 0)
		local->segment_is_dirty = true; /* the next one must notice */
	return result;
}

/* The current segment is full: durable, and kept open until a commit has told the catalog. */
static int retire_segment_locked(struct local_store *local, struct failure *failure)
{
	int result = local_sync_locked(local, failure); /* most of it, while others append the rest */

	if (result < 0)
		return result;
	WITH_LOCK(&local->append_lock);
	result = segment_writer_sync(local->segment, failure);
	if (result < 0)
		return result;
	assert(local->full_count < FULL_MOST);
	local->full[local->full_count++] = take_ptr(local->segment);
	local->segment_is_dirty = false;
	return 0;
}

void local_close_full_locked(struct local_store *local)
{
	while (local->full_count > 0)
		segment_writer_close(local->full[--local->full_count]);
}

static int update_segment_rows_locked(struct local_store *local, struct failure *failure)
{
	for (size_t i = 0; i < local->full_count; i++) {
		int result = catalog_segment_update(local->writer, segment_writer_number(local->full[i]),
						    segment_writer_bytes(local->full[i]), true, failure);
		if (result < 0)
			return result;
	}
	if (local->segment == NULL)
		return 0;
	return catalog_segment_update(local->writer, segment_writer_number(local->segment),
				      segment_writer_synced_bytes(local->segment), false, failure);
}

/* One that an earlier process left unfinished, if nobody is appending to it. Inside a transaction, so that its committed length is final. */
static int adopt_segment_locked(struct local_store *local, struct segment_writer **ret_segment, struct failure *failure)
{
	AUTO_FREE struct catalog_segment *list = NULL;
	size_t count;
	int result = catalog_segment_list_open(local->writer, &list, &count, failure);

	if (result < 0)
		return result;
	for (size_t i = 0; i < count && *ret_segment == NULL; i++) {
		struct failure why = { .code = 0 };

		if (list[i].length_bytes >= SEGMENT_ROLL_BYTES || list[i].number == local->left_segment)
			continue;
		if (list[i].length_bytes == 0)
			result = segment_writer_create(local->segments_fd, local->id, list[i].number, ret_segment, &why);
		else
			result = segment_writer_open(local->segments_fd, local->id, list[i].number, list[i].length_bytes,
						     ret_segment, &why);
		/* a damaged one is left to a check to report, and another is used */
		if (result < 0 && result != -EWOULDBLOCK && result != -EBADMSG && result != -ENOENT && result != -EEXIST)
			return fail_from(failure, &why);
	}
	return 0;
}

static int new_segment_locked(struct local_store *local, struct failure *failure)
{
	struct segment_writer *segment = NULL;
	uint32_t number;
	int result = catalog_begin(local->writer, failure);

	if (result < 0)
		return result;
	result = adopt_segment_locked(local, &segment, failure);
	if (result < 0 || segment != NULL) {
		catalog_rollback(local->writer);
		change_segment_locked(local, segment);
		return result;
	}
	/* The row first: the file of a segment is never without one, and a row without a file is an empty segment. */
	result = catalog_segment_insert(local->writer, &number, failure);
	if (result == 0)
		result = segment_writer_create(local->segments_fd, local->id, number, &segment, failure);
	if (result == 0)
		result = catalog_segment_update(local->writer, number, segment_writer_bytes(segment), false, failure);
	if (result == 0)
		result = catalog_commit(local->writer, failure);
	if (result < 0) {
		catalog_rollback(local->writer);
		segment_writer_close(segment);
		return result;
	}
	change_segment_locked(local, segment);
	return 0;
}

static int ensure_segment_locked(struct local_store *local, struct failure *failure)
{
	int result = 0;

	if (local->segment != NULL && segment_is_full_locked(local)) {
		if (local->full_count == FULL_MOST) {
			/* somebody puts half a GiB without a commit: the catalog hears of the full segments now */
			result = local_begin_locked(local, failure);
			return result < 0 ? result : local_end_locked(local, failure);
		}
		result = retire_segment_locked(local, failure);
	}
	if (result == 0 && local->segment == NULL)
		result = new_segment_locked(local, failure);
	return result;
}

/* ---- transactions ---- */

int local_begin_locked(struct local_store *local, struct failure *failure)
{
	int result = 0;

	if (local->segment == NULL)
		result = new_segment_locked(local, failure);
	else if (segment_is_full_locked(local) && local->full_count < FULL_MOST)
		result = ensure_segment_locked(local, failure);
	return result < 0 ? result : catalog_begin(local->writer, failure);
}

/*
 * A segment that met a full file system takes nothing more, and what was appended since its last sync may be gone. With it go all chunks that
 * are pending: who refers to one gets -ESTALE, and puts it again. So the store works on when there is room, in another segment or the
 * same one opened anew, without whoever has it open having to open it anew.
 */
/* Both locks are held. */
static void leave_segment(struct local_store *local)
{
	segment_writer_close(local->segment);
	local->segment = NULL;
	local->segment_is_dirty = local->entries_are_followed = false;
	local->entries_off_bytes = 0;
	pending_clear(&local->pending);
	local_close_full_locked(local);
}

static void leave_full_segment_locked(struct local_store *local)
{
	int error;
	WITH_LOCK(&local->append_lock);

	error = local->segment == NULL ? 0 : segment_writer_error(local->segment);
	if (error == -ENOSPC || error == -EDQUOT)
		leave_segment(local);
}

/* What writers who were killed have left in segments that nobody has open. In a transaction: lengths in the catalog are final. */
static int cut_leftovers_locked(struct local_store *local, struct failure *failure)
{
	AUTO_FREE struct catalog_segment *list = NULL;
	size_t count = 0;
	int result = catalog_segment_list_open(local->writer, &list, &count, failure);

	for (size_t i = 0; result == 0 && i < count; i++)
		if (list[i].number != segment_writer_number(local->segment))
			result = segment_cut_leftovers(local->segments_fd, local->id, list[i].number, list[i].length_bytes,
						       failure);
	return result;
}

/*
 * A transaction is given up: its entries go, or they would pass for what happened. Where chunks stand behind them that others have put meanwhile, the
 * segment is left with all that is pending in it, and cut by whoever writes the next entry.
 */
static void take_entries_back_locked(struct local_store *local)
{
	WITH_LOCK(&local->append_lock);

	if (local->segment != NULL && local->entries_off_bytes != 0 && local->entries_are_followed) {
		leave_segment(local);
	} else if (local->segment != NULL && local->entries_off_bytes != 0) {
		(void)segment_writer_rewind(local->segment, local->entries_off_bytes, NULL); /* one that fails takes no more */
		local->segment_is_dirty = true; /* the next sync fills up the block that it ends in */
	}
	local->entries_off_bytes = 0;
	local->entries_are_followed = false;
}

static int append_log_record_locked(struct local_store *local, const struct byte_writer *plain,
				    struct catalog_log_entry *ret_position, struct failure *failure)
{
	struct store_scratch *scratch = local->log_scratch;
	struct record_header header = { .type = RECORD_LOG };
	uint64_t off_bytes;
	int result = hasher_digest(scratch->hasher, plain->data, plain->len_bytes, header.digest, failure);

	if (result == 0)
		result = codec_encode(scratch->codec, 1, plain->data, (uint32_t)plain->len_bytes, scratch->stored, &header,
				      failure);
	if (result < 0)
		return result;
	if (local->entries_off_bytes == 0) { /* nobody else sets it */
		result = cut_leftovers_locked(local, failure);
		if (result < 0)
			return result;
	}
	{
		WITH_LOCK(&local->append_lock);
		if (local->entries_off_bytes == 0)
			local->entries_off_bytes = segment_writer_bytes(local->segment);
		/* before it is tried: after one that failed nothing may be committed, and the sync is what finds out */
		local->segment_is_dirty = true;
		result = segment_writer_append(local->segment, &header, scratch->stored, &off_bytes, failure);
	}
	if (result < 0)
		return result;
	ret_position->segment = segment_writer_number(local->segment);
	ret_position->off_bytes = (uint32_t)off_bytes;
	ret_position->stored_bytes = header.stored_bytes;
	memcpy(ret_position->digest, header.digest, DIGEST_BYTES);
	return 0;
}

int local_log_locked(struct local_store *local, struct catalog_disk *disk, struct log_entry *entry,
		     struct failure *failure)
{
	AUTO(byte_writer_free) struct byte_writer plain = BYTE_WRITER_EMPTY;
	struct catalog_log_entry position = { .disk = disk->id, .sequence = disk->log_sequence + 1 };
	bool is_first = disk->log_sequence == 0;
	int result;

	/* Both are the catalog's word: what doesn't go together would make an entry that is none. */
	if ((entry->op == LOG_CREATE) != is_first || bytes_are_zero(disk->log_head, DIGEST_BYTES) != is_first)
		return fail(failure, -EBADMSG, "disk %s: what the catalog says of its log can't be; 'wherry rebuild' makes it anew",
			    disk->name);
	entry->sequence = position.sequence;
	entry->time_seconds = time(NULL);
	memcpy(entry->disk_uuid, disk->uuid, DISK_UUID_BYTES);
	memcpy(entry->predecessor, disk->log_head, DIGEST_BYTES);
	result = log_entry_encode(entry, &plain, failure);
	if (result == 0)
		result = append_log_record_locked(local, &plain, &position, failure);
	if (result == 0)
		result = catalog_log_insert(local->writer, &position, failure);
	if (result < 0)
		return result;
	disk->log_sequence = position.sequence;
	memcpy(disk->log_head, position.digest, DIGEST_BYTES);
	return 0;
}

int local_end_locked(struct local_store *local, struct failure *failure)
{
	int result = local_sync_locked(local, failure);

	if (result == 0)
		result = update_segment_rows_locked(local, failure);
	if (result == 0) {
		result = catalog_commit(local->writer, failure);
		/* without room nothing is committed; after another error it may turn out, when the database is opened next, that it was */
		if (result < 0 && result != -ENOSPC) {
			WITH_LOCK(&local->append_lock);
			leave_segment(local);
		}
	}
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	{
		WITH_LOCK(&local->append_lock);
		local->entries_off_bytes = 0;
		local->entries_are_followed = false;
	}
	local_close_full_locked(local);
	return 0;
}

/* append_lock is held. */
static int append_record(struct local_store *local, const struct record_header *header, const void *stored,
			 uint32_t *ret_segment, uint32_t *ret_off_bytes, struct failure *failure)
{
	uint64_t off_bytes;
	int result;

	local->segment_is_dirty = true; /* also if this fails: the next sync must notice */
	local->entries_are_followed = local->entries_off_bytes != 0;
	result = segment_writer_append(local->segment, header, stored, &off_bytes, failure);
	if (result < 0)
		return result;
	*ret_segment = segment_writer_number(local->segment);
	*ret_off_bytes = (uint32_t)off_bytes;
	return 0;
}

int local_append_locked(struct local_store *local, const struct record_header *header, const void *stored,
			uint32_t *ret_segment, uint32_t *ret_off_bytes, struct failure *failure)
{
	int result = ensure_segment_locked(local, failure);

	if (result < 0)
		return result;
	WITH_LOCK(&local->append_lock);
	return append_record(local, header, stored, ret_segment, ret_off_bytes, failure);
}

void local_leave_segment_locked(struct local_store *local, uint32_t number)
{
	WITH_LOCK(&local->append_lock);

	if (local->segment != NULL && segment_writer_number(local->segment) == number) {
		if (local->segment_is_dirty || local->pending.count > 0)
			return;
		segment_writer_close(local->segment);
		local->segment = NULL;
	}
	local->left_segment = number;
}

void local_abandon_locked(struct local_store *local)
{
	take_entries_back_locked(local);
	catalog_rollback(local->writer);
	leave_full_segment_locked(local);
}

/* ---- finding and putting ---- */

/* The chunk of that digest among those with its tag. A record that can't be read is no match: its content is stored anew then. */
int local_find_committed(struct local_store *local, struct catalog *catalog, const uint8_t digest[DIGEST_BYTES],
			 store_chunk *ret_chunk, struct failure *failure)
{
	uint64_t candidates[TAG_CANDIDATES];
	size_t count;
	int result = catalog_chunk_find(catalog, catalog_tag(digest), candidates, TAG_CANDIDATES, &count, failure);

	*ret_chunk = 0;
	for (size_t i = 0; result == 0 && i < count; i++) {
		struct catalog_location location;
		struct record_header header;

		result = catalog_chunk_get(catalog, candidates[i], &location, failure);
		if (result == -ENOENT) {
			result = 0;
			continue;
		}
		if (result < 0)
			return result;
		if (segment_reader_header(local->reader, location.segment, location.off_bytes, &header, NULL) == 0 &&
		    header.type == RECORD_CHUNK && memcmp(header.digest, digest, DIGEST_BYTES) == 0) {
			*ret_chunk = candidates[i];
			return 0;
		}
	}
	return result;
}

int local_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count,
		      store_chunk *ret_chunks, struct failure *failure)
{
	struct local_store *local = local_of(store);
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	for (size_t i = 0; result == 0 && i < count; i++) {
		/* pending first: a commit takes chunks out of it only when they're in the catalog, so that none is missed */
		ret_chunks[i] = pending_find(&local->pending, digests[i]);
		if (ret_chunks[i] == 0)
			result = local_find_committed(local, reader.catalog, digests[i], &ret_chunks[i], failure);
	}
	return result;
}

/* 1: there is no segment with room. */
static int put_beside_commits(struct local_store *local, const struct store_encoded *encoded, store_chunk *ret_chunk,
			      uint64_t *ret_new_bytes, struct failure *failure)
{
	struct record_header header = { .type = RECORD_CHUNK,
					.codec = encoded->codec,
					.cipher = encoded->cipher,
					.stored_bytes = encoded->stored_bytes,
					.plain_bytes = encoded->plain_bytes };
	struct pending_chunk chunk = { .stored_bytes = encoded->stored_bytes };
	store_chunk found;
	int result;
	WITH_LOCK(&local->append_lock);

	found = pending_find(&local->pending, encoded->digest);
	if (found != 0) {
		*ret_chunk = found;
		*ret_new_bytes = 0;
		return 0;
	}
	if (local->segment == NULL || is_full(local->segment))
		return 1;
	memcpy(header.digest, encoded->digest, DIGEST_BYTES);
	memcpy(chunk.digest, encoded->digest, DIGEST_BYTES);
	result = append_record(local, &header, encoded->stored, &chunk.segment, &chunk.off_bytes, failure);
	if (result < 0)
		return result;
	if (pending_add(&local->pending, &chunk, ret_chunk) < 0)
		return fail_errno(failure, -ENOMEM, "chunk");
	*ret_new_bytes = record_total_bytes(encoded->stored_bytes);
	return 0;
}

int local_put_chunk(struct store_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		    uint64_t *ret_new_bytes, struct failure *failure)
{
	struct local_store *local = local_of(view->store);
	struct failure why = { .code = 0 };
	int result = put_beside_commits(local, encoded, ret_chunk, ret_new_bytes, &why);

	if (result == 0)
		return 0;
	WITH_LOCK(&local->write_lock); /* there is no segment, or it is full, or it failed */
	if (result < 0) {
		leave_full_segment_locked(local);
		return fail_from(failure, &why);
	}
	while (result > 0) {
		result = ensure_segment_locked(local, failure);
		if (result == 0)
			result = put_beside_commits(local, encoded, ret_chunk, ret_new_bytes, failure);
	}
	if (result < 0)
		leave_full_segment_locked(local);
	return result;
}

/* ---- committing ---- */

/* Content that was lost and is there again: all that refer to it are healed. *ret_chunk stays as it is if it was not lost. */
static int heal_locked(struct local_store *local, const uint8_t digest[DIGEST_BYTES],
		       const struct catalog_location *location, uint64_t *ret_chunk, struct failure *failure)
{
	uint64_t chunk = 0;
	int result = catalog_lost_find(local->writer, digest, &chunk, failure);

	if (result < 0 || chunk == 0)
		return result;
	result = catalog_lost_heal(local->writer, chunk, digest, location, failure);
	if (result == 0)
		*ret_chunk = chunk;
	return result;
}

/* Those that a commit gives ids. More may be put meanwhile; only a commit takes any away, under write_lock, which we hold. */
struct committing {
	uint64_t first_serial;
	size_t count;
	uint64_t *ids; /* owned */
};

static void committing_done(struct committing *committing)
{
	free(committing->ids);
}

/* Gives every pending chunk an id in the catalog. Their records stand before the log entry to come, whose sync covers them. */
static int add_pending_locked(struct local_store *local, struct committing *committing, struct failure *failure)
{
	AUTO_FREE struct pending_chunk *chunks =
		pending_copy(&local->pending, &committing->first_serial, &committing->count);
	uint64_t *ids = chunks == NULL ? NULL : calloc(committing->count + 1, sizeof(*ids));
	bool any_lost = false;
	int result = catalog_lost_any(local->writer, &any_lost, failure);

	committing->ids = ids;
	if (ids == NULL)
		return fail_errno(failure, -ENOMEM, "commit");
	for (size_t i = 0; result == 0 && i < committing->count; i++) {
		const struct pending_chunk *chunk = &chunks[i];
		struct catalog_location location = { .tag = catalog_tag(chunk->digest),
						     .segment = chunk->segment,
						     .off_bytes = chunk->off_bytes,
						     .stored_bytes = chunk->stored_bytes };

		result = local_find_committed(local, local->writer, chunk->digest, &ids[i], failure);
		if (result == 0 && ids[i] == 0 && any_lost)
			result = heal_locked(local, chunk->digest, &location, &ids[i], failure);
		if (result == 0 && ids[i] == 0)
			result = catalog_chunk_add(local->writer, &location, &ids[i], failure);
	}
	return result;
}

/* The id a change refers to. A chunk that was found earlier may have been cleaned away since: -ESTALE. */
static int resolve_chunk_locked(struct local_store *local, const struct store_change *change,
				const struct committing *committing, uint64_t *ret_id, struct failure *failure)
{
	struct catalog_location location;
	uint64_t id = change->chunk;
	bool is_lost = false;
	int result;

	if ((change->chunk & PROVISIONAL_CHUNK) != 0) {
		uint64_t serial = change->chunk & ~PROVISIONAL_CHUNK;

		if (serial >= committing->first_serial && serial - committing->first_serial < committing->count) {
			*ret_id = committing->ids[serial - committing->first_serial];
			return 0;
		}
		/* put or found before another commit: it is in the catalog since then */
		result = local_find_committed(local, local->writer, change->digest, &id, failure);
		if (result < 0)
			return result;
		if (id == 0)
			return fail(failure, -ESTALE, "commit: a chunk was cleaned away meanwhile");
	}
	result = catalog_chunk_get(local->writer, id, &location, failure);
	if (result == -ENOENT || (result == 0 && location.tag != catalog_tag(change->digest)))
		return fail(failure, -ESTALE, "commit: chunk %llu was cleaned away meanwhile", (unsigned long long)id);
	if (result == 0)
		result = catalog_lost_has(local->writer, id, &is_lost, failure);
	if (result < 0)
		return result;
	if (is_lost) /* a check found it damaged since it was found for us: the content is stored anew */
		return fail(failure, -ESTALE, "commit: chunk %llu was found damaged meanwhile", (unsigned long long)id);
	*ret_id = id;
	return 0;
}

static int make_changes_locked(struct local_store *local, const struct store_change *changes, size_t count,
			       const struct committing *committing, struct catalog_change *ret_changes,
			       struct failure *failure)
{
	for (size_t i = 0; i < count; i++) {
		struct catalog_change *change = &ret_changes[i];
		int result = 0;

		*change = (struct catalog_change){ .first = changes[i].first_chunk,
						   .count = changes[i].chunk_count,
						   .kind = changes[i].kind,
						   .refresh = changes[i].refresh };
		if (change->kind == CATALOG_CHUNK) {
			result = resolve_chunk_locked(local, &changes[i], committing, &change->chunk, failure);
			change->has_fingerprint = !bytes_are_zero(changes[i].fingerprint, FINGERPRINT_BYTES);
			memcpy(change->fingerprint, changes[i].fingerprint, FINGERPRINT_BYTES);
		}
		if (result < 0)
			return result;
	}
	return 0;
}

/* One log entry for as many changes as fit into one; *first is moved on. */
static int log_some_changes_locked(struct local_store *local, struct catalog_disk *disk,
				   const struct store_change *changes, size_t count, size_t *first,
				   struct failure *failure)
{
	AUTO_FREE struct log_run *runs = calloc(LOG_ENTRY_MOST_RUNS, sizeof(*runs));
	AUTO_FREE uint8_t(*digests)[DIGEST_BYTES] = calloc(LOG_ENTRY_MOST_CHUNKS, sizeof(*digests));
	struct log_entry entry = { .op = LOG_EXTENTS, .generation = disk->generation, .runs = runs };
	size_t digest_count = 0;

	if (runs == NULL || digests == NULL)
		return fail_errno(failure, -ENOMEM, "commit");
	for (; *first < count; ++*first) {
		const struct store_change *change = &changes[*first];
		struct log_run *last = entry.run_count == 0 ? NULL : &runs[entry.run_count - 1];
		bool continues = last != NULL && (uint8_t)last->kind == change->kind &&
				 last->first_chunk + last->chunk_count == change->first_chunk;

		if (change->refresh)
			continue;
		if ((!continues && entry.run_count == LOG_ENTRY_MOST_RUNS) ||
		    (change->kind == STORE_MAP_CHUNK && digest_count == LOG_ENTRY_MOST_CHUNKS))
			break;
		if (!continues) {
			last = &runs[entry.run_count++];
			*last = (struct log_run){ .first_chunk = change->first_chunk, .kind = (enum log_run_kind)change->kind };
			if (change->kind == STORE_MAP_CHUNK)
				last->digests = (const uint8_t(*)[DIGEST_BYTES])(digests + digest_count);
		}
		last->chunk_count += change->chunk_count;
		if (change->kind == STORE_MAP_CHUNK)
			memcpy(digests[digest_count++], change->digest, DIGEST_BYTES);
	}
	return entry.run_count == 0 ? 0 : local_log_locked(local, disk, &entry, failure);
}

static int update_round_locked(struct local_store *local, int64_t disk, const struct store_round_position *position,
			       struct failure *failure)
{
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	int result = catalog_round_get(local->writer, disk, position->number, &round, failure);

	if (result < 0)
		return result == -ENOENT ? fail(failure, result, "commit: there is no round %u", position->number) : result;
	round.cursor_bytes = position->cursor_bytes;
	local_counts_to_row(&position->counts, &round);
	return catalog_round_update(local->writer, &round, failure);
}

/*
 * Applies changes and counts the plain bytes that differ from the newest image. The last chunk of a disk may be short: the change that covers it is
 * applied by itself, so that it's known whether it counts.
 */
int local_update_map_locked(struct local_store *local, struct catalog_disk *disk, const struct catalog_change *changes,
			    size_t count, struct failure *failure)
{
	uint32_t chunk_bytes = local->base.chunk_bytes;
	uint64_t last_chunk = (disk->size_bytes - 1) / chunk_bytes;
	struct catalog_change last = { .count = 0 }, before = { .count = 0 };
	uint64_t changed = 0, whole = 0, shorter = 0;
	int result = 0;

	if (count > 0 && changes[count - 1].first + changes[count - 1].count > last_chunk) {
		last = before = changes[--count];
		if (last.first < last_chunk)
			last.first = last_chunk;
		before.count = last.first - before.first;
		last.count -= before.count;
	}
	if (count > 0)
		result = catalog_map_update(local->writer, disk, changes, count, &changed, &whole, failure);
	if (result == 0 && before.count > 0)
		result = catalog_map_update(local->writer, disk, &before, 1, &changed, &whole, failure);
	if (result == 0 && last.count > 0)
		result = catalog_map_update(local->writer, disk, &last, 1, &changed, &shorter, failure);
	if (result < 0)
		return result;
	disk->changed_bytes += whole * chunk_bytes;
	if (shorter > 0)
		disk->changed_bytes += store_chunk_length(chunk_bytes, disk->size_bytes, last_chunk);
	if (changed > 0)
		disk->content_round = 0;
	return 0;
}

/* Content that no round wrote: an unfinished round can't go on at its cursor any more, what is before it may have changed. */
static int restart_unfinished_round_locked(struct local_store *local, const struct catalog_disk *disk,
					   struct failure *failure)
{
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	int result;

	if (disk->next_round == 1)
		return 0;
	result = catalog_round_get(local->writer, disk->id, disk->next_round - 1, &round, failure);
	if (result < 0)
		return result == -ENOENT ? 0 : result;
	if (round.state == ROUND_DONE || round.cursor_bytes == 0)
		return 0;
	round.cursor_bytes = 0;
	memset(round.counts, 0, sizeof(round.counts));
	return catalog_round_update(local->writer, &round, failure);
}

static int commit_changes_locked(struct local_view *view, const struct store_change *changes, size_t count,
				 const struct store_round_position *round, struct committing *committing,
				 struct failure *failure)
{
	struct local_store *local = local_of(view->base.store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO_FREE struct catalog_change *catalog_changes = calloc(count + 1, sizeof(*catalog_changes));
	int result;

	if (catalog_changes == NULL)
		return fail_errno(failure, -ENOMEM, "commit");
	result = add_pending_locked(local, committing, failure);
	if (result == 0)
		result = catalog_disk_get(local->writer, view->disk, &disk, failure);
	if (result == -ENOENT)
		return fail(failure, -EBADMSG, "disk %s: it is gone from the catalog", view->base.name);
	if (result == 0)
		result = make_changes_locked(local, changes, count, committing, catalog_changes, failure);
	for (size_t first = 0; result == 0 && first < count;)
		result = log_some_changes_locked(local, &disk, changes, count, &first, failure);
	if (result == 0)
		result = local_apply_changes_locked(local, &disk, catalog_changes, count, failure);
	if (result == 0 && round != NULL)
		result = update_round_locked(local, disk.id, round, failure);
	else if (result == 0)
		result = restart_unfinished_round_locked(local, &disk, failure);
	if (result < 0)
		return result;
	return catalog_disk_update(local->writer, &disk, failure);
}

int local_commit(struct store_view *store_view, const struct store_change *changes, size_t count,
		 const struct store_round_position *round, struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	struct local_store *local = local_of(store_view->store);
	AUTO(committing_done) struct committing committing = { .count = 0 };
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_sync_locked(local, failure);
	if (result == 0)
		result = local_begin_locked(local, failure);
	if (result < 0) {
		leave_full_segment_locked(local);
		return result;
	}
	result = commit_changes_locked(view, changes, count, round, &committing, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	result = local_end_locked(local, failure);
	if (result == 0)
		pending_remove(&local->pending, committing.count);
	return result;
}
