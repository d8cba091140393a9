//! Fuzzes the decoder `log_record` (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::target("log_record") {
        Some(run) => run(bytes),
        None => panic!("no decoder of this name"),
    }
});
