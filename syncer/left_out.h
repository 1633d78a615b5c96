/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a round leaves out, for its report: every byte is accounted for, and the list stays short. Ranges of 1 MiB and more stand for themselves, smaller ones
 * are summed up by reason.
 */
#ifndef WHERRY_SYNCER_LEFT_OUT_H
#define WHERRY_SYNCER_LEFT_OUT_H

#include <stdatomic.h>

#include "common/failure.h"
#include "syncer/plan.h"
#include "syncer/round.h"
#include "syncer/source.h"

struct survey {
	uint64_t read_bytes;	 /* to be read, in bitmap mode: dirty */
	uint64_t hole_bytes;
	uint64_t left_out_bytes;
	struct range_why *left_out;
	size_t left_out_count, left_out_capacity;
};

/* Walks the whole plan once. with_bitmap: chunks of chunk_bytes of which no part is dirty are not counted as to be read. */
int survey_plan(struct source *source, struct plan *plan, bool with_bitmap, uint32_t chunk_bytes,
		const atomic_bool *stop, struct survey *ret_survey, struct failure *failure);
void survey_free(struct survey *survey);
void left_out_free(struct range_why *list, size_t count);

#endif
