//! Preparation for training on the next token of documents.

use std::path::Path;

use lehr_data::{
    Corpus, HeldOut, Loader, LoaderOptions, Part, PretrainLoader, ReadOptions, Reading, SplitBy,
    SplitOptions, TextSplit, has_validation, tokenize_cached,
};

use super::{Notes, Task, held_out, loader_options, model, tokenizer, too_few};
use crate::recipe::{DataConfig, Shuffle};
use crate::watch::watch;
use crate::{LanguageModel, Recipe, Result};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let (train, validation, report) = sides(recipe, notes)?;
    notes(&format!(
        "data: {} documents of {:.2} MB to learn from, {} of {:.2} MB held out",
        train.documents(),
        train.text_bytes() as f64 / 1e6,
        validation.documents(),
        validation.text_bytes() as f64 / 1e6
    ));
    if let Some(report) = report {
        held_out::say(&report, notes);
        held_out::keep(&report, cache)?;
        if recipe.data.split == SplitBy::Document && train.cut_files() > 0 {
            notes(&format!(
                "data: {} files were cut into documents, and the held-out ones have neighbours in \
                 training; data.split = \"source\" drops them",
                train.cut_files()
            ));
        }
    }
    let tokenizer = tokenizer::of_corpus(recipe, cache, &train, notes)?;
    let shards = cache.join("tokens");
    let mut tokenized = |corpus: &Corpus, what: &str| {
        watch(notes, what, corpus.text_bytes(), |done| {
            tokenize_cached(corpus, &tokenizer, &shards, &mut |progress| done.set(progress))
        })
    };
    let train = tokenized(&train, "tokenizing the training data")?;
    let validation = tokenized(&validation, "tokenizing the held-out data")?;
    notes(&format!(
        "tokens: {} to learn from ({:.2} bytes each), {} held out",
        train.tokens(),
        train.text_bytes() as f64 / train.tokens() as f64,
        validation.tokens()
    ));
    let (train_options, validation_options) = loader_options(recipe);
    let model = model::prepare(recipe, &tokenizer)?;
    model.check_causal("training on the next token")?;
    let layout = model::layout_rule(&model);
    let loader = |shards, options: LoaderOptions| -> Result<Box<dyn Loader>> {
        let loader = PretrainLoader::new(shards, options)?.with_layout(layout.clone());
        Ok(Box::new(match recipe.data.shuffle {
            Shuffle::Documents => loader.with_shuffled_documents()?,
            Shuffle::Rows => loader,
        }))
    };
    Ok(Task {
        train: loader(train, train_options)?,
        validation: loader(validation, validation_options)?,
        objective: Box::new(
            LanguageModel::new(model, tokenizer, None).with_files(model::files(recipe)?),
        ),
    })
}

/// Reads the data, for its split, and keeps none of it. Returns a report if something was split
/// off.
fn sides(recipe: &Recipe, notes: Notes<'_>) -> Result<(Corpus, Corpus, Option<HeldOut>)> {
    let DataConfig { path, validation_path, validation_fraction, split, skip_bad, .. } =
        &recipe.data;
    let seed = recipe.run.seed;
    let split = SplitOptions { fraction: *validation_fraction, seed, by: *split };
    let options = |part| ReadOptions {
        text_field: recipe.data.text_field.clone(),
        document_bytes: recipe.data.document_bytes,
        reading: Reading::new(part, *skip_bad),
    };
    let (train, validation) = (options(Part::Train), options(Part::Validation));
    let has_own = validation_path.is_empty() && has_validation(path)?;
    let validation_path = if has_own { path } else { validation_path };
    let sides = watch(notes, "reading the data", 0, |done| {
        let mut progress = |progress| done.set(progress);
        match validation_path.is_empty() {
            true => {
                let split = Corpus::split(path, &train, split, &mut progress)?;
                let TextSplit { training, validation, held_out } = split;
                lehr_data::Result::Ok((training, validation, Some(held_out)))
            }
            false => {
                let training = Corpus::whole(path, &train, seed, &mut progress)?;
                let validation = Corpus::whole(validation_path, &validation, seed, &mut progress)?;
                Ok((training, validation, None))
            }
        }
    })?;
    for options in [train, validation] {
        options.reading.take_notes().iter().for_each(|note| notes(note));
    }
    match (sides.0.documents(), sides.1.documents()) {
        (n_train, 0) => Err(too_few(n_train, "documents")),
        (0, n_held_out) => Err(too_few(n_held_out, "documents")),
        _ => Ok(sides),
    }
}
