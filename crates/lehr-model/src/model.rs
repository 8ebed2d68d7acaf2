//! A model with its parameters: built new, loaded from a folder, saved to one.

use std::path::Path;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{ParamBuilder, ParamStore, Shape, Source, Tensor, no_grad};

use crate::io::{self, Checkpoint};
use crate::{CausalLm, Config, Error, KvCache, Result, Spec, Tokens};

/// A decoder of any family with its parameters.
pub struct Model {
    config: Config,
    arch: Box<dyn CausalLm>,
    params: ParamStore,
}

impl Model {
    /// A new model with random weights; one seed, one model.
    ///
    /// # Errors
    /// If the configuration is impossible or memory runs out.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        Self::build(config, &Source::Init { seed }).map(|(model, _)| model)
    }

    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` (or its sharded index).
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(dir: &Path) -> Result<Self> {
        let config = Config::from_json(&io::read_json(&dir.join("config.json"))?)?;
        let checkpoint = Checkpoint::open(dir)?;
        Self::from_checkpoint(config, &checkpoint)
    }

    /// Builds the model of `config` with the weights of `checkpoint`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn from_checkpoint(config: Config, checkpoint: &Checkpoint) -> Result<Self> {
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
        let built = Self::build(config, &Source::Load { load: &load, seed: 0 });
        built.map(|(model, _)| model).map_err(|e| checkpoint.explain(e))
    }

    pub(crate) fn build(config: Config, source: &Source<'_>) -> Result<(Self, Spec)> {
        config.validate()?;
        let mut params = ParamStore::default();
        let arch = config.build(&mut ParamBuilder::new(&mut params, source))?;
        let spec = arch.spec();
        Ok((Self { config, arch, params }, spec))
    }

    /// Adds parameters that are not the backbone's: heads.
    pub(crate) fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.params
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

    /// Hidden states `[B, T, D]` after the last norm.
    ///
    /// # Errors
    /// If the tokens do not fit the model or memory runs out.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        self.arch.hidden(tokens, None)
    }

    /// Hidden states of tokens that continue those in `cache`.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    pub fn hidden_cached(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        self.arch.hidden(tokens, Some(cache))
    }

    /// Logits `[.., V]` of hidden states `[.., D]`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.arch.head().forward(hidden)?)
    }

    /// The language model's loss `[1]`: the cross-entropy of `targets` (i32 `[B, T]`, −100 = no
    /// label) summed and divided by `normalizer`.
    ///
    /// # Errors
    /// If a target is outside of the vocabulary or memory runs out.
    pub fn loss(&self, tokens: &Tokens, targets: &Tensor, normalizer: f32) -> Result<Tensor> {
        let hidden = self.hidden(tokens)?;
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap: None };
        Ok(hidden.linear_cross_entropy(&self.arch.head().weight(), targets, options)?)
    }

    /// Logits `[B, V]` of the token after the last one, with the cache advanced.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    pub fn next_logits(&self, tokens: &Tokens, cache: &mut KvCache) -> Result<Tensor> {
        let (b, t) = (tokens.batch(), tokens.len());
        if tokens.is_empty() {
            return Err(Error::config("tokens", 0, "at least one token to continue from"));
        }
        let hidden = self.hidden_cached(tokens, cache)?;
        no_grad(|| {
            let d = self.spec().hidden_size;
            let last: Vec<i32> = (0..b).map(|i| (i * t + t - 1) as i32).collect();
            let rows = hidden.reshape([b * t, d])?.gather_rows(&Tensor::from_ids(&last, [b])?)?;
            self.logits(&rows)
        })
    }

    /// Writes `config.json` and `model.safetensors` (f32) into `dir`, which `transformers` loads.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        io::write_json(&dir.join("config.json"), &self.config.to_json())?;
        let file = io::TensorFile::of_params(&self.params);
        io::write_parts(&dir.join("model.safetensors"), file.parts())
    }

    /// Floating-point operations of one training step (forward and backward) over `batch` rows of
    /// `t` tokens: `6 N` per token for the `N` weights of matrix products (the head counted once)
    /// plus causal attention, `6 L B T² H E`.
    #[must_use]
    pub fn flops_per_step(&self, batch: usize, t: usize) -> f64 {
        let spec = self.spec();
        let is_matrix =
            |p: &&lehr_tensor::Param| p.shape().len() == 2 && !p.name().ends_with("wpe.weight");
        let mut n: usize =
            self.params.params().iter().filter(is_matrix).map(|p| p.shape().n_elements()).sum();
        if self.params.get("lm_head.weight").is_some() {
            // An untied embedding is looked up, not multiplied.
            n -= spec.vocab_size * spec.hidden_size;
        }
        let (b, t) = (batch as f64, t as f64);
        let heads = (spec.n_heads * spec.head_dim) as f64;
        6.0 * n as f64 * b * t + 6.0 * spec.n_layers as f64 * b * t * t * heads
    }
}
