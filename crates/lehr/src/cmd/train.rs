//! Code that `pretrain` and `finetune` share: running a recipe in its directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lehr_model::{Compute, DTypeChoice, DeviceChoice};
use lehr_train::recipe::current_names;
use lehr_train::{
    DataCheck, Fitted, Fixed, Located, Prediction, Recipe, RunDir, check_run_dir, locate, prepare,
    product_gflops, read_metrics, write_report,
};
use serde_json::json;

use super::compute::ThreadArgs;
use crate::fail::Hinted;
use crate::stop::{self, Preparation};
use crate::ui::{Show, Style, say_interrupted, show_data};

/// Endings of compressed data, and of data that can be read.
const COMPRESSED: [&str; 2] = ["gz", "zst"];
const READABLE: [&str; 7] = ["txt", "md", "jsonl", "json", "csv", "tsv", "conll"];

/// Examples in the report of a fine-tuning, and those that are shown before it begins.
const PREVIEWS: usize = 20;
const SHOWN: usize = 1;

/// Arguments of every command that trains.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Recipe file (TOML); without one, a recipe is fitted to data and machine
    pub(crate) recipe: Option<std::path::PathBuf>,
    /// Training data, a file or folder: .txt .md .jsonl .json .csv .tsv .conll, also .gz and .zst
    #[arg(long)]
    pub(crate) data: Option<std::path::PathBuf>,
    /// Run directory [default: runs/NAME after the data]
    #[arg(long)]
    pub(crate) out: Option<std::path::PathBuf>,
    /// Continue the run in this directory
    #[arg(long, conflicts_with_all = ["recipe", "data", "out"])]
    pub(crate) resume: Option<std::path::PathBuf>,
    /// Continue although data or base model have changed since the checkpoint
    #[arg(long)]
    pub(crate) accept_changed_data: bool,
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
    /// Type of activations: auto (bf16 on a GPU and on a CPU that multiplies it faster, else f32),
    /// f32 or bf16 [default: the recipe's, or auto]
    #[arg(long)]
    pub(crate) dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Only print the recipe
    #[arg(long, conflicts_with = "json")]
    pub(crate) dry_run: bool,
    /// Print one JSON object per event
    #[arg(long)]
    pub(crate) json: bool,
    /// Print lines instead of the live view of a terminal
    #[arg(long, conflicts_with = "json")]
    pub(crate) plain: bool,
}

impl Common {
    /// Returns the run directory: as given, or `runs/` and the name of the data without the endings
    /// that say how it is read.
    pub(crate) fn out_dir(&self, data: &Path, suffix: &str, fixed: &Fixed) -> PathBuf {
        let given = || fixed.text("run.dir").map(PathBuf::from);
        self.out.clone().or_else(given).unwrap_or_else(|| {
            let mut name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for endings in [&COMPRESSED[..], &READABLE] {
                let stem = name.rsplit_once('.').filter(|(_, end)| endings.contains(end));
                if let Some((stem, _)) = stem {
                    name = stem.to_owned();
                }
            }
            let name = if name.is_empty() { "data" } else { &name };
            PathBuf::from("runs").join(format!("{name}{suffix}"))
        })
    }

    /// Returns the overrides of `--set` under their current names, and warns of old names and of
    /// keys that are set twice. A key that has an argument, here or in `more`, is set by one of
    /// both. Each argument comes with its value, if it is given.
    pub(crate) fn checked_sets(&self, more: &[(&str, Option<&Path>, &str)]) -> Result<Vec<String>> {
        let (sets, notes) = current_names(&self.sets);
        notes.iter().for_each(|note| eprintln!("warning: {note}"));
        let keys: Vec<_> = sets.iter().filter_map(|s| Some(s.split_once('=')?.0.trim())).collect();
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].contains(key) {
                eprintln!("warning: {key} is set more than once; the last --set is used");
            }
        }
        let is = |given: bool| given.then_some(Path::new(""));
        let own = [
            ("--data", self.data.as_deref(), "data.path"),
            ("--out", self.out.as_deref(), "run.dir"),
            ("--seed", is(self.seed.is_some()), "run.seed"),
            ("--device", is(self.device.is_some()), "run.device"),
            ("--dtype", is(self.dtype.is_some()), "run.dtype"),
        ];
        for (name, given, key) in own.iter().chain(more) {
            let Some(path) = given else { continue };
            if keys.contains(key) {
                let found = format!("{name} and --set {key} are both given");
                return Err(Hinted::error(found, "give one of them; they set the same"));
            }
            // A recipe is text, and so are its paths.
            if path.to_str().is_none() {
                let found = format!("{name} is {}, which is not UTF-8", path.display());
                return Err(Hinted::error(found, "rename it; a recipe cannot hold such a path"));
            }
        }
        Ok(sets)
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
    pub(crate) fn compute(&self, fixed: &Fixed) -> Result<Compute> {
        // What cannot be parsed is named when the recipe is checked.
        let device = || fixed.text("run.device").and_then(|text| text.parse().ok());
        let dtype = || fixed.text("run.dtype").and_then(|text| text.parse().ok());
        let device = self.device.or_else(device).unwrap_or_default();
        let dtype = self.dtype.or_else(dtype).unwrap_or_default();
        Ok(Compute::choose_for_training(device, dtype, &mut |_| ())?)
    }

    pub(crate) fn style(&self) -> Style {
        match (self.json, self.plain) {
            (true, _) => Style::Json,
            (false, true) => Style::Plain,
            (false, false) => Style::Human,
        }
    }

    /// Says what is done before the run begins: large data is read and counted for a while.
    pub(crate) fn say_fitting(&self, data: &Path) {
        if !self.json && !self.dry_run {
            println!("fitting a recipe to {}", data.display());
        }
    }

    /// Shows a note about long work before a run begins. What `--dry-run` prints is the recipe.
    pub(crate) fn note(&self, text: &str) {
        match self.dry_run {
            true => eprintln!("{text}"),
            false => say(self.style(), text),
        }
    }

    /// Returns a recipe with the overrides `sets`, and those of device and type.
    pub(crate) fn with_sets(&self, recipe: &Recipe, sets: &[String]) -> Result<Recipe> {
        Ok(recipe.with_overrides(&[self.compute_sets(), sets.to_vec()].concat())?)
    }

    /// Says why a recipe was fitted so, and runs it with the overrides applied.
    pub(crate) fn run_planned(
        &self,
        planned: &Planned,
        sets: &[String],
        command: &str,
    ) -> Result<ExitCode> {
        planned.fitted.iter().for_each(|fitted| self.say_fitted(fitted));
        let recipe = self.with_sets(&planned.recipe, sets)?;
        let prediction = planned.fitted.as_ref().map(|fitted| &fitted.prediction);
        if self.dry_run {
            print!("{}", recipe.to_toml());
            return Ok(ExitCode::SUCCESS);
        }
        check_run_dir(&recipe)?;
        self.run_recipe(&recipe, prediction, command)
    }

    /// Prepares and runs a recipe, writes the report and suggests the next command.
    fn run_recipe(
        &self,
        recipe: &Recipe,
        prediction: Option<&Prediction>,
        command: &str,
    ) -> Result<ExitCode> {
        let style = self.style();
        let stop = stop::on_signals();
        let mut dir = RunDir::open(recipe)?;
        if self.accept_changed_data {
            dir = dir.accepting_changed_data();
        }
        if let Some(prediction) = prediction {
            prediction.keep(&dir)?;
        }
        let resume = format!("lehr {command} --resume {}", dir.path().display());
        let run = Some((dir.path().to_owned(), resume.clone()));
        stop::preparing(Preparation { style, run });
        let say = |text: &str| say(style, text);
        say(&format!("run directory {} (recipe.toml is in it)", dir.path().display()));
        let Located { recipe: located, dir, notes } = locate(recipe, dir)?;
        notes.iter().for_each(|note| say(note));
        let mut task = prepare(&located, &dir.cache(), &mut |text| say(text))?;
        if command == "finetune" && !dir.metrics().is_file() {
            let check = DataCheck::new(&task, &located, PREVIEWS)?;
            check.keep(&dir)?;
            show_data(style, &check.with_previews(SHOWN));
        }
        let (device, dtype) = task.objective.model().compute();
        let peak = product_gflops(&Compute { device, dtype, note: None })?;
        let before =
            if dir.metrics().is_file() { read_metrics(&dir.metrics())? } else { Vec::new() };
        let mut show = Show::new(style, peak).after(before);
        let outcome = lehr_train::run(&located, &mut task, Some(&dir), &mut show, stop)?;
        // The last lines of a live view stay, and what follows is printed below them.
        drop(show);
        if dir.metrics().is_file() {
            write_report(&dir, recipe)?;
        }
        let steps = recipe.train.steps;
        if !outcome.finished {
            say_interrupted(style, dir.path(), outcome.state.step, steps, &resume);
            return Ok(stop::exit_code());
        }
        if style != Style::Json {
            println!(
                "done in {:.0} s; curves in {}",
                outcome.state.elapsed_s,
                dir.report().display()
            );
            println!("next: {}", next_command(recipe, &dir));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A recipe to run.
pub(crate) struct Planned {
    pub(crate) recipe: Recipe,
    /// How it was fitted, unless it was given.
    pub(crate) fitted: Option<Fitted>,
}

impl Planned {
    /// A recipe from a file or of an earlier run.
    pub(crate) fn given(recipe: Recipe) -> Self {
        Self { recipe, fitted: None }
    }

    /// A recipe that was fitted to data and machine.
    pub(crate) fn fitted(fitted: Fitted) -> Self {
        Self { recipe: fitted.recipe.clone(), fitted: Some(fitted) }
    }
}

/// Refuses a path that is not UTF-8.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    if path.to_str().is_some() {
        return Ok(());
    }
    let found = format!("the path {} is not UTF-8, so no recipe can name it", path.display());
    Err(Hinted::error(found, "rename the file or folder"))
}

fn say(style: Style, text: &str) {
    match style {
        Style::Json => println!("{}", json!({ "event": "note", "text": text })),
        Style::Human | Style::Plain => println!("{text}"),
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
        ObjectiveKind::Classify { .. } => format!("lehr classify {path} -t \"some text\""),
        ObjectiveKind::Tag => format!("lehr tag {path} -t \"some text\""),
    }
}
