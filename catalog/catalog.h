/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalog: what is where. One SQLite database a store; all SQL lives behind this header.
 *
 * A handle is one connection and belongs to one thread at a time; open as many as there are threads (half a millisecond each; memory as it is used, at
 * most 8 MiB of SQLite's cache and 1 MiB of ours). A handle must not cross a fork. Nobody else may open the database file in the same process by other means (POSIX locks would drop).
 *
 * Reading needs no transaction. Changing does: catalog_begin() … catalog_commit(). begin takes the store's own lock (flock on
 * locks/catalog) before SQLite's: SQLite up to 3.51.2 can corrupt a database in WAL mode when one connection checkpoints while another
 * commits, so automatic checkpoints are off and ours happen under that lock only. Commits are synchronous=FULL: durable on return (R1).
 *
 * The catalog never touches a data byte, and doesn't know what a chunk holds: callers make sure that bytes are durable before the transaction
 * that names them commits (R2).
 *
 * Every row read is checked before it is believed: -EBADMSG with the table's name, never a crash, on whatever the file may hold.
 *
 * How content is kept: `map` has the live content of each disk, in pages of CATALOG_PAGE_ENTRIES chunks a row. `past` has, for every chunk that was changed while an image could see its
 * former state, that state and the generation until which it held. An image of generation g reads a chunk from the `past` row with the least
 * `until` > g that mentions it, else from `map`. So an image costs one row, reading the newest is nearly as fast as the live content, and
 * deleting one looks only at what changed between its neighbours (R9).
 */
#ifndef WHERRY_CATALOG_CATALOG_H
#define WHERRY_CATALOG_CATALOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"

#ifndef CATALOG_PAGE_ENTRIES
#define CATALOG_PAGE_ENTRIES 256 /* docs/decisions.md: measured against 64 … 1024 */
#endif

enum {
	CATALOG_NAME_BYTES = 64,
	CATALOG_UUID_BYTES = 16,
	CATALOG_DIGEST_BYTES = 32,
	CATALOG_KEY_BYTES = 32,
	CATALOG_FINGERPRINT_BYTES = 16,
	CATALOG_FORMAT = 3, /* 1 and 2 were of unreleased versions: refused, a rebuild makes them anew */
};

struct catalog;
struct catalog_location;
struct catalog_segment;

/* Makes STORE/catalog.db, which must not exist. Durable on return, its name in the folder too. */
int catalog_create(const char *store_path, uint32_t chunk_bytes, struct failure *failure);

/*
 * Opens STORE/catalog.db. read_only also works on a read-only file system, but only while the write-ahead log is empty there. locks_fd is borrowed: the folder
 * with the lock file; it must stay open as long as the handle.
 */
int catalog_open(const char *store_path, int locks_fd, bool read_only, struct catalog **ret_catalog,
		 struct failure *failure);
/* -EBADMSG unless it was made for chunks of that size: with another one all content would be found in the wrong places. */
int catalog_check_chunk_bytes(struct catalog *catalog, uint32_t chunk_bytes, struct failure *failure);
/* Rolls back what was not committed. Moves the write-ahead log into the database if nobody else is at it. NULL is fine. */
void catalog_close(struct catalog *catalog);
/* Names the database file: another number after a rebuild has put a new one in its place, while this handle is open. */
uint64_t catalog_database(const struct catalog *catalog);
/*
 * -ESTALE: a rebuild has put, or is about to put, another one in its place. Who asks with a lease of a disk or image in his hands, and is told 0, keeps a rebuild
 * from doing that for as long as he holds it.
 */
int catalog_check_current(const struct catalog *catalog, struct failure *failure);

/* -EBUSY after two minutes of waiting for another writer. Not nested. */
int catalog_begin(struct catalog *catalog, struct failure *failure);
/* Durable on return. On failure everything is rolled back, the lock released. */
int catalog_commit(struct catalog *catalog, struct failure *failure);
void catalog_rollback(struct catalog *catalog); /* no transaction: nothing happens */

/*
 * Reads between these two belong to one moment. A read by itself costs 6 µs, within a snapshot one: for whoever has many, but not for long, because
 * the write-ahead log can't be started over meanwhile. Within a transaction or another snapshot nothing is done, and *ret_ours is false.
 */
int catalog_snapshot_begin(struct catalog *catalog, bool *ret_ours, struct failure *failure);
void catalog_snapshot_end(struct catalog *catalog, bool ours);

/* A number that differs if any other connection committed since the last call on this handle. */
int catalog_data_version(struct catalog *catalog, int64_t *ret_version, struct failure *failure);

/* Bytes of the database file and of its write-ahead log. */
int catalog_size(struct catalog *catalog, uint64_t *ret_bytes, struct failure *failure);

/* ---- disks ---- */

enum catalog_state { CATALOG_ALIVE = 0, CATALOG_GOING = 1 /* invisible; what it held is being given back */ };

struct catalog_disk {
	int64_t id; /* from 1, never used again; below 2^22 */
	uint8_t uuid[CATALOG_UUID_BYTES];
	char name[CATALOG_NAME_BYTES];
	uint64_t size_bytes;
	uint32_t sector_bytes;
	uint32_t generation; /* of live content, from 1 */
	enum catalog_state state;
	uint32_t keep; /* 0: no policy */
	int level;     /* -1: default */
	uint64_t limit_bytes_per_second;
	char *mirror_of; /* or NULL */
	uint8_t fingerprint_key[CATALOG_KEY_BYTES];
	uint64_t log_sequence; /* of its newest log entry */
	uint8_t log_head[CATALOG_DIGEST_BYTES];
	int64_t created_at;
	uint32_t next_image;
	uint32_t next_round;
	uint64_t changed_bytes; /* since the newest image */
	uint32_t content_round; /* live content is what this round left when it was done; 0: something else wrote since */
};
void catalog_disk_release(struct catalog_disk *disk);

/* Fills in id. -EEXIST when an alive disk has that name. In a transaction. */
int catalog_disk_insert(struct catalog *catalog, struct catalog_disk *disk, struct failure *failure);
/* Writes all fields of the row with disk->id. In a transaction. */
int catalog_disk_update(struct catalog *catalog, const struct catalog_disk *disk, struct failure *failure);
/* Alive ones. -ENOENT without a message: the caller knows what was asked for. */
int catalog_disk_find(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk,
		      struct failure *failure);
int catalog_disk_get(struct catalog *catalog, int64_t id, struct catalog_disk *ret_disk, struct failure *failure);
/* Sorted by name. Caller releases each and frees the list. */
int catalog_disk_list(struct catalog *catalog, enum catalog_state state, struct catalog_disk **ret_list,
		      size_t *ret_count, struct failure *failure);

/* ---- images ---- */

struct catalog_image {
	int64_t disk;
	uint32_t number;
	uint32_t generation;
	enum catalog_state state;
	int64_t created_at;
	uint64_t size_bytes;
	uint64_t changed_bytes;
	char *label; /* or NULL */
	bool pinned;
	uint8_t consistency;
	uint32_t round; /* 0: none */
	char *details;	/* or NULL */
};
void catalog_image_release(struct catalog_image *image);

/* In a transaction. The caller bumps the disk's generation in the same one. */
int catalog_image_insert(struct catalog *catalog, const struct catalog_image *image, struct failure *failure);
int catalog_image_update(struct catalog *catalog, const struct catalog_image *image, struct failure *failure);
int catalog_image_get(struct catalog *catalog, int64_t disk, uint32_t number, struct catalog_image *ret_image,
		      struct failure *failure); /* alive; -ENOENT without a message */
/* The newest. -ENOENT without a message: the disk has none. */
int catalog_image_last(struct catalog *catalog, int64_t disk, struct catalog_image *ret_image, struct failure *failure);
int catalog_image_count(struct catalog *catalog, int64_t disk, uint32_t *ret_count, struct failure *failure); /* alive ones */
/* Ascending. disk 0: of all alive disks. */
int catalog_image_list(struct catalog *catalog, int64_t disk, enum catalog_state state,
		       struct catalog_image **ret_list, size_t *ret_count, struct failure *failure);

/* Stored bytes that only this image holds: deleting it now would free them. A read. */
int catalog_image_unique(struct catalog *catalog, const struct catalog_image *image, uint64_t *ret_bytes,
			 struct failure *failure);

/*
 * Gives back what a GOING image held, changing at most `most_rows` rows of `past` at a time, and removes its row at the end. Call in one transaction after
 * the other until *ret_done, with a position that starts as zeros. Adds the record bytes that became dead to *freed_bytes. What
 * goes: entries that no alive image sees.
 */
struct catalog_position {
	uint32_t until;
	uint64_t page;
};
int catalog_image_sweep(struct catalog *catalog, const struct catalog_image *image, struct catalog_position *position,
			unsigned most_rows, uint64_t *freed_bytes, bool *ret_done, struct failure *failure);
/* The same for a GOING disk: map, past, images, rounds, log (all but the entry that says it is gone), the row. */
int catalog_disk_sweep(struct catalog *catalog, const struct catalog_disk *disk, unsigned most_rows,
		       uint64_t *freed_bytes, bool *ret_done, struct failure *failure);

/*
 * Stored bytes that only this disk holds, with its images and its log: removing it would free them. A read, whose cost
 * is that of looking at all that the disk refers to. Chunks that it refers to more than once are counted up to a
 * million; beyond that the sum is a lower bound.
 */
int catalog_disk_unique(struct catalog *catalog, int64_t disk, uint64_t *ret_bytes, struct failure *failure);

/* ---- content ---- */

enum catalog_kind { CATALOG_NOTHING = 0, CATALOG_ZERO = 1, CATALOG_CHUNK = 2 };

struct catalog_entry {
	uint64_t chunk;	 /* CATALOG_CHUNK: id from 1 */
	uint32_t since;	 /* generation; 0 for what was never written */
	uint8_t kind;
	bool has_fingerprint;
	uint8_t fingerprint[CATALOG_FINGERPRINT_BYTES];
};
struct catalog_page {
	struct catalog_entry entries[CATALOG_PAGE_ENTRIES];
};

/* Live content. A page that isn't there is all CATALOG_NOTHING. */
int catalog_map_read(struct catalog *catalog, int64_t disk, uint64_t page, struct catalog_page *ret_page,
		     struct failure *failure);
/* Content at the end of `generation`, as an image of it sees it. No fingerprints for entries that changed since. */
int catalog_map_read_at(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t page,
			struct catalog_page *ret_page, struct failure *failure);
/* The first page >= from with anything in `map` (generation 0) or in `map` or `past` after `generation`; UINT64_MAX: none. */
int catalog_map_next(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t from_page,
		     uint64_t *ret_page, struct failure *failure);

struct catalog_change {
	uint64_t first;	 /* chunk index in the disk */
	uint64_t count;	 /* > 1 only for NOTHING and ZERO */
	uint8_t kind;
	bool refresh;	 /* set the fingerprint only; what shows through from an image becomes the disk's own */
	bool has_fingerprint;
	uint64_t chunk;
	uint8_t fingerprint[CATALOG_FINGERPRINT_BYTES];
};
/*
 * Applies ascending changes to live content, keeps former states that an image sees in `past`, and counts references. Adds to *changed_chunks the chunks whose state
 * differs from before, to *newly_changed_chunks those of them that had not changed in this generation yet. In a transaction.
 */
int catalog_map_update(struct catalog *catalog, const struct catalog_disk *disk, const struct catalog_change *changes,
		       size_t count, uint64_t *changed_chunks, uint64_t *newly_changed_chunks,
		       struct failure *failure);

/* ---- what shows through: clones ---- */

/*
 * A disk of pieces: bytes of it that are those of an image, but where it has a state of its own. Live content has those that were set last; an
 * image keeps those that held in its generation. Pieces in force at the same time don't overlap.
 *
 * Offsets are in bytes, so that a piece can begin anywhere (partitions do). Reading goes by chunks: it needs `off_bytes` and `image_off_bytes` to be multiples of the chunk
 * size, and a piece whose end is none to end where its image does.
 */
struct catalog_piece {
	uint64_t off_bytes, len_bytes; /* in the disk */
	uint8_t image_uuid[CATALOG_UUID_BYTES]; /* of the image's disk */
	int64_t image_disk;	   /* 0: unknown, until catalog_base_resolve() */
	uint32_t image_number;
	uint32_t image_generation; /* 0: unknown, or gone */
	uint64_t image_off_bytes;
	uint32_t since; /* generation of the disk; set by the catalog */
};
enum { CATALOG_PIECES_MOST = 65536, CATALOG_LEVELS_MOST = 64 };

/* Live content has these pieces from now on, ascending, and no others. Those that an image sees are kept for it. In a transaction. */
int catalog_base_set(struct catalog *catalog, const struct catalog_disk *disk, const struct catalog_piece *pieces,
		     size_t count, struct failure *failure);
/* Those of live content (generation 0) or of an image of that generation, ascending. Caller frees. */
int catalog_base_list(struct catalog *catalog, int64_t disk, uint32_t generation, struct catalog_piece **ret_list,
		      size_t *ret_count, struct failure *failure);
int catalog_base_any(struct catalog *catalog, int64_t disk, uint32_t generation, bool *ret_any, struct failure *failure);
/* Forgets pieces that no alive image sees any more. In a transaction, when an image has gone. */
int catalog_base_forget_unseen(struct catalog *catalog, int64_t disk, struct failure *failure);
/* Forgets all of a disk that goes. In a transaction. */
int catalog_base_drop(struct catalog *catalog, int64_t disk, struct failure *failure);

/* An alive disk that reads through an image, live or in one of its own images. */
struct catalog_base_user {
	uint32_t image_number;
	char name[CATALOG_NAME_BYTES];
};
/* Of one image; number 0: of all images of that disk, other disks only. By number and name. Caller frees. */
int catalog_base_users(struct catalog *catalog, int64_t image_disk, uint32_t number, struct catalog_base_user **ret_list,
		       size_t *ret_count, struct failure *failure);
/* The image from which most of the live content comes; *ret_number 0: none. */
int catalog_base_parent(struct catalog *catalog, int64_t disk, char ret_name[CATALOG_NAME_BYTES], uint32_t *ret_number,
			struct failure *failure);
/* On how many levels content of that image is read: 1 when nothing shows through. CATALOG_LEVELS_MOST + 1: more than are read. */
int catalog_base_levels(struct catalog *catalog, int64_t disk, uint32_t generation, unsigned *ret_levels,
			struct failure *failure);
/*
 * For a rebuild, when all disks are there: finds the images of pieces by uuid and number. `missing` is called for each piece whose
 * image isn't there; reading through it is an error from then on. In a transaction.
 */
int catalog_base_resolve(struct catalog *catalog,
			 int (*missing)(void *opaque, const char *disk, const struct catalog_piece *piece), void *opaque,
			 struct failure *failure);

/*
 * As catalog_map_read (generation 0) and catalog_map_read_at, with what shows through in place of CATALOG_NOTHING: without fingerprints, since the generation
 * in which the piece came. At most one page is read on each level (two where pieces are shifted against pages).
 */
int catalog_content_read(struct catalog *catalog, int64_t disk, uint32_t generation, uint32_t chunk_bytes, uint64_t page,
			 struct catalog_page *ret_page, struct failure *failure);
/* As catalog_map_next, of all that shows through as well. */
int catalog_content_next(struct catalog *catalog, int64_t disk, uint32_t generation, uint32_t chunk_bytes,
			 uint64_t from_page, uint64_t *ret_page, struct failure *failure);

/* ---- chunks ---- */

struct catalog_location {
	uint64_t tag; /* first 48 bits of the digest, big-endian: a check on what is read, and the key to find it by */
	uint32_t segment;
	uint32_t off_bytes;
	uint32_t stored_bytes;
	uint32_t references;
};
/* What a record with such a payload takes in a segment: a header of 64 bytes, and padding to a multiple of 8. */
static inline uint64_t catalog_record_bytes(uint32_t stored_bytes)
{
	return (64 + (uint64_t)stored_bytes + 7) & ~(uint64_t)7;
}
/* First 48 bits of a digest. */
uint64_t catalog_tag(const uint8_t digest[CATALOG_DIGEST_BYTES]);

/* The segment of a chunk whose record is lost. */
enum { CATALOG_NO_SEGMENT = 0 };

#ifndef CATALOG_CHUNK_PAGE_ENTRIES
#define CATALOG_CHUNK_PAGE_ENTRIES 64 /* five rows fill a page of the database; of 256 chunks it would be one, and a quarter empty */
#endif

/* A new chunk with no reference yet; ids ascend from 1. In a transaction. */
int catalog_chunk_add(struct catalog *catalog, const struct catalog_location *location, uint64_t *ret_chunk,
		      struct failure *failure);
/* -ENOENT without a message when there is no such chunk (cleaned away). */
int catalog_chunk_get(struct catalog *catalog, uint64_t chunk, struct catalog_location *ret_location,
		      struct failure *failure);
/*
 * All chunks of the page that `chunk` is in, ids from chunk - chunk % CATALOG_CHUNK_PAGE_ENTRIES on; stored_bytes is 0
 * where there is none. For readers who'd rather not ask for each: a place found once stays that record's, or its
 * segment is gone (neither ids nor segment numbers are used twice), so it may be kept and tried.
 */
int catalog_chunk_get_page(struct catalog *catalog, uint64_t chunk,
			   struct catalog_location ret_locations[CATALOG_CHUNK_PAGE_ENTRIES], struct failure *failure);
/* Ids of chunks with this tag, at most `most`; nearly always 0 or 1. The digest in the record decides. */
int catalog_chunk_find(struct catalog *catalog, uint64_t tag, uint64_t *ret_chunks, size_t most, size_t *ret_count,
		       struct failure *failure);
int catalog_chunk_count(struct catalog *catalog, uint64_t *ret_count, struct failure *failure);
/*
 * Calls `visit` for each chunk there is with first <= id < end, ascending; != 0 ends the walk with that value. With
 * `location` NULL for a row that can't be read: it held chunks from this id on. One read of many rows, a moment's
 * state: whoever walks far does it in pieces. `visit` may read other things through the handle. Outside of
 * transactions.
 */
typedef int (*catalog_chunk_visit_fn)(void *opaque, uint64_t chunk, const struct catalog_location *location);
int catalog_chunk_walk(struct catalog *catalog, uint64_t first, uint64_t end, catalog_chunk_visit_fn visit,
		       void *opaque, struct failure *failure);

/* ---- segments ---- */

struct catalog_segment {
	uint32_t number; /* from 1 */
	bool sealed;
	uint64_t length_bytes; /* committed: what is behind was never acknowledged */
	uint64_t live_bytes;   /* records that something refers to, headers and padding included */
};
/* A new unsealed one of length 0 with the next number. In a transaction. */
int catalog_segment_insert(struct catalog *catalog, uint32_t *ret_number, struct failure *failure);
/* Sets length and sealed; live_bytes is kept by the catalog itself. In a transaction. */
int catalog_segment_update(struct catalog *catalog, uint32_t number, uint64_t length_bytes, bool sealed,
			   struct failure *failure);
int catalog_segment_get(struct catalog *catalog, uint32_t number, struct catalog_segment *ret_segment,
			struct failure *failure);
/* Unsealed ones, ascending. Caller frees. */
int catalog_segment_list_open(struct catalog *catalog, struct catalog_segment **ret_list, size_t *ret_count,
			      struct failure *failure);

/* Those with numbers > after, ascending, at most `most`. Outside of transactions. Caller frees. */
int catalog_segment_list(struct catalog *catalog, uint32_t after, size_t most, struct catalog_segment **ret_list,
			 size_t *ret_count, struct failure *failure);

/* ---- logs of disks ---- */

struct catalog_log_entry {
	int64_t disk;
	uint64_t sequence;
	uint32_t segment;
	uint32_t off_bytes;
	uint32_t stored_bytes;
	uint8_t digest[CATALOG_DIGEST_BYTES];
};
/* Notes where a log entry stands. The caller sets log_sequence and log_head in the disk's row. In a transaction. */
int catalog_log_insert(struct catalog *catalog, const struct catalog_log_entry *entry, struct failure *failure);
/* Entries of a disk with sequence >= from, ascending, at most `most`. For tests, check and rebuild. Caller frees. */
int catalog_log_list(struct catalog *catalog, int64_t disk, uint64_t from_sequence, size_t most,
		     struct catalog_log_entry **ret_list, size_t *ret_count, struct failure *failure);
/* The first disk > after that has entries, also one that is gone; 0: none. */
int catalog_log_next_disk(struct catalog *catalog, int64_t after, int64_t *ret_disk, struct failure *failure);

/* ---- clean-up ---- */

struct catalog_sparse_position {
	uint64_t live_bytes;
	uint32_t number;
};
/*
 * Segments with less than half alive, of which rewriting would give back least_dead_bytes or more: those with the least alive first, behind `after` (zeros: all).
 * Costs what there is of them, however many others. Outside of transactions. Caller frees.
 */
int catalog_segment_list_sparse(struct catalog *catalog, uint64_t least_dead_bytes,
				const struct catalog_sparse_position *after, size_t most,
				struct catalog_segment **ret_list, size_t *ret_count, struct failure *failure);
/* A segment that nothing alive is in, and that no row speaks of any more. In a transaction. */
int catalog_segment_remove(struct catalog *catalog, uint32_t number, struct failure *failure);

/* Forgets a chunk without references: its id and its digest lead nowhere from now on. In a transaction. */
int catalog_chunk_drop(struct catalog *catalog, uint64_t chunk, struct failure *failure);

/* Its record is at `to` from now on; references stay as they are, tag and references of `to` are ignored. In a transaction. */
int catalog_chunk_relocate(struct catalog *catalog, uint64_t chunk, const struct catalog_location *to,
			   struct failure *failure);

/* ---- what is lost ---- */

/*
 * Chunks that disks or images refer to and whose content can't be had: their record is damaged, or there is none at all, and their location is
 * CATALOG_NO_SEGMENT. They are known by their whole digest, so that whoever brings the content again heals all that refer to it. One that nothing refers to any
 * more is gone at once.
 */
int catalog_lost_add(struct catalog *catalog, const uint8_t digest[CATALOG_DIGEST_BYTES], uint64_t *ret_chunk,
		     struct failure *failure); /* in a transaction */
/*
 * The record of a chunk turned out to be damaged: it is lost from now on. Where it was is kept: a device that could not be read may come back. One that
 * nothing refers to is dropped. -EEXIST: another chunk of that digest is lost already; -EINVAL: its tag is that of another digest; -ENOENT: there is no such
 * chunk; none with a message. In a transaction.
 */
int catalog_lost_mark(struct catalog *catalog, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES],
		      struct failure *failure);
/*
 * One reference more, and one less: for whoever is about to refer to it, so that it doesn't go with its last one meanwhile. In the same
 * transaction.
 */
int catalog_lost_hold(struct catalog *catalog, uint64_t chunk, struct failure *failure);
int catalog_lost_release(struct catalog *catalog, uint64_t chunk, struct failure *failure);
/* *ret_chunk is 0 when no chunk of that digest is lost. */
int catalog_lost_find(struct catalog *catalog, const uint8_t digest[CATALOG_DIGEST_BYTES], uint64_t *ret_chunk,
		      struct failure *failure);
int catalog_lost_has(struct catalog *catalog, uint64_t chunk, bool *ret_has, struct failure *failure);
/* Its record was found sound where it is. Nothing happens if it is not lost; -EINVAL if it has no record. In a transaction. */
int catalog_lost_unmark(struct catalog *catalog, uint64_t chunk, struct failure *failure);
struct catalog_lost {
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint64_t chunk;
};
/* Those with digests > after (zeros: all), ascending, at most `most`. */
int catalog_lost_list(struct catalog *catalog, const uint8_t after[CATALOG_DIGEST_BYTES], struct catalog_lost *ret_list,
		      size_t most, size_t *ret_count, struct failure *failure);
/* Costs nothing to speak of when asked again. */
int catalog_lost_any(struct catalog *catalog, bool *ret_any, struct failure *failure);
/* Its content is at `location` now. In a transaction. */
int catalog_lost_heal(struct catalog *catalog, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES],
		      const struct catalog_location *location, struct failure *failure);
/* Forgets those that nothing refers to any more; *ret_left is how many there are then. In a transaction. */
int catalog_lost_sweep(struct catalog *catalog, uint64_t *ret_left, struct failure *failure);

/* ---- making it anew ---- */

/*
 * A catalog beside the one that is used, for a rebuild: under its own name and lock, until catalog_put_in_place(). Whatever an earlier attempt
 * left is removed. Holds nothing but tables.
 */
int catalog_create_beside(const char *store_path, uint32_t chunk_bytes, int locks_fd, struct catalog **ret_catalog,
			  struct failure *failure);
/* Closes it and removes it. */
void catalog_drop_beside(const char *store_path, struct catalog *catalog);
/*
 * Closes it and puts it in the place of the one that is used, whose lock the caller holds. At every moment before the end there is either the old one whole, or none: then a
 * rebuild has to be run again. Durable on return. On failure it is removed.
 * `check` is called when nobody can come to use the old one any more (catalog_check_current()): when it fails, the old one stays, and that is returned.
 */
int catalog_put_in_place(const char *store_path, struct catalog *catalog,
			 int (*check)(void *opaque, struct failure *failure), void *opaque, struct failure *failure);

/* A segment by its number, without anything alive yet. Later ones get higher numbers. In a transaction. */
int catalog_segment_put(struct catalog *catalog, const struct catalog_segment *segment, struct failure *failure);

/* Log entries as they were found in segments, in a table for the time of a rebuild. */
struct catalog_found {
	uint8_t uuid[CATALOG_UUID_BYTES];
	uint64_t sequence;
	uint8_t digest[CATALOG_DIGEST_BYTES];
	uint8_t predecessor[CATALOG_DIGEST_BYTES];
	int64_t time_seconds;
	uint32_t segment;
	uint32_t off_bytes;
	uint32_t stored_bytes;
};
int catalog_found_begin(struct catalog *catalog, struct failure *failure); /* outside of transactions, as the end */
int catalog_found_end(struct catalog *catalog, struct failure *failure);
/* One that was found before, of the same digest, is replaced. In a transaction. */
int catalog_found_add(struct catalog *catalog, const struct catalog_found *found, struct failure *failure);
/* The next disk of which there are entries; `uuid` of zeros: the first one that isn't all zeros. */
int catalog_found_next_disk(struct catalog *catalog, const uint8_t after[CATALOG_UUID_BYTES],
			    uint8_t ret_uuid[CATALOG_UUID_BYTES], bool *ret_any, struct failure *failure);
/* Entries of a disk with that number, at most `most`, the latest last. */
int catalog_found_list(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t sequence,
		       struct catalog_found *ret_list, size_t most, size_t *ret_count, struct failure *failure);
int catalog_found_last(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t *ret_sequence,
		       struct failure *failure);
/* This one counts. In a transaction. */
int catalog_found_choose(struct catalog *catalog, const struct catalog_found *found, struct failure *failure);
/* The one of that number that counts; -ENOENT without a message. */
int catalog_found_chosen(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t sequence,
			 struct catalog_found *ret_found, struct failure *failure);

/* The log entry whose record is there; -ENOENT without a message. */
int catalog_log_at(struct catalog *catalog, uint32_t segment, uint32_t off_bytes, struct catalog_log_entry *ret_entry,
		   struct failure *failure);
/* Its record is where `entry` says from now on. In a transaction. */
int catalog_log_relocate(struct catalog *catalog, const struct catalog_log_entry *entry, struct failure *failure);

/* ---- sums ---- */

struct catalog_usage {
	uint64_t segments;
	uint64_t committed_bytes; /* of segments: their headers, records, and what syncs filled up with zeros */
	uint64_t live_bytes;	  /* records that something refers to */
	uint64_t live_chunks;
};
/* A read that walks over all chunks: at 10 TiB of content some seconds. */
int catalog_usage(struct catalog *catalog, struct catalog_usage *ret_usage, struct failure *failure);

/* ---- checks ---- */

/* A row of `map` or `past`: states that chunks of a page have, or had until the generation `until` began. */
struct catalog_states {
	int64_t disk;
	uint64_t page;
	uint32_t until;	     /* 0: live */
	bool is_bad;	     /* the row can't be read; what follows is NULL then */
	const bool *present; /* CATALOG_PAGE_ENTRIES of them: which chunks it speaks of; NULL: of all */
	const struct catalog_entry *entries;
};
/*
 * Calls `visit` for the rows of a disk's pages first_page <= page < end_page: page by page, former states in the order
 * in which they ended, live ones last. != 0 ends the walk with that value. The rest as in catalog_chunk_walk().
 */
typedef int (*catalog_states_visit_fn)(void *opaque, const struct catalog_states *states);
int catalog_states_walk(struct catalog *catalog, int64_t disk, uint64_t first_page, uint64_t end_page,
			catalog_states_visit_fn visit, void *opaque, struct failure *failure);

struct catalog_check {
	/* Called for each thing that is wrong: "segment 7", "live bytes don't add up". Texts are valid meanwhile. */
	void (*flaw)(void *opaque, const char *what, const char *why);
	void *opaque;
	const atomic_bool *stop; /* becomes true: end soon, with -EINTR and no message; may be NULL */
};
/* The database as such: pages, trees, types of columns (PRAGMA quick_check). Reads all of it. */
int catalog_check_database(struct catalog *catalog, const struct catalog_check *check, struct failure *failure);
/*
 * Whether rows fit together: references are the entries of maps that name a chunk, live_bytes the records that
 * something refers to, each chunk has its row in the index by digest, or one that says that it is lost, and no row
 * there is without one, records lie inside of segments, states of a chunk follow each other, images and rounds are numbered as their disks say, pieces of clones lie in their disks and in images that are there.
 *
 * One read of all there is: others' commits go on meanwhile, but the write-ahead log is not started over. Memory is
 * bounded, whatever there is (some MiB). A sum that is wrong passes for right with a probability of 2^-64.
 */
int catalog_check_rows(struct catalog *catalog, uint32_t chunk_bytes, const struct catalog_check *check,
		       struct failure *failure);

/* ---- rounds ---- */

enum { CATALOG_ROUND_COUNTS = 8 };
struct catalog_round {
	int64_t disk;
	uint32_t number;
	uint8_t state; /* enum store_round_state */
	char *source;
	char *identity;
	char *how;
	char *start_stamp;
	char *dirty_bitmaps;
	uint64_t dirty_bytes;
	char *details;	    /* or NULL */
	int64_t started_at;
	int64_t finished_at; /* 0: not yet */
	uint64_t cursor_bytes;
	uint64_t counts[CATALOG_ROUND_COUNTS]; /* struct store_round_counts in its order */
	bool has_limit, has_level; /* of its own */
	uint64_t limit_bytes_per_second;
	int level;
	char *error; /* or NULL */
};
void catalog_round_release(struct catalog_round *round);
int catalog_round_insert(struct catalog *catalog, const struct catalog_round *round, struct failure *failure);
int catalog_round_update(struct catalog *catalog, const struct catalog_round *round, struct failure *failure);
int catalog_round_get(struct catalog *catalog, int64_t disk, uint32_t number, struct catalog_round *ret_round,
		      struct failure *failure); /* -ENOENT without a message */
/* disk 0: of all alive disks. By disk name, ascending number. */
int catalog_round_list(struct catalog *catalog, int64_t disk, struct catalog_round **ret_list, size_t *ret_count,
		       struct failure *failure);

#endif
