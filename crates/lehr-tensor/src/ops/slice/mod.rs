//! A range of one dimension.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use lehr_kernels::strided::{RunSize, Runs, clear, copy};

use super::concat::runs;
use crate::autograd::{Gradients, Op, record1};
use crate::copy::copy_runs;
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// A copy of the part whose index along dimension `dim` lies in `range`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., N, ..]` |
    /// | returns | `[.., range.len(), ..]` |
    ///
    /// Saves the shape only. The gradient is 0 outside of the range.
    ///
    /// # Errors
    /// If the range is not within `0..N`, there is no such dimension or memory runs out.
    pub fn slice(&self, dim: usize, range: Range<usize>) -> Result<Self> {
        const OP: &str = "slice";
        self.expect_float(OP)?;
        super::expect_rank_min(OP, self, dim + 1)?;
        if range.start > range.end || range.end > self.shape()[dim] {
            let value = format!("{range:?} of {} along dimension {dim}", self.shape());
            let expected = "a range within the dimension";
            return Err(Error::Argument { op: OP, name: "range", value, expected });
        }
        let mut dims = self.shape().to_vec();
        dims[dim] = range.len();
        let mut y = self.like(&dims)?;
        let op = Slice { shape: self.shape(), dim, range };
        let (size, from) = op.runs();
        if self.is_cuda() {
            copy_runs(size, self, from, &mut y, Runs::packed(size.len), false)?;
        } else {
            copy(size, self.data(), from, y.data_mut(), Runs::packed(size.len), false);
        }
        Ok(record1(&[self], y, || op))
    }
}

struct Slice {
    shape: Shape,
    dim: usize,
    range: Range<usize>,
}

impl Slice {
    /// Number and length of the contiguous pieces, and where they lie in the whole.
    fn runs(&self) -> (RunSize, Runs) {
        let RunSize { n, len: stride } = runs(&self.shape, self.dim);
        let inner: usize = self.shape[self.dim + 1..].iter().product();
        let at = Runs { offset: self.range.start * inner, stride };
        (RunSize { n, len: self.range.len() * inner }, at)
    }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let (size, at) = self.runs();
        if dy.is_cuda() {
            if !grads.wants(0) {
                return Ok(());
            }
            let like = dy.like(self.shape)?;
            return grads.write_like(0, &like, |dx, accumulate| {
                if !accumulate {
                    dx.fill_zero()?;
                }
                copy_runs(size, &dy, Runs::packed(size.len), dx, at, accumulate)
            });
        }
        grads.write(0, self.shape, |dx, accumulate| {
            if !accumulate {
                let (n, end) = (size.n, at.offset + size.len);
                let (before, after) = (at.offset, at.stride - end);
                clear(RunSize { n, len: before }, dx, Runs { offset: 0, ..at });
                clear(RunSize { n, len: after }, dx, Runs { offset: end, ..at });
            }
            copy(size, dy.data(), Runs::packed(size.len), dx, at, accumulate);
            Ok(())
        })
    }
}
