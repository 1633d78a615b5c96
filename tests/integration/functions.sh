# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034
#
# What every integration test begins with:
#
#     #!/usr/bin/env bash
#     # SPDX-License-Identifier: Apache-2.0
#     # what this test is about
#     # timeout: 120
#     . "$(dirname "$0")/functions.sh"
#
# After that line the test
#   - runs in a directory of its own, $WORK, which is gone when it ends;
#   - finds the command under test as `wherry` on its PATH (also below strace,
#     timeout, …), and a store to make in $WHERRY_STORE, which the command uses
#     when it is told no other;
#   - stops at the first command that fails, and says which line that was.
#
# Whatever way it ends, passed, failed, interrupted, timed out: processes that it
# started are ended by their pid, what it mounted is unmounted, its loop devices
# are freed. It touches nothing else.
#
# From outside:
#   WHERRY, WHERRY_BUILD, WHERRY_SOURCE, WHERRY_TEST_TOOLS   set by CTest; without them, build/release
#   WHERRY_TEST_SEED      the random choices; printed, chosen anew when not given
#   WHERRY_TEST_KEEP=1    leaves $WORK where it is
#   WHERRY_TEST_THOROUGH=1 no samples where everything can be looked at, however long that takes
#   WHERRY_TEST_NO_SKIP=1 a test that cannot run has failed
#   WHERRY_TEST_TMPDIR    where $WORK is made; /var/tmp without it (a tmpfs has no O_DIRECT)

set -Eeuo pipefail
export LC_ALL=C TZ=UTC
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # where mke2fs and sfdisk are, for who is not root

# ------------------------------------------------------------- beginning

TEST_SCRIPT=$(realpath "$0")
TEST_NAME=$(basename "$0" .sh)
TEST_NAME=${TEST_NAME#test-}
: "${WHERRY_SOURCE:=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")}"
: "${WHERRY_BUILD:=$WHERRY_SOURCE/build/release}"
: "${WHERRY:=$WHERRY_BUILD/bin/wherry}"
: "${WHERRY_TEST_TOOLS:=$WHERRY_BUILD/helpers}"
: "${WHERRY_TEST_SEED:=$((SRANDOM % 1000000))}"
export WHERRY WHERRY_BUILD WHERRY_SOURCE WHERRY_TEST_TOOLS WHERRY_TEST_SEED

# say TEXT…: one line of what the test is doing.
say() {
	printf '%s: %s\n' "$TEST_NAME" "$*"
}

# die TEXT…: the test has failed, for this reason.
die() {
	say "FAILED: $*" >&2
	failed_because_told=1
	exit 1
}

# skip REASON…: the test cannot run here.
skip() {
	if [[ ${WHERRY_TEST_NO_SKIP:-} == 1 ]]; then
		die "must not be skipped here, but: $*"
	fi
	say "SKIPPED: $*"
	exit 77
}

[[ -x $WHERRY ]] || { echo "$TEST_NAME: $WHERRY is not there; build it first" >&2 && exit 1; }

WORK=$(mktemp -d "${WHERRY_TEST_TMPDIR:-/var/tmp}/wherry-$TEST_NAME.XXXXXX")
export TMPDIR=$WORK/tmp WHERRY_STORE=$WORK/store
export WHERRY_TEST_WORK=$WORK # marks what this test starts, to be found at the end whoever its parent is by then
mkdir "$TMPDIR"
cd "$WORK"
PATH=$(dirname "$WHERRY"):$PATH
RANDOM=$((WHERRY_TEST_SEED % 32768)) # bash's own sequence, too

# ------------------------------------------------------------------- end

started_pids=()
loop_devices=()
mount_points=()
cleanup_commands=()
failed_because_told=0

# at_exit COMMAND…: run when the test ends; the last one given runs first.
at_exit() {
	cleanup_commands+=("$(printf '%q ' "$@")")
}

# A process that has ended and has been waited for leaves its number to others; a zombie keeps it, but does nothing.
_is_running_child() {
	[[ $(ps -o ppid=,stat= -p "$1" 2>/dev/null || true) =~ ^\ *$$\ +[^Z] ]]
}

# Those that still run of all that carry this test's mark in their environment.
_marked_pids() {
	local file
	grep -lszxF "WHERRY_TEST_WORK=$WORK" /proc/[0-9]*/environ | while IFS=/ read -r _ _ file _; do
		[[ $(ps -o comm= -p "$file" 2>/dev/null) == grep ]] || echo "$file"
	done
}

# stop_process PID: SIGTERM, SIGKILL when that did not do it within five seconds. One of ours only.
stop_process() {
	local pid=$1 tries
	[[ " ${started_pids[*]} " == *" $pid "* ]] || die "process $pid is none that this test started"
	if _is_running_child "$pid"; then
		kill "$pid" 2>/dev/null || true
		for ((tries = 0; tries < 50; tries++)); do
			_is_running_child "$pid" || break
			sleep 0.1
		done
		if _is_running_child "$pid"; then
			kill -KILL "$pid" 2>/dev/null || true
		fi
	fi
	wait "$pid" 2>/dev/null || true
	forget_process "$pid"
}

# forget_process PID: it has been waited for; its number may be somebody else's by now.
forget_process() {
	local pid kept=()
	for pid in "${started_pids[@]}"; do
		[[ $pid == "$1" ]] || kept+=("$pid")
	done
	started_pids=("${kept[@]}")
}

# Says what failed and the lines of the test that led there, innermost first; lines of this file are no help.
_explain_failure() {
	local status=$1 line=$2 command=$3 depth
	say "FAILED with status $status: $command" >&2
	for ((depth = 1; depth < ${#BASH_SOURCE[@]}; depth++)); do
		((depth == 1)) || line=${BASH_LINENO[depth - 1]}
		[[ ${BASH_SOURCE[depth]} == "${BASH_SOURCE[0]}" ]] || echo "    at ${BASH_SOURCE[depth]}:$line" >&2
	done
	failed_because_told=1
}

# Leaves a script which runs the test once more, with the same seed, and keeps its directory.
_leave_repeat_script() {
	local directory=$WHERRY_BUILD/failed name
	mkdir -p "$directory" 2>/dev/null || return 0
	{
		echo '#!/usr/bin/env bash'
		for name in WHERRY WHERRY_BUILD WHERRY_SOURCE WHERRY_TEST_TOOLS WHERRY_TEST_SEED \
			ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS; do
			[[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
		done
		echo 'export WHERRY_TEST_KEEP=1'
		printf 'exec bash %q "$@"\n' "$TEST_SCRIPT"
	} >"$directory/$TEST_NAME"
	chmod +x "$directory/$TEST_NAME"
	say "repeat it with $directory/$TEST_NAME" >&2
}

_end_test() {
	local status=$1 i pid
	trap '' INT TERM HUP
	trap - ERR EXIT
	set +eu
	if ((status != 0 && status != 77)); then
		((failed_because_told)) || say "FAILED: ended with status $status" >&2
		_leave_repeat_script
	fi
	for ((i = ${#cleanup_commands[@]} - 1; i >= 0; i--)); do
		eval "${cleanup_commands[i]}"
	done
	# Every child of this shell that still runs, whether it was started by a function from here or by a plain "&";
	# then what those have left behind, as strace does when it is stopped.
	for pid in "${started_pids[@]}" $(jobs -pr); do
		[[ " ${started_pids[*]} " == *" $pid "* ]] || started_pids+=("$pid")
		stop_process "$pid"
	done
	for pid in $(_marked_pids); do
		kill -KILL "$pid" 2>/dev/null
	done
	for ((i = ${#mount_points[@]} - 1; i >= 0; i--)); do
		umount "${mount_points[i]}" || umount --lazy "${mount_points[i]}"
	done
	for ((i = ${#loop_devices[@]} - 1; i >= 0; i--)); do
		losetup --detach "${loop_devices[i]}"
	done
	cd /
	if [[ ${WHERRY_TEST_KEEP:-} == 1 ]]; then
		say "left in $WORK"
	else
		# Never into something that is mounted after all.
		rm -rf --one-file-system "$WORK"
	fi
	exit "$status"
}

trap '_explain_failure $? $LINENO "$BASH_COMMAND"' ERR
trap '_end_test $?' EXIT
trap 'say "interrupted" >&2; exit 130' INT
trap 'say "stopped by SIGTERM; out of time?" >&2; exit 143' TERM
trap 'exit 129' HUP

say "seed $WHERRY_TEST_SEED"

# ---------------------------------------------------------- requirements

requires_root() {
	((EUID == 0)) || skip "needs root"
}

# requires COMMAND…: programs to be found on the PATH.
requires() {
	local command
	for command in "$@"; do
		command -v "$command" >/dev/null || skip "needs the program $command"
	done
}

# requires_loop: root, and loop devices that can really be attached.
requires_loop() {
	requires_root
	requires losetup
	# A chroot's /dev may lack what a running udev or devtmpfs would have made.
	[[ -e /dev/loop-control ]] || modprobe loop 2>/dev/null || true
	[[ -e /dev/loop-control ]] || mknod -m 660 /dev/loop-control c 10 237 2>/dev/null || true
	truncate -s 1M "$TMPDIR/loop-probe"
	attach_loop "$TMPDIR/loop-probe" 2>"$TMPDIR/loop-probe.err" ||
		skip "needs loop devices: $(tail -n 1 "$TMPDIR/loop-probe.err")"
	detach_loop "$LOOP"
}

# requires_nbdkit_plugin NAME [OPTION…]: nbdkit with a plugin that loads.
requires_nbdkit_plugin() {
	requires nbdkit
	nbdkit "$1" --version >/dev/null 2>&1 || skip "needs nbdkit's plugin $1"
}

# requires_nbdkit_filter NAME
requires_nbdkit_filter() {
	requires nbdkit
	nbdkit --filter="$1" null --version >/dev/null 2>&1 || skip "needs nbdkit's filter $1"
}

# ------------------------------------------------------ random, the same

# random_stream BYTES SEED: to standard output. The seed can be any text; the same seed, the same bytes, on every
# machine: the key stream of AES in counter mode, which comes as fast as a disk takes it.
random_stream() {
	local key
	key=$(printf '%s' "$2" | openssl dgst -sha256 -r | cut -c1-32)
	# head has enough before openssl is done, and that is no failure.
	(set +o pipefail && openssl enc -aes-128-ctr -nosalt -K "$key" -iv 00000000000000000000000000000000 \
		-in /dev/zero 2>/dev/null | head -c "$1")
}

# random_file FILE BYTES SEED
random_file() {
	random_stream "$(to_bytes "$2")" "$3" >"$1"
}

# random_range FILE OFFSET BYTES SEED: overwrites a part of a file, in place.
random_range() {
	random_stream "$(to_bytes "$3")" "$4" |
		dd of="$1" bs=1M seek="$(to_bytes "$2")" oflag=seek_bytes conv=notrunc iflag=fullblock status=none
}

# zero_range FILE OFFSET BYTES: the same with zeros, written, not punched.
zero_range() {
	head -c "$(to_bytes "$3")" /dev/zero |
		dd of="$1" bs=1M seek="$(to_bytes "$2")" oflag=seek_bytes conv=notrunc iflag=fullblock status=none
}

# random_number BELOW: sets NUMBER, 0 <= NUMBER < BELOW, from the test's seed. (Not for $(…): a subshell would draw
# the same number every time.)
random_number() {
	NUMBER=$(((RANDOM << 30 | RANDOM << 15 | RANDOM) % $1))
}

# to_bytes SIZE: 4096, 64K, 8G as a number of bytes.
to_bytes() {
	numfmt --from=iec "$1"
}

# byte_flip FILE OFFSET: changes one byte, whatever it was.
byte_flip() {
	local old
	old=$(dd if="$1" bs=1 skip="$2" count=1 status=none | od -An -tu1)
	printf '%b' "\\x$(printf '%02x' $((old ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# ----------------------------------------------------------- expectations

# expect_exit STATUS COMMAND…: what it prints is in $WORK/stdout and $WORK/stderr afterwards, and shown when the
# status is another.
expect_exit() {
	local expected=$1 status=0
	shift
	"$@" >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	if ((status != expected)); then
		sed 's/^/    out: /' "$WORK/stdout" | tail -n 40 >&2
		sed 's/^/    err: /' "$WORK/stderr" | tail -n 40 >&2
		_explain_failure "$status" 0 "$* (status $expected expected)"
		exit 1
	fi
}

# expect_error PATTERN COMMAND…: fails with status 1 or 2, and with one line on standard error, "wherry: …", which
# the extended regular expression matches; nothing on standard output.
expect_error() {
	local pattern=$1 status=0 why=""
	shift
	"$@" >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	if ((status != 1 && status != 2)); then
		why="status 1 or 2 expected"
	elif [[ $(wc -l <"$WORK/stderr") != 1 || $(head -c 8 "$WORK/stderr") != "wherry: " ]]; then
		why="one line of error expected, that begins with \"wherry: \""
	elif ! grep -qE -- "$pattern" "$WORK/stderr"; then
		why="error expected to match /$pattern/"
	elif [[ -s $WORK/stdout ]]; then
		why="nothing expected on standard output"
	fi
	if [[ -n $why ]]; then
		sed 's/^/    out: /' "$WORK/stdout" | tail -n 40 >&2
		sed 's/^/    err: /' "$WORK/stderr" | tail -n 40 >&2
		_explain_failure "$status" 0 "$* ($why)"
		exit 1
	fi
}

# expect_equal EXPECTED ACTUAL [WHAT]
expect_equal() {
	[[ $1 == "$2" ]] && return
	printf '    expected: %s\n      actual: %s\n' "$1" "$2" >&2
	_explain_failure 1 0 "${3:-expect_equal}"
	exit 1
}

# check_same EXPECTED ACTUAL: two files or devices, byte by byte; says where they begin to differ, and how much.
check_same() {
	local first size_a size_b differing
	cmp -s "$1" "$2" && return
	size_a=$(size_of "$1")
	size_b=$(size_of "$2")
	first=$(cmp "$1" "$2" 2>&1 || true)
	{
		say "$1 ($size_a bytes) and $2 ($size_b bytes) are not the same: $first"
		if [[ $first =~ (byte|char)\ ([0-9]+) ]]; then
			first=$((BASH_REMATCH[2] - 1))
			echo "    first at offset $first = 64K chunk $((first / 65536)) + $((first % 65536))"
			differing=$( (set +o pipefail && cmp -l "$1" "$2" 2>/dev/null | head -n 1000000 | wc -l))
			echo "    $differing bytes differ$( ((differing < 1000000)) || echo ' at least')"
			echo "    $1:" && od -A d -t x1z -j "$first" -N 64 "$1"
			echo "    $2:" && od -A d -t x1z -j "$first" -N 64 "$2"
		fi
	} >&2
	_explain_failure 1 0 "check_same $1 $2"
	exit 1
}

# size_of FILE-OR-DEVICE: its bytes.
size_of() {
	if [[ -b $1 ]]; then
		blockdev --getsize64 "$1"
	else
		stat -L -c %s "$1"
	fi
}

# json_get FILTER [FILE]: what jq makes of the standard output of the last expect_exit (or of FILE).
json_get() {
	jq -r "$1" "${2:-$WORK/stdout}"
}

# wait_until SECONDS COMMAND…: tries ten times a second.
wait_until() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || die "not so within the time given: $*"
		sleep 0.1
	done
}

# without_leak_check COMMAND…: for programs below strace; LeakSanitizer is a tracer itself, and there can be one only.
without_leak_check() {
	ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" "$@"
}

# --------------------------------------------------------------- processes

# start COMMAND…: in the background; sets PID. The test ends it when it ends itself.
start() {
	"$@" &
	PID=$!
	started_pids+=("$PID")
}

# finish PID: waits for a process that start() has begun, and returns its status.
finish() {
	local status=0
	wait "$1" || status=$?
	forget_process "$1"
	return "$status"
}

nbd_servers=0

# Both servers write their pid file when they listen. (Not to be found out by connecting: nbdkit's filters count
# connections.) A server that has died meanwhile is shown with its last words.
_wait_for_nbd() {
	local name=$1 tries
	for ((tries = 0; tries < 300; tries++)); do
		[[ ! -s $NBD_SOCKET.pid ]] || return 0
		_is_running_child "$NBD_PID" || break
		sleep 0.1
	done
	sed 's/^/    /' "$NBD_LOG" >&2
	die "$name does not answer on $NBD_SOCKET"
}

_choose_nbd_socket() {
	nbd_servers=$((nbd_servers + 1))
	NBD_SOCKET=$WORK/${SOCKET:-nbd$nbd_servers}
	NBD_LOG=$WORK/nbd$nbd_servers.log
	rm -f "$NBD_SOCKET" "$NBD_SOCKET.pid"
	NBD_URI="nbd+unix:///$1?socket=$NBD_SOCKET"
}

# start_nbdkit ARGUMENT…: nbdkit with these, on a Unix socket. Sets NBD_URI, NBD_SOCKET, NBD_PID (for stop_process),
# NBD_LOG; comes back when it answers. The socket is another one each time, so that it is another source to wherry;
# SOCKET=name start_nbdkit … for one that comes back.
start_nbdkit() {
	requires nbdkit
	_choose_nbd_socket ""
	# In the foreground: it stays our child, which can be waited for and whose pid is certain.
	nbdkit --foreground --unix "$NBD_SOCKET" --pidfile "$NBD_SOCKET.pid" "$@" >"$NBD_LOG" 2>&1 &
	NBD_PID=$!
	started_pids+=("$NBD_PID")
	_wait_for_nbd nbdkit
}

# start_qemu_nbd ARGUMENT…: the same with qemu-nbd, for example start_qemu_nbd -f qcow2 -B bitmap disk.qcow2. An
# export name can be given as EXPORT=name start_qemu_nbd …, a socket's as above.
start_qemu_nbd() {
	requires qemu-nbd
	_choose_nbd_socket "${EXPORT:-}"
	qemu-nbd --persistent --shared=16 --socket="$NBD_SOCKET" --pid-file="$NBD_SOCKET.pid" \
		${EXPORT:+--export-name="$EXPORT"} "$@" >"$NBD_LOG" 2>&1 &
	NBD_PID=$!
	started_pids+=("$NBD_PID")
	_wait_for_nbd qemu-nbd
}

# ------------------------------------------------------------- the command

# make_store [OPTION…]: an empty store in $WHERRY_STORE, in the place of one that was there.
make_store() {
	rm -rf --one-file-system "$WHERRY_STORE"
	expect_exit 0 wherry init "$@"
}

# sync_disk SOURCE DISK [OPTION…]: a round that must succeed; json_get looks into its report afterwards.
sync_disk() {
	expect_exit 0 wherry sync "$@" --json --progress=none
}

# expect_number COMPARISON WHAT: an arithmetic expression that must be true, "$a <= 65536"; WHAT is said when not.
expect_number() {
	(($1)) && return
	_explain_failure 1 0 "${2:-expect_number}: not so: $1"
	exit 1
}

# check_export REFERENCE FILE-OR-DEVICE: what comes out of an export is what is there, byte by byte.
check_export() {
	if wherry export "$1" - --progress=none 2>"$WORK/stderr" | cmp -s - "$2"; then
		return 0
	fi
	say "$1 is not $2" >&2
	sed 's/^/    err: /' "$WORK/stderr" >&2
	wherry export "$1" "$WORK/differing-export" --progress=none >&2
	check_same "$2" "$WORK/differing-export"
	die "$1 was not $2 when exported to a pipe, and is when exported to a file"
}

# digest_of_export REFERENCE: SHA-256 of what comes out, in hexadecimal.
digest_of_export() {
	wherry export "$1" - --progress=none 2>/dev/null | digest_of_stream
}
digest_of_stream() {
	openssl dgst -sha256 -r | cut -d ' ' -f 1
}

# store_state [STORE]: prints all that a store holds, in a form that can be compared: it must not change when something
# is refused. (The catalog is looked at in a copy, for looking at it in place could change its log.)
store_state() {
	local store=${1:-$WHERRY_STORE} copy=$TMPDIR/catalog-copy
	rm -rf "$copy"
	mkdir "$copy"
	cp "$store"/catalog.db* "$copy/"
	rm -f "$copy/catalog.db-shm"
	sqlite3 "$copy/catalog.db" .dump
	cat "$store/wherry.json"
	(cd "$store" && find segments journal -type f -exec sha256sum {} + | sort -k 2)
}

# ------------------------------------------------------- loops and mounts

# attach_loop FILE [LOSETUP-OPTION…]: sets LOOP to the device.
attach_loop() {
	local file=$1 number tries
	shift
	for ((tries = 0; tries < 10; tries++)); do
		# Without udev a device node that the kernel has just invented is not there yet.
		LOOP=$(losetup --find)
		number=${LOOP#/dev/loop}
		[[ -b $LOOP ]] || mknod -m 660 "$LOOP" b 7 "$number" 2>/dev/null || true
		if losetup "$@" "$LOOP" "$file"; then
			loop_devices+=("$LOOP")
			return 0
		fi
		sleep 0.2 # somebody else took it between the question and the answer
	done
	return 1
}

# detach_loop DEVICE: one of ours only.
detach_loop() {
	local device file kept=()
	[[ " ${loop_devices[*]} " == *" $1 "* ]] || die "$1 is none that this test attached"
	file=$(_loop_file "$1")
	losetup --detach "$1"
	wait_until 120 _loop_is_off "$1" "$file"
	for device in "${loop_devices[@]}"; do
		[[ $device == "$1" ]] || kept+=("$device")
	done
	loop_devices=("${kept[@]}")
}

# Whoever has a mount namespace of his own has copies of all mounts in it, those of tests that run at the same time too. As long as he lives a file system is
# not unmounted, whatever umount says, and part of it only in its journal.
_loop_file() {
	losetup --noheadings --output BACK-FILE "$1" 2>/dev/null || true
}
_loop_is_off() {
	[[ $(_loop_file "$1") != "$2" ]]
}

# mount_at DIRECTORY MOUNT-ARGUMENT…: makes the directory and mounts there.
mount_at() {
	local directory
	mkdir -p "$1"
	directory=$(realpath "$1")
	shift
	mount "$@" "$directory"
	mount_points+=("$directory")
}

# unmount DIRECTORY: one of ours only.
unmount() {
	local directory mount_point device file="" kept=()
	directory=$(realpath "$1")
	[[ " ${mount_points[*]} " == *" $directory "* ]] || die "$1 is none that this test mounted"
	device=$(findmnt -n -o SOURCE --mountpoint "$directory" | tail -n 1)
	[[ $device != /dev/loop* || $(losetup --noheadings --output AUTOCLEAR "$device" 2>/dev/null) -ne 1 ]] || file=$(_loop_file "$device")
	umount "$directory"
	[[ -z $file ]] || wait_until 120 _loop_is_off "$device" "$file"
	for mount_point in "${mount_points[@]}"; do
		[[ $mount_point == "$directory" ]] || kept+=("$mount_point")
	done
	mount_points=("${kept[@]}")
}

# mount_writable FILE DIRECTORY [OPTIONS]: with -o loop. Of two that look for a free loop device at the same moment one may get his read-only.
mount_writable() {
	local tries
	for ((tries = 0; tries < 10; tries++)); do
		mount_at "$2" -o "loop${3:+,$3}" "$1"
		[[ ,$(findmnt -n -o OPTIONS --mountpoint "$(realpath "$2")"), == *,rw,* ]] && return 0
		unmount "$2"
		sleep 0.2
	done
	return 1
}

# mount_partition IMAGE NUMBER DIRECTORY [OPTIONS]: through a loop device of its own, which unmount_partition frees.
mount_partition() {
	attach_loop "$1" --offset "$(partition_start "$1" "$2")" --sizelimit "$(partition_size "$1" "$2")"
	mount_at "$3" -o "${4:-rw}" "$LOOP"
}

# unmount_partition DIRECTORY
unmount_partition() {
	local device
	device=$(findmnt -n -o SOURCE --mountpoint "$(realpath "$1")")
	unmount "$1"
	detach_loop "$device"
}

# ------------------------------------------------------------------ wherryfs

# requires_fs: wherryfs, and a FUSE that lets this user mount.
requires_fs() {
	[[ -x $WHERRY_BUILD/bin/wherryfs ]] || skip "no wherryfs: libfuse3-dev was not there when it was built"
	[[ -c /dev/fuse ]] || modprobe fuse 2>/dev/null || true
	[[ -c /dev/fuse ]] || skip "needs /dev/fuse"
	((EUID == 0)) || requires fusermount3
}

_is_mounted() {
	awk -v place="$1" '$5 == place { type = $0; sub(/.* - /, "", type); sub(/ .*/, "", type) } END { exit type != "fuse.wherryfs" }' /proc/self/mountinfo
}

fs_mounts=0

# start_fs FOLDER [ARGUMENT…]: wherryfs on $WHERRY_STORE, in the foreground; comes back when it is mounted. Sets FS_PID, for stop_process, and FS_LOG.
start_fs() {
	local folder tries
	mkdir -p "$1"
	folder=$(realpath "$1")
	FS_LOG=$WORK/fs$((++fs_mounts)).log
	wherryfs -f "$WHERRY_STORE" "$@" >"$FS_LOG" 2>&1 &
	FS_PID=$!
	started_pids+=("$FS_PID")
	at_exit umount --quiet --lazy "$folder"
	for ((tries = 0; tries < 300; tries++)); do
		! _is_mounted "$folder" || return 0
		_is_running_child "$FS_PID" || break
		sleep 0.1
	done
	sed 's/^/    /' "$FS_LOG" >&2
	die "wherryfs does not mount on $1"
}

# stop_fs FOLDER: unmounts, and waits until all is in its place. Its status must be 0.
stop_fs() {
	umount "$1"
	finish "$FS_PID" || die "wherryfs ended with status $?: $(cat "$FS_LOG")"
}

# -------------------------------------------------------------------- disks

_partition_field() {
	sfdisk --json "$1" | jq -er --arg node "$1$2" --arg node_p "$1p$2" \
		".partitiontable | (.sectorsize // 512) as \$sector |
		 .partitions[] | select(.node == \$node or .node == \$node_p) | .$3 * \$sector"
}

# partition_start IMAGE NUMBER, partition_size IMAGE NUMBER: in bytes.
partition_start() {
	_partition_field "$1" "$2" start
}
partition_size() {
	_partition_field "$1" "$2" size
}

# partition_bytes IMAGE NUMBER: the partition's content, to standard output.
partition_bytes() {
	dd if="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock status=none \
		skip="$(partition_start "$1" "$2")" count="$(partition_size "$1" "$2")"
}

# real_files: sets FILES to a directory with real files, to fill file systems with: programs, texts, many small ones,
# a large one, one with holes, links, an empty one. The same for the same seed on the same machine.
real_files() {
	FILES=$WORK/files
	[[ ! -d $FILES ]] || return 0
	mkdir -p "$FILES"/{bin,licenses,source,empty-directory}
	cp -L "$(command -v bash)" "$(command -v openssl)" "$FILES/bin/"
	cp -rL /usr/share/common-licenses/. "$FILES/licenses/"
	cp -r "$WHERRY_SOURCE"/{common,store,syncer} "$FILES/source/"
	random_file "$FILES/random" 3M "$WHERRY_TEST_SEED-files"
	truncate -s 2M "$FILES/holes"
	random_range "$FILES/holes" 1M 4K "$WHERRY_TEST_SEED-holes"
	: >"$FILES/empty"
	ln -s licenses/GPL-3 "$FILES/link"
	ln "$FILES/random" "$FILES/random-again"
}

# ext4_in_partition IMAGE NUMBER [DIRECTORY [MKE2FS-OPTION…]]: a file system as large as the partition, made in place,
# with the directory's files (none when it is ""; those of real_files when it is not given).
ext4_in_partition() {
	local image=$1 number=$2 directory start size
	real_files
	directory=${3-$FILES}
	shift $(($# < 3 ? $# : 3))
	start=$(partition_start "$image" "$number")
	size=$(partition_size "$image" "$number")
	mke2fs -q -F -t ext4 -E "offset=$start,lazy_itable_init=0" ${directory:+-d "$directory"} "$@" \
		"$image" "$((size / 1024))k"
}

# check_ext4 IMAGE NUMBER: e2fsck finds nothing to complain of.
check_ext4() {
	local log=$WORK/e2fsck.log
	if ! e2fsck -fn "$1?offset=$(partition_start "$1" "$2")" >"$log" 2>&1; then
		sed 's/^/    /' "$log" >&2
		die "e2fsck is not content with partition $2 of $1"
	fi
}

vfat_in_partition() {
	local start size
	start=$(partition_start "$1" "$2")
	size=$(partition_size "$1" "$2")
	# Told the size of its clusters, for it would guess them from the size of the whole image.
	mkfs.vfat --invariant -n EFI -F 32 -s 1 --offset $((start / 512)) "$1" $((size / 1024)) >"$WORK/mkfs.log" 2>&1
}

# swap_in_partition IMAGE NUMBER: an empty one.
swap_in_partition() {
	local start size area=$WORK/swap-area
	start=$(partition_start "$1" "$2")
	size=$(partition_size "$1" "$2")
	rm -f "$area"
	truncate -s "$size" "$area"
	chmod 600 "$area"
	mkswap -q -U 5741b0a7-0000-4000-8000-000000000001 "$area"
	dd if="$area" of="$1" bs=64K count=1 seek="$start" oflag=seek_bytes conv=notrunc status=none
	rm -f "$area"
}

# make_disk_gpt IMAGE SIZE: 1 an EFI partition, 2 ext4 with real files, 3 swap (its body zeros: use random_range for
# garbage). 256M at least.
make_disk_gpt() {
	requires sfdisk mke2fs mkfs.vfat mkswap jq openssl
	rm -f "$1"
	truncate -s "$(to_bytes "$2")" "$1"
	sfdisk -q "$1" <<-END
		label: gpt
		label-id: 5741B0A7-0000-4000-8000-000000000000
		size=36MiB, type=U, name="EFI"
		size=$(($(to_bytes "$2") / 1048576 - 36 - 32 - 4))MiB, type=L, name="root"
		size=32MiB, type=S, name="swap"
	END
	vfat_in_partition "$1" 1
	ext4_in_partition "$1" 2
	swap_in_partition "$1" 3
}

# make_disk_mbr IMAGE SIZE: 1 ext4 with real files, 2 the extended partition, in it 5 ext4 with real files and 6 ext4
# without any. 256M at least.
make_disk_mbr() {
	requires sfdisk mke2fs jq openssl
	local half_mib=$(($(to_bytes "$2") / 1048576 / 2))
	rm -f "$1"
	truncate -s "$(to_bytes "$2")" "$1"
	sfdisk -q "$1" <<-END
		label: dos
		label-id: 0x5741b0a7
		size=${half_mib}MiB, type=83, bootable
		type=5
		size=$((half_mib / 2))MiB, type=83
		type=83
	END
	random_range "$1" 512 32K "$WHERRY_TEST_SEED-boot-loader" # between the table and the first partition
	ext4_in_partition "$1" 1
	ext4_in_partition "$1" 5
	ext4_in_partition "$1" 6 ""
}
