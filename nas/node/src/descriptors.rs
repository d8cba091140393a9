//! How many connections the system's limit on open files allows.
//!
//! A process that reaches that limit can neither accept a connection nor open a disk: what NFS may
//! take of it is bounded beforehand, so that disks, the database, rpcbind and REST always find
//! theirs.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that are kept for everything but NFS: REST 128, rpcbind 64, disks and log devices,
/// the database, event loops.
const KEPT: u64 = 512;

/// Of `limit` descriptors, those that NFS connections may take, at most `wanted`.
fn share(limit: u64, wanted: usize) -> usize {
    // Below twice the kept number, half each: a node that can hardly open files serves few.
    let share = limit.saturating_sub(KEPT).max(limit / 2);
    usize::try_from(share).unwrap_or(usize::MAX).min(wanted)
}

/// Raises the limit as far as this process may, and says how many connections fit, at most
/// `wanted`.
pub(crate) fn connections(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(e) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!("the limit on open files stays as it is: {e}");
            limit = getrlimit(Resource::Nofile);
        }
    }
    let fit = share(limit.current.unwrap_or(u64::MAX), wanted);
    if fit < wanted {
        tracing::warn!(
            "{fit} NFS connections at most, not {wanted}: raise the limit on open files"
        );
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_always_kept_for_the_others() {
        for (limit, share_of_it) in
            [(u64::MAX, 4096), (20_000, 4096), (4608, 4096), (4607, 4095), (1024, 512), (64, 32)]
        {
            assert_eq!(share(limit, 4096), share_of_it, "{limit}");
        }
    }
}
