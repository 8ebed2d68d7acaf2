//! A range of one dimension.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use super::concat::blocks;
use super::concat::cpu::{Blocks, clear, copy};
use super::thin;
use crate::autograd::{Gradients, Op, record1};
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
        let (size, from) = op.blocks();
        if self.is_cuda() {
            thin::cuda::copy_blocks(size, self, from, &mut y, Blocks::packed(size.1), false)?;
        } else {
            copy(size, self.data(), from, y.data_mut(), Blocks::packed(size.1), false);
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
    fn blocks(&self) -> ((usize, usize), Blocks) {
        let (n, stride) = blocks(&self.shape, self.dim);
        let inner: usize = self.shape[self.dim + 1..].iter().product();
        let at = Blocks { offset: self.range.start * inner, stride };
        ((n, self.range.len() * inner), at)
    }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let ((n, len), at) = self.blocks();
        if dy.is_cuda() {
            if !grads.wants(0) {
                return Ok(());
            }
            let like = dy.like(self.shape)?;
            return grads.write_like(0, &like, |dx, accumulate| {
                if !accumulate {
                    dx.fill_zero()?;
                }
                thin::cuda::copy_blocks((n, len), &dy, Blocks::packed(len), dx, at, accumulate)
            });
        }
        grads.write(0, self.shape, |dx, accumulate| {
            if !accumulate {
                let end = at.offset + len;
                clear((n, at.offset), dx, Blocks { offset: 0, stride: at.stride });
                clear((n, at.stride - end), dx, Blocks { offset: end, stride: at.stride });
            }
            copy((n, len), dy.data(), Blocks::packed(len), dx, at, accumulate);
            Ok(())
        })
    }
}
