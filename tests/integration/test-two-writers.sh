#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A segment that is full, and that the catalog hears of only with the next checkpoint, belongs to its writer until then:
# another round on the same store must not take it for a leftover and cut it off.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl sqlite3 cmp

random_file one.img 100M 1
random_file two.img 8M 2
wherry init >/dev/null
wherry sync one.img one --limit 30M --progress=none >one.out 2>&1 &
first=$!
# the first segment is full, and no checkpoint has told the catalog: its row is as long as an empty segment
for ((i = 0; i < 200; i++)); do
	[[ $(find "$WHERRY_STORE/segments" -name '*.seg' -size +63M | wc -l) -gt 0 ]] && break
	sleep 0.05
done
expect_exit 0 wherry sync two.img two --progress=none
wait "$first" || die "the first round failed: $(cat one.out)"
expect_exit 0 wherry export one@1 one.export --progress=none
expect_exit 0 wherry export two@1 two.export --progress=none
check_same one.img one.export
check_same two.img two.export
