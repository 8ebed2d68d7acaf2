//! `lehr eval`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use lehr_eval::{Windows, perplexity};
use lehr_infer::Loaded;
use serde_json::json;

use super::compute::UseArgs;
use crate::fail::Hinted;

/// Evaluate how well a model predicts a text: perplexity and bits per byte.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Text file, UTF-8
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Window length in tokens [default: 1024, or the model's context]
    #[arg(long)]
    window: Option<usize>,
    /// Tokens from one window to the next [default: half a window]
    #[arg(long)]
    stride: Option<usize>,
    #[command(flatten)]
    compute: UseArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    let path = args.data.display();
    let bytes = std::fs::read(&args.data).with_context(|| format!("reading {path}"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let reason = format!("reading {path}: byte {at} is not UTF-8");
        Hinted::error(reason, "convert the text to UTF-8 first, for instance with iconv")
    })?;
    let loaded = Loaded::open(&args.model, args.compute.weights)?;
    args.compute.place(&loaded.model)?;
    crate::ui::warn(loaded.tokenizer.warnings());
    let fitted = Windows::of_context(loaded.model.spec().max_positions);
    let window = args.window.unwrap_or(fitted.window);
    let windows = Windows { window, stride: args.stride.unwrap_or(window.div_ceil(2)) };
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let start = Instant::now();
    let found = perplexity(&loaded, &text, windows, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        println!(
            "{}",
            json!({
                "perplexity": found.perplexity(), "bits_per_byte": found.bits_per_byte(),
                "nll": found.nll, "tokens": found.n_tokens, "bytes": found.n_bytes,
                "windows": found.n_windows, "window": windows.window, "stride": windows.stride,
                "weights_bytes": loaded.model.params().n_bytes(), "seconds": seconds,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "perplexity {:.4}, {:.4} bits per byte: {} tokens for {} bytes, {} windows of {} every \
         {}, {seconds:.1} s",
        found.perplexity(),
        found.bits_per_byte(),
        found.n_tokens,
        found.n_bytes,
        found.n_windows,
        windows.window,
        windows.stride,
    );
    Ok(ExitCode::SUCCESS)
}
