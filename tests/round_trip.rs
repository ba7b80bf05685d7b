//! The promises about bytes: one patch, one result; revert is exact; what is refused leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where it stands; clippy sees only `#[test]` functions as tests"
)]

mod numbers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mpatch::bind::{BindError, NotFinite, bind, bind_with};
use mpatch::causes::with_causes;
use mpatch::checkpoint::{Checkpoint, CheckpointError};
use mpatch::digest::{FileDigest, TensorDigest};
use mpatch::factors::{FactorError, IntegerMatrix, Integers, Term, magnitude_limit};
use mpatch::operation::{Answer, Direction, OperationError, Plan, Written, plan};
use mpatch::patch::manifest::{Base, Recipe};
use mpatch::patch::{Draft, Patch, encode};
use mpatch::tensor::{Dtype, Element};
use mpatch::verify::{Depth, OtherState, State, verify};
use numbers::Numbers;
use proptest::prelude::*;
use tempfile::TempDir;

const FIRST: &str = "transformer.h.0.mlp.fc_out.weight";
const SECOND: &str = "transformer.h.1.mlp.fc_out.weight";
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

fn quiet(_: u64) {}

// --------------------------------------------------------------------------------------------------- samples --

impl Numbers {
    /// Uniform from 0 to below 1.
    fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Any bit patterns: NaN, infinities, both zeros and subnormals among them.
    fn patterns(&mut self, size_bytes: usize) -> Vec<u8> {
        (0..size_bytes).map(|_| self.bits() as u8).collect()
    }

    /// Weights as models have them.
    fn weights(&mut self, count: usize, dtype: Dtype) -> Vec<u8> {
        let mut bytes = vec![0; count * dtype.size_bytes()];
        for element in bytes.chunks_exact_mut(dtype.size_bytes()) {
            let value = (0..12).map(|_| self.share()).sum::<f64>() / 6.0 - 1.0;
            match dtype {
                Dtype::F32 => <f32 as Element>::round(value).write(element),
                Dtype::F16 => <f16 as Element>::round(value).write(element),
                Dtype::BF16 => <bf16 as Element>::round(value).write(element),
            }
        }
        bytes
    }

    fn integers(&mut self, rows: usize, columns: usize, bits: u8) -> IntegerMatrix {
        let limit = i64::from(magnitude_limit(bits));
        let mut value = || (self.bits() >> 1) as i64 % (2 * limit + 1) - limit;
        let values = (0..rows * columns).map(|_| value() as i16).collect();
        IntegerMatrix::new("sample", rows, columns, bits, values).unwrap()
    }

    fn term(&mut self, [rows, columns]: [usize; 2], rank: Option<usize>, exponent: i32) -> Term {
        let integers = match rank {
            Some(rank) => Integers::LowRank {
                left: self.integers(rows, rank, 6),
                right: self.integers(rank, columns, 6),
            },
            None => Integers::Dense(self.integers(rows, columns, 9)),
        };
        let mut scale = || ((0.5 + self.share()) * 2.0_f64.powi(exponent)) as f32;
        let row_scales = (0..rows).map(|_| scale()).collect();
        let column_scales = (0..columns).map(|_| scale()).collect();
        Term::new(integers, row_scales, column_scales).unwrap()
    }
}

#[derive(Clone)]
struct Tensor {
    name: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name, dtype: dtype.name(), shape: shape.to_vec(), bytes }
    }
}

/// A safetensors file with metadata and padding, its tensors in the order given.
fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut text = r#"{"__metadata__":{"format":"pt","note":"kept as it is"}"#.to_owned();
    let mut data: Vec<u8> = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let Tensor { name, dtype, shape, .. } = tensor;
        let (shape, end) = (serde_json::json!(shape), data.len());
        text +=
            &format!(r#", "{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#);
    }
    text += "}    ";
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat()
}

/// A small model: two tensors to edit, and others of other kinds around them.
fn model(dtype: Dtype, shape: [usize; 2], seed: u64) -> Vec<Tensor> {
    let numbers = &mut Numbers(seed);
    let count = shape[0] * shape[1];
    vec![
        Tensor::new("wte", dtype, &[7, 3], numbers.patterns(21 * dtype.size_bytes())),
        Tensor::new(SECOND, dtype, &shape, numbers.weights(count, dtype)),
        Tensor { name: "mask", dtype: "I64", shape: vec![1, 2], bytes: numbers.patterns(16) },
        Tensor::new(FIRST, dtype, &shape, numbers.weights(count, dtype)),
        Tensor::new("scalar", dtype, &[], numbers.patterns(dtype.size_bytes())),
    ]
}

fn write_single(folder: &Path, tensors: &[Tensor]) -> PathBuf {
    let path = folder.join("base.safetensors");
    fs::write(&path, safetensors(tensors)).unwrap();
    path
}

/// A model folder of three shards; the middle one holds nothing that is edited.
fn write_folder(folder: &Path, tensors: &[Tensor]) -> PathBuf {
    let path = folder.join("base");
    fs::create_dir(&path).unwrap();
    let mut weight_map = BTreeMap::new();
    for (number, shard) in [&tensors[..2], &tensors[2..3], &tensors[3..]].into_iter().enumerate() {
        let name = format!("model-{number}-of-3.safetensors");
        fs::write(path.join(&name), safetensors(shard)).unwrap();
        weight_map.extend(shard.iter().map(|tensor| (tensor.name, name.clone())));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(path.join("config.json"), "{}\n").unwrap();
    path
}

fn sample_draft(
    checkpoint: &Checkpoint,
    shape: [usize; 2],
    seed: u64,
    exponent: i32,
) -> Result<Draft, BindError> {
    let numbers = &mut Numbers(!seed);
    let terms = vec![
        numbers.term(shape, Some(shape[0].min(shape[1]).min(3)), exponent),
        numbers.term(shape, None, exponent),
    ];
    let edits = [(FIRST.to_owned(), vec![0]), (SECOND.to_owned(), vec![1, 0])];
    let weights = checkpoint.weights_id().unwrap();
    let mut binding = bind_with(checkpoint, weights, &edits, &terms, NotFinite::Keep, &quiet)?;
    binding.tensors.sort_by(|left, right| left.name.cmp(&right.name));
    let base = Base {
        architecture: "GPTJForCausalLM".to_owned(),
        config: FileDigest::of(b"config"),
        tokenizer: FileDigest::of(b"tokenizer"),
    };
    let recipe = Recipe {
        method: "memit".to_owned(),
        hyperparameters: "{}".to_owned(),
        layers: vec![0, 1],
        contexts: vec![vec!["{}".to_owned()]],
        seed,
        statistics: FileDigest::of(b"statistics"),
        facts: FileDigest::of(b"facts"),
        tool: "mpatch".to_owned(),
        device: "cpu".to_owned(),
    };
    Ok(Draft::new(base, recipe, terms, vec![binding]))
}

fn patch_of(draft: &Draft) -> Patch {
    Patch::decode(encode(draft).unwrap()).unwrap()
}

/// A base in a folder of its own, and a patch for it.
struct World {
    folder: TempDir,
    base: PathBuf,
    draft: Draft,
    patch: Patch,
}

const SHAPE: [usize; 2] = [9, 17];

impl World {
    fn new(dtype: Dtype, write: fn(&Path, &[Tensor]) -> PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = write(folder.path(), &model(dtype, SHAPE, 5));
        let draft = sample_draft(&Checkpoint::open(&base).unwrap(), SHAPE, 5, -8).unwrap();
        let patch = patch_of(&draft);
        Self { folder, base, draft, patch }
    }

    fn target(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn apply_to(base: &Path, patch: &Patch, target: &Path) -> Written {
    let checkpoint = Checkpoint::open(base).unwrap();
    plan_for(&checkpoint, patch, Direction::Apply).execute(&checkpoint, patch, target, &quiet).unwrap()
}

fn revert_from(edited: &Path, patch: &Patch, target: &Path) -> Written {
    let checkpoint = Checkpoint::open(edited).unwrap();
    plan_for(&checkpoint, patch, Direction::Revert).execute(&checkpoint, patch, target, &quiet).unwrap()
}

fn plan_for(checkpoint: &Checkpoint, patch: &Patch, direction: Direction) -> Plan {
    match plan(checkpoint, patch, direction, &quiet).unwrap() {
        Answer::Fits(plan) => plan,
        other => panic!("{other:?}"),
    }
}

/// All files of a checkpoint by name, whichever kind it is.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([("".to_owned(), fs::read(path).unwrap())]);
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// Changes the last weight of `tensor` to its neighbour above.
fn nudge(path: &Path, tensor: &str) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let info = checkpoint.tensor(tensor).unwrap();
    let file = checkpoint.files()[info.file_index].path();
    let mut bytes = fs::read(file).unwrap();
    let end = (info.offset + info.size_bytes) as usize;
    let size_bytes = info.element_dtype().unwrap().size_bytes();
    bytes[end - size_bytes] ^= 1;
    fs::write(file, bytes).unwrap();
}

// ----------------------------------------------------------------------------------------- there and back --

#[test]
fn every_kind_of_checkpoint_comes_back_byte_for_byte() {
    for write in [write_single, write_folder] {
        for dtype in DTYPES {
            let world = World::new(dtype, write);
            let (edited, reverted) = (world.target("edited"), world.target("reverted"));
            let before = contents(&world.base);
            let written = apply_to(&world.base, &world.patch, &edited);
            assert_eq!((written.tensors, written.not_finite), (2, Some(0)));
            assert!(written.changed.is_some_and(|changed| changed > 100), "{written:?}");
            assert_eq!(revert_from(&edited, &world.patch, &reverted).changed, None);
            assert!(contents(&world.base) == before, "the base was written to");
            assert!(contents(&reverted) == before, "{dtype}: the base did not come back");
            let changed = contents(&edited).into_iter().filter(|(name, bytes)| before[name] != *bytes);
            assert_eq!(changed.count(), if edited.is_file() { 1 } else { 2 });
        }
    }
}

#[test]
fn applying_gives_the_digests_that_the_patch_names_and_changes_nothing_else() {
    let world = World::new(Dtype::F16, write_folder);
    let edited = world.target("edited");
    apply_to(&world.base.join("model.safetensors.index.json"), &world.patch, &edited);
    let (base, edited) = (Checkpoint::open(&world.base).unwrap(), Checkpoint::open(&edited).unwrap());
    for (before, after) in base.tensors().iter().zip(edited.tensors()) {
        assert_eq!((before.name.as_str(), before.offset), (after.name.as_str(), after.offset));
        let bound = world.draft.bindings[0].tensors.iter().find(|bound| bound.name == before.name);
        let expected = bound.map_or_else(|| base.digest(before).unwrap(), |bound| bound.after);
        assert_eq!(edited.digest(after).unwrap(), expected, "{}", before.name);
    }
}

/// The digests are of x86-64; `tests/aarch64.sh` runs this on another machine.
#[test]
fn the_result_depends_neither_on_the_number_of_threads_nor_on_the_machine() {
    let shape = [300, 260];
    let digests = [Dtype::F32, Dtype::F16, Dtype::BF16].map(|dtype| {
        let folder = tempfile::tempdir().unwrap();
        let base = write_single(folder.path(), &model(dtype, shape, 3));
        let results = [1, 2, 3, 4, 5, 6, 7, 8].map(|threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let checkpoint = Checkpoint::open(&base).unwrap();
                let patch = patch_of(&sample_draft(&checkpoint, shape, 3, -8).unwrap());
                let target = folder.path().join(threads.to_string());
                apply_to(&base, &patch, &target);
                (patch.id(), fs::read(target).unwrap())
            })
        });
        assert!(results.iter().all(|result| *result == results[0]));
        TensorDigest::of(&results[0].1).to_string()[..16].to_owned()
    });
    assert_eq!(digests, ["d01421b70b4bc3e3", "63efec057db8e7c6", "4a65b2716f0a6f1f"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_bit_patterns_come_back(
        dtype in proptest::sample::select(DTYPES.to_vec()),
        shape in [1_usize..40, 1_usize..50],
        seed: u64,
        exponent in -20_i32..2,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = model(dtype, shape, seed);
        for index in [1, 3] {
            tensors[index].bytes = Numbers(seed ^ index as u64).patterns(shape[0] * shape[1] * dtype.size_bytes());
        }
        let base = write_single(folder.path(), &tensors);
        let checkpoint = Checkpoint::open(&base).unwrap();
        // A finite weight near the end of the range can leave it: then there is no patch, which is right.
        let draft = match sample_draft(&checkpoint, shape, seed, exponent) {
            Ok(draft) => draft,
            Err(BindError::Factors { source: FactorError::Overflow { .. }, .. }) => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let patch = patch_of(&draft);
        let (edited, reverted) = (folder.path().join("edited"), folder.path().join("reverted"));
        let report = verify(&checkpoint, &patch, Depth::BothStates, &quiet).unwrap();
        prop_assert!(report.holds(), "{report:?}");
        // A patch that changes no bit of these weights is applied and not applied at once.
        if draft.bindings[0].tensors.iter().all(|tensor| tensor.before == tensor.after) {
            return Ok(());
        }
        apply_to(&base, &patch, &edited);
        let report = verify(&Checkpoint::open(&edited).unwrap(), &patch, Depth::BothStates, &quiet).unwrap();
        prop_assert!(report.holds(), "{report:?}");
        revert_from(&edited, &patch, &reverted);
        prop_assert!(fs::read(&base).unwrap() == fs::read(&reverted).unwrap());
    }
}

// -------------------------------------------------------------------------------------------- the other answers --

#[test]
fn a_base_that_differs_by_one_bit_is_refused_by_name() {
    for dtype in DTYPES {
        let mut world = World::new(dtype, write_folder);
        nudge(&world.base, SECOND);
        let checkpoint = Checkpoint::open(&world.base).unwrap();
        let Answer::Elsewhere(mismatch) = plan(&checkpoint, &world.patch, Direction::Apply, &quiet).unwrap()
        else {
            panic!("not refused")
        };
        let found = checkpoint.digest(checkpoint.tensor(SECOND).unwrap()).unwrap();
        let expected = world.draft.bindings[0].tensors[1].before;
        let message = mismatch.to_string();
        assert!(message.contains(&format!("`{SECOND}` hashes to {found}, the patch expects {expected}; ")));
        assert!(message.ends_with("as before the patch: 1 of 2, with its result: 0 of 2"), "{message}");
        assert_eq!((mismatch.at_start, mismatch.at_end, mismatch.tensors), (1, 0, 2));
        // A tensor that the patch leaves as it is stands in both states, and is no sign that it was applied.
        world.draft.bindings[0].tensors[0].after = world.draft.bindings[0].tensors[0].before;
        let answer = plan(&checkpoint, &patch_of(&world.draft), Direction::Apply, &quiet).unwrap();
        assert!(matches!(answer, Answer::Elsewhere(told) if told.to_string() == message));
        let answer = plan(&checkpoint, &world.patch, Direction::Revert, &quiet).unwrap();
        assert!(matches!(answer, Answer::Elsewhere(_)), "{answer:?}");
        assert_eq!(world.names(), ["base"]);
    }
}

#[test]
fn a_patch_is_neither_applied_nor_reverted_twice() {
    let world = World::new(Dtype::F32, write_single);
    let edited = world.target("edited");
    apply_to(&world.base, &world.patch, &edited);
    let answer = plan(&Checkpoint::open(&edited).unwrap(), &world.patch, Direction::Apply, &quiet).unwrap();
    assert!(matches!(answer, Answer::Done { binding: 0, tensors: 2 }), "{answer:?}");
    let answer =
        plan(&Checkpoint::open(&world.base).unwrap(), &world.patch, Direction::Revert, &quiet).unwrap();
    assert!(matches!(answer, Answer::Done { binding: 0, tensors: 2 }), "{answer:?}");
}

#[test]
fn a_patch_applied_half_way_is_recognised() {
    let world = World::new(Dtype::F16, write_folder);
    let edited = world.target("edited");
    apply_to(&world.base, &world.patch, &edited);
    // The shard with the second tensor from the edited model, the others from the base.
    let shard = "model-0-of-3.safetensors";
    fs::copy(edited.join(shard), world.base.join(shard)).unwrap();
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let Answer::Elsewhere(mismatch) = plan(&checkpoint, &world.patch, Direction::Apply, &quiet).unwrap()
    else {
        panic!("not refused")
    };
    assert!(mismatch.is_half_way());
    assert_eq!(mismatch.tensor, SECOND);
    let message = mismatch.to_string();
    assert!(message.ends_with("; 1 of 2 touched tensors are in the other state already"), "{message}");
}

#[test]
fn a_second_binding_serves_the_other_type() {
    let world = World::new(Dtype::F32, write_single);
    let other = World::new(Dtype::F16, write_single);
    let mut draft = world.draft.clone();
    draft.bindings.extend(other.draft.bindings.clone());
    let patch = patch_of(&draft);
    let answer = |world: &World| {
        plan_for(&Checkpoint::open(&world.base).unwrap(), &patch, Direction::Apply).tensors[0].dtype
    };
    assert_eq!((answer(&world), answer(&other)), (Dtype::F32, Dtype::F16));
    let third = World::new(Dtype::BF16, write_single);
    let Answer::Elsewhere(mismatch) =
        plan(&Checkpoint::open(&third.base).unwrap(), &patch, Direction::Apply, &quiet).unwrap()
    else {
        panic!("not refused")
    };
    let message = mismatch.to_string();
    assert!(message.starts_with(&format!("tensor `{FIRST}` is BF16, the patch expects F")), "{message}");
}

// --------------------------------------------------------------------------------------- nothing is left behind --

#[test]
fn an_output_that_exists_is_left_alone() {
    for write in [write_single, write_folder] {
        let world = World::new(Dtype::F16, write);
        let target = world.target("taken");
        fs::write(&target, "precious").unwrap();
        let names = world.names();
        let checkpoint = Checkpoint::open(&world.base).unwrap();
        let plan = plan_for(&checkpoint, &world.patch, Direction::Apply);
        let error = plan.execute(&checkpoint, &world.patch, &target, &quiet).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` exists already and is not replaced", target.display()));
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(world.names(), names);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_first() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new(Dtype::F16, write_single);
    let closed = world.target("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        // The superuser may write anywhere.
        return;
    }
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let plan = plan_for(&checkpoint, &world.patch, Direction::Apply);
    let error = plan.execute(&checkpoint, &world.patch, &closed.join("out"), &quiet).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot write to `{}`: ", closed.display())), "{error}");
}

#[test]
fn a_base_that_changes_after_planning_is_noticed() {
    let world = World::new(Dtype::BF16, write_single);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let plan = plan_for(&checkpoint, &world.patch, Direction::Apply);
    nudge(&world.base, FIRST);
    let error = plan.execute(&checkpoint, &world.patch, &world.target("out"), &quiet).unwrap_err();
    assert!(matches!(error, OperationError::OtherState { .. }), "{error}");
    assert!(
        error.to_string().contains("is not in the state that the plan was made for: tensor `"),
        "{error}"
    );
    assert_eq!(world.names(), ["base.safetensors"]);
}

#[test]
fn a_base_cut_short_after_opening_is_an_error_and_leaves_nothing() {
    let world = World::new(Dtype::F32, write_single);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let plan = plan_for(&checkpoint, &world.patch, Direction::Apply);
    let size = fs::metadata(&world.base).unwrap().len();
    fs::File::options().write(true).open(&world.base).unwrap().set_len(size - 1).unwrap();
    let error = plan.execute(&checkpoint, &world.patch, &world.target("out"), &quiet).unwrap_err();
    let expected = format!("cannot read `{}`: ", world.base.display());
    assert!(with_causes(&error).starts_with(&expected), "{error}");
    assert_eq!(world.names(), ["base.safetensors"]);
    let error = Checkpoint::open(&world.base).unwrap_err().to_string();
    assert!(error.contains("is not a valid safetensors file: the tensors take"), "{error}");
}

#[test]
fn a_result_that_is_not_the_promised_one_is_thrown_away() {
    let mut world = World::new(Dtype::F16, write_folder);
    let wrong = TensorDigest::of(b"something else");
    world.draft.bindings[0].tensors[1].after = wrong;
    let patch = patch_of(&world.draft);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let plan = plan_for(&checkpoint, &patch, Direction::Apply);
    let error = plan.execute(&checkpoint, &patch, &world.target("out"), &quiet).unwrap_err();
    assert!(matches!(error, OperationError::WrongResult { .. }), "{error}");
    assert!(error.to_string().ends_with(&format!("the patch promises {wrong}")), "{error}");
    assert_eq!(world.names(), ["base"]);
    assert!(verify(&checkpoint, &patch, Depth::Digests, &quiet).unwrap().holds(), "only computing can tell");
    let digests = verify(&checkpoint, &patch, Depth::BothStates, &quiet).unwrap().digests.unwrap();
    let problem = digests.problem().unwrap();
    assert!(!digests.holds());
    assert!(problem.starts_with(&format!("tensor `{SECOND}` after the patch hashes to ")), "{problem}");
}

#[test]
fn a_plan_is_for_one_patch() {
    let world = World::new(Dtype::F16, write_single);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let plan = plan_for(&checkpoint, &world.patch, Direction::Apply);
    let mut draft = world.draft.clone();
    draft.about.title = Some("another".to_owned());
    let other = patch_of(&draft);
    let error = plan.execute(&checkpoint, &other, &world.target("out"), &quiet).unwrap_err();
    let expected = format!("the plan was made for patch {}, not for {}", world.patch.id(), other.id());
    assert_eq!(error.to_string(), expected);
}

// ------------------------------------------------------------------------------------------------ verification --

#[test]
fn verification_gives_its_evidence() {
    let world = World::new(Dtype::BF16, write_folder);
    let edited = world.target("edited");
    apply_to(&world.base, &world.patch, &edited);
    for (path, state) in [(&world.base, State::Base), (&edited, State::Edited)] {
        let checkpoint = Checkpoint::open(path).unwrap();
        for depth in [Depth::Digests, Depth::BothStates] {
            let report = verify(&checkpoint, &world.patch, depth, &quiet).unwrap();
            assert!(report.holds(), "{report:?}");
            assert_eq!((report.form.terms, report.form.undo_logs), (2, 2));
            let digests = report.digests.unwrap();
            let found = digests.found().unwrap();
            assert_eq!((found.state, found.binding), (state, 0));
            assert_eq!(found.weights.found, world.draft.bindings[0].weights);
            for tensor in &found.tensors {
                match tensor.other {
                    OtherState::NotComputed => assert_eq!(depth, Depth::Digests),
                    OtherState::Computed { changed, .. } => assert!(changed > 50, "{tensor:?}"),
                    OtherState::Stopped(ref problem) => panic!("{problem}"),
                }
                assert_eq!(tensor.other == OtherState::NotComputed, depth == Depth::Digests);
            }
            assert_eq!(digests.problem(), None);
        }
    }
}

#[test]
fn verification_sees_a_change_in_an_untouched_tensor() {
    let world = World::new(Dtype::F32, write_folder);
    nudge(&world.base, "wte");
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    plan_for(&checkpoint, &world.patch, Direction::Apply);
    let edited = world.target("edited");
    apply_to(&world.base, &world.patch, &edited);
    let found = checkpoint.weights_id().unwrap();
    let expected = world.draft.bindings[0].weights;
    let message = format!("the weights of the base have the id {found}, the patch expects {expected}");
    for checkpoint in [checkpoint, Checkpoint::open(&edited).unwrap()] {
        for depth in [Depth::Digests, Depth::BothStates] {
            let report = verify(&checkpoint, &world.patch, depth, &quiet).unwrap();
            assert!(!report.holds());
            assert!(report.digests.unwrap().problem().unwrap().starts_with(&message));
        }
    }
}

#[test]
fn verification_says_which_tensor_is_strange() {
    let world = World::new(Dtype::F32, write_single);
    nudge(&world.base, FIRST);
    let report =
        verify(&Checkpoint::open(&world.base).unwrap(), &world.patch, Depth::BothStates, &quiet).unwrap();
    let digests = report.digests.unwrap();
    assert!(digests.found().is_none() && !digests.holds());
    assert!(digests.problem().unwrap().starts_with(&format!("tensor `{FIRST}` hashes to ")));
}

#[test]
fn a_bad_undo_log_is_found_before_it_is_needed() {
    let mut world = World::new(Dtype::F16, write_single);
    world.draft.bindings[0].tensors[0].undo = vec![1, 2, 3];
    let patch = patch_of(&world.draft);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let report = verify(&checkpoint, &patch, Depth::BothStates, &quiet).unwrap();
    assert_eq!((report.form.undo_logs, report.digests.is_none()), (0, true));
    assert!(report.form.problem.unwrap().starts_with(&format!("tensor `{FIRST}`: undo log: ")));
    // What could not be taken back is not applied.
    let plan = plan_for(&checkpoint, &patch, Direction::Apply);
    assert!(plan.execute(&checkpoint, &patch, &world.target("out"), &quiet).is_err());
    assert_eq!(world.names(), ["base.safetensors"]);
}

#[test]
fn progress_adds_up_to_what_was_announced() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let world = World::new(Dtype::F32, write_folder);
    let checkpoint = Checkpoint::open(&world.base).unwrap();
    let done = AtomicU64::new(0);
    let count = |bytes| _ = done.fetch_add(bytes, Ordering::Relaxed);
    let Answer::Fits(plan) = plan(&checkpoint, &world.patch, Direction::Apply, &count).unwrap() else {
        panic!("refused")
    };
    assert_eq!(
        done.swap(0, Ordering::Relaxed),
        mpatch::operation::survey_size_bytes(&checkpoint, &world.patch)
    );
    plan.execute(&checkpoint, &world.patch, &world.target("out"), &count).unwrap();
    assert_eq!(done.swap(0, Ordering::Relaxed), plan.copy_size_bytes);
    for depth in [Depth::Digests, Depth::BothStates] {
        verify(&checkpoint, &world.patch, depth, &count).unwrap();
        let expected = mpatch::verify::verify_size_bytes(&checkpoint, &world.patch, depth);
        assert_eq!(done.swap(0, Ordering::Relaxed), expected);
    }
}

// ----------------------------------------------------------------------------------------------------- binding --

fn bind_error(tensors: &[Tensor], tensor: &str, terms: &[Term], indices: &[u32]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(write_single(folder.path(), tensors)).unwrap();
    let weights = checkpoint.weights_id().unwrap();
    let edits = [(tensor.to_owned(), indices.to_vec())];
    with_causes(&bind(&checkpoint, weights, &edits, terms, &quiet).unwrap_err())
}

#[test]
fn terms_that_do_not_fit_are_refused() {
    let tensors = model(Dtype::F32, SHAPE, 1);
    let numbers = &mut Numbers(1);
    let terms = [numbers.term(SHAPE, Some(2), -8), numbers.term([17, 9], Some(2), -8)];
    let error = |tensor: &str, indices: &[u32]| bind_error(&tensors, tensor, &terms, indices);
    assert_eq!(error("mask", &[0]), "tensor `mask` is I64: a patch can change F32, F16 and BF16");
    let expected = format!("tensor `{FIRST}` has shape [9, 17], the update has [17, 9]");
    assert_eq!(error(FIRST, &[0, 1]), expected);
    assert_eq!(error("scalar", &[0]), "tensor `scalar` has shape [], the update has [9, 17]");
    assert_eq!(error(FIRST, &[2]), format!("tensor `{FIRST}` asks for term 2 of 2"));
    assert_eq!(error(FIRST, &[]), format!("tensor `{FIRST}`: an update needs at least one term"));
    assert!(error("transformer.h.0.mlp.fc_out.bias", &[0]).ends_with(&format!("nearest name is `{FIRST}`")));
}

#[test]
fn a_tensor_is_bound_once() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(write_single(folder.path(), &model(Dtype::F32, SHAPE, 1))).unwrap();
    let terms = [Numbers(1).term(SHAPE, Some(2), -8)];
    let edits = [(FIRST.to_owned(), vec![0]), (FIRST.to_owned(), vec![0])];
    let error = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap_err();
    assert_eq!(error.to_string(), format!("tensor `{FIRST}` is listed twice"));
}

#[test]
fn no_patch_is_made_on_broken_weights() {
    let mut tensors = model(Dtype::F32, SHAPE, 1);
    for (row, column, value) in [(3, 4, f32::NAN), (8, 16, f32::NEG_INFINITY)] {
        let place = 4 * (row * SHAPE[1] + column);
        tensors[3].bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }
    let terms = [Numbers(1).term(SHAPE, Some(2), -8)];
    let expected = format!(
        "tensor `{FIRST}` holds 2 NaN or infinite weights, the first at row 3, column 4: \
         a patch is not made on broken weights"
    );
    assert_eq!(bind_error(&tensors, FIRST, &terms, &[0]), expected);
}

#[test]
fn the_norm_ratio_is_that_of_the_change() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = model(Dtype::F32, [1, 2], 1);
    tensors[3].bytes = [3.0_f32, 4.0].map(f32::to_le_bytes).concat();
    let checkpoint = Checkpoint::open(write_single(folder.path(), &tensors)).unwrap();
    let integers = Integers::Dense(IntegerMatrix::new("delta", 1, 2, 2, vec![1, 0]).unwrap());
    let terms = [Term::new(integers, vec![0.5], vec![1.0, 1.0]).unwrap()];
    let edits = [(FIRST.to_owned(), vec![0])];
    let bound = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    assert_eq!(bound.tensors[0].norm_ratio, 0.1);
    assert_eq!(bound.tensors[0].after, TensorDigest::of(&[3.5_f32, 4.0].map(f32::to_le_bytes).concat()));
}

#[test]
fn a_shard_outside_the_folder_is_not_opened() {
    let world = World::new(Dtype::F32, write_folder);
    let index = world.base.join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map":{"wte":"../base/model-0-of-3.safetensors"}}"#).unwrap();
    let error = Checkpoint::open(&world.base).unwrap_err();
    assert!(matches!(error, CheckpointError::Index { .. }), "{error}");
    assert!(error.to_string().ends_with("is not a plain file name"), "{error}");
}
