/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for a request that may take its time: up to a minute. NULL when none is in flight, or none came. */
#ifndef WHERRY_TESTS_REAP_ONE_H
#define WHERRY_TESTS_REAP_ONE_H

#include "syncer/source.h"

static inline struct source_request *reap_one(struct source *source)
{
	struct source_request *request = NULL;

	for (int i = 0; request == NULL && i < 240; i++)
		request = source_reap(source, true);
	return request;
}

#endif
