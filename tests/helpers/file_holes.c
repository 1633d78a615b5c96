/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file_holes FILE: what lseek(2) says is data and what a hole, one line each: "data OFFSET LENGTH", "hole OFFSET
 * LENGTH". Holes are read: status 1 if there is anything but zeros in one. Each place is asked for both, so that
 * answers which don't fit together are found.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20 };

static off_t seek(int fd, off_t at, int whence, off_t size)
{
	off_t found = lseek(fd, at, whence);

	if (found < 0 && errno == ENXIO && whence == SEEK_DATA)
		return size;
	if (found < at || found > size)
		err(1, "lseek(%lld, %s): %lld", (long long)at, whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE",
		    (long long)found);
	return found;
}

static void check_zeros(int fd, off_t at, off_t end)
{
	static char buffer[BUFFER_BYTES], zeros[BUFFER_BYTES];

	while (at < end) {
		size_t want = end - at < BUFFER_BYTES ? (size_t)(end - at) : BUFFER_BYTES;
		ssize_t got = pread(fd, buffer, want, at);

		if (got <= 0)
			err(1, "pread at %lld", (long long)at);
		if (memcmp(buffer, zeros, (size_t)got) != 0)
			errx(1, "a hole at %lld isn't zeros", (long long)at);
		at += got;
	}
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0)
		err(2, "file_holes FILE");
	for (off_t at = 0; at < status.st_size;) {
		off_t data = seek(fd, at, SEEK_DATA, status.st_size), hole = seek(fd, at, SEEK_HOLE, status.st_size);
		bool is_hole = data > at;
		off_t end = is_hole ? data : hole;

		if ((data == at) == (hole == at))
			errx(1, "%lld is data and a hole, or neither", (long long)at);
		(void)printf("%s %lld %lld\n", is_hole ? "hole" : "data", (long long)at, (long long)(end - at));
		if (is_hole)
			check_zeros(fd, at, end);
		at = end;
	}
	if (lseek(fd, status.st_size, SEEK_DATA) >= 0 || errno != ENXIO || lseek(fd, status.st_size, SEEK_HOLE) >= 0 ||
	    errno != ENXIO)
		errx(1, "at the end there is something");
	return 0;
}
