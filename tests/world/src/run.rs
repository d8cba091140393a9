//! One world from beginning to end: the clients, the machine, the faults, and then peace.
//!
//! Layer: the driver. It is a plain loop that lets the world run until something is due; the
//! clients and cables are tasks outside of the machine and outlive its power.
//!
//! ```text
//! form ─▶ start ─▶ clients begin ─▶ operations and faults ─▶ heal: every fault off
//!   ─▶ clients end ─▶ disks replaced, rebuilt ─▶ scrub, scrub finds nothing
//!   ─▶ all compared ─▶ power cut, start, all compared ─▶ orderly stop, start, all compared, audit
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_cf::{Manage, ManageError, Managed};
use cairn_raid_api::{Aggregate, AggregateAdmin, ColumnState, DiskStatus, ScrubStatus};
use cairn_raid_disk::Disk;
use cairn_sim::{Rng, SimDisk, SimWorld};
use cairn_wafl_core::audit;

use crate::client::{Client, Leniency, Together};
use crate::faults::{Account, Areas};
use crate::machine::{Machine, Shelf, StartError, Walk, form, new_disk};
use crate::net::{Net, lock};
use crate::plan::{Op, Plan};
use crate::rpc::{RpcClient, RpcCounters, Violation, within};

/// Virtual time in which everything must come to rest once nothing breaks any more.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often the driver looks at the machine.
const LOOK: Duration = Duration::from_millis(250);

type Outcome<T> = Result<T, Violation>;

pub(crate) fn violated<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Violation(what.into()))
}

/// What a world came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Digest of everything that happened.
    pub digest: u64,
    /// Operations of clients, by kind.
    pub ops: BTreeMap<&'static str, u64>,
    /// RPC calls.
    pub calls: u64,
    /// Calls that were sent again, or twice.
    pub resent: u64,
    /// Times that the machine stopped in any way.
    pub crashes: u64,
    /// Faults injected, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Virtual time.
    pub elapsed: Duration,
}

/// A client that ran and its verdict.
type Ended = Arc<Mutex<BTreeMap<u8, (Client, Outcome<()>)>>>;

pub(crate) struct Run {
    pub(crate) sim: SimWorld,
    pub(crate) plan: Plan,
    pub(crate) shelf: Shelf,
    pub(crate) net: Arc<Net>,
    pub(crate) machine: Option<Machine>,
    pub(crate) account: Account,
    pub(crate) areas: Areas,
    pub(crate) rng: Rng,
    /// What the aggregate last said of its disks.
    pub(crate) disks: Vec<DiskStatus>,
    /// Device orders after which the power goes while the machine starts, if it is to.
    pub(crate) cut_in_start: Option<u64>,
    pub(crate) report: Report,
    /// Virtual nanoseconds at which a disk's trouble ends.
    pub(crate) trouble_ends: BTreeMap<String, u64>,
    incarnation: u64,
    together: Arc<Together>,
    ended: Ended,
    /// A scrub is under way of which the account must hear.
    pub(crate) scrubbing: bool,
    pub(crate) shelved: u32,
}

/// Runs a plan.
///
/// # Errors
/// What was violated, in words.
///
/// # Panics
/// When the code under test does.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let mut run = Run::new(plan);
    match run.story() {
        Ok(()) => Ok(run.report),
        Err(Violation(what)) => Err(format!(
            "{what} [at {:.3} s, machine {}]",
            run.sim.elapsed().as_secs_f64(),
            run.incarnation
        )),
    }
}

impl Run {
    fn new(plan: &Plan) -> Self {
        let sim = SimWorld::new(plan.seed);
        let shape = plan.shape;
        let shelf = Shelf::default();
        for n in 0..shape.disks + usize::from(shape.spares) {
            let at = format!("d{n:02}");
            let disk = new_disk(&sim, &at, shape.disk_blocks);
            lock(&shelf).insert(at, disk);
        }
        let net = Net::new(sim.outside());
        Self {
            net,
            plan: plan.clone(),
            shelf,
            machine: None,
            account: Account::default(),
            areas: Areas::of(shape.disk_blocks),
            rng: Rng::new(plan.seed ^ 0x6472_6976),
            disks: Vec::new(),
            cut_in_start: None,
            report: Report::default(),
            trouble_ends: BTreeMap::new(),
            incarnation: 0,
            together: Together::new(),
            ended: Ended::default(),
            scrubbing: false,
            shelved: 0,
            sim,
        }
    }

    fn story(&mut self) -> Outcome<()> {
        let formed = form(self.sim.world(), self.shelf.clone(), self.plan.shape);
        if let Err(e) = self.sim.block_on(formed) {
            return violated(format!("the aggregate is not made: {e:?}"));
        }
        self.machine_is_gone(false);
        self.start()?;
        self.clients_begin()?;
        self.let_clients(|client| {
            let mine = self.plan.ops.iter().filter(|(c, _)| *c == client).map(|(_, op)| *op);
            Some(mine.collect())
        });
        let begun = self.now();
        for fault in self.plan.faults.clone() {
            self.run_until(begun + fault.at_ms * 1_000_000)?;
            self.inject(fault)?;
        }
        let last = self.now() + 1_000_000_000;
        self.run_until(last)?;
        self.peace()?;
        self.finish();
        Ok(())
    }

    fn finish(&mut self) {
        for (client, _) in lock(&self.ended).values() {
            let RpcCounters { calls, resent, duplicates, .. } = client.counters();
            self.report.calls += calls;
            self.report.resent += resent + duplicates;
        }
        self.report.ops = lock(&self.together.done).clone();
        self.report.elapsed = self.sim.elapsed();
        self.report.digest = self.sim.digest();
    }

    pub(crate) fn now(&self) -> u64 {
        self.sim.world().clock.monotonic().get()
    }

    // ---- clients ----

    fn clients_begin(&mut self) -> Outcome<()> {
        let shape = self.plan.shape;
        for number in 0..shape.clients {
            let seed = self.rng.next_u64();
            let rpc = RpcClient::new(self.net.clone(), self.sim.outside(), number, seed);
            let leniency = Leniency { no_space: shape.tiny };
            let pace = Duration::from_millis(shape.pace_ms);
            let mut client = Client::new(number, rpc, self.together.clone(), leniency, pace);
            let outside = self.sim.outside();
            let begun = within(&outside, PATIENCE, client.begin());
            match self.sim.block_on(begun) {
                Some(done) => done?,
                None => return violated("a client cannot begin"),
            }
            lock(&self.ended).insert(number, (client, Ok(())));
        }
        Ok(())
    }

    /// Lets every client go on: with these operations, or (`None`) comparing all that it knows.
    fn let_clients(&self, ops: impl Fn(u8) -> Option<Vec<Op>>) {
        let clients = core::mem::take(&mut *lock(&self.ended));
        for (number, (mut client, _)) in clients {
            let (ops, ended) = (ops(number), self.ended.clone());
            let task = async move {
                let mut result = Ok(());
                match &ops {
                    Some(ops) => {
                        for op in ops {
                            result = client.run(op).await;
                            if result.is_err() {
                                break;
                            }
                        }
                    }
                    None => result = client.check_all().await,
                }
                lock(&ended).insert(number, (client, result));
            };
            self.sim.outside().spawn.spawn("client", Box::pin(task));
        }
    }

    /// Whether all clients have ended; an error when one has seen what must not be.
    fn clients_ended(&self) -> Outcome<bool> {
        let ended = lock(&self.ended);
        for (_, result) in ended.values() {
            result.clone()?;
        }
        Ok(ended.len() == usize::from(self.plan.shape.clients))
    }

    fn await_clients(&mut self) -> Outcome<()> {
        let deadline = self.now() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(0);
        while !self.clients_ended()? {
            if self.now() > deadline {
                let at = lock(&self.together.under_way).clone();
                let says = self.machine_says();
                return violated(format!(
                    "clients make no progress though nothing is broken: {at:?}, {says}"
                ));
            }
            let look = self.now() + u64::try_from(LOOK.as_nanos()).unwrap_or(0);
            self.run_until(look)?;
        }
        Ok(())
    }

    // ---- time ----

    /// Lets the world run until then, whatever happens to the machine.
    pub(crate) fn run_until(&mut self, until: u64) -> Outcome<()> {
        while self.now() < until {
            let slice = Duration::from_nanos(until - self.now()).min(LOOK);
            let sleep = self.sim.outside().clock.sleep(slice);
            if self.sim.block_on_or_cut(sleep).is_none() {
                self.machine_is_gone(self.plan.shape.silent);
                self.after_crash()?;
            }
            self.clients_ended()?;
            self.look()?;
        }
        Ok(())
    }

    /// Runs `work` of the machine; `None` when the power was cut under it.
    pub(crate) fn on_machine<T>(&mut self, work: impl Future<Output = T>) -> Outcome<Option<T>> {
        let outside = self.sim.outside();
        match self.sim.block_on_or_cut(within(&outside, PATIENCE, work)) {
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => violated("the machine takes an hour for one order"),
            None => {
                self.machine_is_gone(self.plan.shape.silent);
                self.after_crash()?;
                Ok(None)
            }
        }
    }

    /// Looks after the machine as a supervisor and an administrator do.
    pub(crate) fn look(&mut self) -> Outcome<()> {
        self.end_troubles();
        let Some(machine) = &self.machine else { return self.after_crash() };
        self.disks = machine.aggregate.disks();
        self.account.log_copies = machine.manager.log_copies();
        if let Some(reason) = machine.manager.stopped() {
            return violated(format!("the storage layer has stopped by itself: {reason}"));
        }
        let scrub: ScrubStatus = machine.aggregate.scrub();
        if self.scrubbing && !scrub.running {
            self.scrubbing = false;
            let whole = scrub.finished.is_some() && self.account.hung.is_empty();
            if whole && self.positions_online() {
                self.scrubbed();
            }
        }
        Ok(())
    }

    fn scrubbed(&mut self) {
        let shelf = lock(&self.shelf);
        self.account.scrubbed(|at| shelf.get(at).is_some_and(SimDisk::is_armed));
    }

    pub(crate) fn positions_online(&self) -> bool {
        let members = self.disks.iter().filter(|d| d.position.is_some());
        members.clone().all(|d| d.state == ColumnState::Online)
            && members.count() == self.plan.shape.disks
    }

    fn end_troubles(&mut self) {
        let now = self.now();
        let over: Vec<String> = self
            .trouble_ends
            .iter()
            .filter(|(_, t)| **t <= now)
            .map(|(at, _)| at.clone())
            .collect();
        for at in over {
            self.trouble_ends.remove(&at);
            self.account.hung.remove(&at);
            if let Some(disk) = lock(&self.shelf).get(&at) {
                disk.hang(false);
                disk.slow_down(1);
            }
        }
    }

    // ---- the machine ----

    /// Nothing of the machine is left but its disks.
    pub(crate) fn machine_is_gone(&mut self, silent: bool) {
        self.net.machine_goes(silent);
        self.machine = None;
        self.scrubbing = false;
        for disk in lock(&self.shelf).values_mut() {
            *disk = disk.reattach();
        }
        for at in &self.account.hung {
            if let Some(disk) = lock(&self.shelf).get(at) {
                disk.hang(true);
            }
        }
    }

    /// The machine is down for a while, and is started.
    pub(crate) fn after_crash(&mut self) -> Outcome<()> {
        self.report.crashes += 1;
        let down = Duration::from_millis(50 + self.rng.below(3000));
        self.sim.block_on(self.sim.outside().clock.sleep(down));
        self.start()
    }

    fn start(&mut self) -> Outcome<()> {
        loop {
            self.end_troubles();
            self.incarnation += 1;
            let mut drivers: Vec<Arc<dyn Disk>> = {
                let shelf = lock(&self.shelf);
                shelf.values().map(SimDisk::driver).collect()
            };
            self.rng.shuffle(&mut drivers);
            let walk = if self.rng.one_in(2) { Walk::Yes } else { Walk::No };
            if let Some(orders) = self.cut_in_start.take() {
                self.sim.cut_power_at(orders);
            }
            let starting = Machine::start(
                self.sim.world(),
                self.net.clone(),
                (drivers, self.shelf.clone()),
                self.plan.shape,
                (self.incarnation, walk),
            );
            let outside = self.sim.outside();
            let started = self.sim.block_on_or_cut(within(&outside, PATIENCE, starting));
            self.sim.cancel_cut();
            match started {
                None => {
                    self.report.crashes += 1;
                    self.machine_is_gone(true);
                }
                Some(None) => return violated("the machine does not start within an hour"),
                Some(Some(Ok(machine))) => {
                    self.disks = machine.aggregate.disks();
                    self.machine = Some(machine);
                    return Ok(());
                }
                Some(Some(Err(StartError::Refused(why)))) => {
                    return violated(format!("the machine does not start: {why}"));
                }
                Some(Some(Err(StartError::Audit(findings)))) => {
                    return violated(format!("the committed state does not add up: {findings:?}"));
                }
            }
        }
    }

    /// A management operation; `None` when the power was cut under it.
    pub(crate) fn manage(
        &mut self,
        request: Manage,
    ) -> Outcome<Option<Result<Managed, ManageError>>> {
        let Some(machine) = &self.machine else { return Ok(None) };
        let work = Machine::manage(machine.manager.clone(), request);
        self.on_machine(work)
    }

    // ---- peace ----

    /// Nothing breaks any more: everything must become whole, clean and writable.
    fn peace(&mut self) -> Outcome<()> {
        self.sim.cancel_cut();
        self.cut_in_start = None;
        self.net.heal();
        lock(&self.shelf).values().for_each(SimDisk::disarm);
        for ends in self.trouble_ends.values_mut() {
            *ends = 0;
        }
        self.look()?;
        self.await_clients()?;
        self.replace_disks()?;
        self.await_whole()?;
        self.scrub()?;
        let second = self.scrub()?;
        if second.damaged > 0 || second.parity_mismatches > 0 {
            let Some(machine) = &self.machine else { return violated("no machine") };
            let findings = machine.aggregate.scrub_findings();
            let text = format!("a scrub after a scrub finds something: {second:?}, {findings:?}");
            return violated(text);
        }
        self.scrubbed();
        self.compare()?;
        self.sim.power_cut();
        self.machine_is_gone(false);
        self.after_crash()?;
        self.compare()?;
        self.stop_in_order()?;
        self.after_crash()?;
        self.compare()?;
        self.make_room()?;
        self.audit()
    }

    fn compare(&mut self) -> Outcome<()> {
        self.let_clients(|_| None);
        self.await_clients()
    }

    /// An orderly stop.
    pub(crate) fn stop_in_order(&mut self) -> Outcome<()> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let (manager, aggregate) = (machine.manager.clone(), machine.aggregate.clone());
        let stopped = self.on_machine(async move {
            let done = manager.shutdown().await;
            aggregate.shutdown();
            done
        })?;
        match stopped {
            None => Ok(()),
            Some(Err(e)) => violated(format!("an orderly stop fails: {e}")),
            Some(Ok(())) => {
                self.sim.process_death();
                self.machine_is_gone(false);
                Ok(())
            }
        }
    }

    /// Files are written, and when there was too little space, after others were removed.
    fn make_room(&mut self) -> Outcome<()> {
        let tiny = self.plan.shape.tiny;
        self.let_clients(|number| {
            let mut ops = vec![Op::Remove { slot: 0 }];
            if tiny {
                ops.extend((1..crate::plan::SLOTS).map(|slot| Op::Remove { slot }));
                ops.push(Op::Sleep { ms: 30_000 });
            }
            ops.push(Op::Create { slot: 0, how: 0 });
            ops.push(Op::Write { slot: 0, at: u16::from(number), cells: 64, stable: 2 });
            ops.push(Op::Check { slot: 0 });
            Some(ops)
        });
        self.await_clients()?;
        let unwritten =
            lock(&self.ended).values().find(|(c, _)| !c.has_file(0)).map(|(c, _)| c.number);
        match unwritten {
            Some(number) => violated(format!("client {number} cannot write after all was removed")),
            None => Ok(()),
        }
    }

    /// The committed state adds up.
    fn audit(&mut self) -> Outcome<()> {
        self.stop_in_order()?;
        self.after_crash()?;
        let Some(machine) = &self.machine else { return violated("no machine") };
        let below: Arc<dyn Aggregate> = machine.aggregate.clone();
        let report = self.on_machine(async move { audit(&below, true).await })?;
        match report {
            Some(report) if report.findings.is_empty() => Ok(()),
            other => violated(format!("the committed state does not add up: {other:?}")),
        }
    }

    fn scrub(&mut self) -> Outcome<ScrubStatus> {
        let Some(machine) = &self.machine else { return violated("no machine") };
        machine.aggregate.start_scrub();
        let deadline = self.now() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(0);
        loop {
            let look = self.now() + u64::try_from(LOOK.as_nanos()).unwrap_or(0);
            self.run_until(look)?;
            let Some(machine) = &self.machine else { return violated("no machine") };
            let status = machine.aggregate.scrub();
            if !status.running {
                return Ok(status);
            }
            if self.now() > deadline {
                return violated(format!("a scrub does not end: {status:?}"));
            }
        }
    }

    /// New disks for empty positions, and for those that are not to be trusted.
    fn replace_disks(&mut self) -> Outcome<()> {
        self.await_whole()?;
        for at in self.account.to_replace() {
            let status = self.disks.iter().find(|d| d.location == at).cloned();
            self.account.forget(&at);
            let Some(status) = status.filter(|d| d.position.is_some()) else { continue };
            self.add_disk()?;
            match self.manage(Manage::DiskFail { disk: status.disk })? {
                Some(Ok(_)) => {}
                other => return violated(format!("{at} cannot be taken out: {other:?}")),
            }
            self.await_whole()?;
        }
        Ok(())
    }

    /// Puts a new disk in as a spare.
    pub(crate) fn add_disk(&mut self) -> Outcome<()> {
        self.shelved += 1;
        let at = format!("new{:02}", self.shelved);
        let disk = new_disk(&self.sim, &at, self.plan.shape.disk_blocks);
        lock(&self.shelf).insert(at.clone(), disk);
        match self.manage(Manage::DiskAdd { locations: vec![at.clone()] })? {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(e)) => violated(format!("a new disk is refused: {e}")),
        }
    }

    /// Every position is whole; new disks are put in for those that are found to be missing.
    fn await_whole(&mut self) -> Outcome<()> {
        let deadline = self.now() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(0);
        loop {
            let look = self.now() + u64::try_from(LOOK.as_nanos()).unwrap_or(0);
            self.run_until(look)?;
            if self.positions_online() {
                return Ok(());
            }
            let of = |role, state| {
                self.disks
                    .iter()
                    .filter(|d| (d.position.is_some(), d.state) == (role, state))
                    .count()
            };
            let missing = of(true, ColumnState::Missing);
            if missing > of(false, ColumnState::Online) {
                self.add_disk()?;
            }
            if self.now() > deadline {
                return violated(format!("the group does not become whole: {:?}", self.states()));
            }
        }
    }

    fn states(&self) -> Vec<String> {
        let state = |d: &DiskStatus| {
            let at = d.position.map(|(_, column)| column.get());
            format!("{} {at:?} {:?} {:?}", d.location, d.state, d.rebuild)
        };
        self.disks.iter().map(state).collect()
    }

    /// What the machine says of itself, for messages.
    fn machine_says(&mut self) -> String {
        let status = self.manage(Manage::AggregateStatus);
        let counters = self.manage(Manage::Counters);
        let mut numbers = Vec::new();
        if let Ok(Some(Ok(Managed::Counters(all)))) = counters {
            let wanted = |m: &&cairn_cf::Metric| {
                m.labels.is_empty() && m.value > 0 && !m.name.contains("nanos")
            };
            numbers.extend(all.iter().filter(wanted).map(|m| format!("{} {}", m.name, m.value)));
        }
        format!("{status:?}, {numbers:?}, {:?}", self.states())
    }
}
