//! Channels taken from the previous token.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use crate::autograd::{Gradients, Op, record1};
use crate::{Device, Error, Result, Tensor, inplace};

/// The channels that a token without a previous token gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    /// Its own.
    Own,
    /// Zeros.
    Zero,
}

/// Which tokens have a previous token, and where that of the first one is.
#[derive(Clone, Copy)]
pub struct Previous<'a> {
    /// i32 `[B, T]` on the CPU: not 0 where a text begins.
    pub starts: &'a Tensor,
    /// The rows `[B, 1, .., E]` before the first ones, without a gradient. Without them the first
    /// tokens have no previous token.
    pub before: Option<&'a Tensor>,
}

impl Tensor {
    /// Replaces the channels `channels` of each head by those of the previous token:
    /// `y[b, t, .., c] = x[b, t − 1, .., c]` for `c` in `channels`, else `x[b, t, .., c]`. A token
    /// at the start of a text gets what `at_start` says.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[B, T, .., E]` |
    /// | `previous.starts` | `[B, T]` |
    /// | `previous.before` | `[B, 1, .., E]` |
    /// | returns | `[B, T, .., E]` |
    ///
    /// Saves `starts`.
    ///
    /// # Errors
    /// If the channels are not within `0..E`, shapes do not fit, `before` wants a gradient or
    /// memory runs out.
    pub fn previous_rows(
        &self,
        previous: Previous<'_>,
        channels: Range<usize>,
        at_start: AtStart,
    ) -> Result<Self> {
        const OP: &str = "previous_rows";
        self.expect_float(OP)?;
        super::expect_rank_min(OP, self, 3)?;
        let Previous { starts, before } = previous;
        starts.expect_ids(OP)?;
        starts.expect_on(OP, Device::Cpu)?;
        let shape = self.shape();
        if *starts.shape() != shape[..2] {
            let rule = "starts must be [B, T]";
            return Err(Error::Shape { op: OP, lhs: shape, rhs: starts.shape(), rule });
        }
        if let Some(before) = before {
            inplace::refuse_grad(OP, "before", before)?;
            self.expect_beside(OP, before)?;
            let there = before.shape();
            let fits = there.len() == shape.len()
                && (there[0], there[1]) == (shape[0], 1)
                && there[2..] == shape[2..];
            if !fits {
                let rule = "there must be one row before each sequence";
                return Err(Error::Shape { op: OP, lhs: shape, rhs: there, rule });
            }
        }
        if channels.start > channels.end || channels.end > shape.last_dim() {
            let value = format!("{channels:?} of {shape}");
            let expected = "a range within the last dimension";
            return Err(Error::Argument { op: OP, name: "channels", value, expected });
        }
        let op = PreviousRows { starts: starts.clone(), channels, at_start };
        let mut y = self.like(shape)?;
        match self.is_cuda() {
            true => cuda::forward(self, before, &op, &mut y)?,
            false => cpu::forward(self, before, &op, y.data_mut()),
        }
        Ok(record1(&[self], y, || op))
    }
}

struct PreviousRows {
    starts: Tensor,
    channels: Range<usize>,
    at_start: AtStart,
}

impl Op for PreviousRows {
    fn name(&self) -> &'static str {
        "previous_rows"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.write_like(0, &dy, |dx, accumulate| match dy.is_cuda() {
            true => cuda::backward(&dy, self, dx, accumulate),
            false => {
                cpu::backward(&dy, self, dx.data_mut(), accumulate);
                Ok(())
            }
        })
    }
}
