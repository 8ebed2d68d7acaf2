//! The head of a GGUF file as bytes.

use lehr_tensor::quant::WeightFormat;

use super::metadata::{Array, Metadata, Value};
use super::reader::{DEFAULT_ALIGNMENT, MAGIC};

const VERSION: u32 = 3;

/// A tensor about to be written.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    /// Row-major, the last dimension contiguous.
    pub(super) shape: Vec<usize>,
    pub(super) format: WeightFormat,
}

impl Planned {
    pub(super) fn n_bytes(&self) -> usize {
        self.format.n_bytes(self.shape.iter().product())
    }
}

/// Returns the padding after `n_bytes`, up to the next aligned offset.
pub(super) fn n_padding(n_bytes: usize) -> usize {
    n_bytes.next_multiple_of(DEFAULT_ALIGNMENT as usize) - n_bytes
}

/// Returns all bytes before the values, including padding. The values of the tensors follow in
/// order, each padded to the alignment.
pub(super) fn head(metadata: &Metadata, tensors: &[&Planned]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.entries().len() as u64).to_le_bytes());
    for (key, value) in metadata.entries() {
        put_text(&mut out, key);
        out.extend(value.type_id().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for extent in tensor.shape.iter().rev() {
            out.extend((*extent as u64).to_le_bytes());
        }
        out.extend(tensor.format.ggml_id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (tensor.n_bytes() + n_padding(tensor.n_bytes())) as u64;
    }
    out.resize(out.len() + n_padding(out.len()), 0);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::String(text) => put_text(out, text),
        Value::Array(array) => put_array(out, array),
        value => value.write_number(out),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::String(texts) => texts.iter().for_each(|text| put_text(out, text)),
        Array::Array(arrays) => arrays.iter().for_each(|array| put_array(out, array)),
        Array::Bool(values) => out.extend(values.iter().map(|v| u8::from(*v))),
        array => array.write_numbers(out),
    }
}
