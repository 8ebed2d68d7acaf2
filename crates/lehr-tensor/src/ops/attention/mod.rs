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

use crate::autograd::{Gradients, Op, record1, trains};
use crate::cpu::threads::SharedMut;
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
    /// v, the result and one log-sum-exp per query and head; backward computes the tiles anew.
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
        let wanted = trains(&[self, k, v]);
        let (out, saved) = forward(inputs, size, mask, scale, wanted)?;
        let out = out.with_shape(self.shape());
        Ok(match saved {
            Some(saved) => saved.record(&[self, k, v], out),
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
        let wanted = trains(&[self]);
        let inputs = Inputs::Packed { qkv: self.detach() };
        let (out, saved) = forward(inputs, size, mask, scale, wanted)?;
        let out = out.with_shape(shape);
        Ok(match saved {
            Some(saved) => saved.record(&[self], out),
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

fn check(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Size> {
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
    Ok(Size { batch: qs[0], tq: qs[1], tk: ks[1], n_heads: qs[2], n_kv_heads: ks[2], width: qs[3] })
}

fn check_packed(qkv: &Tensor, n_heads: usize, n_kv_heads: usize) -> Result<Size> {
    qkv.expect_float(OP)?;
    if n_kv_heads == 0 || n_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        let (value, expected) = (n_kv_heads.to_string(), "a divisor of the number of query heads");
        return Err(Error::Argument { op: OP, name: "n_kv_heads", value, expected });
    }
    let n_all = n_heads.saturating_add(n_kv_heads.saturating_mul(2));
    match *qkv.shape() {
        [batch, t, wide] if wide.is_multiple_of(n_all) => {
            Ok(Size { batch, tq: t, tk: t, n_heads, n_kv_heads, width: wide / n_all })
        }
        _ => {
            let expected = format!("batch, time and a multiple of {n_all} (all heads)");
            Err(Error::Rank { op: OP, found: qkv.shape(), expected })
        }
    }
}

/// The extents of one call.
#[derive(Clone, Copy)]
struct Size {
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
    /// The tensor that holds the queries.
    fn first(&self) -> &Tensor {
        match self {
            Self::Separate { q, .. } => q,
            Self::Packed { qkv } => qkv,
        }
    }

    /// Where q, k and v lie.
    fn heads(&self, size: Size) -> [Heads<'_>; 3] {
        let Size { n_heads, n_kv_heads, width, .. } = size;
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
    size: Size,
    scale: f32,
    intervals: &'a Tensor,
    n_keys: usize,
) -> Problem<'a> {
    let [q, k, v] = inputs.heads(size);
    Problem { size, n_keys, scale, intervals: intervals.elements(), pages: None, q, k, v }
}

/// The result as `[B, Tq, H, E]`, and what backward needs if it is wanted.
fn forward(
    inputs: Inputs,
    size: Size,
    mask: &Mask,
    scale: f32,
    wanted: bool,
) -> Result<(Tensor, Option<Saved>)> {
    let q = inputs.first();
    if q.is_cuda() {
        return forward_cuda(inputs, size, mask, scale, wanted);
    }
    let intervals = mask.intervals(size.batch, size.tq, size.tk)?;
    let n_keys = mask.n_keys(size.tk);
    let Size { batch, tq, n_heads, width, .. } = size;
    let mut out = Tensor::uninit([batch, tq, n_heads, width], DType::F32)?;
    let problem = problem(&inputs, size, scale, &intervals, n_keys);
    if !wanted {
        cpu::forward(&problem, out.data_mut(), None)?;
        return Ok((out, None));
    }
    let mut lse = Tensor::uninit([batch, n_heads, tq], DType::F32)?;
    cpu::forward(&problem, out.data_mut(), Some(lse.data_mut()))?;
    let saved = Attention { inputs, size, scale, intervals, n_keys, out: out.clone(), lse };
    Ok((out, Some(Saved::Cpu(saved))))
}

/// [`forward`] on a GPU.
fn forward_cuda(
    inputs: Inputs,
    size: Size,
    mask: &Mask,
    scale: f32,
    wanted: bool,
) -> Result<(Tensor, Option<Saved>)> {
    let Size { batch, tq, n_heads, width, .. } = size;
    let q = inputs.first();
    let seen = cuda::Seen::of(mask, size, q)?;
    let mut out = q.like([batch, tq, n_heads, width])?;
    if !wanted {
        cuda::forward(&inputs, size, &seen, scale, &mut out, None)?;
        return Ok((out, None));
    }
    let mut lse = q.like_f32([batch, n_heads, tq])?;
    cuda::forward(&inputs, size, &seen, scale, &mut out, Some(&mut lse))?;
    let saved = CudaAttention { inputs, size, scale, seen, out: out.clone(), lse };
    Ok((out, Some(Saved::Cuda(saved))))
}

/// What backward needs, by device.
enum Saved {
    Cpu(Attention),
    Cuda(CudaAttention),
}

impl Saved {
    fn record(self, inputs: &[&Tensor], out: Tensor) -> Tensor {
        match self {
            Self::Cpu(op) => record1(inputs, out, || op),
            Self::Cuda(op) => record1(inputs, out, || op),
        }
    }
}

/// [`Attention`] on a GPU.
struct CudaAttention {
    inputs: Inputs,
    size: Size,
    scale: f32,
    seen: cuda::Seen,
    out: Tensor,
    lse: Tensor,
}

impl Op for CudaAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let Self { inputs, size, scale, seen, out, lse } = self;
        let saved = cuda::Saved { inputs, size: *size, seen, scale: *scale, out, lse };
        match inputs {
            Inputs::Packed { qkv } => grads.write_like(0, qkv, |dqkv, accumulate| {
                saved.backward(&dy, &[Some(dqkv)], accumulate)
            }),
            Inputs::Separate { q, k, v } => {
                let room = |(i, x): (usize, &Tensor)| {
                    grads.wants(i).then(|| x.like(x.shape())).transpose()
                };
                let [dq, dk, dv] = [room((0, q))?, room((1, k))?, room((2, v))?];
                saved.backward(&dy, &[dq.as_ref(), dk.as_ref(), dv.as_ref()], false)?;
                for (i, grad) in [dq, dk, dv].into_iter().enumerate() {
                    if let Some(grad) = grad {
                        grads.add(i, grad)?;
                    }
                }
                Ok(())
            }
        }
    }
}

struct Attention {
    inputs: Inputs,
    size: Size,
    scale: f32,
    intervals: Tensor,
    n_keys: usize,
    out: Tensor,
    /// `ln Σ exp(score)` per query, `[B, H, Tq]`.
    lse: Tensor,
}

impl Attention {
    fn run_backward(&self, dy: &Tensor, grads: [Option<HeadsMut>; 3], add: bool) -> Result<()> {
        let problem = problem(&self.inputs, self.size, self.scale, &self.intervals, self.n_keys);
        let saved = cpu::Saved { out: self.out.data(), lse: self.lse.data(), dy: dy.data() };
        cpu::backward(&problem, &saved, grads, add)
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let Size { n_heads, n_kv_heads, width, .. } = self.size;
        let (q_width, kv_width) = (n_heads * width, n_kv_heads * width);
        match &self.inputs {
            Inputs::Packed { qkv } => grads.write(0, qkv.shape(), |dqkv, accumulate| {
                let (data, stride) = (SharedMut::new(dqkv), q_width + 2 * kv_width);
                let parts = [0, q_width, q_width + kv_width];
                let parts = parts.map(|offset| Some(HeadsMut { data, offset, stride }));
                self.run_backward(&dy, parts, accumulate)
            }),
            // The three gradients are computed at once, so none can be written in place alone.
            Inputs::Separate { q, k, v } => {
                let mut parts = [(0, q, q_width), (1, k, kv_width), (2, v, kv_width)]
                    .map(|(i, x, stride)| (grads.wants(i).then(|| x.shape()), stride));
                let mut tensors = [None, None, None];
                let mut views = [None; 3];
                for (i, (shape, stride)) in parts.iter_mut().enumerate() {
                    let Some(shape) = shape else { continue };
                    let tensor = tensors[i].insert(Tensor::uninit(*shape, DType::F32)?);
                    let data = SharedMut::new(tensor.data_mut());
                    views[i] = Some(HeadsMut { data, offset: 0, stride: *stride });
                }
                self.run_backward(&dy, views, false)?;
                for (i, tensor) in tensors.into_iter().enumerate() {
                    if let Some(tensor) = tensor {
                        grads.add(i, tensor)?;
                    }
                }
                Ok(())
            }
        }
    }
}
