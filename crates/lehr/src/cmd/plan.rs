//! `lehr plan`: what `lehr pretrain` would do, without doing it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_train::{Fitted, Fixed};
use serde_json::json;

use super::compute::ThreadArgs;
use super::pretrain::{Dial, Scaling};
use super::train::Common;

/// Show what pre-training on a text would be: model, tokens, time and memory. A few steps are made
/// to measure them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Training data, a file or folder: .txt .md .jsonl .json .csv .tsv, also .gz and .zst
    #[arg(long)]
    data: PathBuf,
    /// Duration in minutes [default: 5, or without a limit with --depth]
    #[arg(long)]
    minutes: Option<f64>,
    /// Size of the model, as its number of blocks
    #[arg(long, value_name = "BLOCKS")]
    depth: Option<u32>,
    #[command(flatten)]
    scaling: Scaling,
    /// Override a setting of the recipe, as in --set model.kind=llama (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Leave out records that cannot be read or used, and count them
    #[arg(long)]
    skip_bad: bool,
    /// auto (a GPU if one is usable), cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Type of activations: auto, f32 or bf16 [default: auto]
    #[arg(long)]
    dtype: Option<DTypeChoice>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Bytes of a parameter in a checkpoint: its value and the two moments.
const CHECKPOINT_BYTES: u64 = 12;

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let Args { data, minutes, depth, scaling, sets, skip_bad, device, dtype, threads, json } = args;
    let dial = Dial { minutes, depth, scaling };
    threads.apply();
    let common = Common {
        recipe: None,
        data: Some(data.clone()),
        out: None,
        resume: None,
        accept_changed_data: false,
        sets,
        skip_bad,
        seed: None,
        device,
        dtype,
        threads,
        // What the planner has to say of the data goes to standard error.
        dry_run: true,
        json,
        plain: true,
    };
    common.check_paths()?;
    let sets = dial.sets(&common)?;
    let fixed = Fixed::new(&sets)?;
    let out = common.out_dir(&data, "", &fixed);
    let fitted = dial.fit(&common, (&data, &out), &fixed)?;
    fitted.notes.iter().for_each(|note| eprintln!("{note}"));
    if json {
        print_json(&fitted);
    } else {
        print_table(&fitted, &data);
    }
    Ok(ExitCode::SUCCESS)
}

/// Tokens of a step and of the run.
fn tokens(fitted: &Fitted) -> (u64, u64) {
    let train = &fitted.recipe.train;
    let step = (train.batch_size * train.seq_len) as u64 * train.grad_accumulation;
    (step, step * train.steps)
}

fn print_table(fitted: &Fitted, data: &Path) {
    fitted.reasons.iter().for_each(|reason| println!("{reason}"));
    println!();
    let line = |name: &str, value: String| println!("{name:22} {value}");
    let (step, all) = tokens(fitted);
    let steps = fitted.recipe.train.steps;
    line("tokens", format!("{:.2} M in {steps} steps of {step}", all as f64 / 1e6));
    if let Some(measured) = fitted.measured {
        let n = measured.n_parameters;
        line("parameters", format!("{:.2} M", n as f64 / 1e6));
        line("memory for tensors", format!("{:.0} MB", measured.memory_bytes as f64 / 1e6));
        line("a checkpoint", format!("{:.0} MB", (n * CHECKPOINT_BYTES) as f64 / 1e6));
    }
    if let Some(seconds) = fitted.prediction.seconds {
        line("steps take", format!("{seconds:.0} s"));
    }
    if let Some(rate) = fitted.prediction.tokens_per_s {
        line("speed", format!("{rate:.0} tokens/s"));
    }
    if let Some(bits) = fitted.prediction.bits_per_byte {
        line("bits per byte", format!("{bits:.3} of held-out text, predicted"));
    }
    println!("\nrecipe: lehr pretrain --data {} … --dry-run", data.display());
}

fn print_json(fitted: &Fitted) {
    let (step, all) = tokens(fitted);
    let plan = json!({
        "reasons": fitted.reasons,
        "steps": fitted.recipe.train.steps,
        "tokens_per_step": step,
        "tokens": all,
        "weights": fitted.prediction.weights,
        "parameters": fitted.measured.map(|m| m.n_parameters),
        "memory_bytes": fitted.prediction.memory_bytes,
        "checkpoint_bytes": fitted.measured.map(|m| m.n_parameters * CHECKPOINT_BYTES),
        "seconds": fitted.prediction.seconds,
        "tokens_per_s": fitted.prediction.tokens_per_s,
        "bits_per_byte": fitted.prediction.bits_per_byte,
        "recipe": fitted.recipe.to_toml(),
    });
    println!("{plan}");
}
