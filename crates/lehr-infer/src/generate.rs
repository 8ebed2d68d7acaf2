//! Token by token generation with a preallocated KV cache.

use std::ops::ControlFlow;

use lehr_model::{DecodeGraph, KvCache, Model, Tokens};
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tensor::{Device, Tensor};
use lehr_tokenizer::Tokenizer;

use crate::stop::StopText;
use crate::{Error, Result, Sampler};

/// Prompt tokens processed at once, but for a bidirectional context: bounds the memory of
/// activations.
const PREFILL_BLOCK: usize = 512;

/// When generation ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// At most so many new tokens; `None` = until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_ids: Vec<u32>,
    /// Report the log-probability of every new token, and so many of the most likely alternatives.
    pub logprobs: Option<usize>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or stop text came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The receiver of the text asked to stop.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Their text, without stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// One per new token, if [`Limits::logprobs`] asked for them.
    pub logprobs: Vec<TokenLogprob>,
}

/// How likely the model found a token, before penalties, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// ln p of the token that was chosen.
    pub logprob: f32,
    /// The most likely tokens and their ln p, falling.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Of the token `id` chosen from `logits`, with the `n` most likely ones.
    fn new(logits: &[f32], id: u32, n: usize) -> Self {
        let by_value =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let n = n.min(ids.len());
        if n > 0 && n < ids.len() {
            ids.select_nth_unstable_by(n, by_value);
        }
        ids.truncate(n);
        ids.sort_unstable_by(by_value);
        let normalizer = log_sum_exp(logits);
        let top = ids.iter().map(|id| (*id, logits[*id as usize] - normalizer)).collect();
        Self { logprob: logits[id as usize] - normalizer, top }
    }
}

/// ln Σ exp(logit).
fn log_sum_exp(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - top).exp())).sum();
    top + sum.ln() as f32
}

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
        Ok(Self { model, tokenizer, cache, graph: None, gpu_sampler: None, seen: Vec::new() })
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
        let prompt: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
        let logits = self.prefill(&prompt)?;
        // Log-probabilities need the logits on the host.
        let on_gpu = logits.device() != Device::Cpu && limits.logprobs.is_none();
        if on_gpu {
            self.prepare_gpu(sampler, &prompt)?;
        }
        let mut next = self.next_of(&logits, on_gpu)?;
        let mut stream = self.tokenizer.stream_decoder();
        let mut text = StopText::new(&limits.stop);
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        let finish = loop {
            if limits.max_tokens.is_some_and(|max| ids.len() >= max) {
                break Finish::Length;
            }
            let mut unchanged = None;
            let id = match next {
                Next::Token(id) => {
                    sampler.count_choice();
                    id
                }
                Next::Logits(mut logits) => {
                    unchanged = limits.logprobs.map(|n| (logits.clone(), n));
                    sampler.pick(&mut logits, &self.seen, prompt.len())
                }
            };
            if limits.stop_ids.contains(&id) {
                break Finish::Stop;
            }
            ids.push(id);
            logprobs.extend(unchanged.map(|(logits, n)| TokenLogprob::new(&logits, id, n)));
            let (piece, stopped) = text.push(&stream.push(id));
            if !piece.is_empty() && on_text(&piece).is_break() {
                break Finish::Cancelled;
            }
            if stopped {
                break Finish::Stop;
            }
            if self.seen.len() >= self.capacity() {
                break Finish::ContextFull;
            }
            next = self.advance_by_one(id as i32, on_gpu)?;
        };
        let stopped = finish == Finish::Stop && text.stopped;
        if !stopped {
            let (piece, _) = text.push(&stream.finish());
            let rest = piece + &text.flush();
            if !rest.is_empty() && finish != Finish::Cancelled {
                let _ = on_text(&rest);
            }
        }
        Ok(Generated { ids, text: text.released, finish, logprobs })
    }

    /// Brings the cache to the end of `prompt` and returns the logits of the next token, `[1, V]`.
    fn prefill(&mut self, prompt: &[i32]) -> Result<Tensor> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.capacity() {
            let (found, limit) = (prompt.len(), self.capacity());
            return Err(Error::PromptTooLong { found, limit });
        }
        let undivided = self.model.undivided(prompt)?;
        let shared = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always run: its logits are what is asked for.
        let shared = self.cache.truncate(shared.min(prompt.len() - 1));
        self.seen.truncate(shared);
        // A context whose tokens see one another in both directions cannot be cut.
        let new = &prompt[shared..];
        let first = undivided.saturating_sub(shared).max(PREFILL_BLOCK).min(new.len());
        let mut logits = self.advance(&new[..first])?;
        for block in new[first..].chunks(PREFILL_BLOCK) {
            logits = self.advance(block)?;
        }
        Ok(logits)
    }

    /// Runs new tokens and returns the logits after the last, `[1, V]`; a single one by recorded work where there is some.
    fn advance(&mut self, ids: &[i32]) -> Result<Tensor> {
        if ids.len() == 1 && !self.seen.is_empty() {
            self.prepare_graph()?;
        }
        let logits = match &mut self.graph {
            Some(graph) if ids.len() == 1 && !self.seen.is_empty() => {
                graph.next_logits(self.model, ids, &mut self.cache)?
            }
            _ => {
                let tokens = Tokens::new(ids, 1, self.seen.len())?;
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

    /// How it goes on after `logits [1, V]`. Rows beyond the tokenizer's ids are padding of the embedding, and not chosen.
    fn next_of(&self, logits: &Tensor, on_gpu: bool) -> Result<Next> {
        if let (Some(sampler), true) = (&self.gpu_sampler, on_gpu) {
            sampler.pick(logits)?;
            return Ok(Next::Token(chosen(sampler)?));
        }
        let logits = logits.to_host()?;
        Ok(Next::Logits(logits.data()[..self.n_ids()].to_vec()))
    }

    /// Ids that may be chosen.
    fn n_ids(&self) -> usize {
        self.tokenizer.vocab_size().min(self.model.spec().vocab_size)
    }

    /// Records from now on how single tokens are run, where that can be.
    fn prepare_graph(&mut self) -> Result<()> {
        if self.graph.is_none() {
            self.graph = DecodeGraph::new(self.model, &self.cache, 1)?;
        }
        Ok(())
    }

    /// Makes the GPU go on with `sampler` where it stands, after `prompt`.
    fn prepare_gpu(&mut self, sampler: &Sampler, prompt: &[i32]) -> Result<()> {
        let gpu = match self.gpu_sampler.take() {
            Some(gpu) => gpu,
            None => GpuSampler::new(self.model.compute().0, 1, self.n_ids())?,
        };
        let (sampling, n_drawn) = sampler.state();
        gpu.set(0, &sampling.into(), n_drawn)?;
        if sampling.has_penalty() {
            gpu.set_seen(0, prompt, &[])?;
        }
        self.gpu_sampler = Some(gpu);
        Ok(())
    }
}

/// How a text goes on.
enum Next {
    /// The host is to choose from these.
    Logits(Vec<f32>),
    /// A GPU chose.
    Token(u32),
}

/// The token that was chosen for the only text. It waits for the GPU.
fn chosen(sampler: &GpuSampler) -> Result<u32> {
    Ok(sampler.read()?[0] as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let want = |id: usize| (f64::from(logits[id]).exp() / total).ln();
        let found = TokenLogprob::new(&logits, 3, 2);
        assert!((f64::from(found.logprob) - want(3)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
        assert!((f64::from(found.top[1].1) - want(2)).abs() < 1e-6);
        assert_eq!(TokenLogprob::new(&logits, 0, 9).top.len(), 4);
        assert_eq!(TokenLogprob::new(&logits, 0, 0).top, []);
    }
}
