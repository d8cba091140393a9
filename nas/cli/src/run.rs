//! Carrying out a command.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cairn_mhost::api::{
    AggregateView, CheckStart, CheckView, CounterView, DiskAdd, DiskReplace, DiskView, ExplainView,
    ExportChange, ExportView, GroupAdd, JobView, RaidTypeChange, ScrubView, StatusView,
    VolumeChange, VolumeCreate, VolumeView,
};
use cairn_mhost::model::{ExportRule, ScrubSchedule};
use cairn_node::Formation;
use clap::CommandFactory;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::{
    Aggregate, Args, Check, Command, Disk, Export, Follow, Job, Raid, Scrub, Target, Volume,
};
use crate::client::{Client, ClientError, quoted};
use crate::table;
use crate::watch::follow;

type Done = Result<(), ClientError>;

fn print(text: &str) -> Done {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader of a pipe has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// A node, and how to show what it says.
struct Session {
    client: Client,
    json: bool,
}

impl Session {
    fn show<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> Done {
        if !self.json {
            return print(&table(value));
        }
        let text =
            serde_json::to_string_pretty(value).map_err(|e| ClientError::Usage(e.to_string()))?;
        print(&format!("{text}\n"))
    }

    fn get<T: DeserializeOwned + Serialize>(
        &self,
        path: &str,
        table: impl FnOnce(&T) -> String,
    ) -> Done {
        let value: T = self.client.get(path)?;
        self.show(&value, table)
    }

    /// Shows a job that was just begun, or follows it to its end.
    fn job(&self, job: JobView, wait: Follow) -> Done {
        let job = if wait.no_wait { job } else { follow(&self.client, job.id)? };
        self.show(&job, |job| {
            let words = table::job_progress(job);
            let words = if words.is_empty() { words } else { format!(": {words}") };
            let state = table::job_state(job.state);
            format!("job {}: {}: {state}{words}\n", job.id, job.title)
        })
    }

    fn begin(&self, method: &str, path: &str, body: &impl Serialize, wait: Follow) -> Done {
        self.job(self.client.send_json(method, path, body)?, wait)
    }

    fn order(&self, method: &str, path: &str, wait: Follow) -> Done {
        self.job(self.client.order(method, path)?, wait)
    }

    fn disk(&self, command: Disk) -> Done {
        match command {
            Disk::List => self.get("disks", |d: &Vec<DiskView>| table::disks(d)),
            Disk::Add { locations, follow } => {
                let whole: io::Result<Vec<PathBuf>> =
                    locations.iter().map(std::path::absolute).collect();
                let text = |p: &PathBuf| p.display().to_string();
                let body = DiskAdd { locations: whole?.iter().map(text).collect() };
                self.begin("POST", "disks", &body, follow)
            }
            Disk::Replace { disk, with, follow } => {
                let uuid = self.disk_by_name(&disk)?;
                let with = with.map(|w| self.disk_by_name(&w)).transpose()?;
                let path = format!("disks/{}/replace", quoted(&uuid));
                self.begin("POST", &path, &DiskReplace { with }, follow)
            }
            Disk::Fail { disk, follow } => {
                let uuid = self.disk_by_name(&disk)?;
                self.order("POST", &format!("disks/{}/fail", quoted(&uuid)), follow)
            }
        }
    }

    /// A disk may be named by where it is attached, or by the file's name.
    fn disk_by_name(&self, name: &str) -> Result<String, ClientError> {
        let disks: Vec<DiskView> = self.client.get("disks")?;
        let file = |d: &DiskView| {
            Path::new(&d.location).file_name().map(|n| n.to_string_lossy().into_owned())
        };
        let named = |d: &&DiskView| {
            d.disk == name || d.location == name || file(d).as_deref() == Some(name)
        };
        let mut found = disks.iter().filter(named);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.disk.clone()),
            (None, _) => Err(ClientError::Usage(format!(
                "no such disk: {name}; `cairn disk list` shows the disks"
            ))),
            (Some(_), Some(_)) => Err(ClientError::Usage(format!(
                "several disks are called {name}; name one by its identity"
            ))),
        }
    }

    fn aggregate(&self, command: Aggregate) -> Done {
        match command {
            Aggregate::Show => {
                self.get("aggregates", |a: &Vec<AggregateView>| table::aggregates(a))
            }
            Aggregate::Grow { group, follow } => {
                self.order("POST", &format!("aggregates/groups/{group}/grow"), follow)
            }
            Aggregate::AddGroup { disks, follow } => {
                self.begin("POST", "aggregates/groups", &GroupAdd { disks }, follow)
            }
            Aggregate::RaidType { aggregate, raid, group, follow } => {
                self.raid_type(&aggregate, raid, group, follow)
            }
            Aggregate::Cp => {
                let path = "/api/v1/aggregates/consistency-point";
                self.client.request("POST", path, b"")?;
                print(if self.json { "{}\n" } else { "consistency point committed\n" })
            }
        }
    }

    /// Changes the groups one after the other: two jobs about the aggregate do not run at once.
    fn raid_type(&self, name: &str, raid: Raid, only: Option<u16>, wait: Follow) -> Done {
        let all: Vec<AggregateView> = self.client.get("aggregates")?;
        let Some(aggregate) = all.iter().find(|a| !name.is_empty() && a.uuid.starts_with(name))
        else {
            return Err(ClientError::Usage(format!(
                "no such aggregate: {name}; `cairn aggregate show` shows its identity"
            )));
        };
        let raid = match raid {
            Raid::Raid4 => "raid4",
            Raid::RaidDp => "raid_dp",
        };
        let wanted = |g: u16| only.is_none_or(|o| o == g);
        let groups: Vec<_> = aggregate.groups.iter().filter(|g| wanted(g.group)).collect();
        if groups.is_empty() {
            return Err(ClientError::Usage(
                "no such group; `cairn aggregate show` shows the groups".to_owned(),
            ));
        }
        if wait.no_wait && groups.len() > 1 {
            return Err(ClientError::Usage(
                "several groups are changed one after the other: name one with --group, or leave \
                 out --no-wait"
                    .to_owned(),
            ));
        }
        for group in groups {
            let path = format!("aggregates/groups/{}/raid-type", group.group);
            self.begin("PUT", &path, &RaidTypeChange { raid: raid.to_owned() }, wait)?;
        }
        Ok(())
    }

    fn volume(&self, command: Volume) -> Done {
        let path = |name: &str| format!("volumes/{}", quoted(name));
        match command {
            Volume::List => self.get("volumes", |v: &Vec<VolumeView>| table::volumes(v)),
            Volume::Create { name, size, junction, follow } => {
                let body = VolumeCreate { name, size_bytes: size, junction, rules: Vec::new() };
                self.begin("POST", "volumes", &body, follow)
            }
            Volume::Resize { name, size, follow } => {
                let body = VolumeChange { size_bytes: Some(size), name: None };
                self.begin("PATCH", &path(&name), &body, follow)
            }
            Volume::Rename { name, to, follow } => {
                let body = VolumeChange { size_bytes: None, name: Some(to) };
                self.begin("PATCH", &path(&name), &body, follow)
            }
            Volume::Delete { name, yes: true, follow } => {
                self.order("DELETE", &path(&name), follow)
            }
            Volume::Delete { name, yes: false, .. } => Err(ClientError::Usage(format!(
                "everything in {name} would be lost; say --yes if you mean it"
            ))),
        }
    }

    fn export(&self, command: Export) -> Done {
        let path = |volume: &str| format!("exports/{}", quoted(volume));
        let (volume, rules) = match command {
            Export::List => {
                return self.get("exports", |e: &Vec<ExportView>| table::exports(e));
            }
            Export::Add {
                volume,
                clients,
                access,
                squash,
                anon_uid,
                anon_gid,
                privileged_port,
                first,
            } => {
                let mut rules = self.client.get::<ExportView>(&path(&volume))?.rules;
                let (access, squash) = (access.into(), squash.into());
                let rule =
                    ExportRule { clients, access, squash, anon_uid, anon_gid, privileged_port };
                rules.insert(if first { 0 } else { rules.len() }, rule);
                (volume, rules)
            }
            Export::Remove { volume, clients } => {
                let mut rules = self.client.get::<ExportView>(&path(&volume))?.rules;
                let before = rules.len();
                rules.retain(|r| r.clients != clients);
                if rules.len() == before {
                    return Err(ClientError::Usage(format!(
                        "{volume} has no rule for {clients}; `cairn export list` shows the rules"
                    )));
                }
                (volume, rules)
            }
        };
        let body = ExportChange { rules };
        let set: ExportView = self.client.send_json("PUT", &path(&volume), &body)?;
        self.show(&vec![set], |e| table::exports(e))
    }

    fn scrub(&self, command: Scrub) -> Done {
        match command {
            Scrub::Start { follow } => self.order("POST", "scrub", follow),
            Scrub::Status => self.get("scrub", |s: &ScrubView| table::scrub(s)),
            Scrub::Schedule { hours } => {
                let body = ScrubSchedule { interval_hours: hours };
                let set: ScrubView = self.client.send_json("PUT", "scrub/schedule", &body)?;
                self.show(&set, table::scrub)
            }
        }
    }

    fn check(&self, command: Check) -> Done {
        if command.status {
            return self.get("check", |c: &CheckView| table::check(c));
        }
        let body =
            CheckStart { volume: command.volume, repair: command.repair, data: command.data };
        self.begin("POST", "check", &body, command.follow)
    }

    fn counters(&self, filter: Option<&str>) -> Done {
        let mut all: Vec<CounterView> = self.client.get("counters")?;
        if let Some(part) = filter {
            all.retain(|c| c.name.contains(part));
        }
        self.show(&all, |c| table::counters(c))
    }
}

fn session(target: &Target) -> Result<Session, ClientError> {
    Ok(Session { client: Client::new(target)?, json: target.json })
}

/// Carries out the command line.
///
/// # Errors
/// See [`ClientError`].
pub fn run(args: Args) -> Done {
    let Args { target, command } = args;
    match command {
        Command::Demo(demo) => {
            cairn_node::daemon::init_log("warn");
            Ok(cairn_node::demo::run(demo.options(target.dir))?)
        }
        Command::Daemon { config, initialize } => {
            cairn_node::daemon::init_log("info");
            let formation = if initialize { Formation::Allowed } else { Formation::Refused };
            Ok(cairn_node::daemon::run(&config, formation)?)
        }
        Command::Completion { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "cairn", &mut out);
            print(&String::from_utf8_lossy(&out))
        }
        Command::Status => session(&target)?.get("status", |s: &StatusView| table::status(s)),
        Command::Disk(command) => session(&target)?.disk(command),
        Command::Aggregate(command) => session(&target)?.aggregate(command),
        Command::Volume(command) => session(&target)?.volume(command),
        Command::Export(command) => session(&target)?.export(command),
        Command::Scrub(command) => session(&target)?.scrub(command),
        Command::Check(command) if !command.disks.is_empty() => {
            cairn_node::daemon::init_log("warn");
            print(&cairn_node::offline::check(&command.disks, command.repair, command.data)?)
        }
        Command::Check(command) => session(&target)?.check(command),
        Command::Job(Job::List) => session(&target)?.get("jobs", |j: &Vec<JobView>| table::jobs(j)),
        Command::Job(Job::Show { id }) => {
            let show = |j: &JobView| table::jobs(std::slice::from_ref(j));
            session(&target)?.get(&format!("jobs/{id}"), show)
        }
        Command::Job(Job::Wait { id }) => {
            let session = session(&target)?;
            let job = session.client.get(&format!("jobs/{id}"))?;
            session.job(job, Follow::default())
        }
        Command::Counters { filter } => session(&target)?.counters(filter.as_deref()),
        Command::Explain { path, offset } => {
            let query = format!("explain?path={}&offset={offset}", quoted(&path));
            session(&target)?.get(&query, |e: &ExplainView| table::explain(e))
        }
    }
}
