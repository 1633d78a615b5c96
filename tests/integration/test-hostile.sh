#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A store is data, and may come from elsewhere: whatever its files say, each verb ends by itself with status 0, 1 or 3,
# says what is wrong, stays small, hands out no wrong content, and writes nowhere but into the store.
# WHERRY_TEST_THOROUGH=1 runs each verb on each forgery; otherwise a few verbs on each, of the catalog's rows a sample.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 cmp

FORGE=$WHERRY_TEST_TOOLS/forge
TEMPLATE=$WORK/template
OUTSIDE=$WORK/outside
THOROUGH=${WHERRY_TEST_THOROUGH:-}
ZEROS=$(printf '0%.0s' {1..64})
UUID=00112233445566778899aabbccddeeff
NAMES="segments/01/00000001.seg" # the one segment there is
runs=0
SHARE=1 # percent of the forgeries that are tried when it is not thorough
CONTENT=stored

# ------------------------------------------------------- what is tried

verbs=(disks images rounds df export_first export_newest export_live salvage verify check check_deep
	repair rebuild rebuild_dry gc sync sync_new delete retain remove image pin set)

# The command line of a verb, in COMMAND.
command_of() {
	case $1 in
	export_first) COMMAND=(export web01@1 - --progress=none) ;;
	export_newest) COMMAND=(export web01@latest - --progress=none) ;;
	export_live) COMMAND=(export web01 - --progress=none) ;;
	salvage) COMMAND=(export --salvage web01@1 "$WORK/salvaged" --progress=none) ;;
	verify) COMMAND=(verify web01@1 --source "$WORK/first" --progress=none) ;;
	check) COMMAND=(check --progress=none) ;;
	check_deep) COMMAND=(check --deep --progress=none) ;;
	repair) COMMAND=(check --repair --progress=none) ;;
	rebuild) COMMAND=(rebuild --progress=none) ;;
	rebuild_dry) COMMAND=(rebuild --dry-run --progress=none) ;;
	gc) COMMAND=(gc --progress=none) ;;
	sync) COMMAND=(sync "$WORK/changed" web01 --progress=none) ;;
	sync_new) COMMAND=(sync "$WORK/changed" web09 --progress=none) ;;
	delete) COMMAND=(delete web01@1) ;;
	retain) COMMAND=(retain web01 --keep 1) ;;
	remove) COMMAND=(remove web02) ;;
	image) COMMAND=(image web01) ;;
	pin) COMMAND=(pin web01@1) ;;
	set) COMMAND=(set web01 --keep 3) ;;
	*) COMMAND=("$1") ;;
	esac
}

# A memory bound that an honest store of this size keeps easily. The sanitizers' own maps are larger than any.
if nm -D --defined-only "$WHERRY" 2>/dev/null | grep -q __asan_init || ldd "$WHERRY" | grep -qE 'lib[at]san'; then
	bound=unlimited
else
	bound=$((640 * 1024))
fi

# bounded ARGUMENT…: the command, with what is bounded for it. One arena and small stacks, or address space would be
# a matter of how many threads there are.
bounded() {
	(
		ulimit -v "$bound"
		ulimit -s 1024
		ulimit -f $((256 * 1024)) # nothing that it writes has a reason to be larger than the reserve
		MALLOC_ARENA_MAX=1 exec timeout -k 5 60 wherry "$@"
	)
}

complain() {
	sed 's/^/    out: /' "$WORK/stdout" | tail -c 2000 | cat -v >&2
	sed 's/^/    err: /' "$WORK/stderr" | tail -c 2000 | cat -v >&2
	die "$CASE: wherry ${COMMAND[*]}: $*"
}

# Content that came out must be content that went in.
expect_content() {
	case $1 in
	export_first) cmp -s "$2" first ;;
	export_newest | export_live) cmp -s "$2" second ;;
	esac || complain "status 0, and other content than was stored"
}

# try VERB: sets STATUS.
try() {
	runs=$((runs + 1))
	command_of "$1"
	STATUS=0
	rm -f salvaged
	bounded "${COMMAND[@]}" >stdout 2>stderr </dev/null || STATUS=$?
	case $STATUS in
	0) [[ $1 != export_* || $CONTENT == any ]] || expect_content "$1" stdout ;;
	1)
		grep -q '^wherry: ' stderr || complain "it doesn't say what is wrong"
		! grep -qiE 'cannot allocate|out of memory' stderr || complain "too much memory"
		[[ $CONTENT == any ]] || ! grep -qi 'file too large' stderr || complain "too large a file"
		;;
	3) [[ -s stdout || -s stderr ]] || complain "it doesn't say what is wrong" ;;
	*) complain "status $STATUS" ;;
	esac
	# What stands in a store reaches terminals.
	[[ $1 == export_* ]] || ! grep -qaP '[\x00-\x08\x0b-\x1f\x7f]' stdout stderr || complain "control characters"
}

changes_store() {
	case $1 in
	repair | rebuild | gc | sync | sync_new | delete | retain | remove | image | pin | set) return 0 ;;
	esac
	return 1
}

fresh_copy() {
	rm -rf "$WHERRY_STORE"
	cp -r "$TEMPLATE" "$WHERRY_STORE"
}

outside_state() {
	find "$OUTSIDE" -mindepth 1 -printf '%P %y %s %T@\n' | sort
	find "$OUTSIDE" -type f -exec cat {} +
}

# follow_up VERB: what is tried on the store that it has changed.
follow_up() {
	case $1 in
	rebuild) echo images check_deep export_first ${THOROUGH:+disks sync delete} ;;
	*) echo export_first ;;
	esac
}

# sampled PERCENT: all of them in a thorough run.
sampled() {
	[[ $THOROUGH == 1 ]] && return
	random_number 100
	((NUMBER < $1))
}

# hostile NAME EXPECTED COMMAND…: what becomes of the store after COMMAND has forged it (in a copy, as $WHERRY_STORE).
#   found    a deep check says so
#   open     nothing of it can be opened: each verb fails
#   catalog  the same, but for a rebuild
#   rebuild  it shows only in a rebuild
#   any      it may be harmless
# CONTENT=any before it: who forges a record together with its digest's place can have any content handed out.
hostile() {
	local verb after tries changed=0
	CASE=$1
	local expected=$2
	shift 2
	sampled "$SHARE" || return 0
	fresh_copy
	"$@" >/dev/null || die "$CASE: the forgery failed"
	if [[ $THOROUGH == 1 && $expected == rebuild ]]; then
		tries=(rebuild_dry rebuild)
	elif [[ $THOROUGH == 1 ]]; then
		tries=("${verbs[@]}")
	else
		tries=()
		case $expected in
		rebuild) tries=(rebuild) ;;
		found) tries=(check_deep export_first) ;;
		esac
		random_number ${#verbs[@]}
		tries+=("${verbs[NUMBER]}")
		[[ $expected == found || $expected == rebuild ]] || {
			random_number ${#verbs[@]}
			tries+=("${verbs[NUMBER]}")
		}
	fi
	for verb in "${tries[@]}"; do
		if ((changed)); then
			fresh_copy
			"$@" >/dev/null
			changed=0
		fi
		try "$verb"
		[[ $expected != open || $STATUS == 1 ]] || complain "status $STATUS"
		[[ $expected != catalog || $STATUS == 1 || $verb == rebuild* ]] || complain "status $STATUS"
		[[ $expected != found || $verb != check_deep || $STATUS != 0 ]] || complain "nothing was found"
		changes_store "$verb" || continue
		changed=1
		# Whatever it made of the store must be as good.
		for after in $(follow_up "$verb"); do
			try "$after"
		done
	done
	outside_state >outside.now
	cmp -s outside.before outside.now || complain "it wrote outside of the store: $(diff -a outside.before outside.now)"
	CONTENT=stored
}

# ------------------------------------------------------------- the store

say "a small store"
make_store --chunk-size 16K
{
	(set +o pipefail && yes 'the quick brown fox jumps over the lazy dog' | head -c 32768)
	(set +o pipefail && seq 1 20000 | head -c 65536)
	random_stream 49152 "$WHERRY_TEST_SEED-a"
	head -c 32768 /dev/zero
	(set +o pipefail && seq 1 3000 | head -c 10000)
} >first
cp first second
random_range second 100000 20000 "$WHERRY_TEST_SEED-b"
cp second changed
random_range changed 20000 40000 "$WHERRY_TEST_SEED-c"
random_file other 40000 "$WHERRY_TEST_SEED-d"
sync_disk first web01 --label "a label"
sync_disk second web01
sync_disk other web02
expect_exit 0 wherry set web01 --level 3
mv "$WHERRY_STORE" "$TEMPLATE"
rm "$TEMPLATE/reserve" # 40 MiB in each copy
sqlite3 "$TEMPLATE/catalog.db" 'PRAGMA wal_checkpoint(TRUNCATE)' >/dev/null
rm -f "$TEMPLATE"/catalog.db-*
SEGMENT=$WHERRY_STORE/$NAMES
"$FORGE" list "$TEMPLATE/$NAMES" >records
read -r ZSTD_AT _ _ ZSTD_STORED _ < <(awk '$2 == 1 && $3 == 1 && $4 > 4200' records)
read -r PLAIN_AT _ < <(awk '$2 == 1 && $3 == 0 && $5 == 16384' records)
read -r OTHER_AT _ < <(awk '$2 == 1 && $3 == 0 && $5 == 16384' records | sed -n 2p)
read -r LOG_AT _ < <(awk '$2 == 2 && $6 == 2' records)

mkdir -p "$OUTSIDE/folder"
: >"$OUTSIDE/empty"
head -c 4096 /dev/zero >"$OUTSIDE/block"
echo "somebody else's" >"$OUTSIDE/text"
outside_state >outside.before

CASE=honest
for verb in "${verbs[@]}"; do
	sampled 15 || continue
	fresh_copy
	try "$verb"
	expect_number "STATUS == 0" "$verb on an honest store: $(cat stderr)"
done

# --------------------------------------------------------------- records

say "records with right checksums that lie"
put() {
	"$FORGE" put "$SEGMENT" "$@"
}
for field in stored=0 stored=1 stored=$((ZSTD_STORED - 8)) stored=$((ZSTD_STORED + 1)) stored=1052673 stored=2147483648 \
	stored=4294967295 plain=0 plain=1 plain=16383 plain=16385 plain=1048576 plain=1048577 plain=2147483648 \
	plain=4294967295 codec=0 codec=2 codec=255 cipher=1 reserved=1 type=0 type=2 type=3; do
	hostile "zstd, $field" found put "$ZSTD_AT" "$field"
done
for field in stored=16383 stored=16385 stored=4294967295 plain=1 plain=16385 plain=4294967295 codec=1 type=2; do
	hostile "plain, $field" found put "$PLAIN_AT" "$field"
done
for field in stored=1 plain=4294967295 type=1 codec=1 digest="$ZEROS" payload=z2; do
	hostile "log, $field" found put "$LOG_AT" "$field"
done
for both in 1 16383 32768 1048576 4294967295; do
	hostile "plain, both $both" found put "$PLAIN_AT" stored=$both plain=$both
done
digest_at() {
	dd if="$TEMPLATE/$NAMES" bs=1 skip=$(($1 + 16)) count=32 status=none | od -An -v -tx1 | tr -d ' \n'
}
dd if="$TEMPLATE/$NAMES" bs=1 skip=$((OTHER_AT + 64)) count=16384 status=none >other_payload
hostile "another chunk's record" found put "$PLAIN_AT" "payload=f$PWD/other_payload" digest="$(digest_at "$OTHER_AT")"
CONTENT=any hostile "another chunk's content" found put "$PLAIN_AT" "payload=f$PWD/other_payload"
hostile "another's digest" found put "$PLAIN_AT" digest="$(digest_at "$OTHER_AT")"

say "zstd frames"
# frame NAME HEAD-BYTES HEAD: padded to the length that the record has
frame() {
	hostile "zstd frame: $1" found put "$ZSTD_AT" "payload=$3,z$((ZSTD_STORED - $2))"
}
for size in 1152921504606846976 9223372036854775808 18446744073709551615 4294967296 16385 16383 0; do
	frame "content of $size bytes" 13 "x28b52ffde0,q$size"
	frame "content of $size bytes, a window" 14 "x28b52ffdc000,q$size"
done
frame "largest window" 10 x28b52ffd80ff00400000
frame "window of 2 MiB" 10 x28b52ffd805800400000
frame "no content size" 6 x28b52ffd0040
frame "dictionary" 8 x28b52ffd6101003f
frame "reserved bit" 7 x28b52ffd68003f
frame "skippable" 8 "x502a4d18$(printf '%02x%02x0000' $(((ZSTD_STORED - 8) % 256)) $(((ZSTD_STORED - 8) / 256)))"
frame "skippable, longer than it is" 8 x502a4d18ffffffff
frame "of another format" 5 x27b52ffd60
frame "no frame" 0 ""
frame "reserved kind of block" 10 x28b52ffd60003f070002
frame "less content than it says" 11 x28b52ffd60003f23030041
blocks=900
bomb=x28b52ffd60003f$(printf '02000241%.0s' $(seq $blocks)) # each is 16 KiB of one byte
rest=$((ZSTD_STORED - 7 - 4 * blocks - 3))
last=$((rest * 8 + 1))
hostile "zstd frame: a bomb" found put "$ZSTD_AT" \
	"payload=$bomb,x$(printf '%02x%02x%02x' $((last % 256)) $((last / 256 % 256)) $((last / 65536))),z$rest"
hostile "zstd frame: a bomb that says so" found put "$ZSTD_AT" plain=1048576 \
	"payload=x28b52ffda000001000,$(printf 'x02001041,%.0s' {1..7})x03001041,z$((ZSTD_STORED - 41))"
hostile "an entry of a log that is a bomb" rebuild "$FORGE" append "$SEGMENT" type=2 codec=1 plain=1048576 digest="$ZEROS" \
	"payload=x28b52ffda000001000,$(printf 'x02001041,%.0s' {1..7})x03001041"

# ------------------------------------------------------------------ logs

say "entries of logs that say what can't be"
DISK="1:sweb05,v65536,v512,v16384"
CHUNK="x$(digest_at "$PLAIN_AT")"
# log_of NAME ENTRY…: a disk of its own, behind all that is there
log_of() {
	hostile "log: $1" rebuild "$FORGE" log "$SEGMENT" $UUID "$ZEROS" 1 1700000000 "${@:2}" >/dev/null
}
# log_on NAME ENTRY…: more entries of web01
read -r web01_uuid web01_head web01_sequence < <(sqlite3 -separator ' ' "$TEMPLATE/catalog.db" \
	"SELECT lower(hex(uuid)), lower(hex(log_head)), log_sequence FROM disk WHERE name = 'web01'")
log_on() {
	hostile "log of web01: $1" rebuild "$FORGE" log "$SEGMENT" "$web01_uuid" "$web01_head" $((web01_sequence + 1)) \
		1900000000 "${@:2}" >/dev/null
}
long=$(printf 'a%.0s' {1..64})
for name in s../../etc/x sa/b s. s.. s s$long sWEB sa\ b s-a x04611b5b41 x03ff6161 x03610062 x03610a62 v18446744073709551615 \
	v4294967295 sweb01; do
	log_of "name $name" "1:$name,v65536,v512,v16384"
done
for size in 0 1152921504606846977 9223372036854775807 9223372036854775808 18446744073709551615; do
	log_of "size $size" "1:sweb05,v$size,v512,v16384"
	log_of "resize to $size" "$DISK" "3:v$size"
	log_on "resize to $size" "3:v$size"
done
for sector in 0 1 513 131072 4294967296 18446744073709551615; do
	log_of "sector $sector" "1:sweb05,v65536,v$sector,v16384"
done
for chunk in 0 1 4096 65536 1099511627776 18446744073709551615; do
	log_of "chunk size $chunk" "1:sweb05,v65536,v512,v$chunk"
done
for extents in "v1,v4294967295" "v1,v9223372036854775807" "v1,v4097" "v1,v1,v0,v1152921504606846976,x02" \
	"v1,v1,v0,v0,x02" "v1,v1,v0,v1,x03" "v1,v1,v0,v2,x02,$CHUNK" "v1,v1,v1099511627776,v1,x02,$CHUNK" \
	"v1,v1,v18446744073709551615,v1,x02,$CHUNK" "v1,v1,v4,v1,x02,$CHUNK" "v0,v1,v0,v1,x02,$CHUNK" \
	"v4294967295,v1,v0,v1,x02,$CHUNK" "v4294967296,v1,v0,v1,x02,$CHUNK" "v7,v1,v0,v1,x02,$CHUNK" \
	"v1,v2,v0,v1,x02,$CHUNK,v18446744073709551615,v1,x02,$CHUNK" "v1,v1,v0,v1,x02,x$ZEROS" \
	"v1,v1,v0,v562949953421311,x01" "v1,v1,v0,v562949953421311,x00" "v1,v1,v0,v562949953421312,x01" \
	"v1,v1,v0,x808080808080808080808001,x01" "v1,v1,v0,x8100,x01"; do
	log_of "extents $extents" "$DISK" "2:$extents"
	log_on "extents $extents" "2:$extents"
done
log_of "zeros all over the largest disk" "1:sweb05,v1152921504606846976,v512,v16384" "2:v1,v1,v0,v70368744177664,x01"
log_of "nothing all over the largest disk" "1:sweb05,v1152921504606846976,v512,v16384" "2:v1,v1,v0,v70368744177664,x00"
log_of "the largest disk shrinks" "1:sweb05,v1152921504606846976,v512,v16384" "2:v1,v1,v70368744177663,v1,x02,$CHUNK" \
	"3:v16384"
for image in "v0,v1,v65536,v0,s,x00,v0,s" "v4294967296,v1,v65536,v0,s,x00,v0,s" "v4294967295,v1,v65536,v0,s,x00,v0,s" \
	"v1,v4294967295,v65536,v0,s,x00,v0,s" "v1,v0,v65536,v0,s,x00,v0,s" "v1,v1,v9223372036854775807,v0,s,x00,v0,s" \
	"v1,v1,v1152921504606846976,v0,s,x00,v0,s" "v1,v1,v65536,v9223372036854775807,s,x00,v0,s" \
	"v1,v1,v65536,v0,v256,z256,x00,v0,s" "v1,v1,v65536,v0,x041b5b324a,x00,v0,s" "v1,v1,v65536,v0,x03fffefd,x00,v0,s" \
	"v1,v1,v65536,v0,s,x03,v0,s" "v1,v1,v65536,v0,s,x00,v4294967296,s" "v1,v1,v65536,v0,s,x00,v4294967295,s" \
	"v1,v1,v65536,v0,s,x00,v0,v65537" "v1,v1,v65536,v0,s,x00,v0,s{" "v1,v1,v65536,v0,s,x00,v0,s[[[[[[[[" \
	"v1,v1,v65536,v0,s,x00,v0,x041b5b324a" 's{"read_errors":7}' "v1,v1,v65536,v0,s,x00,v0,s{\"read_errors\":7}"; do
	log_of "image $image" "$DISK" "4:$image"
	log_on "image $image" "4:$image"
done
log_of "an image twice" "$DISK" "4:v1,v1,v65536,v0,s,x00,v0,s" "4:v1,v2,v65536,v0,s,x00,v0,s"
log_of "images backwards" "$DISK" "4:v9,v9,v65536,v0,s,x00,v0,s" "4:v1,v1,v65536,v0,s,x00,v0,s"
for entry in 5:v0 5:v9 5:v4294967295 6:v1,x02 6:v9,x01 7:v9,slabel 7:v1,v4294967295 8:v9223372036854775808,v0,v0,s \
	8:v0,v12,v0,s 8:v0,v99999999999,v0,s 8:v0,v0,v9223372036854775808,s 8:v4294967296,v0,v9223372036854775807,s \
	8:v0,v0,v0,v4097,z4097 8:v0,v0,v0,x041b5b324a 9:x00 0: 10: 255: 1:sweb06,v65536,v512,v16384; do
	log_of "entry $entry" "$DISK" "$entry"
	log_on "entry $entry" "$entry"
done
log_of "entries behind the end of a disk" "$DISK" 9: 3:v65536 "4:v1,v1,v65536,v0,s,x00,v0,s"
for sequence in 0 2 9223372036854775807 18446744073709551615; do
	hostile "log: it begins with $sequence" rebuild "$FORGE" log "$SEGMENT" $UUID "$ZEROS" $sequence 1700000000 "$DISK"
done
for seconds in 9223372036854775807 9223372036854775808 67768036191676800; do
	hostile "log: time $seconds" rebuild "$FORGE" log "$SEGMENT" $UUID "$ZEROS" 1 $seconds "$DISK" \
		"4:v1,v1,v65536,v0,s,x00,v0,s"
done >/dev/null

# ----------------------------------------------------------- wherry.json

say "wherry.json"
describe() {
	printf '%s' "$1" >"$WHERRY_STORE/wherry.json"
}
honest=$(cat "$TEMPLATE/wherry.json")
for value in 0 1 -65536 4096 8192 65537 1099511627776 9223372036854775808 1e300 '"65536"' null '[65536]' '{}' true; do
	hostile "wherry.json: chunk_bytes $value" open describe "$(sed "s/16384/$value/" <<<"$honest")"
done
hostile "wherry.json: another chunk size" catalog describe "${honest/16384/65536}"
for value in 0 2 -1 99999999999999999999 '"1"' null; do
	hostile "wherry.json: format $value" open describe "$(sed "s/\"format\": 1/\"format\": $value/" <<<"$honest")"
done
for value in '""' 7 '"../../../../../../../../../../etc"' '"zz112233445566778899aabbccddeeff"'; do
	hostile "wherry.json: store_id $value" open describe "$(sed "s|\"store_id\": \"[^\"]*\"|\"store_id\": $value|" <<<"$honest")"
done
hostile "wherry.json: another's id" found describe \
	"$(sed 's|"store_id": "[^"]*"|"store_id": "00112233445566778899aabbccddeeff"|' <<<"$honest")"
(set +o pipefail && yes '[' | tr -d '\n' | head -c 60000) >deep
hostile "wherry.json: deep" open cp deep "$WHERRY_STORE/wherry.json"
hostile "wherry.json: empty" open describe ""
hostile "wherry.json: no JSON" open describe $'\x1b[2J{'
long_description() {
	(set +o pipefail && yes "$1" | tr -d '\n' | head -c 100M) >"$WHERRY_STORE/wherry.json"
}
hostile "wherry.json: 100 MiB of a list" open long_description '[0],'
sparse_description() {
	truncate -s 100G "$WHERRY_STORE/wherry.json"
}
hostile "wherry.json: 100 GiB of nothing" any sparse_description

# --------------------------------------------------- files that are none

say "links, pipes and folders in place of files"
link() { # TARGET NAME
	rm -rf "${WHERRY_STORE:?}/$2"
	ln -s "$1" "$WHERRY_STORE/$2"
}
sealed_link() { # TARGET NAME: the store goes on in another segment
	sqlite3 "$WHERRY_STORE/catalog.db" 'UPDATE segment SET sealed = 1'
	[[ $2 != */* ]] || mkdir -p "$WHERRY_STORE/${2%/*}"
	link "$@"
}
pipe() {
	rm -rf "${WHERRY_STORE:?}/$1"
	mkfifo "$WHERRY_STORE/$1"
}
folder() {
	rm -rf "${WHERRY_STORE:?}/$1"
	mkdir "$WHERRY_STORE/$1"
}
# moved NAME: it is elsewhere, and a link leads there
moved() {
	rm -rf elsewhere
	mv "$WHERRY_STORE/$1" elsewhere
	ln -s "$WORK/elsewhere" "$WHERRY_STORE/$1"
}
stays() { # NAME EXPECTED VERB…: each of these verbs
	local verb
	CASE=$1
	for verb in "${@:3}"; do
		try "$verb"
		[[ $2 == any || $STATUS == "$2" ]] || complain "status $STATUS"
	done
	outside_state >outside.now
	cmp -s outside.before outside.now || complain "it wrote outside of the store"
}
for name in wherry.json segments locks; do
	hostile "$name is elsewhere" open moved $name
done
hostile "catalog.db is elsewhere" any moved catalog.db
for name in segments/01 $NAMES; do
	hostile "$name is elsewhere" found moved $name
done
for target in empty block text folder none; do
	for name in segments/02/00000002.seg segments/02; do
		sampled 12 || continue
		fresh_copy
		sealed_link "$OUTSIDE/$target" $name
		stays "$name leads to $target" 1 sync
		stays "$name leads to $target" any export_first gc sync_new rebuild sync
	done
	for name in locks/disk-1 locks/image-1-1 locks/clean locks/catalog catalog.db-wal catalog.db-shm catalog.db-journal \
		catalog.db.new catalog.db.old catalog.db.new-wal catalog.db.new-journal reserve reserve.new catalog.db \
		$NAMES segments locks wherry.json; do
		sampled 3 || continue
		fresh_copy
		link "$OUTSIDE/$target" $name
		stays "$name leads to $target" any export_first sync rebuild
		[[ $THOROUGH != 1 ]] || stays "$name leads to $target" any delete gc sync_new repair remove df
	done
done
for name in wherry.json segments locks catalog.db catalog.db-wal $NAMES locks/disk-1 locks/image-1-1 locks/catalog reserve.new \
	catalog.db.new; do
	for forgery in pipe folder; do
		hostile "$name is a $forgery" any $forgery $name
	done
done
# A rollback journal names the file that holds the names of all journals of its transaction. SQLite looks into that,
# and removes it.
super_journal() {
	local name=$OUTSIDE/text sum=0 i
	for ((i = 0; i < ${#name}; i++)); do
		sum=$((sum + $(printf '%d' "'${name:i:1}")))
	done
	{
		printf '\xd9\xd5\x05\xf9\x20\xa1\x63\xd7\0\0\0\0\0\0\0\0\0\0\0\1\0\0\2\0\0\0\x10\0'
		head -c 484 /dev/zero
		printf '\0\4\0\1%s\0\0\0%b\0\0%b\xd9\xd5\x05\xf9\x20\xa1\x63\xd7' "$name" "\\x$(printf '%02x' ${#name})" \
			"$(printf '\\x%02x\\x%02x' $((sum / 256)) $((sum % 256)))"
	} >"$WHERRY_STORE/catalog.db-journal"
}
fresh_copy
super_journal
stays "a journal that names a file elsewhere" 1 disks sync
stays "a journal that names a file elsewhere" any rebuild
# The control: SQLite itself does that.
cp -r "$TEMPLATE" control
WHERRY_STORE=control super_journal
mv "$OUTSIDE/text" "$OUTSIDE/kept"
cp "$OUTSIDE/kept" "$OUTSIDE/text"
sqlite3 control/catalog.db 'SELECT count(*) FROM disk' >stdout 2>&1 || true
[[ ! -e $OUTSIDE/text ]] || say "(this SQLite leaves the file that such a journal names)"
mv "$OUTSIDE/kept" "$OUTSIDE/text"

# ---------------------------------------------------------------- catalog

SHARE=1
say "rows of the catalog that can't be"
# forget_types: nothing keeps values of other types out of the tables
forget_types() {
	sqlite3 "$WHERRY_STORE/catalog.db" "PRAGMA writable_schema = ON;
		UPDATE sqlite_schema SET sql = replace(replace(replace(sql, ' STRICT,', ''), ' STRICT', ''), ' NOT NULL', '');"
}
change() {
	sqlite3 "$WHERRY_STORE/catalog.db" "$1" >/dev/null
}
# untyped SQL: what even a table without types doesn't take is no forgery
untyped() {
	forget_types
	sqlite3 "$WHERRY_STORE/catalog.db" "$1" >/dev/null 2>&1 || true
}
values=(-1 0 1 3 255 65537 2147483648 4294967295 4294967296 1152921504606846976 4611686018427387904 9223372036854775807
	-9223372036854775808)
mapfile -t columns < <(sqlite3 -separator ' ' "$TEMPLATE/catalog.db" "SELECT t.name, c.name FROM sqlite_schema t,
	pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_stat%' AND c.type IN ('INTEGER', '')")
mapfile -t other_columns < <(sqlite3 -separator ' ' "$TEMPLATE/catalog.db" "SELECT t.name, c.name FROM sqlite_schema t,
	pragma_table_info(t.name) c WHERE t.type = 'table' AND c.type IN ('TEXT', 'BLOB') AND t.name NOT LIKE 'sqlite%'")
for column in "${columns[@]}"; do
	read -r table name <<<"$column"
	for value in "${values[@]}"; do
		# a round that may store a few bytes a second does as it was told
		[[ $name != limit_rate && $name != own_limit ]] || ((value <= 0 || value > 1 << 30)) || continue
		CONTENT=any hostile "$table.$name = $value" any change "UPDATE OR IGNORE $table SET $name = $value"
	done
	for value in "'text'" NULL "x'00'" 1e300; do
		CONTENT=any hostile "$table.$name = $value" any untyped "UPDATE OR IGNORE $table SET $name = $value"
	done
done
for column in "${other_columns[@]}"; do
	read -r table name <<<"$column"
	for value in "''" "'../../etc/x'" "'a/b'" "char(27) || '[2J'" "'a' || char(0) || 'b'" "CAST(x'fffefd' AS TEXT)" \
		"printf('%.*c', 100000, 'a')" "printf('%.*c', 3000000, '[')" "'{\"read_errors\":7}'" "'[]'" "'{'"; do
		CONTENT=any hostile "$table.$name = $value" any untyped "UPDATE OR IGNORE $table SET $name = $value"
	done
	for value in "x''" "x'00'" "x'ff'" "zeroblob(3)" "zeroblob(16)" "zeroblob(32)" "randomblob(200)" \
		"x'ffffffffffffffffffffff'" "zeroblob(8000000)" NULL 7; do
		CONTENT=any hostile "$table.$name = $value" any untyped "UPDATE OR IGNORE $table SET $name = $value"
	done
done
for table in map past chunk; do
	for value in "substr(entries, 1, length(entries) - 1)" "entries || x'00'" "x'ff' || substr(entries, 2)" \
		"substr(entries, 2)" "entries || entries" "x'07' || entries" "x'80' || entries"; do
		CONTENT=any hostile "$table.entries = $value" any change "UPDATE $table SET entries = cast($value as blob)"
	done
done

SHARE=1
say "a database of another kind"
change_schema() { # SQL: on the tables themselves
	change "PRAGMA writable_schema = ON; $1"
}
endless="WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n)"
for table in disk image map round log segment digest lost past chunk meta counter; do
	hostile "no table $table" any change "DROP TABLE $table"
	for what in "SELECT * FROM old" "$endless SELECT old.* FROM n, old" "$endless SELECT n.i AS one FROM n"; do
		CONTENT=any hostile "$table is a view: $what" catalog change "ALTER TABLE $table RENAME TO old; CREATE VIEW $table AS $what"
	done
done
hostile "a trigger" catalog change "CREATE TRIGGER t AFTER UPDATE ON disk BEGIN DELETE FROM map; DELETE FROM past; END"
hostile "an index on an expression" catalog change "CREATE INDEX i ON disk(abs(id))"
hostile "a table more" catalog change "CREATE TABLE more(a)"
hostile "a virtual table" catalog change "CREATE VIRTUAL TABLE v USING fts5(a)"
hostile "a check" catalog change_schema "UPDATE sqlite_schema SET sql = replace(sql, 'keep INTEGER NOT NULL', 'keep INTEGER NOT NULL
	CHECK ((WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n) > 0)') WHERE name = 'disk'"
hostile "another's database" catalog change "PRAGMA application_id = 7"
hostile "a newer catalog" catalog change "PRAGMA user_version = 4"
hostile "an older catalog" catalog change "PRAGMA user_version = 0"
hostile "a database without a log" any change "PRAGMA journal_mode = DELETE"
garbage() {
	random_range "$WHERRY_STORE/$1" "$2" "$3" "$WHERRY_TEST_SEED-$CASE"
}
for part in "0 16" "0 100" "100 4000" "4096 4096" "20000 8192" "0 100000"; do
	hostile "garbage in the catalog: $part" any garbage catalog.db $part
done
hostile "garbage for a log" any garbage catalog.db-wal 0 100000
hostile "garbage for an index of the log" any garbage catalog.db-shm 0 32768
empty() {
	: >"$WHERRY_STORE/$1"
}
hostile "an empty catalog" catalog empty catalog.db

say "$runs runs"
