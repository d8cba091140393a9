#!/bin/bash
# Names, links, special files, files removed while open, sparse and huge files.
. "$(dirname "$0")/lib.sh"
/usr/bin/python3 "$CASES/names.py" write
kc server crash
remount
/usr/bin/python3 "$CASES/names.py" check
