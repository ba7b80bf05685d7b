//! What several patches must have in common to be stacked: their model, and what they say of one thing.

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::facts::Targets;
use mpatch::patch::Patch;
use mpatch::patch::layout::PARENTS_MAX;
use mpatch::rebase::{RebaseError, RebaseOptions, rebase};
use mpatch::stack::{AddOptions, Named, Sides, StackError, plan};
use mpatch::tensor::Dtype;

use crate::drafts::{Numbers, draft};
use crate::{
    SHAPE, applied, base, base_file, decoded, extracted_exactly, fact, patch_on, quiet, stacked,
    stacked_with, write,
};

#[test]
fn what_two_patches_say_is_changed_only_by_one_that_knew_both() {
    let (_folder, path) = base_file();
    let [one, other] = [1, 2].map(|seed| patch_on(&path, seed, vec![fact("A", "golf")]));
    let edited = applied(&path, &one, "edited.safetensors");
    let above = patch_on(&edited, 3, vec![fact("A", "polo")]);
    assert_eq!(stacked(&path, &[&one, &above]).unwrap().draft.facts, [fact("A", "polo")]);
    let found = stacked(&path, &[&one, &other, &above]).unwrap_err();
    assert!(matches!(found, StackError::Contradictions(_)), "{found}");
}

#[test]
fn of_what_is_said_twice_the_first_is_named_and_a_choice_of_neither_is_told_before_what_nobody_chose() {
    let (_folder, path) = base_file();
    let said = [("golf", "chess"), ("golf", "chess"), ("polo", "go")];
    let patches = [1, 2, 3].map(|seed: usize| {
        let (one, other) = said[seed - 1];
        patch_on(&path, seed as u64, vec![fact("A", one), fact("B", other)])
    });
    let StackError::Contradictions(clashes) = stacked(&path, &patches.each_ref()).unwrap_err() else {
        panic!("two contradictions")
    };
    let names = clashes.iter().map(|clash| [clash.first.name.as_str(), clash.second.name.as_str()]);
    assert_eq!(names.collect::<Vec<_>>(), [["a.mpatch", "c.mpatch"]; 2]);
    let targets = Targets::of([("{} plays the sport of", "B", "tennis")]);
    let found = stacked_with(&path, &patches.each_ref(), &Sides::ByFact(targets), &AddOptions::default());
    let StackError::ChosenByNeither(clashes) = found.unwrap_err() else { panic!("chosen by neither") };
    assert!(clashes.iter().all(|(clash, _)| clash.text == "B plays the sport of") && clashes.len() == 1);
}

#[test]
fn a_term_of_several_tensors_goes_in_once_and_the_keys_of_a_patch_are_those_of_all_its_terms() {
    let (_folder, path) = base_file();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut numbers = Numbers(3);
    let terms = [2, 3].map(|rank| numbers.low_rank(SHAPE, rank, 6, 0.3));
    let names = || checkpoint.tensors().iter().map(|tensor| tensor.name.clone());
    let edits: Vec<_> = names().map(|name| (name, vec![0, 1])).collect();
    let weights = checkpoint.weights_id().unwrap();
    let binding = bind(&checkpoint, weights, &edits, &terms, &quiet).unwrap();
    let shared = decoded(&draft(terms.to_vec(), vec![binding]));
    let other = patch_on(&path, 7, vec![]);
    let options = AddOptions { overlaps: true, ..AddOptions::default() };
    let made = stacked_with(&path, &[&shared, &other], &Sides::Refuse, &options).unwrap();
    assert_eq!(made.draft.terms.len(), 4);
    let ranks: Vec<_> = made.overlaps.iter().map(|overlap| overlap.ranks).collect();
    assert_eq!(ranks, [[5, 2], [5, 3]]);
    let of_tensors = made.draft.bindings[0].tensors.iter().map(|tensor| tensor.terms.as_slice());
    assert_eq!(of_tensors.collect::<Vec<_>>(), [[0, 1, 2], [0, 1, 3]]);
}

#[test]
fn a_patch_lies_on_all_below_it_and_only_what_is_not_given_is_missed() {
    let (folder, path) = base_file();
    let one = patch_on(&path, 1, vec![]);
    let first = applied(&path, &one, "first.safetensors");
    let other = patch_on(&first, 2, vec![]);
    let second = applied(&first, &other, "second.safetensors");
    let third = patch_on(&second, 3, vec![]);
    let made = stacked(&path, &[&third, &other, &one]).unwrap();
    let below = made.plan.patches().iter().map(|patch| patch.on_top_of.as_slice()).collect::<Vec<_>>();
    assert_eq!(below, [&[][..], &[0], &[0, 1]]);
    let elsewhere = write(folder.path(), "elsewhere.safetensors", &base(Dtype::BF16));
    let mut draft = patch_on(&elsewhere, 4, vec![]).draft().unwrap();
    draft.parents = vec![one.id(), other.id()];
    let found = stacked(&path, &[&one, &decoded(&draft)]).unwrap_err();
    let StackError::OtherBase { parents, is_applied, .. } = found else { panic!("{found}") };
    assert_eq!((parents, is_applied), (vec![other.id()], false));
}

#[test]
fn a_patch_is_not_bound_to_its_own_result_and_loses_its_corrections_where_it_may() {
    let (folder, path) = base_file();
    let one = patch_on(&path, 1, vec![]);
    let edited = Checkpoint::open(applied(&path, &one, "edited.safetensors")).unwrap();
    let found = rebase(&edited, &one, &RebaseOptions::default(), &quiet).unwrap_err();
    assert!(matches!(found, RebaseError::Applied { .. }), "{found}");
    // Weights that all change at random, which takes corrections.
    let mut random = base(Dtype::F16);
    random[0].bytes = random[1].bytes.clone();
    let random = write(folder.path(), "random.safetensors", &random);
    let (_, corrected) = extracted_exactly(&path, &random);
    let found = rebase(&edited, &corrected, &RebaseOptions::default(), &quiet).unwrap_err();
    assert!(matches!(found, RebaseError::Correction { .. }), "{found}");
    let options = RebaseOptions { drop_corrections: true, ..RebaseOptions::default() };
    let draft = rebase(&edited, &corrected, &options, &quiet).unwrap();
    assert!(draft.bindings[0].tensors.iter().all(|tensor| tensor.correction.is_none()));
}

#[test]
fn a_patch_that_was_made_with_another_tokenizer_is_refused() {
    let (folder, path) = base_file();
    let one = patch_on(&path, 1, vec![]);
    // The weights it was made on are not known here, so what it says of its model has to tell.
    let other = write(folder.path(), "other.safetensors", &base(Dtype::BF16));
    let mut draft = patch_on(&other, 2, vec![]).draft().unwrap();
    draft.parents = vec![one.id()];
    stacked(&path, &[&one, &decoded(&draft)]).unwrap();
    draft.base.tokenizer = draft.base.config;
    let found = stacked(&path, &[&one, &decoded(&draft)]).unwrap_err();
    assert!(matches!(found, StackError::OtherModel { what: "the tokenizer", .. }), "{found}");
}

#[test]
fn a_stack_has_of_its_patches_recipes_what_all_have_in_common_and_the_model_that_one_knows() {
    let (_folder, path) = base_file();
    let with = |seed: u64, alter: &dyn Fn(&mut mpatch::patch::Draft)| -> Patch {
        let mut draft = patch_on(&path, seed, vec![]).draft().unwrap();
        alter(&mut draft);
        decoded(&draft)
    };
    let one = with(1, &|draft| draft.recipe.seed = 5);
    let same = with(2, &|draft| draft.recipe.seed = 5);
    let other = with(3, &|draft| {
        draft.recipe.seed = 6;
        draft.recipe.contexts = vec![vec!["So {}".to_owned()]];
        draft.recipe.device = "cuda".to_owned();
    });
    let recipe = |patches: &[&Patch]| stacked(&path, patches).unwrap().draft.recipe;
    let alike = recipe(&[&one, &same]);
    assert_eq!(
        (alike.seed, alike.device, alike.contexts),
        (5, "cpu".to_owned(), one.manifest().recipe.contexts.clone())
    );
    let unlike = recipe(&[&one, &other]);
    assert_eq!((unlike.seed, unlike.device.as_str(), unlike.contexts.len()), (0, "several", 0));
    // One that was made of two checkpoints alone may know the tokenizer, and no config.
    let unknown = with(4, &|draft| draft.base.config = FileDigest::of(b""));
    let known = one.manifest().base.clone();
    assert_eq!(stacked(&path, &[&unknown, &one]).unwrap().draft.base, known);
}

#[test]
fn weights_that_are_broken_stay_so_in_a_stack_and_in_another_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = base(Dtype::F16);
    let whole = write(folder.path(), "whole.safetensors", &tensors);
    tensors[0].bytes[..2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    let broken = write(folder.path(), "broken.safetensors", &tensors);
    let patch = patch_on(&whole, 1, vec![]);
    let bound = |patch: &Patch| {
        let checkpoint = Checkpoint::open(&broken).unwrap();
        decoded(&rebase(&checkpoint, patch, &RebaseOptions::default(), &quiet).unwrap())
    };
    let [one, other] = [&patch, &patch_on(&whole, 2, vec![])].map(bound);
    let both = decoded(&stacked(&broken, &[&one, &other]).unwrap().draft);
    let edited = applied(&broken, &both, "edited.safetensors");
    assert_eq!(crate::tensor_bytes(&edited, crate::FIRST)[..2], 0x7e00_u16.to_le_bytes());
}

#[test]
fn a_patch_bound_to_another_state_alone_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [half, full] = [Dtype::F16, Dtype::F32]
        .map(|dtype| write(folder.path(), &format!("{dtype}.safetensors"), &base(dtype)));
    let mut draft = patch_on(&half, 1, vec![]).draft().unwrap();
    draft.supersedes = vec![patch_on(&half, 2, vec![]).id()];
    let patch = decoded(&draft);
    let bound = |keep| {
        let options = RebaseOptions { keep, ..RebaseOptions::default() };
        rebase(&Checkpoint::open(&full).unwrap(), &patch, &options, &quiet).unwrap().supersedes
    };
    assert_eq!((bound(false), bound(true)), (vec![], vec![patch.id()]));
}

#[test]
fn a_patch_with_two_updates_is_on_no_parents() {
    let (folder, path) = base_file();
    let one = patch_on(&path, 1, vec![]);
    let elsewhere = write(folder.path(), "elsewhere.safetensors", &base(Dtype::BF16));
    let child = |same: bool| {
        let mut draft = patch_on(&elsewhere, 2, vec![]).draft().unwrap();
        let mut other = draft.bindings[0].clone();
        if !same {
            other.tensors.truncate(1);
        }
        other.weights = WeightsId::of_tensors([]);
        draft.bindings.push(other);
        draft.parents = vec![one.id()];
        decoded(&draft)
    };
    assert!(stacked(&path, &[&one, &child(true)]).is_ok());
    let found = stacked(&path, &[&one, &child(false)]).unwrap_err();
    assert!(matches!(found, StackError::OtherBase { .. }), "{found}");
}

#[test]
fn a_plan_is_for_its_patches_and_for_no_more_than_one_can_replace() {
    let (_folder, path) = base_file();
    let many: Vec<Patch> = (0..=PARENTS_MAX as u64).map(|seed| patch_on(&path, seed, vec![])).collect();
    let named: Vec<Named<'_>> = many.iter().map(|patch| Named { name: "a", patch }).collect();
    let base = Checkpoint::open(&path).unwrap();
    let planned = |count: usize| plan(&base, &named[..count], &Sides::Refuse, &quiet);
    let found = planned(PARENTS_MAX + 1).unwrap_err();
    assert!(matches!(found, StackError::TooMany { found: 257, limit: 256 }), "{found}");
    assert_eq!(planned(PARENTS_MAX).unwrap().added().count(), PARENTS_MAX);
    for others in [&named[..1], &[named[1], named[0]]] {
        let found = planned(2).unwrap().add(&base, others, &AddOptions::default(), &quiet);
        assert!(matches!(found, Err(StackError::OtherPatches)), "{found:?}");
    }
}
