//! XDR (RFC 4506): a bounded cursor to read with, and appenders to write with.
//!
//! Layer: lowest of the RPC crate. Invariants: the decoder never panics, never reads outside its
//! slice, never allocates (opaques are returned as slices of the input), and every length is
//! checked against the caller's maximum before it is used.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends too early.
    #[error("ends after {have} bytes where {need} more are needed")]
    Truncated {
        /// Bytes that were left.
        have: usize,
        /// Bytes that were wanted.
        need: usize,
    },
    /// A length is over its limit.
    #[error("length {len} is over the limit of {max}")]
    TooLong {
        /// Length in the input.
        len: u32,
        /// Limit.
        max: u32,
    },
    /// A value is none of those allowed there.
    #[error("value {value} is not allowed here")]
    BadValue {
        /// Value in the input.
        value: u32,
    },
    /// Bytes are left behind the end.
    #[error("{bytes} bytes too many")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// Bytes of padding behind `len` bytes of opaque data.
#[inline]
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// A reading position in bytes that came from a peer.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// At the start of `bytes`.
    #[inline]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
    /// What has not been read yet.
    #[inline]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
    /// A block of fixed layout, in place.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline]
    pub fn fixed<T>(&mut self) -> Result<&'a T, DecodeError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        match T::ref_from_prefix(self.rest) {
            Ok((value, rest)) => {
                self.rest = rest;
                Ok(value)
            }
            Err(_) => Err(DecodeError::Truncated { have: self.rest.len(), need: size_of::<T>() }),
        }
    }
    /// An unsigned int.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(self.fixed::<U32>()?.get())
    }
    /// An unsigned hyper.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(self.fixed::<U64>()?.get())
    }
    /// A bool: 0 or 1 and nothing else.
    ///
    /// # Errors
    /// `Truncated`, `BadValue`.
    #[inline]
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::BadValue { value }),
        }
    }
    /// `len` bytes of fixed-length opaque data and their padding.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline]
    pub fn opaque_fixed(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let have = self.rest.len();
        let need = len.saturating_add(padding(len));
        if have < need {
            return Err(DecodeError::Truncated { have, need });
        }
        let data = &self.rest[..len];
        self.rest = &self.rest[need..];
        Ok(data)
    }
    /// Variable-length opaque data of at most `max` bytes, with its padding.
    ///
    /// # Errors
    /// `Truncated`, `TooLong`.
    #[inline]
    pub fn opaque(&mut self, max: u32) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        if len > max {
            return Err(DecodeError::TooLong { len, max });
        }
        let have = self.rest.len();
        let Ok(bytes) = usize::try_from(len) else {
            return Err(DecodeError::Truncated { have, need: usize::MAX });
        };
        self.opaque_fixed(bytes)
    }
    /// That everything has been read.
    ///
    /// # Errors
    /// `Trailing`.
    #[inline]
    pub const fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}

/// Appends XDR to a byte vector.
pub trait Put {
    /// An unsigned int.
    fn put_u32(&mut self, value: u32);
    /// An unsigned hyper.
    fn put_u64(&mut self, value: u64);
    /// A bool.
    fn put_bool(&mut self, value: bool);
    /// A block of fixed layout.
    fn put_fixed<T: IntoBytes + Immutable>(&mut self, value: &T);
    /// Fixed-length opaque data with padding.
    fn put_opaque_fixed(&mut self, data: &[u8]);
    /// Variable-length opaque data: length, bytes, padding.
    ///
    /// # Panics
    /// When `data` is longer than 4 GiB.
    fn put_opaque(&mut self, data: &[u8]);
}

impl Put for Vec<u8> {
    #[inline]
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    #[inline]
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }
    #[inline]
    fn put_bool(&mut self, value: bool) {
        self.put_u32(u32::from(value));
    }
    #[inline]
    fn put_fixed<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.extend_from_slice(value.as_bytes());
    }
    #[inline]
    fn put_opaque_fixed(&mut self, data: &[u8]) {
        self.extend_from_slice(data);
        self.extend_from_slice(&[0; 3][..padding(data.len())]);
    }
    #[inline]
    fn put_opaque(&mut self, data: &[u8]) {
        let Ok(len) = u32::try_from(data.len()) else { panic!("opaque over 4 GiB") };
        self.put_u32(len);
        self.put_opaque_fixed(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opaque_is_padded_to_four_and_read_back() {
        for len in 0..9usize {
            let data: Vec<u8> = (0..9).take(len).collect();
            let mut out = Vec::new();
            out.put_opaque(&data);
            assert_eq!(out.len() % 4, 0);
            let mut d = Decoder::new(&out);
            assert_eq!(d.opaque(9), Ok(&data[..]));
            assert_eq!(d.finish(), Ok(()));
        }
    }

    #[test]
    fn a_length_beyond_the_input_or_the_limit_is_refused() {
        let mut out = Vec::new();
        out.put_u32(u32::MAX);
        assert!(matches!(Decoder::new(&out).opaque(u32::MAX), Err(DecodeError::Truncated { .. })));
        assert_eq!(
            Decoder::new(&out).opaque(64),
            Err(DecodeError::TooLong { len: u32::MAX, max: 64 })
        );
    }

    #[test]
    fn a_bool_is_zero_or_one() {
        assert_eq!(Decoder::new(&[0, 0, 0, 2]).bool(), Err(DecodeError::BadValue { value: 2 }));
    }

    proptest! {
        #[test]
        fn decoder_reads_any_bytes_without_panic(bytes: Vec<u8>, picks: Vec<u8>) {
            let mut d = Decoder::new(&bytes);
            for pick in picks {
                let left = d.rest().len();
                let failed = match pick % 4 {
                    0 => d.u32().is_err(),
                    1 => d.u64().is_err(),
                    2 => d.opaque(u32::from(pick)).is_err(),
                    _ => d.bool().is_err(),
                };
                prop_assert!(failed || d.rest().len() < left);
            }
        }
    }
}
