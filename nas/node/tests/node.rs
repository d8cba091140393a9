//! A whole node on files in a directory: made, stopped, taken up, and refused where it must be.

#![expect(clippy::unwrap_used, reason = "test helpers outside test functions")]

use std::path::{Path, PathBuf};

use cairn_mhost::api::VolumeCreate;
use cairn_mhost::jobs::JobState;
use cairn_mhost::model::{ExportRule, RuleSquash};
use cairn_node::config::{
    DriverChoice, FrontConfig, NodeConfig, RaidLayout, RestEndpoint, Rpcbind, StorageConfig,
};
use cairn_node::daemon::{Node, NodeError};
use cairn_node::{Formation, StateDir};
use cairn_raid_disk::create_file_disk;
use cairn_sys::World;
use cairn_units::Blocks;

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cairn-node-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn disks(&self, count: usize) -> Vec<PathBuf> {
        let path = |n| self.0.join(format!("disk{n}"));
        let all: Vec<PathBuf> = (0..count).map(path).collect();
        for disk in all.iter().filter(|d| !d.exists()) {
            create_file_disk(disk, Blocks::for_bytes(64 << 20)).unwrap();
        }
        all
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn config(dir: &Path, disks: Vec<PathBuf>) -> NodeConfig {
    NodeConfig {
        front: FrontConfig {
            state_dir: dir.join("state"),
            nfs: ([127, 0, 0, 1], 0).into(),
            workers: 1,
            rpcbind: Rpcbind::Off,
            rpcbind_port: 0,
            rest: RestEndpoint::Unix(dir.join("rest.sock")),
            metrics_open: false,
        },
        storage: StorageConfig {
            disks,
            log_devices: Vec::new(),
            log_devices_nonvolatile: false,
            log_bytes: None,
            cache_bytes: 32 << 20,
            driver: DriverChoice::Auto,
            raid: RaidLayout::RaidDp,
            spares: 0,
        },
    }
}

fn run<T>(work: impl AsyncFnOnce(World) -> T) -> T {
    let runtime = cairn_node::daemon::runtime().unwrap();
    let world = cairn_sys::real::world(runtime.handle().clone()).unwrap();
    runtime.block_on(work(world))
}

async fn start(world: &World, config: &NodeConfig, form: Formation) -> Result<Node, NodeError> {
    Node::start(world, StateDir::open(&config.front.state_dir)?, config, form).await
}

async fn refused(world: &World, config: &NodeConfig, form: Formation) -> String {
    match start(world, config, form).await {
        Ok(_) => panic!("it started"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn node_comes_back_with_its_volumes_and_lets_no_second_one_in() {
    let dir = TempDir::new("again");
    let config = config(&dir.0, dir.disks(5));
    run(async |world| {
        let node = start(&world, &config, Formation::Allowed).await.unwrap();
        let mhost = node.front.mhost();
        let request = VolumeCreate {
            name: "v".to_owned(),
            size_bytes: 64 << 20,
            junction: Some("/some/where".to_owned()),
            rules: vec![ExportRule::everybody(RuleSquash::Root)],
        };
        let job = mhost.create_volume(request).unwrap();
        assert_eq!(mhost.wait_job(job.id).await.unwrap().state, JobState::Done);

        let second = refused(&world, &config, Formation::Refused).await;
        assert!(second.contains("in use by another node"), "{second}");
        let mut elsewhere = config.clone();
        elsewhere.front.state_dir = dir.0.join("other");
        let disks = refused(&world, &elsewhere, Formation::Refused).await;
        assert!(disks.contains("is in use"), "{disks}");
        node.stop().await.unwrap();
    });
    run(async |world| {
        let node = start(&world, &config, Formation::Refused).await.unwrap();
        assert_eq!(node.front.mhost().volume("v").unwrap().junction, "/some/where");
        node.stop().await.unwrap();
    });
}

/// Log devices that are declared non-volatile are written and never flushed; others are flushed.
#[test]
fn nonvolatile_log_devices_take_the_log_without_a_flush() {
    for nonvolatile in [true, false] {
        let dir = TempDir::new(if nonvolatile { "nvram" } else { "log-devices" });
        let mut all = dir.disks(7);
        let mut config = config(&dir.0, all.split_off(3));
        (config.storage.log_devices, config.storage.log_devices_nonvolatile) = (all, nonvolatile);
        for form in [Formation::Allowed, Formation::Refused] {
            run(async |world| {
                let node = start(&world, &config, form).await.unwrap();
                let mhost = node.front.mhost();
                let request = VolumeCreate {
                    name: format!("{form:?}").to_lowercase(),
                    size_bytes: 16 << 20,
                    junction: None,
                    rules: vec![ExportRule::everybody(RuleSquash::Root)],
                };
                let job = mhost.create_volume(request).unwrap();
                assert_eq!(mhost.wait_job(job.id).await.unwrap().state, JobState::Done);
                let disks = mhost.disks_view().await.unwrap();
                let is_log =
                    |at: &str| config.storage.log_devices.iter().any(|d| d == Path::new(at));
                let logs: Vec<_> = disks.iter().filter(|d| is_log(&d.location)).collect();
                assert_eq!(logs.len(), 3);
                for log in logs {
                    assert!(log.writes > 0, "{log:?}");
                    assert_eq!(log.flushes == 0, nonvolatile, "{log:?}");
                }
                let rest = disks.iter().filter(|d| !is_log(&d.location));
                assert!(rest.clone().all(|d| d.flushes > 0), "{rest:?}");
                node.stop().await.unwrap();
            });
        }
        // The names of a log device and a data disk have changed places.
        let storage = &mut config.storage;
        std::mem::swap(&mut storage.disks[0], &mut storage.log_devices[0]);
        run(async |world| {
            let node = start(&world, &config, Formation::Refused).await.unwrap();
            let disks = node.front.mhost().disks_view().await.unwrap();
            let data = disks.iter().filter(|d| d.role != "log");
            assert_eq!(data.clone().count(), 4, "{disks:?}");
            assert!(
                data.clone().all(|d| d.flushes > 0),
                "a data disk is always flushed: {disks:?}"
            );
            node.stop().await.unwrap();
        });
    }
}

/// The log takes its room from the data of each disk, when the aggregate is formed and never after.
#[test]
fn log_has_the_size_it_was_formed_with() {
    let dir = TempDir::new("log-size");
    let size = |name: &str, log: u64| {
        let at = dir.0.join(name);
        std::fs::create_dir_all(&at).unwrap();
        let at = TempDir(at);
        let mut config = config(&at.0, at.disks(5));
        config.storage.log_bytes = Some(log);
        let sizes = [Formation::Allowed, Formation::Refused].map(|form| {
            let size = run(async |world| {
                let node = start(&world, &config, form).await.unwrap();
                let aggregates = node.front.mhost().aggregates_view().await.unwrap();
                node.stop().await.unwrap();
                aggregates[0].size_bytes
            });
            config.storage.log_bytes = Some(4 << 20);
            size
        });
        assert_eq!(sizes[0], sizes[1], "{name}");
        sizes[0]
    };
    let (small, large) = (size("small", 2 << 20), size("large", 16 << 20));
    let data_disks = 3;
    let taken = data_disks * (14 << 20);
    assert!(
        small - large >= taken - (2 << 20) && small - large <= taken + (2 << 20),
        "{small} {large}"
    );
}

#[test]
fn blank_disks_are_refused_unless_told_and_nothing_is_written() {
    let dir = TempDir::new("blank");
    let disks = dir.disks(4);
    std::fs::write(&disks[1], vec![7u8; 64 << 20]).unwrap();
    let config = config(&dir.0, disks.clone());
    run(async |world| {
        let error = refused(&world, &config, Formation::Refused).await;
        assert!(error.contains("--initialize") && error.contains("disk1"), "{error}");
    });
    let bytes = std::fs::read(&disks[1]).unwrap();
    assert!(bytes.iter().all(|b| *b == 7));
}

#[test]
fn two_missing_disks_are_borne_and_three_are_an_error_that_names_them() {
    let dir = TempDir::new("missing");
    let config = config(&dir.0, dir.disks(6));
    run(async |world| {
        start(&world, &config, Formation::Allowed).await.unwrap().stop().await.unwrap();
    });
    for gone in 0..3 {
        std::fs::rename(&config.storage.disks[gone], dir.0.join(format!("away{gone}"))).unwrap();
        run(async |world| match gone {
            0 | 1 => {
                start(&world, &config, Formation::Refused).await.unwrap().stop().await.unwrap()
            }
            _ => {
                let error = refused(&world, &config, Formation::Refused).await;
                assert!(error.contains("missing") && error.contains("disk2"), "{error}");
            }
        });
    }
}

#[test]
fn taken_ports_are_errors_that_say_what_to_do() {
    let dir = TempDir::new("ports");
    let disks = dir.disks(4);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let plain = config(&dir.0, disks);
    run(async |world| {
        let mut nfs = plain.clone();
        nfs.front.nfs = at;
        let error = refused(&world, &nfs, Formation::Allowed).await;
        assert!(error.contains("in use by another program"), "{error}");
        let mut rest = plain.clone();
        rest.front.rest = RestEndpoint::Tcp(at);
        let error = refused(&world, &rest, Formation::Refused).await;
        assert!(error.contains("REST") && error.contains("in use"), "{error}");
        // And nothing is left behind that would keep the right one from starting.
        start(&world, &plain, Formation::Refused).await.unwrap().stop().await.unwrap();
    });
}
