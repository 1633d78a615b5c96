/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit with our plugin, as serve-nbd and attach start it.
 *
 * The socket is made here and handed over (as systemd does it): it takes connections before nbdkit is ready for them,
 * and whether an old socket may be taken away is decided here: it may if nobody answers on it. That is one step with the
 * making of a new one, by a lock on the folder, or two that start at once could take away each other's.
 */
#ifndef WHERRY_TOOLS_NBD_SERVER_H
#define WHERRY_TOOLS_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/failure.h"
#include "tools/command.h"

struct nbd_server {
	const char *reference;	       /* what is served; NULL: everything */
	const struct options *options; /* store, scratch, cache, rw, read_only, TLS */
	bool ends_with_last_client;    /* rather than with us */
	const char *log_path;	       /* its standard error; NULL: ours */
	int ready_fd;		       /* a pipe that it writes to when it has its keys and plugin, 10 or above; -1: none */
};

/* Listen. -EADDRINUSE: somebody answers there. -ENAMETOOLONG. */
int nbd_listen_unix(const char *path, int *ret_fd, struct failure *failure);
/* Takes the socket away when nobody listens on it any more; not one that another server has made there meanwhile. */
void nbd_remove_socket(const char *path);
int nbd_listen_tcp(const char *address, uint16_t port, int *ret_fd, uint16_t *ret_port, struct failure *failure);

/* True for 127.0.0.0/8, ::1 and "localhost". */
bool nbd_address_is_loopback(const char *address);

/* Looks whether nbdkit and the plugin are there: -ENOENT says what to install. */
int nbd_server_check(struct failure *failure);

/* Looks whether the files that the options for TLS name can be read. */
int nbd_server_check_tls(const struct options *options, struct failure *failure);

/*
 * Starts it on a socket that listens, in a session of its own if it has a log. It ends when we do, unless it ends with
 * its last client. What was wrong with its arguments it says itself, on standard error.
 */
int nbd_server_start(const struct nbd_server *server, int socket_fd, pid_t *ret_pid, struct failure *failure);

#endif
