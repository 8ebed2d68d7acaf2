//! Writing safetensors without a second copy of the weights.

use lehr_tensor::{ParamStore, Result, Shape, Tensor};
use serde_json::{Map, Value, json};

/// A safetensors file about to be written: the header and its tensors, in order.
///
/// The format is 8 bytes with the length of the header, the header in JSON, the numbers in
/// little-endian order: <https://github.com/huggingface/safetensors>.
pub struct TensorFile {
    header: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl TensorFile {
    /// Describes named float tensors. `metadata` is text for readers.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    pub fn new(tensors: Vec<(String, Tensor)>, metadata: &[(&str, &str)]) -> Result<Self> {
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()));
        let header = safetensors_head(named, ("F32", 4), metadata);
        let tensors = tensors.into_iter().map(|(_, t)| t.to_host()).collect::<Result<_>>()?;
        Ok(Self { header, tensors })
    }

    /// Describes all parameters of a store under their names.
    ///
    /// # Errors
    /// If a parameter cannot be copied from its device.
    pub fn of_params(params: &ParamStore) -> Result<Self> {
        let named = |p: &lehr_tensor::Param| (p.name().to_owned(), p.tensor_f32().detach());
        Self::new(params.params().iter().map(named).collect(), &[("format", "pt")])
    }

    /// Returns the bytes of the file, piece by piece.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        const { assert!(cfg!(target_endian = "little"), "safetensors hold little-endian numbers") };
        let numbers = self.tensors.iter().map(|t| bytemuck::cast_slice(t.data()));
        std::iter::once(self.header.as_slice()).chain(numbers)
    }
}

/// Returns all bytes before the values of a safetensors file. The tensors are contiguous and have
/// one `dtype`, given by its name and its bytes per value.
pub(crate) fn safetensors_head<'a>(
    tensors: impl Iterator<Item = (&'a str, Shape)>,
    (dtype, n_bytes): (&str, usize),
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let mut entries = Map::new();
    let text: Map<_, _> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    entries.insert("__metadata__".to_owned(), text.into());
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + n_bytes * shape.n_elements();
        let entry = json!({
            "dtype": dtype, "shape": shape.to_vec(), "data_offsets": [offset, end],
        });
        entries.insert(name.to_owned(), entry);
        offset = end;
    }
    let mut text = Value::from(entries).to_string().into_bytes();
    // The values begin at a multiple of 8, so readers can map them.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text);
    head
}
