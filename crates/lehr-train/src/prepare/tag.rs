//! Preparation for training on texts with named entities.

use std::path::{Path, PathBuf};

use lehr_data::entities::{TagSet, TaggedText, WordToken};
use lehr_data::{EntityLoader, Reading, read_tagged};
use lehr_infer::{check_vocabulary, resolve_model};
use lehr_model::{Model, Tagger};
use lehr_tokenizer::Tokenizer;

use super::{Notes, Sides, Task, held_out, loader_options, model, share, tokenizer};
use crate::recipe::ModelConfig;
use crate::watch::watch;
use crate::{Error, Recipe, Result, Tag};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    check_adapter(recipe)?;
    let read = |path: &str, reading: &Reading| read_tagged(path, reading);
    let text = |t: &TaggedText| t.text.clone();
    let Sides { train, validation } = held_out(recipe, "texts with entities", read, text, notes)?;
    let texts = || train.iter().map(|t| t.text.as_str());
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    let entities = || train.iter().chain(&validation).flat_map(|text| &text.entities);
    // A loaded model keeps its labels and their order, unless a new head is requested.
    let continued = match (recipe.train.new_head, tagger_dir(recipe)?) {
        (false, Some(dir)) => Some(with_warning(&dir, &tokenizer, Tagger::load(&dir)?)?),
        _ => None,
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
            let model = backbone(recipe, &tokenizer)?;
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

/// Refuses an adapter of a model that tags words already.
fn check_adapter(recipe: &Recipe) -> Result<()> {
    if recipe.adapter.is_none() || tagger_dir(recipe)?.is_none() {
        return Ok(());
    }
    let faults = "adapter.kind is lora, expected none: the model tags words already; an adapter \
                  starts from the model that it was made of";
    Err(Error::Setting { faults: faults.to_owned() })
}

/// Returns the folder of the loaded model, if it tags words.
fn tagger_dir(recipe: &Recipe) -> Result<Option<PathBuf>> {
    let ModelConfig::Load { path } = &recipe.model else { return Ok(None) };
    let dir = resolve_model(Path::new(path))?;
    Ok(Tagger::is_tagger(&dir).then_some(dir))
}

fn with_warning(dir: &Path, tokenizer: &Tokenizer, mut tagger: Tagger) -> Result<Tagger> {
    if let Some(warning) = check_vocabulary(dir, tokenizer, tagger.model())? {
        tagger.model_mut().warn(warning);
    }
    Ok(tagger)
}

/// Opens the loaded model without the head that it may have, or makes a new one.
fn backbone(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Model> {
    let Some(dir) = tagger_dir(recipe)? else { return model::prepare(recipe, tokenizer) };
    let mut model = Tagger::load_backbone(&dir)?;
    if let Some(warning) = check_vocabulary(&dir, tokenizer, &model)? {
        model.warn(warning);
    }
    model::set_up(recipe, &mut model);
    Ok(model)
}
