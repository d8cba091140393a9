//! Memory for the block pool, straight from the kernel: huge pages where it has them, and present,
//! so that nobody who takes a page waits for the kernel to clear one.
//!
//! One of the few modules with unsafe code: it maps memory, and asks the kernel for a priority.

#![expect(unsafe_code, reason = "memory is mapped; priorities have no safe call")]

use core::ptr::NonNull;
use std::alloc::{Layout, handle_alloc_error};

use cairn_units::BLOCK_BYTES;

/// Alignment: a huge page of the processor.
const ALIGN: usize = 2 << 20;

/// `bytes` of zeros, aligned to a huge page, that are never given back.
///
/// # Panics
/// As an allocation that fails. `bytes` is a multiple of the alignment.
pub(crate) fn map(bytes: usize) -> NonNull<u8> {
    assert!(bytes.is_multiple_of(ALIGN), "slabs are made of huge pages");
    let whole = bytes + ALIGN;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping at a place that the kernel chooses.
    let at = unsafe { libc::mmap(core::ptr::null_mut(), whole, access, kind, -1, 0) };
    let (false, Some(start)) = (at == libc::MAP_FAILED, NonNull::new(at.cast::<u8>())) else {
        let Ok(layout) = Layout::from_size_align(bytes, ALIGN) else {
            unreachable!("size and alignment are constants")
        };
        handle_alloc_error(layout)
    };
    let skip = start.as_ptr().align_offset(ALIGN);
    // SAFETY: `skip < ALIGN`, so `bytes` behind it are inside the mapping; what lies before and
    // behind them is ours and used by nobody (nothing before them when `skip` is 0: refused, and
    // there is nothing to give back).
    unsafe {
        let base = start.add(skip);
        libc::munmap(start.as_ptr().cast(), skip);
        libc::munmap(base.as_ptr().add(bytes).cast(), whole - bytes - skip);
        // Small pages will do where this is refused.
        libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        if libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) != 0 {
            // A kernel before 5.14.
            (0..bytes).step_by(BLOCK_BYTES).for_each(|page| base.as_ptr().add(page).write(0));
        }
        base
    }
}

/// From now on this thread runs when others do not want to.
pub(crate) fn lowest_priority() {
    // SAFETY: no memory is involved; 0 is the calling thread. A refusal leaves things as they are.
    let _kept = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_zero_and_apart() {
        let (bytes, count) = (4 << 20, 3);
        let slabs: Vec<usize> = (0..count)
            .map(|n| {
                let slab = map(bytes);
                // SAFETY: the mapping is ours and `bytes` long.
                let content = unsafe { core::slice::from_raw_parts_mut(slab.as_ptr(), bytes) };
                assert!(content.iter().all(|b| *b == 0), "another slab is written in this one");
                content.fill(n + 1);
                slab.as_ptr().addr()
            })
            .collect();
        assert!(slabs.iter().all(|at| at.is_multiple_of(ALIGN)), "{slabs:x?}");
    }
}
