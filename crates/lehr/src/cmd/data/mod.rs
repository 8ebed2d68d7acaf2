//! `lehr data`

mod check;

use std::process::ExitCode;

use anyhow::Result;

/// Look at data before it is trained on.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show what a fine-tuning learns of its data, and what looks wrong
    Check(check::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Check(args) => check::run(args),
    }
}
