//! `lehr classify`

mod evaluate;
mod model;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use lehr_data::{Document, Part, ReadOptions, Reading, read_documents};
use serde_json::{Map, Value, json};

pub(crate) use self::evaluate::evaluate;
use self::model::{Probabilities, TextClassifier, best};
use super::compute::{DeviceArgs, ThreadArgs};
use crate::fail::Hinted;
use crate::output::Output;

/// Texts that are labelled at a time.
const GROUP: usize = 256;

/// Label texts with a fine-tuned classifier.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory or folder of a classifier
    model: PathBuf,
    /// Text to label (repeatable) [default: each line of standard input]
    #[arg(short, long, conflicts_with = "data")]
    text: Vec<String>,
    /// File or folder of texts: .txt .md .jsonl .json .csv .tsv, also .gz and .zst
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Field of records that holds the text
    #[arg(long, value_name = "FIELD", default_value = "text", conflicts_with = "text")]
    text_field: String,
    /// Write to this file instead: .jsonl, with the other fields of the records, or .csv
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
    Csv,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.threads.apply();
    let form = form(args)?;
    let classifier = TextClassifier::open(&args.model, &args.device)?;
    let mut file = match &args.out {
        None => None,
        Some(path) => {
            let data = args.data.as_deref();
            let read: Vec<&Path> = std::iter::once(args.model.as_path()).chain(data).collect();
            Some(Output::create(path, &read)?)
        }
    };
    let mut print = |text: &str| -> Result<()> {
        match &mut file {
            Some(file) => file.write_all(text.as_bytes()).context("writing the labels")?,
            None => print!("{text}"),
        }
        Ok(())
    };
    let given = match &args.data {
        Some(data) => documents(data, &args.text_field, form)?,
        None => args.text.iter().map(|text| plain(text.clone())).collect(),
    };
    if form == Form::Csv {
        let labels = classifier.labels().iter().map(|label| csv(&format!("p({label})")));
        let names = ["text", "label"].map(str::to_owned).into_iter().chain(labels);
        print(&(names.collect::<Vec<_>>().join(",") + "\n"))?;
    }
    let mut n_cut = 0;
    let mut label = |documents: &[Document]| -> Result<()> {
        let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
        let found = classifier.probabilities(&texts)?;
        n_cut += found.n_cut;
        documents
            .iter()
            .zip(&found.of_texts)
            .try_for_each(|(document, p)| print(&shown(document, p, classifier.labels(), form)))
    };
    given.chunks(GROUP).try_for_each(&mut label)?;
    if args.data.is_none() && args.text.is_empty() {
        for line in std::io::stdin().lock().lines() {
            label(&[plain(line.context("reading a text")?)])?;
        }
    }
    warn_of_cut(n_cut, classifier.tokens_max());
    file.map_or(Ok(()), Output::finish)?;
    Ok(ExitCode::SUCCESS)
}

fn form(args: &Args) -> Result<Form> {
    let ending = args.out.as_ref().map(|path| path.extension().unwrap_or_default());
    match ending.map(|ending| ending.to_string_lossy().into_owned()).as_deref() {
        None if args.json => Ok(Form::Json),
        None => Ok(Form::Lines),
        Some("jsonl") => Ok(Form::Json),
        Some("csv") if !args.json => Ok(Form::Csv),
        Some(other) => {
            let json = if args.json { ", and --json is given" } else { "" };
            let found = format!("--out ends in {other:?}{json}");
            Err(Hinted::error(found, "end it in .jsonl, or without --json in .csv"))
        }
    }
}

/// Reads the texts of a file or folder.
fn documents(data: &Path, text_field: &str, form: Form) -> Result<Vec<Document>> {
    let reading = Reading::new(Part::Evaluation, false);
    let text_field = text_field.to_owned();
    let options = ReadOptions { text_field, document_bytes: 0, reading: reading.clone() };
    let documents = read_documents(data, &options)?;
    // The reader uses the text alone. Records keep their other fields.
    let is_kept = |note: &&String| form == Form::Json && note.starts_with("warning: not used:");
    let notes = reading.take_notes();
    notes.iter().filter(|note| !is_kept(note)).for_each(|note| eprintln!("{note}"));
    Ok(documents)
}

fn plain(text: String) -> Document {
    Document { text, id: String::new(), metadata: Map::new() }
}

fn warn_of_cut(n_cut: usize, limit: usize) {
    if n_cut > 0 {
        eprintln!("warning: {n_cut} texts are longer than {limit} tokens; their ends are cut");
    }
}

/// Returns the line for one text.
fn shown(document: &Document, probabilities: &[f32], labels: &[String], form: Form) -> String {
    let text = &document.text;
    let best = best(probabilities);
    let label = &labels[best];
    match form {
        Form::Lines => {
            let line = text.replace(['\n', '\r'], " ");
            format!("{label}\t{:.3}\t{line}\n", probabilities[best])
        }
        Form::Json => {
            let mut ranked: Vec<_> = labels.iter().zip(probabilities).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(a.1));
            let all: Map<_, _> = ranked.into_iter().map(|(l, p)| (l.clone(), json!(p))).collect();
            let mut record = document.metadata.clone();
            if !document.id.is_empty() {
                record.insert("id".to_owned(), json!(document.id));
            }
            for (name, value) in
                [("text", json!(text)), ("label", json!(label)), ("probabilities", all.into())]
            {
                if let Some(given) = record.insert(name.to_owned(), value) {
                    record.insert(format!("given_{name}"), given);
                }
            }
            format!("{}\n", Value::from(record))
        }
        Form::Csv => {
            let numbers = probabilities.iter().map(ToString::to_string);
            let cells: Vec<_> = [csv(text), csv(label)].into_iter().chain(numbers).collect();
            cells.join(",") + "\n"
        }
    }
}

/// Returns a field of a CSV file, quoted where RFC 4180 asks for it.
fn csv(text: &str) -> String {
    match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
