/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said to the kernel when a connection begins, and libfuse 3.14 has no word for.
 */
#ifndef WHERRY_FUSEFS_FUSE_WIRE_H
#define WHERRY_FUSEFS_FUSE_WIRE_H

#include "common/failure.h"

struct fuse_session;

/* To be called when it is mounted, and not served yet. Once in a process. */
int fuse_wire_attach(struct fuse_session *session, struct failure *failure);

#endif
