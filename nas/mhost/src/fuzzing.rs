//! Entry points for fuzzers: any bytes may be given, nothing may panic.
//!
//! Layer: beside the database and REST. What is decoded is shown and checked as well, and must
//! be the same after it was kept and read again.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{DiskAdd, ExportChange, GroupAdd, VolumeChange, VolumeCreate};
use crate::db::{Table, decode, encode};
use crate::jobs::Job;
use crate::model::{
    NodeIdentity, ScrubSchedule, User, VolumeEntry, Vserver, check_junction, check_rules,
    check_volume_name,
};

/// A value of the database whose checksum is right: the first byte says of which table.
pub fn fuzz_value(bytes: &[u8]) {
    let Some((table, json)) = bytes.split_first() else { return };
    match table % 9 {
        0 => drop(value::<NodeIdentity>(Table::Node, json)),
        1 => drop(value::<Vserver>(Table::Vservers, json)),
        2 => {
            if let Some(entry) = value::<VolumeEntry>(Table::Volumes, json) {
                drop((check_volume_name(&entry.name), check_junction(&entry.junction)));
            }
        }
        3 => {
            if let Some(rules) = value::<Vec<crate::model::ExportRule>>(Table::Policies, json) {
                drop(check_rules(&rules));
            }
        }
        4 => drop(value::<User>(Table::Users, json)),
        5 => {
            if let Some(job) = value::<Job>(Table::Jobs, json) {
                assert!(!job.what.steps().is_empty() && !job.what.title().is_empty());
                assert!(!job.what.subject().is_empty());
            }
        }
        6 => drop(value::<String>(Table::Disks, json)),
        7 => drop(value::<ScrubSchedule>(Table::Settings, json)),
        _ => drop(value::<u64>(Table::Sequences, json)),
    }
}

fn value<T: Serialize + DeserializeOwned>(table: Table, json: &[u8]) -> Option<T> {
    const KEY: &str = "1";
    let value: T = decode(table, KEY, &crate::db::frame(table, KEY, json)).ok()?;
    let again = encode(table, KEY, &value).ok()?;
    assert!(decode::<T>(table, KEY, &again).is_ok(), "a value that was read can be kept");
    Some(value)
}

/// A body or a query of REST: the first byte says of which request.
pub fn fuzz_body(bytes: &[u8]) {
    let Some((request, body)) = bytes.split_first() else { return };
    match request % 7 {
        0 => {
            if let Some(body) = json::<VolumeCreate>(body) {
                drop((check_volume_name(&body.name), check_rules(&body.rules)));
                drop(body.junction.as_deref().map(check_junction));
            }
        }
        1 => drop(json::<VolumeChange>(body)),
        2 => {
            if let Some(body) = json::<ExportChange>(body) {
                drop(check_rules(&body.rules));
            }
        }
        3 => drop(json::<DiskAdd>(body)),
        4 => drop(json::<GroupAdd>(body)),
        5 => drop(json::<ScrubSchedule>(body)),
        _ => crate::rest::fuzz_query(body),
    }
}

fn json<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(body).ok()?;
    let text = serde_json::to_vec(&read).ok()?;
    assert!(serde_json::from_slice::<T>(&text).is_ok(), "a body that was read can be written");
    Some(read)
}
