/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was probably meant: the candidate at the least distance from what was
 * typed, where a letter missing, added, changed, or swapped with its neighbour
 * counts one each (the "optimal string alignment" distance). A far-fetched
 * suggestion is worse than none, so the distance may be a third of the word.
 */
#include "tools/command.h"

#include <string.h>

enum { WORD_MOST_BYTES = 31 };

static unsigned int least_of(unsigned int a, unsigned int b)
{
	return a < b ? a : b;
}

/* Rows of the usual table; the one before the previous is kept for swaps. Both words are at most WORD_MOST_BYTES long.
 */
static unsigned int count_edits(const char *from, const char *to)
{
	unsigned int rows[3][WORD_MOST_BYTES + 1];
	unsigned int *before = rows[0], *previous = rows[1], *current = rows[2];
	size_t to_bytes = strlen(to);

	for (size_t j = 0; j <= to_bytes; j++)
		previous[j] = (unsigned int)j;
	for (size_t i = 1; from[i - 1] != '\0'; i++) {
		unsigned int *recycled = before;

		current[0] = (unsigned int)i;
		for (size_t j = 1; j <= to_bytes; j++) {
			unsigned int changed = previous[j - 1] + (from[i - 1] != to[j - 1]);

			current[j] = least_of(changed, least_of(previous[j], current[j - 1]) + 1);
			if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
				current[j] = least_of(current[j], before[j - 2] + 1);
		}
		before = previous;
		previous = current;
		current = recycled;
	}
	return previous[to_bytes];
}

const char *suggest_word(const char *typed, const char *const *candidates, size_t count)
{
	size_t typed_bytes = strlen(typed);
	unsigned int nearest_edits = (unsigned int)(typed_bytes + 2) / 3 + 1;
	const char *nearest = NULL;

	if (typed_bytes == 0 || typed_bytes > WORD_MOST_BYTES)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		size_t candidate_bytes = strlen(candidates[i]);
		unsigned int edits;

		if (candidate_bytes > WORD_MOST_BYTES)
			continue;
		edits = count_edits(typed, candidates[i]);
		if (typed_bytes >= 2 && strncmp(candidates[i], typed, typed_bytes) == 0)
			edits = least_of(edits, 1);
		if (edits < nearest_edits) {
			nearest = candidates[i];
			nearest_edits = edits;
		}
	}
	return nearest;
}
