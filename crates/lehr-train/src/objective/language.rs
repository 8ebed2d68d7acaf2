//! Predicting tokens: all of them (pre-training) or the assistant's (fine-tuning on conversations).
//! Which is which is in the targets of the batch.

use std::ops::ControlFlow;

use lehr_data::Batch;
use lehr_infer::{
    ChatSession, Engine, EngineSettings, Limits, ModelFiles, Request, Sampler, Sampling,
};
use lehr_model::Model;
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, Message, Role};

use super::{Loss, Objective, tokens_of};
use crate::Result;

/// Cross-entropy of the supervised tokens.
pub struct LanguageModel {
    model: Model,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    files: Option<ModelFiles>,
}

impl LanguageModel {
    /// Creates the objective for `model`. With a chat `template`, samples are answers, otherwise
    /// continuations.
    #[must_use]
    pub fn new(model: Model, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Self { model, tokenizer, template, files: None }
    }

    /// Sets the files of the loaded model, whose settings checkpoints keep.
    #[must_use]
    pub fn with_files(self, files: Option<ModelFiles>) -> Self {
        Self { files, ..self }
    }
}

/// Computes the cross-entropy of the targets of a batch, summed and divided by `normalizer`.
///
/// # Errors
/// If the batch does not fit the model or memory runs out.
pub fn next_token_loss(model: &Model, batch: &Batch, normalizer: f32) -> Result<Loss> {
    let tokens = tokens_of(batch)?;
    let targets = Tensor::from_ids(&batch.targets, tokens.ids.shape())?;
    Ok(Loss::new(model.loss(&tokens, &targets, normalizer)?))
}

impl Objective for LanguageModel {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        next_token_loss(&self.model, batch, normalizer)
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    fn files(&self) -> Option<&ModelFiles> {
        self.files.as_ref()
    }

    fn check_prompt(&self, prompt: &str) -> Result<()> {
        let limit = self.model.spec().max_positions;
        let (ids, room) = match &self.template {
            Some(template) => {
                // Refuses a tokenizer without the tokens that end an answer.
                template.stop_ids(&self.tokenizer)?;
                let messages = [Message::new(Role::User, prompt)];
                let ids = template.render(&self.tokenizer, &messages, true)?.ids;
                (ids, ChatSession::answer_room(limit))
            }
            None => (self.tokenizer.encode_prompt(prompt)?, 0),
        };
        let found = ids.len();
        // Some models need special tokens in the prompt that mark what to continue.
        self.model.layout(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>())?;
        match found {
            0 => Err(lehr_infer::Error::EmptyPrompt.into()),
            _ if found + room >= limit => {
                Err(lehr_infer::Error::PromptTooLong { found, limit }.into())
            }
            _ => Ok(()),
        }
    }

    fn sample(
        &self,
        prompt: &str,
        max_tokens: usize,
        temperature: f32,
        seed: u64,
    ) -> Result<Option<String>> {
        let sampling = Sampling { temperature, top_p: 0.95, seed, ..Sampling::GREEDY };
        let mut limits = Limits { max_tokens: Some(max_tokens), ..Limits::default() };
        let mut ignore = |_: &str| ControlFlow::Continue(());
        if let Some(template) = &self.template {
            let mut sampler = Sampler::new(sampling)?;
            let mut session = ChatSession::new(&self.model, &self.tokenizer, template, None, None)?;
            return Ok(Some(session.answer(prompt, &mut sampler, &limits, &mut ignore)?.text));
        }
        limits.stop_ids.extend(self.tokenizer.end_of_document().ok());
        let ids = self.tokenizer.encode_prompt(prompt)?;
        let context = Some(ids.len().saturating_add(max_tokens).saturating_add(1));
        let settings = EngineSettings { context, ..EngineSettings::ONE };
        let mut engine = Engine::new(&self.model, &self.tokenizer, settings)?;
        let request = Request::new(ids, sampling, limits);
        Ok(Some(engine.generate(request, &mut ignore)?.text))
    }

    fn config_json(&self) -> serde_json::Value {
        self.model.config().to_json()
    }
}
