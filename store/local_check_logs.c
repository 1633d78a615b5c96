/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is every entry of every log there, and do they make a chain?
 *
 * Logs are what a lost catalog is made from, so their entries are read whole, deep check or not: they are a few parts
 * in a thousand of what there is. An entry names its predecessor by digest. The catalog has each entry's digest as
 * well, so a damaged entry doesn't hide those behind it.
 *
 *     disk that is there           entries 1 to log_sequence, and the last one is log_head; more, if others have
 *                                  added some since
 *     disk that is being removed   the last of them: a sweep takes them away from the front
 *     disk that is gone            one entry, which says so
 *
 * They also say what size disks and images have.
 *
 * A disk may go from one state to the next meanwhile. So what is missing is asked for once more before it is called
 * missing.
 */
#include "store/local_check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { ENTRIES_A_PIECE = 64, LOOK_UPS_MOST = 8 };

struct chain {
	struct checking *checking;
	struct catalog *catalog;
	struct failure *failure;
	struct store_scratch *scratch;
	uint8_t *plain; /* RECORD_PLAIN_MOST_BYTES */
	int64_t disk;
	bool is_alive; /* when it was looked at last */
	bool is_gone;
	char name[STORE_NAME_MOST_BYTES + 32];
	uint8_t uuid[DISK_UUID_BYTES];
	bool knows_uuid;
	uint64_t log_sequence; /* of a disk that is alive, as is */
	uint64_t disk_bytes;
	bool knows_size; /* what entries say of it, none of them missing */
	uint64_t size_bytes;
	uint8_t log_head[DIGEST_BYTES];
	bool has_before;
	uint64_t sequence; /* of the entry before */
	uint8_t digest[DIGEST_BYTES];
	/* entries that follow each other in the part of a segment that can't be used, not told yet; bad_first 0: none
	 */
	uint64_t bad_first, bad_last;
	uint32_t bad_segment;
};

static void chain_free(struct chain *chain)
{
	store_scratch_free(chain->scratch);
	free(chain->plain);
}

__attribute__((format(printf, 3, 4))) static int say(struct chain *chain, uint64_t sequence, const char *format, ...)
{
	AUTO_FREE char *why = NULL;
	char what[sizeof(chain->name) + 64];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vasprintf(&why, format, arguments);
	va_end(arguments);
	if (length < 0) {
		why = NULL;
		return fail_errno(chain->failure, -ENOMEM, "check");
	}
	(void)snprintf(what, sizeof(what), "log of %s, entry %" PRIu64, chain->name, sequence);
	return check_report_flaw(chain->checking->report, chain->failure, what, "%s", why);
}

/* Many entries may have gone with one segment: they are one flaw. */
static int tell_bad_run(struct chain *chain)
{
	uint64_t first = chain->bad_first, last = chain->bad_last;

	chain->bad_first = 0;
	if (first == 0)
		return 0;
	if (first == last)
		return say(chain, first, "segment %08" PRIx32 ": not to be had, as said there", chain->bad_segment);
	return say(chain, first, "segment %08" PRIx32 ": not to be had, as said there, nor those up to entry %" PRIu64,
		   chain->bad_segment, last);
}

static int note_bad_entry(struct chain *chain, const struct catalog_log_entry *row)
{
	int result = 0;

	if (chain->bad_first != 0 && chain->bad_segment == row->segment && chain->bad_last + 1 == row->sequence) {
		chain->bad_last = row->sequence;
		return 0;
	}
	result = tell_bad_run(chain);
	chain->bad_first = chain->bad_last = row->sequence;
	chain->bad_segment = row->segment;
	return result;
}

/* ---- one entry ---- */

/* What is wrong with it goes to `flaw`, -EBADMSG; other failures to chain->failure. */
static int decode_entry(struct chain *chain, const struct catalog_log_entry *row, const struct record_header *header,
			struct log_entry *ret_entry, struct failure *flaw)
{
	uint8_t digest[DIGEST_BYTES];
	int result;

	if (header->type != RECORD_LOG || memcmp(header->digest, row->digest, DIGEST_BYTES) != 0)
		return fail(flaw, -EBADMSG, "another record than the one expected");
	result = codec_decode(chain->scratch->codec, header, chain->scratch->stored, chain->plain, flaw);
	if (result == 0)
		result = hasher_digest(chain->scratch->hasher, chain->plain, header->plain_bytes, digest, flaw);
	if (result == 0 && memcmp(digest, header->digest, DIGEST_BYTES) != 0)
		return fail(flaw, -EBADMSG, "content and SHA-256 differ");
	if (result < 0)
		return result;
	return log_entry_decode(chain->plain, header->plain_bytes, chain->checking->local->base.chunk_bytes, ret_entry,
				flaw);
}

static int check_links(struct chain *chain, const struct catalog_log_entry *row, const struct log_entry *entry,
		       struct failure *flaw)
{
	if (entry->sequence != row->sequence)
		return fail(flaw, -EBADMSG, "it says that it is entry %" PRIu64, entry->sequence);
	if (chain->knows_uuid && memcmp(entry->disk_uuid, chain->uuid, DISK_UUID_BYTES) != 0)
		return fail(flaw, -EBADMSG, "it is of another disk");
	memcpy(chain->uuid, entry->disk_uuid, DISK_UUID_BYTES);
	chain->knows_uuid = true;
	if (chain->has_before && memcmp(entry->predecessor, chain->digest, DIGEST_BYTES) != 0)
		return fail(flaw, -EBADMSG, "it follows on another entry than the one before it");
	if (chain->is_gone && entry->op != LOG_REMOVE)
		return fail(flaw, -EBADMSG, "it is the last one of a disk that is gone, and does not say so");
	return 0;
}

/*
 * The size of a disk or an image decides what its content is as much as its chunks do, and a row of the catalog has no checksum.
 * So it is held against what was said when the row was made.
 */
static int check_sizes(struct chain *chain, const struct log_entry *entry, struct failure *flaw)
{
	AUTO(catalog_image_release) struct catalog_image image = {.disk = 0};
	int result;

	if (entry->op == LOG_CREATE || entry->op == LOG_RESIZE || entry->op == LOG_IMAGE) {
		chain->knows_size = true;
		chain->size_bytes = entry->size_bytes;
	}
	if (entry->op != LOG_IMAGE)
		return 0;
	result = catalog_image_get(chain->catalog, chain->disk, entry->image_number, &image, chain->failure);
	if (result == -ENOENT) {
		failure_clear(chain->failure);
		return 0;
	}
	if (result < 0)
		return result;
	if (image.size_bytes != entry->size_bytes)
		return fail(flaw, -EBADMSG, "image %" PRIu32 " had %" PRIu64 " bytes when it was made, and the catalog says %" PRIu64,
			    image.number, entry->size_bytes, image.size_bytes);
	if (image.generation != entry->generation)
		return fail(flaw, -EBADMSG, "image %" PRIu32 " was of generation %" PRIu32 ", and the catalog says %" PRIu32, image.number,
			    entry->generation, image.generation);
	return 0;
}

static int read_entry(struct chain *chain, const struct catalog_log_entry *row, struct failure *flaw)
{
	struct log_entry entry = {.op = LOG_CREATE};
	struct record_header header;
	int result = segment_reader_read(chain->checking->local->reader, row->segment, row->off_bytes,
					 row->stored_bytes, &header, chain->scratch->stored, flaw);

	if (result == 0)
		result = decode_entry(chain, row, &header, &entry, flaw);
	if (result < 0)
		return result;
	result = check_links(chain, row, &entry, flaw);
	if (result == 0)
		result = check_sizes(chain, &entry, flaw);
	log_entry_free(&entry);
	return result;
}

/* Where is the entry now? *ret_is_there false: the catalog has none of that number any more. */
static int look_up_again(struct chain *chain, struct catalog_log_entry *row, bool *ret_is_there)
{
	AUTO_FREE struct catalog_log_entry *now = NULL;
	size_t count;
	int result = catalog_log_list(chain->catalog, chain->disk, row->sequence, 1, &now, &count, chain->failure);

	if (result < 0)
		return result;
	*ret_is_there = count == 1 && now->sequence == row->sequence;
	if (*ret_is_there)
		*row = *now;
	return 0;
}

static int check_entry(struct chain *chain, const struct catalog_log_entry *found)
{
	struct catalog_log_entry row = *found;

	for (unsigned i = 1;; i++) {
		struct failure flaw = {.code = 0};
		struct catalog_log_entry before = row;
		bool is_there = false;
		int result = read_entry(chain, &row, &flaw);

		if (result == 0)
			return 0;
		if (!is_damage_code(result))
			return chain->failure->code != 0 ? result : fail_from(chain->failure, &flaw);
		result = look_up_again(chain, &row, &is_there);
		if (result < 0 || !is_there)
			return result;
		if ((row.segment != before.segment || row.off_bytes != before.off_bytes) && i < LOOK_UPS_MOST)
			continue;
		if (checking_bad_place(chain->checking, row.segment, row.off_bytes, row.stored_bytes) != NULL)
			return note_bad_entry(chain, &row);
		return say(chain, row.sequence, "%s", flaw.message);
	}
}

/* ---- a log ---- */

/* What the catalog says of the disk now. */
static int look_at_disk(struct chain *chain)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};
	int result = catalog_disk_get(chain->catalog, chain->disk, &disk, chain->failure);

	chain->is_alive = result == 0 && disk.state == CATALOG_ALIVE;
	chain->is_gone = result == -ENOENT;
	if (chain->is_gone) {
		(void)snprintf(chain->name, sizeof(chain->name), "removed disk %" PRId64, chain->disk);
		return 0;
	}
	if (result < 0)
		return result;
	(void)snprintf(chain->name, sizeof(chain->name), "disk %s", disk.name);
	memcpy(chain->uuid, disk.uuid, DISK_UUID_BYTES);
	chain->knows_uuid = true;
	chain->log_sequence = disk.log_sequence;
	chain->disk_bytes = disk.size_bytes;
	memcpy(chain->log_head, disk.log_head, DIGEST_BYTES);
	return 0;
}

/* Entries from `first` on are not in the catalog. Of a disk that has gone meanwhile they need not be. */
static int say_missing(struct chain *chain, uint64_t first, uint64_t next)
{
	int result = look_at_disk(chain);

	if (result < 0 || !chain->is_alive)
		return result;
	if (next - first > 1)
		return say(chain, first, "it is missing, and the next %" PRIu64 " are", next - first - 1);
	return say(chain, first, "it is missing");
}

static int check_next(struct chain *chain, const struct catalog_log_entry *row)
{
	uint64_t expected = chain->has_before ? chain->sequence + 1 : 1;
	int result = 0;

	if (row->sequence != expected && (chain->has_before || chain->is_alive)) {
		result = say_missing(chain, expected, row->sequence);
		chain->has_before = false; /* its predecessor is one that isn't there */
		chain->knows_size = false;
	}
	if (result == 0)
		result = check_entry(chain, row);
	checking_add_done(chain->checking, record_total_bytes(row->stored_bytes));
	if (result < 0)
		return result;
	if (chain->is_alive && row->sequence == chain->log_sequence &&
	    memcmp(row->digest, chain->log_head, DIGEST_BYTES) != 0)
		result = say(chain, row->sequence, "it is not the one that the disk knows as its last");
	else if (chain->is_alive && row->sequence == chain->log_sequence && chain->knows_size && chain->size_bytes != chain->disk_bytes)
		result = say(chain, row->sequence, "the disk has %" PRIu64 " bytes by then, and the catalog says %" PRIu64, chain->size_bytes,
			     chain->disk_bytes);
	chain->has_before = true;
	chain->sequence = row->sequence;
	memcpy(chain->digest, row->digest, DIGEST_BYTES);
	return result;
}

static int check_log(struct chain *chain, int64_t disk)
{
	uint64_t from = 0;
	int result;

	chain->disk = disk;
	chain->has_before = chain->knows_uuid = chain->knows_size = false;
	result = look_at_disk(chain);
	while (result == 0) {
		AUTO_FREE struct catalog_log_entry *list = NULL;
		size_t count;

		result = catalog_log_list(chain->catalog, disk, from, ENTRIES_A_PIECE, &list, &count, chain->failure);
		if (result < 0 || count == 0)
			break;
		for (size_t i = 0; result == 0 && i < count; i++)
			result = checking_is_stopped(chain->checking) ? -EINTR : check_next(chain, &list[i]);
		from = list[count - 1].sequence + 1;
	}
	if (result == 0)
		result = tell_bad_run(chain);
	if (result < 0 || !chain->is_alive)
		return result;
	from = chain->has_before ? chain->sequence + 1 : 1;
	return from <= chain->log_sequence ? say_missing(chain, from, chain->log_sequence + 1) : 0;
}

/* A disk always has a log: one that the table of logs doesn't know of is found here. */
static int check_disks_without_log(struct chain *chain)
{
	AUTO_FREE struct catalog_disk *disks = NULL;
	size_t count = 0;
	int result = catalog_disk_list(chain->catalog, CATALOG_ALIVE, &disks, &count, chain->failure);

	for (size_t i = 0; i < count; i++) {
		AUTO_FREE struct catalog_log_entry *entry = NULL;
		size_t entries = 0;

		if (result == 0)
			result = catalog_log_list(chain->catalog, disks[i].id, 0, 1, &entry, &entries, chain->failure);
		if (result == 0 && entries == 0 && disks[i].log_sequence > 0)
			result = check_log(chain, disks[i].id);
		catalog_disk_release(&disks[i]);
	}
	return result;
}

int checking_logs(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	AUTO(chain_free)
	struct chain chain = {
		.checking = checking,
		.catalog = catalog,
		.failure = failure,
		.plain = malloc(RECORD_PLAIN_MOST_BYTES),
	};
	int64_t disk = 0;
	int result = chain.plain == NULL ? fail_errno(failure, -ENOMEM, "check") : 0;

	if (result == 0)
		result = store_scratch_new(&chain.scratch, failure);
	while (result == 0) {
		result = catalog_log_next_disk(catalog, disk, &disk, failure);
		if (result < 0 || disk == 0)
			break;
		result = check_log(&chain, disk);
	}
	return result == 0 ? check_disks_without_log(&chain) : result;
}
