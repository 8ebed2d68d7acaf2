//! A model against what its reference implementation computed.

use std::path::Path;

use lehr_model::io::Checkpoint;
use lehr_model::{KvCache, Model, Tokens};
use lehr_tensor::{Shape, Tensor, no_grad};

use crate::{Error, Result};

/// One compared item.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared: `logits`, `loss`, `grad.<parameter>`, `greedy`, `cached`.
    pub item: String,
    /// The error found; for `greedy` the number of tokens that differ.
    pub error: f64,
    /// The largest error allowed.
    pub limit: f64,
}

impl Check {
    /// Whether the error is within the limit; NaN is not.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.limit
    }
}

/// Largest absolute error of a logit.
const LOGITS: f64 = 2e-5;
/// Largest relative error of the loss.
const LOSS: f64 = 1e-6;
/// Largest relative error of a gradient, `‖d − ref‖ / ‖ref‖`.
const GRAD: f64 = 1e-4;

/// Compares the model in `model_dir` with a golden file: `input_ids`, `labels` (not shifted, −100 =
/// no label), `logits`, `loss`, `grad.<parameter>` and `greedy` (a prompt and its greedy
/// continuation), as `tools/golden/models.py` writes it. Also compares cached with full generation.
///
/// # Errors
/// If the model or the golden file cannot be read or do not belong together.
pub fn verify(model_dir: &Path, golden_path: &Path) -> Result<Vec<Check>> {
    let model = Model::load(model_dir)?;
    let golden = Checkpoint::open(golden_path)?;
    let fault = |reason: String| Error::Golden { path: golden_path.to_owned(), reason };
    let ids = golden.ids("input_ids")?;
    if ids.shape().len() != 2 || ids.shape().n_elements() == 0 {
        return Err(fault(format!("input_ids has shape {}, expected [B, T]", ids.shape())));
    }
    let tokens = Tokens::new(ids.ids(), ids.shape()[0], 0)?;
    let mut checks = vec![check_logits(&model, &golden, &tokens)?];
    if golden.has("loss") {
        checks.extend(check_loss_and_gradients(&model, &golden, &tokens, &fault)?);
    }
    if golden.has("greedy") {
        checks.extend(check_greedy(&model, &golden, &fault)?);
    }
    Ok(checks)
}

fn check_logits(model: &Model, golden: &Checkpoint, tokens: &Tokens) -> Result<Check> {
    let logits = no_grad(|| model.logits(&model.hidden(tokens)?))?;
    let want = golden.tensor("logits", logits.shape())?;
    let error = max_abs_difference(logits.data(), want.data());
    Ok(Check { item: "logits".to_owned(), error, limit: LOGITS })
}

fn check_loss_and_gradients(
    model: &Model,
    golden: &Checkpoint,
    tokens: &Tokens,
    fault: &dyn Fn(String) -> Error,
) -> Result<Vec<Check>> {
    let labels = golden.ids("labels")?;
    if labels.shape() != tokens.ids.shape() {
        return Err(fault(format!(
            "labels have shape {}, expected that of input_ids",
            labels.shape()
        )));
    }
    let targets = next_token_targets(&labels)?;
    let n_labels = targets.ids().iter().filter(|l| **l >= 0).count();
    let loss = model.loss(tokens, &targets, n_labels as f32)?;
    let want = f64::from(golden.tensor("loss", Shape::from([]))?.item()?);
    let error = (f64::from(loss.item()?) - want).abs() / want.abs();
    let mut checks = vec![Check { item: "loss".to_owned(), error, limit: LOSS }];
    loss.backward()?;
    for item in golden.names().filter(|n| n.starts_with("grad.")) {
        let name = &item["grad.".len()..];
        let Some(param) = model.params().get(name) else {
            return Err(fault(format!("`{item}` belongs to no parameter of the model")));
        };
        let want = golden.tensor(item, param.shape())?;
        let zeros = Tensor::zeros(param.shape())?;
        let grad = param.grad().unwrap_or(zeros);
        let error = relative_distance(grad.data(), want.data());
        checks.push(Check { item: item.to_owned(), error, limit: GRAD });
    }
    Ok(checks)
}

/// Labels as targets: position t predicts label t + 1, the last position nothing.
fn next_token_targets(labels: &Tensor) -> Result<Tensor> {
    let t = labels.shape()[1];
    let mut targets = vec![-100; labels.ids().len()];
    for (row, targets) in labels.ids().chunks(t).zip(targets.chunks_mut(t)) {
        targets[..t - 1].copy_from_slice(&row[1..]);
    }
    Ok(Tensor::from_ids(&targets, labels.shape())?)
}

/// Continues the golden's prompt greedily, once with the cache and once without.
fn check_greedy(
    model: &Model,
    golden: &Checkpoint,
    fault: &dyn Fn(String) -> Error,
) -> Result<Vec<Check>> {
    /// Tokens of the golden that are its prompt.
    const PROMPT: usize = 10;
    let want = golden.ids("greedy")?;
    let want = want.ids();
    if want.len() <= PROMPT {
        return Err(fault(format!(
            "greedy has {} tokens, expected more than {PROMPT}",
            want.len()
        )));
    }
    let mut cache = KvCache::new(&model.spec(), 1, want.len())?;
    let mut text = want[..PROMPT].to_vec();
    let mut new = Tokens::new(&text, 1, 0)?;
    let (mut n_different, mut cached_error) = (0, 0.0f64);
    for expected in &want[PROMPT..] {
        let cached = model.next_logits(&new, &mut cache)?;
        let full = no_grad(|| model.logits(&model.hidden(&Tokens::new(&text, 1, 0)?)?))?;
        let last = &full.data()[full.data().len() - cached.data().len()..];
        cached_error = cached_error.max(max_abs_difference(cached.data(), last));
        let by_value = |a: &usize, b: &usize| last[*a].total_cmp(&last[*b]);
        let best = (0..last.len()).max_by(by_value).unwrap_or(0) as i32;
        n_different += usize::from(best != *expected);
        // The golden's own token goes on, so that one difference is counted once.
        new = Tokens::new(&[*expected], 1, text.len())?;
        text.push(*expected);
    }
    let greedy =
        Check { item: "greedy".to_owned(), error: f64::from(n_different as u32), limit: 0.0 };
    Ok(vec![greedy, Check { item: "cached".to_owned(), error: cached_error, limit: LOGITS }])
}

fn max_abs_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let error = f64::from((a - b).abs());
        if error.is_nan() { f64::NAN } else { worst.max(error) }
    })
}

fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = b.iter().map(|b| square(*b)).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}
