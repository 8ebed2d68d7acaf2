//! Log-probabilities of tokens.

use lehr_tensor::Tensor;

use super::support::{assert_rows_independent, normal, on_every_isa, pick};

#[test]
fn token_logprobs() {
    const N: usize = 70;
    on_every_isa(|isa| {
        for (v, d) in [(3, 5), (130, 64), (1003, 530)] {
            let (x, weight, bias) = (normal(&[N, d], 1), normal(&[v, d], 2), normal(&[v], 3));
            for (bias, cap) in [(None, None), (Some(&bias), Some(5.0))] {
                let what = format!("{isa}: token_logprobs [{v}, {d}], cap {cap:?}");
                assert_rows_independent(&what, N, [1, 2, 3, 4, 5, 17, 64, 70], |rows| {
                    let targets: Vec<i32> = rows.iter().map(|r| (r * 31 % v) as i32).collect();
                    let targets = Tensor::from_ids(&targets, [rows.len()]).unwrap();
                    pick(&x, rows).token_logprobs(&weight, bias, &targets, cap).unwrap()
                });
            }
        }
    });
}
