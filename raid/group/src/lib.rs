//! RAID groups and aggregates on disks.
