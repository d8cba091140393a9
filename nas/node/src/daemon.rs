//! `cairn daemon`: runs a node from its configuration file until a signal ends it.

use std::path::Path;
use std::sync::Arc;

use cairn_cf::DModule;
use cairn_sys::World;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ConfigError, NodeConfig};
use crate::front::{Front, FrontError};
use crate::statedir::{StateDir, StateDirError};
use crate::storage::{Formation, Storage, StorageError};

/// Variable that says what is logged (`info`, `debug`, `cairn_nmod=debug`, ...).
pub const LOG_VARIABLE: &str = "CAIRN_LOG";

/// Why a node did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The machine's memory.
    #[error(transparent)]
    Memory(#[from] crate::memory::TooLarge),
    /// Disks, aggregate, storage manager.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Network, configuration database, REST.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// The configuration database, before the front starts.
    #[error(transparent)]
    Db(#[from] cairn_mhost::db::DbError),
    /// An order of the node itself to its M-host.
    #[error(transparent)]
    Order(#[from] cairn_mhost::ApiError),
    /// The runtime or its signals.
    #[error("the system refuses threads, signals or random numbers: {0}")]
    System(#[from] std::io::Error),
}

/// Sends log lines to standard error; call once, at the start of the program.
pub fn init_log(default: &str) {
    let asked = std::env::var(LOG_VARIABLE).ok();
    let (filter, understood) = log_filter(asked.as_deref(), default);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(std::io::stderr);
    if tracing_subscriber::registry().with(lines).with(filter).try_init().is_err() {
        tracing::debug!("the log was set up already");
    }
    if !understood {
        tracing::warn!(variable = LOG_VARIABLE, "not a filter of log lines; it is ignored");
    }
}

/// What is logged, and whether `asked` could be read.
fn log_filter(asked: Option<&str>, default: &str) -> (Targets, bool) {
    // As people write it: with spaces, a comma at the end, or nothing in the variable.
    let tidy = |text: &str| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(",")
    };
    let asked = asked.map(tidy).filter(|text| !text.is_empty()).map(|text| text.parse());
    let understood = !matches!(asked, Some(Err(_)));
    let filter = asked.and_then(Result::ok).or_else(|| default.parse().ok());
    (filter.unwrap_or_default(), understood)
}

/// SIGTERM or SIGINT, whichever comes first.
pub struct StopSignal {
    term: Signal,
    int: Signal,
}

impl StopSignal {
    /// From now on both signals are caught.
    ///
    /// # Errors
    /// The system refuses.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }
    /// Waits for one of them.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The runtime of a node: timers, jobs, REST and the storage manager's background work. NFS
/// connections have threads of their own.
///
/// # Errors
/// The system refuses threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_name("cairn").enable_all().build()
}

/// A node under way.
pub struct Node {
    /// What faces the network.
    pub front: Front,
    storage: Storage,
    _state: StateDir,
}

impl Node {
    /// Starts every layer from the bottom up, on a state directory that is locked already.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing runs then.
    pub async fn start(
        world: &World,
        state: StateDir,
        config: &NodeConfig,
        formation: Formation,
    ) -> Result<Self, NodeError> {
        let db = Front::database(&state)?;
        let added = cairn_mhost::MHost::added_disks(&db)?;
        crate::memory::take(config.storage.cache_bytes)?;
        let storage = Storage::open(world, &config.storage, &added, formation).await?;
        let dmodule: Arc<dyn DModule> = storage.dmodule();
        match Front::start(world, &state, db, dmodule, &config.front).await {
            Ok(front) => Ok(Self { front, storage, _state: state }),
            Err(e) => {
                // The first error is the one to tell; the aggregate is whole either way.
                if let Err(second) = storage.shutdown().await {
                    tracing::error!("{second}");
                }
                Err(e.into())
            }
        }
    }

    /// Runs until a signal ends it, then stops.
    ///
    /// # Errors
    /// The storage stopped by itself, or its last consistency point failed.
    pub async fn serve(self, world: &World, stop: &mut StopSignal) -> Result<(), NodeError> {
        let reason = tokio::select! {
            () = stop.wait() => None,
            reason = self.storage.failed(world) => Some(reason),
        };
        match reason {
            None => {
                tracing::info!("stopping");
                self.stop().await
            }
            Some(reason) => {
                // No consistency point: what is in memory is not to be trusted.
                self.front.stop().await;
                Err(StorageError::Failed(reason).into())
            }
        }
    }

    /// Stops every layer from the top down; ends with a consistency point.
    ///
    /// # Errors
    /// The consistency point failed; what was acknowledged as stable is in the log.
    pub async fn stop(self) -> Result<(), NodeError> {
        self.front.stop().await;
        self.storage.shutdown().await?;
        Ok(())
    }
}

async fn serve(config: NodeConfig, formation: Formation) -> Result<(), NodeError> {
    let mut stop = StopSignal::catch()?;
    let world = cairn_sys::real::world(tokio::runtime::Handle::current())?;
    let state = StateDir::open(&config.front.state_dir)?;
    let node = Node::start(&world, state, &config, formation).await?;
    tracing::info!(nfs = %node.front.nfs_addr(), rest = %node.front.rest(), "serving");
    node.serve(&world, &mut stop).await
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// See [`NodeError`].
pub fn run(config: &Path, formation: Formation) -> Result<(), NodeError> {
    let config = NodeConfig::read(config)?;
    runtime()?.block_on(serve(config, formation))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_log_shows_what_was_asked_for() {
        let shows =
            |asked, target: &str, level| log_filter(asked, "warn").0.would_enable(target, &level);
        assert!(shows(None, "cairn_nmod::calls", Level::WARN));
        assert!(!shows(None, "cairn_nmod::calls", Level::INFO));
        assert!(shows(Some("debug"), "cairn_nmod::calls", Level::DEBUG));
        let one = Some("info,cairn_nmod=debug");
        assert!(shows(one, "cairn_nmod::calls", Level::DEBUG));
        assert!(shows(one, "cairn_raid", Level::INFO));
        assert!(!shows(one, "cairn_raid", Level::DEBUG));
        let untidy = Some(" info , cairn_nmod=debug,");
        assert!(shows(untidy, "cairn_nmod", Level::DEBUG) && shows(untidy, "x", Level::INFO));
        assert!(shows(Some(" "), "x", Level::WARN));
        for wrong in ["cairn_nmod=loud", "=="] {
            assert!(!log_filter(Some(wrong), "warn").1, "{wrong}");
            assert!(shows(Some(wrong), "cairn_nmod", Level::WARN));
        }
    }
}
