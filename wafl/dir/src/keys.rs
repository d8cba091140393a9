//! Keys of entries: a keyed hash of the folded name, and the folding itself.
//!
//! Layer: inside `cairn-wafl-dir`, below the tree. Names that differ only in case have the same
//! hash, so that an exact and a case-insensitive lookup walk the same run of entries.
//!
//! Folding is part of the disk format: the same name must fold alike for ever. It is the simple
//! (one character to one character) lower case of the standard library's Unicode tables; a golden
//! digest of all of it is a test, so that a toolchain with other tables cannot slip in. A change
//! needs a new [`FOLD_VERSION`].

use core::hash::Hasher;

use cairn_units::{Cookie, NAME_BYTES_MAX};
use siphasher::sip::SipHasher13;

/// How names are folded; in the header of each directory.
pub const FOLD_VERSION: u8 = 1;
/// Low bits of a key, which tell entries with one hash apart.
pub(crate) const DISAMBIGUATOR_BITS: u32 = 16;
const HASH_BITS: u32 = 47;
/// A folded name is at most this long: each of its characters takes up to 4 bytes.
const FOLDED_BYTES_MAX: usize = NAME_BYTES_MAX * 4;

const _: () = assert!(HASH_BITS + DISAMBIGUATOR_BITS == 63);

/// The secret that names of a volume are hashed with, so that nobody can choose names that
/// collide.
#[derive(Clone, Copy)]
pub struct DirKeys {
    key: [u8; 16],
    #[cfg(test)]
    hash_bits: u32,
}

/// A place in the order of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    /// The last key that shares the hash of this one.
    pub(crate) fn run_last(self) -> Self {
        Self(self.0 | ((1 << DISAMBIGUATOR_BITS) - 1))
    }
    /// The first key that shares the hash of this one.
    pub(crate) fn run_first(self) -> Self {
        Self(self.0 & !((1 << DISAMBIGUATOR_BITS) - 1))
    }
    pub(crate) fn cookie(self) -> Cookie {
        Cookie::new(self.0)
    }
}

impl DirKeys {
    /// From 16 random bytes that never change for the life of the volume.
    pub const fn new(key: [u8; 16]) -> Self {
        Self {
            key,
            #[cfg(test)]
            hash_bits: HASH_BITS,
        }
    }

    /// Keys that keep only `hash_bits` of the hash, to force collisions.
    #[cfg(test)]
    pub(crate) const fn colliding(key: [u8; 16], hash_bits: u32) -> Self {
        Self { key, hash_bits }
    }

    /// The first key of the run that `name` belongs to.
    pub(crate) fn run_of(&self, name: &[u8]) -> Key {
        let hash = self.hash(Folded::of(name).bytes()) >> (64 - HASH_BITS);
        #[cfg(test)]
        let hash = hash & ((1 << self.hash_bits) - 1);
        // Hash 0 is left out, so that the small cookies stay free for the caller.
        Key(hash.max(1) << DISAMBIGUATOR_BITS)
    }

    /// A value that tells whether a directory was hashed with these keys.
    pub(crate) fn check_value(&self) -> u64 {
        self.hash(b"/key check")
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(bytes);
        hasher.finish()
    }
}

/// A name without the difference between upper and lower case.
pub(crate) struct Folded {
    buffer: [u8; FOLDED_BYTES_MAX],
    bytes: usize,
}

impl Folded {
    /// Folds a name of up to [`NAME_BYTES_MAX`] bytes (what is longer is cut off).
    pub(crate) fn of(name: &[u8]) -> Self {
        let name = &name[..name.len().min(NAME_BYTES_MAX)];
        let mut folded = Self { buffer: [0; FOLDED_BYTES_MAX], bytes: 0 };
        match core::str::from_utf8(name) {
            Ok(text) if !text.is_ascii() => {
                for c in text.chars() {
                    let mut utf8 = [0; 4];
                    folded.push(fold_char(c).encode_utf8(&mut utf8).as_bytes());
                }
            }
            _ => {
                folded.push(name);
                folded.buffer[..name.len()].make_ascii_lowercase();
            }
        }
        folded
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer[self.bytes..self.bytes + bytes.len()].copy_from_slice(bytes);
        self.bytes += bytes.len();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.bytes]
    }
}

/// The simple lower case of `c`; characters whose lower case is longer than one stay as they are.
fn fold_char(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fold_table_is_the_one_of_fold_version_1() {
        let mut hasher = SipHasher13::new_with_key(&[0; 16]);
        for c in '\0'..=char::MAX {
            let folded = fold_char(c);
            if folded != c {
                hasher.write_u32(u32::from(c));
                hasher.write_u32(u32::from(folded));
            }
        }
        assert_eq!(
            hasher.finish(),
            666_729_919_570_612_020,
            "a change of the fold table needs a new FOLD_VERSION"
        );
    }

    #[test]
    fn names_that_differ_in_case_share_a_run() {
        let keys = DirKeys::new(*b"sixteen bytes ok");
        for (a, b) in [("README", "readme"), ("Straße", "STRAßE"), ("ÉTÉ", "été"), ("ЖУК", "жук")]
        {
            assert_eq!(keys.run_of(a.as_bytes()), keys.run_of(b.as_bytes()), "{a} {b}");
        }
        assert_eq!(keys.run_of(b"A\xff"), keys.run_of(b"a\xff"));
        assert_ne!(keys.run_of(b"a"), keys.run_of(b"b"));
    }

    #[test]
    fn folding_the_longest_names_stays_in_its_buffer() {
        let grows = "\u{23a}".repeat(127);
        assert_eq!(Folded::of(grows.as_bytes()).bytes().len(), 127 * 3);
        assert_eq!(Folded::of(&[b'X'; 255]).bytes(), &[b'x'; 255]);
    }

    #[test]
    fn keys_leave_the_small_cookies_and_the_top_bit_free() {
        let keys = DirKeys::colliding([7; 16], 0);
        assert_eq!(keys.run_of(b"any").0, 1 << 16);
        assert!(DirKeys::new([7; 16]).run_of(b"any").run_last().0 < 1 << 63);
    }
}
