/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BURST lines are let through every PERIOD_SECONDS; what came above that is one more line, when the next period begins.
 */
#include "fusefs/log.h"

#include <stdio.h>
#include <syslog.h>

#include "common/cleanup.h"
#include "common/units.h"

enum { BURST = 20, PERIOD_SECONDS = 10 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool is_system;
static double period_began;
static unsigned lines; /* of this period */

static void put_locked(const char *text)
{
	if (is_system)
		syslog(LOG_WARNING, "%s", text);
	else
		(void)fprintf(stderr, "wherryfs: %s\n", text); /* nobody to tell if it fails */
}

void log_line(const char *text)
{
	double now = units_monotonic_seconds();
	WITH_LOCK(&lock);

	if (now - period_began >= PERIOD_SECONDS) {
		if (lines > BURST) {
			char more[64];

			(void)snprintf(more, sizeof(more), "%u more lines like these were left out", lines - BURST);
			put_locked(more);
		}
		period_began = now;
		lines = 0;
	}
	if (lines++ < BURST)
		put_locked(text);
}

void log_to_system(void)
{
	WITH_LOCK(&lock);

	openlog("wherryfs", LOG_PID, LOG_DAEMON);
	is_system = true;
}

static void say(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	if (level == NOTICE_WARNING)
		log_line(text);
}

const struct notices log_notices = {.say = say};
