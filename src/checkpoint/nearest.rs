//! Which name is meant where one is misspelt.

/// The name that shares most of its beginning and end with `name`, if that is at least half of it.
pub(crate) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let shared = |candidate: &&str| {
        let same = |pair: &(u8, u8)| pair.0 == pair.1;
        let prefix = candidate.bytes().zip(name.bytes()).take_while(same).count();
        let suffix = candidate.bytes().rev().zip(name.bytes().rev()).take_while(same).count();
        (prefix + suffix).min(candidate.len()).min(name.len())
    };
    names.max_by_key(shared).filter(|best| 2 * shared(best) >= name.len())
}
