//! CREATE, MKDIR, SYMLINK, MKNOD: a new object under a name.

use bytes::Bytes;
use cairn_oncrpc::Body;
use cairn_oncrpc::xdr::{DecodeError, Decoder, Put};
use cairn_op::{
    Attrs, Before, CreateHow, DeviceNo, FileHandle, LinkTarget, NodeKind, Op, Verifier,
};

use super::wire::{ArgsError, Nfsstat, dir_and_name, put_handle, put_post_op, put_wcc, set_attrs};

pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    let how = match d.u32()? {
        0 => CreateHow::Unchecked(set_attrs(d)?),
        1 => CreateHow::Guarded(set_attrs(d)?),
        2 => CreateHow::Exclusive(Verifier(*d.fixed::<[u8; 8]>()?)),
        value => return Err(DecodeError::BadValue { value }.into()),
    };
    Ok(Op::Create { dir, name: name.check()?, how })
}

pub(super) fn decode_mkdir(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    let set = set_attrs(d)?;
    Ok(Op::MakeDir { dir, name: name.check()?, set })
}

pub(super) fn decode_symlink(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    let set = set_attrs(d)?;
    let target = d.opaque(u32::MAX)?;
    let name = name.check()?;
    let target = LinkTarget::new(Bytes::copy_from_slice(target))?;
    Ok(Op::Symlink { dir, name, target, set })
}

pub(super) fn decode_mknod(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let (dir, name) = dir_and_name(d)?;
    let ftype = d.u32()?;
    if !matches!(ftype, 3 | 4 | 6 | 7) {
        return Err(ArgsError::Refused(Nfsstat::BAD_TYPE));
    }
    let set = set_attrs(d)?;
    let kind = match ftype {
        3 => NodeKind::BlockDevice(device(d)?),
        4 => NodeKind::CharDevice(device(d)?),
        6 => NodeKind::Socket,
        _ => NodeKind::Fifo,
    };
    Ok(Op::MakeNode { dir, name: name.check()?, kind, set })
}

fn device(d: &mut Decoder<'_>) -> Result<DeviceNo, DecodeError> {
    Ok(DeviceNo { major: d.u32()?, minor: d.u32()? })
}

pub(super) fn encode(
    body: &mut Body,
    obj: &FileHandle,
    attrs: &Attrs,
    (before, after): (&Before, &Attrs),
) {
    body.bytes.put_u32(0);
    body.bytes.put_u32(1);
    put_handle(&mut body.bytes, obj);
    put_post_op(&mut body.bytes, Some(attrs));
    put_wcc(&mut body.bytes, before, after);
}
