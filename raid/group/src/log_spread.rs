//! Parity for what the log spreads over its areas.
//!
//! Layer: pure, over [`Code`]. A row is one block of each data column, then row parity, then, where
//! two areas may be lost, diagonal parity: the code of RAID-4 and of RAID-DP with p = 17, whatever
//! the groups of the aggregate have.

use cairn_raid_api::{RaidKind, SPREAD_DATA_MAX, SPREAD_PARITY_MAX};
use cairn_raid_parity::{Bytes, Ring};
use cairn_sys::{Block, mutant};

use crate::code::{Code, Spare};

/// Data columns from which less is written than copies would take.
pub(crate) const SPREAD_DATA_MIN: usize = 2;
const _: () = assert!(SPREAD_DATA_MAX <= Ring::P17.data_columns_max() as usize);
const _: () = assert!(SPREAD_PARITY_MAX == 2);

/// The code for `parity` columns of it, where there is one.
pub(crate) fn code_of(parity: usize) -> Option<Code> {
    let kind = match parity {
        1 => RaidKind::Raid4,
        2 => RaidKind::RaidDp,
        _ => return None,
    };
    Some(Code { kind, p: Ring::P17.p() })
}

fn known(parity: usize, data: usize) -> Code {
    assert!(data <= SPREAD_DATA_MAX, "{data} data columns");
    match code_of(parity) {
        Some(code) => code,
        None => panic!("no code has {parity} columns of parity"),
    }
}

fn column(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

/// [`cairn_raid_api::LogStore::spread_parity`].
///
/// # Panics
/// See there.
pub fn parity(data: &[&[Block]], parity: usize) -> Vec<Vec<Block>> {
    let code = known(parity, data.len());
    let rows = data.iter().map(|column| column.len()).max().unwrap_or(0);
    let mut spare = Spare::new(code, rows);
    let mut out: Vec<Vec<Block>> = (0..parity).map(|_| Vec::with_capacity(rows)).collect();
    // The data was received by another processor.
    let mut next: Vec<&Bytes> = Vec::with_capacity(data.len());
    let mut columns = Vec::with_capacity(data.len());
    for row in 0..rows {
        next.clear();
        next.extend(data.iter().filter_map(|c| Some::<&Bytes>(c.get(row + 1)?)));
        columns.clear();
        let blocks = data.iter().zip(0..).filter_map(|(c, n)| code.column(n, c.get(row)?));
        columns.extend(blocks);
        let found = code.encode_ahead(&columns, &next, &mut spare);
        for (to, block) in out.iter_mut().zip([Some(found.row), found.diagonal]) {
            to.extend(block);
        }
    }
    out
}

/// [`cairn_raid_api::LogStore::spread_restore`].
///
/// # Panics
/// See there.
pub fn restore(row: &mut [Option<Block>], parity: usize) -> bool {
    let data = row.len().saturating_sub(parity);
    let code = known(parity, data);
    let number = |at: usize| if at < data { column(at) } else { code.p - 1 + column(at - data) };
    let mut columns: Vec<(u16, Option<Block>)> =
        row.iter().enumerate().map(|(at, block)| (number(at), block.clone())).collect();
    if code.decode(&mut columns).is_err() || mutant("log-spread-not-restored") {
        return false;
    }
    for (to, (_, block)) in row.iter_mut().zip(columns) {
        *to = block;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_sys::BlockMut;

    fn block(seed: u8) -> Block {
        BlockMut::copy_of(&[seed; 100]).freeze()
    }

    #[test]
    fn any_columns_that_parity_covers_are_found_again() {
        let most = u8::try_from(SPREAD_DATA_MAX).unwrap();
        for (columns, parities) in [(2, 1), (6, 1), (2, 2), (5, 2), (most, 2)] {
            // The last column is shorter.
            let data: Vec<Vec<Block>> = (1..=columns)
                .map(|c| (0..3 - u8::from(c == columns)).map(|r| block(7 * c + r)).collect())
                .collect();
            let runs: Vec<&[Block]> = data.iter().map(Vec::as_slice).collect();
            let parity = parity(&runs, parities);
            assert_eq!(parity.iter().map(Vec::len).collect::<Vec<_>>(), vec![3; parities]);
            for row in 0..3 {
                let whole: Vec<Option<Block>> = data
                    .iter()
                    .chain(&parity)
                    .map(|c| Some(c.get(row).cloned().unwrap_or_else(Block::zero)))
                    .collect();
                for a in 0..whole.len() {
                    for b in 0..whole.len() {
                        let mut broken = whole.clone();
                        broken[a] = None;
                        if parities == 2 {
                            broken[b] = None;
                        }
                        assert!(restore(&mut broken, parities));
                        assert!(broken == whole, "{columns} + {parities}, without {a} and {b}");
                    }
                }
                let mut broken = whole;
                broken[..=parities].fill(None);
                assert!(!restore(&mut broken, parities));
            }
        }
    }
}
