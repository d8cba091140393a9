//! What the administrator sees, from what the layers report.

use cairn_cf::{CheckFinding, DiskPlace, DiskReport, Explanation, Manage, Managed, VolumeStatus};
use cairn_op::{ClientAddr, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, Status};
use cairn_units::{Fbn, Fsid, OpNo, VserverId};

use crate::api::{
    AggregateView, CheckFindingView, CheckView, DiskView, ExplainBlock, ExplainView, ExportView,
    GroupView, JobView, PlaceView, ScrubView, StatusView, VolumeView,
};
use crate::db::Table;
use crate::error::ApiError;
use crate::jobs::{Job, JobState};
use crate::mhost::MHost;
use crate::model::{VolumeEntry, VolumeState, Vserver};

/// Operation number of the M-host's own look-ups (clients' begin at 1).
const OWN_OP: OpNo = OpNo::new(0);

fn disk_view(d: DiskReport) -> DiskView {
    let [reads, blocks_read, writes, blocks_written, flushes, errors] = d.counters;
    DiskView {
        disk: d.disk.to_string(),
        location: d.location,
        class: d.class,
        size_bytes: d.size_bytes,
        role: d.role,
        group: d.position.map(|(g, _)| g.get()),
        column: d.position.map(|(_, c)| c),
        state: d.state,
        rebuild_done: d.rebuild.map(|r| r.0),
        rebuild_total: d.rebuild.map(|r| r.1),
        reads,
        blocks_read,
        writes,
        blocks_written,
        flushes,
        errors,
    }
}

fn place(p: DiskPlace) -> PlaceView {
    PlaceView { column: p.column, disk: p.disk, location: p.location, dbn: p.dbn }
}

fn explain_block(e: Explanation) -> Option<ExplainBlock> {
    e.block.map(|b| ExplainBlock {
        vvbn: b.vvbn.get(),
        pvbn: b.pvbn.get(),
        pvbn_hint: b.hint.get(),
        crc: b.crc.get(),
        group: b.group.get(),
        stripe: b.stripe,
        data: place(b.data),
        parity: b.parity.into_iter().map(place).collect(),
    })
}

fn finding_view(finding: CheckFinding) -> CheckFindingView {
    CheckFindingView { severity: finding.severity, text: finding.text }
}

impl MHost {
    /// All disks.
    pub async fn disks_view(&self) -> Result<Vec<DiskView>, ApiError> {
        Ok(self.disk_reports().await?.into_iter().map(disk_view).collect())
    }

    /// All aggregates (one, for now).
    pub async fn aggregates_view(&self) -> Result<Vec<AggregateView>, ApiError> {
        let a = self.aggregate_status().await?;
        let groups = a.groups.into_iter().map(|g| GroupView {
            group: g.group.get(),
            kind: g.kind,
            data_disks: g.data_disks,
            state: g.state,
            size_bytes: g.size_bytes,
        });
        Ok(vec![AggregateView {
            uuid: a.uuid,
            size_bytes: a.size_bytes,
            used_bytes: a.used_bytes,
            cp_count: a.cp_count,
            groups: groups.collect(),
            log_disks: a.log_disks,
            faults: a.faults,
        }])
    }

    async fn volume_reports(&self) -> Result<Vec<VolumeStatus>, ApiError> {
        match self.manage(Manage::VolumeList).await? {
            Managed::Volumes(volumes) => Ok(volumes),
            _ => Err(ApiError::unexpected()),
        }
    }

    fn vserver_name(&self, id: u32) -> Result<String, ApiError> {
        let all = self.db.list::<Vserver>(Table::Vservers)?;
        let found = all.into_iter().find(|(_, v)| v.id == id);
        Ok(found.map_or_else(|| id.to_string(), |(_, v)| v.name))
    }

    /// All volumes.
    pub(crate) async fn volumes_view(&self) -> Result<Vec<VolumeView>, ApiError> {
        let reports = self.volume_reports().await?;
        let mut out = Vec::new();
        for (_, v) in self.db.list::<VolumeEntry>(Table::Volumes)? {
            let below = reports.iter().find(|r| r.fsid == Fsid::new(v.fsid));
            out.push(VolumeView {
                vserver: self.vserver_name(v.vserver)?,
                name: v.name,
                fsid: v.fsid,
                junction: v.junction,
                state: v.state,
                size_bytes: below.map_or(v.size_bytes, |b| b.size_bytes),
                used_bytes: below.map_or(0, |b| b.used_bytes),
                files: below.map_or(0, |b| b.files),
            });
        }
        Ok(out)
    }

    /// All exports.
    pub(crate) fn exports_view(&self) -> Result<Vec<ExportView>, ApiError> {
        let mut out = Vec::new();
        for (key, v) in self.db.list::<VolumeEntry>(Table::Volumes)? {
            let rules = self.db.get(Table::Policies, &key)?.unwrap_or_default();
            out.push(ExportView { volume: v.name, path: v.junction, rules });
        }
        Ok(out)
    }

    /// A job as the administrator sees it.
    pub(crate) fn job_view(&self, job: Job) -> JobView {
        let steps = job.what.steps();
        JobView {
            id: job.id,
            title: job.what.title(),
            state: job.state,
            steps_done: job.step as u64,
            steps_total: steps.len() as u64,
            step: steps.get(job.step).copied().unwrap_or_default().to_owned(),
            progress: self.progress(job.id),
            what: job.what,
            message: job.message,
            what_to_do: job.what_to_do,
            created_ns: job.created_ns,
            ended_ns: job.ended_ns,
        }
    }

    /// All jobs, oldest first.
    pub(crate) fn jobs_view(&self) -> Result<Vec<JobView>, ApiError> {
        let jobs = self.db.list::<Job>(Table::Jobs)?;
        Ok(jobs.into_iter().map(|(_, job)| self.job_view(job)).collect())
    }

    /// The scrub.
    pub(crate) async fn scrub_view(&self) -> Result<ScrubView, ApiError> {
        let s = self.scrub_report().await?;
        Ok(ScrubView {
            running: s.running,
            finished: s.finished,
            stripes_done: s.progress.0,
            stripes_total: s.progress.1,
            damaged: s.damaged,
            repaired: s.repaired,
            parity_mismatches: s.parity_mismatches,
            findings: s.findings.into_iter().map(finding_view).collect(),
            schedule: self.scrub_schedule()?,
        })
    }

    /// The check.
    pub(crate) async fn check_view(&self) -> Result<CheckView, ApiError> {
        let c = self.check_report().await?;
        Ok(CheckView {
            running: c.running,
            repair: c.repair,
            blocks_done: c.progress.0,
            blocks_total: c.progress.1,
            volumes: c.seen[0],
            inodes: c.seen[1],
            found: c.found,
            repaired: c.repaired,
            left: c.left,
            findings: c.findings.into_iter().map(finding_view).collect(),
            failed: c.failed,
        })
    }

    /// The node at a glance.
    pub(crate) async fn status_view(&self) -> Result<StatusView, ApiError> {
        let a = self.aggregate_status().await?;
        let volumes = self.db.list::<VolumeEntry>(Table::Volumes)?;
        let jobs = self.db.list::<Job>(Table::Jobs)?;
        let vservers = self.db.list::<Vserver>(Table::Vservers)?;
        let health = match () {
            () if a.groups.iter().any(|g| g.state == "failed") => "failed",
            () if a.groups.iter().any(|g| g.state != "normal") => "degraded",
            () => "ok",
        };
        let up = self.world.clock.wall().get().saturating_sub(self.started_ns) / 1_000_000_000;
        let endpoints = self.endpoints();
        Ok(StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.identity.uuid.clone(),
            vservers: vservers.into_iter().map(|(_, v)| v).collect(),
            nfs: endpoints.nfs,
            rest: endpoints.rest,
            state_dir: endpoints.state_dir.display().to_string(),
            uptime_seconds: u64::try_from(up).unwrap_or(0),
            health: health.to_owned(),
            faults: a.faults,
            volumes_online: volumes.iter().filter(|(_, v)| v.state == VolumeState::Online).count()
                as u64,
            jobs_running: jobs.iter().filter(|(_, j)| j.state == JobState::Running).count() as u64,
            size_bytes: a.size_bytes,
            used_bytes: a.used_bytes,
            cp_count: a.cp_count,
        })
    }

    async fn resolve(
        &self,
        volume: &VolumeEntry,
        rest: &str,
    ) -> Result<(ObjectRef, u64), ApiError> {
        let root = match self.manage(Manage::VolumeRoot { fsid: Fsid::new(volume.fsid) }).await? {
            Managed::Root(root) => root,
            _ => return Err(ApiError::unexpected()),
        };
        let ctx = OpCtx {
            vserver: VserverId::new(volume.vserver),
            cred: Credential::root(),
            client: ClientAddr { ip: std::net::Ipv4Addr::LOCALHOST.into(), port: 0 },
            op_no: OWN_OP,
            deadline: None,
            read_only: ReadOnly::Yes,
        };
        let failed = |status: Status| {
            ApiError::missing(format!("{rest:?}: {status}"), "check the path inside the volume")
        };
        let mut at = (root, 0);
        for part in rest.split('/').filter(|p| !p.is_empty()) {
            let name = Name::new(part.as_bytes().to_vec().into()).map_err(failed)?;
            let op = Op::Lookup { dir: at.0, name };
            match self.dmodule.file(ctx.clone(), op).wait().await {
                Ok(Reply::Found { obj, attrs, .. }) => at = (obj, attrs.size),
                Ok(_) => return Err(ApiError::unexpected()),
                Err(failure) => return Err(failed(failure.status)),
            }
        }
        if at.0 == root {
            let op = Op::GetAttr { obj: root };
            if let Ok(Reply::Attrs(attrs)) = self.dmodule.file(ctx, op).wait().await {
                at.1 = attrs.size;
            }
        }
        Ok(at)
    }

    /// Where the block with the byte at `offset` of the file at `path` lies.
    pub(crate) async fn explain_view(
        &self,
        path: &str,
        offset: u64,
    ) -> Result<ExplainView, ApiError> {
        let volumes = self.db.list::<VolumeEntry>(Table::Volumes)?;
        let inside = |v: &VolumeEntry| {
            path.strip_prefix(v.junction.as_str())
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                .map(str::to_owned)
        };
        let best = volumes
            .into_iter()
            .filter(|(_, v)| v.state == VolumeState::Online)
            .filter_map(|(_, v)| inside(&v).map(|rest| (v, rest)))
            .max_by_key(|(v, _)| v.junction.len());
        let Some((volume, rest)) = best else {
            return Err(ApiError::missing(
                format!("{path:?} is in no volume"),
                "begin the path with a volume's junction; `cairn volume list` shows them",
            ));
        };
        let (obj, size_bytes) = self.resolve(&volume, &rest).await?;
        let fbn = Fbn::of_offset(offset);
        let explained = match self.manage(Manage::Explain { obj, fbn }).await? {
            Managed::Explained(explained) => explained,
            _ => return Err(ApiError::unexpected()),
        };
        Ok(ExplainView {
            path: path.to_owned(),
            volume: volume.name,
            fsid: volume.fsid,
            ino: explained.ino.get(),
            size_bytes,
            fbn: explained.fbn.get(),
            state: explained.state.clone(),
            block: explain_block(explained),
        })
    }
}
