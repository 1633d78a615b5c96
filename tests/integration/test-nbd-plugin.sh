#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Images over NBD by nbdkit and our plugin: what is listed, what is read, what is said of holes, and what is refused.
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo nbdcopy qemu-img qemu-io python3 jq
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

raw_nbd() {
	python3 "$WHERRY_SOURCE/tests/helpers/raw_nbd.py" "$NBD_SOCKET" "$@"
}

# expect_log PATTERN: a line of the server's log.
expect_log() {
	grep -qE -- "$1" "$NBD_LOG" && return
	sed 's/^/    log: /' "$NBD_LOG" >&2
	die "the log was expected to match /$1/"
}

# expect_refusal PATTERN ARGUMENT…: nbdkit doesn't start, and says why before it has gone to the background.
expect_refusal() {
	local pattern=$1 status=0
	shift
	timeout 20 nbdkit -U - "$PLUGIN" "$@" --run true >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	expect_equal 1 "$status" "nbdkit $*: status"
	grep -qE -- "nbdkit: error: $pattern" "$WORK/stderr" || die "nbdkit $*: said $(cat "$WORK/stderr")"
}

make_disk_gpt disk.img 256M
make_store
sync_disk disk.img web01 --read-all
cp --sparse=always disk.img first.img
random_range disk.img 100M 777777 more
sync_disk disk.img web01 --read-all --label "after a change"
truncate -s 8G large.img
random_range large.img 5G 100000 large
sync_disk large.img large --read-all
random_file odd.img 100001 odd
sync_disk odd.img odd --read-all

say "bad parameters are refused before there is a server"
expect_refusal "disk web02: there is none" store="$WHERRY_STORE" disk=web02
expect_refusal "image web01@9: there is none" store="$WHERRY_STORE" web01@9
expect_refusal ".*nowhere" store="$WORK/nowhere"
expect_refusal "web01: live content, and scratch=1 is for images" store="$WHERRY_STORE" disk=web01 scratch=1
expect_refusal "cache=1K: not a size" store="$WHERRY_STORE" cache=1K
expect_refusal "rw=yes: there is rw=mirror only" store="$WHERRY_STORE" rw=yes
expect_refusal "colour=: no such parameter" store="$WHERRY_STORE" colour=blue
nbdkit "$PLUGIN" --dump-plugin >dump
grep -qx 'thread_model=parallel' dump
grep -qx 'magic_config_key=disk' dump
grep -qx "wherry_version=$(wherry --version | cut -d ' ' -f 2)" dump

say "everything is listed"
start_nbdkit "$PLUGIN" # the store is that of the environment
nbdinfo --list --json "$NBD_URI" >list.json
jq -r '.exports[]."export-name"' list.json >names
printf '%s\n' large large@latest large@1 odd odd@latest odd@1 \
	web01 web01@latest web01@1 web01@2 web01@2/1 web01@2/2 web01@2/3 >expected
check_same expected names
description() {
	jq -r --arg name "$1" '.exports[] | select(."export-name" == $name) | .description' list.json
}
[[ $(description web01@2) == "image 2 of web01, 256 MiB, 20"*", clean: after a change" ]]
[[ $(description web01@2/2) == "partition 2 of web01@2: ext4, "*" MiB" ]]
[[ $(description web01) == "live content of web01, 256 MiB, mirror of "* ]]

say "content is what was synced"
nbdcopy "$(uri web01@1)" out.img
check_same first.img out.img
for name in web01@2 web01@latest; do
	expect_exit 0 qemu-img compare -f raw -F raw disk.img "$(uri $name)"
done
expect_exit 1 qemu-img compare -f raw -F raw first.img "$(uri web01@2)"
nbdcopy "$(uri odd@1)" out.odd
check_same odd.img out.odd
for partition in 1 2 3; do
	partition_bytes disk.img $partition >partition.img
	nbdcopy "$(uri web01@2/$partition)" out.part
	check_same partition.img out.part
done

say "what a client is told"
nbdinfo --json "$(uri web01@2)" >info.json
expect_equal "true true true 512 65536" "$(jq -r '.exports[0] | "\(.is_read_only) \(.can_multi_conn) \(.can_cache) \(.block_size_minimum) \(.block_size_preferred)"' info.json)"
expect_equal 1 "$(nbdinfo --json "$(uri odd@1)" | jq '.exports[0].block_size_minimum')"

say "extents cover everything, zeros are zeros, and chunks of zeros are extents of zeros"
# check_map NAME FILE: the map of an export against the bytes.
check_map() {
	nbdinfo --map --json "$(uri "$1")" >map.json
	python3 - "$2" "$(partition_start disk.img 2)" <<-'END'
		import json, os, sys
		size, at = os.path.getsize(sys.argv[1]), 0
		is_zero = bytearray(size // 512)
		with open(sys.argv[1], "rb") as disk:
		    for extent in json.load(open("map.json")):
		        assert extent["offset"] == at and extent["length"] > 0, extent
		        at += extent["length"]
		        if extent["type"] & 2:
		            disk.seek(extent["offset"])
		            assert not any(disk.read(extent["length"])), extent
		            first, end = extent["offset"] // 512, at // 512
		            is_zero[first:end] = b"\1" * (end - first)
		    assert at == size, (at, size)
		    # chunks count from the beginning of the disk, wherever the export begins
		    shift = int(sys.argv[2]) if sys.argv[1].startswith("partition") else 0
		    for chunk in range(-(shift % 65536) % 65536, size - 65535, 65536):
		        disk.seek(chunk)
		        if not any(disk.read(65536)):
		            assert all(is_zero[chunk // 512:(chunk + 65536) // 512]), chunk
	END
}
check_map web01@1 first.img
check_map web01@2 disk.img
partition_bytes disk.img 2 >partition2.img
check_map web01@2/2 partition2.img
qemu-img map -f raw --output=json "$(uri web01@2)" | jq -c '[.[] | {start, length, zero}]' >map.qemu
nbdinfo --map --json "$(uri web01@2)" | jq -c '[.[] | {start: .offset, length, zero: (.type >= 2)}]' >map.own
check_same map.own map.qemu

say "a question about 4 GiB - 1 gets an answer about no more than that"
raw_nbd large@1 status:0:4294967295 status-one:0:4294967295 status:5368709120:2147483647 status-one:5368709121:10 >answers
expect_equal "4294967295/3" "$(sed -n 1p answers)"
expect_equal "4294967295/3" "$(sed -n 2p answers)"
expect_equal "131072/0 2147352575/3" "$(sed -n 3p answers)"
expect_equal "10/0" "$(sed -n 4p answers)"
nbdinfo --size "$(uri large@1)" >size # still there
expect_equal "$(to_bytes 8G)" "$(cat size)"

say "what can't be is refused, by the right number"
raw_nbd web01@1 read:268435456:512 read:268434944:1024 write:0:512 zero:0:512 read:0:512 >answers
expect_equal "error 22,error 22,error 1,error 1,ok" "$(paste -s -d , answers)"
for name in nope web01@9 web01@1/9 web01@0 Web01 web01@1:mine large/1; do
	nbdinfo "$(uri $name)" >/dev/null 2>&1 && die "$name: was opened"
done
expect_log "error: disk nope: there is none of that name"
expect_log "error: image web01@9: there is none of that number"
expect_log "error: web01@1: has no partition 9; there is 1 \(vfat\), 2 \(ext4\), 3 \(swap\)"
expect_log "error: export web01@1:mine: ':' names an overlay, which images have with scratch=1 only"
nbdinfo "$NBD_URI" >/dev/null 2>&1 && die "an export without a name, of three disks"

say "a live disk has one opener, who is named"
start qemu-io -r -f raw -c 'sleep 20000' "$(uri web01)"
holder=$PID
wait_until 10 eval "wherry disks --json | jq -e '.disks[] | select(.name == \"web01\") | .open_by | contains(\"nbdkit wherry web01\")'"
expect_error "nbdkit wherry web01 \(pid $NBD_PID" wherry sync disk.img web01
expect_exit 0 nbdinfo --size "$(uri web01)" # of the same process: shared
FIRST_SOCKET=$NBD_SOCKET FIRST_PID=$NBD_PID
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=web01
nbdinfo "$NBD_URI" >/dev/null 2>&1 && die "the disk was opened twice"
expect_log "nbdkit wherry web01 \(pid $FIRST_PID"
stop_process "$holder"
wait_until 10 nbdinfo --size "$NBD_URI"
wait_until 10 flock -n "$WHERRY_STORE/locks/disk-1" true
start flock "$WHERRY_STORE/locks/disk-1" sleep 0.7 # somebody has it for a moment: who connects waits
locker=$PID
is_locked() {
	! flock -n "$WHERRY_STORE/locks/disk-1" true
}
wait_until 10 is_locked
expect_exit 0 nbdinfo --size "$NBD_URI"
finish "$locker"
nbdinfo "$(uri web01@1)" >/dev/null 2>&1 && die "web01@1 from who offers web01"
stop_process "$NBD_PID"
NBD_SOCKET=$FIRST_SOCKET NBD_PID=$FIRST_PID

say "images stay while somebody looks at them"
start qemu-io -r -f raw -c 'sleep 20000' "$(uri web01@1)"
holder=$PID
wait_until 10 eval "wherry images --json | jq -e '.images[] | select(.disk == \"web01\" and .number == 1) | .in_use'"
expect_error "web01@1: in use by nbdkit .*pid $NBD_PID" wherry delete web01@1
stop_process "$holder"

say "exit=last: it outlives who started it, and ends with its last client"
# start_orphan NAME ARGUMENT…: a server on NAME.sock whose parent leaves as soon as it answers.
start_orphan() {
	bash -c 'name=$1
		shift
		nbdkit --foreground --unix "$name.sock" --pidfile "$name.pid" "$@" &
		until nbdinfo --size "nbd+unix:///web01@2?socket=$name.sock"; do sleep 0.1; done' \
		bash "$@" >"$1.log" 2>&1 || die "$(cat "$1.log")"
}
start_orphan "$WORK/mortal" --exit-with-parent "$PLUGIN" store="$WHERRY_STORE" web01@2
wait_until 20 eval '! kill -0 "$(cat mortal.pid)"'
start_orphan "$WORK/orphan" "$PLUGIN" store="$WHERRY_STORE" web01@2 exit=last
sleep 0.5 # it would need no longer than this to end with its parent
nbdcopy "nbd+unix:///web01@2?socket=$WORK/orphan.sock" out.img || die "it ended with its parent: $(cat orphan.log)"
check_same disk.img out.img
wait_until 20 eval '! kill -0 "$(cat orphan.pid)"'

say "nbdkit's filters work on top"
start_nbdkit --filter=partition "$PLUGIN" web01@2 partition=2
nbdcopy "$NBD_URI" out.part
check_same partition2.img out.part
start_nbdkit --filter=stats --filter=rate --filter=delay --filter=cow "$PLUGIN" web01@2 \
	statsfile="$WORK/stats" rate=1G rdelay=1ms
expect_exit 0 qemu-io -f raw -c 'write -P 9 64k 8k' -c 'read -P 9 64k 8k' -c flush "$NBD_URI"
expect_exit 1 qemu-img compare -f raw -F raw disk.img "$NBD_URI"
stop_process "$NBD_PID"
grep -q '^write: 1 ops' stats
start_nbdkit --filter=error "$PLUGIN" web01@2 error=EIO error-pread-rate=100%
expect_exit 1 qemu-io -r -f raw -c 'read 0 4k' "$NBD_URI"
expect_exit 0 qemu-img compare -f raw -F raw disk.img "nbd+unix:///web01@2?socket=$FIRST_SOCKET"

say "a damaged record is an error of just its range"
stop_process "$FIRST_PID"
segment=$(find "$WHERRY_STORE/segments" -name '*.seg' -size +4k | sort | head -n 1)
python3 - "$segment" <<-'END'
	import sys
	data = open(sys.argv[1], "r+b")
	data.seek(0, 2)
	data.seek(data.tell() // 2)
	data.write(b"damage, and some more of it" * 3)
END
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
damaged=$(wherry check --deep --json 2>/dev/null | jq -r '[.damaged[] | select(.disk == "web01" and .image == 2)][0] | "\(.offset) \(.length)"' || true)
read -r offset length <<<"$damaged"
raw_nbd web01@2 "read:$offset:512" "read:$((offset + length)):512" >answers
expect_equal "error 5,ok" "$(paste -s -d , answers)"
expect_log "error: .*segment"
