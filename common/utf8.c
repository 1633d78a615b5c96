/* SPDX-License-Identifier: Apache-2.0 */
/* By the table of well-formed byte sequences in RFC 3629, section 4. */
#include "common/utf8.h"

#include <stdlib.h>
#include <string.h>

size_t utf8_length(const char *at)
{
	/* First byte from … to, and what the second may be: that rules out surrogates and forms that are too long. */
	static const struct {
		unsigned char first_least, first_most, second_least, second_most;
		unsigned char length;
	} forms[] = {
		{0x00, 0x7f, 0x00, 0xff, 1}, {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
		{0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
		{0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
	};
	const unsigned char *bytes = (const unsigned char *)at;

	for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		if (bytes[0] < forms[i].first_least || bytes[0] > forms[i].first_most)
			continue;
		if (forms[i].length == 1)
			return 1;
		if (bytes[1] < forms[i].second_least || bytes[1] > forms[i].second_most)
			return 0;
		for (size_t k = 2; k < forms[i].length; k++)
			if ((bytes[k] & 0xc0) != 0x80)
				return 0;
		return forms[i].length;
	}
	return 0;
}

bool utf8_is_valid(const char *text)
{
	while (*text != '\0') {
		size_t length = utf8_length(text);

		if (length == 0)
			return false;
		text += length;
	}
	return true;
}

char *utf8_repair(const char *text)
{
	static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
	char *repaired = malloc(strlen(text) * (sizeof(replacement) - 1) + 1);
	char *end = repaired;

	if (repaired == NULL)
		return NULL;
	while (*text != '\0') {
		size_t length = utf8_length(text);

		if (length == 0) {
			end = mempcpy(end, replacement, sizeof(replacement) - 1);
			text++;
		} else {
			end = mempcpy(end, text, length);
			text += length;
		}
	}
	*end = '\0';
	return repaired;
}
