//! Learned keys and values, compared with each text alone and its keys written out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_tensor::{Device, Philox, cuda};

use super::super::{ActivationCheckpointing, Layout, PackedText};
use super::*;

const SPEC: Spec = Spec {
    n_layers: 1,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 8,
    hidden_size: 32,
    vocab_size: 16,
    max_positions: 64,
};
const PREFIX: usize = 5;

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Philox::new(seed, 0).fill_normal(&mut values, 1.0);
    Tensor::from_slice(&values, shape).unwrap()
}

/// Queries, keys and values of the tokens, learned keys and values, and the gradient of the output.
struct Inputs {
    all: [Tensor; 5],
    weights: Tensor,
}

fn inputs(batch: usize, t: usize) -> Inputs {
    let Spec { n_heads, n_kv_heads, head_dim: e, .. } = SPEC;
    let shapes: [&[usize]; 5] = [
        &[batch, t, n_heads, e],
        &[batch, t, n_kv_heads, e],
        &[batch, t, n_kv_heads, e],
        &[PREFIX, n_kv_heads, e],
        &[PREFIX, n_kv_heads, e],
    ];
    let mut seed = 0;
    let all = shapes.map(|shape| {
        seed += 1;
        normal(shape, seed).trainable()
    });
    Inputs { all, weights: normal(&[batch, t, n_heads * e], 9) }
}

/// Computes the result and the gradients of all inputs.
fn outcome(inputs: &Inputs, out: &Tensor) -> Vec<Vec<f32>> {
    out.mul(&inputs.weights).unwrap().sum().unwrap().backward().unwrap();
    let grads = inputs.all.iter().map(|x| x.grad().unwrap().to_vec());
    std::iter::once(out.to_vec()).chain(grads).collect()
}

/// A text of some row: its start, its length and the length of its bidirectional prefix.
#[derive(Clone, Copy)]
struct Text {
    row: usize,
    start: usize,
    len: usize,
    prefix_len: usize,
}

/// Computes each text alone, with the learned keys written before its own.
fn one_by_one(texts: &[Text], (batch, t): (usize, usize), causal: bool) -> Vec<Vec<f32>> {
    let inputs = inputs(batch, t);
    let [q, k, v, learned_k, learned_v] = &inputs.all;
    let mut rows = Vec::new();
    for row in 0..batch {
        let mut parts = Vec::new();
        for text in texts.iter().filter(|text| text.row == row) {
            let piece = |x: &Tensor| {
                x.slice(0, row..row + 1).unwrap().slice(1, text.start..text.start + text.len)
            };
            let behind = |learned: &Tensor, x: &Tensor| {
                let shape = [1, PREFIX, SPEC.n_kv_heads, SPEC.head_dim];
                let learned = learned.reshape(shape).unwrap();
                Tensor::concat(&[&learned, &piece(x).unwrap()], 1).unwrap()
            };
            let seen = (PREFIX + text.prefix_len) as i32;
            let mask = match causal {
                true => Mask::causal().with_prefix(Tensor::from_ids(&[seen], [1]).unwrap()),
                false => Mask::bidirectional(),
            };
            let (k, v) = (behind(learned_k, k), behind(learned_v, v));
            parts.push(piece(q).unwrap().attention(&k, &v, &mask, 0.3).unwrap());
        }
        rows.push(Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1).unwrap());
    }
    let out = Tensor::concat(&rows.iter().collect::<Vec<_>>(), 0).unwrap();
    let out = out.reshape([batch, t, SPEC.n_heads * SPEC.head_dim]).unwrap();
    outcome(&inputs, &out)
}

/// Computes all texts at once with the helper shared by all families.
fn together(texts: &[Text], (batch, t): (usize, usize), causal: bool) -> Vec<Vec<f32>> {
    let inputs = inputs(batch, t);
    let tokens = packed(texts, (batch, t));
    let mask = if causal { tokens.causal_mask() } else { tokens.bidirectional_mask() };
    let [q, k, v, learned_k, learned_v] = inputs.all.clone();
    let place = PrefixPlace::before_segments(&tokens, PREFIX).unwrap();
    let prefix = Some((&place, KvPrefix { k: learned_k, v: learned_v }));
    let attention = Attention::new(&SPEC, 0).with_scale(0.3);
    let mask = mask.with_leading_keys(PREFIX);
    let out = attention.attend(&Qkv { q, k, v }, &mask, prefix, None).unwrap();
    outcome(&inputs, &out)
}

fn packed(texts: &[Text], (batch, t): (usize, usize)) -> Tokens {
    let ids = vec![1; t];
    let layouts =
        texts.iter().map(|text| Layout::with_prefix(text.len, text.prefix_len, None, false));
    let layouts: Vec<_> = layouts.collect();
    let texts = texts.iter().zip(&layouts).map(|(text, layout)| PackedText {
        ids: &ids[..text.len],
        layout,
        row: text.row,
        start: text.start,
    });
    Tokens::pack(&texts.collect::<Vec<_>>(), batch, t).unwrap()
}

fn text(row: usize, start: usize, len: usize, prefix_len: usize) -> Text {
    Text { row, start, len, prefix_len }
}

fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

#[test]
fn a_learned_prefix_stands_before_every_segment_and_gets_the_gradients_of_all() {
    let whole = vec![text(0, 0, 40, 0), text(1, 0, 40, 0)];
    // Three segments in one row, two in the other, one of a single token.
    let segments = vec![
        text(0, 0, 9, 0),
        text(0, 9, 1, 0),
        text(0, 10, 30, 0),
        text(1, 0, 4, 0),
        text(1, 4, 36, 0),
    ];
    let glm: Vec<_> = segments.iter().map(|s| Text { prefix_len: s.len / 2, ..*s }).collect();
    let whole_glm = vec![text(0, 0, 40, 7), text(1, 0, 40, 22)];
    for (name, texts, causal) in [
        ("causal", &whole, true),
        ("causal, packed", &segments, true),
        ("bidirectional", &whole, false),
        ("bidirectional, packed", &segments, false),
        ("bidirectional prefix", &whole_glm, true),
        ("bidirectional prefix, packed", &glm, true),
    ] {
        let want = one_by_one(texts, (2, 40), causal);
        let found = together(texts, (2, 40), causal);
        for (part, (found, want)) in found.iter().zip(&want).enumerate() {
            let error = max_abs_difference(found, want);
            assert!(error <= 2e-5, "{name}, part {part}: off by {error}");
        }
        let learned = &found[4..];
        assert!(learned.iter().all(|grad| grad.iter().any(|g| g.abs() > 1e-3)), "{name}");
    }
}

#[test]
fn a_gpu_sees_the_learned_prefix_as_the_cpu_does() {
    cuda::use_emulator();
    let texts = [text(0, 0, 9, 4), text(0, 9, 31, 2), text(1, 0, 40, 11)];
    let tokens = packed(&texts, (2, 40));
    let place = PrefixPlace::before_segments(&tokens, PREFIX).unwrap();
    let mask = tokens.causal_mask().with_leading_keys(PREFIX);
    let run = |device: Device| {
        let all = inputs(2, 40).all.map(|x| x.detach().to_device(device).unwrap().trainable());
        let [q, k, v, learned_k, learned_v] = all.clone();
        let prefix = Some((&place, KvPrefix { k: learned_k, v: learned_v }));
        let attention = Attention::new(&SPEC, 0);
        let out = attention.attend(&Qkv { q, k, v }, &mask, prefix, None).unwrap();
        let weights = inputs(2, 40).weights.to_device(device).unwrap();
        out.mul(&weights).unwrap().sum().unwrap().backward().unwrap();
        let grads = all.iter().map(|x| x.grad().unwrap());
        let results: Vec<_> = std::iter::once(out.detach()).chain(grads).collect();
        results.iter().map(|x| x.to_host().unwrap().to_vec()).collect::<Vec<_>>()
    };
    for (want, found) in run(Device::Cpu).iter().zip(&run(Device::Cuda(0))) {
        assert!(max_abs_difference(want, found) <= 2e-5);
    }
}

#[test]
fn a_window_that_would_hide_the_learned_prefix_is_refused() {
    let tokens = packed(&[text(0, 0, 40, 0)], (1, 40));
    let place = PrefixPlace::before_segments(&tokens, PREFIX).unwrap();
    let run = |window| {
        let [q, k, v, learned_k, learned_v] = inputs(1, 40).all;
        let prefix = Some((&place, KvPrefix { k: learned_k, v: learned_v }));
        let attention = Attention::new(&SPEC, 0).with_window(Some(window));
        let mask = tokens.causal_mask().with_leading_keys(PREFIX);
        attention.attend(&Qkv { q, k, v }, &mask, prefix, None)
    };
    // A window that covers all tokens hides nothing.
    assert!(run(40).is_ok());
    let error = run(39).unwrap_err().to_string();
    assert!(error.contains("with a window of 39") && error.contains("hide"), "{error}");
}

#[test]
fn a_pass_is_checked_before_it_runs() {
    let tokens = Tokens::new(&[1, 2, 3], 1, 0).unwrap();
    let mut cache = KvCache::new(&SPEC, (Device::Cpu, lehr_tensor::DType::F32), 1, 8).unwrap();
    let recorded = Pass::continuing(&tokens, &mut cache).check(&SPEC).unwrap_err();
    assert!(matches!(recorded, Error::RecordedCache), "{recorded}");
    let whole = Pass::whole(&tokens, ActivationCheckpointing::None);
    assert!(whole.check(&SPEC).is_ok());
    let error = whole.check_prefix(&SPEC).unwrap_err();
    assert!(error.to_string().contains("no bidirectional prefix"), "{error}");
    let layout = Layout::with_prefix(3, 1, None, true);
    let two_streams = Tokens::of_texts(&[1, 2, 3], &[&layout], 0).unwrap();
    let pass = Pass::whole(&two_streams, ActivationCheckpointing::None);
    assert!(pass.check_two_streams(&SPEC).is_ok());
    assert!(pass.check(&SPEC).unwrap_err().to_string().contains("one stream of positions"));
}
