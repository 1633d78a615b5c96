#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What an ext4 says is unused is believed when it is clean and not mounted, and never else. A mounted source is fuzzy.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires_loop
requires mke2fs debugfs e2fsck jq openssl sfdisk

MIB=$((1024 * 1024))
real_files
make_store

# debug IMAGE COMMAND: debugfs, which says errors without failing.
debug() {
	debugfs -w -R "$2" "$1" >debugfs.log 2>&1
	! grep -qiE 'error|not found|usage' debugfs.log || die "debugfs: $2: $(cat debugfs.log)"
}

# A clean file system with 16 MiB of deleted garbage.
truncate -s 64M clean.img
mke2fs -q -F -t ext4 -b 4096 -E lazy_itable_init=0 -d "$FILES" clean.img
random_file garbage 16M garbage
debug clean.img "write garbage garbage"
debug clean.img "rm garbage"
e2fsck -fn clean.img >e2fsck.log 2>&1 || die "the file system is not clean: $(cat e2fsck.log)"

say "clean: garbage stays out"
sync_disk clean.img clean
expect_equal clean "$(json_get .consistency)"
expect_number "$(json_get .left_out_bytes) >= 15 * $MIB" "deleted garbage is left out"
expect_exit 0 wherry export clean@1 exported
! cmp -s clean.img exported || die "deleted garbage is in the image of a clean file system"

# read_whole NAME WHY: nothing of the image NAME.img is left out, and that is said.
read_whole() {
	sync_disk "$1.img" "$1"
	grep -qE "^wherry: the ext4 is read whole.*: $2" stderr || die "not a word about why it is read whole: $(cat stderr)"
	expect_equal 1 "$(wc -l <stderr)" "lines about $1: $(cat stderr)"
	expect_equal "0 $(size_of "$1.img")" "$(json_get '"\(.left_out_bytes) \(.size_bytes)"')" "all of $1 is read"
	check_export "$1@1" "$1.img"
}

while IFS='|' read -r name command why; do
	say "$name"
	cp --sparse=always clean.img "$name.img"
	debug "$name.img" "$command"
	read_whole "$name" "$why"
	rm "$name.img"
done <<-'END'
	needs-recovery|feature needs_recovery|not cleanly unmounted
	not-valid|set_super_value state 0|not cleanly unmounted
	with-errors|set_super_value state 3|it has errors
	with-orphans|set_super_value last_orphan 12|.*orphan
END

say "copied while it was mounted"
cp --sparse=always clean.img live.img
attach_loop live.img
loop=$LOOP
mount_at mnt "$loop"
random_file mnt/before 3M before
sync -f mnt
random_file mnt/just-now 100K just-now
sync mnt/just-now
cp --sparse=always live.img snapshot.img
read_whole snapshot "not cleanly unmounted"
expect_exit 0 wherry export snapshot@1 exported
attach_loop exported
mount_at mnt-exported "$LOOP" # replays the journal
check_same mnt/before mnt-exported/before
check_same mnt/just-now mnt-exported/just-now
unmount mnt-exported
detach_loop "$LOOP"
e2fsck -fn exported >e2fsck.log 2>&1 || die "not clean after its journal was replayed: $(cat e2fsck.log)"

# check_fuzzy SOURCE DISK
check_fuzzy() {
	sync_disk "$1" "$2"
	expect_equal 1 "$(grep -c warning stderr)" "warnings about $1, which is mounted: $(cat stderr)"
	grep -qE "^wherry: the ext4 is read whole.*: mounted" stderr || die "not a word about why it is read whole"
	grep -qE "^wherry: warning: .*$1.*in use.*mnt.*fuzzy" stderr || die "no such warning: $(cat stderr)"
	expect_equal "fuzzy true 0" "$(json_get '"\(.consistency) \(.fuzzy_because | contains("mnt")) \(.left_out_bytes)"')"
	expect_exit 0 wherry images "$2" --json
	expect_equal "fuzzy true" \
		"$(json_get '.images[-1] | "\(.consistency) \(.details.fuzzy_because | contains("mnt"))"')" "the image is marked"
}

say "mounted: fuzzy, warned of once, read whole; whether its device is the source or the file behind that"
check_fuzzy "$loop" by-device
check_fuzzy live.img by-file
expect_exit 0 wherry sync live.img by-file --progress=none
grep -q '^  fuzzy: ' stdout || die "the report for people doesn't say fuzzy: $(cat stdout)"
expect_exit 0 wherry images by-file
grep -q 'by-file@2 .*fuzzy' stdout || die "the list doesn't say fuzzy: $(cat stdout)"

say "mounted in a place whose name is not UTF-8"
unmount mnt
mount_at $'mnt-\xe9' "$loop"
sync_disk live.img odd-place
expect_equal fuzzy "$(json_get .consistency)"
expect_exit 0 wherry images odd-place --json
expect_equal true "$(json_get '.images[0].details.fuzzy_because | contains("mnt-\ufffd")')" "what JSON can't hold is replaced"
unmount $'mnt-\xe9'
mount_at mnt "$loop"

say "mounted read-only: nothing can change, but its map is not taken from the disk"
unmount mnt
mount_at mnt -o ro "$loop"
sync_disk live.img by-file
expect_equal "clean null" "$(json_get '"\(.consistency) \(.fuzzy_because)"')"
! grep -q warning stderr || die "nothing to be warned of: $(cat stderr)"
check_export by-file@latest live.img

say "unmounted again: clean, and what was read before of unused blocks becomes zero"
unmount mnt
detach_loop "$loop"
sync_disk live.img by-file
[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
expect_equal clean "$(json_get .consistency)"
expect_number "$(json_get .left_out_bytes) >= 10 * $MIB" "unused blocks are left out again"
expect_number "$(json_get .changed_bytes) >= 10 * $MIB" "they are a change, to zeros"
expect_number "$(json_get .stored_bytes) <= 3 * $MIB" "nothing is stored for that"
expect_exit 0 wherry export by-file@latest exported
e2fsck -fn exported >e2fsck.log 2>&1 || die "not clean: $(cat e2fsck.log)"
expect_exit 0 wherry images by-file --json
expect_equal "fuzzy fuzzy clean clean" "$(json_get '[.images[].consistency] | join(" ")')"

say "one mounted partition of two: the other one's map is still good"
rm -f two.img
truncate -s 132M two.img
sfdisk -q two.img <<-END
	label: gpt
	size=64MiB, type=L
	size=64MiB, type=L
END
for number in 1 2; do
	dd if=clean.img of=two.img bs=1M seek="$(partition_start two.img $number)" oflag=seek_bytes conv=notrunc,sparse \
		status=none
done
mount_partition two.img 2 mnt
sync_disk two.img two
expect_equal 1 "$(grep -c warning stderr)" "warnings: $(cat stderr)"
grep -qE '^wherry: partition 2 \(ext4\) is read whole.*: mounted' stderr || die "not a word about partition 2: $(cat stderr)"
! grep -q 'partition 1' stderr || die "partition 1 is not read whole: $(cat stderr)"
expect_equal fuzzy "$(json_get .consistency)"
expect_number "$(json_get .left_out_bytes) >= 15 * $MIB" "unused blocks of the first partition are left out"
json_get '.left_out[].why' | grep -q '^partition 1: ' || die "partition 1 is not by its map"
! json_get '.left_out[].why' | grep -q '^partition 2: ' || die "partition 2, which is mounted, is by its map"
unmount_partition mnt
