#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# df: its numbers are those of the files, of the content, and of what removing and deleting frees.
# timeout: 400
# asan: yes
. "$(dirname "$0")/functions.sh"
requires openssl jq

MIB=$((1024 * 1024))

# usage: sets one variable for each number of `df --json`.
usage() {
	expect_exit 0 wherry df --json
	[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
	eval "$(json_get 'to_entries[] | select(.value | type == "number") | "\(.key)=\(.value)"')"
	find "$WHERRY_STORE/segments" -name '*.seg' -printf '%s\n' >lengths
	expect_equal "$(awk '{ sum += $1 } END { print sum + 0 }' lengths)" "$segment_bytes" "bytes of segments"
	cat "$WHERRY_STORE"/catalog.db{,-wal} >catalog 2>/dev/null || true
	expect_equal "$(size_of catalog)" "$catalog_bytes" "bytes of the catalog"
	expect_number "live_bytes + dead_bytes <= segment_bytes" "what is alive and dead is in the segments"
}
# own DISK: what removing it would free, as the last df has said.
own() {
	json_get ".disks[] | select(.name == \"$1\") | .unique_bytes"
}

say "an empty store"
make_store
usage
expect_equal "0 0 0 0" "$segment_bytes $live_bytes $dead_bytes $plain_bytes"
expect_equal '[]' "$(json_get '.disks | tojson')"
expect_exit 0 wherry df
expect_equal 2 "$(wc -l <stdout)" "lines of text"

say "one disk: incompressible content takes what it is"
SIZE=$((8 * MIB + 1000))
random_file source $SIZE one
zero_range source 2M 1M
sync_disk source web01
stored=$(json_get .stored_bytes)
usage
expect_equal "$((SIZE - MIB))" "$plain_bytes" "content"
expect_number "live_bytes >= stored && live_bytes < stored + 65536" "what is alive is what was stored, and a log"
expect_number "dead_bytes < 16384" "nothing is dead but what a sync fills up"
expect_equal "web01 $SIZE 1" "$(json_get '.disks[0] | "\(.name) \(.size_bytes) \(.images)"')"
expect_equal "$live_bytes" "$(own web01)" "all there is, is its own"

say "a copy of it under another name takes next to nothing, and takes what is shared out of either's own"
sync_disk source web02
before=$live_bytes
usage
expect_equal "$((SIZE - MIB))" "$plain_bytes"
expect_number "live_bytes - before < 16384"
expect_number "$(own web01) < 65536 && $(own web02) < 65536"

say "compressible content is measured before it was compressed"
(set +o pipefail && yes 'the quick brown fox' | head -c $((4 * MIB)) >text)
sync_disk text web03
usage
# All its chunks but the first few differ, since the line isn't a divisor of a chunk.
distinct=$(split -b 65536 --filter='sha256sum' text | sort -u | wc -l)
expect_equal "$((SIZE - MIB + distinct * 65536))" "$plain_bytes"

say "what images and disks free is what df says then"
cp source original
random_range source 5M 1M two
sync_disk source web01
usage
before=$live_bytes dead_before=$dead_bytes
expect_exit 0 wherry delete web01@1 --json
freed=$(json_get .freed_bytes)
usage
expect_number "live_bytes <= before - freed + 1024 && live_bytes >= before - freed" "deleting frees what it says"
expect_number "dead_bytes >= dead_before + freed && dead_bytes <= dead_before + freed + 8192"
before=$live_bytes
freed=$(own web01)
expect_number "freed > $MIB && freed < 2 * $MIB" "a MiB of it is its own"
expect_exit 0 wherry remove web01
usage
expect_number "live_bytes <= before - freed + 1024 && live_bytes >= before - freed" "removing frees what it said"
freed=$(own web02)
expect_number "freed > 6 * $MIB" "what was shared is now the other one's own"
expect_exit 0 wherry remove web02
expect_exit 0 wherry remove web03
usage
expect_equal 0 "$plain_bytes"
expect_number "live_bytes < 8192" "three last words of logs"
expect_number "dead_bytes > 8 * $MIB"

say "for people"
make_store
sync_disk original web01
sync_disk text a-disk-with-a-name-that-is-as-long-as-a-name-may-be-0123456789a
expect_exit 0 wherry df
head -n 2 stdout | grep -qE '^ *SEGMENTS +LIVE +DEAD +CATALOG +CONTENT$' || die "no heading: $(cat stdout)"
expect_equal "2" "$(grep -cE '^(web01|a-disk.*) +[0-9.]+ [KM]iB +1 +[0-9.]+ [KM]iB$' stdout)" "lines of disks"
grep -q '[[:blank:]]$' stdout && die "a line ends in blanks"

say "next to others' work, and where nothing can be changed"
start wherry sync source web09 --limit 1M --progress=none >round.out 2>&1
usage_while_running() {
	wherry df --json >while 2>while.err
}
for _ in 1 2 3 4 5; do
	usage_while_running || die "next to a round: $(cat while.err)"
	sleep 0.1
done
stop_process "$PID"
expect_error "there is no such folder" wherry -s nosuch df
expect_error "unexpected|takes no|too many" wherry df web01
((EUID == 0)) || skip "all but what needs root has passed"
mkdir read-only
mount_at read-only --bind "$WHERRY_STORE"
mount -o remount,bind,ro "$WORK/read-only"
expect_exit 0 wherry df --json
mv stdout writable
WHERRY_STORE=read-only expect_exit 0 wherry df --json
check_same writable stdout
unmount read-only
