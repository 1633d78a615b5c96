#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every JSON document has exactly the keys that the man page lists, each of the promised type: a key that was added has
# to be written down there, and here. (test-json.sh: what the documents say in which case.)
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq mke2fs debugfs

# Types as jq programs; "or_null" in front of another one.
cat >types.jq <<'E2'
def int: type == "number" and . == floor and . >= 0;
def seconds: type == "number" and . >= 0;
def text: type == "string" and length > 0;
def bool: type == "boolean";
def object: type == "object";
def time: type == "string" and test("^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z$")
	and ((fromdateiso8601 - now) | fabs < 600);
def consistency: . == "clean" or . == "frozen" or . == "fuzzy";
def state: . == "running" or . == "stopped" or . == "failed" or . == "done";
def range: (keys == ["length", "offset"]) and (.offset | int) and (.length | int) and .length > 0;
def ranges: type == "array" and all(.[]; range);
def left_out: type == "array" and all(.[]; (keys == ["length", "offset", "scattered", "why"]) and (.offset | int)
	and (.length | int) and (.why | text) and (.scattered | bool));
def numbers: type == "array" and all(.[]; int and . > 0);
def kept: type == "array" and all(.[]; (keys == ["image", "why"]) and (.image | int) and (.why | text));
def null_or(f): . == null or f;
E2

# check_object FILTER "KEY:TYPE …" [FILE]: what the filter finds, each of it an object of exactly these keys.
check_object() {
	local filter=$1 file=${3:-stdout} program="." pair key type
	local keys=""
	for pair in $2; do
		key=${pair%%:*}
		type=${pair#*:}
		[[ $type != *'?' ]] || type="null_or(${type%'?'})"
		keys+=${keys:+,}\"$key\"
		program+=" | (if (.[\"$key\"] | $type) then . else error(\"$key: \" + (.[\"$key\"] | tojson)) end)"
	done
	jq -e "$(cat types.jq) $filter | (if keys == ([$keys] | sort) then . else error(\"keys: \" + (keys | tojson)) end) |
		$program | true" "$file" >jq.out 2>jq.err || die "$filter: $(cat jq.err) in $(head -c 2000 "$file")"
	[[ -s jq.out ]] || die "$filter finds nothing in $(head -c 2000 "$file")"
}

# document COMMAND…: its standard output is one JSON document, and not a word on standard error.
document() {
	expect_exit "${status:-0}" wherry "$@" --json
	expect_equal 1 "$(jq -s length stdout)" "number of documents from $*"
	[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
}

sync_keys="disk:text image:int? round:int resumed:bool consistency:consistency fuzzy_because:text? size_bytes:int
	read_bytes:int left_out_bytes:int zero_bytes:int changed_bytes:int stored_bytes:int sent_bytes:int
	elapsed_seconds:seconds bytes_per_second:int left_out:left_out read_errors:ranges deleted_images:numbers
	kept_images:kept verified:bool equal:bool? differences:ranges"
disk_keys="name:text size_bytes:int images:int live_generation:int mirror_of:text? open_by:text? parent:text?
	sector_bytes:int created_at:time keep:int? level:int? limit_bytes_per_second:int?"
image_keys="disk:text number:int created_at:time size_bytes:int changed_bytes:int unique_bytes:int label:text?
	pinned:bool damaged:bool in_use:bool in_use_by:text? consistency:consistency round:int? details:object?"
round_keys="disk:text number:int state:state source:text started_at:time finished_at:time? total_bytes:int
	done_bytes:int read_bytes:int left_out_bytes:int zero_bytes:int changed_bytes:int stored_bytes:int sent_bytes:int
	error:text?"

say "init"
document init --chunk-size 32K
check_object . "store:text chunk_bytes:int"
expect_equal "$WHERRY_STORE 32768" "$(json_get '"\(.store) \(.chunk_bytes)"')"

say "listings of nothing"
for verb in disks images rounds; do
	document $verb
	expect_equal "{\"$verb\":[]}" "$(jq -c . stdout)"
done

say "sync"
real_files
truncate -s 24M disk
mke2fs -q -F -t ext4 -b 4096 -d "$FILES/licenses" disk
random_file garbage 4M garbage
debugfs -w -R 'write garbage garbage' disk >debugfs.log 2>&1
debugfs -w -R 'rm garbage' disk >>debugfs.log 2>&1
document sync disk web01 --progress=none --label 'a "quoted" label, ünïcode'
check_object . "$sync_keys"
check_object '.left_out[0]' "offset:int length:int why:text scattered:bool"
expect_equal "web01 1 1 false clean false null 0" \
	"$(json_get '"\(.disk) \(.image) \(.round) \(.resumed) \(.consistency) \(.verified) \(.equal) \(.stored_bytes - .sent_bytes)"')"
expect_number "$(json_get '.read_bytes + .left_out_bytes') <= $(size_of disk)" "read and left out"
expect_equal "$(json_get .left_out_bytes)" "$(json_get '[.left_out[].length] | add')" "sum of what is left out"
document sync disk web01 --progress=none --no-image
check_object . "$sync_keys"
expect_equal "null 2" "$(json_get '"\(.image) \(.round)"')"
document sync disk web01 --progress=none --verify --keep 1
check_object . "$sync_keys"
expect_equal "2 true true [1]" "$(json_get '"\(.image) \(.verified) \(.equal) \(.deleted_images)"')"
expect_exit 0 wherry pin web01@2
document sync disk web01 --progress=none
expect_equal '[] [{"image":2,"why":"pinned"}]' "$(json_get '"\(.deleted_images) \(.kept_images)"')"

say "set"
document set web01 --level 5 --limit 100Mbit --keep 7
check_object . "disk:text keep:int? level:int? limit_bytes_per_second:int?"
expect_equal '{"disk":"web01","keep":7,"level":5,"limit_bytes_per_second":12500000}' "$(jq -c . stdout)"
document set web01 --level default --limit unlimited --keep all
expect_equal '{"disk":"web01","keep":null,"level":null,"limit_bytes_per_second":null}' "$(jq -c . stdout)"

say "clone, create"
document clone web01@latest copy
check_object . "disk:text image:text size_bytes:int sector_bytes:int parent:text?"
expect_equal "copy web01@3 web01@3" "$(json_get '"\(.disk) \(.image) \(.parent)"')"
document disks
check_object '.disks[0]' "$disk_keys"
expect_equal "copy web01@3" "$(json_get '.disks[0] | "\(.name) \(.parent)"')"
document images web01
check_object '.images[]' "$image_keys"
expect_equal "clone copy" "$(json_get '.images[] | select(.number == 3) | .in_use_by')"
expect_exit 0 wherry remove copy
document create copy 1M --sector-size 4K
check_object . "disk:text size_bytes:int sector_bytes:int"
expect_equal '{"disk":"copy","size_bytes":1048576,"sector_bytes":4096}' "$(jq -c . stdout)"
expect_exit 0 wherry remove copy

say "image, pin, unpin, retain"
document image web01 --label "by hand"
check_object . "disk:text image:int label:text? consistency:consistency fuzzy_because:text?"
expect_equal "4 by hand clean" "$(json_get '"\(.image) \(.label) \(.consistency)"')"
document image web01
expect_equal null "$(json_get .label)"
document pin web01@latest
check_object . "disk:text image:int pinned:bool"
expect_equal '{"disk":"web01","image":5,"pinned":true}' "$(jq -c . stdout)"
document unpin web01@5
expect_equal '{"disk":"web01","image":5,"pinned":false}' "$(jq -c . stdout)"
document retain web01 --keep 2 --dry-run
check_object . "disk:text keep:int dry_run:bool deleted_images:numbers kept_images:kept"
expect_equal '2 true [3,4] [2]' "$(json_get '"\(.keep) \(.dry_run) \(.deleted_images) \([.kept_images[].image])"')"

say "listings"
document images
check_object '.images[]' "$image_keys"
expect_equal "2 3 4 5" "$(json_get '[.images[].number] | join(" ")')"
document images web01
check_object '.images[]' "$image_keys"
expect_equal "true null" "$(json_get '.images[] | select(.number == 2) | "\(.pinned) \(.label)"')"
document disks
check_object '.disks[]' "$disk_keys"
expect_equal "web01 4 512 null null" \
	"$(json_get '.disks[0] | "\(.name) \(.images) \(.sector_bytes) \(.open_by) \(.parent)"')"
[[ $(json_get '.disks[0].mirror_of') == */disk ]] || die "mirror_of: $(json_get '.disks[0].mirror_of')"
document rounds web01
check_object '.rounds[]' "$round_keys"
expect_equal "1 2 3 4" "$(json_get '[.rounds[].number] | join(" ")')"
expect_equal "done" "$(json_get '[.rounds[].state] | unique | join(" ")')"
expect_equal true "$(json_get 'all(.rounds[]; .done_bytes == .total_bytes and .finished_at != null and .error == null)')"

say "a label comes back as it was"
document sync disk web02 --progress=none --label 'a "quoted" label, ünïcode \ /'
document images web02
expect_equal 'a "quoted" label, ünïcode \ /' "$(json_get '.images[0].label')"
LC_ALL=C grep -q '[^ -~]' <(tr -d '\n' <stdout) && die "JSON is not plain ASCII"

say "delete"
document delete web01@4 web01@5 --dry-run
check_object . "dry_run:bool deleted:(type==\"array\") freed_bytes:int"
check_object '.deleted[]' "disk:text image:int freed_bytes:int"
document delete web01@4 web01@5
expect_equal 'false [4,5]' "$(json_get '"\(.dry_run) \([.deleted[].image])"')"

say "export"
document export web01@3 exported --progress=none
export_keys="disk:text image:int? partition:int? target:text size_bytes:int data_bytes:int target_bytes:int
	elapsed_seconds:seconds bytes_per_second:int holes:ranges"
check_object . "$export_keys"
expect_equal "web01 3 null exported" "$(json_get '"\(.disk) \(.image) \(.partition) \(.target)"')"
document export web01 exported --progress=none
check_object . "$export_keys"
expect_equal null "$(json_get .image)"

say "verify"
verify_keys="equal:bool compared_bytes:int left_out_bytes:int elapsed_seconds:seconds differences:ranges"
document verify web01@3 --source disk --progress=none
check_object . "$verify_keys"
byte_flip disk 1024000
status=3 document verify web01@3 --source disk --read-all --progress=none
check_object . "$verify_keys"
check_object '.differences[0]' "offset:int length:int"

say "check"
check_keys="ok:bool deep:bool chunks:int segments:int elapsed_seconds:seconds damaged:(type==\"array\")
	damaged_not_listed:int flaws:(type==\"array\") flaws_not_listed:int repair:object?"
document check --progress=none
check_object . "$check_keys"
expect_equal null "$(json_get .repair)"
expect_equal "true false 0 0" "$(json_get '"\(.ok) \(.deep) \(.damaged | length) \(.flaws | length)"')"
document check --repair --progress=none
check_object . "$check_keys"
check_object .repair "mended_chunks:int sound_chunks:int waiting_chunks:int unknown_chunks:int"
segment=$(find "$WHERRY_STORE/segments" -name '*.seg')
cp "$segment" whole-segment
truncate -s 16K "$segment"
status=3 document check --deep --progress=none
check_object . "$check_keys"
check_object '.damaged[]' "disk:text image:int? offset:int length:int why:text partitions:numbers"
check_object '.flaws[]' "what:text why:text"
expect_equal "false true" "$(json_get '"\(.ok) \(.deep)"')"
cp whole-segment "$segment"

say "df"
document df
check_object . "segment_bytes:int live_bytes:int dead_bytes:int catalog_bytes:int plain_bytes:int
	disks:(type==\"array\")"
check_object '.disks[]' "name:text size_bytes:int images:int unique_bytes:int"
expect_equal "web01 2 web02 1" "$(json_get '[.disks[] | .name, .images] | join(" ")')"

if [[ -e /dev/fuse ]] && ((EUID == 0)); then
	say "fs, mount, umount"
	. "$WHERRY_SOURCE/tests/integration/mounts.sh"
	mount_keys="reference:text directory:text via:text read_only:bool since:time scratch:bool store:text device:text?"
	mkdir mnt
	document fs mnt
	check_object . "store:text directory:text"
	document umount mnt
	check_object . "directory:text reference:text?"
	expect_equal null "$(json_get .reference)"
	document mount web01@3 mnt --via files
	check_object . "$mount_keys type:text label:text? journal_replayed:bool"
	document mount
	check_object '.mounts[] | select(.directory | endswith("/mnt"))' "$mount_keys alive:bool"
	document umount mnt
	check_object . "directory:text reference:text?"
	expect_equal web01@3 "$(json_get .reference)"
	nothing_left
fi

say "what failed prints no document"
expect_error 'web01@77' wherry images web01@77 --json
expect_error 'web01@77' wherry export web01@77 exported --json
expect_error 'nosuch' wherry sync nosuch web01 --json --progress=json

say "remove"
document remove web02 --dry-run
check_object . "disk:text images:int dry_run:bool"
document remove web02
expect_equal '{"disk":"web02","images":1,"dry_run":false}' "$(jq -c . stdout)"
