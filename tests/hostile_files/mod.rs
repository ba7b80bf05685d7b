//! Files that are wrong in exactly one way, and some that are right: the vectors in `fixtures/vectors`, by definition.
//!
//! Everything around the one fault is right: sizes, digests and ids are made to fit what is wrong.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a vector that cannot be made is found at once")]

mod facts;
mod file;
mod frames;
mod manifests;
mod patches;
mod weights;

#[allow(unused_imports, reason = "as above")]
pub use frames::{grown, hollow};

/// What a vector is, and with what it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A patch, read whole: every section is decoded.
    Patch,
    /// A patch, applied to [`base`].
    Apply,
    /// A patch, taken back from what [`tiny`] makes of [`base`].
    Revert,
    /// A checkpoint.
    Safetensors,
    /// An index of shards, beside [`base`] as `base.safetensors`.
    Index,
    /// A file of facts.
    Facts,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Patch, Kind::Apply, Kind::Revert, Kind::Safetensors, Kind::Index, Kind::Facts];

    /// The word in a vector's head and at the start of its name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Patch => "patch",
            Kind::Apply => "apply",
            Kind::Revert => "revert",
            Kind::Safetensors => "safetensors",
            Kind::Index => "index",
            Kind::Facts => "facts",
        }
    }
}

/// One file, what must come of it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// Unique; the file's name.
    pub name: String,
    pub kind: Kind,
    /// The exit code.
    pub expect: u8,
    /// What is wrong, or what is unusual and right.
    pub reason: String,
    /// Part of what mpatch says.
    pub error: String,
    pub bytes: Vec<u8>,
}

impl Vector {
    /// The file in `fixtures/vectors`: lines of text, an empty one, and the bytes.
    pub fn to_file(&self) -> Vec<u8> {
        let mut head =
            format!("kind: {}\nexpect: {}\nreason: {}\n", self.kind.name(), self.expect, self.reason);
        if !self.error.is_empty() {
            head += &format!("error: {}\n", self.error);
        }
        [head.as_bytes(), b"\n", &self.bytes].concat()
    }

    /// Reads what [`Vector::to_file`] writes.
    pub fn from_file(name: &str, file: &[u8]) -> Self {
        let end = file.windows(2).position(|pair| pair == b"\n\n").expect("an empty line ends the head");
        let head = std::str::from_utf8(&file[..end]).expect("the head is text");
        let field = |field: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{field}: ")));
        let needed = |name: &str| field(name).unwrap_or_else(|| panic!("no `{name}`"));
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == needed("kind")).expect("a known kind");
        Self {
            name: name.to_owned(),
            kind,
            expect: needed("expect").parse().expect("an exit code"),
            reason: needed("reason").to_owned(),
            error: field("error").unwrap_or_default().to_owned(),
            bytes: file[end + 2..].to_vec(),
        }
    }
}

/// Collects vectors of one kind.
struct Collection {
    kind: Kind,
    vectors: Vec<Vector>,
}

impl Collection {
    fn new(kind: Kind) -> Self {
        Self { kind, vectors: Vec::new() }
    }

    /// A file that is right, in an unusual way.
    fn right(&mut self, name: &str, reason: &str, bytes: impl AsRef<[u8]>) {
        self.push(name, 0, reason, "", bytes.as_ref());
    }

    /// A file that is damaged or no such file.
    fn malformed(&mut self, name: &str, reason: &str, error: &str, bytes: impl AsRef<[u8]>) {
        self.push(name, 3, reason, error, bytes.as_ref());
    }

    /// A file beyond a documented limit.
    fn beyond_limit(&mut self, name: &str, reason: &str, error: &str, bytes: impl AsRef<[u8]>) {
        self.push(name, 12, reason, error, bytes.as_ref());
    }

    /// A file that needs a later program.
    fn unsupported(&mut self, name: &str, reason: &str, error: &str, bytes: impl AsRef<[u8]>) {
        self.push(name, 15, reason, error, bytes.as_ref());
    }

    fn push(&mut self, name: &str, expect: u8, reason: &str, error: &str, bytes: &[u8]) {
        self.vectors.push(Vector {
            name: format!("{}_{name}", self.kind.name()),
            kind: self.kind,
            expect,
            reason: reason.to_owned(),
            error: error.to_owned(),
            bytes: bytes.to_vec(),
        });
    }
}

/// All vectors, each name once.
pub fn vectors() -> Vec<Vector> {
    let collections = [
        patches::preludes(),
        patches::signature_blocks(),
        patches::contents(),
        patches::undo_logs(),
        patches::applied(),
        patches::taken_back(),
        manifests::encodings(),
        manifests::rules(),
        manifests::limits(),
        manifests::tilings(),
        frames::frames(),
        weights::headers(),
        weights::indexes(),
        facts::facts(),
    ];
    collections.into_iter().flat_map(|collection| collection.vectors).collect()
}

/// The checkpoint that the patches among the vectors are for: one matrix `w`, 2 by 3, in F16.
pub fn base() -> Vec<u8> {
    weights::file(weights::W, &crate::drafts::tiny().1[0].bytes)
}

/// What the example of `docs/format.md` makes of [`base`].
pub fn edited() -> Vec<u8> {
    let (draft, weights) = crate::drafts::tiny();
    weights::file(weights::W, &crate::drafts::edit(&weights[0], &[&draft.terms[0]]).after)
}
