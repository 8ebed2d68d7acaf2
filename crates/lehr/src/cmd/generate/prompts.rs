//! `lehr generate --prompts`: many texts at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use lehr_infer::{Engine, EngineSettings, Error, Event, Generated, Loaded, Request, Sampling};
use serde_json::{Value, json};

use crate::fail::Hinted;

/// A file of prompts, and settings for working on it.
#[derive(clap::Args)]
pub(crate) struct PromptsArgs {
    /// Continue all prompts of a file: a .txt with one per line, or a .jsonl with objects that have
    /// a "prompt". Prints one JSON object per prompt, in order
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// With --prompts: at most N sequences at once
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "prompt")]
    batch: usize,
    /// With --prompts: memory for the keys and values of so many tokens. If the sequences have
    /// more, the last ones are preempted and wait [default: enough for N whole sequences]
    #[arg(long, value_name = "TOKENS", conflicts_with = "prompt")]
    cache_tokens: Option<usize>,
    /// With --prompts: write the objects to this file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    output: Option<PathBuf>,
}

/// Continues all prompts as `like` says; each is sampled with the seed of `like` plus its index.
pub(crate) fn run(
    args: &PromptsArgs,
    prompts: &[String],
    loaded: &Loaded,
    like: &Request,
    context: Option<usize>,
) -> Result<()> {
    let mut requests = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let seed = like.sampling.seed.wrapping_add(index as u64);
        let sampling = Sampling { seed, ..like.sampling };
        let prompt = loaded.tokenizer.encode_prompt(prompt)?;
        requests.push(Request { prompt, sampling, ..like.clone() });
    }
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    let context = super::context(longest, &like.limits, context);
    let settings = EngineSettings {
        max_sequences: args.batch.min(requests.len()),
        context: Some(context),
        cache_tokens: args.cache_tokens,
        ..EngineSettings::ONE
    };
    let mut engine = Engine::new(&loaded.model, &loaded.tokenizer, settings)?;
    let context = context.min(loaded.model.spec().max_positions);
    if engine.context() < context {
        let room = engine.context();
        return Err(Hinted::error(
            format!("--cache-tokens has room for {room} tokens, a sequence may have {context}"),
            "raise it, or bound the sequences with --context or -n",
        ));
    }
    // All prompts are checked before the first text begins.
    let n = requests.len();
    let mut ids = Vec::with_capacity(n);
    for (index, request) in requests.into_iter().enumerate() {
        ids.push(engine.submit(request).map_err(|source| in_prompt(index, n, source))?);
    }
    check_output(args, &loaded.path)?;
    let mut lines = Lines::new(args.output.as_deref())?;
    let start = Instant::now();
    let mut n_tokens = 0;
    'work: while !engine.is_idle() {
        for event in engine.step()? {
            let index = |id| ids.binary_search(&id).unwrap_or_default();
            match event {
                Event::Token { .. } | Event::Text { .. } => {}
                Event::Failed { id, error } => return Err(in_prompt(index(id), n, error).into()),
                Event::Finished { id, generated } => {
                    n_tokens += generated.ids.len();
                    let index = index(id);
                    if lines.put(index, object(index, &prompts[index], &generated)).is_break() {
                        break 'work;
                    }
                }
            }
        }
    }
    lines.end()?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = n_tokens as f64 / seconds;
    eprintln!("{n} texts, {n_tokens} new tokens in {seconds:.1} s: {rate:.1} tokens/s");
    Ok(())
}

/// An error if the output would overwrite what is being read.
fn check_output(args: &PromptsArgs, model: &Path) -> Result<()> {
    // A file that is not there yet is none of them.
    let output = args.output.as_deref().and_then(|path| fs::canonicalize(path).ok());
    let read = [args.prompts.as_deref(), Some(model)].into_iter().flatten();
    let is_output = |path: &&Path| output.is_some() && fs::canonicalize(path).ok() == output;
    match read.into_iter().find(is_output) {
        None => Ok(()),
        Some(path) => {
            let found = format!("--output {} would overwrite what is read", path.display());
            Err(Hinted::error(found, "give the output a name of its own"))
        }
    }
}

fn in_prompt(index: usize, n: usize, source: Error) -> Error {
    Error::InPrompt { number: index + 1, n, source: Box::new(source) }
}

fn object(index: usize, prompt: &str, generated: &Generated) -> Value {
    json!({
        "index": index, "prompt": prompt, "text": generated.text,
        "finish": generated.finish.as_str(), "n_tokens": generated.ids.len(),
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
