//! One worker: changes files of a directory of its own, remembers what was acknowledged, checks.
//!
//! Layer: above `nfs`. For every block the worker knows the version that is stable and those that
//! may be there instead; the bytes of a version are computed from worker, file, block and version,
//! so that a block of another place or time is told apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_rawclient::nfs::{Client, DATA_SYNC, FILE_SYNC, Handle, Target, UNSTABLE};
use cairn_rawclient::rpc::Error;

const BLOCK: usize = 4096;
const BLOCK_U64: u64 = 4096;
/// Files per worker.
const FILES_MAX: usize = 24;
/// Blocks per file.
const BLOCKS_MAX: u64 = 64;
/// Blocks per write.
const WRITE_BLOCKS_MAX: u64 = 16;

/// Why a worker ended.
pub(crate) enum Ended {
    /// It was asked to.
    Halted,
    /// The server is gone.
    Broken,
    /// The server answered something wrong.
    Wrong(Error),
}

/// What a block may hold. Version 0 is zeros.
#[derive(Clone, Debug, Default)]
struct Versions {
    stable: u64,
    /// Later ones, oldest first: written unstably, or under way when the server went.
    maybe: Vec<u64>,
}

#[derive(Clone, Debug)]
struct File {
    id: u64,
    handle: Handle,
    /// Sizes in blocks it may have; the last write's is the greatest unless it was cut since.
    sizes: BTreeSet<u64>,
    now: u64,
    blocks: Vec<Versions>,
    /// Verifier under which unstable writes were acknowledged and not yet committed.
    uncommitted: Option<u64>,
}

/// The operation under way.
#[derive(Clone, Debug)]
enum Pending {
    Nothing,
    Create(String),
    Remove(String),
    Rename(String, String),
    Write { name: String, at: u64, versions: Vec<u64> },
    Truncate(String, u64),
}

/// See the module.
pub(crate) struct Worker {
    id: u64,
    random: u64,
    root: Option<Handle>,
    dir: Option<Handle>,
    files: BTreeMap<String, File>,
    pending: Pending,
    next: u64,
    operations: u64,
    unstable: bool,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of one version of one block.
fn content(worker: u64, file: u64, block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let key = mix(worker << 48 ^ file << 20 ^ block).wrapping_add(mix(version));
    let words = (0..BLOCK_U64 / 8).map(|i| mix(key.wrapping_add(i.wrapping_mul(0x9e37_79b9))));
    words.flat_map(u64::to_le_bytes).collect()
}

fn lost<T>(what: String) -> Result<T, Error> {
    Err(Error::Lost(what))
}

impl Worker {
    pub(crate) fn new(id: u64, seed: u64) -> Self {
        Self {
            id,
            random: mix(seed.wrapping_add(id.wrapping_mul(0x9e37_79b9_7f4a_7c15))) | 1,
            root: None,
            dir: None,
            files: BTreeMap::new(),
            pending: Pending::Nothing,
            next: 1,
            operations: 0,
            unstable: true,
        }
    }

    /// Makes every write stable.
    pub(crate) fn stable_only(&mut self) {
        self.unstable = false;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    /// `PATH:BLOCKS` of each file, the path from the export.
    pub(crate) fn names(&self) -> Vec<String> {
        let name =
            |(name, file): (&String, &File)| format!("witness-{}/{name}:{}", self.id, file.now);
        self.files.iter().map(name).collect()
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        mix(self.random) % sides
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What was answered is stable, as after a clean stop of the server.
    pub(crate) fn stable(&mut self) {
        self.files.values_mut().for_each(File::all_stable);
    }

    /// Works until it is halted or the server is gone.
    pub(crate) fn run(
        &mut self,
        target: &Target,
        halt: &AtomicBool,
        lines: &Mutex<Vec<TcpStream>>,
    ) -> Ended {
        let worked = (|| {
            let mut client = Client::open(target)?;
            lines.lock().unwrap_or_else(|e| e.into_inner()).push(client.line()?);
            self.enter(&mut client, target)?;
            while !halt.load(Ordering::Relaxed) {
                self.step(&mut client)?;
                self.operations += 1;
            }
            Ok(())
        })();
        match worked {
            Ok(()) => Ended::Halted,
            Err(Error::Broken(_)) => Ended::Broken,
            Err(error) => Ended::Wrong(error),
        }
    }

    /// The worker's directory; made once, its handle is kept over restarts of the server.
    fn enter(&mut self, client: &mut Client, target: &Target) -> Result<Handle, Error> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let root = match &self.root {
            Some(root) => root.clone(),
            None => self.root.insert(Client::mount(target)?).clone(),
        };
        let name = format!("witness-{}", self.id);
        let dir = match client.lookup(&root, name.as_bytes())? {
            Some(dir) => dir,
            None => client.make_dir(&root, name.as_bytes())?,
        };
        Ok(self.dir.insert(dir).clone())
    }

    fn any_file(&mut self) -> Option<String> {
        let count = self.files.len() as u64;
        let at = usize::try_from(self.roll(count.max(1))).unwrap_or(0);
        self.files.keys().nth(at).cloned()
    }

    fn step(&mut self, client: &mut Client) -> Result<(), Error> {
        let Some(dir) = self.dir.clone() else {
            return Err(Error::Usage("no directory".to_owned()));
        };
        let choice = self.roll(100);
        let file = self.any_file();
        match (choice, file) {
            (_, None) | (80..=87, _) => self.create(client, &dir),
            (0..=29, Some(name)) => self.write(client, &name, FILE_SYNC),
            (30..=39, Some(name)) => self.write(client, &name, DATA_SYNC),
            (40..=57, Some(name)) => {
                let stability = if self.unstable { UNSTABLE } else { FILE_SYNC };
                self.write(client, &name, stability)
            }
            (58..=65, Some(name)) => self.commit(client, &name),
            (66..=79, Some(name)) => self.read_back(client, &name),
            (88..=91, Some(name)) => self.remove(client, &dir, &name),
            (92..=96, Some(name)) => self.rename(client, &dir, &name),
            (_, Some(name)) => self.truncate(client, &name),
        }
    }

    fn create(&mut self, client: &mut Client, dir: &Handle) -> Result<(), Error> {
        if self.files.len() >= FILES_MAX {
            return Ok(());
        }
        let id = self.fresh();
        let name = format!("f{id}");
        self.pending = Pending::Create(name.clone());
        let handle = client.create(dir, name.as_bytes())?;
        self.pending = Pending::Nothing;
        self.files.insert(name, File::new(id, handle));
        Ok(())
    }

    fn remove(&mut self, client: &mut Client, dir: &Handle, name: &str) -> Result<(), Error> {
        self.pending = Pending::Remove(name.to_owned());
        client.remove(dir, name.as_bytes())?;
        self.pending = Pending::Nothing;
        self.files.remove(name);
        Ok(())
    }

    /// To a new name, or over another file.
    fn rename(&mut self, client: &mut Client, dir: &Handle, from: &str) -> Result<(), Error> {
        let over = self.any_file().filter(|_| self.next.is_multiple_of(2));
        let to = over.unwrap_or_else(|| format!("r{}", self.next));
        self.fresh();
        self.pending = Pending::Rename(from.to_owned(), to.clone());
        client.rename(dir, from.as_bytes(), to.as_bytes())?;
        self.pending = Pending::Nothing;
        if let Some(file) = self.files.remove(from) {
            self.files.insert(to, file);
        }
        Ok(())
    }

    fn write(&mut self, client: &mut Client, name: &str, stability: u32) -> Result<(), Error> {
        let at = self.roll(BLOCKS_MAX);
        let count = (1 + self.roll(WRITE_BLOCKS_MAX)).min(BLOCKS_MAX - at);
        let versions: Vec<u64> = (0..count).map(|_| self.fresh()).collect();
        let Some(file) = self.files.get(name) else { return Ok(()) };
        let bytes: Vec<u8> = (at..)
            .zip(&versions)
            .flat_map(|(block, version)| content(self.id, file.id, block, *version))
            .collect();
        let handle = file.handle.clone();
        self.pending = Pending::Write { name: name.to_owned(), at, versions: versions.clone() };
        let written = client.write(&handle, at * BLOCK_U64, &bytes, stability)?;
        self.pending = Pending::Nothing;
        if let Some(file) = self.files.get_mut(name) {
            file.wrote(at, &versions, written.stability != UNSTABLE);
            if written.stability == UNSTABLE {
                file.uncommitted = Some(written.verifier);
            }
        }
        Ok(())
    }

    fn commit(&mut self, client: &mut Client, name: &str) -> Result<(), Error> {
        let Some(file) = self.files.get_mut(name) else { return Ok(()) };
        let verifier = client.commit(&file.handle)?;
        match file.uncommitted {
            Some(expected) if expected != verifier => {
                lost(format!("{name}: the verifier changed while the server ran"))
            }
            _ => {
                file.all_stable();
                Ok(())
            }
        }
    }

    fn truncate(&mut self, client: &mut Client, name: &str) -> Result<(), Error> {
        let size = self.roll(BLOCKS_MAX);
        let Some(file) = self.files.get(name) else { return Ok(()) };
        let handle = file.handle.clone();
        self.pending = Pending::Truncate(name.to_owned(), size);
        client.set_size(&handle, size * BLOCK_U64)?;
        self.pending = Pending::Nothing;
        if let Some(file) = self.files.get_mut(name) {
            file.cut(size);
        }
        Ok(())
    }

    /// While the server runs, a read answers the last write.
    fn read_back(&mut self, client: &mut Client, name: &str) -> Result<(), Error> {
        let block = self.roll(BLOCKS_MAX);
        let Some(file) = self.files.get(name) else { return Ok(()) };
        let got = client.read(&file.handle, block * BLOCK_U64, 4096)?;
        if block >= file.now {
            return if got.is_empty() {
                Ok(())
            } else {
                lost(format!("{name}: data behind the end"))
            };
        }
        let version = file.blocks.get(usize::try_from(block).unwrap_or(0)).map(Versions::last);
        if got != content(self.id, file.id, block, version.unwrap_or(0)) {
            return lost(format!("{name} block {block}: a read differs from the last write"));
        }
        Ok(())
    }

    /// Checks that all that was acknowledged is there; returns files and bytes checked.
    pub(crate) fn verify(&mut self, target: &Target) -> Result<(u64, u64), Error> {
        let mut client = Client::open(target)?;
        let dir = self.enter(&mut client, target)?;
        let mut listed = BTreeSet::new();
        for name in client.list(&dir)? {
            let name = String::from_utf8_lossy(&name).into_owned();
            if !listed.insert(name.clone()) {
                return lost(format!("worker {}: {name} is listed twice", self.id));
            }
        }
        self.settle(&mut client, &dir, &listed)?;
        let expected: BTreeSet<String> = self.files.keys().cloned().collect();
        if listed != expected {
            let gone: Vec<&String> = expected.difference(&listed).collect();
            let back: Vec<&String> = listed.difference(&expected).collect();
            return lost(format!("worker {}: gone {gone:?}, unexpected {back:?}", self.id));
        }
        let mut bytes = 0;
        let id = self.id;
        for (name, file) in &mut self.files {
            match client.lookup(&dir, name.as_bytes())? {
                Some(handle) if handle == file.handle => {}
                other => return lost(format!("{name}: handle {:?} is {other:?}", file.handle)),
            }
            bytes += file.check(&mut client, id, name)?;
        }
        Ok((self.files.len() as u64, bytes))
    }

    /// Finds out what became of the operation that was under way.
    fn settle(
        &mut self,
        client: &mut Client,
        dir: &Handle,
        listed: &BTreeSet<String>,
    ) -> Result<(), Error> {
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => {}
            Pending::Create(name) => {
                if let Some(handle) = client.lookup(dir, name.as_bytes())? {
                    let id = self.fresh();
                    self.files.insert(name, File::new(id, handle));
                }
            }
            Pending::Remove(name) => {
                if !listed.contains(&name) {
                    self.files.remove(&name);
                }
            }
            Pending::Rename(from, to) => {
                if from != to
                    && !listed.contains(&from)
                    && let Some(file) = self.files.remove(&from)
                {
                    self.files.insert(to, file);
                }
            }
            Pending::Write { name, at, versions } => {
                if let Some(file) = self.files.get_mut(&name) {
                    file.wrote(at, &versions, false);
                }
            }
            Pending::Truncate(name, size) => {
                if let Some(file) = self.files.get_mut(&name)
                    && client.size(&file.handle)? == size * BLOCK_U64
                {
                    file.cut(size);
                }
            }
        }
        Ok(())
    }
}

impl Versions {
    fn last(&self) -> u64 {
        self.maybe.last().copied().unwrap_or(self.stable)
    }
    fn settle(&mut self, version: u64) {
        *self = Self { stable: version, maybe: Vec::new() };
    }
}

impl File {
    fn new(id: u64, handle: Handle) -> Self {
        let sizes = BTreeSet::from([0]);
        Self { id, handle, sizes, now: 0, blocks: Vec::new(), uncommitted: None }
    }

    fn wrote(&mut self, at: u64, versions: &[u64], stable: bool) {
        for (block, version) in (at..).zip(versions) {
            let index = usize::try_from(block).unwrap_or(0);
            if self.blocks.len() <= index {
                self.blocks.resize(index + 1, Versions::default());
            }
            let slot = &mut self.blocks[index];
            if stable {
                slot.settle(*version);
            } else {
                slot.maybe.push(*version);
            }
        }
        let end = at + versions.len() as u64;
        let grown = |end: u64| self.sizes.iter().map(move |size| end.max(*size));
        if stable {
            self.sizes = grown(end).collect();
        } else {
            // Any of its blocks may be there: a COMMIT that was not answered makes some stable.
            let any: BTreeSet<u64> = (at + 1..=end).flat_map(grown).collect();
            self.sizes.extend(any);
        }
        self.now = self.now.max(end);
    }

    fn all_stable(&mut self) {
        for block in &mut self.blocks {
            block.settle(block.last());
        }
        self.sizes = BTreeSet::from([self.now]);
        self.uncommitted = None;
    }

    fn cut(&mut self, size: u64) {
        self.blocks.truncate(usize::try_from(size).unwrap_or(0));
        self.sizes = BTreeSet::from([size]);
        self.now = size;
    }

    /// Compares the whole file, and takes what is there as what is stable: after a crash it is,
    /// and while the server runs a COMMIT makes it so first.
    fn check(&mut self, client: &mut Client, worker: u64, name: &str) -> Result<u64, Error> {
        // The same verifier: no unstable write may be lost. Another one: each may be.
        if let Some(verifier) = self.uncommitted.take()
            && client.commit(&self.handle)? == verifier
        {
            self.all_stable();
        }
        let bytes = client.size(&self.handle)?;
        let size = bytes / BLOCK_U64;
        if !bytes.is_multiple_of(BLOCK_U64) || !self.sizes.contains(&size) {
            return lost(format!("{name}: size {bytes}, blocks should be {:?}", self.sizes));
        }
        self.blocks.resize(usize::try_from(size).unwrap_or(0), Versions::default());
        let mut at = 0;
        while at < size {
            let count = (size - at).min(WRITE_BLOCKS_MAX);
            let want = u32::try_from(count * BLOCK_U64).unwrap_or(0);
            let data = client.read(&self.handle, at * BLOCK_U64, want)?;
            if data.len() as u64 != u64::from(want) {
                return lost(format!("{name}: {} of {want} bytes at block {at}", data.len()));
            }
            for (block, got) in (at..).zip(data.chunks_exact(BLOCK)) {
                let slot = &mut self.blocks[usize::try_from(block).unwrap_or(0)];
                let is = |version: &&u64| content(worker, self.id, block, **version) == got;
                let found = slot.maybe.iter().rev().chain([&slot.stable]).find(is).copied();
                let Some(version) = found else {
                    let head: Vec<u8> = got.iter().take(16).copied().collect();
                    return lost(format!(
                        "{name} block {block} of worker {worker}: {slot:?}, but {head:?}..."
                    ));
                };
                slot.settle(version);
            }
            at += count;
        }
        self.sizes = BTreeSet::from([size]);
        self.now = size;
        Ok(bytes)
    }
}
