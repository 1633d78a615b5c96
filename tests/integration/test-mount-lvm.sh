#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A server with its root on a logical volume: mount finds it, by name or by reading, whether it lies in one piece or in several; nothing of it is activated.
# timeout: 400
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/mounts.sh"

requires_loop
requires_fs
requires mke2fs e2fsck sfdisk jq findmnt pvcreate vgcreate lvcreate lvextend lvs pvs

EXTENT=$((4 << 20))

# LVM sees the loop devices of this test and nothing else, and keeps what it writes in here.
lvm() {
	local devices
	mkdir -p lvm
	devices=$(printf '"a|^%s$|", ' "${loop_devices[@]}")
	cat >lvm/lvm.conf <<-END
		devices { dir = "/dev" scan = "/dev" filter = [ $devices "r|.*|" ] use_devicesfile = 0 sysfs_scan = 0 hints = "none"
			obtain_device_list_from_udev = 0 external_device_info_source = "none" md_component_detection = 0 }
		activation { udev_sync = 0 udev_rules = 0 monitoring = 0 verify_udev_operations = 0 }
		global { locking_type = 1 use_lvmpolld = 0 event_activation = 0 }
		backup { backup = 0 archive = 0 }
	END
	LVM_SYSTEM_DIR=$WORK/lvm LVM_SUPPRESS_FD_WARNINGS=1 DM_DISABLE_UDEV=1 "$@" --driverloaded n 2>>lvm.log
}

# fill VOLUME FILE: the volume's pieces on the device, by LVM's own account, get what the file has.
fill() {
	local pieces piece first last at=0 start
	start=$(lvm pvs --noheadings --units b --nosuffix -o pe_start "$PV" | tr -d ' ')
	pieces=$(lvm lvs --noheadings --segments -o seg_pe_ranges "vg0/$1" | tr -d ' ')
	for piece in $pieces; do
		piece=${piece##*:}
		first=${piece%-*} last=${piece#*-}
		dd if="$2" of="$PV" bs=$EXTENT skip=$at count=$((last - first + 1)) conv=notrunc,sparse oflag=seek_bytes \
			seek=$((start + first * EXTENT)) status=none
		at=$((at + last - first + 1))
	done
	expect_equal "$(($(size_of "$2") / EXTENT))" "$at" "extents of $1"
}

say "a server"
make_root root
mkdir boot home
echo menu >boot/menu
echo mail >home/mail
truncate -s 160M server.img
sfdisk -q server.img <<-END
	label: gpt
	size=8MiB, type=L
	size=120MiB, type=V
END
ext4_in_partition server.img 1 boot
attach_loop server.img --offset "$(partition_start server.img 2)" --sizelimit "$(partition_size server.img 2)"
PV=$LOOP
lvm pvcreate -q "$PV" >lvm.out
lvm vgcreate -q -s ${EXTENT}b vg0 "$PV" >lvm.out
for volume in root:48 home:8 swap:8; do
	lvm lvcreate -q -y -an -Zn -Wn -n "${volume%:*}" -L "${volume#*:}m" vg0 >lvm.out
done
lvm lvextend -q vg0/home -L 24m >lvm.out # behind swap
expect_equal 2 "$(lvm lvs --noheadings --segments vg0/home | wc -l)" "pieces of home"
truncate -s 48M root.img
mke2fs -q -F -t ext4 -L root -d root root.img
truncate -s 24M home.img
mke2fs -q -F -t ext4 -d home home.img
fill root root.img
fill home home.img
detach_loop "$PV"
make_store
sync_disk server.img web01 --read-all
mkdir mnt

attach_loop root.img
mount_at original -o ro "$LOOP"
for via in loop files; do
	say "found by reading, via $via"
	mount_ok web01@1 mnt --via $via
	expect_equal "web01@1/vg0/root $via ext4 root" "$(json_get '"\(.reference) \(.via) \(.type) \(.label)"')"
	same_tree original mnt
	umount_ok mnt
	say "in several pieces, by name, via $via"
	mount_ok web01@1/vg0/home mnt --via $via
	expect_equal mail "$(cat mnt/mail)"
	umount_ok mnt
	nothing_left
done

say "one that is in one piece can be changed, of a clone, or to try things"
expect_exit 0 wherry clone web01@1 copy
mount_ok copy mnt --rw
expect_equal copy/vg0/root "$(json_get .reference)"
echo changed >mnt/etc/fstab
umount_ok mnt
mount_ok copy mnt
expect_equal changed "$(cat mnt/etc/fstab)"
umount_ok mnt
mount_ok web01@1/vg0/root mnt --scratch
expect_equal "/dev/sda2 / ext4" "$(cat mnt/etc/fstab)"
echo tried >mnt/etc/fstab
umount_ok mnt
check_export web01@1 server.img
expect_error "copy/vg0/home: can't be mounted for writing: .*a logical volume of several pieces can be read only" wherry mount copy/vg0/home mnt --rw
nothing_left

say "what is refused"
expect_error "web01@1/2: is a physical volume of LVM; name the disk alone" wherry mount web01@1/2 mnt
expect_error "web01@1/vg0/nosuch: there is no such logical volume; there are: 1 .*vg0/root \(ext4 \"root\", 48.0 MiB\)" wherry mount web01@1/vg0/nosuch mnt
expect_error "vg0/swap: holds no file system that is known" wherry mount web01@1/vg0/swap mnt
expect_error "web01@1/vg0/: neither a partition, as in web01@1/2, nor a logical volume, as in web01@1/VG/LV" wherry mount web01@1/vg0/ mnt
