//! From bytes to a checked patch.
//!
//! Everything but the sections' contents is checked at once and in this order: prelude, manifest against the patch
//! id, its one encoding, its rules, the tiling of the file, each section's digest, the signature block. Contents are
//! decompressed on demand, under sizes that the rules have tied to shapes. Whatever the bytes are, nothing here
//! panics, and nothing is allocated because a number in the file says so.

use std::ops::Range;

use rayon::prelude::*;

use super::draft::{BindingDraft, Draft, TensorDraft};
use super::encode::assemble;
use super::encoding;
use super::error::PatchError;
use super::layout::{PRELUDE_SIZE_BYTES, Prelude, SIGNATURE_COUNT_SIZE_BYTES};
use super::manifest::{Binding, IntegersEntry, Manifest, Section, TensorBinding, TermEntry};
use super::rules;
use super::section;
use super::signature::{self, Signature};
use crate::digest::{PatchId, SectionDigest};
use crate::factors::{FactorError, IntegerMatrix, Integers, Term};

/// A fuzzer changes bytes and cannot find their digests: under it, what stands behind the digests is tried as well.
const DIGESTS_ARE_CHECKED: bool = !cfg!(fuzzing);

/// A patch whose manifest keeps the rules and whose sections have their digests.
#[derive(Debug, Clone)]
pub struct Patch {
    bytes: Vec<u8>,
    id: PatchId,
    manifest: Manifest,
    manifest_range: Range<usize>,
    /// Where each section lies in `bytes`; in range, checked at the door.
    section_ranges: Vec<Range<usize>>,
    signatures: Vec<Signature>,
}

impl Patch {
    /// Reads and checks the bytes of a whole patch file.
    ///
    /// # Errors
    /// Every [`PatchError`].
    pub fn decode(bytes: Vec<u8>) -> Result<Self, PatchError> {
        let prelude = Prelude::parse(&bytes)?;
        // The prelude's sizes have been checked against the length of `bytes`.
        let manifest_range = PRELUDE_SIZE_BYTES..PRELUDE_SIZE_BYTES + prelude.manifest_size;
        let manifest_bytes = &bytes[manifest_range.clone()];
        let id = PatchId::derive(manifest_bytes);
        if DIGESTS_ARE_CHECKED && id != prelude.patch_id {
            return Err(PatchError::ManifestDigest { expected: prelude.patch_id, found: id });
        }
        let manifest = encoding::decode(manifest_bytes)?;
        rules::check(&manifest)?;
        let section_ranges = section_ranges(&manifest.sections, manifest_range.end, bytes.len())?;
        check_digests(&manifest.sections, &section_ranges, &bytes)?;
        let sections_end = section_ranges.last().map_or(manifest_range.end, |range| range.end);
        let signatures = signature::parse_block(&bytes[sections_end..])?;
        Ok(Self { bytes, id, manifest, manifest_range, section_ranges, signatures })
    }

    /// What the patch says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes: what signatures sign and the id is derived from.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.bytes[self.manifest_range.clone()]
    }

    /// The patch's identity, which signatures do not change.
    pub fn id(&self) -> PatchId {
        self.id
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size of the whole file.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Offset of section `index` in the file, if there is one.
    pub fn section_offset(&self, index: u32) -> Option<usize> {
        self.section_ranges.get(index as usize).map(|range| range.start)
    }

    /// The signatures, none of them judged.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The same patch with `signatures` in place of those it has.
    ///
    /// # Errors
    /// [`PatchError::Limit`] for more or larger signatures than the format holds, [`PatchError::Malformed`] for an
    /// empty one.
    pub fn with_signatures(self, signatures: Vec<Signature>) -> Result<Self, PatchError> {
        let sections_end = self.section_ranges.last().map_or(self.manifest_range.end, |range| range.end);
        let sections = &self.bytes[self.manifest_range.end..sections_end];
        let bytes = assemble(self.manifest_bytes(), sections, &signatures)?;
        Ok(Self { bytes, signatures, ..self })
    }

    /// Decodes the term at `index` of the manifest's terms.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] if there is none, or its sections do not hold what the manifest says.
    pub fn term(&self, index: u32) -> Result<Term, PatchError> {
        let place = format!("terms[{index}]");
        let Some(entry) = self.manifest.terms.get(index as usize) else {
            return Err(PatchError::malformed(place, format!("there are {}", self.manifest.terms.len())));
        };
        let integers = match entry.integers {
            IntegersEntry::LowRank { rank, left, right } => Integers::LowRank {
                left: self.matrix("left factor", [entry.rows, rank], entry, left)?,
                right: self.matrix("right factor", [rank, entry.columns], entry, right)?,
            },
            IntegersEntry::Dense { section } => {
                Integers::Dense(self.matrix("dense product", [entry.rows, entry.columns], entry, section)?)
            }
        };
        let row_scales = section::scales_of(&self.section(entry.row_scales)?);
        let column_scales = section::scales_of(&self.section(entry.column_scales)?);
        Term::new(integers, row_scales, column_scales)
            .map_err(|error| PatchError::malformed(place, error.to_string()))
    }

    /// Decodes the undo log of a tensor of a binding, both by their place in the manifest; its contents are checked
    /// by whoever replays it.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] if there is none, or its section does not hold what the manifest says.
    pub fn undo(&self, binding: usize, tensor: usize) -> Result<Vec<u8>, PatchError> {
        let found = self.manifest.bindings.get(binding).and_then(|binding| binding.tensors.get(tensor));
        match found {
            Some(tensor) => self.section(tensor.undo),
            None => Err(PatchError::malformed(format!("bindings[{binding}].tensors[{tensor}]"), "not there")),
        }
    }

    /// Takes the patch apart: [`super::encode`] of the draft gives these bytes again, without signatures.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] if a section does not hold what the manifest says.
    pub fn draft(&self) -> Result<Draft, PatchError> {
        let manifest = &self.manifest;
        let terms = (0..manifest.terms.len() as u32).map(|index| self.term(index));
        let bindings = manifest.bindings.iter().map(|binding| self.binding_draft(binding));
        Ok(Draft {
            base: manifest.base.clone(),
            facts: manifest.facts.clone(),
            recipe: manifest.recipe.clone(),
            measured: manifest.measured.clone(),
            terms: terms.collect::<Result<_, _>>()?,
            bindings: bindings.collect::<Result<_, _>>()?,
            line: manifest.line.clone(),
            parents: manifest.parents.clone(),
            supersedes: manifest.supersedes.clone(),
            about: manifest.about.clone(),
        })
    }

    fn binding_draft(&self, binding: &Binding) -> Result<BindingDraft, PatchError> {
        let tensors = binding.tensors.iter().map(|tensor| self.tensor_draft(tensor));
        Ok(BindingDraft { weights: binding.weights, tensors: tensors.collect::<Result<_, _>>()? })
    }

    fn tensor_draft(&self, tensor: &TensorBinding) -> Result<TensorDraft, PatchError> {
        Ok(TensorDraft {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape,
            before: tensor.before,
            after: tensor.after,
            norm_ratio: tensor.norm_ratio,
            terms: tensor.terms.clone(),
            undo: self.section(tensor.undo)?,
        })
    }

    fn matrix(
        &self,
        what: &'static str,
        shape: [u64; 2],
        entry: &TermEntry,
        section: u32,
    ) -> Result<IntegerMatrix, PatchError> {
        let malformed = |what: String| PatchError::malformed(format!("section {section}"), what);
        let [rows, columns] = shape.map(usize::try_from);
        let (Ok(rows), Ok(columns)) = (rows, columns) else {
            return Err(malformed(format!("{shape:?} does not fit this machine's memory")));
        };
        let values = section::integers_of(&self.section(section)?, entry.bits);
        IntegerMatrix::new(what, rows, columns, entry.bits, values)
            .map_err(|error: FactorError| malformed(error.to_string()))
    }

    fn section(&self, index: u32) -> Result<Vec<u8>, PatchError> {
        let entry = self.manifest.sections.get(index as usize).zip(self.section_ranges.get(index as usize));
        let Some((section, range)) = entry else {
            return Err(PatchError::malformed(format!("section {index}"), "not there"));
        };
        section::decompress(section.codec, &self.bytes[range.clone()], section.decoded_size)
            .map_err(|what| PatchError::malformed(format!("section {index}"), what))
    }
}

/// Lays the sections end to end from `start` on, leaving room for a signature block before `file_size`.
fn section_ranges(
    sections: &[Section],
    start: usize,
    file_size: usize,
) -> Result<Vec<Range<usize>>, PatchError> {
    let end_max = file_size - SIGNATURE_COUNT_SIZE_BYTES;
    let mut offset = start;
    let mut ranges = Vec::with_capacity(sections.len());
    for (index, section) in sections.iter().enumerate() {
        let end = usize::try_from(section.stored_size).ok().and_then(|size| offset.checked_add(size));
        let Some(end) = end.filter(|&end| end <= end_max) else {
            let what = format!("{} bytes at {offset} do not fit a file of {file_size}", section.stored_size);
            return Err(PatchError::malformed(format!("section {index}"), what));
        };
        ranges.push(offset..end);
        offset = end;
    }
    Ok(ranges)
}

fn check_digests(sections: &[Section], ranges: &[Range<usize>], bytes: &[u8]) -> Result<(), PatchError> {
    if !DIGESTS_ARE_CHECKED {
        return Ok(());
    }
    let indexed = sections.par_iter().zip(ranges).enumerate();
    // The first, not any, so that the same file always gives the same message.
    let damaged = indexed
        .find_first(|(_, (section, range))| SectionDigest::of(&bytes[(*range).clone()]) != section.digest);
    match damaged {
        Some((index, (section, range))) => Err(PatchError::Digest {
            section: index,
            expected: section.digest,
            found: SectionDigest::of(&bytes[range.clone()]),
        }),
        None => Ok(()),
    }
}
