//! Fuzzes the decoder `directory` (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::target("directory") {
        Some(run) => run(bytes),
        None => panic!("no decoder of this name"),
    }
});
