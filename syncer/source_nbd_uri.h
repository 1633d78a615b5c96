/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD URIs: what may be connected to, and how they are shown. libnbd takes them apart for connecting.
 */
#ifndef WHERRY_SYNCER_SOURCE_NBD_URI_H
#define WHERRY_SYNCER_SOURCE_NBD_URI_H

#include "common/failure.h"

/* -EINVAL for a URI that would connect without its server being verified. */
int source_nbd_check_uri(const char *uri, struct failure *failure);

/*
 * The URI to show, to log and to compare: without a user's name, and of its parameters "socket" alone, for others name
 * key files. NULL: no memory. Caller frees.
 */
char *source_nbd_public_name(const char *uri);

#endif
