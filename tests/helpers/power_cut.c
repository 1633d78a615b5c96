/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a folder may look like after the power failed: replays a log of preload_record.c up to some record.
 *
 *     power_cut count LOG                how many records there are
 *     power_cut said LOG                 the first record after standard output was closed the last time
 *     power_cut syncs LOG                the records that are syncs
 *     power_cut notes LOG                the first record behind each note, and its first letter
 *     power_cut whole LOG FOLDER         makes FOLDER as all records leave it, without a crash
 *     power_cut import FOLDER LOG        begins a log with all that FOLDER holds, as synced: what is done there can be
 *                                        recorded behind that
 *     power_cut states LOG               for each line of standard input
 *                                            RECORD SEED FOLDER [IGNORED FROM]
 *                                        makes FOLDER, in place of one that is there, as the records before RECORD may
 *                                        have left it, and says "done"
 *
 * The rules are what POSIX promises and no more, so a real file system does worse in no respect:
 *   - what a file held when it was last synced, and its size, are there;
 *   - of what was written since, any part may be there: each block of 4096 bytes is the old or the new one, some are
 * new up to a sector and old behind it, and some are neither, for the power failed while they were written; the same
 * for changes of its size. Of journals (*.wj) a whole block that was being written may be spoilt, what it held before
 * and beside that included, for they are laid out for that; elsewhere it is what was being written (SQLite counts on as
 * much, and calls it powersafe overwrite);
 *   - a name (made, removed, renamed) is certain when its folder was synced since, and before that as it happens. A
 * synced file whose name was not synced is lost, which is stricter than ext4. Which of them happen, SEED decides. In
 * one of four crashes all that is unsynced is lost, in another one nothing is.
 *
 * IGNORED, the end of a file's name as ".seg": syncs of these files (named so when they were made) are taken for
 * nothing, as by a disk that lies; "/": those of folders. It is for making sure that a test notices.
 *
 * Files *-shm are left out: SQLite makes them anew from the log, and writes them through a mapping nobody can record.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "power_log.h"

enum { BLOCK_BYTES = 4096, SECTOR_BYTES = 512, NAME_MOST = 256 };

/* One change that is not synced. */
struct change {
	struct power_log_head head;
	const uint8_t *data;
	char name[NAME_MOST], new_name[NAME_MOST];
	int object, new_folder;
};

struct entry {
	char name[NAME_MOST];
	int object;
};

struct entries {
	struct entry *list;
	size_t count;
};

/* A file or folder; it outlives its names. */
struct object {
	uint64_t inode;
	bool is_folder, ignores_sync;
	bool spoils_blocks; /* not just what is written of them */
	uint8_t *content;   /* as synced */
	size_t content_bytes, content_room;
	struct entries now, synced;
	struct change *pending;
	size_t pending_count, pending_room;
};

static struct object *objects;
static size_t object_count;
static const char *ignored_ending;
static uint64_t ignored_from, replayed; /* records */

/* ---- random, the same for the same seed ---- */

static uint64_t random_state;

static uint64_t random_below(uint64_t bound)
{
	uint64_t value = random_state += 0x9e3779b97f4a7c15U;

	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
	return (value ^ (value >> 31)) % bound;
}

/* ---- growing ---- */

static void *grown(void *list, size_t count, size_t *room, size_t each_bytes)
{
	if (count < *room)
		return list;
	*room = *room * 2 + 16;
	list = reallocarray(list, *room, each_bytes);
	if (list == NULL)
		err(1, "memory");
	return list;
}

static void set_content_size(struct object *object, size_t size_bytes)
{
	if (size_bytes > object->content_room) {
		object->content_room = size_bytes * 2;
		object->content = realloc(object->content, object->content_room);
		if (object->content == NULL)
			err(1, "memory");
	}
	if (size_bytes > object->content_bytes)
		memset(object->content + object->content_bytes, 0, size_bytes - object->content_bytes);
	object->content_bytes = size_bytes;
}

/* ---- names ---- */

static struct entry *find_entry(struct entries *entries, const char *name)
{
	for (size_t i = 0; i < entries->count; i++)
		if (strcmp(entries->list[i].name, name) == 0)
			return &entries->list[i];
	return NULL;
}

static void set_entry(struct entries *entries, const char *name, int object)
{
	struct entry *entry = find_entry(entries, name);

	if (entry == NULL) {
		entries->list = reallocarray(entries->list, entries->count + 1, sizeof(*entry));
		if (entries->list == NULL)
			err(1, "memory");
		entry = &entries->list[entries->count++];
		(void)snprintf(entry->name, sizeof(entry->name), "%s", name);
	}
	entry->object = object;
}

static void remove_entry(struct entries *entries, const char *name)
{
	struct entry *entry = find_entry(entries, name);

	if (entry != NULL)
		*entry = entries->list[--entries->count];
}

static void copy_name(char name[NAME_MOST], const uint8_t *text, size_t length)
{
	if (length >= NAME_MOST)
		errx(1, "a name in the log is too long");
	memcpy(name, text, length);
	name[length] = '\0';
}

/* ---- objects ---- */

/* The newest of that inode: numbers of deleted files are used again. */
static int object_of_inode(uint64_t inode)
{
	for (size_t i = object_count; i > 0; i--)
		if (objects[i - 1].inode == inode)
			return (int)(i - 1);
	errx(1, "inode %" PRIu64 " was not made while recording", inode);
}

static bool ends_with(const char *name, const char *ending)
{
	size_t name_bytes = strlen(name), ending_bytes = strlen(ending);

	return name_bytes >= ending_bytes && strcmp(name + name_bytes - ending_bytes, ending) == 0;
}

static int add_object(uint64_t inode, bool is_folder, const char *name)
{
	static size_t room;
	bool is_ignored = ignored_ending != NULL && ignored_ending[0] != '\0';

	objects = grown(objects, object_count, &room, sizeof(*objects));
	objects[object_count] = (struct object){
		.inode = inode,
		.is_folder = is_folder,
		.ignores_sync = is_ignored &&
				(ends_with(name, ignored_ending) || (is_folder && strcmp(ignored_ending, "/") == 0)),
		.spoils_blocks = ends_with(name, ".wj"),
	};
	return (int)object_count++;
}

static struct change *add_pending(int index, const struct power_log_head *head)
{
	struct object *object = &objects[index];
	struct change *change;

	object->pending =
		grown(object->pending, object->pending_count, &object->pending_room, sizeof(*object->pending));
	change = &object->pending[object->pending_count++];
	*change = (struct change){.head = *head};
	return change;
}

/* ---- making changes certain ---- */

static void apply_to_folder(struct object *folder, const struct change *change)
{
	switch (change->head.kind) {
	case POWER_CREATE:
		set_entry(&folder->synced, change->name, change->object);
		break;
	case POWER_UNLINK:
		remove_entry(&folder->synced, change->name);
		break;
	default:
		remove_entry(&folder->synced, change->name);
		set_entry(&folder->synced, change->new_name, change->object);
	}
}

static void apply_whole(struct object *object, const struct change *change)
{
	size_t end_bytes = change->head.offset + change->head.data_bytes;

	if (object->is_folder) {
		apply_to_folder(object, change);
	} else if (change->head.kind == POWER_TRUNCATE) {
		set_content_size(object, change->head.offset);
	} else if (change->head.data_bytes > 0) {
		if (end_bytes > object->content_bytes)
			set_content_size(object, end_bytes);
		memcpy(object->content + change->head.offset, change->data, change->head.data_bytes);
	}
}

static void sync_object(struct object *object)
{
	if (object->ignores_sync && replayed >= ignored_from)
		return;
	for (size_t i = 0; i < object->pending_count; i++)
		apply_whole(object, &object->pending[i]);
	object->pending_count = 0;
}

/* ---- replaying ---- */

static void replay_name(const struct power_log_head *head, const uint8_t *name, const uint8_t *data)
{
	int folder = object_of_inode(head->folder);
	struct change *change;
	struct entry *entry;

	change = add_pending(folder, head);
	copy_name(change->name, name, head->name_bytes);
	if (head->kind == POWER_CREATE) {
		int object = add_object(head->inode, head->offset == 1, change->name);

		objects[folder].pending[objects[folder].pending_count - 1].object = object;
		set_entry(&objects[folder].now, change->name, object);
		return;
	}
	entry = find_entry(&objects[folder].now, change->name);
	if (entry == NULL)
		errx(1, "%s was not made while recording", change->name);
	change->object = entry->object;
	remove_entry(&objects[folder].now, change->name);
	if (head->kind == POWER_RENAME) {
		if (head->inode != head->folder)
			errx(1, "%s moved to another folder: not known here", change->name);
		copy_name(change->new_name, data, head->data_bytes);
		set_entry(&objects[folder].now, change->new_name, change->object);
	}
}

static void replay_record(const struct power_log_head *head, const uint8_t *name, const uint8_t *data)
{
	switch ((enum power_log_kind)head->kind) {
	case POWER_ROOT:
		if (object_count == 0)
			(void)add_object(head->inode, true, "");
		break;
	case POWER_CREATE:
	case POWER_UNLINK:
	case POWER_RENAME:
		replay_name(head, name, data);
		break;
	case POWER_WRITE:
	case POWER_TRUNCATE:
		add_pending(object_of_inode(head->inode), head)->data = data;
		break;
	case POWER_SAID:
	case POWER_NOTE:
		break;
	case POWER_SYNC:
		sync_object(&objects[object_of_inode(head->inode)]);
		break;
	}
}

struct power_log {
	const uint8_t *bytes;
	size_t size_bytes, at_bytes;
};

static struct power_log log_open(const char *path)
{
	struct power_log power_log = {.at_bytes = 0};
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &status) < 0)
		err(1, "%s", path);
	power_log.size_bytes = (size_t)status.st_size;
	if (power_log.size_bytes == 0) { /* nothing that could be mapped, and no record */
		(void)close(fd);
		return power_log;
	}
	power_log.bytes = mmap(NULL, power_log.size_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (power_log.bytes == MAP_FAILED)
		err(1, "%s", path);
	(void)close(fd);
	return power_log;
}

/* false: the end. A record that was cut short (its writer was killed) is the end, too. */
static bool log_next(struct power_log *power_log, struct power_log_head *ret_head, const uint8_t **ret_name,
		     const uint8_t **ret_data)
{
	size_t left_bytes = power_log->size_bytes - power_log->at_bytes;

	if (left_bytes < sizeof(*ret_head))
		return false;
	memcpy(ret_head, power_log->bytes + power_log->at_bytes, sizeof(*ret_head));
	if (left_bytes - sizeof(*ret_head) < ret_head->name_bytes + ret_head->data_bytes)
		return false;
	*ret_name = power_log->bytes + power_log->at_bytes + sizeof(*ret_head);
	*ret_data = *ret_name + ret_head->name_bytes;
	power_log->at_bytes += sizeof(*ret_head) + ret_head->name_bytes + ret_head->data_bytes;
	return true;
}

/* ---- the crash ---- */

enum luck { LOSE_ALL, KEEP_ALL, KEEP_SOME };

/* A part of a write that lies in one block becomes bytes that nobody wrote, with the block around it or without. */
static void spoil(struct object *object, const struct change *part)
{
	uint64_t first = part->head.offset, end = first + part->head.data_bytes;

	if (end > object->content_bytes)
		set_content_size(object, end);
	if (object->spoils_blocks) {
		first = first / BLOCK_BYTES * BLOCK_BYTES;
		end = first + BLOCK_BYTES < object->content_bytes ? first + BLOCK_BYTES : object->content_bytes;
	}
	for (uint64_t at = first; at < end; at++)
		object->content[at] = (uint8_t)random_below(256);
}

/* A write, block by block. The size follows what is kept. */
static void apply_some(struct object *object, const struct change *change)
{
	uint64_t end = change->head.offset + change->head.data_bytes;

	for (uint64_t at = change->head.offset, next; at < end; at = next) {
		struct change part = *change;

		next = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
		if (next > end)
			next = end;
		if (random_below(2) == 0)
			continue;
		part.head.offset = at;
		part.head.data_bytes = next - at;
		part.data = change->data + (at - change->head.offset);
		if (random_below(8) == 0) {
			spoil(object, &part);
			continue;
		}
		if (random_below(8) == 0) {
			uint64_t sectors = random_below(BLOCK_BYTES / SECTOR_BYTES) * SECTOR_BYTES;

			if (sectors < part.head.data_bytes)
				part.head.data_bytes = sectors;
		}
		apply_whole(object, &part);
	}
}

static void crash(struct object *object, enum luck luck)
{
	size_t size_bytes = object->content_bytes;

	for (size_t i = 0; i < object->pending_count; i++) {
		const struct change *change = &object->pending[i];
		uint64_t end = change->head.offset + change->head.data_bytes;

		if (change->head.kind == POWER_TRUNCATE || (change->head.kind == POWER_WRITE && end > size_bytes))
			size_bytes = end;
		if (luck == LOSE_ALL || (luck == KEEP_SOME && change->head.kind != POWER_WRITE && random_below(2) == 0))
			continue;
		if (luck == KEEP_SOME && change->head.kind == POWER_WRITE)
			apply_some(object, change);
		else
			apply_whole(object, change);
	}
	/* the new size, and zeros where its blocks had not been written yet */
	if (!object->is_folder && luck == KEEP_SOME && size_bytes > object->content_bytes && random_below(2) == 0)
		set_content_size(object, size_bytes);
}

/* Blocks of zeros are left out: a reserve has nothing else. */
static void write_file(int folder_fd, const char *name, const struct object *object)
{
	static const uint8_t zeros[BLOCK_BYTES];
	int fd = openat(folder_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)object->content_bytes) < 0)
		err(1, "%s", name);
	for (size_t at = 0, len_bytes; at < object->content_bytes; at += len_bytes) {
		len_bytes = object->content_bytes - at < BLOCK_BYTES ? object->content_bytes - at : BLOCK_BYTES;
		if (memcmp(object->content + at, zeros, len_bytes) != 0 &&
		    pwrite(fd, object->content + at, len_bytes, (off_t)at) != (ssize_t)len_bytes)
			err(1, "%s", name);
	}
	(void)close(fd);
}

static void write_folder(int folder_fd, int index)
{
	for (size_t i = 0; i < objects[index].synced.count; i++) {
		const struct entry *entry = &objects[index].synced.list[i];
		size_t length = strlen(entry->name);
		int fd;

		if (length >= 4 && strcmp(entry->name + length - 4, "-shm") == 0)
			continue;
		if (!objects[entry->object].is_folder) {
			write_file(folder_fd, entry->name, &objects[entry->object]);
			continue;
		}
		if (mkdirat(folder_fd, entry->name, 0700) < 0)
			err(1, "%s", entry->name);
		fd = openat(folder_fd, entry->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			err(1, "%s", entry->name);
		write_folder(fd, entry->object);
		(void)close(fd);
	}
}

static void replay(struct power_log *power_log, uint64_t records)
{
	struct power_log_head head;
	const uint8_t *name, *data;

	for (replayed = 0; replayed < records && log_next(power_log, &head, &name, &data); replayed++)
		replay_record(&head, name, data);
}

static void write_all(const char *folder)
{
	int fd;

	if (mkdir(folder, 0700) < 0)
		err(1, "%s", folder);
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", folder);
	if (object_count > 0)
		write_folder(fd, 0);
	(void)close(fd);
}

static void make(struct power_log *power_log, uint64_t records, uint64_t seed, const char *folder)
{
	static const enum luck lucks[] = {LOSE_ALL, KEEP_ALL, KEEP_SOME, KEEP_SOME};
	enum luck luck;

	random_state = seed;
	replay(power_log, records);
	luck = lucks[random_below(sizeof(lucks) / sizeof(lucks[0]))];
	for (size_t i = 0; i < object_count; i++)
		crash(&objects[i], luck);
	write_all(folder);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where)
{
	(void)status;
	(void)type;
	(void)where;
	return remove(path);
}

/* In a process of its own, which takes all that was replayed with it. */
static void make_state(struct power_log *power_log, char *line)
{
	uint64_t records, seed, from = 0;
	char folder[PATH_MAX], ending[NAME_MOST] = "";
	int fields =
		sscanf(line, "%" SCNu64 " %" SCNu64 " %4095s %255s %" SCNu64, &records, &seed, folder, ending, &from);

	if (fields < 3)
		errx(2, "not a request: %s", line);
	ignored_ending = fields > 3 ? ending : NULL;
	ignored_from = from;
	if (nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
		err(1, "%s", folder);
	make(power_log, records, seed, folder);
}

static void make_states(struct power_log *power_log)
{
	char line[PATH_MAX * 2];

	while (fgets(line, sizeof(line), stdin) != NULL) {
		int status;
		pid_t child = fork();

		if (child < 0)
			err(1, "fork");
		if (child == 0) {
			make_state(power_log, line);
			_exit(0);
		}
		if (waitpid(child, &status, 0) < 0 || status != 0)
			errx(1, "no state was made");
		(void)printf("done\n");
		(void)fflush(stdout);
	}
}

static void make_whole(struct power_log *power_log, const char *folder)
{
	replay(power_log, UINT64_MAX);
	for (size_t i = 0; i < object_count; i++)
		crash(&objects[i], KEEP_ALL);
	write_all(folder);
}

/* ---- a log that begins with what is there ---- */

static void put_record(FILE *file, struct power_log_head head, const char *name, const void *data)
{
	head.name_bytes = name == NULL ? 0 : (uint32_t)strlen(name);
	if (fwrite(&head, sizeof(head), 1, file) != 1 ||
	    (head.name_bytes > 0 && fwrite(name, head.name_bytes, 1, file) != 1) ||
	    (head.data_bytes > 0 && fwrite(data, head.data_bytes, 1, file) != 1))
		err(1, "the log");
}

static void import_content(FILE *file, const char *path, const struct stat *status)
{
	size_t size_bytes = (size_t)status->st_size;
	void *content;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	content = size_bytes == 0 ? NULL : mmap(NULL, size_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (content == MAP_FAILED)
		err(1, "%s", path);
	if (content != NULL) {
		put_record(
			file,
			(struct power_log_head){.kind = POWER_WRITE, .inode = status->st_ino, .data_bytes = size_bytes},
			NULL, content);
		(void)munmap(content, size_bytes);
	}
	(void)close(fd);
}

static FILE *import_file;
static uint64_t import_folders[64]; /* inodes, by level */

static int import_one(const char *path, const struct stat *status, int type, struct FTW *where)
{
	bool is_folder = type == FTW_D;

	if (where->level >= (int)(sizeof(import_folders) / sizeof(import_folders[0])))
		errx(1, "%s: too deep", path);
	if (is_folder)
		import_folders[where->level] = status->st_ino;
	if (where->level == 0)
		put_record(import_file, (struct power_log_head){.kind = POWER_ROOT, .inode = status->st_ino}, NULL,
			   NULL);
	else
		put_record(import_file,
			   (struct power_log_head){.kind = POWER_CREATE,
						   .inode = status->st_ino,
						   .folder = import_folders[where->level - 1],
						   .offset = is_folder},
			   path + where->base, NULL);
	if (!is_folder)
		import_content(import_file, path, status);
	if (where->level > 0)
		put_record(import_file,
			   (struct power_log_head){.kind = POWER_SYNC, .inode = import_folders[where->level - 1]}, NULL,
			   NULL);
	put_record(import_file, (struct power_log_head){.kind = POWER_SYNC, .inode = status->st_ino}, NULL, NULL);
	return 0;
}

static void import(const char *folder, const char *log)
{
	import_file = fopen(log, "we");
	if (import_file == NULL)
		err(1, "%s", log);
	if (nftw(folder, import_one, 16, FTW_PHYS) != 0)
		err(1, "%s", folder);
	if (fclose(import_file) != 0)
		err(1, "%s", log);
}

static uint64_t count_records(struct power_log *power_log)
{
	struct power_log_head head;
	const uint8_t *name, *data;
	uint64_t count = 0;

	while (log_next(power_log, &head, &name, &data))
		count++;
	return count;
}

static uint64_t find_said(struct power_log *power_log)
{
	struct power_log_head head;
	const uint8_t *name, *data;
	uint64_t at = 0, after = 0;

	while (log_next(power_log, &head, &name, &data)) {
		at++;
		if (head.kind == POWER_SAID)
			after = at;
	}
	return after;
}

static void print_syncs(struct power_log *power_log)
{
	struct power_log_head head;
	const uint8_t *name, *data;

	for (uint64_t at = 0; log_next(power_log, &head, &name, &data); at++)
		if (head.kind == POWER_SYNC)
			(void)printf("%" PRIu64 "\n", at);
}

static void print_notes(struct power_log *power_log)
{
	struct power_log_head head;
	const uint8_t *name, *data;

	for (uint64_t at = 1; log_next(power_log, &head, &name, &data); at++)
		if (head.kind == POWER_NOTE && head.data_bytes > 0)
			(void)printf("%" PRIu64 " %c\n", at, data[0]);
}

int main(int argument_count, char **arguments)
{
	struct power_log power_log;

	if (argument_count < 3)
		errx(2, "see the head of power_cut.c");
	if (strcmp(arguments[1], "import") == 0 && argument_count == 4) {
		import(arguments[2], arguments[3]);
		return 0;
	}
	power_log = log_open(arguments[2]);
	if (strcmp(arguments[1], "count") == 0)
		(void)printf("%" PRIu64 "\n", count_records(&power_log));
	else if (strcmp(arguments[1], "said") == 0)
		(void)printf("%" PRIu64 "\n", find_said(&power_log));
	else if (strcmp(arguments[1], "syncs") == 0)
		print_syncs(&power_log);
	else if (strcmp(arguments[1], "notes") == 0)
		print_notes(&power_log);
	else if (strcmp(arguments[1], "whole") == 0 && argument_count == 4)
		make_whole(&power_log, arguments[3]);
	else if (strcmp(arguments[1], "states") == 0)
		make_states(&power_log);
	else
		errx(2, "see the head of power_cut.c");
	return 0;
}
