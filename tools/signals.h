/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a person, or the system going down, stops the command.
 *
 *     first SIGINT, SIGTERM or SIGHUP   while an operation runs that can be stopped: it is asked to stop
 *                                       (struct operation's `stop`), keeps what is finished, and the exit status is
 * 130; otherwise the process ends at once, with 130 the second one                    the process ends at once, with
 * 130 SIGPIPE                           ignored: the write that caused it fails with EPIPE
 *
 * Ending at once is safe anywhere, as being killed is: what the store has acknowledged is durable, leases die with us.
 */
#ifndef WHERRY_TOOLS_SIGNALS_H
#define WHERRY_TOOLS_SIGNALS_H

#include <stdatomic.h>
#include <stdbool.h>

void signals_setup(void); /* once, before there are threads */

/* From here on the first signal asks instead of ending. Returns the flag for struct operation. */
const atomic_bool *signals_ask_to_stop(void);

/* Text to write to standard error if a signal ends the process at once: to leave the line of a progress bar. "" or
 * "\n". */
void signals_set_last_words(const char *text);

#endif
