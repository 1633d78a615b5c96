/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry create and clone: disks that no round makes. Both are there at once, and take no room: one is empty, the other
 * shows an image until something is written to it.
 */
#include "tools/command.h"

#include <stdio.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "tools/output.h"

/* The new disk as the store has it now. */
static enum exit_status print_new_disk(const struct command_line *line, struct store *store, const char *name,
				       const char *image)
{
	struct failure failure = {.code = 0};
	struct store_disk *disks = NULL;
	char text[UNITS_TEXT_BYTES];
	size_t count = 0;
	json_t *document;

	if (store_list_disks(store, name, &disks, &count, &failure) < 0)
		return report_failure(&failure);
	if (!line->options.json) {
		if (image == NULL)
			(void)printf("%s: created, %s\n", name, units_format_size(disks[0].size_bytes, text));
		else
			(void)printf("%s: a clone of %s, %s\n", name, image,
				     units_format_size(disks[0].size_bytes, text));
	} else {
		document = json_object();
		json_put(document, "disk", json_text(name));
		json_put(document, "size_bytes", json_bytes(disks[0].size_bytes));
		json_put(document, "sector_bytes", json_bytes(disks[0].sector_bytes));
		if (image != NULL) {
			json_put(document, "image", json_text(image));
			json_put(document, "parent", json_text(disks[0].parent));
		}
		json_print(document);
	}
	store_disks_free(disks, count);
	return STATUS_DONE;
}

/* ---- create ---- */

static enum exit_status run_create(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct store_disk_params params = {
		.name = line->arguments[0],
		.sector_bytes = line->options.sector_bytes == 0 ? 512 : line->options.sector_bytes,
	};
	struct failure failure = {.code = 0};

	(void)units_parse_size(line->arguments[1], &params.size_bytes); /* checked by command_line_parse() */
	if (params.size_bytes % params.sector_bytes != 0)
		return report_usage(line->verb, "create: %s is no multiple of the sector size, %u bytes",
				    line->arguments[1], params.sector_bytes);
	if (command_line_open_store(line, false, &store, &failure) < 0 ||
	    store_create_disk(store, &params, &failure) < 0)
		return report_failure(&failure);
	return print_new_disk(line, store, params.name, NULL);
}

const struct verb verb_create = {
	.name = "create",
	.summary = "make an empty disk",
	.description =
		"Makes DISK, all zeros, of SIZE bytes: 512M, 10G, 2T. It takes room for what is written to it, and "
		"nothing before. 'wherry sync' makes the disk that it needs by itself.",
	.argument_count = 2,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_NEW_DISK}, {.name = "SIZE", .kind = ARGUMENT_SIZE}},
	.option_count = 1,
	.options = {{.id = OPTION_SECTOR_SIZE}},
	.example_count = 2,
	.examples = {{"wherry create scratch 10G", "an empty disk of 10 GiB"},
		     {"wherry create big 2T --sector-size 4K", "one with sectors of 4096 bytes"}},
	.run = run_create,
};

/* ---- clone ---- */

static enum exit_status run_clone(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	char image[STORE_NAME_MOST_BYTES + 16];
	struct failure failure = {.code = 0};
	struct store_reference reference;
	const char *name = line->arguments[1];

	command_line_reference(line, 0, &reference);
	if (command_line_open_store(line, false, &store, &failure) < 0 ||
	    store_resolve_image(store, &reference, &reference.number, &failure) < 0)
		return report_failure(&failure);
	reference.which = STORE_NUMBER;
	(void)snprintf(image, sizeof(image), "%s@%u", reference.disk, reference.number);
	if (store_clone_disk(store, &reference, name, &failure) < 0)
		return report_failure(&failure);
	return print_new_disk(line, store, name, image);
}

const struct verb verb_clone = {
	.name = "clone",
	.summary = "make a disk that begins as an image",
	.description = "Makes NEWDISK with the content of the image: at once, whatever its size, and without taking "
		       "room. What is "
		       "written to it is its own; the image stays as it is.\n\n"
		       "As long as anything of the image shows in the clone, or in images of the clone, the image is "
		       "in use and can't "
		       "be deleted. A clone of a clone's image may use an image further down instead, if the clone had "
		       "written "
		       "nothing; 'wherry disks' says which.",
	.argument_count = 2,
	.arguments = {{.name = "DISK@N", .kind = ARGUMENT_IMAGE}, {.name = "NEWDISK", .kind = ARGUMENT_NEW_DISK}},
	.example_count = 2,
	.examples = {{"wherry clone web01@latest web01-test", "a disk to try things out on"},
		     {"wherry remove web01-test", "be rid of it"}},
	.run = run_clone,
};
