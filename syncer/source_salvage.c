/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading around bad spots.
 *
 * A medium answers a read that touches one bad sector with an error for all of
 * it. So the range is tried once more as a whole after a moment (a link that
 * hiccuped, a drive that was asleep), and then halved until the good part is
 * separated from single sectors, which get two tries each.
 *
 * That needs few reads where little is bad. A drive may take seconds over each
 * bad sector though, so where many in a row are bad nothing is tried twice, nor
 * larger pieces first: a dead region costs one read for each of its sectors. Nothing
 * here waits except once a range.
 *
 * "Sector" is the source's grain, the smallest thing it can read by itself: a
 * physical sector of a drive, a block of a file system, the minimum block of an
 * NBD server. Below it nothing can be told apart.
 */
#include "syncer/source_internal.h"

#include <stdatomic.h>
#include <errno.h>
#include <string.h>
#include <time.h>

enum {
	RETRY_WAIT_MS = 100,
	DEAD_REGION_SECTORS = 8 /* bad ones in a row that make one */
};

struct salvage {
	struct source *source;
	uint8_t *buffer; /* stands for off_bytes of the source */
	uint64_t off_bytes;
	const atomic_bool *stop;
	source_bad_range_fn bad;
	void *opaque;
	unsigned bad_in_a_row; /* sectors before the one looked at */
	/* Bad sectors not reported yet, because the next one may belong to the same run. */
	uint64_t run_off_bytes;
	uint64_t run_len_bytes; /* 0: none */
};

bool source_error_is_bad_sector(int code)
{
	switch (-code) {
	case EIO:
	case ENODATA:	/* medium error, of a block device read directly (BLK_STS_MEDIUM) */
	case EREMOTEIO: /* the target refuses (BLK_STS_TARGET): SCSI for "can't" */
	case EILSEQ:	/* protection information doesn't match (BLK_STS_PROTECTION) */
	case ETIMEDOUT: /* the drive gave up on the command (BLK_STS_TIMEOUT) */
	case EBADMSG:	/* a file system found a wrong checksum */
	case EUCLEAN:	/* a file system found its metadata broken */
		return true;
	default:
		return false;
	}
}

static void flush_run(struct salvage *salvage)
{
	if (salvage->run_len_bytes > 0 && salvage->bad != NULL)
		salvage->bad(salvage->opaque, salvage->run_off_bytes, salvage->run_len_bytes);
	salvage->run_len_bytes = 0;
}

static void note_bad(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes)
{
	if (salvage->run_len_bytes > 0 && salvage->run_off_bytes + salvage->run_len_bytes == off_bytes) {
		salvage->run_len_bytes += len_bytes;
		return;
	}
	flush_run(salvage);
	salvage->run_off_bytes = off_bytes;
	salvage->run_len_bytes = len_bytes;
}

/* 0, -EIO for "bad spot in it", or what ends everything, with its message. */
static int try_range(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	struct failure mine = {.code = 0};
	int error;

	if (salvage->stop != NULL && *salvage->stop)
		return fail(failure, -ECANCELED, "%s: reading was stopped", salvage->source->info.name);
	error = source_read(salvage->source, salvage->buffer + (off_bytes - salvage->off_bytes), len_bytes, off_bytes,
			    &mine);
	if (error == 0)
		return 0;
	if (source_error_is_bad_sector(error))
		return -EIO;
	(void)fail_from(failure, &mine);
	return error;
}

static bool is_in_dead_region(const struct salvage *salvage)
{
	return salvage->bad_in_a_row >= DEAD_REGION_SECTORS;
}

static int salvage_sector(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	int error = try_range(salvage, off_bytes, len_bytes, failure);

	if (error == -EIO && !is_in_dead_region(salvage))
		error = try_range(salvage, off_bytes, len_bytes, failure);
	if (error != -EIO) {
		salvage->bad_in_a_row = 0;
		return error;
	}
	memset(salvage->buffer + (off_bytes - salvage->off_bytes), 0, len_bytes);
	salvage->bad_in_a_row++;
	note_bad(salvage, off_bytes, len_bytes);
	return 0;
}

/* Where to cut: in the middle, on a grain's border. Equal to `off_bytes` when the range lies in one grain. */
static uint64_t cut_in_half(const struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes)
{
	const uint64_t grain = salvage->source->grain_bytes;
	uint64_t middle = (off_bytes + len_bytes / 2) & ~(grain - 1);

	if (middle <= off_bytes)
		middle = (off_bytes & ~(grain - 1)) + grain;
	return middle < off_bytes + len_bytes ? middle : off_bytes;
}

static int salvage_halves(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure);

/* Recursion is as deep as the range can be halved. */
static int salvage_range(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	if (cut_in_half(salvage, off_bytes, len_bytes) == off_bytes)
		return salvage_sector(salvage, off_bytes, len_bytes, failure);
	if (!is_in_dead_region(salvage)) {
		int error = try_range(salvage, off_bytes, len_bytes, failure);

		if (error == 0)
			salvage->bad_in_a_row = 0;
		if (error != -EIO)
			return error;
	}
	return salvage_halves(salvage, off_bytes, len_bytes, failure);
}

static int salvage_halves(struct salvage *salvage, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	uint64_t middle = cut_in_half(salvage, off_bytes, len_bytes);
	int error;

	if (middle == off_bytes)
		return salvage_sector(salvage, off_bytes, len_bytes, failure);
	error = salvage_range(salvage, off_bytes, middle - off_bytes, failure);
	if (error < 0)
		return error;
	return salvage_range(salvage, middle, off_bytes + len_bytes - middle, failure);
}

/* A device pulled out answers every read like a bad sector does; its size gives it away. */
static int check_still_there(struct salvage *salvage, struct failure *failure)
{
	uint64_t size_bytes = 0;
	int error = source_current_size(salvage->source, &size_bytes, failure);

	if (error < 0)
		return error;
	if (size_bytes < salvage->source->info.size_bytes)
		return fail(failure, -ESTALE, "%s: is gone or became smaller while it was read",
			    salvage->source->info.name);
	return 0;
}

int source_read_salvaging(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes,
			  const atomic_bool *stop, source_bad_range_fn bad, void *opaque, struct failure *failure)
{
	const struct timespec retry_wait = {.tv_nsec = RETRY_WAIT_MS * 1000000L};
	struct salvage salvage = {
		.source = source, .buffer = buffer, .off_bytes = off_bytes, .stop = stop, .bad = bad, .opaque = opaque};
	int error;

	error = try_range(&salvage, off_bytes, len_bytes, failure);
	if (error != -EIO)
		return error;
	error = check_still_there(&salvage, failure);
	if (error < 0)
		return error;
	(void)nanosleep(&retry_wait, NULL); /* a signal cuts it short, and that is welcome */
	error = try_range(&salvage, off_bytes, len_bytes, failure);
	if (error == -EIO)
		error = salvage_halves(&salvage, off_bytes, len_bytes, failure);
	if (error == 0 && salvage.run_len_bytes > 0)
		error = check_still_there(&salvage, failure);
	if (error < 0)
		return error;
	flush_run(&salvage);
	return 0;
}
