/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader of ext2/3/4 that has been taken over, for test_fsreader.c: stands in for wherry-fsreader (WHERRY_FSREADER),
 * and answers as a hostile one might. What it does is the first byte of the source, enum lie. It has what it needs of
 * the truth: a root folder, and one file, inode 12.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fsreader/ext_protocol.h"
#include "fsreader_liar.h"

static uint8_t payload[EXT_PAYLOAD_MOST_BYTES];
static size_t payload_bytes;

static void send_message(const struct ext_answer *answer, size_t len_bytes)
{
	struct ext_answer head = *answer;
	struct iovec parts[2] = {{.iov_base = &head, .iov_len = sizeof(head)},
				 {.iov_base = payload, .iov_len = len_bytes}};
	const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	if (sendmsg(EXT_SOCKET_FD, &message, MSG_NOSIGNAL) < 0)
		_exit(0);
}

static void put(const void *at, size_t len_bytes)
{
	memcpy(payload + payload_bytes, at, len_bytes);
	payload_bytes += len_bytes;
}

static struct ext_node make_node(enum lie lie, uint64_t ino)
{
	struct ext_node node = {
		.attr = {.ino = ino, .nlink = 1, .mode = ino == FSREADER_ROOT ? S_IFDIR | 0755 : S_IFREG | 0644},
		.flags = EXT_NODE_MAPPED | EXT_NODE_HAS_XATTRS};

	node.attr.size_bytes = ino == FSREADER_ROOT ? 0 : 8192;
	node.piece_count = 1;
	node.pieces[0] = (struct ext_piece){.len_bytes = 8192, .place_bytes = 4096};
	if (lie == LIE_SIZE)
		node.attr.size_bytes = UINT64_MAX;
	if (lie == LIE_MODE)
		node.attr.mode = 0170000;
	if (lie == LIE_TIME)
		node.attr.mtime.tv_nsec = 2000000000;
	if (lie == LIE_NUMBER)
		node.attr.ino = 0;
	if (lie == LIE_PLACE)
		node.pieces[0].place_bytes = (uint64_t)1 << 40;
	if (lie == LIE_PLACE_OVERFLOW)
		node.pieces[0] = (struct ext_piece){
			.off_bytes = UINT64_MAX - 10, .len_bytes = 100, .place_bytes = UINT64_MAX - 50};
	if (lie == LIE_PIECES)
		node.piece_count = 1000000;
	if (lie == LIE_MAP || lie == LIE_MAP_ENDLESS || lie == LIE_INLINE) {
		node.flags = lie == LIE_INLINE ? EXT_NODE_INLINE : 0;
		node.piece_count = 0;
	}
	return node;
}

static void put_entry(enum lie lie, uint64_t cookie, const char *name, size_t name_bytes)
{
	static const char padding[8] = {0};
	struct ext_entry entry = {.cookie = cookie, .name_bytes = (uint32_t)name_bytes, .has_node = 1};
	struct ext_node node = make_node(lie, 12);

	put(&entry, sizeof(entry));
	put(name, name_bytes);
	put(padding, (8 - name_bytes % 8) % 8);
	put(&node, sizeof(node));
}

static void answer_list(enum lie lie, const struct ext_question *question, struct ext_answer *answer)
{
	static const char *const names[] = {[LIE_NAME_SLASH] = "../etc", [LIE_NAME_DOT] = ".", [LIE_NAME_DOTS] = ".."};
	const char *name = lie <= LIE_NAME_DOTS && names[lie] != NULL ? names[lie] : "file";

	answer->count = 2;
	answer->position = EXT_LIST_END;
	if (lie == LIE_NAME_NUL)
		put_entry(lie, 10, "a\0b", 3);
	else
		put_entry(lie, question->position + 10, name, strlen(name));
	put_entry(lie, lie == LIE_COOKIE ? question->position + 10 : question->position + 20, "other", 5);
	if (lie == LIE_LIST_ENDLESS)
		answer->position = question->position + 20;
	if (lie == LIE_LIST_STANDS)
		answer->position = question->position;
	if (lie == LIE_LIST_CUT)
		payload_bytes -= 100;
	if (lie == LIE_NAME_LONG)
		((struct ext_entry *)(void *)payload)->name_bytes = 100000;
}

static void answer_map(enum lie lie, const struct ext_question *question, struct ext_answer *answer)
{
	struct ext_piece pieces[2] = {{.len_bytes = 4096, .place_bytes = 4096},
				      {.off_bytes = 4096, .len_bytes = 4096, .place_bytes = 8192}};

	answer->count = 2;
	answer->position = UINT64_MAX;
	if (lie == LIE_MAP)
		pieces[1].off_bytes = 0;
	if (lie == LIE_MAP_ENDLESS)
		answer->position = question->position;
	put(pieces, sizeof(pieces));
}

/* Wants bytes, and gets them or not. */
static void want(uint64_t off_bytes, uint32_t len_bytes)
{
	static uint8_t data[2 * EXT_READ_MOST_BYTES];

	send_message(&(struct ext_answer){.kind = EXT_WANTS, .position = off_bytes, .count = len_bytes}, 0);
	if (recv(EXT_SOCKET_FD, data, sizeof(data), 0) <= 0)
		_exit(0);
}

static void act(enum lie lie)
{
	switch (lie) {
	case LIE_CRASH:
		(void)raise(SIGSEGV);
		break;
	case LIE_EXIT:
		_exit(7);
	case LIE_LOOP:
		for (;;)
			;
	case LIE_SLEEP:
		for (;;)
			(void)pause();
	case LIE_WANT_BEHIND:
		want((uint64_t)1 << 50, 4096);
		break;
	case LIE_WANT_OVERFLOW:
		want(UINT64_MAX - 100, 4096);
		break;
	case LIE_WANT_MUCH:
		want(0, 2 * EXT_READ_MOST_BYTES);
		break;
	case LIE_WANT_NOTHING:
		want(0, 0);
		break;
	case LIE_WANT_ENDLESS:
		for (;;)
			want(0, EXT_READ_MOST_BYTES);
	default:
		break;
	}
}

static void answer_question(enum lie lie, const struct ext_question *question)
{
	struct ext_answer answer = {.kind = EXT_ANSWERS};
	struct ext_node node;

	payload_bytes = 0;
	if (question->kind == EXT_NODES || question->kind == EXT_LOOKUP) {
		uint64_t ino = question->kind == EXT_NODES ? question->ino : 12;

		node = make_node(lie == LIE_OTHER_FILE || ino != FSREADER_ROOT ? lie : LIE_NONE,
				 lie == LIE_OTHER_FILE ? ino + 1 : ino);
		put(&node, sizeof(node));
		answer.count = lie == LIE_COUNT && ino != FSREADER_ROOT ? 77 : 1;
	} else if (question->kind == EXT_LIST) {
		answer_list(lie, question, &answer);
	} else if (question->kind == EXT_MAP) {
		answer_map(lie, question, &answer);
	} else if (question->kind == EXT_READLINK) {
		put(lie == LIE_LINK_NUL ? "a\0b" : "abc", 3);
		if (lie == LIE_LINK_LONG)
			payload_bytes = 100000;
	} else if (question->kind == EXT_LISTXATTR) {
		put("user.a\0user.b", lie == LIE_XATTR_CUT ? 13 : 14);
		if (lie == LIE_XATTR_LONG)
			payload_bytes = 100000;
	} else if (question->kind == EXT_GETXATTR) {
		payload_bytes = lie == LIE_XATTR_LONG ? 100000 : 3;
	} else if (question->kind == EXT_STATFS) {
		payload_bytes = 3;
	}
	answer.payload_bytes = (uint32_t)payload_bytes;
	if (lie == LIE_ERROR)
		answer.error = 5;
	if (lie == LIE_ERROR_ODD)
		answer.error = -512;
	if (lie == LIE_KIND)
		answer.kind = 99;
	if (lie == LIE_LENGTH)
		answer.payload_bytes += 10;
	send_message(&answer, payload_bytes);
}

int main(void)
{
	struct ext_question question;
	enum lie lie = LIE_NONE;

	while (recv(EXT_SOCKET_FD, &question, sizeof(question), 0) == (ssize_t)sizeof(question)) {
		if (question.kind == EXT_OPEN) {
			struct {
				struct ext_data head;
				uint8_t byte;
			} data;

			send_message(&(struct ext_answer){.kind = EXT_WANTS, .count = 1}, 0);
			if (recv(EXT_SOCKET_FD, &data, sizeof(data), 0) <= 0)
				return 0;
			lie = (enum lie)((uint8_t *)&data)[sizeof(struct ext_data)];
			send_message(&(struct ext_answer){.kind = EXT_ANSWERS}, 0);
			continue;
		}
		act(lie);
		answer_question(lie, &question);
	}
	return 0;
}
