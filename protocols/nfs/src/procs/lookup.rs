//! LOOKUP.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{Attrs, FileHandle, Op};

use super::wire::{ArgsError, dir_and_name, put_handle, put_post_op};

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    Ok(Op::Lookup { dir, name: name.check()? })
}

pub(super) fn encode(body: &mut Body, obj: &FileHandle, attrs: &Attrs, dir: &Attrs) {
    body.bytes.put_u32(0);
    put_handle(&mut body.bytes, obj);
    put_post_op(&mut body.bytes, Some(attrs));
    put_post_op(&mut body.bytes, Some(dir));
}
