//! Rust code as its tokens: enough to see which paths it names, and which of its items are for tests.

#[derive(Debug, Clone)]
pub struct Token {
    /// A word, `::`, or one character.
    pub text: String,
    pub line: usize,
    /// It stands in an item under `#[cfg(test)]`.
    pub in_test: bool,
}

/// Words and signs of Rust code, without comments, literals and the marks of lifetimes.
pub fn tokens(code: &str) -> Vec<Token> {
    let characters: Vec<char> = code.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut index, mut line) = (Vec::new(), 0, 1);
    while index < characters.len() {
        let start = index;
        index = match (at(index), at(index + 1)) {
            ('/', '/') => end_of(&characters, index, &['\n']),
            ('/', '*') => end_of(&characters, index + 2, &['*', '/']),
            ('"', _) => end_of_text(&characters, index + 1),
            ('\'', '\\') => end_of(&characters, index + 3, &['\'']),
            ('\'', _) if at(index + 2) == '\'' => index + 3,
            (':', ':') => index + 2,
            (sign, _) if sign.is_alphanumeric() || sign == '_' => {
                let rest = characters[index..].iter();
                let word = index + rest.take_while(|sign| sign.is_alphanumeric() || **sign == '_').count();
                end_of_raw_text(&characters, index, word).unwrap_or(word)
            }
            _ => index + 1,
        };
        let text: String = characters[start..index.min(characters.len())].iter().collect();
        let is_code = !text.starts_with(['/', '"', '\'']) && !text.trim().is_empty() && !text.contains('"');
        if is_code || text == "/" {
            tokens.push(Token { text: text.clone(), line, in_test: false });
        }
        line += text.matches('\n').count();
    }
    mark_tests(&mut tokens);
    tokens
}

/// Just behind the next `ending`.
fn end_of(characters: &[char], from: usize, ending: &[char]) -> usize {
    let found =
        characters.get(from..).and_then(|rest| rest.windows(ending.len()).position(|at| at == ending));
    found.map_or(characters.len(), |offset| from + offset + ending.len())
}

fn end_of_text(characters: &[char], mut index: usize) -> usize {
    while let Some(sign) = characters.get(index) {
        match sign {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    index
}

/// The end of a literal whose prefix (`r`, `b`, `br#`, ...) stands from `start` to `word`, if it is one.
fn end_of_raw_text(characters: &[char], start: usize, word: usize) -> Option<usize> {
    let prefix: String = characters[start..word].iter().collect();
    if !["r", "b", "br", "c", "cr"].contains(&prefix.as_str()) {
        return None;
    }
    let hashes = characters[word..].iter().take_while(|sign| **sign == '#').count();
    if characters.get(word + hashes) != Some(&'"') {
        return None;
    }
    if !prefix.contains('r') {
        return Some(end_of_text(characters, word + 1));
    }
    let ending: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    Some(end_of(characters, word + hashes + 1, &ending))
}

/// Marks every item that follows `#[cfg(test)]`.
fn mark_tests(tokens: &mut [Token]) {
    let words: Vec<String> = tokens.iter().map(|token| token.text.clone()).collect();
    for start in 0..words.len() {
        if !matches_at(&words, start, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            continue;
        }
        let end = end_of_item(&words, start + 7);
        tokens[start..end].iter_mut().for_each(|token| token.in_test = true);
    }
}

pub fn matches_at(words: &[String], start: usize, wanted: &[&str]) -> bool {
    words.len() >= start + wanted.len()
        && words[start..].iter().zip(wanted).all(|(word, wanted)| word == wanted)
}

/// Behind the `;` or the closing brace that ends the item which begins at `start`.
fn end_of_item(words: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (index, word) in words.iter().enumerate().skip(start) {
        match word.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return index + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return index + 1,
            _ => {}
        }
    }
    words.len()
}

/// A path that code names, e.g. `crate::tensor::Dtype`; a group in braces is several.
#[derive(Debug)]
pub struct Named {
    pub segments: Vec<String>,
    pub line: usize,
    pub in_test: bool,
}

pub fn named_paths(tokens: &[Token]) -> Vec<Named> {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let (mut found, mut index) = (Vec::new(), 0);
    while index < tokens.len() {
        let before = index.checked_sub(1).map_or("", word);
        let begins = is_word(word(index)) && !["::", "."].contains(&before);
        let is_alone = before == "use" && [";", "as"].contains(&word(index + 1));
        if !begins || (word(index + 1) != "::" && !is_alone) {
            index += 1;
            continue;
        }
        let (line, in_test) = (tokens[index].line, tokens[index].in_test);
        let mut paths = Vec::new();
        index = grow(tokens, index, Vec::new(), &mut paths).max(index + 1);
        found.extend(paths.into_iter().map(|segments| Named { segments, line, in_test }));
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Collects the paths that begin with `stem` and go on at `index`; returns where they end.
fn grow(tokens: &[Token], mut index: usize, mut stem: Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    loop {
        if word(index) == "{" {
            index += 1;
            while !["}", ""].contains(&word(index)) {
                let next = grow(tokens, index, stem.clone(), paths);
                index = next.max(index + 1) + usize::from(word(next) == ",");
            }
            return index + 1;
        }
        if !is_word(word(index)) {
            paths.push(stem);
            return index + usize::from(word(index) == "*");
        }
        stem.push(word(index).to_owned());
        index += 1;
        if word(index) == "::" {
            index += 1;
            continue;
        }
        paths.push(stem);
        return index + if word(index) == "as" { 2 } else { 0 };
    }
}

#[test]
fn code_is_read_without_its_comments_and_texts() {
    let code = r##"
        // use candle_core::Tensor;
        /* std::fs */ fn f<'a>(x: &'a str) -> char { let _ = "std::fs::read"; let _ = r#"a "quoted" unsafe"#; '"' }
        use crate::{tensor::{Dtype, Element}, digest as d};
        #[cfg(test)]
        mod tests { use super::super::edit; fn g() { std::fs::read("x"); } }
        fn h() { faer::Mat::<f64>::zeros(1, 1); }
    "##;
    let paths: Vec<(String, bool)> = named_paths(&tokens(code))
        .into_iter()
        .map(|named| (named.segments.join("::"), named.in_test))
        .collect();
    let expected = [
        ("crate::tensor::Dtype", false),
        ("crate::tensor::Element", false),
        ("crate::digest", false),
        ("super::super::edit", true),
        ("std::fs::read", true),
        ("faer::Mat", false),
    ];
    let expected: Vec<(String, bool)> =
        expected.iter().map(|(path, test)| ((*path).to_owned(), *test)).collect();
    assert_eq!(paths, expected);
    assert!(tokens(code).iter().all(|token| token.text != "unsafe"));
}
