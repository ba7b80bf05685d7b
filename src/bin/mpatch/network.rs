//! Running `git` and `git lfs` to reach other machines: credentials, ssh and proxies are theirs to know.
//!
//! They run in a passing repository that mpatch has made, never in a store or in somebody's folder, so no hook and no
//! setting but the user's own can take part; and of transports only those that move objects are allowed. Where the
//! other history lies on this machine, `git` runs in it, too, and is kept from what that one would have it run.

use std::path::Path;

use mpatch::store::{CommitId, Incoming, Kind, Store, StoreError, THEIR_HEAD};

use crate::error::{CommandError, ExitKind, with_causes};
use crate::git::{self, Unanswered};
use crate::report::{Output, shell_word};

/// Settings of every run; the later ones say which transports there are.
const SETTINGS: [&str; 16] = [
    "core.hooksPath=/dev/null",
    "safe.bareRepository=all",
    "core.fsmonitor=false",
    "core.fsync=all",
    "transfer.fsckObjects=true",
    "transfer.unpackLimit=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "lfs.locksverify=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.ssh.allow=always",
];
/// What takes the place of `git receive-pack` in a history on this machine: settings of the sender's do not reach it,
/// and hooks, the collection of garbage, a checkout with its filters, and this command of a setting are programs there.
const RECEIVE: &str = "--receive-pack=git -c core.hooksPath=/dev/null -c core.alternateRefsCommand=true \
                       -c receive.autogc=false -c receive.denyCurrentBranch=refuse receive-pack";
/// How the full names of tags begin.
const TAGS: &str = "refs/tags/";

/// What to look at where nothing can be sent, by what `git` has said.
fn hint_of_push(said: &str) -> &'static str {
    let is_missing = ["does not appear to be a git repository", "not found", "does not exist"];
    match () {
        () if said.contains("[remote rejected]") => {
            "the other history refuses this by a setting or a hook of its own: whoever keeps it can tell why"
        }
        () if is_missing.iter().any(|words| said.contains(words)) => {
            "check the address: it must be a git repository that you may write to; `git init --bare FOLDER` makes one"
        }
        () => "check the address, and that you may write to it",
    }
}

/// How another history is called where none is named.
pub const REMOTE: &str = "origin";

/// The address as it is to be remembered: what is on this machine by its full path.
pub fn address(given: &str) -> Result<String, CommandError> {
    // What begins with a dash would be an option to git.
    if given.starts_with('-') || given.is_empty() {
        return Err(CommandError::new(ExitKind::Usage, format!("`{given}` is no address"))
            .hint("give a folder, or an address that `git clone` takes"));
    }
    full_address(Path::new(""), given)
}

/// The address with its full path, where it is one on this machine as seen from `folder`: `git` runs elsewhere. As git
/// has it, `knowledge` may be `knowledge.git`, or a bundle.
fn full_address(folder: &Path, address: &str) -> Result<String, CommandError> {
    // One history has one address. What is written in percent is left to git.
    let path = address.strip_prefix("file://").filter(|path| path.starts_with('/') && !path.contains('%'));
    let address = path.unwrap_or(address);
    let paths = ["", ".git", ".bundle"].map(|ending| match ending {
        "" => folder.join(address),
        _ => folder.join(format!("{}{ending}", address.trim_end_matches('/'))),
    });
    let full = match paths.iter().find(|path| path.exists()) {
        Some(path) => path.canonicalize().map_err(|error| CommandError::io("find", path, &error))?,
        None if is_path(address) => std::path::absolute(&paths[0])
            .map_err(|error| CommandError::io("find", Path::new(address), &error))?,
        None => return Ok(address.to_owned()),
    };
    Ok(full.to_string_lossy().into_owned())
}

/// The address of the other history that this one remembers; somebody may have written one there from its folder on.
pub fn remembered(store: &Store) -> Result<Option<String>, CommandError> {
    let known = store.remote(REMOTE)?;
    known.map(|known| full_address(store.folder(), &known)).transpose()
}

/// The address of the other history: the one given, else the one remembered.
pub fn other(given: Option<&str>, remembered: Option<&str>, hint: &str) -> Result<String, CommandError> {
    match (given, remembered) {
        (Some(given), _) => address(given),
        (None, Some(known)) => Ok(known.to_owned()),
        (None, None) => Err(CommandError::new(ExitKind::Usage, "this history knows no other one").hint(hint)),
    }
}

/// Whether `git` takes the address for one on this machine.
fn is_here(address: &str) -> bool {
    address.starts_with("file://") || is_path(address)
}

fn is_path(address: &str) -> bool {
    address.split_once(':').is_none_or(|(before, _)| before.contains('/'))
}

/// The address as it is shown: without what stands before the host, which may be a password, or a token.
pub fn shown_address(address: &str) -> String {
    address.replacen(user_info(address), "", 1)
}

/// `user:secret@` of `https://user:secret@example.org/knowledge.git`; nothing of a folder, or of `git@host:path`.
fn user_info(address: &str) -> &str {
    let Some((_, rest)) = address.split_once("://") else { return "" };
    let host = rest.split('/').next().unwrap_or_default();
    host.rfind('@').map_or("", |end| &host[..=end])
}

/// Fetches everything that has a name there, with its large patches; what the head is at where that is asked for.
/// Tells what was left out of it, since it holds no state that can be.
pub fn fetch(
    incoming: &Incoming<'_>,
    address: &str,
    with_head: bool,
) -> Result<Vec<StoreError>, CommandError> {
    let everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
    // Of a shallow repository `git` would leave out, without a word, what it knows the beginning of no more.
    let mut words = vec!["fetch", "--quiet", "--update-shallow", "--no-tags", "--no-write-fetch-head", "--"];
    words.push(address);
    words.extend(everything);
    let head = format!("+HEAD:{THEIR_HEAD}");
    words.extend(with_head.then_some(head.as_str()));
    git(incoming, address, &words)?;
    if incoming.git_folder().join("shallow").exists() {
        let message =
            format!("`{}` is shallow: the beginning of its history is not there", shown_address(address));
        return Err(CommandError::new(ExitKind::Malformed, message)
            .hint("`git fetch --unshallow` over there fetches the rest"));
    }
    let unsound = incoming.leave_out_unsound()?;
    if !incoming.missing()?.is_empty() {
        git(incoming, address, &["lfs", "fetch", "--all", REMOTE])?;
    }
    Ok(unsound)
}

/// Warns of what was left out of what came; refuses it where it has the branch that is wanted.
pub fn tell_unsound(
    unsound: Vec<StoreError>,
    wanted: Option<&str>,
    address: &str,
    output: &Output,
) -> Result<(), CommandError> {
    let wanted = wanted.map(|branch| format!("{} `{branch}`", Kind::Branch));
    let is_wanted = |error: &StoreError| {
        let StoreError::Unsound { names, .. } = error else { return false };
        wanted.as_ref().is_some_and(|wanted| names.contains(wanted))
    };
    let shown = shown_address(address);
    let (refused, others): (Vec<_>, Vec<_>) = unsound.into_iter().partition(is_wanted);
    let words = |error: &StoreError| format!("left out of `{shown}`: {}", with_causes(error));
    others.iter().for_each(|error| output.warn(&words(error)));
    let Some(error) = refused.into_iter().next() else { return Ok(()) };
    let hint = match &error {
        StoreError::Unsound { source, .. } if matches!(**source, StoreError::OtherBase { .. }) => {
            "a history is about one model: clone the other one"
        }
        _ => {
            "another program made the commit: whoever keeps that history moves the branch back, or deletes it"
        }
    };
    let message = words(&error);
    Err(CommandError { message, ..CommandError::from(error) }.hint(hint))
}

/// Where the other history's head is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TheirHead {
    /// On this branch.
    Branch(String),
    /// On no branch, or a bundle does not say on which.
    Detached,
    /// Nowhere yet.
    Unborn,
}

/// Asks where the other history's head is.
pub fn their_head(incoming: &Incoming<'_>, address: &str) -> Result<TheirHead, CommandError> {
    let answer = git(incoming, address, &["ls-remote", "--symref", "--", address, "HEAD"])?;
    let branch = answer.lines().find_map(|line| line.strip_prefix("ref: refs/heads/"));
    let branch = branch.and_then(|line| line.split('\t').next());
    let is_there = answer.lines().any(|line| !line.starts_with("ref: ") && line.ends_with("\tHEAD"));
    Ok(match (branch, is_there) {
        (Some(branch), _) => TheirHead::Branch(branch.to_owned()),
        (None, true) => TheirHead::Detached,
        (None, false) => TheirHead::Unborn,
    })
}

/// Where a history that mpatch is at work in lists what was done; what `git init --bare` has made has no such list.
/// A mirror has: it is a copy of all names.
const OPERATIONS: &str = "refs/mpatch/operations";

/// Whether mpatch can be at work over there. What is on this machine is looked at; of what is elsewhere only the names
/// can be seen, and whoever has the list counts as one who works there.
fn is_at_work(address: &str, has_operations: bool) -> bool {
    let folder = Path::new(address.strip_prefix("file://").unwrap_or(address));
    let is_store = || !matches!(Store::open(folder), Err(StoreError::NoStore { .. }));
    has_operations && (!folder.is_dir() || is_store())
}

/// Refuses to move the branch that somebody is on over there, or a tag. Git does so where files are checked out; in a
/// history they never are, so the remote's own `git` takes its branch for one that nobody is on.
///
/// Answers with what is to be sent: all that is not there already, and of tags what leads to the same there.
fn without_refused<'n>(
    store: &Store,
    incoming: &Incoming<'_>,
    address: &str,
    names: &'n [(CommitId, String)],
) -> Result<Vec<&'n (CommitId, String)>, CommandError> {
    let listed = git(incoming, address, &["ls-remote", "--symref", "--", address]).map_err(|error| {
        let hint = hint_of_push(&error.message);
        error.hint(hint)
    })?;
    let entries: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
    let head = entries.iter().find_map(|(target, _)| target.strip_prefix("ref: "));
    let has_operations = entries.iter().any(|(_, name)| *name == OPERATIONS);
    let moves = |commit: &CommitId, name: &str| !entries.contains(&(&commit.to_string(), name));
    let there = |name: &str| entries.iter().find(|(_, there)| *there == name).map(|(target, _)| *target);
    let mut sent = Vec::new();
    for target @ (commit, name) in names {
        let Some(object) = there(name).filter(|_| name.starts_with(TAGS)) else {
            sent.extend(Some(target).filter(|_| moves(commit, name)));
            continue;
        };
        // Of a tag object the commit is listed that it leads to.
        let theirs = there(&format!("{name}^{{}}")).unwrap_or(object);
        if store.named(*commit)?.0.to_string() == theirs {
            continue;
        }
        let (tag, shown) = (name.strip_prefix(TAGS).unwrap_or(name), shown_address(address));
        let message = format!("the tag `{tag}` names something else in `{shown}`");
        return Err(CommandError::new(ExitKind::Conflict, message)
            .hint(format!("choose another name: `mpatch tag NAME {}`", shell_word(tag))));
    }
    match names.iter().find(|(commit, name)| Some(name.as_str()) == head && moves(commit, name)) {
        Some((_, name)) if is_at_work(address, has_operations) => Err(their_branch(address, name)),
        _ => Ok(sent),
    }
}

/// The branch has gone on over there, or was never the same.
fn gone_on(
    said: &str,
    address: &str,
    sent: &[&(CommitId, String)],
    remembered: Option<&str>,
) -> CommandError {
    let name =
        |(_, full): &(CommitId, String)| full.rsplit_once("refs/heads/").map(|(_, name)| name.to_owned());
    let is_named = |name: &String| {
        said.contains(&format!("-> {name} (")) || said.contains(&format!("refs/heads/{name}'"))
    };
    let branches: Vec<String> = sent.iter().filter_map(|target| name(target)).collect();
    let branch = branches.iter().find(|name| is_named(name)).or(branches.first());
    let shown = shown_address(address);
    let branch = branch.map_or_else(|| "the branch".to_owned(), |name| format!("`{name}`"));
    let message = format!("{branch} of `{shown}` has commits that are not in the one here");
    let from = match remembered {
        Some(known) if known == address => String::new(),
        _ => format!(" --from {}", shell_word(shown)),
    };
    CommandError::new(ExitKind::Conflict, message)
        .hint(format!("`mpatch pull{from}` fetches them, to be merged before you push again"))
}

fn their_branch(address: &str, name: &str) -> CommandError {
    let (branch, shown) = (name.strip_prefix("refs/heads/").unwrap_or(name), shown_address(address));
    let message =
        format!("`{branch}` is the branch that `{shown}` is on, and would move under whoever works there");
    CommandError::new(ExitKind::Conflict, message).hint(
        "`pull` over there fetches it; or send a branch of another name, to be merged there; or share a history that nobody works in, made by `git init --bare FOLDER`; a mirror becomes one by `git update-ref -d refs/mpatch/operations` over there",
    )
}

/// Sends commits to names there, with all large patches that they need, and these first. Tells the full names of what
/// was not there already.
pub fn push(
    store: &Store,
    incoming: &Incoming<'_>,
    address: &str,
    remembered: Option<&str>,
    names: &[(CommitId, String)],
) -> Result<Vec<String>, CommandError> {
    let names = without_refused(store, incoming, address, names)?;
    let sent: Vec<String> = names.iter().map(|(_, name)| name.clone()).collect();
    if names.is_empty() {
        return Ok(sent);
    }
    let commits: Vec<CommitId> = names.iter().map(|(commit, _)| *commit).collect();
    let large = store.large_patches(&commits)?;
    if !large.is_empty() {
        let mut words = vec!["lfs", "push", "--object-id", REMOTE];
        words.extend(large.iter().map(|pointer| pointer.oid()));
        git(incoming, address, &words)?;
    }
    let targets: Vec<String> = names.iter().map(|(commit, name)| format!("{commit}:{name}")).collect();
    let mut words = vec!["push", "--quiet", "--no-verify", "--atomic"];
    words.extend(is_here(address).then_some(RECEIVE));
    words.extend(["--", address]);
    words.extend(targets.iter().map(String::as_str));
    let Err(said) = try_git(incoming, address, &words)? else { return Ok(sent) };
    if has_gone_on(&said) {
        return Err(gone_on(&said, address, &names, remembered));
    }
    // What stock git has checked out it refuses by itself.
    let checked_out = said.split_once("refusing to update checked out branch: ");
    let name = checked_out.and_then(|(_, name)| name.split([';', ' ', '\n']).next());
    Err(name.map_or_else(|| refused(&words, &said), |name| their_branch(address, name)))
}

/// Whether a name over there has moved: before `git` asked for it, or between that and its sending. What hooks over
/// there print comes here, too, behind `remote: `.
fn has_gone_on(said: &str) -> bool {
    let is_late =
        |line: &str| line.starts_with("remote: error: cannot lock ref ") && line.contains("but expected");
    let is_behind = |line: &str| {
        let is_reason = |reason| line.ends_with(reason);
        line.starts_with("! [rejected] ")
            && ["(fetch first)", "(non-fast-forward)"].into_iter().any(is_reason)
    };
    said.lines().any(|line| is_late(line) || is_behind(line))
}

fn git(incoming: &Incoming<'_>, address: &str, words: &[&str]) -> Result<String, CommandError> {
    try_git(incoming, address, words)?.map_err(|said| refused(words, &said))
}

/// The answer of `git`, or its words where it refuses.
fn try_git(
    incoming: &Incoming<'_>,
    address: &str,
    words: &[&str],
) -> Result<Result<String, String>, CommandError> {
    // From within, not by `--git-dir`: that would count for the other side of `git lfs`, too.
    let mut command = git::command(incoming.git_folder());
    SETTINGS.iter().for_each(|setting| _ = command.args(["-c", setting]));
    command.arg("-c").arg(format!("remote.{REMOTE}.url={address}"));
    match git::answer(&mut command, words) {
        Ok(answer) => Ok(Ok(answer)),
        Err(Unanswered::NotFound) => {
            let message = "there is no `git` to reach other histories with";
            Err(CommandError::new(ExitKind::Io, message).hint("install git"))
        }
        Err(Unanswered::Failed(error)) => Err(Unanswered::failed(&error)),
        Err(Unanswered::Refused { said, .. }) => {
            // `git` keeps it to itself, and not all that it runs does.
            let secret = user_info(address);
            Ok(Err(if secret.is_empty() { said } else { said.replace(secret, "") }))
        }
    }
}

/// `git` has refused, with these words.
fn refused(words: &[&str], said: &str) -> CommandError {
    if words.first() == Some(&"lfs") && said.contains("is not a git command") {
        return CommandError::new(ExitKind::Io, "there is no `git lfs`, which carries large patches")
            .hint("install git-lfs");
    }
    let hint = match words.first() {
        Some(&"push") => hint_of_push(said),
        _ if said.contains("dubious ownership") => {
            "it belongs to another user: where you trust it, do what git says, and try again"
        }
        Some(&"lfs") if said.contains("missing object") => {
            "its large patches are not there, as in what `git clone --bare` has made: `push` sends them there from a history that has them"
        }
        _ => "check the address, and that you may read it",
    };
    let verb = match words {
        ["ls-remote", ..] => "ask what is there",
        ["lfs", "push", ..] => "send large patches",
        ["lfs", ..] => "fetch large patches",
        _ => words.first().copied().unwrap_or_default(),
    };
    let said = git::on_one_line(said);
    CommandError::new(ExitKind::Io, format!("git could not {verb}: {said}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_that_came_too_late_is_told_from_one_that_cannot_be_made() {
        for (said, late) in [
            ("! [rejected] main -> main (fetch first)", true),
            ("remote: error: cannot lock ref 'refs/heads/main': is at 306278e but expected 0b0bd20", true),
            ("remote: error: cannot lock ref 'refs/heads/main': Unable to create 'main.lock'", false),
            ("remote: ask, and fetch first\n! [remote rejected] main -> main (hook declined)", false),
        ] {
            assert_eq!(has_gone_on(said), late, "{said}");
        }
    }

    #[test]
    fn a_repository_is_only_to_be_made_where_there_is_none() {
        for (said, is_missing) in [
            ("fatal: '/srv/a' does not appear to be a git repository", true),
            ("fatal: repository 'https://example.org/a/' not found", true),
            ("! [remote rejected] main -> main (deny updating a hidden ref)", false),
            ("fatal: Could not read from remote repository.", false),
        ] {
            assert_eq!(hint_of_push(said).contains("git init --bare"), is_missing, "{said}");
        }
    }

    #[test]
    fn an_address_is_one_on_this_machine_unless_a_host_stands_before_a_colon() {
        for (given, here) in [
            ("knowledge", true),
            ("./a:b", true),
            ("/srv/a:b", true),
            ("file:///srv/a", true),
            ("example.org:a", false),
            ("git@example.org:a/b", false),
            ("https://example.org/a", false),
        ] {
            assert_eq!(is_here(given), here, "{given}");
        }
        for none in ["", "-x", "--upload-pack=x"] {
            assert!(address(none).is_err(), "`{none}`");
        }
    }

    #[test]
    fn what_stands_before_a_host_is_not_shown() {
        for (address, shown) in [
            ("https://user:secret@example.org:8/a.git", "https://example.org:8/a.git"),
            ("http://us@er:sec@ret@example.org", "http://example.org"),
            ("ssh://git@example.org/a@b", "ssh://example.org/a@b"),
            ("git@example.org:a.git", "git@example.org:a.git"),
            ("/srv/a@b/c", "/srv/a@b/c"),
            ("file:///srv/a@b/c", "file:///srv/a@b/c"),
        ] {
            assert_eq!(shown_address(address), shown);
        }
    }
}
