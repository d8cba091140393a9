//! One simulated client: runs its operations, and judges every answer.
//!
//! Layer: above [`crate::nfs`] and [`crate::oracle`]. The client is alone in its directory and
//! knows exactly what must be there; what it shares with others is judged by time. A call that an
//! earlier machine may have done already (`repeated`) may answer that it is done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::net::lock;
use crate::nfs::{
    Answer, EXIST, FILE_SYNC, Handle, How, IO, NOENT, NOSPC, NOTEMPTY, Nfs, OK, STALE, UNSTABLE,
    Write, Written,
};
use crate::oracle::{CELL, CELL_U64, Data, Shared, content};
use crate::plan::{DIRS, Op, SHARED_FILES, SLOTS};
use crate::rpc::{RpcClient, RpcCounters, Violation};

type Result<T> = core::result::Result<T, Violation>;

/// Cells of one READ.
const READ_CELLS: u64 = 256;
/// Size of every shared file, in cells.
pub(crate) const SHARED_CELLS: u64 = 64;

fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(Violation(what.into()))
}

/// What errors are honest in this world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leniency {
    /// There is so little space that it may be spent.
    pub(crate) no_space: bool,
}

/// What all clients know together.
pub(crate) struct Together {
    pub(crate) shared: Mutex<Vec<Shared>>,
    /// Verifier of each machine.
    verifiers: Mutex<BTreeMap<u64, u64>>,
    /// What each client is at.
    pub(crate) under_way: Mutex<BTreeMap<u8, Op>>,
    /// Operations done.
    pub(crate) done: Mutex<BTreeMap<&'static str, u64>>,
}

impl Together {
    pub(crate) fn new() -> Arc<Self> {
        let shared = (0..SHARED_FILES).map(|n| Shared::new(u64::from(n) + 1, SHARED_CELLS));
        Arc::new(Self {
            shared: Mutex::new(shared.collect()),
            verifiers: Mutex::default(),
            under_way: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// A machine shows its verifier: always the same, and no other machine's.
    fn verifier(&self, incarnation: u64, verifier: u64) -> Result<()> {
        let mut known = lock(&self.verifiers);
        let other = known.iter().find(|(i, v)| (**i == incarnation) != (**v == verifier));
        if let Some(other) = other {
            return wrong(format!(
                "machine {incarnation} has write verifier {verifier:#x}, and {other:?} is known"
            ));
        }
        known.insert(incarnation, verifier);
        Ok(())
    }

    fn count(&self, what: &'static str) {
        *lock(&self.done).entry(what).or_insert(0) += 1;
    }
}

struct File {
    handle: Handle,
    links: u32,
    mode: u32,
    data: Data,
}

enum Entry {
    File(u64),
    Link(Handle, String),
}

/// A place for a name: the directory (0 is the client's own) and the name in it.
fn place(slot: u8) -> (u8, String) {
    (slot % DIRS, format!("n{slot}"))
}

/// The client.
pub(crate) struct Client {
    pub(crate) number: u8,
    nfs: Nfs,
    together: Arc<Together>,
    leniency: Leniency,
    pace: Duration,
    root: Handle,
    dirs: BTreeMap<u8, Handle>,
    names: BTreeMap<u8, Entry>,
    files: BTreeMap<u64, File>,
    shared: Vec<Handle>,
    next_file: u64,
}

impl Client {
    pub(crate) fn new(
        number: u8,
        rpc: RpcClient,
        together: Arc<Together>,
        leniency: Leniency,
        pace: Duration,
    ) -> Self {
        Self {
            number,
            nfs: Nfs { rpc },
            together,
            leniency,
            pace,
            root: Handle::new(),
            dirs: BTreeMap::new(),
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            shared: Vec::new(),
            next_file: u64::from(number) << 20,
        }
    }

    pub(crate) fn has_file(&self, slot: u8) -> bool {
        matches!(self.names.get(&slot), Some(Entry::File(_)))
    }

    pub(crate) fn counters(&self) -> RpcCounters {
        self.nfs.rpc.counters
    }

    fn now(&self) -> u64 {
        self.nfs.rpc.world().clock.monotonic().get()
    }

    /// Mounts, and makes its directory; the first client makes the shared files.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        self.root = self.expect("mount", &[]).await?;
        let dir = format!("c{}", self.number);
        let made = self.nfs.mkdir(&self.root.clone(), &dir).await?;
        let own = match made.value.flatten() {
            Some(handle) => handle,
            None => return wrong(format!("mkdir of {dir}: status {}", made.status)),
        };
        self.dirs.insert(0, own);
        for n in 0..SHARED_FILES {
            let made =
                self.nfs.create(&self.root.clone(), &format!("s{n}"), How::Unchecked).await?;
            let Some(handle) = made.value.flatten() else {
                return wrong(format!("create of a shared file: status {}", made.status));
            };
            let sized = self.nfs.setattr(&handle, None, Some(SHARED_CELLS * CELL_U64)).await?;
            self.allow(sized.status, &[])?;
            self.shared.push(handle);
        }
        Ok(())
    }

    async fn expect(&mut self, what: &str, allowed: &[u32]) -> Result<Handle> {
        let mounted = self.nfs.mount("/v1").await?;
        self.allow(mounted.status, allowed)?;
        mounted.value.ok_or_else(|| Violation(format!("{what}: status {}", mounted.status)))
    }

    /// The status is success, one of `allowed`, or honest in this world.
    fn allow(&self, status: u32, allowed: &[u32]) -> Result<bool> {
        let honest = allowed.contains(&status) || (status == NOSPC && self.leniency.no_space);
        match status {
            OK => Ok(true),
            _ if honest => Ok(false),
            IO => wrong("status 5: I/O error though parity covers all that is broken"),
            other => wrong(format!("status {other} is not one of {allowed:?}")),
        }
    }

    /// Runs one operation.
    pub(crate) async fn run(&mut self, op: &Op) -> Result<()> {
        self.together.count(op.name());
        lock(&self.together.under_way).insert(self.number, *op);
        let result = self.step(op).await;
        lock(&self.together.under_way).remove(&self.number);
        if !self.pace.is_zero() {
            let nanos = u64::try_from(self.pace.as_nanos()).unwrap_or(0).max(1);
            let pause = self.nfs.rpc.world().entropy.next_u64() % (2 * nanos);
            self.nfs.rpc.world().clock.sleep(Duration::from_nanos(pause)).await;
        }
        let number = self.number;
        result.map_err(|Violation(what)| Violation(format!("client {number}, {op:?}: {what}")))
    }

    async fn step(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Write { slot, at, cells, stable } => {
                self.write(slot, &[(u64::from(at), u64::from(cells))], stable).await
            }
            Op::Burst { slot, at, cells, count } => {
                let pieces: Vec<(u64, u64)> = (0..u64::from(count))
                    .map(|n| (u64::from(at) + n * u64::from(cells), u64::from(cells)))
                    .collect();
                self.write(slot, &pieces, UNSTABLE).await
            }
            Op::Commit { slot } => self.commit(slot).await,
            Op::Read { slot, at, cells } => self.read(slot, u64::from(at), u64::from(cells)).await,
            Op::Truncate { slot, cells } => self.truncate(slot, u64::from(cells)).await,
            Op::Create { slot, how } => self.create(slot, how).await.map(drop),
            Op::Remove { slot } => self.remove(slot).await,
            Op::Rename { from, to } => self.rename(from, to).await,
            Op::Link { from, to } => self.link(from, to).await,
            Op::Symlink { slot } => self.symlink(slot).await,
            Op::Mkdir { dir } => self.dir(dir).await.map(drop),
            Op::Rmdir { dir } => self.rmdir(dir).await,
            Op::List => self.list().await,
            Op::Chmod { slot, mode } => self.chmod(slot, u32::from(mode)).await,
            Op::Check { slot } => self.check(slot).await,
            Op::SharedWrite { file, at, cells, stable } => {
                self.shared_write(file, (u64::from(at), u64::from(cells)), stable).await
            }
            Op::SharedRead { file } => self.shared_read(file).await,
            Op::SharedCommit { file } => self.shared_commit(file).await,
            Op::HangUp => {
                self.nfs.rpc.hang_up();
                Ok(())
            }
            Op::Sleep { ms } => {
                self.nfs.rpc.world().clock.sleep(Duration::from_millis(u64::from(ms))).await;
                Ok(())
            }
        }
    }

    /// The directory of number `dir`, made if need be; `None` when there is no space.
    async fn dir(&mut self, dir: u8) -> Result<Option<Handle>> {
        if let Some(handle) = self.dirs.get(&dir) {
            return Ok(Some(handle.clone()));
        }
        let own = self.dirs.get(&0).cloned().unwrap_or_default();
        let name = format!("d{dir}");
        let made = self.nfs.mkdir(&own, &name).await?;
        let again: &[u32] = if made.repeated { &[EXIST] } else { &[] };
        let ok = self.allow(made.status, again)?;
        let handle = match made.value.flatten() {
            Some(handle) => handle,
            None if ok || made.status == EXIST => self.found(&own, &name).await?,
            None if made.repeated => match self.nfs.lookup(&own, &name).await?.value {
                Some(handle) => handle,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        self.dirs.insert(dir, handle.clone());
        Ok(Some(handle))
    }

    async fn found(&mut self, dir: &Handle, name: &str) -> Result<Handle> {
        let found = self.nfs.lookup(dir, name).await?;
        self.allow(found.status, &[])?;
        found.value.ok_or_else(|| Violation(format!("lookup of {name}: status {}", found.status)))
    }

    /// The file in a slot; `None` when there is none.
    fn file(&mut self, slot: u8) -> Option<&mut File> {
        match self.names.get(&slot) {
            Some(Entry::File(id)) => self.files.get_mut(id),
            _ => None,
        }
    }

    async fn create(&mut self, slot: u8, how: u8) -> Result<bool> {
        let (dir, name) = place(slot);
        let Some(dir) = self.dir(dir).await? else { return Ok(false) };
        let how = match how {
            0 => How::Unchecked,
            1 => How::Guarded,
            _ => How::Exclusive(self.nfs.rpc.world().entropy.next_u64()),
        };
        let taken = self.names.contains_key(&slot);
        if matches!(self.names.get(&slot), Some(Entry::Link(..))) && how == How::Unchecked {
            return Ok(false);
        }
        let made = self.nfs.create(&dir, &name, how).await?;
        let may = taken || (made.repeated && how == How::Guarded);
        let ok = self.allow(made.status, if may { &[EXIST] } else { &[] })?;
        if taken {
            return match (how, ok) {
                (How::Unchecked, _) | (_, false) => Ok(true),
                _ => wrong("a guarded create of a name that is there"),
            };
        }
        let handle = match made.value.flatten() {
            Some(handle) => handle,
            None if ok || made.status == EXIST => self.found(&dir, &name).await?,
            None if made.repeated => match self.nfs.lookup(&dir, &name).await?.value {
                Some(handle) => handle,
                None => return Ok(false),
            },
            None => return Ok(false),
        };
        self.next_file += 1;
        let id = self.next_file;
        let mode = if let How::Exclusive(_) = how { u32::MAX } else { 0o644 };
        self.files.insert(id, File { handle, links: 1, mode, data: Data::new(id) });
        self.names.insert(slot, Entry::File(id));
        Ok(true)
    }

    async fn write(&mut self, slot: u8, pieces: &[(u64, u64)], stable: u32) -> Result<()> {
        if !self.names.contains_key(&slot) && !self.create(slot, 0).await? {
            return Ok(());
        }
        let Some(file) = self.file(slot) else { return Ok(()) };
        let (handle, id) = (file.handle.clone(), file.data.id);
        let mut versions = Vec::new();
        let mut writes = Vec::new();
        for (at, cells) in pieces {
            let version = file.data.fresh();
            versions.push(version);
            let data = (*at..at + cells).flat_map(|c| content(id, c, version)).collect();
            writes.push(Write { file: handle.clone(), at: at * CELL_U64, data, stable });
        }
        let answers = self.nfs.write_all(&writes).await?;
        for ((answer, (at, cells)), version) in answers.iter().zip(pieces).zip(versions) {
            let done = self.judge_write(answer, cells * CELL_U64, stable)?;
            let Some(file) = self.file(slot) else { continue };
            match done {
                Some(FILE_SYNC) => file.data.wrote_stable(*at, *cells, version),
                Some(1) => file.data.wrote_stable(*at, *cells, version),
                Some(_) => file.data.wrote(*at, *cells, version, (answer.incarnation, true)),
                // Refused for want of space; an earlier machine may have done it.
                None if answer.repeated => {
                    file.data.wrote(*at, *cells, version, (answer.incarnation, false));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// How stable a write was made; `None` when it was refused.
    fn judge_write(
        &self,
        answer: &Answer<Written>,
        bytes: u64,
        stable: u32,
    ) -> Result<Option<u32>> {
        self.allow(answer.status, &[])?;
        let Some(written) = answer.value else { return Ok(None) };
        self.together.verifier(answer.incarnation, written.verifier)?;
        if u64::from(written.count) != bytes || written.committed < stable {
            return wrong(format!("a write of {bytes} bytes, stability {stable}: {written:?}"));
        }
        Ok(Some(written.committed))
    }

    async fn commit(&mut self, slot: u8) -> Result<()> {
        let Some(file) = self.file(slot) else { return Ok(()) };
        let handle = file.handle.clone();
        let done = self.nfs.commit(&handle).await?;
        if self.allow(done.status, &[])? {
            self.together.verifier(done.incarnation, done.value.unwrap_or(0))?;
            if let Some(file) = self.file(slot) {
                file.data.committed(done.incarnation);
            }
        }
        Ok(())
    }

    async fn read(&mut self, slot: u8, at: u64, cells: u64) -> Result<()> {
        let Some(file) = self.file(slot) else { return Ok(()) };
        let handle = file.handle.clone();
        let count = u32::try_from(cells * CELL_U64).unwrap_or(0);
        let got = self.nfs.read(&handle, at * CELL_U64, count).await?;
        self.allow(got.status, &[])?;
        let (Some(data), Some(file)) = (got.value, self.file(slot)) else { return Ok(()) };
        let end = at * CELL_U64 + data.bytes.len() as u64;
        if !data.bytes.is_empty() && data.eof {
            file.data.observe_size(end, got.incarnation)?;
        } else if !data.eof && data.bytes.len() as u64 != u64::from(count) {
            return wrong(format!("{} of {count} bytes, not at the end", data.bytes.len()));
        }
        if data.bytes.len() % CELL != 0 {
            return wrong(format!("{} bytes", data.bytes.len()));
        }
        file.data.observe(at, &data.bytes, got.incarnation)
    }

    async fn truncate(&mut self, slot: u8, cells: u64) -> Result<()> {
        let Some(file) = self.file(slot) else { return Ok(()) };
        let handle = file.handle.clone();
        let done = self.nfs.setattr(&handle, None, Some(cells * CELL_U64)).await?;
        if !self.allow(done.status, &[])? {
            // Refused for want of space; what an earlier machine did is found out by the next.
            return if done.repeated { self.forget(slot).await } else { Ok(()) };
        }
        if let Some(file) = self.file(slot) {
            file.data.cut(cells);
        }
        Ok(())
    }

    async fn chmod(&mut self, slot: u8, mode: u32) -> Result<()> {
        let Some(file) = self.file(slot) else { return Ok(()) };
        let handle = file.handle.clone();
        let done = self.nfs.setattr(&handle, Some(mode), None).await?;
        let ok = self.allow(done.status, &[])?;
        if let Some(file) = self.file(slot) {
            match (ok, done.repeated) {
                (true, _) => file.mode = mode,
                (false, true) => file.mode = u32::MAX,
                (false, false) => {}
            }
        }
        Ok(())
    }

    /// Removes a file of which too little is known.
    async fn forget(&mut self, slot: u8) -> Result<()> {
        self.remove(slot).await
    }

    /// The slot's name is gone.
    fn dropped(&mut self, slot: u8) -> Option<Handle> {
        let Some(Entry::File(id)) = self.names.remove(&slot) else { return None };
        let file = self.files.get_mut(&id)?;
        file.links -= 1;
        if file.links > 0 {
            return None;
        }
        self.files.remove(&id).map(|f| f.handle)
    }

    async fn remove(&mut self, slot: u8) -> Result<()> {
        let (dir, name) = place(slot);
        let there = self.names.contains_key(&slot);
        let Some(dir) = self.dirs.get(&dir).cloned() else { return Ok(()) };
        let done = self.nfs.remove(&dir, &name, false).await?;
        let may: &[u32] = if !there || done.repeated { &[NOENT] } else { &[] };
        let ok = self.allow(done.status, may)?;
        if !there {
            return if ok { wrong("a name was removed that is not there") } else { Ok(()) };
        }
        if done.status == NOSPC {
            return if done.repeated { self.look(slot).await } else { Ok(()) };
        }
        if let Some(handle) = self.dropped(slot) {
            let gone = self.nfs.getattr(&handle).await?;
            if gone.status != STALE {
                return wrong(format!("a removed file's handle: status {}", gone.status));
            }
        }
        Ok(())
    }

    /// Finds out whether the name in a slot is still there.
    async fn look(&mut self, slot: u8) -> Result<()> {
        let (dir, name) = place(slot);
        let Some(dir) = self.dirs.get(&dir).cloned() else { return Ok(()) };
        let found = self.nfs.lookup(&dir, &name).await?;
        if !self.allow(found.status, &[NOENT])? {
            self.dropped(slot);
        }
        Ok(())
    }

    async fn rename(&mut self, from: u8, to: u8) -> Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (place(from), place(to));
        if from == to || !self.names.contains_key(&from) {
            return Ok(());
        }
        let same = match (self.names.get(&from), self.names.get(&to)) {
            (Some(Entry::File(a)), Some(Entry::File(b))) => a == b,
            _ => false,
        };
        let Some(from_dir) = self.dirs.get(&from_dir).cloned() else { return Ok(()) };
        let Some(to_dir) = self.dir(to_dir).await? else { return Ok(()) };
        let done = self.nfs.rename((&from_dir, &from_name), (&to_dir, &to_name)).await?;
        let again: &[u32] = if done.repeated { &[NOENT] } else { &[] };
        let ok = self.allow(done.status, again)?;
        if same {
            return Ok(());
        }
        if done.status == NOSPC {
            let gone = self.nfs.lookup(&from_dir, &from_name).await?;
            if self.allow(gone.status, &[NOENT])? {
                return Ok(());
            }
        } else if !ok && done.status != NOENT {
            return Ok(());
        }
        self.dropped(to);
        if let Some(entry) = self.names.remove(&from) {
            self.names.insert(to, entry);
        }
        Ok(())
    }

    async fn link(&mut self, from: u8, to: u8) -> Result<()> {
        let (to_dir, to_name) = place(to);
        let taken = self.names.contains_key(&to);
        let Some(Entry::File(id)) = self.names.get(&from) else { return Ok(()) };
        let id = *id;
        let Some(handle) = self.files.get(&id).map(|f| f.handle.clone()) else { return Ok(()) };
        let Some(to_dir) = self.dir(to_dir).await? else { return Ok(()) };
        let done = self.nfs.link(&handle, (&to_dir, &to_name)).await?;
        let may: &[u32] = if taken || done.repeated { &[EXIST] } else { &[] };
        let ok = self.allow(done.status, may)?;
        if taken {
            return if ok { wrong("a link over a name that is there") } else { Ok(()) };
        }
        let mut made = ok || done.status == EXIST;
        if !made && done.repeated {
            made = self.nfs.lookup(&to_dir, &to_name).await?.status == OK;
        }
        if made {
            self.names.insert(to, Entry::File(id));
            if let Some(file) = self.files.get_mut(&id) {
                file.links += 1;
            }
        }
        Ok(())
    }

    async fn symlink(&mut self, slot: u8) -> Result<()> {
        let (dir, name) = place(slot);
        let taken = self.names.contains_key(&slot);
        let Some(dir) = self.dir(dir).await? else { return Ok(()) };
        let target = format!("to/{}/{slot}", self.next_file);
        let made = self.nfs.symlink(&dir, &name, &target).await?;
        let may: &[u32] = if taken || made.repeated { &[EXIST] } else { &[] };
        let ok = self.allow(made.status, may)?;
        if taken {
            return if ok { wrong("a link over a name that is there") } else { Ok(()) };
        }
        let handle = match made.value.flatten() {
            Some(handle) => handle,
            None if ok || made.status == EXIST => self.found(&dir, &name).await?,
            None if made.repeated => match self.nfs.lookup(&dir, &name).await?.value {
                Some(handle) => handle,
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        self.names.insert(slot, Entry::Link(handle, target));
        Ok(())
    }

    async fn rmdir(&mut self, dir: u8) -> Result<()> {
        if dir == 0 || !self.dirs.contains_key(&dir) {
            return Ok(());
        }
        let own = self.dirs.get(&0).cloned().unwrap_or_default();
        let full = self.names.keys().any(|slot| place(*slot).0 == dir);
        let name = format!("d{dir}");
        let done = self.nfs.remove(&own, &name, true).await?;
        let may: &[u32] = match (full, done.repeated) {
            (true, _) => &[NOTEMPTY],
            (false, true) => &[NOENT],
            (false, false) => &[],
        };
        let ok = self.allow(done.status, may)?;
        if full && ok {
            return wrong("a directory was removed that holds something");
        }
        let mut gone = ok || done.status == NOENT;
        if done.status == NOSPC && done.repeated {
            gone = self.nfs.lookup(&own, &name).await?.status == NOENT;
        }
        if gone {
            self.dirs.remove(&dir);
        }
        Ok(())
    }

    /// Every directory holds exactly the names that it must.
    async fn list(&mut self) -> Result<()> {
        for (dir, handle) in self.dirs.clone() {
            let listed = self.nfs.list(&handle).await?;
            self.allow(listed.status, &[])?;
            let Some(mut listed) = listed.value else { continue };
            let here = self.names.keys().map(|slot| place(*slot)).filter(|(d, _)| *d == dir);
            let mut want: Vec<String> = here.map(|(_, name)| name).collect();
            if dir == 0 {
                want.extend(self.dirs.keys().filter(|d| **d != 0).map(|d| format!("d{d}")));
            }
            listed.sort_unstable();
            want.sort_unstable();
            if listed != want {
                return wrong(format!("directory {dir} lists {listed:?}, not {want:?}"));
            }
        }
        Ok(())
    }

    /// Name, attributes and every byte of what is in a slot.
    async fn check(&mut self, slot: u8) -> Result<()> {
        let (dir, name) = place(slot);
        let Some(dir) = self.dirs.get(&dir).cloned() else { return Ok(()) };
        let found = self.nfs.lookup(&dir, &name).await?;
        let handle = match self.names.get(&slot) {
            None => {
                return match self.allow(found.status, &[NOENT])? {
                    true => wrong("a name is there that must not be"),
                    false => Ok(()),
                };
            }
            Some(Entry::Link(handle, target)) => {
                let (handle, target) = (handle.clone(), target.clone());
                let read = self.nfs.readlink(&handle).await?;
                self.allow(read.status, &[])?;
                return match read.value {
                    Some(bytes) if bytes != target.as_bytes() => wrong("another link target"),
                    _ => Ok(()),
                };
            }
            Some(Entry::File(id)) => self.files.get(id).map(|f| f.handle.clone()),
        };
        let handle = handle.unwrap_or_default();
        if !self.allow(found.status, &[])? || found.value.as_ref() != Some(&handle) {
            return wrong(format!("lookup: status {}, handle {:?}", found.status, found.value));
        }
        let attrs = self.nfs.getattr(&handle).await?;
        self.allow(attrs.status, &[])?;
        let (Some(seen), Some(file)) = (attrs.value, self.file(slot)) else { return Ok(()) };
        let mode = file.mode == u32::MAX || file.mode == seen.mode & 0o7777;
        if seen.kind != 1 || seen.links != file.links || !mode {
            return wrong(format!("{seen:?}, but {} links, mode {:o}", file.links, file.mode));
        }
        file.data.observe_size(seen.size, attrs.incarnation)?;
        let end = seen.size.div_ceil(CELL_U64);
        let mut at = 0;
        while at < end {
            self.read(slot, at, READ_CELLS.min(end - at)).await?;
            at += READ_CELLS;
        }
        Ok(())
    }

    async fn shared_write(&mut self, file: u8, (at, cells): (u64, u64), stable: u32) -> Result<()> {
        let n = usize::from(file);
        let Some(handle) = self.shared.get(n).cloned() else { return Ok(()) };
        let now = self.now();
        let (id, version) = {
            let mut shared = lock(&self.together.shared);
            let cells = cells.min(shared[n].len() - at);
            (shared[n].id, shared[n].begin(at, cells, now))
        };
        let cells = cells.min(SHARED_CELLS - at);
        let data = (at..at + cells).flat_map(|c| content(id, c, version)).collect();
        let write = Write { file: handle, at: at * CELL_U64, data, stable };
        for answer in self.nfs.write_all(&[write]).await? {
            let now = self.now();
            if let Some(committed) = self.judge_write(&answer, cells * CELL_U64, stable)? {
                let how = (answer.incarnation, committed > 0);
                lock(&self.together.shared)[n].end((at, cells), version, now, how);
            }
        }
        Ok(())
    }

    async fn shared_read(&mut self, file: u8) -> Result<()> {
        let n = usize::from(file);
        let Some(handle) = self.shared.get(n).cloned() else { return Ok(()) };
        let begun = self.now();
        let count = u32::try_from(SHARED_CELLS * CELL_U64).unwrap_or(0);
        let got = self.nfs.read(&handle, 0, count).await?;
        let ended = self.now();
        self.allow(got.status, &[])?;
        let Some(data) = got.value else { return Ok(()) };
        if data.bytes.len() as u64 != u64::from(count) {
            return wrong(format!("{} bytes of a shared file", data.bytes.len()));
        }
        lock(&self.together.shared)[n].observe(0, &data.bytes, (begun, ended), got.incarnation)
    }

    async fn shared_commit(&mut self, file: u8) -> Result<()> {
        let n = usize::from(file);
        let Some(handle) = self.shared.get(n).cloned() else { return Ok(()) };
        let begun = self.now();
        let done = self.nfs.commit(&handle).await?;
        if self.allow(done.status, &[])? {
            self.together.verifier(done.incarnation, done.value.unwrap_or(0))?;
            lock(&self.together.shared)[n].committed(begun, done.incarnation);
        }
        Ok(())
    }

    /// Everything that the client knows of, compared.
    pub(crate) async fn check_all(&mut self) -> Result<()> {
        self.run(&Op::List).await?;
        for slot in 0..SLOTS {
            self.run(&Op::Check { slot }).await?;
        }
        for file in 0..SHARED_FILES {
            self.run(&Op::SharedRead { file }).await?;
        }
        Ok(())
    }
}
