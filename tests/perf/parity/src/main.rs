//! Speed of the parity kernels, as JSON lines: one line for each (task, kernels, place).
//!
//! Layer: benchmarks. Every figure is bytes of data per second of *thread CPU time* (wall time is
//! shared with whatever else the machine does), and its ratio to a memory copy of the same blocks,
//! and to ISA-L's counterpart, measured right beside it. `cache` works on two stripes in
//! turn, `dram` walks over more stripes than any cache holds; in `-scattered` the blocks of a
//! stripe are pages from anywhere, as in production, else neighbours. Run with
//! `cargo run --release -p cairn-perf-parity`; words after `--` (`dram`, `Avx512`, `encode`, `17`)
//! choose what has all of them.

#![expect(unsafe_code, reason = "thread CPU time, and the comparison library's C interface")]

mod peer;

use std::hint::black_box;

use cairn_raid_parity::{Bytes, Column, Kernels, Ring, RingIndex};

use crate::peer::Peer;

/// Data columns of the group that is measured.
const DATA_COLUMNS: usize = 14;
/// Blocks that a stripe has here: data, two of parity, a copy of the data.
const BLOCKS: usize = 2 * DATA_COLUMNS + 2;
/// Stripes in memory: 224 MiB of data.
const DRAM_STRIPES: usize = 4096;
/// Stripes in the cache, and in memory when those in the cache are picked, scattered.
const CACHE_STRIPES: usize = 2;
const SCATTER_STRIPES: usize = 64;
/// Bytes of data that one measurement goes over.
const CACHE_BYTES: usize = 512 << 20;
const DRAM_BYTES: usize = 224 << 20;
/// Measurements; the median counts.
const ROUNDS: usize = 9;
/// The data columns that are lost where one or two are.
const LOST: [usize; 2] = [3, 9];

#[derive(Clone)]
#[repr(align(4096))]
struct Page(Bytes);

/// One stripe, its blocks anywhere.
struct Stripe {
    data: [&'static mut Page; DATA_COLUMNS],
    parity: [&'static mut Page; 2],
    copy: [&'static mut Page; DATA_COLUMNS],
}

fn cpu_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives on the stack.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert!(result == 0, "thread CPU time");
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// Pseudo-random numbers.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0 >> 32
    }
    fn page(&mut self) -> Page {
        Page(core::array::from_fn(|_| self.next().to_le_bytes()[3]))
    }
}

/// Stripes whose blocks lie side by side: all data, all parity, all copies.
fn make_neighbours(count: usize) -> Vec<Stripe> {
    let mut pages = make_pages(count);
    let mut copies = pages.split_off(count * (DATA_COLUMNS + 2)).into_iter();
    let mut parities = pages.split_off(count * DATA_COLUMNS).into_iter();
    let mut datas = pages.into_iter();
    let mut stripes = Vec::new();
    for _ in 0..count {
        stripes.push(make_stripe(&mut datas, &mut parities, &mut copies));
    }
    stripes
}

/// Stripes whose blocks come from anywhere.
fn make_scattered(count: usize) -> Vec<Stripe> {
    let mut noise = Noise(7);
    let mut pages = make_pages(count);
    for i in (1..pages.len()).rev() {
        let with = noise.next() % (i as u64 + 1);
        pages.swap(i, usize::try_from(with).unwrap_or(0));
    }
    let mut stripes = Vec::new();
    let mut pages = pages.into_iter();
    for _ in 0..count {
        let mut own: Vec<_> = pages.by_ref().take(BLOCKS).collect();
        let mut copy = own.split_off(DATA_COLUMNS + 2).into_iter();
        let mut parity = own.split_off(DATA_COLUMNS).into_iter();
        stripes.push(make_stripe(&mut own.into_iter(), &mut parity, &mut copy));
    }
    stripes
}

fn make_stripe(
    data: &mut impl Iterator<Item = &'static mut Page>,
    parity: &mut impl Iterator<Item = &'static mut Page>,
    copy: &mut impl Iterator<Item = &'static mut Page>,
) -> Stripe {
    let mut noise = Noise(1);
    let mut take = |from: &mut dyn Iterator<Item = &'static mut Page>| match from.next() {
        Some(page) => {
            page.0[0] = noise.next().to_le_bytes()[0];
            page
        }
        None => panic!("as many pages as stripes need"),
    };
    Stripe {
        data: core::array::from_fn(|_| take(data)),
        parity: core::array::from_fn(|_| take(parity)),
        copy: core::array::from_fn(|_| take(copy)),
    }
}

/// Pages in order of address, all of them touched. They stay until the process ends.
fn make_pages(stripes: usize) -> Vec<&'static mut Page> {
    let mut noise = Noise(3);
    let pattern: [Page; 8] = core::array::from_fn(|_| noise.page());
    let pages: Vec<Page> = (0..stripes * BLOCKS).map(|i| pattern[i * 5 % 8].clone()).collect();
    Vec::leak(pages).iter_mut().collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(stripes: &mut [Stripe], total: usize, task: &mut dyn FnMut(&mut Stripe, &Stripe)) -> f64 {
    let bytes = stripes.len() * DATA_COLUMNS * size_of::<Page>();
    let passes = (total / bytes).max(1);
    let start = cpu_nanos();
    for _ in 0..passes {
        for i in 0..stripes.len() {
            let (before, rest) = stripes.split_at_mut(i);
            let Some((stripe, after)) = rest.split_first_mut() else { continue };
            let Some(next) = after.first().or(before.first()) else { continue };
            task(black_box(stripe), black_box(next));
        }
    }
    let nanos = (cpu_nanos() - start).max(1);
    (passes * bytes) as f64 / nanos as f64
}

fn copy_blocks(stripe: &mut Stripe, _next: &Stripe) {
    for (to, from) in stripe.copy.iter_mut().zip(&stripe.data) {
        to.0.copy_from_slice(&from.0);
    }
}

/// One line of the report.
struct Line<'a> {
    task: &'a str,
    kernels: &'a str,
    ring: Option<Ring>,
    place: &'a str,
}

impl Line<'_> {
    fn is_wanted(&self) -> bool {
        let ring = self.ring.map_or(String::new(), |r| r.p().to_string());
        let words = [self.task, self.kernels, self.place, &ring];
        std::env::args().skip(1).all(|a| words.iter().any(|w| w.eq_ignore_ascii_case(&a)))
    }
}

/// Where the measured stripes are.
struct Place {
    name: &'static str,
    stripes: Vec<Stripe>,
    total: usize,
}

impl Place {
    /// Measures `task`, beside a copy, and beside what the peer does for it.
    fn measure(
        &mut self,
        line: &Line<'_>,
        mut peer: Option<&mut Peer>,
        task: &mut dyn FnMut(&mut Stripe, &Stripe),
    ) {
        if !line.is_wanted() {
            return;
        }
        let (stripes, total) = (&mut self.stripes[..], self.total);
        let (mut tasks, mut of_copy, mut of_peer) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let copy = rate(stripes, total, &mut copy_blocks);
            let value = rate(stripes, total, task);
            tasks.push(value);
            of_copy.push(value / copy);
            if let Some(peer) = &mut peer {
                of_peer.push(value / rate(stripes, total, &mut |stripe, _| peer.run(stripe)));
            }
        }
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let json = serde_json::json!({
            "task": line.task,
            "kernels": line.kernels,
            "p": line.ring.map(Ring::p),
            "data_columns": DATA_COLUMNS,
            "place": line.place,
            "gb_per_cpu_s": (median(tasks) * 10.0).round() / 10.0,
            "of_memcpy": round(median(of_copy)),
            "of_isal": peer.map(|_| round(median(of_peer))),
        });
        println!("{json}");
    }
}

fn ring_index(ring: Ring, column: usize) -> RingIndex {
    match u16::try_from(column).ok().and_then(|c| ring.data(c)) {
        Some(index) => index,
        None => panic!("more columns than the ring has"),
    }
}

fn columns<'s>(
    ring: Ring,
    data: &'s [&'static mut Page; DATA_COLUMNS],
) -> [Column<'s>; DATA_COLUMNS] {
    core::array::from_fn(|i| Column { index: ring_index(ring, i), block: &data[i].0 })
}

fn blocks<'s>(data: &'s [&'static mut Page; DATA_COLUMNS]) -> [&'s Bytes; DATA_COLUMNS] {
    core::array::from_fn(|i| &data[i].0)
}

fn bench_kernels(kernels: Kernels, ring: Ring, place: &mut Place) {
    let name = format!("{:?}", kernels.level());
    let at = place.name;
    let line = |task| Line { task, kernels: &name, ring: Some(ring), place: at };
    // As a write does it: while the next stripe's blocks come nearer, and with the checksums of
    // the parity blocks right after.
    place.measure(&line("encode_ahead"), Peer::encode().as_mut(), &mut |stripe, next| {
        let [row, diagonal] = &mut stripe.parity;
        let (data, next) = (columns(ring, &stripe.data), blocks(&next.data));
        kernels.encode_ahead(ring, &data, &next, &mut row.0, &mut diagonal.0);
    });
    place.measure(&line("encode_ahead_crc"), Peer::encode_crc().as_mut(), &mut |stripe, next| {
        let [row, diagonal] = &mut stripe.parity;
        let (data, next) = (columns(ring, &stripe.data), blocks(&next.data));
        kernels.encode_ahead(ring, &data, &next, &mut row.0, &mut diagonal.0);
        peer::checksum(stripe);
    });
    // A stripe by itself.
    place.measure(&line("encode"), Peer::encode().as_mut(), &mut |stripe, _| {
        let [row, diagonal] = &mut stripe.parity;
        kernels.encode(ring, &columns(ring, &stripe.data), &mut row.0, &mut diagonal.0);
    });
    place.measure(&line("reconstruct_pair"), Peer::decode().as_mut(), &mut |stripe, _| {
        let lost = LOST.map(|i| ring_index(ring, i));
        let all = columns(ring, &stripe.data);
        // The contents of the parities do not matter for the time.
        let [row, diagonal] = &stripe.parity;
        let row = Column { index: ring.row_parity(), block: &row.0 };
        let mut present = [row; DATA_COLUMNS - 1];
        let kept = all.iter().filter(|c| !lost.contains(&c.index));
        kept.zip(&mut present).for_each(|(from, to)| *to = *from);
        let [first, second, ..] = &mut stripe.copy;
        kernels.reconstruct_pair(ring, &present, &diagonal.0, lost, [&mut first.0, &mut second.0]);
    });
    place.measure(&line("update_each"), None, &mut |stripe, _| {
        let [row, diagonal] = &mut stripe.parity;
        for column in columns(ring, &stripe.data) {
            kernels.update(ring, column.index, column.block, &mut row.0, &mut diagonal.0);
        }
    });
}

/// What needs rows alone: RAID-4 parity, and one lost block.
fn bench_rows(kernels: Kernels, place: &mut Place) {
    let name = format!("{:?}", kernels.level());
    let at = place.name;
    let line = |task| Line { task, kernels: &name, ring: None, place: at };
    place.measure(&line("row_only"), None, &mut |stripe, _| {
        kernels.xor_all(&blocks(&stripe.data), &mut stripe.parity[0].0);
    });
    place.measure(&line("reconstruct_one"), None, &mut |stripe, _| {
        let parity = &stripe.parity[0].0;
        let block = |i: usize| if i == LOST[0] { parity } else { &stripe.data[i].0 };
        let blocks: [&Bytes; DATA_COLUMNS] = core::array::from_fn(block);
        kernels.xor_all(&blocks, &mut stripe.copy[0].0);
    });
}

fn bench_peer(place: &mut Place) {
    let at = place.name;
    let tasks = [
        ("encode", Peer::encode()),
        ("encode_crc", Peer::encode_crc()),
        ("reconstruct_pair", Peer::decode()),
    ];
    for (task, peer) in tasks {
        if let Some(mut peer) = peer {
            let line = Line { task, kernels: "isa-l", ring: None, place: at };
            place.measure(&line, None, &mut |stripe, _| peer.run(stripe));
        }
    }
}

fn main() {
    let scattered_few = || {
        let mut stripes = make_scattered(SCATTER_STRIPES);
        stripes.truncate(CACHE_STRIPES);
        stripes
    };
    let places: [(_, &dyn Fn() -> Vec<Stripe>, _); 4] = [
        ("cache", &|| make_neighbours(CACHE_STRIPES), CACHE_BYTES),
        ("cache-scattered", &scattered_few, CACHE_BYTES),
        ("dram", &|| make_neighbours(DRAM_STRIPES), DRAM_BYTES),
        ("dram-scattered", &|| make_scattered(DRAM_STRIPES), DRAM_BYTES),
    ];
    for (name, make, total) in places {
        let mut place = Place { name, stripes: make(), total };
        for kernels in Kernels::all() {
            bench_rows(kernels, &mut place);
            for ring in [Ring::P17, Ring::P257] {
                bench_kernels(kernels, ring, &mut place);
            }
        }
        bench_peer(&mut place);
    }
}
