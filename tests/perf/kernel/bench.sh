#!/bin/bash
# What applications see through the Linux client: runs in a guest (tests/perf/kernel-bench), or anywhere with
# KC_MNT=dir; prints lines "key value ...". BENCH_MB, BENCH_S, BENCH_FILES, BENCH_PHASES set how much.
H=$(dirname "$(realpath "$0")"); D=$KC_MNT; SZ=${BENCH_MB:-512}; RT=${BENCH_S:-5}; N=${BENCH_FILES:-2000}
drop() { sync -f $D; echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; }
T=$(mktemp -d)
cpu() { if [ -n "$KC_CLIENT" ] && type kc >/dev/null 2>&1; then kc cpu; else echo 0; fi; }
f() { # name read|write fio-options...
  k=$1; d=$2; shift 2
  c0=$(cpu)
  fio --output-format=json --output=$T/o.json --directory=$D --filename=fio.dat "$@" --name=j >$T/err 2>&1 || { echo "$k FAILED: $(head -c 300 $T/err)"; return 1; }
  /usr/bin/python3 - $k $d $T/o.json $c0 $(cpu) <<'P'
import json, sys
k, d, f, c0, c1 = sys.argv[1:]
c = float(c1) - float(c0)
s = open(f).read(); x = json.loads(s[s.index("{"):])["jobs"][0][d]
p = x["clat_ns"].get("percentile", {})
if k.startswith("seq"):
    print("%s_MBps %.0f srvcpu_ms_per_GB %.0f" % (k, x["bw_bytes"] / 1e6, c * 1e3 / max(x["io_bytes"] / 1e9, 1e-9)))
else:
    print("%s_iops %.0f p50us %.0f p99us %.0f srvcpu_us_per_op %.1f" % (k, x["iops"], p.get("50.000000", 0) / 1e3, p.get("99.000000", 0) / 1e3, c * 1e6 / max(x["total_ios"], 1)))
P
}
PH=${BENCH_PHASES:-seq rand files dbench}
case $PH in *seq*)
f seqwrite write --rw=write --bs=1M --size=${SZ}M --end_fsync=1 --ioengine=psync --fallocate=none
drop; f seqread read --rw=read --bs=1M --size=${SZ}M --ioengine=psync
drop; f seqread_direct_qd8 read --rw=read --bs=1M --size=${SZ}M --ioengine=libaio --iodepth=8 --direct=1
f seqwrite_direct_qd8 write --rw=write --bs=1M --size=${SZ}M --ioengine=libaio --iodepth=8 --direct=1 --fallocate=none;;
esac
case $PH in *rand*)
[ -f $D/fio.dat ] || f seqprep write --rw=write --bs=1M --size=${SZ}M --end_fsync=1 --ioengine=psync --fallocate=none
R="--bs=4k --size=${SZ}M --direct=1 --time_based --runtime=$RT"
f randread_qd1 read --rw=randread $R --ioengine=psync
f randread_qd16 read --rw=randread $R --ioengine=libaio --iodepth=16
f randwrite_qd1 write --rw=randwrite $R --ioengine=psync
f randwrite_qd16 write --rw=randwrite $R --ioengine=libaio --iodepth=16;;
esac
rm -f $D/fio.dat
case $PH in *files*) c0=$(cpu); /usr/bin/python3 $H/smallfiles.py $D $N; echo "smallfiles srvcpu_ms $(echo "($(cpu)-$c0)*1000" | bc | cut -d. -f1)"; /usr/bin/python3 $H/smallfiles.py $D $((N/2)) 4096 | sed 's/^/4k_/' | grep -E 'create|openread';; esac
case $PH in *dbench*)
c0=$(cpu)
dbench -D $D -t $((RT * 2)) --skip-cleanup 4 >$T/db 2>&1 || { echo "dbench FAILED: $(tail -c 300 $T/db)"; exit 1; }
awk -v c0=$c0 -v c1=$(cpu) '/^Throughput/ {printf "dbench4_MBps %s srvcpu_ms %.0f\n", $2, (c1 - c0) * 1000}' $T/db
rm -rf $D/clients;;
esac
