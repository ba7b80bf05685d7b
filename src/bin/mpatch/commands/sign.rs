//! `mpatch sign`: adds a signature to a patch, whose identity stays the same.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::patch::Patch;
use mpatch::sign::SshSig;
use serde::Serialize;

use super::{is_stdin, names_a_file, patch_word, read_input, read_patch_file};
use crate::args::output_path;
use crate::error::{CommandError, ExitKind, both, output_hint};
use crate::history::StoreArguments;
use crate::keys::{KeyArguments, Membership, SignatureReport, Signer, with_signature};
use crate::places;
use crate::report::{Output, Page, Report, count, shell_word};
use crate::trust::{detached_path, way_to_a_signature_beside};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch sign edits.mpatch\n  \
                  mpatch sign edits.mpatch --key ~/.ssh/id_ed25519\n  \
                  mpatch sign edits.mpatch --key hardware.pub --detached\n\n\
                  A second signature, of a reviewer or of whoever made the patch again, stands beside the first.")]
pub struct SignArguments {
    /// Sign this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Which key signs.
    #[command(flatten)]
    key: KeyArguments,
    /// Write the signature into a file of its own, PATCH.sig, and leave the patch as it is
    #[arg(long)]
    detached: bool,
    /// Write the result here instead of into the patch; never over anything
    #[arg(short, long, value_name = "FILE", value_parser = output_path())]
    output: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct SignReport {
    patch: PathBuf,
    patch_id: PatchId,
    output: PathBuf,
    detached: bool,
    signature: SignatureReport,
    /// Signatures in the patch, with this one unless it is detached.
    signatures: usize,
}

/// Signs the patch.
pub fn run(arguments: &SignArguments, output: &Output) -> Result<(), CommandError> {
    let SignArguments { patch: path, key, detached, output: target, store } = arguments;
    if is_stdin(path) && target.is_none() {
        return Err(CommandError::new(
            ExitKind::Usage,
            "a patch from standard input has no place to be written to",
        )
        .hint("name one with `-o`"));
    }
    let recorded = if names_a_file(path) { None } else { store.recorded_patch(path)? };
    if target.is_none() && recorded.is_some() {
        let way = way_to_a_signature_beside(&patch_word(path));
        return Err(CommandError::new(ExitKind::Usage, "a patch of the history is signed by a commit")
            .hint(format!("{way}; or name a place with `-o` for a signed copy")));
    }
    let patch = recorded.map_or_else(|| read_patch_file(path), Ok)?;
    if target.is_none() && !detached && !path.is_file() {
        let message = format!("`{}` is no file that the signed patch can take the place of", path.display());
        return Err(CommandError::new(ExitKind::Usage, message).hint("name one with `-o`"));
    }
    let target = target.clone().or_else(|| detached.then(|| detached_path(path)));
    if let Some(target) = &target {
        crate::editing::refuse_existing(target)?;
    }
    let mut signer = key.find()?;
    signer.check_not_revoked()?;
    refuse_second(&patch, &signer, path)?;
    let (patch_id, place) = (patch.id(), target.clone().unwrap_or_else(|| path.clone()));
    signer.keep()?;
    let membership = Membership::of(&patch, &signer).map_err(|error| signer.with_word_of_key(error))?;
    let signed = sign(&signer, patch, *detached, target.as_deref(), path);
    let remembered = Membership::keep(membership, &signed, patch_id);
    let settled = match signed {
        Ok(signatures) => signer.settle().map(|signature| (signatures, signature)),
        Err(error) => Err(signer.with_word_of_key(error)),
    };
    let ((signatures, signature), ()) = both(settled, remembered)?;
    let report = SignReport {
        patch: path.clone(),
        patch_id,
        output: place,
        detached: *detached,
        signature,
        signatures,
    };
    output.report_done(&report)
}

/// Writes the signature, or the patch with it; tells how many signatures are in the patch now.
fn sign(
    signer: &Signer,
    patch: Patch,
    is_detached: bool,
    target: Option<&Path>,
    path: &Path,
) -> Result<usize, CommandError> {
    if let (true, Some(target)) = (is_detached, target) {
        mpatch::checkpoint::write_new(target, signer.sign(&patch)?.to_armour().as_bytes())?;
        return Ok(patch.signatures().len());
    }
    let name = path.to_string_lossy();
    if let Some(target) = target {
        let signed = signer.sign_into(patch, &name)?;
        mpatch::checkpoint::write_new(target, &in_memory(&signed, &name)?)?;
        return Ok(signed.signatures().len());
    }
    let signature = signer.sign(&patch)?;
    places::with_folder_of(path, || {
        let signed = with_signature(read_again(path, patch.id(), signer)?, &signature, &name)?;
        let failed = |error| CommandError::io("write", path, &error).hint(output_hint(&error));
        places::replace(path, &in_memory(&signed, &name)?, failed)?;
        Ok(signed.signatures().len())
    })
}

/// All that is to be written of a patch.
fn in_memory<'p>(patch: &'p Patch, name: &str) -> Result<Cow<'p, [u8]>, CommandError> {
    patch.to_bytes().map_err(|error| CommandError::patch(name, &error))
}

/// The patch as it is now: while a passphrase or a touch was waited for, somebody else may have signed it, too, or put
/// another one in its place.
fn read_again(path: &Path, signed: PatchId, signer: &Signer) -> Result<Patch, CommandError> {
    let now = Patch::decode(read_input(path)?);
    let now = now.map_err(|error| CommandError::patch(&path.to_string_lossy(), &error))?;
    if now.id() != signed {
        let message = format!(
            "`{}` is another patch now, {}: expected {}, which was signed",
            path.display(),
            now.id().short(),
            signed.short()
        );
        return Err(CommandError::new(ExitKind::Conflict, message)
            .hint("look which of the two it should be, and sign that one"));
    }
    refuse_second(&now, signer, path)?;
    Ok(now)
}

/// A second signature of one key says nothing more, and takes the place of another's.
fn refuse_second(patch: &Patch, signer: &Signer, path: &Path) -> Result<(), CommandError> {
    let key = signer.public();
    let is_ours = |bytes: &[u8]| SshSig::parse(bytes).is_ok_and(|signature| signature.key() == key);
    if !patch.signatures().iter().any(|signature| is_ours(&signature.bytes)) {
        return Ok(());
    }
    let message = format!("`{}` is signed with the key {} already", path.display(), key.fingerprint());
    Err(CommandError::new(ExitKind::Conflict, message).hint("choose another key with `--key`"))
}

impl Report for SignReport {
    const SCHEMA: &'static str = "mpatch.sign/1";

    fn write(&self, page: &mut Page) {
        let held = match self.detached {
            true => "a signature of its own".to_owned(),
            false => count(self.signatures, "signature"),
        };
        page.title(&format!("wrote {}: {held}", self.output.display()));
        self.signature.write(page);
    }

    fn next(&self) -> Option<String> {
        if !self.detached {
            return Some(format!("mpatch verify {}", patch_word(&self.output)));
        }
        // `verify` looks into PATCH.sig by itself.
        let words = match self.output == detached_path(&self.patch) && !is_stdin(&self.patch) {
            true => String::new(),
            false => format!(" --signature {}", shell_word(&self.output)),
        };
        Some(format!("mpatch verify {}{words}", patch_word(&self.patch)))
    }
}
