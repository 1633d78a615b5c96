/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions come, answers go (ext_protocol.h), until the client is gone.
 */
#include <errno.h>
#include <et/com_err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "fsreader/worker/ext_worker.h"

enum { MAP_PIECES = 2048 };

_Static_assert(MAP_PIECES * sizeof(struct ext_piece) <= EXT_PAYLOAD_MOST_BYTES, "a map fits an answer");
_Static_assert(EXT_NODES_MOST * sizeof(struct ext_node) <= EXT_PAYLOAD_MOST_BYTES, "nodes fit an answer");

void ext_out_bytes(struct ext_out *out, const void *at, size_t len_bytes)
{
	if (len_bytes > EXT_PAYLOAD_MOST_BYTES - out->len_bytes)
		abort(); /* whoever comes here has not looked */
	memcpy(out->data + out->len_bytes, at, len_bytes);
	out->len_bytes += len_bytes;
}

int ext_fail(struct failure *failure, errcode_t problem, const char *format, ...)
{
	char what[FAILURE_MESSAGE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(what, sizeof(what), format, arguments); /* cut off when too long */
	va_end(arguments);
	return fail(failure, problem == EXT2_ET_NO_MEMORY || problem == ENOMEM ? -ENOMEM : -EIO, "%s: %s", what,
		    error_message(problem));
}

/* ----------------------------------------------------------------- answers */

static int answer_open(struct ext_worker *worker, int socket, const struct ext_question *question,
		       struct ext_answer *answer, struct failure *failure)
{
	int error;

	if (worker->io != NULL)
		return fail(failure, -EINVAL, "opened twice");
	worker->io = ext_io_make(socket, question->position);
	if (worker->io == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	error = ext_worker_open(worker, failure);
	answer->count = worker->replayed_blocks;
	return error;
}

/* The first one must be there; of the others those that are. */
static int answer_nodes(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
			struct ext_answer *answer, struct failure *failure)
{
	uint64_t count = question->position < EXT_NODES_MOST ? question->position : EXT_NODES_MOST;
	struct ext_node node;
	int error = ext_inode_read_number(worker, question->ino, failure);

	if (error == 0)
		error = ext_inode_fill_node(worker, &worker->inode, &node, failure);
	if (error < 0)
		return error;
	ext_out_bytes(out, &node, sizeof(node));
	answer->count = 1;
	for (uint64_t i = 1; i < count && question->ino > EXT2_ROOT_INO; i++) {
		if (ext_inode_read_number(worker, question->ino + i, NULL) < 0 ||
		    ext_inode_fill_node(worker, &worker->inode, &node, NULL) < 0)
			continue;
		ext_out_bytes(out, &node, sizeof(node));
		answer->count++;
	}
	return 0;
}

static int answer_lookup(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
			 struct ext_answer *answer, struct failure *failure)
{
	struct ext_node node;
	ext2_ino_t ino = 0;
	int error = ext_dir_lookup(worker, question->ino, question->name, question->name_bytes, &ino, failure);

	if (error == 0)
		error = ext_inode_read(worker, ino, &worker->inode, failure);
	if (error == 0)
		error = ext_inode_fill_node(worker, &worker->inode, &node, failure);
	if (error < 0)
		return error;
	ext_out_bytes(out, &node, sizeof(node));
	answer->count = 1;
	return 0;
}

static int answer_readlink(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
			   struct failure *failure)
{
	char target[EXT_TARGET_MOST_BYTES + 1];
	size_t len_bytes;
	int error = ext_inode_read_number(worker, question->ino, failure);

	if (error == 0 && !S_ISLNK(worker->inode.raw->i_mode))
		return fail(failure, -EINVAL, "inode %u is no symbolic link", worker->inode.ino);
	if (error == 0)
		error = ext_value_read_link(worker, &worker->inode, target, &len_bytes, failure);
	if (error == 0)
		ext_out_bytes(out, target, len_bytes);
	return error;
}

static int answer_map(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
		      struct ext_answer *answer, struct failure *failure)
{
	uint64_t block_bytes = worker->fs->blocksize, end_block;
	AUTO_FREE struct ext_piece *pieces = calloc(MAP_PIECES, sizeof(*pieces));
	size_t count;
	int error = ext_inode_read_number(worker, question->ino, failure);

	if (pieces == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	if (error == 0)
		error = ext_map_read(worker, &worker->inode, question->position / block_bytes, EXT_MAP_FOR_CLIENT,
				     pieces, MAP_PIECES, &count, &end_block, failure);
	if (error < 0)
		return error;
	ext_out_bytes(out, pieces, count * sizeof(*pieces));
	answer->count = (uint32_t)count;
	answer->position = end_block > UINT64_MAX / block_bytes ? UINT64_MAX : end_block * block_bytes;
	return 0;
}

static int answer_inline(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
			 struct failure *failure)
{
	AUTO_FREE uint8_t *data = NULL;
	size_t len_bytes;
	uint64_t size_bytes;
	int error = ext_inode_read_number(worker, question->ino, failure);

	if (error == 0)
		error = ext_value_inline(worker, &worker->inode, &data, &len_bytes, failure);
	if (error < 0)
		return error;
	size_bytes = ext_inode_size_bytes(worker, &worker->inode);
	ext_out_bytes(out, data, size_bytes < len_bytes ? (size_t)size_bytes : len_bytes);
	return 0;
}

static int answer_statfs(struct ext_worker *worker, struct ext_out *out, struct failure *failure)
{
	struct fsreader_statfs statfs;
	int error = ext_value_statfs(worker, &statfs, failure);

	if (error == 0)
		ext_out_bytes(out, &statfs, sizeof(statfs));
	return error;
}

static int answer_xattr(struct ext_worker *worker, const struct ext_question *question, struct ext_out *out,
			struct failure *failure)
{
	int error = ext_inode_read_number(worker, question->ino, failure);

	if (error < 0)
		return error;
	return question->kind == EXT_LISTXATTR
		       ? ext_value_list_xattrs(worker, &worker->inode, out, failure)
		       : ext_value_get_xattr(worker, &worker->inode, question->name, out, failure);
}

static int answer_question(struct ext_worker *worker, int socket, const struct ext_question *question,
			   struct ext_out *out, struct ext_answer *answer, struct failure *failure)
{
	if (question->kind == EXT_OPEN)
		return answer_open(worker, socket, question, answer, failure);
	if (worker->fs == NULL)
		return fail(failure, -EINVAL, "nothing is open");
	switch ((enum ext_question_kind)question->kind) {
	case EXT_NODES:
		return answer_nodes(worker, question, out, answer, failure);
	case EXT_LOOKUP:
		return answer_lookup(worker, question, out, answer, failure);
	case EXT_LIST:
		return ext_dir_list(worker, question->ino, question->position, out, answer, failure);
	case EXT_READLINK:
		return answer_readlink(worker, question, out, failure);
	case EXT_LISTXATTR:
	case EXT_GETXATTR:
		return answer_xattr(worker, question, out, failure);
	case EXT_STATFS:
		return answer_statfs(worker, out, failure);
	case EXT_MAP:
		return answer_map(worker, question, out, answer, failure);
	case EXT_INLINE:
		return answer_inline(worker, question, out, failure);
	case EXT_OPEN:
	case EXT_READ:
	case EXT_SEEK:
	case EXT_QUESTIONS:
		break;
	}
	return fail(failure, -EINVAL, "no such question");
}

/* -------------------------------------------------------------------- talk */

static bool receive_question(int socket, struct ext_question *ret_question)
{
	ssize_t len_bytes = recv(socket, ret_question, sizeof(*ret_question), 0);

	if (len_bytes != (ssize_t)sizeof(*ret_question))
		return false;
	ret_question->name[sizeof(ret_question->name) - 1] = '\0';
	ret_question->name_bytes = (uint32_t)strlen(ret_question->name);
	return true;
}

static bool send_answer(int socket, const struct ext_answer *answer, void *payload)
{
	struct ext_answer head = *answer;
	struct iovec parts[2] = {{.iov_base = &head, .iov_len = sizeof(head)},
				 {.iov_base = payload, .iov_len = head.payload_bytes}};
	const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)(sizeof(head) + head.payload_bytes);
}

int ext_main(int socket)
{
	static uint8_t payload[EXT_PAYLOAD_MOST_BYTES];
	static struct ext_worker worker;
	struct ext_question question;

	initialize_ext2_error_table(); /* texts of libext2fs's errors */
	while (receive_question(socket, &question)) {
		struct ext_out out = {.data = payload};
		struct ext_answer answer = {.kind = EXT_ANSWERS};
		struct failure failure = {.code = 0};
		bool is_sent;

		answer.error = answer_question(&worker, socket, &question, &out, &answer, &failure);
		if (answer.error < 0) {
			answer.count = 0;
			answer.payload_bytes = (uint32_t)strlen(failure.message);
			is_sent = send_answer(socket, &answer, failure.message);
		} else {
			answer.payload_bytes = (uint32_t)out.len_bytes;
			is_sent = send_answer(socket, &answer, payload);
		}
		if (!is_sent)
			break;
	}
	return 0;
}
