#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fio writes and trims at random, many requests in flight, and verifies: a live disk, a clone and a scratch overlay at once, from one server,
# while images are made. What was synced is there when the server was killed then. 40 MiB each; 2 GiB with WHERRY_TEST_THOROUGH=1.
# timeout: 900
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo nbdcopy qemu-img qemu-io fio jq openssl
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"
grep -qw nbd <(fio --enghelp 2>&1) || skip "fio has no engine nbd"

SIZE=64M IO=40M
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || SIZE=1G IO=900M

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

# fio_job NAME EXPORT OPTION…: what it says is in fio-NAME.log. Blocks are of many sizes, so most are no whole chunks.
fio_job() {
	local name=$1 export=$2
	shift 2
	fio --name="$name" --ioengine=nbd --uri="$(uri "$export")" --iodepth=16 --size=$SIZE --io_size=$IO \
		--bssplit=512/20:4k/40:12k/15:64k/15:200k/10 --verify=crc32c --verify_fatal=1 --end_fsync=1 \
		--randseed="$((WHERRY_TEST_SEED + ${#name}))" "$@" >"fio-$name.log" 2>&1
}

# finish_jobs NAME…: they have begun, in PIDS, and must succeed.
finish_jobs() {
	local name
	for name; do
		finish "${PIDS[$name]}" || die "fio $name: $(tail -n 20 "fio-$name.log")"
	done
}

declare -A PIDS
make_store
random_file disk.img $SIZE disk
sync_disk disk.img web01
expect_exit 0 wherry create live $SIZE
expect_exit 0 wherry clone web01@1 clone
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1
start qemu-io -f raw -c 'sleep 600000' "$(uri web01@1:load)" # keeps the overlay
holders=($PID)

say "written, and verified by the one who wrote, while images are made"
for job in live:live clone:clone scratch:web01@1:load; do
	start fio_job "${job%%:*}" "${job#*:}" --rw=randwrite --fsync=500
	PIDS[${job%%:*}]=$PID
done
images=0
while _is_running_child "${PIDS[live]}" && ((images < 20)); do
	if wherry image live >image.out 2>&1; then
		images=$((images + 1))
	else
		grep -q "not open\|has just been closed\|locked" image.out || die "$(cat image.out)"
	fi
	sleep 0.5
done
finish_jobs live clone scratch
expect_number "$images > 0" "images made meanwhile"

say "and by others who come later"
for job in live:live clone:clone scratch:web01@1:load; do
	start fio_job "${job%%:*}" "${job#*:}" --rw=randwrite --verify_only
	PIDS[${job%%:*}]=$PID
done
finish_jobs live clone scratch

# (serialize_overlap: else a trim may come after the write that it was sent before)
say "each block trimmed, written, read; and others trimmed at the same time"
for job in live:live clone:clone scratch:web01@1:load; do
	start fio_job "${job%%:*}" "${job#*:}" --rw=randtrimwrite --size=$IO --serialize_overlap=1
	PIDS[${job%%:*}]=$PID
	start fio_job "trim-${job%%:*}" "${job#*:}" --rw=randtrim --verify=0 --offset=$IO --size=16M --io_size=16M
	PIDS[trim-${job%%:*}]=$PID
done
finish_jobs live clone scratch trim-live trim-clone trim-scratch
truncate -s 16M zeros.img
for job in live:live clone:clone scratch:web01@1:load; do
	! grep -q "issued rwts: total=[0-9]*,[0-9]*,0,\|issued rwts: total=0" "fio-${job%%:*}.log" || die "not all was done: $(cat "fio-${job%%:*}.log")"
	nbdcopy "$(uri "${job#*:}")" trimmed.img
	cmp -s -i "$(to_bytes $IO):0" -n 16M trimmed.img zeros.img || die "${job#*:}: what was trimmed is not zeros"
	cp trimmed.img "${job%%:*}.img"
done

say "what was synced survives a killed server"
for name in live clone; do
	start qemu-io -f raw -c 'sleep 600000' "$(uri $name)" # else all is put in its place when fio leaves
	holders+=($PID)
	start fio_job $name $name --rw=randwrite --do_verify=0
	PIDS[$name]=$PID
done
finish_jobs live clone
kill -KILL "$NBD_PID"
finish "$NBD_PID" 2>/dev/null || true
for PID in "${holders[@]}"; do
	stop_process "$PID"
done
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
for name in live clone; do
	fio_job $name $name --rw=randwrite --verify_only || die "fio $name: $(tail -n 20 fio-$name.log)"
done
nbdcopy "$(uri live)" live.img
nbdcopy "$(uri clone)" clone.img
stop_process "$NBD_PID"
check_export live live.img
check_export clone clone.img
check_export web01@1 disk.img
expect_exit 0 wherry gc
check_export live live.img
expect_exit 0 wherry check --deep --progress=none
