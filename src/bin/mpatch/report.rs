//! Everything that is printed, and nothing else prints.
//!
//! A command hands in one [`Report`]: as JSON it is the struct itself, for people it writes itself on a [`Page`].
//! Whatever stands on a page has been escaped, so that text from a stranger's patch can neither move the cursor nor
//! pass for something else. Results go to stdout; errors, notes and progress go to stderr.

mod failure;
mod progress;
mod table;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use mpatch::store::is_invisible;
use serde::Serialize;

use crate::args::OutputArguments;
use crate::error::{CommandError, ExitKind};
use crate::suggestion::Suggestions;

pub use failure::{WayOn, go_on, stopped, tell, usage};
pub use progress::Progress;
use progress::Shown;

/// What a command found or did.
pub trait Report: Serialize {
    /// Names the report's JSON layout and its version, e.g. `mpatch.show/1`.
    const SCHEMA: &'static str;
    /// Writes the report for people.
    fn write(&self, page: &mut Page);
    /// The command that a user most likely wants next.
    fn next(&self) -> Option<String> {
        None
    }
}

/// Columns of the terminal that the report goes to, if it goes to one.
fn stdout_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

/// A report as JSON, with its schema first.
#[derive(Serialize)]
struct Document<'a, R> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

/// Where a command's words go.
#[derive(Debug)]
pub struct Output {
    json: bool,
    speech: Speech,
    colour: bool,
    suggestions: Suggestions,
}

/// How much is said, errors and warnings aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// Notes, progress, reports, and what to do next.
    Everything,
    /// Reports.
    Reports,
    /// Reports that a command is there for; of what others did, their exit code tells.
    Answers,
    /// Nothing.
    Nothing,
}

impl Output {
    /// An output that speaks as the arguments and the terminal ask.
    pub fn new(arguments: OutputArguments, suggestions: Suggestions) -> Self {
        if arguments.json {
            failure::owe_document();
        }
        let speech = if arguments.quiet { Speech::Answers } else { Speech::Everything };
        Self { json: arguments.json, speech, colour: stdout_colour(), suggestions }
    }

    /// Refuses, before any work, names that a report in JSON could not give.
    pub fn check_arguments(&self) -> Result<(), CommandError> {
        let unspeakable = std::env::args_os().find(|argument| argument.to_str().is_none());
        let Some(argument) = unspeakable.filter(|_| self.json) else { return Ok(()) };
        let message = format!("`{}` is not valid UTF-8, as all of JSON is", argument.to_string_lossy());
        Err(CommandError::new(ExitKind::Usage, message).hint("leave `--json` out, or rename it"))
    }

    /// The output of a command that another command runs: its report, or nothing where that one says little itself.
    pub fn of_step(&self) -> Self {
        let speech = if self.tells_everything() { Speech::Reports } else { Speech::Nothing };
        Self { json: self.json, speech, colour: self.colour, suggestions: Suggestions::default() }
    }

    /// People read along.
    fn tells_everything(&self) -> bool {
        !self.json && self.speech == Speech::Everything
    }

    /// A heading between the steps of a command, for people.
    pub fn step(&self, title: &str, command: &str) -> Result<(), CommandError> {
        if !self.tells_everything() {
            return Ok(());
        }
        let mut page = Page::new(self.colour);
        page.blank();
        page.title(title);
        page.line(&format!("$ {command}"));
        page.blank();
        self.print(&page.text)
    }

    /// Prints the report that the command is there for.
    pub fn report<R: Report>(&self, report: &R) -> Result<(), CommandError> {
        if self.speech == Speech::Nothing {
            return Ok(());
        }
        if self.json {
            let document = Document { schema: R::SCHEMA, report };
            let text = serde_json::to_string_pretty(&document).map_err(|error| {
                CommandError::new(ExitKind::Bug, format!("the report is no JSON: {error}"))
            })?;
            return self.print(&format!("{}\n", escaped_json(&text)));
        }
        let suggestions = self.suggestions.clone();
        let mut page = Page { suggestions, width: stdout_width(), ..Page::new(self.colour) };
        report.write(&mut page);
        if let Some(next) = report.next().filter(|_| self.tells_everything()) {
            page.blank();
            page.next(&next);
        }
        self.print(&page.text)
    }

    /// Prints the report of work that stands whether or not anybody is told of it.
    pub fn report_done<R: Report>(&self, report: &R) -> Result<(), CommandError> {
        if !self.json && self.speech == Speech::Answers {
            return Ok(());
        }
        self.report(report).map_err(CommandError::after_the_work)
    }

    /// A failure whose hint suggests commands as they have to be typed.
    pub fn as_suggested(&self, error: CommandError) -> CommandError {
        let hint = error.hint.map(|hint| self.suggestions.hint(&hint));
        CommandError { hint, ..error }
    }

    /// Says what is about to happen, before the work, to people who watch; what must not be missed is a warning.
    pub fn note(&self, text: &str) {
        if self.tells_everything() {
            say(&escaped(text));
        }
    }

    /// Warns of something, whatever else is left unsaid: reports do not hold it.
    pub fn warn(&self, text: &str) {
        say(&format!("warning: {}", escaped(text)));
    }

    /// Asks a question that a user can say yes to; none if nobody is there to be asked.
    pub fn ask(&self, question: &str) -> Option<bool> {
        if self.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        let _ = write!(std::io::stderr(), "{}", escaped(question));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).ok()?;
        Some(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
    }

    /// Prints text that is a program's input rather than a report, which `what` says; JSON cannot be asked for.
    pub fn raw(&self, bytes: &[u8], what: &str) -> Result<(), CommandError> {
        if self.json {
            return Err(CommandError::new(ExitKind::Usage, format!("{what} is not printed as JSON"))
                .hint("leave `--json` out"));
        }
        raw(bytes)
    }

    fn print(&self, text: &str) -> Result<(), CommandError> {
        if self.json {
            failure::document_is_printed();
        }
        raw(text.as_bytes())
    }

    /// Progress over `total` bytes of work.
    pub fn progress(&self, what: &'static str, total: u64) -> Progress {
        Progress::new(what, total, |bytes| size(bytes as u64), self.progress_shown())
    }

    /// Progress over `total` things to be done.
    pub fn counter(&self, what: &'static str, total: u64) -> Progress {
        Progress::new(what, total, number, self.progress_shown())
    }

    fn progress_shown(&self) -> Shown {
        match (self.tells_everything(), std::io::stderr().is_terminal()) {
            (false, _) => Shown::Nothing,
            (true, true) => Shown::Bar,
            (true, false) => Shown::Lines,
        }
    }
}

/// Prints bytes as they are.
fn raw(bytes: &[u8]) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        // Whoever reads has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::io("write to", "stdout".as_ref(), &error)
                .hint("free some space where the output goes, or send it elsewhere"))
        }
        _ => Ok(()),
    }
}

/// Writes a line to stderr; when nobody listens there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn stdout_colour() -> bool {
    std::io::stdout().is_terminal() && colour_wanted()
}

fn stderr_colour() -> bool {
    std::io::stderr().is_terminal() && colour_wanted()
}

fn colour_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// What the first panic says; those after it follow from it.
static PANIC: OnceLock<String> = OnceLock::new();

/// From here on it is remembered what a panic says, and where it was.
pub fn remember_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        _ = PANIC.set(format!("{words} ({place})"));
    }));
}

/// Tells that a panic ended the command.
pub fn panicked() -> ExitKind {
    let words = PANIC.get().map_or("a panic", String::as_str);
    let bug = CommandError::new(ExitKind::Bug, format!("mpatch has a bug: {words}"));
    tell(
        &bug.hint(
            "please report it, with the command and this message; files are replaced only when complete",
        ),
    )
}

/// Text for people; whatever is put on it is escaped.
#[derive(Debug)]
pub struct Page {
    text: String,
    colour: bool,
    /// Columns that a line may have; none where nothing has to fit.
    width: Option<usize>,
    suggestions: Suggestions,
}

impl Page {
    /// An empty page.
    pub fn new(colour: bool) -> Self {
        Self { text: String::new(), colour, width: None, suggestions: Suggestions::default() }
    }

    fn styled(&mut self, style: &str, text: &str) {
        let text = escaped(text);
        let outcome = match self.colour {
            true => writeln!(self.text, "\u{1b}[{style}m{text}\u{1b}[0m"),
            false => writeln!(self.text, "{text}"),
        };
        debug_assert!(outcome.is_ok(), "writing to a string cannot fail");
    }

    /// An empty line.
    pub fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A heading.
    pub fn title(&mut self, text: &str) {
        self.styled("1", text);
    }

    /// A line of its own.
    pub fn line(&mut self, text: &str) {
        self.text.push_str(&escaped(text));
        self.text.push('\n');
    }

    /// A line with commands between backticks.
    pub fn hint(&mut self, text: &str) {
        self.line(&self.suggestions.hint(text));
    }

    /// A line in somebody else's words, set off so that they cannot pass for mpatch's own.
    pub fn quote(&mut self, text: &str) {
        self.line(&format!("{QUOTE}{text}"));
    }

    /// Rows of columns, each column as wide as its widest entry; the last entry of a row is written whole, the others
    /// are cut where they would make every row as wide as a stranger likes. On a terminal the last entry goes on below
    /// where it began.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        table::write(&mut self.text, rows, self.width);
    }

    /// A table below the names of its columns.
    pub fn table_under<const N: usize>(
        &mut self,
        names: [&str; N],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) {
        let rows: Vec<Vec<String>> = std::iter::once(row(names)).chain(rows).collect();
        self.table(&rows);
    }

    /// How many of `all` things stand not among those `shown`, and the way to them; nothing where none is left out.
    pub fn and_more(&mut self, all: usize, shown: usize, way: &str) {
        if let Some(hidden @ 1..) = all.checked_sub(shown) {
            self.hint(&format!("  and {hidden} more; {way}"));
        }
    }

    /// The command that a user most likely wants next.
    pub fn next(&mut self, command: &str) {
        self.styled("2", &format!("next: {}", self.suggestions.command(command)));
    }
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Before somebody else's words.
const QUOTE: &str = "│ ";

/// `text` with everything that is not plainly visible written as its code: control and format characters, those
/// that turn the direction of text, and those of no width.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            _ if is_invisible(character) => escaped.extend(character.escape_unicode()),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// JSON `text` with the same characters written as JSON's own escapes, so that a terminal may show it.
fn escaped_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        // A line break here is the layout's: the serialiser has escaped those in texts.
        if character == '\n' || !is_invisible(character) {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped
}

/// A size as people read it; 1 KB is 1000 bytes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A number of things, or of things in a second, which may be few.
fn number(value: f64) -> String {
    let decimals = usize::from(value < 10.0 && value.fract() != 0.0);
    format!("{value:.decimals$}")
}

/// `count` with its noun.
pub fn count(count: usize, noun: &str) -> String {
    let plural = match noun {
        _ if count == 1 => "",
        _ if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{count} {noun}{plural}")
}

/// A path as one word of a shell's command line; a name that cannot begin with a hyphen is one too.
pub fn shell_word(path: impl AsRef<OsStr>) -> String {
    let path = path.as_ref();
    let is_like_option = path.as_bytes().starts_with(b"-");
    // What begins with a hyphen would be taken for an option.
    format!("{}{}", if is_like_option { "./" } else { "" }, quoted(path))
}

/// Any text as one word of a shell's command line.
pub fn quoted(text: impl AsRef<OsStr>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match text.as_ref().to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Some(text) if !text.chars().any(is_invisible) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => quoted_by_codes(text.as_ref().as_bytes()),
    }
}

/// A word with codes for what a page would not show as it is: shells but the plainest read them between `$'` and `'`.
fn quoted_by_codes(text: &[u8]) -> String {
    let mut word = "$'".to_owned();
    let code =
        |word: &mut String, bytes: &[u8]| bytes.iter().for_each(|byte| *word += &format!("\\{byte:03o}"));
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '\\' => word.extend(['\\', character]),
                _ if is_invisible(character) => {
                    code(&mut word, character.encode_utf8(&mut [0; 4]).as_bytes())
                }
                _ => word.push(character),
            }
        }
        code(&mut word, chunk.invalid());
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_could_deceive_is_shown_as_codes() {
        assert_eq!(escaped("red \u{1b}[31m\r"), "red \\u{1b}[31m\\u{d}");
        assert_eq!(escaped("a\u{202e}b\u{200b}c\u{2066}d\n"), "a\\u{202e}b\\u{200b}c\\u{2066}d\\n");
        assert_eq!(escaped("Zürich 東京 🙂"), "Zürich 東京 🙂");
        let mut page = Page::new(false);
        page.quote("x\ny");
        page.table(&[vec!["a\u{9b}".into(), "b".into()], vec!["longer one".into(), "c".into()]]);
        assert_eq!(page.text, "│ x\\ny\n  a\\u{9b}     b\n  longer one  c\n");
    }

    #[test]
    fn a_table_grows_with_what_it_says_and_not_with_its_widest_entry() {
        let long = "x".repeat(70_000);
        let mut page = Page::new(false);
        let mut rows = vec![vec![long.clone(), "behind".to_owned(), long.clone()]];
        rows.extend((0..1000).map(|row| vec![row.to_string(), String::new()]));
        page.table(&rows);
        let first = page.text.lines().next().expect("there are rows");
        assert_eq!(first, format!("  {}…  behind  {long}", "x".repeat(199)));
        assert!(page.text.lines().skip(1).all(|line| line.len() < 8), "no row ends with spaces");
        let mut page = Page::new(false);
        page.table(&vec![vec![long.clone(), "behind".to_owned()]; 1000]);
        assert!(page.text.len() < 1000 * 300, "{} bytes", page.text.len());
    }

    #[test]
    fn json_stays_what_it_says_and_shows_nothing_invisible() {
        let text = "a\u{202e}b\u{e0041}\u{7f}";
        let json = escaped_json(&serde_json::to_string(text).expect("a text is JSON"));
        assert_eq!(json, "\"a\\u202eb\\udb40\\udc41\\u007f\"");
        assert_eq!(serde_json::from_str::<String>(&json).expect("it is JSON"), text);
    }

    #[test]
    fn no_byte_of_a_page_moves_the_cursor() {
        let every: String = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        let shown = escaped(&every);
        assert!(shown.chars().all(|c| !c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c)));
    }

    /// Format characters and separators of lines (Unicode 14's Cf, Zl and Zp), as somebody else lists them.
    const UNSEEN: [(u32, u32); 21] = [
        (0xad, 0xad),
        (0x600, 0x605),
        (0x61c, 0x61c),
        (0x6dd, 0x6dd),
        (0x70f, 0x70f),
        (0x890, 0x891),
        (0x8e2, 0x8e2),
        (0x180e, 0x180e),
        (0x200b, 0x200f),
        (0x2028, 0x202e),
        (0x2060, 0x2064),
        (0x2066, 0x206f),
        (0xfeff, 0xfeff),
        (0xfff9, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x13438),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0001, 0xe0001),
        (0xe0020, 0xe007f),
    ];

    /// A text of up to eight characters, half of them of the kinds that deceive.
    fn hostile_text(random: &mut u64) -> String {
        let mut next = |count: u32| {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*random >> 33) as u32 % count
        };
        let length = next(9);
        let mut text = String::new();
        for _ in 0..length {
            let (low, high) = match next(8) {
                0 => (0, 0x1f),
                1 => (0x7f, 0x9f),
                2..=3 => UNSEEN[next(UNSEEN.len() as u32) as usize],
                4 => (0x20, 0x7e),
                _ => (0, 0x10ffff),
            };
            text.extend(char::from_u32(low + next(high - low + 1)));
        }
        text
    }

    #[test]
    fn a_million_hostile_texts_reach_the_terminal_as_plain_ones() {
        let is_unseen = |c: char| UNSEEN.iter().any(|(low, high)| (*low..=*high).contains(&u32::from(c)));
        let is_shown = |c: char| c >= ' ' && !('\u{7f}'..='\u{9f}').contains(&c) && !is_unseen(c);
        let mut random = 1;
        let mut page = Page::new(false);
        for round in 0..1_000_000 {
            let text = hostile_text(&mut random);
            match round % 4 {
                0 => page.line(&text),
                1 => page.quote(&text),
                2 => page.table(&[vec![text.clone(), text.clone()]]),
                _ => page.title(&text),
            }
            // The page's own line feed, and nothing else below a space.
            let shown = page.text.strip_suffix('\n').expect("a line ends");
            assert!(shown.chars().all(is_shown), "{text:?} is shown as {shown:?}");
            page.text.clear();
            if round % 16 == 0 {
                let json = escaped_json(&serde_json::to_string(&text).expect("a text is JSON"));
                assert!(json.chars().all(is_shown), "{text:?} is written as {json:?}");
            }
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [0, 999, 1000, 9_994, 152_000, 999_400, 999_600, 24_600_000, 12_100_000_000];
        let texts = [
            "0 bytes",
            "999 bytes",
            "1.00 KB",
            "9.99 KB",
            "152 KB",
            "999 KB",
            "1.00 MB",
            "24.6 MB",
            "12.1 GB",
        ];
        assert_eq!(sizes.map(size), texts);
    }

    #[test]
    fn rates_have_decimals_where_they_are_small() {
        assert_eq!([3.0, 0.3217, 18_172.975_7].map(number), ["3", "0.3", "18173"]);
    }

    #[test]
    fn a_suggested_command_can_be_pasted() {
        assert_eq!(shell_word("a/b-c.mpatch"), "a/b-c.mpatch");
        assert_eq!(shell_word("my model's"), r"'my model'\''s'");
        assert_eq!(shell_word("-x.mpatch"), "./-x.mpatch");
        assert_eq!(shell_word("-x y"), "./'-x y'");
        assert_eq!(shell_word("it's\na\u{202e}b\\"), r"$'it\'s\012a\342\200\256b\\'");
        assert_eq!(shell_word(OsStr::from_bytes(b"a\xff")), r"$'a\377'");
        let word = shell_word("a\n\u{ad}");
        assert_eq!(escaped(&word), word, "it is printed as it is");
    }
}
