//! The loss and its gradients, chunk by chunk of rows, so that the logits `[N, V]` never exist as a
//! whole.
//!
//! ```text
//! for each chunk of n rows
//!   z  = x Wᵀ + bias                  [n, V]   the only large buffer, reused by all chunks
//!   loss, z → dz in place             [n, V]
//!   dx = dz W                         [n, D]
//!   dW += dzᵀ x                       [V, D]
//!   db += Σ dz over rows              [V]
//! ```
//!
//! With `lse = ln Σ e^z` a row's loss is `lse − z_label + z_loss · lse²`, and its gradient
//! `dz = factor · ((1 + 2 z_loss · lse) · softmax(z) − onehot(label))`. As `dz` follows from `z`
//! alone, gradients are computed in the forward pass: the factor is known, and otherwise backward
//! would compute `x Wᵀ` a second time. So the memory is O(n V) for the logits plus the gradients,
//! instead of O(N V).

mod rounded;

use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::linear::{LinearSize, WeightLayout::OutIn, bf16, cpu as linear};
use crate::ops::linear_q::cpu as linear_q;
use crate::ops::softcap::cpu::cap_row;
use crate::ops::softmax::cpu::{exp_scaled, max_and_sum};
use crate::ops::{rows_per_task, softcap};
use crate::{DType, Result, Tensor};

use super::HeadWeight;
use super::labels::Labelled;
use crate::quant::QMatrix;

/// Largest number of logits in one chunk: 32 MiB.
const LOGITS_MAX: usize = 1 << 23;
/// Smallest number of rows in a chunk: each chunk reads all of W twice and reads and writes all of
/// dW, which only many rows make up for.
const ROWS_MIN: usize = 64;

/// Rows per chunk. It depends on the shape alone, because it decides the order in which dW is
/// summed. Chunks have almost equal size.
fn chunk_rows(n: usize, n_vocabulary: usize) -> usize {
    let most = (LOGITS_MAX / n_vocabulary.max(1)).max(ROWS_MIN);
    n.div_ceil(n.div_ceil(most).max(1)).max(1)
}

/// The form of the loss of one row of logits.
#[derive(Clone, Copy)]
pub(super) struct RowLoss {
    pub(super) n_vocabulary: usize,
    pub(super) z_loss: f32,
    pub(super) softcap: Option<f32>,
}

/// The weight, `[V, D]`.
#[derive(Clone, Copy)]
enum Matrix<'a> {
    Dense(&'a [f32]),
    /// Products with it are in bf16.
    Rounded(bf16::Weight<'a>),
    Stored(&'a QMatrix),
}

/// A language-model or classifier head with its inputs and labels.
pub(super) struct Head<'a> {
    x: &'a [f32],
    weight: Matrix<'a>,
    bias: Option<&'a [f32]>,
    labels: &'a [i32],
    width: usize,
    loss: RowLoss,
    pub(super) chunk_rows: usize,
}

/// Upstream gradients of the losses of the rows.
pub(super) enum Factors<'a> {
    Same(f32),
    PerRow(&'a [f32]),
}

impl Factors<'_> {
    /// Those of the rows from `first`.
    fn from(&self, first: usize) -> Factors<'_> {
        match self {
            Self::Same(factor) => Factors::Same(*factor),
            Self::PerRow(each) => Factors::PerRow(&each[first..]),
        }
    }
}

/// The gradient of the weight, and whether it is added to what is there.
pub(super) struct WeightGrad<'a> {
    pub(super) dw: &'a mut [f32],
    pub(super) accumulate: bool,
}

/// Buffers of the wanted gradients; those of `x` and the bias are overwritten.
#[derive(Default)]
pub(super) struct HeadGrads<'a> {
    pub(super) dx: Option<&'a mut [f32]>,
    pub(super) weight: Option<WeightGrad<'a>>,
    pub(super) db: Option<&'a mut [f32]>,
}

impl<'a> Head<'a> {
    /// `x` holds the labelled rows only.
    pub(super) fn new(
        x: &'a Tensor,
        weight: HeadWeight<'a>,
        bias: Option<&'a Tensor>,
        rows: &'a Labelled,
        z_loss: f32,
        softcap: Option<f32>,
    ) -> Self {
        let &[n_vocabulary, width] = &*weight.shape() else { unreachable!("checked by the op") };
        let weight = match weight {
            HeadWeight::Dense(weight) if weight.has_panels() => {
                Matrix::Rounded(bf16::Weight::Param(weight))
            }
            HeadWeight::Stored(weight) if weight.is_in_bf16() && width > 0 => {
                Matrix::Rounded(bf16::Weight::Stored(weight))
            }
            HeadWeight::Dense(weight) => Matrix::Dense(weight.data()),
            HeadWeight::Stored(weight) => Matrix::Stored(weight),
        };
        Self {
            x: x.data(),
            weight,
            bias: bias.map(Tensor::data),
            labels: rows.labels(),
            width,
            loss: RowLoss { n_vocabulary, z_loss, softcap },
            chunk_rows: match weight {
                Matrix::Rounded(_) => rounded::chunk_rows(rows.len(), n_vocabulary),
                Matrix::Dense(_) | Matrix::Stored(_) => chunk_rows(rows.len(), n_vocabulary),
            },
        }
    }

    /// Computes the loss of each row.
    pub(super) fn forward(&self, losses: &mut [f32]) -> Result<()> {
        self.for_each_chunk(losses, |chunk, logits, losses| {
            self.loss.turn(logits, &self.labels[chunk.first..], losses, None);
            Ok(())
        })
    }

    /// Computes the loss of each row and the gradients of `Σ factor · loss`.
    pub(super) fn forward_backward(
        &self,
        losses: &mut [f32],
        factors: &Factors<'_>,
        mut grads: HeadGrads<'_>,
    ) -> Result<()> {
        if losses.is_empty() {
            if let Some(grad) = grads.weight.filter(|grad| !grad.accumulate) {
                threads::run_chunks(grad.dw, lehr_kernels::CHUNK, |_, dw| dw.fill(0.0));
            }
            grads.db.into_iter().for_each(|db| db.fill(0.0));
            return Ok(());
        }
        if let Matrix::Rounded(weight) = self.weight {
            return self.forward_backward_rounded(weight, losses, factors, grads);
        }
        let (v, d) = (self.loss.n_vocabulary, self.width);
        self.for_each_chunk(losses, |chunk, logits, losses| {
            let factors = factors.from(chunk.first);
            self.loss.turn(logits, &self.labels[chunk.first..], losses, Some(&factors));
            let size = LinearSize { rows: chunk.n, n_out: v, n_in: d };
            let range = chunk.first * d..(chunk.first + chunk.n) * d;
            if let Some(dx) = grads.dx.as_deref_mut() {
                let dx = &mut dx[range.clone()];
                match self.weight {
                    Matrix::Dense(w) => {
                        linear::backward_input(size, logits, w, OutIn, dx, false)?;
                    }
                    Matrix::Stored(w) if d > 0 => linear_q::backward(w, logits, dx, false)?,
                    Matrix::Stored(_) => (),
                    Matrix::Rounded(_) => unreachable!("rounded weights have their own loop"),
                }
            }
            if let Some(grad) = grads.weight.as_mut() {
                let add = grad.accumulate || chunk.first > 0;
                linear::backward_weight(size, logits, &self.x[range], OutIn, grad.dw, add)?;
            }
            if let Some(db) = grads.db.as_deref_mut() {
                linear::column_sums(logits, db, chunk.first > 0);
            }
            Ok(())
        })
    }

    /// Computes the logits of each chunk into one buffer and hands them to `body`.
    fn for_each_chunk(
        &self,
        losses: &mut [f32],
        mut body: impl FnMut(Chunk, &mut [f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let (v, d) = (self.loss.n_vocabulary, self.width);
        let n_max = self.chunk_rows.min(losses.len());
        let mut logits = Tensor::uninit([n_max, v], DType::F32)?;
        for (index, losses) in losses.chunks_mut(self.chunk_rows).enumerate() {
            let chunk = Chunk { first: index * self.chunk_rows, n: losses.len() };
            let logits = &mut logits.data_mut()[..chunk.n * v];
            let x = &self.x[chunk.first * d..(chunk.first + chunk.n) * d];
            let size = LinearSize { rows: chunk.n, n_out: v, n_in: d };
            match self.weight {
                Matrix::Stored(w) if d > 0 => linear_q::forward(w, x, self.bias, logits)?,
                // A weight without columns has nothing to read.
                Matrix::Stored(_) => {
                    linear::forward(size, x, &[], OutIn, self.bias, logits)?;
                }
                Matrix::Dense(w) => {
                    linear::forward(size, x, w, OutIn, self.bias, logits)?;
                }
                Matrix::Rounded(w) => {
                    let x = bf16::Input::pack(x, size, OutIn, false)?;
                    bf16::forward(&x, w, OutIn, self.bias, logits)?;
                }
            }
            body(chunk, logits, losses)?;
        }
        Ok(())
    }
}

impl RowLoss {
    /// Computes the losses of rows of logits. With factors, it also turns the logits into their
    /// gradient in place.
    pub(super) fn turn(
        &self,
        logits: &mut [f32],
        labels: &[i32],
        losses: &mut [f32],
        factors: Option<&Factors<'_>>,
    ) {
        let (v, rows) = (self.n_vocabulary, rows_per_task(self.n_vocabulary));
        let losses = SharedMut::new(losses);
        threads::run_chunks(logits, rows * v, |index, logits| {
            let first = index * rows;
            // SAFETY: tasks own disjoint rows.
            let losses = unsafe { losses.slice(first, logits.len() / v) };
            let labels = &labels[first..];
            dispatch(Rows { loss: self, logits, labels, losses, factors, first });
        });
    }
}

/// A range of rows.
struct Chunk {
    first: usize,
    n: usize,
}

struct Rows<'a> {
    loss: &'a RowLoss,
    logits: &'a mut [f32],
    labels: &'a [i32],
    losses: &'a mut [f32],
    factors: Option<&'a Factors<'a>>,
    /// Number of the first row among the factors.
    first: usize,
}

impl Kernel for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.logits.chunks_exact_mut(self.loss.n_vocabulary);
        for (r, (row, loss)) in rows.zip(self.losses).enumerate() {
            let factor = self.factors.map(|factors| match factors {
                Factors::Same(factor) => *factor,
                Factors::PerRow(each) => each[self.first + r],
            });
            *loss = self.loss.row(s, row, self.labels[r] as usize, factor);
        }
    }
}

impl RowLoss {
    /// Computes the loss of one row of logits. With a factor, the row becomes its gradient
    /// `factor · ((1 + 2 z lse) e^(y − lse) − onehot)`, times `1 − (y / c)²` with a cap: the
    /// derivative of `y = c tanh(z / c)`.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: &mut [f32], label: usize, factor: Option<f32>) -> f32 {
        if let Some(cap) = self.softcap {
            cap_row(s, cap, row);
        }
        let (max, sum) = max_and_sum(s, row);
        let target = row[label];
        let log_sum = f64::from(sum).ln();
        let lse = f64::from(max) + log_sum;
        let z = f64::from(self.z_loss);
        // `max − target` first, the difference of two close numbers: small losses keep their
        // digits.
        let loss = log_sum + (f64::from(max) - f64::from(target)) + z * lse * lse;
        if let Some(factor) = factor {
            let scale = (f64::from(factor) * (1.0 + 2.0 * z * lse) / f64::from(sum)) as f32;
            let mut pull = factor;
            if let Some(cap) = self.softcap {
                pull *= softcap::cpu::slope(cap, target);
                // SAFETY: in place over one row.
                unsafe { capped_gradient(s, row.as_mut_ptr(), row.len(), max, scale, cap) };
            } else {
                let (x, y, len) = (row.as_ptr(), row.as_mut_ptr(), row.len());
                // SAFETY: in place over one row.
                unsafe { exp_scaled(s, x, y, len, max, scale) };
            }
            row[label] -= pull;
        }
        loss as f32
    }
}

/// Computes `y ← e^(y − max) · scale · (1 − (y / c)²)`.
///
/// # Safety
/// `row` is valid for `len` numbers.
#[inline(always)]
unsafe fn capped_gradient<S: Simd>(
    s: S,
    row: *mut f32,
    len: usize,
    max: f32,
    scale: f32,
    cap: f32,
) {
    for i in (0..len).step_by(S::LANES) {
        let n = (len - i).min(S::LANES);
        // SAFETY: `n` numbers from i lie within the row.
        unsafe {
            let y = s.load_n(row.add(i), n);
            let e = lehr_kernels::math::exp(s, s.sub(y, s.splat(max)));
            let t = s.mul(y, s.splat(1.0 / cap));
            let slope = s.sub(s.splat(1.0), s.mul(t, t));
            s.store_n(row.add(i), s.mul(s.mul(e, s.splat(scale)), slope), n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_within_the_limit() {
        for (n, v) in
            [(0, 7), (1, 1), (2048, 16_384), (4097, 50_257), (70, 300_000), (500, 1 << 25)]
        {
            let rows = chunk_rows(n, v);
            assert!(rows >= 1 && (rows * v <= LOGITS_MAX || rows <= ROWS_MIN), "{n} {v}: {rows}");
            assert!(rows >= ROWS_MIN.min(n) / 2, "{n} {v}: {rows}");
        }
        assert_eq!(chunk_rows(2048, 16_384), 512);
    }
}
