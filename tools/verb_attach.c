/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry attach, detach: content as a block device of this host, by the kernel's NBD client.
 *
 * attach starts an nbdkit for just this device, which ends by itself when the device is disconnected: nothing has to be
 * ended by detach, and who disconnects with nbd-client himself leaves nothing behind but a few small files. nbd-client
 * talks to the kernel by netlink, unless it was built without: no process of its own has to live for the device then.
 * In the runtime folder there are, for nbdN:
 *
 *     nbdN.sock   what nbd-client connected to
 *     nbdN.log    what nbdkit had to say
 *     nbdN        what is attached: the reference, the store, nbdkit's pid, one a line
 *     .lock       locked (flock) from the choice of a device until it is connected and noted, and while leftovers are removed: or two
 *                 would choose the same, and one would clear away what the other has made
 *
 * They say something as long as /sys/block/nbdN says that the device is connected; else they are leftovers, and are
 * overwritten. A device whose server has died is still connected, fails every request, and is detached like any other.
 */
#include "tools/command.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "syncer/source_disk.h"
#include "tools/nbd_server.h"
#include "tools/output.h"

enum {
	DEVICES_MOST = 1024,
	LINE_BYTES = PATH_MAX + 8,
	WAIT_STEP_MS = 50,
	CONNECT_WAIT_MS = 10000,
	NODES_WAIT_MS = 5000,
	SECTOR_BYTES = 512,
	SERVER_WAIT_MS = 600000, /* it has a journal to fold */
};

static void pause_ms(long ms)
{
	(void)nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- devices ---- */

/* A number in a file of /sys/block/nbdN; -1: there is none. */
static long long read_device_number(unsigned device, const char *name)
{
	AUTO_FCLOSE FILE *file = NULL;
	char path[64];
	long long number;

	(void)snprintf(path, sizeof(path), "/sys/block/nbd%u/%s", device, name);
	file = fopen(path, "re");
	return file == NULL || fscanf(file, "%lld", &number) != 1 ? -1 : number;
}

static bool device_exists(unsigned device)
{
	return read_device_number(device, "size") >= 0;
}

static bool device_is_connected(unsigned device)
{
	return read_device_number(device, "size") > 0 || read_device_number(device, "pid") > 0;
}

/* Runs a program and waits for it; its output is not for us. The exit status, or -1. */
static int run_quietly(const char *const *words)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

		if (null_fd >= 0 && dup2(null_fd, 0) >= 0 && dup2(null_fd, 1) >= 0 && dup2(null_fd, 2) >= 0)
			(void)execvp(words[0], (char *const *)words);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int need_kernel(const char *reference, struct failure *failure)
{
	char mount_hint[LINE_BYTES] = "";

	if (!device_exists(0) && geteuid() == 0)
		(void)run_quietly(
			(const char *const[]){"modprobe", "nbd", NULL}); /* the look below says whether it helped */
	if (device_exists(0))
		return geteuid() == 0 ? 0 : fail(failure, -EPERM, "attach: needs root; 'wherry serve-nbd' doesn't");
	if (verb_find("mount") != NULL)
		(void)snprintf(mount_hint, sizeof(mount_hint), "'wherry mount %s DIR' shows its files, ", reference);
	return fail(
		failure, -ENODEV,
		"attach: this kernel has no NBD client, or its module can't be loaded ('modprobe nbd'); without it %s"
		"'wherry serve-nbd %s' and nbdfuse(1) make a file of it, which losetup takes",
		mount_hint, reference);
}

/* ---- what is attached ---- */

struct attachment {
	char reference[LINE_BYTES], store[LINE_BYTES];
	pid_t server;
};

static bool read_line(FILE *file, char line[LINE_BYTES])
{
	if (fgets(line, LINE_BYTES, file) == NULL)
		return false;
	line[strcspn(line, "\n")] = '\0';
	return true;
}

/* False: nothing is known of it. */
static bool read_attachment(const char *folder, unsigned device, struct attachment *ret_attachment)
{
	AUTO_FCLOSE FILE *file = NULL;
	AUTO_FREE char *path = NULL;
	char pid[LINE_BYTES];

	if (asprintf(&path, "%s/nbd%u", folder, device) < 0) {
		path = NULL;
		return false;
	}
	file = fopen(path, "re");
	if (file == NULL || !read_line(file, ret_attachment->reference) || !read_line(file, ret_attachment->store) ||
	    !read_line(file, pid))
		return false;
	ret_attachment->server = (pid_t)strtol(pid, NULL, 10);
	return true;
}

/* The process is still our nbdkit: its command line is. */
static bool server_runs(const struct attachment *attachment)
{
	AUTO_FCLOSE FILE *file = NULL;
	char path[64], program[LINE_BYTES] = "";

	(void)snprintf(path, sizeof(path), "/proc/%ld/cmdline", (long)attachment->server);
	file = fopen(path, "re");
	return attachment->server > 0 && file != NULL && fgets(program, sizeof(program), file) != NULL &&
	       strstr(program, "nbdkit") != NULL;
}

/*
 * It has no device any more, and is busy with the journal: whoever is next needs its socket's name. Which other process
 * may have got its number by now doesn't matter, unless that is an nbdkit.
 */
static bool server_is_left(const char *folder, unsigned device)
{
	struct attachment attachment;

	return read_attachment(folder, device, &attachment) && server_runs(&attachment);
}

static int lock_attachments(const char *folder, int *ret_fd, struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	AUTO_CLOSE int fd = -1;

	if (asprintf(&path, "%s/.lock", folder) < 0) {
		path = NULL;
		return fail(failure, -ENOMEM, "attach: out of memory");
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_errno(failure, -errno, "%s", path);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return fail_errno(failure, -errno, "%s: lock", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int note_attachment(const char *folder, unsigned device, const struct command_line *line, pid_t server,
			   struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	AUTO_FREE char *store = realpath(line->options.store, NULL);
	FILE *file;

	if (asprintf(&path, "%s/nbd%u", folder, device) < 0) {
		path = NULL;
		return fail(failure, -ENOMEM, "attach: out of memory");
	}
	file = fopen(path, "we");
	if (file == NULL)
		return fail_errno(failure, -errno, "%s", path);
	(void)fprintf(file, "%s\n%s\n%ld\n", line->arguments[0], store != NULL ? store : line->options.store,
		      (long)server);
	return fclose(file) == 0 ? 0 : fail_errno(failure, -errno, "%s", path);
}

static void remove_leftovers(const char *folder, unsigned device)
{
	static const char *const endings[] = {"", ".sock", ".log"};

	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		AUTO_FREE char *path = NULL;

		if (asprintf(&path, "%s/nbd%u%s", folder, device, endings[i]) < 0) {
			path = NULL;
			continue;
		}
		(void)unlink(path); /* one that stays is overwritten by the next */
	}
}

/* ---- attach ---- */

static int choose_device(const struct command_line *line, const char *folder, unsigned *ret_device,
			 struct failure *failure)
{
	unsigned device = 0;

	if (line->argument_count > 1) {
		device = (unsigned)strtoul(line->arguments[1] + strlen("/dev/nbd"), NULL, 10);
		if (!device_exists(device))
			return fail(failure, -ENODEV, "%s: there is no such device", line->arguments[1]);
		if (device_is_connected(device))
			return fail(failure, -EBUSY, "%s: is in use; 'wherry detach %s' frees it", line->arguments[1],
				    line->arguments[1]);
		if (server_is_left(folder, device))
			return fail(failure, -EBUSY,
				    "%s: what was written to it before is still being brought to its place; wait for "
				    "that, or take another",
				    line->arguments[1]);
		*ret_device = device;
		return 0;
	}
	while (device < DEVICES_MOST && device_exists(device) &&
	       (device_is_connected(device) || server_is_left(folder, device)))
		device++;
	if (!device_exists(device))
		return fail(failure, -EBUSY,
			    "attach: all %u devices are in use; 'wherry detach' frees one, 'modprobe nbd nbds_max=64' "
			    "makes more",
			    device);
	*ret_device = device;
	return 0;
}

/* The last line that the server wrote, or "". */
static void read_last_words(const char *log_path, char text[LINE_BYTES])
{
	AUTO_FCLOSE FILE *file = fopen(log_path, "re");
	char line[LINE_BYTES];

	text[0] = '\0';
	while (file != NULL && read_line(file, line))
		if (line[0] != '\0')
			memcpy(text, line, sizeof(line));
}

static int connect_device(const struct command_line *line, unsigned device, const char *socket_path,
			  const char *log_path, struct failure *failure)
{
	char node[32], words[LINE_BYTES];
	const char *const command[] = {"nbd-client", "-unix", socket_path, "-N", line->arguments[0],
				       "-b",	     "512",   node,	   NULL};
	int status;

	(void)snprintf(node, sizeof(node), "/dev/nbd%u", device);
	status = run_quietly(command);
	if (status == 127)
		return fail(failure, -ENOENT, "attach: nbd-client is not installed; apt install nbd-client");
	for (int waited_ms = 0; status == 0 && waited_ms < CONNECT_WAIT_MS; waited_ms += WAIT_STEP_MS) {
		if (read_device_number(device, "size") > 0)
			return 0;
		pause_ms(WAIT_STEP_MS);
	}
	read_last_words(log_path, words);
	return fail(failure, -EIO, "%s: nbd-client could not connect %s%s%s", line->arguments[0], node,
		    words[0] != '\0' ? ": " : "", words);
}

/* Every partition that the kernel has found has its node in /dev. */
static bool has_nodes(unsigned device)
{
	char path[64];

	for (unsigned partition = 1; partition < 256; partition++) {
		(void)snprintf(path, sizeof(path), "/sys/block/nbd%u/nbd%up%u", device, device, partition);
		if (access(path, F_OK) < 0)
			continue;
		(void)snprintf(path, sizeof(path), "/dev/nbd%up%u", device, partition);
		if (access(path, F_OK) < 0)
			return false;
	}
	return true;
}

static void wait_for_partitions(unsigned device)
{
	char node[32];
	AUTO_CLOSE int fd = -1;

	(void)snprintf(node, sizeof(node), "/dev/nbd%u", device);
	fd = open(node, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)ioctl(fd, BLKRRPART); /* no table is no failure */
	for (int waited_ms = 0; !has_nodes(device) && waited_ms < NODES_WAIT_MS; waited_ms += WAIT_STEP_MS)
		pause_ms(WAIT_STEP_MS);
}

static int attach_device(const struct command_line *line, const char *folder, unsigned device, struct failure *failure)
{
	AUTO_FREE char *socket_path = NULL;
	AUTO_FREE char *log_path = NULL;
	AUTO_CLOSE int fd = -1;
	struct nbd_server server = {
		.reference = line->arguments[0], .options = &line->options, .ends_with_last_client = true, .ready_fd = -1};
	pid_t pid;
	int error;

	if (asprintf(&socket_path, "%s/nbd%u.sock", folder, device) < 0)
		socket_path = NULL;
	if (asprintf(&log_path, "%s/nbd%u.log", folder, device) < 0)
		log_path = NULL;
	if (socket_path == NULL || log_path == NULL)
		return fail(failure, -ENOMEM, "attach: out of memory");
	server.log_path = log_path;
	error = nbd_listen_unix(socket_path, &fd, failure);
	if (error == 0)
		error = nbd_server_start(&server, fd, &pid, failure);
	if (error < 0)
		return error;
	(void)close(take_fd(&fd)); /* when nbdkit can't start, nbd-client gets an end instead of a wait */
	error = connect_device(line, device, socket_path, log_path, failure);
	if (error == 0)
		error = note_attachment(folder, device, line, pid, failure);
	if (error < 0) {
		(void)kill(pid, SIGTERM);
		(void)waitpid(pid, NULL, 0);
		remove_leftovers(folder, device);
		return error;
	}
	wait_for_partitions(device);
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
		char node[32];

		(void)snprintf(node, sizeof(node), "/dev/nbd%u", device);
		json_put(document, "device", json_text(node));
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
	AUTO_CLOSE int lock_fd = -1;
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
	    nbd_runtime_folder(&folder, &failure) < 0 || lock_attachments(folder, &lock_fd, &failure) < 0 ||
	    choose_device(line, folder, &device, &failure) < 0 ||
	    attach_device(line, folder, device, &failure) < 0)
		return report_failure(&failure);
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

static int find_attached(const char *folder, const char *reference, unsigned *ret_device, struct failure *failure)
{
	struct attachment attachment;
	unsigned found = DEVICES_MOST;

	for (unsigned device = 0; device < DEVICES_MOST && device_exists(device); device++) {
		if (!device_is_connected(device) || !read_attachment(folder, device, &attachment) ||
		    strcmp(attachment.reference, reference) != 0)
			continue;
		if (found != DEVICES_MOST)
			return fail(failure, -EINVAL,
				    "%s: attached more than once, to /dev/nbd%u and /dev/nbd%u; name the device",
				    reference, found, device);
		found = device;
	}
	if (found == DEVICES_MOST)
		return fail(failure, -ENOENT, "%s: is not attached", reference);
	*ret_device = found;
	return 0;
}

/* Nothing is mounted from it, no volume is made of it: the kernel gives it to us alone. A device whose server has died
 * is given, too. */
static int check_unused(unsigned device, struct failure *failure)
{
	char node[32];
	AUTO_CLOSE int fd = -1;

	(void)snprintf(node, sizeof(node), "/dev/nbd%u", device);
	fd = open(node, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return fail(failure, -EBUSY,
			    "%s: it, or a partition of it, is mounted or in use otherwise; 'umount' first", node);
	return 0;
}

static int detach_device(const char *folder, unsigned device, struct failure *failure)
{
	struct attachment attachment = {.server = 0};
	bool is_known = read_attachment(folder, device, &attachment);
	AUTO_CLOSE int lock_fd = -1;
	char node[32];
	int status;

	(void)snprintf(node, sizeof(node), "/dev/nbd%u", device);
	if (!device_is_connected(device))
		return fail(failure, -ENOENT, "%s: nothing is attached", node);
	if (check_unused(device, failure) < 0)
		return -EBUSY;
	status = run_quietly((const char *const[]){"nbd-client", "-d", node, NULL});
	if (status != 0)
		return fail(failure, -EIO, "%s: 'nbd-client -d %s' failed%s", node, node,
			    status == 127 ? ": it is not installed" : "");
	for (int waited_ms = 0; is_known && server_runs(&attachment) && waited_ms < SERVER_WAIT_MS;
	     waited_ms += WAIT_STEP_MS)
		pause_ms(WAIT_STEP_MS);
	if (lock_attachments(folder, &lock_fd, failure) < 0)
		return failure->code;
	if (!device_is_connected(device)) /* or somebody has attached something to it meanwhile: those are his */
		remove_leftovers(folder, device);
	return 0;
}

static enum exit_status run_detach(const struct command_line *line)
{
	AUTO_FREE char *folder = NULL;
	struct failure failure = {.code = 0};
	const char *what = line->arguments[0];
	unsigned device = 0;
	int error = nbd_runtime_folder(&folder, &failure);

	if (error == 0 && *what == '/')
		device = (unsigned)strtoul(what + strlen("/dev/nbd"), NULL, 10);
	else if (error == 0)
		error = find_attached(folder, what, &device, &failure);
	if (error == 0)
		error = detach_device(folder, device, &failure);
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
