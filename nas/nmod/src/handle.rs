//! File handles: the bytes by which a client names a file for ever.
//!
//! A handle holds the identity of the file and nothing that changes: no path, no location, no
//! boot. So it survives renames, restarts and moves of the volume. A keyed MAC (SipHash-2-4,
//! 64 bits, key of the cluster in the configuration database) keeps clients from making handles
//! for files that no export showed them.
//!
//! ```text
//! byte 0        1       2..4    4..8   8..16  16..24  24..28       28..36
//!      version  flags   tree    snap   fsid   ino     generation   MAC of bytes 0..28
//!      = 1      = 0     = 0     little endian, all of them
//! ```
//! `flags` and `tree` (a qtree with an export of its own) are zero until they have a meaning; a
//! handle with anything else in them is refused.

use cairn_op::{FileHandle, ObjectRef};
use cairn_sys::mutant;
use cairn_units::{Fsid, Generation, InodeNo, SnapId};
use core::hash::Hasher;
use siphasher::sip::SipHasher24;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a version 1 handle.
pub const HANDLE_BYTES: usize = 36;
const VERSION: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HandleV1 {
    version: u8,
    flags: u8,
    tree: U16,
    snap: U32,
    fsid: U64,
    ino: U64,
    generation: U32,
    mac: U64,
}
const _: () = assert!(size_of::<HandleV1>() == HANDLE_BYTES);
const _: () = assert!(HANDLE_BYTES <= FileHandle::BYTES_MAX);
/// Bytes that the MAC covers.
const SIGNED_BYTES: usize = HANDLE_BYTES - 8;

/// Key of the handles' MAC. The same key must come back after every restart, or all clients hold
/// bad handles.
#[derive(Clone, Copy)]
pub struct HandleKey([u8; 16]);

impl core::fmt::Debug for HandleKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HandleKey(..)")
    }
}

impl HandleKey {
    /// From 16 random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn mac(self, signed: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(signed);
        hasher.finish()
    }

    /// The handle of an object.
    pub fn seal(self, obj: ObjectRef) -> FileHandle {
        let mut raw = HandleV1 {
            version: VERSION,
            flags: 0,
            tree: U16::new(0),
            snap: U32::new(obj.snap.get()),
            fsid: U64::new(obj.fsid.get()),
            ino: U64::new(obj.ino.get()),
            generation: U32::new(obj.generation.get()),
            mac: U64::new(0),
        };
        raw.mac = U64::new(self.mac(&raw.as_bytes()[..SIGNED_BYTES]));
        match FileHandle::from_bytes(raw.as_bytes()) {
            Some(handle) => handle,
            None => unreachable!("a handle is shorter than the longest one"),
        }
    }

    /// The object behind a handle; `None` when the handle is not one of ours.
    pub fn open(self, handle: &FileHandle) -> Option<ObjectRef> {
        let raw = HandleV1::read_from_bytes(handle.as_bytes()).ok()?;
        let mac = self.mac(&raw.as_bytes()[..SIGNED_BYTES]);
        if raw.mac.get() != mac && !mutant("handle-mac-not-checked") {
            return None;
        }
        if raw.version != VERSION || raw.flags != 0 || raw.tree.get() != 0 {
            return None;
        }
        Some(ObjectRef {
            fsid: Fsid::new(raw.fsid.get()),
            snap: SnapId::new(raw.snap.get()),
            ino: InodeNo::new(raw.ino.get()),
            generation: Generation::new(raw.generation.get()),
        })
    }
}

/// For fuzzers: any handle, with its MAC made right. What opens is sealed to the same bytes.
pub fn fuzz_handle(bytes: &[u8]) {
    let key = HandleKey::new([7; 16]);
    let mut bytes = bytes.to_vec();
    if let Some((signed, mac)) = bytes.split_at_mut_checked(SIGNED_BYTES)
        && let Some(mac) = mac.get_mut(..8)
    {
        mac.copy_from_slice(&key.mac(signed).to_le_bytes());
    }
    let Some(handle) = FileHandle::from_bytes(&bytes) else { return };
    assert_eq!(handle.as_bytes(), bytes);
    if let Some(obj) = key.open(&handle) {
        assert_eq!(key.seal(obj).as_bytes(), bytes, "an opened handle seals to itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn obj(fsid: u64, snap: u32, ino: u64, generation: u32) -> ObjectRef {
        ObjectRef {
            fsid: Fsid::new(fsid),
            snap: SnapId::new(snap),
            ino: InodeNo::new(ino),
            generation: Generation::new(generation),
        }
    }

    #[test]
    fn handle_bytes_never_change_between_releases() {
        let key = HandleKey::new(*b"0123456789abcdef");
        let bytes = key.seal(obj(2, 0, 64, 7)).as_bytes().to_vec();
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 7, 0];
        assert_eq!(&bytes[..26], &head[..]);
        assert_eq!(bytes.len(), HANDLE_BYTES);
        assert_eq!(&bytes[28..], GOLDEN_MAC);
    }
    /// Computed by an independent SipHash-2-4.
    const GOLDEN_MAC: &[u8] = &[41, 64, 28, 242, 5, 48, 199, 110];

    #[test]
    fn handle_of_another_length_is_refused() {
        let key = HandleKey::new([3; 16]);
        let good = key.seal(obj(1, 0, 2, 3));
        for len in 0..FileHandle::BYTES_MAX {
            let mut bytes = good.as_bytes().to_vec();
            bytes.resize(len, 0);
            let handle = FileHandle::from_bytes(&bytes).unwrap();
            assert_eq!(key.open(&handle).is_some(), len == HANDLE_BYTES, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn sealed_handle_opens_to_the_same_object(
            key: [u8; 16], f: u64, s: u32, i: u64, g: u32
        ) {
            let key = HandleKey::new(key);
            prop_assert_eq!(key.open(&key.seal(obj(f, s, i, g))), Some(obj(f, s, i, g)));
        }

        #[test]
        fn any_flipped_bit_is_refused(key: [u8; 16], f: u64, s: u32, i: u64, g: u32) {
            let key = HandleKey::new(key);
            let good = key.seal(obj(f, s, i, g));
            for bit in 0..HANDLE_BYTES * 8 {
                let mut bytes = good.as_bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let handle = FileHandle::from_bytes(&bytes).unwrap();
                prop_assert_eq!(key.open(&handle), None, "bit {}", bit);
            }
        }

        #[test]
        fn handle_of_another_key_is_refused(a: [u8; 16], b: [u8; 16], i: u64) {
            prop_assume!(a != b);
            let handle = HandleKey::new(a).seal(obj(1, 0, i, 1));
            prop_assert_eq!(HandleKey::new(b).open(&handle), None);
        }
    }
}
