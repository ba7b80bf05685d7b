//! What several patches must have in common to be stacked: their model, and what they say of one thing.

use mpatch::stack::StackError;
use mpatch::tensor::Dtype;

use crate::{applied, base, base_file, decoded, fact, patch_on, stacked, write};

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
