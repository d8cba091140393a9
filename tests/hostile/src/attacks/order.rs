//! Calls again and again, and calls that come when they should not.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use cairn_rawclient::nfs::{NFS, create_arguments};
use cairn_rawclient::rpc::{LAST_FRAGMENT, Out, record};

use super::{Ground, with_handle, write_arguments};
use crate::foe::{Answer, Dice, connected};

/// NFS3ERR_NOENT, NFS3ERR_EXIST, NFS3ERR_STALE, NFS3ERR_BADHANDLE.
const NOENT: u32 = 2;
const EXIST: u32 = 17;
const STALE: u32 = 70;
const BAD_HANDLE: u32 = 10_001;
/// Times that a call is sent by each of the connections.
const TIMES: usize = 20;

/// Arguments of a REMOVE.
fn remove_arguments(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = with_handle(dir);
    out.opaque(name);
    out.0
}

/// Sends the same record many times over several connections: every answer must be the first.
fn once(g: &Ground<'_>, what: &str, call: &[u8]) -> Result<Vec<u32>> {
    let mut foes = Vec::new();
    for _ in 0..4 {
        foes.push(connected(g.address.nfs, 2)?);
    }
    let first = &mut foes[0];
    ensure!(first.send(call), "{what}: not taken");
    let answer = first.answer();
    ensure!(matches!(answer, Answer::Reply(_)), "{what}: {answer:?}");
    for foe in &mut foes {
        ensure!(foe.send(&call.repeat(TIMES)), "{what}: not taken");
    }
    for foe in &mut foes {
        for _ in 0..TIMES {
            let again = foe.answer();
            ensure!(again == answer, "{what}: done again: {again:?}, not {answer:?}");
        }
    }
    Ok(answer.words())
}

fn status(words: &[u32]) -> Option<u32> {
    words.get(6).copied()
}

/// The same calls again, the same numbers with other bodies, from several connections.
pub(super) fn replayed(g: &Ground<'_>) -> Result<String> {
    let (end, mut client) = (g.end(), g.client()?);
    let mut rounds = 0u32;
    while !g.over(end, Duration::ZERO) || rounds == 0 {
        rounds += 1;
        let xid = 0x5000_0000 + rounds * 8;
        let name = format!("once{rounds}");
        let name = name.as_bytes();
        let create = create_arguments(&g.dir, name);
        let made = once(g, "CREATE", &record(xid, NFS, 8, &create))?;
        ensure!(status(&made) == Some(0), "CREATE: {made:?}");
        // The same number from the same address, but another body: another call.
        let other = create_arguments(&g.dir, &[name, b"x"].concat());
        let made = once(g, "CREATE with the number of another", &record(xid, NFS, 8, &other))?;
        ensure!(status(&made) == Some(0), "another CREATE: {made:?}");
        // A new number is a new call, and the name is there.
        let again = once(g, "a second CREATE", &record(xid + 1, NFS, 8, &create))?;
        ensure!(status(&again) == Some(EXIST), "a second CREATE: {again:?}");
        let mut rename = with_handle(&g.dir);
        rename.opaque(name).opaque(&g.dir).opaque(&[name, b"x"].concat());
        let renamed = once(g, "RENAME", &record(xid + 2, NFS, 14, &rename.0))?;
        ensure!(status(&renamed) == Some(0), "RENAME: {renamed:?}");
        let remove = remove_arguments(&g.dir, &[name, b"x"].concat());
        let removed = once(g, "REMOVE", &record(xid + 3, NFS, 12, &remove))?;
        ensure!(status(&removed) == Some(0), "REMOVE: {removed:?}");
        let gone = once(g, "a second REMOVE", &record(xid + 4, NFS, 12, &remove))?;
        ensure!(status(&gone) == Some(NOENT), "a second REMOVE: {gone:?}");
        let left = client.lookup(&g.dir, name).map_err(|e| anyhow!("{e}"))?;
        ensure!(left.is_none(), "a name is there again");
    }
    Ok(format!("{} calls, each {} times", rounds * 6, 4 * TIMES + 1))
}

/// Calls that must be done once, with ever new numbers: the reply cache has to stay bounded.
pub(super) fn replay_flood(g: &Ground<'_>) -> Result<String> {
    let (end, mut foe) = (g.end(), connected(g.address.nfs, 2)?);
    let mut xid = 0u32;
    while !g.over(end, Duration::ZERO) || xid == 0 {
        let mut calls = Vec::new();
        for _ in 0..200 {
            xid += 1;
            let remove = remove_arguments(&g.dir, format!("none{xid}").as_bytes());
            calls.extend_from_slice(&record(xid, NFS, 12, &remove));
        }
        ensure!(foe.send(&calls), "not taken");
        for _ in 0..200 {
            let words = foe.answer().words();
            ensure!(status(&words) == Some(NOENT), "{words:?}");
        }
    }
    Ok(format!("{xid} calls"))
}

/// Replies for calls, handles that were never given out, files that are gone, torn records.
pub(super) fn out_of_order(g: &Ground<'_>) -> Result<String> {
    let (end, mut client, mut dice) = (g.end(), g.client()?, Dice(g.seed));
    let told = |e| anyhow!("{e}");
    let mut rounds = 0u32;
    while !g.over(end, Duration::ZERO) || rounds == 0 {
        rounds += 1;
        let mut reply = Out::default();
        reply.u32(24 | LAST_FRAGMENT).u32(1).u32(1).u32(0).u32(0).u32(0).u32(0);
        let mut foe = connected(g.address.nfs, 2)?;
        foe.send(&reply.0);
        let answer = foe.answer();
        ensure!(answer == Answer::Closed, "a reply as a call: {answer:?}");

        // A connection that never mounted anything, with handles that it made up.
        let mut foe = connected(g.address.nfs, 2)?;
        let mut flipped = g.file.clone();
        let at = dice.below(flipped.len());
        flipped[at] ^= 1 << dice.below(8);
        for forged in [dice.bytes(g.file.len()), dice.bytes(64), Vec::new(), flipped] {
            for (procedure, args) in [
                (1, with_handle(&forged).0),
                (7, write_arguments(&forged, b"not yours", 2)),
                (12, remove_arguments(&forged, b"file")),
                (21, [with_handle(&forged).0, vec![0; 12]].concat()),
            ] {
                ensure!(foe.send(&record(rounds, NFS, procedure, &args)), "not taken");
                let words = foe.answer().words();
                let refused = matches!(status(&words), Some(STALE | BAD_HANDLE));
                ensure!(refused, "procedure {procedure} with a forged handle: {words:?}");
            }
        }

        let gone = client.create(&g.dir, b"gone").map_err(told)?;
        client.remove(&g.dir, b"gone").map_err(told)?;
        for (procedure, args) in [
            (21, [with_handle(&gone).0, vec![0; 12]].concat()),
            (7, write_arguments(&gone, b"late", 2)),
        ] {
            ensure!(foe.send(&record(rounds, NFS, procedure, &args)), "not taken");
            let words = foe.answer().words();
            ensure!(status(&words) == Some(STALE), "{procedure} of a removed file: {words:?}");
        }

        // Two calls whose fragments are mixed make one record that is neither.
        let (a, b) = (record(1, NFS, 1, &with_handle(&g.file).0), record(2, NFS, 0, &[]));
        let fragment = |bytes: &[u8], last: u32| {
            let len = u32::try_from(bytes.len()).unwrap_or(0);
            [&(len | last).to_be_bytes()[..], bytes].concat()
        };
        let (a, b) = (&a[4..], &b[4..]);
        let mixed = [
            fragment(&a[..20], 0),
            fragment(&b[..20], 0),
            fragment(&a[20..], 0),
            fragment(&b[20..], LAST_FRAGMENT),
        ];
        ensure!(foe.send(&mixed.concat()), "not taken");
        let words = foe.answer().words();
        ensure!(words.is_empty() || words[1..3] != [1, 0] || words[5] != 0, "mixed: {words:?}");
    }
    Ok(format!("{rounds} rounds of 20"))
}

/// Thousands of calls without taking a reply, then all the replies.
pub(super) fn pipelined(g: &Ground<'_>) -> Result<String> {
    let (end, mut total) = (g.end(), 0);
    let getattr = with_handle(&g.file).0;
    while !g.over(end, Duration::ZERO) || total == 0 {
        let mut foe = connected(g.address.nfs, 2)?;
        let calls: Vec<u8> = (0..5000).flat_map(|xid| record(xid, NFS, 1, &getattr)).collect();
        let sent = foe.push(&calls)?;
        let whole = sent / (calls.len() / 5000);
        // The server stops reading when as much is in flight as one connection may have; what
        // it took is answered, each call once.
        let mut seen = vec![false; 5000];
        for _ in 0..whole {
            let words = foe.answer().words();
            let Some(xid) = words.first() else { break };
            let seen = &mut seen[usize::try_from(*xid)?];
            ensure!(!*seen && status(&words) == Some(0), "twice, or not at all: {xid}");
            *seen = true;
        }
        let answered = seen.iter().filter(|s| **s).count();
        ensure!(answered == whole, "{answered} of {whole} calls were answered");
        total += whole;
    }
    Ok(format!("{total} calls"))
}
