//! Preparation for training on conversations.

use std::path::Path;

use lehr_data::{Answers, Conversation, Part, Reading, Renderer, SftLoader, read_conversations};
use lehr_infer::{resolve_model, template_of};
use lehr_model::io::write_file;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, Moment, TemplateParts};

use super::{Notes, Sides, Task, cut, held_out, loader_options, model, share, tokenizer};
use crate::recipe::{ModelConfig, TokenizerConfig};
use crate::watch::watch;
use crate::{Error, LanguageModel, Recipe, Result};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let text = |c: &Conversation| {
        c.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
    };
    let read = |path: &str, reading: &Reading| read_conversations(path, reading);
    let Sides { train, validation } = held_out(recipe, "conversations", read, text, notes)?;
    let texts = || train.iter().flat_map(|c| c.messages.iter().map(|m| m.content.as_str()));
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    let (train_options, validation_options) = loader_options(recipe);
    let template = at_first_start(template(recipe, &tokenizer)?, cache)?;
    let (template, unused) = template.with_variables(recipe.data.template_args.clone())?;
    if !unused.is_empty() {
        let (n, names) = (unused.len(), unused.join(", "));
        notes(&format!("warning: data.template_args: the template does not use {n}: {names}"));
    }
    let renderer = Renderer { tokenizer: &tokenizer, template: &template };
    let mut loader = |conversations: &[Conversation], options, part| -> Result<_> {
        let reading = Reading::new(part, recipe.data.skip_bad);
        let loader = watch(notes, "tokenizing the conversations", 0, |_| {
            SftLoader::with_reading(conversations, &renderer, options, &reading)
        })?;
        reading.take_notes().iter().for_each(|note| notes(note));
        Ok(loader)
    };
    let train_loader = loader(&train, train_options, Part::Train)?;
    let validation_loader = loader(&validation, validation_options, Part::Validation)?;
    notes(&format!(
        "data: {} conversations to learn from ({}, {} without an answer left out), {} held out",
        train.len(),
        cut(train_loader.truncated(), train.len(), recipe.train.seq_len),
        train_loader.dropped(),
        validation.len()
    ));
    let Answers { all, cut: n_cut } = train_loader.answers();
    if n_cut > 0 {
        notes(&format!(
            "{n_cut} of {all} answers lose their end or all of their tokens{}; a cut is not learnt \
             as an end; a longer train.seq_len keeps them",
            share(n_cut, all)
        ));
    }
    let model = model::prepare(recipe, &tokenizer)?;
    model.check_causal("training on conversations")?;
    let layout = model::layout_rule(&model);
    let objective = LanguageModel::new(model, tokenizer, Some(template));
    Ok(Task {
        objective: Box::new(objective.with_files(model::files(recipe)?)),
        train: Box::new(train_loader.with_layout(layout.clone())),
        validation: Box::new(validation_loader.with_layout(layout)),
    })
}

/// Lets a template that prints the date print that of the run's first start, so a resumed run has
/// the same data.
fn at_first_start(template: ChatTemplate, cache: &Path) -> Result<ChatTemplate> {
    if !template.prints_time() {
        return Ok(template);
    }
    let file = cache.join("date.txt");
    let kept = std::fs::read_to_string(&file).ok();
    if let Some(seconds) = kept.and_then(|text| text.trim().parse().ok()) {
        return Ok(template.at(Moment::from_unix(seconds)));
    }
    let now = Moment::now();
    std::fs::create_dir_all(cache).map_err(Error::io("creating", cache))?;
    write_file(&file, format!("{}\n", now.seconds()).as_bytes())?;
    Ok(template.at(now))
}

/// Returns the chat template: the loaded model's if its tokenizer is kept, otherwise the one
/// recognised by the tokenizer's special tokens.
fn template(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    match (&recipe.tokenizer, &recipe.model) {
        (TokenizerConfig::Model, ModelConfig::Load { path }) => {
            Ok(template_of(&resolve_model(Path::new(path))?, tokenizer)?)
        }
        _ => Ok(ChatTemplate::for_model(tokenizer, &TemplateParts::default())?),
    }
}
