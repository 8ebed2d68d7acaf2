//! `lehr finetune`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use lehr_data::{DatasetKind, guess_kind};
use lehr_train::{Finetuning, FitData, Fixed, Recipe, RunDir, fit_finetune};

use super::train::{Common, Planned, check_path};
use crate::fail::Hinted;

/// Fine-tune a model on conversations, labelled texts, named entities or more text.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Model to start from: a run directory, a checkpoint or a Hugging Face folder
    #[arg(long, conflicts_with = "resume")]
    pub(crate) model: Option<std::path::PathBuf>,
    /// Kind of data [default: guessed from its fields]
    #[arg(long, conflicts_with_all = ["recipe", "resume"])]
    kind: Option<Kind>,
    /// What is trained: the whole model, or an adapter beside it [default: full]
    #[arg(long, conflicts_with_all = ["recipe", "resume"])]
    method: Option<Method>,
    /// Rank of an adapter [default: 16]
    #[arg(long, requires = "method", value_name = "N")]
    rank: Option<usize>,
    /// Format of the frozen matrices beside an adapter, such as int8 or nf4 (QLoRA) [default:
    /// quantised ones as stored, others in f32]
    #[arg(long, requires = "method", value_name = "FORMAT")]
    weights: Option<String>,
    /// Classes and entities: start a new head for the labels of the data, although the model has
    /// one
    #[arg(long, conflicts_with = "resume")]
    new_head: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// All weights
    Full,
    /// Low-rank updates of all linear layers of the blocks; the model is frozen
    Lora,
    /// LoRA beside a model whose matrices are kept in 4 bits (nf4, unless --weights says otherwise)
    Qlora,
    /// Low-rank updates of directions, and lengths of their own
    Dora,
}

impl Method {
    /// Returns the value of `adapter.kind`; `None` without an adapter.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Full => None,
            Self::Lora | Self::Qlora => Some("lora"),
            Self::Dora => Some("dora"),
        }
    }
}

impl Args {
    /// Returns the settings of `--method` and of the options that belong to it.
    fn adapter_sets(&self) -> Result<Vec<String>> {
        let Some(kind) = self.method.and_then(Method::kind) else {
            for (name, is_given) in
                [("--rank", self.rank.is_some()), ("--weights", self.weights.is_some())]
            {
                if is_given {
                    let found = format!("{name} belongs to an adapter, and --method is full");
                    return Err(Hinted::error(found, "add --method lora, or leave it out"));
                }
            }
            return Ok(Vec::new());
        };
        let mut sets = vec![format!("adapter.kind={kind}")];
        sets.extend(self.rank.map(|rank| format!("adapter.rank={rank}")));
        let usual = (self.method == Some(Method::Qlora)).then_some("nf4");
        let weights = self.weights.as_deref().or(usual);
        sets.extend(weights.map(|weights| format!("adapter.weights={weights:?}")));
        Ok(sets)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Documents: continues next-token prediction
    Text,
    /// Conversations: supervises the assistant's words
    Chat,
    /// Labelled texts: trains a classifier
    Labelled,
    /// Texts with named entities: trains a model that tags words
    Entities,
}

impl From<Kind> for DatasetKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text,
            Kind::Chat => Self::Chat,
            Kind::Labelled => Self::Labelled,
            Kind::Entities => Self::Entities,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (planned, sets) = plan(args)?;
    args.common.run_planned(&planned, &sets, "finetune")
}

/// Returns the recipe that the arguments name or that is fitted to them, and the overrides.
pub(crate) fn plan(args: &Args) -> Result<(Planned, Vec<String>)> {
    let common = &args.common;
    common.threads.apply();
    common.check_paths()?;
    args.model.as_deref().map_or(Ok(()), check_path)?;
    let mut sets = common.checked_sets(&[
        ("--model", args.model.as_deref(), "model.path"),
        ("--kind", args.kind.map(|_| Path::new("")), "objective.kind"),
        ("--new-head", args.new_head.then_some(Path::new("")), "train.new_head"),
        ("--method", args.method.map(|_| Path::new("")), "adapter.kind"),
        ("--rank", args.rank.map(|_| Path::new("")), "adapter.rank"),
        ("--weights", args.weights.as_deref().map(Path::new), "adapter.weights"),
    ])?;
    sets.extend(args.adapter_sets()?);
    if args.new_head {
        sets.push("train.new_head=true".to_owned());
    }
    if let Some(dir) = &common.resume {
        return Ok((Planned::given(RunDir::load_recipe(dir)?), sets));
    }
    if let Some(path) = &common.recipe {
        let mut own = common.file_sets();
        let model = args.model.iter().map(|m| format!("model.path={:?}", m.display().to_string()));
        own.extend(model);
        return Ok((Planned::given(Recipe::load(path, &own)?), sets));
    }
    let (Some(model), Some(data)) = (&args.model, &common.data) else {
        return Err(Hinted::error(
            "fine-tuning needs a model and data, or a recipe",
            "lehr finetune --model runs/base --data my.jsonl",
        ));
    };
    let fixed = Fixed::new(&sets)?;
    let kind = match args.kind {
        Some(kind) => kind.into(),
        None => match fixed.text("objective.kind") {
            Some("next_token") => DatasetKind::Text,
            Some("chat") => DatasetKind::Chat,
            Some("classify") => DatasetKind::Labelled,
            Some("tag") => DatasetKind::Entities,
            _ => guess_kind(data)?,
        },
    };
    let out = &common.out_dir(data, "-finetuned", &fixed);
    common.say_fitting(data);
    let (seed, mut note) = (common.seed.unwrap_or(1), |text: &str| common.note(text));
    let data = FitData { path: data, skip_bad: common.skip_bad };
    let fitted = fit_finetune(Finetuning { model, data, kind, out, seed }, &fixed, &mut note)?;
    Ok((Planned::fitted(fitted), sets))
}
