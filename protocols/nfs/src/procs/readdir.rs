//! READDIR and READDIRPLUS.
//!
//! Cookies are stable for the life of an entry, so the cookie verifier is always zero and any
//! cookie can be resumed at any time. The limits are asked for so that the listing fits in nearly
//! every case; the encoder counts exactly all the same and leaves out what does not fit.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put, padding};
use cairn_op::{Attrs, Entry, FileHandle, ListLimits, Op, WithFiles};
use cairn_sys::mutant;
use cairn_units::Cookie;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::wire::{
    ArgsError, Nfsstat, POST_OP_ATTR_BYTES, PostOpAttr, handle, put_handle, put_post_op,
};
use crate::config::LISTING_BYTES_MAX;

/// Bytes of a result around its entries: attributes, verifier, end of list, end of directory.
const AROUND_BYTES: u32 = POST_OP_ATTR_BYTES + 8 + 4 + 4;
/// Bytes of an entry beside its name: another follows, file id, length of the name, cookie.
const ENTRY_BYTES: u32 = 4 + 8 + 4 + 8;
/// Bytes that an entry counts against `dircount` beside its name: file id, length, cookie.
const DIRCOUNT_ENTRY_BYTES: u32 = 8 + 4 + 8;
/// Shortest name with its padding.
const NAME_BYTES_MIN: u32 = 4;

/// What the client allows a listing to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Bytes of the result.
    bytes: u32,
    /// Bytes of names with what belongs to them (READDIRPLUS only).
    dircount: u32,
    files: WithFiles,
}

/// The operation, and what its answer may be.
pub(super) fn decode(
    d: &mut Decoder<'_>,
    files: WithFiles,
) -> Result<(Op<FileHandle>, Allowed), ArgsError> {
    let dir = handle(d)?;
    let cookie = Cookie::new(d.u64()?);
    let _verifier = d.u64()?;
    let (dircount, bytes) = match files {
        WithFiles::No => (u32::MAX, d.u32()?),
        WithFiles::Yes => (d.u32()?, d.u32()?),
    };
    let allowed = Allowed { bytes: bytes.min(LISTING_BYTES_MAX), dircount, files };
    // Handles of one server have one length, in practice: the directory's own.
    let handle_bytes = u32::try_from(dir.as_bytes().len().next_multiple_of(4)).unwrap_or(64);
    let entry_bytes = match files {
        WithFiles::No => ENTRY_BYTES,
        WithFiles::Yes => ENTRY_BYTES + POST_OP_ATTR_BYTES + 4 + 4 + handle_bytes,
    };
    let limits = ListLimits {
        entries_max: (dircount / (DIRCOUNT_ENTRY_BYTES + NAME_BYTES_MIN)).max(1),
        bytes_max: allowed.bytes.saturating_sub(AROUND_BYTES),
        entry_bytes,
        with_files: files,
    };
    Ok((Op::ReadDir { dir, cookie, limits }, allowed))
}

/// Bytes that a listing takes, about.
fn listing_bytes(entries: &[Entry<FileHandle>], allowed: Allowed) -> usize {
    const HANDLE_BYTES_USUAL: usize = 40;
    let each = match allowed.files {
        WithFiles::No => ENTRY_BYTES as usize,
        WithFiles::Yes => (ENTRY_BYTES + POST_OP_ATTR_BYTES) as usize + 8 + HANDLE_BYTES_USUAL,
    };
    let names: usize = entries.iter().map(|e| e.name.as_bytes().len() + 3).sum();
    (AROUND_BYTES as usize + entries.len() * each + names).min(allowed.bytes as usize + 4)
}

/// Writes the listing; fails when not even one of the entries there are fits.
pub(super) fn encode(
    body: &mut Body,
    entries: &[Entry<FileHandle>],
    mut eof: bool,
    dir: &Attrs,
    allowed: Allowed,
) -> Result<(), Nfsstat> {
    if allowed.bytes < AROUND_BYTES {
        return Err(Nfsstat::TOO_SMALL);
    }
    let out = &mut body.bytes;
    let at = out.len();
    // At once: an arena that grows while it is written is copied on the way.
    out.reserve(listing_bytes(entries, allowed));
    out.put_u32(0);
    put_post_op(out, Some(dir));
    out.put_u64(0);
    // Behind the entries come two words; the status before is not counted.
    let end = at + 4 + allowed.bytes as usize - 8;
    let mut dircount = allowed.dircount as usize;
    let mut written = 0usize;
    for entry in entries {
        let before = out.len();
        put_entry(out, entry, allowed.files);
        let name = entry.name.as_bytes().len();
        let cost = DIRCOUNT_ENTRY_BYTES as usize + name + padding(name);
        if out.len() > end || (written > 0 && cost > dircount) {
            out.truncate(before);
            eof = mutant("listing-cut-says-end");
            break;
        }
        dircount = dircount.saturating_sub(cost);
        written += 1;
    }
    if written == 0 && !eof {
        out.truncate(at);
        return Err(Nfsstat::TOO_SMALL);
    }
    out.put_u32(0);
    out.put_bool(eof);
    Ok(())
}

/// What precedes the name in `entry3` and `entryplus3`, with the word that says that there is one.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryHead {
    follows: U32,
    fileid: U64,
}

/// What follows the name in `entryplus3`, up to the handle.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryPlusTail {
    cookie: U64,
    attrs: PostOpAttr,
    handle_follows: U32,
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry<FileHandle>, files: WithFiles) {
    out.put_fixed(&EntryHead { follows: U32::new(1), fileid: U64::new(entry.ino.get()) });
    out.put_opaque(entry.name.as_bytes());
    match &entry.file {
        Some((handle, attrs)) if files == WithFiles::Yes => {
            out.put_fixed(&EntryPlusTail {
                cookie: U64::new(entry.cookie.get()),
                attrs: attrs.into(),
                handle_follows: U32::new(1),
            });
            put_handle(out, handle);
        }
        _ => {
            out.put_u64(entry.cookie.get());
            if files == WithFiles::Yes {
                out.put_u64(0);
            }
        }
    }
}
