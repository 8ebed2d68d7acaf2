//! `lehr finetune`

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use lehr_data::{DatasetKind, guess_kind};
use lehr_train::{FitData, Recipe, RunDir, fit_finetune};

use super::train::{Common, check_path};
use crate::fail::Hinted;

/// Fine-tune a model on conversations, labelled texts or more text.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Model to start from: a run directory, a checkpoint or a Hugging Face folder
    #[arg(long)]
    model: Option<std::path::PathBuf>,
    /// Kind of data [default: guessed from its fields]
    #[arg(long)]
    kind: Option<Kind>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Documents: continues next-token prediction
    Text,
    /// Conversations: supervises the assistant's words
    Chat,
    /// Labelled texts: trains a classifier
    Labelled,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let common = &args.common;
    common.threads.apply();
    common.check_paths()?;
    args.model.as_deref().map_or(Ok(()), check_path)?;
    if let Some(dir) = &common.resume {
        return common.run(&RunDir::load_recipe(dir)?, "finetune");
    }
    if let Some(path) = &common.recipe {
        let mut sets = common.file_sets();
        let model = args.model.iter().map(|m| format!("model.path={:?}", m.display().to_string()));
        sets.extend(model);
        return common.run(&Recipe::load(path, &sets)?, "finetune");
    }
    let (Some(model), Some(data)) = (&args.model, &common.data) else {
        return Err(Hinted::error(
            "fine-tuning needs a model and data, or a recipe",
            "lehr finetune --model runs/base --data my.jsonl",
        ));
    };
    let kind = match args.kind {
        Some(Kind::Text) => DatasetKind::Text,
        Some(Kind::Chat) => DatasetKind::Chat,
        Some(Kind::Labelled) => DatasetKind::Labelled,
        None => guess_kind(data)?,
    };
    let out = common.out_dir(data, "-finetuned");
    let data = FitData { path: data, skip_bad: common.skip_bad };
    let (seed, mut note) = (common.seed.unwrap_or(1), |text: &str| common.note(text));
    let fitted = fit_finetune(model, data, kind, &out, seed, &mut note)?;
    common.say_fitted(&fitted);
    common.run(&fitted.recipe, "finetune")
}
