//! A gradient that is not finite ends a run, and the error and the saved state say which weights
//! had been updated by then.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::AtomicBool;

use common::{Watch, gpt2, prepared, recipe, weights};
use lehr_data::Batch;
use lehr_model::Model;
use lehr_tokenizer::Tokenizer;
use lehr_train::recipe::{ObjectiveKind, OptimizerRule};
use lehr_train::{AdamW, Error, Loss, Objective, Result, RunDir, TrainState, checkpoint, run};

/// The loss of `inner`, plus a term that is 0 and whose gradient by one bias is infinite.
struct Overflowing {
    inner: Box<dyn Objective>,
}

/// The first bias of the first block, whose gradient is among the last that backward completes.
const BIAS: &str = "transformer.h.0.ln_1.bias";

impl Objective for Overflowing {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        let loss = self.inner.loss(batch, normalizer)?.value;
        let params = self.inner.model().params().params();
        let bias = params.iter().find(|p| p.name() == BIAS).unwrap();
        // New biases are 0, and the factors multiply to more than the largest f32.
        let zero = bias.tensor().scale(1e30)?.scale(1e30)?.sum()?;
        Ok(Loss::new(loss.add(&zero)?))
    }

    fn model(&self) -> &Model {
        self.inner.model()
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.inner.tokenizer()
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> serde_json::Value {
        self.inner.config_json()
    }
}

#[test]
fn an_infinite_gradient_says_which_weights_were_updated() {
    for in_backward in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let mut recipe = recipe(scratch.path(), gpt2(96), ObjectiveKind::NextToken);
        (recipe.optimizer.clip_norm, recipe.optimizer.in_backward) = (0.0, in_backward);
        let mut task = prepared(&recipe);
        let before = weights(&task);
        let inner = prepared(&recipe).objective;
        task.objective = Box::new(Overflowing { inner });
        let dir = RunDir::open(&recipe).unwrap();
        let stop = AtomicBool::new(false);
        let failed = run(&recipe, &mut task, Some(&dir), &mut Watch::default(), &stop);
        let error = failed.err().unwrap();
        let (text, hint) = (error.to_string(), error.hint().unwrap());
        let Error::NotFinite { n_updated, debug: Some(debug), .. } = error else {
            panic!("{text}")
        };
        let changed = weights(&task).iter().zip(&before).filter(|(a, b)| a != b).count();
        assert_eq!(n_updated, changed, "{text}");
        assert_eq!(changed > 0, in_backward, "{text}");
        assert!(text.contains(&format!("the gradient of `{BIAS}` is inf")), "{text}");
        let state = std::fs::read_to_string(debug.join("state.json")).unwrap();
        let state: TrainState = serde_json::from_str(&state).unwrap();
        assert_eq!((state.step, state.params_ahead), (0, n_updated));
        let expected = match in_backward {
            true => ("because optimizer.in_backward is true", "the partly updated state is in"),
            false => ("no weight was updated", "the state before the step is in"),
        };
        assert!(text.contains(expected.0) && hint.contains(expected.1), "{text}; {hint}");
        // A state between two steps is nothing to continue from.
        let mut fresh = prepared(&recipe);
        let OptimizerRule::Adamw(config) = &recipe.optimizer.rule else { panic!("AdamW") };
        let mut optimizer =
            AdamW::new(config, recipe.optimizer.lr, fresh.objective.model().params()).unwrap();
        let restored = checkpoint::restore(&debug, fresh.objective.as_mut(), &mut optimizer);
        assert_eq!(restored.is_err(), in_backward);
    }
}
