//! Where a checkpoint stands: which one is meant, and which of the states that a history knows its digests show.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mpatch::checkpoint::Checkpoint;
use mpatch::digest::{PatchId, TensorDigest};
use mpatch::store::state::{HalfWay, Stranger};
use mpatch::store::{Atlas, Base, BaseTensor, Commit, CommitId, Location, Store, StoreError, View};

use crate::error::{CommandError, ExitKind, with_causes};
use crate::history::CommitReport;
use crate::report::{Output, count, shell_word};

/// The checkpoint that was given with `--onto`, or the one that the history remembers.
pub fn model_path(store: &Store, given: Option<&Path>) -> Result<PathBuf, CommandError> {
    model_path_by("--onto CHECKPOINT", store, given)
}

/// The checkpoint that was given, in the `way` that the command has for it, or the one that the history remembers.
pub fn model_path_by(way: &str, store: &Store, given: Option<&Path>) -> Result<PathBuf, CommandError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let Some(model) = store.view()?.model else {
        return Err(CommandError::new(ExitKind::Usage, "this history does not know where its model is")
            .hint(format!(
                "name it with `{way}`; `mpatch checkout`, and what `apply` and `revert` record, is remembered"
            )));
    };
    let path = shown(&store.folder().join(model));
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(CommandError::io("open", &path, &error)
            .hint(format!("the history remembers it there: name the model with `{way}`"))),
        _ => Ok(path),
    }
}

/// `path` from the root on.
pub fn absolute(path: &Path) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|error| CommandError::io("find", path, &error))
}

/// How a history remembers `path`: from its own folder on, where it lies in it.
pub fn remembered(store_folder: &Path, path: &Path) -> Result<String, CommandError> {
    let (path, folder) = (absolute(path)?, absolute(store_folder)?);
    let path = path.strip_prefix(&folder).unwrap_or(&path);
    path.to_str().map(str::to_owned).ok_or_else(|| {
        CommandError::new(ExitKind::Usage, format!("`{}` is not UTF-8", path.display()))
            .hint("give the model another name")
    })
}

/// `path` from the working folder on, where it lies in it.
pub fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let inside = here.and_then(|here| path.strip_prefix(here).map(Path::to_owned).ok());
    match inside {
        Some(inside) if inside.as_os_str().is_empty() => PathBuf::from("."),
        Some(inside) => inside,
        None => path.to_owned(),
    }
}

/// Where a checkpoint stands, by its digests.
pub struct Located {
    pub standing: Location,
    /// How many tensors were hashed.
    pub compared: usize,
}

/// Hashes the tensors that tell the known states apart, or all.
pub fn locate(
    atlas: &Atlas,
    checkpoint: &Checkpoint,
    all: bool,
    output: &Output,
) -> Result<Located, CommandError> {
    if let Some(stranger) = misfit(atlas.base(), checkpoint) {
        return Ok(Located { standing: Location::Unknown(stranger), compared: 0 });
    }
    let digests = digests(atlas, checkpoint, all, output)?;
    Ok(Located { standing: atlas.locate(&digests), compared: digests.len() })
}

/// By what a checkpoint's state was told: of the other tensors nothing is known.
pub fn compared_words(compared: usize, tensors: usize) -> String {
    match compared {
        0 => "by the names, types and shapes of its tensors; no digest was computed".to_owned(),
        all if all == tensors => format!("by the digests of {}: all", count(tensors, "tensor")),
        _ => {
            format!("by the digests of {compared} of {}: those that patches touch", count(tensors, "tensor"))
        }
    }
}

/// The base's tensors that a checkpoint lacks, or has with another type or shape.
pub fn misfits<'a>(base: &'a Base, checkpoint: &Checkpoint) -> Vec<&'a BaseTensor> {
    let tensors = base.tensors.iter();
    tensors.filter(|known| !fits(checkpoint, known)).collect()
}

/// What keeps a checkpoint from being in any state of a history which begins with `base`, whatever its weights are.
fn misfit(base: &Base, checkpoint: &Checkpoint) -> Option<Stranger> {
    let misfits = misfits(base, checkpoint);
    let tensor = misfits.first()?.name.clone();
    Some(Stranger { tensor, found: None, strangers: misfits.len(), tensors: base.tensors.len() })
}

/// Refuses a checkpoint that can be in no state of a history which begins with `base`; no digest is computed.
pub fn refuse_misfit(base: &Base, checkpoint: &Checkpoint, path: &Path) -> Result<(), CommandError> {
    let Some(stranger) = misfit(base, checkpoint) else { return Ok(()) };
    let message = format!("`{}` is no model of this history: {}", path.display(), stranger_words(&stranger));
    Err(CommandError::new(ExitKind::WrongBase, message).hint(
        "give the base, or a checkpoint that was made from it with patches of this history, or leave `--base` out",
    ))
}

fn fits(checkpoint: &Checkpoint, known: &BaseTensor) -> bool {
    let found = checkpoint.tensor(&known.name);
    found.is_ok_and(|info| info.dtype == known.dtype && info.shape == known.shape)
}

/// The digests of the tensors that tell the known states apart, or of all; of those that are as the base has them.
pub fn digests(
    atlas: &Atlas,
    checkpoint: &Checkpoint,
    all: bool,
    output: &Output,
) -> Result<BTreeMap<String, TensorDigest>, CommandError> {
    let needed = atlas.needed();
    // While there is no patch, only all tensors together tell the base from another model.
    let chosen = if all || needed.is_empty() { atlas.base().tensors.iter().collect() } else { needed };
    let chosen: Vec<&BaseTensor> = chosen.into_iter().filter(|known| fits(checkpoint, known)).collect();
    let infos = chosen.iter().map(|known| checkpoint.tensor(&known.name)).collect::<Result<Vec<_>, _>>()?;
    let progress = output.progress("comparing", infos.iter().map(|info| info.size_bytes).sum());
    let digests = checkpoint.digests_with(&infos, &|bytes| progress.add(bytes))?;
    Ok(chosen.iter().map(|known| known.name.clone()).zip(digests).collect())
}

/// All states that the history knows; what holds none is warned of, and refused where it is asked for.
pub fn atlas(store: &Store, asked: &[CommitId], output: &Output) -> Result<Atlas, CommandError> {
    let (atlas, unsound) = store.atlas(asked)?;
    unsound.iter().for_each(|error| output.warn(&format!("passed by: {}", with_causes(error))));
    Ok(atlas)
}

/// Which commit has which series, without the series themselves.
pub struct Commits(Vec<(CommitId, usize, Option<PatchId>)>);

impl Commits {
    pub fn of(store: &Store) -> Result<Self, CommandError> {
        let outline = |commit: Commit| (commit.id, commit.series.len(), commit.series.last().copied());
        Ok(Self(store.commits()?.map(|commit| Ok(outline(commit?))).collect::<Result<_, StoreError>>()?))
    }

    /// Those whose state comes of `series`, first those with names.
    pub fn with(
        &self,
        store: &Store,
        view: &View,
        series: &[PatchId],
    ) -> Result<Vec<CommitReport>, CommandError> {
        let may_be = |(_, length, last): &&(CommitId, usize, Option<PatchId>)| {
            (*length, last.as_ref()) == (series.len(), series.last())
        };
        let mut found = Vec::new();
        for (id, ..) in self.0.iter().filter(may_be) {
            let commit = store.commit(*id)?;
            if commit.series == series {
                found.push(CommitReport::new(commit, view));
            }
        }
        found.sort_by_key(|commit| commit.names.is_empty());
        Ok(found)
    }
}

/// The series that leads to where the checkpoint stands and from which the way to `target` is shortest.
pub fn series_at(
    atlas: &Atlas,
    standing: &Location,
    checkpoint: &Path,
    target: &[PatchId],
) -> Result<Vec<PatchId>, CommandError> {
    let name = checkpoint.display();
    match standing {
        Location::At(found) => {
            let series = found.iter().map(|&index| atlas.known()[index].series());
            let nearest = series.min_by_key(|series| mpatch::store::way(series, target).len());
            Ok(nearest.unwrap_or_default().to_vec())
        }
        Location::HalfWay(half) => {
            let message = format!("`{name}` is half-way between two states: {}", half_way_words(half));
            Err(CommandError::new(ExitKind::WrongBase, message)
                .hint("begin again with a fresh copy of the base, or of any state"))
        }
        Location::Unknown(stranger) => {
            let message =
                format!("`{name}` is in no state that this history knows: {}", stranger_words(stranger));
            let mut hint =
                "give the base, or a checkpoint that was made from it with patches of this history"
                    .to_owned();
            if let Some(unrecorded) = unrecorded_words(stranger, checkpoint) {
                hint = format!("{hint}; {unrecorded}");
            }
            Err(CommandError::new(ExitKind::WrongBase, message).hint(hint))
        }
    }
}

pub fn half_way_words(half: &HalfWay) -> String {
    match half.patch {
        Some(patch) => {
            format!(
                "{} of {} are as after patch {}, the others as before it",
                half.changed,
                count(half.tensors, "tensor"),
                patch.short()
            )
        }
        None => "each tensor is in a known state, but no two patches explain the mixture".to_owned(),
    }
}

/// What to do about a patch that is in the weights and not in the history: of an `apply` that was killed before it
/// recorded it, nothing else tells.
pub fn unrecorded_words(stranger: &Stranger, checkpoint: &Path) -> Option<String> {
    stranger.found?;
    let checkpoint = shell_word(checkpoint);
    Some(format!(
        "where an `apply` was stopped before it recorded its patch, `mpatch add PATCH` records that, and `mpatch revert {checkpoint} PATCH --in-place` takes it out"
    ))
}

pub fn stranger_words(stranger: &Stranger) -> String {
    let Stranger { tensor, found, strangers, tensors } = stranger;
    let problem = match found {
        Some(found) => format!("tensor `{tensor}` hashes to {found}, as in none of them"),
        None => format!("tensor `{tensor}` is missing, or has another type or shape than in the base"),
    };
    if *strangers > 1 { format!("{problem}; {strangers} of {tensors} in all") } else { problem }
}
