//! Writing a model as a Hugging Face folder, in any float format, in one file or several.

use std::io::ErrorKind;
use std::path::Path;

use lehr_tensor::quant::WeightFormat;
use lehr_tensor::{Named, ParamStore, Shape, Tensor};
use serde_json::{Map, json};

use super::checkpoint::Checkpoint;
use super::files::{write_file as write_text, write_json, write_stream};
use super::tensor_file::safetensors_head;
use crate::{Error, Result};

/// Maximum size of a weight file in bytes, unless one tensor is larger.
const FILE_BYTES: usize = 5_000_000_000;

/// The float formats of weights in Hugging Face folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatFormat {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    BF16,
}

impl FloatFormat {
    /// Returns the name in lower case, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// Returns the name in `config.json`.
    pub(crate) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// Returns the name in safetensors files.
    fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        }
    }

    fn weights(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::F16 => WeightFormat::F16,
            Self::BF16 => WeightFormat::BF16,
        }
    }

    /// Returns the bytes of `n` values.
    fn n_bytes(self, n: usize) -> usize {
        self.weights().n_bytes(n)
    }
}

/// The contents of a folder.
pub(crate) struct FolderContents<'a> {
    pub(crate) params: &'a ParamStore,
    /// Tensors that the model does not use, such as another program's head.
    pub(crate) extra: &'a [Extra<'a>],
    /// The text of `config.json`.
    pub(crate) config: &'a str,
    pub(crate) format: FloatFormat,
}

/// A tensor of another checkpoint.
pub(crate) struct Extra<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) name: &'a str,
    pub(crate) shape: Shape,
}

/// A tensor to write.
enum Item<'a> {
    Param(Named<'a>),
    Extra(&'a Extra<'a>),
}

impl Item<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Param(param) => param.name(),
            Self::Extra(extra) => extra.name,
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Param(param) => param.shape(),
            Self::Extra(extra) => extra.shape,
        }
    }

    fn to_host(&self) -> Result<Tensor> {
        match self {
            Self::Param(param) => Ok(param.to_host()?),
            Self::Extra(extra) => extra.checkpoint.tensor(extra.name, extra.shape),
        }
    }
}

/// Writes `config.json`, and the weights as `model.safetensors`, or as numbered files with an index
/// if they take more than 5 GB. Each file replaces an old one only when it is complete.
///
/// # Errors
/// If a value does not fit the format or a file cannot be written.
pub(crate) fn write_folder(dir: &Path, contents: &FolderContents<'_>) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
    write_weights(dir, &contents.items(), contents.format, FILE_BYTES)?;
    write_text(&dir.join("config.json"), contents.config.as_bytes())
}

impl FolderContents<'_> {
    fn items(&self) -> Vec<Item<'_>> {
        let params = self.params.named().into_iter().map(Item::Param);
        params.chain(self.extra.iter().map(Item::Extra)).collect()
    }
}

fn write_weights(dir: &Path, params: &[Item<'_>], format: FloatFormat, limit: usize) -> Result<()> {
    let parts = divide(params, format, limit);
    if let [part] = parts[..] {
        return write_file(&dir.join("model.safetensors"), part, format);
    }
    let mut weight_map = Map::new();
    for (i, part) in parts.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, parts.len());
        write_file(&dir.join(&name), part, format)?;
        weight_map.extend(part.iter().map(|p| (p.name().to_owned(), name.clone().into())));
    }
    let total_size: usize = params.iter().map(|p| format.n_bytes(p.shape().n_elements())).sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index)?;
    // Readers would prefer an old single file.
    match std::fs::remove_file(dir.join("model.safetensors")) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::io("removing the old model.safetensors of", dir)(e))
        }
        _ => Ok(()),
    }
}

/// Splits the parameters into consecutive groups of at most `limit` bytes. A larger parameter is a
/// group of its own.
fn divide<'a, 'b>(
    params: &'b [Item<'a>],
    format: FloatFormat,
    limit: usize,
) -> Vec<&'b [Item<'a>]> {
    let (mut parts, mut from, mut size) = (Vec::new(), 0, 0);
    for (i, param) in params.iter().enumerate() {
        let n_bytes = format.n_bytes(param.shape().n_elements());
        if i > from && size + n_bytes > limit {
            parts.push(&params[from..i]);
            (from, size) = (i, 0);
        }
        size += n_bytes;
    }
    parts.push(&params[from..]);
    parts
}

fn write_file(path: &Path, params: &[Item<'_>], format: FloatFormat) -> Result<()> {
    let named = params.iter().map(|p| (p.name(), p.shape()));
    let dtype = (format.safetensors_name(), format.n_bytes(1));
    let head = safetensors_head(named, dtype, &[("format", "pt")]);
    write_stream(path, |out| {
        let fault = || Error::io("writing", path);
        out.write_all(&head).map_err(fault())?;
        params.iter().try_for_each(|param| {
            let tensor = param.to_host()?;
            check_fits(path, param, tensor.data(), format)?;
            let mut bytes = vec![0; format.n_bytes(tensor.data().len())];
            format.weights().quantize(tensor.data(), &mut bytes);
            out.write_all(&bytes).map_err(fault())
        })
    })
}

/// Checks that no value exceeds the range of f16, where it would become infinite.
fn check_fits(path: &Path, param: &Item<'_>, values: &[f32], format: FloatFormat) -> Result<()> {
    const F16_MAX: f32 = 65504.0;
    let too_large = |v: &&f32| format == FloatFormat::F16 && v.is_finite() && v.abs() > F16_MAX;
    let Some(bad) = values.iter().find(too_large) else { return Ok(()) };
    Err(Error::Format {
        path: path.to_owned(),
        reason: format!("writing `{}`: {bad} is beyond the largest f16, {F16_MAX}", param.name()),
        hint: Some("write it in bf16 or f32".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Model};

    fn golden() -> Model {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
        Model::load(&dir).unwrap()
    }

    #[test]
    fn weights_in_several_files_are_those_in_one() {
        let (model, scratch) = (golden(), tempfile::tempdir().unwrap());
        let dir = scratch.path();
        for format in [FloatFormat::F32, FloatFormat::F16, FloatFormat::BF16] {
            let config = model.config().to_json().to_string();
            let contents =
                FolderContents { params: model.params(), extra: &[], config: &config, format };
            model.save_as(dir, format).unwrap();
            let one = Model::load(dir).unwrap();
            write_weights(dir, &contents.items(), format, 20_000).unwrap();
            assert!(dir.join("model.safetensors.index.json").is_file());
            let several = Model::load(dir).unwrap();
            for (a, b) in one.params().params().iter().zip(several.params().params()) {
                assert_eq!((a.name(), a.tensor().to_vec()), (b.name(), b.tensor().to_vec()));
            }
            let limit = match format {
                FloatFormat::F32 => 0.0,
                FloatFormat::F16 => 1.0 / 2048.0,
                FloatFormat::BF16 => 1.0 / 256.0,
            };
            for (a, b) in one.params().params().iter().zip(model.params().params()) {
                for (a, b) in a.tensor().data().iter().zip(b.tensor().data()) {
                    assert!((a - b).abs() <= limit * b.abs() + 1e-7, "{a} {b}");
                }
            }
            let config = crate::io::read_json(&dir.join("config.json")).unwrap();
            assert_eq!(config["dtype"], format.torch_name());
            assert_eq!(Config::from_json(&config).unwrap(), *model.config());
            std::fs::remove_file(dir.join("model.safetensors.index.json")).unwrap();
        }
    }

    #[test]
    fn a_number_beyond_f16_is_named() {
        let (model, scratch) = (golden(), tempfile::tempdir().unwrap());
        model.params().params()[0].update(|values, _| values[3] = 1e6).unwrap();
        let write = |format| {
            let (params, extra, config) = (model.params(), &[][..], "{}");
            write_folder(scratch.path(), &FolderContents { params, extra, config, format })
        };
        let error = write(FloatFormat::F16).unwrap_err().to_string();
        assert!(
            error.contains("model.embed_tokens.weight") && error.contains("1000000"),
            "{error}"
        );
        write(FloatFormat::BF16).unwrap();
    }
}
