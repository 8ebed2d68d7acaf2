//! Picking positions of a batch.

#[cfg(test)]
pub(crate) mod tests;

use super::embedding::{cpu, scatter_on_cuda, take_rows};
use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// `y[m, :] = self[ids[m], :]`: the rows whose numbers are in `ids`, in that order. A row may
    /// be picked more than once.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[N, D]` |
    /// | `ids` | `[M]`, i32 in `0..N` |
    /// | returns | `[M, D]` |
    ///
    /// Saves `ids`. The gradient of a row is the sum over its occurrences; rows that are not picked
    /// get 0.
    ///
    /// # Errors
    /// If an id is out of range, shapes or element types do not fit, or memory runs out.
    pub fn gather_rows(&self, ids: &Self) -> Result<Self> {
        const OP: &str = "gather_rows";
        if ids.shape().len() != 1 {
            let expected = "ids of one dimension".to_owned();
            return Err(Error::Rank { op: OP, found: ids.shape(), expected });
        }
        let y = take_rows(OP, self, ids)?;
        Ok(record1(&[self], y, || GatherRows { ids: ids.clone(), x: self.shape() }))
    }
}

struct GatherRows {
    ids: Tensor,
    x: Shape,
}

impl Op for GatherRows {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return scatter_on_cuda(&dy, &self.ids, self.x, grads);
        }
        grads.write(0, self.x, |dx, accumulate| {
            cpu::scatter_add(dy.data(), self.ids.ids(), self.x[1], dx, accumulate);
            Ok(())
        })
    }
}
