//! `cairnd --config FILE`: the appliance's daemon. It becomes `cairn daemon` of the same directory, so
//! that a node is in one program only.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Becomes the daemon; returns why it could not.
fn become_cairn() -> io::Error {
    match std::env::current_exe() {
        Ok(own) => {
            let cairn = own.with_file_name("cairn");
            let error = Command::new(&cairn).arg("daemon").args(std::env::args_os().skip(1)).exec();
            io::Error::new(error.kind(), format!("{}: {error}", cairn.display()))
        }
        Err(error) => error,
    }
}

fn main() -> ExitCode {
    eprintln!("cairnd: {}", become_cairn());
    ExitCode::FAILURE
}
