#!/bin/bash
# sqlite: its journal modes, and no committed row lost when the server is killed.
. "$(dirname "$0")/lib.sh"
for mode in delete truncate persist memory; do
    db=$mode.db
    {
        echo "pragma journal_mode=$mode; pragma synchronous=full;"
        echo "create table t(id integer primary key, k text unique, v blob);"
        echo "begin;"
        for i in $(seq 2000); do echo "insert into t(k, v) values('k$i', randomblob(200));"; done
        echo "commit; begin; delete from t where id % 3 = 0; rollback;"
        echo "update t set v = randomblob(1000) where id % 7 = 0; delete from t where id % 5 = 0;"
        echo "vacuum; create index i on t(v);"
    } | sqlite3 -batch "$db" >/dev/null
    [ "$(sqlite3 "$db" 'pragma integrity_check')" = ok ] || die "integrity of $db"
    [ "$(sqlite3 "$db" 'select count(*) from t')" = 1600 ] || die "rows of $db"
done
say "journal modes work"
# Each statement is a transaction of its own; its number is noted once it is committed.
sqlite3 live.db 'create table t(id integer primary key, pad blob);'
(
    for i in $(seq 240); do
        sqlite3 -cmd '.timeout 60000' live.db "insert into t values($i, randomblob(3000));" && echo "$i" >/tmp/committed
    done
) &
writer=$!
for round in 1 2 3; do
    before=$(cat /tmp/committed 2>/dev/null || echo 0)
    until [ "$(cat /tmp/committed 2>/dev/null || echo 0)" -gt $((before + 20)) ]; do sleep 0.05; done
    kc server crash
done
wait $writer
remount
for db in *.db; do
    [ "$(sqlite3 "$db" 'pragma integrity_check')" = ok ] || die "integrity of $db after kills"
done
rows=$(sqlite3 live.db 'select count(*) from t')
[ "$rows" = "$(cat /tmp/committed)" ] || die "$rows rows, $(cat /tmp/committed) committed"
[ "$rows" = 240 ] || die "$rows rows of 240"
say "no committed row lost in three kills"
