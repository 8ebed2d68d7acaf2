//! A model: parameters and the functions computed with them.

mod build;
mod lookup;
mod save;

pub(crate) use lookup::Lookup;

use std::sync::Arc;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{DType, Device, Init, Named, Param, ParamStore, Role, Source, Tensor, no_grad};

pub use save::ModelCopy;

use crate::adapt::{Adapted, AdapterMethod};
use crate::arch::{ActivationCheckpointing, KvPrefixParams, Layout, Pass};
use crate::io::leftover;
use crate::nn::{LayerBuilder, Linear};
use crate::{Architecture, Config, Error, KvCache, Result, Spec, Tokens};

/// A model of any family with its parameters.
pub struct Model {
    config: Config,
    arch: Arc<dyn Architecture>,
    params: ParamStore,
    n_fallback_matrices: usize,
    checkpointing: ActivationCheckpointing,
    adapters: Vec<Adapted>,
    kv_prefix: Option<Arc<[KvPrefixParams]>>,
    /// What its files say and the model does not use, as sentences.
    warnings: Vec<String>,
    /// Names of the tensors in its files that nothing uses.
    unused: Vec<String>,
}

impl Model {
    /// Returns the number of matrices that fell back to another format than
    /// [`Weights::In`](crate::Weights::In) requests, because their row length is not a multiple of
    /// the block size.
    #[must_use]
    pub fn n_fallback_matrices(&self) -> usize {
        self.n_fallback_matrices
    }

    /// Returns what the user must know about the opened files: tensors and keys that the model does
    /// not use.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.iter().cloned().chain(leftover::describe(&self.unused)).collect()
    }

    /// Adds a warning about the opened files.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Counts tensors as used that something outside the backbone reads.
    pub(crate) fn use_also(&mut self, names: &[String]) {
        self.unused.retain(|name| !names.contains(name));
    }

    /// Returns the adapters, in the order of their layers.
    #[must_use]
    pub fn adapters(&self) -> &[Adapted] {
        &self.adapters
    }

    /// Returns the method of the first adapter; `None` if there is none.
    #[must_use]
    pub fn adapter_method(&self) -> Option<AdapterMethod> {
        self.adapters.first().map(|adapted| adapted.method)
    }

    /// Adds parameters outside the backbone, such as a classification head.
    pub(crate) fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.params
    }

    /// Moves the model to `device` and computes in `dtype`: f32, or on a GPU also bf16 or f16.
    /// Trainable parameters stay in f32. Stored matrices keep their format.
    ///
    /// # Errors
    /// If memory runs out, the device fails, or it cannot compute in `dtype`.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        Ok(self.params.to_device(device, dtype)?)
    }

    /// Adds learned keys and values for `n_tokens` positions before every text, in each block: the
    /// parameters of prefix tuning (P-tuning v2). They start normal with standard deviation 0.02.
    /// The other parameters keep their values and stay trainable or frozen.
    ///
    /// # Errors
    /// If the model already has a prefix, `n_tokens` is 0, or memory runs out.
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

    /// Sets the activation-checkpointing policy used in training.
    pub fn set_activation_checkpointing(&mut self, checkpointing: ActivationCheckpointing) {
        self.checkpointing = checkpointing;
    }

    /// Selects the matrices that training multiplies in fp8, and returns their number: matrices of
    /// blocks with both sides at least `side_min` and multiples of 16. Embeddings, the loss and
    /// unrecorded passes keep the type of the activations.
    ///
    /// Call it only where [`Compute::check_fp8`](crate::Compute::check_fp8) succeeds; elsewhere it
    /// changes no product.
    pub fn use_fp8(&self, side_min: usize) -> usize {
        self.params.use_fp8(side_min)
    }

    /// Returns the device and the element type of activations.
    #[must_use]
    pub fn compute(&self) -> (Device, DType) {
        self.params.compute()
    }

    /// Allocates a cache of keys and values for `capacity` positions of `batch` sequences.
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

    /// Returns whether the model can continue a text; encoders cannot.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        self.arch.is_causal()
    }

    /// Returns whether the model has a head that gives logits of tokens.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.arch.head().is_some()
    }

    /// Checks that the model can continue a text. `doing` names the action for the error.
    ///
    /// # Errors
    /// If the model is an encoder or has no head.
    pub fn check_causal(&self, doing: &'static str) -> Result<()> {
        match self.is_causal() {
            true => self.head(doing).map(drop),
            false => Err(Error::NotCausal { doing, class: self.config.class() }),
        }
    }

    /// Returns the output projection. `doing` names the action for the error.
    fn head(&self, doing: &'static str) -> Result<&Linear> {
        self.arch.head().ok_or_else(|| Error::NoHead { doing, class: self.config.class() })
    }

    /// Returns the layer that classifiers apply to an encoder's first token, if the weights contain
    /// one.
    pub(crate) fn pooler(&self) -> Option<&Linear> {
        self.arch.pooler()
    }

    /// Computes hidden states `[B, T, D]` after the last norm.
    ///
    /// # Errors
    /// If the tokens do not fit the model or memory runs out.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        let (_, products) = self.compute();
        let pass = Pass::whole(tokens, self.checkpointing).with_products(products);
        self.arch.forward(pass.with_kv_prefix(self.kv_prefix.clone()))
    }

    /// Computes hidden states of tokens that continue those in `cache`. It records nothing.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    pub fn hidden_cached(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        let pass = Pass::continuing(tokens, cache).with_kv_prefix(self.kv_prefix.clone());
        no_grad(|| self.arch.forward(pass))
    }

    /// Returns whether texts begin with a bidirectional prefix.
    #[must_use]
    pub fn has_prefix(&self) -> bool {
        self.arch.has_prefix()
    }

    /// Returns whether tokens read the previous token outside of attention.
    pub(crate) fn reads_previous_token(&self) -> bool {
        self.arch.reads_previous_token()
    }

    /// Returns whether tokens read the keys of the previous token outside of attention.
    pub(crate) fn reads_previous_keys(&self) -> bool {
        self.arch.reads_previous_keys()
    }

    /// Lays out one text: computes the positions of its tokens and the length of its bidirectional
    /// prefix.
    ///
    /// # Errors
    /// If a text for GLM-130B or ChatGLM-6B lacks the tokens that mark its parts.
    pub fn layout(&self, ids: &[i32]) -> Result<Layout> {
        self.arch.layout(ids)
    }

    /// Returns [`Model::layout`] as an independent function, for loaders.
    pub fn layout_rule(&self) -> impl Fn(&[i32]) -> Result<Layout> + Send + Sync + use<> {
        let arch = Arc::clone(&self.arch);
        move |ids| arch.layout(ids)
    }

    /// Lays out `batch` whole texts of one length, in one slice.
    ///
    /// # Errors
    /// As [`Model::layout`], or if the number of ids is not a multiple of `batch`.
    pub fn tokens(&self, ids: &[i32], batch: usize) -> Result<Tokens> {
        let texts = ids.chunks((ids.len() / batch.max(1)).max(1));
        let layouts = texts.map(|text| self.layout(text)).collect::<Result<Vec<_>>>()?;
        Tokens::of_texts(ids, &layouts.iter().collect::<Vec<_>>(), 0)
    }

    /// Computes logits `[.., V]` of hidden states `[.., D]`.
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

    /// Computes the language-model loss `[1]`: the cross-entropy of `targets` (i32 `[B, T]`, −100 =
    /// not supervised), summed and divided by `normalizer`. A target stands at the position that
    /// predicts it. For a decoder that is one position before the token; for an encoder it is the
    /// token's own, masked position.
    ///
    /// # Errors
    /// If the model has no head, a target is outside the vocabulary or memory runs out.
    pub fn loss(&self, tokens: &Tokens, targets: &Tensor, normalizer: f32) -> Result<Tensor> {
        let head = self.head("computing the loss")?;
        let hidden = self.arch.head_input(&self.hidden(tokens)?)?;
        let softcap = self.arch.logit_softcap();
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap };
        Ok(head.cross_entropy(&hidden, targets, options)?)
    }

    /// Computes the log-probability (natural logarithm) of each of `targets` (i32 `[B, T]`, −100 =
    /// none, gives 0) as f32 `[B, T]`. Targets stand as in [`Model::loss`].
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn token_logprobs(&self, tokens: &Tokens, targets: &Tensor) -> Result<Tensor> {
        let head = self.head("computing log-probabilities")?;
        let hidden = self.arch.head_input(&self.hidden(tokens)?)?;
        Ok(head.token_logprobs(&hidden, targets, self.arch.logit_softcap())?)
    }

    /// Computes logits `[B, V]` after the last of the tokens, and advances the cache.
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

    /// Returns the bytes of weights read per generated token: all weights, but only one row of
    /// tables that are looked up, such as a token embedding that is not tied to the head.
    #[must_use]
    pub fn decode_bytes(&self) -> usize {
        let tables: usize = Role::ALL
            .into_iter()
            .filter(|role| role.is_lookup())
            .map(|role| self.bytes_read(role))
            .sum();
        let looked_up = tables
            + match self.arch.head() {
                Some(head) if !head.is_tied() => self.bytes_read(Role::TokenEmbedding),
                _ => 0,
            };
        self.params.read_bytes() - looked_up
    }

    fn bytes_read(&self, role: Role) -> usize {
        let named = self.params.named();
        named.iter().filter(|weight| weight.role() == role).map(Named::read_bytes).sum()
    }

    /// Returns the floating-point operations of one training step (forward and backward) over
    /// `batch` rows of `t` tokens. Matrix products take `6 N` per token for `N` weights, the head
    /// counted once. Causal attention takes `6 L B T² H E`, bidirectional attention twice that.
    #[must_use]
    pub fn flops_per_step(&self, batch: usize, t: usize) -> f64 {
        let spec = self.spec();
        let tied = self.arch.head().is_some_and(Linear::is_tied);
        // An untied embedding is a lookup, not a product.
        let is_multiplied = |role: Role| match role {
            Role::TokenEmbedding => tied,
            role => {
                role.is_hidden_matrix() || matches!(role, Role::Head | Role::Adapter | Role::Gate)
            }
        };
        let is_matrix = |param: &&Param| param.shape().len() == 2 && is_multiplied(param.role());
        let params = self.params.params().iter().filter(is_matrix);
        let n: usize = params.map(|param| param.shape().n_elements()).sum();
        let (b, t) = (batch as f64, t as f64);
        let heads = (spec.n_heads * spec.head_dim) as f64;
        let sides = if self.is_causal() { 1.0 } else { 2.0 };
        6.0 * n as f64 * b * t + 6.0 * sides * spec.n_layers as f64 * b * t * t * heads
    }
}
