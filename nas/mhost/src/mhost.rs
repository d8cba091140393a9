//! The M-host itself: start, publishing of the routes, running of jobs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cairn_cf::{DModule, Manage, ManageError, Managed, Metric};
use cairn_op::ObjectRef;
use cairn_sys::World;
use cairn_sys::lock::{AsyncMutex, Mutex, Rank};
use cairn_units::{Fsid, VserverId};
use tokio::sync::watch;

use crate::db::{Db, DbError, Table, number_key};
use crate::error::ApiError;
use crate::jobs::{self, Job, JobKind, JobState, Progress};
use crate::model::{
    DEFAULT_VSERVER, ExportRule, NodeIdentity, User, VolumeEntry, VolumeState, Vserver,
};

/// A volume as the N-module is to show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedVolume {
    /// Identity.
    pub fsid: Fsid,
    /// Virtual server.
    pub vserver: VserverId,
    /// Path.
    pub junction: String,
    /// Root directory; `None`: the volume is known and cannot be used now.
    pub root: Option<ObjectRef>,
    /// Export policy.
    pub rules: Vec<ExportRule>,
}

/// Takes the whole table of volumes and puts it into force; the error is for the log.
pub type Publish = Arc<dyn Fn(Vec<PublishedVolume>) -> Result<(), String> + Send + Sync>;

/// Gives a layer's counters; the names come without the product's prefix.
pub type MetricSource = Arc<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// Where the node can be reached, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Address of the NFS server, for status.
    pub nfs: String,
    /// Address of REST, for status.
    pub rest: String,
    /// State directory, for status.
    pub state_dir: PathBuf,
}

/// The M-host of a node.
pub struct MHost {
    pub(crate) db: Arc<Db>,
    pub(crate) world: World,
    pub(crate) dmodule: Arc<dyn DModule>,
    endpoints: Mutex<Endpoints>,
    pub(crate) identity: NodeIdentity,
    pub(crate) started_ns: i64,
    publish: Publish,
    publishing: AsyncMutex<()>,
    metrics: Mutex<Vec<MetricSource>>,
    progress: Mutex<BTreeMap<u64, Progress>>,
    changes: watch::Sender<u64>,
    pub(crate) stopping: watch::Sender<bool>,
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Identity and keys of the node, made when there are none.
///
/// # Errors
/// See [`DbError`].
pub fn identity(db: &Db, world: &World) -> Result<NodeIdentity, DbError> {
    db.update(|tx| {
        if let Some(identity) = tx.get(Table::Node, "self")? {
            return Ok(identity);
        }
        let identity =
            NodeIdentity { uuid: hex(world.random_16()), handle_key: hex(world.random_16()) };
        tx.put(Table::Node, "self", &identity)?;
        let vserver = Vserver { id: DEFAULT_VSERVER, name: "default".to_owned() };
        tx.put(Table::Vservers, &number_key(u64::from(DEFAULT_VSERVER)), &vserver)?;
        let admin =
            User { name: "admin".to_owned(), vserver: DEFAULT_VSERVER, role: "admin".to_owned() };
        tx.put(Table::Users, "admin", &admin)?;
        Ok::<_, DbError>(identity)
    })
}

impl MHost {
    /// Starts: reads the configuration, puts the routes into force, takes up unfinished jobs and
    /// starts the watch over disks and schedules.
    ///
    /// # Errors
    /// The database, or the D-module when it is asked for a volume's root.
    pub async fn start(
        db: Arc<Db>,
        world: World,
        dmodule: Arc<dyn DModule>,
        publish: Publish,
    ) -> Result<Arc<Self>, ApiError> {
        let identity = identity(&db, &world)?;
        let mhost = Arc::new(Self {
            db,
            started_ns: world.clock.wall().get(),
            world,
            dmodule,
            endpoints: Mutex::new(Rank::Endpoints, Endpoints::default()),
            identity,
            publish,
            publishing: AsyncMutex::new(Rank::Publishing, ()),
            metrics: Mutex::new(Rank::MetricSources, Vec::new()),
            progress: Mutex::new(Rank::JobProgress, BTreeMap::new()),
            changes: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        });
        mhost.publish_routes().await?;
        for (_, job) in mhost.db.list::<Job>(Table::Jobs)? {
            if job.state == JobState::Running {
                tracing::info!(job = job.id, title = job.what.title(), "job taken up again");
                mhost.spawn_job(job);
            }
        }
        mhost.spawn_monitor();
        Ok(mhost)
    }

    /// Ends the watch; jobs stop where they are and are taken up at the next start. Returns when
    /// neither holds the database any more, so that whoever opens it next finds it free.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        // Each task gives its share of this up before its receiver.
        self.stopping.closed().await;
    }

    /// Tells where the node can be reached, when that is known.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        *self.endpoints.lock() = endpoints;
    }

    pub(crate) fn endpoints(&self) -> Endpoints {
        self.endpoints.lock().clone()
    }

    /// Adds a source of counters.
    pub fn add_metrics(&self, source: MetricSource) {
        self.metrics.lock().push(source);
    }

    /// All counters of the node.
    ///
    /// # Errors
    /// When the storage layer has stopped.
    pub async fn counters(&self) -> Result<Vec<Metric>, ApiError> {
        let mut out = match self.manage(Manage::Counters).await? {
            Managed::Counters(metrics) => metrics,
            _ => return Err(ApiError::unexpected()),
        };
        let sources = self.metrics.lock().clone();
        for source in sources {
            out.extend(source());
        }
        Ok(out)
    }

    pub(crate) async fn manage(&self, request: Manage) -> Result<Managed, ManageError> {
        self.dmodule.manage(request).await
    }

    /// Builds the table of volumes and puts it into force.
    ///
    /// # Errors
    /// The database or the D-module.
    pub(crate) async fn publish_routes(&self) -> Result<(), ApiError> {
        // One at a time: an older table must not replace a newer one.
        let _turn = self.publishing.lock().await;
        let mut table = Vec::new();
        for (key, volume) in self.db.list::<VolumeEntry>(Table::Volumes)? {
            if volume.state != VolumeState::Online {
                continue;
            }
            let fsid = Fsid::new(volume.fsid);
            let root = match self.manage(Manage::VolumeRoot { fsid }).await {
                Ok(Managed::Root(root)) => Some(root),
                Ok(_) => return Err(ApiError::unexpected()),
                Err(e) => {
                    tracing::error!(fsid = volume.fsid, name = volume.name, "not served: {e}");
                    None
                }
            };
            let rules = self.db.get(Table::Policies, &key)?.unwrap_or_default();
            table.push(PublishedVolume {
                fsid,
                vserver: VserverId::new(volume.vserver),
                junction: volume.junction,
                root,
                rules,
            });
        }
        (self.publish)(table).map_err(|e| ApiError::new(500, e, "correct the volume's path"))
    }

    /// Submits a job with whatever else `announce` keeps in the same transaction.
    pub(crate) fn submit(
        self: &Arc<Self>,
        announce: impl FnOnce(&mut crate::db::Tx) -> Result<JobKind, ApiError>,
    ) -> Result<Job, ApiError> {
        let now = self.world.clock.wall().get();
        let job = self.db.update(|tx| {
            let what = announce(tx)?;
            jobs::submit(tx, what, now)
        })?;
        tracing::info!(job = job.id, title = job.what.title(), "job begins");
        self.spawn_job(job.clone());
        Ok(job)
    }

    fn spawn_job(self: &Arc<Self>, job: Job) {
        let (mhost, mut stop) = (self.clone(), self.stopping.subscribe());
        let task = async move {
            let id = job.id;
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => {}
                result = mhost.run_job(job) => if let Err(e) = result {
                    // It stays "running" and is taken up at the next start.
                    tracing::error!(job = id, "job stopped: {e}");
                }
            }
            mhost.progress.lock().remove(&id);
            mhost.changed();
            drop(mhost);
            drop(stop);
        };
        self.world.spawn.spawn("job", Box::pin(task));
    }

    async fn run_job(self: &Arc<Self>, mut job: Job) -> Result<(), ApiError> {
        let steps = job.what.steps().len();
        while job.state == JobState::Running {
            let outcome = self.run_step(&job).await;
            self.progress.lock().remove(&job.id);
            let now = self.world.clock.wall().get();
            match outcome {
                Ok(message) => {
                    job.step += 1;
                    if !message.is_empty() {
                        job.message = message;
                    }
                    if job.step >= steps {
                        (job.state, job.ended_ns) = (JobState::Done, Some(now));
                    }
                    self.db.update(|tx| jobs::keep(tx, &job))?;
                }
                // Not refused, only not possible now: it is taken up at the next start.
                Err(e) if matches!(e.status, 500 | 503) => return Err(e),
                Err(refused) => {
                    (job.state, job.ended_ns) = (JobState::Failed, Some(now));
                    (job.message, job.what_to_do) = (refused.error, refused.what_to_do);
                    let undo = self.db.update(|tx| {
                        let undo = crate::steps::undo(tx, &job)?;
                        jobs::keep(tx, &job)?;
                        Ok::<_, ApiError>(undo)
                    })?;
                    if undo == crate::steps::Undone::Routes {
                        self.publish_routes().await?;
                    }
                    tracing::warn!(job = job.id, title = job.what.title(), "{}", job.message);
                }
            }
            self.changed();
        }
        Ok(())
    }

    pub(crate) fn set_progress(&self, job: u64, progress: Progress) {
        self.progress.lock().insert(job, progress);
        self.changed();
    }

    pub(crate) fn progress(&self, job: u64) -> Option<Progress> {
        self.progress.lock().get(&job).cloned()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// One job.
    ///
    /// # Errors
    /// 404 when there is none with this number.
    pub fn job(&self, id: u64) -> Result<Job, ApiError> {
        self.db.get(Table::Jobs, &number_key(id))?.ok_or_else(|| {
            ApiError::missing(format!("no such job: {id}"), "`cairn job list` shows the jobs")
        })
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// 404 when there is none with this number.
    pub async fn wait_job(&self, id: u64) -> Result<Job, ApiError> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let job = self.job(id)?;
            if job.state != JobState::Running || changes.changed().await.is_err() {
                return Ok(job);
            }
        }
    }
}
