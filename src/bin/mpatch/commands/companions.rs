//! What lies beside the weights that `verify` is given: whether they can be run with it, and whether it is what the
//! patch was made with.

use std::path::Path;

use mpatch::digest::FileDigest;
use mpatch::model::{Config, ModelError, TokenizerFiles};
use mpatch::patch::Patch;

use super::open_checkpoint;
use crate::error::CommandError;
use crate::report::Output;

/// The config and the tokenizer beside the weights, looked at as a whole.
#[derive(Debug, Clone, Default)]
pub struct Companions {
    /// Why the weights cannot be run.
    pub lack: Option<String>,
    /// The files that are others than the patch was made with, as a sentence begins with them.
    pub others: Option<&'static str>,
}

impl Companions {
    /// Looks at what lies beside the weights at `base`. A file that is there and broken is for opening the model to
    /// tell.
    pub fn beside(base: &Path, patch: &Patch, output: &Output) -> Result<Self, CommandError> {
        let checkpoint = open_checkpoint(base, output)?;
        let config = checkpoint.companion("config.json")?;
        let tokenizer = TokenizerFiles::beside(&checkpoint)?;
        let lack = match (config.as_deref().map(Config::parse), &tokenizer) {
            (None, _) => Some(missing("`config.json`")),
            (Some(Err(error @ ModelError::Unsupported { .. })), _) => Some(error.to_string()),
            (_, None) => Some(missing("`tokenizer.json`")),
            _ => None,
        };
        let made_with = &patch.manifest().base;
        let config = config.as_deref().map(FileDigest::of);
        let is_another = |found: Option<FileDigest>, expected: FileDigest| {
            // Of nothing, where the patch was made of weights alone.
            found.is_some_and(|found| found != expected) && !expected.is_of_nothing()
        };
        let others = (
            is_another(config, made_with.config),
            is_another(tokenizer.map(|files| files.digest()), made_with.tokenizer),
        );
        let others = match others {
            (true, true) => Some("`config.json` and the tokenizer"),
            (true, false) => Some("`config.json`"),
            (false, true) => Some("the tokenizer"),
            (false, false) => None,
        };
        Ok(Self { lack, others })
    }

    /// Warns of files that may make the model another one. They are no error: what is saved anew has other bytes.
    pub fn warn(&self, base: &Path, output: &Output) {
        if let Some(others) = self.others {
            output.warn(&format!(
                "`{}`: {others} beside the weights: not the bytes that the patch was made with, so the model may \
                 answer otherwise",
                base.display()
            ));
        }
    }
}

fn missing(file: &str) -> String {
    format!("there is no {file} beside the weights")
}
