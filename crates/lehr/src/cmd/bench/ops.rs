//! `lehr bench ops`: each operation against its limit on this device, the bandwidth of a copy or
//! the rate of matrix products.

mod optimizers;

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use lehr_model::{Compute, DTypeChoice, DeviceChoice};
use lehr_tensor::bf16::{self, Forms, Panels, Side};
use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::attention::Mask;
use lehr_tensor::ops::linear::WeightLayout::OutIn;
use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable, frequencies};
use lehr_tensor::quant::{QMatrix, WeightFormat};
use lehr_tensor::{DType, Device, Philox, Shape, Tensor, cuda, no_grad, tile16};
use serde_json::json;

use crate::cmd::compute::ThreadArgs;
use crate::fail::Hinted;

/// Single operations, as shares of the device's copy bandwidth or matrix-product rate.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// cpu, auto, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Type of activations: auto (bf16 on a GPU, f32 on the CPU), f32, bf16, f16. On the CPU bf16
    /// times products alone, since other operations are in f32
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,
    /// Tokens [default: 16384 on a GPU, 1024 on the CPU]
    #[arg(long)]
    tokens: Option<usize>,
    /// Only operations whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object per operation
    #[arg(long)]
    json: bool,
}

/// Limit that bounds an operation.
#[derive(Clone, Copy)]
enum Work {
    /// Bytes read and written.
    Bytes(f64),
    /// Floating-point operations of matrix products.
    Flops(f64),
}

/// Times operations on one device.
struct Bench<'a> {
    args: &'a Args,
    device: Device,
    dtype: DType,
    /// Bytes per second of a copy, counting reads and writes.
    copy_rate: f64,
    /// FLOP/s of a large product.
    matmul_rate: f64,
    /// Number of operations that `--only` has let through.
    n_wanted: Cell<usize>,
}

/// Runs; the result is their mean.
const ROUNDS: usize = 10;

/// Model width, heads, key-value heads, head width, MLP width, vocabulary: those of an 8B Llama.
const WIDTH: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD: usize = 128;
const MLP: usize = 14_336;
const VOCABULARY: usize = 32_768;
const TIME: usize = 2048;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.threads.apply();
    let compute = Compute::choose(args.device, args.dtype)?;
    let Compute { device, dtype, .. } = compute;
    let n_wanted = Cell::new(0);
    let mut bench = Bench { args, device, dtype, copy_rate: 1.0, matmul_rate: 1.0, n_wanted };
    if device == Device::Cpu && dtype == DType::BF16 {
        return products_in_bf16(args);
    }
    bench.rates()?;
    let tokens = args.tokens.unwrap_or(if device.is_cuda() { 16_384 } else { 1024 });
    if tokens == 0 {
        return Err(Hinted::error("bench ops: --tokens is 0, expected at least 1", "leave it out"));
    }
    bench.rows(tokens)?;
    bench.loss(tokens.min(4096))?;
    bench.attention(tokens.div_ceil(TIME))?;
    bench.adamw()?;
    bench.muon()?;
    bench.decode()?;
    if bench.n_wanted.get() == 0 {
        return Err(Hinted::error(
            format!("bench ops: no operation has {:?} in its name", args.only),
            "leave --only out to see all names",
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Products in bf16 on the CPU and the rounding of their operands, against the instructions' rate.
fn products_in_bf16(args: &Args) -> Result<ExitCode> {
    /// Rows, outputs and inputs of linear maps: of models of 3 M to 124 M weights.
    const SHAPES: [[usize; 3]; 6] = [
        [2048, 768, 256],
        [2048, 256, 1024],
        [512, 8192, 256],
        [2048, 1536, 384],
        [1024, 3072, 768],
        [1024, 768, 3072],
    ];
    let peak = bf16::instruction_rate();
    if !args.json {
        let isa = tile16::chosen();
        println!("cpu in bf16 ({isa}): instructions {:.2} TFLOP/s", peak / 1e12);
    }
    for [rows, n_out, n_in] in SHAPES {
        let mut values = vec![0.0; rows.max(n_out) * n_in];
        Philox::new(1, 0).fill_normal(&mut values, 0.5);
        let mut y = vec![0.0; rows * n_out];
        let mut x = Panels::uninit(Side::Left, rows, n_in)?;
        let mut w = Panels::uninit(Side::Right, n_out, n_in)?;
        let forms = Forms { right_transposed: Some(&mut w), ..Forms::default() };
        bf16::pack(&values, n_in, (n_out, n_in), forms);
        let round = best(|| {
            let forms = Forms { left: Some(&mut x), ..Forms::default() };
            bf16::pack(&values, n_in, (rows, n_in), forms);
            Ok(())
        })?;
        let product = best(|| bf16::product(&x, &w, &mut y, n_out, false, None))?;
        let exact = best(|| {
            let (x, w) = (Matrix::rows(&values, n_in), Matrix::transposed(&values, n_in));
            gemm((rows, n_out, n_in), x, w, &mut y, n_out, false, None)
        })?;
        let rate = 2.0 * (rows * n_out * n_in) as f64 / product;
        let shape = format!("{rows} x {n_out} x {n_in}");
        if args.json {
            println!(
                "{}",
                json!({
                    "op": "product", "dtype": "bf16", "shape": shape, "ms": product * 1e3,
                    "tflops": rate / 1e12, "share": rate / peak, "f32_ms": exact * 1e3,
                    "rounding_ms": round * 1e3,
                })
            );
            continue;
        }
        println!(
            "product {shape:20} {:7.3} ms {:5.2} TFLOP/s {:5.1} %, {:4.1} times f32; \
             rounding x {:.3} ms",
            product * 1e3,
            rate / 1e12,
            100.0 * rate / peak,
            exact / product,
            round * 1e3
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The shortest of ten calls, in seconds.
fn best(mut body: impl FnMut() -> lehr_tensor::Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        body()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

impl Bench<'_> {
    fn random(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut x = Tensor::zeros(shape)?;
        Philox::new(1, 0).fill_normal(x.data_mut(), 0.5);
        Ok(x.cast(self.dtype)?.to_device(self.device)?)
    }

    /// Measures the seconds that `body` takes on the device.
    fn timed(&self, body: impl FnOnce() -> lehr_tensor::Result<()>) -> Result<f64> {
        match self.device {
            Device::Cuda(ordinal) => Ok(cuda::timed(ordinal, body)?),
            Device::Cpu => {
                let start = Instant::now();
                body()?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }

    /// Measures the seconds per call, after one untimed call.
    fn repeated(&self, mut body: impl FnMut() -> lehr_tensor::Result<()>) -> Result<f64> {
        body()?;
        Ok(self.timed(|| (0..ROUNDS).try_for_each(|_| body()))? / ROUNDS as f64)
    }

    /// Measures the seconds per backward pass of the result of `forward`, which is not timed.
    fn backward(&self, mut forward: impl FnMut() -> lehr_tensor::Result<Tensor>) -> Result<f64> {
        let like = no_grad(&mut forward)?;
        let grad = self.random(like.shape())?.cast(like.dtype())?;
        let mut once = |n: usize| -> Result<f64> {
            let outputs = (0..n).map(|_| forward()).collect::<lehr_tensor::Result<Vec<_>>>()?;
            self.timed(|| outputs.into_iter().try_for_each(|y| y.backward_with(grad.clone())))
        };
        once(1)?;
        Ok(once(3)? / 3.0)
    }

    /// The two limits that everything is compared with.
    fn rates(&mut self) -> Result<()> {
        let n = if self.device.is_cuda() { 1 << 28 } else { 1 << 24 };
        let x = Tensor::zeros_on(self.device, [n], DType::F32)?;
        // x · 1 reads and writes each number once.
        let seconds = self.repeated(|| no_grad(|| x.scale(1.0)).map(drop))?;
        self.copy_rate = 8.0 * n as f64 / seconds;
        drop(x);
        let n = if self.device.is_cuda() { 8192 } else { 1024 };
        let (a, b) = (self.random([n, n])?, self.random([n, n])?);
        let seconds = self.repeated(|| no_grad(|| a.linear(&b, OutIn, None)).map(drop))?;
        self.matmul_rate = 2.0 * (n as f64).powi(3) / seconds;
        if !self.args.json {
            println!(
                "{} in {}: copies {:.0} GB/s, products {:.1} TFLOP/s",
                self.device,
                self.dtype,
                self.copy_rate / 1e9,
                self.matmul_rate / 1e12
            );
        }
        Ok(())
    }

    fn wants(&self, op: &str) -> bool {
        let is_wanted = op.contains(&self.args.only);
        self.n_wanted.set(self.n_wanted.get() + usize::from(is_wanted));
        is_wanted
    }

    fn report(&self, op: &str, shape: &str, seconds: f64, work: Work) {
        let (share, gbytes, tflops) = match work {
            Work::Bytes(n) => (n / seconds / self.copy_rate, Some(n / seconds / 1e9), None),
            Work::Flops(n) => (n / seconds / self.matmul_rate, None, Some(n / seconds / 1e12)),
        };
        if self.args.json {
            println!(
                "{}",
                json!({
                    "op": op, "dtype": self.dtype.to_string(), "shape": shape, "ms": seconds * 1e3,
                    "gbytes_s": gbytes, "tflops": tflops, "share": share,
                })
            );
            return;
        }
        let rate = match (gbytes, tflops) {
            (Some(gbytes), _) => format!("{gbytes:8.1} GB/s"),
            (_, Some(tflops)) => format!("{tflops:8.2} TFLOP/s"),
            _ => String::new(),
        };
        println!("{op:28} {shape:26} {:9.3} ms {rate:18} {:5.1} %", seconds * 1e3, 100.0 * share);
    }

    /// Operations bound by memory: bytes of `n` activations read and written.
    fn rows(&self, tokens: usize) -> Result<()> {
        let shape = format!("{tokens} x {WIDTH}");
        let bytes = |n: usize| Work::Bytes((n * tokens * WIDTH * self.dtype.size()) as f64);
        let (x, delta) = (self.random([tokens, WIDTH])?, self.random([tokens, WIDTH])?);
        let weight = Tensor::full([WIDTH], 1.0)?.to_device(self.device)?;
        for op in ["rms_norm", "layer_norm"].into_iter().filter(|op| self.wants(op)) {
            let norm = |x: &Tensor| match op {
                "rms_norm" => x.rms_norm(&weight, 1e-5, 0.0),
                _ => x.layer_norm(&weight, Some(&weight), 1e-5),
            };
            self.report(op, &shape, self.repeated(|| no_grad(|| norm(&x)).map(drop))?, bytes(2));
            // x passes through an op, because the gradient of a leaf would be f32. It still becomes
            // f32 once, which is counted.
            let seconds = self.backward(|| norm(&x.trainable().reshape([tokens, WIDTH])?))?;
            let cast = if self.dtype == DType::F32 { 0.0 } else { (6 * tokens * WIDTH) as f64 };
            let moved = (3 * tokens * WIDTH * self.dtype.size()) as f64 + cast;
            self.report(&format!("{op} backward"), &shape, seconds, Work::Bytes(moved));
        }
        if self.wants("add_rms_norm") {
            let add = || no_grad(|| x.add_rms_norm(&delta, &weight, 1e-5, 0.0)).map(drop);
            self.report("add_rms_norm", &shape, self.repeated(add)?, bytes(4));
        }
        if self.wants("rope") {
            let t = tokens.min(TIME);
            let heads = [tokens / t, t, HEADS, HEAD];
            let x =
                x.reshape([tokens * WIDTH])?.slice(0, 0..heads.iter().product())?.reshape(heads)?;
            let positions: Vec<i32> = (0..heads[0] * t).map(|i| (i % t) as i32).collect();
            let positions = Tensor::from_ids(&positions, [heads[0], t])?;
            let inv_freq = frequencies::inverse_frequencies(10_000.0, HEAD);
            let table = RopeTable::new(&positions, &inv_freq, RopeLayout::HalfSplit, 1.0)?;
            let rope = || no_grad(|| x.rope(&table)).map(drop);
            self.report("rope", &shape, self.repeated(rope)?, bytes(2));
        }
        if self.wants("gated") {
            let gated = || no_grad(|| x.gated(&delta, Activation::Silu)).map(drop);
            self.report("gated silu", &shape, self.repeated(gated)?, bytes(3));
        }
        Ok(())
    }

    /// The loss, compared with its products.
    fn loss(&self, tokens: usize) -> Result<()> {
        if !self.wants("linear_cross_entropy") {
            return Ok(());
        }
        let (width, shape) = (1024, format!("{tokens} x 1024 x {VOCABULARY}"));
        let (x, weight) = (self.random([tokens, width])?, self.random([VOCABULARY, width])?);
        let targets: Vec<i32> = (0..tokens).map(|i| (i * 37 % VOCABULARY) as i32).collect();
        let targets = Tensor::from_ids(&targets, [tokens])?;
        let options = CrossEntropy { normalizer: tokens as f32, z_loss: 0.0, softcap: None };
        let flops =
            |products: f64| Work::Flops(products * 2.0 * (tokens * width * VOCABULARY) as f64);
        let seconds = self.repeated(|| {
            no_grad(|| x.linear_cross_entropy(&weight, None, &targets, options)).map(drop)
        })?;
        self.report("linear_cross_entropy", &shape, seconds, flops(1.0));
        let (x, weight) = (x.trainable(), weight.trainable());
        let seconds =
            self.repeated(|| x.linear_cross_entropy(&weight, None, &targets, options).map(drop))?;
        self.report("linear_cross_entropy + grad", &shape, seconds, flops(3.0));
        Ok(())
    }

    fn attention(&self, batch: usize) -> Result<()> {
        if !self.wants("attention") {
            return Ok(());
        }
        let heads = |n| self.random([batch, TIME, n, HEAD]);
        let (q, k, v) = (heads(HEADS)?, heads(KV_HEADS)?, heads(KV_HEADS)?);
        let scale = 1.0 / (HEAD as f32).sqrt();
        let shape = format!("{batch} x {TIME} x {HEADS}/{KV_HEADS} x {HEAD} causal");
        // Two products over half of the pairs.
        let flops = 2.0 * 2.0 * (batch * HEADS * TIME * TIME * HEAD) as f64 / 2.0;
        let mask = Mask::causal();
        let forward = || no_grad(|| q.attention(&k, &v, &mask, scale)).map(drop);
        self.report("attention", &shape, self.repeated(forward)?, Work::Flops(flops));
        let seconds = self.backward(|| {
            let inner = |x: &Tensor| x.trainable().reshape(x.shape());
            inner(&q)?.attention(&inner(&k)?, &inner(&v)?, &mask, scale)
        })?;
        // Five products. The kernels compute two of them twice, but only the necessary ones count.
        self.report("attention backward", &shape, seconds, Work::Flops(2.5 * flops));
        Ok(())
    }

    /// Products of one row with quantised weights, bound by reading the weight.
    fn decode(&self) -> Result<()> {
        let formats = [
            WeightFormat::BF16,
            WeightFormat::Q8_0,
            WeightFormat::Q6_K,
            WeightFormat::Q4_K,
            WeightFormat::Q4_0,
        ];
        let x = self.random([1, WIDTH])?;
        let mut values = vec![0.0; MLP * WIDTH];
        Philox::new(2, 0).fill_normal(&mut values, 0.02);
        for format in formats {
            let op = format!("linear_q {format}");
            if !self.wants(&op) {
                continue;
            }
            let matrix = QMatrix::from_f32(&values, MLP, WIDTH, format)?;
            matrix.to_device(self.device, self.dtype)?;
            let seconds = self.repeated(|| no_grad(|| x.linear_q(&matrix, None)).map(drop))?;
            let bytes = Work::Bytes(matrix.n_bytes() as f64);
            self.report(&op, &format!("1 x {WIDTH} x {MLP}"), seconds, bytes);
        }
        Ok(())
    }
}
