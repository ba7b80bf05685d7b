//! The `.mpatch` container; `docs/format.md` is the law.

pub mod draft;
pub mod manifest;

mod decode;
mod encode;
mod encoding;
pub mod layout;
