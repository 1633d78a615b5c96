/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Other programs: where those of this project are, and running what does its work and ends.
 */
#ifndef WHERRY_TOOLS_PROGRAMS_H
#define WHERRY_TOOLS_PROGRAMS_H

#include <stddef.h>

#include "common/failure.h"

/*
 * A file that lies beside this program, as when both are installed, or in the build tree that this program lies in, as BUILD/FOLDER/NAME.
 * Caller frees. NULL: it is in neither, or there is no memory.
 */
char *programs_find_beside(const char *folder, const char *name);

enum { PROGRAM_WORDS_BYTES = 4096, PROGRAM_MISSING = 127 };

struct program_run {
	const char *const *words; /* the program, looked up in PATH without a slash, its arguments, NULL */
	int kept_fd;		  /* a descriptor that it, and what it starts, has open too; -1: none */
	char *ret_words;	  /* PROGRAM_WORDS_BYTES for what it said on standard error, cut there; NULL: not wanted */
};

/*
 * Runs it and waits for it; what it prints is not for anybody. Returns its exit status: PROGRAM_MISSING when there is no such
 * program, -1 when it could not be run or was ended by a signal.
 */
int programs_run(const struct program_run *run);
int programs_run_quietly(const char *const *words); /* the same, for its status alone */

/* A line of what a program said, without a "NAME: " in front, in place. "" when it said nothing. */
const char *programs_first_line(char *words, const char *name);
const char *programs_last_line(char *words, const char *name);

#endif
