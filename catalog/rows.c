/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of disks, images and rounds: between C and SQL, with every value from the file checked on its way in.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { ID_MOST = (1 << 22) - 1, LEVEL_MOST = 10, MIRROR_MOST_BYTES = 4096 /* as in a log */ };
/* Of what is added to: so the sum can be written, too. */
#define COUNT_MOST ((uint64_t)1 << 62)

/* ---- disks ---- */

/* What is written must be readable again. */
static int check_text(struct catalog *catalog, const char *table, const char *text, struct failure *failure)
{
	if (text != NULL && strlen(text) > TEXT_MOST_BYTES)
		return fail(failure, -E2BIG, "catalog %s: a text of %zu bytes for table %s, %d are the most", catalog->path,
			    strlen(text), table, TEXT_MOST_BYTES);
	return 0;
}

/* As store_check_name() has it: names reach terminals, and messages. */
static bool is_name(const char *name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t length = strlen(name);

	return length > 0 && name[0] != '.' && name[0] != '_' && name[0] != '-' && strspn(name, letters) == length;
}

void catalog_disk_release(struct catalog_disk *disk)
{
	free(disk->mirror_of);
	disk->mirror_of = NULL;
}

static void bind_disk(sqlite3_stmt *statement, const struct catalog_disk *disk)
{
	if (disk->id != 0)
		(void)sqlite3_bind_int64(statement, 1, disk->id);
	(void)sqlite3_bind_blob(statement, 2, disk->uuid, sizeof(disk->uuid), SQLITE_STATIC);
	bind_text(statement, 3, disk->name);
	bind_u64(statement, 4, disk->size_bytes);
	bind_u64(statement, 5, disk->sector_bytes);
	bind_u64(statement, 6, disk->generation);
	bind_u64(statement, 7, disk->state);
	bind_u64(statement, 8, disk->keep);
	(void)sqlite3_bind_int64(statement, 9, disk->level);
	bind_u64(statement, 10, disk->limit_bytes_per_second);
	bind_text(statement, 11, disk->mirror_of);
	(void)sqlite3_bind_blob(statement, 12, disk->fingerprint_key, sizeof(disk->fingerprint_key), SQLITE_STATIC);
	bind_u64(statement, 13, disk->log_sequence);
	(void)sqlite3_bind_blob(statement, 14, disk->log_head, sizeof(disk->log_head), SQLITE_STATIC);
	(void)sqlite3_bind_int64(statement, 15, disk->created_at);
	bind_u64(statement, 16, disk->next_image);
	bind_u64(statement, 17, disk->next_round);
	bind_u64(statement, 18, disk->changed_bytes);
	bind_u64(statement, 19, disk->content_round);
}

static int read_disk(struct catalog *catalog, sqlite3_stmt *row, struct catalog_disk *ret_disk, struct failure *failure)
{
	bool bad = false;
	AUTO_FREE char *name = column_text(row, 2, CATALOG_NAME_BYTES - 1, &bad);
	struct catalog_disk disk = {
		.id = column_i64(row, 0, 1, ID_MOST, &bad),
		.size_bytes = column_u64(row, 3, (uint64_t)1 << 60, &bad),
		.sector_bytes = (uint32_t)column_u64(row, 4, 1 << 16, &bad),
		.generation = (uint32_t)column_u64(row, 5, UINT32_MAX, &bad),
		.state = (enum catalog_state)column_u64(row, 6, CATALOG_GOING, &bad),
		.keep = (uint32_t)column_u64(row, 7, UINT32_MAX, &bad),
		.level = (int)column_i64(row, 8, -1, LEVEL_MOST, &bad),
		.limit_bytes_per_second = column_u64(row, 9, INT64_MAX, &bad),
		.log_sequence = column_u64(row, 12, COUNT_MOST, &bad),
		.created_at = column_i64(row, 14, INT64_MIN, INT64_MAX, &bad),
		.next_image = (uint32_t)column_u64(row, 15, UINT32_MAX, &bad),
		.next_round = (uint32_t)column_u64(row, 16, UINT32_MAX, &bad),
		.changed_bytes = column_u64(row, 17, COUNT_MOST, &bad),
		.content_round = (uint32_t)column_u64(row, 18, UINT32_MAX, &bad),
	};

	column_bytes(row, 1, disk.uuid, sizeof(disk.uuid), &bad);
	column_bytes(row, 11, disk.fingerprint_key, sizeof(disk.fingerprint_key), &bad);
	column_bytes(row, 13, disk.log_head, sizeof(disk.log_head), &bad);
	if (bad || name == NULL || !is_name(name) || disk.generation == 0 || disk.sector_bytes == 0 || disk.size_bytes == 0 ||
	    disk.next_image == 0 || disk.next_round == 0)
		return catalog_bad_row(catalog, "disk", failure);
	(void)strcpy(disk.name, name);
	disk.mirror_of = column_text(row, 10, MIRROR_MOST_BYTES, &bad);
	if (bad)
		return catalog_bad_row(catalog, "disk", failure);
	*ret_disk = disk;
	return 0;
}

int catalog_disk_insert(struct catalog *catalog, struct catalog_disk *disk, struct failure *failure)
{
	STATEMENT *insert = catalog_statement(catalog, ST_DISK_INSERT, failure);
	struct catalog_disk there;
	int result;

	assert(catalog->in_transaction);
	result = catalog_disk_find(catalog, disk->name, &there, failure);
	if (result == 0) {
		catalog_disk_release(&there);
		return fail(failure, -EEXIST, "disk %s: there is one of that name already", disk->name);
	}
	if (result != -ENOENT)
		return result;
	result = check_text(catalog, "disk", disk->mirror_of, failure);
	if (result < 0)
		return result;
	if (insert == NULL)
		return catalog->statement_error;
	disk->id = 0;
	bind_disk(insert, disk);
	result = catalog_run(catalog, insert, failure);
	if (result < 0)
		return result;
	disk->id = sqlite3_last_insert_rowid(catalog->db);
	if (disk->id > ID_MOST)
		return fail(failure, -ENOSPC, "disk %s: this store has had %d disks, the most there can be", disk->name, ID_MOST);
	return 0;
}

int catalog_disk_update(struct catalog *catalog, const struct catalog_disk *disk, struct failure *failure)
{
	STATEMENT *update = catalog_statement(catalog, ST_DISK_UPDATE, failure);
	int result;

	assert(catalog->in_transaction && disk->id != 0);
	if (update == NULL)
		return catalog->statement_error;
	result = check_text(catalog, "disk", disk->mirror_of, failure);
	if (result < 0)
		return result;
	bind_disk(update, disk);
	return catalog_run_one(catalog, update, "disk", failure);
}

static int step_disk(struct catalog *catalog, sqlite3_stmt *query, struct catalog_disk *ret_disk, struct failure *failure)
{
	int result = catalog_step(catalog, query, failure);

	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_disk(catalog, query, ret_disk, failure);
}

int catalog_disk_find(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_DISK_FIND, failure);

	if (query == NULL)
		return catalog->statement_error;
	bind_text(query, 1, name);
	return step_disk(catalog, query, ret_disk, failure);
}

int catalog_disk_get(struct catalog *catalog, int64_t id, struct catalog_disk *ret_disk, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_DISK_GET, failure);

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, id);
	return step_disk(catalog, query, ret_disk, failure);
}

/*
 * Lists grow by doubling. `read_row` fills one element; on failure what was read so far is released by `release`.
 */
typedef int (*read_row_fn)(struct catalog *catalog, sqlite3_stmt *row, void *ret_element, struct failure *failure);

struct row_list {
	char *elements;
	size_t count, capacity, element_bytes;
	void (*release)(void *element);
};

static void row_list_free(struct row_list *list)
{
	for (size_t i = 0; list->elements != NULL && i < list->count; i++)
		list->release(list->elements + i * list->element_bytes);
	free(list->elements);
}

static int row_list_fill(struct catalog *catalog, sqlite3_stmt *query, read_row_fn read_row, struct row_list *list,
			 struct failure *failure)
{
	int result;

	while ((result = catalog_step(catalog, query, failure)) == 1) {
		if (list->count == list->capacity) {
			size_t capacity = list->capacity == 0 ? 16 : list->capacity * 2;
			char *grown = reallocarray(list->elements, capacity, list->element_bytes);

			if (grown == NULL)
				return fail_errno(failure, -ENOMEM, "catalog");
			list->elements = grown;
			list->capacity = capacity;
		}
		result = read_row(catalog, query, list->elements + list->count * list->element_bytes, failure);
		if (result < 0)
			return result;
		list->count++;
	}
	return result;
}

static int row_list_run(struct catalog *catalog, sqlite3_stmt *query, read_row_fn read_row, size_t element_bytes,
			void (*release)(void *element), void **ret_list, size_t *ret_count, struct failure *failure)
{
	struct row_list list = { .element_bytes = element_bytes, .release = release };
	int result = row_list_fill(catalog, query, read_row, &list, failure);

	if (result < 0) {
		row_list_free(&list);
		return result;
	}
	*ret_list = list.elements;
	*ret_count = list.count;
	return 0;
}

static int read_disk_row(struct catalog *catalog, sqlite3_stmt *row, void *ret_element, struct failure *failure)
{
	return read_disk(catalog, row, ret_element, failure);
}

static void release_disk_row(void *element)
{
	catalog_disk_release(element);
}

int catalog_disk_list(struct catalog *catalog, enum catalog_state state, struct catalog_disk **ret_list,
		      size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_DISK_LIST, failure);

	if (query == NULL)
		return catalog->statement_error;
	bind_u64(query, 1, state);
	return row_list_run(catalog, query, read_disk_row, sizeof(struct catalog_disk), release_disk_row,
			    (void **)ret_list, ret_count, failure);
}

/* ---- images ---- */

void catalog_image_release(struct catalog_image *image)
{
	free(image->label);
	free(image->details);
	image->label = image->details = NULL;
}

static void bind_image(sqlite3_stmt *statement, const struct catalog_image *image)
{
	(void)sqlite3_bind_int64(statement, 1, image->disk);
	bind_u64(statement, 2, image->number);
	bind_u64(statement, 3, image->generation);
	bind_u64(statement, 4, image->state);
	(void)sqlite3_bind_int64(statement, 5, image->created_at);
	bind_u64(statement, 6, image->size_bytes);
	bind_u64(statement, 7, image->changed_bytes);
	bind_text(statement, 8, image->label);
	bind_u64(statement, 9, image->pinned);
	bind_u64(statement, 10, image->consistency);
	bind_u64(statement, 11, image->round);
	bind_text(statement, 12, image->details);
}

static int read_image_row(struct catalog *catalog, sqlite3_stmt *row, void *ret_element, struct failure *failure)
{
	bool bad = false;
	struct catalog_image image = {
		.disk = column_i64(row, 0, 1, ID_MOST, &bad),
		.number = (uint32_t)column_u64(row, 1, UINT32_MAX, &bad),
		.generation = (uint32_t)column_u64(row, 2, UINT32_MAX, &bad),
		.state = (enum catalog_state)column_u64(row, 3, CATALOG_GOING, &bad),
		.created_at = column_i64(row, 4, INT64_MIN, INT64_MAX, &bad),
		.size_bytes = column_u64(row, 5, (uint64_t)1 << 60, &bad),
		.changed_bytes = column_u64(row, 6, INT64_MAX, &bad),
		.label = column_text(row, 7, TEXT_MOST_BYTES, &bad),
		.pinned = column_u64(row, 8, 1, &bad) != 0,
		.consistency = (uint8_t)column_u64(row, 9, 2, &bad),
		.round = (uint32_t)column_u64(row, 10, UINT32_MAX, &bad),
		.details = column_text(row, 11, TEXT_MOST_BYTES, &bad),
	};

	if (bad || image.number == 0 || image.generation == 0 || image.size_bytes == 0) {
		catalog_image_release(&image);
		return catalog_bad_row(catalog, "image", failure);
	}
	*(struct catalog_image *)ret_element = image;
	return 0;
}

static void release_image_row(void *element)
{
	catalog_image_release(element);
}

static int write_image(struct catalog *catalog, enum statement which, const struct catalog_image *image,
		       struct failure *failure)
{
	STATEMENT *statement = catalog_statement(catalog, which, failure);
	int result;

	assert(catalog->in_transaction);
	if (statement == NULL)
		return catalog->statement_error;
	result = check_text(catalog, "image", image->label, failure);
	if (result == 0)
		result = check_text(catalog, "image", image->details, failure);
	if (result < 0)
		return result;
	bind_image(statement, image);
	return catalog_run_one(catalog, statement, "image", failure);
}

int catalog_image_insert(struct catalog *catalog, const struct catalog_image *image, struct failure *failure)
{
	return write_image(catalog, ST_IMAGE_INSERT, image, failure);
}

int catalog_image_update(struct catalog *catalog, const struct catalog_image *image, struct failure *failure)
{
	return write_image(catalog, ST_IMAGE_UPDATE, image, failure);
}

int catalog_image_get(struct catalog *catalog, int64_t disk, uint32_t number, struct catalog_image *ret_image,
		      struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_IMAGE_GET, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, number);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_image_row(catalog, query, ret_image, failure);
}

int catalog_image_last(struct catalog *catalog, int64_t disk, struct catalog_image *ret_image, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_IMAGE_LAST, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_image_row(catalog, query, ret_image, failure);
}

int catalog_image_count(struct catalog *catalog, int64_t disk, uint32_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_IMAGE_COUNT, failure);
	bool bad = false;
	uint32_t count;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	count = result == 1 ? (uint32_t)column_u64(query, 0, UINT32_MAX, &bad) : 0;
	if (bad)
		return catalog_bad_row(catalog, "image", failure);
	*ret_count = count;
	return 0;
}

int catalog_image_list(struct catalog *catalog, int64_t disk, enum catalog_state state,
		       struct catalog_image **ret_list, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, disk == 0 ? ST_IMAGE_LIST_ALL : ST_IMAGE_LIST, failure);

	if (query == NULL)
		return catalog->statement_error;
	if (disk != 0) {
		(void)sqlite3_bind_int64(query, 1, disk);
		bind_u64(query, 2, state);
	} else {
		bind_u64(query, 1, state);
	}
	return row_list_run(catalog, query, read_image_row, sizeof(struct catalog_image), release_image_row,
			    (void **)ret_list, ret_count, failure);
}

int image_newest_generation(struct catalog *catalog, int64_t disk, uint32_t *ret_generation, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_IMAGE_NEWEST, failure);
	bool bad = false;
	uint32_t generation = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 1)
		generation = (uint32_t)column_u64(query, 0, UINT32_MAX, &bad);
	if (bad)
		return catalog_bad_row(catalog, "image", failure);
	*ret_generation = generation;
	return 0;
}

/* ---- rounds ---- */

void catalog_round_release(struct catalog_round *round)
{
	free(round->source);
	free(round->identity);
	free(round->how);
	free(round->start_stamp);
	free(round->dirty_bitmaps);
	free(round->details);
	free(round->error);
	memset(round, 0, sizeof(*round));
}

static void bind_round(sqlite3_stmt *statement, const struct catalog_round *round)
{
	(void)sqlite3_bind_int64(statement, 1, round->disk);
	bind_u64(statement, 2, round->number);
	bind_u64(statement, 3, round->state);
	bind_text(statement, 4, round->source);
	bind_text(statement, 5, round->identity);
	bind_text(statement, 6, round->how);
	bind_text(statement, 7, round->start_stamp);
	bind_text(statement, 8, round->dirty_bitmaps);
	bind_u64(statement, 9, round->dirty_bytes);
	bind_text(statement, 10, round->details);
	(void)sqlite3_bind_int64(statement, 11, round->started_at);
	(void)sqlite3_bind_int64(statement, 12, round->finished_at);
	bind_u64(statement, 13, round->cursor_bytes);
	for (int i = 0; i < CATALOG_ROUND_COUNTS; i++)
		bind_u64(statement, 14 + i, round->counts[i]);
	if (round->has_limit)
		bind_u64(statement, 22, round->limit_bytes_per_second);
	if (round->has_level)
		(void)sqlite3_bind_int64(statement, 23, round->level);
	bind_text(statement, 24, round->error);
}

static int read_round_row(struct catalog *catalog, sqlite3_stmt *row, void *ret_element, struct failure *failure)
{
	bool bad = false;
	struct catalog_round round = {
		.disk = column_i64(row, 0, 1, ID_MOST, &bad),
		.number = (uint32_t)column_u64(row, 1, UINT32_MAX, &bad),
		.state = (uint8_t)column_u64(row, 2, 3, &bad),
		.source = column_text(row, 3, TEXT_MOST_BYTES, &bad),
		.identity = column_text(row, 4, TEXT_MOST_BYTES, &bad),
		.how = column_text(row, 5, TEXT_MOST_BYTES, &bad),
		.start_stamp = column_text(row, 6, TEXT_MOST_BYTES, &bad),
		.dirty_bitmaps = column_text(row, 7, TEXT_MOST_BYTES, &bad),
		.dirty_bytes = column_u64(row, 8, INT64_MAX, &bad),
		.details = column_text(row, 9, TEXT_MOST_BYTES, &bad),
		.started_at = column_i64(row, 10, INT64_MIN, INT64_MAX, &bad),
		.finished_at = column_i64(row, 11, INT64_MIN, INT64_MAX, &bad),
		.cursor_bytes = column_u64(row, 12, (uint64_t)1 << 60, &bad),
		.has_limit = sqlite3_column_type(row, 21) != SQLITE_NULL,
		.has_level = sqlite3_column_type(row, 22) != SQLITE_NULL,
		.error = column_text(row, 23, TEXT_MOST_BYTES, &bad),
	};

	for (int i = 0; i < CATALOG_ROUND_COUNTS; i++)
		round.counts[i] = column_u64(row, 13 + i, INT64_MAX, &bad);
	if (round.has_limit)
		round.limit_bytes_per_second = column_u64(row, 21, INT64_MAX, &bad);
	if (round.has_level)
		round.level = (int)column_i64(row, 22, 0, LEVEL_MOST, &bad);
	if (bad || round.number == 0 || round.source == NULL || round.identity == NULL || round.how == NULL ||
	    round.start_stamp == NULL || round.dirty_bitmaps == NULL) {
		catalog_round_release(&round);
		return catalog_bad_row(catalog, "round", failure);
	}
	*(struct catalog_round *)ret_element = round;
	return 0;
}

static void release_round_row(void *element)
{
	catalog_round_release(element);
}

static int write_round(struct catalog *catalog, enum statement which, const struct catalog_round *round,
		       struct failure *failure)
{
	STATEMENT *statement = catalog_statement(catalog, which, failure);
	const char *const texts[] = { round->source,	    round->identity, round->how,  round->start_stamp,
				      round->dirty_bitmaps, round->details,  round->error };

	assert(catalog->in_transaction);
	if (statement == NULL)
		return catalog->statement_error;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		int result = check_text(catalog, "round", texts[i], failure);

		if (result < 0)
			return result;
	}
	bind_round(statement, round);
	return catalog_run_one(catalog, statement, "round", failure);
}

int catalog_round_insert(struct catalog *catalog, const struct catalog_round *round, struct failure *failure)
{
	return write_round(catalog, ST_ROUND_INSERT, round, failure);
}

int catalog_round_update(struct catalog *catalog, const struct catalog_round *round, struct failure *failure)
{
	return write_round(catalog, ST_ROUND_UPDATE, round, failure);
}

int catalog_round_get(struct catalog *catalog, int64_t disk, uint32_t number, struct catalog_round *ret_round,
		      struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_ROUND_GET, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, number);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_round_row(catalog, query, ret_round, failure);
}

int catalog_round_list(struct catalog *catalog, int64_t disk, struct catalog_round **ret_list, size_t *ret_count,
		       struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, disk == 0 ? ST_ROUND_LIST_ALL : ST_ROUND_LIST, failure);

	if (query == NULL)
		return catalog->statement_error;
	if (disk != 0)
		(void)sqlite3_bind_int64(query, 1, disk);
	return row_list_run(catalog, query, read_round_row, sizeof(struct catalog_round), release_round_row,
			    (void **)ret_list, ret_count, failure);
}
