//! OpenSSH's `allowed_signers`: whose keys are believed, for what, and when.
//!
//! ```text
//! alice@example.org,bob@*  namespaces="mpatch,git" valid-before="20271231Z"  ssh-ed25519 AAAA...  a comment
//! principals               options                                           key
//! ```
//!
//! The layout is that of ssh-keygen(1), "ALLOWED SIGNERS". A line that cannot be read trusts nobody and is reported.

use super::key::PublicKey;
use super::sshsig::NAMESPACE;
use super::time;

/// Largest file of keys in bytes.
pub const SIZE_MAX_BYTES: usize = 4 << 20;

/// One believed key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Whom the key stands for.
    pub principals: Patterns,
    /// What the key may sign; anything without it.
    pub namespaces: Option<Patterns>,
    /// The first second, since 1970, at which it counts.
    pub valid_after: Option<u64>,
    /// The last one.
    pub valid_before: Option<u64>,
    /// The key vouches for certificates, which mpatch does not judge, and not for patches.
    pub is_authority: bool,
    /// The key.
    pub key: PublicKey,
    /// Where it stands, from 1.
    pub line: usize,
}

impl Entry {
    /// Whether the key may sign patches, at some time.
    pub fn may_sign_patches(&self) -> bool {
        let names_patches = |namespaces: &Patterns| namespaces.matches(NAMESPACE);
        !self.is_authority && self.namespaces.as_ref().is_none_or(names_patches)
    }

    /// Whether another line says the same, wherever the two stand and whatever their comments are.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        *self == Self { line: self.line, ..other.clone() }
    }
}

/// A line that trusts nobody, because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// The keys of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AllowedSigners {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
    /// Its lines that cannot be read.
    pub problems: Vec<LineError>,
}

impl AllowedSigners {
    /// Reads a file, in which a line need not be text.
    pub fn parse(bytes: &(impl AsRef<[u8]> + ?Sized)) -> Self {
        let mut signers = Self::default();
        for (line, bytes) in lines(bytes.as_ref()) {
            match as_text(bytes).and_then(|text| entry(text, line)) {
                Ok(entry) => signers.entries.push(entry),
                Err(what) => signers.problems.push(LineError { line, what }),
            }
        }
        signers
    }
}

/// A file with one public key a line, as `ssh-keygen -Y verify -r` reads a list of revoked ones.
///
/// # Errors
/// [`LineError`]: a line that cannot be read might have revoked any key.
pub fn parse_keys(text: &str) -> Result<Vec<PublicKey>, LineError> {
    let key = |(line, bytes)| {
        let read = as_text(bytes).and_then(|text| PublicKey::parse(text).map_err(|error| error.to_string()));
        read.map_err(|what| LineError { line, what })
    };
    lines(text.as_bytes()).map(key).collect()
}

/// Whom a user's own keys stand for that nobody but their use made trusted. No policy's principal is this one, and all
/// keys that stand for no one else count as one: nobody fills several roles by making keys.
pub const OWN_PRINCIPAL: &str = "me";

/// The line that lets `key` sign patches, and nothing else, for `principal`.
pub fn line_of(principal: &str, key: &PublicKey) -> String {
    format!("{principal} namespaces=\"{NAMESPACE}\" {}", key.line_with_comment())
}

/// `text` as the name of exactly one principal: without what has a meaning in the file. None if nothing is left.
pub fn principal_of(text: &str) -> Option<String> {
    let is_plain = |sign: char| !sign.is_whitespace() && !sign.is_control() && !"\",*?!#\\".contains(sign);
    let plain: String = text.trim().chars().map(|sign| if is_plain(sign) { sign } else { '-' }).collect();
    let ends = plain.char_indices().map(|(at, sign)| at + sign.len_utf8());
    let end = ends.take_while(|end| *end <= PATTERN_BYTES_MAX).last().unwrap_or(0);
    let name = plain.get(..end)?.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// What separates words, and ends lines, for OpenSSH; other blanks are part of a name.
const BLANKS: [char; 3] = [' ', '\t', '\r'];

/// Lines that say something, numbered from 1.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let is_blank = |byte: &u8| BLANKS.contains(&char::from(*byte));
    let numbered = bytes.split(|byte| *byte == b'\n').enumerate().map(move |(index, line)| {
        let begin = line.iter().position(|byte| !is_blank(byte)).unwrap_or(line.len());
        (index + 1, line.get(begin..).unwrap_or_default())
    });
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

/// A line as text. To OpenSSH a zero byte ends it, and might end a restriction.
fn as_text(line: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not text in UTF-8")?;
    if text.contains('\0') { Err("it has a zero byte".to_owned()) } else { Ok(text.trim_end_matches(BLANKS)) }
}

fn entry(text: &str, line: usize) -> Result<Entry, String> {
    let (principals, rest) = word(text)?;
    let (first, behind) = word(rest)?;
    // Options are optional: what reads as a key is one.
    let (options, key) = match PublicKey::parse(rest) {
        Ok(key) => (Options::default(), key),
        Err(_) if !first.contains('=') && !first.eq_ignore_ascii_case(AUTHORITY) => {
            return Err(format!("`{first}` begins neither a key nor options"));
        }
        Err(_) => {
            let key = PublicKey::parse(behind).map_err(|error| error.to_string())?;
            (Options::parse(first)?, key)
        }
    };
    let principals = Patterns::parse(unquoted(principals)?).ok_or("it names no principal")?;
    if !principals.include_any() {
        return Err("its principals leave no name, so it stands for nobody".to_owned());
    }
    let Options { namespaces, valid_after, valid_before, is_authority } = options;
    if valid_after.zip(valid_before).is_some_and(|(after, before)| before <= after) {
        return Err("its validity ends before it begins".to_owned());
    }
    Ok(Entry { principals, namespaces, valid_after, valid_before, is_authority, key, line })
}

/// The first word, in which blanks between quotes are no ends, and the rest.
fn word(text: &str) -> Result<(&str, &str), String> {
    let mut quoted = false;
    for (at, sign) in text.char_indices() {
        match sign {
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok((&text[..at], text[at..].trim_start_matches(BLANKS))),
            _ => {}
        }
    }
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok((text, "")) }
}

/// Principals without the quotes around all of them; OpenSSH reads others as their end.
fn unquoted(text: &str) -> Result<&str, String> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if inner.contains('"') { Err("a quote stands within its principals".to_owned()) } else { Ok(inner) }
}

const AUTHORITY: &str = "cert-authority";
/// Options that have a value.
const VALUED: [&str; 3] = ["namespaces", "valid-after", "valid-before"];

#[derive(Debug, Default)]
struct Options {
    namespaces: Option<Patterns>,
    valid_after: Option<u64>,
    valid_before: Option<u64>,
    is_authority: bool,
}

impl Options {
    fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in split_outside_quotes(text) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
                Some(quoted) => quoted.to_owned(),
                // OpenSSH refuses the line, too.
                None if VALUED.contains(&&*name.to_ascii_lowercase()) => {
                    return Err(format!("`{name}` needs a value in quotes"));
                }
                None => String::new(),
            };
            // To OpenSSH the value ends at the first quote, and goes on behind an escaped one.
            if value.contains('"') || value.ends_with('\\') {
                return Err(format!("a quote stands within the value of `{name}`"));
            }
            let no_time = || format!("`{value}` is no time: expected YYYYMMDD[HHMM[SS]][Z]");
            let is_new = match name.to_ascii_lowercase().as_str() {
                AUTHORITY => !std::mem::replace(&mut options.is_authority, true),
                "namespaces" => {
                    let patterns = Patterns::parse(&value).ok_or("it names no namespace")?;
                    options.namespaces.replace(patterns).is_none()
                }
                "valid-after" => {
                    options.valid_after.replace(time::begin(&value).ok_or_else(no_time)?).is_none()
                }
                "valid-before" => {
                    options.valid_before.replace(time::end(&value).ok_or_else(no_time)?).is_none()
                }
                // It may well be a restriction, so the line must not be believed without it.
                _ => return Err(format!("unknown option `{name}`")),
            };
            if !is_new {
                return Err(format!("`{name}` stands twice"));
            }
        }
        Ok(options)
    }
}

/// The longest pattern that OpenSSH has room for.
const PATTERN_BYTES_MAX: usize = 1022;
/// How many signs are compared to find a name that a list leaves, and how many for each sign of a long list: a stranger
/// may have written it.
const EXCLUSION_WORK_MAX: usize = 1 << 16;
const EXCLUSION_WORK_MAX_EACH: usize = 128;

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let mut quoted = false;
    let is_end = |sign: char| {
        quoted ^= sign == '"';
        sign == ',' && !quoted
    };
    text.split(is_end).collect()
}

/// A list of patterns as OpenSSH matches them: `*` and `?` stand for others, and a `!` in front excludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    text: String,
}

impl Patterns {
    fn parse(text: &str) -> Option<Self> {
        (!text.split(',').all(str::is_empty)).then(|| Self { text: text.to_owned() })
    }

    /// Some pattern matches `name`, and none excludes it; as with OpenSSH, a list with a longer pattern than it has
    /// room for names nobody.
    pub fn matches(&self, name: &str) -> bool {
        let mut found = false;
        for pattern in self.text.split(',') {
            let (excludes, pattern) = match pattern.strip_prefix('!') {
                Some(excluded) => (true, excluded),
                None => (false, pattern),
            };
            if pattern.len() > PATTERN_BYTES_MAX || (excludes && matches(pattern, name)) {
                return false;
            }
            found |= !excludes && matches(pattern, name);
        }
        found
    }

    /// Some name is matched: one of the patterns, taken as a name. Where all of those are excluded again, others may
    /// be left, and the list is taken to name nobody all the same; so it is where finding out takes too much work.
    fn include_any(&self) -> bool {
        let mut left = EXCLUSION_WORK_MAX.max(self.text.len().saturating_mul(EXCLUSION_WORK_MAX_EACH));
        let included =
            self.text.split(',').filter(|pattern| !pattern.is_empty() && !pattern.starts_with('!'));
        included.into_iter().any(|pattern| {
            let work = pattern.len().saturating_mul(self.text.len());
            let is_affordable = work <= left;
            left = left.saturating_sub(work);
            is_affordable && self.matches(pattern)
        })
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Whether `name` is `pattern`, byte for byte: `?` is one byte to OpenSSH. Going back to the last `*` only keeps the
/// work at the product of the lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut read) = (0, 0);
    let mut star = None;
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(b'?') => {
                at += 1;
                read += 1;
            }
            Some(sign) if *sign == name[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                read = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|sign| *sign == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn one(text: &str) -> Entry {
        let signers = AllowedSigners::parse(text);
        assert_eq!(signers.problems, []);
        let [entry] = signers.entries.try_into().expect("one entry");
        entry
    }

    #[test]
    fn a_line_has_principals_options_and_a_key() {
        let plain = one(&format!("# a comment\n\n  alice@example.org {KEY} her laptop"));
        assert_eq!((plain.line, plain.principals.as_str()), (3, "alice@example.org"));
        assert_eq!(plain.key.comment(), "her laptop");
        assert!(plain.namespaces.is_none() && !plain.is_authority);
        let full = format!(
            "\"alice@example.org,bob smith\" namespaces=\"git,mpatch\",valid-after=\"20260101Z\",valid-before=\"20270101Z\" {KEY}"
        );
        let full = one(&full);
        assert!(full.principals.matches("bob smith"));
        assert!(full.namespaces.unwrap().matches("mpatch"));
        assert_eq!((full.valid_after, full.valid_before), (Some(1_767_225_600), Some(1_798_761_600)));
        for option in ["cert-authority", "Cert-Authority"] {
            assert!(one(&format!("*@example.org {option} {KEY}")).is_authority);
        }
        let tabbed = one(&format!("alice\tNameSpaces=\"git\",Valid-After=\"20260101Z\"\t{KEY}"));
        assert!(tabbed.principals.matches("alice") && !tabbed.may_sign_patches());
        assert_eq!(tabbed.valid_after, Some(1_767_225_600));
        assert_eq!(one(&format!("alice {}", KEY.replace(' ', " \t "))).key, plain.key);
        assert!(!one(&format!("\u{a0}alice {KEY}\r\n")).principals.matches("alice"));
    }

    #[test]
    fn a_line_that_cannot_be_read_trusts_nobody() {
        let dated = "valid-before=\"20200101Z\"";
        for (line, words) in [
            (format!("alice namespaces=\"mpatch,git\"{dated} {KEY}"), "a quote stands within the value"),
            (format!("alice namespaces=\"mpatch,git\"cert-authority\"\" {KEY}"), "a quote stands within"),
            (format!("alice namespaces=\"mpatch,x\"y\"z\" {KEY}"), "a quote stands within the value"),
            (format!("alice namespaces=\"mpatch,x\\\" {KEY}"), "a quote stands within the value"),
            (format!("alice namespaces=\"git\0,mpatch\" {KEY}"), "a zero byte"),
            (format!("!bob\0,alice {KEY}"), "a zero byte"),
            (format!("alice\0 {KEY}"), "a zero byte"),
            (format!("alice unknown-option=\"x\" {KEY}"), "unknown option `unknown-option`"),
            (format!("\"al ice\",alice {KEY}"), "a quote stands within"),
            (format!("alice,\"b \"c\" {KEY}"), "a quote"),
            (format!("\"\" {KEY}"), "no principal"),
            (format!("alice {KEY}\u{2003}"), "neither a key nor options"),
            (format!("alice \u{a0}{KEY}"), "neither a key nor options"),
            (format!("alice restrict {KEY}"), "neither a key nor options"),
            (format!("alice namespaces=\"a\",namespaces=\"b\" {KEY}"), "`namespaces` stands twice"),
            (format!("alice valid-after=\"20260101Z\",valid-after=\"20250101Z\" {KEY}"), "stands twice"),
            (format!("alice valid-before=\"20260101Z\",valid-before=\"20270101Z\" {KEY}"), "stands twice"),
            (
                format!("alice cert-authority,namespaces=\"a\",Cert-Authority {KEY}"),
                "`Cert-Authority` stands twice",
            ),
            (format!("alice valid-before=\"tomorrow\" {KEY}"), "no time"),
            (format!("alice valid-after=\"20270101Z\",valid-before=\"20260101Z\" {KEY}"), "ends before"),
            (format!("alice valid-after=\"20270101Z\",valid-before=\"20270101Z\" {KEY}"), "ends before"),
            (format!("alice valid-before=20270101Z {KEY}"), "`valid-before` needs a value in quotes"),
            (format!("alice namespaces=mpatch {KEY}"), "`namespaces` needs a value in quotes"),
            (format!("alice Valid-Before=20270101Z {KEY}"), "`Valid-Before` needs a value in quotes"),
            ("alice restrict\r\n".to_owned(), "`restrict` begins neither"),
            (format!("alice namespaces=\"mpatch {KEY}"), "quote"),
            (format!(",, {KEY}"), "no principal"),
            (format!("!bob, {KEY}"), "stands for nobody"),
            (format!("alice@example.org,!*@example.org {KEY}"), "stands for nobody"),
            (format!("!*,alice,a*e {KEY}"), "stands for nobody"),
            (format!("*a*,!?* {KEY}"), "stands for nobody"),
            (format!("alice,{} {KEY}", "b".repeat(1023)), "stands for nobody"),
            (format!("!{},alice {KEY}", "b".repeat(1023)), "stands for nobody"),
            (KEY.to_owned(), "neither a key nor options"),
            ("alice".to_owned(), "neither a key nor options"),
            ("alice namespaces=\"mpatch\" ssh-ed25519 AAAA".to_owned(), "not an OpenSSH key"),
        ] {
            let signers = AllowedSigners::parse(&line);
            assert_eq!(signers.entries, [], "{line}");
            assert!(signers.problems[0].what.contains(words), "{line}: {:?}", signers.problems);
        }
    }

    #[test]
    fn a_line_that_is_no_text_takes_no_other_with_it() {
        let file = [b"# Jos\xe9\njos\xe9 ", KEY.as_bytes(), b"\r\nalice ", KEY.as_bytes(), b"\r\n"].concat();
        let signers = AllowedSigners::parse(&file);
        assert_eq!(signers.entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [3]);
        let [problem] = &signers.problems[..] else { panic!("{:?}", signers.problems) };
        assert_eq!(problem.to_string(), "line 2: it is not text in UTF-8");
    }

    #[test]
    fn patterns_match_as_those_of_openssh() {
        let matches = |patterns: &str, name: &str| Patterns::parse(patterns).unwrap().matches(name);
        assert!(matches("*@example.org", "alice@example.org"));
        assert!(matches("a?ice@*,bob", "alice@example.org"));
        assert!(!matches("*@example.org,!alice@*", "alice@example.org"));
        assert!(!matches("alice", "alice@example.org"));
        assert!(!matches("!bob", "alice"));
        assert!(matches("?lice", "alice") && !matches("?lice", "\u{e4}lice"));
        assert!(matches("*a*b*", "xxaxxbxx") && !matches("*a*b*", "xxbxxaxx"));
        // Quadratic, not exponential.
        assert!(!matches(&"*a".repeat(500), &"a".repeat(499)));
        let beside = |length: usize| {
            ["{},alice", "alice,{}", "alice,!{}"].map(|list| list.replace("{}", &"b".repeat(length)))
        };
        assert!(beside(1022).iter().all(|list| matches(list, "alice")));
        assert!(!beside(1023).iter().any(|list| matches(list, "alice")));
    }

    #[test]
    fn a_name_that_is_left_keeps_a_line_and_a_line_of_exclusions_takes_little_time() {
        for principals in ["alice,bob,!alice", "*@example.org,!alice@*", "?,!a"] {
            assert_eq!(one(&format!("{principals} {KEY}")).principals.as_str(), principals);
        }
        let included = (0..100_000).map(|number| number.to_string());
        let excluded = (0..100_000).map(|number| format!("!{number}"));
        let many = Vec::from_iter(included.chain(excluded)).join(",");
        assert!(!Patterns::parse(&many).unwrap().include_any());
    }

    #[test]
    fn a_line_that_is_written_reads_as_meant() {
        let key = PublicKey::parse(&format!("{KEY} a\tcomment")).unwrap();
        let entry = one(&line_of("alice@example.org", &key));
        assert_eq!(entry.key, key);
        assert!(entry.namespaces.unwrap().matches(NAMESPACE));
        assert_eq!(principal_of("alice@example.org").as_deref(), Some("alice@example.org"));
        assert_eq!(principal_of(" Alice, the *first* ").as_deref(), Some("Alice--the--first"));
        assert_eq!(principal_of("ali\u{7}ce\0").as_deref(), Some("ali-ce"));
        assert_eq!(principal_of("\"*\""), None);
        assert_eq!(principal_of(&"\u{e4}".repeat(600)), Some("\u{e4}".repeat(511)));
    }

    #[test]
    fn a_list_of_keys_is_read_whole_or_not_at_all() {
        assert_eq!(parse_keys(&format!("# gone\n{KEY}\n")).map(|keys| keys.len()), Ok(1));
        assert_eq!(parse_keys(&format!("{KEY}\nnonsense\n")).unwrap_err().line, 2);
    }
}
