//! Threads that run one event loop.
//!
//! Layer: beside the seams. A driver may give what such a thread asks of it to the thread's own
//! loop, in place of a thread of the driver's.

use std::cell::Cell;

thread_local! {
    static MARKED: Cell<bool> = const { Cell::new(false) };
}

/// Says that the current thread runs one event loop (a runtime of its own, with I/O) until it
/// ends, and no other after it.
pub fn mark() {
    MARKED.set(true);
}

/// Whether the current thread has been marked.
pub fn is_marked() -> bool {
    MARKED.get()
}
