#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Scratch overlays: images that can be written to, each export for itself, until its last client leaves.
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo nbdcopy qemu-img qemu-io fio openssl
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

# Temporary files that the server has: they have no names.
temporary_files() {
	local link
	for link in /proc/"$NBD_PID"/fd/*; do
		[[ $(readlink "$link") == "$TMPDIR"*deleted* ]] && echo "$link"
	done
	return 0
}

has_no_temporary_files() {
	[[ -z $(temporary_files) ]]
}

make_disk_gpt disk.img 256M
make_store
sync_disk disk.img web01 --read-all
store_state >before

start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1

say "what is written is read, and what is around it stays"
cp --sparse=always disk.img wanted.img
random_file piece 300001 piece
dd if=piece of=wanted.img bs=64K seek=50000001 oflag=seek_bytes conv=notrunc status=none
zero_range wanted.img 48M 3000000
zero_range wanted.img 60000 5
start qemu-io -f raw -c 'sleep 60000' "$(uri web01@1)" # holds the overlay between the others
holder=$PID
wait_until 10 eval "wherry images --json | jq -e '.images[0].in_use'"
expect_exit 0 qemu-io -f raw -c "write -s piece 50000001 300001" -c "write -z 50331648 3000000" -c "write -P 0 60000 5" \
	-c flush "$(uri web01@1)"
expect_exit 0 qemu-img compare -f raw -F raw wanted.img "$(uri web01@1)"
nbdinfo --map --totals "$(uri web01@1)" >/dev/null

say "other exports of the same image don't see it"
for name in web01@latest web01@1:alice web01@1:bob; do
	expect_exit 0 qemu-img compare -f raw -F raw disk.img "$(uri $name)"
done

say "ten clients at once, each with a disk of its own"
for number in {1..10}; do
	random_file "client$number.img" 2M "client $number"
	start bash -c "set -e
		nbdcopy --flush client$number.img '$(uri "web01@1:client$number")' 2>copy$number.log || cat copy$number.log
		exec qemu-io -f raw -c 'sleep 30000' '$(uri "web01@1:client$number")'" 2>/dev/null
	holders[number]=$PID
done
for number in {1..10}; do
	stop_process "${holders[number]}"
done
expect_exit 0 qemu-img compare -f raw -F raw wanted.img "$(uri web01@1)"

say "a file system made on it is sound, the image's partition too"
start qemu-io -f raw -c 'sleep 60000' "$(uri web01@1/2)"
second=$PID
start qemu-io -f raw -c 'sleep 60000' "$(uri web01@1:load)"
third=$PID
partition_bytes disk.img 2 >partition.img
expect_exit 0 qemu-img compare -f raw -F raw partition.img "$(uri web01@1/2)"
mke2fs -q -F -t ext4 -d "$FILES" made.img "$(($(stat -c %s partition.img) / 1024))k"
nbdcopy --flush made.img "$(uri web01@1/2)"
nbdcopy "$(uri web01@1/2)" back.img
check_same made.img back.img
e2fsck -fn back.img >e2fsck.log 2>&1

say "random writes of many in flight, checked"
fio --name=load --ioengine=nbd --uri="$(uri web01@1:load)" --rw=randwrite --bssplit=512/10:4k/60:12k/20:100k/10 --iodepth=16 \
	--size=64M --io_size=48M --verify=crc32c --verify_fatal=1 --randseed="$((WHERRY_TEST_SEED + 1))" >fio.log 2>&1 ||
	die "fio: $(tail -n 5 fio.log)"

say "it takes temporary files without names, which go with the last client"
[[ -n $(temporary_files) ]] || die "no temporary files, and so much was written"
expect_equal "" "$(ls "$TMPDIR" | grep scratch || true)"
stop_process "$holder"
stop_process "$second"
stop_process "$third"
wait_until 10 has_no_temporary_files
expect_exit 0 qemu-img compare -f raw -F raw disk.img "$(uri web01@1)"

say "no room for it is ENOSPC, and later writes work"
if ((EUID == 0)); then
	stop_process "$NBD_PID"
	mount_at "$WORK/small" -t tmpfs -o size=4m tmpfs
	TMPDIR=$WORK/small start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1
	expect_exit 1 qemu-io -f raw -c 'write -P 3 0 3M' -c 'write -P 5 16M 8M' -c 'write -z 0 3M' "$(uri web01@1)"
	grep -q 'No space left' stderr stdout
	wait_until 10 eval '! ls -l /proc/$NBD_PID/fd | grep -q deleted'
	start qemu-io -f raw -c 'sleep 60000' "$(uri web01@1)"
	holder=$PID
	wait_until 10 eval "wherry images --json | jq -e '.images[0].in_use'"
	qemu-io -f raw -c 'write -P 5 16M 8M' "$(uri web01@1)" >full.log 2>&1 || true
	grep -q 'No space left' full.log
	qemu-io -f raw -c 'write -z 16M 8M' -c 'write -P 7 100M 64k' -c 'read -P 7 100M 64k' "$(uri web01@1)" >after.log 2>&1 ||
		die "after room was made: $(cat after.log)"
	stop_process "$holder"
	stop_process "$NBD_PID"
	unmount "$WORK/small"
fi

say "a killed server leaves nothing, and the image is not changed by a bit"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1
expect_exit 0 qemu-io -f raw -c 'write -P 9 0 1M' "$(uri web01@1)"
kill -KILL "$NBD_PID"
finish "$NBD_PID" || true
store_state >after
check_same before after

say "names as long as names may be"
long=$(printf 'a%.0s' {1..63})
expect_exit 0 wherry clone web01@1 "$long"
expect_exit 0 wherry image "$long"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" scratch=1
expect_equal "$(size_of disk.img)" "$(nbdinfo --size "$(uri "$long@latest:$long")")"
expect_equal "$(partition_size disk.img 1)" "$(nbdinfo --size "$(uri "$long@1/1:$long")")"
stop_process "$NBD_PID"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
expect_exit 0 qemu-img compare -f raw -F raw disk.img "$(uri web01@1)"
