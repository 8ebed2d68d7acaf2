//! The recipe's tokenizer.

use std::path::Path;

use lehr_infer::{resolve_model, tokenizer_of};
use lehr_tokenizer::{Pattern, Tokenizer, Trainer};

use super::Notes;
use super::tokenizer_cache::CachedTokenizer;
use crate::checkpoint::Disk;
use crate::recipe::{ModelConfig, TokenizerConfig};
use crate::{Error, Recipe, Result};

/// Loads the tokenizer, or trains it on `texts`. A trained one is cached: a run with the same texts
/// and settings finds it, no other run does.
pub(super) fn prepare<'t, I: Iterator<Item = &'t str> + Send>(
    recipe: &Recipe,
    cache: &Path,
    texts: impl Fn() -> I,
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
            let cached = CachedTokenizer::new(cache, &recipe.tokenizer, texts());
            if let Some(tokenizer) = cached.open(notes)? {
                return Ok(tokenizer);
            }
            let mut trainer = Trainer::new(*vocab_size);
            trainer.pattern = if pattern == "gpt2" { Pattern::Gpt2 } else { Pattern::Gpt4 };
            let start = std::time::Instant::now();
            let tokenizer = trainer.train(texts())?;
            let seconds = start.elapsed().as_secs_f64();
            notes(&format!("tokenizer: {} ids in {seconds:.1} s", tokenizer.vocab_size()));
            cached.keep(&tokenizer, &mut Disk)?;
            Ok(tokenizer)
        }
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
