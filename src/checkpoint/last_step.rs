//! Who is to be told before a result gets its name.

use std::sync::OnceLock;

static TOLD: OnceLock<fn()> = OnceLock::new();

/// Has `told` called in this process just before a new file or folder gets its name, or a history its next state: from
/// there on the work is not to be stopped any more. The first one that asks is told.
///
/// Work on a checkpoint may be one step of several: it tells by
/// [`before_last_step`](super::Checkpoint::before_last_step).
pub fn on_last_step(told: fn()) {
    // Whoever asks later is not told.
    _ = TOLD.set(told);
}

/// The next step decides.
pub(crate) fn tell_of_last_step() {
    if let Some(told) = TOLD.get() {
        told();
    }
}
