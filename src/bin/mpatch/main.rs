//! The command `mpatch`: arguments in, one library call or two, a report out.
//!
//! ```text
//! args ── commands/<verb> ── report ──▶ stdout: human text, or the same as JSON
//!              └──── error ── report ──▶ stderr: error, hint, state; and the exit code
//! ```
//!
//! Only [`report`] prints. Text that a patch or a path brings along is escaped there, whatever the command.

mod args;
mod commands;
mod editing;
mod error;
mod interrupt;
mod report;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use error::ExitKind;

fn main() -> ExitCode {
    report::announce_panics();
    interrupt::listen();
    // A panic has been announced by the hook when it arrives here.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(ExitKind::Bug).into()
}

fn run() -> ExitKind {
    let arguments = match args::parse() {
        Ok(arguments) => arguments,
        Err(error) => return report::usage(&error),
    };
    let output = report::Output::new(arguments.output);
    match arguments.command.run(&output) {
        Ok(kind) => kind,
        Err(error) => output.failure(&error),
    }
}
