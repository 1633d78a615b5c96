/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `mount` has done, noted so that it can be undone by `umount`, whoever was killed meanwhile.
 *
 * In the runtime folder there is, for each mount:
 *
 *     mounts/N/           locked (flock) by who mounts or unmounts: as long as it works on it
 *     mounts/N/record     JSON: what is mounted where, and how; written before anything else is made, and again when there is more to know
 *     mounts/N/alive      locked by the wherryfs that serves it, as long as that lives; it inherits the lock
 *     mounts/N/fs         where wherryfs is mounted for a moment, until a loop device has its file
 *     .mounts             locked while such a folder is made: of two that mount on the same directory one is refused
 *
 * A record whose maker is gone, with nothing mounted and nobody alive, is a leftover. It is taken away by whoever comes across it.
 */
#ifndef WHERRY_TOOLS_MOUNT_RECORD_H
#define WHERRY_TOOLS_MOUNT_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "tools/command.h"

struct mount_record {
	char *folder;	 /* RUNTIME/mounts/N */
	int folder_fd;	 /* of it; holds the lock, if we have it */
	int alive_fd;	 /* holds the other lock, to be inherited; -1 for records that are only read */
	char *reference; /* with image number and partition: "web01@3/2" */
	char *store;	 /* from the root */
	char *directory; /* the same, without links, as the mount table has it */
	char *device;	 /* "/dev/loop0"; NULL: none, or not yet */
	enum mount_via via;
	bool read_only;
	bool scratch; /* what is written to it vanishes */
	int64_t since;
};

const char *mount_via_name(enum mount_via via); /* "nbd", "loop", "files" */

/*
 * A record of these, and its locks, for who is going to mount. Strings are copied. -EBUSY: there is one for this directory.
 * Caller ends with mount_record_remove() when nothing has come of it, and mount_record_free() in any case.
 */
int mount_record_create(const char *runtime, const struct mount_record *what, struct mount_record *ret_record, struct failure *failure);

/* Writes it again, with what is known by now. */
int mount_record_write(const struct mount_record *record, struct failure *failure);

/* All that there are; caller frees with mount_records_free(). */
int mount_records_list(const char *runtime, struct mount_record **ret_list, size_t *ret_count, struct failure *failure);
void mount_records_free(struct mount_record *list, size_t count);

/* Takes the lock of one that was listed. -EBUSY: somebody works on it, and still does after this time. -ENOENT: it is gone. */
int mount_record_claim(struct mount_record *record, unsigned wait_ms, struct failure *failure);

/* Whether its wherryfs still lives. */
bool mount_record_is_alive(const struct mount_record *record);

/* By who holds its lock. What can't be removed stays for the next one who comes across it. */
void mount_record_remove(const char *runtime, struct mount_record *record);
void mount_record_free(struct mount_record *record); /* gives up its locks; leaves it empty */

#endif
