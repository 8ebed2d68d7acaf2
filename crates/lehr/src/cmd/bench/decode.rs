//! `lehr bench decode`: the speed of reading a prompt and of generating.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_infer::resolve_model;
use lehr_model::{
    Config, DecodeGraph, KvCache, LlamaConfig, Model, PagedCache, PagedGraph, RopeConfig, Tokens,
};
use lehr_tensor::inplace::{self, sample::GpuSampler};
use lehr_tensor::{Device, Philox, Tensor, cuda, threads};
use serde_json::json;

use super::system;
use crate::cmd::compute::UseArgs;
use crate::fail::Hinted;

/// Tokens of the prompt that are read at once, as in generation.
const BLOCK: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Random weights of this shape instead of a model
    #[arg(long, value_enum)]
    shape: Option<ShapeArg>,
    /// Texts at once; more than one have their keys and values in pages
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate after it
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Runs; the median counts
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
        (Some(path), _) => Ok(Model::open(&resolve_model(path)?, args.compute.weights)?),
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
    let start = Instant::now();
    let model = open(args)?;
    model.check_causal("measuring generation")?;
    args.compute.place(&model)?;
    let load_s = start.elapsed().as_secs_f64();
    let capacity = args.prompt + args.new;
    let mut cache = model.cache(1, capacity)?;
    let mut pages = match args.batch {
        1 => None,
        batch => Some(PagedCache::new(&model, batch, capacity, usize::MAX)?),
    };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first run touches the memory and is not counted.
    for round in 0..=args.rounds {
        let (read_s, generate_s) = once(&model, &mut cache, pages.as_mut(), args)?;
        if round > 0 {
            prefill.push((args.batch * args.prompt) as f64 / read_s);
            decode.push((args.batch * args.new) as f64 / generate_s);
        }
    }
    let (prefill_tok_s, decode_tok_s) = (median(&mut prefill), median(&mut decode));
    // Every generated token reads all weights once, but of a table of its own only one row.
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
                "model": name(args), "batch": args.batch, "paged": pages.is_some(),
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
/// them, for all texts at once. A GPU chooses them itself; like whoever generates, the host waits
/// for the ids of each.
fn once(
    model: &Model,
    cache: &mut KvCache,
    mut pages: Option<&mut PagedCache>,
    args: &Args,
) -> Result<(f64, f64)> {
    let vocab = model.spec().vocab_size;
    let noise = Philox::new(1, 0);
    let id = |i: usize| (noise.block(i as u64)[0] as usize % vocab) as i32;
    let sampler = match model.compute().0 {
        Device::Cpu => None,
        device => Some(GpuSampler::new(device, args.batch, vocab)?),
    };
    if let Some(pages) = &mut pages {
        (0..args.batch).for_each(|row| pages.leave(row));
    }
    let start = Instant::now();
    let mut next = Vec::new();
    for text in 0..args.batch {
        let _ = cache.truncate(0);
        let prompt: Vec<i32> = (0..args.prompt).map(|i| id(text * args.prompt + i)).collect();
        let mut last = 0;
        for block in prompt.chunks(BLOCK) {
            let tokens = Tokens::new(block, 1, cache.len())?;
            last = most_likely(&model.next_logits(&tokens, cache)?)?[0];
        }
        if let Some(pages) = &mut pages {
            pages.join(cache)?;
        }
        if let Some(sampler) = &sampler {
            sampler.set_id(text, last)?;
        }
        next.push(last);
    }
    let read_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    match pages {
        Some(pages) => generate_paged(model, pages, (sampler, next), args.new)?,
        None => generate(model, cache, (sampler, next), args.new)?,
    }
    Ok((read_s, start.elapsed().as_secs_f64()))
}

/// Continues one text.
fn generate(
    model: &Model,
    cache: &mut KvCache,
    (sampler, mut next): (Option<GpuSampler>, Vec<i32>),
    n: usize,
) -> Result<()> {
    let mut graph = DecodeGraph::new(model, cache, 1)?;
    for _ in 0..n {
        next = match (&mut graph, &sampler) {
            (Some(graph), Some(sampler)) => {
                graph.choose_next(model, sampler, cache)?;
                sampler.read()?
            }
            _ => most_likely(&model.next_logits(&Tokens::new(&next, 1, cache.len())?, cache)?)?,
        };
    }
    Ok(())
}

/// Continues the texts in pages, of which each has a row.
fn generate_paged(
    model: &Model,
    pages: &mut PagedCache,
    (sampler, mut next): (Option<GpuSampler>, Vec<i32>),
    n: usize,
) -> Result<()> {
    let mut graph = PagedGraph::new(model, pages)?;
    for _ in 0..n {
        next = match (&mut graph, &sampler) {
            (Some(graph), Some(sampler)) => {
                graph.choose_next(model, sampler, pages)?;
                sampler.read()?
            }
            _ => {
                let next: Vec<(usize, i32)> = next.into_iter().enumerate().collect();
                most_likely(&pages.next_logits(model, &next)?)?
            }
        };
    }
    Ok(())
}

/// The most likely token of each row of logits.
fn most_likely(logits: &Tensor) -> Result<Vec<i32>> {
    Ok(inplace::argmax(logits)?.to_host()?.ids().to_vec())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}
