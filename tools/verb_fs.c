/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry fs: everything in the store as a tree of files, by wherryfs. What that says of itself is passed on as it is.
 */
#include "tools/command.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/fs_server.h"
#include "tools/mount_table.h"
#include "tools/output.h"

/* Appends to a list parted by commas, which is owned; false: out of memory. */
static bool add_option(char **list, const char *name, const char *value)
{
	char *longer = NULL;

	if (asprintf(&longer, "%s%s%s%s", *list == NULL ? "" : *list, *list == NULL ? "" : ",", name, value) < 0)
		return false;
	free(*list);
	*list = longer;
	return true;
}

/* Caller frees; "" when there are none. NULL: out of memory. */
static char *compose_options(const struct options *options)
{
	AUTO_FREE char *list = NULL;
	char cache[32];

	(void)snprintf(cache, sizeof(cache), "%" PRIu64, options->cache_bytes);
	if ((options->read_only && !add_option(&list, "ro", "")) || (options->allow_other && !add_option(&list, "allow_other", "")) ||
	    (options->disk != NULL && !add_option(&list, "disk=", options->disk)) ||
	    (options->cache_bytes != 0 && !add_option(&list, "cache=", cache)) ||
	    (options->mount_options != NULL && !add_option(&list, options->mount_options, "")))
		return NULL;
	return list != NULL ? take_ptr(list) : strdup("");
}

/* That there is a store, and the disk, and a directory, is said by us: in the words of all verbs. */
static int check(const struct command_line *line, char **ret_directory, struct failure *failure)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct store_disk *disks;
	bool is_dead, is_inside = false;
	size_t count;
	int error = command_line_open_store(line, true, &store, failure);

	if (error == 0 && line->options.disk != NULL) {
		error = store_list_disks(store, line->options.disk, &disks, &count, failure);
		if (error == 0)
			store_disks_free(disks, count);
	}
	if (error == 0)
		error = mount_table_resolve(line->arguments[0], ret_directory, &is_dead, failure);
	if (error == 0)
		error = store_contains_path(store, *ret_directory, &is_inside, failure);
	if (error == 0 && is_inside)
		error = fail(failure, -EINVAL, "%s: is in the store itself, which would be hidden; mount it elsewhere", line->arguments[0]);
	return error < 0 ? error : fs_server_check(failure);
}

/* What has become of it, as one of ours would have ended. */
static enum exit_status status_of_child(int status)
{
	if (WIFSIGNALED(status))
		return STATUS_STOPPED;
	switch (WEXITSTATUS(status)) {
	case 0:
		return STATUS_DONE;
	case 2:
		return STATUS_USAGE;
	default:
		return STATUS_FAILED;
	}
}

static enum exit_status run_in_background(char **words)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		(void)signal(SIGPIPE, SIG_DFL);
		(void)execvp(words[0], words);
		_exit(STATUS_FAILED); /* it was there a moment ago */
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return STATUS_FAILED;
	return pid < 0 ? STATUS_FAILED : status_of_child(status);
}

static void say_where(const struct command_line *line, const char *store, const char *directory)
{
	json_t *document;

	if (!line->options.json)
		return;
	document = json_object();
	json_put(document, "store", json_text(store));
	json_put(document, "directory", json_text(directory));
	json_print(document);
}

static enum exit_status run_fs(const struct command_line *line)
{
	AUTO_FREE char *directory = NULL;
	AUTO_FREE char *options = NULL;
	AUTO(fs_server_free_words) char **words = NULL;
	struct failure failure = {.code = 0};
	struct fs_server server = {.store = line->options.store, .alive_fd = -1};
	enum exit_status status;

	if (line->options.foreground && line->options.json)
		return report_usage(line->verb, "--json: not together with --foreground, which prints nothing");
	if (check(line, &directory, &failure) < 0)
		return report_failure(&failure);
	options = compose_options(&line->options);
	server.directory = directory;
	server.options = options != NULL && *options != '\0' ? options : NULL;
	words = options == NULL ? NULL : fs_server_words(&server, line->options.foreground);
	if (words == NULL)
		output_out_of_memory();
	if (line->options.foreground) {
		(void)signal(SIGPIPE, SIG_DFL);
		(void)execvp(words[0], words);
		(void)fail_errno(&failure, -errno, "%s", words[0]);
		return report_failure(&failure);
	}
	status = run_in_background(words);
	if (status == STATUS_DONE)
		say_where(line, words[1], directory);
	return status;
}

const struct verb verb_fs = {
	.name = "fs",
	.summary = "show all disks, images and their files in a directory",
	.description = "Mounts the store as a tree of files in the directory MNT, by FUSE, so root is not needed: for each disk "
		       "MNT/web01/disk.raw is its live content, part/2.raw partition 2, images/3/disk.raw and images/3/part/2.raw the same "
		       "of image 3, and images/3/files/2/ the files of that partition, without the kernel's code for its file system.\n\n"
		       "Ordinary tools work on them: cp, rsync, qemu-img, losetup, mount. What was written to a live disk and "
		       "synced is durable. A live disk is taken while its file is open, an image can't be deleted meanwhile. New images appear "
		       "by themselves.\n\n"
		       "It stays until it is unmounted: 'wherry umount MNT', or fusermount3 -u. In /etc/fstab its type is fuse.wherryfs; "
		       "wherryfs(1) says more.",
	.argument_count = 1,
	.arguments = {{.name = "MNT", .kind = ARGUMENT_DIRECTORY}},
	.option_count = 6,
	.options = {{.id = OPTION_FOREGROUND},
		    {.id = OPTION_ALLOW_OTHER},
		    {.id = OPTION_READ_ONLY},
		    {.id = OPTION_DISK},
		    {.id = OPTION_CACHE},
		    {.id = OPTION_OPTIONS, .help = "more options, parted by commas, as wherryfs(1) and FUSE have them"}},
	.example_count = 4,
	.examples = {{"wherry fs /mnt/ferry", "everything that is in the store"},
		     {"wherry fs /mnt/ferry --disk web01 --read-only", "one disk and its images, to look at"},
		     {"wherry fs /mnt/ferry -o allow_other,uid=1000", "for somebody else, too"},
		     {"wherry umount /mnt/ferry", "unmount it"}},
	.run = run_fs,
};
