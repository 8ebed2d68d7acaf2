//! Storage formats of a model's matrices during inference.

use std::str::FromStr;

use lehr_tensor::quant::{MatrixFormat, Scaling, WeightFormat};

/// The storage format of matrices in a model that is used, not trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// As in the file. Matrices of at most 16 bits stay in the mapped file.
    #[default]
    AsStored,
    /// As in the file, but dequantised to f32 for each product: the results of [`Weights::F32`]
    /// with the memory of the file. It serves comparisons and is slow for single tokens.
    Exact,
    /// All in f32, computed in f32.
    F32,
    /// Matrices of blocks in this format, rounded when the model is opened. If the row length is
    /// not a multiple of its block size, the nearest supported format is used.
    /// Embedding and head, a model's most sensitive matrices, keep their values: 16-bit floats as
    /// stored, everything else in f32.
    In(MatrixFormat),
}

/// The names of [`Weights`] on the command line.
const NAMES: [(&str, Weights); 14] = [
    ("stored", Weights::AsStored),
    ("f32", Weights::F32),
    ("bf16", Weights::In(MatrixFormat::Gguf(WeightFormat::BF16))),
    ("f16", Weights::In(MatrixFormat::Gguf(WeightFormat::F16))),
    ("q8_0", Weights::In(MatrixFormat::Gguf(WeightFormat::Q8_0))),
    ("int8", Weights::In(MatrixFormat::Int8(Scaling::DEFAULT))),
    ("int8-row", Weights::In(MatrixFormat::Int8(Scaling::Row))),
    ("q6_k", Weights::In(MatrixFormat::Gguf(WeightFormat::Q6_K))),
    ("q5_k", Weights::In(MatrixFormat::Gguf(WeightFormat::Q5_K))),
    ("q4_k", Weights::In(MatrixFormat::Gguf(WeightFormat::Q4_K))),
    ("q4_0", Weights::In(MatrixFormat::Gguf(WeightFormat::Q4_0))),
    ("int4", Weights::In(MatrixFormat::Int4(Scaling::DEFAULT))),
    ("int4-row", Weights::In(MatrixFormat::Int4(Scaling::Row))),
    ("nf4", Weights::In(MatrixFormat::Nf4)),
];

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        known
            .map(|(_, weights)| *weights)
            .ok_or_else(|| format!("expected one of {}", NAMES.map(|(name, _)| name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_others_are_listed() {
        assert_eq!("INT4".parse(), Ok(Weights::In(MatrixFormat::Int4(Scaling::Group(64)))));
        assert_eq!("stored".parse(), Ok(Weights::default()));
        assert!("int5".parse::<Weights>().unwrap_err().contains("int4-row"));
    }
}
