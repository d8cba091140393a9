//! The walk over one volume: inodes, names, and the maps of the volume.
//!
//! Layer: inside the check.

use core::ops::ControlFlow;

use cairn_sys::Block;
use cairn_units::{Blocks, Cookie, Fbn, Fsid, Generation, InodeNo};
use cairn_wafl_dir::{
    Checker, Dir, DirError, DirFault, DirId, DirKeys, DirRead, EntryKind, Found,
    Progress as DirProgress,
};
use cairn_wafl_format::{
    BITS_PER_BLOCK, BlockPtr, CONTAINER_ENTRIES_PER_BLOCK, INODE_BYTES, INODES_PER_BLOCK, Inode,
    InodeKind, InodeShare, VolumeRecord, VolumeSums,
};

use super::bits::Bits;
use super::findings::Dangling;
use super::reader::FileReader;
use super::walk::{Unread, Walk, bit};
use super::{Finding, INODES_PER_PASS, Owner, VolumeCount};
use crate::cp::container_entry;
use crate::sums;
use crate::volume::{FIRST_INO, ROOT_INO};

/// VVBNs of one volume that are named, and the container map to compare them with.
pub(super) struct Names {
    vvbns: Bits,
    container: Option<FileReader>,
}

impl Names {
    /// For files outside any volume.
    pub fn none() -> Self {
        Self { vvbns: Bits::default(), container: None }
    }
    fn new(record: &VolumeRecord) -> Self {
        // Where blocks were moved, the map is the authority and pointers are hints.
        let container = (record.relocations == 0).then(|| FileReader::new(&record.container_map));
        Self { vvbns: Bits::default(), container }
    }
}

/// What is known of an inode while its names are counted.
#[derive(Clone, Copy, Default)]
struct Known {
    live: bool,
    directory: bool,
    generation: u32,
    said: u32,
    counted: u32,
    parent: u64,
}

/// The inodes of one pass.
struct Pass {
    first: u64,
    known: Vec<Known>,
}

impl Pass {
    fn of(&mut self, ino: InodeNo) -> Option<&mut Known> {
        let at = ino.get().checked_sub(self.first)?;
        self.known.get_mut(usize::try_from(at).ok()?)
    }
}

/// What the walk counts in a volume.
#[derive(Default)]
struct Counted {
    sums: VolumeSums,
    zombies: bool,
    /// Inodes that say another number of blocks: wrong only when no zombie is left.
    blocks: Vec<Finding>,
}

fn dir_id(inode: &Inode) -> DirId {
    DirId { inode: inode.ino, generation: inode.generation }
}

fn dangling(fsid: Fsid, dir: &Inode, found: Found, name: Vec<u8>) -> Finding {
    Finding::Dangling(Dangling {
        fsid,
        dir: dir.ino,
        generation: dir.generation,
        cookie: found.cookie,
        name,
        child: found.inode,
        child_generation: found.generation,
        kind: found.kind.get(),
    })
}

fn is_live_dir(inode: &Inode) -> bool {
    inode.kind == InodeKind::Directory && !inode.is_zombie()
}

/// The inodes in a block of the inode file that are in use; text for those that cannot be read.
fn inodes_in(index: u64, block: &Block) -> Vec<Result<Inode, String>> {
    let mut out = Vec::new();
    for slot in 0..INODES_PER_BLOCK {
        let ino = InodeNo::new(index * INODES_PER_BLOCK + slot);
        let at = usize::try_from(slot).unwrap_or_default() * INODE_BYTES;
        match Inode::decode(&block[at..at + INODE_BYTES]) {
            Ok(inode) if inode.kind == InodeKind::Free => {}
            Ok(inode) if inode.ino != ino => {
                out.push(Err(format!("inode {ino} says {}", inode.ino)))
            }
            Ok(inode) => out.push(Ok(inode)),
            Err(error) => out.push(Err(format!("inode {ino}: {error}"))),
        }
    }
    out
}

impl Walk<'_> {
    pub(super) async fn volume(&mut self, record: &VolumeRecord) {
        self.out.volumes += 1;
        let fsid = Some(record.fsid);
        let mut names = Names::new(record);
        for (owner, inode) in [
            (Owner::InodeFile, &record.inode_file),
            (Owner::InodeMap, &record.inode_map),
            (Owner::ActiveMap, &record.active_map),
        ] {
            self.tree(fsid, owner, inode, &mut names).await;
        }
        self.tree(fsid, Owner::ContainerMap, &record.container_map, &mut Names::none()).await;
        let mut counted = Counted::default();
        let end = record.inode_end.max(FIRST_INO);
        for first in (0..end).step_by(usize::try_from(INODES_PER_PASS).unwrap_or(usize::MAX)) {
            let count = INODES_PER_PASS.min(end - first).next_multiple_of(INODES_PER_BLOCK);
            let known = vec![Known::default(); usize::try_from(count).unwrap_or(0)];
            let mut pass = Pass { first, known };
            self.inodes(record, &mut pass, &mut names, &mut counted).await;
            self.names(record, &mut pass, first == 0, &mut counted).await;
            self.links(record.fsid, &pass);
            if self.stopped() {
                return;
            }
        }
        self.totals(record, &mut counted);
        self.vvbns(record, &names).await;
    }

    pub(super) async fn name_vvbn(
        &mut self,
        fsid: Fsid,
        what: Owner,
        ptr: BlockPtr,
        names: &mut Names,
    ) {
        let vvbn = ptr.vvbn;
        if !names.vvbns.add(vvbn.get()) {
            self.out.add(Finding::VvbnNamedTwice { fsid, what, vvbn });
        }
        let Some(container) = &mut names.container else { return };
        let index = vvbn.get() / CONTAINER_ENTRIES_PER_BLOCK;
        let block = self.content(Some(fsid), Owner::ContainerMap, container, index).await;
        let said = match block {
            Ok(Some(block)) => container_entry(&block, vvbn.get()),
            Ok(None) => cairn_units::Pvbn::new(0),
            Err(Unread) => return,
        };
        if said != ptr.pvbn {
            let BlockPtr { pvbn, crc, .. } = ptr;
            self.out.add(Finding::Container { fsid, vvbn, pvbn, said, crc });
        }
    }

    /// Reads the inodes of a pass, names their blocks and compares the inode map.
    async fn inodes(
        &mut self,
        record: &VolumeRecord,
        pass: &mut Pass,
        names: &mut Names,
        counted: &mut Counted,
    ) {
        let fsid = Some(record.fsid);
        let mut file = FileReader::new(&record.inode_file);
        let mut map = FileReader::new(&record.inode_map);
        let last = pass.first + pass.known.len() as u64;
        for index in pass.first / INODES_PER_BLOCK..last.div_ceil(INODES_PER_BLOCK) {
            let mut used = 0u64;
            if let Ok(Some(block)) = self.content(fsid, Owner::InodeFile, &mut file, index).await {
                for inode in inodes_in(index, &block) {
                    let inode = match inode {
                        Ok(inode) => inode,
                        Err(what) => {
                            self.whole = false;
                            self.out.add(Finding::Structure { fsid, what });
                            continue;
                        }
                    };
                    used |= 1 << (inode.ino.get() % INODES_PER_BLOCK);
                    self.inode(record, &inode, pass, names, counted).await;
                }
            }
            let at = index * INODES_PER_BLOCK;
            let bits = self.content(fsid, Owner::InodeMap, &mut map, at / BITS_PER_BLOCK).await;
            let Ok(bits) = bits else { continue };
            for n in at..at + INODES_PER_BLOCK {
                let marked = bits.as_ref().is_some_and(|b| bit(b, n % BITS_PER_BLOCK));
                let used = used & (1 << (n - at)) != 0 || n < FIRST_INO;
                if marked != used && n < record.inode_end.max(FIRST_INO) {
                    let (fsid, ino) = (record.fsid, InodeNo::new(n));
                    self.out.add(Finding::InodeMark { fsid, ino, marked });
                }
            }
            if self.stopped() {
                return;
            }
        }
    }

    async fn inode(
        &mut self,
        record: &VolumeRecord,
        inode: &Inode,
        pass: &mut Pass,
        names: &mut Names,
        counted: &mut Counted,
    ) {
        self.out.inodes += 1;
        let (fsid, ino, generation) = (record.fsid, inode.ino, inode.generation);
        let share = InodeShare::of(&inode.encode());
        sums::replace(&mut counted.sums, InodeShare::default(), share);
        counted.zombies |= inode.is_zombie();
        if let Some(known) = pass.of(ino) {
            *known = Known {
                live: share.live,
                directory: share.directory,
                generation: generation.get(),
                said: inode.links,
                counted: 0,
                parent: inode.parent.get(),
            };
        }
        let found = self.tree(Some(fsid), Owner::File(ino), inode, names).await;
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        if found != inode.blocks && counted.blocks.len() < super::FINDINGS_MAX {
            let said = inode.blocks;
            counted.blocks.push(Finding::Blocks { fsid, ino, generation, said, counted: found });
        }
        if is_live_dir(inode) {
            self.directory(record, inode).await;
        }
    }

    /// Checks the structure of a directory.
    async fn directory(&mut self, record: &VolumeRecord, inode: &Inode) {
        let fsid = record.fsid;
        let mut file = FileReader::new(inode);
        let blocks = Blocks::for_bytes(inode.size);
        let mut checker = Checker::new(dir_id(inode), DirKeys::new(record.hash_key), blocks);
        loop {
            match checker.step(&View(&file)) {
                Ok(DirProgress::Done) => break,
                Ok(DirProgress::More) => {}
                Err(at) => {
                    let owner = Owner::File(inode.ino);
                    let got = self.content(Some(fsid), owner, &mut file, at.get()).await;
                    if got.is_err() {
                        let (dir, generation) = (inode.ino, inode.generation);
                        let what = cairn_wafl_dir::Finding::Lost { fbn: at };
                        self.out.add(Finding::Directory { fsid, dir, generation, what });
                        return;
                    }
                }
            }
        }
        for what in checker.findings() {
            let (dir, generation) = (inode.ino, inode.generation);
            self.out.add(Finding::Directory { fsid, dir, generation, what: *what });
        }
    }

    /// Counts the names of the inodes of a pass, in all directories. The first pass also counts
    /// the entries.
    async fn names(
        &mut self,
        record: &VolumeRecord,
        pass: &mut Pass,
        first: bool,
        counted: &mut Counted,
    ) {
        let fsid = Some(record.fsid);
        if let Some(root) = pass.of(ROOT_INO) {
            root.counted += 2;
        }
        let mut file = FileReader::new(&record.inode_file);
        for index in 0..record.inode_end.div_ceil(INODES_PER_BLOCK) {
            // What cannot be read was noted when the inodes were read.
            let Ok(Some(block)) = file.get(self.aggr, index).await else { continue };
            for inode in inodes_in(index, &block).into_iter().flatten().filter(is_live_dir) {
                let entries = self.entries(record, &inode, pass, fsid).await;
                if first {
                    counted.sums.names += entries;
                }
            }
            if self.stopped() {
                return;
            }
        }
    }

    async fn entries(
        &mut self,
        record: &VolumeRecord,
        inode: &Inode,
        pass: &mut Pass,
        fsid: Option<Fsid>,
    ) -> i64 {
        let mut file = FileReader::new(inode);
        let (mut after, mut count) = (Cookie::new(0), 0);
        loop {
            let mut batch: Vec<(Found, Vec<u8>)> = Vec::new();
            let view = View(&file);
            let dir = Dir::new(&view, dir_id(inode), DirKeys::new(record.hash_key));
            let end = dir.list(after, |entry| {
                after = entry.found.cookie;
                // Only what is wrong needs its name.
                batch.push((entry.found, entry.name.to_vec()));
                ControlFlow::Continue(())
            });
            count += i64::try_from(batch.len()).unwrap_or(i64::MAX);
            for (found, name) in batch {
                self.entry(record, inode, found, name, pass);
            }
            match DirFault::split(end) {
                Ok(Ok(_)) => return count,
                Ok(Err(DirError::Damaged { .. })) => {
                    // The structure check has said so; what lies behind it counts as lost.
                    self.whole = false;
                    return count;
                }
                Ok(Err(_)) => return count,
                Err(at) => {
                    let owner = Owner::File(inode.ino);
                    if self.content(fsid, owner, &mut file, at.get()).await.is_err() {
                        return count;
                    }
                }
            }
        }
    }

    fn entry(
        &mut self,
        record: &VolumeRecord,
        dir: &Inode,
        found: Found,
        name: Vec<u8>,
        pass: &mut Pass,
    ) {
        let child = found.inode;
        let is_dir = found.kind == EntryKind::new(InodeKind::Directory as u8);
        let beyond = child.get() == 0 || child.get() >= record.inode_end;
        if let Some(known) = pass.of(child).filter(|_| !beyond).map(|known| *known) {
            let there = known.live && known.generation == found.generation.get();
            if !there || known.directory != is_dir {
                return self.out.add(dangling(record.fsid, dir, found, name));
            }
            if is_dir && known.parent != dir.ino.get() {
                self.out.add(Finding::Parent {
                    fsid: record.fsid,
                    ino: child,
                    generation: found.generation,
                    said: InodeNo::new(known.parent),
                    counted: dir.ino,
                });
            }
            if let Some(known) = pass.of(child) {
                known.counted += if is_dir { 2 } else { 1 };
            }
        } else if beyond {
            if pass.first == 0 {
                self.out.add(dangling(record.fsid, dir, found, name));
            }
            return;
        }
        // A child of another pass is judged there.
        if is_dir && let Some(parent) = pass.of(dir.ino) {
            parent.counted += 1;
        }
    }

    fn links(&mut self, fsid: Fsid, pass: &Pass) {
        for (ino, known) in (pass.first..).map(InodeNo::new).zip(&pass.known) {
            if !known.live {
                continue;
            }
            let (generation, counted) = (Generation::new(known.generation), known.counted);
            let nameless = counted == 0 || (known.directory && counted < 2);
            if nameless {
                self.out.add(Finding::Orphan { fsid, ino, generation });
            }
            let said = known.said;
            if said != counted {
                self.out.add(Finding::Links { fsid, ino, generation, said, counted });
            }
        }
    }

    fn totals(&mut self, record: &VolumeRecord, counted: &mut Counted) {
        let fsid = record.fsid;
        // While a cut-off tail is being freed, the counts of its file are an estimate.
        if !counted.zombies {
            for finding in core::mem::take(&mut counted.blocks) {
                self.out.add(finding);
            }
        }
        let sums = &mut counted.sums;
        sums.residue = if counted.zombies { record.sums.residue } else { 0 };
        let files = u64::try_from(sums.dirs + sums.files).unwrap_or(0);
        if files != record.files {
            let (said, counted) = (record.files, files);
            self.out.add(Finding::Count { fsid, what: VolumeCount::Files, said, counted });
        }
        if *sums != record.sums {
            self.out.add(Finding::Sums { fsid, said: record.sums, counted: *sums });
        }
    }

    async fn vvbns(&mut self, record: &VolumeRecord, names: &Names) {
        let fsid = record.fsid;
        let mut map = FileReader::new(&record.active_map);
        let mut marked = 0;
        for index in 0..record.vvbn_end.div_ceil(BITS_PER_BLOCK) {
            let Ok(block) = self.content(Some(fsid), Owner::ActiveMap, &mut map, index).await
            else {
                return;
            };
            marked += block.as_ref().map_or(0, crate::space::ones);
            for (n, marked) in names.vvbns.differences(index, block.as_ref()) {
                let vvbn = cairn_units::Vvbn::new(n);
                self.out.add(Finding::VolumeMark { fsid, vvbn, marked });
            }
        }
        if marked != record.used_blocks {
            let (said, counted) = (record.used_blocks, marked);
            self.out.add(Finding::Count { fsid, what: VolumeCount::UsedBlocks, said, counted });
        }
    }
}

struct View<'f>(&'f FileReader);

impl DirRead for View<'_> {
    type Miss = Fbn;
    fn block(&self, at: Fbn) -> Result<Block, Fbn> {
        let kept = self.0.kept(at.get()).ok_or(at)?;
        Ok(kept.unwrap_or_else(Block::zero))
    }
}
