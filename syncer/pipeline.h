/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipeline of a round: read → zero? same fingerprint? → digest, known? → compress → store → checkpoint.
 *
 * One pass over a source, from a position on, that makes a disk's live content equal to it. pipeline.c has the argument; round.c
 * decides what is passed in and what follows.
 */
#ifndef WHERRY_SYNCER_PIPELINE_H
#define WHERRY_SYNCER_PIPELINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/meter.h"
#include "syncer/plan.h"
#include "syncer/progress.h"
#include "syncer/report.h"
#include "syncer/round.h"
#include "syncer/source.h"

struct pipeline_params {
	struct source *source;
	struct plan *plan;
	struct store_view *view;
	uint32_t round;
	uint64_t start_bytes;		  /* where to go on */
	struct store_round_counts counts; /* so far */
	bool use_dirty_bitmap;		  /* what the source calls clean is not read, but for samples */
	enum read_error_policy on_read_error;
	const struct notices *notices;	/* may be NULL */
	const atomic_bool *stop;	/* may be NULL */
	struct meter *meter;		/* done, changed and sent (stored) bytes are kept up to date, as of the chunk being stored */
	/* Bad ranges are added here (READ_ERROR_ZERO); `note` is called before the checkpoint that passes them, to make them durable. */
	struct range_list *read_errors;
	int (*note)(void *opaque, const struct range_list *read_errors, struct failure *failure);
	void *note_opaque;
};

struct pipeline_result {
	uint64_t cursor_bytes; /* of the last checkpoint */
	struct store_round_counts counts; /* at the last checkpoint */
	uint64_t doubt_off_bytes; /* with -EUCLEAN: what the bitmap called clean when it was asked, and has changed */
	uint32_t doubt_len_bytes; /* 0: -EUCLEAN came from elsewhere */
};

/*
 * 0: everything to the end of the source is committed. -EINTR: stopped, everything before the cursor is committed. -EAGAIN: a chunk was cleaned away meanwhile, go on from the
 * cursor. -EUCLEAN with doubt_len_bytes: the dirty bitmap called something clean that had changed; unless it calls it dirty by now, start over without it. Others: failed; what was before the failure is committed
 * where the store still can. The result is filled in any case.
 */
int pipeline_run(const struct pipeline_params *params, struct pipeline_result *ret_result, struct failure *failure);

#endif
