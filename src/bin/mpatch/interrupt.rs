//! Signals: Ctrl-C, termination, a closed terminal and the end of the processor time that a batch system gives end a
//! command cleanly, and a file that grows too large is an error.
//!
//! A command that changes files asks a flag before each block, and ends as after any error: with the old state. All
//! others change nothing before their last step, so they end at once; a second signal does not wait. From the last step
//! on, in which a result gets its name, signals change nothing any more: the command ends as if none had come.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpatch::checkpoint::on_last_step;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::error::{CommandError, ExitKind, State};
use crate::report;

/// Set at the first signal; asked by [`mpatch::checkpoint::Checkpoint::stopping_on`].
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// The signal that came last; 0 before the first.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Signals so far.
static HEARD: AtomicUsize = AtomicUsize::new(0);
/// What the running command does. Held while a signal ends the process, and while some other work begins: one of the
/// two comes first.
static WORK: Mutex<Work> = Mutex::new(Work::Reading);

/// What a signal would interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing that anybody would miss.
    Reading,
    /// Writing something new, which a signal would leave without its name.
    Copying,
    /// Changing a checkpoint where it lies.
    InPlace,
    /// The last step and what comes after it, to the end of the process.
    Finishing,
}

/// Says what is being done, until it is dropped; then it is again what was done before.
#[derive(Debug)]
#[must_use]
pub struct Doing {
    before: Work,
}

impl Drop for Doing {
    fn drop(&mut self) {
        work().change(self.before);
    }
}

/// From here on signals wait for this work to wind up.
///
/// Does not return where a signal is ending the process already, which says that there is no such work.
pub fn doing(work: Work) -> Doing {
    Doing { before: self::work().change(work) }
}

impl Work {
    /// Says what is done now, and answers with what was done before; nothing comes after the last step.
    fn change(&mut self, next: Self) -> Self {
        let before = *self;
        if before != Self::Finishing {
            *self = next;
        }
        before
    }
}

fn work() -> MutexGuard<'static, Work> {
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on the result gets its name, and signals change nothing any more. What is made in a [`Passing`] folder is
/// no result before the folder is kept.
///
/// Does not return where a signal is ending the process already, which says that there is no result.
pub fn last_step() {
    let mut work = work();
    if passing().is_none() {
        work.change(Work::Finishing);
    }
}

/// The command has come to its end: what it says of it, and its exit code, are not a signal's any more.
///
/// Does not return where a signal is ending the process already: what failed meanwhile was its doing, and it has the
/// word.
pub fn end() {
    work().change(Work::Finishing);
}

/// The folder of a command that is at work, see [`Passing`].
static PASSING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A folder that the command has made for itself. Unless it is kept in the end, it is removed with all that is in it,
/// after an error, a panic and a signal alike.
#[derive(Debug)]
#[must_use]
pub struct Passing;

impl Passing {
    /// `folder` has just been made.
    pub fn begin(folder: PathBuf) -> Self {
        *passing() = Some(folder);
        Self
    }

    /// The folder that `make` makes and tells of, and where it is.
    pub fn make(
        make: impl FnOnce() -> Result<PathBuf, CommandError>,
    ) -> Result<(Self, PathBuf), CommandError> {
        // Held meanwhile: a signal finds no folder, or one that it knows of.
        let mut passing = passing();
        let folder = make()?;
        *passing = Some(folder.clone());
        Ok((Self, folder))
    }

    /// A new folder among those for passing files, and where it is.
    pub fn new() -> Result<(Self, PathBuf), CommandError> {
        Self::make(|| {
            let made = tempfile::tempdir().map(tempfile::TempDir::keep);
            made.map_err(|error| CommandError::io("create a folder in", &std::env::temp_dir(), &error))
        })
    }

    /// Does `work` in `folder`: one that is not there is made, and after an error it is gone again.
    pub fn in_new<T>(
        folder: &Path,
        work: impl FnOnce(Option<Self>) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        if folder.is_dir() {
            return work(None);
        }
        let passing = Self::make(|| {
            let made = std::fs::create_dir(folder).map(|()| folder.to_owned());
            made.map_err(|error| CommandError::io("create", folder, &error))
        });
        let done = work(Some(passing?.0));
        if done.is_err() {
            // One that was to be kept is still here, and empty: the library leaves nothing behind.
            let _ = std::fs::remove_dir(folder);
        }
        done
    }

    /// The work is done, and stays: this is the command's last step, or the beginning of it.
    pub fn keep(self) {
        let mut work = work();
        passing().take();
        work.change(Work::Finishing);
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        remove_passing();
    }
}

fn passing() -> MutexGuard<'static, Option<PathBuf>> {
    PASSING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_passing() {
    /// How long `main`, and a `git` that it runs, may go on adding files after a signal.
    const PATIENCE: Duration = Duration::from_secs(5);
    // Held until the folder is gone, so that a signal does not end the process before.
    let mut passing = passing();
    let Some(folder) = passing.take() else { return };
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        // After a signal they are still at work in there, and may add a file to what is being emptied.
        if std::fs::remove_dir_all(&folder).is_ok() || folder.symlink_metadata().is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Set once the command is to end.
pub fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(&STOP)
}

/// The exit code of a command that was stopped.
pub fn exit_kind() -> ExitKind {
    match i32::try_from(SIGNAL.load(Ordering::SeqCst)) {
        Ok(SIGHUP) => ExitKind::HungUp,
        Ok(SIGTERM) => ExitKind::Terminated,
        Ok(SIGXCPU) => ExitKind::OutOfTime,
        _ => ExitKind::Interrupted,
    }
}

/// Begins to listen; flags are set at once, and the rest is done in a thread of its own. Comes before all others.
pub fn listen() {
    block_growth_signal();
    on_last_step(last_step);
    let heard = heard();
    for &signal in &heard {
        // Where the system refuses, signals do what they always did, and journals repair what they leave.
        _ = flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize);
        _ = flag::register(signal, stop_flag());
    }
    let Ok(mut signals) = Signals::new(&heard) else { return };
    let listener = std::thread::Builder::new().name("signals".to_owned());
    _ = listener.spawn(move || signals.forever().for_each(hear));
}

/// The signals that end a command. What whoever started it has it ignore, as `nohup` does with the end of the terminal,
/// stays ignored; SIGQUIT stays what it is everywhere, the way to end a process at once.
fn heard() -> Vec<i32> {
    let ignored = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| ignored_in(&status));
    let is_ignored = |signal: i32| ignored.is_none_or(|ignored| ignored >> (signal - 1) & 1 == 1);
    // Where the system does not tell, a process that outlives its terminal matters more than how another ends.
    let others = [SIGHUP, SIGXCPU].into_iter().filter(|signal| !is_ignored(*signal));
    [SIGINT, SIGTERM].into_iter().chain(others).collect()
}

/// The signals that a process ignores, as a set of bits, from what Linux says of it.
fn ignored_in(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Keeps the signal for a file that grows too large from this thread and all that it starts: the call that was too much
/// returns an error of its own.
///
/// Heard, it would not do: a call that the system makes again after a signal, as it does with the opening of a file
/// that an overlay first copies up, would be made again for ever. What git writes becomes an error in the same way.
fn block_growth_signal() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    _ = signals.thread_block();
}

fn hear(signal: i32) {
    let is_first = HEARD.fetch_add(1, Ordering::SeqCst) == 0;
    // The shell and the system both tell of a terminal that is closed, and every second somebody tells that the time is
    // up: only whoever asks for the end once more does not want to wait.
    let may_wind_up = is_first || [SIGHUP, SIGXCPU].contains(&signal);
    // Held to the end of the process, if that comes.
    let work = work();
    let state = match *work {
        Work::Finishing => return,
        Work::Copying | Work::InPlace if may_wind_up => return,
        Work::InPlace => State::RecoveryPending,
        Work::Reading | Work::Copying => State::Unchanged,
    };
    remove_passing();
    leave(report::stopped(exit_kind(), state));
}

#[expect(clippy::disallowed_methods, reason = "`main` is at work and cannot be asked")]
fn leave(kind: ExitKind) {
    std::process::exit(i32::from(kind.code()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_ignored_are_read_from_what_the_system_says() {
        let status = "Name:\tmpatch\nSigBlk:\t0000000001000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored_in(status), Some(1 << 12 | 1));
        assert_eq!(ignored_in("Name:\tmpatch\n"), None);
    }
}
