/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store/hash.h against published vectors: FIPS 180-4 (as in NIST's example values) and RFC 8439, section 2.5.2 and
 * appendix A.3. A hasher is used many times, so what a call leaves behind for the next one matters as well.
 */
#include "unit_test.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/hash.h"

static int make_hasher(void **state)
{
	struct hasher *hasher = NULL;

	if (hasher_new(&hasher, NULL) != 0)
		return -1;
	*state = hasher;
	return 0;
}

static int free_hasher(void **state)
{
	hasher_free(*state);
	return 0;
}

static void from_hex(const char *hex, uint8_t *ret_bytes)
{
	for (size_t i = 0; hex[2 * i] != '\0'; i++) {
		char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};

		ret_bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
}

static void assert_digest(struct hasher *hasher, const void *plain, size_t len_bytes, const char *expected)
{
	uint8_t digest[DIGEST_BYTES];
	char text[2 * DIGEST_BYTES + 1];

	assert_int_equal(hasher_digest(hasher, plain, len_bytes, digest, NULL), 0);
	bytes_to_hex(digest, sizeof(digest), text);
	assert_string_equal(text, expected);
}

static void digest_is_sha256(void **state)
{
	enum { MILLION = 1000000 };
	AUTO_FREE char *many = malloc(MILLION);

	assert_non_null(many);
	memset(many, 'a', MILLION);
	assert_digest(*state, "", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	assert_digest(*state, "abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	assert_digest(*state, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
		      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	assert_digest(*state, many, MILLION, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
	assert_digest(*state, "abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

struct tag_vector {
	const char *key;
	const char *plain;
	const char *tag;
};

static void assert_tag(struct hasher *hasher, const struct tag_vector *vector)
{
	uint8_t key[FINGERPRINT_KEY_BYTES];
	uint8_t plain[256];
	uint8_t tag[FINGERPRINT_BYTES];
	char text[2 * FINGERPRINT_BYTES + 1];

	assert_int_equal(strlen(vector->key), 2 * FINGERPRINT_KEY_BYTES);
	from_hex(vector->key, key);
	from_hex(vector->plain, plain);
	assert_int_equal(hasher_fingerprint(hasher, key, plain, strlen(vector->plain) / 2, tag, NULL), 0);
	bytes_to_hex(tag, sizeof(tag), text);
	assert_string_equal(text, vector->tag);
}

/* Section 2.5.2; appendix A.3, numbers 7, 8 and 9, which are about carries. Twice, for the second turn of a context. */
static void fingerprint_is_poly1305(void **state)
{
	static const struct tag_vector vectors[] = {
		{"85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b",
		 "43727970746f6772617068696320466f72756d2052657365617263682047726f7570",
		 "a8061dc1305136c6c22b8baf0c0127a9"},
		{"0200000000000000000000000000000000000000000000000000000000000000", "ffffffffffffffffffffffffffffffff",
		 "03000000000000000000000000000000"},
		{"02000000000000000000000000000000ffffffffffffffffffffffffffffffff", "02000000000000000000000000000000",
		 "03000000000000000000000000000000"},
		{"0100000000000000000000000000000000000000000000000000000000000000",
		 "fffffffffffffffffffffffffffffffff0ffffffffffffffffffffffffffffff11000000000000000000000000000000",
		 "05000000000000000000000000000000"},
	};

	for (size_t turn = 0; turn < 2; turn++)
		for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
			assert_tag(*state, &vectors[i]);
}

/* A.3, number 1: under a key of zeros every tag is zero, which the catalog keeps for "unknown". */
static void fingerprint_of_all_zeros_is_avoided(void **state)
{
	static const struct tag_vector vector = {"0000000000000000000000000000000000000000000000000000000000000000",
						 "00000000000000000000000000000000",
						 "01000000000000000000000000000000"};

	assert_tag(*state, &vector);
}

static void fingerprint_depends_on_every_byte_and_the_length(void **state)
{
	enum { LEN_BYTES = 1025 };
	static uint8_t plain[LEN_BYTES + 1];
	uint8_t key[FINGERPRINT_KEY_BYTES];
	uint8_t before[FINGERPRINT_BYTES];
	uint8_t after[FINGERPRINT_BYTES];

	assert_int_equal(hash_random(key, sizeof(key), NULL), 0);
	assert_int_equal(hasher_fingerprint(*state, key, plain, LEN_BYTES, before, NULL), 0);
	for (size_t i = 0; i < LEN_BYTES; i++) {
		plain[i] ^= 0x10;
		assert_int_equal(hasher_fingerprint(*state, key, plain, LEN_BYTES, after, NULL), 0);
		assert_memory_not_equal(before, after, sizeof(before));
		plain[i] ^= 0x10;
	}
	assert_int_equal(hasher_fingerprint(*state, key, plain, LEN_BYTES + 1, after, NULL), 0);
	assert_memory_not_equal(before, after, sizeof(before));
	assert_int_equal(hasher_fingerprint(*state, key, plain, LEN_BYTES, after, NULL), 0);
	assert_memory_equal(before, after, sizeof(before));
}

static void random_bytes_differ(void **state)
{
	uint8_t first[1000] = {0};
	uint8_t second[1000] = {0};

	(void)state;
	assert_int_equal(hash_random(first, sizeof(first), NULL), 0);
	assert_int_equal(hash_random(second, sizeof(second), NULL), 0);
	assert_memory_not_equal(first, second, sizeof(first));
	assert_false(bytes_are_zero(first + 984, 16));
	assert_int_equal(hash_random(first, 0, NULL), 0);
}

static void freeing_nothing_is_fine(void **state)
{
	(void)state;
	hasher_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(digest_is_sha256, make_hasher, free_hasher),
		cmocka_unit_test_setup_teardown(fingerprint_is_poly1305, make_hasher, free_hasher),
		cmocka_unit_test_setup_teardown(fingerprint_of_all_zeros_is_avoided, make_hasher, free_hasher),
		cmocka_unit_test_setup_teardown(fingerprint_depends_on_every_byte_and_the_length, make_hasher,
						free_hasher),
		cmocka_unit_test(random_bytes_differ),
		cmocka_unit_test(freeing_nothing_is_fine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
