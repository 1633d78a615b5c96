/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry attach, detach: content as a block device of this host, by the kernel's NBD client. What is between the two is in nbd_device.c.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/source_disk.h"
#include "tools/nbd_device.h"
#include "tools/output.h"
#include "tools/runtime_folder.h"

enum { SECTOR_BYTES = 512 };

static unsigned device_number(const char *node)
{
	return (unsigned)strtoul(node + strlen("/dev/nbd"), NULL, 10);
}

static int need_kernel(const char *reference, struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error = nbd_device_check_kernel(&cause);

	if (error == -EPERM)
		return fail(failure, error, "attach: %s; 'wherry serve-nbd' doesn't", cause.message);
	if (error < 0)
		return fail(failure, error,
			    "attach: %s; without it 'wherry mount %s DIR' shows its files, 'wherry fs' has it as a file, which "
			    "losetup takes",
			    cause.message, reference);
	return 0;
}

/*
 * What it mirrors, when it is a mirror that isn't asked for with --rw: the device is read-only then, and nobody looks into the server's
 * log for that. Else NULL; the caller frees it.
 */
static int find_source_of_mirror(const struct command_line *line, struct store *store,
				 const struct store_reference *reference, char **ret_source, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	int error;

	*ret_source = NULL;
	if (reference->which != STORE_LIVE || line->options.write_mirror || line->options.read_only)
		return 0;
	error = store_list_disks(store, reference->disk, &disks, &count, failure);
	if (error < 0)
		return error;
	*ret_source = take_ptr(disks[0].mirror_of);
	store_disks_free(disks, count);
	return 0;
}

/* What of it a device can't show, which has sectors. */
static int count_odd_bytes(struct store *store, const struct store_reference *reference, unsigned *ret_bytes,
			   struct failure *failure)
{
	struct store_image *images;
	struct store_disk *disks;
	uint32_t number = 0;
	size_t count;
	int error;

	*ret_bytes = 0;
	if (reference->partition != 0)
		return 0;
	if (reference->which == STORE_LIVE) {
		error = store_list_disks(store, reference->disk, &disks, &count, failure);
		if (error < 0)
			return error;
		*ret_bytes = (unsigned)(disks[0].size_bytes % SECTOR_BYTES);
		store_disks_free(disks, count);
		return 0;
	}
	error = store_resolve_image(store, reference, &number, failure);
	if (error == 0)
		error = store_list_images(store, reference->disk, &images, &count, failure);
	if (error < 0)
		return error;
	for (size_t i = 0; i < count; i++)
		if (images[i].number == number)
			*ret_bytes = (unsigned)(images[i].size_bytes % SECTOR_BYTES);
	store_images_free(images, count);
	return 0;
}

static void say_device(const struct command_line *line, unsigned device)
{
	if (line->options.json) {
		json_t *document = json_object();
		char node[NBD_NODE_BYTES];

		json_put(document, "device", json_text(nbd_device_node(device, node)));
		json_print(document);
	} else {
		(void)printf("/dev/nbd%u\n", device);
	}
}

static enum exit_status run_attach(const struct command_line *line)
{
	AUTO_FREE char *folder = NULL;
	AUTO_FREE char *source = NULL;
	AUTO_FREE char *doing = command_line_doing(line);
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_reference reference;
	struct nbd_server server = {
		.reference = line->arguments[0], .options = &line->options, .ends_with_last_client = true, .ready_fd = -1};
	int wanted = line->argument_count > 1 ? (int)device_number(line->arguments[1]) : NBD_ANY_DEVICE;
	unsigned device = 0, odd_bytes = 0;

	command_line_reference(line, 0, &reference);
	if (line->options.scratch && reference.which == STORE_LIVE)
		return report_usage(line->verb, "--scratch: for images, and %s is live content", line->arguments[0]);
	if (line->options.scratch && line->options.read_only)
		return report_usage(line->verb, "--scratch: not together with --read-only");
	if (line->options.write_mirror && line->options.read_only)
		return report_usage(line->verb, "--rw: not together with --read-only");
	if (doing == NULL)
		output_out_of_memory();
	/* that there is such a thing is the first to know; nbdkit opens it itself */
	if (command_line_open_store(line, true, &store, &failure) < 0 ||
	    source_disk_check_reference(store, &reference, doing, &failure) < 0 ||
	    need_kernel(line->arguments[0], &failure) < 0 || nbd_server_check(&failure) < 0 ||
	    count_odd_bytes(store, &reference, &odd_bytes, &failure) < 0 ||
	    find_source_of_mirror(line, store, &reference, &source, &failure) < 0 ||
	    runtime_folder(&folder, &failure) < 0 ||
	    nbd_device_attach(folder, server, wanted, "", &device, &failure) < 0)
		return report_failure(&failure);
	nbd_device_wait_for_partitions(device);
	if (odd_bytes > 0)
		report_line("wherry: %s: its last %u bytes are not in the device, which has sectors of %d bytes; 'wherry "
			    "serve-nbd' has them",
			    line->arguments[0], odd_bytes, SECTOR_BYTES);
	if (source != NULL)
		report_line("wherry: %s: read-only, for it mirrors %s, and the next round overwrites what others write; --rw "
			    "mirror if that is meant, or attach a clone of an image",
			    line->arguments[0], source);
	say_device(line, device);
	return STATUS_DONE;
}

const struct verb verb_attach = {
	.name = "attach",
	.summary = "make a block device of a disk, an image or a partition",
	.description = "Connects REF to /dev/nbdN, the first that is free unless one is named, waits for its "
		       "partitions, and prints "
		       "the device. An image is read-only; with --scratch it can be written to, and stays as it is all "
		       "the same: what "
		       "is written vanishes when it is detached. Live content can be written to, but for a disk that "
		       "rounds write to, "
		       "which needs --rw mirror.\n\n"
		       "Needs root, nbd-client, nbdkit, and the kernel's module nbd. What was flushed (sync, umount) "
		       "is durable.",
	.argument_count = 2,
	.arguments = {{.name = "REF", .kind = ARGUMENT_REFERENCE},
		      {.name = "DEVICE", .kind = ARGUMENT_DEVICE, .optional = true}},
	.option_count = 4,
	.options = {{.id = OPTION_SCRATCH}, {.id = OPTION_READ_ONLY}, {.id = OPTION_CACHE}, {.id = OPTION_RW}},
	.example_count = 3,
	.examples = {{"wherry attach web01@latest", "look at an image: mount -o ro,norecovery /dev/nbd0p2 /mnt"},
		     {"wherry attach web01@3 --scratch", "try something with it"},
		     {"wherry attach newdisk /dev/nbd1", "write to a disk: mkfs, mount, dd, rsync"}},
	.run = run_attach,
};

/* ---- detach ---- */

static enum exit_status run_detach(const struct command_line *line)
{
	AUTO_FREE char *folder = NULL;
	struct failure failure = {.code = 0};
	const char *what = line->arguments[0];
	unsigned device = 0;
	int error = runtime_folder(&folder, &failure);

	if (error == 0 && *what == '/')
		device = device_number(what);
	else if (error == 0)
		error = nbd_device_find(folder, what, &device, &failure);
	if (error == 0)
		error = nbd_device_detach(folder, device, &failure);
	if (error < 0)
		return report_failure(&failure);
	if (line->options.json)
		say_device(line, device);
	return STATUS_DONE;
}

const struct verb verb_detach = {
	.name = "detach",
	.summary = "disconnect a block device that attach has made",
	.description = "Disconnects /dev/nbdN, or the device that REF is attached to, and waits until all that was "
		       "written to it is "
		       "where it belongs. Refused while something of it is mounted. A device whose server has died is "
		       "disconnected, too.",
	.argument_count = 1,
	.arguments = {{.name = "DEVICE|REF", .kind = ARGUMENT_ATTACHED}},
	.example_count = 2,
	.examples = {{"wherry detach /dev/nbd0", "by the device"}, {"wherry detach web01@3", "by what it is"}},
	.run = run_detach,
};
