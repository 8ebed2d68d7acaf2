//! `lehr chat`

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lehr_infer::{ChatSession, Finish, Limits, Loaded, Sampler};
use lehr_tokenizer::chat::{ChatTemplate, Moment};
use serde_json::{Map, Value, json};

use super::compute::UseArgs;
use super::generate::context_full;
use super::sampling::SamplingArgs;
use crate::{fail, ui};

/// Talk to a model.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
    /// Instructions for the whole conversation
    #[arg(long)]
    system: Option<String>,
    /// Chat template: a name (an unknown one lists them) or a file ending in .jinja [default: the
    /// model's own]
    #[arg(long, value_name = "NAME|FILE.jinja")]
    template: Option<String>,
    /// Variables of the chat template, as a JSON object such as '{"enable_thinking": false}';
    /// templates also know tools and documents, which are lists
    #[arg(long, value_name = "JSON", value_parser = template_args)]
    template_args: Option<TemplateArgs>,
    /// Ask this one question and exit
    #[arg(short, long)]
    prompt: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: UseArgs,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    let mut sampler = args.sampling.sampler()?;
    let limits = args.sampling.limits(512);
    let loaded = args.compute.open(&args.model)?;
    args.compute.place(&loaded.model)?;
    if let Some(note) = loaded.sampling_note()? {
        eprintln!("note: {note}");
    }
    loaded.model.check_causal("talking")?;
    args.sampling.warn(loaded.model.spec().max_positions);
    ui::warn(loaded.tokenizer.warnings());
    let template = template(args, &loaded)?;
    let system = args.system.as_deref();
    let context = args.sampling.context();
    let mut session =
        ChatSession::new(&loaded.model, &loaded.tokenizer, &template, system, context)?;
    let mut answer = |session: &mut ChatSession<'_>, text: &str| -> Result<()> {
        say(args, session, text, (&mut sampler, &limits))
    };
    if let Some(prompt) = &args.prompt {
        answer(&mut session, prompt)?;
        return Ok(ExitCode::SUCCESS);
    }
    let interactive = std::io::stdin().is_terminal();
    if interactive && !args.json {
        println!("{}: type a message, or Ctrl-D to end", loaded.path.display());
    }
    let (mut forgotten, mut code) = (0, ExitCode::SUCCESS);
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive && !args.json {
            print!("> ");
            // The reader of our output may have stopped reading.
            let _ = std::io::stdout().flush();
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("reading a message")?;
        if line.trim().is_empty() {
            continue;
        }
        // A message that does not fit ends neither the conversation nor discards its history.
        match answer(&mut session, line.trim()) {
            Err(error) if is_too_long(&error) => {
                fail::report(&error);
                code = ExitCode::FAILURE;
            }
            result => result?,
        }
        if session.n_forgotten() > forgotten {
            forgotten = session.n_forgotten();
            eprintln!("(the context is full: the {forgotten} oldest messages are forgotten)");
        }
    }
    Ok(code)
}

/// A JSON object with variables of a template.
type TemplateArgs = Map<String, Value>;

fn template_args(text: &str) -> std::result::Result<TemplateArgs, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(variables)) => Ok(variables),
        Ok(other) => Err(format!("found {other}, expected a JSON object")),
        Err(error) => Err(format!("expected a JSON object: {error}")),
    }
}

/// Returns the template of the conversation, with its variables and the current time.
fn template(args: &Args, loaded: &Loaded) -> Result<ChatTemplate> {
    let template = match &args.template {
        Some(name) => loaded.template_named(name)?,
        None => loaded.template()?,
    };
    let template = template.at(Moment::now());
    let Some(variables) = &args.template_args else { return Ok(template) };
    let (template, unused) = template.with_variables(variables.clone())?;
    if !unused.is_empty() {
        let (n, names) = (unused.len(), unused.join(", "));
        eprintln!("warning: --template-args: the template does not use {n} of them: {names}");
    }
    Ok(template)
}

/// Answers a message, as it comes or as one JSON object.
fn say(
    args: &Args,
    session: &mut ChatSession<'_>,
    text: &str,
    (sampler, limits): (&mut Sampler, &Limits),
) -> Result<()> {
    let mut on_text = |piece: &str| {
        if args.json {
            return ControlFlow::Continue(());
        }
        print!("{piece}");
        let flushed = std::io::stdout().flush().is_ok();
        if flushed && !ui::stopped() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let out = session.answer(text, sampler, limits, &mut on_text)?;
    if args.json {
        let finish = out.finish.as_str();
        println!("{}", json!({ "question": text, "answer": out.text, "finish": finish }));
        return Ok(());
    }
    println!();
    match out.finish {
        Finish::Length => eprintln!("(cut at the limit of tokens; raise it with -n)"),
        Finish::ContextFull => eprintln!("{}", context_full(session.context())),
        Finish::Stop | Finish::Cancelled => {}
    }
    Ok(())
}

fn is_too_long(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(lehr_infer::Error::PromptTooLong { .. }))
}
