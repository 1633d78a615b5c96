/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a person or a program sees of a long operation while it runs, always on standard error: standard output is for
 * results, and for the disk itself in `export REF -`.
 */
#ifndef WHERRY_TOOLS_PROGRESS_BAR_H
#define WHERRY_TOOLS_PROGRESS_BAR_H

#include <stdbool.h>
#include <stddef.h>

#include "syncer/progress.h"
#include "tools/command.h"

/*
 * Fills in `operation` (all but `doing`) so that it is shown, can be stopped by a signal, and has somewhere to say
 * things. One operation at a time.
 */
void progress_begin(enum progress_mode mode, struct operation *operation);

/* The bar is wiped away, the last line printed. Before anything is said about the result. */
void progress_end(void);

/* Where libraries say things, with or without an operation under way. */
const struct notices *progress_notices(void);

enum { PROGRESS_TEXT_BYTES = 1024 };

/* One frame of the bar, at most `columns` wide, without anything that moves the cursor. */
void progress_compose_bar(char text[PROGRESS_TEXT_BYTES], const struct progress *progress, unsigned int columns,
			  bool in_blocks);
void progress_compose_line(char text[PROGRESS_TEXT_BYTES], const struct progress *progress);
void progress_compose_json(char text[PROGRESS_TEXT_BYTES], const struct progress *progress);

#endif
