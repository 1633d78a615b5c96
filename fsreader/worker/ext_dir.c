/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders: blocks of entries, or entries inside of the inode. Whether it has an index (htree) makes no difference to
 * who lists it: the blocks of an index look like one large unused entry.
 *
 * A cookie is the number of the byte behind an entry, so that listings go on without looking at what came before, and
 * in the same order always.
 *
 * A folder may be damaged: a block that can't be read, or has a wrong checksum, entries that make no sense, a hole.
 * What else it has is shown, and the listing fails at its end, so that nobody takes it for all there is. A bit of the
 * cookie remembers it.
 *
 * Size and blocks of a folder are what its inode claims. No block may be in it twice, so a listing ends, after as many
 * blocks as the file system has at most; and one question looks at a bounded number of them.
 *
 *     in the inode:   4 bytes: the number of "..";  entries up to byte 60;  entries in the attribute system.data
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum {
	ENTRY_HEAD_BYTES = 8,
	ALIGNMENT = 8,
	ENTRY_ROOM_BYTES = sizeof(struct ext_entry) + FSREADER_NAME_MOST_BYTES + 1 + sizeof(struct ext_node),
	BLOCKS_MOST = 4096, /* looked at for one question: 16 MiB, with blocks of 4 KiB */
	PIECES_AT_ONCE = 512,
	PIECES_MOST = 256 * 1024,
	INLINE_FIRST_BYTES = 4,
	INLINE_MIDDLE_BYTES = 60,
	/* of an index */
	INDEX_ROOT_OFF_BYTES = 24, /* behind "." and ".." */
	INDEX_NODE_OFF_BYTES = 8,
	INDEX_ROOT_INFO_BYTES = 8,
	INDEX_ENTRY_BYTES = 8,
	INDEX_LEVELS_MOST = 3,
};

#define COOKIE_DAMAGED ((uint64_t)1 << 62)

void ext_dir_free(struct ext_dir *dir)
{
	free(dir->inline_data);
	free(dir->pieces);
	*dir = (struct ext_dir){.ino = 0};
}

/* -------------------------------------------------------------------- open */

static int compare_places(const void *left, const void *right)
{
	const struct ext_piece *one = left, *other = right;

	return one->place_bytes < other->place_bytes ? -1 : one->place_bytes > other->place_bytes;
}

/* Whether a block is in the folder twice. */
static int find_repetition(const struct ext_dir *dir, bool *ret_has_some)
{
	AUTO_FREE struct ext_piece *sorted = NULL;

	*ret_has_some = false;
	if (dir->piece_count < 2)
		return 0;
	sorted = malloc(dir->piece_count * sizeof(*sorted));
	if (sorted == NULL)
		return -ENOMEM;
	memcpy(sorted, dir->pieces, dir->piece_count * sizeof(*sorted));
	qsort(sorted, dir->piece_count, sizeof(*sorted), compare_places);
	for (size_t i = 1; i < dir->piece_count; i++)
		*ret_has_some |= sorted[i].place_bytes < sorted[i - 1].place_bytes + sorted[i - 1].len_bytes;
	return 0;
}

static int grow_pieces(struct ext_dir *dir)
{
	struct ext_piece *grown = realloc(dir->pieces, (dir->piece_count + PIECES_AT_ONCE) * sizeof(*grown));

	if (grown == NULL)
		return -ENOMEM;
	dir->pieces = grown;
	return 0;
}

static int load_map(struct ext_worker *worker, const struct ext_inode *inode, struct ext_dir *dir,
		    struct failure *failure)
{
	uint64_t block = 0;
	bool has_repetition;

	while (block < dir->block_count) {
		size_t count;
		int error;

		if (dir->piece_count > PIECES_MOST)
			return fail(failure, -EIO,
				    "folder inode %u is damaged: it has more pieces than a folder can have",
				    inode->ino);
		if (grow_pieces(dir) < 0)
			return fail(failure, -ENOMEM, "out of memory");
		error = ext_map_read(worker, inode, block, EXT_MAP_FOR_LIBRARY, dir->pieces + dir->piece_count,
				     PIECES_AT_ONCE, &count, &block, failure);
		if (error < 0)
			return error;
		dir->piece_count += count;
	}
	if (find_repetition(dir, &has_repetition) < 0)
		return fail(failure, -ENOMEM, "out of memory");
	return has_repetition ? fail(failure, -EIO, "folder inode %u is damaged: a block is in it twice", inode->ino)
			      : 0;
}

static int load_dir(struct ext_worker *worker, const struct ext_inode *inode, struct ext_dir *dir,
		    struct failure *failure)
{
	uint64_t block_bytes = worker->fs->blocksize, size_bytes = ext_inode_size_bytes(worker, inode);

	dir->flags = inode->raw->i_flags;
	if ((dir->flags & EXT4_INLINE_DATA_FL) != 0)
		return ext_value_inline(worker, inode, &dir->inline_data, &dir->inline_bytes, failure);
	dir->block_count = size_bytes / block_bytes + (size_bytes % block_bytes != 0);
	if (dir->block_count > ext2fs_blocks_count(worker->fs->super))
		return fail(failure, -EIO, "folder inode %u is damaged: it is larger than the file system", inode->ino);
	return load_map(worker, inode, dir, failure);
}

static struct ext_dir *oldest_dir(struct ext_worker *worker)
{
	struct ext_dir *oldest = &worker->dirs[0];

	for (unsigned i = 1; i < EXT_DIRS; i++) {
		if (worker->dirs[i].used_at < oldest->used_at)
			oldest = &worker->dirs[i];
	}
	return oldest;
}

static struct ext_dir *known_dir(struct ext_worker *worker, ext2_ino_t ino)
{
	for (unsigned i = 0; i < EXT_DIRS; i++) {
		if (worker->dirs[i].ino == ino)
			return &worker->dirs[i];
	}
	return NULL;
}

static int open_dir(struct ext_worker *worker, uint64_t number, struct ext_dir **ret_dir, struct failure *failure)
{
	struct ext_dir *dir;
	ext2_ino_t ino;
	int error = ext_inode_from_number(worker, number, &ino, failure);

	if (error < 0)
		return error;
	dir = known_dir(worker, ino);
	if (dir == NULL) {
		error = ext_inode_read(worker, ino, &worker->inode, failure);
		if (error < 0)
			return error;
		if (!S_ISDIR(worker->inode.raw->i_mode))
			return fail(failure, -ENOTDIR, "inode %u is no folder", ino);
		dir = oldest_dir(worker);
		if (worker->block_dir == dir)
			worker->block_dir = NULL;
		ext_dir_free(dir);
		error = load_dir(worker, &worker->inode, dir, failure);
		if (error < 0) {
			ext_dir_free(dir);
			return error;
		}
		dir->ino = ino;
	}
	dir->used_at = ++worker->clock;
	*ret_dir = dir;
	return 0;
}

/* ------------------------------------------------------------------ blocks */

/* The piece that has a block of the folder, or the first behind it; NULL: none. */
static const struct ext_piece *find_piece(const struct ext_dir *dir, uint64_t off_bytes)
{
	size_t low = 0, high = dir->piece_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (dir->pieces[middle].off_bytes + dir->pieces[middle].len_bytes <= off_bytes)
			low = middle + 1;
		else
			high = middle;
	}
	return low < dir->piece_count ? &dir->pieces[low] : NULL;
}

enum block_state { BLOCK_READ, BLOCK_BAD };

/* Into worker->block. Of a hole, which no folder has, *ret_next_block is where it ends. */
static enum block_state read_block(struct ext_worker *worker, const struct ext_dir *dir, uint64_t block,
				   uint64_t *ret_next_block)
{
	uint64_t block_bytes = worker->fs->blocksize, off_bytes = block * block_bytes;
	const struct ext_piece *piece;

	*ret_next_block = block + 1;
	if (worker->block_dir == dir && worker->block_number == block)
		return BLOCK_READ;
	worker->block_dir = NULL;
	piece = find_piece(dir, off_bytes);
	if (piece == NULL || piece->off_bytes > off_bytes) {
		*ret_next_block = piece == NULL ? dir->block_count : piece->off_bytes / block_bytes;
		return BLOCK_BAD;
	}
	if (piece->kind != EXT_PIECE_DATA ||
	    ext2fs_read_dir_block4(worker->fs, (piece->place_bytes + off_bytes - piece->off_bytes) / block_bytes,
				   worker->block, 0, dir->ino) != 0)
		return BLOCK_BAD;
	worker->block_dir = dir;
	worker->block_number = block;
	return BLOCK_READ;
}

/* ----------------------------------------------------------------- entries */

struct entry {
	ext2_ino_t ino;
	const char *name;
	size_t name_bytes;
	struct ext2_dir_entry *raw;
};

enum entry_step { ENTRY_USED, ENTRY_UNUSED, ENTRY_END, ENTRY_BAD };

static bool is_dot_or_dots(const struct entry *entry)
{
	return entry->name[0] == '.' && (entry->name_bytes == 1 || (entry->name_bytes == 2 && entry->name[1] == '.'));
}

/* Names of encrypted folders have any bytes. */
static bool is_name(const struct entry *entry, uint32_t dir_flags)
{
	if (entry->name_bytes == 0)
		return false;
	return (dir_flags & EXT4_ENCRYPT_FL) != 0 || (memchr(entry->name, '/', entry->name_bytes) == NULL &&
						      memchr(entry->name, '\0', entry->name_bytes) == NULL);
}

/* The entry at *off_bytes of `data`, which moves on behind it. "." and ".." are not used. */
static enum entry_step next_entry(struct ext_worker *worker, uint32_t dir_flags, uint8_t *data, size_t len_bytes,
				  size_t *off_bytes, struct entry *ret_entry)
{
	struct ext2_dir_entry *raw = (struct ext2_dir_entry *)(void *)(data + *off_bytes);
	unsigned entry_bytes;

	if (*off_bytes >= len_bytes)
		return ENTRY_END;
	if (len_bytes - *off_bytes < ENTRY_HEAD_BYTES || ext2fs_get_rec_len(worker->fs, raw, &entry_bytes) != 0 ||
	    entry_bytes < ENTRY_HEAD_BYTES || entry_bytes % 4 != 0 || entry_bytes > len_bytes - *off_bytes)
		return ENTRY_BAD;
	*off_bytes += entry_bytes;
	if (raw->inode == 0)
		return ENTRY_UNUSED;
	*ret_entry = (struct entry){
		.ino = raw->inode, .name = raw->name, .name_bytes = (size_t)ext2fs_dirent_name_len(raw), .raw = raw};
	if (ret_entry->name_bytes > entry_bytes - ENTRY_HEAD_BYTES || !is_name(ret_entry, dir_flags))
		return ENTRY_BAD;
	return is_dot_or_dots(ret_entry) ? ENTRY_UNUSED : ENTRY_USED;
}

/* ------------------------------------------------------ names without a key */

/* Which folders the kernel lists in the order of hashes, and then makes them part of what it shows for a name it has no
 * key to. */
static bool is_listed_by_hash(const struct ext_worker *worker, const struct ext_dir *dir)
{
	return ext2fs_has_feature_dir_index(worker->fs->super) &&
	       ((dir->flags & EXT2_INDEX_FL) != 0 || dir->inline_data != NULL || dir->block_count == 1);
}

static int hash_version(const struct ext_worker *worker, int version)
{
	bool is_unsigned = (worker->fs->super->s_flags & EXT2_FLAGS_UNSIGNED_HASH) != 0;

	return is_unsigned && version <= EXT2_HASH_TEA ? version + EXT2_HASH_LEGACY_UNSIGNED : version;
}

/* A name as it is shown. */
static size_t show_name(struct ext_worker *worker, const struct ext_dir *dir, const struct entry *entry,
			char text[FSREADER_NAME_MOST_BYTES + 1])
{
	uint32_t hash = 0, minor_hash = 0;

	if ((dir->flags & EXT4_ENCRYPT_FL) == 0) {
		memcpy(text, entry->name, entry->name_bytes);
		return entry->name_bytes;
	}
	if ((dir->flags & EXT4_CASEFOLD_FL) != 0) { /* keyed: it stands behind the name */
		unsigned entry_bytes = 0;

		(void)ext2fs_get_rec_len(worker->fs, entry->raw, &entry_bytes); /* was right before */
		if (entry_bytes >=
		    ENTRY_HEAD_BYTES + (entry->name_bytes + 3) / 4 * 4 + sizeof(struct ext2_dir_entry_hash)) {
			hash = EXT2_DIRENT_HASH(entry->raw);
			minor_hash = EXT2_DIRENT_MINOR_HASH(entry->raw);
		}
	} else if (is_listed_by_hash(worker, dir)) {
		(void)ext_name_hash(worker, dir->flags, hash_version(worker, worker->fs->super->s_def_hash_version),
				    entry->name, entry->name_bytes, &hash,
				    &minor_hash); /* else zeros, as by the kernel */
	}
	return ext_name_encode(hash, minor_hash, (const uint8_t *)entry->name, entry->name_bytes, text);
}

/* -------------------------------------------------------------------- list */

struct listing {
	struct ext_worker *worker;
	struct ext_dir *dir;
	struct ext_out *out;
	struct ext_answer *answer;
	uint64_t position; /* the next byte of the folder to be looked at */
	bool is_damaged;
};

static bool has_room(const struct listing *listing)
{
	return EXT_PAYLOAD_MOST_BYTES - listing->out->len_bytes >= ENTRY_ROOM_BYTES;
}

static uint64_t make_cookie(const struct listing *listing, uint64_t position)
{
	return position | (listing->is_damaged ? COOKIE_DAMAGED : 0);
}

static void tell_entry(struct listing *listing, const struct entry *entry, uint64_t position)
{
	static const uint8_t padding[ALIGNMENT] = {0};
	struct ext_worker *worker = listing->worker;
	char name[FSREADER_NAME_MOST_BYTES + 1];
	size_t name_bytes = show_name(worker, listing->dir, entry, name);
	struct ext_node node;
	struct ext_entry head = {.cookie = make_cookie(listing, position), .name_bytes = (uint32_t)name_bytes};

	head.has_node = ext_inode_read(worker, entry->ino, &worker->found, NULL) == 0 &&
			ext_inode_fill_node(worker, &worker->found, &node, NULL) == 0;
	ext_out_bytes(listing->out, &head, sizeof(head));
	ext_out_bytes(listing->out, name, name_bytes);
	ext_out_bytes(listing->out, padding, (ALIGNMENT - name_bytes % ALIGNMENT) % ALIGNMENT);
	if (head.has_node)
		ext_out_bytes(listing->out, &node, sizeof(node));
	listing->answer->count++;
}

/* Entries of a range of the folder, which begins at `base`, from the listing's position on. False: there is no more
 * room. */
static bool list_entries(struct listing *listing, uint8_t *data, size_t len_bytes, uint64_t base)
{
	size_t off_bytes = 0;
	struct entry entry;

	for (;;) {
		size_t before_bytes = off_bytes;
		enum entry_step step;

		if (!has_room(listing))
			return false;
		step = next_entry(listing->worker, listing->dir->flags, data, len_bytes, &off_bytes, &entry);
		if (step == ENTRY_BAD)
			listing->is_damaged = true;
		if (step == ENTRY_BAD || step == ENTRY_END)
			break;
		if (base + before_bytes < listing->position)
			continue;
		listing->position = base + off_bytes;
		if (step == ENTRY_USED)
			tell_entry(listing, &entry, listing->position);
	}
	listing->position = base + len_bytes;
	return true;
}

static bool list_inline(struct listing *listing)
{
	struct ext_dir *dir = listing->dir;
	size_t middle_bytes = dir->inline_bytes < INLINE_MIDDLE_BYTES ? dir->inline_bytes : INLINE_MIDDLE_BYTES;

	if (dir->inline_bytes <= INLINE_FIRST_BYTES)
		return true;
	if (listing->position < middle_bytes && !list_entries(listing, dir->inline_data + INLINE_FIRST_BYTES,
							      middle_bytes - INLINE_FIRST_BYTES, INLINE_FIRST_BYTES))
		return false;
	return listing->position >= dir->inline_bytes ||
	       list_entries(listing, dir->inline_data + middle_bytes, dir->inline_bytes - middle_bytes, middle_bytes);
}

static bool list_blocks(struct listing *listing)
{
	uint64_t block_bytes = listing->worker->fs->blocksize;
	uint64_t block = listing->position / block_bytes, next_block;

	for (unsigned looked = 0; block < listing->dir->block_count; looked++) {
		if (looked == BLOCKS_MOST)
			return false;
		if (read_block(listing->worker, listing->dir, block, &next_block) == BLOCK_BAD) {
			listing->is_damaged = true;
			listing->position = next_block * block_bytes;
		} else if (!list_entries(listing, listing->worker->block, (size_t)block_bytes, block * block_bytes)) {
			return false;
		}
		block = next_block;
	}
	return true;
}

int ext_dir_list(struct ext_worker *worker, uint64_t number, uint64_t cookie, struct ext_out *out,
		 struct ext_answer *answer, struct failure *failure)
{
	struct listing listing = {.worker = worker,
				  .out = out,
				  .answer = answer,
				  .position = cookie & ~COOKIE_DAMAGED,
				  .is_damaged = (cookie & COOKIE_DAMAGED) != 0};
	bool is_end;
	int error = open_dir(worker, number, &listing.dir, failure);

	if (error < 0)
		return error;
	is_end = listing.dir->inline_data != NULL ? list_inline(&listing) : list_blocks(&listing);
	if (is_end && listing.is_damaged && answer->count == 0)
		return fail(failure, -EIO, "folder inode %u is damaged: some of what it holds may be missing",
			    listing.dir->ino);
	answer->position = is_end && !listing.is_damaged ? EXT_LIST_END : make_cookie(&listing, listing.position);
	return 0;
}

/* ------------------------------------------------------------------ lookup */

struct search {
	struct ext_worker *worker;
	struct ext_dir *dir;
	const char *name;
	size_t name_bytes;
	ext2_ino_t found; /* 0: not yet */
	bool is_damaged;  /* it may be where nothing can be read */
};

static bool is_match(const struct search *search, const struct entry *entry)
{
	char text[FSREADER_NAME_MOST_BYTES + 1];

	if ((search->dir->flags & EXT4_ENCRYPT_FL) != 0)
		return show_name(search->worker, search->dir, entry, text) == search->name_bytes &&
		       memcmp(text, search->name, search->name_bytes) == 0;
	if (entry->name_bytes == search->name_bytes && memcmp(entry->name, search->name, search->name_bytes) == 0)
		return true;
	return (search->dir->flags & EXT4_CASEFOLD_FL) != 0 &&
	       ext_name_is_equal(search->worker, search->dir->flags, entry->name, entry->name_bytes, search->name,
				 search->name_bytes);
}

static void search_entries(struct search *search, uint8_t *data, size_t len_bytes)
{
	size_t off_bytes = 0;
	struct entry entry;
	enum entry_step step;

	while ((step = next_entry(search->worker, search->dir->flags, data, len_bytes, &off_bytes, &entry)) !=
	       ENTRY_END) {
		if (step == ENTRY_BAD) {
			search->is_damaged = true;
			return;
		}
		if (step == ENTRY_USED && is_match(search, &entry)) {
			search->found = entry.ino;
			return;
		}
	}
}

static void search_inline(struct search *search)
{
	struct ext_dir *dir = search->dir;
	size_t middle_bytes = dir->inline_bytes < INLINE_MIDDLE_BYTES ? dir->inline_bytes : INLINE_MIDDLE_BYTES;

	if (dir->inline_bytes > INLINE_FIRST_BYTES)
		search_entries(search, dir->inline_data + INLINE_FIRST_BYTES, middle_bytes - INLINE_FIRST_BYTES);
	if (search->found == 0 && dir->inline_bytes > middle_bytes)
		search_entries(search, dir->inline_data + middle_bytes, dir->inline_bytes - middle_bytes);
}

static void search_block(struct search *search, uint64_t block, uint64_t *ret_next_block)
{
	if (read_block(search->worker, search->dir, block, ret_next_block) == BLOCK_BAD)
		search->is_damaged = true;
	else
		search_entries(search, search->worker->block, search->worker->fs->blocksize);
}

static void search_blocks(struct search *search)
{
	for (uint64_t block = 0; block < search->dir->block_count && search->found == 0;)
		search_block(search, block, &block);
}

/* ------------------------------------------------------------------- index */

/* One level of the way to a leaf: the entries of one block of the index. Hashes grow; the first one stands for 0. */
struct frame {
	uint32_t *entries; /* hash and block, little endian; owned */
	unsigned count, at;
};

struct path {
	struct frame frames[INDEX_LEVELS_MOST];
	unsigned depth; /* frames */
	int version;	/* of the hash */
};

static void free_path(struct path *path)
{
	for (unsigned i = 0; i < INDEX_LEVELS_MOST; i++)
		free(path->frames[i].entries);
}

static uint32_t hash_of(const struct frame *frame, unsigned i)
{
	return i == 0 ? 0 : bytes_get_le32(&frame->entries[2 * (size_t)i]);
}

static uint64_t block_of(const struct frame *frame)
{
	return bytes_get_le32(&frame->entries[2 * (size_t)frame->at + 1]) & 0x0fffffff;
}

/* Takes the entries from `off_bytes` of worker->block on, which begin with limit and count in place of the first hash.
 */
static bool take_frame(const struct ext_worker *worker, size_t off_bytes, struct frame *frame)
{
	const uint8_t *at = worker->block + off_bytes;
	size_t most = (worker->fs->blocksize - off_bytes) / INDEX_ENTRY_BYTES;
	unsigned limit = bytes_get_le16(at), count = bytes_get_le16(at + 2);

	if (limit > most || count == 0 || count > limit)
		return false;
	free(frame->entries);
	frame->entries = malloc(count * (size_t)INDEX_ENTRY_BYTES);
	if (frame->entries == NULL)
		return false;
	memcpy(frame->entries, at, count * (size_t)INDEX_ENTRY_BYTES);
	frame->count = count;
	frame->at = 0;
	for (unsigned i = 1; i < count; i++) {
		if (hash_of(frame, i) < hash_of(frame, i - 1))
			return false;
	}
	return true;
}

static bool take_root(struct search *search, struct path *path)
{
	struct ext_worker *worker = search->worker;
	const uint8_t *info = worker->block + INDEX_ROOT_OFF_BYTES;
	uint64_t next_block;

	if (read_block(worker, search->dir, 0, &next_block) == BLOCK_BAD || bytes_get_le32(info) != 0 ||
	    info[5] != INDEX_ROOT_INFO_BYTES || info[6] >= INDEX_LEVELS_MOST)
		return false;
	path->version = hash_version(worker, info[4]);
	path->depth = info[6] + 1U;
	return take_frame(worker, INDEX_ROOT_OFF_BYTES + INDEX_ROOT_INFO_BYTES, &path->frames[0]);
}

/* The block of the index that the frame at `level` points to becomes the next frame. */
static bool enter_block(struct search *search, struct path *path, unsigned level)
{
	uint64_t next_block;

	return read_block(search->worker, search->dir, block_of(&path->frames[level]), &next_block) == BLOCK_READ &&
	       take_frame(search->worker, INDEX_NODE_OFF_BYTES, &path->frames[level + 1]);
}

/* From the frame at `level` down to the lowest, each at the last entry whose hash isn't above; with `is_first`, at its
 * first. */
static bool descend(struct search *search, struct path *path, unsigned level, uint32_t hash, bool is_first)
{
	for (;; level++) {
		struct frame *frame = &path->frames[level];

		while (!is_first && frame->at + 1 < frame->count && hash_of(frame, frame->at + 1) <= hash)
			frame->at++;
		if (level + 1 == path->depth)
			return true;
		if (!enter_block(search, path, level))
			return false;
	}
}

enum index_step { INDEX_NEXT, INDEX_OVER, INDEX_BAD };

/* Names of one hash may go on in the next leaf: the lowest bit of its hash says so. */
static enum index_step go_to_next_leaf(struct search *search, struct path *path, uint32_t hash)
{
	unsigned level = path->depth - 1;
	uint32_t next_hash;

	while (path->frames[level].at + 1 >= path->frames[level].count) {
		if (level == 0)
			return INDEX_OVER;
		level--;
	}
	path->frames[level].at++;
	next_hash = hash_of(&path->frames[level], path->frames[level].at);
	if ((next_hash & 1) == 0 || (next_hash & ~1U) != hash)
		return INDEX_OVER;
	if (level + 1 == path->depth)
		return INDEX_NEXT;
	return enter_block(search, path, level) && descend(search, path, level + 1, hash, true) ? INDEX_NEXT
												: INDEX_BAD;
}

/* By the folder's index. False: it is of no use, and nothing is known. */
static bool search_index(struct search *search)
{
	AUTO(free_path) struct path path = {.depth = 0};
	uint32_t hash, minor_hash;
	enum index_step step = INDEX_NEXT;

	if (!take_root(search, &path) ||
	    !ext_name_hash(search->worker, search->dir->flags, path.version, search->name, search->name_bytes, &hash,
			   &minor_hash) ||
	    !descend(search, &path, 0, hash, false))
		return false;
	while (step == INDEX_NEXT && search->found == 0) {
		uint64_t next_block;

		search_block(search, block_of(&path.frames[path.depth - 1]), &next_block);
		if (search->is_damaged)
			return false;
		if (search->found == 0)
			step = go_to_next_leaf(search, &path, hash);
	}
	return step != INDEX_BAD;
}

static bool has_index(const struct search *search)
{
	return (search->dir->flags & EXT2_INDEX_FL) != 0 && (search->dir->flags & EXT4_ENCRYPT_FL) == 0 &&
	       ext2fs_has_feature_dir_index(search->worker->fs->super);
}

int ext_dir_lookup(struct ext_worker *worker, uint64_t number, const char *name, size_t len_bytes, ext2_ino_t *ret_ino,
		   struct failure *failure)
{
	struct search search = {.worker = worker, .name = name, .name_bytes = len_bytes};
	int error = open_dir(worker, number, &search.dir, failure);

	if (error < 0)
		return error;
	if (search.dir->inline_data != NULL) {
		search_inline(&search);
	} else if (!has_index(&search) || !search_index(&search)) {
		search.is_damaged = false;
		search_blocks(&search);
	}
	if (search.found == 0 && search.is_damaged)
		return fail(failure, -EIO, "folder inode %u is damaged: whether it holds '%s' can't be said",
			    search.dir->ino, name);
	if (search.found == 0)
		return fail(failure, -ENOENT, "folder inode %u has no '%s'", search.dir->ino, name);
	*ret_ino = search.found;
	return 0;
}
