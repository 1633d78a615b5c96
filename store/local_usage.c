/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a local store takes.
 *
 * Files are measured by their lengths, as they stand in the folder, whoever they belong to: a tail that nobody
 * committed takes room as well. What is alive is the catalog's to say. The difference between what a file takes and
 * what is in it is the header, and what was appended and not committed.
 *
 * How long a chunk's content is, is in its record only. All are as long as the store's chunks are, but for the last
 * ones of disks whose size is no multiple of that: those are looked up, for each size that live content or an image
 * has. What was the last chunk of a disk that has grown since, and of no image, is taken for a whole one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/own_file.h"
#include "store/local.h"

/* ---- files ---- */

static int open_listing(int parent_fd, const char *name, DIR **ret_folder, struct failure *failure)
{
	AUTO_CLOSE int fd = strcmp(name, ".") == 0 ? openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) :
						     own_folder_open(parent_fd, name);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);

	if (fd == -EBADMSG)
		return fail(failure, fd, "folder segments/%s: " OWN_FILE_FLAW, name);
	if (folder == NULL)
		return fail_errno(failure, -errno, "folder segments/%s", name);
	(void)take_fd(&fd);
	*ret_folder = folder;
	return 0;
}

static bool is_segment_name(const char *name)
{
	return strlen(name) == strlen("000001ab.seg") && strspn(name, "0123456789abcdef") == 8 &&
	       strcmp(name + 8, ".seg") == 0;
}

static int add_files_of(int segments_fd, const char *name, uint64_t *bytes, struct failure *failure)
{
	AUTO_CLOSEDIR DIR *folder = NULL;
	const struct dirent *entry;
	struct stat status;
	int result = open_listing(segments_fd, name, &folder, failure);

	if (result < 0)
		return result;
	while (errno = 0, (entry = readdir(folder)) != NULL) {
		if (!is_segment_name(entry->d_name))
			continue;
		if (fstatat(dirfd(folder), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0)
			*bytes += (uint64_t)status.st_size;
		else if (errno != ENOENT) /* removed since it was listed */
			return fail_errno(failure, -errno, "file segments/%s/%s", name, entry->d_name);
	}
	return errno == 0 ? 0 : fail_errno(failure, -errno, "folder segments/%s", name);
}

static int measure_segments(int segments_fd, uint64_t *ret_bytes, struct failure *failure)
{
	AUTO_CLOSEDIR DIR *folder = NULL;
	const struct dirent *entry;
	uint64_t bytes = 0;
	int result = open_listing(segments_fd, ".", &folder, failure);

	if (result < 0)
		return result;
	while (errno = 0, (entry = readdir(folder)) != NULL) {
		if (strlen(entry->d_name) != 2 || strspn(entry->d_name, "0123456789abcdef") != 2)
			continue;
		result = add_files_of(segments_fd, entry->d_name, &bytes, failure);
		if (result < 0)
			return result;
	}
	if (errno != 0)
		return fail_errno(failure, -errno, "folder segments");
	*ret_bytes = bytes;
	return 0;
}

/* ---- short chunks ---- */

struct last_chunks {
	uint64_t *ids;
	size_t count, capacity;
	struct catalog_page *page;
};

static void last_chunks_free(struct last_chunks *last)
{
	free(last->ids);
	free(last->page);
}

/* generation 0: of live content. Nothing to note where the last chunk is a whole one. */
static int note_last_chunk(struct catalog *catalog, uint32_t chunk_bytes, int64_t disk, uint32_t generation,
			   uint64_t size_bytes, struct last_chunks *last, struct failure *failure)
{
	uint64_t index = size_bytes / chunk_bytes;
	const struct catalog_entry *entry;
	int result;

	if (size_bytes % chunk_bytes == 0)
		return 0;
	if (generation == 0)
		result = catalog_map_read(catalog, disk, index / CATALOG_PAGE_ENTRIES, last->page, failure);
	else
		result = catalog_map_read_at(catalog, disk, generation, index / CATALOG_PAGE_ENTRIES, last->page,
					     failure);
	entry = &last->page->entries[index % CATALOG_PAGE_ENTRIES];
	if (result < 0 || entry->kind != CATALOG_CHUNK ||
	    (last->count > 0 && last->ids[last->count - 1] == entry->chunk))
		return result;
	if (last->count == last->capacity) {
		size_t capacity = last->capacity * 2 + 64;
		uint64_t *grown = reallocarray(last->ids, capacity, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "store");
		last->ids = grown;
		last->capacity = capacity;
	}
	last->ids[last->count++] = entry->chunk;
	return 0;
}

static int note_last_chunks_of(struct catalog *catalog, uint32_t chunk_bytes, const struct catalog_disk *disk,
			       struct last_chunks *last, uint32_t *ret_images, struct failure *failure)
{
	AUTO_FREE struct catalog_image *images = NULL;
	size_t count = 0;
	int result = catalog_image_list(catalog, disk->id, CATALOG_ALIVE, &images, &count, failure);

	if (result == 0)
		result = note_last_chunk(catalog, chunk_bytes, disk->id, 0, disk->size_bytes, last, failure);
	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = note_last_chunk(catalog, chunk_bytes, disk->id, images[i].generation,
						 images[i].size_bytes, last, failure);
		catalog_image_release(&images[i]);
	}
	if (result == 0)
		*ret_images = (uint32_t)count;
	return result;
}

static int compare_ids(const void *a, const void *b)
{
	uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

	return first < second ? -1 : first > second;
}

/* By how much those chunks are shorter than whole ones. One that can't be read is a whole one: a check's business. */
static uint64_t sum_of_missing(struct local_store *local, struct catalog *catalog, struct last_chunks *last)
{
	uint64_t missing_bytes = 0;

	if (last->count > 0)
		qsort(last->ids, last->count, sizeof(*last->ids), compare_ids);
	for (size_t i = 0; i < last->count; i++) {
		struct catalog_location location;
		struct record_header header;

		if (i > 0 && last->ids[i] == last->ids[i - 1])
			continue;
		if (catalog_chunk_get(catalog, last->ids[i], &location, NULL) == 0 &&
		    segment_reader_header(local->reader, location.segment, location.off_bytes, &header, NULL) == 0 &&
		    header.plain_bytes < local->base.chunk_bytes)
			missing_bytes += local->base.chunk_bytes - header.plain_bytes;
	}
	return missing_bytes;
}

/* ---- all of it ---- */

struct disk_rows {
	struct catalog_disk *rows;
	size_t count;
};

static void disk_rows_free(struct disk_rows *disks)
{
	for (size_t i = 0; i < disks->count; i++)
		catalog_disk_release(&disks->rows[i]);
	free(disks->rows);
}

/* Sums that belong to one moment: chunks, and how long they are. */
static int sum_up(struct local_store *local, struct catalog *catalog, const struct disk_rows *disks,
		  struct store_usage *usage, struct failure *failure)
{
	uint32_t chunk_bytes = local->base.chunk_bytes;
	AUTO(last_chunks_free) struct last_chunks last = {.page = malloc(sizeof(*last.page))};
	struct catalog_usage sums;
	int result = last.page == NULL ? fail_errno(failure, -ENOMEM, "store") : 0;

	if (result == 0)
		result = catalog_usage(catalog, &sums, failure);
	for (size_t i = 0; result == 0 && i < disks->count; i++)
		result = note_last_chunks_of(catalog, chunk_bytes, &disks->rows[i], &last, &usage->disks[i].images,
					     failure);
	if (result < 0)
		return result;
	usage->live_bytes = sums.live_bytes;
	usage->plain_bytes = sums.live_chunks * chunk_bytes - sum_of_missing(local, catalog, &last);
	/* what isn't a record: the block at the head of each segment */
	if (sums.committed_bytes > sums.live_bytes + sums.segments * SEGMENT_BLOCK_BYTES)
		usage->dead_bytes = sums.committed_bytes - sums.live_bytes - sums.segments * SEGMENT_BLOCK_BYTES;
	return 0;
}

static int measure_disks(struct catalog *catalog, const struct disk_rows *disks, struct store_usage *usage,
			 struct failure *failure)
{
	for (size_t i = 0; i < disks->count; i++) {
		struct store_disk_usage *disk = &usage->disks[i];
		int result = catalog_disk_unique(catalog, disks->rows[i].id, &disk->unique_bytes, failure);

		if (result < 0)
			return result;
		(void)strcpy(disk->name, disks->rows[i].name);
		disk->size_bytes = disks->rows[i].size_bytes;
	}
	return 0;
}

int local_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(store_usage_free) struct store_usage usage = {.disks = NULL};
	AUTO(disk_rows_free) struct disk_rows disks = {.rows = NULL};
	POOLED_READER(reader, local);
	bool ours;
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = catalog_snapshot_begin(reader.catalog, &ours, failure);
	if (result < 0)
		return result;
	result = catalog_disk_list(reader.catalog, CATALOG_ALIVE, &disks.rows, &disks.count, failure);
	if (result == 0) {
		usage.disks = calloc(disks.count + 1, sizeof(*usage.disks));
		usage.disk_count = disks.count;
		if (usage.disks == NULL)
			result = fail_errno(failure, -ENOMEM, "store");
	}
	if (result == 0)
		result = sum_up(local, reader.catalog, &disks, &usage, failure);
	catalog_snapshot_end(reader.catalog, ours);
	/* a moment of its own for each disk: the catalog's log can start over in between */
	if (result == 0)
		result = measure_disks(reader.catalog, &disks, &usage, failure);
	if (result == 0)
		result = catalog_size(reader.catalog, &usage.catalog_bytes, failure);
	if (result == 0)
		result = measure_segments(local->segments_fd, &usage.segment_bytes, failure);
	if (result < 0)
		return result;
	*ret_usage = usage;
	usage = (struct store_usage){.disks = NULL};
	return 0;
}
