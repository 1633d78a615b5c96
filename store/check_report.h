/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Putting a check's report together; for whoever implements store_check(). One thread at a time.
 */
#ifndef WHERRY_STORE_CHECK_REPORT_H
#define WHERRY_STORE_CHECK_REPORT_H

#include "store/store.h"

/*
 * Adds a damaged range. *last is the caller's, one for each image and one for live content, 0 at first: a range that
 * begins where the one before of the same image ended, and for the same reason, makes that one longer; one that begins
 * before that is dropped. -ENOMEM.
 */
int check_report_damage(struct store_check_report *report, size_t *last, const char *disk, uint32_t image,
			uint64_t off_bytes, uint64_t len_bytes, const char *why, struct failure *failure);

__attribute__((format(printf, 4, 5))) int check_report_flaw(struct store_check_report *report, struct failure *failure,
							    const char *what, const char *why_format, ...);

/* Sorts, and says whether all is well. */
void check_report_finish(struct store_check_report *report);

#endif
