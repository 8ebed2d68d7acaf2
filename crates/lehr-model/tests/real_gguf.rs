//! Published GGUF files compared with what their reference computed.
//!
//! `scripts/get-models.sh DEST --gemma` fetches the files, which are too large to commit, and
//! `LEHR_MODELS=DEST` names their folder. Without it these tests are skipped; other tests cover
//! each format with a small file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/fixtures.rs"]
mod fixtures;

use lehr_model::io::ModelSource;
use lehr_model::{Model, Tokens};
use serde_json::Value;

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

/// The reference holds prompts, their ids, the ten largest logits of the next token and a greedy
/// continuation. An independent f32 implementation computed them from the same file.
#[test]
fn smollm2_computes_what_its_reference_computes() {
    let Some(folder) = fixtures::path("LEHR_MODELS") else { return };
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let model = Model::load(&path).unwrap();
    let reference: Value = serde_json::from_str(include_str!("smollm2_reference.json")).unwrap();
    for (name, case) in reference.as_object().unwrap() {
        let (prompt, greedy) = (ids(&case["ids"]), ids(&case["greedy"]));
        let capacity = prompt.len() + greedy.len();
        let mut cache = model.cache(1, capacity).unwrap();
        let mut logits =
            model.next_logits(&Tokens::new(&prompt, 1, 0).unwrap(), &mut cache).unwrap();
        let mut worst = 0.0f64;
        for pair in case["top10"].as_array().unwrap() {
            let id = pair[0].as_u64().unwrap() as usize;
            worst = worst.max((f64::from(logits.data()[id]) - pair[1].as_f64().unwrap()).abs());
        }
        println!("{name}: logits are off by at most {worst:.1e}");
        assert!(worst < 1e-3, "{name}: logits are off by {worst}");
        for (i, expected) in greedy.iter().enumerate() {
            let row = logits.data();
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i32;
            assert_eq!(best, *expected, "{name} at token {i}");
            let next = Tokens::new(&[best], 1, prompt.len() + i).unwrap();
            if i + 1 < greedy.len() {
                logits = model.next_logits(&next, &mut cache).unwrap();
            }
        }
    }
}

/// The continuation of a plain prompt must be sensible English. A wrong rotation, norm or window
/// destroys it.
#[test]
fn gemma3_knows_what_follows() {
    let Some(folder) = fixtures::path("LEHR_MODELS") else { return };
    let path = folder.join("gemma-3-270m-q4_k_m.gguf");
    let source = ModelSource::open(&path).unwrap();
    let tokens = source.gguf_metadata().unwrap().strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let id = |text: &str| tokens.iter().position(|token| token == text).unwrap() as i32;
    let model = Model::load(&path).unwrap();
    let prompt: Vec<i32> = ["<bos>", "The", "▁capital", "▁of", "▁France", "▁is"].map(id).to_vec();
    let mut cache = model.cache(1, prompt.len()).unwrap();
    let logits = model.next_logits(&Tokens::new(&prompt, 1, 0).unwrap(), &mut cache).unwrap();
    let row = logits.data();
    let mut best: Vec<usize> = (0..row.len()).collect();
    best.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    let best: Vec<_> = best[..5].iter().map(|id| (tokens[*id].as_str(), row[*id])).collect();
    println!("{best:?}");
    assert!(best.iter().any(|(token, _)| *token == "▁Paris"), "{best:?}");
}
