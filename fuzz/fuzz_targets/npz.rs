#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(init: modelpatch_fuzz::one_thread(), |data: &[u8]| targets::editing::npz(data));
