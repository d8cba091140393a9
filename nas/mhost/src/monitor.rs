//! The watch: starts scrubs when they are due, and shows rebuilds that began by themselves.

use core::time::Duration;
use std::sync::Arc;

use crate::db::Table;
use crate::error::ApiError;
use crate::jobs::{Job, JobKind, JobState};
use crate::mhost::MHost;
use crate::model::ScrubSchedule;

/// How often the watch looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const NANOS_PER_HOUR: i64 = 3_600_000_000_000;

impl MHost {
    pub(crate) fn spawn_monitor(self: &Arc<Self>) {
        let (mhost, mut stop) = (self.clone(), self.stopping.subscribe());
        let task = async move {
            loop {
                let look = async {
                    mhost.world.clock.sleep(LOOK_INTERVAL).await;
                    mhost.look().await
                };
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|s| *s) => break,
                    looked = look => if let Err(e) = looked {
                        tracing::warn!("watch over disks and schedules: {e}");
                    }
                }
            }
            drop(mhost);
            drop(stop);
        };
        self.world.spawn.spawn("monitor", Box::pin(task));
    }

    fn runs(&self, is: impl Fn(&JobKind) -> bool) -> Result<bool, ApiError> {
        let jobs = self.db.list::<Job>(Table::Jobs)?;
        Ok(jobs.iter().any(|(_, job)| job.state == JobState::Running && is(&job.what)))
    }

    /// One look.
    pub(crate) async fn look(self: &Arc<Self>) -> Result<(), ApiError> {
        let rebuilding = self.disk_reports().await?.iter().any(|d| d.rebuild.is_some());
        let shown = self.runs(|w| {
            matches!(
                w,
                JobKind::Rebuild
                    | JobKind::DiskFail { .. }
                    | JobKind::DiskReplace { .. }
                    | JobKind::GroupKind { .. }
            )
        })?;
        if rebuilding && !shown {
            self.submit(|_| Ok(JobKind::Rebuild))?;
        }
        if self.scrub_due()? && !self.runs(|w| *w == JobKind::Scrub)? {
            self.submit(|_| Ok(JobKind::Scrub))?;
        }
        Ok(())
    }

    fn scrub_due(&self) -> Result<bool, ApiError> {
        let hours = self.scrub_schedule()?.interval_hours;
        if hours == 0 {
            return Ok(false);
        }
        let now = self.world.clock.wall().get();
        let last: Option<i64> = self.db.get(Table::Settings, "scrub_ended_ns")?;
        let Some(last) = last else {
            // The first interval begins with the first look at a new node.
            self.db.update(|tx| tx.put(Table::Settings, "scrub_ended_ns", &now))?;
            return Ok(false);
        };
        let interval = i64::from(hours).saturating_mul(NANOS_PER_HOUR);
        Ok(now.saturating_sub(last) >= interval)
    }

    /// The schedule of scrubs.
    pub(crate) fn scrub_schedule(&self) -> Result<ScrubSchedule, ApiError> {
        Ok(self.db.get(Table::Settings, "scrub_schedule")?.unwrap_or_default())
    }

    pub(crate) fn set_scrub_schedule(&self, schedule: ScrubSchedule) -> Result<(), ApiError> {
        self.db.update(|tx| tx.put(Table::Settings, "scrub_schedule", &schedule))?;
        Ok(())
    }
}
