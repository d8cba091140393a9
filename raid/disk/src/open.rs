//! Opening disks: exclusively, with the right flags, of a sensible size, behind the right driver.
//!
//! Layer: drivers, top. Files and block devices are opened for direct access and locked, so that
//! no two nodes ever use one disk; the lock ends with the process or the last handle.

use core::time::Duration;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_units::{BLOCK_BYTES_U64, Blocks};

use crate::device::{Device, DeviceKind};
use crate::driver::{DriverDisk, Queue};
use crate::threads::Threads;
use crate::uring::Ring;
use crate::{Disk, DiskClass, DiskInfo};

/// The smallest disk: 4 MiB.
pub const DISK_BLOCKS_MIN: Blocks = Blocks::new(1024);
/// How long a request may take unless told otherwise: longer than a disk's own retries.
const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// File systems whose files are memory, by the number that the kernel has for them: tmpfs, ramfs.
const FS_IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Which driver carries the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, or threads where the kernel refuses it.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// Threads with ordinary system calls.
    Threads,
}

/// How disks are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    /// Which driver.
    pub driver: Driver,
    /// When a request answers `TimedOut`.
    pub request_timeout: Duration,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self { driver: Driver::Auto, request_timeout: REQUEST_TIMEOUT_DEFAULT }
    }
}

/// Why a location is no usable disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// The kernel refused.
    #[error("{path}: cannot be opened as a disk: {source}")]
    Io {
        /// Which location.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process (or this one) has the disk open.
    #[error("{path}: is in use: another node, or this one, has it open")]
    InUse {
        /// Which location.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: is neither a file nor a block device")]
    NotADisk {
        /// Which location.
        path: PathBuf,
    },
    /// The size of a file is no multiple of a block: it was cut off, or is something else.
    #[error("{path}: size of {bytes} bytes is no multiple of {BLOCK_BYTES_U64}")]
    OddSize {
        /// Which location.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Smaller than [`DISK_BLOCKS_MIN`].
    #[error("{path}: {blocks} blocks are too few, a disk has at least {DISK_BLOCKS_MIN}")]
    TooSmall {
        /// Which location.
        path: PathBuf,
        /// Its size.
        blocks: Blocks,
    },
    /// Its driver threads could not be started.
    #[error("{path}: {source}")]
    Driver {
        /// Which location.
        path: PathBuf,
        /// Why.
        source: DriverError,
    },
}

/// Why a driver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel (or the container) has no usable io_uring.
    #[error("io_uring is not available: {0}")]
    Uring(#[source] io::Error),
    /// No threads.
    #[error("disk threads could not be started: {0}")]
    Threads(#[source] io::Error),
}

/// Why a file disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateDiskError {
    /// The kernel refused; an existing file is left alone.
    #[error("{path}: cannot be made: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Smaller than [`DISK_BLOCKS_MIN`].
    #[error("{path}: {blocks} blocks are too few, a disk has at least {DISK_BLOCKS_MIN}")]
    TooSmall {
        /// Which file.
        path: PathBuf,
        /// The size asked for.
        blocks: Blocks,
    },
}

/// What became of one location.
pub struct OpenedDisk {
    /// Where.
    pub location: PathBuf,
    /// The disk, or why not.
    pub disk: Result<Arc<dyn Disk>, OpenDiskError>,
}

/// Opens every location, in order. Disks that share a call share a ring (one submission path).
/// A location that fails does not keep the others from opening.
///
/// # Errors
/// When the driver that was asked for is not available; nothing is open then.
pub fn open_disks(
    locations: &[PathBuf],
    options: DriverOptions,
) -> Result<Vec<OpenedDisk>, DriverError> {
    let ring = match options.driver {
        Driver::Threads => None,
        Driver::Uring => Some(Ring::start(options).map_err(DriverError::Uring)?),
        Driver::Auto => match Ring::start(options) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::warn!(%error, "io_uring is refused; disks are driven by threads");
                None
            }
        },
    };
    let ring: Option<Arc<dyn Queue>> = ring.map(|ring| Arc::new(ring) as Arc<dyn Queue>);
    let open = |path: &PathBuf| {
        let device = open_device(path)?;
        let queue = match &ring {
            Some(ring) => ring.clone(),
            None => Arc::new(Threads::start(options).map_err(|e| OpenDiskError::Driver {
                path: path.clone(),
                source: DriverError::Threads(e),
            })?),
        };
        Ok(Arc::new(DriverDisk::new(Arc::new(device), queue)) as Arc<dyn Disk>)
    };
    let opened = locations.iter().map(|p| OpenedDisk { location: p.clone(), disk: open(p) });
    Ok(opened.collect())
}

/// Makes a sparse file of `blocks` blocks to be used as a disk, and makes it durable.
///
/// # Errors
/// When the file exists already or the host refuses.
pub fn create_file_disk(path: &Path, blocks: Blocks) -> Result<(), CreateDiskError> {
    if blocks < DISK_BLOCKS_MIN {
        return Err(CreateDiskError::TooSmall { path: path.to_owned(), blocks });
    }
    let make = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(blocks.bytes())?;
        file.sync_all()?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    make().map_err(|source| CreateDiskError::Io { path: path.to_owned(), source })
}

fn open_device(path: &Path) -> Result<Device, OpenDiskError> {
    let io = |source| OpenDiskError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    let kind = match metadata.file_type() {
        t if t.is_file() => DeviceKind::File,
        t if t.is_block_device() => DeviceKind::Block,
        _ => return Err(OpenDiskError::NotADisk { path: path.to_owned() }),
    };
    let mut file = open_direct(path, kind).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => OpenDiskError::InUse { path: path.to_owned() },
        _ => io(e),
    })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenDiskError::InUse { path: path.to_owned() });
        }
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
    if kind == DeviceKind::File && bytes % BLOCK_BYTES_U64 != 0 {
        return Err(OpenDiskError::OddSize { path: path.to_owned(), bytes });
    }
    let blocks = Blocks::new(bytes / BLOCK_BYTES_U64);
    if blocks < DISK_BLOCKS_MIN {
        return Err(OpenDiskError::TooSmall { path: path.to_owned(), blocks });
    }
    let class = match kind {
        DeviceKind::File => DiskClass::File,
        DeviceKind::Block => class_of(file.metadata().map_err(io)?.rdev()),
    };
    let info = DiskInfo { location: path.display().to_string(), class, blocks };
    let is_memory = is_memory(&file, kind);
    Ok(Device::new(file, kind, info, is_memory))
}

fn open_direct(path: &Path, kind: DeviceKind) -> io::Result<File> {
    // The kernel keeps mounted devices from being opened exclusively.
    let exclusive = if kind == DeviceKind::Block { libc::O_EXCL } else { 0 };
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    match open(libc::O_DIRECT | exclusive) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let path = path.display();
            tracing::warn!(%path, "no direct access: the host's page cache is used");
            open(exclusive)
        }
        other => other,
    }
}

/// Whether what is written is copied to its place by the processor: a file in memory, or a device
/// that the kernel says can be mapped.
fn is_memory(file: &File, kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::File => rustix::fs::fstatfs(file)
            .is_ok_and(|fs| u32::try_from(fs.f_type).is_ok_and(|t| FS_IN_MEMORY.contains(&t))),
        DeviceKind::Block => file.metadata().is_ok_and(|meta| queue_says(meta.rdev(), "dax")),
    }
}

/// Whether the kernel says so of a device's queue; that of a partition is the disk's.
fn queue_says(device: u64, what: &str) -> bool {
    let (major, minor) = (libc::major(device), libc::minor(device));
    [format!("queue/{what}"), format!("../queue/{what}")].iter().any(|name| {
        let path = format!("/sys/dev/block/{major}:{minor}/{name}");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
    })
}

/// Rotating or not, as the kernel says; flash when it does not.
fn class_of(device: u64) -> DiskClass {
    if queue_says(device, "rotational") { DiskClass::Hdd } else { DiskClass::Ssd }
}
