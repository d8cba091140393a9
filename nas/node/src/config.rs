//! The configuration file of a node (TOML). Unknown keys are errors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::size::parse_size;

/// Port of NFS.
pub const NFS_PORT: u16 = 2049;
/// Port of rpcbind.
pub const RPCBIND_PORT: u16 = 111;
/// Smallest buffer cache.
pub const CACHE_BYTES_MIN: u64 = 16 << 20;
/// Buffer cache unless configured.
pub const CACHE_BYTES_DEFAULT: u64 = 512 << 20;
/// Sizes of a log on one disk.
const LOG_BYTES: core::ops::RangeInclusive<u64> = 2 << 20..=4 << 30;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}; name a file that can be read with --config")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what a configuration looks like.
    #[error("configuration {path}: {message}; docs/management.md lists the keys")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value makes no sense.
    #[error("configuration {path}: {key}: {message}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What to write instead.
        message: String,
    },
}

/// How clients find the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rpcbind {
    /// Not at all: they name the port.
    #[default]
    Off,
    /// From our own responder.
    Serve,
    /// From an rpcbind that runs on this machine.
    Register,
}

/// RAID layout of a new aggregate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaidLayout {
    /// One parity disk in a group.
    Raid4,
    /// Two parity disks in a group.
    #[default]
    RaidDp,
}

impl RaidLayout {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raid4 => "raid4",
            Self::RaidDp => "raid_dp",
        }
    }
    /// Parity disks in a group.
    pub const fn parity_disks(self) -> usize {
        match self {
            Self::Raid4 => 1,
            Self::RaidDp => 2,
        }
    }
}

/// How disks are driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverChoice {
    /// io_uring, or threads where the kernel refuses it.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// Threads.
    Threads,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: PathBuf,
    #[serde(default)]
    nfs: NfsFile,
    rest: Option<RestFile>,
    storage: StorageFile,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NfsFile {
    listen: Option<String>,
    workers: Option<usize>,
    #[serde(default)]
    rpcbind: Rpcbind,
    rpcbind_port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestFile {
    listen: String,
    #[serde(default)]
    metrics_without_token: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageFile {
    disks: Vec<PathBuf>,
    #[serde(default)]
    log_devices: Vec<PathBuf>,
    #[serde(default)]
    log_devices_nonvolatile: bool,
    log_size: Option<String>,
    cache: Option<String>,
    #[serde(default)]
    driver: DriverChoice,
    #[serde(default)]
    raid: RaidLayout,
    spares: Option<u16>,
}

/// Where REST listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestEndpoint {
    /// On loopback.
    Tcp(SocketAddr),
    /// On a Unix socket.
    Unix(PathBuf),
}

impl core::fmt::Display for RestEndpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "http://{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What faces the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// Where the configuration database, the token and the lock are.
    pub state_dir: PathBuf,
    /// Address of NFS and MOUNT; port 0 lets the system choose.
    pub nfs: SocketAddr,
    /// Threads that serve connections; 0: one for each processor.
    pub workers: usize,
    /// How clients find the ports.
    pub rpcbind: Rpcbind,
    /// Port of our own rpcbind.
    pub rpcbind_port: u16,
    /// Address of REST.
    pub rest: RestEndpoint,
    /// Whether `/metrics` is shown without the token.
    pub metrics_open: bool,
}

/// What lies on disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// Disks of the aggregate, in any order.
    pub disks: Vec<PathBuf>,
    /// Devices that hold the log only; none: the log lies on disks of the aggregate.
    pub log_devices: Vec<PathBuf>,
    /// Whether those keep what they took without a flush.
    pub log_devices_nonvolatile: bool,
    /// Bytes that the log of a new aggregate takes on each disk; none: by the size of the disks.
    pub log_bytes: Option<u64>,
    /// Bytes of the buffer cache.
    pub cache_bytes: u64,
    /// Disk driver.
    pub driver: DriverChoice,
    /// Layout of a new aggregate.
    pub raid: RaidLayout,
    /// Spares of a new aggregate.
    pub spares: u16,
}

/// The configuration of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// What faces the network.
    pub front: FrontConfig,
    /// What lies on disks.
    pub storage: StorageConfig,
}

/// Reads `ADDRESS`, `ADDRESS:PORT` or `[V6]:PORT`.
pub fn parse_listen(text: &str, port: u16) -> Option<SocketAddr> {
    let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    text.parse::<SocketAddr>().or(plain).ok()
}

/// Reads where REST listens: `unix:PATH`, or an address on loopback.
///
/// # Errors
/// In words, with what to write instead.
pub fn parse_rest(text: &str) -> Result<RestEndpoint, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(RestEndpoint::Unix(PathBuf::from(path))),
            false => Err(format!("{path:?} is not an absolute path; write unix:/run/cairn.sock")),
        };
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_loopback() => Ok(RestEndpoint::Tcp(addr)),
        Ok(addr) => Err(format!(
            "{addr} is not on loopback; REST carries the token in the clear, so write \
             127.0.0.1:PORT or unix:/PATH and forward it through a secured connection"
        )),
        Err(_) => Err(format!("{text:?} is no address; write 127.0.0.1:PORT or unix:/PATH")),
    }
}

impl NodeConfig {
    /// Reads the configuration file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let bad = |key: &'static str, message: String| ConfigError::Value {
            path: path.to_owned(),
            key,
            message,
        };
        if !file.state_dir.is_absolute() {
            return Err(bad("state_dir", "write an absolute path".to_owned()));
        }
        let listen = file.nfs.listen.as_deref().unwrap_or("0.0.0.0");
        let nfs = parse_listen(listen, NFS_PORT)
            .ok_or_else(|| bad("nfs.listen", format!("{listen:?}: write ADDRESS:PORT")))?;
        let rest = match &file.rest {
            Some(rest) => parse_rest(&rest.listen).map_err(|m| bad("rest.listen", m))?,
            None => RestEndpoint::Unix(file.state_dir.join("rest.sock")),
        };
        let storage = file.storage;
        if storage.disks.is_empty() {
            return Err(bad("storage.disks", "name at least one disk".to_owned()));
        }
        let log_bytes = match storage.log_size.as_deref() {
            None => None,
            Some(size) => {
                let known = parse_size(size).filter(|b| LOG_BYTES.contains(b));
                let wrong = || format!("{size:?}: write a size of 2MiB to 4GiB");
                Some(known.ok_or_else(|| bad("storage.log_size", wrong()))?)
            }
        };
        let cache_bytes = match storage.cache.as_deref() {
            None => CACHE_BYTES_DEFAULT,
            Some(size) => parse_size(size).filter(|b| *b >= CACHE_BYTES_MIN).ok_or_else(|| {
                bad("storage.cache", format!("{size:?}: write a size of at least 16MiB"))
            })?,
        };
        Ok(Self {
            front: FrontConfig {
                state_dir: file.state_dir,
                nfs,
                workers: file.nfs.workers.unwrap_or(0),
                rpcbind: file.nfs.rpcbind,
                rpcbind_port: file.nfs.rpcbind_port.unwrap_or(RPCBIND_PORT),
                rest,
                metrics_open: file.rest.is_some_and(|r| r.metrics_without_token),
            },
            storage: StorageConfig {
                disks: storage.disks,
                log_devices: storage.log_devices,
                log_devices_nonvolatile: storage.log_devices_nonvolatile,
                log_bytes,
                cache_bytes,
                driver: storage.driver,
                raid: storage.raid,
                spares: storage.spares.unwrap_or(1),
            },
        })
    }
}

/// Any IPv4 address of this machine.
pub const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "state_dir = \"/var/lib/cairn\"\n[storage]\ndisks = [\"/dev/sdb\"]\n";

    fn parse(text: &str) -> Result<NodeConfig, String> {
        NodeConfig::parse(Path::new("/etc/cairn.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn smallest_configuration_has_sensible_defaults() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.front.nfs, "0.0.0.0:2049".parse().unwrap());
        assert_eq!(config.front.rest, RestEndpoint::Unix("/var/lib/cairn/rest.sock".into()));
        assert_eq!(config.storage.raid, RaidLayout::RaidDp);
        assert!(!config.storage.log_devices_nonvolatile, "only who says so has such devices");
        assert_eq!(config.storage.cache_bytes, CACHE_BYTES_DEFAULT);
    }

    #[test]
    fn a_log_is_neither_tiny_nor_huge() {
        let with = |size: &str| parse(&format!("{SMALL}log_size = \"{size}\"\n"));
        assert_eq!(with("2MiB").unwrap().storage.log_bytes, Some(2 << 20));
        for size in ["1MiB", "5GiB", "much"] {
            assert!(with(size).unwrap_err().contains("storage.log_size"), "{size}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "state_dir = \"/s\"\n[nfs]\nlisten = \"10.0.0.1:20490\"\nworkers = 3\n\
            rpcbind = \"serve\"\nrpcbind_port = 1111\n[rest]\nlisten = \"127.0.0.1:80\"\n\
            metrics_without_token = true\n[storage]\ndisks = [\"/a\", \"/b\"]\n\
            log_devices = [\"/l\"]\nlog_devices_nonvolatile = true\nlog_size = \"64MiB\"\ncache = \"2GiB\"\ndriver = \"threads\"\nraid = \"raid4\"\n\
            spares = 0\n";
        let config = parse(text).unwrap();
        assert_eq!(config.front.workers, 3);
        assert_eq!(config.front.rpcbind, Rpcbind::Serve);
        assert_eq!(config.front.rpcbind_port, 1111);
        assert!(config.front.metrics_open);
        assert_eq!(config.storage.cache_bytes, 2 << 30);
        assert_eq!(config.storage.log_devices, vec![PathBuf::from("/l")]);
        assert!(config.storage.log_devices_nonvolatile);
        assert_eq!(config.storage.log_bytes, Some(64 << 20));
        assert_eq!((config.storage.raid, config.storage.spares), (RaidLayout::Raid4, 0));
        assert_eq!(config.storage.driver, DriverChoice::Threads);
    }

    #[test]
    fn unknown_key_is_named_with_its_line() {
        let text = SMALL.replace("[storage]", "[storage]\ncahce = \"1G\"");
        let error = parse(&text).unwrap_err();
        assert!(error.contains("cahce") && error.contains("line 3"), "{error}");
        assert!(error.contains("docs/management.md"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_advice() {
        let with = |section: &str| parse(&format!("{SMALL}\n{section}")).unwrap_err();
        let rest = with("[rest]\nlisten = \"0.0.0.0:80\"");
        assert!(rest.contains("rest.listen") && rest.contains("loopback"), "{rest}");
        let nfs = with("[nfs]\nlisten = \"here\"");
        assert!(nfs.contains("nfs.listen") && nfs.contains("ADDRESS:PORT"), "{nfs}");
        let cache = parse(&SMALL.replace("[storage]", "[storage]\ncache = \"1KiB\"")).unwrap_err();
        assert!(cache.contains("16MiB"), "{cache}");
        let none = parse(&SMALL.replace("\"/dev/sdb\"", "")).unwrap_err();
        assert!(none.contains("storage.disks"), "{none}");
        assert!(parse("state_dir = \"x\"\n[storage]\ndisks=[\"/a\"]").is_err());
    }

    #[test]
    fn rest_listens_on_loopback_or_a_socket_only() {
        assert!(parse_rest("[::1]:80").is_ok());
        assert!(parse_rest("unix:/run/x").is_ok());
        for bad in ["unix:x", "10.0.0.1:80", "80", ""] {
            assert!(parse_rest(bad).is_err(), "{bad}");
        }
    }
}
