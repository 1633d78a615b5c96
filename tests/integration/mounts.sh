# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# For the tests of mount and umount, behind functions.sh: a server's disk, and looking for what is left.

# unmount_all: whatever is mounted below $WORK, however that came about; what it hangs on goes along.
unmount_all() {
	local directory
	while read -r directory; do
		[[ " ${mount_points[*]} " == *" $directory "* ]] || umount --lazy "$directory" 2>/dev/null
	done < <(awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | tac)
	forget_records
}

# records: the folders of records that speak of this test's directories.
records() {
	grep -lsF "\"$WORK/" /run/wherry/mounts/*/record "$WORK"/run/wherry/mounts/*/record | xargs -r dirname || true
}

forget_records() {
	local folder
	for folder in $(records); do
		umount --lazy "$folder/fs" 2>/dev/null
		rm -f "$folder"/{record,alive}
		rmdir "$folder/fs" "$folder" 2>/dev/null
	done
}
at_exit unmount_all

# servers: pids of what this test's mounts are served by.
servers() {
	local pid
	for pid in $(_marked_pids || true); do
		case $(ps -o comm= -p "$pid" || true) in
		wherryfs | wherry-fsreader | grub-mount | nbdkit) echo "$pid" ;;
		esac
	done
}

kill_servers() {
	local pid
	for pid in $(servers); do
		kill -KILL "$pid" 2>/dev/null || true
	done
	wait_until 5 eval '[[ -z $(servers) ]]'
}

# what_is_left: mounts that the test has not made itself, servers (and so loop devices, which would keep them), records.
what_is_left() {
	local directory
	while read -r directory; do
		[[ " ${mount_points[*]} " == *" $directory "* ]] || echo "mounted: $directory"
	done < <(awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo)
	servers | sed 's/^/server: /'
	records | sed 's/^/record: /'
}

# nothing_left: what was done is all undone.
nothing_left() {
	local tries
	for ((tries = 0; tries < 100; tries++)); do
		[[ -n $(what_is_left) ]] || return 0
		sleep 0.1
	done
	die "something is left: $(what_is_left)"
}

# mount_ok REFERENCE DIRECTORY [OPTION…]: mounts it; json_get looks into the answer.
mount_ok() {
	mkdir -p "$2"
	expect_exit 0 wherry mount "$@" --json
}

umount_ok() {
	expect_exit 0 wherry umount "$1"
	[[ ! -s stderr ]] || die "umount says $(cat stderr)"
}

# make_root DIRECTORY: what the root file system of a server looks like.
make_root() {
	real_files
	mkdir -p "$1"/{etc,usr/lib,home,proc}
	cp -a "$FILES" "$1/home/"
	echo 'ID=test' >"$1/usr/lib/os-release"
	ln -s ../usr/lib/os-release "$1/etc/os-release"
	echo '/dev/sda2 / ext4' >"$1/etc/fstab"
	echo secret >"$1/etc/secret"
	chmod 600 "$1/etc/secret"
}

# make_server_disk IMAGE: 1 ext4 with what a /boot has, 2 ext4 "root" with a root, 3 swap.
make_server_disk() {
	[[ -d root ]] || make_root root
	mkdir -p boot/grub
	echo menu >boot/grub/grub.cfg
	truncate -s 96M "$1"
	sfdisk -q "$1" <<-END
		label: gpt
		size=8MiB, type=L
		size=72MiB, type=L
		size=8MiB, type=S
	END
	ext4_in_partition "$1" 1 boot
	ext4_in_partition "$1" 2 root -L root
	swap_in_partition "$1" 3
}

# same_tree A B: the same files, with their content, owners, modes and times.
same_tree() {
	diff -r --no-dereference "$1" "$2" >tree.diff || die "$1 and $2 differ: $(head -n 5 tree.diff)"
	diff <(list_tree "$1") <(list_tree "$2") >tree.diff || die "$1 and $2 differ: $(head -n 5 tree.diff)"
}
list_tree() {
	(cd "$1" && find . -path ./lost+found -prune -o ! -type d -printf '%p %y %#m %U:%G %s %T@ %n %l\n' -o -printf '%p %y %#m %U:%G\n' | sort)
}
