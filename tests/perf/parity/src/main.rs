//! Speed of the parity kernels, as JSON lines: one line for each (task, kernels, place).
//!
//! Layer: benchmarks. Every figure is bytes of data per second of *thread CPU time* (wall time is
//! shared with whatever else the machine does), and its ratio to a memory copy of the same bytes
//! measured right beside it. `cache` works on one stripe again and again, `dram` walks over more
//! stripes than any cache holds. Run with `cargo run --release -p cairn-perf-parity`; words after
//! `--` (`dram`, `Avx512`, `encode`, `17`) choose what has all of them.

#![expect(unsafe_code, reason = "thread CPU time, and the comparison library's C interface")]

use std::hint::black_box;

use cairn_raid_parity::{Bytes, Column, Kernels, Ring, RingIndex};

/// Data columns of the group that is measured.
const DATA_COLUMNS: u16 = 14;
/// Stripes in memory: 14 + 2 blocks of 4 KiB each, 256 MiB in all.
const DRAM_STRIPES: usize = 4096;
/// Bytes of data that one measurement goes over.
const CACHE_BYTES: usize = 2 << 30;
const DRAM_BYTES: usize = 1 << 30;
/// Measurements; the median counts.
const ROUNDS: usize = 9;

#[derive(Clone)]
#[repr(align(4096))]
struct Page(Bytes);

struct Stripes {
    data: Vec<Page>,
    parity: Vec<Page>,
    copy: Vec<Page>,
}

fn cpu_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives on the stack.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert!(result == 0, "thread CPU time");
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

fn make_stripes(count: usize) -> Stripes {
    let columns = usize::from(DATA_COLUMNS);
    let mut state = 1u64;
    let mut noise = || {
        Page(core::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        }))
    };
    let pattern: Vec<Page> = (0..columns).map(|_| noise()).collect();
    let data = (0..count * columns).map(|i| pattern[(i * 7) % columns].clone()).collect();
    Stripes {
        data,
        parity: vec![Page([1; 4096]); count * 2],
        copy: vec![Page([2; 4096]); count * columns],
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(
    stripes: &mut Stripes,
    total: usize,
    mut task: impl FnMut(&[Page], &mut [Page], &mut [Page]),
) -> f64 {
    let columns = usize::from(DATA_COLUMNS);
    let count = stripes.parity.len() / 2;
    let passes = (total / (count * columns * 4096)).max(1);
    let start = cpu_nanos();
    for _ in 0..passes {
        let parts = stripes.data.chunks_exact(columns).zip(stripes.parity.chunks_exact_mut(2));
        for ((data, parity), copy) in parts.zip(stripes.copy.chunks_exact_mut(columns)) {
            task(black_box(data), black_box(parity), black_box(copy));
        }
    }
    let nanos = (cpu_nanos() - start).max(1);
    (passes * count * columns * 4096) as f64 / nanos as f64
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

fn measure(
    line: &Line<'_>,
    stripes: &mut Stripes,
    total: usize,
    mut task: impl FnMut(&[Page], &mut [Page], &mut [Page]),
) {
    if !line.is_wanted() {
        return;
    }
    let (mut tasks, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let copy = rate(stripes, total, |data, _, copy| copy.clone_from_slice(data));
        let value = rate(stripes, total, &mut task);
        tasks.push(value);
        ratios.push(value / copy);
    }
    let json = serde_json::json!({
        "task": line.task,
        "kernels": line.kernels,
        "p": line.ring.map(Ring::p),
        "data_columns": DATA_COLUMNS,
        "place": line.place,
        "gb_per_cpu_s": (median(tasks) * 10.0).round() / 10.0,
        "of_memcpy": (median(ratios) * 1000.0).round() / 1000.0,
    });
    println!("{json}");
}

fn columns(ring: Ring, data: &[Page]) -> [Column<'_>; DATA_COLUMNS as usize] {
    core::array::from_fn(|i| {
        let index = u16::try_from(i).ok().and_then(|i| ring.data(i));
        let Some(index) = index else { panic!("more columns than the ring has") };
        Column { index, block: &data[i].0 }
    })
}

fn lost_pair(ring: Ring) -> [RingIndex; 2] {
    match (ring.data(3), ring.data(9)) {
        (Some(a), Some(b)) => [a, b],
        _ => panic!("rings have ten data columns"),
    }
}

fn bench_kernels(kernels: Kernels, ring: Ring, place: &str, stripes: &mut Stripes, total: usize) {
    let name = format!("{:?}", kernels.level());
    let line = |task| Line { task, kernels: &name, ring: Some(ring), place };
    measure(&line("encode"), stripes, total, |data, parity, _| {
        let [row, diagonal] = parity else { return };
        kernels.encode(ring, &columns(ring, data), &mut row.0, &mut diagonal.0);
    });
    measure(&line("reconstruct_pair"), stripes, total, |data, parity, copy| {
        let lost = lost_pair(ring);
        let all = columns(ring, data);
        // The diagonal's contents do not matter for the time.
        let row = Column { index: ring.row_parity(), block: &parity[0].0 };
        let mut present = [row; DATA_COLUMNS as usize - 1];
        let kept = all.iter().filter(|c| !lost.contains(&c.index));
        kept.zip(&mut present).for_each(|(from, to)| *to = *from);
        let [first, second, ..] = copy else { return };
        let out = [&mut first.0, &mut second.0];
        kernels.reconstruct_pair(ring, &present, &parity[1].0, lost, out);
    });
    measure(&line("update_each"), stripes, total, |data, parity, _| {
        let [row, diagonal] = parity else { return };
        for column in columns(ring, data) {
            kernels.update(ring, column.index, column.block, &mut row.0, &mut diagonal.0);
        }
    });
}

fn bench_row(kernels: Kernels, place: &str, stripes: &mut Stripes, total: usize) {
    let name = format!("{:?}", kernels.level());
    let line = Line { task: "row_only", kernels: &name, ring: None, place };
    measure(&line, stripes, total, |data, parity, _| {
        let blocks: [&Bytes; DATA_COLUMNS as usize] = core::array::from_fn(|i| &data[i].0);
        kernels.xor_all(&blocks, &mut parity[0].0);
    });
}

#[cfg(isal)]
fn bench_isal(place: &str, stripes: &mut Stripes, total: usize) {
    use core::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn pq_gen(vects: c_int, len: c_int, array: *mut *mut c_void) -> c_int;
    }
    let line = Line { task: "encode", kernels: "isa-l", ring: None, place };
    measure(&line, stripes, total, |data, parity, _| {
        let mut array: [*mut c_void; DATA_COLUMNS as usize + 2] =
            [core::ptr::null_mut(); DATA_COLUMNS as usize + 2];
        for (slot, page) in array.iter_mut().zip(data) {
            *slot = page.0.as_ptr().cast_mut().cast();
        }
        let [p, q] = parity else { return };
        array[usize::from(DATA_COLUMNS)] = p.0.as_mut_ptr().cast();
        array[usize::from(DATA_COLUMNS) + 1] = q.0.as_mut_ptr().cast();
        // SAFETY: 16 pointers to 4096 aligned bytes; only the last two are written.
        let result = unsafe { pq_gen(c_int::from(DATA_COLUMNS) + 2, 4096, array.as_mut_ptr()) };
        assert!(result == 0, "pq_gen");
    });
}

#[cfg(not(isal))]
fn bench_isal(_place: &str, _stripes: &mut Stripes, _total: usize) {}

fn main() {
    for (place, count, total) in [("cache", 1, CACHE_BYTES), ("dram", DRAM_STRIPES, DRAM_BYTES)] {
        let mut stripes = make_stripes(count);
        for kernels in Kernels::all() {
            bench_row(kernels, place, &mut stripes, total);
            for ring in [Ring::P17, Ring::P257] {
                bench_kernels(kernels, ring, place, &mut stripes, total);
            }
        }
        bench_isal(place, &mut stripes, total);
    }
}
