#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A mirror, a disk that rounds write to, is written to over NBD: only with rw=mirror. Whatever was written then, the next round finds it and
# makes the mirror its source again: when the server was killed, when a round was under way before, and when the source says itself what
# has changed. Images are what they were.
# timeout: 300
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo qemu-img qemu-io qemu-nbd mke2fs jq openssl cmp
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

# scribble: what is written to the mirror: some sectors, whole chunks, zeros and holes, at random places and at both ends.
scribble() {
	local commands=() i at
	for ((i = 0; i < 30; i++)); do
		random_number $(($(size_of source) / 512 - 600))
		at=$((NUMBER * 512))
		case $((i % 4)) in
		0) commands+=(-c "write -P $((i + 1)) $at 512") ;;
		1) commands+=(-c "write -P $((i + 1)) $at 300k") ;;
		2) commands+=(-c "write -z $at 70k") ;;
		3) commands+=(-c "discard $at 200k") ;;
		esac
	done
	commands+=(-c "write -P 0xee 0 512" -c "write -P 0xee $(($(size_of source) - 512)) 512")
	expect_exit 0 qemu-io -f raw "${commands[@]}" -c flush "$NBD_URI"
	! grep -q "failed" stdout || die "$(grep failed stdout)"
}

# written_to: by a server that stops as it should, or "killed" right after the flush, with a client there: nothing is in its place yet.
written_to() {
	local client
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=web01 rw=mirror
	start qemu-io -r -f raw -c 'sleep 60000' "$NBD_URI"
	client=$PID
	wait_until 20 eval "wherry disks --json | jq -e '.disks[0].open_by != null'"
	scribble
	if [[ ${1:-} == killed ]]; then
		kill -KILL "$NBD_PID"
		finish "$NBD_PID" 2>/dev/null || true
		stop_process "$client"
		[[ -n $(find "$WHERRY_STORE/journal" -name '*.wj') ]] || die "nothing is left in the journal"
	else
		expect_error "web01: .*open.*nbdkit wherry web01 \(pid $NBD_PID|nbdkit wherry web01 \(pid $NBD_PID" wherry sync source web01
		stop_process "$client"
		stop_process "$NBD_PID"
	fi
	expect_exit 3 wherry verify web01 --source source --progress=none
}

# brought_back: the next round does it; its report is in the file "report".
brought_back() {
	sync_disk source web01
	cp stdout report
	check_export web01 source
	check_export web01@latest source
	expect_exit 0 wherry verify web01 --source source --progress=none
}

say "without rw=mirror it is for reading, and the log says what to do"
random_file source 16M source
cp source first.img
make_store
sync_disk source web01
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=web01
expect_equal true "$(nbdinfo --json "$NBD_URI" | jq '.exports[0].is_read_only')"
expect_exit 1 qemu-io -f raw -c "write 0 512" "$NBD_URI"
expect_exit 0 qemu-img compare -f raw -F raw source "$NBD_URI"
stop_process "$NBD_PID"
grep -q "read-only: disk web01: it mirrors .*; what is written to it, the next round overwrites: say rw=mirror (--rw mirror) if that is meant, or clone an image of it" \
	"$NBD_LOG" || die "the log: $(cat "$NBD_LOG")"
check_export web01 source

say "written to, and brought back by the next round, which stores no more than what was overwritten"
written_to
brought_back
expect_number "$(json_get .stored_bytes report) < 8000000" "bytes stored"
written_to killed
brought_back
check_export web01@1 first.img

say "and when the source has changed as well, whatever happens in between"
random_range source 3M 5M changed
written_to killed
written_to
written_to killed
expect_exit 0 wherry gc
brought_back
check_export web01@1 first.img

say "an image of it in between is fuzzy, and says why"
written_to
expect_exit 0 wherry export web01 written.img --progress=none
expect_exit 0 wherry image web01 --json
expect_equal fuzzy "$(json_get .consistency)"
[[ $(json_get .fuzzy_because) == "the disk has been changed since round 4, the last one" ]] || die "$(cat stdout)"
brought_back
check_export web01@5 written.img

say "written to before the cursor of a round that is not finished"
for how in "" killed; do
	random_file source 16M "unfinished $how"
	start wherry sync source web01 --limit 8M --progress=json 2>sync.out
	wait_until 30 jq -se 'any(.done_bytes > 4000000)' sync.out
	kill -INT "$PID"
	expect_exit 130 finish "$PID"
	expect_exit 0 wherry rounds web01 --json
	expect_equal stopped "$(json_get '.rounds[-1].state')"
	expect_number "$(json_get '.rounds[-1].done_bytes') > 1000000" "bytes at the round's cursor"
	written_to $how
	brought_back
done

say "what is left out of a round is zeros again"
make_store
rm source
truncate -s 64M source
mke2fs -q -t ext4 -d "$WHERRY_SOURCE/store" source
random_range source 50M 3M leftover # of a file that was deleted
sync_disk source web01
expect_number "$(json_get .left_out_bytes) > 30000000" "bytes that are left out"
expect_exit 0 wherry export web01@1 expected.img --progress=none
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=web01 rw=mirror
expect_exit 0 qemu-io -f raw -c "write -P 1 1M 2M" -c "write -P 2 20M 9M" -c "write -P 3 51000000 1000448" -c "write -P 4 60M 512" "$NBD_URI"
expect_exit 1 qemu-img compare -f raw -F raw expected.img "$NBD_URI"
stop_process "$NBD_PID"
sync_disk source web01
check_export web01 expected.img
check_export web01@2 expected.img

say "a source that says itself what has changed is not believed to know what others wrote"
make_store
random_file source 24M bitmap
qemu-img convert -q -f raw -O qcow2 source disk.qcow2
qemu-img bitmap --add -g 64k disk.qcow2 changes
# by_bitmap: a round with the bitmap; its report is in the file "report".
by_bitmap() {
	SOCKET=disk start_qemu_nbd -f qcow2 --read-only -B changes disk.qcow2
	sync_disk "$NBD_URI" web01 --dirty-bitmap changes
	cp stdout report
	stop_process "$NBD_PID"
	check_export web01 source
	check_export web01@latest source
}
by_bitmap
by_bitmap
expect_number "$(json_get .read_bytes report) < 20000000" "bytes read when the bitmap is believed"
for how in "" killed; do
	written_to $how
	by_bitmap
	expect_equal "$(size_of source)" "$(json_get .read_bytes report)" "bytes read when others have written"
	by_bitmap
	expect_number "$(json_get .read_bytes report) < 20000000" "bytes read when the bitmap is believed again"
done
expect_exit 0 wherry check --deep --progress=none
