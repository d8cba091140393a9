//! READ: the reply refers to the blocks of the buffer cache.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{Attrs, FileHandle, Op};
use cairn_sys::Payload;

use super::wire::{ArgsError, handle, put_post_op};
use crate::config::IO_BYTES_MAX;

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let obj = handle(d)?;
    let offset = d.u64()?;
    let count = d.u32()?.min(IO_BYTES_MAX);
    Ok(Op::Read { obj, offset, count })
}

pub(super) fn encode(body: &mut Body, data: Payload, eof: bool, attrs: &Attrs) {
    body.bytes.put_u32(0);
    put_post_op(&mut body.bytes, Some(attrs));
    body.bytes.put_u32(data.len());
    body.bytes.put_bool(eof);
    body.bytes.put_u32(data.len());
    body.payload = Some(data);
}
