//! The simulated world: one thread, one seed, virtual time, simulated disks.
