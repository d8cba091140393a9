#!/bin/bash
# fsx: random reads, writes, truncations and mappings of one file against a copy in memory.
. "$(dirname "$0")/lib.sh"
for seed in 1 2 3 4; do
    "$TOOLS/fsx" -q -f "$CASES/fsx.toml" -S $seed -N "${FSX_OPS:-3000}" -P /tmp "$KC_MNT/fsx.$seed" ||
        die "fsx with seed $seed"
done
say "four seeds"
"$TOOLS/fsx" -q -f "$CASES/fsx.toml" -S 77 -N 6000 -P /tmp "$KC_MNT/fsx.kill" &
fsx=$!
for round in 1 2 3; do
    sleep 2
    kc server crash
done
wait $fsx || die "fsx across kills of the server"
say "across kills of the server"
