//! Access-control lists, which say of some users and groups who may do what with a file.
//!
//! Linux keeps a file's list in an extended attribute; elsewhere none is looked for. All is little-endian: the version,
//! 4 bytes; for each entry its kind and its rights, 2 bytes each, and whom it is about, 4 bytes.

use std::fs::File;
use std::path::Path;

#[cfg(any(target_os = "linux", target_os = "android"))]
const NAME: &str = "system.posix_acl_access";

/// What each entry of the list of what `path` leads to gives, the owner's left out; nothing where there is no list.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn of(path: &Path) -> Option<u32> {
    common(|list| rustix::fs::getxattr(path, NAME, list))
}

/// The same of the name itself.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn of_name(path: &Path) -> Option<u32> {
    common(|list| rustix::fs::lgetxattr(path, NAME, list))
}

/// The same of an open file.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn of_file(file: &File) -> Option<u32> {
    common(|list| rustix::fs::fgetxattr(file, NAME, list))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn of(_: &Path) -> Option<u32> {
    None
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn of_name(_: &Path) -> Option<u32> {
    None
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn of_file(_: &File) -> Option<u32> {
    None
}

/// Of a list that cannot be read the owner alone is sure to be let in.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn common(read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> Option<u32> {
    use rustix::io::Errno;
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const OWNER: [u8; 2] = [1, 0];
    let mut list = [0; 4096];
    let size = match read(&mut list) {
        Ok(size) => size,
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => return None,
        Err(_) => return Some(0),
    };
    let Some(([VERSION, entries @ ..], [])) = list.get(..size).map(|list| list.as_chunks::<4>()) else {
        return Some(0);
    };
    let (entries, []) = entries.as_chunks::<2>() else { return Some(0) };
    let others = entries.iter().filter(|[about, _]| !about.starts_with(&OWNER));
    Some(others.fold(0o7, |common, [[_, _, rights, _], _]| common & u32::from(*rights)))
}

#[cfg(test)]
#[cfg(any(target_os = "linux", target_os = "android"))]
mod tests {
    use super::super::super::telling::skipped;
    use super::super::{Access, Audience, Files};
    use super::*;

    const OWNER: u16 = 1;
    const USER: u16 = 2;
    const GROUP: u16 = 4;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;

    /// The mode that a new file gets of one with such a list; nothing where there are no lists.
    fn given(entries: &[(u16, u16)]) -> Option<u32> {
        let folder = tempfile::tempdir().unwrap();
        let [path, new] = ["old", "new"].map(|name| folder.path().join(name));
        let mut list = 2u32.to_le_bytes().to_vec();
        for (kind, rights) in entries {
            let about = if *kind == USER { 65_534 } else { u32::MAX };
            list.extend([kind.to_le_bytes(), rights.to_le_bytes()].concat());
            list.extend(about.to_le_bytes());
        }
        File::create(&path).unwrap();
        rustix::fs::setxattr(&path, NAME, &list, rustix::fs::XattrFlags::empty()).ok()?;
        let disk = Files::real();
        let made = disk.open(&new, Access::CreateNew(Audience::Owner)).unwrap().about().unwrap();
        let modes =
            [disk.about(&path), disk.about_name(&path), disk.open(&path, Access::Read).unwrap().about()]
                .map(|about| about.unwrap().mode_for(&made));
        assert!(modes.iter().all(|mode| *mode == modes[0]), "{modes:?}");
        Some(modes[0])
    }

    #[test]
    fn a_group_that_a_list_keeps_out_is_not_let_in_for_its_mask() {
        let kept_out = given(&[(OWNER, 6), (USER, 6), (GROUP, 0), (MASK, 6), (OTHER, 0)]);
        if kept_out.is_none() {
            return skipped("this file system keeps no access-control lists");
        }
        assert_eq!(kept_out, Some(0o600));
        let a_user = given(&[(OWNER, 6), (USER, 0), (GROUP, 4), (MASK, 4), (OTHER, 4)]);
        assert_eq!(a_user, Some(0o600), "nobody else who is kept out either");
        let open = given(&[(OWNER, 6), (USER, 6), (GROUP, 4), (MASK, 6), (OTHER, 4)]);
        assert_eq!(open, Some(0o644));
    }
}
