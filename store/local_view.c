/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Views of a local store: a lease, and reading what the map says.
 *
 * A chunk is as long as its record says; the place it stands in may be shorter (the last chunk of a disk that was not a multiple of the chunk size and has grown: the
 * rest reads as zeros) but never shows more than was stored there: shrinking a disk stores its last chunk anew.
 *
 * What is returned was checked: header and payload checksums and the length by the segment reader, the record's digest against the tag in the catalog (a record
 * that is intact and not the one meant: a segment swapped with another), the decompressed length by the codec, and with `deep` the SHA-256.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/local.h"

_Static_assert((int)STORE_MAP_PAGE_ENTRIES == CATALOG_PAGE_ENTRIES, "a page of the one is a page of the other");
_Static_assert((int)STORE_MAP_CHUNK == CATALOG_CHUNK && (int)STORE_MAP_ZERO == CATALOG_ZERO, "kinds agree");
_Static_assert((int)STORE_MAP_CHUNK == LOG_RUN_CHUNKS && (int)STORE_MAP_ZERO == LOG_RUN_ZERO, "kinds agree");

char *local_disk_lease_name(int64_t disk)
{
	char *name = NULL;

	return asprintf(&name, "disk-%lld", (long long)disk) < 0 ? NULL : name;
}

char *local_image_lease_name(int64_t disk, uint32_t number)
{
	char *name = NULL;

	return asprintf(&name, "image-%lld-%u", (long long)disk, number) < 0 ? NULL : name;
}

/* ---- opening ---- */

static void view_free(struct local_view *view)
{
	if (view == NULL)
		return;
	lease_release(&view->lease);
	free(view->lease_name);
	free(view->base.name);
	local_places_free(view->places);
	(void)pthread_mutex_destroy(&view->places_lock); /* nobody reads any more */
	explicit_bzero(view->base.fingerprint_key, sizeof(view->base.fingerprint_key));
	free(view);
}

static void view_free_at(struct local_view **view)
{
	view_free(*view);
}

static int take_disk_lease(struct local_store *local, struct local_view *view, const char *name, const char *doing,
			   struct failure *failure)
{
	AUTO_FREE char *us = lease_holder_text(doing);
	AUTO_FREE char *holder = NULL;
	int result;

	view->lease_name = local_disk_lease_name(view->disk);
	if (view->lease_name == NULL || us == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", name);
	result = lease_take(local->locks_fd, view->lease_name, LEASE_EXCLUSIVE, us, &view->lease, &holder, failure);
	if (result == -EWOULDBLOCK)
		return fail(failure, -EBUSY, "disk %s: locked by %s; wait for it to finish, or stop it", name,
			    holder != NULL ? holder : "another process");
	return result;
}

static int take_image_lease(struct local_store *local, struct local_view *view, const char *doing,
			    struct failure *failure)
{
	AUTO_FREE char *us = lease_holder_text(doing);
	int result;

	view->lease_name = local_image_lease_name(view->disk, (uint32_t)view->generation);
	if (view->lease_name == NULL || us == NULL)
		return fail_errno(failure, -ENOMEM, "image %s", view->base.name);
	result = lease_take(local->locks_fd, view->lease_name, LEASE_SHARED, us, &view->lease, NULL, failure);
	if (result == -EWOULDBLOCK)
		return fail(failure, -EBUSY, "image %s: it is being deleted", view->base.name);
	return result;
}

static int open_live(struct local_store *local, struct catalog *catalog, struct catalog_disk *disk,
		     const char *doing, struct local_view *view, struct failure *failure)
{
	int result;

	view->base.name = strdup(disk->name);
	if (view->base.name == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	result = take_disk_lease(local, view, disk->name, doing, failure);
	if (result < 0)
		return result;
	/* it may have been removed, and another been made, before the lease was ours; what was read then may have changed */
	catalog_disk_release(disk);
	result = catalog_disk_get(catalog, view->disk, disk, failure);
	if (result == -ENOENT || (result == 0 && disk->state != CATALOG_ALIVE))
		return fail(failure, -ENOENT, "disk %s: it was removed just now", view->base.name);
	if (result == 0)
		view->base.size_bytes = disk->size_bytes;
	return result;
}

static int open_image(struct local_store *local, struct catalog *catalog, struct catalog_disk *disk, uint32_t number,
		      const char *doing, struct local_view *view, struct failure *failure)
{
	AUTO(catalog_image_release) struct catalog_image image = { .number = 0 };
	int result;

	if (asprintf(&view->base.name, "%s@%u", disk->name, number) < 0) {
		view->base.name = NULL;
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	}
	view->generation = number; /* names the lease */
	result = take_image_lease(local, view, doing, failure);
	/* disk and image are looked up under the lease: from here on neither can be deleted */
	if (result < 0)
		return result;
	catalog_disk_release(disk);
	result = catalog_disk_get(catalog, view->disk, disk, failure);
	if (result == -ENOENT || (result == 0 && disk->state != CATALOG_ALIVE))
		return fail(failure, -ENOENT, "image %s: its disk was removed just now", view->base.name);
	if (result == 0)
		result = local_find_image(catalog, disk, number, &image, failure);
	if (result < 0)
		return result;
	view->generation = image.generation;
	view->base.size_bytes = image.size_bytes;
	return 0;
}

int local_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		    const char *doing, struct store_view **ret_view, struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(view_free_at) struct local_view *view = calloc(1, sizeof(*view));
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	POOLED_READER(reader, local);
	struct store_image_brief brief = { .number = 0 };
	int result;

	if (view == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", reference->disk);
	if (mode == VIEW_WRITE && local->read_only)
		return fail(failure, -EROFS, "disk %s: the store is opened for reading only", reference->disk);
	view->base.store = store;
	view->base.mode = mode;
	view->lease = LEASE_NONE;
	(void)pthread_mutex_init(&view->places_lock, NULL); /* doesn't fail on Linux with default attributes */
	result = pooled_reader_open(&reader, failure);
	if (result == 0)
		result = local_find_disk(reader.catalog, reference->disk, &disk, failure);
	if (result == 0 && reference->which != STORE_LIVE)
		result = local_brief_image(store, reference, &brief, failure);
	if (result < 0)
		return result;
	view->disk = disk.id;
	if (reference->which == STORE_LIVE)
		result = open_live(local, reader.catalog, &disk, doing, view, failure);
	else
		result = open_image(local, reader.catalog, &disk, brief.number, doing, view, failure);
	/* with the lease in our hands: numbers of disks, and so the names of leases, are those of one catalog */
	if (result == 0)
		result = catalog_check_current(reader.catalog, failure);
	/* an image keeps its pieces; of live content pieces may go while we have it, and none come */
	if (result == 0)
		result = catalog_base_any(reader.catalog, view->disk, view->generation, &view->has_base, failure);
	if (result < 0)
		return result;
	view->base.sector_bytes = disk.sector_bytes;
	memcpy(view->base.fingerprint_key, disk.fingerprint_key, FINGERPRINT_KEY_BYTES);
	*ret_view = &take_ptr(view)->base;
	return 0;
}

void local_view_close(struct store_view *view)
{
	view_free(local_view_of(view));
}

/* ---- reading ---- */

/* A round takes content whose fingerprint is right for what the store has. What is lost it has not. */
static int forget_lost_fingerprints(struct catalog *catalog, struct catalog_page *page, struct failure *failure)
{
	bool any_lost = false;
	int result = catalog_lost_any(catalog, &any_lost, failure);

	for (unsigned i = 0; result == 0 && any_lost && i < CATALOG_PAGE_ENTRIES; i++) {
		bool is_lost = false;

		if (page->entries[i].kind != CATALOG_CHUNK || !page->entries[i].has_fingerprint)
			continue;
		result = catalog_lost_has(catalog, page->entries[i].chunk, &is_lost, failure);
		if (result == 0 && is_lost)
			page->entries[i].has_fingerprint = false;
	}
	return result;
}

int local_view_map(struct store_view *store_view, uint64_t page, struct store_map_page *ret_map, struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	struct local_store *local = local_of(store_view->store);
	AUTO_FREE struct catalog_page *content = malloc(sizeof(*content));
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (content == NULL)
		return fail_errno(failure, -ENOMEM, "%s", store_view->name);
	if (result == 0 && view->has_base)
		result = catalog_content_read(reader.catalog, view->disk, view->generation, local->base.chunk_bytes, page, content,
					      failure);
	else if (result == 0 && view->generation == 0)
		result = catalog_map_read(reader.catalog, view->disk, page, content, failure);
	else if (result == 0)
		result = catalog_map_read_at(reader.catalog, view->disk, view->generation, page, content, failure);
	if (result == 0)
		result = forget_lost_fingerprints(reader.catalog, content, failure);
	if (result < 0)
		return result;
	for (unsigned i = 0; i < STORE_MAP_PAGE_ENTRIES; i++) {
		const struct catalog_entry *from = &content->entries[i];
		struct store_map_entry *to = &ret_map->entries[i];

		*to = (struct store_map_entry){ .chunk = from->chunk,
						.since_generation = from->since,
						.kind = from->kind,
						.has_fingerprint = from->has_fingerprint };
		memcpy(to->fingerprint, from->fingerprint, FINGERPRINT_BYTES);
	}
	return 0;
}

int local_view_next_page(struct store_view *store_view, uint64_t from_page, uint64_t *ret_page, struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	POOLED_READER(reader, local_of(store_view->store));
	int result = pooled_reader_open(&reader, failure);

	if (result < 0)
		return result;
	if (view->has_base)
		return catalog_content_next(reader.catalog, view->disk, view->generation, store_view->store->chunk_bytes, from_page,
					    ret_page, failure);
	return catalog_map_next(reader.catalog, view->disk, view->generation, from_page, ret_page, failure);
}

/*
 * Places of chunks, as readers of this view have met them. A look-up costs an SQLite transaction, for only that says
 * whether what is remembered still holds (6 µs, and readers hold each other up; a chunk is decompressed in 30). But places
 * hold by themselves: ids and segment numbers are never used again, and a record stays where it is until its segment is
 * removed. So a remembered place is tried, and whatever goes wrong with it leads to a look-up. While anything is lost nothing
 * is remembered: what an earlier check found damaged must stay so without a second read. They are the view's: nobody rebuilds
 * the catalog, after which ids may mean something else, while there is a lease.
 */
enum { PLACE_PAGES = 4096 }; /* 4 MiB of content each, 6 MiB of memory for all */

struct place_page {
	uint64_t number;
	struct catalog_location chunks[CATALOG_CHUNK_PAGE_ENTRIES];
};

struct local_places {
	struct place_page *pages[PLACE_PAGES]; /* owned */
};

void local_places_free(struct local_places *places)
{
	for (unsigned i = 0; places != NULL && i < PLACE_PAGES; i++)
		free(places->pages[i]);
	free(places);
}

static bool remembered_place(struct local_view *view, store_chunk chunk, struct catalog_location *ret_place)
{
	uint64_t number = chunk / CATALOG_CHUNK_PAGE_ENTRIES;
	const struct place_page *page;
	WITH_LOCK(&view->places_lock);

	page = view->places == NULL ? NULL : view->places->pages[number % PLACE_PAGES];
	if (page == NULL || page->number != number)
		return false;
	*ret_place = page->chunks[chunk % CATALOG_CHUNK_PAGE_ENTRIES];
	return ret_place->stored_bytes != 0;
}

/* Best effort: without memory, or with anything lost, they are not remembered. */
static void remember_places(struct local_view *view, struct catalog *catalog, store_chunk chunk)
{
	AUTO_FREE struct place_page *page = malloc(sizeof(*page));
	struct place_page **at;
	bool any_lost = true;

	(void)catalog_lost_any(catalog, &any_lost, NULL);
	if (page == NULL || (!any_lost && catalog_chunk_get_page(catalog, chunk, page->chunks, NULL) < 0))
		return;
	page->number = chunk / CATALOG_CHUNK_PAGE_ENTRIES;
	WITH_LOCK(&view->places_lock);
	if (any_lost) {
		local_places_free(take_ptr(view->places));
		return;
	}
	if (view->places == NULL)
		view->places = calloc(1, sizeof(*view->places));
	if (view->places == NULL)
		return;
	at = &view->places->pages[page->number % PLACE_PAGES];
	free(*at);
	*at = take_ptr(page);
}

static int locate(struct local_view *view, store_chunk chunk, struct catalog_location *ret_location, struct failure *failure)
{
	POOLED_READER(reader, local_of(view->base.store));
	bool is_lost = false;
	int result = pooled_reader_open(&reader, failure);

	if (result < 0)
		return result;
	result = catalog_chunk_get(reader.catalog, chunk, ret_location, failure);
	if (result == -ENOENT)
		return fail(failure, -EBADMSG, "chunk %llu: the catalog doesn't know where it is", (unsigned long long)chunk);
	if (result == 0)
		result = catalog_lost_has(reader.catalog, chunk, &is_lost, failure);
	if (result < 0)
		return result;
	if (!is_lost) {
		remember_places(view, reader.catalog, chunk);
		return 0;
	}
	if (ret_location->segment == CATALOG_NO_SEGMENT)
		return fail(failure, -EBADMSG, "chunk %llu: its content is lost, no record of it is left", (unsigned long long)chunk);
	return fail(failure, -EBADMSG, "segment %08x, offset %u: an earlier check found this record damaged", ret_location->segment,
		    ret_location->off_bytes);
}

static int check_digest(struct store_scratch *scratch, const struct record_header *header, const void *plain,
			const struct catalog_location *location, struct failure *failure)
{
	uint8_t digest[DIGEST_BYTES];
	int result = hasher_digest(scratch->hasher, plain, header->plain_bytes, digest, failure);

	if (result == 0 && memcmp(digest, header->digest, DIGEST_BYTES) != 0)
		return fail(failure, -EBADMSG, "segment %08x, offset %u: content and SHA-256 differ", location->segment,
			    location->off_bytes);
	return result;
}

/* Decodes into `plain` if it has the record's length, else by way of a buffer of its own. */
static int decode(struct store_scratch *scratch, const struct record_header *header, const struct catalog_location *location,
		  void *plain, uint32_t plain_bytes, bool deep, struct failure *failure)
{
	AUTO_FREE uint8_t *other = NULL;
	void *decoded = plain;
	int result;

	if (header->plain_bytes != plain_bytes)
		decoded = other = malloc(header->plain_bytes);
	if (decoded == NULL)
		return fail_errno(failure, -ENOMEM, "chunk");
	result = codec_decode_checked(scratch->codec, header, scratch->stored, decoded, failure); /* the reader has compared it */
	if (result == 0 && deep)
		result = check_digest(scratch, header, decoded, location, failure);
	if (result < 0 || other == NULL)
		return result;
	uint32_t common = header->plain_bytes < plain_bytes ? header->plain_bytes : plain_bytes;
	memcpy(plain, other, common);
	memset((uint8_t *)plain + common, 0, plain_bytes - common);
	return 0;
}

static int read_record_at(struct local_store *local, const struct catalog_location *location,
			  struct record_header *ret_header, void *stored, struct failure *failure)
{
	int result = segment_reader_read(local->reader, location->segment, location->off_bytes, location->stored_bytes,
					 ret_header, stored, failure);

	if (result < 0)
		return result;
	if (ret_header->type != RECORD_CHUNK || catalog_tag(ret_header->digest) != location->tag ||
	    ret_header->plain_bytes > local->base.chunk_bytes)
		return fail(failure, -EBADMSG, "segment %08x, offset %u: another record than the one expected", location->segment,
			    location->off_bytes);
	return 0;
}

/*
 * The record of a chunk. Clean-up may take it elsewhere between the look at its place and the read, and then removes the file. Numbers of segments
 * are never used again, so that nothing else can be met there; whoever finds the file gone looks again.
 */
static int read_record(struct local_view *view, struct store_scratch *scratch, store_chunk chunk,
		       struct catalog_location *ret_location, struct record_header *ret_header, struct failure *failure)
{
	struct local_store *local = local_of(view->base.store);
	struct catalog_location location = { .segment = 0 };

	if (remembered_place(view, chunk, ret_location) &&
	    read_record_at(local, ret_location, ret_header, scratch->stored, NULL) == 0)
		return 0;
	for (;;) {
		uint32_t segment = location.segment;
		struct failure why = { .code = 0 };
		int result = locate(view, chunk, &location, failure);

		if (result < 0)
			return result;
		result = read_record_at(local, &location, ret_header, scratch->stored, &why);
		*ret_location = location;
		if (result == 0)
			return 0;
		if (result != -ENOENT || location.segment == segment)
			return fail_from(failure, &why);
	}
}

int local_view_read_chunk(struct store_view *view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			  uint32_t plain_bytes, bool deep, struct failure *failure)
{
	struct catalog_location location;
	struct record_header header;
	int result;

	if ((chunk & PROVISIONAL_CHUNK) != 0 || chunk == 0)
		return fail(failure, -EINVAL, "chunk %llx: not committed", (unsigned long long)chunk);
	result = read_record(local_view_of(view), scratch, chunk, &location, &header, failure);
	if (result < 0)
		return result;
	return decode(scratch, &header, &location, plain, plain_bytes, deep, failure);
}

void local_view_prefetch(struct store_view *view, const store_chunk *chunks, size_t count)
{
	struct local_store *local = local_of(view->store);
	POOLED_READER(reader, local);
	struct catalog_location run = { .segment = 0 };
	uint64_t run_bytes = 0;

	if (pooled_reader_open(&reader, NULL) < 0)
		return;
	for (size_t i = 0; i < count; i++) {
		struct catalog_location at;

		if (chunks[i] == 0 || (chunks[i] & PROVISIONAL_CHUNK) != 0 ||
		    catalog_chunk_get(reader.catalog, chunks[i], &at, NULL) < 0 || at.segment == CATALOG_NO_SEGMENT)
			continue;
		if (at.segment == run.segment && at.off_bytes == run.off_bytes + run_bytes) {
			run_bytes += record_total_bytes(at.stored_bytes);
			continue;
		}
		if (run_bytes > 0)
			segment_reader_prefetch(local->reader, run.segment, run.off_bytes, run_bytes);
		run = at;
		run_bytes = record_total_bytes(at.stored_bytes);
	}
	if (run_bytes > 0)
		segment_reader_prefetch(local->reader, run.segment, run.off_bytes, run_bytes);
}

/* ---- size ---- */

/*
 * Everything from chunk `first` on becomes nothing, in commits of bounded size. Of a clone without gaps between them: what shows through in places where
 * the disk has nothing of its own goes with the pieces.
 */
static int drop_from(struct store_view *view, uint64_t first, struct failure *failure)
{
	enum { PAGES_A_COMMIT = 256 };
	uint64_t chunks = (view->size_bytes - 1) / view->store->chunk_bytes + 1;

	for (;;) {
		uint64_t page, start, end;
		struct store_change change = { .kind = STORE_MAP_NOTHING };
		int result = local_view_next_page(view, first / STORE_MAP_PAGE_ENTRIES, &page, failure);

		if (result < 0 || page == UINT64_MAX || first >= chunks)
			return result;
		start = page * STORE_MAP_PAGE_ENTRIES;
		change.first_chunk = start < first || local_view_of(view)->has_base ? first : start;
		end = (page + PAGES_A_COMMIT) * STORE_MAP_PAGE_ENTRIES;
		change.chunk_count = (end < chunks ? end : chunks) - change.first_chunk; /* as a rebuild insists on */
		result = local_commit(view, &change, 1, NULL, failure);
		if (result < 0)
			return result;
		first = change.first_chunk + change.chunk_count;
	}
}

/* The last chunk of the smaller disk is stored anew, so that growing again doesn't show what was cut off. */
static int shorten_last_chunk(struct store_view *view, uint64_t size_bytes, struct failure *failure)
{
	uint32_t chunk_bytes = view->store->chunk_bytes;
	uint32_t last_bytes = (uint32_t)(size_bytes % chunk_bytes);
	uint64_t index = size_bytes / chunk_bytes;
	struct local_store *local = local_of(view->store);
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	AUTO_FREE uint8_t *plain = malloc(chunk_bytes);
	AUTO(scratch_free_at) struct store_scratch *scratch = NULL;
	struct store_change change = { .first_chunk = index, .chunk_count = 1, .kind = STORE_MAP_CHUNK };
	const struct store_map_entry *entry;
	struct store_encoded encoded;
	uint64_t new_bytes;
	int result;

	if (map == NULL || plain == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", view->name);
	result = local_view_map(view, index / STORE_MAP_PAGE_ENTRIES, map, failure);
	entry = &map->entries[index % STORE_MAP_PAGE_ENTRIES];
	if (result < 0 || last_bytes == 0 || entry->kind != STORE_MAP_CHUNK)
		return result;
	result = store_scratch_new(&scratch, failure);
	if (result == 0)
		result = local_view_read_chunk(view, scratch, entry->chunk, plain, last_bytes, false, failure);
	if (result == 0 && bytes_are_zero(plain, last_bytes)) {
		change.kind = STORE_MAP_NOTHING;
		return local_commit(view, &change, 1, NULL, failure);
	}
	if (result == 0)
		result = hasher_digest(scratch->hasher, plain, last_bytes, change.digest, failure);
	if (result == 0)
		result = local_find_chunks(&local->base, (const uint8_t(*)[DIGEST_BYTES]) & change.digest, 1, &change.chunk,
					   failure);
	if (result == 0 && change.chunk == 0) {
		result = store_encode_chunk(scratch, CODEC_LEVEL_DEFAULT, change.digest, plain, last_bytes, &encoded, failure);
		if (result == 0)
			result = local_put_chunk(view, &encoded, &change.chunk, &new_bytes, failure);
	}
	if (result == 0)
		result = hasher_fingerprint(scratch->hasher, view->fingerprint_key, plain, last_bytes, change.fingerprint,
					    failure);
	return result == 0 ? local_commit(view, &change, 1, NULL, failure) : result;
}

int local_resize_disk(struct store_view *store_view, uint64_t size_bytes, struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	struct local_store *local = local_of(store_view->store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	struct log_entry entry = { .op = LOG_RESIZE, .size_bytes = size_bytes };
	uint32_t chunk_bytes = local->base.chunk_bytes;
	int result = 0;

	if (size_bytes < store_view->size_bytes) {
		result = drop_from(store_view, size_bytes / chunk_bytes + (size_bytes % chunk_bytes != 0), failure);
		if (result == 0)
			result = shorten_last_chunk(store_view, size_bytes, failure);
	}
	if (result < 0)
		return result;
	WITH_LOCK(&local->write_lock);
	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = catalog_disk_get(local->writer, view->disk, &disk, failure);
	if (result == 0)
		result = local_log_locked(local, &disk, &entry, failure);
	if (result == 0)
		result = local_clip_base_locked(local, &disk, size_bytes, failure);
	disk.size_bytes = size_bytes;
	disk.content_round = 0; /* until a round has read all of it */
	if (result == 0)
		result = catalog_disk_update(local->writer, &disk, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	result = local_end_locked(local, failure);
	if (result == 0)
		store_view->size_bytes = size_bytes;
	return result;
}
