/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of all verbs, and taking a command line apart.
 *
 * Options may stand before the verb, so which verb it is isn't known while they
 * are read. That works because a name means the same kind of thing everywhere:
 * one table has them all, getopt_long() reads the line with that, and only then is
 * each one held against the verb, and its value read.
 *
 * Two things that getopt_long() would do are not wanted. It takes any beginning
 * of a name that is unique (today: the next option makes `--re` in somebody's
 * script ambiguous), so names are compared once more, whole. And it stops at
 * the first word when POSIXLY_CORRECT is set; the "-" in the list of letters
 * makes it hand over words as they come instead.
 *
 * One name is an exception: --rw takes a value with some verbs (--rw mirror) and none with others. getopt_long() is told
 * that the value is optional, which leaves one that is a word of its own to us: it is the next word, unless the verb is known
 * and wants none, or that word is the verb.
 */
#include "tools/command.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk.h"
#include "store/record.h"
#include "tools/text.h"


const struct option_kind option_kinds[OPTION_COUNT] = {
	[OPTION_STORE] = {"store", 's', "STORE", "directory",
			  "the store, a directory; without it $WHERRY_STORE, else " DEFAULT_STORE},
	[OPTION_HELP] = {"help", 'h', NULL, NULL, "this text"},
	[OPTION_VERSION] = {"version", 'V', NULL, NULL, "the version of wherry"},
	[OPTION_JSON] = {"json", 0, NULL, NULL, "one JSON document on standard output, for programs"},
	[OPTION_DRY_RUN] = {"dry-run", 'n', NULL, NULL, "say what would be deleted, and delete nothing"},
	[OPTION_PROGRESS] = {"progress", 0, "HOW", "bar lines json none",
			     "on standard error: bar, lines, json or none; without it a bar on a terminal, otherwise "
			     "a line every five seconds"},
	[OPTION_CHUNK_SIZE] = {"chunk-size", 0, "SIZE", "16K 32K 64K 128K 256K 512K 1M",
			       "size of the pieces that content is stored in, a power of two from 16K to 1M "
			       "(64K); it can't be changed later"},
	[OPTION_KEEP] = {"keep", 0, "N", NULL,
			 "keep at most N images, the oldest that is neither pinned nor in use goes first; stays "
			 "the disk's policy"},
	[OPTION_LEVEL] = {"level", 0, "N", "0 1 2 3 4 5 6 7 8 9 10",
			  "compression, from 0 (none) to 10 (smallest), for this round; see below"},
	[OPTION_LIMIT] = {"limit", 0, "RATE", "unlimited 10M 50M 100Mbit 1Gbit",
			  "store at most RATE a second in this round: 10M, 100Mbit; 0 or unlimited: no limit"},
	[OPTION_NO_IMAGE] = {"no-image", 0, NULL, NULL, "make no image at the end of the round"},
	[OPTION_LABEL] = {"label", 0, "TEXT", NULL, "a few words to keep with the image"},
	[OPTION_READ_ALL] = {"read-all", 0, NULL, NULL,
			     "read also what holds no data: blocks that no file uses, the content of swap, gaps"},
	[OPTION_ON_READ_ERROR] = {"on-read-error", 0, "WHAT", "fail zero",
				  "when a sector can't be read: fail (as without this option), or zero, which puts "
				  "zeros there, lists it and goes on"},
	[OPTION_VERIFY] = {"verify", 0, NULL, NULL,
			   "at the end read the source once more, and compare all of it with what was stored"},
	[OPTION_DIRTY_BITMAP] = {"dirty-bitmap", 0, "NAME", NULL,
				 "read only what QEMU's dirty bitmap NAME says has changed (NBD sources); one that is made anew "
				 "needs a new name"},
	[OPTION_ALLOW_SHRINK] = {"allow-shrink", 0, NULL, NULL,
				 "go on when the source has become smaller; images keep their size"},
	[OPTION_SOURCE] = {"source", 0, "SOURCE", "source", "what to compare with: a path or an NBD URI"},
	[OPTION_DEEP] = {"deep", 0, NULL, NULL, "read all content, and compare it with its digests"},
	[OPTION_REPAIR] = {"repair", 0, NULL, NULL,
			   "with --deep, which it implies: mend what can be mended, mark the rest for rounds to bring back"},
	[OPTION_SALVAGE] = {"salvage", 0, NULL, NULL,
			    "export all that can be read: what can't becomes zeros, and is listed, one range a line"},
	[OPTION_SECTOR_SIZE] = {"sector-size", 0, "SIZE", "512 1K 2K 4K",
				"bytes of a sector of the new disk, a power of two from 512 to 64K (512)"},
	[OPTION_SOCKET] = {"socket", 0, "PATH", "target", "the unix socket to listen on, instead of one in /run/wherry"},
	[OPTION_ADDRESS] = {"address", 0, "ADDRESS", "127.0.0.1 ::1 0.0.0.0",
			    "listen on TCP, at this address; without --port at port 10809"},
	[OPTION_PORT] = {"port", 0, "N", "10809",
			 "listen on TCP, at this port, 0 for any that is free; without --address on this host's loopback"},
	[OPTION_INSECURE] = {"insecure", 0, NULL, NULL,
			     "allow an address that other hosts reach without TLS: whoever gets there reads and writes"},
	[OPTION_TLS_CERTIFICATES] = {"tls-certificates", 0, "DIR", "directory",
				     "require TLS, with the certificates of this directory, as nbdkit-tls(1) has them; "
				     "clients need one of the same CA"},
	[OPTION_TLS_PSK] = {"tls-psk", 0, "FILE", "target",
			    "require TLS, with the pre-shared keys of this file, as psktool(1) makes it"},
	[OPTION_SCRATCH] = {"scratch", 0, NULL, NULL,
			    "images can be written to; what is written vanishes with the last client"},
	[OPTION_READ_ONLY] = {"read-only", 0, NULL, NULL, "nothing can be written to"},
	[OPTION_CACHE] = {"cache", 0, "SIZE", "64M 128M 256M 512M 1G", "memory for decompressed content (128M)"},
	[OPTION_RW] = {"rw", 0, "mirror", "mirror",
		       "mirror: a disk that rounds write to can be written to by others, too; the next round compares all of it"},
	[OPTION_VIA] = {"via", 0, "HOW", "nbd loop files",
			"nbd, loop or files: this way, instead of the first of them that works; see above"},
	[OPTION_OPTIONS] = {"options", 'o', "LIST", NULL, "options for the mount, parted by commas, as mount(8) takes them"},
	[OPTION_FOREGROUND] = {"foreground", 'f', NULL, NULL, "stay, and end when it is unmounted or by a signal, for systemd and the like"},
	[OPTION_ALLOW_OTHER] = {"allow-other", 0, NULL, NULL, "other users may look into it, too, as far as its modes let them"},
	[OPTION_DISK] = {"disk", 0, "DISK", "disk", "show this disk only"},
};

enum { LONG_OPTION_BASE = 256 }; /* getopt_long()'s value of option id N is this + N: no letter's code */

/* What was typed, not looked at yet. Values are those of the last time an option was given. */
struct raw_line {
	const char *values[OPTION_COUNT]; /* "" for options without an argument; NULL: not given */
	const char *by_letter[OPTION_COUNT]; /* the word that was typed, if it was a letter: "-odd.img" may be meant as a file */
	const char **words;		  /* owned; the verb first */
	size_t word_count;
	const char *unknown; /* the first thing that looks like an option and is none: the word as it was typed */
	enum option_id awaiting;    /* an option whose value may be the next word; OPTION_COUNT: none */
	enum option_id missing;	    /* an option at the end that wants an argument; OPTION_COUNT: none */
	enum option_id superfluous; /* an option that has an argument and takes none; OPTION_COUNT: none */
};

static enum option_id option_by_letter(int letter)
{
	int id = 0;

	while (id < OPTION_COUNT && option_kinds[id].letter != letter)
		id++;
	return (enum option_id)id;
}

static bool is_flag_somewhere(enum option_id id)
{
	for (size_t i = 0; verbs[i] != NULL; i++) {
		const struct verb_option *own = verb_option_of(verbs[i], id);

		if (own != NULL && own->is_flag)
			return true;
	}
	return false;
}

/* getopt_long()'s tables. `ret_letters` has room for the two signs in front, two bytes an option, and the end. */
static void make_getopt_tables(struct option ret_options[OPTION_COUNT + 1], char ret_letters[2 * OPTION_COUNT + 3])
{
	char *letter = ret_letters;

	*letter++ = '-'; /* hand over words in their order */
	*letter++ = ':'; /* print nothing */
	for (int id = 0; id < OPTION_COUNT; id++) {
		bool takes_argument = option_kinds[id].argument != NULL;

		ret_options[id] = (struct option){.name = option_kinds[id].name,
						  .has_arg = takes_argument ? required_argument : no_argument,
						  .val = LONG_OPTION_BASE + id};
		if (is_flag_somewhere((enum option_id)id))
			ret_options[id].has_arg = optional_argument;
		if (option_kinds[id].letter == 0)
			continue;
		*letter++ = option_kinds[id].letter;
		if (takes_argument)
			*letter++ = ':';
	}
	ret_options[OPTION_COUNT] = (struct option){.name = NULL};
	*letter = '\0';
}

/* "--keep=3" or "--keep" for keep, and not "--ke". */
static bool is_whole_name(const char *typed, const char *name)
{
	size_t name_bytes = strlen(name);

	return strncmp(typed, "--", 2) == 0 && strncmp(typed + 2, name, name_bytes) == 0 &&
	       (typed[2 + name_bytes] == '\0' || typed[2 + name_bytes] == '=');
}

/* The word with an unknown letter: getopt has gone on to the next one only if it was the last letter of its word. */
static const char *word_of_letter(char *const *argv, int letter)
{
	const char *previous = argv[optind - 1];
	size_t length = strlen(previous);

	if (previous[0] == '-' && length >= 2 && previous[length - 1] == letter)
		return previous;
	return argv[optind];
}

static void take_complaint(struct raw_line *raw, char *const *argv, int kind)
{
	enum option_id id =
		optopt >= LONG_OPTION_BASE ? (enum option_id)(optopt - LONG_OPTION_BASE) : option_by_letter(optopt);

	if (kind == ':' && optopt >= LONG_OPTION_BASE && !is_whole_name(argv[optind - 1], option_kinds[id].name))
		raw->unknown = raw->unknown == NULL ? argv[optind - 1] : raw->unknown; /* abbreviated */
	else if (kind == ':')
		raw->missing = id;
	else if (optopt >= LONG_OPTION_BASE)
		raw->superfluous = id;
	else if (raw->unknown != NULL)
		return;
	else if (optopt == 0) /* a name that is unknown, or the beginning of several */
		raw->unknown = argv[optind - 1];
	else
		raw->unknown = word_of_letter(argv, optopt);
}

static void take_option(struct raw_line *raw, char *const *argv, int value)
{
	enum option_id id =
		value >= LONG_OPTION_BASE ? (enum option_id)(value - LONG_OPTION_BASE) : option_by_letter(value);
	bool takes_argument = option_kinds[id].argument != NULL;

	if (value >= LONG_OPTION_BASE) {
		bool value_is_own_word = takes_argument && optarg == argv[optind - 1];
		const char *typed = argv[optind - (value_is_own_word ? 2 : 1)];

		if (!is_whole_name(typed, option_kinds[id].name)) {
			if (raw->unknown == NULL)
				raw->unknown = typed;
			return;
		}
	}
	if (value < LONG_OPTION_BASE && takes_argument)
		raw->by_letter[id] = argv[optind - (optarg == argv[optind - 1] ? 2 : 1)];
	else if (value < LONG_OPTION_BASE)
		raw->by_letter[id] = word_of_letter(argv, value);
	raw->values[id] = optarg != NULL && takes_argument ? optarg : "";
	if (takes_argument && optarg == NULL)
		raw->awaiting = id;
}

/* The verb that the words so far begin with, or NULL. */
static const struct verb *verb_so_far(const struct raw_line *raw)
{
	return raw->word_count == 0 ? NULL : verb_find(raw->words[0]);
}

static void take_word(struct raw_line *raw, const char *word)
{
	const struct verb *verb = verb_so_far(raw);
	enum option_id id = raw->awaiting;

	raw->awaiting = OPTION_COUNT;
	if (id != OPTION_COUNT && (verb != NULL ? verb_option_argument(verb, id) != NULL : verb_find(word) == NULL))
		raw->values[id] = word;
	else
		raw->words[raw->word_count++] = word;
}

static int read_raw_line(int argc, char **argv, struct raw_line *raw, struct failure *failure)
{
	struct option long_options[OPTION_COUNT + 1];
	char letters[2 * OPTION_COUNT + 3];
	int value;

	*raw = (struct raw_line){.awaiting = OPTION_COUNT, .missing = OPTION_COUNT, .superfluous = OPTION_COUNT};
	raw->words = calloc((size_t)argc + 1, sizeof(*raw->words));
	if (raw->words == NULL)
		return fail(failure, -ENOMEM, "command line: out of memory");
	make_getopt_tables(long_options, letters);
	optind = 0; /* glibc: start over, and look at the letters' signs again */
	while ((value = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
		if (value == 1) {
			take_word(raw, optarg);
			continue;
		}
		raw->awaiting = OPTION_COUNT;
		if (value == '?' || value == ':')
			take_complaint(raw, argv, value);
		else
			take_option(raw, argv, value);
	}
	while (optind < argc) /* behind "--" */
		raw->words[raw->word_count++] = argv[optind++];
	return 0;
}

/* ---- what is wrong with it ---- */

/* "MESSAGE; try 'wherry VERB --help'" */
__attribute__((format(printf, 3, 4))) static int fail_usage(struct failure *failure, const struct verb *verb,
							    const char *format, ...)
{
	char message[FAILURE_MESSAGE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	if (verb == NULL)
		return fail(failure, -EINVAL, "%s; try 'wherry --help'", message);
	return fail(failure, -EINVAL, "%s; try 'wherry %s --help'", message, verb->name);
}

static int fail_unknown_option(struct failure *failure, const struct verb *verb, const char *typed)
{
	const char *names[OPTION_COUNT];
	size_t count = 0;
	char name[64];
	const char *nearest;

	for (int id = 0; id < OPTION_COUNT; id++)
		if (verb == NULL || verb_takes_option(verb, (enum option_id)id))
			names[count++] = option_kinds[id].name;
	(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(typed, "="), typed);
	nearest = suggest_word(name + strspn(name, "-"), names, count);
	if (nearest != NULL)
		return fail(failure, -EINVAL, "%s: no such option; did you mean '--%s'?", name, nearest);
	if (typed[0] == '-' && typed[1] != '-' && typed[2] != '\0')
		return fail_usage(failure, verb, "%s: no such option; if it is the name of a file, write ./%s", typed, typed);
	return fail_usage(failure, verb, "%s: no such option", name);
}

/* Words that other programs use for what is done here. */
static const char *verb_of_other_programs(const char *word)
{
	static const struct {
		const char *theirs, *ours;
	} known[] = {
		{"backup", "sync"},   {"copy", "sync"},	     {"cp", "sync"},	    {"push", "sync"},
		{"list", "images"},   {"ls", "images"},	     {"show", "images"},    {"snapshot", "image"},
		{"snap", "image"},    {"rm", "delete"},	     {"del", "delete"},	    {"prune", "retain"},
		{"forget", "retain"}, {"restore", "export"}, {"compare", "verify"}, {"diff", "verify"},
		{"keep", "retain"},   {"history", "rounds"},
		{"clean", "gc"},      {"cleanup", "gc"},     {"compact", "gc"},     {"vacuum", "gc"},
		{"serve", "serve-nbd"}, {"nbd", "serve-nbd"}, {"connect", "attach"}, {"disconnect", "detach"},
		{"fuse", "fs"},	      {"wherryfs", "fs"},    {"unmount", "umount"}, {"status", "disks"},
		{"info", "images"},   {"add", "create"},     {"new", "create"},     {"scrub", "check"},
		{"fsck", "check"},    {"repair", "check"},   {"version", "--version"},
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].theirs, word) == 0)
			return known[i].ours;
	return NULL;
}

static int fail_unknown_verb(struct failure *failure, const char *typed)
{
	const char *names[32];
	size_t count = 0;
	const char *nearest;

	while (verbs[count] != NULL && count < sizeof(names) / sizeof(names[0])) {
		names[count] = verbs[count]->name;
		count++;
	}
	nearest = verb_of_other_programs(typed);
	if (nearest == NULL)
		nearest = suggest_word(typed, names, count);
	if (nearest != NULL)
		return fail(failure, -EINVAL, "%s: no such verb; did you mean '%s'?", typed, nearest);
	return fail_usage(failure, NULL, "%s: no such verb", typed);
}

/* Of an option that takes a value with some verbs only. */
static int check_own_value(const struct raw_line *raw, const struct verb *verb, enum option_id id, struct failure *failure)
{
	const char *argument = verb_option_argument(verb, id);

	if (argument != NULL && raw->values[id][0] == '\0')
		return fail_usage(failure, verb, "--%s: %s is missing", option_kinds[id].name, argument);
	if (argument == NULL && raw->values[id][0] != '\0')
		return fail_usage(failure, verb, "--%s: takes no value", option_kinds[id].name);
	return 0;
}

static int check_raw_line(const struct raw_line *raw, const struct verb *verb, struct failure *failure)
{
	if (raw->unknown != NULL)
		return fail_unknown_option(failure, verb, raw->unknown);
	if (raw->missing != OPTION_COUNT)
		return fail_usage(failure, verb, "--%s: %s is missing", option_kinds[raw->missing].name,
				  option_kinds[raw->missing].argument);
	if (raw->superfluous != OPTION_COUNT)
		return fail_usage(failure, verb, "--%s: takes no value", option_kinds[raw->superfluous].name);
	if (raw->word_count > 0 && verb == NULL)
		return fail_unknown_verb(failure, raw->words[0]);
	for (int id = 0; id < OPTION_COUNT; id++) {
		bool is_anybodys = id == OPTION_HELP || id == OPTION_VERSION;

		if (raw->values[id] == NULL || is_anybodys)
			continue;
		if (verb != NULL && !verb_takes_option(verb, (enum option_id)id) && raw->by_letter[id] != NULL)
			return fail_unknown_option(failure, verb, raw->by_letter[id]);
		if (verb != NULL && !verb_takes_option(verb, (enum option_id)id))
			return fail_usage(failure, verb, "--%s: not an option of '%s'", option_kinds[id].name,
					  verb->name);
		if (is_flag_somewhere((enum option_id)id) && check_own_value(raw, verb, (enum option_id)id, failure) < 0)
			return -EINVAL;
	}
	return 0;
}

/* ---- values ---- */

/* Which of the words, separated by blanks, it is; -1: none. */
static int find_word(const char *words, const char *text)
{
	size_t text_bytes = strlen(text);

	for (int index = 0; *words != '\0'; index++) {
		size_t word_bytes = strcspn(words, " ");

		if (word_bytes == text_bytes && memcmp(words, text, text_bytes) == 0)
			return index;
		words += word_bytes + (words[word_bytes] == ' ');
	}
	return -1;
}

/* Digits only, least to most. */
static bool parse_count(const char *text, uint32_t least, uint32_t most, uint32_t *ret_count)
{
	uint64_t count = 0;

	if (*text == '\0')
		return false;
	for (; *text != '\0'; text++) {
		if (*text < '0' || *text > '9')
			return false;
		count = count * 10 + (unsigned int)(*text - '0');
		if (count > most)
			return false;
	}
	if (count < least)
		return false;
	*ret_count = (uint32_t)count;
	return true;
}

static int read_chunk_size(const struct verb *verb, const char *text, struct options *options, struct failure *failure)
{
	uint64_t bytes;

	if (units_parse_size(text, &bytes) != 0 || bytes < STORE_CHUNK_LEAST_BYTES || bytes > STORE_CHUNK_MOST_BYTES ||
	    (bytes & (bytes - 1)) != 0)
		return fail_usage(failure, verb, "--chunk-size: '%s' is not a power of two from 16K to 1M", text);
	options->chunk_bytes = (uint32_t)bytes;
	return 0;
}

static int read_sector_size(const struct verb *verb, const char *text, struct options *options, struct failure *failure)
{
	uint64_t bytes;

	if (units_parse_size(text, &bytes) != 0 || bytes < 512 || bytes > 65536 || (bytes & (bytes - 1)) != 0)
		return fail_usage(failure, verb, "--sector-size: '%s' is not a power of two from 512 to 64K", text);
	options->sector_bytes = (uint32_t)bytes;
	return 0;
}

static int read_keep(const struct verb *verb, const char *also, const char *text, struct options *options,
		     struct failure *failure)
{
	options->has_keep = true;
	if (also != NULL && strcmp(text, also) == 0) {
		options->keep = 0;
		return 0;
	}
	if (parse_count(text, 1, STORE_KEEP_MOST, &options->keep))
		return 0;
	return fail_usage(failure, verb, "--keep: '%s' is not a number from 1 to %d%s%s", text, STORE_KEEP_MOST,
			  also == NULL ? "" : ", nor ", also == NULL ? "" : also);
}

static int read_level(const struct verb *verb, const char *also, const char *text, struct options *options,
		      struct failure *failure)
{
	uint32_t level;

	options->has_level = true;
	if (also != NULL && strcmp(text, also) == 0) {
		options->level = -1;
		return 0;
	}
	if (!parse_count(text, CODEC_LEVEL_LEAST, CODEC_LEVEL_MOST, &level))
		return fail_usage(failure, verb, "--level: '%s' is not a number from %d to %d%s%s", text,
				  CODEC_LEVEL_LEAST, CODEC_LEVEL_MOST, also == NULL ? "" : ", nor ",
				  also == NULL ? "" : also);
	options->level = (int)level;
	return 0;
}

static int read_label(const struct verb *verb, const char *text, struct options *options, struct failure *failure)
{
	if (strlen(text) > STORE_LABEL_MOST_BYTES)
		return fail_usage(failure, verb, "--label: longer than %d bytes", STORE_LABEL_MOST_BYTES);
	if (*text == '\0' || !text_is_plain(text))
		return fail_usage(failure, verb,
				  "--label: must be a line of text in UTF-8, without control characters");
	options->label = text;
	return 0;
}

static int read_port(const struct verb *verb, const char *text, struct options *options, struct failure *failure)
{
	uint32_t port;

	if (!parse_count(text, 0, UINT16_MAX, &port))
		return fail_usage(failure, verb, "--port: '%s' is not a number from 0 to %d", text, UINT16_MAX);
	options->has_port = true;
	options->port = (uint16_t)port;
	return 0;
}

static int read_cache(const struct verb *verb, const char *text, struct options *options, struct failure *failure)
{
	if (units_parse_size(text, &options->cache_bytes) == 0 && options->cache_bytes >= CHUNK_CACHE_LEAST_BYTES)
		return 0;
	return fail_usage(failure, verb, "--cache: '%s' is not a size of %d MiB or more, such as 256M", text,
			  CHUNK_CACHE_LEAST_BYTES >> 20);
}

/* Where an option's text goes as it is. */
static const char **text_option(struct options *options, enum option_id id)
{
	switch (id) {
	case OPTION_STORE:
		return &options->store;
	case OPTION_SOURCE:
		return &options->source;
	case OPTION_SOCKET:
		return &options->socket;
	case OPTION_ADDRESS:
		return &options->address;
	case OPTION_TLS_CERTIFICATES:
		return &options->tls_certificates;
	case OPTION_TLS_PSK:
		return &options->tls_psk;
	case OPTION_OPTIONS:
		return &options->mount_options;
	default:
		assert(id == OPTION_DIRTY_BITMAP);
		return &options->dirty_bitmap;
	}
}

static int read_value(const struct verb *verb, enum option_id id, const char *text, struct options *options,
		      struct failure *failure)
{
	const struct verb_option *own = verb == NULL ? NULL : verb_option_of(verb, id);
	const char *also = own == NULL ? NULL : own->also;
	int word;

	switch (id) {
	case OPTION_CHUNK_SIZE:
		return read_chunk_size(verb, text, options, failure);
	case OPTION_SECTOR_SIZE:
		return read_sector_size(verb, text, options, failure);
	case OPTION_KEEP:
		return read_keep(verb, also, text, options, failure);
	case OPTION_LEVEL:
		return read_level(verb, also, text, options, failure);
	case OPTION_LABEL:
		return read_label(verb, text, options, failure);
	case OPTION_LIMIT:
		options->has_limit = true;
		if (units_parse_rate(text, &options->limit_bytes_per_second) != 0)
			return fail_usage(failure, verb,
					  "--limit: '%s' is not a rate such as 10M, 100Mbit or unlimited", text);
		return 0;
	case OPTION_PROGRESS:
	case OPTION_ON_READ_ERROR:
	case OPTION_VIA:
		word = find_word(option_kinds[id].completion, text);
		if (word < 0)
			return fail_usage(failure, verb, "--%s: '%s' is not one of: %s", option_kinds[id].name, text,
					  option_kinds[id].completion);
		if (id == OPTION_PROGRESS)
			options->progress = (enum progress_mode)(PROGRESS_BAR + word);
		else if (id == OPTION_VIA)
			options->via = (enum mount_via)(VIA_NBD + word);
		else
			options->on_read_error = word == 0 ? READ_ERROR_FAIL : READ_ERROR_ZERO;
		return 0;
	case OPTION_PORT:
		return read_port(verb, text, options, failure);
	case OPTION_CACHE:
		return read_cache(verb, text, options, failure);
	case OPTION_DISK:
		options->disk = text;
		return store_check_name(text, failure);
	case OPTION_RW:
		options->write = verb_option_argument(verb, id) == NULL;
		if (options->write)
			return 0;
		options->write_mirror = strcmp(text, "mirror") == 0;
		return options->write_mirror ? 0 : fail_usage(failure, verb, "--rw: '%s' is not mirror", text);
	default:
		if (*text == '\0')
			return fail_usage(failure, verb, "--%s: empty", option_kinds[id].name);
		*text_option(options, id) = text;
		return 0;
	}
}

static int read_options(const struct raw_line *raw, const struct verb *verb, struct options *options,
			struct failure *failure)
{
	const char *environment_store = getenv("WHERRY_STORE");
	int result = 0;

	*options = (struct options){
		.store = environment_store != NULL && *environment_store != '\0' ? environment_store : DEFAULT_STORE,
		.chunk_bytes = STORE_CHUNK_DEFAULT_BYTES,
		.help = raw->values[OPTION_HELP] != NULL,
		.version = raw->values[OPTION_VERSION] != NULL,
		.json = raw->values[OPTION_JSON] != NULL,
		.dry_run = raw->values[OPTION_DRY_RUN] != NULL,
		.no_image = raw->values[OPTION_NO_IMAGE] != NULL,
		.read_all = raw->values[OPTION_READ_ALL] != NULL,
		.deep = raw->values[OPTION_DEEP] != NULL || raw->values[OPTION_REPAIR] != NULL,
		.repair = raw->values[OPTION_REPAIR] != NULL,
		.salvage = raw->values[OPTION_SALVAGE] != NULL,
		.verify = raw->values[OPTION_VERIFY] != NULL,
		.allow_shrink = raw->values[OPTION_ALLOW_SHRINK] != NULL,
		.insecure = raw->values[OPTION_INSECURE] != NULL,
		.scratch = raw->values[OPTION_SCRATCH] != NULL,
		.read_only = raw->values[OPTION_READ_ONLY] != NULL,
		.foreground = raw->values[OPTION_FOREGROUND] != NULL,
		.allow_other = raw->values[OPTION_ALLOW_OTHER] != NULL,
	};
	for (int id = 0; id < OPTION_COUNT && result == 0; id++)
		if (raw->values[id] != NULL && option_kinds[id].argument != NULL)
			result = read_value(verb, (enum option_id)id, raw->values[id], options, failure);
	return result;
}

/* ---- arguments ---- */

static int check_device(const struct verb *verb, const char *text, struct failure *failure)
{
	uint32_t number;

	if (strncmp(text, "/dev/nbd", 8) == 0 && parse_count(text + 8, 0, UINT16_MAX, &number))
		return 0;
	return fail_usage(failure, verb, "%s: not a device of the kernel's NBD client, such as /dev/nbd0", text);
}

static int check_size(const struct verb *verb, const char *name, const char *text, struct failure *failure)
{
	uint64_t bytes;
	int error = units_parse_size(text, &bytes);

	if (error == -ERANGE || (error == 0 && bytes > STORE_DISK_MOST_BYTES))
		return fail_usage(failure, verb, "%s: '%s' is more than a disk can have, 1 EiB", name, text);
	if (error != 0 || bytes == 0)
		return fail_usage(failure, verb, "%s: '%s' is not a size such as 512M or 10G", name, text);
	return 0;
}

static int check_argument(const struct verb *verb, const struct verb_argument *argument, const char *text,
			  struct failure *failure)
{
	struct store_reference reference;

	switch (argument->kind) {
	case ARGUMENT_SOURCE:
		if (strcmp(text, "-") == 0)
			return fail_usage(failure, verb,
					  "%s: standard input can't be a source, which is read in many "
					  "places at once",
					  argument->name);
		__attribute__((fallthrough));
	case ARGUMENT_TARGET:
	case ARGUMENT_DIRECTORY:
	case ARGUMENT_MOUNTED:
		return *text != '\0' ? 0 : fail_usage(failure, verb, "%s: empty", argument->name);
	case ARGUMENT_DISK:
	case ARGUMENT_NEW_DISK:
		if (strchr(text, '@') != NULL && store_parse_reference(text, &reference, NULL) == 0)
			return fail_usage(failure, verb, "%s: names an image, and a disk is wanted here", text);
		return store_check_name(text, failure);
	case ARGUMENT_REFERENCE:
		return store_parse_reference(text, &reference, failure);
	case ARGUMENT_FILES:
		return command_line_files(text, &reference, NULL, failure);
	case ARGUMENT_IMAGE:
		if (store_parse_reference(text, &reference, failure) != 0)
			return -EINVAL;
		if (reference.partition != 0)
			return fail_usage(failure, verb, "%s: names a partition, and an image is wanted here", text);
		if (reference.which == STORE_LIVE)
			return fail_usage(failure, verb, "%s: names a disk, and an image is wanted here, as in %s@3",
					  text, text);
		return 0;
	case ARGUMENT_SIZE:
		return check_size(verb, argument->name, text, failure);
	case ARGUMENT_DEVICE:
		return check_device(verb, text, failure);
	case ARGUMENT_ATTACHED:
		return *text == '/' ? check_device(verb, text, failure) : store_parse_reference(text, &reference, failure);
	case ARGUMENT_VERB:
		return verb_find(text) != NULL ? 0 : fail_unknown_verb(failure, text);
	}
	return 0;
}

static int check_arguments(const struct command_line *line, struct failure *failure)
{
	const struct verb *verb = line->verb;
	const struct verb_argument *last =
		verb->argument_count == 0 ? NULL : &verb->arguments[verb->argument_count - 1];
	int result = 0;

	if (line->argument_count < verb->argument_count && !verb->arguments[line->argument_count].optional)
		return fail_usage(failure, verb, "%s: %s is missing", verb->name,
				  verb->arguments[line->argument_count].name);
	if (line->argument_count > verb->argument_count && (last == NULL || !last->repeats)) {
		const char *first = line->arguments[verb->argument_count];

		if (verb == &verb_init)
			return fail(failure, -EINVAL, "%s: init takes no argument; say 'wherry -s %s init'", first,
				    first);
		return fail_usage(failure, verb, "%s: one argument too many", first);
	}
	for (size_t i = 0; i < line->argument_count && result == 0; i++)
		result = check_argument(verb, i < verb->argument_count ? &verb->arguments[i] : last, line->arguments[i],
					failure);
	for (unsigned int i = 0; i < verb->option_count && result == 0; i++) {
		const struct verb_option *option = &verb->options[i];

		if (!option->required)
			continue;
		if ((option->id == OPTION_SOURCE && line->options.source == NULL) ||
		    (option->id == OPTION_KEEP && !line->options.has_keep))
			result = fail_usage(failure, verb, "%s: --%s is missing", verb->name,
					    option_kinds[option->id].name);
	}
	return result < 0 ? -EINVAL : 0;
}

int command_line_parse(int argc, char **argv, struct command_line *ret_line, struct failure *failure)
{
	struct command_line line = {.verb = NULL};
	struct raw_line raw;
	int result = read_raw_line(argc, argv, &raw, failure);

	if (result < 0)
		return result;
	line.verb = raw.word_count == 0 ? NULL : verb_find(raw.words[0]);
	result = check_raw_line(&raw, line.verb, failure);
	if (result == 0)
		result = read_options(&raw, line.verb, &line.options, failure);
	if (raw.word_count > 0) {
		line.argument_count = raw.word_count - 1;
		memmove(raw.words, raw.words + 1, line.argument_count * sizeof(raw.words[0]));
	}
	line.arguments = raw.words;
	/* Who asks for help need not get the arguments right. */
	if (result == 0 && line.verb != NULL && !line.options.help && !line.options.version)
		result = check_arguments(&line, failure);
	if (result < 0) {
		command_line_free(&line);
		return result;
	}
	*ret_line = line;
	return 0;
}

void command_line_free(struct command_line *line)
{
	free(take_ptr(line->arguments));
	line->argument_count = 0;
}

void command_line_reference(const struct command_line *line, size_t argument, struct store_reference *ret_reference)
{
	int result = store_parse_reference(line->arguments[argument], ret_reference, NULL);

	assert(result == 0); /* checked by command_line_parse() */
	(void)result;
}

int command_line_files(const char *text, struct store_reference *ret_reference, char **ret_volume, struct failure *failure)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-";
	const char *volume = strchr(text, '/');
	const char *slash = volume == NULL ? NULL : strchr(++volume, '/');
	AUTO_FREE char *disk = slash == NULL ? strdup(text) : strndup(text, (size_t)(volume - 1 - text));
	int error = disk == NULL ? fail(failure, -ENOMEM, "command line: out of memory") : store_parse_reference(disk, ret_reference, failure);

	if (error < 0)
		return error;
	if (slash != NULL && (slash == volume || slash[1] == '\0' || volume + strspn(volume, letters) != slash ||
			      slash[1 + strspn(slash + 1, letters)] != '\0'))
		return fail(failure, -EINVAL, "%s: neither a partition, as in %s/2, nor a logical volume, as in %s/VG/LV", text, disk, disk);
	if (ret_volume != NULL && slash != NULL) {
		*ret_volume = strdup(volume);
		return *ret_volume == NULL ? fail(failure, -ENOMEM, "command line: out of memory") : 0;
	}
	return 0;
}

char *command_line_doing(const struct command_line *line)
{
	char *text = NULL;

	if (asprintf(&text, "wherry %s", line->verb->name) < 0)
		return NULL;
	for (size_t i = 0; i < line->argument_count; i++) {
		AUTO_FREE char *shorter = text;

		if (asprintf(&text, "%s %s", shorter, line->arguments[i]) < 0)
			return NULL;
	}
	return text;
}
