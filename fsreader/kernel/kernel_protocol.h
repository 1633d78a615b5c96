/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is added to ext_protocol.h where the worker is a user-mode Linux: questions for content that has no place on the
 * device of its own (compressed, inline, of file systems that don't tell), and how messages go through a block device.
 *
 *   question        ino  position     count     answer: position, payload
 *   EXT_OPEN        -    -            -         (name: type, perhaps a space and options, as mount(2) has them)
 *   EXT_READ        ino  off_bytes    length    -, the bytes, as far as there are any
 *   EXT_SEEK        ino  off_bytes    hole? 1   where the next data, or hole, begins, -; -ENXIO as lseek(2)
 */
#ifndef WHERRY_FSREADER_KERNEL_KERNEL_PROTOCOL_H
#define WHERRY_FSREADER_KERNEL_KERNEL_PROTOCOL_H

#include "fsreader/ext_protocol.h"

enum {
	KERNEL_SECTOR_BYTES = 512,
	KERNEL_QUESTION_BYTES = 512,
	KERNEL_ANSWER_MOST_BYTES = 132 << 10,
};

_Static_assert(sizeof(struct ext_question) <= KERNEL_QUESTION_BYTES, "a question is one sector");
_Static_assert(sizeof(struct ext_answer) + EXT_PAYLOAD_MOST_BYTES + KERNEL_SECTOR_BYTES <= KERNEL_ANSWER_MOST_BYTES,
	       "an answer fits");

#endif
