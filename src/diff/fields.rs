//! What two patches say of themselves, field by field.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::digest::FileDigest;
use crate::patch::manifest::{Fact, Manifest, Metric, Recipe};

/// A field with two values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FieldChange {
    /// Its name.
    pub field: &'static str,
    /// What the first patch has.
    pub first: String,
    /// What the second has.
    pub second: String,
}

/// What is told of a fact beside what it says, where it differs.
pub(super) fn fact_changes(first: &Fact, second: &Fact) -> Vec<FieldChange> {
    let fields = |fact: &Fact| {
        [("id", text(&fact.id)), ("target_old", text(&fact.target_old)), ("note", text(&fact.note))]
    };
    changes(fields(first), fields(second))
}

/// Fields of the recipe that differ.
pub(super) fn recipe_changes(first: &Recipe, second: &Recipe) -> Vec<FieldChange> {
    let fields = |recipe: &Recipe| -> [(&'static str, String); 9] {
        let layers: Vec<String> = recipe.layers.iter().map(u32::to_string).collect();
        [
            ("method", recipe.method.clone()),
            ("hyperparameters", recipe.hyperparameters.clone()),
            ("layers", layers.join(" ")),
            ("contexts", format!("{:?}", recipe.contexts)),
            ("seed", recipe.seed.to_string()),
            ("statistics", digest_in_words(recipe.statistics)),
            ("facts file", digest_in_words(recipe.facts)),
            ("tool", recipe.tool.clone()),
            ("device", recipe.device.clone()),
        ]
    };
    changes(fields(first), fields(second))
}

/// Fields of the manifest beside facts, recipe and terms that differ.
pub(super) fn manifest_changes(first: &Manifest, second: &Manifest) -> Vec<FieldChange> {
    let fields = |manifest: &Manifest| -> [(&'static str, String); 11] {
        let Manifest { base, bindings, line, parents, supersedes, about, .. } = manifest;
        let results = bindings.iter().flat_map(|binding| &binding.tensors).map(|tensor| tensor.after);
        let line = line.as_ref().map(|line| format!("{}, number {}", line.name, line.sequence));
        [
            ("architecture", base.architecture.clone()),
            ("config", digest_in_words(base.config)),
            ("tokenizer", digest_in_words(base.tokenizer)),
            (WEIGHTS, listed(bindings.iter().map(|binding| binding.weights))),
            (RESULTS, listed(results)),
            ("line", text(&line)),
            ("parents", listed(parents)),
            ("supersedes", listed(supersedes)),
            ("title", text(&about.title)),
            ("author", text(&about.author)),
            ("licence", text(&about.licence)),
        ]
    };
    let mut found = changes(fields(first), fields(second));
    found.extend(measured_changes(&first.measured, &second.measured));
    found
}

/// Metrics that only one has, or of which the two have other figures, each as a change of its own.
fn measured_changes(first: &[Metric], second: &[Metric]) -> Vec<FieldChange> {
    let names: BTreeSet<&str> = first.iter().chain(second).map(|metric| metric.name.as_str()).collect();
    let told = |Metric { name, before, after, prompts }: &Metric| {
        format!("{name} {before} to {after}, {prompts} prompts")
    };
    let fields = |metrics: &[Metric]| {
        // One name may stand there more than once.
        let all = |name: &&str| listed(metrics.iter().filter(|metric| metric.name == **name).map(told));
        names.iter().map(|name| ("measured", all(name))).collect::<Vec<_>>()
    };
    changes(fields(first), fields(second))
}

/// The states that a patch fits, and what it makes of them.
pub(super) const WEIGHTS: &str = "weights";
pub(super) const RESULTS: &str = "results";

/// What stands for a field that a patch leaves empty.
const NOTHING: &str = "none";

/// The digest of what there is; that of nothing stands for a file that there was none of.
fn digest_in_words(digest: FileDigest) -> String {
    if digest.is_of_nothing() { NOTHING.to_owned() } else { digest.to_string() }
}

fn listed<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { NOTHING.to_owned() } else { values.join(" ") }
}

fn text(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| NOTHING.to_owned())
}

/// Those of the same fields of two patches that differ.
fn changes(
    first: impl IntoIterator<Item = (&'static str, String)>,
    second: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<FieldChange> {
    let differing = first.into_iter().zip(second).filter(|((_, first), (_, second))| first != second);
    differing.map(|((field, first), (_, second))| FieldChange { field, first, second }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{FactsDiff, PatchDiff};
    use super::*;
    use crate::digest::{PatchId, TensorDigest, WeightsId};
    use crate::patch::manifest::{About, Base, Binding, Line, TensorBinding};
    use crate::tensor::Dtype;

    fn recipe() -> Recipe {
        Recipe {
            method: "memit".to_owned(),
            hyperparameters: "{}".to_owned(),
            layers: vec![1],
            contexts: vec![vec!["{}".to_owned()]],
            seed: 1,
            statistics: FileDigest::of(b"1"),
            facts: FileDigest::of(b"1"),
            tool: "one".to_owned(),
            device: "cpu".to_owned(),
        }
    }

    #[test]
    fn every_field_of_a_manifest_that_stands_alone_is_compared() {
        let metric = |after| Metric { name: "efficacy".to_owned(), before: 0.0, after, prompts: 2 };
        let tensor = |after: &[u8]| TensorBinding {
            name: "a".to_owned(),
            dtype: Dtype::F16,
            shape: [1, 1],
            before: TensorDigest::of(b"before"),
            after: TensorDigest::of(after),
            norm_ratio: 0.1,
            terms: Vec::new(),
            undo: 0,
            correction: None,
        };
        let binding = |weights, after| Binding { weights, tensors: vec![tensor(after)] };
        let states = [b"1", b"2"]
            .map(|bytes| WeightsId::of_tensors([("a", "F16", &[1, 1][..], TensorDigest::of(bytes))]));
        let base = Base {
            architecture: "GPTJForCausalLM".to_owned(),
            config: FileDigest::of(b"1"),
            tokenizer: FileDigest::of(b"1"),
        };
        let manifest = Manifest {
            base: base.clone(),
            facts: Vec::new(),
            recipe: recipe(),
            measured: vec![metric(90.0)],
            terms: Vec::new(),
            bindings: vec![binding(states[0], b"after")],
            sections: Vec::new(),
            line: None,
            parents: Vec::new(),
            supersedes: Vec::new(),
            about: About::default(),
        };
        assert_eq!(manifest_changes(&manifest, &manifest), []);
        let other_base = |alter: fn(&mut Base)| {
            let mut base = base.clone();
            alter(&mut base);
            Manifest { base, ..manifest.clone() }
        };
        let about = |about| Manifest { about, ..manifest.clone() };
        let (some, ids) = (|| Some("other".to_owned()), vec![PatchId::derive(b"1")]);
        let line = Some(Line { name: "news".to_owned(), sequence: 2 });
        let others = [
            ("architecture", other_base(|base| base.architecture.push('2'))),
            ("config", other_base(|base| base.config = FileDigest::of(b"2"))),
            ("tokenizer", other_base(|base| base.tokenizer = FileDigest::of(b"2"))),
            ("weights", Manifest { bindings: vec![binding(states[1], b"after")], ..manifest.clone() }),
            ("results", Manifest { bindings: vec![binding(states[0], b"other")], ..manifest.clone() }),
            ("measured", Manifest { measured: vec![metric(91.0)], ..manifest.clone() }),
            ("measured", Manifest { measured: Vec::new(), ..manifest.clone() }),
            ("measured", Manifest { measured: vec![metric(90.0), metric(91.0)], ..manifest.clone() }),
            ("line", Manifest { line, ..manifest.clone() }),
            ("parents", Manifest { parents: ids.clone(), ..manifest.clone() }),
            ("supersedes", Manifest { supersedes: ids, ..manifest.clone() }),
            ("title", about(About { title: some(), ..About::default() })),
            ("author", about(About { author: some(), ..About::default() })),
            ("licence", about(About { licence: some(), ..About::default() })),
        ];
        for (field, other) in others {
            let found = manifest_changes(&manifest, &other);
            assert_eq!(found.iter().map(|change| change.field).collect::<Vec<_>>(), [field]);
            let patches = [PatchId::derive(b"1"), PatchId::derive(b"2")];
            let (facts, recipe, tensors) = (FactsDiff::default(), Vec::new(), Vec::new());
            assert!(
                !PatchDiff { patches, facts, told_otherwise: Vec::new(), manifest: found, recipe, tensors }
                    .is_same(),
                "{field}"
            );
        }
    }

    #[test]
    fn every_field_of_a_recipe_is_compared() {
        let digest = FileDigest::of;
        assert_eq!(recipe_changes(&recipe(), &recipe()), []);
        let others = [
            ("method", Recipe { method: "stack".to_owned(), ..recipe() }),
            ("hyperparameters", Recipe { hyperparameters: "[]".to_owned(), ..recipe() }),
            ("layers", Recipe { layers: vec![2], ..recipe() }),
            ("contexts", Recipe { contexts: vec![vec!["So {}".to_owned()]], ..recipe() }),
            ("seed", Recipe { seed: 2, ..recipe() }),
            ("statistics", Recipe { statistics: digest(b"2"), ..recipe() }),
            ("facts file", Recipe { facts: digest(b"2"), ..recipe() }),
            ("tool", Recipe { tool: "other".to_owned(), ..recipe() }),
            ("device", Recipe { device: "cuda".to_owned(), ..recipe() }),
        ];
        for (field, other) in others {
            let found = recipe_changes(&recipe(), &other);
            assert_eq!(found.iter().map(|change| change.field).collect::<Vec<_>>(), [field]);
            let diff = PatchDiff {
                patches: [PatchId::derive(b"1"), PatchId::derive(b"2")],
                facts: FactsDiff::default(),
                told_otherwise: Vec::new(),
                manifest: Vec::new(),
                recipe: found,
                tensors: Vec::new(),
            };
            assert!(!diff.is_same(), "{field}");
        }
    }
}
