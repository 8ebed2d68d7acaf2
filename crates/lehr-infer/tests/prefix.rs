//! Generation with models whose context is bidirectional: blocks and reuse of the cache.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use lehr_infer::{Engine, EngineSettings, Event, Limits, Request, Sampling};
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

fn request(prompt: &[u32], n: usize) -> Request {
    let limits = Limits { max_tokens: Some(n), ..Limits::default() };
    Request::new(prompt.to_vec(), Sampling::GREEDY, limits)
}

fn engine<'m>(model: &'m Model, tokenizer: &'m Tokenizer, settings: EngineSettings) -> Engine<'m> {
    Engine::new(model, tokenizer, EngineSettings { context: Some(1500), ..settings }).unwrap()
}

fn continued(engine: &mut Engine<'_>, prompt: &[u32]) -> lehr_infer::Result<Vec<u32>> {
    let mut ignore = |_: &str| ControlFlow::Continue(());
    Ok(engine.generate(request(prompt, 4), &mut ignore)?.ids)
}

#[test]
fn long_contexts_are_not_cut_and_never_reused_in_part() {
    let tokenizer = tokenizer();
    let n_ids = tokenizer.vocab_size();
    for model in models() {
        let mut engine = engine(&model, &tokenizer, EngineSettings::ONE);
        let with_end = |text: Vec<u32>, end: &[u32]| [text, end.to_vec()].concat();
        let first = with_end(text(700), &[GMASK, SOP]);
        let answer = continued(&mut engine, &first).unwrap();
        assert_eq!(answer, by_hand(&model, &first, 4, n_ids));
        // The same text and more in one context: nothing of the first context may stay.
        let longer = with_end(text(720), &[GMASK, SOP]);
        let shorter = with_end(text(650), &[MASK, SOP]);
        // The answer continues, so all pages stay.
        let further = [shorter.clone(), text(3)].concat();
        for prompt in [longer, shorter, further] {
            let found = continued(&mut engine, &prompt).unwrap();
            assert_eq!(found, by_hand(&model, &prompt, 4, n_ids), "{} tokens", prompt.len());
        }
    }
}

#[test]
fn a_prompt_without_its_end_is_refused_with_a_hint() {
    let tokenizer = tokenizer();
    for model in models() {
        let mut engine = engine(&model, &tokenizer, EngineSettings::ONE);
        for (prompt, says) in [(vec![7, 8, GMASK], "no <sop>"), (vec![7, 8, SOP], "no mask token")]
        {
            let error = continued(&mut engine, &prompt).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().unwrap().contains("end it with <sop> (id 294)"));
        }
        let prompt = [7, 8, GMASK, SOP];
        let expected = by_hand(&model, &prompt, 4, tokenizer.vocab_size());
        assert_eq!(continued(&mut engine, &prompt).unwrap(), expected);
    }
}

#[test]
fn sequences_with_prefixes_run_together_and_are_preempted() {
    let tokenizer = tokenizer();
    for model in models() {
        let prompts: Vec<Vec<u32>> = [(30, GMASK), (3, MASK), (75, MASK), (30, GMASK), (50, GMASK)]
            .into_iter()
            .map(|(n, mask)| [text(n), vec![mask, SOP], text(n % 7)].concat())
            .collect();
        // The longest takes 6 pages of 16 tokens.
        for cache_tokens in [None, Some(112), Some(176)] {
            let settings = EngineSettings {
                max_sequences: 3,
                cache_tokens,
                prefill_budget: 20,
                ..EngineSettings::ONE
            };
            let mut engine = engine(&model, &tokenizer, settings);
            let ids: Vec<_> =
                prompts.iter().map(|p| engine.submit(request(p, 12)).unwrap()).collect();
            let mut found = vec![None; prompts.len()];
            while !engine.is_idle() {
                for event in engine.step().unwrap() {
                    match event {
                        Event::Failed { error, .. } => panic!("{error}"),
                        Event::Finished { id, generated } => {
                            let index = ids.iter().position(|i| *i == id).unwrap();
                            found[index] = Some(generated.ids);
                        }
                        _ => {}
                    }
                }
            }
            for (prompt, found) in prompts.iter().zip(found) {
                let want = by_hand(&model, prompt, 12, tokenizer.vocab_size());
                assert_eq!(found.unwrap(), want, "{cache_tokens:?}, {} tokens", prompt.len());
            }
        }
    }
}
