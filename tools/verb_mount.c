/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry mount, umount: the files of a disk or image in a directory.
 *
 *     find    which file system is meant (mount_find.h)
 *     record  what is going to be done, so that it can be undone (mount_record.h)
 *     mount   by the best way that there is (mount_ways.h)
 *
 * Whoever is asked to stop, or fails, undoes what it has done by its record, as `umount` does.
 */
#include "tools/command.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "tools/mount_find.h"
#include "tools/mount_record.h"
#include "tools/mount_table.h"
#include "tools/mount_ways.h"
#include "tools/output.h"
#include "tools/runtime_folder.h"
#include "tools/signals.h"

enum { CLAIM_WAIT_MS = 10000 }; /* who looks at it for a moment, and who unmounts it at the same time */

/* What is going on. */
struct mounting {
	struct mount_job job;
	char *runtime;
	char *store;	 /* from the root */
	char *directory; /* the same, without links */
	char *volume;	 /* "VG/LV", or NULL */
	const atomic_bool *stop;
};

static void release_mounting(struct mounting *mounting)
{
	free(mounting->runtime);
	free(mounting->store);
	free(mounting->directory);
	free(mounting->volume);
}

/* ---- what is mounted ---- */

static enum exit_status list_mounts(const struct command_line *line)
{
	AUTO_FREE char *runtime = NULL;
	struct mount_record *list;
	struct failure failure = {.code = 0};
	size_t count, kept = 0;

	if (runtime_folder(&runtime, &failure) < 0)
		return report_failure(&failure);
	mount_prune(runtime);
	if (mount_records_list(runtime, &list, &count, &failure) < 0)
		return report_failure(&failure);
	for (size_t i = 0; i < count; i++) {
		if (mount_is_there(&list[i])) {
			struct mount_record one = list[kept];

			list[kept++] = list[i];
			list[i] = one;
		}
	}
	if (line->options.json)
		output_json_mounts(list, kept);
	else
		output_text_mounts(list, kept);
	mount_records_free(list, count);
	return STATUS_DONE;
}

/* ---- what was asked for ---- */

/* Options that say what the verb has decided, or how it does it. */
static const char *find_decided_option(const struct options *options)
{
	static const char *const decided[] = {"rw",	   "remount", "bind", "rbind",	 "move",   "loop",  "offset",
					      "sizelimit", "disk",    "root", "scratch", "fsname", "cache", "subtype"};
	const char *at = options->mount_options;

	while (at != NULL && *at != '\0') {
		size_t name_bytes = strcspn(at, "=,");

		if (options->write && name_bytes == 2 && strncmp(at, "ro", 2) == 0)
			return "ro";
		for (size_t i = 0; i < sizeof(decided) / sizeof(decided[0]); i++)
			if (strlen(decided[i]) == name_bytes && strncmp(decided[i], at, name_bytes) == 0)
				return decided[i];
		at += strcspn(at, ",");
		at += *at == ',';
	}
	return NULL;
}

static enum exit_status check_options(const struct command_line *line)
{
	const struct options *options = &line->options;
	const char *decided = find_decided_option(options);
	struct store_reference reference;

	if (line->argument_count == 0 &&
	    (options->write || options->scratch || options->via != VIA_BEST || options->cache_bytes != 0 || options->mount_options != NULL))
		return report_usage(line->verb, "mount: REF is missing");
	if (line->argument_count == 0)
		return STATUS_DONE;
	if (line->argument_count == 1)
		return report_usage(line->verb, "mount: DIR is missing");
	(void)command_line_files(line->arguments[0], &reference, NULL, NULL); /* looked at when the line was read */
	if (options->scratch && reference.which == STORE_LIVE)
		return report_usage(line->verb, "--scratch: for images, and %s is live content, to which --rw writes", line->arguments[0]);
	if (options->write && reference.which != STORE_LIVE && !options->scratch)
		return report_usage(line->verb,
				    "--rw: %s is an image, which never changes; --scratch takes what is written and forgets it, 'wherry clone' "
				    "makes a disk of it that keeps it",
				    line->arguments[0]);
	if (decided != NULL && strcmp(decided, "rw") == 0)
		return report_usage(line->verb, "--options: 'rw' is what --rw is for");
	if (decided != NULL)
		return report_usage(line->verb, "--options: '%s' is decided here, or has an option of its own", decided);
	if (options->via == VIA_FILES && (options->write || options->scratch))
		return report_usage(line->verb, "--via files: reads only; without it, --rw and --scratch take a file system of the kernel's");
	return STATUS_DONE;
}

/* ---- finding out ---- */

static int check_directory(const char *typed, struct store *store, struct mounting *mounting, struct failure *failure)
{
	bool is_dead, is_inside;
	int error = mount_table_resolve(typed, &mounting->directory, &is_dead, failure);

	if (error == 0)
		error = store_contains_path(store, mounting->directory, &is_inside, failure);
	if (error == 0 && is_inside)
		error = fail(failure, -EINVAL, "%s: is in the store itself; mount it elsewhere", typed);
	if (error == 0 && strcmp(mounting->directory, "/") == 0)
		error = fail(failure, -EINVAL, "/: not a directory to mount on");
	return error;
}

/* Said here, for there is no way to have it all the same. */
static int check_mirror(struct store *store, const char *name, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	int error = store_list_disks(store, name, &disks, &count, failure);

	if (error < 0)
		return error;
	if (disks[0].mirror_of != NULL)
		error = fail(failure, -EPERM,
			     "disk %s: it mirrors %s, and what is written to it, the next round overwrites; 'wherry clone %s@latest NEW' makes "
			     "a disk to write to",
			     name, disks[0].mirror_of, name);
	store_disks_free(disks, count);
	return error;
}

static void compose_name(struct mount_job *job)
{
	const struct store_reference *reference = &job->reference;
	char image[16] = "", partition[MOUNT_VOLUME_BYTES + 16] = "";

	if (reference->which != STORE_LIVE)
		(void)snprintf(image, sizeof(image), "@%" PRIu32, reference->number);
	if (job->choice.volume[0] != '\0')
		(void)snprintf(partition, sizeof(partition), "/%s", job->choice.volume);
	else if (job->choice.partition != 0)
		(void)snprintf(partition, sizeof(partition), "/%" PRIu32, job->choice.partition);
	(void)snprintf(job->name, sizeof(job->name), "%s%s%s", reference->disk, image, partition);
}

/* Leaves nothing open: whoever serves it opens it again. */
static int find_out(const struct command_line *line, struct mounting *mounting, struct failure *failure)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO_FREE char *doing = command_line_doing(line);
	struct mount_job *job = &mounting->job;
	struct mount_wanted wanted;
	int error;

	job->writes = line->options.write || line->options.scratch;
	if (doing == NULL)
		return fail(failure, -ENOMEM, "mount: out of memory");
	error = command_line_files(line->arguments[0], &job->reference, &mounting->volume, failure);
	if (error < 0)
		return error;
	error = job->reference.which == STORE_LIVE && job->writes ? command_line_open_store(line, false, &store, failure)
								  : command_line_open_store_to_read(line, &job->reference, &store, failure);
	if (error == 0 && job->reference.which != STORE_LIVE) {
		error = store_resolve_image(store, &job->reference, &job->reference.number, failure);
		job->reference.which = STORE_NUMBER;
	}
	if (error == 0 && job->writes && job->reference.which == STORE_LIVE)
		error = check_mirror(store, job->reference.disk, failure);
	if (error == 0)
		error = check_directory(line->arguments[1], store, mounting, failure);
	if (error < 0)
		return error;
	mounting->store = realpath(line->options.store, NULL);
	if (mounting->store == NULL)
		return fail_errno(failure, -errno, "%s", line->options.store);
	wanted = (struct mount_wanted){.text = line->arguments[0],
				       .reference = job->reference,
				       .volume = mounting->volume,
				       .writes = job->writes && job->reference.which == STORE_LIVE,
				       .doing = doing};
	error = mount_find(store, &wanted, &job->choice, failure);
	if (error == 0)
		compose_name(job);
	return error;
}

/* A mount of ours whose server has died makes room; anything else that is mounted there stays. */
static int clear_directory(struct mounting *mounting, struct failure *failure)
{
	AUTO(mounted_free) struct mounted mounted = {.directory = NULL};
	struct mount_record *list;
	size_t count;
	int error = mount_records_list(mounting->runtime, &list, &count, failure);

	if (error < 0)
		return error;
	for (size_t i = 0; i < count && error == 0; i++) {
		if (strcmp(list[i].directory, mounting->directory) != 0 || mount_record_claim(&list[i], 0, NULL) < 0 || !mount_is_dead(&list[i]))
			continue;
		error = mount_undo(mounting->runtime, &list[i], failure);
		if (error == 0)
			report_line("wherry: %s: %s was mounted there, and its server has died; unmounted", mounting->directory, list[i].reference);
	}
	mount_records_free(list, count);
	if (error < 0)
		return error;
	error = mount_table_find(mounting->directory, &mounted, failure);
	if (error == 0)
		return fail(failure, -EBUSY, "%s: %s is mounted there already; unmount it, or take another directory", mounting->directory,
			    mounted.source);
	return error == -ENOENT ? 0 : error;
}

/* ---- mounting ---- */

/* One way, with its record, which stays if it worked; else nothing does. */
static int go_way(struct mounting *mounting, const struct mount_way *way, struct mount_record *ret_record, struct failure *failure)
{
	struct mount_job *job = &mounting->job;
	const struct mount_record what = {.reference = job->name,
					  .store = mounting->store,
					  .directory = mounting->directory,
					  .via = way->via,
					  .read_only = !job->writes,
					  .scratch = job->options->scratch,
					  .since = time(NULL)};
	struct failure undoing = {.code = 0};
	int error = mount_record_create(mounting->runtime, &what, ret_record, failure);

	if (error < 0)
		return error;
	job->record = ret_record;
	error = way->mount(job, failure);
	if (error == 0 && atomic_load(mounting->stop))
		error = -EINTR;
	if (error == 0)
		return 0;
	if (mount_undo(mounting->runtime, ret_record, &undoing) < 0)
		report_line("wherry: %s: what was made for it could not be undone: %s; 'wherry umount %s' tries again", job->name, undoing.message,
			    mounting->directory);
	mount_record_free(ret_record);
	return atomic_load(mounting->stop) ? -EINTR : error;
}

/* "nbd: …; loop: …" */
static void add_reason(char reasons[FAILURE_MESSAGE_BYTES], enum mount_via via, const char *why)
{
	size_t used = strlen(reasons);

	(void)snprintf(reasons + used, FAILURE_MESSAGE_BYTES - used, "%s%s: %s", used > 0 ? "; " : "", mount_via_name(via), why);
}

/* The first way that can be gone and leads there. One that could be gone and did not lead there is told of. */
static int mount_best(struct mounting *mounting, struct mount_record *ret_record, struct failure *failure)
{
	struct mount_job *job = &mounting->job;
	char missing[FAILURE_MESSAGE_BYTES] = "", failed[FAILURE_MESSAGE_BYTES] = "";

	for (const struct mount_way *way = mount_ways; way->check != NULL; way++) {
		struct failure cause = {.code = 0};
		int error;

		if (job->options->via != VIA_BEST && job->options->via != way->via)
			continue;
		if (way->check(job, &cause) < 0) {
			add_reason(missing, way->via, cause.message);
			continue;
		}
		error = atomic_load(mounting->stop) ? -EINTR : go_way(mounting, way, ret_record, &cause);
		if (error == 0 && failed[0] != '\0')
			report_line("wherry: %s: not the best way, for that did not work: %s", job->name, failed);
		if (error == 0 || error == -EINTR)
			return error;
		add_reason(failed, way->via, cause.message);
	}
	/* what was tried says more than what could not be */
	return fail(failure, -EIO, "%s: can't be mounted%s: %s", job->name, job->writes ? " for writing" : "", failed[0] != '\0' ? failed : missing);
}

static const char *way_in_words(enum mount_via via)
{
	switch (via) {
	case VIA_NBD:
		return "by the kernel's NBD client";
	case VIA_LOOP:
		return "through FUSE and a loop device";
	default:
		return "read through FUSE, without the kernel's code for it";
	}
}

static void say_mounted(const struct command_line *line, const struct mounting *mounting, const struct mount_record *record)
{
	const struct mount_job *job = &mounting->job;
	bool has_label = job->choice.label[0] != '\0';
	char text[FAILURE_MESSAGE_BYTES];

	if (line->options.json) {
		output_json_mount(record, job->choice.type, job->choice.label, job->is_replayed);
		return;
	}
	(void)snprintf(text, sizeof(text), "%s (%s%s%s%s) is mounted on %s, %s, %s%s%s%s%s", job->name, job->choice.type, has_label ? " \"" : "",
		       job->choice.label, has_label ? "\"" : "", record->directory,
		       record->read_only ? "read-only"
		       : record->scratch ? "for writing what vanishes"
					 : "for writing",
		       way_in_words(record->via), record->device != NULL ? " (" : "", record->device != NULL ? record->device : "",
		       record->device != NULL ? ")" : "", job->is_replayed ? "; its journal was replayed into an overlay that vanishes" : "");
	output_safe(stdout, text);
	(void)putchar('\n');
}

static enum exit_status run_mount(const struct command_line *line)
{
	AUTO(release_mounting) struct mounting mounting = {.job = {.options = &line->options}};
	struct mount_record record = {.folder_fd = -1, .alive_fd = -1};
	struct failure failure = {.code = 0};
	enum exit_status status = check_options(line);
	int error;

	if (status != STATUS_DONE)
		return status;
	if (line->argument_count == 0)
		return list_mounts(line);
	mounting.job.stop = mounting.stop = signals_ask_to_stop();
	error = find_out(line, &mounting, &failure);
	if (error == 0)
		error = runtime_folder(&mounting.runtime, &failure);
	if (error == 0) {
		mounting.job.runtime = mounting.runtime;
		mount_prune(mounting.runtime);
		error = clear_directory(&mounting, &failure);
	}
	if (error == 0)
		error = mount_best(&mounting, &record, &failure);
	if (atomic_load(mounting.stop) && error < 0) {
		report_line("wherry: %s: stopped by a signal; nothing is mounted", line->arguments[0]);
		return STATUS_STOPPED;
	}
	if (error < 0)
		return report_failure(&failure);
	say_mounted(line, &mounting, &record);
	mount_record_free(&record);
	return STATUS_DONE;
}

const struct verb verb_mount = {
	.name = "mount",
	.summary = "show the files of a disk, an image or a partition",
	.description =
		"Mounts the file system of REF on the directory DIR, read-only. REF may name a partition, as in web01@3/2, or a logical "
		"volume of LVM, as in web01@3/VG/LV; else it is the only file system there is, or the one with the root of an operating "
		"system in it, for which all are looked into. If that is not clear, the choices are listed. 'wherry umount DIR' undoes all of it. "
		"Without arguments, what is mounted is listed.\n\n"
		"An image is as a server that lost its power: what is shown is what its next start would have found. If a journal "
		"has to be replayed for that, it is, into an overlay that vanishes; images never change. With --scratch an image can be written to, "
		"and forgets it all. With --rw files of a disk's live content can be changed, but not of one that rounds write to: "
		"'wherry clone' makes one of its own of an image. A live disk is taken while it is mounted.\n\n"
		"The way there is the first of these that works. nbd: the kernel's NBD client (root, nbd-client, the module nbd). loop: a file "
		"of wherryfs and a loop device (root). files: wherryfs reads the files itself, for images only: anybody can, and what a stranger "
		"put into a file system never meets the kernel. Take --via files for images of servers that you don't trust.\n\n"
		"Devices and set-user-ID programs mean nothing in what is mounted; -o dev,suid gives them their meaning.",
	.argument_count = 2,
	.arguments = {{.name = "REF", .kind = ARGUMENT_FILES, .optional = true}, {.name = "DIR", .kind = ARGUMENT_DIRECTORY, .optional = true}},
	.option_count = 5,
	.options = {{.id = OPTION_RW, .is_flag = true, .help = "files can be changed: of live content, or with --scratch"},
		    {.id = OPTION_SCRATCH, .help = "an image can be written to; what is written vanishes with the mount"},
		    {.id = OPTION_VIA},
		    {.id = OPTION_CACHE},
		    {.id = OPTION_OPTIONS}},
	.example_count = 6,
	.examples = {{"wherry mount web01@latest /mnt", "look at the files of the newest image"},
		     {"wherry mount web01@3/2 /mnt --via files", "partition 2 of image 3, without being root"},
		     {"wherry mount web01@3 /mnt --scratch", "try something with it"},
		     {"wherry mount copy /mnt --rw", "change files of a clone"},
		     {"wherry mount", "what is mounted"},
		     {"wherry umount /mnt", "unmount it"}},
	.run = run_mount,
};

/* ---- umount ---- */

static void say_unmounted(const struct command_line *line, const char *directory, const char *reference)
{
	json_t *document;

	if (!line->options.json)
		return;
	document = json_object();
	json_put(document, "directory", json_text(directory));
	json_put(document, "reference", json_text(reference));
	json_print(document);
}

/* What has no record: the tree of `wherry fs`, or of wherryfs itself. */
static int unmount_other(const char *typed, const char *directory, struct failure *failure)
{
	AUTO(mounted_free) struct mounted mounted = {.directory = NULL};
	int error = mount_table_find(directory, &mounted, failure);

	if (error == -ENOENT)
		return fail(failure, error, "%s: nothing is mounted there", typed);
	if (error < 0)
		return error;
	if (strcmp(mounted.type, "fuse.wherryfs") == 0)
		return mount_detach(directory, failure);
	return fail(failure, -EINVAL, "%s: %s is mounted there, and not by wherry; 'umount %s' unmounts it", typed, mounted.source, typed);
}

static struct mount_record *find_record(struct mount_record *list, size_t count, const char *directory)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(list[i].directory, directory) == 0)
			return &list[i];
	return NULL;
}

static enum exit_status run_umount(const struct command_line *line)
{
	AUTO_FREE char *runtime = NULL;
	AUTO_FREE char *directory = NULL;
	struct mount_record *list = NULL;
	struct mount_record *record;
	struct failure failure = {.code = 0};
	size_t count = 0;
	bool is_dead;
	int error = runtime_folder(&runtime, &failure);

	if (error == 0)
		error = mount_table_resolve(line->arguments[0], &directory, &is_dead, &failure);
	if (error == 0)
		error = mount_records_list(runtime, &list, &count, &failure);
	if (error < 0)
		return report_failure(&failure);
	record = find_record(list, count, directory);
	if (record != NULL)
		error = mount_record_claim(record, CLAIM_WAIT_MS, &failure);
	if (error == 0)
		error = record != NULL ? mount_undo(runtime, record, &failure) : unmount_other(line->arguments[0], directory, &failure);
	if (error == 0)
		say_unmounted(line, directory, record == NULL ? NULL : record->reference);
	mount_records_free(list, count);
	return error == 0 ? STATUS_DONE : report_failure(&failure);
}

const struct verb verb_umount = {
	.name = "umount",
	.summary = "undo what mount, or fs, has done",
	.description =
		"Unmounts the directory, takes away the devices and servers that were there for it, and waits until all that was written is in its "
		"place. Whatever of that is gone already, by hand or because something was killed, is no obstacle. Refused while a process uses "
		"what is mounted, which then stays as it is; and for what wherry has not mounted.",
	.argument_count = 1,
	.arguments = {{.name = "DIR", .kind = ARGUMENT_MOUNTED}},
	.example_count = 2,
	.examples = {{"wherry umount /mnt", "what 'wherry mount' has mounted there"}, {"wherry umount /mnt/ferry", "what 'wherry fs' has"}},
	.run = run_umount,
};
