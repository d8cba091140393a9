#!/bin/bash
# A real tree of more than 20,000 files: copied, and the same after the server was restarted and after
# it was killed, each time with a fresh mount.
. "$(dirname "$0")/lib.sh"
mkdir tree
(cd / && xargs -0 cp --parents --no-dereference --preserve=mode,ownership,timestamps \
    -t "$KC_MNT/tree") <"$WORK/tree.list"
sync -f "$KC_MNT"
say "copied"
# %T@ has the nanoseconds.
describe() { (cd "$1" && find . -mindepth 1 ! -type d -printf '%P %y %m %U %G %s %T@ %l\n' | LC_ALL=C sort); }
describe tree >/tmp/attributes
cmp /tmp/attributes "$WORK/tree.attributes" || die "attributes differ after the copy"
count=$(wc -l </tmp/attributes)
[ "$count" -ge 20000 ] || die "only $count files"
kc server restart
remount
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a restart"
same_sums tree "$WORK/tree.sums" "after a restart of the server"
kc server crash
remount
same_sums tree "$WORK/tree.sums" "after the server was killed"
describe tree | cmp - "$WORK/tree.attributes" || die "attributes differ after a kill"
rm -r tree
[ -z "$(ls -A)" ] || die "something is left: $(ls -A)"
say "removed"
