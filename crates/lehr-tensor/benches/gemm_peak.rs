//! Prints GFLOP/s of matrix products at the shapes of training, for one and for all threads.
//!
//! `cargo bench -p lehr-tensor --bench gemm_peak`

use std::time::Instant;

use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::{isa, threads};

fn main() {
    #![expect(clippy::print_stdout, reason = "a report")]
    let all = threads::n_threads();
    println!("{}; GFLOP/s with 1 and {all} threads", isa());
    let shapes = [
        (2048, 2048, 2048),
        (2048, 256, 1024),
        (2048, 384, 1536),
        (2048, 1536, 384),
        (1024, 768, 3072),
        (1024, 3072, 768),
        (256, 768, 768),
        (256, 768, 3072),
        (256, 768, 50304),
        (1024, 384, 16384),
    ];
    for (m, k, n) in shapes {
        // y = x wᵀ, dx = dy w, dw = dyᵀ x
        let (x, w, dy) = (vec![0.5; m * k], vec![0.25; n * k], vec![0.125; m * n]);
        let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
        print!("{m:5} {k:5} {n:6}");
        for n_threads in [1, all] {
            threads::set_n_threads(n_threads);
            for which in 0..3 {
                let mut best = f64::MAX;
                for _ in 0..5 {
                    let start = Instant::now();
                    match which {
                        0 => gemm(
                            (m, n, k),
                            Matrix::rows(&x, k),
                            Matrix::transposed(&w, k),
                            &mut y,
                            n,
                            false,
                            None,
                        ),
                        1 => gemm(
                            (m, k, n),
                            Matrix::rows(&dy, n),
                            Matrix::rows(&w, k),
                            &mut dx,
                            k,
                            false,
                            None,
                        ),
                        _ => gemm(
                            (n, k, m),
                            Matrix::transposed(&dy, n),
                            Matrix::rows(&x, k),
                            &mut dw,
                            k,
                            false,
                            None,
                        ),
                    }
                    .expect("memory for panels");
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let flops = 2.0 * m as f64 * n as f64 * k as f64;
                print!("  {} {:6.1}", ["fwd", "dx", "dw"][which], flops / best / 1e9);
            }
        }
        println!();
    }
}
