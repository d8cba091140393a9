//! When consistency points ran, and how long writes waited during and outside of them.
//!
//! Layer: inside `cairn-points`. Points are seen as the spans that the storage manager opens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::ensure;
use cairn_sys::{Clock, World};
use cairn_units::MonoTime;
use tracing::span::{Attributes, Id};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const SPAN: &str = "consistency_point";
/// Points without which nothing can be said.
const POINTS_MIN: usize = 5;
/// Writes of each kind without which there is no 99th percentile.
const WRITES_MIN: usize = 1000;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Sent.
    pub from: MonoTime,
    /// Answered.
    pub to: MonoTime,
}

impl Wait {
    fn nanos(self) -> u64 {
        self.to.since(self.from).unwrap_or(0)
    }
}

#[derive(Default)]
struct Seen {
    running: BTreeMap<u64, MonoTime>,
    ended: Vec<Wait>,
}

/// The points of this process.
#[derive(Clone)]
pub struct Points {
    clock: Arc<dyn Clock>,
    seen: Arc<Mutex<Seen>>,
}

impl Points {
    /// Notes all points from here on.
    ///
    /// # Errors
    /// Somebody else listens to the spans already.
    pub fn watched(world: &World) -> anyhow::Result<Self> {
        let points = Self { clock: world.clock.clone(), seen: Arc::default() };
        tracing::subscriber::set_global_default(Registry::default().with(points.clone()))?;
        Ok(points)
    }
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Begins anew.
    pub fn forget(&self) {
        self.lock().ended.clear();
    }
    /// Those that ended since, and the one that runs.
    pub fn seen(&self) -> Vec<Wait> {
        let now = self.clock.monotonic();
        let seen = self.lock();
        let running = seen.running.values().map(|from| Wait { from: *from, to: now });
        seen.ended.iter().copied().chain(running).collect()
    }
}

impl<S: Subscriber> Layer<S> for Points {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.name() == SPAN
    }
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let now = self.clock.monotonic();
        self.lock().running.insert(id.into_u64(), now);
    }
    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let to = self.clock.monotonic();
        let mut seen = self.lock();
        if let Some(from) = seen.running.remove(&id.into_u64()) {
            seen.ended.push(Wait { from, to });
        }
    }
}

/// Whether `write` was under way at any moment of one of `points`, which are in order.
fn during(write: Wait, points: &[Wait]) -> bool {
    let next = points.partition_point(|point| point.to < write.from);
    points.get(next).is_some_and(|point| point.from <= write.to)
}

/// The value below which `percent` of the sorted values are.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

/// The table of waits.
///
/// # Errors
/// There were too few points, or too few writes during them.
pub fn report(writes: &[Wait], points: &[Wait]) -> anyhow::Result<String> {
    ensure!(points.len() >= POINTS_MIN, "{} consistency points are too few", points.len());
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.from);
    let (mut inside, mut outside): (Vec<Wait>, Vec<Wait>) =
        writes.iter().partition(|write| during(**write, &points));
    let mut lines = vec![
        "| FILE_SYNC writes of 4 KiB | count | p50 us | p90 us | p99 us | max us |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    let mut p99 = Vec::new();
    for (name, waits) in [("outside of points", &mut outside), ("during points", &mut inside)] {
        let mut nanos: Vec<u64> = waits.iter().map(|w| w.nanos()).collect();
        nanos.sort_unstable();
        let us = |percent| percentile(&nanos, percent) / 1000;
        let cells = [us(50), us(90), us(99), us(100)].map(|n| n.to_string()).join(" | ");
        lines.push(format!("| {name} | {} | {cells} |", nanos.len()));
        p99.push(percentile(&nanos, 99));
    }
    let mut took: Vec<u64> = points.iter().map(|p| p.nanos() / 1_000_000).collect();
    took.sort_unstable();
    ensure!(inside.len() >= WRITES_MIN, "{} writes during points are too few", inside.len());
    // Points may follow one another without a break.
    let times = if outside.len() >= WRITES_MIN {
        let tenths = p99[1] * 10 / p99[0].max(1);
        format!("{}.{}", tenths / 10, tenths % 10)
    } else {
        "hardly any was outside".to_owned()
    };
    lines.push(format!(
        "\np99 during points / outside: {times}. {} points, {} ms each in the middle, {} ms at most.",
        points.len(),
        percentile(&took, 50),
        percentile(&took, 100)
    ));
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(from: u64, to: u64) -> Wait {
        Wait { from: MonoTime::new(from), to: MonoTime::new(to) }
    }

    #[test]
    fn a_write_is_during_a_point_that_it_touches_and_no_other() {
        let points = [wait(100, 200), wait(300, 400)];
        let cases = [
            (10, 99, false),
            (10, 100, true),
            (150, 160, true),
            (200, 250, true),
            (201, 299, false),
        ];
        for (from, to, wanted) in cases {
            assert_eq!(during(wait(from, to), &points), wanted, "{from}..{to}");
        }
        assert!(during(wait(350, 1000), &points) && !during(wait(401, 1000), &points));
    }

    #[test]
    fn the_report_tells_slow_points_from_quick_ones() {
        let points: Vec<Wait> =
            (0..10u64).map(|n| wait(n * 10_000_000, n * 10_000_000 + 4_000_000)).collect();
        let writes = |slow: u64| {
            (0..100_000u64).map(move |n| {
                let from = n * 1000;
                wait(from, from + if from % 10_000_000 < 3_900_000 { slow } else { 50_000 })
            })
        };
        let slow = report(&writes(99_000).collect::<Vec<_>>(), &points).unwrap();
        assert!(slow.contains("/ outside: 1.9."), "{slow}");
        let same = report(&writes(50_000).collect::<Vec<_>>(), &points).unwrap();
        assert!(same.contains("/ outside: 1.0."), "{same}");
        assert!(report(&writes(50_000).collect::<Vec<_>>(), &points[..4]).is_err());
        let always: Vec<Wait> =
            (0..5u64).map(|n| wait(n * 20_000_000, (n + 1) * 20_000_000)).collect();
        let always = report(&writes(50_000).collect::<Vec<_>>(), &always).unwrap();
        assert!(always.contains("/ outside: hardly any"), "{always}");
    }
}
