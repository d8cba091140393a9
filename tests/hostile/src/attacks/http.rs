//! REST: halves, giants, floods, and requests a byte at a time.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Ground;
use crate::clock;
use crate::foe::{Answer, Foe, connected};

/// Connections of the flood.
const FLOOD: usize = 600;
/// Time of a request, and what it takes to look.
const CUT_MAX: Duration = Duration::from_secs(23);
const INTERVAL: Duration = Duration::from_millis(200);

fn foe(g: &Ground<'_>) -> Result<Foe> {
    connected(g.address.rest, 1)
}

fn head(g: &Ground<'_>, line: &str, more: &str) -> Vec<u8> {
    let token = &g.address.token;
    format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}").into_bytes()
}

/// Sends what must be refused or cut off, and never answered with more than a few KiB.
fn refused(g: &Ground<'_>, what: &str, bytes: &[u8]) -> Result<()> {
    let mut foe = foe(g)?;
    foe.push(bytes)?;
    let (answer, how) = foe.all(1 << 20);
    let said = String::from_utf8_lossy(&answer);
    ensure!(!said.starts_with("HTTP/1.1 2"), "{what}: {}", &said[..said.len().min(200)]);
    ensure!(answer.len() < 8192, "{what}: {} bytes, {how:?}", answer.len());
    ensure!(how == Answer::Closed || !said.is_empty(), "{what}: silence");
    Ok(())
}

/// Begins what never ends.
fn half(g: &Ground<'_>, bytes: &[u8]) -> Result<Foe> {
    let mut foe = foe(g)?;
    foe.push(bytes)?;
    Ok(foe)
}

/// Requests that make no sense; those that are never whole are given back, still open.
fn requests(g: &Ground<'_>) -> Result<Vec<Foe>> {
    let long = "x".repeat(1 << 20);
    let many = "A: b\r\n".repeat(10_000);
    let body = |length: &str, rest: &str| {
        head(g, "POST /api/v1/volumes", &format!("Content-Length: {length}\r\n\r\n{rest}"))
    };
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let endless = format!("{chunked}{}", "8000\r\n".to_owned() + &"y".repeat(0x8000) + "\r\n");
    refused(g, "a header of a megabyte", &head(g, "GET /metrics", &format!("A: {long}")))?;
    refused(g, "a path of a megabyte", &head(g, &format!("GET /{long}"), "\r\n"))?;
    let mut halves = vec![half(g, &head(g, "GET /metrics", &many))?];
    let many = format!("{many}\r\n");
    refused(g, "ten thousand headers", &head(g, "GET /metrics", &many))?;
    halves.push(half(g, &body("1152921504606846976", "{"))?);
    refused(g, "a negative length", &body("-1", "{}"))?;
    refused(g, "two lengths", &body("2\r\nContent-Length: 3", "{}x"))?;
    refused(g, "a body of two megabytes", &body("2097152", &"z".repeat(2 << 20)))?;
    halves.push(half(g, &head(g, "POST /api/v1/volumes", &endless))?);
    refused(
        g,
        "a giant chunk",
        &head(g, "POST /api/v1/volumes", &format!("{chunked}fffffffffffffffff\r\n")),
    )?;
    refused(
        g,
        "no HTTP at all",
        &[0x80, 0, 0, 0x28, 0, 0, 0, 1, 0, 0, 0, 0, b'\r', b'\n', b'\r', b'\n'],
    )?;
    refused(g, "no token", b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    Ok(halves)
}

/// Requests that make no sense; then more connections than there are places, of all kinds.
pub(super) fn http(g: &Ground<'_>) -> Result<String> {
    let halves = requests(g)?;
    let get = head(g, "GET /api/v1/openapi.json", "\r\n");
    let post = head(g, "POST /api/v1/volumes", "Content-Length: 200000\r\n\r\n{");
    // Who has the token is an administrator: thousands of answers are asked for without it.
    let many = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20_000);
    let make = |n: usize| -> Result<Foe> {
        let mut foe = foe(g)?;
        match n % 4 {
            0 => {}
            1 => drop(foe.push(&get[..30])?),
            2 => drop(foe.push(&post)?),
            // Thousands of answers that nobody takes.
            _ => drop(foe.push(&many)?),
        }
        Ok(foe)
    };
    let mut foes = (0..FLOOD).map(make).collect::<Result<Vec<Foe>>>()?;
    let (end, mut again) = (g.end(), 0);
    while !g.over(end, Duration::from_millis(100)) {
        for (n, foe) in foes.iter_mut().enumerate() {
            if foe.is_closed()? {
                *foe = make(n)?;
                again += 1;
            }
        }
    }
    drop(halves);
    Ok(format!("{FLOOD} connections, {again} came again"))
}

/// Requests that arrive a byte at a time, in head and body; answers that are never taken.
pub(super) fn slow(g: &Ground<'_>) -> Result<String> {
    let get = head(g, "GET /api/v1/status", "\r\n");
    let post = head(g, "POST /api/v1/volumes", "Content-Length: 200000\r\n\r\n{");
    let began = clock::now();
    let mut foes = Vec::new();
    for (bytes, from) in [(&get, 0), (&get, 20), (&post, post.len() - 1)] {
        for _ in 0..30 {
            let mut foe = foe(g)?;
            foe.send(&bytes[..from]);
            foes.push((bytes, from, foe));
        }
    }
    let all = foes.len();
    while !foes.is_empty() && !g.bell.rests(INTERVAL) {
        let mut left = Vec::new();
        for (bytes, at, mut foe) in foes {
            if foe.is_closed_behind_an_answer()? {
                continue;
            }
            let passed = began.elapsed();
            ensure!(passed <= CUT_MAX, "slow request: still there after {passed:?}");
            foe.push(&bytes[at.min(bytes.len() - 2)..][..1])?;
            left.push((bytes, at + 1, foe));
        }
        foes = left;
    }
    Ok(format!("{all} connections, the last cut off after {:.1} s", began.elapsed().as_secs_f64()))
}
