//! Signals: Ctrl-C and termination end a command cleanly, and a file that grows too large is an error.
//!
//! A command that changes files asks a flag before each block, and ends as after any error: with the old state. All
//! others change nothing before their last step, so they end at once. A second signal does not wait.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::error::{ExitKind, State};
use crate::report;

/// Set at the first signal; asked by [`mpatch::checkpoint::Checkpoint::stopping_on`].
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// The first signal that came.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// What the running command does, as a [`Work`].
static WORK: AtomicU8 = AtomicU8::new(Work::Reading as u8);

/// What a signal would interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Work {
    /// Nothing that anybody would miss.
    Reading,
    /// Writing something new, which a signal would leave without its name.
    Copying,
    /// Changing a checkpoint where it lies.
    InPlace,
    /// The last step, which takes a moment: it is finished.
    Finishing,
}

/// Says what is being done, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Doing;

impl Drop for Doing {
    fn drop(&mut self) {
        WORK.store(Work::Reading as u8, Ordering::SeqCst);
    }
}

/// From here on signals wait for this work to wind up.
pub fn doing(work: Work) -> Doing {
    WORK.store(work as u8, Ordering::SeqCst);
    Doing
}

/// Set once the command is to end.
pub fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(&STOP)
}

/// The exit code of a command that was stopped.
pub fn exit_kind() -> ExitKind {
    match SIGNAL.load(Ordering::SeqCst) {
        SIGTERM => ExitKind::Terminated,
        _ => ExitKind::Interrupted,
    }
}

/// Begins to listen, in a thread of its own.
pub fn listen() {
    // Where the system refuses, signals do what they always did, and journals repair what they leave.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGXFSZ]) else { return };
    let listener = std::thread::Builder::new().name("signals".to_owned());
    _ = listener.spawn(move || signals.forever().for_each(hear));
}

fn hear(signal: i32) {
    if signal == SIGXFSZ {
        // The write that was too large returns an error of its own.
        return;
    }
    let first = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    STOP.store(true, Ordering::SeqCst);
    let work = WORK.load(Ordering::SeqCst);
    if work == Work::Finishing as u8 || (first && work != Work::Reading as u8) {
        return;
    }
    let kind = report::stopped(exit_kind(), state_if_ended_now());
    leave(kind);
}

/// What the running command would leave behind if it ended here.
pub fn state_if_ended_now() -> State {
    if WORK.load(Ordering::SeqCst) == Work::InPlace as u8 { State::RecoveryPending } else { State::Unchanged }
}

#[expect(clippy::disallowed_methods, reason = "`main` is at work and cannot be asked")]
fn leave(kind: ExitKind) {
    std::process::exit(i32::from(kind.code()));
}
