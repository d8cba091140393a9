//! The blocks of stripes in memory: reading them verified, finding lost ones from parity.
//!
//! Layer: over core and stamps; below write, repair, rebuild, scrub, recovery. Invariant: a cell
//! is `Good` only when its stamp vouches for it, so parity is never computed from a block that
//! has not been verified. The caller holds the stripe locks.

use cairn_sys::lock::atomic::Ordering;
use std::sync::Arc;

use cairn_raid_parity::is_zero;
use cairn_sys::{Block, BoxFuture, mutant};
use cairn_units::DiskUuid;

use crate::code::TooMany;
use crate::core::{Core, Staged, Want, Writes, count};
use crate::member::{CHECKSUM_ERRORS_MAX, Member};
use crate::ondisk::{REGION_STRIPES, StampV1, crc_of};
use crate::stamps::{StampKind, StampsRef, stamp_parity, stamp_rebuilt};
use crate::tools::join_all;
use crate::view::GroupView;

/// One block of a stripe, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Not asked for yet.
    Unread,
    /// Read and verified by its stamp.
    Good(Block),
    /// What a stamp says that may be an old one: believed when parity cannot do without it, or
    /// agrees.
    Doubt(Block),
    /// No disk, no answer, or not what the stamp says.
    Lost,
}

impl Cell {
    pub(crate) fn good(&self) -> Option<&Block> {
        match self {
            Self::Good(block) => Some(block),
            _ => None,
        }
    }
}

/// Stamps of one region of one disk.
struct Loaded {
    member: Arc<Member>,
    entry: StampsRef,
}

/// Slot and region, whether it is the twin's beside those of the slot's disk, and the stamps.
type Placed = ((usize, u64), bool, Loaded);

/// Copies of a checksum block that are written together, at the most.
const STAMP_COPIES: usize = 2;

/// Stamps by slot and region; few regions, so that finding one is looking at each.
#[derive(Default)]
struct Table {
    regions: Vec<u64>,
    /// One after the other the slots of each region.
    slots: usize,
    places: Vec<Option<Loaded>>,
}

impl Table {
    fn new(regions: &[u64], slots: usize) -> Self {
        let places = core::iter::repeat_with(|| None).take(regions.len() * slots).collect();
        Self { regions: regions.to_vec(), slots, places }
    }
    fn place(&self, slot: usize, region: u64) -> Option<usize> {
        let at = self.regions.iter().position(|r| *r == region)?;
        (slot < self.slots).then_some(at * self.slots + slot)
    }
    fn get(&self, slot: usize, region: u64) -> Option<&Loaded> {
        self.places[self.place(slot, region)?].as_ref()
    }
    fn put(&mut self, slot: usize, region: u64, loaded: Option<Loaded>) {
        let at = self.place(slot, region);
        let Some(at) = at else { panic!("slot {slot}, region {region}: was not asked for") };
        self.places[at] = loaded;
    }
    fn take(&mut self, slot: usize, region: u64) -> Option<Loaded> {
        self.place(slot, region).and_then(|at| self.places[at].take())
    }
    fn iter(&self) -> impl Iterator<Item = (usize, u64, &Loaded)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(at, l)| {
            Some((at % self.slots, self.regions[at / self.slots], l.as_ref()?))
        })
    }
}

/// Stamps of some stripes of a group, by slot and region. A slot whose disk is gone or does not
/// answer has none.
#[derive(Default)]
pub(crate) struct StampSet {
    /// Of the slot's disk; of its twin when that is all there is.
    refs: Table,
    /// Of the slot's twin beside it.
    twins: Table,
}

impl StampSet {
    pub(crate) fn get(&self, slot: usize, stripe: u64) -> Option<StampV1> {
        Some(self.entry(slot, stripe)?.lock().get(stripe))
    }
    pub(crate) fn entry(&self, slot: usize, stripe: u64) -> Option<&StampsRef> {
        self.of_region(slot, stripe / REGION_STRIPES)
    }
    pub(crate) fn of_region(&self, slot: usize, region: u64) -> Option<&StampsRef> {
        self.refs.get(slot, region).map(|l| &l.entry)
    }
    /// The stamps of the slot's twin, beside those of its disk.
    pub(crate) fn twin(&self, slot: usize, stripe: u64) -> Option<&StampsRef> {
        self.twins.get(slot, stripe / REGION_STRIPES).map(|l| &l.entry)
    }
    /// Copies of checksum blocks that are lost: slot, region, disk, copy.
    pub(crate) fn lost_copies(&self) -> Vec<(usize, u64, Arc<Member>, u8)> {
        let all = self.refs.iter().chain(self.twins.iter());
        all.flat_map(|(slot, region, loaded)| {
            let copies: Vec<u8> = loaded.entry.lock().lost_copies().collect();
            copies.into_iter().map(move |copy| (slot, region, loaded.member.clone(), copy))
        })
        .collect()
    }
    /// Whether the stamps of this disk's region are here.
    pub(crate) fn has(&self, slot: usize, region: u64, disk: DiskUuid) -> bool {
        self.of(slot, region * REGION_STRIPES, disk).is_some()
    }
    /// The stamps of this disk, whichever it is of its slot's.
    pub(crate) fn of(&self, slot: usize, stripe: u64, disk: DiskUuid) -> Option<&StampsRef> {
        let region = stripe / REGION_STRIPES;
        let both = [self.refs.get(slot, region), self.twins.get(slot, region)];
        both.into_iter().flatten().find(|l| l.member.uuid == disk).map(|l| &l.entry)
    }
    /// The slot's disk was dropped: what is written goes to its twin alone.
    pub(crate) fn leave_to_twin(&mut self, slot: usize) {
        for region in self.refs.regions.clone() {
            let twin = self.twins.take(slot, region);
            self.refs.put(slot, region, twin);
        }
    }
    /// Whether the slot's block of the stripe is known to be zeros.
    pub(crate) fn is_zero(&self, slot: usize, stripe: u64) -> bool {
        self.get(slot, stripe).is_some_and(|s| s.is_zero())
    }
}

/// The cells of one stripe, by slot; none of a stripe of which nothing is read.
pub(crate) struct StripeCells {
    pub stripe: u64,
    pub cells: Vec<Cell>,
}

impl StripeCells {
    pub(crate) fn new(stripe: u64, slots: usize) -> Self {
        Self { stripe, cells: vec![Cell::Unread; slots] }
    }
    /// The slot's block is written anew: whatever it was, it needs no mending.
    pub(crate) fn settle(&mut self, slot: usize) {
        if let Some(cell) = self.cells.get_mut(slot) {
            *cell = Cell::Unread;
        }
    }
}

/// A stripe with every block known.
pub(crate) struct Solved {
    pub blocks: Vec<Block>,
    /// Whether parity that was not needed agrees; `true` when all of it was needed.
    pub consistent: bool,
    /// Blocks in doubt were believed, and no parity was left to agree.
    pub believed: bool,
}

impl Core {
    /// Stamps of all slots that have a disk, for the regions given. A disk that does not answer is
    /// noted, and counts as lost here.
    pub(crate) async fn load_stamps(
        self: &Arc<Self>,
        group: &GroupView,
        regions: &[u64],
    ) -> StampSet {
        let mut futures: Vec<BoxFuture<Option<Placed>>> = Vec::new();
        for (slot, position) in group.slots.iter().enumerate() {
            let (disk, twin) = (position.writable(), position.twin().map(|t| &t.member));
            let alone = disk.is_none();
            let both = disk.map(|m| (m, false)).into_iter().chain(twin.map(|m| (m, !alone)));
            for (member, beside) in both {
                for region in regions {
                    let (core, member, region) = (self.clone(), member.clone(), *region);
                    futures.push(Box::pin(async move {
                        match core.stamps.get(&member, region).await {
                            Ok(entry) => Some(((slot, region), beside, Loaded { member, entry })),
                            Err(error) => {
                                core.fault(&member, &error);
                                None
                            }
                        }
                    }));
                }
            }
        }
        let table = || Table::new(regions, group.slots.len());
        let mut set = StampSet { refs: table(), twins: table() };
        for ((slot, region), beside, loaded) in join_all(futures).await.into_iter().flatten() {
            let table = if beside { &mut set.twins } else { &mut set.refs };
            table.put(slot, region, Some(loaded));
        }
        set
    }

    /// Reads the cells that `wanted` names and that are still unread. Blocks whose stamp says
    /// zeros are not read. Returns how many blocks the devices were asked for.
    pub(crate) async fn read_cells(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        stripes: &mut [StripeCells],
        wanted: impl Fn(usize, usize) -> bool,
    ) -> usize {
        let mut wants = Vec::new();
        let mut places = Vec::new();
        for (i, stripe) in stripes.iter_mut().enumerate() {
            for (slot, position) in group.slots.iter().enumerate() {
                if !wanted(i, slot) || stripe.cells[slot] != Cell::Unread {
                    continue;
                }
                let at = stripe.stripe;
                let (member, stamp) = (position.readable(at), stamps.get(slot, at));
                let doubtful = stamp.is_some_and(|s| s.is_doubtful());
                stripe.cells[slot] = match (member, stamp.map(|s| s.kind())) {
                    (Some(_), Some(StampKind::Zero)) if doubtful => Cell::Doubt(Block::zero()),
                    (Some(_), Some(StampKind::Zero)) => Cell::Good(Block::zero()),
                    (Some(member), Some(StampKind::Written(crc))) => {
                        let at = member.layout.stripe_dbn(at);
                        wants.push(Want { member: member.clone(), at });
                        places.push((i, slot, (crc, doubtful), member.clone()));
                        Cell::Lost
                    }
                    _ => Cell::Lost,
                };
            }
        }
        let asked = wants.len();
        let answers = places.into_iter().zip(self.read_many(wants).await);
        for ((i, slot, (crc, doubtful), member), answer) in answers {
            let Ok(block) = answer else { continue };
            if crc_of(&block) == crc || mutant("parity-from-unverified-block") {
                stripes[i].cells[slot] =
                    if doubtful { Cell::Doubt(block) } else { Cell::Good(block) };
            } else if !doubtful {
                let errors = member.checksum_errors.fetch_add(1, Ordering::Relaxed) + 1;
                if member.is_sick() {
                    self.sick.store(true, Ordering::Release);
                }
                let leaving = self.view().twin_of(member.uuid).is_some();
                if errors > CHECKSUM_ERRORS_MAX && !leaving && self.can_spare(member.uuid) {
                    self.kill(&member);
                }
                let at = stripes[i].stripe;
                tracing::warn!(disk = %member.uuid, stripe = at, "block does not match its stamp");
            }
        }
        asked
    }

    /// Stages a rewrite of blocks that were lost on disks that are there. Returns how many. What
    /// was only believed stays in doubt.
    pub(crate) fn stage_repairs(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        stripe: &StripeCells,
        solved: &Solved,
        writes: &mut Writes,
    ) -> usize {
        let mut repaired = 0;
        for (slot, position) in group.slots.iter().enumerate() {
            let cell = &stripe.cells[slot];
            let bad = match cell {
                Cell::Lost => true,
                Cell::Doubt(_) => !solved.believed,
                Cell::Good(_) | Cell::Unread => false,
            };
            if bad && position.readable(stripe.stripe).is_some() {
                let (at, block) = ((stripe.stripe, slot), &solved.blocks[slot]);
                let staged = self.stage_found(group, stamps, at, cell, block, writes);
                repaired += usize::from(staged);
            }
        }
        repaired
    }

    /// Stages the block that belongs into a cell which was not known to hold it; only its stamp
    /// when the doubt was for nothing.
    pub(crate) fn stage_found(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        (stripe, slot): (u64, usize),
        cell: &Cell,
        block: &Block,
        writes: &mut Writes,
    ) -> bool {
        let same = matches!(cell, Cell::Doubt(held) if held == block);
        match stamps.entry(slot, stripe).filter(|_| same && stamps.twin(slot, stripe).is_none()) {
            Some(entry) => {
                let mut entry = entry.lock();
                let stamp = entry.get(stripe).certain();
                entry.set(stripe, stamp);
                writes.touch(slot, stripe);
                false
            }
            None => self.stage_block(group, stamps, stripe, slot, block, writes),
        }
    }

    /// Stages one block that was computed, with a stamp that fits: the old one when it matches.
    pub(crate) fn stage_block(
        &self,
        group: &GroupView,
        stamps: &StampSet,
        stripe: u64,
        slot: usize,
        block: &Block,
        writes: &mut Writes,
    ) -> bool {
        let Some(entry) = stamps.entry(slot, stripe) else { return false };
        let old = entry.lock().get(stripe);
        let stamp = stamp_for(old, block, group.is_data(group.slots[slot].column));
        entry.lock().set(stripe, stamp);
        if stamp.kind() == StampKind::Zero {
            writes.touch(slot, stripe);
        } else {
            writes.put(slot, stripe, block.clone());
        }
        true
    }

    /// Distributes what was staged over the disks of each slot, and adds the checksum blocks of
    /// all regions that changed; the last step before the write.
    pub(crate) fn seal_stamps(&self, stamps: &StampSet, writes: &mut Writes) {
        for (slot, of_slot) in std::mem::take(&mut writes.slots).into_iter().enumerate() {
            let mut cells = of_slot.cells;
            let region = |cell: &(u64, Staged)| cell.0 / REGION_STRIPES;
            for of_region in cells.chunk_by_mut(|a, b| region(a) == region(b)) {
                self.seal_region(stamps, slot, of_region, writes);
            }
        }
    }

    /// The blocks of one slot in one region, at least one; they are taken out.
    fn seal_region(
        &self,
        stamps: &StampSet,
        slot: usize,
        cells: &mut [(u64, Staged)],
        writes: &mut Writes,
    ) {
        let region = cells[0].0 / REGION_STRIPES;
        let (disk, twin) = (stamps.refs.get(slot, region), stamps.twins.get(slot, region));
        if let Some(twin) = twin {
            for (stripe, staged) in &*cells {
                let to_twin = staged.to_twin.as_deref().copied();
                let stamp = to_twin.or_else(|| Some(disk?.entry.lock().get(*stripe)));
                if let Some(stamp) = stamp {
                    twin.entry.lock().set(*stripe, stamp);
                }
            }
        }
        let disks = disk.map(|l| (l, false)).into_iter().chain(twin.map(|l| (l, true)));
        for (loaded, beside) in disks {
            let mine = |staged: &Staged| beside || staged.to_twin.is_none();
            if loaded.member.is_dead() || !cells.iter().any(|(_, staged)| mine(staged)) {
                continue;
            }
            let layout = &loaded.member.layout;
            let out = writes.of(&loaded.member);
            out.blocks.reserve(cells.len() + STAMP_COPIES);
            let last = beside || twin.is_none();
            for (stripe, staged) in cells.iter_mut().filter(|(_, staged)| mine(staged)) {
                let block = if last { staged.block.take() } else { staged.block.clone() };
                out.blocks.extend(block.map(|block| (layout.stripe_dbn(*stripe), block)));
            }
            let copies = self.stamps.stage(&loaded.member, region, &loaded.entry);
            count(&self.counters.checksum_blocks, copies.len());
            out.blocks.extend(copies);
            out.regions.push(region);
        }
    }
}

/// The stamp of a block that was computed: the old one when it matches.
pub(crate) fn stamp_for(old: StampV1, block: &Block, data: bool) -> StampV1 {
    let crc = crc_of(block);
    match old.kind() {
        StampKind::Written(c) if c == crc => old.certain(),
        _ if is_zero(block) => StampV1::default(),
        _ if !data => stamp_parity(crc),
        _ => stamp_rebuilt(crc),
    }
}

/// Finds the lost blocks of a stripe of which every cell was read. Blocks in doubt are right when
/// parity that is not needed for the lost ones agrees with them; else they count as lost while
/// parity covers that.
///
/// # Errors
/// When more are lost than parity covers.
pub(crate) fn solve(group: &GroupView, stripe: &StripeCells) -> Result<Solved, TooMany> {
    let of = |wanted: fn(&Cell) -> bool| stripe.cells.iter().filter(|c| wanted(c)).count();
    let doubts = of(|cell| matches!(cell, Cell::Doubt(_)));
    if doubts == 0 {
        return solve_with(group, stripe, false);
    }
    let parity = usize::from(group.parity());
    let lost = of(|cell| cell.good().is_none()) - doubts;
    if lost < parity
        && let Ok(solved) = solve_with(group, stripe, true)
        && solved.consistent
    {
        return Ok(solved);
    }
    if lost + doubts <= parity {
        return solve_with(group, stripe, false);
    }
    Ok(Solved { believed: true, ..solve_with(group, stripe, true)? })
}

fn solve_with(group: &GroupView, stripe: &StripeCells, believe: bool) -> Result<Solved, TooMany> {
    let mut lost = 0;
    let mut columns: Vec<(u16, Option<Block>)> = group
        .slots
        .iter()
        .zip(&stripe.cells)
        .map(|(slot, cell)| {
            let block = match cell {
                Cell::Good(block) => Some(block.clone()),
                Cell::Doubt(block) if believe => Some(block.clone()),
                _ => None,
            };
            lost += usize::from(block.is_none());
            (slot.column.get(), block)
        })
        .collect();
    let spare = usize::from(group.parity()).saturating_sub(lost);
    group.code.decode(&mut columns)?;
    let blocks: Vec<Block> = columns.into_iter().filter_map(|(_, block)| block).collect();
    let consistent = spare == 0 || parity_agrees(group, &blocks);
    Ok(Solved { blocks, consistent, believed: false })
}

/// Whether the parity blocks of a whole stripe are those of its data.
pub(crate) fn parity_agrees(group: &GroupView, blocks: &[Block]) -> bool {
    let width = group.width();
    let data = group.slots.iter().zip(blocks).take(width).map(|(s, b)| (s.column.get(), b));
    let parity = group.code.encode(data);
    parity_slots(group).all(|(slot, diagonal)| {
        let want = if diagonal { parity.diagonal.as_ref() } else { Some(&parity.row) };
        want.is_none_or(|w| blocks.get(slot).is_some_and(|b| b == w))
    })
}

/// Slots of the parity columns, with whether it is the diagonal one.
pub(crate) fn parity_slots(group: &GroupView) -> impl Iterator<Item = (usize, bool)> {
    let (p, width) = (group.code.p, group.width());
    group.slots.iter().enumerate().skip(width).map(move |(i, s)| (i, s.column.get() == p))
}
