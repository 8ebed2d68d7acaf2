//! GGUF, llama.cpp's file format: metadata, tokenizer and weights in one file.
//!
//! Reading presents the tensors under the names and shapes of lehr's families, like a Hugging Face
//! folder. Changes that the conversion to GGUF made to values are undone.
//! [`Model::save_gguf`](crate::Model::save_gguf) makes those changes.

mod export;
mod family;
mod file_type;
mod metadata;
mod names;
mod reader;
mod split;
mod unread;
mod writer;

use std::path::Path;

pub(crate) use export::write_gguf;
pub use export::{GgufOptions, GgufSummary};
pub use file_type::FileType;
pub use metadata::{Array, Metadata, Value};
use serde_json::Value as Json;
pub(crate) use split::parts;

use super::change::Change;
use super::entry::{Entry, FileDtype};
use crate::Result;
use reader::{GgmlType, TensorInfo};

/// The contents of a GGUF file besides its values.
pub(crate) struct Contents {
    pub(crate) metadata: Metadata,
    /// The settings as a `config.json`.
    pub(crate) config: Json,
    /// The tensors under the names of the family.
    pub(crate) entries: Vec<(String, Entry)>,
    /// What the user must know about keys that nothing reads.
    pub(crate) warnings: Vec<String>,
}

/// Returns whether a file is GGUF, from its first bytes.
pub(crate) fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(reader::MAGIC)
}

/// Reads the key-value pairs of a whole file of any family.
///
/// # Errors
/// If the bytes are not a GGUF file.
pub fn read_metadata(path: &Path, bytes: &[u8]) -> Result<Metadata> {
    Ok(reader::read(path, bytes)?.metadata)
}

/// Reads the heads of all parts of a file. `file` is the number of the first in the checkpoint.
pub(crate) fn open(files: &[(&Path, &[u8])], file: usize) -> Result<Contents> {
    let header = split::read(files)?;
    let settings = family::Settings::new(&header, files)?;
    let family = family::of_file(&settings)?;
    let (config, layout) = (family.config_json(&settings)?, &family.layout);
    let heads = settings.heads()?;
    let warnings = unread::check(&settings)?;
    let mut entries = Vec::new();
    for tensor in &header.tensors {
        // A tensor unknown to the family keeps its name, so it can be listed.
        let (name, kind) =
            layout.to_ours(&tensor.name).unwrap_or((tensor.name.clone(), names::Kind::Same));
        let change = kind.change(heads, tensor.shape.len());
        entries.push((name, entry(tensor, file + tensor.part, change)));
    }
    Ok(Contents { metadata: header.metadata, config, entries, warnings })
}

fn entry(tensor: &TensorInfo, file: usize, change: Change) -> Entry {
    let dtype = match tensor.dtype {
        GgmlType::Weights(format) => FileDtype::Weights(format),
        GgmlType::I32 => FileDtype::I32,
        GgmlType::I64 => FileDtype::I64,
        // No known file has one; it would need the inverse change that f32 gets.
        GgmlType::F64 if change != Change::None => FileDtype::Other("F64"),
        GgmlType::F64 => FileDtype::F64,
        GgmlType::Other(name) => FileDtype::Other(name),
    };
    let mut shape = tensor.shape.clone();
    if change == Change::Transposed {
        shape.reverse();
    }
    Entry {
        file,
        dtype,
        shape,
        offset: tensor.offset,
        n_bytes: tensor.n_bytes,
        change,
        strides: None,
    }
}
