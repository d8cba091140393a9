//! Fuzzes the decoder `cf_message` (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::target("cf_message") {
        Some(run) => run(bytes),
        None => panic!("no decoder of this name"),
    }
});
