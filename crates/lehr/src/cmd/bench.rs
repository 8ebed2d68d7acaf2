//! `lehr bench`

mod decode;
mod ops;
mod step;
mod system;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// Measure speed.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Training steps: forward, loss, backward, AdamW
    Step(step::Args),
    /// Read a prompt and generate from it
    Decode(decode::Args),
    /// Single operations, as shares of the limit that bounds them
    Ops(ops::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Step(args) => step::run(args),
        What::Decode(args) => decode::run(args),
        What::Ops(args) => ops::run(args),
    }
}
