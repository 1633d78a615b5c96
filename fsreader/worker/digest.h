/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 of a few bytes, for long names without a key (ext_name.c). libext2fs keeps its own to itself, and a library
 * that has all there is of cryptography would be a lot to load for that.
 */
#ifndef WHERRY_FSREADER_WORKER_DIGEST_H
#define WHERRY_FSREADER_WORKER_DIGEST_H

#include <stddef.h>
#include <stdint.h>

enum { DIGEST_BYTES = 32, DIGEST_INPUT_MOST_BYTES = 1024 };

/* Of DIGEST_INPUT_MOST_BYTES at most. */
void digest_sha256(const uint8_t *data, size_t len_bytes, uint8_t ret_digest[DIGEST_BYTES]);

#endif
