/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --help, made from the verb table and wrapped to 80 columns, so that it can't
 * tell of an option that isn't there, nor forget one that is. The same for the
 * lists that bash completion asks for.
 */
#include "tools/command.h"

#include <stdio.h>
#include <string.h>

enum { HELP_COLUMNS = 79, INDENT_COLUMNS = 4, OPTION_COLUMNS = 24 };

/*
 * Prints words from `column` on, where lines that follow are indented by `indent`, and ends the line. "\n\n" makes a
 * new paragraph.
 */
static void print_wrapped(const char *text, size_t column, size_t indent)
{
	bool at_start = true;

	while (*text != '\0') {
		size_t word_bytes = strcspn(text, " \n");

		if (!at_start && column + 1 + word_bytes > HELP_COLUMNS) {
			(void)printf("\n%*s", (int)indent, "");
			column = indent;
			at_start = true;
		}
		(void)printf("%s%.*s", at_start ? "" : " ", (int)word_bytes, text);
		column += word_bytes + !at_start;
		at_start = false;
		text += word_bytes;
		if (strncmp(text, "\n\n", 2) == 0) {
			(void)printf("\n\n%*s", (int)indent, "");
			column = indent;
			at_start = true;
		}
		text += strspn(text, " \n");
	}
	(void)putchar('\n');
}

static void print_paragraphs(const char *text)
{
	(void)printf("%*s", INDENT_COLUMNS, "");
	print_wrapped(text, INDENT_COLUMNS, INDENT_COLUMNS);
}

/* `verb` NULL: what it is usually. */
static void print_option(const struct verb *verb, enum option_id id, const char *help)
{
	const struct option_kind *kind = &option_kinds[id];
	const struct verb_option *own = verb == NULL ? NULL : verb_option_of(verb, id);
	const char *argument = verb_option_argument(verb, id);
	const char *also = own == NULL ? NULL : own->also;
	char name[64];
	size_t column;

	(void)snprintf(name, sizeof(name), "%c%c%s--%s%s%s%s%s", kind->letter == 0 ? ' ' : '-',
		       kind->letter == 0 ? ' ' : kind->letter, kind->letter == 0 ? "  " : ", ", kind->name,
		       argument == NULL ? "" : " ", argument == NULL ? "" : argument,
		       also == NULL ? "" : "|", also == NULL ? "" : also);
	(void)printf("%*s%-*s", INDENT_COLUMNS, "", OPTION_COLUMNS, name);
	column = INDENT_COLUMNS + OPTION_COLUMNS;
	if (strlen(name) >= OPTION_COLUMNS)
		(void)printf("\n%*s", (int)column, "");
	print_wrapped(help == NULL ? kind->help : help, column, column);
}

/* "sync SOURCE DISK", "images [DISK]", "delete DISK@N..." */
static void print_synopsis(FILE *to, const struct verb *verb)
{
	(void)fputs(verb->name, to);
	for (unsigned int i = 0; i < verb->argument_count; i++) {
		const struct verb_argument *argument = &verb->arguments[i];

		(void)fprintf(to, " %s%s%s%s", argument->optional ? "[" : "", argument->name,
			      argument->optional ? "]" : "", argument->repeats ? "..." : "");
	}
	for (unsigned int i = 0; i < verb->option_count; i++)
		if (verb->options[i].required)
			(void)fprintf(to, " --%s %s", option_kinds[verb->options[i].id].name,
				      option_kinds[verb->options[i].id].argument);
}

void help_print_verb(const struct verb *verb)
{
	(void)printf("wherry %s - ", verb->name);
	print_wrapped(verb->summary, strlen(verb->name) + 10, INDENT_COLUMNS);
	(void)printf("\nUSAGE\n%*swherry ", INDENT_COLUMNS, "");
	print_synopsis(stdout, verb);
	(void)printf(" [OPTION]...\n\n");
	print_paragraphs(verb->description);
	(void)printf("\nOPTIONS\n");
	for (unsigned int i = 0; i < verb->option_count; i++)
		print_option(verb, verb->options[i].id, verb->options[i].help);
	for (int id = 0; id < OPTION_COUNT; id++)
		if (verb_takes_option(verb, (enum option_id)id) && verb_option_of(verb, (enum option_id)id) == NULL)
			print_option(verb, (enum option_id)id, NULL);
	if (verb->appendix != NULL)
		(void)printf("\n%s", verb->appendix);
	(void)printf("\nEXAMPLES\n");
	for (unsigned int i = 0; i < verb->example_count; i++) {
		(void)printf("%*s%s\n%*s", INDENT_COLUMNS, "", verb->examples[i].command, 2 * INDENT_COLUMNS, "");
		print_wrapped(verb->examples[i].what, 2 * INDENT_COLUMNS, 2 * INDENT_COLUMNS);
	}
}

static const char overview_text[] = "A store is a directory; a disk is a named copy of a source in it, and an image is "
				    "the full content of a disk at one "
				    "moment: web01@3 is image 3 of disk web01, web01@latest the newest one, web01 "
				    "alone the live content, and /2 behind "
				    "any of these is partition 2 of it.\n\n"
				    "Sizes take K, M, G, T (powers of 1024), rates the same a second, or 100Mbit. "
				    "Options may stand before or after the "
				    "verb.";

static void print_overview_examples(void)
{
	static const struct verb_example examples[] = {
		{"wherry -s /srv/ferry init", "make a store"},
		{"export WHERRY_STORE=/srv/ferry", "and use it from here on"},
		{"wherry sync /dev/sda web01", "copy a disk; again later: changes"},
		{"wherry images web01", "what there is of it"},
		{"wherry export web01@latest disk.img", "get it back"},
	};

	(void)printf("\nEXAMPLES\n");
	for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++)
		(void)printf("%*s%-38s%s\n", INDENT_COLUMNS, "", examples[i].command, examples[i].what);
}

static void print_verb_list(FILE *to)
{
	size_t widest = 0;

	for (size_t i = 0; verbs[i] != NULL; i++)
		if (strlen(verbs[i]->name) > widest)
			widest = strlen(verbs[i]->name);
	for (size_t i = 0; verbs[i] != NULL; i++)
		(void)fprintf(to, "%*s%-*s  %s\n", INDENT_COLUMNS, "", (int)widest, verbs[i]->name, verbs[i]->summary);
}

void help_print_overview(bool to_stderr)
{
	if (to_stderr) {
		(void)fprintf(stderr, "Usage: wherry [-s STORE] VERB [ARGUMENT]... [OPTION]...\n\n");
		print_verb_list(stderr);
		(void)fprintf(stderr, "\n'wherry VERB --help' says more about each, 'wherry --help' about all.\n");
		return;
	}
	(void)printf("wherry - copies disks of running servers, and keeps images of every copy\n\nUSAGE\n"
		     "%*swherry [-s STORE] VERB [ARGUMENT]... [OPTION]...\n\n",
		     INDENT_COLUMNS, "");
	print_paragraphs(overview_text);
	(void)printf("\nVERBS\n");
	print_verb_list(stdout);
	(void)printf("\n%*s'wherry VERB --help' or 'wherry help VERB' says more about each.\n\nOPTIONS\n",
		     INDENT_COLUMNS, "");
	print_option(NULL, OPTION_STORE, NULL);
	print_option(NULL, OPTION_JSON, NULL);
	print_option(NULL, OPTION_HELP, "this text, or that of a verb");
	print_option(NULL, OPTION_VERSION, NULL);
	(void)printf("\nEXIT STATUS\n"
		     "    0    done\n"
		     "    1    failed; a line on standard error says what, why, and what to do\n"
		     "    2    wrong usage\n"
		     "    3    done, but differences or damage were found\n"
		     "    130  stopped by a signal; what was finished is kept\n");
	print_overview_examples();
}

/* ---- for bash completion ---- */

/* "--level TAB N TAB 0 1 2 …": the option, what the help calls its value, what can be offered for it. */
static void print_option_entry(const struct verb *verb, enum option_id id)
{
	const struct option_kind *kind = &option_kinds[id];
	const struct verb_option *own = verb == NULL ? NULL : verb_option_of(verb, id);
	const char *also = own == NULL ? NULL : own->also;
	const char *argument = verb_option_argument(verb, id);

	(void)printf("--%s\t%s\t%s%s%s\n", kind->name, argument == NULL ? "" : argument,
		     kind->completion == NULL || (argument == NULL && kind->argument != NULL) ? "" : kind->completion, also == NULL ? "" : " ",
		     also == NULL ? "" : also);
}

static void print_options_list(const struct verb *verb)
{
	for (int id = 0; id < OPTION_COUNT; id++)
		if (verb == NULL || verb_takes_option(verb, (enum option_id)id))
			print_option_entry(verb, (enum option_id)id);
}

static void print_arguments_list(const struct verb *verb)
{
	static const char *const words[] = {
		[ARGUMENT_SOURCE] = "source",	    [ARGUMENT_DISK] = "disk",	  [ARGUMENT_IMAGE] = "image",
		[ARGUMENT_REFERENCE] = "reference", [ARGUMENT_TARGET] = "target", [ARGUMENT_VERB] = "verb",
		[ARGUMENT_NEW_DISK] = "name",	    [ARGUMENT_SIZE] = "size",
		[ARGUMENT_DEVICE] = "device",	    [ARGUMENT_ATTACHED] = "attached",
		[ARGUMENT_FILES] = "reference",	    [ARGUMENT_DIRECTORY] = "directory", [ARGUMENT_MOUNTED] = "mounted",
	};

	for (unsigned int i = 0; i < verb->argument_count; i++)
		(void)printf("%s%s\n", words[verb->arguments[i].kind], verb->arguments[i].repeats ? "..." : "");
}

bool help_print_list(int argc, char **argv)
{
	const char *list = argc >= 2 ? argv[1] : "";
	const struct verb *verb = argc == 3 ? verb_find(argv[2]) : NULL;

	if (argc == 2 && strcmp(list, "--list-verbs") == 0) {
		for (size_t i = 0; verbs[i] != NULL; i++)
			(void)puts(verbs[i]->name);
		return true;
	}
	if ((argc == 2 || verb != NULL) && strcmp(list, "--list-options") == 0) {
		print_options_list(verb);
		return true;
	}
	if (verb != NULL && strcmp(list, "--list-arguments") == 0) {
		print_arguments_list(verb);
		return true;
	}
	return false;
}

static enum exit_status run_help(const struct command_line *line)
{
	if (line->argument_count == 0)
		help_print_overview(false);
	else
		help_print_verb(verb_find(line->arguments[0]));
	return STATUS_DONE;
}

const struct verb verb_help = {
	.name = "help",
	.summary = "what a verb does, its options, and examples",
	.description = "The same as 'wherry VERB --help'; without a verb, the same as 'wherry --help'.",
	.argument_count = 1,
	.arguments = {{.name = "VERB", .kind = ARGUMENT_VERB, .optional = true}},
	.example_count = 1,
	.examples = {{"wherry help sync", "all about rounds"}},
	.is_plain = true,
	.run = run_help,
};
