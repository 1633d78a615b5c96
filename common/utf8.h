/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths, mount points and what servers say are bytes; JSON is UTF-8 (RFC 8259, section 8.1).
 */
#ifndef WHERRY_COMMON_UTF8_H
#define WHERRY_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the UTF-8 character at `at`, 1 to 4; 0 when what is there isn't one (RFC 3629, section 4). */
size_t utf8_length(const char *at);

bool utf8_is_valid(const char *text);

/* A copy with U+FFFD for each byte that belongs to no character. Caller frees; NULL: no memory. */
char *utf8_repair(const char *text);

#endif
