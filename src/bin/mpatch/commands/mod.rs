//! One file per verb: its arguments, its report, and `run`; here is what several verbs do alike.

pub mod add;
mod agreement;
pub mod apply;
pub mod behaviour;
pub mod bisect;
pub mod branch;
pub mod change;
pub mod checkout;
pub mod clone;
mod companions;
pub mod completions;
pub mod create;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod follow;
pub mod fsck;
pub mod gc;
pub mod init;
pub mod key_span;
pub mod log;
pub mod man;
pub mod merge;
pub mod names;
mod origins;
pub mod pull;
pub mod push;
pub mod rebase;
pub mod redo;
pub mod remake;
pub mod revert;
pub mod show;
pub mod sign;
pub mod stack;
pub mod states;
pub mod stats;
pub mod status;
pub mod tag;
pub mod trust;
pub mod try_out;
pub mod undo;
pub mod verify;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mpatch::checkpoint::{
    Checkpoint, CheckpointError, FileSource, Outcome, Recovered, is_index, recover_each,
};
use mpatch::digest::PatchId;
use mpatch::operation::{Answer, Difference, Direction, plan, survey_size_bytes};
use mpatch::patch::Patch;
use mpatch::tensor::Dtype;

use crate::error::{CommandError, ExitKind};
use crate::history::StoreArguments;
use crate::interrupt::{Work, doing, stop_flag};
use crate::places;
use crate::report::{Output, shell_word};
use crate::standing::absolute;

/// How the names of weights end.
const WEIGHTS_ENDING: &str = ".safetensors";
/// What stands for the name of a patch that has none.
const INFIX_DEFAULT: &str = "patched";
/// How the names of a checkpoint's files end, and its folder's does not.
const ENDINGS_OF_FILES: [&str; 2] = [WEIGHTS_ENDING, ".json"];
/// Stands for standard input where a file is asked for.
const STDIN: &str = "-";

/// What is expected where a patch is asked for.
const A_PATCH: &str = "a patch file, whose name usually ends in `.mpatch`";

/// Refuses a folder where `expected` is asked for.
pub fn refuse_folder(path: &Path, expected: &str) -> Result<(), CommandError> {
    if !path.is_dir() {
        return Ok(());
    }
    let error = std::io::ErrorKind::IsADirectory.into();
    Err(CommandError::io("read", path, &error).hint(format!("this is a folder: give {expected}")))
}

/// Opens a file, a pipe that a shell hands over, or standard input for `-`; with its size where it is known.
fn open_input(path: &Path) -> Result<(Box<dyn Read>, Option<u64>), CommandError> {
    if is_stdin(path) {
        return Ok((Box::new(std::io::stdin().lock()), None));
    }
    let failed = |error| CommandError::io("read", path, &error);
    let about = std::fs::metadata(path).map_err(failed)?;
    if about.file_type().is_char_device() {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is a device");
        return Err(failed(error).hint("give a file, or `-` for standard input"));
    }
    let file = places::open(path).map_err(failed)?;
    Ok((Box::new(file), about.is_file().then_some(about.len())))
}

/// Reads a whole file, or standard input for `-`.
pub fn read_input(path: &Path) -> Result<Vec<u8>, CommandError> {
    let (mut input, _) = open_input(path)?;
    let name = if is_stdin(path) { Path::new("stdin") } else { path };
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|error| CommandError::io("read", name, &error))?;
    Ok(bytes)
}

/// Copies a patch to where it can be opened.
fn copy_patch(path: &Path, sink: &mut dyn Write) -> Result<(), CommandError> {
    refuse_folder(path, A_PATCH)?;
    let (mut input, size_bytes) = open_input(path)?;
    let copied = Patch::copy(&mut input, size_bytes, sink);
    copied.map_err(|error| CommandError::patch(&path.to_string_lossy(), &error))
}

/// Whether a word names a file, or standard input: these win over what the history has by its name.
pub fn names_a_file(path: &Path) -> bool {
    is_stdin(path) || path.symlink_metadata().is_ok()
}

/// Opens and checks the patch in a file, whose sections stay there until they are wanted: a patch of many facts is
/// large.
///
/// Standard input is kept in a file without a name.
pub fn open_patch_file(path: &Path) -> Result<Patch, CommandError> {
    let source = if is_stdin(path) {
        let failed = |error| CommandError::io("keep", Path::new("stdin"), &error);
        let mut file = tempfile::tempfile().map_err(failed)?;
        copy_patch(path, &mut file)?;
        FileSource::of(file).map_err(failed)?
    } else if std::fs::metadata(path).is_ok_and(|about| about.is_file()) {
        FileSource::open(path)?
    } else {
        // A pipe, or no file at all.
        return read_patch_file(path);
    };
    Patch::open(Arc::new(source)).map_err(|error| CommandError::patch(&path.to_string_lossy(), &error))
}

/// Reads and checks the patch in a file, all of it into memory.
pub fn read_patch_file(path: &Path) -> Result<Patch, CommandError> {
    let mut bytes = Vec::new();
    copy_patch(path, &mut bytes)?;
    Patch::decode(bytes).map_err(|error| CommandError::patch(&path.to_string_lossy(), &error))
}

/// Opens and checks the patch in a file, or, where there is no file of this name, takes it from the history.
pub fn open_patch(path: &Path, store: &StoreArguments) -> Result<Patch, CommandError> {
    if names_a_file(path) {
        return open_patch_file(path);
    }
    match store.recorded_patch(path)? {
        Some(patch) => Ok(patch),
        None => open_patch_file(path).map_err(|error| match store.open() {
            Ok(_) => error.hint(
                "name a file, or a patch of the history by its id or a revision: `mpatch log` lists them",
            ),
            Err(_) => error,
        }),
    }
}

/// Opens several patches, in their order.
pub fn open_patches(paths: &[PathBuf], store: &StoreArguments) -> Result<Vec<Patch>, CommandError> {
    paths.iter().map(|path| open_patch(path, store)).collect()
}

/// Opens a checkpoint: the one place where that is done, so that changes in place that stopped half-way are brought
/// to an end before anybody looks at it.
pub fn open_checkpoint(path: &Path, output: &Output) -> Result<Checkpoint, CommandError> {
    {
        // Ended here, it would leave what it found, or less.
        let _doing = doing(Work::InPlace);
        // Bytes may have changed, which no report holds, nor the error of another change that cannot be ended now.
        recover_each(path, |recovered| output.warn(&recovered_words(&recovered))).map_err(not_opened)?;
    }
    let checkpoint = Checkpoint::open(path).map_err(not_opened)?;
    if let Some(words) = other_weights(path)
        && !OTHER_WEIGHTS_ARE_TOLD.swap(true, Ordering::Relaxed)
    {
        output.warn(&words);
    }
    Ok(checkpoint.stopping_on(stop_flag()))
}

/// A command may open a model more than once.
static OTHER_WEIGHTS_ARE_TOLD: AtomicBool = AtomicBool::new(false);

/// What to beware of where a path leads to a part of a model, or to one of two sets of weights.
fn other_weights(path: &Path) -> Option<String> {
    let name = path.display();
    if let Some(folder) = folder_of_shard(path) {
        let folder = folder.display();
        return Some(format!("`{name}` is one shard of a model: the whole of it is `{folder}`"));
    }
    let both = [SINGLE_FILE, INDEX].iter().all(|file| path.join(file).is_file());
    both.then(|| format!("`{name}` holds its weights twice: `{SINGLE_FILE}` is taken, and not `{INDEX}`"))
}

/// Names of the weights in a model folder, in the order in which they are looked for.
const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The folder of `model-00001-of-00003.safetensors`, if the index of the whole lies beside it.
fn folder_of_shard(path: &Path) -> Option<&Path> {
    let stem = path.file_name()?.to_str()?.strip_suffix(WEIGHTS_ENDING)?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let index = format!("{stem}{WEIGHTS_ENDING}.index.json");
    (is_number(count) && is_number(number) && path.with_file_name(index).is_file())
        .then(|| places::folder_of(path))
}

/// How the patch called `name` goes into a checkpoint, or comes out of it, if it does.
pub fn planned(
    checkpoint: &Checkpoint,
    patch: &Patch,
    name: &str,
    direction: Direction,
    output: &Output,
) -> Result<Answer, CommandError> {
    let progress = output.progress("comparing", survey_size_bytes(checkpoint, patch));
    plan(checkpoint, patch, direction, &|bytes| progress.add(bytes))
        .map_err(|error| CommandError::operation(name, error))
}

/// Why there is no checkpoint; where a cache of downloads has one elsewhere, with its place.
fn not_opened(error: CheckpointError) -> CommandError {
    let snapshot = match &error {
        CheckpointError::NotACheckpoint { path, .. } => snapshot_in(path),
        _ => None,
    };
    let refused = CommandError::from(error);
    match snapshot {
        Some(snapshot) => refused.hint(format!("the model lies in `{}`", snapshot.display())),
        None => refused,
    }
}

/// The folder that a model's folder in a hub's cache, or its `snapshots`, keeps the model in: that of its main branch,
/// else the only one.
fn snapshot_in(folder: &Path) -> Option<PathBuf> {
    let (model, snapshots) = match folder.file_name() {
        Some(name) if name == "snapshots" => (folder.join(".."), folder.to_owned()),
        _ => (folder.to_owned(), folder.join("snapshots")),
    };
    let main = std::fs::read_to_string(model.join("refs/main")).unwrap_or_default();
    let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let main = Some(main.trim()).filter(is_name).map(|name| snapshots.join(name));
    if let Some(main) = main.filter(|main| main.is_dir()) {
        return Some(main);
    }
    let mut folders = std::fs::read_dir(snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let first = folders.next()?;
    folders.next().is_none().then_some(first)
}

/// A change that had stopped half-way, in words.
fn recovered_words(recovered: &Recovered) -> String {
    let outcome = match recovered.outcome {
        Outcome::Untouched => "nothing had been changed yet",
        Outcome::RolledBack => "the old bytes are back",
        Outcome::Finished => "everything had been changed already",
    };
    let files = recovered.files.iter().map(|file| format!("`{}`", file.display()));
    let files = Vec::from_iter(files).join(", ");
    format!("{files}: recovered from `{}`, which had stopped half-way: {outcome}", recovered.label)
}

/// The path stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// The patch as a word of a suggested command line.
pub fn patch_word(path: &Path) -> String {
    if is_stdin(path) { "PATCH".to_owned() } else { shell_word(path) }
}

/// The same where the history may have moved meanwhile: a revision names another patch then, an id does not.
pub fn lasting_patch_word(path: &Path, id: PatchId) -> String {
    if names_a_file(path) { patch_word(path) } else { id.short() }
}

/// What helps where a tensor is in another type than the patch expects; none where something else differs, or where no
/// patch can touch what is there. `trust` are the words that let the patch pass.
pub fn hint_of_type(difference: &Difference, patch: &Path, base: &Path, trust: &str) -> Option<String> {
    let Difference::Dtype { found, .. } = difference else { return None };
    let (found, patch, base) = (Dtype::from_name(found)?, patch_word(patch), shell_word(base));
    Some(format!(
        "where this is its base in {found}, `mpatch rebase {patch} --base {base}{trust}` binds it to that, and with `--keep` the result fits both"
    ))
}

/// What a patch's name adds to the names of its results: `edits` of `edits.mpatch`.
pub fn infix(patch: &Path) -> OsString {
    match patch.file_stem() {
        Some(stem) if patch != Path::new(STDIN) => without_endings(stem),
        _ => OsString::from(INFIX_DEFAULT),
    }
}

/// `name` without the endings of a checkpoint's files: a folder whose name ended so would pass for one of them.
fn without_endings(name: &OsStr) -> OsString {
    let mut stem = name.as_bytes();
    while let Some(shorter) = ENDINGS_OF_FILES.iter().find_map(|ending| stem.strip_suffix(ending.as_bytes()))
    {
        stem = shorter;
    }
    // With the dot before it, it would be an ending itself.
    let is_ending = ENDINGS_OF_FILES.iter().any(|ending| ending.as_bytes().strip_prefix(b".") == Some(stem));
    match stem.is_empty() || is_ending {
        true => OsString::from(INFIX_DEFAULT),
        false => OsStr::from_bytes(stem).to_owned(),
    }
}

/// A result in the working folder, named after its patch: `edits.adapter` of `dir/edits.mpatch` for `.adapter`.
pub fn named_after(patch: &Path, ending: &str) -> PathBuf {
    let mut name = infix(patch);
    name.push(ending);
    name.into()
}

/// A name beside `checkpoint` with `infix` before its ending: `model.safetensors` becomes `model.edits.safetensors`,
/// and the folder `gptj` becomes `gptj.edits`. An index stands for the folder that it lies in.
///
/// In a hub's cache every name beside a checkpoint would pass for something that was downloaded, so none is given.
pub fn beside(checkpoint: &Path, infix: &OsStr) -> Result<PathBuf, CommandError> {
    refuse_hub_cache(checkpoint)?;
    let meant = folder_of_index(checkpoint).unwrap_or(checkpoint);
    // `.` and `..` have no name of their own to build on.
    let named = match meant.file_name() {
        Some(_) => meant.to_owned(),
        None => meant.canonicalize().map_err(|error| CommandError::io("open", meant, &error))?,
    };
    let (mut name, ending) = stem_and_ending(&named);
    name.push(".");
    name.push(without_endings(infix));
    name.push(ending);
    Ok(named.with_file_name(name))
}

/// The folder of an index of shards, if `checkpoint` is one.
fn folder_of_index(checkpoint: &Path) -> Option<&Path> {
    let folder = checkpoint.parent().filter(|_| is_index(checkpoint))?;
    Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// Refuses a default place for a result within the `snapshots` or the `blobs` of Hugging Face's cache.
fn refuse_hub_cache(checkpoint: &Path) -> Result<(), CommandError> {
    // Not the canonical path: a snapshot's files are links to blobs.
    if !absolute(checkpoint)?.ancestors().any(is_of_hub_cache) {
        return Ok(());
    }
    let message = format!(
        "`{}` lies in a cache of downloads, where a result would pass for one of them",
        checkpoint.display()
    );
    Err(CommandError::new(ExitKind::Usage, message).hint("say where the result goes with `-o`"))
}

/// What a suggested command has to say of where its result goes, with a blank before it: nothing, but in a hub's cache.
pub fn place_words(checkpoint: &Path) -> &'static str {
    if refuse_hub_cache(checkpoint).is_err() { " -o RESULT" } else { "" }
}

/// Whether a folder is `snapshots` or `blobs` of a model in a hub's cache: below `models--NAME`, or both side by side.
fn is_of_hub_cache(folder: &Path) -> bool {
    let (Some(name), Some(model)) = (folder.file_name(), folder.parent()) else { return false };
    if name != "snapshots" && name != "blobs" {
        return false;
    }
    let is_named = model.file_name().is_some_and(|name| name.as_bytes().starts_with(b"models--"));
    is_named || ["snapshots", "blobs"].iter().all(|name| model.join(name).is_dir())
}

/// A name beside `checkpoint` without `infix` before its ending, if it is there.
pub fn without_infix(checkpoint: &Path, infix: &OsStr) -> Option<PathBuf> {
    let checkpoint = folder_of_index(checkpoint).unwrap_or(checkpoint);
    let (stem, ending) = stem_and_ending(checkpoint);
    let stem = stem.as_bytes().strip_suffix(infix.as_bytes())?.strip_suffix(b".")?;
    if stem.is_empty() {
        return None;
    }
    let mut name = OsStr::from_bytes(stem).to_owned();
    name.push(ending);
    Some(checkpoint.with_file_name(name))
}

/// A checkpoint's name in two parts; that of a folder has one.
fn stem_and_ending(checkpoint: &Path) -> (OsString, &'static str) {
    let name = checkpoint.file_name().unwrap_or(OsStr::new("model"));
    let stem = name.as_bytes().strip_suffix(WEIGHTS_ENDING.as_bytes());
    match stem.filter(|stem| !stem.is_empty() && !checkpoint.is_dir()) {
        Some(stem) => (OsStr::from_bytes(stem).to_owned(), WEIGHTS_ENDING),
        None => (name.to_owned(), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_named_after_base_and_patch() {
        let edits = infix(Path::new("dir/edits.mpatch"));
        for (base, result) in [
            ("model.safetensors", "model.edits.safetensors"),
            ("a/gptj/", "a/gptj.edits"),
            ("a/gpt.j", "a/gpt.j.edits"),
            ("a/gptj/model.safetensors.index.json", "a/gptj.edits"),
            ("a/gptj/model.safetensors.index.fp16.json", "a/gptj.edits"),
            ("models--x/gptj", "models--x/gptj.edits"),
        ] {
            let named = beside(Path::new(base), &edits).expect("it has a name");
            assert_eq!(named, Path::new(result));
        }
        assert_eq!(place_words(Path::new("a/gptj")), "");
        let named = |bytes| Path::new(OsStr::from_bytes(bytes));
        let beside_latin = beside(named(b"na\xefve.safetensors"), &edits).expect("it has a name");
        assert_eq!(beside_latin, named(b"na\xefve.edits.safetensors"));
        assert_eq!(without_infix(&beside_latin, &edits).as_deref(), Some(named(b"na\xefve.safetensors")));
        for cached in [
            "hub/models--x/snapshots/abc",
            "models--x/snapshots/abc/model.safetensors",
            "models--x/blobs/05c5",
        ] {
            assert_eq!(beside(Path::new(cached), &edits).expect_err("it is a cache").kind.code(), 2);
            assert_eq!(place_words(Path::new(cached)), " -o RESULT");
        }
        assert_eq!(infix(Path::new("-")), "patched");
        // A folder that is called like a file is no output of a model in a folder.
        for (patch, expected) in [
            ("x.json.mpatch", "x"),
            ("x.safetensors.json.mpatch", "x"),
            ("json.mpatch", "patched"),
            (".json.mpatch", "patched"),
            ("x.jsonl.mpatch", "x.jsonl"),
        ] {
            assert_eq!(infix(Path::new(patch)), expected, "{patch}");
        }
    }

    #[test]
    fn a_result_taken_back_gets_its_first_name() {
        let edits = OsStr::new("edits");
        let base = |edited: &str| without_infix(Path::new(edited), edits);
        assert_eq!(base("a/model.edits.safetensors"), Some("a/model.safetensors".into()));
        assert_eq!(base("gptj.edits/"), Some("gptj".into()));
        assert_eq!(base("gptj.edits/model.safetensors.index.json"), Some("gptj".into()));
        assert_eq!(base("model.safetensors"), None);
        assert_eq!(base(".edits"), None);
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("gptj.safetensors");
        std::fs::create_dir(&folder).expect("a folder in it");
        assert_eq!(beside(&folder, edits).ok(), Some(place.path().join("gptj.safetensors.edits")));
    }
}
