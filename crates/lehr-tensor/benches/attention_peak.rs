//! Prints milliseconds and GFLOP/s of causal attention, forward and backward, at the shapes of
//! training, and the time of one decoding step, for one and for two threads.
//!
//! Operations are counted as 2 · 2 · T² · E / 2 per head forward (two products over the half that
//! a causal mask leaves) and 2.5 times that backward (five products).
//!
//! `cargo bench -p lehr-tensor --bench attention_peak`

use std::time::Instant;

use lehr_tensor::ops::attention::Mask;
use lehr_tensor::{Philox, Result, Tensor, isa, threads};

/// Number of runs; the fastest counts.
const N_RUNS: usize = 15;

fn main() -> Result<()> {
    #![expect(clippy::print_stdout, reason = "a report")]
    println!("{}; causal attention, best of {N_RUNS}", isa());
    for n_threads in [1, 2] {
        threads::set_n_threads(n_threads);
        for (batch, heads, t, e) in [(4, 6, 512, 64), (1, 12, 1024, 64), (8, 4, 256, 64)] {
            let (forward, backward) = training_seconds(batch, heads, t, e)?;
            let flops = 2.0 * (batch * heads * t * t * e) as f64;
            println!(
                "B{batch} H{heads} T{t} E{e}, {n_threads} threads: \
                 forward {:6.2} ms {:6.1} GFLOP/s, backward {:6.2} ms {:6.1} GFLOP/s",
                forward * 1e3,
                flops / forward / 1e9,
                backward * 1e3,
                2.5 * flops / backward / 1e9,
            );
        }
        for (heads, kv_heads, n_keys) in [(12, 12, 1024), (32, 8, 4096)] {
            let seconds = decoding_seconds(heads, kv_heads, n_keys)?;
            let bytes = (2 * n_keys * kv_heads * 64 * 4) as f64;
            println!(
                "one query, H{heads} K{kv_heads} E64, {n_keys} keys, {n_threads} threads: \
                 {:.3} ms, {:.1} GB/s",
                seconds * 1e3,
                bytes / seconds / 1e9,
            );
        }
    }
    Ok(())
}

fn random(shape: &[usize], stream: u64) -> Result<Tensor> {
    let mut x = Tensor::zeros(shape)?;
    Philox::new(1, stream).fill_normal(x.data_mut(), 1.0);
    Ok(x)
}

fn training_seconds(batch: usize, heads: usize, t: usize, e: usize) -> Result<(f64, f64)> {
    let qkv = random(&[batch, t, 3 * heads * e], 1)?;
    let dy = random(&[batch, t, heads * e], 2)?;
    let scale = 1.0 / (e as f32).sqrt();
    let (mut forward, mut backward) = (f64::MAX, f64::MAX);
    for _ in 0..N_RUNS {
        let x = qkv.trainable();
        let start = Instant::now();
        let y = x.attention_packed(heads, heads, &Mask::causal(), scale)?;
        forward = forward.min(start.elapsed().as_secs_f64());
        let dy = dy.clone();
        let start = Instant::now();
        y.backward_with(dy)?;
        backward = backward.min(start.elapsed().as_secs_f64());
    }
    Ok((forward, backward))
}

fn decoding_seconds(heads: usize, kv_heads: usize, n_keys: usize) -> Result<f64> {
    let q = random(&[1, 1, heads, 64], 1)?;
    let (k, v) = (random(&[1, n_keys, kv_heads, 64], 2)?, random(&[1, n_keys, kv_heads, 64], 3)?);
    let mut best = f64::MAX;
    for _ in 0..N_RUNS * 5 {
        let start = Instant::now();
        q.attention(&k, &v, &Mask::causal(), 0.125)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
