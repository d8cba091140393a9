//! GETATTR, ACCESS, READLINK: questions about one object.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{AccessMask, Attrs, FileHandle, LinkTarget, Op};

use super::wire::{ArgsError, handle, put_attrs, put_post_op};

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    Ok(Op::GetAttr { obj: handle(d)? })
}

pub(super) fn encode(body: &mut Body, attrs: &Attrs) {
    body.bytes.put_u32(0);
    put_attrs(&mut body.bytes, attrs);
}

pub(super) fn decode_access(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    Ok(Op::Access { obj: handle(d)?, want: AccessMask(d.u32()?) })
}

pub(super) fn encode_access(body: &mut Body, granted: AccessMask, attrs: &Attrs) {
    body.bytes.put_u32(0);
    put_post_op(&mut body.bytes, Some(attrs));
    body.bytes.put_u32(granted.0);
}

pub(super) fn decode_readlink(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    Ok(Op::ReadLink { obj: handle(d)? })
}

pub(super) fn encode_readlink(body: &mut Body, target: &LinkTarget, attrs: &Attrs) {
    body.bytes.put_u32(0);
    put_post_op(&mut body.bytes, Some(attrs));
    body.bytes.put_opaque(target.as_bytes());
}
