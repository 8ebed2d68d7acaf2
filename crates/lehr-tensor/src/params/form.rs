//! The form of a linear map's matrix: which side its outputs are on, and which maps share it.

/// How a stored matrix is to be read as one or several linear maps. Optimisers that treat a matrix
/// as a whole, such as Muon, read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatrixForm {
    /// Whether the matrix is stored `[in, out]` instead of `[out, in]`.
    pub transposed: bool,
    /// The maps that share the matrix.
    pub parts: OutputParts,
}

/// How the outputs of a matrix are divided among several linear maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputParts {
    /// One map.
    #[default]
    Whole,
    /// All queries, then all keys, then all values.
    Qkv {
        /// Number of outputs that are queries.
        q: usize,
        /// Number of outputs that are keys, and of those that are values.
        kv: usize,
    },
    /// Query, key and value of each head in turn.
    QkvByHead {
        /// Outputs of each of the three.
        head_dim: usize,
    },
    /// Two maps of equal size one after another: gate and up of an MLP.
    Halves,
}

/// The outputs of one map: `n` runs of `len` outputs, `stride` apart, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRuns {
    /// The first output.
    pub first: usize,
    /// Outputs of a run.
    pub len: usize,
    /// From one run to the next.
    pub stride: usize,
    /// Number of runs.
    pub n: usize,
}

impl OutputRuns {
    fn one(first: usize, len: usize) -> Self {
        Self { first, len, stride: len, n: 1 }
    }

    /// Returns the number of outputs.
    #[must_use]
    pub fn n_outputs(&self) -> usize {
        self.n * self.len
    }
}

impl OutputParts {
    /// Returns the outputs of each map of a matrix with `n_out` outputs. Every output is in one of
    /// them. A matrix that the division does not fit is one map.
    #[must_use]
    pub fn runs(self, n_out: usize) -> Vec<OutputRuns> {
        let one = OutputRuns::one;
        match self {
            Self::Qkv { q, kv } if q + 2 * kv == n_out && kv > 0 => {
                vec![one(0, q), one(q, kv), one(q + kv, kv)]
            }
            Self::QkvByHead { head_dim } if head_dim > 0 && n_out.is_multiple_of(3 * head_dim) => {
                let (len, stride) = (head_dim, 3 * head_dim);
                let part = |i: usize| OutputRuns { first: i * len, len, stride, n: n_out / stride };
                (0..3).map(part).collect()
            }
            Self::Halves if n_out.is_multiple_of(2) => {
                vec![one(0, n_out / 2), one(n_out / 2, n_out / 2)]
            }
            _ => vec![one(0, n_out)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_is_in_one_part() {
        let parts = [
            (OutputParts::Whole, 7, 1),
            (OutputParts::Qkv { q: 8, kv: 4 }, 16, 3),
            (OutputParts::QkvByHead { head_dim: 4 }, 24, 3),
            (OutputParts::Halves, 10, 2),
            // Divisions that do not fit.
            (OutputParts::Qkv { q: 8, kv: 4 }, 15, 1),
            (OutputParts::QkvByHead { head_dim: 4 }, 20, 1),
            (OutputParts::Halves, 5, 1),
        ];
        for (parts, n_out, n) in parts {
            let runs = parts.runs(n_out);
            assert_eq!(runs.len(), n, "{parts:?}");
            let outputs = runs.iter().flat_map(|r| {
                (0..r.n).flat_map(move |i| (0..r.len).map(move |j| r.first + i * r.stride + j))
            });
            let mut outputs: Vec<usize> = outputs.collect();
            outputs.sort_unstable();
            assert_eq!(outputs, (0..n_out).collect::<Vec<_>>(), "{parts:?}");
        }
    }

    #[test]
    fn a_part_by_heads_has_that_of_each_head() {
        let keys = OutputParts::QkvByHead { head_dim: 2 }.runs(12)[1];
        assert_eq!(keys, OutputRuns { first: 2, len: 2, stride: 6, n: 2 });
        assert_eq!(keys.n_outputs(), 4);
    }
}
