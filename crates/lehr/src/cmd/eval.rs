//! `lehr eval`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use lehr_data::source::documents;
use lehr_data::{LabelledFields, Part, ReadOptions, Reading};
use lehr_eval::{Perplexity, PerplexityError, Scorer, Windows};
use lehr_infer::resolve_model;
use lehr_model::{Classifier, Tagger, Weights};
use serde_json::json;

use super::compute::UseArgs;
use super::{classify, tag};
use crate::fail::Hinted;

/// Evaluate how well a model predicts a text: perplexity and bits per byte. A classifier is
/// compared with the labels of the data, a model that tags words with its tags: accuracy,
/// precision, recall and F1.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Text, a file or folder: .txt .md .jsonl .json .csv .tsv, also .gz and .zst; a file with
    /// another ending is plain text. Each file of text and each record is scored by itself
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Field of records that holds the text
    #[arg(long, value_name = "FIELD", default_value = "text")]
    text_field: String,
    /// Field of records that holds the label, for classifiers
    #[arg(long, value_name = "FIELD", default_value = "label")]
    label_field: String,
    /// Leave out records that cannot be read or used, and count them
    #[arg(long)]
    skip_bad: bool,
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

/// The sum over all documents.
#[derive(Default)]
struct Total {
    sum: Perplexity,
    n_documents: u64,
    /// Documents without a token to predict, and their tokens.
    n_short: u64,
    short_tokens: usize,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    let Args { data, skip_bad, json, .. } = args;
    let device = &args.compute.device;
    match resolve_model(&args.model) {
        Ok(dir) if Tagger::is_tagger(&dir) => {
            check_task(args, "tags words")?;
            tag::evaluate(&dir, data, *skip_bad, device, *json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(dir) if Classifier::is_classifier(&dir) => {
            check_task(args, "classifies texts")?;
            let (text, label) = (args.text_field.clone(), args.label_field.clone());
            let fields = LabelledFields { text, label };
            classify::evaluate(&dir, data, &fields, *skip_bad, device, *json)?;
            return Ok(ExitCode::SUCCESS);
        }
        // What is wrong with it is said when it is opened.
        _ => {}
    }
    if args.label_field != "label" {
        let found = format!("{} has no labels, and --label-field is given", args.model.display());
        return Err(Hinted::error(found, "leave it out, or evaluate a classifier"));
    }
    // Bad data should fail before a large model is opened.
    let options = options(args);
    documents(&args.data, &options)?;
    let loaded = args.compute.open(&args.model)?;
    args.compute.place(&loaded.model)?;
    crate::ui::warn(loaded.tokenizer.warnings());
    let fitted = Windows::of_context(loaded.model.spec().max_positions);
    let window = args.window.unwrap_or(fitted.window);
    let windows = Windows { window, stride: args.stride.unwrap_or(window.div_ceil(2)) };
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.set_style(ProgressStyle::with_template("{spinner} {pos} windows  {per_sec}")?);
    let start = Instant::now();
    let total = score(&args.data, &options, &Scorer::new(&loaded, windows)?, &bar)?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    options.reading.take_notes().iter().for_each(|note| eprintln!("{note}"));
    let Total { sum, n_documents, n_short, .. } = total;
    if n_short > 0 {
        eprintln!("warning: {n_short} documents are not scored: they have one token");
    }
    if args.json {
        println!(
            "{}",
            json!({
                "perplexity": sum.perplexity(), "bits_per_byte": sum.bits_per_byte(),
                "nll": sum.nll, "tokens": sum.n_tokens, "bytes": sum.n_bytes,
                "documents": n_documents, "not_scored": n_short,
                "windows": sum.n_windows, "window": windows.window, "stride": windows.stride,
                "weights_bytes": loaded.model.params().n_bytes(), "seconds": seconds,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "perplexity {:.4}, {:.4} bits per byte: {} tokens for {} bytes in {n_documents} documents, \
         {} windows of {} every {}, {seconds:.1} s",
        sum.perplexity(),
        sum.bits_per_byte(),
        sum.n_tokens,
        sum.n_bytes,
        sum.n_windows,
        windows.window,
        windows.stride,
    );
    Ok(ExitCode::SUCCESS)
}

/// Refuses options that a model for a task (`what` it does) has no use for.
fn check_task(args: &Args, what: &str) -> Result<()> {
    let tags = what == "tags words";
    let given = [
        ("--window", args.window.is_some()),
        ("--stride", args.stride.is_some()),
        ("--text-field", tags && args.text_field != "text"),
        ("--label-field", tags && args.label_field != "label"),
        ("--weights", args.compute.weights != Weights::AsStored),
        ("--adapter", args.compute.adapter.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((name, _)) => {
            let found = format!("{} {what}, and {name} is given", args.model.display());
            Err(Hinted::error(found, format!("leave {name} out: such a model reads whole texts")))
        }
    }
}

fn options(args: &Args) -> ReadOptions {
    ReadOptions {
        text_field: args.text_field.clone(),
        // A file of text is scored whole, so only its start has nothing before it.
        document_bytes: 0,
        reading: Reading::new(Part::Evaluation, args.skip_bad),
    }
}

fn score(data: &Path, options: &ReadOptions, scorer: &Scorer, bar: &ProgressBar) -> Result<Total> {
    let mut total = Total::default();
    for document in documents(data, options)? {
        match scorer.score(&document?.text, &mut |_, _| bar.inc(1)) {
            Ok(found) => {
                total.sum += found;
                total.n_documents += 1;
            }
            Err(PerplexityError::TextTooShort { found }) => {
                total.n_short += 1;
                total.short_tokens += found;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if total.n_documents == 0 {
        return Err(PerplexityError::TextTooShort { found: total.short_tokens }.into());
    }
    Ok(total)
}
