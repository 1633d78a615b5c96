/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON that comes from outside: a store's description, and what a round noted for the next one.
 *
 * Input: a byte that says which, the text. For a round's notes, two texts with a NUL between: what it noted of dirty
 * bitmaps, and its details.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "memory_disk.h"
#include "store/local.h"
#include "syncer/bitmap_trust.h"

enum { LAYOUT_HASH = 0x1234 };

static char *text_of(const uint8_t *bytes, size_t len_bytes)
{
	char *text = malloc(len_bytes + 1);

	require(text != NULL);
	memcpy(text, bytes, len_bytes);
	text[len_bytes] = '\0';
	return text;
}

/* ---- wherry.json ---- */

static const char *store_folder(void)
{
	static char path[300];
	static const char *const folders[] = {"", "/segments", "/locks"};

	if (path[0] != '\0')
		return path;
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/store%s", fuzz_scratch_folder(), folders[i]);
		require(mkdir(path, 0700) == 0);
	}
	(void)snprintf(path, sizeof(path), "%s/store", fuzz_scratch_folder());
	return path;
}

static void check_description(const uint8_t *text, size_t len_bytes)
{
	struct failure failure = {.code = 0};
	struct local_store *local = NULL;
	char path[320];
	int result;

	(void)snprintf(path, sizeof(path), "%s/wherry.json", store_folder());
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	require(fd >= 0 && write(fd, text, len_bytes) == (ssize_t)len_bytes);
	result = local_open_bare(store_folder(), &local, &failure);
	require(result == 0 || ((result == -EBADMSG || result == -EPROTONOSUPPORT) && failure.message[0] != '\0'));
	if (result < 0)
		return;
	require(local->base.chunk_bytes >= STORE_CHUNK_LEAST_BYTES &&
		local->base.chunk_bytes <= STORE_CHUNK_MOST_BYTES);
	require((local->base.chunk_bytes & (local->base.chunk_bytes - 1)) == 0);
	store_close(&local->base);
}

/* ---- notes of a round ---- */

static void check_marks(const char *text)
{
	struct dirty_marks marks, again;
	json_t *json = json_loads(text, 0, NULL);
	json_t *written;

	dirty_marks_from_json(json, &marks);
	json_decref(json);
	require(marks.count <= DIRTY_MARKS_MOST && marks.dirty_bytes >> 63 == 0);
	written = dirty_marks_to_json(&marks);
	require(written != NULL);
	dirty_marks_from_json(written, &again);
	json_decref(written);
	require(marks.dirty_bytes == again.dirty_bytes && marks.count == again.count);
	for (unsigned i = 0; i < marks.count; i++)
		require(marks.at[i] >> 63 == 0 && marks.at[i] == again.at[i]);
}

static void check_trust(char *bitmaps, char *details)
{
	static const uint8_t disk_bytes[] = {0, 0, 0xff, 0x0f, 8, 0, 0, 0, 1, 0, 'x'};
	struct fuzz_input input = {disk_bytes, sizeof(disk_bytes)};
	struct memory_disk disk;
	struct dirty_marks now = {.dirty_bytes = 512, .count = 1, .at = {4096}};
	struct store_round_begun begun = {.number = 2,
					  .previous_dirty_bitmaps = bitmaps,
					  .previous_details = details,
					  .previous_dirty_bytes = 512};
	const char *why_not = "";

	memory_disk_make(&disk, &input);
	begun.previous_identity = disk.source.info.identity;
	require(bitmap_trust_decide(&disk.source, LAYOUT_HASH, &begun, "daily", &now, &why_not, NULL) == 0);
	require(why_not == NULL || why_not[0] != '\0');
	/* trust takes both: that it was there, and that nothing was unread */
	require(why_not != NULL || strstr(bitmaps, "names") != NULL || strchr(bitmaps, '\\') != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	uint8_t which = input_u8(&input);
	AUTO_FREE char *text = text_of(input.at, input.left_bytes);
	size_t first_bytes = strlen(text);
	AUTO_FREE char *first = text_of(input.at, first_bytes);

	switch (which % 3) {
	case 0:
		check_description(input.at, input.left_bytes);
		break;
	case 1:
		check_marks(first);
		break;
	case 2:
		check_trust(first, first_bytes < input.left_bytes ? text + first_bytes + 1 : NULL);
		break;
	}
	return 0;
}
