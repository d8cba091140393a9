//! What a read may return: versions of every cell of a file, and of its size.
//!
//! Layer: pure. A cell is 512 bytes; its bytes are computed from file, cell and version, so that
//! bytes of another place or time are told apart. A version is *certain* for a machine when that
//! machine acknowledged it: it must be seen until a newer one is. What is stable must be seen by
//! every later machine; what is not may be gone with its machine.
//!
//! ```text
//! write UNSTABLE ─▶ later (certain for its machine) ─ COMMIT, same machine ─▶ base
//! write FILE_SYNC, COMMITted, or seen by a later machine ─▶ base
//! ```

use cairn_sim::Rng;
use cairn_units::BLOCK_BYTES_U64;

use crate::rpc::Violation;

/// Bytes of a cell.
pub(crate) const CELL: usize = 512;
/// [`CELL`] for offsets.
pub(crate) const CELL_U64: u64 = 512;
/// Cells of a block of the file system.
const BLOCK_CELLS: u64 = BLOCK_BYTES_U64 / CELL_U64;

/// Identity of a version of a cell; 0 is a hole.
pub(crate) type Version = u32;

/// The bytes of a cell.
pub(crate) fn content(file: u64, cell: u64, version: Version) -> Vec<u8> {
    if version == 0 {
        return vec![0; CELL];
    }
    let mut rng = Rng::new(file << 40 ^ cell << 20 ^ u64::from(version));
    let mut out = Vec::with_capacity(CELL);
    out.extend_from_slice(b"cell");
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&file.to_le_bytes());
    out.extend_from_slice(&cell.to_le_bytes());
    while out.len() < CELL {
        out.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    out
}

/// The version that a cell holds; an error when its bytes are those of no version of it.
pub(crate) fn version_of(file: u64, cell: u64, bytes: &[u8]) -> Result<Version, Violation> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let word = bytes.get(4..8).and_then(|b| b.first_chunk::<4>());
    let version = word.map_or(0, |b| u32::from_le_bytes(*b));
    if content(file, cell, version) == bytes {
        return Ok(version);
    }
    let head: Vec<u8> = bytes.iter().take(24).copied().collect();
    Err(Violation(format!("file {file} cell {cell}: wrong bytes, beginning {head:?}")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Later<T> {
    value: T,
    incarnation: u64,
    certain: bool,
}

/// One cell of a file that one client writes.
#[derive(Clone, Debug, Default)]
struct Cell {
    base: Version,
    later: Vec<Later<Version>>,
}

impl Cell {
    /// Whether `seen` may be read from machine `incarnation`; then that is what is there.
    fn observe(&mut self, seen: Version, incarnation: u64) -> bool {
        let from = self.later.iter().rposition(|l| l.certain && l.incarnation == incarnation);
        let candidates = &self.later[from.unwrap_or(0)..];
        if let Some(at) = candidates.iter().rposition(|l| l.value == seen) {
            let found = candidates[at];
            if found.incarnation == incarnation {
                if let Some(l) = self.later.iter_mut().rfind(|l| l.value == seen) {
                    l.certain = true;
                }
            } else {
                *self = Self { base: seen, later: Vec::new() };
            }
            return true;
        }
        if from.is_none() && self.base == seen {
            self.later.clear();
            return true;
        }
        false
    }
}

/// A file that one client writes, as far as data and size go.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) id: u64,
    cells: Vec<Cell>,
    size: u64,
    sizes: Vec<Later<u64>>,
    next: Version,
}

impl Data {
    pub(crate) fn new(id: u64) -> Self {
        Self { id, cells: Vec::new(), size: 0, sizes: Vec::new(), next: 0 }
    }

    /// A version that was never written.
    pub(crate) fn fresh(&mut self) -> Version {
        self.next += 1;
        self.next
    }

    fn cell(&mut self, at: u64) -> &mut Cell {
        let index = usize::try_from(at).unwrap_or(0);
        if self.cells.len() <= index {
            self.cells.resize(index + 1, Cell::default());
        }
        &mut self.cells[index]
    }

    /// A write was acknowledged as stable.
    pub(crate) fn wrote_stable(&mut self, at: u64, cells: u64, version: Version) {
        for cell in at..at + cells {
            *self.cell(cell) = Cell { base: version, later: Vec::new() };
        }
        let end = at + cells;
        self.size = self.size.max(end);
        self.sizes.retain(|l| l.value > end);
    }

    /// A write was acknowledged as unstable (`certain`), or may have happened.
    pub(crate) fn wrote(
        &mut self,
        at: u64,
        cells: u64,
        version: Version,
        (incarnation, certain): (u64, bool),
    ) {
        for cell in at..at + cells {
            self.cell(cell).later.push(Later { value: version, incarnation, certain });
        }
        if at + cells > self.size {
            self.sizes.push(Later { value: at + cells, incarnation, certain });
        }
    }

    /// A COMMIT of machine `incarnation` was acknowledged.
    pub(crate) fn committed(&mut self, incarnation: u64) {
        for cell in &mut self.cells {
            let is = |l: &Later<Version>| l.certain && l.incarnation == incarnation;
            if let Some(at) = cell.later.iter().rposition(is) {
                cell.base = cell.later[at].value;
                cell.later.drain(..=at);
            }
        }
        let sure = self.sure_size(incarnation);
        self.size = self.size.max(sure);
        self.sizes.retain(|l| l.value > sure);
    }

    /// The size was set, stably.
    pub(crate) fn cut(&mut self, size: u64) {
        self.cells.truncate(usize::try_from(size).unwrap_or(0));
        self.size = size;
        self.sizes.clear();
    }

    fn sure_size(&self, incarnation: u64) -> u64 {
        let sure = self.sizes.iter().filter(|l| l.certain && l.incarnation == incarnation);
        sure.map(|l| l.value).max().unwrap_or(0).max(self.size)
    }

    /// Whether a COMMIT of an earlier machine that was cut may have left so many cells: it makes
    /// block by block stable, from the first on, as far as the file reaches.
    fn cut_commit_ends_at(&self, seen: u64, incarnation: u64) -> bool {
        let larger = self.sizes.iter().any(|l| l.value > seen && l.incarnation != incarnation);
        let last = usize::try_from(seen.saturating_sub(BLOCK_CELLS)).unwrap_or(0);
        let block = self.cells.iter().skip(last).take(usize::try_from(BLOCK_CELLS).unwrap_or(1));
        larger
            && seen.is_multiple_of(BLOCK_CELLS)
            && block.into_iter().any(|cell| cell.later.iter().any(|l| l.incarnation != incarnation))
    }

    /// The machine says that the file has `size` bytes.
    pub(crate) fn observe_size(&mut self, bytes: u64, incarnation: u64) -> Result<(), Violation> {
        let sure = self.sure_size(incarnation);
        let seen = bytes / CELL_U64;
        let grew = self.sizes.iter().any(|l| l.value == seen)
            || self.cut_commit_ends_at(seen, incarnation);
        let may = seen == sure || (seen > sure && grew);
        if !bytes.is_multiple_of(CELL_U64) || !may {
            return Err(Violation(format!(
                "file {}: {bytes} bytes, but it has {sure} cells, or {:?} (machine {incarnation})",
                self.id, self.sizes
            )));
        }
        let mine = self.sizes.iter().any(|l| l.value == seen && l.incarnation == incarnation);
        if mine {
            for l in self.sizes.iter_mut().filter(|l| l.value == seen) {
                l.certain |= l.incarnation == incarnation;
            }
        } else {
            // What this machine found is what is stable.
            self.size = seen;
            self.sizes.retain(|l| l.incarnation == incarnation && l.value > seen);
        }
        if !mine && seen == sure {
            self.sizes.retain(|l| l.incarnation == incarnation);
        }
        Ok(())
    }

    /// The bytes from cell `at` on were read from machine `incarnation`.
    pub(crate) fn observe(
        &mut self,
        at: u64,
        bytes: &[u8],
        incarnation: u64,
    ) -> Result<(), Violation> {
        for (cell, bytes) in (at..).zip(bytes.chunks(CELL)) {
            let seen = version_of(self.id, cell, bytes)?;
            let id = self.id;
            let slot = self.cell(cell);
            let before = slot.clone();
            if !slot.observe(seen, incarnation) {
                return Err(Violation(format!(
                    "file {id} cell {cell}: version {seen} was read from machine {incarnation}, \
                     but the cell is {before:?}"
                )));
            }
        }
        Ok(())
    }
}

/// A write to a shared file.
#[derive(Clone, Copy, Debug)]
struct SharedWrite {
    version: Version,
    begun: u64,
    /// `u64::MAX` while nobody knows.
    ended: u64,
    incarnation: u64,
    stable: bool,
}

/// A file that all clients write, a cell at a time or several.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) id: u64,
    cells: Vec<Vec<SharedWrite>>,
    next: Version,
}

impl Shared {
    pub(crate) fn new(id: u64, cells: u64) -> Self {
        Self { id, cells: vec![Vec::new(); usize::try_from(cells).unwrap_or(0)], next: 0 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.cells.len() as u64
    }

    fn writes(&mut self, at: u64, cells: u64) -> impl Iterator<Item = &mut Vec<SharedWrite>> {
        let from = usize::try_from(at).unwrap_or(0);
        let count = usize::try_from(cells).unwrap_or(0);
        self.cells.iter_mut().skip(from).take(count)
    }

    /// A write of these cells begins; its version.
    pub(crate) fn begin(&mut self, at: u64, cells: u64, now: u64) -> Version {
        self.next += 1;
        let version = self.next;
        let write =
            SharedWrite { version, begun: now, ended: u64::MAX, incarnation: 0, stable: false };
        self.writes(at, cells).for_each(|w| w.push(write));
        version
    }

    /// The write was acknowledged.
    pub(crate) fn end(
        &mut self,
        (at, cells): (u64, u64),
        version: Version,
        now: u64,
        (incarnation, stable): (u64, bool),
    ) {
        for cell in self.writes(at, cells) {
            for write in cell.iter_mut().filter(|w| w.version == version) {
                (write.ended, write.incarnation, write.stable) = (now, incarnation, stable);
            }
        }
    }

    /// A COMMIT that began at `begun` was acknowledged by machine `incarnation`.
    pub(crate) fn committed(&mut self, begun: u64, incarnation: u64) {
        for write in self.cells.iter_mut().flatten() {
            write.stable |= write.incarnation == incarnation && write.ended <= begun;
        }
    }

    /// The bytes were read from machine `incarnation` between the two times.
    pub(crate) fn observe(
        &self,
        at: u64,
        bytes: &[u8],
        (begun, ended): (u64, u64),
        incarnation: u64,
    ) -> Result<(), Violation> {
        for (cell, bytes) in (at..).zip(bytes.chunks(CELL)) {
            let seen = version_of(self.id, cell, bytes)?;
            let index = usize::try_from(cell).unwrap_or(0);
            let none = Vec::new();
            let writes = self.cells.get(index).unwrap_or(&none);
            let zero = SharedWrite { version: 0, begun: 0, ended: 0, incarnation: 0, stable: true };
            let written = writes.iter().find(|w| w.version == seen);
            let Some(found) = written.or((seen == 0).then_some(&zero)) else {
                return Err(Violation(format!("shared cell {cell}: version {seen} of nowhere")));
            };
            let sure = |w: &&SharedWrite| w.stable || w.incarnation == incarnation;
            let newer = writes
                .iter()
                .filter(sure)
                .find(|w| w.begun > found.ended && w.ended < begun && w.version != seen);
            if found.begun > ended || newer.is_some() {
                return Err(Violation(format!(
                    "shared file {} cell {cell}: {found:?} was read between {begun} and {ended} \
                     from machine {incarnation}, but there was {newer:?}",
                    self.id
                )));
            }
        }
        Ok(())
    }
}
