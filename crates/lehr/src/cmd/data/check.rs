//! `lehr data check`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use lehr_train::{DataCheck, Recipe, prepare};

use crate::cmd::finetune;
use crate::fail::Hinted;
use crate::output;
use crate::ui::show_data;

/// Show what a fine-tuning learns of its data, and what looks wrong. Nothing is trained. Takes the
/// arguments of `lehr finetune`, which says the same before it begins.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    finetune: finetune::Args,
    /// Examples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    examples: usize,
    /// Also write the examples to this file, as HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let common = &args.finetune.common;
    if let Some(html) = &args.html {
        let read = [&common.data, &args.finetune.model];
        let read: Vec<_> = read.into_iter().flatten().map(PathBuf::as_path).collect();
        output::check(html, &read)?;
    }
    check_given(args)?;
    let (planned, sets) = finetune::plan(&args.finetune)?;
    planned.fitted.iter().for_each(|fitted| common.say_fitted(fitted));
    let recipe: Recipe = common.with_sets(&planned.recipe, &sets)?;
    // Nothing of it stays.
    let cache = tempfile::tempdir()?;
    let task = prepare(&recipe, cache.path(), &mut |text| common.note(text))?;
    let check = DataCheck::new(&task, &recipe, args.examples)?;
    show_data(common.style(), &check);
    if let Some(html) = &args.html {
        let title = format!("Data {}", recipe.data.path);
        std::fs::write(html, check.html(&title))?;
        if !common.json {
            println!("examples as HTML in {}", html.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses arguments of a run: there is none.
fn check_given(args: &Args) -> Result<()> {
    let common = &args.finetune.common;
    let given = [
        ("--resume", common.resume.is_some()),
        ("--out", common.out.is_some()),
        ("--accept-changed-data", common.accept_changed_data),
        ("--dry-run", common.dry_run),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((name, _)) => Err(Hinted::error(
            format!("data check trains nothing, and {name} is given"),
            format!("leave {name} out, or run lehr finetune"),
        )),
    }
}
