#!/bin/bash
# pjdfstest: every POSIX claim holds, but those that no NFSv3 server can keep (pjdfstest.known).
. "$(dirname "$0")/lib.sh"
mkdir pjd && chmod 755 pjd
"$TOOLS/pjdfstest" -c "$CASES/pjdfstest.toml" -p "$KC_MNT/pjd" >/tmp/pjd.out 2>&1 || true
cp /tmp/pjd.out /run/kc/pjdfstest.out
/usr/bin/python3 "$CASES/pjdfstest.py" /tmp/pjd.out "$CASES/pjdfstest.known"
