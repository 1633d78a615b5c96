/* SPDX-License-Identifier: Apache-2.0 */
/* What fsreader_liar does wrong: the first byte of the source tells it. */
#ifndef WHERRY_TESTS_FSREADER_LIAR_H
#define WHERRY_TESTS_FSREADER_LIAR_H

enum lie {
	LIE_NONE,
	/* names in listings; those that stand for one in a table come first */
	LIE_NAME_SLASH,
	LIE_NAME_DOT,
	LIE_NAME_DOTS,
	LIE_NAME_NUL,
	LIE_NAME_LONG,
	/* listings */
	LIE_COOKIE,
	LIE_LIST_ENDLESS,
	LIE_LIST_STANDS,
	LIE_LIST_CUT,
	/* attributes */
	LIE_SIZE,
	LIE_MODE,
	LIE_TIME,
	LIE_NUMBER,
	LIE_OTHER_FILE,
	LIE_COUNT,
	/* places of content */
	LIE_PLACE,
	LIE_PLACE_OVERFLOW,
	LIE_PIECES,
	LIE_MAP,
	LIE_MAP_ENDLESS,
	LIE_INLINE,
	/* values */
	LIE_LINK_NUL,
	LIE_LINK_LONG,
	LIE_XATTR_CUT,
	LIE_XATTR_LONG,
	/* messages */
	LIE_ERROR,
	LIE_ERROR_ODD,
	LIE_KIND,
	LIE_LENGTH,
	/* instead of an answer */
	LIE_CRASH,
	LIE_EXIT,
	LIE_LOOP,
	LIE_SLEEP,
	LIE_WANT_BEHIND,
	LIE_WANT_OVERFLOW,
	LIE_WANT_MUCH,
	LIE_WANT_NOTHING,
	LIE_WANT_ENDLESS,
	LIES,
};

#endif
