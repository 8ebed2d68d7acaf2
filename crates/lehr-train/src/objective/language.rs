//! Predicting tokens: all of them (pre-training) or the assistant's (fine-tuning on conversations).
//! Which is which is in the targets of the batch.

use std::ops::ControlFlow;

use lehr_data::Batch;
use lehr_infer::{ChatSession, Engine, EngineSettings, Limits, Request, Sampler, Sampling};
use lehr_model::Model;
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::ChatTemplate;

use super::{Objective, tokens_of};
use crate::Result;

/// Cross-entropy of the labelled tokens.
pub struct LanguageModel {
    model: Model,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl LanguageModel {
    /// Trains `model`; samples are answers if conversations have a `template`, else continuations.
    #[must_use]
    pub fn new(model: Model, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Self { model, tokenizer, template }
    }
}

impl Objective for LanguageModel {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Tensor> {
        let tokens = tokens_of(batch)?;
        let targets = Tensor::from_ids(&batch.targets, tokens.ids.shape())?;
        Ok(self.model.loss(&tokens, &targets, normalizer)?)
    }

    fn n_correct(&self, _: &Batch) -> Result<Option<usize>> {
        Ok(None)
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
        let ids = self.tokenizer.encode(prompt)?;
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
