#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real kernel attaches our disks: Debian's cloud kernel in a virtual machine, emulated, with an initramfs made here. With nbd-client
# over TCP it takes an export of this host, partitions it, makes a file system, writes files; this host checks what came of it. And
# inside of it attach and detach do what they say: the module, devices, partitions, what is refused, a server that dies.
# thorough: yes
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdcopy jq file qemu-io qemu-system-x86_64 busybox nbd-client sfdisk mke2fs cpio depmod modprobe dpkg-deb apt-get
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"
[[ $(uname -m) == x86_64 ]] || skip "the virtual machine is an x86-64"
file -L "$(command -v busybox)" | grep -q 'statically linked' || skip "busybox is not static (busybox-static)"

# The kernel's package, kept in the build tree: it is not installed, only unpacked.
fetch_kernel() {
	local folder=$WHERRY_BUILD/kernel package name
	KERNEL=$folder/tree
	[[ ! -e $folder/done ]] || return 0
	rm -rf "$folder"
	mkdir -p "$folder/tree"
	name=$(apt-cache depends --important linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
	[[ -n $name ]] || skip "apt knows no linux-image-cloud-amd64"
	(cd "$folder" && apt-get -q download "$name") >"$WORK/apt.log" 2>&1 || skip "$name can't be had: $(tail -n 1 "$WORK/apt.log")"
	package=$(ls "$folder"/linux-image-*.deb)
	dpkg-deb -x "$package" "$folder/tree"
	rm "$package"
	depmod -b "$folder/tree" "$(ls "$folder/tree/lib/modules")" # which installing it would have done
	touch "$folder/done"
}

# add_file PATH [TARGET]: a file of this host, with the libraries that it needs, to the machine's root.
add_file() {
	local library target=${2:-$1}
	mkdir -p "root/$(dirname "$target")"
	cp -L "$1" "root/$target"
	ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
		[[ -e root/$library ]] || { mkdir -p "root/$(dirname "$library")" && cp -L "$library" "root/$library"; }
	done
}

make_root() {
	local version module path
	version=$(ls "$KERNEL/lib/modules")
	mkdir -p root/{bin,proc,sys,dev,run,tmp,mnt,var/tmp,etc,root}
	cp "$(command -v busybox)" root/bin/busybox
	for module in virtio_pci virtio_net nbd; do
		modprobe -d "$KERNEL" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | sort -u | while read -r path; do
		mkdir -p "root/$(dirname "${path#"$KERNEL"}")"
		cp "$path" "root/${path#"$KERNEL"}"
	done
	cp "$KERNEL/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "root/lib/modules/$version/"
	depmod -b "$PWD/root" "$version"
	add_file "$WHERRY" /wherry/bin/wherry
	add_file "$PLUGIN" /wherry/nbdplugin/nbdkit-wherry-plugin.so
	add_file "$(command -v nbdkit)" /usr/bin/nbdkit
	add_file "$(command -v nbd-client)" /usr/sbin/nbd-client
	add_file "$(command -v sfdisk)" /usr/sbin/sfdisk
	add_file "$(command -v mke2fs)" /usr/sbin/mke2fs
	cp small.img root/root/small.img
	cp /etc/mke2fs.conf root/etc/
}

# The machine's first program. Each step that went well is a line on the console.
make_init() {
	cat >root/init <<-END
		#!/bin/busybox sh
		/bin/busybox --install -s /bin
		export PATH=/wherry/bin:/usr/sbin:/usr/bin:/bin HOST=10.0.2.2 PORT=$1 NAME=$2
	END
	cat >>root/init <<-'END'
		ok() { echo "STEP $*"; }
		end() { echo "END $*"; cat /run/wherry/*.log /tmp/error 2>/dev/null || true; poweroff -f; }
		set -e
		trap 'end failed' EXIT
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t devtmpfs devtmpfs /dev
		mount -t tmpfs tmpfs /tmp
		export WHERRY_STORE=/tmp/store TMPDIR=/tmp
		modprobe virtio_pci
		modprobe virtio_net
		ip link set lo up
		ip address add 10.0.2.15/24 dev eth0
		ip link set eth0 up
		ok network

		# attach loads the module nbd itself
		wherry init >/dev/null
		wherry sync /root/small.img small --progress=none >/dev/null
		test ! -e /sys/block/nbd0
		device=$(wherry attach small@1)
		test "$device" = /dev/nbd0
		test -b /dev/nbd0p1
		cmp /dev/nbd0 /root/small.img
		test "$(cat /sys/block/nbd0/ro)" = 1
		ok attached
		mount -o ro /dev/nbd0p1 /mnt
		wherry detach /dev/nbd0 2>/tmp/error && end "detached what is mounted"
		grep -q 'mounted or in use' /tmp/error
		umount /mnt
		wherry attach small@1 /dev/nbd0 2>/tmp/error && end "attached twice to one device"
		grep -q 'is in use' /tmp/error
		ok refused

		test "$(wherry attach small@1 --scratch)" = /dev/nbd1
		mount /dev/nbd1p1 /mnt
		echo hello >/mnt/scratch
		umount /mnt
		cmp /dev/nbd1 /root/small.img >/dev/null && end "nothing was written"
		cmp /dev/nbd0 /root/small.img
		wherry detach small@1 2>/tmp/error && end "detached one of two"
		grep -q 'attached more than once' /tmp/error
		wherry detach /dev/nbd1
		test "$(cat /sys/block/nbd1/size)" = 0
		ok scratch

		# the server dies: what is left blocks nobody
		test "$(wherry attach small@1/1)" = /dev/nbd1
		kill -9 "$(sed -n 3p /run/wherry/nbd1)"
		wherry detach small@1/1
		test "$(wherry attach small@1)" = /dev/nbd1
		cmp /dev/nbd1 /root/small.img
		wherry detach /dev/nbd1
		wherry detach small@1
		ok detached

		# two at once take a device each, and both are known by name
		wherry attach small@1 >/tmp/first 2>/tmp/error &
		wherry attach small@1/1 >/tmp/second
		wait $!
		test "$(sort /tmp/first /tmp/second | tr '\n' ' ')" = "/dev/nbd0 /dev/nbd1 "
		wherry detach small@1
		wherry detach small@1/1
		ok both

		# what is behind the last sector is not left out silently
		head -c 1000 /root/small.img >/root/odd.img
		wherry sync /root/odd.img odd --progress=none >/dev/null
		test "$(wherry attach odd@1 2>/tmp/error)" = /dev/nbd0
		grep -q 'its last 488 bytes are not in the device' /tmp/error
		wherry detach odd@1
		ok odd

		# a live disk: what was written is there the next time
		wherry create new 16M >/dev/null
		test "$(wherry attach new)" = /dev/nbd0
		dd if=/root/small.img of=/dev/nbd0 bs=64k conv=fsync 2>/dev/null
		wherry attach new 2>/tmp/error && end "attached a live disk twice"
		wherry detach new
		test "$(wherry attach new --read-only)" = /dev/nbd0
		test -b /dev/nbd0p1
		head -c 8388608 /dev/nbd0 | cmp - /root/small.img
		wherry detach new
		ok live

		# a mirror is read-only, which is said, but for who says --rw mirror
		test "$(wherry attach small 2>/tmp/error)" = /dev/nbd0
		grep -q 'small: read-only, for it mirrors /root/small.img' /tmp/error
		test "$(cat /sys/block/nbd0/ro)" = 1
		wherry detach small
		test "$(wherry attach small --rw mirror 2>/tmp/error)" = /dev/nbd0
		test ! -s /tmp/error
		test "$(cat /sys/block/nbd0/ro)" = 0
		dd if=/dev/zero of=/dev/nbd0 bs=64k count=16 conv=fsync 2>/dev/null
		wherry detach small
		wherry sync /root/small.img small --progress=none >/dev/null
		test "$(wherry attach small --read-only 2>/tmp/error)" = /dev/nbd0
		test ! -s /tmp/error
		cmp /dev/nbd0 /root/small.img
		wherry detach small
		ok mirror

		# mount takes this way by itself, and undoes all of it
		wherry mount small@1 /mnt >/tmp/out
		grep -q "small@1/1 (ext4) is mounted on /mnt, read-only, by the kernel's NBD client (/dev/nbd0)" /tmp/out
		test -d /mnt/lost+found
		touch /mnt/new 2>/dev/null && end "wrote to what is mounted read-only"
		wherry detach /dev/nbd0 2>/tmp/error && end "detached what mount has mounted"
		wherry umount /mnt
		test "$(cat /sys/block/nbd0/size)" = 0
		wherry mount small@1 /mnt --scratch >/tmp/out
		echo hello >/mnt/new
		wherry umount /mnt
		wherry clone small@1 copy >/dev/null
		wherry mount copy /mnt --rw >/tmp/out
		test ! -e /mnt/new
		echo hello >/mnt/new
		wherry umount /mnt
		wherry mount copy /mnt >/tmp/out
		test "$(cat /mnt/new)" = hello
		kill -9 "$(sed -n 3p /run/wherry/nbd0)"
		wherry umount /mnt
		test "$(cat /sys/block/nbd0/size)" = 0
		wherry mount small@1 /mnt >/tmp/out
		umount /mnt
		test "$(wherry mount | wc -l)" = 1
		test "$(cat /sys/block/nbd0/size)" = 0
		ok mounted

		wherry attach small@7 2>/tmp/error && end "attached what is not there"
		grep -q 'small@7: there is none' /tmp/error
		ok unknown
		test -z "$(ls /run/wherry)"
		pidof nbdkit && end "a server is left"
		ok tidy

		/usr/sbin/nbd-client -nonetlink "$HOST" "$PORT" /dev/nbd0 -N "$NAME" >/dev/null
		printf 'label: gpt\nsize=24MiB, type=L\nsize=+, type=S\n' | /usr/sbin/sfdisk -q /dev/nbd0
		/usr/sbin/mke2fs -q -t ext4 /dev/nbd0p1
		mount /dev/nbd0p1 /mnt
		cp -r /wherry /mnt/files
		rm /mnt/files/nbdplugin/*
		dd if=/root/small.img of=/mnt/synced bs=64k conv=fsync 2>/dev/null
		umount /mnt
		mkswap /dev/nbd0p2 >/dev/null
		/usr/sbin/nbd-client -d /dev/nbd0 >/dev/null
		ok written
		trap - EXIT
		end well
	END
	chmod +x root/init
}

fetch_kernel
truncate -s 8M small.img
sfdisk -q small.img <<<'label: gpt
size=4MiB, type=L'
mke2fs -q -F -t ext4 -E offset=$((1 << 20)) small.img 4m
make_store
truncate -s 64M empty.img
sync_disk empty.img target

say "a server on TCP"
start bash -c 'exec wherry serve-nbd --port 0 --scratch >served'
wait_until 20 test -s served
uri=$(cat served)target@1:vm
port=$(sed 's|nbd://127.0.0.1:\([0-9]*\)/|\1|' served)
start qemu-io -f raw -c 'sleep 300000' "$uri" # holds the overlay, which would go with the machine
holder=$PID
wait_until 20 eval "wherry images --json | jq -e '.images[0].in_use'"

say "a machine boots"
make_root
make_init "$port" target@1:vm
(cd root && find . | cpio --quiet -o -H newc | gzip -1) >initramfs
timeout 300 qemu-system-x86_64 -machine accel=tcg -m 512 -nographic -no-reboot -kernel "$KERNEL"/boot/vmlinuz-* -initrd initramfs \
	-append "console=ttyS0 panic=-1 quiet" -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= >console 2>&1 </dev/null ||
	die "the machine: $(tail -n 20 console)"
tr -d '\r' <console >console.txt
for step in network attached refused scratch detached both odd live mirror mounted unknown tidy written; do
	grep -q "STEP $step" console.txt || { tail -n 40 console.txt >&2 && die "the machine did not get to '$step'"; }
done
grep -q "^END well" console.txt

say "what it has left behind is sound"
nbdcopy "$uri" vm.img
sfdisk -q --verify vm.img
check_ext4 vm.img 1
debugfs -R "dump /files/bin/wherry wherry.back" "vm.img?offset=$(partition_start vm.img 1)" 2>debugfs.log
check_same "$WHERRY" wherry.back
debugfs -R "dump /synced synced.back" "vm.img?offset=$(partition_start vm.img 1)" 2>debugfs.log
check_same small.img synced.back
partition_bytes vm.img 2 >swap.img
[[ $(file -b swap.img) == *swap* ]]
stop_process "$holder"
