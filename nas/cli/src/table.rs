//! Tables for people.

use cairn_mhost::api::{
    AggregateView, CheckFindingView, CheckView, CounterView, DiskView, ExplainView, ExportView,
    JobView, PlaceView, ScrubView, StatusView, VolumeView,
};
use cairn_mhost::jobs::JobState;
use cairn_mhost::model::{ExportRule, RuleAccess, RuleSquash, VolumeState};
use cairn_node::show_size;

/// Which side a column leans to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, two spaces between columns, no trailing spaces.
pub fn table(columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let width = |i: usize, heading: &str| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([heading.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(i, (h, _))| width(i, h)).collect();
    let headings: Vec<String> = columns.iter().map(|(h, _)| (*h).to_owned()).collect();
    let mut out = String::new();
    for row in core::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, side)) in row.iter().zip(&widths).zip(columns) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match side {
                Side::Left => line.push_str(&format!("{cell}{pad}  ")),
                Side::Right => line.push_str(&format!("{pad}{cell}  ")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Lines of `name: value`, values under each other.
pub fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(n, _)| n.chars().count()).max().unwrap_or(0) + 1;
    let line = |(name, value): &(&str, String)| {
        format!("{:width$} {value}\n", format!("{name}:")).trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

fn faults(list: &[String]) -> String {
    list.iter().map(|f| format!("fault: {f}\n")).collect()
}

fn duration(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

/// The node at a glance.
pub fn status(s: &StatusView) -> String {
    let vservers: Vec<&str> = s.vservers.iter().map(|v| v.name.as_str()).collect();
    let space = format!("{} of {} used", show_size(s.used_bytes), show_size(s.size_bytes));
    facts(&[
        ("node", s.node.clone()),
        ("version", s.version.clone()),
        ("health", s.health.clone()),
        ("up", duration(s.uptime_seconds)),
        ("vservers", vservers.join(", ")),
        ("nfs", s.nfs.clone()),
        ("rest", s.rest.clone()),
        ("state", s.state_dir.clone()),
        ("volumes", s.volumes_online.to_string()),
        ("space", space),
        ("consistency points", s.cp_count.to_string()),
        ("jobs running", s.jobs_running.to_string()),
    ]) + &faults(&s.faults)
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// `37 %`; a full bar only when it is done.
pub fn percent(done: u64, total: u64) -> String {
    let share = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(0);
    format!("{share} %")
}

/// All disks.
pub fn disks(list: &[DiskView]) -> String {
    let state = |d: &DiskView| match (d.rebuild_done, d.rebuild_total) {
        (Some(done), Some(total)) => format!("{} {}", d.state, percent(done, total)),
        _ => d.state.clone(),
    };
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|d| {
            vec![
                d.disk.clone(),
                d.role.clone(),
                optional(d.group),
                optional(d.column),
                state(d),
                show_size(d.size_bytes),
                d.errors.to_string(),
                d.class.clone(),
                d.location.clone(),
            ]
        })
        .collect();
    let columns = [
        ("DISK", Side::Left),
        ("ROLE", Side::Left),
        ("GROUP", Side::Right),
        ("COLUMN", Side::Right),
        ("STATE", Side::Left),
        ("SIZE", Side::Right),
        ("ERRORS", Side::Right),
        ("CLASS", Side::Left),
        ("LOCATION", Side::Left),
    ];
    table(&columns, &rows)
}

/// All aggregates with their groups.
pub fn aggregates(list: &[AggregateView]) -> String {
    let mut out = String::new();
    for a in list {
        out += &facts(&[
            ("aggregate", a.uuid.clone()),
            ("space", format!("{} of {} used", show_size(a.used_bytes), show_size(a.size_bytes))),
            ("consistency points", a.cp_count.to_string()),
            ("log on", a.log_disks.join(", ")),
        ]);
        out += &faults(&a.faults);
        let rows: Vec<Vec<String>> = a
            .groups
            .iter()
            .map(|g| {
                vec![
                    g.group.to_string(),
                    g.kind.clone(),
                    g.data_disks.to_string(),
                    g.state.clone(),
                    show_size(g.size_bytes),
                ]
            })
            .collect();
        let columns = [
            ("GROUP", Side::Right),
            ("RAID", Side::Left),
            ("DATA DISKS", Side::Right),
            ("STATE", Side::Left),
            ("SIZE", Side::Right),
        ];
        out += &table(&columns, &rows);
    }
    out
}

/// All volumes.
pub fn volumes(list: &[VolumeView]) -> String {
    let state = |v: &VolumeView| match v.state {
        VolumeState::Creating => "creating",
        VolumeState::Online => "online",
        VolumeState::Deleting => "deleting",
    };
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|v| {
            vec![
                v.name.clone(),
                v.fsid.to_string(),
                state(v).to_owned(),
                show_size(v.size_bytes),
                show_size(v.used_bytes),
                v.files.to_string(),
                v.vserver.clone(),
                v.junction.clone(),
            ]
        })
        .collect();
    let columns = [
        ("VOLUME", Side::Left),
        ("FSID", Side::Right),
        ("STATE", Side::Left),
        ("SIZE", Side::Right),
        ("USED", Side::Right),
        ("FILES", Side::Right),
        ("VSERVER", Side::Left),
        ("PATH", Side::Left),
    ];
    table(&columns, &rows)
}

fn rule(e: &ExportView, r: &ExportRule) -> Vec<String> {
    let access = match r.access {
        RuleAccess::None => "none",
        RuleAccess::Ro => "ro",
        RuleAccess::Rw => "rw",
    };
    let squash = match r.squash {
        RuleSquash::None => "none".to_owned(),
        RuleSquash::Root => format!("root to {}:{}", r.anon_uid, r.anon_gid),
        RuleSquash::All => format!("all to {}:{}", r.anon_uid, r.anon_gid),
    };
    let ports = if r.privileged_port { "below 1024" } else { "any" };
    vec![
        e.path.clone(),
        e.volume.clone(),
        r.clients.clone(),
        access.to_owned(),
        squash,
        ports.into(),
    ]
}

/// All exports, a line for each rule.
pub fn exports(list: &[ExportView]) -> String {
    let mut rows = Vec::new();
    for e in list {
        rows.extend(e.rules.iter().map(|r| rule(e, r)));
        if e.rules.is_empty() {
            let none = "(nobody)".to_owned();
            rows.push(vec![
                e.path.clone(),
                e.volume.clone(),
                none,
                "-".into(),
                "-".into(),
                "-".into(),
            ]);
        }
    }
    let columns = [
        ("PATH", Side::Left),
        ("VOLUME", Side::Left),
        ("CLIENTS", Side::Left),
        ("ACCESS", Side::Left),
        ("SQUASH", Side::Left),
        ("PORTS", Side::Left),
    ];
    table(&columns, &rows)
}

/// What a job is doing, in a few words.
pub fn job_progress(job: &JobView) -> String {
    match (job.state, &job.progress) {
        (JobState::Running, Some(p)) if p.total > 0 => {
            format!(
                "{} {} ({} of {} {})",
                job.step,
                percent(p.done, p.total),
                p.done,
                p.total,
                p.unit
            )
        }
        (JobState::Running, _) => job.step.clone(),
        (JobState::Done | JobState::Failed, _) => job.message.clone(),
    }
}

/// A job's state as a word.
pub fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
    }
}

/// All jobs.
pub fn jobs(list: &[JobView]) -> String {
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|j| {
            vec![
                j.id.to_string(),
                job_state(j.state).to_owned(),
                format!("{}/{}", j.steps_done, j.steps_total),
                j.title.clone(),
                job_progress(j),
            ]
        })
        .collect();
    let columns = [
        ("JOB", Side::Right),
        ("STATE", Side::Left),
        ("STEP", Side::Right),
        ("WHAT", Side::Left),
        ("PROGRESS", Side::Left),
    ];
    table(&columns, &rows)
}

/// The scrub.
pub fn scrub(s: &ScrubView) -> String {
    let state = match (s.running, s.finished) {
        (true, _) => format!("running, {}", percent(s.stripes_done, s.stripes_total)),
        (false, true) => "done".to_owned(),
        (false, false) => "none since the start".to_owned(),
    };
    let schedule = match s.schedule.interval_hours {
        0 => "never by itself".to_owned(),
        hours => format!("every {hours} hours"),
    };
    let mut out = facts(&[
        ("scrub", state),
        ("stripes checked", format!("{} of {}", s.stripes_done, s.stripes_total)),
        ("damaged blocks", s.damaged.to_string()),
        ("repaired", s.repaired.to_string()),
        ("parity mismatches", s.parity_mismatches.to_string()),
        ("schedule", schedule),
    ]);
    out.push_str(&findings(&s.findings));
    out
}

/// Findings with their severity; nothing for none.
fn findings(list: &[CheckFindingView]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let row = |f: &CheckFindingView| vec![f.severity.clone(), f.text.clone()];
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    table(&[("SEVERITY", Side::Left), ("FINDING", Side::Left)], &rows)
}

/// The check.
pub fn check(c: &CheckView) -> String {
    let state = match (c.running, c.failed.as_ref()) {
        (true, _) => format!("running, {}", percent(c.blocks_done, c.blocks_total)),
        (false, Some(reason)) => format!("no result: {reason}"),
        (false, None) if c.blocks_total == 0 => "none since the start".to_owned(),
        (false, None) => "done".to_owned(),
    };
    let mut out = facts(&[
        ("check", state),
        ("volumes", c.volumes.to_string()),
        ("inodes", c.inodes.to_string()),
        ("blocks", format!("{} of {}", c.blocks_done, c.blocks_total)),
        ("findings", c.found.to_string()),
        ("repairs", c.repaired.to_string()),
        ("findings left", c.left.to_string()),
    ]);
    out.push_str(&findings(&c.findings));
    out
}

/// Counters, one in a line.
pub fn counters(list: &[CounterView]) -> String {
    let name = |c: &CounterView| match c.labels.is_empty() {
        true => c.name.clone(),
        false => format!("{}{{{}}}", c.name, c.labels),
    };
    let rows: Vec<Vec<String>> = list.iter().map(|c| vec![name(c), c.value.to_string()]).collect();
    table(&[("COUNTER", Side::Left), ("VALUE", Side::Right)], &rows)
}

fn place(p: &PlaceView) -> String {
    match p.disk.is_empty() {
        true => format!("column {}: no disk, DBN {}", p.column, p.dbn),
        false => format!("column {}: disk {} ({}), DBN {}", p.column, p.disk, p.location, p.dbn),
    }
}

/// Where a block lies, from the path down to the disks.
pub fn explain(e: &ExplainView) -> String {
    let mut lines = vec![
        ("path", e.path.clone()),
        ("volume", format!("{} (fsid {})", e.volume, e.fsid)),
        ("inode", format!("{} ({} bytes)", e.ino, e.size_bytes)),
        ("FBN", e.fbn.to_string()),
        ("state", e.state.clone()),
    ];
    if let Some(b) = &e.block {
        let hint = match b.pvbn_hint == b.pvbn {
            true => String::new(),
            false => format!(" (the pointer's hint says {})", b.pvbn_hint),
        };
        lines.push(("VVBN", b.vvbn.to_string()));
        lines.push(("PVBN", format!("{}{hint}", b.pvbn)));
        lines.push(("CRC-32", format!("{:08x}", b.crc)));
        lines.push(("RAID group", format!("{}, stripe {}", b.group, b.stripe)));
        lines.push(("data", place(&b.data)));
        for (name, p) in ["row parity", "diagonal parity"].into_iter().zip(&b.parity) {
            lines.push((name, place(p)));
        }
    }
    facts(&lines)
}
