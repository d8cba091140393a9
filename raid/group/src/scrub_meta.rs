//! Scrub of what is not stripes: labels, configuration copies, region maps, root slots.
//!
//! Layer: over members; run at the beginning of a scrub. Each of them is on every disk, so a bad
//! copy harms nobody until the others are gone too: it is written again from what is in memory,
//! which is what the disks agreed on when the aggregate was opened. What a power cut may have torn
//! (a label, the older copy of a configuration or root) is mended and not counted as damage.
//! Invariants: one copy of a
//! label is whole at any moment; a root slot is touched only while nobody commits, and the
//! configuration only while nobody changes it.

use std::sync::Arc;

use cairn_raid_api::{ScrubFault, ScrubFinding};
use cairn_raid_parity::is_zero;
use cairn_sys::Block;
use cairn_units::Dbn;

use crate::commit::RootSlot;
use crate::config::Config;
use crate::core::Core;
use crate::failure::identity_of;
use crate::label::label_block;
use crate::layout::LABEL_AT;
use crate::member::Member;
use crate::ondisk::CONFIG_BLOCKS;
use crate::scrub::Findings;

/// What was read from a place that should hold something known.
enum Seen {
    Right,
    /// Nothing yet, or something older: written again, and no damage.
    Behind,
    Bad,
}

impl Core {
    /// Reads and mends labels, configurations and roots of all disks.
    pub(crate) async fn scrub_meta(&self) -> Findings {
        let mut sum = Findings::default();
        for member in self.view().alive() {
            if self.is_stopped() {
                break;
            }
            self.scrub_labels(&member, &mut sum).await;
            self.scrub_config(&member, &mut sum).await;
            self.scrub_map(&member).await;
        }
        self.scrub_roots(&mut sum).await;
        sum
    }

    /// Reads `count` blocks; `None` when they cannot be read, which is noted.
    async fn read_noted(&self, member: &Arc<Member>, at: Dbn, count: usize) -> Option<Vec<Block>> {
        match member.read(at, count).await {
            Ok(blocks) => Some(blocks),
            Err(error) => {
                self.fault(member, &error);
                None
            }
        }
    }

    /// Counts what was seen, and writes `blocks` unless it was right.
    async fn put_right(
        &self,
        member: &Arc<Member>,
        (what, at): (ScrubFault, Dbn),
        blocks: Vec<Block>,
        seen: Seen,
        sum: &mut Findings,
    ) {
        if matches!(seen, Seen::Right) || member.is_dead() {
            return;
        }
        let bad = matches!(seen, Seen::Bad);
        if bad {
            let (disk, dbn) = (member.uuid, at.get());
            tracing::warn!(%disk, dbn, "label, configuration or root was damaged");
        }
        sum.damaged += u64::from(bad);
        let written = member.write_stable(at, blocks).await;
        if let Err(error) = &written {
            self.fault(member, error);
        }
        if bad {
            let (disk, repaired) = (Some(member.uuid), written.is_ok());
            sum.repaired += u64::from(repaired);
            self.found(ScrubFinding { what, disk, dbn: at, stripe: None, repaired });
        }
    }

    async fn scrub_labels(&self, member: &Arc<Member>, sum: &mut Findings) {
        // Nobody gives it another place meanwhile.
        let _config = self.config.lock().await;
        let identity = identity_of(&self.view().config, member.uuid);
        let right = label_block(&identity, &member.layout);
        for at in [member.layout.label_b(), LABEL_AT] {
            let seen = match self.read_noted(member, at, 1).await.as_deref() {
                Some([block]) if *block == right => Seen::Right,
                // The position in it is for people and may be an old one.
                Some([block]) if crate::label::is_of(block, member.uuid) => Seen::Behind,
                // It cannot be told from one that a power cut tore.
                Some(_) => Seen::Behind,
                None => Seen::Bad,
            };
            self.put_right(member, (ScrubFault::Label, at), vec![right.clone()], seen, sum).await;
        }
    }

    async fn scrub_config(&self, member: &Arc<Member>, sum: &mut Findings) {
        let _config = self.config.lock().await;
        let config = self.view().config.clone();
        let current = u8::from(config.generation % 2 == 1);
        for copy in [current, 1 - current] {
            let at = member.layout.config_dbn(copy);
            let blocks = usize::try_from(CONFIG_BLOCKS).unwrap_or(1);
            let read = self.read_noted(member, at, blocks).await;
            let found = read.as_ref().map(|blocks| Config::decode(blocks));
            let empty = read.as_ref().and_then(|b| b.first()).is_some_and(|b| is_zero(b));
            let seen = match found {
                Some(Some(found)) if found == config => Seen::Right,
                // The other copy is the generation before, or none.
                Some(Some(_)) if copy != current => Seen::Right,
                Some(None) if empty && copy != current => Seen::Right,
                // A power cut tore it, and it was not the one that counts now.
                Some(None) if copy != current => Seen::Behind,
                Some(Some(found)) if found.generation < config.generation => Seen::Behind,
                Some(None) if empty => Seen::Behind,
                _ => Seen::Bad,
            };
            // The whole area: what is bad may lie behind the blocks that are in use.
            let mut area = config.encode();
            area.resize_with(blocks, Block::zero);
            self.put_right(member, (ScrubFault::Configuration, at), area, seen, sum).await;
        }
    }

    /// Copies of the region map that were torn or rotted; which of the two nobody can tell, so they
    /// are found and mended, and not counted as damage.
    async fn scrub_map(&self, member: &Arc<Member>) {
        let _writing = member.map.writing.lock().await;
        let lost = member.map.lost_copies(member.uuid, &member.disk, &member.layout).await;
        for (at, right) in lost.unwrap_or_default() {
            let mended = match right {
                Some(block) => member.write_stable(at, vec![block]).await,
                None => continue,
            };
            if let Err(error) = &mended {
                self.fault(member, error);
            }
            let (what, disk, repaired) = (ScrubFault::RegionMap, Some(member.uuid), mended.is_ok());
            self.found(ScrubFinding { what, disk, dbn: at, stripe: None, repaired });
        }
    }

    async fn scrub_roots(&self, sum: &mut Findings) {
        // Nobody commits meanwhile.
        let _interval = self.interval.write().await;
        let view = self.view();
        let Some(right) = self.root.lock().committed.clone() else { return };
        let (aggregate, slot) = (view.config.aggregate, right.slot);
        for member in view.group_members().into_iter().chain(view.twins()) {
            for at in [slot, 1 - slot] {
                let dbn = member.layout.root_dbn(at);
                let read = self.read_noted(&member, dbn, 1).await;
                let block = read.as_deref().and_then(<[Block]>::first);
                let found = block.map(|b| RootSlot::decode(aggregate, at, b));
                let empty = block.is_some_and(|b| is_zero(b));
                let seen = match found {
                    Some(Some(found)) if at != slot || found == right => Seen::Right,
                    Some(None) if empty && at != slot => Seen::Right,
                    Some(Some(found)) if found.sequence < right.sequence => Seen::Behind,
                    Some(None) if empty => Seen::Behind,
                    // A power cut tore it, and it was not the one that counted.
                    Some(None) if at != slot => Seen::Behind,
                    _ => Seen::Bad,
                };
                // The other slot is written by the next commit; until then it holds nothing.
                let block = if at == slot { right.encode(aggregate) } else { Block::zero() };
                self.put_right(&member, (ScrubFault::Root, dbn), vec![block], seen, sum).await;
            }
        }
    }
}
