#!/bin/bash
# A real tree of more than 20,000 files: copied, and the same after the server was killed and after
# it was restarted, each time with a fresh mount. Four at a time copy, compare and remove: one alone
# would mostly wait for the disks' flushes.
. "$(dirname "$0")/lib.sh"
JOBS=4
mkdir tree
(cd / && xargs -0 dirname -z <"$WORK/tree.list" | sort -zu | (cd "$KC_MNT/tree" && xargs -0 mkdir -p))
parts=$(mktemp -d)
split --separator='\0' --number=l/$JOBS "$WORK/tree.list" "$parts/"
# Not `cp --parents`: for each file it would set the attributes of all directories above it.
for part in "$parts"/*; do
    tar -c -C / --format=posix --null --no-recursion -T "$part" | tar -x -p --same-owner -C tree &
done
for job in $(jobs -p); do wait "$job" || die "the copy failed"; done
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
# compare WHEN FILE...: all files in these lists of checksums
compare() {
    local when=$1
    shift
    printf '%s\0' "$@" | (cd tree && xargs -0 -P $JOBS -n 1 sha256sum --quiet --check) \
        || die "checksums differ $when"
    say "checksums match $when"
}
# Killed with the last of the copy in the log.
kc server crash
remount
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a kill"
compare "after the server was killed" "$sums"/*
kc server restart
remount
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a restart"
# What the kill left was whole and nothing was written since: one part of it is enough.
lists=("$sums"/*)
compare "after a restart of the server" "${lists[0]}"
find tree -mindepth 3 -maxdepth 3 -type d -print0 | xargs -0 -P $JOBS -n 1 rm -r
rm -r tree
[ -z "$(ls -A)" ] || die "something is left: $(ls -A)"
say "removed"
