//! A disk in memory that can lose power, for tests.
//!
//! ```text
//! file     what was synced last  +  every write and change of size since      any subset survives, block by block
//! folder   the names at its last sync  +  every change of them since          any beginning of these survives
//! ```
//!
//! Data and names survive independently: a rename may last whose file's data does not, a file may have its new size
//! and zeros in it. That is more than file systems do to programs, and all that POSIX allows them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{About, Access, Audience, Disk, Handle, Kind, Lock, Locked};

/// What a power cut does with the parts of a write: `keeps()` is asked for each, and `grain` is their size.
pub(crate) trait Fate {
    /// Whether the next block that was not synced is on the disk after all.
    fn keeps(&mut self) -> bool;
    /// How many of `changes` changes of names are on the disk.
    fn names_kept(&mut self, changes: usize) -> usize;
    /// The size of the blocks that are written as a whole.
    fn grain(&self) -> usize;
}

/// A disk in memory; clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

/// The user whose all files are.
const USER: u32 = 1000;

#[derive(Debug, Clone)]
struct State {
    nodes: Vec<Node>,
    /// Whether another program has the files in its memory: then the system forgets nothing.
    is_mapped: bool,
    lie: Option<Lie>,
    room: Option<Room>,
    /// When files were made, where that is not the number of their node.
    created_ns: BTreeMap<usize, Option<u64>>,
    /// What whoever holds the next lock that is asked for takes away before he lets it go.
    taken_before_lock: Option<PathBuf>,
}

/// What is left of a disk on which the files of now have no blocks of their own, but share them all.
#[derive(Debug, Clone)]
struct Room {
    /// Nodes from here on are new files, which have reserved their room.
    nodes: usize,
    writes: usize,
    /// Where something was written to already.
    written: BTreeSet<(usize, u64)>,
}

impl Room {
    fn take(&mut self, node: usize, offset: u64) -> io::Result<()> {
        if node >= self.nodes || self.written.contains(&(node, offset)) {
            return Ok(());
        }
        self.writes = self.writes.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        self.written.insert((node, offset));
        Ok(())
    }
}

/// What a disk may say to be done and not do: tests that cannot catch it would test nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    SyncOfFiles,
    SyncOfFolders,
}

type Names = BTreeMap<OsString, usize>;

#[derive(Debug, Clone)]
enum Node {
    File { bytes: Vec<u8>, mode: u32, owner: u32, synced: Vec<u8>, changes: Vec<Change> },
    Folder { names: Names, mode: u32, synced: Names, changes: Vec<Vec<(OsString, Option<usize>)>> },
}

/// What happened to a file since its last sync.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Size(usize),
}

impl Change {
    fn make(&self, file: &mut Vec<u8>) {
        match self {
            Change::Size(size) => file.resize(*size, 0),
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            at = *self.names(at)?.get(name).ok_or_else(missing)?;
        }
        Ok(at)
    }

    fn names(&self, node: usize) -> io::Result<&Names> {
        match &self.nodes[node] {
            Node::Folder { names, .. } => Ok(names),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The folder and the last part of a path.
    fn place(&self, path: &Path) -> io::Result<(usize, OsString)> {
        let folder = self.find(path.parent().ok_or_else(missing)?)?;
        Ok((folder, path.file_name().ok_or_else(missing)?.to_owned()))
    }

    /// Changes names of one folder, all of them in one step.
    fn rename(&mut self, folder: usize, changed: Vec<(OsString, Option<usize>)>) {
        let Node::Folder { names, changes, .. } = &mut self.nodes[folder] else { return };
        for (name, node) in &changed {
            match node {
                Some(node) => _ = names.insert(name.clone(), *node),
                None => _ = names.remove(name),
            }
        }
        changes.push(changed);
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (folder, name) = self.place(path)?;
        if self.names(folder)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let added = self.nodes.len() - 1;
        self.rename(folder, vec![(name, Some(added))]);
        Ok(added)
    }

    fn about(&self, node: usize) -> About {
        let is_named = |other: &Node| match other {
            Node::Folder { names, .. } => names.values().filter(|named| **named == node).count() as u64,
            Node::File { .. } => 0,
        };
        let links = self.nodes.iter().map(is_named).sum();
        let (kind, size_bytes, mode, owner) = match &self.nodes[node] {
            Node::File { bytes, mode, owner, .. } => (Kind::File, bytes.len() as u64, *mode, *owner),
            Node::Folder { mode, .. } => (Kind::Folder, 0, *mode, USER),
        };
        let inode = node as u64;
        About {
            kind,
            size_bytes,
            device: 1,
            inode,
            links,
            created_ns: self.created_ns.get(&node).copied().unwrap_or(Some(inode)),
            mode,
            owner,
            group: 0,
            listed: None,
        }
    }
}

impl SimulatedDisk {
    /// An empty disk; everything lies in its root.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes: vec![folder()],
            is_mapped: false,
            lie: None,
            room: None,
            created_ns: BTreeMap::new(),
            taken_before_lock: None,
        })))
    }

    /// Puts a file on the disk, synced.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        let node = Node::File {
            bytes: bytes.to_vec(),
            mode: 0o644,
            owner: USER,
            synced: bytes.to_vec(),
            changes: vec![],
        };
        state.add(Path::new(path), node).unwrap();
        state.settle_names();
    }

    /// Puts an empty folder on the disk, synced.
    pub(crate) fn put_folder(&self, path: &str) {
        let mut state = self.state();
        state.add(Path::new(path), folder()).unwrap();
        state.settle_names();
    }

    /// Every file and what it holds, by path.
    pub(crate) fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let mut found = BTreeMap::new();
        let mut waiting = vec![(PathBuf::from("/"), 0)];
        while let Some((path, node)) = waiting.pop() {
            match &state.nodes[node] {
                Node::File { bytes, .. } => _ = found.insert(path, bytes.clone()),
                Node::Folder { names, .. } => {
                    waiting.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
                }
            }
        }
        found
    }

    /// From here on the disk lies.
    pub(crate) fn tell(&self, lie: Lie) {
        self.state().lie = Some(lie);
    }

    /// From here on another program has every file mapped, as loaders of safetensors do.
    pub(crate) fn map_all(&self) {
        self.state().is_mapped = true;
    }

    /// From here on there is room for so many writes to the files that are there.
    pub(crate) fn fill_up_to(&self, writes: usize) {
        let mut state = self.state();
        let nodes = state.nodes.len();
        state.room = Some(Room { nodes, writes, written: BTreeSet::new() });
    }

    /// Gives a file to another user.
    pub(crate) fn give_away(&self, path: &Path, user: u32) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        if let Node::File { owner, .. } = &mut state.nodes[node] {
            *owner = user;
        }
    }

    /// From here on a file was made then, as another one that got its inode; none where the system does not tell.
    pub(crate) fn set_created(&self, path: &Path, created_ns: Option<u64>) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        state.created_ns.insert(node, created_ns);
    }

    /// Whoever holds the next lock that is asked for takes a file away before he lets it go.
    pub(crate) fn take_before_lock(&self, path: &Path) {
        self.state().taken_before_lock = Some(path.to_owned());
    }

    /// A disk of its own with the same contents and the same things not synced.
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// The disk as `fate` leaves it after a power cut; everything on it is synced.
    pub(crate) fn after_power_cut(&self, fate: &mut dyn Fate) -> Self {
        let mut state = self.state().clone();
        let nodes = state.nodes.iter_mut();
        nodes.for_each(|node| node.lose_power(fate));
        Self(Arc::new(Mutex::new(state)))
    }

    /// Whether a power cut could leave more than one state.
    pub(crate) fn is_settled(&self) -> bool {
        self.state().nodes.iter().all(|node| match node {
            Node::File { changes, .. } => changes.is_empty(),
            Node::Folder { changes, .. } => changes.is_empty(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn folder() -> Node {
    Node::Folder { names: Names::new(), mode: 0o755, synced: Names::new(), changes: vec![] }
}

impl State {
    fn settle_names(&mut self) {
        for node in &mut self.nodes {
            if let Node::Folder { names, synced, changes, .. } = node {
                synced.clone_from(names);
                changes.clear();
            }
        }
    }
}

impl Node {
    fn lose_power(&mut self, fate: &mut dyn Fate) {
        match self {
            Node::File { bytes, synced, changes, .. } => {
                let mut left = std::mem::take(synced);
                for change in changes.drain(..) {
                    match change {
                        Change::Size(size) if fate.keeps() => left.resize(size, 0),
                        Change::Size(_) => {}
                        Change::Write { offset, bytes } => keep_blocks(&mut left, offset, &bytes, fate),
                    }
                }
                bytes.clone_from(&left);
                *synced = left;
            }
            Node::Folder { names, synced, changes, .. } => {
                let kept = fate.names_kept(changes.len());
                for (name, node) in changes.drain(..).take(kept).flatten() {
                    match node {
                        Some(node) => _ = synced.insert(name, node),
                        None => _ = synced.remove(&name),
                    }
                }
                names.clone_from(synced);
            }
        }
    }
}

/// Writes those blocks of a write that `fate` keeps; a file that grew has zeros where the others would be.
fn keep_blocks(left: &mut Vec<u8>, offset: usize, bytes: &[u8], fate: &mut dyn Fate) {
    let (grain, end) = (fate.grain(), offset + bytes.len());
    let mut start = offset;
    while start < end {
        let stop = end.min((start / grain + 1) * grain);
        if fate.keeps() {
            if left.len() < stop {
                left.resize(stop, 0);
            }
            left[start..stop].copy_from_slice(&bytes[start - offset..stop - offset]);
        }
        start = stop;
    }
}

#[derive(Debug)]
struct SimulatedHandle {
    disk: SimulatedDisk,
    node: usize,
    may_write: bool,
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Handle>> {
        let mut state = self.state();
        let node = match access {
            Access::CreateNew(audience) => {
                let mode = if audience == Audience::Owner { 0o600 } else { 0o644 };
                let file = Node::File { bytes: vec![], mode, owner: USER, synced: vec![], changes: vec![] };
                state.add(path, file)?
            }
            Access::Read | Access::ReadWrite | Access::Direct => state.find(path)?,
        };
        match state.nodes[node] {
            Node::File { .. } => {
                let may_write = access != Access::Read;
                Ok(Box::new(SimulatedHandle { disk: self.clone(), node, may_write }))
            }
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn open_folder(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let node = self.state().find(path)?;
        Ok(Box::new(SimulatedHandle { disk: self.clone(), node, may_write: true }))
    }

    fn about(&self, path: &Path) -> io::Result<About> {
        let state = self.state();
        state.find(path).map(|node| state.about(node))
    }

    fn about_name(&self, path: &Path) -> io::Result<About> {
        self.about(path)
    }

    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.state().find(path).map(|_| path.to_owned())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let state = self.state();
        Ok(state.names(state.find(folder)?)?.keys().cloned().collect())
    }

    fn create_folder(&self, path: &Path, _: Audience) -> io::Result<()> {
        self.state().add(path, folder()).map(drop)
    }

    fn set_folder_mode(&self, path: &Path, new_mode: u32) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(path)?;
        if let Node::Folder { mode, .. } = &mut state.nodes[node] {
            *mode = new_mode;
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(path)?;
        let (folder, name) = state.place(path)?;
        match state.nodes[node] {
            Node::File { .. } => state.rename(folder, vec![(name, None)]),
            Node::Folder { .. } => return Err(io::ErrorKind::IsADirectory.into()),
        }
        Ok(())
    }

    fn remove_whole_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(path).and_then(|node| state.names(node).map(drop))?;
        let (folder, name) = state.place(path)?;
        state.rename(folder, vec![(name, None)]);
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.state().find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename_over(from, to)
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(from)?;
        let ((folder, old), (other_folder, new)) = (state.place(from)?, state.place(to)?);
        assert_eq!(folder, other_folder, "no rename of ours goes to another folder");
        state.rename(folder, vec![(old, None), (new, Some(node))]);
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(from)?;
        let (folder, name) = state.place(to)?;
        if state.names(folder)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.rename(folder, vec![(name, Some(node))]);
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(path)?;
        if state.lie == Some(Lie::SyncOfFolders) {
            return Ok(());
        }
        if let Node::Folder { names, synced, changes, .. } = &mut state.nodes[node] {
            synced.clone_from(names);
            changes.clear();
        }
        Ok(())
    }

    fn check_writable(&self, folder: &Path) -> io::Result<()> {
        let state = self.state();
        state.names(state.find(folder)?).map(drop)
    }

    fn user(&self) -> u32 {
        USER
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(0)
    }
}

impl SimulatedHandle {
    fn change(&self, change: Change) {
        let mut state = self.disk.state();
        let Node::File { bytes, changes, .. } = &mut state.nodes[self.node] else { return };
        change.make(bytes);
        changes.push(change);
    }
}

impl Handle for SimulatedHandle {
    fn about(&self) -> io::Result<About> {
        Ok(self.disk.state().about(self.node))
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let Node::File { bytes, .. } = &state.nodes[self.node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(target.len());
        target[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if let Some(room) = &mut self.disk.state().room {
            room.take(self.node, offset)?;
        }
        self.change(Change::Write { offset: offset as usize, bytes: bytes.to_vec() });
        Ok(bytes.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size as usize));
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.set_size(size)
    }

    fn set_mode(&self, new_mode: u32) -> io::Result<()> {
        if let Node::File { mode, .. } = &mut self.disk.state().nodes[self.node] {
            *mode = new_mode;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.lie == Some(Lie::SyncOfFiles) {
            return Ok(());
        }
        if let Node::File { synced, changes, .. } = &mut state.nodes[self.node] {
            changes.drain(..).for_each(|change| change.make(synced));
        }
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let is_mapped = state.is_mapped;
        // What is taken for written is read from the disk again; what waits to be written stays in memory.
        if let Node::File { bytes, synced, changes, .. } = &mut state.nodes[self.node]
            && changes.is_empty()
            && !is_mapped
        {
            bytes.clone_from(synced);
        }
        Ok(())
    }

    fn fail_to_sync(&self) {
        if let Node::File { changes, .. } = &mut self.disk.state().nodes[self.node] {
            changes.clear();
        }
    }

    fn lock(&self, lock: Lock) -> io::Result<Locked> {
        // As network file systems have it.
        if lock == Lock::Exclusive && !self.may_write {
            return Ok(Locked::Unsupported);
        }
        let taken = self.disk.state().taken_before_lock.take();
        taken.map_or(Ok(()), |path| self.disk.remove_file(&path))?;
        // One process at a time is simulated, and those that are gone hold nothing.
        Ok(Locked::Held)
    }

    fn clone_from(&self, _: &dyn Handle) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copy_from(&self, _: &dyn Handle, _: u64, _: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
