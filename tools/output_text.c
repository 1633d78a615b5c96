/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people read. Tables have a heading and no lines; the column that can be
 * long stands last and is not filled up. Summaries begin with one line that says it
 * all, and below it only what there is to say.
 */
#include "tools/output.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/record.h"
#include "tools/command.h"
#include "tools/mount_ways.h"
#include "tools/text.h"

/* ---- tables ---- */

enum { TABLE_COLUMNS_MOST = 8, TABLE_GAP_COLUMNS = 2 };

struct table {
	unsigned int columns;
	const char *titles[TABLE_COLUMNS_MOST];
	bool to_the_right[TABLE_COLUMNS_MOST]; /* numbers */
	char **cells;			       /* owned, row after row, without the titles */
	size_t cell_count;
	size_t capacity;
};

/* Appends a cell, made safe. */
__attribute__((format(printf, 2, 3))) static void table_add(struct table *table, const char *format, ...)
{
	AUTO_FREE char *text = NULL;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vasprintf(&text, format, arguments);
	va_end(arguments);
	if (length < 0) {
		text = NULL;
		output_out_of_memory();
	}
	if (table->cell_count == table->capacity) {
		size_t capacity = table->capacity * 2 + 64;
		char **cells = reallocarray(table->cells, capacity, sizeof(*cells));

		if (cells == NULL)
			output_out_of_memory();
		table->cells = cells;
		table->capacity = capacity;
	}
	table->cells[table->cell_count] = text_made_safe(text);
	if (table->cells[table->cell_count++] == NULL)
		output_out_of_memory();
}

static void table_add_size(struct table *table, uint64_t bytes)
{
	char text[UNITS_TEXT_BYTES];

	table_add(table, "%s", units_format_size(bytes, text));
}

/* Local time, for who sits in front of it. */
static void table_add_time(struct table *table, int64_t unix_seconds)
{
	time_t seconds = (time_t)unix_seconds;
	struct tm parts;
	char text[64];

	if (localtime_r(&seconds, &parts) == NULL || strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &parts) == 0)
		(void)snprintf(text, sizeof(text), "?");
	table_add(table, "%s", text);
}

static void print_row(const struct table *table, char *const *cells, const size_t *widths)
{
	size_t gap_columns = 0; /* owed: printed only if something follows, so that no line ends in blanks */

	for (unsigned int i = 0; i < table->columns; i++) {
		size_t padding_columns = widths[i] - text_columns(cells[i]);

		if (cells[i][0] != '\0') {
			if (table->to_the_right[i])
				gap_columns += padding_columns;
			(void)printf("%*s%s", (int)gap_columns, "", cells[i]);
			gap_columns = table->to_the_right[i] ? 0 : padding_columns;
		} else
			gap_columns += widths[i];
		gap_columns += TABLE_GAP_COLUMNS;
	}
	(void)putchar('\n');
}

static void table_print(const struct table *table)
{
	size_t widths[TABLE_COLUMNS_MOST];
	char *titles[TABLE_COLUMNS_MOST];

	for (unsigned int i = 0; i < table->columns; i++) {
		titles[i] = (char *)(uintptr_t)table->titles[i]; /* print_row() only reads them */
		widths[i] = text_columns(titles[i]);
	}
	for (size_t i = 0; i < table->cell_count; i++) {
		size_t columns = text_columns(table->cells[i]);

		if (columns > widths[i % table->columns])
			widths[i % table->columns] = columns;
	}
	print_row(table, titles, widths);
	for (size_t i = 0; i < table->cell_count; i += table->columns)
		print_row(table, table->cells + i, widths);
}

static void table_release(struct table *table)
{
	for (size_t i = 0; i < table->cell_count; i++)
		free(table->cells[i]);
	free(table->cells);
}

/* ---- texts that grow ---- */

/* Appends to `*text` (owned, may be NULL), after `separator` unless it is the first. */
__attribute__((format(printf, 3, 4))) static void add_text(char **text, const char *separator, const char *format, ...)
{
	AUTO_FREE char *before = *text;
	AUTO_FREE char *more = NULL;
	va_list arguments;
	int length;

	*text = NULL;
	va_start(arguments, format);
	length = vasprintf(&more, format, arguments);
	va_end(arguments);
	if (length < 0) {
		more = NULL;
		output_out_of_memory();
	}
	if (asprintf(text, "%s%s%s", before == NULL ? "" : before, before == NULL ? "" : separator, more) < 0)
		output_out_of_memory();
}

void output_safe(FILE *to, const char *text)
{
	AUTO_FREE char *safe = text_made_safe(text);

	if (safe == NULL)
		output_out_of_memory();
	(void)fputs(safe, to);
}

/* ---- listings ---- */

static char *policy_text(const struct store_disk *disk)
{
	char value[UNITS_TEXT_BYTES];
	char *text = NULL;

	if (disk->keep > 0)
		add_text(&text, ", ", "keep %u", disk->keep);
	if (disk->level >= 0)
		add_text(&text, ", ", "level %d", disk->level);
	if (disk->limit_bytes_per_second > 0)
		add_text(&text, ", ", "limit %s/s", units_format_size(disk->limit_bytes_per_second, value));
	return text;
}

void output_text_disks(const struct store_disk *disks, size_t count)
{
	bool any_clone = false;

	for (size_t i = 0; i < count; i++)
		any_clone |= disks[i].parent != NULL;
	AUTO(table_release)
	struct table table = {
		.columns = any_clone ? 7 : 6,
		.titles = {"DISK", "SIZE", "IMAGES", "POLICY", "MIRROR OF", "OPEN BY", "CLONE OF"},
		.to_the_right = {false, true, true},
	};

	for (const struct store_disk *disk = disks; disk < disks + count; disk++) {
		AUTO_FREE char *policy = policy_text(disk);

		table_add(&table, "%s", disk->name);
		table_add_size(&table, disk->size_bytes);
		table_add(&table, "%u", disk->images);
		table_add(&table, "%s", policy == NULL ? "-" : policy);
		table_add(&table, "%s", disk->mirror_of == NULL ? "-" : disk->mirror_of);
		table_add(&table, "%s", disk->open_by == NULL ? "-" : disk->open_by);
		if (any_clone)
			table_add(&table, "%s", disk->parent == NULL ? "-" : disk->parent);
	}
	table_print(&table);
}

static char *image_notes(const struct store_image *image)
{
	char *text = NULL;

	if (image->damaged)
		add_text(&text, ", ", "damaged");
	if (image->pinned)
		add_text(&text, ", ", "pinned");
	if (image->in_use)
		add_text(&text, ", ", "in use%s%s", image->in_use_by == NULL ? "" : " by ",
			 image->in_use_by == NULL ? "" : image->in_use_by);
	if (image->label != NULL)
		add_text(&text, ", ", "\"%s\"", image->label);
	return text;
}

void output_text_images(const struct store_image *images, size_t count)
{
	AUTO(table_release)
	struct table table = {
		.columns = 7,
		.titles = {"IMAGE", "CREATED", "SIZE", "CHANGED", "ITS OWN", "STATE", "NOTES"},
		.to_the_right = {false, false, true, true, true},
	};

	for (const struct store_image *image = images; image < images + count; image++) {
		AUTO_FREE char *notes = image_notes(image);

		table_add(&table, "%s@%u", image->disk, image->number);
		table_add_time(&table, image->created_at);
		table_add_size(&table, image->size_bytes);
		table_add_size(&table, image->changed_bytes);
		table_add_size(&table, image->unique_bytes);
		table_add(&table, "%s", store_consistency_name(image->consistency));
		table_add(&table, "%s", notes == NULL ? "" : notes);
	}
	table_print(&table);
}

static void print_usage_of_disks(const struct store_usage *usage)
{
	AUTO(table_release)
	struct table table = {
		.columns = 4,
		.titles = {"DISK", "SIZE", "IMAGES", "ITS OWN"},
		.to_the_right = {false, true, true, true},
	};

	for (const struct store_disk_usage *disk = usage->disks; disk < usage->disks + usage->disk_count; disk++) {
		table_add(&table, "%s", disk->name);
		table_add_size(&table, disk->size_bytes);
		table_add(&table, "%u", disk->images);
		table_add_size(&table, disk->unique_bytes);
	}
	table_print(&table);
}

void output_text_df(const struct store_usage *usage)
{
	AUTO(table_release)
	struct table table = {
		.columns = 5,
		.titles = {"SEGMENTS", "LIVE", "DEAD", "CATALOG", "CONTENT"},
		.to_the_right = {true, true, true, true, true},
	};

	table_add_size(&table, usage->segment_bytes);
	table_add_size(&table, usage->live_bytes);
	table_add_size(&table, usage->dead_bytes);
	table_add_size(&table, usage->catalog_bytes);
	table_add_size(&table, usage->plain_bytes);
	table_print(&table);
	if (usage->disk_count == 0)
		return;
	(void)putchar('\n');
	print_usage_of_disks(usage);
}

static void print_left_alone(uint32_t count, const char *why)
{
	if (count > 0)
		(void)printf("%u %s left alone: %s\n", count, count == 1 ? "segment" : "segments", why);
}

void output_text_gc(bool dry_run, const struct store_clean_report *report)
{
	char freed[UNITS_TEXT_BYTES], moved[UNITS_TEXT_BYTES];

	(void)units_format_size(report->freed_bytes, freed);
	(void)units_format_size(report->moved_bytes, moved);
	if (report->removed_segments == 0)
		(void)printf("%s\n", dry_run ? "nothing would be freed" : "nothing to free");
	else
		(void)printf("%s %s: %u %s; %s %s\n", freed, dry_run ? "would be freed" : "freed",
			     report->removed_segments, report->removed_segments == 1 ? "segment" : "segments", moved,
			     dry_run ? "would be moved into others" : "moved into others");
	print_left_alone(report->busy_segments, "somebody appends to them");
	print_left_alone(report->damaged_segments, "damaged; 'wherry check --deep' says whose they are");
}

static unsigned int percent_of(uint64_t part, uint64_t whole)
{
	if (part >= whole)
		return 100;
	return (unsigned int)((double)part / (double)whole * 100);
}

void output_text_rounds(const struct store_round *rounds, size_t count)
{
	AUTO(table_release)
	struct table table = {
		.columns = 8,
		.titles = {"ROUND", "STARTED", "STATE", "DONE", "READ", "CHANGED", "STORED", "SOURCE"},
		.to_the_right = {false, false, false, true, true, true, true},
	};

	for (const struct store_round *round = rounds; round < rounds + count; round++) {
		bool is_done = round->state == ROUND_DONE;

		table_add(&table, "%s %u", round->disk, round->number);
		table_add_time(&table, round->started_at);
		table_add(&table, "%s", store_round_state_name(round->state));
		table_add(&table, "%u%%", is_done                    ? 100 :
			  round->counts.total == 0 ? 0 :
						     percent_of(round->counts.done, round->counts.total));
		table_add_size(&table, round->counts.read);
		table_add_size(&table, round->counts.changed);
		table_add_size(&table, round->counts.stored);
		/* An error that is no more than the state over again ("stopped") says nothing. */
		if (round->error == NULL || strcmp(round->error, store_round_state_name(round->state)) == 0)
			table_add(&table, "%s", round->source);
		else
			table_add(&table, "%s: %s", round->source, round->error);
	}
	table_print(&table);
}

void output_text_policy(const struct store_disk *disk)
{
	char limit[UNITS_TEXT_BYTES];

	(void)printf("%s: ", disk->name);
	if (disk->level < 0)
		(void)printf("level %d (the default)", CODEC_LEVEL_DEFAULT);
	else
		(void)printf("level %d", disk->level);
	if (disk->limit_bytes_per_second == 0)
		(void)printf(", no limit");
	else
		(void)printf(", limit %s/s", units_format_size(disk->limit_bytes_per_second, limit));
	if (disk->keep == 0)
		(void)printf(", keeps all images\n");
	else
		(void)printf(", keeps %u image%s\n", disk->keep, disk->keep == 1 ? "" : "s");
}

/* ---- summaries ---- */

/* "0.4s", "3.2s", "3m05s": tenths as long as they say something. */
static const char *format_elapsed(double seconds, char text[UNITS_TEXT_BYTES])
{
	if (!(seconds >= 0 && seconds < 9.95))
		return units_format_duration(seconds, text);
	(void)snprintf(text, UNITS_TEXT_BYTES, "%.1fs", seconds);
	return text;
}

/* ", in 3.2s (380 MiB/s)" */
static void print_elapsed(FILE *to, double seconds, double bytes_per_second)
{
	char text[UNITS_TEXT_BYTES];

	(void)fprintf(to, ", in %s", format_elapsed(seconds, text));
	if (bytes_per_second >= 1 && bytes_per_second < 1e18)
		(void)fprintf(to, " (%s/s)", units_format_size((uint64_t)bytes_per_second, text));
}

enum { RANGES_SHOWN_MOST = 10 };

static void print_ranges(const struct range *ranges, size_t count)
{
	char text[UNITS_TEXT_BYTES];

	for (size_t i = 0; i < count && i < RANGES_SHOWN_MOST; i++)
		(void)printf("    %s at byte %llu\n", units_format_size(ranges[i].len_bytes, text),
			     (unsigned long long)ranges[i].off_bytes);
	if (count > RANGES_SHOWN_MOST)
		(void)printf("    and %zu more; --json lists them all\n", count - RANGES_SHOWN_MOST);
}

static uint64_t sum_of_ranges(const struct range *ranges, size_t count)
{
	uint64_t sum_bytes = 0;

	for (size_t i = 0; i < count; i++)
		sum_bytes += ranges[i].len_bytes;
	return sum_bytes;
}

/* One line for each reason, however many ranges were left out for it. */
static void print_left_out(const struct round_report *report)
{
	char text[UNITS_TEXT_BYTES];

	if (report->counts.left_out == 0)
		return;
	(void)printf("  left out: %s, which read as zeros\n", units_format_size(report->counts.left_out, text));
	for (size_t i = 0; i < report->left_out_count; i++) {
		uint64_t sum_bytes = 0;
		bool was_printed = false;

		for (size_t k = 0; k < report->left_out_count; k++) {
			if (strcmp(report->left_out[k].why, report->left_out[i].why) != 0)
				continue;
			was_printed |= k < i;
			sum_bytes += report->left_out[k].len_bytes;
		}
		if (was_printed)
			continue;
		(void)printf("    %8s  ", units_format_size(sum_bytes, text));
		output_safe(stdout, report->left_out[i].why);
		(void)putchar('\n');
	}
}

static void print_consistency(const struct round_report *report)
{
	if (report->consistency != STORE_FUZZY) {
		(void)printf("  %s: %s\n", store_consistency_name(report->consistency),
			     report->consistency == STORE_CLEAN ? "the source was not in use"
								: "the source was a snapshot, or frozen");
		return;
	}
	(void)printf("  fuzzy: ");
	output_safe(stdout, report->fuzzy_because == NULL ? "the source was in use" : report->fuzzy_because);
	(void)printf("\n"
		     "    What changed while it was read may not fit together. For a state that does:\n"
		     "    freeze the file systems (fsfreeze), give a snapshot as the source, or run a\n"
		     "    last round with the server stopped.\n");
}

static void print_deleted(const char *disk, const char *said, const struct store_retention *retention)
{
	if (retention->deleted_count > 0) {
		(void)printf("  %s:", said);
		for (size_t i = 0; i < retention->deleted_count; i++)
			(void)printf(" %s@%u", disk, retention->deleted[i]);
		(void)putchar('\n');
	}
	for (size_t i = 0; i < retention->kept_count; i++) {
		(void)printf("  kept though old: %s@%u, ", disk, retention->kept[i].number);
		output_safe(stdout, retention->kept[i].why == NULL ? "in use" : retention->kept[i].why);
		(void)putchar('\n');
	}
}

static void print_verified(const struct round_report *report)
{
	char text[UNITS_TEXT_BYTES];

	if (!report->verified)
		return;
	if (report->equal) {
		(void)printf("  verified: equal to the source\n");
		return;
	}
	(void)printf("  verified: DIFFERS from the source in %s:\n",
		     units_format_size(sum_of_ranges(report->differences, report->difference_count), text));
	print_ranges(report->differences, report->difference_count);
}

void output_text_sync(const char *disk, const struct round_report *report)
{
	char size[UNITS_TEXT_BYTES], read[UNITS_TEXT_BYTES], changed[UNITS_TEXT_BYTES], stored[UNITS_TEXT_BYTES];

	if (report->image > 0)
		(void)printf("%s@%u: ", disk, report->image);
	else
		(void)printf("%s, no image made: ", disk);
	(void)printf("%s disk, %s read, %s changed, %s stored", units_format_size(report->size_bytes, size),
		     units_format_size(report->counts.read, read), units_format_size(report->counts.changed, changed),
		     units_format_size(report->counts.stored, stored));
	print_elapsed(stdout, report->elapsed_seconds, report->bytes_per_second);
	(void)putchar('\n');
	if (report->resumed)
		(void)printf("  went on with round %u where it had stopped\n", report->round);
	print_left_out(report);
	print_consistency(report);
	if (report->read_error_count > 0) {
		(void)printf("  READ ERRORS: %s could not be read, and are zeros here:\n",
			     units_format_size(sum_of_ranges(report->read_errors, report->read_error_count), size));
		print_ranges(report->read_errors, report->read_error_count);
	}
	print_verified(report);
	print_deleted(disk, "deleted", &report->retention);
}

void output_text_retention(const char *disk, bool dry_run, const struct store_retention *retention)
{
	if (retention->deleted_count == 0)
		(void)printf("%s: nothing to delete\n", disk);
	else
		(void)printf("%s: %zu image%s %s\n", disk, retention->deleted_count,
			     retention->deleted_count == 1 ? "" : "s", dry_run ? "would go" : "gone");
	print_deleted(disk, dry_run ? "would delete" : "deleted", retention);
}

void output_text_verify(const char *reference, const char *source, const struct verify_report *report)
{
	char text[UNITS_TEXT_BYTES];
	double seconds = report->elapsed_seconds;

	(void)printf("%s %s ", reference, report->equal ? "equals" : "DIFFERS from");
	output_safe(stdout, source);
	if (!report->equal)
		(void)printf(" in %s",
			     units_format_size(sum_of_ranges(report->differences, report->difference_count), text));
	(void)printf(": %s compared", units_format_size(report->compared_bytes, text));
	print_elapsed(stdout, seconds, seconds > 0 ? (double)report->compared_bytes / seconds : 0);
	(void)putchar('\n');
	print_ranges(report->differences, report->difference_count);
	if (report->left_out_bytes > 0)
		(void)printf("  not compared: %s that a round leaves out, since they hold no data; with\n"
			     "    --read-all they are compared too\n",
			     units_format_size(report->left_out_bytes, text));
}

enum { DAMAGES_SHOWN_MOST = 100 };

static void print_damages(const struct store_check_report *report, const struct damage_place *places)
{
	char text[UNITS_TEXT_BYTES];

	for (size_t i = 0; i < report->damage_count && i < DAMAGES_SHOWN_MOST; i++) {
		const struct store_damage *damage = &report->damages[i];

		(void)printf("  %s", damage->disk);
		if (damage->image != 0)
			(void)printf("@%u", damage->image);
		if (places[i].partition_count > 0)
			(void)printf(", partition%s", places[i].partition_count > 1 ? "s" : "");
		for (size_t k = 0; k < places[i].partition_count; k++)
			(void)printf("%s%u", k > 0 ? ", " : " ", places[i].partitions[k]);
		(void)printf(": %s at byte %llu: ", units_format_size(damage->len_bytes, text),
			     (unsigned long long)damage->off_bytes);
		output_safe(stdout, damage->why);
		(void)putchar('\n');
	}
	if (report->damage_count > DAMAGES_SHOWN_MOST)
		(void)printf("  and %zu more ranges; --json lists them\n", report->damage_count - DAMAGES_SHOWN_MOST);
	if (report->more_damages > 0)
		(void)printf("  and %llu more pieces, which are too many to be listed\n",
			     (unsigned long long)report->more_damages);
}

static void print_flaws(const struct store_check_report *report)
{
	for (size_t i = 0; i < report->flaw_count && i < DAMAGES_SHOWN_MOST; i++) {
		(void)printf("  ");
		output_safe(stdout, report->flaws[i].what);
		(void)printf(": ");
		output_safe(stdout, report->flaws[i].why);
		(void)putchar('\n');
	}
	if (report->flaw_count > DAMAGES_SHOWN_MOST)
		(void)printf("  and %llu more such lines\n",
			     (unsigned long long)(report->flaw_count - DAMAGES_SHOWN_MOST + report->more_flaws));
}

static void print_repair(const struct store_repair *repair)
{
	static const char *const words[] = {"mended from another record", "marked before, and sound again",
					    "marked, until a round brings their content",
					    "damaged, and not to be known again: delete the images, or sync anew"};
	const uint64_t counts[] = {repair->mended_chunks, repair->sound_chunks, repair->waiting_chunks,
				   repair->unknown_chunks};

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		if (counts[i] > 0)
			(void)printf("  repair: %llu chunk%s %s\n", (unsigned long long)counts[i],
				     counts[i] == 1 ? "" : "s", words[i]);
}

void output_text_check(const struct store_check_report *report, const struct damage_place *places,
		       const struct options *options, double elapsed_seconds)
{
	output_safe(stdout, options->store);
	(void)printf(": %s: %llu chunk%s in %llu segment%s, %s", report->is_clean ? "no damage" : "DAMAGED",
		     (unsigned long long)report->chunks, report->chunks == 1 ? "" : "s",
		     (unsigned long long)report->segments, report->segments == 1 ? "" : "s",
		     options->deep ? "all content read" : "all headers read");
	print_elapsed(stdout, elapsed_seconds, 0);
	(void)putchar('\n');
	print_repair(&report->repair);
	print_damages(report, places);
	print_flaws(report);
}

void output_text_rebuild(const char *store, bool dry_run, const struct store_rebuild_report *report,
			 const struct store_check_report *losses)
{
	AUTO_FREE struct damage_place *places = calloc(losses->damage_count + 1, sizeof(*places));

	if (places == NULL)
		output_out_of_memory();
	output_safe(stdout, store);
	(void)printf(": %s: %llu disk%s, from %llu chunk%s in %llu segment%s\n",
		     dry_run ? "could be rebuilt" : "rebuilt", (unsigned long long)report->disks,
		     report->disks == 1 ? "" : "s", (unsigned long long)report->chunks, report->chunks == 1 ? "" : "s",
		     (unsigned long long)report->segments, report->segments == 1 ? "" : "s");
	if (report->lost_chunks > 0)
		(void)printf("  LOST: %llu chunk%s that disks or images need%s\n", (unsigned long long)report->lost_chunks,
			     report->lost_chunks == 1 ? "" : "s", dry_run ? "; a rebuild says whose" : "");
	print_damages(losses, places);
	print_flaws(&report->found);
}

void output_text_holes(FILE *to, const struct export_report *report)
{
	for (size_t i = 0; i < report->hole_count; i++)
		(void)fprintf(to, "%llu %llu\n", (unsigned long long)report->holes[i].off_bytes,
			      (unsigned long long)report->holes[i].len_bytes);
}

void output_text_export(FILE *to, const char *reference, const char *target, const struct export_report *report)
{
	char size[UNITS_TEXT_BYTES], data[UNITS_TEXT_BYTES];
	double seconds = report->elapsed_seconds;

	(void)fprintf(to, "%s: %s to ", reference, units_format_size(report->size_bytes, size));
	output_safe(to, strcmp(target, "-") == 0 ? "standard output" : target);
	(void)fprintf(to, ", %s of it data", units_format_size(report->data_bytes, data));
	print_elapsed(to, seconds, seconds > 0 ? (double)report->size_bytes / seconds : 0);
	if (report->target_bytes > report->size_bytes)
		(void)fprintf(to, "; the target is larger, %s", units_format_size(report->target_bytes, size));
	(void)fputc('\n', to);
}

void output_text_mounts(const struct mount_record *list, size_t count)
{
	AUTO(table_release)
	struct table table = {
		.columns = 6,
		.titles = {"REFERENCE", "VIA", "FOR", "SINCE", "STATE", "DIRECTORY"},
	};

	for (size_t i = 0; i < count; i++) {
		const struct mount_record *record = &list[i];

		table_add(&table, "%s", record->reference);
		table_add(&table, "%s", mount_via_name(record->via));
		table_add(&table, "%s", record->read_only ? "reading" : record->scratch ? "scratch" : "writing");
		table_add_time(&table, record->since);
		table_add(&table, "%s", mount_is_dead(record) ? "dead" : "ok");
		table_add(&table, "%s", record->directory);
	}
	table_print(&table);
}
