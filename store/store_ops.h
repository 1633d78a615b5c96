/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kind of store implements. For implementers only; everybody else includes store.h, whose functions check their arguments and
 * call these. What each does, its errors, and what is durable when it returns 0, is written at its namesake in store.h.
 *
 * An implementation embeds `struct store` and `struct store_view` as the first member of its own. All entries are there, none is NULL.
 * What may run at once on many threads: everything but, for one view, put_chunk, commit, resize_disk, create_image, begin_round,
 * note_round and finish_round, which belong to one thread at a time.
 */
#ifndef WHERRY_STORE_STORE_OPS_H
#define WHERRY_STORE_STORE_OPS_H

#include "store/store.h"

/* Where the disk engine keeps what isn't in the store's own keeping: files of this host. */
struct store_disk_files {
	int journal_fd;	   /* the folder of the disk's journal, the caller's to close; -1: there is none */
	uint8_t owner[16]; /* the disk's, and no other disk's ever */
	char *socket_path; /* owned; for requests to whoever has the disk open */
};

struct store_ops {
	void (*close)(struct store *store);
	int (*contains_path)(struct store *store, const char *path, bool *ret_contains, struct failure *failure);

	int (*list_disks)(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
			  struct failure *failure);
	int (*list_images)(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
			   struct failure *failure);
	int (*describe_image)(struct store *store, const char *disk, uint32_t number, struct store_image **ret_image, struct failure *failure);
	int (*brief_images)(struct store *store, const char *disk, struct store_image_brief **ret_list, size_t *ret_count,
			    struct failure *failure);
	int (*brief_image)(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
			   struct failure *failure);
	int (*list_rounds)(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
			   struct failure *failure);
	int (*usage)(struct store *store, struct store_usage *ret_usage, struct failure *failure);
	int (*room)(struct store *store, struct store_room *ret_room, struct failure *failure);
	int (*check)(struct store *store, const struct store_check_params *params,
		     struct store_check_report *ret_report, struct failure *failure);
	int (*clean)(struct store *store, const struct store_clean_params *params,
		     struct store_clean_report *ret_report, struct failure *failure);

	int (*create_disk)(struct store *store, const struct store_disk_params *params, struct failure *failure);
	int (*clone_disk)(struct store *store, const struct store_reference *image, const char *name,
			  struct failure *failure);
	int (*remove_disk)(struct store *store, const char *name, bool dry_run, struct failure *failure);
	int (*set_policy)(struct store *store, const char *name, const struct store_policy *policy,
			  struct failure *failure);

	int (*delete_image)(struct store *store, const char *disk, uint32_t number, bool dry_run,
			    uint64_t *ret_freed_bytes, struct failure *failure);
	int (*pin_image)(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure);
	int (*retain)(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		      struct store_retention *ret_retention, struct failure *failure);

	int (*disk_files)(struct store *store, const char *disk, bool make, struct store_disk_files *ret_files,
			  struct failure *failure);

	int (*view_open)(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
			 const char *doing, struct store_view **ret_view, struct failure *failure);
	void (*view_close)(struct store_view *view);
	int (*view_map)(struct store_view *view, uint64_t page, struct store_map_page *ret_map,
			struct failure *failure);
	int (*view_next_page)(struct store_view *view, uint64_t from_page, uint64_t *ret_page,
			      struct failure *failure);
	int (*view_read_chunk)(struct store_view *view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			       uint32_t plain_bytes, bool deep, struct failure *failure);
	void (*view_prefetch)(struct store_view *view, const store_chunk *chunks, size_t count);

	int (*find_chunks)(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count,
			   store_chunk *ret_chunks, struct failure *failure);
	int (*put_chunk)(struct store_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
			 uint64_t *ret_new_bytes, struct failure *failure);
	int (*commit)(struct store_view *view, const struct store_change *changes, size_t count,
		      const struct store_round_position *round, struct failure *failure);
	int (*resize_disk)(struct store_view *view, uint64_t size_bytes, struct failure *failure);
	int (*create_image)(struct store_view *view, const struct store_image_params *params, uint32_t *ret_number,
			    struct failure *failure);

	int (*begin_round)(struct store_view *view, const struct store_round_params *params,
			   struct store_round_begun *ret_begun, struct failure *failure);
	int (*note_round)(struct store_view *view, uint32_t number, const char *details, struct failure *failure);
	int (*finish_round)(struct store_view *view, uint32_t number, enum store_round_state state, const char *error,
			    const struct store_round_counts *counts, struct failure *failure);
	int (*round_throttle)(struct store_view *view, uint32_t number, struct store_throttle *ret_throttle,
			      struct failure *failure);
};

struct store {
	const struct store_ops *ops;
	uint32_t chunk_bytes;
	char *location; /* owned; freed by store_close() after ops->close */
	uint64_t serial; /* store_next_serial(): tells it from one that was at this address before */
};

/* Another one each time, in this process. */
uint64_t store_next_serial(void);

struct store_view {
	struct store *store;
	enum store_view_mode mode;
	char *name;	       /* "web01@3"; owned; freed by ops->view_close */
	uint64_t size_bytes;   /* kept up to date by resize_disk */
	uint32_t sector_bytes;
	uint8_t fingerprint_key[FINGERPRINT_KEY_BYTES];
};

/* Bytes of chunk `index` of a disk of this size: chunk_bytes, less for the last. 0 beyond the end. */
uint32_t store_chunk_length(uint32_t chunk_bytes, uint64_t size_bytes, uint64_t index);

/* `make`: the folder for the journal is there afterwards, durably. -ENOENT: no such disk. */
int store_disk_files(struct store *store, const char *disk, bool make, struct store_disk_files *ret_files,
		     struct failure *failure);

/* store_view_open() without a look at the disk's journal: for the engine, which replays it. */
int store_view_open_unfolded(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
			     const char *doing, struct store_view **ret_view, struct failure *failure);

/* Makes chunks of what a crash left in a disk's journal (disk.c). */
int disk_recover(struct store *store, const struct store_reference *reference, const char *doing, struct failure *failure);

/* An image of a disk that nobody has open. -EBUSY: somebody has. */
int disk_image_unattached(struct store *store, const struct store_reference *reference,
			  const struct store_image_params *params, const char *doing, uint32_t *ret_number, struct failure *failure);
/* Asks whoever has the disk open (disk_control.c). -ENOENT without a message: nobody listens there. */
int disk_control_request_image(const char *socket_path, const char *disk, const struct store_image_params *params, uint32_t *ret_number,
			       struct failure *failure);

/* The one of `names` that is nearest to `name` in spelling, or NULL if none is near. */
const char *store_nearest_name(const char *name, const char *const *names, size_t count);

/* Nobody opens a file behind the back of a scratch: its parts, for implementers. */
struct store_scratch {
	struct hasher *hasher;
	struct codec *codec;
	uint8_t *stored; /* RECORD_STORED_MOST_BYTES */
};

#endif
