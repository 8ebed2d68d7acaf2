//! The sampling arguments of `generate` and `chat`.

use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use lehr_infer::{Limits, Sampler, Sampling};

/// Sampling of the next token, and the end of an answer.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divides the logits; 0 = greedy [default: 0.8]
    #[arg(long)]
    temperature: Option<f32>,
    /// Keep the most likely K; 0 = all [default: 0]
    #[arg(long)]
    top_k: Option<usize>,
    /// Keep the smallest set of most likely tokens with this probability [default: 0.95]
    #[arg(long)]
    top_p: Option<f32>,
    /// Keep tokens at least this likely relative to the most likely one [default: 0]
    #[arg(long)]
    min_p: Option<f32>,
    /// Divides the logits of tokens already in the text; 1 = off
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtracted from the logit of a token for every time it was generated; 0 = off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Subtracted from the logits of all tokens that were generated; 0 = off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Seed of the draws [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Maximum number of new tokens
    #[arg(short = 'n', long)]
    max_tokens: Option<usize>,
    /// At most N tokens of prompt and answer together, which bounds the memory of keys and values
    /// [default: the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    context: Option<u64>,
    /// Text that ends the answer (repeatable)
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
}

impl SamplingArgs {
    pub(crate) fn sampler(&self) -> Result<Sampler> {
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            temperature: if self.greedy { 0.0 } else { self.temperature.unwrap_or(0.8) },
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(0.95),
            min_p: self.min_p.unwrap_or(0.0),
            seed: self.seed.unwrap_or(1),
        };
        Ok(Sampler::new(sampling)?)
    }

    /// Warns of arguments that change nothing, given the others and the model's context.
    pub(crate) fn warn(&self, model_context: usize) {
        self.ineffective(model_context).iter().for_each(|note| eprintln!("warning: {note}"));
    }

    fn ineffective(&self, model_context: usize) -> Vec<String> {
        let always_best = match (self.greedy, self.temperature) {
            (true, _) => Some("--greedy"),
            (false, Some(0.0)) => Some("--temperature 0"),
            _ => None,
        };
        let given = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        let mut notes = Vec::new();
        if let Some(why) = always_best {
            let given = given.iter().filter(|(_, given)| *given);
            notes.extend(given.map(|(name, _)| {
                format!("{name} changes nothing with {why}, which takes the most likely token")
            }));
        }
        if let Some(context) = self.context().filter(|context| *context > model_context) {
            notes.push(format!(
                "--context {context} is more than the model's context of {model_context}, which \
                 is used"
            ));
        }
        notes
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn notes(args: &[&str]) -> Vec<String> {
        let args = ["x"].iter().chain(args);
        Only::try_parse_from(args).unwrap().sampling.ineffective(64)
    }

    #[test]
    fn arguments_that_change_nothing_are_named() {
        assert_eq!(notes(&["--top-k", "0", "--seed", "5", "--context", "64"]), [""; 0]);
        assert_eq!(notes(&["--greedy", "-n", "3"]), [""; 0]);
        assert!(notes(&["--greedy", "--seed", "5"])[0].starts_with("--seed changes nothing"));
        let found = notes(&["--temperature=0", "--top-p=0.5", "--top-k=3", "--min-p=0.1"]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].contains("--top-p changes nothing with --temperature 0"), "{found:?}");
        assert!(notes(&["--context", "65"])[0].contains("the model's context of 64"));
    }
}
