//! FSSTAT, FSINFO, PATHCONF: the volume and the limits of the server.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{Attrs, FileHandle, FsStat, Op};
use cairn_units::{FILE_BYTES_MAX, NAME_BYTES_MAX};

use super::wire::{ArgsError, handle, put_post_op};
use crate::config::{IO_BYTES_MAX, LISTING_BYTES_PREFERRED};

/// FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;
/// Sizes and offsets that are multiples of this are best.
const MULTIPLE_BYTES: u32 = 4096;
/// Most names of one file.
const LINKS_MAX: u32 = 65_000;
const NAME_MAX: u32 = 255;
const _: () = assert!(NAME_MAX as usize == NAME_BYTES_MAX);

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    Ok(Op::FsStat { obj: handle(d)? })
}

pub(super) fn encode(body: &mut Body, stat: &FsStat, attrs: &Attrs) {
    let out = &mut body.bytes;
    out.put_u32(0);
    put_post_op(out, Some(attrs));
    for value in [
        stat.total_bytes,
        stat.free_bytes,
        stat.available_bytes,
        stat.total_files,
        stat.free_files,
        stat.free_files,
    ] {
        out.put_u64(value);
    }
    // How long the numbers hold: they may change at any moment.
    out.put_u32(0);
}

pub(super) fn encode_fsinfo(body: &mut Body, attrs: &Attrs) {
    let out = &mut body.bytes;
    out.put_u32(0);
    put_post_op(out, Some(attrs));
    for _read_then_write in 0..2 {
        out.put_u32(IO_BYTES_MAX);
        out.put_u32(IO_BYTES_MAX);
        out.put_u32(MULTIPLE_BYTES);
    }
    out.put_u32(LISTING_BYTES_PREFERRED);
    out.put_u64(FILE_BYTES_MAX);
    // Times are kept to the nanosecond.
    out.put_u32(0);
    out.put_u32(1);
    out.put_u32(PROPERTIES);
}

pub(super) fn encode_pathconf(body: &mut Body, attrs: &Attrs) {
    let out = &mut body.bytes;
    out.put_u32(0);
    put_post_op(out, Some(attrs));
    out.put_u32(LINKS_MAX);
    out.put_u32(NAME_MAX);
    // no_trunc, chown_restricted, case_insensitive, case_preserving.
    for yes in [true, true, false, true] {
        out.put_bool(yes);
    }
}
