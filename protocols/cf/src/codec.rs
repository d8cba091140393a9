//! Frames: CF messages as bytes between nodes.
//!
//! Layer: used by the connections of a cluster only; on one node nothing is encoded. Numbers are
//! little endian and of fixed width, lists and texts carry their length in 32 bits, alternatives
//! a tag of 16 bits. File data stays outside: an encoded message is a head and a payload by
//! reference, and is decoded from a head and blocks into which the payload was received.
//!
//! ```text
//! byte 0      4      6      8     10        12    20          24            28             32
//!      magic  major  minor  kind  reserved  xid   head_bytes  payload_skip  payload_bytes
//! byte 32           36         40 ............... 40 + head_bytes ......... + payload_bytes
//!      payload_crc  head_crc   head (the message)                  payload (file bytes)
//! ```
//! `head_crc` is the CRC-32 of bytes 0..36 and the head; `payload_crc` that of the payload.
//!
//! # Invariants
//! - Decoding never panics and never allocates more than a small multiple of the bytes received;
//!   what is allocated before they are there is bounded by [`HEAD_BYTES_MAX`] and
//!   [`PAYLOAD_BYTES_MAX`].
//! - A message of a newer minor version is read as far as it is known: new fields come behind the
//!   known ones of a message. Another major version is refused.
//! - Times that only mean something on one node (deadlines) travel as time left.

mod manage;
mod ops;
mod wire;

use cairn_sys::Payload;
use cairn_units::MonoTime;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{CF_VERSION_MAJOR, CF_VERSION_MINOR, CfReply, CfRequest};
use wire::{Reader, Wire, Writer};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 40;
/// Longest head of a message.
pub const HEAD_BYTES_MAX: u32 = 4 << 20;
/// Longest payload of a message.
pub const PAYLOAD_BYTES_MAX: u32 = 4 << 20;
/// Items in one list at the most.
pub const ITEMS_MAX: u32 = 1 << 17;
const MAGIC: [u8; 4] = *b"CaCF";
/// Bytes of the header that `head_crc` covers.
const SIGNED_BYTES: usize = HEADER_BYTES - 4;

/// Number that ties a reply to its request, chosen by the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u64);

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A [`CfRequest`].
    Request,
    /// A [`CfReply`].
    Reply,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderV1 {
    magic: [u8; 4],
    major: U16,
    minor: U16,
    kind: U16,
    reserved: U16,
    xid: U64,
    head_bytes: U32,
    payload_skip: U32,
    payload_bytes: U32,
    payload_crc: U32,
    head_crc: U32,
}
const _: () = assert!(size_of::<HeaderV1>() == HEADER_BYTES);

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a frame of ours.
    #[error("not a frame of the cluster fabric")]
    Magic,
    /// Another major version.
    #[error("peer speaks version {major}, this node {CF_VERSION_MAJOR}; upgrade the older one")]
    Version {
        /// The peer's.
        major: u16,
    },
    /// Neither request nor reply, or not the one that was expected.
    #[error("frame of kind {kind}")]
    Kind {
        /// Its kind.
        kind: u16,
    },
    /// A reserved field is not zero in a version that has no use for it.
    #[error("a reserved field is in use")]
    Reserved,
    /// Longer than any message.
    #[error("a frame of {head_bytes} + {payload_bytes} bytes is too long")]
    TooLong {
        /// Head.
        head_bytes: u32,
        /// Payload.
        payload_bytes: u32,
    },
    /// A checksum does not match.
    #[error("checksum of the {part} does not match")]
    Checksum {
        /// Of which part.
        part: &'static str,
    },
    /// The message goes on behind its end.
    #[error("message cut off at byte {at}")]
    CutOff {
        /// Where.
        at: usize,
    },
    /// There is more than the message.
    #[error("{bytes} bytes behind the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A tag that this version does not know.
    #[error("{what}: unknown alternative {tag}")]
    Tag {
        /// Of which type.
        what: &'static str,
        /// The tag.
        tag: u16,
    },
    /// A value that its type refuses.
    #[error("{what}: a value that cannot be")]
    Value {
        /// Of which type.
        what: &'static str,
    },
    /// A list with too many items.
    #[error("a list of {items} items")]
    TooMany {
        /// How many.
        items: u32,
    },
    /// The payload is not the one that the head speaks of.
    #[error("the payload does not belong to the message")]
    Payload,
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The head is too long.
    #[error("a message of {bytes} bytes is too long for the cluster fabric")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// More than one payload, or too long a one.
    #[error("the payload is too long for the cluster fabric")]
    Payload,
    /// A list with too many items.
    #[error("a list of {items} items is too long for the cluster fabric")]
    TooMany {
        /// How many.
        items: usize,
    },
}

/// A message ready to send: the head with its header, then the payload's slices.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Header and head.
    pub head: Vec<u8>,
    /// File bytes, by reference.
    pub payload: Payload,
}

/// A header that was checked: what to receive next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Request or reply.
    pub kind: FrameKind,
    /// Which.
    pub xid: Xid,
    /// Bytes of head to receive.
    pub head_bytes: u32,
    /// Where in the first block the payload begins.
    pub payload_skip: u32,
    /// Bytes of payload to receive.
    pub payload_bytes: u32,
    minor: u16,
    payload_crc: u32,
    head_crc: u32,
    signed: [u8; SIGNED_BYTES],
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

fn payload_crc(payload: &Payload) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for slice in payload.slices() {
        hasher.update(slice);
    }
    hasher.finalize()
}

const fn kind_number(kind: FrameKind) -> u16 {
    match kind {
        FrameKind::Request => 1,
        FrameKind::Reply => 2,
    }
}

fn frame(kind: FrameKind, xid: Xid, writer: Writer) -> Result<Encoded, EncodeError> {
    let (body, payload) = writer.finish()?;
    let too_long = EncodeError::TooLong { bytes: body.len() };
    let head_bytes = u32::try_from(body.len()).map_err(|_| too_long.clone())?;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(too_long);
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EncodeError::Payload);
    }
    let mut header = HeaderV1 {
        magic: MAGIC,
        major: U16::new(CF_VERSION_MAJOR),
        minor: U16::new(CF_VERSION_MINOR),
        kind: U16::new(kind_number(kind)),
        reserved: U16::new(0),
        xid: U64::new(xid.0),
        head_bytes: U32::new(head_bytes),
        payload_skip: U32::new(payload.skip()),
        payload_bytes: U32::new(payload.len()),
        payload_crc: U32::new(payload_crc(&payload)),
        head_crc: U32::new(0),
    };
    header.head_crc = U32::new(crc(&[&header.as_bytes()[..SIGNED_BYTES], &body]));
    let mut head = Vec::with_capacity(HEADER_BYTES + body.len());
    head.extend_from_slice(header.as_bytes());
    head.extend_from_slice(&body);
    Ok(Encoded { head, payload })
}

/// Whether a peer's messages may hold more than this node knows.
fn is_newer(minor: u16) -> bool {
    minor.checked_sub(CF_VERSION_MINOR).is_some_and(|by| by != 0)
}

/// Encodes a request; `now` is the sender's clock, for the time left.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_request(
    xid: Xid,
    request: &CfRequest,
    now: MonoTime,
) -> Result<Encoded, EncodeError> {
    let mut writer = Writer::new(now);
    request.put(&mut writer);
    frame(FrameKind::Request, xid, writer)
}

/// Encodes a reply.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_reply(xid: Xid, reply: &CfReply, now: MonoTime) -> Result<Encoded, EncodeError> {
    let mut writer = Writer::new(now);
    reply.put(&mut writer);
    frame(FrameKind::Reply, xid, writer)
}

/// Checks a header. Head and payload are received next, with the lengths it gives.
///
/// # Errors
/// See [`DecodeError`]; the connection is of no more use then.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, DecodeError> {
    let raw: HeaderV1 = zerocopy::transmute!(*bytes);
    if raw.magic != MAGIC {
        return Err(DecodeError::Magic);
    }
    if raw.major.get() != CF_VERSION_MAJOR {
        return Err(DecodeError::Version { major: raw.major.get() });
    }
    let kind = match raw.kind.get() {
        1 => FrameKind::Request,
        2 => FrameKind::Reply,
        kind => return Err(DecodeError::Kind { kind }),
    };
    if raw.reserved.get() != 0 && !is_newer(raw.minor.get()) {
        return Err(DecodeError::Reserved);
    }
    let (head_bytes, payload_bytes) = (raw.head_bytes.get(), raw.payload_bytes.get());
    if head_bytes > HEAD_BYTES_MAX || payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(DecodeError::TooLong { head_bytes, payload_bytes });
    }
    if u64::from(raw.payload_skip.get()) >= cairn_units::BLOCK_BYTES_U64 {
        return Err(DecodeError::Payload);
    }
    let mut signed = [0; SIGNED_BYTES];
    signed.copy_from_slice(&bytes[..SIGNED_BYTES]);
    Ok(FrameHeader {
        kind,
        xid: Xid(raw.xid.get()),
        head_bytes,
        payload_skip: raw.payload_skip.get(),
        payload_bytes,
        minor: raw.minor.get(),
        payload_crc: raw.payload_crc.get(),
        head_crc: raw.head_crc.get(),
        signed,
    })
}

fn decode<T: Wire>(
    header: &FrameHeader,
    kind: FrameKind,
    head: &[u8],
    payload: Payload,
    now: MonoTime,
) -> Result<T, DecodeError> {
    if header.kind != kind {
        return Err(DecodeError::Kind { kind: kind_number(header.kind) });
    }
    if head.len() != header.head_bytes as usize {
        return Err(DecodeError::CutOff { at: head.len() });
    }
    if crc(&[&header.signed, head]) != header.head_crc {
        return Err(DecodeError::Checksum { part: "head" });
    }
    // An empty payload has no first block; its place does not matter.
    let placed = payload.is_empty() || payload.skip() == header.payload_skip;
    if payload.len() != header.payload_bytes || !placed {
        return Err(DecodeError::Payload);
    }
    if payload_crc(&payload) != header.payload_crc {
        return Err(DecodeError::Checksum { part: "payload" });
    }
    let mut reader = Reader::new(head, payload, now);
    let message = T::get(&mut reader)?;
    let rest = reader.finish()?;
    if rest > 0 && !is_newer(header.minor) {
        return Err(DecodeError::Trailing { bytes: rest });
    }
    Ok(message)
}

/// Decodes a request; `now` is the receiver's clock.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_request(
    header: &FrameHeader,
    head: &[u8],
    payload: Payload,
    now: MonoTime,
) -> Result<CfRequest, DecodeError> {
    decode(header, FrameKind::Request, head, payload, now)
}

/// Decodes a reply.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_reply(
    header: &FrameHeader,
    head: &[u8],
    payload: Payload,
    now: MonoTime,
) -> Result<CfReply, DecodeError> {
    decode(header, FrameKind::Reply, head, payload, now)
}

/// The same bytes with the checksums that they should have, where a header says how long the
/// parts are: a fuzzer would never guess them.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let Some((header, rest)) = out.split_first_chunk_mut::<HEADER_BYTES>() else { return out };
    let Ok(raw) = HeaderV1::mut_from_bytes(header) else { return out };
    let head_bytes = usize::try_from(raw.head_bytes.get()).unwrap_or(usize::MAX);
    let (head, data) = rest.split_at(rest.len().min(head_bytes));
    let payload_bytes = usize::try_from(raw.payload_bytes.get()).unwrap_or(usize::MAX);
    raw.payload_crc = U32::new(crc(&[&data[..data.len().min(payload_bytes)]]));
    let signed = raw.as_bytes();
    raw.head_crc = U32::new(crc(&[&signed[..SIGNED_BYTES], head]));
    out
}

/// Any bytes as a frame, and as messages with checksums that match: for fuzzing.
pub fn fuzz_decode(bytes: &[u8]) {
    let now = MonoTime::new(1);
    let bytes = &with_checksums(bytes)[..];
    if let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>()
        && let Ok(header) = decode_header(header)
    {
        let (head, data) = rest.split_at(rest.len().min(header.head_bytes as usize));
        let skip = u64::from(header.payload_skip);
        let data = &data[..data.len().min(header.payload_bytes as usize)];
        let payload = Payload::copy_from(skip, data);
        drop(decode_request(&header, head, payload.clone(), now));
        drop(decode_reply(&header, head, payload, now));
    }
    drop(CfRequest::get(&mut Reader::new(bytes, Payload::default(), now)));
    drop(CfReply::get(&mut Reader::new(bytes, Payload::default(), now)));
}

#[cfg(test)]
mod tests;
