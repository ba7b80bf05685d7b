//! The rules of a manifest, checked alike on what is written and on what is read.
//!
//! Sections need one rule only: walking the terms and then the bindings in order, the sections come up in order, each
//! once. So every section has one user, one kind and one size, and two files cannot differ in their order alone.

use super::error::PatchError;
use super::layout::{
    BINDINGS_MAX, CONTEXTS_MAX, DIMENSION_MAX, FACTS_MAX, HYPERPARAMETERS_SIZE_MAX_BYTES, LAYERS_MAX,
    METRICS_MAX, NAME_SIZE_MAX_BYTES, PARENTS_MAX, SECTION_DECODED_SIZE_MAX_BYTES, SECTIONS_MAX, TENSORS_MAX,
    TERMS_MAX, TEXT_SIZE_MAX_BYTES, ZSTD_RATIO_MAX, correction_size_max_bytes, undo_size_max_bytes,
};
use super::manifest::{
    About, Base, Binding, Codec, Fact, IntegersEntry, Line, Manifest, Metric, Recipe, Section, SectionKind,
    TensorBinding, TermEntry,
};
use super::section::planes_size_bytes;
use crate::factors::{BITS_MAX, BITS_MIN};

type Checked = Result<(), PatchError>;

/// Checks everything that a manifest says about itself.
pub(super) fn check(manifest: &Manifest) -> Checked {
    check_base(&manifest.base)?;
    check_facts(&manifest.facts)?;
    check_recipe(&manifest.recipe)?;
    check_metrics(&manifest.measured)?;
    check_numbers(manifest)?;
    check_line(manifest.line.as_ref())?;
    at_most("parents", manifest.parents.len(), PARENTS_MAX)?;
    at_most("supersedes", manifest.supersedes.len(), PARENTS_MAX)?;
    check_about(&manifest.about)
}

/// Checks a text that a patch is to say about itself, and says in words what is wrong with it.
///
/// # Errors
/// That it is too long, or holds control characters.
pub fn check_text(value: &str) -> Result<(), String> {
    optional_text(Some(value), String::new).map_err(in_words)
}

/// Checks the name of a line of patches, and says in words what is wrong with it.
///
/// # Errors
/// That it is empty or too long, or holds control characters.
pub fn check_line_name(value: &str) -> Result<(), String> {
    check_line(Some(&Line { name: value.to_owned(), sequence: 1 })).map_err(in_words)
}

fn in_words(error: PatchError) -> String {
    match error {
        PatchError::Malformed { what, .. } => what,
        PatchError::Limit { limit, found, .. } => format!("{found} bytes, and a patch holds {limit}"),
        other => other.to_string(),
    }
}

fn check_base(base: &Base) -> Checked {
    name(&base.architecture, || "base.architecture".into())
}

fn check_facts(facts: &[Fact]) -> Checked {
    at_most("facts", facts.len(), FACTS_MAX)?;
    for (index, fact) in facts.iter().enumerate() {
        let fields = [
            ("id", fact.id.as_deref()),
            ("prompt", Some(&fact.prompt)),
            ("subject", Some(&fact.subject)),
            ("target_new", Some(&fact.target_new)),
            ("target_old", fact.target_old.as_deref()),
            ("note", fact.note.as_deref()),
        ];
        for (field, value) in fields {
            optional_text(value, || format!("facts[{index}].{field}"))?;
        }
    }
    Ok(())
}

fn check_recipe(recipe: &Recipe) -> Checked {
    for (field, value) in [("method", &recipe.method), ("tool", &recipe.tool), ("device", &recipe.device)] {
        name(value, || format!("recipe.{field}"))?;
    }
    let place = || "recipe.hyperparameters".to_owned();
    sized(&recipe.hyperparameters, HYPERPARAMETERS_SIZE_MAX_BYTES, place)?;
    printable(&recipe.hyperparameters, place)?;
    at_most("recipe.layers", recipe.layers.len(), LAYERS_MAX)?;
    if !recipe.layers.is_sorted_by(|first, second| first < second) {
        return Err(PatchError::malformed("recipe.layers", "not ascending"));
    }
    check_contexts(&recipe.contexts)
}

fn check_contexts(groups: &[Vec<String>]) -> Checked {
    at_most("recipe.contexts", groups.len(), CONTEXTS_MAX)?;
    let count = groups.iter().map(Vec::len).sum();
    at_most("the templates in recipe.contexts", count, CONTEXTS_MAX)?;
    for (group, templates) in groups.iter().enumerate() {
        for (index, template) in templates.iter().enumerate() {
            // A model spoke these, and the recipe needs them exactly: any character may occur.
            sized(template, TEXT_SIZE_MAX_BYTES, || format!("recipe.contexts[{group}][{index}]"))?;
        }
    }
    Ok(())
}

fn check_metrics(metrics: &[Metric]) -> Checked {
    at_most("measured", metrics.len(), METRICS_MAX)?;
    for (index, metric) in metrics.iter().enumerate() {
        name(&metric.name, || format!("measured[{index}].name"))?;
        if !(metric.before.is_finite() && metric.after.is_finite()) {
            let what = format!("{} before and {} after: not finite", metric.before, metric.after);
            return Err(PatchError::malformed(format!("measured[{index}]"), what));
        }
    }
    Ok(())
}

fn check_line(line: Option<&Line>) -> Checked {
    let Some(line) = line else { return Ok(()) };
    name(&line.name, || "line.name".into())?;
    match line {
        Line { name, .. } if name.is_empty() => Err(PatchError::malformed("line", "needs a name")),
        Line { sequence: 0, .. } => Err(PatchError::malformed("line", "needs a sequence number from 1")),
        _ => Ok(()),
    }
}

fn check_about(about: &About) -> Checked {
    optional_text(about.title.as_deref(), || "about.title".into())?;
    optional_text(about.author.as_deref(), || "about.author".into())?;
    optional_text(about.licence.as_deref(), || "about.licence".into())
}

/// Terms, bindings and the sections that hold their numbers.
fn check_numbers(manifest: &Manifest) -> Checked {
    at_most("terms", manifest.terms.len(), TERMS_MAX)?;
    at_most("bindings", manifest.bindings.len(), BINDINGS_MAX)?;
    at_most("sections", manifest.sections.len(), SECTIONS_MAX)?;
    let mut walk = Walk { sections: &manifest.sections, next: 0 };
    for (index, term) in manifest.terms.iter().enumerate() {
        check_term(term, &mut walk, &format!("terms[{index}]"))?;
    }
    check_bindings(manifest, &mut walk)?;
    walk.finish()
}

/// Hands out the sections in order, once each.
struct Walk<'a> {
    sections: &'a [Section],
    next: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, index: u32, kind: SectionKind, place: &str) -> Result<&'a Section, PatchError> {
        if index as usize != self.next {
            let what = format!("names section {index} where section {} is next in order of use", self.next);
            return Err(PatchError::malformed(place, what));
        }
        let Some(section) = self.sections.get(self.next) else {
            let what = format!("names section {index} of {}", self.sections.len());
            return Err(PatchError::malformed(place, what));
        };
        if section.kind != kind {
            let what = format!("needs {kind:?}, section {index} holds {:?}", section.kind);
            return Err(PatchError::malformed(place, what));
        }
        self.next += 1;
        check_section(section, index)?;
        Ok(section)
    }

    /// Takes a section whose decoded size is known; `None` is a size beyond u64.
    fn take_sized(&mut self, index: u32, kind: SectionKind, size: Option<u64>, place: &str) -> Checked {
        let section = self.take(index, kind, place)?;
        if Some(section.decoded_size) == size {
            return Ok(());
        }
        let expected = size.map_or("more than any file".to_owned(), |size| size.to_string());
        let found = section.decoded_size;
        let what = format!("section {index} decodes to {found} bytes, the shape needs {expected}");
        Err(PatchError::malformed(place, what))
    }

    fn finish(self) -> Checked {
        match self.sections.len() - self.next {
            0 => Ok(()),
            rest => Err(PatchError::malformed("sections", format!("{rest} at the end are not used"))),
        }
    }
}

fn check_section(section: &Section, index: u32) -> Checked {
    let (stored, decoded) = (section.stored_size, section.decoded_size);
    if decoded > SECTION_DECODED_SIZE_MAX_BYTES {
        let (what, limit) = (format!("decoded bytes of section {index}"), SECTION_DECODED_SIZE_MAX_BYTES);
        return Err(PatchError::Limit { what, limit, found: decoded });
    }
    let fits = match section.codec {
        Codec::Stored => stored == decoded,
        Codec::Zstd => stored < decoded,
    };
    if fits {
        return check_ratio(section, index);
    }
    let what = format!("{stored} bytes stored ({:?}) for {decoded} decoded", section.codec);
    Err(PatchError::malformed(format!("sections[{index}]"), what))
}

/// Whoever reads a section makes room for what it decodes to; that must not be far more than what the file takes.
fn check_ratio(section: &Section, index: u32) -> Checked {
    let found = section.decoded_size.div_ceil(section.stored_size.max(1));
    if section.codec == Codec::Stored || found <= ZSTD_RATIO_MAX {
        return Ok(());
    }
    let what = format!("decoded bytes for each stored one in section {index}");
    Err(PatchError::Limit { what, limit: ZSTD_RATIO_MAX, found })
}

fn check_term(term: &TermEntry, walk: &mut Walk<'_>, place: &str) -> Checked {
    dimension(term.rows, || format!("{place}.rows"))?;
    dimension(term.columns, || format!("{place}.columns"))?;
    if !(BITS_MIN..=BITS_MAX).contains(&term.bits) {
        let what = format!("{} bits: integers have {BITS_MIN} to {BITS_MAX}", term.bits);
        return Err(PatchError::malformed(place, what));
    }
    let size =
        |rows: u64, columns: u64| rows.checked_mul(columns).and_then(|n| planes_size_bytes(n, term.bits));
    match term.integers {
        IntegersEntry::LowRank { rank, left, right } => {
            check_rank(rank, term, place)?;
            walk.take_sized(left, SectionKind::Integers, size(term.rows, rank), place)?;
            walk.take_sized(right, SectionKind::Integers, size(rank, term.columns), place)?;
        }
        IntegersEntry::Dense { section } => {
            walk.take_sized(section, SectionKind::Integers, size(term.rows, term.columns), place)?;
        }
    }
    let scales = |count: u64| count.checked_mul(size_of::<f32>() as u64);
    walk.take_sized(term.row_scales, SectionKind::Scales, scales(term.rows), place)?;
    walk.take_sized(term.column_scales, SectionKind::Scales, scales(term.columns), place)
}

/// Beyond the smaller dimension the product itself is smaller than its factors.
fn check_rank(rank: u64, term: &TermEntry, place: &str) -> Checked {
    let limit = term.rows.min(term.columns);
    match rank {
        0 => Err(PatchError::malformed(place, "rank 0")),
        found if found > limit => {
            Err(PatchError::Limit { what: format!("{place}: rank (store it dense instead)"), limit, found })
        }
        _ => Ok(()),
    }
}

fn check_bindings(manifest: &Manifest, walk: &mut Walk<'_>) -> Checked {
    let bindings = &manifest.bindings;
    if bindings.is_empty() {
        return Err(PatchError::malformed("bindings", "none: a patch fits at least one state of weights"));
    }
    let mut term_is_used = vec![false; manifest.terms.len()];
    for (index, binding) in bindings.iter().enumerate() {
        if bindings[..index].iter().any(|earlier| earlier.weights == binding.weights) {
            let what = format!("a second binding for weights {}", binding.weights);
            return Err(PatchError::malformed(format!("bindings[{index}]"), what));
        }
        check_tensor_names(binding, index)?;
        for (number, tensor) in binding.tensors.iter().enumerate() {
            let place = format!("bindings[{index}].tensors[{number}]");
            check_tensor(tensor, &manifest.terms, &mut term_is_used, &place)?;
            check_undo(tensor, walk, &place)?;
            check_correction(tensor, walk, &place)?;
        }
    }
    match term_is_used.iter().position(|used| !used) {
        Some(unused) => Err(PatchError::malformed(format!("terms[{unused}]"), "no binding uses it")),
        None => Ok(()),
    }
}

fn check_tensor_names(binding: &Binding, index: usize) -> Checked {
    let place = || format!("bindings[{index}].tensors");
    at_most(&place(), binding.tensors.len(), TENSORS_MAX)?;
    if binding.tensors.is_empty() {
        return Err(PatchError::malformed(place(), "none"));
    }
    if !binding.tensors.is_sorted_by(|first, second| first.name < second.name) {
        return Err(PatchError::malformed(place(), "not unique and in bytewise order of their names"));
    }
    Ok(())
}

fn check_tensor(
    tensor: &TensorBinding,
    terms: &[TermEntry],
    term_is_used: &mut [bool],
    place: &str,
) -> Checked {
    name(&tensor.name, || format!("{place}.name"))?;
    if tensor.name.is_empty() {
        return Err(PatchError::malformed(place, "a tensor without a name"));
    }
    let [rows, columns] = tensor.shape;
    dimension(rows, || format!("{place}.shape[0]"))?;
    dimension(columns, || format!("{place}.shape[1]"))?;
    if tensor.norm_ratio.is_nan() || tensor.norm_ratio.is_sign_negative() {
        return Err(PatchError::malformed(place, format!("norm ratio {}", tensor.norm_ratio)));
    }
    if tensor.terms.is_empty() {
        return Err(PatchError::malformed(place, "no terms"));
    }
    check_distinct(&tensor.terms, place)?;
    for &index in &tensor.terms {
        let Some(term) = terms.get(index as usize) else {
            return Err(PatchError::malformed(place, format!("names term {index} of {}", terms.len())));
        };
        if tensor.shape != [term.rows, term.columns] {
            let what = format!("{rows} by {columns}, term {index} is {} by {}", term.rows, term.columns);
            return Err(PatchError::malformed(place, what));
        }
        term_is_used[index as usize] = true;
    }
    Ok(())
}

/// A term counts once per tensor, so that the work of applying is bounded by what the file holds.
fn check_distinct(terms: &[u32], place: &str) -> Checked {
    let mut sorted = terms.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PatchError::malformed(place, format!("names term {} twice", pair[0]))),
        None => Ok(()),
    }
}

fn check_undo(tensor: &TensorBinding, walk: &mut Walk<'_>, place: &str) -> Checked {
    let found = walk.take(tensor.undo, SectionKind::Undo, place)?.decoded_size;
    let [rows, columns] = tensor.shape;
    let limit = undo_size_max_bytes(rows, columns);
    if found > limit {
        return Err(PatchError::Limit { what: format!("{place}: bytes of undo log"), limit, found });
    }
    Ok(())
}

fn check_correction(tensor: &TensorBinding, walk: &mut Walk<'_>, place: &str) -> Checked {
    let Some(index) = tensor.correction else { return Ok(()) };
    let found = walk.take(index, SectionKind::Correction, place)?.decoded_size;
    let [rows, columns] = tensor.shape;
    let limit = correction_size_max_bytes(rows, columns, tensor.dtype);
    if found > limit {
        return Err(PatchError::Limit { what: format!("{place}: bytes of correction"), limit, found });
    }
    Ok(())
}

fn at_most(what: &str, found: usize, limit: usize) -> Checked {
    if found <= limit {
        return Ok(());
    }
    Err(PatchError::Limit { what: what.to_owned(), limit: limit as u64, found: found as u64 })
}

fn dimension(found: u64, place: impl Fn() -> String) -> Checked {
    match found {
        0 => Err(PatchError::malformed(place(), "0")),
        found if found > DIMENSION_MAX => {
            Err(PatchError::Limit { what: place(), limit: DIMENSION_MAX, found })
        }
        _ => Ok(()),
    }
}

/// A name goes on one line: no control characters at all.
fn name(value: &str, place: impl Fn() -> String) -> Checked {
    sized(value, NAME_SIZE_MAX_BYTES, &place)?;
    if value.chars().any(char::is_control) {
        let what = format!("`{}` holds control characters", value.escape_debug());
        return Err(PatchError::malformed(place(), what));
    }
    Ok(())
}

fn optional_text(value: Option<&str>, place: impl Fn() -> String) -> Checked {
    let Some(value) = value else { return Ok(()) };
    sized(value, TEXT_SIZE_MAX_BYTES, &place)?;
    printable(value, place)
}

fn sized(value: &str, limit: usize, place: impl Fn() -> String) -> Checked {
    if value.len() <= limit {
        return Ok(());
    }
    let what = format!("bytes of {}", place());
    Err(PatchError::Limit { what, limit: limit as u64, found: value.len() as u64 })
}

/// Text may break lines and have tabs; other control characters could speak to a terminal.
fn printable(value: &str, place: impl Fn() -> String) -> Checked {
    let forbidden = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    match value.chars().find(|&character| forbidden(character)) {
        Some(found) => Err(PatchError::malformed(place(), format!("control character {found:?}"))),
        None => Ok(()),
    }
}
