/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's NBD devices: finding one that is free, connecting it, noting that, and the way back. nbd_device.h says what is kept where.
 */
#include "tools/nbd_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/programs.h"
#include "tools/runtime_folder.h"

enum {
	DEVICES_MOST = 1024,
	WAIT_STEP_MS = 50,
	CONNECT_WAIT_MS = 10000,
	NODES_WAIT_MS = 5000,
	SERVER_WAIT_MS = 600000, /* it has a journal to fold */
};

static void pause_ms(long ms)
{
	(void)nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- devices ---- */

const char *nbd_device_node(unsigned device, char ret_node[NBD_NODE_BYTES])
{
	(void)snprintf(ret_node, NBD_NODE_BYTES, "/dev/nbd%u", device);
	return ret_node;
}

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

int nbd_device_check_kernel(struct failure *failure)
{
	if (!device_exists(0) && geteuid() == 0)
		(void)programs_run_quietly((const char *const[]){"modprobe", "nbd", NULL}); /* the look below says whether it helped */
	if (!device_exists(0))
		return fail(failure, -ENODEV, "this kernel has no NBD client, or its module can't be loaded ('modprobe nbd')");
	return geteuid() == 0 ? 0 : fail(failure, -EPERM, "needs root");
}

/* ---- what is attached ---- */

struct attachment {
	char reference[NBD_LINE_BYTES], store[NBD_LINE_BYTES], purpose[NBD_LINE_BYTES];
	pid_t server;
};

static bool read_line(FILE *file, char line[NBD_LINE_BYTES])
{
	if (fgets(line, NBD_LINE_BYTES, file) == NULL)
		return false;
	line[strcspn(line, "\n")] = '\0';
	return true;
}

/* False: nothing is known of it. */
static bool read_attachment(const char *folder, unsigned device, struct attachment *ret_attachment)
{
	AUTO_FCLOSE FILE *file = NULL;
	AUTO_FREE char *path = NULL;
	char pid[NBD_LINE_BYTES];

	if (asprintf(&path, "%s/nbd%u", folder, device) < 0) {
		path = NULL;
		return false;
	}
	file = fopen(path, "re");
	if (file == NULL || !read_line(file, ret_attachment->reference) || !read_line(file, ret_attachment->store) || !read_line(file, pid))
		return false;
	ret_attachment->server = (pid_t)strtol(pid, NULL, 10);
	if (!read_line(file, ret_attachment->purpose))
		ret_attachment->purpose[0] = '\0';
	return true;
}

/* The process is still our nbdkit: its command line is, and speaks of what is attached. */
static bool server_runs(const struct attachment *attachment)
{
	AUTO_CLOSE int fd = -1;
	char path[64], words[2 * NBD_LINE_BYTES], wanted[NBD_LINE_BYTES + 8];
	ssize_t length;

	(void)snprintf(path, sizeof(path), "/proc/%ld/cmdline", (long)attachment->server);
	(void)snprintf(wanted, sizeof(wanted), "disk=%s", attachment->reference);
	fd = attachment->server > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	length = fd < 0 ? 0 : read(fd, words, sizeof(words) - 1);
	if (length <= 0)
		return false;
	words[length] = '\0';
	if (strstr(words, "nbdkit") == NULL)
		return false;
	for (const char *word = words; word < words + length; word += strlen(word) + 1)
		if (strcmp(word, wanted) == 0)
			return true;
	return false;
}

/*
 * It has no device any more, and is busy with the journal: whoever is next needs its socket's name.
 */
static bool server_is_left(const char *folder, unsigned device)
{
	struct attachment attachment;

	return read_attachment(folder, device, &attachment) && server_runs(&attachment);
}

static int note_attachment(const char *folder, unsigned device, const struct nbd_server *server, pid_t pid, const char *purpose,
			   struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	AUTO_FREE char *store = realpath(server->options->store, NULL);
	FILE *file;

	if (asprintf(&path, "%s/nbd%u", folder, device) < 0) {
		path = NULL;
		return fail(failure, -ENOMEM, "attach: out of memory");
	}
	file = fopen(path, "we");
	if (file == NULL)
		return fail_errno(failure, -errno, "%s", path);
	(void)fprintf(file, "%s\n%s\n%ld\n%s\n", server->reference, store != NULL ? store : server->options->store, (long)pid, purpose);
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

static int choose_device(const char *folder, int wanted, unsigned *ret_device, struct failure *failure)
{
	unsigned device = wanted == NBD_ANY_DEVICE ? 0 : (unsigned)wanted;

	if (wanted != NBD_ANY_DEVICE) {
		if (!device_exists(device))
			return fail(failure, -ENODEV, "/dev/nbd%u: there is no such device", device);
		if (device_is_connected(device))
			return fail(failure, -EBUSY, "/dev/nbd%u: is in use; 'wherry detach /dev/nbd%u' frees it", device, device);
		if (server_is_left(folder, device))
			return fail(failure, -EBUSY,
				    "/dev/nbd%u: what was written to it before is still being brought to its place; wait for "
				    "that, or take another",
				    device);
		*ret_device = device;
		return 0;
	}
	while (device < DEVICES_MOST && device_exists(device) && (device_is_connected(device) || server_is_left(folder, device)))
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
static void read_last_words(const char *log_path, char text[NBD_LINE_BYTES])
{
	AUTO_FCLOSE FILE *file = fopen(log_path, "re");
	char line[NBD_LINE_BYTES];

	text[0] = '\0';
	while (file != NULL && read_line(file, line))
		if (line[0] != '\0')
			memcpy(text, line, sizeof(line));
}

static int connect_device(const char *reference, unsigned device, const char *socket_path, const char *log_path, struct failure *failure)
{
	char node[NBD_NODE_BYTES], words[NBD_LINE_BYTES];
	const char *const command[] = {"nbd-client", "-unix", socket_path, "-N", reference, "-b", "512", node, NULL};
	int status;

	(void)nbd_device_node(device, node);
	status = programs_run_quietly(command);
	if (status == PROGRAM_MISSING)
		return fail(failure, -ENOENT, "attach: nbd-client is not installed; apt install nbd-client");
	for (int waited_ms = 0; status == 0 && waited_ms < CONNECT_WAIT_MS; waited_ms += WAIT_STEP_MS) {
		if (read_device_number(device, "size") > 0)
			return 0;
		pause_ms(WAIT_STEP_MS);
	}
	read_last_words(log_path, words);
	return fail(failure, -EIO, "%s: nbd-client could not connect %s%s%s", reference, node, words[0] != '\0' ? ": " : "", words);
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

void nbd_device_wait_for_partitions(unsigned device)
{
	char node[NBD_NODE_BYTES];
	AUTO_CLOSE int fd = open(nbd_device_node(device, node), O_RDONLY | O_CLOEXEC);

	if (fd >= 0)
		(void)ioctl(fd, BLKRRPART); /* no table is no failure */
	for (int waited_ms = 0; !has_nodes(device) && waited_ms < NODES_WAIT_MS; waited_ms += WAIT_STEP_MS)
		pause_ms(WAIT_STEP_MS);
}

/* With the lock. */
static int attach_device(const char *folder, struct nbd_server *server, unsigned device, const char *purpose, struct failure *failure)
{
	AUTO_FREE char *socket_path = NULL;
	AUTO_FREE char *log_path = NULL;
	AUTO_CLOSE int fd = -1;
	pid_t pid;
	int error;

	if (asprintf(&socket_path, "%s/nbd%u.sock", folder, device) < 0)
		socket_path = NULL;
	if (asprintf(&log_path, "%s/nbd%u.log", folder, device) < 0)
		log_path = NULL;
	if (socket_path == NULL || log_path == NULL)
		return fail(failure, -ENOMEM, "attach: out of memory");
	server->log_path = log_path;
	error = nbd_listen_unix(socket_path, &fd, failure);
	if (error == 0)
		error = nbd_server_start(server, fd, &pid, failure);
	if (error < 0)
		return error;
	(void)close(take_fd(&fd)); /* when nbdkit can't start, nbd-client gets an end instead of a wait */
	error = note_attachment(folder, device, server, pid, purpose, failure);
	if (error == 0)
		error = connect_device(server->reference, device, socket_path, log_path, failure);
	if (error < 0) {
		(void)kill(pid, SIGTERM);
		(void)waitpid(pid, NULL, 0);
		remove_leftovers(folder, device);
	}
	return error;
}

int nbd_device_attach(const char *folder, struct nbd_server server, int wanted, const char *purpose, unsigned *ret_device, struct failure *failure)
{
	AUTO_CLOSE int lock_fd = -1;
	unsigned device = 0;

	if (runtime_lock(folder, ".lock", &lock_fd, failure) < 0 || choose_device(folder, wanted, &device, failure) < 0 ||
	    attach_device(folder, &server, device, purpose, failure) < 0)
		return failure->code;
	*ret_device = device;
	return 0;
}

/* ---- detach ---- */

int nbd_device_find(const char *folder, const char *reference, unsigned *ret_device, struct failure *failure)
{
	struct attachment attachment;
	unsigned found = DEVICES_MOST;

	for (unsigned device = 0; device < DEVICES_MOST && device_exists(device); device++) {
		if (!device_is_connected(device) || !read_attachment(folder, device, &attachment) || strcmp(attachment.reference, reference) != 0)
			continue;
		if (found != DEVICES_MOST)
			return fail(failure, -EINVAL, "%s: attached more than once, to /dev/nbd%u and /dev/nbd%u; name the device", reference, found,
				    device);
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
	char node[NBD_NODE_BYTES];
	AUTO_CLOSE int fd = -1;

	(void)nbd_device_node(device, node);
	fd = open(node, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return fail(failure, -EBUSY, "%s: it, or a partition of it, is mounted or in use otherwise; 'umount' first", node);
	return 0;
}

int nbd_device_detach(const char *folder, unsigned device, struct failure *failure)
{
	struct attachment attachment = {.server = 0};
	bool is_known = read_attachment(folder, device, &attachment);
	AUTO_CLOSE int lock_fd = -1;
	char node[NBD_NODE_BYTES];
	int status;

	(void)nbd_device_node(device, node);
	if (!device_is_connected(device))
		return fail(failure, -ENOENT, "%s: nothing is attached", node);
	if (check_unused(device, failure) < 0)
		return -EBUSY;
	status = programs_run_quietly((const char *const[]){"nbd-client", "-d", node, NULL});
	if (status != 0)
		return fail(failure, -EIO, "%s: 'nbd-client -d %s' failed%s", node, node, status == PROGRAM_MISSING ? ": it is not installed" : "");
	for (int waited_ms = 0; is_known && server_runs(&attachment) && waited_ms < SERVER_WAIT_MS; waited_ms += WAIT_STEP_MS)
		pause_ms(WAIT_STEP_MS);
	if (runtime_lock(folder, ".lock", &lock_fd, failure) < 0)
		return failure->code;
	if (!device_is_connected(device)) /* or somebody has attached something to it meanwhile: those are his */
		remove_leftovers(folder, device);
	return 0;
}

/* The device that was attached, or was going to be, for this purpose. */
static bool find_purpose(const char *folder, const char *purpose, unsigned *ret_device, struct attachment *ret_attachment)
{
	for (unsigned device = 0; device < DEVICES_MOST && device_exists(device); device++) {
		if (!read_attachment(folder, device, ret_attachment) || strcmp(ret_attachment->purpose, purpose) != 0)
			continue;
		*ret_device = device;
		return true;
	}
	return false;
}

int nbd_device_detach_purpose(const char *folder, const char *purpose, struct failure *failure)
{
	struct attachment attachment;
	unsigned device;

	if (!find_purpose(folder, purpose, &device, &attachment))
		return 0;
	if (device_is_connected(device))
		return nbd_device_detach(folder, device, failure);
	/* whoever started the server was killed before it had its client, for which it would wait for ever */
	if (server_runs(&attachment))
		(void)kill(attachment.server, SIGTERM);
	for (int waited_ms = 0; server_runs(&attachment) && waited_ms < SERVER_WAIT_MS; waited_ms += WAIT_STEP_MS)
		pause_ms(WAIT_STEP_MS);
	remove_leftovers(folder, device);
	return 0;
}
