//! Extended attributes of one file, as the bytes of its attribute store.
//!
//! Layer: volumes. Format: version u8, then for each attribute in order of name: length of the
//! name u8, length of the value u32 (little endian), name, value. Decoding never panics.

use cairn_op::Name;

/// Bytes in one value.
pub(crate) const VALUE_BYTES_MAX: usize = 65_536;
/// Bytes of all attributes of a file together; they are logged in one record.
pub(crate) const SET_BYTES_MAX: usize = 512 * 1024;
const VERSION: u8 = 1;

/// Attributes by name.
pub(crate) type Set = Vec<(Name, Vec<u8>)>;

pub(crate) fn encode(set: &Set) -> Vec<u8> {
    let mut out = vec![VERSION];
    for (name, value) in set {
        let (Ok(n), Ok(v)) = (u8::try_from(name.as_bytes().len()), u32::try_from(value.len()))
        else {
            unreachable!("names and values are bounded")
        };
        out.push(n);
        out.extend_from_slice(&v.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value);
    }
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Set> {
    let mut set = Vec::new();
    let Some((version, mut rest)) = bytes.split_first() else { return Some(set) };
    if *version != VERSION {
        return None;
    }
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(5)?;
        let value_len = usize::try_from(u32::from_le_bytes(head[1..].try_into().ok()?)).ok()?;
        let (name, tail) = tail.split_at_checked(usize::from(head[0]))?;
        let (value, tail) = tail.split_at_checked(value_len)?;
        let name = Name::new(bytes::Bytes::copy_from_slice(name)).ok()?;
        set.push((name, value.to_vec()));
        rest = tail;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_sets_round_trip_and_cut_ones_are_refused() {
        let name = |b: &'static [u8]| Name::new(bytes::Bytes::from_static(b)).unwrap();
        let set = vec![(name(b"user.a"), vec![]), (name(b"user.b"), vec![7; 300])];
        let bytes = encode(&set);
        assert_eq!(decode(&bytes), Some(set));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(&[]), Some(vec![]));
    }
}
