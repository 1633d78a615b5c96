/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two names of a chunk.
 *
 * digest:      SHA-256 of the plain bytes (FIPS 180-4). Names a chunk for good, everywhere.
 * fingerprint: Poly1305 (RFC 8439, section 2.5) of the plain bytes under the 32-byte secret key of one disk, used as a
 *              universal hash: neither key nor tags ever leave the store, so nobody can aim for a collision; two
 *              given chunks of 64 KiB collide with a probability below 2^-90. It answers one question only: is this
 *              piece of this disk still what it was. Chosen over SHA-256 for being
 *              six times as fast (docs/decisions.md).
 *
 * Threads: a `struct hasher` belongs to one thread; make one for each.
 */
#ifndef WHERRY_STORE_HASH_H
#define WHERRY_STORE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"

enum { DIGEST_BYTES = 32, FINGERPRINT_BYTES = 16, FINGERPRINT_KEY_BYTES = 32 };

struct hasher;

int hasher_new(struct hasher **ret_hasher, struct failure *failure);
void hasher_free(struct hasher *hasher);

int hasher_digest(struct hasher *hasher, const void *plain, size_t len_bytes, uint8_t ret_digest[DIGEST_BYTES],
		  struct failure *failure);

/* An all-zero result (probability 2^-128) comes back as 1 followed by zeros: all zeros is "unknown" in the catalog. */
int hasher_fingerprint(struct hasher *hasher, const uint8_t key[FINGERPRINT_KEY_BYTES], const void *plain,
		       size_t len_bytes, uint8_t ret_fingerprint[FINGERPRINT_BYTES], struct failure *failure);

/* Random bytes from the operating system's generator, for keys and ids. */
int hash_random(void *ret_bytes, size_t len_bytes, struct failure *failure);

#endif
