/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How somebody else's program, in a sandbox, gets at an image that isn't a file: preload/image_preload.c, loaded into
 * it by LD_PRELOAD, answers when the program opens IMAGE_LINK_PATH, and reads from it by asking us over a socket
 * (SOCK_SEQPACKET: a message each way).
 *
 *     question      struct image_question; behind it the bytes, if they are to be written
 *     answer        struct image_answer; behind it the bytes, if they were asked for and `error` is 0
 *
 * Two kinds of programs are served:
 *
 *     one that speaks FUSE        opens /dev/fuse, and gets IMAGE_LINK_TALK, over which we are the kernel (fuse_peer.c)
 *     a user-mode Linux           opens IMAGE_LINK_TALK_PATH as a disk: what is read at IMAGE_LINK_TALK_QUESTION_BYTES is
 *                                 a question to the program inside, what is written from its start on is the answer
 *                                 (kernel/kernel_process.c). Its memory is IMAGE_LINK_MEMORY, its initial file system
 *                                 IMAGE_LINK_INITRD
 */
#ifndef WHERRY_FSREADER_IMAGE_LINK_H
#define WHERRY_FSREADER_IMAGE_LINK_H

#include <stdint.h>

/* One that exists everywhere, for the program may look at it before it opens it; and no program of ours needs the device. */
#define IMAGE_LINK_PATH "/dev/full"
#define IMAGE_LINK_TALK_PATH "/dev/wherry-talk"
#define IMAGE_LINK_INITRD_PATH "/dev/wherry-initrd"

/* Descriptors of the program; the last three of a user-mode Linux only. */
enum {
	IMAGE_LINK_TALK = 3,   /* a socket */
	IMAGE_LINK_SOCKET = 4, /* for questions about the image */
	IMAGE_LINK_FILE =
		5, /* an empty file of the image's size, without pages: what the program sees by fstat() and lseek() */
	IMAGE_LINK_MEMORY = 6, /* a file of the size that its memory shall have */
	IMAGE_LINK_INITRD = 7,
	IMAGE_LINK_TALK_FILE = 8, /* an empty file of IMAGE_LINK_TALK_BYTES */
};

enum {
	IMAGE_LINK_MOST_BYTES = 128 << 10, /* of a question; a message has to fit into a socket's buffer */
	IMAGE_LINK_TALK_BYTES = 1 << 20,
	IMAGE_LINK_TALK_QUESTION_BYTES = 512 << 10, /* where nobody looks for partitions */
	IMAGE_LINK_TALK_MOST_BYTES =
		132 << 10, /* of a question or an answer in IMAGE_LINK_TALK; whole sectors of 512 bytes */
};

enum image_operation { IMAGE_READ, IMAGE_WRITE };

struct image_question {
	uint64_t off_bytes;
	uint32_t len_bytes; /* 1 … IMAGE_LINK_MOST_BYTES, within the image */
	uint32_t operation;
};

struct image_answer {
	int32_t error; /* 0 or a negative errno */
	uint32_t padding;
};

/* How an answer in IMAGE_LINK_TALK begins (ext_protocol.h's struct ext_answer does): when it is whole depends on it. */
struct talk_answer {
	uint32_t kind;
	int32_t error;
	uint32_t count;
	uint32_t payload_bytes;
	uint64_t position;
};

#endif
