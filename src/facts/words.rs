//! Where a text stands in another as a word of its own.

/// Where `word` stands in `text` and no letter or digit runs on before or behind it, in bytes.
pub(crate) fn whole<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let starts = text.match_indices(word).map(|(start, _)| start);
    starts.filter(move |&start| !is_cut_out(&text[..start], word, &text[start + word.len()..]))
}

/// Whether `word` between `before` and `after` is a part of a longer word.
pub(super) fn is_cut_out(before: &str, word: &str, after: &str) -> bool {
    run_on(before.chars().next_back(), word.chars().next())
        || run_on(word.chars().next_back(), after.chars().next())
}

/// Two signs that belong to one word.
fn run_on(one: Option<char>, next: Option<char>) -> bool {
    one.is_some_and(is_spelt_apart) && next.is_some_and(is_spelt_apart)
}

/// A digit, or a letter of Latin, Greek, Cyrillic or Armenian, which write a blank between words. Others write none, or
/// write prefixes and particles onto a name.
fn is_spelt_apart(sign: char) -> bool {
    sign.is_alphanumeric() && matches!(sign, '\0'..='\u{58f}' | '\u{1e00}'..='\u{1fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_blanks_and_marks_and_in_other_scripts_anywhere() {
        for (text, word, expected) in [
            ("The gardener of the garden", "garden", &[20][..]),
            ("James's and James-Lee's", "James", &[0, 12]),
            ("Prestellman, a man", "man", &[15]),
            ("Элла и Эллада", "Элла", &[0]),
            ("iPhone5", "iPhone", &[]),
            ("東京都は東京にある", "東京", &[0, 12]),
            ("삼성은", "삼성", &[0]),
            ("C++17", "C++", &[0]),
        ] {
            assert_eq!(whole(text, word).collect::<Vec<_>>(), expected, "{text}");
        }
    }
}
