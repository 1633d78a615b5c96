/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rebuild: the catalog from the segments alone (R5).
 *
 *   1  Nobody else uses the store: no lease is held, and the catalog's lock is ours until the end. (That is looked at twice: who opens something
 *      meanwhile is found at 6, and who has the store open and takes a lease later is told that the catalog is not the one he knows. His numbers of
 *      disks mean others in the new one, so his lease would be another disk's.)
 *   2  Every segment is walked through. Chunks go into the new catalog as they're found, with nothing that refers to them; log entries into
 *      a table of their own.
 *   3  For each disk, the chain of entries that counts is found (docs/store-format.md): of all entries that a chain without gaps leads to from the disk's
 *      creation, the one with the highest number, of several the latest. An entry whose transaction never committed has no successor. Neither has the last one before a gap: what
 *      comes behind a lost entry can't be told right from wrong, and counts as lost.
 *   4  Each chain is replayed: the same transactions again. What an old entry refers to may be gone by right, because no image sees it any more; such content is
 *      noted as lost, and forgotten at the end if nothing refers to it.
 *   5  What no entry refers to is forgotten: it may not be durable.
 *   6  The new catalog takes the old one's place.
 *
 * Segments are only read. Whatever ends this before 6 leaves the old catalog as it was, or, within 6, none, which says to run it again.
 *
 * Where records are, how often, and in what order, doesn't matter: clean-up may have moved them, and may have been killed between copy and removal.
 * A segment that is not whole is sealed: whoever appended to it would cut off what can't be read now and may be some day.
 *
 * What the segments don't know: secret keys of fingerprints (new ones are drawn; the next round compares digests), and rounds (their numbers go on behind those that
 * images name). Memory doesn't grow with the store: all that there is much of is in the new database.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/own_file.h"
#include "store/check_report.h"
#include "store/local.h"

enum {
	ROWS_A_TRANSACTION = 65536,
	ENTRIES_A_TRANSACTION = 64,
	HEADS_MOST = 64, /* entries of one disk with the same number; more than one takes a crash at the wrong moment */
	SWEEP_ROWS = 512,
	SAME_MOST = 16, /* records with one digest that are looked at */
	UNUSED_A_LOOK = 4096,
};

struct rebuilding {
	struct local_store *local; /* its writer is the new catalog */
	const struct store_rebuild_params *params;
	struct store_rebuild_report *report;
	struct failure *failure;
	struct store_scratch *scratch;
	uint8_t *plain; /* RECORD_PLAIN_MOST_BYTES */
	uint32_t segment; /* being walked through */
	unsigned rows;	  /* of the transaction under way */
};

__attribute__((format(printf, 3, 4))) static int say(struct rebuilding *rebuilding, const char *what, const char *format, ...)
{
	AUTO_FREE char *why = NULL;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vasprintf(&why, format, arguments);
	va_end(arguments);
	if (length < 0) {
		why = NULL;
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	}
	return check_report_flaw(&rebuilding->report->found, rebuilding->failure, what, "%s", why);
}

static bool is_stopped(const struct rebuilding *rebuilding)
{
	return rebuilding->params->stop != NULL && *rebuilding->params->stop;
}

/* Ends the transaction and begins another one when this one has become large. */
static int count_rows(struct rebuilding *rebuilding, unsigned rows)
{
	int result;

	if (is_stopped(rebuilding))
		return -EINTR;
	rebuilding->rows += rows;
	if (rebuilding->rows < ROWS_A_TRANSACTION)
		return 0;
	rebuilding->rows = 0;
	result = catalog_commit(rebuilding->local->writer, rebuilding->failure);
	return result == 0 ? catalog_begin(rebuilding->local->writer, rebuilding->failure) : result;
}

/* ---- 2: what the segments hold ---- */

/* The content of a log record into rebuilding->plain. -EBADMSG with a reason in `flaw`. */
static int read_log_record(struct rebuilding *rebuilding, uint32_t segment, uint64_t off_bytes, uint32_t stored_bytes,
			   struct record_header *ret_header, struct failure *flaw)
{
	uint8_t digest[DIGEST_BYTES];
	int result = segment_reader_read(rebuilding->local->reader, segment, off_bytes, stored_bytes, ret_header,
					 rebuilding->scratch->stored, flaw);

	if (result == 0)
		result = codec_decode(rebuilding->scratch->codec, ret_header, rebuilding->scratch->stored, rebuilding->plain, flaw);
	if (result == 0)
		result = hasher_digest(rebuilding->scratch->hasher, rebuilding->plain, ret_header->plain_bytes, digest, flaw);
	if (result == 0 && memcmp(digest, ret_header->digest, DIGEST_BYTES) != 0)
		return fail(flaw, -EBADMSG, "segment %08x at %llu: content and SHA-256 differ", segment,
			    (unsigned long long)off_bytes);
	return result;
}

static bool is_damage(int code)
{
	return code == -EBADMSG || code == -EIO || code == -ENOENT;
}

static int take_log_record(struct rebuilding *rebuilding, uint64_t off_bytes, const struct record_header *header)
{
	AUTO(log_entry_free) struct log_entry entry = { .op = LOG_CREATE };
	struct catalog_found found = { .segment = rebuilding->segment,
				       .off_bytes = (uint32_t)off_bytes,
				       .stored_bytes = header->stored_bytes };
	struct record_header read_header;
	struct failure flaw = { .code = 0 };
	int result = read_log_record(rebuilding, rebuilding->segment, off_bytes, header->stored_bytes, &read_header, &flaw);

	if (result == 0)
		result = log_entry_decode(rebuilding->plain, read_header.plain_bytes, rebuilding->local->base.chunk_bytes, &entry,
					  &flaw);
	if (is_damage(result))
		return say(rebuilding, "log entry", "%s", flaw.message);
	if (result < 0)
		return fail_from(rebuilding->failure, &flaw);
	memcpy(found.uuid, entry.disk_uuid, DISK_UUID_BYTES);
	memcpy(found.digest, read_header.digest, DIGEST_BYTES);
	memcpy(found.predecessor, entry.predecessor, DIGEST_BYTES);
	found.sequence = entry.sequence;
	found.time_seconds = entry.time_seconds;
	return catalog_found_add(rebuilding->local->writer, &found, rebuilding->failure);
}

static int take_record(void *opaque, uint64_t off_bytes, const struct record_header *header)
{
	struct rebuilding *rebuilding = opaque;
	const struct catalog_location location = { .tag = catalog_tag(header->digest),
						   .segment = rebuilding->segment,
						   .off_bytes = (uint32_t)off_bytes,
						   .stored_bytes = header->stored_bytes };
	uint64_t chunk;
	int result;

	if (off_bytes > UINT32_MAX)
		return 0; /* no segment grows that large: nobody of us wrote that */
	if (header->type == RECORD_CHUNK) {
		rebuilding->report->chunks++;
		result = catalog_chunk_add(rebuilding->local->writer, &location, &chunk, rebuilding->failure);
	} else {
		result = take_log_record(rebuilding, off_bytes, header);
	}
	if (rebuilding->params->done_bytes != NULL)
		atomic_fetch_add_explicit(rebuilding->params->done_bytes, record_total_bytes(header->stored_bytes),
					  memory_order_relaxed);
	return result < 0 ? result : count_rows(rebuilding, 1);
}

/* The walk has ended before the file does: whoever has lost the catalog must know that there may be more. */
static int tell_rest(struct rebuilding *rebuilding, uint32_t number, uint64_t valid_bytes, uint64_t file_bytes)
{
	struct local_store *local = rebuilding->local;
	bool is_damaged = false;
	char what[32];
	int result = valid_bytes >= file_bytes ? 0 :
						 segment_rest_is_damaged(local->segments_fd, local->id, number, valid_bytes,
									 &is_damaged, rebuilding->failure);

	if (result < 0 || !is_damaged)
		return result;
	(void)snprintf(what, sizeof(what), "segment %08x", number);
	return say(rebuilding, what, "no record can be found from byte %llu on, %llu bytes are left out: damage, or what was being written in a power cut",
		   (unsigned long long)valid_bytes, (unsigned long long)(file_bytes - valid_bytes));
}

/* Its row is there before its records are: they count as alive in it. */
static int take_segment(struct rebuilding *rebuilding, uint32_t number)
{
	struct local_store *local = rebuilding->local;
	struct catalog_segment segment = { .number = number };
	struct failure flaw = { .code = 0 };
	uint64_t file_bytes = 0, valid_bytes = 0;
	char what[32];
	int result = segment_examine(local->segments_fd, local->id, number, &file_bytes, &flaw);

	(void)snprintf(what, sizeof(what), "segment %08x", number);
	if (result == 0) {
		rebuilding->segment = number;
		result = segment_walk(local->segments_fd, local->id, number, take_record, rebuilding, &valid_bytes, &flaw);
		if (rebuilding->failure->code != 0 || result == -EINTR)
			return result;
	}
	if (result < 0 && !is_damage(result))
		return fail_from(rebuilding->failure, &flaw);
	if (result < 0) {
		/* its number must not be given out again */
		segment.sealed = true;
		result = catalog_segment_put(local->writer, &segment, rebuilding->failure);
		if (result == 0)
			result = catalog_segment_remove(local->writer, number, rebuilding->failure);
		return result < 0 ? result : say(rebuilding, what, "%s", flaw.message);
	}
	segment.length_bytes = (valid_bytes + SEGMENT_BLOCK_BYTES - 1) / SEGMENT_BLOCK_BYTES * SEGMENT_BLOCK_BYTES;
	if (segment.length_bytes > file_bytes)
		segment.length_bytes = file_bytes;
	segment.sealed = segment.length_bytes >= SEGMENT_ROLL_BYTES || file_bytes > segment.length_bytes;
	rebuilding->report->segments++;
	result = catalog_segment_put(local->writer, &segment, rebuilding->failure);
	return result == 0 ? tell_rest(rebuilding, number, valid_bytes, file_bytes) : result;
}

struct number_list {
	uint32_t *numbers;
	size_t count;
};

static void number_list_free(struct number_list *list)
{
	free(list->numbers);
}

static int add_number(struct number_list *list, uint32_t number, struct failure *failure)
{
	if ((list->count & (list->count - 1)) == 0) {
		uint32_t *grown = reallocarray(list->numbers, list->count == 0 ? 1 : list->count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "rebuild");
		list->numbers = grown;
	}
	list->numbers[list->count++] = number;
	return 0;
}

/* Numbers of the segments in one of the 256 folders. Four bytes each: a store of 100 TiB has seven MiB of them in all. */
static int list_folder(struct local_store *local, unsigned folder_number, struct number_list *list, struct failure *failure)
{
	char name[8];
	AUTO_CLOSEDIR DIR *folder = NULL;
	const struct dirent *entry;

	(void)snprintf(name, sizeof(name), "%02x", folder_number);
	int fd = own_folder_open(local->segments_fd, name);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd == -EBADMSG ? fail(failure, fd, "folder segments/%s: " OWN_FILE_FLAW, name) :
					fail_errno(failure, fd, "folder segments/%s", name);
	folder = fdopendir(fd);
	if (folder == NULL) {
		(void)close(fd); /* only read */
		return fail_errno(failure, -errno, "folder segments/%s", name);
	}
	while (errno = 0, (entry = readdir(folder)) != NULL) {
		unsigned number = 0;
		int length = 0;

		if (strlen(entry->d_name) != 12 || sscanf(entry->d_name, "%8x.seg%n", &number, &length) != 1 || length != 12 ||
		    number == 0 || (number & 0xff) != folder_number)
			continue;
		int result = add_number(list, number, failure);
		if (result < 0)
			return result;
	}
	return errno == 0 ? 0 : fail_errno(failure, -errno, "folder segments/%s", name);
}

static int compare_numbers(const void *a, const void *b)
{
	uint32_t first = *(const uint32_t *)a, second = *(const uint32_t *)b;

	return first < second ? -1 : first > second;
}

static int take_segments(struct rebuilding *rebuilding)
{
	AUTO(number_list_free) struct number_list list = { .numbers = NULL };
	int result = 0;

	for (unsigned i = 0; result == 0 && i < 256; i++)
		result = list_folder(rebuilding->local, i, &list, rebuilding->failure);
	if (result < 0)
		return result;
	qsort(list.numbers, list.count, sizeof(*list.numbers), compare_numbers);
	for (size_t i = 0; rebuilding->params->total_bytes != NULL && i < list.count; i++) {
		uint64_t bytes = 0;

		if (segment_examine(rebuilding->local->segments_fd, rebuilding->local->id, list.numbers[i], &bytes, NULL) == 0)
			atomic_fetch_add_explicit(rebuilding->params->total_bytes, bytes, memory_order_relaxed);
	}
	for (size_t i = 0; result == 0 && i < list.count; i++)
		result = take_segment(rebuilding, list.numbers[i]);
	return result;
}

/* ---- 3: which entries count ---- */

struct heads {
	struct catalog_found list[HEADS_MOST];
	size_t count;
};

/* Those of that number which follow on one of `before`. */
static int follow(struct rebuilding *rebuilding, const uint8_t uuid[DISK_UUID_BYTES], uint64_t sequence,
		  const struct heads *before, struct heads *ret_heads)
{
	int result = catalog_found_list(rebuilding->local->writer, uuid, sequence, ret_heads->list, HEADS_MOST,
					&ret_heads->count, rebuilding->failure);
	size_t kept = 0;

	for (size_t i = 0; result == 0 && sequence > 1 && i < ret_heads->count; i++) {
		bool follows = false;

		for (size_t j = 0; !follows && j < before->count; j++)
			follows = memcmp(ret_heads->list[i].predecessor, before->list[j].digest, DIGEST_BYTES) == 0;
		if (follows)
			ret_heads->list[kept++] = ret_heads->list[i];
	}
	if (sequence > 1)
		ret_heads->count = kept;
	return result;
}

/* Marks the entries from `head` back to the first. */
static int choose_chain(struct rebuilding *rebuilding, struct catalog_found head)
{
	for (;;) {
		struct heads before;
		size_t i;
		int result = catalog_found_choose(rebuilding->local->writer, &head, rebuilding->failure);

		if (result < 0 || head.sequence == 1)
			return result;
		result = catalog_found_list(rebuilding->local->writer, head.uuid, head.sequence - 1, before.list, HEADS_MOST,
					    &before.count, rebuilding->failure);
		if (result < 0)
			return result;
		for (i = 0; i < before.count; i++)
			if (memcmp(before.list[i].digest, head.predecessor, DIGEST_BYTES) == 0)
				break;
		if (i == before.count)
			return fail(rebuilding->failure, -EBADMSG, "rebuild: a chain of log entries has changed meanwhile");
		head = before.list[i];
		result = count_rows(rebuilding, 1);
		if (result < 0)
			return result;
	}
}

/* The number of the last entry that counts; 0: not even the first one is there. */
static int find_chain(struct rebuilding *rebuilding, const uint8_t uuid[DISK_UUID_BYTES], uint64_t *ret_last)
{
	AUTO_FREE struct heads *heads = calloc(2, sizeof(*heads));
	uint64_t sequence = 1;
	int result;

	if (heads == NULL)
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	for (;; sequence++) {
		struct heads *now = &heads[sequence & 1], *before = &heads[(sequence & 1) ^ 1];

		result = follow(rebuilding, uuid, sequence, before, now);
		if (result < 0)
			return result;
		if (now->count == 0) {
			*ret_last = sequence - 1;
			return sequence == 1 ? 0 : choose_chain(rebuilding, before->list[before->count - 1]);
		}
	}
}

/* ---- 4: the same again ---- */

struct replay {
	struct rebuilding *rebuilding;
	struct catalog_disk disk;
	struct catalog_change *changes; /* as many as an entry may have */
	uint64_t *held;			/* lost chunks that the entry refers to, LOG_ENTRY_MOST_CHUNKS */
	size_t held_count;
	uint64_t last;			/* entry of the chain */
};

/*
 * Which of the records with this digest is meant? Where there are several, one whose payload is right: another one may be a copy that a clean-up had
 * not made durable when the power went, or damage that a round has healed since. One that is referred to has been found right before.
 */
static int find_sound(struct rebuilding *rebuilding, const uint8_t digest[DIGEST_BYTES], uint64_t *ret_chunk)
{
	struct catalog *catalog = rebuilding->local->writer;
	uint64_t candidates[SAME_MOST], found = 0;
	size_t count;
	int result = catalog_chunk_find(catalog, catalog_tag(digest), candidates, SAME_MOST, &count, rebuilding->failure);

	for (size_t i = 0; result == 0 && i < count; i++) {
		struct catalog_location location;
		struct record_header header;
		struct failure flaw = { .code = 0 };

		result = catalog_chunk_get(catalog, candidates[i], &location, rebuilding->failure);
		if (result < 0)
			break;
		if (segment_reader_header(rebuilding->local->reader, location.segment, location.off_bytes, &header, NULL) < 0 ||
		    header.type != RECORD_CHUNK || memcmp(header.digest, digest, DIGEST_BYTES) != 0)
			continue;
		if (found == 0)
			found = candidates[i]; /* if none is right: what is wrong with it is for a check to say */
		if (count > 1 && location.references == 0 &&
		    segment_reader_read(rebuilding->local->reader, location.segment, location.off_bytes, location.stored_bytes,
					&header, rebuilding->scratch->stored, &flaw) < 0)
			continue;
		found = candidates[i];
		break;
	}
	if (result == 0)
		*ret_chunk = found;
	return result;
}

/* What is lost goes with its last reference, and the entry may take that away in one place and refer to it in the next: it is held meanwhile. */
static int find_or_lose(struct replay *replay, const uint8_t digest[DIGEST_BYTES], uint64_t *ret_chunk)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	struct catalog *catalog = rebuilding->local->writer;
	int result = find_sound(rebuilding, digest, ret_chunk);

	if (result < 0 || *ret_chunk != 0)
		return result;
	result = catalog_lost_find(catalog, digest, ret_chunk, rebuilding->failure);
	if (result == 0 && *ret_chunk == 0)
		result = catalog_lost_add(catalog, digest, ret_chunk, rebuilding->failure);
	if (result == 0)
		result = catalog_lost_hold(catalog, *ret_chunk, rebuilding->failure);
	if (result == 0)
		replay->held[replay->held_count++] = *ret_chunk;
	return result;
}

static int release_held(struct replay *replay)
{
	int result = 0;

	while (result == 0 && replay->held_count > 0)
		result = catalog_lost_release(replay->rebuilding->local->writer, replay->held[--replay->held_count],
					      replay->rebuilding->failure);
	return result;
}

static int replay_extents(struct replay *replay, const struct log_entry *entry)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	uint64_t chunk_count = (replay->disk.size_bytes - 1) / rebuilding->local->base.chunk_bytes + 1;
	size_t count = 0;

	if (entry->generation != replay->disk.generation)
		return fail(rebuilding->failure, -EBADMSG, "disk %s: log entry %llu is of another generation", replay->disk.name,
			    (unsigned long long)entry->sequence);
	for (size_t i = 0; i < entry->run_count; i++) {
		const struct log_run *run = &entry->runs[i];
		uint64_t left = run->first_chunk < chunk_count ? chunk_count - run->first_chunk : 0;

		/* shrinking a disk has written runs of nothing that reach beyond its end */
		if (left == 0 || (run->chunk_count > left && run->kind != LOG_RUN_NOTHING))
			return fail(rebuilding->failure, -EBADMSG, "disk %s: log entry %llu is beyond the disk's end",
				    replay->disk.name, (unsigned long long)entry->sequence);
		if (run->kind != LOG_RUN_CHUNKS) {
			/* where there is no base below, zeros become nothing (local_apply_changes_locked), however many */
			replay->changes[count++] = (struct catalog_change){ .first = run->first_chunk,
									    .count = run->chunk_count < left ? run->chunk_count : left,
									    .kind = (uint8_t)run->kind };
			continue;
		}
		for (uint64_t j = 0; j < run->chunk_count; j++) {
			struct catalog_change *change = &replay->changes[count++];
			int result;

			*change = (struct catalog_change){ .first = run->first_chunk + j, .count = 1, .kind = CATALOG_CHUNK };
			result = find_or_lose(replay, run->digests[j], &change->chunk);
			if (result < 0)
				return result;
		}
	}
	int result = local_apply_changes_locked(rebuilding->local, &replay->disk, replay->changes, count, rebuilding->failure);

	return result == 0 ? release_held(replay) : result;
}

/* The name may be taken: by a disk whose removal was lost. */
static int replay_create(struct replay *replay, const struct log_entry *entry)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	struct catalog_disk *disk = &replay->disk;
	int result = entry->size_bytes == 0 || entry->size_bytes > STORE_DISK_MOST_BYTES ?
			     fail(rebuilding->failure, -EBADMSG, "disk %s: impossible size", entry->name) :
			     hash_random(disk->fingerprint_key, sizeof(disk->fingerprint_key), rebuilding->failure);

	disk->size_bytes = entry->size_bytes;
	disk->sector_bytes = entry->sector_bytes;
	disk->created_at = entry->time_seconds;
	memcpy(disk->uuid, entry->disk_uuid, DISK_UUID_BYTES);
	(void)snprintf(disk->name, sizeof(disk->name), "%s", entry->name);
	for (unsigned n = 2; result == 0; n++) {
		struct catalog_disk other;

		result = catalog_disk_find(rebuilding->local->writer, disk->name, &other, rebuilding->failure);
		if (result == -ENOENT)
			return catalog_disk_insert(rebuilding->local->writer, disk, rebuilding->failure);
		if (result < 0)
			return result;
		catalog_disk_release(&other);
		(void)snprintf(disk->name, sizeof(disk->name), "%.52s.%u", entry->name, n);
		result = say(rebuilding, entry->name, "there are several disks of this name; this one is called %s now", disk->name);
	}
	return result;
}

static int replay_image(struct replay *replay, const struct log_entry *entry)
{
	struct catalog_disk *disk = &replay->disk;
	const struct catalog_image image = { .disk = disk->id,
					     .number = entry->image_number,
					     .generation = entry->generation,
					     .created_at = entry->time_seconds,
					     .size_bytes = entry->size_bytes,
					     .changed_bytes = entry->changed_bytes,
					     .label = entry->label,
					     .consistency = entry->consistency,
					     .round = entry->round_number,
					     .details = entry->details };

	if (entry->generation != disk->generation || entry->image_number < disk->next_image || entry->generation == UINT32_MAX ||
	    entry->image_number == UINT32_MAX || entry->round_number == UINT32_MAX)
		return fail(replay->rebuilding->failure, -EBADMSG, "disk %s: log entry %llu makes an impossible image", disk->name,
			    (unsigned long long)entry->sequence);
	disk->generation = entry->generation + 1;
	disk->next_image = entry->image_number + 1;
	disk->changed_bytes = 0;
	if (entry->round_number >= disk->next_round)
		disk->next_round = entry->round_number + 1;
	return catalog_image_insert(replay->rebuilding->local->writer, &image, replay->rebuilding->failure);
}

static int sweep(struct replay *replay, const struct catalog_image *image)
{
	struct catalog_position position = { .until = 0 };
	uint64_t freed_bytes = 0;
	bool is_done = false;
	int result = 0;

	while (result == 0 && !is_done) {
		result = catalog_image_sweep(replay->rebuilding->local->writer, image, &position, SWEEP_ROWS, &freed_bytes,
					     &is_done, replay->rebuilding->failure);
		if (result == 0)
			result = count_rows(replay->rebuilding, SWEEP_ROWS);
	}
	return result;
}

static int replay_image_change(struct replay *replay, const struct log_entry *entry)
{
	AUTO(catalog_image_release) struct catalog_image image = { .number = 0 };
	struct failure *failure = replay->rebuilding->failure;
	int result = catalog_image_get(replay->rebuilding->local->writer, replay->disk.id, entry->image_number, &image, failure);

	if (result == -ENOENT)
		return fail(failure, -EBADMSG, "disk %s: log entry %llu changes image %u, which isn't there", replay->disk.name,
			    (unsigned long long)entry->sequence, entry->image_number);
	if (result < 0)
		return result;
	if (entry->op == LOG_IMAGE_PIN)
		image.pinned = entry->pinned;
	if (entry->op == LOG_IMAGE_DELETE)
		image.state = CATALOG_GOING;
	if (entry->op == LOG_IMAGE_LABEL) {
		char *label = entry->label == NULL ? NULL : strdup(entry->label);

		if (entry->label != NULL && label == NULL)
			return fail_errno(failure, -ENOMEM, "rebuild");
		free(image.label);
		image.label = label;
	}
	result = catalog_image_update(replay->rebuilding->local->writer, &image, failure);
	if (result == 0 && entry->op == LOG_IMAGE_DELETE)
		result = catalog_base_forget_unseen(replay->rebuilding->local->writer, replay->disk.id, failure);
	return result == 0 && entry->op == LOG_IMAGE_DELETE ? sweep(replay, &image) : result;
}

static int replay_policy(struct replay *replay, const struct log_entry *entry)
{
	struct catalog_disk *disk = &replay->disk;
	char *mirror_of = entry->mirror_of == NULL ? NULL : strdup(entry->mirror_of);

	if (entry->mirror_of != NULL && mirror_of == NULL)
		return fail_errno(replay->rebuilding->failure, -ENOMEM, "rebuild");
	free(disk->mirror_of);
	disk->mirror_of = mirror_of;
	disk->keep = entry->keep > UINT32_MAX ? UINT32_MAX : (uint32_t)entry->keep;
	disk->level = entry->level;
	disk->limit_bytes_per_second = entry->limit_bytes_per_second;
	return 0;
}

static int replay_resize(struct replay *replay, const struct log_entry *entry)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	int result = local_clip_base_locked(rebuilding->local, &replay->disk, entry->size_bytes, rebuilding->failure);

	replay->disk.size_bytes = entry->size_bytes;
	return result;
}

/* The disk that a piece is of may not be there yet, and its image may go before the end: which is which is looked up when all disks are there. */
static int replay_base(struct replay *replay, const struct log_entry *entry)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	AUTO_FREE struct catalog_piece *pieces = calloc(entry->piece_count + 1, sizeof(*pieces));

	if (pieces == NULL)
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	for (size_t i = 0; i < entry->piece_count; i++) {
		const struct log_piece *piece = &entry->pieces[i];

		pieces[i] = (struct catalog_piece){ .off_bytes = piece->off_bytes,
						    .len_bytes = piece->len_bytes,
						    .image_number = piece->image_number,
						    .image_off_bytes = piece->image_off_bytes };
		memcpy(pieces[i].image_uuid, piece->image_uuid, CATALOG_UUID_BYTES);
		if (entry->generation != replay->disk.generation || piece->off_bytes > replay->disk.size_bytes ||
		    piece->len_bytes > replay->disk.size_bytes - piece->off_bytes ||
		    piece->image_off_bytes > STORE_DISK_MOST_BYTES)
			return fail(rebuilding->failure, -EBADMSG, "disk %s: log entry %llu has an impossible piece",
				    replay->disk.name, (unsigned long long)entry->sequence);
	}
	return catalog_base_set(rebuilding->local->writer, &replay->disk, pieces, entry->piece_count, rebuilding->failure);
}

/* A clone whose image is lost, with its disk or behind a gap in that disk's log. */
static int tell_missing_image(void *opaque, const char *disk, const struct catalog_piece *piece)
{
	char what[CATALOG_NAME_BYTES + 16], uuid[2 * CATALOG_UUID_BYTES + 1];

	(void)snprintf(what, sizeof(what), "disk %s", disk);
	bytes_to_hex(piece->image_uuid, CATALOG_UUID_BYTES, uuid);
	return say(opaque, what, "%llu bytes at %llu are those of image %u of disk %s, which is lost",
		   (unsigned long long)piece->len_bytes, (unsigned long long)piece->off_bytes, piece->image_number, uuid);
}

static int replay_operation(struct replay *replay, const struct log_entry *entry)
{
	switch (entry->op) {
	case LOG_CREATE:
		return replay_create(replay, entry);
	case LOG_EXTENTS:
		return replay_extents(replay, entry);
	case LOG_RESIZE:
		if (entry->size_bytes == 0 || entry->size_bytes > STORE_DISK_MOST_BYTES)
			return fail(replay->rebuilding->failure, -EBADMSG, "disk %s: impossible size", replay->disk.name);
		return replay_resize(replay, entry);
	case LOG_IMAGE:
		return replay_image(replay, entry);
	case LOG_IMAGE_DELETE:
	case LOG_IMAGE_PIN:
	case LOG_IMAGE_LABEL:
		return replay_image_change(replay, entry);
	case LOG_POLICY:
		return replay_policy(replay, entry);
	case LOG_REMOVE:
		replay->disk.state = CATALOG_GOING;
		return 0;
	case LOG_BASE:
		return replay_base(replay, entry);
	}
	return fail(replay->rebuilding->failure, -EBADMSG, "disk %s: unknown log entry", replay->disk.name);
}

static int decode_found(struct rebuilding *rebuilding, const struct catalog_found *found, struct log_entry *ret_entry)
{
	struct record_header header;
	int result = read_log_record(rebuilding, found->segment, found->off_bytes, found->stored_bytes, &header,
				     rebuilding->failure);

	if (result < 0)
		return result;
	return log_entry_decode(rebuilding->plain, header.plain_bytes, rebuilding->local->base.chunk_bytes, ret_entry,
				rebuilding->failure);
}

static int replay_entry(struct replay *replay, const struct catalog_found *found)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	AUTO(log_entry_free) struct log_entry entry = { .op = LOG_CREATE };
	struct catalog_log_entry row = { .sequence = found->sequence,
					 .segment = found->segment,
					 .off_bytes = found->off_bytes,
					 .stored_bytes = found->stored_bytes };
	int result = decode_found(rebuilding, found, &entry);

	if (result == 0)
		result = replay_operation(replay, &entry);
	if (result < 0)
		return result;
	row.disk = replay->disk.id;
	memcpy(row.digest, found->digest, DIGEST_BYTES);
	result = catalog_log_insert(rebuilding->local->writer, &row, rebuilding->failure);
	replay->disk.log_sequence = found->sequence;
	memcpy(replay->disk.log_head, found->digest, DIGEST_BYTES);
	if (result == 0)
		result = catalog_disk_update(rebuilding->local->writer, &replay->disk, rebuilding->failure);
	return result == 0 ? count_rows(rebuilding, ROWS_A_TRANSACTION / ENTRIES_A_TRANSACTION) : result;
}

static int sweep_gone_disk(struct replay *replay)
{
	struct rebuilding *rebuilding = replay->rebuilding;
	uint64_t freed_bytes = 0;
	bool is_done = false;
	int result = 0;

	while (result == 0 && !is_done) {
		result = catalog_disk_sweep(rebuilding->local->writer, &replay->disk, SWEEP_ROWS, &freed_bytes, &is_done,
					    rebuilding->failure);
		if (result == 0)
			result = count_rows(rebuilding, SWEEP_ROWS);
	}
	return result;
}

/*
 * Of a disk that was removed only the last entry may be left: it is all that is needed to know that. One that still has its journal stays going: the next deletion
 * removes that. Not here, for whatever ends the rebuild leaves everything as it was.
 */
static int note_removed(struct rebuilding *rebuilding, const struct catalog_found *found, bool *ret_is_removal)
{
	AUTO(log_entry_free) struct log_entry entry = { .op = LOG_CREATE };
	struct replay replay = { .rebuilding = rebuilding,
				 .disk = { .size_bytes = 512, .sector_bytes = 512, .generation = 1, .level = -1, .next_image = 1,
					   .next_round = 1, .state = CATALOG_GOING, .log_sequence = found->sequence } };
	struct catalog_log_entry row = { .sequence = found->sequence,
					 .segment = found->segment,
					 .off_bytes = found->off_bytes,
					 .stored_bytes = found->stored_bytes };
	bool has_journal = false;
	int result = decode_found(rebuilding, found, &entry);

	*ret_is_removal = result == 0 && entry.op == LOG_REMOVE;
	if (result < 0 || !*ret_is_removal)
		return result;
	rebuilding->report->removed_disks++;
	(void)strcpy(replay.disk.name, "removed");
	memcpy(replay.disk.uuid, found->uuid, DISK_UUID_BYTES);
	memcpy(replay.disk.log_head, found->digest, DIGEST_BYTES);
	result = catalog_disk_insert(rebuilding->local->writer, &replay.disk, rebuilding->failure);
	if (result < 0)
		return result;
	row.disk = replay.disk.id;
	memcpy(row.digest, found->digest, DIGEST_BYTES);
	result = catalog_log_insert(rebuilding->local->writer, &row, rebuilding->failure);
	if (result == 0)
		result = local_has_journal(rebuilding->local, &replay.disk, &has_journal, rebuilding->failure);
	return result == 0 && !has_journal ? sweep_gone_disk(&replay) : result;
}

/* What is behind a gap in the log: which images it made, for whoever misses them. */
static int tell_lost_entries(struct rebuilding *rebuilding, const uint8_t uuid[DISK_UUID_BYTES], const char *name,
			     uint64_t first, uint64_t last)
{
	AUTO_FREE struct heads *heads = calloc(1, sizeof(*heads));
	char what[CATALOG_NAME_BYTES + 16];
	int result;

	if (heads == NULL)
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	(void)snprintf(what, sizeof(what), "disk %s", name);
	result = say(rebuilding, what, "entry %llu of its log is lost, and with it all that came after: up to entry %llu",
		     (unsigned long long)first, (unsigned long long)last);
	for (uint64_t sequence = first; result == 0 && sequence <= last; sequence++) {
		result = catalog_found_list(rebuilding->local->writer, uuid, sequence, heads->list, HEADS_MOST, &heads->count,
					    rebuilding->failure);
		for (size_t i = 0; result == 0 && i < heads->count && i < 1; i++) {
			AUTO(log_entry_free) struct log_entry entry = { .op = LOG_CREATE };

			result = decode_found(rebuilding, &heads->list[heads->count - 1], &entry);
			if (result == 0 && entry.op == LOG_IMAGE)
				result = say(rebuilding, what, "image %u is lost", entry.image_number);
		}
	}
	return result;
}

static void replay_release(struct replay *replay)
{
	catalog_disk_release(&replay->disk);
	free(replay->changes);
	free(replay->held);
}

static int replay_chain(struct rebuilding *rebuilding, const uint8_t uuid[DISK_UUID_BYTES], uint64_t last, uint64_t newest)
{
	AUTO(replay_release)
	struct replay replay = { .rebuilding = rebuilding,
				 .last = last,
				 .disk = { .generation = 1, .level = -1, .next_image = 1, .next_round = 1 } };
	int result = 0;

	replay.changes = calloc(LOG_ENTRY_MOST_CHUNKS + LOG_ENTRY_MOST_RUNS, sizeof(*replay.changes));
	replay.held = calloc(LOG_ENTRY_MOST_CHUNKS, sizeof(*replay.held));
	if (replay.changes == NULL || replay.held == NULL)
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	for (uint64_t sequence = 1; result == 0 && sequence <= last; sequence++) {
		struct catalog_found found;

		result = catalog_found_chosen(rebuilding->local->writer, uuid, sequence, &found, rebuilding->failure);
		if (result == -ENOENT)
			result = fail(rebuilding->failure, -EBADMSG, "rebuild: log entries have changed meanwhile");
		if (result == 0)
			result = replay_entry(&replay, &found);
	}
	if (result < 0)
		return result;
	if (replay.disk.state == CATALOG_GOING) /* a removal that was not the last entry: nobody writes that */
		return sweep_gone_disk(&replay);
	rebuilding->report->disks++;
	return newest > last ? tell_lost_entries(rebuilding, uuid, replay.disk.name, last + 1, newest) : 0;
}

static int rebuild_disk(struct rebuilding *rebuilding, const uint8_t uuid[DISK_UUID_BYTES])
{
	AUTO_FREE struct heads *heads = calloc(1, sizeof(*heads));
	uint64_t last = 0, newest = 0;
	bool is_removal = false;
	char what[2 * DISK_UUID_BYTES + 16] = "disk ";
	int result = catalog_found_last(rebuilding->local->writer, uuid, &newest, rebuilding->failure);

	if (heads == NULL)
		return fail_errno(rebuilding->failure, -ENOMEM, "rebuild");
	if (result == 0)
		result = catalog_found_list(rebuilding->local->writer, uuid, newest, heads->list, HEADS_MOST, &heads->count,
					    rebuilding->failure);
	if (result == 0)
		result = find_chain(rebuilding, uuid, &last);
	/* a removal is the end, whatever is left of what was before; behind a gap the latest entry is as good as any */
	if (result == 0 && last == newest)
		result = catalog_found_chosen(rebuilding->local->writer, uuid, newest, &heads->list[0], rebuilding->failure);
	else if (result == 0)
		heads->list[0] = heads->list[heads->count - 1];
	if (result == 0)
		result = note_removed(rebuilding, &heads->list[0], &is_removal);
	if (result < 0 || is_removal)
		return result;
	if (last > 0)
		return replay_chain(rebuilding, uuid, last, newest);
	bytes_to_hex(uuid, DISK_UUID_BYTES, what + strlen(what));
	result = say(rebuilding, what, "the entry of its log that made it is lost, and with it the disk");
	return result;
}

static int has_missing_image(struct rebuilding *rebuilding, int64_t disk, bool *ret_has)
{
	AUTO_FREE struct catalog_piece *pieces = NULL;
	size_t count = 0;
	int result = catalog_base_list(rebuilding->local->writer, disk, 0, &pieces, &count, rebuilding->failure);

	*ret_has = false;
	for (size_t i = 0; result == 0 && i < count; i++)
		*ret_has |= pieces[i].image_generation == 0;
	return result;
}

/*
 * A clone of which there are just the entries that made it, and whose image is gone: most likely its transaction never committed (a clone that is there keeps its image from going). It
 * has nothing of its own that could be lost with it. One that was ever opened for writing has been there, and what was flushed since may be in its journal.
 */
static int drop_if_never_made(struct rebuilding *rebuilding, const struct catalog_disk *disk)
{
	struct replay replay = { .rebuilding = rebuilding, .disk = *disk };
	char what[CATALOG_NAME_BYTES + 16];
	bool is_missing = false, has_journal = false;
	int result;

	if (disk->log_sequence > 2 || disk->next_image > 1)
		return 0;
	result = has_missing_image(rebuilding, disk->id, &is_missing);
	if (result == 0)
		result = local_has_journal(rebuilding->local, disk, &has_journal, rebuilding->failure);
	if (result < 0 || !is_missing || has_journal)
		return result;
	replay.disk.state = CATALOG_GOING;
	replay.disk.log_sequence++; /* none of its entries says that it is gone: none is to stay */
	result = catalog_disk_update(rebuilding->local->writer, &replay.disk, rebuilding->failure);
	if (result == 0)
		result = sweep_gone_disk(&replay);
	rebuilding->report->disks--;
	(void)snprintf(what, sizeof(what), "disk %s", disk->name);
	return result < 0 ? result : say(rebuilding, what, "a clone of an image that is gone, with nothing of its own; it was left out");
}

static int drop_never_made(struct rebuilding *rebuilding)
{
	AUTO_FREE struct catalog_disk *disks = NULL;
	size_t count = 0;
	int result = catalog_disk_list(rebuilding->local->writer, CATALOG_ALIVE, &disks, &count, rebuilding->failure);

	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = drop_if_never_made(rebuilding, &disks[i]);
		catalog_disk_release(&disks[i]);
	}
	return result;
}

static int rebuild_disks(struct rebuilding *rebuilding)
{
	uint8_t uuid[DISK_UUID_BYTES] = { 0 };

	for (;;) {
		bool any = false;
		int result = catalog_found_next_disk(rebuilding->local->writer, uuid, uuid, &any, rebuilding->failure);

		if (result < 0 || !any)
			return result;
		result = rebuild_disk(rebuilding, uuid);
		if (result < 0)
			return result;
	}
}

/* ---- what nothing refers to ---- */

struct unused_search {
	uint64_t chunks[UNUSED_A_LOOK];
	size_t count;
	uint64_t next;
};

static int note_unused(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct unused_search *search = opaque;

	search->next = chunk + 1;
	if (location != NULL && location->references == 0)
		search->chunks[search->count++] = chunk;
	return search->count == UNUSED_A_LOOK ? 1 : 0;
}

static int drop_unused(struct rebuilding *rebuilding, const struct unused_search *search)
{
	struct catalog *catalog = rebuilding->local->writer;
	int result = catalog_begin(catalog, rebuilding->failure);

	if (result < 0)
		return result;
	for (size_t i = 0; result == 0 && i < search->count; i++)
		result = catalog_chunk_drop(catalog, search->chunks[i], rebuilding->failure);
	if (result == 0)
		return catalog_commit(catalog, rebuilding->failure);
	catalog_rollback(catalog);
	return result;
}

/*
 * Chunks that no log entry that counts refers to are forgotten: the entry that names a chunk says that its record is durable, and nothing else does. One without may
 * be of a tail that the power cut off anywhere, with a header that is right and a payload that isn't, and a round would take it for content that is there.
 */
static int forget_unused(struct rebuilding *rebuilding)
{
	AUTO_FREE struct unused_search *search = calloc(1, sizeof(*search));
	struct catalog *catalog = rebuilding->local->writer;
	uint64_t end = 0;
	int result = search == NULL ? fail_errno(rebuilding->failure, -ENOMEM, "rebuild") :
				      catalog_chunk_count(catalog, &end, rebuilding->failure);

	if (result < 0)
		return result;
	do {
		int dropped;

		if (is_stopped(rebuilding))
			return -EINTR;
		search->count = 0;
		result = catalog_chunk_walk(catalog, search->next, end + 1, note_unused, search, rebuilding->failure);
		dropped = result < 0 || search->count == 0 ? 0 : drop_unused(rebuilding, search);
		if (dropped < 0)
			return dropped;
	} while (result == 1);
	return result;
}

/* ---- all of it ---- */

static int fill(struct rebuilding *rebuilding)
{
	struct catalog *catalog = rebuilding->local->writer;
	int result = catalog_found_begin(catalog, rebuilding->failure);

	if (result == 0)
		result = catalog_begin(catalog, rebuilding->failure);
	if (result < 0)
		return result;
	result = take_segments(rebuilding);
	if (result == 0)
		result = rebuild_disks(rebuilding);
	if (result == 0)
		result = catalog_base_resolve(catalog, tell_missing_image, rebuilding, rebuilding->failure);
	if (result == 0)
		result = drop_never_made(rebuilding);
	if (result == 0)
		result = catalog_lost_sweep(catalog, &rebuilding->report->lost_chunks, rebuilding->failure);
	if (result < 0) {
		catalog_rollback(catalog);
		return result;
	}
	result = catalog_commit(catalog, rebuilding->failure);
	if (result == 0)
		result = forget_unused(rebuilding);
	return result == 0 ? catalog_found_end(catalog, rebuilding->failure) : result;
}

/* Nobody has anything open: who has, works by the catalog that is to go. */
static int check_is_unused(void *opaque, struct failure *failure)
{
	struct local_store *local = opaque;
	AUTO_CLOSEDIR DIR *folder = NULL;
	const struct dirent *entry;
	int fd = openat(local->folder_fd, "locks", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	folder = fd < 0 ? NULL : fdopendir(fd);
	if (folder == NULL)
		return fail_errno(failure, -errno, "folder %s/locks", local->base.location);
	while (errno = 0, (entry = readdir(folder)) != NULL) {
		AUTO_FREE char *holder = NULL;
		struct stat status;
		bool is_held = false;
		int result;

		if (entry->d_name[0] == '.' || strcmp(entry->d_name, "catalog") == 0)
			continue;
		/* of who serves a disk, or was killed when he did: he holds the disk's lease, if he lives */
		if (fstatat(local->locks_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(status.st_mode))
			continue;
		result = lease_is_held(local->locks_fd, entry->d_name, &is_held, &holder, failure);
		if (result < 0)
			return result;
		if (is_held)
			return fail(failure, -EBUSY, "store %s: in use by %s; rebuild when nobody uses it", local->base.location,
				    holder != NULL ? holder : "another process");
	}
	return errno == 0 ? 0 : fail_errno(failure, -errno, "folder %s/locks", local->base.location);
}

static int rebuild_alone(struct local_store *local, const struct store_rebuild_params *params,
			 struct store_rebuild_report *report, struct failure *failure)
{
	AUTO_FREE uint8_t *plain = malloc(RECORD_PLAIN_MOST_BYTES);
	struct rebuilding rebuilding = { .local = local,
					 .params = params,
					 .report = report,
					 .failure = failure,
					 .scratch = local->log_scratch,
					 .plain = plain };
	const char *path = local->base.location;
	int result;

	if (plain == NULL)
		return fail_errno(failure, -ENOMEM, "rebuild");
	result = check_is_unused(local, failure);
	if (result == 0)
		result = catalog_create_beside(path, local->base.chunk_bytes, local->locks_fd, &local->writer, failure);
	if (result < 0)
		return result;
	result = fill(&rebuilding);
	if (result == 0 && is_stopped(&rebuilding))
		result = -EINTR;
	/* it is looked again whether anybody has begun to use it meanwhile */
	if (result == 0 && !params->dry_run)
		return catalog_put_in_place(path, take_ptr(local->writer), check_is_unused, local, failure);
	catalog_drop_beside(path, take_ptr(local->writer));
	return result;
}

int store_rebuild_local(const char *path, const struct store_rebuild_params *params, struct store_rebuild_report *ret_report,
			struct failure *failure)
{
	struct store_rebuild_report report = { .disks = 0 };
	AUTO_FREE char *us = lease_holder_text(params->doing);
	AUTO_FREE char *holder = NULL;
	struct lease lease = LEASE_NONE;
	struct local_store *local = NULL;
	int result = us == NULL ? fail_errno(failure, -ENOMEM, "store %s", path) : local_open_bare(path, &local, failure);

	if (result < 0)
		return result;
	result = lease_take(local->locks_fd, "catalog", LEASE_EXCLUSIVE, us, &lease, &holder, failure);
	if (result == -EWOULDBLOCK)
		result = fail(failure, -EBUSY, "store %s: %s writes to it; rebuild when nobody uses it", path,
			      holder != NULL ? holder : "another process");
	else if (result == 0)
		result = rebuild_alone(local, params, &report, failure);
	lease_release(&lease);
	store_close(&local->base);
	if (result < 0) {
		store_rebuild_report_free(&report);
		return result;
	}
	check_report_finish(&report.found);
	*ret_report = report;
	return 0;
}

void store_rebuild_report_free(struct store_rebuild_report *report)
{
	store_check_report_free(&report->found);
}
