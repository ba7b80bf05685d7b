//! Patches of patches: stacking, binding to other states, comparing, and extracting what another tool did.
#![cfg(feature = "edit")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where it stands; clippy sees only `#[test]` functions as tests"
)]

mod adapters;
mod agreement;
mod common;
mod comparisons;
mod drafts;
mod weights_file;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{npz, world};
use comparisons::Told;
use drafts::{Numbers, Weights, edit, halved};
use half::{bf16, f16};
use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::diff::{diff_checkpoints_size_bytes, diff_patches};
use mpatch::digest::FileDigest;
use mpatch::extract::{ExtractError, Extracted, Form, extract};
use mpatch::factors::Term;
use mpatch::facts::Targets;
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::manifest::{About, Base, Fact};
use mpatch::patch::{Draft, Patch, encode};
use mpatch::rebase::{RebaseError, RebaseOptions, rebase};
use mpatch::stack::{AddOptions, Named, Sides, Squash, StackError, Stacked, stack};
use mpatch::tensor::{Dtype, Element};
use mpatch::verify::{Depth, verify};
use proptest::prelude::*;
use weights_file::file_of;

fn quiet(_: u64) {}

// --------------------------------------------------------------------------------------------------- material --

const FIRST: &str = "transformer.h.0.mlp.fc_out.weight";
const SECOND: &str = "transformer.h.1.mlp.fc_out.weight";
const SHAPE: [usize; 2] = [12, 40];

/// The bytes of a safetensors file of these tensors.
fn safetensors(tensors: &[Weights]) -> Vec<u8> {
    file_of(
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype.name(), tensor.shape, &tensor.bytes)),
    )
}

fn write(folder: &Path, name: &str, tensors: &[Weights]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, safetensors(tensors)).unwrap();
    path
}

/// Two matrices to edit.
fn base(dtype: Dtype) -> Vec<Weights> {
    let mut numbers = Numbers(11);
    vec![numbers.weights(FIRST, dtype, SHAPE), numbers.weights(SECOND, dtype, SHAPE)]
}

fn fact(subject: &str, target: &str) -> Fact {
    Fact {
        id: None,
        prompt: "{} plays the sport of".into(),
        subject: subject.into(),
        target_new: target.into(),
        target_old: None,
        note: None,
    }
}

/// A patch on the checkpoint at `path` that edits both matrices and declares `facts`.
fn patch_on(path: &Path, seed: u64, facts: Vec<Fact>) -> Patch {
    let mut numbers = Numbers(seed);
    let terms = vec![numbers.low_rank(SHAPE, 2, 6, 0.3), numbers.low_rank(SHAPE, 3, 6, 0.2)];
    patch_of(path, terms, facts)
}

/// A patch that adds the first term to the first matrix and the second to the second.
fn patch_of(path: &Path, terms: Vec<Term>, facts: Vec<Fact>) -> Patch {
    let checkpoint = Checkpoint::open(path).unwrap();
    let edits = [(FIRST.to_owned(), vec![0]), (SECOND.to_owned(), vec![1])];
    let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    decoded(&Draft { facts, ..drafts::draft(terms, vec![binding]) })
}

fn decoded(draft: &Draft) -> Patch {
    Patch::decode(encode(draft).unwrap()).unwrap()
}

/// Applies `patch` to `base` and returns the new file.
fn applied(base: &Path, patch: &Patch, name: &str) -> PathBuf {
    let checkpoint = Checkpoint::open(base).unwrap();
    let Answer::Fits(plan) = plan(&checkpoint, patch, Direction::Apply, &quiet).unwrap() else {
        panic!("the patch does not apply to {}", base.display())
    };
    let target = base.with_file_name(name);
    plan.execute(&checkpoint, patch, &target, &quiet).unwrap();
    target
}

/// Takes `patch` back and returns the bytes of the whole file.
fn reverted(edited: &Path, patch: &Patch, name: &str) -> Vec<u8> {
    let checkpoint = Checkpoint::open(edited).unwrap();
    let Answer::Fits(plan) = plan(&checkpoint, patch, Direction::Revert, &quiet).unwrap() else {
        panic!("the patch is not in {}", edited.display())
    };
    let target = edited.with_file_name(name);
    plan.execute(&checkpoint, patch, &target, &quiet).unwrap();
    fs::read(target).unwrap()
}

fn tensor_bytes(path: &Path, name: &str) -> Vec<u8> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.read(checkpoint.tensor(name).unwrap()).unwrap()
}

const NAMES: [&str; 4] = ["a.mpatch", "b.mpatch", "c.mpatch", "d.mpatch"];

fn named<'a>(patches: &[&'a Patch]) -> Vec<Named<'a>> {
    NAMES.iter().zip(patches).map(|(name, patch)| Named { name, patch }).collect()
}

fn stacked_with(
    base: &Path,
    patches: &[&Patch],
    sides: &Sides,
    options: &AddOptions,
) -> Result<Stacked, StackError> {
    stack(&Checkpoint::open(base).unwrap(), &named(patches), sides, options, &quiet)
}

fn stacked(base: &Path, patches: &[&Patch]) -> Result<Stacked, StackError> {
    stacked_with(base, patches, &Sides::Refuse, &AddOptions::default())
}

fn refusal(base: &Path, patches: &[&Patch]) -> String {
    stacked(base, patches).unwrap_err().to_string()
}

// --------------------------------------------------------------------------------------------------- stacking --

/// The base in F16, in a folder of its own.
fn base_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F16));
    (folder, path)
}

#[test]
fn a_stack_is_the_sum_of_its_terms_in_order_with_one_rounding() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = tempfile::tempdir().unwrap();
        let tensors = base(dtype);
        let path = write(folder.path(), "base.safetensors", &tensors);
        let one = patch_on(&path, 1, vec![fact("A", "golf")]);
        let other = patch_on(&path, 2, vec![fact("B", "chess")]);
        for (order, patches) in [[&one, &other], [&other, &one]].into_iter().enumerate() {
            let made = stacked(&path, &patches).unwrap();
            assert_eq!(made.draft.terms.len(), 4);
            let both = decoded(&made.draft);
            let edited = applied(&path, &both, &format!("edited-{order}.safetensors"));
            for (index, tensor) in tensors.iter().enumerate() {
                let terms = patches.map(|patch| patch.term(index as u32).unwrap());
                let expected = edit(tensor, &[&terms[0], &terms[1]]).after;
                assert!(tensor_bytes(&edited, &tensor.name) == expected, "{dtype} {}", tensor.name);
            }
            let name = format!("back-{order}.safetensors");
            assert!(reverted(&edited, &both, &name) == fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_stack_holds_the_facts_of_all_and_replaces_its_patches() {
    let (_folder, path) = base_file();
    let one = patch_on(&path, 1, vec![fact("A", "golf"), fact("B", "chess")]);
    let other = patch_on(&path, 2, vec![fact(" b ", "Chess"), fact("C", "polo")]);
    let made = stacked(&path, &[&one, &other]).unwrap();
    assert_eq!(made.draft.facts, [fact("A", "golf"), fact("B", "chess"), fact("C", "polo")]);
    assert_eq!(made.draft.supersedes, [one.id(), other.id()]);
    assert!(made.draft.measured.is_empty(), "nobody measured the sum");
    assert_eq!(made.plan.duplicates.len(), 1);
    assert_eq!(made.plan.duplicates[0].second.name, "b.mpatch");
    assert_eq!(decoded(&made.draft).manifest().recipe.method, "stack");
    let found = refusal(&path, &[&decoded(&made.draft), &one]);
    assert_eq!(found, "`a.mpatch` holds `b.mpatch` already: it says that it replaces it");
    assert!(matches!(stacked(&path, &[&one, &one]), Err(StackError::Twice { .. })));
    assert!(matches!(stacked(&path, &[]), Err(StackError::Empty)));
}

#[test]
fn contradictions_are_named_with_both_patches() {
    let (_folder, path) = base_file();
    let one = patch_on(&path, 1, vec![fact("A", "golf"), fact("B", "chess"), fact("b", "go")]);
    let other = patch_on(&path, 2, vec![fact("a", "rugby")]);
    assert_eq!(
        refusal(&path, &[&one, &other]),
        "the patches contradict each other: \"a plays the sport of\" is to go on with \"golf\" in `a.mpatch` and with \
         \"rugby\" in `b.mpatch`"
    );
    // The other loses all that it says, so that nothing of it is added.
    let made = stacked_with(&path, &[&one, &other], &Sides::Ours, &AddOptions::default()).unwrap();
    assert_eq!((made.draft.terms.len(), made.draft.supersedes.as_slice()), (2, &[one.id()][..]));
    assert_eq!(made.draft.facts, one.manifest().facts);
    // The one loses one of three facts, and its update cannot be taken apart.
    let lost = stacked_with(&path, &[&one, &other], &Sides::Theirs, &AddOptions::default()).unwrap_err();
    assert!(matches!(lost, StackError::PartlyLost { lost: 1, facts: 3, .. }), "{lost}");
    let options = AddOptions { keep_partly_lost: true, ..AddOptions::default() };
    let sport = |subject, target| ("{} plays the sport of", subject, target);
    // The other patch's `a` is held against the one's `A`.
    let targets = Targets::of([sport("a", "Rugby"), sport("A", "golf")]);
    for sides in [Sides::Theirs, Sides::ByFact(targets)] {
        let made = stacked_with(&path, &[&one, &other], &sides, &options).unwrap();
        assert_eq!(made.draft.facts, [fact("a", "rugby"), fact("B", "chess"), fact("b", "go")]);
        assert_eq!(made.draft.terms.len(), 4);
    }
    let targets = Targets::of([sport("A", "tennis")]);
    let found = stacked_with(&path, &[&one, &other], &Sides::ByFact(targets), &options);
    let found = found.unwrap_err().to_string();
    assert!(found.contains("the chosen side is \"tennis\", which neither patch says: `a.mpatch`"), "{found}");
}

#[test]
fn all_who_say_what_loses_lose() {
    let (_folder, path) = base_file();
    let patches = [(1, "golf"), (2, "golf"), (3, "polo")];
    let patches = patches.map(|(seed, target)| patch_on(&path, seed, vec![fact("A", target)]));
    let made = stacked_with(&path, &patches.each_ref(), &Sides::Theirs, &AddOptions::default()).unwrap();
    assert_eq!(made.draft.supersedes, [patches[2].id()]);
    assert_eq!(made.draft.facts, [fact("A", "polo")]);
    // Unless it stands in the end, because another says it again.
    let last = patch_on(&path, 4, vec![fact("A", "golf")]);
    let patches = [&patches[0], &patches[2], &last];
    let made = stacked_with(&path, &patches, &Sides::Theirs, &AddOptions::default()).unwrap();
    assert_eq!(made.draft.supersedes, [patches[0].id(), last.id()]);
    assert_eq!(made.draft.facts, [fact("A", "golf")]);
}

#[test]
fn a_patch_made_on_top_of_another_comes_after_it() {
    let (_folder, path) = base_file();
    let below = patch_on(&path, 1, vec![fact("A", "golf")]);
    let edited = applied(&path, &below, "edited.safetensors");
    let above = patch_on(&edited, 2, vec![fact("A", "polo")]);
    let twice = applied(&edited, &above, "twice.safetensors");
    let top = patch_on(&twice, 3, vec![fact("B", "chess")]);
    let made = stacked(&path, &[&top, &above, &below]).unwrap();
    let order: Vec<_> = made.plan.patches().iter().map(|patch| patch.id).collect();
    assert_eq!(order, [below.id(), above.id(), top.id()]);
    assert!(made.plan.is_reordered());
    // What was made knowing the other changes it; that is no contradiction.
    assert_eq!(made.draft.facts, [fact("A", "polo"), fact("B", "chess")]);
    assert_eq!(made.plan.changed.len(), 1);
    // Without what is below there is nothing to put it on.
    let found = stacked(&path, &[&above]).unwrap_err();
    assert!(matches!(found, StackError::OtherBase { is_applied: false, .. }), "{found}");
    let found = stacked(&edited, &[&below]).unwrap_err();
    assert!(matches!(found, StackError::OtherBase { is_applied: true, .. }), "{found}");
    // A stack of the lower two is another state by a rounding; naming its parents is enough.
    let lower = decoded(&stacked(&path, &[&below, &above]).unwrap().draft);
    let rounded_once = applied(&path, &lower, "once.safetensors");
    let mut draft = patch_on(&rounded_once, 4, vec![fact("C", "go")]).draft().unwrap();
    draft.parents = vec![above.id(), below.id()];
    let child = decoded(&draft);
    let made = stacked(&path, &[&child, &below, &above]).unwrap();
    assert_eq!(made.plan.patches().last().unwrap().id, child.id());
    let found = refusal(&path, &[&child, &below]);
    assert!(found.contains(&format!("made on top of {}", above.id().short())), "{found}");
}

#[test]
fn patches_for_other_weights_are_refused() {
    let (folder, path) = base_file();
    let other = write(folder.path(), "other.safetensors", &base(Dtype::BF16));
    let (one, foreign) = (patch_on(&path, 1, vec![]), patch_on(&other, 2, vec![]));
    let found = stacked(&path, &[&one, &foreign]).unwrap_err();
    assert!(matches!(&found, StackError::OtherBase { name, .. } if name == "b.mpatch"), "{found}");
    let mut draft = foreign.draft().unwrap();
    draft.base.architecture = "OtherForCausalLM".into();
    // The weights it was made on are not known here; its parent is, but what it says of its model is not the same.
    draft.parents = vec![one.id()];
    let found = stacked(&path, &[&one, &decoded(&draft)]).unwrap_err();
    assert!(matches!(found, StackError::OtherModel { what: "the architecture", .. }), "{found}");
}

#[test]
fn shared_keys_are_measured() {
    let (_folder, path) = base_file();
    let mut numbers = Numbers(5);
    let terms = vec![numbers.low_rank(SHAPE, 2, 6, 0.3), numbers.low_rank(SHAPE, 2, 6, 0.3)];
    let one = patch_of(&path, terms.clone(), vec![]);
    // The same keys in the first matrix, others in the second.
    let other = patch_of(&path, vec![halved(&terms[0]), numbers.low_rank(SHAPE, 1, 6, 0.3)], vec![]);
    assert_eq!(stacked(&path, &[&one, &other]).unwrap().overlaps, []);
    let options = AddOptions { overlaps: true, ..AddOptions::default() };
    let made = stacked_with(&path, &[&one, &other], &Sides::Refuse, &options).unwrap();
    let [same, others] = &made.overlaps[..] else { panic!("{:?}", made.overlaps) };
    assert_eq!((same.tensor.as_str(), same.ranks), (FIRST, [2, 2]));
    assert!(same.angle_degrees < 1e-5 && (same.shared - 1.0).abs() < 1e-9, "{same:?}");
    assert!(others.angle_degrees > 30.0 && others.shared < 0.5, "{others:?}");
    assert_eq!((others.ranks, others.shared_by_chance), ([2, 1], 2.0 / 40.0));
    assert!(made.overlaps.iter().all(|overlap| overlap.patches == ["a.mpatch", "b.mpatch"]));
}

#[test]
fn squashing_makes_one_term_within_the_tolerance() {
    let (_folder, path) = base_file();
    let patches = [1, 2, 3].map(|seed| patch_on(&path, seed, vec![]));
    let options = AddOptions { squash: Some(Squash { tolerance: 0.01 }), ..AddOptions::default() };
    let made = stacked_with(&path, &patches.each_ref(), &Sides::Refuse, &options).unwrap();
    assert_eq!((made.draft.terms.len(), made.squashed.len()), (2, 2));
    assert!(made.squashed.iter().all(|squashed| squashed.error <= 0.01), "{:?}", made.squashed);
    assert_eq!([0, 1].map(|index: usize| made.squashed[index].rank_before), [6, 9]);
    let patch = decoded(&made.draft);
    let edited = applied(&path, &patch, "edited.safetensors");
    assert!(reverted(&edited, &patch, "back.safetensors") == fs::read(&path).unwrap());
}

// ---------------------------------------------------------------------------------------------------- rebasing --

#[test]
fn a_patch_is_bound_to_what_another_made_of_the_base() {
    let (_folder, path) = base_file();
    let one = patch_on(&path, 1, vec![fact("A", "golf")]);
    let other = patch_on(&path, 2, vec![fact("B", "chess")]);
    let edited = applied(&path, &one, "edited.safetensors");
    let checkpoint = Checkpoint::open(&edited).unwrap();
    let options = RebaseOptions { parents: vec![one.id(), one.id()], ..RebaseOptions::default() };
    let rebased = decoded(&rebase(&checkpoint, &other, &options, &quiet).unwrap());
    let manifest = rebased.manifest();
    assert_eq!((&manifest.facts, &manifest.parents), (&other.manifest().facts, &vec![one.id()]));
    assert!(manifest.measured.is_empty() && manifest.supersedes.is_empty());
    assert_eq!(rebased.term(0).unwrap(), other.term(0).unwrap());
    let twice = applied(&edited, &rebased, "twice.safetensors");
    assert!(reverted(&twice, &rebased, "once.safetensors") == fs::read(&edited).unwrap());
    let found = rebase(&checkpoint, &rebased, &options, &quiet);
    assert!(matches!(found, Err(RebaseError::Fits { .. })), "{found:?}");
}

#[test]
fn one_file_can_fit_a_base_in_several_types() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [Dtype::F16, Dtype::BF16, Dtype::F32]
        .map(|dtype| write(folder.path(), &format!("{dtype}.safetensors"), &base(dtype)));
    let patch = patch_on(&paths[0], 1, vec![fact("A", "golf")]);
    let options = RebaseOptions { keep: true, ..RebaseOptions::default() };
    let mut all = patch.clone();
    for path in &paths[1..] {
        let before = all.id();
        all = decoded(&rebase(&Checkpoint::open(path).unwrap(), &all, &options, &quiet).unwrap());
        assert_eq!(all.manifest().supersedes, [before]);
    }
    assert_eq!(all.manifest().bindings.len(), 3);
    assert_eq!(all.manifest().measured, patch.manifest().measured);
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let edited = applied(path, &all, &format!("edited-{name}"));
        assert!(reverted(&edited, &all, &format!("back-{name}")) == fs::read(path).unwrap());
    }
}

#[test]
fn weights_of_another_shape_are_no_base() {
    let (folder, path) = base_file();
    let patch = patch_on(&path, 1, vec![]);
    let mut tensors = base(Dtype::F16);
    tensors[1].shape = [SHAPE[1], SHAPE[0]];
    let other = Checkpoint::open(write(folder.path(), "other.safetensors", &tensors)).unwrap();
    let found = rebase(&other, &patch, &RebaseOptions::default(), &quiet).unwrap_err();
    assert!(matches!(found, RebaseError::Bind(_)), "{found}");
}

// -------------------------------------------------------------------------------------------------- extraction --

fn extraction(base: &Path, edited: &Path) -> Result<Extracted, ExtractError> {
    let (base, edited) = (Checkpoint::open(base).unwrap(), Checkpoint::open(edited).unwrap());
    let digest = FileDigest::of(b"");
    let model = Base { architecture: "unknown".into(), config: digest, tokenizer: digest };
    let told = Told::default();
    told.announce(diff_checkpoints_size_bytes(&base, &edited));
    let (announce, progress) = (|bytes| told.announce(bytes), |bytes| told.progress(bytes));
    let found = extract(&base, &edited, model, "test", About::default(), &announce, &progress)?;
    // A term that turns out too large is given up before all is read.
    if found.tensors.iter().all(|tensor| tensor.dtype != Dtype::F32 && tensor.form != Form::Corrections) {
        told.check_done();
    }
    Ok(found)
}

/// Extracts, and holds the patch to what it promises: the edited bytes, and the base's again.
fn extracted_exactly(base: &Path, edited: &Path) -> (Extracted, Patch) {
    let found = extraction(base, edited).unwrap();
    let patch = decoded(&found.draft);
    let made = applied(base, &patch, "made.safetensors");
    assert!(fs::read(&made).unwrap() == fs::read(edited).unwrap(), "the result is another one");
    assert!(reverted(&made, &patch, "back.safetensors") == fs::read(base).unwrap());
    for path in [base, edited] {
        let report = verify(&Checkpoint::open(path).unwrap(), &patch, Depth::BothStates, &quiet).unwrap();
        assert!(report.holds(), "{report:?}");
    }
    for name in ["made.safetensors", "back.safetensors"] {
        fs::remove_file(base.with_file_name(name)).unwrap();
    }
    (found, patch)
}

/// Each weight plus the entry of an update, rounded to the weights' type as a tool that computes in f32 does it.
fn merged<E: Element>(weights: &Weights, update: &[f32]) -> Weights {
    let size = E::DTYPE.size_bytes();
    let mut bytes = weights.bytes.clone();
    for (weight, update) in bytes.chunks_exact_mut(size).zip(update) {
        let sum = E::read(weight).to_f64() as f32 + update;
        E::round(f64::from(sum)).write(weight);
    }
    Weights { bytes, ..weights.clone() }
}

/// `scale * B A` in f32, as an adapter of rank `rank` is merged.
fn adapter(numbers: &mut Numbers, [rows, columns]: [usize; 2], rank: usize, scale: f32) -> Vec<f32> {
    let b: Vec<f32> = (0..rows * rank).map(|_| numbers.uniform() as f32).collect();
    let a: Vec<f32> = (0..rank * columns).map(|_| numbers.uniform() as f32).collect();
    let entry = |row: usize, column: usize| -> f32 {
        (0..rank).map(|k| b[row * rank + k] * a[k * columns + column]).sum()
    };
    (0..rows * columns).map(|place| scale * entry(place / columns, place % columns)).collect()
}

#[test]
fn a_merged_adapter_is_extracted_as_low_rank() {
    let shape = [160, 480];
    for (dtype, scale) in [(Dtype::F16, 0.01), (Dtype::BF16, 0.05), (Dtype::F32, 0.01)] {
        let folder = tempfile::tempdir().unwrap();
        let mut numbers = Numbers(21);
        let weights = numbers.weights(FIRST, dtype, shape);
        let update = adapter(&mut numbers, shape, 4, scale);
        let edited = match dtype {
            Dtype::F32 => merged::<f32>(&weights, &update),
            Dtype::F16 => merged::<f16>(&weights, &update),
            Dtype::BF16 => merged::<bf16>(&weights, &update),
        };
        let path =
            write(folder.path(), "base.safetensors", &[weights, numbers.weights(SECOND, dtype, SHAPE)]);
        let mut tensors = vec![edited];
        tensors.push(Weights { bytes: tensor_bytes(&path, SECOND), ..numbers.weights(SECOND, dtype, SHAPE) });
        let edited = write(folder.path(), "edited.safetensors", &tensors);
        let (found, patch) = extracted_exactly(&path, &edited);
        let [tensor] = &found.tensors[..] else { panic!("{:?}", found.tensors) };
        assert!(matches!(tensor.form, Form::LowRank { rank: 4, .. }), "{dtype}: {tensor:?}");
        let share = tensor.corrected as f64 / tensor.weights as f64;
        assert!(share < if dtype == Dtype::F32 { 1.0 } else { 0.3 }, "{dtype}: {share}");
        let dense = tensor.tensor_size_bytes;
        let most = if dtype == Dtype::F32 { dense } else { dense / 4 };
        assert!(patch.size_bytes() < most, "{dtype}: {} of {dense} bytes", patch.size_bytes());
    }
}

#[test]
fn an_edit_by_the_reference_implementation_is_extracted_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let base = world().join("model.safetensors");
    let path = folder.path().join("base.safetensors");
    fs::copy(&base, &path).unwrap();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let arrays = npz(&world().join("reference/n10/reference.npz"));
    let mut bytes = fs::read(&base).unwrap();
    let mut touched = BTreeMap::new();
    for layer in 0..3 {
        let name = format!("transformer.h.{layer}.mlp.fc_out.weight");
        let info = checkpoint.tensor(&name).unwrap();
        let [rows, columns] = [info.shape[0] as usize, info.shape[1] as usize];
        let (keys, residuals) = (&arrays[&format!("adjk_{name}")], &arrays[&format!("resid_{name}")]);
        let facts = keys.shape[1];
        let entry = |index: usize| -> f64 {
            let (row, column) = (index / columns, index % columns);
            (0..facts).map(|k| residuals.values[row * facts + k] * keys.values[column * facts + k]).sum()
        };
        let start = info.offset as usize;
        for (index, weight) in bytes[start..start + rows * columns * 2].chunks_exact_mut(2).enumerate() {
            // As the reference: an f32 copy of the weights plus the update in f32; then saved as f16.
            let sum = <f16 as Element>::read(weight).to_f64() as f32 + entry(index) as f32;
            <f16 as Element>::round(f64::from(sum)).write(weight);
        }
        touched.insert(name, facts);
    }
    let edited = folder.path().join("edited.safetensors");
    fs::write(&edited, bytes).unwrap();
    let (found, patch) = extracted_exactly(&path, &edited);
    assert_eq!(found.tensors.len(), touched.len());
    for tensor in &found.tensors {
        assert!(matches!(tensor.form, Form::LowRank { .. }), "{tensor:?}");
    }
    let dense: u64 = found.tensors.iter().map(|tensor| tensor.tensor_size_bytes).sum();
    assert!(patch.size_bytes() < dense / 2, "{} of {dense} bytes", patch.size_bytes());
}

#[test]
fn a_few_weights_are_corrected_without_terms() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = base(Dtype::BF16);
    let path = write(folder.path(), "base.safetensors", &tensors);
    let mut edited = tensors.clone();
    for place in [0, 5, 77, 958] {
        edited[0].bytes[place] ^= 0x41;
    }
    // A weight that becomes infinite, and one that becomes NaN.
    edited[0].bytes[200..204].copy_from_slice(&[0x80, 0x7f, 0xc1, 0x7f]);
    let edited = write(folder.path(), "edited.safetensors", &edited);
    let (found, _) = extracted_exactly(&path, &edited);
    let [tensor] = &found.tensors[..] else { panic!("{:?}", found.tensors) };
    assert_eq!((tensor.form, tensor.corrected), (Form::Corrections, 6));
}

#[test]
fn weights_that_all_change_at_random_are_extracted_too() {
    for dtype in [Dtype::F16, Dtype::F32] {
        let folder = tempfile::tempdir().unwrap();
        let tensors = base(dtype);
        let path = write(folder.path(), "base.safetensors", &tensors);
        let mut numbers = Numbers(5);
        let noise: Vec<f32> = (0..SHAPE[0] * SHAPE[1]).map(|_| 0.02 * numbers.uniform() as f32).collect();
        let edited: Vec<Weights> = tensors
            .iter()
            .map(|weights| match dtype {
                Dtype::F16 => merged::<f16>(weights, &noise),
                _ => merged::<f32>(weights, &noise),
            })
            .collect();
        let edited = write(folder.path(), "edited.safetensors", &edited);
        let (found, _) = extracted_exactly(&path, &edited);
        assert_eq!(found.tensors.len(), 2);
    }
}

/// A tensor as a safetensors header describes it, with bytes of any kind.
fn odd(folder: &Path, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, file_of([("odd", dtype, shape, bytes)])).unwrap();
    path
}

#[test]
fn a_bias_counts_as_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = odd(folder.path(), "base.safetensors", "F16", &[6], &[1; 12]);
    let edited = odd(folder.path(), "edited.safetensors", "F16", &[6], &[1, 1, 2, 1, 1, 1, 1, 9, 1, 1, 1, 1]);
    let (found, _) = extracted_exactly(&path, &edited);
    assert_eq!((found.tensors[0].shape, found.tensors[0].corrected), ([1, 6], 2));
}

#[test]
fn what_no_patch_can_do_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, dtype: &str, shape: &[usize], byte: u8| {
        odd(folder.path(), name, dtype, shape, &[byte; 24])
    };
    let message = |one: &Path, other: &Path| extraction(one, other).unwrap_err().to_string();
    let cube = [of("a", "F16", &[2, 2, 3], 1), of("b", "F16", &[2, 2, 3], 2)];
    assert_eq!(
        message(&cube[0], &cube[1]),
        "tensor `odd` differs and is F16 [2, 2, 3]: a patch changes matrices and vectors of F32, F16 and BF16"
    );
    let whole = [of("c", "I64", &[1, 3], 1), of("d", "I64", &[1, 3], 2)];
    assert!(message(&whole[0], &whole[1]).contains("is I64 [1, 3]"));
    let narrow = of("e", "F32", &[2, 3], 1);
    assert!(message(&cube[0], &narrow).contains("F16 [2, 2, 3] in one and F32 [2, 3] in the other"));
    assert!(matches!(extraction(&cube[0], &cube[0]), Err(ExtractError::Same)));
    let other = write(folder.path(), "other", &[Numbers(1).weights("even", Dtype::F16, [2, 3])]);
    assert!(message(&cube[0], &other).starts_with("tensor `odd` is in the first checkpoint only"));
    let both = write(
        folder.path(),
        "both",
        &["even", "odd"].map(|name| Numbers(1).weights(name, Dtype::F16, [2, 3])),
    );
    let one = write(folder.path(), "one", &[Numbers(1).weights("even", Dtype::F16, [2, 3])]);
    assert!(message(&one, &both).starts_with("tensor `odd` is in the second checkpoint only"));
}

/// Any bit patterns: NaN, infinities, both zeros, subnormals.
fn patterns(seed: u64, dtype: Dtype, shape: [usize; 2]) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let size = dtype.size_bytes();
    let mut bytes: Vec<u8> =
        (0..shape[0] * shape[1] * size).map(|_| (128.0 * numbers.uniform() + 128.0) as u8).collect();
    for weight in bytes.chunks_exact_mut(size).step_by(3) {
        let zeros = numbers.uniform() > 0.0;
        weight.iter_mut().for_each(|byte| *byte = if zeros { 0 } else { 0xff });
        weight[size - 1] &= 0x80 | if zeros { 0 } else { 0x7f };
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_two_matrices_have_an_exact_patch_between_them(
        seed in any::<u64>(),
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)],
        rows in 1..9_usize,
        columns in 1..14_usize,
        few in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let shape = [rows, columns];
        let of = |seed| Weights { name: FIRST.into(), dtype, shape, bytes: patterns(seed, dtype, shape) };
        let (before, mut after) = (of(seed), of(seed ^ 1));
        if few {
            let kept = after.bytes.len() / 2;
            after.bytes[..kept].copy_from_slice(&before.bytes[..kept]);
        }
        if before.bytes != after.bytes {
            let path = write(folder.path(), "base.safetensors", &[before]);
            let edited = write(folder.path(), "edited.safetensors", &[after]);
            extracted_exactly(&path, &edited);
        }
    }
}

#[test]
fn corrections_stay_where_they_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = base(Dtype::F16);
    let path = write(folder.path(), "base.safetensors", &tensors);
    let mut edited = tensors.clone();
    edited[0].bytes[0] ^= 1;
    let edited = write(folder.path(), "edited.safetensors", &edited);
    let patch = decoded(&extraction(&path, &edited).unwrap().draft);
    let found = stacked(&path, &[&patch, &patch_on(&path, 1, vec![])]).unwrap_err();
    assert!(matches!(found, StackError::Correction { .. }), "{found}");
    let options = AddOptions { drop_corrections: true, ..AddOptions::default() };
    let made = stacked_with(&path, &[&patch, &patch_on(&path, 1, vec![])], &Sides::Refuse, &options).unwrap();
    assert!(made.draft.bindings[0].tensors.iter().all(|tensor| tensor.correction.is_none()));
    let other = Checkpoint::open(write(folder.path(), "f32.safetensors", &base(Dtype::F32))).unwrap();
    let found = rebase(&other, &patch, &RebaseOptions::default(), &quiet).unwrap_err();
    assert!(matches!(found, RebaseError::Correction { .. }), "{found}");
}

// --------------------------------------------------------------------------------------------------- comparing --

#[test]
fn patches_are_compared_by_facts_recipe_and_updates() {
    let (_folder, path) = base_file();
    let one = patch_on(&path, 1, vec![fact("A", "golf"), fact("c", "chess"), fact("C", "go")]);
    let same = diff_patches(&one, &one).unwrap();
    assert!(same.is_same() && same.facts.same_facts == 3, "{same:?}");
    let mut numbers = Numbers(1);
    let mut terms = vec![numbers.low_rank(SHAPE, 2, 6, 0.3), numbers.low_rank(SHAPE, 3, 6, 0.2)];
    // The same update doubled, and another one.
    let doubled = terms[0].row_scales().iter().map(|scale| 2.0 * scale).collect();
    let column_scales = terms[0].column_scales().to_vec();
    terms[0] = Term::new(terms[0].integers().clone(), doubled, column_scales).unwrap();
    terms[1] = Numbers(9).low_rank(SHAPE, 1, 8, 0.2);
    let other = patch_of(&path, terms, vec![fact("a", "polo"), fact("C", "go"), fact("D", "golf")]);
    let mut draft = other.draft().unwrap();
    draft.recipe.seed = 8;
    let diff = diff_patches(&one, &decoded(&draft)).unwrap();
    assert!(!diff.is_same());
    let facts = &diff.facts;
    assert_eq!((&facts.added, &facts.removed), (&vec![fact("D", "golf")], &vec![fact("c", "chess")]));
    assert_eq!((facts.changed.len(), facts.changed[0].second.as_str(), facts.same_facts), (1, "polo", 1));
    assert_eq!(diff.recipe.iter().map(|change| change.field).collect::<Vec<_>>(), ["seed"]);
    let [first, second] = &diff.tensors[..] else { panic!("{:?}", diff.tensors) };
    let norms = [&first.first, &first.second].map(|size| size.as_ref().unwrap().norm);
    assert_eq!(norms[1], 2.0 * norms[0]);
    assert!(first.angle_degrees.unwrap() < 1e-5 && first.relative_difference == Some(1.0), "{first:?}");
    assert!(second.angle_degrees.unwrap() > 45.0, "{second:?}");
    assert_eq!(second.first.as_ref().unwrap().rank, 3);
}
