//! Entry points for fuzzers: any bytes may be given, nothing may panic.

use crate::message::{CREDENTIAL_AT, parse_auth, parse_head};
use crate::xdr::Decoder;

/// A record: call header and credential.
pub fn fuzz_record(bytes: &[u8]) {
    if let Ok(head) = parse_head(bytes) {
        let credential = &bytes[CREDENTIAL_AT..CREDENTIAL_AT + head.credential_len];
        drop(parse_auth(head.flavor, credential));
        assert!(head.args_at <= bytes.len());
    }
}

/// The XDR cursor, driven by the first bytes.
pub fn fuzz_xdr(bytes: &[u8]) {
    let Some((steps, rest)) = bytes.split_at_checked(8) else { return };
    let mut d = Decoder::new(rest);
    for step in steps {
        let failed = match step % 4 {
            0 => d.u32().is_err(),
            1 => d.u64().is_err(),
            2 => d.opaque(u32::from(*step) * 64).is_err(),
            _ => d.bool().is_err(),
        };
        if failed {
            return;
        }
    }
}
