//! What the kernel's error numbers mean for RAID.
//!
//! Layer: drivers, leaf. One table, used by every driver.

use std::io;

use cairn_units::{Blocks, Dbn};

use crate::DiskError;
use crate::device::{Device, DeviceKind};

/// The blocks that a request touched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) at: Dbn,
    pub(crate) count: Blocks,
}

/// Sorts a failed request by what can be done about it.
pub(crate) fn disk_error(errno: i32, kind: DeviceKind, extent: Extent) -> DiskError {
    let gone = |what: &str| {
        let kernel = io::Error::from_raw_os_error(errno);
        let Extent { at, count } = extent;
        DiskError::Gone { reason: format!("{what}: {kernel} (blocks {at}+{count})") }
    };
    match errno {
        libc::ETIMEDOUT | libc::ETIME => DiskError::TimedOut { at: extent.at },
        // Linux reports a SCSI or NVMe reservation conflict as EBADE.
        libc::EBADE => DiskError::Fenced,
        libc::ENOSPC | libc::EDQUOT => match kind {
            DeviceKind::File => gone("the host file system is full"),
            DeviceKind::Block => gone("the device has no space left behind its blocks"),
        },
        libc::ENODEV | libc::ENXIO | libc::EBADF | libc::ENOTBLK | libc::ESHUTDOWN => {
            gone("the device disappeared")
        }
        libc::EROFS | libc::EPERM | libc::EACCES => gone("the device cannot be written"),
        libc::EINVAL | libc::EOPNOTSUPP | libc::EFBIG | libc::ESTALE => {
            gone("the device refuses requests")
        }
        // EIO, EILSEQ, ENODATA, EREMOTEIO and whatever else concerns these blocks.
        _ => DiskError::Medium { at: extent.at, count: extent.count },
    }
}

/// The flush of a write that is to be stable failed: from now on nobody knows what the device
/// holds.
pub(crate) fn flush_error(device: &Device, errno: i32) -> DiskError {
    device.note_failed_flush();
    let kernel = io::Error::from_raw_os_error(errno);
    DiskError::Gone { reason: format!("flush: {kernel}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_host_file_system_is_named_and_medium_errors_stay_local() {
        let extent = Extent { at: Dbn::new(7), count: Blocks::new(3) };
        let full = disk_error(libc::ENOSPC, DeviceKind::File, extent);
        assert!(matches!(&full, DiskError::Gone { reason } if reason.contains("is full")));
        for errno in [libc::EIO, libc::EILSEQ, libc::ENODATA] {
            let medium = DiskError::Medium { at: Dbn::new(7), count: Blocks::new(3) };
            assert_eq!(disk_error(errno, DeviceKind::Block, extent), medium);
        }
        for errno in [libc::ENODEV, libc::ENXIO, libc::EBADF] {
            let gone = disk_error(errno, DeviceKind::Block, extent);
            assert!(matches!(gone, DiskError::Gone { .. }));
        }
        assert_eq!(disk_error(libc::EBADE, DeviceKind::Block, extent), DiskError::Fenced);
    }
}
