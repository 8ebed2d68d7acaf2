//! Prints GB/s of weights read in decoding and GFLOP/s of prefill for stored weights.
//!
//! `cargo bench -p lehr-tensor --bench quant_peak -- [FORMAT]`

use std::time::Instant;

use lehr_tensor::quant::{Activations, MatrixFormat, QMatrix, Scaling, WeightFormat};
use lehr_tensor::{Philox, Result, Tensor, isa, no_grad, threads};

const SHAPES: [(usize, usize); 5] =
    [(576, 576), (1536, 576), (576, 1536), (4096, 4096), (49152, 576)];

/// The least time of a product with `n_x` rows. Copies of the matrix take turns, as the layers of a
/// model do, so that weights come from memory.
fn best(matrices: &[QMatrix], n_x: usize) -> Result<f64> {
    let mut x = Tensor::zeros([n_x, matrices[0].cols()])?;
    Philox::new(1, 1).fill_normal(x.data_mut(), 1.0);
    let mut best = f64::MAX;
    let start = Instant::now();
    let mut n_runs = 0;
    while n_runs < 3 || (n_runs < 40 && start.elapsed().as_secs_f64() < 0.3) {
        let start = Instant::now();
        for w in matrices {
            no_grad(|| x.linear_q(w, None))?;
        }
        best = best.min(start.elapsed().as_secs_f64() / matrices.len() as f64);
        n_runs += 1;
    }
    Ok(best)
}

/// The time of all products with weights in SmolLM2-135M: an upper bound of its speed.
fn smollm2(format: MatrixFormat) -> Result<()> {
    #![expect(clippy::print_stdout, reason = "a report")]
    const LAYER: [(usize, usize); 7] =
        [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    if 576 % format.block_len() != 0 {
        return Ok(());
    }
    let mut all = Vec::new();
    for layer in 0..30 {
        for (i, (rows, cols)) in LAYER.into_iter().enumerate() {
            let mut values = vec![0.0; rows * cols];
            Philox::new(layer, i as u64).fill_normal(&mut values, 0.05);
            all.push(QMatrix::from_f32(&values, rows, cols, format)?);
        }
    }
    let mut head = vec![0.0; 49152 * 576];
    Philox::new(3, 3).fill_normal(&mut head, 0.05);
    let head = QMatrix::from_f32(&head, 49152, 576, format)?;
    let time = |n_x: usize| -> Result<f64> {
        let x = [Tensor::full([n_x, 576], 0.5)?, Tensor::full([n_x, 1536], 0.5)?];
        let last = Tensor::full([1, 576], 0.5)?;
        let mut best = f64::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            for w in &all {
                no_grad(|| x[usize::from(w.cols() == 1536)].linear_q(w, None))?;
            }
            no_grad(|| last.linear_q(&head, None))?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let (decode, prefill) = (1.0 / time(1)?, 512.0 / time(512)?);
    println!(
        "         SmolLM2-135M, linear maps only: decode {decode:.0}, prefill {prefill:.0} token/s"
    );
    Ok(())
}

fn main() -> Result<()> {
    #![expect(clippy::print_stdout, reason = "a report")]
    // `cargo bench` adds `--bench`.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    println!("{}, {} threads", isa(), threads::n_threads());
    println!(
        "for each shape: GB/s of weights (1 row of x); GFLOP/s with 4, 16 and 512 rows; with 512"
    );
    println!("rows and activations in f32");
    let own = [
        MatrixFormat::Int8(Scaling::Row),
        MatrixFormat::Int4(Scaling::Row),
        MatrixFormat::Int4(Scaling::DEFAULT),
        MatrixFormat::Nf4,
    ];
    let formats = WeightFormat::ALL.into_iter().map(MatrixFormat::from).chain(own);
    for format in formats.filter(|f| only.as_ref().is_none_or(|o| *o == f.to_string())) {
        print!("{:8}", format.to_string());
        for (rows, cols) in SHAPES {
            if cols % format.block_len() != 0 {
                print!("  {:>33}", format!("{rows}x{cols} -"));
                continue;
            }
            let mut values = vec![0.0; rows * cols];
            Philox::new(2, 2).fill_normal(&mut values, 0.05);
            let w = QMatrix::from_f32(&values, rows, cols, format)?;
            drop(values);
            // More than the caches hold, of copies that share nothing.
            let copies = (64_000_000 / w.n_bytes()).clamp(1, 30);
            let mut all = Vec::new();
            for _ in 0..copies {
                let owner = std::sync::Arc::new(w.bytes().to_vec());
                let n = owner.len();
                all.push(QMatrix::new(format, rows, cols, owner, 0..n, w.scales().to_vec())?);
            }
            let decode = w.n_bytes() as f64 / best(&all, 1)? / 1e9;
            let flops = |n_x: usize| 2e-9 * n_x as f64 * rows as f64 * cols as f64;
            let [few, some] = [4, 16].map(|n_x| best(&all, n_x).map(|time| flops(n_x) / time));
            let (few, some) = (few?, some?);
            let prefill = flops(512) / best(&all[..1], 512)?;
            let exact: Vec<_> =
                all[..1].iter().map(|w| w.clone().with_activations(Activations::F32)).collect();
            let exact = flops(512) / best(&exact, 512)?;
            print!("  {rows}x{cols} {decode:5.1} {few:4.0} {some:4.0} {prefill:4.0} {exact:4.0}");
        }
        println!();
        smollm2(format)?;
    }
    Ok(())
}
