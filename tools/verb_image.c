/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry image: an image of the live content as it is now.
 *
 * How far it can be trusted is the question. What is on a mirror came from its
 * last round, so the image inherits what that round knew:
 *
 *     no round has ever written the disk                     clean; a clone: as the image that shows in it
 *     the last round is done and left an image               as that image, with its details
 *     the last round is done and was to leave none           as the round noted itself
 *     the last round is done and its image is gone           fuzzy: nothing says that its source was not in use
 *     the last round is not done                             fuzzy: part of it is newer than the rest
 *     something else changed the disk since                  fuzzy: a change of size that was cut short, for example
 *
 * A disk that is being served (NBD) is asked for one through its control socket; that is what a power cut at this moment would have
 * left: frozen.
 *
 * Too careful costs a word of warning, too trusting costs somebody's data.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/disk.h"
#include "tools/output.h"

struct trust {
	enum store_consistency consistency;
	char *details; /* JSON object text or NULL; owned */
};

static void trust_release(struct trust *trust)
{
	free(trust->details);
}

__attribute__((format(printf, 2, 3))) static void set_fuzzy(struct trust *trust, const char *format, ...)
{
	AUTO_FREE char *because = NULL;
	json_t *details = json_object();
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vasprintf(&because, format, arguments);
	va_end(arguments);
	if (length < 0) {
		because = NULL;
		output_out_of_memory();
	}
	json_put(details, "fuzzy_because", json_text(because));
	trust->consistency = STORE_FUZZY;
	trust->details = json_dumps(details, JSON_COMPACT);
	json_decref(details);
	if (trust->details == NULL)
		output_out_of_memory();
}

/* Takes over what the image of a round knew; false when there is no such image. */
static int inherit_from_image(struct store *store, const char *disk, uint32_t round, bool *ret_found,
			      struct trust *trust, struct failure *failure)
{
	struct store_image *images = NULL;
	size_t count = 0;
	int result = store_list_images(store, disk, &images, &count, failure);

	if (result < 0)
		return result;
	*ret_found = false;
	for (size_t i = 0; i < count && !*ret_found; i++) {
		if (images[i].round != round)
			continue;
		*ret_found = true;
		trust->consistency = images[i].consistency;
		trust->details = take_ptr(images[i].details);
	}
	store_images_free(images, count);
	return 0;
}

/* Takes over what a round without an image noted; false when it noted nothing of that kind. */
static bool inherit_from_round(struct store_round *round, struct trust *trust)
{
	json_t *details = round->details == NULL ? NULL : json_loads(round->details, 0, NULL);
	const char *name = json_string_value(json_object_get(details, "consistency"));
	bool found = false;

	for (int i = STORE_CLEAN; name != NULL && i <= STORE_FUZZY && !found; i++) {
		found = strcmp(name, store_consistency_name((enum store_consistency)i)) == 0;
		trust->consistency = (enum store_consistency)i;
	}
	json_decref(details);
	if (found)
		trust->details = take_ptr(round->details);
	return found;
}

/* A clone is as good as the image that it began as, until a round reads all of it anew. */
static int inherit_from_parent(struct store *store, const char *parent, struct trust *trust, struct failure *failure)
{
	struct store_reference reference;
	struct store_image *images = NULL;
	size_t count = 0;
	int result = store_parse_reference(parent, &reference, failure);

	if (result == 0)
		result = store_list_images(store, reference.disk, &images, &count, failure);
	if (result < 0)
		return result;
	for (size_t i = 0; i < count; i++) {
		if (images[i].number != reference.number)
			continue;
		trust->consistency = images[i].consistency;
		trust->details = take_ptr(images[i].details);
	}
	store_images_free(images, count);
	return 0;
}

static int find_trust(struct store *store, const char *disk, struct trust *trust, struct failure *failure)
{
	struct store_round *rounds = NULL;
	struct store_disk *disks = NULL;
	AUTO_FREE char *parent = NULL;
	size_t count = 0, disk_count = 0;
	uint32_t content_round;
	bool found = false;
	int result = store_list_disks(store, disk, &disks, &disk_count, failure);

	if (result < 0)
		return result;
	content_round = disks[0].content_round;
	parent = take_ptr(disks[0].parent);
	store_disks_free(disks, disk_count);
	result = store_list_rounds(store, disk, &rounds, &count, failure);
	trust->consistency = STORE_CLEAN;
	if (result < 0)
		return result;
	if (count == 0) {
		store_rounds_free(rounds, count);
		return parent == NULL ? 0 : inherit_from_parent(store, parent, trust, failure);
	}
	if (rounds[count - 1].state != ROUND_DONE) {
		set_fuzzy(trust, "round %u of this disk is not finished", rounds[count - 1].number);
	} else if (content_round != rounds[count - 1].number) {
		set_fuzzy(trust, "the disk has been changed since round %u, the last one", rounds[count - 1].number);
	} else {
		result = inherit_from_image(store, disk, rounds[count - 1].number, &found, trust, failure);
		if (result == 0 && !found)
			found = inherit_from_round(&rounds[count - 1], trust);
		if (result == 0 && !found)
			set_fuzzy(trust, "round %u left no image that would say whether its source was in use",
				  rounds[count - 1].number);
	}
	store_rounds_free(rounds, count);
	return result;
}

static void print_image(const struct command_line *line, const struct store_reference *reference, uint32_t number,
			const struct trust *trust)
{
	json_t *details = trust->details == NULL ? NULL : json_loads(trust->details, 0, NULL);
	const char *because = json_string_value(json_object_get(details, "fuzzy_because"));
	json_t *document;

	if (line->options.json) {
		document = json_object();
		json_put(document, "disk", json_text(reference->disk));
		json_put(document, "image", json_bytes(number));
		json_put(document, "label", json_text(line->options.label));
		json_put(document, "consistency", json_text(store_consistency_name(trust->consistency)));
		json_put(document, "fuzzy_because", json_text(because));
		json_print(document);
	} else {
		(void)printf("%s@%u: %s", reference->disk, number, store_consistency_name(trust->consistency));
		if (because != NULL) {
			(void)printf(": ");
			output_safe(stdout, because);
		}
		(void)putchar('\n');
	}
	json_decref(details);
}

/* Somebody has the disk open. Who serves it makes the image himself, of all that was acknowledged; a round doesn't. */
static enum exit_status ask_for_image(const struct command_line *line, struct store *store,
				      const struct store_reference *reference, const char *doing)
{
	AUTO(trust_release) struct trust trust = {.consistency = STORE_CLEAN};
	struct store_image_params params = {.label = line->options.label};
	struct failure failure = {.code = 0};
	uint32_t number;

	/* whoever has the disk open keeps rounds away as well */
	if (find_trust(store, reference->disk, &trust, &failure) < 0)
		return report_failure(&failure);
	if (trust.consistency == STORE_CLEAN)
		trust.consistency = STORE_FROZEN;
	params.consistency = trust.consistency;
	params.details = trust.details;
	if (store_request_image(store, reference->disk, &params, doing, &number, &failure) < 0)
		return report_failure(&failure);
	print_image(line, reference, number, &trust);
	return STATUS_DONE;
}

static enum exit_status run_image(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(cleanup_view) struct store_view *view = NULL;
	AUTO(trust_release) struct trust trust = {.consistency = STORE_CLEAN};
	AUTO_FREE char *doing = command_line_doing(line);
	struct failure failure = {.code = 0};
	struct store_image_params params = {.label = line->options.label};
	struct store_reference reference;
	uint32_t number;
	int result;

	if (doing == NULL)
		output_out_of_memory();
	command_line_reference(line, 0, &reference);
	if (command_line_open_store(line, false, &store, &failure) < 0)
		return report_failure(&failure);
	/* The rounds are looked at with the disk open: none can begin meanwhile. */
	result = store_view_open(store, &reference, VIEW_WRITE, doing, &view, &failure);
	if (result == -EBUSY)
		return ask_for_image(line, store, &reference, doing);
	if (result < 0 || find_trust(store, reference.disk, &trust, &failure) < 0)
		return report_failure(&failure);
	params.consistency = trust.consistency;
	params.details = trust.details;
	if (store_create_image(view, &params, &number, &failure) < 0)
		return report_failure(&failure);
	print_image(line, &reference, number, &trust);
	return STATUS_DONE;
}

const struct verb verb_image = {
	.name = "image",
	.summary = "make an image of a disk's live content as it is now",
	.description = "'wherry sync' makes an image by itself; this is for after 'sync --no-image', and for disks that are "
		       "written over NBD: also while they are, it then holds all that was acknowledged before, as a "
		       "snapshot does (frozen). It is instant, "
		       "and takes no room "
		       "until the live content changes.\n\n"
		       "The image is as far to be trusted as what the last round read: fuzzy where that round is not "
		       "finished, or "
		       "left nothing that says how its source was. That of a clone which no round wrote is as far to be trusted "
		       "as the image it was made of.\n\n"
		       "Where a part of a damaged range was written to, no image can be made until all of it was written or "
		       "discarded: the error names it.",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK}},
	.option_count = 1,
	.options = {{.id = OPTION_LABEL}},
	.example_count = 1,
	.examples = {{"wherry image web01 --label 'before the test'", "an image of web01 with a few words"}},
	.run = run_image,
};
