//! From a draft to the bytes of a patch; the same draft gives the same bytes.
//!
//! Sections follow in the order in which the manifest first speaks of them: each term's integers and scales, then
//! each touched tensor's undo log and correction. What the decoder would refuse is refused here, by the same rules.

use rayon::prelude::*;

use super::draft::{BindingDraft, Draft, TensorDraft};
use super::encoding;
use super::error::PatchError;
use super::layout::{MANIFEST_SIZE_MAX_BYTES, PRELUDE_SIZE_BYTES, Prelude};
use super::manifest::{Binding, IntegersEntry, Manifest, Section, SectionKind, TensorBinding, TermEntry};
use super::rules;
use super::section;
use super::signature;
use crate::digest::{PatchId, SectionDigest};
use crate::factors::{Integers, Term};

/// The bytes of the patch that `draft` describes, unsigned.
///
/// # Errors
/// Whatever [`super::Patch::decode`] would refuse: [`PatchError::Malformed`], [`PatchError::Limit`].
pub fn encode(draft: &Draft) -> Result<Vec<u8>, PatchError> {
    let mut contents = Contents::default();
    let terms = draft.terms.iter().map(|term| contents.term(term)).collect();
    let bindings = draft.bindings.iter().map(|binding| contents.binding(binding)).collect();
    let (sections, stored) = contents.compress()?;
    let manifest = Manifest {
        base: draft.base.clone(),
        facts: draft.facts.clone(),
        recipe: draft.recipe.clone(),
        measured: draft.measured.clone(),
        terms,
        bindings,
        sections,
        line: draft.line.clone(),
        parents: draft.parents.clone(),
        supersedes: draft.supersedes.clone(),
        about: draft.about.clone(),
    };
    rules::check(&manifest)?;
    assemble(&encoding::encode(&manifest)?, &stored.concat())
}

/// Puts a file together: prelude, manifest, sections, a block of no signatures.
fn assemble(manifest: &[u8], sections: &[u8]) -> Result<Vec<u8>, PatchError> {
    if manifest.len() > MANIFEST_SIZE_MAX_BYTES {
        let (limit, found) = (MANIFEST_SIZE_MAX_BYTES as u64, manifest.len() as u64);
        return Err(PatchError::Limit { what: "the manifest's bytes".into(), limit, found });
    }
    let block = signature::block_of(&[])?;
    let prelude = prelude_of(manifest, sections.len() as u64, &block);
    let file = [&prelude.to_bytes()[..], manifest, sections, &block].concat();
    debug_assert_eq!(file.len() as u64, prelude.file_size);
    Ok(file)
}

/// The prelude of a file of these parts.
pub(super) fn prelude_of(manifest: &[u8], sections_size: u64, block: &[u8]) -> Prelude {
    let rest = (PRELUDE_SIZE_BYTES + manifest.len() + block.len()) as u64;
    let patch_id = PatchId::derive(manifest);
    Prelude { file_size: rest + sections_size, manifest_size: manifest.len(), patch_id }
}

/// Decoded bytes of the sections so far, in file order.
#[derive(Default)]
struct Contents {
    sections: Vec<(SectionKind, Vec<u8>)>,
}

impl Contents {
    /// Adds a section and returns its index.
    fn add(&mut self, kind: SectionKind, bytes: Vec<u8>) -> u32 {
        let index = self.sections.len();
        self.sections.push((kind, bytes));
        // The limit on sections refuses the draft long before an index saturates.
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn term(&mut self, term: &Term) -> TermEntry {
        let (integers, bits) = match term.integers() {
            Integers::LowRank { left, right } => {
                let rank = left.columns() as u64;
                // A term has one width; the wider factor's also holds the narrower one's integers.
                let bits = left.bits().max(right.bits());
                let left = self.add(SectionKind::Integers, section::planes_of(left, bits));
                let right = self.add(SectionKind::Integers, section::planes_of(right, bits));
                (IntegersEntry::LowRank { rank, left, right }, bits)
            }
            Integers::Dense(dense) => {
                let section = self.add(SectionKind::Integers, section::planes_of(dense, dense.bits()));
                (IntegersEntry::Dense { section }, dense.bits())
            }
        };
        TermEntry {
            rows: term.rows() as u64,
            columns: term.columns() as u64,
            bits,
            integers,
            row_scales: self.add(SectionKind::Scales, section::scale_bytes(term.row_scales())),
            column_scales: self.add(SectionKind::Scales, section::scale_bytes(term.column_scales())),
        }
    }

    fn binding(&mut self, draft: &BindingDraft) -> Binding {
        let mut tensors: Vec<&TensorDraft> = draft.tensors.iter().collect();
        tensors.sort_by(|first, second| first.name.cmp(&second.name));
        let tensors = tensors.into_iter().map(|tensor| self.tensor(tensor)).collect();
        Binding { weights: draft.weights, tensors }
    }

    fn tensor(&mut self, draft: &TensorDraft) -> TensorBinding {
        TensorBinding {
            name: draft.name.clone(),
            dtype: draft.dtype,
            shape: draft.shape,
            before: draft.before,
            after: draft.after,
            norm_ratio: draft.norm_ratio,
            terms: draft.terms.clone(),
            undo: self.add(SectionKind::Undo, draft.undo.clone()),
            correction: draft.correction.clone().map(|bytes| self.add(SectionKind::Correction, bytes)),
        }
    }

    /// The section table and the stored bytes.
    fn compress(self) -> Result<(Vec<Section>, Vec<Vec<u8>>), PatchError> {
        let compressed: Result<Vec<_>, PatchError> = self.sections.into_par_iter().map(compress).collect();
        Ok(compressed?.into_iter().unzip())
    }
}

fn compress((kind, bytes): (SectionKind, Vec<u8>)) -> Result<(Section, Vec<u8>), PatchError> {
    let decoded_size = bytes.len() as u64;
    let (codec, stored) = section::compress(bytes)
        .map_err(|error| PatchError::malformed("a section", format!("zstd: {error}")))?;
    let digest = SectionDigest::of(&stored);
    Ok((Section { kind, codec, stored_size: stored.len() as u64, decoded_size, digest }, stored))
}
