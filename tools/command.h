/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line as a table.
 *
 * A verb says in one structure what it is called, what it takes and what it
 * does. Everything that has to agree with that is made from it: dispatch, the
 * checks of what was typed, --help, and the lists that bash completion asks for.
 * The man page is written by hand, and tests/check-help holds it against the table.
 *
 * Wrong usage is found before anything is opened: a verb's run() sees options and
 * arguments that are well-formed, and what is left to find out is the store's to say.
 */
#ifndef WHERRY_TOOLS_COMMAND_H
#define WHERRY_TOOLS_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/round.h"

/* What a verb's run() returns and the process exits with. Nothing else is ever used. */
enum exit_status {
	STATUS_DONE = 0,
	STATUS_FAILED = 1,
	STATUS_USAGE = 2,
	STATUS_DIFFERENT = 3, /* done, and differences or damage were found */
	STATUS_STOPPED = 130, /* by a signal; what is finished is kept */
};

/* ---- options ---- */

enum option_id {
	OPTION_STORE,
	OPTION_HELP,
	OPTION_VERSION,
	OPTION_JSON,
	OPTION_DRY_RUN,
	OPTION_PROGRESS,
	OPTION_CHUNK_SIZE,
	OPTION_KEEP,
	OPTION_LEVEL,
	OPTION_LIMIT,
	OPTION_NO_IMAGE,
	OPTION_LABEL,
	OPTION_READ_ALL,
	OPTION_ON_READ_ERROR,
	OPTION_VERIFY,
	OPTION_DIRTY_BITMAP,
	OPTION_ALLOW_SHRINK,
	OPTION_SOURCE,
	OPTION_DEEP,
	OPTION_REPAIR,
	OPTION_SALVAGE,
	OPTION_SECTOR_SIZE,
	OPTION_SOCKET,
	OPTION_ADDRESS,
	OPTION_PORT,
	OPTION_INSECURE,
	OPTION_TLS_CERTIFICATES,
	OPTION_TLS_PSK,
	OPTION_SCRATCH,
	OPTION_READ_ONLY,
	OPTION_CACHE,
	OPTION_RW,
	OPTION_VIA,
	OPTION_OPTIONS,
	OPTION_FOREGROUND,
	OPTION_ALLOW_OTHER,
	OPTION_DISK,
	OPTION_COUNT,
};

struct option_kind {
	const char *name;
	char letter;		/* 0: none */
	const char *argument;	/* what the help calls it: "RATE"; NULL: takes none */
	const char *completion; /* for the shell: "directory", "source", or words with blanks between; NULL: nothing to
				   offer */
	const char *help;
};
extern const struct option_kind option_kinds[OPTION_COUNT];

/* The ways to a file system in a disk or image, in the order of their speed. */
enum mount_via { VIA_BEST, VIA_NBD, VIA_LOOP, VIA_FILES };

enum progress_mode { PROGRESS_AUTO, PROGRESS_BAR, PROGRESS_LINES, PROGRESS_JSON, PROGRESS_NONE };

/* has_… is true for what was given. What was not given is 0, false or NULL, but for `store`. */
struct options {
	const char *store; /* --store, else $WHERRY_STORE, else /var/lib/wherry */
	bool help;
	bool version;
	bool json;
	bool dry_run;
	enum progress_mode progress;
	uint32_t chunk_bytes;
	bool has_keep;
	uint32_t keep; /* 0: all of them */
	bool has_level;
	int level; /* -1: the default */
	bool has_limit;
	uint64_t limit_bytes_per_second; /* 0: none */
	bool no_image;
	const char *label;
	bool read_all;
	enum read_error_policy on_read_error;
	bool verify;
	const char *dirty_bitmap;
	bool allow_shrink;
	const char *source;
	bool deep;
	bool repair;
	bool salvage;
	uint32_t sector_bytes; /* 0: not given */
	const char *socket;
	const char *address;
	bool has_port;
	uint16_t port; /* 0: any that is free */
	bool insecure;
	const char *tls_certificates;
	const char *tls_psk;
	bool scratch;
	bool read_only;
	uint64_t cache_bytes; /* 0: the default */
	bool write_mirror; /* --rw mirror */
	bool write;	   /* --rw, of `mount` */
	enum mount_via via;
	const char *mount_options; /* as -o of mount(8) and of FUSE has them */
	bool foreground;
	bool allow_other;
	const char *disk;
};

/* ---- verbs ---- */

enum argument_kind {
	ARGUMENT_SOURCE,
	ARGUMENT_DISK,
	ARGUMENT_NEW_DISK, /* the name of one that isn't there yet */
	ARGUMENT_IMAGE,	    /* DISK@N or DISK@latest, all of it */
	ARGUMENT_REFERENCE, /* any reference */
	ARGUMENT_FILES,	    /* the same, or one with /VG/LV behind it, for a logical volume */
	ARGUMENT_TARGET,    /* file, device, or "-" */
	ARGUMENT_SIZE,
	ARGUMENT_DEVICE,     /* /dev/nbdN */
	ARGUMENT_ATTACHED,   /* the same, or what is attached */
	ARGUMENT_DIRECTORY,  /* to mount on */
	ARGUMENT_MOUNTED,    /* on which `mount` has mounted something */
	ARGUMENT_VERB,
};

struct verb_argument {
	const char *name; /* as the usage line shows it */
	enum argument_kind kind;
	bool optional;
	bool repeats; /* the last one only */
};

#define DEFAULT_STORE "/var/lib/wherry" /* where neither --store nor $WHERRY_STORE says which one */

struct verb_option {
	enum option_id id;
	bool required;
	const char *also; /* a word that it takes here besides what it usually takes: "default" for --level, "all" for
			     --keep */
	const char *help; /* instead of the usual one; NULL: that */
	bool is_flag;	  /* takes no value here, and does elsewhere: --rw */
};

struct verb_example {
	const char *command;
	const char *what;
};

enum { VERB_ARGUMENTS_MOST = 2, VERB_OPTIONS_MOST = 16, VERB_EXAMPLES_MOST = 7 };

struct command_line;

struct verb {
	const char *name;
	const char *summary;	 /* for the list of verbs: at most 56 characters */
	const char *description; /* paragraphs with an empty line between; wrapped by the help */
	const char *appendix;	 /* printed as it stands below the options; NULL: none */
	unsigned int argument_count;
	struct verb_argument arguments[VERB_ARGUMENTS_MOST];
	unsigned int option_count;
	struct verb_option options[VERB_OPTIONS_MOST]; /* besides --store, --json and --help, which all have */
	unsigned int example_count;
	struct verb_example examples[VERB_EXAMPLES_MOST];
	bool is_plain; /* has no store, and no document to print as JSON: `help` */
	enum exit_status (*run)(const struct command_line *line);
};

extern const struct verb verb_init;
extern const struct verb verb_sync;
extern const struct verb verb_set;
extern const struct verb verb_disks;
extern const struct verb verb_images;
extern const struct verb verb_rounds;
extern const struct verb verb_image;
extern const struct verb verb_create;
extern const struct verb verb_clone;
extern const struct verb verb_delete;
extern const struct verb verb_remove;
extern const struct verb verb_pin;
extern const struct verb verb_unpin;
extern const struct verb verb_retain;
extern const struct verb verb_export;
extern const struct verb verb_serve_nbd;
extern const struct verb verb_attach;
extern const struct verb verb_detach;
extern const struct verb verb_fs;
extern const struct verb verb_mount;
extern const struct verb verb_umount;
extern const struct verb verb_verify;
extern const struct verb verb_check;
extern const struct verb verb_df;
extern const struct verb verb_gc;
extern const struct verb verb_rebuild;
extern const struct verb verb_help;

/* All of them, in the order of the help, with NULL at the end. */
extern const struct verb *const verbs[];

const struct verb *verb_find(const char *name);					      /* NULL: there is none */
bool verb_takes_option(const struct verb *verb, enum option_id id);		      /* also one that all have */
const struct verb_option *verb_option_of(const struct verb *verb, enum option_id id); /* NULL: not one of its own */
/* What the help calls the option's value; NULL: it takes none, or not here. `verb` NULL: as it is usually. */
const char *verb_option_argument(const struct verb *verb, enum option_id id);

/* ---- what was typed ---- */

struct command_line {
	const struct verb *verb; /* NULL with --help or --version alone, or when nothing was typed */
	struct options options;
	const char **arguments; /* of the verb; the array is owned, the texts are the process's */
	size_t argument_count;
};

/*
 * Takes an argv apart, options before and after the verb alike, and checks all of it.
 * -EINVAL: wrong usage, the message has the hint. Prints nothing.
 */
int command_line_parse(int argc, char **argv, struct command_line *ret_line, struct failure *failure);
void command_line_free(struct command_line *line);

/* DISK@N and the like, which command_line_parse() has checked. */
void command_line_reference(const struct command_line *line, size_t argument, struct store_reference *ret_reference);

/*
 * What ARGUMENT_FILES is: a reference, or one of a whole disk or image with "/VG/LV" behind it. *ret_volume is "VG/LV", which the caller frees, or NULL;
 * `ret_volume` itself may be NULL.
 */
int command_line_files(const char *text, struct store_reference *ret_reference, char **ret_volume, struct failure *failure);

/* Opens the store that the options name. */
int command_line_open_store(const struct command_line *line, bool read_only, struct store **ret_store,
			    struct failure *failure);
/*
 * The same for who reads that: of live content there may be a journal left, by a server that was killed, whose writes are
 * to be brought to their place first. For reading only where it can't be written to.
 */
int command_line_open_store_to_read(const struct command_line *line, const struct store_reference *reference,
				    struct store **ret_store, struct failure *failure);
static inline void cleanup_store(struct store **store)
{
	store_close(*store);
}
static inline void cleanup_view(struct store_view **view)
{
	if (*view != NULL)
		store_view_close(*view);
}

/* "wherry sync /dev/sda web01", for whoever finds something locked by us. Caller frees; NULL when out of memory. */
char *command_line_doing(const struct command_line *line);

/* ---- ends ---- */

/* "wherry: MESSAGE" on standard error, and the exit status that the code stands for. */
enum exit_status report_failure(const struct failure *failure);

/* A verb finds out that two options don't go together: the message with the hint to its help, and STATUS_USAGE. */
__attribute__((format(printf, 2, 3))) enum exit_status report_usage(const struct verb *verb, const char *format, ...);

/* One line on standard error, made safe to print, in one piece, around a progress bar if there is one. */
__attribute__((format(printf, 1, 2))) void report_line(const char *format, ...);

/* ---- help ---- */

void help_print_overview(bool to_stderr); /* short on standard error, whole on standard output */
void help_print_verb(const struct verb *verb);

/* For bash completion: `--list-verbs`, `--list-options VERB`, `--list-arguments VERB`. True if argv was one of these.
 */
bool help_print_list(int argc, char **argv);

/* ---- the nearest word ---- */

/*
 * The candidate that was probably meant, or NULL when none is near. Counts letters missing, added, changed
 * and swapped; a beginning of a candidate is near too.
 */
const char *suggest_word(const char *typed, const char *const *candidates, size_t count);

#endif
