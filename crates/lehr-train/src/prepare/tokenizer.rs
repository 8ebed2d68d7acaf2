//! The recipe's tokenizer.

use std::borrow::Cow;
use std::path::Path;

use lehr_data::Corpus;
use lehr_infer::{resolve_model, tokenizer_of};
use lehr_model::io::hex;
use lehr_tokenizer::{Pattern, Tokenizer, Trainer};
use sha2::{Digest, Sha256};

use super::Notes;
use super::tokenizer_cache::CachedTokenizer;
use crate::checkpoint::Disk;
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
    let texts = Texts {
        hash: hex(&hash.finalize()),
        bytes: 0,
        stream: Box::new(texts().map(|t| Ok(t.into()))),
    };
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
        TokenizerConfig::File { path } => {
            let tokenizer = Tokenizer::open(path)?;
            tokenizer.warnings().iter().for_each(|text| notes(&format!("warning: {text}")));
            Ok(tokenizer)
        }
        TokenizerConfig::Model => {
            let ModelConfig::Load { path } = &recipe.model else {
                let faults = "tokenizer.kind is model, but no model is loaded".to_owned();
                return Err(Error::Setting { faults });
            };
            let tokenizer = tokenizer_of(&resolve_model(Path::new(path))?)?;
            tokenizer.warnings().iter().for_each(|text| notes(&format!("warning: {text}")));
            Ok(tokenizer)
        }
        TokenizerConfig::Train { vocab_size, pattern } => {
            let cached = CachedTokenizer::new(cache, &recipe.tokenizer, &texts.hash);
            if let Some(tokenizer) = cached.open(notes)? {
                return Ok(tokenizer);
            }
            let mut trainer = Trainer::new(*vocab_size);
            trainer.pattern = if pattern == "gpt2" { Pattern::Gpt2 } else { Pattern::Gpt4 };
            let start = std::time::Instant::now();
            let tokenizer = train(&trainer, texts, notes)?;
            let seconds = start.elapsed().as_secs_f64();
            notes(&format!("tokenizer: {} ids in {seconds:.1} s", tokenizer.vocab_size()));
            cached.keep(&tokenizer, &mut Disk)?;
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
    #[test]
    fn a_changed_or_cut_tokenizer_in_the_cache_is_named_and_trained_again() {
        let scratch = tempfile::tempdir().unwrap();
        let tokenizer = TokenizerConfig::Train { vocab_size: 270, pattern: "gpt4".into() };
        let recipe = Recipe { tokenizer, ..Recipe::base() };
        let texts = ["the glass is warm glass"; 3];
        let (first, _) = prepared(&recipe, scratch.path(), &texts);
        let path = scratch.path().join("tokenizer.json");
        let whole = std::fs::read_to_string(&path).unwrap();
        for bad in [whole.replacen('a', "b", 1), String::new(), whole[..whole.len() / 2].into()] {
            std::fs::write(&path, bad).unwrap();
            let mut notes = Vec::new();
            let mut note = |text: &str| notes.push(text.to_owned());
            let texts = || texts.iter().copied();
            let again = prepare(&recipe, scratch.path(), texts, &mut note).unwrap();
            assert!(notes[0].contains("damaged or was changed"), "{notes:?}");
            assert_eq!(again.to_json(), first.to_json());
        }
    }
}
