//! libFuzzer's way into `nv_tests::targets::packed_checkpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nv_tests::targets::packed_checkpoint(data));
