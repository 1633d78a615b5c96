/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD URIs.
 *
 *     nbd[s]://[USER@]HOST[:PORT][/EXPORT][?PARAMETERS]
 *     nbd+unix://[/EXPORT]?socket=PATH
 *
 * libnbd does the connecting and knows the syntax. Two questions are ours: whether it will verify the server of an
 * nbds:// URI, which libnbd 1.14 does only when the URI names a host; and what of a URI may be shown to others. User
 * names and files of keys are no one's business, and a password, which the syntax doesn't know but somebody will write,
 * even less.
 */
#include "syncer/source_nbd_uri.h"

#include <errno.h>
#include <string.h>

#include "common/cleanup.h"

struct uri_parts {
	size_t scheme_bytes; /* with "://" */
	const char *host;    /* with port, after any "USER@" */
	size_t host_bytes;   /* 0: none */
	const char *path;    /* "" or from '/' on */
	size_t path_bytes;
	const char *parameters; /* after '?'; "" when there are none */
};

static struct uri_parts split_uri(const char *uri)
{
	struct uri_parts parts;
	const char *authority = strstr(uri, "://") + 3; /* the caller has seen it */
	size_t authority_bytes = strcspn(authority, "/?#");
	const char *user_end = memrchr(authority, '@', authority_bytes);

	parts.scheme_bytes = (size_t)(authority - uri);
	parts.host = user_end != NULL ? user_end + 1 : authority;
	parts.host_bytes = (size_t)(authority + authority_bytes - parts.host);
	parts.path = authority + authority_bytes;
	parts.path_bytes = strcspn(parts.path, "?#");
	parts.parameters = parts.path[parts.path_bytes] == '?' ? parts.path + parts.path_bytes + 1 : "";
	return parts;
}

int source_nbd_check_uri(const char *uri, struct failure *failure)
{
	struct uri_parts parts = split_uri(uri);
	AUTO_FREE char *name = source_nbd_public_name(uri);

	if (name == NULL)
		return fail(failure, -ENOMEM, "NBD source: out of memory");
	if (strncmp(uri, "nbds://", 7) == 0 && (parts.host_bytes == 0 || parts.host[0] == ':'))
		return fail(failure, -EINVAL,
			    "%s: TLS needs the server's name, without it the certificate would not be verified; "
			    "write nbds://HOST/EXPORT",
			    name);
	return 0;
}

/* "socket=/run/x.sock" of "a=b&socket=/run/x.sock"; NULL when it isn't there. */
static const char *find_socket(const char *parameters, size_t *ret_bytes)
{
	while (*parameters != '\0' && *parameters != '#') {
		size_t bytes = strcspn(parameters, "&;#");

		if (strncmp(parameters, "socket=", 7) == 0) {
			*ret_bytes = bytes;
			return parameters;
		}
		parameters += bytes;
		parameters += *parameters == '&' || *parameters == ';';
	}
	return NULL;
}

char *source_nbd_public_name(const char *uri)
{
	struct uri_parts parts = split_uri(uri);
	size_t socket_bytes = 0;
	const char *socket = find_socket(parts.parameters, &socket_bytes);
	char *name = malloc(strlen(uri) + 1); /* only ever shorter */
	char *at = name;

	if (name == NULL)
		return NULL;
	at = mempcpy(at, uri, parts.scheme_bytes);
	at = mempcpy(at, parts.host, parts.host_bytes);
	at = mempcpy(at, parts.path, parts.path_bytes);
	if (socket != NULL) {
		*at++ = '?';
		at = mempcpy(at, socket, socket_bytes);
	}
	*at = '\0';
	return name;
}
