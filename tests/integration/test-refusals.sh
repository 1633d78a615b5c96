#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever is refused is refused with one clear line, the right exit status, and a store that is what it was.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 mkfifo sed

random_file source 3M source
make_store
sync_disk source web01
sync_disk source web01 --label second
sync_disk source other
expect_exit 0 wherry pin web01@1
store_state >state-before

# check_unchanged WHAT: the store is what it was.
check_unchanged() {
	store_state >state-after
	cmp -s state-before state-after && return
	diff state-before state-after | head -n 20 | cut -c 1-200 >&2
	die "the store has changed: $*"
}

# refused STATUS PATTERN COMMAND…: one line, this status, nothing on standard output. (The store is looked at after each
# group of refusals; that is cheaper, and a change would be seen as well.)
refused() {
	local expected=$1 pattern=$2
	shift 2
	expect_error "$pattern" with_status "$expected" "$@"
}
with_status() {
	local expected=$1 status=0
	shift
	"$@" || status=$?
	((status == expected)) && return "$status"
	echo "exit status $status instead of $expected" # on standard output, where nothing is expected
	return "$status"
}

# ---------------------------------------------------------------- sources

say "sources"
mkdir directory
: >empty
mkfifo fifo
ln -s nowhere dangling
ln -s "$WHERRY_STORE/catalog.db" link-into-store
segment=$(find "$WHERRY_STORE/segments" -type f | head -n 1)
refused 1 'nosuch: no such file or device' wherry sync nosuch new
refused 1 'dangling: no such file' wherry sync dangling new
refused 1 "web01: no such file.*; SOURCE comes first: was 'wherry sync source web01' meant" wherry sync web01 source
refused 1 'source/x: ' wherry sync source/x new
refused 1 'directory: is a directory' wherry sync directory new
refused 1 'empty: is empty' wherry sync empty new
refused 1 '/dev/null: is a character device' wherry sync /dev/null new
refused 1 'fifo: is a pipe' wherry sync fifo new
refused 1 "catalog.db: it is inside the store" wherry sync "$WHERRY_STORE/catalog.db" new
refused 1 "it is inside the store" wherry sync "$segment" new
refused 1 "it is inside the store" wherry sync "$WHERRY_STORE/../$(basename "$WHERRY_STORE")/catalog.db" new
refused 1 "link-into-store: it is inside the store" wherry sync link-into-store new
refused 2 "standard input can't be a source" wherry sync - new
refused 2 'SOURCE: empty' wherry sync "" new
refused 1 'ftp://host/x: .*nbd://' wherry sync ftp://host/x new
refused 1 "can't connect" wherry sync "nbd+unix:///?socket=$WORK/nosuch" new
refused 1 "can't connect" wherry sync "nbd+unix:///?socket=$WORK/source" new
check_unchanged sources

say "a source whose size changes while it is read"
random_file changing 3M changing
start wherry sync changing changing --limit 1M --progress=none >stdout 2>stderr
wait_until 20 wherry images changing
sleep 0.3
truncate -s +1M changing
status=0
finish "$PID" || status=$?
expect_equal 1 "$status" "exit status"
grep -qE '^wherry: source .*changing: its size changed from 3145728 to 4194304' stderr ||
	die "no word about its size: $(cat stderr)"
expect_equal 1 "$(wc -l <stderr)" "lines on standard error"
[[ ! -s stdout ]] || die "something was printed: $(cat stdout)"
expect_exit 0 wherry images changing --json
expect_equal 0 "$(json_get '.images | length')" "no image was made"
expect_exit 0 wherry rounds changing --json
expect_equal "failed true" "$(json_get '.rounds[-1] | "\(.state) \(.error | contains("size changed"))"')"
expect_exit 0 wherry remove changing
store_state >state-before

# ------------------------------------------------- names, numbers, words

say "names"
refused 2 "Web01: .*upper-case.*try 'web01'" wherry sync source Web01
refused 2 "web 01: .*try 'web-01'" wherry sync source "web 01"
refused 2 'name is empty' wherry sync source ""
refused 2 "starts with a letter or a digit" wherry sync source .web
refused 2 "can't hold '/'" wherry sync source ../web01
refused 2 'at most 63 characters' wherry sync source "$(printf 'x%.0s' {1..64})"
refused 2 'wéb: ' wherry sync source wéb
refused 2 'web01@1: names an image, and a disk is wanted' wherry sync source web01@1
refused 1 'disk web0: .*did you mean web01\?' wherry images web0
refused 1 'disk web0: .*did you mean web01\?' wherry export web0@1 exported
for verb in images rounds remove image; do
	refused 1 'disk nosuch: there is none' wherry $verb nosuch
done
refused 1 'disk nosuch: there is none' wherry set nosuch --keep 1
refused 1 'disk nosuch: there is none' wherry retain nosuch --keep 1
refused 1 'disk nosuch: there is none' wherry verify nosuch@1 --source source
check_unchanged names

say "references"
refused 1 'web01@99: .*there (is|are).*1.*2' wherry export web01@99 exported
refused 1 'web01@99: .*there (is|are).*1.*2' wherry delete web01@99
refused 1 'web01@99: .*there (is|are).*1.*2' wherry pin web01@99
refused 1 'web01@99: .*there (is|are).*1.*2' wherry unpin web01@99
refused 1 'web01@99: .*there (is|are).*1.*2' wherry verify web01@99 --source source
refused 1 'web01@1: has no partition 7' wherry export web01@1/7 exported
refused 2 'web01@0: .*counted from 1' wherry export web01@0 exported
refused 2 'web01@99999999999: ' wherry export web01@99999999999 exported
refused 2 'web01@x: not an image number' wherry export web01@x exported
refused 2 'web01@-1: ' wherry export web01@-1 exported
refused 2 "no image number behind '@'" wherry export web01@ exported
refused 2 'web01@1/0: .*counted from 1' wherry export web01@1/0 exported
refused 2 'web01@1/x: not a partition number' wherry export web01@1/x exported
refused 2 'DISK@N/P' wherry export web01/1@1 exported
refused 2 '@1: no disk' wherry export @1 exported
refused 2 'names a disk, and an image is wanted here' wherry delete web01
refused 2 'names a disk, and an image is wanted here' wherry pin web01
refused 2 'names a partition, and an image is wanted here' wherry delete web01@1/1
[[ ! -e exported ]] || die "a file was made"
check_unchanged references

say "sizes, rates, levels, numbers, words"
for size in 3K 48K 2M 8K 0 -64K 64X abc ""; do
	refused 2 "^wherry: --chunk-size: '$size' is not a power of two from 16K to 1M" wherry -s new-store init --chunk-size "$size"
done
[[ ! -e new-store ]] || die "a store was made"
for rate in fast -1 10X 10MM 1e9 99999999999999999999 ""; do
	refused 2 "^wherry: --limit: '$rate' is not a rate" wherry sync source web01 --limit "$rate"
	refused 2 "^wherry: --limit: '$rate' is not a rate" wherry set web01 --limit "$rate"
done
for level in 11 -1 3.5 x "" 99999999999; do
	refused 2 "^wherry: --level: '$level' is not a number from 0 to 10" wherry sync source web01 --level "$level"
	refused 2 "^wherry: --level: '$level' is not a number from 0 to 10" wherry set web01 --level "$level"
done
for keep in 0 -1 x "" 9999999999; do
	refused 2 "^wherry: --keep: '$keep' is not a number" wherry sync source web01 --keep "$keep"
	refused 2 "^wherry: --keep: '$keep' is not a number" wherry retain web01 --keep "$keep"
done
refused 2 "'maybe' is not one of: fail zero" wherry sync source web01 --on-read-error maybe
refused 2 "'fancy' is not one of: bar lines json none" wherry sync source web01 --progress fancy
refused 2 '^wherry: --label: ' wherry sync source web01 --label ""
refused 2 '^wherry: --label: ' wherry sync source web01 --label $'two\nlines'
refused 2 '^wherry: --label: ' wherry sync source web01 --label $'\xff'
refused 2 '^wherry: --label: longer than 255' wherry image web01 --label "$(printf 'x%.0s' {1..256})"
check_unchanged values

say "verbs and options"
refused 2 "snyc: no such verb; did you mean 'sync'" wherry snyc source web01
refused 2 "imags: no such verb; did you mean 'images'" wherry imags
refused 2 "exprot: no such verb; did you mean 'export'" wherry exprot web01@1 exported
refused 2 "xyzzy: no such verb; try 'wherry --help'" wherry xyzzy
refused 2 "did you mean 'sync'" wherry help snyc
refused 2 "lable: no such option; did you mean '--label'" wherry sync source web01 --lable x
refused 2 "josn: no such option; did you mean '--json'" wherry disks --josn
refused 2 "xyzzy: no such option; try 'wherry disks --help'" wherry disks --xyzzy
refused 2 "-x: no such option; try" wherry -x disks
refused 2 "-keep: no such option; did you mean '--keep'" wherry sync source web01 -keep 3
refused 2 "-nx: no such option" wherry delete -nx web01@1
refused 2 "-xn: no such option" wherry delete -xn web01@1
refused 2 "-odd.img: no such option; if it is the name of a file, write ./-odd.img; try 'wherry sync --help'" wherry sync -odd.img web01
refused 2 "version: no such verb; did you mean '--version'" wherry version
refused 2 "unmount: no such verb; did you mean 'umount'" wherry unmount mnt
refused 2 "lim: no such option" wherry sync source web01 --lim 3M
refused 2 "dry-run: not an option of 'sync'" wherry sync source web01 --dry-run
refused 2 "keep: not an option of 'images'" wherry --keep 3 images
refused 2 'keep: N is missing' wherry sync source web01 --keep
refused 2 'store: STORE is missing' wherry disks -s
refused 2 'json: takes no value' wherry disks --json=yes
refused 2 'sync: SOURCE is missing' wherry sync
refused 2 'sync: DISK is missing' wherry sync source
refused 2 'retain: --keep is missing' wherry retain web01
refused 2 'verify: --source is missing' wherry verify web01@1
refused 2 'set: nothing to set' wherry set web01
refused 2 'third: one argument too many' wherry sync source web01 third
refused 2 'one argument too many' wherry disks web01
refused 2 "new-store: init takes no argument; say 'wherry -s new-store init'" wherry init new-store
refused 2 'label: .*no-image' wherry sync source web01 --no-image --label x
refused 2 'dirty-bitmap: only an NBD source' wherry sync source web01 --dirty-bitmap b
refused 2 'dirty-bitmap' wherry sync nbd://localhost/x web01 --dirty-bitmap b --read-all
refused 2 'json: standard output is the disk itself' wherry export web01@1 - --json
status=0
wherry >stdout 2>stderr || status=$?
expect_equal 2 "$status" "exit status of the command alone"
[[ ! -s stdout ]] && grep -q '^Usage: wherry' stderr || die "no usage: $(cat stdout stderr)"
check_unchanged usage

# ----------------------------------------------------------------- stores

say "stores"
refused 1 "store nosuch: there is no such folder; .*wherry -s nosuch init" wherry -s nosuch disks
refused 1 "store nosuch: " wherry -s nosuch sync source web01
[[ -e /var/lib/wherry ]] ||
	refused 1 'store /var/lib/wherry: .*init., or name another one with -s or \$WHERRY_STORE' env -u WHERRY_STORE wherry disks
refused 1 "store source: not a folder" wherry -s source disks
refused 1 "store directory: not a store" wherry -s directory disks
refused 1 "store directory: not a store" wherry -s directory sync source web01
[[ ! -e nosuch ]] || die "a store was made"
expect_equal "" "$(ls -A directory)" "what is in a folder that is no store"
refused 1 'there is a store already' wherry init
touch directory/file
refused 1 "folder directory: not empty \(file is there\)" wherry -s directory init
refused 1 'source' wherry -s source init
refused 1 'No such file' wherry -s no/such/folder init
refused 2 'store: empty' wherry -s "" disks
deep=$(printf 'd%.0s' {1..200})
mkdir -p "$deep/$deep/$deep"
refused 1 'catalog: the path of the store is [0-9]+ bytes too long for SQLite; give it a shorter one' wherry -s "$deep/$deep/$deep/store" init
rm -r "$deep"
expect_equal file "$(ls -A directory)" "what is in a folder that is no store"
check_unchanged stores

# with_copy: a copy of the store, to be damaged.
with_copy() {
	rm -rf copy
	cp -a "$WHERRY_STORE" copy
}
copy_state() {
	(cd copy && find . -type f ! -name catalog.db-shm ! -size 0 ! -path './locks/*' -exec sha256sum {} + | sort -k 2)
}
# refused_by_all PATTERN: verbs that read and verbs that write.
refused_by_all() {
	copy_state >copy-before
	refused 1 "$1" wherry -s copy disks
	refused 1 "$1" wherry -s copy export web01@1 -
	refused 1 "$1" wherry -s copy sync source web01
	refused 1 "$1" wherry -s copy delete web01@2
	copy_state >copy-after
	check_same copy-before copy-after
}
say "stores of another version, damaged, incomplete"
with_copy
sed -i -E 's/("format": *)[0-9]+/\1999/' copy/wherry.json
refused_by_all 'store copy: format 999 is newer .*use a newer wherry'
with_copy
sqlite3 copy/catalog.db 'PRAGMA user_version = 999'
refused_by_all 'format 999 is newer .*use a newer wherry'
with_copy
echo '{"format": 1' >copy/wherry.json
refused_by_all 'copy/wherry.json: damaged'
with_copy
echo '{"format": 1, "chunk_bytes": 77, "store_id": "x"}' >copy/wherry.json
refused_by_all 'copy/wherry.json: damaged'
with_copy
echo 'This is no database.' >copy/catalog.db
rm -f copy/catalog.db-*
refused_by_all 'catalog.*copy/catalog.db'
with_copy
rm copy/catalog.db*
refused_by_all 'catalog'
[[ ! -e copy/catalog.db ]] || die "an empty catalog was made in the place of one that is lost"
with_copy
rm copy/wherry.json
refused_by_all 'store copy: its wherry.json is missing.*bring it back'
(cd copy && find . -type f -exec sha256sum {} + | sort) >before
expect_error 'copy: .*(lost|missing|description)' wherry -s copy init
(cd copy && find . -type f -exec sha256sum {} + | sort) >after
cmp before after || die "init touched what is left of a store"

mkdir twice
flock twice sleep 3 &
sleep 0.5
refused 1 'folder twice: another process makes a store of it' wherry -s twice init
wait
expect_exit 0 wherry -s twice init

# ---------------------------------------------------- in use, pinned, full

say "a disk that another process has open"
expect_exit 0 wherry set other --limit 200K
random_file busy-source 3M busy
start wherry sync busy-source other --progress=none >busy.out 2>busy.err
busy=$PID
is_open() {
	wherry disks --json | jq -e '.disks[] | select(.name == "other") | .open_by' | grep -q "pid $busy"
}
wait_until 20 is_open
by="wherry sync busy-source other.*\(pid $busy\b.*\)"
refused 1 "disk other: locked by $by" wherry sync source other
refused 1 "disk other: locked by $by" wherry image other
refused 1 "disk other: locked by $by" wherry export other exported
refused 1 "disk other: locked by $by" wherry verify other --source source
refused 1 "disk other: in use by $by" wherry remove other
check_export other@1 source
expect_exit 0 wherry disks
grep -qE "^other .*$by" stdout || die "the list doesn't say who has it open: $(cat stdout)"
kill -INT "$busy"
status=0
finish "$busy" || status=$?
expect_equal 130 "$status" "exit status of the round that was stopped"
store_state >state-before

say "images that are pinned or in use"
refused 1 'web01@1: .*pinned; unpin it first' wherry delete web01@1
refused 1 'web01@1: .*pinned' wherry delete --dry-run web01@1
refused 1 'web01@1: .*pinned' wherry delete web01@2 web01@1
refused 1 'web01@7: ' wherry delete web01@2 web01@7
refused 1 'disk web01: image 1 is pinned' wherry remove web01
refused 1 'disk web01: image 1 is pinned' wherry remove web01 --dry-run
exec 9<>fifo
start wherry export web01@2 fifo --progress=none 2>busy.err
busy=$PID
in_use() {
	wherry images web01 --json | jq -e '.images[] | select(.number == 2) | .in_use_by' | grep -q "pid $busy"
}
wait_until 20 in_use
refused 1 "web01@2: in use by wherry export web01@2.*pid $busy" wherry delete web01@2
kill -TERM "$busy"
finish "$busy" || true
exec 9>&-
check_unchanged pinned

say "standard output that takes nothing, or isn't there"
for command in "disks" "images --json" "rounds" "--help" "help sync" "--version" "verify web01@1 --source source"; do
	status=0
	# shellcheck disable=SC2086
	wherry $command >/dev/full 2>stderr || status=$?
	expect_equal 1 "$status" "exit status of wherry $command"
	grep -q '^wherry: standard output: No space left' stderr || die "wherry $command: $(cat stderr)"
done
status=0
wherry disks >&- 2>stderr || status=$?
expect_equal 1 "$status" "exit status without standard output"
status=0
wherry disks 2>&- >stdout || status=$?
expect_equal 0 "$status" "exit status without standard error"
check_unchanged "standard output"

say "targets"
refused 1 'directory: is a directory' wherry export web01@1 directory
refused 1 'lies inside the store' wherry export web01@1 "$WHERRY_STORE/exported"
refused 1 'lies inside the store' wherry export web01@1 "$WHERRY_STORE/catalog.db"
refused 1 'lies inside the store' wherry export web01@1 link-into-store
refused 1 'no/such' wherry export web01@1 no/such/folder
refused 1 'source/x' wherry export web01@1 source/x
refused 2 'TARGET: empty' wherry export web01@1 ""
check_unchanged targets

# ------------------------------------------------------- what needs root

((EUID == 0)) || skip "all but what needs root has passed"

say "users who may not"
requires setpriv
chmod 755 "$WORK"
mkdir program
cp "$WHERRY" program/wherry # where it was built may be closed to others
nobody() {
	setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}
chmod 600 source
refused 1 "store .*[Pp]ermission denied; run as root, or as the user whose store it is" nobody program/wherry disks
install -d -o 65534 -g 65534 nobodys
expect_exit 0 nobody program/wherry -s nobodys/store init
refused 1 'source: permission denied; run as root' nobody program/wherry -s nobodys/store sync source web01
refused 1 '[Pp]ermission denied' nobody program/wherry -s store-of-nobody init
chmod 644 source
expect_exit 0 nobody program/wherry -s nobodys/store sync source web01
refused 1 'exported: permission denied' nobody program/wherry -s nobodys/store export web01@1 exported
chmod 600 source
refused 1 'source: permission denied' nobody program/wherry -s nobodys/store export web01@1 source
refused 1 'source: permission denied' nobody program/wherry -s nobodys/store verify web01@1 --source source
check_unchanged users

say "a store that can't be written to"
mount_at read-only --bind "$WHERRY_STORE"
mount -o remount,bind,ro read-only
refused 1 'store read-only: .*read-only' wherry -s read-only sync source web01
refused 1 'store read-only: .*read-only' wherry -s read-only image web01
refused 1 'store read-only: .*read-only' wherry -s read-only delete web01@2
refused 1 'store read-only: .*read-only' wherry -s read-only remove web01
refused 1 'store read-only: .*read-only' wherry -s read-only pin web01@2
refused 1 'store read-only: .*read-only' wherry -s read-only unpin web01@1
refused 1 'store read-only: .*read-only' wherry -s read-only set web01 --keep 1
refused 1 'store read-only: .*read-only' wherry -s read-only retain web01 --keep 1
for verb in disks images rounds; do
	expect_exit 0 wherry -s read-only $verb
	grep -q web01 stdout || die "$verb of a store that is read-only"
done
WHERRY_STORE=read-only check_export web01@1 source
expect_exit 0 wherry -s read-only verify web01@2 --source source
expect_exit 0 wherry -s read-only retain other --keep 1 --dry-run
expect_exit 0 wherry -s read-only delete web01@2 --dry-run
expect_exit 0 wherry -s read-only remove other --dry-run
unmount read-only
check_unchanged "read-only"

requires_loop
say "devices"
truncate -s 2M small
attach_loop small
small=$LOOP
refused 1 "$small: is too small: it has 2097152 bytes .* 3145728" wherry export web01@1 "$small"
detach_loop "$small"
truncate -s 16M device
mke2fs -q -F -t ext4 device
cp device device-before
attach_loop device
device=$LOOP
mount_at mnt -o ro "$device"
refused 1 "$device: .*in use.*mounted" wherry export web01@1 "$device"
refused 1 "device: .*in use" wherry export web01@1 device
unmount mnt
check_same device-before "$device"
mknod unattached b 7 254
refused 1 'unattached: ' wherry sync unattached new
refused 1 'unattached: ' wherry export web01@1 unattached
detach_loop "$device"
check_unchanged devices
