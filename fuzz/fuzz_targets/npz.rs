#![no_main]

use std::io::Cursor;

use modelpatch_fuzz::edit::import::read_npz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(imported) = read_npz(Cursor::new(data), None) {
        assert_eq!(imported.sum.sum.len(), imported.inner * imported.inner);
        assert!(imported.sum.count > 0);
    }
});
