//! Many connections: that hold memory, that hold places.

use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_rawclient::nfs::NFS;
use cairn_rawclient::rpc::record;

use super::{FILE_BYTES, Ground, read_arguments, write_arguments};
use crate::foe::{Dice, Foe, connected};

/// Beyond the time of every attack: long enough that a call of the honest client which waits for
/// memory all the while has waited too long.
const LATENCY_MAX: Duration = crate::honest::LATENCY_MAX;
/// Beyond it for connections: long enough that idle ones may be asked for their places.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// Pause between two looks at all connections.
const PAUSE: Duration = Duration::from_millis(50);

/// Addresses that attackers come from: 127.0.0.2 and up.
fn address(n: usize) -> u8 {
    u8::try_from(2 + n % 8).unwrap_or(2)
}

/// Large WRITEs that are sent up to their last bytes, on more connections than fit into memory;
/// those that are cut off come back.
pub(super) fn half_writes(g: &Ground<'_>) -> Result<String> {
    let call = record(1, NFS, 7, &write_arguments(&g.file, &vec![0x66; 1 << 20], 0));
    let part = &call[..call.len() - 8192];
    let make = |n: usize| -> Result<(Foe, usize)> {
        let mut foe = connected(g.address.nfs, address(n))?;
        let sent = foe.push(part)?;
        Ok((foe, sent))
    };
    let before = g.address.counters()?;
    let mut foes = (0..480).map(make).collect::<Result<Vec<_>>>()?;
    let (end, mut cut) = (g.end() + LATENCY_MAX, 0);
    while !g.over(end, PAUSE) {
        for (n, (foe, sent)) in foes.iter_mut().enumerate() {
            if foe.is_closed()? {
                (*foe, *sent) = make(n)?;
                cut += 1;
            } else if *sent < part.len() {
                // The rest of the part, as far as the server reads.
                *sent += foe.push(&part[*sent..])?;
            }
        }
    }
    let after = g.address.counters()?;
    ensure!(cut > 0, "nobody was cut off");
    ensure!(after.gave_way > before.gave_way, "nobody had to give way");
    Ok(format!("{} connections, {cut} cut off", foes.len()))
}

/// READs of a megabyte, many at a time, and nobody takes a reply.
pub(super) fn deaf(g: &Ground<'_>) -> Result<String> {
    let mut calls = Vec::new();
    for xid in 0..64u32 {
        let at = u64::from(xid) * (1 << 20) % u64::from(FILE_BYTES);
        calls.extend_from_slice(&record(xid, NFS, 6, &read_arguments(&g.file, at, 1 << 20)));
    }
    let make = |n: usize| -> Result<Foe> {
        let mut foe = connected(g.address.nfs, address(n))?;
        foe.push(&calls)?;
        Ok(foe)
    };
    let before = g.address.counters()?;
    let mut foes = (0..96).map(make).collect::<Result<Vec<Foe>>>()?;
    let end = g.end() + LATENCY_MAX;
    let (mut most, mut late) = (0, 0);
    while !g.over(end, PAUSE) {
        let now = g.address.counters()?;
        most = most.max(now.in_flight);
        late = now.gave_way - before.gave_way;
        // One byte more each time, where the server still reads.
        for foe in &mut foes {
            foe.push(&[0])?;
        }
    }
    ensure!(late > 0, "nobody had to give way");
    Ok(format!("{} connections, {} MiB in flight, {late} cut off", foes.len(), most >> 20))
}

/// Thousands of connections: silent ones, halves of records, some that made a call; then
/// newcomers all the time, ended by resets.
pub(super) fn thousands(g: &Ground<'_>) -> Result<String> {
    let null = record(1, NFS, 0, &[]);
    let before = g.address.counters()?;
    let mut dice = Dice(g.seed);
    let mut foes = Vec::with_capacity(g.crowd);
    let mut opened = 0;
    let mut make = |n: usize| -> Result<Foe> {
        let mut foe = connected(g.address.nfs, address(n))?;
        match n % 3 {
            0 => {}
            1 => drop(foe.push(&null[..dice.below(null.len() - 1) + 1])?),
            _ => drop(foe.push(&null)?),
        }
        Ok(foe)
    };
    for n in 0..g.crowd {
        foes.push(make(n)?);
        opened += 1;
    }
    let most = g.address.counters()?;
    let (end, mut turn) = (g.end() + IDLE_TIME, 0);
    while !g.over(end, Duration::ZERO) {
        for _ in 0..50 {
            // The silent ones; the others stay, and are idle.
            turn = if turn + 3 < foes.len() { turn + 3 } else { 0 };
            let fresh = make(turn)?;
            core::mem::replace(&mut foes[turn], fresh).reset()?;
            opened += 1;
        }
    }
    let after = g.address.counters()?;
    let made_room = after.made_room - before.made_room;
    let refused = after.refused_connections - before.refused_connections;
    let enough = g.crowd as u64 >= g.connections_max;
    ensure!(!enough || made_room > 0, "no idle connection made room, {refused} were refused");
    Ok(format!(
        "{opened} connections, {} at a time in the node, {made_room} made room, {refused} refused",
        most.connections.max(after.connections)
    ))
}
