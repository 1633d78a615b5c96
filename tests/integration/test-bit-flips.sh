#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One bit is turned over in each field of each kind of record, in the catalog, in wherry.json; segments are cut short,
# missing, exchanged. A check finds and names it, a rebuild makes nothing up, and what comes out is what went in or
# nothing. WHERRY_TEST_THOROUGH=1 looks at all of them, otherwise at a sample.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 cmp flock

FORGE=$WHERRY_TEST_TOOLS/forge
THOROUGH=${WHERRY_TEST_THOROUGH:-}
flips=0

sampled() { # PERCENT
	[[ $THOROUGH == 1 ]] && return
	random_number 100
	((NUMBER < $1))
}

# ------------------------------------------------------------ the store

say "a store with all kinds of records, in two segments"
make_store --chunk-size 16K
{
	(set +o pipefail && seq 1 10000 | head -c 32768)
	random_stream 49152 "$WHERRY_TEST_SEED-a"
} >kept1
cp kept1 kept2
random_range kept2 40000 100 "$WHERRY_TEST_SEED-b"
cp kept2 kept3
truncate -s 90000 kept3
cp kept3 live
random_file other1 30000 "$WHERRY_TEST_SEED-c"
sync_disk kept1 web01 --label first
sync_disk kept2 web01
sync_disk kept3 web01
expect_exit 0 wherry set web01 --level 3
expect_exit 0 wherry pin web01@1
sync_disk kept1 gone
expect_exit 0 wherry remove gone
sync_disk kept1 web03
sync_disk kept2 web03
expect_exit 0 wherry delete web03@1
ONE=$WHERRY_STORE/segments/01/00000001.seg
TWO=$WHERRY_STORE/segments/02/00000002.seg
expect_exit 0 flock "$ONE" wherry sync other1 web02 --progress=none
rm "$WHERRY_STORE/reserve"
sqlite3 "$WHERRY_STORE/catalog.db" 'PRAGMA wal_checkpoint(TRUNCATE)' >/dev/null
rm -f "$WHERRY_STORE"/catalog.db-*
cp -r "$WHERRY_STORE" pristine

mend() {
	rm -rf "$WHERRY_STORE"
	cp -r pristine "$WHERRY_STORE"
}

content_of() { # REFERENCE: sets CONTENT
	case $1 in
	web01@*) CONTENT=kept${1#*@} ;;
	web01) CONTENT=live ;;
	web02*) CONTENT=other1 ;;
	web03@1) CONTENT=kept1 ;; # whose deletion may be what is lost
	web03*) CONTENT=kept2 ;;
	*) die "nobody made $1" ;;
	esac
}

# right_or_nothing REFERENCE…: each export is what went in, or fails and says why. Sets WRONG to those that are not.
right_or_nothing() {
	local reference status
	WRONG=
	for reference in "$@"; do
		content_of "$reference"
		status=0
		wherry export "$reference" - --progress=none >out 2>err || status=$?
		case $status in
		0) cmp -s out $CONTENT || WRONG+=" $reference" ;;
		1) grep -q '^wherry: ' err || die "$CASE: export of $reference doesn't say why it fails" ;;
		*) die "$CASE: export of $reference: status $status: $(cat err)" ;;
		esac
	done
}
all=(web01@1 web01@2 web01@3 web01 web02@1 web02 web03@2 web03)

# checked [OPTION…]: sets STATUS.
checked() {
	STATUS=0
	wherry check --progress=none "$@" >stdout 2>stderr || STATUS=$?
	((STATUS == 0 || STATUS == 1 || STATUS == 3)) || die "$CASE: check: status $STATUS: $(cat stderr)"
}

# offered: what the catalog lists.
offered() {
	wherry images --json 2>/dev/null | jq -r '.images[] | "\(.disk)@\(.number)"' || true
}

# rebuilt [unknown]: the catalog is made from what is there; it offers nothing that is not so. Only of what was at the
# end, and is gone without a trace, nobody can say that it is missing.
rebuilt() {
	local status=0
	rm -f "$WHERRY_STORE"/catalog.db*
	wherry rebuild --progress=none >stdout 2>stderr || status=$?
	((status == 0 || status == 1 || status == 3)) || die "$CASE: rebuild: status $status: $(cat stderr)"
	((status != 1)) || grep -q '^wherry: ' stderr || die "$CASE: rebuild doesn't say why it fails"
	cp stdout rebuild.out
	((status == 1)) || right_or_nothing $(offered)
	[[ -z $WRONG ]] || die "$CASE: after a rebuild$WRONG is not what it was: $(cat rebuild.out)"
	((status != 0)) || [[ ${1:-} == unknown || $(offered | sort | tr '\n' ' ') == "web01@1 web01@2 web01@3 web02@1 web03@2 " ]] ||
		die "$CASE: a rebuild that says nothing of losses offers $(offered | tr '\n' ' ')"
}

# -------------------------------------------------------------- segments

# flip_record FILE OFFSET SHARE WHAT: found, named, never returned.
flip_record() {
	local bit
	CASE="bit in $4"
	sampled "$3" || return 0
	random_number 8
	bit=$NUMBER
	flips=$((flips + 1))
	"$FORGE" flip "$1" "$2" "$bit"
	checked --deep
	((STATUS == 3)) || die "$CASE (byte $2, bit $bit of $1): check --deep has status $STATUS"
	grep -qE 'segment 0000000[12]|log of disk|web0[123]' stdout || die "$CASE: nothing is named: $(cat stdout)"
	right_or_nothing "${all[@]}"
	[[ -z $WRONG ]] || die "$CASE (byte $2, bit $bit of $1): other content comes out of$WRONG"
	rebuilt
	mend
}

say "headers of segments"
for field in 0:magic 8:version 12:number 16:store 32:time 40:reserved 56:checksum; do
	random_number 4
	flip_record "$ONE" $((${field%%:*} + NUMBER)) 15 "the header of a segment: ${field#*:}"
done

say "records"
declare -A seen=()
"$FORGE" list "$ONE" >records
while read -r at type codec stored _ operation; do
	kind="type $type, codec $codec, operation $operation"
	[[ -z ${seen[$kind]:-} ]] || continue
	# what belongs to a disk that is gone is nobody's damage
	[[ $type == 1 || $operation != 9 ]] || continue
	seen[$kind]=1
	for field in 0:4:magic 4:1:type 5:1:codec 6:1:cipher 7:1:reserved 8:4:stored 12:4:plain 16:32:digest 48:8:payload-checksum \
		56:8:header-checksum 64:$((stored < 66 ? stored : 66)):head-of-the-payload 64:$stored:payload; do
		IFS=: read -r first count name <<<"$field"
		random_number "$count"
		flip_record "$ONE" $((at + first + NUMBER)) 2 "$kind: $name"
	done
	[[ $type == 2 ]] || continue
	for field in 0:1:format 1:1:operation 2:8:sequence 10:16:uuid 26:32:predecessor 58:8:time 66:$((stored - 66)):fields; do
		IFS=: read -r first count name <<<"$field"
		((count > 0)) || continue
		random_number "$count"
		flip_record "$ONE" $((at + 64 + first + NUMBER)) 2 "$kind: $name of the entry"
	done
done <records
expect_number "${#seen[@]} >= 8" "kinds of records: ${!seen[*]}"

# ------------------------------------------------- segments cut or missing

# healed: repaired, and what was lost comes with the next rounds. But for chunks whose digest went with their record and
# with the log: by what they would be known again, nobody can tell. They stay damaged.
healed() {
	local source unknown
	checked --repair --json
	((STATUS != 1)) || die "$CASE: check --repair: $(cat stderr)"
	unknown=$(json_get .repair.unknown_chunks)
	unknown_left=$unknown
	for source in kept1 kept2 kept3 other1; do
		expect_exit 0 wherry sync $source healer --allow-shrink --progress=none
	done
	checked --deep --json
	((unknown > 0)) || expect_equal 0 "$(json_get '.damaged | length')" "$CASE: damage that is left"
	right_or_nothing "${all[@]}"
	[[ -z $WRONG ]] || die "$CASE: other content comes out of$WRONG after a repair"
}
# broken WHAT: it is, now.
broken() {
	CASE=$1
	flips=$((flips + 1))
	checked
	((STATUS == 3)) || die "$CASE: check has status $STATUS"
	grep -qE 'segment 0000000[12]' stdout || die "$CASE: no segment is named: $(cat stdout)"
	right_or_nothing "${all[@]}"
	[[ -z $WRONG ]] || die "$CASE: other content comes out of$WRONG"
}
say "segments cut short, missing, exchanged"
read -r last < <(awk '$2 == 1 { at = $1 } END { print at }' records)
for cut in 0 8 12 16 40 56 64 4095 4096 4100 4104 4160 $((last)) $((last + 4)) $((last + 16)) $((last + 48)) $((last + 64)) $((last + 65)); do
	sampled 8 || continue
	truncate -s "$cut" "$ONE"
	broken "cut at $cut"
	((cut <= 4096)) || healed
	mend
	truncate -s "$cut" "$ONE"
	rebuilt unknown
	mend
done
for which in "$ONE" "$TWO"; do
	sampled 50 || continue
	rm "$which"
	broken "missing: ${which##*/}"
	rebuilt unknown
	mend
	rm "$which"
	healed
	mend
done
# one record only: its log is there, so all is whole again
"$FORGE" flip "$ONE" $((last + 20)) 3
broken "a header that is damaged"
healed
expect_equal 0 "$unknown_left" "$CASE: chunks that can't be known"
mend
mv "$ONE" aside && mv "$TWO" "$ONE" && mv aside "$TWO"
broken "exchanged"
rebuilt unknown
mend

# ------------------------------------------------------------ wherry.json

say "wherry.json"
length=$(size_of pristine/wherry.json)
for ((at = 0; at < length; at++)); do
	for bit in 0 1 2 3 4 5 6 7; do
		sampled 1 || continue
		CASE="wherry.json, byte $at, bit $bit"
		flips=$((flips + 1))
		"$FORGE" flip "$WHERRY_STORE/wherry.json" $at $bit
		right_or_nothing web01@2 web02
		[[ -z $WRONG ]] || die "$CASE: other content comes out of$WRONG"
		checked
		((STATUS != 1)) || grep -q '^wherry: ' stderr || die "$CASE: check doesn't say why it fails"
		mend
	done
done

# ---------------------------------------------------------------- catalog

# What says which chunk is where on a disk has a checksum, and its key with it. A key itself has none, nor have the numbers of disks and
# images: a row that is not where it is looked for is one that was never written. A check finds that, for it counts all references
# anew; an export alone can't.
say "the catalog"
# Most of a small database is room; places that hold something are what is looked at.
mapfile -t places < <(od -An -v -tu1 -w1 pristine/catalog.db | awk '$1 != 0 { print NR - 1 }')
unseen=0
beyond_export=0
for ((n = 0; n < (THOROUGH == 1 ? 600 : 6); n++)); do
	random_number ${#places[@]}
	at=${places[NUMBER]}
	random_number 8
	CASE="catalog.db, byte $at, bit $NUMBER"
	flips=$((flips + 1))
	"$FORGE" flip "$WHERRY_STORE/catalog.db" "$at" "$NUMBER"
	checked
	found=$STATUS
	right_or_nothing web01@1 web01@2 web01@3 web01 web02@1
	if [[ -n $WRONG ]]; then
		((found != 0)) || die "$CASE: other content comes out of$WRONG, and check finds nothing"
		beyond_export=$((beyond_export + 1))
	fi
	((found != 0)) || unseen=$((unseen + 1))
	mend
done
say "  $unseen were harmless; $beyond_export were found by a check, and not by an export"

say "$flips flips"
