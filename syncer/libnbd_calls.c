/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table is filled under a lock, and never changed once all of it is there, so
 * that whoever has loaded it reads it without one. A failure is not remembered: the next caller tries
 * again, and gets a message of its own. The library is never unloaded: GnuTLS
 * registers things that are to be found at exit.
 *
 * The compiler checks each call against libnbd.h, by the type of the pointer; the
 * name of the shared object stands for that interface (its soname).
 */
#include "syncer/libnbd_calls.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>

#include "common/cleanup.h"

static struct libnbd_calls calls;
const struct libnbd_calls *const libnbd = &calls;

static const char library_name[] = "libnbd.so.0";

static const struct {
	const char *symbol;
	size_t off_bytes; /* of its pointer in the table */
} symbols[] = {
#define LIBNBD_SYMBOL(name) {"nbd_" #name, offsetof(struct libnbd_calls, name)},
	LIBNBD_CALLS(LIBNBD_SYMBOL)
#undef LIBNBD_SYMBOL
};

static int load_locked(struct failure *failure)
{
	void *library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);

	if (library == NULL)
		return fail(failure, -ELIBACC, "NBD sources: %s; install the package libnbd0", dlerror());
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *function = dlsym(library, symbols[i].symbol);

		if (function == NULL) {
			(void)fail(failure, -ELIBACC, "NBD sources: %s; install libnbd0 of this system's release",
				   dlerror());
			(void)dlclose(library);
			return -ELIBACC;
		}
		*(void **)((char *)&calls + symbols[i].off_bytes) = function;
	}
	return 0;
}

int libnbd_load(struct failure *failure)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static bool is_loaded;

	WITH_LOCK(&mutex);
	if (!is_loaded) {
		int error = load_locked(failure);

		if (error < 0)
			return error;
		is_loaded = true;
	}
	return 0;
}
