/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libnbd, loaded when the first NBD source is opened.
 *
 * It brings GnuTLS, libxml2 and ICU: sixteen libraries with 40 MiB of tables that
 * every start of the program would map and relocate, for the one kind of source
 * that needs them. Its functions are called as libnbd->NAME(…) here; NAME is what
 * follows "nbd_" in its manual.
 */
#ifndef WHERRY_SYNCER_LIBNBD_CALLS_H
#define WHERRY_SYNCER_LIBNBD_CALLS_H

#include <libnbd.h>

#include "common/failure.h"

#define LIBNBD_CALLS(X)              \
	X(add_meta_context)          \
	X(aio_block_status)          \
	X(aio_connect_uri)           \
	X(aio_disconnect)            \
	X(aio_get_direction)         \
	X(aio_get_fd)                \
	X(aio_is_closed)             \
	X(aio_is_dead)               \
	X(aio_is_negotiating)        \
	X(aio_is_ready)              \
	X(aio_notify_read)           \
	X(aio_notify_write)          \
	X(aio_opt_abort)             \
	X(aio_opt_go)                \
	X(aio_opt_list)              \
	X(aio_opt_list_meta_context) \
	X(aio_pread)                 \
	X(aio_pread_structured)      \
	X(can_df)                    \
	X(can_meta_context)          \
	X(clear_meta_contexts)       \
	X(close)                     \
	X(create)                    \
	X(get_block_size)            \
	X(get_errno)                 \
	X(get_error)                 \
	X(get_export_name)           \
	X(get_size)                  \
	X(is_read_only)              \
	X(set_opt_mode)              \
	X(set_strict_mode)           \
	X(set_uri_allow_local_file)  \
	X(set_uri_allow_tls)         \
	X(set_uri_allow_transports)

struct libnbd_calls {
#define LIBNBD_POINTER(name) __typeof__(nbd_##name) *name;
	LIBNBD_CALLS(LIBNBD_POINTER)
#undef LIBNBD_POINTER
};

/* The library's functions; none of them may be called before libnbd_load() has succeeded once. */
extern const struct libnbd_calls *const libnbd;

/*
 * Loads the library, once a process; it stays. From any thread. -ELIBACC with the
 * loader's reason when it, one of its own libraries, or a function is missing.
 */
int libnbd_load(struct failure *failure);

#endif
