//! `mpatch demo`: the main job on a small model that comes with mpatch, step by step, by the same commands that a
//! user types.

use std::path::{Path, PathBuf};

use clap::{Args, FromArgMatches};
use mpatch::digest::FileDigest;
use mpatch::sign::allowed_signers::line_of;
use serde::Serialize;

use crate::args::{Arguments, command};
use crate::error::{CommandError, ExitKind};
use crate::interrupt::Passing;
use crate::keys::{new_key, private_text};
use crate::places;
use crate::projects;
use crate::report::{Output, Page, Report, quoted, shell_word};
use crate::statistics::file_digest;
use crate::trust::ALLOWED_SIGNERS;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch demo\n  mpatch demo --keep demo/")]
pub struct DemoArguments {
    /// Keep the model, the patch and all results in this new folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

/// The model's files, carried in the program: a GPT-J of 2.1 million parameters trained on a made-up world.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../../../../fixtures/world-gptj/config.json")),
    ("tokenizer.json", include_bytes!("../../../../fixtures/world-gptj/tokenizer.json")),
    ("memit.json", include_bytes!("../../../../fixtures/world-gptj/memit.json")),
    ("model.safetensors", include_bytes!("../../../../fixtures/world-gptj/model.safetensors")),
    ("corpus.txt", include_bytes!("../../../../fixtures/world-gptj/corpus.txt")),
    ("facts.json", include_bytes!("../../../../fixtures/world-gptj/facts.json")),
];

/// The steps: a heading, and the command, whose words are separated by single spaces.
const STEPS: [(&str, &str); 6] = [
    (
        "1. What does the model already hold? Statistics of its keys, over a corpus",
        "stats model/corpus.txt --base model --tokens all -o statistics.safetensors",
    ),
    (
        "2. Make a patch from a file of ten facts",
        "create model/facts.json --base model --stats statistics.safetensors --key key -o edits.mpatch",
    ),
    (
        "3. Apply it: a new file beside the old one",
        "apply model/model.safetensors edits.mpatch -o model/edited.safetensors",
    ),
    (
        "4. Check the result against what the patch promises",
        "verify edits.mpatch --base model/edited.safetensors --records model/facts.json --stats statistics.safetensors",
    ),
    ("5. Ask the model, before and after", "try edits.mpatch --base model --tokens 12 --top 3"),
    (
        "6. Take the patch back, from the edited file alone",
        "revert model/edited.safetensors edits.mpatch -o model/reverted.safetensors",
    ),
];

/// Asked in step 5: a fact of the patch, and a neighbour that it must leave alone.
const PROMPTS: [&str; 2] = ["Pavel Prestellman performs on the", "Elena Cairollez performs on the"];

/// What `demo` prints at the end.
#[derive(Debug, Serialize)]
struct DemoReport {
    base: FileDigest,
    edited: FileDigest,
    reverted: FileDigest,
    equal: bool,
    kept: Option<PathBuf>,
}

/// Runs the steps in a folder of their own.
pub fn run(arguments: &DemoArguments, output: &Output) -> Result<(), CommandError> {
    let (passing, folder) = match &arguments.keep {
        Some(keep) => Passing::make(|| fresh(keep))?,
        None => Passing::new()?,
    };
    // Inside its folder the demo's commands read as a user would type them.
    std::env::set_current_dir(&folder).map_err(|error| CommandError::io("enter", &folder, &error))?;
    unpack(Path::new("model"))?;
    make_key(arguments.keep.is_some())?;
    for (title, line) in STEPS {
        let step = Step::new(line);
        output.step(title, &step.shown())?;
        step.run(output)?;
    }
    let report = DemoReport::new(arguments.keep.clone())?;
    if arguments.keep.is_some() && report.equal {
        passing.keep();
        return output.report_done(&report);
    }
    output.report(&report)?;
    if !report.equal {
        return Err(CommandError::new(ExitKind::Bug, "the reverted file is not the base"));
    }
    Ok(())
}

/// Makes the folder that is to be kept; it must be new.
fn fresh(folder: &Path) -> Result<PathBuf, CommandError> {
    std::fs::create_dir(folder).map_err(|error| CommandError::io("create", folder, &error))?;
    folder.canonicalize().map_err(|error| CommandError::io("open", folder, &error))
}

/// Writes the model's files into the new `folder`.
pub fn unpack(folder: &Path) -> Result<(), CommandError> {
    std::fs::create_dir(folder).map_err(|error| CommandError::io("create", folder, &error))?;
    for (name, bytes) in FILES {
        mpatch::checkpoint::write_new(&folder.join(name), bytes)?;
    }
    Ok(())
}

/// A key of the demo's own, which its folder trusts as a project would. A folder that is kept is accepted for good, any
/// other for as long as the demo runs, so that nothing of the user's is touched.
fn make_key(is_kept: bool) -> Result<(), CommandError> {
    let key = new_key("demo")?;
    places::write_private(Path::new("key"), private_text(&key)?.as_bytes())?;
    let (project, line) = (Path::new(".mpatch"), line_of("demo", key.public()) + "\n");
    places::make_folder(project)?;
    places::replace_own(&project.join(ALLOWED_SIGNERS), line.as_bytes())?;
    match is_kept {
        true => projects::accept(project, line.as_bytes()),
        false => projects::accept_for_now(project, line.as_bytes()),
    }
}

/// One command of the demo.
struct Step {
    words: Vec<String>,
}

impl Step {
    fn new(line: &str) -> Self {
        let mut words: Vec<String> =
            std::iter::once("mpatch").chain(line.split(' ')).map(str::to_owned).collect();
        if line.starts_with("try ") {
            words.extend(PROMPTS.map(str::to_owned));
        }
        Self { words }
    }

    /// The command as a user would type it.
    fn shown(&self) -> String {
        self.words.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }

    fn run(&self, output: &Output) -> Result<(), CommandError> {
        let bug =
            |error: clap::Error| CommandError::new(ExitKind::Bug, format!("the demo's own command: {error}"));
        let matches = command().try_get_matches_from(&self.words).map_err(bug)?;
        let arguments = Arguments::from_arg_matches(&matches).map_err(bug)?;
        arguments.command.run(&output.of_step()).map(|_| ())
    }
}

impl DemoReport {
    fn new(kept: Option<PathBuf>) -> Result<Self, CommandError> {
        let base = file_digest(Path::new("model/model.safetensors"))?;
        let edited = file_digest(Path::new("model/edited.safetensors"))?;
        let reverted = file_digest(Path::new("model/reverted.safetensors"))?;
        Ok(Self { base, edited, reverted, equal: base == reverted && base != edited, kept })
    }
}

impl Report for DemoReport {
    const SCHEMA: &'static str = "mpatch.demo/1";

    fn write(&self, page: &mut Page) {
        page.blank();
        page.title("The three files, by the BLAKE3 of all their bytes");
        let row = |name: &str, digest: FileDigest| vec![name.to_owned(), digest.to_string()];
        page.table(&[row("base", self.base), row("edited", self.edited), row("reverted", self.reverted)]);
        if self.equal {
            page.line("reverted and base are the same file, bit for bit");
        }
    }

    fn next(&self) -> Option<String> {
        Some(match &self.kept {
            // The key of the demo is trusted within its folder only.
            Some(folder) => format!("cd {} && mpatch show edits.mpatch", shell_word(folder)),
            None => "mpatch demo --keep demo".to_owned(),
        })
    }
}
