#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Logical volumes in an image, as wherryfs shows them: as files, and the files in them, with nothing activated. How they are found and put together is in
# test-fsreader-lvm.sh.
# timeout: 120
# asan: yes
. "$(dirname "$0")/functions.sh"

requires_loop
requires_fs
requires pvcreate vgcreate lvcreate sfdisk mkfs.ext4 jq
MNT=$WORK/mnt

# LVM sees our loop devices and nothing else, and asks neither udev nor device mapper.
mkdir -p lvm/backup
lvm() {
	local verb=$1 devices
	shift
	devices=$(printf '"a|^%s$|", ' "${loop_devices[@]}")
	cat >lvm/lvm.conf <<-END
		devices { dir = "/dev" scan = "/dev" filter = [ $devices "r|.*|" ] use_devicesfile = 0 sysfs_scan = 0 hints = "none"
			obtain_device_list_from_udev = 0 external_device_info_source = "none" md_component_detection = 0 }
		activation { udev_sync = 0 udev_rules = 0 monitoring = 0 verify_udev_operations = 0 }
		global { locking_type = 1 use_lvmpolld = 0 use_lvmlockd = 0 system_id_source = "none" event_activation = 0 }
		backup { backup = 0 archive = 0 }
	END
	LVM_SYSTEM_DIR=$WORK/lvm LVM_SUPPRESS_FD_WARNINGS=1 DM_DISABLE_UDEV=1 "$verb" --driverloaded n "$@" >>lvm.log 2>&1 || {
		tail -n 20 lvm.log >&2
		die "$verb $* failed"
	}
}

say "a disk with two physical volumes, a group over both, and what is in it"
truncate -s 200M disk.img
printf 'label: gpt\nsize=60MiB, type=L\nsize=60MiB, type=V\nsize=60MiB, type=V\n' | sfdisk -q disk.img
ext4_in_partition disk.img 1 "$WHERRY_SOURCE/docs"
for number in 2 3; do
	attach_loop disk.img --offset "$(partition_start disk.img $number)" --sizelimit "$(partition_size disk.img $number)"
	loops[number]=$LOOP
done
lvm pvcreate -q --dataalignment 1m "${loops[2]}" "${loops[3]}"
lvm vgcreate -q -s 1m server "${loops[2]}" "${loops[3]}"
lvm lvcreate -q -an -Zn -Wn -n root -L 80M server
lvm lvcreate -q -an -Zn -Wn -n swap -L 4M server
for number in 2 3; do
	detach_loop "${loops[number]}"
done
mkfs.ext4 -q -d "$WHERRY_SOURCE/common" root.img 80M
# root lies on all of the first, which has 59 extents, and goes on at the start of the second; what LVM thinks of that is tested elsewhere
put() {
	dd if=root.img of=disk.img bs=1M conv=notrunc status=none skip="$1" count="$2" oflag=seek_bytes \
		seek=$(($(partition_start disk.img "$3") + (1 + $4) * 1048576))
}
first=$((59 - 0))
put 0 $first 2 0
put $first $((80 - first)) 3 0
make_store
sync_disk disk.img web01 --read-all
zero_range disk.img "$(partition_start disk.img 3)" 1M
sync_disk disk.img web01 --read-all

say "as files"
start_fs "$MNT"
image=$MNT/web01/images/1
expect_equal "disk.raw files info.json layout lv part" "$(ls "$image" | xargs)"
expect_equal server "$(ls "$image/lv")"
ls -l "$image/lv/server" >listing
expect_equal "$((80 << 20))" "$(stat -c %s "$image/lv/server/root.raw")"
expect_equal 400 "$(stat -c %a "$image/lv/server/root.raw")"
check_same root.img "$image/lv/server/root.raw"
expect_exit 0 e2fsck -fn "$image/lv/server/root.raw"
[[ ! -e $image/lv/server/none.raw && ! -e $image/lv/server/root && ! -e $image/lv/other ]]

say "and the files in them"
expect_equal "1 2 3 server" "$(ls "$image/files" | xargs)"
grep -q root <<<"$(ls "$image/files/server")"
diff -r -x lost+found "$WHERRY_SOURCE/common" "$image/files/server/root"
diff -r -x lost+found "$WHERRY_SOURCE/docs" "$image/files/1"
expect_equal WHY-NOT.txt "$(ls "$image/files/2")"
grep -q "physical volume of LVM" "$image/files/2/WHY-NOT.txt"
expect_equal WHY-NOT.txt "$(ls "$image/files/server/swap")"
grep -q "web01@1/server/swap: there is no file system here that is known" "$image/files/server/swap/WHY-NOT.txt"

say "one that can't be put together: it says why"
expect_equal WHY-NOT.txt "$(ls "$MNT/web01/images/2/files/server/root")"
expect_equal root.WHY-NOT.txt "$(ls "$MNT/web01/images/2/lv/server" | grep root)"
grep -q "server/root: " "$MNT/web01/images/2/lv/server/root.WHY-NOT.txt"
diff <(sed 's/.*: //' "$MNT/web01/images/2/lv/server/root.WHY-NOT.txt") <(sed 's/.*: //' "$MNT/web01/images/2/files/server/root/WHY-NOT.txt")

say "the same numbers in listings, for who asks, and after another mount"
numbers() {
	(cd "$image" && find lv files -maxdepth 2 -printf '%p %i\n') | sort
}
numbers >before
diff <(cd "$image/lv/server" && ls -i -f | sort -n | grep -v '\.$' | awk '{ print $1 }') <(cd "$image/lv/server" && stat -c %i * | sort -n)
stop_fs "$MNT"
start_fs "$MNT"
diff before <(numbers)
stop_fs "$MNT"

say "as the root of a mount"
start_fs "$MNT" -o root=web01/images/1/files/server/root
diff -r -x lost+found "$WHERRY_SOURCE/common" "$MNT"
stop_fs "$MNT"
: >root.raw
expect_exit 0 wherryfs "$WHERRY_STORE" root.raw -o root=web01/images/1/lv/server/root.raw
check_same root.img root.raw
umount root.raw
