//! What administrators, the configuration database and file handles bring.
//!
//! Layer: tests.

use std::path::Path;

use cairn_mhost::api::{DiskAdd, ExportChange, GroupAdd, VolumeChange, VolumeCreate};
use cairn_mhost::jobs::{Job, JobKind, JobState};
use cairn_mhost::model::{
    ExportRule, NodeIdentity, RuleSquash, ScrubSchedule, User, VolumeEntry, VolumeState, Vserver,
};
use cairn_nmod::HandleKey;
use cairn_node::config::NodeConfig;
use cairn_op::ObjectRef;
use cairn_units::{Fsid, Generation, InodeNo, SnapId};

/// The configuration file.
pub fn node_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(error) = NodeConfig::parse(Path::new("/etc/cairn.toml"), &text) {
        assert!(error.to_string().contains("/etc/cairn.toml"), "the file is named: {error}");
    }
}

/// Configurations with every key.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let small = "state_dir = \"/s\"\n[storage]\ndisks = [\"/dev/sdb\"]\n";
    let large = "state_dir = \"/s\"\n[nfs]\nlisten = \"10.0.0.1:20490\"\nworkers = 3\n\
        rpcbind = \"serve\"\nrpcbind_port = 1111\n[rest]\nlisten = \"127.0.0.1:80\"\n\
        metrics_without_token = true\n[storage]\ndisks = [\"/a\", \"/b\"]\n\
        log_devices = [\"/l\"]\nlog_devices_nonvolatile = true\nlog_size = \"64MiB\"\n\
        cache = \"2GiB\"\ndriver = \"threads\"\nraid = \"raid4\"\n\
        spares = 0\n";
    vec![small.into(), large.into()]
}

/// A good handle, and one of another version.
pub fn handle_seeds() -> Vec<Vec<u8>> {
    let obj = ObjectRef {
        fsid: Fsid::new(3),
        snap: SnapId::new(0),
        ino: InodeNo::new(64),
        generation: Generation::new(9),
    };
    let good = HandleKey::new([7; 16]).seal(obj).as_bytes().to_vec();
    let mut other = good.clone();
    other[0] = 2;
    vec![good, other]
}

/// A seed: the number that selects the type, then its JSON.
fn seed(number: u8, value: &impl serde::Serialize) -> Vec<u8> {
    let mut out = vec![number];
    out.extend(serde_json::to_vec(value).unwrap_or_default());
    out
}

fn rules() -> Vec<ExportRule> {
    let mut subnet = ExportRule::everybody(RuleSquash::All);
    subnet.clients = "2001:db8::/32".to_owned();
    vec![ExportRule::everybody(RuleSquash::Root), subnet]
}

/// One body of each kind, and a query.
pub fn body_seeds() -> Vec<Vec<u8>> {
    let create = VolumeCreate {
        name: "v".to_owned(),
        size_bytes: 1 << 30,
        junction: Some("/a/b".to_owned()),
        rules: rules(),
    };
    let change = VolumeChange { size_bytes: Some(1 << 31), ..VolumeChange::default() };
    vec![
        seed(0, &create),
        seed(1, &change),
        seed(2, &ExportChange { rules: rules() }),
        seed(3, &DiskAdd { locations: vec!["/dev/sdc".to_owned()] }),
        seed(4, &GroupAdd { disks: 8 }),
        seed(5, &ScrubSchedule { interval_hours: 24 }),
        b"\x06/api/v1/explain?path=%2Fv%2Fa&offset=4096".to_vec(),
    ]
}

/// One value of each table; jobs of several kinds.
pub fn value_seeds() -> Vec<Vec<u8>> {
    let volume = VolumeEntry {
        fsid: 5,
        name: "v".to_owned(),
        vserver: 1,
        junction: "/v".to_owned(),
        size_bytes: 1 << 30,
        state: VolumeState::Online,
    };
    let digits = "0123456789abcdef".repeat(2);
    let mut out = vec![
        seed(0, &NodeIdentity { uuid: digits.clone(), handle_key: digits }),
        seed(1, &Vserver { id: 1, name: "default".to_owned() }),
        seed(2, &volume),
        seed(3, &rules()),
        seed(4, &User { name: "root".to_owned(), vserver: 1, role: "admin".to_owned() }),
        seed(6, &"/dev/sdc"),
        seed(7, &ScrubSchedule::default()),
        seed(8, &17u64),
    ];
    let kinds = [
        JobKind::VolumeCreate { fsid: 5, name: "v".to_owned(), size_bytes: 1 << 30 },
        JobKind::VolumeRename { fsid: 5, from: "v".to_owned(), to: "w".to_owned() },
        JobKind::DiskAdd { locations: vec!["/dev/sdc".to_owned()] },
        JobKind::GroupGrow { group: 0, data_disks: 9 },
        JobKind::Scrub,
    ];
    for (id, what) in (1..).zip(kinds) {
        let job = Job {
            id,
            what,
            state: JobState::Running,
            step: 1,
            message: String::new(),
            what_to_do: String::new(),
            created_ns: 1_700_000_000_000_000_000,
            ended_ns: None,
        };
        out.push(seed(5, &job));
    }
    out
}
