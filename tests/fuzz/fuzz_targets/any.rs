//! Fuzzes the decoder whose name this binary has (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::decoder(env!("CARGO_BIN_NAME")) {
        Some(decoder) => (decoder.run)(bytes),
        None => panic!("no decoder of this name"),
    }
});
