//! Why patches cannot be stacked.

use super::Clash;
use crate::bind::BindError;
use crate::checkpoint::CheckpointError;
use crate::digest::{PatchId, WeightsId};
use crate::factors::FactorError;
use crate::patch::PatchError;

/// Patches that cannot be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// Reading the base.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part of a patch cannot be decoded.
    #[error("`{name}`")]
    Patch {
        /// The patch.
        name: String,
        /// Why.
        source: PatchError,
    },
    /// The terms of all do not fit the base together.
    #[error(transparent)]
    Bind(BindError),
    /// The arithmetic refused.
    #[error("{}tensor `{tensor}`", patch.as_ref().map(|patch| format!("`{patch}`: ")).unwrap_or_default())]
    Factors {
        /// The patch; none where terms of several are added.
        patch: Option<String>,
        /// The tensor.
        tensor: String,
        /// Why.
        source: FactorError,
    },
    /// The result would replace more patches than the format lets one replace.
    #[error("{found} patches are too many for one to replace: at most {limit}")]
    TooMany {
        /// Patches whose updates are to be added.
        found: usize,
        /// How many the format allows.
        limit: usize,
    },
    /// What is to be added is not what was planned.
    #[error("the plan was made for other patches, or for these in another order")]
    OtherPatches,
    /// Nothing to stack.
    #[error("there are no patches to stack")]
    Empty,
    /// The same patch is given twice.
    #[error("`{first}` and `{second}` are the same patch, {id}")]
    Twice {
        /// The name given first.
        first: String,
        /// The name given later.
        second: String,
        /// The patch.
        id: PatchId,
    },
    /// A patch holds another's update already.
    #[error("`{name}` holds `{held}` already: it says that it replaces it")]
    Held {
        /// The patch that holds the other.
        name: String,
        /// The other.
        held: String,
    },
    /// Two patches have one update in common, as a patch and what was made of it by binding it anew.
    #[error("`{first}` and `{second}` have the same update")]
    Shared {
        /// The name given first.
        first: String,
        /// The name given later.
        second: String,
    },
    /// A patch was made for other weights.
    #[error("`{name}` was made on weights {}, the base has {}{}", expected.short(), found.short(), missing_parents(parents))]
    OtherBase {
        /// The patch.
        name: String,
        /// The state that it was made on; the first where it has several.
        expected: WeightsId,
        /// The base's state.
        found: WeightsId,
        /// Patches that it was made on top of and that were not given.
        parents: Vec<PatchId>,
        /// Its result is in the base already.
        is_applied: bool,
    },
    /// Patches for different models.
    #[error("`{name}` is for another model than `{first}`: {what} differs")]
    OtherModel {
        /// The patch.
        name: String,
        /// The first patch.
        first: String,
        /// Which digest or name differs.
        what: &'static str,
    },
    /// Facts that exclude each other.
    #[error("{}", in_words(.0))]
    Contradictions(Vec<Clash>),
    /// Facts of which a side was chosen that no patch is on.
    #[error("{}", chosen_in_words(.0))]
    ChosenByNeither(Vec<(Clash, String)>),
    /// A patch lost some of its facts, and its update cannot be taken apart.
    #[error(
        "`{name}` loses {lost} of its {facts} facts: a sum of updates would still hold what it wrote for them"
    )]
    PartlyLost {
        /// The patch.
        name: String,
        /// Facts that lost.
        lost: usize,
        /// Facts that it declares.
        facts: usize,
    },
    /// Every patch lost all its facts.
    #[error("every patch lost all its facts: nothing is left to stack")]
    NothingLeft,
    /// A patch that is more than its terms.
    #[error(
        "`{name}` corrects tensor `{tensor}` weight by weight, which holds on its own base only and cannot be added"
    )]
    Correction {
        /// The patch.
        name: String,
        /// The tensor.
        tensor: String,
    },
    /// This build cannot recompress, nor compare spaces.
    #[cfg(not(feature = "edit"))]
    #[error("recompressing terms and finding overlaps need the feature `edit`")]
    NoLinearAlgebra,
}

impl From<BindError> for StackError {
    /// What is wrong with a checkpoint, or that work on it was stopped, stands in one place.
    fn from(error: BindError) -> Self {
        match error {
            BindError::Checkpoint(error) => Self::Checkpoint(error),
            error => Self::Bind(error),
        }
    }
}

fn missing_parents(parents: &[PatchId]) -> String {
    if parents.is_empty() {
        return String::new();
    }
    let ids: Vec<String> = parents.iter().map(PatchId::short).collect();
    let are = if ids.len() == 1 { "is" } else { "are" };
    format!("; it was made on top of {}, which {are} not among the patches", ids.join(", "))
}

fn chosen_in_words(chosen: &[(Clash, String)]) -> String {
    let told = chosen.iter().take(TOLD_MAX).map(|(Clash { text, first, second }, target)| {
        format!(
            "of \"{text}\" the chosen side is \"{target}\", which neither patch says: `{}` says \"{}\", and `{}` \"{}\"",
            first.name, first.target, second.name, second.target
        )
    });
    let told: Vec<String> = told.collect();
    format!("{}{}", told.join("; "), and_more(chosen.len()))
}

/// How many are not told one by one.
fn and_more(count: usize) -> String {
    match count.saturating_sub(TOLD_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    }
}

/// Contradictions that are told one by one; of more only the number.
const TOLD_MAX: usize = 5;

fn in_words(clashes: &[Clash]) -> String {
    let told = clashes.iter().take(TOLD_MAX).map(|clash| {
        let Clash { text, first, second } = clash;
        format!(
            "\"{text}\" is to go on with \"{}\" in `{}` and with \"{}\" in `{}`",
            first.target, first.name, second.target, second.name
        )
    });
    let told: Vec<String> = told.collect();
    format!("the patches contradict each other: {}{}", told.join("; "), and_more(clashes.len()))
}
