//! Counters of the layers as metrics of the cluster fabric, for REST and Prometheus.

use std::sync::Arc;

use cairn_cf::Metric;
use cairn_mhost::MetricSource;
use cairn_nmod::NModule;
use cairn_oncrpc::MetricsSnapshot;
use cairn_sys::World;

pub(crate) fn metric(name: &str, labels: &[(&str, &str)], value: u64) -> Metric {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Metric { name: name.to_owned(), labels, value }
}

/// Of the N-module: operations submitted and refused.
pub(crate) fn of_nmod(nmod: Arc<NModule>) -> MetricSource {
    Arc::new(move || {
        let each = nmod.counters().into_iter().flat_map(|(op, count)| {
            [
                metric("nmod_operations_total", &[("op", op)], count.started),
                metric("nmod_refused_total", &[("op", op)], count.refused),
            ]
        });
        each.collect()
    })
}

/// Of the process: buffers and time.
pub(crate) fn of_process(world: World) -> MetricSource {
    let start = world.clock.monotonic();
    Arc::new(move || {
        let up = world.clock.monotonic().since(start).unwrap_or(0) / 1_000_000_000;
        let pages = cairn_sys::block::pages_in_use().saturating_mul(4096);
        let slabs: usize = cairn_sys::block::slabs().iter().map(|(_, bytes)| bytes).sum();
        vec![
            metric("uptime_seconds", &[], up),
            metric("buffer_bytes_in_use", &[], pages),
            metric("buffer_bytes_allocated", &[], slabs as u64),
        ]
    })
}

/// Of an RPC server: per procedure count, errors, bytes and a latency histogram.
pub(crate) fn of_rpc(server: &str, snapshot: &MetricsSnapshot) -> Vec<Metric> {
    let mut out = Vec::new();
    for p in &snapshot.procedures {
        let labels = [("server", server), ("procedure", p.name)];
        out.push(metric("rpc_requests_total", &labels, p.count));
        out.push(metric("rpc_errors_total", &labels, p.errors));
        out.push(metric("rpc_received_bytes_total", &labels, p.bytes_in));
        out.push(metric("rpc_sent_bytes_total", &labels, p.bytes_out));
        if p.count == 0 {
            continue;
        }
        let mut sum = 0u64;
        for (i, n) in p.latency_buckets.iter().enumerate() {
            sum = sum.saturating_add(*n);
            let le = match i + 1 == p.latency_buckets.len() {
                true => "+Inf".to_owned(),
                false => (1024u64 << i).to_string(),
            };
            let labels = [("server", server), ("procedure", p.name), ("le", le.as_str())];
            out.push(metric("rpc_latency_nanoseconds_bucket", &labels, sum));
        }
        out.push(metric("rpc_latency_nanoseconds_sum", &labels, p.latency_nanos));
        out.push(metric("rpc_latency_nanoseconds_count", &labels, sum));
    }
    for (name, value) in [
        ("rpc_connections", snapshot.connections),
        ("rpc_bytes_in_flight", snapshot.bytes_in_flight),
        ("rpc_accepted_total", snapshot.accepted),
        ("rpc_accept_errors_total", snapshot.accept_errors),
        ("rpc_refused_connections_total", snapshot.refused_connections),
        ("rpc_bad_records_total", snapshot.bad_records),
        ("rpc_timeouts_total", snapshot.timeouts),
        ("rpc_refused_calls_total", snapshot.refused_calls),
        ("rpc_replayed_total", snapshot.replayed),
        ("rpc_parked_total", snapshot.parked),
        ("rpc_dropped_total", snapshot.dropped),
        ("rpc_budget_waits_total", snapshot.budget_waits),
        ("rpc_raw_received_bytes_total", snapshot.bytes_received),
        ("rpc_gave_way_total", snapshot.gave_way),
        ("rpc_made_room_total", snapshot.made_room),
    ] {
        out.push(metric(name, &[("server", server)], value));
    }
    out
}
