//! The lookup table of tokens or positions.

use lehr_tensor::{Init, ParamBuilder, Result, Tensor, Weight};

/// A table `[V, D]` of which rows are picked.
pub struct Embedding {
    weight: Weight,
}

impl Embedding {
    /// A table of `rows` rows; it starts normal with `std`.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut ParamBuilder<'_>, rows: usize, width: usize, std: f32) -> Result<Self> {
        Ok(Self { weight: p.matrix("weight", [rows, width], false, Init::Normal(std))? })
    }

    /// The table, for a head tied to it.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.weight.clone()
    }

    /// `ids [..]` to `[.., D]`.
    ///
    /// # Errors
    /// If an id is outside of the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Param(table) => table.tensor().embedding(ids),
            Weight::Stored(table) => table.embedding(ids),
        }
    }
}
