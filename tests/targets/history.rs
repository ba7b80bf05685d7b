//! What a history from elsewhere brings, which needs git's library: the files of its commits, and their words.

use std::collections::BTreeSet;

use mpatch::store::{Base, Message, Pointer, is_invisible, series_of_bytes};

/// A part of a history: a byte for its kind, then its bytes.
pub fn history(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => base(bytes),
        1 => series(bytes),
        2 => pointer(bytes),
        _ => message(&String::from_utf8_lossy(bytes)),
    }
}

/// Tensors are in order, each once, and the text that is written says the same.
fn base(bytes: &[u8]) {
    let Ok(base) = Base::parse(bytes) else { return };
    assert!(base.tensors.is_sorted_by(|one, next| one.name < next.name));
    assert_eq!(Base::parse(base.to_json().expect("plain data").as_bytes()), Ok(base));
}

/// No patch stands there twice.
fn series(bytes: &[u8]) {
    let Ok(series) = series_of_bytes(bytes) else { return };
    assert_eq!(series.iter().collect::<BTreeSet<_>>().len(), series.len());
}

/// What is written says the same, and the id is one that a path can be made of.
fn pointer(bytes: &[u8]) {
    let Some(pointer) = Pointer::parse(bytes) else { return };
    assert!(pointer.oid().len() == 64 && pointer.oid().bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(Pointer::parse(pointer.text().as_bytes()), Some(pointer));
}

/// Written again, a message names the same patches and state, and moves no cursor.
fn message(text: &str) {
    let (message, Some(state)) = Message::parse(text) else { return };
    let written = message.text(state);
    assert!(written.lines().all(|line| !line.contains(is_invisible)), "{written:?}");
    let (again, found) = Message::parse(&written);
    assert_eq!((again.patches, again.reverted, found), (message.patches, message.reverted, Some(state)));
}
