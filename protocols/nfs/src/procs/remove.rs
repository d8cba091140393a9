//! REMOVE, RMDIR, RENAME, LINK: names that go, move and come.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{Attrs, Before, FileHandle, Op};

use super::wire::{ArgsError, dir_and_name, handle, put_post_op, put_wcc};

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    Ok(Op::Remove { dir, name: name.check()? })
}

pub(super) fn decode_rmdir(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    Ok(Op::RemoveDir { dir, name: name.check()? })
}

pub(super) fn encode(body: &mut Body, before: &Before, after: &Attrs) {
    body.bytes.put_u32(0);
    put_wcc(&mut body.bytes, before, after);
}

pub(super) fn decode_rename(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (from_dir, from_name) = dir_and_name(d)?;
    let (to_dir, to_name) = dir_and_name(d)?;
    let (from_name, to_name) = (from_name.check()?, to_name.check()?);
    Ok(Op::Rename { from_dir, from_name, to_dir, to_name })
}

pub(super) fn encode_rename(body: &mut Body, from: (&Before, &Attrs), to: (&Before, &Attrs)) {
    body.bytes.put_u32(0);
    put_wcc(&mut body.bytes, from.0, from.1);
    put_wcc(&mut body.bytes, to.0, to.1);
}

pub(super) fn decode_link(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let obj = handle(d)?;
    let (dir, name) = dir_and_name(d)?;
    Ok(Op::Link { obj, dir, name: name.check()? })
}

pub(super) fn encode_link(body: &mut Body, attrs: &Attrs, (before, after): (&Before, &Attrs)) {
    body.bytes.put_u32(0);
    put_post_op(&mut body.bytes, Some(attrs));
    put_wcc(&mut body.bytes, before, after);
}
