/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair: what a deep check found damaged is had again at once, or waits for a round that brings it.
 *
 *     another record of the same content     it is copied, and the chunk is where the copy is: all that refer to it are whole again
 *     none, and its digest is known          the chunk is marked as lost (catalog/lost.c): the round that meets the content stores it, and heals it
 *     none, and its digest is not known      nothing can be done, and that is said
 *     marked by an earlier check, and sound  the mark is taken away
 *
 * The digest stands in the header of the record. Where that is what is damaged, the logs of disks have it: they name the digests of all content that
 * was ever committed. The catalog has the first 48 bits of it; should there be two in the logs that begin so, neither is believed.
 *
 * A donor is copied, not shared: a record belongs to one chunk, for what lives in a segment is counted by chunks.
 *
 * Nothing is changed but what refers to damage, and that in transactions of bounded size, each of which looks again where the chunk is: others work
 * meanwhile. A repair that is cut short has done a part of it, and the next one does the rest.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/local_check.h"

enum {
	VICTIMS_MOST = 1 << 18, /* 18 MiB; what is beyond is for the next repair */
	BATCH_VICTIMS = 128,
	LOST_A_LOOK = 256,
	ENTRIES_A_PIECE = 64,
	TAG_CANDIDATES = 8,
};

enum knowledge { DIGEST_UNKNOWN, DIGEST_KNOWN, DIGEST_AMBIGUOUS };

struct victim {
	uint64_t chunk, tag;
	uint32_t segment, off_bytes;
	uint8_t digest[DIGEST_BYTES];
	uint8_t knowledge; /* enum knowledge */
	bool is_mended;
	bool has_donor;
	struct catalog_location to; /* of the donor's copy */
};

struct repairing {
	struct checking *checking;
	struct catalog *catalog; /* for reading */
	struct failure *failure;
	struct store_scratch *scratch;
	uint8_t *plain; /* RECORD_PLAIN_MOST_BYTES */
	struct victim *victims; /* ascending chunks, once they are all there */
	size_t count;
	uint64_t more; /* beyond the limit */
	struct victim **by_tag;
	size_t unknown_count; /* whose tags are in by_tag */
};

static void repairing_free(struct repairing *repairing)
{
	store_scratch_free(repairing->scratch);
	free(repairing->plain);
	free(repairing->victims);
	free(repairing->by_tag);
}

/* ---- who they are ---- */

static int add_victim(struct repairing *repairing, uint64_t chunk, const struct catalog_location *at,
		      struct victim **ret_victim)
{
	size_t count = repairing->count;

	*ret_victim = NULL;
	if (count == VICTIMS_MOST) {
		repairing->more++;
		return 0;
	}
	if ((count & (count - 1)) == 0) {
		struct victim *grown = reallocarray(repairing->victims, count == 0 ? 1 : count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(repairing->failure, -ENOMEM, "check");
		repairing->victims = grown;
	}
	*ret_victim = &repairing->victims[repairing->count++];
	**ret_victim =
		(struct victim){ .chunk = chunk, .tag = at->tag, .segment = at->segment, .off_bytes = at->off_bytes };
	return 0;
}

static int compare_chunks(const void *a, const void *b)
{
	const struct victim *first = a, *second = b;

	return first->chunk < second->chunk ? -1 : first->chunk > second->chunk;
}

static int collect_bad_chunks(struct repairing *repairing)
{
	const struct checking *checking = repairing->checking;

	for (size_t i = 0; i < checking->bad_chunk_count; i++) {
		struct catalog_location location;
		struct victim *victim;
		int result;

		if (checking->bad_chunks[i].kind == DAMAGE_PLACE)
			continue;
		result = catalog_chunk_get(repairing->catalog, checking->bad_chunks[i].chunk, &location, repairing->failure);
		if (result == -ENOENT || (result == 0 && location.references == 0))
			continue;
		if (result == 0)
			result = add_victim(repairing, checking->bad_chunks[i].chunk, &location, &victim);
		if (result < 0)
			return result;
	}
	return 0;
}

static int collect_if_in_bad_place(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct repairing *repairing = opaque;
	struct victim *victim;

	if (checking_is_stopped(repairing->checking))
		return -EINTR;
	if (location == NULL || location->references == 0 || location->segment == CATALOG_NO_SEGMENT ||
	    checking_bad_place(repairing->checking, location->segment, location->off_bytes, location->stored_bytes) == NULL)
		return 0;
	return add_victim(repairing, chunk, location, &victim);
}

/* What is in segments that can't be used is known by the segment only. */
static int collect_victims(struct repairing *repairing)
{
	size_t kept = 0;
	int result = collect_bad_chunks(repairing);

	if (result == 0 && repairing->checking->bad_segment_count > 0)
		result = catalog_chunk_walk(repairing->catalog, 0, (uint64_t)1 << 62, collect_if_in_bad_place, repairing,
					    repairing->failure);
	if (result < 0 || repairing->count == 0)
		return result;
	qsort(repairing->victims, repairing->count, sizeof(*repairing->victims), compare_chunks);
	for (size_t i = 0; i < repairing->count; i++)
		if (i == 0 || repairing->victims[i].chunk != repairing->victims[kept - 1].chunk)
			repairing->victims[kept++] = repairing->victims[i];
	repairing->count = kept;
	return 0;
}

static struct victim *find_victim(const struct repairing *repairing, size_t count, uint64_t chunk)
{
	const struct victim key = { .chunk = chunk };

	return count == 0 ? NULL : bsearch(&key, repairing->victims, count, sizeof(key), compare_chunks);
}

/* ---- what they should be ---- */

static void ask_headers(struct repairing *repairing)
{
	for (size_t i = 0; i < repairing->count; i++) {
		struct victim *victim = &repairing->victims[i];
		struct record_header header;

		if (victim->knowledge != DIGEST_UNKNOWN ||
		    segment_reader_header(repairing->checking->local->reader, victim->segment, victim->off_bytes, &header,
					  NULL) < 0 ||
		    header.type != RECORD_CHUNK || catalog_tag(header.digest) != victim->tag)
			continue;
		memcpy(victim->digest, header.digest, DIGEST_BYTES);
		victim->knowledge = DIGEST_KNOWN;
	}
}

static int compare_tags(const void *a, const void *b)
{
	const struct victim *const *first = a, *const *second = b;

	return (*first)->tag < (*second)->tag ? -1 : (*first)->tag > (*second)->tag;
}

static int list_unknown(struct repairing *repairing)
{
	repairing->by_tag = calloc(repairing->count + 1, sizeof(struct victim *));
	if (repairing->by_tag == NULL)
		return fail_errno(repairing->failure, -ENOMEM, "check");
	for (size_t i = 0; i < repairing->count; i++)
		if (repairing->victims[i].knowledge == DIGEST_UNKNOWN)
			repairing->by_tag[repairing->unknown_count++] = &repairing->victims[i];
	if (repairing->unknown_count > 0)
		qsort(repairing->by_tag, repairing->unknown_count, sizeof(struct victim *), compare_tags);
	return 0;
}

/* The first one in by_tag with this tag or a later one. */
static size_t first_of_tag(const struct repairing *repairing, uint64_t tag)
{
	size_t first = 0, end = repairing->unknown_count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (repairing->by_tag[middle]->tag < tag)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

static void note_digest(struct repairing *repairing, const uint8_t digest[DIGEST_BYTES])
{
	uint64_t tag = catalog_tag(digest);

	for (size_t i = first_of_tag(repairing, tag); i < repairing->unknown_count && repairing->by_tag[i]->tag == tag; i++) {
		struct victim *victim = repairing->by_tag[i];

		if (victim->knowledge == DIGEST_UNKNOWN) {
			memcpy(victim->digest, digest, DIGEST_BYTES);
			victim->knowledge = DIGEST_KNOWN;
		} else if (memcmp(victim->digest, digest, DIGEST_BYTES) != 0) {
			victim->knowledge = DIGEST_AMBIGUOUS;
		}
	}
}

/* An entry that can't be read says nothing; the check has said so. */
static void note_digests_of(struct repairing *repairing, const struct catalog_log_entry *row)
{
	struct local_store *local = repairing->checking->local;
	struct store_scratch *scratch = repairing->scratch;
	struct record_header header;
	struct log_entry entry = { .op = LOG_CREATE };

	if (segment_reader_read(local->reader, row->segment, row->off_bytes, row->stored_bytes, &header, scratch->stored,
				NULL) < 0 ||
	    header.type != RECORD_LOG || memcmp(header.digest, row->digest, DIGEST_BYTES) != 0 ||
	    codec_decode(scratch->codec, &header, scratch->stored, repairing->plain, NULL) < 0 ||
	    log_entry_decode(repairing->plain, header.plain_bytes, local->base.chunk_bytes, &entry, NULL) < 0)
		return;
	for (size_t run = 0; entry.op == LOG_EXTENTS && run < entry.run_count; run++)
		for (uint64_t i = 0; entry.runs[run].kind == LOG_RUN_CHUNKS && i < entry.runs[run].chunk_count; i++)
			note_digest(repairing, entry.runs[run].digests[i]);
	log_entry_free(&entry);
}

static int ask_log(struct repairing *repairing, int64_t disk)
{
	uint64_t from = 0;

	for (;;) {
		AUTO_FREE struct catalog_log_entry *list = NULL;
		size_t count;
		int result = catalog_log_list(repairing->catalog, disk, from, ENTRIES_A_PIECE, &list, &count,
					      repairing->failure);

		if (result < 0 || count == 0)
			return result;
		for (size_t i = 0; i < count; i++)
			note_digests_of(repairing, &list[i]);
		if (checking_is_stopped(repairing->checking))
			return -EINTR;
		from = list[count - 1].sequence + 1;
	}
}

static int ask_logs(struct repairing *repairing)
{
	int64_t disk = 0;
	int result = list_unknown(repairing);

	while (result == 0 && repairing->unknown_count > 0) {
		result = catalog_log_next_disk(repairing->catalog, disk, &disk, repairing->failure);
		if (result < 0 || disk == 0)
			break;
		result = ask_log(repairing, disk);
	}
	return result;
}

/* ---- making them whole ---- */

/* Is this another chunk with the wanted content? 1: yes, and its record is in the scratch. */
static int try_donor(struct repairing *repairing, const struct victim *victim, uint64_t candidate,
		     struct record_header *ret_header)
{
	struct local_store *local = repairing->checking->local;
	struct store_scratch *scratch = repairing->scratch;
	struct catalog_location at;
	uint8_t digest[DIGEST_BYTES];
	int result = catalog_chunk_get(local->writer, candidate, &at, repairing->failure);

	if (result < 0)
		return result == -ENOENT ? 0 : result;
	if (segment_reader_read(local->reader, at.segment, at.off_bytes, at.stored_bytes, ret_header, scratch->stored, NULL) < 0 ||
	    ret_header->type != RECORD_CHUNK || memcmp(ret_header->digest, victim->digest, DIGEST_BYTES) != 0 ||
	    codec_decode(scratch->codec, ret_header, scratch->stored, repairing->plain, NULL) < 0)
		return 0;
	result = hasher_digest(scratch->hasher, repairing->plain, ret_header->plain_bytes, digest, repairing->failure);
	if (result < 0)
		return result;
	return memcmp(digest, victim->digest, DIGEST_BYTES) == 0;
}

/* Copies the record of another chunk with the same content, if there is one. */
static int copy_donor_locked(struct repairing *repairing, struct victim *victim)
{
	struct local_store *local = repairing->checking->local;
	uint64_t candidates[TAG_CANDIDATES];
	struct record_header header;
	size_t count = 0;
	int result = catalog_chunk_find(local->writer, victim->tag, candidates, TAG_CANDIDATES, &count, repairing->failure);

	for (size_t i = 0; result == 0 && i < count && !victim->has_donor; i++) {
		if (candidates[i] == victim->chunk)
			continue;
		result = try_donor(repairing, victim, candidates[i], &header);
		if (result != 1)
			continue;
		result = local_append_locked(local, &header, repairing->scratch->stored, &victim->to.segment,
					     &victim->to.off_bytes, repairing->failure);
		victim->to.stored_bytes = header.stored_bytes;
		victim->has_donor = result == 0;
	}
	return result;
}

static int mend_or_mark_locked(struct repairing *repairing, struct victim *victim)
{
	struct catalog *catalog = repairing->checking->local->writer;
	struct store_repair *repair = &repairing->checking->report->repair;
	struct catalog_location now;
	bool is_lost = false;
	int result = catalog_chunk_get(catalog, victim->chunk, &now, repairing->failure);

	if (result == -ENOENT || (result == 0 && (now.segment != victim->segment || now.off_bytes != victim->off_bytes ||
						  now.references == 0)))
		return 0; /* it was healed or given up meanwhile */
	if (result == 0)
		result = catalog_lost_has(catalog, victim->chunk, &is_lost, repairing->failure);
	if (result < 0)
		return result;
	if (victim->has_donor) {
		result = is_lost ? catalog_lost_heal(catalog, victim->chunk, victim->digest, &victim->to, repairing->failure) :
				   catalog_chunk_relocate(catalog, victim->chunk, &victim->to, repairing->failure);
		victim->is_mended = result == 0;
		repair->mended_chunks += result == 0;
		return result;
	}
	result = is_lost ? 0 : catalog_lost_mark(catalog, victim->chunk, victim->digest, repairing->failure);
	if (result == -EEXIST) { /* when its twin is healed, that one is its donor */
		repair->unknown_chunks++;
		return 0;
	}
	return result;
}

static int repair_batch(struct repairing *repairing, struct victim *victims, size_t count)
{
	struct local_store *local = repairing->checking->local;
	int result = 0;
	WITH_LOCK(&local->write_lock);

	for (size_t i = 0; result == 0 && i < count; i++)
		if (victims[i].knowledge == DIGEST_KNOWN)
			result = copy_donor_locked(repairing, &victims[i]);
	if (result == 0)
		result = local_sync_locked(local, repairing->failure);
	if (result == 0)
		result = local_begin_locked(local, repairing->failure);
	if (result < 0)
		return result;
	for (size_t i = 0; result == 0 && i < count; i++)
		if (victims[i].knowledge == DIGEST_KNOWN)
			result = mend_or_mark_locked(repairing, &victims[i]);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, repairing->failure);
}

static int repair_victims(struct repairing *repairing)
{
	struct store_repair *repair = &repairing->checking->report->repair;

	for (size_t i = 0; i < repairing->count; i++)
		repair->unknown_chunks += repairing->victims[i].knowledge != DIGEST_KNOWN;
	for (size_t first = 0; first < repairing->count; first += BATCH_VICTIMS) {
		size_t left = repairing->count - first;
		int result = checking_is_stopped(repairing->checking) ?
				     -EINTR :
				     repair_batch(repairing, &repairing->victims[first], left < BATCH_VICTIMS ? left : BATCH_VICTIMS);

		if (result < 0)
			return result;
	}
	return 0;
}

/* ---- what was marked before ---- */

static int unmark(struct repairing *repairing, const struct catalog_lost *lost, size_t count)
{
	struct local_store *local = repairing->checking->local;
	int result = 0;
	WITH_LOCK(&local->write_lock);

	if (count > 0)
		result = local_begin_locked(local, repairing->failure);
	if (result < 0 || count == 0)
		return result;
	for (size_t i = 0; result == 0 && i < count; i++) {
		bool is_lost = false;

		result = catalog_lost_has(local->writer, lost[i].chunk, &is_lost, repairing->failure);
		if (result == 0 && is_lost)
			result = catalog_lost_unmark(local->writer, lost[i].chunk, repairing->failure);
		repairing->checking->report->repair.sound_chunks += result == 0 && is_lost;
	}
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, repairing->failure);
}

/* Of chunks marked earlier: those whose records this check has read and found sound to ret_sound, those without any record to the victims. */
static int sort_lost(struct repairing *repairing, size_t known_victims, const struct catalog_lost *lost, size_t count,
		     struct catalog_lost *ret_sound, size_t *ret_sound_count)
{
	*ret_sound_count = 0;
	for (size_t i = 0; i < count; i++) {
		struct victim *victim = find_victim(repairing, known_victims, lost[i].chunk);
		struct catalog_location location;
		int result = 0;

		if (victim == NULL) {
			result = catalog_chunk_get(repairing->catalog, lost[i].chunk, &location, repairing->failure);
			if (result == -ENOENT)
				continue;
			if (result < 0)
				return result;
			/* of what is beyond a limit nothing is known */
			if (location.segment != CATALOG_NO_SEGMENT) {
				if (repairing->checking->more_bad_chunks + repairing->checking->more_bad_segments + repairing->more == 0)
					ret_sound[(*ret_sound_count)++] = lost[i];
				continue;
			}
			result = add_victim(repairing, lost[i].chunk, &location, &victim);
		}
		if (result < 0)
			return result;
		if (victim != NULL) {
			memcpy(victim->digest, lost[i].digest, DIGEST_BYTES);
			victim->knowledge = DIGEST_KNOWN;
		}
	}
	return 0;
}

static int look_at_lost(struct repairing *repairing)
{
	AUTO_FREE struct catalog_lost *lost = calloc(2 * LOST_A_LOOK, sizeof(*lost));
	struct catalog_lost *sound = lost + LOST_A_LOOK, after = { .chunk = 0 };
	size_t known_victims = repairing->count, count = 0, sound_count;
	int result;

	if (lost == NULL)
		return fail_errno(repairing->failure, -ENOMEM, "check");
	do {
		result = catalog_lost_list(repairing->catalog, after.digest, lost, LOST_A_LOOK, &count, repairing->failure);
		if (result == 0)
			result = sort_lost(repairing, known_victims, lost, count, sound, &sound_count);
		if (result == 0)
			result = unmark(repairing, sound, sound_count);
		if (result == 0 && count > 0)
			after = lost[count - 1];
	} while (result == 0 && count == LOST_A_LOOK);
	return result;
}

/* ---- all of it ---- */

/* What is mended is no damage any more. */
static void forget_mended(struct repairing *repairing)
{
	struct checking *checking = repairing->checking;
	size_t kept = 0;

	qsort(repairing->victims, repairing->count, sizeof(*repairing->victims), compare_chunks);
	for (size_t i = 0; i < checking->bad_chunk_count; i++) {
		const struct victim *victim = find_victim(repairing, repairing->count, checking->bad_chunks[i].chunk);

		if (victim == NULL || !victim->is_mended)
			checking->bad_chunks[kept++] = checking->bad_chunks[i];
	}
	checking->bad_chunk_count = kept;
}

static int count_waiting(struct repairing *repairing)
{
	struct catalog_lost list[64], after = { .chunk = 0 };
	size_t count = 0;
	int result;

	do {
		result = catalog_lost_list(repairing->catalog, after.digest, list, sizeof(list) / sizeof(list[0]), &count,
					   repairing->failure);
		if (result == 0 && count > 0)
			after = list[count - 1];
		repairing->checking->report->repair.waiting_chunks += result == 0 ? count : 0;
	} while (result == 0 && count > 0);
	return result;
}

int checking_repair(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	AUTO(repairing_free)
	struct repairing repairing = { .checking = checking, .catalog = catalog, .failure = failure };
	int result = 0;

	if (!checking->params->repair)
		return 0;
	repairing.plain = malloc(RECORD_PLAIN_MOST_BYTES);
	result = repairing.plain == NULL ? fail_errno(failure, -ENOMEM, "check") : store_scratch_new(&repairing.scratch, failure);
	if (result == 0)
		result = collect_victims(&repairing);
	if (result == 0)
		result = look_at_lost(&repairing);
	if (result < 0)
		return result;
	ask_headers(&repairing);
	result = ask_logs(&repairing);
	if (result == 0)
		result = repair_victims(&repairing);
	if (result == 0)
		result = count_waiting(&repairing);
	if (result == 0 && repairing.more > 0)
		result = check_report_flaw(checking->report, failure, "store",
					   "too much is damaged to be repaired at once: %llu more chunks; repair it again",
					   (unsigned long long)repairing.more);
	if (result == 0 && repairing.count > 0)
		forget_mended(&repairing);
	return result;
}
