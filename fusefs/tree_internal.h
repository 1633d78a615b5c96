/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the tree; nobody else includes it.
 *
 *     tree.c       opening, names
 *     found.c      attributes
 *     nodes.c      what is known of it: nodes, origins
 *     origin.c     a disk's live content, or an image: what is in it
 *     file.c       files that are open
 *     listing.c    folders that are being listed
 *     volume.c     file systems inside of images
 *     text.c       files that are made on demand
 *
 * Locks, in the order of being taken: an origin's lock (held while a partition table is read); volumes.lock,
 * files_lock, facts_lock of an origin, of which just one is held at a time; tree->lock (nodes, origins, volumes, and
 * how often they are known). Nothing is waited for under the latter.
 */
#ifndef WHERRY_FUSEFS_TREE_INTERNAL_H
#define WHERRY_FUSEFS_TREE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "common/cleanup.h"
#include "fsreader/fsreader.h"
#include "fsreader/lvm.h"
#include "fusefs/tree.h"
#include "store/disk_pool.h"
#include "syncer/source_disk.h"

enum {
	TREE_NAME_BYTES = 256, /* of an entry, with its NUL */
	READERS_MOST = 64,     /* processes that read file systems */
	WHOLE_DISK = 0,	       /* as a partition's number */
};
#define WHOLE_DISK_NAME "disk"
#define WHY_NOT_NAME "WHY-NOT.txt"
#define WHY_NOT_SUFFIX "." WHY_NOT_NAME
#define MUTABLE_SECONDS 1.0

enum node_kind {
	NODE_STORE,
	NODE_DISK, /* of an origin that is live, as are */
	NODE_IMAGES,
	NODE_LATEST, /* number: of the image it points to */
	NODE_IMAGE,  /* of an origin that is an image, as are */
	NODE_INFO,
	NODE_FILES,
	NODE_FILES_GROUP, /* name: "VG" */
	NODE_LVM,
	NODE_LVM_GROUP,	  /* name: "VG" */
	NODE_LVM_RAW,	  /* name: "VG/LV" */
	NODE_LVM_WHY_NOT, /* name: "VG/LV" */
	NODE_RAW,	  /* of either, as are */
	NODE_PARTS,
	NODE_PART, /* number: of the partition */
	NODE_LAYOUT,
	NODE_INNER, /* of a volume: a file or folder in it, by its inode number there */
	NODE_WHY_NOT,
};

/* What live content of a disk, or an image, is known by. */
struct origin {
	struct origin *next;	/* of the same bucket */
	unsigned known;		/* tree->lock: nodes and volumes of it */
	struct volume *volumes; /* tree->lock */
	char disk[STORE_NAME_MOST_BYTES + 1];
	uint8_t disk_id[STORE_ID_OF_DISK_BYTES];
	uint32_t image; /* 0: live */
	uint64_t seed;	/* of inode numbers */
	int64_t created_at;

	_Atomic uint64_t size_bytes;
	_Atomic bool is_mirror;	       /* live: rounds write to it */
	_Atomic int64_t changed_at_ns; /* live: since 1970; written to, or found to be another than it was */
	_Atomic uint64_t writes;       /* live: through us */
	_Atomic unsigned open_count;   /* by files, volumes, and who looks what is in it */

	pthread_mutex_t facts_lock; /* what follows, of live: */
	uint64_t changes;	    /* store_disk.changes when it was last looked at */
	bool is_seen;

	pthread_mutex_t lock; /* what follows */
	bool has_contents;
	struct disk_contents contents;
	uint64_t contents_writes; /* live: that many had been done when they were read */
	double contents_at;	  /* seconds: when that was */
	struct lvm_scan *scan;	  /* or NULL: not yet, or there is none */
	bool has_scan;
	struct image_source *sources; /* what the scan borrows */
	struct fsreader_source *scan_sources;
};

struct node {
	struct node *next; /* of the same bucket */
	uint64_t known;	   /* tree->lock */
	uint64_t generation;
	uint64_t ino;
	enum node_kind kind;
	uint32_t number;
	uint64_t inner;
	struct origin *origin; /* counted, or NULL */
	struct volume *volume; /* counted, or NULL */
	char *name;	       /* owned, or NULL */
	enum { NODE_NOT_GIVEN, NODE_BEING_GIVEN, NODE_GIVEN } giving; /* tree->giving_lock */
};

/* A place in an image, as something to read from. */
struct image_source {
	struct tree *tree;
	struct origin *origin;
	uint64_t off_bytes;
	_Atomic(struct pooled_disk *) pooled; /* of who reads, who has it open; the same for all of them */
};

/* A file system inside of an image. */
struct volume {
	struct volume *next;		   /* of its origin */
	unsigned known;			   /* tree->lock: nodes of it, and one as long as it runs */
	struct origin *origin;		   /* counted */
	char name[2 * LVM_NAME_BYTES + 1]; /* "2", "disk", "VG/LV" */
	uint64_t seed;

	/* volumes.lock: */
	enum { VOLUME_STOPPED, VOLUME_STARTING, VOLUME_RUNNING, VOLUME_STOPPING } state;
	unsigned users;
	double idle_since;
	struct fsreader *reader; /* while it runs, as are */
	struct pooled_disk *pooled;
	struct image_source place;
	struct fsreader_source source;
	bool is_refused; /* it could not be started, at */
	double refused_at;
	struct failure refusal;
};

struct volumes {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a state, or that somebody is to stop */
	pthread_cond_t wake_keeper;
	pthread_t keeper;
	bool has_keeper, is_ending;
	bool keeper_has_a_time;		      /* when it looks again by itself */
	unsigned idle_count;		      /* of those that run, without users */
	struct volume *running[READERS_MOST]; /* those that aren't VOLUME_STOPPED */
	unsigned running_count;
};

enum { NODE_BUCKETS_LEAST = 1024, ORIGIN_BUCKETS = 1024 };

struct tree {
	struct tree_options options;
	struct store *store;
	bool store_is_read_only;
	struct chunk_cache *cache;
	struct disk_pool *pool;
	struct timespec opened_at;
	struct node *root;
	struct pooled_disk *root_pooled; /* of an image, that it stays as long as a part of it is the root */
	pthread_mutex_t lock;
	struct node **nodes; /* buckets */
	size_t bucket_count, node_count;
	uint64_t generations; /* given out */
	struct origin *origins[ORIGIN_BUCKETS];
	struct volumes volumes;
	pthread_mutex_t files_lock; /* what follows */
	struct file *files;	    /* that are open, as are */
	struct listing *listings;
	struct overlay *overlays; /* of images that were written to */
	pthread_mutex_t giving_lock;
	pthread_cond_t given; /* a node has been */
};

/* ---- nodes.c ---- */

uint64_t mix(uint64_t hash, uint64_t value);
uint64_t mix_text(uint64_t hash, const char *text);

/*
 * The node that is like `wanted` (kind, number, inner, origin, volume, name; the rest is filled in), known once more.
 * What it refers to is counted by it, and borrowed here. NULL: no memory.
 */
struct node *node_get(struct tree *tree, const struct node *wanted);
uint64_t node_ino(const struct node *wanted);
uint64_t inner_ino(uint64_t seed, uint64_t inner); /* of a volume with this seed */
uint64_t volume_seed(const struct origin *origin, const char *name);
void nodes_free(struct tree *tree); /* all of them, however often known */

/* The one of this disk or image, known once more; made if it isn't. NULL: no memory. */
struct origin *origin_get(struct tree *tree, const char *disk, const uint8_t disk_id[STORE_ID_OF_DISK_BYTES],
			  uint32_t image, int64_t created_at, uint64_t size_bytes);
void origin_put(struct tree *tree, struct origin *origin); /* NULL is fine */

struct volume *volume_get(struct tree *tree, struct origin *origin, const char *name);
void volume_put(struct tree *tree, struct volume *volume); /* NULL is fine */

/* ---- origin.c ---- */

void origin_release(struct origin *origin); /* what it has, but not itself */
struct store_reference origin_reference(const struct origin *origin);
/* "web01", "web01@3" */
void origin_name(const struct origin *origin, char ret_name[POOL_KEY_BYTES]);
/* Live: looks at the store whether it is there, and as it was. -ENOENT: it isn't, or another one has its name. */
int origin_refresh(struct tree *tree, struct origin *origin, struct failure *failure);
void origin_note_disk(struct origin *origin, const struct store_disk *disk);
void origin_note_change(struct origin *origin); /* written to, through us */

/* Opens it, or shares it with who has: for writing where that can be done at all. */
int origin_open(struct tree *tree, struct origin *origin, struct pooled_disk **ret_pooled, struct failure *failure);
int origin_close(struct tree *tree, struct origin *origin, struct pooled_disk *pooled, struct failure *failure);
bool origin_may_be_written(struct tree *tree, const struct origin *origin);

/* Caller frees. */
int origin_list_partitions(struct tree *tree, struct origin *origin, struct disk_partition **ret_list,
			   size_t *ret_count, struct failure *failure);
/* -ENOENT */
int origin_find_partition(struct tree *tree, struct origin *origin, uint32_t number,
			  struct disk_partition *ret_partition, struct failure *failure);
int origin_layout(struct tree *tree, struct origin *origin, char **ret_text, struct failure *failure);
/* Its length, if it is known already; else 0. */
uint64_t origin_known_layout_bytes(struct origin *origin);

/* Logical volumes of an image, or NULL where there are none. It stays, and doesn't change, as long as the origin is
 * known. */
int origin_scan(struct tree *tree, struct origin *origin, const struct lvm_scan **ret_scan, struct failure *failure);
const struct lvm_group *origin_find_group(const struct lvm_scan *scan, const char *name);
/* "VG/LV" */
const struct lvm_volume *origin_find_volume(const struct lvm_scan *scan, const char *name);
/* From here on logical volumes are read through `pooled`, which is open. */
void origin_lend(struct origin *origin, struct pooled_disk *pooled);

int image_source_read(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);

/* ---- file.c, listing.c ---- */

void files_close(struct tree *tree); /* those that are open still */
void listings_close(struct tree *tree);

/* ---- volume.c ---- */

int volumes_start(struct tree *tree, struct failure *failure);
void volumes_stop(struct tree *tree); /* all of them, and the thread */

/*
 * Starts its reader if need be, and keeps it until volume_done(). What fails here is why there are no files:
 * volume_refusal() has it.
 */
int volume_use(struct tree *tree, struct volume *volume, struct fsreader **ret_reader, struct failure *failure);
void volume_done(struct tree *tree, struct volume *volume);

/* ---- found.c ---- */

void stat_of_folder(const struct tree *tree, ino_t ino, const struct timespec *time, struct stat *ret_stat);
void stat_of_file(const struct tree *tree, ino_t ino, uint64_t size_bytes, bool is_writable,
		  const struct timespec *time, struct stat *ret_stat);
void stat_of_inner(const struct tree *tree, const struct volume *volume, const struct fsreader_attr *attr,
		   struct stat *ret_stat);
struct timespec origin_time(const struct origin *origin);
/* What is found of a node that was just made, without asking anybody. */
void found_image(struct tree *tree, struct node *node, struct found *ret_found);
void found_disk(struct tree *tree, struct node *node, struct found *ret_found);
void found_fixed(struct tree *tree, struct node *node, struct found *ret_found);
void found_part(struct tree *tree, struct node *node, uint64_t size_bytes, struct found *ret_found);
void found_inner(struct tree *tree, struct node *node, const struct fsreader_attr *attr, struct found *ret_found);
void found_latest(struct tree *tree, struct node *node, struct found *ret_found);
void found_refused(struct tree *tree, struct node *node, struct found *ret_found); /* a volume's root, without files */
void found_why_not(struct tree *tree, struct node *node, struct found *ret_found);
void found_store(struct tree *tree, struct node *node, struct found *ret_found);

/* ---- text.c ---- */

/* Content of NODE_INFO, NODE_LAYOUT, NODE_WHY_NOT, NODE_LVM_WHY_NOT as of now. Caller frees. */
int text_make(struct tree *tree, struct node *node, char **ret_text, struct failure *failure);
/* Its length, where that is to be had for little; else 0. */
uint64_t text_known_bytes(struct tree *tree, struct node *node);

#endif
