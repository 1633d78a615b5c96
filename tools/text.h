/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text that came from outside, on its way to a terminal or into a document.
 */
#ifndef WHERRY_TOOLS_TEXT_H
#define WHERRY_TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* UTF-8 throughout, and no control characters. */
bool text_is_plain(const char *text);

/* A copy with '?' for what the locale can't print. Caller frees; NULL when out of memory. */
char *text_made_safe(const char *text);

/* How many columns of a terminal a safe text takes. */
size_t text_columns(const char *text);

#endif
