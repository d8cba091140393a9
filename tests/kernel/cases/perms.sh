#!/bin/bash
# Permissions as several users and groups see them.
. "$(dirname "$0")/lib.sh"
/usr/bin/python3 "$CASES/perms.py"
