#!/bin/bash
# A repository checked out on the mount, built there and checked by git, across a kill.
. "$(dirname "$0")/lib.sh"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
export PATH=$RUST_BIN:$PATH CARGO_HOME=/tmp/cargo-home
git clone --no-hardlinks -q "$WORK/repository.git" source
cd source
git fsck --full --no-progress >/dev/null || die "git fsck after the clone"
[ -z "$(git status --porcelain)" ] || die "the checkout differs: $(git status --porcelain)"
files=$(git ls-files | wc -l)
say "$files files checked out"
git checkout -q -b branch
echo changed >>README.md
git -c user.name=t -c user.email=t@example.org commit -q -a -m "A change"
git gc -q
git fsck --full --no-progress >/dev/null || die "git fsck after gc"

cd tests/perf/nfsload
rm -f Cargo.lock
cargo build --quiet --release --offline --target-dir "$KC_MNT/target"
"$KC_MNT/target/release/nfsload" --help >/tmp/help 2>&1 || true
grep -q 'unknown option --help' /tmp/help || die "the built program does not run: $(cat /tmp/help)"
say "a crate is built"

mkdir "$KC_MNT/c" && cd "$KC_MNT/c"
for i in $(seq 60); do
    printf '#include <stdio.h>\n#include "all.h"\nint f%d(int x) { return x + %d; }\n' "$i" "$i" >f$i.c
    printf 'int f%d(int);\n' "$i" >>all.h
done
{
    printf '#include <stdio.h>\n#include "all.h"\nint main(void) { int x = 0;\n'
    for i in $(seq 60); do printf 'x = f%d(x);\n' "$i"; done
    printf 'printf("%%d\\n", x); return 0; }\n'
} >main.c
for f in *.c; do printf 'all: prog\n%s: %s all.h\n\tcc -O1 -c %s\n' "${f%.c}.o" "$f" "$f"; done >Makefile
printf 'prog: %s\n\tcc -o prog *.o\n' "$(ls *.c | sed 's/c$/o/' | tr '\n' ' ')" >>Makefile
make -s -j2
[ "$(./prog)" = 1830 ] || die "the C program computes $(./prog)"
touch f7.c
make -s -q && die "make does not see a newer source"
make -s
make -q || die "make sees something to do"
say "a C program is built"

kc server crash
remount
cd source
git fsck --full --no-progress >/dev/null || die "git fsck after the kill"
[ -z "$(git status --porcelain)" ] || die "the checkout differs after the kill"
[ "$("$KC_MNT/c/prog")" = 1830 ] || die "the C program is damaged"
say "all the same after a kill"
