//! `mpatch completions`: what a shell needs to complete mpatch's command lines.

use clap::Args;
use clap_complete::Shell;

use crate::args;
use crate::error::CommandError;
use crate::report::Output;

#[derive(Debug, Clone, Copy, Args)]
#[command(after_help = "Examples:\n  mpatch completions bash \\\n      \
                  > ~/.local/share/bash-completion/completions/mpatch\n  \
                  mpatch completions zsh > ~/.zfunc/_mpatch\n  \
                  mpatch completions fish > ~/.config/fish/completions/mpatch.fish")]
pub struct CompletionsArguments {
    /// Complete for this shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the shell's completion script.
pub fn run(arguments: CompletionsArguments, output: &Output) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut args::command(), "mpatch", &mut script);
    output.raw(&script, "a shell's script")
}
