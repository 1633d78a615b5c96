/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content of a store as a raw disk: into a file (sparse), onto a block device (all of it: zeros are written or
 * discarded so that they read as zeros), or into a pipe.
 */
#ifndef WHERRY_SYNCER_EXPORT_H
#define WHERRY_SYNCER_EXPORT_H

#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/progress.h"
#include "syncer/report.h"

struct export_report {
	uint64_t size_bytes;   /* of what was exported */
	uint64_t data_bytes;   /* of it, in chunks that are not zero */
	uint64_t target_bytes; /* size of the device, or size_bytes */
	double elapsed_seconds;
	struct range *holes; /* salvage: of what was exported, zeros in place of what can't be had; see range_list_add() */
	size_t hole_count;
};
void export_report_free(struct export_report *report); /* leaves it empty */

/*
 * `target`: a path, or "-" for output_fd (standard output). An existing regular file is overwritten; one that this call
 * made is removed again if the export fails or is stopped. Refused before anything is written: a target in the store's
 * own folder, a device that is mounted or otherwise in use, one smaller than the disk, a partition that there isn't.
 * Durable on return (fsync), but for pipes.
 * -EINTR when stopped. -EBADMSG when the store is damaged there, with the range of the disk in the message: nothing
 * that failed its check is ever written. -EPIPE when nobody reads the pipe any more; SIGPIPE isn't raised. When
 * something that was there before has been overwritten in part, the message says that too.
 * With `salvage` damage is no failure: there are zeros in its place, and the report says where.
 */
int export_run(struct store *store, const struct store_reference *reference, const char *target, int output_fd,
	       bool salvage, const struct operation *operation, struct export_report *ret_report, struct failure *failure);

#endif
