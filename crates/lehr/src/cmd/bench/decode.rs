//! `lehr bench decode`: the speed of reading a prompt and of generating.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_infer::resolve_model;
use lehr_model::{KvCache, Model, Tokens};
use lehr_tensor::{Philox, threads};
use serde_json::json;

use super::system;
use crate::cmd::compute::UseArgs;
use crate::fail::Hinted;

/// Tokens of the prompt that are read at once, as in generation.
const BLOCK: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder or GGUF file
    model: PathBuf,
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

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.compute.threads.apply();
    if args.prompt == 0 || args.new == 0 || args.rounds == 0 {
        return Err(Hinted::error(
            "bench decode: --prompt, --new and --rounds are at least 1",
            "leave them out for a prompt of 512 and 128 new tokens",
        ));
    }
    let start = Instant::now();
    let model = Model::open(&resolve_model(&args.model)?, args.compute.weights)?;
    model.check_causal("measuring generation")?;
    args.compute.device.place(&model)?;
    let load_s = start.elapsed().as_secs_f64();
    let capacity = args.prompt + args.new;
    let mut cache = model.cache(1, capacity)?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first run touches the memory and is not counted.
    for round in 0..=args.rounds {
        let (read_s, generate_s) = once(&model, &mut cache, args)?;
        if round > 0 {
            prefill.push(args.prompt as f64 / read_s);
            decode.push(args.new as f64 / generate_s);
        }
    }
    let (prefill_tok_s, decode_tok_s) = (median(&mut prefill), median(&mut decode));
    // Every generated token reads all weights once, but of a table of its own only one row.
    let gb_s = decode_tok_s * model.decode_bytes() as f64 / 1e9;
    let weights_mb = model.params().n_bytes() as f64 / f64::from(1u32 << 20);
    let peak_rss_mb = system::peak_rss_mb();
    if args.json {
        println!(
            "{}",
            json!({
                "peer": "lehr", "version": env!("CARGO_PKG_VERSION"),
                "model": args.model.display().to_string(), "threads": threads::n_threads(),
                "prompt": args.prompt, "new": args.new, "rounds": args.rounds,
                "prefill_tok_s": prefill_tok_s, "decode_tok_s": decode_tok_s, "gb_s": gb_s,
                "load_s": load_s, "weights_mb": weights_mb, "peak_rss_mb": peak_rss_mb,
            })
        );
    } else {
        println!(
            "prompt of {}: {prefill_tok_s:.0} tokens/s; generation: {decode_tok_s:.1} tokens/s, \
             reading {gb_s:.1} GB/s of weights; weights {weights_mb:.0} MB, in all {peak_rss_mb:.0} \
             MB, loaded in {load_s:.2} s",
            args.prompt
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds to read a prompt and to generate after it.
fn once(model: &Model, cache: &mut KvCache, args: &Args) -> Result<(f64, f64)> {
    let _ = cache.truncate(0);
    let vocab = model.spec().vocab_size;
    let noise = Philox::new(1, 0);
    let prompt: Vec<i32> =
        (0..args.prompt).map(|i| (noise.block(i as u64)[0] as usize % vocab) as i32).collect();
    let start = Instant::now();
    let mut next = 0;
    for block in prompt.chunks(BLOCK) {
        next =
            best(model.next_logits(&Tokens::new(block, 1, cache.len())?, cache)?.to_host()?.data());
    }
    let read_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..args.new {
        next = best(
            model.next_logits(&Tokens::new(&[next], 1, cache.len())?, cache)?.to_host()?.data(),
        );
    }
    Ok((read_s, start.elapsed().as_secs_f64()))
}

fn best(logits: &[f32]) -> i32 {
    let by_value = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]);
    (0..logits.len()).max_by(by_value).unwrap_or(0) as i32
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}
