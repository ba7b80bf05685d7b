//! The command `mpatch`: arguments in, one library call or two, a report out.
//!
//! ```text
//! args ── commands/<verb> ── report ──▶ stdout: human text, or the same as JSON
//!              └──── error ── report ──▶ stderr: error, hint, state; and the exit code
//! ```
//!
//! Only [`report`] prints. Text that a patch or a path brings along is escaped there, whatever the command.

mod args;
mod arrivals;
mod commands;
mod editing;
mod error;
mod history;
mod interrupt;
mod job;
mod keys;
mod network;
mod places;
mod projects;
mod report;
mod standing;
mod statistics;
mod suggestion;
mod trust;
mod walk;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use error::ExitKind;

fn main() -> ExitCode {
    report::announce_panics();
    interrupt::listen();
    guarded(run).into()
}

/// What `run` ends with; a panic, which the hook has announced when it arrives here, is a bug.
fn guarded(run: impl FnOnce() -> ExitKind) -> ExitKind {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(ExitKind::Bug)
}

fn run() -> ExitKind {
    let (arguments, suggestions) = match args::parse() {
        Ok(parsed) => parsed,
        Err(error) => return report::usage(&error, &args::named()),
    };
    let output = report::Output::new(arguments.output, suggestions);
    match arguments.command.run(&output) {
        Ok(kind) => kind,
        Err(error) => {
            interrupt::give_way();
            report::tell(&output.as_suggested(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_bug_and_has_its_exit_code() {
        assert_eq!(guarded(|| panic!("a test's own")).code(), 70);
        assert_eq!(guarded(|| ExitKind::Done).code(), 0);
    }
}
