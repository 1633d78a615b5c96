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
start bash -c 'exec wherry serve-nbd web01 --socket own.sock >served'
server=$PID
wait_until 20 test -s served
expect_exit 0 qemu-io -f raw -c 'write -P 1 4k 512' -c flush "$(cat served)"
kill "$server"
finish "$server"
expect_equal 1 "$(find "$WHERRY_STORE/journal" -mindepth 1 -maxdepth 1 | wc -l)" "journals"
start strace -f -o removing -e trace=unlinkat -e inject=unlinkat:delay_enter=3000000:when=2 wherry remove web01
removing=$PID
until_in "disk-1" removing
expect_exit 0 wherry gc --progress=none
finish "$removing" || die "remove failed: it was done by the other one"
expect_equal 0 "$(find "$WHERRY_STORE/journal" -mindepth 1 -maxdepth 1 | wc -l)" "journals"

# serve NAME COMMAND…: a server on own.sock, which prints to NAME where it serves.
serve() {
	local name=$1
	shift
	: >"$name"
	: >"$name.log"
	start bash -c 'name=$1; shift; exec "$@" serve-nbd --socket own.sock >"$name" 2>"$name.log"' bash "$name" "$@"
}

# answers: what own.sock leads to is a server of this store.
answers() {
	[[ $(nbdinfo --size "nbd+unix:///web01?socket=$WORK/own.sock" 2>nbdinfo.log) == 1048576 ]]
}

# end_traced STRACE: the server that this strace runs.
end_traced() {
	kill "$(ps -o pid= --ppid "$1")"
}

say "two servers in the place of one that was killed"
expect_exit 0 wherry create web01 1M
serve old wherry
wait_until 20 test -s old
kill -KILL "$PID"
finish "$PID" || true
wait_until 20 eval '! answers'
[[ -S own.sock ]]
serve first strace -o first.trace -e trace=unlink -e inject=unlink:delay_enter=3000000 wherry
first=$PID
wait_until 20 grep -q 'unlink(' first.trace
serve second wherry
second=$PID
wait_until 20 eval '[[ -s second || -s second.log ]]'
grep -q "a server answers there already" second.log || die "two servers on one socket"
finish "$second" && die "it has failed, with status 0"
wait_until 20 test -s first
answers || die "nobody answers: $(cat nbdinfo.log)"
end_traced "$first"
finish "$first"

say "a server that ends, and one that takes its place"
serve first strace -o first.trace -e trace=unlink -e inject=unlink:delay_enter=3000000 wherry
first=$PID
wait_until 20 test -s first
end_traced "$first"
wait_until 20 grep -q 'unlink(' first.trace
serve second wherry
second=$PID
finish "$first"
wait_until 20 test -s second
answers || die "nobody answers: $(cat nbdinfo.log)"
kill "$second"
finish "$second"
[[ ! -e own.sock ]] || die "the socket is still there"
