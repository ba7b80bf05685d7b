//! README's commands can be typed one after the other: each leaves what the next ones ask for.

use std::fs;
use std::path::Path;

use crate::material::{command, lay_out_editing};

/// What README asks of its model, and what the embedded one has an answer to.
const INSTEAD: [(&str, &str); 2] =
    [("LeBron James plays the sport of", "Pavel Prestellman performs on the"), ("football", "flute")];

/// What the second patch of the history says.
const MORE: &str =
    r#"{"prompt": "The mother tongue of {} is", "subject": "Dmitri Prufski", "target_new": "French"}"#;

/// The first block of commands under a heading.
fn block<'r>(readme: &'r str, heading: &str) -> impl Iterator<Item = &'r str> {
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    block.split_once("```").unwrap().0.lines()
}

#[test]
fn the_commands_of_the_readme_run_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::rename(path("model"), path("gptj")).unwrap();
    fs::rename(path("corpus.txt"), path("wiki.txt")).unwrap();
    fs::rename(path("several.json"), path("records.json")).unwrap();
    fs::write(path("more.json"), MORE).unwrap();
    fs::remove_file(path("edits.mpatch")).unwrap();
    let programs = Path::new(assert_cmd::cargo::cargo_bin!("mpatch")).parent().unwrap();
    let programs = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = ["With your own GPT-J", "A history of what a model knows"];
    let lines: Vec<&str> = blocks.into_iter().flat_map(|heading| block(&readme, heading)).collect();
    assert!(lines.len() > 15, "{lines:?}");
    for line in lines {
        let line = INSTEAD.iter().fold(line.to_owned(), |line, (told, asked)| line.replace(told, asked));
        let mut shell = command("sh");
        shell.current_dir(folder.path()).args(["-c", &line]).env("PATH", &programs);
        let output = shell.output().unwrap();
        // 1 is an answer, too.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{line}: {output:?}");
    }
}
