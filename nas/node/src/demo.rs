//! `cairn demo`: a whole node on sparse files in one directory, in the foreground.
//!
//! ```text
//! DIR/disk-00.img ...   the disks (sparse)            DIR/demo.json      how they were made
//! DIR/config.redb       configuration database        DIR/creating       only while being made
//! DIR/rest-token        token of REST (mode 0600)     DIR/endpoint.json  where `cairn` finds it
//! ```
//! `demo.json` is written when aggregate and volume are there; a demo that was killed before is
//! made anew at the next start.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use cairn_mhost::api::VolumeCreate;
use cairn_mhost::jobs::JobState;
use cairn_mhost::model::{ExportRule, RuleSquash};
use cairn_mhost::{ApiError, MHost};
use cairn_raid_disk::{CreateDiskError, create_file_disk};
use cairn_sys::World;
use cairn_units::Blocks;
use serde::{Deserialize, Serialize};

use crate::config::{
    DriverChoice, FrontConfig, NodeConfig, RPCBIND_PORT, RaidLayout, RestEndpoint, Rpcbind,
    StorageConfig,
};
use crate::daemon::{Node, NodeError, StopSignal};
use crate::size::show_size;
use crate::statedir::{StateDir, StateDirError};
use crate::storage::Formation;

/// Disks unless asked otherwise.
pub const DISKS_DEFAULT: u16 = 8;
/// Bytes of a disk unless asked otherwise.
pub const DISK_BYTES_DEFAULT: u64 = 2 << 30;
/// Smallest disk of a demo.
pub const DISK_BYTES_MIN: u64 = 64 << 20;
/// Most disks of a demo.
pub const DISKS_MAX: u16 = 64;
/// Port of NFS unless asked otherwise.
pub const NFS_PORT: u16 = 12049;
/// Port of REST unless asked otherwise.
pub const REST_PORT: u16 = 12080;
/// Name of the volume.
const VOLUME: &str = "vol0";
const DISK_PREFIX: &str = "disk-";
const DISK_SUFFIX: &str = ".img";

/// What was asked for; `None`: not said.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Directory.
    pub dir: PathBuf,
    /// Disks.
    pub disks: Option<u16>,
    /// Bytes of each.
    pub disk_bytes: Option<u64>,
    /// RAID layout.
    pub raid: Option<RaidLayout>,
    /// Address of NFS.
    pub listen: IpAddr,
    /// Port of NFS; 0: any.
    pub nfs_port: u16,
    /// Port of REST; 0: any.
    pub rest_port: u16,
    /// Bytes of the buffer cache.
    pub cache_bytes: u64,
    /// Whether rpcbind is served or told.
    pub rpcbind: Rpcbind,
    /// Disk driver.
    pub driver: DriverChoice,
    /// Files or devices that stand for non-volatile memory: the log lies there. To be named at
    /// every start; files are made with the demo.
    pub nvram: Vec<PathBuf>,
    /// Whether an earlier demo in the directory is thrown away.
    pub fresh: Fresh,
}

/// Whether an earlier demo is thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// It is taken up.
    No,
    /// It is thrown away.
    Yes,
}

/// How the demo in a directory was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    disks: u16,
    disk_bytes: u64,
    raid: RaidLayout,
}

/// Why a demo did not start or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// A file in it.
    #[error("{path}: {source}{}", advice(.source))]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk file could not be made.
    #[error(transparent)]
    Disk(#[from] CreateDiskError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Options(String),
    /// The demo there is another one.
    #[error(
        "{dir} holds a demo of {there}, not of {asked}; leave the options out to take it up, \
         name another --dir, or throw it away with --fresh"
    )]
    OtherShape {
        /// Directory.
        dir: PathBuf,
        /// What is there.
        there: String,
        /// What was asked for.
        asked: String,
    },
    /// There are disks but it is not known how they were made.
    #[error(
        "{dir} holds disk files but no demo.json; name another --dir, or throw them away with \
         --fresh"
    )]
    Unknown {
        /// Directory.
        dir: PathBuf,
    },
    /// The volume could not be made.
    #[error("volume {VOLUME}: {0}")]
    Volume(ApiError),
}

fn advice(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the host file system is full: make room or name another --dir"
        }
        io::ErrorKind::FileTooLarge => "; the host file system takes no file of that size",
        io::ErrorKind::PermissionDenied => "; name a --dir that this user may write to",
        _ => "",
    }
}

impl Shape {
    fn words(&self) -> String {
        format!("{} x {} ({})", self.disks, show_size(self.disk_bytes), self.raid.name())
    }

    fn wanted(options: &DemoOptions) -> Result<Self, DemoError> {
        let shape = Self {
            disks: options.disks.unwrap_or(DISKS_DEFAULT),
            disk_bytes: options.disk_bytes.unwrap_or(DISK_BYTES_DEFAULT) & !0xfff,
            raid: options.raid.unwrap_or_default(),
        };
        let disks_min = shape.raid.parity_disks() + 2;
        if usize::from(shape.disks) < disks_min || shape.disks > DISKS_MAX {
            return Err(DemoError::Options(format!(
                "--disks {}: {} takes {disks_min} to {DISKS_MAX} disks",
                shape.disks,
                shape.raid.name()
            )));
        }
        if shape.disk_bytes < DISK_BYTES_MIN {
            return Err(DemoError::Options(format!(
                "--disk-size {}: a disk has at least {}",
                show_size(shape.disk_bytes),
                show_size(DISK_BYTES_MIN)
            )));
        }
        Ok(shape)
    }

    /// One disk is a spare, unless there are just enough for a group.
    fn spares(&self) -> u16 {
        u16::from(usize::from(self.disks) > self.raid.parity_disks() + 2)
    }
}

struct Dir {
    state: StateDir,
}

impl Dir {
    fn disk(&self, number: u16) -> PathBuf {
        self.state.file(&format!("{DISK_PREFIX}{number:02}{DISK_SUFFIX}"))
    }

    /// Disk files there are, by name; added ones (`cairn disk add`) are in the database.
    fn disks(&self) -> Result<Vec<PathBuf>, DemoError> {
        let io = |source| DemoError::Io { path: self.state.path().to_owned(), source };
        let mut out = Vec::new();
        for entry in fs::read_dir(self.state.path()).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with(DISK_PREFIX) && name.ends_with(DISK_SUFFIX) {
                out.push(path);
            }
        }
        out.sort();
        Ok(out)
    }

    fn remove(&self, name: &str) -> Result<(), DemoError> {
        let path = self.state.file(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|source| DemoError::Io { path, source }),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), DemoError> {
        let (path, fresh) = (self.state.file(name), self.state.file(&format!("{name}.new")));
        let put = || {
            let mut file = fs::File::create(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        put().map_err(|source| DemoError::Io { path: path.clone(), source })
    }

    fn clear(&self) -> Result<(), DemoError> {
        self.remove("demo.json")?;
        for path in self.disks()? {
            fs::remove_file(&path).map_err(|source| DemoError::Io { path, source })?;
        }
        for name in [crate::front::DATABASE_FILE, crate::front::TOKEN_FILE, "endpoint.json"] {
            self.remove(name)?;
        }
        self.remove("creating")
    }

    fn shape(&self) -> Result<Option<Shape>, DemoError> {
        let path = self.state.file("demo.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|e| DemoError::Io {
                path,
                source: io::Error::new(io::ErrorKind::InvalidData, e),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DemoError::Io { path, source }),
        }
    }

    /// Makes the disk files of a new demo, or says how the one that is there was made.
    fn prepare(&self, options: &DemoOptions) -> Result<(Shape, Formation), DemoError> {
        let wanted = Shape::wanted(options)?;
        let half_made = self.state.file("creating").exists() && self.shape()?.is_none();
        if options.fresh == Fresh::Yes || half_made {
            self.clear()?;
        }
        if let Some(there) = self.shape()? {
            let asked = Shape {
                disks: options.disks.unwrap_or(there.disks),
                disk_bytes: options.disk_bytes.map_or(there.disk_bytes, |b| b & !0xfff),
                raid: options.raid.unwrap_or(there.raid),
            };
            if asked != there {
                return Err(DemoError::OtherShape {
                    dir: self.state.path().to_owned(),
                    there: there.words(),
                    asked: asked.words(),
                });
            }
            return Ok((there, Formation::Refused));
        }
        if !self.disks()?.is_empty() {
            return Err(DemoError::Unknown { dir: self.state.path().to_owned() });
        }
        self.write("creating", "")?;
        for number in 0..wanted.disks {
            let blocks = Blocks::for_bytes(wanted.disk_bytes);
            create_file_disk(&self.disk(number), blocks)?;
        }
        for path in options.nvram.iter().filter(|p| !p.exists()) {
            // As large as a disk: the smallest one decides how large the log is.
            create_file_disk(path, Blocks::for_bytes(wanted.disk_bytes))?;
        }
        Ok((wanted, Formation::Allowed))
    }

    fn finish(&self, shape: &Shape) -> Result<(), DemoError> {
        let text = serde_json::to_string_pretty(shape).map_err(|e| DemoError::Io {
            path: self.state.file("demo.json"),
            source: io::Error::other(e),
        })?;
        self.write("demo.json", &text)?;
        self.remove("creating")
    }
}

/// The volume is made when it is missing (after a new aggregate, or a kill before it was there).
async fn ensure_volume(mhost: &std::sync::Arc<MHost>) -> Result<(), DemoError> {
    if mhost.volume(VOLUME).is_err() {
        let size_bytes = mhost.largest_volume().await.map_err(DemoError::Volume)?;
        let request = VolumeCreate {
            name: VOLUME.to_owned(),
            size_bytes,
            junction: None,
            rules: vec![ExportRule::everybody(RuleSquash::None)],
        };
        let job = mhost.create_volume(request).map_err(DemoError::Volume)?;
        let job = mhost.wait_job(job.id).await.map_err(DemoError::Volume)?;
        if job.state != JobState::Done {
            return Err(DemoError::Volume(ApiError::conflict(job.message, job.what_to_do)));
        }
    }
    Ok(())
}

fn node_config(
    options: &DemoOptions,
    dir: &Path,
    shape: &Shape,
    disks: Vec<PathBuf>,
) -> NodeConfig {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    NodeConfig {
        front: FrontConfig {
            state_dir: dir.to_owned(),
            nfs: SocketAddr::new(options.listen, options.nfs_port),
            workers: 0,
            rpcbind: options.rpcbind,
            rpcbind_port: RPCBIND_PORT,
            rest: RestEndpoint::Tcp(SocketAddr::new(loopback, options.rest_port)),
            metrics_open: false,
        },
        storage: StorageConfig {
            disks,
            log_devices: options.nvram.clone(),
            log_devices_nonvolatile: true,
            log_bytes: None,
            cache_bytes: options.cache_bytes,
            driver: options.driver,
            raid: shape.raid,
            spares: shape.spares(),
        },
    }
}

/// The line that says that everything runs, for programs.
#[derive(Serialize, Deserialize)]
pub struct ReadyLine {
    /// Address of NFS and MOUNT.
    pub nfs: String,
    /// Address of REST.
    pub rest: String,
    /// Path to mount.
    pub export: String,
    /// Port of NFS and MOUNT.
    pub nfs_port: u16,
    /// File with the token of REST.
    pub token_file: PathBuf,
    /// Directory.
    pub dir: PathBuf,
    /// Process.
    pub pid: u32,
}

/// How clients mount it.
fn how_to_mount(ready: &ReadyLine, listen: IpAddr, shape: &Shape, rpcbind: Rpcbind) -> String {
    let host = if listen.is_unspecified() { "ADDRESS".to_owned() } else { listen.to_string() };
    let host =
        if listen.is_ipv6() && !listen.is_unspecified() { format!("[{host}]") } else { host };
    let port = ready.nfs_port;
    let with = match rpcbind {
        Rpcbind::Off => "(with rpcbind: start with --rpcbind serve or --rpcbind register, then)",
        Rpcbind::Serve | Rpcbind::Register => "with rpcbind:",
    };
    format!(
        "Cairn {version}: {shape}, volume {VOLUME}\n\
         Mount from Linux, as root, without rpcbind:\n  \
         mount -t nfs -o vers=3,proto=tcp,port={port},mountport={port},mountproto=tcp,nolock \
         {host}:{export} /mnt\n\
         {with}\n  mount -t nfs -o vers=3,proto=tcp,nolock {host}:{export} /mnt\n\
         Manage:\n  cairn --dir {dir} status\n",
        version = env!("CARGO_PKG_VERSION"),
        shape = shape.words(),
        export = ready.export,
        dir = ready.dir.display(),
    )
}

fn say(text: &str) -> Result<(), DemoError> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    done.map_err(|source| DemoError::Io { path: PathBuf::from("standard output"), source })
}

async fn serve(options: DemoOptions) -> Result<(), DemoError> {
    let mut stop = StopSignal::catch().map_err(NodeError::from)?;
    let world: World =
        cairn_sys::real::world(tokio::runtime::Handle::current()).map_err(NodeError::from)?;
    let dir = Dir { state: StateDir::open(&options.dir)? };
    let (shape, formation) = dir.prepare(&options)?;
    let disks = dir.disks()?;
    let config = node_config(&options, dir.state.path(), &shape, disks);
    let files = Dir { state: dir.state.view() };
    let node = Node::start(&world, dir.state, &config, formation).await?;
    let started = start_volume(&files, &node, &shape).await;
    if let Err(e) = started {
        // The first error is the one to tell.
        if let Err(second) = node.stop().await {
            tracing::error!("{second}");
        }
        return Err(e);
    }
    let ready = ReadyLine {
        nfs: node.front.nfs_addr().to_string(),
        rest: node.front.rest().to_string(),
        export: format!("/{VOLUME}"),
        nfs_port: node.front.nfs_addr().port(),
        token_file: node.front.token_file().to_owned(),
        dir: files.state.path().to_owned(),
        pid: std::process::id(),
    };
    let line = serde_json::to_string(&ready).map_err(|e| DemoError::Options(e.to_string()))?;
    files.write("endpoint.json", &line)?;
    say(&how_to_mount(&ready, options.listen, &shape, options.rpcbind))?;
    say(&format!("READY {line}\n"))?;
    Ok(node.serve(&world, &mut stop).await?)
}

async fn start_volume(dir: &Dir, node: &Node, shape: &Shape) -> Result<(), DemoError> {
    ensure_volume(node.front.mhost()).await?;
    dir.finish(shape)
}

/// Runs a demo until SIGTERM or SIGINT.
///
/// # Errors
/// See [`DemoError`].
pub fn run(options: DemoOptions) -> Result<(), DemoError> {
    crate::daemon::runtime().map_err(NodeError::from)?.block_on(serve(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> DemoOptions {
        DemoOptions {
            dir: dir.to_owned(),
            disks: None,
            disk_bytes: Some(DISK_BYTES_MIN),
            raid: None,
            listen: Ipv4Addr::LOCALHOST.into(),
            nfs_port: 0,
            rest_port: 0,
            cache_bytes: 64 << 20,
            rpcbind: Rpcbind::Off,
            driver: DriverChoice::Auto,
            nvram: Vec::new(),
            fresh: Fresh::No,
        }
    }

    struct TempDir(PathBuf);
    impl TempDir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cairn-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }
    impl Drop for TempDir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn open(dir: &TempDir) -> Dir {
        Dir { state: StateDir::open(&dir.0).unwrap() }
    }

    #[test]
    fn new_demo_makes_sparse_disks_and_is_taken_up_again() {
        let temp = TempDir::new("demo-new");
        let dir = open(&temp);
        let (shape, formation) = dir.prepare(&options(&temp.0)).unwrap();
        assert_eq!((shape.disks, formation), (8, Formation::Allowed));
        assert_eq!(dir.disks().unwrap().len(), 8);
        dir.finish(&shape).unwrap();
        let again = DemoOptions { disk_bytes: None, ..options(&temp.0) };
        assert_eq!(dir.prepare(&again).unwrap(), (shape, Formation::Refused));
    }

    #[test]
    fn demo_that_was_killed_while_being_made_is_made_anew() {
        let temp = TempDir::new("demo-killed");
        let dir = open(&temp);
        dir.prepare(&options(&temp.0)).unwrap();
        fs::write(dir.disk(3), b"half").unwrap();
        let (_, formation) = dir.prepare(&options(&temp.0)).unwrap();
        assert_eq!(formation, Formation::Allowed);
        assert_eq!(fs::metadata(dir.disk(3)).unwrap().len(), DISK_BYTES_MIN);
    }

    #[test]
    fn other_shape_is_refused_and_fresh_replaces_it() {
        let temp = TempDir::new("demo-shape");
        let dir = open(&temp);
        let (shape, _) = dir.prepare(&options(&temp.0)).unwrap();
        dir.finish(&shape).unwrap();
        let other = DemoOptions { disks: Some(5), ..options(&temp.0) };
        let refused = dir.prepare(&other).unwrap_err().to_string();
        assert!(refused.contains("--fresh") && refused.contains("8 x 64.0 MiB"), "{refused}");
        let fresh = DemoOptions { fresh: Fresh::Yes, ..other };
        assert_eq!(dir.prepare(&fresh).unwrap().0.disks, 5);
    }

    #[test]
    fn foreign_disk_files_are_left_alone() {
        let temp = TempDir::new("demo-foreign");
        let dir = open(&temp);
        fs::write(dir.disk(0), b"precious").unwrap();
        assert!(matches!(dir.prepare(&options(&temp.0)), Err(DemoError::Unknown { .. })));
        assert_eq!(fs::read(dir.disk(0)).unwrap(), b"precious");
    }

    #[test]
    fn second_demo_in_the_same_directory_is_refused() {
        let temp = TempDir::new("demo-lock");
        let _first = open(&temp);
        assert!(matches!(StateDir::open(&temp.0), Err(StateDirError::InUse { .. })));
    }

    #[test]
    fn too_few_and_too_small_disks_are_refused_with_advice() {
        let temp = TempDir::new("demo-few");
        let few = DemoOptions { disks: Some(3), ..options(&temp.0) };
        assert!(Shape::wanted(&few).unwrap_err().to_string().contains("4 to 64"));
        let small = DemoOptions { disk_bytes: Some(1 << 20), ..options(&temp.0) };
        assert!(Shape::wanted(&small).unwrap_err().to_string().contains("64.0 MiB"));
    }
}
