//! The rights of new files: no more than those of what they are made of, on file systems that keep none, too.

use std::io;

use rustix::io::Errno;

use super::About;

impl About {
    /// The rights that `made` may have to be open to nobody who is kept out here; never set-user-id and its like.
    ///
    /// Of another group it is not known who is in which, and a list has its own groups and users: so both the group and
    /// all others get what everybody has here.
    pub(crate) fn mode_for(&self, made: &About) -> u32 {
        if self.group == made.group && self.listed.is_none() && made.listed.is_none() {
            return self.mode & 0o777;
        }
        let common = (self.mode >> 3) & self.mode & 0o7 & self.listed.unwrap_or(0o7);
        (self.mode & 0o700) | (common << 3) | common
    }
}

/// Has `set` give a file or folder the rights `wanted`, where it was not made with them.
///
/// Where the file system keeps no rights, those it was made with are kept, if those among `matters` let in nobody who
/// is to be kept out.
pub(super) fn given(
    made: &About,
    wanted: u32,
    matters: u32,
    set: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    if made.mode == wanted {
        return Ok(());
    }
    let refused = match set() {
        Err(error) if keeps_no_modes(&error) => error,
        outcome => return outcome,
    };
    if made.mode & !wanted & matters == 0 {
        return Ok(());
    }
    let message = format!(
        "this file system keeps no modes: it would be {:o} instead of {wanted:o} ({refused})",
        made.mode
    );
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

fn keeps_no_modes(error: &io::Error) -> bool {
    // Whoever has made a file may change its mode, where there is one.
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn with(mode: u32, group: u32, listed: Option<u32>) -> About {
        About {
            kind: Kind::File,
            size_bytes: 0,
            device: 1,
            inode: 1,
            links: 1,
            created_ns: None,
            mode,
            owner: 0,
            group,
            listed,
        }
    }

    #[test]
    fn rights_given_on_keep_out_whom_the_original_kept_out() {
        const GROUP: u32 = 7;
        for (mode, same, other) in [
            (0o640, 0o640, 0o600),
            (0o644, 0o644, 0o644),
            (0o604, 0o604, 0o600),
            (0o664, 0o664, 0o644),
            (0o4751, 0o751, 0o711),
        ] {
            let about = with(mode, GROUP, None);
            // A new file whose folder gives it a list lets in whom that list names.
            let made = [(GROUP, None), (GROUP + 1, None), (GROUP, Some(0))];
            let modes = made.map(|(group, listed)| about.mode_for(&with(0o600, group, listed)));
            assert_eq!(modes, [same, other, other], "{mode:o}");
        }
        let plain = with(0o600, GROUP, None);
        for (mode, listed, given) in [(0o660, 0, 0o600), (0o664, 0o4, 0o644), (0o644, 0, 0o600)] {
            assert_eq!(with(mode, GROUP, Some(listed)).mode_for(&plain), given, "{mode:o} {listed:o}");
        }
    }

    #[test]
    fn a_file_system_without_modes_is_taken_as_it_is_where_it_lets_in_nobody_else() {
        let made = |mode| with(mode, 0, None);
        let refusing = |error: Errno| move || Err(error.into());
        for (mode, wanted, error, is_fine) in [
            (0o600, 0o644, Errno::PERM, true),
            (0o755, 0o644, Errno::NOTSUP, true),
            (0o777, 0o600, Errno::PERM, false),
            (0o600, 0o644, Errno::IO, false),
        ] {
            let outcome = given(&made(mode), wanted, 0o666, refusing(error));
            assert_eq!(outcome.is_ok(), is_fine, "{mode:o} {wanted:o}: {outcome:?}");
        }
        assert!(given(&made(0o644), 0o644, 0o666, refusing(Errno::IO)).is_ok(), "there is nothing to change");
        let refused = given(&made(0o777), 0o600, 0o666, refusing(Errno::PERM)).unwrap_err().to_string();
        assert!(
            refused.starts_with("this file system keeps no modes: it would be 777 instead of 600"),
            "{refused}"
        );
    }
}
