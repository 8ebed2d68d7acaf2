//! The rows that have a label.

use lehr_kernels::threads;

use super::cuda;
use crate::autograd::Gradients;
use crate::ops::rows_per_task;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The target of a row without a label.
const NO_LABEL: i32 = -100;

/// Positions and labels of the labelled rows, in order.
pub(super) struct Labelled {
    /// `[n]` i32; `None` if all rows have a label.
    positions: Option<Tensor>,
    /// `[n]` i32, all in range.
    labels: Tensor,
}

impl Labelled {
    /// Finds the labelled rows; an error if a label is out of range.
    pub(super) fn find(op: &'static str, targets: &Tensor, limit: usize) -> Result<Self> {
        let ids = targets.ids();
        let mut n = 0;
        for (position, &id) in ids.iter().enumerate().filter(|(_, id)| **id != NO_LABEL) {
            if usize::try_from(id).is_ok_and(|id| id < limit) {
                n += 1;
            } else {
                return Err(Error::Index { op, index: id.into(), position, limit });
            }
        }
        if n == ids.len() {
            return Ok(Self { positions: None, labels: targets.with_shape([n].into()) });
        }
        let mut positions = Tensor::uninit([n], DType::I32)?;
        let mut labels = Tensor::uninit([n], DType::I32)?;
        let slots = positions.elements_mut::<i32>().iter_mut().zip(labels.elements_mut::<i32>());
        let labelled = ids.iter().enumerate().filter(|(_, id)| **id != NO_LABEL);
        for ((slot, label), (position, id)) in slots.zip(labelled) {
            (*slot, *label) = (position as i32, *id);
        }
        Ok(Self { positions: Some(positions), labels })
    }

    /// Number of labelled rows.
    pub(super) fn len(&self) -> usize {
        self.labels.shape().n_elements()
    }

    pub(super) fn labels(&self) -> &[i32] {
        self.labels.ids()
    }

    /// The labels on another device.
    pub(super) fn labels_on(&self, device: Device) -> Result<Tensor> {
        self.labels.to_device(device)
    }

    /// Returns the labelled rows of `x [.., D]` as `[n, D]`, sharing the storage of `x` if all are
    /// labelled.
    pub(super) fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let d = x.shape().last_dim();
        let shape = Shape::from([self.len(), d]);
        let Some(positions) = &self.positions else { return Ok(x.with_shape(shape)) };
        let mut out = x.like(shape)?;
        if x.is_cuda() {
            cuda::gather(x, &positions.to_device(x.device())?, &mut out)?;
            return Ok(out);
        }
        let (x, positions, rows) = (x.data(), positions.ids(), rows_per_task(d));
        threads::run_chunks(out.data_mut(), rows * d, |index, out| {
            for (row, position) in out.chunks_exact_mut(d).zip(&positions[index * rows..]) {
                row.copy_from_slice(&x[*position as usize * d..][..d]);
            }
        });
        Ok(out)
    }

    /// Adds `rows [n, D]` at their positions to the gradient of input `index`, whose shape is
    /// `shape`; rows without a label get zeros.
    pub(super) fn add_scattered(
        &self,
        grads: &mut Gradients<'_>,
        index: usize,
        rows: Tensor,
        shape: Shape,
    ) -> Result<()> {
        let Some(positions) = &self.positions else {
            let grad = rows.with_shape(shape);
            drop(rows);
            return grads.add(index, grad);
        };
        let d = shape.last_dim();
        if rows.is_cuda() {
            if !grads.wants(index) {
                return Ok(());
            }
            let (positions, like) = (positions.to_device(rows.device())?, rows.like(shape)?);
            return grads.write_like(index, &like, |dst, accumulate| {
                cuda::scatter(&positions, &rows, d, dst, accumulate)
            });
        }
        grads.write(index, shape, |dst, accumulate| {
            scatter(positions.ids(), rows.data(), d, dst, accumulate);
            Ok(())
        })
    }

    /// The values of labelled rows `[n]` at their positions, 0 elsewhere.
    pub(super) fn scatter_values(&self, values: &Tensor, shape: Shape) -> Result<Tensor> {
        let Some(positions) = &self.positions else { return Ok(values.with_shape(shape)) };
        let mut out = values.like(shape)?;
        if values.is_cuda() {
            cuda::scatter(&positions.to_device(values.device())?, values, 1, &mut out, false)?;
            return Ok(out);
        }
        scatter(positions.ids(), values.data(), 1, out.data_mut(), false);
        Ok(out)
    }

    /// The values at the positions of labelled rows.
    pub(super) fn gather_values(&self, values: &Tensor) -> Result<Tensor> {
        self.gather(&values.with_shape([values.shape().n_elements(), 1].into()))
    }
}

/// Writes or adds rows of width `d` at ascending `positions` of `dst`.
fn scatter(positions: &[i32], rows: &[f32], d: usize, dst: &mut [f32], accumulate: bool) {
    let chunk_rows = rows_per_task(d);
    threads::run_chunks(dst, chunk_rows * d, |index, dst| {
        if !accumulate {
            dst.fill(0.0);
        }
        let (start, end) = (index * chunk_rows, index * chunk_rows + dst.len() / d);
        let first = positions.partition_point(|p| (*p as usize) < start);
        for (row, position) in rows[first * d..].chunks_exact(d).zip(&positions[first..]) {
            let position = *position as usize;
            if position >= end {
                break;
            }
            for (sum, value) in dst[(position - start) * d..][..d].iter_mut().zip(row) {
                *sum += value;
            }
        }
    });
}
