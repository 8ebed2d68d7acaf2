//! The index of a safetensors file.

use std::path::Path;

use lehr_tensor::quant::WeightFormat;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors};

use super::change::Change;
use super::entry::{Entry, FileDtype};
use crate::{Error, Result};

/// Returns whether the bytes begin as a safetensors file: the length of the header, then its JSON.
pub(crate) fn recognises(bytes: &[u8]) -> bool {
    let Some((len, header)) = bytes.split_first_chunk() else { return false };
    u64::from_le_bytes(*len) <= header.len() as u64 && header.first() == Some(&b'{')
}

/// Lists the tensors of a whole file. `file` is its number in the checkpoint.
pub(crate) fn entries(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>> {
    let damaged = |e: SafeTensorError| Error::Format {
        path: path.to_owned(),
        reason: format!("not a whole safetensors file ({} bytes): {e}", bytes.len()),
        hint: Some("copy or download the file again: it may have been cut".to_owned()),
    };
    // The library checks that offsets match the shapes, without holes, up to the end of the file.
    let (header_len, header): (usize, Metadata) =
        SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let data_start = 8 + header_len;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        let (offset, n_bytes) = (data_start + from, to - from);
        let (dtype, shape) = (dtype(info.dtype), info.shape.clone());
        (name, Entry { file, dtype, shape, offset, n_bytes, change: Change::None, strides: None })
    };
    Ok(header.tensors().into_iter().map(entry).collect())
}

fn dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::Weights(WeightFormat::F32),
        Dtype::F16 => FileDtype::Weights(WeightFormat::F16),
        Dtype::BF16 => FileDtype::Weights(WeightFormat::BF16),
        Dtype::F64 => FileDtype::F64,
        Dtype::I64 => FileDtype::I64,
        Dtype::I32 => FileDtype::I32,
        Dtype::U8 => FileDtype::Other("U8"),
        Dtype::BOOL => FileDtype::Other("BOOL"),
        Dtype::I8 => FileDtype::Other("I8"),
        Dtype::F8_E4M3 => FileDtype::Other("F8_E4M3"),
        Dtype::F8_E5M2 => FileDtype::Other("F8_E5M2"),
        _ => FileDtype::Other("another dtype"),
    }
}
