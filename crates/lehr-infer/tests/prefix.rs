//! Generation with models whose context is bidirectional: blocks and reuse of the cache.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use lehr_infer::{Generator, Limits, Sampler, Sampling};
use lehr_model::{Config, Model};
use lehr_tensor::no_grad;
use lehr_tokenizer::{Tokenizer, Trainer};
use serde_json::json;

const MASK: u32 = 290;
const GMASK: u32 = 291;
const SOP: u32 = 294;

fn models() -> Vec<Model> {
    let chatglm = json!({
        "model_type": "chatglm", "vocab_size": 300, "hidden_size": 32, "inner_hidden_size": 48,
        "num_layers": 2, "num_attention_heads": 2, "bos_token_id": SOP, "initializer_range": 0.2,
    });
    let glm130b = json!({
        "model_type": "glm130b", "vocab_size": 300, "hidden_size": 32, "inner_hidden_size": 48,
        "num_layers": 2, "num_attention_heads": 2, "max_sequence_length": 2048,
        "mask_token_id": MASK, "gmask_token_id": GMASK, "smask_token_id": 292, "eod_token_id": 293,
        "sop_token_id": SOP, "eop_token_id": 295, "initializer_range": 0.2,
    });
    let model = |json| Model::new(Config::from_json(json).unwrap(), 3).unwrap();
    vec![model(&chatglm), model(&glm130b)]
}

fn tokenizer() -> Tokenizer {
    Trainer::new(261).train(["abc abc"]).unwrap()
}

/// Some text of `n` tokens, which begins as the longer ones do.
fn text(n: u32) -> Vec<u32> {
    (0..n).map(|i| 5 + i * i % 251).collect()
}

/// Continues greedily by computing everything again for each token.
fn by_hand(model: &Model, prompt: &[u32], n: usize, n_ids: usize) -> Vec<u32> {
    let mut all: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
    for _ in 0..n {
        let logits = no_grad(|| {
            let tokens = model.tokens(&all, 1).unwrap();
            model.logits(&model.hidden(&tokens).unwrap()).unwrap()
        });
        let last = &logits.data()[logits.data().len() - 300..][..n_ids];
        let best = (0..n_ids).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        all.push(best as i32);
    }
    all[prompt.len()..].iter().map(|id| *id as u32).collect()
}

fn continued(generator: &mut Generator<'_>, prompt: &[u32]) -> lehr_infer::Result<Vec<u32>> {
    let mut sampler = Sampler::new(Sampling::GREEDY)?;
    let limits = Limits { max_tokens: Some(4), ..Limits::default() };
    let mut ignore = |_: &str| ControlFlow::Continue(());
    Ok(generator.generate(prompt, &mut sampler, &limits, &mut ignore)?.ids)
}

#[test]
fn long_contexts_are_not_cut_and_never_reused_in_part() {
    let tokenizer = tokenizer();
    let n_ids = tokenizer.vocab_size();
    for model in models() {
        let mut generator = Generator::new(&model, &tokenizer, 1500).unwrap();
        let with_end = |text: Vec<u32>, end: &[u32]| [text, end.to_vec()].concat();
        let first = with_end(text(700), &[GMASK, SOP]);
        let answer = continued(&mut generator, &first).unwrap();
        assert_eq!(answer, by_hand(&model, &first, 4, n_ids));
        // The same text and more in one context: nothing of the first context may stay.
        let longer = with_end(text(720), &[GMASK, SOP]);
        let shorter = with_end(text(650), &[MASK, SOP]);
        // The answer goes on: all may stay.
        let further = [shorter.clone(), text(3)].concat();
        for prompt in [longer, shorter, further] {
            let found = continued(&mut generator, &prompt).unwrap();
            assert_eq!(found, by_hand(&model, &prompt, 4, n_ids), "{} tokens", prompt.len());
        }
    }
}

#[test]
fn a_prompt_without_its_end_is_refused_with_a_hint() {
    let tokenizer = tokenizer();
    for model in models() {
        let mut generator = Generator::new(&model, &tokenizer, 1500).unwrap();
        for (prompt, says) in [(vec![7, 8, GMASK], "no <sop>"), (vec![7, 8, SOP], "no mask token")]
        {
            let error = continued(&mut generator, &prompt).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().unwrap().contains("end it with <sop> (id 294)"));
        }
        let prompt = [7, 8, GMASK, SOP];
        let expected = by_hand(&model, &prompt, 4, tokenizer.vocab_size());
        assert_eq!(continued(&mut generator, &prompt).unwrap(), expected);
    }
}
