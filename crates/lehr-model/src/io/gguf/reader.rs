//! The head of a GGUF file: version, metadata, descriptions of tensors.
//!
//! The format is specified in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing
//! in a file is trusted. Each count and length is compared with the remaining bytes before anything
//! is allocated, so memory stays within a small multiple of the file's size.

use std::collections::HashSet;
use std::path::Path;

use lehr_tensor::quant::WeightFormat;

use super::metadata::{self, Array, Metadata, Value};
use crate::{Error, Result};

/// The first four bytes of a file.
pub(crate) const MAGIC: &[u8] = b"GGUF";
/// Default alignment of tensors, unless `general.alignment` sets another.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// Maximum nesting of arrays; known files use one level.
const MAX_DEPTH: usize = 4;
/// Maximum number of dimensions.
const MAX_DIMS: u32 = 4;

/// The metadata and tensor descriptions of a file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// One tensor. Its byte range has been checked.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    /// Index of its part, for a file in several.
    pub(crate) part: usize,
    /// Row-major, the last dimension contiguous; files have the reverse order.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: GgmlType,
    /// Offset of its bytes in the file.
    pub(crate) offset: usize,
    pub(crate) n_bytes: usize,
}

impl TensorInfo {
    /// Returns its values, if they are floats; `bytes` is its whole part.
    pub(crate) fn floats(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        let GgmlType::Weights(format) = self.dtype else { return None };
        let mut values = vec![0.0; self.shape.iter().product()];
        format.dequantize(&bytes[self.offset..self.offset + self.n_bytes], &mut values);
        Some(values)
    }
}

/// The storage type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GgmlType {
    Weights(WeightFormat),
    I32,
    I64,
    F64,
    /// A type that cannot be read, by its name or number.
    Other(&'static str),
}

/// ggml's types without a [`WeightFormat`], from the enumeration in its `ggml.h`.
const OTHER_TYPES: [(u32, &str); 16] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl GgmlType {
    fn from_id(id: u32) -> Self {
        match (id, WeightFormat::from_ggml_id(id)) {
            (_, Some(format)) => Self::Weights(format),
            (26, _) => Self::I32,
            (27, _) => Self::I64,
            (28, _) => Self::F64,
            _ => {
                let known = OTHER_TYPES.iter().find(|(other, _)| *other == id);
                Self::Other(known.map_or("a type newer than this program", |(_, name)| name))
            }
        }
    }

    /// Returns the bytes of rows with `width` values each; `None` if a row is not a multiple of the
    /// block size or the type is unknown.
    fn n_bytes(self, n: u64, width: u64) -> Option<u64> {
        match self {
            Self::Weights(format) => {
                let (len, bytes) = (format.block_len() as u64, format.block_bytes() as u64);
                width.is_multiple_of(len).then(|| (n / len).checked_mul(bytes)).flatten()
            }
            Self::I32 => n.checked_mul(4),
            Self::I64 | Self::F64 => n.checked_mul(8),
            Self::Other(_) => None,
        }
    }
}

/// Reads the head of a whole file.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    if cursor.take(4, "the magic number")? != MAGIC {
        return Err(cursor.fault("not a GGUF file: it does not begin with GGUF"));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: "this GGUF file is big-endian, expected little-endian".to_owned(),
                hint: Some("get the file for little-endian machines (x86-64, ARM)".to_owned()),
            });
        }
        _ => return Err(cursor.fault(format!("GGUF version {version}, expected 2 or 3"))),
    }
    let n_tensors = cursor.u64("the number of tensors")?;
    let n_keys = cursor.u64("the number of keys")?;
    let metadata = cursor.metadata(n_keys)?;
    let alignment = alignment(path, &metadata)?;
    let raw = cursor.tensors(n_tensors)?;
    let head_len = cursor.at as u64;
    let data_start = head_len.next_multiple_of(alignment);
    let tensors = raw
        .into_iter()
        .map(|raw| raw.place(path, data_start, alignment, bytes.len() as u64))
        .collect::<Result<Vec<_>>>()?;
    check_apart(path, &tensors)?;
    Ok(Header { metadata, tensors })
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.integer("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    // Nothing needs an alignment beyond that of memory pages.
    if alignment.is_power_of_two() && (8..=65536).contains(&alignment) {
        return Ok(alignment);
    }
    let reason = format!("general.alignment is {alignment}, expected a power of 2 from 8 to 65536");
    Err(Error::format(path, reason))
}

/// Checks that no two tensors share bytes.
fn check_apart(path: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.offset + a.n_bytes > b.offset {
            let reason = format!("`{}` and `{}` overlap", a.name, b.name);
            return Err(Error::format(path, reason));
        }
    }
    Ok(())
}

/// A tensor as described by the file, unchecked.
struct RawTensor {
    name: String,
    /// Innermost dimension first.
    dims: Vec<u64>,
    type_id: u32,
    /// Offset from the start of the tensors' bytes.
    offset: u64,
}

impl RawTensor {
    fn place(self, path: &Path, start: u64, alignment: u64, file_len: u64) -> Result<TensorInfo> {
        let Self { name, dims, type_id, offset } = self;
        let fault = |reason: String| Error::format(path, format!("tensor `{name}`: {reason}"));
        let n = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
        let Some(n) = n else {
            return Err(fault(format!(
                "its dimensions are {dims:?}, expected a tensor with numbers"
            )));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(fault(format!(
                "it begins at byte {offset}, which is no multiple of {alignment}"
            )));
        }
        let (dtype, width) = (GgmlType::from_id(type_id), dims.first().copied().unwrap_or(1));
        let n_bytes = match dtype {
            GgmlType::Other(_) => 0,
            _ => dtype.n_bytes(n, width).ok_or_else(|| {
                fault(format!(
                    "rows of {width} numbers in {dtype:?} are not whole blocks, or too many"
                ))
            })?,
        };
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(n_bytes));
        let (Some(begin), true) = (begin, end.is_some_and(|end| end <= file_len)) else {
            let reason = format!(
                "its {n_bytes} bytes from {offset} extend beyond the end of the file, which has \
                 {file_len} bytes"
            );
            return Err(fault(reason));
        };
        // All of these are at most the file's length, which fits memory; `Other` has no values.
        let size = |value: u64| usize::try_from(value).map_err(|e| fault(e.to_string()));
        let shape = dims.iter().rev().map(|d| size(*d)).collect::<Result<_>>()?;
        let (offset, n_bytes) = (size(begin)?, size(n_bytes)?);
        Ok(TensorInfo { name, part: 0, shape, dtype, offset, n_bytes })
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fault(&self, reason: impl Into<String>) -> Error {
        Error::format(self.path, reason)
    }

    fn n_left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.n_left() {
            return Err(Error::Format {
                path: self.path.to_owned(),
                reason: format!(
                    "the file ends within {what}: {n} bytes expected, {} left",
                    self.n_left()
                ),
                hint: Some("copy or download the file again: it may be truncated".to_owned()),
            });
        }
        let from = self.at;
        self.at += n as usize;
        Ok(&self.bytes[from..self.at])
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().unwrap_or_default()))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|e| self.fault(format!("{what} is not UTF-8: {e}")))
    }

    fn metadata(&mut self, n_keys: u64) -> Result<Metadata> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut known = HashSet::new();
        for _ in 0..n_keys {
            let key = self.string("a key")?;
            let type_id = self.u32(&key)?;
            let value = match type_id {
                metadata::ARRAY => Value::Array(self.array(&key, 1)?),
                _ => self.scalar(&key, type_id)?,
            };
            if !known.insert(key.clone()) {
                return Err(self.fault(format!("the key {key} occurs twice")));
            }
            entries.push((key, value));
        }
        Ok(Metadata::from_entries(entries))
    }

    fn scalar(&mut self, key: &str, type_id: u32) -> Result<Value> {
        match type_id {
            metadata::BOOL => self.boolean(key).map(Value::Bool),
            metadata::STRING => self.string(key).map(Value::String),
            _ => {
                let size =
                    metadata::number_bytes(type_id).ok_or_else(|| self.unknown(key, type_id))?;
                let bytes = self.take(size as u64, key)?;
                Value::number(type_id, bytes).ok_or_else(|| self.unknown(key, type_id))
            }
        }
    }

    fn boolean(&mut self, key: &str) -> Result<bool> {
        match self.take(1, key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => {
                Err(self.fault(format!("{key} is {other:?}, expected 0 or 1 for false or true")))
            }
        }
    }

    fn unknown(&self, key: &str, type_id: u32) -> Error {
        self.fault(format!("{key} has a value of type {type_id}, expected 0 to 12"))
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth > MAX_DEPTH {
            return Err(self.fault(format!("{key} nests arrays more than {MAX_DEPTH} deep")));
        }
        let type_id = self.u32(key)?;
        let n = self.u64(key)?;
        // The least that so many elements take: a text has a length, an array a type and a length.
        let least = match type_id {
            metadata::BOOL => 1,
            metadata::STRING => 8,
            metadata::ARRAY => 12,
            _ => metadata::number_bytes(type_id).ok_or_else(|| self.unknown(key, type_id))? as u64,
        };
        let n_bytes = n.checked_mul(least).filter(|needed| *needed <= self.n_left());
        let Some(n_bytes) = n_bytes else {
            let left = self.n_left();
            return Err(self.fault(format!("{key} has {n} elements, but {left} bytes are left")));
        };
        Ok(match type_id {
            metadata::BOOL => {
                Array::Bool((0..n).map(|_| self.boolean(key)).collect::<Result<_>>()?)
            }
            metadata::STRING => {
                Array::String((0..n).map(|_| self.string(key)).collect::<Result<_>>()?)
            }
            metadata::ARRAY => {
                Array::Array((0..n).map(|_| self.array(key, depth + 1)).collect::<Result<_>>()?)
            }
            _ => {
                let bytes = self.take(n_bytes, key)?;
                Array::numbers(type_id, bytes).ok_or_else(|| self.unknown(key, type_id))?
            }
        })
    }

    fn tensors(&mut self, n: u64) -> Result<Vec<RawTensor>> {
        let mut tensors = Vec::new();
        let mut known = HashSet::new();
        for _ in 0..n {
            let name = self.string("the name of a tensor")?;
            let n_dims = self.u32(&name)?;
            if !(1..=MAX_DIMS).contains(&n_dims) {
                let reason =
                    format!("tensor `{name}` has {n_dims} dimensions, expected 1 to {MAX_DIMS}");
                return Err(self.fault(reason));
            }
            let dims = (0..n_dims).map(|_| self.u64(&name)).collect::<Result<_>>()?;
            let (type_id, offset) = (self.u32(&name)?, self.u64(&name)?);
            if !known.insert(name.clone()) {
                return Err(self.fault(format!("tensor `{name}` occurs twice")));
            }
            tensors.push(RawTensor { name, dims, type_id, offset });
        }
        Ok(tensors)
    }
}
