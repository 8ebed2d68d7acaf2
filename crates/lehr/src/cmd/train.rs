//! Code that `pretrain` and `finetune` share: running a recipe in its directory.

use std::process::ExitCode;

use anyhow::Result;
use lehr_model::{Compute, DTypeChoice, DeviceChoice};
use lehr_train::recipe::current_names;
use lehr_train::{Fitted, Recipe, RunDir, device_gflops, prepare, write_report};
use serde_json::json;

use super::compute::ThreadArgs;
use crate::fail::Hinted;
use crate::ui::{Show, Style, say_interrupted, stop_on_ctrl_c};

/// Arguments of every command that trains.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Recipe file (TOML); without one, a recipe is fitted to data and machine
    pub(crate) recipe: Option<std::path::PathBuf>,
    /// Training data, a file or folder: .txt .md .jsonl .json .csv .tsv, also .gz and .zst
    #[arg(long)]
    pub(crate) data: Option<std::path::PathBuf>,
    /// Run directory [default: runs/NAME after the data]
    #[arg(long)]
    pub(crate) out: Option<std::path::PathBuf>,
    /// Continue the run in this directory
    #[arg(long, conflicts_with_all = ["recipe", "data", "out"])]
    pub(crate) resume: Option<std::path::PathBuf>,
    /// Override a setting of the recipe, as in --set optimizer.lr=3e-4 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Leave out records that cannot be read or used, and count them
    #[arg(long, conflicts_with = "resume")]
    pub(crate) skip_bad: bool,
    /// Seed of weights, data order and samples [default: the recipe's, or 1]
    #[arg(long, conflicts_with = "resume")]
    pub(crate) seed: Option<u64>,
    /// auto (a GPU if one is usable), cpu, cuda or cuda:N [default: the recipe's, or auto]
    #[arg(long)]
    pub(crate) device: Option<DeviceChoice>,
    /// Type of activations: auto (bf16 on a GPU, f32 on the CPU), f32 or bf16 [default: the
    /// recipe's, or auto]
    #[arg(long)]
    pub(crate) dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Only print the recipe
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object per event
    #[arg(long)]
    pub(crate) json: bool,
}

impl Common {
    /// Returns the run directory: as given, or `runs/` and the name of the data.
    pub(crate) fn out_dir(&self, data: &std::path::Path, suffix: &str) -> std::path::PathBuf {
        self.out.clone().unwrap_or_else(|| {
            let stem = data.file_stem().unwrap_or_default().to_string_lossy();
            let stem = stem.split('.').next().unwrap_or_default();
            let name = if stem.is_empty() { "data" } else { stem };
            std::path::PathBuf::from("runs").join(format!("{name}{suffix}"))
        })
    }

    /// Overrides of a recipe file that have their own arguments.
    pub(crate) fn file_sets(&self) -> Vec<String> {
        let mut sets = Vec::new();
        sets.extend(self.data.iter().map(|d| format!("data.path={:?}", d.display().to_string())));
        sets.extend(self.out.iter().map(|d| format!("run.dir={:?}", d.display().to_string())));
        sets.extend(self.seed.map(|seed| format!("run.seed={seed}")));
        sets.extend(self.skip_bad.then(|| "data.skip_bad=true".to_owned()));
        sets
    }

    /// Refuses paths that a recipe, which is text, cannot name.
    pub(crate) fn check_paths(&self) -> Result<()> {
        [&self.data, &self.out].into_iter().flatten().try_for_each(|path| check_path(path))
    }

    /// Prints the reasons of a fitted recipe. A dry run prints the notes about its data to standard
    /// error; another run reads the data again, and prints them then.
    pub(crate) fn say_fitted(&self, fitted: &Fitted) {
        if self.dry_run {
            fitted.notes.iter().for_each(|note| eprintln!("{note}"));
        } else if !self.json {
            fitted.reasons.iter().for_each(|reason| println!("fitted: {reason}"));
        }
    }

    /// Overrides of a run's device and type. A resumed run may continue on another device.
    fn compute_sets(&self) -> Vec<String> {
        let device = self.device.map(|device| format!("run.device={:?}", device.to_string()));
        let dtype = self.dtype.map(|dtype| format!("run.dtype={:?}", dtype.to_string()));
        device.into_iter().chain(dtype).collect()
    }

    /// Returns the device on which a fitted run will compute.
    pub(crate) fn compute(&self) -> Result<Compute> {
        Ok(Compute::choose(self.device.unwrap_or_default(), self.dtype.unwrap_or_default())?)
    }

    pub(crate) fn style(&self) -> Style {
        if self.json { Style::Json } else { Style::Human }
    }

    /// Shows a note about long work before a run begins. What `--dry-run` prints is the recipe.
    pub(crate) fn note(&self, text: &str) {
        match self.dry_run {
            true => eprintln!("{text}"),
            false => say(self.style(), text),
        }
    }

    /// Runs `recipe`, given or fitted, with the overrides applied.
    pub(crate) fn run(&self, recipe: &Recipe, command: &str) -> Result<ExitCode> {
        let (sets, notes) = current_names(&self.sets);
        notes.iter().for_each(|note| eprintln!("warning: {note}"));
        let recipe = recipe.with_overrides(&[self.compute_sets(), sets].concat())?;
        if self.dry_run {
            print!("{}", recipe.to_toml());
            return Ok(ExitCode::SUCCESS);
        }
        run_recipe(&recipe, self.style(), command)
    }
}

/// Refuses a path that is not UTF-8.
pub(crate) fn check_path(path: &std::path::Path) -> Result<()> {
    if path.to_str().is_some() {
        return Ok(());
    }
    let found = format!("the path {} is not UTF-8, so no recipe can name it", path.display());
    Err(Hinted::error(found, "rename the file or folder"))
}

/// Prepares and runs a recipe, writes the report and suggests the next command.
pub(crate) fn run_recipe(recipe: &Recipe, style: Style, command: &str) -> Result<ExitCode> {
    let stop = stop_on_ctrl_c();
    let dir = RunDir::open(recipe)?;
    say(style, &format!("run directory {} (recipe.toml is in it)", dir.path().display()));
    let mut task = prepare(recipe, &dir.cache(), &mut |text| say(style, text))?;
    let (device, dtype) = task.objective.model().compute();
    let mut show = Show::new(style, device_gflops(&Compute { device, dtype, note: None })?);
    let outcome = lehr_train::run(recipe, &mut task, Some(&dir), &mut show, stop)?;
    if dir.metrics().is_file() {
        write_report(&dir, recipe)?;
    }
    let steps = recipe.train.steps;
    if !outcome.finished {
        let resume = format!("lehr {command} --resume {}", dir.path().display());
        say_interrupted(style, dir.path(), outcome.state.step, steps, &resume);
        return Ok(ExitCode::from(130));
    }
    if style == Style::Human {
        println!("done in {:.0} s; curves in {}", outcome.state.elapsed_s, dir.report().display());
        println!("next: {}", next_command(recipe, &dir));
    }
    Ok(ExitCode::SUCCESS)
}

fn say(style: Style, text: &str) {
    match style {
        Style::Human => println!("{text}"),
        Style::Json => println!("{}", json!({ "event": "note", "text": text })),
    }
}

fn next_command(recipe: &Recipe, dir: &RunDir) -> String {
    use lehr_train::recipe::ObjectiveKind;
    let path = dir.path().display();
    match recipe.objective {
        ObjectiveKind::NextToken => {
            let prompt = recipe.sample.prompts.first().map_or("Once", String::as_str);
            format!("lehr generate {path} -p {prompt:?}")
        }
        ObjectiveKind::Chat => format!("lehr chat {path}"),
        ObjectiveKind::Classify => format!("lehr classify {path} -t \"some text\""),
    }
}
