/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages: formatted once, made safe to print, cut where they are too long.
 *
 * What goes into a message comes from outside as often as not: a file's name, a
 * server's reply. Printed as it is, it could hold a line feed and pass for a
 * second message, or an escape sequence and take over the terminal. So control
 * characters become '?', those of ASCII and the C1 set in its UTF-8 form (0xc2
 * 0x80 to 0x9f, which some terminals obey too). Other bytes stay: names of files
 * are in whatever encoding they are in.
 *
 * A message that is too long loses what stands in front of the errno's text, and
 * not the text itself: a path of 4096 bytes must not hide the reason.
 */
#include "common/failure.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char cut_mark[] = "...";

static void replace_control_characters(char *text)
{
	for (unsigned char *at = (unsigned char *)text; *at != '\0'; at++) {
		bool is_c1 = at[0] == 0xc2 && at[1] >= 0x80 && at[1] <= 0x9f;

		if (is_c1)
			*at++ = '?';
		if (is_c1 || *at < 0x20 || *at == 0x7f)
			*at = '?';
	}
}

/* Ends the text after at most `keep_bytes`, with the mark of a cut, and not inside of a UTF-8 character. */
static void cut_text(char *text, size_t keep_bytes)
{
	size_t end = keep_bytes - (sizeof(cut_mark) - 1);

	while (end > 0 && ((unsigned char)text[end] & 0xc0) == 0x80)
		end--;
	memcpy(text + end, cut_mark, sizeof(cut_mark));
}

/* One safe line of at most FAILURE_MESSAGE_BYTES - 1 bytes that ends with `suffix`, whole. */
__attribute__((format(printf, 3, 0))) static void compose_line(char text[FAILURE_MESSAGE_BYTES], const char *suffix,
							       const char *format, va_list arguments)
{
	size_t suffix_bytes = strlen(suffix);
	size_t room_bytes = (size_t)FAILURE_MESSAGE_BYTES - 1 - suffix_bytes;
	int wanted_bytes = vsnprintf(text, FAILURE_MESSAGE_BYTES, format, arguments);

	if (wanted_bytes < 0) /* better the bare format than no word at all */
		(void)snprintf(text, FAILURE_MESSAGE_BYTES, "%s", format);
	if (strnlen(text, FAILURE_MESSAGE_BYTES) > room_bytes || wanted_bytes >= FAILURE_MESSAGE_BYTES)
		cut_text(text, room_bytes);
	memcpy(text + strlen(text), suffix, suffix_bytes + 1);
	replace_control_characters(text);
}

int fail(struct failure *failure, int code, const char *format, ...)
{
	int saved_errno = errno;
	va_list arguments;

	assert(code < 0);
	if (failure == NULL || failure->code != 0)
		return code;
	va_start(arguments, format);
	compose_line(failure->message, "", format, arguments);
	va_end(arguments);
	failure->code = code;
	errno = saved_errno;
	return code;
}

int fail_errno(struct failure *failure, int code, const char *format, ...)
{
	int saved_errno = errno;
	char suffix[128];
	char reason[sizeof(suffix) - 3];
	va_list arguments;

	assert(code < 0);
	if (failure == NULL || failure->code != 0)
		return code;
	(void)snprintf(suffix, sizeof(suffix), ": %s", strerror_r(-code, reason, sizeof(reason)));
	va_start(arguments, format);
	compose_line(failure->message, suffix, format, arguments);
	va_end(arguments);
	failure->code = code;
	errno = saved_errno;
	return code;
}

int fail_from(struct failure *to, const struct failure *from)
{
	if (to != NULL && to->code == 0 && from->code != 0)
		*to = *from;
	return from->code;
}

void failure_clear(struct failure *failure)
{
	failure->code = 0;
	failure->message[0] = '\0';
}

void notice(const struct notices *notices, enum notice_level level, const char *format, ...)
{
	int saved_errno = errno;
	char text[FAILURE_MESSAGE_BYTES];
	va_list arguments;

	if (notices == NULL || notices->say == NULL)
		return;
	va_start(arguments, format);
	compose_line(text, "", format, arguments);
	va_end(arguments);
	notices->say(notices->opaque, level, text);
	errno = saved_errno;
}
