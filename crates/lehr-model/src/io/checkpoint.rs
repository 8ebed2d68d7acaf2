//! Weights of a model in mapped files of any format, by tensor name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lehr_tensor::quant::{Owner, QMatrix, WeightFormat};
use lehr_tensor::{Shape, StoredShape, Tensor};
use memmap2::{Mmap, MmapMut};
use serde_json::Value;

use super::base::BaseModel;
use super::change::{Change, model_rows};
use super::entry::{Entry, FileDtype, StoredTensor};
use super::gguf::{self, Metadata};
use super::{pickle, read_json, safetensors_file};
use crate::{Error, Result};

/// The weights of a folder or file, read in place.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<WeightFile>,
    /// Place of each tensor, by name.
    index: BTreeMap<String, Entry>,
    /// Metadata and settings, if the file is GGUF.
    gguf: Option<GgufHead>,
}

struct GgufHead {
    metadata: Metadata,
    config: Value,
}

pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) map: Arc<Mmap>,
}

/// Returns whether two shapes are the same up to leading extents of 1, which GGUF files omit.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let short = |shape: &[usize]| shape.iter().take_while(|extent| **extent == 1).count();
    a[short(a)..] == b[short(b)..]
}

impl Checkpoint {
    /// Opens one file, or the weights of a folder: the first one found of `model.safetensors`,
    /// `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json` and
    /// `consolidated.00.pth`. The format (safetensors, PyTorch or GGUF) is detected from the
    /// contents. Tensors of GGUF files get the names of their family.
    ///
    /// No code in a PyTorch file is run. The weights are the outermost dict. If that has no tensors
    /// itself, they are its entry `state_dict`, `model_state_dict`, `model` or `module`. Nested
    /// dicts are joined with dots.
    ///
    /// If the folder refers to a base model ([`BaseModel`]), missing tensors come from the base.
    ///
    /// # Errors
    /// If no weights are found, a file is damaged, or the base has changed.
    pub fn open(path: &Path) -> Result<Self> {
        let mut checkpoint = match BaseModel::read(path)? {
            None => Self::empty(path),
            Some(base) => {
                base.check(path)?;
                Self { path: path.to_owned(), gguf: None, ..Self::open(&base.path)? }
            }
        };
        for file in weight_files(path)? {
            checkpoint.add(file)?;
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), files: Vec::new(), index: BTreeMap::new(), gguf: None }
    }

    /// Reads every tensor once, as floats or ids, and returns how many could be read. That proves
    /// that the claimed contents exist.
    #[must_use]
    pub fn read_all(&self) -> usize {
        let read = |name: &&str| {
            let shape = self.shape(name).filter(|shape| shape.len() <= Shape::RANK_MAX);
            let tensor = shape.is_some_and(|shape| self.tensor(name, shape.into()).is_ok());
            tensor || self.ids(name).is_ok()
        };
        self.names().filter(read).count()
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(Error::io("opening", &path))?;
        // SAFETY: the map is read-only. If another program changes the file meanwhile, values
        // change, but every bit pattern is a valid float, so no invariant depends on them.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("mapping", &path))?;
        self.add_mapped(path, map)
    }

    fn add_mapped(&mut self, path: PathBuf, map: Mmap) -> Result<()> {
        let file = self.files.len();
        if gguf::is_gguf(&map) {
            let contents = gguf::open(&path, &map, file)?;
            self.add_entries(&path, contents.entries)?;
            self.gguf = Some(GgufHead { metadata: contents.metadata, config: contents.config });
        } else {
            let entries = match () {
                // Some header lengths begin like a pickle, so safetensors is tested first.
                () if safetensors_file::recognises(&map) => safetensors_file::entries,
                () if pickle::recognises(&map) => pickle::entries,
                () => return Err(unknown_format(&path, &map)),
            };
            self.index.extend(entries(&path, &map, file)?);
        }
        self.files.push(WeightFile { path, map: Arc::new(map) });
        Ok(())
    }

    fn add_entries(&mut self, path: &Path, entries: Vec<(String, Entry)>) -> Result<()> {
        for (name, entry) in entries {
            if !entry.change.fits(&entry.shape) {
                let reason = format!("`{name}` has shape {:?}, no whole heads", entry.shape);
                return Err(Error::format(path, reason));
            }
            if self.index.insert(name.clone(), entry).is_some() {
                return Err(Error::format(path, format!("`{name}` is there twice")));
            }
        }
        Ok(())
    }

    /// Returns the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.gguf.as_ref().map(|gguf| &gguf.metadata)
    }

    /// Returns the `config.json` of the model in a GGUF file.
    #[must_use]
    pub fn gguf_config(&self) -> Option<&Value> {
        self.gguf.as_ref().map(|gguf| &gguf.config)
    }

    /// Returns a matrix of 16 or fewer bits in its stored format, without copying. Returns `None`
    /// if no matrix has that name and shape, or its values must be changed first.
    #[must_use]
    pub fn matrix(&self, name: &str, shape: StoredShape) -> Option<QMatrix> {
        let entry = self.index.get(name)?;
        let FileDtype::Weights(format) = entry.dtype else { return None };
        let StoredShape { rows, cols, transposed } = shape;
        let ours = if transposed { [cols, rows] } else { [rows, cols] };
        if format == WeightFormat::F32 || entry.strides.is_some() || entry.shape != ours {
            return None;
        }
        let file = &self.files[entry.file];
        let range = entry.offset..entry.offset + entry.n_bytes;
        let (owner, range): (Owner, _) = match entry.change {
            Change::None if !transposed => (Arc::clone(&file.map) as Owner, range),
            Change::Transposed if transposed => (Arc::clone(&file.map) as Owner, range),
            // Whole rows move, so blocks are unchanged.
            Change::InterleavedRows { heads } if !transposed => {
                let moved = model_rows(&file.map[range], rows, heads);
                let range = 0..moved.len();
                (Arc::new(moved), range)
            }
            _ => return None,
        };
        QMatrix::new(format, rows, cols, owner, range, Vec::new()).ok()
    }

    /// Opens one file of weights in memory; `path` is its name in errors.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        let mut map = MmapMut::map_anon(bytes.len()).map_err(Error::io("mapping", path))?;
        map.copy_from_slice(bytes);
        let map = map.make_read_only().map_err(Error::io("mapping", path))?;
        checkpoint.add_mapped(path.to_owned(), map)?;
        Ok(checkpoint)
    }

    /// Returns whether there is a tensor of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Returns the names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Lists the tensors in the files, by name.
    pub fn stored(&self) -> impl Iterator<Item = StoredTensor> {
        self.index.iter().map(|(name, entry)| StoredTensor {
            name: name.clone(),
            shape: entry.shape.clone(),
            format: entry.dtype.to_string(),
            n_bytes: entry.n_bytes as u64,
        })
    }

    /// Returns the shape of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a float tensor in any weight format as f32.
    ///
    /// # Errors
    /// If it is missing, has another shape or does not contain floats.
    pub fn tensor(&self, name: &str, shape: Shape) -> Result<Tensor> {
        let (path, entry, bytes) = self.entry(name)?;
        if !same_shape(&entry.shape, &shape) {
            let reason = format!("`{name}` has shape {:?}, the model expects {shape}", entry.shape);
            return Err(Error::format(path, reason));
        }
        let mut out = Tensor::uninit(shape, lehr_tensor::DType::F32)?;
        match entry.dtype {
            FileDtype::Weights(format) => {
                entry.change.dequantize(format, &bytes, &entry.shape, out.data_mut());
            }
            FileDtype::F64 => {
                let values = out.data_mut().iter_mut().zip(bytes.as_chunks().0);
                values.for_each(|(v, b)| *v = f64::from_le_bytes(*b) as f32);
            }
            other => {
                let reason = format!("`{name}` holds {other}, expected floats in a known format");
                return Err(Error::format(path, reason));
            }
        }
        Ok(out)
    }

    /// Reads an integer tensor (i64, i32 or u8) as i32, in its stored shape.
    ///
    /// # Errors
    /// If it is missing, does not contain integers or has values outside the range of i32.
    pub fn ids(&self, name: &str) -> Result<Tensor> {
        let (path, entry, bytes) = self.entry(name)?;
        let values: Option<Vec<i32>> = match entry.dtype {
            FileDtype::I64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| i32::try_from(i64::from_le_bytes(*b)).ok())
                .collect(),
            FileDtype::I32 => {
                Some(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
            }
            FileDtype::Other("U8") => Some(bytes.iter().copied().map(i32::from).collect()),
            _ => None,
        };
        let Some(values) = values else {
            let reason = format!("`{name}` holds {}, expected I64 or I32 ids", entry.dtype);
            return Err(Error::format(path, reason));
        };
        if entry.shape.len() > Shape::RANK_MAX {
            let (found, limit) = (entry.shape.len(), Shape::RANK_MAX);
            let reason = format!("`{name}` has {found} dimensions, expected at most {limit}");
            return Err(Error::format(path, reason));
        }
        Ok(Tensor::from_ids(&values, &entry.shape)?)
    }

    /// Returns a tensor's file, description and row-major bytes.
    fn entry(&self, name: &str) -> Result<(&Path, &Entry, Cow<'_, [u8]>)> {
        let Some(entry) = self.index.get(name) else {
            return Err(Error::format(&self.path, self.missing(name)));
        };
        let file = &self.files[entry.file];
        let bytes = &file.map[entry.offset..entry.offset + entry.n_bytes];
        let bytes = match &entry.strides {
            None => Cow::Borrowed(bytes),
            Some(strides) => Cow::Owned(strides.gather(bytes, &entry.shape)),
        };
        Ok((&file.path, entry, bytes))
    }

    /// Describes a missing tensor for an error.
    pub(crate) fn missing(&self, name: &str) -> String {
        let near = self.index.keys().find(|known| known.ends_with(name) || name.ends_with(*known));
        match near {
            Some(near) => format!("`{name}` is missing; the file has `{near}`"),
            None => format!("`{name}` is missing; the file has {} other tensors", self.index.len()),
        }
    }

    /// Adds the file's path to the engine's message about a parameter.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Tensor(lehr_tensor::Error::Source { name, shape, reason }) => Error::Format {
                path: self.path.clone(),
                reason: format!("loading `{name}` of shape {shape}: {reason}"),
                hint: Some("config.json and the weights must be of one model".to_owned()),
            },
            other => other,
        }
    }
}

fn unknown_format(path: &Path, bytes: &[u8]) -> Error {
    let hint = match bytes.starts_with(b"version https://git-lfs") {
        true => "it stands for a file in git-lfs: fetch that with `git lfs pull`",
        false => "copy or download the file again: it may have been cut, or be something else",
    };
    let n = bytes.len();
    Error::Format {
        path: path.to_owned(),
        reason: format!("not a whole safetensors file, nor one of PyTorch or GGUF ({n} bytes)"),
        hint: Some(hint.to_owned()),
    }
}

/// Lists the weight files of a folder, or the file itself.
///
/// # Errors
/// If there are none.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    if std::fs::metadata(path).map_err(Error::io("opening", path))?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let there = |name: &str| Some(path.join(name)).filter(|path| path.is_file());
    for name in ["model.safetensors", "pytorch_model.bin"] {
        if let Some(single) = there(name) {
            return Ok(vec![single]);
        }
        if let Some(index) = there(&format!("{name}.index.json")) {
            return shards(path, &index);
        }
    }
    match (there("consolidated.00.pth"), there("consolidated.01.pth")) {
        (Some(single), None) => Ok(vec![single]),
        (Some(_), Some(_)) => Err(Error::Format {
            path: path.to_owned(),
            reason: "found consolidated.00.pth and more: every tensor is cut in parts".to_owned(),
            hint: Some("use the model's Hugging Face folder, which has whole tensors".to_owned()),
        }),
        (None, _) => Err(Error::Format {
            path: path.to_owned(),
            reason: "found neither model.safetensors nor pytorch_model.bin (nor their \
                     .index.json) nor consolidated.00.pth"
                .to_owned(),
            hint: Some("give a run directory or a Hugging Face folder".to_owned()),
        }),
    }
}

/// Lists the files in the index of a sharded model.
fn shards(path: &Path, index_path: &Path) -> Result<Vec<PathBuf>> {
    let json = read_json(index_path)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::format(index_path, "`weight_map` is missing"));
    };
    let mut names: Vec<_> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    // A name with a path would read files outside the folder.
    if let Some(bad) = names.iter().find(|n| Path::new(n).file_name() != Some(n.as_ref())) {
        return Err(Error::format(index_path, format!("`{bad}` is not a plain file name")));
    }
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}
