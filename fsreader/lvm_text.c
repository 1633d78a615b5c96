/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scanner that knows one character ahead, and a descent with a depth of its own, so that no text can exhaust the stack. The scanner
 * never looks behind the end that it was given: the text need not end in a NUL, and one within ends it, as LVM has it.
 */
#include "fsreader/lvm_text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { BLOCK_BYTES = 256 << 10 };

struct block {
	struct block *next;
	size_t used_bytes, capacity_bytes;
	_Alignas(max_align_t) unsigned char data[];
};

struct lvm_text {
	struct block *blocks;
	struct lvm_node *first;
};

struct scanner {
	const char *at, *end;
	unsigned line;
	struct lvm_text *text;
	struct failure *failure;
};

/* ---- the arena ---- */

static void *take(struct lvm_text *text, size_t len_bytes)
{
	struct block *block = text->blocks;
	size_t rounded_bytes = (len_bytes + _Alignof(max_align_t) - 1) & ~(_Alignof(max_align_t) - 1);
	void *taken;

	if (block == NULL || block->capacity_bytes - block->used_bytes < rounded_bytes) {
		size_t capacity_bytes = rounded_bytes > BLOCK_BYTES ? rounded_bytes : BLOCK_BYTES;

		block = malloc(sizeof(*block) + capacity_bytes);
		if (block == NULL)
			return NULL;
		*block = (struct block){.next = text->blocks, .capacity_bytes = capacity_bytes};
		text->blocks = block;
	}
	taken = block->data + block->used_bytes;
	block->used_bytes += rounded_bytes;
	memset(taken, 0, rounded_bytes);
	return taken;
}

void lvm_text_free(struct lvm_text *text)
{
	if (text == NULL)
		return;
	while (text->blocks != NULL) {
		struct block *block = text->blocks;

		text->blocks = block->next;
		free(block);
	}
	free(text);
}

const struct lvm_node *lvm_text_first(const struct lvm_text *text)
{
	return text->first;
}

static int fail_memory(struct scanner *scanner)
{
	return fail(scanner->failure, -ENOMEM, "LVM metadata: out of memory");
}

static int fail_here(struct scanner *scanner, const char *expected)
{
	return fail(scanner->failure, -EINVAL, "LVM metadata: line %u: expected %s", scanner->line, expected);
}

/* ---- the scanner ---- */

static bool is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next character that means something; 0 at the end. */
static char peek(struct scanner *scanner)
{
	bool in_comment = false;

	for (; scanner->at < scanner->end && *scanner->at != '\0'; scanner->at++) {
		char c = *scanner->at;

		if (c == '\n') {
			scanner->line++;
			in_comment = false;
		} else if (c == '#') {
			in_comment = true;
		} else if (!in_comment && !is_space(c)) {
			return c;
		}
	}
	return '\0';
}

static bool accept(struct scanner *scanner, char c)
{
	if (peek(scanner) != c)
		return false;
	scanner->at++;
	return true;
}

/* A key, a number, or a bare word: up to what can't be part of one. */
static size_t word_length(const struct scanner *scanner)
{
	const char *at = scanner->at;

	while (at < scanner->end && *at != '\0' && !is_space(*at) && strchr("#={}[],\"'", *at) == NULL)
		at++;
	return (size_t)(at - scanner->at);
}

static char *copy_word(struct scanner *scanner, size_t len_bytes)
{
	char *copy = take(scanner->text, len_bytes + 1);

	if (copy != NULL)
		memcpy(copy, scanner->at, len_bytes);
	scanner->at += len_bytes;
	return copy;
}

static int scan_quoted(struct scanner *scanner, const char **ret_text)
{
	char quote = *scanner->at++;
	const char *close = scanner->at;
	size_t len_bytes = 0;
	char *copy;

	while (close < scanner->end && *close != '\0' && *close != quote)
		close += *close == '\\' && quote == '"' && close + 1 < scanner->end ? 2 : 1;
	if (close >= scanner->end || *close != quote)
		return fail_here(scanner, "the end of a text in quotes");
	copy = take(scanner->text, (size_t)(close - scanner->at) + 1);
	if (copy == NULL)
		return fail_memory(scanner);
	for (; scanner->at < close; scanner->at++) {
		if (*scanner->at == '\\' && quote == '"')
			scanner->at++;
		scanner->line += *scanner->at == '\n';
		copy[len_bytes++] = *scanner->at;
	}
	scanner->at = close + 1;
	*ret_text = copy;
	return 0;
}

/* Decimal, as LVM writes them. What doesn't fit is a word, and no number to anybody who asks for one. */
static bool read_number(const char *text, int64_t *ret_number)
{
	char *end;
	long long number;

	if (*text != '-' && *text != '+' && (*text < '0' || *text > '9'))
		return false;
	errno = 0;
	number = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0')
		return false;
	*ret_number = number;
	return true;
}

static int scan_scalar(struct scanner *scanner, struct lvm_value **ret_value)
{
	char c = peek(scanner);
	struct lvm_value *value = take(scanner->text, sizeof(*value));
	size_t len_bytes;

	if (value == NULL)
		return fail_memory(scanner);
	*ret_value = value;
	if (c == '"' || c == '\'')
		return scan_quoted(scanner, &value->text);
	len_bytes = word_length(scanner);
	if (len_bytes == 0)
		return fail_here(scanner, "a value");
	value->text = copy_word(scanner, len_bytes);
	if (value->text == NULL)
		return fail_memory(scanner);
	value->is_number = read_number(value->text, &value->number);
	return 0;
}

static int scan_list(struct scanner *scanner, struct lvm_value **tail)
{
	while (!accept(scanner, ']')) {
		int error = scan_scalar(scanner, tail);

		if (error < 0)
			return error;
		tail = &(*tail)->next;
		if (!accept(scanner, ',') && peek(scanner) != ']')
			return fail_here(scanner, "',' or ']'");
	}
	return 0;
}

/* ---- the grammar ---- */

static int scan_key(struct scanner *scanner, struct lvm_node **ret_node)
{
	struct lvm_node *node;
	size_t len_bytes;

	len_bytes = peek(scanner) == '\0' ? 0 : word_length(scanner);
	if (len_bytes == 0)
		return fail_here(scanner, "a key");
	node = take(scanner->text, sizeof(*node));
	if (node == NULL || (node->key = copy_word(scanner, len_bytes)) == NULL)
		return fail_memory(scanner);
	*ret_node = node;
	return 0;
}

/* The tails of the lists of children that are open, the innermost last: the stack of the descent. */
struct descent {
	struct lvm_node **tails[LVM_TEXT_MOST_DEPTH];
	unsigned depth;
};

static int scan_entry(struct scanner *scanner, struct descent *descent)
{
	struct lvm_node *node = NULL;
	int error = scan_key(scanner, &node);

	if (error < 0)
		return error;
	*descent->tails[descent->depth] = node;
	descent->tails[descent->depth] = &node->next;
	if (accept(scanner, '{')) {
		node->is_section = true;
		if (++descent->depth == LVM_TEXT_MOST_DEPTH)
			return fail(scanner->failure, -E2BIG, "LVM metadata: line %u: nested too deeply",
				    scanner->line);
		descent->tails[descent->depth] = &node->children;
		return 0;
	}
	if (!accept(scanner, '='))
		return fail_here(scanner, "'=' or '{'");
	if (accept(scanner, '['))
		return scan_list(scanner, &node->values);
	return scan_scalar(scanner, &node->values);
}

static int scan_all(struct scanner *scanner)
{
	struct descent descent = {.tails = {&scanner->text->first}};

	for (;;) {
		char c = peek(scanner);
		int error;

		if (c == '\0' && descent.depth == 0)
			return 0;
		if (c == '}' && descent.depth > 0) {
			scanner->at++;
			descent.depth--;
			continue;
		}
		error = scan_entry(scanner, &descent);
		if (error < 0)
			return error;
	}
}

int lvm_text_parse(const char *text, size_t len_bytes, struct lvm_text **ret_text, struct failure *failure)
{
	struct scanner scanner = {.at = text, .end = text + len_bytes, .line = 1, .failure = failure};
	int error;

	if (len_bytes > LVM_TEXT_MOST_BYTES)
		return fail(failure, -E2BIG, "LVM metadata: %zu bytes; more than %d are not believed", len_bytes,
			    LVM_TEXT_MOST_BYTES);
	scanner.text = calloc(1, sizeof(*scanner.text));
	if (scanner.text == NULL)
		return fail(failure, -ENOMEM, "LVM metadata: out of memory");
	error = scan_all(&scanner);
	if (error < 0) {
		lvm_text_free(scanner.text);
		return error;
	}
	*ret_text = scanner.text;
	return 0;
}

/* ---- looking things up ---- */

static const struct lvm_node *find(const struct lvm_node *first, const char *key, bool is_section)
{
	for (const struct lvm_node *node = first; node != NULL; node = node->next)
		if (node->is_section == is_section && strcmp(node->key, key) == 0)
			return node;
	return NULL;
}

const struct lvm_node *lvm_node_section(const struct lvm_node *first, const char *key)
{
	return find(first, key, true);
}

const struct lvm_node *lvm_node_list(const struct lvm_node *first, const char *key)
{
	return find(first, key, false);
}

const char *lvm_node_string(const struct lvm_node *first, const char *key)
{
	const struct lvm_node *node = find(first, key, false);

	return node == NULL || node->values == NULL ? NULL : node->values->text;
}

bool lvm_node_number(const struct lvm_node *first, const char *key, uint64_t *ret_number)
{
	const struct lvm_node *node = find(first, key, false);

	if (node == NULL || node->values == NULL || !node->values->is_number || node->values->number < 0)
		return false;
	*ret_number = (uint64_t)node->values->number;
	return true;
}

bool lvm_node_lists(const struct lvm_node *first, const char *key, const char *word)
{
	const struct lvm_node *node = find(first, key, false);

	for (const struct lvm_value *value = node == NULL ? NULL : node->values; value != NULL; value = value->next)
		if (strcmp(value->text, word) == 0)
			return true;
	return false;
}
