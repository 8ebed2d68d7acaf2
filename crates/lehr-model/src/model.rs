//! A model with its parameters: built new, loaded from a folder, saved to one.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::quant::{self, MatrixFormat, QMatrix, WeightFormat};
use lehr_tensor::{
    DType, Device, Init, LoadStored, Named, ParamStore, Philox, Role, Shape, Source, StoredShape,
    Tensor, no_grad,
};

use crate::adapt::{Adapted, AdapterConfig, AdapterFactory};
use crate::arch::{ActivationCheckpointing, KvPrefixParams, Layout, Pass};
use crate::io::gguf::{GgufOptions, GgufSummary};
use crate::io::{self, Checkpoint, FloatFormat, ModelSource, Shards};
use crate::nn::{LayerBuilder, Linear};
use crate::{Architecture, Config, Error, KvCache, Result, Spec, Tokens, Weights};

/// A model of any family with its parameters.
pub struct Model {
    config: Config,
    arch: Arc<dyn Architecture>,
    params: ParamStore,
    n_elsewise: usize,
    checkpointing: ActivationCheckpointing,
    adapters: Vec<Adapted>,
    kv_prefix: Option<Arc<[KvPrefixParams]>>,
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
        let find = |_: &str, shape: StoredShape, role: Role| {
            if role.is_vocabulary() {
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
        Self::from_weights(config, checkpoint, weights, None)
    }

    /// A new model with random weights and new adapters, of which only the adapters are trained.
    ///
    /// # Errors
    /// As [`Model::new`], and if a target of `adapters` matches no layer or their settings are
    /// impossible.
    pub fn new_adapted(config: Config, adapters: &AdapterConfig, seed: u64) -> Result<Self> {
        let built = Self::build_adapted(config, &Source::Init { seed }, Some(adapters));
        built.map(|(model, _)| model)
    }

    /// [`Model::open_source`] with new adapters beside the weights, which are frozen: only the
    /// adapters are trained. Stored (quantised) weights stay as they are.
    ///
    /// # Errors
    /// As [`Model::load`], and if a target of `adapters` matches no layer or their settings are
    /// impossible.
    pub fn open_adapted(
        source: &ModelSource,
        weights: Weights,
        adapters: &AdapterConfig,
    ) -> Result<Self> {
        let (config, checkpoint) = (Config::from_json(source.config())?, source.checkpoint());
        Self::from_weights(config, checkpoint, weights, Some(adapters))
    }

    /// Builds the model of `config` with the weights of `checkpoint`, all in f32.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_weights(config, checkpoint, Weights::F32, None)
    }

    fn from_weights(
        mut config: Config,
        checkpoint: &Checkpoint,
        weights: Weights,
        adapters: Option<&AdapterConfig>,
    ) -> Result<Self> {
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
        let find = |name: &str, shape: StoredShape, role: Role| {
            let known = names.checkpoint_names(name).into_iter().find(|n| checkpoint.has(n))?;
            match weights {
                Weights::AsStored => checkpoint.matrix(&known, shape),
                Weights::Exact => {
                    let matrix = checkpoint.matrix(&known, shape)?;
                    Some(matrix.with_activations(quant::Activations::F32))
                }
                Weights::In(_) if role.is_vocabulary() => {
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
        let built = Self::build_adapted(config, &source, adapters);
        let (mut model, _) = built.map_err(|e| checkpoint.explain(e))?;
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
        Self::build_adapted(config, source, None)
    }

    fn build_adapted(
        config: Config,
        source: &Source<'_>,
        adapters: Option<&AdapterConfig>,
    ) -> Result<(Self, Spec)> {
        config.validate()?;
        adapters.map_or(Ok(()), AdapterConfig::validate)?;
        let factory = adapters.map(AdapterFactory::new);
        let mut params = ParamStore::default();
        let mut root = LayerBuilder::new(&mut params, source).with_adapters(factory.as_ref());
        let arch: Arc<dyn Architecture> = config.build(&mut root)?.into();
        let adapters = match factory.map(AdapterFactory::finish) {
            Some(built) => {
                // Only what an adapter adds is trained.
                params.freeze(|param| param.role() != Role::Adapter);
                built.map_err(|unused| {
                    Error::adapter(
                        "adapting the model",
                        format!("no linear layer matches `{unused}`"),
                        "`*` stands for any characters; the paths are the names of the weights \
                         without `.weight`",
                    )
                })?
            }
            None => Vec::new(),
        };
        let (spec, checkpointing) = (arch.spec(), ActivationCheckpointing::None);
        Ok((
            Self { config, arch, params, n_elsewise: 0, checkpointing, adapters, kv_prefix: None },
            spec,
        ))
    }

    /// The adapters, in the order of their layers.
    #[must_use]
    pub fn adapters(&self) -> &[Adapted] {
        &self.adapters
    }

    /// A model on the CPU without adapters that computes the same: each adapter is merged into its
    /// layer's matrix, which is then in f32. Other weights stay as they are, stored ones included.
    ///
    /// # Errors
    /// If an adapter belongs to a head that is tied to the embedding, which would change with it,
    /// or memory runs out.
    pub fn merged(&self) -> Result<Self> {
        let weights = self.params.named();
        let by_name: HashMap<&str, &Named<'_>> =
            weights.iter().map(|weight| (weight.name(), weight)).collect();
        let mut adapters = HashMap::new();
        for adapted in &self.adapters {
            let path = &adapted.path;
            let name = format!("{path}.weight");
            if !by_name.contains_key(&*name) {
                let found =
                    format!("`{path}` is tied to the embedding, which would change with it");
                let hint = "adapt other layers, or use the model with its adapters unmerged";
                return Err(Error::adapter("merging adapters", found, hint));
            }
            adapters.insert(name, adapted);
        }
        let load = |name: &str, _: Shape| {
            let weight = by_name.get(name).ok_or_else(|| "the model lacks it".to_owned())?;
            let merged = || match adapters.get(name) {
                Some(adapted) => adapted.merge(&weight.to_host()?),
                None => weight.to_host(),
            };
            merged().and_then(|value| value.duplicate()).map(Some).map_err(|e| e.to_string())
        };
        let stored = |name: &str, _: StoredShape, _: Role| {
            let kept = by_name.get(name).filter(|_| !adapters.contains_key(name));
            kept.and_then(|weight| weight.stored()).cloned()
        };
        let source = Source::Load { load: &load, stored: Some(&stored), seed: 0 };
        Self::build(self.config.clone(), &source).map(|(model, _)| model)
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

    /// Adds learned keys and values of `n_tokens` positions before every text, in each block: the
    /// parameters of prefix tuning (P-tuning v2), normal with standard deviation 0.02 at first. The
    /// model's other parameters stay as they are, trainable or not.
    ///
    /// # Errors
    /// If there is such a prefix already, `n_tokens` is 0, or memory runs out.
    pub fn add_kv_prefix(&mut self, n_tokens: usize, seed: u64) -> Result<()> {
        if n_tokens == 0 || self.kv_prefix.is_some() {
            let found = format!("{n_tokens} tokens, beside {} there are", self.kv_prefix_len());
            return Err(Error::config("learned prefix", found, "one prefix of at least 1 token"));
        }
        let (spec, (device, dtype)) = (self.spec(), self.compute());
        let shape = [n_tokens, spec.n_kv_heads, spec.head_dim];
        let source = Source::Init { seed };
        let mut root = LayerBuilder::new(&mut self.params, &source);
        let mut p = root.at("kv_prefix");
        let mut layers = Vec::new();
        for layer in 0..spec.n_layers {
            let mut p = p.at(layer);
            let mut param = |name| p.param(name, Role::Adapter, shape, Init::Normal(0.02));
            layers.push(KvPrefixParams { k: param("key")?, v: param("value")? });
        }
        self.kv_prefix = Some(layers.into());
        self.to_device(device, dtype)
    }

    /// Returns the number of learned positions before every text, 0 if there are none.
    #[must_use]
    pub fn kv_prefix_len(&self) -> usize {
        let first = self.kv_prefix.as_ref().and_then(|layers| layers.first());
        first.map_or(0, |layer| layer.k.shape()[0])
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
        self.params.use_fp8(side_min)
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

    /// The head, or an error if there is none; `doing` is what it was wanted for.
    fn head(&self, doing: &'static str) -> Result<&Linear> {
        self.arch.head().ok_or_else(|| Error::NoHead { doing, class: self.config.class() })
    }

    /// The layer that classifiers apply to an encoder's first token, if its weights hold one.
    pub(crate) fn pooler(&self) -> Option<&Linear> {
        self.arch.pooler()
    }

    /// Hidden states `[B, T, D]` after the last norm.
    ///
    /// # Errors
    /// If the tokens do not fit the model or memory runs out.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        let pass = Pass::whole(tokens, self.checkpointing);
        self.arch.forward(pass.with_kv_prefix(self.kv_prefix.clone()))
    }

    /// Hidden states of tokens that continue those in `cache`; nothing is recorded.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    pub fn hidden_cached(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        let pass = Pass::continuing(tokens, cache).with_kv_prefix(self.kv_prefix.clone());
        no_grad(|| self.arch.forward(pass))
    }

    /// Whether texts begin with a prefix whose tokens see one another in both directions.
    #[must_use]
    pub fn has_prefix(&self) -> bool {
        self.arch.has_prefix()
    }

    /// Lays out one text: the positions of its tokens, and how many of the first see one another in
    /// both directions.
    ///
    /// # Errors
    /// If the text lacks the tokens that say so, for GLM-130B and ChatGLM-6B.
    pub fn layout(&self, ids: &[i32]) -> Result<Layout> {
        self.arch.layout(ids)
    }

    /// [`Model::layout`] as a function of its own, for loaders.
    #[must_use]
    pub fn layout_rule(&self) -> impl Fn(&[i32]) -> Result<Layout> + Send + Sync + use<> {
        let arch = Arc::clone(&self.arch);
        move |ids| arch.layout(ids)
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
        let head = self.head("computing logits")?;
        let logits = head.forward(&self.arch.head_input(hidden)?)?;
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
        let head = self.head("computing the loss")?;
        let hidden = self.arch.head_input(&self.hidden(tokens)?)?;
        let softcap = self.arch.logit_softcap();
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap };
        Ok(head.cross_entropy(&hidden, targets, options)?)
    }

    /// The natural logarithm of the probability of each of `targets` (i32 `[B, T]`, −100 = none,
    /// which gives 0), f32 `[B, T]`. Targets stand where they are predicted, as in
    /// [`Model::loss`].
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn token_logprobs(&self, tokens: &Tokens, targets: &Tensor) -> Result<Tensor> {
        let head = self.head("computing log-probabilities")?;
        let hidden = self.arch.head_input(&self.hidden(tokens)?)?;
        Ok(head.token_logprobs(&hidden, targets, self.arch.logit_softcap())?)
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
        let looked_up = match self.arch.head() {
            Some(head) if !head.is_tied() => self.bytes_read(Role::TokenEmbedding),
            _ => 0,
        };
        self.params.read_bytes() - looked_up
    }

    fn bytes_read(&self, role: Role) -> usize {
        let named = self.params.named();
        named.iter().filter(|weight| weight.role() == role).map(Named::read_bytes).sum()
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
        self.check_plain("writing the model")?;
        io::write_folder(dir, &self.params, self.config.to_json(), format)
    }

    /// Writes a GGUF file that llama.cpp loads, piece by piece, beside its place first.
    ///
    /// # Errors
    /// If GGUF has no place for the family or one of its settings, a number does not fit the
    /// format, or the file cannot be written.
    pub fn save_gguf(&self, path: &Path, options: &GgufOptions<'_>) -> Result<GgufSummary> {
        self.check_plain("writing the model")?;
        let (config, spec) = (self.config.to_json(), self.spec());
        io::gguf::write_gguf(path, (&config, &spec), &self.params, options)
    }

    /// An error if there are adapters: files of whole models have no place for them.
    pub(crate) fn check_plain(&self, doing: &'static str) -> Result<()> {
        match self.adapters.len() {
            0 => Ok(()),
            n => Err(Error::adapter(
                doing,
                format!("{n} of its layers have adapters, which the file has no place for"),
                "merge them first",
            )),
        }
    }

    /// Floating-point operations of one training step (forward and backward) over `batch` rows of
    /// `t` tokens: `6 N` per token for the `N` weights of matrix products (the head counted once)
    /// plus causal attention, `6 L B T² H E`, twice that where tokens see both sides.
    #[must_use]
    pub fn flops_per_step(&self, batch: usize, t: usize) -> f64 {
        let spec = self.spec();
        let tied = self.arch.head().is_some_and(Linear::is_tied);
        // An embedding that is not the head too is looked up, not multiplied.
        let is_multiplied = |role: Role| match role {
            Role::TokenEmbedding => tied,
            role => role.is_hidden_matrix() || matches!(role, Role::Head | Role::Adapter),
        };
        let params = self.params.params().iter().filter(|param| is_multiplied(param.role()));
        let n: usize = params.map(|param| param.shape().n_elements()).sum();
        let (b, t) = (batch as f64, t as f64);
        let heads = (spec.n_heads * spec.head_dim) as f64;
        let sides = if self.is_causal() { 1.0 } else { 2.0 };
        6.0 * n as f64 * b * t + 6.0 * sides * spec.n_layers as f64 * b * t * t * heads
    }
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
