/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder for what is there only as long as something runs: sockets, logs, notes of what is attached or mounted.
 */
#ifndef WHERRY_TOOLS_RUNTIME_FOLDER_H
#define WHERRY_TOOLS_RUNTIME_FOLDER_H

#include "common/failure.h"

/* /run/wherry, or the like for who isn't root. It is made, and nobody else can write to it. Caller frees. */
int runtime_folder(char **ret_path, struct failure *failure);

/* Waits for the lock (flock) that the file NAME in it stands for; the lock is held until the descriptor is closed. */
int runtime_lock(const char *folder, const char *name, int *ret_fd, struct failure *failure);

#endif
