//! The house rules that a compiler does not know, held by reading the repository's own files.
//!
//! The layering table stands in `docs/ARCHITECTURE.md` and nowhere else: it is read from there. Code is read as
//! tokens, without comments and strings, so that a rule neither misses a fully qualified path nor trips over prose.
//! Items under `#[cfg(test)]` may use files and the packages for tests; the rooms they may name are the same.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tokens::{Named, Token, matches_at, named_paths, tokens};

/// Longest source file in lines.
const LINES_MAX: usize = 700;
/// Columns of the widest comment.
const COMMENT_COLUMNS_MAX: usize = 120;
/// Where the layering table stands.
const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

// -------------------------------------------------------------------------------------------- the repository --

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the repository that people wrote, by their paths from its root; build output is left out.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let left_out = ["target", "__pycache__", ".git"].contains(&name.as_str());
            match entry.file_type().unwrap().is_dir() {
                _ if left_out => {}
                true if !name.starts_with('.') || name == ".ci" => folders.push(path),
                true => {}
                false => found.push(path.to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

fn files_under(folder: &str, ending: &str) -> Vec<String> {
    files().into_iter().filter(|path| path.starts_with(folder) && path.ends_with(ending)).collect()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn exists(path: &str) -> bool {
    root().join(path).exists()
}

/// Documents in prose; transcripts of commands are tests, not documents.
fn documents() -> Vec<String> {
    files().into_iter().filter(|path| path.ends_with(".md") && !path.starts_with("tests/")).collect()
}

/// Fails with everything that is wrong at once.
fn nothing_is_wrong(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The names of the packages in a section of the manifest, as code spells them.
fn packages(section: &str) -> BTreeSet<String> {
    let manifest = text("Cargo.toml");
    let lines = manifest.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.replace('-', "_"))
        .collect()
}

// ------------------------------------------------------------------------------------------ the layering table --

/// One row of the table: what a room may use.
#[derive(Debug)]
struct Room {
    name: String,
    rooms: BTreeSet<String>,
    crates: BTreeSet<String>,
    /// Powers that few have: `files`, `environment`, `terminal`, `unsafe`.
    powers: BTreeSet<String>,
}

/// The rows of the table, in its order.
fn table() -> Vec<Room> {
    let document = text(ARCHITECTURE);
    let (_, rest) = document.split_once("<!-- table:layers -->").expect("the table begins");
    let (table, _) = rest.split_once("<!-- end -->").expect("the table ends");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [_, room, _, rooms, crates, powers] = cells[..] else { panic!("six cells: {row}") };
        let name = quoted(room).pop_first().unwrap_or_else(|| panic!("a room: {row}"));
        Room { name, rooms: quoted(rooms), crates: quoted(crates), powers: quoted(powers) }
    })
    .collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The room with the longest name that `path` (`factors/kernels/plain`) lies in.
fn room_of<'t>(table: &'t [Room], path: &str) -> Option<&'t Room> {
    let lies_in = |room: &&Room| {
        path.strip_prefix(room.name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    table.iter().filter(lies_in).max_by_key(|room| room.name.len())
}

/// Rooms of which one lies in the other see each other.
fn are_kin(one: &str, other: &str) -> bool {
    let top = |room: &str| room.strip_prefix("bin/").unwrap_or(room).split('/').next().map(str::to_owned);
    top(one) == top(other)
}

/// Where a file stands among the modules: `factors/kernels` for `src/factors/kernels/mod.rs`.
fn module_of(path: &str) -> String {
    let path = path.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
    let ends = ["/mod", "/main"].iter().find_map(|end| path.strip_suffix(end));
    ends.unwrap_or(path).to_owned()
}

/// Something that a file uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Room(String),
    Crate(String),
    Power(&'static str),
}

#[derive(Debug)]
struct Finding {
    /// The row that the file belongs to.
    room: String,
    used: Use,
    place: String,
    in_test: bool,
}

/// Everything that the code in `src/` uses, file by file.
fn findings(table: &[Room]) -> Vec<Finding> {
    let known: BTreeSet<String> =
        packages("dependencies").into_iter().chain(packages("dev-dependencies")).collect();
    let code: Vec<(String, Vec<Token>)> =
        files_under("src/", ".rs").into_iter().map(|path| (path.clone(), tokens(&text(&path)))).collect();
    let macros = exported_macros(&code);
    let test_files = modules(&code).into_iter().filter(|(_, in_test)| *in_test).map(|(path, _)| path);
    let test_files: BTreeSet<String> = test_files.collect();
    let mut findings = Vec::new();
    for (path, tokens) in code.iter().filter(|(path, _)| path != "src/lib.rs") {
        let module = module_of(path);
        let room =
            room_of(table, &module).unwrap_or_else(|| panic!("{path} is in no room of {ARCHITECTURE}"));
        let mut push = |used: Use, line: usize, in_test: bool| {
            let in_test = in_test || test_files.contains(path);
            findings.push(Finding {
                room: room.name.clone(),
                used,
                place: format!("{path}:{line}"),
                in_test,
            });
        };
        for named in named_paths(tokens) {
            let first = named.segments[0].as_str();
            if known.contains(first) || first == "mpatch" {
                push(Use::Crate(first.to_owned()), named.line, named.in_test);
                continue;
            }
            let other = target(&named, &module, &macros).and_then(|target| room_of(table, &target));
            if let Some(other) = other.filter(|other| other.name != room.name) {
                push(Use::Room(other.name.clone()), named.line, named.in_test);
            }
        }
        for (power, line, in_test) in powers(tokens) {
            push(Use::Power(power), line, in_test);
        }
    }
    findings
}

/// The module path that a path of our own leads to, from the root of the crate.
fn target(named: &Named, module: &str, macros: &BTreeMap<String, String>) -> Option<String> {
    let in_binary = module.starts_with("bin/");
    let own: Vec<&str> = module.split('/').collect();
    let supers = named.segments.iter().take_while(|segment| *segment == "super").count();
    let (base, rest) = match named.segments[0].as_str() {
        "crate" if in_binary => (own[..2].to_vec(), &named.segments[1..]),
        "crate" => (Vec::new(), &named.segments[1..]),
        "self" => (own, &named.segments[1..]),
        "super" => {
            // Items under `#[cfg(test)]` mostly stand in a module of their own, one step further down.
            let steps = supers - usize::from(named.in_test);
            (own[..own.len().saturating_sub(steps)].to_vec(), &named.segments[supers..])
        }
        _ => return None,
    };
    if let (true, Some(room)) = (base.is_empty(), rest.first().and_then(|name| macros.get(name))) {
        return Some(room.clone());
    }
    Some(base.into_iter().chain(rest.iter().map(String::as_str)).collect::<Vec<_>>().join("/"))
}

/// Macros that are exported at the root of the crate, and the module that defines them.
fn exported_macros(code: &[(String, Vec<Token>)]) -> BTreeMap<String, String> {
    let mut macros = BTreeMap::new();
    for (path, tokens) in code {
        let words: Vec<String> = tokens.iter().map(|token| token.text.clone()).collect();
        for start in
            (0..words.len()).filter(|start| matches_at(&words, *start, &["#", "[", "macro_export", "]"]))
        {
            let name =
                (start..words.len()).find(|index| words[*index] == "macro_rules").map(|index| index + 2);
            macros.insert(words[name.unwrap()].clone(), module_of(path));
        }
    }
    macros
}

/// Uses of files, environment, terminal and `unsafe`.
fn powers(tokens: &[Token]) -> Vec<(&'static str, usize, bool)> {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let called = word(index + 1) == "(";
        let power = match token.text.as_str() {
            "unsafe" => "unsafe",
            "print" | "println" | "eprint" | "eprintln" | "dbg" if word(index + 1) == "!" => "terminal",
            // With an argument they are the outputs of a program that is run, and not our own.
            "stdout" | "stderr" if called && word(index + 2) == ")" => "terminal",
            "stdin" if called => "environment",
            "exists" | "try_exists" | "is_dir" | "is_file" | "canonicalize" | "read_dir" | "read_link"
            | "symlink_metadata"
                if called && index > 0 && word(index - 1) == "." =>
            {
                "files"
            }
            _ => continue,
        };
        found.push((power, token.line, token.in_test));
    }
    for named in named_paths(tokens) {
        let power = match (named.segments[0].as_str(), named.segments.get(1).map(String::as_str)) {
            ("std", Some("fs")) => "files",
            ("std", Some("env" | "process" | "net")) => "environment",
            _ => continue,
        };
        found.push((power, named.line, named.in_test));
    }
    found
}

#[test]
fn each_room_uses_only_what_the_table_allows() {
    let table = table();
    let for_tests = packages("dev-dependencies");
    let mut problems = BTreeSet::new();
    for Finding { room, used, place, in_test } in findings(&table) {
        let row = table.iter().find(|row| row.name == room).unwrap();
        let (allowed, what) = match &used {
            Use::Room(other) => {
                (row.rooms.contains(other) || are_kin(&room, other), format!("the room `{other}`"))
            }
            Use::Crate(name) => {
                let tests_may = in_test && (for_tests.contains(name) || name == "tempfile");
                (row.crates.contains(name) || tests_may, format!("the crate `{name}`"))
            }
            Use::Power("unsafe") => (row.powers.contains("unsafe"), "`unsafe`".to_owned()),
            Use::Power(power) => (row.powers.contains(*power) || in_test, format!("the power `{power}`")),
        };
        if !allowed {
            problems.insert(format!("{place}: `{room}` uses {what}, which {ARCHITECTURE} does not allow it"));
        }
    }
    nothing_is_wrong(&problems.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_table_allows_nothing_that_is_not_used() {
    let table = table();
    let used: BTreeSet<(String, Use)> =
        findings(&table).into_iter().map(|finding| (finding.room, finding.used)).collect();
    let mut problems = Vec::new();
    for row in &table {
        let rooms = row.rooms.iter().map(|room| Use::Room(room.clone()));
        let crates = row.crates.iter().map(|name| Use::Crate(name.clone()));
        for allowed in rooms.chain(crates) {
            if !used.contains(&(row.name.clone(), allowed.clone())) {
                problems.push(format!(
                    "{ARCHITECTURE}: `{}` is allowed {allowed:?} and does not use it",
                    row.name
                ));
            }
        }
        for power in &row.powers {
            if !used
                .iter()
                .any(|(room, used)| *room == row.name && matches!(used, Use::Power(name) if name == power))
            {
                problems
                    .push(format!("{ARCHITECTURE}: `{}` is allowed `{power}` and does not use it", row.name));
            }
        }
    }
    nothing_is_wrong(&problems);
}

#[test]
fn rooms_stand_below_all_that_they_use() {
    let table = table();
    let mut problems = Vec::new();
    for (index, row) in table.iter().enumerate() {
        for used in &row.rooms {
            if !table[..index].iter().any(|above| above.name == *used) {
                problems.push(format!(
                    "{ARCHITECTURE}: `{}` uses `{used}`, which does not stand above it",
                    row.name
                ));
            }
        }
    }
    nothing_is_wrong(&problems);
}

#[test]
fn every_room_is_in_the_table_and_every_row_is_a_room() {
    let declared: BTreeSet<String> = tokens(&text("src/lib.rs"))
        .windows(2)
        .filter(|pair| pair[0].text == "mod")
        .map(|pair| pair[1].text.clone())
        .collect();
    let rows: Vec<String> = table().into_iter().map(|row| row.name).collect();
    let mut problems = Vec::new();
    for room in &declared {
        if !rows.contains(room) {
            problems.push(format!("src/lib.rs declares `{room}`, which has no row in {ARCHITECTURE}"));
        }
    }
    for row in rows {
        if !exists(&format!("src/{row}.rs")) && !exists(&format!("src/{row}")) {
            problems.push(format!(
                "{ARCHITECTURE} has a row for `{row}`, which is neither file nor folder in src/"
            ));
        }
    }
    nothing_is_wrong(&problems);
}

// ------------------------------------------------------------------------------------------- files and fixtures --

/// Every file that a `mod` leads to, and whether all of it is for tests.
fn modules(code: &[(String, Vec<Token>)]) -> BTreeMap<String, bool> {
    let code: BTreeMap<&str, &[Token]> =
        code.iter().map(|(path, tokens)| (path.as_str(), tokens.as_slice())).collect();
    let is_root = |path: &&str| {
        let in_folder = |folder| path.strip_prefix(folder).is_some_and(|rest: &str| !rest.contains('/'));
        **path == *"src/lib.rs" || path.ends_with("/main.rs") || in_folder("tests/") || in_folder("benches/")
    };
    let mut waiting: Vec<(String, bool)> =
        code.keys().filter(|path| is_root(path)).map(|path| ((*path).to_owned(), false)).collect();
    let mut found = BTreeMap::new();
    while let Some((path, in_test)) = waiting.pop() {
        let (folder, file) = path.rsplit_once('/').unwrap();
        let owns_folder = ["lib.rs", "main.rs", "mod.rs"].contains(&file) || !path.starts_with("src/");
        let folder = if owns_folder { folder.to_owned() } else { path.trim_end_matches(".rs").to_owned() };
        let tokens = code[path.as_str()];
        let is_mod = |(at, three): &(usize, &[Token])| {
            // What `#[path]` names is a text, no token, and lies where other files lead to it.
            let is_elsewhere =
                tokens[..*at].iter().rev().map(|token| token.text.as_str()).take(3).eq(["]", "=", "path"]);
            three[0].text == "mod" && three[2].text == ";" && !is_elsewhere
        };
        for (_, three) in tokens.windows(3).enumerate().filter(is_mod) {
            let name = &three[1].text;
            let candidates = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
            let child = candidates.into_iter().find(|path| code.contains_key(path.as_str()));
            waiting.push((
                child.unwrap_or_else(|| panic!("{path}: no file for `mod {name}`")),
                in_test || three[0].in_test,
            ));
        }
        found.insert(path, in_test);
    }
    found
}

#[test]
fn every_source_file_is_reachable_by_a_mod() {
    for folder in ["src/", "tests/", "benches/"] {
        let code: Vec<(String, Vec<Token>)> =
            files_under(folder, ".rs").into_iter().map(|path| (path.clone(), tokens(&text(&path)))).collect();
        let reachable = modules(&code);
        let forgotten = code.iter().filter(|(path, _)| !reachable.contains_key(path));
        nothing_is_wrong(
            &forgotten.map(|(path, _)| format!("{path}: no `mod` leads to it")).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn no_source_file_is_long() {
    let lines = |path: &String| text(path).lines().count();
    let long = files().into_iter().filter(|path| path.ends_with(".rs") && lines(path) > LINES_MAX);
    let problems: Vec<String> = long
        .map(|path| format!("{path} has {} lines, more than {LINES_MAX}: split it", lines(&path)))
        .collect();
    nothing_is_wrong(&problems);
}

/// `cargo fmt` breaks lines of code and leaves comments as they are; a row of a table cannot be broken.
#[test]
fn no_comment_is_wide() {
    let is_wide = |line: &str| {
        let comment = line.trim_start().strip_prefix("//");
        let is_row = |comment: &str| comment.trim_start_matches(['/', '!', ' ']).starts_with('|');
        line.chars().count() > COMMENT_COLUMNS_MAX && comment.is_some_and(|comment| !is_row(comment))
    };
    let of_source = lines().into_iter().filter(|(place, line)| place.contains(".rs:") && is_wide(line));
    nothing_is_wrong(
        &of_source
            .map(|(place, line)| format!("{place}: {} columns, break it", line.chars().count()))
            .collect::<Vec<_>>(),
    );
}

/// Whether `path` is `pattern`, in which `*` stands for any text without a slash.
fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => path.strip_prefix(start).is_some_and(|tail| {
            let end = tail.find('/').unwrap_or(tail.len());
            (0..=end).filter(|at| tail.is_char_boundary(*at)).any(|at| fits(rest, &tail[at..]))
        }),
    }
}

#[test]
fn every_fixture_is_listed_with_where_it_comes_from() {
    let list = text("fixtures/README.md");
    let rows = list.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = rows.flat_map(|row| quoted(row.split('|').nth(1).unwrap())).collect();
    let fixtures: Vec<String> = files_under("fixtures/", "")
        .into_iter()
        .map(|path| path.trim_start_matches("fixtures/").to_owned())
        .filter(|path| path != "README.md")
        .collect();
    let mut problems = Vec::new();
    for path in &fixtures {
        if !listed.iter().any(|pattern| fits(pattern, path)) {
            problems.push(format!("fixtures/{path} has no row in fixtures/README.md"));
        }
    }
    for pattern in &listed {
        if !fixtures.iter().any(|path| fits(pattern, path)) {
            problems.push(format!("fixtures/README.md lists `{pattern}`, which is not there"));
        }
    }
    nothing_is_wrong(&problems);
}

// ----------------------------------------------------------------------------------------------- words and prose --

/// Every line of every text in the repository but this file's own, with its place.
fn lines() -> Vec<(String, String)> {
    let endings = [".rs", ".md", ".py", ".toml", ".yml", ".json", ".sh", "/run", "/full-size"];
    let is_text =
        |path: &String| endings.iter().any(|ending| path.ends_with(ending)) && path != "tests/tidy.rs";
    let mut lines = Vec::new();
    for path in files().into_iter().filter(is_text) {
        let numbered = text(&path);
        let numbered = numbered.lines().enumerate();
        lines.extend(numbered.map(|(index, line)| (format!("{path}:{}", index + 1), line.to_owned())));
    }
    lines
}

#[test]
fn nothing_is_put_off_in_a_comment() {
    let words = ["TODO", "FIXME", "XXX"];
    let is_put_off =
        |line: &str| line.split(|sign: char| !sign.is_alphanumeric()).any(|word| words.contains(&word));
    let found = lines().into_iter().filter(|(_, line)| is_put_off(line));
    nothing_is_wrong(&found.map(|(place, line)| format!("{place}: {}", line.trim())).collect::<Vec<_>>());
}

/// Whoever tells people walks the causes, so a message that repeats its own would be told twice.
#[test]
fn no_error_repeats_its_cause() {
    let repeats = |line: &str| line.contains("#[error(") && line.contains("{source");
    let found = lines().into_iter().filter(|(place, line)| place.starts_with("src/") && repeats(line));
    nothing_is_wrong(
        &found
            .map(|(place, _)| format!("{place}: leave the cause to `causes::with_causes`"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let folders = ["/home/", "/Users/", "C:\\"];
    let is_absolute = |line: &str, folder: &str| {
        let starts = line.match_indices(folder).map(|(at, _)| line[..at].chars().next_back());
        starts
            .into_iter()
            .any(|before| !before.is_some_and(|sign| sign.is_alphanumeric() || ".-_/".contains(sign)))
    };
    let found =
        lines().into_iter().filter(|(_, line)| folders.iter().any(|folder| is_absolute(line, folder)));
    nothing_is_wrong(&found.map(|(place, line)| format!("{place}: {}", line.trim())).collect::<Vec<_>>());
}

/// The lines of a document outside its blocks of code, numbered from 1.
fn prose(document: &str) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut prose = Vec::new();
    for (index, line) in text(document).lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        if !is_fence && !in_code {
            prose.push((index + 1, line.to_owned()));
        }
        in_code ^= is_fence;
    }
    prose
}

#[test]
fn every_document_has_one_title_and_it_comes_first() {
    let mut problems = Vec::new();
    for document in documents() {
        let lines = prose(&document);
        let titles = lines.iter().filter(|(_, line)| line.starts_with("# ")).count();
        let first =
            lines.iter().find(|(_, line)| !line.is_empty()).is_some_and(|(_, line)| line.starts_with("# "));
        if titles != 1 || !first {
            problems.push(format!("{document} has {titles} titles, expected one in its first line"));
        }
    }
    nothing_is_wrong(&problems);
}

#[test]
fn every_sentence_has_a_line_of_its_own() {
    let ends = |line: &str| {
        let pairs = line.match_indices(". ").map(|(at, _)| (&line[..at], &line[at + 2..]));
        pairs.into_iter().any(|(before, after)| {
            // Abbreviations and numbered items end in a point, too.
            let word = before.rsplit(' ').next().unwrap_or_default();
            let is_short = ["al", "eq", "e.g", "i.e", "vs"].contains(&word) || word.parse::<u32>().is_ok();
            after.starts_with(|next: char| next.is_uppercase()) && !is_short
        })
    };
    let mut problems = Vec::new();
    for document in documents() {
        for (line, words) in prose(&document) {
            if !words.starts_with('|') && !words.starts_with('(') && ends(&words) {
                problems.push(format!("{document}:{line}: two sentences in one line"));
            }
        }
    }
    nothing_is_wrong(&problems);
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|sign| sign.is_alphanumeric() || [' ', '-', '_'].contains(sign));
    kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut problems = Vec::new();
    for document in documents() {
        let folder = Path::new(&document).parent().unwrap();
        for (line, words) in prose(&document) {
            for link in words.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (path, part) = link.split_once('#').unwrap_or((link, ""));
                let path = if path.is_empty() { PathBuf::from(&document) } else { folder.join(path) };
                let found = root().join(&path).exists();
                let headings =
                    || prose(path.to_str().unwrap()).into_iter().filter(|(_, line)| line.starts_with('#'));
                if !found || (!part.is_empty() && !headings().any(|(_, heading)| anchor(&heading) == part)) {
                    problems.push(format!("{document}:{line}: `{link}` leads nowhere"));
                }
            }
        }
    }
    nothing_is_wrong(&problems);
}

#[test]
fn every_file_that_is_named_exists() {
    let folders = ["src/", "tests/", "docs/", "fixtures/", "benches/", ".ci/"];
    let is_path = |name: &str| {
        folders.iter().any(|folder| name.starts_with(folder)) && !name.contains(['*', '<', '{', ' ', '…'])
    };
    let mut problems = Vec::new();
    for (place, line) in lines() {
        let (path, _) = place.rsplit_once(':').unwrap();
        if path.ends_with(".md") || path.ends_with(".rs") {
            for name in quoted(&line).iter().filter(|name| is_path(name) && !exists(name)) {
                problems.push(format!("{place}: there is no `{name}`"));
            }
        }
    }
    nothing_is_wrong(&problems);
}

// ------------------------------------------------------------------------------------------- this file's own eyes --

#[test]
fn a_use_of_another_room_is_seen_however_it_is_spelled() {
    let named = |code: &str, module: &str| {
        let paths = named_paths(&tokens(code));
        target(&paths[0], module, &BTreeMap::from([("with_element".to_owned(), "tensor".to_owned())]))
            .unwrap()
    };
    assert_eq!(named("crate::edit::value::optimise()", "model/block"), "edit/value/optimise");
    assert_eq!(named("use super::super::edit;", "model/block"), "edit");
    assert_eq!(named("use super::edit;", "apply"), "edit");
    assert_eq!(named("use super::plain;", "factors/kernels/blocked"), "factors/kernels/plain");
    assert_eq!(named("crate::with_element!(a)", "bind"), "tensor");
    assert_eq!(named("use crate::report::Page;", "bin/mpatch/commands/show"), "bin/mpatch/report/Page");
}
