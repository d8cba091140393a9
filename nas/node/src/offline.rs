//! The check of a node that is stopped: on its disks, without serving anybody.
//!
//! Layer: assembly, beside the daemon.

use core::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use cairn_cf::{CheckReport, DModule, Manage, Managed};
use cairn_raid_api::Aggregate;
use cairn_sys::World;

use crate::config::{DriverChoice, RaidLayout, StorageConfig};
use crate::storage::{Formation, Storage, StorageError, open_aggregate};

/// Cache of a storage manager that only repairs, in bytes.
const CACHE_BYTES: u64 = 256 << 20;
/// Between two looks at a check under way.
const LOOK_INTERVAL: core::time::Duration = core::time::Duration::from_millis(100);

/// Why there is no clean result.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The disks.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The runtime.
    #[error("starting: {0}")]
    Runtime(#[from] std::io::Error),
    /// The check itself did not come to an end.
    #[error("the check has no result: {0}")]
    NoResult(String),
    /// There are findings.
    #[error("{0}")]
    Findings(String),
}

/// Checks what lies on `disks`; with `repair`, replays the log and puts right what can be; with
/// `data`, reads the data of all files too.
///
/// # Errors
/// See [`OfflineError`]; findings that are left are one.
pub fn check(disks: &[PathBuf], repair: bool, data: bool) -> Result<String, OfflineError> {
    crate::daemon::runtime()?.block_on(async {
        let world = cairn_sys::real::world(tokio::runtime::Handle::current())?;
        let config = StorageConfig {
            disks: disks.to_vec(),
            log_devices: Vec::new(),
            log_devices_nonvolatile: false,
            log_bytes: None,
            cache_bytes: CACHE_BYTES,
            driver: DriverChoice::Auto,
            raid: RaidLayout::RaidDp,
            spares: 0,
        };
        match repair {
            true => repair_all(&world, &config, data).await,
            false => look(&world, &config, data).await,
        }
    })
}

async fn look(world: &World, config: &StorageConfig, data: bool) -> Result<String, OfflineError> {
    let aggregate = open_aggregate(world, config, &[], Formation::Refused).await?;
    let below: Arc<dyn Aggregate> = aggregate.clone();
    let audit = cairn_wafl_core::audit(&below, data).await;
    aggregate.shutdown();
    let mut out = format!(
        "{} volumes, {} inodes, {} blocks checked, {} findings\n",
        audit.volumes, audit.inodes, audit.blocks, audit.count
    );
    for finding in &audit.findings {
        line(&mut out, finding.severity().name(), &finding.to_string());
    }
    if audit.count == 0 { Ok(out) } else { Err(OfflineError::Findings(out)) }
}

async fn repair_all(
    world: &World,
    config: &StorageConfig,
    data: bool,
) -> Result<String, OfflineError> {
    let storage = Storage::open(world, config, &[], Formation::Refused).await?;
    let node = storage.dmodule();
    let report = run(world, &node, data).await;
    drop(node);
    storage.shutdown().await?;
    let report = report?;
    let [volumes, inodes, blocks] = report.seen;
    let mut out = format!(
        "{volumes} volumes, {inodes} inodes, {blocks} blocks checked, {} findings, {} repairs, \
         {} findings left\n",
        report.found, report.repaired, report.left
    );
    for finding in &report.findings {
        line(&mut out, &finding.severity, &finding.text);
    }
    if report.left == 0 { Ok(out) } else { Err(OfflineError::Findings(out)) }
}

async fn run(
    world: &World,
    node: &Arc<dyn DModule>,
    data: bool,
) -> Result<CheckReport, OfflineError> {
    let failed = |e: cairn_cf::ManageError| OfflineError::NoResult(e.to_string());
    let start = Manage::CheckStart { only: None, repair: true, data };
    node.manage(start).await.map_err(failed)?;
    loop {
        match node.manage(Manage::CheckStatus).await.map_err(failed)? {
            Managed::Check(CheckReport { failed: Some(reason), running: false, .. }) => {
                return Err(OfflineError::NoResult(reason));
            }
            Managed::Check(report) if !report.running => return Ok(report),
            _ => world.clock.sleep(LOOK_INTERVAL).await,
        }
    }
}

fn line(out: &mut String, severity: &str, text: &str) {
    // Writing to a string cannot fail.
    let written = writeln!(out, "{severity:<12} {text}");
    debug_assert!(written.is_ok());
}
