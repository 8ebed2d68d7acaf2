//! Construction of models: new, from files, with adapters.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use lehr_tensor::quant::{self, MatrixFormat, QMatrix, WeightFormat};
use lehr_tensor::{LoadStored, ParamStore, Philox, Role, Shape, Source, StoredShape};

use super::Model;
use super::lookup::Lookup;
use crate::adapt::{AdapterConfig, AdapterFactory, Adapters};
use crate::arch::{ActivationCheckpointing, Architecture};
use crate::io::{self, Checkpoint, ModelSource, Shards};
use crate::nn::LayerBuilder;
use crate::peft::PeftAdapter;
use crate::{Config, Error, Result, Weights};

impl Model {
    /// Builds a model with random weights that depend on `seed` alone.
    ///
    /// # Errors
    /// If the configuration is impossible or memory runs out.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        Self::build(config, &Source::Init { seed })
    }

    /// Builds a model with random weights for inference, with matrices stored as `weights` says.
    /// Benchmarks use it.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn random(config: Config, weights: Weights, seed: u64) -> Result<Self> {
        let Weights::In(format) = weights else { return Self::new(config, seed) };
        let load = |_: &str, _: Shape| Ok(None);
        // All rows are the same: values do not affect speed.
        let find = |_: &str, shape: StoredShape, role: Role| {
            if role.is_vocabulary() {
                return None;
            }
            let mut row = vec![0.0; shape.cols];
            Philox::new(seed, 0).fill_normal(&mut row, 0.02);
            QMatrix::from_f32(&row.repeat(shape.rows), shape.rows, shape.cols, format).ok()
        };
        let source = Source::Load { load: &load, stored: Some(&find), seed };
        Self::build(config, &source)
    }

    /// Loads a model from one of three sources: a Hugging Face folder with `config.json` and
    /// `model.safetensors` (or its sharded index), a folder with `config.json` and the parts of a
    /// tensor-parallel checkpoint, or a GGUF file.
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(path: &Path) -> Result<Self> {
        if let Some(shards) = Shards::open(path)? {
            let json = io::read_json(&path.join("config.json"))?;
            let mut model = Self::from_shards(Config::from_json(&json)?, &shards)?;
            model.warnings.extend(unread_keys(&json));
            return Ok(model);
        }
        Self::load_source(&ModelSource::open(path)?)
    }

    /// Loads a model like [`Model::load`], from an open source.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_source(source: &ModelSource) -> Result<Self> {
        Self::from_source(source, Weights::F32, None)
    }

    /// Returns what the user must know about keys and files of `source` that nothing reads.
    #[must_use]
    pub fn source_warnings(source: &ModelSource) -> Vec<String> {
        let keys = match source.gguf_metadata() {
            // Its configuration is lehr's own.
            Some(_) => None,
            None => unread_keys(source.config()),
        };
        keys.into_iter().chain(source.checkpoint().warnings().iter().cloned()).collect()
    }

    fn from_source(
        source: &ModelSource,
        weights: Weights,
        adapters: Option<Adapters<'_>>,
    ) -> Result<Self> {
        let config = Config::from_json(source.config())?;
        let mut model = Self::from_weights(config, source.checkpoint(), weights, adapters)?;
        model.warnings.extend(Self::source_warnings(source));
        Ok(model)
    }

    fn from_shards(config: Config, shards: &Shards) -> Result<Self> {
        let names = config.clone();
        let used = RefCell::new(BTreeSet::new());
        let load = |name: &str, shape: Shape| {
            used.borrow_mut().insert(name.to_owned());
            let merged = shards.tensor(name, shape, names.shard_rule(name));
            merged.map(Some).map_err(|e| e.to_string())
        };
        let built = Self::build(config, &Source::Load { load: &load, stored: None, seed: 0 });
        let mut model = built.map_err(|e| shards.explain(e))?;
        model.unused = shards.unused(&used.borrow());
        Ok(model)
    }

    /// Opens a model for inference from the same sources as [`Model::load`], with matrices stored
    /// as `weights` says. The parts of a tensor-parallel checkpoint are merged in f32.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open(path: &Path, weights: Weights) -> Result<Self> {
        if Shards::open(path)?.is_some() {
            return Self::load(path);
        }
        Self::open_source(&ModelSource::open(path)?, weights)
    }

    /// Opens a model like [`Model::open`], from an open source.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open_source(source: &ModelSource, weights: Weights) -> Result<Self> {
        Self::from_source(source, weights, None)
    }

    /// Builds a model with random weights and new adapters. Only the adapters are trainable.
    ///
    /// # Errors
    /// As [`Model::new`]. Also if a target of `adapters` matches no layer, or their settings are
    /// invalid.
    pub fn new_adapted(config: Config, adapters: &AdapterConfig, seed: u64) -> Result<Self> {
        let adapters = Some(Adapters::New(adapters));
        Self::build_adapted(config, &Source::Init { seed }, true, adapters)
    }

    /// Opens a model like [`Model::open_source`] and adds new adapters. The weights are frozen;
    /// only the adapters are trainable. Stored (quantised) weights keep their format.
    ///
    /// # Errors
    /// As [`Model::load`]. Also if a target of `adapters` matches no layer, or their settings are
    /// invalid.
    pub fn open_adapted(
        source: &ModelSource,
        weights: Weights,
        adapters: &AdapterConfig,
    ) -> Result<Self> {
        Self::from_source(source, weights, Some(Adapters::New(adapters)))
    }

    /// Opens a model like [`Model::open`] with a trained adapter.
    ///
    /// # Errors
    /// As [`Model::open_with_adapter`], and if the model is in tensor-parallel parts.
    pub fn open_folder_with_adapter(
        path: &Path,
        weights: Weights,
        adapter: &PeftAdapter,
    ) -> Result<Self> {
        if Shards::open(path)?.is_some() {
            return Err(Error::adapter(
                "opening the model with an adapter",
                format!("{} is in tensor-parallel parts", path.display()),
                "write it as one model first, with lehr convert",
            ));
        }
        Self::open_with_adapter(&ModelSource::open(path)?, weights, adapter)
    }

    /// Opens a model like [`Model::open_source`] with a trained adapter. The weights are frozen;
    /// only the adapter is trainable. Stored (quantised) weights keep their format.
    ///
    /// # Errors
    /// As [`Model::load`]. Also if the adapter has layers that the model lacks, or of other shapes.
    pub fn open_with_adapter(
        source: &ModelSource,
        weights: Weights,
        adapter: &PeftAdapter,
    ) -> Result<Self> {
        adapter.check_updates_only()?;
        Self::backbone_with_adapter(source, weights, adapter)
    }

    /// The same for a backbone whose head the adapter may have.
    pub(crate) fn backbone_with_adapter(
        source: &ModelSource,
        weights: Weights,
        adapter: &PeftAdapter,
    ) -> Result<Self> {
        let model = Self::from_source(source, weights, Some(Adapters::Saved(adapter)))?;
        adapter.check_copies(&model)?;
        Ok(model)
    }

    /// Builds the model of `config` with the weights of `checkpoint`, all in f32.
    ///
    /// # Errors
    /// If a weight is missing or has an unexpected shape.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_weights(config, checkpoint, Weights::F32, None)
    }

    fn from_weights(
        config: Config,
        checkpoint: &Checkpoint,
        weights: Weights,
        adapters: Option<Adapters<'_>>,
    ) -> Result<Self> {
        let lookup = Lookup::new(config, checkpoint)?;
        let load = |name: &str, shape: Shape| match lookup.find(name) {
            Some(known) => checkpoint.tensor(&known, shape).map(Some).map_err(|e| e.to_string()),
            None => Err(checkpoint.missing(name)),
        };
        let n_fallback_matrices = Cell::new(0);
        let find = |name: &str, shape: StoredShape, role: Role| {
            let known = lookup.find(name)?;
            match weights {
                Weights::AsStored => checkpoint.matrix(&known, shape),
                Weights::Exact => {
                    let matrix = checkpoint.matrix(&known, shape)?;
                    Some(matrix.with_activations(quant::Activations::F32))
                }
                Weights::In(_) if role.is_vocabulary() => {
                    // bf16 and f16 hold the stored values exactly, in half the memory of f32.
                    checkpoint.matrix(&known, shape).filter(|table| is_16_bits(table.format()))
                }
                Weights::In(format) => {
                    let fitting = format.fallback_for(shape.cols);
                    n_fallback_matrices
                        .set(n_fallback_matrices.get() + usize::from(fitting != format));
                    rounded(checkpoint, &known, shape, fitting)
                }
                Weights::F32 => None,
            }
        };
        let stored = (weights != Weights::F32).then_some(&find as &LoadStored<'_>);
        let source = Source::Load { load: &load, stored, seed: 0 };
        let config = lookup.config.clone();
        let built = Self::build_adapted(config, &source, lookup.has_head, adapters);
        let mut model = built.map_err(|e| checkpoint.explain(e))?;
        model.unused = lookup.unused();
        model.n_fallback_matrices = n_fallback_matrices.get();
        Ok(model)
    }

    pub(crate) fn build(config: Config, source: &Source<'_>) -> Result<Self> {
        Self::build_adapted(config, source, true, None)
    }

    /// Builds a model, without a head if `has_head` is false and the head is not tied.
    pub(crate) fn build_as(config: Config, source: &Source<'_>, has_head: bool) -> Result<Self> {
        Self::build_adapted(config, source, has_head, None)
    }

    fn build_adapted(
        config: Config,
        source: &Source<'_>,
        has_head: bool,
        adapters: Option<Adapters<'_>>,
    ) -> Result<Self> {
        config.validate()?;
        adapters.map_or(Ok(()), Adapters::validate)?;
        let factory = adapters.map(|adapters| AdapterFactory::new(adapters, &config));
        let mut params = ParamStore::default();
        let mut root = LayerBuilder::new(&mut params, source).with_adapters(factory.as_ref());
        if !has_head {
            root = root.without_head();
        }
        let arch: Arc<dyn Architecture> = config.build(&mut root)?.into();
        let adapters = match factory {
            Some(factory) => {
                // Only the adapter's parameters are trainable.
                params.freeze(|param| param.role() != Role::Adapter);
                factory.finish()?
            }
            None => Vec::new(),
        };
        let checkpointing = ActivationCheckpointing::None;
        let kv_prefix = None;
        Ok(Self {
            config,
            arch,
            params,
            n_fallback_matrices: 0,
            checkpointing,
            adapters,
            kv_prefix,
            warnings: Vec::new(),
            unused: Vec::new(),
        })
    }
}

fn is_16_bits(format: MatrixFormat) -> bool {
    [WeightFormat::BF16, WeightFormat::F16].map(MatrixFormat::Gguf).contains(&format)
}

/// Converts a matrix of the checkpoint to another format. Returns `None` if it has non-finite
/// values.
fn rounded(
    checkpoint: &Checkpoint,
    name: &str,
    shape: StoredShape,
    format: MatrixFormat,
) -> Option<QMatrix> {
    let StoredShape { rows, cols, transposed } = shape;
    let there = if transposed { [cols, rows] } else { [rows, cols] };
    let values = checkpoint.tensor(name, there.into()).ok()?;
    let values = values.data();
    // The caller then reads the matrix in f32, and that path reports non-finite values.
    if !values.iter().all(|v| v.is_finite()) {
        return None;
    }
    let turned: Vec<f32>;
    let values = if transposed {
        let column = |i: usize| (0..cols).map(move |j| j * rows + i);
        turned = (0..rows).flat_map(column).map(|at| values[at]).collect();
        &turned
    } else {
        values
    };
    QMatrix::from_f32(values, rows, cols, format).ok()
}

/// Names the keys of a `config.json` that the family does not read; `None` if there are none.
fn unread_keys(json: &serde_json::Value) -> Option<String> {
    let keys = Config::unread_keys(json);
    let list = keys.join(", ");
    (!keys.is_empty()).then(|| format!("keys of config.json that lehr does not read: {list}"))
}
