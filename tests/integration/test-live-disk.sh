#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A live disk over NBD: what a kill of the server leaves (R1), what real file systems and tools make of it, and a full store. 8 kills, 200
# with WHERRY_TEST_THOROUGH=1.
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdcopy nbdinfo qemu-img qemu-io jq cmp strace
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"
MIB=$((1024 * 1024))

KILLS=8
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || KILLS=200
server=(nbdkit --foreground --exit-with-parent -U socket "$PLUGIN" store="$WHERRY_STORE" disk=live)

say "the server is killed $KILLS times while four clients write"
make_store
expect_exit 0 wherry create live $((24 * MIB))
expect_exit 0 "$WHERRY_TEST_TOOLS/nbd_crash" $KILLS "$WHERRY_TEST_SEED" $((24 * MIB)) live "${server[@]}"
say "  $(cat "$WORK/stdout")"
expect_exit 0 wherry check --deep
expect_exit 0 wherry gc

say "control: who takes a write for durable before it was flushed finds some lost"
make_store
expect_exit 0 wherry create live $((24 * MIB))
status=0
CRASH_BELIEVES_WRITES=1 "$WHERRY_TEST_TOOLS/nbd_crash" 10 "$WHERRY_TEST_SEED" $((24 * MIB)) live "${server[@]}" >control 2>&1 || status=$?
expect_equal 1 $status "status of the control: $(cat control)"
grep -q "after a kill, sector" control

say "copied there and back, compared, discarded"
make_store
expect_exit 0 wherry create live 64M
make_disk_mbr disk.img 64M
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
nbdcopy disk.img "$NBD_URI"
nbdcopy "$NBD_URI" back.img
check_same disk.img back.img
expect_exit 0 qemu-img compare -f raw -F raw disk.img "$NBD_URI"
expect_exit 0 wherry image live --label "between clients" --json
expect_equal clean "$(json_get .consistency)" "no client is connected just now"
qemu-io -f raw -c "write -P 0xab 1000000 12345" -c "write -z 2M 3M" -c "discard 10M 20M" -c flush "$NBD_URI" >/dev/null
cp disk.img changed.img
head -c 12345 /dev/zero | tr '\0' '\253' | dd of=changed.img bs=1M oflag=seek_bytes seek=1000000 conv=notrunc status=none
zero_range changed.img 2M 3M
zero_range changed.img 10M 20M
expect_exit 0 qemu-img compare -f raw -F raw changed.img "$NBD_URI"
start qemu-io -f raw -c "sleep 60000" "$NBD_URI" >/dev/null
client=$PID
is_open() {
	[[ $(wherry disks --json | jq -r '.disks[] | select(.name == "live") | .open_by') == *nbdkit* ]]
}
wait_until 30 is_open
expect_error "live: locked by .*nbdkit" wherry export live -
expect_exit 0 wherry image live --json
expect_equal frozen "$(json_get .consistency)" "a client has it open"
stop_process "$client"
stop_process "$NBD_PID"

say "a disk whose content is fuzzy has fuzzy images, who has it open or not"
random_file fuzzy.img 1M fuzzy
start_nbdkit file fuzzy.img # anybody might write to it
expect_exit 0 wherry sync "$NBD_URI" mirror --no-image --progress=none
stop_process "$NBD_PID"
expect_exit 0 wherry image mirror
expect_exit 0 wherry clone mirror@1 copy
for name in mirror copy; do
	expect_exit 0 wherry image $name --json
	expect_equal fuzzy "$(json_get .consistency)" "$name, nobody has it open"
	because=$(json_get .fuzzy_because)
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=$name rw=mirror
	start qemu-io -f raw -c "sleep 60000" "$NBD_URI" >/dev/null
	client=$PID
	wait_until 30 eval "wherry disks --json | jq -e '.disks[] | select(.name == \"$name\" and .open_by)'"
	expect_exit 0 wherry image $name --json
	expect_equal "fuzzy $because" "$(json_get '"\(.consistency) \(.fuzzy_because)"')" "$name is served"
	expect_equal fuzzy "$(wherry images $name --json | jq -r '.images[-1].consistency')"
	stop_process "$client"
	stop_process "$NBD_PID"
done
check_export live changed.img
check_export live@1 disk.img
expect_exit 0 wherry check --deep

say "a server that is told to end while a client writes puts everything in its place"
writes=()
for ((i = 0; i < 3000; i++)); do
	writes+=(-c "write -P $((i % 255 + 1)) $(((i * 7919) % 60000 * 1024)) 1500")
done
for delay in 0.05 0.1 0.2 0.4; do
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
	start qemu-io -f raw "${writes[@]}" -c "sleep 60000" "$NBD_URI" >/dev/null 2>&1
	client=$PID
	sleep "$delay"
	kill "$NBD_PID"
	status=0
	finish "$NBD_PID" || status=$?
	expect_equal 0 $status "status of nbdkit: $(cat "$NBD_LOG")"
	expect_equal "" "$(find "$WHERRY_STORE/journal" -name '*.wj')" "what is left of the journal"
	stop_process "$client"
done
expect_exit 0 wherry check --deep

say "a store that is full: ENOSPC for the client, nothing lost that was flushed, and on it goes when there is room"
if ((EUID == 0)) && [[ -e /dev/loop-control ]]; then
	truncate -s 128M small.fs
	mke2fs -q -t ext4 small.fs
	attach_loop small.fs
	mount_at small "$LOOP"
	WHERRY_STORE=$WORK/small/store
	expect_exit 0 wherry init
	expect_exit 0 wherry create live 256M
	random_file small/others 32M others
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
	qemu-io -f raw -c "write -P 0x11 220M 4096" -c "write -P 0x22 230M 300k" -c flush "$NBD_URI" >/dev/null
	random_file noise 120M noise
	status=0
	nbdcopy noise "$NBD_URI" >copy.out 2>&1 || status=$?
	expect_number "$status != 0" "the copy fails"
	grep -q "No space left on device" copy.out
	# what the copy wrote and nobody flushed is put yet, when its last client leaves: it needs room as well
	rm small/others
	qemu-io -f raw -c "write -P 0x33 200M 4096" -c "write -P 0x44 201M 300k" -c flush "$NBD_URI" >/dev/null
	qemu-io -f raw -r -c "read -P 0x33 200M 4096" -c "read -P 0x44 201M 300k" -c "read -P 0x11 220M 4096" -c "read -P 0x22 230M 300k" \
		"$NBD_URI" >read.out
	! grep -q "Pattern verification failed" read.out
	journal_is_folded() {
		[[ -z $(find small/store/journal -name '*.wj') ]]
	}
	wait_until 30 journal_is_folded
	stop_process "$NBD_PID"
	expect_exit 0 wherry check --deep
	unmount small
fi

say "no room in just the journal, the segments, or the catalog: the same"
is_traced() {
	[[ $(sed -n 's/^TracerPid:\s*//p' /proc/"$NBD_PID"/status) != 0 ]]
}
# small FROM [COUNT]: writes of 60 KiB, each to a part of a chunk of its own; seventy are more than the journal has room for ahead.
small() {
	local i
	for ((i = 0; i < ${2:-70}; i++)); do
		printf 'write -P %s %sk 60k\n' "$((1 + i))" $((($1 + i) * 64))
	done
}
large() {
	printf 'write -P 0x77 %sk 640k\n' $(($1 * 64))
}
for full in journal segments catalog; do
	WHERRY_STORE=$WORK/full-$full
	make_store
	expect_exit 0 wherry create live 64M
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
	start qemu-io -f raw -c "sleep 90000" "$NBD_URI" >/dev/null # the disk stays open
	client=$PID
	{ large 0 && small 16 3 && echo flush; } | qemu-io -f raw "$NBD_URI" >written.out
	! grep -q "failed\|error" written.out || die "$(cat written.out)"
	case $full in
	# those to come, too: when nobody has written for a while the journal is folded, and another file is begun
	journal) files=("$(echo "$WHERRY_STORE"/journal/*)"/000000000000000{1..9}.wj) ;;
	segments) files=("$(dirname "$WHERRY_STORE"/segments/*/00000001.seg)"/0000000{1..9}.seg) ;;
	catalog) files=("$WHERRY_STORE/catalog.db-wal") ;;
	esac
	start strace -f -qq -o /dev/null -p "$NBD_PID" "${files[@]/#/--trace-path=}" -e trace=pwrite64,fallocate \
		-e inject=pwrite64,fallocate:error=ENOSPC:when=1+
	tracer=$PID
	wait_until 20 is_traced
	{ large 300 && small 400 && echo flush; } | qemu-io -f raw "$NBD_URI" >full.out 2>&1 || true
	grep -q "No space left on device" full.out || die "the $full is full, and nobody is told: $(tail -n 3 full.out)"
	! grep -q "Input/output error" full.out
	stop_process "$tracer"
	{ large 600 && small 700 && echo flush; } | qemu-io -f raw "$NBD_URI" >after.out 2>&1
	! grep -q "failed\|rror" after.out || die "there is room in the $full, and: $(grep "failed\|rror" after.out)"
	{ large 0 && small 16 3 && large 600 && small 700; } | sed 's/^write/read/' |
		qemu-io -f raw -r "$NBD_URI" >read.out 2>&1
	! grep -q "failed\|rror" read.out || die "lost when there was no room in the $full: $(grep "failed\|rror" read.out)"
	stop_process "$client"
	stop_process "$NBD_PID"
	expect_exit 0 wherry check --deep
	rm -rf "$WHERRY_STORE"
done

say "damage is an error for what is damaged, and for nothing else"
WHERRY_STORE=$WORK/store
make_store
expect_exit 0 wherry create live 8M
random_file noise 8M noise2
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
nbdcopy noise "$NBD_URI"
stop_process "$NBD_PID"
segment=$(find "$WHERRY_STORE/segments" -name '*.seg' | head -n 1)
byte_flip "$segment" 3000000
start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
failed=0
for ((i = 0; i < 128; i++)); do
	qemu-io -f raw -r -c "read $((i * 64))k 64k" "$NBD_URI" >read.out 2>&1 || true
	! grep -q "Input/output error" read.out || failed=$((failed + 1))
done
expect_equal 1 "$failed" "ranges of 64 KiB that can't be read"
stop_process "$NBD_PID"

say "what a killed server had flushed is there for who only reads, and the catalog can be rebuilt meanwhile"
make_store
expect_exit 0 wherry create live 1M
truncate -s 1M expected.img
printf '\x55%.0s' {1..512} | dd of=expected.img bs=512 seek=3 conv=notrunc status=none
for command in "wherry export live live.img" "wherry verify live --source expected.img"; do
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk=live
	start qemu-io -f raw -c 'sleep 60000' "$NBD_URI" # the last one to leave would have the journal folded
	client=$PID
	wait_until 20 eval "wherry disks --json | jq -e '.disks[0].open_by != null'"
	expect_exit 0 qemu-io -f raw -c "write -P 0x55 1536 512" -c flush "$NBD_URI"
	kill -KILL "$NBD_PID"
	finish "$NBD_PID" || true
	stop_process "$client"
	expect_exit 0 wherry rebuild --progress=none
	expect_exit 0 $command --progress=none
done
check_same expected.img live.img
