/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scribble FILE SEED CHANGES MOST_BYTES: changes a file as its owner might, in so many random places, each of at most
 * so many bytes. Every change is new content, zeros, or a copy from somewhere else in the file; the size stays. The
 * same seed on the same file gives the same.
 *
 * One process where a script would need hundreds. It shares no code with what is tested.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t state;

/* splitmix64 */
static uint64_t next_random(void)
{
	uint64_t mixed = state += 0x9e3779b97f4a7c15;

	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
	return mixed ^ (mixed >> 31);
}

static size_t random_below(size_t bound)
{
	return (size_t)(next_random() % bound);
}

static void fill_with_random(uint8_t *at, size_t len_bytes)
{
	while (len_bytes > 0) {
		uint64_t value = next_random();
		size_t step_bytes = len_bytes < sizeof(value) ? len_bytes : sizeof(value);

		memcpy(at, &value, step_bytes);
		at += step_bytes;
		len_bytes -= step_bytes;
	}
}

static void change_once(uint8_t *content, size_t size_bytes, size_t most_bytes)
{
	enum { BLOCK_BYTES = 16384 }; /* copies are aligned to it more often than not, so that whole chunks move */
	size_t len_bytes = 1 + random_below(most_bytes);
	size_t to = random_below(size_bytes - len_bytes + 1);
	size_t from = random_below(size_bytes - len_bytes + 1);

	switch (random_below(4)) {
	case 0:
	case 1:
		fill_with_random(content + to, len_bytes);
		break;
	case 2:
		memset(content + to, 0, len_bytes);
		break;
	default:
		if (random_below(4) != 0) {
			to -= to % BLOCK_BYTES;
			from -= from % BLOCK_BYTES;
		}
		memmove(content + to, content + from, len_bytes);
		break;
	}
}

static size_t parse_number(const char *text)
{
	char *end;
	uintmax_t number = strtoumax(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0' || number > SIZE_MAX)
		errx(2, "%s: not a number", text);
	return (size_t)number;
}

int main(int argc, char **argv)
{
	struct stat status;
	size_t size_bytes, changes, most_bytes;
	uint8_t *content;
	int fd;

	if (argc != 5)
		errx(2, "usage: scribble FILE SEED CHANGES MOST_BYTES");
	for (const char *letter = argv[2]; *letter != '\0'; letter++)
		state = state * 1099511628211U + (unsigned char)*letter;
	changes = parse_number(argv[3]);
	most_bytes = parse_number(argv[4]);
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0)
		err(1, "%s", argv[1]);
	size_bytes = (size_t)status.st_size;
	if (size_bytes == 0 || most_bytes == 0 || most_bytes > size_bytes)
		errx(2, "%s: %zu bytes, of which at most %zu can't be changed", argv[1], size_bytes, most_bytes);
	content = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (content == MAP_FAILED)
		err(1, "%s: mmap", argv[1]);
	while (changes-- > 0)
		change_once(content, size_bytes, most_bytes);
	if (munmap(content, size_bytes) < 0 || close(fd) < 0)
		err(1, "%s", argv[1]);
	return 0;
}
