//! `cairnd --config FILE`: the appliance's daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use cairn_node::{Formation, daemon};
use clap::Parser;
use mimalloc::MiMalloc;

/// As in `cairn`.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A Cairn storage node.
#[derive(Parser)]
#[command(name = "cairnd", version)]
struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Form a new aggregate when the disks hold none; everything on them is lost
    #[arg(long)]
    initialize: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    daemon::init_log("info");
    let formation = if args.initialize { Formation::Allowed } else { Formation::Refused };
    match daemon::run(&args.config, formation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairnd: {e}");
            ExitCode::FAILURE
        }
    }
}
