//! The command line's shape: the verbs, and the arguments that several of them share.
//!
//! Doc comments on arguments are the help that people read: an imperative first line without a period.

use std::any::TypeId;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    add, apply, bisect, branch, checkout, clone, completions, create, demo, diff, doctor, eval, export, fsck,
    gc, init, log, man, merge, pull, push, rebase, redo, revert, show, sign, stack, stats, status, tag,
    trust, try_out, undo, verify,
};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, WayOn, go_on};
use crate::suggestion::Suggestions;

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
    /// Print errors, warnings, and what the command is there to show: no more
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
    /// Check a patch: whole, signed, fitting this model, doing what it declares
    Verify(verify::VerifyArguments),
    /// Sign a patch, or add a second signature
    Sign(sign::SignArguments),
    /// List or change whose signatures are trusted
    Trust(trust::TrustCommandArguments),
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
    /// Write a patch as a LoRA adapter that PEFT loads
    Export(export::ExportArguments),
    /// Examine this machine: devices, their arithmetic and speed, folders and programs
    Doctor(doctor::DoctorArguments),
    /// Begin a history of what a model knows
    Init(init::InitArguments),
    /// Record a patch in the history
    #[command(visible_alias = "commit")]
    Add(add::AddArguments),
    /// List the states of the history, with their facts
    Log(log::LogArguments),
    /// Tell which state a checkpoint is in, by its digests
    Status(status::StatusArguments),
    /// Take a checkpoint from the state it is in to another one
    Checkout(checkout::CheckoutArguments),
    /// List, make or delete branches
    Branch(branch::BranchArguments),
    /// List, make or delete tags
    Tag(tag::TagArguments),
    /// Join another branch's patches to this one's
    Merge(merge::MergeArguments),
    /// Take back the last change of the history, or list all
    Undo(undo::UndoArguments),
    /// Do again what was undone last
    Redo(redo::RedoArguments),
    /// Find the patch that made the model say something
    Bisect(bisect::BisectArguments),
    /// Read all of the history, and name what is damaged
    Fsck(fsck::FsckArguments),
    /// Pack the history, and remove patches that nothing refers to
    Gc(gc::GcArguments),
    /// Copy a history from elsewhere
    Clone(clone::CloneArguments),
    /// Send branches and tags to another history
    Push(push::PushArguments),
    /// Fetch another history, and follow it where it only went on
    Pull(pull::PullArguments),
    /// Print pages of the manual, or write them all
    Man(man::ManArguments),
    /// Print shell completions
    Completions(completions::CompletionsArguments),
}

impl Command {
    /// Runs the verb.
    ///
    /// # Errors
    /// Why it failed; a negative answer is none.
    pub fn run(&self, output: &Output) -> Result<ExitKind, CommandError> {
        if let Command::Stats(_) = self {
            go_on(WayOn::InParts);
        }
        let done = match self {
            Command::Demo(arguments) => demo::run(arguments, output),
            Command::Create(arguments) => return create::run(arguments, output),
            Command::Try(arguments) => try_out::run(arguments, output),
            Command::Eval(arguments) => eval::run(arguments, output),
            Command::Stats(arguments) => stats::run(arguments, output),
            Command::Show(arguments) => show::run(arguments, output),
            Command::Verify(arguments) => verify::run(arguments, output),
            Command::Sign(arguments) => sign::run(arguments, output),
            Command::Trust(arguments) => trust::run(arguments, output),
            Command::Apply(arguments) => apply::run(arguments, output),
            Command::Revert(arguments) => revert::run(arguments, output),
            Command::Stack(arguments) => stack::run(arguments, output),
            Command::Rebase(arguments) => rebase::run(arguments, output),
            Command::Diff(arguments) => return diff::run(arguments, output),
            Command::Export(arguments) => export::run(arguments, output),
            Command::Doctor(arguments) => doctor::run(arguments, output),
            Command::Init(arguments) => init::run(arguments, output),
            Command::Add(arguments) => add::run(arguments, output),
            Command::Log(arguments) => log::run(arguments, output),
            Command::Status(arguments) => return status::run(arguments, output),
            Command::Checkout(arguments) => checkout::run(arguments, output),
            Command::Branch(arguments) => branch::run(arguments, output),
            Command::Tag(arguments) => tag::run(arguments, output),
            Command::Merge(arguments) => merge::run(arguments, output),
            Command::Undo(arguments) => undo::run(arguments, output),
            Command::Redo(arguments) => redo::run(arguments, output),
            Command::Bisect(arguments) => return bisect::run(arguments, output),
            Command::Fsck(arguments) => fsck::run(arguments, output),
            Command::Gc(arguments) => gc::run(arguments, output),
            Command::Clone(arguments) => clone::run(arguments, output),
            Command::Push(arguments) => push::run(arguments, output),
            Command::Pull(arguments) => pull::run(arguments, output),
            Command::Man(arguments) => man::run(arguments, output),
            Command::Completions(arguments) => completions::run(*arguments, output),
        };
        done.map(|()| ExitKind::Done)
    }
}

/// Reads the value of an option that may stand without one. A word behind the option passes for its value, whatever it
/// was meant to be.
pub fn optional<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| "expected a number: put it behind the option with `=`, or the option last".to_owned())
}

/// Where a result goes: `-`, which elsewhere stands for standard input, would be a file of that name.
pub fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("results are not written to standard output: name a file; `./-` is one called `-`"),
        false => Ok(path),
    })
}

/// A corpus, which is read more than once: neither standard input nor a folder.
pub fn corpus_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("a corpus is read more than once, so not from standard input: name a file; `./-` is one called `-`"),
        false if path.is_dir() => Err("this is a folder: name a file, one document a line"),
        false => Ok(path),
    })
}

/// The whole command line as clap sees it; its long help ends with the table of exit codes.
pub fn command() -> clap::Command {
    let codes = ExitKind::ALL.map(|kind| format!("  {:>3}  {}\n", kind.code(), kind.meaning()));
    let help = format!(
        "Examples:\n  mpatch demo\n  mpatch create facts.json --base gptj/ --corpus wiki.txt -o edits.mpatch\n  \
         mpatch apply gptj/ edits.mpatch -o gptj-edited\n  mpatch revert gptj-edited edits.mpatch -o gptj-again\n\n\
         Exit codes:\n{}",
        codes.concat()
    );
    with_negative_numbers(Arguments::command()).after_long_help(help)
}

/// Has every option of a number take negative ones, too: its range is then what refuses them, and is told.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let numbers = [
        TypeId::of::<u8>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<f64>(),
    ];
    let of_number = |argument: clap::Arg| {
        let kind = argument.get_value_parser().type_id();
        let is_number = !argument.is_positional() && numbers.iter().any(|number| kind == *number);
        if is_number { argument.allow_negative_numbers(true) } else { argument }
    };
    command.mut_args(of_number).mut_subcommands(with_negative_numbers)
}

/// Reads the process's arguments, and what they have commands that are suggested say.
pub fn parse() -> Result<(Arguments, Suggestions), clap::Error> {
    let command = command();
    let matches = command.clone().try_get_matches()?;
    Ok((Arguments::from_arg_matches(&matches)?, Suggestions::of(&command, &matches)))
}

/// The command that the process's arguments name, as far as they name one, and its name in full.
pub fn named() -> (String, clap::Command) {
    let mut here = command();
    let mut name = here.get_name().to_owned();
    for word in std::env::args_os().skip(1) {
        if let Some(next) = word.to_str().and_then(|word| here.find_subcommand(word)).cloned() {
            name = format!("{name} {}", next.get_name());
            here = next;
        }
    }
    (name, here)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows the options in the help of `command`, and of all below it.
    fn help_texts(command: &clap::Command) -> Vec<String> {
        let text = command.get_after_long_help().or_else(|| command.get_after_help());
        let own = text.map(ToString::to_string).into_iter();
        own.chain(command.get_subcommands().flat_map(help_texts)).collect()
    }

    /// The commands in a document's blocks of code, each as its words.
    fn commands_in(document: &str) -> Vec<Vec<String>> {
        let (mut is_code, mut commands) = (false, Vec::new());
        for line in document.lines() {
            is_code ^= line.starts_with("```");
            let line = line.strip_prefix("$ ").unwrap_or(line);
            if is_code && line.starts_with("mpatch ") {
                let ends = ["  ", " #", " |", " >"].into_iter().filter_map(|end| line.find(end));
                commands.push(words_of(&line[..ends.min().unwrap_or(line.len())]));
            }
        }
        commands
    }

    fn words_of(line: &str) -> Vec<String> {
        let (mut quote, mut words) = (None, vec![String::new()]);
        for letter in line.chars() {
            match quote {
                Some(mark) if mark == letter => quote = None,
                None if ['\'', '"'].contains(&letter) => quote = Some(letter),
                None if letter == ' ' => words.push(String::new()),
                _ => words.last_mut().expect("there is one").push(letter),
            }
        }
        words
    }

    #[test]
    fn the_commands_in_the_documents_can_be_typed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let entries = std::fs::read_dir(root.join("docs")).expect("a folder");
        let documents = entries.map(|entry| entry.expect("an entry").path());
        let documents = documents.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
        let mut read = 0;
        for path in documents.chain([root.join("README.md")]) {
            let document = std::fs::read_to_string(&path).expect("a text");
            for words in commands_in(&document) {
                read += 1;
                let refused = command().try_get_matches_from(&words).err().filter(clap::Error::use_stderr);
                assert!(refused.is_none(), "{}: {words:?}: {refused:?}", path.display());
            }
        }
        assert!(read > 80, "{read}");
    }

    #[test]
    fn no_line_of_a_list_is_wrapped_on_a_terminal() {
        let texts = help_texts(&command());
        assert!(texts.len() > 30, "{texts:?}");
        for paragraph in texts.iter().flat_map(|text| text.split("\n\n")) {
            // The manual sets examples in by five columns more, and does not fill them.
            let length_max = if paragraph.starts_with("Examples:") { 75 } else { 80 };
            for line in paragraph.lines().filter(|line| line.starts_with(' ')) {
                assert!(line.chars().count() <= length_max, "{line}");
            }
        }
    }
}
