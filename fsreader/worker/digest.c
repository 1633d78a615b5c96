/* SPDX-License-Identifier: Apache-2.0 */
/* FIPS 180-4, sections 4 to 6. */
#include "fsreader/worker/digest.h"

#include <assert.h>
#include <string.h>

enum { BLOCK_BYTES = 64, ROUNDS = 64, WORDS = 8, LENGTH_BYTES = 8 };

/* The first 32 bits of the fractions of the cube roots of the first 64 primes. */
static const uint32_t round_constants[ROUNDS] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turn_right(uint32_t word, unsigned bits)
{
	return word >> bits | word << (32 - bits);
}

static uint32_t get_word(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void fill_schedule(const uint8_t block[BLOCK_BYTES], uint32_t schedule[ROUNDS])
{
	for (unsigned i = 0; i < 16; i++)
		schedule[i] = get_word(block + 4 * (size_t)i);
	for (unsigned i = 16; i < ROUNDS; i++) {
		uint32_t early = schedule[i - 15], late = schedule[i - 2];

		schedule[i] = schedule[i - 16] + schedule[i - 7] +
			      (turn_right(early, 7) ^ turn_right(early, 18) ^ early >> 3) +
			      (turn_right(late, 17) ^ turn_right(late, 19) ^ late >> 10);
	}
}

static void add_block(uint32_t state[WORDS], const uint8_t block[BLOCK_BYTES])
{
	uint32_t schedule[ROUNDS], work[WORDS];

	fill_schedule(block, schedule);
	memcpy(work, state, sizeof(work));
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint32_t a = work[0], e = work[4];
		uint32_t chosen = (e & work[5]) ^ (~e & work[6]),
			 most = (a & work[1]) ^ (a & work[2]) ^ (work[1] & work[2]);
		uint32_t first = work[7] + (turn_right(e, 6) ^ turn_right(e, 11) ^ turn_right(e, 25)) + chosen +
				 round_constants[i] + schedule[i];
		uint32_t second = (turn_right(a, 2) ^ turn_right(a, 13) ^ turn_right(a, 22)) + most;

		memmove(work + 1, work, (WORDS - 1) * sizeof(work[0]));
		work[4] += first;
		work[0] = first + second;
	}
	for (unsigned i = 0; i < WORDS; i++)
		state[i] += work[i];
}

void digest_sha256(const uint8_t *data, size_t len_bytes, uint8_t ret_digest[DIGEST_BYTES])
{
	uint32_t state[WORDS] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
				 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	uint8_t padded[DIGEST_INPUT_MOST_BYTES + 2 * BLOCK_BYTES] = {0};
	size_t padded_bytes = (len_bytes + 1 + LENGTH_BYTES + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;

	assert(len_bytes <= DIGEST_INPUT_MOST_BYTES);
	memcpy(padded, data, len_bytes);
	padded[len_bytes] = 0x80;
	for (unsigned i = 0; i < LENGTH_BYTES; i++) /* in bits */
		padded[padded_bytes - 1 - i] = (uint8_t)((uint64_t)len_bytes * 8 >> 8 * i);
	for (size_t off_bytes = 0; off_bytes < padded_bytes; off_bytes += BLOCK_BYTES)
		add_block(state, padded + off_bytes);
	for (unsigned i = 0; i < DIGEST_BYTES; i++)
		ret_digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}
