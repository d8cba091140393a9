//! The states that a power cut may leave, from the tape of a run.
//!
//! Layer: above `tape`. At every moment a disk holds what its answered flushes covered, and any
//! part of what it was asked to write besides: each write wholly, not at all, or torn at a sector.
//! New outcomes come with each write (those in which it is there, at least in part), and with each
//! answer, which asks for more, all of them again. A flush that is answered only takes outcomes away,
//! and an act that begins only allows more.

use core::fmt;
use core::str::FromStr;

use anyhow::{Context, anyhow};
use cairn_sim::Rng;

use crate::image::{BLOCK_SECTORS, Content, Image};
use crate::record::Recording;
use crate::tape::{Change, Event};

/// Which of the writes that are not durable a power cut leaves. Writes are counted in the order
/// in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// None.
    None,
    /// All.
    All,
    /// Those whose bit is set.
    Mask(u64),
    /// All but this one.
    AllBut(usize),
    /// Only this one.
    Only(usize),
    /// All of this disk and none of the others.
    Disk(usize),
    /// None of this disk and all of the others.
    AllButDisk(usize),
    /// The first sectors of this write and none of the others.
    Front(usize, usize),
    /// The first sectors of this write and all of the others.
    FrontAndAll(usize, usize),
    /// All but the first sectors of this write and all of the others.
    BackAndAll(usize, usize),
    /// Each kept, lost or torn, as a seed says.
    Random(u64),
}

/// One state: a moment of the tape (the event that just happened) and an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spec {
    /// The event.
    pub point: usize,
    /// The outcome.
    pub keep: Keep,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.point)?;
        match self.keep {
            Keep::None => write!(f, "none"),
            Keep::All => write!(f, "all"),
            Keep::Mask(bits) => write!(f, "mask:{bits}"),
            Keep::AllBut(n) => write!(f, "all-but:{n}"),
            Keep::Only(n) => write!(f, "only:{n}"),
            Keep::Disk(n) => write!(f, "disk:{n}"),
            Keep::AllButDisk(n) => write!(f, "all-but-disk:{n}"),
            Keep::Front(n, cut) => write!(f, "front:{n}:{cut}"),
            Keep::FrontAndAll(n, cut) => write!(f, "front-and-all:{n}:{cut}"),
            Keep::BackAndAll(n, cut) => write!(f, "back-and-all:{n}:{cut}"),
            Keep::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

impl FromStr for Spec {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let point = parts.next().unwrap_or_default().parse().context("the moment")?;
        let word = parts.next().unwrap_or_default();
        let mut number = || -> anyhow::Result<u64> {
            parts.next().unwrap_or_default().parse().context("a number of the outcome")
        };
        let keep = match word {
            "none" => Keep::None,
            "all" => Keep::All,
            "mask" => Keep::Mask(number()?),
            "all-but" => Keep::AllBut(usize::try_from(number()?)?),
            "only" => Keep::Only(usize::try_from(number()?)?),
            "disk" => Keep::Disk(usize::try_from(number()?)?),
            "all-but-disk" => Keep::AllButDisk(usize::try_from(number()?)?),
            "front" => Keep::Front(usize::try_from(number()?)?, usize::try_from(number()?)?),
            "front-and-all" => {
                Keep::FrontAndAll(usize::try_from(number()?)?, usize::try_from(number()?)?)
            }
            "back-and-all" => {
                Keep::BackAndAll(usize::try_from(number()?)?, usize::try_from(number()?)?)
            }
            "random" => Keep::Random(number()?),
            other => return Err(anyhow!("{other:?} is no outcome")),
        };
        Ok(Self { point, keep })
    }
}

/// How many outcomes of one moment are listed.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Writes that are not durable, up to which every subset is listed.
    pub exhaustive: u32,
    /// Random outcomes beside the stated ones.
    pub random: usize,
}

/// A write that a power cut may take away.
struct Pending<'r> {
    event: usize,
    disk: usize,
    at: u64,
    blocks: &'r [Content],
    taken: bool,
}

/// The disks at one moment of the tape.
struct Walk<'r> {
    recording: &'r Recording,
    next: usize,
    durable: Vec<Image>,
    pending: Vec<Pending<'r>>,
    /// Flush → the writes that it covers.
    flushes: std::collections::BTreeMap<usize, Vec<usize>>,
    promise: usize,
}

/// Whether new outcomes come with an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    /// Those in which the newest write is there.
    Write,
    /// All, under a new promise.
    Promise,
    /// None.
    No,
}

impl<'r> Walk<'r> {
    fn new(recording: &'r Recording) -> Self {
        Self {
            recording,
            next: 0,
            durable: recording.images.clone(),
            pending: Vec::new(),
            flushes: std::collections::BTreeMap::new(),
            promise: 0,
        }
    }

    /// Takes the next event; `None` at the end of the tape.
    fn step(&mut self) -> Option<News> {
        let event = self.recording.events.get(self.next)?;
        let here = self.next;
        self.next += 1;
        Some(match event {
            Event::Write { disk, at, blocks } => {
                let (disk, at) = (*disk, *at);
                self.pending.push(Pending { event: here, disk, at, blocks, taken: false });
                News::Write
            }
            Event::WriteDone(write) => {
                if let Some(write) = self.pending.iter_mut().find(|w| w.event == *write) {
                    write.taken = true;
                }
                News::No
            }
            Event::WriteStableDone(write) => {
                let stable = self.pending.iter().position(|w| w.event == *write);
                if let Some(stable) = stable.map(|at| self.pending.remove(at)) {
                    let end = |w: &Pending<'_>| w.at + w.blocks.len() as u64;
                    let overlaps = |w: &mut Pending<'_>| {
                        let older = w.disk == stable.disk && w.event < stable.event;
                        older && w.at < end(&stable) && stable.at < end(w)
                    };
                    // What lay below it in the cache cannot come back over it.
                    let below: Vec<Pending<'r>> = self.pending.extract_if(.., overlaps).collect();
                    for write in below.iter().chain([&stable]) {
                        keep(&mut self.durable[write.disk], write);
                    }
                }
                News::No
            }
            Event::Flush { disk } => {
                let covered = self.pending.iter().filter(|w| w.disk == *disk && w.taken);
                self.flushes.insert(here, covered.map(|w| w.event).collect());
                News::No
            }
            Event::FlushDone(flush) => {
                let covered = self.flushes.remove(flush).unwrap_or_default();
                let (durable, rest) = core::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|w| covered.contains(&w.event));
                self.pending = rest;
                let durable: Vec<Pending<'r>> = durable;
                for write in &durable {
                    keep(&mut self.durable[write.disk], write);
                }
                News::No
            }
            Event::Promise { number, change } => {
                self.promise = *number;
                if *change == Change::Asks { News::Promise } else { News::No }
            }
        })
    }

    fn outcomes(&self, news: News, effort: Effort, rng: &mut Rng, out: &mut Vec<Keep>) {
        let count = self.pending.len();
        let Some(newest) = count.checked_sub(1) else {
            if news == News::Promise {
                out.push(Keep::None);
            }
            return;
        };
        let bits = u32::try_from(count).unwrap_or(u32::MAX);
        if bits <= effort.exhaustive.min(63) {
            let all = 1u64 << bits;
            let from = if news == News::Write { all / 2 } else { 0 };
            out.extend((from..all).map(Keep::Mask));
        } else {
            out.extend([Keep::All, Keep::Only(newest)]);
            out.extend((0..newest).map(Keep::AllBut));
            let mut disks: Vec<usize> = self.pending.iter().map(|w| w.disk).collect();
            disks.sort_unstable();
            disks.dedup();
            if news == News::Promise {
                out.extend([Keep::None, Keep::AllBut(newest)]);
                out.extend((0..newest).map(Keep::Only));
                out.extend(disks.iter().map(|d| Keep::Disk(*d)));
                out.extend(disks.iter().map(|d| Keep::AllButDisk(*d)));
            } else {
                let own = self.pending[newest].disk;
                out.push(Keep::Disk(own));
                let others = disks.iter().filter(|d| **d != own);
                out.extend(others.map(|d| Keep::AllButDisk(*d)));
            }
            out.extend((0..effort.random).map(|_| Keep::Random(rng.next_u64() >> 16)));
        }
        if news == News::Write {
            let sectors = self.pending[newest].blocks.len() * BLOCK_SECTORS;
            let mut cuts = vec![1, sectors / 2, sectors - 1, 1 + rng.index(sectors - 1)];
            cuts.sort_unstable();
            cuts.dedup();
            for cut in cuts {
                out.push(Keep::Front(newest, cut));
                out.push(Keep::FrontAndAll(newest, cut));
                out.push(Keep::BackAndAll(newest, cut));
            }
        }
    }

    fn images(&self, outcome: Keep) -> Vec<Image> {
        let mut images = self.durable.clone();
        let mut rng = match outcome {
            Keep::Random(seed) => Rng::new(seed),
            _ => Rng::new(0),
        };
        for (i, write) in self.pending.iter().enumerate() {
            let image = &mut images[write.disk];
            let whole = match outcome {
                Keep::None | Keep::Front(..) => false,
                Keep::All | Keep::FrontAndAll(..) | Keep::BackAndAll(..) => true,
                Keep::Mask(bits) => i < 64 && bits >> i & 1 == 1,
                Keep::AllBut(n) => i != n,
                Keep::Only(n) => i == n,
                Keep::Disk(disk) => write.disk == disk,
                Keep::AllButDisk(disk) => write.disk != disk,
                Keep::Random(_) => {
                    random_fate(image, write, &mut rng);
                    continue;
                }
            };
            match outcome {
                Keep::Front(n, cut) | Keep::FrontAndAll(n, cut) if n == i => {
                    tear(image, write, |sector| sector < cut);
                }
                Keep::BackAndAll(n, cut) if n == i => tear(image, write, |sector| sector >= cut),
                _ if whole => keep(image, write),
                _ => {}
            }
        }
        images
    }
}

fn keep(image: &mut Image, write: &Pending<'_>) {
    for (at, content) in (write.at..).zip(write.blocks) {
        image.put(at, content.clone());
    }
}

fn tear(image: &mut Image, write: &Pending<'_>, kept: impl Fn(usize) -> bool) {
    for (i, (at, content)) in (write.at..).zip(write.blocks).enumerate() {
        let here = |sector: usize| kept(i * BLOCK_SECTORS + sector);
        match (0..BLOCK_SECTORS).filter(|s| here(*s)).count() {
            0 => {}
            BLOCK_SECTORS => image.put(at, content.clone()),
            _ => image.tear(at, content, here),
        }
    }
}

fn random_fate(image: &mut Image, write: &Pending<'_>, rng: &mut Rng) {
    match rng.below(8) {
        0..=2 => {}
        3..=5 => keep(image, write),
        6 => {
            let cut = rng.index(write.blocks.len() * BLOCK_SECTORS + 1);
            tear(image, write, |sector| sector < cut);
        }
        _ => {
            let seed = rng.next_u64();
            tear(image, write, |s| crate::image::mix(seed ^ s as u64) & 1 == 1);
        }
    }
}

/// Every state of a run from its first new event on, as far as `effort` goes.
pub fn list(recording: &Recording, effort: Effort, seed: u64) -> Vec<Spec> {
    let mut rng = Rng::new(seed);
    let mut walk = Walk::new(recording);
    let (mut out, mut keeps) = (Vec::new(), Vec::new());
    while let Some(news) = walk.step() {
        let point = walk.next - 1;
        if news == News::No || point < recording.from {
            continue;
        }
        walk.outcomes(news, effort, &mut rng, &mut keeps);
        out.extend(keeps.drain(..).map(|keep| Spec { point, keep }));
    }
    out
}

/// One built state.
pub struct State {
    /// Where it comes from.
    pub spec: Spec,
    /// Contents of the disks.
    pub images: Vec<Image>,
    /// The promise that holds, by number.
    pub promise: usize,
    /// The same for the same contents of all disks.
    pub digest: u64,
}

/// Builds states in the order of the tape.
pub fn build(recording: &Recording, mut specs: Vec<Spec>, mut each: impl FnMut(State)) {
    specs.sort_unstable();
    let mut walk = Walk::new(recording);
    let mut specs = specs.into_iter().peekable();
    while walk.step().is_some() {
        while let Some(spec) = specs.next_if(|s| s.point == walk.next - 1) {
            let images = walk.images(spec.keep);
            let digest = (1u64..).zip(&images).fold(0, |sum, (number, image)| {
                sum ^ crate::image::mix(image.digest().wrapping_add(crate::image::mix(number)))
            });
            each(State { spec, images, promise: walk.promise, digest });
        }
    }
}

/// What happened before a state, and what it keeps: for people.
pub fn describe(recording: &Recording, spec: Spec) -> String {
    /// Events shown.
    const EVENTS_SHOWN: usize = 40;
    let mut lines = Vec::new();
    let mut walk = Walk::new(recording);
    for at in 0..=spec.point {
        if walk.step().is_none() {
            break;
        }
        if at + EVENTS_SHOWN < spec.point {
            continue;
        }
        let line = match &recording.events[at] {
            Event::Write { disk, at, blocks } => format!("d{disk} write {at}+{}", blocks.len()),
            Event::WriteDone(write) => format!("    taken: {write}"),
            Event::Flush { disk } => format!("d{disk} flush"),
            Event::FlushDone(flush) => format!("    durable: flush {flush}"),
            Event::WriteStableDone(write) => format!("    durable: write {write}"),
            Event::Promise { number, change } => format!("promise {number} {change:?}"),
        };
        lines.push(format!("{at:5} {line}"));
    }
    lines.push("the power goes; not durable:".to_owned());
    for (i, write) in walk.pending.iter().enumerate() {
        let (disk, at, blocks) = (write.disk, write.at, write.blocks.len());
        lines.push(format!("{i:5} event {} d{disk} {at}+{blocks}", write.event));
    }
    lines.push(format!("kept of these: {spec}"));
    lines.join("\n")
}
