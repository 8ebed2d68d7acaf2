use super::CrossEntropy;
use crate::testing::Array;

/// For each row `lse` and the logit of its target; `None` without a label. `head` is the weight
/// and, if there is one, the bias.
fn rows(x: &Array, head: &[Array], targets: &[i32], cap: Option<f32>) -> Vec<Option<(f64, f64)>> {
    let (d, w) = (x.last_dim(), &head[0]);
    let row = |(r, target): (usize, &i32)| {
        if *target == -100 {
            return None;
        }
        let logits = (0..w.shape[0]).map(|v| {
            let bias = head.get(1).map_or(0.0, |bias| bias.data[v]);
            bias + (0..d).map(|k| x.data[r * d + k] * w.data[v * d + k]).sum::<f64>()
        });
        Some(lse_and_target(logits.collect(), *target as usize, cap))
    };
    targets.iter().enumerate().map(row).collect()
}

/// `lse` and the target's logit of one row.
fn lse_and_target(logits: Vec<f64>, target: usize, cap: Option<f32>) -> (f64, f64) {
    let capped = |z: f64| cap.map(f64::from).map_or(z, |c| c * (z / c).tanh());
    let logits: Vec<f64> = logits.into_iter().map(capped).collect();
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
    (max + sum.ln(), logits[target])
}

/// `lse − z_target + z_loss lse²` of each row of logits, 0 without a label.
pub(super) fn row_losses(z: &Array, targets: &[i32], z_loss: f32, cap: Option<f32>) -> Array {
    let v = z.last_dim();
    let loss = |(row, target): (&[f64], &i32)| match usize::try_from(*target) {
        Ok(target) => {
            let (lse, target) = lse_and_target(row.to_vec(), target, cap);
            lse - target + f64::from(z_loss) * lse * lse
        }
        Err(_) => 0.0,
    };
    let data = z.data.chunks(v).zip(targets).map(loss).collect();
    Array { shape: z.shape[..z.shape.len() - 1].to_vec(), data }
}

/// `Σ (lse − z_target + z_loss lse²) / normalizer` over labelled rows.
pub(super) fn loss(x: &Array, head: &[Array], targets: &[i32], options: CrossEntropy) -> Array {
    let term = |(lse, target): (f64, f64)| lse - target + f64::from(options.z_loss) * lse * lse;
    let terms: Vec<f64> =
        rows(x, head, targets, options.softcap).into_iter().flatten().map(term).collect();
    let loss = if terms.is_empty() {
        0.0
    } else {
        terms.iter().sum::<f64>() / f64::from(options.normalizer)
    };
    Array { shape: vec![1], data: vec![loss] }
}

/// `z_target − lse` per row, 0 without a label.
pub(super) fn logprobs(x: &Array, head: &[Array], targets: &[i32], cap: Option<f32>) -> Array {
    let value = |row: Option<(f64, f64)>| row.map_or(0.0, |(lse, target)| target - lse);
    Array {
        shape: x.shape[..x.shape.len() - 1].to_vec(),
        data: rows(x, head, targets, cap).into_iter().map(value).collect(),
    }
}
