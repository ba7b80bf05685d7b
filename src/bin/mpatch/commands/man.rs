//! `mpatch man`: the manual, page by page, from the same words as `--help`.

use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{Args, Command};
use clap_mangen::Man;
use serde::Serialize;

use crate::args;
use crate::args::output_path;
use crate::error::{CommandError, ExitKind};
use crate::interrupt::last_step;
use crate::report::{Output, Page, Report, count, shell_word};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch man apply | man -l -\n  mpatch man trust add | man -l -\n  \
                  mpatch man --output ~/.local/share/man/man1")]
pub struct ManArguments {
    /// Print the page of this command instead of the one about mpatch
    #[arg(conflicts_with = "output")]
    command: Vec<String>,
    /// Write all pages into this folder, which is made if need be, over older ones
    #[arg(short, long, value_name = "FOLDER", value_parser = output_path())]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct ManReport {
    folder: PathBuf,
    /// The names of the files.
    pages: Vec<String>,
}

/// Prints a page, or writes all.
pub fn run(arguments: &ManArguments, output: &Output) -> Result<(), CommandError> {
    // What `help` would tell is what the pages tell.
    let mut all = args::command().disable_help_subcommand(true);
    // Gives each command its whole name.
    all.build();
    let Some(folder) = &arguments.output else {
        return output.raw(&page(find(&all, &arguments.command)?)?, "a page of the manual");
    };
    last_step();
    std::fs::create_dir_all(folder).map_err(|error| CommandError::io("create", folder, &error))?;
    let mut pages = Vec::new();
    write_pages(&all, folder, &mut pages)?;
    let report = ManReport { folder: folder.clone(), pages };
    output.report_done(&report)
}

/// The command that the words name; a hyphen separates as well, as in the names of pages.
fn find<'c>(all: &'c Command, words: &[String]) -> Result<&'c Command, CommandError> {
    let mut names = words.iter().flat_map(|word| word.split('-'));
    names.try_fold(all, |command, name| command.find_subcommand(name)).ok_or_else(|| {
        CommandError::new(ExitKind::Usage, format!("there is no command `{}`", words.join(" ")))
            .hint("`mpatch --help` lists them")
    })
}

/// Writes the pages of a command and of those below it.
fn write_pages(command: &Command, folder: &Path, pages: &mut Vec<String>) -> Result<(), CommandError> {
    let name = format!("{}.1", whole_name(command));
    let path = folder.join(&name);
    mpatch::checkpoint::write_over(&path, &page(command)?)?;
    pages.push(name);
    command.get_subcommands().try_for_each(|below| write_pages(below, folder, pages))
}

/// E.g. `mpatch-apply`.
fn whole_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command) -> Result<Vec<u8>, CommandError> {
    // The synopsis is the help's: one that names every option says less.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    // What stands behind the options is laid out here, since it would be filled and hyphenated.
    let bare = command.clone().override_usage(usage);
    let bare = bare.after_help(Resettable::Reset).after_long_help(Resettable::Reset);
    let mut page = Vec::new();
    let man = Man::new(bare).title(whole_name(command));
    let rendered = man.source(concat!("mpatch ", env!("CARGO_PKG_VERSION"))).render(&mut page);
    rendered.map_err(|error| CommandError::new(ExitKind::Bug, format!("a page cannot be made: {error}")))?;
    if let Some(help) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        page.extend(sections(&help.to_string()).bytes());
    }
    Ok(page)
}

/// What stands behind the options of a help: a section for each list, and one for all else.
fn sections(help: &str) -> String {
    let (mut lists, mut notes) = (String::new(), String::new());
    for paragraph in help.trim_end().split("\n\n") {
        match paragraph.split_once(":\n").filter(|(_, lines)| lines.starts_with(' ')) {
            Some((heading, lines)) => {
                lists += &format!(".SH \"{}\"\n", heading.to_uppercase());
                lists += &if heading == "Examples" { examples(lines) } else { meanings(lines) };
            }
            None => {
                notes += ".PP\n";
                notes.extend(paragraph.lines().map(verbatim));
            }
        }
    }
    if !notes.is_empty() {
        notes.insert_str(0, ".SH NOTES\n");
    }
    lists + &notes
}

/// Commands, line by line.
fn examples(lines: &str) -> String {
    let lines = lines.lines().map(|line| verbatim(line.strip_prefix("  ").unwrap_or(line)));
    format!(".nf\n{}.fi\n", lines.collect::<String>())
}

/// Words, each with what it means.
fn meanings(lines: &str) -> String {
    let lines = lines.lines().filter_map(|line| line.trim_start().split_once("  "));
    lines.map(|(word, meaning)| format!(".TP 5\n{}{}", verbatim(word), verbatim(meaning))).collect()
}

/// A line of a page that shows `line` as it is: quotation marks and hyphens must survive being copied.
fn verbatim(line: &str) -> String {
    let mut shown = String::new();
    for character in line.chars() {
        match character {
            '\\' => shown.push_str("\\e"),
            '-' => shown.push_str("\\-"),
            '\'' => shown.push_str("\\(aq"),
            '`' => shown.push_str("\\(ga"),
            '~' => shown.push_str("\\(ti"),
            '.' if shown.is_empty() => shown.push_str("\\&."),
            _ => shown.push(character),
        }
    }
    shown + "\n"
}

impl Report for ManReport {
    const SCHEMA: &'static str = "mpatch.man/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("wrote {} into {}", count(self.pages.len(), "page"), self.folder.display()));
    }

    fn next(&self) -> Option<String> {
        Some(format!("man -l {}", shell_word(self.folder.join(self.pages.first()?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_options_keeps_its_lines() {
        let help = "Rungs:\n  V0  'whole'\n\nExamples:\n  mpatch `x` ~/y \\\n      -o z\n  .\n\nOne.\nTwo.\n\nThree.";
        let expected = ".SH \"RUNGS\"\n.TP 5\nV0\n\\(aqwhole\\(aq\n\
                        .SH \"EXAMPLES\"\n.nf\nmpatch \\(gax\\(ga \\(ti/y \\e\n    \\-o z\n\\&.\n.fi\n\
                        .SH NOTES\n.PP\nOne.\nTwo.\n.PP\nThree.\n";
        assert_eq!(sections(help), expected);
    }
}
