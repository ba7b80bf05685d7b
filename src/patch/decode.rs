//! From bytes to a checked patch.
//!
//! Everything but the sections' contents is checked at once and in this order: prelude, manifest against the patch
//! id, its one encoding, its rules, the tiling of the file, each section's digest, the signature block. Contents are
//! decompressed on demand, under sizes that the rules have tied to shapes. Whatever the bytes are, nothing here
//! panics, and nothing is allocated because a number in the file says so.
//!
//! Of a patch that lies in a file only the manifest and the signatures are kept. Its sections are read again when they
//! are wanted, and their digests are checked again: what was checked is what is used, whatever happened to the file.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::sync::Arc;

use rayon::prelude::*;

use super::draft::{BindingDraft, Draft, TensorDraft};
use super::encode::prelude_of;
use super::encoding;
use super::error::PatchError;
use super::layout::{
    PRELUDE_SIZE_BYTES, Prelude, SIGNATURE_BLOCK_SIZE_MAX_BYTES, SIGNATURE_COUNT_SIZE_BYTES, stated_size,
};
use super::manifest::{Binding, IntegersEntry, Manifest, Section, TensorBinding, TermEntry};
use super::rules;
use super::section;
use super::signature::{self, Signature};
use crate::digest::{PatchId, SectionDigest};
use crate::factors::{FactorError, IntegerMatrix, Integers, Kernel, Term, Update};
use crate::source::Source;

/// How much of a section is read at once.
const READ_BLOCK_BYTES: u64 = 1 << 20;

/// A fuzzer changes bytes and cannot find their digests: under it, what stands behind the digests is tried as well.
const DIGESTS_ARE_CHECKED: bool = !cfg!(fuzzing);

/// A patch whose manifest keeps the rules and whose sections have their digests.
#[derive(Debug, Clone)]
pub struct Patch {
    source: Arc<dyn Source>,
    id: PatchId,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    /// Where each section begins in `source`; in range, checked at the door.
    section_offsets: Vec<u64>,
    sections_end: u64,
    signatures: Vec<Signature>,
    kernel: Kernel,
}

impl Patch {
    /// Reads and checks the bytes of a whole patch file.
    ///
    /// # Errors
    /// Every [`PatchError`].
    pub fn decode(bytes: Vec<u8>) -> Result<Self, PatchError> {
        Self::open(Arc::new(bytes))
    }

    /// Reads and checks a whole patch file, a block at a time: sections stay where they are until they are wanted.
    ///
    /// # Errors
    /// Every [`PatchError`].
    pub fn open(source: Arc<dyn Source>) -> Result<Self, PatchError> {
        let Head { id, manifest, manifest_bytes, section_offsets, sections_end } =
            Head::read(source.as_ref())?;
        check_digests(source.as_ref(), &manifest.sections, &section_offsets)?;
        let signatures = signatures_from(source.as_ref(), sections_end)?;
        let kernel = Kernel::best();
        Ok(Self { source, id, manifest, manifest_bytes, section_offsets, sections_end, signatures, kernel })
    }

    /// Copies a patch file that comes bit by bit to `sink`, to be opened there: no more than its first bytes state, so
    /// that an input without an end is refused. `size_bytes` is the size of the file where it is known.
    ///
    /// # Errors
    /// Those [`PatchError`]s that the first 64 bytes and the size are enough for; [`PatchError::Read`] and
    /// [`PatchError::Write`].
    pub fn copy(
        input: &mut dyn Read,
        size_bytes: Option<u64>,
        sink: &mut dyn Write,
    ) -> Result<(), PatchError> {
        let mut block = Vec::new();
        let mut read_more = |block: &mut Vec<u8>, done: u64, limit: u64| {
            block.clear();
            let more = Read::take(&mut *input, limit.min(READ_BLOCK_BYTES)).read_to_end(block);
            more.map_err(PatchError::read(done))
        };
        read_more(&mut block, 0, PRELUDE_SIZE_BYTES as u64)?;
        let stated = match size_bytes {
            Some(size_bytes) => Prelude::parse(&block, size_bytes)?.file_size,
            None => stated_size(&block)?.1,
        };
        let mut done = 0;
        while !block.is_empty() {
            done += block.len() as u64;
            if done > stated {
                let what = format!("more bytes follow the end at {stated} that the prelude states");
                return Err(PatchError::malformed("the file", what));
            }
            sink.write_all(&block).map_err(PatchError::write)?;
            // One byte too many tells that there are more.
            read_more(&mut block, done, (stated - done).saturating_add(1))?;
        }
        Ok(())
    }

    /// What the patch says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes: what signatures sign and the id is derived from.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// The patch's identity, which signatures do not change.
    pub fn id(&self) -> PatchId {
        self.id
    }

    /// The whole file of a patch that is in memory; none for one that was opened where it lies.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.source.in_memory()
    }

    /// The whole file, copied into memory where it is not there.
    ///
    /// # Errors
    /// As [`Patch::write_to`].
    pub fn to_bytes(&self) -> Result<Cow<'_, [u8]>, PatchError> {
        if let Some(bytes) = self.bytes() {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Size of the whole file.
    pub fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    /// Offset of section `index` in the file, if there is one: for tests, which damage it there.
    #[doc(hidden)]
    pub fn section_offset(&self, index: u32) -> Option<usize> {
        self.section_offsets.get(index as usize).map(|offset| *offset as usize)
    }

    /// The signatures, none of them judged.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The same patch with `signatures` in place of those it has, all of it in memory.
    ///
    /// # Errors
    /// [`PatchError::Limit`] for more or larger signatures than the format holds, [`PatchError::Malformed`] for an
    /// empty one.
    pub fn with_signatures(self, signatures: Vec<Signature>) -> Result<Self, PatchError> {
        let mut bytes = Vec::new();
        self.write_with(&signatures, &mut bytes)?;
        Ok(Self { source: Arc::new(bytes), signatures, ..self })
    }

    /// Copies the whole file to `sink`, a block at a time.
    ///
    /// # Errors
    /// [`PatchError::Read`] and [`PatchError::Digest`] if it is no longer what was opened; [`PatchError::Write`].
    pub fn write_to(&self, sink: &mut dyn Write) -> Result<(), PatchError> {
        self.write_with(&self.signatures, sink)
    }

    /// The same patch, whose updates are computed by `kernel`: for tests, since every kernel gives the same result.
    #[doc(hidden)]
    pub fn computed_by(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    fn write_with(&self, signatures: &[Signature], sink: &mut dyn Write) -> Result<(), PatchError> {
        let block = signature::block_of(signatures)?;
        let sections_size = self.sections_end - (PRELUDE_SIZE_BYTES + self.manifest_bytes.len()) as u64;
        let prelude = prelude_of(&self.manifest_bytes, sections_size, &block);
        sink.write_all(&prelude.to_bytes()).map_err(PatchError::write)?;
        sink.write_all(&self.manifest_bytes).map_err(PatchError::write)?;
        for index in 0..self.manifest.sections.len() {
            let mut reader = self.section_reader(index);
            let copied = std::io::copy(&mut reader, sink);
            // What cannot be read is no fault of the sink.
            reader.finish()?;
            copied.map_err(PatchError::write)?;
        }
        sink.write_all(&block).map_err(PatchError::write)
    }

    /// The update of a tensor of a binding, both by their place in the manifest, laid out for computing.
    ///
    /// Terms are read one after the other, and kept in their own width.
    ///
    /// # Errors
    /// As for [`Patch::term`]; [`PatchError::Malformed`] too if there is no such tensor.
    pub fn update(&self, binding: usize, tensor: usize) -> Result<Update, PatchError> {
        let place = place_of(binding, tensor);
        let terms = self.tensor(binding, tensor)?.terms.iter().map(|&index| self.term(index));
        Update::of(self.kernel, terms, |error| PatchError::malformed(&place, error.to_string()))
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
        self.section(self.tensor(binding, tensor)?.undo)
    }

    /// Decodes the correction of a tensor of a binding, as [`Patch::undo`]; none where it has none.
    ///
    /// # Errors
    /// As for [`Patch::undo`].
    pub fn correction(&self, binding: usize, tensor: usize) -> Result<Option<Vec<u8>>, PatchError> {
        self.tensor(binding, tensor)?.correction.map(|index| self.section(index)).transpose()
    }

    fn tensor(&self, binding: usize, tensor: usize) -> Result<&TensorBinding, PatchError> {
        let found = self.manifest.bindings.get(binding).and_then(|binding| binding.tensors.get(tensor));
        found.ok_or_else(|| PatchError::malformed(place_of(binding, tensor), "not there"))
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
            correction: tensor.correction.map(|index| self.section(index)).transpose()?,
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
        let planes = self.section(section)?;
        let matrix = match section::integers_of(planes, entry.bits) {
            section::Planes::One(values) => IntegerMatrix::narrow(what, rows, columns, entry.bits, values),
            section::Planes::Two(values) => IntegerMatrix::new(what, rows, columns, entry.bits, values),
        };
        matrix.map_err(|error: FactorError| malformed(error.to_string()))
    }

    /// The decoded bytes of a section, whose stored bytes are hashed as they are read.
    fn section(&self, index: u32) -> Result<Vec<u8>, PatchError> {
        let Some(section) = self.manifest.sections.get(index as usize) else {
            return Err(PatchError::malformed(format!("section {index}"), "not there"));
        };
        let mut reader = self.section_reader(index as usize);
        let decoded =
            section::decompress(section.codec, &mut reader, section.stored_size, section.decoded_size);
        // Bytes that are not those that were hashed explain whatever decoding them met.
        reader.finish()?;
        decoded.map_err(|what| match what.contains(section::NO_MEMORY) {
            // The patch is as good as before.
            true => {
                let refused = std::io::Error::new(std::io::ErrorKind::OutOfMemory, what);
                PatchError::read(self.section_offsets[index as usize])(refused)
            }
            false => PatchError::malformed(format!("section {index}"), what),
        })
    }

    /// A reader of section `index`, which is in range.
    fn section_reader(&self, index: usize) -> SectionReader<'_> {
        SectionReader::new(self.source.as_ref(), &self.manifest.sections, &self.section_offsets, index)
    }
}

/// What signatures are judged by, of a patch whose sections nobody has looked at: who signed it can be told of a
/// thousand large ones at once.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The patch.
    pub id: PatchId,
    /// What it says about itself, in the bytes that the signatures are over.
    pub manifest_bytes: Vec<u8>,
    /// The signatures, none of them judged.
    pub signatures: Vec<Signature>,
}

impl Signed {
    /// Reads the manifest and the signatures of a patch file, and nothing between them.
    ///
    /// # Errors
    /// As [`Patch::open`], but for what is wrong with a section.
    pub fn read(source: &dyn Source) -> Result<Self, PatchError> {
        let Head { id, manifest_bytes, sections_end, .. } = Head::read(source)?;
        let signatures = signatures_from(source, sections_end)?;
        Ok(Self { id, manifest_bytes, signatures })
    }
}

/// A file up to its sections, and where these lie.
struct Head {
    id: PatchId,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    section_offsets: Vec<u64>,
    sections_end: u64,
}

impl Head {
    fn read(source: &dyn Source) -> Result<Self, PatchError> {
        let size_bytes = source.size_bytes();
        let start = read(source, 0, size_bytes.min(PRELUDE_SIZE_BYTES as u64))?;
        let prelude = Prelude::parse(&start, size_bytes)?;
        // The prelude's sizes have been checked against the size of the file, and against their limits.
        let manifest_end = PRELUDE_SIZE_BYTES as u64 + prelude.manifest_size as u64;
        let manifest_bytes = read(source, PRELUDE_SIZE_BYTES as u64, prelude.manifest_size as u64)?;
        let id = PatchId::derive(&manifest_bytes);
        if DIGESTS_ARE_CHECKED && id != prelude.patch_id {
            return Err(PatchError::ManifestDigest { expected: prelude.patch_id, found: id });
        }
        let manifest = encoding::decode(&manifest_bytes)?;
        rules::check(&manifest)?;
        let (section_offsets, sections_end) = section_offsets(&manifest.sections, manifest_end, size_bytes)?;
        Ok(Self { id, manifest, manifest_bytes, section_offsets, sections_end })
    }
}

/// The signatures behind the sections.
fn signatures_from(source: &dyn Source, sections_end: u64) -> Result<Vec<Signature>, PatchError> {
    let block_size = source.size_bytes() - sections_end;
    // No block of signatures within the limits is larger, so what is cut off here is refused for what it says.
    let block = read(source, sections_end, block_size.min(SIGNATURE_BLOCK_SIZE_MAX_BYTES as u64 + 1))?;
    signature::parse_block(&block)
}

fn place_of(binding: usize, tensor: usize) -> String {
    format!("bindings[{binding}].tensors[{tensor}]")
}

impl Manifest {
    /// Reads and checks a manifest without its sections, as a history keeps it; also tells its patch's id.
    ///
    /// # Errors
    /// As [`Patch::decode`], for the part that a manifest is.
    pub fn decode(bytes: &[u8]) -> Result<(PatchId, Self), PatchError> {
        let manifest = encoding::decode(bytes)?;
        rules::check(&manifest)?;
        Ok((PatchId::derive(bytes), manifest))
    }
}

/// The stored bytes of one section, hashed as they pass.
struct SectionReader<'a> {
    source: &'a dyn Source,
    section: &'a Section,
    index: usize,
    offset: u64,
    end: u64,
    hasher: blake3::Hasher,
    failure: Option<PatchError>,
}

impl<'a> SectionReader<'a> {
    /// A reader of section `index`, which is in range.
    fn new(source: &'a dyn Source, sections: &'a [Section], offsets: &[u64], index: usize) -> Self {
        let (section, offset) = (&sections[index], offsets[index]);
        let end = offset + section.stored_size;
        Self { source, section, index, offset, end, hasher: blake3::Hasher::new(), failure: None }
    }

    /// Reads what is left and compares the digest.
    fn finish(mut self) -> Result<(), PatchError> {
        let mut block = vec![0; (self.end - self.offset).min(READ_BLOCK_BYTES) as usize];
        while self.failure.is_none() && self.read(&mut block).is_ok_and(|read| read > 0) {}
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let (section, expected) = (self.index, self.section.digest);
        let found = SectionDigest::finish(&self.hasher);
        if expected == found || !DIGESTS_ARE_CHECKED {
            Ok(())
        } else {
            Err(PatchError::Digest { section, expected, found })
        }
    }
}

impl Read for SectionReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let size = (self.end - self.offset).min(bytes.len() as u64);
        let bytes = &mut bytes[..size as usize];
        if let Err(error) = self.source.read_exact_at(bytes, self.offset) {
            let told = std::io::Error::new(error.kind(), error.to_string());
            self.failure = Some(PatchError::read(self.offset)(error));
            return Err(told);
        }
        self.hasher.update(bytes);
        self.offset += size;
        Ok(bytes.len())
    }
}

/// `size_bytes` at `offset`; only asked for what the file is known to hold, and in small numbers.
fn read(source: &dyn Source, offset: u64, size_bytes: u64) -> Result<Vec<u8>, PatchError> {
    let mut bytes = vec![0; size_bytes as usize];
    source.read_exact_at(&mut bytes, offset).map_err(PatchError::read(offset))?;
    Ok(bytes)
}

/// Lays the sections end to end from `start` on, leaving room for a signature block before `file_size`; returns
/// where each begins and where the last ends.
fn section_offsets(sections: &[Section], start: u64, file_size: u64) -> Result<(Vec<u64>, u64), PatchError> {
    let end_max = file_size - SIGNATURE_COUNT_SIZE_BYTES as u64;
    let mut offset = start;
    let mut offsets = Vec::with_capacity(sections.len());
    for (index, section) in sections.iter().enumerate() {
        let end = offset.checked_add(section.stored_size);
        let Some(end) = end.filter(|&end| end <= end_max) else {
            let what = format!("{} bytes at {offset} do not fit a file of {file_size}", section.stored_size);
            return Err(PatchError::malformed(format!("section {index}"), what));
        };
        offsets.push(offset);
        offset = end;
    }
    Ok((offsets, offset))
}

fn check_digests(source: &dyn Source, sections: &[Section], offsets: &[u64]) -> Result<(), PatchError> {
    if !DIGESTS_ARE_CHECKED {
        return Ok(());
    }
    let damaged = |index: usize| SectionReader::new(source, sections, offsets, index).finish().err();
    let stored_size: u64 = sections.iter().map(|section| section.stored_size).sum();
    // The first, not any, so that the same file always gives the same message. A small file is not worth a thread.
    let found = match stored_size <= READ_BLOCK_BYTES {
        true => (0..sections.len()).find_map(damaged),
        false => (0..sections.len()).into_par_iter().find_map_first(damaged),
    };
    match found {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
