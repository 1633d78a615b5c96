#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two that do the same at the same moment, which is held still with strace: neither fails, and neither undoes what the
# other has done.
# timeout: 120
. "$(dirname "$0")/functions.sh"
requires strace jq qemu-io nbdkit
[[ -e $WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

# until_in CALL FILE…: the process whose trace this is has come to this call, and is kept there.
until_in() {
	wait_until 20 grep -q "$1" "$2"
}

make_store

say "a deletion that another one finishes"
expect_exit 0 wherry create web01 1M
start bash -c 'exec wherry serve-nbd web01 --socket "$WORK/own.sock" >served'
server=$PID
wait_until 20 test -s served
expect_exit 0 qemu-io -f raw -c 'write -P 1 4k 512' -c flush "$(cat served)"
kill "$server"
finish "$server"
expect_equal 1 "$(find "$WHERRY_STORE/journal" -mindepth 1 -maxdepth 1 | wc -l)" "journals"
start strace -f -o removing -e trace=unlinkat -e inject=unlinkat:delay_enter=2000000 wherry remove web01
removing=$PID
until_in "disk-1" removing
expect_exit 0 wherry gc --progress=none
finish "$removing" || die "remove failed: it was done by the other one"
expect_equal 0 "$(find "$WHERRY_STORE/journal" -mindepth 1 -maxdepth 1 | wc -l)" "journals"
