//! `lehr tag`

mod evaluate;
mod model;

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lehr_data::entities::{TaggedText, words_of};
use lehr_data::{
    DatasetKind, Document, Part, ReadOptions, Reading, guess_kind_of, read_documents, read_tagged,
};
use serde_json::{Value, json};

pub(crate) use self::evaluate::evaluate;
pub(crate) use self::model::{EntityModel, Found};
use super::compute::{DeviceArgs, ThreadArgs};
use crate::fail::Hinted;
use crate::output::Output;

/// Texts that are tagged at a time.
const GROUP: usize = 256;

/// Find the named entities of texts with a fine-tuned model.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory or folder of a model that tags words
    model: PathBuf,
    /// Text (repeatable) [default: each line of standard input]
    #[arg(short, long, conflicts_with = "data")]
    text: Vec<String>,
    /// File or folder of texts, or of words and tags (CoNLL), whose tags are not read
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Field of records that holds the text
    #[arg(long, value_name = "FIELD", default_value = "text", conflicts_with = "text")]
    text_field: String,
    /// Write to this file instead: .jsonl, or .conll with a word and its tag on each line
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object per text
    #[arg(long)]
    json: bool,
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    Json,
    Conll,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.threads.apply();
    let form = form(args)?;
    let model = EntityModel::open(&args.model, &args.device)?;
    let mut file = match &args.out {
        None => None,
        Some(path) => {
            let data = args.data.as_deref();
            let read: Vec<_> = std::iter::once(args.model.as_path()).chain(data).collect();
            Some(Output::create(path, &read)?)
        }
    };
    let (mut n_untagged, mut n_cut) = (0, 0);
    let mut write = |texts: &[TaggedText]| -> Result<()> {
        let parts: Vec<_> = texts.iter().map(TaggedText::parts).collect();
        for (text, found) in texts.iter().zip(model.find(&parts)?) {
            n_untagged += found.n_untagged;
            n_cut += found.n_cut;
            let lines = shown(text, &found, &model, form);
            match &mut file {
                Some(file) => file.write_all(lines.as_bytes()).context("writing the entities")?,
                None => print!("{lines}"),
            }
        }
        Ok(())
    };
    let texts = match &args.data {
        Some(_) => texts_of(args)?,
        None => args.text.iter().map(|text| plain(text.clone())).collect(),
    };
    for group in texts.chunks(GROUP) {
        write(group)?;
    }
    if args.data.is_none() && args.text.is_empty() {
        for line in std::io::stdin().lock().lines() {
            write(&[plain(line.context("reading a text")?)])?;
        }
    }
    Found::warn(n_untagged, n_cut);
    file.map_or(Ok(()), Output::finish)?;
    Ok(ExitCode::SUCCESS)
}

fn form(args: &Args) -> Result<Form> {
    let ending = args.out.as_ref().map(|path| path.extension().unwrap_or_default());
    match ending.map(|ending| ending.to_string_lossy().into_owned()).as_deref() {
        None if args.json => Ok(Form::Json),
        None => Ok(Form::Lines),
        Some("jsonl") => Ok(Form::Json),
        Some("conll") if !args.json => Ok(Form::Conll),
        Some(other) => {
            let found = format!(
                "--out ends in {other:?}{}",
                if args.json { ", and --json is given" } else { "" }
            );
            Err(Hinted::error(found, "end it in .jsonl, or without --json in .conll"))
        }
    }
}

/// Reads the texts of `--data`.
fn texts_of(args: &Args) -> Result<Vec<TaggedText>> {
    let Some(data) = &args.data else { return Ok(Vec::new()) };
    let reading = Reading::new(Part::Evaluation, false);
    let texts = match guess_kind_of(data, Part::Evaluation) {
        Ok(DatasetKind::Entities) => {
            if args.text_field != "text" {
                let found =
                    format!("{} has words and tags, and --text-field is given", data.display());
                return Err(Hinted::error(
                    found,
                    "leave it out: the fields of such data are known",
                ));
            }
            read_tagged(data, &reading)?
        }
        // The text may be in a field of another name.
        Ok(_) | Err(lehr_data::Error::UnknownKind { .. }) => {
            let options = ReadOptions {
                text_field: args.text_field.clone(),
                document_bytes: 0,
                reading: reading.clone(),
            };
            let documents = read_documents(data, &options)?;
            let text = |document: Document| TaggedText { id: document.id, ..plain(document.text) };
            documents.into_iter().map(text).collect()
        }
        Err(error) => return Err(error.into()),
    };
    reading.take_notes().iter().for_each(|note| eprintln!("{note}"));
    Ok(texts)
}

fn plain(text: String) -> TaggedText {
    let words = words_of(&text);
    TaggedText::new(text, words, Vec::new())
}

/// Returns the lines for one text.
fn shown(text: &TaggedText, found: &Found, model: &EntityModel, form: Form) -> String {
    match form {
        Form::Lines => {
            let mut lines = format!("{}\n", text.text.trim_end());
            for (entity, probability) in &found.entities {
                let (label, words) = (&entity.label, text.text_of(entity));
                lines += &format!("  {label}\t{probability:.3}\t{words}\n");
            }
            lines
        }
        Form::Json => format!("{}\n", record(text, found)),
        Form::Conll => {
            let names = model.tags().labels().names();
            let line = |(word, class): (&std::ops::Range<usize>, &usize)| {
                format!("{}\t{}\n", &text.text[word.clone()], names[*class])
            };
            text.words.iter().zip(&found.classes).map(line).collect::<String>() + "\n"
        }
    }
}

/// The text with its entities; offsets count characters.
fn record(text: &TaggedText, found: &Found) -> Value {
    // The entities are in order, so the text is gone through once.
    let (mut bytes, mut characters) = (0, 0);
    let mut count_to = |end: usize| {
        characters += text.text[bytes..end].chars().count();
        bytes = end;
        characters
    };
    let entities: Vec<Value> = found
        .entities
        .iter()
        .map(|(entity, probability)| {
            let range = text.bytes_of(entity);
            json!({
                "start": count_to(range.start), "end": count_to(range.end),
                "label": entity.label, "text": text.text_of(entity), "probability": probability,
            })
        })
        .collect();
    let mut record = json!({ "text": text.text, "entities": entities });
    if !text.id.is_empty() {
        record["id"] = text.id.as_str().into();
    }
    record
}
