//! Prints how fast `linear_cross_entropy` runs with its gradients, next to its three matrix
//! products alone.
//!
//! `cargo bench -p lehr-tensor --bench loss_peak`

use std::time::Instant;

use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{DType, Philox, Result, Tensor, isa, threads};

/// The fastest of some runs, in seconds.
fn best(n: usize, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..n {
        let start = Instant::now();
        body()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Seconds of the logits, of `dX` and of `dW`, in chunks as the loss takes them.
fn products(x: &Tensor, w: &Tensor, (n, d, v): (usize, usize, usize)) -> Result<f64> {
    let rows = n.min((1 << 24) / v);
    let mut logits = Tensor::uninit([rows, v], DType::F32)?;
    let (mut dx, mut dw) =
        (Tensor::uninit([n, d], DType::F32)?, Tensor::uninit([v, d], DType::F32)?);
    best(5, || {
        for first in (0..n).step_by(rows) {
            let m = rows.min(n - first);
            let (x, w) = (&x.data()[first * d..], w.data());
            let dx = &mut dx.data_mut()[first * d..];
            let (x, by_rows) = (Matrix::rows(x, d), Matrix::rows(w, d));
            let w = Matrix::transposed(w, d);
            gemm((m, v, d), x, w, logits.data_mut(), v, false, None)?;
            let (dz, dz_t) = (Matrix::rows(logits.data(), v), Matrix::transposed(logits.data(), v));
            gemm((m, d, v), dz, by_rows, dx, d, false, None)?;
            gemm((v, d, m), dz_t, x, dw.data_mut(), d, first > 0, None)?;
        }
        Ok(())
    })
}

fn main() -> Result<()> {
    #![expect(clippy::print_stdout, reason = "a report")]
    println!("{}, {} threads", isa(), threads::n_threads());
    for (n, d, v) in [(2048, 384, 16_384), (2048, 768, 50_304), (512, 1024, 151_936)] {
        let (mut x, mut w) = (Tensor::zeros([n, d])?, Tensor::zeros([v, d])?);
        Philox::new(1, 0).fill_normal(x.data_mut(), 1.0);
        Philox::new(1, 1).fill_normal(w.data_mut(), 0.02);
        let ids: Vec<i32> = (0..n).map(|i| (i * 7919 % v) as i32).collect();
        let targets = Tensor::from_ids(&ids, [n])?;
        let options = CrossEntropy { normalizer: n as f32, z_loss: 0.0, softcap: None };
        let products = products(&x, &w, (n, d, v))?;
        let forward = best(3, || x.linear_cross_entropy(&w, None, &targets, options).map(drop))?;
        let both = best(5, || {
            x.trainable().linear_cross_entropy(&w.trainable(), None, &targets, options)?.backward()
        })?;
        let bias = Tensor::zeros([v])?;
        let with_bias = best(5, || {
            let (w, bias) = (w.trainable(), bias.trainable());
            x.trainable().linear_cross_entropy(&w, Some(&bias), &targets, options)?.backward()
        })?;
        let gflop = 6.0 * (n * d * v) as f64 / 1e9;
        println!(
            "{n} x {d} to {v}: forward {:.0} ms; with gradients {:.0} ms ({:.0} ms with a bias), \
             {:.0} GFLOP/s; products alone {:.0} ms: {:.0} % of their speed",
            forward * 1e3,
            both * 1e3,
            with_bias * 1e3,
            gflop / both,
            products * 1e3,
            100.0 * products / both,
        );
    }
    Ok(())
}
