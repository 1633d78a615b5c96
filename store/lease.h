/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: the proof that somebody has a disk or an image open, as flock()s on files in STORE/locks.
 * A lease dies with the process that held it, however it died. flock() locks belong to the open file description:
 * O_CLOEXEC, and a fork that doesn't exec must not outlive its parent holding one.
 *
 *     disk-<id>            exclusive: the one opener of a live disk
 *     image-<id>-<number>  shared: any number of openers; exclusive for the moment of deletion
 *     catalog              exclusive: write transactions and checkpoints (see catalog.h)
 *
 * The holder of an exclusive lease writes a line that says who it is into the file ("wherry sync /dev/sda web01
 * (pid 4711 on host web)"), for the message of whoever finds it locked. That line is a courtesy: the lock is the truth.
 *
 * A lease file that is removed (its image is gone) may have been opened by somebody who has not locked it yet: after
 * locking, the holder compares the inode with the name's and starts over if they differ.
 */
#ifndef WHERRY_STORE_LEASE_H
#define WHERRY_STORE_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"

enum lease_mode { LEASE_SHARED, LEASE_EXCLUSIVE };

struct lease {
	int fd; /* -1: none */
};
#define LEASE_NONE ((struct lease){.fd = -1})

/*
 * Takes the lease `name` in the folder locks_fd without waiting (31 ms at most: a look by lease_is_held()
 * holds the lock for an instant, which must not pass for a holder). Creates the file, mode 0644, where it is missing.
 * On a read-only file system a lease whose file can't be opened as needed is given as LEASE_NONE, with 0: nobody can
 * change anything there. `holder` is who we are, used for exclusive leases only; NULL leaves no line.
 * -EWOULDBLOCK when somebody else has it; *ret_holder (may be NULL) is then who (of several that share it, one), or NULL if unknown; caller frees; no
 * message is written in this case, since only the caller knows what is locked. Other errors with a message.
 */
int lease_take(int locks_fd, const char *name, enum lease_mode mode, const char *holder, struct lease *ret_lease,
	       char **ret_holder, struct failure *failure);

void lease_release(struct lease *lease); /* safe on LEASE_NONE, leaves LEASE_NONE */

/* Releases an exclusive lease and removes its file first. For something that doesn't exist any more. */
void lease_release_and_remove(int locks_fd, const char *name, struct lease *lease);

/* Is it held by anybody (this process too)? Just a look: it may change at once. *ret_holder as above. */
int lease_is_held(int locks_fd, const char *name, bool *ret_held, char **ret_holder, struct failure *failure);

/*
 * "wherry sync /dev/sda web01 (pid 4711 on host web)": `doing` with process id and host name. Caller frees; NULL: no
 * memory.
 */
char *lease_holder_text(const char *doing);

#endif
