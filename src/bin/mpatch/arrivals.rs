//! What the signatures say of patches that come from another history, before anything here is named after them.
//!
//! What nobody trusted has signed may come, and is pointed out: `apply`, `checkout` and `merge` ask again before any of
//! it touches weights. What has been tampered with may not, nor what a policy would never let pass.

use mpatch::digest::PatchId;
use mpatch::sign::Answer;
use mpatch::store::Incoming;
use serde::Serialize;

use crate::error::{CommandError, ExitKind};
use crate::history::message;
use crate::report::{Output, Page, count};
use crate::trust::{Lines, TrustFiles, TrustReport, judge_arrival};

/// Patches that are shown one by one.
const PATCHES_SHOWN: usize = 20;

/// A patch that came, and what its signatures say.
#[derive(Debug, Serialize)]
pub struct ArrivalReport {
    patch: PatchId,
    title: String,
    trust: TrustReport,
}

impl ArrivalReport {
    /// In `verify`'s words; of a trusted one who signed it, without the files that say so.
    fn answer(&self) -> String {
        let judgement = &self.trust.judgement;
        if judgement.answer != Answer::Trusted {
            return self.trust.in_words();
        }
        let trusted = judgement.signatures.iter().filter(|found| found.answer == Answer::Trusted);
        let principals: Vec<String> = trusted.map(|found| found.principals.join(" and ")).collect();
        format!("{}: {}", judgement.answer, principals.join("; "))
    }
}

/// Judges every patch that is new here, with what is known of lines; refuses all that came if one of them must not.
pub fn judge_arrivals(
    incoming: &Incoming<'_>,
    mut lines: Lines<'_>,
    output: &Output,
) -> Result<Vec<ArrivalReport>, CommandError> {
    let files = TrustFiles::load_with_a_word(output)?;
    let (mut arrivals, mut refusals) = (Vec::new(), Vec::new());
    for patch in incoming.new_patches()? {
        let patch = patch?;
        match judge_arrival(&patch, &files, &mut lines)?.permit() {
            Ok(permitted) => {
                let title = message(patch.manifest(), patch.id(), None, vec![]).title;
                arrivals.push(ArrivalReport { patch: patch.id(), title, trust: permitted.report });
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    arrivals.sort_by_key(|arrival| arrival.trust.judgement.answer == Answer::Trusted);
    let others = refusals.len().saturating_sub(1);
    // One that was tampered with says more than many that lack something.
    refusals.sort_by_key(|refusal| refusal.kind != ExitKind::BadSignature);
    match refusals.into_iter().next() {
        None => Ok(arrivals),
        Some(refusal) => {
            let more = if others > 0 { format!("; {others} more are refused") } else { String::new() };
            let message = format!("{}{more}; nothing that came was given a name", refusal.message);
            let refusal = CommandError { message, ..refusal };
            // The hints about patches are for those that lie in files.
            Err(match refusal.kind {
                ExitKind::Untrusted => refusal.hint(
                    "have it signed as the policy asks; that is `policy.json` in `.mpatch` or among your settings",
                ),
                _ => refusal,
            })
        }
    }
}

/// A line for all, and one for each that is not trusted, or is one of few.
pub fn write_arrivals(arrivals: &[ArrivalReport], page: &mut Page) {
    let is_trusted = |arrival: &&ArrivalReport| arrival.trust.judgement.answer == Answer::Trusted;
    let strange = arrivals.len() - arrivals.iter().filter(is_trusted).count();
    if arrivals.is_empty() {
        return;
    }
    let patches = count(arrivals.len(), "new patch");
    page.line(&match strange {
        0 => format!("{patches}, all signed by who is trusted here"),
        _ => format!("warning: {patches}, {strange} not trusted; `apply`, `checkout` and `merge` ask again"),
    });
    let row = |arrival: &ArrivalReport| {
        vec![arrival.patch.short(), arrival.answer(), format!("│ {}", arrival.title)]
    };
    page.table(&arrivals.iter().take(PATCHES_SHOWN).map(row).collect::<Vec<_>>());
    page.and_more(arrivals.len(), PATCHES_SHOWN, "`--json` lists all");
}
