/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two notions of a character. Documents and labels are UTF-8 whatever the locale,
 * so that is decided here by the table of RFC 3629; what can be printed and how
 * wide it is, the locale decides.
 */
#include "tools/text.h"

#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <wctype.h>

size_t text_utf8_length(const char *at)
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

bool text_is_plain(const char *text)
{
	while (*text != '\0') {
		size_t length = text_utf8_length(text);
		unsigned char first = (unsigned char)text[0];
		bool is_c1 = first == 0xc2 && (unsigned char)text[1] < 0xa0;

		if (length == 0 || first < 0x20 || first == 0x7f || is_c1)
			return false;
		text += length;
	}
	return true;
}

char *text_made_safe(const char *text)
{
	char *safe = malloc(strlen(text) + 1);
	char *end = safe;
	mbstate_t state = {0};

	if (safe == NULL)
		return NULL;
	while (*text != '\0') {
		wchar_t character;
		size_t length = mbrtowc(&character, text, strlen(text), &state);

		if (length == (size_t)-1 || length == (size_t)-2) {
			memset(&state, 0, sizeof(state));
			length = 0;
		}
		if (length == 0 || !iswprint((wint_t)character)) {
			*end++ = '?';
			text += length == 0 ? 1 : length;
		} else {
			memcpy(end, text, length);
			end += length;
			text += length;
		}
	}
	*end = '\0';
	return safe;
}

size_t text_columns(const char *text)
{
	size_t columns = 0;
	mbstate_t state = {0};

	while (*text != '\0') {
		wchar_t character;
		size_t length = mbrtowc(&character, text, strlen(text), &state);
		int width;

		if (length == 0 || length == (size_t)-1 || length == (size_t)-2)
			return columns + strlen(text); /* not a safe text: some answer */
		width = wcwidth(character);
		columns += width > 0 ? (size_t)width : 0;
		text += length;
	}
	return columns;
}
