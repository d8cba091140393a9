//! No decoder panics, whatever the bytes; each has a target for the fuzzer, and its seeds are in
//! the tree.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_decoders::{DECODERS, decoder, decoders};

/// Time for each decoder.
const MOMENT: Duration = Duration::from_millis(1500);
/// All inputs in the tree together.
const INPUT_BYTES_MAX: u64 = 1 << 20;
/// Set, it makes [`seeds_in_the_tree_are_those_of_the_encoders`] write the seeds.
const WRITE: &str = "CAIRN_WRITE_SEEDS";

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64).max(1)).unwrap()
    }
}

/// Numbers that lie at the ends of things.
const EDGES: [u32; 8] = [0, 1, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff, 4096];

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(6) {
        let at = rng.below(bytes.len());
        match rng.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            1 if bytes.len() >= 4 => {
                let at = rng.below(bytes.len() / 4) * 4;
                let edge = EDGES[rng.below(8)];
                bytes[at..at + 4].copy_from_slice(&edge.to_be_bytes());
            }
            2 if bytes.len() >= 4 => {
                let at = rng.below(bytes.len() / 4) * 4;
                let edge = EDGES[rng.below(8)];
                bytes[at..at + 4].copy_from_slice(&edge.to_le_bytes());
            }
            3 => bytes.truncate(at),
            4 => bytes.extend_from_slice(&rng.next().to_be_bytes()),
            _ => {
                let small = [0, 0, 0, rng.next().to_le_bytes()[0] % 40];
                bytes.extend_from_slice(&small);
            }
        }
    }
    bytes.truncate(40_000);
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// Files below `tests/fuzz/FOLDER/NAME`, in order.
fn files(folder: &str, name: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(fuzz().join(folder).join(name)).into_iter().flatten() {
        out.push(entry.unwrap().path());
    }
    out.sort();
    out
}

/// Says which input it was when `run` panics with it.
struct Running<'b>(&'b str, &'b [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().take(4096).map(|b| format!("{b:02x}")).collect();
            eprintln!("{} fails on {} bytes: {hex}", self.0, self.1.len());
        }
    }
}

fn hammer(name: &str) {
    let found = decoder(name).unwrap();
    let run = |bytes: &[u8]| {
        let _running = Running(name, bytes);
        (found.run)(bytes);
    };
    let mut rng = Rng(name.bytes().map(u64::from).sum());
    let mut seeds: Vec<Vec<u8>> = vec![vec![], vec![0; 512], vec![0; 8192], vec![0xff; 600]];
    for len in [4, 40, 100, 4096] {
        seeds.push((0..len).map(|_| rng.next().to_le_bytes()[0]).collect());
    }
    seeds.extend((found.seeds)());
    for folder in ["corpus", "regressions"] {
        seeds.extend(files(folder, name).iter().map(|path| std::fs::read(path).unwrap()));
    }
    seeds.iter().for_each(|seed| run(seed));
    #[expect(
        clippy::disallowed_methods,
        reason = "bounds how long the test runs, not what it does"
    )]
    let began = Instant::now();
    let mut runs = 0u64;
    while began.elapsed() < MOMENT {
        let pick = rng.below(seeds.len());
        let mut bytes = seeds[pick].clone();
        mutate(&mut rng, &mut bytes);
        run(&bytes);
        runs += 1;
        if runs.is_multiple_of(50) {
            // Mutations go on from earlier ones.
            let at = rng.below(seeds.len() * 2);
            if at < seeds.len() && seeds.len() >= 128 {
                seeds[at] = bytes;
            } else if seeds.len() < 128 {
                seeds.push(bytes);
            }
        }
    }
    assert!(runs > 20, "{name}: only {runs} runs");
}

macro_rules! hammered {
    ($($name:ident: $run:expr, $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            hammer(stringify!($name));
        })*
    };
}
decoders!(hammered);

#[test]
fn every_decoder_has_a_fuzz_target_and_no_target_is_without_a_decoder() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let (_, bins) = manifest.split_once("[[bin]]").unwrap();
    let named = bins.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let listed: BTreeSet<&str> = DECODERS.iter().map(|d| d.name).collect();
    assert_eq!(named.collect::<BTreeSet<&str>>(), listed);
    for folder in ["corpus", "regressions"] {
        for entry in std::fs::read_dir(fuzz().join(folder)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(listed.contains(name.as_str()), "{folder}/{name} belongs to no decoder");
        }
    }
}

#[test]
fn seeds_in_the_tree_are_those_of_the_encoders() {
    for decoder in DECODERS {
        let folder = fuzz().join("corpus").join(decoder.name);
        let seeds = (decoder.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", decoder.name);
        for (n, seed) in seeds.iter().enumerate() {
            let path = folder.join(format!("seed{n:02}"));
            if std::env::var_os(WRITE).is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, seed).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_default();
            assert!(
                kept == *seed,
                "{} is not what is encoded now; {WRITE}=1 writes it anew",
                path.display()
            );
        }
        let kept = files("corpus", decoder.name);
        let seed = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().contains("seed");
        assert_eq!(kept.iter().filter(seed).count(), seeds.len(), "{}", decoder.name);
    }
}

#[test]
fn inputs_in_the_tree_stay_small() {
    let mut bytes = 0;
    for decoder in DECODERS {
        for folder in ["corpus", "regressions"] {
            for path in files(folder, decoder.name) {
                bytes += std::fs::metadata(&path).unwrap().len();
            }
        }
    }
    assert!(bytes <= INPUT_BYTES_MAX, "{bytes} bytes of inputs");
}
