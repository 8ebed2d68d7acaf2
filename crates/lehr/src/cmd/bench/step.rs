//! `lehr bench step`: the step of a training run on the model and the batches of
//! `tools/bench/torch_bench.py`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use lehr_data::Batch;
use lehr_model::{
    ActivationCheckpointing, Compute, Config, DTypeChoice, DeviceChoice, FP8_SIDE_MIN, Gpt2Config,
    LlamaConfig, Model, RopeConfig,
};
use lehr_tensor::{Device, Philox, cuda, threads};
use lehr_train::recipe::{ModelConfig, OptimizerConfig};
use lehr_train::{
    Recipe, StepEnd, StepInputs, Stepper, model_of_depth, muon_for_width, new_config,
    next_token_loss, product_gflops,
};
use serde_json::json;

use super::system;
use crate::cmd::compute::ThreadArgs;
use crate::fail::Hinted;

/// Training steps: forward, loss, backward, AdamW.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Shape of model and batch
    #[arg(long, value_enum, default_value_t = Size::Small)]
    config: Size,
    /// Family
    #[arg(long, value_enum, default_value_t = Arch::Gpt)]
    arch: Arch,
    /// Timed steps
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Untimed steps before them
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Sequences per step [default: the config's]
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens per sequence [default: the config's]
    #[arg(long)]
    length: Option<usize>,
    /// Device: cpu, auto, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Type of activations: auto (bf16 on a GPU and on a CPU that multiplies it faster, else f32),
    /// f32, bf16 or f16
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,
    /// Activation checkpointing: none (keep all activations), recompute (keep the input of each
    /// block, compute the rest again), or offload (recompute, with these inputs in host memory)
    #[arg(long, default_value = "none")]
    activation_checkpointing: ActivationCheckpointing,
    /// The former name of --activation-checkpointing
    #[arg(long, hide = true)]
    activations: Option<String>,
    /// Record each step as a CUDA graph and start it by one launch
    #[arg(long)]
    cuda_graph: bool,
    /// Multiply matrices whose sides are 2,048 or more in fp8, as with run.fp8 of a recipe
    #[arg(long)]
    fp8: bool,
    /// Optimiser
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// With muon: matrices move every so many steps [default: 1, of --arch lehr 2]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
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
    /// lehr's own family with its fitted parts, value embeddings and rows for pairs of tokens
    Lehr,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimizer {
    /// AdamW for all parameters, each updated as soon as its gradient is complete
    Adamw,
    /// Muon for matrices, all updated after backward
    Muon,
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

fn config(arch: Arch, s: &Shape) -> Result<Config> {
    Ok(match arch {
        Arch::Lehr => {
            let mut model = model_of_depth(s.layers, s.t);
            if let ModelConfig::Lehr(model) = &mut model {
                (model.hidden_size, model.mlp_size) = (s.width, 4 * s.width);
                (model.n_heads, model.n_kv_heads) = (s.heads, s.heads);
                (model.value_embeddings, model.bigram_rows) = (true, 5 * s.vocab);
            }
            new_config(&model, s.vocab, None)?
        }
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
    })
}

/// Eight fixed batches of random tokens, as the peer has them.
fn batches(s: &Shape) -> Vec<Batch> {
    let stream = Philox::new(0, 0);
    let n = s.b * s.t;
    let batch = |index: usize| {
        let id = |i: usize| stream.block((index * (n + 1) + i) as u64)[0] as usize % s.vocab;
        let row: Vec<i32> = (0..=n).map(|i| id(i) as i32).collect();
        Batch {
            tokens: row[..n].to_vec(),
            targets: row[1..].to_vec(),
            positions: (0..n).map(|i| (i % s.t) as i32).collect(),
            segment_starts: vec![0; n],
            n_targets: n,
            ..Batch::padding(s.b, s.t, 0)
        }
    };
    (0..8).map(batch).collect()
}

/// The optimiser of the peer: no clipping. On the CPU each weight is updated when its gradient is
/// complete; on a GPU, as a run does by default, one launch updates all.
fn optimizer(args: &Args, width: usize, compute: &Compute) -> OptimizerConfig {
    if args.optimizer == Optimizer::Muon {
        if matches!(args.arch, Arch::Lehr) {
            let fitted = muon_for_width(width);
            return fitted.with_muon(|muon| muon.every = args.every.unwrap_or(muon.every));
        }
        return OptimizerConfig::muon(0.02).with_muon(|muon| muon.every = args.every.unwrap_or(1));
    }
    let in_backward = !compute.device.is_cuda();
    OptimizerConfig { lr: 3e-4, clip_norm: 0.0, in_backward, ..Recipe::base().optimizer }
        .with_adamw(|adamw| {
            (adamw.beta2, adamw.weight_decay) = (0.95, 0.1);
        })
}

/// The product's own step over fixed batches.
struct Bench {
    model: Model,
    stepper: Stepper,
    batches: Vec<Batch>,
    n_done: usize,
}

impl Bench {
    fn new(args: &Args, shape: &Shape, compute: &Compute) -> Result<Self> {
        let mut model = Model::new(config(args.arch, shape)?, 1337)?;
        model.set_activation_checkpointing(args.activation_checkpointing);
        model.to_device(compute.device, compute.dtype)?;
        if args.fp8 {
            model.use_fp8(FP8_SIDE_MIN);
        }
        let stepper =
            Stepper::new(&optimizer(args, shape.width, compute), &model, args.cuda_graph)?;
        Ok(Self { model, stepper, batches: batches(shape), n_done: 0 })
    }

    /// Makes a step and gives its loss.
    fn step(&mut self) -> Result<f32> {
        let model = &self.model;
        let at = self.n_done % self.batches.len();
        let inputs = StepInputs {
            params: model.params(),
            loss: &|batch, normalizer| next_token_loss(model, batch, normalizer),
            batches: &self.batches[at..=at],
            number: self.n_done as u64 + 1,
            lr: 3e-4,
        };
        self.n_done += 1;
        loop {
            let enqueued = self.stepper.enqueue(inputs)?;
            match self.stepper.wait(&enqueued, model.params())? {
                StepEnd::Made(numbers) => return Ok(numbers.loss as f32),
                StepEnd::Overflow => {}
                StepEnd::NotFinite { numbers, .. } => {
                    let found = format!("bench step: step {} has {numbers:?}", inputs.number);
                    return Err(Hinted::error(found, "try another --dtype"));
                }
            }
        }
    }
}

/// What was measured.
struct Measured {
    losses: Vec<f32>,
    first_step_s: f64,
    /// Seconds of the timed steps, sorted.
    times: Vec<f64>,
    busy_cores: f64,
    device_peak_mb: Option<f64>,
}

impl Measured {
    fn take(args: &Args, bench: &mut Bench, device: Device, start: Instant) -> Result<Self> {
        let mut losses = vec![bench.step()?];
        let first_step_s = start.elapsed().as_secs_f64();
        for _ in 1..args.warmup {
            losses.push(bench.step()?);
        }
        if let Device::Cuda(ordinal) = device {
            cuda::reset_peak(ordinal)?;
        }
        let (wall, cpu) = (Instant::now(), system::cpu_seconds());
        let mut times = Vec::new();
        for _ in 0..args.steps.max(1) {
            let start = Instant::now();
            losses.push(bench.step()?);
            times.push(start.elapsed().as_secs_f64());
        }
        let busy_cores = (system::cpu_seconds() - cpu) / wall.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let device_peak_mb = match device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => {
                Some(cuda::arena_stats(ordinal)?.used_peak_bytes as f64 / f64::from(1u32 << 20))
            }
        };
        Ok(Self { losses, first_step_s, times, busy_cores, device_peak_mb })
    }

    fn median(&self) -> f64 {
        let times = &self.times;
        (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    args.threads.apply();
    if let Some(value) = &args.activations {
        let found = format!("bench step: --activations {value} has another name now");
        return Err(Hinted::error(found, "use --activation-checkpointing none|recompute|offload"));
    }
    let mut shape = args.config.shape();
    shape.b = args.batch.unwrap_or(shape.b);
    shape.t = args.length.unwrap_or(shape.t);
    if args.steps == 0 || args.warmup == 0 {
        let found = format!("bench step: {} steps after {} untimed", args.steps, args.warmup);
        return Err(Hinted::error(
            format!("{found}, expected at least 1 of each"),
            "the first step compiles and allocates, so it is never timed",
        ));
    }
    if shape.b == 0 || shape.t == 0 {
        return Err(Hinted::error(
            "bench step: --batch and --length are at least 1",
            "leave them out",
        ));
    }
    if args.every.is_some() && args.optimizer != Optimizer::Muon {
        return Err(Hinted::error(
            "bench step: --every is for Muon alone",
            "add --optimizer muon, or leave it out",
        ));
    }
    let compute = Compute::choose_for_training(args.device, args.dtype, &mut |_| ())?;
    if args.fp8 {
        compute.check_fp8()?;
    }
    let offloads = args.activation_checkpointing == ActivationCheckpointing::Offload;
    if args.cuda_graph && (compute.device == Device::Cpu || offloads) {
        let doing = "bench step: --cuda-graph records a step on a GPU, without \
                     --activation-checkpointing offload";
        return Err(Hinted::error(doing, "add --device cuda, or omit --cuda-graph"));
    }
    let mut bench = Bench::new(args, &shape, &compute)?;
    let measured = Measured::take(args, &mut bench, compute.device, start)?;
    match args.json {
        true => print_json(args, &shape, &compute, &bench.model, &measured),
        false => print_line(args, &shape, &compute, &bench.model, &measured)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a value on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

fn print_json(args: &Args, s: &Shape, compute: &Compute, model: &Model, measured: &Measured) {
    let Measured { losses, first_step_s, times, busy_cores, device_peak_mb } = measured;
    let (median, flops) = (measured.median(), model.flops_per_step(s.b, s.t));
    let gflops = flops / median / 1e9;
    let mfu = match compute.device {
        Device::Cuda(ordinal) => {
            cuda::device_info(ordinal).ok().and_then(|i| dense_peak(&i)).map(|peak| gflops / peak)
        }
        Device::Cpu => None,
    };
    let n_fp8 = model.params().params().iter().filter(|p| p.is_fp8()).count();
    println!(
        "{}",
        json!({
            "peer": "lehr", "version": env!("CARGO_PKG_VERSION"), "config": name(&args.config),
            "arch": name(&args.arch), "mode": "eager", "threads": threads::n_threads(), "fused": 1,
            "fwd_only": false, "params": model.params().n_values(), "B": s.b, "T": s.t,
            "steps": times.len(), "first_step_s": round(*first_step_s, 2),
            "ms_median": round(median * 1e3, 1), "ms_min": round(times[0] * 1e3, 1),
            "ms_max": round(times[times.len() - 1] * 1e3, 1),
            "tok_s": round((s.b * s.t) as f64 / median, 1),
            "gflops": round(gflops, 1), "flop_per_step": flops,
            "peak_rss_mb": system::peak_rss_mb().round(), "busy_cores": round(*busy_cores, 2),
            "loss_first": losses.first(), "loss_last": losses.last(), "losses": losses,
            "device": args.device.to_string(), "dtype": compute.dtype.to_string(),
            "activation_checkpointing": args.activation_checkpointing,
            "cuda_graph": args.cuda_graph,
            "device_peak_mb": device_peak_mb.map(f64::round), "mfu": mfu,
            "fp8_matrices": n_fp8, "fp8_refused": cuda::fp8_refused(),
        })
    );
}

fn print_line(
    args: &Args,
    s: &Shape,
    compute: &Compute,
    model: &Model,
    measured: &Measured,
) -> Result<()> {
    let median = measured.median();
    let gflops = model.flops_per_step(s.b, s.t) / median / 1e9;
    let peak = product_gflops(compute)?;
    let (losses, memory) = (&measured.losses, measured.device_peak_mb);
    println!(
        "{} {}: {:.1} ms per step, {:.0} tokens/s, {gflops:.0} GFLOP/s \
         ({:.0}% of the {peak:.0} of matrix products), {:.0} MB, first step after \
         {:.2} s, loss {:.4} to {:.4}",
        name(&args.config),
        name(&args.arch),
        median * 1e3,
        (s.b * s.t) as f64 / median,
        100.0 * gflops / peak,
        memory.unwrap_or_else(system::peak_rss_mb),
        measured.first_step_s,
        losses[0],
        losses[losses.len() - 1],
    );
    Ok(())
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
