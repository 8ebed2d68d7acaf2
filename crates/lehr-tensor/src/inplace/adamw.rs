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
    /// Whether weights with a gradient of exactly 0 keep their value and moments, decay included:
    /// the rows of an embedding that a batch does not use. They are not even read.
    pub lazy: bool,
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
/// If `rule.cautious`, the first step leaves out weights whose `p m` is negative. If `rule.lazy`,
/// nothing changes where `g` is 0.
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
        let len = param.len();
        let mut i = 0;
        while i < len {
            // SAFETY: the numbers of the run are within the slice.
            if rule.lazy && unsafe { is_zero(s, grad.as_ptr().add(i), RUN.min(len - i)) } {
                i += RUN;
                continue;
            }
            let end = if rule.lazy { len.min(i + RUN) } else { len };
            for i in (i..end).step_by(S::LANES) {
                let n = (end - i).min(S::LANES);
                // SAFETY: `n` numbers from i are within all four slices, which have one length.
                unsafe {
                    let grad = s.load_n(grad.as_ptr().add(i), n);
                    let (m_at, v_at) = (m.as_mut_ptr().add(i), v.as_mut_ptr().add(i));
                    let p_at = param.as_mut_ptr().add(i);
                    let (m_old, v_old) = (s.load_n(m_at, n), s.load_n(v_at, n));
                    let g = s.mul(grad, g_scale);
                    let mut m_new = s.fma(beta1, m_old, s.mul(rest1, g));
                    let mut v_new = s.fma(beta2, v_old, s.mul(rest2, s.mul(g, g)));
                    let root = s.fma(s.sqrt(v_new), v_scale, eps);
                    let p_old = s.load_n(p_at, n);
                    let keep = match rule.cautious {
                        true => s.select_gt(zero, s.mul(m_new, p_old), one, keep),
                        false => keep,
                    };
                    let mut p = s.fma(minus_step, s.div(m_new, root), s.mul(p_old, keep));
                    if rule.lazy {
                        // 0 is neither above nor below 0.
                        let size = s.max(grad, s.sub(zero, grad));
                        p = s.select_gt(size, zero, p, p_old);
                        m_new = s.select_gt(size, zero, m_new, m_old);
                        v_new = s.select_gt(size, zero, v_new, v_old);
                    }
                    s.store_n(m_at, m_new, n);
                    s.store_n(v_at, v_new, n);
                    s.store_n(p_at, p, n);
                }
            }
            i = end;
        }
    }
}

/// Numbers that a lazy update looks at together.
const RUN: usize = 64;

/// Returns whether `len` numbers are 0.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn is_zero<S: Simd>(s: S, numbers: *const f32, len: usize) -> bool {
    let mut largest = s.splat(0.0);
    for i in (0..len).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        let x = unsafe { s.load_n(numbers.add(i), (len - i).min(S::LANES)) };
        largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
    }
    s.hmax(largest) == 0.0
}
