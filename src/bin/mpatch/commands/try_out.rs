//! `mpatch try`: one prompt, before and after a patch, without writing anything.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::evaluate::{TokenProbability, continuation, top_tokens};
use mpatch::facts::excerpt;
use mpatch::model::{Model, ModelError, Network};
use mpatch::patch::Patch;
use mpatch::verify::State;
use serde::Serialize;

use super::{open_patch, patch_word};
use crate::editing::{BothStates, ModelArguments, both_states, model_error};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::trust::{TrustArguments, judge};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch try edits.mpatch --base gptj/ \"LeBron James plays the sport of\"\n  \
                  mpatch try edits.mpatch --base gptj/ --tokens 40 --top 10 \\\n      \
                  \"The Space Needle is in\""
)]
pub struct TryArguments {
    /// Try this patch, which the model may have already: a file, or the id or the revision of one in the history;
    /// `-` reads it from standard input
    patch: PathBuf,
    /// Continue these prompts
    #[arg(required = true)]
    prompts: Vec<String>,
    #[command(flatten)]
    model: ModelArguments,
    /// Continue by this many tokens, or to the end of the model's context
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    tokens: usize,
    /// Show this many of the likeliest next tokens; 0 leaves them out
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    top: usize,
}

#[derive(Debug, Serialize)]
struct TryReport {
    patch: PathBuf,
    base: PathBuf,
    /// What the weights hold; the other state was made in memory.
    held: State,
    /// What `apply` has to be told of the patch's signatures.
    #[serde(skip)]
    trust: Option<String>,
    prompts: Vec<PromptReport>,
}

#[derive(Debug, Serialize)]
struct PromptReport {
    prompt: String,
    before: Said,
    after: Said,
}

/// What one model makes of a prompt.
#[derive(Debug, Serialize)]
struct Said {
    continuation: String,
    top: Vec<TokenProbability>,
}

impl TryArguments {
    /// A prompt that is the place of something, where no model is named: `apply` takes its model so.
    fn place_among_prompts(&self) -> Option<&str> {
        let is_place = |prompt: &&String| self.model.is_left_out() && Path::new(prompt).exists();
        self.prompts.iter().find(is_place).map(String::as_str)
    }
}

/// Shows both models' continuations.
pub fn run(arguments: &TryArguments, output: &Output) -> Result<(), CommandError> {
    let patch = open_patch(&arguments.patch, &arguments.model.store)?;
    let model = arguments.model.open(output).map_err(|error| match arguments.place_among_prompts() {
        Some(model) => error.hint(format!("name the model with `--base {}`", shell_word(model))),
        None => error,
    })?;
    let BothStates { held, before, after } = both_states(&model, &patch, &arguments.patch, output)?;
    if let Some(place) = arguments.place_among_prompts() {
        let word = shell_word(place);
        output.warn(&format!("`{place}` is taken for a prompt: `--base {word}` names a model"));
    }
    warn_of_context(&model, arguments, output);
    let prompt = |prompt: &String| {
        Ok(PromptReport {
            prompt: prompt.clone(),
            before: said(&model, &before, prompt, arguments)?,
            after: said(&model, &after, prompt, arguments)?,
        })
    };
    output.report(&TryReport {
        patch: arguments.patch.clone(),
        base: model.checkpoint.path().to_owned(),
        held,
        trust: allowance(&patch, &arguments.patch, output),
        prompts: arguments.prompts.iter().map(prompt).collect::<Result<_, CommandError>>()?,
    })
}

/// Says which prompts are continued by fewer tokens than were asked for.
fn warn_of_context(model: &Model, arguments: &TryArguments, output: &Output) {
    let context = model.network.config().positions;
    for prompt in &arguments.prompts {
        if prompt.ends_with(char::is_whitespace) {
            output.warn(&format!(
                "{} ends in a blank, which the model takes for a word of its own: leave it out",
                excerpt(prompt)
            ));
        }
        // What cannot be run is refused when it is.
        let Ok(ids) = model.tokenizer.encode(prompt) else { continue };
        match context.checked_sub(ids.len()) {
            Some(room) if room < arguments.tokens => output.warn(&format!(
                "{} is continued by {} only: the model's context ends at {context}",
                excerpt(prompt),
                count(room, "token")
            )),
            _ => {}
        }
    }
}

/// The flag that lets `apply` take the patch, with a blank before it where it needs one; none where no flag helps, or
/// where its line speaks against it.
fn allowance(patch: &Patch, path: &Path, output: &Output) -> Option<String> {
    let any = TrustArguments {
        allow_unsigned: true,
        allow_unknown: true,
        allow_expired: true,
        ..TrustArguments::default()
    };
    // Trying a patch asks for no trust, so nothing about it is a failure here.
    let permitted = judge(patch, path, &any, output).ok()?.permit().ok()?;
    Some(permitted.report.allowed.iter().map(|allowance| format!(" {}", allowance.flag())).collect())
}

fn said(
    model: &Model,
    network: &Network,
    prompt: &str,
    arguments: &TryArguments,
) -> Result<Said, CommandError> {
    let failed = |error| match error {
        // The prompt is what is wrong here, and it came by the command line.
        ModelError::Text { what } => {
            CommandError::new(ExitKind::Usage, format!("the prompt {}: {what}", excerpt(prompt)))
                .hint("give a prompt that is neither empty nor longer than the model's context")
        }
        error => model_error(model.checkpoint.path(), error),
    };
    Ok(Said {
        continuation: continuation(model, network, prompt, arguments.tokens).map_err(failed)?,
        top: top_tokens(model, network, prompt, arguments.top).map_err(failed)?,
    })
}

impl Report for TryReport {
    const SCHEMA: &'static str = "mpatch.try/1";

    fn write(&self, page: &mut Page) {
        for (index, prompt) in self.prompts.iter().enumerate() {
            if index > 0 {
                page.blank();
            }
            page.title(&prompt.prompt);
            page.line(&format!("before │{}", prompt.before.continuation));
            page.line(&format!("after  │{}", prompt.after.continuation));
            let token = |said: &Said, rank: usize| match said.top.get(rank) {
                Some(next) => [format!("{:?}", next.token), format!("{:.4}", next.probability)],
                None => [String::new(), String::new()],
            };
            let rows = (0..prompt.before.top.len())
                .map(|rank| [token(&prompt.before, rank), token(&prompt.after, rank)].concat());
            if !prompt.before.top.is_empty() {
                page.table_under(["before", "", "after", ""], rows);
            }
        }
    }

    fn next(&self) -> Option<String> {
        let (verb, trust) = match self.held {
            State::Base => ("apply", self.trust.as_deref()?),
            State::Edited => ("revert", ""),
        };
        Some(format!("mpatch {verb} {} {}{trust}", shell_word(&self.base), patch_word(&self.patch)))
    }
}
