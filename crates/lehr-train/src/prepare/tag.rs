//! Preparation for training on texts with named entities.

use std::path::Path;

use lehr_data::entities::{TagSet, TaggedText, WordToken};
use lehr_data::{EntityLoader, Reading, read_tagged};
use lehr_model::Tagger;

use super::head::Headed;
use super::{Notes, Sides, Task, held_out, loader_options, model, share, tokenizer};
use crate::watch::watch;
use crate::{Recipe, Result, Tag};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let loaded = Headed::find(recipe, Tagger::is_tagger)?;
    let read = |path: &str, reading: &Reading| read_tagged(path, reading);
    let text = |t: &TaggedText| t.text.clone();
    let Sides { train, validation } = held_out(recipe, "texts with entities", read, text, notes)?;
    let texts = || train.iter().map(|t| t.text.as_str());
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    let entities = || train.iter().chain(&validation).flat_map(|text| &text.entities);
    // A loaded model keeps its labels and their order, unless a new head is requested.
    let continued = match loaded.as_ref().filter(|_| !recipe.train.new_head) {
        Some(loaded) => {
            let mut tagger = Tagger::load(&loaded.dir)?;
            loaded.check(tagger.model_mut(), &tokenizer)?;
            Some(tagger)
        }
        None => None,
    };
    let tags = match &continued {
        Some(tagger) => TagSet::from_names(tagger.labels().iter().cloned())?,
        // A rare type may be in the held-out part only.
        None => TagSet::learn(entities())?,
    };
    let tagger = match continued {
        Some(mut tagger) => {
            model::set_up(recipe, tagger.model_mut());
            tagger
        }
        None => {
            let model = match &loaded {
                Some(loaded) => loaded.backbone(recipe, &tokenizer)?,
                None => model::prepare(recipe, &tokenizer)?,
            };
            Tagger::new(model, tags.labels().names().to_vec(), recipe.run.seed)?
        }
    };
    let token = word_token(&tagger);
    let (train_options, validation_options) = loader_options(recipe);
    let what = "tokenizing the training data";
    let train_loader = watch(notes, what, 0, |_| {
        EntityLoader::new(&train, &tags, &tokenizer, token, train_options)
    })?;
    let n_entities: usize = train.iter().map(|text| text.entities.len()).sum();
    let types: Vec<String> = tags.types().into_iter().collect();
    notes(&format!(
        "data: {} texts with {n_entities} entities to learn from, {} held out; types: {}",
        train.len(),
        validation.len(),
        types.join(", ")
    ));
    say_words(&train_loader, recipe, notes);
    let validation = EntityLoader::new(&validation, &tags, &tokenizer, token, validation_options)?;
    let layout = model::layout_rule(tagger.model());
    let objective = Tag::new(tagger, tags, tokenizer).with_files(model::files(recipe)?);
    Ok(Task {
        objective: Box::new(objective),
        train: Box::new(train_loader.with_layout(layout.clone())),
        validation: Box::new(validation.with_layout(layout)),
    })
}

/// Returns the token of a word at which `tagger` tags it.
fn word_token(tagger: &Tagger) -> WordToken {
    match tagger.tags_last_token() {
        true => WordToken::Last,
        false => WordToken::First,
    }
}

/// Notes the words that are not learnt as they stand in the data.
fn say_words(loader: &EntityLoader, recipe: &Recipe, notes: Notes<'_>) {
    let counts = loader.counts();
    let seq_len = recipe.train.seq_len;
    if counts.divided > 0 {
        notes(&format!(
            "{} texts do not fit into {seq_len} tokens and are divided",
            counts.divided
        ));
    }
    for (n, what) in [
        (counts.without_token, "have no token of this tokenizer, so they cannot be tagged"),
        (counts.cut, "are cut at the length of a row"),
    ] {
        if n > 0 {
            notes(&format!("warning: {n} words{} {what}", share(n, counts.words)));
        }
    }
}
