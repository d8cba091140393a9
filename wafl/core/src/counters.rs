//! Counters of the storage manager. Relaxed atomics: each is exact, sums of several are not.

use std::collections::BTreeMap;

use cairn_cf::Metric;
use cairn_sys::lock::atomic::{AtomicU64, Ordering};
use cairn_sys::lock::{Guard, Mutex, Rank};

/// Buckets of a latency histogram: bucket `i` counts operations of less than `2^(i + 10)` ns.
const LATENCY_BUCKETS: usize = 24;
/// Upper edge of the first bucket, as a power of two of nanoseconds.
const FIRST_BUCKET_SHIFT: u32 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct OpCounter {
    count: u64,
    failed: u64,
    nanos: u64,
    buckets: [u64; LATENCY_BUCKETS],
}

/// Parts of a consistency point, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpPhase {
    /// Placing large files' blocks before the freeze.
    CleanAhead,
    /// The freezes of all volumes.
    Freeze,
    /// Waiting for the records of the old half of the log.
    SettleLog,
    /// Maps and records of the volumes.
    VolumeMaps,
    /// Maps of the aggregate.
    AggregateMaps,
    /// Waiting for the last stripes.
    WriteOut,
    /// Flush, root, flush.
    CommitRoot,
}

const CP_PHASES: [(&str, CpPhase); 7] = [
    ("clean_ahead", CpPhase::CleanAhead),
    ("freeze", CpPhase::Freeze),
    ("settle_log", CpPhase::SettleLog),
    ("volume_maps", CpPhase::VolumeMaps),
    ("aggregate_maps", CpPhase::AggregateMaps),
    ("write_out", CpPhase::WriteOut),
    ("commit_root", CpPhase::CommitRoot),
];

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    cp_phases: [AtomicU64; CP_PHASES.len()],
    pub cps: AtomicU64,
    pub cp_nanos: AtomicU64,
    pub cp_data_blocks: AtomicU64,
    pub cp_meta_blocks: AtomicU64,
    pub cache_misses: AtomicU64,
    pub cache_evictions: AtomicU64,
    pub logged_records: AtomicU64,
    pub replayed_records: AtomicU64,
    pub replay_nanos: AtomicU64,
    pub space_waits: AtomicU64,
    pub log_waits: AtomicU64,
    ops: Ops,
}

#[derive(Debug)]
struct Ops(Mutex<BTreeMap<&'static str, OpCounter>>);

impl Default for Ops {
    fn default() -> Self {
        Self(Mutex::new(Rank::OpCounters, BTreeMap::new()))
    }
}

impl Counters {
    fn ops(&self) -> Guard<'_, BTreeMap<&'static str, OpCounter>> {
        self.ops.0.lock()
    }

    /// Counts one operation.
    pub fn op(&self, name: &'static str, nanos: u64, ok: bool) {
        let mut ops = self.ops();
        let op = ops.entry(name).or_default();
        op.count += 1;
        op.failed += u64::from(!ok);
        op.nanos += nanos;
        let bits = 64 - (nanos >> FIRST_BUCKET_SHIFT).leading_zeros();
        let bucket = usize::try_from(bits).unwrap_or(LATENCY_BUCKETS).min(LATENCY_BUCKETS - 1);
        op.buckets[bucket] += 1;
    }

    /// Adds the time that a phase of a consistency point took.
    pub fn cp_phase(&self, phase: CpPhase, nanos: u64) {
        self.cp_phases[phase as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    /// All counters as metrics.
    pub fn metrics(&self) -> Vec<Metric> {
        let plain = |name: &str, value: &AtomicU64| Metric {
            name: name.to_owned(),
            labels: Vec::new(),
            value: value.load(Ordering::Relaxed),
        };
        let mut out = vec![
            plain("cp_total", &self.cps),
            plain("cp_nanoseconds_total", &self.cp_nanos),
            plain("cp_data_blocks_total", &self.cp_data_blocks),
            plain("cp_metadata_blocks_total", &self.cp_meta_blocks),
            plain("cache_misses_total", &self.cache_misses),
            plain("cache_evictions_total", &self.cache_evictions),
            plain("log_records_total", &self.logged_records),
            plain("replayed_records_total", &self.replayed_records),
            plain("replay_nanoseconds_total", &self.replay_nanos),
            plain("space_waits_total", &self.space_waits),
            plain("log_waits_total", &self.log_waits),
        ];
        for (name, phase) in CP_PHASES {
            out.push(Metric {
                name: "cp_phase_nanoseconds_total".to_owned(),
                labels: vec![("phase".to_owned(), name.to_owned())],
                value: self.cp_phases[phase as usize].load(Ordering::Relaxed),
            });
        }
        for (name, op) in self.ops().iter() {
            let label = vec![("op".to_owned(), (*name).to_owned())];
            let mut push = |metric: &str, labels: Vec<(String, String)>, value| {
                out.push(Metric { name: metric.to_owned(), labels, value });
            };
            push("dmodule_ops_total", label.clone(), op.count);
            push("dmodule_op_failures_total", label.clone(), op.failed);
            let mut sum = 0;
            for (i, count) in (0u32..).zip(op.buckets) {
                sum += count;
                let last = usize::try_from(i + 1) == Ok(LATENCY_BUCKETS);
                let edge = (1u64 << (i + FIRST_BUCKET_SHIFT)).to_string();
                let mut labels = label.clone();
                labels.push(("le".to_owned(), if last { "+Inf".to_owned() } else { edge }));
                push("dmodule_op_latency_nanoseconds_bucket", labels, sum);
            }
            push("dmodule_op_latency_nanoseconds_sum", label.clone(), op.nanos);
            push("dmodule_op_latency_nanoseconds_count", label, sum);
        }
        out
    }
}
