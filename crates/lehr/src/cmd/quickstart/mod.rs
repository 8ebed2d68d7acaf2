//! `lehr quickstart`: the whole story on bundled text, in minutes.
//!
//! Text → tokenizer → pre-training → fine-tuning for sentiment and dialogue → evaluation on
//! held-out tests, against the same network without pre-training and against simple baselines. A
//! plan with all numbers of steps is saved first, so an interrupted quickstart continues.

mod corpus;
mod dialogue;
mod plan;
mod pretraining;
mod report;
mod results;
mod sentiment;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cmd::compute::ThreadArgs;
use crate::fail::Hinted;
use crate::stop;
use plan::Plan;
use results::Results;

/// Pre-train, fine-tune, compare and chat on bundled text, in minutes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for all results
    #[arg(long, default_value = "runs/quickstart")]
    out: PathBuf,
    /// Approximate duration on this machine [default: 300]
    #[arg(long)]
    seconds: Option<f64>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object with the results at the end, nothing else
    #[arg(long)]
    json: bool,
    /// Print lines instead of the live view of a terminal
    #[arg(long, conflicts_with = "json")]
    plain: bool,
}

/// State that the stages share.
struct Quickstart {
    out: PathBuf,
    plan: Plan,
    results: Results,
    json: bool,
    plain: bool,
}

impl Quickstart {
    fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }
}

/// Whether a stage ran to its end or was interrupted.
#[derive(PartialEq, Eq)]
enum Stage {
    Done,
    Interrupted,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let seconds = args.seconds.unwrap_or(plan::SECONDS);
    if !(seconds.is_finite() && seconds >= 10.0) {
        let found = format!("--seconds is {seconds}, expected 10 or more");
        return Err(Hinted::error(found, format!("the default is {}", plan::SECONDS)));
    }
    args.threads.apply();
    stop::on_signals();
    let start = Instant::now();
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("creating {}", args.out.display()))?;
    let plan = Plan::load_or_make(&args.out.join("plan.json"), seconds)?;
    if args.seconds.is_some_and(|seconds| seconds != plan.seconds) {
        eprintln!(
            "warning: --seconds {seconds} changes nothing: the quickstart in {} is planned for {} \
             s; another --out begins a new one",
            args.out.display(),
            plan.seconds
        );
    }
    let results = Results::open(&args.out.join("results.jsonl"))?;
    let (out, json, plain) = (args.out.clone(), args.json, args.plain);
    let mut quickstart = Quickstart { out, plan, results, json, plain };
    quickstart.say(&quickstart.plan.to_string());
    let stages: [fn(&mut Quickstart) -> Result<Stage>; 4] =
        [corpus::write, pretraining::run, sentiment::run, dialogue::run];
    for stage in stages {
        if stage(&mut quickstart)? == Stage::Interrupted || stop::stopped() {
            quickstart.say(&format!("interrupted; all is saved in {}", args.out.display()));
            let command = format!("lehr quickstart --out {}", args.out.display());
            quickstart.say(&format!("continue with: {command}"));
            if args.json {
                println!("{}", json!({ "interrupted": true, "continue": command }));
            }
            return Ok(stop::exit_code());
        }
    }
    report::finish(&mut quickstart, start.elapsed().as_secs_f64())?;
    Ok(ExitCode::SUCCESS)
}
