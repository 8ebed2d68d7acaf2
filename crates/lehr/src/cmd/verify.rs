//! `lehr verify`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use lehr_infer::{Check, resolve_model, verify};
use lehr_model::{Compute, DTypeChoice, DeviceChoice, Model};
use serde_json::json;

use super::compute::warn_of;

/// Compare a model with results of its reference implementation.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// File with the reference's results (input_ids, labels, logits, loss, grad.*, greedy)
    golden: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Type of activations: f32, or on a GPU bf16 or f16; the limits stay those of f32
    #[arg(long, default_value = "f32")]
    dtype: DTypeChoice,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let compute = Compute::choose(args.device, args.dtype)?;
    let place = (compute.device, compute.dtype);
    let model = Model::load(&resolve_model(&args.model)?)?;
    warn_of(&model.warnings());
    let checks = verify(&model, &args.golden, place)?;
    let passed = checks.iter().all(Check::passed);
    if args.json {
        let rows: Vec<_> = checks
            .iter()
            .map(|c| {
                let passed = c.passed();
                json!({ "item": c.item, "error": c.error, "limit": c.limit, "passed": passed })
            })
            .collect();
        println!("{}", json!({ "passed": passed, "checks": rows }));
    } else {
        let width = checks.iter().map(|c| c.item.len()).max().unwrap_or(0);
        for c in &checks {
            let word = if c.passed() { "ok" } else { "FAILED" };
            println!("{word:6}  {:width$}  error {:.2e}  limit {:.0e}", c.item, c.error, c.limit);
        }
        println!(
            "{}",
            if passed { "all equal the reference" } else { "differs from the reference" }
        );
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
