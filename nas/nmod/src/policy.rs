//! Export policies: which client may use a volume, and as whom.
//!
//! A policy is an ordered list of rules; the first one that matches the client's address decides,
//! and nobody is admitted by no rule. It is compiled when it is pushed, so that a request costs
//! one binary search per prefix length in use, however long the list is. (Rejected: a cache of
//! decisions per client and volume: it needs a shared map on the hot path and a bound.)

use std::net::{IpAddr, Ipv6Addr};

use cairn_op::{ClientAddr, Credential};
use cairn_sys::mutant;
use cairn_units::{Gid, Uid};

/// Ports below this one can only be had by the client machine's superuser.
const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// A range of client addresses. IPv4 addresses are kept as IPv4-mapped IPv6 ones, so that a
/// client is the same client on a socket of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    net: u128,
    prefix: u8,
}

const MAPPED_BITS: u8 = 96;

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

const fn mask(prefix: u8) -> u128 {
    match u128::MAX.checked_shl(128 - prefix as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

impl Subnet {
    /// The addresses that agree with `ip` in the first `prefix` bits of its family; `None` when
    /// the family has fewer bits. Bits behind the prefix do not matter.
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        let prefix = match ip {
            IpAddr::V4(_) if prefix <= 32 => prefix + MAPPED_BITS,
            IpAddr::V6(_) if prefix <= 128 => prefix,
            _ => return None,
        };
        Some(Self { net: bits(ip) & mask(prefix), prefix })
    }
    /// Every address of both families.
    pub const fn everybody() -> Self {
        Self { net: 0, prefix: 0 }
    }
    /// Whether `ip` lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        bits(ip) & mask(self.prefix) == self.net
    }
}

impl core::fmt::Display for Subnet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.prefix == 0 {
            return f.write_str("*");
        }
        let ip = Ipv6Addr::from_bits(self.net);
        match ip.to_ipv4_mapped() {
            Some(v4) if self.prefix == 128 => write!(f, "{v4}"),
            Some(v4) if self.prefix >= MAPPED_BITS => {
                write!(f, "{v4}/{}", self.prefix - MAPPED_BITS)
            }
            _ if self.prefix == 128 => write!(f, "{ip}"),
            _ => write!(f, "{ip}/{}", self.prefix),
        }
    }
}

/// What a rule lets its clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing: a hole in a later, wider rule.
    None,
    /// Read.
    ReadOnly,
    /// Read and change.
    ReadWrite,
}

/// Whose requests are made anonymous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Squash {
    /// Nobody's.
    None,
    /// The superuser's; group 0 is taken from everybody else.
    Root,
    /// Everybody's.
    All,
}

/// Which source ports a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortRule {
    /// Any.
    Any,
    /// Only those below 1024.
    Privileged,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Clients it is for.
    pub clients: Subnet,
    /// What they may do.
    pub access: Access,
    /// Who of them becomes anonymous.
    pub squash: Squash,
    /// Source ports.
    pub ports: PortRule,
    /// User of anonymous requests.
    pub anon_uid: Uid,
    /// Group of anonymous requests.
    pub anon_gid: Gid,
}

/// What a policy says about one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not this one.
    Refused,
    /// By this rule.
    By(Rule),
}

impl Rule {
    /// Rewrites a credential as this rule demands.
    ///
    /// With [`Squash::Root`], the superuser becomes the anonymous user with no other groups, and
    /// group 0 of anybody else becomes the anonymous group.
    pub fn squash(&self, cred: &mut Credential) {
        let anonymous = match self.squash {
            Squash::None => return,
            Squash::Root => cred.uid == Uid::new(0) && !mutant("root-not-squashed"),
            Squash::All => true,
        };
        if anonymous {
            cred.uid = self.anon_uid;
            cred.gid = self.anon_gid;
            cred.groups.clear();
            return;
        }
        for gid in core::iter::once(&mut cred.gid).chain(&mut cred.groups) {
            if *gid == Gid::new(0) {
                *gid = self.anon_gid;
            }
        }
    }
}

/// Networks of one prefix length, sorted, each with the first rule that names it.
#[derive(Clone, Debug)]
struct Level {
    prefix: u8,
    nets: Vec<(u128, usize)>,
}

/// An ordered list of rules, compiled.
#[derive(Clone, Debug, Default)]
pub struct ExportPolicy {
    rules: Vec<Rule>,
    levels: Vec<Level>,
}

impl ExportPolicy {
    /// Compiles rules; the order decides.
    pub fn new(rules: Vec<Rule>) -> Self {
        let mut levels: Vec<Level> = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let Subnet { net, prefix } = rule.clients;
            let level = match levels.iter_mut().find(|l| l.prefix == prefix) {
                Some(level) => level,
                None => {
                    levels.push(Level { prefix, nets: Vec::new() });
                    let last = levels.len() - 1;
                    &mut levels[last]
                }
            };
            level.nets.push((net, index));
        }
        for level in &mut levels {
            level.nets.sort_unstable();
            level.nets.dedup_by_key(|(net, _)| *net);
        }
        Self { rules, levels }
    }
    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
    /// The rule for a client: the first that holds its address, if that one takes its port and
    /// gives any access.
    pub fn admit(&self, client: ClientAddr) -> Admission {
        let ip = bits(client.ip);
        let first = self.levels.iter().filter_map(|level| {
            let net = ip & mask(level.prefix);
            let at = level.nets.binary_search_by_key(&net, |(n, _)| *n).ok()?;
            level.nets.get(at).map(|(_, rule)| *rule)
        });
        let Some(rule) = first.min().and_then(|i| self.rules.get(i)) else {
            return Admission::Refused;
        };
        if rule.ports == PortRule::Privileged && client.port >= UNPRIVILEGED_PORT_MIN {
            return Admission::Refused;
        }
        match rule.access {
            Access::None => Admission::Refused,
            Access::ReadOnly | Access::ReadWrite => Admission::By(*rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(clients: Subnet, access: Access) -> Rule {
        Rule {
            clients,
            access,
            squash: Squash::Root,
            ports: PortRule::Any,
            anon_uid: Uid::new(65534),
            anon_gid: Gid::new(65533),
        }
    }
    fn net(text: &str, prefix: u8) -> Subnet {
        Subnet::new(text.parse().unwrap(), prefix).unwrap()
    }
    fn client(ip: &str, port: u16) -> ClientAddr {
        ClientAddr { ip: ip.parse().unwrap(), port }
    }

    /// The plain twin: first match in order, by comparing bit by bit.
    fn naive(rules: &[Rule], client: ClientAddr) -> Admission {
        let bit = |v: u128, n: u8| v >> (127 - n) & 1;
        for r in rules {
            let same =
                (0..r.clients.prefix).all(|n| bit(bits(client.ip), n) == bit(r.clients.net, n));
            if same {
                let port = r.ports == PortRule::Any || client.port < 1024;
                let admitted = port && r.access != Access::None;
                return if admitted { Admission::By(*r) } else { Admission::Refused };
            }
        }
        Admission::Refused
    }

    // Few distinct bits, so that nets overlap and clients hit them.
    fn some_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
            (0..4u16, 0..4u16).prop_map(|(a, b)| IpAddr::from([0x2001, a, 0, 0, 0, 0, 0, b])),
            (0..4u8)
                .prop_map(|b| IpAddr::V6(std::net::Ipv4Addr::new(10, 0, 0, b).to_ipv6_mapped())),
        ]
    }
    fn some_rule() -> impl Strategy<Value = Rule> {
        let access =
            prop_oneof![Just(Access::None), Just(Access::ReadOnly), Just(Access::ReadWrite)];
        let ports = prop_oneof![Just(PortRule::Any), Just(PortRule::Privileged)];
        (some_ip(), 0..=128u8, access, ports).prop_map(|(ip, prefix, access, ports)| {
            let prefix = if ip.is_ipv4() { prefix % 33 } else { prefix };
            Rule { ports, ..rule(Subnet::new(ip, prefix).unwrap(), access) }
        })
    }

    proptest! {
        #[test]
        fn compiled_policy_decides_as_the_ordered_list(
            rules in proptest::collection::vec(some_rule(), 0..20),
            ip in some_ip(),
            port in prop_oneof![Just(1023u16), Just(1024), Just(40000)],
        ) {
            let client = ClientAddr { ip, port };
            let policy = ExportPolicy::new(rules.clone());
            prop_assert_eq!(policy.admit(client), naive(&rules, client));
        }

        #[test]
        fn squashed_credential_never_holds_root(uid in 0..3u32, gid in 0..3u32,
            groups in proptest::collection::vec(0..3u32, 0..16)) {
            let r = rule(Subnet::everybody(), Access::ReadWrite);
            let mut cred = Credential {
                uid: Uid::new(uid), gid: Gid::new(gid),
                groups: groups.into_iter().map(Gid::new).collect(),
            };
            let before = cred.clone();
            r.squash(&mut cred);
            prop_assert!(cred.uid != Uid::new(0) && !cred.in_group(Gid::new(0)));
            if uid != 0 {
                prop_assert_eq!(cred.uid, before.uid);
                prop_assert_eq!(cred.groups.len(), before.groups.len());
            }
        }
    }

    #[test]
    fn empty_policy_admits_nobody() {
        assert_eq!(ExportPolicy::default().admit(client("127.0.0.1", 1)), Admission::Refused);
    }

    #[test]
    fn earlier_wider_rule_wins_over_later_narrower_one() {
        let wide = rule(net("10.0.0.0", 8), Access::ReadOnly);
        let narrow = rule(net("10.1.2.3", 32), Access::ReadWrite);
        let at = client("10.1.2.3", 700);
        assert_eq!(ExportPolicy::new(vec![wide, narrow]).admit(at), Admission::By(wide));
        assert_eq!(ExportPolicy::new(vec![narrow, wide]).admit(at), Admission::By(narrow));
    }

    #[test]
    fn privileged_rule_refuses_port_1024() {
        let r =
            Rule { ports: PortRule::Privileged, ..rule(Subnet::everybody(), Access::ReadWrite) };
        let policy = ExportPolicy::new(vec![r]);
        assert_eq!(policy.admit(client("10.0.0.1", 1023)), Admission::By(r));
        assert_eq!(policy.admit(client("10.0.0.1", 1024)), Admission::Refused);
    }

    #[test]
    fn all_squash_makes_everybody_anonymous_without_groups() {
        let r = Rule { squash: Squash::All, ..rule(Subnet::everybody(), Access::ReadWrite) };
        let mut cred = Credential { uid: Uid::new(7), gid: Gid::new(8), groups: vec![Gid::new(9)] };
        r.squash(&mut cred);
        let nobody = Credential { uid: Uid::new(65534), gid: Gid::new(65533), groups: vec![] };
        assert_eq!(cred, nobody);
    }

    #[test]
    fn subnets_print_as_they_are_written() {
        assert_eq!(Subnet::everybody().to_string(), "*");
        assert_eq!(net("192.168.7.9", 24).to_string(), "192.168.7.0/24");
        assert_eq!(net("192.168.7.9", 32).to_string(), "192.168.7.9");
        assert_eq!(net("2001:db8::1", 32).to_string(), "2001:db8::/32");
        assert_eq!(Subnet::new("10.0.0.1".parse().unwrap(), 33), None);
    }
}
