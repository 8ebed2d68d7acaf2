//! `lehr generate`

mod prompts;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_infer::{
    Engine, EngineSettings, Finish, Generated, Limits, Loaded, Request, TokenLogprob,
};
use lehr_tokenizer::Tokenizer;
use serde_json::{Value, json};

use self::prompts::PromptsArgs;
use super::compute::UseArgs;
use super::sampling::SamplingArgs;
use crate::ui;

/// Continue a text, or all prompts of a file.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Text to continue
    #[arg(short, long, required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    #[command(flatten)]
    many: PromptsArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: UseArgs,
    /// With --json: the log-probability of each new token and of the N most likely ones
    #[arg(long, value_name = "N", requires = "json", conflicts_with = "prompts")]
    logprobs: Option<usize>,
    /// Print one JSON object instead of the text as it comes
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    let sampler = args.sampling.sampler()?;
    let mut limits = args.sampling.limits(256);
    limits.logprobs = args.logprobs;
    let prompts = args.many.prompts.as_deref().map(prompts::read).transpose()?;
    let loaded = args.compute.open(&args.model)?;
    args.compute.place(&loaded.model)?;
    args.sampling.warn(loaded.model.spec().max_positions);
    if let Some(note) = loaded.sampling_note()? {
        eprintln!("note: {note}");
    }
    ui::warn(loaded.tokenizer.warnings());
    limits.stop_ids.extend(loaded.end_ids()?);
    match (&prompts, &args.prompt) {
        (Some(prompts), _) => {
            let request = Request::new(Vec::new(), sampler.sampling(), limits);
            return prompts::run(&args.many, prompts, &loaded, &request, args.sampling.context());
        }
        (None, Some(text)) => one(args, text, &loaded, limits)?,
        (None, None) => unreachable!("the parser asks for one of them"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Most tokens that a prompt of `n_prompt` tokens and its new ones can be, within `--context`.
fn context(n_prompt: usize, limits: &Limits, most: Option<usize>) -> usize {
    let all = n_prompt.saturating_add(limits.max_tokens.unwrap_or(usize::MAX)).saturating_add(1);
    most.map_or(all, |most| most.min(all))
}

/// Continues one text, which is printed as it comes.
fn one(args: &Args, text: &String, loaded: &Loaded, limits: Limits) -> Result<()> {
    let (model, tokenizer) = (&loaded.model, &loaded.tokenizer);
    let prompt = tokenizer.encode_prompt(text)?;
    let n_prompt = prompt.len();
    let context = Some(context(n_prompt, &limits, args.sampling.context()));
    let mut engine =
        Engine::new(model, tokenizer, EngineSettings { context, ..EngineSettings::ONE })?;
    // The prompt is shown with the first new text: an error comes alone.
    let mut shown = Some(text);
    let mut on_text = |text: &str| {
        if args.json {
            return ControlFlow::Continue(());
        }
        print!("{}{text}", shown.take().map_or("", String::as_str));
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let request = Request::new(prompt, args.sampling.sampler()?.sampling(), limits);
    let start = Instant::now();
    let out = engine.generate(request, &mut on_text)?;
    if args.json {
        let mut object = json!({
            "prompt": text, "text": out.text, "ids": out.ids, "finish": out.finish.as_str(),
            "prompt_tokens": n_prompt,
            "tokens_per_s": out.ids.len() as f64 / start.elapsed().as_secs_f64(),
        });
        if args.logprobs.is_some() {
            object["logprobs"] = logprobs(tokenizer, &out);
        }
        println!("{object}");
        return Ok(());
    }
    println!("{}", shown.map_or("", String::as_str));
    if out.finish == Finish::ContextFull {
        eprintln!("{}", context_full(engine.context()));
    }
    Ok(())
}

/// What a person is told when a text ended because there is no room for more.
pub(crate) fn context_full(context: usize) -> String {
    format!("stopped: the context of {context} tokens is full")
}

/// The log-probabilities of each new token and of its alternatives.
fn logprobs(tokenizer: &Tokenizer, out: &Generated) -> Value {
    let token = |id: u32| tokenizer.decode(&[id]);
    let top = |(id, p): &(u32, f32)| json!({ "id": id, "token": token(*id), "logprob": p });
    let one = |(id, l): (&u32, &TokenLogprob)| {
        let top: Vec<_> = l.top.iter().map(top).collect();
        json!({ "id": id, "token": token(*id), "logprob": l.logprob, "top": top })
    };
    out.ids.iter().zip(&out.logprobs).map(one).collect()
}
