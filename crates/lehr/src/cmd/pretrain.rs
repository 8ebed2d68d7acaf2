//! `lehr pretrain`

use std::process::ExitCode;

use anyhow::Result;
use lehr_train::{Budget, FitData, Recipe, RunDir, device_gflops, fit_pretrain};

use super::train::Common;
use crate::fail::Hinted;

/// Pre-train a model on text.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Duration in minutes to which the model and the number of steps are fitted
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let common = &args.common;
    common.threads.apply();
    common.check_paths()?;
    if let Some(dir) = &common.resume {
        return common.run(&RunDir::load_recipe(dir)?, "pretrain");
    }
    if let Some(path) = &common.recipe {
        return common.run(&Recipe::load(path, &common.file_sets())?, "pretrain");
    }
    let Some(data) = &common.data else {
        return Err(Hinted::error(
            "no training data: neither a recipe nor --data was given",
            "lehr pretrain --data my.txt, or lehr pretrain configs/tiny-llama.toml",
        ));
    };
    if !(args.minutes > 0.0 && args.minutes.is_finite()) {
        let found = format!("--minutes is {}, expected more than 0", args.minutes);
        return Err(Hinted::error(found, "as in --minutes 5"));
    }
    let out = common.out_dir(data, "");
    // An existing run continues, because its recipe was fitted when it began.
    if out.join("recipe.toml").is_file() {
        let recipe = RunDir::load_recipe(&out)?;
        let is_same = recipe.data.path == data.display().to_string()
            && common.skip_bad == recipe.data.skip_bad
            && common.seed.is_none_or(|seed| seed == recipe.run.seed);
        if is_same && common.sets.is_empty() {
            if !common.json && !common.dry_run {
                println!("continuing the run in {}", out.display());
            }
            return common.run(&recipe, "pretrain");
        }
    }
    let budget =
        Budget { seconds: args.minutes * 60.0, gflops: device_gflops(&common.compute()?)? };
    let data = FitData { path: data, skip_bad: common.skip_bad };
    let seed = common.seed.unwrap_or(1);
    let fitted = fit_pretrain(data, &out, seed, budget, &mut |text| common.note(text))?;
    common.say_fitted(&fitted);
    common.run(&fitted.recipe, "pretrain")
}
