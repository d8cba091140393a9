//! `cairn-baseline DIR [DISK_BYTES]`: nfsserve's NFSv3 front end on our storage.
//!
//! Layer: benchmarks. Shows what our own front end gains: same disks, same storage manager, same
//! machine, another RPC layer. One volume, everybody is the superuser (the crate does not pass
//! credentials on), every write is stable (nor does it pass that on). Prints `READY {"nfs":..}`.

mod adapter;

use std::path::PathBuf;
use std::sync::Arc;

use adapter::Volume;
use anyhow::{Context, bail};
use cairn_cf::{Manage, Managed};
use cairn_node::config::{CACHE_BYTES_DEFAULT, DriverChoice, RaidLayout, StorageConfig};
use cairn_node::{Formation, Storage};
use cairn_raid_disk::create_file_disk;
use cairn_units::{Blocks, Fsid};
use nfsserve::tcp::{NFSTcp, NFSTcpListener};

/// Disks, as many as the demo has.
const DISKS: u16 = 8;
/// Bytes of a disk unless asked otherwise.
const DISK_BYTES: u64 = 2 << 30;
const FSID: Fsid = Fsid::new(1);

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("cairn-baseline DIR [DISK_BYTES]")?);
    let disk_bytes = args.next().map_or(Ok(DISK_BYTES), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    let mut disks = Vec::new();
    for number in 0..DISKS {
        let path = dir.join(format!("disk-{number:02}.img"));
        if !path.exists() {
            create_file_disk(&path, Blocks::for_bytes(disk_bytes))?;
        }
        disks.push(path);
    }
    let config = StorageConfig {
        disks,
        log_devices: Vec::new(),
        log_devices_nonvolatile: false,
        log_bytes: None,
        cache_bytes: CACHE_BYTES_DEFAULT,
        driver: DriverChoice::Auto,
        raid: RaidLayout::RaidDp,
        spares: 1,
    };
    let world = cairn_sys::real::world(tokio::runtime::Handle::current())?;
    let storage = Storage::open(&world, &config, &[], Formation::Allowed).await?;
    let node = storage.dmodule();
    let Managed::Aggregate(aggregate) = node.manage(Manage::AggregateStatus).await? else {
        bail!("the aggregate has no status");
    };
    let size_bytes = aggregate.size_bytes / 10 * 8;
    node.manage(Manage::VolumeCreate { fsid: FSID, name: "vol0".to_owned(), size_bytes }).await?;
    let Managed::Root(root) = node.manage(Manage::VolumeRoot { fsid: FSID }).await? else {
        bail!("the volume has no root");
    };
    let volume = Volume::new(Arc::clone(&node), root);
    let mut listener = NFSTcpListener::bind("127.0.0.1:0", volume).await?;
    listener.with_export_name("vol0");
    let port = listener.get_listen_port();
    println!("READY {{\"nfs_port\":{port},\"export\":\"/vol0\"}}");
    tokio::select! {
        done = listener.handle_forever() => done?,
        done = tokio::signal::ctrl_c() => done?,
    }
    storage.shutdown().await?;
    Ok(())
}
