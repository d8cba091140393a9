//! The check on a live node: it walks a committed point while clients go on, and repairs.
//!
//! Layer: inside the check, on the manager.
//!
//! # Rules
//! - From the start of a round the blocks that consistency points free are held back
//!   ([`crate::space::Space::hold`]): what the walked root reaches is not overwritten. When space
//!   runs short the hold is given up, and the check ends without a result.
//! - A repair changes what a finding says by the difference it found; clients' changes since the
//!   walked root add up with it. It looks at the present state first and leaves alone what is no
//!   longer as it was found.
//! - Changes of a volume wait ([`cairn_op::Status::Delay`]) from its first repair until the point
//!   that commits the repairs: no log record can build on a repair that is not on disk.
//! - Blocks are given free only when the walk could read everything that leads to blocks.

use std::sync::Arc;

use cairn_cf::{CheckFinding, CheckReport};
use cairn_sys::lock::atomic::Ordering;
use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_units::Fsid;

use super::{Audit, Finding, Progress, Scope, check_root};
use crate::manager::Inner;

/// Rounds of walking and repairing: what one mends can show what it hid.
const ROUNDS_MAX: u32 = 6;

/// How the last check stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct CheckStatus {
    pub running: bool,
    pub only: Option<Fsid>,
    pub repair: bool,
    /// Of the round under way or the last one.
    pub audit: Audit,
    /// Findings of the first round.
    pub found: u64,
    /// Repairs made.
    pub repaired: u64,
    /// Why it ended without a result.
    pub failed: Option<String>,
}

/// The check of a node.
#[derive(Debug)]
pub(crate) struct Check {
    status: Mutex<CheckStatus>,
    progress: Mutex<Arc<Progress>>,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            status: Mutex::new(Rank::CheckStatus, CheckStatus::default()),
            progress: Mutex::new(Rank::CheckProgress, Arc::default()),
        }
    }
}

impl Check {
    /// Asks a walk under way to end, because the blocks held back for it are wanted.
    pub fn yield_space(&self) {
        self.progress().stop.store(true, Ordering::Relaxed);
    }

    fn status(&self) -> Guard<'_, CheckStatus> {
        self.status.lock()
    }
    pub(super) fn progress(&self) -> Guard<'_, Arc<Progress>> {
        self.progress.lock()
    }

    /// How it stands, and blocks looked at, of all.
    pub fn report(&self) -> (CheckStatus, (u64, u64)) {
        let progress = self.progress().clone();
        let done = progress.done.load(Ordering::Relaxed);
        let total = progress.total.load(Ordering::Relaxed).max(done);
        (self.status().clone(), (done, total))
    }
}

impl Inner {
    /// Starts a check of one volume or of everything; one that runs goes on.
    pub(crate) fn start_check(self: &Arc<Self>, scope: Scope, repair: bool) {
        let only = scope.only;
        {
            let mut status = self.check.status();
            if status.running {
                return;
            }
            *status = CheckStatus { running: true, only, repair, ..CheckStatus::default() };
        }
        let this = self.clone();
        self.world.spawn.spawn(
            "check",
            Box::pin(async move {
                let failed = this.check(scope, repair).await.err();
                let mut status = this.check.status();
                status.failed = failed;
                status.running = false;
            }),
        );
    }

    async fn check(&self, scope: Scope, repair: bool) -> Result<(), String> {
        for round in 0..ROUNDS_MAX {
            let progress = Arc::new(Progress::default());
            *self.check.progress() = progress.clone();
            // What is in memory only is not on disk yet: the point before the walk shows it.
            self.engine.lock().await.space.hold(progress.clone());
            let walked = self.walk(scope, &progress).await;
            let mut engine = self.engine.lock().await;
            let (audit, whole) = match walked {
                Ok(walked) => walked,
                Err(error) => {
                    engine.space.release();
                    return Err(error);
                }
            };
            let ended = {
                let mut status = self.check.status();
                if round == 0 {
                    status.found = audit.count;
                }
                status.audit = audit.clone();
                audit.findings.is_empty() || !repair
            };
            if ended {
                engine.space.release();
                return Ok(());
            }
            let mended = self.repair(&mut engine, &audit, whole).await;
            engine.space.release();
            drop(engine);
            self.check.status().repaired += mended;
            // Also when nothing counts as mended: a repair that was not finished may have changed
            // something on its way, and no log record may build on that before it is on disk.
            let committed = self.cp_now().await;
            self.end_quiet();
            committed.map_err(|e| e.to_string())?;
            if mended == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn walk(&self, scope: Scope, progress: &Arc<Progress>) -> Result<(Audit, bool), String> {
        self.cp_now().await.map_err(|e| e.to_string())?;
        let Some(root) = self.aggr.root() else { return Ok((Audit::default(), true)) };
        let (audit, whole) = check_root(&self.aggr, &root.bytes, scope, progress).await;
        if progress.stop.load(Ordering::Relaxed) {
            return Err("clients needed the blocks that were held back for the check, or there \
                        were too many of them: start it again when there is more free space or \
                        less to write"
                .to_owned());
        }
        Ok((audit, whole))
    }

    /// Lets clients change volumes again.
    fn end_quiet(&self) {
        for volume in self.volumes() {
            volume.quiet.store(false, Ordering::Release);
        }
    }

    /// How the last check stands, for CF.
    pub(crate) fn check_report(&self) -> CheckReport {
        let (s, progress) = self.check.report();
        let finding = |f: &Finding| CheckFinding {
            severity: f.severity().name().to_owned(),
            volume: f.volume(),
            text: f.to_string(),
        };
        CheckReport {
            running: s.running,
            only: s.only,
            repair: s.repair,
            progress,
            seen: [s.audit.volumes, s.audit.inodes, s.audit.blocks],
            found: s.found,
            repaired: s.repaired,
            left: s.audit.count,
            findings: s.audit.findings.iter().map(finding).collect(),
            failed: s.failed,
        }
    }
}
