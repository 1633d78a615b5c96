/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening what lies in a folder that may come from elsewhere.
 *
 * A store is data: it is copied, restored, and received from others. A symbolic link in it, in place of a file that is
 * going to be written, would have us write to whatever it points to, with our rights; a pipe would have us wait for
 * ever. So whatever is opened in a store is a plain file, or a folder, of the store itself.
 */
#ifndef WHERRY_COMMON_OWN_FILE_H
#define WHERRY_COMMON_OWN_FILE_H

#include <sys/types.h>

/* What -EBADMSG of these means, for messages. */
#define OWN_FILE_FLAW "it is a link, a pipe or a device; a store has only files and folders of its own"

/*
 * openat() of one name, without a slash in it: a descriptor, or a negative errno; -EBADMSG for what is neither a plain file nor
 * missing. O_CLOEXEC is set; O_TRUNC must not be given, for it would come before the check.
 */
int own_file_open(int folder_fd, const char *name, int flags, mode_t mode);
/* The same for a folder, to read from it or to name things in it. */
int own_folder_open(int folder_fd, const char *name);

#endif
