/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round: makes a disk of the store equal to a source, at the cost of what changed, then an image of it, then retention.
 */
#ifndef WHERRY_SYNCER_ROUND_H
#define WHERRY_SYNCER_ROUND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/progress.h"

enum read_error_policy { READ_ERROR_FAIL, READ_ERROR_ZERO };

struct round_options {
	const char *source;
	const char *disk;	  /* made if there is none */
	bool read_all;
	enum read_error_policy on_read_error;
	bool has_level, has_limit; /* this round only */
	int level;
	uint64_t limit_bytes_per_second;
	const char *dirty_bitmap; /* or NULL */
	bool no_image;
	const char *label;	  /* of the image, or NULL */
	uint32_t keep;		  /* becomes the disk's policy; 0: as it is */
	bool allow_shrink;
	bool verify;		  /* read the source once more and compare digests with the image */
};

struct range_why {
	uint64_t off_bytes;
	uint64_t len_bytes;
	bool scattered; /* len_bytes is the sum of many small ranges from off_bytes on */
	char *why;
};
struct range {
	uint64_t off_bytes;
	uint64_t len_bytes;
};

struct round_report {
	uint32_t image; /* 0: none made */
	uint32_t round;
	bool resumed;
	enum store_consistency consistency;
	char *fuzzy_because; /* NULL unless fuzzy */
	uint64_t size_bytes;
	struct store_round_counts counts; /* of the whole round, including what was done before it was resumed */
	double elapsed_seconds;		  /* of this run */
	double bytes_per_second;
	struct range_why *left_out; /* bounded: small ranges for the same reason are summed up */
	size_t left_out_count;
	struct range *read_errors;
	size_t read_error_count;
	struct store_retention retention;
	bool verified;
	bool equal;	 /* if verified */
	struct range *differences;
	size_t difference_count;
};

/*
 * Runs one round. Returns 0 when it is done (differences found by `verify` are in the report), -EINTR when it was stopped (everything up to the last
 * checkpoint is kept, the same call goes on from there), another negative errno when it failed. The report is filled as far as things
 * came, also on failure; round_report_free() in any case.
 */
int round_run(struct store *store, const struct round_options *options, const struct operation *operation,
	      struct round_report *ret_report, struct failure *failure);
void round_report_free(struct round_report *report);

#endif
