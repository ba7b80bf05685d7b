//! How patches that became one met: facts that they share or disagree about, and keys that they share.

use std::collections::BTreeMap;

use mpatch::stack::{Clash, Decision, Overlap, Plan, PlannedPatch, Sides};
use serde::Serialize;

use crate::report::{Page, count};

/// Smallest principal angle below which two patches are said to share keys, in degrees.
pub const OVERLAP_ANGLE_DEGREES: f64 = 30.0;

/// Clashes and overlaps that are shown one by one.
const SHOWN_MAX: usize = 8;

/// Decisions that a commit keeps one by one.
const NOTED_MAX: usize = 100;

/// What the reports of `stack` and `merge` say of that.
#[derive(Debug, Serialize)]
pub struct Agreement {
    /// In the order of their terms.
    pub patches: Vec<PlannedPatch>,
    duplicates: Vec<Clash>,
    changed: Vec<Clash>,
    decided: Vec<Decision>,
    /// Overlaps are warned of below this angle, in degrees.
    overlap_angle: f64,
    overlaps: Vec<Overlap>,
}

impl Default for Agreement {
    fn default() -> Self {
        Self {
            patches: Vec::new(),
            duplicates: Vec::new(),
            changed: Vec::new(),
            decided: Vec::new(),
            overlap_angle: OVERLAP_ANGLE_DEGREES,
            overlaps: Vec::new(),
        }
    }
}

impl Agreement {
    pub fn new(plan: Plan, overlaps: Vec<Overlap>, overlap_angle: f64) -> Self {
        let patches = plan.patches().to_vec();
        let Plan { duplicates, changed, decided, .. } = plan;
        Self { patches, duplicates, changed, decided, overlap_angle, overlaps }
    }

    /// Writes it for patches whose updates were `added`, or whose facts were solved for again.
    pub fn write(&self, added: bool, page: &mut Page) {
        self.write_clashes(added, page);
        self.write_overlaps(page);
    }

    /// The contradictions of which one side stands, in words: so many of them.
    fn decisions(&self, limit: usize) -> impl Iterator<Item = String> {
        self.decided.iter().take(limit).map(|Decision { clash, second_stands, .. }| {
            let (stands, lost) =
                if *second_stands { (&clash.second, &clash.first) } else { (&clash.first, &clash.second) };
            let (text, kept, gone) = (&clash.text, &stands.target, &lost.target);
            format!("\"{text}\": \"{kept}\" of {} stands, not \"{gone}\" of {}", stands.name, lost.name)
        })
    }

    /// What a commit keeps of that: what the command was told, and what came of it. Nothing where nothing had to be
    /// decided.
    pub fn notes(&self, sides: &Sides) -> Vec<String> {
        let told = match sides {
            _ if self.decided.is_empty() => return Vec::new(),
            Sides::Refuse => return Vec::new(),
            Sides::Ours => "ours",
            Sides::Theirs => "theirs",
            Sides::ByFact(_) => "choose",
        };
        let mut notes = vec![told.to_owned()];
        notes.extend(self.decisions(NOTED_MAX));
        let hidden = self.decided.len().saturating_sub(NOTED_MAX);
        notes.extend((hidden > 0).then(|| format!("and {hidden} more")));
        notes
    }

    fn write_clashes(&self, added: bool, page: &mut Page) {
        if !self.duplicates.is_empty() {
            let (facts, are) = (count(self.duplicates.len(), "fact"), self.duplicates.len() != 1);
            let stand = if are { "stand" } else { "stands" };
            let weights = if added { ": declared once, but the weights hold both updates" } else { "" };
            page.line(&format!("{facts} {stand} in two patches alike{weights}"));
        }
        for clash in self.changed.iter().take(SHOWN_MAX) {
            let Clash { text, first, second, .. } = clash;
            let (old, new) = (&first.target, &second.target);
            page.line(&format!("\"{text}\": {} changes \"{old}\" to \"{new}\"", second.name));
        }
        self.decisions(SHOWN_MAX).for_each(|words| page.line(&words));
        let hidden =
            self.changed.len().saturating_sub(SHOWN_MAX) + self.decided.len().saturating_sub(SHOWN_MAX);
        if hidden > 0 {
            page.line(&format!("and {hidden} more; `--json` lists all"));
        }
        if added && self.patches.iter().any(|patch| patch.lost > 0 && !patch.left_out) {
            page.line(
                "warning: the weights hold the updates of both sides: which fact holds, only a test can say",
            );
        }
    }

    /// One line for each pair of patches that come too close somewhere, with the tensor where they come closest.
    fn write_overlaps(&self, page: &mut Page) {
        let mut closest: BTreeMap<&[String; 2], (&Overlap, usize)> = BTreeMap::new();
        for overlap in self.overlaps.iter().filter(|overlap| overlap.angle_degrees < self.overlap_angle) {
            let entry = closest.entry(&overlap.patches).or_insert((overlap, 0));
            entry.1 += 1;
            if overlap.angle_degrees < entry.0.angle_degrees {
                entry.0 = overlap;
            }
        }
        let mut pairs: Vec<(&Overlap, usize)> = closest.into_values().collect();
        pairs.sort_by(|one, other| one.0.angle_degrees.total_cmp(&other.0.angle_degrees));
        for (overlap, tensors) in pairs.iter().take(SHOWN_MAX) {
            let [one, other] = &overlap.patches;
            page.line(&format!(
                "warning: {one} and {other} share keys in {}: {:.1} degrees apart in {}, {:.0} % shared where chance gives {:.0} %",
                count(*tensors, "tensor"),
                overlap.angle_degrees,
                overlap.tensor,
                100.0 * overlap.shared,
                100.0 * overlap.shared_by_chance,
            ));
        }
        page.and_more(pairs.len(), SHOWN_MAX, "`--json` lists all");
    }
}
