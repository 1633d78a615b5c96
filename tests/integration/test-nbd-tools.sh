#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What people have for NBD, both ways: qemu-img (convert, compare, commit, map, bench), nbdcopy from disk to disk and between servers, and
# libnbd by hand (nbdsh) for what the tools don't send: FUA, fast zeros, caching, and a flush on another connection than the write's.
# timeout: 300
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo nbdcopy qemu-img qemu-io nbdsh jq openssl cmp
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"
# libnbd is a module of the system's python3, whatever other comes first on the PATH
system_nbdsh() {
	PATH=/usr/bin:$PATH nbdsh "$@"
}
system_nbdsh -c 'h.get_version()' >/dev/null 2>&1 || skip "nbdsh finds no libnbd (python3-libnbd)"

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

# compare EXPECTED EXPORT: by qemu-img, and by nbdcopy and cmp.
compare() {
	expect_exit 0 qemu-img compare -q -f raw -F raw "$1" "$(uri "$2")"
	rm -f copied.img
	nbdcopy "$(uri "$2")" copied.img
	check_same "$1" copied.img
}

# sh_nbd TEXT: by nbdsh; `h` is connected to the export live, URI is its address. Requests that aren't multiples of the 512 bytes that
# clients are told are sent all the same: the server takes them.
sh_nbd() {
	system_nbdsh -c 'h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_ALIGN)' --base-allocation -u "$(uri live)" -c "URI = '$(uri live)'" -c "$1" >nbdsh.out 2>&1 || die "nbdsh: $(cat nbdsh.out)"
}

make_store
make_disk_mbr disk.img 64M
qemu-img convert -q -f raw -O qcow2 -c disk.img disk.qcow2
sync_disk disk.img web01 --read-all
for name in live second third; do
	expect_exit 0 wherry create $name 64M
done
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"

say "qemu-img convert: a compressed qcow2 onto a disk, and a disk and an image into a qcow2"
expect_exit 0 qemu-img convert -n -W -m 16 -f qcow2 -O raw disk.qcow2 "$(uri live)"
compare disk.img live
expect_exit 0 qemu-img convert -f raw -O qcow2 "$(uri live)" back.qcow2
expect_exit 0 qemu-img compare -q -f qcow2 -F raw back.qcow2 disk.img
expect_exit 0 qemu-img convert -f raw -O vpc -o subformat=dynamic,force_size=on "$(uri web01@1)" back.vpc
expect_exit 0 qemu-img compare -q -f vpc -F raw back.vpc disk.img
expect_exit 0 qemu-img convert -n --target-is-zero -f raw -O raw "$(uri web01@1)" "$(uri second)"
compare disk.img second

say "holes stay holes on the way, and room is given back"
nbdinfo --map --totals --json "$(uri second)" >totals
nbdinfo --map --totals --json "$(uri web01@1)" >totals.image
check_same totals.image totals
expect_exit 0 qemu-img convert -n -f raw -O raw "$(uri web01@1)" "$(uri second)"
compare disk.img second

say "a qcow2 on top of an image, committed to a clone of it"
expect_exit 0 wherry clone web01@1 clone
qemu-img create -q -f qcow2 -F raw -b "$(uri clone)" top.qcow2
qemu-io -f qcow2 -c "write -P 0x21 1000000 300000" -c "write -z 30M 5M" -c "write -P 0x22 $(($(to_bytes 64M) - 512)) 512" top.qcow2 >/dev/null
cp disk.img expected.img
head -c 300000 /dev/zero | tr '\0' '\041' | dd of=expected.img bs=1M oflag=seek_bytes seek=1000000 conv=notrunc status=none
zero_range expected.img 30M 5M
head -c 512 /dev/zero | tr '\0' '\042' | dd of=expected.img bs=512 oflag=seek_bytes seek=$(($(to_bytes 64M) - 512)) conv=notrunc status=none
expect_exit 0 qemu-img compare -q -f qcow2 -F raw top.qcow2 expected.img
expect_exit 0 qemu-img commit -q -d top.qcow2
compare expected.img clone
compare disk.img web01@1

say "nbdcopy from disk to disk, over several connections, from another server, and by a pipe"
nbdcopy --flush --connections=4 --threads=4 --requests=64 --request-size=1048576 "$(uri clone)" "$(uri third)"
compare expected.img third
nbdcopy --flush --allocated "$(uri web01@1)" "$(uri third)" # --allocated: zeros are written as data that takes room
compare disk.img third
first=$NBD_SOCKET first_pid=$NBD_PID
expect_exit 0 wherry -s "$WORK/store2" init
expect_exit 0 wherry -s "$WORK/store2" create elsewhere 64M
start_nbdkit "$PLUGIN" store="$WORK/store2"
nbdcopy --flush --destination-is-zero "nbd+unix:///clone?socket=$first" "$(uri elsewhere)"
compare expected.img elsewhere
nbdcopy "$(uri elsewhere)" - | nbdcopy --flush - "nbd+unix:///live?socket=$first"
stop_process "$NBD_PID"
NBD_SOCKET=$first NBD_PID=$first_pid
compare expected.img live

say "libnbd by hand: what it is told, and flags"
# shellcheck disable=SC2016
sh_nbd '
assert h.get_size() == 64 << 20 and not h.is_read_only()
for can in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_fast_zero, h.can_cache, h.can_multi_conn, h.can_df):
    assert can(), can
h.pwrite(b"\x51" * 4096, 512, nbd.CMD_FLAG_FUA)
h.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.zero(4096, 5000192, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 8 << 20, nbd.CMD_FLAG_FUA)
h.cache(16 << 20, 0)
assert h.pread(4096, 512) == b"\x51" * 4096
assert h.pread(1 << 20, 2 << 20) == bytes(1 << 20) == h.pread(1 << 20, 8 << 20)
extents = []
h.block_status(1 << 20, 8 << 20, lambda context, offset, entries, error: extents.extend(entries))
assert extents == [1 << 20, 3], extents
extents = []
h.block_status(64 << 20, 0, lambda context, offset, entries, error: extents.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(extents) == 2, extents
h.pwrite(b"\x52", 77777)
assert h.pread(3, 77776)[1:2] == b"\x52"
for call in (lambda: h.pread(512, 64 << 20), lambda: h.pwrite(bytes(1024), (64 << 20) - 512), lambda: h.zero(1, 1 << 63)):
    h.set_strict_mode(0) # the server has to say it, not the library
    try:
        call()
    except nbd.Error as error:
        assert error.errnum in (22, 28), error
    else:
        raise AssertionError("beyond the end")
'

say "many requests at once on many connections, and a flush on one for all"
random_file noise.img 8M noise
sh_nbd '
data = open("noise.img", "rb").read()
connections = []
for i in range(8):
    c = nbd.NBD()
    c.connect_uri(URI)
    connections.append(c)
cookies = []
for at in range(0, len(data), 65536 + 512): # chunks, and parts of chunks
    c = connections[at // 512 % 8]
    buffer = nbd.Buffer.from_bytearray(bytearray(data[at:at + 65536 + 512]))
    cookies.append((c, c.aio_pwrite(buffer, 16 << 20 | at)))
for c, cookie in cookies:
    while not c.aio_command_completed(cookie):
        c.poll(-1)
h.flush()
for c in connections[::3]:
    assert c.pread(len(data), 16 << 20) == data
import os, signal
os.kill('"$NBD_PID"', signal.SIGKILL)
'
finish "$NBD_PID" 2>/dev/null || true
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
# shellcheck disable=SC2016
sh_nbd '
assert h.pread(8 << 20, 16 << 20) == open("noise.img", "rb").read()
assert h.pread(4096, 512) == b"\x51" * 4096 and h.pread(1, 77777) == b"\x52"
'
expect_exit 0 qemu-img bench -q -f raw -w -d 32 -c 2000 -s 4096 -S 12288 --flush-interval=100 --pattern=65 "$(uri second)"
expect_exit 0 qemu-io -f raw -c "read -P 65 0 4k" -c "read -P 65 12k 4k" -c "read -P 65 23988k 4k" "$(uri second)"
! grep -q "failed" stdout || die "$(grep failed stdout)"
stop_process "$NBD_PID"
check_export web01@1 disk.img
expect_exit 0 wherry check --deep --progress=none
