//! On-disk structures of the storage manager.
