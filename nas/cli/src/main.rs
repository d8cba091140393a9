//! The binary `cairn`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cairn_cli::run::run(cairn_cli::args::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairn: {e}");
            ExitCode::FAILURE
        }
    }
}
