/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where files are that only programs of this project use: beside the running program, or in ../fsreader of there (a tree that was built), or in
 * ../libexec/wherry (installed, under any prefix); else where they were to be installed.
 */
#ifndef WHERRY_FSREADER_HELPER_PATH_H
#define WHERRY_FSREADER_HELPER_PATH_H

#include <limits.h>

#include "common/failure.h"

/* -ENOENT: in none of them; the message says where it should be. */
int helper_path_find(const char *name, char ret_path[PATH_MAX], struct failure *failure);

#endif
