/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD protocol as far as libnbd speaks it: fixed newstyle negotiation, structured or simple replies. Numbers are
 * from the protocol's doc/proto.md. It trusts its client, which is the program under test.
 */
#include "fake_nbd_server.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	OPTION_ABORT = 2,
	OPTION_LIST = 3,
	OPTION_GO = 7,
	OPTION_STRUCTURED_REPLY = 8,
	OPTION_LIST_CONTEXT = 9,
	OPTION_SET_CONTEXT = 10,
	REPLY_ACK = 1,
	REPLY_SERVER = 2,
	REPLY_INFO = 3,
	REPLY_CONTEXT = 4,
	COMMAND_READ = 0,
	COMMAND_STATUS = 7,
	CHUNK_NONE = 0,
	CHUNK_DATA = 1,
	CHUNK_STATUS = 5,
	CHUNK_ERROR = 0x8001,
	FLAG_DONE = 1,
};

#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define OPTION_REPLY_MAGIC UINT64_C(0x3e889045565a9)
#define REPLY_UNSUPPORTED UINT32_C(0x80000001)
#define REPLY_UNKNOWN UINT32_C(0x80000006)

struct request {
	uint16_t type;
	uint64_t cookie; /* as it came */
	uint64_t off_bytes;
	uint32_t len_bytes;
};

uint8_t fake_nbd_server_byte(uint64_t off_bytes)
{
	return (uint8_t)((off_bytes & ~UINT64_C(7)) >> (8 * (7 - off_bytes % 8)));
}

static void must(bool worked, const char *what)
{
	if (worked)
		return;
	fprintf(stderr, "fake NBD server: %s: %s\n", what, strerror(errno));
	abort();
}

/* ------------------------------------------------------------------ bytes */

static bool receive(const struct fake_nbd_server *server, void *at, size_t len_bytes)
{
	return len_bytes == 0 || recv(server->client_fd, at, len_bytes, MSG_WAITALL) == (ssize_t)len_bytes;
}

static bool send_all(const struct fake_nbd_server *server, const void *from, size_t len_bytes)
{
	const char *at = from;

	while (len_bytes > 0) {
		ssize_t sent = send(server->client_fd, at, len_bytes, MSG_NOSIGNAL);

		if (sent <= 0)
			return false;
		at += sent;
		len_bytes -= (size_t)sent;
	}
	return true;
}

static uint8_t *put16(uint8_t *at, unsigned value)
{
	uint16_t word = htobe16((uint16_t)value);

	return mempcpy(at, &word, sizeof(word));
}

static uint8_t *put32(uint8_t *at, uint32_t value)
{
	value = htobe32(value);
	return mempcpy(at, &value, sizeof(value));
}

static uint8_t *put64(uint8_t *at, uint64_t value)
{
	value = htobe64(value);
	return mempcpy(at, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return be32toh(value);
}

/* ------------------------------------------------------------ negotiation */

static bool reply_option(const struct fake_nbd_server *server, uint32_t option, uint32_t type, const void *data,
			 size_t len_bytes)
{
	uint8_t head[20];
	uint8_t *at = put64(head, OPTION_REPLY_MAGIC);

	at = put32(at, option);
	at = put32(at, type);
	(void)put32(at, (uint32_t)len_bytes);
	return send_all(server, head, sizeof(head)) && send_all(server, data, len_bytes);
}

static bool reply_name(const struct fake_nbd_server *server, uint32_t option, uint32_t type, uint32_t number,
		       const char *name)
{
	uint8_t data[512];
	size_t name_bytes = strlen(name);

	memcpy(put32(data, number), name, name_bytes);
	return reply_option(server, option, type, data, 4 + name_bytes);
}

static bool is_known_export(const struct fake_nbd_server *server, const uint8_t *data)
{
	uint32_t name_bytes = get32(data);

	return server->export_name == NULL ||
	       (strlen(server->export_name) == name_bytes && memcmp(server->export_name, data + 4, name_bytes) == 0);
}

static bool reply_go(const struct fake_nbd_server *server, const uint8_t *data)
{
	uint8_t info[14];

	if (!is_known_export(server, data))
		return reply_option(server, OPTION_GO, REPLY_UNKNOWN, NULL, 0);
	(void)put16(put64(put16(info, 0), server->size_bytes), 3); /* has flags, read only */
	if (!reply_option(server, OPTION_GO, REPLY_INFO, info, 12))
		return false;
	if (server->block_bytes[0] != 0) {
		uint8_t *at = put16(info, 3);

		for (unsigned i = 0; i < 3; i++)
			at = put32(at, server->block_bytes[i]);
		if (!reply_option(server, OPTION_GO, REPLY_INFO, info, 14))
			return false;
	}
	return reply_option(server, OPTION_GO, REPLY_ACK, NULL, 0);
}

/* A query ending with ':' asks for all that begin so. */
static bool query_matches(const uint8_t *query, uint32_t query_bytes, const char *context)
{
	bool is_prefix = query_bytes > 0 && query[query_bytes - 1] == ':';

	if (strncmp((const char *)query, context, query_bytes) != 0)
		return false;
	return is_prefix || strlen(context) == query_bytes;
}

static bool reply_contexts(struct fake_nbd_server *server, uint32_t option, const uint8_t *data)
{
	const uint8_t *at = data + 4 + get32(data);
	uint32_t queries = get32(at);

	at += 4;
	for (uint32_t i = 0; i < queries; i++) {
		uint32_t query_bytes = get32(at);

		for (unsigned number = 0; number < FAKE_NBD_CONTEXTS; number++) {
			const char *context = server->contexts[number];

			if (context == NULL || !query_matches(at + 4, query_bytes, context))
				continue;
			if (option == OPTION_SET_CONTEXT)
				server->has_context[number] = true;
			if (!reply_name(server, option, REPLY_CONTEXT, number, context))
				return false;
		}
		at += 4 + query_bytes;
	}
	return reply_option(server, option, REPLY_ACK, NULL, 0);
}

/* True: go on with the next option. *ret_is_done: the export was chosen. */
static bool serve_option(struct fake_nbd_server *server, bool *ret_is_done)
{
	uint8_t head[16];
	uint8_t data[8192];
	uint32_t option;
	uint32_t len_bytes;

	if (!receive(server, head, sizeof(head)))
		return false;
	option = get32(head + 8);
	len_bytes = get32(head + 12);
	must(len_bytes < sizeof(data), "option too long");
	if (!receive(server, data, len_bytes))
		return false;
	switch (option) {
	case OPTION_ABORT:
		(void)reply_option(server, option, REPLY_ACK, NULL, 0);
		return false;
	case OPTION_LIST:
		if (server->export_name != NULL &&
		    !reply_name(server, option, REPLY_SERVER, (uint32_t)strlen(server->export_name),
				server->export_name))
			return false;
		return reply_option(server, option, REPLY_ACK, NULL, 0);
	case OPTION_STRUCTURED_REPLY:
		server->is_structured = !server->has_no_structured_replies;
		return reply_option(server, option, server->is_structured ? REPLY_ACK : REPLY_UNSUPPORTED, NULL, 0);
	case OPTION_LIST_CONTEXT:
	case OPTION_SET_CONTEXT:
		return reply_contexts(server, option, data);
	case OPTION_GO:
		*ret_is_done = is_known_export(server, data);
		return reply_go(server, data);
	default:
		return reply_option(server, option, REPLY_UNSUPPORTED, NULL, 0);
	}
}

static bool negotiate(struct fake_nbd_server *server)
{
	uint8_t greeting[18];
	uint8_t flags[4];
	bool is_done = false;

	server->is_structured = false;
	memset(server->has_context, 0, sizeof(server->has_context));
	(void)put16(put64(mempcpy(greeting, "NBDMAGIC", 8), OPTION_MAGIC), 3); /* fixed newstyle, no zeroes */
	if (!send_all(server, greeting, sizeof(greeting)) || !receive(server, flags, sizeof(flags)))
		return false;
	while (!is_done) {
		if (!serve_option(server, &is_done))
			return false;
	}
	return true;
}

/* ------------------------------------------------------------ transmission */

static bool send_chunk(const struct fake_nbd_server *server, const struct request *request, unsigned flags,
		       unsigned type, const void *data, size_t len_bytes)
{
	uint8_t head[20];
	uint8_t *at = put32(head, UINT32_C(0x668e33ef));

	at = put16(at, flags);
	at = put16(at, type);
	at = mempcpy(at, &request->cookie, sizeof(request->cookie));
	(void)put32(at, (uint32_t)len_bytes);
	return send_all(server, head, sizeof(head)) && send_all(server, data, len_bytes);
}

static bool send_simple(const struct fake_nbd_server *server, const struct request *request, unsigned error,
			const void *data, size_t len_bytes)
{
	uint8_t head[16];

	memcpy(put32(put32(head, UINT32_C(0x67446698)), error), &request->cookie, sizeof(request->cookie));
	return send_all(server, head, sizeof(head)) && send_all(server, data, error != 0 ? 0 : len_bytes);
}

static bool serve_read(struct fake_nbd_server *server, const struct request *request)
{
	unsigned error = server->fail_read != NULL ? server->fail_read(request->off_bytes, request->len_bytes) : 0;
	uint8_t *data = malloc(8 + (size_t)request->len_bytes);
	uint8_t error_data[6];
	bool worked;

	must(data != NULL, "memory");
	server->reads++;
	if (request->len_bytes > server->largest_read_bytes)
		server->largest_read_bytes = request->len_bytes;
	if (server->block_bytes[0] != 0 && (request->off_bytes | request->len_bytes) % server->block_bytes[0] != 0)
		server->saw_unaligned_read = true;
	(void)put64(data, request->off_bytes);
	for (uint32_t i = 0; i < request->len_bytes; i++)
		data[8 + i] = fake_nbd_server_byte(request->off_bytes + i);
	(void)put16(put32(error_data, error), 0);
	if (!server->is_structured)
		worked = send_simple(server, request, error, data + 8, request->len_bytes);
	else if (error != 0)
		worked = send_chunk(server, request, FLAG_DONE, CHUNK_ERROR, error_data, sizeof(error_data));
	else
		worked = send_chunk(server, request, FLAG_DONE, CHUNK_DATA, data, 8 + (size_t)request->len_bytes);
	free(data);
	return worked;
}

static bool serve_status(struct fake_nbd_server *server, const struct request *request)
{
	static uint32_t words[FAKE_NBD_MOST_WORDS];
	static uint8_t data[4 + 4 * FAKE_NBD_MOST_WORDS];

	server->statuses++;
	if (request->len_bytes > server->largest_status_bytes)
		server->largest_status_bytes = request->len_bytes;
	for (unsigned context = 0; context < FAKE_NBD_CONTEXTS; context++) {
		uint8_t *at = put32(data, context);
		size_t count = 2;

		if (!server->has_context[context])
			continue;
		words[0] = request->len_bytes;
		words[1] = 0;
		if (server->tell_status != NULL)
			count = server->tell_status(context, request->off_bytes, request->len_bytes, words);
		for (size_t i = 0; i < count; i++)
			at = put32(at, words[i]);
		if (!send_chunk(server, request, 0, CHUNK_STATUS, data, (size_t)(at - data)))
			return false;
	}
	return send_chunk(server, request, FLAG_DONE, CHUNK_NONE, NULL, 0);
}

static void serve_client(struct fake_nbd_server *server)
{
	uint8_t head[28];

	if (!negotiate(server))
		return;
	while (receive(server, head, sizeof(head))) {
		struct request request = {.type = (uint16_t)(head[6] << 8 | head[7])};

		memcpy(&request.cookie, head + 8, sizeof(request.cookie));
		request.off_bytes = (uint64_t)get32(head + 16) << 32 | get32(head + 20);
		request.len_bytes = get32(head + 24);
		if (request.type == COMMAND_READ) {
			if (server->most_reads != 0 && server->reads >= server->most_reads)
				return;
			if (!serve_read(server, &request))
				return;
		} else if (request.type == COMMAND_STATUS) {
			if (server->most_statuses != 0 && server->statuses >= server->most_statuses)
				return;
			if (!serve_status(server, &request))
				return;
		} else {
			return;
		}
	}
}

static void *run_server(void *opaque)
{
	struct fake_nbd_server *server = opaque;

	for (;;) {
		server->client_fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (server->client_fd < 0)
			return NULL; /* shut down */
		serve_client(server);
		(void)close(server->client_fd);
	}
}

void fake_nbd_server_start(struct fake_nbd_server *server, const char *directory)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	(void)snprintf(server->socket_path, sizeof(server->socket_path), "%s/nbd.sock", directory);
	must(strlen(server->socket_path) < sizeof(address.sun_path), "path too long");
	(void)unlink(server->socket_path); /* of a server before */
	strcpy(address.sun_path, server->socket_path);
	(void)snprintf(server->uri, sizeof(server->uri), "nbd+unix:///disk?socket=%s", server->socket_path);
	server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(server->listen_fd >= 0, "socket");
	must(bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
	must(listen(server->listen_fd, 4) == 0, "listen");
	must(pthread_create(&server->thread, NULL, run_server, server) == 0, "thread");
}

void fake_nbd_server_stop(struct fake_nbd_server *server)
{
	(void)shutdown(server->listen_fd, SHUT_RDWR); /* ends accept() */
	(void)pthread_join(server->thread, NULL);
	(void)close(server->listen_fd);
	(void)unlink(server->socket_path);
}
