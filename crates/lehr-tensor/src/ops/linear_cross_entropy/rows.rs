//! The loss of each row of given logits.

use super::cpu::{Factors, RowLoss};
use super::labels::Labelled;
use super::{CrossEntropy, check_normalizer, cuda, find_labelled};
use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{DType, Result, Shape, Tensor};

impl Tensor {
    /// The cross-entropy `lse − z_target + z_loss · lse²` of each row of logits `z`, with
    /// `lse = ln Σ e^z`; 0 for rows without a label. With a cap `c` the logits are first
    /// `c tanh(z / c)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[N, V]` or `[B, T, V]` |
    /// | `targets` | `[N]` or `[B, T]`, i32; −100 = no label |
    /// | returns | that of `targets` |
    ///
    /// For logits that are not the output of one matrix; [`Tensor::linear_cross_entropy`] never
    /// builds them. Saves the logits of the labelled rows, and needs memory for another copy of
    /// them, here and in backward: `dz = dy ((1 + 2 z_loss lse) softmax − onehot)`.
    ///
    /// # Errors
    /// If shapes do not fit, a target is neither −100 nor in 0..V, the cap is not a positive
    /// number, or memory runs out.
    pub fn cross_entropy_rows(
        &self,
        targets: &Self,
        z_loss: f32,
        softcap: Option<f32>,
    ) -> Result<Self> {
        const OP: &str = "cross_entropy_rows";
        self.expect_float(OP)?;
        crate::ops::expect_rank_min(OP, self, 1)?;
        targets.expect_ids(OP)?;
        let labelled = find_labelled(OP, self, targets, self.shape().last_dim(), softcap)?;
        let logits = labelled.gather(self)?;
        let op = CrossEntropyRows { logits, labelled, z_loss, softcap, shape: self.shape() };
        let (losses, _) = op.run(None)?;
        let y = op.labelled.scatter_values(&losses, targets.shape())?;
        if !will_record(&[self]) {
            return Ok(y);
        }
        Ok(record1(&[self], y, || op))
    }

    /// The sum of [`Tensor::cross_entropy_rows`] divided by the normaliser, `[1]`: what
    /// [`Tensor::linear_cross_entropy`] computes, from given logits.
    ///
    /// # Errors
    /// As [`Tensor::cross_entropy_rows`], and if the normaliser is not a positive number while some
    /// row has a label.
    pub fn cross_entropy(&self, targets: &Self, options: CrossEntropy) -> Result<Self> {
        let CrossEntropy { normalizer, z_loss, softcap } = options;
        let losses = self.cross_entropy_rows(targets, z_loss, softcap)?;
        let n_labels = targets.ids().iter().filter(|id| **id >= 0).count();
        check_normalizer("cross_entropy", n_labels, normalizer)?;
        losses.sum()?.scale(if n_labels == 0 { 0.0 } else { 1.0 / normalizer })
    }
}

struct CrossEntropyRows {
    /// Those of the labelled rows.
    logits: Tensor,
    labelled: Labelled,
    z_loss: f32,
    softcap: Option<f32>,
    /// Shape of all logits.
    shape: Shape,
}

impl CrossEntropyRows {
    /// The loss of each labelled row, and gradients of `Σ factor · loss` with respect to its
    /// logits if there are factors.
    fn run(&self, factors: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let Self { logits, labelled, z_loss, softcap, .. } = self;
        let (n, v) = (labelled.len(), logits.shape().last_dim());
        let (mut losses, mut turned) = (logits.like_f32([n])?, logits.duplicate()?);
        if n == 0 {
            return Ok((losses, turned));
        }
        if logits.is_cuda() {
            let labels = labelled.labels_on(logits.device())?;
            let chunk = cuda::Chunk {
                logits: &turned,
                stride: v,
                n,
                n_vocabulary: v,
                labels: labels.device_ptr(),
                losses: losses.device_ptr(),
                first: 0,
            };
            let factors = factors.map(cuda::Factors::PerRow);
            let loss = cuda::RowLoss { z_loss: *z_loss, softcap: *softcap };
            loss.turn(logits.cuda()?, &chunk, factors.as_ref())?;
        } else {
            let factors = factors.map(|factors| Factors::PerRow(factors.data()));
            let loss = RowLoss { n_vocabulary: v, z_loss: *z_loss, softcap: *softcap };
            let (labels, losses) = (labelled.labels(), losses.data_mut());
            loss.turn(turned.data_mut(), labels, losses, factors.as_ref());
        }
        Ok((losses, turned))
    }
}

impl Op for CrossEntropyRows {
    fn name(&self) -> &'static str {
        "cross_entropy_rows"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let factors = self.labelled.gather_values(&grads.only_output())?;
        // The kernels read factors in f32.
        let factors = factors.cast(DType::F32)?;
        let (_, dz) = self.run(Some(&factors))?;
        self.labelled.add_scattered(grads, 0, dz, self.shape)
    }
}
