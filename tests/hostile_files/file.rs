//! A patch in its parts, put together so that everything fits but what was made wrong on purpose.

use mpatch::digest::SectionDigest;
use mpatch::patch::manifest::{Codec, Manifest};
use mpatch::patch::{Draft, Patch, encode};

use crate::drafts::{manifest_bytes, seal};

/// A patch that can be changed in any part.
#[derive(Clone)]
pub struct File {
    pub manifest: Manifest,
    pub sections: Vec<Vec<u8>>,
    pub block: Vec<u8>,
}

impl File {
    /// The example of `docs/format.md`.
    pub fn tiny() -> Self {
        Self::of(&crate::drafts::tiny().0)
    }

    /// A patch with every field in use: two bindings, two tensors, one of the terms dense.
    pub fn full() -> Self {
        Self::of(&crate::drafts::full())
    }

    /// The patch of `draft`, all sections stored.
    pub fn of(draft: &Draft) -> Self {
        let patch = Patch::decode(encode(draft).unwrap()).unwrap();
        let manifest = patch.manifest().clone();
        let part = |index: usize| {
            let start = patch.section_offset(index as u32).unwrap();
            let section = &manifest.sections[index];
            let stored = &patch.bytes().unwrap()[start..start + section.stored_size as usize];
            mpatch::patch::decode_section(section.codec, stored, section.decoded_size).unwrap()
        };
        let sections: Vec<Vec<u8>> = (0..manifest.sections.len()).map(part).collect();
        let mut file = Self { manifest, sections, block: vec![0; 4] };
        for section in &mut file.manifest.sections {
            section.codec = Codec::Stored;
        }
        file
    }

    /// With a change whose consequences for sizes and digests are followed.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Makes the table of sections fit the sections.
    fn fit(mut self) -> Self {
        for (entry, bytes) in self.manifest.sections.iter_mut().zip(&self.sections) {
            entry.stored_size = bytes.len() as u64;
            if entry.codec == Codec::Stored {
                entry.decoded_size = entry.stored_size;
            }
            entry.digest = SectionDigest::of(bytes);
        }
        self
    }

    /// The file.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes_after(|_| ())
    }

    /// The file, its manifest changed at the very end: nothing follows that change but the id.
    pub fn bytes_after(self, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
        let mut file = self.fit();
        change(&mut file.manifest);
        file.sealed(&manifest_bytes(&file.manifest))
    }

    /// The file with these bytes for a manifest.
    pub fn bytes_of_manifest(self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let file = self.fit();
        let mut manifest = manifest_bytes(&file.manifest);
        change(&mut manifest);
        file.sealed(&manifest)
    }

    fn sealed(&self, manifest: &[u8]) -> Vec<u8> {
        seal(manifest, &[&self.sections.concat()[..], &self.block].concat())
    }
}
