//! Rotary position embedding.

mod cpu;
pub(crate) mod cuda;
pub mod frequencies;
#[cfg(test)]
mod reference;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use table::{RopeLayout, RopeTable};

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// Rotates pairs of dimensions of each head by angles that grow with the token's position, so
    /// that the dot product of a query and a key depends on their distance:
    /// `(a, b) → (a cos φ − b sin φ, b cos φ + a sin φ)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[B, T, H, E]` |
    /// | `table` | angles of B·T tokens; the first R dimensions are rotated, the rest is copied |
    /// | returns | `[B, T, H, E]` |
    ///
    /// Saves the table, which all layers share. Backward rotates by the negative angle.
    ///
    /// Su et al. 2021, <https://arxiv.org/abs/2104.09864>.
    ///
    /// # Errors
    /// If the table is for another number of tokens or wider heads, or memory runs out.
    pub fn rope(&self, table: &RopeTable) -> Result<Self> {
        check(self, table)?;
        let mut y = self.like(self.shape())?;
        rotate(self, table, 1.0, &mut y, false)?;
        Ok(record1(&[self], y, || Rope { table: table.clone() }))
    }
}

/// `y (+)=` the heads of `x` rotated by the table's angles times `sign`, on the device of `x`.
fn rotate(
    x: &Tensor,
    table: &RopeTable,
    sign: f32,
    y: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (n_heads, width) = heads(x);
    if x.is_cuda() {
        return cuda::rotate(x, table, (n_heads, width), sign, y, accumulate);
    }
    let angles = table.angles(x.device())?;
    cpu::rotate(x.data(), table, &angles, n_heads, width, sign, y.data_mut(), accumulate);
    Ok(())
}

/// Returns the number and width of the heads.
fn heads(x: &Tensor) -> (usize, usize) {
    let shape = x.shape();
    (shape[shape.len() - 2], shape.last_dim())
}

fn check(x: &Tensor, table: &RopeTable) -> Result<()> {
    const OP: &str = "rope";
    x.expect_float(OP)?;
    let &[batch, time, _, width] = &*x.shape() else {
        let expected = "four dimensions [B, T, H, E]".to_owned();
        return Err(Error::Rank { op: OP, found: x.shape(), expected });
    };
    if batch * time != table.n_tokens() {
        let expected = format!("B·T = {} tokens as in the table", table.n_tokens());
        return Err(Error::Rank { op: OP, found: x.shape(), expected });
    }
    if !table.fits_width(width) {
        let expected = format!("heads wide enough for {} rotated dimensions", table.rotary_dim());
        return Err(Error::Rank { op: OP, found: x.shape(), expected });
    }
    Ok(())
}

struct Rope {
    table: RopeTable,
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.write_like(0, &dy, |dx, accumulate| rotate(&dy, &self.table, -1.0, dx, accumulate))
    }
}
