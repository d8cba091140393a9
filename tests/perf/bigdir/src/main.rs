//! `cairn-bigdir DIR [ENTRIES] [CACHE_BYTES]`: one directory that grows to ENTRIES entries (ten
//! million unless asked otherwise), on the storage manager on disk files in DIR.
//!
//! Layer: benchmarks, beside the baseline. Creates all entries, looks them up in random order (a
//! million of them at the most), lists and removes all, and prints what an operation costs in CPU time of the whole process (consistency
//! points, log and RAID included), a row for each power of ten and for every tenth of the whole: a
//! cost that grows with the directory is seen. Every answer is checked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_node::config::{DriverChoice, RaidLayout, StorageConfig};
use cairn_node::{Formation, Storage};
use cairn_op::{
    ClientAddr, CreateHow, Credential, ListLimits, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly,
    Reply, SetAttrs, Submitted, WithFiles,
};
use cairn_raid_disk::create_file_disk;
use cairn_units::{Blocks, Cookie, Fsid, OpNo, VserverId};
use tokio::task::JoinHandle;

const DISKS: u16 = 8;
const DISK_BYTES: u64 = 8 << 30;
const ENTRIES: u64 = 10_000_000;
const CACHE_BYTES: u64 = 1 << 30;
/// Changes, or look-ups, that are under way together.
const DEPTH: usize = 64;
/// Entries looked up at the most.
const LOOKUPS_MAX: usize = 1_000_000;
const FSID: Fsid = Fsid::new(1);

/// CPU time of this process so far.
#[expect(unsafe_code, reason = "std has no process times")]
fn cpu() -> Duration {
    // SAFETY: all zero is a valid rusage, and the call writes only into it.
    let usage = unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let of = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs())
            + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// One line of the table.
struct Meter {
    phase: &'static str,
    from: u64,
    cpu: Duration,
    next: u64,
    step: u64,
}

impl Meter {
    fn new(phase: &'static str, all: u64) -> Self {
        Self { phase, from: 0, cpu: cpu(), next: 1000.min(all), step: (all / 10).max(1) }
    }
    fn at(&mut self, done: u64) {
        if done < self.next {
            return;
        }
        let now = cpu();
        let spent = now.saturating_sub(self.cpu).as_nanos();
        let each = spent / u128::from((done - self.from).max(1));
        println!(
            "| {} | {} .. {} | {}.{:02} |",
            self.phase,
            self.from,
            done,
            each / 1000,
            each % 1000 / 10
        );
        (self.from, self.cpu) = (done, now);
        let decade = if done < self.step { done * 10 } else { done + self.step };
        self.next = decade.min(done / self.step * self.step + self.step);
    }
}

fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

async fn call(node: &Arc<dyn DModule>, op: Op<ObjectRef>) -> anyhow::Result<Reply<ObjectRef>> {
    node.file(ctx(), op).wait().await.map_err(|f| anyhow::anyhow!("{:?}", f.status))
}

/// Lets an operation go on beside others.
#[expect(clippy::disallowed_methods, reason = "a benchmark of the real thing")]
fn start(op: Submitted<OpResult<ObjectRef>>) -> JoinHandle<OpResult<ObjectRef>> {
    tokio::spawn(op.wait())
}

/// Several operations at once, as many clients would send them: the log takes them together.
async fn at_once(
    node: &Arc<dyn DModule>,
    ops: impl Iterator<Item = anyhow::Result<Op<ObjectRef>>>,
) -> anyhow::Result<()> {
    // Tasks, so that those that must load first go on side by side.
    let mut under_way = Vec::with_capacity(DEPTH);
    for op in ops {
        under_way.push(start(node.file(ctx(), op?)));
    }
    for one in under_way {
        one.await?.map_err(|f| anyhow::anyhow!("{:?}", f.status))?;
    }
    Ok(())
}

fn name(i: u64) -> anyhow::Result<Name> {
    let text = format!("entry-{i:09}.dat");
    Name::new(Bytes::from(text)).map_err(|s| anyhow::anyhow!("{s:?}"))
}

/// Visits every number below `all` once, in an order without pattern.
fn scattered(all: u64) -> impl Iterator<Item = u64> {
    let mask = all.next_power_of_two() - 1;
    // A congruential generator of full period below a power of two, its bits turned around.
    let shift = mask.count_ones();
    let next = move |state: &u64| Some((state * 5 + 12_345) & mask);
    core::iter::successors(Some(0), next)
        .take(usize::try_from(mask).unwrap_or(usize::MAX) + 1)
        .map(move |n| n.reverse_bits() >> (64 - shift))
        .filter(move |n| *n < all)
}

async fn run(node: &Arc<dyn DModule>, all: u64) -> anyhow::Result<()> {
    let Managed::Root(root) = node.manage(Manage::VolumeRoot { fsid: FSID }).await? else {
        bail!("the volume has no root");
    };
    let set = SetAttrs { mode: Some(0o755), ..SetAttrs::default() };
    let made = call(node, Op::MakeDir { dir: root, name: name(u64::MAX >> 8)?, set }).await?;
    let Reply::Made { obj: dir, .. } = made else { bail!("no directory") };
    println!("| phase | entries | CPU us each |\n|---|---|---|");
    let mut meter = Meter::new("create", all);
    for first in (0..all).step_by(DEPTH) {
        let end = all.min(first + DEPTH as u64);
        let how = || CreateHow::Guarded(SetAttrs::default());
        let op = |i| Ok(Op::Create { dir, name: name(i)?, how: how() });
        at_once(node, (first..end).map(op)).await?;
        meter.at(end);
    }
    node.manage(Manage::ConsistencyPoint).await?;
    let mut scattered = scattered(all).take(LOOKUPS_MAX);
    let mut meter = Meter::new("look up, scattered", all.min(LOOKUPS_MAX as u64));
    let mut count = 0;
    loop {
        let some: Vec<u64> = scattered.by_ref().take(DEPTH).collect();
        if some.is_empty() {
            break;
        }
        let mut under_way = Vec::with_capacity(DEPTH);
        for i in some {
            let one = node.file(ctx(), Op::Lookup { dir, name: name(i)? });
            under_way.push((i, start(one)));
        }
        for (i, one) in under_way {
            let found = one.await?;
            ensure!(matches!(found, Ok(Reply::Found { .. })), "entry {i} is not found");
            count += 1;
        }
        meter.at(count);
    }
    for (phase, with_files) in
        [("list names", WithFiles::No), ("list with attributes", WithFiles::Yes)]
    {
        let mut meter = Meter::new(phase, all);
        let (mut cookie, mut count) = (Cookie::new(0), 0u64);
        loop {
            let limits =
                ListLimits { entries_max: 1000, bytes_max: 1 << 20, entry_bytes: 200, with_files };
            let page = call(node, Op::ReadDir { dir, cookie, limits }).await?;
            let Reply::Listing { entries, eof, .. } = page else { bail!("no listing") };
            count += entries.len() as u64;
            if let Some(last) = entries.last() {
                cookie = last.cookie;
            }
            meter.at(count);
            if eof {
                break;
            }
        }
        // With `.` and `..`.
        ensure!(count == all + 2, "{count} entries were listed");
    }
    let mut meter = Meter::new("remove", all);
    for first in (0..all).step_by(DEPTH) {
        let end = all.min(first + DEPTH as u64);
        let op = |i| Ok(Op::Remove { dir, name: name(i)? });
        at_once(node, (first..end).map(op)).await?;
        meter.at(end);
    }
    node.manage(Manage::ConsistencyPoint).await?;
    Ok(())
}

async fn whole() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("cairn-bigdir DIR [ENTRIES] [CACHE_BYTES]")?);
    let all = args.next().map_or(Ok(ENTRIES), |text| text.parse())?;
    let cache_bytes = args.next().map_or(Ok(CACHE_BYTES), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    let mut disks = Vec::new();
    for number in 0..DISKS {
        let path = dir.join(format!("disk-{number:02}.img"));
        create_file_disk(&path, Blocks::for_bytes(DISK_BYTES))?;
        disks.push(path);
    }
    let config = StorageConfig {
        disks,
        log_devices: Vec::new(),
        log_devices_nonvolatile: false,
        log_bytes: None,
        cache_bytes,
        driver: DriverChoice::Auto,
        raid: RaidLayout::RaidDp,
        spares: 1,
    };
    let world = cairn_sys::real::world(tokio::runtime::Handle::current())?;
    let storage = Storage::open(&world, &config, &[], Formation::Allowed).await?;
    let node = storage.dmodule();
    let size_bytes = 32 << 30;
    node.manage(Manage::VolumeCreate { fsid: FSID, name: "vol0".to_owned(), size_bytes }).await?;
    let done = run(&node, all).await;
    drop(node);
    storage.shutdown().await?;
    done
}

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(whole())
}
