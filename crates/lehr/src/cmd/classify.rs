//! `lehr classify`

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use super::compute::DeviceArgs;
use crate::fail::Hinted;
use anyhow::{Context, Result};
use lehr_infer::{check_ids, check_vocabulary, resolve_model, tokenizer_of};
use lehr_model::{Classifier, Tokens};
use lehr_tensor::{Tensor, no_grad};
use lehr_tokenizer::Tokenizer;
use serde_json::json;

/// Label texts with a fine-tuned classifier.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory or folder of a classifier
    model: PathBuf,
    /// Text to label (repeatable) [default: each line of standard input]
    #[arg(short, long)]
    text: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object per text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let dir = resolve_model(&args.model)?;
    let mut classifier = Classifier::load(&dir)?;
    let tokenizer = tokenizer_of(&dir)?;
    if let Some(warning) = check_vocabulary(&dir, &tokenizer, classifier.model())? {
        classifier.model_mut().warn(warning);
    }
    args.device.place(classifier.model())?;
    let label = |text: &str| label(&classifier, &tokenizer, text, args.json);
    for text in &args.text {
        label(text)?;
    }
    if args.text.is_empty() {
        for line in std::io::stdin().lock().lines() {
            label(&line.context("reading a text")?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn label(classifier: &Classifier, tokenizer: &Tokenizer, text: &str, json: bool) -> Result<()> {
    let limit = classifier.model().spec().max_positions;
    let mut framed = match classifier.ends_texts() {
        true => tokenizer.encode_ended(&[text], limit)?.remove(0),
        false => tokenizer.encode_framed(&[text], limit)?.remove(0),
    };
    if framed.ids.is_empty() {
        framed.ids.push(tokenizer.end_of_document()?);
    }
    check_ids(&framed.ids, tokenizer, classifier.model())?;
    if framed.is_cut {
        eprintln!(
            "warning: the text is longer than the model's context of {limit}; its end is cut"
        );
    }
    let ids: Vec<i32> = framed.ids.into_iter().map(|id| id as i32).collect();
    let end = Tensor::from_ids(&[ids.len() as i32 - 1], [1])?;
    let tokens = Tokens::new(&ids, 1, 0)?;
    let probabilities = no_grad(|| -> Result<Vec<f32>> {
        Ok(classifier.logits(&tokens, &end)?.softmax()?.to_host()?.to_vec())
    })?;
    if probabilities.iter().any(|p| !p.is_finite()) {
        return Err(Hinted::error(
            format!(
                "labelling {text:?}: the probabilities are {probabilities:?}, expected numbers"
            ),
            "the weights are damaged, or the computation overflows: try --dtype f32",
        ));
    }
    let mut ranked: Vec<_> = classifier.labels().iter().zip(&probabilities).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(a.1));
    if json {
        let all: serde_json::Map<_, _> =
            ranked.iter().map(|(label, p)| ((*label).clone(), json!(p))).collect();
        println!("{}", json!({ "text": text, "label": ranked[0].0, "probabilities": all }));
    } else {
        println!("{}\t{:.3}\t{text}", ranked[0].0, ranked[0].1);
    }
    Ok(())
}
