//! One run of a workload: its tape, and what was promised at each moment of it.
//!
//! Layer: above `rig` and `acts`. A promise is what a power cut at that moment may and must leave:
//! a copy of the reference model, with the operation in flight.

use anyhow::{Result, anyhow, bail};
use cairn_cf::{Manage, ManageError, Managed};
use cairn_model::sequence::Runner;

use crate::acts::{Act, Does};
use crate::disk::Manner;
use crate::image::Image;
use crate::rig::{Bench, Machine, Objects, Start, Volumes};
use crate::tape::{Change, Event, Tape};

/// What holds at the beginning.
const FIRST: Event = Event::Promise { number: 0, change: Change::Asks };

/// What a power cut may and must leave.
pub struct Promise {
    /// The main volume.
    pub main: Runner,
    /// The second volume, where it is there.
    pub second: Runner,
    /// Either of these sets of volumes.
    pub volumes: Vec<Volumes>,
}

/// A run.
pub struct Recording {
    /// Contents of the disks at its beginning.
    pub images: Vec<Image>,
    /// What happened.
    pub events: Vec<Event>,
    /// What was promised.
    pub promises: Vec<Promise>,
    /// The event from which on states are new: what was before was checked with a shorter workload.
    pub from: usize,
}

/// A node and the model of it on their way through a workload.
struct Course<'a> {
    machine: &'a Machine,
    tape: &'a Tape,
    objects: Objects,
    main: Runner,
    second: Runner,
    volumes: Volumes,
    promises: Vec<Promise>,
}

impl Course<'_> {
    /// An act begins, which would give `main` and these volumes.
    fn begun(&mut self, main: Runner, or: Option<Volumes>) {
        let volumes = core::iter::once(self.volumes.clone()).chain(or).collect();
        self.promised(main, volumes, Change::Allows);
    }

    /// An act was answered: what the model holds must be there.
    fn answered(&mut self) {
        self.promised(self.main.fork(), vec![self.volumes.clone()], Change::Asks);
    }

    fn promised(&mut self, main: Runner, volumes: Vec<Volumes>, change: Change) {
        self.promises.push(Promise { main, second: self.second.fork(), volumes });
        let number = self.promises.len() - 1;
        self.tape.push(Event::Promise { number, change });
    }

    fn perform(&mut self, act: &Act) -> Result<()> {
        match act.does {
            Does::Op(make) => {
                let op = make(&self.objects);
                self.begun(self.main.fork_with(&op), None);
                self.machine.sim.block_on(self.main.operate(op))?;
            }
            Does::Manage(make) => self.manage(make())?,
            Does::FailDisk => {
                let first = self.first_data_disk()?;
                if let Some(disk) = first {
                    self.ask(Manage::DiskFail { disk })?;
                }
            }
            Does::AddDisk => {
                let last = self.machine.disks.len() - 1;
                self.ask(Manage::DiskAdd { locations: vec![format!("d{last}")] })?;
            }
            Does::Scrub => {
                self.ask(Manage::ScrubStart)?;
            }
            Does::Wait(time) => self.machine.sim.run_for(time),
        }
        if let Some(reason) = self.machine.node.stopped() {
            bail!("the node stopped: {reason}");
        }
        self.answered();
        Ok(())
    }

    /// Runs a management request; whether it was granted. A refusal is no fault.
    fn ask(&self, request: Manage) -> Result<bool> {
        match self.machine.sim.block_on(self.machine.dmodule().manage(request)) {
            Ok(_) => Ok(true),
            Err(error @ ManageError::Stopped(_)) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }

    fn manage(&mut self, request: Manage) -> Result<()> {
        let after = applied(&self.volumes, &request);
        let settles = after != self.volumes || request == Manage::ConsistencyPoint;
        self.begun(self.main.fork(), Some(after.clone()));
        if self.ask(request)? {
            self.volumes = after;
            if settles {
                self.main.settled();
            }
        }
        Ok(())
    }

    fn first_data_disk(&self) -> Result<Option<cairn_units::DiskUuid>> {
        let Managed::Disks(disks) = self.machine.manage(Manage::DiskList)? else {
            bail!("a list of disks");
        };
        let data = |d: &&cairn_cf::DiskReport| d.role == "data" && d.state == "online";
        Ok(disks.iter().find(data).map(|d| d.disk))
    }
}

/// The volumes after a request that was granted.
fn applied(before: &Volumes, request: &Manage) -> Volumes {
    let mut after = before.clone();
    match request {
        Manage::VolumeCreate { fsid, name, size_bytes } => {
            after.entry(*fsid).or_insert_with(|| (name.clone(), *size_bytes));
        }
        Manage::VolumeDelete { fsid } => {
            after.remove(fsid);
        }
        Manage::VolumeResize { fsid, size_bytes } => {
            after.entry(*fsid).and_modify(|v| v.1 = *size_bytes);
        }
        Manage::VolumeRename { fsid, name } => {
            after.entry(*fsid).and_modify(|v| v.0.clone_from(name));
        }
        _ => {}
    }
    after
}

/// Runs a workload from the bench on.
///
/// # Errors
/// A difference between node and model, or a node that does not start or stops.
pub fn record(bench: &Bench, acts: &[Act], seed: u64) -> Result<Recording> {
    let tape = Tape::default();
    let start = Start {
        images: &bench.images,
        seed,
        starts: 2,
        manner: Manner::Recorded(tape.clone()),
        tetris_stripes: bench.shape.tetris_stripes(),
        walks: true,
    };
    let first = Promise {
        main: bench.main.fork(),
        second: bench.second.fork(),
        volumes: vec![bench.volumes.clone()],
    };
    tape.push(FIRST);
    let machine = Machine::start(&start)?;
    let mut main = bench.main.fork();
    main.attach(machine.dmodule());
    let mut course = Course {
        machine: &machine,
        tape: &tape,
        objects: bench.objects,
        main,
        second: bench.second.fork(),
        volumes: bench.volumes.clone(),
        promises: vec![first],
    };
    let mut marks = Vec::new();
    for act in acts {
        marks.push(course.promises.len());
        course.perform(act).map_err(|e| anyhow!("{}: {e}", act.name))?;
    }
    finish(course, tape.clone(), &bench.images, if acts.len() < 2 { None } else { marks.pop() })
}

/// Starts a node on a state under `promise`, and runs `act` on it.
///
/// # Errors
/// As [`record`], and what a comparison with the promise found.
pub fn record_recovery(
    images: &[Image],
    promise: &Promise,
    bench: &Bench,
    act: &Act,
    seed: u64,
) -> Result<Recording> {
    let tape = Tape::default();
    let tetris_stripes = bench.shape.tetris_stripes();
    let manner = Manner::Recorded(tape.clone());
    let start = Start { images, seed, starts: 3, manner, tetris_stripes, walks: true };
    let first = Promise {
        main: promise.main.fork(),
        second: promise.second.fork(),
        volumes: promise.volumes.clone(),
    };
    tape.push(FIRST);
    let machine = Machine::start(&start)?;
    let mut main = promise.main.fork();
    machine.sim.block_on(main.remounted(machine.dmodule()))?;
    let mut course = Course {
        machine: &machine,
        tape: &tape,
        objects: bench.objects,
        main,
        second: promise.second.fork(),
        volumes: machine.volumes()?,
        promises: vec![first],
    };
    // What was seen after the first recovery must stay.
    course.answered();
    course.perform(act).map_err(|e| anyhow!("{}: {e}", act.name))?;
    finish(course, tape.clone(), images, None)
}

fn finish(
    course: Course<'_>,
    tape: Tape,
    images: &[Image],
    from: Option<usize>,
) -> Result<Recording> {
    let promises = course.promises;
    let events = tape.take();
    let from = match from {
        None => 0,
        Some(promise) => {
            let here = |e: &Event| matches!(e, Event::Promise { number, .. } if *number == promise);
            let begun = events.iter().position(here);
            begun.ok_or_else(|| anyhow!("promise {promise} is not on the tape"))?
        }
    };
    Ok(Recording { images: images.to_vec(), events, promises, from })
}
