/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, rates, durations and times as people write and read them.
 *
 * Numbers are parsed here and not by strtod() and its kin, which take signs,
 * leading blanks, hexadecimal, "inf" and the locale's decimal point, and which
 * round: "8E" must not become a size because a double is near to one. A number
 * is kept as digits over a power of ten, in 128 bits, until its unit is known.
 */
#include "common/units.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { MOST_DIGITS = 19 }; /* INT64_MAX has as many, and 10^19 * 2^60 still fits 128 bits */

/* Nothing but digits, at most one point with digits on both sides: digits / scale. */
struct decimal {
	unsigned __int128 digits;
	unsigned __int128 scale;
	bool is_too_large; /* whole digits beyond MOST_DIGITS: `digits` is not all of them */
};

static bool decimal_take_digits(struct decimal *number, const char **at, unsigned int *count)
{
	const char *first = *at;

	for (; **at >= '0' && **at <= '9'; (*at)++) {
		if (*count == MOST_DIGITS)
			number->is_too_large = true;
		else
			++*count;
		if (!number->is_too_large)
			number->digits = number->digits * 10 + (unsigned int)(**at - '0');
	}
	return *at > first;
}

static bool decimal_parse(struct decimal *number, const char **at)
{
	unsigned int count = 0;
	unsigned int whole_count;

	*number = (struct decimal){.digits = 0, .scale = 1};
	if (!decimal_take_digits(number, at, &count))
		return false;
	if (**at != '.')
		return true;
	(*at)++;
	whole_count = count;
	if (number->is_too_large || !decimal_take_digits(number, at, &count) || number->is_too_large)
		return false;
	for (unsigned int i = whole_count; i < count; i++)
		number->scale *= 10;
	return true;
}

/* The power that a unit's letter stands for: K is 1. Moves past the letter; 0 when there is none. */
static unsigned int take_unit_power(const char **at)
{
	static const char letters[] = "KMGTPE";
	const char *letter = **at == '\0' ? NULL : strchr(letters, toupper((unsigned char)**at));

	if (letter == NULL)
		return 0;
	(*at)++;
	return (unsigned int)(letter - letters) + 1;
}

static bool take_word(const char **at, const char *word)
{
	size_t len_bytes = strlen(word);

	if (strncasecmp(*at, word, len_bytes) != 0)
		return false;
	*at += len_bytes;
	return true;
}

/* A number and a unit of bytes, up to what the unit leaves of the text; both as they stand, not multiplied yet. */
static bool parse_bytes(const char **at, struct decimal *number, unsigned __int128 *factor)
{
	unsigned int power;

	if (!decimal_parse(number, at))
		return false;
	power = take_unit_power(at);
	*factor = (unsigned __int128)1 << (10 * power);
	if (power == 0 || !take_word(at, "iB"))
		(void)take_word(at, "B"); /* either is optional */
	return true;
}

int units_parse_size(const char *text, uint64_t *ret_bytes)
{
	struct decimal number;
	unsigned __int128 factor;
	unsigned __int128 scaled;

	if (!parse_bytes(&text, &number, &factor) || *text != '\0')
		return -EINVAL;
	if (factor == 1 && number.scale != 1)
		return -EINVAL; /* "1.0" bytes: more likely a unit forgotten than meant */
	scaled = number.digits * factor;
	if (number.is_too_large || scaled / number.scale > INT64_MAX)
		return -ERANGE;
	if (scaled % number.scale != 0)
		return -EINVAL;
	*ret_bytes = (uint64_t)(scaled / number.scale);
	return 0;
}

/* "100Mbit": powers of 1000, eight to a byte. */
static bool parse_bits(const char **at, struct decimal *number, unsigned __int128 *factor)
{
	unsigned int power;

	if (!decimal_parse(number, at))
		return false;
	*factor = 1;
	for (power = take_unit_power(at); power > 0; power--)
		*factor *= 1000;
	number->scale *= 8;
	return take_word(at, "bit");
}

int units_parse_rate(const char *text, uint64_t *ret_bytes_per_second)
{
	const char *at = text;
	struct decimal number;
	unsigned __int128 factor;
	unsigned __int128 bytes;

	if (strcasecmp(text, "unlimited") == 0) {
		*ret_bytes_per_second = 0;
		return 0;
	}
	if (!parse_bits(&at, &number, &factor)) {
		at = text;
		if (!parse_bytes(&at, &number, &factor))
			return -EINVAL;
	}
	(void)take_word(&at, "/s"); /* optional */
	bytes = number.digits * factor / number.scale;
	if (*at != '\0' || number.is_too_large || bytes > INT64_MAX)
		return -EINVAL;
	if (bytes == 0 && number.digits != 0)
		return -EINVAL; /* "1bit" a second, rounded down, must not come to mean "no limit" */
	*ret_bytes_per_second = (uint64_t)bytes;
	return 0;
}

const char *units_format_size(uint64_t bytes, char text[UNITS_TEXT_BYTES])
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	enum { MOST_POWER = sizeof(names) / sizeof(names[0]) - 1 };
	unsigned int power = 0;
	double value = (double)bytes;

	/* 1023.6 KiB would be printed as "1024 KiB": it is "1.0 MiB". */
	while (value >= (power == 0 ? 1024 : 1023.5) && power < MOST_POWER) {
		value /= 1024;
		power++;
	}
	if (power == 0)
		(void)snprintf(text, UNITS_TEXT_BYTES, "%u B", (unsigned int)bytes);
	else
		(void)snprintf(text, UNITS_TEXT_BYTES, value < 99.95 ? "%.1f %s" : "%.0f %s", value, names[power]);
	return text;
}

const char *units_format_duration(double seconds, char text[UNITS_TEXT_BYTES])
{
	enum { MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR };
	const double most_seconds = 1e15; /* 30 million years; a remaining time at a speed of nearly nothing */
	unsigned long long whole;

	if (!(seconds > 0)) /* not a number, too */
		seconds = 0;
	if (seconds > most_seconds)
		seconds = most_seconds;
	whole = (unsigned long long)(seconds + 0.5);
	if (whole < MINUTE)
		(void)snprintf(text, UNITS_TEXT_BYTES, "%llus", whole);
	else if (whole < HOUR)
		(void)snprintf(text, UNITS_TEXT_BYTES, "%llum%02llus", whole / MINUTE, whole % MINUTE);
	else if (whole < DAY)
		(void)snprintf(text, UNITS_TEXT_BYTES, "%lluh%02llum", whole / HOUR, whole % HOUR / MINUTE);
	else
		(void)snprintf(text, UNITS_TEXT_BYTES, "%llud%02lluh", whole / DAY, whole % DAY / HOUR);
	return text;
}

const char *units_format_time(int64_t unix_seconds, char text[UNITS_TEXT_BYTES])
{
	/* RFC 3339 section 5.6: a year has four digits. What lies outside is shown as the nearest time that can be. */
	const int64_t first_seconds = -62167219200; /* 0000-01-01T00:00:00Z */
	const int64_t last_seconds = 253402300799;  /* 9999-12-31T23:59:59Z */
	time_t seconds;
	struct tm parts;

	if (unix_seconds < first_seconds)
		unix_seconds = first_seconds;
	if (unix_seconds > last_seconds)
		unix_seconds = last_seconds;
	seconds = (time_t)unix_seconds;
	if (gmtime_r(&seconds, &parts) == NULL)
		parts = (struct tm){.tm_year = 70, .tm_mday = 1}; /* a time_t of 32 bits only */
	(void)snprintf(text, UNITS_TEXT_BYTES, "%04d-%02d-%02dT%02d:%02d:%02dZ", parts.tm_year + 1900, parts.tm_mon + 1,
		       parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec);
	return text;
}

double units_monotonic_seconds(void)
{
	struct timespec now = {.tv_sec = 0};

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists and the address is good */
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

struct timespec units_time_later(struct timespec time, long nanoseconds)
{
	time.tv_nsec += nanoseconds;
	if (time.tv_nsec >= 1000000000) {
		time.tv_nsec -= 1000000000;
		time.tv_sec++;
	}
	return time;
}

struct timespec units_time_from_now(clockid_t clock, long nanoseconds)
{
	struct timespec now = {.tv_sec = 0};

	(void)clock_gettime(clock, &now); /* cannot fail: the clock exists and the address is good */
	return units_time_later(now, nanoseconds);
}
