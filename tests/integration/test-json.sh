#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Documents for programs: what design.md promises of each is there, of the right type, in every case that changes it;
# standard output is one document, whatever is said beside it. The reader is jq.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 mke2fs

# What the words of a promise mean. "?" behind one: or null.
# shellcheck disable=SC2016
TYPES='
	def is_integer: type == "number" and . == floor and . >= 0;
	def is_range: type == "object" and (.offset | is_integer) and (.length | is_integer and . > 0);
	def is_a($kind):
		if $kind[-1:] == "?" then . == null or is_a($kind[:-1])
		elif $kind == "integer" then is_integer
		elif $kind == "integers" then type == "array" and all(.[]; is_integer)
		elif $kind == "ranges" then type == "array" and all(.[]; is_range)
		elif $kind == "reasons" then type == "array" and all(.[]; is_range and (.why | type == "string" and . != ""))
		elif $kind == "list" then type == "array"
		elif $kind == "text" then type == "string" and . != ""
		elif $kind == "time" then type == "string" and
			test("^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z$") and (fromdate > 1700000000)
		elif $kind == "seconds" then type == "number" and . >= 0
		elif $kind == "consistency" then . == "clean" or . == "frozen" or . == "fuzzy"
		elif $kind == "state" then . == "running" or . == "stopped" or . == "failed" or . == "done"
		elif $kind == "boolean" then type == "boolean"
		else error("no such type: \($kind)") end;
	def broken_promises($promises):
		. as $object | $promises | split(" +"; null)[] | select(. != "") | split(":") as [$key, $type] |
		if $object | has($key) | not then "\($key): not there"
		elif $object[$key] | is_a($type) | not then "\($key): \($object[$key] | tojson) is no \($type)"
		else empty end;
'

SYNC="disk:text image:integer? round:integer resumed:boolean consistency:consistency size_bytes:integer
	read_bytes:integer left_out_bytes:integer zero_bytes:integer changed_bytes:integer stored_bytes:integer
	sent_bytes:integer elapsed_seconds:seconds bytes_per_second:seconds left_out:reasons read_errors:ranges
	deleted_images:integers"
DISK="name:text size_bytes:integer images:integer live_generation:integer mirror_of:text? open_by:text? parent:text?"
IMAGE="disk:text number:integer created_at:time size_bytes:integer changed_bytes:integer unique_bytes:integer
	label:text? pinned:boolean in_use:boolean consistency:consistency round:integer?"
ROUND="disk:text number:integer state:state source:text started_at:time finished_at:time? total_bytes:integer
	done_bytes:integer changed_bytes:integer error:text?"
VERIFY="equal:boolean compared_bytes:integer differences:ranges"
PROGRESS="phase:text total_bytes:integer done_bytes:integer changed_bytes:integer sent_bytes:integer
	bytes_per_second:seconds remaining_seconds:seconds?"

# promised PROMISES [FILTER]: the standard output of the last expect_exit is one document, in which every object that
# the filter gives, and there is one, keeps the promises. All keys in it, however deep, are in snake_case.
promised() {
	local broken
	jq -e -s 'length == 1 and (.[0] | type == "object")' stdout >/dev/null || die "not one document: $(cat stdout)"
	broken=$(jq -r --arg promises "${1//[$'\n\t']/ }" "$TYPES [${2:-.}] |
		if length == 0 then \"there is none\" else .[] | broken_promises(\$promises) end" stdout)
	[[ -z $broken ]] || die "${2:-.}: $broken in: $(cat stdout)"
	broken=$(jq -r '.. | objects | keys[] | select(test("^[a-z][a-z0-9]*(_[a-z0-9]+)*$") | not)' stdout)
	[[ -z $broken ]] || die "keys not in snake_case: $broken"
	! grep -qP '[^\x20-\x7e]' stdout || die "not all of it is printable ASCII: $(cat -v stdout)"
}

# as_document COMMAND…: succeeds, with nothing on standard error.
as_document() {
	expect_exit 0 "$@" --json
	[[ ! -s stderr ]] || die "$*: nothing was expected on standard error: $(cat stderr)"
}

MIB=$((1024 * 1024))
random_file source 6M source
zero_range source 1M 1M
make_store

say "empty listings are documents, too"
for list in disks images rounds; do
	as_document wherry $list
	expect_equal "{\"$list\":[]}" "$(json_get 'tojson')" "$list of an empty store"
done

say "sync"
label='"quoted" \ <é> 名'
sync_disk source web01 --label "$label"
promised "$SYNC"
expect_equal "web01 1 1 false clean $((6 * MIB)) $MIB" "$(json_get \
	'"\(.disk) \(.image) \(.round) \(.resumed) \(.consistency) \(.size_bytes) \(.zero_bytes)"')"
expect_equal "[] [] []" "$(json_get '"\(.left_out) \(.read_errors) \(.deleted_images)"')"
[[ ! -s stderr ]] || die "with --progress=none nothing is said: $(cat stderr)"
byte_flip source 5000
sync_disk source web01 --no-image
promised "$SYNC"
expect_equal "null 2" "$(json_get '"\(.image) \(.round)"')" "without an image"
sync_disk source web01 --keep 1 --verify
promised "$SYNC verified:boolean equal:boolean"
expect_equal '2 3 [1]' "$(json_get '"\(.image) \(.round) \(.deleted_images)"')" "with retention"
sync_disk source web01 --keep 2 --label "$label"
real_files
truncate -s 32M ext4
mke2fs -q -F -t ext4 -E lazy_itable_init=0 -d "$FILES" ext4
sync_disk ext4 ext4
promised "$SYNC"
expect_number "$(json_get '.left_out | length') > 0" "something was left out"
expect_equal true "$(json_get '.left_out_bytes == ([.left_out[].length] | add)')" "the sum of what was left out"
start_nbdkit --filter=noextents --filter=error memory 2M error-pread=EIO error-pread-rate=100%
expect_exit 0 wherry sync "$NBD_URI" bad --on-read-error zero --json --progress=none
promised "$SYNC"
expect_equal "[{\"length\":$((2 * MIB)),\"offset\":0}]" "$(json_get '.read_errors | map(to_entries | sort_by(.key) |
	from_entries) | tojson')" "read errors"
stop_process "$NBD_PID"

say "disks"
as_document wherry disks
promised "$DISK" '.disks[]'
expect_equal "2 $((6 * MIB)) null null" "$(json_get '.disks[] | select(.name == "web01") |
	"\(.images) \(.size_bytes) \(.open_by) \(.parent)"')"
expect_equal true "$(json_get '.disks[] | select(.name == "web01") | .mirror_of | endswith("source")')" "mirror_of"

say "images"
expect_exit 0 wherry pin web01@3
as_document wherry images web01
promised "$IMAGE" '.images[]'
expect_equal "2:3:false 3:4:true" "$(json_get '[.images[] | "\(.number):\(.round):\(.pinned)"] | join(" ")')"
expect_equal "null" "$(json_get '.images[0].label')" "an image without a label"
expect_equal "$label" "$(json_get '.images[1].label')" "a label"
expect_equal 0 "$(json_get '.images[1].unique_bytes')" "what only an image like its neighbour holds"
age=$(json_get '.images[1].created_at | now - fromdate | floor')
expect_number "$age >= 0 && $age < 60" "it was made just now"
as_document wherry images
promised "$IMAGE" '.images[]'
expect_equal true "$(json_get '[.images[].disk] | unique | index("web01") != null and index("ext4") != null')" "all disks"

say "rounds"
as_document wherry rounds web01
promised "$ROUND" '.rounds[]'
expect_equal "1:done 2:done 3:done 4:done" "$(json_get '[.rounds[] | "\(.number):\(.state)"] | join(" ")')"
expect_equal true "$(json_get 'all(.rounds[]; .finished_at >= .started_at and .error == null and
	.done_bytes == .total_bytes)')" "rounds that are done"

say "a round that runs, one that was stopped, one that failed, one that goes on"
random_file busy 4M busy
start wherry sync busy busy --limit 200K --progress=json --json >busy.out 2>busy.err
busy=$PID
stored_some() {
	wherry rounds busy --json | jq -e '.rounds[0].state == "running"' && grep -q '"sent_bytes":[1-9]' busy.err
}
wait_until 20 stored_some
as_document wherry rounds busy
promised "$ROUND" '.rounds[]'
expect_equal "running null" "$(json_get '.rounds[0] | "\(.state) \(.finished_at)"')"
as_document wherry disks
promised "$DISK" '.disks[]'
expect_equal true "$(json_get ".disks[] | select(.name == \"busy\") | .open_by | test(\"wherry sync .*$busy\")")" \
	"who has it open"
kill -INT "$busy"
status=0
finish "$busy" || status=$?
expect_equal 130 $status "status of a round that was stopped"
[[ ! -s busy.out ]] || die "a round that was stopped has no document: $(cat busy.out)"
as_document wherry rounds busy
promised "$ROUND" '.rounds[]'
expect_equal stopped "$(json_get '.rounds[0].state')"
sync_disk busy busy --limit unlimited
promised "$SYNC"
expect_equal "true 1" "$(json_get '"\(.resumed) \(.image)"')" "a round that went on"
start_nbdkit --filter=noextents --filter=error memory 2M error-pread=EIO error-pread-rate=100%
expect_exit 1 wherry sync "$NBD_URI" failing --json --progress=none
[[ ! -s stdout ]] || die "a round that failed has no document: $(cat stdout)"
stop_process "$NBD_PID"
as_document wherry rounds failing
promised "$ROUND" '.rounds[]'
expect_equal "failed string" "$(json_get '.rounds[0] | "\(.state) \(.error | type)"')"

say "an image that is in use"
mkfifo fifo
exec 9<>fifo # open for reading, and never read
start wherry export web01@2 fifo --progress=none 2>exporter.err
exporter=$PID
in_use() {
	wherry images web01 --json | jq -e '.images[0].in_use'
}
wait_until 20 in_use
as_document wherry images web01
promised "$IMAGE" '.images[]'
expect_equal "true false" "$(json_get '"\(.images[0].in_use) \(.images[1].in_use)"')" "in use"
stop_process "$exporter"
exec 9>&-

say "verify"
expect_exit 0 wherry verify web01@latest --source source --json --progress=none
promised "$VERIFY"
expect_equal "true $((6 * MIB)) []" "$(json_get '"\(.equal) \(.compared_bytes) \(.differences)"')"
byte_flip source $((3 * MIB))
expect_exit 3 wherry verify web01@latest --source source --json --progress=none
promised "$VERIFY"
expect_equal "false 1 $((3 * MIB)) 512" "$(json_get '"\(.equal) \(.differences | length) \(.differences[0].offset)
	\(.differences[0].length)"' | xargs)"

say "the other verbs, too, have one document"
for command in "init" "image web01 --label x" "pin web01@2" "unpin web01@2" "unpin web01@3" "set web01 --keep 5" \
	"retain web01 --keep 4 --dry-run" "retain web01 --keep 3" "delete web01@2 --dry-run" "delete web01@2" \
	"remove busy --dry-run" "remove busy"; do
	store=()
	[[ $command != init ]] || store=(-s another)
	# shellcheck disable=SC2086
	as_document wherry "${store[@]}" $command
	promised ""
done
expect_exit 0 wherry export web01 exported --json --progress=none
promised "disk:text size_bytes:integer"

say "progress"
random_file long 3M long
for command in "sync long long --limit 2M" "export long@1 exported" "verify long@1 --source long"; do
	# shellcheck disable=SC2086
	expect_exit 0 wherry $command --progress=json --json
	promised ""
	cp stdout document
	grep -q . stderr || die "wherry $command: no progress"
	! grep -vE '^\{.*\}$' stderr || die "wherry $command: other lines than those of progress"
	grep -c . stderr >lines
	jq -s '{lines: .}' stderr >stdout
	promised "$PROGRESS" '.lines[]'
	expect_equal "$(cat lines)" "$(json_get '.lines | length')" "a document is a line"
	verb=${command%% *}
	expect_equal true "$(json_get ".lines[-1] | .phase == \"$verb\" and .done_bytes == .total_bytes and
		.total_bytes == $((3 * MIB))")" "the last line of $verb: $(tail -n 1 stderr)"
	# shellcheck disable=SC2016
	expect_equal true "$(json_get '[.lines[].done_bytes] as $done | $done == ($done | sort)')" "it goes forward: $verb"
	[[ $verb == sync ]] || continue
	expect_number "$(cat lines) >= 4" "lines in more than a second"
	expect_equal "$(json_get .stored_bytes document)" "$(json_get '.lines[-1].sent_bytes')" "what was sent"
	expect_equal "$(json_get .changed_bytes document)" "$(json_get '.lines[-1].changed_bytes')" "what changed"
done

say "a document that can't be written is a failure"
status=0
wherry disks --json >/dev/full 2>stderr || status=$?
expect_equal 1 $status "status when the document can't be written"
