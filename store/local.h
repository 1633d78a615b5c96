/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the local store (a folder on this host) share.
 *
 * Threads and locks, in the order in which they're taken:
 *   write_lock    the writing catalog handle, which segment is appended to, its syncs; held over a whole commit
 *   append_lock   appending to that segment, so that chunks are put next to a commit; with write_lock: changing which it is. Short
 *   pending_lock  chunks put and not committed yet; short
 *   pool_lock     idle catalog handles for reading; short
 *   places_lock   of a view: where chunks were found; short
 * None is held while a caller's code runs. Between processes: leases (lease.h), then the catalog's lock (catalog.h), which is taken inside write_lock.
 */
#ifndef WHERRY_STORE_LOCAL_H
#define WHERRY_STORE_LOCAL_H

#include <pthread.h>

#include "catalog/catalog.h"
#include "common/bytes.h"
#include "store/disk_log.h"
#include "store/lease.h"
#include "store/segment.h"
#include "store/store_ops.h"

/* A chunk that is in a segment, not in the catalog. */
struct pending_chunk {
	uint8_t digest[DIGEST_BYTES];
	uint64_t serial;
	uint32_t segment;
	uint32_t off_bytes;
	uint32_t stored_bytes;
};

/* What find and put give out for such a chunk: this bit and its serial. */
#define PROVISIONAL_CHUNK ((uint64_t)1 << 63)

struct pending {
	pthread_mutex_t lock;
	struct pending_chunk *chunks; /* in the order of their serials, from first_serial on, without gaps */
	size_t count, capacity;
	uint64_t first_serial;
	uint32_t *index; /* open addressing by digest: position in chunks + 1, 0 free; twice as large as chunks at least */
	size_t index_size;
};

enum { POOL_MOST = 16, FULL_MOST = 8 };

struct local_store {
	struct store base;
	struct notices notices;
	bool read_only;
	uint8_t id[STORE_ID_BYTES];
	int folder_fd, segments_fd, locks_fd;
	_Atomic uint64_t database; /* which one the handles for reading are of; 0: none yet */
	struct segment_reader *reader;

	pthread_mutex_t write_lock;
	pthread_mutex_t append_lock;
	struct catalog *writer; /* NULL when read_only */
	struct segment_writer *segment; /* changed with both locks, read with either */
	uint32_t left_segment;	/* not to be appended to again: clean-up is about to seal it */
	bool segment_is_dirty;	/* under append_lock: appended to since its last sync was begun */
	uint64_t entries_off_bytes; /* under append_lock: where the log entries of the transaction under way begin in it; 0: there are none */
	bool entries_are_followed;  /* the same: by chunks that others have put meanwhile */
	/* Full and durable, and the catalog doesn't know yet: their writers stay open, since the lock on the file is what keeps other processes from cutting off
	 * what the catalog has not heard of. */
	struct segment_writer *full[FULL_MOST];
	size_t full_count;
	struct store_scratch *log_scratch;

	struct pending pending;

	pthread_mutex_t pool_lock;
	struct catalog *pool[POOL_MOST];
	size_t pool_count;
};

struct local_view {
	struct store_view base;
	int64_t disk;
	uint32_t generation; /* of the image; 0: live */
	bool has_base;	     /* something may show through from an image */
	char *lease_name;
	struct lease lease;
	pthread_mutex_t places_lock;
	struct local_places *places; /* under it: where chunks were found; NULL: none remembered */
};

static inline struct local_store *local_of(struct store *store)
{
	return (struct local_store *)store;
}

static inline struct local_view *local_view_of(struct store_view *view)
{
	return (struct local_view *)view;
}

void local_places_free(struct local_places *places); /* local_view.c; NULL is fine */

static inline void scratch_free_at(struct store_scratch **scratch)
{
	store_scratch_free(*scratch);
}

/* ---- local.c ---- */

/* A store without its catalog; closed like any other. */
int local_open_bare(const char *path, struct local_store **ret_local, struct failure *failure);

/* A catalog handle for reading, for this thread until given back. */
int local_reader_take(struct local_store *local, struct catalog **ret_catalog, struct failure *failure);
void local_reader_give(struct local_store *local, struct catalog *catalog); /* NULL is fine */

struct pooled_reader {
	struct local_store *local;
	struct catalog *catalog;
};
void pooled_reader_done(struct pooled_reader *reader);
#define POOLED_READER(name, store_) AUTO(pooled_reader_done) struct pooled_reader name = { .local = (store_) }
int pooled_reader_open(struct pooled_reader *reader, struct failure *failure);

/* Looks a disk up; -ENOENT with a message that names the nearest. */
int local_find_disk(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk, struct failure *failure);
/* The same for an image; the message says which there are. */
int local_find_image(struct catalog *catalog, const struct catalog_disk *disk, uint32_t number,
		     struct catalog_image *ret_image, struct failure *failure);
char *local_image_numbers(struct catalog *catalog, int64_t disk); /* "1-4, 7", "none"; NULL: no memory */

/* ---- local_commit.c: transactions with log entries; write_lock held by the caller ---- */

/* Makes sure there is a segment to append to, then begins the catalog's transaction. */
int local_begin_locked(struct local_store *local, struct failure *failure);
/* Appends an entry to the disk's log: sets sequence, predecessor, uuid and time, and the disk's log_sequence and log_head (not its row). */
int local_log_locked(struct local_store *local, struct catalog_disk *disk, struct log_entry *entry,
		     struct failure *failure);
/* Makes appended records durable (R2), notes lengths of segments, commits. On failure everything is rolled back. */
int local_end_locked(struct local_store *local, struct failure *failure);
/* Appends a record to the current segment, for the transaction to come; not durable. */
int local_append_locked(struct local_store *local, const struct record_header *header, const void *stored,
			uint32_t *ret_segment, uint32_t *ret_off_bytes, struct failure *failure);
/* Makes what was appended durable while nobody has to wait for the catalog. */
int local_sync_locked(struct local_store *local, struct failure *failure);
/* Appends to another segment from now on, unless something is pending in this one. */
void local_leave_segment_locked(struct local_store *local, uint32_t number);
void local_abandon_locked(struct local_store *local);
void local_close_full_locked(struct local_store *local);

/* The committed chunk of that digest, 0 for none. */
int local_find_committed(struct local_store *local, struct catalog *catalog, const uint8_t digest[DIGEST_BYTES],
			 store_chunk *ret_chunk, struct failure *failure);
/* Changes to the map in the order of the disk, and disk->changed_bytes and content_round (not the disk's row). Kinds are taken as they are. */
int local_update_map_locked(struct local_store *local, struct catalog_disk *disk, const struct catalog_change *changes,
			       size_t count, struct failure *failure);

int local_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count,
		      store_chunk *ret_chunks, struct failure *failure);
int local_put_chunk(struct store_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		    uint64_t *ret_new_bytes, struct failure *failure);
int local_commit(struct store_view *view, const struct store_change *changes, size_t count,
		 const struct store_round_position *round, struct failure *failure);

/* ---- local_bases.c: clones ---- */

/* The same, for whatever lies below: what becomes nothing or zeros reads as zeros from then on, over a piece of an image too. */
int local_apply_changes_locked(struct local_store *local, struct catalog_disk *disk, const struct catalog_change *changes,
			       size_t count, struct failure *failure);
/* The pieces of a disk whose size is about to be this (its row still says otherwise). */
int local_clip_base_locked(struct local_store *local, const struct catalog_disk *disk, uint64_t size_bytes,
			   struct failure *failure);
int local_clone_disk(struct store *store, const struct store_reference *image, const char *name, struct failure *failure);
/*
 * Who reads through an image: "clone web02", "clones web02, web03 and 4 more"; NULL: nobody. Number 0: through the first image of the disk that another disk
 * reads through, whose number is in *ret_number (which may be NULL).
 */
int local_clone_names(struct catalog *catalog, int64_t disk, uint32_t number, uint32_t *ret_number, char **ret_names,
		      struct failure *failure);
int local_parent_text(struct catalog *catalog, int64_t disk, char **ret_text, struct failure *failure); /* "web01@3"; NULL: none */

/* ---- local_pending.c ---- */

int pending_init(struct pending *pending);
void pending_destroy(struct pending *pending);
/* 0: not there. */
store_chunk pending_find(struct pending *pending, const uint8_t digest[DIGEST_BYTES]);
int pending_add(struct pending *pending, const struct pending_chunk *chunk, store_chunk *ret_chunk);
/* A copy of those there are, which the caller frees: others may come meanwhile. NULL: no memory. */
struct pending_chunk *pending_copy(struct pending *pending, uint64_t *ret_first_serial, size_t *ret_count);
/* The first `count` of them are in the catalog now. */
void pending_remove(struct pending *pending, size_t count);
void pending_clear(struct pending *pending); /* all are gone */

/* ---- local_view.c ---- */

int local_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		    const char *doing, struct store_view **ret_view, struct failure *failure);
void local_view_close(struct store_view *view);
int local_view_map(struct store_view *view, uint64_t page, struct store_map_page *ret_map, struct failure *failure);
int local_view_next_page(struct store_view *view, uint64_t from_page, uint64_t *ret_page, struct failure *failure);
int local_view_read_chunk(struct store_view *view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			  uint32_t plain_bytes, bool deep, struct failure *failure);
void local_view_prefetch(struct store_view *view, const store_chunk *chunks, size_t count);
int local_resize_disk(struct store_view *view, uint64_t size_bytes, struct failure *failure);

/* ---- local_disks.c ---- */

int local_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		     struct failure *failure);
int local_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure);
/* A new disk's row and the entry that makes it; name, size and sector size are set. The caller updates the row (log_sequence, log_head). */
int local_make_disk_locked(struct local_store *local, struct catalog_disk *disk, struct failure *failure);
int local_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure);
int local_set_policy(struct store *store, const char *name, const struct store_policy *policy,
		     struct failure *failure);

/* ---- local_journal.c ---- */

int local_disk_files(struct store *store, const char *name, bool make, struct store_disk_files *ret_files,
		     struct failure *failure);
/* Has the disk ever been opened for writing, and not been removed since? */
int local_has_journal(struct local_store *local, const struct catalog_disk *disk, bool *ret_has, struct failure *failure);
/* Whether the disk's journal, if it has one, can be replayed: -EBADMSG or -EIO, and why not. Also while somebody has it open. */
int local_examine_journal(struct local_store *local, const struct catalog_disk *disk, struct failure *failure);
/* Of a disk that is being removed. */
int local_remove_journal(struct local_store *local, const struct catalog_disk *disk, struct failure *failure);

/* ---- local_usage.c ---- */

int local_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure);

/* ---- local_check.c ---- */

int local_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
		struct failure *failure);

/* ---- local_reserve.c: never fail, for what they do is a help ---- */

void local_reserve_keep(int folder_fd);		   /* makes the reserve if it is missing and there is plenty of room */
void local_reserve_use(struct local_store *local); /* gives its room up if there is little else */
uint64_t local_free_bytes(const struct local_store *local); /* of the file system, for this user; UINT64_MAX: unknown */

/* ---- local_clean.c ---- */

int local_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
		struct failure *failure);

/* ---- local_lost.c ---- */

/* Sets `damaged` of those in which something is marked as lost; `images` are those of the disk's rows. */
int local_note_damaged_images(struct catalog *catalog, int64_t disk, uint32_t chunk_bytes, const struct catalog_image *rows,
			      struct store_image *images, size_t count, struct failure *failure);

/* ---- local_images.c ---- */

int local_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		      struct failure *failure);
int local_create_image(struct store_view *view, const struct store_image_params *params, uint32_t *ret_number,
		       struct failure *failure);
int local_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run,
		       uint64_t *ret_freed_bytes, struct failure *failure);
int local_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure);
int local_describe_image(struct store *store, const char *disk, uint32_t number, struct store_image **ret_image,
			 struct failure *failure);
int local_brief_images(struct store *store, const char *disk, struct store_image_brief **ret_list, size_t *ret_count,
		       struct failure *failure);
int local_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		      struct failure *failure);
int local_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		 struct store_retention *ret_retention, struct failure *failure);
char *local_image_lease_name(int64_t disk, uint32_t number);
char *local_disk_lease_name(int64_t disk);
/* Finish deletions that a process began and did not end: of images; of disks and images. write_lock not held. */
int local_sweep_images(struct local_store *local, struct failure *failure);
int local_finish_deletions(struct local_store *local, struct failure *failure);

/* ---- local_rounds.c ---- */

int local_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		      struct failure *failure);
int local_begin_round(struct store_view *view, const struct store_round_params *params,
		      struct store_round_begun *ret_begun, struct failure *failure);
int local_note_round(struct store_view *view, uint32_t number, const char *details, struct failure *failure);
int local_finish_round(struct store_view *view, uint32_t number, enum store_round_state state, const char *error,
		       const struct store_round_counts *counts, struct failure *failure);
int local_round_throttle(struct store_view *view, uint32_t number, struct store_throttle *ret_throttle,
			 struct failure *failure);
/* Counts between their two forms. */
void local_counts_to_row(const struct store_round_counts *counts, struct catalog_round *row);
void local_counts_from_row(const struct catalog_round *row, struct store_round_counts *ret_counts);

#endif
