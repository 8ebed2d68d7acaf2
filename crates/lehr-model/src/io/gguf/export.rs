//! Writing a model as a GGUF file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use lehr_tensor::quant::WeightFormat;
use lehr_tensor::{Named, ParamStore};
use serde_json::Value;

use super::family::{self, Family};
use super::file_type::{FileType, Traits};
use super::metadata::Metadata;
use super::names::{Heads, Kind};
use super::writer::{self, Planned};
use crate::io::change::{file_rows, transpose};
use crate::io::files::write_stream;
use crate::spec::Spec;
use crate::{Error, Result};

/// The version of the block formats, written as `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// The contents of a GGUF file besides the weights.
#[derive(Clone, Debug)]
pub struct GgufOptions<'a> {
    /// The model's name, `general.name`.
    pub name: &'a str,
    /// The formats of the weights.
    pub file_type: FileType,
    /// The tokenizer, `tokenizer.*`. If it is empty, the file has none.
    pub tokenizer: Metadata,
    /// Further keys, such as the pooling of an embedder. `ARCH.` at the start of a key stands for
    /// the architecture. Keys that the writer computes keep the writer's value.
    pub more: Metadata,
}

/// A report of the written file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufSummary {
    /// Size of the file.
    pub n_bytes: u64,
    /// Number of tensors per format.
    pub formats: BTreeMap<String, usize>,
    /// Parameters that GGUF cannot store.
    pub left_out: Vec<String>,
}

/// One tensor and the source of its values.
struct Tensor<'a> {
    plan: Planned,
    values: Values<'a>,
    kind: Kind,
}

enum Values<'a> {
    Of(Named<'a>),
    Given(Vec<f32>),
}

/// Writes the parameters of a model with the `config.json` `config` as a GGUF file for llama.cpp.
/// It is written piece by piece to a temporary file, then renamed.
///
/// # Errors
/// If GGUF cannot represent the family or one of its settings, a value does not fit the format, or
/// the file cannot be written.
pub(crate) fn write_gguf(
    path: &Path,
    (config, spec): (&Value, &Spec),
    params: &ParamStore,
    options: &GgufOptions<'_>,
) -> Result<GgufSummary> {
    let family = family::of_config(config)?;
    let mut keys = family.describe(config)?;
    let heads = keys.heads()?;
    let mut left_out = Vec::new();
    let mut tensors = Vec::new();
    for (name, factors) in std::mem::take(&mut keys.tensors) {
        let plan = Planned { name, shape: vec![factors.len()], format: WeightFormat::F32 };
        tensors.push(Tensor { plan, values: Values::Given(factors), kind: Kind::Same });
    }
    for weight in params.named() {
        match plan(family, weight.name(), &weight.shape())? {
            Some((plan, kind)) => tensors.push(Tensor { plan, values: Values::Of(weight), kind }),
            None => left_out.push(weight.name().to_owned()),
        }
    }
    choose_formats(&mut tensors, options.file_type, spec);
    let metadata = finish(keys.metadata, options, spec.vocab_size);
    let plans: Vec<_> = tensors.iter().map(|t| &t.plan).collect();
    let head = writer::head(&metadata, &plans);
    let n_bytes = plans.iter().map(|p| p.n_bytes() + writer::n_padding(p.n_bytes()));
    let n_bytes = (head.len() + n_bytes.sum::<usize>()) as u64;
    let mut formats = BTreeMap::new();
    plans.iter().for_each(|p| *formats.entry(p.format.to_string()).or_default() += 1);
    write_stream(path, |out| {
        let fault = || Error::io("writing", path);
        out.write_all(&head).map_err(fault())?;
        tensors.iter().try_for_each(|tensor| {
            let bytes = tensor.bytes(path, heads)?;
            out.write_all(&bytes).map_err(fault())?;
            out.write_all(&vec![0; writer::n_padding(bytes.len())]).map_err(fault())
        })
    })?;
    Ok(GgufSummary { n_bytes, formats, left_out })
}

/// Returns name and shape of a parameter in the file; `None` if it is left out.
fn plan(family: &Family, name: &str, shape: &[usize]) -> Result<Option<(Planned, Kind)>> {
    if family.left_out.iter().any(|start| name.starts_with(start)) {
        return Ok(None);
    }
    let Some((ggml, kind)) = family.layout.to_ggml(name) else {
        return Err(Error::config(name, "a parameter", "one that GGUF has a name for"));
    };
    let mut shape = shape.to_vec();
    if kind == Kind::Transposed && shape.len() == 2 {
        shape.reverse();
    }
    Ok(Some((Planned { name: ggml, shape, format: WeightFormat::F32 }, kind)))
}

fn choose_formats(tensors: &mut [Tensor<'_>], file_type: FileType, spec: &Spec) {
    let traits = Traits {
        n_blocks: spec.n_layers,
        is_tied: !tensors.iter().any(|t| t.plan.name == "output.weight"),
        is_70b: spec.n_layers == 80 && spec.n_kv_heads < spec.n_heads,
    };
    for Tensor { plan, .. } in tensors {
        plan.format = file_type.format_of(&plan.name, &plan.shape, traits);
    }
}

fn finish(mut metadata: Metadata, options: &GgufOptions<'_>, vocab_size: usize) -> Metadata {
    metadata.set("general.name", options.name);
    metadata.set("general.file_type", options.file_type.id());
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    for (key, value) in options.tokenizer.entries() {
        metadata.set(key.clone(), value.clone());
    }
    let arch = metadata.string("general.architecture").ok().flatten().unwrap_or_default();
    let arch = arch.to_owned();
    for (key, value) in options.more.entries() {
        let key = key.strip_prefix("ARCH.").map_or(key.clone(), |name| format!("{arch}.{name}"));
        if metadata.get(&key).is_none() {
            metadata.set(key, value.clone());
        }
    }
    if metadata.get("tokenizer.ggml.model").is_none() {
        // llama.cpp then takes the number of tokens from the architecture's own key.
        metadata.set("tokenizer.ggml.model", "no_vocab");
        metadata.set(format!("{arch}.vocab_size"), vocab_size as u32);
    }
    metadata
}

impl Tensor<'_> {
    /// Returns the tensor's bytes in the file.
    fn bytes(&self, path: &Path, heads: Heads) -> Result<Vec<u8>> {
        let loaded;
        let values = match &self.values {
            Values::Given(values) => values,
            Values::Of(weight) => {
                loaded = weight.to_host()?;
                loaded.data()
            }
        };
        let values = self.changed(values, heads);
        let format = self.plan.format;
        self.check(path, &values)?;
        let mut bytes = vec![0; self.plan.n_bytes()];
        format.quantize(&values, &mut bytes);
        Ok(bytes)
    }

    /// Computes the values in the form of the file.
    fn changed<'v>(&self, values: &'v [f32], heads: Heads) -> Cow<'v, [f32]> {
        let rows = self.plan.shape[0];
        match self.kind {
            Kind::QueryRows => file_rows(values, rows, heads.query).into(),
            Kind::KeyRows => file_rows(values, rows, heads.key).into(),
            Kind::PlusOne => values.iter().map(|v| v + 1.0).collect::<Vec<_>>().into(),
            Kind::Transposed if self.plan.shape.len() == 2 => {
                let mut out = vec![0.0; values.len()];
                // The plan has the file's shape: its rows are the model's columns.
                transpose(values, rows, &mut out);
                out.into()
            }
            Kind::Same | Kind::Transposed => Cow::Borrowed(values),
        }
    }

    /// Checks that every value fits the format.
    fn check(&self, path: &Path, values: &[f32]) -> Result<()> {
        /// The largest f16 value. Block scales are f16 too.
        const F16_MAX: f32 = 65504.0;
        let Planned { name, format, .. } = &self.plan;
        let limit = match format {
            WeightFormat::F32 | WeightFormat::BF16 => f32::MAX,
            _ => F16_MAX,
        };
        let Some(bad) = values.iter().find(|v| v.is_nan() || v.abs() > limit) else {
            return Ok(());
        };
        Err(Error::Format {
            path: path.to_owned(),
            reason: format!("writing `{name}`: {bad} does not fit {format}"),
            hint: Some(
                "write it in bf16 or f32, or repair the model if it is not finite".to_owned(),
            ),
        })
    }
}
