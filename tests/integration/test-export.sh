#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that an export can be written to, and what is left there when it fails or is stopped.
# asan: yes
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq strace mkfifo

MIB=$((1024 * 1024))
SIZE=$((12 * MIB))

# Data, then zeros, then data: chunks that are there, blocks of zeros inside of chunks, chunks that aren't.
random_file source $SIZE source
zero_range source 3M 4M
zero_range source $((9 * MIB + 5000)) 20000
make_store
sync_disk source web01
mkfifo fifo

say "to standard output that is a file, and at the end of a file that is there"
wherry export web01@1 - --progress=none >exported 2>stderr
check_same source exported
grep -q '^web01@1: 12.0 MiB to standard output' stderr || die "no summary on standard error: $(cat stderr)"
echo "before" >exported
wherry export web01@1 - --progress=none >>exported 2>stderr
check_same <(echo "before" && cat source) exported

say "to a pipe with a name, and to /dev/null"
start wherry export web01@latest fifo --progress=none
cmp -s source fifo || die "what comes through a named pipe"
finish "$PID"
expect_exit 0 wherry export web01@1 /dev/null

say "to a reader that goes away"
status=0
{ wherry export web01@1 - --progress=none 2>stderr || echo $? >status; } | head -c 1M >exported
expect_equal 1 "$(cat status)" "exit status"
expect_equal 1 "$(grep -c . stderr)" "lines on standard error: $(cat stderr)"
grep -qE '^wherry: .*(gone|reading)' stderr || die "not a clear word about a reader that has gone: $(cat stderr)"
check_same <(head -c 1M source) exported

say "over a larger file with other content"
random_file exported 20M garbage
inode=$(stat -c %i exported)
expect_exit 0 wherry export web01@1 exported
check_same source exported
expect_equal "$inode" "$(stat -c %i exported)" "the file is overwritten, not replaced"
expect_number "$(du -B1 exported | cut -f1) <= $SIZE - 3 * $MIB" "zeros are holes"
grep -qF 'web01@1: 12.0 MiB to exported' stdout || die "no summary: $(cat stdout)"

say "through a link to a file, but not to nowhere"
ln -s exported link
random_file exported 1M garbage
expect_exit 0 wherry export web01@1 link
check_same source exported
[[ -L link ]] || die "the link was replaced"
ln -s nowhere dangling
expect_error 'dangling: ' wherry export web01@1 dangling
[[ ! -e nowhere ]] || die "a file was made through a dangling link"

say "live content, and what JSON says about an export"
expect_exit 0 wherry export web01 exported --json
check_same source exported
expect_equal "web01 null null exported $SIZE $SIZE" \
	"$(json_get '"\(.disk) \(.image) \(.partition) \(.target) \(.size_bytes) \(.target_bytes)"')"
expect_number "$(json_get .data_bytes) <= $SIZE - 4 * $MIB" "zeros are not data"

say "it is on the disk when it is done"
rm exported
without_leak_check strace -f -e trace=fsync,fdatasync -y -o trace wherry export web01@1 exported --progress=none >/dev/null
grep -qE "f(data)?sync\([0-9]+<[^>]*/exported>\) += 0" trace || die "the file was not synced: $(cat trace)"
grep -qE "fsync\([0-9]+<$(realpath .)>\) += 0" trace || die "its folder was not synced: $(cat trace)"

# slowly COMMAND…: in the background, each write of it delayed; PID is its own.
slowly() {
	ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" start strace -D -f -o /dev/null -e trace=pwrite64 \
		-e inject=pwrite64:delay_enter=300000 "$@" >stdout 2>stderr
}

# expect_stopped COMMAND-PID: 130, one line, soon.
expect_stopped() {
	local status=0 began=$SECONDS
	finish "$1" || status=$?
	expect_equal 130 "$status" "exit status of what was stopped: $(cat stderr)"
	expect_number "$SECONDS - $began <= 5" "it stopped soon"
}

has_bytes() {
	[[ -s $1 ]]
}

has_size() {
	[[ $(size_of "$1") == "$2" ]]
}

# The process has a descriptor of it.
has_open() {
	find "/proc/$1/fd" -lname "$2" 2>/dev/null | grep -q .
}

say "Ctrl-C: a file that was made is gone"
for signal in INT TERM; do
	rm -f exported
	slowly wherry export web01@1 exported --progress=none
	wait_until 20 has_bytes exported
	kill -"$signal" "$PID"
	expect_stopped "$PID"
	grep -q '^wherry: .*export.*stopped' stderr || die "no word about having been stopped: $(cat stderr)"
	[[ ! -e exported ]] || die "a part of a disk was left behind"
	[[ ! -s stdout ]] || die "something was printed: $(cat stdout)"
done

say "Ctrl-C: a file that was there holds a part, and that is said"
random_file exported 20M garbage
slowly wherry export web01@1 exported --progress=none
wait_until 20 has_size exported $SIZE
kill -INT "$PID"
expect_stopped "$PID"
grep -q '^wherry: .*exported.*\(part\|not the whole\)' stderr || die "not a word about what is left: $(cat stderr)"
[[ -e exported ]] || die "a file that was there before was removed"

say "Ctrl-C: while nobody reads"
start wherry export web01@1 fifo --progress=none 2>stderr
wait_until 20 has_open "$PID" "$WHERRY_STORE/catalog.db"
sleep 0.3 # waits for a reader
kill -INT "$PID"
expect_stopped "$PID"
exec 9<>fifo # open for reading, and never read
start wherry export web01@1 fifo --progress=none 2>stderr 9>&-
wait_until 20 has_open "$PID" "$WORK/fifo"
sleep 0.2 # waits for room in the pipe
kill -INT "$PID"
expect_stopped "$PID"
exec 9>&-

say "standard output that takes nothing"
status=0
wherry export web01@1 - --progress=none >/dev/full 2>stderr || status=$?
expect_equal 1 "$status" "exit status"
grep -q '^wherry: .*[Nn]o space left' stderr || die "the reason is not told: $(cat stderr)"

((EUID == 0)) || skip "all but what needs root has passed"

say "no room"
mount_at small -t tmpfs -o size=4M tmpfs
status=0
wherry export web01@1 small/exported --progress=none >stdout 2>stderr || status=$?
expect_equal 1 "$status" "exit status"
expect_equal 1 "$(grep -vc warning stderr)" "lines on standard error: $(cat stderr)"
grep -qE '^wherry: small/exported: .*[Nn]o space left' stderr || die "the reason is not told: $(cat stderr)"
[[ ! -e small/exported ]] || die "a part of a disk was left behind"
echo "before" >small/exported
status=0
wherry export web01@1 small/exported --progress=none >stdout 2>stderr || status=$?
expect_equal 1 "$status" "exit status"
grep -q '^wherry: .*small/exported.*only a part' stderr || die "not a word about what is left: $(cat stderr)"
[[ -e small/exported ]] || die "a file that was there before was removed"
unmount small

requires_loop

say "to a device that is full of garbage"
random_file target $SIZE garbage
attach_loop target
loop=$LOOP
expect_exit 0 wherry export web01@1 "$loop"
check_same source "$loop"
detach_loop "$loop"
check_same source target

say "to a device that can't punch holes"
random_file target $SIZE garbage
attach_loop target
loop=$LOOP
without_leak_check strace -f -o /dev/null -e trace=fallocate,ioctl -e inject=fallocate:error=EOPNOTSUPP \
	wherry export web01@1 "$loop" --progress=none >/dev/null
check_same source "$loop"
detach_loop "$loop"

say "to a larger device: the rest of it stays"
random_file target 16M garbage
cp target garbage
attach_loop target
loop=$LOOP
expect_exit 0 wherry export web01@1 "$loop" --json
expect_equal "$SIZE $((16 * MIB))" "$(json_get '"\(.size_bytes) \(.target_bytes)"')"
grep -q "^wherry: $loop: is larger" stderr || die "not a word about the rest: $(cat stderr)"
check_same <(cat source <(tail -c 4M garbage)) "$loop"
detach_loop "$loop"

say "Ctrl-C: a device is never removed"
attach_loop target
loop=$LOOP
slowly wherry export web01@1 "$loop" --progress=none
wait_until 20 has_open "$PID" "$loop"
sleep 0.2
kill -INT "$PID"
expect_stopped "$PID"
[[ -b $loop ]] || die "the device is gone"
expect_exit 0 wherry export web01@1 "$loop"
check_same <(head -c $SIZE "$loop") source
detach_loop "$loop"

say "partitions: to a file, a pipe, a device"
requires sfdisk mke2fs mkfs.vfat mkswap
make_disk_gpt disk 128M
sync_disk disk web02 --read-all
for number in 1 2 3; do
	partition_bytes disk $number >partition
	check_export "web02@1/$number" partition
	expect_exit 0 wherry export "web02@1/$number" exported
	check_same partition exported
done
random_file target "$(size_of partition)" garbage
attach_loop target
loop=$LOOP
expect_exit 0 wherry export web02@1/3 "$loop"
check_same partition "$loop"
detach_loop "$loop"
expect_exit 0 wherry export web02/2 exported --json
expect_equal "web02 null 2 $(partition_size disk 2)" "$(json_get '"\(.disk) \(.image) \(.partition) \(.size_bytes)"')"

say "a GPT disk onto a larger device: how to move its backup table is told"
truncate -s 160M target
attach_loop target
loop=$LOOP
expect_exit 0 wherry export web02@1 "$loop"
grep -q "^wherry: .*backup.*sgdisk -e $loop" stderr || die "not a word about the backup table: $(cat stderr)"
detach_loop "$loop"
