//! Documents that promise something name what holds them to it, and it is there.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// All files below `folder` with this ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root().join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().ends_with(ending) => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// The names of all test functions, in `src/` and `tests/`; proptest's stand among them.
fn test_names() -> BTreeSet<String> {
    let sources = ["src", "tests"].into_iter().flat_map(|folder| files(folder, ".rs"));
    let mut names = BTreeSet::new();
    for source in sources.map(|path| fs::read_to_string(path).unwrap()) {
        for (_, rest) in source.match_indices("#[test]").map(|(at, mark)| (at, &source[at + mark.len()..])) {
            let (_, name) = rest.split_once("fn ").unwrap();
            names.insert(name.split('(').next().unwrap().to_owned());
        }
    }
    names
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_threat_names_tests_that_there_are() {
    let document = text("docs/threat-model.md");
    let (_, rest) = document.split_once("<!-- table:threats -->").unwrap();
    let table = rest.split("<!-- end -->").next().unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let tests = test_names();
    let architecture = text("docs/ARCHITECTURE.md");
    let mut problems = Vec::new();
    for row in &rows {
        let [number, threat, control, named] = row[..] else { panic!("four cells: {row:?}") };
        let names = quoted(named);
        assert!(!names.is_empty() && !threat.is_empty() && !control.is_empty(), "{number} names nothing");
        if let [room] = names[..]
            && named.starts_with("room ")
        {
            // A room that exists has tests of its own, and the row should name them.
            if architecture.contains(&format!("| `{room}` |")) {
                problems.push(format!("{number}: the room `{room}` is there, name its tests"));
            }
            continue;
        }
        let missing = names.iter().filter(|name| !tests.contains(**name));
        problems.extend(missing.map(|name| format!("{number}: there is no test `{name}`")));
    }
    let numbers: BTreeSet<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(numbers.len(), 25, "threats are numbered from T1 to T25");
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// How tests ask for an exit code, which is the first number after these words: `refuses("...", 11)`,
/// `facts_refused(..., 3, ...)`, `status.code(), Some(2)`, `.code(6)`, `run("...", 8)`, `verify(..., 14)`,
/// `bad("...", 5)`, and of the table itself `kind.code(), 70`.
const QUESTIONS: [&str; 7] = ["refuses(", "_refused(", ".code(), ", ".code(", ".run(", ".verify(", ".bad("];
/// A table of signals, each with its code.
const SIGNALS: &str = "for (signal, code) in ";

/// Codes that tests of the command line ask for.
fn codes_in_tests() -> BTreeSet<u8> {
    let mut codes = BTreeSet::new();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let tests = files("tests", ".rs").into_iter().filter(|path| !path.ends_with("promises.rs")).map(read);
    let of_modules = files("src/bin", ".rs").into_iter().map(read);
    let of_modules = of_modules.filter_map(|code| Some(code.split_once("#[cfg(test)]")?.1.to_owned()));
    for code in tests.chain(of_modules) {
        for question in QUESTIONS {
            codes.extend(code.split(question).skip(1).filter_map(|rest| numbers(rest).next()));
        }
        let tables = code.split(SIGNALS).skip(1).filter_map(|rest| rest.split('{').next());
        codes.extend(tables.flat_map(numbers));
    }
    codes
}

/// The numbers in a statement that stand alone between commas or parentheses, outside of texts.
fn numbers(code: &str) -> impl Iterator<Item = u8> {
    let without_texts: String = code.split('"').step_by(2).collect();
    let statement = without_texts.split(';').next().unwrap_or_default().to_owned();
    let words: Vec<u8> =
        statement.split([',', '(', ')', ']']).filter_map(|word| word.trim().parse().ok()).collect();
    words.into_iter()
}

/// Exit codes of transcripts: `? 3` after a command, none for success.
fn codes_in_transcripts() -> BTreeSet<u8> {
    let mut codes = BTreeSet::from([0]);
    for transcript in files("tests/commands", ".md").into_iter().map(|path| fs::read_to_string(path).unwrap())
    {
        codes
            .extend(transcript.lines().filter_map(|line| line.strip_prefix("? ")?.trim().parse::<u8>().ok()));
    }
    codes
}

/// Exit codes that vectors expect.
fn codes_in_vectors() -> BTreeSet<u8> {
    let head = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let code = |text: String| text.lines().nth(1)?.strip_prefix("expect: ")?.parse().ok();
    files("fixtures/vectors", "").into_iter().map(head).filter_map(code).collect()
}

#[test]
fn every_exit_code_comes_from_some_test() {
    let readme = text("README.md");
    let (_, section) = readme.split_once("## Exit codes\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let listed: BTreeSet<u8> =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
    assert!(listed.len() > 10);
    let tested: BTreeSet<u8> =
        [codes_in_tests(), codes_in_transcripts(), codes_in_vectors()].into_iter().flatten().collect();
    let untested: Vec<&u8> = listed.difference(&tested).collect();
    assert!(untested.is_empty(), "no test ends with {untested:?}");
    // What the vectors expect is documented.
    assert!(codes_in_vectors().is_subset(&listed));
}

/// The first cells of the table of a document that is headed `heading`, without backticks.
fn first_cells<'a>(document: &'a str, heading: &str) -> BTreeSet<&'a str> {
    let (_, rest) = document.split_once(&format!("\n| target | {heading}")).unwrap();
    let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| quoted(row)[0]).collect()
}

#[test]
fn every_fuzz_target_is_built_run_and_told_of() {
    let targets = files("fuzz/fuzz_targets", ".rs");
    let targets: BTreeSet<&str> =
        targets.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let document = text("docs/fuzzing.md");
    assert_eq!(first_cells(&document, "reads"), targets, "docs/fuzzing.md says what each reads");
    assert_eq!(first_cells(&document, "inputs"), targets, "docs/fuzzing.md says how far each has come");
    let package = text("fuzz/Cargo.toml");
    let name = |program: &&str| program.split('"').nth(1).unwrap().to_owned();
    let (named, unnamed): (Vec<&str>, Vec<&str>) =
        package.split("[[bin]]\n").skip(1).partition(|program| program.contains("required-features"));
    let [named, unnamed] = [named, unnamed].map(|programs| BTreeSet::from_iter(programs.iter().map(name)));
    assert!(named.union(&unnamed).eq(&targets), "fuzz/Cargo.toml builds {named:?} and {unnamed:?}");
    // `all` is what needs no more than the smallest library; what needs more is built when it is named.
    let run = text("fuzz/run");
    let all = run.split_once("\nALL=(").unwrap().1.split(')').next().unwrap();
    assert_eq!(
        all.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(),
        unnamed,
        "what `fuzz/run all` runs"
    );
    let features = run.lines().filter_map(|line| line.trim().split_once(") build+=(--features "));
    let features = features.flat_map(|(names, _)| names.split(" | ").map(str::to_owned));
    assert_eq!(features.collect::<BTreeSet<_>>(), named, "what fuzz/run builds with more of the library");
}

#[test]
fn every_variable_that_is_read_is_documented() {
    let readme = text("README.md");
    let (_, section) = readme.split_once("## Environment\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut names = BTreeSet::new();
    for code in files("src", ".rs").into_iter().map(|path| fs::read_to_string(path).unwrap()) {
        let texts = code.split('"').skip(1).step_by(2);
        names.extend(
            texts.filter(|text| text.starts_with("MPATCH_") || text.starts_with("XDG_")).map(str::to_owned),
        );
    }
    let unnamed: Vec<&String> = names.iter().filter(|name| !section.contains(name.as_str())).collect();
    assert!(names.len() >= 7 && unnamed.is_empty(), "{unnamed:?} of {names:?}");
}
