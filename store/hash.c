/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digests and fingerprints through OpenSSL's EVP interface, which picks the best code for the processor it runs on
 * (SHA instructions, AVX2, AVX-512).
 *
 * Looking an algorithm up by its name costs more than hashing a small chunk does, so a hasher looks up both once and
 * keeps one context of each. A context is started anew for every call: a second start of the same context allocates
 * nothing. That leaves 0.05 microseconds of OpenSSL around the 5.6 that Poly1305 takes for 64 KiB.
 *
 * Poly1305 is made for one message a key. What a second message under the same key gives away, it gives away through
 * the tags, and ours never leave the store; hash.h has the argument.
 */
#include "store/hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "common/bytes.h"
#include "common/cleanup.h"

struct hasher {
	EVP_MD *sha256;
	EVP_MD_CTX *digest_context;
	EVP_MAC *poly1305;
	EVP_MAC_CTX *fingerprint_context;
};

/* OpenSSL says why in a queue of its own, one for each thread; it is emptied here, or it would grow. */
static int fail_openssl(struct failure *failure, const char *what)
{
	char reason[128];
	unsigned long error = ERR_get_error();

	ERR_clear_error();
	if (ERR_GET_REASON(error) == ERR_R_MALLOC_FAILURE)
		return fail_errno(failure, -ENOMEM, "%s", what);
	ERR_error_string_n(error, reason, sizeof(reason));
	return fail(failure, -EIO, "%s: OpenSSL fails with %s", what, reason);
}

static void hasher_release(struct hasher **hasher)
{
	hasher_free(*hasher);
}

int hasher_new(struct hasher **ret_hasher, struct failure *failure)
{
	AUTO(hasher_release) struct hasher *hasher = calloc(1, sizeof(*hasher));

	if (hasher == NULL)
		return fail_errno(failure, -ENOMEM, "hashing");
	hasher->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (hasher->sha256 == NULL)
		return fail_openssl(failure, "SHA-256");
	hasher->poly1305 = EVP_MAC_fetch(NULL, "POLY1305", NULL);
	if (hasher->poly1305 == NULL)
		return fail_openssl(failure, "Poly1305");
	hasher->digest_context = EVP_MD_CTX_new();
	if (hasher->digest_context == NULL)
		return fail_openssl(failure, "SHA-256");
	hasher->fingerprint_context = EVP_MAC_CTX_new(hasher->poly1305);
	if (hasher->fingerprint_context == NULL)
		return fail_openssl(failure, "Poly1305");
	*ret_hasher = take_ptr(hasher);
	return 0;
}

void hasher_free(struct hasher *hasher)
{
	if (hasher == NULL)
		return;
	EVP_MAC_CTX_free(hasher->fingerprint_context);
	EVP_MD_CTX_free(hasher->digest_context);
	EVP_MAC_free(hasher->poly1305);
	EVP_MD_free(hasher->sha256);
	free(hasher);
}

int hasher_digest(struct hasher *hasher, const void *plain, size_t len_bytes, uint8_t ret_digest[DIGEST_BYTES],
		  struct failure *failure)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned int digest_bytes = 0;

	if (EVP_DigestInit_ex(hasher->digest_context, hasher->sha256, NULL) != 1 ||
	    EVP_DigestUpdate(hasher->digest_context, plain, len_bytes) != 1 ||
	    EVP_DigestFinal_ex(hasher->digest_context, digest, &digest_bytes) != 1 || digest_bytes != DIGEST_BYTES)
		return fail_openssl(failure, "SHA-256");
	memcpy(ret_digest, digest, DIGEST_BYTES);
	return 0;
}

int hasher_fingerprint(struct hasher *hasher, const uint8_t key[FINGERPRINT_KEY_BYTES], const void *plain,
		       size_t len_bytes, uint8_t ret_fingerprint[FINGERPRINT_BYTES], struct failure *failure)
{
	uint8_t tag[FINGERPRINT_BYTES];
	size_t tag_bytes = 0;

	if (EVP_MAC_init(hasher->fingerprint_context, key, FINGERPRINT_KEY_BYTES, NULL) != 1 ||
	    EVP_MAC_update(hasher->fingerprint_context, plain, len_bytes) != 1 ||
	    EVP_MAC_final(hasher->fingerprint_context, tag, &tag_bytes, sizeof(tag)) != 1 || tag_bytes != sizeof(tag))
		return fail_openssl(failure, "Poly1305");
	if (bytes_are_zero(tag, sizeof(tag)))
		tag[0] = 1;
	memcpy(ret_fingerprint, tag, sizeof(tag));
	return 0;
}

int hash_random(void *ret_bytes, size_t len_bytes, struct failure *failure)
{
	uint8_t *at = ret_bytes;

	while (len_bytes > 0) {
		ssize_t got_bytes = getrandom(at, len_bytes, 0);

		if (got_bytes < 0 && errno == EINTR)
			continue;
		if (got_bytes < 0)
			return fail_errno(failure, -errno, "random bytes");
		at += got_bytes;
		len_bytes -= (size_t)got_bytes;
	}
	return 0;
}
