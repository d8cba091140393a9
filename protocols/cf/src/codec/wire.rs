//! Values as bytes: the primitives, and macros that make a type's encoding from its fields.

use cairn_sys::Payload;
use cairn_units::MonoTime;

use super::{DecodeError, EncodeError, ITEMS_MAX};

/// Longest text.
const TEXT_BYTES_MAX: u32 = 64 << 10;

/// A value on the wire.
pub(super) trait Wire: Sized {
    fn put(&self, w: &mut Writer);
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError>;
    /// Some value, for tests.
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self;
}

/// Collects a message.
pub(super) struct Writer {
    bytes: Vec<u8>,
    payload: Option<Payload>,
    failed: Option<EncodeError>,
    pub(super) now: MonoTime,
}

impl Writer {
    pub(super) fn new(now: MonoTime) -> Self {
        Self { bytes: Vec::with_capacity(256), payload: None, failed: None, now }
    }
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    /// The length of a list or text; a failure is reported at the end.
    pub(super) fn count(&mut self, items: usize, most: u32) {
        match u32::try_from(items) {
            Ok(n) if n <= most => n.put(self),
            _ => self.failed = Some(EncodeError::TooMany { items }),
        }
    }
    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.count(bytes.len(), TEXT_BYTES_MAX);
        self.raw(bytes);
    }
    pub(super) fn finish(self) -> Result<(Vec<u8>, Payload), EncodeError> {
        match self.failed {
            Some(failed) => Err(failed),
            None => Ok((self.bytes, self.payload.unwrap_or_default())),
        }
    }
}

/// Takes a message apart.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    payload: Option<Payload>,
    pub(super) now: MonoTime,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], payload: Payload, now: MonoTime) -> Self {
        Self { bytes, at: 0, payload: Some(payload), now }
    }
    pub(super) fn raw(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).ok_or(DecodeError::CutOff { at: self.at })?;
        let out = self.bytes.get(self.at..end).ok_or(DecodeError::CutOff { at: self.at })?;
        self.at = end;
        Ok(out)
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let at = self.at;
        self.raw(N)?.try_into().map_err(|_| DecodeError::CutOff { at })
    }
    pub(super) fn count(&mut self, most: u32) -> Result<u32, DecodeError> {
        let items = u32::get(self)?;
        if items > most { Err(DecodeError::TooMany { items }) } else { Ok(items) }
    }
    pub(super) fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.count(TEXT_BYTES_MAX)?;
        self.raw(bytes as usize)
    }
    /// Bytes left; an error when a payload came that the message did not speak of.
    pub(super) fn finish(self) -> Result<usize, DecodeError> {
        match self.payload {
            Some(payload) if !payload.is_empty() => Err(DecodeError::Payload),
            _ => Ok(self.bytes.len().saturating_sub(self.at)),
        }
    }
}

macro_rules! wire_number {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                w.raw(&self.to_le_bytes());
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self::from_le_bytes(r.array()?))
            }
            #[cfg(test)]
            fn sample(g: &mut Gen) -> Self {
                Self::from_le_bytes(g.bytes())
            }
        }
    )*};
}
wire_number!(u8, u16, u32, u64, i64);

impl Wire for bool {
    fn put(&self, w: &mut Writer) {
        u8::from(*self).put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value { what: "flag" }),
        }
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        g.below(2) == 1
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, w: &mut Writer) {
        w.raw(self);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.array()
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        g.bytes()
    }
}

impl<const N: usize> Wire for [u64; N] {
    fn put(&self, w: &mut Writer) {
        for n in self {
            n.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut out = [0; N];
        for n in &mut out {
            *n = u64::get(r)?;
        }
        Ok(out)
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        std::array::from_fn(|_| u64::sample(g))
    }
}

impl Wire for String {
    fn put(&self, w: &mut Writer) {
        w.text(self.as_bytes());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = core::str::from_utf8(r.text()?);
        text.map(str::to_owned).map_err(|_| DecodeError::Value { what: "text" })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        (0..g.below(20)).map(|_| ['a', 'ü', '/', '\0'][g.below(4)]).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, w: &mut Writer) {
        self.is_some().put(w);
        if let Some(value) = self {
            value.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        bool::get(r)?.then(|| T::get(r)).transpose()
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        bool::sample(g).then(|| T::sample(g))
    }
}

impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn put(&self, w: &mut Writer) {
        self.is_ok().put(w);
        match self {
            Ok(value) => value.put(w),
            Err(error) => error.put(w),
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::get(r)? { Ok(T::get(r)?) } else { Err(E::get(r)?) })
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        if g.below(4) > 0 { Ok(T::sample(g)) } else { Err(E::sample(g)) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, w: &mut Writer) {
        self.0.put(w);
        self.1.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(r)?, B::get(r)?))
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        (A::sample(g), B::sample(g))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, w: &mut Writer) {
        w.count(self.len(), ITEMS_MAX);
        for item in self {
            item.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        // No room is made by the count: it grows with the items that are really there.
        let mut out = Vec::new();
        for _ in 0..r.count(ITEMS_MAX)? {
            out.push(T::get(r)?);
        }
        Ok(out)
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        (0..g.below(6)).map(|_| T::sample(g)).collect()
    }
}

impl Wire for Payload {
    fn put(&self, w: &mut Writer) {
        self.skip().put(w);
        self.len().put(w);
        match w.payload {
            None => w.payload = Some(self.clone()),
            Some(_) => w.failed = Some(EncodeError::Payload),
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (skip, bytes) = (u32::get(r)?, u32::get(r)?);
        let payload = r.payload.take().ok_or(DecodeError::Payload)?;
        if payload.len() != bytes {
            return Err(DecodeError::Payload);
        }
        if bytes == 0 {
            let fits = (skip as usize) < cairn_units::BLOCK_BYTES;
            let empty = || Payload::new(skip, 0, Vec::new());
            return fits.then(empty).ok_or(DecodeError::Payload);
        }
        if payload.skip() == skip { Ok(payload) } else { Err(DecodeError::Payload) }
    }
    #[cfg(test)]
    fn sample(g: &mut Gen) -> Self {
        let data: Vec<u8> = (0..g.below(9000)).map(|_| u8::sample(g)).collect();
        Payload::copy_from(g.next(), &data)
    }
}

/// A struct as its fields in order.
macro_rules! wire_struct {
    ($t:ident { $($field:ident),* $(,)? }) => {
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                let $t { $($field),* } = self;
                $( $field.put(w); )*
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                $( let $field = Wire::get(r)?; )*
                Ok($t { $($field),* })
            }
            #[cfg(test)]
            fn sample(g: &mut Gen) -> Self {
                $( let $field = Wire::sample(g); )*
                $t { $($field),* }
            }
        }
    };
}

/// An enum as a tag and the fields of the alternative; a tag is never used again.
macro_rules! wire_enum {
    ($t:ident { $( $tag:literal => $variant:ident
        $( ( $($item:ident),* ) )? $( { $($field:ident),* } )? ),* $(,)? }) => {
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                match self {
                    $( $t::$variant $( ( $($item),* ) )? $( { $($field),* } )? => {
                        <u16 as Wire>::put(&$tag, w);
                        $( $( $item.put(w); )* )?
                        $( $( $field.put(w); )* )?
                    } )*
                }
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(match u16::get(r)? {
                    $( $tag => {
                        $( $( let $item = Wire::get(r)?; )* )?
                        $( $( let $field = Wire::get(r)?; )* )?
                        $t::$variant $( ( $($item),* ) )? $( { $($field),* } )?
                    } )*
                    tag => return Err(DecodeError::Tag { what: stringify!($t), tag }),
                })
            }
            #[cfg(test)]
            fn sample(g: &mut Gen) -> Self {
                let tags: &[u16] = &[$( $tag ),*];
                match tags[g.below(tags.len())] {
                    $( $tag => {
                        $( $( let $item = Wire::sample(g); )* )?
                        $( $( let $field = Wire::sample(g); )* )?
                        $t::$variant $( ( $($item),* ) )? $( { $($field),* } )?
                    } )*
                    _ => unreachable!("one of the tags"),
                }
            }
        }
    };
}

/// A unit type as its number.
macro_rules! wire_unit {
    ($($t:ident),* $(,)?) => {$(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                self.get().put(w);
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok($t::new(Wire::get(r)?))
            }
            #[cfg(test)]
            fn sample(g: &mut Gen) -> Self {
                $t::new(Wire::sample(g))
            }
        }
    )*};
}

/// An identity as its 16 bytes.
macro_rules! wire_uuid {
    ($($t:ident),* $(,)?) => {$(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                self.bytes().put(w);
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok($t::new(r.array()?))
            }
            #[cfg(test)]
            fn sample(g: &mut Gen) -> Self {
                $t::new(g.bytes())
            }
        }
    )*};
}

pub(super) use {wire_enum, wire_struct, wire_unit, wire_uuid};

/// Chance for samples: a counter through a mixer (splitmix64).
#[cfg(test)]
pub(super) struct Gen(pub(super) u64);

#[cfg(test)]
impl Gen {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_le_bytes()[0])
    }
}
