//! The procedures of NFSv3 and MOUNT as the simulated clients use them (RFC 1813).
//!
//! Layer: above [`crate::rpc`]. Encodes arguments and decodes results as a client would; what a
//! reply may say is judged by [`crate::client`].

use std::time::Duration;

use crate::rpc::{Call, Reply, RpcClient, Times, Violation};
use crate::xdr::{In, Out};

const NFS: (u32, u32) = (100_003, 3);
const MOUNT: (u32, u32) = (100_005, 3);

pub(crate) const OK: u32 = 0;
pub(crate) const NOENT: u32 = 2;
pub(crate) const IO: u32 = 5;
pub(crate) const EXIST: u32 = 17;
pub(crate) const NOSPC: u32 = 28;
pub(crate) const NOTEMPTY: u32 = 66;
pub(crate) const STALE: u32 = 70;
const JUKEBOX: u32 = 10_008;

/// How stable a write is to be, and was made.
pub(crate) const UNSTABLE: u32 = 0;
pub(crate) const FILE_SYNC: u32 = 2;

pub(crate) type Handle = Vec<u8>;

/// An answer: status, who answered, and the results behind the status.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T> {
    pub(crate) status: u32,
    pub(crate) incarnation: u64,
    pub(crate) repeated: bool,
    /// There when the status is [`OK`].
    pub(crate) value: Option<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attrs {
    pub(crate) kind: u32,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) fileid: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) count: u32,
    pub(crate) committed: u32,
    pub(crate) verifier: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) bytes: Vec<u8>,
    pub(crate) eof: bool,
}

/// A write to make.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) file: Handle,
    pub(crate) at: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) stable: u32,
}

/// How a file is to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Unchecked,
    Guarded,
    Exclusive(u64),
}

fn attrs(r: &mut In<'_>) -> Option<Attrs> {
    let (kind, mode, links) = (r.u32()?, r.u32()?, r.u32()?);
    r.skip(8)?;
    let size = r.u64()?;
    r.skip(24)?;
    let fileid = r.u64()?;
    r.skip(24)?;
    Some(Attrs { kind, mode, links, size, fileid })
}

fn post_op(r: &mut In<'_>) -> Option<Option<Attrs>> {
    if r.u32()? == 1 { Some(Some(attrs(r)?)) } else { Some(None) }
}

fn wcc(r: &mut In<'_>) -> Option<()> {
    if r.u32()? == 1 {
        r.skip(24)?;
    }
    post_op(r).map(drop)
}

fn sattr(out: &mut Out, mode: Option<u32>, size: Option<u64>) {
    match mode {
        Some(mode) => out.u32(1).u32(mode),
        None => out.u32(0),
    };
    out.u32(0).u32(0);
    match size {
        Some(size) => out.u32(1).u64(size),
        None => out.u32(0),
    };
    out.u32(0).u32(0);
}

fn nfs(procedure: u32, args: Out, times: Times) -> Call {
    Call { program: NFS, procedure, args: args.0, times }
}

fn answer<T>(
    reply: &Reply,
    decode: impl FnOnce(&mut In<'_>) -> Option<T>,
) -> Result<Answer<T>, Violation> {
    let mut r = In(&reply.body);
    let malformed = || Violation(format!("malformed results: {:?}", reply.body));
    let status = r.u32().ok_or_else(malformed)?;
    let value = if status == OK { Some(decode(&mut r).ok_or_else(malformed)?) } else { None };
    if status == OK && !r.0.is_empty() {
        return Err(Violation(format!("{} bytes behind the results", r.0.len())));
    }
    let Reply { incarnation, repeated, .. } = *reply;
    Ok(Answer { status, incarnation, repeated, value })
}

/// NFS on one client's connection.
pub(crate) struct Nfs {
    pub(crate) rpc: RpcClient,
}

impl Nfs {
    /// One call; "try again later" is obeyed.
    async fn one(&mut self, call: Call) -> Result<Reply, Violation> {
        loop {
            let reply = self.rpc.exchange(vec![call.clone()]).await?.pop();
            let Some(reply) = reply else { return Err(Violation("no reply".to_owned())) };
            if In(&reply.body).u32() != Some(JUKEBOX) {
                return Ok(reply);
            }
            self.rpc.world().clock.sleep(Duration::from_millis(100)).await;
        }
    }

    async fn call<T>(
        &mut self,
        procedure: u32,
        args: Out,
        times: Times,
        decode: impl FnOnce(&mut In<'_>) -> Option<T>,
    ) -> Result<Answer<T>, Violation> {
        let reply = self.one(nfs(procedure, args, times)).await?;
        answer(&reply, decode)
    }

    pub(crate) async fn mount(&mut self, path: &str) -> Result<Answer<Handle>, Violation> {
        let mut out = Out::default();
        out.opaque(path.as_bytes());
        let call = Call { program: MOUNT, procedure: 1, args: out.0, times: Times::Any };
        let reply = self.one(call).await?;
        answer(&reply, |r| {
            let handle = r.opaque()?.to_vec();
            for _ in 0..r.u32()? {
                r.u32()?;
            }
            Some(handle)
        })
    }

    pub(crate) async fn getattr(&mut self, file: &Handle) -> Result<Answer<Attrs>, Violation> {
        let mut out = Out::default();
        out.opaque(file);
        self.call(1, out, Times::Any, attrs).await
    }

    pub(crate) async fn setattr(
        &mut self,
        file: &Handle,
        mode: Option<u32>,
        size: Option<u64>,
    ) -> Result<Answer<()>, Violation> {
        let mut out = Out::default();
        out.opaque(file);
        sattr(&mut out, mode, size);
        out.u32(0);
        self.call(2, out, Times::Once, wcc).await
    }

    pub(crate) async fn lookup(
        &mut self,
        dir: &Handle,
        name: &str,
    ) -> Result<Answer<Handle>, Violation> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name.as_bytes());
        self.call(3, out, Times::Any, |r| {
            let handle = r.opaque()?.to_vec();
            post_op(r)?;
            post_op(r)?;
            Some(handle)
        })
        .await
    }

    pub(crate) async fn readlink(&mut self, link: &Handle) -> Result<Answer<Vec<u8>>, Violation> {
        let mut out = Out::default();
        out.opaque(link);
        self.call(5, out, Times::Any, |r| {
            post_op(r)?;
            Some(r.opaque()?.to_vec())
        })
        .await
    }

    pub(crate) async fn read(
        &mut self,
        file: &Handle,
        at: u64,
        count: u32,
    ) -> Result<Answer<Data>, Violation> {
        let mut out = Out::default();
        out.opaque(file).u64(at).u32(count);
        self.call(6, out, Times::Any, |r| {
            post_op(r)?;
            let count = r.u32()?;
            let eof = r.u32()? == 1;
            let bytes = r.opaque()?.to_vec();
            (usize::try_from(count) == Ok(bytes.len())).then_some(Data { bytes, eof })
        })
        .await
    }

    /// Several writes side by side; those that are told to try later are made again.
    pub(crate) async fn write_all(
        &mut self,
        writes: &[Write],
    ) -> Result<Vec<Answer<Written>>, Violation> {
        let call = |w: &Write| {
            let count = u32::try_from(w.data.len()).unwrap_or(u32::MAX);
            let mut out = Out::default();
            out.opaque(&w.file).u64(w.at).u32(count).u32(w.stable).opaque(&w.data);
            nfs(7, out, Times::Once)
        };
        let mut replies = self.rpc.exchange(writes.iter().map(call).collect()).await?;
        for (reply, write) in replies.iter_mut().zip(writes) {
            while In(&reply.body).u32() == Some(JUKEBOX) {
                self.rpc.world().clock.sleep(Duration::from_millis(100)).await;
                *reply = self.one(call(write)).await?;
            }
        }
        let decode = |r: &mut In<'_>| {
            wcc(r)?;
            Some(Written { count: r.u32()?, committed: r.u32()?, verifier: r.u64()? })
        };
        replies.iter().map(|reply| answer(reply, decode)).collect()
    }

    pub(crate) async fn create(
        &mut self,
        dir: &Handle,
        name: &str,
        how: How,
    ) -> Result<Answer<Option<Handle>>, Violation> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name.as_bytes());
        match how {
            How::Unchecked => sattr(out.u32(0), Some(0o644), None),
            How::Guarded => sattr(out.u32(1), Some(0o644), None),
            How::Exclusive(verifier) => drop(out.u32(2).u64(verifier)),
        }
        self.call(8, out, Times::Once, made).await
    }

    pub(crate) async fn mkdir(
        &mut self,
        dir: &Handle,
        name: &str,
    ) -> Result<Answer<Option<Handle>>, Violation> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name.as_bytes());
        sattr(&mut out, Some(0o755), None);
        self.call(9, out, Times::Once, made).await
    }

    pub(crate) async fn symlink(
        &mut self,
        dir: &Handle,
        name: &str,
        target: &str,
    ) -> Result<Answer<Option<Handle>>, Violation> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name.as_bytes());
        sattr(&mut out, None, None);
        out.opaque(target.as_bytes());
        self.call(10, out, Times::Once, made).await
    }

    /// REMOVE, or RMDIR.
    pub(crate) async fn remove(
        &mut self,
        dir: &Handle,
        name: &str,
        directory: bool,
    ) -> Result<Answer<()>, Violation> {
        let mut out = Out::default();
        out.opaque(dir).opaque(name.as_bytes());
        self.call(if directory { 13 } else { 12 }, out, Times::Once, wcc).await
    }

    pub(crate) async fn rename(
        &mut self,
        from: (&Handle, &str),
        to: (&Handle, &str),
    ) -> Result<Answer<()>, Violation> {
        let mut out = Out::default();
        out.opaque(from.0).opaque(from.1.as_bytes()).opaque(to.0).opaque(to.1.as_bytes());
        self.call(14, out, Times::Once, |r| {
            wcc(r)?;
            wcc(r)
        })
        .await
    }

    pub(crate) async fn link(
        &mut self,
        file: &Handle,
        to: (&Handle, &str),
    ) -> Result<Answer<()>, Violation> {
        let mut out = Out::default();
        out.opaque(file).opaque(to.0).opaque(to.1.as_bytes());
        self.call(15, out, Times::Once, |r| {
            post_op(r)?;
            wcc(r)
        })
        .await
    }

    /// All names but the dots; the directory must not change meanwhile.
    pub(crate) async fn list(&mut self, dir: &Handle) -> Result<Answer<Vec<String>>, Violation> {
        let (mut names, mut cookie, mut verifier) = (Vec::new(), 0, 0);
        loop {
            let mut out = Out::default();
            out.opaque(dir).u64(cookie).u64(verifier).u32(1024);
            let part = self
                .call(16, out, Times::Any, |r| {
                    post_op(r)?;
                    let verifier = r.u64()?;
                    let mut entries = Vec::new();
                    while r.u32()? == 1 {
                        r.u64()?;
                        let name = String::from_utf8_lossy(r.opaque()?).into_owned();
                        entries.push((name, r.u64()?));
                    }
                    Some((verifier, entries, r.u32()? == 1))
                })
                .await?;
            let Answer { status, incarnation, repeated, value } = part;
            let Some((now, entries, eof)) = value else {
                return Ok(Answer { status, incarnation, repeated, value: None });
            };
            verifier = now;
            if entries.is_empty() && !eof {
                return Err(Violation("a listing that goes on and says nothing".to_owned()));
            }
            for (name, next) in entries {
                cookie = next;
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            if eof {
                return Ok(Answer { status, incarnation, repeated, value: Some(names) });
            }
        }
    }

    pub(crate) async fn commit(&mut self, file: &Handle) -> Result<Answer<u64>, Violation> {
        let mut out = Out::default();
        out.opaque(file).u64(0).u32(0);
        self.call(21, out, Times::Any, |r| {
            wcc(r)?;
            r.u64()
        })
        .await
    }
}

fn made(r: &mut In<'_>) -> Option<Option<Handle>> {
    let handle = if r.u32()? == 1 { Some(r.opaque()?.to_vec()) } else { None };
    post_op(r)?;
    wcc(r)?;
    Some(handle)
}
