#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever is killed, stopped, or undone by hand: umount undoes the rest, mount goes on, nothing stays, and what was synced is there. What is in use stays
# as it is. WHERRY_TEST_THOROUGH=1: with all signals.
# timeout: 400
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/mounts.sh"

requires_loop
requires_fs
requires mke2fs debugfs e2fsck sfdisk jq findmnt fusermount3

make_server_disk server.img
make_store
sync_disk server.img web01 --read-all
mkdir mnt

# The program wherryfs, for those below that put something around it.
WHERRYFS=$(command -v wherryfs)

say "in use: stays as it is"
mount_ok web01@1 mnt --via loop
start bash -c 'cd mnt && exec sleep 1000'
wait_until 5 eval "[[ \$(readlink /proc/$PID/cwd) == $WORK/mnt ]]"
expect_error "mnt: is in use: a process has its current directory or an open file there; nothing was undone" wherry umount mnt
[[ -e mnt/etc/fstab ]] || die "it is not there any more"
expect_exit 0 wherry mount
grep -q " $WORK/mnt$" stdout
stop_process "$PID"
umount_ok mnt
nothing_left
mount_ok web01@1 mnt --via files
exec 9<mnt/etc/fstab
expect_error "mnt: is in use" wherry umount mnt
expect_equal "/dev/sda2 / ext4" "$(cat <&9)"
exec 9<&-
umount_ok mnt
nothing_left

say "unmounted by hand: the rest goes by itself"
for via in loop files; do
	mount_ok web01@1 mnt --via $via
	umount mnt
	wait_until 10 eval '[[ -z $(servers) ]]'
	umount_ok mnt # of which there is just a note left
	nothing_left
	mount_ok web01@1 mnt --via $via
	umount mnt
	wait_until 10 eval '[[ -z $(servers) ]]'
	expect_exit 0 wherry mount --json
	expect_equal "" "$(json_get ".mounts[] | select(.directory == \"$WORK/mnt\")")"
	nothing_left
	expect_error "nothing is mounted there" wherry umount mnt
done
mount_ok web01@1 mnt --via loop
umount mnt
mount_ok web01@1/1 mnt # a note of one that is gone is no obstacle
umount_ok mnt
mount_ok web01@1 mnt --via loop
mount_at mnt -t tmpfs tmpfs
expect_error "mnt: tmpfs is mounted over it; 'umount $WORK/mnt' first" wherry umount mnt
unmount mnt
umount_ok mnt
nothing_left

say "unmounted by hand, and somebody else's loop device of the same number is mounted there: stays"
mount_ok web01@1 mnt --via loop
device=$(findmnt -n -o SOURCE --mountpoint "$WORK/mnt")
umount mnt
wait_until 10 eval '[[ -z $(servers) ]]'
truncate -s 16M theirs.img
mke2fs -q -F -t ext4 theirs.img
if losetup "$device" theirs.img 2>/dev/null; then # nobody was quicker
	loop_devices+=("$device")
	mount_at mnt "$device"
	expect_error "mnt: $device is mounted there already" wherry mount web01@1 mnt --via loop
	expect_error "mnt: $device is mounted there, and not by wherry" wherry umount mnt
	expect_equal "$device" "$(findmnt -n -o SOURCE --mountpoint "$WORK/mnt")"
	unmount mnt
	detach_loop "$device"
fi
nothing_left

say "the server is killed"
expect_exit 0 wherry clone web01@1 copy
mount_ok copy mnt --rw --via loop
cp root/home/files/random mnt/written
sync mnt/written
kill_servers
expect_exit 0 wherry mount
grep -qE "^copy/2 .* dead +$WORK/mnt$" stdout || die "not said: $(cat stdout)"
umount_ok mnt
nothing_left
mount_ok copy mnt --rw
check_same root/home/files/random mnt/written
umount_ok mnt
expect_exit 0 wherry export copy copy.img --progress=none
check_ext4 copy.img 2
mount_ok web01@1 mnt --via files
kill_servers
expect_exit 0 wherry umount mnt # nothing can be known of the directory any more
nothing_left
for via in loop files; do
	mount_ok web01@1 mnt --via $via
	kill_servers
	expect_exit 0 wherry mount web01@1/1 mnt
	grep -q "web01@1/2 was mounted there, and its server has died; unmounted" stderr || die "not said: $(cat stderr)"
	expect_equal menu "$(cat mnt/grub/grub.cfg)"
	umount_ok mnt
	nothing_left
done

# Programs that mount runs, with something around them. $PPID is the mount. As long as one runs there is a file of it.
mkdir around running
cat >around/wherryfs-and <<-END
	#!/usr/bin/env bash
	echo >"$WORK/running/\$\$"
	trap 'rm "$WORK/running/\$\$"' EXIT
	[[ \$* == -V ]] || [[ \$WHEN != before ]] || { kill -\$SIGNAL \$PPID && sleep 0.3; }
	"$WHERRYFS" "\$@" || exit
	[[ \$* == -V ]] || [[ \$WHEN != after ]] || { kill -\$SIGNAL \$PPID && sleep 0.3; }
END
cat >around/mount <<-END
	#!/usr/bin/env bash
	echo >"$WORK/running/\$\$"
	trap 'rm "$WORK/running/\$\$"' EXIT
	[[ \$WHEN != before-mount ]] || { kill -\$SIGNAL \$PPID && sleep 0.3; }
	"$(command -v mount)" "\$@" || exit
	[[ \$WHEN != after-mount ]] || { kill -\$SIGNAL \$PPID && sleep 0.3; }
END
chmod +x around/*

# interrupted SIGNAL WHEN VIA: a mount that gets a signal at that moment; its status in STATUS.
interrupted() {
	STATUS=0
	{
		SIGNAL=$1 WHEN=$2 WHERRY_FS=$WORK/around/wherryfs-and PATH=$WORK/around:$PATH \
			wherry mount web01@1 mnt --via "$3" >stdout 2>stderr || STATUS=$?
	} 2>/dev/null # where bash says "Killed"
}

# What a mount that was killed had started has ended its work.
nothing_runs() {
	[[ -z $(ls running) ]]
}

say "mount is stopped by a signal: nothing stays"
for when in before after before-mount after-mount; do
	for via in loop files; do
		[[ $via$when != files*-mount ]] || continue
		for signal in INT ${WHERRY_TEST_THOROUGH:+TERM HUP}; do
			interrupted $signal $when $via
			expect_equal 130 "$STATUS" "status after SIG$signal $when, via $via: $(cat stderr)"
			grep -q "web01@1: stopped by a signal; nothing is mounted" stderr || die "not said: $(cat stderr)"
			nothing_left
		done
	done
done

say "mount is killed: the next one clears up, or umount"
for when in before after before-mount after-mount; do
	for via in loop files; do
		[[ $via$when != files*-mount ]] || continue
		interrupted KILL $when $via
		expect_equal 137 "$STATUS" "status after SIGKILL $when, via $via: $(cat stderr)"
		wait_until 20 nothing_runs
		wherry umount mnt >stdout 2>stderr || grep -q "nothing is mounted there" stderr || die "killed $when, via $via: $(cat stderr)"
		nothing_left
		interrupted KILL $when $via
		wait_until 20 nothing_runs
		if ! findmnt -n mnt >/dev/null; then
			mount_ok web01@1/1 mnt
			expect_equal menu "$(cat mnt/grub/grub.cfg)"
		fi
		umount_ok mnt
		nothing_left
	done
done

say "what fails in the middle leaves nothing"
cat >around/mount <<-'END'
	#!/usr/bin/env bash
	echo "mount: $PWD: no, not today" >&2
	exit 32
END
PATH=$WORK/around:$PATH expect_error "web01@1/2: can't be mounted: loop: web01@1/2: $WORK: no, not today" wherry mount web01@1 mnt --via loop
nothing_left
PATH=$WORK/around:$PATH expect_exit 0 wherry mount web01@1 mnt
grep -q "web01@1/2: not the best way, for that did not work: .*no, not today" stderr || die "not said: $(cat stderr)"
grep -q "read through FUSE" stdout
umount_ok mnt
expect_error "wherryfs" env WHERRY_FS=/nonexistent wherry mount web01@1 mnt --via files
expect_error "wherryfs" env WHERRY_FS=/nonexistent wherry fs mnt
nothing_left

say "several at once"
mkdir -p m/{1,2,3,4}
pids=()
for n in 1 2 3 4; do
	start wherry mount web01@1 m/$n --json
	pids+=("$PID")
done >many.log 2>&1
for pid in "${pids[@]}"; do
	finish "$pid" || die "one of them could not: $(cat many.log)"
done
for n in 1 2 3 4; do
	[[ -e m/$n/etc/fstab ]] || die "m/$n is not mounted"
done
expect_exit 0 wherry mount --json
expect_equal 4 "$(json_get "[.mounts[] | select(.directory | startswith(\"$WORK/m/\"))] | length")"
pids=()
for n in 1 2 3 4; do
	start wherry umount m/$n
	pids+=("$PID")
done
for pid in "${pids[@]}"; do
	finish "$pid" || die "one of them could not be unmounted"
done
nothing_left
# two on the same directory: one of them
statuses=()
pids=()
for n in 1 2; do
	start wherry mount web01@1 mnt
	pids+=("$PID")
done >two.log 2>&1
for pid in "${pids[@]}"; do
	status=0
	finish "$pid" || status=$?
	statuses+=("$status")
done
expect_equal "0 1" "$(printf '%s\n' "${statuses[@]}" | sort | tr '\n' ' ' | sed 's/ $//')" "of two on one directory: $(cat two.log)"
umount_ok mnt
nothing_left
