/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ext_client.c and wherry-fsreader say to each other: one question, one answer, over a socket that keeps the
 * bounds of messages (SOCK_SEQPACKET). While a question is open, the worker may ask for bytes of the source, any number
 * of times; it is asked nothing else before it has answered.
 *
 *     client                               worker
 *     ext_question            ──────────>
 *                             <──────────  ext_answer {.kind = EXT_WANTS, .position, .count: bytes}
 *     ext_data, bytes         ──────────>                          …
 *                             <──────────  ext_answer {.kind = EXT_ANSWERS, …}, payload
 *
 * Both are made by the same build for the same machine: numbers and structures are as the compiler has them. The client
 * believes nothing of it; the worker believes the client, and nothing that it reads of the source.
 *
 *   question        ino  position    name   answer: count, position, payload
 *   EXT_OPEN        -    source size -      blocks that the journal had, -, -
 *   EXT_NODES       ino  how many    -      how many, -, ext_node of those of ino, ino + 1, … that are in use; that of
 * `ino` first, always EXT_LOOKUP      dir  -           name   1, -, ext_node EXT_LIST        dir  cookie      - how
 * many, where to go on (EXT_LIST_END: it's the end), for each an ext_entry, the name without NUL, padded to 8, then an
 * ext_node if has_node EXT_READLINK    ino  -           -      -, -, the target without NUL EXT_LISTXATTR   ino  - - -,
 * -, names, each with its NUL EXT_GETXATTR    ino  -           name   -, -, the value EXT_STATFS      -    - -      -,
 * -, struct fsreader_statfs EXT_MAP         ino  off_bytes   -      how many, up to where the map is whole (UINT64_MAX:
 * to the end), ext_piece each; what is in no piece is a hole EXT_INLINE      ino  -           -      -, -, the file's
 * bytes
 *
 * A question that failed has a negative errno in `error`, and a message as payload.
 */
#ifndef WHERRY_FSREADER_EXT_PROTOCOL_H
#define WHERRY_FSREADER_EXT_PROTOCOL_H

#include "fsreader/fsreader.h"

enum {
	EXT_SOCKET_FD = 3,
	EXT_PAYLOAD_MOST_BYTES = 128 * 1024,
	EXT_READ_MOST_BYTES = 64 * 1024,  /* of the source, at once */
	EXT_XATTR_MOST_BYTES = 64 * 1024, /* of names, and of one value: what the kernel has as limits */
	EXT_TARGET_MOST_BYTES = 4095,
	EXT_NODE_PIECES = 4, /* what an inode has room for */
	EXT_NODES_MOST = 256,
};

#define EXT_LIST_END UINT64_MAX

enum ext_question_kind {
	EXT_OPEN,
	EXT_NODES,
	EXT_LOOKUP,
	EXT_LIST,
	EXT_READLINK,
	EXT_LISTXATTR,
	EXT_GETXATTR,
	EXT_STATFS,
	EXT_MAP,
	EXT_INLINE,
	EXT_READ, /* kernel/kernel_protocol.h */
	EXT_SEEK,
	EXT_QUESTIONS,
};

struct ext_question {
	uint32_t kind;
	uint32_t name_bytes;
	uint64_t ino;
	uint64_t position;
	uint64_t count; /* of EXT_READ, EXT_SEEK */
	char name[FSREADER_NAME_MOST_BYTES + 1];
};

enum ext_answer_kind { EXT_WANTS, EXT_ANSWERS };

struct ext_answer {
	uint32_t kind;
	int32_t error;
	uint32_t count;
	uint32_t payload_bytes;
	uint64_t position;
};

struct ext_data {
	int32_t error; /* then no bytes follow */
	uint32_t len_bytes;
};

enum ext_piece_kind {
	EXT_PIECE_DATA,
	EXT_PIECE_ESCAPED, /* a block as a journal keeps one that begins with the journal's own magic number: that is
			      zero there */
	EXT_PIECE_ZEROS,   /* allocated, never written */
	EXT_PIECE_KINDS,
};

/* In bytes of the file, and of the source. Whole blocks; the last may reach behind the file's end. */
struct ext_piece {
	uint64_t off_bytes, len_bytes;
	uint64_t place_bytes;
	uint32_t kind;
	uint32_t unused;
};

enum {
	EXT_NODE_MAPPED = 1,	 /* `pieces` are all that the file has */
	EXT_NODE_INLINE = 2,	 /* content by EXT_INLINE */
	EXT_NODE_ENCRYPTED = 4,	 /* content can't be had */
	EXT_NODE_HAS_XATTRS = 8, /* there may be some; without this there are none */
	EXT_NODE_BY_READING = 16, /* content by EXT_READ */
	EXT_NODE_UNSEEN = 32, /* nobody has looked yet where content lies: EXT_NODES does */
};

struct ext_node {
	struct fsreader_attr attr;
	uint32_t flags;
	uint32_t piece_count;
	struct ext_piece pieces[EXT_NODE_PIECES];
};

struct ext_entry {
	uint64_t cookie;
	uint32_t name_bytes;
	uint32_t has_node; /* 0: its inode can't be read */
};

/* First four bytes of a block that EXT_PIECE_ESCAPED stands for. */
static const uint8_t ext_journal_magic[4] = {0xc0, 0x3b, 0x39, 0x98};

#endif
