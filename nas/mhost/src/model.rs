//! What is kept in the configuration database, in the administrator's words.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Number of the virtual server that is always there.
pub const DEFAULT_VSERVER: u32 = 1;
/// Longest volume name.
pub const VOLUME_NAME_BYTES_MAX: usize = 64;
/// Rules in one export policy at the most.
pub const RULES_MAX: usize = 1000;
/// User and group of anonymous requests unless the rule says otherwise.
pub const ANONYMOUS_ID: u32 = 65534;

/// Identity and keys of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Identity, 32 hex digits.
    pub uuid: String,
    /// Key of the file handles' MAC, 32 hex digits.
    pub handle_key: String,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vserver {
    /// Number.
    pub id: u32,
    /// Name.
    pub name: String,
}

/// An administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Virtual server.
    pub vserver: u32,
    /// Role: `admin`.
    pub role: String,
}

/// Where a volume stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// A job is making it.
    Creating,
    /// In use.
    Online,
    /// A job is deleting it.
    Deleting,
}

/// A volume, as the volume location database has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Identity, never given to another volume.
    pub fsid: u64,
    /// Name.
    pub name: String,
    /// Virtual server.
    pub vserver: u32,
    /// Path at which clients find it.
    pub junction: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Where it stands.
    pub state: VolumeState,
}

/// What clients of a rule may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleAccess {
    /// Nothing.
    None,
    /// Read.
    Ro,
    /// Read and change.
    #[default]
    Rw,
}

/// Whose requests are made anonymous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleSquash {
    /// Nobody's.
    None,
    /// The superuser's.
    #[default]
    Root,
    /// Everybody's.
    All,
}

const fn anonymous() -> u32 {
    ANONYMOUS_ID
}

/// One rule of an export policy; the first that matches a client decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRule {
    /// `*`, an address, or a subnet as `10.0.0.0/8` or `2001:db8::/32`.
    pub clients: String,
    /// What they may do.
    #[serde(default)]
    pub access: RuleAccess,
    /// Who of them becomes anonymous.
    #[serde(default)]
    pub squash: RuleSquash,
    /// User of anonymous requests.
    #[serde(default = "anonymous")]
    pub anon_uid: u32,
    /// Group of anonymous requests.
    #[serde(default = "anonymous")]
    pub anon_gid: u32,
    /// Whether requests must come from a port below 1024.
    #[serde(default)]
    pub privileged_port: bool,
}

impl ExportRule {
    /// Read-write for everybody, with this squashing.
    pub fn everybody(squash: RuleSquash) -> Self {
        Self {
            clients: "*".to_owned(),
            access: RuleAccess::Rw,
            squash,
            anon_uid: ANONYMOUS_ID,
            anon_gid: ANONYMOUS_ID,
            privileged_port: false,
        }
    }
}

/// Whom a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Everybody.
    Everybody,
    /// Addresses that agree with this one in the first bits.
    Subnet {
        /// Address.
        ip: IpAddr,
        /// Bits.
        prefix: u8,
    },
}

impl Clients {
    /// Reads `*`, `ADDRESS` or `ADDRESS/BITS`.
    ///
    /// # Errors
    /// 400 with an example.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        if text == "*" {
            return Ok(Self::Everybody);
        }
        let bad = || {
            ApiError::bad(
                format!("{text:?} is neither an address nor a subnet"),
                "write `*`, an address like 192.168.1.7, or a subnet like 10.0.0.0/8",
            )
        };
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let bits_max = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits_max,
            Some(p) => p.parse::<u8>().ok().filter(|p| *p <= bits_max).ok_or_else(bad)?,
        };
        Ok(Self::Subnet { ip, prefix })
    }
}

/// Checks a list of rules.
///
/// # Errors
/// 400 that names the rule.
pub fn check_rules(rules: &[ExportRule]) -> Result<(), ApiError> {
    if rules.len() > RULES_MAX {
        return Err(ApiError::bad(
            format!("{} rules are too many", rules.len()),
            format!("use subnets; up to {RULES_MAX} rules are kept"),
        ));
    }
    for rule in rules {
        Clients::parse(&rule.clients)?;
    }
    Ok(())
}

/// Checks a volume name.
///
/// # Errors
/// 400 that says what a name is.
pub fn check_volume_name(name: &str) -> Result<(), ApiError> {
    let good = !name.is_empty()
        && name.len() <= VOLUME_NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err(ApiError::bad(
        format!("{name:?} is not a volume name"),
        "use 1 to 64 letters, digits, `_`, `-` or `.`, not beginning with `.` or `-`",
    ))
}

/// Checks a junction path.
///
/// # Errors
/// 400 that says what a path is.
pub fn check_junction(path: &str) -> Result<(), ApiError> {
    let good = path.len() <= 1024
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|n| {
                !matches!(n, "" | "." | "..") && n.len() <= 255 && !n.contains(char::is_control)
            })
        });
    if good {
        return Ok(());
    }
    Err(ApiError::bad(
        format!("{path:?} is not a path for a volume"),
        "write it like /name or /name/name, without `.`, `..` or a `/` at the end",
    ))
}

/// Settings of the scheduled scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrubSchedule {
    /// Hours between two scrubs; 0: never on its own.
    pub interval_hours: u32,
}

impl Default for ScrubSchedule {
    fn default() -> Self {
        Self { interval_hours: 7 * 24 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_read_addresses_and_subnets_and_nothing_else() {
        assert_eq!(Clients::parse("*"), Ok(Clients::Everybody));
        for good in ["10.0.0.0/8", "::1", "2001:db8::/32", "0.0.0.0/0"] {
            assert!(Clients::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "host", "10.0.0.0/33", "10.0.0/8", "::/129", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(Clients::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_junctions_are_checked() {
        assert!(check_volume_name("vol_0-a.b").is_ok());
        for bad in ["", "a/b", ".x", "-x", "ü", &"x".repeat(65)] {
            assert!(check_volume_name(bad).is_err(), "{bad}");
        }
        assert!(check_junction("/a/b").is_ok());
        for bad in ["", "/", "a", "/a/", "/a//b", "/a/../b", "/a\n"] {
            assert!(check_junction(bad).is_err(), "{bad}");
        }
    }
}
