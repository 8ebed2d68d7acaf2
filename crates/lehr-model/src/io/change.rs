//! Changes that a file format makes to the values of a tensor, and their inverses.

use lehr_tensor::quant::WeightFormat;

/// The difference between the values in a file and those of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// None.
    None,
    /// In each head, the two rows that are rotated together are adjacent: the file's row `2j + i`
    /// of a head is the model's row `i E/2 + j`.
    InterleavedRows {
        /// Number of heads.
        heads: usize,
    },
    /// The file has the transposed matrix `[cols, rows]`.
    Transposed,
    /// The file has `1 + w`.
    PlusOne,
}

impl Change {
    /// Returns whether the change can be undone for a tensor of `shape`.
    pub(crate) fn fits(self, shape: &[usize]) -> bool {
        match self {
            Self::InterleavedRows { heads } => {
                shape.first().is_some_and(|rows| heads > 0 && rows.is_multiple_of(2 * heads))
            }
            Self::Transposed => shape.len() == 2,
            Self::None | Self::PlusOne => true,
        }
    }

    /// Computes the model's tensor of `shape` from the file's values.
    pub(crate) fn dequantize(
        self,
        format: WeightFormat,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) {
        match self {
            Self::None => format.dequantize(bytes, out),
            Self::PlusOne => {
                format.dequantize(bytes, out);
                out.iter_mut().for_each(|v| *v -= 1.0);
            }
            Self::InterleavedRows { heads } => {
                format.dequantize(&model_rows(bytes, shape[0], heads), out);
            }
            Self::Transposed => {
                let mut stored = vec![0.0; out.len()];
                format.dequantize(bytes, &mut stored);
                transpose(&stored, shape[0], out);
            }
        }
    }
}

/// Returns the row in the file for the model's row, with heads of `head_dim` rows.
fn file_row(row: usize, head_dim: usize) -> usize {
    let (head, row) = (row / head_dim, row % head_dim);
    let (i, j) = (row / (head_dim / 2), row % (head_dim / 2));
    head * head_dim + 2 * j + i
}

/// Computes the model's `rows` from those of a file with [`Change::InterleavedRows`].
pub(super) fn model_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let row = |row| &bytes[file_row(row, rows / heads) * row_bytes..][..row_bytes];
    (0..rows).flat_map(row).copied().collect()
}

/// Computes the rows of a file with [`Change::InterleavedRows`] from the model's.
pub(crate) fn file_rows(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let width = values.len() / rows;
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks(width).enumerate() {
        out[file_row(row, rows / heads) * width..][..width].copy_from_slice(values);
    }
    out
}

/// Transposes a matrix whose rows have `width` values.
pub(crate) fn transpose(values: &[f32], width: usize, out: &mut [f32]) {
    /// Tile size: values of both matrices that stay in the cache.
    const TILE: usize = 32;
    let rows = values.len() / width;
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..width).step_by(TILE) {
            for i in i0..rows.min(i0 + TILE) {
                for j in j0..width.min(j0 + TILE) {
                    out[j * rows + i] = values[i * width + j];
                }
            }
        }
    }
}
