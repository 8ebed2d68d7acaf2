//! The sampling arguments of `generate` and `chat`.

use anyhow::Result;
use lehr_infer::{Limits, Sampler, Sampling};

/// Sampling of the next token, and the end of an answer.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divides the logits; 0 = greedy
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Keep the most likely K; 0 = all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the smallest set of most likely tokens with this probability
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Divides the logits of tokens already in the text; 1 = off
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtracted from the logit of a token for every time it was generated; 0 = off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Subtracted from the logits of all tokens that were generated; 0 = off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Maximum number of new tokens
    #[arg(short = 'n', long)]
    max_tokens: Option<usize>,
    /// At most N tokens of prompt and answer together, which bounds the memory of keys and values
    /// [default: the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    context: Option<u64>,
    /// Text that ends the answer (repeatable)
    #[arg(long)]
    stop: Vec<String>,
}

impl SamplingArgs {
    pub(crate) fn sampler(&self) -> Result<Sampler> {
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            temperature: if self.greedy { 0.0 } else { self.temperature },
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        };
        Ok(Sampler::new(sampling)?)
    }

    /// Most tokens of prompt and answer together, if there is a bound beside the model's.
    pub(crate) fn context(&self) -> Option<usize> {
        self.context.map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub(crate) fn limits(&self, max_tokens: usize) -> Limits {
        let max_tokens = Some(self.max_tokens.unwrap_or(max_tokens));
        Limits { max_tokens, stop: self.stop.clone(), ..Limits::default() }
    }
}
