//! `lehr generate --prompts`: many texts at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use lehr_infer::{
    Engine, EngineSettings, Error, Event, Generated, Loaded, Request, RequestId, Sampling,
};
use serde_json::{Value, json};

use crate::fail::Hinted;
use crate::output::{self, Output};
use crate::stop;

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
    /// With --prompts: write the objects to this file, which is replaced when all are there. Until
    /// then they are in the file beside it that ends in .partial
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
) -> Result<ExitCode> {
    let read = [args.prompts.as_deref(), Some(loaded.path.as_path())];
    let read: Vec<&Path> = read.into_iter().flatten().collect();
    if let Some(output) = &args.output {
        output::check(output, &read)?;
    }
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
    let mut work = Work { prompts, ids, n_tokens: 0, failure: None };
    let mut lines = Lines::new(args.output.as_deref(), &read)?;
    let start = Instant::now();
    let done = work.run(&mut engine, &mut lines);
    let seconds = start.elapsed().as_secs_f64();
    let n_tokens = work.n_tokens;
    let Done { n_written, is_complete } = lines.end(done)?;
    if !is_complete {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let rate = n_tokens as f64 / seconds;
    eprintln!("{n_written} texts, {n_tokens} new tokens in {seconds:.1} s: {rate:.1} tokens/s");
    Ok(ExitCode::SUCCESS)
}

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// The prompts that are worked on.
struct Work<'a> {
    prompts: &'a [String],
    ids: Vec<RequestId>,
    n_tokens: usize,
    /// The first error of a prompt.
    failure: Option<Error>,
}

impl Work<'_> {
    /// Generates until all texts are there, the output ends or Ctrl-C is pressed. A prompt that
    /// cannot be continued ends with an error of its own; the others are not affected.
    fn run(&mut self, engine: &mut Engine<'_>, lines: &mut Lines) -> Result<()> {
        while !engine.is_idle() && !stop::stopped() {
            for event in engine.step()? {
                let index = |id| self.ids.binary_search(&id).unwrap_or_default();
                let (index, object) = match event {
                    Event::Token { .. } | Event::Text { .. } => continue,
                    Event::Failed { id, error } => {
                        let index = index(id);
                        let object = json!({
                            "index": index, "prompt": self.prompts[index],
                            "error": error.to_string(),
                        });
                        self.failure.get_or_insert(in_prompt(index, self.ids.len(), error));
                        (index, object)
                    }
                    Event::Finished { id, generated } => {
                        self.n_tokens += generated.ids.len();
                        let index = index(id);
                        (index, object(index, &self.prompts[index], &generated))
                    }
                };
                if lines.put(index, object).is_break() {
                    return Ok(());
                }
            }
        }
        lines.is_complete = engine.is_idle();
        self.failure.take().map_or(Ok(()), |error| Err(error.into()))
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
    to: Target,
    /// Index of the next prompt to write.
    next: usize,
    /// Objects of later prompts.
    held: BTreeMap<usize, Value>,
    failure: Option<io::Error>,
    /// Whether the objects of all prompts were given.
    is_complete: bool,
}

/// Where the objects go.
enum Target {
    File { output: Output, name: String },
    Standard,
}

/// The end of the work.
struct Done {
    n_written: usize,
    is_complete: bool,
}

impl Lines {
    /// A file or standard output. `read` must not be overwritten.
    fn new(path: Option<&Path>, read: &[&Path]) -> Result<Self> {
        let to = match path {
            Some(path) => {
                // Ctrl-C keeps what was generated so far.
                stop::on_signals();
                let name = path.display().to_string();
                Target::File { output: Output::create(path, read)?, name }
            }
            None => Target::Standard,
        };
        Ok(Self { to, next: 0, held: BTreeMap::new(), failure: None, is_complete: false })
    }

    /// Takes the object of prompt `index` and writes all that are next in order.
    fn put(&mut self, index: usize, object: Value) -> ControlFlow<()> {
        self.held.insert(index, object);
        while let Some(object) = self.held.remove(&self.next) {
            self.write(&object)?;
            self.next += 1;
        }
        ControlFlow::Continue(())
    }

    fn write(&mut self, object: &Value) -> ControlFlow<()> {
        let line = format!("{object}\n");
        let written = match &mut self.to {
            Target::File { output, .. } => output.write_all(line.as_bytes()),
            Target::Standard => {
                let mut out = io::stdout();
                out.write_all(line.as_bytes()).and_then(|()| out.flush())
            }
        };
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Ends the output after the work is `done`. A file that lacks results does not get its name;
    /// the error, or a note after Ctrl-C, says where they are.
    fn end(mut self, done: Result<()>) -> Result<Done> {
        let is_complete = self.is_complete && self.failure.is_none() && done.is_ok();
        // Results of later prompts are worth keeping when an earlier one is missing.
        let held = std::mem::take(&mut self.held);
        let mut n_written = self.next;
        for object in held.values() {
            if self.failure.is_some() || self.write(object).is_break() {
                break;
            }
            n_written += 1;
        }
        let (output, name) = match self.to {
            Target::File { output, name } => (output, name),
            Target::Standard => {
                // Who reads our output may stop reading.
                let lost = self.failure.filter(|e| e.kind() != io::ErrorKind::BrokenPipe);
                lost.map_or(Ok(()), Err).context("writing standard output")?;
                done?;
                return Ok(Done { n_written, is_complete: true });
            }
        };
        if is_complete {
            output.finish()?;
            return Ok(Done { n_written, is_complete });
        }
        let place = output.place().display().to_string();
        if n_written == 0 {
            output.discard();
        }
        let kept = match n_written {
            0 => "nothing was generated yet".to_owned(),
            n => format!("the results of {n} prompts are in {place}"),
        };
        match self.failure {
            Some(error) => Err(error).with_context(|| format!("writing {name}; {kept}"))?,
            None => done.with_context(|| format!("generating stopped; {kept}"))?,
        }
        eprintln!("interrupted; {kept}");
        Ok(Done { n_written, is_complete })
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
