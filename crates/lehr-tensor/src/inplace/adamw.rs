//! The AdamW update, fused: one pass over parameter, gradient and both moments.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use super::{Clip, cuda};
use crate::{Param, Result, Tensor};

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay: the parameter shrinks by `lr * weight_decay` first.
    pub weight_decay: f32,
    /// Whether only weights decay whose update also moves them towards 0 (Chen et al. 2025,
    /// <https://arxiv.org/abs/2510.12402>).
    pub cautious: bool,
    /// The gradient is multiplied by this first: it undoes loss scaling.
    pub grad_scale: f32,
    /// Number of this update, from 1, for the bias correction.
    pub step: u64,
}

impl AdamW {
    /// `lr / (1 − β₁ᵗ)` and `1 / √(1 − β₂ᵗ)`.
    pub(super) fn corrections(&self) -> (f32, f32) {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(self.step as f64);
        let step_size = (f64::from(self.lr) / correction(self.beta1)) as f32;
        (step_size, (1.0 / correction(self.beta2).sqrt()) as f32)
    }
}

/// A parameter with its moments and its own factors of the update.
pub struct AdamWItem<'a> {
    /// The parameter. Without a gradient it does not change.
    pub param: &'a Param,
    /// First moment, on the parameter's device.
    pub m: &'a mut Tensor,
    /// Second moment.
    pub v: &'a mut Tensor,
    /// Factor on the learning rate.
    pub lr_scale: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

/// Applies [`adamw`] to many parameters on any device. On a GPU this is one launch for all of them,
/// which reads on the device whether and how much to clip.
///
/// # Errors
/// If a parameter is still in use by a graph, or a device fails.
pub fn adamw_params(
    items: &mut [AdamWItem<'_>],
    mut rule: AdamW,
    clip: Option<Clip<'_>>,
) -> Result<()> {
    let is_cuda = items.first().is_some_and(|item| item.m.is_cuda());
    match clip {
        Some(clip) if is_cuda && clip.squared_norm.on_cuda().is_some() => {
            return on_cuda(items, rule, Some(clip));
        }
        Some(clip) => {
            let sum = clip.squared_norm.get()?;
            match clip.scale(sum, rule.grad_scale) {
                Some(scale) => rule.grad_scale = scale,
                None => return Ok(()),
            }
        }
        None => (),
    }
    if is_cuda {
        return on_cuda(items, rule, None);
    }
    for item in items {
        let rule = AdamW { lr: rule.lr * item.lr_scale, weight_decay: item.weight_decay, ..rule };
        let (m, v) = (item.m.data_mut(), item.v.data_mut());
        item.param.update(|value, grad| {
            if let Some(grad) = grad {
                adamw(value, grad, m, v, rule);
            }
        })?;
    }
    Ok(())
}

fn on_cuda(items: &[AdamWItem<'_>], rule: AdamW, clip: Option<Clip<'_>>) -> Result<()> {
    let mut parts = Vec::new();
    for item in items {
        if let Some(grad) = item.param.grad() {
            let (value, shadow) = item.param.parts_to_write()?;
            parts.push((item, value, shadow, grad));
        }
    }
    let all: Vec<_> = parts
        .iter()
        .map(|(item, param, shadow, grad)| cuda::Item {
            param,
            shadow: shadow.as_ref(),
            grad,
            m: item.m,
            v: item.v,
            lr_scale: item.lr_scale,
            weight_decay: item.weight_decay,
        })
        .collect();
    cuda::adamw_all(&all, rule, clip)
}

/// Updates `param` and the moments `m`, `v` in place:
///
/// `p ← p (1 − lr λ); m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²;
/// p ← p − lr · m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)`, `v̂ = v / (1 − β₂ᵗ)`.
///
/// If `rule.cautious`, the first step leaves out weights whose `p m` is negative.
///
/// Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>; the order of operations is
/// PyTorch's.
///
/// # Panics
/// If the slices differ in length.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], rule: AdamW) {
    let n = param.len();
    assert!(grad.len() == n && m.len() == n && v.len() == n, "adamw: slices of one length");
    let (step_size, v_scale) = rule.corrections();
    let (m, v) = (SharedMut::new(m), SharedMut::new(v));
    threads::run_chunks(param, CHUNK, |index, param| {
        let (start, len) = (index * CHUNK, param.len());
        // SAFETY: chunks of different indices do not overlap.
        let (m, v) = unsafe { (m.slice(start, len), v.slice(start, len)) };
        dispatch(Update { param, grad: &grad[start..start + len], m, v, rule, step_size, v_scale });
    });
}

struct Update<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    rule: AdamW,
    step_size: f32,
    v_scale: f32,
}

impl Kernel for Update<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { param, grad, m, v, rule, step_size, v_scale } = self;
        let (beta1, beta2) = (s.splat(rule.beta1), s.splat(rule.beta2));
        let (rest1, rest2) = (s.splat(1.0 - rule.beta1), s.splat(1.0 - rule.beta2));
        let keep = s.splat(1.0 - rule.lr * rule.weight_decay);
        let (eps, v_scale) = (s.splat(rule.eps), s.splat(v_scale));
        let (minus_step, g_scale) = (s.splat(-step_size), s.splat(rule.grad_scale));
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        for i in (0..param.len()).step_by(S::LANES) {
            let n = (param.len() - i).min(S::LANES);
            // SAFETY: `n` numbers from i are within all four slices, which have one length.
            unsafe {
                let g = s.mul(s.load_n(grad.as_ptr().add(i), n), g_scale);
                let m_new = s.fma(beta1, s.load_n(m.as_ptr().add(i), n), s.mul(rest1, g));
                let gg = s.mul(rest2, s.mul(g, g));
                let v_new = s.fma(beta2, s.load_n(v.as_ptr().add(i), n), gg);
                let root = s.fma(s.sqrt(v_new), v_scale, eps);
                let p = s.load_n(param.as_ptr().add(i), n);
                let keep = match rule.cautious {
                    true => s.select_gt(zero, s.mul(m_new, p), one, keep),
                    false => keep,
                };
                let p = s.mul(p, keep);
                let p = s.fma(minus_step, s.div(m_new, root), p);
                s.store_n(m.as_mut_ptr().add(i), m_new, n);
                s.store_n(v.as_mut_ptr().add(i), v_new, n);
                s.store_n(param.as_mut_ptr().add(i), p, n);
            }
        }
    }
}
