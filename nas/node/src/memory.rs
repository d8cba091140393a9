//! The memory of the buffer cache: whether the machine has it, and taking it at the start.

use cairn_sys::real::background;

/// What a node needs beside its cache: program, tables, connections. A tenth of the cache comes on
/// top.
const BESIDE_BYTES: u64 = 256 << 20;

/// The machine does not have the memory that is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cache of {} MiB does not fit into the {} MiB of memory of this machine: set `cache` in \
     [storage] (or --cache) to at most {} MiB",
    .cache >> 20, .machine >> 20, advised(*.machine) >> 20
)]
pub struct TooLarge {
    /// Bytes configured.
    cache: u64,
    /// Bytes of the machine.
    machine: u64,
}

/// The largest cache that leaves what a node needs.
fn advised(machine: u64) -> u64 {
    machine.saturating_sub(BESIDE_BYTES) / 11 * 10
}

/// Whether the cache fits; a cache that fits, but leaves too little, is only told.
fn check(cache: u64, machine: u64) -> Result<(), TooLarge> {
    if cache >= machine {
        return Err(TooLarge { cache, machine });
    }
    let (cache_mib, advised_mib) = (cache >> 20, advised(machine) >> 20);
    if cache_mib > advised_mib {
        tracing::warn!(cache_mib, advised_mib, "the cache leaves too little memory for the rest");
    }
    Ok(())
}

/// Takes the memory of the buffer cache from the kernel beside the start, not when clients first
/// write: the cache would come to be as large anyway.
///
/// # Errors
/// The machine has less. (A limit on the process alone, a cgroup's, is not looked at.)
pub fn take(cache_bytes: u64) -> Result<(), TooLarge> {
    let machine = rustix::system::sysinfo();
    check(cache_bytes, machine.totalram.saturating_mul(machine.mem_unit.into()))?;
    let pages = cairn_wafl_core::cache_blocks(cache_bytes);
    let taking = move || cairn_sys::block::reserve(pages);
    if let Err(error) = background("cairn-memory", taking) {
        tracing::warn!(%error, "memory is taken as it is needed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_the_machine_does_not_have_is_refused_with_advice() {
        let gib = 1u64 << 30;
        assert_eq!(check(2 * gib, 4 * gib), Ok(()));
        assert_eq!(check(7 * gib / 2, 4 * gib), Ok(()), "it starts, with a warning");
        let refused = check(8 * gib, 4 * gib).expect_err("it cannot be taken");
        let text = refused.to_string();
        assert!(text.contains("8192 MiB") && text.contains("4096 MiB"), "{text}");
        assert!(text.contains("at most 3490 MiB"), "{text}");
        assert_eq!(take(u64::MAX >> 1).map_err(|e| e.cache), Err(u64::MAX >> 1));
    }
}
