//! Rows are tokens: each task copies some of them.

use lehr_kernels::threads;

use super::{AtStart, PreviousRows};
use crate::Tensor;
use crate::ops::rows_per_task;

/// Tokens per sequence, and the width of a token and of a head.
fn sizes(x: &Tensor) -> (usize, usize, usize) {
    let shape = x.shape();
    (shape[1], shape[2..].iter().product(), shape.last_dim())
}

/// `y`, from `x` and the rows before it.
pub(super) fn forward(x: &Tensor, before: Option<&Tensor>, op: &PreviousRows, y: &mut [f32]) {
    let (len, width, head) = sizes(x);
    if y.is_empty() {
        return;
    }
    let (x, starts, tokens) = (x.data(), op.starts.ids(), rows_per_task(width));
    threads::run_chunks(y, tokens * width, |index, y| {
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let token = index * tokens + i;
            y.copy_from_slice(&x[token * width..][..width]);
            let previous = match (starts[token], token % len, before) {
                (0, 1.., _) => Some(&x[(token - 1) * width..][..width]),
                (0, 0, Some(before)) => Some(&before.data()[token / len * width..][..width]),
                _ => None,
            };
            for (h, y) in y.chunks_exact_mut(head).enumerate() {
                let y = &mut y[op.channels.clone()];
                match previous {
                    Some(row) => y.copy_from_slice(&row[h * head..][op.channels.clone()]),
                    None if op.at_start == AtStart::Zero => y.fill(0.0),
                    None => {}
                }
            }
        }
    });
}

/// `dx (+)=` what each token passed to itself and to the next one.
pub(super) fn backward(dy: &Tensor, op: &PreviousRows, dx: &mut [f32], accumulate: bool) {
    let (len, width, head) = sizes(dy);
    if dx.is_empty() {
        return;
    }
    let (dy, starts, tokens) = (dy.data(), op.starts.ids(), rows_per_task(width));
    threads::run_chunks(dx, tokens * width, |index, dx| {
        for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
            let token = index * tokens + i;
            let own = &dy[token * width..][..width];
            let is_start = starts[token] != 0 || token % len == 0;
            let keeps = is_start && op.at_start == AtStart::Own;
            let passes = token % len + 1 < len && starts[token + 1] == 0;
            for (k, (dx, own)) in dx.iter_mut().zip(own).enumerate() {
                let value = match op.channels.contains(&(k % head)) {
                    false => *own,
                    true => {
                        let kept = if keeps { *own } else { 0.0 };
                        if passes { kept + dy[(token + 1) * width + k] } else { kept }
                    }
                };
                *dx = if accumulate { *dx + value } else { value };
            }
        }
    });
}
