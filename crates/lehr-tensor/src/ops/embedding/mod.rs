//! Rows of a table, picked by token ids.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Device, Error, Result, Shape, Tensor};

impl Tensor {
    /// `y[.., :] = self[ids[..], :]`: looks up each id in the table `self`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[V, D]` |
    /// | `ids` | `[..]`, i32 in `0..V` |
    /// | returns | `[.., D]` |
    ///
    /// Saves `ids`. The gradient of a row is the sum over its occurrences, in their order.
    ///
    /// # Errors
    /// If an id is out of range, shapes or element types do not fit, or memory runs out.
    pub fn embedding(&self, ids: &Self) -> Result<Self> {
        let y = take_rows("embedding", self, ids)?;
        Ok(record1(&[self], y, || Embedding { ids: ids.clone(), table: self.shape() }))
    }
}

/// The rows `ids` of `table`, without a gradient.
pub(super) fn take_rows(op: &'static str, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    table.expect_float(op)?;
    let &[n_rows, d] = &*table.shape() else {
        let expected = "a table of two dimensions".to_owned();
        return Err(Error::Rank { op, found: table.shape(), expected });
    };
    check_ids(op, ids, n_rows)?;
    let mut dims = ids.shape().to_vec();
    dims.push(d);
    let mut y = table.like(&dims)?;
    if table.is_cuda() {
        cuda::gather(table, ids, &mut y)?;
        return Ok(y);
    }
    cpu::gather(table.data(), ids.ids(), d, y.data_mut());
    Ok(y)
}

/// Returns an error unless `ids` are integers in `0..n_rows` and the result has a valid shape.
pub(super) fn check_ids(op: &'static str, ids: &Tensor, n_rows: usize) -> Result<()> {
    ids.expect_ids(op)?;
    if ids.is_cuda() && !crate::is_recording() {
        // Ids on a GPU are inputs of recorded work and were checked before.
        return Ok(());
    }
    ids.expect_on(op, Device::Cpu)?;
    if ids.shape().len() > 5 {
        let expected = "ids of at most 5 dimensions".to_owned();
        return Err(Error::Rank { op, found: ids.shape(), expected });
    }
    let outside = |id: &i32| usize::try_from(*id).map_or(true, |id| id >= n_rows);
    if let Some(position) = ids.ids().iter().position(outside) {
        let index = i64::from(ids.ids()[position]);
        return Err(Error::Index { op, index, position, limit: n_rows });
    }
    Ok(())
}

/// Adds rows of `dy` to the gradient of the table, input 0, on a GPU.
pub(super) fn scatter_on_cuda(
    dy: &Tensor,
    ids: &Tensor,
    table: Shape,
    grads: &mut Gradients<'_>,
) -> Result<()> {
    if !grads.wants(0) {
        return Ok(());
    }
    grads.write_param_shaped(0, table, dy, |table, accumulate| {
        cuda::scatter_add(dy, ids.ids(), table, accumulate)
    })
}

struct Embedding {
    ids: Tensor,
    table: Shape,
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return scatter_on_cuda(&dy, &self.ids, self.table, grads);
        }
        grads.write(0, self.table, |d_table, accumulate| {
            cpu::scatter_add(dy.data(), self.ids.ids(), self.table[1], d_table, accumulate);
            Ok(())
        })
    }
}
