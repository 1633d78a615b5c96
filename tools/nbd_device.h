/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block devices by the kernel's NBD client, as `attach` and `mount` have them.
 *
 * Each device has an nbdkit of its own, which ends by itself when the device is disconnected: who disconnects with nbd-client himself leaves
 * nothing behind but a few small files. nbd-client talks to the kernel by netlink, unless it was built without: no process of its own has to
 * live for the device then. In the runtime folder there are, for nbdN:
 *
 *     nbdN.sock   what nbd-client connects to
 *     nbdN.log    what nbdkit had to say
 *     nbdN        what is attached: the reference, the store, nbdkit's pid, what for, one a line; written before the device is
 *                 connected, so that a device that is left by who was killed in the middle is known
 *     .lock       locked (flock) from the choice of a device until it is connected, and while leftovers are removed: or two
 *                 would choose the same, and one would clear away what the other has made
 *
 * They say something as long as /sys/block/nbdN says that the device is connected; else they are leftovers, and are
 * overwritten. A device whose server has died is still connected, fails every request, and is detached like any other.
 *
 * Devices are numbers: 3 is /dev/nbd3. Folders are that of runtime_folder().
 */
#ifndef WHERRY_TOOLS_NBD_DEVICE_H
#define WHERRY_TOOLS_NBD_DEVICE_H

#include <limits.h>
#include <stdbool.h>

#include "common/failure.h"
#include "tools/nbd_server.h"

enum { NBD_LINE_BYTES = PATH_MAX + 8, NBD_NODE_BYTES = 32, NBD_ANY_DEVICE = -1 };

/* "/dev/nbd3"; returns `ret_node`. */
const char *nbd_device_node(unsigned device, char ret_node[NBD_NODE_BYTES]);

/* Whether the kernel has them; its module is loaded if it can be. -ENODEV: it has none; -EPERM: it has, and we are not root. */
int nbd_device_check_kernel(struct failure *failure);

/*
 * Starts the server, whose reference, options and end with its last client are set (the log's path is filled in here), and connects `wanted`, or the
 * first device that is free, to it. `purpose`: a line for who looks for the device later; "" none. -EBUSY: in use. On failure nothing is left.
 */
int nbd_device_attach(const char *folder, struct nbd_server server, int wanted, const char *purpose, unsigned *ret_device, struct failure *failure);

/* Has the kernel look for partitions, and waits until they have their nodes in /dev. */
void nbd_device_wait_for_partitions(unsigned device);

/* The device that this is attached to. -ENOENT; -EINVAL: more than one. */
int nbd_device_find(const char *folder, const char *reference, unsigned *ret_device, struct failure *failure);

/*
 * Disconnects it, and waits until its server has ended, which has a journal to fold perhaps. -EBUSY: it or a partition of it is
 * mounted, or in use otherwise. -ENOENT: nothing is attached.
 */
int nbd_device_detach(const char *folder, unsigned device, struct failure *failure);

/* The same for what was attached for this purpose, and for what is left of an attachment that was cut short. 0 also when there is nothing. */
int nbd_device_detach_purpose(const char *folder, const char *purpose, struct failure *failure);

#endif
