//! Faults and orders, put into the world when they are due.
//!
//! Layer: part of the driver. Where a fault strikes is chosen by its `pick`; whether it may is up
//! to the account ([`crate::faults`]). A fault that may not strike is passed over and not counted.

use std::sync::Arc;
use std::time::Duration;

use cairn_cf::{DModule, Manage, ManageError, Managed};
use cairn_op::{ClientAddr, CreateHow, Credential, Name, Op as FileOp, OpCtx, ReadOnly, Stability};
use cairn_raid_api::DiskStatus;
use cairn_raid_disk::DiskError;
use cairn_sim::{Rng, SimDisk};
use cairn_sys::Payload;
use cairn_units::{BLOCK_BYTES_U64, Blocks, Dbn, Fsid, OpNo, VserverId};

use crate::faults::Suspicion;
use crate::net::lock;
use crate::plan::{Fault, FaultKind};
use crate::rpc::{Violation, address};
use crate::run::{Run, violated};

type Outcome<T> = Result<T, Violation>;

impl Run {
    /// Puts one fault into the world, if the design promises to survive it now.
    pub(crate) fn inject(&mut self, fault: Fault) -> Outcome<()> {
        let mut rng = Rng::new(fault.pick);
        // Faults may fall due together; each is judged by the state that the last one left.
        self.look()?;
        if self.strike(fault.kind, &mut rng)? {
            *self.report.faults.entry(format!("{:?}", fault.kind)).or_insert(0) += 1;
        }
        Ok(())
    }

    fn strike(&mut self, kind: FaultKind, rng: &mut Rng) -> Outcome<bool> {
        use FaultKind as K;
        match kind {
            K::PowerCut | K::PowerCutTwice => Ok(self.power_cut(kind, rng)),
            K::ProcessDeath => {
                self.sim.process_death();
                self.machine_is_gone(false);
                self.after_crash()?;
                Ok(true)
            }
            K::Restart => {
                self.stop_in_order()?;
                if self.machine.is_none() {
                    self.after_crash()?;
                }
                Ok(true)
            }
            K::LatentError | K::BitRot | K::BadBlock => Ok(self.damage(kind, rng)),
            K::LostWrite | K::MisdirectedWrite | K::RequestError | K::LogAreaError => {
                Ok(self.lie(kind, rng))
            }
            K::SlowDisk | K::HungDisk | K::DeadDisk => Ok(self.trouble(kind, rng)),
            K::DiskReturns => self.disk_returns(rng),
            K::DiskAdded => {
                if self.disks.len() >= 16 {
                    return Ok(false);
                }
                self.add_disk()?;
                Ok(true)
            }
            K::DiskFailed => self.fail_disk(rng),
            K::Scrub => {
                self.scrubbing = self.manage(Manage::ScrubStart)?.is_some();
                Ok(true)
            }
            K::VolumeCreate | K::VolumeDelete | K::VolumeResize => self.volume(kind, rng),
            K::ConsistencyPoint => match self.manage(Manage::ConsistencyPoint)? {
                Some(Err(e)) => violated(format!("a consistency point fails: {e}")),
                _ => Ok(true),
            },
            K::ConnectionBreaks => {
                self.net.break_connection(self.client(rng));
                Ok(true)
            }
            K::Partition => {
                let long = if rng.one_in(6) { 200_000 } else { 20_000 };
                self.net.part(self.client(rng), Duration::from_millis(1 + rng.below(long)));
                Ok(true)
            }
        }
    }

    fn client(&self, rng: &mut Rng) -> std::net::SocketAddr {
        let number = rng.below(u64::from(self.plan.shape.clients));
        address(u8::try_from(number).unwrap_or(0))
    }

    fn power_cut(&mut self, kind: FaultKind, rng: &mut Rng) -> bool {
        self.net.set_silent(self.plan.shape.silent);
        let most = [10, 100, 400][rng.index(3)];
        let orders = 1 + rng.below(most);
        self.sim.cut_power_at(orders);
        if kind == FaultKind::PowerCutTwice {
            self.cut_in_start = Some(1 + rng.below(60));
        }
        true
    }

    /// A disk of the group (or, seldom, a spare) and its status.
    fn disk(&self, rng: &mut Rng) -> Option<(SimDisk, DiskStatus)> {
        let status = self.disks.get(rng.index(self.disks.len()))?;
        let disk = lock(&self.shelf).get(&status.location)?.clone();
        Some((disk, status.clone()))
    }

    fn damage(&mut self, kind: FaultKind, rng: &mut Rng) -> bool {
        let Some((disk, status)) = self.disk(rng) else { return false };
        let (at, parity) = (status.location, self.plan.shape.parity);
        if rng.one_in(8) && kind != FaultKind::BadBlock {
            if !self.account.allows_disk(&self.disks, &at, parity) {
                return false;
            }
            let block = self.areas.other_block(rng);
            self.account.suspects(&at, Suspicion::UntilReplaced);
            spoil(&disk, kind, block);
            return true;
        }
        let (block, region) = self.areas.block(rng);
        if !self.account.allows_damage(&self.disks, &at, region, parity) {
            return false;
        }
        self.account.damaged(&at, region);
        if kind == FaultKind::BadBlock {
            // A scrub cannot mend it, only a new disk can.
            if !self.account.allows_disk(&self.disks, &at, parity) {
                return false;
            }
            self.account.suspects(&at, Suspicion::UntilReplaced);
        }
        spoil(&disk, kind, block);
        true
    }

    fn lie(&mut self, kind: FaultKind, rng: &mut Rng) -> bool {
        let Some((disk, status)) = self.disk(rng) else { return false };
        let at = status.location;
        if !self.account.allows_disk(&self.disks, &at, self.plan.shape.parity) {
            return false;
        }
        let (block, _) = self.areas.block(rng);
        match kind {
            FaultKind::LostWrite => disk.lose_next_write(block),
            FaultKind::MisdirectedWrite => {
                let (landed, _) = self.areas.block(rng);
                disk.misdirect_next_write(block, landed);
            }
            FaultKind::LogAreaError => disk.break_block_for_good(self.areas.log_block(rng)),
            _ => {
                let error = match rng.below(3) {
                    0 => DiskError::TimedOut { at: block },
                    _ => DiskError::Medium { at: block, count: Blocks::new(1) },
                };
                disk.fail_request(1 + rng.below(200), error);
            }
        }
        let until = match kind {
            FaultKind::LogAreaError => Suspicion::UntilReplaced,
            _ => Suspicion::UntilScrub,
        };
        self.account.suspects(&at, until);
        true
    }

    fn trouble(&mut self, kind: FaultKind, rng: &mut Rng) -> bool {
        let Some((disk, status)) = self.disk(rng) else { return false };
        let at = status.location;
        let ends = self.now() + (1 + rng.below(60_000)) * 1_000_000;
        if kind == FaultKind::SlowDisk {
            disk.slow_down(2 + rng.below(40));
            self.trouble_ends.insert(at, ends);
            return true;
        }
        if !self.account.allows_disk(&self.disks, &at, self.plan.shape.parity) {
            return false;
        }
        if kind == FaultKind::HungDisk {
            disk.hang(true);
            self.account.hung.insert(at.clone());
            self.account.suspects(&at, Suspicion::UntilScrub);
            self.trouble_ends.insert(at, ends);
        } else {
            disk.die();
            self.account.dead.insert(at);
        }
        true
    }

    /// A dead disk is back: the administrator adds it as a spare.
    fn disk_returns(&mut self, rng: &mut Rng) -> Outcome<bool> {
        let dead: Vec<String> = self.account.dead.iter().cloned().collect();
        let used =
            |at: &String| self.disks.iter().any(|d| d.location == **at && d.position.is_some());
        // One that the aggregate has not yet missed comes back at the next start.
        let dead: Vec<String> = dead.into_iter().filter(|at| !used(at)).collect();
        let Some(at) = dead.get(rng.index(dead.len())).cloned() else { return Ok(false) };
        {
            let mut shelf = lock(&self.shelf);
            let Some(disk) = shelf.get_mut(&at) else { return Ok(false) };
            disk.revive();
            *disk = disk.reattach();
        }
        self.account.forget(&at);
        match self.manage(Manage::DiskAdd { locations: vec![at] })? {
            // Refused when the aggregate still counts on it, which only delays the matter.
            None | Some(Ok(_) | Err(ManageError::Refused(_))) => Ok(true),
            Some(Err(e)) => violated(format!("a disk that is back cannot be added: {e}")),
        }
    }

    fn fail_disk(&mut self, rng: &mut Rng) -> Outcome<bool> {
        let Some((_, status)) = self.disk(rng) else { return Ok(false) };
        let at = status.location;
        if !self.account.allows_disk(&self.disks, &at, self.plan.shape.parity) {
            return Ok(false);
        }
        match self.manage(Manage::DiskFail { disk: status.disk })? {
            None | Some(Ok(_) | Err(ManageError::Refused(_))) => Ok(true),
            Some(Err(e)) => violated(format!("a disk cannot be taken out: {e}")),
        }
    }

    fn volume(&mut self, kind: FaultKind, rng: &mut Rng) -> Outcome<bool> {
        let fsid = Fsid::new(10 + rng.below(3));
        let size_bytes = (300 + rng.below(4000)) * BLOCK_BYTES_U64;
        let request = match kind {
            FaultKind::VolumeCreate => {
                Manage::VolumeCreate { fsid, name: format!("x{fsid}"), size_bytes }
            }
            FaultKind::VolumeDelete => Manage::VolumeDelete { fsid },
            _ => Manage::VolumeResize { fsid, size_bytes },
        };
        match self.manage(request)? {
            None => Ok(true),
            Some(Ok(_)) if kind == FaultKind::VolumeCreate => {
                self.fill(fsid, rng)?;
                Ok(true)
            }
            Some(Ok(_)) => Ok(true),
            Some(Err(ManageError::NoSpace { .. })) if self.plan.shape.tiny => Ok(true),
            Some(Err(ManageError::NoSuchVolume(_) | ManageError::Refused(_))) => Ok(false),
            Some(Err(e)) => violated(format!("{kind:?} of volume {fsid}: {e}")),
        }
    }

    /// Writes a file of some blocks into a volume that nobody looks at: blocks to be freed.
    fn fill(&mut self, fsid: Fsid, rng: &mut Rng) -> Outcome<()> {
        let Some(Ok(Managed::Root(dir))) = self.manage(Manage::VolumeRoot { fsid })? else {
            return Ok(());
        };
        let Some(machine) = &self.machine else { return Ok(()) };
        let manager = machine.manager.clone();
        let number = rng.below(1000);
        let blocks = 1 + rng.below(60);
        let work = async move {
            let Ok(name) = Name::new(format!("f{number}").into_bytes().into()) else { return };
            let set = cairn_op::SetAttrs::default();
            let create = FileOp::Create { dir, name, how: CreateHow::Unchecked(set) };
            let dmodule: Arc<dyn DModule> = manager;
            let made = dmodule.file(ctx(), create).wait().await;
            let Ok(cairn_op::Reply::Made { obj, .. }) = made else { return };
            for n in 0..blocks {
                let data = Payload::copy_from(0, &[1; 4096]);
                let offset = n * BLOCK_BYTES_U64;
                let stability = Stability::Unstable;
                let write = FileOp::Write { obj, offset, data, stability };
                // Whether it fits does not matter here.
                drop(dmodule.file(ctx(), write).wait().await);
            }
        };
        self.on_machine(work).map(drop)
    }
}

fn ctx() -> OpCtx {
    OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [10, 0, 2, 1].into(), port: 700 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    }
}

fn spoil(disk: &SimDisk, kind: FaultKind, at: Dbn) {
    match kind {
        FaultKind::LatentError => disk.break_block(at),
        FaultKind::BitRot => disk.rot_block(at),
        _ => disk.break_block_for_good(at),
    }
}
