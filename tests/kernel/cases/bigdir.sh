#!/bin/bash
# A directory of 300,000 entries, listed completely while other entries come and go.
. "$(dirname "$0")/lib.sh"
entries=${BIGDIR_ENTRIES:-300000}
kc host "$WITNESS" fill "$NFS_TARGET" --dir big --prefix stay- --count "$entries" || die "filling"
say "$entries entries made"
/usr/bin/python3 "$CASES/bigdir.py" "$entries"
kc server restart
remount
/usr/bin/python3 "$CASES/bigdir.py" "$entries"
