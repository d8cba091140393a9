//! One byte per interval, at every place of a record.

use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_rawclient::nfs::NFS;
use cairn_rawclient::rpc::record;

use super::{Ground, with_handle, write_arguments};
use crate::clock;
use crate::foe::{Foe, connected};

/// Time between two bytes.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time after which the server must have cut off all of them: its interval for a record that
/// makes no progress, and what it takes to look.
const CUT_MAX: Duration = Duration::from_secs(13);
/// Connections of each kind.
const EACH: u8 = 40;

/// Where each kind begins to be slow.
pub(super) fn slow(g: &Ground<'_>) -> Result<String> {
    let getattr = record(1, NFS, 1, &with_handle(&g.file).0);
    let write = record(2, NFS, 7, &write_arguments(&g.file, &vec![0x77; 1 << 20], 0));
    // Empty fragments and one that never ends.
    let fragments = [&[0; 40][..], &1000u32.to_be_bytes(), &[0x55; 900]].concat();
    let kinds: [(&str, &[u8], usize); 5] = [
        ("mark", &getattr, 0),
        ("header", &getattr, 8),
        ("payload", &write, 130),
        ("half a payload", &write, 1 << 19),
        ("fragments", &fragments, 44),
    ];
    let began = clock::now();
    let mut foes: Vec<(&str, &[u8], usize, Foe)> = Vec::new();
    for (name, bytes, from) in kinds {
        // Of a mark and a header there is less than the time takes: they stop before the end.
        let bytes = &bytes[..bytes.len() - 1];
        for n in 0..EACH {
            let mut foe = connected(g.address.nfs, 2 + n % 8)?;
            foe.send(&bytes[..from]);
            foes.push((name, bytes, from, foe));
        }
    }
    let all = foes.len();
    while !foes.is_empty() && !g.bell.rests(INTERVAL) {
        let mut left = Vec::new();
        for (name, bytes, at, mut foe) in foes {
            if foe.is_closed()? {
                continue;
            }
            let passed = began.elapsed();
            ensure!(passed <= CUT_MAX, "slow {name}: still there after {passed:?}");
            let to = (at + 1).min(bytes.len());
            foe.push(&bytes[at..to])?;
            left.push((name, bytes, to, foe));
        }
        foes = left;
    }
    Ok(format!("{all} connections, the last cut off after {:.1} s", began.elapsed().as_secs_f64()))
}
