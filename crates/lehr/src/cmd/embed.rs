//! `lehr embed`

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use lehr_data::{Part, ReadOptions, Reading, read_documents};
use lehr_infer::{Embedder, Pooling, resolve_model};
use lehr_model::io::{TensorFile, write_parts};
use lehr_tensor::Tensor;
use serde_json::{Value, json};

use super::compute::{DeviceArgs, ThreadArgs};
use crate::fail::Hinted;
use crate::output;

/// Turn texts into vectors that represent their meaning.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Text (repeatable) [default: each line of standard input]
    #[arg(short, long, conflicts_with = "data")]
    text: Vec<String>,
    /// File or folder of texts: .txt .md .jsonl .json .csv .tsv, also .gz and .zst
    #[arg(long)]
    data: Option<PathBuf>,
    /// Write the vectors to this file: .safetensors ("embeddings", texts × numbers; ids as JSON in
    /// its metadata) or .jsonl
    #[arg(long)]
    out: Option<PathBuf>,
    /// Text to put before each text [default: from the model's folder]
    #[arg(long)]
    prefix: Option<String>,
    /// Pooling of hidden states into a vector [default: from the model's folder]
    #[arg(long)]
    pooling: Option<PoolingArg>,
    /// Cut texts at this many tokens [default: the model's maximum]
    #[arg(long)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object per text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArg {
    /// The mean of all tokens
    Mean,
    /// The first token
    First,
    /// The last token
    Last,
}

/// Plain text is cut at paragraphs into texts of at least this many bytes, because most embedding
/// models take a few hundred tokens.
const DOCUMENT_BYTES: usize = 400;
/// Most texts in a matrix of similarities that people can read.
const MATRIX_MAX: usize = 10;
/// Texts embedded between two updates of the progress bar.
const GROUP: usize = 512;

struct Text {
    /// Source of the text, or its number if it came from the command line.
    id: String,
    text: String,
}

/// Destination of the vectors.
enum Output<'a> {
    Matrix,
    JsonLines,
    Safetensors(&'a Path),
    JsonLinesFile(&'a Path),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.threads.apply();
    let ending = args.out.as_deref().map(|out| (out, out.extension().and_then(|e| e.to_str())));
    let output = match ending {
        Some((out, Some("safetensors"))) => Output::Safetensors(out),
        Some((out, Some("jsonl"))) => Output::JsonLinesFile(out),
        Some((out, _)) => {
            return Err(Hinted::error(
                format!(
                    "--out is {}, expected a name that ends in .safetensors or .jsonl",
                    out.display()
                ),
                "safetensors holds one matrix of numbers; jsonl one object per text",
            ));
        }
        None if args.json => Output::JsonLines,
        None => Output::Matrix,
    };
    if let Some(out) = &args.out {
        let model = resolve_model(&args.model)?;
        let read = [args.data.as_deref(), Some(model.as_path())];
        output::check(out, &read.into_iter().flatten().collect::<Vec<_>>())?;
    }
    let embedder = embedder(args)?;
    let texts = texts(args)?;
    if matches!(output, Output::Matrix) && texts.len() > MATRIX_MAX {
        return Err(Hinted::error(
            format!(
                "{} texts are too many for a matrix of similarities, which shows at most \
                 {MATRIX_MAX}",
                texts.len()
            ),
            "give --json, or --out vectors.safetensors",
        ));
    }
    let vectors = embed(&embedder, &texts)?;
    match output {
        Output::Matrix => print_matrix(&embedder, &texts, &vectors),
        Output::JsonLines => records(&texts, &vectors).for_each(|record| println!("{record}")),
        Output::Safetensors(out) => {
            // Documents of white space only have no vector, so each row has an id.
            let ids = json!(texts.iter().map(|text| &text.id).collect::<Vec<_>>()).to_string();
            let metadata = [("ids", ids.as_str())];
            let file = TensorFile::new(vec![("embeddings".to_owned(), vectors)], &metadata)?;
            write_parts(out, file.parts())?;
        }
        Output::JsonLinesFile(out) => {
            let mut file = output::Output::create(out, &[])?;
            let mut lines = records(&texts, &vectors);
            let written = lines.try_for_each(|record| writeln!(file, "{record}"));
            match written {
                Ok(()) => file.finish()?,
                Err(error) => {
                    file.discard();
                    return Err(error).with_context(|| format!("writing {}", out.display()));
                }
            }
        }
    }
    if let Some(out) = &args.out {
        let (n, d) = (texts.len(), embedder.dim());
        if args.json {
            println!("{}", json!({ "texts": n, "dim": d, "out": out.display().to_string() }));
        } else {
            println!("{n} vectors of {d} numbers in {}", out.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn embedder(args: &Args) -> Result<Embedder> {
    let mut embedder = Embedder::open(&args.model)?;
    args.device.place(embedder.model())?;
    crate::ui::warn(embedder.tokenizer().warnings());
    if let Some(prefix) = &args.prefix {
        embedder = embedder.with_prefix(prefix);
    }
    if let Some(max_tokens) = args.max_tokens {
        let limit = embedder.model().spec().max_positions;
        if max_tokens == 0 {
            let found = "--max-tokens is 0, expected at least 1";
            return Err(Hinted::error(found, "leave it out for the model's maximum"));
        }
        if max_tokens > limit {
            eprintln!(
                "warning: --max-tokens {max_tokens} is more than the model's context of {limit}, \
                 which is used"
            );
        }
        embedder = embedder.with_max_tokens(max_tokens);
    }
    Ok(match args.pooling {
        None => embedder,
        Some(PoolingArg::Mean) => embedder.with_pooling(Pooling::Mean),
        Some(PoolingArg::First) => embedder.with_pooling(Pooling::First),
        Some(PoolingArg::Last) => embedder.with_pooling(Pooling::Last),
    })
}

fn texts(args: &Args) -> Result<Vec<Text>> {
    if let Some(path) = &args.data {
        let reading = Reading::new(Part::All, false);
        let document_bytes = DOCUMENT_BYTES;
        let options =
            ReadOptions { document_bytes, reading: reading.clone(), ..ReadOptions::default() };
        let documents = read_documents(path, &options)?.into_iter();
        reading.take_notes().iter().for_each(|note| eprintln!("{note}"));
        return Ok(documents.map(|d| Text { id: d.id, text: d.text }).collect());
    }
    let texts = match args.text.is_empty() {
        false => args.text.clone(),
        true => {
            let lines = std::io::stdin().lock().lines();
            lines.collect::<std::io::Result<_>>().context("reading a text")?
        }
    };
    if texts.is_empty() {
        return Err(Hinted::error(
            "there is no text",
            "give -t TEXT, --data FILE or lines of text",
        ));
    }
    let numbered = texts.into_iter().enumerate();
    Ok(numbered.map(|(i, text)| Text { id: i.to_string(), text }).collect())
}

/// Computes the vectors of all texts, `[n, D]`, with a progress bar on a terminal.
fn embed(embedder: &Embedder, texts: &[Text]) -> Result<Tensor> {
    let bar = match std::io::stderr().is_terminal() && texts.len() > GROUP {
        true => ProgressBar::new(texts.len() as u64),
        false => ProgressBar::hidden(),
    };
    let form = "{bar:30} {pos}/{len} texts  {per_sec}  {eta} left";
    bar.set_style(ProgressStyle::with_template(form)?);
    let (mut values, mut n_cut) = (Vec::new(), 0);
    for group in texts.chunks(GROUP) {
        let views: Vec<&str> = group.iter().map(|text| text.text.as_str()).collect();
        let embeddings = embedder.embed(&views)?;
        check_numbers(group, &embeddings.vectors)?;
        values.extend_from_slice(embeddings.vectors.data());
        n_cut += embeddings.cut.len();
        bar.inc(group.len() as u64);
    }
    bar.finish_and_clear();
    if n_cut > 0 {
        let (n, limit) = (texts.len(), embedder.max_tokens());
        eprintln!(
            "warning: {n_cut} of {n} texts are longer than {limit} tokens; their ends are cut"
        );
    }
    Ok(Tensor::from_slice(&values, [texts.len(), embedder.dim()])?)
}

/// An error if a vector holds something that is no number.
fn check_numbers(texts: &[Text], vectors: &Tensor) -> Result<()> {
    let mut rows = vectors.data().chunks_exact(vectors.shape().last_dim());
    match rows.position(|row| row.iter().any(|x| !x.is_finite())) {
        None => Ok(()),
        Some(index) => Err(Hinted::error(
            format!("the vector of text {} has NaN or infinite numbers", texts[index].id),
            "the weights are damaged, or the computation overflows: try --dtype f32",
        )),
    }
}

fn records<'a>(texts: &'a [Text], vectors: &'a Tensor) -> impl Iterator<Item = Value> + 'a {
    let rows = vectors.data().chunks_exact(vectors.shape().last_dim());
    texts.iter().zip(rows).enumerate().map(|(index, (text, vector))| {
        json!({ "index": index, "id": text.id, "text": text.text, "embedding": vector })
    })
}

/// Cosines of all pairs, with the beginning of each text.
fn print_matrix(embedder: &Embedder, texts: &[Text], vectors: &Tensor) {
    let rows: Vec<_> = vectors.data().chunks_exact(embedder.dim()).collect();
    let pooled = match embedder.pooling() {
        Pooling::Mean => "the mean of all tokens",
        Pooling::First => "the first token",
        Pooling::Last => "the last token",
    };
    println!("cosine similarity of vectors of {} numbers, {pooled}", embedder.dim());
    let numbers: String = (1..=texts.len()).map(|n| format!("{n:>6}")).collect();
    println!("  {numbers}");
    for (n, (text, row)) in texts.iter().zip(&rows).enumerate() {
        let cosine = |other: &&[f32]| row.iter().zip(*other).map(|(a, b)| a * b).sum::<f32>();
        let cosines: String = rows.iter().map(|other| format!("{:>6.2}", cosine(other))).collect();
        println!("{:>2}{cosines}  {}", n + 1, beginning(&text.text));
    }
    if texts.len() == 1 {
        println!("give another text to compare it with, or --json for the numbers");
    }
}

/// Returns the first words of a text, on one line.
fn beginning(text: &str) -> String {
    /// Characters shown.
    const SHOWN: usize = 48;
    let words: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}
