//! No decoder panics, whatever the bytes; and each has a target for the fuzzer.

use std::path::Path;
use std::time::{Duration, Instant};

use cairn_decoders::{TARGETS, target};

/// Time for each decoder.
const MOMENT: Duration = Duration::from_millis(1500);

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

fn hammer(name: &str) {
    let run = target(name).unwrap();
    let mut rng = Rng(name.bytes().map(u64::from).sum());
    let mut seeds: Vec<Vec<u8>> = vec![vec![], vec![0; 512], vec![0; 8192], vec![0xff; 600]];
    for len in [4, 40, 100, 4096] {
        seeds.push((0..len).map(|_| rng.next().to_le_bytes()[0]).collect());
    }
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
            if at < seeds.len() && seeds.len() >= 64 {
                seeds[at] = bytes;
            } else if seeds.len() < 64 {
                seeds.push(bytes);
            }
        }
    }
    assert!(runs > 100, "{name}: only {runs} runs");
}

macro_rules! hammered {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            hammer(stringify!($name));
        })*

        #[test]
        fn every_decoder_is_hammered() {
            let hammered = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|(name, _)| hammered.contains(name)));
        }
    };
}

hammered!(
    rpc_record,
    xdr,
    nfs_args,
    cf_message,
    file_handle,
    aggregate_root,
    volume_record,
    inode,
    disk_label,
    log_record,
    directory,
);

#[test]
fn every_decoder_has_a_fuzz_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} in the manifest");
        let path = fuzz.join("fuzz_targets").join(format!("{name}.rs"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("\"{name}\"")), "{} runs {name}", path.display());
    }
}
