/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compares an image (or a live disk) with a source, by reading both whole: the SHA-256 of every chunk that the store
 * gives is computed anew and must be the one that it is named by, and then its bytes are compared with the source's.
 * Never by fingerprints.
 */
#ifndef WHERRY_SYNCER_VERIFY_H
#define WHERRY_SYNCER_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/source.h"
#include "syncer/progress.h"
#include "syncer/round.h"

struct verify_report {
	bool equal;
	uint64_t compared_bytes;   /* of the source, including what it knows to be zero without reading it */
	uint64_t left_out_bytes;   /* what a round would leave out of this source isn't compared (unless read_all) */
	struct range *differences; /* of the source; ascending, merged, at sector precision; see range_list_add() */
	size_t difference_count;
	double elapsed_seconds;
};

/*
 * With a partition in the reference, that partition of the image is compared with the whole of the source
 * (web01@3/2 with /dev/sda2).
 * A difference in size is a difference (the range beyond the shorter one). read_all: compare also what a round leaves
 * out. A chunk of the store that is damaged is a failure (-EBADMSG), a source that can't be read too (-EIO, or why it
 * is gone). -EINTR when stopped.
 */
int verify_run(struct store *store, const struct store_reference *reference, const char *source, bool read_all,
	       const struct operation *operation, struct verify_report *ret_report, struct failure *failure);
/* The same with a source that is open already, idle; it is closed in any case. */
int verify_source(struct store *store, const struct store_reference *reference, struct source *source, bool read_all,
		const struct operation *operation, struct verify_report *ret_report, struct failure *failure);
void verify_report_free(struct verify_report *report); /* leaves it empty */

#endif
