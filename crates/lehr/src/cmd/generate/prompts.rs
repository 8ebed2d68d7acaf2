//! `lehr generate --prompts`: many texts at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use lehr_infer::{BatchGenerator, BatchSize, Generated, Limits, Loaded, Request, Sampling};
use lehr_model::PagedCache;
use serde_json::{Value, json};

use crate::fail::Hinted;

/// A file of prompts, and settings for working on it.
#[derive(clap::Args)]
pub(crate) struct PromptsArgs {
    /// Continue all prompts of a file: a .txt with one per line, or a .jsonl with objects that have
    /// a "prompt". Prints one JSON object per prompt, in order
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// With --prompts: most texts at once
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "prompt")]
    batch: usize,
    /// With --prompts: tokens whose keys and values fit in memory; further texts wait [default:
    /// enough for N whole texts]
    #[arg(long, value_name = "TOKENS", conflicts_with = "prompt")]
    cache_tokens: Option<usize>,
    /// With --prompts: write the objects to this file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    output: Option<PathBuf>,
}

/// Continues all prompts. Each samples with the seed of `sampling` plus its index.
pub(crate) fn run(
    args: &PromptsArgs,
    prompts: &[String],
    loaded: &Loaded,
    sampling: Sampling,
    limits: &Limits,
) -> Result<()> {
    let (model, tokenizer) = (&loaded.model, &loaded.tokenizer);
    let mut requests = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let seed = sampling.seed.wrapping_add(index as u64);
        let (prompt, sampling) = (tokenizer.encode_prompt(prompt)?, Sampling { seed, ..sampling });
        requests.push(Request { prompt, sampling, limits: limits.clone() });
    }
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    let size = BatchSize {
        texts: args.batch.min(requests.len()),
        capacity: longest.saturating_add(limits.max_tokens.unwrap_or(0)).saturating_add(1),
        n_pages: args.cache_tokens.map(PagedCache::pages_for),
    };
    let mut generator = BatchGenerator::new(model, tokenizer, size)?;
    let mut lines = Lines::new(args.output.as_deref())?;
    let start = Instant::now();
    let mut n_tokens = 0;
    generator.generate(&requests, &mut |index, generated| {
        n_tokens += generated.ids.len();
        lines.put(index, object(index, &prompts[index], &generated))
    })?;
    lines.end()?;
    let seconds = start.elapsed().as_secs_f64();
    let (n, rate) = (prompts.len(), n_tokens as f64 / seconds);
    eprintln!("{n} texts, {n_tokens} new tokens in {seconds:.1} s: {rate:.1} tokens/s");
    Ok(())
}

fn object(index: usize, prompt: &str, generated: &Generated) -> Value {
    let finish = format!("{:?}", generated.finish).to_lowercase();
    json!({
        "index": index, "prompt": prompt, "text": generated.text, "finish": finish,
        "n_tokens": generated.ids.len(),
    })
}

/// Output of the objects, in the order of the prompts.
struct Lines {
    to: Box<dyn Write>,
    name: String,
    /// Index of the next prompt to write.
    next: usize,
    /// Objects of later prompts.
    held: BTreeMap<usize, Value>,
    failure: Option<io::Error>,
}

impl Lines {
    /// A file or standard output.
    fn new(path: Option<&Path>) -> Result<Self> {
        let (to, name): (Box<dyn Write>, _) = match path {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::create(path).with_context(|| format!("writing {name}"))?;
                (Box::new(file), name)
            }
            None => (Box::new(io::stdout()), "standard output".to_owned()),
        };
        Ok(Self { to, name, next: 0, held: BTreeMap::new(), failure: None })
    }

    /// Takes the object of prompt `index` and writes all that are next in order.
    fn put(&mut self, index: usize, object: Value) -> ControlFlow<()> {
        self.held.insert(index, object);
        while let Some(object) = self.held.remove(&self.next) {
            let written = self.to.write_all(format!("{object}\n").as_bytes());
            if let Err(error) = written.and_then(|()| self.to.flush()) {
                self.failure = Some(error);
                return ControlFlow::Break(());
            }
            self.next += 1;
        }
        ControlFlow::Continue(())
    }

    /// Returns an error if something was not written.
    fn end(self) -> Result<()> {
        match self.failure {
            Some(error) => Err(error).with_context(|| format!("writing {}", self.name)),
            None => Ok(()),
        }
    }
}

/// Reads the prompts of a file. Skips empty lines.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let name = path.display();
    let is_json = match path.extension().and_then(|ending| ending.to_str()) {
        Some("txt") => false,
        Some("jsonl") => true,
        _ => {
            return Err(Hinted::error(
                format!("--prompts is {name}, expected a name that ends in .txt or .jsonl"),
                "a .txt has one prompt per line; a .jsonl one object per line, with a \"prompt\"",
            ));
        }
    };
    let bytes = fs::read(path).with_context(|| format!("reading {name}"))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        let hint = "write the file in UTF-8";
        Hinted::error(format!("reading {name}: it is not UTF-8 text"), hint)
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> = match is_json {
        false => lines.map(|(_, line)| line.to_owned()).collect(),
        true => lines
            .map(|(number, line)| prompt_of(line).map_err(|found| bad_line(path, number, &found)))
            .collect::<Result<_>>()?,
    };
    if prompts.is_empty() {
        let hint =
            "give a .txt with one prompt per line, or a .jsonl with a \"prompt\" in each object";
        return Err(Hinted::error(format!("reading {name}: it has no prompts"), hint));
    }
    Ok(prompts)
}

/// The prompt of an object, or what was found instead.
fn prompt_of(line: &str) -> std::result::Result<String, String> {
    let object: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    match object.get("prompt") {
        Some(Value::String(prompt)) => Ok(prompt.clone()),
        Some(other) => Err(format!("\"prompt\" is {other}")),
        None => Err("no \"prompt\"".to_owned()),
    }
}

fn bad_line(path: &Path, number: usize, found: &str) -> anyhow::Error {
    Hinted::error(
        format!("reading {}, line {}: {found}", path.display(), number + 1),
        "each line is an object such as {\"prompt\": \"Once upon a time\"}",
    )
}
