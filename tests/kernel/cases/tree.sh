#!/bin/bash
# A real tree of more than 20,000 files: copied, and the same after the server was restarted and after
# it was killed, each time with a fresh mount. Four at a time copy, compare and remove: one alone
# would mostly wait for the disks' flushes.
. "$(dirname "$0")/lib.sh"
JOBS=4
mkdir tree
(cd / && xargs -0 dirname -z <"$WORK/tree.list" | sort -zu | (cd "$KC_MNT/tree" && xargs -0 mkdir -p))
(cd / && xargs -0 -P $JOBS -n 500 cp --parents --no-dereference \
    --preserve=mode,ownership,timestamps -t "$KC_MNT/tree") <"$WORK/tree.list"
sync -f "$KC_MNT"
say "copied"
# %T@ has the nanoseconds.
describe() { (cd "$1" && find . -mindepth 1 ! -type d -printf '%P %y %m %U %G %s %T@ %l\n' | LC_ALL=C sort); }
describe tree >/tmp/attributes
cmp /tmp/attributes "$WORK/tree.attributes" || die "attributes differ after the copy"
count=$(wc -l </tmp/attributes)
[ "$count" -ge 20000 ] || die "only $count files"
sums=$(mktemp -d)
split --number=l/$JOBS "$WORK/tree.sums" "$sums/"
compare() {
    printf '%s\0' "$sums"/* | (cd tree && xargs -0 -P $JOBS -n 1 sha256sum --quiet --check) \
        || die "checksums differ $1"
    say "checksums match $1"
}
kc server restart
remount
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a restart"
compare "after a restart of the server"
kc server crash
remount
compare "after the server was killed"
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a kill"
find tree -mindepth 3 -maxdepth 3 -type d -print0 | xargs -0 -P $JOBS -n 1 rm -r
rm -r tree
[ -z "$(ls -A)" ] || die "something is left: $(ls -A)"
say "removed"
