//! Fuzzes the decoder `nfs_args` (see the crate cairn-decoders).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match cairn_decoders::target("nfs_args") {
        Some(run) => run(bytes),
        None => panic!("no decoder of this name"),
    }
});
