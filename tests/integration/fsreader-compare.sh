# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# For tests of fsreader/: what fsreader_list prints of an image, next to what programs print of the same one, mounted. After functions.sh.

LIST=$WHERRY_TEST_TOOLS/fsreader_list
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

# compare_attributes IMAGE TYPE FOLDER [FORMAT]
compare_attributes() {
	(cd "$3" && find . -exec stat --printf "${4:-%n|%f|%h|%u|%g|%t:%T|%s|%b|%.9X|%.9Y|%.9Z}"'\0' {} +) >expected
	"$LIST" "$1" "$2" stat >got
	same_records "attributes in $1" expected got
}

# compare_contents IMAGE TYPE FOLDER [MOST]: of files of no more than MOST bytes.
compare_contents() {
	local most=${4:-20000000}
	(cd "$3" && find . -type f -size "-$((most + 1))c" -print0 | xargs -0 sha256sum -z) >expected
	"$LIST" "$1" "$2" contents "$most" >got
	same_records "contents in $1" expected got
}

compare_links() {
	(cd "$3" && find . -type l -printf '%p -> %l\0') >expected
	"$LIST" "$1" "$2" links >got
	same_records "symbolic links in $1" expected got
}

compare_xattrs() {
	xattrs_of "$3" >expected
	"$LIST" "$1" "$2" xattrs >got
	same_records "extended attributes in $1" expected got
}

# compare_data IMAGE TYPE FOLDER: of sparse files, by where their data is.
compare_data() {
	local file
	while IFS= read -r -d '' file; do
		python3 -c "$DATA_OF" "$3/$file" >expected
		"$LIST" "$1" "$2" data "$file" >got
		check_same expected got
	done < <(cd "$3" && find . -type f \( -name sparse-large -o -name fragmented -o -name unwritten \) -print0)
}

is_gone() {
	local pid state
	for pid in "$@"; do
		state=$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null) || continue
		[[ $state == Z ]] || return 1
	done
}

# nothing_is_left IMAGE TYPE FILE: of the processes that a reader has started, when it is killed. It writes a large file to somebody who
# does not take it, and so is there for as long as it takes.
nothing_is_left() {
	local children grandchildren
	mkfifo held
	exec 9<>held
	start "$LIST" "$1" "$2" cat "$3" >held
	wait_until 20 pgrep -P "$PID"
	mapfile -t children < <(pgrep -P "$PID")
	mapfile -t grandchildren < <(pgrep -P "${children[0]}" || true) # of a kernel
	kill -KILL "$PID"
	finish "$PID" || true
	wait_until 10 is_gone "${children[@]}" "${grandchildren[@]}"
	exec 9>&-
	rm held
}
