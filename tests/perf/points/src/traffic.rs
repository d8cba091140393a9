//! Blocks that the layers and the disks count, and the row of the table that they make.
//!
//! Layer: inside `cairn-points`; pure.

use anyhow::{Context, ensure};
use cairn_cf::Metric;

/// Part of all writes by which the counts of layers and disks may differ.
const COUNTS_DIFFER: u64 = 50;

/// Counters at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    points: u64,
    metadata: u64,
    data: u64,
    fill: u64,
    parity: u64,
    checksums: u64,
    parity_read: u64,
    full_stripes: u64,
    partial_stripes: u64,
    stripe_log: u64,
    nv_log: u64,
    device: u64,
}

fn sum(metrics: &[Metric], name: &str) -> anyhow::Result<u64> {
    let mut found = metrics.iter().filter(|m| m.name == name).map(|m| m.value).peekable();
    found.peek().with_context(|| format!("no counter {name}"))?;
    Ok(found.sum())
}

fn share(part: u64, of: u64) -> String {
    if of == 0 {
        return "-".to_owned();
    }
    let thousandth = part * 1000 / of;
    format!("{}.{:03}", thousandth / 1000, thousandth % 1000)
}

impl Traffic {
    /// The head of the table. Up to the logs, columns are blocks per 4 KiB that clients wrote, on
    /// all disks; `together` is all of them without the logs.
    pub const HEAD: &'static str = "| writes of 4 KiB | count | points | data | metadata | fill | parity | checksums \
         | root, labels, maps of regions | together | parity reads | stripe log, all copies | NV log, all copies \
         | full stripes |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

    /// Reads them. The stripe log is kept on one disk more than there are parity disks.
    ///
    /// # Errors
    /// A counter is not there.
    pub fn of(metrics: &[Metric], parity_disks: u64) -> anyhow::Result<Self> {
        let of = |name: &str| sum(metrics, name);
        Ok(Self {
            points: of("cp_total")?,
            metadata: of("cp_metadata_blocks_total")?,
            data: of("raid_data_blocks_written_total")?,
            fill: of("raid_fill_blocks_written_total")?,
            parity: of("raid_parity_blocks_written_total")?,
            checksums: of("raid_checksum_blocks_written_total")?,
            parity_read: of("raid_parity_blocks_read_total")?,
            full_stripes: of("raid_full_stripes_total")?,
            partial_stripes: of("raid_partial_stripes_total")?,
            stripe_log: of("raid_stripe_log_blocks_written_total")? * (parity_disks + 1),
            nv_log: of("log_area_blocks_written_total")?,
            device: of("disk_blocks_written_total")?,
        })
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            points: self.points - before.points,
            metadata: self.metadata - before.metadata,
            data: self.data - before.data,
            fill: self.fill - before.fill,
            parity: self.parity - before.parity,
            checksums: self.checksums - before.checksums,
            parity_read: self.parity_read - before.parity_read,
            full_stripes: self.full_stripes - before.full_stripes,
            partial_stripes: self.partial_stripes - before.partial_stripes,
            stripe_log: self.stripe_log - before.stripe_log,
            nv_log: self.nv_log - before.nv_log,
            device: self.device - before.device,
        }
    }

    /// A row of the table, for `writes` blocks from clients.
    ///
    /// The layers count what they hand on, the disks what they have done: they differ by a little.
    ///
    /// # Errors
    /// The layers counted far more than the disks: a counter lies.
    pub fn row(&self, name: &str, writes: u64) -> anyhow::Result<String> {
        let counted = self.data + self.fill + self.parity + self.checksums;
        let logs = self.stripe_log + self.nv_log;
        let most = self.device + self.device / COUNTS_DIFFER;
        ensure!(counted + logs <= most, "the disks wrote less than was counted: {self:?}");
        let other = self.device.saturating_sub(counted + logs);
        let columns = [
            share(self.data.saturating_sub(self.metadata), writes),
            share(self.metadata, writes),
            share(self.fill, writes),
            share(self.parity, writes),
            share(self.checksums, writes),
            share(other, writes),
            share(self.device - logs, writes),
            share(self.parity_read, writes),
            share(self.stripe_log, writes),
            share(self.nv_log, writes),
            share(self.full_stripes, self.full_stripes + self.partial_stripes),
        ];
        Ok(format!("| {name} | {writes} | {} | {} |", self.points, columns.join(" | ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_adds_up_and_a_counter_that_lies_is_found() {
        let later = Traffic {
            points: 3,
            metadata: 20,
            data: 120,
            parity: 40,
            checksums: 10,
            full_stripes: 9,
            partial_stripes: 3,
            stripe_log: 30,
            nv_log: 300,
            device: 510,
            ..Traffic::default()
        };
        let row = later.since(&Traffic { points: 1, ..Traffic::default() }).row("x", 100).unwrap();
        let wanted = "| x | 100 | 2 | 1.000 | 0.200 | 0.000 | 0.400 | 0.100 | 0.100 | 1.800 | 0.000 \
                      | 0.300 | 3.000 | 0.750 |";
        assert_eq!(row, wanted);
        assert!(Traffic { device: 485, ..later }.row("x", 100).is_err());
    }
}
