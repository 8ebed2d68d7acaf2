//! One linear map's matrix within a stored matrix, which may hold several.

use crate::{MatrixForm, OutputRuns, Param, Shape};

/// The place of a map's matrix `[rows, cols]` in a stored one. It keeps the stored orientation, so
/// nothing is transposed: outputs are rows, or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Length of a stored row.
    pub(super) width: usize,
    /// Whether outputs are rows.
    pub(super) is_out_in: bool,
    /// The stored outputs that are this map's.
    pub(super) runs: OutputRuns,
    /// First entry in the second moment of the stored matrix.
    pub(super) moments_at: usize,
}

/// A run of neighbours: where it begins in the matrix of a part and in the stored one.
pub(super) struct Segment {
    pub(super) at: usize,
    pub(super) stored_at: usize,
    pub(super) len: usize,
}

impl Part {
    /// Lists the parts of a parameter; none if it is not a matrix or is empty.
    pub(super) fn all(param: &Param) -> Vec<Self> {
        Self::of(param.shape(), param.form())
    }

    pub(super) fn of(shape: Shape, form: MatrixForm) -> Vec<Self> {
        let &[height, width] = &shape[..] else { return Vec::new() };
        if height == 0 || width == 0 {
            return Vec::new();
        }
        let (n_out, is_out_in) = if form.transposed { (width, false) } else { (height, true) };
        let mut moments_at = 0;
        let part = |runs: OutputRuns| {
            let n = runs.n_outputs();
            let (rows, cols) = if is_out_in { (n, width) } else { (height, n) };
            let part = Self { rows, cols, width, is_out_in, runs, moments_at };
            moments_at += part.n_moments();
            part
        };
        form.parts.runs(n_out).into_iter().map(part).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The shorter side: that of the Gram matrix.
    pub(super) fn side(&self) -> usize {
        self.rows.min(self.cols)
    }

    fn outputs_and_inputs(&self) -> (usize, usize) {
        if self.is_out_in { (self.rows, self.cols) } else { (self.cols, self.rows) }
    }

    /// Whether the second moment has an entry for each row.
    pub(super) fn has_row_moments(&self) -> bool {
        let (n_out, n_in) = self.outputs_and_inputs();
        (n_out >= n_in) == self.is_out_in
    }

    pub(super) fn n_moments(&self) -> usize {
        self.rows.max(self.cols)
    }

    /// The factor on the learning rate: `√max(1, outputs / inputs)`.
    pub(super) fn lr_scale(&self) -> f32 {
        let (n_out, n_in) = self.outputs_and_inputs();
        (n_out as f64 / n_in as f64).max(1.0).sqrt() as f32
    }

    /// Lists the runs of neighbours of row `row`.
    pub(super) fn segments(&self, row: usize) -> impl Iterator<Item = Segment> {
        let Self { cols, width, is_out_in, runs, .. } = *self;
        let n = if is_out_in { 1 } else { runs.n };
        (0..n).map(move |i| match is_out_in {
            true => {
                let stored = runs.first + row / runs.len * runs.stride + row % runs.len;
                Segment { at: row * cols, stored_at: stored * width, len: cols }
            }
            false => Segment {
                at: row * cols + i * runs.len,
                stored_at: row * width + runs.first + i * runs.stride,
                len: runs.len,
            },
        })
    }
}
