/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress, shown.
 *
 *     mode    what                                                     when
 *     bar     one line, drawn over itself, as wide as the terminal     at most four times a second
 *     lines   a line that stands                                       every five seconds, and the last state
 *     json    a line for a program                                     as often as the operation reports
 *     none    nothing
 *
 * The operation reports from a thread of its own and other threads have things to
 * say meanwhile, so all that goes to standard error goes through one lock here and
 * leaves in one write(): a warning lands above the bar, never inside of it.
 *
 * A bar that jumps is unpleasant to watch: every field has the width of its widest
 * value. Fields that find no room are left out whole, the least wanted first. The
 * terminal is asked for its width for each frame: that costs nothing at four a second, and
 * needs no SIGWINCH.
 */
#include "tools/progress_bar.h"

#include <stdatomic.h>
#include <langinfo.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "tools/signals.h"

static const double bar_every_seconds = 0.25;
static const double line_every_seconds = 5;
static const double most_seconds_shown = 999.0 * 86400; /* what fits into the field of the bar */

static struct {
	pthread_mutex_t lock; /* protects what follows, and standard error */
	enum progress_mode mode;
	bool in_blocks;
	bool bar_is_drawn;
	bool has_last; /* something was reported, and `last` is not on the screen as a line yet */
	struct progress last;
	double due_seconds; /* monotonic: when to show something next */
	const atomic_bool *stop;
	bool stop_was_said;
} display = {.lock = PTHREAD_MUTEX_INITIALIZER, .mode = PROGRESS_NONE};

/* ---- composing: no state, no output ---- */

/* A text that grows in a buffer of PROGRESS_TEXT_BYTES and is cut where that ends. */
__attribute__((format(printf, 2, 3))) static void append(char *text, const char *format, ...)
{
	size_t used_bytes = strlen(text);
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text + used_bytes, PROGRESS_TEXT_BYTES - used_bytes, format, arguments);
	va_end(arguments);
}

/* 0 to 1; what has nothing to do is done. */
static double part_done(const struct progress *progress)
{
	if (progress->done_bytes >= progress->total_bytes)
		return 1;
	return (double)progress->done_bytes / (double)progress->total_bytes;
}

/* Rounded down: 100 is for what is done. */
static unsigned int percent_done(const struct progress *progress)
{
	return (unsigned int)(part_done(progress) * 100);
}

/* "3.7/8.0 GiB": both in the unit of the total. */
static void append_done_of_total(char *text, const struct progress *progress)
{
	char total[UNITS_TEXT_BYTES];
	char both[2 * UNITS_TEXT_BYTES];
	double unit_bytes = 1;
	const char *unit;

	(void)units_format_size(progress->total_bytes, total);
	unit = strchr(total, ' ');
	if (unit != NULL && unit[1] != 'B')
		for (const char *letters = "KMGTPE"; *letters != '\0' && unit_bytes < 1e18; letters++) {
			unit_bytes *= 1024;
			if (*letters == unit[1])
				break;
		}
	if (unit_bytes > 1) {
		double done = (double)progress->done_bytes / unit_bytes;

		(void)snprintf(both, sizeof(both), done < 99.95 ? "%.1f/%s" : "%.0f/%s", done, total);
	} else
		(void)snprintf(both, sizeof(both), "%llu/%s", (unsigned long long)progress->done_bytes, total);
	append(text, "%13s", both);
}

/* A speed out of doubt: not negative, not infinite, not "not a number". */
static uint64_t whole_speed(const struct progress *progress)
{
	if (!(progress->bytes_per_second > 0))
		return 0;
	return progress->bytes_per_second < 1e18 ? (uint64_t)progress->bytes_per_second : (uint64_t)1e18;
}

enum bar_field { FIELD_PHASE, FIELD_DONE, FIELD_SPEED, FIELD_STORED, FIELD_REMAINING, FIELD_COUNT };

static void append_field(char *text, enum bar_field field, const struct progress *progress)
{
	char value[UNITS_TEXT_BYTES];

	switch (field) {
	case FIELD_DONE:
		append(text, "  ");
		append_done_of_total(text, progress);
		break;
	case FIELD_SPEED:
		append(text, "  %8s/s", units_format_size(whole_speed(progress), value));
		break;
	case FIELD_STORED:
		append(text, "  %8s stored", units_format_size(progress->sent_bytes, value));
		break;
	case FIELD_REMAINING:
		if (progress->remaining_seconds >= 0 && progress->remaining_seconds < most_seconds_shown)
			append(text, "  %6s left", units_format_duration(progress->remaining_seconds, value));
		else
			append(text, "  %6s     ", "");
		break;
	case FIELD_PHASE:
	case FIELD_COUNT:
		break;
	}
}

static void append_gauge(char *text, double part, unsigned int cells, bool in_blocks)
{
	static const char *const eighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
	unsigned int steps_a_cell = in_blocks ? 8 : 1;
	unsigned int steps = (unsigned int)(part * cells * steps_a_cell);

	append(text, in_blocks ? "▕" : "[");
	for (unsigned int cell = 0; cell < cells; cell++) {
		unsigned int filled = steps <= cell * steps_a_cell ? 0 : steps - cell * steps_a_cell;

		if (filled >= steps_a_cell)
			append(text, in_blocks ? "█" : "#");
		else
			append(text, "%s", in_blocks ? eighths[filled] : ".");
	}
	append(text, in_blocks ? "▏" : "]");
}

void progress_compose_bar(char text[PROGRESS_TEXT_BYTES], const struct progress *progress, unsigned int columns,
			  bool in_blocks)
{
	enum { GAUGE_LEAST_CELLS = 10, GAUGE_MOST_CELLS = 60, GAUGE_EDGES = 2, PERCENT_COLUMNS = 5 };
	static const unsigned int widths[FIELD_COUNT] = {
		[FIELD_DONE] = 15, [FIELD_SPEED] = 12, [FIELD_STORED] = 17, [FIELD_REMAINING] = 13};
	static const enum bar_field most_wanted_first[] = {FIELD_REMAINING, FIELD_SPEED, FIELD_DONE, FIELD_STORED,
							   FIELD_PHASE};
	bool shown[FIELD_COUNT] = {false};
	unsigned int phase_columns = (unsigned int)strlen(progress->phase) + 1;
	unsigned int used_columns = PERCENT_COLUMNS + GAUGE_EDGES + GAUGE_LEAST_CELLS;
	unsigned int cells;

	text[0] = '\0';
	if (columns < used_columns) {
		if (columns >= PERCENT_COLUMNS)
			append(text, "%3u%%", percent_done(progress));
		return;
	}
	for (size_t i = 0; i < FIELD_COUNT; i++) {
		enum bar_field field = most_wanted_first[i];
		unsigned int width = field == FIELD_PHASE ? phase_columns : widths[field];

		if (field == FIELD_STORED && strcmp(progress->phase, "sync") != 0)
			continue; /* nothing but a round stores anything */
		if (used_columns + width > columns)
			continue;
		shown[field] = true;
		used_columns += width;
	}
	cells = GAUGE_LEAST_CELLS + (columns - used_columns);
	if (cells > GAUGE_MOST_CELLS)
		cells = GAUGE_MOST_CELLS;
	if (shown[FIELD_PHASE])
		append(text, "%s ", progress->phase);
	append_gauge(text, part_done(progress), cells, in_blocks);
	append(text, " %3u%%", percent_done(progress));
	for (int field = FIELD_DONE; field < FIELD_COUNT; field++)
		if (shown[field])
			append_field(text, (enum bar_field)field, progress);
}

void progress_compose_line(char text[PROGRESS_TEXT_BYTES], const struct progress *progress)
{
	char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES], speed[UNITS_TEXT_BYTES], value[UNITS_TEXT_BYTES];

	text[0] = '\0';
	append(text, "%s: %u%%, %s of %s, %s/s", progress->phase, percent_done(progress),
	       units_format_size(progress->done_bytes, done), units_format_size(progress->total_bytes, total),
	       units_format_size(whole_speed(progress), speed));
	if (strcmp(progress->phase, "sync") == 0)
		append(text, ", %s stored", units_format_size(progress->sent_bytes, value));
	if (progress->remaining_seconds >= 0 && progress->done_bytes < progress->total_bytes)
		append(text, ", %s left", units_format_duration(progress->remaining_seconds, value));
}

void progress_compose_json(char text[PROGRESS_TEXT_BYTES], const struct progress *progress)
{
	text[0] = '\0';
	append(text,
	       "{\"phase\":\"%s\",\"total_bytes\":%llu,\"done_bytes\":%llu,\"changed_bytes\":%llu,\"sent_bytes\":%llu,"
	       "\"bytes_per_second\":%llu,\"remaining_seconds\":",
	       progress->phase, (unsigned long long)progress->total_bytes, (unsigned long long)progress->done_bytes,
	       (unsigned long long)progress->changed_bytes, (unsigned long long)progress->sent_bytes,
	       (unsigned long long)whole_speed(progress));
	if (progress->remaining_seconds >= 0 && progress->remaining_seconds < 1e15)
		append(text, "%.1f}", progress->remaining_seconds);
	else
		append(text, "null}");
}

/* ---- showing: all of it with display.lock held ---- */

/* A pipe that is full is waited for; a standard error that is gone loses the text, and there is nobody to tell. */
static void write_all_locked(const char *text)
{
	size_t left_bytes = strlen(text);

	while (left_bytes > 0) {
		ssize_t written = write(STDERR_FILENO, text, left_bytes);

		if (written <= 0)
			return;
		text += written;
		left_bytes -= (size_t)written;
	}
}

static void print_line_locked(const char *text)
{
	char line[2 * PROGRESS_TEXT_BYTES + 8];

	/* "\r", erase to the end of the line: the bar makes room, and is drawn anew with the next report. */
	(void)snprintf(line, sizeof(line), "%s%s\n", display.bar_is_drawn ? "\r\033[K" : "", text);
	write_all_locked(line);
	display.bar_is_drawn = false;
	signals_set_last_words("");
}

static unsigned int terminal_columns(void)
{
	struct winsize size = {.ws_col = 0};

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
		return size.ws_col;
	return 80;
}

static void draw_bar_locked(void)
{
	char bar[PROGRESS_TEXT_BYTES];
	char frame[PROGRESS_TEXT_BYTES + 16];

	/* One column less than there are: terminals differ in what they do after the last one. */
	progress_compose_bar(bar, &display.last, terminal_columns() - 1, display.in_blocks);
	(void)snprintf(frame, sizeof(frame), "\r%s\033[K", bar);
	write_all_locked(frame);
	display.bar_is_drawn = true;
	signals_set_last_words("\n");
}

static void print_last_locked(void)
{
	char text[PROGRESS_TEXT_BYTES];

	if (display.mode == PROGRESS_JSON)
		progress_compose_json(text, &display.last);
	else
		progress_compose_line(text, &display.last);
	print_line_locked(text);
	display.has_last = false;
}

/* Once a signal has asked to stop, say that it was heard. */
static void say_stop_locked(void)
{
	if (display.stop == NULL || !*display.stop || display.stop_was_said)
		return;
	display.stop_was_said = true;
	print_line_locked("wherry: stopping, and keeping what is done; a second signal ends it at once");
}

static void show_progress(void *opaque, const struct progress *progress)
{
	double now_seconds = units_monotonic_seconds();

	(void)opaque;
	WITH_LOCK(&display.lock);
	display.last = *progress;
	display.has_last = true;
	say_stop_locked();
	if (display.mode == PROGRESS_JSON) {
		print_last_locked();
		return;
	}
	if (display.mode == PROGRESS_NONE || now_seconds < display.due_seconds)
		return;
	if (display.mode == PROGRESS_BAR) {
		draw_bar_locked();
		/* From when it was due and not from now, or reports every 0.249 s would be shown every 0.498 s. */
		display.due_seconds += bar_every_seconds;
	} else {
		print_last_locked();
		display.due_seconds += line_every_seconds;
	}
	if (display.due_seconds < now_seconds)
		display.due_seconds = now_seconds;
}

static void say_notice(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	report_line("wherry: %s%s", level == NOTICE_WARNING ? "warning: " : "", text);
}

static const struct notices the_notices = {.say = say_notice};

const struct notices *progress_notices(void)
{
	return &the_notices;
}

static enum progress_mode choose_mode(void)
{
	const char *terminal = getenv("TERM");

	if (!isatty(STDERR_FILENO) || terminal == NULL || *terminal == '\0' || strcmp(terminal, "dumb") == 0)
		return PROGRESS_LINES;
	return PROGRESS_BAR;
}

void progress_begin(enum progress_mode mode, struct operation *operation)
{
	const char *character_set = nl_langinfo(CODESET);

	WITH_LOCK(&display.lock);
	display.mode = mode == PROGRESS_AUTO ? choose_mode() : mode;
	display.in_blocks = strcmp(character_set, "UTF-8") == 0;
	display.has_last = false;
	display.bar_is_drawn = false;
	display.stop = signals_ask_to_stop();
	display.stop_was_said = false;
	display.due_seconds = units_monotonic_seconds();
	if (display.mode == PROGRESS_LINES)
		display.due_seconds += line_every_seconds;
	operation->notices = &the_notices;
	operation->progress = show_progress;
	operation->progress_opaque = NULL;
	operation->stop = display.stop;
}

void progress_end(void)
{
	WITH_LOCK(&display.lock);
	if (display.mode == PROGRESS_LINES && display.has_last)
		print_last_locked();
	if (display.bar_is_drawn)
		write_all_locked("\r\033[K");
	display.bar_is_drawn = false;
	display.mode = PROGRESS_NONE;
	signals_set_last_words("");
}

void report_line(const char *format, ...)
{
	struct failure line = {.code = 0};
	char text[2 * PROGRESS_TEXT_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	(void)fail(&line, -1, "%s", text); /* for what it does to control characters, and to what is too long */
	WITH_LOCK(&display.lock);
	print_line_locked(line.message);
}
