/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store: disks, their images, and every byte of them.
 *
 * Read this header first. Everything above (rounds, exports, the command, later NBD and FUSE) talks to a store through
 * these functions and can't tell what kind of store it is: a directory on this host (store_open_local), a fake one in memory for tests
 * (store_fake.h), later one behind a gateway. Each kind fills in the table of functions in store_ops.h; the functions here check
 * what comes in, once for all kinds, and call it.
 *
 * The words are those of docs/architecture.md: a disk has live content and images; content is a map of chunks; a chunk is
 * a piece of chunk_bytes (the last one of a disk may be shorter) named by its SHA-256.
 *
 *     struct store *store;                        struct store_view *view;
 *     store_open_local("/srv/ferry", …, &store);  store_view_open(store, &reference, VIEW_READ, "wherry export", &view);
 *     …                                           store_view_read(view, buffer, len, off); …
 *     store_close(store);                         store_view_close(view);
 *
 * Common to all: 0 or a negative errno; outputs untouched on failure; strings in outputs belong to the output and are released by
 * its …_free(); a store may be used by many threads, a view too unless said otherwise.
 *
 * Errors to expect everywhere: -EIO (device), -EBADMSG (damage found: a checksum, a length, an impossible row), -EROFS (the store is read-only),
 * -ENOSPC, -ENOMEM, -EBUSY (locked by somebody, who is named).
 */
#ifndef WHERRY_STORE_STORE_H
#define WHERRY_STORE_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/hash.h"

/* ---- limits and names ---- */

enum {
	STORE_NAME_MOST_BYTES = 63,
	STORE_LABEL_MOST_BYTES = 255,
	STORE_CHUNK_LEAST_BYTES = 16 << 10,
	STORE_CHUNK_MOST_BYTES = 1 << 20,
	STORE_CHUNK_DEFAULT_BYTES = 64 << 10,
	STORE_KEEP_MOST = 1000000,
};
#define STORE_DISK_MOST_BYTES ((uint64_t)1 << 60)

/* [a-z0-9][a-z0-9._-]{0,62}. -EINVAL with a message that says what is wrong and, where easy, a name that would do. */
int store_check_name(const char *name, struct failure *failure);

enum store_which { STORE_LIVE, STORE_NUMBER, STORE_LATEST };

/* DISK, DISK@N, DISK@latest, each with /P for partition P. */
struct store_reference {
	char disk[STORE_NAME_MOST_BYTES + 1];
	enum store_which which;
	uint32_t number;    /* STORE_NUMBER: from 1 */
	uint32_t partition; /* from 1; 0: the whole disk */
};
int store_parse_reference(const char *text, struct store_reference *ret_reference, struct failure *failure);

/* How far an image can be trusted. */
enum store_consistency {
	STORE_CLEAN = 0,  /* the source was not in use */
	STORE_FROZEN = 1, /* it was a snapshot or a frozen file system */
	STORE_FUZZY = 2,  /* it was being changed meanwhile */
};
const char *store_consistency_name(enum store_consistency consistency); /* "clean", "frozen", "fuzzy" */

/* ---- opening ---- */

struct store;

struct store_options {
	bool read_only;			 /* every change is refused; works on a read-only file system */
	const struct notices *notices;	 /* may be NULL; must outlive the store */
};

/*
 * Makes a store in `path`: the folder is created, or must be empty. chunk_bytes: a power of two in the limits. On return
 * it is durable. -EEXIST when there is a store, -ENOTEMPTY when there is something else.
 */
int store_create_local(const char *path, uint32_t chunk_bytes, struct failure *failure);

/*
 * -ENOENT (no such store; says how to make one), -EINVAL (not a store), -EPROTONOSUPPORT (a newer format), -EROFS (asked to write, can't), -EACCES.
 * What a killed process left half done and that matters (deletions under way) is finished when the first change is made, not here.
 */
int store_open_local(const char *path, const struct store_options *options, struct store **ret_store,
		     struct failure *failure);
/* For who serves what he can: read-only, and *ret_is_read_only, where it can't be opened for writing (-EROFS, -EACCES). */
int store_open_local_or_read_only(const char *path, const struct notices *notices, struct store **ret_store, bool *ret_is_read_only,
				  struct failure *failure);
void store_close(struct store *store); /* all views closed before; NULL is fine */

uint32_t store_chunk_bytes(const struct store *store);
const char *store_location(const struct store *store); /* for messages: the path */

/* True if `path` names something inside a local store's folder, or the folder itself. */
int store_contains_path(struct store *store, const char *path, bool *ret_contains, struct failure *failure);

/* ---- listings ---- */

enum { STORE_ID_OF_DISK_BYTES = 16 };
struct store_disk {
	char name[STORE_NAME_MOST_BYTES + 1];
	uint8_t id[STORE_ID_OF_DISK_BYTES]; /* its own, and no other disk's ever, also of that name */
	uint64_t changes; /* has risen whenever live content, as far as it is durable, is another than before */
	uint64_t size_bytes;
	uint32_t sector_bytes;
	uint32_t images;	 /* how many there are */
	uint32_t live_generation;
	uint32_t content_round;	 /* live content is what this round left when it was done; 0: something else changed it since */
	uint64_t changed_bytes;	 /* of live content: may differ from the newest image, or from what the disk began as; what a rebuild
				  * found behind the newest image is not counted */
	char *mirror_of;	 /* the source it mirrors, NULL if none */
	char *open_by;		 /* who has the live disk open, NULL if nobody */
	char *parent;		 /* "web01@3": the image that shows through most of it, for a clone; else NULL */
	uint32_t keep;		 /* policy: at most so many images; 0: no policy */
	int level;		 /* policy: compression level; -1: default */
	uint64_t limit_bytes_per_second; /* policy: 0: none */
	int64_t created_at;
};
struct store_image {
	char disk[STORE_NAME_MOST_BYTES + 1];
	uint32_t number;
	int64_t created_at;	 /* unix seconds */
	uint64_t size_bytes;
	uint64_t changed_bytes;	 /* plain bytes that differ from the image before; a large range zeroed over a clone's image counts whole */
	uint64_t unique_bytes;	 /* stored bytes that deleting just this image would free */
	char *label;		 /* or NULL */
	bool pinned;
	bool damaged;		 /* something in it is marked as lost: store_check() says what */
	bool in_use;		 /* leased or has clones */
	char *in_use_by;	 /* in words, or NULL */
	enum store_consistency consistency;
	uint32_t round;		 /* 0: not made by a round */
	char *details;		 /* JSON object text or NULL: {"read_errors":[…], "fuzzy_because":"…"} */
};
enum store_round_state { ROUND_RUNNING, ROUND_STOPPED, ROUND_FAILED, ROUND_DONE };
const char *store_round_state_name(enum store_round_state state);

/* All in bytes. */
struct store_round_counts {
	uint64_t total;	   /* to be looked at: the disk less what is left out and holes */
	uint64_t done;	   /* of it */
	uint64_t read;	   /* read from the source */
	uint64_t left_out; /* not read on purpose */
	uint64_t zero;	   /* known or found to be zero */
	uint64_t changed;  /* plain bytes of chunks whose content changed, also to zero */
	uint64_t stored;   /* new bytes in segments */
	uint64_t sent;	   /* to the store, over a network or not */
};
struct store_round {
	char disk[STORE_NAME_MOST_BYTES + 1];
	uint32_t number;
	enum store_round_state state;
	char *source;
	int64_t started_at;
	int64_t finished_at; /* 0: not yet */
	struct store_round_counts counts;
	char *error; /* or NULL */
	char *details; /* what the round noted (store_note_round): JSON object text, or NULL */
};

/* What is known of an image without asking who uses it or what it takes: costs the same whatever the disk has and the image holds. */
struct store_image_brief {
	uint8_t disk_id[STORE_ID_OF_DISK_BYTES];
	uint32_t number;
	int64_t created_at;
	uint64_t size_bytes;
};

/* `name` NULL: all. Sorted by name, by number. -ENOENT names the disk and the nearest one there is. Caller frees with …_free_list(list, count). */
int store_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		     struct failure *failure);
int store_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		      struct failure *failure);
int store_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		      struct failure *failure);
/* One image: what store_list_images() says of it. Caller frees with store_images_free(…, 1). -ENOENT says which there are. */
int store_describe_image(struct store *store, const char *disk, uint32_t number, struct store_image **ret_image, struct failure *failure);
/* Those of one disk, ascending; for many at once. Caller frees with free(). */
int store_brief_images(struct store *store, const char *disk, struct store_image_brief **ret_list, size_t *ret_count,
		       struct failure *failure);
/* STORE_NUMBER or STORE_LATEST. -ENOENT says which there are. */
int store_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		      struct failure *failure);
void store_disks_free(struct store_disk *list, size_t count);
void store_images_free(struct store_image *list, size_t count);
void store_rounds_free(struct store_round *list, size_t count);

/* ---- how much room ---- */

struct store_disk_usage {
	char name[STORE_NAME_MOST_BYTES + 1];
	uint64_t size_bytes;
	uint32_t images;
	uint64_t unique_bytes; /* stored bytes that removing just this disk, with all its images, would free */
};
struct store_usage {
	uint64_t segment_bytes; /* files that hold data */
	uint64_t live_bytes;	/* of it: records that something refers to */
	uint64_t dead_bytes;	/* of it: the rest of what was committed, that nothing refers to any more */
	uint64_t catalog_bytes; /* files that say what is where */
	/* Content of live chunks before compression, each chunk counted once; up to a chunk more for each time that a
	 * disk has grown. */
	uint64_t plain_bytes;
	struct store_disk_usage *disks; /* sorted by name */
	size_t disk_count;
};
/* What a store takes. A read of all that says what is where, none of the content itself. Next to others' work, so of no
 * exact moment. */
int store_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure);
void store_usage_free(struct store_usage *usage); /* leaves it empty */

/* Of what the store's files are on: cheap. */
struct store_room {
	uint64_t total_bytes, free_bytes;
	uint64_t available_bytes; /* to us */
};
int store_room(struct store *store, struct store_room *ret_room, struct failure *failure);

/* ---- checking ---- */

struct store_check_params {
	bool deep; /* read, decompress and digest all that is referred to; else records' headers only */
	bool repair; /* with deep: see store_check() */
	_Atomic uint64_t *total_bytes, *done_bytes; /* progress, added to by any thread; may be NULL */
	const atomic_bool *stop; /* becomes true: end soon, with -EINTR and no message; may be NULL */
};

enum { STORE_WHY_BYTES = 112, STORE_DAMAGES_MOST = 16384, STORE_FLAWS_MOST = 1000 };

/* Content that can't be had. */
struct store_damage {
	char disk[STORE_NAME_MOST_BYTES + 1];
	uint32_t image; /* 0: the live content */
	uint64_t off_bytes;
	uint64_t len_bytes;
	char why[STORE_WHY_BYTES]; /* "segment 00000007: damaged record: payload" */
};
/* Something else that is wrong: "segment 00000007" "its file is missing". */
struct store_flaw {
	char *what;
	char *why;
};
/* What a repair did. */
struct store_repair {
	uint64_t mended_chunks;	 /* were damaged, and are whole again: another record had their content */
	uint64_t sound_chunks;	 /* were marked as lost by an earlier repair, and are not */
	uint64_t waiting_chunks; /* are marked as lost now, by whichever repair: until a round brings their content */
	uint64_t unknown_chunks; /* are damaged, and it can't be told by what digest to know their content */
};
struct store_check_report {
	bool is_clean;	   /* neither damage nor flaws */
	uint64_t chunks;   /* looked at */
	uint64_t segments; /* that hold them */
	struct store_damage *damages; /* by disk, image, offset; ranges that touch, for the same reason, are one */
	size_t damage_count;
	uint64_t more_damages; /* ranges beyond STORE_DAMAGES_MOST */
	struct store_flaw *flaws;
	size_t flaw_count;
	uint64_t more_flaws; /* beyond STORE_FLAWS_MOST */
	struct store_repair repair; /* zeros unless one was asked for */
};
/*
 * Looks for damage: what says where content is (does it fit together?), every record that something refers to (is it
 * there, and the one meant?), every disk's log (is the chain whole?); deep also reads all content, on all cores, each
 * piece once however many images share it.
 *
 * 0 also when there is damage: the report has it. -EINTR when stopped. Others: it could not be told. Works next to
 * others' work and on a read-only store; what is made, moved or deleted meanwhile is never taken for damage. Memory is
 * bounded, whatever the store's size.
 *
 * With `repair` (and `deep`, else -EINVAL; -EROFS), what was found damaged is mended where another record has the content;
 * the rest is marked as lost: views have no fingerprint for it, so that a round reads it, and the commit that brings the
 * content again heals all that refer to it. Of a marked chunk nothing is read before; one that is sound again is unmarked.
 * Damage in the report is what is left. Durable on return; stopped, a part of it is done.
 */
int store_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
		struct failure *failure);
void store_check_report_free(struct store_check_report *report); /* leaves it empty */

/* ---- clean-up ---- */

struct store_clean_params {
	const char *doing; /* who we are, for whoever finds a clean-up at work: "wherry gc" */
	bool dry_run;	   /* count only */
	uint64_t limit_bytes_per_second; /* of what is moved; 0: none */
	uint64_t most_bytes;		 /* end after so much was moved; 0: when all is done */
	_Atomic uint64_t *total_bytes, *done_bytes; /* progress: of segments that are gone through; may be NULL */
	const atomic_bool *stop; /* becomes true: end soon, with -EINTR and no message; may be NULL */
};
struct store_clean_report {
	uint64_t freed_bytes;	   /* of files that were removed, less what was moved into others; dry_run: would be */
	uint64_t moved_bytes;	   /* records that were alive in them; dry_run: would be */
	uint32_t removed_segments; /* dry_run: would be */
	uint32_t busy_segments;	   /* mostly dead, and left alone: somebody appends to them */
	uint32_t damaged_segments; /* mostly dead, and left alone: something in them can't be read */
};
/*
 * Gives back the room of what nothing reaches: finishes deletions that were cut short, and rewrites segments with less than half alive. Cost follows what is dead.
 * Works next to rounds and readers; what it moves is checked. Stopped or killed at any point it loses nothing, and what is done stays done: the report is
 * set in any case. -EBUSY: somebody else cleans up (who). -ENOSPC: no room for what has to be moved; what is all dead has been removed before.
 */
int store_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
		struct failure *failure);

/* ---- making what is known of it anew ---- */

struct store_rebuild_params {
	const char *doing;
	bool dry_run; /* find out what there is, and change nothing */
	_Atomic uint64_t *total_bytes, *done_bytes; /* progress: of segments; may be NULL */
	const atomic_bool *stop; /* becomes true: end soon, with -EINTR and no message, and everything as it was; may be NULL */
};
struct store_rebuild_report {
	uint64_t disks;
	uint64_t removed_disks; /* known to have been removed */
	uint64_t chunks, segments; /* found */
	uint64_t lost_chunks; /* that disks or images need, and no record is found of: store_check() names them */
	struct store_check_report found; /* `flaws`: what else is damaged or lost */
};
/*
 * Makes the catalog of a local store from its segments alone, whatever has become of the one there was: all disks, all
 * images with what was said of them, live content as of its last change that can be followed. Nothing is made up: what can't be read is said, and
 * reads as damage. Only rounds are forgotten, and fingerprints: the next round compares digests.
 * -EBUSY: somebody uses the store (who). -EINTR, -ENOSPC and others: the old catalog is as it was, or, if the very end failed, there is none. Durable on return.
 */
int store_rebuild_local(const char *path, const struct store_rebuild_params *params,
			struct store_rebuild_report *ret_report, struct failure *failure);
void store_rebuild_report_free(struct store_rebuild_report *report); /* leaves it empty */

/* ---- disks and policies: durable on return ---- */

struct store_disk_params {
	const char *name;
	uint64_t size_bytes;   /* 1 .. STORE_DISK_MOST_BYTES */
	uint32_t sector_bytes; /* 512 .. 65536, a power of two */
	const char *mirror_of; /* NULL: nobody's mirror */
};
/* -EEXIST */
int store_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure);

/*
 * A new disk `name` that begins as `image` (STORE_NUMBER or STORE_LATEST), with its size, and goes its own way. Instant, whatever the image holds; costs nothing but
 * what is written to it later. While anything of an image shows in a clone, or in an image of it, the image is in use: that may be the one that was named, or, where the named
 * one's disk is a clone that has written nothing, the one below. -EEXIST, -ENOENT, -EMLINK (clones of clones of …, on more than 64 levels).
 */
int store_clone_disk(struct store *store, const struct store_reference *image, const char *name, struct failure *failure);

/* With all its images. -EBUSY when it or one of them is in use (by whom), has clones, or an image is pinned (which). dry_run: only says whether it could. */
int store_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure);

/* Fields that are set are changed; a running round obeys limit and level within two seconds. */
struct store_policy {
	bool set_keep, set_level, set_limit;
	uint32_t keep;
	int level; /* -1: default */
	uint64_t limit_bytes_per_second;
};
int store_set_policy(struct store *store, const char *name, const struct store_policy *policy,
		     struct failure *failure);

/* ---- images: durable on return ---- */

/* -ENOENT (says which there are), -EBUSY: pinned, or in use (by whom, or by which clones). Cost follows what only this image held. */
int store_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run,
		       uint64_t *ret_freed_bytes, struct failure *failure);
int store_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure);

/* "latest" and numbers to an existing number; -ENOENT says which there are. */
int store_resolve_image(struct store *store, const struct store_reference *reference, uint32_t *ret_number,
			struct failure *failure);

struct store_retention {
	uint32_t *deleted; /* numbers, ascending */
	size_t deleted_count;
	struct {
		uint32_t number;
		char *why; /* "pinned", "in use by …" */
	} *kept;	   /* older than what was kept, would have gone, but could not */
	size_t kept_count;
};
/* At most `keep` (>= 1) images stay; the oldest that are neither pinned nor in use go first. The newest image never goes. */
int store_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		 struct store_retention *ret_retention, struct failure *failure);
void store_retention_free(struct store_retention *retention);

/*
 * store_clean() in a small dose, for after a retention: nothing if no image was deleted, or while somebody else cleans up; at most STORE_CLEAN_DOSE_BYTES are
 * moved. 0 also when stopped. A failure takes back nothing of the retention.
 */
enum { STORE_CLEAN_DOSE_BYTES = 256 << 20 };
int store_clean_after(struct store *store, const struct store_retention *retention, const char *doing,
		      const atomic_bool *stop, struct failure *failure);

/* ---- views: content ---- */

enum store_view_mode {
	VIEW_READ,  /* an image (shared lease: it can't be deleted meanwhile), or a live disk (exclusive lease: see below) */
	VIEW_WRITE, /* the live disk, exclusively */
};
struct store_view;

/*
 * `doing` says who we are, for whoever finds it locked: "wherry sync /dev/sda web01".
 * VIEW_READ of live content takes the exclusive lease too (nobody else can be writing), so that what is read is one state.
 * reference->partition is not looked at here. -EBUSY, -ENOENT.
 */
int store_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		    const char *doing, struct store_view **ret_view, struct failure *failure);
void store_view_close(struct store_view *view);

struct store *store_view_store(const struct store_view *view);
const char *store_view_name(const struct store_view *view); /* "web01", "web01@3" */
uint64_t store_view_size(const struct store_view *view);
uint32_t store_view_sector_bytes(const struct store_view *view);
const uint8_t *store_view_fingerprint_key(const struct store_view *view); /* FINGERPRINT_KEY_BYTES; secret */

/* A chunk as the store names it: 0 is none. Valid as long as the view is open, over any number of commits. */
typedef uint64_t store_chunk;

enum store_map_kind {
	/* Views give either for what reads as zeros; what shows through from a clone's image is what it is there. Written, both are zeros. */
	STORE_MAP_NOTHING = 0,
	STORE_MAP_ZERO = 1,
	STORE_MAP_CHUNK = 2,
};
struct store_map_entry {
	store_chunk chunk;
	uint32_t since_generation;
	uint8_t kind;		   /* enum store_map_kind */
	bool has_fingerprint;	   /* false in images, for what shows through from one, after a rebuild, and for what the store has lost: it is to be read, and stored anew */
	uint8_t fingerprint[FINGERPRINT_BYTES];
};
enum { STORE_MAP_PAGE_ENTRIES = 256 };
/* Entries page * STORE_MAP_PAGE_ENTRIES …; those beyond the disk's end are STORE_MAP_NOTHING. */
struct store_map_page {
	struct store_map_entry entries[STORE_MAP_PAGE_ENTRIES];
};

/* One page of the map. A page never written is all STORE_MAP_NOTHING. */
int store_view_map(struct store_view *view, uint64_t page, struct store_map_page *ret_map, struct failure *failure);

/* The first page >= from that may hold something; *ret_page = UINT64_MAX when there is none. Lets a walk cost what is mapped, not what the disk's size is. */
int store_view_next_page(struct store_view *view, uint64_t from_page, uint64_t *ret_page, struct failure *failure);

/*
 * The plain bytes of one chunk, as long as the disk says (`plain_bytes`), checked (R4): length, checksums, that it is the chunk meant; with
 * `deep` its SHA-256 is recomputed as well. `scratch` belongs to one thread. -EBADMSG: damaged, the message has segment and offset.
 */
struct store_scratch; /* decompression contexts and buffers of one thread */
int store_scratch_new(struct store_scratch **ret_scratch, struct failure *failure);
void store_scratch_free(struct store_scratch *scratch);
int store_view_read_chunk(struct store_view *view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			  uint32_t plain_bytes, bool deep, struct failure *failure);

/* Says that these chunks will be read soon, in this order. A hint. */
void store_view_prefetch(struct store_view *view, const store_chunk *chunks, size_t count);

/* ---- writing whole chunks: rounds ---- */

/*
 * Which of these are there already (committed, or put through this store handle and not committed yet)? 0 where it isn't. Any thread.
 */
int store_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count,
		      store_chunk *ret_chunks, struct failure *failure);

/* Compresses one chunk as the store wants it. Any thread, with its own scratch; `ret_stored` points into the scratch. */
struct store_encoded {
	uint8_t digest[DIGEST_BYTES];
	uint8_t codec;
	uint8_t cipher;
	uint32_t plain_bytes;
	uint32_t stored_bytes;
	const void *stored; /* borrowed */
};

/*
 * Hands over a new chunk. Not durable, and to be referenced by nothing but commits of views of this store handle.
 * If the same digest was put before, that one is returned and *ret_new_bytes is 0, else the bytes that it takes.
 * The view must be VIEW_WRITE. Any thread, and next to a commit; what a commit refers to was put before it began.
 */
int store_put_chunk(struct store_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		    uint64_t *ret_new_bytes, struct failure *failure);

struct store_change {
	uint64_t first_chunk;
	uint64_t chunk_count;	 /* 1 unless kind is NOTHING or ZERO */
	uint8_t kind;		 /* enum store_map_kind */
	bool refresh;		 /* same content as before, only the fingerprint is new: not a change. (What a clone's image shows becomes its own.) */
	store_chunk chunk;
	uint8_t digest[DIGEST_BYTES];
	uint8_t fingerprint[FINGERPRINT_BYTES];
};

/*
 * Makes all of it durable and visible at once, with the round's position: chunks put, changes to the map, the round's cursor and counts (`round` may be
 * NULL when no round is under way). changes are ascending and don't overlap; at most STORE_COMMIT_MOST_CHANGES. R1, R2.
 * -ESTALE: a chunk that store_find_chunks() had found was cleaned away since; nothing was changed; go back to the last
 * commit's position and read on from there.
 */
enum { STORE_COMMIT_MOST_CHANGES = 65536 };
struct store_round_position {
	uint32_t number;
	uint64_t cursor_bytes; /* everything below it is done */
	struct store_round_counts counts;
};
int store_commit(struct store_view *view, const struct store_change *changes, size_t count,
		 const struct store_round_position *round, struct failure *failure);

/* Durable. Growing adds zeros; shrinking drops what is beyond from live content, images keep it. View must be VIEW_WRITE. */
int store_resize_disk(struct store_view *view, uint64_t size_bytes, struct failure *failure);

struct store_image_params {
	const char *label; /* or NULL */
	enum store_consistency consistency;
	uint32_t round;	     /* 0: none */
	const char *details; /* JSON object text or NULL */
};
/* An image of the live content as of the last commit. Instant, durable. */
int store_create_image(struct store_view *view, const struct store_image_params *params, uint32_t *ret_number,
		       struct failure *failure);

/* ---- rounds ---- */

struct store_round_params {
	const char *source;	     /* for people */
	const char *source_identity; /* a round resumes only if this, and how, are the same */
	const char *how;	     /* what influences which bytes are read: options, sizes; opaque text */
	const char *start_stamp;     /* source_change_stamp() at the start; "" unknown */
	const char *dirty_bitmaps;   /* what the next round wants to know of the source's dirty bitmaps; opaque text, "" none */
	uint64_t dirty_bytes;	     /* how much the bitmap in use said was dirty at the start */
	bool has_limit, has_level;   /* for this round only; else the disk's policy */
	uint64_t limit_bytes_per_second;
	int level;
};
struct store_round_begun {
	uint32_t number;
	bool resumed;
	uint64_t cursor_bytes;		  /* where to go on */
	struct store_round_counts counts; /* so far */
	char *start_stamp;		  /* of the round's first start */
	char *details;			  /* what the round noted so far (store_note_round), or NULL */
	/* the last round that is done, and led to what the live content is now; NULL/0 when there is none or the live content was written by
	 * something else since */
	char *previous_identity;
	char *previous_dirty_bitmaps;
	char *previous_details; /* what it noted, or NULL */
	uint64_t previous_dirty_bytes;
};
/*
 * Goes on with the disk's unfinished round when source_identity and how agree, else marks it as failed ("superseded") and starts
 * a new one at 0. Sets the disk's mirror_of to `source`. View must be VIEW_WRITE: so nobody else runs one.
 */
int store_begin_round(struct store_view *view, const struct store_round_params *params,
		      struct store_round_begun *ret_begun, struct failure *failure);
void store_round_begun_free(struct store_round_begun *begun);

/* Keeps JSON object text with the round (read errors so far, …) in place of what it noted before. Durable on return. */
int store_note_round(struct store_view *view, uint32_t number, const char *details, struct failure *failure);

/* ROUND_DONE, ROUND_STOPPED or ROUND_FAILED (with the error). Durable. */
int store_finish_round(struct store_view *view, uint32_t number, enum store_round_state state, const char *error,
		       const struct store_round_counts *counts, struct failure *failure);

/* What `set` or the round's own options say now; cheap enough for every second. Any thread. */
struct store_throttle {
	uint64_t limit_bytes_per_second; /* 0: none */
	int level;			 /* never -1 */
};
int store_round_throttle(struct store_view *view, uint32_t number, struct store_throttle *ret_throttle,
			 struct failure *failure);

/* ---- encoding, for who puts chunks ---- */
int store_encode_chunk(struct store_scratch *scratch, int level, const uint8_t digest[DIGEST_BYTES],
		       const void *plain, uint32_t plain_bytes, struct store_encoded *ret_encoded,
		       struct failure *failure);
/* The hasher of this scratch: for digests and fingerprints on the same thread. */
struct hasher *store_scratch_hasher(struct store_scratch *scratch);

#endif
