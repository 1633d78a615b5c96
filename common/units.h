/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, rates, durations and times as people write and read them.
 */
#ifndef WHERRY_COMMON_UNITS_H
#define WHERRY_COMMON_UNITS_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/*
 * "4096", "64K", "8G", "1.5T", "64KiB": powers of 1024, upper or lower case, an
 * optional "B" or "iB". Bytes, a whole number of them, at most INT64_MAX.
 * -ERANGE for more than that, -EINVAL for anything else, `ret_bytes` untouched.
 */
int units_parse_size(const char *text, uint64_t *ret_bytes);

/*
 * A size a second ("10M", "10M/s", "512K/s"), or bits a second with powers of
 * 1000 ("100Mbit", "1Gbit"). "0" and "unlimited" give 0, which means no limit.
 * Bytes a second.
 */
int units_parse_rate(const char *text, uint64_t *ret_bytes_per_second);

enum { UNITS_TEXT_BYTES = 48 };

/* "0 B", "512 B", "1.0 KiB", "8.0 GiB": three digits or so, for people. Returns `text`. */
const char *units_format_size(uint64_t bytes, char text[UNITS_TEXT_BYTES]);

/* "12s", "3m05s", "2h07m", "4d03h". */
const char *units_format_duration(double seconds, char text[UNITS_TEXT_BYTES]);

/* RFC 3339, UTC, whole seconds: "2026-11-25T14:06:07Z". */
const char *units_format_time(int64_t unix_seconds, char text[UNITS_TEXT_BYTES]);

/* Seconds of CLOCK_MONOTONIC. */
double units_monotonic_seconds(void);

/* The time so many nanoseconds, less than a second, after `time`. */
struct timespec units_time_later(struct timespec time, long nanoseconds);
/* The same after now, on this clock: for waits that end. */
struct timespec units_time_from_now(clockid_t clock, long nanoseconds);

#endif
