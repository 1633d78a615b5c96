/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mount, from the first to the last request.
 */
#ifndef WHERRY_FUSEFS_SESSION_H
#define WHERRY_FUSEFS_SESSION_H

#include "fusefs/options.h"

/*
 * Mounts and serves until it is unmounted, by whomever, or a signal comes (SIGINT, SIGTERM, SIGHUP); closes everything.
 * `ready` is called once the mount works. To be called before there is any other thread. A failure after `ready` is one
 * of the connection.
 */
int session_run(const struct fs_options *options, const char *mount_point, bool is_folder, void (*ready)(void *opaque),
		void *opaque, struct failure *failure);

#endif
