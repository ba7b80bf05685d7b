//! What the patches say together: facts by what they are about.

use std::collections::BTreeSet;

use super::{Clash, Decision, Named, PlannedPatch, Side, Sides, StackError};
use crate::facts::{PLACEHOLDER, Targets, Things, same_target};
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
struct Claim<'a> {
    fact: &'a Fact,
    /// The patches that say it, by their place in the order of terms; at least one.
    patches: Vec<usize>,
    /// The patches that were decided against, with what they say: in the end that may stand after all.
    beaten: Vec<(usize, &'a str)>,
}

impl<'a> Claim<'a> {
    /// `patch` says `fact`, which stands instead.
    fn replace(&mut self, fact: &'a Fact, patch: usize) {
        (self.fact, self.patches) = (fact, vec![patch]);
    }
}

/// Merges the facts of `placed` in order; marks what was lost, and patches that are left out.
pub(super) fn agree(
    placed: &mut [PlannedPatch],
    patches: &[Named<'_>],
    sides: &Sides,
) -> Result<Agreed, StackError> {
    let mut agreed = Agreed::default();
    let mut standing: Vec<Claim<'_>> = Vec::new();
    let mut things = Things::default();
    let (mut contradictions, mut chosen_by_neither) = (Vec::new(), Vec::new());
    for patch in 0..placed.len() {
        let facts = &patches[placed[patch].given].patch.manifest().facts;
        let numbers = things.number(facts.iter().map(|fact| (fact.prompt.as_str(), fact.subject.as_str())));
        for (fact, number) in facts.iter().zip(numbers) {
            let Some(earlier) = standing.get_mut(number) else {
                standing.push(Claim { fact, patches: vec![patch], beaten: Vec::new() });
                continue;
            };
            let clash = clash(placed, earlier, fact, patch);
            if same_target(&earlier.fact.target_new, &fact.target_new) {
                agreed.duplicates.push(clash);
                earlier.patches.push(patch);
            } else if earlier.patches.iter().all(|&earlier| is_on_top(placed, patch, earlier)) {
                agreed.changed.push(clash);
                earlier.replace(fact, patch);
            } else if let Some(second_stands) = decide(sides, earlier.fact, fact) {
                agreed.decided.push(Decision { clash, second_stands });
                if second_stands {
                    let target = earlier.fact.target_new.as_str();
                    earlier.beaten.extend(earlier.patches.iter().map(|&loser| (loser, target)));
                    earlier.replace(fact, patch);
                } else {
                    earlier.beaten.push((patch, &fact.target_new));
                }
            } else if let Sides::ByFact(targets) = sides
                && let Some(target) = chosen(targets, earlier.fact, fact)
            {
                chosen_by_neither.push((clash, target.to_owned()));
            } else {
                contradictions.push(clash);
            }
        }
    }
    // Whoever chose meant to decide: that is told before what nobody decided.
    if !chosen_by_neither.is_empty() {
        return Err(StackError::ChosenByNeither(chosen_by_neither));
    }
    if !contradictions.is_empty() {
        return Err(StackError::Contradictions(contradictions));
    }
    for Claim { fact, beaten, .. } in &standing {
        let losers = beaten.iter().filter(|(_, target)| !same_target(target, &fact.target_new));
        losers.for_each(|(loser, _)| placed[*loser].lost += 1);
    }
    leave_out(placed);
    agreed.facts = standing.into_iter().map(|claim| claim.fact.clone()).collect();
    Ok(agreed)
}

fn clash(placed: &[PlannedPatch], earlier: &Claim<'_>, fact: &Fact, patch: usize) -> Clash {
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

/// Whether `patch` was made on top of `of`, however many patches lie between.
fn is_on_top(placed: &[PlannedPatch], patch: usize, of: usize) -> bool {
    let mut below = vec![patch];
    // A patch may name all that lie below it, not only the nearest: each is asked once, for in a chain the ways down
    // from its end double with every patch.
    let mut seen = BTreeSet::new();
    while let Some(next) = below.pop() {
        let parents = &placed[next].on_top_of;
        if parents.contains(&of) {
            return true;
        }
        below.extend(parents.iter().copied().filter(|&parent| seen.insert(parent)));
    }
    false
}

/// Whether the later fact stands; none where `sides` says nothing about it.
fn decide(sides: &Sides, first: &Fact, second: &Fact) -> Option<bool> {
    match sides {
        Sides::Refuse => None,
        Sides::Ours => Some(false),
        Sides::Theirs => Some(true),
        Sides::ByFact(targets) => {
            let target = chosen(targets, first, second)?;
            match (same_target(target, &first.target_new), same_target(target, &second.target_new)) {
                (true, false) => Some(false),
                (false, true) => Some(true),
                _ => None,
            }
        }
    }
}

/// What `targets` say of two facts that are about one thing, and may differ in letter case.
fn chosen<'t>(targets: &'t Targets, first: &Fact, second: &Fact) -> Option<&'t str> {
    [second, first].iter().find_map(|fact| targets.get(&fact.prompt, &fact.subject))
}

/// A patch that lost everything it says is not needed, unless another builds on it.
fn leave_out(placed: &mut [PlannedPatch]) {
    for index in (0..placed.len()).rev() {
        let lost_all = placed[index].facts > 0 && placed[index].lost == placed[index].facts;
        let is_built_on = placed.iter().any(|patch| !patch.left_out && patch.on_top_of.contains(&index));
        placed[index].left_out = lost_all && !is_built_on;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::PatchId;

    fn placed(on_top_of: Vec<usize>) -> PlannedPatch {
        PlannedPatch {
            given: 0,
            name: String::new(),
            id: PatchId::derive(&[]),
            binding: 0,
            on_top_of,
            facts: 1,
            lost: 0,
            left_out: false,
        }
    }

    #[test]
    fn what_a_long_chain_was_made_on_top_of_is_told_at_once() {
        let chain = (1..=60).map(|place| placed((1..place).collect()));
        let placed: Vec<PlannedPatch> = [placed(Vec::new())].into_iter().chain(chain).collect();
        assert!(!is_on_top(&placed, 60, 0), "the first stands beside the chain");
        assert!((1..60).all(|below| is_on_top(&placed, 60, below)), "each of the chain is below its end");
        assert!(!is_on_top(&placed, 59, 60), "and its end is below none");
        // Nor need one name more than the nearest.
        let placed = [vec![], vec![0], vec![1], vec![2]].map(self::placed);
        assert!(is_on_top(&placed, 3, 0) && !is_on_top(&placed, 0, 3));
    }

    #[test]
    fn what_lost_everything_stays_where_something_is_built_on_it() {
        let lost = |on_top_of| PlannedPatch { lost: 1, ..placed(on_top_of) };
        let left_out = |mut placed: Vec<PlannedPatch>| {
            leave_out(&mut placed);
            placed.iter().map(|patch| patch.left_out).collect::<Vec<_>>()
        };
        assert_eq!(left_out(vec![lost(vec![]), placed(vec![]), placed(vec![])]), [true, false, false]);
        assert_eq!(left_out(vec![lost(vec![]), placed(vec![0]), placed(vec![])]), [false, false, false]);
        // What is built on it may be left out itself.
        assert_eq!(left_out(vec![lost(vec![]), lost(vec![0]), placed(vec![])]), [true, true, false]);
    }
}
