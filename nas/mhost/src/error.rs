//! What the administrator is told when something is refused: what happened and what to do.

use cairn_cf::ManageError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::DbError;

/// A refused request. On the wire `{"error": .., "what_to_do": ..}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{error}; {what_to_do}")]
pub struct ApiError {
    /// HTTP status.
    #[serde(skip)]
    pub status: u16,
    /// What happened.
    pub error: String,
    /// What to do about it.
    pub what_to_do: String,
}

impl ApiError {
    /// With its HTTP status.
    pub fn new(status: u16, error: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { status, error: error.into(), what_to_do: what_to_do.into() }
    }
    /// 400: the request makes no sense.
    pub fn bad(error: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self::new(400, error, what_to_do)
    }
    /// 404: no such thing.
    pub fn missing(error: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self::new(404, error, what_to_do)
    }
    /// 409: not in this state.
    pub fn conflict(error: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self::new(409, error, what_to_do)
    }
    /// 500: an answer that does not belong to the question.
    pub(crate) fn unexpected() -> Self {
        Self::new(
            500,
            "the storage layer gave an answer of another kind",
            "report this with the node's log",
        )
    }
}

impl From<DbError> for ApiError {
    fn from(e: DbError) -> Self {
        Self::new(500, e.to_string(), "look at the node's log and the disk of its state directory")
    }
}

impl From<ManageError> for ApiError {
    fn from(e: ManageError) -> Self {
        let text = e.to_string();
        match e {
            ManageError::NoSuchVolume(_) => {
                Self::missing(text, "`cairn volume list` shows the volumes")
            }
            ManageError::NameTaken(_) => Self::conflict(text, "choose another name"),
            ManageError::BadName(_) => Self::bad(text, "choose another name"),
            ManageError::NoSpace { .. } => {
                Self::new(507, text, "ask for less, delete something, or add disks")
            }
            ManageError::Refused(_) => {
                Self::conflict(text, "`cairn status` and `cairn disk list` show the state")
            }
            ManageError::NoSuchObject => Self::missing(text, "check the path"),
            ManageError::Stopped(_) => {
                Self::new(503, text, "look at the node's log, then restart the node")
            }
        }
    }
}
