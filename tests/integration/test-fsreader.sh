#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Files of ext2, ext3 and ext4 read without the kernel are those that the kernel shows: attributes, names, links, content, holes, extended
# attributes, room. With many sets of features, clean, and copied while they were mounted, with journals of every kind.
# timeout: 400
# asan: yes
. "$(dirname "$0")/functions.sh"
requires_loop
requires mke2fs debugfs tune2fs e2fsck getfattr setfacl python3

LIST=$WHERRY_TEST_TOOLS/fsreader_list
export QUIET=1
MAKE_TREE=$WHERRY_SOURCE/tests/helpers/make_tree.py

# same_records WHAT EXPECTED GOT: files of records that end with NUL, in any order.
same_records() {
	sort -z "$2" >sorted-expected
	sort -z "$3" >sorted-got
	cmp -s sorted-expected sorted-got && return
	diff <(tr '\n\0' '?\n' <sorted-expected) <(tr '\n\0' '?\n' <sorted-got) | head -n 20 >&2 || true
	die "$1 differ"
}

# xattrs_of FOLDER: as fsreader_list prints them. Names of files with line ends in them are left out: none of those has attributes.
xattrs_of() {
	(cd "$1" && getfattr -R -P -h -d -m - -e hex . 2>/dev/null) | awk '
		/^# file: / { file = substr($0, 9); if (file != "." && file !~ /^\.\//) file = "./" file; next }
		NF { value = $0; sub(/=0x/, "=", value); sub(/=""$/, "=", value); if (value !~ /=/) value = value "="; printf "%s|%s%c", file, value, 0 }'
}

# compare_with_mount IMAGE TYPE FOLDER [MOST]: files of more than MOST bytes are compared by where their data is.
compare_with_mount() {
	local image=$1 type=$2 folder=$3 most=${4:-20000000} file
	# before anything of them is in memory: the kernel takes that for data
	while IFS= read -r -d '' file; do
		python3 -c "$DATA_OF" "$folder/$file" >expected
		"$LIST" "$image" "$type" data "$file" >got
		check_same expected got
	done < <(cd "$folder" && find . -type f \( -name 'sparse-*' -o -name fragmented -o -name unwritten \) -print0)
	(cd "$folder" && find . -exec stat --printf '%n|%f|%h|%u|%g|%t:%T|%s|%b|%.9X|%.9Y|%.9Z\0' {} +) >expected
	"$LIST" "$image" "$type" stat >got
	same_records "attributes in $image" expected got
	(cd "$folder" && find . -type l -printf '%p -> %l\0') >expected
	"$LIST" "$image" "$type" links >got
	same_records "symbolic links in $image" expected got
	(cd "$folder" && find . -type f -size "-$((most + 1))c" -print0 | xargs -0 sha256sum -z) >expected
	"$LIST" "$image" "$type" contents "$most" >got
	same_records "contents in $image" expected got
	xattrs_of "$folder" >expected
	"$LIST" "$image" "$type" xattrs >got
	same_records "extended attributes in $image" expected got
	(cd "$folder" && find . -mindepth 1 -print0) >expected
	"$LIST" "$image" "$type" names | sed -z '1d' >got
	same_records "names in $image, each looked up" expected got
}

# Where SEEK_DATA and SEEK_HOLE of a mounted file say that data is.
DATA_OF='
import os, sys
fd, end = os.open(sys.argv[1], os.O_RDONLY), 0
try:
    while True:
        first = os.lseek(fd, end, os.SEEK_DATA)
        end = os.lseek(fd, first, os.SEEK_HOLE)
        print(first, end - first)
except OSError:
    pass
'

# What a fast commit can tell of: all of it is in one by the last fsync.
FAST_CHANGES='
import os, sys
os.chdir(sys.argv[1])
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
def write(path, data, mode="wb"):
    with open(path, mode) as file:
        file.write(data)
write("new", b"new\n")
sync("new")
os.mkdir("folder")
write("folder/a", b"a" * 10000)
sync("folder/a")
os.link("old/1", "folder/hard")
os.unlink("old/2")
os.rename("old/3", "folder/moved")
os.rename("old/6", "old/7")
os.symlink("short", "folder/link")
os.symlink("l" * 100, "folder/longer-link")
os.truncate("old/4", 1)
write("old/5", b"more" * 5000, "ab")
os.chmod("old/8", 0o4711)
os.utime("old/9", ns=(10 ** 18, 2 * 10 ** 18))
sync("old/5")
fd = os.open("allocated", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 100000)
os.pwrite(fd, b"x" * 5000, 20000)
os.fsync(fd)
for number in range(300):
    write(f"folder/many-{number:04}", b"")
os.fsync(fd)
os.system("fallocate -p -o 4096 -l 8192 allocated")
os.fsync(fd)
'

# compare IMAGE TYPE: with what a mount shows of it.
compare() {
	attach_loop "$1"
	mount_at mnt -o ro,noatime "$LOOP"
	compare_with_mount "$1" "$2" mnt
	stat -f --printf '%S %b %f %a %c %d\n' mnt >expected
	"$LIST" "$1" "$2" statfs >got
	check_same expected got
	unmount mnt
	detach_loop "$LOOP"
}

# ---------------------------------------------------------------- features

# each line: name | type | size | mke2fs options | make_tree features
cases() {
	cat <<-'END'
		ext4|ext4|192M|-b 4096|root xattr sparse pieces=12000 many=8000
		ext4-1k|ext4|96M|-b 1024 -O ^metadata_csum,^64bit|root xattr sparse block=1024 pieces=6000
		ext4-inline|ext4|96M|-b 4096 -O inline_data,ea_inode -I 512|root xattr large
		ext4-bigalloc|ext4|96M|-b 4096 -O bigalloc -C 16384|root xattr sparse
		ext4-meta-bg|ext4|96M|-b 2048 -O meta_bg,^resize_inode,^flex_bg -I 128|root xattr block=2048
		ext3|ext3|96M|-b 1024|root xattr sparse block=1024
		ext2|ext2|64M|-b 4096|root xattr sparse pieces=2000
		ext2-rev0|ext2|64M|-r 0 -b 1024|root big=2 block=1024
	END
}

make_case() {
	local name=$1 type=$2 size=$3 options=$4 features=$5
	truncate -s "$size" "$name.img"
	# shellcheck disable=SC2086 # words on purpose
	mke2fs -q -F -t "$type" -E lazy_itable_init=0 $options "$name.img" >mke2fs.log 2>&1 || die "mke2fs $options: $(cat mke2fs.log)"
	attach_loop "$name.img"
	mount_at mnt "$LOOP"
	# shellcheck disable=SC2086
	python3 "$MAKE_TREE" mnt $features
	unmount mnt
	detach_loop "$LOOP"
}

while IFS='|' read -r name type size options features; do
	say "$name: $type, $options"
	make_case "$name" "$type" "$size" "$options" "$features"
	compare "$name.img" "$type"
	[[ $name == ext4 ]] || rm "$name.img"
done < <(cases)

say "several threads at once"
"$LIST" ext4.img ext4 stat >expected
THREADS=4 "$LIST" ext4.img ext4 stat >got
check_same expected got

say "who isn't root"
other=(setpriv --reuid 54321 --regid 54321 --clear-groups)
if "${other[@]}" test -x "$LIST"; then
	"${other[@]}" "$LIST" /dev/fd/9 ext4 stat 9<ext4.img >got
	check_same expected got
else
	say "nobody else may reach $LIST"
fi

say "blocks of 64 KiB, which this kernel may not mount"
mkdir tree
python3 "$MAKE_TREE" tree block=65536 many=1000 pieces=20
truncate -s 512M large-blocks.img
mke2fs -q -F -t ext4 -b 65536 -d tree large-blocks.img >mke2fs.log 2>&1 || die "mke2fs: $(cat mke2fs.log)"
(cd tree && find . -mindepth 1 -print0) >expected
"$LIST" large-blocks.img ext4 names | grep -zvx -e . -e ./lost+found >got
same_records "names with large blocks" expected got
(cd tree && find . -type f -print0 | xargs -0 sha256sum -z) >expected
"$LIST" large-blocks.img ext4 contents >got
same_records "contents with large blocks" expected got
rm large-blocks.img

say "a part of a large file"
"$LIST" ext4.img ext4 cat files/8388608 >got
"$LIST" ext4.img ext4 cat files/8388608 5000000 777 >part
dd if=got of=expected bs=1 skip=5000000 count=777 status=none
check_same expected part

say "encrypted: names as the kernel shows them without the key, no content"
truncate -s 64M secret.img
mke2fs -q -F -t ext4 -b 4096 -O encrypt secret.img >mke2fs.log 2>&1 || die "$(cat mke2fs.log)"
attach_loop secret.img
mkdir -p mnt
if mount -o test_dummy_encryption "$LOOP" mnt 2>/dev/null; then
	umount mnt # now as the test's own, which ends with it
	mount_at mnt -o test_dummy_encryption "$LOOP"
	mkdir mnt/secret mnt/secret/large
	for name in a short-name "$(printf 'long%.0s' {1..50})" "$(printf 'n%.0s' {1..255})"; do echo content >"mnt/secret/$name"; done
	for number in {1..400}; do : >"mnt/secret/large/$number-with-a-longer-name-than-others"; done
	ln -s target mnt/secret/link
	ln -s "$(printf 'target/%.0s' {1..30})" mnt/secret/longer-link
	unmount mnt
	mount_at mnt -o ro,noatime "$LOOP"
	(cd mnt && find . -exec stat --printf '%n|%f|%h|%u|%g|%t:%T|%s|%b|%.9X|%.9Y|%.9Z\0' {} +) >expected
	"$LIST" secret.img ext4 stat >got
	same_records "attributes of encrypted files" expected got
	(cd mnt && find . -type l -printf '%p -> %l\0') >expected
	"$LIST" secret.img ext4 links >got
	same_records "encrypted symbolic links" expected got
	(cd mnt && find . -mindepth 1 -print0) >expected
	"$LIST" secret.img ext4 names | sed -z '1d' >got
	same_records "encrypted names, each looked up" expected got
	file=$(cd mnt && find . -type f -size +0 -print -quit)
	status=0
	"$LIST" secret.img ext4 cat "$file" >got 2>stderr || status=$?
	expect_equal 1 "$status" "status"
	grep -q 'is encrypted, and its key is not in the image (ENOKEY)' stderr || die "no word of it: $(cat stderr)"
	unmount mnt
else
	say "this kernel has no encryption to try it with"
fi
detach_loop "$LOOP"

say "folders that don't mind case, with and without an index"
truncate -s 64M folded.img
mke2fs -q -F -t ext4 -b 4096 -O casefold -E encoding=utf8 folded.img >mke2fs.log 2>&1 || die "$(cat mke2fs.log)"
{
	echo "mkdir small"
	echo "mkdir large"
	echo "write /dev/null small/Straße"
	for number in {1..400}; do echo "write /dev/null large/File-With-A-Longer-Name-$number"; done
	echo "set_inode_field small flags 0x40080000"
	echo "set_inode_field large flags 0x40080000"
} | debugfs -w folded.img >debugfs.log 2>&1
status=0
e2fsck -fyD folded.img >e2fsck.log 2>&1 || status=$?
((status <= 1)) || die "e2fsck: $(cat e2fsck.log)"
debugfs -R 'htree_dump large' folded.img 2>&1 | grep -q 'Number of entries' || die "there is no index"
for path in small/Straße small/STRASSE large/File-With-A-Longer-Name-77 large/FILE-with-a-longer-NAME-77; do
	"$LIST" folded.img ext4 cat "$path" >got || die "$path is not found"
done

# ------------------------------------------------------------------ refused

# refuse PATTERN IMAGE MODE…
refuse() {
	local pattern=$1 status=0
	shift
	"$LIST" "$@" >got 2>stderr || status=$?
	expect_equal 1 "$status" "status of $*"
	grep -qE "$pattern" stderr || die "expected $pattern, got: $(cat stderr)"
}

say "what can't be read is refused with a reason"
truncate -s 64M no.img
refuse 'there is no ext2, ext3 or ext4 \(EINVAL\)' no.img ext4 stat
refuse 'too small' /dev/null ext4 stat
head -c 100M ext4.img >cut-off.img
refuse 'more blocks than its partition has' cut-off.img ext4 stat
refuse "files of this type of file system can't be read here.*EOPNOTSUPP" no.img swap stat
refuse 'no .nothing. \(ENOENT\)' ext4.img ext4 cat nothing
refuse 'is no folder \(ENOTDIR\)' ext4.img ext4 cat files/1/nothing
refuse 'EISDIR' ext4.img ext4 cat files
refuse 'EINVAL' ext4.img ext4 cat pipe
mke2fs -q -F -O journal_dev no.img 64M >mke2fs.log 2>&1
refuse 'the journal of another file system \(EOPNOTSUPP\)' no.img ext4 stat

say "a wrong checksum is an error, and what is left is shown"
cp --sparse=always ext4.img damaged.img
block=$(debugfs -R 'bmap folders/small 0' ext4.img 2>/dev/null)
byte_flip damaged.img $((block * 4096 + 30))
refuse 'damaged: some of what it holds may be missing \(EIO\)' damaged.img ext4 names
"$LIST" damaged.img ext4 survive 2>survived
grep -q ' 1 errors' survived || grep -q ' 2 errors' survived || die "more than the folder is damaged: $(cat survived)"
refuse 'EIO' damaged.img ext4 cat folders/small/a
"$LIST" damaged.img ext4 cat files/1000 >got
"$LIST" ext4.img ext4 cat files/1000 >expected
check_same expected got
cp --sparse=always ext4.img damaged.img
debugfs -w -R 'set_inode_field files/1000 mode 0100600' damaged.img >debugfs.log 2>&1
inode=$(debugfs -R 'imap files/1000' ext4.img 2>/dev/null | sed -n 's/.*located at block \([0-9]*\), offset 0x\(.*\)/\1 \2/p')
byte_flip damaged.img $((${inode% *} * 4096 + 0x${inode#* } + 4))
refuse 'checksum' damaged.img ext4 cat files/1000

# ----------------------------------------------------------------- journals

# crash NAME TYPE MKE2FS-OPTIONS MOUNT-OPTIONS: NAME.img as it is while mounted, with changes in its journal; replayed.img: the same after a mount.
crash() {
	local name=$1 type=$2 options=$3 mount_options=$4 number
	truncate -s 64M live.img
	# shellcheck disable=SC2086
	mke2fs -q -F -t "$type" $options live.img >mke2fs.log 2>&1 || die "mke2fs $options: $(cat mke2fs.log)"
	attach_loop live.img
	mount_at mnt -o "$mount_options" "$LOOP"
	mkdir mnt/old
	for number in {1..300}; do echo "$number" >"mnt/old/$number"; done
	unmount mnt
	mount_at mnt -o "$mount_options" "$LOOP"
	python3 "$MAKE_TREE" mnt root xattr big=2 many=500 pieces=300 block="$(sed 's/.*-b \([0-9]*\).*/\1/' <<<"$options")"
	sync -f mnt
	rm -r mnt/folders/large mnt/old/1*
	mkdir mnt/old/new
	echo moved >mnt/old/2
	mv mnt/old/3 mnt/old/new/
	sync -f mnt
	truncate -s 10 mnt/files/300000
	echo more >>mnt/files/1000
	cp mnt/files/journal-magic mnt/files/late-magic # with data=journal its blocks have to be escaped
	sync -f mnt
	exec 9>mnt/old/orphan # open, and without a name
	echo gone >&9
	rm mnt/old/orphan
	sync -f mnt
	cp --sparse=always live.img "$name.img"
	exec 9>&-
	unmount mnt
	detach_loop "$LOOP"
	cp --sparse=always "$name.img" replayed.img
	attach_loop replayed.img
	mount_at mnt -o ro,noatime "$LOOP"
}

compare_crashed() {
	compare_with_mount "$1.img" "$2" mnt
	unmount mnt
	detach_loop "$LOOP"
}

while IFS='|' read -r name type options mount_options; do
	say "copied while mounted: $name"
	crash "$name" "$type" "$options" "$mount_options"
	dumpe2fs -h "$name.img" 2>/dev/null | grep -q needs_recovery || die "$name: nothing is in its journal"
	env -u QUIET "$LIST" "$name.img" "$type" statfs 2>stderr >got
	grep -q 'not cleanly unmounted; shown with the [0-9]* blocks that its journal has' stderr || die "nothing was said: $(cat stderr)"
	compare_crashed "$name" "$type"
	[[ $name == v3 ]] || rm "$name.img"
done <<-'END'
	v3|ext4|-b 4096|data=ordered
	v3-data|ext4|-b 4096 -O ^64bit|data=journal
	v1-checksum|ext4|-b 4096 -O ^metadata_csum,^64bit|journal_checksum
	async|ext4|-b 1024|journal_async_commit,data=writeback
	ext3|ext3|-b 1024|data=journal
END

say "with checksums of version 2, a block that was revoked, and one that was escaped"
mkdir small
for name in one two three; do head -c 4096 /dev/zero | tr '\0' o >"small/$name"; done
truncate -s 64M v2.img
mke2fs -q -F -t ext4 -b 4096 -d small v2.img >mke2fs.log 2>&1 || die "$(cat mke2fs.log)"
mapfile -t blocks < <(for file in one two three; do debugfs -R "bmap $file 0" v2.img 2>/dev/null; done)
head -c 4096 /dev/zero | tr '\0' J >block-j
cat block-j block-j >blocks-j
{ printf '\xc0\x3b\x39\x98' && head -c 4092 /dev/zero | tr '\0' M; } >block-magic
debugfs -w v2.img >debugfs.log 2>&1 <<-END
	journal_open -c -v 2
	journal_write -b ${blocks[0]},${blocks[1]} blocks-j
	journal_write -r ${blocks[1]}
	journal_write -b ${blocks[2]} block-magic
	journal_close
END
"$LIST" v2.img ext4 cat one >got
check_same block-j got
"$LIST" v2.img ext4 cat two >got
check_same small/two got
"$LIST" v2.img ext4 cat three >got
check_same block-magic got
cp v2.img replayed.img
attach_loop replayed.img
mount_at mnt -o ro,noatime "$LOOP"
compare_crashed v2 ext4

say "fast commits"
truncate -s 256M fast.img
mke2fs -q -F -t ext4 -b 4096 -O fast_commit fast.img >mke2fs.log 2>&1 || die "$(cat mke2fs.log)"
attach_loop fast.img
fast_loop=$(basename "$LOOP")
mount_at mnt "$LOOP"
mkdir mnt/old
for number in {1..50}; do echo "$number" >"mnt/old/$number"; done
sync -f mnt
python3 -c "$FAST_CHANGES" mnt
if grep -q '^0 commits' "/proc/fs/ext4/$fast_loop/fc_info" 2>/dev/null; then
	say "this kernel made none"
else
	cp --sparse=always fast.img crashed.img
	cp --sparse=always crashed.img replayed.img
	unmount mnt
	detach_loop "$LOOP"
	attach_loop replayed.img
	mount_at mnt -o noatime "$LOOP"
	# The kernel makes entries of folders anew, and their times with them, when it mounts.
	(cd mnt && find . ! -type d -exec stat --printf '%n|%f|%h|%u|%g|%t:%T|%s|%b|%.9X|%.9Y|%.9Z\0' {} + -o -exec stat --printf '%n|%f|%h|%u|%g\0' {} +) >expected
	"$LIST" crashed.img ext4 stat | sed -z -E 's/^([^|]*\|4[^|]*\|[^|]*\|[^|]*\|[^|]*)\|.*/\1/' >got
	same_records "attributes with fast commits" expected got
	(cd mnt && find . -mindepth 1 -print0) >expected
	"$LIST" crashed.img ext4 names | sed -z '1d' >got
	same_records "names with fast commits" expected got
	(cd mnt && find . -type f -print0 | xargs -0 sha256sum -z) >expected
	"$LIST" crashed.img ext4 contents >got
	same_records "contents with fast commits" expected got
	(cd mnt && find . -type l -printf '%p -> %l\0') >expected
	"$LIST" crashed.img ext4 links >got
	same_records "symbolic links with fast commits" expected got
fi
unmount mnt
detach_loop "$LOOP"

say "a journal that was damaged"
cp --sparse=always v3.img damaged.img
journal=$(debugfs -R 'bmap <8> 0' v3.img 2>/dev/null)
byte_flip damaged.img $((journal * 4096 + 24)) # the first sequence number
refuse "its journal is damaged.*checksum.*e2fsck can repair" damaged.img ext4 stat
cp --sparse=always v3.img damaged.img
block=$(debugfs -R 'bmap <8> 3' v3.img 2>/dev/null)
byte_flip damaged.img $((block * 4096 + 100))
attach_loop damaged.img
mkdir -p mnt
if mount -o ro "$LOOP" mnt 2>/dev/null; then
	umount mnt
	detach_loop "$LOOP"
	cp --sparse=always v3.img damaged.img
	byte_flip damaged.img $((block * 4096 + 100))
	"$LIST" damaged.img ext4 stat >got 2>stderr || die "the kernel mounts it: $(cat stderr)"
else
	detach_loop "$LOOP"
	refuse "its journal is damaged" damaged.img ext4 stat
fi

say "a journal on another device"
truncate -s 16M journal.img
mke2fs -q -F -b 4096 -O journal_dev journal.img >mke2fs.log 2>&1
attach_loop journal.img
journal_loop=$LOOP
truncate -s 64M external.img
mke2fs -q -F -t ext4 -b 4096 -J device="$journal_loop" external.img >mke2fs.log 2>&1 || die "$(cat mke2fs.log)"
"$LIST" external.img ext4 stat >got || die "clean, and not shown"
debugfs -w -R 'feature needs_recovery' external.img >/dev/null 2>&1
refuse 'its journal, which has the rest, is on another device' external.img ext4 stat
detach_loop "$journal_loop"
