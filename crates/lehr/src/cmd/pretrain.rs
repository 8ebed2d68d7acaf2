//! `lehr pretrain`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lehr_train::{
    Budget, FinishedRun, FitData, Fitted, Fixed, LossLaw, Recipe, RunDir, device_gflops,
    fit_pretrain, sizes_of_depth,
};

use super::train::{Common, Planned};
use crate::fail::Hinted;

/// Pre-train a model on text.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Duration in minutes, tokenizer and evaluations included, to which the model and the number
    /// of steps are fitted. Steps are timed first [default: 5, or without a limit with --depth]
    #[arg(long, conflicts_with_all = ["recipe", "resume"])]
    minutes: Option<f64>,
    /// Size of the model as its number of blocks: width, heads, rates and tokens follow from it.
    /// Without --minutes it sees 12 tokens per weight, in at most 3 passes over the text
    #[arg(long, value_name = "BLOCKS", conflicts_with_all = ["recipe", "resume"])]
    depth: Option<u32>,
    #[command(flatten)]
    scaling: Scaling,
}

/// How a model grows with its text, and what its loss will be.
#[derive(clap::Args, Clone)]
pub(crate) struct Scaling {
    /// Tokens per weight of the matrix products, with --depth and without --minutes [default: 12]
    #[arg(long, value_name = "N", requires = "depth", conflicts_with = "minutes")]
    tokens_per_weight: Option<f64>,
    /// Finished runs of four or more depths with the same data and tokens per weight, from which
    /// the loss of this one is predicted
    #[arg(long, value_name = "RUN", num_args = 1.., requires = "depth")]
    law: Vec<PathBuf>,
}

/// The numbers from which a fitted recipe follows.
pub(crate) struct Dial {
    pub(crate) minutes: Option<f64>,
    pub(crate) depth: Option<u32>,
    pub(crate) scaling: Scaling,
}

/// Duration of a run without `--minutes`.
const MINUTES: f64 = 5.0;

impl Dial {
    /// Returns the seconds that the run may take: without a limit if only its depth is given.
    fn seconds(&self) -> Result<Option<f64>> {
        let minutes = match (self.minutes, self.depth) {
            (None, Some(_)) => return Ok(None),
            (minutes, _) => minutes.unwrap_or(MINUTES),
        };
        if !(minutes > 0.0 && minutes.is_finite()) {
            let found = format!("--minutes is {minutes}, expected more than 0");
            return Err(Hinted::error(found, "as in --minutes 5"));
        }
        Ok(Some(60.0 * minutes))
    }

    /// Lists the arguments that only a new run uses.
    fn given_for_a_new_run(&self) -> Vec<String> {
        let ratio = self.scaling.tokens_per_weight;
        [
            self.minutes.map(|minutes| format!("--minutes {minutes}")),
            ratio.map(|ratio| format!("--tokens-per-weight {ratio}")),
            (!self.scaling.law.is_empty()).then(|| "--law".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn tokens_per_weight(&self) -> Result<f64> {
        let ratio = self.scaling.tokens_per_weight.unwrap_or(Budget::TOKENS_PER_WEIGHT);
        if !(ratio > 0.0 && ratio.is_finite()) {
            let found = format!("--tokens-per-weight is {ratio}, expected more than 0");
            return Err(Hinted::error(found, "as in --tokens-per-weight 12"));
        }
        Ok(ratio)
    }

    /// Returns the settings that follow from the depth, and those of `--set`, which count more.
    pub(crate) fn sets(&self, common: &Common) -> Result<Vec<String>> {
        let mut sets = match self.depth {
            None => Vec::new(),
            Some(0) => {
                return Err(Hinted::error("--depth is 0, expected 1 or more", "as in --depth 4"));
            }
            Some(depth) => sizes_of_depth(depth as usize),
        };
        let given = self.depth.map(|_| Path::new(""));
        sets.extend(common.checked_sets(&[("--depth", given, "model.n_layers")])?);
        Ok(sets)
    }

    /// Fits a recipe to the data and this machine.
    pub(crate) fn fit(
        &self,
        common: &Common,
        (data, out): (&Path, &Path),
        fixed: &Fixed,
    ) -> Result<Fitted> {
        let seconds = self.seconds()?;
        let compute = common.compute(fixed)?;
        let gflops = device_gflops(&compute)?;
        let measure = Some((compute.device, compute.dtype));
        let tokens_per_weight = self.tokens_per_weight()?;
        let law = self.scaling.law()?;
        let budget = Budget { seconds, tokens_per_weight, gflops, measure };
        let (seed, mut note) = (common.seed.unwrap_or(1), |text: &str| common.note(text));
        let data = FitData { path: data, skip_bad: common.skip_bad };
        let mut fitted = fit_pretrain(data, out, seed, budget, fixed, &mut note)?;
        if let Some(law) = law {
            predict_loss(&mut fitted, &law)?;
        }
        Ok(fitted)
    }
}

impl Scaling {
    /// Fits the law to the runs that are given, if there are any.
    fn law(&self) -> Result<Option<LossLaw>> {
        if self.law.is_empty() {
            return Ok(None);
        }
        let runs: lehr_train::Result<Vec<_>> =
            self.law.iter().map(|dir| FinishedRun::read(dir)).collect();
        Ok(Some(LossLaw::fit(runs?)?))
    }
}

/// Adds the loss that a law predicts to the prediction of a run.
fn predict_loss(fitted: &mut Fitted, law: &LossLaw) -> Result<()> {
    let prediction = &mut fitted.prediction;
    let size = prediction.weights.zip(prediction.tokens);
    let size = size.expect("a plan of pre-training has weights and tokens");
    let (bits, (low, high)) = law.predict(&fitted.recipe, size)?;
    prediction.bits_per_byte = Some(bits);
    fitted.reasons.push(format!(
        "held-out bits per byte at the end, by {law}: {bits:.3}, and {low:.3} to {high:.3} if any \
         one of the runs is left out"
    ));
    Ok(())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args { common, minutes, depth, scaling } = args;
    let dial = Dial { minutes: *minutes, depth: *depth, scaling: scaling.clone() };
    common.threads.apply();
    common.check_paths()?;
    let sets = dial.sets(common)?;
    if let Some(dir) = &common.resume {
        return common.run_planned(&Planned::given(RunDir::load_recipe(dir)?), &sets, "pretrain");
    }
    if let Some(path) = &common.recipe {
        let recipe = Recipe::load(path, &common.file_sets())?;
        return common.run_planned(&Planned::given(recipe), &sets, "pretrain");
    }
    let Some(data) = &common.data else {
        return Err(Hinted::error(
            "no training data: neither a recipe nor --data was given",
            "lehr pretrain --data my.txt, or lehr pretrain configs/tiny-llama.toml",
        ));
    };
    dial.seconds()?;
    dial.tokens_per_weight()?;
    let fixed = Fixed::new(&sets)?;
    let out = common.out_dir(data, "", &fixed);
    if let Some(recipe) = continued(common, data, &out, &sets)? {
        for name in dial.given_for_a_new_run() {
            eprintln!(
                "warning: {name} changes nothing: the run in {} has its {} steps and its plan \
                 since it began; another --out begins a new one",
                out.display(),
                recipe.train.steps
            );
        }
        return common.run_planned(&Planned::given(recipe), &sets, "pretrain");
    }
    common.say_fitting(data);
    let fitted = dial.fit(common, (data, &out), &fixed)?;
    common.run_planned(&Planned::fitted(fitted), &sets, "pretrain")
}

/// Returns the recipe of the run that is in `out`, if it is this one: of the same data and seed,
/// and with the same overrides. Its recipe was fitted when it began.
fn continued(common: &Common, data: &Path, out: &Path, sets: &[String]) -> Result<Option<Recipe>> {
    if !out.join("recipe.toml").is_file() {
        return Ok(None);
    }
    let recipe = RunDir::load_recipe(out)?;
    // A failed attempt leaves a recipe whose other settings are not wanted any more.
    let has_begun = out.join("metrics.jsonl").is_file();
    let is_same = recipe.data.path == data.display().to_string()
        && common.skip_bad == recipe.data.skip_bad
        && common.seed.is_none_or(|seed| seed == recipe.run.seed)
        && (sets.is_empty() || has_begun)
        && recipe.with_overrides(sets).is_ok_and(|with| with == recipe);
    if !is_same {
        return Ok(None);
    }
    if !common.json && !common.dry_run {
        println!("continuing the run in {}", out.display());
    }
    Ok(Some(recipe))
}
