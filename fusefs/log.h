/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a mount's reasons go: to standard error as long as somebody looks at it, to the system's log after that. A
 * program that reads a damaged disk may fail ten thousand times a second; the log gets the first lines of that, and how
 * many there were. Any thread.
 */
#ifndef WHERRY_FUSEFS_LOG_H
#define WHERRY_FUSEFS_LOG_H

#include "common/failure.h"

extern const struct notices log_notices; /* warnings only: the rest would be of interest to nobody here */

void log_line(const char *text);
void log_to_system(void); /* from now on */

#endif
