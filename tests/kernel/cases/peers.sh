#!/bin/bash
# Ports found the way Linux finds them: our own rpcbind, then registration with a running one.
. "$(dirname "$0")/lib.sh"
S=$KC_SERVER
M=/run/m
mkdir -p $M
cd /
# The kit's own mount, with ports, would miss its server below.
/bin/umount "$KC_MNT"

# Mounts without any port option, writes, reads, shows who is there.
use() {
    /bin/mount -t nfs -o vers=3,nolock,proto=tcp "$S:/vol0" $M || die "mount without ports ($1)"
    echo "$1" >$M/from-a-peer
    sync -f $M/from-a-peer
    [ "$(cat $M/from-a-peer)" = "$1" ] || die "what was written ($1)"
    showmount -e "$S" | grep -q '^/vol0 ' || die "showmount -e ($1): $(showmount -e "$S")"
    showmount -a "$S" | grep -q ":/vol0" || die "showmount -a ($1): $(showmount -a "$S")"
    rpcinfo -t "$S" nfs 3 >/dev/null || die "rpcinfo -t ($1)"
    rpcinfo -T tcp "$S" mountd 3 >/dev/null || die "rpcinfo -T tcp, through rpcbind version 3 or 4 ($1)"
    /bin/umount $M
    showmount -a "$S" | grep -q ":/vol0" && die "an unmounted client is still listed ($1)"
    say "$1: mounted without ports, listed, unmounted"
}

listed() {
    rpcinfo -p "$S" >/run/table || die "rpcinfo -p"
    for want in "100003 +3 +tcp +2049" "100005 +3 +tcp +2049" "100005 +1 +tcp +2049" \
        "100000 +2 +tcp +111" "100000 +2 +udp +111"; do
        grep -Eq "$want" /run/table || die "$1: $want is not in $(cat /run/table)"
    done
}

# 1. Our own responder.
listed "our own"
use "our own"
# UDP as well: old clients ask that way.
rpcinfo -u "$S" portmapper 2 >/dev/null || die "our rpcbind over UDP"
kc server term

# 2. A running rpcbind, which our server tells and tells again when it goes.
kc host 'rpcbind -w && for n in $(seq 200); do rpcinfo -p 127.0.0.1 >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1' ||
    die "rpcbind does not run"
kc host "setsid $CAIRN demo --dir $WORK/demo --listen $S --nfs-port 2049 --rest-port 0 --rpcbind register \
    >$WORK/second.log 2>&1 </dev/null & for n in \$(seq 400); do grep -q ^READY $WORK/second.log && exit 0; sleep 0.05; done; cat $WORK/second.log; exit 1" ||
    die "the server does not start beside rpcbind"
listed "a running rpcbind"
use "a running rpcbind"
kc host "kill -TERM \$(sed -n 's/^READY .*\"pid\": *\\([0-9]*\\).*/\\1/p' $WORK/second.log)"
for n in $(seq 200); do
    rpcinfo -p "$S" >/run/table
    grep -q 100003 /run/table || break
    sleep 0.05
done
grep -q 100003 /run/table && die "a server that stopped is still registered: $(cat /run/table)"
say "registered, and taken back"

# 3. Our own responder where another one has the port: refused, and why.
kc host "$CAIRN demo --dir $WORK/demo --listen $S --nfs-port 2049 --rest-port 0 --rpcbind serve" >/run/refused &&
    die "two rpcbinds on one port"
grep -q "111 is in use" /run/refused || die "the refusal does not name the port: $(cat /run/refused)"
say "$(tail -1 /run/refused)"
