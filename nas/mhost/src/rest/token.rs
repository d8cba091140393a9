//! The token: 32 random bytes in hexadecimal, in a file that only its owner can read.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cairn_sys::World;

/// Digits of a token.
const TOKEN_DIGITS: usize = 64;

/// Why the token could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("token file {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others can read it.
    #[error("token file {path} has mode {mode:03o}; make it private: chmod 600 {path}")]
    Readable {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds something else.
    #[error("token file {path} holds no token; remove it, and a new one is made at the start")]
    Malformed {
        /// Which.
        path: PathBuf,
    },
}

/// The token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl core::fmt::Debug for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads the token from its file, or makes both.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn load_or_create(path: &Path, world: &World) -> Result<Self, TokenError> {
        let io = |source| TokenError::Io { path: path.to_owned(), source };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let mode = std::fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Readable { path: path.to_owned(), mode });
                }
                Self::parse(text.trim())
                    .ok_or_else(|| TokenError::Malformed { path: path.to_owned() })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut text = String::with_capacity(TOKEN_DIGITS);
                for byte in [world.random_16(), world.random_16()].concat() {
                    text.push_str(&format!("{byte:02x}"));
                }
                // Under its name only when it is whole: a kill leaves no half token.
                let fresh = path.with_extension("new");
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let mut file = options.open(&fresh).map_err(io)?;
                file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(io)?;
                file.write_all(text.as_bytes()).map_err(io)?;
                file.write_all(b"\n").map_err(io)?;
                file.sync_all().map_err(io)?;
                std::fs::rename(&fresh, path).map_err(io)?;
                Ok(Self(text))
            }
            Err(e) => Err(io(e)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let good = text.len() == TOKEN_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| Self(text.to_owned()))
    }

    /// Whether `given` is the token; takes the same time wherever they differ.
    pub fn matches(&self, given: &str) -> bool {
        if given.len() != self.0.len() {
            return false;
        }
        self.0.bytes().zip(given.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }

    /// The digits, for a client.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
