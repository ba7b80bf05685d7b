//! The words of an undo log: choices among a few weights each, packed as the digits of one number.

/// One past the largest word.
const WORD_LIMIT: u128 = 1 << 64;

/// One place where the log has to say which of `count` weights it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    // No element type has more than 2^32 - 2^24 finite values; a large block may have a choice at every weight.
    pub column: u32,
    pub count: u32,
    pub index: u32,
}

impl Choice {
    /// The one at `index` among `count`. Columns and numbers of ordinals fit what holds them.
    pub fn new(column: usize, count: i64, index: i64) -> Self {
        Self { column: column as u32, count: count as u32, index: index as u32 }
    }
}

/// Packs choices into words.
#[derive(Debug)]
pub(super) struct WordWriter {
    words: Vec<u64>,
    state: u64,
    product: u128,
}

impl WordWriter {
    pub fn new() -> Self {
        Self { words: Vec::new(), state: 0, product: 1 }
    }

    /// Adds the choice of `index` among `count`, which is at least 2 and at most 2^32.
    pub fn push(&mut self, index: u64, count: u64) {
        debug_assert!(index < count && (2..=1 << 32).contains(&count), "{index} of {count}");
        if self.product * u128::from(count) > WORD_LIMIT {
            self.end_word();
        }
        // The new state is below `product * count`, which fits a word.
        self.state += index * self.product as u64;
        self.product *= u128::from(count);
    }

    fn end_word(&mut self) {
        self.words.push(self.state);
        (self.state, self.product) = (0, 1);
    }

    pub fn finish(mut self) -> Vec<u64> {
        if self.product > 1 {
            self.end_word();
        }
        self.words
    }
}

/// Takes choices out of words, refusing all but what [`WordWriter`] writes.
#[derive(Debug)]
pub(super) struct WordReader<'a> {
    words: std::slice::Iter<'a, u64>,
    word_count: usize,
    state: u64,
    product: u128,
}

impl<'a> WordReader<'a> {
    pub fn new(words: &'a [u64]) -> Self {
        // A full product makes the first choice take the first word.
        Self { words: words.iter(), word_count: words.len(), state: 0, product: WORD_LIMIT }
    }

    pub fn choose(&mut self, count: u64) -> Result<u64, String> {
        if self.product * u128::from(count) > WORD_LIMIT {
            self.check_word_is_used_up()?;
            let next = self.words.next();
            self.state = *next.ok_or_else(|| format!("its {} words end too early", self.word_count))?;
            self.product = 1;
        }
        let index = self.state % count;
        self.state /= count;
        self.product *= u128::from(count);
        Ok(index)
    }

    /// What is left of a word after its last choice is zero: each choice has one encoding, and none is out of range.
    fn check_word_is_used_up(&self) -> Result<(), String> {
        if self.state == 0 {
            return Ok(());
        }
        let word = self.word_count - self.words.len();
        Err(format!("word {word} of {} holds {} more than its choices", self.word_count, self.state))
    }

    pub fn finish(self) -> Result<(), String> {
        self.check_word_is_used_up()?;
        match self.words.len() {
            0 => Ok(()),
            unused => Err(format!("{unused} of its {} words are not used", self.word_count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::samples::Generator;
    use super::*;

    proptest! {
        #[test]
        fn words_give_back_every_choice(seeds in proptest::collection::vec((any::<u64>(), 1..=32_u32), 0..200)) {
            let choice = |(seed, bits): &(u64, u32)| {
                let count = (seed % (1 << bits)).max(1) + 1;
                (Generator(*seed).bits() % count, count)
            };
            let choices: Vec<(u64, u64)> = seeds.iter().map(choice).collect();
            let mut writer = WordWriter::new();
            choices.iter().for_each(|(index, count)| writer.push(*index, *count));
            let words = writer.finish();
            let mut reader = WordReader::new(&words);
            for (index, count) in choices {
                prop_assert_eq!(reader.choose(count), Ok(index));
            }
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }
}
