//! The recipe's tokenizer.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use lehr_data::Corpus;
use lehr_infer::{resolve_model, tokenizer_of};
use lehr_tokenizer::{Pattern, Tokenizer, Trainer};
use sha2::{Digest, Sha256};

use super::Notes;
use crate::recipe::{ModelConfig, TokenizerConfig};
use crate::watch::watch;
use crate::{Error, Recipe, Result};

/// Bytes of text on which a tokenizer is trained, at most. Its memory grows with the number of
/// different words, and more text hardly changes its merges ("data that does not fit in memory" in
/// docs/experiments.md).
const SAMPLE_BYTES: u64 = 100_000_000;

/// Loads the tokenizer, or trains it on `texts`, which are in memory.
pub(super) fn prepare<'t, I: Iterator<Item = &'t str> + Send>(
    recipe: &Recipe,
    cache: &Path,
    texts: impl Fn() -> I,
    notes: Notes<'_>,
) -> Result<Tokenizer> {
    let mut hash = Sha256::new();
    if matches!(recipe.tokenizer, TokenizerConfig::Train { .. }) {
        for text in texts() {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
    }
    let texts =
        Texts { hash: hex(hash), bytes: 0, stream: Box::new(texts().map(|t| Ok(t.into()))) };
    loaded_or_trained(recipe, cache, texts, notes)
}

/// Loads the tokenizer, or trains it on a sample of the documents of `corpus`.
pub(super) fn of_corpus(
    recipe: &Recipe,
    cache: &Path,
    corpus: &Corpus,
    notes: Notes<'_>,
) -> Result<Tokenizer> {
    let documents = corpus.sample(SAMPLE_BYTES)?;
    let texts = Texts {
        hash: corpus.hash().to_owned(),
        bytes: corpus.text_bytes().min(SAMPLE_BYTES),
        stream: Box::new(documents.map(|document| document.map(|d| Cow::Owned(d.text)))),
    };
    loaded_or_trained(recipe, cache, texts, notes)
}

/// The texts to train a tokenizer on.
struct Texts<'t> {
    /// A hash by which a tokenizer trained on them is found again.
    hash: String,
    /// Their size, 0 if it is not known.
    bytes: u64,
    stream: Box<dyn Iterator<Item = lehr_data::Result<Cow<'t, str>>> + Send + 't>,
}

/// Loads the tokenizer, or trains it. A trained one is cached under a hash of its texts and
/// settings. A run with the same texts and settings finds it; no other run does.
fn loaded_or_trained(
    recipe: &Recipe,
    cache: &Path,
    texts: Texts<'_>,
    notes: Notes<'_>,
) -> Result<Tokenizer> {
    match &recipe.tokenizer {
        TokenizerConfig::File { path } => Ok(Tokenizer::from_file(path)?),
        TokenizerConfig::Model => {
            let ModelConfig::Load { path } = &recipe.model else {
                let faults = "tokenizer.kind is model, but no model is loaded".to_owned();
                return Err(Error::Setting { faults });
            };
            Ok(tokenizer_of(&resolve_model(Path::new(path))?)?)
        }
        TokenizerConfig::Train { vocab_size, pattern } => {
            let kept = cached(cache, &recipe.tokenizer, &texts.hash);
            if kept.is_file() {
                return Ok(Tokenizer::from_file(&kept)?);
            }
            let mut trainer = Trainer::new(*vocab_size);
            trainer.pattern = if pattern == "gpt2" { Pattern::Gpt2 } else { Pattern::Gpt4 };
            let start = std::time::Instant::now();
            let tokenizer = train(&trainer, texts, notes)?;
            let seconds = start.elapsed().as_secs_f64();
            notes(&format!("tokenizer: {} ids in {seconds:.1} s", tokenizer.vocab_size()));
            std::fs::create_dir_all(cache).map_err(Error::io("creating", cache))?;
            tokenizer.save(&kept)?;
            Ok(tokenizer)
        }
    }
}

fn train(trainer: &Trainer, texts: Texts<'_>, notes: Notes<'_>) -> Result<Tokenizer> {
    let mut error = None;
    let trained = watch(notes, "training the tokenizer", texts.bytes, |done| {
        let texts = texts.stream.map_while(|text| match text {
            Ok(text) => {
                done.add_bytes(text.len());
                Some(text)
            }
            Err(first) => {
                error = Some(first);
                None
            }
        });
        trainer.train(texts)
    });
    match error {
        Some(error) => Err(error.into()),
        None => Ok(trained?),
    }
}

/// Version of the trainer and of the sample it is given. It changes when the same settings give
/// another tokenizer.
const TRAINER_VERSION: &str = "2";

/// Returns the cache path of the tokenizer trained with these settings on texts of this hash.
fn cached(cache: &Path, config: &TokenizerConfig, texts: &str) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(format!("{TRAINER_VERSION} {config:?}\n{texts}"));
    cache.join(format!("tokenizer-{}.json", hex(hash)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(recipe: &Recipe, cache: &Path, texts: &[&str]) -> (Tokenizer, bool) {
        let mut trained = false;
        let mut notes = |note: &str| trained |= note.contains("ids in");
        let tokenizer = prepare(recipe, cache, || texts.iter().copied(), &mut notes).unwrap();
        (tokenizer, trained)
    }

    #[test]
    fn a_trained_tokenizer_is_found_again_by_what_it_was_trained_on() {
        let scratch = tempfile::tempdir().unwrap();
        let with = |vocab_size| Recipe {
            tokenizer: TokenizerConfig::Train { vocab_size, pattern: "gpt4".into() },
            ..Recipe::base()
        };
        let (glass, water) = (["the glass is warm glass"; 3], ["cold water in the water"; 3]);
        let (first, trained) = prepared(&with(270), scratch.path(), &glass);
        assert!(trained);
        let (again, trained) = prepared(&with(270), scratch.path(), &glass);
        assert!(!trained, "it is not found in the cache");
        assert_eq!(again.to_json(), first.to_json());
        // Other texts, or the same texts cut elsewhere, or other settings.
        let joined = [glass.concat()];
        let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
        for (size, texts) in [(270, &water[..]), (270, &joined), (268, &glass)] {
            let (other, trained) = prepared(&with(size), scratch.path(), texts);
            assert!(trained, "a tokenizer of other texts or settings was taken");
            assert_eq!(other.vocab_size() == first.vocab_size(), size == 270);
        }
    }
}
