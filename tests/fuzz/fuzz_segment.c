/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store of one segment, in which anything may be: walked through record by record, and then a catalog made of it.
 *
 * Input: a byte of flags, then the segment: made of items (segment_maker.h), or, with a flag, as it is. Another flag
 * has a few bytes at its head overwritten. The segment's file is the real one of a store in a scratch folder: a memory
 * file system makes that quick.
 *
 * A walk finds records in ascending order, each inside the file. A rebuild either refuses with a message, or leaves a
 * store that opens, lists and reads; with flags, a second rebuild comes to the same, and a check gets to its end. What
 * it finds is not judged: a log may be valid entry by entry and say what no program would (a disk that shrinks under
 * its content), and then it is the check that tells. Those two are slow, and so is a rebuild, which is left out where
 * no entry of a log is.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "segment_maker.h"
#include "store/disk_log.h"
#include "store/local.h"
#include "store/record.h"
#include "store/segment.h"
#include "store/segment_file.h"

enum { IS_RAW = 1, BREAKS_HEAD = 2, WALKS_ONLY = 4, REBUILDS_TWICE = 8, CHECKS = 16, SEGMENT = 1 };
enum { READS_MOST = 64, CHUNKS_TO_READ = 8, IMAGES_TO_READ = 4 };
enum { PAGE_BYTES = STORE_MAP_PAGE_ENTRIES * SEGMENT_MAKER_CHUNK_BYTES };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned int seed);

static struct codec *codec;
static char store_path[300];
static uint8_t store_id[STORE_ID_BYTES];
static int segments_fd = -1;

static void make_store(void)
{
	struct local_store *local = NULL;

	(void)snprintf(store_path, sizeof(store_path), "%s/store", fuzz_scratch_folder());
	require(store_create_local(store_path, SEGMENT_MAKER_CHUNK_BYTES, NULL) == 0);
	require(local_open_bare(store_path, &local, NULL) == 0);
	memcpy(store_id, local->id, sizeof(store_id));
	segments_fd = fcntl(local->segments_fd, F_DUPFD_CLOEXEC, 0);
	store_close(&local->base);
	require(segments_fd >= 0 && mkdirat(segments_fd, "01", 0700) == 0);
	require(codec_new(&codec, NULL) == 0);
}

static void write_segment(const uint8_t *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = openat(segments_fd, "01/00000001.seg", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	require(fd >= 0 && write(fd, bytes, len_bytes) == (ssize_t)len_bytes);
}

/* ---- the walk ---- */

struct walked {
	struct segment_reader *reader;
	uint64_t file_bytes;
	uint64_t end_bytes;
	unsigned count;
	bool has_entry;
};

static void read_record(struct walked *walked, uint64_t off_bytes, const struct record_header *walked_header)
{
	AUTO_FREE uint8_t *stored = malloc(walked_header->stored_bytes);
	AUTO_FREE uint8_t *plain = malloc(walked_header->plain_bytes);
	struct failure failure = {.code = 0};
	struct record_header header;
	struct log_entry entry;
	int result = segment_reader_read(walked->reader, SEGMENT, off_bytes, walked_header->stored_bytes, &header,
					 stored, &failure);

	require(stored != NULL && plain != NULL);
	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	if (result == 0)
		result = codec_decode(codec, &header, stored, plain, &failure);
	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	if (result < 0 || header.type != RECORD_LOG)
		return;
	result = log_entry_decode(plain, header.plain_bytes, SEGMENT_MAKER_CHUNK_BYTES, &entry, &failure);
	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	if (result < 0)
		return;
	log_entry_free(&entry);
	walked->has_entry = true;
}

static int visit(void *opaque, uint64_t off_bytes, const struct record_header *header)
{
	struct walked *walked = opaque;

	require(off_bytes >= walked->end_bytes && off_bytes % RECORD_ALIGN_BYTES == 0);
	walked->end_bytes = off_bytes + record_total_bytes(header->stored_bytes);
	require(walked->end_bytes <= walked->file_bytes);
	if (walked->count++ < READS_MOST)
		read_record(walked, off_bytes, header);
	return 0;
}

/* Is there an entry of a log? */
static bool check_walk(uint64_t file_bytes)
{
	struct walked walked = {.file_bytes = file_bytes, .end_bytes = SEGMENT_BLOCK_BYTES};
	struct failure failure = {.code = 0};
	uint64_t valid_bytes = 0;
	int result;

	require(segment_reader_new(segments_fd, store_id, 4, &walked.reader, NULL) == 0);
	result = segment_walk(segments_fd, store_id, SEGMENT, visit, &walked, &valid_bytes, &failure);
	segment_reader_free(walked.reader);
	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0' && walked.count == 0));
	require(result < 0 || (valid_bytes <= file_bytes && valid_bytes >= walked.end_bytes) || walked.count == 0);
	return walked.has_entry;
}

/* ---- the rebuild ---- */

static bool rebuild(struct store_rebuild_report *ret_report)
{
	const struct store_rebuild_params params = {.doing = "fuzz"};
	struct failure failure = {.code = 0};
	int result = store_rebuild_local(store_path, &params, ret_report, &failure);

	require(result == 0 || (result == -EBADMSG && failure.message[0] != '\0'));
	return result == 0;
}

/* The first chunks of a disk or an image: each is there or refused. Nothing is behind its end. */
static void read_some(struct store *store, const struct store_reference *reference, struct store_scratch *scratch)
{
	AUTO_FREE uint8_t *plain = malloc(SEGMENT_MAKER_CHUNK_BYTES);
	AUTO_FREE struct store_map_page *page = malloc(sizeof(*page));
	struct failure failure = {.code = 0};
	struct store_view *view = NULL;
	uint64_t size_bytes, beyond;

	require(plain != NULL && page != NULL);
	require(store_view_open(store, reference, VIEW_READ, "fuzz", &view, &failure) == 0);
	size_bytes = store_view_size(view);
	require(store_view_next_page(view, size_bytes / PAGE_BYTES + 1, &beyond, &failure) == 0 &&
		beyond == UINT64_MAX);
	require(store_view_map(view, 0, page, &failure) == 0);
	for (unsigned i = 0; i < CHUNKS_TO_READ; i++) {
		uint64_t off_bytes = (uint64_t)i * SEGMENT_MAKER_CHUNK_BYTES;
		struct failure flaw = {.code = 0};
		int result;

		if (off_bytes >= size_bytes || page->entries[i].kind != STORE_MAP_CHUNK)
			continue;
		result = store_view_read_chunk(view, scratch, page->entries[i].chunk, plain,
					       size_bytes - off_bytes < SEGMENT_MAKER_CHUNK_BYTES
						       ? (uint32_t)(size_bytes - off_bytes)
						       : SEGMENT_MAKER_CHUNK_BYTES,
					       i % 2 == 0, &flaw);
		require(result == 0 || (result == -EBADMSG && flaw.message[0] != '\0'));
	}
	store_view_close(view);
}

static void read_disks(struct store *store, uint64_t expected_disks)
{
	struct store_scratch *scratch = NULL;
	struct store_disk *disks = NULL;
	struct store_image *images = NULL;
	size_t disk_count = 0, image_count = 0;
	struct failure failure = {.code = 0};

	require(store_scratch_new(&scratch, NULL) == 0);
	require(store_list_disks(store, NULL, &disks, &disk_count, &failure) == 0);
	require(store_list_images(store, NULL, &images, &image_count, &failure) == 0);
	require(disk_count == expected_disks);
	for (size_t i = 0; i < disk_count; i++) {
		struct store_reference live = {.which = STORE_LIVE};

		(void)snprintf(live.disk, sizeof(live.disk), "%s", disks[i].name);
		read_some(store, &live, scratch);
	}
	for (size_t i = 0; i < image_count && i < IMAGES_TO_READ; i++) {
		struct store_reference image = {.which = STORE_NUMBER, .number = images[i].number};

		(void)snprintf(image.disk, sizeof(image.disk), "%s", images[i].disk);
		read_some(store, &image, scratch);
	}
	store_images_free(images, image_count);
	store_disks_free(disks, disk_count);
	store_scratch_free(scratch);
}

static void check_store(const struct store_rebuild_report *rebuilt, bool is_thorough)
{
	const struct store_options options = {.read_only = true};
	const struct store_check_params params = {.deep = false};
	struct store_check_report report = {.is_clean = false};
	struct failure failure = {.code = 0};
	struct store *store = NULL;

	require(store_open_local(store_path, &options, &store, &failure) == 0);
	read_disks(store, rebuilt->disks);
	if (is_thorough) {
		require(store_check(store, &params, &report, &failure) == 0);
		store_check_report_free(&report);
	}
	store_close(store);
}

static void check_rebuild(uint8_t flags)
{
	struct store_rebuild_report report = {.disks = 0}, again = {.disks = 0};

	if (!rebuild(&report))
		return;
	check_store(&report, (flags & CHECKS) != 0);
	if ((flags & REBUILDS_TWICE) != 0) {
		require(rebuild(&again));
		require(report.disks == again.disks && report.removed_disks == again.removed_disks &&
			report.chunks == again.chunks && report.lost_chunks == again.lost_chunks &&
			report.found.flaw_count == again.found.flaw_count);
		store_rebuild_report_free(&again);
	}
	store_rebuild_report_free(&report);
}

/* One in eight is left to libFuzzer's own ways; a segment as it is, always. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len_bytes, size_t most_bytes, unsigned int seed)
{
	size_t head_bytes = len_bytes > 0 && (data[0] & BREAKS_HEAD) != 0 ? 3 : 1;

	if (seed % 8 == 0 || len_bytes <= head_bytes || (data[0] & IS_RAW) != 0)
		return LLVMFuzzerMutate(data, len_bytes, most_bytes);
	return head_bytes +
	       segment_mutate(data + head_bytes, len_bytes - head_bytes, most_bytes - head_bytes, seed / 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
	struct fuzz_input input = {data, len_bytes};
	uint8_t flags = input_u8(&input);
	uint8_t at_byte = (flags & BREAKS_HEAD) != 0 ? input_u8(&input) : 0;
	uint8_t bits = (flags & BREAKS_HEAD) != 0 ? input_u8(&input) : 0;
	AUTO(byte_writer_free) struct byte_writer segment = BYTE_WRITER_EMPTY;

	if (segments_fd < 0)
		make_store();
	if ((flags & IS_RAW) != 0) {
		byte_writer_bytes(&segment, input.at, input.left_bytes);
	} else {
		segment_make(store_id, SEGMENT, &input, &segment);
		segment.data[at_byte] ^= bits;
	}
	write_segment(segment.data, segment.len_bytes);
	if (check_walk(segment.len_bytes) && (flags & WALKS_ONLY) == 0)
		check_rebuild(flags);
	return 0;
}
