//! What the patches say together: facts by what they are about.

use std::collections::BTreeMap;

use super::{Clash, Decision, Named, PlannedPatch, Side, Sides, StackError};
use crate::facts::{PLACEHOLDER, blank, same_target};
use crate::patch::manifest::Fact;

/// The facts of all patches, and how they met.
#[derive(Default)]
pub(super) struct Agreed {
    pub(super) facts: Vec<Fact>,
    pub(super) duplicates: Vec<Clash>,
    pub(super) changed: Vec<Clash>,
    pub(super) decided: Vec<Decision>,
}

/// A fact that stands so far.
struct Standing<'a> {
    fact: &'a Fact,
    /// The patches that say it, by their place in the order of terms; at least one.
    patches: Vec<usize>,
}

/// Merges the facts of `placed` in order; marks what was lost, and patches that are left out.
pub(super) fn agree(
    placed: &mut [PlannedPatch],
    patches: &[Named<'_>],
    sides: &Sides,
) -> Result<Agreed, StackError> {
    let mut agreed = Agreed::default();
    let mut standing: Vec<Standing<'_>> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut contradictions = Vec::new();
    for patch in 0..placed.len() {
        for fact in &patches[placed[patch].given].patch.manifest().facts {
            let key = blank(&fact.prompt, &fact.subject);
            let Some(&place) = places.get(&key) else {
                places.insert(key, standing.len());
                standing.push(Standing { fact, patches: vec![patch] });
                continue;
            };
            let earlier = &mut standing[place];
            let clash = clash(placed, earlier, fact, patch);
            if same_target(&earlier.fact.target_new, &fact.target_new) {
                agreed.duplicates.push(clash);
                earlier.patches.push(patch);
            } else if earlier.patches.iter().all(|&earlier| is_on_top(placed, patch, earlier)) {
                agreed.changed.push(clash);
                *earlier = Standing { fact, patches: vec![patch] };
            } else if let Some(second_stands) = decide(sides, &key, earlier.fact, fact) {
                agreed.decided.push(Decision { clash, second_stands });
                let losers = if second_stands {
                    std::mem::replace(earlier, Standing { fact, patches: vec![patch] }).patches
                } else {
                    vec![patch]
                };
                losers.into_iter().for_each(|loser| placed[loser].lost += 1);
            } else {
                contradictions.push(clash);
            }
        }
    }
    if !contradictions.is_empty() {
        return Err(StackError::Contradictions(contradictions));
    }
    leave_out(placed);
    agreed.facts = standing.into_iter().map(|standing| standing.fact.clone()).collect();
    Ok(agreed)
}

fn clash(placed: &[PlannedPatch], earlier: &Standing<'_>, fact: &Fact, patch: usize) -> Clash {
    let side = |fact: &Fact, patch: usize| Side {
        name: placed[patch].name.clone(),
        patch: placed[patch].id,
        target: fact.target_new.clone(),
    };
    Clash {
        text: fact.prompt.replacen(PLACEHOLDER, &fact.subject, 1),
        first: side(earlier.fact, earlier.patches[0]),
        second: side(fact, patch),
    }
}

fn is_on_top(placed: &[PlannedPatch], patch: usize, of: usize) -> bool {
    let mut below = placed[patch].on_top_of.clone();
    // Parents may have parents of their own; each stands before its child, so this ends.
    while let Some(next) = below.pop() {
        if next == of {
            return true;
        }
        below.extend(&placed[next].on_top_of);
    }
    false
}

/// Whether the later fact stands; none where `sides` says nothing about it.
fn decide(sides: &Sides, key: &str, first: &Fact, second: &Fact) -> Option<bool> {
    match sides {
        Sides::Refuse => None,
        Sides::Ours => Some(false),
        Sides::Theirs => Some(true),
        Sides::ByFact(targets) => {
            let target = targets.get(key)?;
            match (same_target(target, &first.target_new), same_target(target, &second.target_new)) {
                (true, false) => Some(false),
                (false, true) => Some(true),
                _ => None,
            }
        }
    }
}

/// A patch that lost everything it says is not needed, unless another builds on it.
fn leave_out(placed: &mut [PlannedPatch]) {
    for index in (0..placed.len()).rev() {
        let lost_all = placed[index].facts > 0 && placed[index].lost == placed[index].facts;
        let is_built_on = placed.iter().any(|patch| !patch.left_out && patch.on_top_of.contains(&index));
        placed[index].left_out = lost_all && !is_built_on;
    }
}
