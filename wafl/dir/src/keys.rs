//! Keys of entries: a keyed hash of the folded name, and the folding itself.
//!
//! Layer: inside `cairn-wafl-dir`, below the tree. Names that differ only in case have the same
//! hash, so that an exact and a case-insensitive lookup walk the same run of entries.
//!
//! Names that a counter tells apart are neighbours ([`Keying::Grouped`]): whoever makes, looks up
//! or removes them in turn finds a hundred of them in one leaf, and a listing finds files that
//! were made together together. Other names have nothing to do with each other.
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
/// High bits of the hash that the names of a group share. The others tell up to 256 names apart,
/// and groups with one hash: too few would make long runs, too many would mix groups.
const GROUP_BITS: u32 = 27;
/// A counter has at least so many digits.
const COUNTER_DIGITS: usize = 4;
/// Digits of a counter that the names of a group differ in.
const GROUP_DIGITS: usize = 2;
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

/// How names become keys; which of them, the version in a directory's header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keying {
    /// The hash of the name, as in directories of version 1.
    Whole,
    /// The hash of the name's group, then that of the name.
    Grouped,
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
    pub(crate) fn run_of(&self, name: &[u8], keying: Keying) -> Key {
        let folded = Folded::of(name);
        let name = folded.bytes();
        let hash = self.hash(&[name]) >> (64 - HASH_BITS);
        let hash = match (keying, counter_end(name)) {
            (Keying::Grouped, Some(end)) => {
                let group = self.hash(&[&name[..end - GROUP_DIGITS], &name[end..]]);
                let within = HASH_BITS - GROUP_BITS;
                group >> (64 - GROUP_BITS) << within | hash & ((1 << within) - 1)
            }
            (Keying::Grouped, None) | (Keying::Whole, _) => hash,
        };
        #[cfg(test)]
        let hash = hash & ((1 << self.hash_bits) - 1);
        // Hash 0 is left out, so that the small cookies stay free for the caller.
        Key(hash.max(1) << DISAMBIGUATOR_BITS)
    }

    /// A value that tells whether a directory was hashed with these keys.
    pub(crate) fn check_value(&self) -> u64 {
        self.hash(&[b"/key check"])
    }

    /// The hash of the parts, one behind the other.
    fn hash(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        for part in parts {
            hasher.write(part);
        }
        hasher.finish()
    }
}

/// Where the counter in a folded name ends: the last run of hexadecimal digits that is long enough
/// and has a decimal digit in it. Part of the disk format, as folding is.
fn counter_end(name: &[u8]) -> Option<usize> {
    let mut end = name.len();
    while end >= COUNTER_DIGITS {
        let digits = name[..end].iter().rev().take_while(|b| b.is_ascii_hexdigit()).count();
        let run = &name[end - digits..end];
        if digits >= COUNTER_DIGITS && run.iter().any(u8::is_ascii_digit) {
            return Some(end);
        }
        end -= (digits + 1).min(end);
    }
    None
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
            for keying in [Keying::Whole, Keying::Grouped] {
                let run = |name: &str| keys.run_of(name.as_bytes(), keying);
                assert_eq!(run(a), run(b), "{a} {b}");
            }
        }
        let run = |name: &[u8]| keys.run_of(name, Keying::Grouped);
        assert_eq!(run(b"A\xff"), run(b"a\xff"));
        assert_eq!(run(b"IMG_00AB.JPG"), run(b"img_00ab.jpg"));
        assert_ne!(run(b"a"), run(b"b"));
    }

    #[test]
    fn a_counter_is_the_last_long_run_of_digits() {
        for (name, counter) in [
            ("img_0001.jpg", Some("img_0001")),
            ("0000", Some("0000")),
            ("x0012.tar.gz", Some("x0012")),
            ("chunk-00a1ff", Some("chunk-00a1ff")),
            ("2024_000123_v2.exr", Some("2024_000123")),
            ("a1b2", Some("a1b2")),
            ("img_123.jpg", None),
            ("facade", None),
            ("cafe.deed", None),
            ("1-2-3-4", None),
            ("", None),
            ("é1234é", Some("é1234")),
        ] {
            assert_eq!(counter_end(name.as_bytes()), counter.map(str::len), "{name}");
        }
    }

    #[test]
    fn names_of_one_counter_share_a_group_and_no_others_do() {
        let keys = DirKeys::new(*b"sixteen bytes ok");
        let group = |name: &str| {
            let hash = keys.run_of(name.as_bytes(), Keying::Grouped).0 >> DISAMBIGUATOR_BITS;
            hash >> (HASH_BITS - GROUP_BITS)
        };
        assert_eq!(group("IMG_0000.jpg"), group("IMG_0099.jpg"));
        assert_eq!(group("00a1ff"), group("00a100"));
        for (a, b) in [
            ("IMG_0099.jpg", "IMG_0100.jpg"),
            ("IMG_0001.jpg", "IMG_0001.png"),
            ("IMG_0001.jpg", "img-0001.jpg"),
            ("one", "two"),
        ] {
            assert_ne!(group(a), group(b), "{a} {b}");
        }
        // Names without a counter lie where they lay in version 1.
        for name in ["README", "a", "v1.2.3", "facade"] {
            let run = |keying| keys.run_of(name.as_bytes(), keying);
            assert_eq!(run(Keying::Whole), run(Keying::Grouped), "{name}");
        }
    }

    #[test]
    fn names_of_one_group_hardly_ever_share_a_run() {
        let keys = DirKeys::new([3; 16]);
        let mut runs = std::collections::BTreeMap::<Key, u32>::new();
        for n in 0..200_000 {
            let name = format!("object.{n:08x}");
            *runs.entry(keys.run_of(name.as_bytes(), Keying::Grouped)).or_default() += 1;
        }
        // 256 names in 2^20 places: 0.03 pairs in a group, of which there are 782.
        let shared: u32 = runs.values().filter(|n| **n > 1).sum();
        assert!(shared < 150, "{shared} of 200,000 names share a run");
    }

    #[test]
    fn keys_are_those_of_the_format() {
        // Reckoned by another program from the text of the format.
        let keys = DirKeys::new(*b"0123456789abcdef");
        let run = |name: &str, keying| keys.run_of(name.as_bytes(), keying).0;
        assert_eq!(run("IMG_00012345.jpeg", Keying::Whole), 6_476_428_461_287_931_904);
        assert_eq!(run("IMG_00012345.jpeg", Keying::Grouped), 1_309_783_327_633_047_552);
        assert_eq!(run("README", Keying::Grouped), 8_336_657_774_709_506_048);
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
        assert_eq!(keys.run_of(b"any", Keying::Grouped).0, 1 << 16);
        let last = |name| DirKeys::new([7; 16]).run_of(name, Keying::Grouped).run_last().0;
        assert!(last(b"any") < 1 << 63 && last(b"any0001") < 1 << 63);
    }
}
