//! The lookup table of token or position vectors.

use lehr_tensor::{Result, Role, Tensor, Weight};

use super::LayerBuilder;
use super::builder::init;

/// A table `[V, D]` whose rows are looked up.
pub struct Embedding {
    pub(super) weight: Weight,
    /// Number of rows V.
    pub(super) n_rows: usize,
    /// Width of a row, D.
    pub(super) width: usize,
}

impl Embedding {
    /// Builds a table of `n_rows` rows for the given role. It starts normal with `std`, or at 0.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(
        p: &mut LayerBuilder<'_>,
        role: Role,
        n_rows: usize,
        width: usize,
        std: f32,
    ) -> Result<Self> {
        let weight = p.matrix("weight", role, [n_rows, width], false, init(std))?;
        Ok(Self { weight, n_rows, width })
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Looks up `ids [..]`: `[.., D]`.
    ///
    /// # Errors
    /// If an id is outside the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Param(table) => table.tensor().embedding(ids),
            Weight::Stored(table) => table.embedding(ids),
        }
    }
}
