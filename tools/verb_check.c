/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry check: is everything still there, and what it was? Exit status 3 says
 * that it isn't, and differs from 1, which says that it could not be told.
 *
 * The store tells which bytes of which image are damaged. Which partition they are in
 * is found out here, from the image's own partition table, where that can still be read.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/meter.h"
#include "syncer/plan.h"
#include "syncer/source_view.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

static void cleanup_source(struct source **source)
{
	source_close(*source);
}

static void cleanup_plan(struct plan **plan)
{
	plan_free(*plan);
}

/* ---- partitions ---- */

static bool is_same_content(const struct store_damage *a, const struct store_damage *b)
{
	return a->image == b->image && strcmp(a->disk, b->disk) == 0;
}

/* Whole disks with a file system and no table have a partition 0: that says nothing to anybody. */
static void find_partitions_of(const struct store_damage *damage, const struct plan *plan, struct damage_place *place)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);

	place->partitions = calloc(count + 1, sizeof(*place->partitions));
	if (place->partitions == NULL)
		output_out_of_memory();
	for (unsigned i = 0; i < count; i++) {
		const struct plan_partition *partition = &partitions[i];

		if (partition->number != 0 && damage->off_bytes < partition->off_bytes + partition->len_bytes &&
		    partition->off_bytes < damage->off_bytes + damage->len_bytes)
			place->partitions[place->partition_count++] = partition->number;
	}
}

/* Ranges of one image, or of one disk's live content. What can't be opened or read is told without its partition. */
static void find_partitions_in(struct store *store, const char *doing, const struct store_damage *damages, size_t count,
			       struct damage_place *places)
{
	/* types and table, and no word about what would be read: nothing is going to be left out */
	const struct plan_options options = {.read_all = true};
	struct store_reference reference = {.which = damages->image == 0 ? STORE_LIVE : STORE_NUMBER,
					    .number = damages->image};
	AUTO(cleanup_view) struct store_view *view = NULL;
	AUTO(cleanup_source) struct source *source = NULL;
	AUTO(cleanup_plan) struct plan *plan = NULL;

	(void)memcpy(reference.disk, damages->disk, sizeof(reference.disk));
	if (store_view_open(store, &reference, VIEW_READ, doing, &view, NULL) < 0 ||
	    source_view_open(view, &source, NULL) < 0 || plan_make(source, &options, &plan, NULL) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		find_partitions_of(&damages[i], plan, &places[i]);
}

static struct damage_place *find_partitions(struct store *store, const char *doing,
					    const struct store_check_report *report)
{
	struct damage_place *places = calloc(report->damage_count + 1, sizeof(*places));

	if (places == NULL)
		output_out_of_memory();
	for (size_t i = 0, count; i < report->damage_count; i += count) {
		for (count = 1; i + count < report->damage_count; count++)
			if (!is_same_content(&report->damages[i], &report->damages[i + count]))
				break;
		find_partitions_in(store, doing, &report->damages[i], count, &places[i]);
	}
	return places;
}

static void free_places(struct damage_place *places, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(places[i].partitions);
	free(places);
}

/* ---- the verb ---- */

static int check_store(struct store *store, const struct options *options, const struct operation *operation,
		       struct store_check_report *ret_report, double *ret_seconds, struct failure *failure)
{
	struct meter meter;
	const struct store_check_params params = {.deep = options->deep,
						  .repair = options->repair,
						  .total_bytes = &meter.total_bytes,
						  .done_bytes = &meter.done_bytes,
						  .stop = operation->stop};
	int result = meter_start(&meter, "check", operation, failure);

	if (result < 0)
		return result;
	result = store_check(store, &params, ret_report, failure);
	meter_stop(&meter);
	*ret_seconds = meter_elapsed_seconds(&meter);
	return result;
}

static enum exit_status report_stop(const struct command_line *line, const struct failure *failure)
{
	if (failure->message[0] != '\0')
		return report_failure(failure);
	report_line("wherry: store %s: check stopped by a signal; nothing is known about the rest",
		    line->options.store);
	return STATUS_STOPPED;
}

static enum exit_status run_check(const struct command_line *line)
{
	const struct options *options = &line->options;
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(store_check_report_free) struct store_check_report report = {.is_clean = false};
	AUTO_FREE char *doing = command_line_doing(line);
	struct operation operation = {.doing = doing};
	struct failure failure = {.code = 0};
	struct damage_place *places;
	double seconds = 0;
	int result;

	if (doing == NULL)
		output_out_of_memory();
	if (command_line_open_store(line, !options->repair, &store, &failure) < 0)
		return report_failure(&failure);
	progress_begin(options->progress, &operation);
	result = check_store(store, options, &operation, &report, &seconds, &failure);
	progress_end();
	if (result == -EINTR && *operation.stop)
		return report_stop(line, &failure);
	if (result < 0)
		return report_failure(&failure);
	places = find_partitions(store, doing, &report);
	if (options->json)
		output_json_check(&report, places, options, seconds);
	else
		output_text_check(&report, places, options, seconds);
	free_places(places, report.damage_count);
	return report.is_clean ? STATUS_DONE : STATUS_DIFFERENT;
}

const struct verb verb_check = {
	.name = "check",
	.summary = "look for damage in the store",
	.description = "Looks whether everything is there, and fits together: the catalog, the header of every record "
		       "that a disk or image needs, and the log of every disk. With --deep all content is read as "
		       "well, decompressed, and compared with its SHA-256 digest, each piece once, however many images "
		       "share it.\n\n"
		       "Damage is told for each disk and image that it concerns: which bytes, in which partition, and "
		       "why. Nothing is changed, and rounds may run meanwhile. Exit status 0: no damage; 3: there is "
		       "damage; 1: it could not be told.\n\n"
		       "With --repair (and --deep, which it implies) content is taken from another record where there "
		       "is one. All other damaged content is marked: images that have it are listed as damaged, and "
		       "the next round that meets the same content at any source stores it anew, for all of them. What "
		       "was marked and is sound again is unmarked. Exit status 0: all is well now; 3: damage is left. "
		       "A damaged catalog is made anew by 'wherry rebuild'.",
	.option_count = 3,
	.options = {{.id = OPTION_DEEP}, {.id = OPTION_REPAIR}, {.id = OPTION_PROGRESS}},
	.example_count = 3,
	.examples = {{"wherry check", "quick: is everything there?"},
		     {"wherry check --deep --json", "all of it, byte for byte, for a program"},
		     {"wherry check --repair", "mend what can be, mark the rest for the next sync"}},
	.run = run_check,
};
