//! What several patches must have in common to be stacked: their model, and what they say of one thing.

use mpatch::checkpoint::Checkpoint;
use mpatch::digest::FileDigest;
use mpatch::patch::Patch;
use mpatch::rebase::{RebaseOptions, rebase};
use mpatch::stack::StackError;
use mpatch::tensor::Dtype;

use crate::{applied, base, base_file, decoded, fact, patch_on, quiet, stacked, write};

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
