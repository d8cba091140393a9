//! The single internal stream of file operations.
