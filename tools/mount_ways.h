/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways from a disk or image to its files in a directory, and the way back.
 *
 *     nbd     nbdkit, the kernel's NBD client, a file system of the kernel's
 *     loop    wherryfs, a loop device over a file of it, a file system of the kernel's
 *     files   wherryfs alone, which reads the files itself: no root, no code of the kernel's for that file system, read-only
 *
 * With the first two an image is given to the kernel as a device that can't be written to. A file system whose journal has to be replayed before it can be
 * shown is then mounted once more, read-only as before, on a device with an overlay, which takes what the replay writes, and vanishes.
 */
#ifndef WHERRY_TOOLS_MOUNT_WAYS_H
#define WHERRY_TOOLS_MOUNT_WAYS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "common/failure.h"
#include "store/store.h"
#include "tools/mount_find.h"
#include "tools/mount_record.h"

struct mount_job {
	const struct options *options;
	struct store_reference reference;			    /* an image by its number */
	char name[STORE_NAME_MOST_BYTES + 32 + MOUNT_VOLUME_BYTES]; /* the same with the partition, or volume: "web01@3/2" */
	struct mount_choice choice;
	bool writes; /* files can be changed */
	const char *runtime;
	struct mount_record *record;
	const atomic_bool *stop; /* somebody wants it to end: asked between steps, which undoes them */
	bool is_replayed;	 /* set: a journal was replayed, into the overlay */
};

struct mount_way {
	enum mount_via via;
	/* Whether it can be gone here: what is missing, else. Makes nothing. */
	int (*check)(const struct mount_job *job, struct failure *failure);
	/* Goes it. What it makes is noted in job->record first; on failure the caller undoes it. -EINTR: was asked to stop. */
	int (*mount)(struct mount_job *job, struct failure *failure);
};

/* From the best to the one that always works; the end has no check. */
extern const struct mount_way mount_ways[];

/*
 * Undoes what a record says, whatever of it is there, and takes it away: unmounts, disconnects, waits until what was written is where it belongs. The caller has
 * its lock. -EBUSY: somebody uses it, or something else is mounted over it; everything is as it was.
 */
int mount_undo(const char *runtime, struct mount_record *record, struct failure *failure);

/* Unmounts a directory, on which something is mounted. -EBUSY. */
int mount_detach(const char *directory, struct failure *failure);

/* Something is mounted on its directory, and that is what the record speaks of. */
bool mount_is_there(const struct mount_record *record);
/* Its wherryfs has ended, so that what is mounted gives nothing but errors. (An nbdkit's end isn't noticed.) */
bool mount_is_dead(const struct mount_record *record);

/* Takes away what is left of mounts that are not there any more: their makers were killed, or they were unmounted by hand. */
void mount_prune(const char *runtime);

#endif
