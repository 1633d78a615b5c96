#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# NBD sources, served by nbdkit and qemu-nbd: right whatever the server is like, holes are not read, many requests are
# in flight, and a server that goes away in the middle costs only time. The oracle is nbdcopy.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires nbdkit nbdcopy nbdinfo qemu-nbd qemu-img qemu-io jq openssl cmp
requires_nbdkit_plugin file
requires_nbdkit_plugin data
requires_nbdkit_plugin sparse-random
for filter in log blocksize-policy delay stats; do requires_nbdkit_filter $filter; done

MIB=$((1024 * 1024))

# A disk with something of everything: random, text that compresses, zeros that are written, holes.
make_source() {
	rm -f "$1"
	truncate -s "$2" "$1"
	random_range "$1" 0 3M "$1-a"
	random_range "$1" 10M 300K "$1-b"
	seq 1 200000 | dd of="$1" bs=1M seek=$((14 * MIB + 4096)) oflag=seek_bytes conv=notrunc status=none
	zero_range "$1" 18M 1M
	random_range "$1" $(($2 - 5000)) 5000 "$1-end"
}

# round_of DISK URI [OPTION…]: a round equals what nbdcopy says that the server has.
round_of() {
	local disk=$1 uri=$2
	shift 2
	rm -f copied
	nbdcopy "$uri" copied
	sync_disk "$uri" "$disk" "$@"
	check_export "$disk@latest" copied
	expect_equal "$(size_of copied)" "$(json_get .size_bytes)" "the size of $disk"
}

# asked_for KIND: requests of this kind in nbdkit's log, "OFFSET LENGTH" each, in decimal.
asked_for() {
	local offset length
	sed -nE "s/.* $1 id=[0-9]+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+) .*/\1 \2/p" requests.log |
		while read -r offset length; do
			echo "$((offset)) $((length))"
		done
}

make_store
SIZE=$((32 * MIB))
make_source source $SIZE

say "nbdkit, a Unix socket; holes are not read"
: >requests.log
start_nbdkit -r --filter=log file source logfile=requests.log
sync_disk "$NBD_URI" web01
check_export web01@1 source
asked_for Read >reads
expect_number "$(wc -l <reads) > 3" "the log has the reads"
read_bytes=$(awk '{ sum += $2 } END { print sum }' reads)
# Data is 3 + 0.3 + 1.3 + 1 MiB and the end. Before that, and once more afterwards, a partition table and file systems
# are looked for at both ends.
expect_number "$read_bytes < 20 * $MIB" "what is read is data"
awk -v at=$((20 * MIB)) -v end=$((31 * MIB)) '$1 < end && $1 + $2 > at { bad = 1 } END { exit bad }' reads ||
	die "a hole was read"
expect_number "$(json_get .read_bytes) <= $read_bytes" "no more is said to be read than was"
expect_number "$(json_get .read_bytes) >= 5 * $MIB && $(json_get .read_bytes) < 6 * $MIB" "which is what is there"
grep -qE ' (Write|Trim|Zero|Flush) id=' requests.log && die "a source is only read"
expect_equal clean "$(json_get .consistency)"
round_of web01 "$NBD_URI"
expect_equal "2 0" "$(json_get '"\(.image) \(.stored_bytes)"')" "nothing changed"

say "something changes; what was data becomes a hole"
cp source before
random_range source 11M 200K changed
fallocate --punch-hole --offset $((1 * MIB)) --length $((MIB / 2)) source
round_of web01 "$NBD_URI" --verify
expect_equal "true true" "$(json_get '"\(.verified) \(.equal)"')"
check_export web01@3 source
check_export web01@2 before
expect_exit 0 wherry verify web01@3 --source "$NBD_URI" --progress=none
expect_exit 3 wherry verify web01@2 --source "$NBD_URI" --progress=none --json
expect_equal $MIB "$(json_get '.differences[0].offset')" "where they begin to differ"
stop_process "$NBD_PID"

say "nbdkit, TCP"
for ((tries = 0; ; tries++)); do
	random_number 20000
	port=$((30000 + NUMBER))
	rm -f tcp.pid
	start nbdkit --foreground --ipaddr 127.0.0.1 --port $port --pidfile tcp.pid file source
	for ((i = 0; i < 50; i++)); do
		[[ ! -s tcp.pid ]] && _is_running_child "$PID" || break
		sleep 0.1
	done
	[[ ! -s tcp.pid ]] || break
	((tries < 10)) || die "no port to be had"
done
round_of tcp "nbd://127.0.0.1:$port"
check_export tcp@1 source
stop_process "$PID"
expect_error "127\.0\.0\.1:$port.*[Cc]onnection refused" wherry sync "nbd://127.0.0.1:$port" tcp

say "a large and sparse one, made up by nbdkit"
start_nbdkit sparse-random 1G seed="$WHERRY_TEST_SEED" percent=2 runlength=262144
round_of sparse "$NBD_URI"
expect_number "$(json_get .read_bytes) < 100 * $MIB" "of 1 GiB so much is data"
expect_number "$(json_get .read_bytes) > 1 * $MIB" "but some is"
rm -f copied
stop_process "$NBD_PID"

say "sizes that are no multiple of a sector"
for size in 1 511 65537 $((2 * MIB + 777)); do
	random_file odd $size odd-$size
	start_nbdkit file odd
	round_of "odd-$size" "$NBD_URI"
	check_export "odd-$size@1" odd
	stop_process "$NBD_PID"
done
start_nbdkit data data='1 2 3 @0x8000 ( 0x55 0xAA )*1000 @0x100000 "end"' size=$((MIB + 3))
round_of data "$NBD_URI"
stop_process "$NBD_PID"

say "many requests in flight"
random_file busy 48M busy
: >requests.log
start_nbdkit --filter=log --filter=delay file busy logfile=requests.log rdelay=200ms
sync_disk "$NBD_URI" busy
check_export busy@1 busy
stop_process "$NBD_PID"
most=$(awk '/ Read id=/ { n++; if (n > most) most = n } / \.\.\.Read id=/ { n-- } END { print most + 0 }' requests.log)
say "  $most at once"
expect_number "$most >= 8" "requests to a slow server overlap"
# One after another they would take 48 times 200 ms at least.
expect_number "$(json_get '.elapsed_seconds * 1000 | floor') < 5000" "and so the delays do"

say "a server that takes only whole blocks of 4096 bytes"
truncate -s $((8 * MIB + 4096)) blocks
random_range blocks 0 2M blocks
random_range blocks $((5 * MIB + 4096 * 3)) 20480 blocks-2
random_range blocks $((8 * MIB)) 4096 blocks-3
start_nbdkit --filter=blocksize-policy file blocks blocksize-minimum=4096 blocksize-preferred=64K \
	blocksize-maximum=1M blocksize-error-policy=error
round_of blocks "$NBD_URI"
check_export blocks@1 blocks
stop_process "$NBD_PID"

say "a server that can do one thing at a time, and knows nothing of holes"
requires_nbdkit_filter noextents
requires_nbdkit_filter noparallel
start_nbdkit --filter=noextents --filter=noparallel -r file source serialize=all-requests
round_of simple "$NBD_URI"
expect_equal "$SIZE" "$(json_get .read_bytes)" "all of it is read"
check_export simple@1 source
stop_process "$NBD_PID"

say "qemu-nbd, raw, read-only"
start_qemu_nbd -f raw --read-only source
round_of qemu-raw "$NBD_URI"
check_export qemu-raw@1 source
stop_process "$NBD_PID"

say "qemu-nbd, raw, writable: it is only read"
before=$(stat -c '%Y %Z' source)
EXPORT=disk start_qemu_nbd -f raw source
round_of qemu-raw "$NBD_URI"
expect_equal "fuzzy true" "$(json_get '"\(.consistency) \(.fuzzy_because | contains("written to"))"')" "others may write"
stop_process "$NBD_PID"
expect_equal "$before" "$(stat -c '%Y %Z' source)" "nobody wrote to it"

say "qemu-nbd as it is by default: one client, and it ends when that leaves"
qemu-nbd --shared=1 -f raw --read-only --socket="$WORK/once" source >once.log 2>&1 &
once=$!
started_pids+=("$once")
wait_until 10 test -S once
sync_disk "nbd+unix:///?socket=$WORK/once" once --verify
expect_equal "true true clean" "$(json_get '"\(.verified) \(.equal) \(.consistency)"')"
stop_process "$once"

say "qemu-nbd, qcow2 on a backing file"
qemu-img create -q -f qcow2 -F raw -b source top.qcow2
qemu-io -f qcow2 -c "write -P 7 5M 1M" -c "write -z 10M 128k" -c "write -P 9 31M 64k" top.qcow2 >/dev/null
qemu-img convert -O raw top.qcow2 top.raw
EXPORT=top start_qemu_nbd -f qcow2 --read-only top.qcow2
round_of qcow2 "$NBD_URI"
check_export qcow2@1 top.raw
expect_number "$(json_get .read_bytes) < 10 * $MIB" "holes through two layers"
expect_error 'exports?.*"?nothing' wherry sync "nbd+unix:///nothing?socket=$NBD_SOCKET" qcow2
grep -q 'top' stderr || die "the exports that there are are named: $(cat stderr)"
stop_process "$NBD_PID"

say "no server"
expect_error 'nbd\+unix.*(No such file|not found)' wherry sync "nbd+unix:///?socket=$WORK/no-such" nothing
wherry disks --json | jq -e '[.disks[].name] | index("nothing") == null' >/dev/null || die "a disk was made for nothing"

# A server that dies. The delay makes a round last long enough; what is read before the first checkpoint was long ago.
say "a server killed in the middle: one line, status 1, and the round goes on later"
random_file killed 96M killed
for signal in KILL TERM; do
	SOCKET=dies start_nbdkit --filter=delay file killed rdelay=300ms
	start wherry sync "$NBD_URI" killed-"${signal,,}" --progress=json --json >killed.out 2>killed.err
	round=$PID
	wait_until 60 grep -q '"done_bytes": *[2-9][0-9]\{7\}' killed.err
	kill -s $signal "$NBD_PID"
	status=0
	finish "$round" || status=$?
	expect_equal 1 $status "status of the round whose server was killed by SIG$signal"
	stop_process "$NBD_PID"
	grep -v '^{' killed.err >killed.said || true
	expect_equal 1 "$(wc -l <killed.said)" "one line: $(cat killed.said)"
	grep -qE '^wherry: .*dies: the connection to the server was lost' killed.said || die "unclear: $(cat killed.said)"
	[[ ! -s killed.out ]] || die "nothing is said on standard output of a round that failed"
	expect_exit 0 wherry rounds killed-"${signal,,}" --json
	expect_equal "failed" "$(json_get '.rounds[-1].state')" "state of that round"
	expect_exit 0 wherry images killed-"${signal,,}" --json
	expect_equal 0 "$(json_get '.images | length')" "no image was made"
	: >requests.log
	SOCKET=dies start_nbdkit --filter=log file killed logfile=requests.log
	sync_disk "$NBD_URI" killed-"${signal,,}"
	check_export killed-"${signal,,}"@1 killed
	stop_process "$NBD_PID"
	say "  resumed: $(json_get .resumed), then read $(asked_for Read | awk '{ s += $2 } END { print s / 1048576 }') MiB of 96"
	expect_equal true "$(json_get .resumed)" "the next one went on"
	expect_number "$(asked_for Read | awk '{ s += $2 } END { print s }') < 94 * $MIB" "without what was done"
done

# hang ALREADY: a server that is stopped when so many bytes were read from it, in a round in the background.
hang() {
	SOCKET=hangs start_nbdkit --filter=delay file killed rdelay=100ms
	start wherry sync "$NBD_URI" hangs --progress=json --json >hung.out 2>hung.err
	wait_until 60 grep -q '"done_bytes": *[1-9][0-9]\{7\}' hung.err
	kill -STOP "$NBD_PID"
}
cursor_is_kept() {
	[[ $(wherry rounds hangs --json | jq '.rounds[-1].done_bytes') -gt 0 ]]
}

say "libnbd is only needed for NBD: a broken one is named by the round that wants it, and by nothing else"
mkdir broken
: >broken/libnbd.so.0
expect_error "libnbd.so.0: file too short; install the package libnbd0" \
	env LD_LIBRARY_PATH=broken "$WHERRY" sync "nbd+unix:///?socket=none" web01
expect_exit 0 env LD_LIBRARY_PATH=broken "$WHERRY" images web01

say "a server that hangs: what was read becomes durable all the same, and the round can be stopped"
hang
wait_until 20 cursor_is_kept
began=$SECONDS
kill -INT "$PID"
status=0
finish "$PID" || status=$?
kill -CONT "$NBD_PID"
stop_process "$NBD_PID"
expect_equal 130 "$status" "status of a round that was stopped: $(tail -n 2 hung.err)"
expect_number "$SECONDS - began < 15" "it stops soon"
SOCKET=hangs start_nbdkit file killed
sync_disk "$NBD_URI" hangs
stop_process "$NBD_PID"
expect_equal true "$(json_get .resumed)"
check_export hangs@1 killed
