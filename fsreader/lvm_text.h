/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text that LVM2 keeps its metadata in, as a tree. For the worker (worker/lvm_main.c): the text comes from a stranger's disk.
 *
 *     file     = { entry }
 *     entry    = key "=" value | key "{" { entry } "}"
 *     value    = scalar | "[" [ scalar { "," scalar } ] "]"
 *     scalar   = number | '"' text, \" and \\ within '"' | "'" text "'" | a bare word
 *     comments = from "#" to the end of the line
 *
 * All of it lies in one arena, which lvm_text_free() gives back. Limits: LVM_TEXT_MOST_BYTES of text, LVM_TEXT_MOST_DEPTH of nesting, and
 * what the text can hold of entries, each of which takes a constant room.
 */
#ifndef WHERRY_FSREADER_LVM_TEXT_H
#define WHERRY_FSREADER_LVM_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"

enum { LVM_TEXT_MOST_BYTES = 32 << 20, LVM_TEXT_MOST_DEPTH = 16 };

struct lvm_value {
	const char *text; /* NUL-terminated; of a number too */
	bool is_number;
	int64_t number;
	struct lvm_value *next;
};

struct lvm_node {
	const char *key;
	bool is_section;
	struct lvm_node *children; /* of a section, in the order of the text */
	struct lvm_value *values;  /* else; NULL: an empty list */
	struct lvm_node *next;
};

struct lvm_text; /* the arena */

/* -EINVAL: not of this grammar, and where; -E2BIG: a limit; -ENOMEM. */
int lvm_text_parse(const char *text, size_t len_bytes, struct lvm_text **ret_text, struct failure *failure);
void lvm_text_free(struct lvm_text *text); /* NULL is fine */
const struct lvm_node *lvm_text_first(const struct lvm_text *text);

/* Of the list that begins with `first`: NULL, false, when there is none of that name and kind. */
const struct lvm_node *lvm_node_section(const struct lvm_node *first, const char *key);
const struct lvm_node *lvm_node_list(const struct lvm_node *first, const char *key); /* a value, or a list of them */
const char *lvm_node_string(const struct lvm_node *first, const char *key);
bool lvm_node_number(const struct lvm_node *first, const char *key, uint64_t *ret_number); /* false: negative, too */
bool lvm_node_lists(const struct lvm_node *first, const char *key, const char *word);	   /* is `word` in the list? */

#endif
