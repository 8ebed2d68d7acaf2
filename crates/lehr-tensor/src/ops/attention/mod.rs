//! Softmax attention with shared key-value heads and interval masks.

mod cpu;
pub(crate) mod cuda;
mod mask;
#[cfg(test)]
mod paged_tests;
mod pages;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::pages::Pages;
pub use mask::Mask;

use lehr_kernels::threads::SharedMut;

use crate::autograd::{Gradients, Op, record1, will_run_backward};
use crate::{DType, Error, Result, Tensor};
use cpu::{Heads, HeadsMut, Problem};

const OP: &str = "attention";

impl Tensor {
    /// `softmax(scale · q kᵀ + mask) v`, head by head.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | q `[B, Tq, H, E]` |
    /// | `k`, `v` | `[B, Tk, K, E]`; K divides H, and H / K consecutive query heads share one. Pools `[n_pages, P, K, E]` if the mask has pages |
    /// | `mask` | which keys each query sees; queries stand at the end of the keys |
    /// | `scale` | usually `1 / √E` |
    /// | returns | `[B, Tq, H, E]`; 0 for a query that sees nothing |
    ///
    /// Memory is linear in T: tiles of 64 queries and 64 keys with a running softmax. Saves q, k,
    /// v, the result and one log-sum-exp per query and head; backward recomputes the tiles. In
    /// training with [`Mask::in_bf16`] the CPU's products are in bf16, and so is what is saved.
    ///
    /// On the CPU queries are computed independently: the bits of a query depend on it and on the
    /// keys and values it sees, at their places in the text. They do not depend on the other
    /// queries (a prompt may be read in chunks), the other texts, pages or the number of threads.
    ///
    /// Dao 2023, "FlashAttention-2", <https://arxiv.org/abs/2307.08691>.
    ///
    /// # Errors
    /// If shapes do not fit, the mask has other extents or impossible positions, `scale` is not
    /// finite, or memory runs out.
    pub fn attention(&self, k: &Self, v: &Self, mask: &Mask, scale: f32) -> Result<Self> {
        if let Some(pages) = mask.pages() {
            return pages::attention(self, (k, v), (mask, pages), scale);
        }
        let size = check(self, k, v)?;
        check_scale(scale)?;
        let inputs = Inputs::Separate { q: self.detach(), k: k.detach(), v: v.detach() };
        let wanted = will_run_backward(&[self, k, v]);
        let (out, saved) = forward(&inputs, size, mask, scale, wanted)?;
        let out = out.with_shape(self.shape());
        Ok(match saved {
            Some(saved) => record1(&[self, k, v], out, || saved),
            None => out,
        })
    }

    /// [`Tensor::attention`] over the output of one projection: `self` is `[B, T, (H + 2K) · E]`
    /// with the query heads, then the key heads, then the value heads of each token. Returns
    /// `[B, T, H · E]`. The gradient is written into one buffer of the shape of `self`.
    ///
    /// # Errors
    /// As [`Tensor::attention`], or if the width is not a multiple of `n_heads + 2 n_kv_heads`.
    pub fn attention_packed(
        &self,
        n_heads: usize,
        n_kv_heads: usize,
        mask: &Mask,
        scale: f32,
    ) -> Result<Self> {
        let size = check_packed(self, n_heads, n_kv_heads)?;
        check_scale(scale)?;
        let shape = self.shape().with_last_dim(n_heads * size.width);
        let wanted = will_run_backward(&[self]);
        let inputs = Inputs::Packed { qkv: self.detach() };
        let (out, saved) = forward(&inputs, size, mask, scale, wanted)?;
        let out = out.with_shape(shape);
        Ok(match saved {
            Some(saved) => record1(&[self], out, || saved),
            None => out,
        })
    }
}

fn check_scale(scale: f32) -> Result<()> {
    if scale.is_finite() {
        return Ok(());
    }
    let (value, expected) = (scale.to_string(), "a finite number");
    Err(Error::Argument { op: OP, name: "scale", value, expected })
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<AttentionSize> {
    for x in [q, k, v] {
        x.expect_float(OP)?;
        if x.shape().len() != 4 {
            let expected = "four dimensions: batch, time, heads, head width".to_owned();
            return Err(Error::Rank { op: OP, found: x.shape(), expected });
        }
    }
    super::expect_same(OP, k, v)?;
    q.expect_beside(OP, k)?;
    let (qs, ks) = (q.shape(), k.shape());
    if qs[0] != ks[0] || qs[3] != ks[3] {
        let rule = "batch and head width of queries and keys must be equal";
        return Err(Error::Shape { op: OP, lhs: qs, rhs: ks, rule });
    }
    if ks[2] == 0 || !qs[2].is_multiple_of(ks[2]) {
        let rule = "the number of key-value heads must divide the number of query heads";
        return Err(Error::Shape { op: OP, lhs: qs, rhs: ks, rule });
    }
    Ok(AttentionSize {
        batch: qs[0],
        tq: qs[1],
        tk: ks[1],
        n_heads: qs[2],
        n_kv_heads: ks[2],
        width: qs[3],
    })
}

fn check_packed(qkv: &Tensor, n_heads: usize, n_kv_heads: usize) -> Result<AttentionSize> {
    qkv.expect_float(OP)?;
    if n_kv_heads == 0 || n_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        let (value, expected) = (n_kv_heads.to_string(), "a divisor of the number of query heads");
        return Err(Error::Argument { op: OP, name: "n_kv_heads", value, expected });
    }
    let n_all = n_heads.saturating_add(n_kv_heads.saturating_mul(2));
    match *qkv.shape() {
        [batch, t, wide] if wide.is_multiple_of(n_all) => {
            Ok(AttentionSize { batch, tq: t, tk: t, n_heads, n_kv_heads, width: wide / n_all })
        }
        _ => {
            let expected = format!("batch, time and a multiple of {n_all} (all heads)");
            Err(Error::Rank { op: OP, found: qkv.shape(), expected })
        }
    }
}

/// The dimensions of one call.
#[derive(Clone, Copy)]
struct AttentionSize {
    batch: usize,
    tq: usize,
    tk: usize,
    n_heads: usize,
    n_kv_heads: usize,
    /// E.
    width: usize,
}

/// Queries, keys and values: three tensors or one.
enum Inputs {
    Separate { q: Tensor, k: Tensor, v: Tensor },
    Packed { qkv: Tensor },
}

impl Inputs {
    /// The same values in another type.
    fn cast(&self, dtype: DType) -> Result<Self> {
        let cast = |x: &Tensor| Ok(x.cast(dtype)?.detach());
        Ok(match self {
            Self::Separate { q, k, v } => Self::Separate { q: cast(q)?, k: cast(k)?, v: cast(v)? },
            Self::Packed { qkv } => Self::Packed { qkv: cast(qkv)? },
        })
    }

    /// The tensor that holds the queries.
    fn first(&self) -> &Tensor {
        match self {
            Self::Separate { q, .. } => q,
            Self::Packed { qkv } => qkv,
        }
    }

    /// Returns the positions of q, k and v.
    fn heads(&self, size: AttentionSize) -> [Heads<'_>; 3] {
        let AttentionSize { n_heads, n_kv_heads, width, .. } = size;
        let (q_width, kv_width) = (n_heads * width, n_kv_heads * width);
        match self {
            Self::Separate { q, k, v } => [
                Heads { data: q.data(), offset: 0, stride: q_width },
                Heads { data: k.data(), offset: 0, stride: kv_width },
                Heads { data: v.data(), offset: 0, stride: kv_width },
            ],
            Self::Packed { qkv } => {
                let (data, stride) = (qkv.data(), q_width + 2 * kv_width);
                [0, q_width, q_width + kv_width].map(|offset| Heads { data, offset, stride })
            }
        }
    }
}

fn problem<'a>(
    inputs: &'a Inputs,
    size: AttentionSize,
    scale: f32,
    seen: &'a CpuMask,
) -> Problem<'a> {
    let [q, k, v] = inputs.heads(size);
    let &CpuMask { ref intervals, n_keys, in_bf16 } = seen;
    Problem { size, n_keys, scale, intervals: intervals.elements(), pages: None, in_bf16, q, k, v }
}

/// The inputs of backward: q, k, v, the result and one log-sum-exp per query and head.
struct Saved {
    inputs: Inputs,
    size: AttentionSize,
    scale: f32,
    /// `[B, Tq, H, E]`.
    out: Tensor,
    /// `ln Σ exp(score)` per query, `[B, H, Tq]`.
    lse: Tensor,
    mask: SavedMask,
}

/// The keys that each query saw, in the form of the device's kernels.
enum SavedMask {
    Cpu(CpuMask),
    Cuda(cuda::Seen),
}

struct CpuMask {
    intervals: Tensor,
    n_keys: usize,
    /// Whether the products are in bf16.
    in_bf16: bool,
}

/// Computes the result, `[B, Tq, H, E]`, and the inputs of backward if they are `wanted`.
fn forward(
    inputs: &Inputs,
    size: AttentionSize,
    mask: &Mask,
    scale: f32,
    wanted: bool,
) -> Result<(Tensor, Option<Saved>)> {
    let AttentionSize { batch, tq, n_heads, width, .. } = size;
    let q = inputs.first();
    let mut out = q.like([batch, tq, n_heads, width])?;
    let mut lse = wanted.then(|| q.like_f32([batch, n_heads, tq])).transpose()?;
    let mask = if q.is_cuda() {
        let seen = cuda::Seen::of(mask, size, q)?;
        cuda::forward(inputs, size, &seen, scale, &mut out, lse.as_mut())?;
        SavedMask::Cuda(seen)
    } else {
        let intervals = mask.intervals(size.batch, size.tq, size.tk)?;
        let n_keys = mask.n_keys(size.tk);
        let seen = CpuMask { intervals, n_keys, in_bf16: wanted && mask.products_in_bf16() };
        let problem = problem(inputs, size, scale, &seen);
        cpu::forward(&problem, out.data_mut(), lse.as_mut().map(Tensor::data_mut))?;
        SavedMask::Cpu(seen)
    };
    let Some(lse) = lse else { return Ok((out, None)) };
    let dtype = match &mask {
        SavedMask::Cpu(seen) if seen.in_bf16 => DType::BF16,
        _ => out.dtype(),
    };
    let (inputs, kept) = (inputs.cast(dtype)?, out.cast(dtype)?.detach());
    Ok((out, Some(Saved { inputs, size, scale, out: kept, lse, mask })))
}

impl Op for Saved {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        match &self.mask {
            SavedMask::Cpu(seen) => self.backward_cpu(&dy, seen, grads),
            SavedMask::Cuda(seen) => self.backward_cuda(&dy, seen, grads),
        }
    }
}

impl Saved {
    fn backward_cuda(
        &self,
        dy: &Tensor,
        seen: &cuda::Seen,
        grads: &mut Gradients<'_>,
    ) -> Result<()> {
        let Self { inputs, size, scale, out, lse, .. } = self;
        let saved = cuda::Backward { inputs, size: *size, seen, scale: *scale, out, lse };
        match inputs {
            Inputs::Packed { qkv } => grads
                .write_like(0, qkv, |dqkv, accumulate| saved.run(dy, &[Some(dqkv)], accumulate)),
            Inputs::Separate { q, k, v } => {
                let room = |(i, x): (usize, &Tensor)| {
                    grads.wants(i).then(|| x.like(x.shape())).transpose()
                };
                let [dq, dk, dv] = [room((0, q))?, room((1, k))?, room((2, v))?];
                saved.run(dy, &[dq.as_ref(), dk.as_ref(), dv.as_ref()], false)?;
                add_all(grads, [dq, dk, dv])
            }
        }
    }

    fn backward_cpu(&self, dy: &Tensor, seen: &CpuMask, grads: &mut Gradients<'_>) -> Result<()> {
        let (inputs, out) = (self.inputs.cast(DType::F32)?, self.out.to_f32()?);
        let problem = problem(&inputs, self.size, self.scale, seen);
        let saved = cpu::Saved { out: out.data(), lse: self.lse.data(), dy: dy.data() };
        let AttentionSize { n_heads, n_kv_heads, width, .. } = self.size;
        let (q_width, kv_width) = (n_heads * width, n_kv_heads * width);
        match &self.inputs {
            Inputs::Packed { qkv } => grads.write(0, qkv.shape(), |dqkv, accumulate| {
                let (data, stride) = (SharedMut::new(dqkv), q_width + 2 * kv_width);
                let parts = [0, q_width, q_width + kv_width];
                let parts = parts.map(|offset| Some(HeadsMut { data, offset, stride }));
                cpu::backward(&problem, &saved, parts, accumulate)
            }),
            // The three gradients are computed at once, so none can be written in place alone.
            Inputs::Separate { q, k, v } => {
                let parts = [(0, q, q_width), (1, k, kv_width), (2, v, kv_width)]
                    .map(|(i, x, stride)| (grads.wants(i).then(|| x.shape()), stride));
                let mut tensors = [None, None, None];
                let mut views = [None; 3];
                for (i, (shape, stride)) in parts.into_iter().enumerate() {
                    let Some(shape) = shape else { continue };
                    let tensor = tensors[i].insert(Tensor::uninit(shape, DType::F32)?);
                    let data = SharedMut::new(tensor.data_mut());
                    views[i] = Some(HeadsMut { data, offset: 0, stride });
                }
                cpu::backward(&problem, &saved, views, false)?;
                add_all(grads, tensors)
            }
        }
    }
}

/// Adds the given gradients to those of inputs 0, 1 and 2.
fn add_all(grads: &mut Gradients<'_>, parts: [Option<Tensor>; 3]) -> Result<()> {
    for (i, grad) in parts.into_iter().enumerate() {
        if let Some(grad) = grad {
            grads.add(i, grad)?;
        }
    }
    Ok(())
}
