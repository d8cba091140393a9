//! Entry points for fuzzers: any bytes may be given, nothing may panic.

use cairn_sys::Payload;

use crate::procs::Procedure;
use crate::rpcbind::parse_bool_reply;

/// Arguments of the procedure that the first byte names.
pub fn fuzz_args(bytes: &[u8]) {
    let Some((number, args)) = bytes.split_first() else { return };
    let Some(procedure) = Procedure::from_number(u32::from(*number) % 23) else { return };
    let plan = procedure.payload(args);
    let data = plan.and_then(|p| {
        let data = args.get(p.at..)?.get(..p.bytes as usize)?;
        Some((p.at, Payload::copy_from(p.file_offset, data)))
    });
    let cost = procedure.cost(args);
    assert!(cost.reply_bytes <= 1 << 20);
    let (head, payload) = match data {
        Some((at, payload)) => (&args[..at], Some(payload)),
        None => (args, None),
    };
    if let Ok((op, _answer)) = procedure.decode(head, payload) {
        assert!(!op.name().is_empty());
    }
}

/// What an rpcbind answers to a registration, record mark excluded; the first word is what the
/// transaction id should be.
pub fn fuzz_rpcbind_reply(bytes: &[u8]) {
    if let Some((xid, reply)) = bytes.split_first_chunk::<4>() {
        let _any = parse_bool_reply(u32::from_be_bytes(*xid), reply).is_ok();
    }
}
