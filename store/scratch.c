/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a block of 4 KiB of the overlay is:
 *
 *     BASE  in the disk below
 *     DATA  in a temporary file, at its own offset
 *     ZERO  nowhere
 *
 * BASE is left once and never comes back. Two bits a block say so, in leaves of 16 MiB of the disk, which are made when
 * the first of their blocks leaves BASE, in tables that are made in the same way: 64 MiB of memory for each TiB that is
 * written all over, next to nothing for a disk of 1 PiB that isn't. Files are sparse; each has 4 TiB of the disk,
 * because file systems end somewhere (ext4 at 16 TiB).
 *
 * What happens to a block:
 *
 *     all of it is written          data to the file, then DATA
 *     a part of it is written       DATA: just that part goes to the file
 *                                   BASE, ZERO: the block is read, changed and written whole, then DATA
 *     all of it becomes zero        ZERO, then its room in the file is given back
 *     a part of it becomes zero     as written
 *     it becomes zero, and is       nothing
 *     read                          its state is looked at first, then the bytes are fetched
 *
 * Everything but the read-change-write may happen at once to the same block: what two requests that overlap in time
 * leave behind is what one of the two orders would have left, or, for a reader, a mixture of the two, as with any disk.
 * A change of the whole block must not happen between the read and the write of another thread's part, though, for it
 * would be undone. So there are locks, each for every 64th MiB of the disk: read-change-write holds it alone, the
 * others share it. Readers take none.
 *
 * No order between state and file matters to a crash: after one there is neither.
 */
#include "store/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"

enum {
	BLOCK_BYTES = 4096,
	BLOCKS_PER_WORD = 32,
	LEAF_WORDS = 128,
	LEAF_BLOCKS = LEAF_WORDS * BLOCKS_PER_WORD, /* 16 MiB */
	TABLE_LEAVES = 1 << 14,			    /* 256 GiB */
	LOCKS = 64,
};
#define TABLE_BLOCKS ((uint64_t)TABLE_LEAVES * LEAF_BLOCKS)
#define LOCK_BYTES ((uint64_t)1 << 20)
#define FILE_SPAN_BYTES ((uint64_t)1 << 42)

enum block_state { BLOCK_BASE = 0, BLOCK_DATA = 1, BLOCK_ZERO = 3 };
#define EACH_LOW_BIT UINT64_C(0x5555555555555555)

struct leaf {
	_Atomic uint64_t words[LEAF_WORDS]; /* two bits a block, the first one lowest */
};
struct leaf_table {
	struct leaf *_Atomic leaves[TABLE_LEAVES];
};

struct scratch {
	struct disk *base;
	uint64_t size_bytes;
	uint64_t block_count;
	char *folder;
	struct leaf_table *_Atomic *tables;
	size_t table_count;
	_Atomic int *files; /* 0: not made yet, else descriptor + 1 */
	size_t file_count;
	pthread_mutex_t file_lock; /* making one */
	pthread_rwlock_t locks[LOCKS];
};

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void unlock_shared_or_alone(pthread_rwlock_t **lock)
{
	(void)pthread_rwlock_unlock(*lock); /* can't fail for a lock this thread holds */
}

static pthread_rwlock_t *lock_of(struct scratch *scratch, uint64_t off_bytes)
{
	return &scratch->locks[off_bytes / LOCK_BYTES % LOCKS];
}

/* ---- states ---- */

/* NULL: all its blocks are BASE. */
static struct leaf *find_leaf(struct scratch *scratch, uint64_t block)
{
	struct leaf_table *table = atomic_load_explicit(&scratch->tables[block / TABLE_BLOCKS], memory_order_acquire);

	if (table == NULL)
		return NULL;
	return atomic_load_explicit(&table->leaves[block / LEAF_BLOCKS % TABLE_LEAVES], memory_order_acquire);
}

static int make_leaf(struct scratch *scratch, uint64_t block, struct leaf **ret_leaf, struct failure *failure)
{
	struct leaf_table *_Atomic *table_at = &scratch->tables[block / TABLE_BLOCKS];
	struct leaf_table *table = atomic_load_explicit(table_at, memory_order_acquire);
	struct leaf_table *no_table = NULL;
	struct leaf *_Atomic *leaf_at;
	struct leaf *leaf, *no_leaf = NULL;

	if (table == NULL) {
		table = calloc(1, sizeof(*table));
		if (table == NULL)
			return fail(failure, -ENOMEM, "%s: scratch: out of memory", disk_name(scratch->base));
		if (!atomic_compare_exchange_strong(table_at, &no_table, table)) {
			free(table); /* another thread was faster */
			table = no_table;
		}
	}
	leaf_at = &table->leaves[block / LEAF_BLOCKS % TABLE_LEAVES];
	leaf = atomic_load_explicit(leaf_at, memory_order_acquire);
	if (leaf == NULL) {
		leaf = calloc(1, sizeof(*leaf));
		if (leaf == NULL)
			return fail(failure, -ENOMEM, "%s: scratch: out of memory", disk_name(scratch->base));
		if (!atomic_compare_exchange_strong(leaf_at, &no_leaf, leaf)) {
			free(leaf);
			leaf = no_leaf;
		}
	}
	*ret_leaf = leaf;
	return 0;
}

static enum block_state state_in(uint64_t word, uint64_t block)
{
	return (enum block_state)(word >> (block % BLOCKS_PER_WORD * 2) & 3);
}

static enum block_state state_of(struct scratch *scratch, uint64_t block)
{
	struct leaf *leaf = find_leaf(scratch, block);

	if (leaf == NULL)
		return BLOCK_BASE;
	return state_in(atomic_load_explicit(&leaf->words[block % LEAF_BLOCKS / BLOCKS_PER_WORD], memory_order_acquire),
			block);
}

/* The block behind the run of blocks that starts at `block` and are alike; `end` at most. */
static uint64_t end_of_run(struct scratch *scratch, uint64_t block, uint64_t end, enum block_state *ret_state)
{
	enum block_state state = state_of(scratch, block);

	*ret_state = state;
	block++; /* that one is in the run, whatever has become of it since it was looked at */
	while (block < end) {
		struct leaf *leaf = find_leaf(scratch, block);
		uint64_t word;

		if (leaf == NULL) {
			if (state != BLOCK_BASE)
				return block;
			bool has_table = atomic_load_explicit(&scratch->tables[block / TABLE_BLOCKS],
							      memory_order_acquire) != NULL;
			uint64_t step = has_table ? LEAF_BLOCKS : TABLE_BLOCKS;

			block = (block / step + 1) * step;
			continue;
		}
		word = atomic_load_explicit(&leaf->words[block % LEAF_BLOCKS / BLOCKS_PER_WORD], memory_order_acquire);
		if (block % BLOCKS_PER_WORD == 0 && word == EACH_LOW_BIT * (uint64_t)state) {
			block += BLOCKS_PER_WORD;
			continue;
		}
		if (state_in(word, block) != state)
			return block;
		block++;
	}
	return end;
}

/*
 * Blocks of one leaf. The two steps to DATA let nobody see a block at BASE again. Returns whether one of them may have
 * been DATA.
 */
static bool set_states(struct leaf *leaf, uint64_t block, uint64_t end, enum block_state state)
{
	bool was_data = false;

	while (block < end) {
		uint64_t count = smaller(end - block, BLOCKS_PER_WORD - block % BLOCKS_PER_WORD);
		uint64_t low_bits = EACH_LOW_BIT & (UINT64_MAX >> (64 - 2 * count)) << (block % BLOCKS_PER_WORD * 2);
		_Atomic uint64_t *word = &leaf->words[block % LEAF_BLOCKS / BLOCKS_PER_WORD];
		uint64_t old;

		if (state == BLOCK_DATA) {
			(void)atomic_fetch_or_explicit(word, low_bits, memory_order_release);
			(void)atomic_fetch_and_explicit(word, ~(low_bits << 1), memory_order_release);
		} else {
			old = atomic_fetch_or_explicit(word, low_bits | low_bits << 1, memory_order_acq_rel);
			was_data = was_data || (old & low_bits & ~(old >> 1)) != 0;
		}
		block += count;
	}
	return was_data;
}

/* ---- temporary files ---- */

static int open_file(struct scratch *scratch, size_t number, struct failure *failure)
{
	uint64_t first_bytes = number * FILE_SPAN_BYTES;
	AUTO_CLOSE int fd = open(scratch->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	int error = errno;

	if (fd < 0 && (error == EOPNOTSUPP || error == EISDIR || error == ENOENT)) { /* no O_TMPFILE there */
		AUTO_FREE char *path = NULL;

		if (asprintf(&path, "%s/wherry-scratch-XXXXXX", scratch->folder) < 0) {
			path = NULL;
			return fail(failure, -ENOMEM, "%s: scratch: out of memory", disk_name(scratch->base));
		}
		fd = mkostemp(path, O_CLOEXEC);
		error = errno;
		if (fd >= 0)
			(void)unlink(path); /* one that stays is empty, and found by whoever cleans up there */
	}
	if (fd < 0)
		return fail_errno(failure, -error, "%s: scratch: a temporary file in %s", disk_name(scratch->base),
				  scratch->folder);
	if (ftruncate(fd, (off_t)smaller(FILE_SPAN_BYTES, scratch->size_bytes - first_bytes)) < 0)
		return fail_errno(failure, -errno, "%s: scratch: a sparse temporary file in %s",
				  disk_name(scratch->base), scratch->folder);
	atomic_store_explicit(&scratch->files[number], take_fd(&fd) + 1, memory_order_release);
	return 0;
}

static int get_file(struct scratch *scratch, uint64_t off_bytes, int *ret_fd, struct failure *failure)
{
	size_t number = off_bytes / FILE_SPAN_BYTES;
	int file = atomic_load_explicit(&scratch->files[number], memory_order_acquire);

	if (file == 0) {
		WITH_LOCK(&scratch->file_lock);
		if (atomic_load_explicit(&scratch->files[number], memory_order_relaxed) == 0) {
			int error = open_file(scratch, number, failure);

			if (error < 0)
				return error;
		}
		file = atomic_load_explicit(&scratch->files[number], memory_order_relaxed);
	}
	*ret_fd = file - 1;
	return 0;
}

/* A range that lies in one file. */
static int read_file(struct scratch *scratch, void *buffer, size_t len_bytes, uint64_t off_bytes,
		     struct failure *failure)
{
	uint8_t *at = buffer;
	int fd;
	int error = get_file(scratch, off_bytes, &fd, failure);

	while (len_bytes > 0 && error == 0) {
		ssize_t got = pread(fd, at, len_bytes, (off_t)(off_bytes % FILE_SPAN_BYTES));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) /* 0: somebody has cut the file */
			return fail_errno(failure, got < 0 ? -errno : -EIO,
					  "%s: scratch: reading a temporary file in %s", disk_name(scratch->base),
					  scratch->folder);
		at += got;
		len_bytes -= (size_t)got;
		off_bytes += (uint64_t)got;
	}
	return error;
}

static int write_file(struct scratch *scratch, const void *buffer, size_t len_bytes, uint64_t off_bytes,
		      struct failure *failure)
{
	const uint8_t *at = buffer;
	int fd;
	int error = get_file(scratch, off_bytes, &fd, failure);

	while (len_bytes > 0 && error == 0) {
		ssize_t put = pwrite(fd, at, len_bytes, (off_t)(off_bytes % FILE_SPAN_BYTES));

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return fail_errno(failure, -errno, "%s: scratch: writing a temporary file in %s",
					  disk_name(scratch->base), scratch->folder);
		at += put;
		len_bytes -= (size_t)put;
		off_bytes += (uint64_t)put;
	}
	return error;
}

/* ---- opening and closing ---- */

static int set_up(struct scratch *scratch, const char *folder, struct failure *failure)
{
	const char *name = disk_name(scratch->base);
	struct stat status;

	if (folder == NULL)
		folder = getenv("TMPDIR");
	if (folder == NULL || *folder == '\0')
		folder = "/var/tmp";
	if (stat(folder, &status) < 0)
		return fail_errno(failure, -errno, "%s: scratch: folder %s", name, folder);
	if (!S_ISDIR(status.st_mode) || access(folder, W_OK | X_OK) < 0)
		return fail(failure, -EACCES, "%s: scratch: %s: not a folder that we may write to; TMPDIR names one",
			    name, folder);
	scratch->folder = strdup(folder);
	scratch->tables = calloc(scratch->table_count, sizeof(*scratch->tables));
	scratch->files = calloc(scratch->file_count, sizeof(*scratch->files));
	if (scratch->folder == NULL || scratch->tables == NULL || scratch->files == NULL)
		return fail(failure, -ENOMEM, "%s: scratch: out of memory", name);
	return 0;
}

int scratch_new(struct disk *base, const char *folder, struct scratch **ret_scratch, struct failure *failure)
{
	struct scratch *scratch = calloc(1, sizeof(*scratch));
	int error;

	if (scratch == NULL)
		return fail(failure, -ENOMEM, "%s: scratch: out of memory", disk_name(base));
	scratch->base = base;
	scratch->size_bytes = disk_size(base);
	scratch->block_count = (scratch->size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES; /* sizes end at 2^60 */
	scratch->table_count = scratch->block_count / TABLE_BLOCKS + 1;
	scratch->file_count = scratch->size_bytes / FILE_SPAN_BYTES + 1;
	(void)pthread_mutex_init(&scratch->file_lock, NULL); /* on Linux these can't fail */
	for (unsigned i = 0; i < LOCKS; i++)
		(void)pthread_rwlock_init(&scratch->locks[i], NULL);
	error = set_up(scratch, folder, failure);
	if (error < 0) {
		scratch_free(scratch);
		return error;
	}
	*ret_scratch = scratch;
	return 0;
}

static void free_table(struct leaf_table *table)
{
	for (size_t i = 0; table != NULL && i < TABLE_LEAVES; i++)
		free(table->leaves[i]);
	free(table);
}

void scratch_free(struct scratch *scratch)
{
	if (scratch == NULL)
		return;
	for (size_t i = 0; scratch->tables != NULL && i < scratch->table_count; i++)
		free_table(scratch->tables[i]);
	for (size_t i = 0; scratch->files != NULL && i < scratch->file_count; i++)
		if (scratch->files[i] != 0)
			(void)close(scratch->files[i] - 1); /* what it held is given up */
	for (unsigned i = 0; i < LOCKS; i++)
		(void)pthread_rwlock_destroy(&scratch->locks[i]);
	(void)pthread_mutex_destroy(&scratch->file_lock);
	free(scratch->tables);
	free(scratch->files);
	free(scratch->folder);
	free(scratch);
}

static int check_range(const struct scratch *scratch, uint64_t len_bytes, uint64_t off_bytes, int error_beyond,
		       struct failure *failure)
{
	if (off_bytes <= scratch->size_bytes && len_bytes <= scratch->size_bytes - off_bytes)
		return 0;
	return fail(failure, error_beyond, "%s: %" PRIu64 " bytes at %" PRIu64 ": beyond its end at %" PRIu64,
		    disk_name(scratch->base), len_bytes, off_bytes, scratch->size_bytes);
}

/* ---- reading ---- */

int scratch_read(struct scratch *scratch, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	uint8_t *at = buffer;
	int error = check_range(scratch, len_bytes, off_bytes, -EINVAL, failure);

	while (len_bytes > 0 && error == 0) {
		/* no further than its file */
		uint64_t file_end_bytes = (off_bytes / FILE_SPAN_BYTES + 1) * FILE_SPAN_BYTES;
		uint64_t until_bytes = smaller(off_bytes + len_bytes, file_end_bytes);
		enum block_state state;
		uint64_t run_end =
			end_of_run(scratch, off_bytes / BLOCK_BYTES, (until_bytes - 1) / BLOCK_BYTES + 1, &state);
		size_t piece_bytes = (size_t)(smaller(run_end * BLOCK_BYTES, until_bytes) - off_bytes);

		if (state == BLOCK_BASE)
			error = disk_read(scratch->base, at, piece_bytes, off_bytes, failure);
		else if (state == BLOCK_DATA)
			error = read_file(scratch, at, piece_bytes, off_bytes, failure);
		else
			memset(at, 0, piece_bytes);
		at += piece_bytes;
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return error;
}

struct extents_query {
	int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero);
	void *opaque;
	int ended; /* what `found` returned */
};

static int pass_on(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct extents_query *query = opaque;

	query->ended = query->found(query->opaque, off_bytes, len_bytes, is_hole, is_zero);
	return query->ended;
}

int scratch_extents(struct scratch *scratch, uint64_t off_bytes, uint64_t len_bytes,
		    int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero),
		    void *opaque, struct failure *failure)
{
	struct extents_query query = {.found = found, .opaque = opaque};
	int error = check_range(scratch, len_bytes, off_bytes, -EINVAL, failure);
	uint64_t until_bytes;

	if (error < 0)
		return error;
	until_bytes = off_bytes + len_bytes;
	while (off_bytes < until_bytes) {
		enum block_state state;
		uint64_t run_end =
			end_of_run(scratch, off_bytes / BLOCK_BYTES, (until_bytes - 1) / BLOCK_BYTES + 1, &state);
		uint64_t piece_bytes = smaller(run_end * BLOCK_BYTES, until_bytes) - off_bytes;

		if (state == BLOCK_BASE)
			error = disk_extents(scratch->base, off_bytes, piece_bytes, pass_on, &query, failure);
		else
			error = pass_on(&query, off_bytes, piece_bytes, state == BLOCK_ZERO, state == BLOCK_ZERO);
		if (error != 0)
			return error;
		off_bytes += piece_bytes;
	}
	return 0;
}

/* ---- writing ---- */

/* Whole blocks (the disk's last one may be short) under one lock and in one file and leaf. */
static int write_blocks(struct scratch *scratch, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
			struct failure *failure)
{
	AUTO(unlock_shared_or_alone) pthread_rwlock_t *lock = lock_of(scratch, off_bytes);
	struct leaf *leaf;
	int error;

	(void)pthread_rwlock_rdlock(lock);
	error = make_leaf(scratch, off_bytes / BLOCK_BYTES, &leaf, failure);
	if (error == 0)
		error = write_file(scratch, at, len_bytes, off_bytes, failure);
	if (error == 0)
		(void)set_states(leaf, off_bytes / BLOCK_BYTES, (off_bytes + len_bytes - 1) / BLOCK_BYTES + 1,
				 BLOCK_DATA);
	return error;
}

/* The read-change-write of one block: `at` NULL writes zeros. */
static int change_block(struct scratch *scratch, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
			struct failure *failure)
{
	uint8_t block[BLOCK_BYTES];
	uint64_t first_bytes = off_bytes / BLOCK_BYTES * BLOCK_BYTES;
	size_t block_bytes = (size_t)smaller(BLOCK_BYTES, scratch->size_bytes - first_bytes);
	struct leaf *leaf;
	int error = make_leaf(scratch, off_bytes / BLOCK_BYTES, &leaf, failure);

	if (error == 0)
		error = scratch_read(scratch, block, block_bytes, first_bytes, failure);
	if (error < 0)
		return error;
	if (at == NULL)
		memset(block + (off_bytes - first_bytes), 0, len_bytes);
	else
		memcpy(block + (off_bytes - first_bytes), at, len_bytes);
	error = write_file(scratch, block, block_bytes, first_bytes, failure);
	if (error == 0)
		(void)set_states(leaf, off_bytes / BLOCK_BYTES, off_bytes / BLOCK_BYTES + 1, BLOCK_DATA);
	return error;
}

/* A part of one block; zeros with `at` NULL. */
static int write_part(struct scratch *scratch, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
		      struct failure *failure)
{
	static const uint8_t zeros[BLOCK_BYTES];
	AUTO(unlock_shared_or_alone) pthread_rwlock_t *lock = lock_of(scratch, off_bytes);

	(void)pthread_rwlock_rdlock(lock);
	if (state_of(scratch, off_bytes / BLOCK_BYTES) == BLOCK_DATA)
		return write_file(scratch, at == NULL ? zeros : at, len_bytes, off_bytes, failure);
	(void)pthread_rwlock_unlock(lock);
	(void)pthread_rwlock_wrlock(lock);
	return change_block(scratch, at, len_bytes, off_bytes, failure);
}

/* How much of a request, at its beginning, is either whole blocks under one lock, or a part of one block. */
static size_t next_piece(const struct scratch *scratch, uint64_t len_bytes, uint64_t off_bytes, bool *ret_is_whole)
{
	uint64_t end_bytes = off_bytes + len_bytes;
	uint64_t block_end_bytes = smaller((off_bytes / BLOCK_BYTES + 1) * BLOCK_BYTES, scratch->size_bytes);
	uint64_t lock_end_bytes = (off_bytes / LOCK_BYTES + 1) * LOCK_BYTES;

	*ret_is_whole = off_bytes % BLOCK_BYTES == 0 && end_bytes >= block_end_bytes;
	if (!*ret_is_whole)
		return (size_t)(smaller(end_bytes, block_end_bytes) - off_bytes);
	if (end_bytes >= lock_end_bytes)
		return (size_t)(lock_end_bytes - off_bytes);
	return (size_t)((end_bytes == scratch->size_bytes ? end_bytes : end_bytes / BLOCK_BYTES * BLOCK_BYTES) -
			off_bytes);
}

int scratch_write(struct scratch *scratch, const void *buffer, size_t len_bytes, uint64_t off_bytes,
		  struct failure *failure)
{
	const uint8_t *at = buffer;
	int error = check_range(scratch, len_bytes, off_bytes, -ENOSPC, failure);

	while (len_bytes > 0 && error == 0) {
		bool is_whole;
		size_t piece_bytes = next_piece(scratch, len_bytes, off_bytes, &is_whole);

		error = (is_whole ? write_blocks : write_part)(scratch, at, piece_bytes, off_bytes, failure);
		at += piece_bytes;
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return error;
}

/*
 * Whole blocks of one leaf become zero. The locks that they lie under are held for a MiB at a time: what is true for
 * the whole is true for its parts.
 */
static int zero_blocks(struct scratch *scratch, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	AUTO(unlock_shared_or_alone) pthread_rwlock_t *lock = lock_of(scratch, off_bytes);
	struct leaf *leaf;
	int error;
	int fd;

	(void)pthread_rwlock_rdlock(lock);
	error = make_leaf(scratch, off_bytes / BLOCK_BYTES, &leaf, failure);
	if (error < 0)
		return error;
	if (!set_states(leaf, off_bytes / BLOCK_BYTES, (off_bytes + len_bytes - 1) / BLOCK_BYTES + 1, BLOCK_ZERO))
		return 0;
	/* Room is given back where the file system can; the content counts as zero in any case. */
	if (get_file(scratch, off_bytes, &fd, NULL) == 0)
		(void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(off_bytes % FILE_SPAN_BYTES),
				(off_t)len_bytes);
	return 0;
}

static int zero_range(struct scratch *scratch, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		bool is_whole;
		size_t piece_bytes = next_piece(scratch, len_bytes, off_bytes, &is_whole);

		error = is_whole ? zero_blocks(scratch, piece_bytes, off_bytes, failure)
				 : write_part(scratch, NULL, piece_bytes, off_bytes, failure);
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return error;
}

struct first_extent {
	uint64_t len_bytes;
	bool is_zero;
};

static int take_first_extent(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct first_extent *first = opaque;

	(void)off_bytes;
	(void)is_hole;
	*first = (struct first_extent){.len_bytes = len_bytes, .is_zero = is_zero};
	return 1; /* enough */
}

/*
 * What is zero already stays as it is, so that who discards a whole disk before he makes a file system on it doesn't
 * pay for its size.
 */
int scratch_zero(struct scratch *scratch, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	int error = check_range(scratch, len_bytes, off_bytes, -ENOSPC, failure);

	while (len_bytes > 0 && error == 0) {
		struct first_extent first = {.len_bytes = len_bytes};

		error = scratch_extents(scratch, off_bytes, len_bytes, take_first_extent, &first, failure);
		if (error >= 0)
			error = first.is_zero ? 0 : zero_range(scratch, first.len_bytes, off_bytes, failure);
		off_bytes += first.len_bytes;
		len_bytes -= first.len_bytes;
	}
	return error;
}
