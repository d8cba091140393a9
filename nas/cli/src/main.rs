//! The binary `cairn`.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// Most allocations of a node (`cairn daemon` is one, as `cairn demo` is) are freed by another thread
/// than the one that made them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match cairn_cli::run::run(cairn_cli::args::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairn: {e}");
            ExitCode::FAILURE
        }
    }
}
