/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names that are more than bytes.
 *
 * Of an encrypted folder whose key isn't there, the kernel shows for each name the hashes that its index has for it,
 * and the encrypted name, or, where that is long, its first 149 bytes and the SHA-256 of the rest, as base64url without
 * padding (struct fscrypt_nokey_name, fs/crypto/fname.c, since Linux 5.15). What is shown here is the same, so that a
 * name stands for the same file in both.
 *
 * A folder that doesn't mind case finds names by their folded form; its index has the hashes of that.
 */
#include <stddef.h>
#include <string.h>

#include "common/bytes.h"
#include "fsreader/worker/digest.h"
#include "fsreader/worker/ext_worker.h"

enum {
	PLAIN_MOST_BYTES = 149,
	HASHES_BYTES = 8,
};

static const uint32_t LAST_HASH = 0xfffffffe; /* stands for the end of a listing, so no name has it */

static size_t encode_base64url(const uint8_t *data, size_t len_bytes, char *text)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	uint32_t bits = 0;
	unsigned bit_count = 0;
	size_t text_bytes = 0;

	for (size_t i = 0; i < len_bytes; i++) {
		bits = bits << 8 | data[i];
		for (bit_count += 8; bit_count >= 6; bit_count -= 6)
			text[text_bytes++] = digits[bits >> (bit_count - 6) & 63];
	}
	if (bit_count > 0)
		text[text_bytes++] = digits[bits << (6 - bit_count) & 63];
	return text_bytes;
}

size_t ext_name_encode(uint32_t hash, uint32_t minor_hash, const uint8_t *name, size_t len_bytes,
		       char ret_text[FSREADER_NAME_MOST_BYTES + 1])
{
	uint8_t record[HASHES_BYTES + PLAIN_MOST_BYTES + DIGEST_BYTES];
	size_t plain_bytes = len_bytes < PLAIN_MOST_BYTES ? len_bytes : PLAIN_MOST_BYTES;
	size_t record_bytes = HASHES_BYTES + plain_bytes;
	size_t text_bytes;

	bytes_put_le32(record, hash);
	bytes_put_le32(record + 4, minor_hash);
	memcpy(record + HASHES_BYTES, name, plain_bytes);
	if (len_bytes > PLAIN_MOST_BYTES) {
		digest_sha256(name + PLAIN_MOST_BYTES, len_bytes - PLAIN_MOST_BYTES, record + record_bytes);
		record_bytes += DIGEST_BYTES;
	}
	text_bytes = encode_base64url(record, record_bytes, ret_text); /* 252 at most */
	ret_text[text_bytes] = '\0';
	return text_bytes;
}

/* What a folder with this flag folds names by; NULL: by nothing. */
static const struct ext2fs_nls_table *folding_of(const struct ext_worker *worker, uint32_t dir_flags)
{
	if ((dir_flags & EXT4_CASEFOLD_FL) == 0 || !ext2fs_has_feature_casefold(worker->fs->super))
		return NULL;
	return ext2fs_load_nls_table(worker->fs->super->s_encoding);
}

bool ext_name_hash(struct ext_worker *worker, uint32_t dir_flags, int version, const char *name, size_t len_bytes,
		   uint32_t *ret_hash, uint32_t *ret_minor_hash)
{
	const struct ext2fs_nls_table *folding = folding_of(worker, dir_flags);
	ext2_dirhash_t hash, minor_hash;

	if ((dir_flags & EXT4_CASEFOLD_FL) != 0 && folding == NULL)
		return false;
	if (ext2fs_dirhash2(version, name, (int)len_bytes, folding, (int)(dir_flags & EXT4_CASEFOLD_FL),
			    worker->fs->super->s_hash_seed, &hash, &minor_hash) != 0)
		return false;
	*ret_hash = hash == LAST_HASH ? LAST_HASH - 2 : hash;
	*ret_minor_hash = minor_hash;
	return true;
}

bool ext_name_is_equal(struct ext_worker *worker, uint32_t dir_flags, const char *one, size_t one_bytes,
		       const char *other, size_t other_bytes)
{
	const struct ext2fs_nls_table *folding = folding_of(worker, dir_flags);

	return folding != NULL && ext2fs_casefold_cmp(folding, (const unsigned char *)one, one_bytes,
						      (const unsigned char *)other, other_bytes) == 0;
}
