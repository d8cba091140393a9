//! The M-host: what the administrator asks for, kept, carried out and shown.
//!
//! Layer: beside the N-module, above the D-module, which it reaches by management messages of the
//! cluster fabric ([`cairn_cf::Manage`]) only. It owns the configuration database ([`db`]), the
//! jobs ([`jobs`]) and the REST interface ([`rest`]). What must not be here: file operations on
//! behalf of clients, anything of disks or volumes but their names.
//!
//! # Invariants
//! - The configuration database is the authority for which volumes there are, where they are
//!   found and who may use them; an fsid that was ever given out is never given out again.
//! - Every change of more than one thing is a job: a sequence of idempotent steps whose position
//!   is in the database before the next step begins. A job that was begun is finished, whenever
//!   and however often the node is killed.
//! - No REST resource answers without the token.

pub mod api;
pub mod db;
mod error;
pub mod fuzzing;
pub mod jobs;
mod manage;
mod mhost;
pub mod model;
mod monitor;
pub mod rest;
mod steps;
mod views;

pub use error::ApiError;
pub use mhost::{Endpoints, MHost, MetricSource, Publish, PublishedVolume, identity};
