//! Token by token generation with a preallocated KV cache.

use std::ops::ControlFlow;

use lehr_model::{DecodeGraph, KvCache, Layout, Model, Tokens};
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tensor::{Device, Tensor};
use lehr_tokenizer::Tokenizer;

use crate::continuation::{Continuation, Finish, Generated, Limits, TokenLogprob};
use crate::{Error, Result, Sampler};

/// Prompt tokens processed at once, but for a bidirectional context: bounds the memory of
/// activations.
const PREFILL_BLOCK: usize = 512;

/// A model at work on one text: the tokens so far and their keys and values.
pub struct Generator<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    cache: KvCache,
    /// How single tokens are run on a GPU, once there is a text.
    graph: Option<DecodeGraph>,
    /// Chooses tokens there, once it was asked to.
    gpu_sampler: Option<GpuSampler>,
    /// Tokens whose keys and values are in the cache.
    seen: Vec<i32>,
    /// Where the tokens of the prompt stand, and those generated behind it.
    layout: Layout,
}

impl<'a> Generator<'a> {
    /// Prepares a cache of `capacity` positions, at most the model's context.
    ///
    /// # Errors
    /// If the model is an encoder or there is not enough memory.
    pub fn new(model: &'a Model, tokenizer: &'a Tokenizer, capacity: usize) -> Result<Self> {
        model.check_causal("generating text")?;
        let spec = model.spec();
        let cache = model.cache(1, capacity.min(spec.max_positions))?;
        Ok(Self {
            model,
            tokenizer,
            cache,
            graph: None,
            gpu_sampler: None,
            seen: Vec::new(),
            layout: Layout::causal(0),
        })
    }

    /// Positions there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Continues `prompt`. What it shares with the text before stays in the cache. `on_text` gets
    /// each new piece of whole characters and may stop the generation.
    ///
    /// # Errors
    /// If the prompt is empty or fills the context.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        limits: &Limits,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        self.check_prompt(prompt)?;
        let prompt: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
        let logits = self.prefill(&prompt)?;
        // Log-probabilities need the logits on the host.
        let on_gpu = logits.device() != Device::Cpu && limits.logprobs.is_none();
        if on_gpu {
            self.prepare_gpu(sampler, &prompt, &[])?;
        }
        let mut text = Continuation::new(self.tokenizer, limits);
        if text.is_complete() {
            return Ok(text.end(Finish::Length, on_text));
        }
        let mut next = self.next_of(&logits, on_gpu)?;
        loop {
            let (id, logprob) = next.choose(sampler, (&self.seen, prompt.len()), limits.logprobs);
            let has_room = self.seen.len() < self.capacity();
            if let Some(finish) = text.push(id, logprob, has_room, on_text) {
                return Ok(text.end(finish, on_text));
            }
            next = self.advance_by_one(id as i32, on_gpu)?;
        }
    }

    /// An error if there is nothing to continue, or no room for a new token.
    pub(crate) fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let (found, limit) = (prompt.len(), self.capacity());
        match found {
            0 => Err(Error::EmptyPrompt),
            _ if found >= limit => Err(Error::PromptTooLong { found, limit }),
            _ => Ok(()),
        }
    }

    /// The cache, which ends with the last token that was run.
    pub(crate) fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Brings the cache to the end of `prompt`, which has tokens, and returns the logits of the
    /// next token, `[1, V]`.
    pub(crate) fn prefill(&mut self, prompt: &[i32]) -> Result<Tensor> {
        self.layout = self.model.layout(prompt)?;
        let shared = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always run: its logits are what is asked for.
        let shared = self.cache.truncate(shared.min(prompt.len() - 1));
        self.seen.truncate(shared);
        // A prefix whose tokens see one another in both directions cannot be cut.
        let undivided = self.layout.prefix_len + 1;
        let new = &prompt[shared..];
        let first = undivided.saturating_sub(shared).max(PREFILL_BLOCK).min(new.len());
        let mut logits = self.advance(&new[..first])?;
        for block in new[first..].chunks(PREFILL_BLOCK) {
            logits = self.advance(block)?;
        }
        Ok(logits)
    }

    /// Runs new tokens and returns the logits after the last, `[1, V]`; a single one by recorded
    /// work where there is some.
    fn advance(&mut self, ids: &[i32]) -> Result<Tensor> {
        if ids.len() == 1 && !self.seen.is_empty() {
            self.prepare_graph()?;
        }
        let logits = match &mut self.graph {
            Some(graph) if ids.len() == 1 && !self.seen.is_empty() => {
                graph.next_logits(self.model, ids, &mut self.cache)?
            }
            _ => {
                let tokens = Tokens::of_texts(ids, &[&self.layout], self.seen.len())?;
                self.model.next_logits(&tokens, &mut self.cache)?
            }
        };
        self.seen.extend_from_slice(ids);
        Ok(logits)
    }

    /// Runs one more token, which on a GPU is the one chosen there, and says how it goes on.
    fn advance_by_one(&mut self, id: i32, on_gpu: bool) -> Result<Next> {
        if on_gpu {
            self.prepare_graph()?;
            if let (Some(graph), Some(sampler)) = (&mut self.graph, &self.gpu_sampler) {
                graph.choose_next(self.model, sampler, &mut self.cache)?;
                self.seen.push(id);
                return Ok(Next::Token(chosen(sampler)?));
            }
        }
        let logits = self.advance(&[id])?;
        self.next_of(&logits, on_gpu)
    }

    /// How it goes on after `logits [1, V]`. Rows beyond the tokenizer's ids are padding of the
    /// embedding, and not chosen.
    pub(crate) fn next_of(&self, logits: &Tensor, on_gpu: bool) -> Result<Next> {
        if let (Some(sampler), true) = (&self.gpu_sampler, on_gpu) {
            sampler.pick(logits)?;
            return Ok(Next::Token(chosen(sampler)?));
        }
        let logits = logits.to_host()?;
        Ok(Next::Logits(logits.data()[..self.n_ids()].to_vec()))
    }

    /// Ids that may be chosen.
    pub(crate) fn n_ids(&self) -> usize {
        self.tokenizer.vocab_size().min(self.model.spec().vocab_size)
    }

    /// Records from now on how single tokens are run, where that can be.
    fn prepare_graph(&mut self) -> Result<()> {
        if self.graph.is_none() {
            self.graph = DecodeGraph::new(self.model, &self.cache, 1)?;
        }
        Ok(())
    }

    /// Makes the GPU go on with `sampler` where it stands, after `prompt` and what was generated
    /// since.
    pub(crate) fn prepare_gpu(
        &mut self,
        sampler: &Sampler,
        prompt: &[i32],
        generated: &[i32],
    ) -> Result<()> {
        let gpu = match self.gpu_sampler.take() {
            Some(gpu) => gpu,
            None => GpuSampler::new(self.model.compute().0, 1, self.n_ids())?,
        };
        let (sampling, n_drawn) = sampler.state();
        gpu.set(0, &sampling, n_drawn)?;
        if sampling.has_penalty() {
            gpu.set_seen(0, prompt, generated)?;
        }
        self.gpu_sampler = Some(gpu);
        Ok(())
    }
}

/// How a text goes on.
pub(crate) enum Next {
    /// The host is to choose from these.
    Logits(Vec<f32>),
    /// A GPU chose.
    Token(u32),
}

impl Next {
    /// The next token, and how likely it was if `n_likely` asks for it and the host chooses. `seen`
    /// are the tokens so far, of which the first `n_prompt` are the prompt's.
    pub(crate) fn choose(
        self,
        sampler: &mut Sampler,
        (seen, n_prompt): (&[i32], usize),
        n_likely: Option<usize>,
    ) -> (u32, Option<TokenLogprob>) {
        match self {
            Self::Token(id) => {
                sampler.count_choice();
                (id, None)
            }
            Self::Logits(mut logits) => {
                let unchanged = n_likely.map(|n| (logits.clone(), n));
                let id = sampler.pick(&mut logits, seen, n_prompt);
                (id, unchanged.map(|(logits, n)| TokenLogprob::new(&logits, id, n)))
            }
        }
    }
}

/// The token that was chosen for the only text. It waits for the GPU.
fn chosen(sampler: &GpuSampler) -> Result<u32> {
    Ok(sampler.read()?[0] as u32)
}
