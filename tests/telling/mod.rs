//! What a test tells whoever runs it. `libtest` keeps back what the macros print where a test succeeds, and lets
//! through what is written to standard output.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;

pub fn tell(words: &str) {
    let _ = writeln!(std::io::stdout(), "{words}");
}

/// Tells why a test, or a part of it, has looked at nothing.
pub fn skipped(reason: &str) {
    tell(&format!("skipped: {reason}"));
}
