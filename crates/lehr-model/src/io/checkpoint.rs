//! Weights in safetensors files: one file, or several under an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use lehr_tensor::{Shape, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde_json::Value;

use super::read_json;
use crate::{Error, Result};

/// The weights of a folder or file, read in place.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<WeightFile>,
    /// Tensor name to file and entry.
    index: BTreeMap<String, (usize, TensorInfo)>,
}

struct WeightFile {
    path: PathBuf,
    map: Mmap,
    /// Where the tensor data begins.
    data_start: usize,
}

impl Checkpoint {
    /// Opens `model.safetensors` or `model.safetensors.index.json` of a folder, or one file.
    ///
    /// # Errors
    /// If there is none or one is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let mut checkpoint =
            Self { path: path.to_owned(), files: Vec::new(), index: BTreeMap::new() };
        for file in weight_files(path)? {
            checkpoint.add(file)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(Error::io("opening", &path))?;
        // SAFETY: the map is read only; whoever changes the file under a running program changes
        // numbers, which are checked for range nowhere and for validity never: any bits are floats.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("mapping", &path))?;
        let damaged = |e: safetensors::SafeTensorError| Error::Format {
            path: path.clone(),
            reason: format!("not a whole safetensors file ({} bytes): {e}", map.len()),
            hint: Some("copy or download the file again: it may have been cut".to_owned()),
        };
        let (header_len, header): (usize, Metadata) =
            SafeTensors::read_metadata(&map).map_err(damaged)?;
        let data_start = 8 + header_len;
        for (name, info) in header.tensors() {
            self.index.insert(name, (self.files.len(), info.clone()));
        }
        self.files.push(WeightFile { path, map, data_start });
        Ok(())
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|(_, info)| info.shape.as_slice())
    }

    /// A float tensor (f32, f16 or bf16) as f32.
    ///
    /// # Errors
    /// If it is missing, has another shape or is not of floats.
    pub fn tensor(&self, name: &str, shape: Shape) -> Result<Tensor> {
        let (path, info, bytes) = self.entry(name)?;
        if info.shape != *shape {
            let reason = format!("`{name}` has shape {:?}, the model expects {shape}", info.shape);
            return Err(Error::format(path, reason));
        }
        let mut out = Tensor::uninit(shape, lehr_tensor::DType::F32)?;
        let values = out.data_mut().iter_mut();
        match info.dtype {
            Dtype::F32 => {
                values.zip(bytes.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
            }
            Dtype::F16 => {
                values
                    .zip(bytes.as_chunks().0)
                    .for_each(|(v, b)| *v = f16::from_le_bytes(*b).to_f32());
            }
            Dtype::BF16 => {
                values
                    .zip(bytes.as_chunks().0)
                    .for_each(|(v, b)| *v = bf16::from_le_bytes(*b).to_f32());
            }
            other => {
                let reason = format!("`{name}` holds {other:?}, expected F32, F16 or BF16");
                return Err(Error::format(path, reason));
            }
        }
        Ok(out)
    }

    /// An integer tensor (i64 or i32) as i32, in its own shape.
    ///
    /// # Errors
    /// If it is missing, not of integers or has values beyond i32.
    pub fn ids(&self, name: &str) -> Result<Tensor> {
        let (path, info, bytes) = self.entry(name)?;
        let values: Option<Vec<i32>> = match info.dtype {
            Dtype::I64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| i32::try_from(i64::from_le_bytes(*b)).ok())
                .collect(),
            Dtype::I32 => {
                Some(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
            }
            _ => None,
        };
        let Some(values) = values else {
            let reason = format!("`{name}` holds {:?}, expected I64 or I32 ids", info.dtype);
            return Err(Error::format(path, reason));
        };
        Ok(Tensor::from_ids(&values, &info.shape)?)
    }

    fn entry(&self, name: &str) -> Result<(&Path, &TensorInfo, &[u8])> {
        let Some((file, info)) = self.index.get(name) else {
            return Err(Error::format(&self.path, self.missing(name)));
        };
        let file = &self.files[*file];
        let (from, to) = info.data_offsets;
        Ok((&file.path, info, &file.map[file.data_start + from..file.data_start + to]))
    }

    /// What to say about a tensor that is not there.
    pub(crate) fn missing(&self, name: &str) -> String {
        let near = self.index.keys().find(|known| known.ends_with(name) || name.ends_with(*known));
        match near {
            Some(near) => format!("`{name}` is missing; the file has `{near}`"),
            None => format!("`{name}` is missing; the file has {} other tensors", self.index.len()),
        }
    }

    /// Puts the file's path into the engine's message about a parameter.
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

fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    if std::fs::metadata(path).map_err(Error::io("opening", path))?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let single = path.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = path.join("model.safetensors.index.json");
    if !index_path.is_file() {
        return Err(Error::Format {
            path: path.to_owned(),
            reason: "found neither model.safetensors nor model.safetensors.index.json".to_owned(),
            hint: Some("give a run directory or a Hugging Face folder".to_owned()),
        });
    }
    let json = read_json(&index_path)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::format(&index_path, "`weight_map` is missing"));
    };
    let mut names: Vec<_> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    // A name with a path in it would read files outside of the folder.
    if let Some(bad) = names.iter().find(|n| Path::new(n).file_name() != Some(n.as_ref())) {
        return Err(Error::format(&index_path, format!("`{bad}` is not a plain file name")));
    }
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}
