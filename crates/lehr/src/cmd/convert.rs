//! `lehr convert`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use lehr_infer::convert::{
    Conversion, Part, Proof, SAMPLE, Target, convert, convert_with_adapter, remove_partial,
};
use lehr_model::io::FloatFormat;
use lehr_model::io::gguf::FileType;
use serde_json::json;

use super::compute::{ThreadArgs, warn_of};
use crate::fail::Hinted;
use crate::stop;

/// Write a model in another format, and prove that the copy computes the same.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Target: a GGUF file if the name ends in .gguf, otherwise a Hugging Face folder
    #[arg(long)]
    to: PathBuf,
    /// Format of the weights. Folders: f32, f16, bf16 [default: bf16].
    /// GGUF: also q8_0, q6_k, q5_k_m, q4_k_m, q4_0 [default: f16]
    #[arg(long)]
    format: Option<String>,
    /// Text file for comparing source and copy [default: a few built-in sentences]
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// LoRA adapter to merge into the weights: a folder in the format of PEFT, or a run
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.threads.apply();
    let target = target(&args.to, args.format.as_deref())?;
    let sample = match &args.sample {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("reading the sample {}", path.display()))?,
        None => SAMPLE.to_owned(),
    };
    remove_on_interrupt(&args.to);
    let start = Instant::now();
    let done = match &args.adapter {
        None => convert(&args.model, &args.to, target, &sample)?,
        Some(adapter) => convert_with_adapter(&args.model, adapter, &args.to, target, &sample)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    warn_of(&done.warnings);
    if args.json {
        println!("{}", to_json(&done, target, seconds));
    } else {
        show(&done, args, target, seconds);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a signal remove the unfinished copy before it ends the program.
fn remove_on_interrupt(to: &Path) {
    if std::fs::symlink_metadata(to).is_ok() {
        return;
    }
    let to = to.to_owned();
    stop::before_exit(move || {
        // A file may be created while the folder is being removed.
        let _ = (0..3).find(|_| remove_partial(&to).is_ok());
        eprintln!("\nstopped; nothing was written");
    });
}

/// Derives the target from its name and the requested format.
fn target(to: &Path, format: Option<&str>) -> Result<Target> {
    let is_gguf = to.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let asked = format.map(str::to_lowercase);
    let floats = [FloatFormat::F32, FloatFormat::F16, FloatFormat::BF16];
    let found = if is_gguf {
        let name = asked.as_deref().unwrap_or("f16");
        FileType::ALL.into_iter().find(|f| f.name() == name).map(Target::Gguf)
    } else {
        let name = asked.as_deref().unwrap_or("bf16");
        floats.into_iter().find(|f| f.name() == name).map(Target::Folder)
    };
    found.ok_or_else(|| {
        let found = format.unwrap_or_default();
        let known: Vec<_> = match is_gguf {
            true => FileType::ALL.map(FileType::name).to_vec(),
            false => floats.map(FloatFormat::name).to_vec(),
        };
        let place = if is_gguf { "a GGUF file" } else { "a folder" };
        Hinted::error(
            format!("convert: --format is {found}, expected for {place} {}", known.join(", ")),
            "quantised formats need a name that ends in .gguf",
        )
    })
}

fn show(done: &Conversion, args: &Args, target: Target, seconds: f64) {
    let formats: Vec<_> = done.formats.iter().map(|(name, n)| format!("{n} of {name}")).collect();
    println!(
        "{}: {:.1} MB, tensors: {}, {seconds:.1} s",
        args.to.display(),
        done.n_bytes as f64 / 1e6,
        formats.join(", "),
    );
    if !done.copied.is_empty() {
        println!("copied as they are: {}", counted("files", &done.copied));
    }
    for left in &done.left_out {
        println!("not kept: {}", counted(left.what, &left.names));
    }
    println!("proof, on {}: {}", tokens(&done.proof), figures(&done.proof, target));
}

/// Names things, with their number.
fn counted(what: &str, names: &[String]) -> String {
    format!("{} {what}: {}", names.len(), names.join(", "))
}

fn tokens(proof: &Proof) -> String {
    format!("{} tokens, with the copy read back", proof.n_tokens)
}

fn figures(proof: &Proof, target: Target) -> String {
    let what = if proof.kl.is_some() { "logits" } else { "hidden states" };
    let mut text = format!(
        "relative error of {what} {:.2e} (bound for {} {})",
        proof.error,
        target.name(),
        proof.bounds.error
    );
    if let (Some(kl), Some(top1)) = (proof.kl, proof.top1) {
        text += &format!(
            ", KL divergence {kl:.2e} nats ({:.1e}), same first choice {:.1} % ({:.0} %)",
            proof.bounds.kl,
            100.0 * top1,
            100.0 * proof.bounds.top1
        );
    }
    if let Some(error) = proof.probe_error {
        text += &format!(", {error:.2e} on added tokens and several scripts");
    }
    text += match proof.same_ids {
        Some(_) => ", the tokenizer gives the same ids",
        None => "; there is no tokenizer to compare",
    };
    let parts: Vec<_> = proof.compared.iter().map(|part| part.name()).collect();
    if parts.is_empty() { text } else { text + &format!("; same {}", parts.join(", ")) }
}

fn to_json(done: &Conversion, target: Target, seconds: f64) -> serde_json::Value {
    let Conversion { n_bytes, formats, copied, left_out, proof, .. } = done;
    let left_out: serde_json::Map<_, _> =
        left_out.iter().map(|left| (left.what.to_owned(), json!(left.names))).collect();
    let compared: Vec<_> = proof.compared.iter().map(|part: &Part| part.name()).collect();
    json!({
        "format": target.name(), "bytes": n_bytes, "tensors": formats, "copied": copied,
        "left_out": left_out, "seconds": seconds, "sample_tokens": proof.n_tokens,
        "error": proof.error, "probe_error": proof.probe_error,
        "bounds": {
            "error": proof.bounds.error, "kl": proof.bounds.kl, "top1": proof.bounds.top1,
        },
        "kl": proof.kl, "top1": proof.top1, "same_ids": proof.same_ids,
        "compared": compared, "passed": proof.passed(),
    })
}
