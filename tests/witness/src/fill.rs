//! Fills a directory with empty files, many requests ahead.
//!
//! Layer: above `nfs`.

use crate::{number, option};
use cairn_rawclient::nfs::{Client, Target};
use cairn_rawclient::rpc::Error;

/// Requests under way.
const DEPTH: u64 = 64;

/// `fill TARGET --dir D --prefix P --count N`.
pub(crate) fn fill(words: &[&str]) -> Result<(), Error> {
    let usage = || Error::Usage("fill TARGET --dir D --prefix P --count N".to_owned());
    let target = Target::parse(words.first().ok_or_else(usage)?)?;
    let name = option(words, "--dir").ok_or_else(usage)?;
    let prefix = option(words, "--prefix").unwrap_or("f");
    let count = number(words, "--count", 0)?;
    let root = Client::mount(&target)?;
    let mut client = Client::open(&target)?;
    let dir = match client.lookup(&root, name.as_bytes())? {
        Some(dir) => dir,
        None => client.make_dir(&root, name.as_bytes())?,
    };
    let mut answered = 0;
    for at in 0..count {
        client.send_create(&dir, format!("{prefix}{at}").as_bytes())?;
        if at + 1 - answered >= DEPTH {
            receive(&mut client)?;
            answered += 1;
        }
    }
    for _ in answered..count {
        receive(&mut client)?;
    }
    Ok(())
}

fn receive(client: &mut Client) -> Result<(), Error> {
    match client.receive_status()? {
        0 => Ok(()),
        status => Err(Error::Status(status)),
    }
}
