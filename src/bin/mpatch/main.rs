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
mod git;
mod history;
mod interrupt;
mod job;
mod keys;
mod memory;
mod network;
mod places;
mod projects;
mod report;
mod signers;
mod standing;
mod statistics;
mod suggestion;
mod trust;
mod walk;

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use error::{CommandError, ExitKind};

fn main() -> ExitCode {
    report::remember_panics();
    interrupt::listen();
    guarded(run).into()
}

/// What `run` ends with; a panic is a bug, told once unwinding has put back what was half-way.
fn guarded(run: impl FnOnce() -> ExitKind) -> ExitKind {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        interrupt::end();
        report::panicked()
    })
}

/// Starts the threads that share all computing: as many as there are processors, or as `RAYON_NUM_THREADS` says.
fn start_threads() -> Result<(), CommandError> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|error| {
        let cause = error.source().map(ToString::to_string).unwrap_or_else(|| error.to_string());
        CommandError::new(ExitKind::Device, format!("threads cannot be started: {cause}"))
            .hint("set RAYON_NUM_THREADS=1, or raise the limits that `ulimit -u` and `ulimit -v` tell")
    })
}

fn run() -> ExitKind {
    let (arguments, suggestions) = match args::parse() {
        Ok(parsed) => parsed,
        Err(error) => return report::usage(&error, &args::named()),
    };
    let output = report::Output::new(arguments.output, suggestions);
    let outcome =
        output.check_arguments().and_then(|()| start_threads()).and_then(|()| arguments.command.run(&output));
    interrupt::end();
    outcome.unwrap_or_else(|error| report::tell(&output.as_suggested(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_bug_and_has_its_exit_code() {
        assert_eq!(guarded(|| panic!("a test's own")).code(), 70);
        assert_eq!(guarded(|| ExitKind::Done).code(), 0);
    }

    /// Set for the process in which this very test panics as the command would.
    const PANICS: &str = "THIS_TEST_PANICS";

    #[test]
    fn a_panic_tells_that_it_is_a_bug_and_what_it_leaves() {
        if std::env::var_os(PANICS).is_some() {
            report::remember_panics();
            guarded(|| panic!("a test's own"));
            return;
        }
        let program = std::env::current_exe().expect("the test's program");
        let mut command = std::process::Command::new(program);
        command.args(["--exact", "tests::a_panic_tells_that_it_is_a_bug_and_what_it_leaves", "--nocapture"]);
        let output = command.env(PANICS, "1").output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = errors.split_once("error: mpatch has a bug: a test's own (").expect("the panic is told").1;
        assert!(
            told.contains("\nhint: please report it") && told.ends_with("\nstate: unchanged\n"),
            "{told}"
        );
    }
}
