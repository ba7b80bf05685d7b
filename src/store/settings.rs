//! libgit2's settings for the whole process: what is acknowledged is on the disk, and no configuration but a
//! store's own is read.

#![expect(unsafe_code, reason = "libgit2's settings are global variables of C")]

use std::ffi::c_int;
use std::sync::OnceLock;

use git2::ConfigLevel;

/// Sets them, once.
pub(super) fn apply() -> Result<(), git2::Error> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| set().map_err(|error| error.message().to_owned()))
        .clone()
        .map_err(|message| git2::Error::from_str(&message))
}

fn set() -> Result<(), git2::Error> {
    // Initialises libgit2, which the calls below must not precede.
    git2::opts::strict_hash_verification(true);
    let levels = [ConfigLevel::ProgramData, ConfigLevel::System, ConfigLevel::XDG, ConfigLevel::Global];
    for level in levels {
        // SAFETY: the setting is a global variable without a lock. `apply` runs this once, and every door of this
        // room goes through `apply` before it touches libgit2, so nothing reads the variable meanwhile.
        unsafe { git2::opts::set_search_path(level, "")? };
    }
    // SAFETY: as above; this option takes one C integer, and answers below zero when it fails.
    let answer = unsafe {
        libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_ENABLE_FSYNC_GITDIR as c_int, 1 as c_int)
    };
    if answer < 0 {
        return Err(git2::Error::from_str("libgit2 does not take the option to write through to the disk"));
    }
    Ok(())
}
