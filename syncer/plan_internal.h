/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the plan; nobody else includes it.
 *
 *     plan.c         puts it together: segments of the disk, and the walk over them
 *     plan_table.c   partition tables (libfdisk)
 *     plan_type.c    what is in a partition (libblkid)
 *     plan_ext.c     which blocks ext2/3/4 uses (libext2fs)
 *     plan_ext_io.c  how libext2fs reads a source
 *     plan_sketch.c  a disk's head and tail as a file, for libraries that want a file
 *     plan_spans.c   lists of ranges
 *
 * Errors: what is *in* the source never makes one of these fail. Bad sectors and nonsense come back as
 * "not understood", with words for people. A negative errno means that going on makes no sense:
 * out of memory, connection lost.
 */
#ifndef WHERRY_SYNCER_PLAN_INTERNAL_H
#define WHERRY_SYNCER_PLAN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/plan.h"
#include "syncer/source.h"

#ifndef PLAN_EDGE_BYTES
#define PLAN_EDGE_BYTES \
	(1024 * 1024) /* head and tail of a disk, a partition, a gap; the fuzzers have no time for that */
#endif
enum {
	PLAN_PIECE_BYTES = 64 * 1024, /* one read of metadata; a read costs a round trip, more bytes cost little */
	PLAN_MAX_PARTITIONS = 256,    /* each costs a few reads */
	PLAN_WHY_BYTES = 96,	      /* sizeof plan_partition.why_whole */
	PLAN_REQUEST_ALIGNMENT_BYTES = 4096, /* left-out ranges start and end on it where they can, so that reads do */
};

/* ------------------------------------------------------------------ plan_spans.c */

/* [first, end), in bytes or in blocks, as the list's owner says. Never empty in a list. */
struct plan_span {
	uint64_t first;
	uint64_t end;
};

struct plan_spans {
	struct plan_span *spans;
	size_t count;
	size_t capacity;
};

/* Empty spans are dropped; one that touches one of the last few is merged into it. -ENOMEM. */
int plan_spans_add(struct plan_spans *list, uint64_t first, uint64_t end, struct failure *failure);
void plan_spans_normalise(struct plan_spans *list); /* sorted, disjoint, none touches the next */
void plan_spans_free(struct plan_spans *list);	    /* leaves it empty */

/* The first span of a normalised list with end > position; list->count when there is none. */
size_t plan_spans_find(const struct plan_spans *list, uint64_t position);

/* ----------------------------------------------------------------- plan_sketch.c */

/*
 * Reads exactly len_bytes. Where the medium can't be read there, *ret_is_bad = true and 0 comes back, and the
 * buffer's content means nothing.
 */
int plan_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, bool *ret_is_bad,
	      struct failure *failure);

/*
 * A range of a source as a file, zeros except for what was copied into it: libfdisk and libblkid want a
 * descriptor, and an NBD export has none. A sparse memfd, so its size costs nothing.
 */
struct plan_sketch {
	struct source *source;
	uint64_t off_bytes;
	uint64_t len_bytes;
	int fd;
	bool is_incomplete; /* something that was to be copied can't be read */
};

int plan_sketch_open(struct source *source, uint64_t off_bytes, uint64_t len_bytes, struct plan_sketch *ret_sketch,
		     struct failure *failure);
void plan_sketch_close(struct plan_sketch *sketch);

/* Copies a range, relative to the sketch, clipped at its end. */
int plan_sketch_copy(struct plan_sketch *sketch, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure);
int plan_sketch_copy_edges(struct plan_sketch *sketch, struct failure *failure);

/* What was copied; zeros where nothing was, and beyond the end. */
int plan_sketch_get(const struct plan_sketch *sketch, void *buffer, size_t len_bytes, uint64_t off_bytes,
		    struct failure *failure);
int plan_sketch_put(const struct plan_sketch *sketch, const void *buffer, size_t len_bytes, uint64_t off_bytes,
		    struct failure *failure);

/* ------------------------------------------------------------------ plan_table.c */

struct plan_slot {
	unsigned number;
	uint64_t off_bytes;
	uint64_t len_bytes; /* > 0, inside the disk */
	bool is_clipped;    /* the table says more than the disk has */
};

/*
 * A partition table as it was read with one sector size. `slots` are the partitions that hold something, not the
 * containers of logical ones. `pinned` is where the table itself lies: read always. `mentioned` are ranges that
 * some entry speaks of without being one of the slots (hybrid MBRs, entries that libfdisk passes over): read
 * always, and no gap.
 */
struct plan_table {
	const char *type;	  /* "gpt", "dos", "none" */
	uint32_t sector_bytes;	  /* it was read with */
	const char *why_distrust; /* NULL, or why nothing may be left out on the word of this table */
	struct plan_slot *slots;
	unsigned slot_count;
	struct plan_spans pinned;
	struct plan_spans mentioned;
};

int plan_table_read(struct source *source, uint32_t sector_bytes, struct plan_table *ret_table,
		    struct failure *failure);
void plan_table_free(struct plan_table *table);

/*
 * The same as "sfdisk --dump" prints it of a device `name`, where there is one that libfdisk reads; else "". Caller frees.
 */
int plan_table_dump(struct source *source, uint32_t sector_bytes, const char *name, char **ret_text, struct failure *failure);

/* ------------------------------------------------------------------- plan_type.c */

struct plan_type {
	char name[sizeof(((struct plan_partition *)NULL)->type)]; /* "" when unknown or ambivalent */
	char label[sizeof(((struct plan_partition *)NULL)->label)];
	char uuid[sizeof(((struct plan_partition *)NULL)->uuid)];
	bool holds_files;     /* a file system, rather than swap, a volume of LVM, … */
	bool is_ambivalent;   /* signatures of more than one thing, or can't be read */
	bool has_other_table; /* a partition table of a kind that plan_table.c doesn't know */
	bool looks_in_use;
	struct plan_span swap_pages; /* bytes, relative to the range: content of swap; end == 0 if it isn't swap */
};

int plan_type_probe(struct source *source, uint64_t off_bytes, uint64_t len_bytes, struct plan_type *ret_type,
		    struct failure *failure);
bool plan_type_is_ext(const char *name);

/* -------------------------------------------------------------------- plan_ext.c */

/* An ext2/3/4 whose allocation maps are trusted. */
struct plan_ext;

/*
 * *ret_ext is NULL when the maps can't be trusted, and ret_why says why then. `name` is what notices call it, it
 * is copied. `is_told` remembers over openings that a damaged group was told about once; owned by the caller.
 */
int plan_ext_open(struct source *source, uint64_t off_bytes, uint64_t len_bytes, const char *name,
		  const struct notices *notices, bool *is_told, struct plan_ext **ret_ext, char ret_why[PLAN_WHY_BYTES],
		  struct failure *failure);
void plan_ext_close(struct plan_ext *ext);

uint64_t plan_ext_size_bytes(const struct plan_ext *ext); /* of the file system */

/*
 * From off_bytes (in the file system) on: is it in use, and how far does that hold. *ret_is_lost becomes true when
 * somebody changed or mounted the file system meanwhile: its maps aren't trusted any more, the caller reads the rest.
 */
int plan_ext_next(struct plan_ext *ext, uint64_t off_bytes, bool *ret_in_use, uint64_t *ret_len_bytes,
		  bool *ret_is_lost, struct failure *failure);

#endif
