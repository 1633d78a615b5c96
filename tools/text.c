/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two notions of a character. Documents and labels are UTF-8 whatever the locale,
 * so that is decided in common/utf8.h; what can be printed and how
 * wide it is, the locale decides.
 */
#include "tools/text.h"

#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <wctype.h>

#include "common/utf8.h"

bool text_is_plain(const char *text)
{
	while (*text != '\0') {
		size_t length = utf8_length(text);
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
