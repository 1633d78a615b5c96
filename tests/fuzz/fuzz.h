/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the harnesses share. Each is one function that libFuzzer calls with bytes of its own invention, many thousand
 * times a second, with AddressSanitizer and UndefinedBehaviorSanitizer looking on; what they find wrong, and what
 * require() does, ends the program and leaves the input.
 *
 * Three habits make a find possible:
 *   - What is handed to the program is a copy on the heap of exactly its length, so that one byte too far is seen.
 *   - Inputs say themselves which checksums are to be mended. Chance doesn't get past a checksum, and whoever makes a
 *     hostile store does.
 *   - More is asked for than not to crash: what was refused was refused with the one code and a message, what was
 *     taken encodes to the same bytes again, is inside its caps, and doesn't depend on what was in memory before.
 */
#ifndef WHERRY_TESTS_FUZZ_H
#define WHERRY_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

/* Of libFuzzer: changes the bytes in place, returns how many there are then. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t len_bytes, size_t most_bytes);

#define require(condition)                                                                                   \
	do {                                                                                                 \
		if (!(condition)) {                                                                          \
			(void)fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

/* The input, taken from its front; zeros when it is used up. */
struct fuzz_input {
	const uint8_t *at;
	size_t left_bytes;
};

static inline uint8_t input_u8(struct fuzz_input *input)
{
	if (input->left_bytes == 0)
		return 0;
	input->left_bytes--;
	return *input->at++;
}

static inline uint32_t input_le(struct fuzz_input *input, unsigned bytes)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint32_t)input_u8(input) << 8 * i;
	return value;
}

/* At most len_bytes of it, as many as there are. */
static inline const uint8_t *input_bytes(struct fuzz_input *input, size_t len_bytes, size_t *ret_len_bytes)
{
	const uint8_t *bytes = input->at;

	*ret_len_bytes = len_bytes < input->left_bytes ? len_bytes : input->left_bytes;
	input->at += *ret_len_bytes;
	input->left_bytes -= *ret_len_bytes;
	return bytes;
}

/* A copy that ends where its memory does; of nothing, too. The caller frees it. */
static inline uint8_t *heap_copy(const void *bytes, size_t len_bytes)
{
	uint8_t *copy = malloc(len_bytes == 0 ? 1 : len_bytes);

	require(copy != NULL);
	if (len_bytes > 0)
		memcpy(copy, bytes, len_bytes);
	return copy;
}

/* A folder of this process's own, below TMPDIR; it goes when the process ends well, and else with TMPDIR. */
const char *fuzz_scratch_folder(void);

#endif
