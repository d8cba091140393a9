//! The NV log: records, halves, group commit, recovery.
