//! Preparation for training on labelled texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lehr_data::{ClassLoader, LabelSet, Labelled, LabelledFields, Reading, read_labelled};
use lehr_model::{Classifier, Model};

use super::head::Headed;
use super::{Notes, Sides, Task, cut, held_out, loader_options, model, tokenizer};
use crate::recipe::{ClassifierPooling, ModelConfig};
use crate::watch::watch;
use crate::{Classify, Error, Recipe, Result};

/// Labels whose counts are named.
const LABELS_NAMED: usize = 20;
/// Share of a label from which on accuracy says little.
const MOST: f64 = 0.9;

pub(super) fn prepare(
    recipe: &Recipe,
    pooling: Option<ClassifierPooling>,
    cache: &Path,
    notes: Notes<'_>,
) -> Result<Task> {
    let loaded = Headed::find(recipe, Classifier::is_classifier)?;
    let data = &recipe.data;
    let fields = LabelledFields { text: data.text_field.clone(), label: data.label_field.clone() };
    let read = |path: &str, reading: &Reading| read_labelled(path, &fields, reading);
    let text = |e: &Labelled| e.text.clone();
    let Sides { train, validation } = held_out(recipe, "labelled texts", read, text, notes)?;
    let texts = || train.iter().map(|e| e.text.as_str());
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    // A loaded classifier keeps its labels and their order, unless a new head is requested.
    let continued = match loaded.as_ref().filter(|_| !recipe.train.new_head) {
        Some(loaded) => {
            let mut classifier = Classifier::load(&loaded.dir)?;
            loaded.check(classifier.model_mut(), &tokenizer)?;
            Some(classifier)
        }
        None => None,
    };
    let examples = || train.iter().chain(&validation);
    let labels = match &continued {
        Some(classifier) => labels_of(recipe, classifier, examples(), notes)?,
        // A rare class may be in the held-out part only.
        None => LabelSet::learn(examples())?,
    };
    let (train_options, validation_options) = loader_options(recipe);
    let ends = continued.as_ref().is_none_or(Classifier::ends_texts);
    let (train_options, validation_options) =
        (train_options.with_ends(ends), validation_options.with_ends(ends));
    let what = "tokenizing the training data";
    let train_loader =
        watch(notes, what, 0, |_| ClassLoader::new(&train, &labels, &tokenizer, train_options))?;
    notes(&format!(
        "data: {} labelled texts to learn from ({}), {} held out; labels: {}",
        train.len(),
        cut(train_loader.truncated(), train.len(), recipe.train.seq_len),
        validation.len(),
        labels.names().join(", ")
    ));
    say_labels(&train, notes);
    let validation = ClassLoader::new(&validation, &labels, &tokenizer, validation_options)?;
    let classifier = match continued {
        Some(mut classifier) => {
            model::set_up(recipe, classifier.model_mut());
            classifier
        }
        None => {
            let model = match &loaded {
                Some(loaded) => loaded.backbone(recipe, &tokenizer)?,
                None => model::prepare(recipe, &tokenizer)?,
            };
            with_new_head(model, &labels, pooling, recipe.run.seed)?
        }
    };
    check_pooling(&classifier, pooling)?;
    let layout = model::layout_rule(classifier.model());
    Ok(Task {
        objective: Box::new(Classify::new(classifier, tokenizer).with_files(model::files(recipe)?)),
        train: Box::new(train_loader.with_layout(layout.clone())),
        validation: Box::new(validation.with_layout(layout)),
    })
}

/// Gives a model a new head for `labels`.
fn with_new_head(
    model: Model,
    labels: &LabelSet,
    pooling: Option<ClassifierPooling>,
    seed: u64,
) -> Result<Classifier> {
    let labels = labels.names().to_vec();
    Ok(match pooling {
        Some(ClassifierPooling::Mean) => Classifier::new_by_mean(model, labels, seed)?,
        None | Some(ClassifierPooling::EndOfDocument) => Classifier::new(model, labels, seed)?,
    })
}

/// Returns the labels of a loaded classifier for the labels of the data, which must be among them.
/// Names those that the data lacks.
fn labels_of<'a>(
    recipe: &Recipe,
    classifier: &Classifier,
    examples: impl Iterator<Item = &'a Labelled>,
    notes: Notes<'_>,
) -> Result<LabelSet> {
    let labels = LabelSet::from_names(classifier.labels().iter().cloned())?;
    let (unknown, unused) = labels.compare(examples);
    if !unknown.is_empty() {
        let ModelConfig::Load { path } = &recipe.model else { return Ok(labels) };
        let known = labels.names().to_vec();
        return Err(Error::OtherLabels { path: path.into(), unknown, known });
    }
    if !unused.is_empty() {
        notes(&format!(
            "the head of the model is kept; the data has no text with these of its labels: {}",
            unused.join(", ")
        ));
    }
    Ok(labels)
}

/// Notes how often each label occurs, and what a classifier cannot learn well from.
fn say_labels(train: &[Labelled], notes: Notes<'_>) {
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut by_text = BTreeMap::<&str, BTreeSet<&str>>::new();
    for Labelled { text, label } in train {
        *counts.entry(label).or_default() += 1;
        by_text.entry(text.trim()).or_default().insert(label);
    }
    let listed = counts.iter().take(LABELS_NAMED).map(|(label, n)| format!("{label} {n}"));
    let listed: Vec<String> = listed.collect();
    let more = if counts.len() > LABELS_NAMED { ", …" } else { "" };
    notes(&format!("texts to learn from by label: {}{more}", listed.join(", ")));
    let Some((label, n)) = counts.iter().max_by_key(|(_, n)| **n) else { return };
    if *n as f64 > MOST * train.len() as f64 {
        let share = 100.0 * *n as f64 / train.len() as f64;
        notes(&format!(
            "warning: {share:.1} % of the texts have the label {label}; a model that always gives \
             it is right as often"
        ));
    }
    let n_contradictory = by_text.values().filter(|labels| labels.len() > 1).count();
    if n_contradictory > 0 {
        notes(&format!("warning: {n_contradictory} texts occur with different labels"));
    }
}

/// Checks that the head pools as the recipe says. An encoder always takes its first token, and a
/// loaded head what it was trained with.
fn check_pooling(classifier: &Classifier, wanted: Option<ClassifierPooling>) -> Result<()> {
    let (is, Some(wanted)) = (classifier.pooling(), wanted) else { return Ok(()) };
    if is == wanted.name() {
        return Ok(());
    }
    let why = match classifier.model().is_causal() {
        true => "the loaded head has been trained so; train.new_head = true starts a new one",
        false => "an encoder classifies at its first token",
    };
    let name = wanted.name();
    let faults = format!("objective.pooling is {name}, expected {is} or no such key: {why}");
    Err(Error::Setting { faults })
}
