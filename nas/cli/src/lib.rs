//! The `cairn` command.
