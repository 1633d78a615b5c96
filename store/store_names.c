/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of disks, references to images, and what to say about those that are
 * wrong.
 *
 * Both come from people's keyboards. Refusing is half of the job; the other half
 * is a line from which the next attempt succeeds. So a refused name is answered
 * with the rule that it broke and, where one can be made of it, with a name that
 * would do; a name that nothing has, with the nearest one there is.
 *
 * A name goes into paths, export names, log records and messages, and must mean
 * the same in all of them: few characters, none of them special anywhere, one
 * case. '@' and '/' divide references. Numbers are written in one way only (no
 * sign, no leading zero), so that two references are the same if and only if
 * their texts are.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "store/store_ops.h"

#define NAME_RULE "a-z, 0-9, '.', '_' and '-'"

/* A text from outside as it goes into a message: what follows it there must not fall off the end. */
enum { SHOWN_MOST_BYTES = 80 };
struct shown {
	char text[SHOWN_MOST_BYTES + sizeof("...")];
};

static struct shown show(const char *text, size_t len_bytes)
{
	struct shown shown = {.text = ""};
	size_t keep_bytes = len_bytes;

	if (len_bytes > SHOWN_MOST_BYTES) {
		keep_bytes = SHOWN_MOST_BYTES;
		while (keep_bytes > 0 && ((unsigned char)text[keep_bytes] & 0xc0) == 0x80)
			keep_bytes--; /* not inside of a UTF-8 character */
	}
	memcpy(shown.text, text, keep_bytes);
	if (keep_bytes < len_bytes)
		memcpy(shown.text + keep_bytes, "...", sizeof("..."));
	return shown;
}

/* ctype.h asks the locale; a name means the same in every locale. */
static bool is_digit(char byte)
{
	return byte >= '0' && byte <= '9';
}

static bool is_upper(char byte)
{
	return byte >= 'A' && byte <= 'Z';
}

static char to_lower(char byte)
{
	if (is_upper(byte))
		return (char)(byte | 0x20);
	return byte;
}

static bool may_be_first(char byte)
{
	return is_digit(byte) || (byte >= 'a' && byte <= 'z');
}

static bool may_follow(char byte)
{
	return may_be_first(byte) || byte == '.' || byte == '_' || byte == '-';
}

/*
 * Makes a name of what was meant to be one: in lower case, everything else that is not allowed as one '-' between two
 * pieces. What follows an '@' was meant as the number of an image. Returns false when nothing is left.
 */
static bool propose_name(const char *wanted, size_t len_bytes, char ret_name[STORE_NAME_MOST_BYTES + 1])
{
	size_t count = 0;
	bool gap = false;

	for (size_t i = 0; i < len_bytes && wanted[i] != '@'; i++) {
		char byte = to_lower(wanted[i]);

		if (!(count == 0 ? may_be_first(byte) : may_follow(byte))) {
			gap = count > 0;
			continue;
		}
		if (gap && byte != '-' && count < STORE_NAME_MOST_BYTES)
			ret_name[count++] = '-';
		gap = false;
		if (count == STORE_NAME_MOST_BYTES)
			break;
		ret_name[count++] = byte;
	}
	while (count > 0 && ret_name[count - 1] == '-')
		count--;
	ret_name[count] = '\0';
	return count > 0;
}

static int refuse_name(const char *name, size_t len_bytes, const char *why, struct failure *failure)
{
	char proposal[STORE_NAME_MOST_BYTES + 1];

	if (propose_name(name, len_bytes, proposal))
		return fail(failure, -EINVAL, "%s: %s; try '%s'", show(name, len_bytes).text, why, proposal);
	return fail(failure, -EINVAL, "%s: %s", show(name, len_bytes).text, why);
}

static int refuse_byte_in_name(const char *name, size_t len_bytes, char byte, struct failure *failure)
{
	unsigned char code = (unsigned char)byte;
	char why[128];

	if (is_upper(byte))
		return refuse_name(name, len_bytes, "a name can't hold upper-case letters, only " NAME_RULE, failure);
	if (code >= 0x80)
		return refuse_name(name, len_bytes, "a name can't hold letters beyond ASCII, only " NAME_RULE, failure);
	if (code < 0x20 || code == 0x7f)
		return refuse_name(name, len_bytes, "a name can't hold control characters, only " NAME_RULE, failure);
	(void)snprintf(why, sizeof(why), "a name can't hold '%c', only " NAME_RULE, byte);
	return refuse_name(name, len_bytes, why, failure);
}

static int check_name_bytes(const char *name, size_t len_bytes, struct failure *failure)
{
	if (len_bytes == 0)
		return fail(failure, -EINVAL, "a disk's name is empty; it is made of " NAME_RULE);
	for (size_t i = 0; i < len_bytes; i++)
		if (!may_follow(name[i]))
			return refuse_byte_in_name(name, len_bytes, name[i], failure);
	if (!may_be_first(name[0]))
		return refuse_name(name, len_bytes, "a name starts with a letter or a digit", failure);
	if (len_bytes > STORE_NAME_MOST_BYTES)
		return refuse_name(name, len_bytes, "a name has at most 63 characters", failure);
	return 0;
}

int store_check_name(const char *name, struct failure *failure)
{
	_Static_assert(STORE_NAME_MOST_BYTES == 63, "the message above says so");
	return check_name_bytes(name, strlen(name), failure);
}

/* Decimal digits, no leading zero, from 1: 0, -EINVAL (no number), -ERANGE (one that is too small or too large). */
static int parse_number(const char *text, size_t len_bytes, uint32_t *ret_number)
{
	uint32_t number = 0;
	bool is_over = false;

	if (len_bytes == 0 || (text[0] == '0' && len_bytes > 1))
		return -EINVAL;
	for (size_t i = 0; i < len_bytes; i++) {
		if (!is_digit(text[i]))
			return -EINVAL;
		is_over = is_over || __builtin_mul_overflow(number, 10U, &number) ||
			  __builtin_add_overflow(number, (uint32_t)(text[i] - '0'), &number);
	}
	if (is_over || number == 0)
		return -ERANGE;
	*ret_number = number;
	return 0;
}

/* `part` is what stands behind the '@'. */
static int parse_image(const char *text, const char *part, size_t part_bytes, struct store_reference *reference,
		       struct failure *failure)
{
	struct shown shown = show(text, strlen(text));
	int error;

	if (part_bytes == 0)
		return fail(failure, -EINVAL, "%s: no image number behind '@'; images are DISK@N or DISK@latest",
			    shown.text);
	if (part_bytes == strlen("latest") && memcmp(part, "latest", part_bytes) == 0) {
		reference->which = STORE_LATEST;
		return 0;
	}
	reference->which = STORE_NUMBER;
	error = parse_number(part, part_bytes, &reference->number);
	if (error == -ERANGE)
		return fail(failure, -EINVAL, "%s: no image has this number; they are counted from 1 to %u", shown.text,
			    UINT32_MAX);
	if (error != 0)
		return fail(failure, -EINVAL, "%s: not an image number; images are DISK@N or DISK@latest", shown.text);
	return 0;
}

static int parse_partition(const char *text, const char *part, struct store_reference *reference,
			   struct failure *failure)
{
	struct shown shown = show(text, strlen(text));
	int error;

	if (*part == '\0')
		return fail(failure, -EINVAL, "%s: no partition number behind '/'; partitions are DISK/P or DISK@N/P",
			    shown.text);
	if (strchr(part, '@') != NULL)
		return fail(failure, -EINVAL, "%s: the partition stands in front of the image; write DISK@N/P",
			    shown.text);
	error = parse_number(part, strlen(part), &reference->partition);
	if (error == -ERANGE)
		return fail(failure, -EINVAL, "%s: no partition has this number; they are counted from 1", shown.text);
	if (error != 0)
		return fail(failure, -EINVAL, "%s: not a partition number; partitions are DISK/P or DISK@N/P",
			    shown.text);
	return 0;
}

int store_parse_reference(const char *text, struct store_reference *ret_reference, struct failure *failure)
{
	struct store_reference reference = {.which = STORE_LIVE};
	size_t name_bytes = strcspn(text, "@/");
	const char *rest = text + name_bytes;
	int error;

	if (*text == '\0')
		return fail(failure, -EINVAL,
			    "no disk given; write DISK, DISK@N or DISK@latest, with /P for partition P");
	if (name_bytes == 0)
		return fail(failure, -EINVAL, "%s: no disk in front of '%c'; write DISK, DISK@N or DISK@latest",
			    show(text, strlen(text)).text, *text);
	error = check_name_bytes(text, name_bytes, failure);
	if (error != 0)
		return error;
	memcpy(reference.disk, text, name_bytes);
	if (*rest == '@') {
		size_t part_bytes = strcspn(++rest, "/");

		error = parse_image(text, rest, part_bytes, &reference, failure);
		if (error != 0)
			return error;
		rest += part_bytes;
	}
	if (*rest == '/') {
		error = parse_partition(text, rest + 1, &reference, failure);
		if (error != 0)
			return error;
	}
	*ret_reference = reference;
	return 0;
}

const char *store_consistency_name(enum store_consistency consistency)
{
	switch (consistency) {
	case STORE_CLEAN:
		return "clean";
	case STORE_FROZEN:
		return "frozen";
	case STORE_FUZZY:
		return "fuzzy";
	}
	return "unknown";
}

const char *store_round_state_name(enum store_round_state state)
{
	switch (state) {
	case ROUND_RUNNING:
		return "running";
	case ROUND_STOPPED:
		return "stopped";
	case ROUND_FAILED:
		return "failed";
	case ROUND_DONE:
		return "done";
	}
	return "unknown";
}

/* ------------------------------------------------- the nearest name there is */

enum { COMPARED_MOST_BYTES = 64 };

static unsigned int least(unsigned int a, unsigned int b)
{
	return a < b ? a : b;
}

/*
 * How many slips of the finger lie between two names: a letter left out, added, wrong, or exchanged with its neighbour
 * (the optimal string alignment distance). Case is no slip. Three rows of its table are enough.
 */
static unsigned int count_slips(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
	unsigned int rows[3][COMPARED_MOST_BYTES + 1];
	unsigned int *before = rows[0]; /* row i - 2 */
	unsigned int *last = rows[1];	/* row i - 1 */
	unsigned int *row = rows[2];

	for (unsigned int j = 0; j <= b_bytes; j++)
		before[j] = last[j] = j;
	for (unsigned int i = 1; i <= a_bytes; i++) {
		unsigned int *next = before;

		row[0] = i;
		for (unsigned int j = 1; j <= b_bytes; j++) {
			unsigned int differs = to_lower(a[i - 1]) != to_lower(b[j - 1]);

			row[j] = least(last[j - 1] + differs, least(last[j], row[j - 1]) + 1);
			if (i > 1 && j > 1 && to_lower(a[i - 1]) == to_lower(b[j - 2]) &&
			    to_lower(a[i - 2]) == to_lower(b[j - 1]))
				row[j] = least(row[j], before[j - 2] + 1);
		}
		before = last;
		last = row;
		row = next;
	}
	return last[b_bytes];
}

/* "web" for "web01" is a beginning, not a slip; one letter would be the beginning of too many. */
static bool is_beginning(const char *name, size_t name_bytes, const char *other, size_t other_bytes)
{
	size_t shared_bytes = name_bytes < other_bytes ? name_bytes : other_bytes;

	return shared_bytes >= 2 && memcmp(name, other, shared_bytes) == 0;
}

const char *store_nearest_name(const char *name, const char *const *names, size_t count)
{
	size_t name_bytes = strlen(name);
	unsigned int fewest_slips = UINT32_MAX;
	const char *nearest = NULL;

	if (name_bytes > COMPARED_MOST_BYTES)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		size_t other_bytes = strlen(names[i]);
		size_t longer_bytes = name_bytes > other_bytes ? name_bytes : other_bytes;
		unsigned int slips;

		if (longer_bytes > COMPARED_MOST_BYTES)
			continue;
		slips = count_slips(name, name_bytes, names[i], other_bytes);
		if (slips <= longer_bytes / 3 && slips < fewest_slips) {
			fewest_slips = slips;
			nearest = names[i];
		}
	}
	for (size_t i = 0; i < count && nearest == NULL; i++)
		if (is_beginning(name, name_bytes, names[i], strlen(names[i])))
			nearest = names[i];
	return nearest;
}
