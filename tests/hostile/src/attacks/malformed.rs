//! Records and calls that are too large, turned around, for somebody else, or noise.

use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_rawclient::nfs::{MOUNT, NFS};
use cairn_rawclient::rpc::{LAST_FRAGMENT, Out, record};

use super::{Ground, read_arguments, with_handle, write_arguments};
use crate::foe::{Answer, Dice, Foe, connected};

/// GARBAGE_ARGS as the state of an accepted call.
const GARBAGE: u32 = 4;
/// Longest reply that anything here may get.
const REPLY_BYTES_MAX: usize = (1 << 20) + 4096;

fn foe(g: &Ground<'_>) -> Result<Foe> {
    connected(g.address.nfs, 2)
}

/// A call whose arguments are `args`, and the part of its record behind them.
fn nfs(procedure: u32, args: &[u8]) -> Vec<u8> {
    record(7, NFS, procedure, args)
}

/// Arguments with a length of 2^32 - 1 in place of the opaque behind `before`.
fn endless(before: &[u8]) -> Vec<u8> {
    [before, &u32::MAX.to_be_bytes(), &[0x41; 64]].concat()
}

/// A call with this credential: flavour, length as claimed, bytes as sent.
fn credential(flavor: u32, claimed: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Out::default();
    out.u32(0).u32(7).u32(0).u32(2).u32(NFS.0).u32(NFS.1).u32(0).u32(flavor).u32(claimed);
    out.0.extend_from_slice(body);
    out.u32(0).u32(0);
    let len = u32::try_from(out.0.len() - 4).unwrap_or(0);
    out.0[..4].copy_from_slice(&(len | LAST_FRAGMENT).to_be_bytes());
    out.0
}

/// AUTH_SYS with a claimed number of groups.
fn groups(claimed: u32, sent: u32) -> Vec<u8> {
    let mut body = Out::default();
    body.u32(0).opaque(b"host").u32(0).u32(0).u32(claimed);
    for gid in 0..sent {
        body.u32(gid);
    }
    let len = u32::try_from(body.0.len()).unwrap_or(0);
    credential(1, len, &body.0)
}

/// Sends a record that must end the connection.
fn ends(g: &Ground<'_>, what: &str, bytes: &[u8]) -> Result<()> {
    let mut foe = foe(g)?;
    foe.send(bytes);
    let answer = foe.answer();
    ensure!(answer == Answer::Closed, "{what}: {answer:?}");
    Ok(())
}

/// Sends a call that must be answered; its reply's words.
fn answered(g: &Ground<'_>, what: &str, bytes: &[u8]) -> Result<Vec<u32>> {
    let mut foe = foe(g)?;
    ensure!(foe.send(bytes), "{what}: not taken");
    let answer = foe.answer();
    let Answer::Reply(reply) = &answer else { anyhow::bail!("{what}: {answer:?}") };
    ensure!(reply.len() <= REPLY_BYTES_MAX, "{what}: a reply of {} bytes", reply.len());
    Ok(answer.words())
}

fn is_garbage(g: &Ground<'_>, what: &str, bytes: &[u8]) -> Result<()> {
    let words = answered(g, what, bytes)?;
    ensure!(words.get(1..6) == Some(&[1, 0, 0, 0, GARBAGE]), "{what}: {words:?}");
    Ok(())
}

/// Lengths, counts and records as large as they can be claimed.
pub(super) fn giant(g: &Ground<'_>) -> Result<String> {
    let end = g.end();
    let mut rounds = 0;
    while !g.over(end, Duration::ZERO) || rounds == 0 {
        rounds += 1;
        for mark in [0x7fff_ffffu32, u32::MAX, 0xc000_0000, 0x4000_0000, 0x0020_0000] {
            ends(g, "a fragment of gigabytes", &mark.to_be_bytes())?;
        }
        ends(g, "empty fragments without end", &vec![0; 16_000])?;
        let half = [&(1u32 << 19).to_be_bytes()[..], &vec![0; 1 << 19]].concat();
        ends(g, "fragments without end", &[&half[..], &half, &half].concat())?;

        is_garbage(g, "an endless handle", &nfs(1, &endless(&[])))?;
        is_garbage(g, "an endless name", &nfs(3, &endless(&with_handle(&g.dir).0)))?;
        is_garbage(g, "an endless path", &record(7, MOUNT, 1, &endless(&[])))?;
        let mut write = with_handle(&g.file);
        write.u64(0).u32(u32::MAX).u32(0);
        is_garbage(g, "an endless WRITE", &nfs(7, &endless(&write.0)))?;
        let mut link = with_handle(&g.dir);
        link.opaque(b"link").u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
        is_garbage(g, "an endless link target", &nfs(10, &endless(&link.0)))?;
        is_garbage(
            g,
            "a path of a megabyte",
            &record(7, MOUNT, 1, &{
                let mut path = Out::default();
                path.opaque(&vec![b'/'; 1 << 20]);
                path.0
            }),
        )?;
        let mut name = with_handle(&g.dir);
        name.opaque(&vec![b'n'; 65_536]);
        let words = answered(g, "a name of 64 KiB", &nfs(3, &name.0))?;
        ensure!(words.get(6) == Some(&63) || words.get(5) == Some(&GARBAGE), "{words:?}");

        for (what, call) in [
            ("an endless credential", credential(1, u32::MAX, &[])),
            ("a credential of 4 KiB", credential(1, 4096, &[0; 4096])),
            ("2^32 - 1 groups", groups(u32::MAX, 0)),
            ("90 groups", groups(90, 90)),
        ] {
            let mut foe = foe(g)?;
            foe.send(&call);
            let words = foe.answer().words();
            // MSG_DENIED, AUTH_ERROR; or the end of the connection.
            ensure!(words.is_empty() || words[1..4] == [1, 1, 1], "{what}: {words:?}");
        }
        let mut list = with_handle(&g.dir);
        list.u64(0).u64(0).u32(u32::MAX);
        answered(g, "an endless READDIR", &nfs(16, &list.0))?;
        list.u32(u32::MAX);
        answered(g, "an endless READDIRPLUS", &nfs(17, &list.0))?;
        let words = answered(g, "an endless READ", &nfs(6, &read_arguments(&g.file, 0, u32::MAX)))?;
        ensure!(words.len() > 6, "{words:?}");
        answered(g, "a READ at the end of all", &nfs(6, &read_arguments(&g.file, u64::MAX, 9)))?;
    }
    Ok(format!("{rounds} rounds of 22"))
}

/// Every word turned around.
fn turned(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(4).flat_map(|word| word.iter().rev().copied()).collect()
}

/// A client that does not know network byte order.
pub(super) fn wrong_endian(g: &Ground<'_>) -> Result<String> {
    let end = g.end();
    let mut rounds = 0;
    while !g.over(end, Duration::ZERO) || rounds == 0 {
        rounds += 1;
        let call = nfs(1, &with_handle(&g.file).0);
        // The mark says that a fragment of at least 16 MiB comes: too long.
        let mut mark = call.clone();
        mark[..4].reverse();
        ends(g, "a mark turned around", &mark)?;
        ends(g, "all turned around", &turned(&call))?;
        // A right mark, and a message type of 0 in either order, but RPC version 0x02000000.
        let words =
            answered(g, "a call turned around", &[&call[..4], &turned(&call[4..])].concat())?;
        ensure!(words.get(1..4) == Some(&[1, 1, 0]), "RPC_MISMATCH: {words:?}");
        // Arguments alone: a handle whose length is too large.
        let at = call.len() - g.file.len() - 4;
        is_garbage(g, "arguments turned around", &[&call[..at], &turned(&call[at..])].concat())?;
    }
    Ok(format!("{rounds} rounds of 4"))
}

/// Programs, versions and procedures that are not there.
pub(super) fn wrong_call(g: &Ground<'_>) -> Result<String> {
    let end = g.end();
    let mut rounds = 0;
    let mut foe = foe(g)?;
    while !g.over(end, Duration::ZERO) || rounds == 0 {
        rounds += 1;
        for (program, procedure, state) in [
            ((100_227, 3), 0, vec![1]),
            ((u32::MAX, u32::MAX), u32::MAX, vec![1]),
            ((0, 0), 0, vec![1]),
            ((NFS.0, 2), 1, vec![2, 3, 3]),
            ((NFS.0, 4), 1, vec![2, 3, 3]),
            ((MOUNT.0, 2), 1, vec![2, 1, 3]),
            ((NFS.0, 3), 22, vec![3]),
            ((NFS.0, 3), u32::MAX, vec![3]),
            ((MOUNT.0, 3), 6, vec![3]),
            ((NFS.0, 3), 1, vec![4]),
        ] {
            ensure!(foe.send(&record(rounds, program, procedure, &[])), "not taken");
            let words = foe.answer().words();
            let expected = [&[rounds, 1, 0, 0, 0][..], &state].concat();
            ensure!(words == expected, "{program:?} {procedure}: {words:?}");
        }
    }
    Ok(format!("{} calls", rounds * 10))
}

/// Calls that make sense until some of their bytes are changed.
fn valid(g: &Ground<'_>, dice: &mut Dice) -> Vec<u8> {
    let name = |dice: &mut Dice| {
        let mut out = with_handle(&g.dir);
        out.opaque(format!("noise{}", dice.below(9)).as_bytes());
        out.0
    };
    let xid = u32::try_from(dice.next() >> 40).unwrap_or(0);
    let (procedure, args) = match dice.below(9) {
        0 => (1, with_handle(&g.file).0),
        1 => (3, name(dice)),
        2 => (6, read_arguments(&g.file, dice.next() >> 44, 5000)),
        3 => (7, write_arguments(&g.file, &dice.bytes(300), 0)),
        4 => (8, cairn_rawclient::nfs::create_arguments(&g.dir, b"noise1")),
        5 => (12, name(dice)),
        6 => (14, [name(dice), name(dice)].concat()),
        7 => (17, {
            let mut out = with_handle(&g.dir);
            out.u64(dice.next()).u64(0).u32(4096).u32(9000);
            out.0
        }),
        _ => (19, with_handle(&g.file).0),
    };
    record(xid, NFS, procedure, &args)
}

/// Chance, and calls with some bytes changed. What the server makes of it is its own affair; it
/// has to live.
pub(super) fn noise(g: &Ground<'_>) -> Result<String> {
    let (end, mut dice) = (g.end(), Dice(g.seed));
    let (mut calls, mut cut) = (0, 0);
    let mut foe = foe(g)?;
    while !g.over(end, Duration::ZERO) || calls == 0 {
        let bytes = match dice.below(20) {
            0 => {
                let n = dice.below(5000);
                dice.bytes(n)
            }
            _ => {
                let mut call = valid(g, &mut dice);
                for _ in 0..dice.below(4) {
                    // The mark mostly stays, or nearly all would end there.
                    let from = if dice.below(10) == 0 { 0 } else { 4 };
                    let at = from + dice.below(call.len() - from);
                    call[at] = dice.bytes(1)[0];
                }
                call
            }
        };
        calls += 1;
        let taken = foe.send(&bytes);
        if !taken || foe.is_closed()? || dice.below(50) == 0 {
            cut += 1;
            foe = self::foe(g)?;
        }
    }
    Ok(format!("{calls} calls, {cut} connections"))
}
