//! `lehr bench step`: the training step of `tools/bench/torch_bench.py`, same model, same work.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use lehr_model::{
    Activations, Compute, Config, DTypeChoice, DeviceChoice, FP8_SIDE_MIN, Gpt2Config, LlamaConfig,
    Model, RopeConfig, Tokens,
};
use lehr_tensor::cuda::OneLaunch;
use lehr_tensor::inplace::{Clip, SquareSum};
use lehr_tensor::{DType, Device, Philox, Tensor, cuda, threads};
use lehr_train::recipe::OptimizerConfig;
use lehr_train::{AdamW, LossScale, Optimizer, Update, machine_gflops};
use serde_json::json;

use super::system;
use crate::cmd::compute::ThreadArgs;
use crate::fail::Hinted;

/// Training steps: forward, loss, backward, AdamW.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Size of model and batch
    #[arg(long, value_enum, default_value_t = Size::Small)]
    config: Size,
    /// Family
    #[arg(long, value_enum, default_value_t = Arch::Gpt)]
    arch: Arch,
    /// Timed steps
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Untimed steps before
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Rows per step [default: the config's]
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens per row [default: the config's]
    #[arg(long)]
    length: Option<usize>,
    /// Device: cpu, auto, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Type of activations: auto (bf16 on a GPU, f32 on the CPU), f32, bf16 or f16
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,
    /// Activations until backward: keep, recompute (less memory, more work), or offload (and on the
    /// host)
    #[arg(long, default_value = "keep")]
    activations: Activations,
    /// Record each step as a CUDA graph and start it by one launch
    #[arg(long)]
    cuda_graph: bool,
    /// Multiply matrices whose sides are 2,048 or more in fp8, as with run.fp8 of a recipe
    #[arg(long)]
    fp8: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object with the keys of tools/bench/torch_bench.py
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// 4 blocks of 256, 8 rows of 256 tokens, 8,192 ids
    Tiny,
    /// 6 blocks of 384, 4 rows of 512 tokens, 16,384 ids
    Small,
    /// GPT-2 124M, 1 row of 1,024 tokens
    Gpt2,
    /// GPT-2 124M, 4 rows of 64 tokens
    #[value(name = "gpt2_64")]
    Gpt2With64,
    /// The shape of Llama 3.2 1B, 1 row of 4,096 tokens
    #[value(name = "llama_1b")]
    Llama1B,
}

#[derive(Clone, Copy, ValueEnum)]
enum Arch {
    /// LayerNorm, learned positions, GELU
    Gpt,
    /// RMSNorm, RoPE, SwiGLU, grouped-query attention
    Llama,
}

struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    vocab: usize,
    t: usize,
    b: usize,
    /// Key-value heads and width of the MLP of a Llama; `None` = by the family's habits.
    llama: Option<(usize, usize)>,
}

impl Size {
    fn shape(self) -> Shape {
        let of = |layers, width, heads, vocab, t, b| Shape {
            layers,
            width,
            heads,
            vocab,
            t,
            b,
            llama: None,
        };
        match self {
            Self::Tiny => of(4, 256, 4, 8192, 256, 8),
            Self::Small => of(6, 384, 6, 16_384, 512, 4),
            Self::Gpt2 => of(12, 768, 12, 50_304, 1024, 1),
            Self::Gpt2With64 => of(12, 768, 12, 50_304, 64, 4),
            Self::Llama1B => Shape { llama: Some((8, 8192)), ..of(16, 2048, 32, 128_256, 4096, 1) },
        }
    }
}

fn config(arch: Arch, s: &Shape) -> Config {
    match arch {
        Arch::Gpt => Config::Gpt2(Gpt2Config {
            vocab_size: s.vocab,
            n_positions: s.t,
            n_embd: s.width,
            n_layer: s.layers,
            n_head: s.heads,
            n_inner: None,
            activation_function: "gelu_new".to_owned(),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_id: None,
        }),
        Arch::Llama => Config::Llama(LlamaConfig {
            vocab_size: s.vocab,
            hidden_size: s.width,
            intermediate_size: s
                .llama
                .map_or((8 * s.width / 3).next_multiple_of(64), |(_, mlp)| mlp),
            num_hidden_layers: s.layers,
            num_attention_heads: s.heads,
            num_key_value_heads: Some(match s.llama {
                Some((kv_heads, _)) => kv_heads,
                None if s.heads.is_multiple_of(3) => s.heads / 3,
                None => s.heads / 2,
            }),
            head_dim: None,
            max_position_embeddings: s.t,
            rms_norm_eps: 1e-5,
            initializer_range: 0.02,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::with_theta(if s.llama.is_some() { 500_000.0 } else { 10_000.0 }),
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        }),
    }
}

/// Eight fixed batches of random tokens, as the peer has them.
fn batches(s: &Shape) -> Result<Vec<(Tokens, Tensor)>> {
    let stream = Philox::new(0, 0);
    let n = s.b * s.t;
    (0..8)
        .map(|index| {
            let id = |i: usize| stream.block((index * (n + 1) + i) as u64)[0] as usize % s.vocab;
            let row: Vec<i32> = (0..=n).map(|i| id(i) as i32).collect();
            let targets = Tensor::from_ids(&row[1..], [s.b, s.t])?;
            Ok((Tokens::new(&row[..n], s.b, 0)?, targets))
        })
        .collect()
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let process_start = Instant::now();
    args.threads.apply();
    let mut shape = args.config.shape();
    shape.b = args.batch.unwrap_or(shape.b);
    shape.t = args.length.unwrap_or(shape.t);
    if shape.b == 0 || shape.t == 0 {
        return Err(Hinted::error(
            "bench step: --batch and --length are at least 1",
            "leave them out",
        ));
    }
    let compute = Compute::choose(args.device, args.dtype)?;
    if args.fp8 {
        compute.check_fp8()?;
    }
    if args.cuda_graph
        && (compute.device == Device::Cpu || args.activations == Activations::Offload)
    {
        let doing =
            "bench step: --cuda-graph records a step on a GPU, without --activations offload";
        return Err(Hinted::error(doing, "add --device cuda, or leave --cuda-graph out"));
    }
    let mut model = Model::new(config(args.arch, &shape), 1337)?;
    model.set_activations(args.activations);
    model.to_device(compute.device, compute.dtype)?;
    let n_fp8 = if args.fp8 { model.use_fp8(FP8_SIDE_MIN) } else { 0 };
    let rule = OptimizerConfig::Adamw {
        lr: 3e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_norm: 0.0,
        embedding_lr_ratio: 1.0,
        in_backward: true,
    };
    let mut optimizer = AdamW::new(&rule, model.params())?;
    let batches = batches(&shape)?;
    let by_id: HashMap<_, _> = model.params().params().iter().map(|p| (p.id(), p)).collect();
    let n_tokens = shape.b * shape.t;
    // As a run in f16 begins.
    let scaled = compute.dtype == DType::F16;
    let factor = if scaled { LossScale::START.factor } else { 1.0 };
    let mut one_launch = match compute.device {
        Device::Cuda(ordinal) if args.cuda_graph => Some(OneLaunch::new(ordinal)?),
        _ => None,
    };
    let mut number = 0;
    let mut step = |i: usize| -> Result<f32> {
        number += 1;
        let update = Update { number, lr: 3e-4, grad_scale: 1.0 / factor };
        let (tokens, targets) = &batches[i % batches.len()];
        let normalizer = n_tokens as f32 / factor;
        let mut on_gpu = || -> Result<Tensor> {
            // As a run does by default: one launch updates all weights.
            let loss = model.loss(tokens, targets, normalizer)?;
            let value = loss.detach();
            loss.backward()?;
            let clip = Clip { squares: &SquareSum::known(0.0), norm: 0.0 };
            optimizer.step(model.params(), update, clip)?;
            model.params().clear_grads();
            Ok(value)
        };
        if compute.device.is_cuda() {
            // The first step loads kernels and finds the memory.
            let value = match one_launch.as_mut().filter(|_| number > 1) {
                Some(one_launch) => one_launch.run(on_gpu)?,
                None => on_gpu()?,
            };
            // The only time the GPU is waited for.
            return Ok(value.item()? / factor);
        }
        let loss = model.loss(tokens, targets, normalizer)?;
        let value = loss.detach();
        // Each weight is updated when its gradient is complete, as with `optimizer.in_backward`.
        optimizer.begin(update);
        loss.backward_each(|id| -> Result<()> {
            if let Some(param) = by_id.get(&id) {
                optimizer.update(param)?;
                param.clear_grad();
            }
            Ok(())
        })?;
        Ok(value.item()?)
    };
    let loss_first = step(0)?;
    let mut losses = vec![loss_first];
    let first_step_s = process_start.elapsed().as_secs_f64();
    for i in 1..args.warmup {
        losses.push(step(i)?);
    }
    let (n_done, reset) = (losses.len(), compute.device);
    if let Device::Cuda(ordinal) = reset {
        cuda::reset_peak(ordinal)?;
    }
    let (wall, cpu) = (Instant::now(), system::cpu_seconds());
    let mut times = Vec::new();
    for i in 0..args.steps.max(1) {
        let start = Instant::now();
        losses.push(step(n_done + i)?);
        times.push(start.elapsed().as_secs_f64());
    }
    let loss_last = losses.last().copied().unwrap_or(loss_first);
    let device_peak_mb = match compute.device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => {
            Some(cuda::arena_stats(ordinal)?.used_peak_bytes as f64 / f64::from(1u32 << 20))
        }
    };
    let mfu = |gflops: f64| match compute.device {
        Device::Cuda(ordinal) => {
            cuda::device_info(ordinal).ok().and_then(|i| dense_peak(&i)).map(|peak| gflops / peak)
        }
        Device::Cpu => None,
    };
    let busy_cores = (system::cpu_seconds() - cpu) / wall.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    let flops = model.flops_per_step(shape.b, shape.t);
    let gflops = flops / median / 1e9;
    let name = |v: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        v().map(|v| v.get_name().to_owned()).unwrap_or_default()
    };
    let config_name = name(&|| args.config.to_possible_value());
    let arch_name = name(&|| args.arch.to_possible_value());
    let tok_s = n_tokens as f64 / median;
    let peak_rss_mb = system::peak_rss_mb();
    if args.json {
        println!(
            "{}",
            json!({
                "peer": "lehr", "version": env!("CARGO_PKG_VERSION"), "config": config_name,
                "arch": arch_name, "mode": "eager", "threads": threads::n_threads(), "fused": 1,
                "fwd_only": false, "params": model.params().n_values(), "B": shape.b, "T": shape.t,
                "steps": times.len(), "first_step_s": round(first_step_s, 2),
                "ms_median": round(median * 1e3, 1), "ms_min": round(times[0] * 1e3, 1),
                "ms_max": round(times[times.len() - 1] * 1e3, 1), "tok_s": round(tok_s, 1),
                "gflops": round(gflops, 1), "flop_per_step": flops,
                "peak_rss_mb": peak_rss_mb.round(), "busy_cores": round(busy_cores, 2),
                "loss_first": loss_first, "loss_last": loss_last, "losses": losses,
                "device": args.device.to_string(), "dtype": compute.dtype.to_string(),
                "activations": args.activations, "cuda_graph": args.cuda_graph,
                "device_peak_mb": device_peak_mb.map(f64::round), "mfu": mfu(gflops),
                "fp8_matrices": n_fp8, "fp8_refused": cuda::fp8_refused(),
            })
        );
    } else {
        let peak = match compute.device {
            Device::Cpu => machine_gflops(),
            Device::Cuda(ordinal) => cuda::matmul_gflops(ordinal, compute.dtype)?,
        };
        let peak_rss_mb = device_peak_mb.unwrap_or(peak_rss_mb);
        println!(
            "{config_name} {arch_name}: {:.1} ms per step, {tok_s:.0} tokens/s, \
             {gflops:.0} GFLOP/s \
             ({:.0}% of the {peak:.0} of matrix products), {peak_rss_mb:.0} MB, first step after \
             {first_step_s:.2} s, loss {loss_first:.4} to {loss_last:.4}",
            median * 1e3,
            100.0 * gflops / peak
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// GFLOP/s of dense products of 16-bit floats by the data sheet of Hopper's full chips, which MFU
/// is a share of.
fn dense_peak(info: &cuda::DeviceInfo) -> Option<f64> {
    ["H100", "H200"].iter().any(|name| info.name.contains(name)).then_some(989e3)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
