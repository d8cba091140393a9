//! Whether a state is one that may be there.
//!
//! Layer: above `rig` and `record`. A node is started on the state, as after any power cut; then
//! everything is compared with the promise, the committed state is walked, and the group is
//! scrubbed.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cairn_cf::{Manage, Managed};
use cairn_raid_api::Aggregate;
use cairn_units::Fsid;
use cairn_wafl_core::audit;

use crate::disk::Manner;
use crate::image::Image;
use crate::record::Promise;
use crate::rig::{MAIN, Machine, SECOND, Start};

/// How much of a state is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The promise, what was committed before and after replay, and the group.
    All,
    /// The promise alone: a node was started on the same contents, at the same time and with the same
    /// seed, and all else was looked at then.
    Promise,
}

/// Checks one state when disks die with the power: `lost` of them, the first from `from` on.
///
/// # Errors
/// What is wrong with it.
pub fn check_without(
    images: &[Image],
    promise: &Promise,
    (from, lost): (usize, usize),
    (starts, seed): (u8, u64),
) -> Result<()> {
    let dead: Vec<usize> = (from..from + lost).map(|n| n % images.len()).collect();
    let left = images.iter().enumerate().filter(|(n, _)| !dead.contains(n));
    let left: Vec<Image> = left.map(|(_, image)| image.clone()).collect();
    check(&left, promise, Scope::All, (starts, seed))
}

/// Checks one state.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    images: &[Image],
    promise: &Promise,
    scope: Scope,
    (starts, seed): (u8, u64),
) -> Result<()> {
    // A node goes on whatever the depth of its tetrises was before.
    let tetris_stripes = [2, 128][usize::from(seed.is_multiple_of(2))];
    let (manner, walks) = (Manner::Instant, scope == Scope::All);
    let start = Start { images, seed, starts, manner, tetris_stripes, walks };
    let machine = Machine::start(&start).context("the node does not start")?;
    compare(&machine, promise)?;
    if scope == Scope::All {
        let aggr: Arc<dyn Aggregate> = machine.aggr.clone();
        let report = machine.sim.block_on(audit(&aggr, true));
        if !report.findings.is_empty() {
            bail!("the committed state does not add up: {:#?}", report.findings);
        }
        machine.scrub()?;
    }
    if let Some(reason) = machine.node.stopped() {
        bail!("the node stopped: {reason}");
    }
    Ok(())
}

fn compare(machine: &Machine, promise: &Promise) -> Result<()> {
    let volumes = machine.volumes()?;
    if !promise.volumes.contains(&volumes) {
        bail!("the volumes are {volumes:?}, none of {:?}", promise.volumes);
    }
    for fsid in volumes.keys() {
        let mut runner = match *fsid {
            MAIN => promise.main.fork(),
            SECOND => promise.second.fork(),
            other => {
                empty(machine, other)?;
                continue;
            }
        };
        let compared = machine.sim.block_on(runner.remounted(machine.dmodule()));
        compared.with_context(|| format!("volume {fsid}"))?;
    }
    Ok(())
}

/// A volume that was made by the workload has a root and nothing in it.
fn empty(machine: &Machine, fsid: Fsid) -> Result<()> {
    let Managed::Root(_) = machine.manage(Manage::VolumeRoot { fsid })? else {
        bail!("volume {fsid} has no root");
    };
    Ok(())
}
