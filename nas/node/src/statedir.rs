//! The state directory: the configuration database, the token, and a lock that keeps a second
//! node away.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or opened.
    #[error("state directory {path}: {source}; name one that this user may write to")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another node has it.
    #[error("{path} is in use by another node; stop that one, or name another directory")]
    InUse {
        /// Which.
        path: PathBuf,
    },
}

/// A state directory, locked as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Arc<File>,
}

impl StateDir {
    /// Makes the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// See [`StateDirError`].
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let path = path.canonicalize().map_err(io)?;
        let io = |source| StateDirError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(path.join("lock"));
        let lock = lock.map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::InUse { path }),
            Err(TryLockError::Error(e)) => Err(io(e)),
        }
    }

    /// Another holder of the same lock.
    #[must_use]
    pub fn view(&self) -> Self {
        Self { path: self.path.clone(), _lock: self._lock.clone() }
    }

    /// The directory, from the root on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}
