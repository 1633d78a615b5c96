/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a user-mode Linux (package user-mode-linux) needs to read a type of file system, beside itself: an initial file system with our program in it
 * (inside.c) and the modules that the type takes.
 */
#ifndef WHERRY_FSREADER_KERNEL_INITRD_H
#define WHERRY_FSREADER_KERNEL_INITRD_H

#include <limits.h>
#include <stdbool.h>

#include "common/failure.h"

struct kernel_type {
	const char *type;    /* as libblkid calls it */
	const char *mount;   /* as mount(2) does */
	const char *options; /* for mount(2); may be NULL */
	const char *modules; /* names, by spaces; what they need themselves comes before them */
};

const struct kernel_type *kernel_type_find(const char *type); /* NULL: none of those */

/* The program: what WHERRY_UML in the environment names, else that of Debian's package; -ENOTSUP says what to install. */
int kernel_program_find(char ret_path[PATH_MAX], struct failure *failure);

/* Are the program, ours, and the modules here? -ENOTSUP says what is missing. */
int kernel_initrd_check(const struct kernel_type *type, struct failure *failure);

/* A sealed file in memory; the caller closes it. */
int kernel_initrd_make(const struct kernel_type *type, int *ret_fd, struct failure *failure);

#endif
