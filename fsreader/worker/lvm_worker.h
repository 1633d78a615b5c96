/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "lvm" of wherry-fsreader.
 */
#ifndef WHERRY_FSREADER_WORKER_LVM_WORKER_H
#define WHERRY_FSREADER_WORKER_LVM_WORKER_H

int lvm_main(int socket); /* answers one question (lvm_wire.h); returns an exit status */

#endif
