//! The cluster fabric: file, volume and aggregate operations as messages.
