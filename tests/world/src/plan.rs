//! What a seed means: the shape of the machine, the clients' operations, the faults.
//!
//! Layer: pure. A plan is made whole before anything runs, as two plain lists, so that a failing
//! one can be shortened by leaving items out ([`crate::shrink`]) and printed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cairn_sim::Rng;

/// Places for names that a client has.
pub(crate) const SLOTS: u8 = 12;
/// Directories that a client has: its own and some in it.
pub(crate) const DIRS: u8 = 3;
/// Files that all clients write.
pub(crate) const SHARED_FILES: u8 = 2;
/// Cells that a file of a client's own may have.
const FILE_CELLS: u64 = 1200;

/// One operation of a client. What is not there is made first or passed over, so that any list of
/// them makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of NFS operations and their arguments")]
pub enum Op {
    Write { slot: u8, at: u16, cells: u16, stable: u32 },
    Burst { slot: u8, at: u16, cells: u16, count: u8 },
    Commit { slot: u8 },
    Read { slot: u8, at: u16, cells: u16 },
    Truncate { slot: u8, cells: u16 },
    Create { slot: u8, how: u8 },
    Remove { slot: u8 },
    Rename { from: u8, to: u8 },
    Link { from: u8, to: u8 },
    Symlink { slot: u8 },
    Mkdir { dir: u8 },
    Rmdir { dir: u8 },
    List,
    Chmod { slot: u8, mode: u16 },
    Check { slot: u8 },
    SharedWrite { file: u8, at: u8, cells: u8, stable: u32 },
    SharedRead { file: u8 },
    SharedCommit { file: u8 },
    HangUp,
    Sleep { ms: u16 },
}

impl Op {
    /// Its kind, for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::Burst { .. } => "burst",
            Self::Commit { .. } => "commit",
            Self::Read { .. } => "read",
            Self::Truncate { .. } => "truncate",
            Self::Create { .. } => "create",
            Self::Remove { .. } => "remove",
            Self::Rename { .. } => "rename",
            Self::Link { .. } => "link",
            Self::Symlink { .. } => "symlink",
            Self::Mkdir { .. } => "mkdir",
            Self::Rmdir { .. } => "rmdir",
            Self::List => "list",
            Self::Chmod { .. } => "chmod",
            Self::Check { .. } => "check",
            Self::SharedWrite { .. } => "shared write",
            Self::SharedRead { .. } => "shared read",
            Self::SharedCommit { .. } => "shared commit",
            Self::HangUp => "hang up",
            Self::Sleep { .. } => "sleep",
        }
    }
}

/// What can go wrong, or be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// The power goes, at a device order soon.
    PowerCut,
    /// The power goes, and again while the machine starts.
    PowerCutTwice,
    /// The program dies; the disks keep their caches.
    ProcessDeath,
    /// An orderly stop and start.
    Restart,
    /// A sector that cannot be read until it is written again.
    LatentError,
    /// A flipped bit.
    BitRot,
    /// A block that can neither be read nor written.
    BadBlock,
    /// A write that is acknowledged and never happens.
    LostWrite,
    /// A write that lands elsewhere on its disk.
    MisdirectedWrite,
    /// One request that fails with an error.
    RequestError,
    /// A log area that cannot be written.
    LogAreaError,
    /// A disk that is slow for a while.
    SlowDisk,
    /// A disk that does not answer for a while.
    HungDisk,
    /// A disk that dies.
    DeadDisk,
    /// A disk that died is back, and is added as a spare.
    DiskReturns,
    /// A new disk is added as a spare.
    DiskAdded,
    /// The administrator takes a disk out.
    DiskFailed,
    /// A scrub begins.
    Scrub,
    /// A volume is made and filled a little.
    VolumeCreate,
    /// A volume is deleted.
    VolumeDelete,
    /// A volume is resized.
    VolumeResize,
    /// A consistency point is asked for.
    ConsistencyPoint,
    /// A client's connection breaks.
    ConnectionBreaks,
    /// Nothing passes to and from a client for a while.
    Partition,
}

/// All kinds.
pub const FAULT_KINDS: [FaultKind; 24] = {
    use FaultKind as K;
    [
        K::PowerCut,
        K::PowerCutTwice,
        K::ProcessDeath,
        K::Restart,
        K::LatentError,
        K::BitRot,
        K::BadBlock,
        K::LostWrite,
        K::MisdirectedWrite,
        K::RequestError,
        K::LogAreaError,
        K::SlowDisk,
        K::HungDisk,
        K::DeadDisk,
        K::DiskReturns,
        K::DiskAdded,
        K::DiskFailed,
        K::Scrub,
        K::VolumeCreate,
        K::VolumeDelete,
        K::VolumeResize,
        K::ConsistencyPoint,
        K::ConnectionBreaks,
        K::Partition,
    ]
};

/// One fault: when (virtual milliseconds after the clients began), what, and where by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at_ms: u64,
    /// What.
    pub kind: FaultKind,
    /// Chooses the disk, block, client or length.
    pub pick: u64,
}

/// The shape of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Disks that a group may lose: 1 or 2.
    pub parity: u16,
    /// Disks of the group.
    pub disks: usize,
    /// Spares beside it.
    pub spares: u16,
    /// Blocks of each disk.
    pub disk_blocks: u64,
    /// Size of the volume in blocks.
    pub volume_blocks: u64,
    /// Memory for clean blocks, in blocks.
    pub cache_blocks: usize,
    /// Stripes that are put together at once, at the most.
    pub tetris_stripes: u64,
    /// Clients.
    pub clients: u8,
    /// Mean pause of a client between operations, in milliseconds.
    pub pace_ms: u64,
    /// Whether space may run out.
    pub tiny: bool,
    /// Whether a power cut leaves clients waiting, rather than telling them.
    pub silent: bool,
}

/// All that a seed decides beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed; it also decides what happens while the plan runs.
    pub seed: u64,
    /// The machine.
    pub shape: Shape,
    /// Which client does what.
    pub ops: Vec<(u8, Op)>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

fn op(rng: &mut Rng, mood: u64) -> Op {
    let small = |rng: &mut Rng, n: u64| u16::try_from(rng.below(n)).unwrap_or(0);
    let byte = |rng: &mut Rng, n: u64| u8::try_from(rng.below(n)).unwrap_or(0);
    let slot = byte(rng, u64::from(SLOTS));
    let other = byte(rng, u64::from(SLOTS));
    // Whole blocks half of the time.
    let at = if rng.one_in(2) {
        small(rng, FILE_CELLS / 8) * 8
    } else {
        let most = if rng.one_in(2) { 64 } else { FILE_CELLS };
        small(rng, most)
    };
    let cells = if rng.one_in(8) { 1 + small(rng, 400) } else { 1 + small(rng, 24) };
    let stable = [0, 0, 1, 2, 2][rng.index(5)];
    let files = u64::from(SHARED_FILES);
    // A mood is a mix: data, names, shared files.
    let table: &[u64] = match mood {
        0 => &[30, 8, 8, 8, 6, 4, 4, 2, 2, 1, 1, 1, 1, 1, 6, 2, 2, 2, 1, 1],
        1 => &[8, 1, 2, 3, 3, 8, 10, 10, 6, 5, 4, 4, 5, 3, 8, 1, 1, 1, 1, 1],
        2 => &[6, 1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 20, 20, 8, 2, 1],
        _ => &[12, 4, 5, 5, 4, 4, 5, 4, 3, 2, 2, 2, 3, 2, 6, 6, 6, 3, 1, 1],
    };
    let mut left = rng.below(table.iter().sum());
    let kind = table.iter().position(|w| match left.checked_sub(*w) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    match kind.unwrap_or(0) {
        0 => Op::Write { slot, at, cells, stable },
        1 => Op::Burst { slot, at, cells: 1 + cells % 32, count: 2 + byte(rng, 7) },
        2 => Op::Commit { slot },
        3 => Op::Read { slot, at, cells },
        4 => Op::Truncate { slot, cells: small(rng, FILE_CELLS) },
        5 => Op::Create { slot, how: byte(rng, 3) },
        6 => Op::Remove { slot },
        7 => Op::Rename { from: slot, to: other },
        8 => Op::Link { from: slot, to: other },
        9 => Op::Symlink { slot },
        10 => Op::Mkdir { dir: byte(rng, u64::from(DIRS)) },
        11 => Op::Rmdir { dir: byte(rng, u64::from(DIRS)) },
        12 => Op::List,
        13 => Op::Chmod { slot, mode: small(rng, 0o1000) },
        14 => Op::Check { slot },
        15 => {
            let (at, cells) = (byte(rng, 64), 1 + byte(rng, 12));
            Op::SharedWrite { file: byte(rng, files), at, cells, stable }
        }
        16 => Op::SharedRead { file: byte(rng, files) },
        17 => Op::SharedCommit { file: byte(rng, files) },
        18 => Op::HangUp,
        _ => Op::Sleep { ms: small(rng, 15_000) },
    }
}

fn shape(rng: &mut Rng) -> Shape {
    let parity: u16 = if rng.one_in(3) { 1 } else { 2 };
    let least = usize::from(parity) + 2;
    let disks = least + rng.index(11 - least);
    let tiny = rng.one_in(5);
    let disk_blocks = if tiny { 4096 } else { [8192, 16_384][rng.index(2)] };
    let volume_blocks = match (tiny, rng.one_in(2)) {
        (true, true) => 1200,
        (true, false) => 1 << 20,
        (false, _) => 40_000,
    };
    Shape {
        parity,
        disks,
        spares: u16::try_from(rng.below(3)).unwrap_or(0),
        disk_blocks,
        volume_blocks,
        cache_blocks: [256, 256, 512, 2048][rng.index(4)],
        clients: 2 + u8::try_from(rng.below(7)).unwrap_or(0),
        pace_ms: [0, 20, 200, 1500][rng.index(4)],
        tiny: tiny || disks * 8192 < 40_000,
        silent: rng.one_in(2),
        // Not drawn with the rest: what a seed stood for before stays the same.
        tetris_stripes: 128,
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0077_6f72_6c64);
        let mut shape = shape(&mut rng);
        shape.tetris_stripes = [1, 2, 5, 128][Rng::new(seed ^ 0x7465_7472).index(4)];
        let per_client = 15 + rng.below(60);
        let mut ops = Vec::new();
        for client in 0..shape.clients {
            let mood = rng.below(4);
            for _ in 0..per_client {
                ops.push((client, op(&mut rng, mood)));
            }
        }
        // A swarm: each seed has its own kinds of faults, at its own rates.
        let mut kinds: Vec<(FaultKind, u64)> = Vec::new();
        for kind in FAULT_KINDS {
            if rng.one_in(2) {
                kinds.push((kind, 1 + rng.below(8)));
            }
        }
        let count = if kinds.is_empty() { 0 } else { rng.below(25) };
        let span = (per_client * (shape.pace_ms + 15)).max(2000);
        let mut faults: Vec<Fault> = (0..count)
            .map(|_| {
                let mut left = rng.below(kinds.iter().map(|(_, w)| w).sum());
                let found = kinds.iter().find(|(_, w)| match left.checked_sub(*w) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                });
                let kind = found.map_or(FaultKind::PowerCut, |(kind, _)| *kind);
                Fault { at_ms: rng.below(span), kind, pick: rng.next_u64() }
            })
            .collect();
        faults.sort_by_key(|f| f.at_ms);
        Self { seed, shape, ops, faults }
    }

    /// The plan with only these operations and faults, by their places in the whole lists.
    #[must_use]
    pub fn keep(&self, ops: &BTreeSet<usize>, faults: &BTreeSet<usize>) -> Self {
        let mut out = self.clone();
        out.ops = ops.iter().filter_map(|i| self.ops.get(*i).copied()).collect();
        out.faults = faults.iter().filter_map(|i| self.faults.get(*i).copied()).collect();
        out
    }

    /// The plan as a list for people.
    pub fn describe(&self) -> String {
        let mut out = format!("seed {}: {:?}\n", self.seed, self.shape);
        for (client, op) in &self.ops {
            // Writing to a string cannot fail.
            let _ok = writeln!(out, "  client {client}: {op:?}").is_ok();
        }
        for fault in &self.faults {
            let Fault { at_ms, kind, pick } = fault;
            let _ok = writeln!(out, "  at {at_ms} ms: {kind:?} (pick {pick})").is_ok();
        }
        out
    }
}

/// Places of a list as text: `1,4-9`; `-` for none.
pub fn places_text(places: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for place in places {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *place => *end = *place,
            _ => runs.push((*place, *place)),
        }
    }
    let text: Vec<String> =
        runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    if text.is_empty() { "-".to_owned() } else { text.join(",") }
}

/// The other way round; `None` for what is no such text.
pub fn places_of(text: &str) -> Option<BTreeSet<usize>> {
    let mut out = BTreeSet::new();
    for run in text.split(',').filter(|run| *run != "-") {
        let (a, b) = run.split_once('-').unwrap_or((run, run));
        out.extend(a.parse::<usize>().ok()?..=b.parse().ok()?);
    }
    Some(out)
}
