//! Preparation for training on the next token of documents.

use std::path::Path;

use lehr_data::{Document, PretrainLoader, ReadOptions, Reading, read_documents, tokenize_cached};

use super::{Notes, Sides, Task, held_out, loader_options, model, tokenizer};
use crate::{LanguageModel, Recipe, Result};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let data = &recipe.data;
    let (text_field, document_bytes) = (data.text_field.clone(), data.document_bytes);
    let options = ReadOptions { text_field, document_bytes, ..ReadOptions::default() };
    let read = |path: &str, reading: &Reading| {
        read_documents(path, &ReadOptions { reading: reading.clone(), ..options.clone() })
    };
    let text = |d: &Document| d.text.clone();
    let Sides { train, validation } = held_out(recipe, "documents", read, text, notes)?;
    let bytes = |docs: &[Document]| docs.iter().map(|d| d.text.len()).sum::<usize>() as f64 / 1e6;
    notes(&format!(
        "data: {} documents of {:.2} MB to learn from, {} of {:.2} MB held out",
        train.len(),
        bytes(&train),
        validation.len(),
        bytes(&validation)
    ));
    let texts = || train.iter().map(|d| d.text.as_str());
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    let shards = cache.join("tokens");
    let train = tokenize_cached(&train, &tokenizer, &shards, &mut |_| ())?;
    let validation = tokenize_cached(&validation, &tokenizer, &shards, &mut |_| ())?;
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
    let loader = |shards, options| -> Result<_> {
        Ok(Box::new(PretrainLoader::new(shards, options)?.with_layout(layout.clone())))
    };
    Ok(Task {
        train: loader(train, train_options)?,
        validation: loader(validation, validation_options)?,
        objective: Box::new(LanguageModel::new(model, tokenizer, None)),
    })
}
