//! Tests only: what faults and power cuts leave behind, tried one by one.
//!
//! ```text
//! Scene    a small disk in memory, a command, and the two contents that may be found there in the end
//! faults   operation N fails, for every N, every kind of fault, once and for good
//! power    the power goes at operation N; what was not synced survives in part; and it goes again while repairing
//! ```
//!
//! The commands are the library's own, on other disks than the real one. What the real one does when processes are
//! killed and file systems shut down is tried from outside, by the scripts in `tests/crash/`.

mod faults;
#[path = "../../tests/numbers/mod.rs"]
mod numbers;
mod power;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bind::bind;
use crate::checkpoint::disk::Files;
use crate::checkpoint::disk::simulated::SimulatedDisk;
use crate::checkpoint::recover::recover_on;
use crate::checkpoint::tests::file_of;
use crate::checkpoint::{
    Checkpoint, CheckpointError, NewTensor, write_new_folder_on, write_new_on, write_safetensors_on,
};
use crate::digest::FileDigest;
use crate::factors::{IntegerMatrix, Integers, Term};
use crate::operation::{Answer, Direction, OperationError, plan};
use crate::patch::manifest::{Base, Recipe};
use crate::patch::{Draft, Patch, encode};
use crate::tensor::Dtype;

const ROWS: usize = 16;
const COLUMNS: usize = 80;
/// The tensors that the patch touches, and one that it does not.
const TENSORS: [&str; 3] = ["first", "second", "untouched"];

/// What lies on a disk.
type Contents = BTreeMap<PathBuf, Vec<u8>>;

fn quiet(_: u64) {}

/// What a command does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Copy(Direction),
    InPlace(Direction),
    WriteNew,
    WriteNewFolder,
    WriteOver,
}

/// A disk, a command, and how the disk may look afterwards.
#[derive(Debug)]
struct Scene {
    name: &'static str,
    act: Act,
    disk: SimulatedDisk,
    /// The checkpoint.
    path: &'static str,
    patch: Patch,
    before: Contents,
    after: Contents,
}

impl Scene {
    /// Every way in which commands write checkpoints, patches and files beside them; a history has others.
    fn all() -> Vec<Self> {
        use Direction::{Apply, Revert};
        let (file, folder) = ("/m/model.safetensors", "/m");
        vec![
            Self::new("apply, a copy", Act::Copy(Apply), file),
            Self::new("revert, a copy", Act::Copy(Revert), file),
            Self::new("apply, a copy of shards", Act::Copy(Apply), folder),
            Self::new("apply in place", Act::InPlace(Apply), file),
            Self::new("revert in place", Act::InPlace(Revert), file),
            Self::new("apply in place, shards", Act::InPlace(Apply), folder),
            Self::new("revert in place, shards", Act::InPlace(Revert), folder),
            Self::new("a new patch", Act::WriteNew, file),
            Self::new("a new adapter", Act::WriteNewFolder, file),
            Self::new("new statistics over old ones", Act::WriteOver, file),
        ]
    }

    fn new(name: &'static str, act: Act, path: &'static str) -> Self {
        let disk = SimulatedDisk::new();
        disk.put_folder("/m");
        if path == "/m" {
            lay_out_shards(&disk)
        } else {
            disk.put(path, &safetensors(&TENSORS))
        }
        let patch = patch_for(&Files::on(disk.clone()), path);
        if act == Act::WriteOver {
            disk.put("/m/statistics", b"old statistics");
        }
        let mut scene =
            Self { name, act, disk, path, patch, before: Contents::new(), after: Contents::new() };
        if matches!(act, Act::Copy(Direction::Revert) | Act::InPlace(Direction::Revert)) {
            let edited = Self { act: Act::InPlace(Direction::Apply), ..scene };
            edited.run(&Files::on(edited.disk.clone())).unwrap();
            scene = Self { act, ..edited };
        }
        scene.before = scene.disk.contents();
        let disk = scene.disk.fork();
        scene.run(&Files::on(disk.clone())).unwrap();
        scene.after = disk.contents();
        assert_ne!(scene.before, scene.after, "{name} does something");
        scene
    }

    /// Runs the command.
    fn run(&self, files: &Files) -> Result<(), OperationError> {
        match self.act {
            Act::Copy(direction) => self.change(files, direction, Some(Path::new("/out"))),
            Act::InPlace(direction) => self.change(files, direction, None),
            Act::WriteNew => {
                Ok(write_new_on(files, Path::new("/m/new.mpatch"), self.patch.bytes().unwrap())?)
            }
            Act::WriteNewFolder => Ok(write_new_folder_on(files, Path::new("/m/adapter"), |folder| {
                write_new_on(files, &folder.join("adapter_config.json"), b"{}")?;
                write_new_on(files, &folder.join("adapter_model.safetensors"), self.patch.bytes().unwrap())
            })?),
            Act::WriteOver => {
                let shape = vec![ROWS as u64, COLUMNS as u64];
                let tensor = NewTensor { name: "moment".to_owned(), dtype: Dtype::F32, shape };
                let bytes = values(9);
                let path = Path::new("/m/statistics");
                let written = write_safetensors_on(files, path, &BTreeMap::new(), &[tensor], |_, sink| {
                    sink.write_all(&bytes)
                });
                Ok(written?)
            }
        }
    }

    fn change(
        &self,
        files: &Files,
        direction: Direction,
        target: Option<&Path>,
    ) -> Result<(), OperationError> {
        let checkpoint = Checkpoint::open_on(files, Path::new(self.path))?;
        let plan = match plan(&checkpoint, &self.patch, direction, &quiet)? {
            Answer::Fits(plan) => plan,
            other => panic!("{}: {other:?}", self.name),
        };
        let written = match target {
            Some(target) => plan.execute(&checkpoint, &self.patch, target, &quiet),
            None => plan.execute_in_place(&checkpoint, &self.patch, &quiet),
        };
        written.map(drop)
    }

    /// What the next command does before its own work, and needs no flag for.
    fn repair(&self, files: &Files) -> Result<(), OperationError> {
        match self.act {
            Act::Copy(_) | Act::InPlace(_) => {
                recover_on(files, Path::new(self.path), &mut drop)?;
                if let (Act::Copy(_), false) = (self.act, files.is_taken(Path::new("/out")).unwrap_or(true)) {
                    // Its litter lies in the target's folder, where the next command to write there sweeps.
                    return self.run(files);
                }
                Ok(())
            }
            Act::WriteNew | Act::WriteNewFolder | Act::WriteOver => match self.run(files) {
                Err(OperationError::Checkpoint(CheckpointError::OutputExists { .. })) => Ok(()),
                outcome => outcome,
            },
        }
    }

    /// Whether the contents are those of before or after, but for what repairing takes away.
    fn is_whole(&self, contents: &Contents) -> bool {
        let seen = visible(contents);
        seen == self.before || seen == self.after
    }
}

/// The contents without temporaries.
fn visible(contents: &Contents) -> Contents {
    let is_temporary = |path: &PathBuf| path.to_string_lossy().contains(".mpatch-tmp-");
    contents
        .iter()
        .filter(|(path, _)| !is_temporary(path))
        .map(|(path, bytes)| (path.clone(), bytes.clone()))
        .collect()
}

// ------------------------------------------------------------------------------------------------- the material --

/// Bytes of a tensor, other ones for every seed.
fn values(seed: usize) -> Vec<u8> {
    (0..ROWS * COLUMNS).flat_map(|index| ((index + 1000 * seed) as f32 / 512.0).sin().to_le_bytes()).collect()
}

fn safetensors(names: &[&str]) -> Vec<u8> {
    let bytes = |name: &str| values(TENSORS.iter().position(|known| *known == name).unwrap());
    file_of(names.iter().map(|name| (*name, "F32", [ROWS, COLUMNS], bytes(name))))
}

/// A tensor per shard, an index and a config.
fn lay_out_shards(disk: &SimulatedDisk) {
    let shard = |name: &str| format!("{name}.safetensors");
    let map: BTreeMap<_, _> = TENSORS.iter().map(|name| (*name, shard(name))).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    disk.put("/m/model.safetensors.index.json", index.as_bytes());
    disk.put("/m/config.json", b"{}");
    for name in TENSORS {
        disk.put(&format!("/m/{}", shard(name)), &safetensors(&[name]));
    }
}

fn term(seed: i16) -> Term {
    let ones = |what, rows, columns| {
        let values = (0..rows * columns).map(|at| (at as i16 + seed) % 7 - 3).collect();
        IntegerMatrix::new(what, rows, columns, 4, values).unwrap()
    };
    let (left, right) = (ones("left", ROWS, 1), ones("right", 1, COLUMNS));
    Term::new(Integers::LowRank { left, right }, vec![0.03; ROWS], vec![0.5; COLUMNS]).unwrap()
}

fn patch_for(files: &Files, path: &str) -> Patch {
    let checkpoint = Checkpoint::open_on(files, Path::new(path)).unwrap();
    let terms = vec![term(1), term(2)];
    let weights = checkpoint.weights_id().unwrap();
    let touched = [("first".to_owned(), vec![0]), ("second".to_owned(), vec![1])];
    let binding = bind(&checkpoint, weights, &touched, &terms, &quiet).unwrap();
    let digest = FileDigest::of(b"");
    let text = |text: &str| text.to_owned();
    let base = Base { architecture: text("any"), config: digest, tokenizer: digest };
    let recipe = Recipe {
        method: text("none"),
        hyperparameters: text("{}"),
        layers: Vec::new(),
        contexts: Vec::new(),
        seed: 0,
        statistics: digest,
        facts: digest,
        tool: text("mpatch"),
        device: text("cpu"),
    };
    let draft = Draft::new(base, recipe, terms, vec![binding]);
    Patch::decode(encode(&draft).unwrap()).unwrap()
}
