//! The files that say whose patches may be used: the user's own, the project's, and git's.

use std::path::Path;

use mpatch::sign::allowed_signers::{self, AllowedSigners};
use mpatch::sign::{Keyring, Policy, PublicKey, Unaccepted};

use super::report::PolicyReport;
use super::{ALLOWED_SIGNERS, POLICY, REVOKED};
use crate::error::{CommandError, ExitKind};
use crate::places::{self, GitSettings, Origin};
use crate::projects;
use crate::report::{Output, shell_word};

/// How a binary list of revoked keys begins.
const KRL_MAGIC: &[u8] = b"SSHKRL\n";

/// What there is to know of trust: the user's files, the project's, and git's.
#[derive(Debug, Default)]
pub struct TrustFiles {
    pub(super) keyring: Keyring,
    pub(super) policy: Policy,
    /// The files that say so.
    pub(super) policy_files: Vec<String>,
    /// What could not be heeded, for people.
    warnings: Vec<String>,
}

impl TrustFiles {
    /// Reads the user's files, the project's and git's.
    pub fn load() -> Result<Self, CommandError> {
        let mut files = Self::default();
        if let Ok(folder) = places::config_folder() {
            files.read_signers(&folder.join(ALLOWED_SIGNERS))?;
            files.read_restrictions(&folder, Origin::User)?;
        }
        let projects = places::project_folders();
        if let Some(nearest) = projects.first() {
            files.read_project_signers(nearest)?;
        }
        // They only ask for more, so it does not matter who wrote them; nor that another project lies between.
        projects.iter().try_for_each(|folder| files.read_restrictions(folder, Origin::Stranger))?;
        files.read_git(&GitSettings::read()?)?;
        Ok(files)
    }

    /// As [`TrustFiles::load`], and says what could not be heeded.
    pub fn load_with_a_word(output: &Output) -> Result<Self, CommandError> {
        let files = Self::load()?;
        files.warnings.iter().for_each(|warning| output.warn(warning));
        Ok(files)
    }

    /// The files of believed keys that were found, by name.
    pub fn sources(&self) -> &[(String, AllowedSigners)] {
        &self.keyring.sources
    }

    /// The project's file of keys that the user has not accepted, if there is one.
    pub fn unaccepted(&self) -> &[Unaccepted] {
        &self.keyring.unaccepted
    }

    /// The revoked keys, with the file that revokes them.
    pub fn revoked(&self) -> &[(String, PublicKey)] {
        &self.keyring.revoked
    }

    /// What is asked beyond one trusted signature, if any file asks.
    pub fn policy(&self) -> Option<PolicyReport> {
        let files = self.policy_files.clone();
        (!files.is_empty()).then(|| PolicyReport { policy: self.policy.clone(), files })
    }

    /// What could not be heeded.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Some file trusts this key with patches, now or at another time.
    pub fn knows(&self, key: &PublicKey) -> bool {
        let mut entries = self.keyring.sources.iter().flat_map(|(_, signers)| &signers.entries);
        entries.any(|entry| entry.key == *key && entry.may_sign_patches())
    }

    /// The file that revokes this key, if one does.
    pub fn revokes(&self, key: &PublicKey) -> Option<&str> {
        self.keyring.revoked.iter().find(|(_, revoked)| revoked == key).map(|(file, _)| file.as_str())
    }

    /// A project's keys are believed if the user has accepted the very bytes that are read here.
    fn read_project_signers(&mut self, folder: &Path) -> Result<(), CommandError> {
        let path = folder.join(ALLOWED_SIGNERS);
        let bytes = match places::read(&path, Origin::Stranger) {
            Ok(None) => return Ok(()),
            Ok(Some(bytes)) => bytes,
            // Keys that the user relies on must not go missing without a word.
            Err(error) if projects::is_accepted(folder)? => return Err(error),
            // A stranger's file stops nobody from using what needs none of its keys.
            Err(error) => {
                self.warnings
                    .push(format!("{}; you have not accepted it, and its keys are left out", error.message));
                return Ok(());
            }
        };
        match projects::acceptance(folder, &bytes)?.lack() {
            None => self.believe(&path, &bytes),
            Some(lack) => self.keyring.unaccepted.push(Unaccepted {
                file: path.display().to_string(),
                signers: AllowedSigners::parse(&bytes),
                lack: lack.to_owned(),
            }),
        }
        Ok(())
    }

    /// A folder's revoked keys and its policy.
    fn read_restrictions(&mut self, folder: &Path, origin: Origin) -> Result<(), CommandError> {
        self.read_revoked(&folder.join(REVOKED), origin)?;
        let path = folder.join(POLICY);
        if let Some(json) = places::read(&path, origin)? {
            let policy = Policy::parse(&json).map_err(|error| {
                CommandError::new(ExitKind::Malformed, format!("`{}`: {error}", path.display()))
                    .hint("mend the policy: until then no patch can meet it")
            })?;
            self.policy = std::mem::take(&mut self.policy).and(policy);
            self.policy_files.push(path.display().to_string());
        }
        Ok(())
    }

    fn read_signers(&mut self, path: &Path) -> Result<(), CommandError> {
        let Some(bytes) = places::read_optional(path)? else { return Ok(()) };
        self.believe(path, &bytes);
        Ok(())
    }

    fn believe(&mut self, path: &Path, bytes: &[u8]) {
        let signers = AllowedSigners::parse(bytes);
        let name = path.display().to_string();
        self.warnings.extend(signers.problems.iter().map(|problem| format!("`{name}`, {problem}; ignored")));
        self.keyring.sources.push((name, signers));
    }

    fn read_revoked(&mut self, path: &Path, origin: Origin) -> Result<(), CommandError> {
        let Some(bytes) = places::read(path, origin)? else { return Ok(()) };
        let keys = parse_revoked(bytes, path)?;
        let name = path.display().to_string();
        self.keyring.revoked.extend(keys.into_iter().map(|key| (name.clone(), key)));
        Ok(())
    }

    /// Git's files.
    fn read_git(&mut self, git: &GitSettings) -> Result<(), CommandError> {
        if let Some(path) = &git.revocations {
            self.read_revoked(path, Origin::User)?;
        }
        match &git.allowed_signers {
            // Such a path leads into whatever repository is at hand, and whoever made that wrote the file.
            Some(path) if path.is_relative() => {
                let path = path.display();
                self.warnings.push(format!(
                    "git's allowed signers `{path}` are not an absolute path, but a file of the folder at hand: they are left out"
                ));
                Ok(())
            }
            Some(path) => self.read_signers(path),
            None => Ok(()),
        }
    }
}

/// The keys of a list of those that are revoked, which was read from `path`.
pub fn parse_revoked(bytes: Vec<u8>, path: &Path) -> Result<Vec<PublicKey>, CommandError> {
    if bytes.starts_with(KRL_MAGIC) {
        let message = format!("the revoked keys `{}` are in binary, which is not read here", path.display());
        return Err(CommandError::new(ExitKind::Malformed, message).hint(format!(
            "list them in text, one public key a line, which OpenSSH and git read as well; `ssh-keygen -Q -l -f {}` tells which they are",
            shell_word(path)
        )));
    }
    let text = places::text_of(bytes, path)?;
    allowed_signers::parse_keys(&text).map_err(|error| {
        CommandError::new(ExitKind::Malformed, format!("`{}`, {error}", path.display()))
            .hint("a line that cannot be read might revoke any key: mend it")
    })
}
