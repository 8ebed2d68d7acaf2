//! `lehr generate`

mod prompts;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_infer::{Generator, Loaded, TokenLogprob};
use serde_json::json;

use self::prompts::PromptsArgs;
use super::compute::UseArgs;
use super::sampling::SamplingArgs;

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
    let mut sampler = args.sampling.sampler()?;
    let mut limits = args.sampling.limits(256);
    limits.logprobs = args.logprobs;
    let prompts = args.many.prompts.as_deref().map(prompts::read).transpose()?;
    let loaded = Loaded::open(&args.model, args.compute.weights)?;
    args.compute.place(&loaded.model)?;
    let (model, tokenizer) = (&loaded.model, &loaded.tokenizer);
    limits.stop_ids.extend(loaded.end_ids()?);
    let text = match (&prompts, &args.prompt) {
        (Some(prompts), _) => {
            prompts::run(&args.many, prompts, &loaded, sampler.sampling(), &limits)?;
            return Ok(ExitCode::SUCCESS);
        }
        (None, Some(text)) => text,
        (None, None) => unreachable!("the parser asks for one of them"),
    };
    let prompt = tokenizer.encode_prompt(text)?;
    let capacity = prompt.len().saturating_add(limits.max_tokens.unwrap_or(0)).saturating_add(1);
    let mut generator = Generator::new(model, tokenizer, capacity)?;
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
    let start = Instant::now();
    let out = generator.generate(&prompt, &mut sampler, &limits, &mut on_text)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let finish = format!("{:?}", out.finish).to_lowercase();
        let tokens_per_s = out.ids.len() as f64 / seconds;
        let mut object = json!({
            "prompt": text, "text": out.text, "ids": out.ids, "finish": finish,
            "prompt_tokens": prompt.len(), "tokens_per_s": tokens_per_s,
        });
        if args.logprobs.is_some() {
            let token = |id: u32| tokenizer.decode(&[id]);
            let top = |(id, p): &(u32, f32)| json!({ "id": id, "token": token(*id), "logprob": p });
            let one = |(id, l): (&u32, &TokenLogprob)| {
                let top: Vec<_> = l.top.iter().map(top).collect();
                json!({ "id": id, "token": token(*id), "logprob": l.logprob, "top": top })
            };
            object["logprobs"] = out.ids.iter().zip(&out.logprobs).map(one).collect();
        }
        println!("{object}");
    } else {
        println!("{}", shown.map_or("", String::as_str));
    }
    Ok(ExitCode::SUCCESS)
}
