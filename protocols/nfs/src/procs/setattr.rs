//! SETATTR.

use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{Decoder, Put};
use cairn_op::{Attrs, Before, FileHandle, Op};

use super::wire::{ArgsError, handle, put_wcc, set_attrs, time};

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let obj = handle(d)?;
    let set = set_attrs(d)?;
    let guard = if d.bool()? { Some(time(d)?) } else { None };
    Ok(Op::SetAttr { obj, set, guard })
}

pub(super) fn encode(body: &mut Body, before: &Before, after: &Attrs) {
    body.bytes.put_u32(0);
    put_wcc(&mut body.bytes, before, after);
}
