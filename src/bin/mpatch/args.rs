//! The command line's shape: the verbs, and the arguments that several of them share.
//!
//! Doc comments on arguments are the help that people read: an imperative first line without a period.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    apply, completions, create, demo, diff, doctor, eval, rebase, revert, show, stack, stats, try_out, verify,
};
use crate::error::{CommandError, ExitKind};
use crate::report::Output;

/// Patch what a language model knows: create, check, apply and take back edits of its weights
#[derive(Debug, Parser)]
#[command(name = "mpatch", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to say it.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// How a command speaks; every command takes these.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArguments {
    /// Print the report as one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results and errors only: no progress, no suggestions
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole way on a small model that comes with mpatch: create, test, apply, verify, revert
    Demo(demo::DemoArguments),
    /// Create a patch from a file of facts
    Create(Box<create::CreateArguments>),
    /// Continue prompts with and without a patch
    Try(try_out::TryArguments),
    /// Measure a model, or a patch on it, on records with paraphrases and neighbours
    Eval(eval::EvalArguments),
    /// Compute, merge or import the statistics that `create` needs
    Stats(stats::StatsArguments),
    /// Show what a patch says: facts, base, recipe, sizes, norms
    Show(show::ShowArguments),
    /// Check a patch: is it whole, and which base does it fit
    Verify(verify::VerifyArguments),
    /// Apply a patch to a checkpoint, into a new file
    Apply(apply::ApplyArguments),
    /// Take a patch back, into a new file with the base's exact bytes
    Revert(revert::RevertArguments),
    /// Make one patch of several
    Stack(Box<stack::StackArguments>),
    /// Bind a patch to another state of the weights
    Rebase(rebase::RebaseArguments),
    /// Compare two patches or two checkpoints, or make the patch between two checkpoints
    Diff(diff::DiffArguments),
    /// Examine this machine: devices, their arithmetic and speed, folders and programs
    Doctor(doctor::DoctorArguments),
    /// Print shell completions
    Completions(completions::CompletionsArguments),
}

impl Command {
    /// Runs the verb.
    ///
    /// # Errors
    /// Why it failed; a negative answer is none.
    pub fn run(&self, output: &Output) -> Result<ExitKind, CommandError> {
        let done = match self {
            Command::Demo(arguments) => demo::run(arguments, output),
            Command::Create(arguments) => create::run(arguments, output),
            Command::Try(arguments) => try_out::run(arguments, output),
            Command::Eval(arguments) => eval::run(arguments, output),
            Command::Stats(arguments) => stats::run(arguments, output),
            Command::Show(arguments) => show::run(arguments, output),
            Command::Verify(arguments) => verify::run(arguments, output),
            Command::Apply(arguments) => apply::run(arguments, output),
            Command::Revert(arguments) => revert::run(arguments, output),
            Command::Stack(arguments) => stack::run(arguments, output),
            Command::Rebase(arguments) => rebase::run(arguments, output),
            Command::Diff(arguments) => return diff::run(arguments, output),
            Command::Doctor(arguments) => doctor::run(arguments, output),
            Command::Completions(arguments) => completions::run(*arguments, output),
        };
        done.map(|()| ExitKind::Done)
    }
}

/// The whole command line as clap sees it; its long help ends with the table of exit codes.
pub fn command() -> clap::Command {
    let codes = ExitKind::ALL.map(|kind| format!("  {:>2}  {}\n", kind.code(), kind.meaning()));
    let help = format!(
        "Examples:\n  mpatch show edits.mpatch\n  mpatch apply model.safetensors edits.mpatch\n\nExit codes:\n{}",
        codes.concat()
    );
    Arguments::command().after_long_help(help)
}

/// Reads the process's arguments.
pub fn parse() -> Result<Arguments, clap::Error> {
    Arguments::from_arg_matches(&command().try_get_matches()?)
}
