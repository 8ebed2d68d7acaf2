//! Preparation for training on conversations.

use std::path::Path;

use lehr_data::{Conversation, Part, Reading, Renderer, SftLoader, read_conversations};
use lehr_infer::{resolve_model, template_of};
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};

use super::{Notes, Sides, Task, held_out, loader_options, model, tokenizer};
use crate::recipe::{ModelConfig, TokenizerConfig};
use crate::watch::watch;
use crate::{LanguageModel, Recipe, Result};

pub(super) fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    let text = |c: &Conversation| {
        c.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
    };
    let read = |path: &str, reading: &Reading| read_conversations(path, reading);
    let Sides { train, validation } = held_out(recipe, "conversations", read, text, notes)?;
    let texts = || train.iter().flat_map(|c| c.messages.iter().map(|m| m.content.as_str()));
    let tokenizer = tokenizer::prepare(recipe, cache, texts, notes)?;
    let (train_options, validation_options) = loader_options(recipe);
    let template = template(recipe, &tokenizer)?;
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
        "data: {} conversations to learn from ({} cut at {} tokens, {} without an answer left \
         out), {} held out",
        train.len(),
        train_loader.truncated(),
        recipe.train.seq_len,
        train_loader.dropped(),
        validation.len()
    ));
    let model = model::prepare(recipe, &tokenizer)?;
    model.check_causal("training on conversations")?;
    let layout = model::layout_rule(&model);
    Ok(Task {
        objective: Box::new(LanguageModel::new(model, tokenizer, Some(template))),
        train: Box::new(train_loader.with_layout(layout.clone())),
        validation: Box::new(validation_loader.with_layout(layout)),
    })
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
