//! Learned keys and values before every text, in every family.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::Checkpoint;
use lehr_model::{ActivationCheckpointing, Error, Model, PackedText, Tokens};
use lehr_tensor::{Tensor, no_grad};

const N: usize = 3;

fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    dirs
}

/// Returns a model with a learned prefix of large values, and the ids of its golden file. Returns
/// `None` if its windows would hide the prefix and it says so.
fn with_prefix(dir: &Path) -> Option<(Model, Tensor)> {
    let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
    let ids = golden.ids("input_ids").unwrap();
    let mut model = Model::load(dir).unwrap();
    model.add_kv_prefix(N, 5).unwrap();
    for param in prefix_of(&model) {
        let mut values = param.tensor().to_vec();
        values.iter_mut().for_each(|x| *x *= 40.0);
        param.set(&Tensor::from_slice(&values, param.shape()).unwrap()).unwrap();
    }
    let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
    match no_grad(|| model.hidden(&tokens)) {
        Ok(_) => Some((model, ids)),
        Err(error) => {
            assert!(error.to_string().contains("with a window of"), "{error}");
            None
        }
    }
}

fn prefix_of(model: &Model) -> Vec<lehr_tensor::Param> {
    let params = model.params().params().iter();
    params.filter(|p| p.name().starts_with("kv_prefix.")).cloned().collect()
}

fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

fn hidden(model: &Model, tokens: &Tokens) -> Vec<f32> {
    no_grad(|| model.hidden(tokens).unwrap().to_vec())
}

#[test]
fn packed_texts_each_see_the_prefix_and_the_cache_continues_behind_it() {
    let mut n_refused = 0;
    for dir in golden_dirs() {
        let Some((model, ids)) = with_prefix(&dir) else {
            n_refused += 1;
            continue;
        };
        let t = ids.shape()[1];
        let (a, b) = (&ids.ids()[..16], &ids.ids()[t..t + 14]);
        let plain = Model::load(&dir).unwrap();
        let alone = [a, b].map(|ids| hidden(&model, &model.tokens(ids, 1).unwrap()));
        let without = hidden(&plain, &plain.tokens(a, 1).unwrap());
        assert!(max_abs_difference(&alone[0], &without) > 1e-3, "{}", dir.display());
        let layouts = [a, b].map(|ids| model.layout(ids).unwrap());
        let place = |ids, i: usize| PackedText { ids, layout: &layouts[i], row: 0, start: 16 * i };
        let packed = Tokens::pack(&[place(a, 0), place(b, 1)], 1, 32).unwrap();
        let packed = hidden(&model, &packed);
        let both = alone.concat();
        let error = max_abs_difference(&packed[..both.len()], &both);
        assert!(error <= 2e-5, "{}: packed is off by {error}", dir.display());
        if !model.is_causal() {
            continue;
        }
        let mut cache = model.cache(1, 16).unwrap();
        let prompt = layouts[0].prefix_len.max(10);
        let mut next = Tokens::of_texts(&a[..prompt], &[&layouts[0]], 0).unwrap();
        let width = both.len() / 30;
        for end in prompt..=16 {
            let hidden = model.hidden_cached(&next, &mut cache).unwrap().to_vec();
            let want = &alone[0][(end - 1) * width..end * width];
            let error = max_abs_difference(&hidden[hidden.len() - width..], want);
            assert!(error <= 2e-5, "{}: cached is off by {error}", dir.display());
            if end < 16 {
                next = Tokens::of_texts(&a[end..=end], &[&layouts[0]], end).unwrap();
            }
        }
    }
    assert!(n_refused < golden_dirs().len() / 2, "{n_refused} models refuse a learned prefix");
}

#[test]
fn the_gradient_of_the_prefix_is_the_slope_of_the_loss() {
    for dir in golden_dirs() {
        let Some((mut model, ids)) = with_prefix(&dir) else { continue };
        let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
        if matches!(model.loss(&tokens, &ids, 8.0), Err(Error::NoHead { .. })) {
            continue;
        }
        let mut run = |checkpointing| {
            model.set_activation_checkpointing(checkpointing);
            model.params().clear_grads();
            model.loss(&tokens, &ids, 8.0).unwrap().backward().unwrap();
            let grads = prefix_of(&model).into_iter().map(|p| p.grad().unwrap().to_vec());
            grads.collect::<Vec<_>>()
        };
        let grads = run(ActivationCheckpointing::None);
        assert_eq!(run(ActivationCheckpointing::Recompute), grads, "{}", dir.display());
        let params = prefix_of(&model);
        let start: Vec<_> = params.iter().map(|p| p.tensor().to_vec()).collect();
        // Along the gradient the loss rises by the gradient's square.
        let at = |step: f32| {
            for ((param, start), grad) in params.iter().zip(&start).zip(&grads) {
                let moved: Vec<f32> = start.iter().zip(grad).map(|(x, g)| x + step * g).collect();
                param.set(&Tensor::from_slice(&moved, param.shape()).unwrap()).unwrap();
            }
            let loss = no_grad(|| model.loss(&tokens, &ids, 8.0).unwrap().item().unwrap());
            f64::from(loss)
        };
        let square: f64 = grads.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
        let step = (0.1 / square.sqrt()) as f32;
        let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
        let error = (slope / square - 1.0).abs();
        assert!(error < 0.02, "{}: the slope {slope} is off by {error}", dir.display());
        let has_gradient = |grad: &Vec<f32>| grad.iter().any(|g| *g != 0.0);
        assert!(grads.iter().all(has_gradient), "{}", dir.display());
    }
}
