#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sources that can't be read in places. By default that ends the round and changes no image; with --on-read-error zero
# it is narrowed down to the sectors, which are zero and listed. What fails only once leaves no trace.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires nbdkit jq openssl cmp
requires_nbdkit_plugin eval
requires_nbdkit_plugin file
requires_nbdkit_filter error

MIB=$((1024 * 1024))
SIZE=$((24 * MIB + 1536))

# serve: a server of source.img, which fails with EIO wherever a read touches a range of `bad` ("FIRST END" a line), and
# the first time in each range of `weak`. In awk, for a shell's arithmetic would be as slow as starting it.
: >bad
: >weak
serve() {
	rm -rf tried
	mkdir tried
	SOCKET=disk start_nbdkit eval \
		get_size="echo $(size_of source.img)" \
		pread="
			while read -r first end; do
				if [ \$4 -lt \$end ] && [ \$((\$4 + \$3)) -gt \$first ]; then
					echo 'EIO medium error' >&2
					exit 1
				fi
			done <$WORK/bad
			while read -r first end; do
				if [ \$4 -lt \$end ] && [ \$((\$4 + \$3)) -gt \$first ] &&
					mkdir $WORK/tried/\$first 2>/dev/null; then
					echo 'EIO at the first try' >&2
					exit 1
				fi
			done <$WORK/weak
			dd if=$WORK/source.img iflag=skip_bytes,count_bytes,fullblock bs=1M skip=\$4 count=\$3 status=none"
}

# expected_image: source.img with zeros for what is bad, in expected.img.
expected_image() {
	local first end
	cp source.img expected.img
	while read -r first end; do
		zero_range expected.img "$first" $((end - first))
	done <bad
}
# The bad ranges as JSON has them. They don't touch each other in this test.
expected_errors() {
	sort -n bad | jq -Rsc 'split("\n") | map(select(. != "") | split(" ") | map(tonumber)
		| {offset: .[0], length: (.[1] - .[0])})'
}
# check_errors DISK IMAGE: the report's list and the image's.
check_errors() {
	expect_equal "$(expected_errors)" "$(json_get '.read_errors | map({offset, length}) | tojson')" "read_errors of the report"
	expect_equal "$(expected_errors)" "$(wherry images "$1" --json |
		jq -c ".images[] | select(.number == $2) | .details.read_errors | map({offset, length})")" "read_errors of $1@$2"
}
# expect_bad OFFSET SOURCE DISK: a round that ends there; OFFSET is a pattern, because several requests are in flight and a server
# answers them in any order. (One that goes on from where the last one ended, says so before.)
expect_bad() {
	expect_exit 1 wherry sync "$2" "$3" --json --progress=none
	[[ ! -s stdout ]] || die "nothing is expected on standard output: $(cat stdout)"
	tail -n 1 stderr | grep -qE "^wherry: .*at offset ($1): .*--on-read-error zero" ||
		die "where, and what can be done: $(cat stderr)"
}
images_of() {
	wherry images "$1" --json | jq -c '[.images[].number]'
}

make_store
random_file source.img $SIZE source
cp source.img first.img
serve
sync_disk "$NBD_URI" web01
check_export web01@1 source.img
expect_equal '[]' "$(json_get '.read_errors | tojson')"

say "by default a bad sector ends the round: offset, status 1, nothing imaged"
random_range source.img 2M 1M second
at=$((9 * MIB + 7 * 512))
echo "$at $((at + 512))" >bad
expect_bad $at "$NBD_URI" web01
grep -q " 512 bytes" stderr || die "it is one sector: $(cat stderr)"
expect_equal '[1]' "$(images_of web01)" "no image was made"
check_export web01@1 first.img
expect_bad $at "$NBD_URI" web01
check_export web01@1 first.img

say "zeros for it, and listed"
sync_disk "$NBD_URI" web01 --on-read-error zero
expected_image
check_export web01@2 expected.img
check_errors web01 2
check_export web01@1 first.img
expect_exit 0 wherry sync "$NBD_URI" web01 --on-read-error zero --progress=none
grep -q "$at" stdout || die "a person is told as well: $(cat stdout)"
expect_exit 0 wherry images web01

say "when it can be read again, it is"
: >bad
sync_disk "$NBD_URI" web01 --on-read-error zero
check_errors web01 4
check_export web01@4 source.img

say "sectors here and there, at borders of chunks, at the end; a dead region"
{
	echo "0 512"
	echo "$((65536 - 512)) $((65536 + 512))"
	echo "$((3 * MIB + 512)) $((3 * MIB + 1024))"
	echo "$((3 * MIB + 2048)) $((3 * MIB + 3072))"
	echo "$((5 * MIB)) $((5 * MIB + 20 * 512))"
	echo "$((12 * MIB - 1024)) $((12 * MIB + 8192 + 512))"
	echo "$((SIZE - 512)) $SIZE"
} >bad
sync_disk "$NBD_URI" web01 --on-read-error zero
expected_image
check_export web01@5 expected.img
check_errors web01 5

say "and into a disk that had nothing before"
sync_disk "$NBD_URI" web02 --on-read-error zero
check_export web02@1 expected.img
check_errors web02 1
sync_disk "$NBD_URI" web02 --on-read-error zero
check_errors web02 2
expect_equal 0 "$(json_get .changed_bytes)" "zeros again are no change"
expect_bad "$(cut -d' ' -f1 bad | paste -sd'|')|$((12 * MIB))" "$NBD_URI" web02

say "what fails once is tried again, and leaves no errors"
: >bad
for i in 1 2 5 8 13 20; do
	echo "$((i * MIB + 4096)) $((i * MIB + 8192))"
done >weak
stop_process "$NBD_PID"
serve
sync_disk "$NBD_URI" web03
check_export web03@1 source.img
expect_equal '[]' "$(json_get '.read_errors | tojson')"
expect_equal 6 "$(find tried -mindepth 1 -type d | wc -l)" "each has failed once"
rm -rf tried/*
sync_disk "$NBD_URI" web03 --on-read-error zero
check_export web03@2 source.img
expect_equal '[]' "$(json_get '.read_errors | tojson')"
: >weak

say "errors by chance: nbdkit's error filter"
stop_process "$NBD_PID"
start_nbdkit --filter=error file source.img error-pread=EIO error-pread-rate=10%
expect_exit 0 timeout 60 wherry sync "$NBD_URI" chance --on-read-error zero --json --progress=none
cp source.img expected.img
json_get '.read_errors[] | "\(.offset) \(.length)"' >chance
while read -r first length; do
	zero_range expected.img "$first" "$length"
done <chance
say "  $(wc -l <chance) ranges left as bad"
check_export chance@1 expected.img
stop_process "$NBD_PID"

say "all is bad while a file is there: found at once, and over when it is gone"
SOCKET=switch start_nbdkit --filter=error file source.img error-pread=EIO error-pread-rate=100% error-pread-file="$WORK/broken"
sync_disk "$NBD_URI" switch
: >broken
expect_bad "[0-9]+" "$NBD_URI" switch
rm broken
sync_disk "$NBD_URI" switch
check_export switch@latest source.img
stop_process "$NBD_PID"

say "a round that is stopped and goes on keeps the list"
random_file source.img $SIZE stopped # content that the store has already, no limit would slow down
{
	echo "$((MIB)) $((MIB + 1024))"
	echo "$((4 * MIB + 512)) $((4 * MIB + 1024))"
	echo "$((23 * MIB)) $((23 * MIB + 512))"
} >bad
serve
start wherry sync "$NBD_URI" stopped --on-read-error zero --limit 3M --level 0 --progress=json >stopped.out 2>stopped.err
wait_until 60 grep -qE '"done_bytes": *([5-9][0-9]{6}|[0-9]{8})' stopped.err
kill -INT "$PID"
status=0
finish "$PID" || status=$?
expect_equal 130 $status "status of a round that was stopped"
expected_image
echo "$((23 * MIB)) $((23 * MIB + 512))" >bad # what was read before is not asked for again
cp bad bad-later
{
	echo "$((MIB)) $((MIB + 1024))"
	echo "$((4 * MIB + 512)) $((4 * MIB + 1024))"
	cat bad-later
} >bad-all
sync_disk "$NBD_URI" stopped --on-read-error zero
expect_equal true "$(json_get .resumed)"
cp bad-all bad
check_export stopped@1 expected.img
check_errors stopped 1
stop_process "$NBD_PID"

if ! command -v nbdfuse >/dev/null || [[ ! -c /dev/fuse ]]; then
	[[ ${WHERRY_TEST_NO_SKIP:-} != 1 ]] || die "needs nbdfuse and /dev/fuse"
	say "without FUSE no file fails; left out"
	exit 0
fi

say "a file with bad sectors"
{
	echo "$((2 * MIB)) $((2 * MIB + 4096))"
	echo "$((17 * MIB + 8192)) $((17 * MIB + 16384))"
} >bad
serve
mkdir fuse
: >fuse/disk
fuse_end() {
	fusermount3 -u "$WORK/fuse/disk" 2>/dev/null || umount --lazy "$WORK/fuse/disk" 2>/dev/null || true
}
at_exit fuse_end
start nbdfuse --readonly --pidfile "$WORK/nbdfuse.pid" fuse/disk "$NBD_URI" >nbdfuse.log 2>&1
fuse_pid=$PID
wait_until 10 test -s nbdfuse.pid
expect_bad "$((2 * MIB))|$((17 * MIB + 8192))" fuse/disk file
sync_disk fuse/disk file --on-read-error zero
expected_image
check_export file@1 expected.img
check_errors file 1
expect_equal '[1]' "$(images_of file)"
fuse_end
finish "$fuse_pid" || true
