//! `mpatch man`: the manual, page by page, from the same words as `--help`.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man;

use crate::args;
use crate::error::{CommandError, ExitKind};
use crate::report::Output;

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch man apply | man -l -\n  \
                  mpatch man --output ~/.local/share/man/man1")]
pub struct ManArguments {
    /// Print the page of this command instead of the one about mpatch
    #[arg(conflicts_with = "output")]
    command: Option<String>,
    /// Write all pages into this folder, over older ones
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Prints a page, or writes all.
pub fn run(arguments: &ManArguments, output: &Output) -> Result<(), CommandError> {
    let mut all = args::command();
    // Gives each command its whole name.
    all.build();
    let Some(folder) = &arguments.output else {
        let wanted = match &arguments.command {
            Some(name) => all.find_subcommand(name).ok_or_else(|| unknown(name))?,
            None => &all,
        };
        return output.raw(&page(wanted)?, "a page of the manual");
    };
    let commands = all.get_subcommands().filter(|command| command.get_name() != "help");
    for command in std::iter::once(&all).chain(commands) {
        let path = folder.join(format!("{}.1", whole_name(command)));
        std::fs::write(&path, page(command)?).map_err(|error| CommandError::io("write", &path, &error))?;
    }
    Ok(())
}

fn unknown(name: &str) -> CommandError {
    CommandError::new(ExitKind::Usage, format!("there is no command `{name}`"))
        .hint("`mpatch --help` lists them")
}

/// E.g. `mpatch-apply`.
fn whole_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command) -> Result<Vec<u8>, CommandError> {
    let mut page = Vec::new();
    let man = Man::new(command.clone()).title(whole_name(command));
    let rendered = man.source(concat!("mpatch ", env!("CARGO_PKG_VERSION"))).render(&mut page);
    rendered.map_err(|error| CommandError::new(ExitKind::Bug, format!("a page cannot be made: {error}")))?;
    Ok(page)
}
