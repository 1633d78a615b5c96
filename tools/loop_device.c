/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's own calls rather than losetup(8), for an open file: it may be in a file system that is not mounted anywhere any more.
 */
#include "tools/loop_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/programs.h"

#define LOOP_CONTROL "/dev/loop-control"

enum { TRIES = 64, NODE_WAIT_MS = 2000, NODE_STEP_MS = 20 };

int loop_device_check(struct failure *failure)
{
	if (geteuid() != 0)
		return fail(failure, -EACCES, "loop devices are root's");
	if (access(LOOP_CONTROL, F_OK) < 0)
		(void)programs_run_quietly((const char *const[]){"modprobe", "loop", NULL}); /* the next look says whether it helped */
	if (access(LOOP_CONTROL, F_OK) < 0)
		return fail(failure, -ENODEV, "this kernel has no loop devices, or its module can't be loaded ('modprobe loop')");
	return 0;
}

/* The node of a device that the kernel has just made is made a moment later, by udev or devtmpfs. */
static int open_node(const char *node, struct failure *failure)
{
	for (int waited_ms = 0;; waited_ms += NODE_STEP_MS) {
		int fd = open(node, O_RDWR | O_CLOEXEC);

		if (fd >= 0 || errno != ENOENT || waited_ms >= NODE_WAIT_MS)
			return fd >= 0 ? fd : fail_errno(failure, -errno, "%s", node);
		(void)nanosleep(&(struct timespec){.tv_nsec = NODE_STEP_MS * 1000000L}, NULL); /* woken early: asks again */
	}
}

int loop_device_attach(const struct loop_file *file, int *ret_fd, char ret_node[LOOP_NODE_BYTES], struct failure *failure)
{
	AUTO_CLOSE int control_fd = open(LOOP_CONTROL, O_RDWR | O_CLOEXEC);
	struct loop_config config = {.fd = (uint32_t)file->fd,
				     .info = {.lo_flags = LO_FLAGS_AUTOCLEAR, .lo_offset = file->off_bytes, .lo_sizelimit = file->len_bytes}};

	if (control_fd < 0)
		return fail_errno(failure, -errno, LOOP_CONTROL);
	if ((fcntl(file->fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
		config.info.lo_flags |= LO_FLAGS_READ_ONLY;
	(void)snprintf((char *)config.info.lo_file_name, sizeof(config.info.lo_file_name), "%s", file->name);
	for (int i = 0; i < TRIES; i++) {
		int number = ioctl(control_fd, LOOP_CTL_GET_FREE);
		AUTO_CLOSE int fd = -1;

		if (number < 0)
			return fail_errno(failure, -errno, LOOP_CONTROL ": a free device");
		(void)snprintf(ret_node, LOOP_NODE_BYTES, "/dev/loop%d", number);
		fd = open_node(ret_node, failure);
		if (fd < 0)
			return fd;
		if (ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
			*ret_fd = take_fd(&fd);
			return 0;
		}
		if (errno != EBUSY) /* else somebody took it between the question and the answer */
			return fail_errno(failure, -errno, "%s: attaching %s", ret_node, file->name);
	}
	return fail(failure, -EBUSY, LOOP_CONTROL ": others take every device first");
}

bool loop_device_is_of_another(const char *node, const char *name)
{
	AUTO_CLOSE int fd = open(node, O_RDONLY | O_CLOEXEC);
	struct loop_info64 info;

	if (fd < 0 || ioctl(fd, LOOP_GET_STATUS64, &info) < 0)
		return false;
	/* longer names are cut off */
	return strncmp((const char *)info.lo_file_name, name, sizeof(info.lo_file_name) - 1) != 0;
}
