//! Blocks of NFSv3 (RFC 1813) that several procedures share: attributes, weak cache consistency
//! data, handles, names, settable attributes, and the one table from status to `nfsstat3`.

use bytes::Bytes;
use cairn_oncrpc::xdr::{DecodeError, Decoder, Put};
use cairn_op::{Attrs, Before, Failure, FileHandle, FileKind, Name, SetAttrs, SetTime, Status};
use cairn_units::{Gid, Uid, WallTime};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// NFS3_FHSIZE.
pub const HANDLE_BYTES_MAX: u32 = 64;
const _: () = assert!(HANDLE_BYTES_MAX as usize == FileHandle::BYTES_MAX);

/// A number of `nfsstat3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nfsstat(pub u32);

impl Nfsstat {
    /// NFS3_OK.
    pub const OK: Self = Self(0);
    /// NFS3ERR_TOOSMALL.
    pub const TOO_SMALL: Self = Self(10_005);
    /// NFS3ERR_SERVERFAULT.
    pub const SERVER_FAULT: Self = Self(10_006);
    /// NFS3ERR_BADTYPE.
    pub const BAD_TYPE: Self = Self(10_007);
}

/// The one table from internal status to wire.
impl From<Status> for Nfsstat {
    fn from(status: Status) -> Self {
        Self(match status {
            Status::NotOwner => 1,
            Status::NotFound => 2,
            Status::Io => 5,
            Status::AccessDenied => 13,
            Status::Exists => 17,
            Status::CrossVolume => 18,
            Status::NotDirectory => 20,
            Status::IsDirectory => 21,
            Status::Invalid => 22,
            Status::FileTooBig => 27,
            Status::NoSpace => 28,
            Status::ReadOnlyFs => 30,
            Status::TooManyLinks => 31,
            Status::NameTooLong => 63,
            Status::NotEmpty => 66,
            Status::OverQuota => 69,
            Status::Stale => 70,
            Status::BadHandle => 10_001,
            Status::NotSync => 10_002,
            Status::BadCookie => 10_003,
            // Version 3 has no extended attributes, so their errors cannot come from it.
            Status::NotSupported | Status::NoXattr | Status::XattrTooBig => 10_004,
            Status::ServerFault => 10_006,
            // The client asks again after a while.
            Status::Delay | Status::Moved => 10_008,
        })
    }
}

/// A failure with its number on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireFailure {
    /// Why.
    pub stat: Nfsstat,
    /// Attributes of the first object.
    pub attrs: Option<Attrs>,
    /// Attributes of the second object.
    pub second: Option<Attrs>,
}

impl From<Failure> for WireFailure {
    fn from(f: Failure) -> Self {
        Self { stat: f.status.into(), attrs: f.attrs, second: f.second }
    }
}

impl From<Nfsstat> for WireFailure {
    fn from(stat: Nfsstat) -> Self {
        Self { stat, attrs: None, second: None }
    }
}

/// Why arguments do not make an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgsError {
    /// They cannot be decoded: the call is refused.
    Garbage(DecodeError),
    /// They can, but the answer is no.
    Refused(Nfsstat),
}

impl From<DecodeError> for ArgsError {
    fn from(e: DecodeError) -> Self {
        Self::Garbage(e)
    }
}

impl From<Status> for ArgsError {
    fn from(status: Status) -> Self {
        Self::Refused(status.into())
    }
}

/// `nfstime3`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Nfstime3 {
    seconds: U32,
    nanos: U32,
}

impl From<WallTime> for Nfstime3 {
    /// Times outside 1970 to 2106 go to the nearest end.
    fn from(time: WallTime) -> Self {
        let (seconds, nanos) = time.split();
        let (seconds, nanos) = match u32::try_from(seconds) {
            Ok(seconds) => (seconds, nanos),
            Err(_) if seconds < 0 => (0, 0),
            Err(_) => (u32::MAX, 999_999_999),
        };
        Self { seconds: U32::new(seconds), nanos: U32::new(nanos) }
    }
}

impl Nfstime3 {
    fn time(self) -> Result<WallTime, ArgsError> {
        if self.nanos.get() >= 1_000_000_000 {
            return Err(Status::Invalid.into());
        }
        Ok(WallTime::from_parts(i64::from(self.seconds.get()), self.nanos.get()))
    }
}

/// `fattr3`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Fattr3 {
    kind: U32,
    mode: U32,
    links: U32,
    uid: U32,
    gid: U32,
    size: U64,
    used: U64,
    major: U32,
    minor: U32,
    fsid: U64,
    fileid: U64,
    atime: Nfstime3,
    mtime: Nfstime3,
    ctime: Nfstime3,
}
const _: () = assert!(size_of::<Fattr3>() == 84);

/// `ftype3`.
const fn ftype(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::BlockDevice => 3,
        FileKind::CharDevice => 4,
        FileKind::Symlink => 5,
        FileKind::Socket => 6,
        FileKind::Fifo => 7,
    }
}

impl From<&Attrs> for Fattr3 {
    fn from(a: &Attrs) -> Self {
        Self {
            kind: U32::new(ftype(a.kind)),
            mode: U32::new(a.mode & 0o7777),
            links: U32::new(a.links),
            uid: U32::new(a.uid.get()),
            gid: U32::new(a.gid.get()),
            size: U64::new(a.size),
            used: U64::new(a.used),
            major: U32::new(a.device.major),
            minor: U32::new(a.device.minor),
            fsid: U64::new(a.fsid.get()),
            fileid: U64::new(a.ino.get()),
            atime: a.atime.into(),
            mtime: a.mtime.into(),
            ctime: a.ctime.into(),
        }
    }
}

/// `post_op_attr` that is there.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct PostOpAttr {
    follows: U32,
    attrs: Fattr3,
}

impl From<&Attrs> for PostOpAttr {
    fn from(attrs: &Attrs) -> Self {
        Self { follows: U32::new(1), attrs: attrs.into() }
    }
}

/// `wcc_data` of which both parts are there.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct WccData {
    before_follows: U32,
    size: U64,
    mtime: Nfstime3,
    ctime: Nfstime3,
    after: PostOpAttr,
}
const _: () = assert!(size_of::<WccData>() == 4 + 24 + 4 + 84);

/// Bytes of a `post_op_attr` that is there.
pub const POST_OP_ATTR_BYTES: u32 = 88;
const _: () = assert!(size_of::<PostOpAttr>() == POST_OP_ATTR_BYTES as usize);

/// `fattr3`.
#[inline]
pub fn put_attrs(out: &mut Vec<u8>, attrs: &Attrs) {
    out.put_fixed(&Fattr3::from(attrs));
}

/// `post_op_attr`.
#[inline]
pub fn put_post_op(out: &mut Vec<u8>, attrs: Option<&Attrs>) {
    match attrs {
        Some(attrs) => out.put_fixed(&PostOpAttr::from(attrs)),
        None => out.put_u32(0),
    }
}

/// `wcc_data` after a success.
#[inline]
pub fn put_wcc(out: &mut Vec<u8>, before: &Before, after: &Attrs) {
    out.put_fixed(&WccData {
        before_follows: U32::new(1),
        size: U64::new(before.size),
        mtime: before.mtime.into(),
        ctime: before.ctime.into(),
        after: after.into(),
    });
}

/// `wcc_data` after a failure: nothing before, and what is known after.
pub fn put_wcc_failed(out: &mut Vec<u8>, after: Option<&Attrs>) {
    out.put_u32(0);
    put_post_op(out, after);
}

/// `nfs_fh3`.
#[inline]
pub fn put_handle(out: &mut Vec<u8>, handle: &FileHandle) {
    out.put_opaque(handle.as_bytes());
}

/// `nfs_fh3`.
///
/// # Errors
/// Cannot be decoded, or longer than a handle may be.
#[inline]
pub fn handle(d: &mut Decoder<'_>) -> Result<FileHandle, DecodeError> {
    let bytes = d.opaque(HANDLE_BYTES_MAX)?;
    match FileHandle::from_bytes(bytes) {
        Some(handle) => Ok(handle),
        None => Err(DecodeError::BadValue { value: 0 }),
    }
}

/// A name as it came; what is wrong with it is found by [`RawName::check`] once the rest of the
/// arguments is decoded.
#[derive(Clone, Copy, Debug)]
pub struct RawName<'a>(&'a [u8]);

impl RawName<'_> {
    /// The name.
    ///
    /// # Errors
    /// Empty, too long, or with a forbidden byte.
    pub fn check(self) -> Result<Name, ArgsError> {
        Ok(Name::new(Bytes::copy_from_slice(self.0))?)
    }
}

/// `diropargs3`.
///
/// # Errors
/// Cannot be decoded.
#[inline]
pub fn dir_and_name<'a>(d: &mut Decoder<'a>) -> Result<(FileHandle, RawName<'a>), DecodeError> {
    Ok((handle(d)?, RawName(d.opaque(u32::MAX)?)))
}

/// `sattr3`.
///
/// # Errors
/// Cannot be decoded, or a time that is none.
pub fn set_attrs(d: &mut Decoder<'_>) -> Result<SetAttrs, ArgsError> {
    let mut set = SetAttrs::default();
    if d.bool()? {
        set.mode = Some(d.u32()? & 0o7777);
    }
    if d.bool()? {
        set.uid = Some(Uid::new(d.u32()?));
    }
    if d.bool()? {
        set.gid = Some(Gid::new(d.u32()?));
    }
    if d.bool()? {
        set.size = Some(d.u64()?);
    }
    set.atime = set_time(d)?;
    set.mtime = set_time(d)?;
    Ok(set)
}

fn set_time(d: &mut Decoder<'_>) -> Result<SetTime, ArgsError> {
    match d.u32()? {
        0 => Ok(SetTime::Keep),
        1 => Ok(SetTime::Now),
        2 => Ok(SetTime::To(time(d)?)),
        value => Err(DecodeError::BadValue { value }.into()),
    }
}

/// `nfstime3`.
///
/// # Errors
/// Cannot be decoded, or a time that is none.
pub fn time(d: &mut Decoder<'_>) -> Result<WallTime, ArgsError> {
    d.fixed::<Nfstime3>()?.time()
}
