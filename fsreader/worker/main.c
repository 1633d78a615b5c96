/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry-fsreader: reads what may have been made to break whoever reads it. Started by the library of this folder, in a
 * sandbox, with a socket as descriptor 3; nobody else has a use for it.
 *
 * The dynamic loader is done when main() begins, so the first thing it does is to give up all system calls but those
 * that take no one anywhere.
 */
#include <stdio.h>
#include <string.h>

#include "fsreader/sandbox.h"
#include "fsreader/worker/ext_worker.h"
#include "fsreader/worker/lvm_worker.h"

static const struct job {
	const char *name;
	int (*run)(int socket);
} jobs[] = {
	{"ext", ext_main},
	{"lvm", lvm_main},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 2 && i < sizeof(jobs) / sizeof(jobs[0]); i++) {
		if (strcmp(argv[1], jobs[i].name) != 0)
			continue;
		if (sandbox_confine_worker() < 0)
			return 1;
		return jobs[i].run(EXT_SOCKET_FD);
	}
	(void)fprintf(stderr, "wherry-fsreader: a part of wherry, which starts it itself\n");
	return 2;
}
