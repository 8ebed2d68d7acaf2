//! Preparation for training on labelled texts.

use std::path::Path;

use lehr_data::{ClassLoader, LabelSet, Labelled, LabelledFields, Reading, read_labelled};
use lehr_infer::{check_vocabulary, resolve_model};
use lehr_model::Classifier;
use lehr_tokenizer::Tokenizer;

use super::{Notes, Sides, Task, held_out, loader_options, model, tokenizer};
use crate::recipe::ModelConfig;
use crate::watch::watch;
use crate::{Classify, Recipe, Result};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let data = &recipe.data;
    let fields = LabelledFields { text: data.text_field.clone(), label: data.label_field.clone() };
    let read = |path: &str, reading: &Reading| read_labelled(path, &fields, reading);
    let text = |e: &Labelled| e.text.clone();
    let Sides { train, validation } = held_out(recipe, "labelled texts", read, text, notes)?;
    let texts = || train.iter().map(|e| e.text.as_str());
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    // A loaded classifier keeps its labels and their order.
    let continued = loaded_classifier(recipe, &tokenizer)?;
    let labels = match &continued {
        Some(classifier) => LabelSet::from_names(classifier.labels().iter().cloned())?,
        // A rare class may be in the held-out part only.
        None => LabelSet::learn(train.iter().chain(&validation))?,
    };
    let (train_options, validation_options) = loader_options(recipe);
    let what = "tokenizing the training data";
    let train_loader =
        watch(notes, what, 0, |_| ClassLoader::new(&train, &labels, &tokenizer, train_options))?;
    notes(&format!(
        "data: {} labelled texts to learn from ({} cut at {} tokens), {} held out; labels: {}",
        train.len(),
        train_loader.truncated(),
        recipe.train.seq_len,
        validation.len(),
        labels.names().join(", ")
    ));
    let validation = ClassLoader::new(&validation, &labels, &tokenizer, validation_options)?;
    let classifier = match continued {
        Some(mut classifier) => {
            model::set_up(recipe, classifier.model_mut());
            classifier
        }
        None => {
            let model = model::prepare(recipe, &tokenizer)?;
            Classifier::new(model, labels.names().to_vec(), recipe.run.seed)?
        }
    };
    let layout = model::layout_rule(classifier.model());
    Ok(Task {
        objective: Box::new(Classify::new(classifier, tokenizer)),
        train: Box::new(train_loader.with_layout(layout.clone())),
        validation: Box::new(validation.with_layout(layout)),
    })
}

/// Opens the classifier to train further, if the recipe loads one.
fn loaded_classifier(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Option<Classifier>> {
    let ModelConfig::Load { path } = &recipe.model else { return Ok(None) };
    let dir = resolve_model(Path::new(path))?;
    if !Classifier::is_classifier(&dir) {
        return Ok(None);
    }
    let classifier = Classifier::load(&dir)?;
    check_vocabulary(&dir, tokenizer, classifier.model())?;
    Ok(Some(classifier))
}
