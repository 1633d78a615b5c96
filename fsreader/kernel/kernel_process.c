/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel gets what it takes to be its memory, its disks and its initial file system as descriptors (image_link.h), its console is nothing, and it
 * has no network. All it can reach is the image.
 *
 * Its first disk is told to be plain ("d"): without that it would look for the head of a copy-on-write file in the image's first bytes, and open
 * the file that is named there.
 */
#include "fsreader/kernel/kernel_process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/helper_path.h"
#include "fsreader/image_link.h"
#include "fsreader/sandbox.h"

enum { SOCKET_BYTES = 2 * KERNEL_BUFFER_BYTES };

static const uint64_t address_space_bytes = (uint64_t)4 << 30;

#define PRELOAD_NAME "wherry-image.so"
#define MEMORY_MIB "128"

/*
 * No console, no sockets; the rest is what makes it start in half the time: it needs to know neither how fast its CPU is
 * nor which RAID-6 is the fastest.
 */
static char *const arguments[] = {
	(char[]){"linux.uml"},
	(char[]){"mem=" MEMORY_MIB "M"},
	(char[]){"initrd=" IMAGE_LINK_INITRD_PATH},
	(char[]){"ubd0dc=" IMAGE_LINK_PATH},
	(char[]){"ubd1dc=" IMAGE_LINK_TALK_PATH},
	(char[]){"con=null"},
	(char[]){"con0=null"},
	(char[]){"ssl=null"},
	(char[]){"uml_dir=/nowhere/"},
	(char[]){"umid=wherry"},
	(char[]){"quiet"},
	(char[]){"panic=-1"},
	(char[]){"lpj=20000000"},
	(char[]){"cryptomgr.notests=1"},
	(char[]){"initcall_blacklist=raid6_select_algo,calibrate_xor_blocks,register_xor_blocks"},
	NULL,
};

enum { TALK, THEIR_TALK, IMAGE, THEIR_IMAGE, FILE_OF_IMAGE, MEMORY, INITRD, FILE_OF_TALK, FDS };

struct fds {
	int fd[FDS];
};

static void fds_release(struct fds *fds)
{
	for (unsigned i = 0; i < FDS; i++)
		if (fds->fd[i] >= 0)
			(void)close(fds->fd[i]); /* sockets, and files in memory */
}

static int make_sockets(int ret_sockets[2])
{
	int bytes = SOCKET_BYTES;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_sockets) < 0)
		return -errno;
	for (unsigned i = 0; i < 2; i++)
		(void)setsockopt(ret_sockets[i], SOL_SOCKET, SO_SNDBUF, &bytes,
				 sizeof(bytes)); /* the least that hosts allow is enough */
	return fcntl(ret_sockets[0], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

/* Without pages, and without a way to get any: what is written there is memory that no limit counts. */
static int make_empty_file(uint64_t size_bytes, unsigned seals)
{
	AUTO_CLOSE int fd = memfd_create("fsreader", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		return -errno;
	if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return -errno;
	return take_fd(&fd);
}

static int make_fds(struct fds *fds, const struct kernel_type *type, uint64_t image_bytes, struct failure *failure)
{
	int error = make_sockets(&fds->fd[TALK]);

	if (error == 0)
		error = make_sockets(&fds->fd[IMAGE]);
	if (error == 0) {
		fds->fd[FILE_OF_IMAGE] = make_empty_file(image_bytes, F_SEAL_WRITE);
		fds->fd[FILE_OF_TALK] = make_empty_file(IMAGE_LINK_TALK_BYTES, F_SEAL_WRITE);
		fds->fd[MEMORY] = make_empty_file((uint64_t)1 << 30, 0);
	}
	for (unsigned i = 0; i < FDS && error == 0; i++)
		if (i != INITRD && fds->fd[i] < 0)
			error = fds->fd[i];
	if (error < 0)
		return fail_errno(failure, error, "fsreader: sockets and memory for a kernel");
	return kernel_initrd_make(type, &fds->fd[INITRD], failure);
}

int kernel_process_start(const struct kernel_type *type, uint64_t image_bytes, struct kernel_process *ret_process,
			 struct failure *failure)
{
	AUTO(fds_release) struct fds fds = {{-1, -1, -1, -1, -1, -1, -1, -1}};
	char program[PATH_MAX], preload[PATH_MAX], variable[PATH_MAX + sizeof("LD_PRELOAD=")];
	struct sandbox_params params = {.kind = SANDBOX_KERNEL,
					.program = program,
					.argv = arguments,
					.fd_count = 6,
					.memory_bytes = address_space_bytes,
					.environment = (char *[]){variable, NULL}};
	int error = kernel_program_find(program, failure);

	if (error == 0)
		error = helper_path_find(PRELOAD_NAME, preload, failure);
	if (error == 0)
		error = make_fds(&fds, type, image_bytes, failure);
	if (error < 0)
		return error;
	(void)snprintf(variable, sizeof(variable), "LD_PRELOAD=%s", preload); /* fits */
	params.fds = (const int[][2]){
		{fds.fd[THEIR_TALK], IMAGE_LINK_TALK},	  {fds.fd[THEIR_IMAGE], IMAGE_LINK_SOCKET},
		{fds.fd[FILE_OF_IMAGE], IMAGE_LINK_FILE}, {fds.fd[MEMORY], IMAGE_LINK_MEMORY},
		{fds.fd[INITRD], IMAGE_LINK_INITRD},	  {fds.fd[FILE_OF_TALK], IMAGE_LINK_TALK_FILE}};
	error = sandbox_spawn(&params, &ret_process->pid, &ret_process->pidfd, failure);
	if (error < 0)
		return error;
	ret_process->talk_fd = take_fd(&fds.fd[TALK]);
	ret_process->image_fd = take_fd(&fds.fd[IMAGE]);
	return 0;
}

/* ---- the image ---- */

static bool question_is_valid(const struct image_question *question, size_t message_bytes, uint64_t image_bytes)
{
	size_t data_bytes = message_bytes - sizeof(*question);

	return question->len_bytes > 0 && question->len_bytes <= IMAGE_LINK_MOST_BYTES &&
	       question->off_bytes <= image_bytes && question->len_bytes <= image_bytes - question->off_bytes &&
	       (question->operation == IMAGE_WRITE ? data_bytes == question->len_bytes
						   : question->operation == IMAGE_READ && data_bytes == 0);
}

int kernel_process_serve(int image_fd, struct overlay *overlay, uint64_t image_bytes,
			 uint8_t buffer[KERNEL_BUFFER_BYTES], uint64_t *ret_read_bytes, struct failure *source_failure)
{
	struct image_question question;
	struct image_answer answer = {.error = 0};
	struct iovec in[2] = {{&question, sizeof(question)}, {buffer, IMAGE_LINK_MOST_BYTES}};
	struct iovec out[2] = {{&answer, sizeof(answer)}, {buffer, 0}};
	struct msghdr message = {.msg_iov = in, .msg_iovlen = 2};
	struct fsreader_source source = overlay_source(overlay);
	ssize_t len_bytes = recvmsg(image_fd, &message, 0);

	if (len_bytes < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (len_bytes <= 0)
		return -EPIPE;
	if ((size_t)len_bytes < sizeof(question) || (message.msg_flags & MSG_TRUNC) != 0 ||
	    !question_is_valid(&question, (size_t)len_bytes, image_bytes))
		return -EBADMSG;
	if (question.operation == IMAGE_WRITE) {
		answer.error = overlay_write(overlay, buffer, question.len_bytes, question.off_bytes, source_failure);
	} else {
		answer.error =
			source.read(source.opaque, buffer, question.len_bytes, question.off_bytes, source_failure);
		out[1].iov_len = answer.error == 0 ? question.len_bytes : 0;
	}
	*ret_read_bytes = question.len_bytes;
	message = (struct msghdr){.msg_iov = out, .msg_iovlen = 2};
	return sendmsg(image_fd, &message, MSG_NOSIGNAL) < 0
		       ? -EPIPE
		       : 0; /* it waits for this with an empty socket: there is room */
}
