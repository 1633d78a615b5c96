/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fake store is made of. For the files store_fake*.c only.
 *
 * Everything is guarded by fake->mutex. It is held where functions declared here are called, but for those of the table
 * (fake_view_open() ...), which take it themselves.
 */
#ifndef WHERRY_STORE_STORE_FAKE_INTERNAL_H
#define WHERRY_STORE_STORE_FAKE_INTERNAL_H

#include <pthread.h>

#include "store/record.h"
#include "store/store_fake.h"
#include "store/store_ops.h"

/* ---- content: store_fake_content.c ---- */

struct fake_chunk {
	store_chunk id;
	uint8_t digest[DIGEST_BYTES];
	uint8_t codec;
	uint8_t cipher;
	uint32_t plain_bytes;
	uint32_t stored_bytes;
	uint8_t *stored; /* owned */
	bool is_durable; /* a commit has named it */
	bool is_damaged;
	bool is_lost;	 /* marked by a repair: not found until it is brought again */
	bool is_brought; /* put again since: the commit that names it heals it */
	struct fake_chunk *next; /* of the same bucket */
};

enum { FAKE_BUCKETS = 4096 };
struct fake_chunks {
	struct fake_chunk **by_id; /* by_id[id - 1]; NULL: gone, its id is never used again */
	size_t count;
	size_t capacity;
	struct fake_chunk *buckets[FAKE_BUCKETS]; /* by the first two bytes of the digest */
};

/* Pages are shared by all maps that agree on them, and copied by the first that doesn't any more. */
struct fake_page {
	uint64_t number;
	unsigned int sharers;
	struct store_map_entry entries[STORE_MAP_PAGE_ENTRIES];
};
struct fake_map {
	struct fake_page **pages; /* ascending; a page that isn't there is all STORE_MAP_NOTHING */
	size_t count;
	size_t capacity;
};

struct fake_chunk *fake_chunk_get(const struct fake_chunks *chunks, store_chunk id); /* or NULL */
struct fake_chunk *fake_chunk_find(const struct fake_chunks *chunks, const uint8_t digest[DIGEST_BYTES]);
int fake_chunk_add(struct fake_chunks *chunks, const struct store_encoded *encoded, struct fake_chunk **ret_chunk,
		   struct failure *failure);
void fake_chunk_drop(struct fake_chunks *chunks, store_chunk id);
void fake_chunks_free(struct fake_chunks *chunks);

void fake_map_free(struct fake_map *map); /* leaves it empty */
int fake_map_share(const struct fake_map *map, struct fake_map *ret_map, struct failure *failure);
/* The first page >= number; UINT64_MAX: none. */
uint64_t fake_map_next(const struct fake_map *map, uint64_t number);
const struct fake_page *fake_map_page(const struct fake_map *map, uint64_t number); /* or NULL */
const struct store_map_entry *fake_map_entry(const struct fake_map *map, uint64_t index);
/* Sets one entry; `ret_old` is what it was. */
int fake_map_set(struct fake_map *map, uint64_t index, const struct store_map_entry *entry,
		 struct store_map_entry *ret_old, struct failure *failure);
/* Makes entries first … end - 1 STORE_MAP_NOTHING, and says how many were not. */
int fake_map_clear(struct fake_map *map, uint64_t first, uint64_t end, uint64_t *ret_cleared, struct failure *failure);

/*
 * For each chunk, how many maps refer to it (not how often each does). counts[id - 1], fake->chunks.count of them;
 * caller frees.
 */
struct fake;
int fake_count_sharers(const struct fake *fake, uint32_t **ret_counts, struct failure *failure);
/* Bytes of the records to which only this map refers, given the counts. */
int fake_unique_bytes(const struct fake *fake, const struct fake_map *map, const uint32_t *counts, uint64_t *ret_bytes,
		      struct failure *failure);

/* ---- disks, images, rounds, views ---- */

struct fake_image {
	uint32_t number;
	int64_t created_at;
	uint64_t size_bytes;
	uint64_t changed_bytes;
	char *label;
	bool pinned;
	enum store_consistency consistency;
	uint32_t round;
	char *details;
	struct fake_map map;
};

struct fake_round {
	uint32_t number; /* index in disk->rounds + 1 */
	enum store_round_state state;
	char *source;
	char *identity;
	char *how;
	char *start_stamp;
	char *dirty_bitmaps;
	uint64_t dirty_bytes;
	bool has_limit, has_level;
	uint64_t limit_bytes_per_second;
	int level;
	int64_t started_at;
	int64_t finished_at;
	uint64_t cursor_bytes;
	struct store_round_counts counts;
	char *details; /* what was noted, or NULL */
	char *error;
};

struct fake_disk {
	char name[STORE_NAME_MOST_BYTES + 1];
	uint64_t size_bytes;
	uint32_t sector_bytes;
	char *mirror_of;
	uint32_t keep;
	int level;
	uint64_t limit_bytes_per_second;
	int64_t created_at;
	uint8_t fingerprint_key[FINGERPRINT_KEY_BYTES];
	uint32_t generation;
	uint64_t changes;
	struct fake_map live;
	struct fake_map first;	  /* of a clone: what it began as */
	struct fake_disk *parent; /* whose image a clone was made of, or NULL */
	uint32_t parent_number;
	uint32_t content_round; /* live content is what this round left when it was done; 0: something else wrote since
				 */
	struct fake_image **images; /* ascending */
	size_t image_count, image_capacity;
	uint32_t next_image;
	struct fake_round **rounds;
	size_t round_count, round_capacity;
};

struct fake_view {
	struct store_view view; /* first */
	struct fake *fake;
	struct fake_disk *disk;	  /* exists as long as the view isn't dead: the lease keeps it */
	struct fake_image *image; /* NULL: live */
	char *doing;
	bool is_dead; /* the power went */
	struct fake_view *next;
};

struct fake_plan {	  /* for one op */
	uint64_t at_call; /* 0: none */
	int code;
	enum store_fake_when when;
	bool cuts_power;
};

/* What a store that forgets commits needs to forget the last one. */
struct fake_undo {
	struct fake_disk *disk; /* NULL: nothing to forget */
	struct fake_map live;
	uint32_t content_round;
	struct fake_round *round; /* the newest one, or NULL; what follows is of it */
	uint64_t cursor_bytes;
	struct store_round_counts counts;
	char *details;
	store_chunk *chunks; /* that became durable by it */
	size_t chunk_count, chunk_capacity;
};

struct fake {
	struct store store; /* first */
	pthread_mutex_t mutex;
	bool read_only;
	bool forgets_commits;
	struct fake_disk **disks; /* by name */
	size_t disk_count, disk_capacity;
	uint64_t disks_made; /* ever */
	struct fake_chunks chunks;
	struct fake_view *views;
	struct fake_undo undo;
	struct store_scratch *scratch; /* to look into what is put */
	uint8_t *plain;		       /* chunk_bytes, for the same */
	uint64_t calls[STORE_FAKE_OPS];
	unsigned int delay_ms[STORE_FAKE_OPS];
	struct fake_plan plans[STORE_FAKE_OPS];
	uint64_t bytes_read;
	char *files; /* a folder for journals and sockets, or NULL */
};

/* Makes room for one more element of an array. */
int fake_reserve(void *array_address, size_t *capacity, size_t count, size_t element_bytes, struct failure *failure);

static inline struct fake *fake_of(struct store *store)
{
	return (struct fake *)store;
}

static inline struct fake_view *fake_view_of(struct store_view *view)
{
	return (struct fake_view *)view;
}

/* ---- store_fake.c ---- */

int fake_no_memory(struct failure *failure);
/* NULL stays NULL. */
int fake_copy_text(const char *text, char **ret_text, struct failure *failure);
/* -EROFS for a read-only store. */
int fake_check_writable(const struct fake *fake, struct failure *failure);

struct fake_call {
	struct fake *fake;
	struct fake_plan plan; /* what befalls this call; at_call 0: nothing */
};
/* Returns with the mutex held, whatever it returns. `view` may be NULL. */
int fake_call_enter(struct fake_call *call, struct fake *fake, enum store_fake_op op, const struct fake_view *view,
		    struct failure *failure);
/* Gives the mutex back. `error` is how the work went; what is returned is what the caller is told. */
int fake_call_leave(struct fake_call *call, int error, struct failure *failure);

/* Keeps the state of a disk as it is before a commit. */
int fake_undo_prepare(struct fake_undo *undo, struct fake_disk *disk, struct failure *failure);
void fake_undo_drop(struct fake_undo *undo);

/* ---- store_fake_disks.c ---- */

void fake_disk_free(struct fake_disk *disk);
/* -ENOENT with the nearest name. */
int fake_find_disk(const struct fake *fake, const char *name, struct fake_disk **ret_disk, struct failure *failure);
/*
 * Who has this open (image NULL: the live content): "wherry export (pid 7)", "... and 2 more"; *ret_holder is NULL when
 * nobody has.
 */
/* Plain bytes of live content that differ from what the newest image has in their place, or from what the disk began as. */
uint64_t fake_count_changed_bytes(const struct fake *fake, const struct fake_disk *disk);

int fake_find_holder(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image,
		     char **ret_holder, struct failure *failure);
int fake_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		    struct failure *failure);
int fake_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		     struct failure *failure);
int fake_describe_image(struct store *store, const char *disk, uint32_t number, struct store_image **ret_image,
			struct failure *failure);
int fake_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		     struct failure *failure);
int fake_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure);
/* The same under the lock; *ret_disk is the new one. */
int fake_create_disk_locked(struct fake *fake, const struct store_disk_params *params, struct fake_disk **ret_disk,
			    struct failure *failure);
void fake_drop_disk_locked(struct fake *fake, struct fake_disk *disk);
int fake_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure);
int fake_set_policy(struct store *store, const char *name, const struct store_policy *policy, struct failure *failure);

/* ---- store_fake_clones.c ---- */

int fake_clone_disk(struct store *store, const struct store_reference *image, const char *name, struct failure *failure);
/*
 * "clone web02", "clones web02, web03 and 4 more": those of an image; number 0: of the first image of the disk that has some,
 * which is in *ret_number (may be NULL). *ret_names NULL: none.
 */
int fake_clone_names(const struct fake *fake, const struct fake_disk *disk, uint32_t number, uint32_t *ret_number,
		     char **ret_names, struct failure *failure);

/* ---- store_fake_usage.c ---- */

int fake_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure);
int fake_room(struct store *store, struct store_room *ret_room, struct failure *failure);

/* ---- store_fake_clean.c ---- */

int fake_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
	       struct failure *failure);

/* ---- store_fake_check.c ---- */

int fake_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
	       struct failure *failure);

/* ---- store_fake_images.c ---- */

void fake_image_free(struct fake_image *image);
/* STORE_NUMBER or STORE_LATEST; -ENOENT with the numbers there are. */
int fake_find_image_index(const struct fake_disk *disk, const struct store_reference *reference, size_t *ret_index,
			  struct failure *failure);
/* Why an image has to stay: "pinned", "in use by ..."; NULL when it may go. */
int fake_why_kept(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image, char **ret_why,
		  struct failure *failure);
int fake_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run, uint64_t *ret_freed_bytes,
		      struct failure *failure);
int fake_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure);
int fake_brief_images(struct store *store, const char *disk, struct store_image_brief **ret_list, size_t *ret_count,
		      struct failure *failure);
int fake_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		     struct failure *failure);
int fake_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		struct store_retention *ret_retention, struct failure *failure);
int fake_create_image(struct store_view *store_view, const struct store_image_params *params, uint32_t *ret_number,
		      struct failure *failure);

/* ---- store_fake_views.c ---- */

/* Copies what is stored of a chunk into the scratch, and its header. */
int fake_fetch_chunk(const struct fake_view *view, store_chunk id, uint32_t plain_bytes, struct store_scratch *scratch,
		     struct record_header *ret_header, struct failure *failure);
int fake_check_digest(struct hasher *hasher, const uint8_t digest[DIGEST_BYTES], const void *plain,
		      uint32_t plain_bytes, const char *view_name, struct failure *failure);
int fake_disk_files(struct store *store, const char *name, bool make, struct store_disk_files *ret_files,
		    struct failure *failure);
int fake_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		   const char *doing, struct store_view **ret_view, struct failure *failure);
void fake_view_close(struct store_view *store_view);
int fake_view_map(struct store_view *store_view, uint64_t page, struct store_map_page *ret_map,
		  struct failure *failure);
int fake_view_next_page(struct store_view *store_view, uint64_t from_page, uint64_t *ret_page, struct failure *failure);
int fake_view_read_chunk(struct store_view *store_view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			 uint32_t plain_bytes, bool deep, struct failure *failure);
void fake_view_prefetch(struct store_view *store_view, const store_chunk *chunks, size_t count);

/* ---- store_fake_commit.c ---- */

int fake_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count, store_chunk *ret_chunks,
		     struct failure *failure);
int fake_put_chunk(struct store_view *store_view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		   uint64_t *ret_new_bytes, struct failure *failure);
int fake_commit(struct store_view *store_view, const struct store_change *changes, size_t count,
		const struct store_round_position *round, struct failure *failure);
int fake_resize_disk(struct store_view *store_view, uint64_t size_bytes, struct failure *failure);

/* ---- store_fake_rounds.c ---- */

void fake_round_free(struct fake_round *round);
struct fake_round *fake_newest_round(const struct fake_disk *disk); /* or NULL */
/* Is this the round that is running? -EINVAL. */
int fake_check_round(const struct fake_view *view, uint32_t number, struct fake_round **ret_round,
		     struct failure *failure);
int fake_begin_round(struct store_view *store_view, const struct store_round_params *params,
		     struct store_round_begun *ret_begun, struct failure *failure);
int fake_note_round(struct store_view *store_view, uint32_t number, const char *details, struct failure *failure);
int fake_finish_round(struct store_view *store_view, uint32_t number, enum store_round_state state, const char *error,
		      const struct store_round_counts *counts, struct failure *failure);
int fake_round_throttle(struct store_view *store_view, uint32_t number, struct store_throttle *ret_throttle,
			struct failure *failure);

#endif
