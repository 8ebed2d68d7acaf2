//! Comparison of a model with the results of its reference implementation.

use std::path::Path;

use lehr_model::io::Checkpoint;
use lehr_model::{Model, Tokens};
use lehr_tensor::{DType, Device, Shape, Tensor, no_grad};

use crate::{Error, Result};

/// One compared item.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name: `logits`, `hidden`, `position_ids`, `attention_blocked`, `loss`,
    /// `grad.<parameter>`, `greedy` or `cached`.
    pub item: String,
    /// The error found. For `greedy`, `position_ids` and `attention_blocked`, the number of values
    /// that differ.
    pub error: f64,
    /// The largest error allowed.
    pub limit: f64,
}

impl Check {
    /// Returns whether the error is within the limit. NaN is not.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.limit
    }
}

/// Largest absolute error of a logit.
const LOGITS: f64 = 5e-5;
/// Largest relative error of the loss.
const LOSS: f64 = 1e-6;
/// Largest relative error of a gradient, `‖d − ref‖ / ‖ref‖`.
const GRAD: f64 = 1e-4;
/// Smallest norm by which a gradient's error is divided, as a share of the norm of all gradients.
/// The true gradient of key biases is 0, since they cannot change a softmax. There the reference
/// contains only its own rounding.
const SMALLEST_GRAD: f64 = 1e-5;

/// Compares `model` with a golden file written by `tools/golden/models.py`, and
/// cached with uncached generation.
///
/// The file holds `input_ids`, `labels` (not shifted, −100 = no label), `logits`, `hidden`, `loss`,
/// `grad.<parameter>` and `greedy` (a prompt and its greedy continuation). For a bidirectional
/// prefix it also holds `position_ids` `[B, streams, T]` and `attention_blocked` `[B, 1, T, T]`
/// (1 = not visible). Only `logits` is required, or `hidden` for an encoder without a head.
///
/// The model computes on the given device in the given type. The limits are those of f32.
///
/// # Errors
/// If the golden file cannot be read or does not belong to the model.
pub fn verify(
    model: &Model,
    golden_path: &Path,
    (device, dtype): (Device, DType),
) -> Result<Vec<Check>> {
    model.to_device(device, dtype)?;
    let golden = Checkpoint::open(golden_path)?;
    let fault = |reason: String| Error::Golden { path: golden_path.to_owned(), reason };
    let ids = golden.ids("input_ids")?;
    if ids.shape().len() != 2 || ids.shape().n_elements() == 0 {
        return Err(fault(format!("input_ids has shape {}, expected [B, T]", ids.shape())));
    }
    let vocab_size = model.spec().vocab_size;
    if let Some(id) = ids.ids().iter().find(|id| **id < 0 || **id as usize >= vocab_size) {
        return Err(fault(format!("input_ids has {id}, the model's ids are 0..{vocab_size}")));
    }
    let tokens = model.tokens(ids.ids(), ids.shape()[0])?;
    let mut checks = Vec::new();
    if golden.has("hidden") {
        checks.push(check_hidden(model, &golden, &tokens)?);
    }
    if golden.has("logits") || checks.is_empty() {
        checks.push(check_logits(model, &golden, &tokens)?);
    }
    checks.extend(check_layout(&golden, &tokens, &fault)?);
    if golden.has("loss") {
        checks.extend(check_loss_and_gradients(model, &golden, &tokens, &fault)?);
    }
    if golden.has("greedy") {
        checks.extend(check_greedy(model, &golden, &fault)?);
    } else if model.is_causal() {
        checks.push(check_cached(model, &tokens)?);
    }
    Ok(checks)
}

fn check_hidden(model: &Model, golden: &Checkpoint, tokens: &Tokens) -> Result<Check> {
    let hidden = no_grad(|| model.hidden(tokens))?.to_host()?;
    let want = golden.tensor("hidden", hidden.shape())?;
    let error = max_abs_difference(hidden.data(), want.data());
    Ok(Check { item: "hidden".to_owned(), error, limit: LOGITS })
}

fn check_logits(model: &Model, golden: &Checkpoint, tokens: &Tokens) -> Result<Check> {
    let logits = no_grad(|| model.logits(&model.hidden(tokens)?))?.to_host()?;
    let want = golden.tensor("logits", logits.shape())?;
    let error = max_abs_difference(logits.data(), want.data());
    Ok(Check { item: "logits".to_owned(), error, limit: LOGITS })
}

/// Compares positions and mask, if the golden file has them.
fn check_layout(
    golden: &Checkpoint,
    tokens: &Tokens,
    fault: &dyn Fn(String) -> Error,
) -> Result<Vec<Check>> {
    let (b, t) = (tokens.batch(), tokens.len());
    let wanted = |item: &str| golden.has(item);
    if !wanted("position_ids") && !wanted("attention_blocked") {
        return Ok(Vec::new());
    }
    if tokens.prefix_lens.is_none() {
        return Err(fault("it has position_ids, but the model counts positions from 0".to_owned()));
    }
    let streams: Vec<_> = [Some(&tokens.positions), tokens.block_positions.as_ref()]
        .into_iter()
        .flatten()
        .map(Tensor::ids)
        .collect();
    let mut checks = Vec::new();
    let mut check = |item: &'static str, shape: &[usize], got: &dyn Fn(usize) -> i32| {
        if !wanted(item) {
            return Ok(());
        }
        let want = golden.ids(item)?;
        if *want.shape() != *shape {
            return Err(fault(format!("{item} has shape {}, expected {shape:?}", want.shape())));
        }
        let differs = |(i, want): &(usize, &i32)| got(*i) != **want;
        let error = want.ids().iter().enumerate().filter(differs).count() as f64;
        checks.push(Check { item: item.to_owned(), error, limit: 0.0 });
        Ok(())
    };
    let n = streams.len();
    check("position_ids", &[b, n, t], &|i| {
        let (row, stream, column) = (i / (n * t), i / t % n, i % t);
        streams[stream][row * t + column]
    })?;
    let intervals = tokens.causal_mask().intervals(b, t, t)?;
    check("attention_blocked", &[b, 1, t, t], &|i| {
        let (query, key) = (i / t, (i % t) as i32);
        let seen = intervals.ids()[2 * query]..intervals.ids()[2 * query + 1];
        i32::from(!seen.contains(&key))
    })?;
    Ok(checks)
}

/// Compares the first row token by token, with the cache, with one pass over the whole row.
fn check_cached(model: &Model, tokens: &Tokens) -> Result<Check> {
    let t = tokens.len();
    let ids = &tokens.ids.ids()[..t];
    let whole = no_grad(|| model.logits(&model.hidden(&model.tokens(ids, 1)?)?))?.to_host()?;
    let v = whole.shape().last_dim();
    let layout = model.layout(ids)?;
    let prompt = layout.prefix_len.clamp(1, t);
    let mut cache = model.cache(1, t)?;
    let mut new = Tokens::of_texts(&ids[..prompt], &[&layout], 0)?;
    let mut error = 0.0f64;
    for end in prompt..=t {
        let cached = model.next_logits(&new, &mut cache)?.to_host()?;
        error = error.max(max_abs_difference(cached.data(), &whole.data()[(end - 1) * v..end * v]));
        if let Some(id) = ids.get(end) {
            new = Tokens::of_texts(&[*id], &[&layout], end)?;
        }
    }
    Ok(Check { item: "cached".to_owned(), error, limit: LOGITS })
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
    // An encoder predicts a token at the token's own position.
    let targets = if model.is_causal() { next_token_targets(&labels)? } else { labels };
    let n_labels = targets.ids().iter().filter(|l| **l >= 0).count();
    let loss = model.loss(tokens, &targets, n_labels as f32)?;
    let want = f64::from(golden.tensor("loss", Shape::from([]))?.item()?);
    let error = (f64::from(loss.item()?) - want).abs() / want.abs();
    let mut checks = vec![Check { item: "loss".to_owned(), error, limit: LOSS }];
    loss.backward()?;
    let mut grads = Vec::new();
    for item in golden.names().filter(|n| n.starts_with("grad.")) {
        let name = &item["grad.".len()..];
        let Some(param) = model.params().get(name) else {
            return Err(fault(format!("`{item}` belongs to no parameter of the model")));
        };
        grads.push((item, param, golden.tensor(item, param.shape())?));
    }
    let all = grads.iter().map(|(_, _, want)| norm(want.data()).powi(2)).sum::<f64>().sqrt();
    for (item, param, want) in grads {
        let zeros = Tensor::zeros(param.shape())?;
        let grad = param.grad().unwrap_or(zeros).to_host()?;
        let error = relative_distance(grad.data(), want.data(), SMALLEST_GRAD * all);
        checks.push(Check { item: item.to_owned(), error, limit: GRAD });
    }
    Ok(checks)
}

/// Shifts labels to targets: position t predicts label t + 1, the last position nothing.
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
    /// Number of prompt tokens in the golden.
    const PROMPT: usize = 10;
    let want = golden.ids("greedy")?;
    let want = want.ids();
    if want.len() <= PROMPT {
        return Err(fault(format!(
            "greedy has {} tokens, expected more than {PROMPT}",
            want.len()
        )));
    }
    let mut cache = model.cache(1, want.len())?;
    let mut text = want[..PROMPT].to_vec();
    let layout = model.layout(&text)?;
    let mut new = Tokens::of_texts(&text, &[&layout], 0)?;
    let (mut n_different, mut cached_error) = (0, 0.0f64);
    for expected in &want[PROMPT..] {
        let cached = model.next_logits(&new, &mut cache)?.to_host()?;
        let full = no_grad(|| model.logits(&model.hidden(&model.tokens(&text, 1)?)?))?.to_host()?;
        let last = &full.data()[full.data().len() - cached.data().len()..];
        cached_error = cached_error.max(max_abs_difference(cached.data(), last));
        let by_value = |a: &usize, b: &usize| last[*a].total_cmp(&last[*b]);
        let best = (0..last.len()).max_by(by_value).unwrap_or(0) as i32;
        n_different += usize::from(best != *expected);
        // Continues with the golden's token, so that one difference is counted once.
        new = Tokens::of_texts(&[*expected], &[&layout], text.len())?;
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

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Computes `‖a − b‖ / max(‖b‖, smallest)`.
fn relative_distance(a: &[f32], b: &[f32], smallest: f64) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let scale = norm(b).max(smallest);
    if scale == 0.0 { difference.sqrt() } else { difference.sqrt() / scale }
}
