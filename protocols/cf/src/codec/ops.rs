//! File operations and their answers on the wire.

use std::net::IpAddr;

use bytes::Bytes;
use cairn_op::{
    AccessMask, Attrs, Before, ClientAddr, CreateHow, Credential, DeviceNo, Entry, Failure,
    FileKind, FsStat, GROUPS_MAX, LinkTarget, ListLimits, Name, NodeKind, ObjectRef, Op, OpCtx,
    ReadOnly, Reply, SetAttrs, SetTime, Stability, Status, Verifier, WithFiles, XattrHow,
};
use cairn_units::{
    Cookie, Fsid, Generation, Gid, InodeNo, MonoTime, ObjectId, OpNo, SnapId, Uid, VserverId,
    WallTime,
};

use super::DecodeError;
#[cfg(test)]
use super::wire::Gen;
use super::wire::{Reader, Wire, Writer, wire_enum, wire_struct, wire_unit, wire_uuid};

wire_unit!(Cookie, Fsid, Generation, Gid, InodeNo, OpNo, SnapId, Uid, VserverId, WallTime);
wire_uuid!(ObjectId);

wire_struct!(ObjectRef { fsid, snap, ino, generation });
wire_struct!(DeviceNo { major, minor });
wire_struct!(Before { size, mtime, ctime, change });
wire_struct!(SetAttrs { mode, uid, gid, size, atime, mtime });
wire_struct!(ListLimits { entries_max, bytes_max, entry_bytes, with_files });
wire_struct!(FsStat { total_bytes, free_bytes, available_bytes, total_files, free_files });
wire_struct!(Failure { status, attrs, second });
wire_struct!(Attrs {
    kind,
    mode,
    links,
    uid,
    gid,
    size,
    used,
    device,
    fsid,
    ino,
    atime,
    mtime,
    ctime,
    birth,
    change,
    object,
});

wire_enum!(FileKind {
    1 => Regular, 2 => Directory, 3 => Symlink, 4 => BlockDevice, 5 => CharDevice, 6 => Fifo,
    7 => Socket,
});
wire_enum!(NodeKind { 1 => BlockDevice(no), 2 => CharDevice(no), 3 => Fifo, 4 => Socket });
wire_enum!(SetTime { 0 => Keep, 1 => Now, 2 => To(time) });
wire_enum!(CreateHow { 1 => Unchecked(set), 2 => Guarded(set), 3 => Exclusive(verifier) });
wire_enum!(XattrHow { 0 => Either, 1 => Create, 2 => Replace });
wire_enum!(Stability { 0 => Unstable, 1 => DataSync, 2 => FileSync });
wire_enum!(WithFiles { 0 => No, 1 => Yes });
wire_enum!(ReadOnly { 0 => No, 1 => Yes });
wire_enum!(Status {
    1 => NotOwner, 2 => NotFound, 3 => Io, 4 => AccessDenied, 5 => Exists, 6 => CrossVolume,
    7 => NotDirectory, 8 => IsDirectory, 9 => Invalid, 10 => FileTooBig, 11 => NoSpace,
    12 => ReadOnlyFs, 13 => TooManyLinks, 14 => NameTooLong, 15 => NotEmpty, 16 => OverQuota,
    17 => Stale, 18 => BadHandle, 19 => NotSync, 20 => BadCookie, 21 => NotSupported,
    22 => Delay, 23 => Moved, 24 => NoXattr, 25 => XattrTooBig, 26 => ServerFault,
});

type ObjectOp = Op<ObjectRef>;
wire_enum!(ObjectOp {
    1 => GetAttr { obj },
    2 => SetAttr { obj, set, guard },
    3 => Lookup { dir, name },
    4 => Access { obj, want },
    5 => ReadLink { obj },
    6 => Read { obj, offset, count },
    7 => Write { obj, offset, data, stability },
    8 => Create { dir, name, how },
    9 => MakeDir { dir, name, set },
    10 => Symlink { dir, name, target, set },
    11 => MakeNode { dir, name, kind, set },
    12 => Remove { dir, name },
    13 => RemoveDir { dir, name },
    14 => Rename { from_dir, from_name, to_dir, to_name },
    15 => Link { obj, dir, name },
    16 => ReadDir { dir, cookie, limits },
    17 => FsStat { obj },
    18 => Commit { obj, offset, count },
    19 => Punch { obj, offset, count },
    20 => GetXattr { obj, name },
    21 => SetXattr { obj, name, value, how },
    22 => RemoveXattr { obj, name },
    23 => ListXattr { obj },
});

type ObjectReply = Reply<ObjectRef>;
wire_enum!(ObjectReply {
    1 => Attrs(attrs),
    2 => Changed { before, after },
    3 => Found { obj, attrs, dir },
    4 => Access { granted, attrs },
    5 => LinkTarget { target, attrs },
    6 => Read { data, eof, attrs },
    7 => Written { count, stability, verifier, before, after },
    8 => Made { obj, attrs, dir_before, dir_after },
    9 => Removed { dir_before, dir_after },
    10 => Renamed { from_before, from_after, to_before, to_after },
    11 => Linked { attrs, dir_before, dir_after },
    12 => Listing { entries, eof, dir },
    13 => FsStat { stat, attrs },
    14 => Committed { verifier, before, after },
    15 => Xattr { value },
    16 => XattrNames { names },
});

type ObjectEntry = Entry<ObjectRef>;
wire_struct!(ObjectEntry { ino, cookie, name, file });

impl Wire for AccessMask {
    fn put(&self, w: &mut Writer) {
        self.0.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u32::get(r)?))
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        Self(Wire::sample(g))
    }
}

impl Wire for Verifier {
    fn put(&self, w: &mut Writer) {
        self.0.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(r.array()?))
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        Self(g.bytes())
    }
}

impl Wire for Name {
    fn put(&self, w: &mut Writer) {
        w.text(self.as_bytes());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = Bytes::copy_from_slice(r.text()?);
        Name::new(bytes).map_err(|_| DecodeError::Value { what: "name" })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        let length = 1 + g.below(255);
        let bytes: Vec<u8> = (0..length).map(|_| 0x30 | u8::sample(g)).collect();
        Name::new(bytes.into()).unwrap()
    }
}

impl Wire for LinkTarget {
    fn put(&self, w: &mut Writer) {
        w.text(self.as_bytes());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = Bytes::copy_from_slice(r.text()?);
        LinkTarget::new(bytes).map_err(|_| DecodeError::Value { what: "link target" })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        let length = 1 + g.below(4096);
        let bytes: Vec<u8> = (0..length).map(|_| 1 | u8::sample(g)).collect();
        LinkTarget::new(bytes.into()).unwrap()
    }
}

impl Wire for Credential {
    fn put(&self, w: &mut Writer) {
        self.uid.put(w);
        self.gid.put(w);
        self.groups.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (uid, gid): (Uid, Gid) = Wire::get(r)?;
        let groups: Vec<Gid> = Wire::get(r)?;
        if groups.len() > GROUPS_MAX {
            return Err(DecodeError::Value { what: "credential" });
        }
        Ok(Self { uid, gid, groups })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        Self { uid: Wire::sample(g), gid: Wire::sample(g), groups: Wire::sample(g) }
    }
}

impl Wire for ClientAddr {
    fn put(&self, w: &mut Writer) {
        match self.ip {
            IpAddr::V4(ip) => {
                4u8.put(w);
                ip.octets().put(w);
            }
            IpAddr::V6(ip) => {
                6u8.put(w);
                ip.octets().put(w);
            }
        }
        self.port.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ip = match u8::get(r)? {
            4 => IpAddr::from(r.array::<4>()?),
            6 => IpAddr::from(r.array::<16>()?),
            _ => return Err(DecodeError::Value { what: "client address" }),
        };
        Ok(Self { ip, port: u16::get(r)? })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        let ip = match bool::sample(g) {
            true => IpAddr::from(g.bytes::<4>()),
            false => IpAddr::from(g.bytes::<16>()),
        };
        Self { ip, port: Wire::sample(g) }
    }
}

impl Wire for OpCtx {
    fn put(&self, w: &mut Writer) {
        self.vserver.put(w);
        self.cred.put(w);
        self.client.put(w);
        self.op_no.put(w);
        // Clocks of two nodes have nothing in common: what travels is the time left.
        let left = self.deadline.map(|at| at.since(w.now).unwrap_or(0));
        left.put(w);
        self.read_only.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            vserver: Wire::get(r)?,
            cred: Wire::get(r)?,
            client: Wire::get(r)?,
            op_no: Wire::get(r)?,
            deadline: Option::<u64>::get(r)?
                .map(|left| MonoTime::new(r.now.get().saturating_add(left))),
            read_only: Wire::get(r)?,
        })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        Self {
            vserver: Wire::sample(g),
            cred: Wire::sample(g),
            client: Wire::sample(g),
            op_no: Wire::sample(g),
            deadline: bool::sample(g).then(|| MonoTime::new(1_000_000 + u64::from(u32::sample(g)))),
            read_only: Wire::sample(g),
        }
    }
}
