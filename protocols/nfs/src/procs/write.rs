//! WRITE, COMMIT: the data was received straight into blocks; the reply says what was reached.

use cairn_oncrpc::xdr::{DecodeError, Decoder, Put};
use cairn_oncrpc::{Body, PayloadPlan};
use cairn_op::{Attrs, Before, FileHandle, Op, Stability, Verifier};
use cairn_sys::{Payload, mutant};

use super::wire::{ArgsError, handle, put_wcc};
use crate::config::IO_BYTES_MAX;

struct Head {
    obj: FileHandle,
    offset: u64,
    count: u32,
    stability: Stability,
    bytes: u32,
}

fn head(d: &mut Decoder<'_>) -> Result<Head, DecodeError> {
    let obj = handle(d)?;
    let offset = d.u64()?;
    let count = d.u32()?;
    let stability = match d.u32()? {
        0 => Stability::Unstable,
        1 => Stability::DataSync,
        2 => Stability::FileSync,
        value => return Err(DecodeError::BadValue { value }),
    };
    let bytes = d.u32()?;
    if count > bytes {
        return Err(DecodeError::TooLong { len: count, max: bytes });
    }
    Ok(Head { obj, offset, count, stability, bytes })
}

/// Where the data of a WRITE is in its arguments (which may be cut off behind the head).
pub(super) fn payload(args: &[u8]) -> Option<PayloadPlan> {
    let mut d = Decoder::new(args);
    let head = head(&mut d).ok()?;
    let at = args.len() - d.rest().len();
    Some(PayloadPlan { at, file_offset: head.offset, bytes: head.bytes })
}

/// A request for more than [`IO_BYTES_MAX`] is done in part, and the reply says so.
pub(super) fn decode(
    d: &mut Decoder<'_>,
    data: Option<Payload>,
) -> Result<Op<FileHandle>, ArgsError> {
    let Head { obj, offset, count, stability, bytes } = head(d)?;
    let Some(data) = data else {
        let have = d.rest().len();
        return Err(DecodeError::Truncated { have, need: bytes as usize }.into());
    };
    let data = data.truncated(count.min(IO_BYTES_MAX));
    Ok(Op::Write { obj, offset, data, stability })
}

pub(super) struct Written<'a> {
    pub(super) count: u32,
    pub(super) stability: Stability,
    pub(super) verifier: Verifier,
    pub(super) before: &'a Before,
    pub(super) after: &'a Attrs,
}

pub(super) fn encode(body: &mut Body, w: &Written<'_>) {
    body.bytes.put_u32(0);
    put_wcc(&mut body.bytes, w.before, w.after);
    body.bytes.put_u32(w.count);
    let stability =
        if mutant("unstable-called-stable") { Stability::FileSync } else { w.stability };
    body.bytes.put_u32(match stability {
        Stability::Unstable => 0,
        Stability::DataSync => 1,
        Stability::FileSync => 2,
    });
    body.bytes.put_opaque_fixed(&w.verifier.0);
}

pub(super) fn decode_commit(d: &mut Decoder<'_>) -> Result<Op<FileHandle>, ArgsError> {
    let obj = handle(d)?;
    let offset = d.u64()?;
    let count = u64::from(d.u32()?);
    Ok(Op::Commit { obj, offset, count })
}

pub(super) fn encode_commit(body: &mut Body, verifier: Verifier, before: &Before, after: &Attrs) {
    body.bytes.put_u32(0);
    put_wcc(&mut body.bytes, before, after);
    body.bytes.put_opaque_fixed(&verifier.0);
}
