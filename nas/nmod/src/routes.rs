//! The table of routes: volumes, where they are, under which path, for whom.
//!
//! Life cycle: the configuration changes → a new table is built ([`Routes::new`]) → it replaces
//! the old one as a whole ([`crate::NModule::push`]) → requests that began with the old one end
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_cf::DModule;
use cairn_op::ObjectRef;
use cairn_units::{Fsid, VserverId};

use crate::policy::ExportPolicy;

/// One volume as the N-module needs it.
#[derive(Clone)]
pub struct Volume {
    /// Identity.
    pub fsid: Fsid,
    /// Virtual server that it belongs to.
    pub vserver: VserverId,
    /// Path at which the vserver's clients find it: `/` and one or more names.
    pub junction: Vec<u8>,
    /// Its root directory.
    pub root: ObjectRef,
    /// Who may use it.
    pub policy: ExportPolicy,
    /// Where it is.
    pub dmodule: Arc<dyn DModule>,
}

/// Why a table was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JunctionError {
    /// Not of the form `/name/name`.
    Malformed {
        /// Of which volume.
        fsid: Fsid,
    },
    /// Two volumes of one vserver have the same path.
    Taken {
        /// By this one first.
        by: Fsid,
        /// This one wanted it too.
        fsid: Fsid,
    },
    /// One fsid twice.
    Twice {
        /// Which.
        fsid: Fsid,
    },
}

impl core::fmt::Display for JunctionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed { fsid } => write!(f, "volume {fsid}: the junction is no path"),
            Self::Taken { by, fsid } => {
                write!(f, "volume {fsid}: its junction belongs to volume {by} already")
            }
            Self::Twice { fsid } => write!(f, "volume {fsid} is in the table twice"),
        }
    }
}
impl std::error::Error for JunctionError {}

/// All routes of the node's vservers.
#[derive(Default)]
pub struct Routes {
    volumes: BTreeMap<Fsid, Arc<Volume>>,
    junctions: BTreeMap<(VserverId, Vec<u8>), Arc<Volume>>,
    offline: BTreeSet<Fsid>,
}

/// The names of a path; empty ones and `.` mean nothing.
pub(crate) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".")
}

impl Routes {
    /// Builds a table.
    ///
    /// # Errors
    /// See [`JunctionError`].
    pub fn new(volumes: Vec<Volume>) -> Result<Self, JunctionError> {
        let mut out = Self::default();
        for volume in volumes {
            let fsid = volume.fsid;
            let plain = volume.junction.first() == Some(&b'/')
                && names(&volume.junction).all(|n| n != b".." && !n.contains(&0));
            let whole: Vec<u8> = names(&volume.junction).flat_map(|n| [b"/", n].concat()).collect();
            if !plain || whole.is_empty() || whole != volume.junction {
                return Err(JunctionError::Malformed { fsid });
            }
            let volume = Arc::new(volume);
            let key = (volume.vserver, volume.junction.clone());
            if let Some(other) = out.junctions.insert(key, volume.clone()) {
                return Err(JunctionError::Taken { by: other.fsid, fsid });
            }
            if out.volumes.insert(fsid, volume).is_some() {
                return Err(JunctionError::Twice { fsid });
            }
        }
        Ok(out)
    }

    /// Names volumes that there are, but cannot be used now: their clients are told to try again
    /// later, not that their files are gone.
    #[must_use]
    pub fn with_offline(mut self, offline: Vec<Fsid>) -> Self {
        self.offline = offline.into_iter().collect();
        self
    }

    /// Whether a volume is known to be out of use for now.
    pub fn is_offline(&self, fsid: Fsid) -> bool {
        self.offline.contains(&fsid)
    }

    /// The volume with this identity.
    pub fn volume(&self, fsid: Fsid) -> Option<&Arc<Volume>> {
        self.volumes.get(&fsid)
    }

    /// The volumes of a vserver by path.
    pub fn of_vserver(&self, vserver: VserverId) -> impl Iterator<Item = &Arc<Volume>> {
        self.junctions.iter().filter(move |((v, _), _)| *v == vserver).map(|(_, volume)| volume)
    }

    /// The volume whose junction is the longest prefix of `path` (by whole names), and the names
    /// of `path` behind it.
    pub(crate) fn longest_prefix(
        &self,
        vserver: VserverId,
        path: &[u8],
    ) -> Option<(Arc<Volume>, Vec<Vec<u8>>)> {
        let parts: Vec<&[u8]> = names(path).collect();
        (1..=parts.len()).rev().find_map(|n| {
            let head = &parts[..n];
            // A junction is a plain path: `..` in front of it is not resolved against it.
            let junction: Vec<u8> = head.iter().flat_map(|p| [b"/", *p].concat()).collect();
            let volume = self.junctions.get(&(vserver, junction))?.clone();
            Some((volume, parts[n..].iter().map(|p| p.to_vec()).collect()))
        })
    }
}
