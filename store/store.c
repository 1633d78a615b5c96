/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The edge of a store: every function of store.h that is the same for all kinds
 * of store.
 *
 * Everything that comes in is checked here, once, and refused with a message
 * that says what is wrong with it; then the function of that kind of store is
 * called (store_ops.h). So an implementation can rely on
 *   - names that keep to the rule, texts within their limits, labels and details
 *     in UTF-8 and without control characters,
 *   - sizes, counts and numbers within their limits, enums with known values,
 *   - views that were opened for writing where something is written,
 *   - lists of changes that ascend, don't overlap and stay within the disk,
 * and has to check what only it can know: what exists, what is locked, which
 * chunks there are, which round is running, whether the store can be written to.
 *
 * Output pointers and handles are the caller's code, not outside data: a wrong
 * one is a bug that no check here would make better.
 *
 * What is read of a view without its implementation's lock is its size alone,
 * atomically: a reader may look at it while the disk is being resized.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "store/disk.h"
#include "store/disk_log.h"
#include "store/journal.h"
#include "store/record.h"
#include "store/store_ops.h"

enum {
	SECTOR_LEAST_BYTES = 512,
	SECTOR_MOST_BYTES = 65536,
	SOURCE_MOST_BYTES = LOG_MIRROR_MOST_BYTES,
	STAMP_MOST_BYTES = 4096,
	TEXT_MOST_BYTES = LOG_DETAILS_MOST_BYTES,
	DOING_MOST_BYTES = 255,
};

/* ------------------------------------------------------------------- texts */

/* How long the UTF-8 character at `at` is (RFC 3629, section 4: shortest form, no surrogates); 0 if it is none. */
static size_t utf8_length(const unsigned char *at)
{
	size_t len_bytes = at[0] < 0x80	  ? 1
			   : at[0] < 0xc2 ? 0
			   : at[0] < 0xe0 ? 2
			   : at[0] < 0xf0 ? 3
			   : at[0] < 0xf5 ? 4
					  : 0;

	for (size_t i = 1; i < len_bytes; i++)
		if ((at[i] & 0xc0) != 0x80) /* the final NUL is none either */
			return 0;
	if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) || (at[0] == 0xf0 && at[1] < 0x90) ||
	    (at[0] == 0xf4 && at[1] > 0x8f))
		return 0;
	return len_bytes;
}

static bool is_control(const unsigned char *at)
{
	return at[0] < 0x20 || at[0] == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0);
}

static bool is_json_blank(unsigned char byte)
{
	return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

/* A text that is shown to people and goes into JSON as it is. `what` opens the message. */
static int check_text(const char *what, const char *text, size_t most_bytes, struct failure *failure)
{
	size_t len_bytes = strnlen(text, most_bytes + 1);

	if (len_bytes > most_bytes)
		return fail(failure, -EINVAL, "%s: longer than %zu bytes", what, most_bytes);
	for (const char *at = text; *at != '\0';) {
		const unsigned char *bytes = (const unsigned char *)at;
		size_t character_bytes = utf8_length(bytes);

		if (character_bytes == 0)
			return fail(failure, -EINVAL, "%s: not UTF-8 at byte %td", what, at - text + 1);
		if (is_control(bytes))
			return fail(failure, -EINVAL, "%s: holds a control character at byte %td; write it in one line",
				    what, at - text + 1);
		at += character_bytes;
	}
	return 0;
}

/* The text of a JSON object, as far as it can be told from its ends. NULL is fine. */
static int check_details(const char *what, const char *details, struct failure *failure)
{
	size_t len_bytes;

	if (details == NULL)
		return 0;
	len_bytes = strnlen(details, LOG_DETAILS_MOST_BYTES + 1);
	if (len_bytes > LOG_DETAILS_MOST_BYTES)
		return fail(failure, -EINVAL, "%s: details are longer than %d bytes", what, LOG_DETAILS_MOST_BYTES);
	for (size_t i = 0; i < len_bytes;) {
		const unsigned char *at = (const unsigned char *)details + i;
		size_t character_bytes = utf8_length(at);

		if (character_bytes == 0 || (is_control(at) && !is_json_blank(at[0])))
			return fail(failure, -EINVAL, "%s: details are not JSON text at byte %zu", what, i + 1);
		i += character_bytes;
	}
	while (len_bytes > 0 && is_json_blank((unsigned char)details[len_bytes - 1]))
		len_bytes--;
	while (is_json_blank((unsigned char)*details)) {
		details++;
		len_bytes--;
	}
	if (len_bytes < 2 || details[0] != '{' || details[len_bytes - 1] != '}')
		return fail(failure, -EINVAL, "%s: details are not a JSON object", what);
	return 0;
}

/* Texts that are kept as they are: a path may hold any byte but NUL. */
static int check_length(const char *what, const char *text, size_t least_bytes, size_t most_bytes,
			struct failure *failure)
{
	size_t len_bytes = text == NULL ? 0 : strnlen(text, most_bytes + 1);

	if (len_bytes < least_bytes)
		return fail(failure, -EINVAL, "%s: missing", what);
	if (len_bytes > most_bytes)
		return fail(failure, -EINVAL, "%s: longer than %zu bytes", what, most_bytes);
	return 0;
}

/* Who we are, for others' messages: one line of it, whatever the arguments held that it was made of. */
static void copy_doing(char ret_line[DOING_MOST_BYTES + 1], const char *doing)
{
	size_t len_bytes = strnlen(doing, DOING_MOST_BYTES + 1);

	if (len_bytes > DOING_MOST_BYTES) {
		len_bytes = DOING_MOST_BYTES;
		while (len_bytes > 0 && ((unsigned char)doing[len_bytes] & 0xc0) == 0x80)
			len_bytes--; /* not inside of a UTF-8 character */
	}
	for (size_t i = 0; i < len_bytes; i++)
		if (is_control((const unsigned char *)doing + i))
			ret_line[i] = '?';
		else
			ret_line[i] = doing[i];
	ret_line[len_bytes] = '\0';
}

/* ----------------------------------------------------------------- numbers */

static bool is_power_of_two(uint64_t value)
{
	return value != 0 && (value & (value - 1)) == 0;
}

static uint64_t count_chunks(uint32_t chunk_bytes, uint64_t size_bytes)
{
	return size_bytes / chunk_bytes + (size_bytes % chunk_bytes != 0);
}

uint32_t store_chunk_length(uint32_t chunk_bytes, uint64_t size_bytes, uint64_t index)
{
	uint64_t whole_chunks = size_bytes / chunk_bytes;

	if (index < whole_chunks)
		return chunk_bytes;
	return index == whole_chunks ? (uint32_t)(size_bytes % chunk_bytes) : 0;
}

static int check_disk_size(const char *name, uint64_t size_bytes, struct failure *failure)
{
	if (size_bytes == 0)
		return fail(failure, -EINVAL, "disk %s: a disk of 0 bytes can't hold anything", name);
	if (size_bytes > STORE_DISK_MOST_BYTES)
		return fail(failure, -EFBIG, "disk %s: %llu bytes are more than a disk can have (1 EiB)", name,
			    (unsigned long long)size_bytes);
	return 0;
}

static int check_image_number(const char *disk, uint32_t number, struct failure *failure)
{
	int error = store_check_name(disk, failure);

	if (error == 0 && number == 0)
		error = fail(failure, -EINVAL, "%s@0: no image has this number; they are counted from 1", disk);
	return error;
}

static int check_level(const char *name, int level, struct failure *failure)
{
	if (level < CODEC_LEVEL_LEAST || level > CODEC_LEVEL_MOST)
		return fail(failure, -EINVAL, "disk %s: compression level %d is not in %d..%d", name, level,
			    CODEC_LEVEL_LEAST, CODEC_LEVEL_MOST);
	return 0;
}

static int check_limit(const char *name, uint64_t limit_bytes_per_second, struct failure *failure)
{
	if (limit_bytes_per_second > INT64_MAX)
		return fail(failure, -EINVAL, "disk %s: a limit of %llu bytes a second is out of range", name,
			    (unsigned long long)limit_bytes_per_second);
	return 0;
}

/* ----------------------------------------------------- the store as a whole */

void store_close(struct store *store)
{
	char *location;

	if (store == NULL)
		return;
	location = store->location; /* close() releases what holds the pointer */
	store->ops->close(store);
	free(location);
}

uint32_t store_chunk_bytes(const struct store *store)
{
	return store->chunk_bytes;
}

const char *store_location(const struct store *store)
{
	return store->location;
}

int store_contains_path(struct store *store, const char *path, bool *ret_contains, struct failure *failure)
{
	if (*path == '\0')
		return fail(failure, -EINVAL, "the path is empty");
	return store->ops->contains_path(store, path, ret_contains, failure);
}

/* ---------------------------------------------------------------- listings */

int store_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		     struct failure *failure)
{
	int error = name == NULL ? 0 : store_check_name(name, failure);

	return error != 0 ? error : store->ops->list_disks(store, name, ret_list, ret_count, failure);
}

int store_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		      struct failure *failure)
{
	int error = name == NULL ? 0 : store_check_name(name, failure);

	return error != 0 ? error : store->ops->list_images(store, name, ret_list, ret_count, failure);
}

int store_describe_image(struct store *store, const char *disk, uint32_t number, struct store_image **ret_image, struct failure *failure)
{
	int error = check_image_number(disk, number, failure);

	return error != 0 ? error : store->ops->describe_image(store, disk, number, ret_image, failure);
}

int store_brief_images(struct store *store, const char *disk, struct store_image_brief **ret_list, size_t *ret_count,
		       struct failure *failure)
{
	int error = store_check_name(disk, failure);

	return error != 0 ? error : store->ops->brief_images(store, disk, ret_list, ret_count, failure);
}

int store_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		      struct failure *failure)
{
	int error = name == NULL ? 0 : store_check_name(name, failure);

	return error != 0 ? error : store->ops->list_rounds(store, name, ret_list, ret_count, failure);
}

void store_disks_free(struct store_disk *list, size_t count)
{
	for (size_t i = 0; list != NULL && i < count; i++) {
		free(list[i].mirror_of);
		free(list[i].open_by);
		free(list[i].parent);
	}
	free(list);
}

void store_images_free(struct store_image *list, size_t count)
{
	for (size_t i = 0; list != NULL && i < count; i++) {
		free(list[i].label);
		free(list[i].in_use_by);
		free(list[i].details);
	}
	free(list);
}

void store_rounds_free(struct store_round *list, size_t count)
{
	for (size_t i = 0; list != NULL && i < count; i++) {
		free(list[i].source);
		free(list[i].error);
		free(list[i].details);
	}
	free(list);
}

/* ---------------------------------------------------------------- the whole */

int store_usage(struct store *store, struct store_usage *ret_usage, struct failure *failure)
{
	return store->ops->usage(store, ret_usage, failure);
}

void store_usage_free(struct store_usage *usage)
{
	free(usage->disks);
	*usage = (struct store_usage){.disks = NULL};
}

int store_room(struct store *store, struct store_room *ret_room, struct failure *failure)
{
	return store->ops->room(store, ret_room, failure);
}

int store_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
		struct failure *failure)
{
	if (params->repair && !params->deep)
		return fail(failure, -EINVAL, "check: only what was read can be repaired: a deep one");
	return store->ops->check(store, params, ret_report, failure);
}

int store_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
		struct failure *failure)
{
	return store->ops->clean(store, params, ret_report, failure);
}

int store_clean_after(struct store *store, const struct store_retention *retention, const char *doing,
		      const atomic_bool *stop, struct failure *failure)
{
	const struct store_clean_params params = {.doing = doing, .most_bytes = STORE_CLEAN_DOSE_BYTES, .stop = stop};
	struct store_clean_report report;
	struct failure why = {.code = 0};
	int result;

	if (retention->deleted_count == 0)
		return 0;
	result = store_clean(store, &params, &report, &why);
	if (result == 0 || result == -EBUSY || result == -EINTR)
		return 0;
	return fail_from(failure, &why);
}

void store_check_report_free(struct store_check_report *report)
{
	for (size_t i = 0; i < report->flaw_count; i++) {
		free(report->flaws[i].what);
		free(report->flaws[i].why);
	}
	free(report->flaws);
	free(report->damages);
	*report = (struct store_check_report){.damages = NULL};
}

static int check_reference(const struct store_reference *reference, struct failure *failure)
{
	if (memchr(reference->disk, '\0', sizeof(reference->disk)) == NULL)
		return fail(failure, -EINVAL, "a disk's name has at most %d characters", STORE_NAME_MOST_BYTES);
	switch (reference->which) {
	case STORE_LIVE:
	case STORE_LATEST:
		return store_check_name(reference->disk, failure);
	case STORE_NUMBER:
		return check_image_number(reference->disk, reference->number, failure);
	}
	return fail(failure, -EINVAL, "disk %s: asked for neither live content nor an image", reference->disk);
}

/* ------------------------------------------------------- disks and policies */

int store_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure)
{
	int error = store_check_name(params->name, failure);

	if (error == 0)
		error = check_disk_size(params->name, params->size_bytes, failure);
	if (error != 0)
		return error;
	if (!is_power_of_two(params->sector_bytes) || params->sector_bytes < SECTOR_LEAST_BYTES ||
	    params->sector_bytes > SECTOR_MOST_BYTES)
		return fail(failure, -EINVAL, "disk %s: sectors of %u bytes; they are a power of two from %d to %d",
			    params->name, params->sector_bytes, SECTOR_LEAST_BYTES, SECTOR_MOST_BYTES);
	error = check_length("name of the source", params->mirror_of, 0, SOURCE_MOST_BYTES, failure);
	return error != 0 ? error : store->ops->create_disk(store, params, failure);
}

int store_clone_disk(struct store *store, const struct store_reference *image, const char *name, struct failure *failure)
{
	int error = check_reference(image, failure);

	if (error == 0)
		error = store_check_name(name, failure);
	if (error == 0 && image->which == STORE_LIVE)
		error = fail(failure, -EINVAL, "%s: this is a disk, not an image; clone %s@N or %s@latest ('wherry image %s' makes one)",
			     image->disk, image->disk, image->disk, image->disk);
	if (error == 0 && image->partition != 0)
		error = fail(failure, -EINVAL, "%s: a clone is of a whole image, not of a partition", image->disk);
	return error != 0 ? error : store->ops->clone_disk(store, image, name, failure);
}

int store_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure)
{
	int error = store_check_name(name, failure);

	return error != 0 ? error : store->ops->remove_disk(store, name, dry_run, failure);
}

int store_set_policy(struct store *store, const char *name, const struct store_policy *policy, struct failure *failure)
{
	int error = store_check_name(name, failure);

	if (error == 0 && policy->set_keep && policy->keep > STORE_KEEP_MOST)
		error = fail(failure, -EINVAL, "disk %s: can't keep %u images, %d at most", name, policy->keep,
			     STORE_KEEP_MOST);
	if (error == 0 && policy->set_level && policy->level != -1)
		error = check_level(name, policy->level, failure);
	if (error == 0 && policy->set_limit)
		error = check_limit(name, policy->limit_bytes_per_second, failure);
	return error != 0 ? error : store->ops->set_policy(store, name, policy, failure);
}

/* ------------------------------------------------------------------ images */

int store_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run, uint64_t *ret_freed_bytes,
		       struct failure *failure)
{
	int error = check_image_number(disk, number, failure);

	return error != 0 ? error : store->ops->delete_image(store, disk, number, dry_run, ret_freed_bytes, failure);
}

int store_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure)
{
	int error = check_image_number(disk, number, failure);

	return error != 0 ? error : store->ops->pin_image(store, disk, number, pinned, failure);
}

int store_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		      struct failure *failure)
{
	int error = check_reference(reference, failure);

	if (error == 0 && reference->which == STORE_LIVE)
		error = fail(failure, -EINVAL, "%s: this is a disk, not an image; write %s@N or %s@latest",
			     reference->disk, reference->disk, reference->disk);
	return error != 0 ? error : store->ops->brief_image(store, reference, ret_brief, failure);
}

int store_resolve_image(struct store *store, const struct store_reference *reference, uint32_t *ret_number,
			struct failure *failure)
{
	struct store_image_brief brief;
	int error = store_brief_image(store, reference, &brief, failure);

	if (error == 0)
		*ret_number = brief.number;
	return error;
}

int store_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		 struct store_retention *ret_retention, struct failure *failure)
{
	int error = store_check_name(disk, failure);

	if (error == 0 && keep == 0)
		error = fail(failure, -EINVAL, "disk %s: at least 1 image is kept; remove the disk to be rid of all",
			     disk);
	if (error == 0 && keep > STORE_KEEP_MOST)
		error = fail(failure, -EINVAL, "disk %s: can't keep %u images, %d at most", disk, keep,
			     STORE_KEEP_MOST);
	return error != 0 ? error : store->ops->retain(store, disk, keep, dry_run, ret_retention, failure);
}

void store_retention_free(struct store_retention *retention)
{
	for (size_t i = 0; retention->kept != NULL && i < retention->kept_count; i++)
		free(retention->kept[i].why);
	free(retention->kept);
	free(retention->deleted);
	*retention = (struct store_retention){.deleted = NULL};
}

/* ------------------------------------------------------------------- views */

int store_view_open_unfolded(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
			     const char *doing, struct store_view **ret_view, struct failure *failure)
{
	char line[DOING_MOST_BYTES + 1];
	int error = check_reference(reference, failure);

	if (error != 0)
		return error;
	if (mode != VIEW_READ && mode != VIEW_WRITE)
		return fail(failure, -EINVAL, "disk %s: opened neither for reading nor for writing", reference->disk);
	if (mode == VIEW_WRITE && reference->which != STORE_LIVE)
		return fail(failure, -EINVAL, "disk %s: an image can't be written to, it never changes",
			    reference->disk);
	if (doing == NULL || *doing == '\0')
		return fail(failure, -EINVAL, "disk %s: opened without saying by whom", reference->disk);
	copy_doing(line, doing);
	return store->ops->view_open(store, reference, mode, line, ret_view, failure);
}

uint64_t store_next_serial(void)
{
	static _Atomic uint64_t serial;

	return ++serial;
}

int store_disk_files(struct store *store, const char *disk, bool make, struct store_disk_files *ret_files,
		     struct failure *failure)
{
	return store->ops->disk_files(store, disk, make, ret_files, failure);
}

static int has_journal(struct store *store, const char *disk, bool *ret_has, struct failure *failure)
{
	struct store_disk_files files = {.journal_fd = -1};
	bool is_empty = true;
	int error = store_disk_files(store, disk, false, &files, failure);

	if (error == 0 && files.journal_fd >= 0) {
		error = journal_is_empty(files.journal_fd, &is_empty, failure);
		(void)close(files.journal_fd); /* a folder */
	}
	free(files.socket_path);
	if (error == 0)
		*ret_has = !is_empty;
	return error;
}

static int recover(struct store *store, const struct store_reference *reference, const char *doing,
		   struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error = disk_recover(store, reference, doing, &cause);

	if (error == -EROFS)
		return fail(failure, error,
			    "disk %s: writes of a server that was killed are still in its journal, and the store can't be written "
			    "to; open it once where it can be",
			    reference->disk);
	return error == 0 ? 0 : fail_from(failure, &cause);
}

/* Whether there is a journal counts once the lease is ours: until then somebody may be writing it. */
int store_view_open(struct store *store, const struct store_reference *reference, enum store_view_mode mode,
		    const char *doing, struct store_view **ret_view, struct failure *failure)
{
	for (int i = 0; i < 2; i++) {
		struct store_view *view = NULL;
		bool has = false;
		int error = store_view_open_unfolded(store, reference, mode, doing, &view, failure);

		if (error == 0 && reference->which == STORE_LIVE)
			error = has_journal(store, reference->disk, &has, failure);
		if (error == 0 && !has) {
			*ret_view = view;
			return 0;
		}
		store_view_close(view);
		if (error == 0)
			error = recover(store, reference, doing, failure);
		if (error != 0)
			return error;
	}
	return fail(failure, -EBUSY, "disk %s: somebody else writes to it again and again", reference->disk);
}

int store_request_image(struct store *store, const char *disk, const struct store_image_params *params, const char *doing,
			uint32_t *ret_number, struct failure *failure)
{
	struct store_reference reference = {.which = STORE_LIVE};
	struct store_disk_files files = {.journal_fd = -1};
	struct failure busy = {.code = 0};
	int error = store_check_name(disk, failure);

	if (error == 0 && params->label != NULL &&
	    (strlen(params->label) > STORE_LABEL_MOST_BYTES || strchr(params->label, '\n') != NULL))
		error = fail(failure, -EINVAL, "disk %s: a label is one line of at most %d bytes", disk,
			     STORE_LABEL_MOST_BYTES);
	if (error == 0)
		error = check_details("image", params->details, failure);
	if (error != 0)
		return error;
	(void)strcpy(reference.disk, disk);
	error = disk_image_unattached(store, &reference, params, doing, ret_number, &busy);
	if (error != -EBUSY)
		return error != 0 ? fail_from(failure, &busy) : 0;
	error = store_disk_files(store, disk, false, &files, failure);
	if (files.journal_fd >= 0)
		(void)close(files.journal_fd); /* a folder */
	if (error == 0)
		error = disk_control_request_image(files.socket_path, disk, params, ret_number, failure);
	free(files.socket_path);
	return error == -ENOENT ? fail_from(failure, &busy) : error; /* nobody who answers: who has it open is in the first message */
}

void store_view_close(struct store_view *view)
{
	if (view != NULL)
		view->store->ops->view_close(view);
}

struct store *store_view_store(const struct store_view *view)
{
	return view->store;
}

const char *store_view_name(const struct store_view *view)
{
	return view->name;
}

uint64_t store_view_size(const struct store_view *view)
{
	return __atomic_load_n(&view->size_bytes, __ATOMIC_RELAXED);
}

uint32_t store_view_sector_bytes(const struct store_view *view)
{
	return view->sector_bytes;
}

const uint8_t *store_view_fingerprint_key(const struct store_view *view)
{
	return view->fingerprint_key;
}

int store_view_map(struct store_view *view, uint64_t page, struct store_map_page *ret_map, struct failure *failure)
{
	uint64_t chunks = count_chunks(view->store->chunk_bytes, store_view_size(view));

	if (page > (chunks - 1) / STORE_MAP_PAGE_ENTRIES) {
		memset(ret_map, 0, sizeof(*ret_map));
		return 0;
	}
	return view->store->ops->view_map(view, page, ret_map, failure);
}

int store_view_next_page(struct store_view *view, uint64_t from_page, uint64_t *ret_page, struct failure *failure)
{
	uint64_t chunks = count_chunks(view->store->chunk_bytes, store_view_size(view));

	if (from_page > (chunks - 1) / STORE_MAP_PAGE_ENTRIES) {
		*ret_page = UINT64_MAX;
		return 0;
	}
	return view->store->ops->view_next_page(view, from_page, ret_page, failure);
}

static int check_chunk_length(const struct store_view *view, uint32_t plain_bytes, struct failure *failure)
{
	if (plain_bytes == 0 || plain_bytes > view->store->chunk_bytes)
		return fail(failure, -EINVAL, "%s: a chunk of %u bytes; chunks of this store have 1 to %u", view->name,
			    plain_bytes, view->store->chunk_bytes);
	return 0;
}

int store_view_read_chunk(struct store_view *view, struct store_scratch *scratch, store_chunk chunk, void *plain,
			  uint32_t plain_bytes, bool deep, struct failure *failure)
{
	int error = check_chunk_length(view, plain_bytes, failure);

	if (error == 0 && chunk == 0)
		error = fail(failure, -EINVAL, "%s: asked to read a chunk where there is none", view->name);
	return error != 0 ? error
			  : view->store->ops->view_read_chunk(view, scratch, chunk, plain, plain_bytes, deep, failure);
}

void store_view_prefetch(struct store_view *view, const store_chunk *chunks, size_t count)
{
	if (count > 0)
		view->store->ops->view_prefetch(view, chunks, count);
}

/* ------------------------------------------------------------------ writing */

static int check_writable(const struct store_view *view, struct failure *failure)
{
	if (view->mode != VIEW_WRITE)
		return fail(failure, -EBADF, "%s: opened for reading only", view->name);
	return 0;
}

int store_find_chunks(struct store *store, const uint8_t (*digests)[DIGEST_BYTES], size_t count,
		      store_chunk *ret_chunks, struct failure *failure)
{
	return count == 0 ? 0 : store->ops->find_chunks(store, digests, count, ret_chunks, failure);
}

static int check_encoded(const struct store_view *view, const struct store_encoded *encoded, struct failure *failure)
{
	int error = check_chunk_length(view, encoded->plain_bytes, failure);

	if (error != 0)
		return error;
	if (encoded->stored == NULL || encoded->stored_bytes == 0 || encoded->stored_bytes > RECORD_STORED_MOST_BYTES)
		return fail(failure, -EINVAL, "%s: a chunk of %u stored bytes; a record has 1 to %d", view->name,
			    encoded->stored_bytes, RECORD_STORED_MOST_BYTES);
	if (encoded->codec != CODEC_PLAIN && encoded->codec != CODEC_ZSTD)
		return fail(failure, -EINVAL, "%s: a chunk in unknown codec %u", view->name, encoded->codec);
	if (encoded->cipher != CIPHER_NONE)
		return fail(failure, -EINVAL, "%s: a chunk in unknown cipher %u", view->name, encoded->cipher);
	if (encoded->codec == CODEC_PLAIN && encoded->stored_bytes != encoded->plain_bytes)
		return fail(failure, -EINVAL, "%s: a plain chunk of %u bytes stored as %u", view->name,
			    encoded->plain_bytes, encoded->stored_bytes);
	return 0;
}

int store_put_chunk(struct store_view *view, const struct store_encoded *encoded, store_chunk *ret_chunk,
		    uint64_t *ret_new_bytes, struct failure *failure)
{
	int error = check_writable(view, failure);

	if (error == 0)
		error = check_encoded(view, encoded, failure);
	return error != 0 ? error : view->store->ops->put_chunk(view, encoded, ret_chunk, ret_new_bytes, failure);
}

/* `next_chunk` is where the change before ended; it becomes the end of this one. */
static int check_change(const struct store_view *view, const struct store_change *change, uint64_t *next_chunk,
			struct failure *failure)
{
	uint64_t chunks = count_chunks(view->store->chunk_bytes, view->size_bytes);
	unsigned long long first = change->first_chunk;
	uint64_t end;

	if (change->chunk_count == 0)
		return fail(failure, -EINVAL, "%s: change at chunk %llu: of no chunk at all", view->name, first);
	if (__builtin_add_overflow(change->first_chunk, change->chunk_count, &end) || end > chunks)
		return fail(failure, -EINVAL, "%s: change at chunk %llu: reaches beyond the disk's %llu chunks",
			    view->name, first, (unsigned long long)chunks);
	if (change->first_chunk < *next_chunk)
		return fail(failure, -EINVAL,
			    "%s: change at chunk %llu: the one before reaches to %llu; changes ascend without overlap",
			    view->name, first, (unsigned long long)*next_chunk);
	if (change->kind == STORE_MAP_CHUNK && (change->chunk_count != 1 || change->chunk == 0))
		return fail(failure, -EINVAL, "%s: change at chunk %llu: not one chunk that was put or found",
			    view->name, first);
	if (change->kind != STORE_MAP_CHUNK && change->kind != STORE_MAP_ZERO && change->kind != STORE_MAP_NOTHING)
		return fail(failure, -EINVAL, "%s: change at chunk %llu: of unknown kind %u", view->name, first,
			    change->kind);
	if (change->refresh && change->kind != STORE_MAP_CHUNK)
		return fail(failure, -EINVAL, "%s: change at chunk %llu: zeros have no fingerprint to refresh",
			    view->name, first);
	*next_chunk = end;
	return 0;
}

static int check_position(const struct store_view *view, const struct store_round_position *round,
			  struct failure *failure)
{
	if (round->number == 0)
		return fail(failure, -EINVAL, "%s: no round has the number 0", view->name);
	if (round->cursor_bytes > view->size_bytes)
		return fail(failure, -EINVAL, "%s: position %llu of round %u lies beyond the disk's %llu bytes",
			    view->name, (unsigned long long)round->cursor_bytes, round->number,
			    (unsigned long long)view->size_bytes);
	if (round->cursor_bytes % view->store->chunk_bytes != 0 && round->cursor_bytes != view->size_bytes)
		return fail(failure, -EINVAL, "%s: position %llu of round %u lies inside of a chunk", view->name,
			    (unsigned long long)round->cursor_bytes, round->number);
	return 0;
}

int store_commit(struct store_view *view, const struct store_change *changes, size_t count,
		 const struct store_round_position *round, struct failure *failure)
{
	uint64_t next_chunk = 0;
	int error = check_writable(view, failure);

	if (error != 0)
		return error;
	if (count > STORE_COMMIT_MOST_CHANGES)
		return fail(failure, -EINVAL, "%s: %zu changes at once, %d at most", view->name, count,
			    STORE_COMMIT_MOST_CHANGES);
	for (size_t i = 0; i < count && error == 0; i++)
		error = check_change(view, &changes[i], &next_chunk, failure);
	if (error == 0 && round != NULL)
		error = check_position(view, round, failure);
	return error != 0 ? error : view->store->ops->commit(view, changes, count, round, failure);
}

int store_resize_disk(struct store_view *view, uint64_t size_bytes, struct failure *failure)
{
	int error = check_writable(view, failure);

	if (error == 0)
		error = check_disk_size(view->name, size_bytes, failure);
	return error != 0 ? error : view->store->ops->resize_disk(view, size_bytes, failure);
}

int store_create_image(struct store_view *view, const struct store_image_params *params, uint32_t *ret_number,
		       struct failure *failure)
{
	int error = check_writable(view, failure);

	if (error == 0 && params->label != NULL)
		error = check_text("label", params->label, STORE_LABEL_MOST_BYTES, failure);
	if (error == 0 && (unsigned int)params->consistency > STORE_FUZZY)
		error = fail(failure, -EINVAL, "%s: an image of unknown consistency %u", view->name,
			     (unsigned int)params->consistency);
	if (error == 0)
		error = check_details("image", params->details, failure);
	return error != 0 ? error : view->store->ops->create_image(view, params, ret_number, failure);
}

/* ------------------------------------------------------------------- rounds */

static int check_round_params(const struct store_view *view, const struct store_round_params *params,
			      struct failure *failure)
{
	int error = check_length("name of the source", params->source, 1, SOURCE_MOST_BYTES, failure);

	if (error == 0)
		error = check_length("identity of the source", params->source_identity, 1, SOURCE_MOST_BYTES, failure);
	if (error == 0)
		error = check_length("what a round reads", params->how, 0, TEXT_MOST_BYTES, failure);
	if (error == 0)
		error = check_length("stamp of the source", params->start_stamp, 0, STAMP_MOST_BYTES, failure);
	if (error == 0)
		error = check_length("names of dirty bitmaps", params->dirty_bitmaps, 0, TEXT_MOST_BYTES, failure);
	if (error == 0 && params->dirty_bytes > INT64_MAX)
		error = fail(failure, -EINVAL, "%s: more dirty bytes than a disk can have", view->name);
	if (error == 0 && params->has_level)
		error = check_level(view->name, params->level, failure);
	if (error == 0 && params->has_limit)
		error = check_limit(view->name, params->limit_bytes_per_second, failure);
	return error;
}

int store_begin_round(struct store_view *view, const struct store_round_params *params,
		      struct store_round_begun *ret_begun, struct failure *failure)
{
	struct store_round_params whole = *params;
	int error = check_writable(view, failure);

	if (error == 0)
		error = check_round_params(view, params, failure);
	if (error != 0)
		return error;
	whole.how = params->how == NULL ? "" : params->how;
	whole.start_stamp = params->start_stamp == NULL ? "" : params->start_stamp;
	whole.dirty_bitmaps = params->dirty_bitmaps == NULL ? "" : params->dirty_bitmaps;
	return view->store->ops->begin_round(view, &whole, ret_begun, failure);
}

void store_round_begun_free(struct store_round_begun *begun)
{
	free(begun->start_stamp);
	free(begun->details);
	free(begun->previous_identity);
	free(begun->previous_dirty_bitmaps);
	free(begun->previous_details);
	*begun = (struct store_round_begun){.number = 0};
}

static int check_round_number(const struct store_view *view, uint32_t number, struct failure *failure)
{
	return number == 0 ? fail(failure, -EINVAL, "%s: no round has the number 0", view->name) : 0;
}

int store_note_round(struct store_view *view, uint32_t number, const char *details, struct failure *failure)
{
	int error = check_writable(view, failure);

	if (error == 0)
		error = check_round_number(view, number, failure);
	if (error == 0)
		error = check_details("round", details, failure);
	return error != 0 ? error : view->store->ops->note_round(view, number, details, failure);
}

int store_finish_round(struct store_view *view, uint32_t number, enum store_round_state state, const char *error,
		       const struct store_round_counts *counts, struct failure *failure)
{
	int status = check_writable(view, failure);

	if (status == 0)
		status = check_round_number(view, number, failure);
	if (status == 0 && state != ROUND_DONE && state != ROUND_STOPPED && state != ROUND_FAILED)
		status = fail(failure, -EINVAL, "%s: round %u can't end as %s", view->name, number,
			      store_round_state_name(state));
	if (status == 0)
		status = check_length("error of a round", error, 0, TEXT_MOST_BYTES, failure);
	return status != 0 ? status : view->store->ops->finish_round(view, number, state, error, counts, failure);
}

int store_round_throttle(struct store_view *view, uint32_t number, struct store_throttle *ret_throttle,
			 struct failure *failure)
{
	int error = check_round_number(view, number, failure);

	return error != 0 ? error : view->store->ops->round_throttle(view, number, ret_throttle, failure);
}

/* ----------------------------------------------------- scratch and encoding */

int store_scratch_new(struct store_scratch **ret_scratch, struct failure *failure)
{
	struct store_scratch *scratch = calloc(1, sizeof(*scratch));
	int error;

	if (scratch == NULL)
		return fail(failure, -ENOMEM, "no memory for buffers");
	error = hasher_new(&scratch->hasher, failure);
	if (error == 0)
		error = codec_new(&scratch->codec, failure);
	if (error == 0) {
		scratch->stored = malloc(RECORD_STORED_MOST_BYTES);
		if (scratch->stored == NULL)
			error = fail(failure, -ENOMEM, "no memory for buffers");
	}
	if (error != 0) {
		store_scratch_free(scratch);
		return error;
	}
	*ret_scratch = scratch;
	return 0;
}

void store_scratch_free(struct store_scratch *scratch)
{
	if (scratch == NULL)
		return;
	hasher_free(scratch->hasher);
	codec_free(scratch->codec);
	free(scratch->stored);
	free(scratch);
}

struct hasher *store_scratch_hasher(struct store_scratch *scratch)
{
	return scratch->hasher;
}

int store_encode_chunk(struct store_scratch *scratch, int level, const uint8_t digest[DIGEST_BYTES], const void *plain,
		       uint32_t plain_bytes, struct store_encoded *ret_encoded, struct failure *failure)
{
	struct record_header header = {.type = RECORD_CHUNK};
	struct store_encoded encoded = {.plain_bytes = plain_bytes, .stored = scratch->stored};
	int error;

	if (level < CODEC_LEVEL_LEAST || level > CODEC_LEVEL_MOST)
		return fail(failure, -EINVAL, "compression level %d is not in %d..%d", level, CODEC_LEVEL_LEAST,
			    CODEC_LEVEL_MOST);
	if (plain_bytes == 0 || plain_bytes > STORE_CHUNK_MOST_BYTES)
		return fail(failure, -EINVAL, "a chunk of %u bytes; they have 1 to %d", plain_bytes,
			    STORE_CHUNK_MOST_BYTES);
	error = codec_encode(scratch->codec, level, plain, plain_bytes, scratch->stored, &header, failure);
	if (error != 0)
		return error;
	memcpy(encoded.digest, digest, DIGEST_BYTES);
	encoded.codec = header.codec;
	encoded.cipher = header.cipher;
	encoded.stored_bytes = header.stored_bytes;
	*ret_encoded = encoded;
	return 0;
}
