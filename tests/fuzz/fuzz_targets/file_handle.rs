//! Fuzzes the decoder `file_handle` (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::target("file_handle") {
        Some(run) => run(bytes),
        None => panic!("no decoder of this name"),
    }
});
