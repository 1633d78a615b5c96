/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the levels of --level mean, for the help of every verb that has that
 * option. The numbers are the store's (codec_zstd_level() in store/record.h);
 * tests/unit/test_options.c holds this text against them.
 */
#ifndef WHERRY_TOOLS_LEVELS_H
#define WHERRY_TOOLS_LEVELS_H

#define LEVELS_TEXT                                                 \
	"LEVELS\n"                                                  \
	"    level   0     1   2   3   4   5   6   7   8   9  10\n" \
	"    zstd    none -5  -1   1   3   5   6   8  14  16  19\n" \
	"    Smaller and slower from left to right. The default is 3.\n"

#endif
