//! `lehr bench decode`: the speed of reading a prompt and of generating.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_infer::{Engine, EngineSettings, Event, Limits, Request, Sampling, resolve_model};
use lehr_model::{Config, LlamaConfig, Model, RopeConfig};
use lehr_tensor::{Device, Philox, cuda, threads};
use serde_json::json;

use super::system;
use crate::cmd::compute::UseArgs;
use crate::fail::Hinted;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Random weights of this shape instead of a model
    #[arg(long, value_enum)]
    shape: Option<ShapeArg>,
    /// Sequences at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Prompt length in tokens
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Runs; the result is their median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    compute: UseArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Shapes of published models.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ShapeArg {
    /// Llama 3.2 1B
    #[value(name = "1b")]
    B1,
    /// Llama 3.1 8B
    #[value(name = "8b")]
    B8,
}

impl ShapeArg {
    fn config(self) -> Config {
        let (hidden_size, mlp, layers, head_dim, tied) = match self {
            Self::B1 => (2048, 8192, 16, 64, true),
            Self::B8 => (4096, 14_336, 32, 128, false),
        };
        Config::Llama(LlamaConfig {
            vocab_size: 128_256,
            hidden_size,
            intermediate_size: mlp,
            num_hidden_layers: layers,
            num_attention_heads: 32,
            num_key_value_heads: Some(8),
            head_dim: Some(head_dim),
            max_position_embeddings: 8192,
            tie_word_embeddings: tied,
            rope: RopeConfig::with_theta(500_000.0),
            ..LlamaConfig::default()
        })
    }
}

fn open(args: &Args) -> Result<Model> {
    match (&args.model, args.shape) {
        (Some(path), _) => Ok(args.compute.open_model(&resolve_model(path)?)?),
        (None, Some(shape)) => Ok(Model::random(shape.config(), args.compute.weights, 1)?),
        (None, None) => unreachable!("the parser asks for one of them"),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    if args.prompt == 0 || args.new == 0 || args.rounds == 0 || args.batch == 0 {
        return Err(Hinted::error(
            "bench decode: --prompt, --new, --rounds and --batch are at least 1",
            "leave them out for one prompt of 512 and 128 new tokens",
        ));
    }
    if args.model.is_none() && args.compute.adapter.is_some() {
        return Err(Hinted::error(
            "bench decode: --adapter belongs to a model, and --shape has random weights",
            "name the model instead of --shape",
        ));
    }
    let start = Instant::now();
    let model = open(args)?;
    model.check_causal("measuring generation")?;
    args.compute.place(&model)?;
    let load_s = start.elapsed().as_secs_f64();
    // All prompts are read in the first step, and no round reuses what another has read.
    let settings = EngineSettings {
        max_sequences: args.batch,
        context: Some(args.prompt + args.new),
        cache_tokens: None,
        prefill_budget: usize::MAX,
        reuse_prefixes: false,
    };
    let mut engine = Engine::without_text(&model, settings)?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first run touches memory and is not counted.
    for round in 0..=args.rounds {
        let (read_s, generate_s) = once(&mut engine, model.spec().vocab_size, args)?;
        if round > 0 {
            prefill.push((args.batch * args.prompt) as f64 / read_s);
            decode.push((args.batch * args.new) as f64 / generate_s);
        }
    }
    let (prefill_tok_s, decode_tok_s) = (median(&mut prefill), median(&mut decode));
    // Every generated token reads all weights once, but only one row of an untied embedding.
    let gb_s = decode_tok_s / args.batch as f64 * model.decode_bytes() as f64 / 1e9;
    let copy_gb_s = match model.compute().0 {
        Device::Cuda(ordinal) => Some(cuda::copy_rate(ordinal)? / 1e9),
        Device::Cpu => None,
    };
    let weights_mb = model.params().n_bytes() as f64 / f64::from(1u32 << 20);
    let peak_rss_mb = system::peak_rss_mb();
    if args.json {
        println!(
            "{}",
            json!({
                "peer": "lehr", "version": env!("CARGO_PKG_VERSION"),
                "model": name(args), "batch": args.batch,
                "device": model.compute().0.to_string(),
                "dtype": model.compute().1.to_string(), "tok_s": decode_tok_s, "gbytes_s": gb_s,
                "share": copy_gb_s.map(|rate| gb_s / rate), "threads": threads::n_threads(),
                "prompt": args.prompt, "new": args.new, "rounds": args.rounds,
                "prefill_tok_s": prefill_tok_s, "decode_tok_s": decode_tok_s, "gb_s": gb_s,
                "load_s": load_s, "weights_mb": weights_mb, "peak_rss_mb": peak_rss_mb,
            })
        );
    } else {
        println!(
            "prompt of {}: {prefill_tok_s:.0} tokens/s; generation: {decode_tok_s:.1} tokens/s, \
             reading {gb_s:.1} GB/s of weights; weights {weights_mb:.0} MB, in all \
             {peak_rss_mb:.0} MB, loaded in {load_s:.2} s",
            args.prompt
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn name(args: &Args) -> String {
    match (&args.model, args.shape) {
        (Some(path), _) => path.display().to_string(),
        (None, shape) => format!("{shape:?}"),
    }
}

/// Seconds to read the prompts, one after the other, and to generate the most likely tokens after
/// them, for all sequences at once. A GPU chooses them itself; the host waits for the ids of each.
fn once(engine: &mut Engine<'_>, vocab: usize, args: &Args) -> Result<(f64, f64)> {
    let noise = Philox::new(1, 0);
    let id = |i: usize| noise.block(i as u64)[0] % vocab as u32;
    // The first new token comes with the prompt.
    let limits = Limits { max_tokens: Some(args.new + 1), ..Limits::default() };
    for sequence in 0..args.batch {
        let prompt = (0..args.prompt).map(|i| id(sequence * args.prompt + i)).collect();
        engine.submit(Request::new(prompt, Sampling::GREEDY, limits.clone()))?;
    }
    let mut step = || {
        for event in engine.step()? {
            if let Event::Failed { error, .. } = event {
                return Err(error);
            }
        }
        Ok(!engine.is_idle())
    };
    let start = Instant::now();
    step()?;
    let read_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    while step()? {}
    Ok((read_s, start.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}
