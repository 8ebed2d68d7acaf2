//! A model with its parameters: built new, loaded from a folder, saved to one.

use std::cell::Cell;
use std::path::Path;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::quant::{self, MatrixFormat, QMatrix, WeightFormat};
use lehr_tensor::{
    DType, Device, LoadStored, Param, ParamBuilder, ParamStore, Philox, Shape, Source, StoredShape,
    Tensor, no_grad,
};

use crate::arch::{ActivationCheckpointing, Layout, Pass};
use crate::io::{self, Checkpoint, FloatFormat, ModelSource, Shards};
use crate::{Architecture, Config, Error, KvCache, Result, Spec, Tokens, Weights};

/// A model of any family with its parameters.
pub struct Model {
    config: Config,
    arch: Box<dyn Architecture>,
    params: ParamStore,
    n_elsewise: usize,
    checkpointing: ActivationCheckpointing,
}

impl Model {
    /// A new model with random weights; one seed, one model.
    ///
    /// # Errors
    /// If the configuration is impossible or memory runs out.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        Self::build(config, &Source::Init { seed }).map(|(model, _)| model)
    }

    /// A model with random weights to be used, not trained, its matrices kept as `weights` says:
    /// for measuring.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn random(config: Config, weights: Weights, seed: u64) -> Result<Self> {
        let Weights::In(format) = weights else { return Self::new(config, seed) };
        let load = |_: &str, _: Shape| Ok(None);
        // All rows have the same numbers: what they are changes no speed.
        let find = |name: &str, shape: StoredShape| {
            if is_table(name) {
                return None;
            }
            let mut row = vec![0.0; shape.cols];
            Philox::new(seed, 0).fill_normal(&mut row, 0.02);
            QMatrix::from_f32(&row.repeat(shape.rows), shape.rows, shape.cols, format).ok()
        };
        let source = Source::Load { load: &load, stored: Some(&find), seed };
        Self::build(config, &source).map(|(model, _)| model)
    }

    /// Loads a Hugging Face folder, `config.json` and `model.safetensors` (or its sharded index); a
    /// folder with `config.json` and the parts of a tensor-parallel checkpoint; or a GGUF file.
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(path: &Path) -> Result<Self> {
        if let Some(shards) = Shards::open(path)? {
            let config = Config::from_json(&io::read_json(&path.join("config.json"))?)?;
            return Self::from_shards(config, &shards);
        }
        Self::load_source(&ModelSource::open(path)?)
    }

    /// [`Model::load`] of files that are open.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_source(source: &ModelSource) -> Result<Self> {
        Self::from_checkpoint(Config::from_json(source.config())?, source.checkpoint())
    }

    fn from_shards(config: Config, shards: &Shards) -> Result<Self> {
        let names = config.clone();
        let load = |name: &str, shape: Shape| {
            let merged = shards.tensor(name, shape, names.shard_rule(name));
            merged.map(Some).map_err(|e| e.to_string())
        };
        let built = Self::build(config, &Source::Load { load: &load, stored: None, seed: 0 });
        built.map(|(model, _)| model).map_err(|e| shards.explain(e))
    }

    /// Loads a model to be used, not trained, from the same places as [`Model::load`], its matrices
    /// kept as `weights` says. Parts of a tensor-parallel checkpoint are merged in f32.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open(path: &Path, weights: Weights) -> Result<Self> {
        if Shards::open(path)?.is_some() {
            return Self::load(path);
        }
        Self::open_source(&ModelSource::open(path)?, weights)
    }

    /// [`Model::open`] of files that are open.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open_source(source: &ModelSource, weights: Weights) -> Result<Self> {
        let (config, checkpoint) = (Config::from_json(source.config())?, source.checkpoint());
        Self::from_weights(config, checkpoint, weights)
    }

    /// Builds the model of `config` with the weights of `checkpoint`, all in f32.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_weights(config, checkpoint, Weights::F32)
    }

    fn from_weights(mut config: Config, checkpoint: &Checkpoint, weights: Weights) -> Result<Self> {
        config.fit_to(&|name| checkpoint.has(name));
        let names = config.clone();
        let load = |name: &str, shape: Shape| {
            let known = names.checkpoint_names(name).into_iter().find(|n| checkpoint.has(n));
            match known {
                Some(known) => {
                    checkpoint.tensor(&known, shape).map(Some).map_err(|e| e.to_string())
                }
                None => Err(checkpoint.missing(name)),
            }
        };
        let n_elsewise = Cell::new(0);
        let find = |name: &str, shape: StoredShape| {
            let known = names.checkpoint_names(name).into_iter().find(|n| checkpoint.has(n))?;
            match weights {
                Weights::AsStored => checkpoint.matrix(&known, shape),
                Weights::Exact => {
                    let matrix = checkpoint.matrix(&known, shape)?;
                    Some(matrix.with_activations(quant::Activations::F32))
                }
                Weights::In(_) if is_table(name) => {
                    // The same numbers as in f32, in half the memory.
                    checkpoint.matrix(&known, shape).filter(|table| is_16_bits(table.format()))
                }
                Weights::In(format) => {
                    let fitting = format.that_fits(shape.cols);
                    n_elsewise.set(n_elsewise.get() + usize::from(fitting != format));
                    rounded(checkpoint, &known, shape, fitting)
                }
                Weights::F32 => None,
            }
        };
        let stored = (weights != Weights::F32).then_some(&find as &LoadStored<'_>);
        let source = Source::Load { load: &load, stored, seed: 0 };
        let (mut model, _) = Self::build(config, &source).map_err(|e| checkpoint.explain(e))?;
        model.n_elsewise = n_elsewise.get();
        Ok(model)
    }

    /// Matrices that [`Weights::In`] has in another format than it says, because their rows are not
    /// whole blocks of that one.
    #[must_use]
    pub fn n_elsewise(&self) -> usize {
        self.n_elsewise
    }

    pub(crate) fn build(config: Config, source: &Source<'_>) -> Result<(Self, Spec)> {
        config.validate()?;
        let mut params = ParamStore::default();
        let arch = config.build(&mut ParamBuilder::new(&mut params, source))?;
        let spec = arch.spec();
        Ok((
            Self {
                config,
                arch,
                params,
                n_elsewise: 0,
                checkpointing: ActivationCheckpointing::None,
            },
            spec,
        ))
    }

    /// Adds parameters that are not the backbone's: heads.
    pub(crate) fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.params
    }

    /// Moves it to `device`, where it computes in `dtype`: f32, or on a GPU also bf16 or f16, with
    /// parameters kept in f32 beside. Matrices that are used as they are stored stay in their form.
    ///
    /// # Errors
    /// If memory runs out, the device fails, or it cannot compute in `dtype`.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        Ok(self.params.to_device(device, dtype)?)
    }

    /// Sets what recorded forward passes keep for backward.
    pub fn set_activation_checkpointing(&mut self, checkpointing: ActivationCheckpointing) {
        self.checkpointing = checkpointing;
    }

    /// From now on training multiplies in fp8 the matrices of blocks whose both sides are at least
    /// `side_min` and multiples of 16; how many there are. Embeddings, the loss and whatever is not
    /// recorded for backward stay in the type of the activations.
    ///
    /// It changes nothing where [`Compute::check_fp8`](crate::Compute::check_fp8) is an error.
    pub fn use_fp8(&self, side_min: usize) -> usize {
        let is_position = |name: &str| POSITIONS.iter().any(|end| name.ends_with(end));
        self.params.use_fp8(side_min, |name| !is_table(name) && !is_position(name))
    }

    /// Where it lives and what it computes in.
    #[must_use]
    pub fn compute(&self) -> (Device, DType) {
        self.params.compute()
    }

    /// A cache of keys and values of `capacity` positions of `batch` sequences.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        Ok(KvCache::new(&self.spec(), self.compute(), batch, capacity)?)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its sizes.
    #[must_use]
    pub fn spec(&self) -> Spec {
        self.arch.spec()
    }

    /// Its parameters, in order.
    #[must_use]
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// Whether the model can continue a text; encoders cannot.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        self.arch.is_causal()
    }

    /// An error if the model cannot continue a text.
    ///
    /// # Errors
    /// If it is an encoder; `doing` is what it was wanted for.
    pub fn check_causal(&self, doing: &'static str) -> Result<()> {
        match self.is_causal() {
            true => Ok(()),
            false => Err(Error::NotCausal { doing, class: self.config.class() }),
        }
    }

    fn check_head(&self, doing: &'static str) -> Result<()> {
        match self.arch.has_head() {
            true => Ok(()),
            false => Err(Error::NoHead { doing, class: self.config.class() }),
        }
    }

    /// Hidden states `[B, T, D]` after the last norm.
    ///
    /// # Errors
    /// If the tokens do not fit the model or memory runs out.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        self.arch.forward(Pass::whole(tokens, self.checkpointing))
    }

    /// Hidden states of tokens that continue those in `cache`; nothing is recorded.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    pub fn hidden_cached(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        no_grad(|| self.arch.forward(Pass::continuing(tokens, cache)))
    }

    /// Lays out one text: the positions of its tokens, and how many of the first see one another in
    /// both directions.
    ///
    /// # Errors
    /// If the text lacks the tokens that say so, for GLM-130B and ChatGLM-6B.
    pub fn layout(&self, ids: &[i32]) -> Result<Layout> {
        self.arch.layout(ids)
    }

    /// Lays out `batch` whole texts of one length, in one slice.
    ///
    /// # Errors
    /// As [`Model::layout`], or if the number of ids is no multiple of `batch`.
    pub fn tokens(&self, ids: &[i32], batch: usize) -> Result<Tokens> {
        let texts = ids.chunks((ids.len() / batch.max(1)).max(1));
        let layouts = texts.map(|text| self.layout(text)).collect::<Result<Vec<_>>>()?;
        Tokens::of_texts(ids, &layouts.iter().collect::<Vec<_>>(), 0)
    }

    /// Logits `[.., V]` of hidden states `[.., D]`.
    ///
    /// # Errors
    /// If the model has no head or memory runs out.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.check_head("computing logits")?;
        let logits = self.arch.head().forward(&self.arch.head_input(hidden)?)?;
        Ok(match self.arch.logit_softcap() {
            Some(cap) => logits.softcap(cap)?,
            None => logits,
        })
    }

    /// The language model's loss `[1]`: the cross-entropy of `targets` (i32 `[B, T]`, −100 = no
    /// label) summed and divided by `normalizer`. Targets stand where they are predicted: for a
    /// decoder one place before the token, for an encoder at the token's own place, which is
    /// masked.
    ///
    /// # Errors
    /// If the model has no head, a target is outside of the vocabulary or memory runs out.
    pub fn loss(&self, tokens: &Tokens, targets: &Tensor, normalizer: f32) -> Result<Tensor> {
        self.check_head("computing the loss")?;
        let hidden = self.hidden(tokens)?;
        let softcap = self.arch.logit_softcap();
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap };
        let hidden = self.arch.head_input(&hidden)?;
        let head = self.arch.head();
        let Some(weight) = head.weight().param().map(Param::tensor) else {
            return Err(Error::Stored { doing: "computing the loss" });
        };
        let bias = head.bias();
        Ok(hidden.linear_cross_entropy(&weight, bias.as_ref(), targets, options)?)
    }

    /// Logits `[B, V]` of the token after the last one, with the cache advanced.
    ///
    /// # Errors
    /// If the model is an encoder, the tokens do not fit the cache or memory runs out.
    pub fn next_logits(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        self.check_causal("predicting the next token")?;
        let (b, t) = (tokens.batch(), tokens.len());
        if tokens.is_empty() {
            return Err(Error::config("tokens", 0, "at least one token to continue from"));
        }
        let hidden = self.hidden_cached(tokens, cache)?;
        no_grad(|| {
            let d = self.spec().hidden_size;
            if t == 1 {
                return self.logits(&hidden.reshape([b, d])?);
            }
            let last: Vec<i32> = (0..b).map(|i| (i * t + t - 1) as i32).collect();
            let rows = hidden.reshape([b * t, d])?.gather_rows(&Tensor::from_ids(&last, [b])?)?;
            self.logits(&rows)
        })
    }

    /// Bytes of weights that one generated token reads: all, but of a table of tokens that is not
    /// also the head only a row.
    #[must_use]
    pub fn decode_bytes(&self) -> usize {
        let bytes = |ends: &[&str]| -> usize {
            let is_named = |name: &str| ends.iter().any(|end| name.ends_with(end));
            let params = self.params.params().iter().filter(|p| is_named(p.name()));
            let stored = self.params.stored().iter().filter(|(name, _)| is_named(name));
            params.map(Param::read_bytes).sum::<usize>()
                + stored.map(|(_, w)| w.n_bytes()).sum::<usize>()
        };
        let has_own_head = bytes(&HEADS) > 0;
        self.params.read_bytes() - if has_own_head { bytes(&TABLES) } else { 0 }
    }

    /// Writes `config.json` and the weights in f32 into `dir`, which `transformers` loads.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, FloatFormat::F32)
    }

    /// [`Model::save`] in any float format: `model.safetensors`, or numbered files with an index if
    /// the weights take more than 5 GB. One weight at a time is in memory in f32.
    ///
    /// # Errors
    /// If a number does not fit the format or a file cannot be written.
    pub fn save_as(&self, dir: &Path, format: FloatFormat) -> Result<()> {
        io::write_folder(dir, self, self.config.to_json(), format)
    }

    /// Floating-point operations of one training step (forward and backward) over `batch` rows of
    /// `t` tokens: `6 N` per token for the `N` weights of matrix products (the head counted once)
    /// plus causal attention, `6 L B T² H E`, twice that where tokens see both sides.
    #[must_use]
    pub fn flops_per_step(&self, batch: usize, t: usize) -> f64 {
        let spec = self.spec();
        let mut looked_up = POSITIONS.to_vec();
        if !self.arch.has_head() {
            looked_up.push("word_embeddings.weight");
        }
        let is_matrix = |p: &&lehr_tensor::Param| {
            p.shape().len() == 2 && !looked_up.iter().any(|end| p.name().ends_with(end))
        };
        let mut n: usize =
            self.params.params().iter().filter(is_matrix).map(|p| p.shape().n_elements()).sum();
        if HEADS.iter().any(|name| self.params.get(name).is_some()) {
            // An untied embedding is looked up, not multiplied.
            n -= spec.vocab_size * spec.hidden_size;
        }
        let (b, t) = (batch as f64, t as f64);
        let heads = (spec.n_heads * spec.head_dim) as f64;
        let sides = if self.is_causal() { 1.0 } else { 2.0 };
        6.0 * n as f64 * b * t + 6.0 * sides * spec.n_layers as f64 * b * t * t * heads
    }
}

/// Matrices with a row for each token: heads and embeddings.
const HEADS: [&str; 2] = ["lm_head.weight", "transformer.output_layer.weight"];
const TABLES: [&str; 3] = ["embed_tokens.weight", "wte.weight", "word_embeddings.weight"];

/// Tables that are looked up by other numbers than ids of tokens.
const POSITIONS: [&str; 3] =
    ["wpe.weight", "position_embeddings.weight", "token_type_embeddings.weight"];

fn is_table(name: &str) -> bool {
    HEADS.iter().chain(&TABLES).any(|end| name.ends_with(end))
}

fn is_16_bits(format: MatrixFormat) -> bool {
    [WeightFormat::BF16, WeightFormat::F16].map(MatrixFormat::Gguf).contains(&format)
}

/// A matrix of the checkpoint in another format; `None` if it has numbers that are not finite.
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
    // What is not finite is for the one to report that reads the matrix in f32.
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
