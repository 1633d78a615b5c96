#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What can't be made, served, attached or asked for is refused with one line that says why; and the largest disk that can be is served to
# its last byte: read, written, zeroed, discarded, flushed, asked for extents; its images, clones and overlays, too.
# timeout: 300
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo qemu-img qemu-io python3 jq openssl sfdisk
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

# raw_nbd EXPORT REQUEST…: one line of all answers.
raw_nbd() {
	python3 "$WHERRY_SOURCE/tests/helpers/raw_nbd.py" "$NBD_SOCKET" "$@" | paste -s -d ,
}

# expect_refusal PATTERN ARGUMENT…: nbdkit doesn't start, and says why.
expect_refusal() {
	local pattern=$1 status=0
	shift
	timeout 20 nbdkit -U - "$PLUGIN" "$@" --run true >stdout 2>stderr || status=$?
	expect_equal 1 "$status" "nbdkit $*: status"
	grep -qE -- "nbdkit: error: .*$pattern" stderr || die "nbdkit $*: said $(cat stderr)"
}

make_store
make_disk_gpt disk.img 256M
sync_disk disk.img web01
expect_exit 0 wherry create small 1M
store_state >before

say "sizes"
for size in "" 0 0G garbage 1.0001 5M5 0x1000 +5M 1e6 " 5M" "5 M" 1,5G; do
	expect_error "SIZE: '.*' is not a size such as 512M or 10G" wherry create new "$size"
done
for size in -1 -512 -5M; do
	expect_error "no such option" wherry create new "$size"
	expect_error "SIZE: '$size' is not a size" wherry create new -- "$size"
done
for size in 1 511 513 1023 100001; do
	expect_error "create: $size is no multiple of the sector size, 512 bytes" wherry create new "$size"
done
expect_error "create: 512 is no multiple of the sector size, 4096 bytes" wherry create new 512 --sector-size 4K
for size in 1152921504606846977 1152921504606847488 1025P 2E 9223372036854775807 8E 8388608T 9223372036854775808 16E 18446744073709551615 \
	18446744073709551616 99999999999999999999999999; do
	expect_error "SIZE: '$size' is more than a disk can have, 1 EiB" wherry create new $size
done
store_state >after
check_same before after
expect_exit 0 wherry create tiny 512
expect_exit 0 wherry remove tiny
store_state >before

say "references that there can't be, or that lead nowhere"
# reference, what is said of it by whoever is asked to serve it
while IFS='|' read -r -u 3 reference pattern; do
	[[ $reference == -* ]] || {
		expect_error "$pattern" wherry serve-nbd "$reference" --socket "$WORK/own.sock"
		expect_error "$pattern" wherry attach "$reference"
	}
	expect_refusal "$pattern" disk="$reference"
done 3<<-'END'
	@|no disk in front of '@'
	@1|no disk in front of '@'
	web01@|no image number behind '@'
	web01@0|no image has this number; they are counted from 1
	web01@-1|not an image number
	web01@01|not an image number
	web01@1@1|not an image number
	web01@Latest|not an image number
	web01@4294967296|no image has this number
	web01@99999999999999999999|no image has this number
	web01@1:own|not an image number
	web01/|no partition number behind '/'
	web01@1/|no partition number behind '/'
	web01@1/0|no partition has this number
	web01@1/1/1|not a partition number
	web01//1|not a partition number
	web01@1/4294967296|no partition has this number
	Web01|can't hold upper-case letters.*try 'web01'
	web 01|can't hold ' '.*try 'web-01'
	../web01|a name starts with a letter or a digit
	-web01|a name starts with a letter or a digit
	nosuch|disk nosuch: there is none of that name
	nosuch@1|nosuch.*: there is none of that name
	web01@2|image web01@2: there is none of that number
	small@latest|small.*no images
	web01@1/4|web01@1: has no partition 4; there is 1 \(vfat\), 2 \(ext4\), 3 \(swap\)
	web01@latest/9|web01@1: has no partition 9; there is 1 \(vfat\)
END
long=$(printf 'a%.0s' {1..64})
expect_error "a name has at most 63 characters" wherry serve-nbd "$long"
[[ ! -e own.sock ]] || die "a socket was left"

say "what is asked of an export that can't be"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
# past the end, across it, and so far that the sum of offset and length overflows
size=$(to_bytes 256M)
for at in $size:512 $((size - 512)):1024 18446744073709551104:1024 18446744073709551615:1 9223372036854775807:512; do
	expect_equal "error 22,error 22" "$(raw_nbd web01@1 "read:$at" "status:$at")" "at $at"
	expect_equal "error 1,error 1,error 1" "$(raw_nbd web01@1 "write:$at" "zero:$at" "trim:$at")" "an image, at $at"
done
size=$(to_bytes 1M)
for at in $size:512 $((size - 512)):1024 18446744073709551104:1024 18446744073709551615:1 9223372036854775807:512; do
	expect_equal "error 22,error 22,error 28,error 28,error 22,ok" \
		"$(raw_nbd small "read:$at" "status:$at" "write:$at" "zero:$at" "trim:$at" read:0:512)" "at $at"
done
expect_equal "error 22" "$(raw_nbd small read:0:67108865)" "more than a request may have"
stop_process "$NBD_PID"
store_state >after
diff before after >differences || die "the store has changed: $(head -n 5 differences)"

say "a disk that is open says by whom, whoever asks"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=small
start qemu-io -f raw -c 'sleep 60000' "$NBD_URI"
holder=$PID
by="nbdkit wherry small \(pid $NBD_PID"
wait_until 20 eval "wherry disks --json | jq -e '.disks[] | select(.name == \"small\") | .open_by != null'"
[[ $(wherry disks --json | jq -r '.disks[] | select(.name == "small") | .open_by') =~ $by ]]
expect_error "$by" wherry export small -
expect_error "$by" wherry verify small --source disk.img
expect_error "$by" wherry remove small
expect_error "$by" wherry sync disk.img small
expect_error "$by" wherry rebuild --progress=none
first_pid=$NBD_PID
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
nbdinfo --size "$(uri small)" >/dev/null 2>&1 && die "small was opened twice"
grep -qE "error: .*$by" "$NBD_LOG" || die "$(cat "$NBD_LOG")"
expect_equal "$(to_bytes 256M)" "$(nbdinfo --size "$(uri web01@1)")" "others of that server"
stop_process "$NBD_PID"
NBD_PID=$first_pid
stop_process "$holder"
stop_process "$NBD_PID"

say "the largest disk there can be, to its last byte"
E=$(to_bytes 1E)
expect_exit 0 wherry create huge 1E
wherry disks --json | grep -q "\"size_bytes\": *$E\b" # jq 1.6 would round it
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
URI=$(uri huge)
expect_equal "$E" "$(nbdinfo --size "$URI")"
# io COMMAND…: qemu-io, of which nothing fails
io() {
	local command words=()
	for command in "$@"; do
		words+=(-c "$command")
	done
	qemu-io -f raw "${words[@]}" "$URI" >io.out 2>&1 || die "$(cat io.out)"
	! grep -qi "failed\|error" io.out || die "$(grep -i "failed\|error" io.out)"
}
io "read -P 0 0 512" "read -P 0 $((E - 512)) 512" "write -P 5 $((E - 512)) 512" "read -P 5 $((E - 512)) 512" \
	"read -P 0 $((E - 1024)) 512" "write -P 6 $((E - 70000)) 70000" "write -P 7 $((E - 1)) 1" flush \
	"read -P 6 $((E - 70000)) 69999" "read -P 7 $((E - 1)) 1" "read -P 0 $((E - 70001)) 1"
expect_equal "4294836223/3 131072/0" "$(raw_nbd huge status:$((E - 4294967295)):4294967295)" "the last 4 GiB"
expect_equal "1/0" "$(raw_nbd huge status-one:$((E - 1)):1)" "the last byte"
expect_equal "4294967295/3" "$(raw_nbd huge status:0:4294967295)" "the first 4 GiB"
io "write -z $((E - 60000)) 59000" "discard $((E - 512)) 512" "read -P 0 $((E - 60000)) 59000" "read -P 6 $((E - 1000)) 488" \
	"read -P 0 $((E - 512)) 512" "read -P 6 $((E - 70000)) 10000"
expect_equal "ok,ok,ok,1/0" "$(raw_nbd huge zero:$((E - 4294967295)):4294967295 trim:$((E - 4294967295)):4294967295 \
	write:$((E - 33554432)):33554432 status:$((E - 1)):1)" "as much as a request can have, up to the end"
expect_equal "error 22,error 28,error 28,error 22,error 22" \
	"$(raw_nbd huge read:$((E - 256)):512 write:$((E - 256)):512 zero:$E:1 trim:$((E - 1)):2 status:$E:1)"
io "discard $((E - 2147483648)) 2147483136" "write -P 9 $((E - 512)) 512" flush
expect_exit 0 wherry image huge
expect_exit 0 wherry clone huge@1 twin
URI=$(uri twin)
io "read -P 9 $((E - 512)) 512" "read -P 0 $((E - 1024)) 512" "write -P 1 $((E - 1024)) 700" "write -z 0 1M" flush
URI=$(uri huge)
io "read -P 9 $((E - 512)) 512" "read -P 0 $((E - 1024)) 512"
stop_process "$NBD_PID"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1
URI=$(uri huge@1)
io "read -P 9 $((E - 512)) 512" "write -P 2 $((E - 5000)) 4000" "write -P 2 0 512" "write -z $((E - 4000)) 1000" "read -P 2 $((E - 5000)) 1000" \
	"read -P 0 $((E - 4000)) 1000" "read -P 9 $((E - 512)) 512" "discard $((E - 1073741824)) 1073741824" "read -P 0 $((E - 5000)) 5000" "write -P 3 $((E - 1)) 1"
stop_process "$NBD_PID"
expect_error "can't be made $E bytes long; is that too large for this file system" wherry export huge@1 out.img
[[ ! -e out.img ]] || die "a file was left by an export that can't be"
expect_exit 0 wherry check --deep --progress=none
expect_exit 0 wherry rebuild --progress=none
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
URI=$(uri huge)
io "read -P 9 $((E - 512)) 512"
URI=$(uri twin)
io "read -P 1 $((E - 1024)) 700" "read -P 9 $((E - 324)) 324"
stop_process "$NBD_PID"
for name in twin huge; do
	expect_exit 0 wherry remove $name
done
expect_number "$(du -sk "$WHERRY_STORE/catalog.db" | cut -f 1) < 4096" "KiB of a catalog that had disks of 1 EiB"
