#![no_main]

use mpatch::sign::{AllowedSigners, KnownLines, Policy, PublicKey, SshSig, allowed_signers};

// A byte for the kind of file, then its bytes.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 6 {
        0 => signature(bytes),
        1 => drop(KnownLines::parse(bytes)),
        2 => drop(Policy::parse(bytes)),
        kind => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match kind {
                3 => drop(AllowedSigners::parse(text)),
                4 => drop(allowed_signers::parse_keys(text)),
                _ => armour(text),
            }
        }
    }
});

/// A signature is what its bytes say, and armour changes nothing.
fn signature(bytes: &[u8]) {
    let Ok(signature) = SshSig::parse(bytes) else { return };
    assert_eq!(signature.bytes(), bytes);
    assert_eq!(SshSig::from_armour(&signature.to_armour()).expect("its own armour").bytes(), bytes);
    let _ = signature.verify(b"a message that nobody signed").expect_err("no such signature can be found");
    assert_eq!(PublicKey::parse(&signature.key().line()).expect("its own line"), *signature.key());
}

fn armour(text: &str) {
    if let Ok(found) = SshSig::from_armour(text) {
        signature(found.bytes());
    }
}
